//! A VM: its definition at libvirt, whether it starts with the host, and whether it runs.
//!
//! A new one comes from the writer. One that is there and ours is edited in place: the managed fields are compared, and
//! only what differs is spliced into its inactive definition; every other byte stays. One that is not ours is never
//! touched. A running VM is never powered off: its stored definition changes, and the rest waits for its next start.

mod adopt;
mod clone;
mod drives;
mod extras;
mod given;
mod install;
mod others;
mod plug;
mod read;
mod splice;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use clone::{Clone, as_clone, cards};
pub use drives::{Drive, Source, drives, with_file_moved, with_sources};
pub use extras::{Display, Extra};
pub use given::user_of;
pub use install::{Install, with_medium};
pub use others::others_with_its_devices;
pub use plug::{passed_function, plugs, unplugs, with_slot, without_slot};
use read::is_disk;
pub use read::{Projection, disk_files, has_disk, is_marked, managed_functions, nvram, project, raw_and_others, taps};
pub use splice::{with_mark, with_passwords, with_uuid, without_private_parts};
pub use write::MARK;

use super::Resource;
use super::chains::chain_of;
use super::libvirt::{Libvirt, ask, known};
use crate::facts::HostFacts;
use crate::host::{Answer, Domain, HostError, Probe, Virtualisation};
use crate::image::Cached;
use crate::plan::{Action, Change, Diff, FieldDiff, Risk, Step, TextEdit, WaitFor};
use crate::types::{
    ByteSize, DomainName, InterfaceName, MacAddress, PciAddress, PciSlot, ResourceName, cpu_list, cpu_list_text,
};

/// A VM as it is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtDomain {
    /// Its name.
    pub name: DomainName,
    /// Virtual processors.
    pub cpus: u32,
    /// As the guest sees them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// The host's processors that they run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pins: Option<Pins>,
    /// Where it is made, when it is made: near its GPU. In a definition that is there it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<Near>,
    /// Memory.
    pub memory: ByteSize,
    /// The size of the huge pages that its memory is taken from.
    pub huge_pages: Option<ByteSize>,
    /// Disks, in order.
    pub disks: Vec<Disk>,
    /// Its network.
    pub nic: Option<Nic>,
    /// Passed slots, each as one device of the guest.
    pub slots: Vec<PassedSlot>,
    /// The image with what its guest is told at its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<PathBuf>,
    /// The user that its seed makes, who gets in by ssh. It is put into the mark when the VM is made, so that `vm ssh`
    /// knows it whoever asks, and stays as it is: a guest takes its seed up once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// What is installed on its first disk when it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install: Option<Install>,
    /// Parts that are one element each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extras: Vec<Extra>,
    /// What the firmware tells the guest of the machine, by libvirt's names; put in when it is made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub smbios: BTreeMap<String, String>,
    /// A person's own elements, each with the place that it goes to; put in when it is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additions: Vec<Addition>,
    /// Its machine is made for Windows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub windows: bool,
    /// Images of CD-ROMs in its drives, beside the seed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media: Vec<PathBuf>,
    /// What it boots with.
    pub firmware: Firmware,
    /// A kernel of the host's that it boots.
    pub boot: Option<Kernel>,
    /// Hardware virtualisation or emulation.
    pub accel: Accel,
    /// What is emulated.
    pub arch: Arch,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Start it once, when it is made.
    pub start_when_made: bool,
    /// Whether it has to run; `None` leaves that to people.
    pub running: Option<bool>,
    /// Take its definition away; its disks stay.
    pub absent: bool,
    /// In the ledger only: making it did not come to its end, so its first start is still owed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub start_owed: bool,
    /// In the ledger only: its system is still to be installed, as far as is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub install_owed: bool,
}

/// Which of the host's processors what runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pins {
    /// Each virtual processor, with a list of the host's.
    pub cpus: BTreeMap<u32, String>,
    /// QEMU's own work.
    pub emulator: Option<String>,
}

impl Pins {
    /// In a line.
    fn text(&self) -> String {
        let mut parts: Vec<String> = self.cpus.iter().map(|(cpu, on)| format!("{cpu}→{on}")).collect();
        parts.extend(self.emulator.iter().map(|on| format!("emulator→{on}")));
        parts.join(" ")
    }
}

