//! Rules for one VM: processors, memory, disks, network card, its life, and the VMs that it waits for.

use std::collections::HashSet;

use super::Checks;
use crate::manifest::yaml_tree::Place;
use crate::manifest::{DiskEntry, StartWhen, VmEntry, VmState};
use crate::types::{ByteSize, xml_fragment};

impl<'a> Checks<'a> {
    pub(super) fn vms(&mut self) {
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

    /// Devices of a VM's that are one element each, and elements of a person's own.
    fn parts(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let items = |name: &str| place.get(name).map(|list| list.items()).unwrap_or_default();
        let usb = vm.usb.iter().map(|id| format!("USB device {id}")).zip(items("usb"));
        let folders = vm.folders.iter().map(|f| format!("folder `{}`", f.tag)).zip(items("folders"));
        self.once(usb.chain(folders));
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
                Some(path) => self.beside(path, &word("add")),
                None => {
                    if let Err(why) = xml_fragment(&entry.add) {
                        let help = "write one whole element, or `file:NAME` beside the manifest";
                        let message = format!("it cannot go into a definition: {why}");
                        self.value(&word("add"), message, "this element", Some(help));
                    }
                }
            }
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
            let help = "take `image` out, or give it a disk of a size first";
            self.value(&path_at, message, "never formatted", Some(help));
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
}
