//! `HostFacts`: what is read of the machine and never changed. Plain data, collected by one pure parser a file; they
//! can come from a recorded directory in place of the machine.

mod addresses;
mod boot;
mod carries;
pub mod drivers;
mod firmware;
mod iommu;
mod libvirt;
mod network;
mod os;
pub(crate) mod packages;
mod pci;
mod users;

pub use drivers::{DriverFacts, LoadedModule};
pub use firmware::{SECURE_BOOT, SecureBoot, own_key_enrolled, secure_boot};
pub use iommu::{INTEL_IOMMU_ON, turns_iommu_off};
pub use libvirt::{Libvirt, LibvirtFacts};
pub use packages::packages;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

pub(crate) use os::arguments;

pub use network::{Address, Lease, Link, LinkKind, Manager, NetplanFile, NetworkFacts, Route};

use crate::host::{Answer, Myself, Probe};
use crate::types::{ByteSize, PciAddress, PciId, PciSlot, without_userinfo};

/// A fact, or the reason why it is not known. What is not known counts as unsafe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Known<T> {
    /// The fact.
    Value(T),
    /// Why it is not known ("not root", "libvirtd did not answer within 5 s").
    Unknown(String),
}

impl<T> Known<T> {
    /// The fact, where it is known.
    pub fn value(&self) -> Option<&T> {
        match self {
            Known::Value(value) => Some(value),
            Known::Unknown(_) => None,
        }
    }
}

/// Everything that was read of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFacts {
    /// Host name without domain.
    pub hostname: String,
    /// Distribution and release.
    pub os: Os,
    /// Processor and memory.
    pub cpu: Cpu,
    /// The running kernel and how it was started.
    pub kernel: Kernel,
    /// What starts the kernel, and with what.
    pub boot: Boot,
    /// Whether devices can be given to VMs.
    pub iommu: Iommu,
    /// Every PCI function, by address.
    pub pci: BTreeMap<PciAddress, PciFunction>,
    /// Links, addresses, routes, and who configures them.
    pub network: Known<NetworkFacts>,
    /// Installed packages, by name (`name:arch` for foreign architectures).
    pub packages: Known<BTreeMap<String, Package>>,
    /// libvirt, as far as it answers.
    pub libvirt: LibvirtFacts,
    /// Local groups with their members.
    pub groups: BTreeMap<String, Group>,
    /// Local users.
    pub users: BTreeMap<String, User>,
    /// Loaded (or built-in, where sysfs tells) kernel modules, with `_`.
    pub modules: BTreeSet<String>,
    /// What asked for a reboot, from /run/reboot-required.pkgs; empty where the file is absent.
    pub reboot_required: Option<Vec<String>>,
    /// Whether gpuvm runs as root; without it, some answers are `Unknown`.
    pub root: bool,
    /// What drivers need; looked at only where a manifest wants some ([`drivers::look`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drivers: Option<DriverFacts>,
    /// `FABRIC_MODE` of NVIDIA's Fabric Manager, where its configuration is there: 0 for the host itself, 1 for VMs that
    /// have whole GPUs, 2 for vGPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric_mode: Option<String>,
    /// The program that runs; looked at only where a manifest has it installed.
    #[serde(skip)]
    pub myself: Option<Known<Myself>>,
}

/// The host's name without domain, from hostname(5).
pub fn hostname(probe: &dyn Probe) -> String {
    os::text(probe, "/etc/hostname").trim().split('.').next().unwrap_or_default().to_owned()
}

/// Reads everything. Never fails: what could not be read is unknown, with the reason.
pub fn collect(probe: &dyn Probe) -> HostFacts {
    let kernel = os::kernel(probe);
    let packages = packages::packages(probe);
    let mut pci = pci::inventory(probe);
    carries::mark(probe, &mut pci);
    let status = os::text(probe, "/proc/self/status");
    HostFacts {
        hostname: hostname(probe),
        os: os::os(probe),
        cpu: os::cpu(probe),
        boot: boot::boot(probe, &packages),
        iommu: iommu::iommu(probe, &kernel),
        pci,
        network: network::network(probe),
        packages,
        libvirt: libvirt::libvirt(probe),
        groups: users::groups(&os::text(probe, "/etc/group")),
        users: users::users(&os::text(probe, "/etc/passwd")),
        modules: os::modules(probe, &kernel.release),
        reboot_required: match probe.text("/run/reboot-required.pkgs".as_ref()) {
            Ok(Answer::Value(list)) => Some(list.lines().map(str::to_owned).collect()),
            _ => os::exists(probe, "/run/reboot-required").then(Vec::new),
        },
        // proc_pid_status(5): real, effective, saved and file system user.
        root: status.lines().any(|l| l.strip_prefix("Uid:").is_some_and(|v| v.split_whitespace().nth(1) == Some("0"))),
        kernel,
        drivers: None,
        fabric_mode: fabric_mode(&os::text(probe, FABRIC_MANAGER)),
        myself: None,
    }
}

