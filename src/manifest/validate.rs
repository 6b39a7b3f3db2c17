//! What the types cannot say: names that lead nowhere, devices with two owners, values that contradict each other. Each
//! problem is shown under the wrong word.
//!
//! A manifest that has problems already is checked too, without the parts at fault. So the tree is asked which names
//! there are: a GPU whose entry has a typo is not also an unknown name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path};

use super::guest_address::mistakes;
use super::load::stays_inside;
use super::yaml_de::closest;
use super::yaml_tree::{Node, Place, Problem, Span};
use super::{
    DeviceEntry, DeviceUse, DiskEntry, GivenDevice, GuestUserEntry, Manifest, StartWhen, Uplink, VirtualUse, VmEntry,
    VmState, WindowsEntry,
};
use crate::image;
use crate::types::{ByteSize, ResourceName};

/// Every rule that a manifest breaks.
pub fn validate(manifest: &Manifest, root: &Node) -> Vec<Problem> {
    let mut checks = Checks { manifest, root: Place::root(root), problems: Vec::new() };
    checks.version();
    checks.packages();
    checks.files();
    checks.kernel_args();
    checks.devices();
    checks.networks();
    checks.paths();
    checks.images();
    checks.drivers();
    checks.vms();
    checks.vmctl();
    checks.shared_between_vms();
    checks.problems
}

struct Checks<'a> {
    manifest: &'a Manifest,
    root: Place<'a>,
    problems: Vec<Problem>,
}

/// What to write where a file would not lie beside the manifest.
const ELSEWHERE: &str = "write a path below the manifest's folder, relative and without `..`";

/// The two sections of PCI devices, and what one of them is called.
const DEVICE_SECTIONS: [(&str, &str); 2] = [("gpus", "GPU"), ("devices", "device")];

