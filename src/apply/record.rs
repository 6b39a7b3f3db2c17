//! What a run records for its way back: how each place was before its first step touched it, with the content of files,
//! in the run's own directory and for root's eyes only; and at its end, how it left them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::journal::{Journal, read};
use super::state::{About, StateDir, StateError, json, make_private, write_whole};
use crate::host::{HostError, Probe, Snapshot};
use crate::plan::{Key, Place, Seen};
use crate::undo::{Recorded, look};

/// One place, as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Before {
    key: Key,
    place: Place,
    seen: Seen,
}

/// The number of the format of `after.json`; `before.jsonl` has the journal's.
const AFTER_FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct After {
    format: u32,
    places: Vec<(Place, Seen)>,
}

/// The record of a run that is at work.
#[derive(Default)]
pub(super) struct Record {
    known: Option<(Journal, BTreeSet<(Key, Place)>)>,
}

/// Why something could not be recorded.
pub(super) enum Unrecorded {
    State(StateError),
    Host(HostError),
}

impl Record {
    /// Records what has not been recorded yet. Synced when it returns: what is changed afterwards has its way back.
    pub(super) fn before(
        &mut self,
        state: &StateDir,
        run: u64,
        host: &dyn Probe,
        key: &Key,
        places: Vec<Place>,
    ) -> Result<(), Unrecorded> {
        let dir = state.run_dir(run);
        let path = dir.join("before.jsonl");
        let (journal, known) = match &mut self.known {
            Some(known) => known,
            None => {
                let known = read::<Before>(&path).map_err(Unrecorded::State)?;
                let known = known.into_iter().map(|b| (b.key, b.place)).collect();
                let journal = Journal::open::<Before>(&path).map_err(Unrecorded::State)?;
                self.known.insert((journal, known))
            }
        };
        let new: BTreeSet<Place> = places.into_iter().filter(|p| !known.contains(&(key.clone(), p.clone()))).collect();
        if new.is_empty() {
            return Ok(());
        }
        let looked = look(&Snapshot::new(host), &new).map_err(Unrecorded::Host)?;
        let write = || {
            for place in &new {
                let Place::File(path) = place else { continue };
                if let (Some(Seen::File { sha256, .. }), Some(bytes)) = (looked.seen.get(place), looked.files.get(path))
                {
                    let copy = dir.join("before").join(sha256);
                    if !copy.exists() {
                        make_private(&dir.join("before"))?;
                        write_whole(&copy, bytes)?;
                    }
                }
            }
            let lines = looked.seen.into_iter().map(|(place, seen)| Before { key: key.clone(), place, seen });
            journal.add_all(lines)
        };
        write().map_err(Unrecorded::State)?;
        known.extend(new.into_iter().map(|p| (key.clone(), p)));
        Ok(())
    }
}

/// Records how a run left what it touched; what is changed by others from here on is seen by that. libvirt is not asked
/// where it is known to hang, and what it does not tell keeps nothing else from being recorded.
pub fn record_after(state: &StateDir, run: u64, host: &dyn Probe, hangs: bool) -> Result<(), super::ApplyError> {
    let dir = state.run_dir(run);
    let before = read::<Before>(&dir.join("before.jsonl"))?;
    if before.is_empty() {
        return Ok(());
    }
    let failed = |source| super::ApplyError::Step { key: Key::new("the record of the run", ""), source };
    let (libvirts, others) = before.into_iter().map(|b| b.place).partition(Place::is_libvirts);
    let snapshot = Snapshot::new(host);
    let mut seen = look(&snapshot, &others).map_err(failed)?.seen;
    let told = if hangs { Ok(()) } else { look(&snapshot, &libvirts).map(|looked| seen.extend(looked.seen)) };
    let after = After { format: AFTER_FORMAT, places: seen.into_iter().collect() };
    write_whole(&dir.join("after.json"), &json(&after))?;
    told.map_err(failed)
}

/// Reads what a run recorded.
pub(super) fn recorded(state: &StateDir, run: u64, about: About) -> Result<Recorded, StateError> {
    let dir = state.run_dir(run);
    let before = read::<Before>(&dir.join("before.jsonl"))?;
    let path = dir.join("after.json");
    let after: BTreeMap<Place, Seen> = match fs::read(&path) {
        Ok(bytes) => {
            let corrupt = |why: String| StateError::Corrupt { path: path.clone(), why };
            let after: After = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
            if after.format != AFTER_FORMAT {
                return Err(corrupt(format!("its format is {}, this gpuvm reads {AFTER_FORMAT}", after.format)));
            }
            after.places.into_iter().collect()
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(source) => return Err(StateError::File { path, source }),
    };
    let mut contents = BTreeMap::new();
    for line in &before {
        if let Seen::File { sha256, .. } = &line.seen {
            contents.insert(sha256.clone(), content(&dir, sha256)?);
        }
    }
    let before = before.into_iter().map(|b| (b.key, b.place, b.seen)).collect();
    let mut since = BTreeMap::new();
    // An undo of this run, which may be the one at work, does not count.
    let of_others = |later: &u64| *later > run && state.about(*later).is_ok_and(|about| about.undo != Some(run));
    for later in state.runs().into_iter().filter(of_others) {
        let touched = read::<Before>(&state.run_dir(later).join("before.jsonl"))?;
        let disks = touched.into_iter().map(|b| b.place).filter(|p| matches!(p, Place::Volume { .. }));
        since.extend(disks.map(|place| (place, later)));
    }
    Ok(Recorded {
        before,
        after,
        contents,
        since,
        owned: state.owned_before(run)?,
        plan: about.plan,
        edited: about.edited,
    })
}

/// A content that was kept, which still is what it was.
fn content(dir: &Path, sha256: &str) -> Result<Vec<u8>, StateError> {
    let path = dir.join("before").join(sha256);
    let bytes = fs::read(&path).map_err(|source| StateError::File { path: path.clone(), source })?;
    if crate::types::sha256_hex(&bytes) != sha256 {
        return Err(StateError::Corrupt { path, why: "it is not the content that was kept".to_owned() });
    }
    Ok(bytes)
}
