//! A step is one primitive effect: a closed list, without a free command line. One interpreter journals, executes and
//! rehearses them all.

mod devices;
mod disks;
mod files;
mod images;
mod network;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use devices::{BindTarget, MigInstance, MigState, MigStep, SlotBinding, VgpuStep, VirtualFunctionsStep};
pub use disks::{BlockStore, BlockVolumeStep, CopyVolumeStep, SnapshotStep, VolumeStep};
pub use files::{Content, FileCopy, FileEdit, FileWrite, TextEdit};
pub use images::{FetchStep, InstallStep};
pub use network::{NetworkSwitch, Proof};

use super::Refresh;
use crate::types::{DomainName, MacAddress, Mode, PackageName, ResourceName, UnitName};

/// One package of a transaction, with the exact version that was planned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AptPackage {
    /// Its name.
    pub name: PackageName,
    /// The version that the simulation gave.
    pub version: String,
    /// What is installed now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// What is done with a systemd unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceAction {
    /// Starts it at boot.
    Enable,
    /// Does not start it at boot.
    Disable,
    /// Starts it now.
    Start,
    /// Stops it now.
    Stop,
    /// Stops and starts it, for a changed configuration.
    Restart,
}

impl ServiceAction {
    /// The word of systemctl(1) for it.
    pub const fn name(self) -> &'static str {
        match self {
            ServiceAction::Enable => "enable",
            ServiceAction::Disable => "disable",
            ServiceAction::Start => "start",
            ServiceAction::Stop => "stop",
            ServiceAction::Restart => "restart",
        }
    }
}

