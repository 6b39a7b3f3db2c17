//! Rules for `gpus` and `devices`: which device an entry means, whether it stays with the host, and how it is shared.

use std::collections::HashMap;

use super::{Checks, DEVICE_SECTIONS};
use crate::manifest::yaml_tree::Span;
use crate::manifest::{DeviceEntry, DeviceUse};

impl<'a> Checks<'a> {
    pub(super) fn devices(&mut self) {
        let mut seen: HashMap<String, Vec<(String, Span, &DeviceEntry)>> = HashMap::new();
        let mut modules: HashMap<u8, Span> = HashMap::new();
        for (section, _) in DEVICE_SECTIONS {
            for (name, entry) in self.entries(section) {
                if let Some(at) = self.at(&[section, name.as_str()]).get("existing")
                    && entry.existing
                    && entry.usage != DeviceUse::Vfio
                {
                    let message =
                        format!("`{section}.{name}` stays with the host and is kept for VMs by something else");
                    self.value(&at, message, "only with `use: vfio`", Some("take `existing` out"));
                }
                self.shared(section, name.as_str(), entry);
                self.virtual_functions(section, name.as_str(), entry);
                self.module_id(section, name.as_str(), entry, &mut modules);
                self.vgpu(section, name.as_str(), entry);
                self.mig(section, name.as_str(), entry);
                if self.at(&[section, name.as_str()]).lacks("match") {
                    continue;
                }
                let place = self.at(&[section, name.as_str(), "match"]);
                let wanted = &entry.matches;
                let given = [
                    wanted.address.map(|address| ("address", address.to_string())),
                    wanted.slot.clone().map(|slot| ("slot", slot)),
                    wanted.model.clone().map(|model| ("model", model)),
                    wanted.id.map(|id| ("id", id.to_string())),
                    wanted.serial.clone().map(|serial| ("serial", serial)),
                    wanted.uuid.clone().map(|uuid| ("uuid", uuid)),
                ];
                let given: Vec<_> = given.into_iter().flatten().collect();
                match &given[..] {
                    [(field, text)] => {
                        let span = place.get(field).unwrap_or_else(|| place.clone()).span();
                        let label = format!("{section}.{name}");
                        let earlier = seen.entry(format!("{field} {text}")).or_default();
                        let same = earlier.iter().find(|(.., other)| !entry.is_another_port(other));
                        if let Some((other, first, _)) = same {
                            let message = format!("`{text}` is `{other}` already");
                            let (first, again) = (first.clone(), (&place, span, "the same device"));
                            let help = "name a device once and use it by that name; of a card with several ports that share \
                                        themselves, each may have an entry with its own `virtualFunctions: { function: N }`";
                            self.twice((first, "first named here"), again, message, Some(help));
                        } else {
                            earlier.push((label, span, entry));
                        }
                    }
                    [] => {
                        // A field that is at fault itself was reported.
                        if place.keys().next().is_none() {
                            let help = "give one of `address`, `slot`, `model`, `id`, `serial` and `uuid`";
                            self.value(&place, "`match` names no device".into(), "empty", Some(help));
                        }
                    }
                    [_, (second, _), ..] => {
                        let span = place.get(second).map_or_else(|| place.span(), |p| p.key_span());
                        let message = "`match` has more than one field".to_owned();
                        let help = "keep one of them; what the card has to be goes to `expect`";
                        self.wrong(&place, span, message, "one too many", Some(help.into()));
                    }
                }
            }
        }
    }

    /// What host and VMs share.
    fn shared(&mut self, section: &str, name: &str, entry: &DeviceEntry) {
        let place = self.at(&[section, name]);
        if place.lacks("use") {
            return;
        }
        let shared = entry.usage == DeviceUse::Shared;
        if let Some(at) = place.get("use").filter(|_| shared && section == "devices") {
            let message = format!("`devices.{name}` cannot be shared by the host and its VMs");
            let help = "write `use: vfio` to keep it for VMs: who uses it on the host is told of GPUs only";
            self.value(&at, message, "GPUs only", Some(help));
        }
        let Some(release) = place.get("release") else { return };
        if !shared && !entry.release.is_empty() {
            let message = format!("`{section}.{name}` is not shared, so nothing is stopped for a VM");
            self.wrong(
                &release,
                release.key_span(),
                message,
                "only with `use: shared`",
                Some("take `release` out".into()),
            );
        }
        self.once(entry.release.iter().map(|one| format!("`{one}`")).zip(release.items()));
    }

    /// The place of a GPU on a board.
    fn module_id(&mut self, section: &str, name: &str, entry: &DeviceEntry, seen: &mut HashMap<u8, Span>) {
        let at = self.at(&[section, name]).get("moduleId");
        let (Some(id), Some(at)) = (entry.module_id, at) else { return };
        if section == "devices" {
            let message = format!("`devices.{name}` is no GPU on a board");
            return self.wrong(&at, at.key_span(), message, "GPUs only", Some("take `moduleId` out".into()));
        }
        if !(1..=16).contains(&id) {
            let help = "`nvidia-smi -q` tells it (GPU Module Id)";
            return self.value(&at, format!("no board has a module {id}"), "1 to 16", Some(help));
        }
        match seen.get(&id) {
            Some(first) => {
                let message = format!("two GPUs have the module id {id}");
                self.twice((first.clone(), "first given here"), (&at, at.span(), "given again here"), message, None);
            }
            None => _ = seen.insert(id, at.span()),
        }
    }