/// Virtual processors as a guest sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores of each.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
    /// AMD's processors tell a guest of threads by a feature that QEMU leaves out of them unless it is asked for. Put in when
    /// the VM is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub topoext: bool,
}

impl Topology {
    /// As it is compared and shown.
    fn text(&self) -> String {
        read::topology_text([self.sockets, 1, 1, self.cores, self.threads])
    }
}

/// The NUMA node that a VM is put on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Near {
    /// Its number.
    pub node: u32,
    /// Its processors, as a list.
    pub cpus: String,
}

/// A disk of a VM: a volume, or a block device of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// The pool; none where it is a device of the host's, with a person's data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<ResourceName>,
    /// The volume in it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub volume: String,
    /// Whether it is a block device, and no file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub block: bool,
    /// Where that is. The definition names the file: the confinement of libvirt's that lets QEMU at a disk cannot look
    /// a pool up.
    pub path: PathBuf,
    /// How the guest has it and the host keeps it.
    #[serde(flatten)]
    pub options: DiskOptions,
}

impl Disk {
    /// As it is shown.
    fn shown(&self) -> String {
        match &self.pool {
            Some(pool) => format!("{pool}/{}", self.volume),
            None => self.path.display().to_string(),
        }
    }
}

/// What of a disk is managed only where it is said, by libvirt's words (formatdomain, "Hard drives, floppy disks, CDROMs").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskOptions {
    /// `virtio`, `scsi`, `sata`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// `none`, `writeback`, `writethrough`, `directsync`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// `unmap`, `ignore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<String>,
}

impl DiskOptions {
    /// The bus, said or not.
    pub fn bus(&self) -> &str {
        self.bus.as_deref().unwrap_or("virtio")
    }

    /// Each by its name, as it is to be where that is managed: by the manifest, or by a former one, which is taken back.
    fn wanted(&self, last: Option<&Self>) -> Vec<(&'static str, Option<String>)> {
        let parts = |o: &Self| [o.bus.clone(), o.cache.clone(), o.discard.clone()];
        let before = last.map(parts).unwrap_or_default();
        let usual = [Some("virtio"), None, Some("unmap")].map(|v| v.map(str::to_owned));
        let named = Self::PARTS.into_iter().zip(parts(self)).zip(before).zip(usual);
        let managed = named.filter(|(((_, wanted), before), _)| wanted.is_some() || before.is_some());
        managed.map(|(((name, wanted), _), usual)| (name, wanted.or(usual))).collect()
    }
}

/// The network card of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// What it is on.
    pub on: NicOn,
    /// Its address.
    pub mac: MacAddress,
}

/// What a network card is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NicOn {
    /// A bridge of the host's.
    Bridge(InterfaceName),
    /// A network of libvirt's.
    Network(ResourceName),
}

/// An element of a person's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addition {
    /// The element that it goes into: `/domain/devices`.
    pub at: String,
    /// The element.
    pub xml: String,
}

/// A slot that is passed to the VM as a whole, or a virtual function out of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PassedSlot {
    /// The slot.
    pub slot: PciSlot,
    /// Its functions.
    pub functions: Vec<PciAddress>,
    /// What of the slot is passed is these functions alone: what else is in it is another's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
}

impl PassedSlot {
    /// A slot, of which no function stays behind.
    pub fn whole(slot: PciSlot, functions: Vec<PciAddress>) -> Self {
        Self { slot, functions, alone: false }
    }
    /// A virtual function.
    pub fn virtual_function(address: PciAddress) -> Self {
        Self { slot: address.slot, functions: vec![address], alone: true }
    }
    /// Whether a function is part of it.
    pub fn has(&self, address: PciAddress) -> bool {
        address.slot == self.slot && (!self.alone || self.functions.contains(&address))
    }
    /// Whether the other one is the same, with more or fewer functions.
    fn is(&self, other: &Self) -> bool {
        self.slot == other.slot && self.alone == other.alone && (!self.alone || self.functions == other.functions)
    }
}

impl std::fmt::Display for PassedSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.functions.first().filter(|_| self.alone) {
            Some(function) => function.fmt(f),
            None => self.slot.fmt(f),
        }
    }
}

