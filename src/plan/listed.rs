//! VMs that stay as they are, with a device that the plan takes from them: such a VM would not start any more, and the plan
//! is refused. One that would only start without the proof that its devices are the ones that were meant is named.

use std::collections::{BTreeMap, BTreeSet};

use super::build::GONE;
use super::{Diff, Entry, Finding, Key, Past, Severity};
use crate::desire::Desired;
use crate::host::{Answer, Domain, Probe};
use crate::resource::file::File;
use crate::resource::libvirt_domain::{LibvirtDomain, is_marked, project};
use crate::resource::{Resource, Wanted, start_hook};
use crate::types::PciSlot;

/// Each VM whose definition lists what leaves, unless the same plan changes that.
pub(super) fn listed(entries: &[Entry], desired: &Desired, past: &Past, probe: &dyn Probe) -> Vec<Finding> {
    let goes = |e: &&Entry| e.from == GONE && !matches!(e.diff, Diff::InSync { .. });
    let gone: Vec<&Key> = entries.iter().filter(goes).map(|e| &e.key).collect();
    let slot = |key: &&Key| match past.owned.get(*key) {
        Some(Wanted::VfioBinding(binding)) => Some((binding.slot, key.to_string())),
        Some(Wanted::SharedGpu(gpu)) => Some((gpu.slot, key.to_string())),
        _ => None,
    };
    let slots: BTreeMap<PciSlot, String> =
        gone.iter().copied().filter_map(|key| slot(&key)).filter(|(slot, _)| !desired.for_vms.contains(slot)).collect();
    let proof = gone.iter().any(|k| **k == Key::new(File::KIND, start_hook::DEVICES));
    if slots.is_empty() && !proof {
        return Vec::new();
    }
    // Where libvirt does not tell, there is nothing to name; what is bound is looked at by the binding itself.
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return Vec::new() };
    known.domains.iter().filter_map(|domain| one(domain, &slots, proof, desired, past)).collect()
}

fn one(
    domain: &Domain,
    slots: &BTreeMap<PciSlot, String>,
    proof: bool,
    desired: &Desired,
    past: &Past,
) -> Option<Finding> {
    let key = Key::new(LibvirtDomain::KIND, domain.name.clone());
    let of = |wanted: Option<&Wanted>| match wanted {
        Some(Wanted::LibvirtDomain(vm)) => Some(vm.clone()),
        _ => None,
    };
    let wanted = of(desired.nodes.get(&key).map(|n| &n.wanted));
    if wanted.as_ref().is_some_and(|vm| vm.absent) {
        return None;
    }
    let has = |vm: Option<&LibvirtDomain>, slot: PciSlot| vm.is_some_and(|vm| vm.slots.iter().any(|s| s.slot == slot));
    let last = of(past.owned.get(&key));
    // What an edit of ours takes out is what the manifest put in.
    let taken_out = |slot: &PciSlot| wanted.is_some() && !has(wanted.as_ref(), *slot) && has(last.as_ref(), *slot);
    let lists: BTreeSet<PciSlot> = match project(&domain.inactive_xml) {
        Ok(is) => is.functions.iter().map(|f| f.slot).filter(|slot| !taken_out(slot)).collect(),
        Err(why) => {
            let message =
                format!("whether VM `{}` has a device that leaves the manifest is not known: {why}", domain.name);
            return Some(finding(
                message,
                "look at its definition, and take the device back into the manifest until then",
            ));
        }
    };
    let name = &domain.name;
    if let Some((slot, key)) = slots.iter().find(|(slot, _)| lists.contains(slot)) {
        return Some(finding(
            format!(
                "VM `{name}` stays and has {slot}, which goes back to the host with {key}: it would not start any more"
            ),
            &format!(
                "take it out of the VM first: gpuvm gpu detach {name} {slot}; or let the VM go too, by `absent: true` in its entry under `vms` (its disks stay)"
            ),
        ));
    }
    // The card stays with VMs, and so does this one; both files go at once, so that it starts without that proof.
    let first = lists.first()?;
    (proof && wanted.is_none() && is_marked(&domain.inactive_xml)).then(|| {
        let message = format!("VM `{name}` stays and has {first}, and from now on nobody looks at that when it starts");
        let help =
            format!("{} goes, as no VM of the manifest has devices: keep `{name}` under `vms`", start_hook::DEVICES);
        Finding { severity: Severity::Warning, ..finding(message, &help) }
    })
}

fn finding(message: String, help: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        code: "vm-has-device".to_owned(),
        place: String::new(),
        message,
        help: help.to_owned(),
    }
}
