//! The plan of an undo: from what a run recorded and the host as it is now. Pure but for looking.

mod devices;
mod disks;
mod places;
mod vms;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use devices::mig;
use vms::{leaving, running_with};

use super::look::{Looked, look};
use super::packages;
use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::{
    Action, Change, Diff, Entry, FieldDiff, Finding, Key, PLAN_FORMAT, Past, Place, Plan, Refresh, Risk, Seen,
    Selector, Severity, Step, WaitFor, host_line, judge_room, name_guests, order, refuse_taken,
};
use crate::resource::shared_gpu::SharedGpu;
use crate::resource::{Resource, Wanted, bridge::Bridge, seed::Seed};
use crate::types::sha256_hex;

/// What is to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Back {
    /// The run.
    pub run: u64,
    /// Disks that the run made go too, with the data on them.
    #[serde(default)]
    pub with_data: bool,
    /// What stays as it is.
    #[serde(default)]
    pub skip: Vec<Selector>,
}

impl Back {
    /// Whether a thing stays as it is.
    fn skips(&self, key: &Key) -> bool {
        self.skip.iter().any(|s| s.fits(key))
    }
}

/// What a run recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// How each place was before the run touched it, in the order in which it did.
    pub before: Vec<(Key, Place, Seen)>,
    /// How the run left them.
    pub after: BTreeMap<Place, Seen>,
    /// The contents of files before, by their sha256 in hex.
    pub contents: BTreeMap<String, Vec<u8>>,
    /// The disks that later runs made or changed too, and the last of those.
    pub since: BTreeMap<Place, u64>,
    /// What was ours before the run.
    pub owned: BTreeMap<Key, Wanted>,
    /// What was approved.
    pub plan: Plan,
}

/// What goes on while one thing is compiled.
struct Thing<'a> {
    back: &'a Back,
    recorded: &'a Recorded,
    now: &'a Looked,
    /// What the ledger has of it.
    ours: Option<&'a Wanted>,
    /// What cannot or shall not go back, for the reader.
    stays: Vec<String>,
}

