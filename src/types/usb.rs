//! Ids of USB devices, as lsusb(8) and libvirt write them.

use std::fmt;
use std::str::FromStr;

use super::PciId;

/// Vendor and product of a USB device (`046d:c52b`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsbId {
    /// Vendor.
    pub vendor: u16,
    /// Product.
    pub product: u16,
}

/// Why a text is no id of a USB device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsbError {
    /// A place in the tree of hubs, as sysfs names it.
    #[error(
        "`{0}` is a USB port: libvirt passes a device on by its id or by a number that changes with each plugging, and by no \
         port; write the id that `lsusb` shows, as `046d:c52b`"
    )]
    Port(String),
    /// Anything else.
    #[error("`{0}` is not a USB device's id; write it as `lsusb` shows it: `046d:c52b`")]
    Id(String),
}

impl FromStr for UsbId {
    type Err = UsbError;
    fn from_str(text: &str) -> Result<Self, UsbError> {
        // Written alike.
        let id = text.parse::<PciId>().map(|id| Self { vendor: id.vendor, product: id.device });
        let port = |(bus, ports): (&str, &str)| {
            let number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
            number(bus) && ports.split('.').all(number)
        };
        id.map_err(|_| match text.split_once('-').is_some_and(port) {
            true => UsbError::Port(text.to_owned()),
            false => UsbError::Id(text.to_owned()),
        })
    }
}

impl fmt::Display for UsbId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.product)
    }
}

super::as_string!(UsbId, "a USB device's vendor and product id", "^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}$", "046d:c52b");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_told_from_what_is_no_id_at_all() {
        assert_eq!("046D:c52b".parse::<UsbId>().unwrap().to_string(), "046d:c52b");
        for port in ["1-2", "3-1.4.2"] {
            assert_eq!(port.parse::<UsbId>(), Err(UsbError::Port(port.to_owned())));
        }
        for wrong in ["", "-", "1-", "046d", "46d:c52b", "mouse", "1-2:1.0"] {
            assert_eq!(wrong.parse::<UsbId>(), Err(UsbError::Id(wrong.to_owned())));
        }
    }
}
