//! A block device of the host's that a VM has as its disk: a person's data. It is looked at and never written to; whoever
//! else uses it, or may, keeps the VM from having it.

use std::path::{Path, PathBuf};

use super::has_disk;
use crate::gpu::{names, text};
use crate::host::{Answer, Probe, Virtualisation};
use crate::plan::Diff;
use crate::types::DomainName;

/// What is seen of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Given {
    path: PathBuf,
    /// Why it cannot be told.
    unknown: Option<String>,
    /// Whether it leads to a device.
    there: bool,
    /// What of the host uses it now.
    used: Option<String>,
    /// The set that it says to be a part of.
    member: Option<String>,
    /// Another VM that has it.
    other: Option<String>,
}

const BLOCK: &str = "/sys/class/block";

/// The last part of where a link leads, or of the path itself.
fn name_of(host: &dyn Probe, path: &Path) -> Option<String> {
    let target = host.link(path).ok().and_then(Answer::value);
    Some(target.as_deref().unwrap_or(path).file_name()?.to_string_lossy().into_owned())
}

/// The disk that a partition is on, by sysfs: its folder lies in that of its disk.
fn disk_of(host: &dyn Probe, name: &str, all: &[String]) -> Option<String> {
    let link = host.link(Path::new(&format!("{BLOCK}/{name}"))).ok().and_then(Answer::value)?;
    let above = link.parent()?.file_name()?.to_string_lossy().into_owned();
    all.contains(&above).then_some(above)
}

/// Looks at a device by its name below /dev/disk/by-id.
pub(super) fn look(path: &Path, vm: &DomainName, known: Option<&Virtualisation>, host: &dyn Probe) -> Given {
    let mut given = Given { path: path.to_owned(), ..Given::default() };
    let device = match host.link(path) {
        Ok(Answer::Value(target)) => target.file_name().map(|n| n.to_string_lossy().into_owned()),
        Ok(Answer::Absent) => return given,
        Ok(Answer::Denied) => return Given { unknown: Some("this user may not look at it".to_owned()), ..given },
        Err(e) => return Given { unknown: Some(e.to_string()), ..given },
    };
    let all = names(host, BLOCK);
    let Some(device) = device.filter(|d| all.contains(d)) else {
        return Given { unknown: Some(format!("what it leads to is not in {BLOCK}")), ..given };
    };
    given.there = true;
    // The device itself and its partitions: what uses one of them uses it.
    let mut parts = vec![device.clone()];
    parts.extend(all.iter().filter(|n| disk_of(host, n, &all).as_ref() == Some(&device)).cloned());
    let number = |name: &str| text(host, &format!("{BLOCK}/{name}/dev"));
    let Some(mounts) = text(host, "/proc/self/mountinfo").filter(|t| !t.is_empty()) else {
        return Given { unknown: Some("what is mounted could not be read".to_owned()), ..given };
    };
    let swaps = text(host, "/proc/swaps").unwrap_or_default();
    let btrfs: Vec<String> = names(host, "/sys/fs/btrfs")
        .iter()
        .flat_map(|id| names(host, &format!("/sys/fs/btrfs/{id}/devices")))
        .collect();
    for part in &parts {
        let dev = number(part);
        // mountinfo(5): the third field is major:minor, the fifth the mount point; behind the dash type and source.
        let mounted = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
            let of_source = || {
                let mut devices = source.split(':').filter(|s| s.starts_with("/dev/"));
                devices.any(|d| name_of(host, Path::new(d)).as_ref() == Some(part))
            };
            let is = dev.as_deref() == fields.get(2).copied() || of_source();
            is.then(|| format!("`{part}` is mounted at {}", fields.get(4).unwrap_or(&"?")))
        });
        let swap = || {
            let mut paths = swaps.lines().skip(1).filter_map(|l| l.split_whitespace().next());
            let is = paths.any(|p| name_of(host, Path::new(p)).as_ref() == Some(part));
            is.then(|| format!("the host swaps to `{part}`"))
        };
        let of_btrfs = || btrfs.contains(part).then(|| format!("`{part}` is in a btrfs that is mounted"));
        if given.used.is_none() {
            given.used = mounted.or_else(swap).or_else(of_btrfs).or_else(|| held(host, part));
        }
        // udev's word on what is on it, without which nothing is known of that.
        match dev.and_then(|dev| text(host, &format!("/run/udev/data/b{dev}"))) {
            None => given.unknown = Some(format!("udev says nothing of `{part}`")),
            Some(udev) => {
                let kind = udev.lines().find_map(|l| l.strip_prefix("E:ID_FS_TYPE="));
                if let Some(kind) = kind.filter(|k| k.ends_with("_member") || *k == "bcache") {
                    given.member = Some(format!("`{part}` says that it is {kind}"));
                }
            }
        }
    }
    // A set that has the whole disk has the partition too.
    let above = disk_of(host, &device, &all);
    given.used = given.used.or_else(|| held(host, above.as_ref()?));
    given.other = known.and_then(|known| other(vm, &parts, above.as_deref(), known, host));
    given
}

