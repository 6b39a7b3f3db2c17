//! Whether there is room for the VMs that a plan starts beside those that run already, whoever made them. Memory that is
//! locked (devices reach into it) and huge pages have to be there, or QEMU does not start: the start is refused. Memory that
//! is not locked may be swapped: that is a warning.

use std::collections::BTreeMap;
use std::path::Path;

use super::taken::{definition, starting, stopped};
use super::{Diff, Entry, Finding, Severity};
use crate::facts::HostFacts;
use crate::host::{Answer, Probe};
use crate::resource::libvirt_domain::{Projection, project};
use crate::types::ByteSize;

/// The code of too little memory, as for what a manifest makes run.
const MEMORY: &str = "too-much-memory";

/// Whether libvirt asks a hook of others before a VM starts.
fn others_hook(probe: &dyn Probe) -> bool {
    let there = |path: &str| !matches!(probe.stat(Path::new(path)), Ok(Answer::Absent));
    let beside = probe.list(Path::new("/etc/libvirt/hooks/qemu.d")).ok().and_then(Answer::value).unwrap_or_default();
    there("/etc/libvirt/hooks/qemu") || beside.iter().any(|name| name != "gpuvm")
}

/// What a VM takes while it runs.
#[derive(Clone)]
struct Takes {
    name: String,
    memory: u64,
    /// The size of its huge pages.
    pages: Option<ByteSize>,
    /// Whether its memory stays in place.
    locked: bool,
}

impl Takes {
    fn of(name: &str, is: &Projection, facts: &HostFacts) -> Self {
        let locked = !is.functions.is_empty() || is.mediated().next().is_some();
        // Without a size, it is the host's usual one, which is known where there is one only.
        let usual = || match &facts.cpu.huge_pages[..] {
            [one] => Some(one.size),
            _ => None,
        };
        let pages = is.huge_pages.and_then(|size| if size.bytes() == 0 { usual() } else { Some(size) });
        let memory = is.memory.bytes();
        // Of an unknown size, it still is not in the rest of the memory.
        let memory = if is.huge_pages.is_some() && pages.is_none() { 0 } else { memory };
        Self { name: name.to_owned(), memory, pages, locked }
    }
    fn pages_of(&self, size: ByteSize) -> u64 {
        if self.pages == Some(size) { self.memory.div_ceil(size.bytes().max(1)) } else { 0 }
    }
}

/// Refuses each start that there is no room for, or warns of it. What `findings` say already is not said again; `pages`
/// says whether huge pages are judged, which may be still to come.
pub(crate) fn judge_room(
    entries: &mut [Entry],
    findings: &mut Vec<Finding>,
    pages: bool,
    probe: &dyn Probe,
    facts: &HostFacts,
) {
    if facts.cpu.memory.bytes() == 0 || !entries.iter().any(|e| starting(e).is_some()) {
        return;
    }
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return };
    let stops: BTreeMap<_, _> = entries.iter().filter_map(stopped).collect();
    let runs = known.domains.iter().filter(|d| d.active).filter_map(|d| {
        let xml = d.live_xml.as_deref().unwrap_or(&d.inactive_xml);
        Some(Takes::of(&d.name, &project(xml).ok()?, facts))
    });
    let (goes, mut there): (Vec<Takes>, Vec<Takes>) = runs.partition(|t| stops.contains_key(&t.name));
    // Somebody's own hook may make huge pages when a VM starts.
    let pages = pages && !others_hook(probe);
    for entry in entries {
        let Some(change) = starting(entry) else { continue };
        let name = entry.key.name.clone();
        let Some(Ok(is)) = definition(&name, change, &known).map(|xml| project(&xml)) else { continue };
        there.retain(|t| t.name != name);
        let own = Takes::of(&name, &is, facts);
        let place = format!("vms.{name}");
        let said = findings.iter().any(|f| f.code == MEMORY && (f.place == "vms" || f.place == place));
        match lacks(&own, &there, pages, facts) {
            Some(Lack::Refused { why, help }) if !said => entry.diff = Diff::Blocked { why, help },
            Some(Lack::Warned { message, help }) if !said => {
                let code = MEMORY.to_owned();
                findings.push(Finding { severity: Severity::Warning, code, place, message, help });
            }
            // What the same plan shuts down makes the room, and goes first where it is needed.
            None if !goes.is_empty() => {
                let before: Vec<Takes> = there.iter().chain(&goes).cloned().collect();
                if lacks(&own, &before, pages, facts).is_some() {
                    entry.after.extend(stops.values().cloned());
                }
            }
            _ => {}
        }
        there.push(own);
    }
    findings.sort();
}