/// One primitive effect. Each is idempotent: run again after a crash, it ends in the same state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Writes a whole file: temporary file, fsync, rename, fsync of the folder.
    WriteFile(FileWrite),
    /// Removes a file; one that is not there is fine.
    RemoveFile {
        /// The file.
        path: PathBuf,
    },
    /// Makes a directory (parents as 0755 root) or corrects its mode and owner.
    MakeDir {
        /// The directory.
        path: PathBuf,
        /// Permission bits.
        mode: Mode,
        /// Owner by name.
        owner: String,
        /// Group by name.
        group: String,
    },
    /// Makes or replaces a symbolic link.
    Link {
        /// The link.
        path: PathBuf,
        /// What it points to.
        target: PathBuf,
    },
    /// Calls gpuvm where it was put, by a name that people type: it has to tell its version. Changes nothing.
    Answers {
        /// The program, or the link to it.
        path: PathBuf,
        /// The version that it has to tell.
        version: String,
    },
    /// Puts a kept original back, byte for byte with mode and owner, from the ledger's folder; removes the file where
    /// there was none before.
    RestoreFile {
        /// The file.
        path: PathBuf,
    },
    /// Fetches the package lists; a source that does not answer is an error.
    AptIndex {
        /// What they are fetched for, remembered so that a name that no source knows is not looked for again.
        mark: String,
    },
    /// Finishes a package transaction that was cut off (`dpkg --configure -a`).
    FinishPackages,
    /// One package transaction.
    Apt {
        /// What was asked for.
        request: BTreeSet<PackageName>,
        /// Everything that the simulation installs or upgrades for it.
        install: Vec<AptPackage>,
        /// Everything that the simulation removes for it.
        remove: Vec<PackageName>,
    },
    /// Something done with a systemd unit.
    Service {
        /// The unit.
        unit: UnitName,
        /// What.
        action: ServiceAction,
    },
    /// Loads a kernel module.
    Module {
        /// Its name.
        name: String,
    },
    /// Puts a user into a group or takes it out.
    GroupMember {
        /// Group.
        group: String,
        /// User.
        user: String,
        /// In or out.
        present: bool,
    },
    /// Binds every function of a slot, or none.
    BindSlot(SlotBinding),
    /// Makes the virtual functions of a device, or takes them away.
    VirtualFunctions(VirtualFunctionsStep),
    /// Makes the vGPUs of a card, or takes them away.
    Vgpus(VgpuStep),
    /// Turns MIG mode of a card on or off, and makes and takes its instances.
    Mig(MigStep),
    /// Changes the host's network under guard.
    SwitchNetwork(NetworkSwitch),
    /// Defines, builds, starts and autostarts a directory pool.
    Pool {
        /// Its name.
        name: ResourceName,
        /// Its directory.
        path: PathBuf,
    },
    /// Makes or grows a volume.
    Volume(VolumeStep),
    /// Makes or grows a block volume.
    BlockVolume(BlockVolumeStep),
    /// Deletes a block volume that gpuvm made, with its data.
    RemoveBlockVolume {
        /// Where it is.
        store: BlockStore,
        /// Its name there.
        name: String,
        /// The VM that it is for, as is written at it.
        vm: DomainName,
    },
    /// Fetches an image into a pool's directory.
    Fetch(FetchStep),
    /// Deletes the file of an image that no disk is made from. It can be fetched again.
    RemoveImage {
        /// The file.
        path: PathBuf,
    },
    /// Makes the image that tells a guest what to do at its first boot.
    Seed {
        /// Where.
        path: PathBuf,
        /// sha256 in hex of what it is made from; the payload is a 0600 file of the run.
        inputs: String,
    },
    /// Takes a pool's definition away; its directory and what is in it stay.
    RemovePool {
        /// Its name.
        name: ResourceName,
    },
    /// Deletes a volume, with its data.
    RemoveVolume {
        /// The pool that it is in.
        pool: ResourceName,
        /// Its name in the pool.
        name: String,
    },
    /// Starts a network that libvirt has, or stops it, now and at boot.
    Network {
        /// Its name.
        name: ResourceName,
        /// Whether it is started.
        active: bool,
        /// Whether libvirt starts it at boot.
        autostart: bool,
    },
    /// Defines a new VM.
    DefineDomain {
        /// Its name.
        name: DomainName,
        /// The whole definition.
        xml: String,
        /// Whether libvirt starts it at boot.
        autostart: bool,
    },
    /// Defines a new VM from the definition of another.
    CloneDomain {
        /// Its name.
        name: DomainName,
        /// The other.
        from: DomainName,
        /// The definition that is in this snapshot of the other; its stored one where none is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<ResourceName>,
        /// What changes in it.
        edit: TextEdit,
    },
    /// A VM has the definition again that is kept in a snapshot of it.
    RestoreDomain {
        /// Its name.
        name: DomainName,
        /// The snapshot.
        snapshot: ResourceName,
        /// sha256 in hex of the definition that is replaced; another one is refused.
        before: String,
        /// What is not as it was: in which files its disks are.
        edit: TextEdit,
    },
    /// Changes the stored definition of a VM at some places; one that became another since the plan is refused.
    EditDomain {
        /// Its name.
        name: DomainName,
        /// What changes in it; without a change, only the start at boot is.
        edit: TextEdit,
        /// Whether libvirt starts it at boot.
        autostart: bool,
    },
    /// Takes a VM's definition away, with NVRAM; its disks stay.
    UndefineDomain {
        /// Its name.
        name: DomainName,
        /// With everything else that libvirt keeps for it: saved memory, what it knows of snapshots, the TPM's state.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        wholly: bool,
        /// The file of its UEFI variables, to be recorded for the way back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nvram: Option<PathBuf>,
        /// The TPM's state stays where libvirt has it, for the same VM defined once more. libvirt 8.9 and later can.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep_tpm: bool,
    },
    /// Makes a snapshot of a VM's disks. One of this name that gpuvm made is left as it is.
    MakeSnapshot(SnapshotStep),
    /// What libvirt keeps of a snapshot changes: in which file a disk is that holds its state, and whether the VM goes on
    /// from it.
    KeepSnapshot {
        /// The VM.
        name: DomainName,
        /// The snapshot.
        snapshot: ResourceName,
        /// The file that held a disk's state, and the one that does from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        moved: Option<FileCopy>,
        /// What that one is: `qcow2`, `raw`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<String>,
        /// The VM goes on from it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        current: bool,
    },
    /// libvirt forgets a snapshot; the files of disks stay, the copies beside them go.
    ForgetSnapshot {
        /// The VM.
        name: DomainName,
        /// The snapshot.
        snapshot: ResourceName,
        /// Copies of what libvirt does not keep.
        copies: Vec<PathBuf>,
    },
    /// Copies a small file as a whole.
    CopyFile(FileCopy),
    /// Makes a volume from another disk's file.
    CopyVolume(CopyVolumeStep),
    /// Makes the image that tells a clone's guest that it is another one, from that of the VM that it began as.
    CloneSeed {
        /// The other's.
        from: PathBuf,
        /// Where it goes.
        to: PathBuf,
        /// Its guest's name.
        hostname: String,
        /// What tells cloud-init to set it up anew.
        instance: String,
        /// The address of its network card, which asks for its addresses by DHCP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mac: Option<MacAddress>,
        /// What it will say that it was made from.
        inputs: String,
    },
    /// Makes an empty layer over a file, which is not written to from then on.
    NewLayer {
        /// The layer.
        path: PathBuf,
        /// The file.
        under: PathBuf,
        /// What that is: `qcow2`, `raw`.
        format: String,
    },
    /// A layer's content goes into the file below it. The layer stays as it is; while a VM writes to it, that goes on in the
    /// file below.
    CommitLayer {
        /// The layer.
        top: PathBuf,
        /// What it goes on in.
        into: PathBuf,
        /// Where a VM runs with it: that, and the disk by its name in the definition.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        live: Option<(DomainName, String)>,
    },
    /// A layer goes on in another file; what differs is copied into it first.
    RebaseLayer {
        /// The layer.
        path: PathBuf,
        /// The file.
        onto: PathBuf,
        /// What that is: `qcow2`, `raw`.
        format: String,
    },
    /// Deletes a layer that nothing goes on in.
    RemoveLayer {
        /// The layer.
        path: PathBuf,
    },
    /// Puts gpuvm's mark into the metadata of a VM's stored definition, or takes it out. Nothing else of it changes.
    MarkDomain {
        /// Its name.
        name: DomainName,
        /// In or out.
        present: bool,
    },
    /// Takes a thing over as it is: nothing on the host changes; journal and ledger say that it is gpuvm's from now on.
    Adopt,
    /// Installs an operating system onto a VM's blank disk, and waits until its installer has turned the VM off.
    InstallDomain(InstallStep),
    /// Starts a VM.
    StartDomain {
        /// Its name.
        name: DomainName,
    },
    /// Asks a VM's guest to shut down and waits.
    StopDomain {
        /// Its name.
        name: DomainName,
        /// How long it is waited for, in seconds; the usual time where none is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        patience_s: Option<u32>,
        /// Cut its power when that is over.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cut_power: bool,
    },
    /// Gives devices to a running VM: all of them, or none.
    AttachDevices {
        /// Its name.
        name: DomainName,
        /// Each as an element of a definition, with its place in the guest.
        devices: Vec<String>,
        /// Where the VM does not take them: to whom the slot goes back, as a whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        else_back: Option<SlotBinding>,
    },
    /// Takes devices from a running VM, whose guest is asked to let go of them, and waits until it did.
    DetachDevices {
        /// Its name.
        name: DomainName,
        /// Each as an element of its running definition.
        devices: Vec<String>,
    },
    /// What is done once after all changes that name it.
    Refresh {
        /// Which.
        refresh: Refresh,
    },
    /// Boots the host again.
    Reboot,
}