fn held(host: &dyn Probe, name: &str) -> Option<String> {
    let holder = names(host, &format!("{BLOCK}/{name}/holders")).into_iter().next()?;
    let called = text(host, &format!("{BLOCK}/{holder}/dm/name")).map_or(String::new(), |n| format!(" ({n})"));
    Some(format!("`{holder}`{called} is made of `{name}`"))
}

/// Another VM that has it, a part of it, or what it is a part of, by whichever name.
fn other(
    vm: &DomainName,
    parts: &[String],
    above: Option<&str>,
    known: &Virtualisation,
    host: &dyn Probe,
) -> Option<String> {
    let of_other = known.domains.iter().filter(|d| d.name != vm.as_str());
    let same = |source: &str| {
        let name = source.starts_with("/dev/").then(|| name_of(host, Path::new(source))).flatten();
        name.is_some_and(|n| parts.contains(&n) || above == Some(n.as_str()))
    };
    of_other.into_iter().find(|d| has_disk(d, same)).map(|d| d.name.clone())
}

/// What of the host, or which VM but this one, has a device by its link; `Err`: why that cannot be told.
pub fn user_of(
    link: &Path,
    but: &DomainName,
    known: &Virtualisation,
    host: &dyn Probe,
) -> Result<Option<String>, String> {
    let given = look(link, but, Some(known), host);
    match given.unknown {
        Some(why) => Err(why),
        None if !given.there => Err(format!("`{}` leads nowhere", link.display())),
        None => Ok(given.used.or_else(|| given.other.map(|vm| format!("VM `{vm}` has it")))),
    }
}

impl Given {
    /// Nothing has this name.
    pub(super) fn is_missing(&self) -> bool {
        !self.there && self.unknown.is_none()
    }

    /// Why the VM cannot have it. `had`: it has had it before, so that what is on it may be its guest's doing.
    pub(super) fn refused(&self, had: bool) -> Option<Diff> {
        let path = self.path.display();
        let blocked = |why: String, help: String| Some(Diff::Blocked { why, help });
        if let Some(why) = &self.unknown {
            return Some(Diff::Unknown { why: format!("whether its disk `{path}` is used elsewhere: {why}") });
        }
        if !self.there {
            return blocked(
                format!("its disk `{path}` is not there"),
                "look at what there is: ls -l /dev/disk/by-id".to_owned(),
            );
        }
        if let Some(why) = &self.used {
            return blocked(
                format!("its disk `{path}` is the host's: {why}"),
                "a guest beside the host would destroy what is on it: take it from the host first, or name another one"
                    .to_owned(),
            );
        }
        if let Some(why) = self.member.as_ref().filter(|_| !had) {
            return blocked(
                format!("its disk `{path}` belongs to a set: {why}"),
                "name another one; gpuvm neither formats nor wipes a disk".to_owned(),
            );
        }
        if let Some(vm) = &self.other {
            return blocked(
                format!("its disk `{path}` is a disk of VM `{vm}`"),
                "two guests that write to one disk destroy it: take it from that one first".to_owned(),
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Domain;
    use crate::host::fixture::{Fixture, Record};

    const PATH: &str = "/dev/disk/by-id/ata-DISK_1";

    /// A host with disk sdb that has a partition, and whatever else.
    fn seen(change: &dyn Fn(&Path), known: Option<&Virtualisation>) -> Given {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let write = |path: &str, text: &str| {
            let at = root.join(path);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::fs::write(at, text).unwrap();
        };
        let link = |path: &str, to: &str| {
            let at = root.join(path);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, at).unwrap();
        };
        for (name, at, dev) in
            [("sda", "sda", "8:0"), ("sdb", "sdb", "8:16"), ("sdb1", "sdb/sdb1", "8:17"), ("dm-0", "dm-0", "253:0")]
        {
            write(&format!("sys/devices/block/{at}/dev"), &format!("{dev}\n"));
            link(&format!("sys/class/block/{name}"), &format!("../../devices/block/{at}"));
            write(&format!("run/udev/data/b{dev}"), "E:ID_FS_TYPE=ext4\n");
        }
        write("dev/sdb", "");
        write("dev/sdb1", "");
        write("proc/self/mountinfo", "22 1 8:0 / / rw - ext4 /dev/sda rw\n");
        write("proc/swaps", "Filename Type Size Used Priority\n");
        link("dev/disk/by-id/ata-DISK_1", "../../sdb");
        change(&root);
        Record::default().save(&dir.path().join(Record::NAME)).unwrap();
        let host = Fixture::open(dir.path()).unwrap();
        look(Path::new(PATH), &"desk".parse().unwrap(), known, &host)
    }
    fn why(given: &Given, had: bool) -> String {
        match given.refused(had) {
            None => String::new(),
            Some(Diff::Blocked { why, .. }) => why,
            Some(Diff::Unknown { why }) => format!("unknown: {why}"),
            Some(other) => format!("{other:?}"),
        }
    }
    fn with(path: &'static str, text: &'static str) -> impl Fn(&Path) {
        move |root: &Path| {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), text).unwrap();
        }
    }