impl<'a> Checks<'a> {
    fn at(&self, path: &[&str]) -> Place<'a> {
        // What was read from the tree is in the tree; the nearest place above stands in where it is not.
        path.iter().fold(self.root.clone(), |place, name| place.get(name).unwrap_or(place))
    }

    fn wrong(&mut self, place: &Place<'_>, span: Span, message: String, label: &str, help: Option<String>) {
        let labels = vec![(span, label.to_owned())];
        self.problems.push(Problem { message, path: place.path.clone(), labels, help });
    }

    fn value(&mut self, place: &Place<'_>, message: String, label: &str, help: Option<&str>) {
        self.wrong(place, place.span(), message, label, help.map(str::to_owned));
    }

    /// Two places that exclude each other; the second is where the problem is.
    fn twice(&mut self, first: (Span, &str), again: (&Place<'_>, Span, &str), message: String, help: Option<&str>) {
        let labels = vec![(again.1, again.2.to_owned()), (first.0, first.1.to_owned())];
        self.problems.push(Problem { message, path: again.0.path.clone(), labels, help: help.map(str::to_owned) });
    }

    fn version(&mut self) {
        if self.manifest.version != 1 {
            let message = format!("version {} is not known", self.manifest.version);
            self.value(&self.at(&["version"]), message, "this gpuvm reads version 1", Some("write `version: 1`"));
        }
    }

    fn packages(&mut self) {
        let mut seen: HashMap<&str, (bool, Span)> = HashMap::new();
        for (entry, place) in self.manifest.packages.iter().zip(self.at(&["packages"]).items()) {
            let span = place.get("name").unwrap_or_else(|| place.clone()).span();
            let name = entry.name.as_str();
            match seen.get(name) {
                Some((absent, first)) if *absent != entry.absent => {
                    let say = |absent| if absent { "to be removed here" } else { "wanted here" };
                    let message = format!("package `{name}` is wanted and to be removed");
                    self.twice((first.clone(), say(*absent)), (&place, span, say(entry.absent)), message, None);
                }
                Some(_) => {}
                None => _ = seen.insert(name, (entry.absent, span)),
            }
        }
    }

    fn files(&mut self) {
        for (name, entry) in &self.manifest.files {
            let place = self.at(&["files", name.as_str()]);
            let given: Vec<(&str, Span)> = ["content", "source", "template"]
                .into_iter()
                .filter_map(|field| Some((field, place.get(field)?.key_span())))
                .collect();
            match &given[..] {
                [_] => {}
                [] => {
                    let help = "give one of `content`, `source` and `template`";
                    let message = format!("`{name}` has no content");
                    self.wrong(&place, place.key_span(), message, "what is to be in it?", Some(help.into()));
                }
                [(first, first_at), rest @ ..] => {
                    for (again, again_at) in rest {
                        let message = format!("`{name}` has both `{first}` and `{again}`");
                        let (one, two) = ((first_at.clone(), "one content"), (&place, again_at.clone(), "another"));
                        self.twice(one, two, message, Some("keep one of them"));
                    }
                }
            }
            for (field, path) in [("source", &entry.source), ("template", &entry.template)] {
                let Some(path) = path.as_deref().filter(|path| !stays_inside(path)) else { continue };
                let message = format!("`{}` does not lie beside the manifest", path.display());
                let help = "write a path below the manifest's folder, relative and without `..`";
                self.value(&self.at(&["files", name.as_str(), field]), message, "leads elsewhere", Some(help));
            }
        }
    }

    fn kernel_args(&mut self) {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for (arg, place) in self.manifest.kernel_args.iter().zip(self.at(&["kernelArgs"]).items()) {
            let text = arg.as_str();
            if let Some(first) = seen.get(text) {
                let again = (&place, place.span(), "given again here");
                self.twice((first.clone(), "first given here"), again, format!("`{text}` is given twice"), None);
            } else {
                seen.insert(text, place.span());
            }
            if let Some((reason, help)) = refused_arg(text) {
                self.value(&place, format!("`{text}` is refused"), reason, Some(help));
            }
        }
    }

    fn entries(&self, section: &str) -> &'a BTreeMap<ResourceName, DeviceEntry> {
        if section == "gpus" { &self.manifest.gpus } else { &self.manifest.devices }
    }

    fn devices(&mut self) {
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
        let mut seen: HashMap<[u8; 6], Span> = HashMap::new();
        for (n, (mac, at)) in wanted.macs.iter().zip(places).enumerate() {
            if n >= usize::from(wanted.count) {
                let message = format!("`{mac}` is for a virtual function {n}, and there are {}", wanted.count);
                self.value(&at, message, "one too many", Some("take it out, or write a larger `count`"));
            }
            if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
                self.value(&at, format!("`{mac}` is no address of one card"), "a group's, or none", None);
            }
            match seen.get(&mac.0) {
                Some(first) => {
                    let again = (&at, at.span(), "given again here");
                    self.twice((first.clone(), "first given here"), again, format!("`{mac}` is given twice"), None);
                }
                None => _ = seen.insert(mac.0, at.span()),
            }
        }
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
                self.twice(
                    (first, "kept for the host here"),
                    (at, at.span(), "given to a VM here"),
                    message,
                    Some(help),
                );
            }
            Some(_) => {}
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
        let mut seen: HashMap<String, Span> = HashMap::new();
        for (one, at) in entry.release.iter().zip(release.items()) {
            match seen.get(&one.to_string()) {
                Some(first) => {
                    let again = (&at, at.span(), "given again here");
                    self.twice((first.clone(), "first given here"), again, format!("`{one}` is given twice"), None);
                }
                None => _ = seen.insert(one.to_string(), at.span()),
            }
        }
    }

    fn networks(&mut self) {
        let Some(bridge) = &self.manifest.bridge else { return };
        let name = bridge.name.as_str();
        if matches!(&bridge.uplink, Uplink::Name(uplink) if uplink == &bridge.name) {
            let message = format!("bridge `{name}` has itself as its uplink");
            let help = "write `uplink: auto`, or the link that becomes its port";
            self.value(&self.at(&["bridge", "uplink"]), message, "the bridge's own name", Some(help));
        }
        if let Some(network) = self.at(&["networks"]).get(name).filter(|_| self.manifest.networks.contains_key(name)) {
            let first = (self.at(&["bridge", "name"]).span(), "the bridge");
            let again = (&network, network.key_span(), "a network of the same name");
            self.twice(first, again, format!("`{name}` is a network and the bridge"), Some("rename one of them"));
        }
    }

    fn absolute(&mut self, path: &Path, at: &[&str]) {
        let fine = path.is_absolute()
            && path.components().all(|part| !matches!(part, Component::ParentDir))
            && !path.to_string_lossy().chars().any(char::is_control);
        if !fine {
            let message = format!("`{}` is not an absolute path without `..`", path.display());
            self.value(&self.at(at), message, "write the whole path, from `/`", None);
        }
    }

    fn paths(&mut self) {
        let manifest = self.manifest;
        if let Some(pool) = manifest.libvirt.as_ref().and_then(|libvirt| libvirt.pool.as_ref()) {
            self.absolute(pool, &["libvirt", "pool"]);
        }
        for (name, storage) in &manifest.storage {
            if let Some(dir) = &storage.dir {
                self.absolute(dir, &["storage", name.as_str(), "dir"]);
            }
            let place = self.at(&["storage", name.as_str()]);
            let given = ["dir", "lvm", "lvmThin", "zfs"].into_iter().filter_map(|f| place.get(f));
            match &given.collect::<Vec<_>>()[..] {
                [] => {
                    let help = "give one of `dir`, `lvm`, `lvmThin` and `zfs`";
                    let message = format!("storage `{name}` says not where it is");
                    self.wrong(&place, place.key_span(), message, "where?", Some(help.into()));
                }
                [_] => {}
                [first, again, ..] => {
                    let message = format!("storage `{name}` is in two places");
                    let again = (again, again.key_span(), "another");
                    self.twice((first.key_span(), "one"), again, message, Some("keep one of them"));
                }
            }
        }
        for (name, vm) in &manifest.vms {
            let Some(boot) = &vm.boot else { continue };
            self.absolute(&boot.kernel, &["vms", name.as_str(), "boot", "kernel"]);
            if let Some(initrd) = &boot.initrd {
                self.absolute(initrd, &["vms", name.as_str(), "boot", "initrd"]);
            }
        }
    }

    fn drivers(&mut self) {
        let manifest = self.manifest;
        let Some(nvidia) = manifest.drivers.as_ref().and_then(|d| d.nvidia.as_ref()) else { return };
        let place = self.at(&["drivers", "nvidia"]);
        match (place.get("branch"), place.get("version")) {
            (None, None) => {
                let help = "write `branch: \"580\"`, which stays on that branch, or `version` for one exact version";
                let message = "NVIDIA's driver has neither a branch nor a version".to_owned();
                self.wrong(&place, place.key_span(), message, "which one?", Some(help.into()));
            }
            (Some(branch), Some(version)) => {
                let message = "NVIDIA's driver has both `branch` and `version`".to_owned();
                let (one, two) =
                    ((branch.key_span(), "any of a branch"), (&version, version.key_span(), "exactly one"));
                self.twice(one, two, message, Some("keep one of them"));
            }
            _ => {}
        }
        let mut seen: HashMap<super::ContainerRuntime, Span> = HashMap::new();
        let items = place.get("containers").map(|list| list.items()).unwrap_or_default();
        for (runtime, at) in nvidia.containers.iter().zip(items) {
            match seen.get(runtime) {
                Some(first) => {
                    let again = (&at, at.span(), "and here");
                    self.twice((first.clone(), "first given here"), again, "it is given twice".to_owned(), None);
                }
                None => _ = seen.insert(*runtime, at.span()),
            }
        }
        let super::PackageSource::Repository(repository) = &nvidia.source else { return };
        let source = self.at(&["drivers", "nvidia", "source"]);
        if !stays_inside(&repository.key) && !source.lacks("key") {
            let message = format!("`{}` does not lie beside the manifest", repository.key.display());
            let help = "write a path below the manifest's folder, relative and without `..`";
            self.value(&self.at(&["drivers", "nvidia", "source", "key"]), message, "leads elsewhere", Some(help));
        }
        let flat = repository.suite.as_ref().is_none_or(|s| s.as_str().ends_with('/'));
        if flat != repository.components.is_empty() && !source.lacks("suite") {
            let (message, help) = match flat {
                true => ("a flat repository has no components", "take `components` out, or name a `suite`"),
                false => ("a suite has components", "name them (`components: [main]`), or write `suite: /`"),
            };
            let at = source.get("components").unwrap_or_else(|| source.clone());
            self.value(&at, message.to_owned(), "apt refuses that", Some(help));
        }
    }

    fn images(&mut self) {
        let manifest = self.manifest;
        for (name, entry) in &manifest.images {
            let place = self.at(&["images", name.as_str()]);
            let known = image::builtin(name.as_str()).is_some();
            let given = ["from", "url", "path"].into_iter().filter_map(|f| Some((f, place.get(f)?)));
            let given: Vec<_> = given.collect();
            match &given[..] {
                [] if known => {}
                [] => {
                    let help = "give one of `from`, `url` and `path`";
                    let message = format!("`{name}` says not where it comes from, and is no built-in image");
                    self.wrong(&place, place.key_span(), message, "from where?", Some(help.into()));
                }
                [_] => {}
                // The medium of an installer, from elsewhere.
                [("from", _), _] if entry.from.as_ref().is_some_and(|from| installs(from.as_str())) => {}
                [(first, at), (again, again_at), ..] => {
                    let message = format!("`{name}` has both `{first}` and `{again}`");
                    let (one, two) = ((at.key_span(), "one"), (again_at, again_at.key_span(), "another"));
                    self.twice(one, two, message, Some("keep one of them"));
                }
            }
            let built_in = match &entry.from {
                Some(from) => {
                    if let Some(at) = place.get("from") {
                        self.built_in(&at, from.as_str());
                    }
                    given.len() == 1
                }
                None => known && given.is_empty(),
            };
            for field in ["baseUrl", "version"] {
                if let Some(at) = place.get(field).filter(|_| !built_in) {
                    let message = format!("`{name}` is no built-in image, so it has no `{field}`");
                    self.value(&at, message, "of built-in images only", Some("take it out, or write `from`"));
                }
            }
            if let (Some(one), Some(two)) = (place.get("sha256"), place.get("sha512")) {
                let message = format!("`{name}` has two digests");
                self.twice(
                    (one.key_span(), "one"),
                    (&two, two.key_span(), "another"),
                    message,
                    Some("keep one of them"),
                );
            }
            let pinned = entry.sha256.is_some() || entry.sha512.is_some();
            if let Some(at) = place.get("url").filter(|_| entry.url.is_some() && !pinned) {
                let help = "write its `sha256` or `sha512` beside it";
                let message = format!("nothing says what `{name}` has to be");
                self.value(&at, message, "may be anything by the time it is fetched", Some(help));
            }
            for (field, address) in [("url", &entry.url), ("baseUrl", &entry.base_url)] {
                let plain = address.as_ref().is_some_and(|a| a.as_str().starts_with("http://"));
                if let Some(at) = place.get(field).filter(|_| plain && !pinned) {
                    let message = format!("`{name}` comes over plain http");
                    let help = "use https, or pin its `sha256` or `sha512`";
                    self.value(&at, message, "anyone on the way can change it", Some(help));
                }
            }
        }
    }

    fn built_in(&mut self, at: &Place<'_>, name: &str) {
        if image::builtin(name).is_none() {
            let names = image::names();
            let label = match closest(name, names.iter().map(String::as_str)) {
                Some(best) => format!("no built-in image has this name; did you mean `{best}`?"),
                None => "no built-in image has this name".to_owned(),
            };
            let help = format!("there are {}, and Ubuntu's other releases by number", names.join(", "));
            self.wrong(at, at.span(), format!("unknown image `{name}`"), &label, Some(help));
        }
    }

    /// Devices of a VM's that are one element each, and elements of a person's own.
    fn parts(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let items = |name: &str| place.get(name).map(|list| list.items()).unwrap_or_default();
        let mut seen: HashMap<String, Span> = HashMap::new();
        let usb = vm.usb.iter().map(|id| format!("USB device {id}")).zip(items("usb"));
        let folders = vm.folders.iter().map(|f| format!("folder `{}`", f.tag)).zip(items("folders"));
        for (what, at) in usb.chain(folders) {
            match seen.get(&what) {
                Some(first) => {
                    let again = (&at, at.span(), "given again here");
                    self.twice((first.clone(), "first given here"), again, format!("{what} is given twice"), None);
                }
                None => _ = seen.insert(what, at.span()),
            }
        }
        for (entry, at) in vm.xml.iter().zip(items("xml")) {
            let word = |name: &str| at.get(name).unwrap_or_else(|| at.clone());
            let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric());
            let mut parts = entry.at.split('/');
            if parts.next() != Some("") || parts.next() != Some("domain") || !parts.all(plain) {
                let message = format!("`{}` is no place in a definition", entry.at);
                let help = "write the element that it goes into, such as `/domain/devices`";
                self.value(&word("at"), message, "from `/domain` on", Some(help));
            }
            match entry.beside() {
                Some(path) if !stays_inside(path) => {
                    let message = format!("`{}` does not lie beside the manifest", path.display());
                    let help = "write a path below the manifest's folder, relative and without `..`";
                    self.value(&word("add"), message, "leads elsewhere", Some(help));
                }
                Some(_) => {}
                None => {
                    if let Err(why) = crate::types::xml_fragment(&entry.add) {
                        let help = "write one whole element, or `file:NAME` beside the manifest";
                        self.value(
                            &word("add"),
                            format!("it cannot go into a definition: {why}"),
                            "this element",
                            Some(help),
                        );
                    }
                }
            }
        }
    }

    /// Who gets into a guest.
    fn user(&mut self, user: &GuestUserEntry, at: &Place<'a>) {
        if user.name.as_str() == "root"
            && let Some(at) = at.get("name")
        {
            let help = "name another; it may do everything by sudo";
            self.value(&at, "`root` does not log in".to_owned(), "no login for root", Some(help));
        }
        let keys = at.get("sshKeys");
        if let Some(keys) = keys.as_ref().filter(|_| user.ssh_keys.is_empty()) {
            let help = "write at least one, such as `file:alice.pub`";
            let message = format!("nobody could log in as `{}`", user.name);
            self.value(keys, message, "no key, and there is no password", Some(help));
        }
        for (key, at) in user.ssh_keys.iter().zip(keys.map(|keys| keys.items()).unwrap_or_default()) {
            if let Some(path) = key.beside().filter(|p| !stays_inside(p)) {
                let message = format!("`{}` does not lie beside the manifest", path.display());
                self.value(&at, message, "leads elsewhere", Some(ELSEWHERE));
            }
        }
    }

    /// What cloud-init is to do.
    fn guest(&mut self, vm: &VmEntry, place: &Place<'a>) {
        if let (Some(user), Some(at)) = (&vm.user, place.get("user")) {
            self.user(user, &at);
        }
        if let (Some(_), Some(at)) = (&vm.ubuntu, place.get("ubuntu")) {
            let of = vm
                .image
                .as_ref()
                .map(|name| self.manifest.images.get(name).and_then(|i| i.from.as_ref()).unwrap_or(name));
            let own = vm.image.as_ref().is_some_and(|name| {
                self.manifest.images.get(name).is_some_and(|i| i.url.is_some() || i.path.is_some())
            });
            if !own && of.is_none_or(|name| !name.as_str().starts_with("ubuntu-")) && !place.lacks("image") {
                let help = "write `image: ubuntu-24.04`, or take it out";
                self.wrong(
                    &at,
                    at.key_span(),
                    "`ubuntu` is for images of Ubuntu's".to_owned(),
                    "not one here",
                    Some(help.to_owned()),
                );
            }
        }
        let more = place.get("cloudInit");
        for (path, entry) in vm.cloud_init.iter().flat_map(|more| &more.files) {
            let Some(at) = more.as_ref().and_then(|m| m.get("files")?.get(path.as_str())) else { continue };
            if entry.content.is_some() == entry.source.is_some() && !at.lacks("content") && !at.lacks("source") {
                let message =
                    format!("`{path}` has {}", if entry.content.is_some() { "two contents" } else { "no content" });
                let help = "give one of `content` and `source`";
                self.wrong(&at, at.key_span(), message, "what is to be in it?", Some(help.to_owned()));
            }
            if let (Some(source), Some(at)) = (entry.source.as_ref().filter(|p| !stays_inside(p)), at.get("source")) {
                let message = format!("`{}` does not lie beside the manifest", source.display());
                self.value(&at, message, "leads elsewhere", Some(ELSEWHERE));
            }
        }
        if let (Some(nic), Some(at)) = (&vm.network, place.get("network")) {
            if let Some(at) = at.get("gateway").filter(|_| nic.address.is_none() && !at.lacks("address")) {
                let help = "write `address` beside it, or take it out";
                self.value(&at, "a gateway without an address".to_owned(), "DHCP gives one", Some(help));
            }
            let v4 = |text: &str| !text.contains(':');
            if let (Some(gateway), Some(address), Some(at)) = (&nic.gateway, &nic.address, at.get("gateway"))
                && v4(gateway.as_str()) != v4(address.as_str())
            {
                let message = format!("`{gateway}` is no gateway for `{address}`");
                self.value(&at, message, "of the other family", Some("take one of the same kind of address"));
            }
            for wrong in mistakes(nic) {
                let at = at.get(wrong.field).unwrap_or_else(|| at.clone());
                self.value(&at, wrong.message, &wrong.label, Some(&wrong.help));
            }
        }
    }

    /// What a VM's first disk begins as.
    fn image(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let (Some(name), Some(at)) = (&vm.image, place.get("image")) else { return };
        let declared = self.names("images");
        if !declared.contains(&name.as_str()) && image::builtin(name.as_str()).is_none() && !self.unreadable("images") {
            let built_in = image::names();
            let all = declared.iter().copied().chain(built_in.iter().map(String::as_str));
            let label = match closest(name.as_str(), all) {
                Some(best) => format!("no image has this name; did you mean `{best}`?"),
                None => "no image has this name".to_owned(),
            };
            let help = format!(
                "name it under `images`; built in: {}, and Ubuntu's other releases by number",
                built_in.join(", ")
            );
            self.wrong(&at, at.span(), format!("unknown image `{name}`"), &label, Some(help));
        }
        if vm.disks.is_empty() && !vm.absent && place.get("disks").is_none_or(|d| d.items().is_empty()) {
            let message = format!("`image: {name}` has no disk to go to");
            self.value(&at, message, "the first disk begins as it", Some("write `disks: [20GiB]`"));
        }
    }

    /// A VM that is installed from a medium.
    fn installed(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let Some(name) = &vm.image else { return };
        let entry = self.manifest.images.get(name);
        let own = entry.is_some_and(|e| e.from.is_none() && (e.url.is_some() || e.path.is_some()));
        let of = entry.and_then(|e| e.from.as_ref()).unwrap_or(name);
        if own || !installs(of.as_str()) {
            return;
        }
        if let Some(at) = place.get("firmware").filter(|_| vm.firmware == super::Firmware::UefiSecure) {
            let message = "the installer's kernel is started directly, which secure boot refuses".to_owned();
            self.value(&at, message, "it trusts Ubuntu's boot loader only", Some("write `firmware: uefi`"));
        }
        if let Some(at) = place.get("boot") {
            let message = "a VM that boots a kernel of the host's never starts what is installed".to_owned();
            self.wrong(&at, at.key_span(), message, "in its place", Some("take it out".to_owned()));
        }
        let desktop = vm.ubuntu.as_ref().is_some_and(|ubuntu| ubuntu.desktop);
        if let Some(at) = place.get("ubuntu").and_then(|u| u.get("desktop")).filter(|_| desktop) {
            let message = "what this medium installs is a desktop".to_owned();
            self.value(&at, message, "for cloud images", Some("take it out"));
        }
    }

    /// The names that a section has, also those whose entry has a problem.
    fn names(&self, section: &str) -> Vec<&'a str> {
        self.root.get(section).map(|place| place.keys().collect()).unwrap_or_default()
    }

    /// Whether a section is there but could not be read, or under a misspelt name: then its names are not known.
    fn unreadable(&self, section: &str) -> bool {
        const NAMING: [&str; 6] = ["gpus", "devices", "bridge", "networks", "storage", "images"];
        match self.root.get(section) {
            Some(place) => place.is_pruned(),
            None => self.root.entries().any(|(key, at)| at.is_pruned() && closest(key, NAMING) == Some(section)),
        }
    }

    /// Reports a name that leads nowhere.
    fn known(&mut self, place: &Place<'_>, name: &str, names: &[&str], what: &str, section: &str) {
        if names.contains(&name) || self.unreadable(section) {
            return;
        }
        let label = match closest(name, names.iter().copied()) {
            Some(best) => format!("no {what} has this name; did you mean `{best}`?"),
            None => format!("no {what} has this name"),
        };
        let elsewhere = DEVICE_SECTIONS.map(|(other, _)| other).into_iter().find(|other| {
            *other != section && DEVICE_SECTIONS.iter().any(|(s, _)| *s == section) && self.names(other).contains(&name)
        });
        let help = match elsewhere {
            Some(other) => format!("`{name}` is in `{other}`: write it in the VM's list `{other}`"),
            None if names.is_empty() && what == "network" => {
                "there is none yet: write `bridge: { name: br0, uplink: auto }`, or `networks: { nat: { libvirt: default } }`"
                    .to_owned()
            }
            None if names.is_empty() => format!("name it under `{section}`; there is none yet"),
            None => {
                let some: Vec<_> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
                let more = if names.len() > some.len() { " and others" } else { "" };
                format!("known here: {}{more}", some.join(", "))
            }
        };
        self.wrong(place, place.span(), format!("unknown {what} `{name}`"), &label, Some(help));
    }

    /// The names that a VM's network may have; `None` where some could not be read.
    fn network_names(&self) -> Option<Vec<&'a str>> {
        let mut networks = self.names("networks");
        networks.extend(self.manifest.bridge.as_ref().map(|bridge| bridge.name.as_str()));
        // With a bridge that could not be read, any name may be the bridge's.
        (!self.unreadable("bridge") && !self.unreadable("networks")).then_some(networks)
    }

    /// What new VMs take is there.
    fn vmctl(&mut self) {
        let Some(vmctl) = &self.manifest.vmctl else { return };
        let place = self.at(&["vmctl"]);
        if let (Some(name), Some(at), Some(names)) = (&vmctl.network, place.get("network"), self.network_names()) {
            self.known(&at, name.as_str(), &names, "network", "bridge` or `networks");
        }
        if let (Some(name), Some(at)) = (&vmctl.pool, place.get("pool")) {
            self.known(&at, name.as_str(), &self.names("storage"), "pool", "storage");
        }
        if let (Some(user), Some(at)) = (&vmctl.user, place.get("user")) {
            self.user(user, &at);
        }
    }

    fn vms(&mut self) {
        let manifest = self.manifest;
        let networks = self.network_names();
        let pools = self.names("storage");
        for (name, vm) in &manifest.vms {
            let place = self.at(&["vms", name.as_str()]);
            self.vm_devices(vm, &place);
            self.memory(vm, &place);
            self.topology(vm, &place);
            self.pins(vm, &place);
            self.image(vm, &place);
            self.installed(vm, &place);
            self.guest(vm, &place);
            self.parts(vm, &place);
            self.windows(vm, &place);
            self.media(vm, &place);
            self.start_after(name.as_str(), vm, &place);
            if let (Some(nic), Some(at)) = (&vm.network, place.get("network")) {
                if let Some(networks) = &networks {
                    let word = at.get("name").unwrap_or_else(|| at.clone());
                    self.known(&word, nic.name.as_str(), networks, "network", "bridge` or `networks");
                }
                if let (Some(mac), Some(at)) = (nic.mac.filter(|mac| mac.0[0] & 1 == 1), at.get("mac")) {
                    let help = "take one that starts with `52:54:00:`, or leave `mac` out";
                    self.value(&at, format!("`{mac}` is the address of a group"), "its first byte is odd", Some(help));
                }
            }
            let disks = place.get("disks").map(|disks| disks.items()).unwrap_or_default();
            for (n, (disk, at)) in vm.disks.iter().zip(disks).enumerate() {
                if let Some(size) = disk.size.filter(|size| *size < ByteSize::from_mib(1)) {
                    let word = at.get("size").unwrap_or_else(|| at.clone());
                    self.value(&word, format!("a disk of {size} is too small"), "at least 1MiB", None);
                }
                self.given_disk(vm, disk, n, &at);
                if let (Some(pool), Some(at)) = (&disk.pool, at.get("pool")) {
                    self.known(&at, pool.as_str(), &pools, "pool", "storage");
                }
            }
            self.life(name.as_str(), vm, &place);
        }
    }

    /// A disk is made, or a device that is there.
    fn given_disk(&mut self, vm: &VmEntry, disk: &DiskEntry, n: usize, at: &Place<'a>) {
        let Some(path) = &disk.path else {
            if disk.size.is_none() && at.get("size").is_none() && at.get("path").is_none() {
                let help = "write `size: 20GiB`, or `path: /dev/disk/by-id/…` for a device that is there";
                self.value(at, "missing field `size`".to_owned(), "how large?", Some(help));
            }
            return;
        };
        let path_at = at.get("path").unwrap_or_else(|| at.clone());
        let stable = path.as_str().strip_prefix("/dev/disk/by-id/").is_some_and(|name| !name.contains('/'));
        if !stable {
            let help = "write its name below /dev/disk/by-id: other names may mean another disk after a boot";
            self.value(&path_at, format!("`{path}` is no stable name of a disk"), "may become another one", Some(help));
        }
        for field in ["size", "pool", "takeOver"] {
            if let Some(other) = at.get(field) {
                let message = format!("a device that is there has no `{field}`");
                let again = (&other, other.key_span(), "of disks that are made");
                self.twice((path_at.key_span(), "a device"), again, message, Some("keep one of them"));
            }
        }
        if let Some(image) = vm.image.as_ref().filter(|_| n == 0) {
            let message = format!("`image: {image}` would be written over what is on `{path}`");
            self.value(
                &path_at,
                message,
                "never formatted",
                Some("take `image` out, or give it a disk of a size first"),
            );
        }
    }

    fn vm_devices(&mut self, vm: &VmEntry, place: &Place<'a>) {
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
                } else if self.is_vgpu(device, &at) {
                } else if self.entries(section).get(name.as_str()).is_some_and(|e| e.usage == DeviceUse::Host) {
                    let usage = self.at(&[section, name, "use"]).span();
                    let again = (&at, at.span(), "given to a VM here");
                    let help = format!("write `use: vfio` for `{name}`, or take it out of this list");
                    let message = format!("{what} `{name}` stays with the host");
                    self.twice((usage, "kept for the host here"), again, message, Some(&help));
                }
            }
        }
    }

    /// What the guest sees adds up to what there is.
    fn topology(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let (Some(parts), Some(at)) = (vm.cpus.topology(), place.get("cpus")) else { return };
        let Some(count_at) = at.get("count") else { return };
        let ([sockets, cores, threads], count) = (parts, vm.cpus.count.0);
        let all = parts.iter().fold(1u64, |all, n| all.saturating_mul(u64::from(*n)));
        if all != u64::from(count) {
            let s = |n: u32, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
            let (sockets, cores) = (s(sockets, "socket"), s(cores, "core"));
            let message = format!("{sockets} of {cores} of {} are {all} processors, not {count}", s(threads, "thread"));
            self.value(&count_at, message, "does not add up", Some("leave `count` out, or correct one of them"));
        }
    }

    fn pins(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let (Some(pin), Some(at)) = (&vm.cpus.pin, place.get("cpus").and_then(|c| c.get("pin"))) else { return };
        let (count, on) = (vm.cpus.count.0, pin.numbers().len());
        if on < count as usize {
            let message = format!("{count} virtual processors are pinned to {on} of the host's");
            let help = "name at least as many, or write a smaller `count`";
            self.value(&at, message, "too few: they would wait for each other", Some(help));
        }
    }

    fn memory(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let Some(at) = place.get("memory").filter(|_| !place.lacks("memory")) else { return };
        let size_at = at.get("size").unwrap_or_else(|| at.clone());
        // A stand-in of the size says nothing.
        let size = Some(vm.memory.size).filter(|_| !at.lacks("size"));
        if let Some(size) = size.filter(|size| *size < ByteSize::from_mib(32)) {
            self.value(&size_at, format!("{size} of memory is too little"), "at least 32MiB", None);
        }
        let (Some(pages), Some(pages_at)) = (vm.memory.pages, at.get("pages")) else { return };
        if pages != ByteSize::from_mib(2) && pages != ByteSize::from_gib(1) {
            self.value(&pages_at, format!("there are no huge pages of {pages}"), "write `2MiB` or `1GiB`", None);
        } else if let Some(size) = size.filter(|size| !size.bytes().is_multiple_of(pages.bytes())) {
            let first = (pages_at.span(), "the size of its pages");
            let again = (&size_at, size_at.span(), "not a whole number of pages");
            self.twice(first, again, format!("{size} of memory is not a multiple of {pages}"), None);
        }
    }

    /// What cannot be with Windows 11.
    fn windows(&mut self, vm: &VmEntry, place: &Place<'a>) {
        if !vm.is_windows() {
            return;
        }
        if let Some(at) = place.get("firmware").filter(|_| vm.firmware != super::Firmware::UefiSecure) {
            let help = "write `firmware: uefi-secure`, or leave it out";
            self.value(&at, "Windows 11 wants secure boot".to_owned(), "not with this", Some(help));
        }
        for field in ["user", "cloudInit", "ubuntu"] {
            if let Some(at) = place.get(field) {
                let help = "take it out; what its Setup is to be told goes into `windows`";
                let message = format!("`{field}` is for guests with cloud-init, which Windows has not");
                self.wrong(&at, at.key_span(), message, "not in Windows", Some(help.to_owned()));
            }
        }
        if let Some(at) = place.get("network").and_then(|n| n.get("address")) {
            let help = "take it out, and have your DHCP server keep one for its `mac`, or set it in Windows";
            self.value(&at, "Windows is not told its address".to_owned(), "for guests with cloud-init", Some(help));
        }
        if let (Some(told), Some(at)) = (&vm.windows, place.get("windows")) {
            self.windows_setup(told, &at);
        }
        if let (Some(image), Some(at)) = (vm.image.as_ref().filter(|_| vm.windows.is_some()), place.get("windows")) {
            let message = format!("`image: {image}` is Windows set up already");
            self.wrong(&at, at.key_span(), message, "for Setup only", Some("keep one of them".to_owned()));
        }
    }

    fn windows_setup(&mut self, told: &WindowsEntry, at: &Place<'a>) {
        match (&told.user, &told.password_file) {
            (Some(user), None) if !at.lacks("passwordFile") => {
                let help = "write `passwordFile: /root/NAME.password`, a file of root's alone (0600) with the password in \
                            its one line; or leave `user` out, and Windows asks at its first boot";
                let user_at = at.get("user").unwrap_or_else(|| at.clone());
                self.value(&user_at, format!("`{user}` has no password"), "nobody gets a default one", Some(help));
            }
            (None, Some(_)) if !at.lacks("user") => {
                let file = at.get("passwordFile").unwrap_or_else(|| at.clone());
                let help = "write `user` beside it, or take it out";
                self.value(&file, "a password for nobody".to_owned(), "whose?", Some(help));
            }
            _ => {}
        }
        // Accounts that every Windows has; and names of users have at most 20 characters (New-LocalUser).
        let taken = ["administrator", "guest", "defaultaccount", "system", "none"];
        if let (Some(user), Some(at)) = (&told.user, at.get("user")) {
            if taken.contains(&user.as_str()) {
                let message = format!("`{user}` is an account of Windows' own");
                self.value(&at, message, "taken", Some("take another name"));
            } else if user.as_str().len() > 20 {
                let message = format!("`{user}` is too long for a user of Windows'");
                self.value(&at, message, "at most 20 characters", None);
            }
        }
    }

    /// CD-ROMs that are images: their place is known before they are fetched, by their digest.
    fn media(&mut self, vm: &VmEntry, place: &Place<'a>) {
        if let Some(at) = place.get("windows").filter(|_| !vm.is_windows() && !place.lacks("guest")) {
            let help = "write `guest: windows-11`, or take it out";
            self.wrong(&at, at.key_span(), "a guest that is no Windows".to_owned(), "of it", Some(help.to_owned()));
        }
        let names = self.names("images");
        let items = place.get("media").map(|list| list.items()).unwrap_or_default();
        for (medium, at) in vm.media.iter().zip(items) {
            let Some(name) = medium.image() else { continue };
            self.known(&at, name.as_str(), &names, "image", "images");
            let Some(entry) = self.manifest.images.get(&name) else { continue };
            let image_at = self.at(&["images", name.as_str()]);
            if (entry.url.is_none() && entry.path.is_none()) || (entry.sha256.is_none() && !image_at.lacks("sha256")) {
                let message = format!("`{name}` is no CD-ROM whose digest is given");
                let help = format!(
                    "write `images: {{ {name}: {{ url: …, sha256: … }} }}`; a file of this host can be named by its path here"
                );
                self.value(&at, message, "needs `url` or `path`, and `sha256`", Some(&help));
            }
        }
    }

    /// The VMs that have to run first are there, and none waits for itself.
    fn start_after(&mut self, name: &str, vm: &VmEntry, place: &Place<'a>) {
        let manifest = self.manifest;
        let names = self.names("vms");
        let items = place.get("startAfter").map(|list| list.items()).unwrap_or_default();
        for (other, at) in vm.start_after.iter().zip(items) {
            let other = other.as_str();
            self.known(&at, other, &names, "VM", "vms");
            if manifest.vms.get(other).is_some_and(|vm| vm.absent) {
                let message = format!("VM `{name}` would wait for `{other}`, which is to be taken away");
                self.value(&at, message, "`absent: true` there", Some("take it out of this list"));
                continue;
            }
            // Whether the way from there leads back here.
            let (mut seen, mut open) = (HashSet::new(), vec![other]);
            while let Some(one) = open.pop() {
                if seen.insert(one) {
                    open.extend(manifest.vms.get(one).iter().flat_map(|vm| &vm.start_after).map(|n| n.as_str()));
                }
            }
            if seen.contains(name) {
                let message = format!("VM `{name}` would wait for itself, by way of `{other}`");
                self.value(&at, message, "leads back here", Some("take one of them out of its list"));
            }
        }
    }

    fn life(&mut self, name: &str, vm: &VmEntry, place: &Place<'a>) {
        let span = |field: &str| place.get(field).map_or_else(|| place.key_span(), |at| at.span());
        let state_at = place.get("state").unwrap_or_else(|| place.clone());
        if vm.absent && vm.state == Some(VmState::Running) {
            let again = (&state_at, span("state"), "cannot run then");
            let message = format!("VM `{name}` is to be taken away and to run");
            self.twice((span("absent"), "taken away"), again, message, Some("keep `absent: true` or `state: running`"));
        }
        if !vm.absent && vm.start == StartWhen::Boot && vm.state == Some(VmState::Stopped) {
            let again = (&state_at, span("state"), "but has to be stopped");
            let message = format!("VM `{name}` starts with the host and has to be stopped");
            let help = "write `start: manual`, or leave `state` out";
            self.twice((span("start"), "starts with the host"), again, message, Some(help));
        }
    }

    fn shared_between_vms(&mut self) {
        let manifest = self.manifest;
        let mut owners: HashMap<(&str, String), (&str, Span)> = HashMap::new();
        let mut macs: HashMap<[u8; 6], (&str, Span)> = HashMap::new();
        let mut paths: HashMap<&str, (&str, Span)> = HashMap::new();
        let mut addresses: HashMap<String, (&str, Span)> = HashMap::new();
        for (vm_name, vm) in manifest.vms.iter().filter(|(_, vm)| !vm.absent) {
            let vm_name = vm_name.as_str();
            let place = self.at(&["vms", vm_name]);
            for ((section, what), list) in DEVICE_SECTIONS.into_iter().zip(given(vm)) {
                let places = place.get(section).map(|list| list.items()).unwrap_or_default();
                let mut own = HashSet::new();
                for (device, at) in list.iter().zip(places).filter(|_| runs(vm)) {
                    let name = device.to_string();
                    if !own.insert(name.clone()) {
                        continue;
                    }
                    if let Some((other, first)) = owners.get(&(section, name.clone())) {
                        let message = format!("{what} `{name}` is in VMs `{other}` and `{vm_name}`, which both run");
                        let label = format!("in `{other}`");
                        let help = "a device is in one running VM at a time: write `start: manual` for one of them";
                        let again = (&at, at.span(), "and here");
                        self.twice((first.clone(), &label), again, message, Some(help));
                    } else {
                        owners.insert((section, name), (vm_name, at.span()));
                    }
                }
            }
            let disks = place.get("disks").map(|disks| disks.items()).unwrap_or_default();
            for (path, at) in vm.disks.iter().zip(disks).filter_map(|(d, at)| Some((d.path.as_ref()?, at))) {
                if let Some((other, first)) = paths.get(path.as_str()) {
                    let message = format!("`{path}` is a disk of VMs `{other}` and `{vm_name}`");
                    let help = "two guests that write to one disk destroy it: give it to one of them";
                    self.twice((first.clone(), "first given here"), (&at, at.span(), "and here"), message, Some(help));
                } else {
                    paths.insert(path.as_str(), (vm_name, at.span()));
                }
            }
            let address_at = place.get("network").and_then(|network| network.get("address"));
            let address = vm.network.as_ref().and_then(|nic| nic.address.as_ref());
            if let (Some(address), Some(at)) = (address, address_at) {
                let ip = address.as_str().split('/').next().unwrap_or_default();
                let ip = ip.parse().map_or(ip.to_owned(), |ip: std::net::IpAddr| ip.to_string());
                if let Some((other, first)) = addresses.get(&ip) {
                    let message = format!("VMs `{other}` and `{vm_name}` have the same address `{ip}`");
                    let again = (&at, at.span(), "and here");
                    self.twice((first.clone(), "first given here"), again, message, Some("give each its own"));
                } else {
                    addresses.insert(ip, (vm_name, at.span()));
                }
            }
            let mac_at = place.get("network").and_then(|network| network.get("mac"));
            if let (Some(mac), Some(at)) = (vm.network.as_ref().and_then(|nic| nic.mac), mac_at) {
                if let Some((other, first)) = macs.get(&mac.0) {
                    let message = format!("VMs `{other}` and `{vm_name}` have the same address `{mac}`");
                    let again = (&at, at.span(), "and here");
                    let help = "leave `mac` out for one that is made from host and VM name";
                    self.twice((first.clone(), "first given here"), again, message, Some(help));
                } else {
                    macs.insert(mac.0, (vm_name, at.span()));
                }
            }
        }
    }
}