/// What a VM boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Firmware {
    /// UEFI, without secure boot.
    Uefi,
    /// UEFI with secure boot, and the usual keys for it.
    UefiSecure,
    /// The machine's own BIOS.
    Bios,
}

impl Firmware {
    /// As a manifest has it.
    pub const fn name(self) -> &'static str {
        match self {
            Firmware::Uefi => "uefi",
            Firmware::UefiSecure => "uefi-secure",
            Firmware::Bios => "bios",
        }
    }
}

/// A kernel of the host's that a VM boots directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: Option<PathBuf>,
    /// The command line.
    pub cmdline: Option<String>,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accel {
    /// libvirt's name for it: the `type` of a domain.
    pub const fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "qemu",
        }
    }
}

/// The machine that is emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Arch {
    /// 64-bit PC.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl LibvirtDomain {
    fn define(&self) -> Step {
        Step::DefineDomain { name: self.name.clone(), xml: write::new(self), autostart: self.autostart }
    }
    fn start(&self) -> Step {
        Step::StartDomain { name: self.name.clone() }
    }

    /// What a new one is, in a line.
    fn summary(&self) -> String {
        let mut parts = vec![
            format!("{} CPU{}", self.cpus, if self.cpus == 1 { "" } else { "s" }),
            match self.huge_pages {
                Some(pages) => format!("{} in pages of {pages}", self.memory),
                None => self.memory.to_string(),
            },
        ];
        if let Some(pins) = self.pins.as_ref().filter(|p| !p.cpus.is_empty()) {
            let on = pins.cpus.values().flat_map(|on| cpu_list(on)).collect();
            parts.push(format!("pinned to {}", cpu_list_text(&on)));
        }
        if self.accel == Accel::Tcg {
            parts.push("emulated".to_owned());
        }
        if !self.disks.is_empty() {
            parts.push(format!("{} disk{}", self.disks.len(), if self.disks.len() == 1 { "" } else { "s" }));
        }
        parts.extend(self.nic.as_ref().map(|nic| match &nic.on {
            NicOn::Bridge(name) => format!("on {name}"),
            NicOn::Network(name) => format!("on network {name}"),
        }));
        parts.extend(self.slots.iter().map(|s| format!("gets {s}")));
        parts.extend(self.extras.iter().map(|extra| match extra {
            Extra::Tpm => "TPM".to_owned(),
            Extra::Display(_) => extra.value(),
            Extra::Usb(id) => format!("USB {id}"),
            Extra::Mediated(uuid) => format!("gets vGPU {uuid}"),
            Extra::Folder { path, .. } => format!("folder {}", path.display()),
        }));
        parts.join(", ")
    }

    fn creation(&self, state: &DomainState) -> Change {
        let mut change = Change::new(Action::Create, self.summary());
        if let Some(near) = &self.near {
            change.notes.push(format!("on NUMA node {}, where its GPU is (CPUs {})", near.node, near.cpus));
        }
        if self.autostart {
            change.notes.push("starts with the host".to_owned());
        }
        change.steps.push(self.define());
        self.install_when_made(state, &mut change);
        if (self.start_when_made || self.running == Some(true)) && self.running != Some(false) {
            change.steps.push(self.start());
        }
        change
    }

    /// What differs from a definition, without what is not in a definition (autostart, running).
    fn differences(&self, last: Option<&Self>, is: &Projection) -> Vec<FieldDiff> {
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
    fn disks_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a Disk> {
        last.into_iter().flat_map(|l| &l.disks).filter(|d| self.disks.iter().all(|own| own.path != d.path))
    }
    /// What was said of a disk that it has had.
    fn options_before<'a>(&self, disk: &Disk, last: Option<&'a Self>) -> Option<&'a DiskOptions> {
        last?.disks.iter().find(|d| d.path == disk.path).map(|d| &d.options)
    }
    /// Parts that were ours and are no longer wanted.
    fn extras_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a Extra> {
        let kept = |extra: &&Extra| self.extras.iter().all(|e| e.key() != extra.key());
        last.into_iter().flat_map(|l| &l.extras).filter(kept)
    }
    /// The seed that was ours and is no longer wanted.
    fn seed_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a PathBuf> {
        last.and_then(|l| l.seed.as_ref()).into_iter().filter(|s| self.seed.as_ref() != Some(s))
    }
    /// CD-ROMs that were ours and are no longer wanted.
    fn media_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a PathBuf> {
        last.into_iter().flat_map(|l| &l.media).filter(|m| !self.media.contains(m))
    }
    /// The card that was ours and is no longer wanted, or has another address now.
    fn nic_to_drop<'a>(&'a self, last: Option<&'a Self>) -> Option<&'a Nic> {
        last?.nic.as_ref().filter(|l| self.nic.as_ref().is_none_or(|n| n.mac != l.mac))
    }
    /// Where the card that is wanted was ours and is not there: the addresses of the cards on the same bridge or network. One
    /// of them alone is that card, with an address that somebody gave it.
    fn cards_of_another_address(&self, last: Option<&Self>, is: &Projection) -> Vec<MacAddress> {
        let ours = |nic: &&Nic| last.and_then(|l| l.nic.as_ref()).is_some_and(|l| l.mac == nic.mac && l.on == nic.on);
        let Some(nic) = self.nic.as_ref().filter(ours).filter(|nic| !is.nics.contains_key(&nic.mac)) else {
            return Vec::new();
        };
        is.nics.iter().filter(|(_, on)| **on == nic.on.name()).map(|(mac, _)| *mac).collect()
    }
    /// Slots that were ours and are no longer wanted.
    fn slots_to_drop<'a>(&'a self, last: Option<&'a Self>) -> impl Iterator<Item = &'a PassedSlot> + 'a {
        last.into_iter().flat_map(|l| &l.slots).filter(|slot| self.slots.iter().all(|s| !s.is(slot)))
    }

    /// One that libvirt has.
    fn compare(&self, domain: &Domain, state: &DomainState, known: &Virtualisation, last: Option<&Self>) -> Diff {
        let name = &self.name;
        if !domain.persistent {
            return Diff::Blocked {
                why: "a VM of this name runs without a stored definition (a transient one)".to_owned(),
                help: format!("end it (virsh shutdown {name}), or name this one differently"),
            };
        }
        let mut is = match project(&domain.inactive_xml) {
            Ok(is) => is,
            Err(why) => return Diff::Unknown { why: format!("its definition cannot be read: {why}") },
        };
        is.go_on_in(&state.chains);
        if !is.marked {
            return Diff::Blocked {
                why: "a VM of this name was not made by gpuvm; it is left as it is".to_owned(),
                help: format!("name this one differently, or hand that one over: gpuvm adopt libvirt-domain/{name}"),
            };
        }
        if self.absent {
            return self.undefine(domain, known);
        }
        // Whether it is UEFI at all, the definition says; whether with secure boot, what it was made as.
        let uefi = |firmware| firmware != Firmware::Bios;
        let other = |l: &&Self| l.firmware != self.firmware && uefi(l.firmware) && uefi(self.firmware);
        if let Some(last) = last.filter(other) {
            return Diff::Blocked {
                why: format!(
                    "it was made with firmware `{}`, and the manifest says `{}`",
                    last.firmware.name(),
                    self.firmware.name()
                ),
                help: format!("its system was installed for the former: write `firmware: {}`", last.firmware.name()),
            };
        }
        if let Some(last) = last.filter(|l| l.windows != self.windows) {
            let was = if last.windows { "for Windows" } else { "for any guest" };
            return Diff::Blocked {
                why: format!("its machine was made {was}, and the manifest says otherwise"),
                help: "correct `guest`, or make a new VM: its system was installed on that machine".to_owned(),
            };
        }
        if let Some(disk) = self.disks_to_drop(last).find(|d| is.has_disk(d) && !is.writes_to(d)) {
            return Diff::Blocked {
                why: format!("its disk `{}` is to be taken out, and lies under snapshots", disk.shown()),
                help: format!("take those away first: gpuvm vm snapshot list {name}"),
            };
        }
        if let (Some(nic), [first, .., _]) = (&self.nic, &self.cards_of_another_address(last, &is)[..]) {
            let on = nic.on.name();
            return Diff::Blocked {
                why: format!("its card {} is not there, and which of those on {on} it was cannot be told", nic.mac),
                help: format!(
                    "give it its address again (virsh edit {name}), or have the manifest name the one that it has: \
                     `network: {{ …, mac: \"{first}\" }}`"
                ),
            };
        }
        if let Some((was, wanted)) = self.installed_from_another(last) {
            return Diff::Blocked {
                why: format!(
                    "it was installed from `{was}`, and the manifest says {wanted}: a disk is never made anew"
                ),
                help: format!("write `image: {was}`, or make a new VM"),
            };
        }
        let mut fields = self.differences(last, &is);
        let of_definition = !fields.is_empty();
        if domain.autostart != self.autostart {
            let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
            fields.push(FieldDiff::new("starts with the host", yes_no(domain.autostart), yes_no(self.autostart)));
        }
        let mut change = Change::new(Action::Change, "edited in place");
        if !fields.is_empty() {
            let splices = if of_definition {
                match splice::splice(self, last, &is, &domain.inactive_xml) {
                    Ok(splices) => splices,
                    Err(splice::Refused { why, help }) => return Diff::Blocked { why, help },
                }
            } else {
                Vec::new()
            };
            let edit = match TextEdit::new(&domain.inactive_xml, splices) {
                Ok(edit) => edit,
                Err(e) => return Diff::Unknown { why: format!("its definition cannot be changed in place: {e}") },
            };
            if fields.iter().any(|f| f.field.starts_with("disk ") && f.field.ends_with(" bus")) {
                change.notes.push(
                    "its guest has to have the driver for the other bus of its disk, or it does not find it".to_owned(),
                );
            }
            if fields.iter().any(|f| f.field.starts_with("address of the nic")) {
                change.notes.push(
                    "somebody gave its card another address; to keep that, name it in the manifest: `network: { …, mac: … }`"
                        .to_owned(),
                );
            }
            change.what = fields.iter().map(|f| f.field.as_str()).collect::<Vec<_>>().join(", ");
            change.fields = fields;
            change.steps.push(Step::EditDomain { name: name.clone(), edit, autostart: self.autostart });
            if domain.active && of_definition {
                change.risks.insert(Risk::GuestRestart);
                change.complete_after = Some(WaitFor::GuestRestart);
                change.notes.push("it runs on as it is; the change takes effect at its next start".to_owned());
            }
        }
        let first_start_owed = last.is_some_and(|l| l.start_owed) && self.start_when_made;
        // An installer turns the VM off at its end.
        let installs = self.install_when_owed(state, domain, last, &mut change);
        let active = domain.active && !installs;
        match (self.running, active) {
            (None, false) if first_start_owed => {
                change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
                change.notes.push("its first start, which did not succeed when it was made".to_owned());
                change.steps.push(self.start());
            }
            (Some(true), false) => {
                change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
                change.steps.push(self.start());
            }
            (Some(false), true) => {
                change.fields.push(FieldDiff::new("running", Some("yes".to_owned()), Some("no".to_owned())));
                change.risks.insert(Risk::GuestRestart);
                change.complete_after = None;
                change.notes.push("its guest is asked to shut down; it is never powered off".to_owned());
                change.steps.push(Step::shut_down(name));
            }
            _ => {}
        }
        if !change.steps.is_empty() {
            if change.what == "edited in place" {
                change.what = if self.running == Some(false) { "shut down" } else { "started" }.to_owned();
            }
            return Diff::Change(change);
        }
        match self.waits_for_restart(domain, &is) {
            Some(diff) => diff,
            None => Diff::InSync {
                evidence: format!("{}, {}", if domain.active { "running" } else { "stopped" }, self.summary()),
            },
        }
    }

    fn undefine(&self, domain: &Domain, known: &Virtualisation) -> Diff {
        if domain.active {
            return Diff::Blocked {
                why: "it runs, and the manifest says `absent: true`".to_owned(),
                help: format!("shut it down first: gpuvm vm stop {}", self.name),
            };
        }
        if let Some(snapshot) = domain.snapshots.first() {
            return Diff::Blocked {
                why: format!("it has snapshots (`{}`), and the manifest says `absent: true`", snapshot.name),
                help: format!(
                    "take them away first (gpuvm vm snapshot list {0}), or all of it: gpuvm vm delete {0}",
                    self.name
                ),
            };
        }
        let mut change = Change::new(Action::Remove, "its definition, with its UEFI variables; its disks stay");
        let keep_tpm = keep_tpm(domain, known, &mut change);
        change.steps.push(Step::undefine(&self.name, keep_tpm));
        Diff::Change(change)
    }

    /// The stored definition is as wanted, but an older one runs.
    fn waits_for_restart(&self, domain: &Domain, stored: &Projection) -> Option<Diff> {
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

    /// A pool of its disks is not started: which volumes there are is not known yet.
    fn unready_pool(&self, known: &Virtualisation) -> Option<ResourceName> {
        let mut pools = self.disks.iter().filter(|d| !d.block).filter_map(|d| d.pool.as_ref());
        pools.find(|pool| known.pool(pool.as_str()).is_some_and(|p| !p.active)).cloned()
    }
}

