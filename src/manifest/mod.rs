//! `host.yaml`: what a person wants of one host. Version 1. Sections left out are not managed; unknown fields are
//! refused; names are keys of a map, so a name cannot be there twice.

mod defaults;
mod drivers;
mod guest_address;
mod load;
mod schema;
mod short;
mod validate;
mod yaml_de;
mod yaml_tree;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use defaults::Defaults;
pub use drivers::{
    ContainerRuntime, DriversSection, InKernelEntry, KernelModule, NvidiaEntry, PackageSource, RepositoryEntry,
};
pub use load::{Invalid, InvalidProblem, LoadError, Loaded, load, load_text, parse, parse_as, read, reload};
pub use schema::schema;
pub use short::{
    AptWord, CpuCount, CpuSet, CudaVersion, FilePath, Fingerprint, GivenDevice, Ip, IpWithPrefix, KernelArg, LvmGroup,
    LvmThinPool, Medium, MigProfile, ModuleName, NvidiaBranch, NvidiaVersion, Sha256Hex, Sha512Hex, SlotOrFunction,
    SshKey, UserName, VgpuType, WebAddress, WindowsLanguage, WindowsName, WordError, ZfsDataset,
};

use crate::types::{
    ByteSize, CardId, DomainName, HostName, InterfaceName, MacAddress, Mode, PackageName, PciId, Released,
    ResourceName, UnitName, UsbId,
};

/// The manifest of one GPU virtualisation host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The format of this file: 1.
    pub version: u32,
    /// The host that it is for; gpuvm refuses to run on another one. Left out, it runs anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// Packages to be installed beside those that other sections imply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageEntry>,
    /// Files, by absolute path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<FilePath, FileEntry>,
    /// systemd units, by name with suffix.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<UnitName, ServiceEntry>,
    /// Arguments that are appended to the kernel's command line, each as `name` or `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_args: Vec<KernelArg>,
    /// Kernel modules to be loaded now and at boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<ModuleName>,
    /// How the IOMMU is to be used. `use: vfio` implies that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu: Option<IommuSection>,
    /// libvirt itself: who may use it, and where disks are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<LibvirtSection>,
    /// GPUs, named once and used by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gpus: BTreeMap<ResourceName, DeviceEntry>,
    /// Other PCI devices (NVMe, HBA, NIC, USB controller), by the same rules.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<ResourceName, DeviceEntry>,
    /// Drivers for the GPUs that stay with the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drivers: Option<DriversSection>,
    /// The bridge that VMs share the host's network through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeSection>,
    /// Further networks for VMs, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<ResourceName, NetworkEntry>,
    /// Storage for disks, by name: used, never made or formatted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub storage: BTreeMap<ResourceName, StorageEntry>,
    /// Disk images that VMs are made from, by name, beside those that have a name anyway: `ubuntu-24.04` and any other
    /// release of Ubuntu's, `debian-12`, `debian-13`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<ResourceName, ImageEntry>,
    /// Virtual machines, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vms: BTreeMap<DomainName, VmEntry>,
    /// gpuvm itself on the host, under its own name and as `vmctl`. A manifest with GPUs, devices, VMs or libvirt has it
    /// installed also where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmctl: Option<VmctlSection>,
}

/// gpuvm itself on the host: `/usr/local/bin/gpuvm`, `/usr/local/bin/vmctl`, and what `vmctl create` takes where nothing
/// else is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmctlSection {
    /// Whether it is installed.
    #[serde(default = "yes")]
    pub install: bool,
    /// The manifest that new VMs are written into; where left out, the one of the first apply that had it installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<FilePath>,
    /// What new VMs are on: the bridge, or one of `networks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ResourceName>,
    /// Where their disks are: one of `storage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<ResourceName>,
    /// Who gets into them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<GuestUserEntry>,
}

fn yes() -> bool {
    true
}

/// A package: its name, or a mapping.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PackageEntry {
    /// The package.
    pub name: PackageName,
    /// Remove it where it is installed.
    #[serde(default)]
    pub absent: bool,
}

