//! What keeps a VM that is off from starting, as far as it can be seen beforehand: a disk that is not there, a network
//! that is not started, a device that another one holds.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use crate::facts::HostFacts;
use crate::host::{Answer, Domain, Probe, Virtualisation};
use crate::resource::libvirt_domain::{managed_functions, project};
use crate::resource::shared_gpu::shared_now;
use crate::resource::vgpu;

/// Something in the way, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hinder {
    /// What.
    pub why: String,
    /// What to do.
    pub help: String,
}

/// Looks for what is in the way of a start.
pub fn hinders(probe: &dyn Probe, domain: &Domain, known: &Virtualisation, facts: &HostFacts) -> Vec<Hinder> {
    let mut all = Vec::new();
    let mut hinder = |why: String, help: String| all.push(Hinder { why, help });
    let is = match project(&domain.inactive_xml) {
        Ok(is) => is,
        Err(why) => {
            hinder(format!("its definition cannot be read: {why}"), format!("look at it: virsh edit {}", domain.name));
            return all;
        }
    };
    let absent = |path: &str| path.starts_with('/') && matches!(probe.stat(Path::new(path)), Ok(Answer::Absent));
    for path in is.disks.iter().filter_map(|d| d.first()).filter(|p| absent(p)) {
        hinder(format!("its disk `{path}` is not there"), "bring it back, or take it out of the VM".to_owned());
    }
    for path in [&is.kernel, &is.initrd].into_iter().flatten().filter(|p| absent(p)) {
        hinder(format!("it boots `{path}`, which is not there"), "put it there, or correct `boot`".to_owned());
    }
    for on in is.nics.values() {
        if let Some(name) = on.strip_prefix("network ") {
            match known.network(name) {
                None => hinder(
                    format!("libvirt has no network `{name}`"),
                    "define it, or put the VM on another: `network` in host.yaml".to_owned(),
                ),
                Some(network) if !network.active => {
                    hinder(format!("network `{name}` is not started"), format!("virsh net-start {name}"));
                }
                Some(_) => {}
            }
        }
        if let Some(name) = on.strip_prefix("bridge ")
            && absent(&format!("/sys/class/net/{name}"))
        {
            hinder(format!("this host has no bridge `{name}`"), "see what is missing: gpuvm plan".to_owned());
        }
    }
    let swap = format!("shut that down first, and start this one: gpuvm vm start {} --swap", domain.name);
    for uuid in is.mediated() {
        let has = |d: &&Domain| {
            let live = d.live_xml.as_deref().filter(|_| d.active && d.name != domain.name);
            live.is_some_and(|xml| project(xml).is_ok_and(|p| p.mediated().any(|m| m == uuid)))
        };
        if absent(&format!("{}/{uuid}", vgpu::mediated::DEVICES)) {
            hinder(
                format!("its vGPU {uuid} is not made"),
                "gpuvm plan says what is missing, and systemctl status 'gpuvm-vgpu@*' why it was not made".to_owned(),
            );
        } else if let Some(other) = known.domains.iter().find(has) {
            hinder(format!("VM `{}` has its vGPU {uuid}", other.name), swap.clone());
        }
    }
    let managed = managed_functions(&domain.inactive_xml);
    let shared = shared_now(probe);
    let mut groups = BTreeSet::new();
    for address in &is.functions {
        let holder = known.domains.iter().filter(|d| d.active && d.name != domain.name).find(|d| {
            d.live_xml.as_deref().is_some_and(|xml| project(xml).is_ok_and(|p| p.functions.contains(address)))
        });
        match (facts.pci.get(address), holder) {
            (None, _) => hinder(
                format!("device {address} is not in this host"),
                "see which there are: gpuvm gpu list".to_owned(),
            ),
            (Some(_), Some(other)) => {
                hinder(format!("VM `{}` has device {address}", other.name), swap.clone());
            }
            (Some(function), None) => {
                let neighbour = function.group.filter(|group| groups.insert(*group)).and_then(|group| {
                    let others = known.domains.iter().filter(|d| d.active && d.name != domain.name);
                    others.filter_map(|d| Some((d, project(d.live_xml.as_deref()?).ok()?))).find_map(|(d, has)| {
                        let of_group =
                            has.functions.into_iter().find(|f| facts.shared_group(*f, *address).is_some())?;
                        Some((&d.name, of_group, group))
                    })
                });
                if let Some((other, of_group, group)) = neighbour {
                    let why = format!(
                        "VM `{other}` has {of_group} of IOMMU group {group}, which goes to one VM at a time and has \
                         {address} of this one too"
                    );
                    hinder(why, swap.clone());
                }
                let driver = function.driver.as_deref().unwrap_or("no driver");
                // What is shared comes from the host when the VM starts.
                let comes = shared.iter().any(|s| s.slot == address.slot);
                // A vGPU stays with NVIDIA's driver.
                let vgpu =
                    function.virtual_of.and_then(|_| vgpu::type_of(*address, probe)).filter(|_| driver == "nvidia");
                if vgpu == Some(0) {
                    hinder(
                        format!("device {address} has no vGPU"),
                        "gpuvm plan says what is missing, and systemctl status 'gpuvm-vgpu@*' why it was not made"
                            .to_owned(),
                    );
                } else if driver != "vfio-pci" && !comes && !managed.contains(address) && vgpu.is_none() {
                    hinder(
                        format!("device {address} is on {driver}, not on vfio-pci"),
                        format!("see why: gpuvm gpu explain {}", address.slot),
                    );
                }
            }
        }
    }
    all
}
