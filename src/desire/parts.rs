//! Parts of a VM that are one element each, with what they imply: a TPM, a screen, USB devices, folders, what runs on which
//! processor; and elements of a person's own.

use super::vms::{finding, want_package};
use super::{Desired, Shared};
use crate::facts::HostFacts;
use crate::manifest::{self, CpuSet, Loaded, Manifest, VmEntry};
use crate::plan::Severity;
use crate::resource::libvirt_domain::{Addition, Display, Extra};
use crate::types::xml_fragment;

/// What the parts of all VMs need of the host.
pub(super) fn packages(m: &Manifest, facts: &HostFacts, shared: &mut Shared) {
    let any = |of: fn(&VmEntry) -> bool| m.vms.values().any(|vm| !vm.absent && of(vm));
    if any(|vm| vm.tpm) {
        want_package(shared, "swtpm-tools", "vms");
    }
    if any(|vm| vm.display == manifest::Display::Spice) {
        want_package(shared, "qemu-system-modules-spice", "vms");
    }
    // Before, the daemon came with QEMU's own packages.
    let apart = match facts.os.id.as_str() {
        "debian" => number(&facts.os.version) >= 13.0,
        _ => number(&facts.os.version) >= 23.0,
    };
    if apart && any(|vm| !vm.folders.is_empty()) {
        want_package(shared, "virtiofsd", "vms");
    }
}

fn number(version: &str) -> f64 {
    version.parse().unwrap_or(f64::MAX)
}

/// The parts of a VM.
pub(super) fn extras(facts: &HostFacts, desired: &mut Desired, place: &str, vm: &VmEntry) -> Vec<Extra> {
    let mut all = Vec::new();
    if vm.tpm {
        all.push(Extra::Tpm);
    }
    match vm.display {
        manifest::Display::None => {}
        manifest::Display::Vnc => all.push(Extra::Display(Display::Vnc)),
        manifest::Display::Spice => all.push(Extra::Display(Display::Spice)),
    }
    all.extend(vm.usb.iter().map(|id| Extra::Usb(*id)));
    all.extend(vm.folders.iter().map(|f| Extra::Folder { tag: f.tag.to_string(), path: f.path.as_str().into() }));
    if vm.cpus.pin.is_some() || vm.cpus.emulator.is_some() {
        let host = facts.cpu.count;
        for set in [&vm.cpus.pin, &vm.cpus.emulator].into_iter().flatten() {
            if let Some(cpu) = set.cpus().into_iter().find(|cpu| host > 0 && *cpu >= host) {
                desired.findings.push(finding(
                    Severity::Error,
                    "no-such-cpu",
                    &format!("{place}.cpus"),
                    format!("`{set}`: the host has no processor {cpu}; it has 0 to {}", host - 1),
                    "see which there are: lscpu -e",
                ));
            }
        }
        let guest = vm.cpus.pin.as_ref().map(|set| pins(set, vm.cpus.count.0)).unwrap_or_default();
        all.push(Extra::Pinning { guest, emulator: vm.cpus.emulator.as_ref().map(ToString::to_string) });
    }
    all
}

/// One processor each where there are as many; else all of them for each.
fn pins(set: &CpuSet, count: u32) -> Vec<String> {
    let cpus = set.cpus();
    match cpus.len() == count as usize {
        true => cpus.iter().map(ToString::to_string).collect(),
        false => vec![set.to_string(); count as usize],
    }
}

/// A person's own elements. One that cannot go into a definition is an error.
pub(super) fn additions(manifest: &Loaded, desired: &mut Desired, place: &str, vm: &VmEntry) -> Vec<Addition> {
    let mut all = Vec::new();
    for entry in &vm.xml {
        let text = match entry.beside() {
            Some(path) => match manifest.files.get(path) {
                Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                None => continue,
            },
            None => entry.add.clone(),
        };
        let text = text.trim().to_owned();
        // The writer of definitions makes these, and no others; what goes into a device goes in with the device.
        let known =
            ["/domain", "/domain/devices", "/domain/features", "/domain/os", "/domain/clock", "/domain/metadata"];
        let wrong = match xml_fragment(&text) {
            Err(why) => Some(why),
            Ok(()) if !known.contains(&entry.at.as_str()) => Some(format!("a new definition has no `{}`", entry.at)),
            Ok(()) => None,
        };
        match wrong {
            Some(why) => desired.findings.push(finding(
                Severity::Error,
                "xml",
                &format!("{place}.xml"),
                why,
                &format!("what there is to add to: {}", known.join(", ")),
            )),
            None => all.push(Addition { at: entry.at.clone(), xml: text }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_processors_are_one_each() {
        let pin = |set: &str, count| pins(&set.parse().unwrap(), count);
        assert_eq!(pin("4-6,9", 4), ["4", "5", "6", "9"]);
        assert_eq!(pin("4-7", 2), ["4-7", "4-7"]);
        for wrong in ["", "a", "4-", "-4", "7-4", "1,,2", "99999", "0x1"] {
            assert!(wrong.parse::<CpuSet>().is_err(), "{wrong}");
        }
    }
}
