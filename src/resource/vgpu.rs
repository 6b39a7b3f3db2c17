//! vGPUs of a card of NVIDIA's, the SR-IOV way of kernels from 6.8 on: the card stays with NVIDIA's vGPU driver, whose
//! `sriov-manage` turns its virtual functions on, and the number of a type written to `nvidia/current_vgpu_type` of one of
//! them makes a vGPU of it (NVIDIA's Virtual GPU Software User Guide, "Creating an NVIDIA vGPU on a Linux with KVM Hypervisor
//! that Uses a Vendor-Specific VFIO Framework"). Made at each boot by a unit of ours, which runs a script that needs neither
//! libvirt nor gpuvm. Mediated devices, the way of older kernels and cards, are not made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::vfio_binding::{Card, VfioBinding, Vouched};
use super::virtual_functions::{held, there};
use super::{Resource, boot_files};
use crate::facts::{HostFacts, PciFunction, Sriov};
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Step, VgpuStep};
use crate::types::{PciAddress, PciId, ResourceName};

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
    /// The virtual functions that they are on, in order.
    pub functions: Vec<PciAddress>,
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
    /// The virtual functions offer mediated devices in place of that.
    mediated: bool,
    /// The names of the types that can be made on one that has none.
    creatable: Vec<String>,
    /// Who has which of them, or may have.
    held: BTreeMap<PciAddress, String>,
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
            text += &format!("function {number} {address}\n");
        }
        text
    }

    fn boot_text(&self) -> String {
        boot_files::boot_text(&unit(self.name.as_str()))
    }

    fn binding(&self) -> VfioBinding {
        VfioBinding::of_card(self.name.as_str(), self.physical.slot, &self.card, self.vouched)
    }

    fn step(&self, before: u16, count: u16) -> Step {
        Step::Vgpus(VgpuStep { name: self.name.clone(), physical: self.physical, before, count })
    }

    /// Why the card cannot have any, as it is now.
    fn hindered(&self, state: &VgpuState, facts: &HostFacts) -> Result<Sriov, (String, String)> {
        let Some(physical) = facts.pci.get(&self.physical) else {
            return Err((format!("there is no card at {}", self.physical), "see what is there: gpuvm gpu list".into()));
        };
        if let Some(off) = self.binding().iommu_off(facts) {
            return Err(off);
        }
        let Some(sriov) = &physical.sriov else {
            return Err((
                format!("{} cannot have virtual functions", self.physical),
                "take `vgpu` out of the manifest".to_owned(),
            ));
        };
        if !state.driver {
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
        if state.mediated {
            return Err((
                format!(
                    "its driver offers the vGPUs of {} as mediated devices, which gpuvm does not make",
                    self.physical
                ),
                "kernel 6.8 or later with vGPU 17 or later offer them otherwise on this card; until then: mdevctl"
                    .to_owned(),
            ));
        }
        if sriov.now != 0 && state.types.is_empty() {
            return Err((
                format!("the virtual functions of {} tell no vGPU types", self.physical),
                "see whether nvidia-vgpu-mgr runs (systemctl status nvidia-vgpu-mgr), and dmesg".to_owned(),
            ));
        }
        Ok(sriov.clone())
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
    fn differences(&self, state: &VgpuState, last: Option<&Self>, done: bool) -> (Vec<FieldDiff>, Vec<PciAddress>) {
        let (mut fields, mut lose) = (Vec::new(), Vec::new());
        let is = |address: &PciAddress| state.types.get(address).copied().unwrap_or_default();
        for (number, address) in self.functions.iter().enumerate() {
            let was = last.filter(|l| l.functions.contains(address)).map(|l| l.vgpu_type.as_str());
            let now = match is(address) {
                0 => None,
                _ if done => continue,
                _ if was == Some(&self.vgpu_type) => continue,
                n => Some(was.map_or_else(|| format!("type {n}"), str::to_owned)),
            };
            lose.extend(now.is_some().then_some(*address));
            fields.push(FieldDiff::new(format!("{number}: {address}"), now, Some(self.vgpu_type.clone())));
        }
        for address in last.iter().flat_map(|l| &l.functions) {
            if !self.functions.contains(address) && is(address) != 0 {
                lose.push(*address);
                fields.push(FieldDiff::new(address.to_string(), Some(format!("type {}", is(address))), None));
            }
        }
        (fields, lose)
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
        let first = there(self.physical, host).into_values().next();
        let mediated = first.map(|f| host.list(&of(&f, "mdev_supported_types"))).transpose()?;
        let free = types.iter().find(|(_, t)| **t == 0);
        let creatable = free.map(|(f, _)| host.text(&of(f, "nvidia/creatable_vgpu_types"))).transpose()?;
        let used = types.iter().filter(|(_, t)| **t != 0);
        Ok(VgpuState {
            text: host.text(&self.path())?.value(),
            at_boot: host.text(&at_boot(self.name.as_str()))?.value(),
            done: host.text(&Path::new(DONE).join(self.name.as_str()))?,
            why: host.text(&Path::new(DONE).join("why").join(self.name.as_str()))?.value(),
            driver: host.stat(Path::new(MANAGE))?.value().is_some(),
            mediated: types.is_empty() && mediated.is_some_and(|m| m.value().is_some_and(|all| !all.is_empty())),
            creatable: creatable.and_then(Answer::value).map(|list| names(&list)).unwrap_or_default(),
            held: used.filter_map(|(f, _)| Some((*f, held(vec![*f], host)?))).collect(),
            types,
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
        if let Some((why, help)) = self.shared_group(facts) {
            return Diff::Blocked { why, help };
        }
        // Cut off before it was remembered, the file says what was begun.
        let begun = |f: &PciAddress| {
            let text = state.text.as_deref().unwrap_or_default();
            text.lines().any(|l| l.starts_with("function ") && l.ends_with(&format!(" {f}")))
        };
        let ours = |f: &PciAddress| last.is_some_and(|l| l.functions.contains(f)) || begun(f);
        if let Some((f, t)) = state.types.iter().find(|(f, t)| **t != 0 && !ours(f)) {
            return blocked(
                format!("{f} has a vGPU (type {t}) that gpuvm did not make"),
                "take it from there once no VM has it: write 0 to nvidia/current_vgpu_type of that function",
            );
        }
        let none = state.types.values().all(|t| *t == 0);
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
        if sriov.now == 0 {
            change.notes.push(
                "which types there are, and how many of one fit, the card tells once its virtual functions are on: what does \
                 not fit ends the apply with what does"
                    .to_owned(),
            );
        }
        change.notes.extend(state.why.as_ref().map(|why| format!("the last try: {}", why.trim())));
        change.fields.extend(differ);
        let now = state.types.values().filter(|t| **t != 0).count();
        change.steps.push(self.step(u16::try_from(now).unwrap_or(u16::MAX), count));
        Diff::Change(change)
    }

    fn remove(&self, state: &VgpuState, facts: &HostFacts) -> Diff {
        let mut change = Change::new(Action::Remove, format!("no vGPUs of {}", self.physical));
        // Another card in that place has its own, which are nobody's business here.
        let another = self.binding().is_another_now(facts) || !facts.pci.contains_key(&self.physical);
        let typed = |f: &&PciAddress| !another && state.types.get(f).is_some_and(|t| *t != 0);
        let mine: Vec<PciAddress> = self.functions.iter().filter(typed).copied().collect();
        if let Some(who) = mine.iter().find_map(|f| state.held.get(f)) {
            return Diff::Blocked {
                why: format!("they left the manifest, and {who}"),
                help: "shut that VM down first (gpuvm vm stop VM), or keep them in the manifest until then".to_owned(),
            };
        }
        let on = facts.pci.get(&self.physical).and_then(|f| f.sriov.as_ref()).is_some_and(|s| s.now > 0);
        if !another && mine.is_empty() && on && state.text.is_some() && state.types.values().all(|t| *t == 0) {
            // A removal that was cut off: what they were on is left.
            change.fields.push(FieldDiff::new("virtual functions", Some("on".to_owned()), Some("off".to_owned())));
            change.steps.push(self.step(0, 0));
        }
        if !mine.is_empty() {
            let count = mine.len().to_string();
            change.fields.push(FieldDiff::new("vGPUs", Some(count), Some("0".to_owned())));
            change.notes.push("its virtual functions are turned off too, where nothing else is on them".to_owned());
            change.steps.push(self.step(u16::try_from(mine.len()).unwrap_or(u16::MAX), 0));
        }
        let files = [(self.path(), &state.text), (at_boot(self.name.as_str()), &state.at_boot)];
        boot_files::take_away(change, files)
    }
}

#[cfg(test)]
mod tests;
