//! Rules for the host's own sections: packages, files, kernel arguments, bridge, storage, drivers, what new VMs take.

use std::collections::HashMap;
use std::path::{Component, Path};

use super::Checks;
use crate::manifest::yaml_tree::Span;
use crate::manifest::{ContainerRuntime, PackageSource, Uplink};

impl<'a> Checks<'a> {
    pub(super) fn packages(&mut self) {
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

    pub(super) fn files(&mut self) {
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
                if let Some(path) = path {
                    self.beside(path, &self.at(&["files", name.as_str(), field]));
                }
            }
        }
    }

    pub(super) fn kernel_args(&mut self) {
        let given = self.manifest.kernel_args.iter().map(|arg| arg.as_str());
        let args: Vec<_> = given.zip(self.at(&["kernelArgs"]).items()).collect();
        self.once(args.iter().map(|(text, place)| (format!("`{text}`"), place.clone())));
        for (text, place) in args {
            if let Some((reason, help)) = refused_arg(text) {
                self.value(&place, format!("`{text}` is refused"), reason, Some(help));
            }
        }
    }

    pub(super) fn networks(&mut self) {
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

    pub(super) fn paths(&mut self) {
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

    fn absolute(&mut self, path: &Path, at: &[&str]) {
        let fine = path.is_absolute()
            && path.components().all(|part| !matches!(part, Component::ParentDir))
            && !path.to_string_lossy().chars().any(char::is_control);
        if !fine {
            let message = format!("`{}` is not an absolute path without `..`", path.display());
            self.value(&self.at(at), message, "write the whole path, from `/`", None);
        }
    }

    pub(super) fn drivers(&mut self) {
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
        let mut seen: HashMap<ContainerRuntime, Span> = HashMap::new();
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
        let PackageSource::Repository(repository) = &nvidia.source else { return };
        let source = self.at(&["drivers", "nvidia", "source"]);
        if !source.lacks("key") {
            self.beside(&repository.key, &self.at(&["drivers", "nvidia", "source", "key"]));
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

    /// What new VMs take is there.
    pub(super) fn vmctl(&mut self) {
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
