//! Cards that the manifest keeps for the host and that the host does not have: on vfio-pci, or in a VM, by a word other than
//! the manifest's. Nothing takes them back by itself, so it is said.

use super::{Finding, Past, Severity};
use crate::desire::Desired;
use crate::facts::HostFacts;
use crate::host::{Answer, Domain, Probe};
use crate::resource::Wanted;
use crate::resource::libvirt_domain::{is_marked, project};
use crate::types::PciSlot;

/// Each such card. What is bound by gpuvm's own word goes back in this plan, and is told of there.
pub(super) fn not_with_the_host(desired: &Desired, past: &Past, probe: &dyn Probe, facts: &HostFacts) -> Vec<Finding> {
    let owned = |slot: &PciSlot| {
        past.owned.values().any(|wanted| match wanted {
            Wanted::VfioBinding(binding) => binding.slot == *slot,
            Wanted::SharedGpu(shared) => shared.slot == *slot,
            _ => false,
        })
    };
    let known = match probe.virtualisation() {
        Ok(Answer::Value(known)) => Some(known),
        _ => None,
    };
    let mut all = Vec::new();
    for (slot, place) in desired.for_host.iter().filter(|(slot, _)| !owned(slot)) {
        let bound = facts
            .slot(*slot)
            .find(|f| f.virtual_of.is_none() && f.driver.as_deref() == Some("vfio-pci"))
            .map(|f| f.address);
        let vm = known.as_ref().and_then(|known| known.domains.iter().find(|d| has(d, *slot, facts)));
        let message = match (bound, vm) {
            (Some(function), Some(vm)) => {
                format!("it stays with the host, and {function} is on vfio-pci: VM `{}` has it", vm.name)
            }
            (Some(function), None) => {
                format!("it stays with the host, and {function} is on vfio-pci, where the host cannot use it")
            }
            (None, Some(vm)) => {
                format!("it stays with the host, and VM `{}` has it: that VM does not start like this", vm.name)
            }
            (None, None) => continue,
        };
        let kept = "or write `use: vfio`, which keeps it for VMs";
        let help = match vm {
            Some(vm) if is_marked(&vm.inactive_xml) => {
                format!("give it back: gpuvm gpu detach {} {slot}; {kept}", vm.name)
            }
            Some(vm) => format!("take it out of that VM: virsh edit {}; {kept}", vm.name),
            None => format!("give it back to its driver by what bound it, and plan again; {kept}"),
        };
        let code = "not-with-the-host".to_owned();
        all.push(Finding { severity: Severity::Warning, code, place: place.clone(), message, help });
    }
    all
}

/// Whether a VM has a function of a card. One of others that is off may have it handed over by libvirt at its start, and it
/// is the host's until then.
fn has(domain: &Domain, slot: PciSlot, facts: &HostFacts) -> bool {
    let of_card = |xml: &str| {
        project(xml).is_ok_and(|is| {
            let own = |a: &&crate::types::PciAddress| {
                a.slot == slot && facts.pci.get(a).is_none_or(|f| f.virtual_of.is_none())
            };
            is.functions.iter().any(|a| own(&a))
        })
    };
    domain.live_xml.as_deref().filter(|_| domain.active).is_some_and(of_card)
        || is_marked(&domain.inactive_xml) && of_card(&domain.inactive_xml)
}
