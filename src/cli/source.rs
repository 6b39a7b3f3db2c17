//! Where the plans of a run come from: a manifest, the way back from a run, or a verb. All go through one interpreter.

use std::collections::BTreeMap;

use super::host;
use crate::apply::{ApplyError, Outcome, Planned, Purpose, StateDir, StateError};
use crate::host::{Probe, Snapshot};
use crate::manifest::Loaded;
use crate::plan::{Past, Selection};
use crate::undo::{self, Back, Recorded};
use crate::verb::{self, Verb};
use crate::{desire, facts};

/// The purpose of a run, with what it needs to plan.
pub(super) enum Source {
    Manifest(Box<Loaded>, Selection),
    Undo(Back, Box<Recorded>),
    Verb(Verb),
}

impl Source {
    /// Reads what a purpose refers to.
    pub(super) fn of(purpose: &Purpose, state: &StateDir) -> Result<Self, ApplyError> {
        Ok(match purpose {
            Purpose::Manifest { selection, manifest } => {
                let manifest =
                    host::restore(manifest).map_err(|e| ApplyError::Blocked(format!("the run's manifest: {e}")))?;
                Source::Manifest(Box::new(manifest), selection.clone())
            }
            Purpose::Undo(back) => Source::Undo(back.clone(), Box::new(state.recorded(back.run)?)),
            Purpose::Verb(verb) => Source::Verb(verb.clone()),
        })
    }

    /// One planning pass over a host as it is now.
    pub(super) fn plan(&self, probe: &dyn Probe, past: &Past) -> Planned {
        match self {
            Source::Manifest(manifest, selection) => host::plan_now(manifest, selection, probe, past),
            Source::Undo(back, recorded) => {
                let snapshot = Snapshot::new(probe);
                undo::plan(back, recorded, past, &snapshot, &facts::collect(&snapshot))
            }
            Source::Verb(verb) => {
                let snapshot = Snapshot::new(probe);
                verb::plan(verb, past, &snapshot, &facts::collect(&snapshot))
            }
        }
    }

    /// The payloads that are not in its plans, by sha256: a manifest's secrets, or the contents that a run kept.
    pub(super) fn secrets(&self, probe: &dyn Probe) -> BTreeMap<String, Vec<u8>> {
        match self {
            Source::Manifest(manifest, _) => desire::secrets(manifest, &facts::hostname(probe)),
            Source::Undo(_, recorded) => recorded.contents.clone(),
            Source::Verb(_) => BTreeMap::new(),
        }
    }

    /// What the end of a run means for the ledger, beside what its plan settled.
    pub(super) fn ended(&self, state: &mut StateDir, outcome: &Outcome) -> Result<(), StateError> {
        let Source::Undo(_, recorded) = self else { return Ok(()) };
        let keys = outcome.left.entries.iter().map(|e| e.key.clone()).collect();
        state.own_as_before(&keys, &recorded.owned)
    }

    /// What a run that is closed in the middle was about to write into the ledger about things that are as wanted.
    pub(super) fn abandoned(&self, state: &mut StateDir, probe: &dyn Probe) -> Result<(), StateError> {
        let (plan, wanted) = self.plan(probe, &state.past()?);
        let Source::Undo(_, recorded) = self else { return state.settle(&plan, &wanted) };
        let settled = plan.entries.iter().filter(|e| e.diff.settled());
        state.own_as_before(&settled.map(|e| e.key.clone()).collect(), &recorded.owned)
    }
}
