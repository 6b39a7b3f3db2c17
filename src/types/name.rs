//! Names, each with the characters and length that the thing itself allows, so that none can leave its folder, its
//! command line or its XML attribute.

use std::fmt;
use std::str::FromStr;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {rule}")]
pub struct NameError {
    text: String,
    what: &'static str,
    rule: &'static str,
}

impl NameError {
    pub(super) fn new(text: &str, what: &'static str, rule: &'static str) -> Self {
        Self { text: text.to_owned(), what, rule }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:literal, $pattern:literal, $example:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError { text: text.to_owned(), what: $what, rule: $rule })
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        super::as_string!($type, $what, $pattern, $example);
    };
}

/// Starts with a letter or digit, then those and the extra characters, at most `most` bytes.
fn word(text: &str, extra: &str, most: usize) -> bool {
    text.len() <= most
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

name!(
    /// A host name without domain, as in /etc/hostname (RFC 1123 label).
    HostName, "a host name", "letters, digits and `-`, at most 63, not at the ends",
    "^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$", "gpu-01",
    |t| word(t, "-", 63) && !t.ends_with('-')
);
name!(
    /// A libvirt domain: the name of a VM.
    DomainName, "a VM name", "a letter or digit, then letters, digits, `.`, `_` and `-`, at most 63",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "desktop",
    |t| word(t, "._-", 63)
);
name!(
    /// The name that a manifest gives to a GPU, a device, a network or a pool.
    ResourceName, "a name", "a letter or digit, then letters, digits, `.`, `_` and `-`, at most 63",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "work",
    |t| word(t, "._-", 63)
);
name!(
    /// A Linux network interface (IFNAMSIZ is 16 with the closing zero).
    InterfaceName, "an interface name", "letters, digits, `.`, `_` and `-`, at most 15",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$", "br0",
    |t| word(t, "._-", 15)
);
name!(
    /// A Debian package (Debian policy 5.6.7).
    PackageName, "a package name", "lower-case letters, digits, `+`, `-` and `.`, at least two",
    "^[a-z0-9][a-z0-9+.-]+$", "qemu-system-x86",
    |t| t.len() >= 2 && word(t, "+-.", 128) && !t.contains(|c: char| c.is_ascii_uppercase())
);
name!(
    /// A systemd unit with its suffix (systemd.unit(5)).
    UnitName, "a systemd unit", "a name with its suffix, such as `ssh.service`",
    "^[A-Za-z0-9][A-Za-z0-9:._@\\\\-]*\\.(service|socket|timer|target|mount|path|slice)$", "ssh.service",
    |t| {
        word(t, ":._@\\-", 255)
            && t.rsplit_once('.').is_some_and(|(_, suffix)| {
                ["service", "socket", "timer", "target", "mount", "path", "slice"].contains(&suffix)
            })
    }
);

/// An Ethernet address, kept in lower case with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let read = bytes.iter_mut().all(|byte| {
            parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .map(|b| *byte = b)
                .is_some()
        });
        if read && parts.next().is_none() {
            Ok(Self(bytes))
        } else {
            Err(NameError {
                text: text.to_owned(),
                what: "a MAC address",
                rule: "six pairs of hex digits with colons between",
            })
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

super::as_string!(MacAddress, "a MAC address", "^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$", "52:54:00:12:34:56");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_can_leave_its_place() {
        for text in ["", ".", "..", "a/b", "../x", "a b", "a\nb", "-x", "a\0", "é", "a;b", "<a>", "a'b"] {
            assert!(text.parse::<DomainName>().is_err(), "{text:?}");
            assert!(text.parse::<InterfaceName>().is_err(), "{text:?}");
            assert!(text.parse::<PackageName>().is_err(), "{text:?}");
            assert!(text.parse::<UnitName>().is_err(), "{text:?}");
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
        assert!("a".repeat(64).parse::<DomainName>().is_err());
        assert!("enp5s0f1np1.4000".parse::<InterfaceName>().is_err());
    }

    #[test]
    fn ordinary_names_pass() {
        assert!("desktop-1".parse::<DomainName>().is_ok());
        assert!("libstdc++6".parse::<PackageName>().is_ok());
        assert!("serial-getty@ttyS0.service".parse::<UnitName>().is_ok());
        assert_eq!(
            "52:54:00:AB:cd:01".parse::<MacAddress>().map(|m| m.to_string()),
            Ok("52:54:00:ab:cd:01".to_owned())
        );
    }
}
