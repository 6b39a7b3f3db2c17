//! A slot kept for VMs: all of its functions on vfio-pci, from early boot. By address, never by id, so that an equal
//! card beside it is not taken. A slot that carries anything of the host is never bound.
//!
//! The override is written by a udev rule, which initramfs-tools copies into the initramfs, where it runs before any
//! driver that a rule or a list loads. dracut loads drivers that are forced in before udev: there a module of ours does
//! what the rule says before that.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::{HostFacts, InitramfsTool, Iommu, PciFunction};
use crate::gpu::vfio_rule::VfioRule;
use crate::host::{Answer, HostError, Probe};
use crate::plan::Place;
use crate::plan::{Action, BindTarget, Change, Diff, FieldDiff, FileWrite, Refresh, Risk, SlotBinding, Step, WaitFor};
use crate::types::{PciAddress, PciId, PciSlot};

/// A slot that is kept for VMs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VfioBinding {
    /// The name that the manifest gives it.
    pub name: String,
    /// The slot.
    pub slot: PciSlot,
    /// Slots that the manifest gives to VMs too: they may share the group.
    pub companions: BTreeSet<PciSlot>,
    /// The card in it: what is remembered of it, and looked for again. Not in ledgers of before it was remembered.
    #[serde(default)]
    pub card: Option<Card>,
    /// What the manifest itself says of the card, so that it need not be as remembered.
    #[serde(default)]
    pub vouched: Vouched,
    /// Of one that left the manifest: whether that has the card for VMs all the same, under another name or in another
    /// way. Its rules go then, and the card stays where it is.
    #[serde(skip)]
    pub still_for_vms: bool,
}

/// What is there.
#[derive(Debug, Default)]
pub struct BindingState {
    /// The text of our rules.
    rules: Option<String>,
    /// Who has the card now, or may have it; looked at where it is to be given back.
    held: Option<String>,
    /// What of others' binds by id, with its place; likewise.
    by_id: Vec<(String, String)>,
}

/// What tells a card from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Card {
    /// The path of ports.
    pub path: String,
    /// Vendor and device of the first function.
    pub id: PciId,
    /// The subsystem's.
    pub subsystem: Option<PciId>,
    /// The serial number, where one was told.
    pub serial: Option<String>,
    /// NVIDIA's UUID, where its driver told it.
    pub uuid: Option<String>,
}

impl Card {
    /// The card in a slot.
    pub fn of(facts: &HostFacts, slot: PciSlot) -> Option<Self> {
        let first = facts.slot(slot).next()?;
        Some(Self {
            path: first.path.clone(),
            id: first.id,
            subsystem: first.subsystem,
            serial: first.serial.clone(),
            uuid: first.uuid.clone(),
        })
    }

    /// Whether the other one is known to be another card: the same serial number or UUID is the same card, different
    /// ones are different cards; where neither is known of both, nothing is said.
    fn same(&self, other: &Card) -> Option<bool> {
        let both = |a: &Option<String>, b: &Option<String>| a.as_ref().zip(b.as_ref()).map(|(a, b)| a == b);
        both(&self.serial, &other.serial).or_else(|| both(&self.uuid, &other.uuid))
    }
}

/// By what a card is known that is named by a serial number, else a UUID, which it does not tell now.
pub fn recognised(first: &PciFunction, by_serial: bool) -> Option<String> {
    let what = match (by_serial, first.recalled.serial, first.recalled.uuid) {
        (true, true, _) => "serial number",
        (false, _, true) => "UUID",
        _ => return None,
    };
    let path = &first.path;
    Some(format!(
        "recognised by its ids and its place ({path}): its {what} is not told now, and remembered of when it was bound"
    ))
}

/// What the manifest says by its own words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vouched {
    /// The place, by more than an address that renumbering changes.
    pub place: bool,
    /// The model.
    pub model: bool,
    /// The very card.
    pub card: bool,
}

impl VfioBinding {
    /// What stands for a card in the checks whether it may be another: they are the same, whatever is done with it.
    pub(super) fn of_card(name: &str, slot: PciSlot, card: &Option<Card>, vouched: Vouched) -> Self {
        let (name, card) = (name.to_string(), card.clone());
        Self { name, slot, companions: BTreeSet::new(), card, vouched, still_for_vms: false }
    }

