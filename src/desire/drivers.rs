//! `drivers`: what drives the GPUs that stay with the host. NVIDIA's is in `nvidia`; the makers whose drivers are the
//! kernel's own need firmware, and the proof that the driver took the card.

use std::collections::BTreeSet;

use super::gpus::slot_of;
use super::{Desired, Shared, nvidia};
use crate::facts::{DriverFacts, HostFacts, PciFunction};
use crate::gpu::architecture::NVIDIA;
use crate::manifest::{DeviceUse, Loaded, Manifest};
use crate::plan::{Finding, Key, Severity};
use crate::resource::driver::Driver;
use crate::types::{PciAddress, PciSlot};

pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired, shared: &mut Shared) {
    let m = &manifest.manifest;
    let (Some(drivers), Some(known)) = (&m.drivers, &facts.drivers) else { return };
    let on = On { m, manifest, facts, known };
    if let Some(entry) = &drivers.nvidia {
        nvidia::desire(&on, entry, desired, shared);
    }
    if drivers.amd.is_some() {
        in_kernel(&on, "amd", 0x1002, &["amdgpu", "radeon"], &["firmware-amd-graphics"], desired, shared);
    }
    if drivers.intel.is_some() {
        // Debian 13 has them apart, Debian 12 among others.
        let firmware = ["firmware-intel-graphics", "firmware-misc-nonfree"];
        in_kernel(&on, "intel", 0x8086, &["i915", "xe"], &firmware, desired, shared);
    }
}

/// What all of it is decided from.
pub(super) struct On<'a> {
    pub m: &'a Manifest,
    pub manifest: &'a Loaded,
    pub facts: &'a HostFacts,
    pub known: &'a DriverFacts,
}

impl<'a> On<'a> {
    /// The slots that the manifest uses so.
    fn used(&self, how: DeviceUse) -> BTreeSet<PciSlot> {
        let of_it = self.m.gpus.values().filter(|e| e.usage == how);
        of_it.filter_map(|e| slot_of(e, true, self.facts)).collect()
    }

    /// Those of the host's cards that it shares with VMs.
    pub fn shared(&self, cards: &[&PciFunction]) -> Vec<PciAddress> {
        let slots = self.used(DeviceUse::Shared);
        cards.iter().map(|f| f.address).filter(|a| slots.contains(&a.slot)).collect()
    }

    /// The display functions of a maker's cards that stay with the host; a finding where there are none.
    pub fn cards(&self, maker: &str, vendor: u16) -> Result<Vec<&'a PciFunction>, Finding> {
        let facts = self.facts;
        let all: Vec<&PciFunction> =
            facts.pci.values().filter(|f| f.is_gpu() && f.id.vendor == vendor && f.virtual_of.is_none()).collect();
        let given = self.used(DeviceUse::Vfio);
        let mut ours: Vec<&PciFunction> = all.iter().copied().filter(|f| !given.contains(&f.address.slot)).collect();
        ours.dedup_by_key(|f| f.address.slot);
        let place = format!("drivers.{maker}");
        // The switches of a board need the driver side on the host, whoever has the cards.
        let switches = vendor == NVIDIA && facts.pci.values().any(PciFunction::is_nvswitch);
        match (all.first(), ours.is_empty() && !switches) {
            (None, _) if !switches => Err(finding(
                Severity::Error,
                "no-card",
                &place,
                format!("this host has no GPU of this maker ({vendor:04x})"),
                "take the section out; the GPUs that are there: gpuvm gpu list",
            )),
            (Some(_), true) => {
                let names: Vec<String> = all.iter().map(|f| f.address.slot.to_string()).collect();
                Err(finding(
                    Severity::Error,
                    "driver-for-no-card",
                    &place,
                    format!(
                        "every GPU of this maker is kept for VMs ({}): the host needs no driver for them",
                        names.join(", ")
                    ),
                    "take the section out: the driver belongs into the guests (`ubuntu: { nvidia: … }` of a VM)",
                ))
            }
            _ => Ok(ours),
        }
    }
}

pub(super) fn finding(severity: Severity, code: &str, place: &str, message: String, help: &str) -> Finding {
    Finding { severity, code: code.to_owned(), place: place.to_owned(), message, help: help.to_owned() }
}

/// A driver of the kernel's own: the firmware that it loads, and the proof that it took the cards.
fn in_kernel(
    on: &On<'_>,
    maker: &str,
    vendor: u16,
    drivers: &[&str],
    firmware: &[&str],
    desired: &mut Desired,
    shared: &mut Shared,
) {
    let place = format!("drivers.{maker}");
    let cards = match on.cards(maker, vendor) {
        Ok(cards) => cards,
        Err(none) => return desired.findings.push(none),
    };
    // Ubuntu's has the firmware of all makers, and belongs to its main component.
    let name = match on.facts.os.id.as_str() {
        "ubuntu" => Some("linux-firmware"),
        _ => firmware.iter().copied().find(|n| on.known.offers.contains_key(*n) || on.facts.package(n).is_some()),
    };
    let Some(name) = name else {
        return desired.findings.push(finding(
            Severity::Error,
            "no-firmware",
            &place,
            format!("none of apt's lists has {}", firmware.join(" or ")),
            "add the component non-free-firmware to apt's sources, and run: apt-get update",
        ));
    };
    shared.packages.entry(name.to_owned()).or_default().insert(place.clone());
    let Ok(maker) = maker.parse() else { return };
    let wanted = Driver {
        name: maker,
        cards: cards.iter().map(|f| f.address).collect(),
        shared: on.shared(&cards),
        drivers: drivers.iter().map(|d| (*d).to_owned()).collect(),
        version: None,
        open: None,
        packages: Vec::new(),
    };
    desired.want(&place, [Key::new("package", "")], wanted);
}
