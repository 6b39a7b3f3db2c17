//! A GPU into a VM and out of it: the slot as a whole or nothing. The slot is bound first and unbound last, so that a cut
//! in between leaves it with nobody, and the same verb again ends it.

use std::collections::BTreeSet;

use super::{Compiled, Look, MovedGpu, vm};
use crate::facts::PciFunction;
use crate::gpu::nvswitch::{Board, Split};
use crate::gpu::{self, Gpu, Holder, HolderKind};
use crate::host::{Domain, HostError, Virtualisation};
use crate::plan::{
    Action, BindTarget, Change, Diff, FieldDiff, Finding, Key, Risk, Severity, SlotBinding, Step, TextEdit, WaitFor,
};
use crate::resource::libvirt_domain::{PassedSlot, plugs, project, unplugs, with_slot, without_slot};
use crate::resource::vfio_binding::{Card, VfioBinding, Vouched};
use crate::types::{PciAddress, PciSlot};

/// The kind of the entry about the card itself; it is nothing of the manifest's, so it has no kind there.
const SLOT: &str = "gpu";

/// A VM has the GPU.
pub(super) fn attach(moved: &MovedGpu, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let (domain, known) = match vm::find(&moved.vm, look, "attach-device")? {
        Ok(found) => found,
        Err(diff) => {
            compiled.entry(&vm::key(&moved.vm), [], *diff);
            return Ok(compiled);
        }
    };
    if let Err(diff) = beside_others(moved, &domain, look, &mut compiled) {
        compiled.entry(&vm::key(&moved.vm), [], *diff);
        return Ok(compiled);
    }
    let slot = Key::new(SLOT, moved.slot.to_string());
    let binding = match moved.shared {
        true => another(moved, look).unwrap_or_else(|| Diff::InSync { evidence: SHARED.to_owned() }),
        false => bound(moved, &known, look),
    };
    let blocked = matches!(binding, Diff::Blocked { .. } | Diff::Unknown { .. });
    let now_bound = matches!(binding, Diff::Change(_));
    compiled.entry(&slot, [], binding);
    if !blocked {
        compiled.entry(&vm::key(&moved.vm), [slot], plugged(moved, &domain, now_bound, look));
    }
    Ok(compiled)
}

/// A VM does not have the GPU, and the host has it back.
pub(super) fn detach(moved: &MovedGpu, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let (domain, known) = match vm::find(&moved.vm, look, "detach-device")? {
        Ok(found) => found,
        Err(diff) => {
            compiled.entry(&vm::key(&moved.vm), [], *diff);
            return Ok(compiled);
        }
    };
    let key = vm::key(&moved.vm);
    let of_vm = unplugged(moved, &domain);
    let keeps = matches!(&of_vm, Diff::Waits { .. } | Diff::Blocked { .. } | Diff::Unknown { .. })
        || matches!(&of_vm, Diff::Change(c) if c.complete_after.is_some());
    let back = given_back(moved, &known, keeps, look);
    compiled.entry(&key, [], of_vm);
    compiled.entry(&Key::new(SLOT, moved.slot.to_string()), [key], back);
    Ok(compiled)
}

/// Whether NVSwitches can join it with those that the VM has, at its next start and as it runs: as a plan judges it.
fn beside_others(moved: &MovedGpu, domain: &Domain, look: Look<'_>, compiled: &mut Compiled) -> Result<(), Box<Diff>> {
    let Some(board) = Board::of(look.facts).filter(|board| board.gpus.contains(&moved.slot)) else { return Ok(()) };
    for xml in [Some(domain.inactive_xml.as_str()), live(domain)].into_iter().flatten() {
        // One that cannot be read, or has it already, is told of by what moves it.
        let Ok(is) = project(xml) else { continue };
        let mut slots: BTreeSet<PciSlot> = is.functions.iter().map(|f| f.slot).collect();
        if !slots.insert(moved.slot) {
            continue;
        }
        match board.split(&slots, &moved.modules, look.facts) {
            Split::Allowed(_) | Split::Partition { .. } => {}
            Split::Wrong { why, help } => {
                let help = format!("{help}; several at once: `gpus` of the VM in host.yaml, and gpuvm apply");
                return Err(Box::new(blocked(format!("with {} it would have {why}", moved.named()), help)));
            }
            Split::Unknown { why, help } => {
                let (place, code) = (format!("vms.{}.gpus", moved.vm), "nvswitch-partition".to_owned());
                let found = Finding { severity: Severity::Warning, code, place, message: why, help };
                if !compiled.findings.contains(&found) {
                    compiled.findings.push(found);
                }
            }
        }
    }
    Ok(())
}

