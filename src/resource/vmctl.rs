//! The name `vmctl` for the program, and what it takes where nothing else is said.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Resource;
use super::program::{self, InstalledProgram};
use crate::facts::HostFacts;
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, FileWrite, Step};

/// The link.
pub const LINK: &str = "/usr/local/bin/vmctl";

/// Link and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vmctl {
    /// The program that it is a name of.
    pub program: InstalledProgram,
    /// Where the defaults are.
    pub path: PathBuf,
    /// How a text of ours begins there.
    pub head: String,
    /// Their text.
    pub text: String,
    /// How a line begins that stays as it is there: whose manifest came first is no difference between hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_stays: Option<String>,
}

/// How both stand.
#[derive(Debug, Clone)]
pub struct VmctlState {
    /// Where the link leads; `None` where there is something else.
    link: Answer<Option<PathBuf>>,
    /// The text of the defaults.
    text: Answer<String>,
    /// What the link leads to where it is made now.
    target: &'static str,
}

impl Vmctl {
    /// The text over one that is there.
    fn over(&self, there: &str) -> String {
        let begins = |line: &&str| self.first_stays.as_ref().is_some_and(|begin| line.starts_with(begin.as_str()));
        match there.lines().find(begins) {
            Some(stays) if there.starts_with(&self.head) => {
                let lines = self.text.lines().map(|line| if begins(&line) { stays } else { line });
                lines.map(|line| format!("{line}\n")).collect()
            }
            _ => self.text.clone(),
        }
    }

    /// Whether a link leads to gpuvm.
    fn is_ours(link: &Path) -> bool {
        [program::PATH, program::PACKAGED, "gpuvm"].iter().any(|target| link == Path::new(target))
    }
}

impl Resource for Vmctl {
    const KIND: &'static str = "vmctl";
    type State = VmctlState;

    fn name(&self) -> String {
        String::new()
    }

    fn probe(&self, host: &dyn Probe) -> Result<VmctlState, HostError> {
        let link = Path::new(LINK);
        let packaged = host.stat(Path::new(program::PATH))? == Answer::Absent && self.program.is_packaged(host)?;
        Ok(VmctlState {
            link: match host.stat(link)? {
                Answer::Absent => Answer::Absent,
                Answer::Denied => Answer::Denied,
                Answer::Value(_) => Answer::Value(host.link(link)?.value()),
            },
            text: host.text(&self.path)?,
            target: if packaged { program::PACKAGED } else { program::PATH },
        })
    }

    fn diff(&self, state: &VmctlState, last: Option<&Self>, _: &HostFacts) -> Diff {
        let path = self.path.display();
        let elsewhere = "or write `vmctl: { install: false }`";
        let linked = match &state.link {
            Answer::Denied => return Diff::Unknown { why: format!("{LINK} may not be read (not root)") },
            Answer::Absent => false,
            Answer::Value(Some(link)) if Self::is_ours(link) => true,
            Answer::Value(_) => {
                return Diff::Blocked {
                    why: format!("{LINK} is there, and does not lead to gpuvm"),
                    help: format!("look at it (ls -l {LINK}) and move it away, {elsewhere}"),
                };
            }
        };
        let before = match &state.text {
            Answer::Denied => return Diff::Unknown { why: format!("{path} may not be read (not root)") },
            Answer::Absent => None,
            Answer::Value(text) if self.over(text) == *text && linked => {
                return Diff::InSync { evidence: format!("{LINK}, {path}") };
            }
            Answer::Value(text) if last.is_some() || text.starts_with(&self.head) => Some(text.as_str()),
            Answer::Value(_) => {
                return Diff::Blocked {
                    why: format!("{path} is there, and is not gpuvm's"),
                    help: format!("look at it and move it away, {elsewhere}"),
                };
            }
        };
        let text = before.map_or_else(|| self.text.clone(), |there| self.over(there));
        let differs = before != Some(&text);
        let new = !linked && before.is_none();
        let action = if new { Action::Create } else { Action::Change };
        let mut change = Change::new(action, LINK);
        if differs {
            change.fields.push(FieldDiff::text(path.to_string(), before, Some(&text)));
        }
        if !linked {
            change.steps.push(Step::Link { path: LINK.into(), target: state.target.into() });
        }
        change.steps.push(Step::Answers { path: LINK.into(), version: self.program.version.clone() });
        // Last, so that a name that does not answer is not taken for one that is in place.
        if differs {
            change.steps.push(Step::WriteFile(FileWrite::root(&self.path, text, 0o644)));
        }
        Diff::Change(change)
    }

