//! What disks go on in: a disk holds what was written to it, and everything else is in the file behind it, and in the one
//! behind that. libvirt's lists of its pools are as old as their last refresh and do not go beyond a pool, so the files
//! are looked at themselves. What cannot be told is an error: whoever deletes a file cannot take that back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::libvirt_domain::{project, raw_and_others};
use crate::host::whole::is_temporary;
use crate::host::{Answer, Domain, FileKind, Probe, Virtualisation, VmSnapshot};
use crate::image::{Behind, behind};

/// A header with the name of the file behind it; QEMU writes it into the first cluster.
const HEAD: usize = 64 << 10;

/// The files that other files go on in, each with those: of all pools that are started, of all VMs and their snapshots, and
/// of whatever those lead to. Else why that cannot be told.
pub fn chains(known: &Virtualisation, host: &dyn Probe) -> Result<BTreeMap<PathBuf, BTreeSet<PathBuf>>, String> {
    chains_but(None, known, host)
}

/// The same, where it does not matter what one file goes on in.
fn chains_but(
    one: Option<&Path>,
    known: &Virtualisation,
    host: &dyn Probe,
) -> Result<BTreeMap<PathBuf, BTreeSet<PathBuf>>, String> {
    let raw = raw(known);
    let mut all: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut open: Vec<PathBuf> = Vec::new();
    for pool in known.pools.iter().filter(|p| p.active) {
        for volume in &pool.volumes {
            open.push(volume.path.clone());
            if let Some(backing) = volume.backing.as_ref().filter(|_| !raw.contains(&volume.path)) {
                all.entry(backing.clone()).or_default().insert(volume.path.clone());
            }
        }
        if let Some(directory) = pool.directory() {
            open.extend(files(&directory, host)?);
        }
    }
    for xml in definitions(known) {
        let disks = project(&xml).map_err(|e| format!("the definition of a VM cannot be read: {e}"))?.disks;
        for chain in disks {
            for pair in chain.windows(2) {
                if let [over, under] = pair {
                    all.entry(under.into()).or_default().insert(over.into());
                }
            }
            open.extend(chain.into_iter().map(PathBuf::from));
        }
    }
    open.extend(all.keys().cloned());
    let mut seen = BTreeSet::new();
    while let Some(path) = open.pop() {
        // A disk of a network pool has a name that is no path.
        if !path.is_absolute() || raw.contains(&path) || !seen.insert(path.clone()) {
            continue;
        }
        let head = match host.head(&path, HEAD) {
            Ok(Answer::Value(head)) => head,
            Ok(Answer::Absent) => continue,
            Ok(Answer::Denied) => return Err(format!("this user may not read `{}`", path.display())),
            Err(e) => return Err(e.to_string()),
        };
        match behind(&head) {
            Behind::Nothing | Behind::Elsewhere => {}
            Behind::File(name) => {
                let under = path.parent().unwrap_or(Path::new("/")).join(name);
                all.entry(under.clone()).or_default().insert(path);
                open.push(under);
            }
            Behind::Unknown if one == Some(path.as_path()) => {}
            Behind::Unknown => return Err(format!("what `{}` goes on in cannot be told", path.display())),
        }
    }
    Ok(all)
}

/// Who goes on in a file.
pub fn over(path: &Path, known: &Virtualisation, host: &dyn Probe) -> Result<Option<PathBuf>, String> {
    Ok(all_over(path, known, host)?.pop_first())
}

/// All that go on in a file.
pub fn all_over(path: &Path, known: &Virtualisation, host: &dyn Probe) -> Result<BTreeSet<PathBuf>, String> {
    Ok(chains_but(Some(path), known, host)?.remove(path).unwrap_or_default())
}