/// What is said of a card that host and VMs share.
const SHARED: &str = "shared with the host: it changes hands when its VM starts, and again when that has ended";

/// Every function that is the card's own.
fn functions<'a>(slot: PciSlot, look: Look<'a>) -> Vec<&'a PciFunction> {
    look.facts.slot(slot).filter(|f| !f.is_bridge()).collect()
}

fn on_vfio(f: &PciFunction) -> bool {
    f.driver.as_deref().is_some_and(|d| d.contains("vfio"))
}

fn blocked(why: impl Into<String>, help: impl Into<String>) -> Diff {
    Diff::Blocked { why: why.into(), help: help.into() }
}

/// The card that was meant is in the slot, or what to say.
fn another(moved: &MovedGpu, look: Look<'_>) -> Option<Diff> {
    let list = "see where it is: gpuvm gpu list";
    match Card::of(look.facts, moved.slot) {
        None => Some(blocked(format!("there is no device at {}", moved.slot), list)),
        Some(card)
            if (card.id, card.subsystem, &card.path) != (moved.card.id, moved.card.subsystem, &moved.card.path) =>
        {
            Some(blocked(format!("{} has another card now", moved.slot), list))
        }
        Some(_) => None,
    }
}

/// The slot is on vfio-pci, with nobody but this VM on it.
fn bound(moved: &MovedGpu, known: &Virtualisation, look: Look<'_>) -> Diff {
    if let Some(diff) = another(moved, look) {
        return diff;
    }
    let all = functions(moved.slot, look);
    let name = all.first().map_or(String::new(), |f| f.name.clone());
    if let Some(other) = user(moved.slot, known).filter(|other| *other != moved.vm.as_str()) {
        return blocked(
            format!("VM `{other}` has it, and runs"),
            format!("take it from there first: gpuvm gpu detach {other} {}", moved.gpu),
        );
    }
    if let Some((other, of_group, group)) = user_of_group(moved, &all, known, look) {
        return blocked(
            format!(
                "VM `{other}` has {of_group} of its IOMMU group {group}, and runs: a group goes to one VM at a time"
            ),
            format!(
                "shut that VM down first: gpuvm vm stop {other}; or take that device from it: gpuvm gpu detach {other} {}",
                of_group.slot
            ),
        );
    }
    let gpus = gpu::collect(look.probe, look.facts);
    let held = gpus.iter().find(|g| g.slot == moved.slot).and_then(|gpu| {
        let own = known.domain(moved.vm.as_str()).is_some_and(|d| of_group(d, &all, look).is_some());
        held(gpu, moved, own)
    });
    if all.iter().all(|f| on_vfio(f)) {
        let evidence = || Diff::InSync { evidence: format!("{} functions on vfio-pci", all.len()) };
        return held.unwrap_or_else(evidence);
    }
    let others = look.facts.pci.values().map(|f| f.address.slot).filter(|s| *s != moved.slot).collect::<BTreeSet<_>>();
    let companions = others.into_iter().filter(|s| functions(*s, look).iter().all(|f| on_vfio(f))).collect();
    let binding = VfioBinding {
        name: moved.gpu.clone(),
        slot: moved.slot,
        companions,
        card: Some(moved.card.clone()),
        vouched: Vouched::default(),
        still_for_vms: false,
    };
    if let Some((why, help)) = binding.forbidden_at_once(look.facts) {
        return blocked(why, help);
    }
    if let Some(diff) = held {
        return diff;
    }
    let mut change = Change::new(Action::Change, format!("{} {name}", moved.slot));
    for f in all.iter().filter(|f| !on_vfio(f)) {
        let driver = f.driver.clone().unwrap_or_else(|| "no driver".to_owned());
        let field = format!(".{}", f.address.function);
        change.fields.push(FieldDiff::new(field, Some(driver), Some("vfio-pci".to_owned())));
    }
    if all.iter().any(|f| f.boot_display) {
        change.risks.insert(Risk::DisplayLoss);
        change.notes.push("it is the boot display: the screen on it goes dark".to_owned());
    }
    if !moved.kept {
        change
            .notes
            .push("until the host boots: `use: vfio` in host.yaml keeps it for VMs, and --save writes that".to_owned());
    }
    change.steps.push(Step::BindSlot(SlotBinding {
        functions: all.iter().map(|f| (f.address, f.driver.clone())).collect(),
        target: BindTarget::Vfio,
    }));
    Diff::Change(change)
}

