//! The PCI inventory, from sysfs attributes that do not touch the devices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::os::{exists, names, text};
use super::{PciFunction, os};
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
    let id = PciId { vendor: hex("vendor")? as u16, device: hex("device")? as u16 };
    let subsystem = hex("subsystem_vendor").zip(hex("subsystem_device")).filter(|(vendor, _)| *vendor != 0);
    Some(PciFunction {
        address,
        path: path(probe, address),
        class: hex("class")?,
        id,
        subsystem: subsystem.map(|(v, d)| PciId { vendor: v as u16, device: d as u16 }),
        name: ids.name(id),
        driver: target("driver"),
        driver_override: Some(attribute("driver_override")).filter(|o| !o.is_empty() && o != "(null)"),
        group: target("iommu_group").and_then(|g| g.parse().ok()),
        boot_display: attribute("boot_vga") == "1",
        reset_methods: attribute("reset_method").split_whitespace().map(str::to_owned).collect(),
        power_state: Some(attribute("power_state")).filter(|s| !s.is_empty()),
        numa_node: attribute("numa_node").parse().ok(),
        carries: BTreeSet::new(),
    })
}

/// The path of ports: the devices above it by device and function number, which do not change when a card is added
/// elsewhere (`pcie:1c.4/0`). The real path of the device in sysfs holds them in order.
fn path(probe: &dyn Probe, address: PciAddress) -> String {
    let link = probe.link(Path::new(&format!("{DEVICES}/{address}"))).ok().and_then(Answer::value);
    let ports: Vec<PciAddress> =
        link.iter().flat_map(|l| l.iter()).filter_map(|part| part.to_string_lossy().parse().ok()).collect();
    let port = |a: &PciAddress| format!("{:x}.{}", a.slot.device, a.function);
    let above: Vec<String> = ports.iter().filter(|a| a.slot != address.slot).map(port).collect();
    let domain = if address.slot.domain == 0 { String::new() } else { format!("{:x}:", address.slot.domain) };
    match above.is_empty() {
        true => format!("pci:{domain}{:x}", address.slot.device),
        false => format!("pcie:{domain}{}/{:x}", above.join("/"), address.slot.device),
    }
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
    /// The device's name; the ids where it is not listed.
    fn name(&self, id: PciId) -> String {
        let device = format!("\t{:04x}  ", id.device);
        let rest = self.vendors.get(&id.vendor).and_then(|at| self.text.get(*at..)).unwrap_or_default();
        let mut lines = rest.lines().take_while(|l| l.starts_with(['\t', '#']));
        lines.find_map(|l| l.strip_prefix(&device)).map_or_else(|| id.to_string(), str::to_owned)
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
        let name = |vendor, device| names.name(PciId { vendor, device });
        assert_eq!(name(0x10de, 0x2684), "AD102 [GeForce RTX 4090]");
        assert_eq!(name(0x1002, 0x2684), "not this one");
        assert_eq!((name(0x10de, 0x0001), name(0x8086, 0x2684)), ("10de:0001".to_owned(), "8086:2684".to_owned()));
    }
}