/// The plan towards the state before the run, with what was wanted of each thing then.
pub fn plan(
    back: &Back,
    recorded: &Recorded,
    past: &Past,
    probe: &dyn Probe,
    facts: &HostFacts,
) -> (Plan, BTreeMap<Key, Wanted>) {
    let places: BTreeSet<Place> = recorded.before.iter().map(|(_, place, _)| place.clone()).collect();
    let mut findings = Vec::new();
    let now = look(probe, &places).unwrap_or_else(|e| {
        findings.push(Finding {
            severity: Severity::Error,
            code: "not-known".to_owned(),
            place: String::new(),
            message: format!("how the host is now is not known: {e}"),
            help: e.help().unwrap_or("mend that first, or run gpuvm as root").to_owned(),
        });
        Looked::default()
    });
    let mut keys: Vec<&Key> = Vec::new();
    // Of what could not be looked at nothing is said: to compare with nothing would tell of changes that nobody made.
    let known = findings.is_empty();
    for (key, ..) in recorded.before.iter().filter(|_| known) {
        if !keys.contains(&key) && !back.skips(key) {
            keys.push(key);
        }
    }
    let mut entries: Vec<Entry> = Vec::new();
    // The bridges last: what hangs on one is gone before it, where this plan stops the VM.
    let (bridges, others): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|k| k.kind == Bridge::KIND);
    for key in others.iter().chain(&bridges) {
        let mut thing = Thing { back, recorded, now: &now, ours: past.owned.get(key), stays: Vec::new() };
        // What a bridge moved is put back by the bridge itself, which knows the guard and what to ask for.
        let diff = match (recorded.owned.get(key), past.owned.get(key)) {
            (Some(before), last) if key.kind == Bridge::KIND => before.compare(last, probe, facts),
            (None, Some(Wanted::Bridge(last))) => last.compare_removal_without(&leaving(&entries, probe), probe, facts),
            (None, None) if key.kind == Bridge::KIND => Ok(Diff::InSync { evidence: "as before".to_owned() }),
            _ => thing.compile(key, probe),
        };
        let mut diff = diff.unwrap_or_else(|e| Diff::Unknown { why: e.to_string() });
        if let Diff::Change(change) = &mut diff {
            change.refreshes.extend(refreshes(&recorded.plan, key));
        }
        let note = |message| Finding {
            severity: Severity::Note,
            code: "stays".to_owned(),
            place: key.to_string(),
            message,
            help: String::new(),
        };
        findings.extend(thing.stays.into_iter().map(note));
        let from = format!("undo of run {}", back.run);
        entries.push(Entry { key: (*key).clone(), from, after: BTreeSet::new(), diff });
    }
    for entry in &mut entries {
        entry.after = dependents(&recorded.plan, &entry.key);
    }
    // A GPU that goes back to the host waits for the end of the VM that has it, whichever run gave it to that.
    let vms = recorded.before.iter().filter(|(_, place, _)| matches!(place, Place::Domain(_))).map(|(key, ..)| key);
    let vms: BTreeSet<Key> = vms.cloned().collect();
    let gives = |e: &Entry| match &e.diff {
        Diff::Change(c) => e.key.kind == SharedGpu::KIND && c.steps.iter().any(|s| matches!(s, Step::Service { .. })),
        _ => false,
    };
    for entry in entries.iter_mut().filter(|e| gives(e)) {
        entry.after.extend(vms.iter().cloned());
    }
    let known: BTreeSet<Key> = entries.iter().map(|e| e.key.clone()).collect();
    for entry in &mut entries {
        entry.after.retain(|k| known.contains(k));
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    refuse_taken(&mut entries, probe, facts);
    judge_room(&mut entries, &mut findings, true, probe, facts);
    // What came first goes last. What is wholly gone only with a boot is not waited for: nothing needs it gone.
    let goes_late = |e: &Entry| match &e.diff {
        Diff::Change(c) => c.action == Action::Remove && c.complete_after == Some(WaitFor::Reboot),
        _ => false,
    };
    let late: BTreeSet<Key> = entries.iter().filter(|e| goes_late(e)).map(|e| e.key.clone()).collect();
    let mut ordered = entries.clone();
    for entry in &mut ordered {
        entry.after.retain(|k| !late.contains(k));
    }
    // Among those that are free: in the order of kinds for what comes, against it for what goes.
    let comes = entries.iter().any(|e| matches!(&e.diff, Diff::Change(c) if c.action == Action::Create));
    let kinds: Vec<&str> = match comes {
        true => Wanted::KINDS.to_vec(),
        false => Wanted::KINDS.iter().rev().copied().collect(),
    };
    let mut order = order(&ordered, &kinds, &past.pending).unwrap_or_else(|e| {
        findings.push(Finding {
            severity: Severity::Error,
            code: "order".to_owned(),
            place: String::new(),
            message: e.to_string(),
            help: "leave one of them as it is: --skip KIND/NAME".to_owned(),
        });
        Vec::new()
    });
    name_guests(&mut order, &entries, probe);
    findings.sort();
    let wanted =
        recorded.owned.iter().filter(|(k, _)| known.contains(k)).map(|(k, w)| (k.clone(), w.clone())).collect();
    let plan = Plan {
        format: PLAN_FORMAT,
        writer: env!("CARGO_PKG_VERSION").to_owned(),
        host: host_line(probe, facts),
        manifest: sha256_hex(format!("undo {back:?}").as_bytes()),
        findings,
        entries,
        order,
    };
    (plan, wanted)
}

/// What the change of a thing had to have made anew, and its way back has to as well.
fn refreshes(plan: &Plan, key: &Key) -> BTreeSet<Refresh> {
    let change = plan.changes().find(|(e, _)| e.key == *key).map(|(_, c)| c);
    let mut due = change.map(|c| c.refreshes.clone()).unwrap_or_default();
    // What configured them would do so again.
    due.retain(|r| !matches!(r, Refresh::Containers(_)));
    due
}

/// Everything that needed a thing, directly or through others.
fn dependents(plan: &Plan, key: &Key) -> BTreeSet<Key> {
    let mut all = BTreeSet::from([key.clone()]);
    loop {
        let more: Vec<Key> = plan
            .entries
            .iter()
            .filter(|e| !all.contains(&e.key) && e.after.iter().any(|k| all.contains(k)))
            .map(|e| e.key.clone())
            .collect();
        if more.is_empty() {
            all.remove(key);
            return all;
        }
        all.extend(more);
    }
}