    /// Whether another card than this is in its place now: that has its own, which is nobody's business here.
    pub(super) fn is_another_now(&self, facts: &HostFacts) -> bool {
        let now = Self { card: Card::of(facts, self.slot), vouched: Vouched::default(), ..self.clone() };
        now.another(self, facts).is_some()
    }

    fn path(&self) -> PathBuf {
        format!("/etc/udev/rules.d/61-gpuvm-vfio-{}.rules", self.name).into()
    }

    /// One rule a function. `gpuvm.off` on the kernel's command line jumps over them.
    fn rules(&self, functions: &[&PciFunction]) -> String {
        // What is said of it stays when the buses get other numbers, as the rules do.
        let place = functions.first().map(|f| f.path.clone()).filter(|p| !p.is_empty());
        let mut text = format!(
            "# Written by gpuvm: {} is kept for VMs. `gpuvm.off` on the kernel's command line switches this off.\n\
             IMPORT{{cmdline}}=\"gpuvm.off\"\nENV{{gpuvm.off}}==\"?*\", GOTO=\"gpuvm_end\"\n",
            place.unwrap_or_else(|| self.slot.to_string())
        );
        for f in functions {
            text += &VfioRule::line(f);
            text += "\n";
        }
        text + "LABEL=\"gpuvm_end\"\n"
    }

    /// Why the card may not be the one that was bound before, or `None`: what is bound is that card or none.
    pub fn another(&self, last: &Self, facts: &HostFacts) -> Option<(String, String)> {
        let (was, is) = (last.card.as_ref()?, self.card.as_ref()?);
        let same = was.same(is);
        if same == Some(true) || self.vouched.card {
            return None;
        }
        let at_path = |path: &str| facts.pci.values().find(|f| f.path == path && f.address.function == 0);
        let by_path = format!("match: {{ slot: \"{}\" }}", was.path);
        if (was.id, was.subsystem) != (is.id, is.subsystem) && !self.vouched.model {
            let ids = |c: &Card| c.subsystem.map_or(c.id.to_string(), |s| format!("{}:{s}", c.id));
            let moved = facts.pci.values().find(|f| f.id == was.id && f.subsystem == was.subsystem && !f.is_bridge());
            let moved = moved.map_or("no such card is there now".to_owned(), |f| {
                format!("such a card is {} now ({})", f.address.slot, f.path)
            });
            return Some((
                format!("{} has another card: it was {} and is {}", self.slot, ids(was), ids(is)),
                format!("{moved}; to mean the new one, write `expect: {{ id: \"{}\" }}`", is.id),
            ));
        }
        if was.path != is.path && !self.vouched.place {
            let now = at_path(&was.path)
                .map_or("nothing is there now".to_owned(), |f| format!("which is {} now", f.address.slot));
            return Some((
                format!(
                    "the addresses have changed: {} was the card at {} ({now}), and is another at {}",
                    last.slot, was.path, is.path
                ),
                format!("name it by its path: `{by_path}`"),
            ));
        }
        if same == Some(false) {
            let tell = |c: &Card| c.serial.clone().or_else(|| c.uuid.clone()).unwrap_or_default();
            return Some((
                format!("{} has another card of the same model: it was {} and is {}", self.slot, tell(was), tell(is)),
                "put the cards back, or name the card by its `serial`".to_owned(),
            ));
        }
        None
    }

    /// Why the slot must not be given away, or `None`.
    fn forbidden(&self, functions: &[&PciFunction], facts: &HostFacts) -> Option<(String, String)> {
        if let Some(off) = self.iommu_off(facts) {
            return Some(off);
        }
        if facts.boot.initramfs == InitramfsTool::None {
            return Some((
                "neither initramfs-tools nor dracut is installed, and without an initramfs nothing binds early"
                    .to_owned(),
                "install one of them: apt-get install initramfs-tools".to_owned(),
            ));
        }
        self.stays(functions, facts)
    }

    /// Why the slot must not be given away while the host runs, or `None`: as for early binding, but for what that needs.
    pub fn forbidden_now(&self, facts: &HostFacts) -> Option<(String, String)> {
        let functions: Vec<&PciFunction> = facts.slot(self.slot).collect();
        self.iommu_off(facts).or_else(|| self.stays(&functions, facts))
    }

