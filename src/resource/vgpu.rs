//! vGPUs of a card of NVIDIA's. The card stays with NVIDIA's vGPU driver, which offers them in one of two ways:
//!
//! - On kernels from 6.8 on, of cards with SR-IOV: its `sriov-manage` turns the virtual functions on, and the number of a type
//!   written to `nvidia/current_vgpu_type` of one of them makes a vGPU of it (NVIDIA's Virtual GPU Software User Guide,
//!   "Creating an NVIDIA vGPU on a Linux with KVM Hypervisor that Uses a Vendor-Specific VFIO Framework").
//! - Else as mediated devices ([`mediated`]): on the virtual functions of a card with SR-IOV, one on each, on the card's own
//!   function before Ampere.
//!
//! Made at each boot by a unit of ours, which runs a script that needs neither libvirt nor gpuvm. Mediated devices too, and
//! not by mdevctl's definitions: its rule starts what it finds defined as soon as a parent of that address is there, whichever
//! card that is, before `sriov-manage` has been asked for any virtual function, and also with `gpuvm.off`. What somebody
//! else defined there stays and is listed by mdevctl beside ours.

pub mod mediated;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::vfio_binding::{Card, VfioBinding, Vouched};
use super::virtual_functions::{held, there};
use super::{Resource, boot_files};
use crate::facts::{HostFacts, PciFunction, Sriov};
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Step, VgpuStep};
use crate::types::{MdevUuid, PciAddress, PciId, ResourceName};
use mediated::Made;

/// The script.
pub const SCRIPT: (&str, &str) = (
    "/usr/local/lib/gpuvm/vgpu",
    concat!(include_str!("boot_files/head.sh"), include_str!("boot_files/sysfs.sh"), include_str!("vgpu/vgpu.sh")),
);

/// The unit that runs it. After the services of NVIDIA's vGPU driver, which tell it what types there are. `KillMode=process`:
/// what sleeps in the kernel for ever is left behind, and nothing waits for it.
pub const UNIT: (&str, &str) = (
    "/etc/systemd/system/gpuvm-vgpu@.service",
    "# Written by gpuvm. The instance is the card's name in host.yaml.\n[Unit]\n\
     Description=gpuvm makes vGPUs (%i)\nConditionKernelCommandLine=!gpuvm.off\n\
     After=nvidia-vgpud.service nvidia-vgpu-mgr.service\nBefore=libvirtd.service virtqemud.service\n\
     StartLimitIntervalSec=0\n\n[Service]\nType=oneshot\n\
     ExecStart=/usr/local/lib/gpuvm/vgpu %i\nTimeoutStartSec=180\nKillMode=process\n",
);

/// What the script goes by, a file a card.
pub const KNOWN: &str = "/etc/gpuvm/vgpu";
/// The same, as the script did it to its end since the last boot; and below `why`, why it did not.
pub const DONE: &str = "/run/gpuvm/vgpu";
/// What turns virtual functions on and off: part of NVIDIA's vGPU driver for KVM hosts, and of no other driver of theirs.
pub const MANAGE: &str = "/usr/lib/nvidia/sriov-manage";

/// The unit of a card.
pub fn unit(name: &str) -> String {
    format!("gpuvm-vgpu@{name}.service")
}

/// What has the unit of a card started at boot.
pub fn at_boot(name: &str) -> PathBuf {
    format!("/etc/systemd/system/multi-user.target.d/gpuvm-vgpu-{name}.conf").into()
}

/// The type on a virtual function: 0 where there is none, `None` where it cannot have one.
pub fn type_of(function: PciAddress, host: &dyn Probe) -> Option<u32> {
    let path = format!("/sys/bus/pci/devices/{function}/nvidia/current_vgpu_type");
    host.text(path.as_ref()).ok()?.value()?.trim().parse().ok()
}

/// The types on the virtual functions of a card, by their numbers in NVIDIA's driver; 0 where there is none, and no entry
/// where the driver does not tell.
pub fn types(physical: PciAddress, host: &dyn Probe) -> BTreeMap<PciAddress, u32> {
    there(physical, host).into_values().filter_map(|f| Some((f, type_of(f, host)?))).collect()
}

