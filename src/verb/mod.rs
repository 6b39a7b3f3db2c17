//! Verbs: what a person asks for beside the manifest (`gpuvm vm start desktop`). A verb is data, kept with its run, and
//! compiled to a plan from the host as it is: again in each round, after a boot, after a kill. So it says when it is
//! done by itself, and goes through the lock, journal and record of any other run.
//!
//! A new verb is one variant of [`Verb`] with its words, and one arm of [`compile`] that says what it comes to on a host;
//! the compiler points to both. Its steps are those of the one list; an effect that no step has yet is a new step.

mod clone;
mod delete;
mod gpu;
mod snapshot;
mod template;
mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::{
    Change, Diff, Entry, Finding, Key, PLAN_FORMAT, Past, Plan, Risk, Severity, host_line, judge_room, name_guests,
    order, refuse_taken,
};
use crate::resource::Wanted;
use crate::resource::vfio_binding::Card;
use crate::types::{DomainName, PciSlot, ResourceName, sha256_hex};

pub use clone::nvram_of;
pub use snapshot::{Asked, asked, layers_of};

/// What is asked for. Plain data: it lies in the run's order until it has ended, and in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// A VM runs.
    StartVm {
        /// Its name.
        name: DomainName,
        /// The VMs that have its devices are shut down first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        swap: bool,
    },
    /// A VM is off.
    StopVm {
        /// Its name.
        name: DomainName,
        /// How long its guest may take.
        #[serde(default)]
        how: Stop,
    },
    /// A VM runs, and not from the start that it ran from when it was asked for.
    RestartVm {
        /// Its name.
        name: DomainName,
        /// libvirt's number of that start; none where it was off.
        ran_as: Option<u32>,
        /// How long its guest may take.
        #[serde(default)]
        how: Stop,
    },
    /// A VM is gone.
    DeleteVm {
        /// Its name.
        name: DomainName,
        /// The one that was asked about; none where only disks of it are left.
        uuid: Option<String>,
        /// Its disks stay.
        #[serde(default)]
        keep_disks: bool,
    },
    /// A VM is there that begins as another.
    CloneVm {
        /// The other.
        from: DomainName,
        /// Its name.
        name: DomainName,
        /// As the other was then; as it is now where none is said.
        snapshot: Option<ResourceName>,
        /// Its disks are layers over what the snapshot holds.
        #[serde(default)]
        linked: bool,
        /// The passed devices that it is to have too.
        #[serde(default)]
        keeps: BTreeSet<PciSlot>,
    },
    /// A VM's first disk is kept as a template, to make others from.
    SaveTemplate {
        /// The VM.
        name: DomainName,
        /// The template.
        template: ResourceName,
    },
    /// A template is gone.
    DeleteTemplate {
        /// The template.
        template: ResourceName,
    },
    /// A snapshot of a VM is there.
    CreateSnapshot {
        /// The VM.
        name: DomainName,
        /// The snapshot.
        snapshot: ResourceName,
        /// The number of the layers that its disks go on in.
        layer: u32,
    },
    /// A VM is as it was when a snapshot was made.
    RestoreSnapshot {
        /// The VM.
        name: DomainName,
        /// The snapshot.
        snapshot: ResourceName,
        /// The number of the layers that its disks go on in.
        layer: u32,
        /// How it is now is kept as this snapshot; else it is lost.
        keep: Option<ResourceName>,
        /// The layers that nothing needs any more once it is back.
        #[serde(default)]
        leaves: Vec<PathBuf>,
    },
    /// A snapshot of a VM is gone.
    DeleteSnapshot {
        /// The VM.
        name: DomainName,
        /// The snapshot.
        snapshot: ResourceName,
        /// It was there when that was asked, or what a run that failed left of one.
        seen: bool,
    },
    /// A VM has a GPU, now where that can be, else from its next start on.
    AttachGpu(MovedGpu),
    /// A VM does not have a GPU any more, and its functions are on their own drivers again.
    DetachGpu(MovedGpu),
}

/// A GPU that goes to a VM or comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MovedGpu {
    /// The VM.
    pub vm: DomainName,
    /// The GPU as it was named.
    pub gpu: String,
    /// Its slot.
    pub slot: PciSlot,
    /// The card in it: another one there is refused.
    pub card: Card,
    /// Whether the manifest keeps it for VMs, so that it stays on vfio-pci when it comes back.
    pub kept: bool,
    /// Whether host and VMs share it: it changes hands when a VM starts or ends, and at no other time.
    #[serde(default)]
    pub shared: bool,
    /// The places of GPUs on a board with NVSwitches that the manifest gives.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modules: BTreeMap<PciSlot, u8>,
}

impl MovedGpu {
    /// As it was named, with its slot.
    fn named(&self) -> String {
        let slot = self.slot.to_string();
        if self.gpu == slot { slot } else { format!("{} ({slot})", self.gpu) }
    }
}

