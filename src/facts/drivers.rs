//! What has to be known for drivers of the host's own GPUs, read only where a manifest wants some: what apt's lists offer,
//! what runs, and what the next boot finds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::firmware::{SecureBoot, own_key_enrolled, secure_boot};
use super::os::{names, text};
use super::{HostFacts, Known};
use crate::host::{Answer, Probe};
use crate::types::{compare_versions, without_userinfo};

/// Where apt keeps what its sources have (apt-get(8), FILES).
pub const LISTS: &str = "/var/lib/apt/lists";
/// Where apt's preferences are (apt_preferences(5)).
pub const PREFERENCES: &str = "/etc/apt/preferences.d";
const SOURCES: &str = "/etc/apt/sources.list.d";

/// The kernel's module of NVIDIA's driver that is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadedModule {
    /// `580.95.05`; `None` where the module does not tell.
    pub version: Option<String>,
    /// Whether it is the open one; `None` where the module does not tell.
    pub open: Option<bool>,
}

/// A package in a version, in one of apt's lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// The version.
    pub version: String,
    /// The name of the list's file.
    pub list: String,
}

/// What is known for drivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DriverFacts {
    /// Packages of drivers, toolkits and firmware that apt's lists have, by name.
    pub offers: BTreeMap<String, Vec<Offer>>,
    /// The lists of packages that are there.
    pub lists: BTreeSet<String>,
    /// Lists that could not be read, with the reason.
    pub unread: Vec<String>,
    /// Files of ours among apt's preferences, by name.
    pub preferences: BTreeMap<String, String>,
    /// The address of each source that others than gpuvm wrote down, with the file.
    pub others: Vec<(String, String)>,
    /// NVIDIA's module, where it is loaded.
    pub nvidia: Option<LoadedModule>,
    /// The kernel that runs.
    pub running_kernel: String,
    /// The newest one in /boot, which the next boot takes.
    pub next_kernel: String,
    /// Whether that one has a module `nvidia`.
    pub next_has_module: bool,
    /// Secure boot.
    pub secure_boot: SecureBoot,
    /// The certificate that modules built here are signed with, and whether it is enrolled.
    pub own_key: Known<(String, bool)>,
}

/// Looks.
pub fn look(probe: &dyn Probe, facts: &HostFacts) -> DriverFacts {
    let all = names(probe, LISTS);
    let lists: BTreeSet<String> = all.into_iter().filter(|n| n.contains("_Packages")).collect();
    let mut offers: BTreeMap<String, Vec<Offer>> = BTreeMap::new();
    let mut unread = Vec::new();
    for list in &lists {
        // The two large components of Debian and Ubuntu have no driver, toolkit or firmware of a maker's in them.
        if ["_main_", "_universe_"].iter().any(|c| list.contains(c)) {
            continue;
        }
        match probe.read(Path::new(&format!("{LISTS}/{list}"))) {
            Ok(Answer::Value(bytes)) => {
                let Some(text) = plain(list, bytes) else {
                    unread.push(format!("{list} cannot be read"));
                    continue;
                };
                for (name, version) in packages(&text).filter(|(name, _)| concerns_drivers(name)) {
                    let offer = Offer { version: version.to_owned(), list: list.clone() };
                    offers.entry(name.to_owned()).or_default().push(offer);
                }
            }
            Ok(Answer::Denied) => unread.push(format!("{list} may not be read")),
            Ok(Answer::Absent) => {}
            Err(e) => unread.push(e.to_string()),
        }
    }
    for offers in offers.values_mut() {
        offers.sort_by(|a, b| compare_versions(&b.version, &a.version).then_with(|| a.list.cmp(&b.list)));
    }
    let preferences = names(probe, PREFERENCES).into_iter().filter(|n| n.starts_with("gpuvm-"));
    let preferences = preferences.map(|n| (n.clone(), text(probe, &format!("{PREFERENCES}/{n}")))).collect();
    let next_kernel = newest_kernel(probe).unwrap_or_else(|| facts.kernel.release.clone());
    DriverFacts {
        offers,
        unread,
        preferences,
        others: others(probe),
        nvidia: loaded(probe),
        running_kernel: facts.kernel.release.clone(),
        next_has_module: has_module(probe, &next_kernel),
        next_kernel,
        secure_boot: secure_boot(probe, facts.boot.uefi),
        own_key: own_key_enrolled(probe),
        lists,
    }
}

impl DriverFacts {
    /// Whether apt has a list of packages of a source, whose files begin so.
    pub fn has_list(&self, prefix: &str) -> bool {
        self.lists.iter().any(|l| l.starts_with(prefix))
    }
}

/// The names that a driver, its toolkits or its firmware can have: the rest of a list is not kept.
fn concerns_drivers(name: &str) -> bool {
    name.contains("nvidia") || ["cuda-drivers", "cuda-toolkit-", "firmware-"].iter().any(|p| name.starts_with(p))
}

