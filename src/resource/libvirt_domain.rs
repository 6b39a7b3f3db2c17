//! A VM: its definition at libvirt, whether it starts with the host, and whether it runs.
//!
//! A new one comes from the writer. One that is there and ours is edited in place: the managed fields are compared, and
//! only what differs is spliced into its inactive definition; every other byte stays. One that is not ours is never
//! touched. A running VM is never powered off: its stored definition changes, and the rest waits for its next start.

mod adopt;
mod clone;
mod compare;
mod differences;
mod drives;
mod extras;
mod given;
mod install;
mod once;
mod others;
mod parts;
mod plug;
mod read;
mod splice;
mod tops;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use clone::{Clone, as_clone, cards};
pub use compare::keep_tpm;
pub use drives::{Drive, Source, drives, with_file_moved, with_sources};
pub use extras::{Display, Extra};
pub use given::user_of;
pub use install::{Install, with_medium};
pub use others::others_with_its_devices;
pub use parts::{
    Accel, Addition, Arch, Disk, DiskOptions, Firmware, Kernel, Near, Nic, NicOn, PassedSlot, Pins, Topology,
};
pub use plug::{passed_function, plugs, unplugs, with_slot, without_slot};
pub use read::{Projection, disk_files, has_disk, is_marked, managed_functions, nvram, project, raw_and_others, taps};
pub use splice::{with_mark, with_passwords, with_uuid, without_private_parts};
pub use write::MARK;

use super::Resource;
use super::chains::chain_of;
use super::libvirt::{Libvirt, ask, known};
use super::tops::Top;
use crate::facts::HostFacts;
use crate::host::{Answer, HostError, Probe, Virtualisation};
use crate::image::Cached;
use crate::plan::{Action, Change, Diff, Step, WaitFor};
use crate::types::{ByteSize, DomainName, ResourceName, cpu_list, cpu_list_text};

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

impl LibvirtDomain {
    fn define(&self, state: &DomainState) -> Step {
        let xml = write::new(&self.on_tops(state));
        Step::DefineDomain { name: self.name.clone(), xml, autostart: self.autostart }
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
        change.notes.extend(self.told_of_tops(state));
        change.steps.push(self.define(state));
        self.install_when_made(state, &mut change);
        if (self.start_when_made || self.running == Some(true)) && self.running != Some(false) {
            change.steps.push(self.start());
        }
        change
    }
    /// A pool of its disks is not started: which volumes there are is not known yet.
    fn unready_pool(&self, known: &Virtualisation) -> Option<ResourceName> {
        let mut pools = self.disks.iter().filter(|d| !d.block).filter_map(|d| d.pool.as_ref());
        pools.find(|pool| known.pool(pool.as_str()).is_some_and(|p| !p.active)).cloned()
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
    /// What its disks that it has not yet go on in; else why that cannot be told.
    tops: BTreeMap<PathBuf, Result<Top, String>>,
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
            tops: BTreeMap::new(),
        }
    }
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

    fn kept(&self, last: Option<&Self>, made: bool) -> Self {
        self.made_with(last, made)
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
        let Answer::Value(known) = &state.libvirt else { return Ok(state) };
        let known = known.clone();
        let files = known.domain(self.name.as_str()).map(|d| disk_files(&d.inactive_xml)).unwrap_or_default();
        for file in files.into_iter().map(PathBuf::from) {
            let chain = chain_of(&file, &known, host);
            state.chains.insert(file, chain);
        }
        if !self.absent {
            self.look_at_tops(&mut state, &known, host);
        }
        // What is under layers is not written to, blank or not.
        let under = |path: &PathBuf| {
            Self::layer_over(&state, path).is_some() || state.chains.values().flatten().any(|under| under == path)
        };
        if state.blank == Answer::Value(true) && self.disks.first().is_some_and(|d| under(&d.path)) {
            state.blank = Answer::Value(false);
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
                None => self.refused_below(state, true).unwrap_or_else(|| Diff::Change(self.creation(state))),
            },
        }
    }
}

#[cfg(test)]
mod tests;
