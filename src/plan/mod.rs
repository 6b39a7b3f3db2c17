//! What would change, as data: steps, changes with their risks, and the plan that orders them. It can be saved, and
//! what the person reads is what runs.

mod build;
mod guests;
mod kept;
mod listed;
mod made_once;
mod moved_disks;
mod order;
mod place;
mod policy;
mod recall;
mod room;
mod saved;
mod select;
mod step;
mod taken;

use std::collections::BTreeSet;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};

use crate::types::{DomainName, UnitName};

pub(crate) use build::host_line;
pub use build::{GONE, Past, build};
pub(crate) use guests::name_guests;
pub use order::{OrderError, order};
pub use place::{Place, Seen, touched};
pub use policy::{Day, Policy, Refusal, Refused, Rule, TimeError, TimeOfDay, Window, policy_schema};
pub(crate) use room::judge_room;
pub use saved::{SavedManifest, SavedPlan, SavedPlanError};
pub use select::{ImageTask, NoSuchKind, Selection, Selector};
pub use step::{
    AptPackage, BindTarget, BlockStore, BlockVolumeStep, Content, CopyVolumeStep, FetchStep, FileCopy, FileEdit,
    FileWrite, InstallStep, MigInstance, MigState, MigStep, NetworkSwitch, Proof, ServiceAction, SlotBinding,
    SnapshotStep, Step, TextEdit, VgpuStep, VirtualFunctionsStep, VolumeStep,
};
pub(crate) use taken::refuse_taken;

/// The JSON Schema (draft-07) of what `gpuvm plan --output json` writes.
pub fn schema() -> serde_json::Value {
    let mut root = SchemaSettings::draft07().into_generator().into_root_schema_for::<Plan>().to_value();
    root["title"] = serde_json::json!("gpuvm plan");
    root["properties"]["format"]["const"] = serde_json::json!(PLAN_FORMAT);
    root
}

/// The number of the saved plan's format; another one is refused.
pub const PLAN_FORMAT: u32 = 1;

/// What could go wrong for the host by a change. Ordered, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Risk {
    /// It takes effect at the next boot only.
    Reboot,
    /// It changes what the host boots with.
    BootConfig,
    /// The host's network is interrupted, and guarded while it is.
    NetworkLoss,
    /// A screen of the host goes dark.
    DisplayLoss,
    /// What runs containers is restarted, and its containers with it, unless it keeps them.
    ContainersRestart,
    /// A VM must be restarted, or is.
    GuestRestart,
    /// Packages are removed or go back to an older version.
    PackageRemoval,
    /// Data of a person goes away.
    DataLoss,
}

impl Risk {
    /// As it is written in plans and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Risk::Reboot => "reboot",
            Risk::BootConfig => "boot-config",
            Risk::NetworkLoss => "network-loss",
            Risk::DisplayLoss => "display-loss",
            Risk::ContainersRestart => "containers-restart",
            Risk::GuestRestart => "guest-restart",
            Risk::PackageRemoval => "package-removal",
            Risk::DataLoss => "data-loss",
        }
    }
}

/// What is done once after all changes that name it. In the order in which they run when several are due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Refresh {
    /// `systemctl daemon-reload`
    DaemonReload,
    /// `udevadm control --reload`
    Udev,
    /// Rebuild the initramfs of every installed kernel.
    Initramfs,
    /// `update-grub`
    BootLoader,
    /// libvirt's daemon looks for hooks when it starts and when it is told to reload (hooks.html).
    LibvirtHooks,
    /// `ldconfig`
    LinkerCache,
    /// What starts containers learns of NVIDIA's runtime (`nvidia-ctk runtime configure`), or the device interface gets
    /// its files (`nvidia-ctk cdi generate`).
    Containers(Containers),
    /// Restart a unit whose configuration changed.
    Restart(UnitName),
}

impl Refresh {
    /// As it is written in plans.
    pub fn name(&self) -> String {
        match self {
            Refresh::DaemonReload => "systemd units".to_owned(),
            Refresh::Udev => "udev rules".to_owned(),
            Refresh::Initramfs => "initramfs".to_owned(),
            Refresh::BootLoader => "boot loader".to_owned(),
            Refresh::LibvirtHooks => "libvirt's hooks".to_owned(),
            Refresh::LinkerCache => "linker cache".to_owned(),
            Refresh::Containers(of) => format!("container toolkit for {}", of.name()),
            Refresh::Restart(unit) => format!("restart {unit}"),
        }
    }
}

/// What NVIDIA's container toolkit configures (`nvidia-ctk`, of its own documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Containers {
    /// Docker's daemon.
    Docker,
    /// containerd.
    Containerd,
    /// The container device interface, which Podman reads.
    Cdi,
}

