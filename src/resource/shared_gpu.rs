//! A GPU that host and VMs share: the host's, with its own drivers, until a VM starts with it, and again when that VM has
//! ended. libvirt's hook of ours has a unit of systemd's hand it over, however a VM is started; the unit runs a script
//! that needs neither libvirt nor gpuvm. Here is what the script goes by, and whether what it did came to its end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Resource;
use super::libvirt::{Libvirt, ask};
use super::libvirt_domain::project;
use super::service::{Service, UnitState};
use super::vfio_binding::{Card, VfioBinding, Vouched, once_grouped};
use crate::facts::{HostFacts, PciFunction};
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, FileWrite, Risk, ServiceAction, Step};
use crate::types::{PciAddress, PciSlot, Released, UnitName};

/// The script.
pub const SCRIPT: (&str, &str) = ("/usr/local/lib/gpuvm/shared-gpu", include_str!("shared_gpu/shared-gpu.sh"));

/// The units that run it, and what starts the last of them at boot: a drop-in, which is a file like the others.
/// `KillMode=process`: what sleeps in the kernel for ever is left behind, and nothing waits for it.
pub const UNITS: [(&str, &str); 4] = [
    (
        "/etc/systemd/system/gpuvm-take@.service",
        "# Written by gpuvm. The instance is GPU:VM.\n[Unit]\nDescription=gpuvm hands a shared GPU to its VM (%i)\n\
         ConditionKernelCommandLine=!gpuvm.off\nStartLimitIntervalSec=0\n\n[Service]\nType=oneshot\n\
         ExecStart=/usr/local/lib/gpuvm/shared-gpu take %i\nTimeoutStartSec=540\nKillMode=process\n",
    ),
    (
        "/etc/systemd/system/gpuvm-give@.service",
        "# Written by gpuvm. The instance is the GPU, or GPU:VM where that VM is known to have ended.\n[Unit]\n\
         Description=gpuvm gives a shared GPU back to the host (%i)\n\
         ConditionKernelCommandLine=!gpuvm.off\nStartLimitIntervalSec=0\n\n[Service]\nType=oneshot\n\
         ExecStart=/usr/local/lib/gpuvm/shared-gpu give %i\nTimeoutStartSec=900\nKillMode=process\n",
    ),
    (
        "/etc/systemd/system/gpuvm-shared.service",
        "# Written by gpuvm.\n[Unit]\nDescription=gpuvm starts what had been stopped for VMs when the host went down\n\
         ConditionKernelCommandLine=!gpuvm.off\nConditionDirectoryNotEmpty=/var/lib/gpuvm/shared\n\
         After=docker.service libvirtd.service virtqemud.service\n\n[Service]\nType=exec\n\
         ExecStart=/usr/local/lib/gpuvm/shared-gpu boot\nKillMode=process\n",
    ),
    (
        "/etc/systemd/system/multi-user.target.d/gpuvm-shared.conf",
        "# Written by gpuvm. `gpuvm.off` on the kernel's command line keeps that unit from starting.\n[Unit]\n\
         Wants=gpuvm-shared.service\n",
    ),
];

/// What the script goes by, a file a GPU.
pub const KNOWN: &str = "/etc/gpuvm/shared";
/// What it did and owes back, a file a GPU; there from before the first change until all is given back.
pub const OWED: &str = "/var/lib/gpuvm/shared";
/// The VM that has it, a file a GPU.
pub const CLAIMS: &str = "/run/gpuvm/shared/claim";

/// How a hand-over stands, by the script's own files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Handover {
    /// The VM that has the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Whether anything is still to be given back.
    pub open: bool,
    /// What was stopped for the VM, and is started again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owed: Vec<String>,
    /// Why not all went back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// It could not be read: not root.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

impl Handover {
    /// That of a GPU.
    pub fn read(host: &dyn Probe, name: &str) -> Result<Self, HostError> {
        let mut all = Self::default();
        match host.text(&Path::new(CLAIMS).join(name))? {
            Answer::Value(text) => all.vm = text.split_whitespace().next().map(str::to_owned),
            Answer::Absent => {}
            Answer::Denied => all.hidden = true,
        }
        match host.text(&Path::new(OWED).join(name))? {
            Answer::Value(text) => {
                let lines =
                    |word: &'static str| text.lines().filter_map(move |l| l.strip_prefix(word)?.strip_prefix(' '));
                all.open = true;
                all.owed = lines("owed").map(str::to_owned).collect();
                all.left = lines("left").next().map(str::to_owned);
            }
            Answer::Absent => {}
            Answer::Denied => all.hidden = true,
        }
        Ok(all)
    }
}

