//! Carries out a plan: round after round of plan → steps, until nothing is left that can be done. No decisions about
//! kinds are made here; what a step does is up to the host.

mod envelope;
mod journal;
mod record;
mod state;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use envelope::Envelope;
pub use journal::{JOURNAL_FORMAT, Line};
pub use record::record_after;
pub use state::{ABOUT_FORMAT, About, Ending, KEPT_RUNS, LEDGER_FORMAT, Order, Purpose, StateDir, StateError};

use crate::fail_point::fail_point;
use crate::host::{Host, HostError, Probe, Running};
use crate::plan::{
    Action, Change, Content, Diff, FileWrite, Item, Key, Past, Place, Plan, Policy, Refusal, Step, WaitFor, touched,
};
use crate::resource::Wanted;
use crate::types::Mode;
use journal::Journal;
use record::{Record, Unrecorded};

/// More rounds than any manifest needs: packages, their index, libvirt, a reboot, each opens one.
const MOST_ROUNDS: usize = 8;

/// Why an apply stopped.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A step failed; what was done before it stays done, and the next plan shows what is left.
    #[error("`{key}` failed: {source}")]
    Step {
        /// The thing that was being changed.
        key: Key,
        /// In the words of what failed.
        source: HostError,
    },
    /// gpuvm's own state could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host is not as it was when the plan was shown.
    #[error("the host changed since the plan was shown: {0}")]
    Stale(String),
    /// A later round would do more than was approved.
    #[error("this was not in the plan that you approved: {0}")]
    BeyondApproved(String),
    /// Something cannot or must not be done.
    #[error("blocked: {0}")]
    Blocked(String),
    /// A change was made, and the host is as if it had not been.
    #[error("`{0}` was changed, and is still not as wanted: the same change is due again")]
    NoEffect(Key),
    /// The host booted as often as was approved, and something still waits for a boot.
    #[error("the host was booted, and {0}")]
    RebootInVain(String),
    /// A rule refuses what was to begin.
    #[error("{0}")]
    Policy(Refusal),
    /// Someone asked the run to stop; it did so between two steps, and can go on.
    #[error("stopped on request")]
    Stopped,
    /// Rounds did not come to an end.
    #[error("no end after {MOST_ROUNDS} rounds; the next plan shows what keeps changing")]
    NoEnd,
}

impl ApplyError {
    /// What to do about it, where that is known.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            ApplyError::Step { source, .. } => source.help(),
            _ => None,
        }
    }
}

/// What the person allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allowed {
    /// Reboots that the plan asks for.
    pub reboot: bool,
}

