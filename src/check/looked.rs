//! What a judgement needs of the host beyond facts and GPUs, read once.

use std::collections::BTreeMap;
use std::path::Path;

use super::NextBoot;
use crate::facts::{HostFacts, SecureBoot, secure_boot};
use crate::gpu::vfio_rule::VfioRule;
use crate::gpu::{Framebuffer, Gpu, framebuffer, names, text};
use crate::host::{Answer, Probe};
use crate::types::{PciId, PciSlot};

/// Read once for all GPUs.
#[derive(Debug, Clone)]
pub struct Looked {
    /// Which of DMAR, IVRS, IORT, VIOT is there; `None` where the folder may not be read.
    pub tables: Option<Vec<&'static str>>,
    /// Whether DMAR says that interrupts can be remapped (VT-d specification, DMAR reporting structure, flags bit 0).
    pub remaps_interrupts: Option<bool>,
    /// Memory that the firmware keeps mapped for devices of a group and that forbids giving them away, by group.
    pub firm_regions: BTreeMap<u32, String>,
    /// Whether the groups' regions could be read.
    pub regions_read: bool,
    /// Whether the running kernel has vfio-pci: loaded, built in, or a file; `None` where its modules are not there.
    pub has_vfio: Option<bool>,
    /// A newer kernel in /boot, which is what starts next.
    pub newer_kernel: Option<String>,
    /// Secure boot.
    pub secure_boot: SecureBoot,
    /// The address width of the processor in bits.
    pub address_bits: Option<u32>,
    /// The firmware's framebuffer, by GPU.
    pub framebuffers: BTreeMap<PciSlot, Framebuffer>,
    /// The first bytes of configuration space read as ones: the card does not answer. Only of cards that are awake.
    pub dead: BTreeMap<PciSlot, bool>,
    /// Rules of ours in /etc/udev/rules.d.
    pub rules: Vec<VfioRule>,
    /// What boots next; looked at where gpuvm's rules bind something.
    pub next: Option<NextBoot>,
    /// Files of modprobe.d that give ids to vfio-pci, with the line.
    pub by_id: Vec<(String, String)>,
}

impl Looked {
    /// Looks.
    pub fn look(probe: &dyn Probe, facts: &HostFacts, gpus: &[Gpu]) -> Self {
        const TABLES: &str = "/sys/firmware/acpi/tables";
        let tables = match probe.list(Path::new(TABLES)) {
            Ok(Answer::Denied) => None,
            Ok(Answer::Value(names)) => {
                Some(["DMAR", "IVRS", "IORT", "VIOT"].into_iter().filter(|t| names.iter().any(|n| n == *t)).collect())
            }
            _ => Some(Vec::new()),
        };
        let dmar = probe.read(Path::new(&format!("{TABLES}/DMAR"))).ok().and_then(Answer::value);
        let mut firm_regions = BTreeMap::new();
        let mut regions_read = true;
        for group in gpus.iter().flat_map(|g| &g.groups) {
            match text(probe, &format!("/sys/kernel/iommu_groups/{group}/reserved_regions")) {
                None => regions_read = false,
                // `direct-relaxable` may be given away, `direct` may not (Documentation/ABI/testing/sysfs-kernel-iommu_groups).
                Some(regions) => {
                    if let Some(line) = regions.lines().find(|l| l.split_whitespace().nth(2) == Some("direct")) {
                        firm_regions.insert(*group, line.to_owned());
                    }
                }
            }
        }
        let info = text(probe, "/proc/cpuinfo").unwrap_or_default();
        let sizes = info.lines().find_map(|l| l.strip_prefix("address sizes")?.split_once(':'));
        let rules = "/etc/udev/rules.d";
        let ours = names(probe, rules).into_iter().filter(|n| n.starts_with("61-gpuvm-vfio-"));
        let texts = ours.filter_map(|n| text(probe, &format!("{rules}/{n}")));
        let rules: Vec<VfioRule> = texts.flat_map(|t| VfioRule::all(&t).collect::<Vec<_>>()).collect();
        let next = (!rules.is_empty()).then(|| NextBoot::look(probe, facts));
        // What the boot loader says goes before what is the newest.
        let newer_kernel = match next.as_ref().and_then(NextBoot::known_release) {
            Some(release) => (release != facts.kernel.release).then(|| release.to_owned()),
            None => newer_kernel(probe, facts),
        };
        Self {
            next,
            remaps_interrupts: dmar.and_then(|d| d.get(37).map(|flags| flags & 1 == 1)),
            tables,
            firm_regions,
            regions_read,
            has_vfio: has_vfio(probe, facts),
            newer_kernel,
            secure_boot: secure_boot(probe, facts.boot.uefi),
            address_bits: sizes.and_then(|(_, s)| s.trim().split(' ').next()?.parse().ok()),
            framebuffers: gpus.iter().map(|g| (g.slot, framebuffer(probe, g))).collect(),
            dead: gpus
                .iter()
                .filter(|g| g.power_state.as_deref() == Some("D0"))
                .filter_map(|g| Some((g.slot, dead(probe, g)?)))
                .collect(),
            rules,
            by_id: by_id(probe),
        }
    }
}

