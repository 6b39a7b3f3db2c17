//! Sections that are read and checked but not carried out yet. Each blocks the plan, so that nobody takes a plan without
//! them for the whole.

use super::Desired;
use crate::manifest::Loaded;
use crate::plan::{Finding, Severity};

pub(super) fn desire(manifest: &Loaded, desired: &mut Desired) {
    let m = &manifest.manifest;
    let sections = [("bridge", m.bridge.is_some())];
    for (section, _) in sections.into_iter().filter(|(_, used)| *used) {
        desired.findings.push(Finding {
            severity: Severity::Error,
            code: "not-yet".to_owned(),
            place: section.to_owned(),
            message: "this version checks this section but cannot plan it yet".to_owned(),
            help: format!("take `{section}` out (and keep it in another file) to plan the rest"),
        });
    }
}
