//! Who uses a GPU: open device nodes, VMs, the firmware's framebuffer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::architecture::NVIDIA;
use super::{Gpu, names, text};
use crate::facts::HostFacts;
use crate::host::{Answer, DeviceUser, Probe};
use crate::resource::libvirt_domain;
use crate::types::{PciAddress, PciSlot};

/// Someone who uses a GPU now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Who.
    pub kind: HolderKind,
    /// Process number; not for a VM that libvirt told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The process's or the VM's name.
    pub name: String,
    /// The nodes that it has open.
    pub nodes: BTreeSet<PathBuf>,
    /// Its control group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup: String,
}

/// What a holder is, by its control group and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HolderKind {
    /// A VM.
    Vm,
    /// A container: the engine, and the beginning of its id.
    Container {
        /// `docker`, `podman`, …
        engine: &'static str,
        /// The first twelve digits.
        id: String,
    },
    /// Shows the desktop.
    DisplayServer,
    /// NVIDIA's persistence daemon.
    Persistence,
    /// CUDA's multi-process service.
    Mps,
    /// A service of systemd, with its unit.
    Service(String),
    /// Anything else.
    Process,
}

impl HolderKind {
    pub(super) fn of(user: &DeviceUser) -> Self {
        const DISPLAY: [&str; 14] = [
            "Xorg",
            "X",
            "Xwayland",
            "gnome-shell",
            "kwin_wayland",
            "kwin_x11",
            "sway",
            "weston",
            "mutter",
            "Hyprland",
            "labwc",
            "cosmic-comp",
            "gamescope",
            "plasmashell",
        ];
        let last = user.cgroup.rsplit('/').next().unwrap_or_default();
        let engines =
            [("docker-", "docker"), ("libpod-", "podman"), ("cri-containerd-", "containerd"), ("crio-", "cri-o")];
        let hex = |t: &str| t.len() >= 12 && t.chars().all(|c| c.is_ascii_hexdigit());
        let id = |t: &str| t.chars().take(12).collect::<String>();
        let scope = engines.iter().find_map(|(prefix, engine)| {
            let rest = last.strip_prefix(prefix)?.strip_suffix(".scope")?;
            hex(rest).then(|| HolderKind::Container { engine, id: id(rest) })
        });
        if let Some(container) = scope {
            return container;
        }
        if user.cgroup.contains("/docker/") && hex(last) {
            return HolderKind::Container { engine: "docker", id: id(last) };
        }
        if user.cgroup.contains("/kubepods") {
            return HolderKind::Container { engine: "kubernetes", id: id(last) };
        }
        if user.cgroup.contains("/lxc") {
            return HolderKind::Container { engine: "lxc", id: last.to_owned() };
        }
        if user.name.starts_with("qemu-") || user.name.starts_with("CPU ") || last.starts_with("machine-qemu") {
            return HolderKind::Vm;
        }
        // `comm` is cut at 15 characters.
        if user.name == "nvidia-persiste" || user.name == "nvidia-persistenced" {
            return HolderKind::Persistence;
        }
        if user.name.starts_with("nvidia-cuda-mps") {
            return HolderKind::Mps;
        }
        if DISPLAY.contains(&user.name.as_str()) {
            return HolderKind::DisplayServer;
        }
        match last.strip_suffix(".service").filter(|_| user.cgroup.starts_with("/system.slice/")) {
            Some(_) => HolderKind::Service(last.to_owned()),
            None => HolderKind::Process,
        }
    }
}

/// NVIDIA's number of a card (`Device Minor` in its driver's own file): /dev/nvidia0 is the card with 0.
pub(super) fn minor(probe: &dyn Probe, address: PciAddress) -> Option<u32> {
    let told = text(probe, &format!("/proc/driver/nvidia/gpus/{address}/information"))?;
    told.lines().find_map(|l| l.strip_prefix("Device Minor:")?.trim().parse().ok())
}

/// Everyone who uses anything that is watched, by the slot that it belongs to.
pub(super) struct Users {
    by_slot: BTreeMap<PciSlot, Vec<Holder>>,
    by_group: BTreeMap<u32, Vec<Holder>>,
    /// Open nodes of NVIDIA cards that the driver names to none, with who has them.
    of_some_nvidia: Vec<Holder>,
    /// The slots of NVIDIA cards whose node the driver does not tell.
    without_node: BTreeSet<PciSlot>,
    /// Why there may be others.
    hidden: Option<String>,
}

