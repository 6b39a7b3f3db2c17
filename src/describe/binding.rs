//! What keeps a slot for VMs that gpuvm did not write: options of modprobe, the kernel's command line, udev rules,
//! driverctl, scripts of the initramfs, and libvirt for a VM that runs.

use std::path::{Path, PathBuf};

use crate::facts::{HostFacts, PciFunction};
use crate::host::{Answer, Probe};
use crate::resource::libvirt_domain::managed_functions;
use crate::types::PciSlot;

/// One place that binds functions of a slot to vfio-pci.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file with the line; or what it is.
    pub place: String,
    /// What is written there.
    pub text: String,
    /// Devices beside the slot that it takes too, since it goes by id.
    pub also: Vec<PciSlot>,
    /// It holds only as long as something runs.
    pub passing: bool,
}

/// Everything that binds a slot, as far as files tell.
pub fn sources(slot: PciSlot, probe: &dyn Probe, facts: &HostFacts) -> Vec<Source> {
    let functions: Vec<&PciFunction> = facts.slot(slot).collect();
    let mut found = Vec::new();
    let mut seen = Vec::new();
    let mut add = |place: String, text: &str, ids: Option<&str>| {
        let also = match ids {
            Some(ids) => match by_ids(ids, &functions, facts) {
                Some(also) => also,
                None => return,
            },
            None => Vec::new(),
        };
        found.push(Source { place, text: text.trim().to_owned(), also, passing: false });
    };
    for dir in ["/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"] {
        for (path, text) in files(probe, dir, ".conf") {
            // /lib is /usr/lib on a merged host.
            if seen.contains(&(path.file_name().map(ToOwned::to_owned), text.clone())) {
                continue;
            }
            for (n, line) in lines(&text) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let ids = words.iter().find_map(|w| w.strip_prefix("ids="));
                if let (["options", "vfio-pci" | "vfio_pci", ..], Some(ids)) = (&words[..], ids) {
                    add(format!("{}:{n}", path.display()), line, Some(ids));
                }
            }
            seen.push((path.file_name().map(ToOwned::to_owned), text));
        }
    }
    for arg in &facts.kernel.cmdline {
        if let Some(ids) = arg.strip_prefix("vfio-pci.ids=").or_else(|| arg.strip_prefix("vfio_pci.ids=")) {
            add("the kernel's command line".to_owned(), arg, Some(ids));
        }
    }
    let lists = files(probe, "/etc/modules-load.d", ".conf").into_iter();
    let single =
        ["/etc/initramfs-tools/modules", "/etc/modules"].into_iter().filter_map(|p| Some((p.into(), text(probe, p)?)));
    for (path, text) in lists.chain(single) {
        for (n, line) in lines(&text).filter(|(_, l)| l.starts_with("vfio-pci") || l.starts_with("vfio_pci")) {
            if let Some(ids) = line.split_whitespace().find_map(|w| w.strip_prefix("ids=")) {
                add(format!("{}:{n}", path.display()), line, Some(ids));
            }
        }
    }
    for dir in ["/etc/udev/rules.d", "/run/udev/rules.d", "/etc/initramfs-tools/scripts/init-top"] {
        for (path, text) in files(probe, dir, "") {
            for (n, line) in lines(&text).filter(|(_, l)| l.contains("driver_override") || l.contains("vfio-pci")) {
                let here = |f: &&&PciFunction| {
                    let (vendor, device) = (format!("0x{:04x}", f.id.vendor), format!("0x{:04x}", f.id.device));
                    line.contains(&f.address.to_string()) || (line.contains(&vendor) && line.contains(&device))
                };
                let whole_script = path.starts_with("/etc/initramfs-tools") && text.contains(&slot.to_string());
                if let Some(f) = functions.iter().find(here) {
                    let by_id = !line.contains(&f.address.to_string());
                    let ids = f.id.to_string();
                    add(format!("{}:{n}", path.display()), line, by_id.then_some(ids.as_str()));
                } else if whole_script {
                    add(format!("{}:{n}", path.display()), line, None);
                }
            }
        }
    }
    for f in &functions {
        let path = format!("/etc/driverctl.d/{}", f.address);
        if let Some(driver) = text(probe, &path).filter(|d| d.trim() == "vfio-pci") {
            add(path, &driver, None);
        }
    }
    if let Ok(Answer::Value(known)) = probe.virtualisation() {
        for domain in known.domains.iter().filter(|d| d.active) {
            let managed = managed_functions(domain.live_xml.as_deref().unwrap_or(&domain.inactive_xml));
            if managed.iter().any(|a| a.slot == slot) {
                found.push(Source {
                    place: format!("VM {}, which runs", super::words::comment(&domain.name)),
                    text: "managed='yes': bound while it runs".to_owned(),
                    also: Vec::new(),
                    passing: true,
                });
            }
        }
    }
    found
}

/// The slots beside this one that a list of ids takes; `None` where it takes nothing of this one.
fn by_ids(ids: &str, functions: &[&PciFunction], facts: &HostFacts) -> Option<Vec<PciSlot>> {
    let ids: Vec<String> = ids
        .trim_matches(['"', '\''])
        .split(',')
        .map(|id| id.split(':').take(2).collect::<Vec<_>>().join(":").to_ascii_lowercase())
        .collect();
    let taken = |f: &PciFunction| ids.contains(&f.id.to_string());
    let slot = functions.iter().find(|f| taken(f))?.address.slot;
    let mut also: Vec<PciSlot> =
        facts.pci.values().filter(|f| taken(f) && f.address.slot != slot).map(|f| f.address.slot).collect();
    also.dedup();
    Some(also)
}

fn text(probe: &dyn Probe, path: impl AsRef<Path>) -> Option<String> {
    probe.text(path.as_ref()).ok().and_then(Answer::value)
}

/// The files of a directory that end so, with their texts.
fn files(probe: &dyn Probe, dir: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let names = probe.list(Path::new(dir)).ok().and_then(Answer::value).unwrap_or_default();
    names
        .iter()
        .filter(|n| n.to_string_lossy().ends_with(ending))
        .filter_map(|n| {
            let path = Path::new(dir).join(n);
            let text = text(probe, &path)?;
            Some((path, text))
        })
        .collect()
}

/// The lines of a file that are no comments, by number.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines().map(str::trim)).filter(|(_, l)| !l.is_empty() && !l.starts_with('#'))
}