/// A GPU that this host shares with its VMs, as the script knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedNow {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: PciSlot,
    /// What is stopped for a VM.
    pub release: Vec<Released>,
    /// Whose it is now.
    #[serde(flatten)]
    pub handover: Handover,
}

/// Why a GPU's hand-over cannot be taken away now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needed {
    /// This VM runs with it.
    ByVm(String),
    /// Not all has gone back to the host; the VM that had it, where that is known.
    Owed(Option<String>),
    /// Whose it is is not known.
    Unknown(String),
}

impl SharedNow {
    /// Whether its hand-over is needed still.
    pub fn needed(&self, host: &dyn Probe) -> Result<Option<Needed>, HostError> {
        Ok(match user(self.slot, &ask(host)?) {
            Err(why) => Some(Needed::Unknown(why)),
            Ok(Some(vm)) => Some(Needed::ByVm(vm.to_owned())),
            Ok(None) if self.handover.hidden => {
                Some(Needed::Unknown("its files may not be read (not root)".to_owned()))
            }
            Ok(None) if self.handover.open || self.handover.vm.is_some() => {
                Some(Needed::Owed(self.handover.vm.clone()))
            }
            Ok(None) => None,
        })
    }

    /// See [`SharedGpu::give`].
    pub fn give(&self, ended: Option<&str>) -> Option<Step> {
        give(&self.name, ended)
    }
}

/// The unit that gives a GPU back to the host; what is left of a VM that has ended goes with it.
fn give(name: &str, ended: Option<&str>) -> Option<Step> {
    let of = ended.map_or(String::new(), |vm| format!(":{vm}"));
    let unit = format!("gpuvm-give@{name}{of}.service").parse().ok()?;
    Some(Step::Service { unit, action: ServiceAction::Start })
}

/// What of others' binds a function by its id, so that it would not come back to its own driver.
fn bound_by_id(functions: &[&PciFunction], state: &SharedState, facts: &HostFacts) -> Option<(String, String)> {
    let boot = |arg: &&String| arg.starts_with("vfio-pci.ids=") || arg.starts_with("vfio_pci.ids=");
    let boot = facts.kernel.cmdline.iter().filter(boot).map(|arg| ("the kernel's command line", arg));
    let mut all = state.by_id.iter().map(|(file, line)| (file.as_str(), line)).chain(boot);
    all.find_map(|(place, line)| {
        let f = functions.iter().find(|f| crate::check::names_id(line, f.id))?;
        Some((
            format!("`{line}` ({place}) binds {} to vfio-pci by its id: it would not come back to the host", f.address),
            format!(
                "take {} out there, and boot; a card of that model that is for VMs alone: `use: vfio`, which binds by address",
                f.id
            ),
        ))
    })
}

/// The running VM that has a slot, as libvirt tells; `Err` where libvirt could not tell.
pub(super) fn user(slot: PciSlot, libvirt: &Libvirt) -> Result<Option<&str>, String> {
    user_of(|f| f.slot == slot, libvirt)
}

/// The same of any of some functions.
pub(super) fn user_of(one: impl Fn(&PciAddress) -> bool, libvirt: &Libvirt) -> Result<Option<&str>, String> {
    let known = match libvirt {
        Answer::Value(known) => known,
        Answer::Absent => return Ok(None),
        Answer::Denied => return Err("libvirt may not be asked (not root)".to_owned()),
    };
    for domain in known.domains.iter().filter(|d| d.active) {
        let xml = domain.live_xml.as_deref().unwrap_or(&domain.inactive_xml);
        let is = project(xml).map_err(|why| format!("VM `{}` cannot be read: {why}", domain.name))?;
        if is.functions.iter().any(&one) {
            return Ok(Some(&domain.name));
        }
    }
    Ok(None)
}

