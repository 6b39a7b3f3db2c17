//! A whole file. One that is there already and is not ours is taken over only by an explicit word.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::HostFacts;
use crate::host::{Answer, FileKind, HostError, Probe, Stat};
use crate::plan::{Action, Change, Content, Diff, FieldDiff, FileWrite, Refresh, Step};
use crate::types::{Mode, sha256_hex};

/// A file as it is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// The file with its content and whose it is.
    pub write: FileWrite,
    /// Replace one that is not ours.
    pub take_over: bool,
    /// What has to be made anew when it changes.
    pub refreshes: std::collections::BTreeSet<Refresh>,
}

/// What is at the path.
#[derive(Debug)]
pub enum FileState {
    /// Nothing.
    Absent,
    /// It may not be looked at.
    Denied,
    /// Something, with its content where it is a file.
    There(Stat, Vec<u8>),
}

impl File {
    fn is_same(&self, bytes: &[u8]) -> bool {
        match &self.write.content {
            Content::Text(text) => text.as_bytes() == bytes,
            Content::Secret(digest) | Content::Program(digest) => *digest == sha256_hex(bytes),
        }
    }
    /// Owner and group as numbers, where the host has them.
    fn owner(&self, facts: &HostFacts) -> (Option<u32>, Option<u32>) {
        let root = |name: &str| (name == "root").then_some(0);
        let user = facts.users.get(&self.write.owner).map(|u| u.uid).or_else(|| root(&self.write.owner));
        let group = facts.groups.get(&self.write.group).map(|g| g.gid).or_else(|| root(&self.write.group));
        (user, group)
    }
    fn change(&self, action: Action, before: Option<&[u8]>) -> Change {
        let what = match action {
            Action::Create => "a new file",
            _ => "another content",
        };
        let mut change = Change::new(action, what);
        let path = self.write.path.display().to_string();
        match &self.write.content {
            Content::Text(text) => {
                let before = before.map(String::from_utf8_lossy);
                change.fields.push(FieldDiff::text(path, before.as_deref(), Some(text)));
            }
            Content::Secret(_) => change.notes.push("a secret: its content is not shown".to_owned()),
            Content::Program(_) => {}
        }
        change.steps.push(Step::WriteFile(self.write.clone()));
        change.refreshes = self.refreshes.clone();
        change
    }
}

impl Resource for File {
    const KIND: &'static str = "file";
    type State = FileState;

