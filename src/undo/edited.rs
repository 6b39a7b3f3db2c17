//! A manifest that a run's command wrote to as well (`--save`, `gpuvm create`). It is a person's file, which may have changed since: an undo
//! leaves it as it is, and says so, since the next apply would bring everything about again.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::{Finding, Severity};

/// What was written into which manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edited {
    /// The file.
    pub file: PathBuf,
    /// Each entry, with what it has now and had before.
    pub entries: Vec<String>,
}

impl Edited {
    /// These entries of a file that is there.
    pub fn new(file: &Path, entries: Vec<String>) -> Self {
        Self { file: file.canonicalize().unwrap_or_else(|_| file.to_owned()), entries }
    }

    /// What the way back from that run says of it.
    pub(super) fn stays(&self, run: u64) -> Finding {
        Finding {
            severity: Severity::Warning,
            code: "manifest-stays".to_owned(),
            place: String::new(),
            message: format!(
                "run {run} wrote into `{}` too, which an undo leaves as it is: {}",
                self.file.display(),
                self.entries.join("; ")
            ),
            help: "put that back there, or the next apply does it again".to_owned(),
        }
    }
}
