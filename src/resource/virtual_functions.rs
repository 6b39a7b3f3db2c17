//! Virtual functions of a device that shares itself in hardware (SR-IOV): made at each boot by a unit of ours, which runs
//! a script that needs neither libvirt nor gpuvm. The device itself stays with its driver, which makes them; those for
//! VMs go to vfio-pci before any driver of the host's has seen them.
//!
//! Which one is meant is said by the device and a number (`virtfnN` in sysfs). Where it is, is read from there, and before
//! there are any from what the card says (`sriov_offset`, `sriov_stride`); the script ends where they come elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::shared_gpu::user_of;
use super::vfio_binding::{Card, VfioBinding, Vouched, once_grouped, open};
use super::{Resource, boot_files};
use crate::facts::{Carries, HostFacts, PciFunction, Sriov};
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Risk, Step, VirtualFunctionsStep};
use crate::types::{MacAddress, PciAddress, PciId, ResourceName};

/// The script.
pub const SCRIPT: (&str, &str) = (
    "/usr/local/lib/gpuvm/virtual-functions",
    concat!(
        include_str!("boot_files/head.sh"),
        include_str!("boot_files/sysfs.sh"),
        include_str!("virtual_functions/virtual-functions.sh")
    ),
);

/// The unit that runs it. Before the network: a driver may reset its card for this, and the addresses are set before
/// anything is told them. What is ordered before the network must not wait for the whole of sysinit.target, of which parts
/// of the network are. `KillMode=process`: what sleeps in the kernel for ever is left behind, and nothing waits for it.
pub const UNIT: (&str, &str) = (
    "/etc/systemd/system/gpuvm-virtual-functions@.service",
    "# Written by gpuvm. The instance is the device's name in host.yaml.\n[Unit]\n\
     Description=gpuvm makes virtual functions (%i)\nConditionKernelCommandLine=!gpuvm.off\nDefaultDependencies=no\n\
     After=local-fs.target systemd-modules-load.service systemd-udevd.service systemd-udev-trigger.service\n\
     Wants=network-pre.target\nBefore=network-pre.target libvirtd.service virtqemud.service shutdown.target\n\
     Conflicts=shutdown.target\nStartLimitIntervalSec=0\n\n[Service]\nType=oneshot\n\
     ExecStart=/usr/local/lib/gpuvm/virtual-functions %i\nTimeoutStartSec=180\nKillMode=process\n",
);

/// What the script goes by, a file a device.
pub const KNOWN: &str = "/etc/gpuvm/virtual-functions";
/// The same, as the script did it to its end since the last boot; and below `why`, why it did not.
pub const DONE: &str = "/run/gpuvm/virtual-functions";

/// The unit of a device.
pub fn unit(name: &str) -> String {
    format!("gpuvm-virtual-functions@{name}.service")
}

/// What has the unit of a device started at boot: a drop-in, which is a file like the others.
pub fn at_boot(name: &str) -> PathBuf {
    format!("/etc/systemd/system/multi-user.target.d/gpuvm-virtual-functions-{name}.conf").into()
}

/// Where the functions of a device are now, by their numbers.
pub fn there(physical: PciAddress, host: &dyn Probe) -> BTreeMap<u16, PciAddress> {
    let link = |n: u16| {
        let path = format!("/sys/bus/pci/devices/{physical}/virtfn{n}");
        let target = host.link(path.as_ref()).ok().and_then(Answer::value)?;
        Some((n, target.file_name()?.to_str()?.parse().ok()?))
    };
    (0..u16::MAX).map_while(link).collect()
}

/// Virtual functions of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualFunctions {
    /// The name that the manifest gives the device.
    pub name: ResourceName,
    /// Its function that has them.
    pub physical: PciAddress,
    /// What that has to be.
    pub id: PciId,
    /// Its path in sysfs, with the bus numbers left open.
    pub pattern: String,
    /// The card that it is on.
    pub card: Option<Card>,
    /// What the manifest itself says of the card.
    pub vouched: Vouched,
    /// Whether they are for VMs, or the host's.
    pub for_vms: bool,
    /// Where each is, in order, with the Ethernet address of one of a network card.
    pub functions: Vec<(PciAddress, Option<MacAddress>)>,
}

