//! The PCI inventory, from sysfs attributes that do not touch the devices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::os::{exists, names, text};
use super::{PciFunction, Recalled, Sriov, os};
use crate::host::{Answer, Probe};
use crate::types::{PciAddress, PciId};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Every PCI function (Documentation/ABI/testing/sysfs-bus-pci in the kernel).
pub(super) fn inventory(probe: &dyn Probe) -> BTreeMap<PciAddress, PciFunction> {
    let ids = Names::read(probe);
    names(probe, DEVICES)
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter_map(|address| Some((address, function(probe, address, &ids)?)))
        .collect()
}

fn function(probe: &dyn Probe, address: PciAddress, ids: &Names) -> Option<PciFunction> {
    let dir = format!("{DEVICES}/{address}");
    let attribute = |name: &str| text(probe, &format!("{dir}/{name}")).trim().to_owned();
    let hex = |name: &str| u32::from_str_radix(attribute(name).trim_start_matches("0x"), 16).ok();
    let target = |name: &str| {
        let link = probe.link(Path::new(&format!("{dir}/{name}"))).ok().and_then(Answer::value)?;
        link.file_name().map(|n| n.to_string_lossy().into_owned())
    };
    // The driver keeps both; the file does not reach the card (nv-procfs.c in NVIDIA's open modules).
    let told = text(probe, &format!("/proc/driver/nvidia/gpus/{address}/information"));
    let told = |name: &str| {
        let line = told.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).filter(|v| !v.is_empty() && !v.contains('?')).map(str::to_owned)
    };
    let id = PciId { vendor: hex("vendor")? as u16, device: hex("device")? as u16 };
    let subsystem = hex("subsystem_vendor").zip(hex("subsystem_device")).filter(|(vendor, _)| *vendor != 0);
    let (path, parent) = path(probe, address);
    Some(PciFunction {
        address,
        path,
        parent,
        virtual_of: target("physfn").and_then(|f| f.parse().ok()),
        sriov: attribute("sriov_totalvfs").parse().ok().map(|total| Sriov {
            total,
            now: attribute("sriov_numvfs").parse().unwrap_or_default(),
            offset: attribute("sriov_offset").parse().ok(),
            stride: attribute("sriov_stride").parse().ok(),
            device: u16::from_str_radix(&attribute("sriov_vf_device"), 16).ok(),
            functions: (0..total).map_while(|n| Some((n, target(&format!("virtfn{n}"))?.parse().ok()?))).collect(),
        }),
        class: hex("class")?,
        id,
        subsystem: subsystem.map(|(v, d)| PciId { vendor: v as u16, device: d as u16 }),
        name: ids.name(id).or_else(|| told("Model")).unwrap_or_else(|| id.to_string()),
        driver: target("driver"),
        driver_override: Some(attribute("driver_override")).filter(|o| !o.is_empty() && o != "(null)"),
        group: target("iommu_group").and_then(|g| g.parse().ok()),
        boot_display: attribute("boot_vga") == "1",
        reset_methods: attribute("reset_method").split_whitespace().map(str::to_owned).collect(),
        power_state: Some(attribute("power_state")).filter(|s| !s.is_empty()),
        numa_node: attribute("numa_node").parse().ok(),
        serial: (attribute("power_state") == "D0").then(|| serial(probe, &dir)).flatten(),
        uuid: told("GPU UUID"),
        recalled: Recalled::default(),
        carries: BTreeSet::new(),
    })
}

/// The serial number of a device that is awake: the kernel's attribute or amdgpu's of the same name, amdgpu's
/// `unique_id`, NVMe's. Configuration space, which older kernels would have to be asked, is not read.
fn serial(probe: &dyn Probe, dir: &str) -> Option<String> {
    let nvme = names(probe, &format!("{dir}/nvme")).into_iter().map(|n| format!("nvme/{n}/serial"));
    let sources = ["serial_number".to_owned(), "unique_id".to_owned()].into_iter().chain(nvme);
    let made_up = |s: &str| s.is_empty() || s.chars().all(|c| matches!(c, '0' | '-' | ':' | ' '));
    sources.map(|name| text(probe, &format!("{dir}/{name}")).trim().to_owned()).find(|s| !made_up(s))
}