impl Step {
    /// A VM's guest is asked to shut down, and its power is never cut.
    pub fn shut_down(name: &DomainName) -> Self {
        Step::StopDomain { name: name.clone(), patience_s: None, cut_power: false }
    }

    /// A VM's definition goes, with its UEFI variables; the state of its TPM with it, or not.
    pub fn undefine(name: &DomainName, keep_tpm: bool) -> Self {
        Step::UndefineDomain { name: name.clone(), wholly: false, nvram: None, keep_tpm }
    }

    /// What it does, in two or three words.
    pub fn name(&self) -> String {
        let text = match self {
            Step::WriteFile(file) => return format!("write {}", file.path.display()),
            Step::RemoveFile { path } => return format!("remove {}", path.display()),
            Step::RestoreFile { path } => return format!("put back {}", path.display()),
            Step::MakeDir { path, .. } => return format!("make {}", path.display()),
            Step::Link { path, .. } => return format!("link {}", path.display()),
            Step::Answers { path, .. } => return format!("call {}", path.display()),
            Step::Service { unit, action } => return format!("{} {unit}", action.name()),
            Step::Module { name } => return format!("load {name}"),
            Step::Refresh { refresh } => return format!("refresh {}", refresh.name()),
            Step::Apt { install, remove, .. } => {
                return format!("install {}, remove {} packages", install.len(), remove.len());
            }
            Step::AptIndex { .. } => "fetch the package lists",
            Step::FinishPackages => "finish packages that were cut off",
            Step::GroupMember { present: true, .. } => "join the group",
            Step::GroupMember { .. } => "leave the group",
            Step::BindSlot(_) => "bind the slot",
            Step::VirtualFunctions(VirtualFunctionsStep { count: 0, .. }) => "take the virtual functions away",
            Step::VirtualFunctions(_) => "make the virtual functions",
            Step::Vgpus(VgpuStep { count: 0, .. }) => "take the vGPUs away",
            Step::Vgpus(_) => "make the vGPUs",
            Step::Mig(MigStep { after: MigState { on: false, .. }, .. }) => "take the MIG instances away",
            Step::Mig(_) => "make the MIG instances",
            Step::SwitchNetwork(_) => "switch the network, under guard",
            Step::Pool { .. } => "make the pool",
            Step::RemovePool { .. } => "take the pool away",
            Step::Volume(VolumeStep { grow: true, .. }) => "grow the disk",
            Step::Volume(_) => "make the disk",
            Step::BlockVolume(BlockVolumeStep { grow: true, .. }) => "grow the disk",
            Step::BlockVolume(_) => "make the disk",
            Step::RemoveBlockVolume { store, name, .. } => {
                let (program, args) = store.removal(name);
                return format!("delete the disk: {} {}", program.name(), args.join(" "));
            }
            Step::Fetch(fetch) => return format!("fetch {}", fetch.name),
            Step::Seed { path, .. } => return format!("make {}", path.display()),
            Step::RemoveImage { path } => return format!("delete {}", path.display()),
            Step::RemoveVolume { .. } => "delete the disk",
            Step::Network { active: true, .. } => "start the network",
            Step::Network { .. } => "stop the network",
            Step::DefineDomain { .. } | Step::CloneDomain { .. } => "define the VM",
            Step::EditDomain { .. } => "change the VM's definition",
            Step::RestoreDomain { .. } => "bring the VM's definition back",
            Step::MakeSnapshot(_) => "make the snapshot",
            Step::KeepSnapshot { .. } => "correct the snapshot",
            Step::ForgetSnapshot { .. } => "forget the snapshot",
            Step::CopyFile(copy) => return format!("copy {} to {}", copy.from.display(), copy.to.display()),
            Step::NewLayer { path, .. } => return format!("make {}", path.display()),
            Step::CopyVolume(copy) if copy.linked => return format!("put {} over {}", copy.name, copy.from.display()),
            Step::CopyVolume(copy) => return format!("copy {} to {}", copy.from.display(), copy.name),
            Step::CloneSeed { to, .. } => return format!("make {}", to.display()),
            Step::CommitLayer { top, .. } => return format!("merge {} into what is below it", top.display()),
            Step::RebaseLayer { path, onto, .. } => return format!("put {} over {}", path.display(), onto.display()),
            Step::RemoveLayer { path } => return format!("delete {}", path.display()),
            Step::MarkDomain { present: true, .. } => "mark the VM",
            Step::MarkDomain { .. } => "take the mark off the VM",
            Step::Adopt => "take it over",
            Step::UndefineDomain { .. } => "undefine the VM",
            Step::InstallDomain(_) => "install the VM's system",
            Step::StartDomain { .. } => "start the VM",
            Step::StopDomain { patience_s: Some(0), cut_power: true, .. } => "cut the VM's power",
            Step::StopDomain { .. } => "shut the VM down",
            Step::AttachDevices { .. } => "plug the devices into the VM",
            Step::DetachDevices { .. } => "unplug the devices from the VM",
            Step::Reboot => "boot the host",
        };
        text.to_owned()
    }

