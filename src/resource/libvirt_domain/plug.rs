//! One slot into a definition or out of it, and into a running VM or out of it, whoever wrote the definition. As in every
//! edit, all other bytes stay.

use std::collections::BTreeSet;

use roxmltree::{Document, Node};

use super::PassedSlot;
use super::read::{child, devices, function};
use super::splice::{Edits, free_ports, put_slots, take_functions};
use super::write;
use crate::types::{PciAddress, PciSlot, Splice};

/// What puts a slot into a stored definition. What it has of it in parts is put together. `None` where the definition
/// cannot be read or has no place for devices.
pub fn with_slot(xml: &str, slot: &PassedSlot) -> Option<Vec<Splice>> {
    let doc = Document::parse(xml).ok()?;
    let mut edits = Edits::new(xml);
    take_functions(|a| slot.has(a), &doc, &mut edits);
    put_slots(&[slot], &doc, &mut edits)?;
    Some(edits.splices())
}

/// What takes a slot out of a stored definition; its port stays.
pub fn without_slot(xml: &str, slot: PciSlot) -> Option<Vec<Splice>> {
    let doc = Document::parse(xml).ok()?;
    let mut edits = Edits::new(xml);
    take_functions(|a| a.slot == slot, &doc, &mut edits);
    Some(edits.splices())
}

/// The elements that plug a slot into a running VM. libvirt plugs whole guest slots only (it refuses a function other
/// than 0), so each function becomes a device of its own behind a free port; without a port for each, `None`.
pub fn plugs(live: &str, slot: &PassedSlot) -> Option<Vec<String>> {
    let doc = Document::parse(live).ok()?;
    let ports = free_ports(&doc);
    let there: BTreeSet<PciAddress> = devices(&doc, "hostdev").into_iter().filter_map(function).collect();
    let missing = slot.functions.iter().filter(|f| !there.contains(f));
    let missing: Vec<PciAddress> = missing.copied().collect();
    if ports.len() < missing.len() {
        return None;
    }
    let one = |(function, port): (&PciAddress, u32)| {
        let alone = PassedSlot::whole(slot.slot, vec![*function]);
        // Alone in its guest slot it is function 0 there, whatever it is on the host.
        write::hostdev(&alone, *function, Some((port, 0)))
    };
    Some(missing.iter().zip(ports).map(one).collect())
}

/// The elements of a slot in a running VM, where each can be unplugged: libvirt refuses those that share a guest slot with
/// others. `None` where one does.
pub fn unplugs(live: &str, slot: PciSlot) -> Option<Vec<String>> {
    let doc = Document::parse(live).ok()?;
    let hostdevs = devices(&doc, "hostdev");
    let guest = |n: Node<'_, '_>| {
        let at = child(n, "address")?;
        let part = |name| at.attribute(name).map(str::to_owned);
        Some((part("domain"), part("bus")?, part("slot")?))
    };
    let mut all = Vec::new();
    for node in hostdevs.iter().filter(|h| function(**h).is_some_and(|a| a.slot == slot)) {
        let place = guest(*node)?;
        let sharing = hostdevs.iter().filter(|other| guest(**other).as_ref() == Some(&place)).count();
        if sharing > 1 {
            return None;
        }
        all.push(live.get(node.range())?.to_owned());
    }
    Some(all)
}

/// The host function that an element passes.
pub fn passed_function(device: &str) -> Option<PciAddress> {
    function(Document::parse(device).ok()?.root_element())
}
