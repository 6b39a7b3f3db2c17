//! The kinds of thing that gpuvm manages. A kind looks at its own state and compiles the difference to steps; it never
//! changes anything and never reads the manifest. One kind a file, its `mod`, and one line in the list below (rustfmt does
//! not look for modules in a macro).

pub mod apt_source;
pub mod block_volume;
mod boot_files;
pub mod bridge;
pub mod chains;
pub mod container_runtime;
pub mod driver;
pub mod file;
pub mod group_member;
pub mod image;
pub mod kernel_arg;
pub mod layers;
mod libvirt;
pub mod libvirt_domain;
pub mod libvirt_network;
pub mod mig;
pub mod module;
pub mod package;
pub mod pool;
pub mod program;
pub mod seed;
pub mod service;
pub mod shared_gpu;
pub mod snapshots;
pub mod start_hook;
pub mod tops;
pub mod vfio_binding;
pub mod vgpu;
pub mod virtual_functions;
pub mod vmctl;
pub mod volume;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::Place;
use crate::plan::{Diff, Key};

/// What a kind has to say. `Self` is the wanted state: plain data that is also kept in the ledger as "last applied".
pub trait Resource: Sized + Clone + Serialize + DeserializeOwned + 'static {
    /// Stable: it is in saved plans, in the ledger and on the command line.
    const KIND: &'static str;
    /// What is there, configured and running.
    type State;
    /// The name within the kind; empty where there is one only.
    fn name(&self) -> String;
    /// As the ledger has it from its first step until its last: with what is owed should that never come.
    fn begun(&self) -> Self {
        self.clone()
    }
    /// As the ledger has it once it was applied: with what only the past tells. `last` is what the ledger had of it, `made`
    /// whether it was not there before.
    fn kept(&self, _last: Option<&Self>, _made: bool) -> Self {
        self.clone()
    }
    /// Looks at what is there.
    fn probe(&self, host: &dyn Probe) -> Result<Self::State, HostError>;
    /// Looks at what there is to take back, which may be more than is compared otherwise.
    fn probe_removal(&self, host: &dyn Probe) -> Result<Self::State, HostError> {
        self.probe(host)
    }
    /// Compares; pure. `last` is what was applied last, where it is ours.
    fn diff(&self, state: &Self::State, last: Option<&Self>, facts: &HostFacts) -> Diff;
    /// It left the manifest and is ours (`self` is what was applied last): how to take it back; pure.
    /// `InSync` means that nothing is left of it, and the ledger forgets it; `Stays` says whether it does.
    fn remove(&self, state: &Self::State, facts: &HostFacts) -> Diff;
    /// What the next boot changes because of it, beside what its own steps change: recorded for the way back.
    fn at_boot(&self, _: &dyn Probe) -> Vec<Place> {
        Vec::new()
    }
    /// The key in plans.
    fn key(&self) -> Key {
        Key::new(Self::KIND, self.name())
    }
}

/// The list of kinds: an enum over them, and the functions that go to the right one.
macro_rules! kinds {
    ($($module:ident :: $kind:ident),* $(,)?) => {
        /// A wanted thing of any kind.
        // There are some dozens on a host, and each lies in a map once.
        #[expect(clippy::large_enum_variant, reason = "boxing the largest kind saves nothing that matters")]
        #[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub enum Wanted {
            $(
                #[doc = concat!("See [`", stringify!($module), "`].")]
                $kind($module::$kind),
            )*
        }

        impl Wanted {
            /// Every kind's stable name, for `--only`, `--skip` and the guard that none lacks a test case.
            pub const KINDS: &'static [&'static str] = &[$($module::$kind::KIND),*];

            /// The key in plans.
            pub fn key(&self) -> Key {
                match self { $(Wanted::$kind(r) => r.key(),)* }
            }
            /// See [`Resource::begun`].
            pub fn begun(&self) -> Wanted {
                match self { $(Wanted::$kind(r) => Wanted::$kind(r.begun()),)* }
            }
            /// See [`Resource::kept`].
            pub fn kept(&self, last: Option<&Wanted>, made: bool) -> Wanted {
                match self {
                    $(Wanted::$kind(r) => {
                        let last = last.and_then(|l| match l { Wanted::$kind(l) => Some(l), #[allow(unreachable_patterns)] _ => None });
                        Wanted::$kind(r.kept(last, made))
                    })*
                }
            }
            /// What the next boot changes because of it.
            pub fn at_boot(&self, host: &dyn Probe) -> Vec<Place> {
                match self { $(Wanted::$kind(r) => r.at_boot(host),)* }
            }
            /// Looks and compares.
            pub fn compare(&self, last: Option<&Wanted>, host: &dyn Probe, facts: &HostFacts) -> Result<Diff, HostError> {
                match self {
                    $(Wanted::$kind(r) => {
                        let last = last.and_then(|l| match l { Wanted::$kind(l) => Some(l), #[allow(unreachable_patterns)] _ => None });
                        Ok(r.diff(&r.probe(host)?, last, facts))
                    })*
                }
            }
            /// It left the manifest: looks, and says how to take it back.
            pub fn compare_removal(&self, host: &dyn Probe, facts: &HostFacts) -> Result<Diff, HostError> {
                match self { $(Wanted::$kind(r) => Ok(r.remove(&r.probe_removal(host)?, facts)),)* }
            }
        }

        $(impl From<$module::$kind> for Wanted {
            fn from(r: $module::$kind) -> Self { Wanted::$kind(r) }
        })*
    };
}

kinds! {
    apt_source::AptSource,
    package::PackageSet,
    file::File,
    kernel_arg::KernelArgs,
    module::Modules,
    service::Service,
    group_member::GroupMember,
    vfio_binding::VfioBinding,
    driver::Driver,
    container_runtime::ContainerRuntime,
    shared_gpu::SharedGpu,
    virtual_functions::VirtualFunctions,
    vgpu::Vgpus,
    mig::Mig,
    bridge::Bridge,
    pool::Pool,
    image::Image,
    volume::Volume,
    block_volume::BlockVolume,
    seed::Seed,
    libvirt_network::LibvirtNetwork,
    libvirt_domain::LibvirtDomain,
    program::InstalledProgram,
    vmctl::Vmctl,
}

mod adopt;

pub use adopt::ADOPTABLE;

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use crate::facts::{self, HostFacts};
    use crate::host::fixture::{Fixture, Record};

    /// A folder that plays a machine's root for a shipped script.
    pub(crate) struct PlayedRoot(tempfile::TempDir);

    impl PlayedRoot {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }
        pub(crate) fn at(&self, path: &str) -> PathBuf {
            self.path().join(path)
        }
        pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
            let at = self.at(path);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::fs::write(at, content).unwrap();
        }
        pub(crate) fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.at(path)).unwrap_or_default()
        }
        /// A program of this name in `bin`.
        pub(crate) fn program(&self, name: &str, text: &str) {
            self.program_at(&format!("bin/{name}"), text);
        }
        /// The same at a place that scripts know.
        pub(crate) fn program_at(&self, path: &str, text: &str) {
            self.write(path, format!("#!/bin/sh\n{text}"));
            std::fs::set_permissions(self.at(path), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// The facts of a host of which nothing is known.
    pub(crate) fn facts() -> HostFacts {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root")).unwrap();
        Record::default().save(&dir.path().join(Record::NAME)).unwrap();
        facts::collect(&Fixture::open(dir.path()).unwrap())
    }
}
