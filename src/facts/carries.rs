//! What of the host each device carries: file systems, swap, members of arrays, links that are up, the BMC. A device
//! that carries anything is never given away; a doubt counts as carrying.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::os::{names, text};
use super::{Carries, PciFunction};
use crate::host::{Answer, Probe};
use crate::types::PciAddress;

/// Marks every function with what it carries.
pub(super) fn mark(probe: &dyn Probe, pci: &mut BTreeMap<PciAddress, PciFunction>) {
    for (address, what) in blocks(probe).into_iter().chain(links(probe)) {
        if let Some(function) = pci.get_mut(&address) {
            function.carries.insert(what);
        }
    }
    for function in pci.values_mut().filter(|f| f.is_management()) {
        function.carries.insert(Carries::Bmc);
    }
    // A storage controller whose use could not be told at all counts as in use.
    let mounts = text(probe, "/proc/self/mountinfo");
    let pools = mounts.lines().any(|l| l.split_once(" - ").is_some_and(|(_, rest)| rest.starts_with("zfs ")));
    let members = pci.values().any(|f| f.carries.contains(&Carries::Array("zfs_member".to_owned())));
    let doubt = match (mounts.is_empty(), pools && !members) {
        (true, _) => Some("/proc/self/mountinfo could not be read"),
        (_, true) => Some("ZFS is mounted, and which disks are in its pools is not known"),
        _ => None,
    };
    for function in pci.values_mut().filter(|f| f.class >> 16 == 0x01) {
        function.carries.extend(doubt.map(|why| Carries::Unknown(why.to_owned())));
    }
}

/// The last PCI function in the real path of a device in sysfs: the one that it hangs on.
fn function_of(probe: &dyn Probe, link: &str) -> Option<PciAddress> {
    let target = probe.link(Path::new(link)).ok().and_then(Answer::value)?;
    target.iter().rev().find_map(|part| part.to_string_lossy().parse().ok())
}

/// Block devices with the function below them, through device-mapper and md.
fn blocks(probe: &dyn Probe) -> Vec<(PciAddress, Carries)> {
    const BLOCK: &str = "/sys/class/block";
    let all = names(probe, BLOCK);
    let number: BTreeMap<String, &str> =
        all.iter().map(|n| (text(probe, &format!("{BLOCK}/{n}/dev")).trim().to_owned(), n.as_str())).collect();
    let mut uses: Vec<(String, Carries)> = Vec::new();
    // mountinfo(5): the third field is major:minor, the fifth the mount point, the last but one the source.
    for line in text(probe, "/proc/self/mountinfo").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(dev), Some(point)) = (fields.get(2), fields.get(4)) else { continue };
        let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1)).unwrap_or_default();
        // btrfs gives an anonymous number; its source names the device.
        let name =
            number.get(*dev).copied().or_else(|| source.strip_prefix("/dev/").filter(|n| all.iter().any(|a| a == n)));
        if let Some(name) = name {
            uses.push((name.to_owned(), Carries::Mount(PathBuf::from(point))));
        }
    }
    for line in text(probe, "/proc/swaps").lines().skip(1) {
        if let Some(name) = line.split_whitespace().next().and_then(|p| p.strip_prefix("/dev/")) {
            uses.push((name.to_owned(), Carries::Swap(name.to_owned())));
        }
    }
    // btrfs over several devices is mounted from one of them; sysfs has all (fs/btrfs/sysfs.c in the kernel).
    const BTRFS: &str = "/sys/fs/btrfs";
    for id in names(probe, BTRFS) {
        for name in names(probe, &format!("{BTRFS}/{id}/devices")) {
            uses.push((name, Carries::Array("btrfs".to_owned())));
        }
    }
    for name in &all {
        for holder in names(probe, &format!("{BLOCK}/{name}/holders")) {
            uses.push((name.clone(), Carries::Array(holder)));
        }
        let dev = text(probe, &format!("{BLOCK}/{name}/dev"));
        let udev = text(probe, &format!("/run/udev/data/b{}", dev.trim()));
        if let Some(kind) =
            udev.lines().find_map(|l| l.strip_prefix("E:ID_FS_TYPE=")).filter(|k| k.ends_with("_member"))
        {
            uses.push((name.clone(), Carries::Array(kind.to_owned())));
        }
    }
    uses.into_iter()
        .flat_map(|(name, what)| {
            let mut found = BTreeSet::new();
            functions_below(probe, &name, &mut BTreeSet::new(), &mut found);
            found.into_iter().map(move |a| (a, what.clone()))
        })
        .collect()
}

/// The functions that a block device is on; a mapped one is on those of its parts (`slaves`).
fn functions_below(probe: &dyn Probe, name: &str, seen: &mut BTreeSet<String>, found: &mut BTreeSet<PciAddress>) {
    if seen.insert(name.to_owned()) {
        found.extend(function_of(probe, &format!("/sys/class/block/{name}")));
        for part in names(probe, &format!("/sys/class/block/{name}/slaves")) {
            functions_below(probe, &part, seen, found);
        }
    }
}

/// Network links that are up: whichever of them the host is reached on, none of them is given away.
fn links(probe: &dyn Probe) -> Vec<(PciAddress, Carries)> {
    names(probe, "/sys/class/net")
        .into_iter()
        .filter(|n| text(probe, &format!("/sys/class/net/{n}/operstate")).trim() != "down")
        .filter_map(|n| Some((function_of(probe, &format!("/sys/class/net/{n}"))?, Carries::Uplink(n))))
        .collect()
}
