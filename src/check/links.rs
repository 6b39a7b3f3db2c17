//! The links of the chain, in the order in which a person would look: what cannot be helped first.

use std::collections::BTreeSet;

use super::next_boot::{Rule, initramfs};
use super::{Asked, Link, Looked, SecureBoot, Status};
use crate::facts::{FABRIC_MANAGER, HostFacts, InitramfsTool, Iommu, PciFunction, SECURE_BOOT, turns_iommu_off};
use crate::gpu::nvswitch::{Board, Split};
use crate::gpu::{Framebuffer, Gpu, GpuKind, Holder, HolderKind};
use crate::types::{PciAddress, PciSlot};

/// What a link is judged from.
pub(super) struct On<'a> {
    pub(super) facts: &'a HostFacts,
    pub(super) looked: &'a Looked,
    pub(super) gpus: &'a [Gpu],
    pub(super) gpu: &'a Gpu,
    pub(super) asked: &'a Asked,
}

/// Every link.
pub(super) fn all(on: &On<'_>) -> Vec<Link> {
    if let Some(kind) = kind(on) {
        return vec![kind];
    }
    let mut links = Vec::new();
    links.extend(identity(on));
    links.push(kvm(on));
    links.push(firmware(on));
    links.push(command_line(on));
    links.extend(remapping(on));
    links.push(group(on));
    links.extend(elsewhere(on));
    links.extend(needed(on));
    links.push(answers(on));
    links.push(driver(on));
    links.extend(holders(on));
    links.push(display(on));
    links.extend(sharing(on));
    links.push(reset(on));
    links.push(memory(on));
    links.push(secure_boot(on));
    links.push(next_boot(on));
    links.extend(next_initramfs(on));
    links.extend(nvswitch(on));
    links.extend(variant(on));
    links
}

/// The card that the manifest's name was bound to before, from gpuvm's own ledger.
fn identity(on: &On<'_>) -> Option<Link> {
    const LEDGER: &str = "/var/lib/gpuvm/ledger.json";
    let Some((why, help)) = &on.asked.another else {
        let recognised = on.asked.recognised.as_ref()?;
        let card = &on.gpu;
        let remembered = card.uuid.as_ref().filter(|_| card.recalled.uuid).or(card.serial.as_ref())?;
        return Some(Link::new("identity", Status::Ok, recognised.clone()).seen(LEDGER, remembered.clone()));
    };
    Some(Link::new("identity", Status::Fail, why.clone()).seen(LEDGER, "another card was bound").fix(help.clone()))
}

/// Parts of the card in other slots are not what makes it pass or fail, and are missed in the guest.
fn elsewhere(on: &On<'_>) -> Option<Link> {
    let parts: Vec<&PciFunction> = on.gpu.elsewhere.iter().filter_map(|a| on.facts.pci.get(a)).collect();
    let left: Vec<&PciFunction> = parts.iter().copied().filter(|f| !on.asked.given.contains(&f.address.slot)).collect();
    let first = parts.first()?;
    let list = parts.iter().map(|f| format!("{} {}", f.address, f.name)).collect::<Vec<_>>().join("; ");
    let link = Link::new("card's parts", Status::Ok, format!("also of this card, in a slot of its own: {list}"))
        .seen(device(first), first.path.clone());
    Some(match left.is_empty() {
        true => link,
        false => link.fix("it stays with the host, and the guest has no sound by it, unless it is named under `devices` with `use: vfio`"),
    })
}

/// Chips whose memory a plain vfio-pci does not show: the ids of drivers/vfio/pci/nvgrace-gpu in the kernel.
fn variant(on: &On<'_>) -> Option<Link> {
    const DRIVER: &str = "nvgrace_gpu_vfio_pci";
    let id = on.gpu.id;
    if id.vendor != 0x10de || !matches!(id.device, 0x2342 | 0x2345 | 0x2348 | 0x2941 | 0x31c2) {
        return None;
    }
    let bound = on.gpu.functions.iter().any(|f| f.driver.as_deref().is_some_and(|d| d.replace('-', "_") == DRIVER));
    let first = device(own(on).first()?);
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

/// The functions of the card itself.
fn own<'a>(on: &On<'a>) -> Vec<&'a PciFunction> {
    on.facts.card(on.gpu.slot).collect()
}

