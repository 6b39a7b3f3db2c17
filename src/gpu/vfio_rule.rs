//! The udev rules that keep a card's functions for VMs: one a function, for this card in this place alone.
//!
//! A place is the path of ports, not an address: when a card is added elsewhere, buses get other numbers, and the rule
//! goes with its card. udev(7) matches `DEVPATH` as shell patterns.

use crate::facts::PciFunction;
use crate::types::PciAddress;

/// The attribute that has vfio-pci alone bind a function (Documentation/ABI/testing/sysfs-bus-pci, `driver_override`).
const TAKES: &str = "ATTR{driver_override}=\"vfio-pci\"";

/// What a rule asks of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioRule {
    /// Its address, where the rule names one.
    pub address: Option<PciAddress>,
    /// The pattern of its path, where the rule has one.
    pub path: Option<String>,
    vendor: Option<String>,
    device: Option<String>,
}

impl VfioRule {
    /// The line for a function.
    pub fn line(f: &PciFunction) -> String {
        let place = match f.path_pattern() {
            Some(path) => format!("DEVPATH==\"{path}\""),
            None => format!("KERNEL==\"{}\"", f.address),
        };
        format!(
            "ACTION==\"add\", SUBSYSTEM==\"pci\", {place}, ATTR{{vendor}}==\"{:#06x}\", ATTR{{device}}==\"{:#06x}\", {TAKES}",
            f.id.vendor, f.id.device
        )
    }

    /// The rules of a file that give something to vfio-pci; a rule that names no place is none of them.
    pub fn all(text: &str) -> impl Iterator<Item = Self> + '_ {
        text.lines().map(str::trim).filter(|l| !l.starts_with('#') && l.contains(TAKES)).filter_map(|line| {
            let value = |key: &str| Some(line.split_once(key)?.1.strip_prefix("==\"")?.split('"').next()?.to_owned());
            let rule = Self {
                address: value("KERNEL").and_then(|a| a.parse().ok()),
                path: value("DEVPATH"),
                vendor: value("ATTR{vendor}"),
                device: value("ATTR{device}"),
            };
            (rule.address.is_some() || rule.path.is_some()).then_some(rule)
        })
    }

    /// Whether ids are those that the rule asks for, where it does; as sysfs has them (`0x10de`).
    pub fn is_model(&self, vendor: &str, device: &str) -> bool {
        [(&self.vendor, vendor), (&self.device, device)]
            .iter()
            .all(|(asked, is)| asked.as_ref().is_none_or(|a| a == is))
    }

    /// Whether it takes this function.
    pub fn takes(&self, f: &PciFunction) -> bool {
        self.address.is_none_or(|a| a == f.address)
            && self.path.as_ref().is_none_or(|path| f.path_pattern().as_ref() == Some(path))
            && self.is_model(&format!("{:#06x}", f.id.vendor), &format!("{:#06x}", f.id.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(address: &str, path: &str) -> PciFunction {
        PciFunction { address: address.parse().unwrap(), path: path.to_owned(), ..crate::facts::tests::display() }
    }

    fn takes(text: &str, f: &PciFunction) -> bool {
        VfioRule::all(text).any(|r| r.takes(f))
    }

    #[test]
    fn a_rule_goes_with_its_place_and_model() {
        let card = function("0000:02:00.0", "pcie:6.0/0");
        let line = VfioRule::line(&card);
        assert!(takes(&line, &card));
        assert!(takes(&line, &function("0000:03:00.0", "pcie:6.0/0")), "the buses got other numbers");
        assert!(!takes(&line, &function("0000:02:00.0", "pcie:1.0/0")), "another card has its address");
        assert!(!takes(&line, &function("0000:02:00.1", "pcie:6.0/0")), "each function has a rule");
        assert!(!takes(&format!("#{line}"), &card));
        let other = PciFunction { id: "10de:2204".parse().unwrap(), ..card.clone() };
        assert!(!takes(&line, &other), "another model");
    }

    #[test]
    fn rules_of_others_go_by_address() {
        let rule = "ACTION==\"add\", KERNEL==\"0000:02:00.0\", ATTR{driver_override}=\"vfio-pci\"\n";
        assert!(takes(rule, &function("0000:02:00.0", "pcie:6.0/0")));
        assert!(!takes(rule, &function("0000:03:00.0", "pcie:6.0/0")));
        assert!(!takes("ACTION==\"add\", ATTR{driver_override}=\"vfio-pci\"\n", &function("0000:02:00.0", "")));
    }
}