impl NicOn {
    /// As it is compared and shown: `bridge br0`, `network default`.
    fn name(&self) -> String {
        match self {
            NicOn::Bridge(name) => format!("bridge {name}"),
            NicOn::Network(name) => format!("network {name}"),
        }
    }
}

/// What a VM is compared with.
#[derive(Debug)]
pub struct DomainState {
    pub(super) libvirt: Libvirt,
    /// Files of the host that it boots and that are not there.
    missing: Vec<PathBuf>,
    /// Folders of the host that it is to have and that are not there.
    no_folders: Vec<PathBuf>,
    /// Images of CD-ROMs that are not there.
    no_media: Vec<PathBuf>,
    /// Whether the disk that something is to be installed on is blank; `Absent` where it is not made yet.
    blank: Answer<bool>,
    /// Devices of the host's that it is to have as disks.
    given: Vec<(PathBuf, given::Given)>,
    /// What its disks go on in, as the files themselves say: libvirt's definition need not.
    chains: BTreeMap<PathBuf, Vec<PathBuf>>,
}

impl From<Libvirt> for DomainState {
    fn from(libvirt: Libvirt) -> Self {
        Self {
            libvirt,
            missing: Vec::new(),
            no_folders: Vec::new(),
            no_media: Vec::new(),
            blank: Answer::Absent,
            given: Vec::new(),
            chains: BTreeMap::new(),
        }
    }
}

