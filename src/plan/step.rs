//! A step is one primitive effect: a closed list, without a free command line. One interpreter journals, executes and
//! rehearses them all.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Refresh;
use crate::host::Program;
use crate::image::{Digest, Origin};
use crate::types::{
    ByteSize, DomainName, InterfaceName, MacAddress, Mode, PackageName, PciAddress, ResourceName, Splice, SpliceError,
    UnitName, sha256_hex, splice,
};

/// What is written to a file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Content {
    /// The text itself.
    Text(String),
    /// A secret: only its sha256 in hex is in the plan; the payload is a 0600 file of the run.
    Secret(String),
    /// The program that carries the plan out, by its sha256 in hex: another one is refused.
    Program(String),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Content::Secret(digest) => write!(f, "Secret({digest})"),
            Content::Program(digest) => write!(f, "Program({digest})"),
        }
    }
}

/// A whole file as it will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileWrite {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub content: Content,
    /// Permission bits.
    pub mode: Mode,
    /// Owner by name, resolved when the step runs (a package may make the user).
    pub owner: String,
    /// Group by name.
    pub group: String,
}

impl FileWrite {
    /// A root-owned file.
    pub fn root(path: impl Into<PathBuf>, text: impl Into<String>, mode: u32) -> Self {
        Self {
            path: path.into(),
            content: Content::Text(text.into()),
            mode: Mode::new(mode),
            owner: "root".to_owned(),
            group: "root".to_owned(),
        }
    }
}

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

/// The driver that a function is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BindTarget {
    /// vfio-pci, by `driver_override`.
    Vfio,
    /// Whatever driver the kernel finds for it: the override is cleared and the function is probed again.
    Host,
}

/// How many virtual functions a device has (SR-IOV). What else is said of them is in a file that is written before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualFunctionsStep {
    /// The device's name, which its file and unit have.
    pub name: ResourceName,
    /// Its function that has them.
    pub physical: PciAddress,
    /// How many there are.
    pub before: u16,
    /// How many there will be. None needs neither file nor unit.
    pub count: u16,
}

/// How many vGPUs a card has. What else is said of them is in a file that is written before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VgpuStep {
    /// The card's name, which its file and unit have.
    pub name: ResourceName,
    /// Its function that has them.
    pub physical: PciAddress,
    /// How many there are.
    pub before: u16,
    /// How many there will be.
    pub count: u16,
}

/// MIG of a card: from which state to which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigStep {
    /// The card's name.
    pub name: ResourceName,
    /// Its function.
    pub physical: PciAddress,
    /// How it was when the plan was made: what is neither in this nor in the other is nobody's to touch.
    pub before: MigState,
    /// How it will be.
    pub after: MigState,
}

/// MIG of a card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigState {
    /// Whether MIG mode is on.
    pub on: bool,
    /// Its GPU instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<MigInstance>,
}

/// A GPU instance of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigInstance {
    /// What it is made as (`3g.20gb`).
    pub profile: String,
    /// Its first slice of the card's memory; left out where the card tells of its places only once MIG mode is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u32>,
}

impl MigState {
    /// Whether it has an instance of this profile in this place.
    pub fn has(&self, profile: &str, start: u32) -> bool {
        self.instances.iter().any(|i| i.profile == profile && i.start == Some(start))
    }
}

impl std::fmt::Display for MigState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let one = |i: &MigInstance| match i.start {
            Some(start) => format!("{} at {start}", i.profile),
            None => i.profile.clone(),
        };
        match (self.on, self.instances.is_empty()) {
            (false, true) => f.write_str("off"),
            (_, true) => f.write_str("on, without instances"),
            (_, false) => f.write_str(&self.instances.iter().map(one).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// All functions of a slot, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotBinding {
    /// Each function with the driver that it had when the plan was made.
    pub functions: Vec<(PciAddress, Option<String>)>,
    /// What they are to be bound to.
    pub target: BindTarget,
}

/// Something that answered before a network change and must answer after it. Looked for on [`NetworkSwitch::from`]
/// before and on [`NetworkSwitch::to`] afterwards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Proof {
    /// The link is up.
    Link,
    /// The address is on the link.
    Address(std::net::IpAddr),
    /// A default route goes through the link.
    DefaultRoute {
        /// Of IPv6.
        v6: bool,
    },
    /// The gateway answers.
    Gateway(std::net::IpAddr),
    /// The name server answers a query.
    NameServer(std::net::IpAddr),
    /// The peer of an ssh session answers. Found when the step runs.
    Peer(std::net::IpAddr),
}

