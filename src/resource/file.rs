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
            Content::Secret(digest) => *digest == sha256_hex(bytes),
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
            return Diff::Change(self.change(Action::Change, Some(bytes)));
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