/// A VM goes and its disks stay, and with them what its guest keeps in its TPM, where libvirt can leave that; else the
/// change says that it is lost. Whether the step is to leave it.
pub fn keep_tpm(domain: &Domain, known: &Virtualisation, change: &mut Change) -> bool {
    if !domain.inactive_xml.contains("<tpm") {
        return false;
    }
    let at = format!("/var/lib/libvirt/swtpm/{}", domain.uuid);
    if known.keeps_tpm() {
        change.notes.push(format!("the state of its TPM stays with its disks, in {at}"));
        return true;
    }
    change.risks.insert(Risk::DataLoss);
    change.notes.push(format!(
        "libvirt before 8.9 cannot keep the state of a TPM: what its guest keeps there (keys of encrypted disks) is lost, \
         and `gpuvm undo` does not bring it back; to keep it, copy {at} first"
    ));
    false
}

impl Resource for LibvirtDomain {
    const KIND: &'static str = "libvirt-domain";
    type State = DomainState;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn begun(&self) -> Self {
        Self { start_owed: self.start_when_made, install_owed: self.install.is_some(), ..self.clone() }
    }

    fn probe(&self, host: &dyn Probe) -> Result<DomainState, HostError> {
        let mut state = DomainState::from(ask(host)?);
        for path in
            self.boot.iter().filter(|_| !self.absent).flat_map(|b| [Some(&b.kernel), b.initrd.as_ref()]).flatten()
        {
            if host.stat(path)? == Answer::Absent {
                state.missing.push(path.clone());
            }
        }
        for extra in self.extras.iter().filter(|_| !self.absent) {
            if let Extra::Folder { path, .. } = extra
                && host.stat(path)? == Answer::Absent
            {
                state.no_folders.push(path.clone());
            }
        }
        // An image of gpuvm's is there by the time that this is made.
        for path in self.media.iter().filter(|path| !self.absent && Cached::image_of(path).is_none()) {
            if host.stat(path)? == Answer::Absent {
                state.no_media.push(path.clone());
            }
        }
        if let Some(disk) = self.disks.first().filter(|_| self.install.is_some() && !self.absent) {
            state.blank = host.blank(&disk.path)?;
        }
        for disk in self.disks.iter().filter(|d| d.block && !self.absent) {
            let known = match &state.libvirt {
                Answer::Value(known) => Some(&**known),
                _ => None,
            };
            let given = given::look(&disk.path, &self.name, known, host);
            // A volume that is not there yet is made; one that is may be mounted, or another VM's by another name.
            if disk.pool.is_none() || !given.is_missing() {
                state.given.push((disk.path.clone(), given));
            }
        }
        if let Answer::Value(known) = &state.libvirt
            && let Some(domain) = known.domain(self.name.as_str())
        {
            for file in disk_files(&domain.inactive_xml).into_iter().map(PathBuf::from) {
                let chain = chain_of(&file, known, host);
                state.chains.insert(file, chain);
            }
        }
        Ok(state)
    }

