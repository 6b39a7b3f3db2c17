//! The UUID of a mediated device (the kernel's Documentation/driver-api/vfio-mediated-device.rst).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a mediated device is known by: the name of its folder in sysfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MdevUuid(Uuid);

impl MdevUuid {
    /// The same each time for this number of this GPU of this host: a VM that has it keeps it over boots and other types.
    pub fn of(host: &str, gpu: &str, number: usize) -> Self {
        Self(Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("gpuvm.vgpu\n{host}\n{gpu}\n{number}").as_bytes()))
    }
}

/// It is not 36 characters of a UUID, as the kernel writes them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no UUID of a mediated device")]
pub struct NoMdevUuid(String);

impl FromStr for MdevUuid {
    type Err = NoMdevUuid;
    fn from_str(text: &str) -> Result<Self, NoMdevUuid> {
        let uuid = text.parse().ok().filter(|_| text.len() == 36);
        uuid.map(Self).ok_or_else(|| NoMdevUuid(text.to_owned()))
    }
}

impl TryFrom<String> for MdevUuid {
    type Error = NoMdevUuid;
    fn try_from(text: String) -> Result<Self, NoMdevUuid> {
        text.parse()
    }
}

impl From<MdevUuid> for String {
    fn from(uuid: MdevUuid) -> Self {
        uuid.to_string()
    }
}

impl fmt::Display for MdevUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_and_is_no_others() {
        let one = |host: &str, gpu: &str, number| MdevUuid::of(host, gpu, number).to_string();
        assert_eq!(one("a", "t4", 0), one("a", "t4", 0));
        for other in [one("b", "t4", 0), one("a", "t5", 0), one("a", "t4", 1)] {
            assert_ne!(one("a", "t4", 0), other);
        }
    }

    #[test]
    fn only_names_of_the_kernels_form_are_read() {
        let text = "aa618089-8b16-4d01-a136-25a0f3c73123";
        assert_eq!(text.parse::<MdevUuid>().unwrap().to_string(), text);
        for wrong in ["", "aa6180898b164d01a13625a0f3c73123", "{aa618089-8b16-4d01-a136-25a0f3c73123}", "../x"] {
            assert!(wrong.parse::<MdevUuid>().is_err(), "{wrong}");
        }
    }
}
