//! The file that a disk is written to when a definition gets it anew. Snapshots leave layers over a disk, the guest's last
//! writes are in the uppermost, and whoever writes below it destroys all of them: so a VM whose definition went while its
//! disks stayed goes on in that one. Where it cannot be told which that is, nobody writes.

use std::path::{Path, PathBuf};

use super::chains::all_over;
use super::layers::number;
use crate::host::{Answer, Probe, Virtualisation};
use crate::types::DomainName;

/// What a disk goes on in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Top {
    /// The disk itself: nothing is over it.
    Itself,
    /// The uppermost of gpuvm's own layers, which are one over the other.
    Layer(PathBuf),
    /// Nobody may write to it.
    Refused {
        /// Why.
        why: String,
        /// What to do about it.
        help: String,
    },
}

/// What a disk goes on in, by the file that it began as, for a VM; else why that cannot be told. What is listed and is gone
/// is over nothing.
pub fn top(base: &Path, vm: &DomainName, known: &Virtualisation, host: &dyn Probe) -> Result<Top, String> {
    let there = |path: &Path| host.stat(path).map(|s| s != Answer::Absent).map_err(|e| e.to_string());
    let refused = |why: String, help: String| Ok(Top::Refused { why, help });
    let missing = !there(base)?;
    // Only the folders of pools that are started are looked through.
    let folder = base.parent().unwrap_or(Path::new("/"));
    if !missing && !known.pools.iter().any(|p| p.active && p.directory().as_deref() == Some(folder)) {
        let names = match host.list(folder).map_err(|e| e.to_string())? {
            Answer::Value(names) => names,
            Answer::Absent => Vec::new(),
            Answer::Denied => return Err(format!("this user may not list `{}`", folder.display())),
        };
        if let Some(layer) = names.iter().map(|n| folder.join(n)).find(|path| number(base, path).is_some()) {
            return refused(
                format!("`{}` is beside it, and what that goes on in is not known", layer.display()),
                "start the pool that they are in (virsh pool-start), and plan once more".to_owned(),
            );
        }
    }
    let mut line = vec![base.to_owned()];
    while let Some(at) = line.last().cloned() {
        let over = match all_over(&at, known, host) {
            Ok(over) => over,
            // It is made, and whatever goes on in something cannot have begun with it.
            Err(_) if missing => return Ok(Top::Itself),
            Err(why) => return Err(why),
        };
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for path in over {
            if there(&path)? {
                if number(base, &path).is_some() { &mut own } else { &mut others }.push(path);
            }
        }
        let name = at.display();
        if let Some(over) = own.iter().chain(&others).next().filter(|_| missing) {
            let over = over.display();
            return refused(
                format!(
                    "`{over}` goes on in `{name}`, which is not there: made anew, it would give that another content"
                ),
                format!(
                    "bring `{name}` back, or move what goes on in it elsewhere (virsh pool-refresh); then plan once more"
                ),
            );
        }
        match (&own[..], others.first()) {
            ([], None) => break,
            ([], Some(over)) => {
                let over = over.display();
                return refused(
                    format!("`{over}` goes on in `{name}`, and is destroyed when a guest writes to that"),
                    format!(
                        "make that one a whole copy first (qemu-img convert), or delete it where it is of no use \
                         (virsh pool-refresh); or give VM `{vm}` another name"
                    ),
                );
            }
            ([next], _) if !line.contains(next) => line.push(next.clone()),
            (all, _) => {
                let names: Vec<String> = all.iter().map(|p| format!("`{}`", p.display())).collect();
                return refused(
                    format!(
                        "{} go on in `{name}`, and in which of them its VM was last cannot be told without its definition",
                        names.join(" and ")
                    ),
                    "leave the one to go on with, and what that goes on in: move the others elsewhere, and have libvirt \
                     look again (virsh pool-refresh); then plan once more"
                        .to_owned(),
                );
            }
        }
    }
    let Some(top) = line.pop().filter(|_| !line.is_empty()) else { return Ok(Top::Itself) };
    if let Some(user) = known.named_by(&top, |name| name == vm.as_str()) {
        return refused(
            format!("{user} has `{}`, which holds what was written to this disk last", top.display()),
            format!("take it from that one first, or give VM `{vm}` another name"),
        );
    }
    Ok(Top::Layer(top))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Fixture, Record};
    use crate::host::{Domain, Pool, Volume};
    use crate::image::over as qcow2;

    const POOL: &str = "<pool type='dir'><name>fast</name><target><path>/srv</path></target></pool>";

    /// Of `/srv/vm-0.qcow2`, among these files, each over another one where it says so.
    fn told(files: &[(&str, &str)], disk_of: Option<(&str, &str)>, listed: &[(&str, &str)]) -> Result<Top, String> {
        in_pool(true, files, disk_of, listed)
    }
    fn in_pool(
        active: bool,
        files: &[(&str, &str)],
        disk_of: Option<(&str, &str)>,
        listed: &[(&str, &str)],
    ) -> Result<Top, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/srv")).unwrap();
        for (name, under) in files {
            let bytes = if under.is_empty() { vec![0; 512] } else { qcow2(under) };
            std::fs::write(dir.path().join("root/srv").join(name), bytes).unwrap();
        }
        Record::default().save(&dir.path().join(Record::NAME)).unwrap();
        let at = |name: &str| PathBuf::from("/srv").join(name);
        let volumes = listed.iter().map(|(name, under)| Volume {
            name: (*name).to_owned(),
            path: at(name),
            format: "qcow2".into(),
            capacity: 1 << 30,
            backing: Some(at(under)),
        });
        let pool =
            Pool { name: "fast".into(), active, xml: POOL.into(), volumes: volumes.collect(), ..Pool::default() };
        let domains = disk_of.iter().map(|(name, disk)| Domain {
            name: (*name).to_owned(),
            inactive_xml: format!(
                "<domain><memory>1</memory><vcpu>1</vcpu><os/><devices><disk type='file' device='disk'>\
                 <driver type='qcow2'/><source file='/srv/{disk}'/></disk></devices></domain>"
            ),
            ..Domain::default()
        });
        let known = Virtualisation { pools: vec![pool], domains: domains.collect(), ..Virtualisation::default() };
        let host = Fixture::open(dir.path()).unwrap();
        top(Path::new("/srv/vm-0.qcow2"), &"vm".parse().unwrap(), &known, &host)
    }
    fn why(files: &[(&str, &str)], disk_of: Option<(&str, &str)>) -> String {
        match told(files, disk_of, &[]) {
            Ok(Top::Refused { why, .. }) | Err(why) => why,
            other => panic!("{other:?}"),
        }
    }

    const BASE: (&str, &str) = ("vm-0.qcow2", "");

    #[test]
    fn what_was_written_last_is_in_the_uppermost_of_one_line() {
        assert_eq!(told(&[], None, &[]), Ok(Top::Itself));
        assert_eq!(told(&[BASE, ("vm-1.qcow2", "")], None, &[]), Ok(Top::Itself));
        let line = [BASE, ("vm-0+1.qcow2", "vm-0.qcow2"), ("vm-0+4.qcow2", "/srv/vm-0+1.qcow2")];
        assert_eq!(told(&line, None, &[]), Ok(Top::Layer("/srv/vm-0+4.qcow2".into())));
        // A clone goes on in what a snapshot holds, which nobody writes to.
        let cloned = [&line[..], &[("copy-0.qcow2", "vm-0.qcow2")]].concat();
        assert_eq!(told(&cloned, None, &[]), Ok(Top::Layer("/srv/vm-0+4.qcow2".into())));
        // libvirt's list is older than the end of a file.
        assert_eq!(told(&[BASE], None, &[("vm-0+1.qcow2", "vm-0.qcow2")]), Ok(Top::Itself));
    }

    #[test]
    fn where_it_cannot_be_told_nobody_writes() {
        let two = [BASE, ("vm-0+1.qcow2", "vm-0.qcow2"), ("vm-0+2.qcow2", "vm-0.qcow2")];
        let said = why(&two, None);
        assert!(said.contains("`/srv/vm-0+1.qcow2` and `/srv/vm-0+2.qcow2` go on in `/srv/vm-0.qcow2`"), "{said}");
        let said = why(&[BASE, ("copy-0.qcow2", "vm-0.qcow2")], None);
        assert!(said.contains("`/srv/copy-0.qcow2` goes on in `/srv/vm-0.qcow2`, and is destroyed"), "{said}");
        let line = [BASE, ("vm-0+1.qcow2", "vm-0.qcow2")];
        let said = why(&[&line[..], &[("copy-0.qcow2", "vm-0+1.qcow2")]].concat(), None);
        assert!(said.contains("`/srv/copy-0.qcow2` goes on in `/srv/vm-0+1.qcow2`"), "{said}");
        let said = why(&line, Some(("other", "vm-0+1.qcow2")));
        assert!(said.contains("VM `other` has `/srv/vm-0+1.qcow2`"), "{said}");
        assert_eq!(told(&line, Some(("vm", "vm-0+1.qcow2")), &[]), Ok(Top::Layer("/srv/vm-0+1.qcow2".into())));
        let said = why(&line[1..], None);
        assert!(said.contains("`/srv/vm-0.qcow2`, which is not there"), "{said}");
        let stopped = in_pool(false, &line, None, &[]);
        assert!(matches!(&stopped, Ok(Top::Refused { why, .. }) if why.contains("`/srv/vm-0+1.qcow2`")), "{stopped:?}");
        assert_eq!(in_pool(false, &[BASE, ("vm-1+1.qcow2", "vm-1.qcow2")], None, &[]), Ok(Top::Itself));
        // What cannot be read may go on in it; in what is not there yet, nothing that counts does.
        let said = why(&[BASE, ("odd", r#"json:{"driver":"qcow2"}"#)], None);
        assert!(said.contains("`/srv/odd`"), "{said}");
        assert_eq!(told(&[("odd", r#"json:{"driver":"qcow2"}"#)], None, &[]), Ok(Top::Itself));
    }
}