/// A file: where its content comes from (one of `content`, `source`, `template`), whose it is and what may read it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileEntry {
    /// The content itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// A file beside the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// A template beside the manifest (Jinja syntax; `host`, the host's name, and `vars` are known in it; undefined names
    /// are an error).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
    /// Values for the template.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vars: BTreeMap<String, String>,
    /// Owner; `root` where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group; `root` where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Permission bits in octal and in quotes; "0644" where left out, "0600" for a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The content is never shown in a plan, a log or a record.
    #[serde(default)]
    pub secret: bool,
    /// Replace a file that is there already and is not gpuvm's; the original is kept for undo.
    #[serde(default)]
    pub take_over: bool,
    /// The units to restart when the content changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<UnitName>,
}

/// A systemd unit. What is left out is not managed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    /// Whether it starts at boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether it runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<bool>,
}

/// How the IOMMU is to be used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IommuSection {
    /// `iommu=pt`: devices of the host are not translated, which is faster for them. Not needed to pass devices.
    #[serde(default)]
    pub passthrough: bool,
}

/// libvirt itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LibvirtSection {
    /// Users who may run VMs without being root: they get into the groups libvirt and kvm. That is close to being root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<UserName>,
    /// The directory of the default pool; /var/lib/libvirt/images where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PathBuf>,
    /// Which of libvirt's sockets is used.
    #[serde(default)]
    pub sockets: Sockets,
}

/// Which of libvirt's daemons is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Sockets {
    /// The one whose socket the host's packages bring.
    #[default]
    Auto,
    /// One daemon for everything: libvirtd.
    Monolithic,
    /// One daemon a driver: virtqemud and others.
    Modular,
}

/// A PCI device with what it is used for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceEntry {
    /// Which device: a slot (`"0000:02:00"`), or a mapping.
    #[serde(rename = "match")]
    pub matches: DeviceMatch,
    /// What it has to be; another card in that slot is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<DeviceExpect>,
    /// Whom it belongs to.
    #[serde(rename = "use")]
    pub usage: DeviceUse,
    /// With `use: vfio`: something else keeps it for VMs already (modprobe.d, a udev rule, driverctl). It is used, and
    /// the binding is not touched.
    #[serde(default)]
    pub existing: bool,
    /// With `use: shared`: what uses it on the host, a unit (`ollama.service`) or a container (`docker:comfyui`). What of it
    /// runs when a VM starts is stopped in this order, and started again when that VM has ended. Whatever else uses the
    /// GPU then keeps the VM from starting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub release: Vec<Released>,
    /// Of a device that shares itself in hardware (SR-IOV: network cards, NVMe, …) and that stays with the host: virtual
    /// functions, made at each boot. VMs list them as `NAME/0`, `NAME/1`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_functions: Option<VirtualFunctionsEntry>,
    /// Of an NVIDIA GPU that stays with the host and can be cut into instances (MIG: A100, A30, H100 and later): the profiles
    /// of the instances, as the card names them (`nvidia-smi mig -lgip`), one an instance. They are for containers, and are
    /// made again at each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub mig: Option<Vec<MigProfile>>,
    /// Of a card of NVIDIA's that stays with the host: vGPUs, made at each boot by NVIDIA's vGPU driver for KVM hosts, which
    /// you install. VMs list them as `NAME/0`, `NAME/1`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu: Option<VgpuEntry>,
    /// Of a GPU on a board with NVSwitches: its place there, as NVIDIA's driver tells it (`nvidia-smi -q`: GPU Module Id).
    /// Which GPUs may be one VM's goes by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub module_id: Option<u8>,
}

impl DeviceEntry {
    /// Whether two entries are two functions of one card, each of which shares itself: its ports.
    pub fn is_another_port(&self, other: &Self) -> bool {
        match (&self.virtual_functions, &other.virtual_functions) {
            (Some(a), Some(b)) => a.function != b.function,
            _ => false,
        }
    }
}

/// vGPUs of a card, all of one type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VgpuEntry {
    /// The type, as the card's own list names it (`NVIDIA A40-8Q`).
    #[serde(rename = "type")]
    pub vgpu_type: VgpuType,
    /// How many. The card tells how many of a type fit.
    #[schemars(range(min = 1))]
    pub count: u16,
}

