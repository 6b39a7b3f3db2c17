//! What is known of each GPU beyond the PCI inventory: memory, link, reset, who uses it, what is next to it. Looks only,
//! in one pass, and wakes nothing: what would reach a sleeping card is not read.

pub mod architecture;
mod busy;
mod holders;
pub mod identity;
pub mod mig;
pub mod nvswitch;
mod seen;
pub mod topology;
pub mod vfio_rule;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

pub use busy::Busy;
pub use holders::{Framebuffer, Holder, HolderKind, framebuffer};
pub use seen::{REFUSED, RefusedStart, SEEN, Seen, refused_starts, remembered};

use crate::facts::{HostFacts, PciFunction, Recalled};
use crate::host::{Answer, Probe};
use crate::resource::vgpu;
use crate::types::{PciAddress, PciId, PciSlot};

/// A GPU: a slot with its functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// Its slot.
    pub slot: PciSlot,
    /// The path of ports.
    pub path: String,
    /// The model as it is sold.
    pub model: String,
    /// Vendor and device of the display function.
    pub id: PciId,
    /// The subsystem's.
    pub subsystem: Option<PciId>,
    /// The serial number, where one was told without waking the card.
    pub serial: Option<String>,
    /// NVIDIA's UUID, where its driver holds the card.
    pub uuid: Option<String>,
    /// Which of these two are remembered, and told by nothing now.
    #[serde(skip_serializing_if = "Recalled::is_none")]
    pub recalled: Recalled,
    /// What it is among displays.
    pub kind: GpuKind,
    /// All functions of the slot.
    pub functions: Vec<Function>,
    /// The IOMMU groups of its functions.
    pub groups: BTreeSet<u32>,
    /// Other endpoints in these groups.
    pub shares: Vec<PciAddress>,
    /// Parts of the card that are in another slot (Arc's audio).
    pub elsewhere: Vec<PciAddress>,
    /// Whether the firmware used it as the boot display.
    pub boot_display: bool,
    /// NUMA node, where there are several.
    pub numa_node: Option<u32>,
    /// `D0`, `D3cold`, …
    pub power_state: Option<String>,
    /// How busy it is, where its driver tells that of a card that is awake.
    pub busy: Busy,
    /// Its link, where it is awake.
    pub link: Option<PciLink>,
    /// Its memory windows.
    pub bars: Vec<Bar>,
    /// How it can be reset.
    pub reset: Reset,
    /// Shared in hardware.
    pub sharing: Sharing,
    /// Who uses it.
    pub holders: Vec<Holder>,
    /// Why there may be other holders.
    pub hidden_holders: Option<String>,
}

/// What a display controller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum GpuKind {
    /// A GPU.
    Gpu,
    /// The display of a board's management controller.
    Management,
    /// Made up by a hypervisor.
    Virtual,
}

/// One function of the slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// What it is: `display`, `audio`, `usb`, …
    pub role: &'static str,
    /// Vendor and device.
    pub id: PciId,
    /// From pci.ids, else the ids.
    pub name: String,
    /// The bound driver.
    pub driver: Option<String>,
}

/// A PCI Express link, as the kernel words it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PciLink {
    /// `16.0 GT/s PCIe`
    pub speed: String,
    /// Lanes.
    pub width: String,
    /// What the card can do.
    pub most_speed: String,
    /// Likewise.
    pub most_width: String,
}

impl PciLink {
    /// Registers of a card that does not answer read as ones: no speed, and 63 lanes.
    pub fn is_dead(&self) -> bool {
        self.width == "63" || self.most_width == "255"
    }
}

/// A memory window of a function (`resource` in sysfs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bar {
    /// Which function.
    pub function: PciAddress,
    /// 0 to 5.
    pub number: usize,
    /// First address; 0 where none was given.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Whether it is placed by 64 bits.
    pub wide: bool,
}

/// How a GPU can be reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reset {
    /// The kernel's list for the display function; `None` where there is no such attribute.
    pub methods: Option<Vec<String>>,
    /// Whether vfio can reset the bus under the port above, since nothing else is on it.
    pub bus_is_its_own: bool,
    /// What was seen of this card.
    pub seen: Option<Seen>,
}

