//! The snapshots of a VM. libvirt keeps them (virDomainSnapshot, `virsh snapshot-list`): the name, the time, which came
//! from which, and the VM's definition as it was, whose disks are the files that hold that state and are not written to
//! any more. What libvirt has no place for, copies of the UEFI variables and of the TPM's state, lies in [`FOLDER`], and
//! the snapshot's description says which of them there are.
//!
//! They are of disks alone, and external: each disk goes on in a new file over the former one. Memory is in none, since
//! QEMU cannot save it with passed devices, and libvirt refuses internal ones where a VM has UEFI variables in a file. libvirt
//! reverts to external ones since 9.9 only (Debian 12 has 9.0), and with neither variables nor TPM: so gpuvm itself puts
//! the files in place, and asks libvirt to record it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::libvirt_domain::{Drive, drives, nvram};
use crate::host::{Domain, VmSnapshot};
use crate::types::{DomainName, ResourceName, xml_escape as e};

/// Where copies of UEFI variables and of TPM states lie, for root alone.
pub const FOLDER: &str = "/var/lib/gpuvm/snapshots";

/// Where libvirt has the states of emulated TPMs, by the UUID of the VM.
const TPMS: &str = "/var/lib/libvirt/swtpm";

/// Where libvirt has the UEFI variables of VMs, by their names.
const NVRAMS: &str = "/var/lib/libvirt/qemu/nvram";

/// What the description of a snapshot of gpuvm's begins with. The number is its format.
const OURS: &str = "made by gpuvm (1)";

/// Whether this is the description of a snapshot of gpuvm's.
pub fn is_ours(description: &str) -> bool {
    description.trim().starts_with(OURS)
}

/// A part of a VM beside its disks that a snapshot has a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The file of its UEFI variables.
    Nvram,
    /// The state of its emulated TPM.
    Tpm,
}

impl Part {
    /// Both of them.
    pub const ALL: [Part; 2] = [Part::Nvram, Part::Tpm];

    /// In file names and descriptions.
    pub const fn word(self) -> &'static str {
        match self {
            Part::Nvram => "nvram",
            Part::Tpm => "tpm",
        }
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Nvram => "UEFI variables",
            Part::Tpm => "TPM state",
        }
    }

    /// Where a VM has it; none where its definition has no such part, or does not say yet where.
    pub fn place(self, xml: &str, uuid: &str) -> Option<PathBuf> {
        match self {
            Part::Nvram => nvram(xml).map(PathBuf::from).or_else(|| usual_nvram(xml)),
            Part::Tpm => tpm_state(xml, uuid),
        }
    }

    /// Where its copy is in a snapshot.
    pub fn copy(self, uuid: &str, snapshot: &str) -> PathBuf {
        Path::new(FOLDER).join(format!("{uuid}.{snapshot}.{}", self.word()))
    }
}

/// Where libvirt makes the file of UEFI variables where a definition does not name one (yet): before 9.2 it does so when
/// the VM starts.
fn usual_nvram(xml: &str) -> Option<PathBuf> {
    let doc = Document::parse(xml).ok()?;
    let child = |of: Node<'_, '_>, name: &str| of.children().find(|c| c.has_tag_name(name)).map(|c| c.id());
    let root = doc.root_element();
    let os = doc.get_node(child(root, "os")?)?;
    let name = doc.get_node(child(root, "name")?)?.text()?;
    (os.attribute("firmware") == Some("efi")).then(|| Path::new(NVRAMS).join(format!("{name}_VARS.fd")))
}

/// The file that swtpm keeps everything in (swtpm(8), `--tpmstate`).
fn tpm_state(xml: &str, uuid: &str) -> Option<PathBuf> {
    let doc = Document::parse(xml).ok()?;
    let backend = doc.descendants().find(|n| n.has_tag_name("backend") && n.attribute("type") == Some("emulator"))?;
    let old = backend.attribute("version") == Some("1.2");
    let file = if old { "tpm1.2/tpm-00.permall" } else { "tpm2/tpm2-00.permall" };
    Some(Path::new(TPMS).join(uuid).join(file))
}

