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
    let (on_blocks, mut doubts) = blocks(probe, pci);
    for (address, what) in on_blocks.into_iter().chain(links(probe)) {
        if let Some(function) = pci.get_mut(&address) {
            function.carries.insert(what);
        }
    }
    for function in pci.values_mut().filter(|f| f.is_management()) {
        function.carries.insert(Carries::Bmc);
    }
    // A storage controller whose use could not be told at all counts as in use.
    let mounts = text(probe, MOUNTS);
    let pools = mounts.lines().any(|l| l.split_once(" - ").is_some_and(|(_, rest)| rest.starts_with("zfs ")))
        || names(probe, BLOCK).iter().any(|n| is_numbered(n, "zd"));
    let members = pci.values().any(|f| f.carries.contains(&Carries::Array("zfs_member".to_owned())));
    if pools && !members {
        doubts.insert("ZFS is in use, and which disks are in its pools is not known".to_owned());
    }
    for function in pci.values_mut().filter(|f| f.class >> 16 == 0x01) {
        function.carries.extend(doubts.iter().cloned().map(Carries::Unknown));
    }
}

const BLOCK: &str = "/sys/class/block";
const MOUNTS: &str = "/proc/self/mountinfo";

/// Every PCI function in the real path of a device in sysfs: the one that it hangs on and what is above that. Not bridges
/// alone are above: disks behind Intel's VMD are below a controller that can be given away itself.
fn functions_in(path: &Path) -> BTreeSet<PciAddress> {
    path.iter().filter_map(|part| part.to_string_lossy().parse().ok()).collect()
}

/// The PCI functions that a block device hangs on, by its link in sysfs. With the kernel's NVMe multipath a disk is below
/// its subsystem and on every controller of that (drivers/nvme/host/core.c: `nvme_init_subsystem` links them there).
fn functions_of(probe: &dyn Probe, link: &str) -> BTreeSet<PciAddress> {
    let real = |link: &str| probe.link(Path::new(link)).ok().and_then(Answer::value).unwrap_or_default();
    let path = real(link);
    let mut parts = path.iter().map(|part| part.to_string_lossy());
    let Some(subsystem) = parts.find(|p| p == "nvme-subsystem").and_then(|_| parts.next()) else {
        return functions_in(&path);
    };
    let folder = format!("/sys/class/nvme-subsystem/{subsystem}");
    names(probe, &folder).iter().flat_map(|name| functions_in(&real(&format!("{folder}/{name}")))).collect()
}

/// Where the host keeps what it runs from: these have to lead to a controller, or none is known to be free.
const NEEDED: [&str; 6] = ["/", "/boot", "/boot/efi", "/efi", "/usr", "/var"];

/// File systems on no disk of this host's: of other machines, or of memory.
const NO_DISK: [&str; 8] = ["nfs", "nfs4", "ceph", "cifs", "smb3", "tmpfs", "ramfs", "rootfs"];

/// Block devices that are a file's, memory's or another machine's. As a mere mount (a snap, an image) they are nobody's
/// controller; what the host runs from is not followed through them.
const OF_NO_DISK: [&str; 5] = ["loop", "ram", "zram", "nbd", "rbd"];

/// A block device in use.
struct Use {
    /// Its name in /sys/class/block.
    name: String,
    what: Carries,
    /// Whether it has to lead to a controller: then it is a doubt where it does not.
    needed: bool,
}

