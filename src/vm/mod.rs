//! The VMs of a host as a person asks about them: what each is, where it can be reached, what keeps it from starting.
//! Looks only.

mod addresses;
mod hinders;
mod log;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use addresses::{Address, AddressSource, Heard, Told};
pub use hinders::{Hinder, hinders};
pub use log::{log_path, tail};

use crate::facts::PciFunction;
use crate::host::{Domain, Probe, Virtualisation};
use crate::plan::Past;
use crate::resource::Wanted;
use crate::resource::libvirt_domain::project;
use crate::types::{ByteSize, DomainName, MacAddress, MdevUuid, PciAddress, PciSlot};

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Run {
    /// It runs.
    Running,
    /// It stands still, and counts as running.
    Paused,
    /// It is off.
    Off,
}

impl Run {
    /// As it is shown.
    pub const fn word(self) -> &'static str {
        match self {
            Run::Running => "running",
            Run::Paused => "paused",
            Run::Off => "off",
        }
    }
}

/// The agent inside a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Agent {
    /// The VM has no channel for one.
    None,
    /// The channel is there, and nothing answers at its other end.
    Silent,
    /// It answers.
    Answers,
}

/// A VM.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether gpuvm made it or took it over.
    pub ours: bool,
    /// The user that gpuvm told its guest to let in by ssh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it runs.
    pub state: Run,
    /// How it came to stand still or to end, where that is worth telling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Whether it starts with the host.
    pub autostart: bool,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// The devices of the host that it has.
    pub devices: Vec<Device>,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// Its disks.
    pub disks: Vec<VmDisk>,
    /// The agent inside its guest.
    pub agent: Agent,
    /// Its snapshots by name, whoever made them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<String>,
    /// What of its stored definition takes effect at its next start only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub at_next_start: Vec<String>,
    /// Why its definition could not be read, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// A slot of the host's that a VM has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The slot.
    pub slot: PciSlot,
    /// Its name in the manifest, where gpuvm bound it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is; empty where it is not there.
    pub model: String,
    /// Whether it is a GPU.
    pub gpu: bool,
    /// Whether host and VMs share it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// A network card of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// Its address on the link.
    pub mac: MacAddress,
    /// What it is on: `bridge br0`.
    pub on: String,
    /// The addresses that are known of it, each with who told.
    pub addresses: Vec<Address>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VmDisk {
    /// Where it is.
    pub source: String,
    /// What the guest sees, in bytes, where a pool of libvirt's tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl Vm {
    /// The addresses that another machine can use, best first.
    pub fn reachable(&self) -> Vec<&Address> {
        let mut all: Vec<&Address> = self.nics.iter().flat_map(|n| &n.addresses).filter(|a| a.is_routable()).collect();
        all.sort_by_key(|a| (a.ip.is_ipv6(), a.source, a.ip));
        all
    }
    /// Its GPUs.
    pub fn gpus(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|d| d.gpu)
    }
}

/// What is known beside libvirt.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// The host's PCI functions.
    pub pci: &'a BTreeMap<PciAddress, PciFunction>,
    /// What gpuvm did before; empty where its state may not be read.
    pub past: &'a Past,
    /// Who told which address.
    pub told: &'a Told,
}

/// All VMs, as they are.
pub fn all(probe: &dyn Probe, known: &Virtualisation, around: Around<'_>) -> Vec<Vm> {
    known.domains.iter().map(|d| vm(probe, d, known, around)).collect()
}

/// One VM, as it is. A running one is told as it runs.
pub fn vm(probe: &dyn Probe, domain: &Domain, known: &Virtualisation, around: Around<'_>) -> Vm {
    let state = match (domain.active, domain.paused) {
        (false, _) => Run::Off,
        (true, true) => Run::Paused,
        (true, false) => Run::Running,
    };
    let mut vm = Vm {
        name: domain.name.clone(),
        uuid: domain.uuid.clone(),
        ours: false,
        user: None,
        state,
        condition: domain.condition.clone(),
        autostart: domain.autostart,
        cpus: 0,
        memory: 0,
        devices: Vec::new(),
        nics: Vec::new(),
        disks: Vec::new(),
        agent: Agent::None,
        snapshots: domain.snapshots.iter().map(|s| s.name.clone()).collect(),
        at_next_start: Vec::new(),
        unreadable: None,
    };
    let stored = project(&domain.inactive_xml);
    let live = domain.live_xml.as_deref().filter(|_| domain.active).map(project);
    let is = match live.as_ref().unwrap_or(&stored) {
        Ok(is) => is,
        Err(why) => {
            vm.unreadable = Some(why.clone());
            return vm;
        }
    };
    vm.ours = stored.as_ref().is_ok_and(|s| s.marked);
    vm.user = stored.as_ref().ok().and_then(|s| s.login.clone());
    (vm.cpus, vm.memory) = (is.cpus, is.memory.bytes());
    if let (Ok(stored), Some(Ok(live))) = (&stored, &live) {
        vm.at_next_start = stored.differs_from_running(live).into_iter().map(|f| f.field).collect();
    }
    let slots: BTreeSet<PciSlot> = is.functions.iter().map(|f| f.slot).collect();
    vm.devices = slots.into_iter().map(|slot| device(slot, &is.functions, around)).collect();
    vm.devices.extend(is.mediated().filter_map(|uuid| mediated(uuid, around)));
    vm.disks = is.disks.iter().filter_map(|d| disk(d.first()?, known)).collect();
    vm.agent = agent_channel(domain);
    let mut told: BTreeMap<MacAddress, Vec<Address>> = BTreeMap::new();
    if vm.agent == Agent::Silent {
        // The channel says whether someone listens; only then is it asked, since it may take its time.
        if is_connected(domain)
            && let Ok(name) = domain.name.parse::<DomainName>()
            && let Ok(Some(agent)) = probe.guest_agent(&name).map(crate::host::Answer::value)
        {
            vm.agent = Agent::Answers;
            told = addresses::of_agent(&agent);
        }
    }
    vm.nics = is
        .nics
        .iter()
        .map(|(mac, on)| {
            let of_agent = told.remove(mac).unwrap_or_default();
            let running = domain.active;
            let addresses = if running { addresses::join(of_agent, around.told.of(*mac)) } else { Vec::new() };
            Nic { mac: *mac, on: on.clone(), addresses }
        })
        .collect();
    vm
}