    /// The same for a slot that is to be bound at once: what its groups are has to be known.
    pub fn forbidden_at_once(&self, facts: &HostFacts) -> Option<(String, String)> {
        let later = facts.grouped_by(self.slot).map(|argument| {
            (
                format!("its IOMMU group is known once the host was booted with `{argument}`"),
                "`use: vfio` or `use: shared` in host.yaml, and gpuvm apply, put that there".to_owned(),
            )
        });
        later.or_else(|| self.forbidden_now(facts))
    }

    /// Why the slot is in no IOMMU group and stays in none, or `None`.
    pub(super) fn iommu_off(&self, facts: &HostFacts) -> Option<(String, String)> {
        match &facts.iommu {
            Iommu::On { .. } => None,
            // The kernel argument is planned with it.
            Iommu::Off { .. } if facts.grouped_by(self.slot).is_some() => None,
            Iommu::Off { why, help, .. } => Some((format!("the IOMMU is off: {why}"), help.clone())),
            Iommu::Missing { why, help } => Some((format!("there is no IOMMU: {why}"), help.clone())),
            Iommu::Unknown(why) => {
                Some((format!("it is not known whether the IOMMU is on: {why}"), "run it as root".to_owned()))
            }
        }
    }

    /// What of the slot and its group belongs to the host.
    fn stays(&self, functions: &[&PciFunction], facts: &HostFacts) -> Option<(String, String)> {
        let blocked = |why: String, help: &str| Some((why, help.to_owned()));
        if let Some(f) = functions.iter().find(|f| f.is_bridge()) {
            return blocked(format!("{} is a bridge ({})", f.address, f.name), "name the slot of the card itself");
        }
        if let Some(f) = functions.iter().find(|f| f.virtual_of.is_some()) {
            let why = format!("virtual functions are on ({}), which would move with the slot", f.address);
            return blocked(why, "write 0 to sriov_numvfs of the physical function once nobody uses them");
        }
        let shown = |f: &PciFunction| {
            let carries: Vec<String> = f.carries.iter().map(|c| c.to_string()).collect();
            let carries = if carries.is_empty() { String::new() } else { format!(" carries {}", carries.join(", ")) };
            format!("{} {}{carries}", f.address, f.name)
        };
        let critical: Vec<String> = functions.iter().filter(|f| !f.carries.is_empty()).map(|f| shown(f)).collect();
        if !critical.is_empty() {
            return blocked(format!("the host needs this slot: {}", critical.join("; ")), "it is never given away");
        }
        let groups: BTreeSet<u32> = functions.iter().filter_map(|f| f.group).collect();
        if functions.iter().any(|f| f.group.is_none()) && facts.grouped_by(self.slot).is_none() {
            return blocked("a function has no IOMMU group".to_owned(), "look at dmesg for IOMMU errors");
        }
        let foreign: Vec<&PciFunction> = groups
            .iter()
            .flat_map(|g| facts.group_neighbours(*g, self.slot))
            .filter(|f| !self.companions.contains(&f.address.slot))
            .collect();
        if !foreign.is_empty() {
            let all: Vec<String> = foreign.iter().map(|f| shown(f)).collect();
            return Some((format!("it shares its IOMMU group with {}", all.join("; ")), moves_together(&foreign)));
        }
        let other =
            functions.iter().find_map(|f| f.driver_override.as_ref().filter(|o| *o != "vfio-pci").map(|o| (f, o)));
        other.and_then(|(f, o)| {
            blocked(
                format!("{} has driver_override `{o}`, set by something else", f.address),
                "find and remove what sets it",
            )
        })
    }
}

/// What a change becomes that waits for the boot after which the slot has its IOMMU groups: whom it shares them with is
/// known then, and looked at before anything of it is done.
pub(super) fn once_grouped(mut promise: Change, slot: PciSlot, facts: &HostFacts) -> Option<Diff> {
    let argument = facts.grouped_by(slot)?;
    promise.notes.push(format!(
        "exact once the IOMMU is on (`{argument}`): what shares its group is known after that boot, and looked at before \
         anything is bound; where that stays with the host, the run ends there"
    ));
    promise.risks.insert(Risk::Reboot);
    let why = format!("its IOMMU group is known once the host was booted with `{argument}`");
    Some(Diff::Waits { on: WaitFor::Reboot, why, promise })
}

