//! Kernel modules: loaded now, and at every boot by modules-load.d(5).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, FileWrite, Step};

const PATH: &str = "/etc/modules-load.d/gpuvm.conf";

/// Every module that is wanted, with the section that it follows from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Modules {
    /// Module → section.
    pub wanted: BTreeMap<String, String>,
}

impl Resource for Modules {
    const KIND: &'static str = "module";
    /// The text of our list, where it is there.
    type State = Option<String>;

    fn name(&self) -> String {
        String::new()
    }

    fn probe(&self, host: &dyn Probe) -> Result<Option<String>, HostError> {
        Ok(host.text(Path::new(PATH))?.value())
    }

    fn diff(&self, state: &Option<String>, _: Option<&Self>, facts: &HostFacts) -> Diff {
        let list: String = self.wanted.keys().map(|m| format!("{m}\n")).collect();
        let text = format!("# Written by gpuvm; what is changed here is replaced.\n{list}");
        let loaded = |m: &&String| facts.modules.contains(&m.replace('-', "_"));
        let missing: Vec<&String> = self.wanted.keys().filter(|m| !loaded(m)).collect();
        if state.as_deref() == Some(text.as_str()) && missing.is_empty() {
            return Diff::InSync { evidence: "listed and loaded".to_owned() };
        }
        // KVM's driver is loaded with its processor (its modalias): one that runs already needs no list of ours.
        if state.is_none() && missing.is_empty() && self.wanted.keys().all(|m| m.starts_with("kvm_")) {
            return Diff::InSync { evidence: "loaded with the processor".to_owned() };
        }
        let action = if state.is_some() { Action::Change } else { Action::Create };
        let names: Vec<&str> = self.wanted.keys().map(String::as_str).collect();
        let mut change = Change::new(action, names.join(" "));
        if state.as_deref() != Some(text.as_str()) {
            change.fields.push(FieldDiff::text(PATH, state.as_deref(), Some(&text)));
            change.steps.push(Step::WriteFile(FileWrite::root(PATH, text, 0o644)));
        }
        for name in missing {
            change.fields.push(FieldDiff::new(name, Some("not loaded".to_owned()), Some("loaded".to_owned())));
            change.steps.push(Step::Module { name: name.clone() });
        }
        Diff::Change(change)
    }

    /// A module stays loaded until the next boot: something may be using it.
    fn remove(&self, state: &Option<String>, _: &HostFacts) -> Diff {
        let Some(text) = state else { return Diff::InSync { evidence: "gone".to_owned() } };
        let mut change = Change::new(Action::Remove, "not loaded at the next boots");
        change.fields.push(FieldDiff::text(PATH, Some(text), None));
        change.steps.push(Step::RemoveFile { path: PATH.into() });
        Diff::Change(change)
    }
}