fn device(slot: PciSlot, functions: &BTreeSet<PciAddress>, around: Around<'_>) -> Device {
    let passed: Vec<_> = functions.iter().filter(|f| f.slot == slot).filter_map(|f| around.pci.get(f)).collect();
    let first = passed.iter().find(|f| f.is_gpu()).or_else(|| passed.first());
    let known = around.past.owned.values().find_map(|w| match w {
        Wanted::VfioBinding(binding) if binding.slot == slot => Some((binding.name.clone(), false)),
        Wanted::SharedGpu(shared) if shared.slot == slot => Some((shared.name.clone(), true)),
        Wanted::VirtualFunctions(all) => {
            let mine = (0usize..).zip(&all.functions).filter(|(_, (f, _))| f.slot == slot && functions.contains(f));
            let names: Vec<String> = mine.map(|(number, _)| format!("{}/{number}", all.name)).collect();
            (!names.is_empty()).then(|| (names.join(", "), false))
        }
        Wanted::Vgpus(all) => {
            let mine = (0usize..).zip(&all.functions).filter(|(_, f)| f.slot == slot && functions.contains(f));
            let names: Vec<String> = mine.map(|(number, _)| format!("{}/{number}", all.name)).collect();
            (!names.is_empty()).then(|| (names.join(", "), false))
        }
        _ => None,
    });
    let (name, shared) = known.map_or((None, false), |(name, shared)| (Some(name), shared));
    Device {
        slot,
        name,
        model: first.map(|f| f.model().to_owned()).unwrap_or_default(),
        gpu: passed.iter().any(|f| f.is_gpu()),
        shared,
    }
}

/// A vGPU that is a mediated device of gpuvm's.
fn mediated(uuid: MdevUuid, around: Around<'_>) -> Option<Device> {
    around.past.owned.values().find_map(|wanted| {
        let Wanted::Vgpus(all) = wanted else { return None };
        let number = all.mediated.iter().position(|m| *m == uuid)?;
        let card = around.pci.get(&all.physical);
        Some(Device {
            slot: all.physical.slot,
            name: Some(format!("{}/{number}", all.name)),
            model: card.map(|f| f.model().to_owned()).unwrap_or_default(),
            gpu: true,
            shared: false,
        })
    })
}

fn disk(source: &str, known: &Virtualisation) -> Option<VmDisk> {
    let mut volumes = known.pools.iter().flat_map(|p| &p.volumes);
    let size = volumes.find(|v| v.path.to_string_lossy() == *source).map(|v| v.capacity);
    Some(VmDisk { source: source.to_owned(), size })
}

/// The name of the channel that a guest agent listens at (qemu-ga).
const AGENT: &str = "org.qemu.guest_agent.0";

fn channel<T>(domain: &Domain, of: impl Fn(roxmltree::Node<'_, '_>) -> T) -> Option<T> {
    let xml = domain.live_xml.as_deref().unwrap_or(&domain.inactive_xml);
    let doc = roxmltree::Document::parse(xml).ok()?;
    let target = doc.descendants().find(|n| n.has_tag_name("target") && n.attribute("name") == Some(AGENT))?;
    Some(of(target))
}

fn agent_channel(domain: &Domain) -> Agent {
    match channel(domain, |_| ()) {
        Some(()) => Agent::Silent,
        None => Agent::None,
    }
}

fn is_connected(domain: &Domain) -> bool {
    domain.active && channel(domain, |target| target.attribute("state") == Some("connected")).unwrap_or(false)
}

/// A size as it is shown.
pub fn size(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).to_string()
}
