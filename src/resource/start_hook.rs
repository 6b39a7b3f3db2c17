//! Proof at each start of a VM: a hook of libvirt's, plain shell, that compares the devices that the VM gets with the
//! list of those that were meant, and looks at their IOMMU groups again. It calls neither libvirt, which waits for it, nor
//! gpuvm, and works inside the confinement of libvirt's daemon. What it needs to know is one file of ours.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::facts::{HostFacts, PciFunction};
use crate::types::{MdevUuid, PciSlot};

/// The hook. libvirt runs what is in this folder beside its own `qemu`, which may be someone's (hooks.html).
pub const HOOK: (&str, &str) = ("/etc/libvirt/hooks/qemu.d/gpuvm", include_str!("start_hook/qemu-hook.sh"));

/// The devices that VMs may have.
pub const DEVICES: &str = "/etc/gpuvm/devices";

/// A device that VMs may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// Its name in the manifest.
    pub name: String,
    /// Its slot.
    pub slot: PciSlot,
    /// Its serial number, where the manifest names it by that.
    pub serial: Option<String>,
}

/// The text of [`DEVICES`]: a line a function or mediated device. `virtuals` are virtual functions with their names, of which
/// the subsystem is not known before they are there; `mediated` are mediated devices with names and the functions that they
/// are on.
pub fn devices(
    meant: &[Meant],
    virtuals: &[(String, PciFunction)],
    mediated: &[(MdevUuid, (String, PciFunction))],
    facts: &HostFacts,
) -> String {
    let mut text = "# Written by gpuvm: the devices that VMs may have, for libvirt's hook of gpuvm's.\n\
                    # function, ids, ids of the subsystem, path in sysfs, path of ports, name, serial number\n"
        .to_owned();
    let meant: std::collections::BTreeMap<PciSlot, &Meant> = meant.iter().map(|m| (m.slot, m)).collect();
    for (slot, meant) in meant {
        let functions: Vec<_> = facts.slot(slot).filter(|f| !f.is_bridge()).collect();
        // The serial number is that of the card, which its first function tells.
        let mut serial = meant.serial.as_deref();
        for f in functions {
            let subsystem = f.subsystem.map_or("-".to_owned(), |s| s.to_string());
            let path = f.path_pattern().unwrap_or_else(|| "*".to_owned());
            let serial = serial.take().unwrap_or("-");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {} {subsystem} {path} {} {} {serial}", f.address, f.id, f.path, meant.name);
        }
    }
    for (name, f) in virtuals {
        let path = f.path_pattern().unwrap_or_else(|| "*".to_owned());
        let _ = writeln!(text, "{} {} - {path} {} {name} -", f.address, f.id, f.path);
    }
    for (uuid, (name, f)) in mediated {
        let path = f.path_pattern().unwrap_or_else(|| "*".to_owned());
        let _ = writeln!(text, "{uuid} {} - {path}/{uuid} {} {name} -", f.id, f.path);
    }
    text
}

/// The slots of a list.
pub fn slots(text: &str) -> BTreeSet<PciSlot> {
    let address = |line: &str| line.split(' ').next()?.parse::<crate::types::PciAddress>().ok();
    text.lines().filter_map(address).map(|a| a.slot).collect()
}

#[cfg(test)]
mod tests;