/// What is there.
#[derive(Debug)]
pub struct FunctionsState {
    /// What the script goes by.
    text: Option<String>,
    /// What has it run at boot.
    at_boot: Option<String>,
    /// What the script did; denied to all but root.
    done: Answer<String>,
    /// Why it did not come to its end.
    why: Option<String>,
    /// Who has one of them, or may have: looked at where they are not as they should be.
    held: Option<String>,
}

impl VirtualFunctions {
    fn path(&self) -> PathBuf {
        Path::new(KNOWN).join(self.name.as_str())
    }

    /// How many. A device has 65535 at most.
    fn count(&self) -> u16 {
        u16::try_from(self.functions.len()).unwrap_or(u16::MAX)
    }

    fn text(&self) -> String {
        let owner = if self.for_vms { "vms" } else { "host" };
        let mut text = format!(
            "# Written by gpuvm: the virtual functions of {}.\nphysical {} {} {}\ncount {}\nfor {owner}\n",
            self.name,
            self.physical,
            self.id,
            self.pattern,
            self.count()
        );
        for (number, (address, mac)) in self.functions.iter().enumerate() {
            let mac = mac.map_or("-".to_owned(), |mac| mac.to_string());
            text += &format!("function {number} {address} {mac}\n");
        }
        text
    }

    fn boot_text(&self) -> String {
        boot_files::boot_text(&unit(self.name.as_str()))
    }

    fn binding(&self) -> VfioBinding {
        VfioBinding::of_card(self.name.as_str(), self.physical.slot, &self.card, self.vouched)
    }

    /// What differs from what is wanted of each, as it is now.
    fn differences(&self, sriov: &Sriov, facts: &HostFacts) -> Vec<FieldDiff> {
        let mut all = Vec::new();
        if sriov.now != self.count() {
            let (now, then) = (sriov.now.to_string(), self.count().to_string());
            all.push(FieldDiff::new("virtual functions", Some(now), Some(then)));
        }
        for (number, (address, _)) in (0u16..).zip(&self.functions) {
            let there = sriov.functions.get(&number).filter(|_| sriov.now > number);
            let there = there.and_then(|a| facts.pci.get(a));
            let is = there.map(|f| f.driver.clone().unwrap_or_else(|| "no driver".to_owned()));
            let on_vfio = is.as_deref().is_some_and(|d| d.contains("vfio"));
            if is.is_none() || on_vfio != self.for_vms {
                let wanted = if self.for_vms { "vfio-pci" } else { "its own driver" };
                all.push(FieldDiff::new(format!("{number}: {address}"), is, Some(wanted.to_owned())));
            }
        }
        all
    }

    /// Which of those that are there shares its IOMMU group with what is not for VMs.
    fn shared_group(&self, sriov: &Sriov, facts: &HostFacts) -> Option<(String, String)> {
        let mine = sriov.functions.values().filter_map(|a| facts.pci.get(a));
        let own = |f: &PciFunction| sriov.functions.values().any(|a| *a == f.address);
        let given = |f: &PciFunction| f.driver.as_deref().is_some_and(|d| d.contains("vfio"));
        mine.filter(|f| f.group.is_some()).find_map(|f| {
            let mut others = facts.pci.values().filter(|o| o.group == f.group && !o.is_bridge());
            let other = others.find(|o| !own(o) && !given(o))?;
            Some((
                format!("{} shares its IOMMU group with {} {}", f.address, other.address, other.name),
                "a group moves as a whole: look for ACS and ARI in the firmware's settings, or try another slot"
                    .to_owned(),
            ))
        })
    }

    fn step(&self, before: u16, count: u16) -> Step {
        Step::VirtualFunctions(VirtualFunctionsStep { name: self.name.clone(), physical: self.physical, before, count })
    }
}