/// The running VM that has any function of a slot.
fn user(slot: PciSlot, known: &Virtualisation) -> Option<&str> {
    let has = |d: &&Domain| {
        let live = d.live_xml.as_deref().filter(|_| d.active).and_then(|x| project(x).ok());
        live.is_some_and(|p| p.functions.iter().any(|f| f.slot == slot))
    };
    known.domains.iter().find(has).map(|d| d.name.as_str())
}

/// The running VM that has a function of the card's IOMMU groups which is not the card's own: it owns the group.
fn user_of_group<'a>(
    moved: &MovedGpu,
    all: &[&PciFunction],
    known: &'a Virtualisation,
    look: Look<'_>,
) -> Option<(&'a str, PciAddress, u32)> {
    let others = known.domains.iter().filter(|d| d.name != moved.vm.as_str());
    others.filter_map(|d| of_group(d, all, look).map(|(f, group)| (d.name.as_str(), f, group))).next()
}

/// A function of these functions' groups that a VM runs with, so that it has the group's node open, with the group.
fn of_group(domain: &Domain, all: &[&PciFunction], look: Look<'_>) -> Option<(PciAddress, u32)> {
    let shared = |f: PciAddress| all.iter().find_map(|own| look.facts.shared_group(f, own.address));
    project(live(domain)?).ok()?.functions.into_iter().find_map(|f| Some((f, shared(f)?)))
}

/// Who uses it, and how it gets free: anybody but the VM itself, whose process is known by the group that it has, where
/// it has one. Whoever could not be seen counts as a user.
fn held(gpu: &Gpu, moved: &MovedGpu, has_group: bool) -> Option<Diff> {
    let explain = format!("the whole of it: gpuvm gpu explain {}", moved.gpu);
    if gpu.link.as_ref().is_some_and(gpu::PciLink::is_dead) {
        return Some(blocked("the card does not answer: it reads as ones", explain));
    }
    let of_vfio = |h: &Holder| h.nodes.iter().all(|node| node.starts_with("/dev/vfio"));
    let is_itself = |h: &&Holder| match (&h.kind, h.pid) {
        (HolderKind::Vm, None) => h.name == moved.vm.as_str(),
        (HolderKind::Vm, Some(_)) => has_group && of_vfio(h),
        _ => false,
    };
    let holders: Vec<&Holder> = gpu.holders.iter().filter(|h| !is_itself(h)).collect();
    if let Some(holder) = holders.first() {
        let more = match holders.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        return Some(blocked(format!("{} uses it{more}", told(holder)), format!("{}; {explain}", free(holder))));
    }
    let hidden = gpu.hidden_holders.as_ref()?;
    Some(Diff::Unknown { why: format!("who uses it is not known: {hidden}") })
}

fn told(holder: &Holder) -> String {
    let pid = holder.pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    match &holder.kind {
        HolderKind::Vm => format!("VM `{}`", holder.name),
        HolderKind::Container { engine, id } => format!("{engine} container {id}: {}{pid}", holder.name),
        HolderKind::Service(unit) => format!("{unit}: {}{pid}", holder.name),
        _ => format!("{}{pid}", holder.name),
    }
}