/// The configuration of NVIDIA's Fabric Manager, where its packages have it.
pub const FABRIC_MANAGER: &str = "/usr/share/nvidia/nvswitch/fabricmanager.cfg";

/// The last line that sets it counts. A file without one has the default of Fabric Manager, which is 0.
fn fabric_mode(text: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|l| l.trim().strip_prefix("FABRIC_MODE=").map(|v| v.trim().to_owned()));
    (!text.trim().is_empty()).then(|| lines.next_back().unwrap_or_else(|| "0".to_owned()))
}

/// Distribution and release, from os-release(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Os {
    /// `ID`: `ubuntu`, `debian`.
    pub id: String,
    /// `VERSION_ID`: `24.04`, `13`.
    pub version: String,
    /// `PRETTY_NAME`.
    pub name: String,
    /// dpkg's name of the architecture: `amd64`, `arm64`.
    pub arch: String,
}

/// Processor and memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// `GenuineIntel`, `AuthenticAMD`, …
    pub vendor: String,
    /// Model name.
    pub model: String,
    /// Logical processors.
    pub count: u32,
    /// The flag that makes KVM possible: `vmx`, `svm`; `None` where the processor or the firmware does not offer it.
    pub virtualisation: Option<String>,
    /// Whether /dev/kvm exists.
    pub kvm_device: bool,
    /// All of the memory (MemTotal).
    pub memory: ByteSize,
    /// The sizes of huge pages that the kernel has, with how many it keeps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub huge_pages: Vec<HugePages>,
    /// Its NUMA nodes, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NumaNode>,
}

/// Processors and memory that are near each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NumaNode {
    /// Its number.
    pub number: u32,
    /// Its processors; none on a node of memory alone.
    pub cpus: BTreeSet<u32>,
    /// All of its memory.
    pub memory: ByteSize,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HugePages {
    /// Of one page.
    pub size: ByteSize,
    /// How many the kernel keeps, used or not.
    pub total: u64,
    /// How many more it makes when somebody asks, where there is memory for them (`nr_overcommit_hugepages`).
    #[serde(skip_serializing_if = "is_zero")]
    pub more: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The running kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// /proc/cmdline, cut into arguments; quotes kept together.
    #[serde(serialize_with = "shown")]
    pub cmdline: Vec<String>,
}

/// Arguments of the kernel as they are shown: a URL among them (of an installer, of a root over the network) may hold a
/// password.
fn shown<S: serde::Serializer>(words: &[String], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(words.iter().map(|w| without_userinfo(w)))
}

/// What starts the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// The boot loader.
    pub loader: BootLoader,
    /// What makes the initramfs.
    pub initramfs: InitramfsTool,
    /// Whether the host was started by UEFI.
    pub uefi: bool,
}

/// The boot loader that the distribution's kernel updates write to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BootLoader {
    /// GRUB with /etc/default/grub and update-grub.
    Grub {
        /// `GRUB_CMDLINE_LINUX_DEFAULT` as the files in name order set it, without our own file; `None` where a file
        /// could not be evaluated without a shell.
        cmdline_default: Option<Vec<String>>,
        /// `GRUB_CMDLINE_LINUX` likewise, which the recovery entry has too.
        cmdline: Option<Vec<String>>,
        /// Every `*.cfg` of /etc/default/grub.d in name order, with whether it sets `GRUB_CMDLINE_LINUX_DEFAULT`.
        drop_ins: Vec<(PathBuf, bool)>,
    },
    /// GRUB without Debian's update-grub.
    GrubWithoutUpdate,
    /// systemd-boot, or kernel-install with /etc/kernel/cmdline.
    SystemdBoot,
    /// extlinux or U-Boot with an extlinux.conf.
    Extlinux,
    /// None that is known, with what was looked for.
    Unknown(String),
}