fn device(f: &PciFunction) -> String {
    format!("/sys/bus/pci/devices/{}", f.address)
}

fn kind(on: &On<'_>) -> Option<Link> {
    let first = on.facts.slot(on.gpu.slot).find(|f| f.is_gpu())?;
    let says = match on.gpu.kind {
        GpuKind::Gpu => return None,
        GpuKind::Management => "the display of the board's management controller: the remote console is on it",
        GpuKind::Virtual => "made up by the hypervisor that this host runs on",
    };
    Some(
        Link::new("kind", Status::Fail, says)
            .seen(format!("{}/vendor", device(first)), format!("{:#06x}", first.id.vendor)),
    )
}

fn kvm(on: &On<'_>) -> Link {
    let cpu = &on.facts.cpu;
    match (&cpu.virtualisation, cpu.kvm_device) {
        (_, true) => Link::new("kvm", Status::Ok, "the processor runs VMs").seen("/dev/kvm", "there"),
        (Some(flag), false) if on.facts.modules.contains("kvm_intel") || on.facts.modules.contains("kvm_amd") => {
            Link::new(
                "kvm",
                Status::Fail,
                format!("{flag} is there and KVM's driver loaded, but no /dev/kvm: locked by the firmware"),
            )
            .seen("/dev/kvm", "absent")
            .fix("turn on VT-x or AMD-V (SVM) in the firmware's setup")
        }
        // Kernels before 6.7 or so show `svm` with SVM off in the firmware too: that its driver loads is the proof.
        (Some(flag), false) => {
            let module = if flag == "svm" { "kvm_amd" } else { "kvm_intel" };
            let says = format!("{flag}; whether the firmware allows it is told by KVM's driver, which is not loaded");
            Link::new("kvm", Status::Unknown, says).seen("/proc/cpuinfo", flag.clone()).seen("/dev/kvm", "absent").fix(
                format!(
                    "modprobe {module}, and look again; where it does not load: turn on VT-x or AMD-V (SVM) in the \
                     firmware's setup"
                ),
            )
        }
        (None, false) => Link::new("kvm", Status::Fail, "the processor offers no virtualisation")
            .seen("/proc/cpuinfo", "neither vmx nor svm")
            .seen("/dev/kvm", "absent")
            .fix("turn on VT-x or AMD-V (SVM) in the firmware's setup"),
    }
}

fn firmware(on: &On<'_>) -> Link {
    const TABLES: &str = "/sys/firmware/acpi/tables";
    let tables = on.looked.tables.as_deref();
    let named = |table: &str| match table {
        "DMAR" => "DMAR table (Intel VT-d)",
        "IVRS" => "IVRS table (AMD-Vi)",
        "IORT" => "IORT table (Arm SMMU)",
        _ => "VIOT table (virtual IOMMU)",
    };
    match (tables, &on.facts.iommu) {
        (Some([table, ..]), _) => {
            Link::new("firmware", Status::Ok, named(table)).seen(format!("{TABLES}/{table}"), "there")
        }
        (_, Iommu::On { kind, groups }) => {
            Link::new("firmware", Status::Ok, format!("the kernel uses an IOMMU ({kind})"))
                .seen("/sys/kernel/iommu_groups", format!("{} groups", groups.len()))
        }
        (None, _) => Link::new("firmware", Status::Unknown, "the firmware's tables may not be read (not root)")
            .seen(TABLES, "denied"),
        (Some(_), Iommu::Missing { help, .. } | Iommu::Off { help, .. }) => {
            Link::new("firmware", Status::Fail, "the firmware offers no IOMMU: no DMAR, IVRS or IORT table")
                .seen(TABLES, "none of them")
                .fix(help.clone())
        }
        (Some(_), Iommu::Unknown(why)) => Link::new("firmware", Status::Unknown, why.clone()),
    }
}