/// How many of the vGPUs of this name are made, whoever has them.
pub fn count(name: &ResourceName, physical: PciAddress, host: &dyn Probe) -> u16 {
    let typed = types(physical, host).into_values().filter(|t| *t != 0).count();
    // Beside mediated devices of others, those that its lists have are its own.
    let lists = [KNOWN, DONE].map(|at| host.text(&Path::new(at).join(name.as_str())).ok().and_then(Answer::value));
    let mine = |uuid: &MdevUuid| lists.iter().flatten().any(|list| list.contains(&uuid.to_string()));
    let mediated = mediated::made(physical, host).into_keys().filter(mine).count();
    u16::try_from(typed + mediated).unwrap_or(u16::MAX)
}

/// One vGPU, by what it is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vgpu {
    /// The virtual function that it is on.
    On(PciAddress),
    /// A mediated device.
    Mediated(MdevUuid),
}

impl std::fmt::Display for Vgpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Vgpu::On(address) => address.fmt(f),
            Vgpu::Mediated(uuid) => uuid.fmt(f),
        }
    }
}

/// vGPUs of a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vgpus {
    /// The name that the manifest gives the card.
    pub name: ResourceName,
    /// Its function that has them.
    pub physical: PciAddress,
    /// What that has to be.
    pub id: PciId,
    /// Its path in sysfs, with the bus numbers left open.
    pub pattern: String,
    /// The card.
    pub card: Option<Card>,
    /// What the manifest itself says of the card.
    pub vouched: Vouched,
    /// The type of each, as the driver names it (`NVIDIA A40-8Q`).
    pub vgpu_type: String,
    /// The functions that they are on, in order: virtual ones, or for mediated devices the card's own each time.
    pub functions: Vec<PciAddress>,
    /// What they are known by where the driver offers mediated devices, in order; else none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mediated: Vec<MdevUuid>,
}

/// What is there.
#[derive(Debug)]
pub struct VgpuState {
    /// What the script goes by.
    text: Option<String>,
    /// What has it run at boot.
    at_boot: Option<String>,
    /// What the script did; denied to all but root.
    done: Answer<String>,
    /// Why it did not come to its end.
    why: Option<String>,
    /// Whether NVIDIA's vGPU driver is installed.
    driver: bool,
    /// The type on each virtual function that is there.
    types: BTreeMap<PciAddress, u32>,
    /// The mediated devices on the card.
    devices: BTreeMap<MdevUuid, Made>,
    /// The card or its virtual functions offer mediated devices.
    mediated: bool,
    /// The names of the types that can be made on one that has none.
    creatable: Vec<String>,
    /// Who has which of them, or may have.
    held: BTreeMap<Vgpu, String>,
}

/// The names in a list of types: `558 : NVIDIA A40-1Q` a line, below a heading.
fn names(list: &str) -> Vec<String> {
    let one = |line: &str| {
        let (id, name) = line.split_once(':')?;
        id.trim().parse::<u32>().ok().map(|_| name.trim().to_owned())
    };
    list.lines().filter_map(one).collect()
}