/// Changes of a text that is there and is not in the plan: it may hold passwords.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TextEdit {
    /// sha256 in hex of the text before; another text is refused.
    pub before: String,
    /// What changes.
    pub splices: Vec<Splice>,
    /// sha256 in hex of the text afterwards.
    pub after: String,
}

impl TextEdit {
    /// The edit of a text.
    pub fn new(text: &str, splices: Vec<Splice>) -> Result<Self, SpliceError> {
        let after = sha256_hex(splice(text, &splices)?.as_bytes());
        Ok(Self { before: sha256_hex(text.as_bytes()), splices, after })
    }
    /// The text afterwards; `None` where the text is not the one that was planned for. One that is changed already
    /// stays as it is.
    pub fn apply(&self, text: &str) -> Option<String> {
        let digest = sha256_hex(text.as_bytes());
        if digest == self.after {
            return Some(text.to_owned());
        }
        let changed = (digest == self.before).then(|| splice(text, &self.splices).ok()).flatten()?;
        (sha256_hex(changed.as_bytes()) == self.after).then_some(changed)
    }
}

/// Changes of a file that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEdit {
    /// The file. Its mode and owner stay.
    pub path: PathBuf,
    /// What changes in it.
    #[serde(flatten)]
    pub edit: TextEdit,
}

impl FileEdit {
    /// The edit of a file's text.
    pub fn new(path: impl Into<PathBuf>, text: &str, splices: Vec<Splice>) -> Result<Self, SpliceError> {
        Ok(Self { path: path.into(), edit: TextEdit::new(text, splices)? })
    }
    /// As [`TextEdit::apply`].
    pub fn apply(&self, text: &str) -> Option<String> {
        self.edit.apply(text)
    }
}

/// A change of the host's network as one guarded whole: new files, removed files, what must answer afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSwitch {
    /// The bridge.
    pub bridge: InterfaceName,
    /// Its port.
    pub uplink: InterfaceName,
    /// The link that has the host's addresses now.
    pub from: InterfaceName,
    /// The link that has them afterwards.
    pub to: InterfaceName,
    /// The bridge's address, which is the uplink's.
    pub mac: MacAddress,
    /// Files that change at some places only.
    #[serde(default)]
    pub edit: Vec<FileEdit>,
    /// Files as they will be.
    #[serde(default)]
    pub write: Vec<FileWrite>,
    /// Files that go away.
    #[serde(default)]
    pub remove: Vec<PathBuf>,
    /// Links of ours that go away with the change.
    #[serde(default)]
    pub delete_links: Vec<InterfaceName>,
    /// Links that the change makes, and that go away when it is undone.
    #[serde(default)]
    pub made_links: Vec<InterfaceName>,
    /// What must answer; anything that did not answer before the change is left out when the step runs.
    pub proofs: BTreeSet<Proof>,
    /// How long the guard waits for the proofs, in seconds.
    pub patience_s: u32,
}

impl NetworkSwitch {
    /// The files that it changes in whichever way.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.edit.iter().map(|e| &e.path).chain(self.write.iter().map(|f| &f.path)).chain(&self.remove)
    }
}