/// What a file goes on in, and what that does, as far as it can be told: from the files themselves, and where they may not
/// be read from libvirt's lists. A definition need not say it: libvirt looks when it starts the VM.
pub fn chain_of(path: &Path, known: &Virtualisation, host: &dyn Probe) -> Vec<PathBuf> {
    let raw = raw(known);
    let mut all: Vec<PathBuf> = Vec::new();
    let mut at = path.to_owned();
    while at.is_absolute() && !raw.contains(&at) {
        let volumes = || known.pools.iter().flat_map(|p| &p.volumes);
        let listed = || volumes().find(|v| v.path == at).and_then(|v| v.backing.clone());
        let under = match host.head(&at, HEAD) {
            Ok(Answer::Value(head)) => match behind(&head) {
                Behind::File(name) => Some(at.parent().unwrap_or(Path::new("/")).join(name)),
                Behind::Nothing => listed(),
                Behind::Elsewhere | Behind::Unknown => None,
            },
            _ => listed(),
        };
        match under {
            Some(under) if under != path && !all.contains(&under) => {
                all.push(under.clone());
                at = under;
            }
            _ => break,
        }
    }
    all
}

/// Every definition that libvirt keeps: of VMs, of what runs, and in snapshots.
fn definitions(known: &Virtualisation) -> Vec<String> {
    let of = |d: &Domain| {
        let mut all = vec![d.inactive_xml.clone()];
        all.extend(d.live_xml.clone());
        all.extend(d.snapshots.iter().flat_map(VmSnapshot::definitions));
        all
    };
    known.domains.iter().flat_map(of).collect()
}

/// The disks that nothing is behind, whatever is written in them: each definition that has one says `raw`. What is at the
/// beginning of such a disk is the guest's to write, and QEMU does not go by it. A pool's word does not count: libvirt
/// has it from the beginning of the file too, as that was at the last refresh (storage_util.c, storageBackendProbeTarget).
fn raw(known: &Virtualisation) -> BTreeSet<PathBuf> {
    let (mut raw, mut others) = (BTreeSet::new(), BTreeSet::new());
    for (one, other) in definitions(known).iter().map(|xml| raw_and_others(xml)) {
        raw.extend(one);
        others.extend(other);
    }
    raw.difference(&others).map(PathBuf::from).collect()
}