/// The lines of modprobe.d that give ids to vfio-pci, with their files.
pub fn by_id(probe: &dyn Probe) -> Vec<(String, String)> {
    let modprobe = "/etc/modprobe.d";
    let files = names(probe, modprobe).into_iter().filter(|n| n.ends_with(".conf"));
    let all = files.flat_map(|name| {
        let path = format!("{modprobe}/{name}");
        let lines = text(probe, &path).unwrap_or_default();
        let found = lines
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("options vfio-pci") || l.starts_with("options vfio_pci"));
        found.filter(|l| l.contains("ids=")).map(|l| (path.clone(), l.to_owned())).collect::<Vec<_>>()
    });
    all.collect()
}

/// Whether options of vfio-pci's name this vendor and device: `ids=VENDOR:DEVICE[:…],…`.
pub fn names_id(line: &str, id: PciId) -> bool {
    let ids = line.split_whitespace().filter_map(|word| Some(word.split_once("ids=")?.1));
    let mut each = ids.flat_map(|ids| ids.trim_matches(['"', '\'']).split(','));
    each.any(|one| {
        let mut parts = one.split(':').map(|part| u16::from_str_radix(part, 16).ok());
        (parts.next().flatten(), parts.next().flatten()) == (Some(id.vendor), Some(id.device))
    })
}

fn has_vfio(probe: &dyn Probe, facts: &HostFacts) -> Option<bool> {
    if facts.modules.contains("vfio_pci") {
        return Some(true);
    }
    let modules = format!("/lib/modules/{}", facts.kernel.release);
    let there = |dir: &str| names(probe, dir).iter().any(|n| n.starts_with("vfio-pci.ko"));
    if there(&format!("{modules}/kernel/drivers/vfio/pci")) {
        return Some(true);
    }
    // Without the list of all modules it is not known that it is nowhere else.
    let list = text(probe, &format!("{modules}/modules.dep"))?;
    Some(list.lines().any(|l| l.split(':').next().is_some_and(|p| p.contains("/vfio-pci.ko"))))
}

/// Numbers of a version, to compare by.
pub(super) fn version(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

fn newer_kernel(probe: &dyn Probe, facts: &HostFacts) -> Option<String> {
    let running = version(&facts.kernel.release);
    let all = names(probe, "/boot").into_iter().filter_map(|n| n.strip_prefix("vmlinuz-").map(str::to_owned));
    all.filter(|v| version(v) > running).max_by_key(|v| version(v))
}

/// A card that fell off the bus answers every read with ones. Asked only of a card that is awake.
fn dead(probe: &dyn Probe, gpu: &Gpu) -> Option<bool> {
    if let Some(link) = &gpu.link
        && link.is_dead()
    {
        return Some(true);
    }
    let path = format!("/sys/bus/pci/devices/{}/config", gpu.slot.function(0));
    let bytes = probe.read(Path::new(&path)).ok().and_then(Answer::value)?;
    // Vendor and device alone read as ones in every virtual function (PCI Express Base 4.0, 9.3.4.1.1).
    bytes.get(..8).map(|first| first == [0xff; 8])
}