    #[test]
    fn what_the_host_or_another_vm_uses_is_nobodys_disk() {
        assert_eq!(why(&seen(&|_| {}, None), false), "");
        let gone = seen(&|root| std::fs::remove_file(root.join(&PATH[1..])).unwrap(), None);
        assert!(why(&gone, true).ends_with("is not there"), "{}", why(&gone, true));
        assert!(gone.is_missing() && !seen(&|_| {}, None).is_missing());
        let used = [
            (with("proc/self/mountinfo", "22 1 8:17 / /srv rw - ext4 /dev/x rw\n"), "`sdb1` is mounted at /srv"),
            (with("proc/self/mountinfo", "22 1 0:40 / /data rw - btrfs /dev/sdb rw\n"), "`sdb` is mounted at /data"),
            (with("proc/swaps", "Filename Type\n/dev/sdb1 partition 1 0 -2\n"), "the host swaps to `sdb1`"),
            (with("sys/fs/btrfs/1234/devices/sdb1", ""), "in a btrfs"),
            (with("sys/devices/block/sdb/holders/dm-0", ""), "`dm-0` is made of `sdb`"),
        ];
        for (change, says) in used {
            for had in [false, true] {
                let why = why(&seen(&change, None), had);
                assert!(why.contains(says), "{why}");
            }
        }
        for kind in ["E:ID_FS_TYPE=LVM2_member\n", "E:ID_FS_TYPE=linux_raid_member\n", "E:ID_FS_TYPE=zfs_member\n"] {
            let member = seen(&with("run/udev/data/b8:17", kind), None);
            assert!(why(&member, false).contains("belongs to a set"), "{member:?}");
            assert_eq!(why(&member, true), "", "its guest made that");
        }
        for source in ["/dev/sdb", "/dev/sdb1", PATH] {
            let xml = format!(
                "<domain><memory>1</memory><os/><devices><disk type='block'><source dev='{source}'/></disk></devices></domain>"
            );
            let domain = |name: &str| Domain { name: name.to_owned(), inactive_xml: xml.clone(), ..Domain::default() };
            let known = |name| Virtualisation { domains: vec![domain(name)], ..Virtualisation::default() };
            assert!(why(&seen(&|_| {}, Some(&known("other"))), true).contains("VM `other`"), "{source}");
            assert_eq!(why(&seen(&|_| {}, Some(&known("desk"))), true), "", "it is this one's");
        }
    }

    #[test]
    fn what_cannot_be_told_is_no_free_disk() {
        let unknown = |given: Given| why(&given, true).starts_with("unknown: ");
        assert!(unknown(seen(&|root| std::fs::remove_file(root.join("run/udev/data/b8:17")).unwrap(), None)));
        assert!(unknown(seen(&with("proc/self/mountinfo", ""), None)));
        assert!(unknown(seen(&|root| std::fs::remove_file(root.join("sys/class/block/sdb")).unwrap(), None)));
    }
}
