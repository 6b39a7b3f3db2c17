//! Whether the IOMMU is on, and where it is not, why and what would help.

use std::collections::BTreeMap;

use super::os::{exists, names, text};
use super::{HostFacts, Iommu, Kernel, PciFunction};
use crate::host::{Answer, Probe};
use crate::types::{PciAddress, PciSlot};

/// What makes a kernel use Intel's IOMMU, for its own GPU too (intel_iommu in kernel-parameters.txt).
pub const INTEL_IOMMU_ON: &str = "intel_iommu=on";

/// Whether a word of the command line turns the IOMMU off. Its values are lists (`intel_iommu=on,sm_on`).
pub fn turns_iommu_off(word: &str) -> bool {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    match name {
        "intel_iommu" | "amd_iommu" | "iommu" => value.split(',').any(|v| v == "off"),
        _ => word == "noiommu",
    }
}

impl Kernel {
    /// Whether it was told to use Intel's IOMMU.
    pub fn asks_for_intel_iommu(&self) -> bool {
        let values = self.cmdline.iter().filter_map(|a| a.strip_prefix("intel_iommu="));
        values.flat_map(|list| list.split(',')).any(|v| v == "on")
    }
}

impl HostFacts {
    /// The argument that puts the functions of a slot into IOMMU groups at the next boot, where one is known to and the
    /// kernel was started without it: the IOMMU is off for want of it, or Intel's own GPU is left out
    /// (CONFIG_INTEL_IOMMU_DEFAULT_ON_INTGPU_OFF, as in Debian's kernels). Which groups those are is not known before.
    pub fn grouped_by(&self, slot: PciSlot) -> Option<&str> {
        let own_gpu = |f: &PciFunction| f.is_gpu() && f.id.vendor == 0x8086 && f.parent.is_none() && f.group.is_none();
        match &self.iommu {
            Iommu::Off { argument, .. } => argument.as_deref(),
            Iommu::On { kind, .. } if kind == "intel" && !self.kernel.asks_for_intel_iommu() => {
                self.slot(slot).any(own_gpu).then_some(INTEL_IOMMU_ON)
            }
            _ => None,
        }
    }
}

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
    let off = kernel.cmdline.iter().find(|a| turns_iommu_off(a));
    match (table, off) {
        (Some(table), Some(arg)) => Iommu::Off {
            why: format!("`{arg}` on the kernel's command line (the firmware has a {table} table)"),
            help: format!("take `{arg}` out of the boot loader's configuration and boot again"),
            argument: None,
        },
        // CONFIG_INTEL_IOMMU_DEFAULT_ON: kernels without it use Intel's where they are told to. AMD's is used in any case.
        (Some("DMAR"), None) if !kernel.asks_for_intel_iommu() => Iommu::Off {
            why: format!("the firmware has a DMAR table, and this kernel uses it with `{INTEL_IOMMU_ON}` only"),
            help: format!(
                "a manifest with `use: vfio` or `use: shared` has it put there; so does `{INTEL_IOMMU_ON}` under kernelArgs"
            ),
            argument: Some(INTEL_IOMMU_ON.to_owned()),
        },
        (Some(table), None) => Iommu::Off {
            why: format!("the firmware has a {table} table, but the kernel made no groups"),
            help: "look at `dmesg` for DMAR (Intel) and AMD-Vi (AMD)".to_owned(),
            argument: None,
        },
        (None, _) => Iommu::Missing {
            why: "no DMAR, IVRS or IORT table in /sys/firmware/acpi/tables, and no groups".to_owned(),
            help: "turn on VT-d (Intel), AMD-Vi/IOMMU (AMD) or SMMU (Arm) in the firmware's setup; a reboot alone does not help"
                .to_owned(),
        },
    }
}
