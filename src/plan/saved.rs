//! A plan in a file: exactly what was shown, with everything that is needed to carry it out elsewhere or later. The
//! same form lies in a run's directory, where the run that goes on after a reboot reads it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{PLAN_FORMAT, Plan, Policy, Selection};

/// A saved plan. It may hold secrets of the manifest: it is written for its owner alone (0600).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedPlan {
    /// [`PLAN_FORMAT`].
    pub format: u32,
    /// The version of gpuvm that wrote it; what another version would do may differ.
    pub writer: String,
    /// What was shown.
    pub plan: Plan,
    /// What of the manifest was selected.
    #[serde(default)]
    pub selection: Selection,
    /// What it may not do, whenever it is carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// The manifest that it was made of.
    pub manifest: SavedManifest,
}

/// A manifest with the files that it refers to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedManifest {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// The files beside it that it refers to, as it names them.
    #[serde(default)]
    pub files: BTreeMap<PathBuf, String>,
}

/// Why a saved plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedPlanError {
    /// It could not be read.
    #[error("`{path}`: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what gpuvm writes.
    #[error("`{path}` is no saved plan of this gpuvm: {why}")]
    NotAPlan {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Far more than a plan of one host has.
const MOST_BYTES: u64 = 64 << 20;

impl SavedPlan {
    /// What was shown, of this manifest.
    pub fn new(plan: Plan, selection: Selection, manifest: SavedManifest) -> Self {
        let writer = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: PLAN_FORMAT, writer, plan, selection, policies: Vec::new(), manifest }
    }

    /// Reads one; another format or another writer is refused.
    pub fn read(path: &Path) -> Result<Self, SavedPlanError> {
        use std::io::Read as _;
        let file = |source| SavedPlanError::File { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(file)?.take(MOST_BYTES).read_to_end(&mut bytes).map_err(file)?;
        Self::parse(&bytes).map_err(|why| SavedPlanError::NotAPlan { path: path.to_owned(), why })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let number = value.get("format").and_then(serde_json::Value::as_u64);
        if number != Some(u64::from(PLAN_FORMAT)) {
            return Err(match number {
                Some(n) => format!("its format is {n}, and this gpuvm reads {PLAN_FORMAT}"),
                None => "it has no format number".to_owned(),
            });
        }
        let saved: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if saved.writer != env!("CARGO_PKG_VERSION") {
            return Err(format!("gpuvm {} wrote it, and this is {}", saved.writer, env!("CARGO_PKG_VERSION")));
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plan_is_refused_with_the_reason() {
        for (text, why) in [
            ("{}", "no format number"),
            ("{\"format\": 99}", "its format is 99"),
            ("[]", "no format number"),
            ("{\"format\": 1, \"what\": 0}", "what"),
            ("", "EOF"),
        ] {
            let said = SavedPlan::parse(text.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
