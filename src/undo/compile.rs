//! The plan of an undo: from what a run recorded and the host as it is now. Pure but for looking.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::look::{Looked, look};
use super::packages;
use crate::facts::HostFacts;
use crate::gpu::mig;
use crate::host::{Answer, HostError, Probe};
use crate::net::netplan;
use crate::plan::{
    Action, BindTarget, Change, Content, Diff, Entry, FieldDiff, FileWrite, Finding, Key, MigState, MigStep,
    PLAN_FORMAT, Past, Place, Plan, Refresh, Risk, Seen, Selector, ServiceAction, Severity, SlotBinding, Step,
    TextEdit, VgpuStep, VirtualFunctionsStep, VolumeStep, WaitFor, host_line, judge_room, name_guests, order,
    refuse_taken,
};
use crate::resource::chains::over;
use crate::resource::libvirt_domain::{Projection, project, without_private_parts};
use crate::resource::shared_gpu::{KNOWN, Needed, SCRIPT, SharedGpu, UNITS, shared_now};
use crate::resource::vgpu::mediated;
use crate::resource::{
    Resource, Wanted, bridge::Bridge, libvirt_domain, mig::in_use, seed::Seed, start_hook, virtual_functions,
};
use crate::types::{ByteSize, Mode, PciAddress, ResourceName, line_edits, sha256_hex};

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
        if !keys.contains(&key) && !back.skip.iter().any(|s| s.fits(key)) {
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
    refuse_taken(&mut entries, probe);
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
        let of = |place: &Place| now.seen.get(place).unwrap_or(&Seen::Nothing);
        let packages: Vec<_> = mine
            .iter()
            .filter_map(|(place, before)| match place {
                Place::Package(name) => Some((name, *before, of(place))),
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
            let is = of(place);
            if let Seen::Denied = is {
                return Ok(Diff::Unknown { why: format!("{place} may not be looked at (not root)") });
            }
            if let (Place::Volume { pool, .. }, Seen::Nothing, true) = (place, is, self.back.with_data)
                && let Answer::Value(known) = probe.virtualisation()?
                && known.pool(pool.as_str()).is_some_and(|p| !p.active)
            {
                return Ok(Diff::Blocked {
                    why: format!("pool `{pool}` is not started, so what is in it is not known"),
                    help: format!("start it: virsh pool-start {pool}"),
                });
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
                match self.block_goes(key, place, is, probe)? {
                    Diff::Change(goes) => {
                        change.steps.extend(goes.steps);
                        change.risks.extend(goes.risks);
                        change.notes.extend(goes.notes);
                        change.notes.push("with everything that a guest wrote to it".to_owned());
                    }
                    Diff::Stays { why, .. } => {
                        self.stays.push(format!("the disk {} stays: {why}", path.display()));
                    }
                    Diff::InSync { .. } => {}
                    refused => return Ok(refused),
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
        let loaded = mine.iter().filter(|(place, before)| **before == Seen::Nothing && *of(place) == Seen::There);
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

    /// How a person has a thing stay.
    fn leave(&self, key: &Key) -> String {
        format!("leave it as it is: gpuvm undo {} --with-data --skip {}", self.back.run, selector(key))
    }

    /// Why a disk is not the one that the run made.
    fn changed_since(&self, place: &Place, is: &Seen) -> Option<String> {
        if let Some(run) = self.recorded.since.get(place) {
            return Some(format!("{place} was made or changed by run {run} too"));
        }
        // A run that was cut off did not see how it left it.
        let after = self.recorded.after.get(place)?;
        (!same(after, is)).then(|| format!("{place} was changed since run {}", self.back.run))
    }

    /// The VMs that this undo takes away need nothing any more.
    fn undefines(&self, vm: &str) -> bool {
        self.recorded.before.iter().any(|(k, place, before)| {
            matches!((place, before), (Place::Domain(n), Seen::Nothing) if n.as_str() == vm)
                && !self.back.skip.iter().any(|s| s.fits(k))
        })
    }

    /// What becomes of a block volume that the run made.
    fn block_goes(&self, key: &Key, place: &Place, is: &Seen, probe: &dyn Probe) -> Result<Diff, HostError> {
        if let Some(why) = self.changed_since(place, is) {
            return Ok(Diff::Blocked { why, help: format!("to {}", self.leave(key)) });
        }
        match self.ours {
            Some(Wanted::BlockVolume(block)) => block.deletion(|vm| self.undefines(vm), &self.leave(key), probe),
            _ => Ok(Diff::stays("nothing says that gpuvm made it")),
        }
    }

    /// Why a disk that the run made cannot go with what is on it.
    fn disk_stays(
        &self,
        key: &Key,
        (pool, name): (&ResourceName, &str),
        is: &Seen,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        let place = Place::Volume { pool: pool.clone(), name: name.to_owned() };
        let skip = format!("to {}", self.leave(key));
        let blocked = |why: String| Ok(Some(Diff::Blocked { why, help: skip.clone() }));
        if let Some(why) = self.changed_since(&place, is) {
            return blocked(why);
        }
        let Answer::Value(known) = probe.virtualisation()? else {
            return Ok(Some(Diff::Unknown { why: format!("libvirt does not say who uses {place}") }));
        };
        let there = known.pool(pool.as_str()).and_then(|p| p.volumes.iter().find(|v| v.name == name));
        let Some(there) = there else { return Ok(None) };
        let over = match over(&there.path, &known, probe) {
            Ok(over) => over.map(|path| format!("the disk `{}`", path.display())),
            Err(why) => return Ok(Some(Diff::Unknown { why: format!("who needs {place}: {why}") })),
        };
        let user = known.user_of_but(&there.path, |vm| self.undefines(vm)).or(over);
        user.map_or(Ok(None), |user| blocked(format!("{user} needs {place}")))
    }

    /// The steps for one place.
    fn place(&mut self, place: &Place, before: &Seen, is: &Seen, change: &mut Change, probe: &dyn Probe) {
        let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
        match (place, before, is) {
            (Place::File(path), _, _) => self.file(path, before, change),
            (Place::Unit(unit), Seen::Unit { file: boot, active }, Seen::Unit { file: boot_now, active: now }) => {
                let mut step = |field: &str, is: &str, was: &str, action| {
                    change.fields.push(FieldDiff::new(field, Some(is.to_owned()), Some(was.to_owned())));
                    change.steps.push(Step::Service { unit: unit.clone(), action });
                };
                match (boot.as_str(), boot_now.as_str()) {
                    ("enabled", "disabled") => step("at boot", boot_now, boot, ServiceAction::Enable),
                    ("disabled", "enabled") => step("at boot", boot_now, boot, ServiceAction::Disable),
                    _ => {}
                }
                match (active == "active", now == "active") {
                    (true, false) => step("now", now, active, ServiceAction::Start),
                    (false, true) => step("now", now, active, ServiceAction::Stop),
                    _ => {}
                }
            }
            (Place::Member { group, user }, ..) => {
                let present = *before == Seen::There;
                change.steps.push(Step::GroupMember { group: group.clone(), user: user.clone(), present });
            }
            (Place::Module(_), Seen::Nothing, _) => {}
            (Place::Module(name), ..) => change.steps.push(Step::Module { name: name.clone() }),
            (Place::Pool(name), Seen::Nothing, _) => {
                change.steps.push(Step::RemovePool { name: name.clone() });
                change.notes.push("its directory and the files in it stay".to_owned());
            }
            (Place::Pool(name), Seen::Pool { path, .. }, Seen::Nothing) => {
                change.steps.push(Step::Pool { name: name.clone(), path: path.clone() });
            }
            (Place::Pool(name), ..) => self.stays.push(format!("pool {name} stays started, now and at boot")),
            (Place::Volume { pool, name }, Seen::Nothing, _) if self.back.with_data => {
                change.steps.push(Step::RemoveVolume { pool: pool.clone(), name: name.clone() });
                change.risks.insert(Risk::DataLoss);
                change.notes.push("with everything that a guest wrote to it".to_owned());
            }
            (Place::Volume { pool, name }, Seen::Nothing, _) => self.stays.push(format!(
                "the disk {name} in pool {pool} stays, with its data; to delete it: gpuvm undo {} --with-data",
                self.back.run
            )),
            (Place::Volume { pool, name }, Seen::Volume { capacity, format }, Seen::Nothing) => {
                let Ok(pool) = pool.as_str().parse() else { return };
                change.steps.push(Step::Volume(VolumeStep {
                    pool,
                    name: name.clone(),
                    size: ByteSize::from_bytes(*capacity),
                    format: format.clone(),
                    grow: false,
                    begun: false,
                    image: None,
                }));
                self.stays
                    .push(format!("what was on the disk {name} is gone; an empty one is made where none is left"));
            }
            (Place::Volume { name, .. }, ..) => {
                self.stays.push(format!("the disk {name} stays as large as it is: a disk is never shrunk"));
            }
            (Place::Device(path), Seen::Nothing, _) => {
                self.stays.push(format!(
                    "the disk {} stays, with its data; to delete it: gpuvm undo {} --with-data",
                    path.display(),
                    self.back.run
                ));
            }
            (Place::Device(path), _, Seen::Nothing) => {
                self.stays
                    .push(format!("what was on the disk {} is gone; an apply makes an empty one", path.display()));
            }
            (Place::Device(path), ..) => {
                self.stays.push(format!("the disk {} stays as large as it is: a disk is never shrunk", path.display()));
            }
            (Place::Image(path), Seen::Nothing, _) => {
                let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                self.stays
                    .push(format!("the image {name} stays where it was fetched to; `gpuvm image prune` deletes it"));
            }
            (
                Place::Network(name),
                Seen::Network { active, autostart },
                Seen::Network { active: on, autostart: boot },
            ) => {
                for (field, is, was) in [("started", on, active), ("autostart", boot, autostart)] {
                    if is != was {
                        change.fields.push(FieldDiff::new(field, yes_no(*is), yes_no(*was)));
                    }
                }
                change.steps.push(Step::Network { name: name.clone(), active: *active, autostart: *autostart });
            }
            (Place::Network(name), Seen::Network { active, autostart }, _) => {
                change.steps.push(Step::Network { name: name.clone(), active: *active, autostart: *autostart });
            }
            (Place::Domain(_), ..) => self.domain(place, before, is, change, probe),
            _ => {}
        }
    }

    fn file(&mut self, path: &Path, before: &Seen, change: &mut Change) {
        let now = self.now.files.get(path).map(Vec::as_slice);
        let then = match before {
            Seen::File { sha256, .. } => self.recorded.contents.get(sha256).map(Vec::as_slice),
            _ => None,
        };
        // What only root may read is not shown, but for netplan's files, of which all but the secrets is.
        let netplan = path.starts_with("/etc/netplan");
        let open = |seen: Option<&Seen>| match seen {
            Some(Seen::File { mode, .. }) => mode.bits() & 0o004 != 0,
            _ => true,
        };
        let is = self.now.seen.get(&Place::File(path.to_owned()));
        let shown = |bytes: Option<&[u8]>| {
            let text = bytes.map(|b| String::from_utf8_lossy(b).into_owned());
            if netplan { text.map(|t| netplan::redacted(&t)) } else { text }
        };
        let name = path.display().to_string();
        let is_text = |bytes: Option<&[u8]>| bytes.is_none_or(|b| std::str::from_utf8(b).is_ok() && !b.contains(&0));
        let leads = |seen: Option<&Seen>| match seen {
            Some(Seen::Link(target)) => Some(format!("→ {}", target.display())),
            _ => None,
        };
        if leads(is).is_some() || leads(Some(before)).is_some() {
            change.fields.push(FieldDiff::new(name, leads(is), leads(Some(before))));
        } else if !netplan && open(is) && open(Some(before)) && !(is_text(now) && is_text(then)) {
            change.fields.push(FieldDiff::new(name, None, None));
            change.notes.push("its content is not shown: it is no text".to_owned());
        } else if netplan || (open(is) && open(Some(before))) {
            change.fields.push(FieldDiff::text(name, shown(now).as_deref(), shown(then).as_deref()));
        } else {
            change.fields.push(FieldDiff::new(name, None, None));
            change.notes.push("its content is not shown: only root may read it".to_owned());
        }
        match before {
            Seen::File { sha256, mode, uid, gid } => change.steps.push(Step::WriteFile(FileWrite {
                path: path.to_owned(),
                content: Content::Secret(sha256.clone()),
                mode: Mode::new(mode.bits()),
                owner: uid.to_string(),
                group: gid.to_string(),
            })),
            Seen::Link(target) => {
                change.steps.push(Step::Link { path: path.to_owned(), target: target.clone() });
            }
            _ => change.steps.push(Step::RemoveFile { path: path.to_owned() }),
        }
    }

    fn domain(&mut self, place: &Place, before: &Seen, is: &Seen, change: &mut Change, probe: &dyn Probe) {
        let Place::Domain(name) = place else { return };
        match (before, is) {
            (Seen::Nothing, Seen::Domain { active, .. }) => {
                if *active {
                    change.steps.push(Step::shut_down(name));
                    change.risks.insert(Risk::GuestRestart);
                    change.notes.push("its guest is asked to shut down; it is never powered off".to_owned());
                }
                // Its disks stay, and what is on them may be locked with a key from there.
                let keep_tpm = !self.back.with_data
                    && probe.virtualisation().ok().and_then(Answer::value).is_some_and(|known| {
                        let domain = known.domain(name.as_str());
                        domain.is_some_and(|domain| libvirt_domain::keep_tpm(domain, &known, change))
                    });
                change.steps.push(Step::undefine(name, keep_tpm));
                change.notes.push("its definition goes, with its UEFI variables".to_owned());
            }
            (Seen::Domain { xml, autostart, active }, Seen::Nothing) => {
                change.steps.push(Step::DefineDomain { name: name.clone(), xml: xml.clone(), autostart: *autostart });
                if *active {
                    change.steps.push(Step::StartDomain { name: name.clone() });
                }
            }
            (Seen::Domain { xml, autostart, active }, Seen::Domain { active: runs, xml: xml_now, .. }) => {
                if !same(before, is) {
                    // What others wrote into it may be secret: it is not shown, and an edit does not carry it.
                    let [now, then] = [xml_now, xml].map(|xml| without_private_parts(xml));
                    change.fields.push(FieldDiff::text(place.to_string(), Some(&now), Some(&then)));
                    if now == then && xml_now != xml {
                        change.notes.push("what differs is others' (a title, metadata, …) and is not shown".to_owned());
                    }
                    let (name, autostart) = (name.clone(), *autostart);
                    change.steps.push(match TextEdit::new(xml_now, line_edits(xml_now, xml)) {
                        Ok(edit) => Step::EditDomain { name, edit, autostart },
                        Err(_) => Step::DefineDomain { name, xml: xml.clone(), autostart },
                    });
                    if *runs && *active {
                        change.risks.insert(Risk::GuestRestart);
                        change.complete_after = Some(WaitFor::GuestRestart);
                        change.notes.push("it runs on as it is; the change takes effect at its next start".to_owned());
                    }
                }
                // Only what the run itself did about it, and nobody else since.
                let left = match self.recorded.after.get(place) {
                    Some(Seen::Domain { active, .. }) => Some(active),
                    _ => None,
                };
                match (active, runs) {
                    (true, false) if left.is_none_or(|left| left == runs) => {
                        change.steps.push(Step::StartDomain { name: name.clone() });
                        change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
                    }
                    (false, true) if left == Some(runs) => {
                        change.steps.push(Step::shut_down(name));
                        change.risks.insert(Risk::GuestRestart);
                        change.fields.push(FieldDiff::new("running", Some("yes".to_owned()), Some("no".to_owned())));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Why what hands shared GPUs over cannot go: a VM has one, or not all went back to the host. Where this undo shuts
    /// that VM down, the GPU goes back before its hand-over goes, and is waited for.
    fn hand_over(
        &self,
        key: &Key,
        mine: &[(&Place, &Seen)],
        change: &mut Change,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        let goes = |path: &Path| {
            let now = |place: &Place| self.now.seen.get(place).is_some_and(|is| *is != Seen::Nothing);
            mine.iter()
                .any(|(p, before)| matches!(p, Place::File(at) if at == path) && **before == Seen::Nothing && now(p))
        };
        let behind = UNITS.iter().chain([&SCRIPT, &start_hook::HOOK]).any(|(path, _)| goes(Path::new(path)));
        for shared in shared_now(probe) {
            let own = goes(&Path::new(KNOWN).join(&shared.name));
            if !own && !behind {
                continue;
            }
            let skip =
                format!("; to leave the hand-over as it is: gpuvm undo {} --skip {}", self.back.run, selector(key));
            let name = &shared.name;
            let (why, help) = match shared.needed(probe)? {
                None => continue,
                Some(Needed::Unknown(why)) => {
                    return Ok(Some(Diff::Unknown { why: format!("whose `{name}` is now is not known: {why}") }));
                }
                // What the same undo stops and gives back.
                Some(Needed::ByVm(vm)) if self.stops(&vm) && self.takes_away(name) => {
                    if own {
                        change.steps.extend(shared.give(Some(&vm)));
                        change.notes.push(format!("it goes back to the host first, once VM `{vm}` has ended"));
                    }
                    continue;
                }
                Some(Needed::ByVm(vm)) => {
                    (format!("VM `{vm}` has `{name}`"), format!("shut that down first: gpuvm vm stop {vm}"))
                }
                Some(Needed::Owed(vm)) => {
                    let of = vm.map_or(String::new(), |vm| format!(":{vm}"));
                    (
                        format!("`{name}` has not all gone back to the host yet"),
                        format!("give it back first: systemctl start gpuvm-give@{name}{of}"),
                    )
                }
            };
            return Ok(Some(Diff::Blocked { why, help: help + &skip }));
        }
        Ok(None)
    }

    /// Whether the same undo takes the hand-over of a GPU away.
    fn takes_away(&self, gpu: &str) -> bool {
        let key = Key::new(SharedGpu::KIND, gpu);
        let recorded = self.recorded.before.iter().any(|(k, _, before)| *k == key && *before == Seen::Nothing);
        recorded && !self.back.skip.iter().any(|s| s.fits(&key))
    }

    /// Whether the same undo shuts a VM down: it was not there before the run, or the run started it.
    fn stops(&self, vm: &str) -> bool {
        self.recorded.before.iter().any(|(key, place, before)| {
            let its = matches!(place, Place::Domain(name) if name.as_str() == vm);
            let started = || matches!(self.recorded.after.get(place), Some(Seen::Domain { active: true, .. }));
            its && !self.back.skip.iter().any(|s| s.fits(key))
                && match before {
                    Seen::Nothing => true,
                    Seen::Domain { active, .. } => !active && started(),
                    _ => false,
                }
        })
    }

    /// Virtual functions as many as there were: those that go do so before the file that says which they are, and those
    /// that come back do so after it.
    fn virtual_functions(
        &self,
        (name, physical, vgpu): (&ResourceName, PciAddress, bool),
        (before, is): (&Seen, &Seen),
        change: &mut Change,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        let number = |seen: &Seen| if let Seen::Count(n) = seen { *n } else { 0 };
        let (then, now) = (number(before), number(is));
        let mut functions = virtual_functions::there(physical, probe);
        if vgpu && then > now {
            // More of them touch none of those that are there.
            functions.clear();
        }
        let mediated = if vgpu && then <= now { mediated::made(physical, probe) } else { BTreeMap::new() };
        let of_mediated = running(|is| is.mediated().any(|m| mediated.contains_key(&m)), probe)?;
        if let Some(vm) = running_with(|f| functions.values().any(|v| v == f), probe)?.or(of_mediated)
            && !self.stops(&vm)
        {
            let why = format!("VM `{vm}` runs with one of them");
            return Ok(Some(Diff::Blocked { why, help: format!("shut it down first: gpuvm vm stop {vm}") }));
        }
        let (was, becomes) = (Some(now.to_string()), Some(then.to_string()));
        let what = if vgpu { "vGPUs" } else { "virtual functions" };
        change.fields.push(FieldDiff::new(what, was, becomes));
        let name = name.clone();
        let step = match vgpu {
            true => Step::Vgpus(VgpuStep { name, physical, before: now, count: then }),
            false => Step::VirtualFunctions(VirtualFunctionsStep { name, physical, before: now, count: then }),
        };
        let at = if then == 0 { 0 } else { change.steps.len() };
        change.steps.insert(at, step);
        Ok(None)
    }

    /// A slot that was bound at once is bound back at once, as a whole.
    fn slot(&self, mine: &[(&Place, &Seen)], change: &mut Change) {
        let of = |place: &Place| self.now.seen.get(place).unwrap_or(&Seen::Nothing);
        let functions: Vec<_> = mine
            .iter()
            .filter_map(|(place, before)| match (place, before, of(place)) {
                (Place::Function(address), Seen::Driver(then), Seen::Driver(now)) => {
                    Some((*address, then.as_deref() == Some("vfio-pci"), now.clone()))
                }
                _ => None,
            })
            .collect();
        let wrong = |(_, vfio, now): &(_, bool, Option<String>)| *vfio != (now.as_deref() == Some("vfio-pci"));
        if !functions.iter().any(wrong) {
            return;
        }
        let vfio = functions.iter().all(|(_, vfio, _)| *vfio);
        for (address, vfio, now) in &functions {
            let to = if *vfio { "vfio-pci" } else { "the host's driver" };
            let now = now.clone().unwrap_or_else(|| "no driver".to_owned());
            change.fields.push(FieldDiff::new(format!("function {address}"), Some(now), Some(to.to_owned())));
        }
        change.steps.push(Step::BindSlot(SlotBinding {
            functions: functions.into_iter().map(|(address, _, now)| (address, now)).collect(),
            target: if vfio { BindTarget::Vfio } else { BindTarget::Host },
        }));
    }
}

/// The network devices of VMs that a plan stops.
fn leaving(entries: &[Entry], probe: &dyn Probe) -> BTreeSet<String> {
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return BTreeSet::new() };
    let changes = entries.iter().filter_map(|e| if let Diff::Change(c) = &e.diff { Some(c) } else { None });
    let stopped = changes.flat_map(|c| &c.steps).filter_map(|step| match step {
        Step::StopDomain { name, .. } => known.domain(name.as_str())?.live_xml.as_deref(),
        _ => None,
    });
    stopped.flat_map(libvirt_domain::taps).collect()
}

/// The running VM that has one of some functions.
fn running_with(one: impl Fn(&PciAddress) -> bool, probe: &dyn Probe) -> Result<Option<String>, HostError> {
    running(|is| is.functions.iter().any(&one), probe)
}

/// The first VM that runs as this says.
fn running(of: impl Fn(&Projection) -> bool, probe: &dyn Probe) -> Result<Option<String>, HostError> {
    let Answer::Value(known) = probe.virtualisation()? else { return Ok(None) };
    let has = |d: &&crate::host::Domain| {
        let live = d.live_xml.as_deref().filter(|_| d.active).and_then(|xml| project(xml).ok());
        live.is_some_and(|p| of(&p))
    };
    Ok(known.domains.iter().find(has).map(|d| d.name.clone()))
}

/// As `--skip` takes it.
fn selector(key: &Key) -> String {
    if key.name.is_empty() { key.kind.clone() } else { format!("{}/{}", key.kind, key.name) }
}

/// MIG of a card as it was: what goes does so before the file that says what is made at boot.
fn mig(
    name: &ResourceName,
    physical: PciAddress,
    (before, is): (&Seen, &Seen),
    change: &mut Change,
    probe: &dyn Probe,
) -> Option<Diff> {
    let state = |seen: &Seen| if let Seen::Mig(state) = seen { state.clone() } else { MigState::default() };
    let (then, now) = (state(before), state(is));
    // Its driver is gone, and took what there was with it.
    if !mig::is_driven(probe, physical) {
        return None;
    }
    let card = match mig::ask(probe, physical) {
        mig::Told::Card(card) => card,
        mig::Told::Without => return None,
        mig::Told::Unknown(why) => return Some(Diff::Unknown { why }),
    };
    let goes = |i: &&mig::Instance| !then.has(&i.profile, i.start);
    if let Some(diff) = in_use(&card, goes, then.on != card.on) {
        return Some(diff);
    }
    change.fields.push(FieldDiff::new(format!("MIG of {physical}"), Some(now.to_string()), Some(then.to_string())));
    let at = if then.instances.is_empty() { 0 } else { change.steps.len() };
    change.steps.insert(at, Step::Mig(MigStep { name: name.clone(), physical, before: now, after: then }));
    None
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
    let of = |place: &Place| now.seen.get(place).unwrap_or(&Seen::Nothing);
    let mut places = mine.iter().filter(|(place, before)| main(place) && *before != of(place)).peekable();
    if places.peek().is_none() {
        return Action::Change;
    }
    let places: Vec<_> = places.collect();
    if places.iter().all(|(_, before)| **before == Seen::Nothing) {
        Action::Remove
    } else if places.iter().all(|(place, _)| *of(place) == Seen::Nothing) {
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