fn free(holder: &Holder) -> String {
    match &holder.kind {
        HolderKind::Service(unit) => format!("systemctl stop {unit}"),
        HolderKind::Container { engine, id } if *engine == "docker" || *engine == "podman" => {
            format!("{engine} stop {id}")
        }
        HolderKind::Persistence => "systemctl stop nvidia-persistenced".to_owned(),
        HolderKind::Mps => "echo quit | nvidia-cuda-mps-control".to_owned(),
        HolderKind::DisplayServer => "systemctl isolate multi-user.target".to_owned(),
        _ => "end it first".to_owned(),
    }
}

fn passed(moved: &MovedGpu, look: Look<'_>) -> PassedSlot {
    PassedSlot::whole(moved.slot, functions(moved.slot, look).iter().map(|f| f.address).collect())
}

/// The functions of a slot that a definition passes.
fn of_slot(xml: &str, slot: PciSlot) -> Result<BTreeSet<PciAddress>, String> {
    let is = project(xml).map_err(|why| format!("its definition cannot be read: {why}"))?;
    Ok(is.functions.into_iter().filter(|f| f.slot == slot).collect())
}

/// What of a running VM's definition counts: none where it does not run.
fn live(domain: &Domain) -> Option<&str> {
    domain.live_xml.as_deref().filter(|_| domain.active)
}

/// The VM has the slot, stored and where it can be running.
fn plugged(moved: &MovedGpu, domain: &Domain, now_bound: bool, look: Look<'_>) -> Diff {
    let slot = passed(moved, look);
    let all: BTreeSet<PciAddress> = slot.functions.iter().copied().collect();
    let (stored, running) =
        match (of_slot(&domain.inactive_xml, moved.slot), live(domain).map(|x| of_slot(x, moved.slot))) {
            (Err(why), _) | (_, Some(Err(why))) => return Diff::Unknown { why },
            (Ok(stored), None) => (stored, None),
            (Ok(stored), Some(Ok(running))) => (stored, Some(running)),
        };
    let has = |there: &BTreeSet<PciAddress>| *there == all;
    if has(&stored) && running.as_ref().is_none_or(has) {
        return Diff::InSync { evidence: format!("it has {}", moved.slot) };
    }
    let mut change = Change::new(Action::Change, format!("gets {}", moved.named()));
    let mut waits = None;
    if let (Some(xml), Some(running)) = (live(domain), &running)
        && !has(running)
    {
        match plugs(xml, &slot).filter(|_| !moved.shared) {
            Some(devices) => {
                let drivers = functions(moved.slot, look);
                // What this run binds goes back as a whole where the VM does not take it.
                let else_back = now_bound.then(|| SlotBinding {
                    functions: drivers.iter().map(|f| (f.address, Some("vfio-pci".to_owned()))).collect(),
                    target: BindTarget::Host,
                });
                change.notes.push("plugged in while it runs, each function as a device of its own".to_owned());
                change.steps.push(Step::AttachDevices { name: moved.vm.clone(), devices, else_back });
            }
            None if moved.shared => waits = Some(format!("{SHARED}: it has it from its next start on")),
            None => {
                waits = Some(format!(
                    "its running machine has no free PCI Express port for {}: it has it from its next start on",
                    match all.len() {
                        1 => "it".to_owned(),
                        n => format!("each of the {n} functions"),
                    }
                ));
            }
        }
    }
    if !has(&stored) {
        change.fields.push(FieldDiff::new(format!("device {}", moved.slot), None, Some("passed".to_owned())));
        match edit(&domain.inactive_xml, with_slot(&domain.inactive_xml, &slot)) {
            Ok(edit) => {
                change.steps.push(Step::EditDomain { name: moved.vm.clone(), edit, autostart: domain.autostart });
            }
            Err(why) => return Diff::Unknown { why },
        }
    }
    settled(change, waits)
}

fn edit(xml: &str, splices: Option<Vec<crate::types::Splice>>) -> Result<TextEdit, String> {
    let splices = splices.ok_or("its definition has no place for devices")?;
    TextEdit::new(xml, splices).map_err(|e| format!("its definition cannot be changed in place: {e}"))
}

