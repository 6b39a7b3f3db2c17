//! What gpuvm keeps on the host (/var/lib/gpuvm): the ledger of what is ours, refreshes that are owed, kept originals,
//! and a journal a run. Only this module writes it; every file is replaced as a whole and synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::journal::{self, Journal, Line};
use super::{Allowed, write_kept};
use crate::host::whole::{self, Attributes};
use crate::host::{Answer, Host, HostError, Probe};
use crate::plan::{Diff, Entry, Key, Past, Plan, Policy, Refresh, SavedManifest, SavedPlan, Selection, Step};
use crate::resource::Wanted;
use crate::types::sha256_hex;
use crate::undo::{Back, Edited, Recorded};
use crate::verb::Verb;

/// The number of the ledger's format; a newer one is refused.
pub const LEDGER_FORMAT: u32 = 1;

/// Why gpuvm's own state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file could not be read or written.
    #[error("`{path}`: {source}{}", what_to_do(.source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what gpuvm writes: it is left alone, not overwritten.
    #[error("`{path}` cannot be understood ({why}); it is left as it is, and nothing was changed{}", way_back(.path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A folder of gpuvm's is something else.
    #[error("`{path}` {why}; nothing was changed. Look at it: ls -ld {path}")]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// Another gpuvm is at work.
    #[error("another gpuvm is changing this host (lock `{0}`)")]
    Locked(PathBuf),
    /// There is no kept original to go back to.
    #[error("no original of `{0}` was kept")]
    NoOriginal(PathBuf),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ledger {
    format: u32,
    /// Pairs, since a JSON object cannot have a key of two parts.
    #[serde(default)]
    owned: Vec<(Key, Wanted)>,
    #[serde(default)]
    pending: BTreeSet<Refresh>,
    /// Originals by path: the name of the kept copy, or none where the file did not exist.
    #[serde(default)]
    kept: BTreeMap<PathBuf, Option<Kept>>,
    /// Directories that were not there before a file of ours.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    folders: BTreeSet<PathBuf>,
    #[serde(default)]
    last_run: u64,
}

impl Ledger {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, StateError> {
        let corrupt = |why: String| StateError::Corrupt { path: path.to_owned(), why };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(n) if n == u64::from(LEDGER_FORMAT) => {}
            Some(n) => {
                let why = format!("its format is {n}, this gpuvm reads {LEDGER_FORMAT}: use the newer gpuvm");
                return Err(corrupt(why));
            }
            None => return Err(corrupt("it has no format number".to_owned())),
        }
        serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    copy: String,
    mode: String,
    uid: u32,
    gid: u32,
}

/// What a run is for: where its plans come from, in each round anew.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Purpose {
    /// What a manifest says.
    Manifest {
        /// What of it.
        selection: Selection,
        /// The manifest, with the files that it refers to.
        manifest: SavedManifest,
    },
    /// The way back from a run.
    Undo(Back),
    /// What a person asked for beside the manifest.
    Verb(Verb),
}

/// What a run is to do: what was approved, and what was allowed with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// Where its plans come from.
    pub purpose: Purpose,
    /// What was approved.
    pub plan: Plan,
    /// What it may not do, whenever it is carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// What was allowed.
    pub allowed: Allowed,
    /// What its command writes into a manifest beside that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited: Option<Edited>,
}

impl Order {
    /// A plan for a purpose, of which nothing is allowed yet.
    pub fn new(purpose: Purpose, plan: Plan) -> Self {
        Self { purpose, plan, policies: Vec::new(), allowed: Allowed::default(), edited: None }
    }
}

impl From<SavedPlan> for Order {
    fn from(saved: SavedPlan) -> Self {
        let SavedPlan { plan, selection, policies, manifest, .. } = saved;
        Self { policies, ..Self::new(Purpose::Manifest { selection, manifest }, plan) }
    }
}

/// The number of the format of [`About`]; another one is refused.
pub const ABOUT_FORMAT: u32 = 1;

/// What is kept of a run for people and for its way back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct About {
    /// [`ABOUT_FORMAT`].
    pub format: u32,
    /// When it began, by the clock of the host; for the reader only.
    pub at: String,
    /// The command.
    pub asked: String,
    /// The run that it undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<u64>,
    /// What was asked for beside the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verb: Option<Verb>,
    /// What was approved. Secrets are digests in it.
    pub plan: Plan,
    /// What its command wrote into a manifest beside that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited: Option<Edited>,
}