/// All of them.
pub fn shared_now(host: &dyn Probe) -> Vec<SharedNow> {
    let names = host.list(Path::new(KNOWN)).ok().and_then(Answer::value).unwrap_or_default();
    let one = |name: std::ffi::OsString| {
        let name = name.into_string().ok()?;
        let text = host.text(&Path::new(KNOWN).join(&name)).ok().and_then(Answer::value)?;
        let first = text.lines().find_map(|l| l.strip_prefix("function ")?.split(' ').next())?;
        Some(SharedNow {
            slot: first.parse::<crate::types::PciAddress>().ok()?.slot,
            release: text.lines().filter_map(|l| l.strip_prefix("release ")?.parse().ok()).collect(),
            handover: Handover::read(host, &name).ok()?,
            name,
        })
    };
    names.into_iter().filter_map(one).collect()
}

/// A GPU that host and VMs share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedGpu {
    /// The name that the manifest gives it.
    pub name: String,
    /// The slot.
    pub slot: PciSlot,
    /// Slots that the manifest keeps for VMs: they may share the group.
    pub companions: BTreeSet<PciSlot>,
    /// The card in it.
    pub card: Option<Card>,
    /// What the manifest itself says of the card.
    pub vouched: Vouched,
    /// What is stopped for a VM, in this order, and started again in the other.
    pub release: Vec<Released>,
}

/// What is there.
#[derive(Debug)]
pub struct SharedState {
    /// What the script goes by.
    text: Option<String>,
    /// How the hand-over stands.
    handover: Handover,
    /// VMs that run.
    libvirt: Libvirt,
    /// Units to be stopped that are not there.
    missing: Vec<UnitName>,
    /// Lines of modprobe.d that bind by id, with their files.
    by_id: Vec<(String, String)>,
}

impl SharedGpu {
    fn path(&self) -> PathBuf {
        Path::new(KNOWN).join(&self.name)
    }

    /// The checks of a slot that is given away are the same, whenever that is.
    fn binding(&self) -> VfioBinding {
        let of_card = VfioBinding::of_card(&self.name, self.slot, &self.card, self.vouched);
        VfioBinding { companions: self.companions.clone(), ..of_card }
    }

    /// See [`VfioBinding::another`].
    pub fn another(&self, last: &Self, facts: &HostFacts) -> Option<(String, String)> {
        self.binding().another(&last.binding(), facts)
    }

    fn text(&self, functions: &[&PciFunction]) -> String {
        let mut text = format!("# Written by gpuvm: {} is shared by the host and its VMs.\n", self.slot);
        for f in functions {
            text += &format!("function {} {}\n", f.address, f.id);
        }
        for one in &self.release {
            text += &format!("release {one}\n");
        }
        text
    }

    /// The unit that gives it back to the host; what is left of a VM that has ended goes with it.
    pub fn give(&self, ended: Option<&str>) -> Option<Step> {
        give(&self.name, ended)
    }
}

impl Resource for SharedGpu {
    const KIND: &'static str = "shared-gpu";
    type State = SharedState;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn probe(&self, host: &dyn Probe) -> Result<SharedState, HostError> {
        let mut missing = Vec::new();
        for one in &self.release {
            if let Released::Unit(unit) = one {
                let service = Service { unit: unit.clone(), enabled: None, running: None, awaited: false };
                if service.probe(host)? == UnitState::Missing {
                    missing.push(unit.clone());
                }
            }
        }
        Ok(SharedState {
            text: host.text(&self.path())?.value(),
            handover: Handover::read(host, &self.name)?,
            libvirt: ask(host)?,
            missing,
            by_id: crate::check::by_id(host),
        })
    }

