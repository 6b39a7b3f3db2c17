//! What boots next, and whether the devices that are kept for VMs are still theirs then: the kernel that the boot loader
//! takes, its initramfs, its command line, its modules. Read once in [`NextBoot::look`], judged by [`judge`], which is
//! pure.

mod grub;
mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::looked::version;
use super::{Link, Verdict};
use crate::facts::{BootLoader, HostFacts};
use crate::gpu::vfio_rule::VfioRule;
use crate::gpu::{names, text};
use crate::host::{Answer, Initramfs, Probe};
use crate::types::PciAddress;

pub(super) use judge::initramfs;
pub use judge::judge;

const GRUB_CFG: &str = "/boot/grub/grub.cfg";
const GRUB_ENV: &str = "/boot/grub/grubenv";

/// How the kernel was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// The boot loader's configuration says so: what there, and the entry's title.
    Configured(String, String),
    /// The newest one, because the configuration could not be read: why.
    Newest(String),
}

/// An initramfs that the kernel is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// It was read.
    Read(Arc<Initramfs>),
    /// It is not there.
    Missing,
    /// It could not be read: why.
    Unknown(String),
}

/// Devices that gpuvm's rules keep for VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The name that the manifest gives them.
    pub name: String,
    /// The file's name.
    pub file: String,
    /// Its content.
    pub text: String,
    /// The functions that it takes, of those that are there.
    pub functions: BTreeSet<PciAddress>,
}

/// What was looked at.
#[derive(Debug, Clone)]
pub struct NextBoot {
    /// How the kernel was found.
    pub chosen: Chosen,
    /// The kernel's release; none where what boots is no kernel, or none is there.
    pub release: Option<String>,
    /// Whether its file is in /boot.
    pub kernel_there: bool,
    /// The newest kernel in /boot.
    pub newest: Option<String>,
    /// Its command line and where that is from; none where it is not known.
    pub cmdline: Option<(String, Vec<String>)>,
    /// What is given to it as initramfs, in order.
    pub initramfs: Vec<(String, Content)>,
    /// Its modules, built in or as files, with `_`; none where the list could not be read.
    pub modules: Option<BTreeSet<String>>,
    /// Those that are built in.
    pub built_in: BTreeSet<String>,
    /// Whether it turns Intel's IOMMU on by itself, where its configuration is there.
    pub intel_on: Option<bool>,
    /// What DKMS has built: for each module and version, the kernels.
    pub dkms: BTreeMap<String, BTreeSet<String>>,
    /// The modules that the GPUs' drivers are in, by the drivers' own names, which may be others (`bochs-drm` is in
    /// `bochs`); without those for which sysfs does not tell.
    pub driver_modules: BTreeMap<String, String>,
    /// What is kept for VMs.
    pub rules: Vec<Rule>,
}

impl NextBoot {
    /// Looks.
    pub fn look(probe: &dyn Probe, facts: &HostFacts) -> Self {
        let all = names(probe, "/boot").into_iter().filter_map(|n| n.strip_prefix("vmlinuz-").map(str::to_owned));
        let newest = all.max_by_key(|v| version(v));
        let (chosen, entry) = match configured(probe, facts) {
            Ok((how, entry)) => (how, Some(entry)),
            Err(why) => (Chosen::Newest(why), None),
        };
        let release = match &entry {
            Some(entry) => entry.linux.as_ref().and_then(|(path, _)| release_of(probe, path)),
            None => newest.clone(),
        };
        let files: Vec<String> = match (&entry, &release) {
            (Some(entry), _) => entry.initrd.iter().map(|path| in_boot(path)).collect(),
            (None, Some(release)) => {
                // Debian's name, then dracut's own.
                let names = ["initrd.img-", "initramfs-"].map(|n| format!("/boot/{n}{release}"));
                let there = |path: &String| exists(probe, path) || exists(probe, &format!("{path}.img"));
                vec![names.iter().find(|n| there(n)).unwrap_or(&names[0]).clone()]
            }
            (None, None) => Vec::new(),
        };
        let cmdline =
            entry.and_then(|e| e.linux).map(|(_, args)| (GRUB_CFG.to_owned(), crate::facts::arguments(&args)));
        let modules = release.as_ref().map(|r| format!("/lib/modules/{r}"));
        let list = |name: &str| modules.as_ref().and_then(|m| text(probe, &format!("{m}/{name}")));
        let of = |list: String| list.lines().filter_map(crate::facts::drivers::module_of).collect::<BTreeSet<_>>();
        let built_in = list("modules.builtin").map(of).unwrap_or_default();
        let config = release.as_ref().and_then(|r| text(probe, &format!("/boot/config-{r}")));
        Self {
            kernel_there: release.as_ref().is_some_and(|r| exists(probe, &format!("/boot/vmlinuz-{r}"))),
            initramfs: files.into_iter().map(|path| (path.clone(), content(probe, &path))).collect(),
            modules: list("modules.dep").map(of).map(|m| m.union(&built_in).cloned().collect()),
            built_in,
            intel_on: config.map(|c| c.lines().any(|l| l == "CONFIG_INTEL_IOMMU_DEFAULT_ON=y")),
            dkms: dkms(probe),
            driver_modules: driver_modules(probe, facts),
            rules: rules(probe, facts),
            chosen,
            release,
            newest,
            cmdline,
        }
    }

    /// Everything that the kernel unpacks, one over the other; none where a part of it is not known.
    pub fn unpacked(&self) -> Option<Initramfs> {
        let mut all = Initramfs::default();
        for (_, content) in &self.initramfs {
            match content {
                Content::Read(one) => all.add((**one).clone()),
                Content::Missing | Content::Unknown(_) => return None,
            }
        }
        (!self.initramfs.is_empty()).then_some(all)
    }