/// Whether a place is as it was then. What only tells how it is at the moment does not count.
fn same(a: &Seen, b: &Seen) -> bool {
    match (a, b) {
        (Seen::Driver(a), Seen::Driver(b)) => (a.as_deref() == Some("vfio-pci")) == (b.as_deref() == Some("vfio-pci")),
        (Seen::Domain { xml: a, autostart: x, .. }, Seen::Domain { xml: b, autostart: y, .. }) => a == b && x == y,
        (Seen::Package { .. }, Seen::Package { .. }) => true,
        // It went with the package that brought it.
        (Seen::Network { active: false, autostart: false }, Seen::Nothing) => true,
        _ => a == b,
    }
}

/// The same, of a thing: a seed's owner is libvirt's to change, which gives it to QEMU when its VM starts.
fn same_at(place: &Place, key: &Key, a: &Seen, b: &Seen) -> bool {
    match (place, a, b) {
        (Place::File(_), Seen::File { sha256: a, mode: x, .. }, Seen::File { sha256: b, mode: y, .. })
            if key.kind == Seed::KIND =>
        {
            a == b && x == y
        }
        _ => same(a, b),
    }
}

impl Thing<'_> {
    fn compile(&mut self, key: &Key, probe: &dyn Probe) -> Result<Diff, HostError> {
        let (recorded, now) = (self.recorded, self.now);
        let mine: Vec<(&Place, &Seen)> =
            recorded.before.iter().filter(|(k, ..)| k == key).map(|(_, place, seen)| (place, seen)).collect();
        let packages: Vec<_> = mine
            .iter()
            .filter_map(|(place, before)| match place {
                Place::Package(name) => Some((name, *before, now.of(place))),
                _ => None,
            })
            .collect();
        if !packages.is_empty() {
            return packages::compile(&packages, probe, &mut self.stays);
        }
        let mut change = Change::new(Action::Change, String::new());
        if let Some(diff) = self.hand_over(key, &mine, &mut change, probe)? {
            return Ok(diff);
        }
        let (mut with_boot, mut virtuals, mut migs) = (Vec::new(), Vec::new(), Vec::new());
        let bound_at_once = mine.iter().any(|(place, _)| matches!(place, Place::Function(_)));
        for (place, before) in &mine {
            let is = now.of(place);
            if let Seen::Denied = is {
                return Ok(Diff::Unknown { why: format!("{place} may not be looked at (not root)") });
            }
            if let Some(diff) = self.pool_not_started(place, is, probe)? {
                return Ok(diff);
            }
            if same_at(place, key, before, is) && !matches!((before, is), (Seen::Domain { .. }, Seen::Domain { .. })) {
                continue;
            }
            if let Some(after) = recorded.after.get(*place)
                && matches!(place, Place::File(_) | Place::Unit(_) | Place::Domain(_))
                && !same_at(place, key, after, is)
                && !same_at(place, key, before, is)
                // A unit that is gone went with its package.
                && !matches!((place, is), (Place::Unit(_), Seen::Nothing))
            {
                return Ok(Diff::Blocked {
                    why: format!("{place} was changed since run {}", self.back.run),
                    help: format!(
                        "look at it; to leave it as it is now: gpuvm undo {} --skip {}",
                        self.back.run,
                        selector(key)
                    ),
                });
            }
            if let (Place::Volume { pool, name }, Seen::Nothing, true) = (place, before, self.back.with_data)
                && let Some(diff) = self.disk_stays(key, (pool, name), is, probe)?
            {
                return Ok(diff);
            }
            if let (Place::Device(path), Seen::Nothing, true) = (place, before, self.back.with_data) {
                if let Some(diff) = self.block_goes(key, (place, path), is, &mut change, probe)? {
                    return Ok(diff);
                }
                continue;
            }
            match place {
                Place::FunctionAtBoot(_) if bound_at_once => {}
                Place::VirtualFunctions { name, physical } => virtuals.push((name, *physical, *before, is, false)),
                Place::Vgpus { name, physical } => virtuals.push((name, *physical, *before, is, true)),
                Place::Mig { name, physical } => migs.push((name, *physical, *before, is)),
                Place::FunctionAtBoot(_) | Place::Argument(_) => with_boot.push((*place, *before, is)),
                _ => self.place(place, before, is, &mut change, probe),
            }
        }
        let loaded = mine.iter().filter(|(place, before)| **before == Seen::Nothing && *now.of(place) == Seen::There);
        let modules: Vec<&str> = loaded
            .filter_map(|(place, _)| if let Place::Module(name) = place { Some(name.as_str()) } else { None })
            .collect();
        if !modules.is_empty() {
            let names = modules.join(", ");
            self.stays.push(format!("loaded until the next boot, since something may use them: {names}"));
        }
        self.slot(&mine, &mut change);
        if change.steps.iter().any(|s| matches!(s, Step::BindSlot(_)))
            && let Some(vm) =
                running_with(|f| mine.iter().any(|(p, _)| matches!(p, Place::Function(a) if a == f)), probe)?
            && !self.stops(&vm)
        {
            // Unbinding it under a VM would sleep in the kernel until the VM ends.
            return Ok(Diff::Blocked {
                why: format!("VM `{vm}` runs with it"),
                help: format!("take it from there first: gpuvm gpu detach {vm} {}", key.name),
            });
        }
        for (name, physical, before, is, vgpu) in virtuals {
            if let Some(diff) = self.virtual_functions((name, physical, vgpu), (before, is), &mut change, probe)? {
                return Ok(diff);
            }
        }
        for (name, physical, before, is) in migs {
            if let Some(diff) = mig(name, physical, (before, is), &mut change, probe) {
                return Ok(diff);
            }
        }
        for (place, before, is) in &with_boot {
            change.fields.push(FieldDiff::new(place.to_string(), Some(word(is)), Some(word(before))));
        }
        if change.steps.is_empty() && with_boot.is_empty() {
            return Ok(Diff::InSync { evidence: "as before".to_owned() });
        }
        if !with_boot.is_empty() {
            change.risks.insert(Risk::Reboot);
        }
        change.action = action(&mine, now);
        change.what = what(&change, self.back.run);
        if change.steps.is_empty() {
            let names: Vec<String> = with_boot.iter().map(|(place, ..)| place.to_string()).collect();
            let why = format!("{}: as before at the next boot", names.join(", "));
            return Ok(Diff::Waits { on: WaitFor::Reboot, why, promise: change });
        }
        if !with_boot.is_empty() {
            change.complete_after = Some(WaitFor::Reboot);
        }
        if let Some((_, Diff::Change(forward) | Diff::Waits { promise: forward, .. })) =
            recorded.plan.entries.iter().find(|e| e.key == *key).map(|e| (e, &e.diff))
        {
            let back = |risk: &Risk| match risk {
                Risk::BootConfig => true,
                // A driver may reset its card, whichever way the number goes.
                Risk::NetworkLoss => change.steps.iter().any(|s| matches!(s, Step::VirtualFunctions(_))),
                _ => false,
            };
            let risks: Vec<Risk> = forward.risks.iter().copied().filter(back).collect();
            change.risks.extend(risks);
        }
        Ok(Diff::Change(change))
    }
}

