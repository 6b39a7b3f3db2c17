//! The card itself: whether it is one that can be passed, answers, shows the console, is shared already, comes back from a VM.

use super::{On, device};
use crate::check::{Link, Status};
use crate::gpu::{Framebuffer, GpuKind};

pub(super) fn kind(on: &On<'_>) -> Option<Link> {
    let first = on.facts.slot(on.gpu.slot).find(|f| f.is_gpu())?;
    let says = match on.gpu.kind {
        GpuKind::Gpu => return None,
        GpuKind::Management => "the display of the board's management controller: the remote console is on it",
        GpuKind::Virtual => "made up by the hypervisor that this host runs on",
    };
    Some(
        Link::new("kind", Status::Fail, says)
            .seen(format!("{}/vendor", device(first.address)), format!("{:#06x}", first.id.vendor)),
    )
}

/// The card that the manifest's name was bound to before, from gpuvm's own ledger.
pub(super) fn identity(on: &On<'_>) -> Option<Link> {
    const LEDGER: &str = "/var/lib/gpuvm/ledger.json";
    let Some((why, help)) = &on.asked.another else {
        let recognised = on.asked.recognised.as_ref()?;
        let card = &on.gpu;
        let remembered = card.uuid.as_ref().filter(|_| card.recalled.uuid).or(card.serial.as_ref())?;
        return Some(Link::new("identity", Status::Ok, recognised.clone()).seen(LEDGER, remembered.clone()));
    };
    Some(Link::new("identity", Status::Fail, why.clone()).seen(LEDGER, "another card was bound").fix(help.clone()))
}

pub(super) fn answers(on: &On<'_>) -> Link {
    let slot = on.gpu.slot;
    let card = device(slot.function(0));
    let file = format!("{card}/power_state");
    let state = on.gpu.power_state.as_deref();
    match (state, on.looked.dead.get(&slot)) {
        (_, Some(true)) => Link::new("card", Status::Fail, "it does not answer: its registers read as ones (0xff)")
            .seen(format!("{card}/config"), "ff ff ff ff")
            .fix("switch the host off, wait, and on again; look for `Xid` and `fallen off the bus` in `dmesg`"),
        (Some("D0"), Some(false)) => Link::new("card", Status::Ok, "awake, and answers").seen(file, "D0"),
        (Some("D0"), None) => Link::new("card", Status::Ok, "awake").seen(file, "D0"),
        (Some(state @ ("D3hot" | "D3cold" | "D1" | "D2")), _) => {
            Link::new("card", Status::Ok, format!("asleep ({state}); not woken to look, vfio wakes it"))
                .seen(file, state)
        }
        (Some(state), _) => {
            Link::new("card", Status::Unknown, format!("its power state is `{state}`")).seen(file, state)
        }
        (None, _) => Link::new("card", Status::Unknown, "its power state is not told").seen(file, "absent"),
    }
}

pub(super) fn display(on: &On<'_>) -> Link {
    let first = on.facts.slot(on.gpu.slot).find(|f| f.is_gpu());
    let file = first.map_or(String::new(), |f| format!("{}/boot_vga", device(f.address)));
    match (on.looked.framebuffers.get(&on.gpu.slot), on.gpu.boot_display) {
        (Some(Framebuffer::OnCard(what)), _) => Link::new(
            "display",
            Status::Fail,
            "the firmware's framebuffer lies in its memory: vfio cannot reserve that (`can't reserve`)",
        )
        .seen("/proc/iomem", what.clone())
        .fix("make another card the boot display in the firmware's setup")
        .fix("or let its own driver start first, so that it takes the framebuffer over; the cure differs by card"),
        (Some(Framebuffer::Somewhere(why)), true) => Link::new(
            "display",
            Status::Unknown,
            format!("boot display, and the console draws into the firmware's framebuffer: {why}"),
        )
        .seen(file, "1")
        .fix("run it as root, or make another card the boot display"),
        (_, true) => Link::new(
            "display",
            Status::Unknown,
            "the boot display: its screen goes dark, and some cards then show nothing in a guest without a copy of their ROM",
        )
        .seen(file, "1")
        .fix("make another card the boot display in the firmware's setup, or keep a way in by ssh or serial console")
        .fix(format!(
            "where a guest's screen stays dark: virsh edit its VM, and put `<rom file='/PATH'/>` into the hostdev of {}; gpuvm \
             keeps it there",
            first.map_or(on.gpu.slot.function(0), |f| f.address)
        )),
        (_, false) => Link::new("display", Status::Ok, "not the boot display").seen(file, "0"),
    }
}

