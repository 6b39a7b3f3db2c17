//! `gpus` and `devices`: which device is meant, what it has to be, and what `use: vfio` implies.

use std::collections::{BTreeMap, BTreeSet};

use super::{Desired, Shared};
use crate::facts::{HostFacts, InitramfsTool, PciFunction};
use crate::manifest::{DeviceEntry, DeviceUse, Loaded};
use crate::plan::{FileWrite, Finding, Refresh, Severity};
use crate::resource::{file, vfio_binding};
use crate::types::PciSlot;

pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired, shared: &mut Shared) {
    let gpus = manifest.manifest.gpus.iter().map(|(n, d)| (format!("gpus.{n}"), n, d, true));
    let devices = manifest.manifest.devices.iter().map(|(n, d)| (format!("devices.{n}"), n, d, false));
    let mut found: BTreeMap<PciSlot, String> = BTreeMap::new();
    let mut kept = Vec::new();
    let mut existing: BTreeSet<PciSlot> = BTreeSet::new();
    for (place, name, entry, gpu) in gpus.chain(devices) {
        match resolve(entry, gpu, facts) {
            Ok(slot) => {
                if let Some(other) = found.insert(slot, place.clone()) {
                    desired.findings.push(error(
                        "same-device",
                        &place,
                        format!("it is {slot}, and so is {other}"),
                        "name each device once",
                    ));
                }
                match entry.usage {
                    DeviceUse::Vfio if entry.existing => {
                        existing.insert(slot);
                        desired.findings.extend(not_bound(&place, slot, facts));
                    }
                    DeviceUse::Vfio => kept.push((place, name.to_string(), slot)),
                    DeviceUse::Host => {}
                }
            }
            Err((message, help)) => desired.findings.push(error("no-device", &place, message, &help)),
        }
    }
    if kept.is_empty() {
        return;
    }
    let slots: BTreeSet<PciSlot> = kept.iter().map(|(_, _, slot)| *slot).chain(existing).collect();
    for module in ["vfio", "vfio_iommu_type1", "vfio_pci"] {
        shared.modules.entry(module.to_owned()).or_insert_with(|| "use: vfio".to_owned());
    }
    let of_initramfs: &[(&str, &str)] = match facts.boot.initramfs {
        InitramfsTool::InitramfsTools => &[(vfio_binding::INITRAMFS_HOOK, vfio_binding::INITRAMFS_HOOK_TEXT)],
        InitramfsTool::Dracut => &vfio_binding::DRACUT_MODULE,
        InitramfsTool::None => &[],
    };
    let mut hooks = Vec::new();
    for (path, text) in of_initramfs {
        let write = FileWrite::root(*path, *text, 0o755);
        let file = file::File { write, take_over: false, refreshes: BTreeSet::from([Refresh::Initramfs]) };
        hooks.push(desired.want("use: vfio", [], file));
    }
    for (place, name, slot) in kept {
        let companions = slots.iter().copied().filter(|s| *s != slot).collect();
        desired.want(&place, hooks.clone(), vfio_binding::VfioBinding { name, slot, companions });
    }
}

/// What others are said to keep for VMs, and do not.
fn not_bound(place: &str, slot: PciSlot, facts: &HostFacts) -> Option<Finding> {
    let free = |f: &&PciFunction| f.driver.as_deref() != Some("vfio-pci") && !f.is_bridge();
    let not: Vec<String> = facts
        .slot(slot)
        .filter(free)
        .map(|f| format!("{} is on {}", f.address, f.driver.as_deref().unwrap_or("no driver")))
        .collect();
    let help = "bind it by what you have, or take `existing` out: then gpuvm binds it, by its address";
    (!not.is_empty()).then(|| error("not-bound", place, format!("`existing: true`, and {}", not.join(", ")), help))
}

fn error(code: &str, place: &str, message: String, help: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        code: code.to_owned(),
        place: place.to_owned(),
        message,
        help: help.to_owned(),
    }
}

/// The slot that an entry of `gpus` or `devices` means, where there is exactly one.
pub fn slot_of(entry: &DeviceEntry, gpu: bool, facts: &HostFacts) -> Option<PciSlot> {
    resolve(entry, gpu, facts).ok()
}

/// The one slot that a match fits, guarded by `expect`; else why not, and what to write.
pub(super) fn resolve(entry: &DeviceEntry, gpu: bool, facts: &HostFacts) -> Result<PciSlot, (String, String)> {
    let wanted = &entry.matches;
    let fits = |f: &&PciFunction| {
        wanted.address.is_none_or(|a| a.0 == f.address.slot)
            && wanted.slot.as_ref().is_none_or(|s| *s == f.path)
            && wanted.id.is_none_or(|id| id == f.id)
            && !f.is_bridge()
            && (!gpu || f.is_gpu())
    };
    let candidates = || {
        let all = facts.pci.values().filter(|f| if gpu { f.is_gpu() && !f.is_management() } else { !f.is_bridge() });
        all.map(|f| format!("{} {} [{}] {}", f.address.slot, f.name, f.id, f.path)).collect::<Vec<_>>().join("\n      ")
    };
    let fitting: BTreeMap<PciSlot, &PciFunction> =
        facts.pci.values().rev().filter(fits).map(|f| (f.address.slot, f)).collect();
    let (slot, first) = match (fitting.len(), fitting.iter().next()) {
        (1, Some((slot, first))) => (*slot, *first),
        (0, _) => {
            return Err((
                format!("no {} fits the match", if gpu { "GPU" } else { "device" }),
                format!("there are:\n      {}", candidates()),
            ));
        }
        (n, _) => {
            return Err((
                format!("{n} devices fit the match"),
                format!("match by address or slot; there are:\n      {}", candidates()),
            ));
        }
    };
    if let Some(expect) = &entry.expect {
        if let Some(id) = expect.id.filter(|id| *id != first.id) {
            return Err((
                format!("{slot} is {} [{}], and `expect` says {id}", first.name, first.id),
                "another card is in this slot: correct `match` or `expect`".to_owned(),
            ));
        }
        if let Some(id) = expect.subsystem.filter(|id| Some(*id) != first.subsystem) {
            let is = first.subsystem.map_or("none".to_owned(), |s| s.to_string());
            return Err((
                format!("{slot} has the subsystem {is}, and `expect` says {id}"),
                "another card is in this slot: correct `match` or `expect`".to_owned(),
            ));
        }
    }
    Ok(slot)
}