impl Vgpus {
    fn path(&self) -> PathBuf {
        Path::new(KNOWN).join(self.name.as_str())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# Written by gpuvm: the vGPUs of {}.\nphysical {} {} {}\ntype {}\n",
            self.name, self.physical, self.id, self.pattern, self.vgpu_type
        );
        for (number, address) in self.functions.iter().enumerate() {
            text += &match self.mediated.get(number) {
                None => format!("function {number} {address}\n"),
                Some(uuid) => format!("mediated {number} {address} {uuid}\n"),
            };
        }
        text
    }

    fn boot_text(&self) -> String {
        boot_files::boot_text(&unit(self.name.as_str()))
    }

    fn binding(&self) -> VfioBinding {
        VfioBinding::of_card(self.name.as_str(), self.physical.slot, &self.card, self.vouched)
    }

    /// Each of them, with the function that it is on.
    pub fn all(&self) -> Vec<(Vgpu, PciAddress)> {
        match self.mediated.is_empty() {
            true => self.functions.iter().map(|f| (Vgpu::On(*f), *f)).collect(),
            false => self.mediated.iter().map(|m| Vgpu::Mediated(*m)).zip(self.functions.iter().copied()).collect(),
        }
    }

    /// On the card's own function, and not on virtual ones.
    fn on_card(&self) -> bool {
        !self.mediated.is_empty() && self.functions.iter().all(|f| *f == self.physical)
    }

    fn step(&self, before: u16, count: u16) -> Step {
        Step::Vgpus(VgpuStep { name: self.name.clone(), physical: self.physical, before, count })
    }

    /// Why the card cannot have any, as it is now.
    fn hindered(&self, state: &VgpuState, facts: &HostFacts) -> Result<Option<Sriov>, (String, String)> {
        let Some(physical) = facts.pci.get(&self.physical) else {
            return Err((format!("there is no card at {}", self.physical), "see what is there: gpuvm gpu list".into()));
        };
        if let Some(off) = self.binding().iommu_off(facts) {
            return Err(off);
        }
        let sriov = physical.sriov.as_ref().filter(|_| !self.on_card());
        if sriov.is_none() && !self.on_card() {
            return Err((
                format!("{} cannot have virtual functions", self.physical),
                "take `vgpu` out of the manifest".to_owned(),
            ));
        }
        // Drivers of before virtual functions do not have it: that they offer mediated devices is what tells.
        if !state.driver && !state.mediated {
            return Err((
                format!("NVIDIA's vGPU driver for KVM hosts is not installed ({MANAGE} is not there)"),
                "install it from NVIDIA's licensing portal (nlp.nvidia.com), with its licence: the data centre driver, which \
                 gpuvm and the distributions install, makes no vGPUs"
                    .to_owned(),
            ));
        }
        if physical.driver.as_deref() != Some("nvidia") {
            let on = physical.driver.as_deref().unwrap_or("no driver");
            return Err((
                format!("{} is on {on}, and NVIDIA's vGPU driver makes vGPUs", self.physical),
                "take it from VMs and out of what binds it; see dmesg for why the driver did not take it".to_owned(),
            ));
        }
        let on = sriov.is_none_or(|s| s.now != 0);
        let (offers, other) = match self.mediated.is_empty() {
            true => (!state.types.is_empty(), state.mediated),
            false => (state.mediated, !state.types.is_empty()),
        };
        if on && !offers && other {
            let (is, by) = match self.mediated.is_empty() {
                true => ("as mediated devices", "current_vgpu_type of its virtual functions"),
                false => ("by current_vgpu_type of its virtual functions", "mediated devices"),
            };
            return Err((
                format!("its driver offers the vGPUs of {} {is}, and this kernel's would by {by}", self.physical),
                "NVIDIA's driver is of another kernel's than what runs, or of before vGPU 17: boot what it was built for"
                    .to_owned(),
            ));
        }
        if on && !offers {
            let of = if sriov.is_some() { "the virtual functions of " } else { "" };
            let tell = if sriov.is_some() { "tell" } else { "tells" };
            return Err((
                format!("{of}{} {tell} no vGPU types", self.physical),
                "see whether NVIDIA's vGPU driver for KVM hosts is what has the card and nvidia-vgpu-mgr runs (systemctl \
                 status nvidia-vgpu-mgr), and dmesg"
                    .to_owned(),
            ));
        }
        Ok(sriov.cloned())
    }

    /// Which virtual function that is there shares its IOMMU group with something else.
    fn shared_group(&self, facts: &HostFacts) -> Option<(String, String)> {
        let one = |f: &PciFunction| {
            let mut others = facts.pci.values().filter(|o| f.group.is_some() && o.group == f.group && !o.is_bridge());
            let other = others.find(|o| !self.functions.contains(&o.address))?;
            Some((
                format!("{} shares its IOMMU group with {} {}", f.address, other.address, other.name),
                "a group moves as a whole: look for ACS and ARI in the firmware's settings, or try another slot"
                    .to_owned(),
            ))
        };
        self.functions.iter().filter_map(|a| facts.pci.get(a)).find_map(one)
    }

    /// How each virtual function differs, and which of them lose what they have for that.
    fn differences(&self, state: &VgpuState, last: Option<&Self>, done: bool) -> (Vec<FieldDiff>, Vec<Vgpu>) {
        let (mut fields, mut lose) = (Vec::new(), Vec::new());
        let before: Vec<Vgpu> = last.iter().flat_map(|l| l.all()).map(|(vgpu, _)| vgpu).collect();
        for (number, (vgpu, on)) in self.all().into_iter().enumerate() {
            let was = last.filter(|_| before.contains(&vgpu)).map(|l| l.vgpu_type.as_str());
            let now = match (vgpu, state.is(vgpu)) {
                (_, None) => None,
                // Its type is told by name, and another function is none that a boot would have it on.
                (Vgpu::Mediated(uuid), Some(now)) => match state.devices.get(&uuid) {
                    Some(made) if made.on == on && made.vgpu_type == self.vgpu_type => continue,
                    Some(made) if made.on != on => Some(format!("{now} on {}", made.on)),
                    _ => Some(now),
                },
                (Vgpu::On(_), Some(_)) if done || was == Some(&self.vgpu_type) => continue,
                (Vgpu::On(_), Some(now)) => Some(was.map_or(now, str::to_owned)),
            };
            lose.extend(now.is_some().then_some(vgpu));
            let place = match vgpu {
                Vgpu::On(_) => String::new(),
                Vgpu::Mediated(_) => format!(" on {on}"),
            };
            fields.push(FieldDiff::new(format!("{number}: {vgpu}{place}"), now, Some(self.vgpu_type.clone())));
        }
        let wanted = self.all();
        for vgpu in before.into_iter().filter(|b| wanted.iter().all(|(vgpu, _)| vgpu != b)) {
            if let Some(now) = state.is(vgpu) {
                lose.push(vgpu);
                fields.push(FieldDiff::new(vgpu.to_string(), Some(now), None));
            }
        }
        (fields, lose)
    }
}

