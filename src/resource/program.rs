//! gpuvm itself on the host: the program that runs, put where everyone finds it. One that a package brought is used as it
//! is, and one that somebody put there is never replaced.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::HostFacts;
use crate::host::{Answer, FileKind, HostError, Probe, Stat};
use crate::plan::{Action, Change, Content, Diff, FileWrite, Step};
use crate::types::{Mode, compare_versions};

/// Where it is put: for what an administrator adds to a system (hier(7)), which no package touches.
pub const PATH: &str = "/usr/local/bin/gpuvm";

/// Where packages put programs.
pub const PACKAGED: &str = "/usr/bin/gpuvm";

/// The program that a plan was made with, as it is to be there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstalledProgram {
    /// Its version.
    pub version: String,
    /// sha256 in hex.
    pub sha256: String,
}

/// What is at the place.
#[derive(Debug, Clone)]
pub enum There {
    /// Nothing.
    Absent,
    /// It may not be looked at.
    Denied,
    /// A link, a folder.
    NoFile,
    /// A file.
    File {
        /// Whose it is.
        stat: Stat,
        /// sha256 in hex.
        sha256: String,
    },
}

/// How it stands.
#[derive(Debug, Clone)]
pub struct ProgramState {
    /// What is at [`PATH`].
    pub there: There,
    /// The same program is at [`PACKAGED`].
    pub packaged: bool,
}

impl InstalledProgram {
    /// Looks whether a program is the one that a package brought.
    pub(super) fn is_packaged(&self, host: &dyn Probe) -> Result<bool, HostError> {
        Ok(host.digest(Path::new(PACKAGED))? == Answer::Value(self.sha256.clone()))
    }

    fn put(&self, action: Action, what: String) -> Change {
        let mut change = Change::new(action, what);
        change.steps.push(Step::WriteFile(FileWrite {
            path: PATH.into(),
            content: Content::Program(self.sha256.clone()),
            mode: Mode::new(0o755),
            owner: "root".to_owned(),
            group: "root".to_owned(),
        }));
        change.steps.push(Step::Answers { path: PATH.into(), version: self.version.clone() });
        change
    }

    /// What it becomes, from what was put there last.
    fn replaces(&self, last: &Self) -> String {
        match compare_versions(&last.version, &self.version) {
            std::cmp::Ordering::Less => format!("{} → {}, this program", last.version, self.version),
            std::cmp::Ordering::Equal => format!("another build of {}, this program", self.version),
            std::cmp::Ordering::Greater => {
                format!("{} → {}, this program, which is older", last.version, self.version)
            }
        }
    }
}

/// Whether nobody but root can change what root runs, and everyone can run it.
fn is_safe(stat: &Stat) -> bool {
    let mode = stat.mode.bits();
    stat.uid == 0 && mode & 0o022 == 0 && mode & 0o111 == 0o111
}

impl Resource for InstalledProgram {
    const KIND: &'static str = "program";
    type State = ProgramState;

    fn name(&self) -> String {
        String::new()
    }

    fn probe(&self, host: &dyn Probe) -> Result<ProgramState, HostError> {
        let path = Path::new(PATH);
        let there = match host.stat(path)? {
            Answer::Absent => There::Absent,
            Answer::Denied => There::Denied,
            Answer::Value(stat) if stat.kind == FileKind::File => match host.digest(path)? {
                Answer::Value(sha256) => There::File { stat, sha256 },
                Answer::Absent => There::Absent,
                Answer::Denied => There::Denied,
            },
            Answer::Value(_) => There::NoFile,
        };
        Ok(ProgramState { there, packaged: self.is_packaged(host)? })
    }

    fn diff(&self, state: &ProgramState, last: Option<&Self>, _: &HostFacts) -> Diff {
        let by_hand = "look at it and move it away, or write `vmctl: { install: false }`";
        match &state.there {
            There::Absent if state.packaged => Diff::InSync { evidence: format!("a package's: {PACKAGED}") },
            There::Absent => Diff::Change(self.put(Action::Create, format!("{} in {PATH}", self.version))),
            There::Denied => Diff::Unknown { why: format!("{PATH} may not be read (not root)") },
            There::NoFile => Diff::Blocked {
                why: format!("{PATH} is there, but is no regular file; a link is not followed"),
                help: by_hand.to_owned(),
            },
            There::File { stat, sha256 } if *sha256 == self.sha256 => match (is_safe(stat), last) {
                (true, _) => Diff::InSync { evidence: format!("{PATH}: this program, {}", self.version) },
                (false, Some(_)) => {
                    let mut change =
                        self.put(Action::Change, format!("{PATH}: for everyone to run, and for root alone to change"));
                    change.notes.push(format!("it has the mode {} and belongs to user {}", stat.mode, stat.uid));
                    Diff::Change(change)
                }
                (false, None) => Diff::Blocked {
                    why: format!(
                        "{PATH} is this program, and has the mode {} and the owner {}: others could change what \
                         root runs, or not run it",
                        stat.mode, stat.uid
                    ),
                    help: format!("chown root:root {PATH} && chmod 0755 {PATH}"),
                },
            },
            There::File { sha256, .. } => match last {
                Some(last) if last.sha256 == *sha256 => {
                    Diff::Change(self.put(Action::Change, format!("{PATH}: {}", self.replaces(last))))
                }
                _ => Diff::Blocked {
                    why: format!(
                        "{PATH} is another program than this gpuvm {}, and gpuvm did not put it there",
                        self.version
                    ),
                    help: format!(
                        "run that one, or put this one there yourself (install -m 0755 gpuvm {PATH}); or {by_hand}"
                    ),
                },
            },
        }
    }

