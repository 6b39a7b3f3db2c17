//! What was approved: a later round may do what the shown plan said or promised, and nothing beyond it.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{Action, Diff, Entry, Key, Plan, Risk};

/// For each thing that may be changed, how, and with which risks at most.
#[derive(Debug)]
pub struct Envelope {
    things: BTreeMap<Key, (Action, BTreeSet<Risk>)>,
}

impl Envelope {
    /// The envelope of a plan: its changes, and what its waiting entries promise.
    pub fn of(plan: &Plan) -> Self {
        let things = plan
            .entries
            .iter()
            .filter_map(|e| match &e.diff {
                Diff::Change(change) | Diff::Waits { promise: change, .. } => {
                    Some((e.key.clone(), (change.action, change.risks.clone())))
                }
                _ => None,
            })
            .collect();
        Self { things }
    }

    /// Whether everything that a later plan would do lies inside; else what does not.
    pub fn holds(&self, plan: &Plan) -> Result<(), String> {
        for entry in &plan.entries {
            let Diff::Change(change) = &entry.diff else { continue };
            let Some((action, risks)) = self.things.get(&entry.key) else {
                return Err(format!("`{}` was not to be changed: {}", entry.key, change.what));
            };
            // A thing that was to be made may be finished in a later round; nothing else may become a removal.
            if change.action == Action::Remove && *action != Action::Remove {
                return Err(format!("`{}` was not to be removed", entry.key));
            }
            if let Some(risk) = change.risks.difference(risks).next() {
                return Err(format!("`{}` now has the risk {}", entry.key, risk.name()));
            }
        }
        Ok(())
    }
}

/// The first thing in which two plans differ, for the message about a stale plan.
pub(super) fn first_difference(shown: &Plan, now: &Plan) -> String {
    let find = |plan: &Plan, key: &Key| plan.entries.iter().find(|e| e.key == *key).cloned();
    let keys: BTreeSet<&Key> = shown.entries.iter().chain(&now.entries).map(|e| &e.key).collect();
    let differs = |key: &&&Key| find(shown, key).map(|e: Entry| e.diff) != find(now, key).map(|e| e.diff);
    let (was, is) = (&shown.host, &now.host);
    if was.fingerprint != is.fingerprint || was.hostname != is.hostname {
        return format!("the plan was made for another host, `{}`; this is `{}`", was.hostname, is.hostname);
    }
    for (what, was, is) in
        [("kernel", &was.kernel, &is.kernel), ("system", &was.os, &is.os), ("IOMMU", &was.iommu, &is.iommu)]
    {
        if was != is {
            return format!("the {what} was `{was}`, and is `{is}`");
        }
    }
    match keys.iter().find(differs) {
        Some(key) => format!("`{key}` is not as it was"),
        None if shown.host != now.host => "it has other GPUs or VMs".to_owned(),
        None => "manifest or gpuvm's own state".to_owned(),
    }
}
