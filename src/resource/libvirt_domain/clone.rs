//! The definition of a VM as that of another one: what may be there once only is another's or gone, every other byte stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use roxmltree::{Document, Node};

use super::drives::{Source, source};
use super::read::{child, children, devices, function};
use super::splice::Edits;
use crate::types::{DomainName, MacAddress, PciSlot, Splice, splice};

/// What of a clone is its own.
#[derive(Debug, Clone)]
pub struct Clone<'a> {
    /// Its name.
    pub name: &'a DomainName,
    /// The addresses of its network cards, in the order of the definition.
    pub macs: &'a [MacAddress],
    /// The file of its UEFI variables; libvirt makes one at its first start where there is none.
    pub nvram: Option<PathBuf>,
    /// The image that tells its guest what it is, in place of the other's.
    pub seed: Option<(PathBuf, PathBuf)>,
    /// Its disks by their targets; one that is not here is not in it.
    pub disks: &'a BTreeMap<String, PathBuf>,
    /// The passed devices that it has too.
    pub keeps: &'a BTreeSet<PciSlot>,
}

/// How many network cards a definition has.
pub fn cards(xml: &str) -> Result<usize, String> {
    let doc = Document::parse(xml).map_err(|e| e.to_string())?;
    Ok(devices(&doc, "interface").len())
}

/// What makes the definition of a clone from that of the other: no plan has all that is in it.
pub fn as_clone(xml: &str, own: &Clone<'_>) -> Result<Vec<Splice>, String> {
    let doc = Document::parse(xml).map_err(|e| e.to_string())?;
    let root = doc.root_element();
    let mut edits = Edits::new(xml);
    edits.text(child(root, "name").ok_or("it has no <name>")?, own.name.as_str());
    // libvirt gives it one of its own.
    children(root, "uuid").for_each(|n| edits.remove(n));
    let os = child(root, "os").ok_or("it has no <os>")?;
    for nvram in children(os, "nvram") {
        match &own.nvram {
            Some(path) => edits.text(nvram, &path.to_string_lossy()),
            None => edits.remove(nvram),
        }
    }
    // The firmware tells the guest the number that the VM has: libvirt refuses another one.
    let entries = root.descendants().filter(|n| n.has_tag_name("entry") && n.attribute("name") == Some("uuid"));
    entries.for_each(|n| edits.remove(n));
    children(root, "genid").for_each(|n| edits.remove(n));
    for (card, mac) in devices(&doc, "interface").into_iter().zip(own.macs) {
        match child(card, "mac") {
            Some(at) => edits.attribute(at, "address", &mac.to_string()),
            None => return Err("a network card of it has no address".to_owned()),
        }
    }
    for disk in devices(&doc, "disk") {
        one_disk(disk, own, &mut edits)?;
    }
    for hostdev in devices(&doc, "hostdev") {
        let kept = function(hostdev).is_some_and(|f| own.keeps.contains(&f.slot));
        if !kept {
            edits.remove(hostdev);
        }
    }
    // A socket or a file of the host's under a fixed name.
    for name in ["channel", "serial", "console", "parallel"] {
        for device in devices(&doc, name) {
            children(device, "source").filter(|s| s.attribute("path").is_some()).for_each(|s| edits.remove(s));
        }
    }
    let edits = edits.splices();
    let text = splice(xml, &edits).map_err(|e| e.to_string())?;
    Document::parse(&text).map_err(|e| e.to_string())?;
    Ok(edits)
}

fn one_disk(disk: Node<'_, '_>, own: &Clone<'_>, edits: &mut Edits<'_>) -> Result<(), String> {
    let target = child(disk, "target").and_then(|t| t.attribute("dev")).ok_or("a disk of it has no <target>")?;
    let media = matches!(disk.attribute("device"), Some("cdrom" | "floppy"));
    let file = child(disk, "source").and_then(|s| s.attribute("file")).map(PathBuf::from);
    if let Some(path) = own.disks.get(target) {
        let new: Source<'_> = (path, "qcow2");
        return source(disk, new.0, new.1, edits).ok_or_else(|| format!("its disk `{target}` is no file"));
    }
    match (&own.seed, file) {
        (Some((former, new)), Some(file)) if file == *former => {
            let at = child(disk, "source").ok_or("a drive of it has no <source>")?;
            edits.attribute(at, "file", &new.to_string_lossy());
        }
        // Media are read only, and may be in several drives.
        (_, Some(file)) if media && !file.to_string_lossy().ends_with("-seed.iso") => {}
        (_, None) if media => {}
        _ => edits.remove(disk),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_there_once_only_is_another_and_the_rest_stays() {
        let xml = "<domain type='kvm'>
  <name>desk</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata><gpuvm:vm xmlns:gpuvm='urn:gpuvm:vm:1'/></metadata>
  <os>
    <type>hvm</type>
    <nvram template='/usr/share/x.fd'>/var/lib/libvirt/qemu/nvram/desk_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/srv/desk-0.img'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/srv/photos.img'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/srv/desk-seed.iso'/>
      <target dev='sda' bus='sata'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/>
      <source bridge='br0'/>
    </interface>
    <hostdev mode='subsystem' type='pci'>
      <source><address domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></source>
    </hostdev>
    <hostdev mode='subsystem' type='pci'>
      <source><address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/></source>
    </hostdev>
    <tpm model='tpm-crb'><backend type='emulator'/></tpm>
  </devices>
</domain>
";
        let own = Clone {
            name: &"copy".parse().unwrap(),
            macs: &["52:54:00:00:00:02".parse().unwrap()],
            nvram: Some("/var/lib/libvirt/qemu/nvram/copy_VARS.fd".into()),
            seed: Some(("/srv/desk-seed.iso".into(), "/srv/copy-seed.iso".into())),
            disks: &BTreeMap::from([("vda".to_owned(), "/srv/copy-0.qcow2".into())]),
            keeps: &BTreeSet::from(["0000:03:00".parse().unwrap()]),
        };
        let text = splice(xml, &as_clone(xml, &own).unwrap()).unwrap();
        for gone in ["desk", "<uuid>", "photos", "0x02", "00:01'", "type='raw'"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
        for there in
            ["<name>copy</name>", "copy_VARS.fd", "copy-0.qcow2", "copy-seed.iso", "0x03", "urn:gpuvm:vm:1", "<tpm"]
        {
            assert!(text.contains(there), "{there}: {text}");
        }
        let lines: Vec<&str> = xml.lines().collect();
        let changed = text.lines().filter(|l| !lines.contains(l)).count();
        assert_eq!(changed, 6, "{text}");
        let without = splice(xml, &as_clone(xml, &Clone { nvram: None, seed: None, ..own }).unwrap()).unwrap();
        assert!(!without.contains("nvram") && !without.contains("seed.iso"), "{without}");
    }
}
