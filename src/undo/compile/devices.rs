//! PCI devices: the driver that a slot had, virtual functions, vGPUs and MIG instances as many as there were, and shared
//! GPUs, which are the host's again before what hands them over goes.

use std::collections::BTreeMap;
use std::path::Path;

use super::vms::{running, running_with};
use super::{Thing, selector};
use crate::gpu::mig;
use crate::host::{HostError, Probe};
use crate::plan::{
    BindTarget, Change, Diff, FieldDiff, Key, MigState, MigStep, Place, Seen, SlotBinding, Step, VgpuStep,
    VirtualFunctionsStep,
};
use crate::resource::mig::in_use;
use crate::resource::shared_gpu::{KNOWN, Needed, SCRIPT, SharedGpu, UNITS, shared_now};
use crate::resource::vgpu::mediated;
use crate::resource::{Resource, start_hook, virtual_functions};
use crate::types::{PciAddress, ResourceName};

impl Thing<'_> {
    /// A slot that was bound at once is bound back at once, as a whole.
    pub(super) fn slot(&self, mine: &[(&Place, &Seen)], change: &mut Change) {
        let functions: Vec<_> = mine
            .iter()
            .filter_map(|(place, before)| match (place, before, self.now.of(place)) {
                (Place::Function(address), Seen::Driver(then), Seen::Driver(now)) => {
                    Some((*address, then.as_deref() == Some("vfio-pci"), now.clone()))
                }
                _ => None,
            })
            .collect();
        let wrong = |(_, vfio, now): &(_, bool, Option<String>)| *vfio != (now.as_deref() == Some("vfio-pci"));
        if !functions.iter().any(wrong) {
            return;
        }
        let vfio = functions.iter().all(|(_, vfio, _)| *vfio);
        for (address, vfio, now) in &functions {
            let to = if *vfio { "vfio-pci" } else { "the host's driver" };
            let now = now.clone().unwrap_or_else(|| "no driver".to_owned());
            change.fields.push(FieldDiff::new(format!("function {address}"), Some(now), Some(to.to_owned())));
        }
        change.steps.push(Step::BindSlot(SlotBinding {
            functions: functions.into_iter().map(|(address, _, now)| (address, now)).collect(),
            target: if vfio { BindTarget::Vfio } else { BindTarget::Host },
        }));
    }

    /// Virtual functions as many as there were: those that go do so before the file that says which they are, and those
    /// that come back do so after it.
    pub(super) fn virtual_functions(
        &self,
        (name, physical, vgpu): (&ResourceName, PciAddress, bool),
        (before, is): (&Seen, &Seen),
        change: &mut Change,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        let number = |seen: &Seen| if let Seen::Count(n) = seen { *n } else { 0 };
        let (then, now) = (number(before), number(is));
        let mut functions = virtual_functions::there(physical, probe);
        if vgpu && then > now {
            // More of them touch none of those that are there.
            functions.clear();
        }
        let mediated = if vgpu && then <= now { mediated::made(physical, probe) } else { BTreeMap::new() };
        let of_mediated = running(|is| is.mediated().any(|m| mediated.contains_key(&m)), probe)?;
        if let Some(vm) = running_with(|f| functions.values().any(|v| v == f), probe)?.or(of_mediated)
            && !self.stops(&vm)
        {
            let why = format!("VM `{vm}` runs with one of them");
            return Ok(Some(Diff::Blocked { why, help: format!("shut it down first: gpuvm vm stop {vm}") }));
        }
        let (was, becomes) = (Some(now.to_string()), Some(then.to_string()));
        let what = if vgpu { "vGPUs" } else { "virtual functions" };
        change.fields.push(FieldDiff::new(what, was, becomes));
        let name = name.clone();
        let step = match vgpu {
            true => Step::Vgpus(VgpuStep { name, physical, before: now, count: then }),
            false => Step::VirtualFunctions(VirtualFunctionsStep { name, physical, before: now, count: then }),
        };
        let at = if then == 0 { 0 } else { change.steps.len() };
        change.steps.insert(at, step);
        Ok(None)
    }

    /// Why what hands shared GPUs over cannot go: a VM has one, or not all went back to the host. Where this undo shuts
    /// that VM down, the GPU goes back before its hand-over goes, and is waited for.
    pub(super) fn hand_over(
        &self,
        key: &Key,
        mine: &[(&Place, &Seen)],
        change: &mut Change,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        let goes = |path: &Path| {
            mine.iter().any(|(place, before)| {
                matches!(place, Place::File(at) if at == path)
                    && **before == Seen::Nothing
                    && *self.now.of(place) != Seen::Nothing
            })
        };
        let behind = UNITS.iter().chain([&SCRIPT, &start_hook::HOOK]).any(|(path, _)| goes(Path::new(path)));
        for shared in shared_now(probe) {
            let own = goes(&Path::new(KNOWN).join(&shared.name));
            if !own && !behind {
                continue;
            }
            let skip =
                format!("; to leave the hand-over as it is: gpuvm undo {} --skip {}", self.back.run, selector(key));
            let name = &shared.name;
            let (why, help) = match shared.needed(probe)? {
                None => continue,
                Some(Needed::Unknown(why)) => {
                    return Ok(Some(Diff::Unknown { why: format!("whose `{name}` is now is not known: {why}") }));
                }
                // What the same undo stops and gives back.
                Some(Needed::ByVm(vm)) if self.stops(&vm) && self.takes_away(name) => {
                    if own {
                        change.steps.extend(shared.give(Some(&vm)));
                        change.notes.push(format!("it goes back to the host first, once VM `{vm}` has ended"));
                    }
                    continue;
                }
                Some(Needed::ByVm(vm)) => {
                    (format!("VM `{vm}` has `{name}`"), format!("shut that down first: gpuvm vm stop {vm}"))
                }
                Some(Needed::Owed(vm)) => {
                    let of = vm.map_or(String::new(), |vm| format!(":{vm}"));
                    (
                        format!("`{name}` has not all gone back to the host yet"),
                        format!("give it back first: systemctl start gpuvm-give@{name}{of}"),
                    )
                }
            };
            return Ok(Some(Diff::Blocked { why, help: help + &skip }));
        }
        Ok(None)
    }

    /// Whether the same undo takes the hand-over of a GPU away.
    fn takes_away(&self, gpu: &str) -> bool {
        let key = Key::new(SharedGpu::KIND, gpu);
        let recorded = self.recorded.before.iter().any(|(k, _, before)| *k == key && *before == Seen::Nothing);
        recorded && !self.back.skips(&key)
    }
}