    fn diff(&self, state: &DomainState, last: Option<&Self>, _: &HostFacts) -> Diff {
        let diff = self.diff_of(state, last);
        if let (Diff::Change(change), Answer::Denied) = (&diff, &state.blank)
            && change.action == Action::Create
        {
            let why = "this user may not look whether its disk is blank: run gpuvm as root";
            return Diff::Unknown { why: why.to_owned() };
        }
        if !matches!(diff, Diff::Blocked { .. } | Diff::Unknown { .. }) {
            let had = |path: &Path| last.is_some_and(|l| !l.absent && l.disks.iter().any(|d| d.path == path));
            if let Some(refused) = state.given.iter().find_map(|(path, given)| given.refused(had(path))) {
                return refused;
            }
        }
        let starts = |change: &Change| {
            change.steps.iter().any(|s| matches!(s, Step::StartDomain { .. } | Step::InstallDomain(_)))
        };
        if let (Diff::Change(_) | Diff::Waits { .. }, Some(path)) = (&diff, state.no_folders.first()) {
            return Diff::Blocked {
                why: format!("its folder `{}` is not there", path.display()),
                help: "make it first: folders are shared, never made".to_owned(),
            };
        }
        if let (Diff::Change(_) | Diff::Waits { .. }, Some(path)) = (&diff, state.no_media.first()) {
            return Diff::Blocked {
                why: format!("its medium `{}` is not there", path.display()),
                help: "put it there first: media are used, never fetched".to_owned(),
            };
        }
        match (&diff, state.missing.first()) {
            (Diff::Change(change) | Diff::Waits { promise: change, .. }, Some(path)) if starts(change) => {
                Diff::Blocked {
                    why: format!("it boots `{}`, which is not there", path.display()),
                    help: "put it there first, or correct `boot`".to_owned(),
                }
            }
            _ => diff,
        }
    }

    /// A VM that leaves the manifest stays as it is.
    fn remove(&self, _: &DomainState, _: &HostFacts) -> Diff {
        Diff::stays(format!("the VM stays; `vms: {{ {}: {{ …, absent: true }} }}` takes it away", self.name))
    }
}

impl LibvirtDomain {
    fn diff_of(&self, state: &DomainState, last: Option<&Self>) -> Diff {
        let gone = || Diff::InSync { evidence: "not there".to_owned() };
        if self.absent && matches!(state.libvirt, Answer::Absent) {
            return gone();
        }
        let known = match known(&state.libvirt, || self.creation(state)) {
            Ok(known) => known,
            Err(diff) => return *diff,
        };
        match known.domain(self.name.as_str()) {
            Some(domain) => self.compare(domain, state, known, last.filter(|l| !l.absent)),
            None if self.absent => gone(),
            None => match self.unready_pool(known) {
                Some(pool) => Diff::Waits {
                    on: WaitFor::Libvirt,
                    why: format!("pool `{pool}` is not started, so its volumes are not known"),
                    promise: self.creation(state),
                },
                None => Diff::Change(self.creation(state)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