/// What sysfs and the driver tell about sharing in hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sharing {
    /// Virtual functions that are on.
    pub virtual_functions: u32,
    /// Virtual functions that could be.
    pub most_virtual_functions: u32,
    /// The virtual functions.
    pub functions: Vec<Function>,
    /// MIG instances that NVIDIA's driver has made.
    pub mig_instances: Vec<String>,
    /// Mediated devices (vGPUs of older kernels and cards) that are made, on the card or its virtual functions.
    pub mediated: Vec<String>,
    /// Whether mediated types are offered.
    pub offers_mediated: bool,
    /// NVIDIA's vGPUs: each virtual function that has a type, with that type's number.
    pub vgpus: BTreeMap<PciAddress, u32>,
}

/// What a function is, by its class (the PCI SIG's code assignment).
pub fn role(f: &PciFunction) -> &'static str {
    match f.base_class() {
        0x0300 | 0x0302 | 0x0380 => "display",
        0x0403 | 0x0401 => "audio",
        0x0c03 => "usb",
        0x0c80 => "ucsi",
        0x0200..=0x02ff => "network",
        0x0108 => "nvme",
        0x0100..=0x01ff => "storage",
        0x0600 => "host bridge",
        0x0604 => "bridge",
        0x0680 if f.is_nvswitch() => "nvswitch",
        _ => "other",
    }
}

const DEVICES: &str = "/sys/bus/pci/devices";

pub(crate) fn text(probe: &dyn Probe, path: &str) -> Option<String> {
    probe.text(Path::new(path)).ok().and_then(Answer::value).map(|t| t.trim().to_owned())
}

pub(crate) fn names(probe: &dyn Probe, dir: &str) -> Vec<String> {
    let names = probe.list(Path::new(dir)).ok().and_then(Answer::value).unwrap_or_default();
    names.into_iter().map(|n| n.to_string_lossy().into_owned()).collect()
}

/// Every display controller, by slot.
pub fn collect(probe: &dyn Probe, facts: &HostFacts) -> Vec<Gpu> {
    let users = holders::Users::read(probe, facts);
    let seen = seen::remembered(probe);
    let mut first: BTreeMap<PciSlot, &PciFunction> = BTreeMap::new();
    for f in facts.pci.values().filter(|f| f.is_gpu() && f.virtual_of.is_none()) {
        first.entry(f.address.slot).or_insert(f);
    }
    first.values().map(|f| one(probe, facts, f, &users, &seen)).collect()
}

fn one(probe: &dyn Probe, facts: &HostFacts, f: &PciFunction, users: &holders::Users, seen: &[Seen]) -> Gpu {
    let slot = f.address.slot;
    let dir = format!("{DEVICES}/{}", f.address);
    let number = |name: &str| text(probe, &format!("{dir}/{name}")).and_then(|t| t.parse().ok()).unwrap_or(0);
    let functions: Vec<&PciFunction> = facts.card(slot).collect();
    let groups: BTreeSet<u32> = functions.iter().filter_map(|f| f.group).collect();
    let shares: BTreeSet<PciAddress> =
        groups.iter().flat_map(|g| facts.group_neighbours(*g, slot)).map(|f| f.address).collect();
    let listed = text(probe, &format!("{dir}/reset_method"));
    let elsewhere: Vec<PciAddress> = parts_elsewhere(facts, f).map(|f| f.address).collect();
    let mine = |a: &PciAddress| a.slot == slot || elsewhere.contains(a);
    let of_card = facts.pci.values().filter(|v| v.virtual_of == Some(f.address)).map(|v| v.address);
    let with_virtual = [f.address].into_iter().chain(of_card);
    let bus_alone =
        facts.pci.values().filter(|o| o.address.slot.domain == slot.domain && o.address.slot.bus == slot.bus);
    Gpu {
        slot,
        path: f.path.clone(),
        model: f.model().to_owned(),
        id: f.id,
        subsystem: f.subsystem,
        serial: f.serial.clone(),
        uuid: f.uuid.clone(),
        recalled: f.recalled,
        kind: match f {
            f if f.is_management() => GpuKind::Management,
            f if f.is_virtual_display() => GpuKind::Virtual,
            _ => GpuKind::Gpu,
        },
        shares: shares.into_iter().collect(),
        boot_display: functions.iter().any(|f| f.boot_display),
        numa_node: f.numa_node,
        power_state: f.power_state.clone(),
        busy: busy::busy(probe, f),
        link: f.is_awake().then(|| link(probe, &dir)).flatten(),
        bars: functions.iter().flat_map(|f| bars(probe, f.address)).collect(),
        reset: Reset {
            methods: listed.map(|l| l.split_whitespace().map(str::to_owned).collect()),
            bus_is_its_own: f.path.starts_with("pcie:") && bus_alone.into_iter().all(|o| mine(&o.address)),
            seen: seen.iter().find(|s| s.is_of(f)).cloned(),
        },
        sharing: Sharing {
            virtual_functions: number("sriov_numvfs"),
            most_virtual_functions: number("sriov_totalvfs"),
            functions: facts.pci.values().filter(|v| v.virtual_of == Some(f.address)).map(function).collect(),
            mig_instances: holders::minor(probe, f.address).map_or_else(Vec::new, |minor| {
                let at = format!("/proc/driver/nvidia/capabilities/gpu{minor}/mig");
                names(probe, &at).into_iter().filter(|n| n.starts_with("gi")).collect()
            }),
            mediated: vgpu::mediated::made(f.address, probe).into_keys().map(|m| m.to_string()).collect(),
            offers_mediated: with_virtual
                .clone()
                .any(|a| !names(probe, &format!("{DEVICES}/{a}/mdev_supported_types")).is_empty()),
            // The card itself has no such file.
            vgpus: facts
                .pci
                .values()
                .filter(|v| v.virtual_of == Some(f.address))
                .filter_map(|v| typed(probe, v))
                .collect(),
        },
        holders: users.of(slot, &groups),
        hidden_holders: users.hidden(slot),
        functions: functions.iter().map(|f| function(f)).collect(),
        elsewhere,
        groups,
    }
}

