//! Newtypes of the manifest alone, and the short forms: a scalar where a mapping would say no more.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::{
    Cpus, DeviceMatch, DiskBus, DiskCache, DiskDiscard, DiskEntry, Memory, NicEntry, PackageEntry, PackageSource,
    RepositoryEntry, Uplink,
};
use crate::types::{
    ByteSize, CardId, InterfaceName, MacAddress, PackageName, PciAddress, PciSlot, ResourceName, as_string,
};

/// A text that failed a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}")]
pub struct WordError {
    text: String,
    what: &'static str,
}

macro_rules! word {
    ($(#[$doc:meta])* $type:ident, $what:literal, $pattern:literal, $example:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);
        impl $type {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = WordError;
            fn from_str(text: &str) -> Result<Self, WordError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(WordError { text: text.to_owned(), what: $what }) }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        as_string!($type, $what, $pattern, $example);
    };
}

word!(
    /// An absolute path without `.`, `..`, empty parts and control characters.
    FilePath, "an absolute path without `.` and `..`", "^/", "/etc/motd",
    |t| t.len() > 1 && t.len() < 4096 && t.starts_with('/')
        && t[1..].split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !t.chars().any(char::is_control)
        && Path::new(t).is_absolute()
);
word!(
    /// One argument of the kernel's command line.
    KernelArg, "a kernel argument: `name` or `name=value` without blanks and quotes", "^[A-Za-z0-9][^\\s\"'$`\\\\]*$",
    "intel_iommu=on",
    |t| t.len() < 512 && t.starts_with(|c: char| c.is_ascii_alphanumeric())
        && t.chars().all(|c| c.is_ascii_graphic() && !"\"'$`\\;&|<>(){}!#".contains(c))
);
word!(
    /// A kernel module.
    ModuleName, "a module name: letters, digits, `_` and `-`", "^[A-Za-z0-9_-]+$", "vfio_pci",
    |t| !t.is_empty() && t.len() < 64 && t.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') && !t.starts_with('-')
);
word!(
    /// A local user (useradd(8)).
    UserName, "a user name: lower-case letters, digits, `_` and `-`", "^[a-z_][a-z0-9_-]{0,31}$", "alice",
    |t| (1..=32).contains(&t.len()) && t.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && t.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
);

word!(
    /// An address of a server, without a name and a password in it.
    WebAddress, "an address that begins with `https://` or `http://`, without a password", "^https?://[^@\\s]+$",
    "https://mirror.example/images/",
    |t| t.len() < 2048 && t.chars().all(|c| c.is_ascii_graphic() && !"\"'<>\\^`{|}@".contains(c))
        && ["https://", "http://"].iter().any(|s| t.strip_prefix(s).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')))
);
word!(
    /// A sha256.
    Sha256Hex, "a sha256: 64 characters of 0-9 and a-f", "^[0-9a-fA-F]{64}$",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    |t| t.len() == 64 && t.bytes().all(|b| b.is_ascii_hexdigit())
);
word!(
    /// A sha512.
    Sha512Hex, "a sha512: 128 characters of 0-9 and a-f", "^[0-9a-fA-F]{128}$",
    "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
    |t| t.len() == 128 && t.bytes().all(|b| b.is_ascii_hexdigit())
);

word!(
    /// The image of a CD-ROM.
    Medium, "an absolute path, or the name of an image", "^[/A-Za-z0-9]", "/srv/iso/win11.iso",
    |t| t.parse::<FilePath>().is_ok() || t.parse::<ResourceName>().is_ok()
);

impl Medium {
    /// The one of `images` that it is; `None` for a file of the host's.
    pub fn image(&self) -> Option<ResourceName> {
        self.0.parse().ok()
    }
}
word!(
    /// A language of Windows'.
    WindowsLanguage, "a language as Windows has it: `en-US`, `de-DE`", "^[a-z]{2,3}-([A-Za-z]{4}-)?[A-Z]{2}$", "en-US",
    |t| {
        let parts: Vec<&str> = t.split('-').collect();
        let alone = |p: &str, of: fn(&char) -> bool| p.chars().all(|c| of(&c));
        (2..=3).contains(&parts.len())
            && (2..=3).contains(&parts[0].len()) && alone(parts[0], char::is_ascii_lowercase)
            && parts.last().is_some_and(|p| p.len() == 2 && alone(p, char::is_ascii_uppercase))
            && (parts.len() == 2 || parts[1].len() == 4 && alone(parts[1], char::is_ascii_alphabetic))
    }
);
word!(
    /// A name that Windows has for something: an edition, a time zone.
    WindowsName, "a name of Windows': letters, digits, blanks and `.()+:-`, at most 64", "^[A-Za-z0-9][A-Za-z0-9 .()+:-]*$",
    "W. Europe Standard Time",
    |t| (1..=64).contains(&t.len()) && t.starts_with(|c: char| c.is_ascii_alphanumeric())
        && t.chars().all(|c| c.is_ascii_alphanumeric() || " .()+:-".contains(c))
);

word!(
    /// An address.
    Ip, "an IP address", "^[0-9a-fA-F.:]+$", "192.168.1.1",
    |t| t.parse::<std::net::IpAddr>().is_ok()
);
word!(
    /// An address in its network.
    IpWithPrefix, "an IP address with the length of its network's prefix", "^[0-9a-fA-F.:]+/[0-9]{1,3}$", "192.168.1.50/24",
    |t| t.split_once('/').is_some_and(|(ip, length)| {
        let most = ip.parse().map_or(0, |ip: std::net::IpAddr| if ip.is_ipv4() { 32 } else { 128 });
        most > 0 && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit())
            && length.parse::<u32>().is_ok_and(|n| (1..=most).contains(&n))
    })
);
word!(
    /// A public key of ssh's, or where it is.
    SshKey, "a key of ssh's: `file:alice.pub`, `gh:NAME`, `gl:NAME`, or a public key itself",
    "^(file:.+|g[hl]:[A-Za-z0-9][A-Za-z0-9._-]*|(ssh|sk|ecdsa)-.+)$", "file:alice.pub",
    |t| match t.split_once(':') {
        Some(("file", path)) if path.starts_with('/') => path.parse::<FilePath>().is_ok(),
        Some(("file", path)) => !path.is_empty(),
        Some(("gh" | "gl", name)) => name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)),
        _ => crate::guest::keys_in(t).is_ok_and(|keys| keys.len() == 1),
    }
);

