//! Judges whether a GPU can be passed through: a chain of links, each with its evidence and its fix, and a verdict.
//! Pure: what was looked at is in [`HostFacts`], [`Gpu`] and [`Looked`]. A PASS needs every link known and good; what could
//! not be read, or is only listed and was never seen to work, is UNKNOWN.

mod links;
mod looked;
mod next_boot;
mod owner;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use crate::facts::SecureBoot;
pub use looked::{Looked, by_id, names_id};
pub use next_boot::{NextBoot, NextBootReport, judge as judge_next_boot};

use crate::facts::HostFacts;
use crate::gpu::{Gpu, GpuKind};
use crate::types::{PciSlot, without_userinfo};

/// How one link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// Known and good.
    Ok,
    /// It could not be told, or is not proven.
    Unknown,
    /// It stands in the way.
    Fail,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Every link is known and good.
    Pass,
    /// Nothing is known to stand in the way, and something is not known.
    Unknown,
    /// Something stands in the way.
    Fail,
}

/// What a status rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The file, or who told.
    pub source: String,
    /// What it says.
    pub value: String,
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// What it is about: `firmware`, `group`, `holder`, …
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found, in a sentence.
    pub says: String,
    /// What that rests on.
    pub evidence: Vec<Evidence>,
    /// What to do about it, one way a line.
    pub fix: Vec<String>,
    /// Whether binding the card to vfio-pci at boot does away with it.
    pub cured_by_early_binding: bool,
}

impl Link {
    fn new(name: &'static str, status: Status, says: impl Into<String>) -> Self {
        Self { name, status, says: says.into(), evidence: Vec::new(), fix: Vec::new(), cured_by_early_binding: false }
    }
    fn seen(mut self, source: impl Into<String>, value: impl Into<String>) -> Self {
        // A command line of the kernel's may have a URL with a password in it.
        let value = without_userinfo(&value.into()).into_owned();
        self.evidence.push(Evidence { source: source.into(), value });
        self
    }
    /// Early binding does away with it.
    fn early(mut self) -> Self {
        self.cured_by_early_binding = true;
        self
    }
    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix.push(fix.into());
        self
    }
}

/// What the manifest says of a GPU.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Its name there.
    pub name: Option<String>,
    /// All slots that the manifest keeps for VMs.
    pub given: BTreeSet<PciSlot>,
    /// Why it may not be the card that was bound before, and what to do.
    pub another: Option<(String, String)>,
    /// By what it is known, where the manifest names it by what it does not tell now.
    pub recognised: Option<String>,
    /// Where host and VMs share it: what is stopped on the host for a VM, as the manifest names it.
    pub shared: Option<Vec<String>>,
    /// The VMs that have it, each with all slots that it has as a whole.
    pub vms: Vec<(String, BTreeSet<PciSlot>)>,
    /// The VMs that do not have it, likewise.
    pub other_vms: Vec<(String, BTreeSet<PciSlot>)>,
    /// The VMs that are to run with the host.
    pub running: BTreeSet<String>,
    /// Where GPUs are on a board with NVSwitches, as far as the manifest says.
    pub modules: BTreeMap<PciSlot, u8>,
    /// The manifest cuts it into MIG instances, which come again at each boot.
    pub mig: bool,
}

/// Why a GPU can or cannot be passed through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Its name in the manifest.
    pub name: Option<String>,
    /// Its slot.
    pub slot: PciSlot,
    /// Model and functions with their ids.
    pub title: String,
    /// The answer.
    pub verdict: Verdict,
    /// The answer in a sentence.
    pub summary: String,
    /// The chain.
    pub links: Vec<Link>,
}

/// Goes through the whole chain.
pub fn explain(facts: &HostFacts, looked: &Looked, gpus: &[Gpu], gpu: &Gpu, asked: &Asked) -> Explanation {
    let on = links::On { facts, looked, gpus, gpu, asked };
    let links = links::all(&on);
    let (verdict, summary) = judge(gpu, &links);
    let first = gpu.functions.iter().filter(|f| f.role == "display").take(1);
    let others = gpu.functions.iter().filter(|f| f.role != "display");
    let parts: Vec<String> = first
        .map(|f| format!("{} [{}]", gpu.model, f.id))
        .chain(others.map(|f| format!("{} [{}]", f.role, f.id)))
        .collect();
    Explanation { name: asked.name.clone(), slot: gpu.slot, title: parts.join(" + "), verdict, summary, links }
}

fn judge(gpu: &Gpu, links: &[Link]) -> (Verdict, String) {
    let of = |status: Status| links.iter().filter(move |l| l.status == status);
    let unknown: BTreeSet<&str> = of(Status::Unknown).map(|l| l.name).collect();
    let open: Vec<&str> = links.iter().map(|l| l.name).filter(|n| unknown.contains(n)).collect();
    let mut names: Vec<&str> = Vec::new();
    for name in open {
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    let names = names.join(", ");
    if gpu.kind != GpuKind::Gpu {
        return (Verdict::Fail, "not a GPU to give away".to_owned());
    }
    match (of(Status::Fail).find(|l| !l.cured_by_early_binding), of(Status::Fail).next()) {
        (Some(link), _) if link.says.contains(link.name) => (Verdict::Fail, link.says.clone()),
        (Some(link), _) => (Verdict::Fail, format!("{}: {}", link.name, link.says)),
        (None, Some(_)) if names.is_empty() => {
            (Verdict::Fail, "not free now; would pass after a reboot with early binding".to_owned())
        }
        (None, Some(_)) => {
            (Verdict::Fail, format!("not free now; early binding and a reboot free it, and then not known: {names}"))
        }
        (None, None) if names.is_empty() => {
            (Verdict::Pass, "free, alone in its group, and seen to come back".to_owned())
        }
        (None, None) => (Verdict::Unknown, format!("nothing known stands in the way; not known: {names}")),
    }
}

/// The worst of several; of none there is no verdict.
pub fn worst(all: &[Explanation]) -> Option<Verdict> {
    all.iter().map(|e| e.verdict).max()
}
