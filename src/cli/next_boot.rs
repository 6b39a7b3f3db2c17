//! `gpuvm check --next-boot`: what boots next, judged, shown, and recorded for `gpuvm status`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::apply::{StateDir, StateError};
use crate::check::{NextBootReport, Verdict};

/// The file below the state folder, and the number of its format.
const FILE: &str = "next-boot.json";
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Record<'a> {
    format: u32,
    #[serde(flatten)]
    report: &'a NextBootReport,
}

/// What is read of the record again.
#[derive(Debug, Deserialize)]
pub(super) struct Recorded {
    format: u32,
    verdict: Option<Verdict>,
    summary: String,
}

impl Recorded {
    /// What a person is told of it: nothing, unless VMs will lack their devices.
    pub(super) fn warning(&self) -> Option<String> {
        (self.format == FORMAT && self.verdict == Some(Verdict::Fail)).then(|| {
            format!("next boot: FAIL: {}\n  as of the last update; look again: gpuvm check --next-boot\n", self.summary)
        })
    }
}

/// Keeps the verdict; where nothing is kept for VMs, there is none, and an old one goes.
pub(super) fn record(state: &StateDir, report: &NextBootReport) -> Result<(), StateError> {
    match report.verdict {
        None => state.forget(FILE),
        Some(_) => state.note(FILE, &Record { format: FORMAT, report }),
    }
}

/// The recorded verdict, where there is one that can be read.
pub(super) fn recorded(state: &Path) -> Option<Recorded> {
    serde_json::from_slice(&std::fs::read(state.join(FILE)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_verdict_is_kept_privately_and_only_a_bad_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("state");
        let state = StateDir::open(&at).unwrap();
        let report = |verdict| NextBootReport {
            kernel: Some("6.12.57".to_owned()),
            kept: vec!["work".to_owned()],
            verdict,
            summary: "initramfs: vfio is not in it".to_owned(),
            links: Vec::new(),
        };
        record(&state, &report(Some(Verdict::Fail))).unwrap();
        let mode = std::fs::metadata(at.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let said = recorded(&at).unwrap().warning().unwrap();
        assert!(said.contains("vfio is not in it") && said.contains("gpuvm check --next-boot"), "{said}");
        record(&state, &report(Some(Verdict::Pass))).unwrap();
        assert_eq!(recorded(&at).unwrap().warning(), None);
        record(&state, &report(None)).unwrap();
        assert!(recorded(&at).is_none() && !at.join(FILE).exists());
        record(&state, &report(None)).unwrap();
        std::fs::write(at.join(FILE), "{\"format\":2,\"verdict\":\"FAIL\",\"summary\":\"\"}").unwrap();
        assert_eq!(recorded(&at).unwrap().warning(), None, "of a format that is not known, nothing is said");
    }
}