/// How many runs are kept, with their records. What is ours and every first original are kept apart from them.
pub const KEPT_RUNS: u64 = 32;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ending {
    /// The exit code that it stands for.
    pub code: u8,
    /// What was done and what waits, or what failed.
    pub text: String,
}

/// The state directory. Reading needs no lock and makes nothing; the first write makes the directory (0700).
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    ledger: Ledger,
    lock: Option<File>,
}

impl StateDir {
    /// Reads the state below `dir`; a directory that is not there is an empty state.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StateError> {
        let dir = dir.into();
        [dir.clone(), dir.join("runs"), dir.join("kept")].iter().try_for_each(|folder| is_ours(folder))?;
        let path = dir.join("ledger.json");
        let ledger = match fs::read(&path) {
            Ok(bytes) => Ledger::parse(&path, &bytes)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ledger { format: LEDGER_FORMAT, ..Ledger::default() },
            Err(source) => return Err(StateError::File { path, source }),
        };
        Ok(Self { dir, ledger, lock: None })
    }

    /// What earlier runs left behind, for planning.
    pub fn past(&self) -> Result<Past, StateError> {
        Ok(Past { owned: self.ledger.owned.iter().cloned().collect(), pending: self.ledger.pending.clone() })
    }

    /// Takes the lock, which holds until [`Self::unlock`] or the end of the process, and reads the state again under it.
    /// Someone who only looks whether it is held has it for a moment too.
    pub fn lock(&mut self) -> Result<(), StateError> {
        self.lock_within(Duration::from_secs(1))
    }

    /// As [`Self::lock`], from whoever is about to give it up.
    pub fn lock_within(&mut self, limit: Duration) -> Result<(), StateError> {
        if self.lock.is_some() {
            return Ok(());
        }
        make_private(&self.dir)?;
        keep_private(&self.dir)?;
        let path = self.dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| StateError::File { path: path.clone(), source })?;
        let begin = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(std::fs::TryLockError::WouldBlock) if begin.elapsed() < limit => {
                    // flock(2) has no limit of its own.
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(std::fs::TryLockError::WouldBlock) => return Err(StateError::Locked(path)),
                Err(std::fs::TryLockError::Error(source)) => return Err(StateError::File { path, source }),
            }
        }
        *self = Self { lock: Some(lock), ..Self::open(&self.dir)? };
        // Under the lock nobody else is writing it: what is there was left by one that was cut off.
        self.tidy(&self.dir.join("ledger.json"))?;
        let last = self.last_run();
        if self.ending(last).is_some() { self.drop_for_going_on(last) } else { Ok(()) }
    }

    fn tidy(&self, path: &Path) -> Result<(), StateError> {
        whole::tidy(path).map_err(|source| StateError::File { path: path.to_owned(), source })
    }

    /// Gives the lock to whoever comes next.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Whether a run is at work. Makes nothing.
    pub fn at_work(&self) -> bool {
        let held = |lock: File| matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock));
        self.lock.is_some() || File::open(self.dir.join("lock")).is_ok_and(held)
    }

    /// Makes a run: what was approved, with all that is needed to carry it out, in a directory of its own.
    pub fn new_run(&mut self, order: &Order, about: &About) -> Result<u64, StateError> {
        self.forget_old_runs();
        self.ledger.last_run += 1;
        let run = self.ledger.last_run;
        make_private(&self.run_dir(run))?;
        // What is ours as the run finds it: for a way back, should the ledger ever be damaged.
        write_whole(&self.run_dir(run).join("ledger.json"), &json(&self.ledger))?;
        write_whole(&self.run_dir(run).join("about.json"), &json(about))?;
        write_whole(&self.run_dir(run).join("order.json"), &json(order))?;
        self.save()?;
        Ok(run)
    }

    /// Old runs go, with their records; one that did not end stays. What cannot be taken away now is tried again.
    fn forget_old_runs(&self) {
        for run in self.runs() {
            let old = run + KEPT_RUNS <= self.ledger.last_run + 1;
            if old
                && self.ending(run).is_some()
                && let Err(e) = fs::remove_dir_all(self.run_dir(run))
            {
                tracing::warn!("the record of run {run} could not be taken away: {e}");
            }
        }
    }

    /// The numbers of the runs that are kept, in order.
    pub fn runs(&self) -> Vec<u64> {
        let names = fs::read_dir(self.dir.join("runs")).into_iter().flatten().flatten();
        let names = names.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        let mut runs: Vec<u64> = names.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        // One that was never written down as begun is none.
        runs.retain(|run| *run <= self.ledger.last_run);
        runs.sort_unstable();
        runs
    }

    /// What is kept of a run for people.
    pub fn about(&self, run: u64) -> Result<About, StateError> {
        let path = self.run_dir(run).join("about.json");
        let bytes = fs::read(&path).map_err(|source| StateError::File { path: path.clone(), source })?;
        let corrupt = |why: String| StateError::Corrupt { path: path.clone(), why };
        let about: About = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
        match about.format {
            ABOUT_FORMAT => Ok(about),
            other => Err(corrupt(format!("its format is {other}, this gpuvm reads {ABOUT_FORMAT}"))),
        }
    }

    /// What a run recorded for its way back.
    pub fn recorded(&self, run: u64) -> Result<Recorded, StateError> {
        super::record::recorded(self, run, self.about(run)?)
    }

    /// What was ours before a run.
    pub(super) fn owned_before(&self, run: u64) -> Result<BTreeMap<Key, Wanted>, StateError> {
        let path = self.run_dir(run).join("ledger.json");
        let bytes = fs::read(&path).map_err(|source| StateError::File { path: path.clone(), source })?;
        let ledger = Ledger::parse(&path, &bytes)?;
        Ok(ledger.owned.into_iter().collect())
    }

    /// These things are ours as they were then, or not at all: their undo is done.
    pub fn own_as_before(&mut self, keys: &BTreeSet<Key>, before: &BTreeMap<Key, Wanted>) -> Result<(), StateError> {
        self.ledger.owned.retain(|(key, _)| !keys.contains(key));
        self.ledger.owned.extend(before.iter().filter(|(k, _)| keys.contains(k)).map(|(k, w)| (k.clone(), w.clone())));
        self.ledger.owned.sort_by(|a, b| a.0.cmp(&b.0));
        self.save()
    }

    /// What a run was made for.
    pub fn order(&self, run: u64) -> Result<Order, StateError> {
        let path = self.run_dir(run).join("order.json");
        let bytes = fs::read(&path).map_err(|source| StateError::File { path: path.clone(), source })?;
        serde_json::from_slice(&bytes).map_err(|e| StateError::Corrupt { path, why: e.to_string() })
    }

    /// The number of the last run; 0 where there was none.
    pub fn last_run(&self) -> u64 {
        self.ledger.last_run
    }

    /// Whether a step of the run began, or what comes just before its first step: a thing that it takes up is noted as
    /// ours first, and from then on a plan may read otherwise than the approved one.
    pub fn has_begun(&self, run: u64) -> bool {
        let found = fs::read(self.run_dir(run).join("ledger.json"));
        self.journal_path(run).exists() || found.is_ok_and(|bytes| bytes != json(&self.ledger))
    }

    fn journal_path(&self, run: u64) -> PathBuf {
        self.run_dir(run).join("journal.jsonl")
    }

    /// Every line of a run's journal; empty for one that did not begin. A line that a power cut tore is left out.
    pub fn journal_lines(&self, run: u64) -> Result<Vec<Line>, StateError> {
        journal::read(&self.journal_path(run))
    }

    /// The step that was at work when the run was cut off.
    pub fn interrupted(&self, run: u64) -> Result<Option<Line>, StateError> {
        Ok(self.journal_lines(run)?.pop().filter(|last| last.state == journal::BEGINS))
    }

    /// The things of which a run did a step, in order, without refreshes and reboots.
    pub fn done(&self, run: u64) -> Result<Vec<String>, StateError> {
        let mut done: Vec<String> = Vec::new();
        for line in self.journal_lines(run)? {
            let counts = line.state == journal::DONE && !matches!(line.step, Step::Refresh { .. } | Step::Reboot);
            if counts && !done.contains(&line.key) {
                done.push(line.key);
            }
        }
        Ok(done)
    }

    /// How often the run booted the host: each time that it was to boot, and is not in that boot any more. `now` tells
    /// this boot from others; a boot whose own name is not known counts, so that nothing can loop.
    pub fn boots(&self, run: u64, now: &str) -> u64 {
        let text = fs::read_to_string(self.run_dir(run).join("boots")).unwrap_or_default();
        text.lines().filter(|before| before.is_empty() || *before != now).count() as u64
    }

    /// Writes down that the host is to boot, before it does. A run that is killed in between did not boot it.
    pub fn will_boot(&self, run: u64, now: &str) -> Result<(), StateError> {
        let path = self.run_dir(run).join("boots");
        let text = fs::read_to_string(&path).unwrap_or_default();
        if text.lines().any(|before| !before.is_empty() && before == now) {
            return Ok(());
        }
        write_whole(&path, format!("{text}{now}\n").as_bytes())
    }

    /// Writes down how a run ended. What only a going-on run needs (its program, its order with secrets) is dropped.
    pub fn finish(&mut self, run: u64, ending: &Ending) -> Result<(), StateError> {
        write_whole(&self.run_dir(run).join("ended.json"), &json(ending))?;
        self.drop_for_going_on(run)
    }

    fn drop_for_going_on(&self, run: u64) -> Result<(), StateError> {
        for name in ["gpuvm", "order.json"] {
            let path = self.run_dir(run).join(name);
            whole::remove(&path).map_err(|source| StateError::File { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// How a run ended; `None` for one that is at work, waits for a boot or was cut off.
    pub fn ending(&self, run: u64) -> Option<Ending> {
        serde_json::from_slice(&fs::read(self.run_dir(run).join("ended.json")).ok()?).ok()
    }

    /// Keeps a note that is no part of what gpuvm owns or owes: written as a whole, for root alone.
    pub fn note(&self, name: &str, what: &impl Serialize) -> Result<(), StateError> {
        let path = self.dir.join(name);
        make_private(&self.dir)?;
        let text = serde_json::to_string_pretty(what)
            .map_err(|e| StateError::File { path: path.clone(), source: e.into() })?;
        write_whole(&path, (text + "\n").as_bytes())
    }

    /// Forgets a note.
    pub fn forget(&self, name: &str) -> Result<(), StateError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StateError::File { path, source }),
            _ => Ok(()),
        }
    }

    /// Where to read what a run did: its log, or the journal where it has none, as a rehearsal.
    pub fn log(&self, run: u64) -> PathBuf {
        let dir = self.run_dir(run);
        let log = dir.join("log");
        if log.exists() { log } else { dir.join("journal.jsonl") }
    }

    /// The directory of a run.
    pub fn run_dir(&self, run: u64) -> PathBuf {
        self.dir.join("runs").join(run.to_string())
    }

    /// A thing of ours, as it was applied last.
    pub fn owned(&self, key: &Key) -> Option<&Wanted> {
        self.ledger.owned.iter().find(|(k, _)| k == key).map(|(_, w)| w)
    }

    /// Whether a thing is ours.
    pub fn owns(&self, key: &Key) -> bool {
        self.ledger.owned.iter().any(|(k, _)| k == key)
    }

    /// Remembers a thing as ours.
    pub fn own(&mut self, key: &Key, wanted: &Wanted) -> Result<(), StateError> {
        if self.ledger.owned.iter().any(|(k, w)| k == key && w == wanted) {
            return Ok(());
        }
        self.ledger.owned.retain(|(k, _)| k != key);
        self.ledger.owned.push((key.clone(), wanted.clone()));
        self.ledger.owned.sort_by(|a, b| a.0.cmp(&b.0));
        self.save()
    }

    /// What is gone and no longer wanted is not ours any more; what is ours and as wanted owes nothing from a run that
    /// was cut off.
    pub fn settle(&mut self, plan: &Plan, wanted: &BTreeMap<Key, Wanted>) -> Result<(), StateError> {
        let settled = |e: &&Entry| e.diff.settled() && !matches!(e.diff, Diff::Stays { ours: true, .. });
        let settled: BTreeSet<&Key> = plan.entries.iter().filter(settled).map(|e| &e.key).collect();
        let mut owned = self.ledger.owned.clone();
        owned.retain(|(key, _)| !settled.contains(key) || wanted.contains_key(key));
        for (key, last) in owned.iter_mut().filter(|(key, _)| settled.contains(key)) {
            if let Some(wanted) = wanted.get(key) {
                *last = wanted.kept(Some(last), false);
            }
        }
        if owned == self.ledger.owned {
            return Ok(());
        }
        self.ledger.owned = owned;
        self.save()
    }

    /// Remembers refreshes as owed before the first write that needs them.
    pub fn owe(&mut self, refreshes: &BTreeSet<Refresh>) -> Result<(), StateError> {
        if refreshes.is_subset(&self.ledger.pending) {
            return Ok(());
        }
        self.ledger.pending.extend(refreshes.iter().cloned());
        self.save()
    }

    /// A refresh is done.
    pub fn refreshed(&mut self, refresh: &Refresh) -> Result<(), StateError> {
        self.ledger.pending.remove(refresh);
        self.save()
    }

    /// Keeps the original of a file before it is changed for the first time. `anew` is for a thing that is not ours
    /// yet: what an earlier time kept is not its original any more.
    pub fn keep(&mut self, probe: &dyn Probe, path: &Path, anew: bool) -> Result<(), HostError> {
        let refused = |e: StateError| HostError::Refused(format!("its original could not be kept: {e}"));
        let mut made = false;
        for folder in path.ancestors().skip(1) {
            if probe.stat(folder)? != Answer::Absent {
                break;
            }
            made |= self.ledger.folders.insert(folder.to_owned());
        }
        if self.ledger.kept.contains_key(path) && !anew {
            return if made { self.save().map_err(refused) } else { Ok(()) };
        }
        let kept = match (probe.stat(path)?, probe.read(path)?) {
            (Answer::Value(stat), Answer::Value(bytes)) => {
                let copy = sha256_hex(path.as_os_str().as_encoded_bytes());
                make_private(&self.dir.join("kept")).map_err(refused)?;
                write_whole(&self.dir.join("kept").join(&copy), &bytes).map_err(refused)?;
                Some(Kept { copy, mode: stat.mode.to_string(), uid: stat.uid, gid: stat.gid })
            }
            (Answer::Denied, _) | (_, Answer::Denied) => {
                return Err(HostError::Refused(format!("`{}` may not be read, so it is not replaced", path.display())));
            }
            _ => None,
        };
        self.ledger.kept.insert(path.to_owned(), kept);
        self.save().map_err(refused)
    }

    /// Takes away the directories that were made for files of ours and lost the last one in this run.
    pub fn fold_up(&mut self, run: u64, host: &mut dyn Host) -> Result<(), StateError> {
        if self.ledger.folders.is_empty() {
            return Ok(());
        }
        let lines = self.journal_lines(run)?;
        let gone: Vec<&Path> = lines
            .iter()
            .flat_map(|line| match &line.step {
                Step::RemoveFile { path } => vec![path.as_path()],
                Step::SwitchNetwork(switch) => switch.paths().map(PathBuf::as_path).collect(),
                _ => Vec::new(),
            })
            .collect();
        let mut folders = self.ledger.folders.clone();
        // The inner ones first.
        for folder in self.ledger.folders.iter().rev().filter(|f| gone.iter().any(|path| path.starts_with(f))) {
            match host.remove_folder(folder) {
                Ok(true) => drop(folders.remove(folder)),
                Ok(false) => {}
                Err(why) => tracing::warn!("{} could not be taken away: {why}", folder.display()),
            }
        }
        if folders == self.ledger.folders {
            return Ok(());
        }
        self.ledger.folders = folders;
        self.save()
    }

    /// The step that puts an original back: its content, or nothing where there was none.
    pub fn restore_step(&self, path: &Path) -> Result<Step, StateError> {
        match self.ledger.kept.get(path) {
            None => Err(StateError::NoOriginal(path.to_owned())),
            Some(None) => Ok(Step::RemoveFile { path: path.to_owned() }),
            Some(Some(kept)) => {
                let copy = self.dir.join("kept").join(&kept.copy);
                let corrupt = |why: String| StateError::Corrupt { path: copy.clone(), why };
                let bytes = fs::read(&copy).map_err(|source| StateError::File { path: copy.clone(), source })?;
                let text = String::from_utf8(bytes).map_err(|e| corrupt(e.to_string()))?;
                let mode = u32::from_str_radix(&kept.mode, 8).map_err(|e| corrupt(e.to_string()))?;
                Ok(write_kept(path, text, mode, kept.uid.to_string(), kept.gid.to_string()))
            }
        }
    }

    /// Opens a run's journal to add to it.
    pub(super) fn journal(&self, run: u64) -> Result<Journal, StateError> {
        Journal::open::<Line>(&self.journal_path(run))
    }

    fn save(&self) -> Result<(), StateError> {
        make_private(&self.dir)?;
        write_whole(&self.dir.join("ledger.json"), &json(&self.ledger))
    }
}

