//! Arguments of the kernel's command line, appended by a GRUB drop-in of our own that comes after all others. Nobody's
//! file is edited, and the recovery entry, which does not read the variable, stays a way back.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::{BootLoader, HostFacts};
use crate::host::{HostError, Probe};
use crate::plan::Place;
use crate::plan::{Action, Change, Diff, FieldDiff, FileWrite, Refresh, Risk, Step, WaitFor};

/// Our drop-in. grub-mkconfig reads `*.cfg` in the order of their names.
const PATH: &str = "/etc/default/grub.d/99-gpuvm.cfg";

/// Every argument that is wanted, with the section that it follows from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelArgs {
    /// Argument → section.
    pub wanted: BTreeMap<String, String>,
}

impl KernelArgs {
    fn text(&self) -> String {
        let args = self.wanted.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
        format!(
            "# Written by gpuvm; what is changed here is replaced.\n\
             GRUB_CMDLINE_LINUX_DEFAULT=\"${{GRUB_CMDLINE_LINUX_DEFAULT}} {args}\"\n"
        )
    }
}

fn touches_boot(change: &mut Change) {
    change.refreshes.insert(Refresh::BootLoader);
    change.risks.extend([Risk::BootConfig, Risk::Reboot]);
    change.complete_after = Some(WaitFor::Reboot);
}

impl Resource for KernelArgs {
    const KIND: &'static str = "kernel-arg";
    /// The text of our drop-in, where it is there.
    type State = Option<String>;

    fn name(&self) -> String {
        String::new()
    }

    fn probe(&self, host: &dyn Probe) -> Result<Option<String>, HostError> {
        Ok(host.text(Path::new(PATH))?.value())
    }

    fn at_boot(&self, _: &dyn Probe) -> Vec<Place> {
        self.wanted.keys().cloned().map(Place::Argument).collect()
    }

    fn diff(&self, state: &Option<String>, _: Option<&Self>, facts: &HostFacts) -> Diff {
        let BootLoader::Grub { cmdline_default, drop_ins } = &facts.boot.loader else {
            return Diff::Blocked {
                why: "the boot loader is not GRUB with /etc/default/grub, the only one that gpuvm writes for".to_owned(),
                help: "add the arguments with your boot loader's own tool; once they are on the command line, take them out here".to_owned(),
            };
        };
        let later = |path: &Path| path.file_name() > Path::new(PATH).file_name();
        if let Some((path, _)) = drop_ins.iter().find(|(path, sets)| *sets && later(path)) {
            return Diff::Blocked {
                why: format!("`{}` comes after {PATH} and sets GRUB_CMDLINE_LINUX_DEFAULT", path.display()),
                help: "rename it so that it comes before `99-gpuvm.cfg`".to_owned(),
            };
        }
        let running = |arg: &String| facts.kernel.cmdline.contains(arg);
        let missing: Vec<&str> = self.wanted.keys().filter(|a| !running(a)).map(String::as_str).collect();
        let text = self.text();
        if state.as_deref() == Some(text.as_str()) {
            return if missing.is_empty() {
                Diff::InSync { evidence: "in GRUB and on the command line".to_owned() }
            } else {
                let mut promise = Change::new(Action::Change, missing.join(" "));
                promise.risks.insert(Risk::Reboot);
                Diff::Waits {
                    on: WaitFor::Reboot,
                    why: format!("{} written, and not on the running kernel's command line", missing.join(" ")),
                    promise,
                }
            };
        }
        let action = if state.is_some() { Action::Change } else { Action::Create };
        let args: Vec<&str> = self.wanted.keys().map(String::as_str).collect();
        let mut change = Change::new(action, args.join(" "));
        change.fields.push(FieldDiff::text(PATH, state.as_deref(), Some(&text)));
        let others = facts.kernel.cmdline.iter().chain(cmdline_default.iter().flatten());
        for other in others {
            let name = |a: &str| a.split('=').next().unwrap_or_default().to_owned();
            if let Some(ours) = self.wanted.keys().find(|a| name(a) == name(other) && *a != other) {
                let note = format!("`{other}` is set by something else; `{ours}` comes after it");
                if !change.notes.contains(&note) {
                    change.notes.push(note);
                }
            }
        }
        change.steps.push(Step::WriteFile(FileWrite::root(PATH, text, 0o644)));
        touches_boot(&mut change);
        if missing.is_empty() {
            // They are there already, from elsewhere: nothing waits for a boot.
            change.complete_after = None;
            change.risks.remove(&Risk::Reboot);
        }
        Diff::Change(change)
    }

    fn remove(&self, state: &Option<String>, _: &HostFacts) -> Diff {
        let Some(text) = state else { return Diff::InSync { evidence: "gone".to_owned() } };
        let mut change = Change::new(Action::Remove, "taken off the next boots");
        change.fields.push(FieldDiff::text(PATH, Some(text), None));
        change.steps.push(Step::RemoveFile { path: PATH.into() });
        touches_boot(&mut change);
        change.complete_after = None;
        Diff::Change(change)
    }
}
