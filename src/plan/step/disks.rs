//! The disks that steps make, grow, copy and delete: volumes of pools, block volumes, snapshots of both.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FileCopy;
use crate::host::Program;
use crate::types::{ByteSize, DomainName, ResourceName};

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
        let folder = match self {
            BlockStore::Lvm { .. } | BlockStore::LvmThin { .. } => "/dev",
            BlockStore::Zfs { .. } => "/dev/zvol",
        };
        format!("{folder}/{}", self.volume(volume)).into()
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