/// Block devices in use with the functions below them, through device-mapper, md, bcache and NVMe subsystems; and what
/// is in use without a function that is known.
fn blocks(
    probe: &dyn Probe,
    pci: &BTreeMap<PciAddress, PciFunction>,
) -> (Vec<(PciAddress, Carries)>, BTreeSet<String>) {
    let all = names(probe, BLOCK);
    let (mut uses, mut doubts) = mounted(probe, &all);
    for line in text(probe, "/proc/swaps").lines().skip(1) {
        if let Some(path) = line.split_whitespace().next().filter(|p| p.starts_with("/dev/")) {
            let name = named(probe, path, &all).unwrap_or_else(|| path.to_owned());
            uses.push(Use { what: Carries::Swap(name.clone()), name, needed: true });
        }
    }
    // File systems over several devices are mounted from one of them; sysfs has all (fs/btrfs/sysfs.c in the kernel).
    const BTRFS: &str = "/sys/fs/btrfs";
    let array = |name: String, of: &str| Use { name, what: Carries::Array(of.to_owned()), needed: true };
    for id in names(probe, BTRFS) {
        uses.extend(names(probe, &format!("{BTRFS}/{id}/devices")).into_iter().map(|name| array(name, "btrfs")));
    }
    for name in &all {
        for holder in names(probe, &format!("{BLOCK}/{name}/holders")) {
            uses.push(array(name.clone(), &holder));
        }
        let dev = text(probe, &format!("{BLOCK}/{name}/dev"));
        let udev = text(probe, &format!("/run/udev/data/b{}", dev.trim()));
        // Of bcache, the fast device is in no list of the disk above it, and has what was not written back yet.
        let member = |kind: &&str| kind.ends_with("_member") || *kind == "bcache";
        if let Some(kind) = udev.lines().find_map(|l| l.strip_prefix("E:ID_FS_TYPE=")).filter(member) {
            uses.push(array(name.clone(), kind));
        }
    }
    let mut on = Vec::new();
    for used in uses {
        let known = |found: &BTreeSet<PciAddress>| found.iter().any(|a| pci.get(a).is_some_and(|f| !f.is_bridge()));
        for (part, found) in parts(probe, &used.name, &all) {
            if used.needed && !known(&found) {
                doubts.insert(format!("{} is on {part}, and which controller that is on is not known", used.what));
            }
            let functions = found.into_iter().filter(|a| pci.get(a).is_some_and(|f| !f.is_bridge()));
            on.extend(functions.map(|address| (address, used.what.clone())));
        }
    }
    (on, doubts)
}

/// What is mounted from block devices; and the file systems that the host needs and that are on none that is known.
fn mounted(probe: &dyn Probe, all: &[String]) -> (Vec<Use>, BTreeSet<String>) {
    let number: BTreeMap<String, &str> =
        all.iter().map(|n| (text(probe, &format!("{BLOCK}/{n}/dev")).trim().to_owned(), n.as_str())).collect();
    let (mut uses, mut doubts) = (Vec::new(), BTreeSet::new());
    let mounts = text(probe, MOUNTS);
    if mounts.is_empty() {
        doubts.insert(format!("{MOUNTS} could not be read"));
    }
    // mountinfo(5): the third field is major:minor, the fifth the mount point; behind the dash type and source.
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(dev), Some(point)) = (fields.get(2), fields.get(4)) else { continue };
        let mut rest = line.split_once(" - ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        let (kind, source) = (rest.next().unwrap_or_default(), rest.next().unwrap_or_default());
        let needed = NEEDED.contains(point);
        let what = Carries::Mount(PathBuf::from(point));
        // btrfs and bcachefs give an anonymous number; their source names the devices.
        let names: Vec<String> = match number.get(*dev) {
            Some(name) => vec![(*name).to_owned()],
            None => source.split(':').filter_map(|path| named(probe, path, all)).collect(),
        };
        if names.is_empty() {
            // ZFS is looked at by its members.
            if needed && kind != "zfs" && !NO_DISK.contains(&kind) {
                doubts.insert(format!("{what} is {kind}, and which controller that is on is not known"));
            }
        }
        uses.extend(names.into_iter().map(|name| {
            let of_zfs = is_numbered(&name, "zd");
            let needed = !of_zfs && (needed || !OF_NO_DISK.iter().any(|of| is_numbered(&name, of)));
            Use { name, what: what.clone(), needed }
        }));
    }
    (uses, doubts)
}