/// Plain data of ours always has a JSON form; the empty text that stands for "it had none" cannot be read back.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// The next step for a person, where the system's words do not say it.
fn what_to_do(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => "; make room, then go on",
        ReadOnlyFilesystem => "; see dmesg for why, and mount it writable (mount -o remount,rw)",
        PermissionDenied => "; run gpuvm as root",
        _ => "",
    }
}

/// Where a file that was damaged can be had from.
fn way_back(path: &Path) -> String {
    let folder = path.parent().unwrap_or(Path::new("/"));
    match path.file_name().and_then(|n| n.to_str()) {
        Some("ledger.json") => {
            format!(". As it was before each run: {}/runs/*/ledger.json; copy the newest over it", folder.display())
        }
        Some("journal.jsonl") => ". To close the run as it is: gpuvm apply --abandon".to_owned(),
        _ => String::new(),
    }
}

pub(super) fn make_private(dir: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StateError::File { path: dir.to_owned(), source })?;
    is_ours(dir)
}

/// A folder of ours is a folder that nobody else may write into: a link, or a name put there by someone else, would lead
/// what root writes to another place. One that is not there yet, or may not be looked at, says so when it is used.
fn is_ours(dir: &Path) -> Result<(), StateError> {
    let Ok(meta) = fs::symlink_metadata(dir) else { return Ok(()) };
    let why = if meta.is_symlink() {
        "is a link, which gpuvm does not follow"
    } else if !meta.is_dir() {
        "is no folder"
    } else if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        "belongs to another user"
    } else if meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && meta.gid() != nix::unistd::getegid().as_raw()) {
        // A person's own group, into which a checkout may be written, is nobody else.
        "may be written by other users"
    } else {
        return Ok(());
    };
    Err(StateError::NotOurs { path: dir.to_owned(), why })
}