impl VgpuState {
    /// The type of one that is there.
    fn is(&self, vgpu: Vgpu) -> Option<String> {
        match vgpu {
            Vgpu::On(f) => self.types.get(&f).filter(|t| **t != 0).map(|t| format!("type {t}")),
            Vgpu::Mediated(uuid) => self.devices.get(&uuid).map(|made| match made.vgpu_type.as_str() {
                "" => "unknown".to_owned(),
                name => name.to_owned(),
            }),
        }
    }

    /// All that are there, whoever made them, each with the function that it is on.
    fn there(&self) -> impl Iterator<Item = (Vgpu, PciAddress)> {
        let typed = self.types.iter().filter(|(_, t)| **t != 0).map(|(f, _)| (Vgpu::On(*f), *f));
        typed.chain(self.devices.iter().map(|(uuid, made)| (Vgpu::Mediated(*uuid), made.on)))
    }
}

impl Resource for Vgpus {
    const KIND: &'static str = "vgpu";
    type State = VgpuState;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<VgpuState, HostError> {
        let types = types(self.physical, host);
        let of = |f: &PciAddress, file: &str| PathBuf::from(format!("/sys/bus/pci/devices/{f}/{file}"));
        let free = types.iter().find(|(_, t)| **t == 0);
        let typed = free.map(|(f, _)| host.text(&of(f, "nvidia/creatable_vgpu_types"))).transpose()?;
        let mut creatable: Vec<String> = typed.and_then(Answer::value).map(|list| names(&list)).unwrap_or_default();
        let devices = mediated::made(self.physical, host);
        let mut offers = false;
        for on in [self.physical].into_iter().chain(there(self.physical, host).into_values()) {
            let Some(offered) = mediated::offered(on, host)? else { continue };
            offers = true;
            if creatable.is_empty() {
                creatable = offered.into_iter().filter(|(_, more)| *more).map(|(name, _)| name).collect();
            }
        }
        Ok(VgpuState {
            text: host.text(&self.path())?.value(),
            at_boot: host.text(&at_boot(self.name.as_str()))?.value(),
            done: host.text(&Path::new(DONE).join(self.name.as_str()))?,
            why: host.text(&Path::new(DONE).join("why").join(self.name.as_str()))?.value(),
            driver: host.stat(Path::new(MANAGE))?.value().is_some(),
            mediated: offers,
            creatable,
            held: types
                .iter()
                .filter(|(_, t)| **t != 0)
                .filter_map(|(f, _)| Some((Vgpu::On(*f), held(vec![*f], host)?)))
                .chain(devices.keys().filter_map(|m| Some((Vgpu::Mediated(*m), mediated::held(*m, host)?))))
                .collect(),
            types,
            devices,
        })
    }

