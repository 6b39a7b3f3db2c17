//! Distribution, processor, memory and kernel, from the files that describe them.

use std::path::Path;

use super::{Cpu, HugePages, Kernel, NumaNode, Os};
use crate::host::{Answer, Probe};
use crate::types::{ByteSize, cpu_list};

/// A file's text; empty where it is absent or may not be read.
pub(super) fn text(probe: &dyn Probe, path: &str) -> String {
    probe.text(Path::new(path)).ok().and_then(Answer::value).unwrap_or_default()
}

/// The names in a directory; none where it is absent.
pub(super) fn names(probe: &dyn Probe, dir: &str) -> Vec<String> {
    let names = probe.list(Path::new(dir)).ok().and_then(Answer::value).unwrap_or_default();
    names.into_iter().map(|n| n.to_string_lossy().into_owned()).collect()
}

/// Whether a path is there.
pub(super) fn exists(probe: &dyn Probe, path: &str) -> bool {
    matches!(probe.stat(Path::new(path)), Ok(Answer::Value(_)))
}

/// os-release(5); the architecture is the one that dpkg was built for, which its own package tells.
pub(super) fn os(probe: &dyn Probe) -> Os {
    let release = text(probe, "/etc/os-release");
    let field = |name: &str| {
        let line = release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
        line.map(|v| v.trim_matches(['"', '\'']).to_owned()).unwrap_or_default()
    };
    let arch = super::packages::stanzas(&text(probe, super::packages::STATUS))
        .find(|s| s.name == "dpkg")
        .map(|s| s.arch.to_owned())
        .unwrap_or_default();
    Os { id: field("ID"), version: field("VERSION_ID"), name: field("PRETTY_NAME"), arch }
}

/// /proc/cpuinfo and /proc/meminfo (proc(5)).
pub(super) fn cpu(probe: &dyn Probe) -> Cpu {
    let info = text(probe, "/proc/cpuinfo");
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name));
        line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let flags = field("flags");
    let memory = text(probe, "/proc/meminfo");
    let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Cpu {
        vendor: field("vendor_id"),
        model: field("model name"),
        count: info.lines().filter(|l| l.starts_with("processor")).count() as u32,
        virtualisation: ["vmx", "svm"]
            .into_iter()
            .find(|f| flags.split_whitespace().any(|w| w == *f))
            .map(str::to_owned),
        kvm_device: exists(probe, "/dev/kvm"),
        memory: ByteSize::from_bytes(kib.unwrap_or_default() << 10),
        huge_pages: huge_pages(probe),
        nodes: nodes(probe),
    }
}

/// /sys/devices/system/node (Documentation/ABI/stable/sysfs-devices-node in the kernel). A machine of one node has nothing
/// to choose.
fn nodes(probe: &dyn Probe) -> Vec<NumaNode> {
    const DIR: &str = "/sys/devices/system/node";
    let mut all: Vec<NumaNode> = names(probe, DIR)
        .iter()
        .filter_map(|name| {
            let number = name.strip_prefix("node")?.parse().ok()?;
            let memory = text(probe, &format!("{DIR}/{name}/meminfo"));
            let total = memory.lines().find_map(|l| l.split_once("MemTotal:")?.1.trim().strip_suffix(" kB"));
            let kib = total.and_then(|t| t.parse::<u64>().ok()).unwrap_or_default();
            let cpus = cpu_list(&text(probe, &format!("{DIR}/{name}/cpulist")));
            Some(NumaNode { number, cpus, memory: ByteSize::from_bytes(kib << 10) })
        })
        .collect();
    all.sort_by_key(|n| n.number);
    if all.len() > 1 { all } else { Vec::new() }
}

/// /sys/kernel/mm/hugepages (Documentation/admin-guide/mm/hugetlbpage.rst in the kernel).
fn huge_pages(probe: &dyn Probe) -> Vec<HugePages> {
    const DIR: &str = "/sys/kernel/mm/hugepages";
    let mut all: Vec<HugePages> = names(probe, DIR)
        .iter()
        .filter_map(|name| {
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let total = text(probe, &format!("{DIR}/{name}/nr_hugepages")).trim().parse().ok()?;
            let more = text(probe, &format!("{DIR}/{name}/nr_overcommit_hugepages")).trim().parse().unwrap_or(0);
            Some(HugePages { size: ByteSize::from_bytes(kib << 10), total, more })
        })
        .collect();
    all.sort_by_key(|p| p.size);
    all
}

/// The running kernel and its command line.
pub(super) fn kernel(probe: &dyn Probe) -> Kernel {
    Kernel {
        release: text(probe, "/proc/sys/kernel/osrelease").trim().to_owned(),
        cmdline: arguments(&text(probe, "/proc/cmdline")),
    }
}

/// Modules that are loaded (/proc/modules) or built into the running kernel (modules.builtin), with `_`.
pub(super) fn modules(probe: &dyn Probe, release: &str) -> std::collections::BTreeSet<String> {
    let loaded = text(probe, "/proc/modules");
    let built_in = text(probe, &format!("/lib/modules/{release}/modules.builtin"));
    let loaded = loaded.lines().filter_map(|l| l.split(' ').next());
    let built_in = built_in.lines().filter_map(|l| l.rsplit('/').next()?.strip_suffix(".ko"));
    loaded.chain(built_in).map(|m| m.replace('-', "_")).collect()
}

/// Cuts a command line into arguments as the kernel does: blanks separate, double quotes keep them
/// (`next_arg` in the kernel's lib/cmdline.c).
pub(crate) fn arguments(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut one = String::new();
    let mut quoted = false;
    for c in line.trim().chars() {
        quoted ^= c == '"';
        if c.is_whitespace() && !quoted {
            if !one.is_empty() {
                all.push(std::mem::take(&mut one));
            }
        } else {
            one.push(c);
        }
    }
    if !one.is_empty() {
        all.push(one);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_an_argument_together() {
        let line = "BOOT_IMAGE=/vmlinuz root=UUID=1 ro dyndbg=\"file a +p\" quiet\n";
        assert_eq!(arguments(line), ["BOOT_IMAGE=/vmlinuz", "root=UUID=1", "ro", "dyndbg=\"file a +p\"", "quiet"]);
    }
}
