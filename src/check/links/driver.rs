//! Which driver the card has, and which one it needs.

use std::collections::BTreeSet;

use super::{On, device, own};
use crate::check::{Link, SecureBoot, Status};
use crate::facts::PciFunction;

pub(super) fn driver(on: &On<'_>) -> Link {
    let functions = own(on);
    let driver = |f: &PciFunction| f.driver.clone().unwrap_or_else(|| "none".to_owned());
    let all: BTreeSet<String> = functions.iter().map(|f| driver(f)).collect();
    let evidence =
        |link: Link| functions.iter().fold(link, |l, f| l.seen(format!("{}/driver", device(f.address)), driver(f)));
    let list =
        functions.iter().map(|f| format!(".{} {}", f.address.function, driver(f))).collect::<Vec<_>>().join(", ");
    let other = functions.iter().find_map(|f| Some((f, f.driver_override.as_ref().filter(|o| *o != "vfio-pci")?)));
    if let Some((f, other)) = other {
        return evidence(Link::new(
            "driver",
            Status::Fail,
            format!("something has set driver_override of {} to `{other}`", f.address),
        ))
        .seen(format!("{}/driver_override", device(f.address)), other.clone())
        .fix("find and remove what sets it (driverctl, a udev rule)");
    }
    if on.looked.has_vfio == Some(false) {
        return evidence(Link::new(
            "driver",
            Status::Fail,
            format!("the kernel {} has no vfio-pci", on.facts.kernel.release),
        ))
        .seen(format!("/lib/modules/{}/modules.dep", on.facts.kernel.release), "no vfio-pci")
        .fix("install the distribution's full kernel (linux-image-amd64, linux-generic)");
    }
    let is_vfio = |d: &String| d == "vfio-pci" || d.ends_with("_vfio_pci") || d.ends_with("-vfio-pci");
    if all.iter().all(is_vfio) {
        return evidence(Link::new(
            "driver",
            Status::Ok,
            format!("all functions on {}", all.into_iter().collect::<Vec<_>>().join(", ")),
        ));
    }
    if all.iter().any(is_vfio) && on.asked.shared.is_some() {
        return evidence(Link::new("driver", Status::Fail, format!("half handed over: {list}")))
            .fix("gpuvm apply gives it back to the host, and so does the next VM that ends with it");
    }
    if all.iter().any(is_vfio) {
        return evidence(Link::new("driver", Status::Fail, format!("half bound: {list}")))
            .fix("bind all functions or none: `use: vfio` does, at the next boot")
            .early();
    }
    if on.looked.has_vfio.is_none() {
        return evidence(Link::new(
            "driver",
            Status::Unknown,
            format!("{list}; whether the kernel has vfio-pci could not be told"),
        ))
        .seen(format!("/lib/modules/{}", on.facts.kernel.release), "not there, or not recorded");
    }
    let dkms =
        on.facts.packages.value().into_iter().flatten().find(|(n, p)| p.installed && n.starts_with("nvidia-dkms"));
    if let (Some((package, _)), SecureBoot::On, true, 0x10de) =
        (dkms, &on.looked.secure_boot, all.iter().all(|d| d == "none" || d == "snd_hda_intel"), on.gpu.id.vendor)
    {
        return evidence(Link::new("driver", Status::Ok, format!("{list}: {package} is installed and its module not loaded; secure boot refuses unsigned ones. vfio-pci does not need it")))
            .fix("only for the host's own use: enrol the key with mokutil, or install the signed modules");
    }
    let held = if all.iter().all(|d| d == "none") { "free" } else { "vfio-pci takes its place" };
    evidence(Link::new("driver", Status::Ok, format!("{list}; {held}")))
}

/// Chips whose memory a plain vfio-pci does not show: the ids of drivers/vfio/pci/nvgrace-gpu in the kernel.
pub(super) fn variant(on: &On<'_>) -> Option<Link> {
    const DRIVER: &str = "nvgrace_gpu_vfio_pci";
    let id = on.gpu.id;
    if id.vendor != 0x10de || !matches!(id.device, 0x2342 | 0x2345 | 0x2348 | 0x2941 | 0x31c2) {
        return None;
    }
    let bound = on.gpu.functions.iter().any(|f| f.driver.as_deref().is_some_and(|d| d.replace('-', "_") == DRIVER));
    let first = device(own(on).first()?.address);
    Some(match bound {
        true => Link::new("variant", Status::Ok, format!("on {DRIVER}, which shows its memory"))
            .seen(format!("{first}/driver"), DRIVER),
        false => Link::new(
            "variant",
            Status::Unknown,
            format!("its memory is shown to a guest by {DRIVER} only, not by vfio-pci"),
        )
        .seen(format!("{first}/device"), format!("{:#06x}", id.device))
        .fix("libvirt 10 and later take that driver where the kernel has it; see a VM start with it"),
    })
}