/// No list is larger.
const MOST: u64 = 1 << 28;

/// A list's text; apt keeps them compressed where it is told to (apt.conf(5), `Acquire::GzipIndexes`).
fn plain(name: &str, bytes: Vec<u8>) -> Option<String> {
    let mut text = Vec::new();
    match name.rsplit_once("_Packages")?.1 {
        "" => text = bytes,
        ".gz" => _ = flate2::read::MultiGzDecoder::new(&bytes[..]).take(MOST).read_to_end(&mut text).ok()?,
        _ => return None,
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Name and version of each package of a list (deb822(5)).
fn packages(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("\n\n").filter_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        Some((field("Package")?, field("Version")?))
    })
}

/// The addresses in apt's sources (sources.list(5)), both forms, but for files of ours.
fn others(probe: &dyn Probe) -> Vec<(String, String)> {
    let parts = names(probe, SOURCES).into_iter().filter(|n| !n.starts_with("gpuvm-"));
    let files = parts.map(|n| format!("{SOURCES}/{n}")).chain(["/etc/apt/sources.list".to_owned()]);
    let mut all = Vec::new();
    for path in files.filter(|p| p.ends_with(".list") || p.ends_with(".sources")) {
        let text = text(probe, &path);
        for line in text.lines().filter(|l| !l.trim_start().starts_with('#')) {
            for word in line.split_whitespace().filter(|w| w.contains(":/")) {
                all.push((path.clone(), without_userinfo(word).into_owned()));
            }
        }
    }
    all
}

/// The module that is loaded: the kernel tells its version (Documentation/ABI/stable/sysfs-module), and the driver itself
/// which one it is.
fn loaded(probe: &dyn Probe) -> Option<LoadedModule> {
    let told = text(probe, "/proc/driver/nvidia/version");
    let version = text(probe, "/sys/module/nvidia/version").trim().to_owned();
    // `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.48.01  Release Build …`; the line of the compiler
    // below it has dotted numbers too.
    let line = told.lines().find(|l| l.starts_with("NVRM version:"));
    let told_version = line.and_then(|l| l.split_whitespace().find(|w| is_version(w))).map(str::to_owned);
    if version.is_empty() && line.is_none() && !super::os::exists(probe, "/sys/module/nvidia") {
        return None;
    }
    Some(LoadedModule {
        version: if version.is_empty() { told_version } else { Some(version) },
        open: line.map(|l| l.contains("Open Kernel Module")),
    })
}