/// The change, complete at the next start of the VM where something waits for that.
fn settled(mut change: Change, waits: Option<String>) -> Diff {
    match waits {
        None => Diff::Change(change),
        Some(why) if change.steps.is_empty() => {
            change.risks.insert(Risk::GuestRestart);
            Diff::Waits { on: WaitFor::GuestRestart, why, promise: change }
        }
        Some(why) => {
            change.risks.insert(Risk::GuestRestart);
            change.complete_after = Some(WaitFor::GuestRestart);
            change.notes.push(why);
            Diff::Change(change)
        }
    }
}

/// The VM does not have the slot, stored and running.
fn unplugged(moved: &MovedGpu, domain: &Domain) -> Diff {
    let (stored, running) =
        match (of_slot(&domain.inactive_xml, moved.slot), live(domain).map(|x| of_slot(x, moved.slot))) {
            (Err(why), _) | (_, Some(Err(why))) => return Diff::Unknown { why },
            (Ok(stored), None) => (stored, BTreeSet::new()),
            (Ok(stored), Some(Ok(running))) => (stored, running),
        };
    if stored.is_empty() && running.is_empty() {
        return Diff::InSync { evidence: format!("it does not have {}", moved.slot) };
    }
    let mut change = Change::new(Action::Change, format!("gives {} back", moved.named()));
    let mut waits = None;
    if let Some(xml) = live(domain).filter(|_| !running.is_empty()) {
        match unplugs(xml, moved.slot).filter(|_| !moved.shared) {
            Some(devices) => {
                change.notes.push("unplugged while it runs: its guest is asked to let go".to_owned());
                change.steps.push(Step::DetachDevices { name: moved.vm.clone(), devices });
            }
            None if moved.shared => {
                waits = Some(
                    "shared with the host: it has it until it is shut down, and then the host has it back".to_owned(),
                );
            }
            None => {
                waits = Some(
                    "libvirt unplugs no device of several functions: it has it until it is shut down, and then the same \
                     command gives it to the host"
                        .to_owned(),
                );
            }
        }
    }
    if !stored.is_empty() {
        change.fields.push(FieldDiff::new(format!("device {}", moved.slot), Some("passed".to_owned()), None));
        match edit(&domain.inactive_xml, without_slot(&domain.inactive_xml, moved.slot)) {
            Ok(edit) => {
                change.steps.push(Step::EditDomain { name: moved.vm.clone(), edit, autostart: domain.autostart });
            }
            Err(why) => return Diff::Unknown { why },
        }
    }
    settled(change, waits)
}

/// Every function is on its own driver again, or stays on vfio-pci where the manifest keeps it for VMs.
fn given_back(moved: &MovedGpu, known: &Virtualisation, keeps: bool, look: Look<'_>) -> Diff {
    let all = functions(moved.slot, look);
    if all.is_empty() {
        return Diff::InSync { evidence: format!("nothing is at {}", moved.slot) };
    }
    if moved.shared {
        return Diff::InSync { evidence: SHARED.to_owned() };
    }
    if moved.kept {
        return Diff::stays("it stays on vfio-pci: the manifest keeps it for VMs");
    }
    if all.iter().all(|f| !on_vfio(f) && f.driver_override.is_none()) {
        return Diff::InSync { evidence: "its functions are on their own drivers".to_owned() };
    }
    let other = user(moved.slot, known).filter(|other| *other != moved.vm.as_str());
    if let Some(other) = other {
        return Diff::InSync { evidence: format!("VM `{other}` has it") };
    }
    let mut change = Change::new(Action::Change, format!("{} goes back to the host's drivers", moved.slot));
    for f in all.iter().filter(|f| on_vfio(f)) {
        let field = format!(".{}", f.address.function);
        change.fields.push(FieldDiff::new(field, f.driver.clone(), Some("its own driver".to_owned())));
    }
    if keeps {
        // The same verb once more gives it back: this run has nothing left to do.
        return Diff::Waits {
            on: WaitFor::GuestRestart,
            why: format!("VM `{}` has it until it is shut down", moved.vm),
            promise: change,
        };
    }
    change.steps.push(Step::BindSlot(SlotBinding {
        functions: all.iter().map(|f| (f.address, f.driver.clone())).collect(),
        target: BindTarget::Host,
    }));
    Diff::Change(change)
}