/// Virtual functions of a device (SR-IOV).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualFunctionsEntry {
    /// How many. Another number of them later takes all of them away for a moment.
    #[schemars(range(min = 1))]
    pub count: u16,
    /// Whom they belong to.
    #[serde(rename = "use", default)]
    pub usage: VirtualUse,
    /// Of a card with several functions: which of them has the virtual ones. For two of them, such as a network card's ports,
    /// the card has two entries.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 7))]
    pub function: u8,
    /// Of a network card: the Ethernet addresses of the first of them, in order. The others have one that is made from the
    /// names of host and device, and stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub macs: Vec<MacAddress>,
}

fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// Whom virtual functions belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum VirtualUse {
    /// They are for VMs: on vfio-pci, and never on a driver of the host's.
    #[default]
    Vfio,
    /// The host has them, with their own driver.
    Host,
}

/// Which device is meant. Exactly one field is given. A match that fits several devices is an error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceMatch {
    /// The slot's address, with or without a function (`0000:02:00`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SlotOrFunction>,
    /// The path of ports (`pcie:1c.4/0`): survives renumbering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The model's name as `gpuvm gpu list` shows it (`RTX 4090`): the last words of it, whole ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Vendor and device id (`10de:2684`), with the subsystem's where that is needed (`10de:2684:1458:4104`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<CardId>,
    /// The serial number that kernel or driver tell while the card is awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The UUID that NVIDIA's driver gives it (`GPU-…`); known only while that driver holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// What a matched device has to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceExpect {
    /// Vendor and device id of the first function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<PciId>,
    /// Subsystem vendor and device id of the first function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<PciId>,
}

/// Whom a device belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DeviceUse {
    /// It stays with the host and its driver; a plan that would take it is refused.
    Host,
    /// It is kept for VMs: bound to vfio-pci from early boot.
    Vfio,
    /// A GPU that is the host's, with its own drivers, until a VM starts with it, and again when that VM has ended.
    Shared,
}

/// The bridge that VMs share the host's network through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BridgeSection {
    /// Its name.
    pub name: InterfaceName,
    /// The link that becomes its port: `auto` (the one with the default route), a name, or `{ mac: … }`.
    #[serde(default)]
    pub uplink: Uplink,
    /// Use a bridge that is there; touch nothing.
    #[serde(default)]
    pub existing: bool,
}

/// The link that becomes a bridge's port.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Uplink {
    /// The link with the default route.
    #[default]
    Auto,
    /// By name.
    Name(InterfaceName),
    /// By its permanent Ethernet address.
    Mac(MacAddress),
}

/// A further network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkEntry {
    /// A network that libvirt has (`default` is its NAT network).
    pub libvirt: ResourceName,
}

/// Storage for disks that a person made: used, never made, formatted or taken away. Exactly one field is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorageEntry {
    /// A directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// A volume group of LVM's; each disk is a logical volume `VM-N` in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lvm: Option<LvmGroup>,
    /// A thin pool of LVM's (`vg0/vms`); each disk is a thin volume `VM-N` of its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lvm_thin: Option<LvmThinPool>,
    /// A dataset of ZFS's (`tank/vms`); each disk is a volume `VM-N` below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zfs: Option<ZfsDataset>,
}

