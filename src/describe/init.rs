//! A commented manifest of a host as it is, whose plan is empty: what is there already is used or left alone, and what
//! could be managed stands in comments with the next step.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::binding::{Source, sources};
use super::words::{argument, comment, scalar};
use crate::facts::{HostFacts, Iommu, Known, LinkKind, NetworkFacts, PciFunction};
use crate::host::{Answer, Probe, Virtualisation};
use crate::plan::Diff;
use crate::resource::Wanted;
use crate::resource::bridge::{Bridge, UplinkChoice};
use crate::resource::libvirt_domain::project;
use crate::types::{DomainName, HostName, PciSlot};

/// The manifest's text.
pub fn init(probe: &dyn Probe, facts: &HostFacts) -> String {
    let mut out = String::new();
    head(facts, &mut out);
    devices(probe, facts, &mut out);
    bridge(probe, facts, &mut out);
    kernel(facts, &mut out);
    packages(facts, &mut out);
    virtualisation(probe, &mut out);
    line(&mut out, "");
    line(
        &mut out,
        "# Without this, an apply puts gpuvm into /usr/local/bin, and beside it `vmctl`, the short way to VMs.",
    );
    line(&mut out, "vmctl: { install: false }");
    out
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn head(facts: &HostFacts, out: &mut String) {
    line(
        out,
        "# What gpuvm knows of this host and does for it, written by `gpuvm init` from the host as it is: nothing",
    );
    line(
        out,
        "# would change. Change something here, see what it comes to with `gpuvm plan`, do it with `gpuvm apply`.",
    );
    line(out, "# Sections that are left out are not managed; what gpuvm did not make, it leaves alone.");
    line(out, "version: 1");
    match facts.hostname.parse::<HostName>() {
        Ok(name) => line(out, &format!("host: {}   # on another host this file is refused", scalar(name.as_str()))),
        Err(_) => line(out, &format!("# host: the name `{}` is none that a manifest has", comment(&facts.hostname))),
    }
}

/// How a slot stands with vfio-pci.
enum Bound {
    /// On the host's drivers.
    No,
    /// All of it, by what others wrote.
    ByOthers(Vec<Source>),
    /// By libvirt, as long as a VM runs.
    Passing(Vec<Source>),
    /// Some functions are and some are not.
    Partly,
}

fn bound(slot: PciSlot, probe: &dyn Probe, facts: &HostFacts) -> Bound {
    let on = |f: &PciFunction| f.driver.as_deref() == Some("vfio-pci");
    let endpoints: Vec<&PciFunction> = facts.slot(slot).filter(|f| !f.is_bridge()).collect();
    if !endpoints.iter().any(|f| on(f)) {
        return Bound::No;
    }
    let sources = sources(slot, probe, facts);
    if sources.iter().any(|s| s.passing) && sources.iter().all(|s| s.passing) {
        return Bound::Passing(sources);
    }
    if endpoints.iter().all(|f| on(f)) { Bound::ByOthers(sources) } else { Bound::Partly }
}

fn devices(probe: &dyn Probe, facts: &HostFacts, out: &mut String) {
    let firsts = |gpu: bool| {
        let mut slots: BTreeMap<PciSlot, &PciFunction> = BTreeMap::new();
        for f in facts
            .pci
            .values()
            .filter(|f| f.is_gpu() == gpu && !f.is_management() && !f.is_bridge() && f.virtual_of.is_none())
        {
            slots.entry(f.address.slot).or_insert(f);
        }
        slots
    };
    let gpus = firsts(true);
    line(out, "");
    line(out, &format!("# The IOMMU, without which no device can be given to a VM: {}", iommu(facts)));
    if gpus.is_empty() {
        line(out, "# gpus: this host has none");
    } else {
        line(
            out,
            "# GPUs by the path of their ports, which stays when cards are added elsewhere. The names are yours to",
        );
        line(
            out,
            "# choose; VMs use them. `use: host` leaves a card with its driver. `use: vfio` keeps it for VMs from early",
        );
        line(
            out,
            "# boot on, by its address: `gpuvm plan` then shows what that takes, and refuses what the host needs.",
        );
        line(out, "gpus:");
        for (n, (slot, first)) in (1..).zip(&gpus) {
            device(&format!("gpu{n}"), *slot, first, probe, facts, out);
        }
    }
    let others: Vec<(PciSlot, &PciFunction)> = firsts(false)
        .into_iter()
        .filter(|(slot, f)| !gpus.contains_key(slot) && f.driver.as_deref() == Some("vfio-pci"))
        .collect();
    let steady: Vec<_> =
        others.iter().filter(|(slot, _)| matches!(bound(*slot, probe, facts), Bound::ByOthers(_))).collect();
    if !steady.is_empty() {
        line(out, "");
        line(out, "# Other devices that are kept for VMs already.");
        line(out, "devices:");
        for (n, (slot, first)) in (1..).zip(steady) {
            device(&format!("device{n}"), *slot, first, probe, facts, out);
        }
    }
    sharing(facts, out);
}

/// Devices with virtual functions that others made: in comments, since a section would make them at each boot.
fn sharing(facts: &HostFacts, out: &mut String) {
    let on = |f: &&PciFunction| !f.is_gpu() && f.sriov.as_ref().is_some_and(|s| s.now > 0);
    let all: Vec<&PciFunction> = facts.pci.values().filter(on).collect();
    if all.is_empty() {
        return;
    }
    line(out, "");
    line(out, "# Devices that share themselves in hardware (SR-IOV), which something else sees to. Written so, under");
    line(out, "# `devices`, gpuvm makes as many at each boot; VMs then list them as `NAME/0`, `NAME/1`, …:");
    for (n, f) in (1..).zip(all) {
        let Some(sriov) = &f.sriov else { continue };
        let there: Vec<&PciFunction> = sriov.functions.values().filter_map(|a| facts.pci.get(a)).collect();
        let given = there.iter().filter(|v| v.driver.as_deref().is_some_and(|d| d.contains("vfio"))).count();
        let usage = if given == there.len() { "" } else { ", use: host" };
        let function = match f.address.function {
            0 => String::new(),
            n => format!(", function: {n}"),
        };
        line(out, &format!("#   # {} at {}, {given} of {} on vfio-pci", comment(&f.name), f.address, sriov.now));
        let slot = f.address.slot;
        let words = format!("count: {}{function}{usage}", sriov.now);
        line(out, &format!("#   shared{n}: {{ match: \"{slot}\", use: host, virtualFunctions: {{ {words} }} }}"));
    }
}

fn iommu(facts: &HostFacts) -> String {
    match &facts.iommu {
        Iommu::On { kind, groups } => format!("on ({}, {} groups)", comment(kind), groups.len()),
        Iommu::Off { why, help, .. } => format!("off. {}\n#   next: {}", comment(why), comment(help)),
        Iommu::Missing { why, help } => format!("missing. {}\n#   next: {}", comment(why), comment(help)),
        Iommu::Unknown(why) => format!("not known: {}", comment(why)),
    }
}

fn device(name: &str, slot: PciSlot, first: &PciFunction, probe: &dyn Probe, facts: &HostFacts, out: &mut String) {
    let driver = |f: &PciFunction| f.driver.as_deref().unwrap_or("no driver").to_owned();
    let drivers: Vec<String> =
        facts.slot(slot).map(|f| format!(".{} {}", f.address.function, comment(&driver(f)))).collect();
    let group = match first.group {
        Some(group) => {
            let beside: Vec<String> = facts.group_neighbours(group, slot).map(|f| f.address.to_string()).collect();
            let beside =
                if beside.is_empty() { "alone in it".to_owned() } else { format!("with {}", beside.join(" ")) };
            format!(", IOMMU group {group} ({beside})")
        }
        None => String::new(),
    };
    line(out, &format!("  # {} at {slot}: {}{group}", comment(&first.name), drivers.join(", ")));
    let carries: Vec<String> = facts.slot(slot).flat_map(|f| &f.carries).map(|c| comment(&c.to_string())).collect();
    if !carries.is_empty() {
        line(out, &format!("  # It carries {}: it is never given away.", carries.join(", ")));
    }
    if facts.slot(slot).any(|f| f.boot_display) {
        line(out, "  # The firmware shows the boot on it: with `use: vfio` that screen goes dark.");
    }
    let usage = match bound(slot, probe, facts) {
        Bound::No => vec!["use: host".to_owned()],
        Bound::Partly => {
            line(
                out,
                "  # Some of its functions are on vfio-pci and some are not: `use: vfio` would bind all of them.",
            );
            vec!["use: host".to_owned()]
        }
        Bound::Passing(sources) => {
            shown(&sources, out);
            line(out, "  # It goes back to the host when that VM ends; `use: vfio` would keep it.");
            vec!["use: host".to_owned()]
        }
        Bound::ByOthers(sources) => {
            if sources.is_empty() {
                line(out, "  # It is on vfio-pci, and no file that gpuvm knows says why.");
            }
            shown(&sources, out);
            line(out, &format!("  # What gpuvm would put in its place: gpuvm adopt vfio-binding/{name}"));
            vec!["use: vfio".to_owned(), "existing: true   # bound by others: used, never touched".to_owned()]
        }
    };
    line(out, &format!("  {name}:"));
    let same = facts.pci.values().filter(|f| f.path == first.path && !f.is_bridge() && f.address.slot != slot).count();
    let simple = first.path.chars().all(|c| c.is_ascii_alphanumeric() || ":./".contains(c));
    if same == 0 && simple {
        line(out, &format!("    match: {{ slot: \"{}\" }}", first.path));
    } else {
        line(out, &format!("    match: {{ address: \"{slot}\" }}   # its path of ports is not its own alone"));
    }
    line(out, &format!("    expect: {{ id: \"{}\" }}   # another card in that slot is refused", first.id));
    for word in usage {
        line(out, &format!("    {word}"));
    }
}

fn shown(sources: &[Source], out: &mut String) {
    for source in sources {
        line(out, &format!("  # vfio-pci by {}: {}", comment(&source.place), comment(&source.text)));
        if !source.also.is_empty() {
            let also: Vec<String> = source.also.iter().map(ToString::to_string).collect();
            line(out, &format!("  #   goes by id, so that it takes {} too", also.join(", ")));
        }
    }
}

fn bridge(probe: &dyn Probe, facts: &HostFacts, out: &mut String) {
    line(out, "");
    let net = match &facts.network {
        Known::Value(net) => net,
        Known::Unknown(why) => return line(out, &format!("# bridge: the network is not known: {}", comment(why))),
    };
    let mut bridges =
        net.links.iter().filter(|(name, l)| l.kind == LinkKind::Bridge && has_card(net, name)).collect::<Vec<_>>();
    // The one that the host itself is reached through comes first.
    bridges.sort_by_key(|(name, _)| (net.uplink.as_ref() != Some(*name), (*name).clone()));
    if let Some((name, _)) = bridges.first() {
        let ports: Vec<String> = net.ports(name).map(|(n, _)| comment(n)).collect();
        line(
            out,
            &format!(
                "# A bridge that is there, over {}: VMs are put on it (`network: {}`), and gpuvm touches",
                ports.join(", "),
                comment(name)
            ),
        );
        line(out, "# nothing of it.");
        line(out, &format!("bridge: {{ name: {}, existing: true }}", scalar(name)));
        for (other, _) in bridges.iter().skip(1) {
            line(out, &format!("# One more bridge is there, and a manifest has one: {}", comment(other)));
        }
        return;
    }
    let Some((name, mac)) = net.uplink.as_ref().and_then(|u| Some((u, net.links.get(u)?.permanent_mac?))) else {
        return line(out, "# bridge: no link has a default route, so that there is none to share with VMs.");
    };
    line(
        out,
        "# VMs share the host's network through a bridge, which this host does not have. This would make one: the",
    );
    line(
        out,
        &format!(
            "# addresses of {} move to it under guard, and go back by themselves unless the host answers as before.",
            comment(name)
        ),
    );
    line(out, &format!("# bridge: {{ name: br0, uplink: {{ mac: \"{mac}\" }} }}"));
    let free = "br0".parse().ok().filter(|_| !net.links.contains_key("br0"));
    let bridge = free.map(|name| Wanted::from(Bridge { name, uplink: UplinkChoice::Mac(mac), existing: false }));
    if let Some(Ok(Diff::Blocked { why, help })) = bridge.map(|b| b.compare(None, probe, facts)) {
        line(out, &format!("#   as it is now it would be refused: {}", comment(&why)));
        line(out, &format!("#   next: {}", comment(&help)));
    }
}

/// Whether a bridge leads out of the host: one for containers or for libvirt's own networks does not.
fn has_card(net: &NetworkFacts, name: &str) -> bool {
    net.ports(name).any(|(_, l)| matches!(l.kind, LinkKind::Physical | LinkKind::Bond | LinkKind::Vlan))
}

/// Arguments that matter for devices and VMs, and what each does (Documentation/admin-guide/kernel-parameters.txt).
const ARGUMENTS: [(&str, &str); 15] = [
    ("intel_iommu", "the IOMMU of Intel's platforms"),
    ("amd_iommu", "the IOMMU of AMD's platforms"),
    ("iommu", "how the IOMMU is used; `pt`: devices of the host are not translated"),
    ("vfio-pci.ids", "keeps every card of these ids for VMs, an equal one beside it too"),
    ("vfio_pci.ids", "keeps every card of these ids for VMs, an equal one beside it too"),
    ("pcie_acs_override", "claims an isolation that the hardware may lack; stock kernels ignore it"),
    ("module_blacklist", "drivers that are never loaded"),
    ("modprobe.blacklist", "drivers that are not loaded by themselves"),
    ("nouveau.modeset", "nouveau and the screen"),
    ("nvidia-drm.modeset", "NVIDIA's driver and the screen"),
    ("video", "a screen's mode, or a framebuffer that is off"),
    ("nomodeset", "no driver drives a screen"),
    ("hugepages", "huge pages, taken at boot"),
    ("default_hugepagesz", "the size of huge pages"),
    ("isolcpus", "processors that nothing is put on by itself"),
];

fn kernel(facts: &HostFacts, out: &mut String) {
    let found: Vec<(&String, &str)> = facts
        .kernel
        .cmdline
        .iter()
        .filter_map(|arg| {
            let name = arg.split_once('=').map_or(arg.as_str(), |(name, _)| name);
            ARGUMENTS.iter().find(|(known, _)| *known == name).map(|(_, what)| (arg, *what))
        })
        .collect();
    line(out, "");
    line(out, "# Arguments of the kernel go here, each as it stands on its command line: `kernelArgs: [iommu=pt]`.");
    match found.is_empty() {
        true => line(out, "# It was started with none that matters for devices."),
        false => line(out, "# It was started with these, which others set and gpuvm leaves alone:"),
    }
    for (arg, what) in found {
        line(out, &format!("#   {}   {what}", comment(arg)));
    }
}

/// Packages that a host with VMs has.
const PACKAGES: [&str; 8] = [
    "libvirt-daemon-system",
    "qemu-system-x86",
    "qemu-system-arm",
    "qemu-utils",
    "ovmf",
    "qemu-efi-aarch64",
    "virt-manager",
    "driverctl",
];

fn packages(facts: &HostFacts, out: &mut String) {
    let there: Vec<String> = PACKAGES
        .iter()
        .filter_map(|name| facts.package(name).map(|p| format!("{name} {}", comment(&p.version))))
        .collect();
    if !there.is_empty() {
        line(out, "");
        line(out, "# Packages of VMs need not be listed: VMs imply them. Installed are:");
        there.iter().for_each(|p| line(out, &format!("#   {p}")));
    }
}

fn virtualisation(probe: &dyn Probe, out: &mut String) {
    line(out, "");
    let known = match probe.virtualisation() {
        Ok(Answer::Value(known)) => known,
        Ok(Answer::Absent) => {
            line(out, "# libvirt is not installed. The first VM brings it along:");
            return example(out);
        }
        Ok(Answer::Denied) => return line(out, "# vms: this user may not ask libvirt; run `gpuvm init` as root"),
        Err(e) => return line(out, &format!("# vms: {}", comment(&e.to_string()))),
    };
    if known.domains.is_empty() {
        line(out, "# libvirt is installed and has no VM. One is written so:");
        example(out);
    } else {
        line(
            out,
            "# VMs that are there stay as they are. The command below each takes it over as it is: a mark in its",
        );
        line(out, "# metadata, and its entry in this file.");
        domains(&known, out);
    }
    pools(&known, out);
}

fn example(out: &mut String) {
    for text in [
        "# vms:",
        "#   first:",
        "#     cpus: 4",
        "#     memory: 8GiB",
        "#     disks: [100GiB]",
        "#     # gpus: [gpu1]       # with `use: vfio` above",
        "#     start: boot",
    ] {
        line(out, text);
    }
}

fn domains(known: &Virtualisation, out: &mut String) {
    for domain in &known.domains {
        let state = match (domain.active, domain.persistent) {
            (true, true) => "runs",
            (true, false) => "runs, not stored",
            (false, _) => "stopped",
        };
        let what = match project(&domain.inactive_xml) {
            Ok(is) => format!(
                "{} CPUs, {}, {} disks, {} passed functions",
                is.cpus,
                is.memory,
                is.disks.len(),
                is.functions.len()
            ),
            Err(why) => format!("its definition cannot be read: {}", comment(&why)),
        };
        line(out, &format!("#   {}: {state}, {what}", comment(&domain.name)));
        match domain.name.parse::<DomainName>() {
            Ok(name) if domain.persistent => line(out, &format!("#     gpuvm adopt --save libvirt-domain/{name}")),
            Ok(_) => line(out, "#     store it first: virsh dumpxml, virsh define"),
            Err(_) => {
                line(out, "#     no manifest has such a name; rename it first:");
                line(out, &format!("#     virsh domrename {} NEW", comment(&argument(&domain.name))));
            }
        }
    }
}

fn pools(known: &Virtualisation, out: &mut String) {
    let others: Vec<_> = known.pools.iter().filter(|p| p.name != "default").collect();
    if !others.is_empty() {
        line(out, "#");
        line(out, "# Storage that libvirt knows; a directory is used by `storage: { NAME: { dir: /… } }`:");
        for pool in others {
            line(out, &format!("#   {}, {} volumes", comment(&pool.name), pool.volumes.len()));
        }
    }
    for network in &known.networks {
        let state = if network.active { "started" } else { "not started" };
        line(
            out,
            &format!(
                "# libvirt's network {}, {state}: VMs use it by `networks: {{ NAME: {{ libvirt: … }} }}`",
                comment(&network.name)
            ),
        );
    }
}