/// What to do about neighbours in the group: those that the host does not need may go along.
fn moves_together(foreign: &[&PciFunction]) -> String {
    let needed: BTreeSet<PciSlot> = foreign.iter().filter(|f| !f.carries.is_empty()).map(|f| f.address.slot).collect();
    if !needed.is_empty() {
        let needed = needed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return format!(
            "a group moves as a whole, and the host needs {needed}: put the card into another slot, or look for ACS in\n      \
             the firmware's settings"
        );
    }
    let slots: BTreeSet<PciSlot> = foreign.iter().map(|f| f.address.slot).collect();
    let line = |slot: &PciSlot| {
        let gpu = foreign.iter().any(|f| f.address.slot == *slot && f.is_gpu());
        let name = slot.to_string().replace([':', '.'], "-");
        (gpu, format!("\n          pci-{name}: {{ match: \"{slot}\", use: vfio }}"))
    };
    let lines: Vec<(bool, String)> = slots.iter().map(line).collect();
    let mut help =
        "a group moves as a whole: try another slot, or ACS in the firmware; or let it go to VMs too, in host.yaml:"
            .to_owned();
    for (gpu, section) in [(true, "gpus"), (false, "devices")] {
        let of: String = lines.iter().filter(|(g, _)| *g == gpu).map(|(_, line)| line.as_str()).collect();
        if !of.is_empty() {
            help += &format!("\n        {section}:{of}");
        }
    }
    help
}

impl Resource for VfioBinding {
    const KIND: &'static str = "vfio-binding";
    type State = BindingState;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn probe(&self, host: &dyn Probe) -> Result<BindingState, HostError> {
        Ok(BindingState { rules: host.text(&self.path())?.value(), ..BindingState::default() })
    }

    fn probe_removal(&self, host: &dyn Probe) -> Result<BindingState, HostError> {
        let state = self.probe(host)?;
        Ok(BindingState { held: held(self.slot, host), by_id: crate::check::by_id(host), ..state })
    }

    fn at_boot(&self, host: &dyn Probe) -> Vec<Place> {
        let functions = (0..8).map(|number| self.slot.function(number));
        let there = |address: &crate::types::PciAddress| {
            let device = format!("/sys/bus/pci/devices/{address}");
            host.stat(device.as_ref()).is_ok_and(|answer| answer.value().is_some())
        };
        functions.filter(there).map(Place::FunctionAtBoot).collect()
    }

    fn diff(&self, state: &BindingState, last: Option<&Self>, facts: &HostFacts) -> Diff {
        let state = &state.rules;
        let functions: Vec<&PciFunction> = facts.slot(self.slot).collect();
        let Some(first) = functions.first() else {
            return Diff::Blocked {
                why: format!("there is no device at {}", self.slot),
                help: "see what is there: gpuvm facts".to_owned(),
            };
        };
        if let Some((why, help)) = last.and_then(|last| self.another(last, facts)) {
            return Diff::Blocked { why, help };
        }
        if let Some((why, help)) = self.forbidden(&functions, facts) {
            return Diff::Blocked { why, help };
        }
        let bound = |f: &&PciFunction| f.driver.as_deref() == Some("vfio-pci");
        let rules = self.rules(&functions);
        let written = state.as_deref() == Some(rules.as_str());
        let all_bound = functions.iter().all(bound);
        // The manifest has one of the two, and which one is its business.
        let recognised = || recognised(first, true).or_else(|| recognised(first, false));
        let recognised = self.vouched.card.then(recognised).flatten();
        if written && all_bound {
            let more = recognised.map_or(String::new(), |how| format!("; {how}"));
            return Diff::InSync { evidence: format!("{} functions on vfio-pci{more}", functions.len()) };
        }
        let group = first.group.map_or(String::new(), |g| format!(", group {g}"));
        let mut change = Change::new(
            if state.is_some() { Action::Change } else { Action::Create },
            format!("{} {}{group}", self.slot, first.name),
        );
        for f in functions.iter().filter(|f| !bound(f)) {
            let driver = f.driver.clone().unwrap_or_else(|| "no driver".to_owned());
            change.fields.push(FieldDiff::new(
                format!(".{}", f.address.function),
                Some(driver),
                Some("vfio-pci".to_owned()),
            ));
        }
        change.notes.extend(recognised);
        let twins =
            facts.pci.values().filter(|f| f.id == first.id && f.address.slot != self.slot && f.address.function == 0);
        for twin in twins.filter(|t| !self.companions.contains(&t.address.slot)) {
            let driver = twin.driver.as_deref().unwrap_or("no driver");
            change.notes.push(format!("stays: {} {} on {driver}", twin.address.slot, twin.name));
        }
        if functions.iter().any(|f| f.boot_display) {
            change.risks.insert(Risk::DisplayLoss);
            change.notes.push("it is the boot display: the screen on it goes dark".to_owned());
        }
        let free = functions.iter().all(|f| f.driver.is_none() || bound(f));
        if written && !free && facts.grouped_by(self.slot).is_none() {
            change.risks.insert(Risk::Reboot);
            return Diff::Waits {
                on: WaitFor::Reboot,
                why: "the early binding is written; its drivers still hold it".to_owned(),
                promise: Change { steps: Vec::new(), ..change },
            };
        }
        if !written {
            change.fields.push(FieldDiff::text(self.path().display().to_string(), state.as_deref(), Some(&rules)));
            change.steps.push(Step::WriteFile(FileWrite::root(self.path(), rules, 0o644)));
            change.refreshes.extend([Refresh::Udev, Refresh::Initramfs]);
            change.risks.insert(Risk::BootConfig);
        }
        if !all_bound {
            // Also where a run was cut off between two functions: the slot moves as a whole.
            if free {
                let functions = functions.iter().map(|f| (f.address, f.driver.clone())).collect();
                change.steps.push(Step::BindSlot(SlotBinding { functions, target: BindTarget::Vfio }));
            } else {
                change.risks.insert(Risk::Reboot);
                change.complete_after = Some(WaitFor::Reboot);
            }
        }
        once_grouped(change.clone(), self.slot, facts).unwrap_or(Diff::Change(change))
    }