/// MIG of a card as it was: what goes does so before the file that says what is made at boot.
pub(super) fn mig(
    name: &ResourceName,
    physical: PciAddress,
    (before, is): (&Seen, &Seen),
    change: &mut Change,
    probe: &dyn Probe,
) -> Option<Diff> {
    let state = |seen: &Seen| if let Seen::Mig(state) = seen { state.clone() } else { MigState::default() };
    let (then, now) = (state(before), state(is));
    // Its driver is gone, and took what there was with it.
    if !mig::is_driven(probe, physical) {
        return None;
    }
    let card = match mig::ask(probe, physical) {
        mig::Told::Card(card) => card,
        mig::Told::Without => return None,
        mig::Told::Unknown(why) => return Some(Diff::Unknown { why }),
    };
    let goes = |i: &&mig::Instance| !then.has(&i.profile, i.start);
    if let Some(diff) = in_use(&card, goes, then.on != card.on) {
        return Some(diff);
    }
    change.fields.push(FieldDiff::new(format!("MIG of {physical}"), Some(now.to_string()), Some(then.to_string())));
    let at = if then.instances.is_empty() { 0 } else { change.steps.len() };
    change.steps.insert(at, Step::Mig(MigStep { name: name.clone(), physical, before: now, after: then }));
    None
}
