//! Rules for the devices that a VM is given: they are there, not the host's, and named as what a VM can have.

use std::collections::HashMap;

use super::{Checks, DEVICE_SECTIONS, given};
use crate::manifest::yaml_tree::{Place, Span};
use crate::manifest::{DeviceUse, GivenDevice, VirtualUse, VmEntry};

impl<'a> Checks<'a> {
    pub(super) fn vm_devices(&mut self, vm: &VmEntry, place: &Place<'a>) {
        for ((section, what), list) in DEVICE_SECTIONS.into_iter().zip(given(vm)) {
            let names = self.names(section);
            let mut seen: HashMap<String, Span> = HashMap::new();
            let places = place.get(section).map(|list| list.items()).unwrap_or_default();
            for (device, at) in list.iter().zip(places) {
                let name = &device.to_string();
                if section == "gpus" && self.mig_in_vm(name, &at) {
                    continue;
                }
                self.known(&at, device.name.as_str(), &names, what, section);
                if let Some(first) = seen.get(name) {
                    let again = (&at, at.span(), "named again here");
                    let message = format!("{what} `{name}` is named twice in one VM");
                    self.twice((first.clone(), "first named here"), again, message, None);
                    continue;
                }
                seen.insert(name.clone(), at.span());
                if section == "devices" {
                    self.given(device, &at);
                } else if !self.is_vgpu(device, &at)
                    && self.entries(section).get(name.as_str()).is_some_and(|e| e.usage == DeviceUse::Host)
                {
                    let usage = self.at(&[section, name, "use"]).span();
                    let again = (&at, at.span(), "given to a VM here");
                    let help = format!("write `use: vfio` for `{name}`, or take it out of this list");
                    let message = format!("{what} `{name}` stays with the host");
                    self.twice((usage, "kept for the host here"), again, message, Some(&help));
                }
            }
        }
    }

    /// Whether a vGPU is meant, and why a VM cannot have it; or the card as a whole, of which vGPUs are made.
    fn is_vgpu(&mut self, given: &GivenDevice, at: &Place<'_>) -> bool {
        let name = given.name.as_str();
        let Some(entry) = self.manifest.gpus.get(name) else { return false };
        let own = self.at(&["gpus", name]);
        let first = own.get("vgpu").unwrap_or_else(|| own.clone()).span();
        let again = (at, at.span(), "given to a VM here");
        match (given.function, &entry.vgpu) {
            (None, None) => return false,
            // What could not be read has its own message.
            (_, None) if own.get("vgpu").is_some() => {}
            (Some(_), None) => {
                let help = "a vGPU is named so. Write `vgpu: { type: TYPE, count: 1 }` for the card, or its name alone";
                self.twice((own.key_span(), "named here"), again, format!("GPU `{name}` has no vGPUs"), Some(help));
            }
            (None, Some(_)) => {
                let message = format!("GPU `{name}` stays with the host");
                let help = format!("name one of its vGPUs: `{name}/0`");
                self.twice((first, "for these"), again, message, Some(&help));
            }
            (Some(number), Some(wanted)) if number >= wanted.count && wanted.count > 0 => {
                let label = format!("{} of them: 0 to {}", wanted.count, wanted.count - 1);
                self.twice((first, &label), again, format!("GPU `{name}` has no vGPU {number}"), None);
            }
            (Some(_), Some(_)) => {}
        }
        true
    }

    /// Why a VM cannot have a GPU of the host's that is cut into MIG instances, or one of these.
    fn mig_in_vm(&mut self, name: &str, at: &Place<'_>) -> bool {
        // Its instances are no names: `compute/0` means the card's.
        let name = name.split('/').next().unwrap_or(name);
        let cut = self.manifest.gpus.get(name).is_some_and(|e| e.mig.is_some() && e.usage == DeviceUse::Host);
        let instance = name.starts_with("MIG-") && !self.manifest.gpus.contains_key(name);
        if !cut && !instance {
            return false;
        }
        let why =
            "a MIG instance is no PCI function: a VM needs NVIDIA's vGPU on top of it, which gpuvm does not set up";
        let help = format!("{why}. Give it to a container; for a VM, take `mig` out of the GPU and write `use: vfio`");
        let message = match cut {
            true => format!("GPU `{name}` is cut into MIG instances for the host's containers"),
            false => format!("`{name}` is a MIG instance, which no VM can have"),
        };
        self.wrong(at, at.span(), message, "given to a VM here", Some(help));
        true
    }

    /// Why a VM cannot have this virtual function, or this device as a whole.
    fn given(&mut self, given: &GivenDevice, at: &Place<'_>) {
        let name = given.name.as_str();
        let Some(entry) = self.manifest.devices.get(name) else { return };
        let own = self.at(&["devices", name]);
        let Some(number) = given.function else {
            if entry.usage == DeviceUse::Host {
                let usage = self.at(&["devices", name, "use"]).span();
                let help = match &entry.virtual_functions {
                    Some(_) => format!("name one of its virtual functions: `{name}/0`"),
                    None => format!("write `use: vfio` for `{name}`, or take it out of this list"),
                };
                let message = format!("device `{name}` stays with the host");
                let again = (at, at.span(), "given to a VM here");
                self.twice((usage, "kept for the host here"), again, message, Some(&help));
            }
            return;
        };
        match &entry.virtual_functions {
            // What could not be read has its own message.
            None if own.get("virtualFunctions").is_some() => {}
            None => {
                let help = format!("write `virtualFunctions: {{ count: 1 }}` for `{name}`");
                let message = format!("device `{name}` has no virtual functions");
                self.twice((own.key_span(), "named here"), (at, at.span(), "one is given here"), message, Some(&help));
            }
            Some(wanted) if number >= wanted.count && wanted.count > 0 => {
                let message = format!("device `{name}` has no virtual function {number}");
                let label = format!("{} of them: 0 to {}", wanted.count, wanted.count - 1);
                let first = own.get("virtualFunctions").unwrap_or(own).span();
                self.twice((first, &label), (at, at.span(), "given to a VM here"), message, None);
            }
            Some(wanted) if wanted.usage == VirtualUse::Host => {
                let first = self.at(&["devices", name, "virtualFunctions", "use"]).span();
                let message = format!("the virtual functions of `{name}` stay with the host");
                let help = "write `use: vfio` for them, or leave `use` out there";
                let again = (at, at.span(), "given to a VM here");
                self.twice((first, "kept for the host here"), again, message, Some(help));
            }
            Some(_) => {}
        }
    }
}