/// The type of a vGPU, where this virtual function has one.
fn typed(probe: &dyn Probe, f: &PciFunction) -> Option<(PciAddress, u32)> {
    let told = text(probe, &format!("{DEVICES}/{}/nvidia/current_vgpu_type", f.address))?;
    Some((f.address, told.parse().ok().filter(|t| *t != 0)?))
}

fn function(f: &PciFunction) -> Function {
    Function { address: f.address, role: role(f), id: f.id, name: f.name.clone(), driver: f.driver.clone() }
}

/// Parts of the same card behind the card's own switch: same vendor as switch and display, another slot.
fn parts_elsewhere<'a>(facts: &'a HostFacts, gpu: &'a PciFunction) -> impl Iterator<Item = &'a PciFunction> {
    let switch = |path: &str| {
        let parts: Vec<&str> = path.split('/').collect();
        // …/upstream port/downstream port/device
        (parts.len() >= 3).then(|| parts.get(..parts.len() - 2).map(|p| p.join("/"))).flatten()
    };
    let own = switch(&gpu.path).filter(|above| {
        let (parent, port) = above.rsplit_once('/').unwrap_or(("", above));
        facts.pci.values().any(|f| {
            let here = f.path.rsplit_once('/').is_some_and(|(p, d)| p == parent && port.split('.').next() == Some(d));
            here && f.is_bridge() && f.id.vendor == gpu.id.vendor
        })
    });
    facts.pci.values().filter(move |f| {
        own.is_some()
            && f.address.slot != gpu.address.slot
            && !f.is_bridge()
            && !f.is_gpu()
            && f.id.vendor == gpu.id.vendor
            && switch(&f.path) == own
    })
}

fn link(probe: &dyn Probe, dir: &str) -> Option<PciLink> {
    let attribute = |name: &str| text(probe, &format!("{dir}/{name}"));
    Some(PciLink {
        speed: attribute("current_link_speed")?,
        width: attribute("current_link_width")?,
        most_speed: attribute("max_link_speed").unwrap_or_default(),
        most_width: attribute("max_link_width").unwrap_or_default(),
    })
}

/// The windows of a function: lines of first, last and flags (include/linux/ioport.h in the kernel); the kernel keeps
/// them, so that reading does not reach the device.
fn bars(probe: &dyn Probe, function: PciAddress) -> Vec<Bar> {
    const MEMORY: u64 = 0x200;
    const WIDE: u64 = 0x10_0000;
    let lines = text(probe, &format!("{DEVICES}/{function}/resource")).unwrap_or_default();
    let number = |t: Option<&str>| u64::from_str_radix(t?.trim_start_matches("0x"), 16).ok();
    let bar = |(at, line): (usize, &str)| {
        let mut words = line.split_whitespace();
        let (start, end, flags) = (number(words.next())?, number(words.next())?, number(words.next())?);
        let size = end.checked_sub(start)?.checked_add(1)?;
        (flags & MEMORY != 0 && size > 1).then_some(Bar { function, number: at, start, size, wide: flags & WIDE != 0 })
    };
    lines.lines().take(6).enumerate().filter_map(bar).collect()
}