/// Whether it turns interrupt remapping off.
pub(super) fn turns_remapping_off(word: &str) -> bool {
    matches!(word, "intremap=off" | "nointremap")
}

fn command_line(on: &On<'_>) -> Link {
    const FILE: &str = "/proc/cmdline";
    let words = &on.facts.kernel.cmdline;
    let find = |wrong: &dyn Fn(&str) -> bool| words.iter().find(|w| wrong(w));
    if let Some(word) = find(&turns_iommu_off) {
        return Link::new("command line", Status::Fail, format!("`{word}` turns the IOMMU off"))
            .seen(FILE, word.clone())
            .fix(format!("take `{word}` out of the boot loader's configuration, and boot again"));
    }
    if let Some(word) = find(&turns_remapping_off) {
        return Link::new(
            "command line",
            Status::Fail,
            format!("`{word}` turns interrupt remapping off: vfio refuses then"),
        )
        .seen(FILE, word.clone())
        .fix(format!("take `{word}` out of the boot loader's configuration, and boot again"));
    }
    if let Some(word) = find(&|w| w.starts_with("pcie_acs_override")) {
        return Link::new(
            "command line",
            Status::Unknown,
            format!("`{word}`: a patched kernel shows groups that hardware does not keep apart"),
        )
        .seen(FILE, word.clone())
        .fix("boot once without it and look at the groups; a stock kernel ignores it");
    }
    if let Iommu::Off { why, help, .. } = &on.facts.iommu
        && on.looked.tables.as_ref().is_some_and(|t| !t.is_empty())
    {
        return Link::new("command line", Status::Fail, why.clone()).seen(FILE, words.join(" ")).fix(help.clone());
    }
    if let Some(word) = find(&|w| w == "gpuvm.off") {
        return Link::new("command line", Status::Unknown, "`gpuvm.off`: early binding is switched off for this boot")
            .seen(FILE, word.clone())
            .fix("boot without it");
    }
    let twins = on.gpus.iter().any(|g| g.slot != on.gpu.slot && g.id == on.gpu.id);
    let ids = on.gpu.id.to_string();
    if let Some(word) =
        find(&|w| (w.starts_with("vfio-pci.ids=") || w.starts_with("vfio_pci.ids=")) && w.contains(&ids))
        && twins
    {
        return Link::new(
            "command line",
            Status::Ok,
            format!("nothing turns the IOMMU off; `{word}` takes every card of this model"),
        )
        .seen(FILE, word.clone())
        .fix("bind by address instead (`use: vfio`), so that the equal card is left alone");
    }
    Link::new("command line", Status::Ok, "nothing turns the IOMMU off").seen(FILE, words.join(" "))
}

fn remapping(on: &On<'_>) -> Option<Link> {
    (on.looked.remaps_interrupts == Some(false)).then(|| {
        Link::new("interrupts", Status::Fail, "the IOMMU does not remap interrupts: vfio refuses then")
            .seen("/sys/firmware/acpi/tables/DMAR", "flags bit 0 is 0")
            .fix("look for interrupt remapping or x2APIC in the firmware's setup")
    })
}

fn shown(f: &PciFunction) -> String {
    let carries: Vec<String> = f.carries.iter().map(ToString::to_string).collect();
    let carries = if carries.is_empty() { String::new() } else { format!(", carries {}", carries.join(", ")) };
    format!("{} {}{carries}", f.address, f.name)
}

