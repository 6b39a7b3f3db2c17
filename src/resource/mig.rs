//! MIG: an NVIDIA GPU of the host's that is cut into instances for containers. An apply makes and takes them by what the
//! card's own tables say; at each boot, which they do not outlive, a unit of ours makes them again by a script that needs
//! neither gpuvm nor more than `nvidia-smi`. Nobody's instance is taken from under who uses it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::vfio_binding::{Card, VfioBinding, Vouched};
use super::{Resource, boot_files};
use crate::facts::{HostFacts, PciFunction};
use crate::gpu::mig::{self, Arrangement, Instance, MigCard, Told};
use crate::host::{HostError, Probe};
use crate::plan::{
    Action, Change, Containers, Diff, FieldDiff, MigInstance, MigState, MigStep, Refresh, Risk, Step, WaitFor,
};
use crate::types::{PciAddress, PciId, ResourceName};

/// The script.
pub const SCRIPT: (&str, &str) =
    ("/usr/local/lib/gpuvm/mig", concat!(include_str!("boot_files/head.sh"), include_str!("mig/mig.sh")));

/// The unit that runs it, before what starts containers. `KillMode=process`: an `nvidia-smi` that sleeps in the kernel for
/// ever is left behind, and nothing waits for it.
pub const UNIT: (&str, &str) = (
    "/etc/systemd/system/gpuvm-mig@.service",
    "# Written by gpuvm. The instance is the GPU's name in host.yaml.\n[Unit]\n\
     Description=gpuvm makes MIG instances (%i)\nConditionKernelCommandLine=!gpuvm.off\n\
     After=systemd-modules-load.service systemd-udev-trigger.service\n\
     Before=docker.service containerd.service podman.service nvidia-cdi-refresh.service kubelet.service\n\
     StartLimitIntervalSec=0\n\n[Service]\nType=oneshot\nExecStart=/usr/local/lib/gpuvm/mig %i\n\
     TimeoutStartSec=180\nKillMode=process\n",
);

/// What the script goes by, a file a card.
pub const KNOWN: &str = "/etc/gpuvm/mig";
/// Below it, why the script did not come to its end since the last boot.
pub const WHY: &str = "/run/gpuvm/mig/why";

/// What has the unit of a card started at boot: a drop-in, which is a file like the others.
pub fn at_boot(name: &str) -> PathBuf {
    format!("/etc/systemd/system/multi-user.target.d/gpuvm-mig-{name}.conf").into()
}

/// How a card is, as plans and records have it.
pub fn state(card: &MigCard) -> MigState {
    let one = |i: &Instance| MigInstance { profile: i.profile.clone(), start: Some(i.start) };
    MigState { on: card.on, instances: card.instances.iter().map(one).collect() }
}

/// MIG instances of a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mig {
    /// The name that the manifest gives the GPU.
    pub name: ResourceName,
    /// Its display function.
    pub physical: PciAddress,
    /// What that has to be.
    pub id: PciId,
    /// Its path in sysfs, with the bus numbers left open.
    pub pattern: String,
    /// The card that it is on.
    pub card: Option<Card>,
    /// What the manifest itself says of the card.
    pub vouched: Vouched,
    /// What each instance is made as.
    pub profiles: Vec<String>,
    /// Whether the manifest brings the driver.
    #[serde(default)]
    pub with_driver: bool,
    /// Whether the container device interface has files that name the instances.
    #[serde(default)]
    pub cdi: bool,
}

/// What is there.
#[derive(Debug)]
pub struct MigNow {
    /// What the script goes by.
    text: Option<String>,
    /// What has it run at boot.
    at_boot: Option<String>,
    /// Why it did not come to its end.
    why: Option<String>,
    /// What the card says; `None` where NVIDIA's driver does not have it.
    told: Option<Told>,
}