    fn remove(&self, state: &BindingState, facts: &HostFacts) -> Diff {
        let back = self.to_give_back(state, facts);
        let mut change = Change::new(
            Action::Remove,
            match (self.still_for_vms, &back) {
                (true, _) => format!("{} is kept for VMs in another way", self.slot),
                (false, Ok(back)) if !back.is_empty() => format!("{} goes back to the host", self.slot),
                _ => format!("{} is no longer kept for VMs", self.slot),
            },
        );
        if let Some(text) = &state.rules {
            change.fields.push(FieldDiff::text(self.path().display().to_string(), Some(text), None));
            change.steps.push(Step::RemoveFile { path: self.path() });
            change.refreshes.extend([Refresh::Udev, Refresh::Initramfs]);
            change.risks.insert(Risk::BootConfig);
        }
        let back = match back {
            Ok(back) if !back.is_empty() => back,
            nothing => {
                let why = nothing.err();
                if state.rules.is_none() {
                    return Diff::InSync { evidence: why.unwrap_or_else(|| "gone".to_owned()) };
                }
                change.notes.extend(why);
                return Diff::Change(change);
            }
        };
        for f in &back {
            let field = format!(".{}", f.address.function);
            change.fields.push(FieldDiff::new(field, f.driver.clone(), Some("its own driver".to_owned())));
        }
        let Some(held) = &state.held else {
            // As a whole, also where a run was cut off between two functions.
            let all = facts.slot(self.slot).filter(|f| !f.is_bridge());
            let functions = all.map(|f| (f.address, f.driver.clone())).collect();
            change.steps.push(Step::BindSlot(SlotBinding { functions, target: BindTarget::Host }));
            return Diff::Change(change);
        };
        change.risks.insert(Risk::Reboot);
        let why = format!("it is on vfio-pci still: {held}");
        if change.steps.is_empty() {
            return Diff::Waits { on: WaitFor::Reboot, why, promise: change };
        }
        change.notes.push(format!("{why}; the next boot gives it back, or gpuvm apply once that is over"));
        change.complete_after = Some(WaitFor::Reboot);
        Diff::Change(change)
    }
}