impl SshKey {
    /// The file beside the manifest that it is in.
    pub fn beside(&self) -> Option<&Path> {
        self.as_str().strip_prefix("file:").filter(|p| !p.starts_with('/')).map(Path::new)
    }
}

/// A name of LVM's (lvm(8), "Valid names").
fn of_lvm(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() < 128
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "+_.-".contains(c))
}
word!(
    /// A volume group.
    LvmGroup, "a volume group of LVM's: letters, digits and `+_.-`", "^[A-Za-z0-9+_.][A-Za-z0-9+_.-]*$", "vg0",
    of_lvm
);
word!(
    /// A thin pool in its volume group.
    LvmThinPool, "a thin pool with its volume group: `vg0/vms`",
    "^[A-Za-z0-9+_.][A-Za-z0-9+_.-]*/[A-Za-z0-9+_.][A-Za-z0-9+_.-]*$", "vg0/vms",
    |t| t.split_once('/').is_some_and(|(group, pool)| of_lvm(group) && of_lvm(pool))
);
word!(
    /// A dataset (zfs(8), "ZFS File System Hierarchy").
    ZfsDataset, "a dataset of ZFS's: `tank/vms`", "^[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*$", "tank/vms",
    |t| t.len() < 200 && t.starts_with(|c: char| c.is_ascii_alphabetic())
        && t.split('/').all(|part| !matches!(part, "" | "." | "..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "_.:-".contains(c)))
);

word!(
    /// A branch of NVIDIA's driver.
    NvidiaBranch, "a branch of NVIDIA's driver: three digits", "^[0-9]{3}$", "580",
    |t| t.len() == 3 && t.bytes().all(|b| b.is_ascii_digit())
);

word!(
    /// A version of NVIDIA's driver, with or without the package's revision.
    NvidiaVersion, "a version of NVIDIA's driver", "^[0-9]{3}\\.[0-9]+(\\.[0-9]+)?(-[A-Za-z0-9.+~]+)?$", "580.95.05",
    |t| {
        let (upstream, revision) = t.split_once('-').map_or((t, None), |(u, r)| (u, Some(r)));
        let parts: Vec<&str> = upstream.split('.').collect();
        t.len() < 64 && (2..=3).contains(&parts.len()) && parts[0].len() == 3
            && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
            && revision.is_none_or(|r| !r.is_empty() && r.chars().all(|c| c.is_ascii_alphanumeric() || ".+~".contains(c)))
    }
);
word!(
    /// A CUDA toolkit, as its packages are named.
    CudaVersion, "a CUDA toolkit: major and minor with `-`", "^[0-9]{1,2}-[0-9]{1,2}$", "13-0",
    |t| t.split_once('-').is_some_and(|(a, b)| [a, b].iter().all(|n| (1..=2).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit())))
);
word!(
    /// The fingerprint of an OpenPGP key, of version 4.
    Fingerprint, "the fingerprint of a key: 40 characters of 0-9 and A-F", "^[0-9a-fA-F]{40}$",
    "EB693B3035CD5710E231E123A4B469963BF863CC",
    |t| t.len() == 40 && t.bytes().all(|b| b.is_ascii_hexdigit())
);
word!(
    /// A suite or a component of a package source.
    AptWord, "a suite or component: letters, digits and `._/-`", "^[A-Za-z0-9._/-]+$", "noble",
    |t| t.len() < 128 && !t.is_empty() && t.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c))
        && !t.split('/').any(|p| p == "..")
);

