//! The IOMMU group: what would go to a VM along with the card, and what of it the host needs.

use super::{On, device, own};
use crate::check::{Link, Status};
use crate::facts::{Iommu, PciFunction};

pub(super) fn group(on: &On<'_>) -> Link {
    if !matches!(on.facts.iommu, Iommu::On { .. }) {
        let status = if matches!(on.facts.iommu, Iommu::Unknown(_)) { Status::Unknown } else { Status::Fail };
        return Link::new("group", status, "no groups: the IOMMU is not in use")
            .seen("/sys/kernel/iommu_groups", "empty")
            .fix("turn the IOMMU on, as said above; then it is known what shares a group");
    }
    let functions = own(on);
    if let Some(f) = functions.iter().find(|f| f.group.is_none()) {
        let link = Link::new("group", Status::Fail, format!("{} is in no group", f.address))
            .seen(format!("{}/iommu_group", device(f.address)), "absent");
        return match f.id.vendor {
            // CONFIG_INTEL_IOMMU_DEFAULT_ON_INTGPU_OFF: Debian's kernels leave Intel's integrated GPU out.
            0x8086 => link.fix(
                "`use: vfio` puts `intel_iommu=on` on the kernel's command line, for the next boot: some kernels leave \
                 Intel's own GPU out without it",
            ),
            _ => link.fix("look for this address in `dmesg`"),
        };
    }
    let numbers = on.gpu.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let evidence = |link: Link| {
        on.gpu.groups.iter().fold(link, |link, g| {
            let members = on.facts.pci.values().filter(|f| f.group == Some(*g)).map(|f| f.address.to_string());
            link.seen(format!("/sys/kernel/iommu_groups/{g}/devices"), members.collect::<Vec<_>>().join(" "))
        })
    };
    let neighbours: Vec<&PciFunction> = on.gpu.shares.iter().filter_map(|a| on.facts.pci.get(a)).collect();
    let foreign: Vec<&PciFunction> =
        neighbours.iter().copied().filter(|f| !on.asked.given.contains(&f.address.slot)).collect();
    if let Some((group, region)) = on.gpu.groups.iter().find_map(|g| Some((g, on.looked.firm_regions.get(g)?))) {
        return Link::new(
            "group",
            Status::Fail,
            "the firmware keeps memory of this group for itself (RMRR): it cannot be given away",
        )
        .seen(format!("/sys/kernel/iommu_groups/{group}/reserved_regions"), region.clone())
        .fix("look for a setting such as shared memory or management features of this slot in the firmware's setup");
    }
    if !foreign.is_empty() {
        let says = format!(
            "group {numbers} is shared with {}",
            foreign.iter().map(|f| shown(f)).collect::<Vec<_>>().join("; ")
        );
        let link = evidence(Link::new("group", Status::Fail, says));
        let host: Vec<_> = foreign.iter().filter(|f| !f.carries.is_empty()).collect();
        return match host.is_empty() {
            false => link.fix("a group moves as a whole, and the host needs this one: put the card into another slot, or look for ACS in the firmware's setup"),
            true => link
                .fix("put the card into another slot, or look for ACS in the firmware's setup")
                .fix("or give the neighbours away too: name them under `devices` (GPUs under `gpus`) with `use: vfio`"),
        };
    }
    if let Some((status, says, fix)) = crate::check::owner::of_group(on) {
        return evidence(Link::new("group", status, says)).fix(fix);
    }
    let ports: Vec<String> = on
        .facts
        .pci
        .values()
        .filter(|f| f.is_bridge() && f.group.is_some_and(|g| on.gpu.groups.contains(&g)))
        .map(|f| f.address.to_string())
        .collect();
    let own: Vec<String> = on.gpu.functions.iter().map(|f| f.address.to_string()).collect();
    let mut says = format!("{}: {}", numbers, own.join(" "));
    if !neighbours.is_empty() {
        let all: Vec<String> = neighbours.iter().map(|f| f.address.to_string()).collect();
        says += &format!(", and {}, which the manifest gives away too", all.join(" "));
    } else {
        says += ", nothing else";
    }
    if !ports.is_empty() {
        let (word, verb) = if ports.len() == 1 { ("port", "stays") } else { ("ports", "stay") };
        says += &format!(" (the {word} {} {verb} with the host)", ports.join(", "));
    }
    if let Some(kernel) = &on.looked.newer_kernel {
        return evidence(Link::new(
            "group",
            Status::Unknown,
            format!("{says}; but {kernel} starts next, and may group otherwise"),
        ))
        .seen("/boot", format!("vmlinuz-{kernel}"))
        .fix("reboot, and look again");
    }
    if !on.looked.regions_read {
        let link = evidence(Link::new(
            "group",
            Status::Unknown,
            format!("{says}; whether the firmware keeps memory of it could not be told"),
        ));
        return link.seen("/sys/kernel/iommu_groups/*/reserved_regions", "absent, or not recorded");
    }
    evidence(Link::new("group", Status::Ok, says))
}

/// What of the host is on the slot itself.
pub(super) fn needed(on: &On<'_>) -> Option<Link> {
    let used: Vec<&PciFunction> = own(on).into_iter().filter(|f| !f.carries.is_empty()).collect();
    if used.is_empty() {
        return None;
    }
    let says = format!("the host needs this card: {}", used.iter().map(|f| shown(f)).collect::<Vec<_>>().join("; "));
    Some(
        Link::new("host", Status::Fail, says)
            .seen(
                device(used.first()?.address),
                used.iter().flat_map(|f| &f.carries).map(ToString::to_string).collect::<Vec<_>>().join(", "),
            )
            .fix("it is never given away"),
    )
}

/// Parts of the card in other slots are not what makes it pass or fail, and are missed in the guest.
pub(super) fn elsewhere(on: &On<'_>) -> Option<Link> {
    let parts: Vec<&PciFunction> = on.gpu.elsewhere.iter().filter_map(|a| on.facts.pci.get(a)).collect();
    let left: Vec<&PciFunction> = parts.iter().copied().filter(|f| !on.asked.given.contains(&f.address.slot)).collect();
    let first = parts.first()?;
    let list = parts.iter().map(|f| format!("{} {}", f.address, f.name)).collect::<Vec<_>>().join("; ");
    let link = Link::new("card's parts", Status::Ok, format!("also of this card, in a slot of its own: {list}"))
        .seen(device(first.address), first.path.clone());
    Some(match left.is_empty() {
        true => link,
        false => link.fix("it stays with the host, and the guest has no sound by it, unless it is named under `devices` with `use: vfio`"),
    })
}

fn shown(f: &PciFunction) -> String {
    let carries: Vec<String> = f.carries.iter().map(ToString::to_string).collect();
    let carries = if carries.is_empty() { String::new() } else { format!(", carries {}", carries.join(", ")) };
    format!("{} {}{carries}", f.address, f.name)
}
