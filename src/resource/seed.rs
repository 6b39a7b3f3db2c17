//! What a guest is told at its first boot, on a CD-ROM image of its own. It holds keys and whatever else the manifest has
//! for the guest: only what it was made from, as a digest, is compared and is in a plan.
//!
//! cloud-init sets a guest up once for each instance-id. A seed that changes keeps that, so that nothing runs a second
//! time behind a person's back; a higher `generation` makes it another one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Resource;
use super::libvirt::{Libvirt, ask, known};
use crate::facts::HostFacts;
use crate::guest::iso;
use crate::host::{Answer, FileKind, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Step};
use crate::types::DomainName;

/// The seed of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// Whose.
    pub vm: DomainName,
    /// Where it lies: in the pool's directory, where libvirt's confinement lets QEMU read it.
    pub path: PathBuf,
    /// sha256 in hex of everything that it is made from.
    pub inputs: String,
    /// What tells cloud-init whether it has run already.
    pub instance: String,
    /// What is in it, as far as a person may be shown it.
    pub shown: BTreeMap<String, String>,
    /// Files of this host's with keys.
    pub key_files: Vec<PathBuf>,
    /// The file of this host's with a password: root's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// It is for Windows' Setup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub windows: bool,
    /// It is for Ubuntu's installer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub installer: bool,
    /// Take it away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
}

/// What is there.
#[derive(Debug)]
pub struct State {
    file: Answer<There>,
    missing: Vec<PathBuf>,
    password: Option<Password>,
    libvirt: Libvirt,
}

/// What is wrong with the file of a password.
#[derive(Debug, Clone, Copy)]
enum Password {
    Absent,
    OthersRead,
}

#[derive(Debug, Clone)]
enum There {
    /// Made by gpuvm, from this.
    Ours(String),
    /// Something else.
    Other,
}

impl Seed {
    fn change(&self, action: Action) -> Change {
        let what = self.shown.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join("; ");
        let mut change = Change::new(action, what);
        if let Some(file) = &self.password_file {
            change.notes.push(format!(
                "the password in `{}` is read by the run and is on the CD-ROM: whoever is in the guest can read it there until \
                 `vms.{}.windows` is taken out",
                file.display(),
                self.vm
            ));
        }
        change.steps.push(Step::Seed { path: self.path.clone(), inputs: self.inputs.clone() });
        change
    }

    fn another(&self, last: Option<&Self>, vm: bool) -> Change {
        let mut change = self.change(Action::Change);
        let before = last.map(|l| &l.shown);
        for name in self
            .shown
            .keys()
            .chain(before.into_iter().flat_map(BTreeMap::keys))
            .collect::<std::collections::BTreeSet<_>>()
        {
            let (is, want) = (before.and_then(|b| b.get(name)), self.shown.get(name));
            if is != want {
                change.fields.push(FieldDiff::new(name.clone(), is.cloned(), want.cloned()));
            }
        }
        change.what = match change.fields.is_empty() {
            true => "another content".to_owned(),
            false => change.fields.iter().map(|f| f.field.as_str()).collect::<Vec<_>>().join(", "),
        };
        let again = last.is_some_and(|l| l.instance != self.instance);
        change.notes.push(match (vm, again) {
            (true, _) if self.installer => "a system that is installed takes nothing of this up".to_owned(),
            (true, _) if self.windows => "a Windows that is installed takes nothing of this up".to_owned(),
            (false, _) => "its VM was not started with the former one".to_owned(),
            (true, true) => "cloud-init sets the guest up once more at its next start: users, packages, commands, new \
                             host keys; what is in it stays"
                .to_owned(),
            (true, false) => format!(
                "a guest that was set up already takes nothing of this up; to have cloud-init do it all once more, raise \
                 `vms.{}.cloudInit.generation`",
                self.vm
            ),
        });
        change
    }
}

impl Resource for Seed {
    const KIND: &'static str = "seed";
    type State = State;