    fn diff(&self, state: &VgpuState, last: Option<&Self>, facts: &HostFacts) -> Diff {
        let blocked = |why: String, help: &str| Diff::Blocked { why, help: help.to_owned() };
        if let Some((why, help)) = last.and_then(|last| self.binding().another(&last.binding(), facts)) {
            return Diff::Blocked { why, help };
        }
        let sriov = match self.hindered(state, facts) {
            Ok(sriov) => sriov,
            Err((why, help)) => return Diff::Blocked { why, help },
        };
        // A mediated device on the card itself has a group of its own, which the kernel makes for it.
        if let Some((why, help)) = self.shared_group(facts).filter(|_| !self.on_card()) {
            return Diff::Blocked { why, help };
        }
        // Cut off before it was remembered, the file says what was begun.
        let begun = |vgpu: Vgpu| {
            let text = state.text.as_deref().unwrap_or_default();
            let mut lines = text.lines().filter(|l| l.starts_with("function ") || l.starts_with("mediated "));
            lines.any(|l| l.ends_with(&format!(" {vgpu}")))
        };
        let remembered: Vec<Vgpu> = last.iter().flat_map(|l| l.all()).map(|(vgpu, _)| vgpu).collect();
        let ours = |vgpu: Vgpu| remembered.contains(&vgpu) || begun(vgpu);
        // Beside mediated devices of others there may be room, unless they are in a place of these, or have one's UUID.
        let wanted = self.all();
        let in_the_way = |(vgpu, on): &(Vgpu, PciAddress)| match vgpu {
            Vgpu::On(_) => true,
            Vgpu::Mediated(_) if wanted.iter().any(|(w, _)| w == vgpu) => true,
            Vgpu::Mediated(_) => !self.on_card() && self.functions.contains(on),
        };
        if let Some((vgpu, on)) = state.there().find(|one| !ours(one.0) && in_the_way(one)) {
            let is = state.is(vgpu).unwrap_or_default();
            let help = match vgpu {
                Vgpu::On(_) => "write 0 to nvidia/current_vgpu_type of that function".to_owned(),
                Vgpu::Mediated(uuid) => format!("write 1 to {}/{uuid}/remove", mediated::DEVICES),
            };
            return blocked(
                format!("{on} has a vGPU ({is}) that gpuvm did not make"),
                &format!("take it from there once no VM has it: {help}"),
            );
        }
        let none = state.there().next().is_none();
        if none && !state.creatable.is_empty() && !state.creatable.contains(&self.vgpu_type) {
            return blocked(
                format!("`{}` is no type that {} can have now", self.vgpu_type, self.physical),
                &format!("what it can: {}", state.creatable.join(", ")),
            );
        }
        let text = self.text();
        let action = if state.text.is_some() { Action::Change } else { Action::Create };
        let plural = if self.functions.len() == 1 { "" } else { "s" };
        let count = u16::try_from(self.functions.len()).unwrap_or(u16::MAX);
        let what = format!("{count} vGPU{plural} of {}, {}", self.physical, self.vgpu_type);
        let mut change = Change::new(action, what.clone());
        let files =
            [(self.path(), &state.text, text.clone()), (at_boot(self.name.as_str()), &state.at_boot, self.boot_text())];
        boot_files::write(&mut change, files);
        let done = match &state.done {
            Answer::Value(done) => *done == text,
            // Only root may look; what is seen in sysfs is as it should be then.
            Answer::Denied => state.text.as_ref() == Some(&text),
            Answer::Absent => false,
        };
        let (differ, lose) = self.differences(state, last, done);
        if change.steps.is_empty() && differ.is_empty() && done {
            return Diff::InSync { evidence: what };
        }
        if differ.is_empty() && done {
            return Diff::Change(change);
        }
        if let Some(who) = lose.iter().find_map(|f| state.held.get(f)) {
            return blocked(
                format!("its vGPUs would be changed, and {who}"),
                "shut that VM down first (gpuvm vm stop VM), or leave them as they are",
            );
        }
        if sriov.is_some_and(|s| s.now == 0) {
            change.notes.push(
                "which types there are, and how many of one fit, the card tells once its virtual functions are on: what does \
                 not fit ends the apply with what does"
                    .to_owned(),
            );
        }
        change.notes.extend(state.why.as_ref().map(|why| format!("the last try: {}", why.trim())));
        change.fields.extend(differ);
        let now = state.there().filter(|(vgpu, _)| ours(*vgpu)).count();
        change.steps.push(self.step(u16::try_from(now).unwrap_or(u16::MAX), count));
        Diff::Change(change)
    }

