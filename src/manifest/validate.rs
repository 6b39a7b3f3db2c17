//! What the types cannot say: names that lead nowhere, devices with two owners, values that contradict each other. Each
//! problem is shown under the wrong word.
//!
//! A manifest that has problems already is checked too, without the parts at fault. So the tree is asked which names
//! there are: a GPU whose entry has a typo is not also an unknown name.

mod between_vms;
mod devices;
mod given;
mod guest;
mod host;
mod images;
mod vms;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::load::stays_inside;
use super::yaml_de::closest;
use super::yaml_tree::{Node, Place, Problem, Span};
use super::{DeviceEntry, GivenDevice, Manifest, VmEntry};
use crate::types::ResourceName;

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

    /// A thing of a list that is there twice; each is given as the message names it.
    fn once(&mut self, things: impl IntoIterator<Item = (String, Place<'a>)>) {
        let mut seen: HashMap<String, Span> = HashMap::new();
        for (what, at) in things {
            if let Some(first) = seen.get(&what) {
                let again = (&at, at.span(), "given again here");
                self.twice((first.clone(), "first given here"), again, format!("{what} is given twice"), None);
            } else {
                seen.insert(what, at.span());
            }
        }
    }

    /// A file of a person's has to lie beside the manifest: a run takes what is there along.
    fn beside(&mut self, path: &Path, at: &Place<'_>) {
        if !stays_inside(path) {
            let message = format!("`{}` does not lie beside the manifest", path.display());
            let help = "write a path below the manifest's folder, relative and without `..`";
            self.value(at, message, "leads elsewhere", Some(help));
        }
    }

    fn version(&mut self) {
        if self.manifest.version != 1 {
            let message = format!("version {} is not known", self.manifest.version);
            self.value(&self.at(&["version"]), message, "this gpuvm reads version 1", Some("write `version: 1`"));
        }
    }

    fn entries(&self, section: &str) -> &'a BTreeMap<ResourceName, DeviceEntry> {
        if section == "gpus" { &self.manifest.gpus } else { &self.manifest.devices }
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
}

/// The GPUs and other devices of a VM, as the sections have them.
fn given(vm: &VmEntry) -> [&[GivenDevice]; 2] {
    [&vm.gpus, &vm.devices]
}
