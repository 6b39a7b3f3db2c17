//! What two VMs cannot both have: a device while both run, a disk, an address.

use std::collections::{HashMap, HashSet};

use super::{Checks, DEVICE_SECTIONS, given};
use crate::manifest::yaml_tree::Span;
use crate::manifest::{StartWhen, VmEntry, VmState};

impl<'a> Checks<'a> {
    pub(super) fn shared_between_vms(&mut self) {
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

/// Whether the manifest makes a VM run.
fn runs(vm: &VmEntry) -> bool {
    !vm.absent
        && vm.state != Some(VmState::Stopped)
        && (vm.start == StartWhen::Boot || vm.state == Some(VmState::Running))
}
