//! VMs that stay as they are, with a device that the plan takes from them: such a VM would not start any more, and the plan
//! is refused. One that would only start without the proof that its devices are the ones that were meant is named.

use std::collections::{BTreeMap, BTreeSet};

use super::build::GONE;
use super::{Entry, Finding, Key, Past, Severity};
use crate::desire::Desired;
use crate::host::{Answer, Domain, Probe};
use crate::resource::file::File;
use crate::resource::libvirt_domain::{Extra, LibvirtDomain, is_marked, project};
use crate::resource::vgpu::Vgpu;
use crate::resource::{Resource, Wanted, start_hook};
use crate::types::{MdevUuid, PciAddress, PciSlot};

/// Each VM whose definition lists what leaves, unless the same plan changes that.
pub(super) fn listed(entries: &[Entry], desired: &Desired, past: &Past, probe: &dyn Probe) -> Vec<Finding> {
    let goes = |e: &&Entry| e.from == GONE && !e.diff.settled();
    let gone: Vec<&Key> = entries.iter().filter(goes).map(|e| &e.key).collect();
    let slot = |key: &&Key| match past.owned.get(*key) {
        Some(Wanted::VfioBinding(binding)) => Some((binding.slot, key.to_string())),
        Some(Wanted::SharedGpu(gpu)) => Some((gpu.slot, key.to_string())),
        _ => None,
    };
    let mut virtuals: BTreeMap<Vgpu, String> = BTreeMap::new();
    for (key, wanted) in &past.owned {
        let Wanted::VirtualFunctions(was) = wanted else { continue };
        // Fewer of them, or the host's, are as if the others were gone.
        let stay: Vec<PciAddress> = match desired.nodes.get(key).map(|n| &n.wanted) {
            Some(Wanted::VirtualFunctions(is)) if is.for_vms => is.functions.iter().map(|(f, _)| *f).collect(),
            Some(_) => Vec::new(),
            None if gone.contains(&key) => Vec::new(),
            None => continue,
        };
        let goes = was.functions.iter().filter(|(f, _)| was.for_vms && !stay.contains(f));
        virtuals.extend(goes.map(|(address, _)| (Vgpu::On(*address), key.to_string())));
    }
    for (key, wanted) in &past.owned {
        let Wanted::Vgpus(was) = wanted else { continue };
        let stay = match desired.nodes.get(key).map(|n| &n.wanted) {
            Some(Wanted::Vgpus(is)) => is.all(),
            Some(_) => Vec::new(),
            None if gone.contains(&key) => Vec::new(),
            None => continue,
        };
        let goes = was.all().into_iter().map(|(vgpu, _)| vgpu).filter(|f| stay.iter().all(|(vgpu, _)| vgpu != f));
        virtuals.extend(goes.map(|vgpu| (vgpu, key.to_string())));
    }
    let slots: BTreeMap<PciSlot, String> =
        gone.iter().copied().filter_map(|key| slot(&key)).filter(|(slot, _)| !desired.for_vms.contains(slot)).collect();
    let proof = gone.iter().any(|k| **k == Key::new(File::KIND, start_hook::DEVICES));
    if slots.is_empty() && virtuals.is_empty() && !proof {
        return Vec::new();
    }
    // Where libvirt does not tell, there is nothing to name; what is bound is looked at by the binding itself.
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return Vec::new() };
    known.domains.iter().filter_map(|domain| one(domain, (&slots, &virtuals), proof, desired, past)).collect()
}

fn one(
    domain: &Domain,
    (slots, virtuals): (&BTreeMap<PciSlot, String>, &BTreeMap<Vgpu, String>),
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
    let has = |vm: Option<&LibvirtDomain>, f: PciAddress| vm.is_some_and(|vm| vm.slots.iter().any(|s| s.has(f)));
    let last = of(past.owned.get(&key));
    // What an edit of ours takes out is what the manifest put in.
    let taken_out = |f: &PciAddress| wanted.is_some() && !has(wanted.as_ref(), *f) && has(last.as_ref(), *f);
    // The same of a mediated device.
    let of_ours =
        |vm: Option<&LibvirtDomain>, m: MdevUuid| vm.is_some_and(|vm| vm.extras.contains(&Extra::Mediated(m)));
    let taken = |m: MdevUuid| wanted.is_some() && !of_ours(wanted.as_ref(), m) && of_ours(last.as_ref(), m);
    let (stay, mediated): (BTreeSet<PciAddress>, BTreeSet<MdevUuid>) = match project(&domain.inactive_xml) {
        Ok(is) => {
            let mediated = is.mediated().filter(|m| !taken(*m)).collect();
            (is.functions.into_iter().filter(|f| !taken_out(f)).collect(), mediated)
        }
        Err(why) => {
            let message =
                format!("whether VM `{}` has a device that leaves the manifest is not known: {why}", domain.name);
            return Some(finding(
                message,
                "look at its definition, and take the device back into the manifest until then",
            ));
        }
    };
    let lists: BTreeSet<PciSlot> = stay.iter().map(|f| f.slot).collect();
    let name = &domain.name;
    let has = |vgpu: &Vgpu| match vgpu {
        Vgpu::On(function) => stay.contains(function),
        Vgpu::Mediated(uuid) => mediated.contains(uuid),
    };
    if let Some((function, key)) = virtuals.iter().find(|(vgpu, _)| has(vgpu)) {
        return Some(finding(
            format!(
                "VM `{name}` stays and has {function}, which {key} will not have for VMs: it would not start any more"
            ),
            "take it out of the VM first (`gpus` or `devices` of its entry under `vms`); or let the VM go too, by `absent: true` there",
        ));
    }
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