    /// The places that it writes: two changes of a plan that share one are refused.
    pub fn writes(&self) -> Vec<String> {
        let file = |path: &Path| vec![path.display().to_string()];
        match self {
            Step::WriteFile(write) => file(&write.path),
            Step::RemoveFile { path }
            | Step::RestoreFile { path }
            | Step::Link { path, .. }
            | Step::Seed { path, .. }
            | Step::RemoveImage { path }
            | Step::NewLayer { path, .. }
            | Step::RebaseLayer { path, .. }
            | Step::RemoveLayer { path } => file(path),
            Step::CopyFile(copy) => file(&copy.to),
            Step::CloneSeed { to, .. } => file(to),
            Step::CommitLayer { into, .. } => file(into),
            Step::SwitchNetwork(switch) => switch.paths().flat_map(|path| file(path)).collect(),
            Step::DefineDomain { name, .. }
            | Step::CloneDomain { name, .. }
            | Step::RestoreDomain { name, .. }
            | Step::EditDomain { name, .. }
            | Step::UndefineDomain { name, .. }
            | Step::MarkDomain { name, .. } => vec![format!("domain {name}")],
            Step::Volume(VolumeStep { pool, name, .. })
            | Step::CopyVolume(CopyVolumeStep { pool, name, .. })
            | Step::RemoveVolume { pool, name } => vec![format!("volume {pool}/{name}")],
            Step::BlockVolume(BlockVolumeStep { store, name, .. }) | Step::RemoveBlockVolume { store, name, .. } => {
                file(&store.device(name))
            }
            Step::Fetch(fetch) => vec![format!("image {} in {}", fetch.name, fetch.pool.display())],
            Step::BindSlot(binding) => binding.functions.iter().map(|(a, _)| format!("function {a}")).collect(),
            Step::VirtualFunctions(step) => vec![format!("virtual functions of {}", step.physical)],
            Step::Vgpus(step) => vec![format!("vGPUs of {}", step.physical)],
            Step::Mig(step) => vec![format!("MIG of {}", step.physical)],
            // What several changes may share (a folder, a package, a unit), or what writes to no place of its own.
            Step::MakeDir { .. }
            | Step::Answers { .. }
            | Step::AptIndex { .. }
            | Step::FinishPackages
            | Step::Apt { .. }
            | Step::Service { .. }
            | Step::Module { .. }
            | Step::GroupMember { .. }
            | Step::Pool { .. }
            | Step::RemovePool { .. }
            | Step::Network { .. }
            | Step::MakeSnapshot(_)
            | Step::KeepSnapshot { .. }
            | Step::ForgetSnapshot { .. }
            | Step::Adopt
            | Step::InstallDomain(_)
            | Step::StartDomain { .. }
            | Step::StopDomain { .. }
            | Step::AttachDevices { .. }
            | Step::DetachDevices { .. }
            | Step::Refresh { .. }
            | Step::Reboot => Vec::new(),
        }
    }
}