impl Containers {
    /// As it is written in plans.
    pub const fn name(self) -> &'static str {
        match self {
            Containers::Docker => "docker",
            Containers::Containerd => "containerd",
            Containers::Cdi => "cdi",
        }
    }
    /// What nvidia-ctk is asked for.
    pub const fn arguments(self) -> &'static [&'static str] {
        match self {
            Containers::Docker => &["runtime", "configure", "--runtime=docker"],
            Containers::Containerd => &["runtime", "configure", "--runtime=containerd"],
            Containers::Cdi => &["cdi", "generate", "--output=/etc/cdi/nvidia.yaml"],
        }
    }
}

/// What a change does to the thing that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is not there yet.
    Create,
    /// It is there and differs.
    Change,
    /// It is ours and no longer wanted.
    Remove,
}

impl Action {
    /// The mark in front of a line.
    pub const fn mark(self) -> char {
        match self {
            Action::Create => '+',
            Action::Change => '~',
            Action::Remove => '-',
        }
    }
}

/// One difference of one field; for the reader only, decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldDiff {
    /// The field, or a path of the host.
    pub field: String,
    /// What is there; `None` for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What will be there; `None` for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// A unified diff in place of before and after, for whole files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unified: Option<String>,
}

impl FieldDiff {
    /// before → after.
    pub fn new(field: impl Into<String>, before: Option<String>, after: Option<String>) -> Self {
        Self { field: field.into(), before, after, unified: None }
    }
    /// The unified diff of two texts under a path. `None` as a side means that the file is not there.
    pub fn text(path: impl Into<String>, before: Option<&str>, after: Option<&str>) -> Self {
        let unified = similar::TextDiff::from_lines(before.unwrap_or(""), after.unwrap_or(""))
            .unified_diff()
            .context_radius(2)
            .to_string();
        Self { field: path.into(), before: None, after: None, unified: Some(unified) }
    }
}

/// What would bring one thing from how it is to how it is wanted. `steps` and `refreshes` are all that apply reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What happens to the thing.
    pub action: Action,
    /// One line for the plan: what it becomes.
    pub what: String,
    /// What differs.
    #[serde(default)]
    pub fields: Vec<FieldDiff>,
    /// Further lines for the reader: what stays, what guards it, what to know.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What could go wrong.
    #[serde(default)]
    pub risks: BTreeSet<Risk>,
    /// What is done, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What is done once after all changes of the round that name it.
    #[serde(default)]
    pub refreshes: BTreeSet<Refresh>,
    /// Set where the steps configure it but it runs only after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_after: Option<WaitFor>,
}

impl Change {
    /// A change without fields, risks, steps and refreshes.
    pub fn new(action: Action, what: impl Into<String>) -> Self {
        Self {
            action,
            what: what.into(),
            fields: Vec::new(),
            notes: Vec::new(),
            risks: BTreeSet::new(),
            steps: Vec::new(),
            refreshes: BTreeSet::new(),
            complete_after: None,
        }
    }
}

/// What a thing waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WaitFor {
    /// The package lists have to be fetched, or a cut-off transaction finished, before versions are known. What waits
    /// for this ends its round of an apply: nothing else is done before apt has said that it can go on.
    PackageIndex,
    /// libvirt has to be installed and running before it can be asked.
    Libvirt,
    /// The host has to boot again.
    Reboot,
    /// A VM has to be stopped and started by its owner.
    GuestRestart,
    /// How a VM is now is kept first.
    Snapshot,
}

impl WaitFor {
    /// As it is written in plans.
    pub const fn name(self) -> &'static str {
        match self {
            WaitFor::PackageIndex => "package lists",
            WaitFor::Libvirt => "libvirt",
            WaitFor::Reboot => "reboot",
            WaitFor::GuestRestart => "guest restart",
            WaitFor::Snapshot => "a snapshot of now",
        }
    }
}

/// How one thing compares with what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Diff {
    /// As wanted, configured and running.
    InSync {
        /// What was seen, for `plan -v`.
        evidence: String,
    },
    /// No longer wanted, and left as it is all the same: data, or what others may need.
    Stays {
        /// Why, and how a person takes it away.
        why: String,
        /// Whether gpuvm goes on knowing it as its own, for a later word about it.
        ours: bool,
    },
    /// Differs; the change would mend it.
    Change(Change),
    /// Cannot be done or known yet. The promise is the envelope: the action, and the largest set of risks that it may
    /// become. A promise without steps is configured already and only waits.
    Waits {
        /// What for.
        on: WaitFor,
        /// Why.
        why: String,
        /// What it will become then.
        promise: Change,
    },
    /// Must not or cannot be done, with the next step for the person.
    Blocked {
        /// Why.
        why: String,
        /// What to do about it.
        help: String,
    },
    /// Could not be told: counts as unsafe.
    Unknown {
        /// Why.
        why: String,
    },
}