/// What making or taking them does to what the device itself carries; `Err` where it must not be done.
fn carried(physical: &PciFunction, change: &mut Change) -> Result<(), (String, String)> {
    let of_network = |c: &&Carries| matches!(c, Carries::Uplink(_));
    if let Some(other) = physical.carries.iter().find(|c| !of_network(c)) {
        return Err((
            format!("{} carries {other}: a driver may reset its card for this", physical.address),
            "share a device that the host does not run from".to_owned(),
        ));
    }
    if let Some(link) = physical.carries.iter().find(of_network) {
        change.risks.insert(Risk::NetworkLoss);
        change.notes.push(format!(
            "it carries {link}: its driver may reset the card for this (Intel's igb and ixgbe do), so that the link is away \
             for some seconds; nothing guards that, and it happens at each boot before the network starts"
        ));
    }
    Ok(())
}

/// What of the host one of those that are there carries, or who else has one.
fn in_use(sriov: &Sriov, state: &FunctionsState, facts: &HostFacts) -> Option<String> {
    let of_host = sriov.functions.values().filter_map(|a| facts.pci.get(a)).find(|f| !f.carries.is_empty());
    let carries = of_host.and_then(|f| Some(format!("{} carries {}", f.address, f.carries.first()?)));
    carries.or_else(|| state.held.clone())
}

impl Resource for VirtualFunctions {
    const KIND: &'static str = "virtual-functions";
    type State = FunctionsState;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<FunctionsState, HostError> {
        let mut state = FunctionsState {
            text: host.text(&self.path())?.value(),
            at_boot: host.text(&at_boot(self.name.as_str()))?.value(),
            done: host.text(&Path::new(DONE).join(self.name.as_str()))?,
            why: host.text(&Path::new(DONE).join("why").join(self.name.as_str()))?.value(),
            held: None,
        };
        let there = there(self.physical, host);
        let wanted = self.functions.iter().map(|(address, _)| address);
        let done = matches!(&state.done, Answer::Value(text) if *text == self.text());
        if !(done && there.values().eq(wanted)) {
            state.held = held(there.into_values().collect(), host);
        }
        Ok(state)
    }

    fn probe_removal(&self, host: &dyn Probe) -> Result<FunctionsState, HostError> {
        let functions = there(self.physical, host).into_values().collect();
        Ok(FunctionsState { held: held(functions, host), ..self.probe(host)? })
    }

