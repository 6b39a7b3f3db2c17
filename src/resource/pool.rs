//! A directory pool: a folder that disks lie in, known to libvirt, started now and at boot.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Resource;
use super::libvirt::{Libvirt, ask, known};
use crate::facts::HostFacts;
use crate::host::{Answer, FileKind, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Step};
use crate::types::ResourceName;

/// A directory pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// libvirt's name for it.
    pub name: ResourceName,
    /// The directory.
    pub path: PathBuf,
    /// The directory is a person's: it is used where it is, and never made.
    pub existing: bool,
}

/// What libvirt knows, and what the directory is.
#[derive(Debug, Clone)]
pub struct State {
    libvirt: Libvirt,
    directory: Answer<FileKind>,
    /// The mount point, at the directory or above it, that fstab(5) has and that nothing is mounted at.
    unmounted: Option<PathBuf>,
}

/// The mount points of fstab(5) or mountinfo(5), by the number of their field. Blanks in them are written in octal.
fn mount_points(text: &str, field: usize) -> impl Iterator<Item = PathBuf> {
    let lines = text.lines().filter(|l| !l.trim_start().starts_with('#'));
    let points = lines.filter_map(move |l| l.split_whitespace().nth(field)).filter(|p| p.starts_with('/'));
    points.map(|p| PathBuf::from(p.replace("\\040", " ").replace("\\011", "\t")))
}

fn unmounted(directory: &Path, fstab: &str, mounted: &str) -> Option<PathBuf> {
    let mounted: Vec<PathBuf> = mount_points(mounted, 4).collect();
    // What is mounted cannot be told: then nothing is said to be missing.
    let mut points = mount_points(fstab, 1).filter(|p| !mounted.is_empty() && directory.starts_with(p));
    points.find(|p| !mounted.contains(p))
}

/// The type and the directory of a pool's definition.
fn read(xml: &str) -> Option<(String, PathBuf)> {
    let doc = roxmltree::Document::parse(xml).ok()?;
    let pool = doc.root_element();
    let target = pool.children().find(|c| c.has_tag_name("target"));
    let path = target.and_then(|t| t.children().find(|c| c.has_tag_name("path"))).and_then(|p| p.text());
    Some((pool.attribute("type")?.to_owned(), PathBuf::from(path.unwrap_or_default().trim())))
}

fn same(a: &Path, b: &Path) -> bool {
    a.components().eq(b.components())
}

impl Pool {
    fn change(&self, action: Action) -> Change {
        let mut change = Change::new(action, format!("directory {}", self.path.display()));
        change.steps.push(Step::Pool { name: self.name.clone(), path: self.path.clone() });
        change
    }
}

impl Resource for Pool {
    const KIND: &'static str = "pool";
    type State = State;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<State, HostError> {
        let directory = match host.stat(&self.path)?.map(|s| s.kind) {
            // What the link leads to is what counts.
            Answer::Value(FileKind::Link) => host.list(&self.path)?.map(|_| FileKind::Directory),
            other => other,
        };
        let text = |path: &str| Ok::<_, HostError>(host.text(Path::new(path))?.value().unwrap_or_default());
        let unmounted = unmounted(&self.path, &text("/etc/fstab")?, &text("/proc/self/mountinfo")?);
        Ok(State { libvirt: ask(host)?, directory, unmounted })
    }

    fn diff(&self, state: &State, _: Option<&Self>, _: &HostFacts) -> Diff {
        let path = self.path.display();
        if let Some(point) = &state.unmounted {
            let point = point.display();
            return Diff::Blocked {
                why: format!("/etc/fstab mounts something at `{point}`, and nothing is mounted there now"),
                help: format!("mount it first: mount {point}; disks made now would lie beneath it"),
            };
        }
        match state.directory {
            Answer::Value(FileKind::Directory) => {}
            Answer::Value(_) => {
                return Diff::Blocked {
                    why: format!("`{path}` is no directory"),
                    help: "name a directory in the manifest".to_owned(),
                };
            }
            Answer::Denied => {
                return Diff::Unknown { why: format!("this user may not look at `{path}`: run gpuvm as root") };
            }
            Answer::Absent if self.existing => {
                return Diff::Blocked {
                    why: format!("there is no directory `{path}`"),
                    help: "make it, and mount what belongs there, first: storage is used, never made".to_owned(),
                };
            }
            Answer::Absent => {}
        }
        let known = match known(&state.libvirt, || self.change(Action::Create)) {
            Ok(known) => known,
            Err(diff) => return *diff,
        };
        if let Some(other) = known
            .pools
            .iter()
            .find(|p| p.name != self.name.as_str() && read(&p.xml).is_some_and(|(_, at)| same(&at, &self.path)))
        {
            return Diff::Blocked {
                why: format!("libvirt has `{path}` as pool `{}`, and a directory is in one pool", other.name),
                help: format!("use it by that name: `storage: {{ {}: {{ dir: {path} }} }}`", other.name),
            };
        }
        let Some(pool) = known.pool(self.name.as_str()) else { return Diff::Change(self.change(Action::Create)) };
        match read(&pool.xml) {
            Some((kind, at)) if kind == "dir" && same(&at, &self.path) => {}
            Some((kind, at)) => {
                return Diff::Blocked {
                    why: format!("libvirt has a pool `{}` already: type {kind}, at `{}`", self.name, at.display()),
                    help: if self.name.as_str() == "default" && kind == "dir" {
                        format!("use it: `libvirt: {{ pool: {} }}`", at.display())
                    } else if kind == "dir" {
                        format!(
                            "leave `dir: {}` for the disks that are in it, and give the other directory another name: an \
                             apply moves no disk",
                            at.display()
                        )
                    } else {
                        "give the storage another name in the manifest".to_owned()
                    },
                };
            }
            None => return Diff::Unknown { why: format!("the definition of pool `{}` cannot be read", self.name) },
        }
        let mut change = self.change(Action::Change);
        let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
        for (field, is) in [("started", pool.active), ("autostart", pool.autostart)] {
            if !is {
                change.fields.push(FieldDiff::new(field, yes_no(is), yes_no(true)));
            }
        }
        if change.fields.is_empty() {
            return Diff::InSync { evidence: format!("started, {path}") };
        }
        Diff::Change(change)
    }