/// A disk image. One whose own name is not that of a built-in one says where it comes from: `from`, `url` or `path`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageEntry {
    /// A built-in image under another name, to have it in a version of its own. The medium of an installer may come by `url` or
    /// `path` beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ResourceName>,
    /// Its address. What it has to add up to is said by `sha256` or `sha512`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<WebAddress>,
    /// A file of the host's, which is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<FilePath>,
    /// For a built-in image: another server with the same tree (a mirror, one without a way out).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<WebAddress>,
    /// For a built-in image: this version of it (`20260814`, Debian: `20260811-2198`) in place of the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<ResourceName>,
    /// What it has to add up to, whatever a list or its signature says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Hex>,
    /// The same by the longer digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha512: Option<Sha512Hex>,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmEntry {
    /// Virtual processors: a number, `{ count: 8, pin: "4-11" }`, or as the guest is to see them:
    /// `{ sockets: 1, cores: 4, threads: 2 }`.
    pub cpus: Cpus,
    /// Memory: a size, or `{ size: 32GiB, pages: 1GiB }` for huge pages.
    pub memory: Memory,
    /// What its first disk begins as: a built-in image or one of `images`. It is fetched once, and stays what the disk was
    /// made from. From a medium of Ubuntu's installer (`ubuntu-24.04-desktop`), its system is installed onto a blank disk once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ResourceName>,
    /// Disks in order: a size, `{ size: 200GiB, pool: fast }`, or a device of the host's; each that is made is the volume `VM-N.qcow2` of its pool, N from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskEntry>,
    /// The user of its guest who gets in, with the keys that let in. Nobody has a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<GuestUserEntry>,
    /// What is made of an Ubuntu: a desktop, a driver for its NVIDIA card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ubuntu: Option<UbuntuEntry>,
    /// What cloud-init does more at the guest's first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInitEntry>,
    /// The bridge or one of `networks`; none where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NicEntry>,
    /// GPUs by their names in `gpus`; `NAME/0` is the first of its vGPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GivenDevice>,
    /// Other devices by their names in `devices`; `NAME/0` is the first of its virtual functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<GivenDevice>,
    /// What its guest is, where its machine has to be made for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestSystem>,
    /// With `guest: windows-11`: what its Setup is told. What is left out, Setup asks a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowsEntry>,
    /// CD-ROMs, read-only in drives of their own, such as an installer's and one with drivers: by path on the host, used and
    /// never fetched, or by the name of one of `images` with its `sha256`. A VM that is made with some boots from them where
    /// its disk has nothing to boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media: Vec<Medium>,
    /// What the VM boots with.
    #[serde(default)]
    pub firmware: Firmware,
    /// A TPM 2.0, emulated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tpm: bool,
    /// A screen for people, on the host's loopback: reach it through ssh, or with virt-manager.
    #[serde(default)]
    pub display: Display,
    /// USB devices of the host's by vendor and product (`046d:c52b`), wherever they are plugged in. One that is missing
    /// does not keep the VM from starting; one that is plugged in while it runs is there from its next start on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub usb: Vec<UsbId>,
    /// Folders of the host's, by virtiofs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<FolderEntry>,
    /// What the firmware tells the guest of its machine. Put in when the VM is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smbios: Option<Smbios>,
    /// Elements of libvirt's that no field has. Put in when the VM is made, and never for secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xml: Vec<XmlEntry>,
    /// Boot a kernel of the host's directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<DirectBoot>,
    /// Hardware virtualisation or emulation.
    #[serde(default)]
    pub accel: Accel,
    /// When it starts.
    #[serde(default)]
    pub start: StartWhen,
    /// VMs that have to run first: an apply starts them in this order, and with `start: boot` so does the host, by a unit of
    /// gpuvm's, for libvirt itself starts VMs in no order. What a person starts by hand waits for nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_after: Vec<DomainName>,
    /// Whether it has to run; where left out, one that a person stopped stays stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<VmState>,
    /// Take the VM's definition away; its disks stay.
    #[serde(default)]
    pub absent: bool,
}

/// A user of a guest's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestUserEntry {
    /// The name.
    pub name: UserName,
    /// Public keys of ssh's that let in: `file:alice.pub` beside the manifest, `file:/root/.ssh/id_ed25519.pub` on the
    /// host, `gh:NAME` and `gl:NAME` as GitHub and GitLab show them when the seed is made, or a key itself.
    pub ssh_keys: Vec<SshKey>,
}