/// Which program makes the initramfs: the one that owns the tool, not the one that the release number suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitramfsTool {
    /// initramfs-tools (Debian 12 and 13, Ubuntu 24.04).
    InitramfsTools,
    /// dracut (Ubuntu 25.10 and later).
    Dracut,
    /// Neither is installed.
    None,
}

/// The state of the IOMMU, from the groups in sysfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Iommu {
    /// Groups exist.
    On {
        /// `intel`, `amd`, or the driver's name as sysfs tells.
        kind: String,
        /// The functions of each group.
        groups: BTreeMap<u32, Vec<PciAddress>>,
    },
    /// The firmware offers one (an ACPI DMAR or IVRS table) but the kernel does not use it.
    Off {
        /// Why, with the evidence: the argument on the command line that turned it off.
        why: String,
        /// What to do about it.
        help: String,
        /// The kernel argument that turns it on at the next boot, where one is known to.
        #[serde(skip_serializing_if = "Option::is_none")]
        argument: Option<String>,
    },
    /// The firmware offers none: a reboot does not help.
    Missing {
        /// What was looked for.
        why: String,
        /// The setting to look for.
        help: String,
    },
    /// It could not be told.
    Unknown(String),
}

/// What of the host a device carries. Such a device is never given away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Carries {
    /// The file system mounted here (`/`, `/boot`, …).
    Mount(PathBuf),
    /// Swap space.
    Swap(String),
    /// A member of a RAID, LVM or ZFS set in use, with its name.
    Array(String),
    /// The link that the default route goes through, or that the host was reached on.
    Uplink(String),
    /// The board's management controller.
    Bmc,
    /// It is not known what is on it, with the reason; counts as critical.
    Unknown(String),
}

impl std::fmt::Display for Carries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Carries::Mount(path) => write!(f, "the file system {}", path.display()),
            Carries::Swap(name) => write!(f, "swap ({name})"),
            Carries::Array(name) => write!(f, "the array {name}"),
            Carries::Uplink(link) => write!(f, "the uplink {link}"),
            Carries::Bmc => f.write_str("the management controller"),
            Carries::Unknown(why) => write!(f, "what is not known ({why})"),
        }
    }
}

/// One PCI function, from /sys/bus/pci/devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// The path of ports from the root (`pcie:1c.4/0`): root port device.function, then each bridge's, then the device.
    /// A root other than 0000:00 stands before it (`pcie:0000:80/1.1/0`).
    pub path: String,
    /// The bridge above it; `None` on a root.
    pub parent: Option<PciAddress>,
    /// The physical function, where this is a virtual one (SR-IOV). It is no part of the card that it shares a slot with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_of: Option<PciAddress>,
    /// What it says of virtual functions, where it can have any (SR-IOV).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sriov: Option<Sriov>,
    /// Class, subclass and programming interface (0x030000 for a VGA controller).
    pub class: u32,
    /// Vendor and device.
    pub id: PciId,
    /// Subsystem vendor and device.
    pub subsystem: Option<PciId>,
    /// Names from pci.ids where it is installed, else the ids.
    pub name: String,
    /// The bound driver.
    pub driver: Option<String>,
    /// `driver_override`, where one is set.
    pub driver_override: Option<String>,
    /// IOMMU group.
    pub group: Option<u32>,
    /// Whether the firmware used it as the boot display (`boot_vga`).
    pub boot_display: bool,
    /// The kernel's list of reset methods (`reset_method`); listed is not proven.
    pub reset_methods: Vec<String>,
    /// `D0`, `D3cold`, … (`power_state`)
    pub power_state: Option<String>,
    /// NUMA node, where there is more than one.
    pub numa_node: Option<u32>,
    /// The serial number that kernel or driver tell; read only while the device is awake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The UUID that NVIDIA's driver gives it, while that driver holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Which of these two are remembered, and told by nothing now.
    #[serde(skip_serializing_if = "Recalled::is_none")]
    pub recalled: Recalled,
    /// What of the host it carries.
    pub carries: BTreeSet<Carries>,
}

/// What of a card nothing tells now, and is remembered of when it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recalled {
    /// Its serial number.
    pub serial: bool,
    /// Its UUID.
    pub uuid: bool,
}

