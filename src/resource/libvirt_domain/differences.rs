//! What of a VM is not as it is wanted: in its stored definition, and in the one that it runs with. What others put there
//! is not looked at; what was ours and is no longer wanted is.

use std::path::{Path, PathBuf};

use super::read::is_disk;
use super::{Disk, DiskOptions, Extra, LibvirtDomain, Nic, PassedSlot, Pins, Projection, Topology, project};
use crate::host::Domain;
use crate::plan::{Action, Change, Diff, FieldDiff, Risk, WaitFor};
use crate::types::{ByteSize, MacAddress, PciAddress};

impl LibvirtDomain {
    /// What differs from a definition, without what is not in a definition (autostart, running).
    pub(super) fn differences(&self, last: Option<&Self>, is: &Projection) -> Vec<FieldDiff> {
        let mut all = Vec::new();
        let mut field = |name: &str, before: Option<String>, after: Option<String>| {
            if before != after {
                all.push(FieldDiff::new(name, before, after));
            }
        };
        field("accel", Some(is.accel.clone()), Some(self.accel.name().to_owned()));
        field("cpus", Some(is.cpus.to_string()), Some(self.cpus.to_string()));
        if self.pins.is_some() || last.is_some_and(|l| l.pins.is_some()) {
            let text = |pins: Option<&Pins>| pins.map(Pins::text).filter(|t| !t.is_empty());
            field("pinned", text(Some(&is.pins)), text(self.pins.as_ref()));
        }
        if self.topology.is_some() || last.is_some_and(|l| l.topology.is_some()) {
            field("cpu topology", is.topology.clone(), self.topology.as_ref().map(Topology::text));
        }
        field("memory", Some(is.memory.to_string()), Some(self.memory.to_string()));
        if self.huge_pages.is_some() || last.is_some_and(|l| l.huge_pages.is_some()) {
            let size = |pages: Option<ByteSize>| pages.map(|p| p.to_string());
            field("memory pages", size(is.huge_pages), size(self.huge_pages));
        }
        if self.boot.is_some() || last.is_some_and(|l| l.boot.is_some()) {
            let path = |p: Option<&PathBuf>| p.map(|p| p.display().to_string());
            let want = self.boot.as_ref();
            field("boot kernel", is.kernel.clone(), path(want.map(|b| &b.kernel)));
            field("boot initrd", is.initrd.clone(), path(want.and_then(|b| b.initrd.as_ref())));
            field("boot cmdline", is.cmdline.clone(), want.and_then(|b| b.cmdline.clone()));
        }
        let name = |disk: &Disk| format!("disk {}", disk.shown());
        for (disk, options) in self.disks.iter().filter_map(|d| Some((d, is.options_of(d)?))) {
            for (part, wanted) in disk.options.wanted(self.options_before(disk, last)) {
                field(&format!("{} {part}", name(disk)), options.part(part), wanted);
            }
        }
        for disk in self.disks.iter().filter(|d| !is.has_disk(d)) {
            field(&name(disk), None, Some("attached".to_owned()));
        }
        for disk in self.disks_to_drop(last).filter(|d| is.has_disk(d)) {
            field(&name(disk), Some("attached".to_owned()), None);
        }
        let seed = |path: &Path| path.display().to_string();
        for path in self.seed.iter().filter(|s| !is.has_cdrom(s)) {
            field("seed", None, Some(seed(path)));
        }
        for path in self.seed_to_drop(last).filter(|s| is.has_cdrom(s)) {
            field("seed", Some(seed(path)), None);
        }
        let medium = |path: &Path| format!("medium {}", path.display());
        for path in self.media.iter().filter(|m| !is.has_cdrom(m)) {
            field(&medium(path), None, Some("attached".to_owned()));
        }
        for path in self.media_to_drop(last).filter(|m| is.has_cdrom(m)) {
            field(&medium(path), Some("attached".to_owned()), None);
        }
        for extra in &self.extras {
            field(&extra.key(), is.extras.get(&extra.key()).cloned(), Some(extra.value()));
        }
        for extra in self.extras_to_drop(last) {
            field(&extra.key(), is.extras.get(&extra.key()).cloned(), None);
        }
        if let Some(nic) = self.nic.as_ref().filter(|_| self.cards_of_another_address(last, is).is_empty()) {
            let on = nic.on.name();
            field(&format!("nic {}", nic.mac), is.nics.get(&nic.mac).cloned(), Some(on));
        }
        if let (Some(nic), [other]) = (&self.nic, &self.cards_of_another_address(last, is)[..]) {
            let on = nic.on.name();
            field(&format!("address of the nic on {on}"), Some(other.to_string()), Some(nic.mac.to_string()));
        }
        if let Some(gone) = self.nic_to_drop(last).filter(|n| is.nics.contains_key(&n.mac)) {
            field(&format!("nic {}", gone.mac), is.nics.get(&gone.mac).cloned(), None);
        }
        for address in self.slots.iter().flat_map(|s| &s.functions).filter(|a| !is.functions.contains(a)) {
            field(&format!("device {address}"), None, Some("passed".to_owned()));
        }
        for slot in self.slots_to_drop(last) {
            let kept = |a: &PciAddress| self.slots.iter().any(|s| s.has(*a));
            for address in is.functions.iter().filter(|a| slot.has(**a) && !kept(a)) {
                field(&format!("device {address}"), Some("passed".to_owned()), None);
            }
        }
        all
    }