/// What Windows' Setup is told, by an answer file on a CD-ROM of its own. No password is in the manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WindowsEntry {
    /// An administrator of its own. Needs `passwordFile`; without both, Windows asks for a user at its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// The user's password: the one line of a file of the host's, root's alone (0600), which is read when the CD-ROM is
    /// made. Whoever is in the guest can read it there as long as the CD-ROM is in its drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<FilePath>,
    /// The edition as the installer's medium names it (`Windows 11 Pro`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edition: Option<WindowsName>,
    /// You accept Microsoft's license terms; else Setup shows them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_license: bool,
    /// Language, formats and keyboard; a language that the medium has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<WindowsLanguage>,
    /// Windows' name of the time zone (`W. Europe Standard Time`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<WindowsName>,
    /// Remote Desktop is turned on, and let through Windows' firewall. The Home edition has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remote_desktop: bool,
}

/// What cloud-init does in a guest at its first boot, and only then.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudInitEntry {
    /// The guest's host name; the VM's name where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<HostName>,
    /// Packages, beside QEMU's guest agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageName>,
    /// Files, by absolute path. No plan, log or record shows what is in them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<FilePath, GuestFileEntry>,
    /// Commands for the shell, at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// More of cloud-init's own words (`#cloud-config`), merged over all this: maps are merged, lists are joined.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub user_data: serde_json::Map<String, serde_json::Value>,
    /// A higher one has cloud-init do it all once more in a guest that was set up already; 1 where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// What is made of an Ubuntu server image at its first boot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UbuntuEntry {
    /// Ubuntu's desktop: it takes half an hour and more, and ends with a reboot.
    #[serde(default)]
    pub desktop: bool,
    /// NVIDIA's driver of this branch (`"580"`), from Ubuntu's own archive, signed for secure boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvidia: Option<NvidiaBranch>,
    /// NVIDIA's kernel modules: `open` for cards from Turing on, and the only ones for Blackwell; `proprietary` for older.
    #[serde(default)]
    pub nvidia_modules: NvidiaModules,
}

/// Which of NVIDIA's kernel modules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NvidiaModules {
    /// For cards from Turing on.
    #[default]
    Open,
    /// For Maxwell to Volta, which end with branch 580.
    Proprietary,
}

/// A file of a guest's: one of `content` and `source`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestFileEntry {
    /// The content itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// A file beside the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// `user` or `user:group` of the guest's; `root` where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Permission bits in octal and in quotes; "0644" where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// Virtual processors of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cpus {
    /// How many; with `sockets`, `cores` or `threads` it may be left out.
    pub count: CpuCount,
    /// As the guest sees them: this many sockets; 1 where left out beside `cores` or `threads`. Without any of the three,
    /// each processor is a socket of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<CpuCount>,
    /// Cores of each socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<CpuCount>,
    /// Threads of each core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<CpuCount>,
    /// The host's processors that they run on: one each where there are as many, else all of them on all. Where left out,
    /// a VM with a GPU runs on those of its GPU's NUMA node, and any other on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<CpuSet>,
    /// The host's processors that QEMU's own work runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulator: Option<CpuSet>,
}

impl Cpus {
    /// Sockets, cores of each, threads of each core, where the manifest says any of them.
    pub fn topology(&self) -> Option<[u32; 3]> {
        let parts = [self.sockets, self.cores, self.threads];
        parts.iter().any(Option::is_some).then(|| parts.map(|p| p.map_or(1, |n| n.0)))
    }
}

/// A screen for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Display {
    /// None: there is always a serial console (`virsh console`).
    #[default]
    None,
    /// VNC.
    Vnc,
    /// SPICE.
    Spice,
}

/// A folder of the host's that a guest shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FolderEntry {
    /// The folder on the host: used, never made.
    pub path: FilePath,
    /// What the guest mounts it by: `mount -t virtiofs TAG /mnt`.
    pub tag: ResourceName,
}

/// What the firmware tells the guest of its machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Smbios {
    /// The maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The maker's number for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// The family of models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
}

impl Smbios {
    /// What is given, by libvirt's names.
    pub fn entries(&self) -> BTreeMap<String, String> {
        let all = [
            ("manufacturer", &self.manufacturer),
            ("product", &self.product),
            ("version", &self.version),
            ("serial", &self.serial),
            ("sku", &self.sku),
            ("family", &self.family),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect()
    }
}

/// An element of libvirt's definition of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct XmlEntry {
    /// The element that it goes into: `/domain`, `/domain/devices`.
    pub at: String,
    /// The element itself, or `file:NAME` beside the manifest.
    pub add: String,
}

