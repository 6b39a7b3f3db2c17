//! Places on a host that steps change, and how they are: what a run records before it changes anything.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{MigState, Step};
use crate::image;
use crate::types::{DomainName, Mode, PackageName, PciAddress, ResourceName, UnitName};

/// Something on a host that a step changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// A package.
    Package(PackageName),
    /// A unit of systemd's.
    Unit(UnitName),
    /// A user in a group.
    Member {
        /// The group.
        group: String,
        /// The user.
        user: String,
    },
    /// A loaded kernel module.
    Module(String),
    /// The driver of a PCI function, which a step changes at once.
    Function(PciAddress),
    /// The driver of a PCI function, which the next boot changes.
    FunctionAtBoot(PciAddress),
    /// How many virtual functions a device has.
    VirtualFunctions {
        /// The device's name.
        name: ResourceName,
        /// Its function that has them.
        physical: PciAddress,
    },
    /// How many vGPUs a card has.
    Vgpus {
        /// The card's name.
        name: ResourceName,
        /// Its function that has them.
        physical: PciAddress,
    },
    /// MIG mode and instances of a card.
    Mig {
        /// The card's name.
        name: ResourceName,
        /// Its function.
        physical: PciAddress,
    },
    /// An argument of the running kernel, which the next boot changes.
    Argument(String),
    /// A pool of libvirt's.
    Pool(ResourceName),
    /// A volume of a pool.
    Volume {
        /// The pool.
        pool: ResourceName,
        /// Its name in the pool.
        name: String,
    },
    /// The file that says what is kept of an image.
    Image(PathBuf),
    /// The node of a block volume.
    Device(PathBuf),
    /// A network of libvirt's.
    Network(ResourceName),
    /// A VM.
    Domain(DomainName),
}

impl Place {
    /// Whether libvirt alone can tell how it is.
    pub fn is_libvirts(&self) -> bool {
        matches!(self, Place::Pool(_) | Place::Volume { .. } | Place::Network(_) | Place::Domain(_))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => write!(f, "{}", path.display()),
            Place::Package(name) => write!(f, "package {name}"),
            Place::Unit(unit) => write!(f, "unit {unit}"),
            Place::Member { group, user } => write!(f, "{user} in group {group}"),
            Place::Module(name) => write!(f, "module {name}"),
            Place::Function(address) | Place::FunctionAtBoot(address) => write!(f, "function {address}"),
            Place::VirtualFunctions { physical, .. } => write!(f, "virtual functions of {physical}"),
            Place::Vgpus { physical, .. } => write!(f, "vGPUs of {physical}"),
            Place::Mig { physical, .. } => write!(f, "MIG of {physical}"),
            Place::Argument(argument) => write!(f, "kernel argument {argument}"),
            Place::Pool(name) => write!(f, "pool {name}"),
            Place::Volume { pool, name } => write!(f, "volume {pool}/{name}"),
            Place::Image(path) => write!(f, "image {}", path.display()),
            Place::Device(path) => write!(f, "disk {}", path.display()),
            Place::Network(name) => write!(f, "network {name}"),
            Place::Domain(name) => write!(f, "VM {name}"),
        }
    }
}

/// How a place is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen {
    /// Not there; not a member, not loaded.
    Nothing,
    /// It may not be looked at.
    Denied,
    /// There; a member, loaded.
    There,
    /// A regular file.
    File {
        /// sha256 in hex of its content.
        sha256: String,
        /// Permission bits.
        mode: Mode,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A symbolic link.
    Link(PathBuf),
    /// A directory, a device, a socket.
    Other,
    /// An installed package.
    Package {
        /// Its version.
        version: String,
        /// It came along with another, and nobody asked for it (apt-mark(8)).
        auto: bool,
    },
    /// A unit.
    Unit {
        /// `enabled`, `disabled`, …
        file: String,
        /// `active`, `inactive`, …
        active: String,
    },
    /// The driver of a function.
    Driver(Option<String>),
    /// So many.
    Count(u16),
    /// MIG of a card.
    Mig(MigState),
    /// A pool.
    Pool {
        /// Its directory.
        path: PathBuf,
        /// Whether it is started.
        active: bool,
        /// Whether it is started at boot.
        autostart: bool,
    },
    /// A volume.
    Volume {
        /// Bytes that the guest sees.
        capacity: u64,
        /// `qcow2`, `raw`.
        format: String,
    },
    /// A network.
    Network {
        /// Whether it is started.
        active: bool,
        /// Whether it is started at boot.
        autostart: bool,
    },
    /// A VM.
    Domain {
        /// Its stored definition.
        xml: String,
        /// Whether it starts with the host.
        autostart: bool,
        /// Whether it runs.
        active: bool,
    },
}

