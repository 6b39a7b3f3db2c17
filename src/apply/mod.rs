//! Carries out a plan: round after round of plan → steps, until nothing is left that can be done. No decisions about
//! kinds are made here; what a step does is up to the host.

mod envelope;
mod state;

use std::collections::BTreeMap;

pub use envelope::Envelope;
pub use state::{LEDGER_FORMAT, StateDir, StateError};

use crate::host::{Host, HostError, Running};
use crate::plan::{Content, Diff, FileWrite, Item, Key, Past, Plan, Refresh, Step};
use crate::resource::Wanted;
use crate::types::Mode;

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
    /// Rounds did not come to an end.
    #[error("no end after {MOST_ROUNDS} rounds; the next plan shows what keeps changing")]
    NoEnd,
}

/// What the person allowed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed {
    /// Reboots that the plan asks for.
    pub reboot: bool,
}

/// What happens while an apply runs, for whoever shows it.
#[derive(Debug)]
pub enum Event<'a> {
    /// A thing is being changed.
    Begins(&'a Key),
    /// How far it is.
    Progress(&'a str),
    /// It is done.
    Done(&'a Key),
    /// A refresh is done.
    Refreshed(Refresh),
    /// The host boots again.
    Rebooting,
}

/// How an apply ended.
#[derive(Debug)]
pub struct Outcome {
    /// The run's number; `None` where nothing was to do and no run was made.
    pub run: Option<u64>,
    /// What was changed, in order.
    pub done: Vec<Key>,
    /// The plan after the last round: what still waits.
    pub left: Plan,
}

/// What an apply needs beside the host.
pub struct Apply<'a> {
    /// Makes a plan of the host as it is now.
    pub plan: &'a dyn Fn(&dyn crate::host::Probe, &Past) -> (Plan, BTreeMap<Key, Wanted>),
    /// gpuvm's own state.
    pub state: &'a mut StateDir,
    /// What the person allowed.
    pub allowed: Allowed,
    /// Payloads of secrets, by sha256.
    pub secrets: &'a BTreeMap<String, Vec<u8>>,
    /// Where it is told what happens.
    pub tell: &'a mut dyn FnMut(Event<'_>),
}

impl Apply<'_> {
    /// Carries out what `approved` says, and what it promises for later rounds, on the host.
    pub fn run(mut self, host: &mut dyn Host, approved: &Plan) -> Result<Outcome, ApplyError> {
        let envelope = Envelope::of(approved);
        let mut done = Vec::new();
        let mut run = None;
        for round in 0..MOST_ROUNDS {
            let (plan, wanted) = (self.plan)(host, &self.state.past()?);
            if round == 0 && plan != *approved {
                return Err(ApplyError::Stale(envelope::first_difference(approved, &plan)));
            }
            if let Some(why) = blocked(&plan) {
                return Err(ApplyError::Blocked(why));
            }
            envelope.holds(&plan).map_err(ApplyError::BeyondApproved)?;
            let (now, reboot) = due_now(&plan);
            if now.is_empty() && !(reboot && self.allowed.reboot) {
                self.adopt_in_sync(&plan, &wanted, run)?;
                if let Some(run) = run {
                    self.state.finish(run)?;
                }
                return Ok(Outcome { run, done, left: plan });
            }
            let number = match run {
                Some(number) => number,
                None => *run.insert(self.state.begin(approved)?),
            };
            for item in &now {
                self.item(host, &plan, item, &wanted, number, &mut done)?;
            }
            // A reboot comes only when a round has nothing left that can be done before it.
            if now.is_empty() && reboot {
                (self.tell)(Event::Rebooting);
                self.step(host, &Key::new("reboot", ""), &Step::Reboot, number)?;
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
        run: u64,
        done: &mut Vec<Key>,
    ) -> Result<(), ApplyError> {
        match item {
            Item::Refresh { refresh, .. } => {
                let key = Key::new("refresh", refresh.name());
                self.step(host, &key, &Step::Refresh { refresh: *refresh }, run)?;
                self.state.refreshed(*refresh)?;
                (self.tell)(Event::Refreshed(*refresh));
            }
            Item::Entry { index } => {
                let Some(entry) = plan.entries.get(*index) else { return Ok(()) };
                let Diff::Change(change) = &entry.diff else { return Ok(()) };
                (self.tell)(Event::Begins(&entry.key));
                // Owned and owed before the first write: a kill in the middle must not lose either.
                self.state.owe(&change.refreshes)?;
                if let Some(wanted) = wanted.get(&entry.key) {
                    self.state.own(&entry.key, wanted)?;
                }
                for step in &change.steps {
                    self.step(host, &entry.key, step, run)?;
                }
                (self.tell)(Event::Done(&entry.key));
                done.push(entry.key.clone());
            }
            Item::Reboot { .. } => {}
        }
        Ok(())
    }

    /// One step: journalled before and after, with the originals of the files that it replaces kept first.
    fn step(&mut self, host: &mut dyn Host, key: &Key, step: &Step, run: u64) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Step { key: key.clone(), source };
        let restored;
        let step = match step {
            Step::RestoreFile { path } => {
                restored = self.state.restore_step(path)?;
                &restored
            }
            other => other,
        };
        for path in replaced(step) {
            self.state.keep(host, path).map_err(failed)?;
        }
        self.state.journal(run, key, step, "begins")?;
        let tell = &mut *self.tell;
        let mut progress = |line: &str| tell(Event::Progress(line));
        let run_dir = self.state.run_dir(run);
        let mut running = Running { secrets: self.secrets, progress: &mut progress, run_dir: &run_dir };
        let result = host.execute(step, &mut running);
        self.state.journal(run, key, step, if result.is_ok() { "done" } else { "failed" })?;
        result.map_err(failed)
    }

    /// What was made in this run and is in sync now is ours; what is gone and no longer wanted is forgotten. A run
    /// that did nothing writes nothing.
    fn adopt_in_sync(
        &mut self,
        plan: &Plan,
        wanted: &BTreeMap<Key, Wanted>,
        run: Option<u64>,
    ) -> Result<(), StateError> {
        if run.is_none() {
            return Ok(());
        }
        for entry in plan.entries.iter().filter(|e| matches!(e.diff, Diff::InSync { .. })) {
            if !wanted.contains_key(&entry.key) {
                self.state.disown(&entry.key)?;
            }
        }
        Ok(())
    }
}

/// The files whose present content a step replaces or takes away.
fn replaced(step: &Step) -> Vec<&std::path::Path> {
    match step {
        Step::WriteFile(file) => vec![&file.path],
        Step::RemoveFile { path } | Step::Link { path, .. } => vec![path],
        Step::SwitchNetwork(switch) => switch.paths().map(|p| p.as_path()).collect(),
        _ => Vec::new(),
    }
}

/// The items that can be carried out before a reboot, and whether a reboot is due.
fn due_now(plan: &Plan) -> (Vec<Item>, bool) {
    let mut now = Vec::new();
    for item in &plan.order {
        match item {
            Item::Reboot { .. } => return (now, true),
            Item::Entry { index } => {
                if plan.entries.get(*index).is_some_and(|e| matches!(e.diff, Diff::Change(_))) {
                    now.push(item.clone());
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