impl XmlEntry {
    /// The file beside the manifest that it is in.
    pub fn beside(&self) -> Option<&std::path::Path> {
        self.add.strip_prefix("file:").map(std::path::Path::new)
    }
}

/// Memory of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    /// How much.
    pub size: ByteSize,
    /// Size of the huge pages that it is taken from: `2MiB` or `1GiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<ByteSize>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskEntry {
    /// What the guest sees. A disk grows; it is never shrunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// In place of `size`: a block device of the host's by its stable name (`/dev/disk/by-id/…`), with what is on it. It is
    /// a person's: never formatted, and it stays whatever becomes of the VM. One that the host or another VM uses is
    /// refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<FilePath>,
    /// One of `storage`; the default pool where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<ResourceName>,
    /// Use a volume of that name that is there already and is not gpuvm's, with what is on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// What the guest has it on; `virtio` where left out. Another one later is for a guest that has the driver for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<DiskBus>,
    /// How the host caches it (libvirt's words); QEMU's default where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<DiskCache>,
    /// What becomes of blocks that the guest says it no longer needs; `unmap` where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<DiskDiscard>,
}

/// What a guest has a disk on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskBus {
    /// virtio-blk: the fastest.
    Virtio,
    /// A disk of a virtio-scsi controller: as many as one likes, with the commands of SCSI.
    Scsi,
    /// SATA: for guests without drivers for virtio.
    Sata,
}

/// How the host caches a disk. What may lose what the guest has flushed is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskCache {
    /// Past the host's page cache.
    None,
    /// Through the page cache; the guest's flushes reach the disk.
    Writeback,
    /// Through the page cache, each write reaches the disk before the guest goes on.
    Writethrough,
    /// Past the page cache, each write reaches the disk before the guest goes on.
    Directsync,
}

/// What becomes of blocks that the guest says it no longer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskDiscard {
    /// The host has their room again.
    Unmap,
    /// Nothing.
    Ignore,
}

/// The network that a VM is on.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NicEntry {
    /// The bridge's name or one of `networks`.
    pub name: ResourceName,
    /// Its Ethernet address; made from host and VM name where left out, so that it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Its address with the length of the network's prefix (`192.168.1.50/24`), which cloud-init gives it; by DHCP where
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpWithPrefix>,
    /// With `address`: where packets go that are for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ip>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<Ip>,
}

/// A guest that its machine has to be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GuestSystem {
    /// Windows 11: secure boot, a TPM, what Windows knows of running in a VM, the host's local time; disks on SATA and an
    /// Intel card, which it has drivers for, where nothing else is said.
    #[serde(rename = "windows-11")]
    Windows11,
}

impl VmEntry {
    /// Whether its guest is Windows.
    pub fn is_windows(&self) -> bool {
        self.guest == Some(GuestSystem::Windows11)
    }
    /// Whether it has a TPM, by its own word or its guest's.
    pub fn has_tpm(&self) -> bool {
        self.tpm || self.is_windows()
    }
}

/// What a VM boots with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Firmware {
    /// UEFI (OVMF), as passed GPUs need it.
    #[default]
    Uefi,
    /// UEFI with secure boot and Microsoft's keys.
    #[serde(rename = "uefi-secure")]
    UefiSecure,
    /// SeaBIOS.
    Bios,
}

/// A kernel of the host's that a VM boots directly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectBoot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// Hardware virtualisation or emulation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Accel {
    /// KVM where the processor offers it; else a finding, and emulation.
    #[default]
    Auto,
    /// KVM; a host without it is refused.
    Kvm,
    /// Emulation: slow, works anywhere.
    Tcg,
}

/// When a VM starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StartWhen {
    /// With the host, and once when it is made.
    Boot,
    /// When a person starts it.
    #[default]
    Manual,
    /// Alias of `manual` that says that something else will ask for it.
    OnRequest,
}

/// Whether a VM has to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum VmState {
    /// It is started where it does not run.
    Running,
    /// It is asked to shut down where it runs.
    Stopped,
}
