//! Parts of a VM that are one element each, with what they imply: a TPM, a screen, USB devices, folders, what runs on which
//! processor; and elements of a person's own.

use super::vms::{finding, want_package};
use super::{Desired, Shared};
use crate::facts::HostFacts;
use crate::manifest::{self, Loaded, Manifest, VmEntry};
use crate::plan::Severity;
use crate::resource::libvirt_domain::{Addition, Display, Extra};
use crate::types::xml_fragment;

/// What the parts of all VMs need of the host.
pub(super) fn packages(m: &Manifest, facts: &HostFacts, shared: &mut Shared) {
    let any = |of: fn(&VmEntry) -> bool| m.vms.values().any(|vm| !vm.absent && of(vm));
    if any(VmEntry::has_tpm) {
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
pub(super) fn extras(vm: &VmEntry) -> Vec<Extra> {
    let mut all = Vec::new();
    if vm.has_tpm() {
        all.push(Extra::Tpm);
    }
    match vm.display {
        manifest::Display::None => {}
        manifest::Display::Vnc => all.push(Extra::Display(Display::Vnc)),
        manifest::Display::Spice => all.push(Extra::Display(Display::Spice)),
    }
    all.extend(vm.usb.iter().map(|id| Extra::Usb(*id)));
    all.extend(vm.folders.iter().map(|f| Extra::Folder { tag: f.tag.to_string(), path: f.path.as_str().into() }));
    all
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