impl Users {
    /// Matches open nodes to slots: by sysfs for DRM, sound, framebuffers, I2C and vfio, by NVIDIA's own numbers for its
    /// nodes, by group for vfio's.
    pub(super) fn read(probe: &dyn Probe, facts: &HostFacts) -> Self {
        let mut by_slot: BTreeMap<PciSlot, Vec<Holder>> = BTreeMap::new();
        let mut by_group: BTreeMap<u32, Vec<Holder>> = BTreeMap::new();
        let mut of_some_nvidia = Vec::new();
        let mut hidden = Vec::new();
        let nodes = nodes(probe, facts);
        match probe.device_users() {
            Err(e) => hidden.push(e.to_string()),
            Ok(users) => {
                hidden.extend(users.hidden.clone());
                for user in &users.users {
                    let mut held: BTreeMap<PciSlot, BTreeSet<PathBuf>> = BTreeMap::new();
                    for node in &user.nodes {
                        // What the kernel adds where the node was removed while it was open.
                        let name = node.to_str().map(|n| n.trim_end_matches(" (deleted)")).unwrap_or_default();
                        let slot = nodes.get(name);
                        if slot.is_none() && is_nvidia_card(name) {
                            of_some_nvidia.push(holder(user, BTreeSet::from([node.clone()])));
                        }
                        if let Some(slot) = slot {
                            held.entry(*slot).or_default().insert(node.clone());
                        }
                        let group = node.strip_prefix("/dev/vfio").ok().and_then(|n| n.to_str()?.parse().ok());
                        if let Some(group) = group {
                            by_group.entry(group).or_default().push(holder(user, BTreeSet::from([node.clone()])));
                        }
                    }
                    for (slot, nodes) in held {
                        by_slot.entry(slot).or_default().push(holder(user, nodes));
                    }
                }
            }
        }
        match probe.virtualisation() {
            Ok(Answer::Value(known)) => {
                for domain in known.domains.iter().filter(|d| d.active) {
                    let xml = domain.live_xml.as_deref().unwrap_or(&domain.inactive_xml);
                    match libvirt_domain::project(xml) {
                        Err(e) => {
                            hidden.push(format!("the definition of the VM {} could not be read: {e}", domain.name))
                        }
                        Ok(vm) => {
                            for slot in vm.functions.iter().map(|f| f.slot).collect::<BTreeSet<_>>() {
                                by_slot.entry(slot).or_default().push(Holder {
                                    kind: HolderKind::Vm,
                                    pid: None,
                                    name: domain.name.clone(),
                                    nodes: BTreeSet::new(),
                                    cgroup: String::new(),
                                });
                            }
                        }
                    }
                }
            }
            Ok(Answer::Absent) => {}
            Ok(Answer::Denied) => hidden.push("libvirt may not be asked (not root)".to_owned()),
            Err(e) => hidden.push(format!("libvirt did not tell: {e}")),
        }
        let told: BTreeSet<PciSlot> = nodes.iter().filter(|(n, _)| is_nvidia_card(n)).map(|(_, slot)| *slot).collect();
        let of_driver = facts.pci.values().filter(|f| f.is_gpu() && f.driver.as_deref() == Some("nvidia"));
        let without_node = of_driver.map(|f| f.address.slot).filter(|slot| !told.contains(slot)).collect();
        let hidden = (!hidden.is_empty()).then(|| hidden.join("; "));
        Self { by_slot, by_group, of_some_nvidia, without_node, hidden }
    }

