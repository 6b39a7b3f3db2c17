//! `gpus` and `devices`: which device is meant, what it has to be, and what `use: vfio` implies.

use std::collections::{BTreeMap, BTreeSet};

use super::vgpu;
use super::virtual_functions;
use super::{Desired, Shared, mig};
use crate::facts::{BootLoader, HostFacts, INTEL_IOMMU_ON, InitramfsTool, PciFunction, turns_iommu_off};
use crate::gpu::identity::{self, Criterion};
use crate::manifest::{DeviceEntry, DeviceMatch, DeviceUse, Loaded};
use crate::plan::{FileWrite, Finding, Key, Refresh, Severity};
use crate::resource::kernel_arg::{self, KernelArgs};
use crate::resource::shared_gpu::{self, SharedGpu};
use crate::resource::start_hook::{self, Meant};
use crate::resource::vfio_binding::Vouched;
use crate::resource::{Resource, file, vfio_binding};
use crate::types::PciSlot;

pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired, shared: &mut Shared) {
    let gpus = manifest.manifest.gpus.iter().map(|(n, d)| (format!("gpus.{n}"), n, d, true));
    let devices = manifest.manifest.devices.iter().map(|(n, d)| (format!("devices.{n}"), n, d, false));
    let mut found: BTreeMap<PciSlot, Vec<(String, &DeviceEntry)>> = BTreeMap::new();
    let (mut kept, mut of_both) = (Vec::new(), Vec::new());
    let mut existing: BTreeSet<PciSlot> = BTreeSet::new();
    let mut meant = Vec::new();
    for (place, name, entry, gpu) in gpus.chain(devices) {
        match resolve(entry, gpu, facts) {
            Ok(slot) => {
                let others = found.entry(slot).or_default();
                if let Some((other, _)) = others.iter().find(|(_, other)| !entry.is_another_port(other)) {
                    desired.findings.push(error(
                        "same-device",
                        &place,
                        format!("it is {slot}, and so is {other}"),
                        "name each device once",
                    ));
                }
                others.push((place.clone(), entry));
                if entry.usage != DeviceUse::Host {
                    let serial = entry.matches.serial.clone().filter(|s| !s.contains(char::is_whitespace));
                    meant.push(Meant { name: name.to_string(), slot, serial });
                }
                match entry.usage {
                    DeviceUse::Vfio if entry.existing => {
                        existing.insert(slot);
                        desired.findings.extend(not_bound(&place, slot, facts));
                    }
                    DeviceUse::Vfio => kept.push((place, name.to_string(), slot, vouched(entry))),
                    DeviceUse::Shared => of_both.push((place, name.to_string(), slot, entry)),
                    DeviceUse::Host => _ = desired.for_host.insert(slot, place.clone()),
                }
            }
            Err((message, help)) => desired.findings.push(error("no-device", &place, message, &help)),
        }
    }
    desired.for_vms.extend(meant.iter().map(|m| m.slot));
    let mut virtuals = virtual_functions::desire(manifest, facts, desired);
    let (vgpus, mediated) = vgpu::desire(manifest, facts, desired);
    virtuals.extend(vgpus);
    mig::desire(manifest, facts, desired);
    // What others bind is theirs to look after, as long as nothing here is gpuvm's.
    if kept.is_empty() && of_both.is_empty() && virtuals.is_empty() && mediated.is_empty() {
        return;
    }
    if manifest.manifest.vms.values().any(|vm| !(vm.absent || vm.gpus.is_empty() && vm.devices.is_empty())) {
        let text = start_hook::devices(&meant, &virtuals, &mediated, facts);
        proof_at_start(text, desired);
    }
    let slots: BTreeSet<PciSlot> = kept.iter().map(|(_, _, slot, _)| *slot).chain(existing).collect();
    let given = kept.iter().map(|(place, _, slot, _)| (place, *slot));
    let mut with_virtuals = virtual_functions::slots(manifest, facts);
    let from_virtuals = if with_virtuals.is_empty() { "vgpu" } else { "virtualFunctions" };
    with_virtuals.extend(vgpu::slots(manifest, facts));
    let given = given.chain(of_both.iter().map(|(place, _, slot, _)| (place, *slot)));
    let given: Vec<_> = given.chain(with_virtuals.iter().map(|(place, slot)| (place, *slot))).collect();
    let from = match (kept.is_empty(), of_both.is_empty()) {
        (false, _) => "use: vfio",
        (true, false) => "use: shared",
        (true, true) => from_virtuals,
    };
    shared.kernel_args.extend(iommu_on(&given, facts).map(|argument| (argument, from.to_owned())));
    desired.findings.extend(given.first().and_then(|(place, _)| off_at_boot(place, facts)));
    for module in ["vfio", "vfio_iommu_type1", "vfio_pci"] {
        shared.modules.entry(module.to_owned()).or_insert_with(|| from.to_owned());
    }
    if !of_both.is_empty() {
        handed_over(of_both, &slots, facts, desired);
    }
    // Nothing is bound early.
    if kept.is_empty() {
        return;
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
    // They act on nothing but what is said, so that nothing waits for them.
    let after_updates = match facts.boot.initramfs {
        InitramfsTool::InitramfsTools => vec![vfio_binding::KERNEL_HOOK, vfio_binding::INITRAMFS_UPDATE_HOOK],
        InitramfsTool::Dracut => vec![vfio_binding::KERNEL_HOOK],
        InitramfsTool::None => Vec::new(),
    };
    for (path, text) in after_updates {
        let write = FileWrite::root(path, text, 0o755);
        desired.want("use: vfio", [], file::File { write, take_over: false, refreshes: BTreeSet::new() });
    }
    for (place, name, slot, vouched) in kept {
        let companions = slots.iter().copied().filter(|s| *s != slot).collect();
        let card = vfio_binding::Card::of(facts, slot);
        let needs = hooks.iter().cloned().chain(argument_of(slot, facts));
        desired.want(
            &place,
            needs,
            vfio_binding::VfioBinding { name, slot, companions, card, vouched, still_for_vms: false },
        );
    }
}

/// The kernel argument that the IOMMU needs for these slots. What is on because of it is wanted on at the next boot too:
/// by ours, as long as no other of GRUB's files sets it.
fn iommu_on(given: &[(&String, PciSlot)], facts: &HostFacts) -> Option<String> {
    let asked = || {
        let by_others = kernel_arg::set_by_others(facts).any(|a| a == INTEL_IOMMU_ON);
        let grub = matches!(facts.boot.loader, BootLoader::Grub { cmdline_default: Some(_), .. });
        let running = facts.kernel.cmdline.iter().any(|a| a == INTEL_IOMMU_ON);
        (running && grub && !by_others).then(|| INTEL_IOMMU_ON.to_owned())
    };
    given.iter().find_map(|(_, slot)| facts.grouped_by(*slot)).map(str::to_owned).or_else(asked)
}

/// What a slot needs that is in no IOMMU group for want of an argument.
pub(super) fn argument_of(slot: PciSlot, facts: &HostFacts) -> Option<Key> {
    facts.grouped_by(slot).map(|_| Key::new(KernelArgs::KIND, ""))
}

/// What of others' turns the IOMMU off at the next boot, while it is on now or is to be turned on.
fn off_at_boot(place: &str, facts: &HostFacts) -> Option<Finding> {
    let off = kernel_arg::set_by_others(facts).find(|a| turns_iommu_off(a))?;
    if facts.kernel.cmdline.contains(off) {
        return None; // it is off for that, which is said of each slot
    }
    let message = format!(
        "GRUB's files have `{off}`: without the IOMMU, which the next boot turns off, no device can be given to a VM"
    );
    Some(error(
        "iommu-off",
        place,
        message,
        &format!("take `{off}` out of /etc/default/grub and /etc/default/grub.d, and plan again"),
    ))
}

/// Wants a script and the units that run it.
pub(super) fn scripts(
    place: &str,
    (path, text): (&str, &str),
    units: &[(&str, &str)],
    desired: &mut Desired,
) -> Vec<Key> {
    let script = FileWrite::root(path, text, 0o755);
    let script = file::File { write: script, take_over: false, refreshes: BTreeSet::new() };
    let mut parts = vec![desired.want(place, [], script)];
    for (path, text) in units {
        let write = FileWrite::root(*path, *text, 0o644);
        let unit = file::File { write, take_over: false, refreshes: BTreeSet::from([Refresh::DaemonReload]) };
        parts.push(desired.want(place, [], unit));
    }
    parts
}

/// The GPUs that host and VMs share, with what hands them over.
fn handed_over(
    of_both: Vec<(String, String, PciSlot, &DeviceEntry)>,
    given: &BTreeSet<PciSlot>,
    facts: &HostFacts,
    desired: &mut Desired,
) {
    let parts = scripts("use: shared", shared_gpu::SCRIPT, &shared_gpu::UNITS, desired);
    for (place, name, slot, entry) in of_both {
        let companions = given.iter().copied().filter(|s| *s != slot).collect();
        let card = vfio_binding::Card::of(facts, slot);
        let (vouched, release) = (vouched(entry), entry.release.clone());
        let modules = Key::new("module", "");
        let needs = parts.iter().cloned().chain([modules]).chain(argument_of(slot, facts));
        desired.want(&place, needs, SharedGpu { name, slot, companions, card, vouched, release });
    }
}

/// The hook that looks again at each start of a VM with devices, and the list that it looks at.
fn proof_at_start(text: String, desired: &mut Desired) {
    let list = FileWrite::root(start_hook::DEVICES, text, 0o644);
    let list = file::File { write: list, take_over: false, refreshes: BTreeSet::new() };
    let list = desired.want("vms", [], list);
    let hook = FileWrite::root(start_hook::HOOK.0, start_hook::HOOK.1, 0o755);
    let hook = file::File { write: hook, take_over: false, refreshes: BTreeSet::from([Refresh::LibvirtHooks]) };
    desired.want("vms", [Key::new("package", ""), list], hook);
}

/// What a VM with devices waits for: the proof is there before its first start.
pub(super) fn proof() -> Key {
    Key::new(file::File::KIND, start_hook::HOOK.0)
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

/// By what the manifest names a device. The loader has seen to it that one field is given.
fn criterion(wanted: &DeviceMatch) -> Option<Criterion> {
    let address = wanted.address.map(|a| Criterion::Address(a.0));
    let path = || wanted.slot.clone().map(Criterion::Path);
    let model = || wanted.model.clone().map(Criterion::Model);
    let id = || wanted.id.map(Criterion::Id);
    let serial = || wanted.serial.clone().map(Criterion::Serial);
    address
        .or_else(path)
        .or_else(model)
        .or_else(id)
        .or_else(serial)
        .or_else(|| wanted.uuid.clone().map(Criterion::Uuid))
}

/// The one slot that a match fits, guarded by `expect`; else why not, and what to write.
pub fn resolve(entry: &DeviceEntry, gpu: bool, facts: &HostFacts) -> Result<PciSlot, (String, String)> {
    let what = if gpu { "GPU" } else { "device" };
    let Some(criterion) = criterion(&entry.matches) else {
        return Err((format!("no {what} is named"), "give `match` one field".to_owned()));
    };
    let first = identity::find(&criterion, gpu, facts).map_err(|not_one| match not_one.fitting {
        0 => {
            let asleep = match criterion {
                Criterion::Serial(_) => " (serial numbers are read of devices that are awake only)",
                Criterion::Uuid(_) => " (a UUID is known only while NVIDIA's driver holds the card)",
                _ => "",
            };
            (
                format!("no {what} fits the match{asleep}"),
                match not_one.lines().as_str() {
                    "none" => "this host has none: see what it has with `gpuvm facts`".to_owned(),
                    some => format!("there are:\n      {some}"),
                },
            )
        }
        n => (format!("{n} {what}s fit the match"), format!("write which one:\n      {}", not_one.lines())),
    })?;
    let slot = first.address.slot;
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

/// What the manifest itself vouches for: a card that differs from the remembered one in nothing but this is meant.
pub(super) fn vouched(entry: &DeviceEntry) -> Vouched {
    let expect = entry.expect.as_ref();
    Vouched {
        place: entry.matches.address.is_none(),
        model: entry.matches.id.is_some() || entry.matches.model.is_some() || expect.is_some_and(|e| e.id.is_some()),
        card: entry.matches.serial.is_some() || entry.matches.uuid.is_some(),
    }
}