    /// Disks that were ours and are no longer wanted.
    pub(super) fn disks_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a Disk> {
        last.into_iter().flat_map(|l| &l.disks).filter(|d| self.disks.iter().all(|own| own.path != d.path))
    }

    /// What was said of a disk that it has had.
    pub(super) fn options_before<'a>(&self, disk: &Disk, last: Option<&'a Self>) -> Option<&'a DiskOptions> {
        last?.disks.iter().find(|d| d.path == disk.path).map(|d| &d.options)
    }

    /// Parts that were ours and are no longer wanted.
    pub(super) fn extras_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a Extra> {
        let kept = |extra: &&Extra| self.extras.iter().all(|e| e.key() != extra.key());
        last.into_iter().flat_map(|l| &l.extras).filter(kept)
    }

    /// The seed that was ours and is no longer wanted.
    pub(super) fn seed_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a PathBuf> {
        last.and_then(|l| l.seed.as_ref()).into_iter().filter(|s| self.seed.as_ref() != Some(s))
    }

    /// CD-ROMs that were ours and are no longer wanted.
    pub(super) fn media_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a PathBuf> {
        last.into_iter().flat_map(|l| &l.media).filter(|m| !self.media.contains(m))
    }

    /// The card that was ours and is no longer wanted, or has another address now.
    pub(super) fn nic_to_drop<'a>(&'a self, last: Option<&'a Self>) -> Option<&'a Nic> {
        last?.nic.as_ref().filter(|l| self.nic.as_ref().is_none_or(|n| n.mac != l.mac))
    }

    /// Where the card that is wanted was ours and is not there: the addresses of the cards on the same bridge or network. One
    /// of them alone is that card, with an address that somebody gave it.
    pub(super) fn cards_of_another_address(&self, last: Option<&Self>, is: &Projection) -> Vec<MacAddress> {
        let ours = |nic: &&Nic| last.and_then(|l| l.nic.as_ref()).is_some_and(|l| l.mac == nic.mac && l.on == nic.on);
        let Some(nic) = self.nic.as_ref().filter(ours).filter(|nic| !is.nics.contains_key(&nic.mac)) else {
            return Vec::new();
        };
        is.nics.iter().filter(|(_, on)| **on == nic.on.name()).map(|(mac, _)| *mac).collect()
    }

    /// Slots that were ours and are no longer wanted.
    pub(super) fn slots_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a PassedSlot> + 'a {
        last.into_iter().flat_map(|l| &l.slots).filter(|slot| self.slots.iter().all(|s| !s.is(slot)))
    }

    /// The stored definition is as wanted, but an older one runs.
    pub(super) fn waits_for_restart(&self, domain: &Domain, stored: &Projection) -> Option<Diff> {
        let live = domain.live_xml.as_deref().filter(|_| domain.active)?;
        let live = match project(live) {
            Ok(live) => live,
            Err(why) => return Some(Diff::Unknown { why: format!("its running definition cannot be read: {why}") }),
        };
        let mut fields = stored.differs_from_running(&live);
        let of_disk = |f: &FieldDiff| f.field.contains(" of disk ");
        fields.retain(|f| (f.before.is_some() && !of_disk(f)) || !self.added_by_others(stored, &f.field));
        if fields.is_empty() {
            return None;
        }
        let names = fields.iter().map(|f| f.field.as_str()).collect::<Vec<_>>().join(", ");
        let mut promise = Change::new(Action::Change, names.clone());
        promise.fields = fields;
        promise.risks.insert(Risk::GuestRestart);
        Some(Diff::Waits {
            on: WaitFor::GuestRestart,
            why: format!("{names}: stored, and in force once it is shut down and started again (not rebooted)"),
            promise,
        })
    }

    /// Whether this part of the stored definition is none that the manifest asks for: what people add for the next start
    /// is theirs to wait for.
    fn added_by_others(&self, stored: &Projection, field: &str) -> bool {
        if let Some((part, source)) = field.split_once(" of disk ") {
            return !self.disks.iter().any(|d| is_disk(source, d) && d.options.part(part).is_some());
        }
        match field.split_once(' ') {
            Some(("disk", source)) => !self.disks.iter().any(|d| is_disk(source, d)),
            Some(("nic", mac)) => self.nic.as_ref().is_none_or(|n| n.mac.to_string() != mac),
            Some(("device", address)) => {
                !self.slots.iter().flat_map(|s| &s.functions).any(|a| a.to_string() == address)
            }
            _ => stored.extras.contains_key(field) && !self.extras.iter().any(|e| e.key() == field),
        }
    }
}
