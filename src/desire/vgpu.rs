//! `gpus.NAME.vgpu`: which function of the card has the vGPUs, on which virtual functions they are, and what makes them.

use super::Desired;
use super::gpus::{argument_of, resolve, scripts, vouched};
use super::virtual_functions::{ForVm, numbered};
use super::vms::finding;
use crate::facts::{HostFacts, PciFunction};
use crate::gpu::architecture::{Architecture, NVIDIA};
use crate::manifest::{DeviceEntry, Loaded};
use crate::plan::{Key, Severity};
use crate::resource::vfio_binding::Card;
use crate::resource::vgpu::{self, Vgpus};
use crate::types::{MdevUuid, PciAddress, PciSlot, ResourceName};

/// What VMs may have of a card.
pub(super) struct Places<'a> {
    /// The card's function that has them.
    physical: &'a PciFunction,
    /// Which function each is on, or will be.
    pub(super) functions: Vec<PciAddress>,
    /// They are mediated devices, by kernel and card.
    mediated: bool,
}

impl Places<'_> {
    /// What they are known by as mediated devices; none where they are none.
    pub(super) fn uuids(&self, name: &ResourceName, facts: &HostFacts) -> Vec<MdevUuid> {
        let of = |number| MdevUuid::of(&facts.hostname, name.as_str(), number);
        (0..self.functions.len()).filter(|_| self.mediated).map(of).collect()
    }
}

/// Where each of them is or will be. `None` where that cannot be told, which is a finding.
pub(super) fn resolved<'a>(entry: &DeviceEntry, facts: &'a HostFacts) -> Option<Places<'a>> {
    let wanted = entry.vgpu.as_ref()?;
    let slot = resolve(entry, true, facts).ok()?;
    possible(slot, wanted.count, facts).ok()
}

/// Wants what makes them. Returns those for VMs: virtual functions, and mediated devices with the functions that they are on.
pub(super) fn desire(
    manifest: &Loaded,
    facts: &HostFacts,
    desired: &mut Desired,
) -> (Vec<ForVm>, Vec<(MdevUuid, ForVm)>) {
    let (mut for_vms, mut mediated) = (Vec::new(), Vec::new());
    let mut parts = Vec::new();
    for (name, entry) in &manifest.manifest.gpus {
        let Some(wanted) = &entry.vgpu else { continue };
        // A card that is not found has its finding.
        let Ok(slot) = resolve(entry, true, facts) else { continue };
        let place = format!("gpus.{name}.vgpu");
        let places = match possible(slot, wanted.count, facts) {
            Ok(found) => found,
            Err((more, message, help)) => {
                let place = format!("{place}{more}");
                desired.findings.push(finding(Severity::Error, "no-vgpu", &place, message, &help));
                continue;
            }
        };
        if manifest.manifest.drivers.as_ref().is_some_and(|d| d.nvidia.is_some()) {
            let message = "`drivers.nvidia` installs the data centre driver, which makes no vGPUs".to_owned();
            let help = "take `drivers.nvidia` out, and install NVIDIA's vGPU driver for KVM hosts yourself: it comes from \
                        NVIDIA's licensing portal only";
            desired.findings.push(finding(Severity::Error, "no-vgpu", &place, message, help));
        }
        if parts.is_empty() {
            parts = scripts("vgpu", vgpu::SCRIPT, &[vgpu::UNIT], desired);
        }
        let needs = parts.iter().cloned().chain([Key::new("module", "")]).chain(argument_of(slot, facts));
        let (physical, uuids) = (places.physical, places.uuids(name, facts));
        let all = Vgpus {
            name: name.clone(),
            physical: physical.address,
            id: physical.id,
            pattern: physical.path_pattern().unwrap_or_else(|| "*".to_owned()),
            card: Card::of(facts, slot),
            vouched: vouched(entry),
            vgpu_type: wanted.vgpu_type.to_string(),
            functions: places.functions.clone(),
            mediated: uuids.clone(),
        };
        desired.want(&format!("gpus.{name}"), needs, all);
        let on = numbered(name, physical, &places.functions, facts);
        match places.mediated {
            true => mediated.extend(uuids.into_iter().zip(on)),
            false => for_vms.extend(on),
        }
    }
    (for_vms, mediated)
}

/// The function and the places of so many vGPUs; else where in the entry it is wrong, why, and what to do.
fn possible(slot: PciSlot, count: u16, facts: &HostFacts) -> Result<Places<'_>, (&'static str, String, String)> {
    let gpu = facts.card(slot).find(|f| f.is_gpu());
    let Some(physical) = gpu.filter(|f| f.id.vendor == NVIDIA) else {
        let help = "of other makers' cards, plain virtual functions are given to VMs: `virtualFunctions` of an entry under \
                    `devices`";
        return Err(("", format!("{slot} is no card of NVIDIA's"), help.to_owned()));
    };
    let Some(sriov) = physical.sriov.as_ref().filter(|s| s.total > 0) else {
        // Those before Ampere have none, and their vGPUs are on the card's own function.
        if Architecture::of(physical.id).is_some_and(|a| a < Architecture::Ampere) {
            let functions = vec![physical.address; usize::from(count)];
            return Ok(Places { physical, functions, mediated: true });
        }
        let message = format!("{} ({}) has no virtual functions (SR-IOV)", physical.address, physical.name);
        let help = "GeForce cards have no vGPUs; of others, turn SR-IOV on in the firmware's settings, and see that the card's \
                    display mode is off (NVIDIA's displaymodeselector)";
        return Err(("", message, help.to_owned()));
    };
    // "For GPUs that support SR-IOV, use of a vendor-specific VFIO framework is introduced in Ubuntu release 24.04" (NVIDIA's
    // Virtual GPU Software User Guide), which has 6.8.
    let release = &facts.kernel.release;
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if count > sriov.total {
        let message = format!("{} can have {} vGPUs at most", physical.address, sriov.total);
        return Err((".count", message, format!("write {} or fewer", sriov.total)));
    }
    let places: Option<Vec<_>> = (0..count).map(|n| sriov.place(physical.address, n)).collect();
    let places = places.ok_or_else(|| {
        let message = format!("where the virtual functions of {} will be is not known", physical.address);
        let help = "its kernel does not tell (sriov_offset and sriov_stride)";
        ("", message, help.to_owned())
    })?;
    Ok(Places { physical, functions: places, mediated: kernel < (6, 8) })
}

/// The slots of cards with vGPUs.
pub(super) fn slots(manifest: &Loaded, facts: &HostFacts) -> Vec<(String, PciSlot)> {
    let all = manifest.manifest.gpus.iter().filter(|(_, e)| e.vgpu.is_some());
    all.filter_map(|(name, e)| Some((format!("gpus.{name}"), resolve(e, true, facts).ok()?))).collect()
}
