//! Snapshots at libvirt: made, corrected and forgotten; and layers of disks that a VM runs with.

use std::path::Path;
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::error::{Error, ErrorNumber};
use virt::sys;
use virt_lazy::{BlockJob, block_job};

use super::libvirt::{collect, lookup, ours, refresh, said};
use super::{files, layers};
use crate::host::{HostError, VmSnapshot};
use crate::plan::{FileCopy, SnapshotStep};
use crate::resource::chains::over;
use crate::resource::libvirt_domain::{drives, with_file_moved};
use crate::resource::snapshots::is_ours;
use crate::types::{DomainName, ResourceName, splice};

/// How often a commit is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

fn refused(why: String) -> HostError {
    HostError::Refused(why)
}

/// What libvirt keeps of a VM's snapshots, by name.
pub(super) fn of(domain: &Domain) -> Result<Vec<VmSnapshot>, Error> {
    let mut all = Vec::new();
    let listed = match domain.list_all_snapshots(0) {
        Ok(listed) => listed,
        // A driver that has none.
        Err(e) if e.code() == ErrorNumber::NoSupport => return Ok(all),
        Err(e) => return Err(e),
    };
    for one in listed {
        let read = || {
            // Never with VIR_DOMAIN_SNAPSHOT_XML_SECURE: passwords stay where they are.
            Ok::<_, Error>(VmSnapshot { name: one.get_name()?, current: one.is_current(0)?, xml: one.get_xml_desc(0)? })
        };
        match read() {
            Ok(snapshot) => all.push(snapshot),
            Err(e) if e.code() == ErrorNumber::NoDomainSnapshot => {}
            Err(e) => return Err(e),
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// The VM, which is gpuvm's.
fn vm(connection: &Connect, name: &DomainName) -> Result<Domain, HostError> {
    let domain = lookup(connection, name)?.ok_or_else(|| refused(format!("there is no VM `{name}`; plan again")))?;
    ours(&domain, name)?;
    Ok(domain)
}

fn find(domain: &Domain, name: &ResourceName) -> Result<Option<DomainSnapshot>, HostError> {
    match DomainSnapshot::lookup_by_name(domain, name.as_str(), 0) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(e) if e.code() == ErrorNumber::NoDomainSnapshot => Ok(None),
        Err(e) => Err(said(&e)),
    }
}

/// The description says whose it is.
fn is_of_gpuvm(xml: &str) -> bool {
    let doc = roxmltree::Document::parse(xml);
    doc.is_ok_and(|d| d.descendants().any(|n| n.has_tag_name("description") && n.text().is_some_and(is_ours)))
}

pub(super) fn make(connection: &Connect, step: &SnapshotStep) -> Result<(), HostError> {
    let domain = vm(connection, &step.name)?;
    if let Some(there) = find(&domain, &step.snapshot)? {
        return match is_of_gpuvm(&there.get_xml_desc(0).map_err(|e| said(&e))?) {
            true => Ok(()),
            false => Err(refused(format!("VM `{}` has a snapshot `{}` that others made", step.name, step.snapshot))),
        };
    }
    if domain.has_managed_save(0).map_err(|e| said(&e))? {
        return Err(refused(format!("the memory of VM `{}` was saved meanwhile; plan again", step.name)));
    }
    for copy in &step.copies {
        layers::copy_file(copy)?;
    }
    let mut flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
    if step.quiesce {
        flags |= sys::VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE;
    }
    DomainSnapshot::create_xml(&domain, &step.xml, flags).map_err(|e| said(&e))?;
    refresh(connection)
}

pub(super) fn keep(
    connection: &Connect,
    name: &DomainName,
    snapshot: &ResourceName,
    moved: Option<(&FileCopy, &str)>,
    current: bool,
) -> Result<(), HostError> {
    let failed = |e: Error| said(&e);
    let domain = vm(connection, name)?;
    let there = find(&domain, snapshot)?
        .ok_or_else(|| refused(format!("VM `{name}` has no snapshot `{snapshot}` any more; plan again")))?;
    let current = current || there.is_current(0).map_err(failed)?;
    // With passwords: what is not given back is lost.
    let xml = there.get_xml_desc(sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE).map_err(failed)?;
    if !is_of_gpuvm(&xml) {
        return Err(refused(format!("snapshot `{snapshot}` was not made by gpuvm; it is left as it is")));
    }
    let xml = match moved {
        None => xml,
        Some((FileCopy { from, to }, format)) => {
            let edits = with_file_moved(&xml, from, (to, format));
            let edited = edits.and_then(|edits| splice(&xml, &edits).ok());
            edited.ok_or_else(|| refused(format!("snapshot `{snapshot}` cannot be read; it is left as it is")))?
        }
    };
    let mark = if current { sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT } else { 0 };
    DomainSnapshot::create_xml(&domain, &xml, sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | mark).map(drop).map_err(failed)
}

pub(super) fn forget(
    connection: &Connect,
    name: &DomainName,
    snapshot: &ResourceName,
    copies: &[std::path::PathBuf],
) -> Result<(), HostError> {
    if let Some(domain) = lookup(connection, name)? {
        ours(&domain, name)?;
        if let Some(there) = find(&domain, snapshot)? {
            if !is_of_gpuvm(&there.get_xml_desc(0).map_err(|e| said(&e))?) {
                return Err(refused(format!("snapshot `{snapshot}` was not made by gpuvm; it is left as it is")));
            }
            // The files of disks are gpuvm's to merge: libvirt 9.0 to 9.8 put them together differently, or not at all.
            there.delete(sys::VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY).map_err(|e| said(&e))?;
        }
    }
    copies.iter().try_for_each(|path| files::remove(path))
}

/// Deletes a layer. What it holds cannot come back: who needs it is asked anew, of every pool as it is by now.
pub(super) fn remove(connection: &Connect, path: &Path) -> Result<(), HostError> {
    refresh(connection)?;
    if !path.exists() {
        return Ok(());
    }
    let known = collect(connection).map_err(|e| said(&e))?;
    let kept = |why: String| refused(format!("`{}` is not deleted: {why}", path.display()));
    if let Some(user) = known.user_of(path, None) {
        return Err(kept(format!("{user} needs it")));
    }
    match over(path, &known, &super::Live::for_a_run()) {
        Ok(None) => {}
        Ok(Some(over)) => return Err(kept(format!("`{}` goes on in it", over.display()))),
        Err(why) => return Err(kept(format!("who needs it is not known: {why}"))),
    }
    files::remove(path)?;
    refresh(connection)
}

/// QEMU takes the file that a VM writes to into the one below, and goes on in that.
pub(super) fn commit(
    connection: &Connect,
    name: &DomainName,
    disk: &str,
    top: &Path,
    into: &Path,
) -> Result<(), HostError> {
    let domain = vm(connection, name)?;
    let failed = || said(&Error::last_error());
    let mut begun = false;
    loop {
        if !domain.is_active().map_err(|e| said(&e))? {
            return Err(refused(format!("VM `{name}` ended meanwhile; plan again")));
        }
        let xml = domain.get_xml_desc(0).map_err(|e| said(&e))?;
        let at = drives(&xml).map_err(refused)?.into_iter().find(|d| d.target == disk).and_then(|d| d.file);
        match at {
            Some(at) if at == into => return Ok(()),
            Some(at) if at == top => {}
            _ => return Err(refused(format!("disk `{disk}` of VM `{name}` is another one by now; plan again"))),
        }
        match commit_of(&xml, disk) {
            // One that was begun by a run that was cut off goes on.
            None if !begun => {
                let base = into.to_string_lossy();
                if !block_job(&domain, disk, BlockJob::Commit(&base)) {
                    return Err(failed());
                }
                begun = true;
            }
            None => return Err(refused(format!("QEMU gave up on merging disk `{disk}` of VM `{name}`: see its log"))),
            Some(false) => std::thread::sleep(LOOK_AGAIN),
            Some(true) => {
                if !block_job(&domain, disk, BlockJob::Pivot) {
                    let why = failed();
                    if !block_job(&domain, disk, BlockJob::GiveUp) {
                        tracing::error!("the commit of disk `{disk}` of VM `{name}` is still there");
                    }
                    return Err(why);
                }
            }
        }
    }
}

/// Whether a commit of this disk is under way, and has caught up (formatdomain, `mirror`).
fn commit_of(live: &str, disk: &str) -> Option<bool> {
    let doc = roxmltree::Document::parse(live).ok()?;
    let is = |n: &roxmltree::Node<'_, '_>| {
        n.has_tag_name("disk") && n.children().any(|t| t.has_tag_name("target") && t.attribute("dev") == Some(disk))
    };
    let disk = doc.descendants().find(is)?;
    let mirror = disk.children().find(|m| m.has_tag_name("mirror") && m.attribute("job") == Some("active-commit"))?;
    Some(mirror.attribute("ready") == Some("yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On libvirt's test driver, which keeps snapshots as the one of QEMU does and touches no file.
    #[test]
    fn what_libvirt_keeps_is_corrected_and_forgotten() {
        use crate::resource::snapshots::{snapshots, xml};
        if !super::super::libvirt::loaded() {
            return;
        }
        let mut connection = Connect::open(Some("test:///default")).unwrap();
        let disk = |file: &str| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{file}'/>\
                 <target dev='vda' bus='virtio'/></disk>"
            )
        };
        let definition = format!(
            "<domain type='test'><name>kept</name><metadata><v xmlns='urn:gpuvm:vm:1'/></metadata>\
             <memory unit='KiB'>65536</memory><vcpu>1</vcpu><os><type>hvm</type></os><devices>{}\
             <graphics type='vnc' port='-1' passwd='canary'/></devices></domain>",
            disk("/srv/kept-0.qcow2")
        );
        let name: DomainName = "kept".parse().unwrap();
        let domain = Domain::define_xml(&connection, &definition).unwrap();
        // This driver makes none of disks alone: what the one of QEMU writes down of one is given to it.
        let stored = domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE).unwrap();
        let made = |snapshot: &str, layer: &str, parent: &str, state: &str| {
            let snapshot: ResourceName = snapshot.parse().unwrap();
            let xml = xml(&snapshot, &Default::default(), &[("vda".to_owned(), layer.into())], &[]);
            let more = format!("<state>{state}</state>{parent}<creationTime>7</creationTime>{stored}</domainsnapshot>");
            let xml = xml.replace("</domainsnapshot>", &more);
            let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT;
            DomainSnapshot::create_xml(&domain, &xml, flags).unwrap();
            let step = SnapshotStep {
                name: name.clone(),
                snapshot,
                xml,
                layers: Vec::new(),
                copies: Vec::new(),
                quiesce: false,
            };
            make(&connection, &step).unwrap();
        };
        let read = || {
            let domain = crate::host::Domain { snapshots: of(&domain).unwrap(), ..Default::default() };
            let all = snapshots(&domain).unwrap();
            let files = |s: &crate::resource::snapshots::Snapshot| s.files().map(|f| f.display().to_string()).collect();
            let told = all.iter().map(|s| (s.name.clone(), s.current, s.parent.clone(), files(s)));
            let mut told: Vec<(String, bool, Option<String>, Vec<String>)> = told.collect();
            assert!(all.iter().all(|s| s.ours && s.definition.starts_with("<domain ")), "{all:?}");
            told.sort();
            told
        };
        made("one", "/srv/kept-0+1.qcow2", "", "shutoff");
        made("two", "/srv/kept-0+2.qcow2", "<parent><name>one</name></parent>", "disk-snapshot");
        let row = |name: &str, current, parent: Option<&str>, file: &str| {
            (name.to_owned(), current, parent.map(str::to_owned), vec![file.to_owned()])
        };
        let [one, two]: [ResourceName; 2] = ["one", "two"].map(|n| n.parse().unwrap());
        let base = "/srv/kept-0.qcow2";
        assert_eq!(read(), [row("one", false, None, base), row("two", true, Some("one"), base)]);
        keep(&connection, &name, &one, None, true).unwrap();
        assert_eq!(read(), [row("one", true, None, base), row("two", false, Some("one"), base)]);
        let moved = FileCopy { from: base.into(), to: "/srv/other.img".into() };
        for _ in 0..2 {
            keep(&connection, &name, &two, Some((&moved, "raw")), false).unwrap();
        }
        assert_eq!(read(), [row("one", true, None, base), row("two", false, Some("one"), "/srv/other.img")]);
        let whole = find(&domain, &two).unwrap().unwrap().get_xml_desc(sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE).unwrap();
        assert!(
            whole.contains("passwd='canary'") && !format!("{:?}", of(&domain).unwrap()).contains("canary"),
            "{whole}"
        );
        let theirs = "<domainsnapshot><name>theirs</name></domainsnapshot>";
        DomainSnapshot::create_xml(&domain, theirs, 0).unwrap();
        let of_theirs: ResourceName = "theirs".parse().unwrap();
        assert!(
            keep(&connection, &name, &of_theirs, None, true).unwrap_err().to_string().contains("not made by gpuvm")
        );
        assert!(forget(&connection, &name, &of_theirs, &[]).unwrap_err().to_string().contains("not made by gpuvm"));
        let _ = connection.close();
    }

    #[test]
    fn a_commit_is_seen_in_the_running_definition() {
        let live = |mirror: &str| {
            format!(
                "<domain><devices><disk><target dev='vda'/></disk><disk>{mirror}<target dev='vdb'/></disk></devices></domain>"
            )
        };
        assert_eq!(commit_of(&live(""), "vdb"), None);
        assert_eq!(commit_of(&live("<mirror type='file' job='active-commit'/>"), "vdb"), Some(false));
        assert_eq!(commit_of(&live("<mirror type='file' job='active-commit' ready='yes'/>"), "vdb"), Some(true));
        assert_eq!(commit_of(&live("<mirror type='file' job='copy' ready='yes'/>"), "vdb"), None);
        assert_eq!(commit_of(&live("<mirror type='file' job='active-commit'/>"), "vda"), None);
    }
}
