//! Facts as text: what gpuvm saw of the host, and what it could not see.

use std::fmt::Write;

use super::safe;
use crate::facts::{HostFacts, Iommu, Known, Libvirt, LinkKind, NetworkFacts};

/// The facts that a person asks for first; `--output json` has all.
pub fn facts_text(facts: &HostFacts) -> String {
    let mut out = String::new();
    let _ = render(facts, &mut out);
    safe(&out)
}

fn render(facts: &HostFacts, out: &mut String) -> std::fmt::Result {
    writeln!(out, "host      {}", facts.hostname)?;
    writeln!(out, "system    {} ({}), Linux {}", facts.os.name, facts.os.arch, facts.kernel.release)?;
    let kvm = match (&facts.cpu.virtualisation, facts.cpu.kvm_device) {
        (Some(flag), true) => format!("{flag}, /dev/kvm"),
        (Some(flag), false) => format!("{flag}, no /dev/kvm"),
        (None, _) => "no hardware virtualisation".to_owned(),
    };
    writeln!(out, "cpu       {} × {}, {} MiB, {kvm}", facts.cpu.count, facts.cpu.model, facts.cpu.memory.mib())?;
    match &facts.iommu {
        Iommu::On { kind, groups } => writeln!(out, "iommu     on ({kind}), {} groups", groups.len())?,
        Iommu::Off { why, help, .. } => writeln!(out, "iommu     off: {why}\n          {help}")?,
        Iommu::Missing { why, help } => writeln!(out, "iommu     missing: {why}\n          {help}")?,
        Iommu::Unknown(why) => writeln!(out, "iommu     not known: {why}")?,
    }
    for gpu in facts.pci.values().filter(|f| f.is_gpu() && !f.is_management()) {
        let group = gpu.group.map_or("no group".to_owned(), |g| format!("group {g}"));
        let driver = gpu.driver.as_deref().unwrap_or("no driver");
        writeln!(out, "gpu       {} {} [{}] {driver}, {group}, {}", gpu.address, gpu.name, gpu.id, gpu.path)?;
        for f in facts.slot(gpu.address.slot).filter(|f| f.address != gpu.address) {
            writeln!(
                out,
                "            .{} {} [{}] {}",
                f.address.function,
                f.name,
                f.id,
                f.driver.as_deref().unwrap_or("no driver")
            )?;
        }
    }
    for f in facts.pci.values().filter(|f| !f.carries.is_empty()) {
        let what = f.carries.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(", ");
        writeln!(out, "carries   {} {}: {what}", f.address, f.name)?;
    }
    match &facts.network {
        Known::Unknown(why) => writeln!(out, "network   not known: {why}")?,
        Known::Value(net) => network(net, out)?,
    }
    match &facts.packages {
        Known::Unknown(why) => writeln!(out, "packages  not known: {why}")?,
        Known::Value(all) => writeln!(out, "packages  {} installed", all.values().filter(|p| p.installed).count())?,
    }
    match &facts.libvirt.answers {
        Known::Unknown(why) => writeln!(out, "libvirt   not known: {why}")?,
        Known::Value(None) => writeln!(out, "libvirt   none answers")?,
        Known::Value(Some(libvirt)) => self::libvirt(libvirt, out)?,
    }
    if !facts.root {
        writeln!(out, "\nnot root: some answers may be missing")?;
    }
    Ok(())
}

/// Its VMs, pools and networks, each with what is not as usual.
fn libvirt(libvirt: &Libvirt, out: &mut String) -> std::fmt::Result {
    writeln!(out, "libvirt   {}", libvirt.version)?;
    for vm in &libvirt.domains {
        let state = if vm.running { "runs" } else { "off" };
        let boot = if vm.autostart { ", starts with the host" } else { "" };
        let stored = if vm.persistent { "" } else { ", its definition is not stored" };
        writeln!(out, "vm        {}: {state}{boot}{stored}", vm.name)?;
    }
    for (word, parts) in [("pool      ", &libvirt.pools), ("network   libvirt ", &libvirt.networks)] {
        for part in parts {
            let state = if part.active { "started" } else { "not started" };
            let boot = if part.autostart { "" } else { ", not with the host" };
            writeln!(out, "{word}{}: {state}{boot}", part.name)?;
        }
    }
    Ok(())
}

/// One line a link that is more than a tap, and how the host gets out.
fn network(net: &NetworkFacts, out: &mut String) -> std::fmt::Result {
    for (name, link) in net.links.iter().filter(|(_, l)| l.kind != LinkKind::Other) {
        let kind = format!("{:?}", link.kind).to_lowercase();
        let mac = link.permanent_mac.map_or(String::new(), |m| format!(" {m}"));
        write!(out, "network   {name} {kind}{mac} {}", link.state.to_lowercase())?;
        for address in link.addresses.iter().filter(|a| a.scope == "global") {
            write!(out, ", {}/{}", address.address, address.prefix)?;
        }
        if let Some(master) = &link.master {
            write!(out, ", port of {master}")?;
        }
        let managers: Vec<&str> = link.managers.iter().map(|m| m.name()).collect();
        writeln!(out, ", by {}", if managers.is_empty() { "nobody".to_owned() } else { managers.join(" and ") })?;
    }
    let out_by = net.uplink.as_deref().unwrap_or("none");
    let gateways: Vec<String> =
        net.routes.iter().filter(|r| r.to == "default").filter_map(|r| r.via).map(|a| a.to_string()).collect();
    let servers: Vec<String> = net.name_servers.iter().map(ToString::to_string).collect();
    writeln!(out, "          uplink {out_by}, gateway {}, DNS {}", gateways.join(" "), servers.join(" "))
}
