//! What a unit of ours makes of a card at each boot: the file that its script goes by, and the drop-in that has the unit
//! started. How they are written, told and taken away is the same for virtual functions, vGPUs and MIG instances; and so is
//! how their scripts begin (`head.sh`: which card is meant, and whether it is there) and how they write to sysfs
//! (`sysfs.sh`). One script is one file on the host: what is shared is put in front of each when gpuvm is built.

use std::path::PathBuf;

use crate::plan::{Change, Diff, FieldDiff, FileWrite, Refresh, Step};

/// What has a unit started at boot.
pub(super) fn boot_text(unit: &str) -> String {
    format!(
        "# Written by gpuvm. `gpuvm.off` on the kernel's command line keeps that unit from starting.\n[Unit]\nWants={unit}\n"
    )
}

/// Writes those that are not as they should be: each with what it is and what it will be.
pub(super) fn write(change: &mut Change, files: [(PathBuf, &Option<String>, String); 2]) {
    for (path, is, text) in files {
        if is.as_ref() != Some(&text) {
            change.fields.push(FieldDiff::text(path.display().to_string(), is.as_deref(), Some(&text)));
            change.steps.push(Step::WriteFile(FileWrite::root(path, text, 0o644)));
            change.refreshes.insert(Refresh::DaemonReload);
        }
    }
}

/// The end of a removal: those that are there go.
pub(super) fn take_away(mut change: Change, files: [(PathBuf, &Option<String>); 2]) -> Diff {
    for (path, text) in files {
        let Some(text) = text else { continue };
        change.fields.push(FieldDiff::text(path.display().to_string(), Some(text), None));
        change.steps.push(Step::RemoveFile { path });
        change.refreshes.insert(Refresh::DaemonReload);
    }
    match change.steps.is_empty() {
        true => Diff::InSync { evidence: "gone".to_owned() },
        false => Diff::Change(change),
    }
}

#[cfg(test)]
mod tests;