/// A volume to be made or grown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStep {
    /// The pool that it is in.
    pub pool: ResourceName,
    /// Its name in the pool (`desktop-0.qcow2`).
    pub name: String,
    /// What the guest sees.
    pub size: ByteSize,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Grow an existing one in place of making it.
    pub grow: bool,
    /// An earlier run began to make it, so that a file of its name that libvirt has not listed is what that run left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
    /// What it begins as: the file that says what is kept of an image. The image itself stays as it is, and backs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
}

/// Where block volumes are: storage that a person made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BlockStore {
    /// A volume group of LVM's.
    Lvm {
        /// Its name.
        group: String,
    },
    /// A thin pool in a volume group.
    LvmThin {
        /// The group.
        group: String,
        /// The pool.
        pool: String,
    },
    /// A dataset of ZFS's, with volumes below it.
    Zfs {
        /// Its name.
        dataset: String,
    },
}

impl BlockStore {
    /// The node of a volume.
    pub fn device(&self, volume: &str) -> PathBuf {
        match self {
            BlockStore::Lvm { group } | BlockStore::LvmThin { group, .. } => format!("/dev/{group}/{volume}").into(),
            BlockStore::Zfs { dataset } => format!("/dev/zvol/{dataset}/{volume}").into(),
        }
    }
    /// A volume by the name that its tools take.
    pub fn volume(&self, volume: &str) -> String {
        match self {
            BlockStore::Lvm { group } | BlockStore::LvmThin { group, .. } => format!("{group}/{volume}"),
            BlockStore::Zfs { dataset } => format!("{dataset}/{volume}"),
        }
    }
    /// It by the name that its tools take.
    pub fn words(&self) -> String {
        match self {
            BlockStore::Lvm { group } => group.clone(),
            BlockStore::LvmThin { group, pool } => format!("{group}/{pool}"),
            BlockStore::Zfs { dataset } => dataset.clone(),
        }
    }
    /// The command that deletes a volume. LVM asks where a volume is active, and is answered; neither of the two deletes one
    /// that is open, nor zfs-destroy(8) one that has snapshots.
    pub fn removal(&self, volume: &str) -> (Program, Vec<String>) {
        match self {
            BlockStore::Lvm { .. } | BlockStore::LvmThin { .. } => {
                (Program::Lvremove, vec!["--yes".to_owned(), self.volume(volume)])
            }
            BlockStore::Zfs { .. } => (Program::Zfs, vec!["destroy".to_owned(), self.volume(volume)]),
        }
    }
    /// What a person types to delete a volume.
    pub fn remove_words(&self, volume: &str) -> String {
        let program = match self {
            BlockStore::Lvm { .. } | BlockStore::LvmThin { .. } => "lvremove",
            BlockStore::Zfs { .. } => "zfs destroy",
        };
        format!("{program} {}", self.volume(volume))
    }
}

impl std::fmt::Display for BlockStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BlockStore::Lvm { group } => write!(f, "volume group {group}"),
            BlockStore::LvmThin { group, pool } => write!(f, "thin pool {group}/{pool}"),
            BlockStore::Zfs { dataset } => write!(f, "dataset {dataset}"),
        }
    }
}

/// A block volume to be made or grown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockVolumeStep {
    /// Where it is.
    pub store: BlockStore,
    /// Its name there.
    pub name: String,
    /// What the guest sees, at least: rounded up to whole extents, or to whole MiB.
    pub size: ByteSize,
    /// The VM that it is for, which is written at it.
    pub vm: DomainName,
    /// Grow an existing one in place of making it.
    pub grow: bool,
    /// What is written to it once: the file that says what is kept of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The name of that image, which is written at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<ResourceName>,
}

/// An image to be had: fetched, checked, and only then put where disks can be made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FetchStep {
    /// Its name.
    pub name: ResourceName,
    /// The directory of the pool that it is for.
    pub pool: PathBuf,
    /// Where it comes from.
    pub origin: Origin,
    /// What it has to add up to, whatever a list says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What a person asked for the newest with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// A CD-ROM drive has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub medium: bool,
}