    /// What a device shares in hardware.
    fn virtual_functions(&mut self, section: &str, name: &str, entry: &DeviceEntry) {
        let place = self.at(&[section, name]);
        let (Some(wanted), Some(at)) = (&entry.virtual_functions, place.get("virtualFunctions")) else { return };
        if section == "gpus" {
            let message = format!("`gpus.{name}` cannot have plain virtual functions");
            let help = "of a card whose own driver makes them (Intel's Flex, AMD's), name it under `devices`";
            return self.wrong(&at, at.key_span(), message, "`devices` only", Some(help.into()));
        }
        if entry.usage != DeviceUse::Host && !place.lacks("use") {
            let usage = place.get("use").unwrap_or_else(|| place.clone());
            let message =
                format!("`{section}.{name}` does not stay with the host, whose driver makes virtual functions");
            let help = "write `use: host`; whom the virtual ones belong to is said by their own `use`";
            let again = (&at, at.key_span(), "its virtual functions");
            self.twice((usage.span(), "it is given away here"), again, message, Some(help));
        }
        if let Some(count) = at.get("count").filter(|_| wanted.count == 0) {
            let help = "leave `virtualFunctions` out: they go when they are no longer in the manifest";
            self.value(&count, "no virtual functions are asked for".to_owned(), "at least 1", Some(help));
        }
        if let Some(function) = at.get("function").filter(|_| wanted.function > 7) {
            self.value(&function, format!("a slot has no function {}", wanted.function), "0 to 7", None);
        }
        let places = at.get("macs").map(|list| list.items()).unwrap_or_default();
        for (n, (mac, at)) in wanted.macs.iter().zip(&places).enumerate() {
            if n >= usize::from(wanted.count) {
                let message = format!("`{mac}` is for a virtual function {n}, and there are {}", wanted.count);
                self.value(at, message, "one too many", Some("take it out, or write a larger `count`"));
            }
            if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
                self.value(at, format!("`{mac}` is no address of one card"), "a group's, or none", None);
            }
        }
        self.once(wanted.macs.iter().map(|mac| format!("`{mac}`")).zip(places));
    }

    /// The vGPUs of a card.
    fn vgpu(&mut self, section: &str, name: &str, entry: &DeviceEntry) {
        let place = self.at(&[section, name]);
        let (Some(wanted), Some(at)) = (&entry.vgpu, place.get("vgpu")) else { return };
        if section == "devices" {
            let message = format!("`devices.{name}` cannot have vGPUs");
            let help = "name the card under `gpus`";
            return self.wrong(&at, at.key_span(), message, "GPUs only", Some(help.into()));
        }
        if entry.usage != DeviceUse::Host && !place.lacks("use") {
            let usage = place.get("use").unwrap_or_else(|| place.clone());
            let message = format!("`gpus.{name}` does not stay with the host, whose driver makes vGPUs");
            let help = "write `use: host`; VMs get the vGPUs";
            let again = (&at, at.key_span(), "its vGPUs");
            self.twice((usage.span(), "it is given away here"), again, message, Some(help));
        }
        if let Some(mig) = place.get("mig") {
            let again = (&at, at.key_span(), "and shared as vGPUs here");
            let help = "leave one of them; vGPUs on MIG instances are not set up by gpuvm";
            let message = format!("`gpus.{name}` has both `mig` and `vgpu`");
            self.twice((mig.key_span(), "cut into instances here"), again, message, Some(help));
        }
        if let Some(count) = at.get("count").filter(|_| wanted.count == 0) {
            let help = "leave `vgpu` out: they go when they are no longer in the manifest";
            self.value(&count, "no vGPUs are asked for".to_owned(), "at least 1", Some(help));
        }
    }

    /// What a GPU is cut into for containers.
    fn mig(&mut self, section: &str, name: &str, entry: &DeviceEntry) {
        let place = self.at(&[section, name]);
        let (Some(profiles), Some(at)) = (&entry.mig, place.get("mig")) else { return };
        if section != "gpus" {
            let message = format!("`{section}.{name}` cannot be cut into MIG instances");
            return self.wrong(&at, at.key_span(), message, "NVIDIA's GPUs only", Some("take `mig` out".into()));
        }
        if profiles.is_empty() {
            let help = "leave `mig` out: instances go when they are no longer in the manifest";
            self.value(&at, "no MIG instances are asked for".to_owned(), "empty", Some(help));
        }
        if entry.usage == DeviceUse::Host || place.lacks("use") {
            return;
        }
        let usage = place.get("use").unwrap_or_else(|| place.clone());
        let (message, help) = match entry.usage {
            DeviceUse::Shared => (
                format!("`gpus.{name}` cannot go to a VM and be cut into MIG instances"),
                "write `use: host`: the instances go with the driver that a VM takes the card from",
            ),
            _ => (
                format!("`gpus.{name}` does not stay with the host, whose driver makes MIG instances"),
                "write `use: host`, or take `mig` out: a VM that has the card makes its own instances",
            ),
        };
        let again = (&at, at.key_span(), "its MIG instances");
        self.twice((usage.span(), "it is given away here"), again, message, Some(help));
    }
}
