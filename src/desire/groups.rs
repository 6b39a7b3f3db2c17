//! An IOMMU group has one owner: VFIO lets one process open it (Documentation/driver-api/vfio.rst in the kernel), so that
//! of two VMs with devices of one group the second does not start.

use std::collections::BTreeSet;

use super::capacity::runs;
use super::vms::finding;
use super::{Desired, slots_of};
use crate::facts::{HostFacts, PciFunction};
use crate::manifest::Manifest;
use crate::plan::Severity;
use crate::types::PciSlot;

/// Refuses VMs that are to run beside each other and have devices of one group.
pub(super) fn check(m: &Manifest, facts: &HostFacts, desired: &mut Desired) {
    let running = m.vms.iter().filter(|(_, vm)| runs(vm)).map(|(name, vm)| (name, slots_of(m, vm, facts)));
    let running: Vec<_> = running.filter(|(_, slots)| !slots.is_empty()).collect();
    for (at, (name, slots)) in running.iter().enumerate() {
        for (other, theirs) in running.iter().take(at) {
            let Some((group, mine, its)) = in_one_group(slots, theirs, facts) else { continue };
            let message = format!(
                "{} is in IOMMU group {group} with {}, which VM `{other}` has: a group goes to one VM at a time, and both \
                 are to run",
                mine.address.slot, its.address.slot
            );
            let help = "give both devices to one VM, or write `start: manual` for one of the two; in another slot, or with \
                        ACS in the firmware's setup, a card may have a group of its own";
            let place = format!("vms.{name}");
            desired.findings.push(finding(Severity::Error, "one-group", &place, message, help));
        }
    }
}

/// A group that both have devices of, with one of each. A slot that both have is told of elsewhere.
fn in_one_group<'a>(
    mine: &BTreeSet<PciSlot>,
    theirs: &BTreeSet<PciSlot>,
    facts: &'a HostFacts,
) -> Option<(u32, &'a PciFunction, &'a PciFunction)> {
    let of = |slots: &BTreeSet<PciSlot>| {
        let all = facts.pci.values().filter(|f| slots.contains(&f.address.slot) && !f.is_bridge());
        all.collect::<Vec<_>>()
    };
    let (mine, theirs) = (of(mine), of(theirs));
    mine.iter().find_map(|f| {
        let group = f.group?;
        let other = theirs.iter().find(|o| o.group == Some(group) && o.address.slot != f.address.slot)?;
        Some((group, *f, *other))
    })
}