/// As `--skip` takes it.
fn selector(key: &Key) -> String {
    if key.name.is_empty() { key.kind.clone() } else { format!("{}/{}", key.kind, key.name) }
}

fn word(seen: &Seen) -> String {
    match seen {
        Seen::Driver(Some(driver)) => driver.clone(),
        Seen::Driver(None) => "no driver".to_owned(),
        Seen::There => "there".to_owned(),
        _ => "not there".to_owned(),
    }
}

fn action(mine: &[(&Place, &Seen)], now: &Looked) -> Action {
    let main = |place: &&Place| {
        use Place::{Argument, Function, FunctionAtBoot, Mig, Vgpus, VirtualFunctions};
        !matches!(
            place,
            FunctionAtBoot(_) | Function(_) | Argument(_) | VirtualFunctions { .. } | Vgpus { .. } | Mig { .. }
        )
    };
    let mut places = mine.iter().filter(|(place, before)| main(place) && *before != now.of(place)).peekable();
    if places.peek().is_none() {
        return Action::Change;
    }
    let places: Vec<_> = places.collect();
    if places.iter().all(|(_, before)| **before == Seen::Nothing) {
        Action::Remove
    } else if places.iter().all(|(place, _)| *now.of(place) == Seen::Nothing) {
        Action::Create
    } else {
        Action::Change
    }
}

fn what(change: &Change, run: u64) -> String {
    match change.action {
        Action::Remove => format!("taken away: it was not there before run {run}"),
        Action::Create => format!("comes back as it was before run {run}"),
        Action::Change => format!("back to how it was before run {run}"),
    }
}
