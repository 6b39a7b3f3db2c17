//! `drivers`: what drives the GPUs that stay with the host. A host that gives all of them to VMs needs none.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AptWord, CudaVersion, Fingerprint, NvidiaBranch, NvidiaVersion, WebAddress};

/// Drivers for the GPUs that stay with the host, by maker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DriversSection {
    /// NVIDIA's own driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvidia: Option<NvidiaEntry>,
    /// The kernel's driver for AMD's cards, with the firmware that it loads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amd: Option<InKernelEntry>,
    /// The kernel's driver for Intel's, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel: Option<InKernelEntry>,
}

/// NVIDIA's driver. One of `branch` and `version` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NvidiaEntry {
    /// The branch that it stays on, whatever newer ones there are (`"580"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<NvidiaBranch>,
    /// One exact version (`"580.95.05"`, or with the package's revision).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<NvidiaVersion>,
    /// Which kernel modules: as the cards demand, or one that they can work with.
    #[serde(default)]
    pub kernel_module: KernelModule,
    /// Where the packages come from.
    #[serde(default)]
    pub source: PackageSource,
    /// The CUDA toolkit, with PATH and the linker's cache (`"13-0"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<CudaVersion>,
    /// What starts containers with GPUs: the container toolkit is installed, and configures each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerRuntime>,
    /// The driver may go back to an older version than the one that is installed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_downgrade: bool,
}

/// A driver of the kernel's own. Nothing is left to say of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InKernelEntry {}

/// Which of NVIDIA's kernel modules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum KernelModule {
    /// The open ones where every card can work with them, else the proprietary ones. A card that is not known is asked
    /// for.
    #[default]
    Auto,
    /// For cards from Turing on, and the only ones for Blackwell.
    Open,
    /// For cards before Blackwell, and the only ones before Turing.
    Proprietary,
}

/// Where packages come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PackageSource {
    /// apt's sources as they are on the host.
    #[default]
    Distribution,
    /// A repository that is added to them.
    Repository(RepositoryEntry),
}

/// A package repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RepositoryEntry {
    /// Its address.
    pub url: WebAddress,
    /// The key that signs it, in ASCII armour: a file beside the manifest. No other key is trusted for it.
    pub key: PathBuf,
    /// That key's fingerprint. Another key in the file is refused.
    pub fingerprint: Fingerprint,
    /// The suite; `/` for a flat repository as NVIDIA's are, and where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<AptWord>,
    /// Its components; a flat repository has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<AptWord>,
    /// Priority of its packages among those of other sources (apt_preferences(5)); 500 as for any source where left out,
    /// NVIDIA's own is 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<u16>,
}

/// What starts containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ContainerRuntime {
    /// Docker: a runtime of its own in /etc/docker/daemon.json.
    Docker,
    /// containerd likewise.
    Containerd,
    /// Podman, which reads the device interface's files.
    Podman,
    /// The container device interface (CDI) alone.
    Cdi,
}