    fn name(&self) -> String {
        self.write.path.display().to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<FileState, HostError> {
        let path: &Path = &self.write.path;
        Ok(match host.stat(path)? {
            Answer::Absent => FileState::Absent,
            Answer::Denied => FileState::Denied,
            Answer::Value(stat) if stat.kind == FileKind::File => match host.read(path)? {
                Answer::Value(bytes) => FileState::There(stat, bytes),
                Answer::Absent => FileState::Absent,
                Answer::Denied => FileState::Denied,
            },
            Answer::Value(stat) => FileState::There(stat, Vec::new()),
        })
    }

    fn diff(&self, state: &FileState, last: Option<&Self>, facts: &HostFacts) -> Diff {
        let (stat, bytes) = match state {
            FileState::Absent => return Diff::Change(self.change(Action::Create, None)),
            FileState::Denied => return Diff::Unknown { why: "it may not be read (not root)".to_owned() },
            FileState::There(stat, bytes) => (stat, bytes),
        };
        if stat.kind != FileKind::File {
            return Diff::Blocked {
                why: "it is there, but is no regular file; a link is not followed".to_owned(),
                help: format!("look at it: ls -ld {}", self.write.path.display()),
            };
        }
        if !self.is_same(bytes) {
            if last.is_none() && !self.take_over {
                return Diff::Blocked {
                    why: "it is there already, with another content, and is not gpuvm's".to_owned(),
                    help: "write `takeOver: true` to replace it; the original is kept".to_owned(),
                };
            }
            let mut change = self.change(Action::Change, Some(bytes));
            // What only its owner may read is not for a plan, which others may.
            if last.is_none() && stat.mode.bits() & 0o004 == 0 {
                change.fields.clear();
                change.notes.push(format!("what is there has the mode {} and is not shown", stat.mode));
            }
            return Diff::Change(change);
        }
        let (uid, gid) = self.owner(facts);
        let mut change = Change::new(Action::Change, "another owner or mode");
        let mut differs = |field: &str, before: String, after: String| {
            if before != after {
                change.fields.push(FieldDiff::new(field, Some(before), Some(after)));
            }
        };
        differs("mode", stat.mode.to_string(), self.write.mode.to_string());
        differs("owner", stat.uid.to_string(), uid.map_or(self.write.owner.clone(), |u| u.to_string()));
        differs("group", stat.gid.to_string(), gid.map_or(self.write.group.clone(), |g| g.to_string()));
        if change.fields.is_empty() {
            return Diff::InSync { evidence: format!("{} bytes, {}", bytes.len(), stat.mode) };
        }
        if last.is_none() && !self.take_over {
            return Diff::Blocked {
                why: "it is there already, with another owner or mode, and is not gpuvm's".to_owned(),
                help: "write `takeOver: true` to change it; what it was is kept".to_owned(),
            };
        }
        change.steps.push(Step::WriteFile(self.write.clone()));
        Diff::Change(change)
    }

    fn remove(&self, state: &FileState, _: &HostFacts) -> Diff {
        match state {
            FileState::Absent => Diff::InSync { evidence: "gone".to_owned() },
            FileState::Denied => Diff::Unknown { why: "it may not be read (not root)".to_owned() },
            FileState::There(stat, bytes) if stat.kind == FileKind::File && self.is_same(bytes) => {
                let (what, step) = match self.take_over {
                    true => ("the original comes back", Step::RestoreFile { path: self.write.path.clone() }),
                    false => ("taken away", Step::RemoveFile { path: self.write.path.clone() }),
                };
                let mut change = Change::new(Action::Remove, what);
                change.fields.push(FieldDiff::new(self.write.path.display().to_string(), None, None));
                change.steps.push(step);
                change.refreshes = self.refreshes.clone();
                Diff::Change(change)
            }
            // With the original back, or edited by a person: not ours to take away.
            FileState::There(..) if self.take_over => Diff::InSync { evidence: "not gpuvm's any more".to_owned() },
            FileState::There(..) => Diff::Blocked {
                why: "it left the manifest, but was changed by hand since".to_owned(),
                help: format!("keep it or remove it yourself: {}", PathBuf::from(&self.write.path).display()),
            },
        }
    }
}

/// A mode of 0600 for secrets and 0644 for the rest, where none is given.
pub fn usual_mode(secret: bool) -> Mode {
    Mode::new(if secret { 0o600 } else { 0o644 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(take_over: bool) -> File {
        File { write: FileWrite::root("/etc/x", "new\n", 0o644), take_over, refreshes: Default::default() }
    }
    fn there(text: &str, mode: u32) -> FileState {
        let stat = Stat { kind: FileKind::File, mode: Mode::new(mode), uid: 0, gid: 0 };
        FileState::There(stat, text.as_bytes().to_vec())
    }
    fn told(diff: &Diff) -> &'static str {
        match diff {
            Diff::InSync { .. } => "in sync",
            Diff::Change(_) => "change",
            Diff::Blocked { .. } => "blocked",
            _ => "other",
        }
    }

    #[test]
    fn a_file_of_someone_else_is_taken_over_only_by_the_word() {
        let facts = super::super::tests::facts();
        let ours = file(false);
        for (state, not_ours, with_the_word, is_ours) in [
            (FileState::Absent, "change", "change", "change"),
            (there("old\n", 0o644), "blocked", "change", "change"),
            (there("new\n", 0o600), "blocked", "change", "change"),
            (there("new\n", 0o644), "in sync", "in sync", "in sync"),
        ] {
            assert_eq!(told(&file(false).diff(&state, None, &facts)), not_ours, "{state:?}");
            assert_eq!(told(&file(true).diff(&state, None, &facts)), with_the_word, "{state:?}");
            assert_eq!(told(&file(false).diff(&state, Some(&ours), &facts)), is_ours, "{state:?}");
        }
    }

    #[test]
    fn what_others_may_not_read_is_not_shown_in_a_plan() {
        let facts = super::super::tests::facts();
        let shown = |mode| serde_json::to_string(&file(true).diff(&there("canary\n", mode), None, &facts)).unwrap();
        assert!(shown(0o644).contains("canary"));
        assert!(!shown(0o600).contains("canary") && shown(0o600).contains("0600"), "{}", shown(0o600));
        // A secret never is, whoever may read it.
        let mut secret = file(true);
        secret.write.content = Content::Secret(sha256_hex(b"hidden"));
        let plan = serde_json::to_string(&secret.diff(&there("canary\n", 0o644), None, &facts)).unwrap();
        assert!(!plan.contains("canary"), "{plan}");
    }

    #[test]
    fn what_leaves_the_manifest_goes_or_becomes_what_it_was() {
        let facts = super::super::tests::facts();
        let step = |take_over, state: &FileState| match file(take_over).remove(state, &facts) {
            Diff::Change(change) => format!("{:?}", change.steps[0]).split(' ').next().unwrap_or_default().to_owned(),
            other => told(&other).to_owned(),
        };
        assert_eq!(step(false, &there("new\n", 0o644)), "RemoveFile");
        assert_eq!(step(true, &there("new\n", 0o644)), "RestoreFile");
        assert_eq!(step(false, &there("by hand\n", 0o644)), "blocked");
        assert_eq!(step(false, &FileState::Absent), "in sync");
    }
}