/// Whether a definition keeps its TPM's state somewhere else than libvirt does by itself (since 10.10).
pub fn tpm_elsewhere(xml: &str) -> bool {
    let Ok(doc) = Document::parse(xml) else { return true };
    doc.descendants().any(|n| {
        n.has_tag_name("source") && n.parent().is_some_and(|p| p.has_tag_name("backend")) && {
            n.ancestors().any(|a| a.has_tag_name("tpm"))
        }
    })
}

/// A snapshot, read.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds of the epoch; 0 where that is not told.
    pub created: i64,
    /// The one that the VM went on from before.
    pub parent: Option<String>,
    /// Whether the VM goes on from this one.
    pub current: bool,
    /// Whether gpuvm made it.
    pub ours: bool,
    /// Whether the VM ran then.
    pub ran: bool,
    /// What it has copies of.
    pub parts: BTreeSet<Part>,
    /// The VM's stored definition as it was.
    pub definition: String,
    /// The disks that hold its state.
    pub drives: Vec<Drive>,
}

impl Snapshot {
    /// The files that hold its state.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.drives.iter().filter(|d| d.writable).filter_map(|d| d.file.as_ref())
    }
}

/// Reads one.
fn read(snapshot: &VmSnapshot) -> Result<Snapshot, String> {
    let doc = Document::parse(&snapshot.xml).map_err(|e| e.to_string())?;
    let child = |name: &str| doc.root_element().children().find(|c| c.has_tag_name(name));
    let text = |node: Option<Node<'_, '_>>| node.and_then(|n| n.text()).map(|t| t.trim().to_owned());
    let description = text(child("description")).unwrap_or_default();
    let state = text(child("state")).unwrap_or_default();
    let definition = snapshot.definitions().into_iter().next().unwrap_or_default();
    let drives = if definition.is_empty() { Vec::new() } else { drives(&definition)? };
    let words = description.split_once(':').map(|(_, words)| words.to_owned()).unwrap_or_default();
    Ok(Snapshot {
        name: snapshot.name.clone(),
        created: text(child("creationTime")).and_then(|t| t.parse().ok()).unwrap_or(0),
        parent: child("parent").and_then(|p| text(p.children().find(|c| c.has_tag_name("name")))),
        current: snapshot.current,
        ours: is_ours(&description) && !definition.is_empty(),
        ran: state != "shutoff",
        parts: Part::ALL.into_iter().filter(|p| words.split_whitespace().any(|w| w == p.word())).collect(),
        definition,
        drives,
    })
}

/// The snapshots of a VM, oldest first; those of the same second by their names.
pub fn snapshots(domain: &Domain) -> Result<Vec<Snapshot>, String> {
    let one = |s| read(s).map_err(|why| format!("its snapshot `{}` cannot be read: {why}", s.name));
    let mut all = domain.snapshots.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    all.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    Ok(all)
}

/// One to be made (virDomainSnapshotCreateXML): each named disk goes on in the file that is given, all others stay out.
pub fn xml(name: &ResourceName, parts: &BTreeSet<Part>, layers: &[(String, PathBuf)], others: &[String]) -> String {
    let words: String = parts.iter().map(|p| format!(" {}", p.word())).collect();
    let mut disks = String::new();
    for (target, path) in layers {
        disks += &format!(
            "    <disk name='{}' snapshot='external' type='file'>\n      <driver type='qcow2'/>\n      \
             <source file='{}'/>\n    </disk>\n",
            e(target),
            e(&path.to_string_lossy())
        );
    }
    for target in others {
        disks += &format!("    <disk name='{}' snapshot='no'/>\n", e(target));
    }
    format!(
        "<domainsnapshot>\n  <name>{}</name>\n  <description>{OURS}:{words}</description>\n  <memory snapshot='no'/>\n  \
         <disks>\n{disks}  </disks>\n</domainsnapshot>\n",
        e(name.as_str())
    )
}