impl VfioBinding {
    /// The functions that our binding left on vfio-pci and that belong to the host again; or why none of them does.
    fn to_give_back<'a>(&self, state: &BindingState, facts: &'a HostFacts) -> Result<Vec<&'a PciFunction>, String> {
        let ours = |f: &&PciFunction| {
            !f.is_bridge() && [&f.driver, &f.driver_override].iter().any(|d| d.as_deref() == Some("vfio-pci"))
        };
        let left: Vec<&PciFunction> = facts.slot(self.slot).filter(ours).collect();
        if left.is_empty() || self.still_for_vms {
            return Ok(Vec::new());
        }
        let is = Card::of(facts, self.slot);
        let same = |was: &Card, is: &Card| (was.id, was.subsystem, &was.path) == (is.id, is.subsystem, &is.path);
        if self.card.as_ref().zip(is.as_ref()).is_some_and(|(was, is)| !same(was, is)) {
            return Err(format!("{} has another card now, which stays as it is", self.slot));
        }
        let boot = |arg: &&String| arg.starts_with("vfio-pci.ids=") || arg.starts_with("vfio_pci.ids=");
        let boot = facts.kernel.cmdline.iter().filter(boot).map(|arg| ("the kernel's command line", arg));
        let mut by_id = state.by_id.iter().map(|(file, line)| (file.as_str(), line)).chain(boot);
        let others = by_id.find(|(_, line)| left.iter().any(|f| crate::check::names_id(line, f.id)));
        match others {
            Some((place, line)) => Err(format!("it stays on vfio-pci: `{line}` ({place}) binds it by its id")),
            None => Ok(left),
        }
    }
}

/// Who has a slot's functions on vfio-pci, or may have them: unbinding one that is held sleeps in the kernel until whoever
/// it is lets go. `None` is known to be nobody.
fn held(slot: PciSlot, host: &dyn Probe) -> Option<String> {
    let running = match super::libvirt::ask(host) {
        Ok(libvirt) => super::shared_gpu::user(slot, &libvirt).map(|vm| vm.map(str::to_owned)),
        Err(e) => Err(e.to_string()),
    };
    match running {
        Ok(Some(vm)) => return Some(format!("VM `{vm}` has it until it is shut down")),
        Ok(None) => {}
        Err(why) => return Some(format!("whether a VM has it is not known: {why}")),
    }
    open((0..8).map(|number| slot.function(number)), host)
}

/// Who has one of these functions open by vfio's nodes, or may have. `None` is known to be nobody.
pub(super) fn open(functions: impl Iterator<Item = PciAddress>, host: &dyn Probe) -> Option<String> {
    let users = match host.device_users() {
        Ok(users) => users,
        Err(e) => return Some(format!("who has it open is not known: {e}")),
    };
    let mut nodes = BTreeSet::new();
    for function in functions {
        let device = format!("/sys/bus/pci/devices/{function}");
        let group = host.link(format!("{device}/iommu_group").as_ref()).ok().and_then(Answer::value);
        nodes.extend(group.and_then(|g| Some(PathBuf::from("/dev/vfio").join(g.file_name()?))));
        let own = host.list(format!("{device}/vfio-dev").as_ref()).ok().and_then(Answer::value);
        nodes.extend(own.into_iter().flatten().map(|name| PathBuf::from("/dev/vfio/devices").join(name)));
    }
    let holder = users.users.iter().find(|u| u.nodes.iter().any(|node| nodes.contains(node)));
    let holder = holder.map(|u| format!("{} (pid {}) has it open", u.name, u.pid));
    holder.or_else(|| users.hidden.as_ref().map(|why| format!("not all who may have it open could be seen: {why}")))
}

/// The hook of initramfs-tools that puts vfio into the initramfs.
pub const INITRAMFS_HOOK: &str = "/etc/initramfs-tools/hooks/gpuvm";

/// Its text: `manual_add_modules` is initramfs-tools' own word for it (initramfs-tools(7)).
pub const INITRAMFS_HOOK_TEXT: &str = "#!/bin/sh\n# Written by gpuvm: the drivers that keep devices for VMs, in the initramfs.\n\
case \"$1\" in prereqs) exit 0 ;; esac\n. /usr/share/initramfs-tools/hook-functions\n\
manual_add_modules vfio vfio_iommu_type1 vfio_pci\n";

/// What puts the early binding into an initramfs of dracut's, which has a folder for each module (dracut.modules(7)).
/// It is below /usr: dracut looks nowhere else.
pub const DRACUT_MODULE: [(&str, &str); 2] = [
    ("/usr/lib/dracut/modules.d/90gpuvm/module-setup.sh", include_str!("vfio_binding/dracut-module.sh")),
    ("/usr/lib/dracut/modules.d/90gpuvm/gpuvm-override.sh", include_str!("vfio_binding/dracut-override.sh")),
];

