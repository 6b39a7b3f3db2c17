//! Whose the card is at the next boot.

use super::On;
use crate::check::next_boot::{Rule, initramfs};
use crate::check::{Link, Status};
use crate::facts::InitramfsTool;
use crate::types::PciAddress;

pub(super) fn next_boot(on: &On<'_>) -> Link {
    let bound = on.gpu.functions.iter().all(|f| f.driver.as_deref() == Some("vfio-pci"));
    let taken = |a: &PciAddress| on.facts.pci.get(a).is_some_and(|f| on.looked.rules.iter().any(|r| r.takes(f)));
    let ours = on.gpu.functions.iter().all(|f| taken(&f.address));
    let id = on.gpu.id.to_string();
    let by_id = on.looked.by_id.iter().find(|(_, line)| line.contains(&id));
    let rules = "/etc/udev/rules.d";
    let twins = on.gpus.iter().any(|g| g.slot != on.gpu.slot && g.id == on.gpu.id);
    if on.asked.shared.is_some() && !ours && by_id.is_none() {
        return Link::new("next boot", Status::Ok, "the host's: its own drivers take it, until a VM starts with it")
            .seen(rules, "nothing for this card");
    }
    match (bound, ours, by_id) {
        (true, true, _) => Link::new("next boot", Status::Ok, "bound early by gpuvm's rules, as at this boot")
            .seen(rules, "61-gpuvm-vfio-*"),
        (false, true, _) => {
            Link::new("next boot", Status::Unknown, "gpuvm's rules are written; a boot with them has not been seen")
                .seen(rules, "61-gpuvm-vfio-*")
                .fix("reboot, and look again")
        }
        (_, false, Some((file, line))) if twins => {
            Link::new("next boot", Status::Ok, "bound by id, and so is every card of this model")
                .seen(file.clone(), line.clone())
                .fix("`use: vfio` binds by address; then remove this line")
        }
        (_, false, Some((file, line))) => {
            Link::new("next boot", Status::Ok, "bound by id").seen(file.clone(), line.clone())
        }
        (true, false, None) => Link::new(
            "next boot",
            Status::Unknown,
            "on vfio-pci now, by something that gpuvm did not find: it may not be so again",
        )
        .seen(rules, "nothing of gpuvm")
        .fix("`use: vfio` in host.yaml keeps it so"),
        (false, false, None) if on.facts.boot.initramfs == InitramfsTool::InitramfsTools => {
            Link::new("next boot", Status::Ok, "its own drivers take it, until `use: vfio` and gpuvm apply")
                .seen("dpkg", "initramfs-tools")
        }
        (false, false, None) => {
            let tool = match on.facts.boot.initramfs {
                InitramfsTool::Dracut => "dracut",
                _ => "no initramfs-tools",
            };
            Link::new("next boot", Status::Unknown, format!("{tool} here: gpuvm binds early with initramfs-tools only"))
                .seen("dpkg", tool)
                .fix("libvirt can still bind it when a VM starts, while nobody holds it")
        }
    }
}

/// What binds the card early, looked for in the initramfs that starts next.
pub(super) fn next_initramfs(on: &On<'_>) -> Option<Link> {
    let next = on.looked.next.as_ref()?;
    // Where it cannot be read, the link before this one says what is known.
    let known = next.unpacked().is_some() || next.known_release().is_some();
    let release = next.release.as_ref().filter(|_| known);
    release?;
    let own = |rule: &Rule| on.gpu.functions.iter().any(|f| rule.functions.contains(&f.address));
    next.rules.iter().any(own).then(|| initramfs(next, on.facts, &own))
}
