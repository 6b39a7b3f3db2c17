//! What a VM is made of: processors, disks, network card, passed slots, and what it boots with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::read::topology_text;
use crate::types::{InterfaceName, MacAddress, PciAddress, PciSlot, ResourceName};

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
    pub(super) fn text(&self) -> String {
        topology_text([self.sockets, 1, 1, self.cores, self.threads])
    }
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
    pub(super) fn text(&self) -> String {
        let mut parts: Vec<String> = self.cpus.iter().map(|(cpu, on)| format!("{cpu}→{on}")).collect();
        parts.extend(self.emulator.iter().map(|on| format!("emulator→{on}")));
        parts.join(" ")
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
    pub(super) fn shown(&self) -> String {
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
    pub(super) fn wanted(&self, last: Option<&Self>) -> Vec<(&'static str, Option<String>)> {
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

impl NicOn {
    /// As it is compared and shown: `bridge br0`, `network default`.
    pub(super) fn name(&self) -> String {
        match self {
            NicOn::Bridge(name) => format!("bridge {name}"),
            NicOn::Network(name) => format!("network {name}"),
        }
    }
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
    pub(super) fn is(&self, other: &Self) -> bool {
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

/// An element of a person's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addition {
    /// The element that it goes into: `/domain/devices`.
    pub at: String,
    /// The element.
    pub xml: String,
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