/// Someone else may have made it before us, for all to look into.
fn keep_private(dir: &Path) -> Result<(), StateError> {
    let failed = |source| StateError::File { path: dir.to_owned(), source };
    let open = fs::symlink_metadata(dir).map_err(failed)?.mode() & 0o077 != 0;
    if open { fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed) } else { Ok(()) }
}

pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    whole::replace(path, bytes, &Attributes::PRIVATE)
        .map_err(|source| StateError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_only_looks_does_not_keep_the_lock_from_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = StateDir::open(dir.path()).unwrap();
        state.lock().unwrap();
        state.unlock();
        let looks = File::open(dir.path().join("lock")).unwrap();
        looks.try_lock_shared().unwrap();
        let (begun, goes) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            goes.recv().unwrap();
            drop(looks);
        });
        let mut late = StateDir::open(dir.path()).unwrap();
        assert!(matches!(late.lock_within(Duration::ZERO), Err(StateError::Locked(_))));
        begun.send(()).unwrap();
        late.lock().unwrap();
        other.join().unwrap();
    }

    #[test]
    fn a_state_of_a_newer_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.json");
        for text in ["{\"format\":2}", "{", "", "{\"format\":1,\"what\":0}"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(StateDir::open(dir.path()), Err(StateError::Corrupt { .. })), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn what_is_owed_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let state = || StateDir::open(dir.path().join("state")).unwrap();
        assert!(!dir.path().join("state").exists(), "reading makes nothing");
        state().owe(&BTreeSet::from([Refresh::Initramfs])).unwrap();
        assert_eq!(state().past().unwrap().pending, BTreeSet::from([Refresh::Initramfs]));
        state().refreshed(&Refresh::Initramfs).unwrap();
        assert!(state().past().unwrap().pending.is_empty());
    }
}