fn is_version(word: &str) -> bool {
    word.split('.').count() >= 2 && word.split('.').all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

fn newest_kernel(probe: &dyn Probe) -> Option<String> {
    let there = names(probe, "/boot").into_iter().filter_map(|n| n.strip_prefix("vmlinuz-").map(str::to_owned));
    there.max_by(|a, b| compare_versions(a, b).then_with(|| a.cmp(b)))
}

/// As depmod(8) lists it, wherever it lies.
fn has_module(probe: &dyn Probe, release: &str) -> bool {
    let list = text(probe, &format!("/lib/modules/{release}/modules.dep"));
    list.lines().filter_map(module_of).any(|m| is_module(&m, "nvidia"))
}

/// The module that a line of `modules.dep` or `modules.builtin` is about, with `_` for `-`, as the kernel writes it.
pub fn module_of(line: &str) -> Option<String> {
    Some(line.split(':').next()?.rsplit('/').next()?.split_once(".ko")?.0.replace('-', "_"))
}

/// Whether a module that is installed is the one of a driver; both with `_`. Debian's packages install NVIDIA's by flavour
/// (`nvidia-current.ko`, `nvidia-current-open.ko`: dkms.conf of nvidia-kernel-dkms and nvidia-open-kernel-dkms,
/// DEST_MODULE_NAME), and an alias of modprobe's makes `nvidia` of it.
pub fn is_module(installed: &str, driver: &str) -> bool {
    installed.strip_prefix(driver).is_some_and(|flavour| ["", "_current", "_current_open"].contains(&flavour))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Fixture, Record};

    fn host(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Fixture) {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = dir.path().join("root").join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("root")).unwrap();
        Record::default().save(&dir.path().join(Record::NAME)).unwrap();
        let fixture = Fixture::open(dir.path()).unwrap();
        (dir, fixture)
    }

    #[test]
    fn the_loaded_module_is_told_by_the_driver_and_not_by_the_compiler_line() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.48.01  Release Build  (dvs-builder@U22)\n\
                    GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n";
        let proprietary = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  510.60.02  Wed Mar 16 11:24:05 UTC 2022\n\
                           GCC version:  gcc version 10.2.1 20210110 (Debian 10.2.1-6)\n";
        for (text, version, is_open) in [(open, "590.48.01", true), (proprietary, "510.60.02", false)] {
            let (_dir, host) = host(&[("/proc/driver/nvidia/version", text.as_bytes())]);
            let known = loaded(&host).unwrap();
            assert_eq!((known.version.as_deref(), known.open), (Some(version), Some(is_open)));
        }
        let (_dir, silent) = host(&[("/sys/module/nvidia/refcnt", b"0\n")]);
        assert_eq!(loaded(&silent), Some(LoadedModule { version: None, open: None }), "loaded, and tells nothing");
        assert_eq!(loaded(&host(&[]).1), None);
    }

    #[test]
    fn the_next_kernel_has_the_driver_under_debians_names_too() {
        for (line, has) in [
            ("updates/dkms/nvidia.ko.zst: kernel/drivers/video/backlight.ko", true),
            ("updates/dkms/nvidia-current.ko.xz:", true),
            ("updates/dkms/nvidia-current-open.ko:", true),
            // Parts of it, and others.
            ("updates/dkms/nvidia-current-drm.ko: updates/dkms/nvidia-current-modeset.ko", false),
            ("kernel/drivers/usb/typec/altmodes/typec_nvidia.ko:", false),
            ("kernel/drivers/net/x.ko: updates/dkms/nvidia.ko", false),
        ] {
            let (_dir, host) = host(&[("/lib/modules/6.12.57/modules.dep", format!("{line}\n").as_bytes())]);
            assert_eq!(has_module(&host, "6.12.57"), has, "{line}");
        }
    }

    #[test]
    fn sources_of_others_are_read_in_both_forms_without_their_passwords() {
        let (_dir, host) = host(&[
            (
                "/etc/apt/sources.list",
                b"# deb http://old/ x main\ndeb [signed-by=/k.gpg] https://me:pw@m.test/debian trixie main\n",
            ),
            (
                "/etc/apt/sources.list.d/cuda.sources",
                b"Types: deb\nURIs: https://a.test/x/ https://b.test/y\nSuites: /\n",
            ),
            ("/etc/apt/sources.list.d/gpuvm-nvidia.sources", b"URIs: https://ours.test/\n"),
        ]);
        let all: Vec<String> = others(&host).into_iter().map(|(_, uri)| uri).collect();
        assert_eq!(all, ["https://a.test/x/", "https://b.test/y", "https://m.test/debian"]);
    }

    #[test]
    fn a_key_is_enrolled_where_shim_has_its_certificate() {
        let certificate: Vec<u8> = (0..200u8).collect();
        let list = [&[6u8, 0, 0, 0][..], &[7; 44], &certificate].concat();
        let place = "/var/lib/dkms/mok.pub";
        let told = |files: &[(&str, &[u8])]| own_key_enrolled(&host(files).1);
        const MOK: &str = "/sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23";
        assert_eq!(told(&[(place, &certificate), (MOK, &list)]), Known::Value((place.to_owned(), true)));
        assert_eq!(told(&[(place, &certificate), (MOK, &list[..60])]), Known::Value((place.to_owned(), false)));
        assert_eq!(told(&[(place, &certificate)]), Known::Value((place.to_owned(), false)));
        assert!(matches!(told(&[(MOK, &list)]), Known::Unknown(_)), "no key yet");
    }

    #[test]
    fn lists_give_names_and_versions_of_drivers_only() {
        let text = "Package: nvidia-open-580\nArchitecture: amd64\nVersion: 580.95.05-0ubuntu1\nDescription: x\n\n\
                    Package: htop\nVersion: 3\n\nPackage: nvidia-open-580\nVersion: 580.105.08-0ubuntu1\n";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, b"Package: nvidia-packed\nVersion: 2\n").unwrap();
        let packed = packed.finish().unwrap();
        let (_dir, host) = host(&[
            ("/var/lib/apt/lists/r.test_x86%5f64_Packages", text.as_bytes()),
            ("/var/lib/apt/lists/d.test_dists_x_main_binary-amd64_Packages", b"Package: nvidia-main\nVersion: 1\n"),
            ("/var/lib/apt/lists/r.test_non-free_Packages.lz4", b""),
            ("/var/lib/apt/lists/s.test_Packages.gz", &packed),
        ]);
        let known = look(&host, &super::super::collect(&host));
        let versions: Vec<&str> = known.offers["nvidia-open-580"].iter().map(|o| o.version.as_str()).collect();
        assert_eq!(versions, ["580.105.08-0ubuntu1", "580.95.05-0ubuntu1"]);
        assert_eq!(known.offers.keys().collect::<Vec<_>>(), ["nvidia-open-580", "nvidia-packed"]);
        assert_eq!(known.unread, ["r.test_non-free_Packages.lz4 cannot be read"]);
        assert!(known.has_list("r.test_x86%5f64_") && !known.has_list("q.test"));
    }
}