    fn remove(&self, state: &ProgramState, _: &HostFacts) -> Diff {
        match &state.there {
            There::File { sha256, .. } if *sha256 == self.sha256 => {
                let mut change = Change::new(Action::Remove, format!("{PATH} is taken away"));
                change.notes.push("a copy elsewhere can still show, plan and undo".to_owned());
                change.steps.push(Step::RemoveFile { path: PATH.into() });
                Diff::Change(change)
            }
            There::Denied => Diff::Unknown { why: format!("{PATH} may not be read (not root)") },
            There::Absent => Diff::InSync { evidence: "gone".to_owned() },
            // Somebody put another one there.
            There::File { .. } | There::NoFile => Diff::InSync { evidence: "not gpuvm's any more".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(version: &str, sha256: &str) -> InstalledProgram {
        InstalledProgram { version: version.to_owned(), sha256: sha256.to_owned() }
    }
    fn file(sha256: &str, mode: u32, uid: u32) -> ProgramState {
        let stat = Stat { kind: FileKind::File, mode: Mode::new(mode), uid, gid: 0 };
        ProgramState { there: There::File { stat, sha256: sha256.to_owned() }, packaged: false }
    }
    fn told(diff: Diff) -> String {
        match diff {
            Diff::InSync { evidence } => format!("in sync: {evidence}"),
            Diff::Change(change) => {
                let steps: Vec<_> = change.steps.iter().map(Step::name).collect();
                format!("{} {}: {}", change.action.mark(), change.what, steps.join(", "))
            }
            Diff::Blocked { why, .. } => format!("blocked: {why}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn only_what_gpuvm_put_there_is_replaced_or_taken_away() {
        let facts = super::super::tests::facts();
        let this = program("0.2.0", "new");
        let nothing = ProgramState { there: There::Absent, packaged: false };
        let packaged = ProgramState { there: There::Absent, packaged: true };
        let link = ProgramState { there: There::NoFile, packaged: false };
        let put = "write /usr/local/bin/gpuvm, call /usr/local/bin/gpuvm";
        let last = |version| Some(program(version, "old"));
        for (state, last, wanted) in [
            (&nothing, None, format!("+ 0.2.0 in /usr/local/bin/gpuvm: {put}")),
            (&packaged, None, "in sync: a package's: /usr/bin/gpuvm".to_owned()),
            (&link, last("0.1.0"), "blocked: /usr/local/bin/gpuvm is there, but is no".to_owned()),
            (&file("new", 0o755, 0), None, "in sync: /usr/local/bin/gpuvm: this program, 0.2.0".to_owned()),
            (
                &file("new", 0o775, 0),
                None,
                "blocked: /usr/local/bin/gpuvm is this program, and has the mode 0775".to_owned(),
            ),
            (
                &file("new", 0o755, 7),
                last("0.1.0"),
                format!("~ /usr/local/bin/gpuvm: for everyone to run, and for root alone to change: {put}"),
            ),
            (
                &file("old", 0o755, 0),
                None,
                "blocked: /usr/local/bin/gpuvm is another program than this gpuvm 0.2.0".to_owned(),
            ),
            (
                &file("hand", 0o755, 0),
                last("0.1.0"),
                "blocked: /usr/local/bin/gpuvm is another program than this gpuvm 0.2.0".to_owned(),
            ),
            (
                &file("old", 0o755, 0),
                last("0.1.0"),
                format!("~ /usr/local/bin/gpuvm: 0.1.0 → 0.2.0, this program: {put}"),
            ),
            (
                &file("old", 0o755, 0),
                last("0.2.0"),
                format!("~ /usr/local/bin/gpuvm: another build of 0.2.0, this program: {put}"),
            ),
            (
                &file("old", 0o755, 0),
                last("0.10.0"),
                format!("~ /usr/local/bin/gpuvm: 0.10.0 → 0.2.0, this program, which is older: {put}"),
            ),
        ] {
            let came = told(this.diff(state, last.as_ref(), &facts));
            assert!(came.starts_with(&wanted), "{state:?}, {last:?}: {came}");
        }
        for (state, wanted) in [
            (&file("new", 0o755, 0), "- /usr/local/bin/gpuvm is taken away: remove /usr/local/bin/gpuvm"),
            (&file("hand", 0o755, 0), "in sync: not gpuvm's any more"),
            (&nothing, "in sync: gone"),
        ] {
            assert_eq!(told(this.remove(state, &facts)), wanted);
        }
    }
}