impl Diff {
    /// What stays, and is gpuvm's no more.
    pub fn stays(why: impl Into<String>) -> Self {
        Self::Stays { why: why.into(), ours: false }
    }

    /// Whether nothing is to be done about it, now or later.
    pub fn settled(&self) -> bool {
        matches!(self, Self::InSync { .. } | Self::Stays { .. })
    }
}

/// A thing under management: `kind[name]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Key {
    /// The kind, as in plans: `vfio-binding`.
    pub kind: String,
    /// The name within the kind; empty where there is one only.
    pub name: String,
}

impl Key {
    /// The key of a kind and a name.
    pub fn new(kind: &str, name: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.is_empty() { f.write_str(&self.kind) } else { write!(f, "{}[{}]", self.kind, self.name) }
    }
}

/// One resource in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Which thing.
    pub key: Key,
    /// What in the manifest it follows from: `gpus.work`, `vms`.
    pub from: String,
    /// What has to be there before it.
    #[serde(default)]
    pub after: BTreeSet<Key>,
    /// How it compares.
    pub diff: Diff,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Likely not what was meant.
    Warning,
    /// Nothing is changed while it stands.
    Error,
}

/// Something about manifest and host together that a person should know before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A stable word for scripts: `iommu-off`, `group-shared`.
    pub code: String,
    /// The place in the manifest: `gpus.work`. Empty for the whole.
    pub place: String,
    /// What is wrong, with the evidence.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

/// What stands in a plan's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum Item {
    /// The change or promise of an entry, by its place in `entries`.
    Entry {
        /// Index into `entries`.
        index: usize,
    },
    /// A refresh, once for all that asked for it.
    Refresh {
        /// Which.
        refresh: Refresh,
        /// The things that it is due for.
        due: Vec<Key>,
    },
    /// The reboot that everything below it depends on.
    Reboot {
        /// The things that need it.
        due: Vec<Key>,
        /// VMs that run with passed devices, which libvirt cannot save: each is asked to shut down before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        shut_down: Vec<DomainName>,
        /// Other VMs that run: the host's libvirt-guests decides about them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        running: Vec<String>,
    },
}

impl Item {
    /// How many VMs a reboot takes down.
    pub fn guests(&self) -> usize {
        match self {
            Item::Reboot { shut_down, running, .. } => shut_down.len() + running.len(),
            _ => 0,
        }
    }
}

/// What the plan was made for; a plan refuses to run on another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostLine {
    /// Host name.
    pub hostname: String,
    /// Distribution.
    pub os: String,
    /// Running kernel.
    pub kernel: String,
    /// `on (intel, 14 groups)`, `off`, …
    pub iommu: String,
    /// How many GPUs it has.
    pub gpus: usize,
    /// How many VMs it has; `None` where that is not known.
    pub vms: Option<usize>,
    /// sha256 in hex over what identifies the host (machine id), never the id itself.
    pub fingerprint: String,
}

/// What would change, in which order, why and at what risk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// [`PLAN_FORMAT`].
    pub format: u32,
    /// The version of gpuvm that wrote it.
    pub writer: String,
    /// The host.
    pub host: HostLine,
    /// sha256 in hex of the manifest and of the files that it refers to.
    pub manifest: String,
    /// Everything that was found; an error blocks the whole plan.
    pub findings: Vec<Finding>,
    /// Every resource, sorted by key.
    pub entries: Vec<Entry>,
    /// What is done, in order.
    pub order: Vec<Item>,
}

impl Plan {
    /// The entries that a change or a promise of a change is planned for.
    pub fn changes(&self) -> impl Iterator<Item = (&Entry, &Change)> {
        self.entries.iter().filter_map(|entry| match &entry.diff {
            Diff::Change(change) => Some((entry, change)),
            Diff::Waits { promise, .. } if !promise.steps.is_empty() || promise.complete_after.is_none() => {
                Some((entry, promise))
            }
            _ => None,
        })
    }
    /// Whether nothing may be changed, and why: error findings, and entries that are blocked or unknown.
    pub fn blocked(&self) -> bool {
        self.findings.iter().any(|f| f.severity == Severity::Error)
            || self.entries.iter().any(|e| matches!(e.diff, Diff::Blocked { .. } | Diff::Unknown { .. }))
    }
}
