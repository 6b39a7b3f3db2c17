//! Who has the card open, and how they are made to let go of it.

use super::On;
use crate::check::{Link, Status};
use crate::gpu::{Holder, HolderKind};

pub(super) fn holders(on: &On<'_>) -> Vec<Link> {
    // A group is one: who uses a GPU that goes along holds this one too.
    let along = on.gpus.iter().filter(|g| g.slot != on.gpu.slot && on.gpu.shares.iter().any(|a| a.slot == g.slot));
    let along = along.filter(|g| on.asked.given.contains(&g.slot)).flat_map(|g| &g.holders);
    let mut links: Vec<Link> = on.gpu.holders.iter().chain(along).map(|h| holder(on, h)).collect();
    // Without a driver there are no nodes that anyone could have open.
    let undriven = on.gpu.functions.iter().all(|f| f.driver.is_none());
    match (&on.gpu.hidden_holders, links.is_empty()) {
        (_, true) if undriven => links.push(Link::new("holder", Status::Ok, "no driver, so nobody can use it")),
        (Some(why), _) => links.push(
            Link::new(
                "holder",
                Status::Unknown,
                if links.is_empty() { why.clone() } else { format!("there may be more: {why}") },
            )
            .seen("/proc/*/fd", "not all")
            .fix(match why {
                why if why.contains("not root") => "run it as root",
                why if why.contains("container") => "run it on the host itself",
                why if why.contains("the driver does not tell") => "end that process, and look again",
                _ => "put that right, and look again",
            }),
        ),
        (None, true) => {
            // NVIDIA's driver ends the mode itself when a card is taken from it (nv-pci.c of its open modules, and nv.c of
            // drivers from before those): it is no use that the removal would wait for, as an open file is.
            let of_nvidia = on.gpu.functions.iter().any(|f| f.driver.as_deref() == Some("nvidia"));
            let says = match of_nvidia {
                true => "nobody has it open; persistence mode, where nvidia-smi set it, ends as its driver lets it go",
                false => "nobody has it open",
            };
            links.push(Link::new("holder", Status::Ok, says).seen("/proc/*/fd", "none of its nodes"))
        }
        (None, false) => {}
    }
    links
}

/// How it stands with one of them.
fn holder(on: &On<'_>, h: &Holder) -> Link {
    let source = h.pid.map_or("libvirt".to_owned(), |pid| format!("/proc/{pid}/fd"));
    let value = if h.pid.is_some() { nodes(h) } else { format!("{} runs", h.name) };
    // libvirt's word, not a process's name: that VM is the one that the manifest means.
    if h.kind == HolderKind::Vm && h.pid.is_none() && on.asked.vms.iter().any(|(vm, _)| *vm == h.name) {
        let says = format!("the VM {} has it, to which the manifest gives it", h.name);
        return Link::new("holder", Status::Ok, says).seen(source, value);
    }
    let mut link = Link::new("holder", Status::Fail, who(h)).seen(source, value);
    if !h.cgroup.is_empty() {
        link = link.seen(format!("/proc/{}/cgroup", h.pid.unwrap_or_default()), h.cgroup.clone());
    }
    let now = format!("free it now: {}", release_of(h));
    if let Some(release) = &on.asked.shared {
        match is_released(h, release) {
            Some(true) => {
                link.status = Status::Ok;
                link.says += "; stopped while a VM has the card";
                return link;
            }
            None => {
                link.status = Status::Unknown;
                link.says += "; whether it is one of those under `release` is not told by its number";
                return link;
            }
            Some(false) if h.kind != HolderKind::Vm => {
                return link.fix(now).fix("or have it stopped for VMs: name its unit or container under `release`");
            }
            Some(false) => {}
        }
    }
    link.cured_by_early_binding = h.kind != HolderKind::Vm;
    link = link.fix(now);
    match link.cured_by_early_binding {
        true => link.fix("or at boot: `use: vfio` in host.yaml, and gpuvm apply --reboot"),
        false => link,
    }
}

/// The nodes that it has open.
fn nodes(h: &Holder) -> String {
    h.nodes.iter().map(|n| n.display().to_string()).collect::<Vec<_>>().join(" ")
}

/// Whether the manifest has this holder stopped for a VM; not known of a container, which is named by its number here.
fn is_released(h: &Holder, release: &[String]) -> Option<bool> {
    let by_name = |name: &str| release.iter().any(|r| r == name);
    match &h.kind {
        HolderKind::Vm => Some(false),
        HolderKind::Service(unit) if by_name(unit) => Some(true),
        HolderKind::Container { engine, .. } if release.iter().any(|r| r.starts_with(&format!("{engine}:"))) => None,
        _ => Some(h.cgroup.split('/').any(|part| part.ends_with(".service") && by_name(part))),
    }
}

fn who(h: &Holder) -> String {
    let process = h.pid.map_or(h.name.clone(), |pid| format!("{}, pid {pid}, {}", h.name, nodes(h)));
    match &h.kind {
        HolderKind::Vm if h.pid.is_none() => format!("the VM {process}"),
        HolderKind::Vm => format!("a VM: {process}"),
        HolderKind::Container { engine, id } => format!("{engine} container {id}: {process}"),
        HolderKind::DisplayServer => format!("the desktop: {process}"),
        HolderKind::Persistence => format!("NVIDIA's persistence daemon: {process}"),
        HolderKind::Mps => format!("CUDA's MPS: {process}"),
        HolderKind::Service(unit) => format!("{unit}: {process}"),
        HolderKind::Process => process,
    }
}

fn release_of(h: &Holder) -> String {
    match &h.kind {
        HolderKind::Vm if h.pid.is_none() => format!("virsh shutdown {}", h.name),
        HolderKind::Vm => "shut that VM down".to_owned(),
        HolderKind::Container { engine: engine @ ("docker" | "podman"), id } => format!("{engine} stop {id}"),
        HolderKind::Container { engine, id } => format!("stop the {engine} container {id}"),
        HolderKind::DisplayServer => "systemctl isolate multi-user.target".to_owned(),
        HolderKind::Persistence => "systemctl stop nvidia-persistenced".to_owned(),
        HolderKind::Mps => "echo quit | nvidia-cuda-mps-control".to_owned(),
        HolderKind::Service(unit) => format!("systemctl stop {unit}"),
        HolderKind::Process => format!("end process {}", h.pid.unwrap_or_default()),
    }
}