pub(super) fn sharing(on: &On<'_>) -> Vec<Link> {
    let sharing = &on.gpu.sharing;
    let dir = device(on.gpu.slot.function(0));
    let mut links = Vec::new();
    if !sharing.vgpus.is_empty() {
        let types: Vec<String> = sharing.vgpus.iter().map(|(f, t)| format!("{f}: {t}")).collect();
        links.push(
            Link::new("sharing", Status::Fail, format!("{} vGPUs are made of it", sharing.vgpus.len()))
                .seen("nvidia/current_vgpu_type", types.join(", "))
                .fix("take `vgpu` out of host.yaml, or write 0 there, once no VM has them"),
        );
    }
    if sharing.virtual_functions > 0 {
        let nvidia = on.gpu.id.vendor == 0x10de;
        let fix = if nvidia { "sriov-manage -d takes them away" } else { "write 0 there" };
        links.push(
            Link::new(
                "sharing",
                Status::Fail,
                format!(
                    "{} virtual functions are on: they go when this function is unbound",
                    sharing.virtual_functions
                ),
            )
            .seen(format!("{dir}/sriov_numvfs"), sharing.virtual_functions.to_string())
            .fix(format!("{fix} once nobody uses them")),
        );
    }
    if !sharing.mediated.is_empty() {
        links.push(
            Link::new("sharing", Status::Fail, format!("{} vGPUs are made of it", sharing.mediated.len()))
                .seen(dir.clone(), sharing.mediated.join(" "))
                .fix("remove them (mdevctl) before the whole card is given away"),
        );
    }
    if !sharing.mig_instances.is_empty() {
        links.push(
            Link::new(
                "sharing",
                Status::Fail,
                format!("{} MIG instances are made of it, which go with the driver", sharing.mig_instances.len()),
            )
            .seen("/proc/driver/nvidia/capabilities", sharing.mig_instances.join(" "))
            .fix(match on.asked.mig {
                true => "take `mig` out of host.yaml and apply, once nobody uses them",
                false => "nvidia-smi mig -dci, then -dgi, then -mig 0, once nobody uses them",
            }),
        );
    }
    for link in &mut links {
        link.cured_by_early_binding = true;
    }
    links
}

pub(super) fn reset(on: &On<'_>) -> Link {
    let file = format!("{}/reset_method", device(on.gpu.slot.function(0)));
    let reset = &on.gpu.reset;
    let listed = reset.methods.as_ref().map_or("absent".to_owned(), |m| m.join(" "));
    let any = reset.methods.as_ref().is_some_and(|m| !m.is_empty());
    if let Some(seen) = &reset.seen {
        let with =
            if seen.kernel == on.facts.kernel.release { String::new() } else { format!(", last with {}", seen.kernel) };
        let remembered = seen.file.display().to_string();
        if seen.lost {
            return Link::new("reset", Status::Fail, format!("it did not answer after VM `{}` had it{with}", seen.vm))
                .fix("a boot of the host with its power cut brings most cards back; a start and stop that works counts again")
                .seen(remembered, "lost")
                .seen(file, listed);
        }
        let times = if seen.cycles == 1 { "a VM".to_owned() } else { format!("{} VMs", seen.cycles) };
        return Link::new("reset", Status::Ok, format!("seen to come back from {times}{with}"))
            .seen(remembered, format!("{} cycles", seen.cycles))
            .seen(file, listed);
    }
    let link = match (any, reset.bus_is_its_own) {
        (true, _) => Link::new(
            "reset",
            Status::Unknown,
            format!("{listed} listed; never seen to work on this card (no VM was stopped with it)"),
        ),
        (false, true) => Link::new(
            "reset",
            Status::Unknown,
            "no method listed; vfio can reset the bus under its port, which was never seen to work",
        ),
        (false, false) if on.gpu.path.starts_with("pci:") => {
            Link::new("reset", Status::Fail, "no way to reset it: no method listed, and no port above it that could")
                .fix("it would work once after each boot of the host; look who wrote to reset_method")
        }
        (false, false) => {
            Link::new("reset", Status::Fail, "no way to reset it: no method listed, and others are on its bus")
                .fix("it would work once after each boot of the host; put it into a slot of its own")
        }
    };
    link.seen(file, listed)
}
