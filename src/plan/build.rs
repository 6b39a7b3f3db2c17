//! One planning pass: every wanted thing is looked at once and compared; what is ours and left the manifest is a
//! removal; then everything gets its order. Reads, decides, changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::kept::not_with_the_host;
use super::listed::listed;
use super::made_once::made_once;
use super::moved_disks::moved_disks;
use super::{
    Action, Diff, Entry, Finding, HostLine, Key, PLAN_FORMAT, Plan, Refresh, Severity, Step, judge_room, name_guests,
    order, refuse_taken,
};
use crate::desire::{ADMISSION, Desired, GATEWAY};
use crate::facts::{HostFacts, Iommu};
use crate::host::{Answer, Probe};
use crate::resource::block_volume::nearly_full;
use crate::resource::file::File;
use crate::resource::kernel_arg::KernelArgs;
use crate::resource::libvirt_domain::LibvirtDomain;
use crate::resource::seed::Seed;
use crate::resource::vfio_binding::VfioBinding;
use crate::resource::{Resource, Wanted};

/// What an entry follows from that is gpuvm's and left the manifest.
pub const GONE: &str = "no longer in the manifest";

/// What earlier runs left behind.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// What is ours, as it was applied last.
    pub owned: BTreeMap<Key, Wanted>,
    /// Refreshes that a cut-off run still owes.
    pub pending: BTreeSet<Refresh>,
}

impl Past {
    /// The seeds of guests that are ours.
    pub fn seeds(&self) -> impl Iterator<Item = &Seed> {
        self.owned.values().filter_map(|wanted| if let Wanted::Seed(seed) = wanted { Some(seed) } else { None })
    }
}

/// Compares what is wanted with the host. `manifest` is the digest of the manifest and its files.
pub fn build(desired: &Desired, past: &Past, probe: &dyn Probe, facts: &HostFacts, manifest: &str) -> Plan {
    let mut entries: Vec<Entry> = desired
        .nodes
        .iter()
        .map(|(key, node)| Entry {
            key: key.clone(),
            from: node.from.clone(),
            after: node.after.clone(),
            diff: match (desired.adopt.contains(key), past.owned.get(key)) {
                (true, last) => node.wanted.adopt(last, probe, facts),
                (false, last) => node.wanted.compare(last, probe, facts),
            }
            .unwrap_or_else(|e| unknown(&e)),
        })
        .collect();
    for (key, last) in past.owned.iter().filter(|(key, _)| !desired.nodes.contains_key(key)) {
        entries.push(Entry {
            key: key.clone(),
            from: GONE.to_owned(),
            after: BTreeSet::new(),
            diff: leaving(last, desired).compare_removal(probe, facts).unwrap_or_else(|e| unknown(&e)),
        });
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    refuse_taken(&mut entries, probe, facts);

    let mut findings = desired.findings.clone();
    admit(&mut findings, &entries, desired);
    // Huge pages that this plan may bring are not missed before it has.
    let come = |e: &Entry| [KernelArgs::KIND, File::KIND].contains(&e.key.kind.as_str()) && !e.diff.settled();
    let pages = !entries.iter().any(come);
    judge_room(&mut entries, &mut findings, pages, probe, facts);
    findings.extend(listed(&entries, desired, past, probe));
    findings.extend(moved_disks(&entries, desired, past, probe));
    findings.extend(made_once(desired, past, probe));
    findings.extend(not_with_the_host(desired, past, probe, facts));
    findings.extend(nearly_full(desired.nodes.values().map(|n| &n.wanted), probe));
    let mut order = order(&entries, Wanted::KINDS, &past.pending).unwrap_or_else(|e| {
        findings.push(Finding {
            severity: Severity::Error,
            code: "order".to_owned(),
            place: String::new(),
            message: e.to_string(),
            help: "take one of them out of the manifest".to_owned(),
        });
        Vec::new()
    });
    name_guests(&mut order, &entries, probe);
    Plan {
        format: PLAN_FORMAT,
        writer: env!("CARGO_PKG_VERSION").to_owned(),
        host: host_line(probe, facts),
        manifest: manifest.to_owned(),
        findings,
        entries,
        order,
    }
}

/// What left the manifest, with what that still says of it.
fn leaving(last: &Wanted, desired: &Desired) -> Wanted {
    match last {
        Wanted::VfioBinding(binding) => {
            let still_for_vms = desired.for_vms.contains(&binding.slot);
            VfioBinding { still_for_vms, ..binding.clone() }.into()
        }
        other => other.clone(),
    }
}

/// What keeps a VM from starting refuses a plan that makes or starts it, and no other.
fn admit(findings: &mut [Finding], entries: &[Entry], desired: &Desired) {
    let begins = |entry: &&Entry| match &entry.diff {
        _ if entry.key.kind != LibvirtDomain::KIND || desired.adopt.contains(&entry.key) => false,
        Diff::Change(change) | Diff::Waits { promise: change, .. } => {
            change.action == Action::Create || change.steps.iter().any(|s| matches!(s, Step::StartDomain { .. }))
        }
        _ => false,
    };
    // A VM that is there and is the host's router has been so before.
    let creates =
        |e: &&Entry| matches!(&e.diff, Diff::Change(c) | Diff::Waits { promise: c, .. } if c.action == Action::Create);
    let made: BTreeSet<String> =
        entries.iter().filter(begins).filter(creates).map(|e| format!("vms.{}", e.key.name)).collect();
    let begun: BTreeSet<String> = entries.iter().filter(begins).map(|e| format!("vms.{}", e.key.name)).collect();
    let of_capacity = |f: &&mut Finding| f.severity == Severity::Error && ADMISSION.contains(&f.code.as_str());
    for finding in findings.iter_mut().filter(of_capacity) {
        let of =
            |vm: &String| finding.place.strip_prefix(vm).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let keeps = if finding.code == GATEWAY { &made } else { &begun };
        if keeps.is_empty() || finding.place != "vms" && !keeps.iter().any(of) {
            finding.severity = Severity::Warning;
        }
    }
}

fn unknown(error: &dyn std::fmt::Display) -> Diff {
    Diff::Unknown { why: error.to_string() }
}

/// The host that a plan is for.
pub(crate) fn host_line(probe: &dyn Probe, facts: &HostFacts) -> HostLine {
    let gpus: BTreeSet<_> =
        facts.pci.values().filter(|f| f.is_gpu() && !f.is_management()).map(|f| f.address.slot).collect();
    let machine_id = probe.text("/etc/machine-id".as_ref()).ok().and_then(Answer::value).unwrap_or_default();
    HostLine {
        hostname: facts.hostname.clone(),
        os: facts.os.name.clone(),
        kernel: facts.kernel.release.clone(),
        iommu: match &facts.iommu {
            Iommu::On { kind, groups } => format!("on ({kind}, {} groups)", groups.len()),
            Iommu::Off { .. } => "off".to_owned(),
            Iommu::Missing { .. } => "missing".to_owned(),
            Iommu::Unknown(_) => "unknown".to_owned(),
        },
        gpus: gpus.len(),
        vms: match probe.virtualisation() {
            Ok(Answer::Value(known)) => Some(known.domains.len()),
            Ok(Answer::Absent) => Some(0),
            Ok(Answer::Denied) | Err(_) => None,
        },
        fingerprint: crate::types::sha256_hex(format!("gpuvm host {}", machine_id.trim()).as_bytes()),
    }
}