/// Why instances cannot go, or MIG mode not change, for who uses them; `None` where nobody does.
pub fn in_use(card: &MigCard, goes: impl Fn(&&Instance) -> bool, mode: bool) -> Option<Diff> {
    let list = |who: &BTreeSet<String>| who.iter().cloned().collect::<Vec<_>>().join(", ");
    let mut going = card.instances.iter().filter(goes).peekable();
    let touched = going.peek().is_some() || mode;
    if let Some(used) = going.find(|i| !i.users.is_empty()) {
        let uuid = used.uuids.first().map_or(String::new(), |u| format!(" ({u})"));
        return Some(Diff::Blocked {
            why: format!("{} at {}{uuid} would go, and is used by {}", used.profile, used.start, list(&used.users)),
            help: "stop that first, or leave the instance as it is".to_owned(),
        });
    }
    if mode && !card.users.is_empty() {
        return Some(Diff::Blocked {
            why: format!("MIG mode changes only while nobody uses the card, and it is used by {}", list(&card.users)),
            help: "stop that first: monitors of the card (dcgm, nvsm) count too".to_owned(),
        });
    }
    let hidden = card.hidden.as_ref().filter(|_| touched)?;
    Some(Diff::Unknown { why: format!("whether somebody uses it is not known: {hidden}") })
}

/// The file without places: those of a card that did not tell them when it was written.
fn without_places(text: &str) -> String {
    let line = |l: &str| match l.strip_prefix("instance ").and_then(|rest| rest.split_once(' ')) {
        Some((profile, _)) => format!("instance {profile} -\n"),
        None => format!("{l}\n"),
    };
    text.lines().map(line).collect()
}

impl Mig {
    fn path(&self) -> PathBuf {
        Path::new(KNOWN).join(self.name.as_str())
    }

    /// What the script goes by; the instances in order of their places, and without them the largest first.
    fn text(&self, all: Option<&Arrangement>) -> String {
        let mut text = format!(
            "# Written by gpuvm: the MIG instances of {}.\ncard {} {} {}\n",
            self.name, self.physical, self.id, self.pattern
        );
        match all {
            Some(all) => all.all.iter().for_each(|(profile, start)| text += &format!("instance {profile} {start}\n")),
            None => self.largest_first().iter().for_each(|profile| text += &format!("instance {profile} -\n")),
        }
        text
    }

    /// The driver finds room for small ones beside large ones, and not the other way round.
    fn largest_first(&self) -> Vec<&String> {
        let slices = |p: &String| p.split('g').next().and_then(|n| n.parse::<u32>().ok()).unwrap_or_default();
        let memory = |p: &String| p.split(['.', 'g']).nth(2).and_then(|n| n.parse::<u32>().ok()).unwrap_or_default();
        let mut all: Vec<&String> = self.profiles.iter().collect();
        all.sort_by_key(|p| (std::cmp::Reverse((slices(p), memory(p))), (*p).clone()));
        all
    }

    fn boot_text(&self) -> String {
        boot_files::boot_text(&format!("gpuvm-mig@{}.service", self.name))
    }

    fn binding(&self) -> VfioBinding {
        VfioBinding::of_card(self.name.as_str(), self.physical.slot, &self.card, self.vouched)
    }

    fn what(&self) -> String {
        format!("MIG instances of {}: {}", self.physical, self.profiles.join(", "))
    }