/// An operating system to be installed onto a blank disk, by an installer's medium that a VM is started with once. Its
/// stored definition stays what it is: no other start installs anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstallStep {
    /// The VM.
    pub name: DomainName,
    /// What it is started with: nothing but that disk, and in the place of the medium the file that says what is kept of it.
    pub xml: String,
    /// That file.
    pub image: PathBuf,
    /// Where the medium's kernel is put for that start.
    pub kernel: PathBuf,
    /// Where its initramfs is.
    pub initrd: PathBuf,
    /// The disk. One that something was written to is left as it is, and nothing is started.
    pub disk: PathBuf,
}

/// A small file that is copied as a whole, with its mode and owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileCopy {
    /// The file.
    pub from: PathBuf,
    /// Where its copy goes.
    pub to: PathBuf,
}

/// A volume that begins as the file of another disk, which nobody writes to meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyVolumeStep {
    /// The pool that it is in.
    pub pool: ResourceName,
    /// Its name in the pool.
    pub name: String,
    /// Where that is.
    pub path: PathBuf,
    /// The file.
    pub from: PathBuf,
    /// What that is: `qcow2`, `raw`.
    pub format: String,
    /// A layer over the file in place of a copy of all that is in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub linked: bool,
}

/// A snapshot to be made: disks go on in new files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStep {
    /// The VM.
    pub name: DomainName,
    /// The snapshot.
    pub snapshot: ResourceName,
    /// As libvirt is told of it (formatsnapshot).
    pub xml: String,
    /// Each disk by its name in the definition, with the new file that it goes on in.
    pub layers: Vec<(String, PathBuf)>,
    /// What libvirt does not keep in a snapshot, copied before it is made.
    pub copies: Vec<FileCopy>,
    /// The agent in its guest has it write everything out, and hold its writes meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiesce: bool,
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
        match self {
            Step::WriteFile(file) => vec![file.path.display().to_string()],
            Step::RemoveFile { path } | Step::Link { path, .. } | Step::RestoreFile { path } => {
                vec![path.display().to_string()]
            }
            Step::SwitchNetwork(switch) => switch.paths().map(|p| p.display().to_string()).collect(),
            Step::DefineDomain { name, .. }
            | Step::CloneDomain { name, .. }
            | Step::RestoreDomain { name, .. }
            | Step::EditDomain { name, .. }
            | Step::UndefineDomain { name, .. }
            | Step::MarkDomain { name, .. } => {
                vec![format!("domain {name}")]
            }
            Step::CopyFile(copy) => vec![copy.to.display().to_string()],
            Step::CopyVolume(copy) => vec![format!("volume {}/{}", copy.pool, copy.name)],
            Step::CloneSeed { to, .. } => vec![to.display().to_string()],
            Step::NewLayer { path, .. } | Step::RebaseLayer { path, .. } | Step::RemoveLayer { path } => {
                vec![path.display().to_string()]
            }
            Step::CommitLayer { into, .. } => vec![into.display().to_string()],
            Step::Volume(volume) => vec![format!("volume {}/{}", volume.pool, volume.name)],
            Step::BlockVolume(step) => vec![step.store.device(&step.name).display().to_string()],
            Step::RemoveBlockVolume { store, name, .. } => vec![store.device(name).display().to_string()],
            Step::RemoveVolume { pool, name } => vec![format!("volume {pool}/{name}")],
            Step::Fetch(fetch) => vec![format!("image {} in {}", fetch.name, fetch.pool.display())],
            Step::RemoveImage { path } | Step::Seed { path, .. } => vec![path.display().to_string()],
            Step::VirtualFunctions(step) => vec![format!("virtual functions of {}", step.physical)],
            Step::Vgpus(step) => vec![format!("vGPUs of {}", step.physical)],
            Step::Mig(step) => vec![format!("MIG of {}", step.physical)],
            Step::BindSlot(binding) => binding.functions.iter().map(|(a, _)| format!("function {a}")).collect(),
            _ => Vec::new(),
        }
    }
}