/// The places that a step changes.
pub fn touched(step: &Step) -> Vec<Place> {
    match step {
        Step::WriteFile(file) => vec![Place::File(file.path.clone())],
        Step::Seed { path, .. } => vec![Place::File(path.clone())],
        Step::RemoveFile { path } | Step::Link { path, .. } | Step::RestoreFile { path } => {
            vec![Place::File(path.clone())]
        }
        Step::SwitchNetwork(switch) => switch.paths().map(|p| Place::File(p.clone())).collect(),
        Step::Apt { install, remove, .. } => {
            install.iter().map(|p| &p.name).chain(remove).map(|n| Place::Package(n.clone())).collect()
        }
        Step::Service { unit, .. } => vec![Place::Unit(unit.clone())],
        Step::Module { name } => vec![Place::Module(name.clone())],
        Step::GroupMember { group, user, .. } => {
            vec![Place::Member { group: group.clone(), user: user.clone() }]
        }
        Step::BindSlot(binding) => binding.functions.iter().map(|(a, _)| Place::Function(*a)).collect(),
        Step::VirtualFunctions(step) => {
            vec![Place::VirtualFunctions { name: step.name.clone(), physical: step.physical }]
        }
        Step::Vgpus(step) => vec![Place::Vgpus { name: step.name.clone(), physical: step.physical }],
        Step::Mig(step) => vec![Place::Mig { name: step.name.clone(), physical: step.physical }],
        Step::Pool { name, .. } | Step::RemovePool { name } => vec![Place::Pool(name.clone())],
        Step::Volume(volume) => vec![Place::Volume { pool: volume.pool.clone(), name: volume.name.clone() }],
        Step::CopyVolume(copy) => vec![Place::Volume { pool: copy.pool.clone(), name: copy.name.clone() }],
        Step::CloneSeed { to, .. } => vec![Place::File(to.clone())],
        Step::BlockVolume(step) => vec![Place::Device(step.store.device(&step.name))],
        Step::RemoveBlockVolume { store, name, .. } => vec![Place::Device(store.device(name))],
        Step::RemoveVolume { pool, name } => vec![Place::Volume { pool: pool.clone(), name: name.clone() }],
        Step::Fetch(fetch) => vec![Place::Image(image::pointer(&fetch.pool, fetch.name.as_str()))],
        // It can be fetched again, and nothing was made from it.
        Step::RemoveImage { .. } => Vec::new(),
        Step::Network { name, .. } => vec![Place::Network(name.clone())],
        Step::DefineDomain { name, .. }
        | Step::CloneDomain { name, .. }
        | Step::EditDomain { name, .. }
        | Step::MarkDomain { name, .. }
        | Step::StartDomain { name }
        | Step::StopDomain { name, .. }
        | Step::DetachDevices { name, .. } => vec![Place::Domain(name.clone())],
        Step::InstallDomain(step) => vec![Place::Domain(step.name.clone())],
        Step::AttachDevices { name, else_back, .. } => {
            let functions = else_back.iter().flat_map(|b| &b.functions).map(|(a, _)| Place::Function(*a));
            functions.chain([Place::Domain(name.clone())]).collect()
        }
        Step::UndefineDomain { name, nvram, .. } => {
            let nvram = nvram.iter().map(|path| Place::File(path.clone()));
            std::iter::once(Place::Domain(name.clone())).chain(nvram).collect()
        }
        // What they make (lists, caches, an initramfs, a boot) is made anew from what the other steps leave.
        Step::MakeDir { .. } | Step::AptIndex { .. } | Step::FinishPackages | Step::Refresh { .. } | Step::Reboot => {
            Vec::new()
        }
        // The ledger alone, or nothing at all.
        Step::Adopt | Step::Answers { .. } => Vec::new(),
        // What was written since a snapshot is in no record: their way back is another verb.
        Step::MakeSnapshot(_)
        | Step::KeepSnapshot { .. }
        | Step::RestoreDomain { .. }
        | Step::ForgetSnapshot { .. }
        | Step::CopyFile(_)
        | Step::NewLayer { .. }
        | Step::CommitLayer { .. }
        | Step::RebaseLayer { .. }
        | Step::RemoveLayer { .. } => Vec::new(),
    }
}
