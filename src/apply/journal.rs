//! The journal of a run: what it began, and how each step ended. One JSON object a line, each synced before what it
//! announces begins: what is not in it did not begin. What a run records for its way back is kept in the same form.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::fail_point::fail_point;
use crate::plan::Step;

/// The number of the format; another one is refused.
pub const JOURNAL_FORMAT: u32 = 1;

/// A step is at work.
pub(super) const BEGINS: &str = "begins";
/// A step was done.
pub(super) const DONE: &str = "done";
/// A step failed.
pub(super) const FAILED: &str = "failed";

/// One step, as it began or as it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// The thing that it changes.
    pub key: String,
    /// What it does.
    pub step: Step,
    /// `begins`, `done` or `failed`.
    pub state: String,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
}

/// A journal that is added to.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens it or begins it. The line that a power cut tore is cut off, so that the next one does not join it.
    pub(super) fn open<T: DeserializeOwned>(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::File { path: path.to_owned(), source };
        read::<T>(path)?;
        let open = || {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            file.set_len(whole as u64)?;
            file.seek(SeekFrom::Start(whole as u64))?;
            Ok(file)
        };
        let mut journal = Self { path: path.to_owned(), file: open().map_err(failed)? };
        if journal.file.stream_position().map_err(failed)? == 0 {
            journal.add_all([Head { format: JOURNAL_FORMAT }])?;
            // The name of a new file is in its folder only when that is synced.
            path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()).map_err(failed)?;
        }
        Ok(journal)
    }

    /// Adds a line and syncs it.
    pub(super) fn line(&mut self, key: &str, step: &Step, state: &str) -> Result<(), StateError> {
        self.add_all([Line { key: key.to_owned(), step: step.clone(), state: state.to_owned() }])
    }

    /// Adds a line for each and syncs them.
    pub(super) fn add_all(&mut self, values: impl IntoIterator<Item = impl Serialize>) -> Result<(), StateError> {
        let append = || {
            let mut lines = Vec::new();
            for value in values {
                serde_json::to_writer(&mut lines, &value).map_err(io::Error::other)?;
                lines.push(b'\n');
            }
            let (first, second) = lines.split_at(lines.len() / 2);
            self.file.write_all(first)?;
            fail_point("half a line of the journal");
            self.file.write_all(second)?;
            fail_point("before fsync of the journal");
            self.file.sync_data()
        };
        append().map_err(|source| StateError::File { path: self.path.clone(), source })
    }
}

/// Every whole line. A last line without its end was torn by a power cut, and is left out; anything else that cannot be
/// read is damage, and is named.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StateError::File { path: path.to_owned(), source }),
    };
    let corrupt = |why: String| StateError::Corrupt { path: path.to_owned(), why };
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(&bytes[..0], |at| &bytes[..at]);
    let mut lines = whole.split(|b| *b == b'\n');
    match lines.next().filter(|l| !l.is_empty()) {
        None => return Ok(Vec::new()),
        Some(head) => match serde_json::from_slice::<Head>(head) {
            Ok(Head { format: JOURNAL_FORMAT }) => {}
            Ok(Head { format }) => {
                return Err(corrupt(format!("its format is {format}, this gpuvm reads {JOURNAL_FORMAT}")));
            }
            Err(e) => return Err(corrupt(format!("line 1: {e}"))),
        },
    }
    let parse =
        |(at, line): (usize, &[u8])| serde_json::from_slice(line).map_err(|e| corrupt(format!("line {}: {e}", at + 2)));
    lines.enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str) -> Step {
        Step::Module { name: name.to_owned() }
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_the_next_one_does_not_join_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::open::<Line>(&path).unwrap();
        journal.line("module", &step("a"), BEGINS).unwrap();
        journal.line("module", &step("a"), DONE).unwrap();
        let whole = fs::read(&path).unwrap();
        let first = whole.iter().position(|b| *b == b'\n').unwrap();
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let before = read::<Line>(&path).unwrap();
            assert_eq!(before.len(), whole[..end].iter().filter(|b| **b == b'\n').count().saturating_sub(1), "{end}");
            Journal::open::<Line>(&path).unwrap().line("module", &step("b"), BEGINS).unwrap();
            let after = read::<Line>(&path).unwrap();
            assert_eq!(after.len(), before.len() + 1, "{end} {first}");
            assert_eq!(after.last().unwrap().step, step("b"));
        }
    }

    #[test]
    fn damage_in_the_middle_and_a_newer_format_are_named_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        for (text, why) in [
            ("{\"format\":2}\n", "its format is 2"),
            ("{\"format\":1}\ngarbage\n{}\n", "line 2"),
            ("\0\0\0\n", "line 1"),
        ] {
            fs::write(&path, text).unwrap();
            let said = Journal::open::<Line>(&path).map(drop).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("--abandon"), "{said}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