    fn diff(&self, state: &SharedState, last: Option<&Self>, facts: &HostFacts) -> Diff {
        let functions: Vec<&PciFunction> = facts.slot(self.slot).filter(|f| !f.is_bridge()).collect();
        let Some(first) = functions.first() else {
            return Diff::Blocked {
                why: format!("there is no device at {}", self.slot),
                help: "see what is there: gpuvm gpu list".to_owned(),
            };
        };
        if let Some((why, help)) = last.and_then(|last| self.another(last, facts)) {
            return Diff::Blocked { why, help };
        }
        if let Some((why, help)) = self.binding().forbidden_now(facts) {
            return Diff::Blocked { why, help };
        }
        if let Some((why, help)) = bound_by_id(&functions, state, facts) {
            return Diff::Blocked { why, help };
        }
        let text = self.text(&functions);
        let written = state.text.as_deref() == Some(text.as_str());
        let action = if state.text.is_some() { Action::Change } else { Action::Create };
        let group = first.group.map_or(String::new(), |g| format!(", group {g}"));
        let mut change = Change::new(action, format!("{} {}{group}", self.slot, first.name));
        if !written {
            change.fields.push(FieldDiff::text(self.path().display().to_string(), state.text.as_deref(), Some(&text)));
            change.steps.push(Step::WriteFile(FileWrite::root(self.path(), text, 0o644)));
            if state.text.is_none() {
                change.notes.push("the host's until a VM starts with it, and again when that VM has ended".to_owned());
            }
            for unit in &state.missing {
                change.notes.push(format!("there is no unit `{unit}` now: nothing is stopped by that name"));
            }
            if functions.iter().any(|f| f.boot_display) {
                change.risks.insert(Risk::DisplayLoss);
                change.notes.push("it is the boot display: its screen goes dark while a VM has it".to_owned());
            }
        }
        let on_vfio = |f: &&PciFunction| f.driver.as_deref().is_some_and(|d| d.contains("vfio"));
        let moved: Vec<&PciFunction> = functions.iter().copied().filter(|f| on_vfio(f)).collect();
        let handover = &state.handover;
        let whose = match user(self.slot, &state.libvirt) {
            Ok(Some(vm)) => format!("VM `{vm}` has it"),
            Ok(None) if moved.is_empty() && !handover.open && handover.vm.is_none() => "the host has it".to_owned(),
            // What was begun for a VM is known to root and libvirt alone.
            Ok(None) if handover.hidden && moved.is_empty() => "the host has it".to_owned(),
            Err(_) if moved.is_empty() && !handover.open && handover.vm.is_none() => "the host has it".to_owned(),
            Err(why) => return Diff::Unknown { why: format!("whose it is now is not known: {why}") },
            Ok(None) if handover.hidden => {
                return Diff::Unknown { why: "whose it is now may not be read (not root)".to_owned() };
            }
            Ok(None) => {
                for f in &moved {
                    let field = format!(".{}", f.address.function);
                    change.fields.push(FieldDiff::new(field, f.driver.clone(), Some("its own driver".to_owned())));
                }
                for one in &handover.owed {
                    change.fields.push(FieldDiff::new(
                        one,
                        Some("stopped for a VM".to_owned()),
                        Some("started".to_owned()),
                    ));
                }
                change.notes.push(match &handover.left {
                    Some(left) => format!("it did not all go back when its VM ended: {left}"),
                    None => "no VM has it any more: it goes back to the host".to_owned(),
                });
                let Some(give) = self.give(handover.vm.as_deref()) else {
                    return Diff::Unknown { why: format!("`{}` cannot be part of a unit's name", self.name) };
                };
                change.steps.push(give);
                return Diff::Change(change);
            }
        };
        match written {
            true => Diff::InSync { evidence: whose },
            false => once_grouped(change.clone(), self.slot, facts).unwrap_or(Diff::Change(change)),
        }
    }

    fn remove(&self, state: &SharedState, facts: &HostFacts) -> Diff {
        let Some(text) = &state.text else { return Diff::InSync { evidence: "gone".to_owned() } };
        match user(self.slot, &state.libvirt) {
            Err(why) => return Diff::Unknown { why: format!("whose it is now is not known: {why}") },
            Ok(Some(vm)) => {
                return Diff::Blocked {
                    why: format!("it left the manifest, and VM `{vm}` has it"),
                    help: format!("shut that down first: gpuvm vm stop {vm}"),
                };
            }
            Ok(None) => {}
        }
        let moved = facts.slot(self.slot).any(|f| f.driver.as_deref().is_some_and(|d| d.contains("vfio")));
        if state.handover.open || state.handover.vm.is_some() || (moved && state.handover.hidden) {
            let of = state.handover.vm.as_ref().map_or(String::new(), |vm| format!(":{vm}"));
            return Diff::Blocked {
                why: "it left the manifest, and has not all gone back to the host yet".to_owned(),
                help: format!("give it back first: systemctl start gpuvm-give@{}{of}", self.name),
            };
        }
        let mut change = Change::new(Action::Remove, format!("{} is shared no more", self.slot));
        change.fields.push(FieldDiff::text(self.path().display().to_string(), Some(text), None));
        change.steps.push(Step::RemoveFile { path: self.path() });
        Diff::Change(change)
    }
}

#[cfg(test)]
mod tests;
