//! `gpus.NAME.vgpu`: which function of the card has the vGPUs, on which virtual functions they are, and what makes them.

use super::Desired;
use super::gpus::{argument_of, resolve, scripts, vouched};
use super::virtual_functions::{ForVm, numbered};
use super::vms::finding;
use crate::facts::{HostFacts, PciFunction};
use crate::gpu::architecture::NVIDIA;
use crate::manifest::{DeviceEntry, Loaded};
use crate::plan::{Key, Severity};
use crate::resource::vfio_binding::Card;
use crate::resource::vgpu::{self, Vgpus};
use crate::types::{PciAddress, PciSlot};

/// The card's function that has them, and where each of them is or will be. `None` where that cannot be told, which is a
/// finding.
pub(super) fn resolved<'a>(entry: &DeviceEntry, facts: &'a HostFacts) -> Option<(&'a PciFunction, Vec<PciAddress>)> {
    let wanted = entry.vgpu.as_ref()?;
    let slot = resolve(entry, true, facts).ok()?;
    possible(slot, wanted.count, facts).ok()
}

/// Wants what makes them. Returns those for VMs.
pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired) -> Vec<ForVm> {
    let mut for_vms = Vec::new();
    let mut parts = Vec::new();
    for (name, entry) in &manifest.manifest.gpus {
        let Some(wanted) = &entry.vgpu else { continue };
        // A card that is not found has its finding.
        let Ok(slot) = resolve(entry, true, facts) else { continue };
        let place = format!("gpus.{name}.vgpu");
        let (physical, addresses) = match possible(slot, wanted.count, facts) {
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
        let all = Vgpus {
            name: name.clone(),
            physical: physical.address,
            id: physical.id,
            pattern: physical.path_pattern().unwrap_or_else(|| "*".to_owned()),
            card: Card::of(facts, slot),
            vouched: vouched(entry),
            vgpu_type: wanted.vgpu_type.to_string(),
            functions: addresses.clone(),
        };
        desired.want(&format!("gpus.{name}"), needs, all);
        for_vms.extend(numbered(name, physical, &addresses, facts));
    }
    for_vms
}

/// The function and the places of so many vGPUs; else where in the entry it is wrong, why, and what to do.
fn possible(
    slot: PciSlot,
    count: u16,
    facts: &HostFacts,
) -> Result<(&PciFunction, Vec<PciAddress>), (&'static str, String, String)> {
    let gpu = facts.card(slot).find(|f| f.is_gpu());
    let Some(physical) = gpu.filter(|f| f.id.vendor == NVIDIA) else {
        let help = "of other makers' cards, plain virtual functions are given to VMs: `virtualFunctions` of an entry under \
                    `devices`";
        return Err(("", format!("{slot} is no card of NVIDIA's"), help.to_owned()));
    };
    let release = &facts.kernel.release;
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let kernel = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if kernel < (6, 8) {
        let message = format!(
            "the kernel is {release}, where NVIDIA's driver offers vGPUs as mediated devices, which gpuvm does not make"
        );
        return Err(("", message, "run kernel 6.8 or later, or make them by mdevctl".to_owned()));
    }
    let Some(sriov) = physical.sriov.as_ref().filter(|s| s.total > 0) else {
        let message = format!("{} ({}) has no virtual functions (SR-IOV)", physical.address, physical.name);
        let help = "cards before Ampere have mediated devices in their place, which gpuvm does not make, and GeForce cards \
                    have no vGPUs; of others, turn SR-IOV on in the firmware's settings, and see that the card's display mode \
                    is off (NVIDIA's displaymodeselector)";
        return Err(("", message, help.to_owned()));
    };
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
    Ok((physical, places))
}

/// The slots of cards with vGPUs.
pub(super) fn slots(manifest: &Loaded, facts: &HostFacts) -> Vec<(String, PciSlot)> {
    let all = manifest.manifest.gpus.iter().filter(|(_, e)| e.vgpu.is_some());
    all.filter_map(|(name, e)| Some((format!("gpus.{name}"), resolve(e, true, facts).ok()?))).collect()
}