    /// A pool may hold anything by now: it stays.
    fn remove(&self, _: &State, _: &HostFacts) -> Diff {
        Diff::stays("pools stay; take one away with `virsh pool-destroy` and `pool-undefine`")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::host::Virtualisation;
    use crate::plan::WaitFor;
    use crate::resource::tests::facts;

    fn pool(existing: bool) -> Pool {
        Pool { name: "default".parse().unwrap(), path: "/srv/vms".into(), existing }
    }
    fn diff(pool: &Pool, libvirt: Libvirt, directory: Answer<FileKind>) -> Diff {
        pool.diff(&State { libvirt, directory, unmounted: None }, None, &facts())
    }
    fn with(pools: Vec<crate::host::Pool>) -> Libvirt {
        Answer::Value(Arc::new(Virtualisation { pools, ..Virtualisation::default() }))
    }
    fn known(name: &str, kind: &str, path: &str, active: bool) -> crate::host::Pool {
        crate::host::Pool {
            name: name.to_owned(),
            active,
            autostart: true,
            xml: format!("<pool type='{kind}'>\n  <target>\n    <path>{path}</path>\n  </target>\n</pool>"),
            available: None,
            volumes: Vec::new(),
        }
    }
    const DIR: Answer<FileKind> = Answer::Value(FileKind::Directory);

    #[test]
    fn before_libvirt_is_there_the_whole_change_is_promised() {
        let Diff::Waits { on: WaitFor::Libvirt, promise, .. } = diff(&pool(false), Answer::Absent, Answer::Absent)
        else {
            panic!("it waits")
        };
        assert_eq!(promise.steps.len(), 1);
    }

    #[test]
    fn a_stopped_pool_is_started_and_a_right_one_left_alone() {
        let at = |active| diff(&pool(false), with(vec![known("default", "dir", "/srv/vms/", active)]), DIR);
        assert!(matches!(at(true), Diff::InSync { .. }));
        let Diff::Change(change) = at(false) else { panic!("it changes") };
        assert_eq!((change.action, change.fields.len()), (Action::Change, 1));
    }

    #[test]
    fn another_pool_of_the_name_or_of_the_directory_blocks() {
        for pools in [
            known("default", "dir", "/elsewhere", true),
            known("default", "logical", "/srv/vms", true),
            known("images", "dir", "/srv/vms", true),
        ] {
            assert!(matches!(diff(&pool(false), with(vec![pools]), DIR), Diff::Blocked { .. }));
        }
    }

    #[test]
    fn storage_of_a_person_is_never_made() {
        assert!(matches!(diff(&pool(true), with(vec![]), Answer::Absent), Diff::Blocked { .. }));
        assert!(matches!(diff(&pool(false), with(vec![]), Answer::Absent), Diff::Change(_)));
        assert!(matches!(diff(&pool(false), with(vec![]), Answer::Value(FileKind::File)), Diff::Blocked { .. }));
        assert!(matches!(diff(&pool(true), with(vec![]), Answer::Denied), Diff::Unknown { .. }));
    }

    #[test]
    fn disks_are_not_made_beneath_a_mount_that_is_missing() {
        let fstab = "# a comment\nUUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\n\
                     UUID=3 /srv/vms ext4 noauto 0 2\n/dev/sdb1\t/mnt/two\\040words xfs nofail 0 2\n";
        let root = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let srv = format!("{root}23 22 8:17 / /srv/vms rw - ext4 /dev/sdb1 rw\n");
        let at = |path: &str, mounted: &str| unmounted(Path::new(path), fstab, mounted);
        assert_eq!(at("/srv/vms", root), Some("/srv/vms".into()));
        assert_eq!(at("/srv/vms/deep", root), Some("/srv/vms".into()));
        assert_eq!(at("/mnt/two words", root), Some("/mnt/two words".into()));
        for (path, mounted) in [("/srv/vms", srv.as_str()), ("/srv/vms2", root), ("/var", root), ("/srv/vms", "")] {
            assert_eq!(at(path, mounted), None, "{path}");
        }
        let state = State { libvirt: with(vec![]), directory: DIR, unmounted: Some("/srv/vms".into()) };
        assert!(matches!(pool(true).diff(&state, None, &facts()), Diff::Blocked { .. }));
    }
}