    /// The kernel that starts next, where the boot loader's configuration says so.
    pub fn known_release(&self) -> Option<&str> {
        self.release.as_deref().filter(|_| matches!(self.chosen, Chosen::Configured(..)))
    }
}

/// What `gpuvm check --next-boot` answers, and what the hooks for updates record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NextBootReport {
    /// The kernel that starts next.
    pub kernel: Option<String>,
    /// The devices that are kept for VMs, by the manifest's names.
    pub kept: Vec<String>,
    /// The answer; none where nothing is kept for VMs.
    pub verdict: Option<Verdict>,
    /// The answer in a sentence.
    pub summary: String,
    /// The chain.
    pub links: Vec<Link>,
}

fn exists(probe: &dyn Probe, path: &str) -> bool {
    matches!(probe.stat(Path::new(path)), Ok(Answer::Value(_)))
}

/// Whether /boot is a file system of its own or not, the files are there to the host.
fn in_boot(path: &str) -> String {
    format!("/boot/{}", path.rsplit('/').next().unwrap_or(path))
}

fn release_of(probe: &dyn Probe, path: &str) -> Option<String> {
    let at = in_boot(path);
    let name = match probe.link(Path::new(&at)) {
        Ok(Answer::Value(target)) => target.file_name()?.to_str()?.to_owned(),
        _ => at.rsplit('/').next()?.to_owned(),
    };
    Some(name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-"))?.to_owned())
}

fn configured(probe: &dyn Probe, facts: &HostFacts) -> Result<(Chosen, grub::Entry), String> {
    match &facts.boot.loader {
        BootLoader::Grub { .. } | BootLoader::GrubWithoutUpdate => {}
        BootLoader::SystemdBoot => return Err("systemd-boot, whose choice gpuvm does not read".to_owned()),
        BootLoader::Extlinux => return Err("extlinux, whose choice gpuvm does not read".to_owned()),
        BootLoader::Unknown(why) => return Err(why.clone()),
    }
    let cfg = match probe.text(Path::new(GRUB_CFG)) {
        Ok(Answer::Value(cfg)) => cfg,
        Ok(Answer::Denied) => return Err(format!("{GRUB_CFG} may not be read (not root)")),
        Ok(Answer::Absent) => return Err(format!("{GRUB_CFG} is not there")),
        Err(e) => return Err(e.to_string()),
    };
    let menu = grub::parse(&cfg);
    let env = grub::environment(&text(probe, GRUB_ENV).unwrap_or_default());
    let (entry, by) = grub::chosen(&menu, &env)?;
    Ok((Chosen::Configured(by, entry.title.clone()), entry.clone()))
}

fn content(probe: &dyn Probe, path: &str) -> Content {
    match probe.initramfs(Path::new(path)) {
        Ok(Answer::Value(found)) => Content::Read(found),
        Ok(Answer::Absent) => Content::Missing,
        Ok(Answer::Denied) => Content::Unknown("it may not be read (not root)".to_owned()),
        Err(e) => Content::Unknown(e.to_string()),
    }
}

/// `/sys/bus/pci/drivers/NAME/module` leads to `/sys/module/MODULE` (`module_add_driver` in the kernel).
fn driver_modules(probe: &dyn Probe, facts: &HostFacts) -> BTreeMap<String, String> {
    let drivers: BTreeSet<&String> =
        facts.pci.values().filter(|f| f.is_gpu()).filter_map(|f| f.driver.as_ref()).collect();
    let module = |driver: &String| {
        let path = format!("/sys/bus/pci/drivers/{driver}/module");
        let link = probe.link(std::path::Path::new(&path)).ok().and_then(crate::host::Answer::value)?;
        Some((driver.clone(), link.file_name()?.to_string_lossy().into_owned()))
    };
    drivers.into_iter().filter_map(module).collect()
}

/// /var/lib/dkms/MODULE/VERSION/KERNEL/ARCH (dkms(8)); `source` and `build` are no kernels.
fn dkms(probe: &dyn Probe) -> BTreeMap<String, BTreeSet<String>> {
    const TREE: &str = "/var/lib/dkms";
    let mut all = BTreeMap::new();
    for module in names(probe, TREE) {
        for version in names(probe, &format!("{TREE}/{module}")) {
            let kernels = names(probe, &format!("{TREE}/{module}/{version}"));
            let kernels = kernels.into_iter().filter(|k| k.starts_with(|c: char| c.is_ascii_digit()));
            let kernels: BTreeSet<String> = kernels.collect();
            if version.starts_with(|c: char| c.is_ascii_digit()) {
                all.insert(format!("{module}/{version}"), kernels);
            }
        }
    }
    all
}

fn rules(probe: &dyn Probe, facts: &HostFacts) -> Vec<Rule> {
    const FOLDER: &str = "/etc/udev/rules.d";
    let read = |file: String| {
        let name = file.strip_prefix("61-gpuvm-vfio-")?.strip_suffix(".rules")?.to_owned();
        // Byte for byte: it is compared.
        let text = probe.text(Path::new(&format!("{FOLDER}/{file}"))).ok()?.value()?;
        let rules: Vec<VfioRule> = VfioRule::all(&text).collect();
        let taken = facts.pci.values().filter(|f| rules.iter().any(|r| r.takes(f)));
        let functions = taken.map(|f| f.address).collect();
        Some(Rule { name, file, functions, text })
    };
    names(probe, FOLDER).into_iter().filter_map(read).collect()
}