/// Why gpuvm does nothing about a VM's disks, and what to do about it: what others made of them stays as it is, and it is
/// theirs to take away.
pub fn others(name: &DomainName, all: &[Snapshot]) -> Option<(String, String)> {
    let theirs = all.iter().find(|s| !s.ours)?;
    Some((
        format!("its snapshot `{}` was not made by gpuvm, which leaves it and its disks as they are", theirs.name),
        format!(
            "virsh snapshot-list {name} --tree; without it, gpuvm can go on: virsh snapshot-delete {name} {}",
            theirs.name
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "<domain type='kvm'>
    <name>tiny</name>
    <os>
      <nvram>/var/lib/libvirt/qemu/nvram/tiny_VARS.fd</nvram>
    </os>
    <devices>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2'/>
        <source file='/srv/tiny-0.qcow2'/>
        <target dev='vda' bus='virtio'/>
      </disk>
      <tpm model='tpm-crb'>
        <backend type='emulator' version='2.0'/>
      </tpm>
    </devices>
  </domain>";

    fn one(description: &str, inactive: &str) -> VmSnapshot {
        VmSnapshot {
            name: "a".to_owned(),
            current: true,
            xml: format!(
                "<domainsnapshot>\n  <name>a</name>\n  <description>{description}</description>\n  \
                 <state>disk-snapshot</state>\n  <creationTime>77</creationTime>\n  <parent>\n    <name>b</name>\n  \
                 </parent>\n  {DOMAIN}\n  {inactive}\n</domainsnapshot>\n"
            ),
        }
    }

    #[test]
    fn what_libvirt_keeps_is_read() {
        let domain = Domain { snapshots: vec![one("made by gpuvm (1): nvram", "")], ..Domain::default() };
        let read = snapshots(&domain).unwrap().remove(0);
        assert!(read.ours && read.current && read.ran);
        assert_eq!((read.created, read.parent.as_deref()), (77, Some("b")));
        assert_eq!(read.parts, BTreeSet::from([Part::Nvram]));
        assert_eq!(read.files().collect::<Vec<_>>(), [Path::new("/srv/tiny-0.qcow2")]);
        assert_eq!(read.definition, DOMAIN.replace("\n  ", "\n") + "\n", "as a definition stands alone");
        let place = |p: Part| p.place(&read.definition, "u").unwrap();
        assert_eq!(place(Part::Nvram), Path::new("/var/lib/libvirt/qemu/nvram/tiny_VARS.fd"));
        assert_eq!(place(Part::Tpm), Path::new("/var/lib/libvirt/swtpm/u/tpm2/tpm2-00.permall"));
        let named = "<nvram>/var/lib/libvirt/qemu/nvram/tiny_VARS.fd</nvram>";
        let unnamed = read.definition.replace("<os>", "<os firmware='efi'>").replace(named, "");
        assert_eq!(Part::Nvram.place(&unnamed, "u").unwrap(), place(Part::Nvram), "where libvirt makes it");
        assert_eq!(Part::Nvram.place(&unnamed.replace("efi", "bios"), "u"), None);
        // Of a VM that ran, the definition for its next start counts.
        let inactive = DOMAIN.replace("<domain", "<inactiveDomain").replace("</domain", "</inactiveDomain");
        let both = Domain { snapshots: vec![one("mine", &inactive.replace("tiny-0", "other"))], ..Domain::default() };
        let read = snapshots(&both).unwrap().remove(0);
        assert!(!read.ours && read.definition.contains("/srv/other.qcow2"), "{}", read.definition);
    }

    #[test]
    fn one_that_is_made_is_known_again() {
        let name = "x".parse().unwrap();
        let text = xml(&name, &BTreeSet::from(Part::ALL), &[("vda".into(), "/srv/a&b".into())], &["sda".into()]);
        let text = text.replace("</domainsnapshot>", &format!("{DOMAIN}</domainsnapshot>"));
        let made = VmSnapshot { name: "x".into(), current: false, xml: text };
        let read = read(&made).unwrap();
        assert!(read.ours && read.parts.len() == 2);
    }
}