/// A slot, with or without one of its functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotOrFunction(pub PciSlot);
impl FromStr for SlotOrFunction {
    type Err = crate::types::PciError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<PciAddress>().map(|a| a.slot).or_else(|_| text.parse()).map(Self)
    }
}
impl fmt::Display for SlotOrFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
as_string!(
    SlotOrFunction,
    "a PCI slot, with or without a function",
    "^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F](\\.[0-7])?$",
    "0000:02:00"
);

word!(
    /// A type of vGPU. It becomes a line of a file that a shell script reads.
    VgpuType, "a type of vGPU as the card's list names it", "^[A-Za-z0-9][A-Za-z0-9 ._+-]*$", "NVIDIA A40-8Q",
    |t| t.len() < 64 && t.starts_with(|c: char| c.is_ascii_alphanumeric()) && !t.contains("  ") && !t.ends_with(' ')
        && t.chars().all(|c| c.is_ascii_alphanumeric() || " ._+-".contains(c))
);

/// A device that a VM is given: one of `gpus` or `devices` as a whole, or one of its vGPUs or virtual functions (`nic/0`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GivenDevice {
    /// Its name in `gpus` or `devices`.
    pub name: ResourceName,
    /// The number of the vGPU or virtual function, from 0.
    pub function: Option<u16>,
}
impl From<ResourceName> for GivenDevice {
    fn from(name: ResourceName) -> Self {
        Self { name, function: None }
    }
}
impl FromStr for GivenDevice {
    type Err = WordError;
    fn from_str(text: &str) -> Result<Self, WordError> {
        let (name, number) = text.split_once('/').map_or((text, None), |(name, number)| (name, Some(number)));
        // One form a number, so that the same function has the same name everywhere.
        let plain = |n: &str| n == "0" || n.starts_with(|c: char| ('1'..='9').contains(&c));
        let number = number.map(|n| n.parse::<u16>().ok().filter(|_| plain(n)));
        match (name.parse(), number) {
            (Ok(name), None) => Ok(Self { name, function: None }),
            (Ok(name), Some(Some(number))) => Ok(Self { name, function: Some(number) }),
            _ => Err(WordError {
                text: text.to_owned(),
                what: "a device's name, or with `/` and the number of a vGPU or virtual function: `nic/0`",
            }),
        }
    }
}
impl fmt::Display for GivenDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.function {
            None => self.name.fmt(f),
            Some(number) => write!(f, "{}/{number}", self.name),
        }
    }
}
as_string!(
    GivenDevice,
    "a name of `gpus` or `devices`, or one of its vGPUs or virtual functions",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/(0|[1-9][0-9]{0,4}))?$",
    "nic/0"
);