impl Recalled {
    /// Nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What a physical function says of its virtual ones (SR-IOV; Documentation/ABI/testing/sysfs-bus-pci in the kernel).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sriov {
    /// How many it can have (`sriov_totalvfs`).
    pub total: u16,
    /// How many are on (`sriov_numvfs`).
    pub now: u16,
    /// From its own routing id to that of the first (`sriov_offset`); `None` where the kernel does not tell.
    pub offset: Option<u16>,
    /// From each to the next (`sriov_stride`).
    pub stride: Option<u16>,
    /// Their device id (`sriov_vf_device`).
    pub device: Option<u16>,
    /// Those that are there, by their number (`virtfnN`).
    pub functions: BTreeMap<u16, PciAddress>,
}

impl Sriov {
    /// Where a virtual function is, or will be: routing ids are bus, device and function in 16 bits (PCI Express, SR-IOV:
    /// "VF Discovery"). A card may choose other places for another number of them, so what comes is compared with this.
    pub fn place(&self, physical: PciAddress, number: u16) -> Option<PciAddress> {
        if let Some(there) = self.functions.get(&number) {
            return Some(*there);
        }
        let slot = physical.slot;
        let own = u16::from(slot.bus) << 8 | u16::from(slot.device) << 3 | u16::from(physical.function);
        let id = own.checked_add(self.offset?)?.checked_add(self.stride?.checked_mul(number)?)?;
        let slot = PciSlot { domain: slot.domain, bus: (id >> 8) as u8, device: (id >> 3 & 31) as u8 };
        Some(slot.function((id & 7) as u8))
    }
}

impl PciFunction {
    /// A network card.
    pub fn is_network(&self) -> bool {
        self.class >> 16 == 0x02
    }
    /// Its path in sysfs with the bus numbers left open: root and ports, as `path` names them. A pattern of udev's and of
    /// the shell's alike. `None` where the path is not known.
    pub fn path_pattern(&self) -> Option<String> {
        let (_, rest) = self.path.split_once(':')?;
        let parts: Vec<&str> = rest.split('/').collect();
        let (root, ports) = match parts.split_first()? {
            (root, ports) if root.contains(':') => (*root, ports),
            _ => ("0000:00", parts.as_slice()),
        };
        let (domain, bus) = root.split_once(':')?;
        let mut path = format!("*/pci{root}");
        for (i, port) in ports.iter().enumerate() {
            let (device, function) = port.split_once('.').unwrap_or((port, ""));
            let device = u8::from_str_radix(device, 16).ok()?;
            let bus = if i == 0 { bus } else { "??" };
            let function = if i + 1 == ports.len() { self.address.function.to_string() } else { function.to_owned() };
            path += &format!("/{domain}:{bus}:{device:02x}.{function}");
        }
        Some(path)
    }
    /// Whether it is known to be awake: only then may it be asked anything that reaches the hardware.
    pub fn is_awake(&self) -> bool {
        self.power_state.as_deref() == Some("D0")
    }
    /// The model as it is sold (`GeForce RTX 4090`): what stands in brackets in pci.ids, else the whole name.
    pub fn model(&self) -> &str {
        let inside = self.name.split_once('[').and_then(|(_, rest)| rest.rsplit_once(']'));
        inside.map_or(self.name.as_str(), |(model, _)| model)
    }
    /// The switch of NVIDIA's baseboards (bridge, other), which its GPUs reach each other through.
    pub fn is_nvswitch(&self) -> bool {
        self.id.vendor == 0x10de && self.base_class() == 0x0680
    }
    /// A display that a hypervisor made up (virtio, QXL, Bochs, VMware, Cirrus): no GPU to give away.
    pub fn is_virtual_display(&self) -> bool {
        let id = (self.id.vendor, self.id.device);
        matches!(id, (0x1af4, 0x1050) | (0x1b36, 0x0100) | (0x1234, 0x1111) | (0x15ad, 0x0405) | (0x1013, 0x00b8))
    }
    /// Class and subclass (0x0300).
    pub fn base_class(&self) -> u16 {
        (self.class >> 8) as u16
    }
    /// A display controller: VGA 0300, 3D 0302, other display 0380.
    pub fn is_gpu(&self) -> bool {
        matches!(self.base_class(), 0x0300 | 0x0302 | 0x0380)
    }
    /// The display of a board's management controller (ASPEED 1a03, Matrox 102b): no GPU to give away.
    pub fn is_management(&self) -> bool {
        matches!(self.id.vendor, 0x1a03 | 0x102b)
    }
    /// A host bridge or a PCI bridge: stays on its driver and does not count as an endpoint of its group.
    pub fn is_bridge(&self) -> bool {
        matches!(self.base_class(), 0x0600 | 0x0604)
    }
}