/// What there is too little of.
enum Lack {
    Refused { why: String, help: String },
    Warned { message: String, help: String },
}

fn lacks(own: &Takes, there: &[Takes], pages: bool, facts: &HostFacts) -> Option<Lack> {
    let names = |all: &[&Takes]| all.iter().map(|t| format!("`{}`", t.name)).collect::<Vec<_>>().join(", ");
    let stop = |all: &[&Takes]| match all.iter().max_by_key(|t| t.memory) {
        Some(largest) => format!("shut one of them down first: gpuvm vm stop {}; or give it less", largest.name),
        None => "give it less, and leave the host some".to_owned(),
    };
    if let Some(size) = own.pages {
        // A host that told of no pages at all has not told.
        if facts.cpu.huge_pages.is_empty() || !pages {
            return None;
        }
        let total = facts.cpu.huge_pages.iter().find(|p| p.size == size).map_or(0, |p| p.total.saturating_add(p.more));
        let users: Vec<&Takes> = there.iter().filter(|t| t.pages == Some(size)).collect();
        let used = users.iter().fold(0u64, |sum, t| sum.saturating_add(t.pages_of(size)));
        let need = own.pages_of(size);
        let beside = if used == 0 { String::new() } else { format!(", of which {} use {used}", names(&users)) };
        return (need.saturating_add(used) > total).then(|| Lack::Refused {
            why: format!("it needs {need} huge pages of {size}, and the host keeps {total}{beside}: it cannot start"),
            help: match users.is_empty() {
                true => {
                    "have the host keep more from the boot on: `kernelArgs` in host.yaml; or give it less".to_owned()
                }
                false => stop(&users),
            },
        });
    }
    let mib = |bytes: u64| ByteSize::from_mib(ByteSize::from_bytes(bytes).mib());
    let kept =
        facts.cpu.huge_pages.iter().fold(0u64, |sum, p| sum.saturating_add(p.total.saturating_mul(p.size.bytes())));
    let left = facts.cpu.memory.bytes().saturating_sub(kept);
    let sum = |all: &[&Takes]| all.iter().fold(own.memory, |sum, t| sum.saturating_add(t.memory));
    let others: Vec<&Takes> = there.iter().filter(|t| t.pages.is_none() && t.memory > 0).collect();
    let fixed: Vec<&Takes> = others.iter().copied().filter(|t| t.locked).collect();
    let beside = |all: &[&Takes]| match all.is_empty() {
        true => format!("the host has {} for VMs", mib(left)),
        false => {
            let theirs = mib(sum(all) - own.memory);
            format!("{} run with {theirs}, and the host has {} for VMs", names(all), mib(left))
        }
    };
    if own.locked && sum(&fixed) >= left {
        return Some(Lack::Refused {
            why: format!(
                "it has {} of memory, locked while it runs; {}: it cannot start",
                mib(own.memory),
                beside(&fixed)
            ),
            help: stop(&fixed),
        });
    }
    (sum(&others) >= left).then(|| Lack::Warned {
        message: format!("it has {} of memory; {}", mib(own.memory), beside(&others)),
        help: format!("the host swaps, or ends one of them; {}", stop(&others)),
    })
}