/// Looks at the next boot after an update of a kernel. Hooks run in the order of their names, and this one after those
/// that make the initramfs, build modules and write the boot loader's menu (zz-update-grub).
pub const KERNEL_HOOK: (&str, &str) = ("/etc/kernel/postinst.d/zzz-gpuvm", include_str!("vfio_binding/update-hook.sh"));

/// The same after an update of an initramfs alone; initramfs-tools runs what is in this folder.
pub const INITRAMFS_UPDATE_HOOK: (&str, &str) =
    ("/etc/initramfs/post-update.d/zzz-gpuvm", include_str!("vfio_binding/initramfs-update-hook.sh"));

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::facts::Carries;

    /// Two that the rules mean, one in another place than they say, one that is another model.
    const FUNCTIONS: [&str; 4] = ["0000:02:00.0", "0000:02:00.1", "0000:03:00.0", "0000:04:00.0"];

    /// The hook of dracut's in a folder that plays the machine, with what dracut offers to hooks.
    fn hook(cmdline: &str) -> (String, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        // The path of each is that of a machine, below the folder that plays it: a port for each bus.
        let real = |function: &str| {
            let port = if function.starts_with("0000:02") { "12.0" } else { "13.0" };
            at(&format!("sys/devices/pci0000:00/0000:00:{port}")).join(function)
        };
        std::fs::create_dir_all(at("sys/bus/pci/devices")).unwrap();
        for function in FUNCTIONS {
            std::fs::create_dir_all(real(function)).unwrap();
            std::os::unix::fs::symlink(real(function), at("sys/bus/pci/devices").join(function)).unwrap();
            for (name, text) in [("driver_override", "(null)\n"), ("vendor", "0x10de\n"), ("device", "0x2684\n")] {
                std::fs::write(real(function).join(name), text).unwrap();
            }
        }
        std::fs::write(at("sys/bus/pci/drivers_probe"), "").unwrap();
        std::fs::create_dir_all(at("etc/udev/rules.d")).unwrap();
        let rule = |address: &str, path: &str, device: &str| {
            let mut f = function(address, 0x03_0000, &[]);
            f.path = path.to_owned();
            f.id = format!("10de:{device}").parse().unwrap();
            VfioRule::line(&f) + "\n"
        };
        // By their path whatever the bus is; another model; nothing there; by address, and that is in another place.
        let rules = [
            rule("0000:07:00.0", "pcie:12.0/0", "2684"),
            rule("0000:07:00.1", "pcie:12.0/0", "2684"),
            rule("0000:04:00.0", "pcie:13.0/0", "2685"),
            rule("0000:04:00.0", "pcie:14.0/0", "2684"),
            rule("0000:03:00.0", "pcie:12.0/0", "2684").replace("DEVPATH", "KERNEL==\"0000:03:00.0\", DEVPATH"),
        ];
        std::fs::write(at("etc/udev/rules.d/61-gpuvm-vfio-work.rules"), rules.concat()).unwrap();
        let root = dir.path().display().to_string();
        let text =
            DRACUT_MODULE[1].1.replace("/sys/", &format!("{root}/sys/")).replace("/etc/", &format!("{root}/etc/"));
        let offered = format!(
            "getarg() {{ for a in {cmdline}; do case $a in \"$1\"|\"$1\"=*) return 0 ;; esac; done; return 1; }}\n\
             modprobe() {{ echo \"$@\" >> {root}/modprobe; }}\nset -u\n"
        );
        #[allow(clippy::disallowed_methods)] // a test runs what dracut would run
        let ran = Command::new("/bin/sh").args(["-c", &(offered + &text)]).output().unwrap();
        assert!(ran.status.success() && ran.stderr.is_empty(), "{}", String::from_utf8_lossy(&ran.stderr));
        let read = |path: &str| std::fs::read_to_string(at(path)).unwrap_or_default();
        let over = |f: &str| read(&format!("sys/bus/pci/devices/{f}/driver_override"));
        let all = FUNCTIONS.map(|f| over(f).trim().to_owned()).join(" ");
        (all, read("modprobe").trim().to_owned(), read("sys/bus/pci/drivers_probe").trim().to_owned())
    }

    fn function(address: &str, class: u32, carries: &[Carries]) -> PciFunction {
        PciFunction {
            address: address.parse().unwrap(),
            path: String::new(),
            class,
            name: "a card".to_owned(),
            group: Some(9),
            carries: carries.iter().cloned().collect(),
            ..crate::facts::tests::display()
        }
    }

    #[test]
    fn help_for_a_shared_group_names_the_lines_to_write_or_says_that_none_help() {
        let nic = function("0000:03:00.0", 0x02_0000, &[]);
        let card = function("0000:04:00.0", 0x03_0000, &[]);
        let help = moves_together(&[&card, &nic]);
        let lines = "in host.yaml:\n        gpus:\n          pci-0000-04-00: { match: \"0000:04:00\", use: vfio }\n        \
                     devices:\n          pci-0000-03-00: { match: \"0000:03:00\", use: vfio }";
        assert!(help.ends_with(lines), "{help}");
        let uplink = function("0000:03:00.0", 0x02_0000, &[Carries::Uplink("enp3s0".parse().unwrap())]);
        let help = moves_together(&[&card, &uplink]);
        assert!(help.contains("the host needs 0000:03:00") && !help.contains("use: vfio"), "{help}");
    }

    #[test]
    fn the_hook_of_dracut_gives_the_named_functions_away_and_no_other() {
        let (overrides, loaded, probed) = hook("quiet ro");
        assert_eq!(overrides, "vfio-pci vfio-pci (null) (null)");
        assert_eq!(loaded, "-q vfio-pci");
        assert_eq!(probed, "0000:02:00.1", "each without a driver is probed; the last is seen here");
    }

    #[test]
    fn gpuvm_off_switches_the_hook_of_dracut_off() {
        for off in ["gpuvm.off", "gpuvm.off=1"] {
            assert_eq!(hook(off), ("(null) (null) (null) (null)".to_owned(), String::new(), String::new()));
        }
    }

    /// The hook for updates, with a gpuvm that says this, run as that path for a package.
    fn updated(says: &str, at: &str, package: &str, cmdline: &str) -> (bool, String) {
        let dir = tempfile::tempdir().unwrap();
        let (gpuvm, line) = (dir.path().join("gpuvm"), dir.path().join("cmdline"));
        let (hook, run) = (dir.path().join("zzz-gpuvm"), dir.path().join(at));
        std::fs::write(&line, format!("{cmdline}\n")).unwrap();
        let text = KERNEL_HOOK.1.replace("/usr/local/bin/gpuvm", &gpuvm.display().to_string());
        let text = text.replace("/proc/cmdline", &line.display().to_string()).replace("command -v logger", "false");
        std::fs::write(&hook, text).unwrap();
        let executable = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&hook, executable()).unwrap();
        if run != hook {
            let text = INITRAMFS_UPDATE_HOOK.1.replace(KERNEL_HOOK.0, &hook.display().to_string());
            std::fs::write(&run, text).unwrap();
        }
        if !says.is_empty() {
            std::fs::write(&gpuvm, format!("#!/bin/sh\n{says}\n")).unwrap();
            std::fs::set_permissions(&gpuvm, executable()).unwrap();
        }
        #[allow(clippy::disallowed_methods)] // a test runs what a package's update would run
        let ran = Command::new("/bin/sh").arg(&run).env("DPKG_MAINTSCRIPT_PACKAGE", package).output().unwrap();
        assert!(ran.stdout.is_empty(), "stdout belongs to debconf");
        (ran.status.success(), String::from_utf8_lossy(&ran.stderr).trim().to_owned())
    }

    #[test]
    fn the_hook_for_updates_warns_and_never_fails() {
        let (kernel, initramfs) = ("zzz-gpuvm", "of-the-initramfs");
        let warned = (true, "--quiet check --next-boot --record".to_owned());
        let silent = (true, String::new());
        assert_eq!(updated("echo $@; exit 1", kernel, "linux-image-6.12.57", "ro quiet"), warned);
        assert_eq!(updated("echo $@; exit 1", initramfs, "initramfs-tools", "ro quiet"), warned);
        assert_eq!(
            updated("echo $@; exit 1", initramfs, "linux-image-6.12.57", "ro quiet"),
            silent,
            "the kernel's looks"
        );
        assert_eq!(updated("echo $@", kernel, "", "ro gpuvm.off"), silent);
        assert_eq!(updated("", kernel, "", "ro"), silent, "gpuvm is gone");
        assert_eq!(updated("exit 3", kernel, "", "ro"), silent);
        assert!(updated("kill -9 $$", kernel, "", "ro").0);
    }
}