    fn remove(&self, state: &VgpuState, facts: &HostFacts) -> Diff {
        let mut change = Change::new(Action::Remove, format!("no vGPUs of {}", self.physical));
        // Another card in that place has its own, which are nobody's business here.
        let another = self.binding().is_another_now(facts) || !facts.pci.contains_key(&self.physical);
        let made = |vgpu: &Vgpu| !another && state.is(*vgpu).is_some();
        let mine: Vec<Vgpu> = self.all().into_iter().map(|(vgpu, _)| vgpu).filter(made).collect();
        if let Some(who) = mine.iter().find_map(|f| state.held.get(f)) {
            return Diff::Blocked {
                why: format!("they left the manifest, and {who}"),
                help: "shut that VM down first (gpuvm vm stop VM), or keep them in the manifest until then".to_owned(),
            };
        }
        let sriov = facts.pci.get(&self.physical).and_then(|f| f.sriov.as_ref()).filter(|_| !self.on_card());
        let on = sriov.is_some_and(|s| s.now > 0);
        if !another && mine.is_empty() && on && state.text.is_some() && state.there().next().is_none() {
            // A removal that was cut off: what they were on is left.
            change.fields.push(FieldDiff::new("virtual functions", Some("on".to_owned()), Some("off".to_owned())));
            change.steps.push(self.step(0, 0));
        }
        if self.on_card() && mine.is_empty() && !matches!(state.done, Answer::Absent) {
            // The same, where there is nothing but the word that they were made.
            change.fields.push(FieldDiff::new(
                "note that they were made",
                Some("there".to_owned()),
                Some("away".to_owned()),
            ));
            change.steps.push(self.step(0, 0));
        }
        if !mine.is_empty() {
            let count = mine.len().to_string();
            change.fields.push(FieldDiff::new("vGPUs", Some(count), Some("0".to_owned())));
            if !self.on_card() {
                change.notes.push("its virtual functions are turned off too, where nothing else is on them".to_owned());
            }
            change.steps.push(self.step(u16::try_from(mine.len()).unwrap_or(u16::MAX), 0));
        }
        let files = [(self.path(), &state.text), (at_boot(self.name.as_str()), &state.at_boot)];
        boot_files::take_away(change, files)
    }
}

#[cfg(test)]
mod tests;