    fn diff(&self, state: &FunctionsState, last: Option<&Self>, facts: &HostFacts) -> Diff {
        let blocked = |why: String, help: &str| Diff::Blocked { why, help: help.to_owned() };
        let Some(physical) = facts.pci.get(&self.physical) else {
            return blocked(format!("there is no device at {}", self.physical), "see what is there: gpuvm facts");
        };
        if let Some((why, help)) = last.and_then(|last| self.binding().another(&last.binding(), facts)) {
            return Diff::Blocked { why, help };
        }
        if let Some((why, help)) = self.binding().iommu_off(facts).filter(|_| self.for_vms) {
            return Diff::Blocked { why, help };
        }
        let Some(sriov) = &physical.sriov else {
            return blocked(
                format!("{} cannot have virtual functions", self.physical),
                "take them out of the manifest",
            );
        };
        let Some(driver) = &physical.driver else {
            let help = "its own driver makes them: load that (`modules`), or see dmesg for why it did not take it";
            return blocked(format!("{} has no driver", self.physical), help);
        };
        if driver.contains("vfio") {
            let help = "its own driver makes them: take it from VMs first, and out of what binds it";
            return blocked(format!("{} is on {driver}", self.physical), help);
        }
        if let Some((why, help)) = self.shared_group(sriov, facts).filter(|_| self.for_vms) {
            return Diff::Blocked { why, help };
        }
        let text = self.text();
        let action = if state.text.is_some() { Action::Change } else { Action::Create };
        let plural = if self.count() == 1 { "" } else { "s" };
        let owner = if self.for_vms { "for VMs" } else { "the host's" };
        let what = format!("{} virtual function{plural} of {}, {owner}", self.count(), self.physical);
        let mut change = Change::new(action, what.clone());
        let files =
            [(self.path(), &state.text, text.clone()), (at_boot(self.name.as_str()), &state.at_boot, self.boot_text())];
        boot_files::write(&mut change, files);
        let differ = self.differences(sriov, facts);
        let done = match &state.done {
            Answer::Value(done) => *done == text,
            // Only root may look; what is seen in sysfs is as it should be then.
            Answer::Denied => true,
            Answer::Absent => false,
        };
        if change.steps.is_empty() && differ.is_empty() && done {
            return Diff::InSync { evidence: what };
        }
        if differ.is_empty() && done {
            return Diff::Change(change);
        }
        if sriov.now != 0 {
            if sriov.now != self.count() && last.is_none() {
                return blocked(
                    format!("{} has {} virtual functions that gpuvm did not make", self.physical, sriov.now),
                    "another number goes through none of them: write `count` as it is, or 0 to sriov_numvfs yourself",
                );
            }
            // The same Ethernet addresses once more change nothing for who has one.
            let same = last.is_some_and(|l| l.functions == self.functions && l.for_vms == self.for_vms);
            if let Some(held) = in_use(sriov, state, facts).filter(|_| !(same && differ.is_empty())) {
                return blocked(
                    format!("its virtual functions would be changed, and {held}"),
                    "shut that VM down first (gpuvm vm stop VM), or leave them as they are",
                );
            }
        }
        if sriov.now != self.count() {
            if let Err((why, help)) = carried(physical, &mut change) {
                return Diff::Blocked { why, help };
            }
            if sriov.now != 0 {
                change.notes.push("all of them are away for a moment: another number goes through none".to_owned());
            }
            if sriov.now == 0 && self.for_vms {
                let note = "their IOMMU groups are known once they are there, and looked at before each start of a VM";
                change.notes.push(note.to_owned());
            }
        }
        change.notes.extend(state.why.as_ref().map(|why| format!("the last try: {}", why.trim())));
        change.fields.extend(differ);
        change.steps.push(self.step(sriov.now, self.count()));
        match self.for_vms {
            true => once_grouped(change.clone(), self.physical.slot, facts).unwrap_or(Diff::Change(change)),
            false => Diff::Change(change),
        }
    }

    fn remove(&self, state: &FunctionsState, facts: &HostFacts) -> Diff {
        let mut change = Change::new(Action::Remove, format!("no virtual functions of {}", self.physical));
        let physical = facts.pci.get(&self.physical);
        // Another card in that place has its own, which are nobody's business here.
        let another = self.binding().is_another_now(facts);
        let now = physical.filter(|_| !another).and_then(|f| f.sriov.as_ref()).filter(|s| s.now != 0);
        if let (Some(sriov), Some(physical)) = (now, physical) {
            if let Some(held) = in_use(sriov, state, facts) {
                return Diff::Blocked {
                    why: format!("they left the manifest, and {held}"),
                    help: "shut that VM down first (gpuvm vm stop VM), or keep them in the manifest until then"
                        .to_owned(),
                };
            }
            if let Err((why, help)) = carried(physical, &mut change) {
                return Diff::Blocked { why, help };
            }
            let count = sriov.now.to_string();
            change.fields.push(FieldDiff::new("virtual functions", Some(count), Some("0".to_owned())));
            change.steps.push(self.step(sriov.now, 0));
        }
        let files = [(self.path(), &state.text), (at_boot(self.name.as_str()), &state.at_boot)];
        boot_files::take_away(change, files)
    }
}

/// Who has one of these functions, or may have. `None` is known to be nobody.
pub(super) fn held(functions: Vec<PciAddress>, host: &dyn Probe) -> Option<String> {
    if functions.is_empty() {
        return None;
    }
    let running = match super::libvirt::ask(host) {
        Ok(libvirt) => user_of(|f| functions.contains(f), &libvirt).map(|vm| vm.map(str::to_owned)),
        Err(e) => Err(e.to_string()),
    };
    match running {
        Ok(Some(vm)) => Some(format!("VM `{vm}` has one of them")),
        Ok(None) => open(functions.into_iter(), host),
        Err(why) => Some(format!("whether a VM has one of them is not known: {why}")),
    }
}

#[cfg(test)]
mod tests;