    /// The change of the files alone. A file with other places than the wanted ones is as good where the card did not tell
    /// its places when one of the two was made.
    fn files(&self, state: &MigNow, all: Option<&Arrangement>) -> Change {
        let action = if state.text.is_some() { Action::Change } else { Action::Create };
        let mut change = Change::new(action, self.what());
        let mut text = self.text(all);
        if let Some(is) = &state.text {
            // In order of places or of sizes: what counts is how many of each there are.
            let lines = |t: &str| {
                let mut lines: Vec<String> = without_places(t).lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            let unplaced = |t: &str| without_places(t) == t;
            if lines(is) == lines(&text) && (unplaced(is) || unplaced(&text)) {
                text.clone_from(is);
            }
        }
        let files = [(self.path(), &state.text, text), (at_boot(self.name.as_str()), &state.at_boot, self.boot_text())];
        boot_files::write(&mut change, files);
        change
    }

    fn step(&self, before: MigState, after: MigState) -> Step {
        Step::Mig(MigStep { name: self.name.clone(), physical: self.physical, before, after })
    }

    /// All of them, where the card does not tell where.
    fn unplaced(&self) -> MigState {
        let one = |profile: &&String| MigInstance { profile: (*profile).clone(), start: None };
        MigState { on: true, instances: self.largest_first().iter().map(one).collect() }
    }

    /// Why nothing can be made of a card that NVIDIA's driver does not have.
    fn without_driver(&self, physical: &PciFunction, state: &MigNow) -> Diff {
        let driver = physical.driver.as_deref().unwrap_or("no driver");
        let why = format!("{} is on {driver}, and NVIDIA's driver makes MIG instances", self.physical);
        if driver.contains("vfio") {
            return Diff::Blocked { why, help: "take it from VMs first, and out of what binds it".to_owned() };
        }
        if !self.with_driver {
            let help = "let the manifest bring it (`drivers: { nvidia: { branch: \"580\" } }`), or install it and start the host again";
            return Diff::Blocked { why, help: help.to_owned() };
        }
        let mut promise = self.files(state, None);
        promise.steps.push(self.step(MigState::default(), self.unplaced()));
        promise.risks.insert(Risk::Reboot);
        Diff::Waits { on: WaitFor::Reboot, why, promise }
    }

    fn of_card(&self, card: &MigCard, state_now: &MigNow, last: Option<&Self>) -> Diff {
        let arranged = match &card.profiles {
            Some(profiles) => match mig::arrange(card, profiles, &self.profiles) {
                Ok(all) => Some(all),
                Err(no) => return Diff::Blocked { why: no.why, help: no.help },
            },
            None => None,
        };
        let mut change = self.files(state_now, arranged.as_ref());
        let before = state(card);
        let after = match &arranged {
            Some(all) => MigState {
                on: true,
                instances: all
                    .all
                    .iter()
                    .map(|(profile, start)| MigInstance { profile: profile.clone(), start: Some(*start) })
                    .collect(),
            },
            None => self.unplaced(),
        };
        let bare: Vec<&Instance> =
            card.instances.iter().filter(|i| i.compute == 0 && after.has(&i.profile, i.start)).collect();
        let same = before.on
            && before.instances.iter().all(|i| i.start.is_some_and(|s| after.has(&i.profile, s)))
            && before.instances.len() == after.instances.len();
        if same && bare.is_empty() {
            if change.steps.is_empty() {
                return Diff::InSync { evidence: format!("MIG of {}: {before}", self.physical) };
            }
            return Diff::Change(change);
        }
        if !card.on && card.pending {
            let why = format!(
                "MIG mode of {} is turned on and waits for a reset of the card: `nvidia-smi --gpu-reset -i {}` once \
                 nobody uses it, and gpuvm apply then; or a reboot",
                self.physical, self.physical
            );
            change.risks.insert(Risk::Reboot);
            if change.steps.is_empty() {
                return Diff::Waits { on: WaitFor::Reboot, why, promise: change };
            }
            change.notes.push(why);
            change.complete_after = Some(WaitFor::Reboot);
            return Diff::Change(change);
        }
        let goes = |i: &&Instance| !after.has(&i.profile, i.start);
        if let Some(diff) = in_use(card, goes, !card.on) {
            return diff;
        }
        if !card.on {
            change.fields.push(FieldDiff::new("MIG mode", Some("off".to_owned()), Some("on".to_owned())));
            change.notes.push(match card.architecture.as_str() {
                "Ampere" => {
                    "the card is reset for MIG mode: where it cannot be, the mode waits for a reboot, and the unit \
                             makes the instances then"
                        .to_owned()
                }
                _ => "MIG mode and instances are gone after each boot: the unit makes them again".to_owned(),
            });
        }
        if arranged.is_none() {
            change.notes.push(
                "the card tells of its profiles once MIG mode is on: places are by its own table then, and nothing is \
                 made of what it has no room for"
                    .to_owned(),
            );
            change.fields.push(FieldDiff::new("instances", None, Some(self.profiles.join(", "))));
        }
        for one in card.instances.iter().filter(goes) {
            let uuid = one.uuids.first().map_or(String::new(), |u| format!(" ({u})"));
            let is = format!("{}{uuid}", one.profile);
            change.fields.push(FieldDiff::new(format!("instance at {}", one.start), Some(is), None));
        }
        if last.is_none() && card.instances.iter().any(|i| goes(&i)) {
            change.notes.push("those that go were not made by gpuvm".to_owned());
        }
        for (profile, start) in arranged.iter().flat_map(|a| &a.make) {
            change.fields.push(FieldDiff::new(format!("instance at {start}"), None, Some(profile.clone())));
        }
        for one in bare {
            let field = format!("compute instance of {} at {}", one.profile, one.start);
            change.fields.push(FieldDiff::new(field, None, Some("the whole".to_owned())));
        }
        change.notes.extend(state_now.why.as_ref().map(|why| format!("the last try at boot: {}", why.trim())));
        change.steps.push(self.step(before, after));
        if self.cdi {
            change.refreshes.insert(Refresh::Containers(Containers::Cdi));
        }
        Diff::Change(change)
    }
}

impl Resource for Mig {
    const KIND: &'static str = "mig";
    type State = MigNow;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<MigNow, HostError> {
        Ok(MigNow {
            text: host.text(&self.path())?.value(),
            at_boot: host.text(&at_boot(self.name.as_str()))?.value(),
            why: host.text(&Path::new(WHY).join(self.name.as_str()))?.value(),
            told: mig::is_driven(host, self.physical).then(|| mig::ask(host, self.physical)),
        })
    }