/// How a VM is stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// How long its guest is waited for, in seconds; the usual time where none is said.
    #[serde(default)]
    pub patience_s: Option<u32>,
    /// Its power is cut when that is over.
    #[serde(default)]
    pub force: bool,
}

impl Stop {
    fn words(&self) -> String {
        let patience = self.patience_s.map_or(String::new(), |s| format!(" --timeout {s}"));
        format!("{patience}{}", if self.force { " --force" } else { "" })
    }
}

/// How a verb is spoken about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// It is done without a question: what it does is what its words say, and `gpuvm undo` takes it back.
    pub plain: bool,
    /// Whether `gpuvm undo` can take it back, where the plan names nothing that is lost.
    undoable: bool,
}

impl Compiled {
    /// A thing of it, and what has to be done before.
    fn entry(&mut self, key: &Key, after: impl IntoIterator<Item = Key>, diff: Diff) {
        let after = after.into_iter().collect();
        self.entries.push(Entry { key: key.clone(), from: String::new(), after, diff });
    }
}

impl Verb {
    /// As it is typed, without `gpuvm`.
    pub fn words(&self) -> String {
        match self {
            Verb::StartVm { name, swap } => format!("vm start {name}{}", if *swap { " --swap" } else { "" }),
            Verb::AttachGpu(m) => format!("gpu attach {} {}", m.vm, m.gpu),
            Verb::DetachGpu(m) => format!("gpu detach {} {}", m.vm, m.gpu),
            Verb::StopVm { name, how } => format!("vm stop {name}{}", how.words()),
            Verb::RestartVm { name, how, .. } => format!("vm restart {name}{}", how.words()),
            Verb::CloneVm { from, name, snapshot, linked, keeps } => {
                let of = snapshot.as_ref().map_or(String::new(), |s| format!(" --snapshot {s}"));
                let keeps: String = keeps.iter().map(|slot| format!(" --gpu {slot}")).collect();
                format!("vm clone {from} {name}{of}{}{keeps}", if *linked { " --linked" } else { "" })
            }
            Verb::SaveTemplate { name, template } => format!("vm template save {name} {template}"),
            Verb::DeleteTemplate { template } => format!("vm template delete {template}"),
            Verb::CreateSnapshot { name, snapshot, .. } => format!("vm snapshot create {name} {snapshot}"),
            Verb::RestoreSnapshot { name, snapshot, keep, .. } => {
                let keep = keep.as_ref().map_or("--discard".to_owned(), |keep| format!("--keep {keep}"));
                format!("vm snapshot restore {name} {snapshot} {keep}")
            }
            Verb::DeleteSnapshot { name, snapshot, .. } => format!("vm snapshot delete {name} {snapshot}"),
            Verb::DeleteVm { name, keep_disks, .. } => {
                format!("vm delete {name}{}", if *keep_disks { " --keep-disks" } else { "" })
            }
        }
    }

    /// How it is, once it is done.
    pub fn done(&self) -> String {
        match self {
            Verb::StartVm { name, .. } => format!("{name} runs"),
            Verb::AttachGpu(m) => format!("{} has {}", m.vm, m.named()),
            Verb::DetachGpu(m) => format!("{} does not have {}", m.vm, m.named()),
            Verb::StopVm { name, .. } => format!("{name} is off"),
            Verb::RestartVm { name, .. } => format!("{name} runs anew"),
            Verb::CloneVm { from, name, .. } => format!("{name} begins as {from}"),
            Verb::SaveTemplate { template, .. } => format!("there is the template {template}"),
            Verb::DeleteTemplate { template } => format!("there is no template {template}"),
            Verb::CreateSnapshot { name, snapshot, .. } => format!("{name} has the snapshot {snapshot}"),
            Verb::RestoreSnapshot { name, snapshot, .. } => format!("{name} is as in its snapshot {snapshot}"),
            Verb::DeleteSnapshot { name, snapshot, .. } => format!("{name} has no snapshot {snapshot}"),
            Verb::DeleteVm { name, .. } => format!("{name} is gone"),
        }
    }

    /// Whether `gpuvm undo` can take it back, as it was planned.
    pub fn is_undoable(&self, approved: &Plan) -> bool {
        // Without its disks, a deleted VM has nothing to lose but what the plan names.
        let loses = |c: &Change| c.risks.contains(&Risk::DataLoss);
        let deletes = matches!(self, Verb::DeleteVm { .. });
        self.manner().undoable && !(deletes && approved.changes().any(|(_, c)| loses(c)))
    }

