//! The machine as people draw it: NUMA nodes, root ports, switches, slots, and what is in them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Gpu, GpuKind, role};
use crate::facts::{HostFacts, PciFunction};
use crate::gpu::HolderKind;
use crate::host::{Answer, Probe};
use crate::resource::libvirt_domain;
use crate::types::{PciAddress, PciSlot};

/// A host as a forest, one tree a NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Its name.
    pub host: String,
    /// By NUMA node; one without a number where the host has a single one.
    pub nodes: Vec<NumaNode>,
}

/// A NUMA node with what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NumaNode {
    /// Its number.
    pub number: Option<u32>,
    /// What is on its roots.
    pub children: Vec<Branch>,
}

/// A port, or a slot with what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Branch {
    /// What it is: `port`, `gpu`, `nvme`, …
    pub kind: &'static str,
    /// The slot; of a port, its function.
    pub address: String,
    /// The name of the first function.
    pub name: String,
    /// The functions, where there are several.
    pub functions: Vec<String>,
    /// Drivers of the functions.
    pub drivers: BTreeSet<String>,
    /// IOMMU groups.
    pub groups: BTreeSet<u32>,
    /// What of the host it carries.
    pub carries: Vec<String>,
    /// VMs that have it: running, or by their definition.
    pub vms: Vec<String>,
    /// What is behind it.
    pub children: Vec<Branch>,
}

/// Whether it is drawn: what people ask about. The chipset's own small parts are left out, unless all is asked for.
fn is_drawn(f: &PciFunction, all: bool) -> bool {
    all || !f.carries.is_empty() || matches!(role(f), "display" | "network" | "nvme" | "storage" | "nvswitch")
}

/// Draws the host.
pub fn topology(probe: &dyn Probe, facts: &HostFacts, gpus: &[Gpu], all: bool) -> Topology {
    let mut vms: BTreeMap<PciSlot, BTreeSet<String>> = BTreeMap::new();
    if let Ok(Answer::Value(known)) = probe.virtualisation() {
        for domain in &known.domains {
            let xml = domain.live_xml.as_deref().unwrap_or(&domain.inactive_xml);
            for f in libvirt_domain::project(xml).map(|p| p.functions).unwrap_or_default() {
                let name = if domain.active { domain.name.clone() } else { format!("{} (off)", domain.name) };
                vms.entry(f.slot).or_default().insert(name);
            }
        }
    }
    for gpu in gpus {
        for h in gpu.holders.iter().filter(|h| h.kind == HolderKind::Vm && h.pid.is_some()) {
            vms.entry(gpu.slot).or_default().insert(h.name.clone());
        }
    }
    let drawing = Drawing { facts, gpus, vms, all };
    let mut nodes: BTreeMap<Option<u32>, Vec<Branch>> = BTreeMap::new();
    for f in facts.pci.values().filter(|f| f.parent.is_none() && (f.base_class() == 0x0604 || drawing.is_first(f))) {
        if let Some(branch) = drawing.branch(f) {
            nodes.entry(f.numa_node.or_else(|| numa_below(facts, f.address))).or_default().push(branch);
        }
    }
    let nodes = nodes.into_iter().map(|(number, children)| NumaNode { number, children }).collect();
    Topology { host: facts.hostname.clone(), nodes }
}

/// Ports do not always tell their node; what is behind them does.
fn numa_below(facts: &HostFacts, port: PciAddress) -> Option<u32> {
    facts
        .pci
        .values()
        .filter(|f| f.parent == Some(port))
        .find_map(|f| f.numa_node.or_else(|| numa_below(facts, f.address)))
}

struct Drawing<'a> {
    facts: &'a HostFacts,
    gpus: &'a [Gpu],
    vms: BTreeMap<PciSlot, BTreeSet<String>>,
    all: bool,
}

impl Drawing<'_> {
    fn branch(&self, f: &PciFunction) -> Option<Branch> {
        if f.base_class() == 0x0604 {
            let behind = self.facts.pci.values().filter(|o| o.parent == Some(f.address));
            let firsts = behind.filter(|o| o.base_class() == 0x0604 || self.is_first(o));
            let children: Vec<Branch> = firsts.filter_map(|o| self.branch(o)).collect();
            return (self.all || !children.is_empty()).then(|| Branch {
                kind: "port",
                address: f.address.to_string(),
                name: f.name.clone(),
                functions: Vec::new(),
                drivers: f.driver.iter().cloned().collect(),
                groups: f.group.into_iter().collect(),
                carries: Vec::new(),
                vms: Vec::new(),
                children,
            });
        }
        let slot = f.address.slot;
        let functions: Vec<&PciFunction> = self.facts.slot(slot).filter(|o| o.base_class() != 0x0604).collect();
        let is_part = |o: &PciFunction| self.gpus.iter().any(|g| g.elsewhere.contains(&o.address));
        let drawn: Vec<&PciFunction> =
            functions.iter().copied().filter(|o| is_drawn(o, self.all) || is_part(o)).collect();
        let first = drawn.first()?;
        let gpu = self.gpus.iter().find(|g| g.slot == slot);
        // A GPU's card is shown whole; of a chipset's slot only what is drawn.
        let shown = if gpu.is_some() { &functions } else { &drawn };
        let named = |o: &&PciFunction| {
            let what = if gpu.is_some() { role(o) } else { &o.name };
            let shared = if o.virtual_of.is_some() { " (virtual)" } else { "" };
            format!(".{} {what}{shared}", o.address.function)
        };
        let of = first.virtual_of.map_or(String::new(), |of| format!(" (virtual function of {of})"));
        Some(Branch {
            kind: match gpu {
                Some(gpu) if gpu.kind == GpuKind::Gpu => "gpu",
                Some(_) => "display",
                None => role(first),
            },
            address: if shown.len() == 1 { first.address.to_string() } else { slot.to_string() },
            name: gpu.map_or_else(|| first.name.clone(), |g| g.model.clone()) + &of,
            functions: if shown.len() > 1 { shown.iter().map(named).collect() } else { Vec::new() },
            drivers: shown.iter().filter_map(|o| o.driver.clone()).collect(),
            groups: shown.iter().filter_map(|o| o.group).collect(),
            carries: shown
                .iter()
                .flat_map(|o| &o.carries)
                .map(ToString::to_string)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            vms: self.vms.get(&slot).into_iter().flatten().cloned().collect(),
            children: Vec::new(),
        })
    }

    /// One branch a slot: the first of its functions that is no bridge.
    fn is_first(&self, f: &PciFunction) -> bool {
        self.facts.slot(f.address.slot).find(|o| o.base_class() != 0x0604).is_some_and(|o| o.address == f.address)
    }
}