/// `loop0`, `nbd1p2`.
fn is_numbered(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The name in /sys/class/block that a path of /dev means: itself, a mapping by its name, or where a link leads.
fn named(probe: &dyn Probe, path: &str, all: &[String]) -> Option<String> {
    let name = path.strip_prefix("/dev/")?;
    let is = |name: &str| all.iter().find(|a| *a == name).cloned();
    let mapping = |wanted: &str| {
        let mut mapped = all.iter().filter(|n| is_numbered(n, "dm-"));
        mapped.find(|n| text(probe, &format!("{BLOCK}/{n}/dm/name")).trim() == wanted).cloned()
    };
    is(name).or_else(|| name.strip_prefix("mapper/").and_then(mapping)).or_else(|| {
        let target = probe.link(Path::new(path)).ok().and_then(Answer::value)?;
        is(&target.file_name()?.to_string_lossy())
    })
}

/// What a block device consists of in the end, each with the functions that it is on: a mapped one is on its parts
/// (`slaves`), a partition on its disk, swap in compressed memory on the device that it is written out to.
fn parts(probe: &dyn Probe, name: &str, all: &[String]) -> Vec<(String, BTreeSet<PciAddress>)> {
    let (mut seen, mut todo, mut ends) = (BTreeSet::new(), vec![name.to_owned()], Vec::new());
    while let Some(name) = todo.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let at = format!("{BLOCK}/{name}");
        // /sys/block/zramN/backing_dev (zram.rst in the kernel's documentation): `none`, or a path.
        let backing = text(probe, &format!("{at}/backing_dev"));
        let below: Vec<String> =
            names(probe, &format!("{at}/slaves")).into_iter().chain(named(probe, backing.trim(), all)).collect();
        let functions = functions_of(probe, &at);
        let link = probe.link(at.as_ref()).ok().and_then(Answer::value).unwrap_or_default();
        let disk = link.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        match disk.filter(|disk| functions.is_empty() && all.contains(disk)) {
            Some(disk) => todo.push(disk),
            // Memory.
            None if below.is_empty() && is_numbered(&name, "zram") && backing.trim() == "none" => {}
            None if below.is_empty() || !functions.is_empty() => ends.push((name, functions)),
            None => {}
        }
        todo.extend(below);
    }
    ends
}