/// The files of a folder, whatever they are.
fn files(folder: &Path, host: &dyn Probe) -> Result<Vec<PathBuf>, String> {
    let names = match host.list(folder) {
        Ok(Answer::Value(names)) => names,
        Ok(Answer::Absent) => return Ok(Vec::new()),
        Ok(Answer::Denied) => return Err(format!("this user may not list `{}`", folder.display())),
        Err(e) => return Err(e.to_string()),
    };
    let mut all = Vec::new();
    // What is being made is made anew, or goes.
    for path in names.into_iter().filter(|n| !is_temporary(n)).map(|n| folder.join(n)) {
        if let Answer::Value(stat) = host.stat(&path).map_err(|e| e.to_string())?
            && matches!(stat.kind, FileKind::File | FileKind::Link)
        {
            all.push(path);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::Pool;
    use crate::host::fixture::{Fixture, Record};
    use crate::image::over as qcow2;

    const POOL: &str = "<pool type='dir'><name>fast</name><target><path>/srv</path></target></pool>";

    fn looked(files: &[(&str, Vec<u8>)], disk: Option<&str>) -> Result<Vec<String>, String> {
        let disks: Vec<(&str, &str)> = disk.map(|d| (d, "")).into_iter().collect();
        Ok(with(files, &disks, chains)?.into_keys().map(|p| p.display().to_string()).collect())
    }

    /// With a VM for each disk, whose definition says what format that has.
    fn with<T>(files: &[(&str, Vec<u8>)], disks: &[(&str, &str)], ask: impl Fn(&Virtualisation, &dyn Probe) -> T) -> T {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("srv/gpuvm-images")).unwrap();
        for (path, bytes) in files {
            let path = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        Record::default().save(&dir.path().join(Record::NAME)).unwrap();
        let pool = Pool { name: "fast".into(), active: true, xml: POOL.into(), ..Pool::default() };
        let domains = disks.iter().map(|(disk, driver)| Domain {
            name: "vm".into(),
            inactive_xml: format!(
                "<domain><memory>1</memory><vcpu>1</vcpu><os/><devices><disk type='file' device='disk'>\
                 <source file='{disk}'/>{driver}</disk></devices></domain>"
            ),
            ..Domain::default()
        });
        let known = Virtualisation { pools: vec![pool], domains: domains.collect(), ..Default::default() };
        ask(&known, &Fixture::open(dir.path()).unwrap())
    }

    #[test]
    fn what_a_guest_writes_into_its_raw_disk_says_nothing() {
        const RAW: &str = "<driver name='qemu' type='raw'/>";
        let disk = "/srv/raw";
        let torn = b"QFI\xfb".to_vec();
        for bytes in [torn.clone(), qcow2("gpuvm-images/u.qcow2")] {
            let all = with(&[(disk, bytes)], &[(disk, RAW)], chains).unwrap();
            assert!(all.is_empty(), "{all:?}");
        }
        // One definition opens it as what it seems to be.
        let qcow = "<driver name='qemu' type='qcow2'/>";
        let files = [(disk, qcow2("gpuvm-images/u.qcow2"))];
        assert_eq!(with(&files, &[(disk, RAW), (disk, qcow)], chains).unwrap().len(), 1);
        // A raw disk behind an overlay, as a snapshot leaves it.
        let over = "<driver type='qcow2'/><backingStore type='file'><format type='raw'/><source file='/srv/raw'/></backingStore>";
        let files = [(disk, torn.clone()), ("/srv/over", qcow2("raw"))];
        let all = with(&files, &[("/srv/over", over)], chains).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), [Path::new(disk)]);
        // Of the disk that is to go itself, it does not matter; of another that no definition has, it does.
        let files = [(disk, torn.clone())];
        assert_eq!(with(&files, &[], |known, host| over_of(disk, known, host)), Ok(None));
        let said = with(&files, &[], |known, host| over_of("/srv/other", known, host)).unwrap_err();
        assert!(said.contains("`/srv/raw`"), "{said}");
    }

    fn over_of(path: &str, known: &Virtualisation, host: &dyn Probe) -> Result<Option<PathBuf>, String> {
        super::over(Path::new(path), known, host)
    }

    #[test]
    fn the_files_are_looked_at_themselves_and_what_they_lead_to() {
        assert!(looked(&[("/srv/raw", vec![0; 512])], None).unwrap().is_empty());
        // libvirt has listed none of these.
        let all = looked(&[("/srv/a", qcow2("gpuvm-images/u.qcow2")), ("/srv/b", qcow2("/srv/a"))], None).unwrap();
        assert_eq!(all, ["/srv/a", "/srv/gpuvm-images/u.qcow2"]);
        // Out of every pool, by way of a file that no list has.
        let files = [("/home/top", qcow2("mid")), ("/home/mid", qcow2("file:/srv/gpuvm-images/u.qcow2"))];
        assert_eq!(looked(&files, Some("/home/top")).unwrap(), ["/home/mid", "/srv/gpuvm-images/u.qcow2"]);
        assert!(looked(&files, None).unwrap().is_empty(), "nobody has them");
        assert_eq!(looked(&[("/srv/a", qcow2("b")), ("/srv/b", qcow2("a"))], None).unwrap().len(), 2, "a circle ends");
    }

    #[test]
    fn what_cannot_be_told_is_an_error() {
        let cut = qcow2("gpuvm-images/u.qcow2")[..110].to_vec();
        for (bytes, name) in [(cut, "cut"), (qcow2(r#"json:{"driver":"qcow2"}"#), "json"), (b"QED\0".to_vec(), "qed")] {
            let said = looked(&[("/srv/a", bytes)], None).unwrap_err();
            assert!(said.contains("`/srv/a`"), "{name}: {said}");
        }
        assert!(looked(&[("/srv/a", qcow2("nbd://elsewhere/a"))], None).unwrap().is_empty());
    }
}