    /// Why a slot may have holders that are not named.
    pub(super) fn hidden(&self, slot: PciSlot) -> Option<String> {
        let of_this = self.of_some_nvidia.iter().filter(|_| self.without_node.contains(&slot));
        let maybe = of_this.map(|h| {
            let node = h.nodes.first().map(|n| n.display().to_string()).unwrap_or_default();
            let pid = h.pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
            format!("{}{pid} has {node} open, and the driver does not tell which card that is", h.name)
        });
        let all: Vec<String> = self.hidden.iter().cloned().chain(maybe).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// The holders of a slot. A VM that libvirt told of and its own process are one.
    pub(super) fn of(&self, slot: PciSlot, groups: &BTreeSet<u32>) -> Vec<Holder> {
        let by_group = groups.iter().flat_map(|g| self.by_group.get(g)).flatten();
        let mut all: Vec<Holder> = self.by_slot.get(&slot).into_iter().flatten().chain(by_group).cloned().collect();
        if all.iter().any(|h| h.kind == HolderKind::Vm && h.pid.is_none()) {
            all.retain(|h| h.kind != HolderKind::Vm || h.pid.is_none());
        }
        all.sort_by(|a, b| (a.pid, &a.name).cmp(&(b.pid, &b.name)));
        all.dedup();
        all
    }
}

/// Whether a node is that of one card: `/dev/nvidia0`, and not `/dev/nvidiactl`.
fn is_nvidia_card(node: &str) -> bool {
    let number = node.strip_prefix("/dev/nvidia");
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// A process as a person is told of it.
pub(super) fn named(user: &DeviceUser) -> String {
    match HolderKind::of(user) {
        HolderKind::Container { engine, id } => format!("{engine} {id} ({}, pid {})", user.name, user.pid),
        HolderKind::Service(unit) => format!("{unit} ({}, pid {})", user.name, user.pid),
        _ => format!("{} (pid {})", user.name, user.pid),
    }
}

fn holder(user: &DeviceUser, nodes: BTreeSet<PathBuf>) -> Holder {
    Holder {
        kind: HolderKind::of(user),
        pid: Some(user.pid),
        name: user.name.clone(),
        nodes,
        cgroup: user.cgroup.clone(),
    }
}

/// Device nodes and the slots that they belong to.
fn nodes(probe: &dyn Probe, facts: &HostFacts) -> BTreeMap<String, PciSlot> {
    const CLASSES: [(&str, &str); 5] = [
        ("drm", "/dev/dri/"),
        ("sound", "/dev/snd/"),
        ("graphics", "/dev/"),
        ("i2c-dev", "/dev/"),
        ("vfio-dev", "/dev/vfio/devices/"),
    ];
    let mut all = BTreeMap::new();
    for (class, folder) in CLASSES {
        for name in names(probe, &format!("/sys/class/{class}")) {
            let at = probe.link(Path::new(&format!("/sys/class/{class}/{name}"))).ok().and_then(Answer::value);
            let function = at.and_then(|l| l.iter().rev().find_map(|p| p.to_string_lossy().parse::<PciAddress>().ok()));
            if let Some(f) = function {
                all.insert(format!("{folder}{name}"), f.slot);
            }
        }
    }
    for f in facts.pci.values().filter(|f| f.id.vendor == NVIDIA && f.is_gpu()) {
        if let Some(minor) = minor(probe, f.address) {
            all.insert(format!("/dev/nvidia{minor}"), f.address.slot);
        }
    }
    all
}

/// The firmware's framebuffer, which the kernel keeps drawing into until the card's driver takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Framebuffer {
    /// None is in use.
    None,
    /// It lies in a window of the card: what iomem calls it.
    OnCard(String),
    /// One is in use, and it could not be told where it lies: the reason.
    Somewhere(String),
    /// It lies elsewhere.
    Elsewhere,
}

/// Looks for the framebuffer of simpledrm or efifb. /proc/iomem tells where it lies, to root only; newer kernels hang the
/// device below the card.
pub fn framebuffer(probe: &dyn Probe, gpu: &Gpu) -> Framebuffer {
    // fb0's name in sysfs, by driver: drivers/video/fbdev/efifb.c, drivers/gpu/drm/tiny/simpledrm.c in the kernel.
    const FIRMWARE: [&str; 4] = ["EFI VGA", "VESA VGA", "simple", "simpledrmdrmfb"];
    let named = names(probe, "/sys/class/graphics").into_iter().any(|fb| {
        text(probe, &format!("/sys/class/graphics/{fb}/name")).is_some_and(|n| FIRMWARE.contains(&n.as_str()))
    });
    let iomem = text(probe, "/proc/iomem").unwrap_or_default();
    let mut readable = false;
    for line in iomem.lines() {
        let Some((range, what)) = line.trim().split_once(" : ") else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let number = |t: &str| u64::from_str_radix(t, 16).ok();
        let (Some(start), Some(end)) = (number(start), number(end)) else { continue };
        readable |= end != 0;
        let is_firmware = what == "BOOTFB" || what.starts_with("simple") || what == "efifb";
        let inside = gpu.bars.iter().any(|b| b.start != 0 && b.start <= start && end < b.start + b.size);
        if is_firmware && inside {
            return Framebuffer::OnCard(line.trim().to_owned());
        }
        if is_firmware && end != 0 && !gpu.bars.is_empty() {
            return Framebuffer::Elsewhere;
        }
    }
    let below = names(probe, &format!("/sys/bus/pci/devices/{}", gpu.slot.function(0)));
    if let Some(name) = below.iter().find(|n| n.starts_with("simple-framebuffer") || n.starts_with("efi-framebuffer")) {
        return Framebuffer::OnCard(name.clone());
    }
    match (named, readable) {
        (false, _) => Framebuffer::None,
        (true, true) => Framebuffer::Somewhere("it is not in /proc/iomem".to_owned()),
        (true, false) => Framebuffer::Somewhere("the addresses in /proc/iomem are hidden (not root)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_told_apart_by_control_group_and_name() {
        let kind = |name: &str, cgroup: &str| {
            HolderKind::of(&DeviceUser {
                pid: 1,
                name: name.into(),
                cgroup: cgroup.into(),
                nodes: BTreeSet::new(),
                given: BTreeSet::new(),
            })
        };
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let docker = HolderKind::Container { engine: "docker", id: "0123456789ab".into() };
        assert_eq!(kind("python3", &format!("/system.slice/docker-{id}.scope")), docker);
        assert_eq!(kind("python3", &format!("/docker/{id}")), docker);
        assert_eq!(kind("Xorg", "/user.slice/user-1000.slice/session-2.scope"), HolderKind::DisplayServer);
        assert_eq!(kind("ollama", "/system.slice/ollama.service"), HolderKind::Service("ollama.service".into()));
        assert_eq!(kind("nvidia-persiste", "/system.slice/nvidia-persistenced.service"), HolderKind::Persistence);
        assert_eq!(
            kind("qemu-system-x86", "/machine.slice/machine-qemu\\x2d1\\x2dwin.scope/libvirt/emulator"),
            HolderKind::Vm
        );
        assert_eq!(kind("steam", "/user.slice/user-1000.slice/session-2.scope"), HolderKind::Process);
    }
}