    fn remove(&self, state: &VmctlState, _: &HostFacts) -> Diff {
        let mut change = Change::new(Action::Remove, "taken away, with its defaults");
        if matches!(&state.link, Answer::Value(Some(link)) if Self::is_ours(link)) {
            change.steps.push(Step::RemoveFile { path: LINK.into() });
        }
        if matches!(&state.text, Answer::Value(text) if text.starts_with(&self.head)) {
            change.steps.push(Step::RemoveFile { path: self.path.clone() });
        }
        match (state.link.is_denied() || state.text.is_denied(), change.steps.is_empty()) {
            (true, _) => Diff::Unknown { why: "it may not be read (not root)".to_owned() },
            (false, true) => Diff::InSync { evidence: "gone".to_owned() },
            (false, false) => Diff::Change(change),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmctl() -> Vmctl {
        Vmctl {
            program: InstalledProgram { version: "0.2.0".to_owned(), sha256: "new".to_owned() },
            path: "/etc/vmctl/defaults.yaml".into(),
            head: "# Ours".to_owned(),
            text: "# Ours\nmanifest: /root/host.yaml\n".to_owned(),
            first_stays: None,
        }
    }
    fn steps(diff: &Diff) -> Vec<String> {
        match diff {
            Diff::Change(change) => change.steps.iter().map(Step::name).collect(),
            Diff::Blocked { why, .. } => vec![format!("blocked: {why}")],
            Diff::InSync { .. } => vec!["in sync".to_owned()],
            other => vec![format!("{other:?}")],
        }
    }

    #[test]
    fn the_manifest_that_came_first_stays_unless_another_is_named() {
        let facts = super::super::tests::facts();
        let mut vmctl = vmctl();
        let there = |text: &str| VmctlState {
            link: Answer::Value(Some(program::PATH.into())),
            text: Answer::Value(text.to_owned()),
            target: program::PATH,
        };
        let other = there("# Ours\nmanifest: /home/bob/host.yaml\n");
        assert_eq!(steps(&vmctl.diff(&other, None, &facts)).last().unwrap(), "write /etc/vmctl/defaults.yaml");
        vmctl.first_stays = Some("manifest: ".to_owned());
        assert_eq!(steps(&vmctl.diff(&other, None, &facts)), ["in sync"]);
        vmctl.text += "network: br0\n";
        let Diff::Change(change) = vmctl.diff(&other, None, &facts) else { panic!("it differs") };
        let Some(Step::WriteFile(file)) = change.steps.last() else { panic!("it is written") };
        let wanted = "# Ours\nmanifest: /home/bob/host.yaml\nnetwork: br0\n";
        assert_eq!(file.content, crate::plan::Content::Text(wanted.to_owned()));
    }

    #[test]
    fn what_somebody_has_there_stays() {
        let facts = super::super::tests::facts();
        let link = |to: &str| Answer::Value(Some(PathBuf::from(to)));
        let text = |text: &str| Answer::Value(text.to_owned());
        let ours = vmctl().text;
        let (link_step, call, write) =
            ("link /usr/local/bin/vmctl", "call /usr/local/bin/vmctl", "write /etc/vmctl/defaults.yaml");
        for (link, text, wanted, left) in [
            (Answer::Absent, Answer::Absent, vec![link_step, call, write], vec!["in sync"]),
            (
                link(program::PATH),
                text(&ours),
                vec!["in sync"],
                vec!["remove /usr/local/bin/vmctl", "remove /etc/vmctl/defaults.yaml"],
            ),
            (
                link("gpuvm"),
                text("# Ours\nold\n"),
                vec![call, write],
                vec!["remove /usr/local/bin/vmctl", "remove /etc/vmctl/defaults.yaml"],
            ),
            (Answer::Absent, text(&ours), vec![link_step, call], vec!["remove /etc/vmctl/defaults.yaml"]),
            (
                link("/opt/vmctl"),
                Answer::Absent,
                vec!["blocked: /usr/local/bin/vmctl is there, and does not lead to gpuvm"],
                vec!["in sync"],
            ),
            (
                Answer::Value(None),
                Answer::Absent,
                vec!["blocked: /usr/local/bin/vmctl is there, and does not lead to gpuvm"],
                vec!["in sync"],
            ),
            (
                link(program::PATH),
                text("pool: mine\n"),
                vec!["blocked: /etc/vmctl/defaults.yaml is there, and is not gpuvm's"],
                vec!["remove /usr/local/bin/vmctl"],
            ),
        ] {
            let state = VmctlState { link, text, target: program::PATH };
            assert_eq!(steps(&vmctl().diff(&state, None, &facts)), wanted, "{state:?}");
            assert_eq!(steps(&vmctl().remove(&state, &facts)), left, "{state:?}");
        }
    }
}