    /// How it is spoken about.
    pub fn manner(&self) -> Manner {
        match self {
            Verb::StartVm { .. } | Verb::StopVm { .. } => Manner { plain: true, undoable: true },
            Verb::RestartVm { .. } => Manner { plain: true, undoable: false },
            Verb::CreateSnapshot { .. } => Manner { plain: true, undoable: true },
            Verb::RestoreSnapshot { keep, .. } => Manner { plain: false, undoable: keep.is_some() },
            Verb::SaveTemplate { .. } => Manner { plain: false, undoable: true },
            Verb::DeleteTemplate { .. } | Verb::DeleteSnapshot { .. } => Manner { plain: false, undoable: false },
            Verb::DeleteVm { keep_disks, .. } => Manner { plain: false, undoable: *keep_disks },
            Verb::CloneVm { .. } | Verb::AttachGpu(_) | Verb::DetachGpu(_) => Manner { plain: false, undoable: true },
        }
    }
}

/// What a verb comes to on a host.
#[derive(Debug, Default)]
struct Compiled {
    /// The things that it changes, each compared with how it is to be. One that is as it is to be is in sync.
    entries: Vec<Entry>,
    /// What a person should know before.
    findings: Vec<Finding>,
    /// What becomes of the ledger's word on a thing once it is in sync: gpuvm's like this, or no longer. What is not
    /// named here stays as it is.
    ours: BTreeMap<Key, Option<Wanted>>,
}

/// What a verb is compiled from.
#[derive(Clone, Copy)]
struct Look<'a> {
    past: &'a Past,
    probe: &'a dyn Probe,
    facts: &'a HostFacts,
}

/// The one place that knows them all.
fn compile(verb: &Verb, look: Look<'_>) -> Result<Compiled, HostError> {
    match verb {
        Verb::StartVm { name, swap } => vm::start(name, *swap, look),
        Verb::AttachGpu(moved) => gpu::attach(moved, look),
        Verb::DetachGpu(moved) => gpu::detach(moved, look),
        Verb::StopVm { name, how } => vm::stop(name, *how, look),
        Verb::RestartVm { name, ran_as, how } => vm::restart(name, *ran_as, *how, look),
        Verb::CloneVm { from, name, snapshot, linked, keeps } => {
            let snapshot = snapshot.as_ref();
            clone::clone(clone::Wish { from, name, snapshot, linked: *linked, keeps }, look)
        }
        Verb::SaveTemplate { name, template } => template::save(name, template, look),
        Verb::DeleteTemplate { template } => template::delete(template, look),
        Verb::CreateSnapshot { name, snapshot, layer } => snapshot::create(name, snapshot, *layer, look),
        Verb::RestoreSnapshot { name, snapshot, layer, keep, leaves } => {
            let keep = keep.as_ref();
            snapshot::restore(snapshot::Back { vm: name, snapshot, layer: *layer, keep, leaves }, look)
        }
        Verb::DeleteSnapshot { name, snapshot, seen } => snapshot::delete(name, snapshot, *seen, look),
        Verb::DeleteVm { name, uuid, keep_disks } => delete::delete(name, uuid.as_deref(), *keep_disks, look),
    }
}

/// The plan of a verb, with what stays gpuvm's of the things that it is about.
pub fn plan(verb: &Verb, past: &Past, probe: &dyn Probe, facts: &HostFacts) -> (Plan, BTreeMap<Key, Wanted>) {
    let from = format!("gpuvm {}", verb.words());
    let Compiled { mut entries, mut findings, ours } =
        compile(verb, Look { past, probe, facts }).unwrap_or_else(|e| Compiled {
            findings: vec![Finding {
                severity: Severity::Error,
                code: "not-known".to_owned(),
                place: String::new(),
                message: format!("how the host is now is not known: {e}"),
                help: e.help().unwrap_or("mend that first, or run gpuvm as root").to_owned(),
            }],
            ..Compiled::default()
        });
    entries.iter_mut().for_each(|e| e.from.clone_from(&from));
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    refuse_taken(&mut entries, probe, facts);
    judge_room(&mut entries, &mut findings, true, probe, facts);
    // Refreshes that another run owes are for the next apply: who starts a VM does not wait for an initramfs.
    let mut order = order(&entries, Wanted::KINDS, &BTreeSet::new()).unwrap_or_else(|e| {
        findings.push(Finding {
            severity: Severity::Error,
            code: "order".to_owned(),
            place: String::new(),
            message: e.to_string(),
            help: String::new(),
        });
        Vec::new()
    });
    name_guests(&mut order, &entries, probe);
    let mut wanted: BTreeMap<Key, Wanted> =
        entries.iter().filter_map(|e| Some((e.key.clone(), past.owned.get(&e.key)?.clone()))).collect();
    for (key, becomes) in ours {
        match becomes {
            Some(becomes) => drop(wanted.insert(key, becomes)),
            None => drop(wanted.remove(&key)),
        }
    }
    let plan = Plan {
        format: PLAN_FORMAT,
        writer: env!("CARGO_PKG_VERSION").to_owned(),
        host: host_line(probe, facts),
        manifest: sha256_hex(format!("{verb:?}").as_bytes()),
        findings,
        entries,
        order,
    };
    (plan, wanted)
}