fn group(on: &On<'_>) -> Link {
    if !matches!(on.facts.iommu, Iommu::On { .. }) {
        let status = if matches!(on.facts.iommu, Iommu::Unknown(_)) { Status::Unknown } else { Status::Fail };
        return Link::new("group", status, "no groups: the IOMMU is not in use")
            .seen("/sys/kernel/iommu_groups", "empty")
            .fix("turn the IOMMU on, as said above; then it is known what shares a group");
    }
    let functions = own(on);
    if let Some(f) = functions.iter().find(|f| f.group.is_none()) {
        let link = Link::new("group", Status::Fail, format!("{} is in no group", f.address))
            .seen(format!("{}/iommu_group", device(f)), "absent");
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
    if let Some((status, says, fix)) = super::owner::of_group(on) {
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
fn needed(on: &On<'_>) -> Option<Link> {
    let used: Vec<&PciFunction> = own(on).into_iter().filter(|f| !f.carries.is_empty()).collect();
    if used.is_empty() {
        return None;
    }
    let says = format!("the host needs this card: {}", used.iter().map(|f| shown(f)).collect::<Vec<_>>().join("; "));
    Some(
        Link::new("host", Status::Fail, says)
            .seen(
                device(used.first()?),
                used.iter().flat_map(|f| &f.carries).map(ToString::to_string).collect::<Vec<_>>().join(", "),
            )
            .fix("it is never given away"),
    )
}

fn answers(on: &On<'_>) -> Link {
    let slot = on.gpu.slot;
    let file = format!("/sys/bus/pci/devices/{}/power_state", slot.function(0));
    let state = on.gpu.power_state.as_deref();
    match (state, on.looked.dead.get(&slot)) {
        (_, Some(true)) => Link::new("card", Status::Fail, "it does not answer: its registers read as ones (0xff)")
            .seen(format!("/sys/bus/pci/devices/{}/config", slot.function(0)), "ff ff ff ff")
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

fn driver(on: &On<'_>) -> Link {
    let functions = own(on);
    let driver = |f: &PciFunction| f.driver.clone().unwrap_or_else(|| "none".to_owned());
    let all: BTreeSet<String> = functions.iter().map(|f| driver(f)).collect();
    let evidence = |link: Link| functions.iter().fold(link, |l, f| l.seen(format!("{}/driver", device(f)), driver(f)));
    let list =
        functions.iter().map(|f| format!(".{} {}", f.address.function, driver(f))).collect::<Vec<_>>().join(", ");
    let other = functions.iter().find_map(|f| Some((f, f.driver_override.as_ref().filter(|o| *o != "vfio-pci")?)));
    if let Some((f, other)) = other {
        return evidence(Link::new(
            "driver",
            Status::Fail,
            format!("something has set driver_override of {} to `{other}`", f.address),
        ))
        .seen(format!("{}/driver_override", device(f)), other.clone())
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

fn who(h: &Holder) -> String {
    let nodes = h.nodes.iter().map(|n| n.display().to_string()).collect::<Vec<_>>().join(" ");
    let process = h.pid.map_or(h.name.clone(), |pid| format!("{}, pid {pid}, {nodes}", h.name));
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

fn holders(on: &On<'_>) -> Vec<Link> {
    let mut links = Vec::new();
    // A group is one: who uses a GPU that goes along holds this one too.
    let along = on.gpus.iter().filter(|g| g.slot != on.gpu.slot && on.gpu.shares.iter().any(|a| a.slot == g.slot));
    let along = along.filter(|g| on.asked.given.contains(&g.slot)).flat_map(|g| &g.holders);
    for h in on.gpu.holders.iter().chain(along) {
        let source = h.pid.map_or("libvirt".to_owned(), |pid| format!("/proc/{pid}/fd"));
        let value = if h.pid.is_some() {
            h.nodes.iter().map(|n| n.display().to_string()).collect::<Vec<_>>().join(" ")
        } else {
            format!("{} runs", h.name)
        };
        // libvirt's word, not a process's name: that VM is the one that the manifest means.
        if h.kind == HolderKind::Vm && h.pid.is_none() && on.asked.vms.iter().any(|(vm, _)| *vm == h.name) {
            let says = format!("the VM {} has it, to which the manifest gives it", h.name);
            links.push(Link::new("holder", Status::Ok, says).seen(source, value));
            continue;
        }
        let mut link = Link::new("holder", Status::Fail, who(h)).seen(source, value);
        if !h.cgroup.is_empty() {
            link = link.seen(format!("/proc/{}/cgroup", h.pid.unwrap_or_default()), h.cgroup.clone());
        }
        if let Some(release) = &on.asked.shared {
            match is_released(h, release) {
                Some(true) => {
                    link.status = Status::Ok;
                    link.says += "; stopped while a VM has the card";
                    links.push(link);
                    continue;
                }
                None => {
                    link.status = Status::Unknown;
                    link.says += "; whether it is one of those under `release` is not told by its number";
                    links.push(link);
                    continue;
                }
                Some(false) if h.kind != HolderKind::Vm => {
                    let link = link.fix(format!("free it now: {}", release_of(h)));
                    links.push(link.fix("or have it stopped for VMs: name its unit or container under `release`"));
                    continue;
                }
                Some(false) => {}
            }
        }
        link.cured_by_early_binding = h.kind != HolderKind::Vm;
        link = link.fix(format!("free it now: {}", release_of(h)));
        if link.cured_by_early_binding {
            link = link.fix("or at boot: `use: vfio` in host.yaml, and gpuvm apply --reboot");
        }
        links.push(link);
    }
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

fn display(on: &On<'_>) -> Link {
    let first = on.facts.slot(on.gpu.slot).find(|f| f.is_gpu());
    let file = first.map_or(String::new(), |f| format!("{}/boot_vga", device(f)));
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

fn sharing(on: &On<'_>) -> Vec<Link> {
    let sharing = &on.gpu.sharing;
    let dir = format!("/sys/bus/pci/devices/{}", on.gpu.slot.function(0));
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

fn reset(on: &On<'_>) -> Link {
    let file = format!("/sys/bus/pci/devices/{}/reset_method", on.gpu.slot.function(0));
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

/// Rounded up to a tenth, so that what does not fit never looks as if it did.
fn size(bytes: u64) -> String {
    let in_unit = |shift: u32, unit: &str| {
        let tenths = bytes.saturating_mul(10).div_ceil(1 << shift);
        match tenths % 10 {
            0 => format!("{} {unit}", tenths / 10),
            rest => format!("{}.{rest} {unit}", tenths / 10),
        }
    };
    match bytes {
        b if b >= 1 << 40 => in_unit(40, "TiB"),
        b if b >= 1 << 30 => in_unit(30, "GiB"),
        b if b >= 1 << 20 => in_unit(20, "MiB"),
        _ => in_unit(10, "KiB"),
    }
}

/// Whether the card's large windows fit the one that the guest's firmware has for them: an eighth of the address space
/// with OVMF since 2022.11 (`PlatformDynamicMmioWindow`), 32 GiB before; 512 GiB on Arm's `virt` machine.
fn memory(on: &On<'_>) -> Link {
    let slots: BTreeSet<PciSlot> = on
        .asked
        .vms
        .iter()
        .max_by_key(|(_, s)| on.gpus.iter().filter(|g| s.contains(&g.slot)).count())
        .map_or_else(|| BTreeSet::from([on.gpu.slot]), |(_, s)| s.clone());
    let cards: Vec<&Gpu> = on.gpus.iter().filter(|g| slots.contains(&g.slot)).collect();
    let of = |g: &Gpu| g.bars.iter().filter(|b| b.wide).map(|b| b.size).sum::<u64>();
    let file = format!("/sys/bus/pci/devices/{}/resource", on.gpu.slot.function(0));
    if on.gpu.bars.is_empty() {
        return Link::new("memory", Status::Unknown, "the sizes of its windows are not known")
            .seen(file, "absent or empty");
    }
    let all: u64 = cards.iter().map(|g| of(g)).sum();
    let rounded: u64 = cards.iter().map(|g| of(g).next_power_of_two()).sum();
    let largest = on.gpu.bars.iter().map(|b| b.size).max().unwrap_or(0);
    let what = match cards.len() {
        1 => format!("windows of {}", size(all)),
        n => format!("windows of {} on {n} GPUs of one VM", size(all)),
    };
    let link = |status, says: String| {
        Link::new("memory", status, says).seen(file.clone(), format!("largest {}", size(largest)))
    };
    if all == 0 {
        let says = format!("no window that is placed by 64 bits; the largest, of {}, fits any guest", size(largest));
        return link(Status::Ok, says);
    }
    if all <= 16 << 30 {
        return link(Status::Ok, format!("{what} fit the guest's window"));
    }
    let (window, told) = if on.facts.os.arch == "arm64" {
        (512u64 << 30, "the virt machine's window".to_owned())
    } else {
        let recent = |v: &str| {
            v.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok()).take(2).collect::<Vec<_>>()
                >= vec![2022, 11]
        };
        let ovmf = on.facts.package("ovmf").map(|p| recent(&p.version));
        let release = on.facts.os.version.split('.').next().and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
        // What the distribution would bring, where none is installed yet.
        let brings = matches!((on.facts.os.id.as_str(), release), ("debian", 12..) | ("ubuntu", 23..));
        match (ovmf.unwrap_or(brings), on.looked.address_bits) {
            (true, Some(bits)) => {
                (1u64 << bits.min(46).saturating_sub(3), format!("an eighth of {} bits", bits.min(46)))
            }
            (true, None) => return link(Status::Unknown, format!("{what}; the processor's address width is not told")),
            (false, _) => (32u64 << 30, "of OVMF before 2022.11".to_owned()),
        }
    };
    let window_text = format!("the guest's window of {} ({told})", size(window));
    if all > window {
        let fewer = if cards.len() > 1 { "give fewer GPUs to one VM, or turn" } else { "turn" };
        let fail = link(Status::Fail, format!("{what} do not fit {window_text}"))
            .fix(format!("{fewer} Resizable BAR off in the firmware's setup"));
        return if window == 32 << 30 { fail.fix("or use OVMF 2022.11 or later") } else { fail };
    }
    if rounded <= window || cards.len() == 1 && all + (1 << 30) <= window {
        return link(Status::Ok, format!("{what} fit {window_text}"));
    }
    link(Status::Unknown, format!("{what} are tight for {window_text}: it depends on how they are laid out"))
}

fn secure_boot(on: &On<'_>) -> Link {
    match &on.looked.secure_boot {
        SecureBoot::Off(why) => {
            let source = if on.facts.boot.uefi { SECURE_BOOT } else { "/sys/firmware/efi" };
            Link::new("secure boot", Status::Ok, *why).seen(source, if on.facts.boot.uefi { "0" } else { "absent" })
        }
        SecureBoot::Unknown(why) => Link::new("secure boot", Status::Unknown, *why).seen(SECURE_BOOT, "not read"),
        SecureBoot::On => {
            let release = &on.facts.kernel.release;
            let link = |status, says: &str| Link::new("secure boot", status, says).seen(SECURE_BOOT, "1");
            if on.facts.modules.contains("vfio_pci") {
                return link(Status::Ok, "on, and vfio-pci is loaded");
            }
            let package = format!("linux-image-{release}");
            if on.facts.package(&package).is_some() {
                return link(Status::Ok, "on; kernel and vfio-pci are the distribution's own, signed")
                    .seen("dpkg", package);
            }
            link(Status::Unknown, "on; whether this kernel's vfio-pci is signed is not known")
                .seen("dpkg", format!("no {package}"))
                .fix("modprobe vfio-pci, and look again")
        }
    }
}

/// What binds the card early, looked for in the initramfs that starts next.
fn next_initramfs(on: &On<'_>) -> Option<Link> {
    let next = on.looked.next.as_ref()?;
    // Where it cannot be read, the link before this one says what is known.
    let known = next.unpacked().is_some() || next.known_release().is_some();
    let release = next.release.as_ref().filter(|_| known);
    release?;
    let own = |rule: &Rule| on.gpu.functions.iter().any(|f| rule.functions.contains(&f.address));
    next.rules.iter().any(own).then(|| initramfs(next, on.facts, &own))
}

fn next_boot(on: &On<'_>) -> Link {
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

/// Whether the GPUs of each VM that has this one are as the board's switches can join them.
fn nvswitch(on: &On<'_>) -> Option<Link> {
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
