//! Images that steps fetch, and the systems that they install from one.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::{Digest, Origin};
use crate::types::{DomainName, ResourceName};

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