/// What happens while an apply runs, for whoever shows it.
#[derive(Debug)]
pub enum Event<'a> {
    /// A thing is being changed, or refreshed (`refresh[initramfs]`).
    Begins(&'a Key),
    /// How far it is.
    Progress(&'a str),
    /// Something to be read about it, though nothing failed.
    Note(&'a str),
    /// It is done.
    Done(&'a Key),
    /// The host boots again.
    Rebooting,
}

/// How an apply ended.
#[derive(Debug)]
pub struct Outcome {
    /// The run's number.
    pub run: u64,
    /// What was changed, in order, before a reboot in the middle too.
    pub done: Vec<String>,
    /// The plan after the last round: what still waits.
    pub left: Plan,
}

/// A plan, with what it wants of each thing.
pub type Planned = (Plan, BTreeMap<Key, Wanted>);

/// What an apply needs beside the host.
pub struct Apply<'a> {
    /// Makes a plan of the host as it is now.
    pub plan: &'a dyn Fn(&dyn Probe, &Past) -> Planned,
    /// gpuvm's own state, locked.
    pub state: &'a mut StateDir,
    /// The run that was made for this.
    pub run: u64,
    /// What the person allowed.
    pub allowed: Allowed,
    /// What may not be done.
    pub policies: &'a [Policy],
    /// What time it is, for them.
    pub clock: &'a dyn Fn() -> jiff::Timestamp,
    /// Payloads of secrets, by sha256.
    pub secrets: &'a BTreeMap<String, Vec<u8>>,
    /// Whether someone asked the run to stop after the step that is at work.
    pub stop: &'a dyn Fn() -> bool,
    /// Where it is told what happens.
    pub tell: &'a mut dyn FnMut(Event<'_>),
}

impl Apply<'_> {
    /// Carries out what `approved` says, and what it promises for later rounds, on the host. A run that was booted in
    /// the middle goes on here: it is not stale for that, and may do what is left of what was approved.
    pub fn run(mut self, host: &mut dyn Host, approved: &Plan) -> Result<Outcome, ApplyError> {
        let result = self.rounds(host, approved);
        if !matches!(result, Err(ApplyError::Stopped | ApplyError::State(_))) {
            // What kept the run from its end is said, and not that the record of it has the same reason. Who hangs is not
            // waited for a second time.
            let hangs = matches!(&result, Err(e) if e.help().is_some());
            let folded = self.state.fold_up(self.run, host).map_err(ApplyError::from);
            let recorded = record_after(self.state, self.run, host, hangs);
            return result.and_then(|outcome| folded.and(recorded).map(|()| outcome));
        }
        result
    }

    fn rounds(&mut self, host: &mut dyn Host, approved: &Plan) -> Result<Outcome, ApplyError> {
        let envelope = Envelope::of(approved);
        let boots_approved = approved.order.iter().filter(|i| matches!(i, Item::Reboot { .. })).count() as u64;
        let begun = self.state.has_begun(self.run);
        let mut done = self.state.done(self.run)?;
        tidy(self.state, self.run, host)?;
        let mut written = Written::default();
        let mut made: BTreeMap<Key, Diff> = BTreeMap::new();
        for round in 0..MOST_ROUNDS {
            let (plan, wanted) = (self.plan)(host, &self.state.past()?);
            if round == 0 && !begun && plan != *approved {
                return Err(ApplyError::Stale(envelope::first_difference(approved, &plan)));
            }
            if let Some(why) = blocked(&plan) {
                return Err(ApplyError::Blocked(why));
            }
            envelope.holds(&plan).map_err(ApplyError::BeyondApproved)?;
            let (now, reboot) = due_now(&plan);
            if now.is_empty() && !(reboot && self.allowed.reboot) {
                self.state.settle(&plan, &wanted)?;
                return Ok(Outcome { run: self.run, done, left: plan });
            }
            for item in &now {
                if let Item::Entry { index } = item
                    && let Some(entry) = plan.entries.get(*index)
                    && made.insert(entry.key.clone(), entry.diff.clone()).is_some_and(|before| before == entry.diff)
                {
                    return Err(ApplyError::NoEffect(entry.key.clone()));
                }
                self.item(host, &plan, item, &wanted, &mut done, &mut written)?;
            }
            // A reboot comes only when a round has nothing left that can be done before it.
            if now.is_empty() && reboot {
                let boot = this_boot(host);
                let guests = plan.order.iter().map(Item::guests).max().unwrap_or(0);
                if self.state.boots(self.run, &boot) >= boots_approved {
                    return Err(ApplyError::RebootInVain(still_waiting(&plan)));
                }
                let now = (self.clock)();
                if let Some(refusal) = self.policies.iter().find_map(|p| p.judge_reboot(guests, now)) {
                    return Err(ApplyError::Policy(refusal));
                }
                // libvirt cannot save them: their power would be cut.
                let first = plan.order.iter().find_map(|item| match item {
                    Item::Reboot { shut_down, .. } => Some(shut_down),
                    _ => None,
                });
                for name in first.into_iter().flatten() {
                    self.go_on()?;
                    let key = Key::new("libvirt-domain", name.as_str());
                    self.step(host, &key, &Step::shut_down(name), &mut written)?;
                }
                self.go_on()?;
                self.state.will_boot(self.run, &boot)?;
                (self.tell)(Event::Rebooting);
                self.step(host, &Key::new("reboot", ""), &Step::Reboot, &mut written)?;
            }
        }
        Err(ApplyError::NoEnd)
    }

    fn item(
        &mut self,
        host: &mut dyn Host,
        plan: &Plan,
        item: &Item,
        wanted: &BTreeMap<Key, Wanted>,
        done: &mut Vec<String>,
        written: &mut Written,
    ) -> Result<(), ApplyError> {
        self.go_on()?;
        match item {
            Item::Refresh { refresh, .. } => {
                let key = Key::new("refresh", refresh.name());
                (self.tell)(Event::Begins(&key));
                self.step(host, &key, &Step::Refresh { refresh: refresh.clone() }, written)?;
                self.state.refreshed(refresh)?;
                (self.tell)(Event::Done(&key));
            }
            Item::Entry { index } => {
                let Some(entry) = plan.entries.get(*index) else { return Ok(()) };
                let Diff::Change(change) = &entry.diff else { return Ok(()) };
                self.permitted(&entry.key, change, done)?;
                (self.tell)(Event::Begins(&entry.key));
                // Owned and owed before the first write: a kill in the middle must not lose either. What was ours before
                // keeps what was applied last until the new is in place: a step that fails must not lose what is to
                // be taken back.
                let anew = !self.state.owns(&entry.key);
                for path in change.steps.iter().flat_map(replaced) {
                    let failed = |source| ApplyError::Step { key: entry.key.clone(), source };
                    self.state.keep(host, path, anew).map_err(failed)?;
                }
                let at_boot = wanted.get(&entry.key).cloned().or_else(|| self.state.owned(&entry.key).cloned());
                let at_boot = at_boot.map(|w| w.at_boot(host)).unwrap_or_default();
                self.record(host, &entry.key, at_boot, written)?;
                self.state.owe(&change.refreshes)?;
                let wanted = wanted.get(&entry.key);
                let last = self.state.owned(&entry.key).cloned();
                let made = change.action == Action::Create;
                if let Some(wanted) = wanted.filter(|_| last.is_none()) {
                    self.state.own(&entry.key, &wanted.begun().kept(None, made))?;
                }
                for step in &change.steps {
                    self.go_on()?;
                    let done = self.step(host, &entry.key, step, written);
                    // What failed was not made. What only did not answer may have been.
                    if let (true, Some(wanted), Err(ApplyError::Step { source, .. })) = (made, wanted, &done)
                        && !matches!(source, HostError::Timeout { .. })
                    {
                        let begun = last.clone().unwrap_or_else(|| wanted.begun());
                        self.state.own(&entry.key, &begun.kept(None, false))?;
                    }
                    done?;
                }
                if let Some(wanted) = wanted {
                    self.state.own(&entry.key, &wanted.kept(last.as_ref(), made))?;
                }
                (self.tell)(Event::Done(&entry.key));
                if !done.contains(&entry.key.to_string()) {
                    done.push(entry.key.to_string());
                }
            }
            Item::Reboot { .. } => {}
        }
        Ok(())
    }

    /// Whether the rules let a change begin now: it was judged when it was planned, and time has passed since.
    fn permitted(&self, key: &Key, change: &Change, done: &[String]) -> Result<(), ApplyError> {
        let now = (self.clock)();
        let count = done.iter().filter(|d| **d != key.to_string()).count() + 1;
        match self.policies.iter().find_map(|p| p.judge_start(key, change, count, now)) {
            Some(refusal) => Err(ApplyError::Policy(refusal)),
            None => Ok(()),
        }
    }

    /// Between two steps a run can be stopped, and nowhere else.
    fn go_on(&self) -> Result<(), ApplyError> {
        if (self.stop)() { Err(ApplyError::Stopped) } else { Ok(()) }
    }

    /// One step: journalled before and after.
    fn step(&mut self, host: &mut dyn Host, key: &Key, step: &Step, written: &mut Written) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Step { key: key.clone(), source };
        let restored;
        let step = match step {
            Step::RestoreFile { path } => {
                restored = self.state.restore_step(path)?;
                &restored
            }
            other => other,
        };
        self.record(host, key, touched(step), written)?;
        let journal = match &mut written.journal {
            Some(open) => open,
            None => written.journal.insert(self.state.journal(self.run)?),
        };
        journal.line(&key.to_string(), step, journal::BEGINS)?;
        fail_point("before a step");
        let tell = &mut *self.tell;
        let mut progress = |line: &str| tell(Event::Progress(line));
        let run_dir = self.state.run_dir(self.run);
        let mut notes = Vec::new();
        let mut running =
            Running { secrets: self.secrets, progress: &mut progress, notes: &mut notes, run_dir: &run_dir };
        let result = host.execute(step, &mut running);
        notes.iter().for_each(|note| (self.tell)(Event::Note(note)));
        fail_point("after a step");
        let noted = journal.line(&key.to_string(), step, if result.is_ok() { journal::DONE } else { journal::FAILED });
        // What the step said is worth more than that it could not be written down.
        result.map_err(failed)?;
        Ok(noted?)
    }

    /// Records how places are before they are touched, in this run's own directory.
    fn record(&self, host: &dyn Host, key: &Key, places: Vec<Place>, written: &mut Written) -> Result<(), ApplyError> {
        written.record.before(self.state, self.run, host, key, places).map_err(|e| match e {
            Unrecorded::State(e) => e.into(),
            Unrecorded::Host(source) => ApplyError::Step { key: key.clone(), source },
        })
    }
}

