//! `devices.NAME.virtualFunctions`: which function of the card has them, where they are, and what makes them.

use std::collections::BTreeSet;

use super::Desired;
use super::gpus::{argument_of, resolve, scripts, vouched};
use super::vms::{finding, stable_bytes};
use crate::facts::{HostFacts, PciFunction};
use crate::manifest::{DeviceEntry, Loaded, VirtualFunctionsEntry, VirtualUse};
use crate::plan::{Key, Severity};
use crate::resource::vfio_binding::Card;
use crate::resource::{virtual_functions, virtual_functions::VirtualFunctions};
use crate::types::{MacAddress, PciAddress, PciId, PciSlot, ResourceName};

/// The physical function that is meant, and where each of its virtual ones is or will be. `None` where that cannot be
/// told, which is a finding.
pub(super) fn resolved<'a>(entry: &DeviceEntry, facts: &'a HostFacts) -> Option<(&'a PciFunction, Vec<PciAddress>)> {
    let wanted = entry.virtual_functions.as_ref()?;
    let slot = resolve(entry, false, facts).ok()?;
    let physical = facts.pci.get(&slot.function(wanted.function))?;
    let sriov = physical.sriov.as_ref()?;
    let all: Option<Vec<_>> = (0..wanted.count).map(|n| sriov.place(physical.address, n)).collect();
    Some((physical, all?))
}

/// A virtual function for VMs, with its name in the manifest; as the card says that it will be, where it is not there yet.
pub(super) type ForVm = (String, PciFunction);

/// Wants what makes them. Returns those for VMs.
pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired) -> Vec<ForVm> {
    let mut for_vms = Vec::new();
    let mut parts = Vec::new();
    for (name, entry) in &manifest.manifest.devices {
        let Some(wanted) = &entry.virtual_functions else { continue };
        // A device that is not found has its finding.
        let Ok(slot) = resolve(entry, false, facts) else { continue };
        let place = format!("devices.{name}.virtualFunctions");
        if let Err((more, message, help)) = possible(slot, wanted, facts) {
            let place = format!("{place}{more}");
            desired.findings.push(finding(Severity::Error, "no-virtual-functions", &place, message, &help));
            continue;
        }
        let Some((physical, addresses)) = resolved(entry, facts) else { continue };
        if parts.is_empty() {
            parts = scripts("virtualFunctions", virtual_functions::SCRIPT, &[virtual_functions::UNIT], desired);
        }
        let to_vms = wanted.usage == VirtualUse::Vfio;
        let needs = parts.iter().cloned().chain(to_vms.then(|| Key::new("module", "")));
        let needs = needs.chain(argument_of(slot, facts).filter(|_| to_vms));
        let mac = |n: usize| physical.is_network().then(|| mac_of(wanted, &facts.hostname, name, n));
        let all = VirtualFunctions {
            name: name.clone(),
            physical: physical.address,
            id: physical.id,
            pattern: physical.path_pattern().unwrap_or_else(|| "*".to_owned()),
            card: Card::of(facts, slot),
            vouched: vouched(entry),
            for_vms: to_vms,
            functions: addresses.iter().enumerate().map(|(n, address)| (*address, mac(n))).collect(),
        };
        desired.want(&format!("devices.{name}"), needs, all);
        if to_vms {
            for_vms.extend(numbered(name, physical, &addresses, facts));
        }
    }
    for_vms
}

/// Why a card cannot have so many, with where in the entry that is said and what to do.
fn possible(
    slot: PciSlot,
    wanted: &VirtualFunctionsEntry,
    facts: &HostFacts,
) -> Result<(), (&'static str, String, String)> {
    let others = || facts.card(slot).filter(|f| f.sriov.is_some()).map(|f| f.address.function.to_string());
    let Some(physical) = facts.pci.get(&slot.function(wanted.function)) else {
        let is: Vec<String> = facts.card(slot).map(|f| f.address.function.to_string()).collect();
        let message = format!("{slot} has no function {}", wanted.function);
        return Err((".function", message, format!("it has {}", is.join(", "))));
    };
    let Some(sriov) = physical.sriov.as_ref().filter(|s| s.total > 0) else {
        let others: Vec<String> = others().collect();
        let help = match others.is_empty() {
            true => "the card cannot, or its own firmware has it off (NVIDIA's network cards: mlxconfig, SRIOV_EN and \
                     NUM_OF_VFS; others: the firmware's settings of the board)"
                .to_owned(),
            false => format!("write `function: {}`", others.join("` or `function: ")),
        };
        let message = format!("{} ({}) cannot have virtual functions (no SR-IOV)", physical.address, physical.name);
        return Err(("", message, help));
    };
    if wanted.count > sriov.total {
        let message = format!("{} can have {} virtual functions at most", physical.address, sriov.total);
        return Err((".count", message, format!("write {} or fewer", sriov.total)));
    }
    if (0..wanted.count).any(|n| sriov.place(physical.address, n).is_none()) {
        let message = format!("where the virtual functions of {} will be is not known", physical.address);
        let help = "its kernel does not tell (sriov_offset and sriov_stride): Linux 4.12 and later do";
        return Err(("", message, help.to_owned()));
    }
    Ok(())
}

/// The Ethernet address of one: the given one, else one that stays the same for this device of this host.
fn mac_of(wanted: &VirtualFunctionsEntry, host: &str, device: &ResourceName, number: usize) -> MacAddress {
    let [a, b, c] = stable_bytes(&format!("{host}\ndevices.{device}\n{number}"));
    wanted.macs.get(number).copied().unwrap_or(MacAddress([0x52, 0x54, 0x00, a, b, c]))
}

/// Functions of a device with their names, in order; as the card says that they will be, where they are not there yet.
pub(super) fn numbered(
    name: &ResourceName,
    physical: &PciFunction,
    addresses: &[PciAddress],
    facts: &HostFacts,
) -> Vec<ForVm> {
    let one = |(n, address): (usize, &PciAddress)| {
        let there = facts.pci.get(address).filter(|f| f.virtual_of == Some(physical.address));
        (format!("{name}/{n}"), there.cloned().unwrap_or_else(|| expected(physical, *address)))
    };
    addresses.iter().enumerate().map(one).collect()
}

/// One that is not there yet. The number of its vendor is that of the card (SR-IOV specification, "VF Vendor ID").
fn expected(physical: &PciFunction, address: PciAddress) -> PciFunction {
    let device = physical.sriov.as_ref().and_then(|s| s.device).unwrap_or(physical.id.device);
    let ports = physical.path.rsplit_once(['/', ':']).map_or("", |(ports, _)| ports);
    let separator = if physical.path.contains('/') { '/' } else { ':' };
    PciFunction {
        address,
        path: format!("{ports}{separator}{:x}", address.slot.device),
        virtual_of: Some(physical.address),
        sriov: None,
        id: PciId { device, ..physical.id },
        subsystem: None,
        driver: None,
        driver_override: None,
        group: None,
        serial: None,
        uuid: None,
        carries: BTreeSet::new(),
        ..physical.clone()
    }
}

/// Whether a manifest's devices have virtual functions for VMs, and on which slots.
pub(super) fn slots(manifest: &Loaded, facts: &HostFacts) -> Vec<(String, PciSlot)> {
    let for_vms = |e: &&DeviceEntry| e.virtual_functions.as_ref().is_some_and(|v| v.usage == VirtualUse::Vfio);
    let all = manifest.manifest.devices.iter().filter(|(_, e)| for_vms(e));
    all.filter_map(|(name, e)| Some((format!("devices.{name}"), resolve(e, false, facts).ok()?))).collect()
}
