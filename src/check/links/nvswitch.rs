//! GPUs of a board that are joined by NVSwitches.

use std::collections::BTreeSet;

use super::On;
use crate::check::{Link, Status};
use crate::facts::FABRIC_MANAGER;
use crate::gpu::nvswitch::{Board, Split};
use crate::types::PciSlot;

/// Whether the GPUs of each VM that has this one are as the board's switches can join them.
pub(super) fn nvswitch(on: &On<'_>) -> Option<Link> {
    let board = Board::of(on.facts).filter(|board| board.gpus.contains(&on.gpu.slot))?;
    let switches: Vec<String> = board.switches.iter().map(ToString::to_string).collect();
    let evidence = |link: Link| {
        let seen = if switches.is_empty() { "none that is seen".to_owned() } else { switches.join(" ") };
        let mode = on.facts.fabric_mode.as_ref().map_or("not there".to_owned(), |mode| format!("FABRIC_MODE={mode}"));
        let link = link.seen("/sys/bus/pci/devices", format!("switches: {seen}")).seen(FABRIC_MANAGER, mode);
        match on.asked.modules.get(&on.gpu.slot) {
            Some(id) => link.seen("host.yaml", format!("moduleId: {id}")),
            None => link,
        }
    };
    let alone = [(String::new(), BTreeSet::from([on.gpu.slot]))];
    let vms = if on.asked.vms.is_empty() { &alone[..] } else { &on.asked.vms };
    let one = |(vm, slots): &(String, BTreeSet<PciSlot>)| {
        let named =
            |says: String| if vm.is_empty() { format!("alone in a VM: {says}") } else { format!("{vm}: {says}") };
        match board.split(slots, &on.asked.modules, on.facts) {
            Split::Allowed(says) => Link::new("nvswitch", Status::Ok, named(says)),
            Split::Partition { why, help } | Split::Unknown { why, help } => {
                Link::new("nvswitch", Status::Unknown, named(why)).fix(help)
            }
            Split::Wrong { why, help } => Link::new("nvswitch", Status::Fail, named(why)).fix(help),
        }
    };
    let all: Vec<Link> = vms.iter().map(one).collect();
    let worst = [Status::Fail, Status::Unknown, Status::Ok].into_iter();
    worst.filter_map(|s| all.iter().find(|l| l.status == s)).next().cloned().map(evidence)
}
