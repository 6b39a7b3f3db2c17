//! The disks of a definition one by one, as snapshots and copies need them: what each is, and how its source becomes
//! another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use roxmltree::Document;

use super::read::{child, children, devices};
use super::splice::Edits;
use crate::types::Splice;

/// A disk of a VM (formatdomain, "Hard drives, floppy disks, CDROMs").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Its name in the guest's definition: `vda`.
    pub target: String,
    /// The file that it is in; none where it is a block device, a volume by name, or on a network.
    pub file: Option<PathBuf>,
    /// `qcow2`, `raw`: what QEMU takes the file for.
    pub format: String,
    /// Whether the guest may write to it: neither a drive for media nor read-only.
    pub writable: bool,
    /// Several VMs may write to it at once.
    pub shareable: bool,
    /// What is written to it is gone when the VM ends.
    pub transient: bool,
    /// What a person said of snapshots of it: `no`, `internal`, `external`.
    pub snapshot: Option<String>,
}

/// The disks of a definition, in order.
pub fn drives(xml: &str) -> Result<Vec<Drive>, String> {
    let doc = Document::parse(xml).map_err(|e| e.to_string())?;
    let disks = devices(&doc, "disk").into_iter();
    let drive = |d: roxmltree::Node<'_, '_>| {
        let media = matches!(d.attribute("device"), Some("cdrom" | "floppy"));
        let file = child(d, "source").and_then(|s| s.attribute("file"));
        Some(Drive {
            target: child(d, "target")?.attribute("dev")?.to_owned(),
            file: file.filter(|_| matches!(d.attribute("type"), Some("file"))).map(PathBuf::from),
            format: child(d, "driver").and_then(|n| n.attribute("type")).unwrap_or("raw").to_owned(),
            writable: !media && child(d, "readonly").is_none(),
            shareable: child(d, "shareable").is_some(),
            transient: child(d, "transient").is_some(),
            snapshot: d.attribute("snapshot").map(str::to_owned),
        })
    };
    disks.map(|d| drive(d).ok_or_else(|| "a disk of it has no <target>".to_owned())).collect()
}

/// A file and what QEMU takes it for.
pub type Source<'a> = (&'a Path, &'a str);

/// What gives disks, by their targets, other sources. What a definition says is behind the former one goes: libvirt finds
/// that in the files themselves when the VM starts, and would go by a stale word. `None` where one of them is no file.
pub fn with_sources(xml: &str, sources: &BTreeMap<&str, Source<'_>>) -> Option<Vec<Splice>> {
    let doc = Document::parse(xml).ok()?;
    let mut edits = Edits::new(xml);
    let mut found = 0;
    for disk in devices(&doc, "disk") {
        let Some((path, format)) = child(disk, "target").and_then(|t| sources.get(t.attribute("dev")?)) else {
            continue;
        };
        source(disk, path, format, &mut edits)?;
        found += 1;
    }
    (found == sources.len()).then(|| edits.splices())
}

/// The same in a text with definitions in it, for each disk that is in a file: it is in the other file from now on.
/// `None` where the text cannot be read.
pub fn with_file_moved(xml: &str, from: &Path, (to, format): Source<'_>) -> Option<Vec<Splice>> {
    let doc = Document::parse(xml).ok()?;
    let mut edits = Edits::new(xml);
    let from = from.to_string_lossy();
    let of_definitions = doc.descendants().filter(|n| n.has_tag_name("devices")).flat_map(|d| children(d, "disk"));
    for disk in of_definitions {
        if child(disk, "source").and_then(|s| s.attribute("file")) == Some(&*from) {
            source(disk, to, format, &mut edits)?;
        }
    }
    Some(edits.splices())
}

pub(super) fn source(disk: roxmltree::Node<'_, '_>, path: &Path, format: &str, edits: &mut Edits<'_>) -> Option<()> {
    let source = child(disk, "source").filter(|s| s.attribute("file").is_some())?;
    edits.attribute(source, "file", &path.to_string_lossy());
    let driver = child(disk, "driver")?;
    driver.attribute("type")?;
    edits.attribute(driver, "type", format);
    for behind in children(disk, "backingStore") {
        edits.remove(behind);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/srv/a&amp;b-0.qcow2'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='/srv/image'/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source file='/srv/seed.iso'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='block' device='disk' snapshot='no'>
      <source dev='/dev/x'/>
      <target dev='vdb'/>
    </disk>
  </devices>
</domain>";

    #[test]
    fn a_disk_is_told_and_gets_another_source() {
        let all = drives(XML).unwrap();
        let told: Vec<_> = all.iter().map(|d| (d.target.as_str(), d.file.is_some(), d.writable)).collect();
        assert_eq!(told, [("vda", true, true), ("sda", true, false), ("vdb", false, true)]);
        assert_eq!((all[0].format.as_str(), all[2].snapshot.as_deref()), ("qcow2", Some("no")));
        let to = Path::new("/srv/a&b-0+1.qcow2");
        let one = with_sources(XML, &BTreeMap::from([("vda", (to, "qcow2"))])).unwrap();
        let after = crate::types::splice(XML, &one).unwrap();
        assert_eq!(drives(&after).unwrap()[0].file.as_deref(), Some(to));
        assert!(!after.contains("backingStore") && after.contains("/srv/seed.iso"), "{after}");
        assert_eq!(after.lines().count(), XML.lines().count() - 4, "every other line stays");
        assert_eq!(with_sources(XML, &BTreeMap::from([("vdb", (to, "qcow2"))])), None, "it is no file");
        assert_eq!(with_sources(XML, &BTreeMap::from([("vdx", (to, "qcow2"))])), None, "it is not there");
        let moved = with_file_moved(XML, Path::new("/srv/a&b-0.qcow2"), (to, "qcow2")).unwrap();
        assert_eq!(crate::types::splice(XML, &moved).unwrap(), after);
    }
}