    fn name(&self) -> String {
        self.vm.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<State, HostError> {
        let file = match host.stat(&self.path)? {
            Answer::Value(stat) if stat.kind != FileKind::File => Answer::Value(There::Other),
            Answer::Value(_) => host.read(&self.path)?.map(|bytes| match iso::made_from(&bytes) {
                Some(inputs) => There::Ours(inputs.to_owned()),
                None => There::Other,
            }),
            Answer::Absent => Answer::Absent,
            Answer::Denied => Answer::Denied,
        };
        let mut missing = Vec::new();
        for path in self.key_files.iter().filter(|_| !self.absent) {
            if host.stat(path)? == Answer::Absent {
                missing.push(path.clone());
            }
        }
        let password = match self.password_file.as_ref().filter(|_| !self.absent).map(|path| host.stat(path)) {
            Some(stat) => match stat? {
                Answer::Value(stat) => {
                    let alone = stat.kind == FileKind::File && stat.uid == 0 && stat.mode.bits() & 0o077 == 0;
                    (!alone).then_some(Password::OthersRead)
                }
                Answer::Absent => Some(Password::Absent),
                // The run that makes it is root's, and looks again.
                Answer::Denied => None,
            },
            None => None,
        };
        Ok(State { file, missing, password, libvirt: ask(host)? })
    }

    fn diff(&self, state: &State, last: Option<&Self>, _: &HostFacts) -> Diff {
        let path = self.path.display();
        if self.absent {
            return match &state.file {
                Answer::Value(There::Ours(_)) => {
                    let mut change = Change::new(Action::Remove, "what its guest was told at its first boot");
                    change.steps.push(Step::RemoveFile { path: self.path.clone() });
                    Diff::Change(change)
                }
                _ => Diff::InSync { evidence: "not there".to_owned() },
            };
        }
        let made = matches!(&state.file, Answer::Value(There::Ours(inputs)) if *inputs == self.inputs);
        if let Some(file) = state.missing.first().filter(|_| !made) {
            return Diff::Blocked {
                why: format!("the keys of `{}` are to let in, and it is not there", file.display()),
                help: "put it there, or correct `user.sshKeys`".to_owned(),
            };
        }
        if let (Some(wrong), Some(file)) = (state.password.filter(|_| !made), &self.password_file) {
            let file = file.display();
            let (why, help) = match wrong {
                Password::Absent => (
                    format!("the password is to be in `{file}`, which is not there"),
                    format!("write it there, in one line: install -m 600 /dev/null {file}, then edit it"),
                ),
                Password::OthersRead => (
                    format!("`{file}` holds a password, and is not a file of root's alone"),
                    format!("chown root {file}; chmod 600 {file}"),
                ),
            };
            return Diff::Blocked { why, help };
        }
        // Its pool's directory is libvirt's to make.
        let known = match known(&state.libvirt, || self.change(Action::Create)) {
            Ok(known) => known,
            Err(diff) => return *diff,
        };
        // It may have been set up with a former seed.
        let vm = known.domain(self.vm.as_str()).is_some();
        let due = match &state.file {
            Answer::Value(There::Ours(inputs)) if *inputs == self.inputs => {
                return Diff::InSync { evidence: format!("{path}, {}", self.instance) };
            }
            Answer::Value(There::Ours(_)) => self.another(last, vm),
            Answer::Value(There::Other) => {
                return Diff::Blocked {
                    why: format!("`{path}` is there already, and gpuvm did not make it"),
                    help: "give it another name, or the VM another".to_owned(),
                };
            }
            Answer::Denied => {
                return Diff::Unknown { why: format!("this user may not read `{path}`: run gpuvm as root") };
            }
            Answer::Absent => self.change(Action::Create),
        };
        Diff::Change(due)
    }

    /// The VM may be started with it once more.
    fn remove(&self, _: &State, _: &HostFacts) -> Diff {
        Diff::stays(format!("`{}` stays with its VM", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::host::{Domain, Virtualisation};
    use crate::resource::tests::facts;

    fn seed(inputs: &str, instance: &str, user: &str) -> Seed {
        Seed {
            vm: "web".parse().unwrap(),
            path: "/srv/web-seed.iso".into(),
            inputs: inputs.to_owned(),
            instance: instance.to_owned(),
            shown: BTreeMap::from([("user".to_owned(), user.to_owned())]),
            key_files: Vec::new(),
            password_file: None,
            windows: false,
            installer: false,
            absent: false,
        }
    }
    fn there(inputs: Option<&str>, vm: bool) -> State {
        let file = inputs.map_or(Answer::Absent, |i| Answer::Value(There::Ours(i.to_owned())));
        let domain = Domain { name: "web".to_owned(), ..Domain::default() };
        let known =
            Virtualisation { domains: Some(domain).filter(|_| vm).into_iter().collect(), ..Virtualisation::default() };
        State { file, missing: Vec::new(), password: None, libvirt: Answer::Value(Arc::new(known)) }
    }
    fn notes(diff: Diff) -> String {
        match diff {
            Diff::Change(change) => change.notes.concat(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_guest_is_not_set_up_twice_without_a_word() {
        let (old, new) = (seed("a", "web-1", "alice"), seed("b", "web-1", "bob"));
        assert!(matches!(
            old.diff(&there(None, false), None, &facts()),
            Diff::Change(Change { action: Action::Create, .. })
        ));
        assert!(matches!(old.diff(&there(Some("a"), true), Some(&old), &facts()), Diff::InSync { .. }));
        let early = State { libvirt: Answer::Absent, ..there(None, false) };
        assert!(matches!(old.diff(&early, None, &facts()), Diff::Waits { .. }), "there is no pool yet");
        assert!(notes(new.diff(&there(Some("a"), true), Some(&old), &facts())).contains("takes nothing of this up"));
        assert!(notes(new.diff(&there(Some("a"), false), Some(&old), &facts())).contains("not started"));
        let again = seed("c", "web-2", "bob");
        let Diff::Change(change) = again.diff(&there(Some("a"), true), Some(&old), &facts()) else {
            panic!("a change")
        };
        assert!(change.notes.concat().contains("once more at its next start"));
        assert_eq!(change.fields, [FieldDiff::new("user", Some("alice".to_owned()), Some("bob".to_owned()))]);
    }

    #[test]
    fn what_others_made_and_keys_that_are_not_there_stop_it() {
        let wanted = seed("a", "web-1", "alice");
        let other = State { file: Answer::Value(There::Other), ..there(None, false) };
        assert!(matches!(wanted.diff(&other, None, &facts()), Diff::Blocked { .. }));
        let missing = State { missing: vec!["/root/alice.pub".into()], ..there(None, false) };
        let Diff::Blocked { why, .. } = wanted.diff(&missing, None, &facts()) else { panic!("no key") };
        assert!(why.contains("/root/alice.pub"), "{why}");
        let secret = Seed { password_file: Some("/root/p".into()), windows: true, ..wanted.clone() };
        for (wrong, word) in [(Password::Absent, "not there"), (Password::OthersRead, "root's alone")] {
            let state = |file| State { password: Some(wrong), ..there(file, false) };
            let Diff::Blocked { why, .. } = secret.diff(&state(None), None, &facts()) else { panic!("{wrong:?}") };
            assert!(why.contains(word) && why.contains("/root/p"), "{why}");
            assert!(matches!(secret.diff(&state(Some("a")), None, &facts()), Diff::InSync { .. }), "it is made");
        }
        assert!(notes(secret.diff(&there(None, false), None, &facts())).contains("read by the run"));
        let gone = Seed { absent: true, ..wanted };
        assert!(matches!(gone.diff(&other, None, &facts()), Diff::InSync { .. }), "not ours");
        let Diff::Change(change) = gone.diff(&there(Some("x"), false), None, &facts()) else { panic!("it goes") };
        assert!(matches!(&change.steps[..], [Step::RemoveFile { .. }]));
    }
}