/// What a run writes while it is at work: opened with the first line.
#[derive(Default)]
struct Written {
    journal: Option<Journal>,
    record: Record,
}

/// What tells this boot of the host from others (random(4)); empty where that is not known.
fn this_boot(probe: &dyn Probe) -> String {
    let id = probe.text("/proc/sys/kernel/random/boot_id".as_ref()).ok().and_then(crate::host::Answer::value);
    id.unwrap_or_default().trim().to_owned()
}

/// Takes away what a step that was cut off left beside the files that it was writing.
pub fn tidy(state: &StateDir, run: u64, host: &mut dyn Host) -> Result<(), ApplyError> {
    let Some(line) = state.interrupted(run)? else { return Ok(()) };
    for path in replaced(&line.step).into_iter().chain(made_beside(&line.step)) {
        let failed = |source| ApplyError::Step { key: Key::new(&line.key, ""), source };
        host.tidy(path).map_err(failed)?;
    }
    Ok(())
}

/// What waits for a boot, and why.
fn still_waiting(plan: &Plan) -> String {
    let waits = plan.entries.iter().filter_map(|e| match &e.diff {
        Diff::Waits { on: WaitFor::Reboot, why, .. } => Some(format!("`{}` still waits for one: {why}", e.key)),
        _ => None,
    });
    waits.collect::<Vec<_>>().join("; ")
}

