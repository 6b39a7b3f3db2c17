//! PCI addresses, slots and ids, as sysfs writes them.

use std::fmt;
use std::str::FromStr;

/// Why a PCI address, slot or id could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// Not `domain:bus:device.function`.
    #[error("`{0}` is not a PCI address; write it as `0000:01:00.0`")]
    Address(String),
    /// Not `domain:bus:device`.
    #[error("`{0}` is not a PCI slot; write it as `0000:01:00`")]
    Slot(String),
    /// Not `vendor:device`.
    #[error("`{0}` is not a PCI id; write it as `10de:2684`")]
    Id(String),
    /// Not `vendor:device` or `vendor:device:subvendor:subdevice`.
    #[error("`{0}` is not a card's id; write it as `10de:2684`, or with the subsystem as `10de:2684:1458:4104`")]
    CardId(String),
}

/// A slot: PCI domain, bus and device, without the function (`0000:01:00`). The unit that moves to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciSlot {
    /// PCI domain ("segment"); not always zero, and up to 32 bits on some hosts.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0–31.
    pub device: u8,
}

/// One function of a device (`0000:01:00.0`), named as in /sys/bus/pci/devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The slot that the function is in.
    pub slot: PciSlot,
    /// Function number, 0–7.
    pub function: u8,
}

/// Vendor and device id (`10de:2684`); also used for subsystem ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
}

/// Vendor and device id, with the subsystem's where cards of several makers have to be told apart
/// (`10de:2684:1458:4104`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CardId {
    /// Vendor and device.
    pub id: PciId,
    /// Subsystem vendor and device.
    pub subsystem: Option<PciId>,
}

/// Hex digits only, of at most `most` digits: `from_str_radix` alone would take `+1`.
fn hex(text: &str, least: usize, most: usize) -> Option<u32> {
    ((least..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

fn slot(text: &str) -> Option<PciSlot> {
    let parts: Vec<&str> = text.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [domain, bus, device] => (hex(domain, 4, 8)?, bus, device),
        [bus, device] => (0, bus, device),
        _ => return None,
    };
    let device = hex(device, 2, 2).filter(|d| *d < 32)?;
    Some(PciSlot { domain, bus: hex(bus, 2, 2)? as u8, device: device as u8 })
}

impl PciSlot {
    /// The address of one of its functions.
    pub fn function(self, function: u8) -> PciAddress {
        PciAddress { slot: self, function }
    }
}

impl FromStr for PciSlot {
    type Err = PciError;
    fn from_str(text: &str) -> Result<Self, PciError> {
        slot(text).ok_or_else(|| PciError::Slot(text.to_owned()))
    }
}

impl FromStr for PciAddress {
    type Err = PciError;
    /// The domain may be left out (`01:00.0`), as lspci does, and have eight digits, as nvidia-smi does.
    fn from_str(text: &str) -> Result<Self, PciError> {
        let read = || {
            let (at, function) = text.split_once('.')?;
            let function = hex(function, 1, 1).filter(|f| *f < 8)? as u8;
            Some(PciAddress { slot: slot(at)?, function })
        };
        read().ok_or_else(|| PciError::Address(text.to_owned()))
    }
}

impl FromStr for PciId {
    type Err = PciError;
    fn from_str(text: &str) -> Result<Self, PciError> {
        text.split_once(':')
            .and_then(|(v, d)| Some(PciId { vendor: hex(v, 4, 4)? as u16, device: hex(d, 4, 4)? as u16 }))
            .ok_or_else(|| PciError::Id(text.to_owned()))
    }
}

impl FromStr for CardId {
    type Err = PciError;
    fn from_str(text: &str) -> Result<Self, PciError> {
        let second = text.match_indices(':').nth(1).map(|(at, _)| at);
        let read = || match second {
            None => Some(CardId { id: text.parse().ok()?, subsystem: None }),
            Some(at) => {
                let subsystem = text.get(at + 1..)?.parse().ok()?;
                Some(CardId { id: text.get(..at)?.parse().ok()?, subsystem: Some(subsystem) })
            }
        };
        read().ok_or_else(|| PciError::CardId(text.to_owned()))
    }
}

impl fmt::Display for CardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subsystem {
            None => write!(f, "{}", self.id),
            Some(subsystem) => write!(f, "{}:{subsystem}", self.id),
        }
    }
}

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.device)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.function)
    }
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

super::as_string!(PciSlot, "a PCI slot", "^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]$", "0000:01:00");
super::as_string!(
    PciAddress,
    "a PCI address",
    "^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\\.[0-7]$",
    "0000:01:00.0"
);
super::as_string!(PciId, "a PCI vendor and device id", "^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}$", "10de:2684");
super::as_string!(
    CardId,
    "a PCI vendor and device id, with or without the subsystem's",
    "^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}(:[0-9a-fA-F]{4}:[0-9a-fA-F]{4})?$",
    "10de:2684"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_and_programs_write_them() {
        for (text, want) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.1", "0000:01:00.1"),
            ("00000000:65:00.0", "0000:65:00.0"),
            ("000f:01:00.0", "000f:01:00.0"),
            ("10000:01:1F.7", "10000:01:1f.7"),
        ] {
            assert_eq!(text.parse::<PciAddress>().map(|a| a.to_string()), Ok(want.to_owned()));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "01:00", "0000:01:00.8", "0000:01:20.0", "0:1:0.0", "+000:01:00.0", "0000:01:00.0 ", "zz:00.0"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