/// Network links that are up: whichever of them the host is reached on, none of them is given away.
fn links(probe: &dyn Probe) -> Vec<(PciAddress, Carries)> {
    let up = |n: &String| text(probe, &format!("/sys/class/net/{n}/operstate")).trim() != "down";
    let function = |n: String| {
        let path = probe.link(format!("/sys/class/net/{n}").as_ref()).ok().and_then(Answer::value)?;
        let address = path.iter().rev().find_map(|part| part.to_string_lossy().parse().ok())?;
        Some((address, Carries::Uplink(n)))
    };
    names(probe, "/sys/class/net").into_iter().filter(up).filter_map(function).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::facts;
    use crate::host::fixture::{Fixture, Record};

    /// A machine with two NVMe controllers, an HBA and a SATA controller that nothing uses.
    struct Played(tempfile::TempDir);

    const NVME: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];
    const HBA: &str = "0000:03:00.0";
    const SPARE: &str = "0000:04:00.0";

    impl Played {
        fn new(mounts: &str) -> Self {
            let played = Self(tempfile::tempdir().unwrap());
            for (address, class) in [(NVME[0], "010802"), (NVME[1], "010802"), (HBA, "010700"), (SPARE, "010601")] {
                let at = format!("/sys/devices/pci0000:00/0000:00:1b.0/{address}");
                for (name, value) in [("class", class), ("vendor", "8086"), ("device", "0001")] {
                    played.file(&format!("{at}/{name}"), &format!("0x{value}\n"));
                }
                played.link(&format!("/sys/bus/pci/devices/{address}"), &at);
            }
            played.file(MOUNTS, mounts);
            Record::default().save(&played.0.path().join(Record::NAME)).unwrap();
            played
        }
        fn at(&self, path: &str) -> PathBuf {
            let at = self.0.path().join("root").join(path.trim_start_matches('/'));
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            at
        }
        fn file(&self, path: &str, content: &str) {
            std::fs::write(self.at(path), content).unwrap();
        }
        fn link(&self, path: &str, target: &str) {
            std::os::unix::fs::symlink(target, self.at(path)).unwrap();
        }
        /// A block device at this path in sysfs, with its number.
        fn block(&self, at: &str, dev: &str) {
            let name = at.rsplit('/').next().unwrap();
            self.file(&format!("{at}/dev"), &format!("{dev}\n"));
            self.link(&format!("/sys/class/block/{name}"), at);
        }
        /// A mapped one, over parts that are there.
        fn mapped(&self, name: &str, dev: &str, parts: &[&str]) {
            self.block(&format!("/sys/devices/virtual/block/{name}"), dev);
            for part in parts {
                let (slave, holder) = (format!("slaves/{part}"), format!("holders/{name}"));
                self.link(&format!("/sys/devices/virtual/block/{name}/{slave}"), &format!("/sys/class/block/{part}"));
                let part = std::fs::read_link(self.at(&format!("/sys/class/block/{part}"))).unwrap();
                self.link(&format!("{}/{holder}", part.display()), &format!("/sys/devices/virtual/block/{name}"));
            }
        }
        /// The disk of an NVMe subsystem with these controllers, and a partition on it.
        fn multipath(&self, controllers: &[&str]) {
            let subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0";
            self.link("/sys/class/nvme-subsystem/nvme-subsys0", subsystem);
            for (n, address) in controllers.iter().enumerate() {
                let controller = format!("/sys/devices/pci0000:00/0000:00:1b.0/{address}/nvme/nvme{n}");
                self.file(&format!("{controller}/state"), "live\n");
                self.link(&format!("{subsystem}/nvme{n}"), &controller);
            }
            self.block(&format!("{subsystem}/nvme0n1"), "259:0");
            self.block(&format!("{subsystem}/nvme0n1/nvme0n1p2"), "259:2");
        }
        fn hba(&self, name: &str, dev: &str) {
            self.block(&format!("/sys/devices/pci0000:00/0000:00:1b.0/{HBA}/host0/block/{name}"), dev);
        }
        /// What each function carries, and what nobody knows of the spare one.
        fn carried(&self) -> BTreeMap<String, Vec<String>> {
            let facts = facts::collect(&Fixture::open(self.0.path()).unwrap());
            let told = |f: &PciFunction| f.carries.iter().map(ToString::to_string).collect::<Vec<_>>();
            facts.pci.values().map(|f| (f.address.to_string(), told(f))).filter(|(_, c)| !c.is_empty()).collect()
        }
    }

    fn root_on(dev: &str, rest: &str) -> String {
        format!("30 1 {dev} / / rw - {rest} rw\n31 30 0:5 / /proc rw - proc proc rw\n")
    }

    fn all(addresses: &[&str], what: &[&str]) -> BTreeMap<String, Vec<String>> {
        addresses.iter().map(|a| ((*a).to_owned(), what.iter().map(|w| (*w).to_owned()).collect())).collect()
    }

    #[test]
    fn a_disk_of_nvme_multipath_is_on_every_controller_of_its_subsystem() {
        let host = Played::new(&root_on("259:2", "ext4 /dev/nvme0n1p2"));
        host.multipath(&NVME[..1]);
        assert_eq!(host.carried(), all(&NVME[..1], &["the file system /"]));
        let host = Played::new(&root_on("259:2", "ext4 /dev/nvme0n1p2"));
        host.multipath(&NVME);
        assert_eq!(host.carried(), all(&NVME, &["the file system /"]), "each of them carries it");
    }

    #[test]
    fn what_is_mapped_over_it_leads_there_too() {
        for (name, device) in [("dm-0", "/dev/mapper/vg-root"), ("md127", "/dev/md127"), ("bcache0", "/dev/bcache0")] {
            let host = Played::new(&root_on("253:0", &format!("ext4 {device}")));
            host.multipath(&NVME);
            host.mapped(name, "253:0", &["nvme0n1p2"]);
            let array = format!("the array {name}");
            assert_eq!(host.carried(), all(&NVME, &["the file system /", &array]), "{name}");
        }
        // btrfs has a number of its own, and names the mapping; md has partitions, which have no parts of their own.
        let host = Played::new(&root_on("0:31", "btrfs /dev/mapper/luks-root"));
        host.multipath(&NVME[..1]);
        host.mapped("dm-3", "253:3", &["nvme0n1p2"]);
        host.file("/sys/devices/virtual/block/dm-3/dm/name", "luks-root\n");
        assert_eq!(host.carried(), all(&NVME[..1], &["the file system /", "the array dm-3"]));
        let host = Played::new(&root_on("259:9", "ext4 /dev/md0p1"));
        host.hba("sda", "8:0");
        host.mapped("md0", "9:0", &["sda"]);
        host.block("/sys/devices/virtual/block/md0/md0p1", "259:9");
        assert_eq!(host.carried(), all(&[HBA], &["the file system /", "the array md0"]));
        // The fast device of bcache is in no list of the disk above it.
        let host = Played::new(&root_on("8:0", "ext4 /dev/sda"));
        host.hba("sda", "8:0");
        host.multipath(&NVME[..1]);
        host.file("/run/udev/data/b259:2", "E:ID_FS_TYPE=bcache\n");
        assert_eq!(host.carried()[NVME[0]], ["the array bcache"]);
    }

    #[test]
    fn a_controller_behind_another_is_carried_with_it() {
        let host = Played::new(&root_on("259:0", "ext4 /dev/nvme0n1"));
        host.block(
            &format!("/sys/devices/pci0000:00/0000:00:1b.0/{HBA}/pci10000:e0/10000:e1:00.0/nvme/nvme0/nvme0n1"),
            "259:0",
        );
        assert_eq!(host.carried(), all(&[HBA], &["the file system /"]));
    }

    #[test]
    fn what_the_host_runs_from_and_leads_nowhere_keeps_every_storage_controller() {
        let doubted = |host: &Played| {
            let carried = host.carried();
            let every: Vec<&str> = NVME.into_iter().chain([HBA, SPARE]).collect();
            assert_eq!(carried.keys().collect::<Vec<_>>(), every, "{carried:?}");
            carried[SPARE].join("; ")
        };
        let said = |what: &str| format!("what is not known ({what}, and which controller that is on is not known)");
        for (name, at) in [
            ("loop0", "/sys/devices/virtual/block/loop0"),
            ("nbd0", "/sys/devices/virtual/block/nbd0"),
            ("sdb", "/sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sdb"),
            ("vda", "/sys/devices/platform/a003e00.virtio_mmio/virtio0/block/vda"),
        ] {
            let host = Played::new(&root_on("7:0", &format!("ext4 /dev/{name}")));
            host.block(at, "7:0");
            assert_eq!(doubted(&host), said(&format!("the file system / is on {name}")));
        }
        // Half of an array counts too, and so do /boot, swap, and a subsystem whose controllers are not told.
        let host = Played::new(&root_on("9:0", "ext4 /dev/md0"));
        host.hba("sda", "8:0");
        host.block("/sys/devices/virtual/block/nbd0", "43:0");
        host.mapped("md0", "9:0", &["sda", "nbd0"]);
        assert_eq!(host.carried()[HBA][0], "the file system /");
        let what = [said("the array md0 is on nbd0"), said("the file system / is on nbd0")];
        assert_eq!(doubted(&host), what.join("; "));
        let host = Played::new(&(root_on("8:0", "ext4 /dev/sda") + "40 30 7:0 / /boot rw - ext4 /dev/loop0 rw\n"));
        host.hba("sda", "8:0");
        host.block("/sys/devices/virtual/block/loop0", "7:0");
        assert_eq!(doubted(&host), said("the file system /boot is on loop0"));
        let host = Played::new(&root_on("8:0", "ext4 /dev/sda"));
        host.hba("sda", "8:0");
        host.block("/sys/devices/virtual/block/drbd0", "147:0");
        host.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/drbd0 partition 1 0 -2\n");
        assert_eq!(doubted(&host), said("swap (drbd0) is on drbd0"));
        let host = Played::new(&root_on("259:2", "ext4 /dev/nvme0n1p2"));
        host.multipath(&[]);
        assert_eq!(doubted(&host), said("the file system / is on nvme0n1"));
        let host = Played::new(&root_on("0:40", "overlay overlay"));
        assert_eq!(doubted(&host), said("the file system / is overlay"));
    }

    #[test]
    fn what_is_on_no_disk_of_the_host_keeps_nothing() {
        // A root of another machine's, a snap, memory for swap.
        let mounts = root_on("0:40", "nfs4 server:/root") + "40 30 7:0 / /snap/core/1 ro - squashfs /dev/loop0 ro\n";
        let host = Played::new(&mounts);
        host.block("/sys/devices/virtual/block/loop0", "7:0");
        host.block("/sys/devices/virtual/block/zram0", "252:0");
        host.file("/sys/devices/virtual/block/zram0/backing_dev", "none\n");
        host.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100\n");
        assert_eq!(host.carried(), BTreeMap::new());
        // Compressed memory that is written out is on a disk.
        host.hba("sda", "8:0");
        host.file("/sys/devices/virtual/block/zram0/backing_dev", "/dev/sda\n");
        assert_eq!(host.carried(), all(&[HBA], &["swap (zram0)"]));
    }
}