/// Whether a built-in image is the medium of an installer.
fn installs(name: &str) -> bool {
    image::builtin(name).is_some_and(|of| of.installs)
}

/// The GPUs and other devices of a VM, as the sections have them.
fn given(vm: &VmEntry) -> [Vec<GivenDevice>; 2] {
    [vm.gpus.clone(), vm.devices.clone()]
}

/// Whether the manifest makes a VM run.
fn runs(vm: &VmEntry) -> bool {
    !vm.absent
        && vm.state != Some(VmState::Stopped)
        && (vm.start == StartWhen::Boot || vm.state == Some(VmState::Running))
}

/// Why an argument of the kernel is refused, and what to do instead.
fn refused_arg(arg: &str) -> Option<(&'static str, &'static str)> {
    let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
    let off = value.split(',').any(|word| word == "off");
    match name {
        "intel_iommu" | "amd_iommu" | "iommu" if off => {
            Some(("turns the IOMMU off", "take it out: without the IOMMU no device can be given to a VM"))
        }
        "amd_iommu" if value == "on" => Some((
            "not an option of the kernel",
            "take it out: AMD's IOMMU is on by default where the firmware has it on",
        )),
        "vfio-pci.ids" | "vfio_pci.ids" => Some((
            "takes every card of that id, also the host's",
            "name the device under `gpus` or `devices` with `use: vfio`: it is bound by its address",
        )),
        "pcie_acs_override" => Some((
            "breaks the isolation between devices",
            "take it out: stock kernels ignore it, and a patched one only claims an isolation that the hardware lacks",
        )),
        _ => None,
    }
}
