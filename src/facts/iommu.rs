//! Whether the IOMMU is on, and where it is not, why and what would help.

use std::collections::BTreeMap;

use super::os::{exists, names, text};
use super::{Iommu, Kernel};
use crate::host::{Answer, Probe};
use crate::types::PciAddress;

/// Groups in sysfs mean on; the ACPI tables DMAR (Intel) and IVRS (AMD) mean that the firmware offers one.
pub(super) fn iommu(probe: &dyn Probe, kernel: &Kernel) -> Iommu {
    const GROUPS: &str = "/sys/kernel/iommu_groups";
    let groups: BTreeMap<u32, Vec<PciAddress>> = names(probe, GROUPS)
        .iter()
        .filter_map(|name| name.parse().ok())
        .map(|group: u32| {
            let members = names(probe, &format!("{GROUPS}/{group}/devices"));
            (group, members.iter().filter_map(|m| m.parse().ok()).collect())
        })
        .collect();
    // Groups that vfio makes up where there is no IOMMU (`enable_unsafe_noiommu_mode`) isolate nothing.
    let made_up = |g: &u32| text(probe, &format!("{GROUPS}/{g}/name")).trim() == "vfio-noiommu";
    let groups: BTreeMap<_, _> = groups.into_iter().filter(|(g, _)| !made_up(g)).collect();
    if !groups.is_empty() {
        let units = names(probe, "/sys/class/iommu");
        let kind = match units.first() {
            Some(unit) if unit.starts_with("dmar") => "intel",
            Some(unit) if unit.starts_with("ivhd") => "amd",
            Some(unit) if unit.starts_with("smmu") || unit.starts_with("arm-smmu") => "arm",
            Some(unit) => unit,
            None => "unknown kind",
        };
        return Iommu::On { kind: kind.to_owned(), groups };
    }
    if let Ok(Answer::Denied) = probe.list("/sys/firmware/acpi/tables".as_ref()) {
        return Iommu::Unknown("no groups, and /sys/firmware/acpi/tables may not be read (not root)".to_owned());
    }
    let table =
        ["DMAR", "IVRS", "IORT", "VIOT"].into_iter().find(|t| exists(probe, &format!("/sys/firmware/acpi/tables/{t}")));
    let off = kernel.cmdline.iter().find(|a| matches!(a.as_str(), "intel_iommu=off" | "amd_iommu=off" | "iommu=off"));
    match (table, off) {
        (Some(table), Some(arg)) => Iommu::Off {
            why: format!("`{arg}` on the kernel's command line (the firmware has a {table} table)"),
            help: format!("take `{arg}` out of the boot loader's configuration and boot again"),
        },
        (Some(table), None) => Iommu::Off {
            why: format!("the firmware has a {table} table, but the kernel made no groups"),
            help: "put `intel_iommu=on` under kernelArgs (Intel), or look at `dmesg` for DMAR and AMD-Vi".to_owned(),
        },
        (None, _) => Iommu::Missing {
            why: "no DMAR, IVRS or IORT table in /sys/firmware/acpi/tables, and no groups".to_owned(),
            help: "turn on VT-d (Intel), AMD-Vi/IOMMU (AMD) or SMMU (Arm) in the firmware's setup; a reboot alone does not help"
                .to_owned(),
        },
    }
}
