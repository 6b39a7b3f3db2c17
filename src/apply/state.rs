//! What gpuvm keeps on the host (/var/lib/gpuvm): the ledger of what is ours, refreshes that are owed, kept originals,
//! and a journal a run. Only this module writes it; every file is replaced as a whole and synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Allowed, write_kept};
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Key, Past, Refresh, SavedPlan, Step};
use crate::resource::Wanted;
use crate::types::sha256_hex;

/// The number of the ledger's format; a newer one is refused.
pub const LEDGER_FORMAT: u32 = 1;

/// Why gpuvm's own state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file could not be read or written.
    #[error("`{path}`: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what gpuvm writes: it is left alone, not overwritten.
    #[error("`{path}` cannot be understood ({why}); it is left as it is, and nothing was changed")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
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
    #[serde(default)]
    last_run: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    copy: String,
    mode: String,
    uid: u32,
    gid: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JournalLine<'a> {
    key: String,
    step: &'a Step,
    state: &'a str,
}

/// What a run is to do: what was approved, and what was allowed with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// What was approved.
    pub saved: SavedPlan,
    /// What was allowed.
    pub allowed: Allowed,
}

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
        let path = dir.join("ledger.json");
        let ledger = match fs::read(&path) {
            Ok(bytes) => {
                let corrupt = |why: String| StateError::Corrupt { path: path.clone(), why };
                let format = serde_json::from_slice::<serde_json::Value>(&bytes)
                    .map_err(|e| corrupt(e.to_string()))?
                    .get("format")
                    .and_then(serde_json::Value::as_u64);
                if format != Some(u64::from(LEDGER_FORMAT)) {
                    return Err(corrupt(match format {
                        Some(n) => format!("its format is {n}, this gpuvm reads {LEDGER_FORMAT}: use the newer gpuvm"),
                        None => "it has no format number".to_owned(),
                    }));
                }
                serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?
            }
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
    pub fn lock(&mut self) -> Result<(), StateError> {
        if self.lock.is_some() {
            return Ok(());
        }
        make_private(&self.dir)?;
        let path = self.dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StateError::File { path: path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StateError::Locked(path)),
            Err(std::fs::TryLockError::Error(source)) => return Err(StateError::File { path, source }),
        }
        *self = Self { lock: Some(lock), ..Self::open(&self.dir)? };
        Ok(())
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
    pub fn new_run(&mut self, order: &Order) -> Result<u64, StateError> {
        self.ledger.last_run += 1;
        let run = self.ledger.last_run;
        make_private(&self.run_dir(run))?;
        write_whole(&self.run_dir(run).join("order.json"), &json(order))?;
        self.save()?;
        Ok(run)
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

    /// Whether a step of the run began.
    pub fn has_begun(&self, run: u64) -> bool {
        self.run_dir(run).join("journal.jsonl").exists()
    }

    /// The things of which a run did a step, in order, without refreshes and reboots. A line that a power cut tore is
    /// not counted.
    pub fn done(&self, run: u64) -> Result<Vec<String>, StateError> {
        let path = self.run_dir(run).join("journal.jsonl");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StateError::File { path, source }),
        };
        let mut done: Vec<String> = Vec::new();
        for line in text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()) {
            let key = line.get("key").and_then(serde_json::Value::as_str).unwrap_or_default();
            let counts = line.get("state").and_then(serde_json::Value::as_str) == Some("done")
                && !key.starts_with("refresh[")
                && key != "reboot";
            if counts && !done.iter().any(|d| d == key) {
                done.push(key.to_owned());
            }
        }
        Ok(done)
    }

    /// How often the run booted the host.
    pub fn boots(&self, run: u64) -> u64 {
        fs::read_to_string(self.run_dir(run).join("boots")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    }

    /// Counts a boot before it happens.
    pub fn count_boot(&self, run: u64) -> Result<(), StateError> {
        write_whole(&self.run_dir(run).join("boots"), (self.boots(run) + 1).to_string().as_bytes())
    }

    /// Writes down how a run ended. What only a going-on run needs (its program, its order with secrets) is dropped.
    pub fn finish(&mut self, run: u64, ending: &Ending) -> Result<(), StateError> {
        write_whole(&self.run_dir(run).join("ended.json"), &json(ending))?;
        for name in ["gpuvm", "order.json"] {
            let path = self.run_dir(run).join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StateError::File { path, source: e }),
                _ => {}
            }
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

    /// The directory of a run.
    pub fn run_dir(&self, run: u64) -> PathBuf {
        self.dir.join("runs").join(run.to_string())
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

    /// Forgets a thing that is gone.
    pub fn disown(&mut self, key: &Key) -> Result<(), StateError> {
        self.ledger.owned.retain(|(k, _)| k != key);
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

    /// Keeps the original of a file before it is changed for the first time.
    pub fn keep(&mut self, probe: &dyn Probe, path: &Path) -> Result<(), HostError> {
        if self.ledger.kept.contains_key(path) {
            return Ok(());
        }
        let refused = |e: StateError| HostError::Refused(format!("its original could not be kept: {e}"));
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

    /// Adds a line to a run's journal and syncs it: what is not in it did not begin.
    pub fn journal(&self, run: u64, key: &Key, step: &Step, state: &str) -> Result<(), StateError> {
        let path = self.run_dir(run).join("journal.jsonl");
        let mut line = json(&JournalLine { key: key.to_string(), step, state });
        line.push(b'\n');
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            file.write_all(&line)?;
            file.sync_data()
        };
        append().map_err(|source| StateError::File { path: path.clone(), source })
    }

    fn save(&self) -> Result<(), StateError> {
        make_private(&self.dir)?;
        write_whole(&self.dir.join("ledger.json"), &json(&self.ledger))
    }
}

/// Plain data of ours always has a JSON form; the empty text that stands for "it had none" cannot be read back.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn make_private(dir: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StateError::File { path: dir.to_owned(), source })
}

/// Temporary file, fsync, rename, fsync of the folder: after a power cut there is the old content or the new one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let write = || {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| StateError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

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
