//! The newtypes that everything else speaks in: parsed once at the edge, so that inside no `String` is really an
//! address, a size or a name. Each implements `FromStr`, `Display`, serde as a string, and `JsonSchema`.

mod base64;
mod cpus;
mod ip;
mod mdev;
mod name;
mod openpgp;
mod pci;
mod released;
mod size;
mod splice;
mod text;
mod url;
mod usb;
mod version;
mod xml;

pub use base64::{from_base64, to_base64};
pub use cpus::{cpu_list, cpu_list_text};
pub use ip::{ip_meaning, ip_network, ip_no_machines, ip_within};
pub use mdev::{MdevUuid, NoMdevUuid};
pub use name::{DomainName, HostName, InterfaceName, MacAddress, NameError, PackageName, ResourceName, UnitName};
pub use openpgp::{OpenPgpError, fingerprints};
pub use pci::{CardId, PciAddress, PciError, PciId, PciSlot};
pub use released::Released;
pub use size::{ByteSize, Mode, SizeError};
pub use splice::{Splice, SpliceError, inverse, line_edits, splice};
pub use text::{is_plain, safe, safe_in_place, safe_line};
pub use url::without_userinfo;
pub use usb::{UsbError, UsbId};
pub use version::compare_versions;
pub use xml::{xml_escape, xml_fragment};

/// Implements serde and `JsonSchema` for a type with `FromStr` and `Display`: it is written and read as a string.
macro_rules! as_string {
    ($type:ident, $what:literal, $pattern:literal, $example:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!($what, ", such as `", $example, "`"))
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                d.deserialize_str(Text)
            }
        }
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "description": concat!($what, ", such as `", $example, "`."),
                    "pattern": $pattern,
                    "examples": [$example],
                })
            }
        }
    };
}
pub(crate) use as_string;

/// The sha256 of some bytes, in hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(bytes))
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
