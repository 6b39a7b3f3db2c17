//! The images that have a name without being declared: data, beside this file.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::Origin;
use crate::types::from_base64;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Family {
    /// How its images are named, where not by the family's own name.
    name: Option<String>,
    #[serde(default)]
    installs: bool,
    /// What there is for; everything where none is said.
    #[serde(default)]
    arches: Vec<String>,
    base: String,
    streams: Option<Streams>,
    sums: Option<Sums>,
    signed_by: Option<String>,
    #[serde(default)]
    open: bool,
    releases: BTreeMap<String, Release>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Streams {
    index: String,
    content: String,
    product: String,
    files: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sums {
    list: String,
    newest: Newest,
    dated: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Newest {
    version: String,
    file: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Release {
    codename: Option<String>,
    ended: Option<String>,
}

/// Nothing where the data that gpuvm is built with cannot be read, which a test sees.
static FAMILIES: LazyLock<BTreeMap<String, Family>> =
    LazyLock::new(|| serde_yaml::from_str(include_str!("builtin.yaml")).unwrap_or_default());

/// The keys that lists are signed with: fingerprint, and the key in base64.
const KEYS: [(&str, &str); 2] = [
    ("D2EB44626FDDC30B513D5BB71A5D6C4C7DB87C81", include_str!("ubuntu-cloudimage.b64")),
    ("843938DF228D22F7B3742BC0D94AA3F0EFE21092", include_str!("ubuntu-cdimage.b64")),
];

/// A built-in image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builtin {
    family: String,
    release: String,
    /// The month in which its maker stopped to mend it, where that is known.
    pub ended: Option<String>,
    /// The medium of an installer, and no disk that is set up already.
    pub installs: bool,
}

/// The built-in image of this name: `ubuntu-24.04`, `debian-13`, `ubuntu-24.04-desktop`.
pub fn builtin(name: &str) -> Option<Builtin> {
    FAMILIES.iter().find_map(|(family, data)| {
        let pattern = data.pattern(family);
        let (before, after) = pattern.split_once("{release}")?;
        let release = name.strip_prefix(before)?.strip_suffix(after)?;
        let known = data.releases.get(release);
        let ended = known.and_then(|r| r.ended.clone());
        let (family, release_name) = (family.clone(), release.to_owned());
        (known.is_some() || (data.open && is_release(release))).then_some(Builtin {
            family,
            release: release_name,
            ended,
            installs: data.installs,
        })
    })
}

impl Family {
    fn pattern(&self, family: &str) -> String {
        self.name.clone().unwrap_or_else(|| format!("{family}-{{release}}"))
    }
}

/// `25.10`: two digits, a dot, two digits.
fn is_release(text: &str) -> bool {
    let two = |t: &str| t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
    text.split_once('.').is_some_and(|(year, month)| two(year) && two(month))
}

/// The names that are known to this gpuvm, without those whose time is over.
pub fn names() -> Vec<String> {
    let all = FAMILIES.iter().flat_map(|(family, data)| data.releases.iter().map(move |(r, known)| (family, r, known)));
    let mut names: Vec<String> = all
        .filter(|(.., known)| known.ended.is_none())
        .map(|(family, release, _)| {
            let pattern = FAMILIES.get(family).map_or_else(String::new, |data| data.pattern(family));
            pattern.replace("{release}", release)
        })
        .collect();
    names.sort();
    names
}

/// The key of this fingerprint, as gpgv and sqv read it.
pub fn key(fingerprint: &str) -> Option<Vec<u8>> {
    let (_, text) = KEYS.iter().find(|(known, _)| *known == fingerprint)?;
    from_base64(text)
}

impl Builtin {
    /// Its release: `24.04`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Whether there is one for guests of this architecture (`amd64`).
    pub fn is_for(&self, arch: &str) -> bool {
        FAMILIES.get(&self.family).is_some_and(|data| data.arches.is_empty() || data.arches.iter().any(|a| a == arch))
    }

    /// Where it comes from, for guests of this architecture (`amd64`): from another server where `base` is given, and in
    /// another version than the newest.
    pub fn origin(&self, arch: &str, base: Option<&str>, version: Option<&str>) -> Option<Origin> {
        let data = FAMILIES.get(&self.family)?;
        let known = data.releases.get(&self.release);
        let codename = known.and_then(|r| r.codename.clone()).unwrap_or_default();
        let fill = |pattern: &str, version: &str| {
            let filled = pattern.replace("{release}", &self.release).replace("{codename}", &codename);
            filled.replace("{arch}", arch).replace("{version}", version)
        };
        let mut base = base.unwrap_or(&data.base).to_owned();
        if !base.ends_with('/') {
            base.push('/');
        }
        if let Some(streams) = &data.streams {
            return Some(Origin::Streams {
                base,
                index: streams.index.clone(),
                content: streams.content.clone(),
                product: fill(&streams.product, ""),
                files: streams.files.clone(),
                signed_by: data.signed_by.clone()?,
                version: version.map(str::to_owned),
            });
        }
        let sums = data.sums.as_ref()?;
        let (file, version) = match version {
            Some(version) => (fill(&sums.dated, version), version),
            None => (fill(&sums.newest.file, &sums.newest.version), sums.newest.version.as_str()),
        };
        Some(Origin::Sums { base, list: fill(&sums.list, version), file, signed_by: data.signed_by.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_read_and_every_name_leads_somewhere() {
        let all = [
            "debian-12",
            "debian-13",
            "ubuntu-22.04",
            "ubuntu-24.04",
            "ubuntu-24.04-desktop",
            "ubuntu-26.04",
            "ubuntu-26.04-desktop",
        ];
        assert_eq!(names(), all);
        for name in names() {
            let origin = builtin(&name).unwrap().origin("amd64", None, None).unwrap();
            assert!(origin.place().starts_with("https://") && !origin.place().contains('{'), "{origin:?}");
        }
        assert_eq!(builtin("ubuntu-23.10").unwrap().ended.as_deref(), Some("2024-07"));
        assert_eq!(builtin("ubuntu-27.04").unwrap().ended, None, "any other release goes too");
        for wrong in [
            "ubuntu",
            "ubuntu-",
            "ubuntu-24.4",
            "ubuntu-noble",
            "debian-11",
            "fedora-44",
            "ubuntu-24.04.1",
            "ubuntu-22.04-desktop",
        ] {
            assert_eq!(builtin(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_version_and_another_server_are_filled_in() {
        let debian = builtin("debian-13").unwrap();
        assert_eq!(
            debian.origin("arm64", Some("https://mirror.example/debian"), Some("20260811-2198")).unwrap(),
            Origin::Sums {
                base: "https://mirror.example/debian/".to_owned(),
                list: "trixie/20260811-2198/SHA512SUMS".to_owned(),
                file: "trixie/20260811-2198/debian-13-generic-arm64-20260811-2198.qcow2".to_owned(),
                signed_by: None,
            }
        );
        let Some(Origin::Sums { list, file, .. }) = debian.origin("amd64", None, None) else { panic!("a list") };
        assert_eq!(list, "trixie/latest/SHA512SUMS");
        assert_eq!(file, "trixie/latest/debian-13-generic-amd64.qcow2");
        let Some(Origin::Streams { product, signed_by, version, .. }) =
            builtin("ubuntu-24.04").unwrap().origin("amd64", None, Some("20260814"))
        else {
            panic!("a stream")
        };
        assert_eq!((product.as_str(), version.as_deref()), ("com.ubuntu.cloud:server:24.04:amd64", Some("20260814")));
        // An OpenPGP public key packet of version 4, whose fingerprint is the sha1 of it that gpgv checks.
        let key_of = |signer: &str| key(signer).unwrap();
        let key = key_of(&signed_by);
        assert_eq!((key[0], key[3], key.len()), (0x99, 4, 1178));
        let desktop = builtin("ubuntu-24.04-desktop").unwrap();
        assert!(desktop.installs && desktop.release() == "24.04" && !builtin("ubuntu-24.04").unwrap().installs);
        assert!(desktop.is_for("amd64") && !desktop.is_for("arm64") && debian.is_for("arm64"));
        let Some(Origin::Sums { list, file, signed_by: Some(signer), .. }) = desktop.origin("amd64", None, None) else {
            panic!("a signed list")
        };
        assert_eq!((list.as_str(), file.as_str()), ("24.04/SHA256SUMS", "24.04/ubuntu-24.04*-desktop-amd64.iso"));
        let key = key_of(&signer);
        assert_eq!((key[0], key[3], key.len()), (0x99, 4, 1165));
        let Some(Origin::Sums { file, .. }) = desktop.origin("amd64", None, Some("24.04.2")) else { panic!("a list") };
        assert_eq!(file, "24.04/ubuntu-24.04.2-desktop-amd64.iso");
    }
}
