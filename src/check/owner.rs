//! Who owns a GPU's IOMMU group: a group goes to one VM at a time, so that neighbours which the manifest gives to another VM
//! stand in the way, though they are for VMs too.

use std::collections::BTreeSet;

use super::Status;
use super::links::On;
use crate::types::PciSlot;

/// What the manifest's VMs mean for the group, where its neighbours are not with those VMs that have the card.
pub(super) fn of_group(on: &On<'_>) -> Option<(Status, String, &'static str)> {
    const FIX: &str = "give both to one VM; in another slot, or with ACS in the firmware's setup, the card may have a group \
                       of its own";
    let (with, without) = (&on.asked.vms, &on.asked.other_vms);
    let runs = |vm: &str| on.asked.running.contains(vm);
    let numbers = on.gpu.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    // Two VMs that both have the card are in each other's way by that already.
    let neighbour = |slots: &BTreeSet<PciSlot>| on.gpu.shares.iter().map(|f| f.slot).find(|slot| slots.contains(slot));
    let apart: Vec<_> = without.iter().filter_map(|(vm, slots)| Some((vm, neighbour(slots)?))).collect();
    let card = with.iter().find(|(vm, _)| runs(vm)).or(with.first()).map(|(vm, _)| vm);
    let (other, slot) = apart.iter().find(|(vm, _)| runs(vm)).or(apart.first())?;
    Some(match card {
        None => (
            Status::Unknown,
            format!("VM `{other}` has {slot} of group {numbers}: while it runs, this card can go to no other VM"),
            FIX,
        ),
        Some(card) if runs(card) && runs(other) => (
            Status::Fail,
            format!(
                "VM `{card}` has this card, and VM `{other}` has {slot} of the same group {numbers}: a group goes to one VM at \
                 a time, and both are to run"
            ),
            "give both to one VM, or write `start: manual` for one of the two; in another slot, or with ACS in the \
             firmware's setup, the card may have a group of its own",
        ),
        Some(card) => (
            Status::Unknown,
            format!(
                "VM `{card}` has this card, and VM `{other}` has {slot} of the same group {numbers}: while one of them runs, the \
                 other does not start"
            ),
            FIX,
        ),
    })
}