/// The path of ports: the devices above it by device and function number, which do not change when a card is added
/// elsewhere (`pcie:1c.4/0`). The real path of the device in sysfs holds them in order.
fn path(probe: &dyn Probe, address: PciAddress) -> (String, Option<PciAddress>) {
    let link = probe.link(Path::new(&format!("{DEVICES}/{address}"))).ok().and_then(Answer::value);
    let parts: Vec<String> = link.iter().flat_map(|l| l.iter()).map(|p| p.to_string_lossy().into_owned()).collect();
    // The last one: behind Intel's VMD there is a root below a device.
    let root = parts.iter().rposition(|p| p.strip_prefix("pci").is_some_and(|r| r.contains(':')));
    let after = root.map_or(0, |at| at + 1);
    let ports: Vec<PciAddress> = parts.iter().skip(after).filter_map(|part| part.parse().ok()).collect();
    let root = root.and_then(|at| parts.get(at)?.strip_prefix("pci")).unwrap_or("0000:00");
    let port = |a: &PciAddress| format!("{:x}.{}", a.slot.device, a.function);
    let above: Vec<String> = ports.iter().filter(|a| a.slot != address.slot).map(port).collect();
    let parent = ports.iter().rev().find(|a| a.slot != address.slot).copied();
    let root = if root == "0000:00" { String::new() } else { format!("{root}/") };
    let path = match above.is_empty() {
        true => format!("pci:{root}{:x}", address.slot.device),
        false => format!("pcie:{root}{}/{:x}", above.join("/"), address.slot.device),
    };
    (path, parent)
}

/// pci.ids, where it is installed (its format is described in the file itself), with where each vendor begins: it has
/// some 40,000 lines, and a server some hundred functions.
struct Names {
    text: String,
    vendors: BTreeMap<u16, usize>,
}

impl Names {
    fn read(probe: &dyn Probe) -> Self {
        let path = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"].into_iter().find(|p| exists(probe, p));
        Self::index(path.map(|p| os::text(probe, p)).unwrap_or_default())
    }
    fn index(text: String) -> Self {
        let mut vendors = BTreeMap::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let id = line.split_once("  ").filter(|(id, _)| id.len() == 4).map(|(id, _)| u16::from_str_radix(id, 16));
            if let Some(Ok(id)) = id {
                vendors.entry(id).or_insert(at + line.len());
            }
            at += line.len();
        }
        Self { text, vendors }
    }
    /// The device's name, where it is listed.
    fn name(&self, id: PciId) -> Option<String> {
        let device = format!("\t{:04x}  ", id.device);
        let rest = self.vendors.get(&id.vendor).and_then(|at| self.text.get(*at..)).unwrap_or_default();
        let mut lines = rest.lines().take_while(|l| l.starts_with(['\t', '#']));
        lines.find_map(|l| l.strip_prefix(&device)).map(|n| n.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_one_below_its_own_vendor() {
        let names = Names::index(
            "# a comment\n1002  AMD\n\t2684  not this one\n10de  NVIDIA\n\t0020  Riva\n\t\t1043 0200  a board\n\
             # between\n\t2684  AD102 [GeForce RTX 4090]\n\nC 03  Display controller\n\t00  VGA\n"
                .to_owned(),
        );
        let name = |vendor, device| names.name(PciId { vendor, device }).unwrap_or_default();
        assert_eq!(name(0x10de, 0x2684), "AD102 [GeForce RTX 4090]");
        assert_eq!(name(0x1002, 0x2684), "not this one");
        assert_eq!((name(0x10de, 0x0001), name(0x8086, 0x2684)), (String::new(), String::new()));
    }
}
