//! What the host has to offer: processor, firmware, command line, secure boot.

use super::On;
use crate::check::{Link, SecureBoot, Status};
use crate::facts::{Iommu, SECURE_BOOT, turns_iommu_off};

pub(super) fn kvm(on: &On<'_>) -> Link {
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

pub(super) fn firmware(on: &On<'_>) -> Link {
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

pub(super) fn command_line(on: &On<'_>) -> Link {
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

/// Whether it turns interrupt remapping off.
pub(in crate::check) fn turns_remapping_off(word: &str) -> bool {
    matches!(word, "intremap=off" | "nointremap")
}

pub(super) fn remapping(on: &On<'_>) -> Option<Link> {
    (on.looked.remaps_interrupts == Some(false)).then(|| {
        Link::new("interrupts", Status::Fail, "the IOMMU does not remap interrupts: vfio refuses then")
            .seen("/sys/firmware/acpi/tables/DMAR", "flags bit 0 is 0")
            .fix("look for interrupt remapping or x2APIC in the firmware's setup")
    })
}

pub(super) fn secure_boot(on: &On<'_>) -> Link {
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