    fn diff(&self, state: &MigNow, last: Option<&Self>, facts: &HostFacts) -> Diff {
        let Some(physical) = facts.pci.get(&self.physical) else {
            return Diff::Blocked {
                why: format!("there is no GPU at {}", self.physical),
                help: "see what is there: gpuvm gpu list".to_owned(),
            };
        };
        if let Some((why, help)) = last.and_then(|last| self.binding().another(&last.binding(), facts)) {
            return Diff::Blocked { why, help };
        }
        match &state.told {
            None => self.without_driver(physical, state),
            Some(Told::Unknown(why)) => Diff::Unknown { why: why.clone() },
            Some(Told::Without) => Diff::Blocked {
                why: format!("{} ({}) cannot be cut into MIG instances", self.physical, physical.name),
                help: "take `mig` out: A100, A30, H100 and later data-centre cards have it".to_owned(),
            },
            Some(Told::Card(card)) => self.of_card(card, state, last),
        }
    }

    fn remove(&self, now: &MigNow, facts: &HostFacts) -> Diff {
        let mut change = Change::new(Action::Remove, format!("no MIG instances of {}", self.physical));
        // Another card in that place has its own, which are nobody's business here.
        let another = self.binding().is_another_now(facts);
        match now.told.as_ref().filter(|_| !another) {
            Some(Told::Unknown(why)) => return Diff::Unknown { why: why.clone() },
            Some(Told::Card(card)) if card.on && (card.pending || !card.instances.is_empty()) => {
                let mut mine: Vec<&Instance> = Vec::new();
                for one in &card.instances {
                    let most = self.profiles.iter().filter(|p| **p == one.profile).count();
                    if mine.iter().filter(|m| m.profile == one.profile).count() < most {
                        mine.push(one);
                    }
                }
                let before = state(card);
                let is_mine = |i: &&Instance| mine.iter().any(|m| m.id == i.id);
                let stay: Vec<MigInstance> = card
                    .instances
                    .iter()
                    .filter(|i| !is_mine(i))
                    .map(|i| MigInstance { profile: i.profile.clone(), start: Some(i.start) })
                    .collect();
                let after = MigState { on: !stay.is_empty(), instances: stay };
                if before != after {
                    if let Some(diff) = in_use(card, is_mine, !after.on) {
                        return diff;
                    }
                    if after.on {
                        change.notes.push(format!("instances that gpuvm did not make stay, and MIG mode on: {after}"));
                    }
                    let field = format!("MIG of {}", self.physical);
                    change.fields.push(FieldDiff::new(field, Some(before.to_string()), Some(after.to_string())));
                    change.steps.push(self.step(before, after));
                }
            }
            _ => {}
        }
        let files = [(self.path(), &now.text), (at_boot(self.name.as_str()), &now.at_boot)];
        boot_files::take_away(change, files)
    }
}

#[cfg(test)]
mod tests;
