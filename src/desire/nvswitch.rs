//! Which GPUs of a board with NVSwitches a VM has: a split that NVIDIA does not allow is refused, and one of which that is
//! not known is said.

use std::collections::{BTreeMap, BTreeSet};

use super::vms::finding;
use super::{Desired, slot_of};
use crate::facts::HostFacts;
use crate::gpu::nvswitch::{Board, Split};
use crate::manifest::{Manifest, VmEntry};
use crate::plan::Severity;
use crate::types::PciSlot;

pub(super) fn check(m: &Manifest, facts: &HostFacts, desired: &mut Desired) {
    let Some(board) = Board::of(facts) else { return };
    let modules = modules(m, facts);
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let slots = slots_of(m, vm, facts);
        if board.gpus.is_disjoint(&slots) {
            continue;
        }
        let (severity, why, help) = match board.split(&slots, &modules, facts) {
            // What is not seen of a partition is the verdict's to say, and nothing that the manifest could mend.
            Split::Allowed(_) | Split::Partition { .. } => continue,
            Split::Unknown { why, help } => (Severity::Warning, why, help),
            Split::Wrong { why, help } => (Severity::Error, why, help),
        };
        let place = format!("vms.{name}.gpus");
        desired.findings.push(finding(severity, "nvswitch-partition", &place, why, &help));
    }
}

/// The module ids that the manifest gives.
pub fn modules(m: &Manifest, facts: &HostFacts) -> BTreeMap<PciSlot, u8> {
    m.gpus.values().filter_map(|e| Some((slot_of(e, true, facts)?, e.module_id?))).collect()
}

/// The slots that a VM has as a whole. One that is not found has its finding.
pub fn slots_of(m: &Manifest, vm: &VmEntry, facts: &HostFacts) -> BTreeSet<PciSlot> {
    let gpus = vm.gpus.iter().filter(|g| g.function.is_none());
    let gpus = gpus.filter_map(|g| slot_of(m.gpus.get(&g.name)?, true, facts));
    let devices = vm.devices.iter().filter(|d| d.function.is_none());
    gpus.chain(devices.filter_map(|d| slot_of(m.devices.get(&d.name)?, false, facts))).collect()
}
