//! What the manifest wants of this host: one section a file, each a pure function from manifest and facts to resources
//! and the edges between them. What a section implies (packages, modules, groups, a pool) is wanted here, once.

mod addresses;
mod bridge;
mod capacity;
mod drivers;
mod gpus;
mod groups;
mod guests;
mod host_basics;
mod huge_pages;
mod images;
mod mig;
mod nvidia;
mod nvswitch;
mod parts;
mod program;
mod sockets;
mod starts;
mod vgpu;
mod virtual_functions;
mod vms;

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::HostFacts;
use crate::manifest::Loaded;
use crate::plan::{Finding, Key};
use crate::resource::Wanted;
use crate::types::{PackageName, PciSlot};

/// One wanted thing with where it comes from and what has to be there before it.
#[derive(Debug, Clone)]
pub struct Node {
    /// The thing.
    pub wanted: Wanted,
    /// What in the manifest it follows from: `gpus.work`, `vms`.
    pub from: String,
    /// What has to be there before it.
    pub after: BTreeSet<Key>,
}

pub use addresses::GATEWAY;
pub use capacity::{ADMISSION, runs};
pub use gpus::{resolve, slot_of};
pub use host_basics::secrets;
pub use nvswitch::{modules, slots_of};
pub use program::installs_program;
pub use vms::IMAGES;

/// Everything that is wanted of the host, by key.
#[derive(Debug, Default)]
pub struct Desired {
    /// The wanted things.
    pub nodes: BTreeMap<Key, Node>,
    /// What is wrong with manifest and host together; an error blocks the plan.
    pub findings: Vec<Finding>,
    /// The slots that VMs may have, in whichever way.
    pub for_vms: BTreeSet<PciSlot>,
    /// The slots that stay with the host by the manifest's word, each with the place of that.
    pub for_host: BTreeMap<PciSlot, String>,
    /// What is to be taken over as it is, in place of being brought to what is wanted.
    pub adopt: BTreeSet<Key>,
}

impl Desired {
    /// Adds a thing. One that is wanted twice keeps the first `from` and gets the edges of both.
    pub fn want(&mut self, from: &str, after: impl IntoIterator<Item = Key>, wanted: impl Into<Wanted>) -> Key {
        let wanted = wanted.into();
        let key = wanted.key();
        let node = self.nodes.entry(key.clone()).or_insert_with(|| Node {
            wanted,
            from: from.to_owned(),
            after: BTreeSet::new(),
        });
        node.after.extend(after);
        key
    }
}

/// What sections want of things of which a host has one only: a list is one resource, so that one place on the host has
/// one owner. Sections add to it; `host_basics` turns it into resources at the end.
#[derive(Debug, Default)]
pub struct Shared {
    /// Packages, each with the sections that want it.
    pub packages: BTreeMap<String, BTreeSet<String>>,
    /// Packages that must not be there.
    pub absent_packages: BTreeSet<String>,
    /// How the versions of some packages have to begin.
    pub versions: BTreeMap<PackageName, String>,
    /// Packages that may be replaced or removed for those that are wanted.
    pub replaceable: BTreeSet<PackageName>,
    /// Whether these may go back to an older version.
    pub older: bool,
    /// Why apt cannot be asked about packages yet.
    pub packages_wait: Option<String>,
    /// What has to be there before apt is asked about packages.
    pub before_packages: BTreeSet<Key>,
    /// Arguments for the kernel's command line, each with the section that wants it.
    pub kernel_args: BTreeMap<String, String>,
    /// Modules to be loaded at boot and now, each with the section that wants it.
    pub modules: BTreeMap<String, String>,
    /// (group, user) pairs with the section that wants them.
    pub members: BTreeMap<(String, String), String>,
}

/// Everything that the manifest wants of a host with these facts.
pub fn desire(manifest: &Loaded, facts: &HostFacts) -> Desired {
    let mut desired = Desired::default();
    let mut shared = Shared::default();
    gpus::desire(manifest, facts, &mut desired, &mut shared);
    bridge::desire(manifest, &mut desired);
    vms::desire(manifest, facts, &mut desired, &mut shared);
    addresses::check(&manifest.manifest, facts, &mut desired);
    capacity::check(&manifest.manifest, facts, &mut desired);
    nvswitch::check(&manifest.manifest, facts, &mut desired);
    groups::check(&manifest.manifest, facts, &mut desired);
    drivers::desire(manifest, facts, &mut desired, &mut shared);
    host_basics::desire(manifest, facts, &mut desired, shared);
    program::desire(manifest, facts, &mut desired);
    desired.findings.sort();
    desired
}