impl HostFacts {
    /// The functions of a slot, in order.
    pub fn slot(&self, slot: PciSlot) -> impl Iterator<Item = &PciFunction> {
        self.pci.range(slot.function(0)..=slot.function(7)).map(|(_, f)| f)
    }
    /// The functions of a slot that are the card itself: without the virtual ones.
    pub fn card(&self, slot: PciSlot) -> impl Iterator<Item = &PciFunction> {
        self.slot(slot).filter(|f| f.virtual_of.is_none())
    }
    /// The endpoints of a group that are not in the slot and are no bridges.
    pub fn group_neighbours(&self, group: u32, slot: PciSlot) -> impl Iterator<Item = &PciFunction> {
        self.pci.values().filter(move |f| f.group == Some(group) && f.address.slot != slot && !f.is_bridge())
    }
    /// The IOMMU group that two functions are in, if that is one.
    pub fn shared_group(&self, a: PciAddress, b: PciAddress) -> Option<u32> {
        let group = |f: PciAddress| self.pci.get(&f)?.group;
        group(a).filter(|of_a| group(b) == Some(*of_a))
    }
    /// The state of a package: `None` where it is not installed or dpkg's status is not known.
    pub fn package(&self, name: &str) -> Option<&Package> {
        self.packages.value().and_then(|all| all.get(name)).filter(|p| p.installed)
    }
}

/// A package in dpkg's status file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// Version.
    pub version: String,
    /// `install ok installed`; other states are a package that dpkg was interrupted in, or left configuration.
    pub installed: bool,
    /// The third word of `Status`.
    pub status: String,
    /// The first word of `Status` is `hold`.
    pub held: bool,
}

/// A local group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its number.
    pub gid: u32,
    /// Users listed in /etc/group (not those whose primary group it is).
    pub members: BTreeSet<String>,
}

/// A local user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A display function in a slot of its own.
    pub(crate) fn display() -> PciFunction {
        PciFunction {
            address: PciAddress { slot: PciSlot { domain: 0, bus: 1, device: 0 }, function: 0 },
            path: "pcie:1.0/0".to_owned(),
            parent: None,
            virtual_of: None,
            sriov: None,
            class: 0x030000,
            id: PciId { vendor: 0x10de, device: 0x2684 },
            subsystem: None,
            name: "AD102 [GeForce RTX 4090]".to_owned(),
            driver: None,
            driver_override: None,
            group: None,
            boot_display: false,
            reset_methods: Vec::new(),
            power_state: None,
            numa_node: None,
            serial: None,
            uuid: None,
            recalled: Recalled::default(),
            carries: BTreeSet::new(),
        }
    }

    #[test]
    fn virtual_functions_are_where_the_card_says() {
        let physical: PciAddress = "0000:02:00.0".parse().unwrap();
        let mut sriov = Sriov { offset: Some(0x80), stride: Some(2), ..Sriov::default() };
        let place = |s: &Sriov, n| s.place(physical, n).map(|a| a.to_string());
        // Intel's 82576, by its datasheet and libvirt's node devices: 10.0, 10.2, …
        assert_eq!(place(&sriov, 0).unwrap(), "0000:02:10.0");
        assert_eq!(place(&sriov, 3).unwrap(), "0000:02:10.6");
        assert_eq!(place(&sriov, 4).unwrap(), "0000:02:11.0");
        assert_eq!(place(&sriov, 64).unwrap(), "0000:03:00.0", "on the next bus");
        sriov.functions.insert(3, "0000:02:1f.7".parse().unwrap());
        assert_eq!(place(&sriov, 3).unwrap(), "0000:02:1f.7", "what is there is not guessed");
        sriov.offset = Some(0xffff);
        assert_eq!(place(&sriov, 0), None, "beyond the last bus");
        sriov.stride = None;
        assert_eq!(place(&sriov, 1), None);
    }
}