word!(
    /// A profile of a MIG instance, as the card names it.
    MigProfile, "a MIG profile as `nvidia-smi mig -lgip` names it", "^[0-9]+g\\.[0-9]+gb([+-][a-z]+(\\.[a-z]+)*)*$", "3g.40gb",
    |t| {
        let number = |n: &str| !n.is_empty() && n.len() < 5 && n.bytes().all(|b| b.is_ascii_digit());
        let rest = |r: &str| r.is_empty() || r.starts_with(['+', '-'])
            && r.split(['+', '-', '.']).skip(1).all(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase()));
        t.len() < 64 && t.split_once("g.").is_some_and(|(slices, r)| number(slices)
            && r.split_once("gb").is_some_and(|(memory, r)| number(memory) && rest(r)))
    }
);
word!(
    /// Processors of the host, by number: single ones and ranges.
    CpuSet, "a list of processors, such as `4-11` or `0,2,4-7`", "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$", "4-11",
    |t| t.len() < 512 && t.split(',').all(|part| {
        let number = |n: &str| n.parse::<u32>().ok().filter(|n| *n < 4096);
        match part.split_once('-') {
            None => number(part).is_some(),
            Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        }
    })
);
impl CpuSet {
    /// Each of them once, in order.
    pub fn numbers(&self) -> std::collections::BTreeSet<u32> {
        crate::types::cpu_list(&self.0)
    }
}

/// How many virtual processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct CpuCount(#[schemars(range(min = 1, max = 1024))] pub u32);
impl<'de> Deserialize<'de> for CpuCount {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match u32::deserialize(d)? {
            n @ 1..=1024 => Ok(Self(n)),
            n => Err(de::Error::custom(format_args!("{n} virtual processors are not possible; write 1 to 1024"))),
        }
    }
}