/// The files whose present content a step replaces or takes away.
fn replaced(step: &Step) -> Vec<&std::path::Path> {
    match step {
        Step::WriteFile(file) => vec![&file.path],
        Step::Seed { path, .. } | Step::CloneSeed { to: path, .. } => vec![path],
        Step::RemoveFile { path } | Step::Link { path, .. } | Step::RestoreFile { path } => vec![path],
        Step::SwitchNetwork(switch) => switch.paths().map(|p| p.as_path()).collect(),
        _ => Vec::new(),
    }
}

/// The files of disks that a step makes under a temporary name, which may be as large as they are.
fn made_beside(step: &Step) -> Option<&std::path::Path> {
    match step {
        Step::CopyVolume(copy) => Some(&copy.path),
        Step::NewLayer { path, .. } | Step::RebaseLayer { path, .. } | Step::CommitLayer { into: path, .. } => {
            Some(path)
        }
        Step::CopyFile(copy) => Some(&copy.to),
        _ => None,
    }
}

/// The items that can be carried out before a reboot, and whether a reboot is due.
fn due_now(plan: &Plan) -> (Vec<Item>, bool) {
    let mut now = Vec::new();
    for item in &plan.order {
        match item {
            Item::Reboot { .. } => return (now, true),
            Item::Entry { index } => {
                let Some(Diff::Change(change)) = plan.entries.get(*index).map(|e| &e.diff) else { continue };
                now.push(item.clone());
                // Whether packages can be had is known before anything else is changed for them.
                if change.complete_after == Some(WaitFor::PackageIndex) {
                    return (now, false);
                }
            }
            Item::Refresh { .. } => now.push(item.clone()),
        }
    }
    // A refresh that is due only for what still waits is not due.
    let waits = |key: &Key| plan.entries.iter().any(|e| e.key == *key && matches!(e.diff, Diff::Waits { .. }));
    now.retain(|item| !matches!(item, Item::Refresh { due, .. } if !due.is_empty() && due.iter().all(waits)));
    (now, false)
}

/// Why nothing of a plan may be done, or `None`.
pub fn blocked(plan: &Plan) -> Option<String> {
    let error = |f: &&crate::plan::Finding| f.severity == crate::plan::Severity::Error;
    if let Some(finding) = plan.findings.iter().find(error) {
        return Some(finding.message.clone());
    }
    plan.entries.iter().find_map(|e| match &e.diff {
        Diff::Blocked { why, .. } => Some(format!("{}: {why}", e.key)),
        Diff::Unknown { why } => Some(format!("{}: not known: {why}", e.key)),
        _ => None,
    })
}

/// The step that puts a kept original back.
pub(crate) fn write_kept(path: &std::path::Path, text: String, mode: u32, owner: String, group: String) -> Step {
    Step::WriteFile(FileWrite {
        path: path.to_owned(),
        content: Content::Text(text),
        mode: Mode::new(mode),
        owner,
        group,
    })
}