/// Deserialises from a scalar by `FromStr` of its first field, or from a mapping of all fields.
macro_rules! short_or_mapping {
    ($type:ident, $expects:literal, |$text:ident| $short:expr, { $($(#[$meta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(rename_all = "camelCase", deny_unknown_fields)]
                struct Full { $($(#[$meta])* $field: $ty),* }
                struct Either;
                impl<'de> Visitor<'de> for Either {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expects)
                    }
                    fn visit_str<E: de::Error>(self, $text: &str) -> Result<$type, E> {
                        $short
                    }
                    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$type, A::Error> {
                        let Full { $($field),* } = Full::deserialize(MapAccessDeserializer::new(map))?;
                        Ok($type { $($field),* })
                    }
                }
                d.deserialize_any(Either)
            }
        }
    };
}

impl From<CpuCount> for Cpus {
    fn from(count: CpuCount) -> Self {
        Self { count, sockets: None, cores: None, threads: None, pin: None, emulator: None }
    }
}

const CPUS: &str = "a number of virtual processors, or `{ count, pin, emulator, sockets, cores, threads }`";

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Full {
            #[serde(default)]
            count: Option<CpuCount>,
            #[serde(default)]
            sockets: Option<CpuCount>,
            #[serde(default)]
            cores: Option<CpuCount>,
            #[serde(default)]
            threads: Option<CpuCount>,
            #[serde(default)]
            pin: Option<CpuSet>,
            #[serde(default)]
            emulator: Option<CpuSet>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Cpus;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(CPUS)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cpus, E> {
                Err(E::custom(format_args!("expected {}, found `{text}`", CPUS)))
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Cpus, E> {
                let count = CpuCount::deserialize(de::value::U64Deserializer::<E>::new(n))?;
                Ok(count.into())
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Cpus, E> {
                let count = CpuCount::deserialize(de::value::I64Deserializer::<E>::new(n))?;
                Ok(count.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Cpus, A::Error> {
                let full = Full::deserialize(MapAccessDeserializer::new(map))?;
                let Full { count, sockets, cores, threads, pin, emulator } = full;
                let parts = [sockets, cores, threads];
                let all = parts.iter().flatten().try_fold(1u32, |all, n| all.checked_mul(n.0)).unwrap_or(u32::MAX);
                let count = match count {
                    Some(count) => count,
                    None if parts.iter().all(Option::is_none) => return Err(de::Error::missing_field("count")),
                    None => CpuCount::deserialize(de::value::U32Deserializer::<A::Error>::new(all))?,
                };
                Ok(Cpus { count, sockets, cores, threads, pin, emulator })
            }
        }
        d.deserialize_any(Either)
    }
}

short_or_mapping!(PackageEntry, "a package name, or `{ name, absent }`",
    |t| Ok(PackageEntry { name: t.parse().map_err(E::custom)?, absent: false }),
    { name: PackageName, #[serde(default)] absent: bool });
short_or_mapping!(Memory, "a size such as `16GiB`, or `{ size, pages }`",
    |t| Ok(Memory { size: t.parse().map_err(E::custom)?, pages: None }),
    { size: ByteSize, #[serde(default)] pages: Option<ByteSize> });
short_or_mapping!(DiskEntry, "a size such as `100GiB`, or `{ size, pool, path, bus, cache, discard }`",
    |t| Ok(DiskEntry::from(t.parse::<ByteSize>().map_err(E::custom)?)),
    { #[serde(default)] size: Option<ByteSize>, #[serde(default)] path: Option<FilePath>,
      #[serde(default)] pool: Option<ResourceName>, #[serde(default)] take_over: bool,
      #[serde(default)] bus: Option<DiskBus>, #[serde(default)] cache: Option<DiskCache>,
      #[serde(default)] discard: Option<DiskDiscard> });
impl From<ByteSize> for DiskEntry {
    fn from(size: ByteSize) -> Self {
        Self { size: Some(size), path: None, pool: None, take_over: false, bus: None, cache: None, discard: None }
    }
}
short_or_mapping!(NicEntry, "a network's name, or `{ name, mac, address, gateway, nameservers }`",
    |t| Ok(NicEntry { name: t.parse().map_err(E::custom)?, mac: None, address: None, gateway: None, nameservers: Vec::new() }),
    { name: ResourceName, #[serde(default)] mac: Option<MacAddress>, #[serde(default)] address: Option<IpWithPrefix>,
      #[serde(default)] gateway: Option<Ip>, #[serde(default)] nameservers: Vec<Ip> });
short_or_mapping!(DeviceMatch, "a slot such as `\"0000:02:00\"`, or one of `{ address }`, `{ slot }`, `{ model }`, `{ id }`, `{ serial }`, `{ uuid }`",
    |t| match t.starts_with("pci:") || t.starts_with("pcie:") {
        true => Err(E::custom(format!("`{t}` is a path of ports; write `match: {{ slot: \"{t}\" }}`"))),
        false => Ok(DeviceMatch { address: Some(t.parse().map_err(E::custom)?), ..DeviceMatch::default() }),
    },
    { #[serde(default)] address: Option<SlotOrFunction>, #[serde(default)] slot: Option<String>, #[serde(default)] model: Option<String>,
      #[serde(default)] id: Option<CardId>, #[serde(default)] serial: Option<String>, #[serde(default)] uuid: Option<String> });

impl<'de> Deserialize<'de> for Uplink {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            mac: MacAddress,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Uplink;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto`, a link's name, or `{ mac }`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Uplink, E> {
                match text {
                    "auto" => Ok(Uplink::Auto),
                    name => name.parse::<InterfaceName>().map(Uplink::Name).map_err(E::custom),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Uplink, A::Error> {
                Full::deserialize(MapAccessDeserializer::new(map)).map(|f| Uplink::Mac(f.mac))
            }
        }
        d.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for PackageSource {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = PackageSource;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`distribution`, or a repository `{ url, key, fingerprint }`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PackageSource, E> {
                match text {
                    "distribution" => Ok(PackageSource::Distribution),
                    other => Err(E::custom(format_args!(
                        "`{other}` is no source; write `distribution`, or `{{ url, key, fingerprint }}`"
                    ))),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PackageSource, A::Error> {
                RepositoryEntry::deserialize(MapAccessDeserializer::new(map)).map(PackageSource::Repository)
            }
        }
        d.deserialize_any(Either)
    }
}

impl schemars::JsonSchema for PackageSource {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PackageSource".into()
    }
    fn json_schema(g: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let repository = g.subschema_for::<RepositoryEntry>();
        schemars::json_schema!({
            "description": "Where packages come from: `distribution` (apt's sources as they are), or a repository.",
            "anyOf": [{ "const": "distribution" }, repository]
        })
    }
}

impl schemars::JsonSchema for Uplink {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Uplink".into()
    }
    fn json_schema(g: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mac = g.subschema_for::<MacAddress>();
        let name = g.subschema_for::<InterfaceName>();
        schemars::json_schema!({
            "description": "The link that becomes a bridge's port: `auto`, a name, or `{ mac: … }`.",
            "anyOf": [
                { "const": "auto" },
                name,
                { "type": "object", "properties": { "mac": mac }, "required": ["mac"], "additionalProperties": false }
            ]
        })
    }
}
