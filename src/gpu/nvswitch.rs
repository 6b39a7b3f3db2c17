//! GPUs of NVIDIA's that NVSwitches join on one board (HGX and DGX, A100 and later): a VM gets such of them as NVIDIA lists
//! as a partition, and no others. A partition is a set of GPUs by their module ids, which follow the board's sockets and not
//! the PCI addresses; NVIDIA's driver alone tells them, so that a person writes them down.
//!
//! Sources: NVIDIA's Fabric Manager user guide 2.x, "Full Passthrough Virtualization Model", and of its appendix the tables of
//! default partitions ("DGX A100 and NVIDIA HGX A100", "DGX H100 and NVIDIA HGX H100", of which H200, H800 and H20 have the
//! same, "DGX B200/B300 and NVIDIA HGX B200/B300"). That module ids are what partitions are counted by, the guide says of
//! boards from H100 on (note at `fmFabricPartitionGpuInfo_t`). Of A100 it does not, whose list NVIDIA changes for a machine on
//! demand too, so that of pairs and fours of A100 nothing is more than likely here.

use std::collections::{BTreeMap, BTreeSet};

use super::architecture::{Architecture, NVIDIA};
use crate::facts::{FABRIC_MANAGER, HostFacts, PciFunction};
use crate::types::{PciAddress, PciSlot};

/// A board (two of them, where sixteen GPUs are joined).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// The architecture of its GPUs, where its partitions are known.
    architecture: Option<Architecture>,
    /// Its switches; none are seen of the boards whose switches are no PCI functions of NVIDIA's.
    pub switches: Vec<PciAddress>,
    /// The slots of its GPUs.
    pub gpus: BTreeSet<PciSlot>,
}

/// What a VM's GPUs are on their board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// It is as NVIDIA allows, and needs nobody else.
    Allowed(String),
    /// It is a partition, which somebody has to make active before the VM starts; whether that is so is seen by Fabric
    /// Manager alone.
    Partition {
        /// What it is.
        why: String,
        /// What makes it active.
        help: String,
    },
    /// Whether it works cannot be told.
    Unknown {
        /// What is not known.
        why: String,
        /// How to find out.
        help: String,
    },
    /// It is not allowed.
    Wrong {
        /// Why not.
        why: String,
        /// What is.
        help: String,
    },
}

/// By the number that Fabric Manager gives them, from 0: the default partitions of a board with eight Hopper GPUs.
const HOPPER: [&[u8]; 7] =
    [&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3, 4], &[5, 6, 7, 8], &[1, 3], &[2, 4], &[5, 7], &[6, 8]];
/// The same of eight Blackwell GPUs (B200, B300), from 1.
const BLACKWELL: [&[u8]; 7] =
    [&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3, 4], &[5, 6, 7, 8], &[1, 2], &[3, 4], &[5, 6], &[7, 8]];
/// The same of eight A100 on a board that is strapped as the lower one, without numbers: the table is of two boards. The GPUs
/// of one that is strapped as the upper are 9 to 16.
const AMPERE: [&[u8]; 7] =
    [&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3, 4], &[5, 6, 7, 8], &[1, 2], &[3, 4], &[5, 6], &[7, 8]];
/// How many GPUs a partition may have; sixteen where two boards are joined.
const SIZES: [usize; 5] = [1, 2, 4, 8, 16];
/// HGX B200 and B300: their switches are seen as network controllers of Mellanox, or not at all.
const WITHOUT_SEEN_SWITCHES: [u16; 2] = [0x2901, 0x3182];

/// A board's GPU, by what its switches are. PCIe cards beside it are none.
fn on_board(f: &PciFunction, architecture: Option<Architecture>) -> bool {
    let of = Architecture::of(f.id);
    // What the table does not have may be on it.
    let same = architecture.is_none() || of.is_none() || of == architecture;
    // The chips of GeForce and workstation cards are never on such a board (pci.ids: GA100 has 20xx).
    let chip = architecture != Some(Architecture::Ampere) || of.is_none() || f.id.device >> 8 == 0x20;
    f.is_gpu() && f.id.vendor == NVIDIA && f.virtual_of.is_none() && same && chip && !f.name.contains("PCIe")
}

impl Board {
    /// The board of this host; `None` where no switch joins its GPUs.
    pub fn of(facts: &HostFacts) -> Option<Self> {
        let switches: Vec<&PciFunction> = facts.pci.values().filter(|f| f.is_nvswitch()).collect();
        let hidden = |f: &&PciFunction| f.id.vendor == NVIDIA && WITHOUT_SEEN_SWITCHES.contains(&f.id.device);
        let architecture = match switches.first().map(|f| f.id.device) {
            Some(0x1af1) => Some(Architecture::Ampere),
            Some(0x22a3) => Some(Architecture::Hopper),
            None if facts.pci.values().any(|f| hidden(&f)) => Some(Architecture::Blackwell),
            _ => None,
        };
        let gpus: BTreeSet<PciSlot> = match switches.is_empty() {
            true => facts.pci.values().filter(hidden).map(|f| f.address.slot).collect(),
            false => facts.pci.values().filter(|f| on_board(f, architecture)).map(|f| f.address.slot).collect(),
        };
        let switches = switches.iter().map(|f| f.address).collect();
        (!gpus.is_empty()).then_some(Self { architecture, switches, gpus })
    }

    /// The partitions that NVIDIA lists, by module ids; `None` where they are not known here.
    fn partitions(&self) -> Option<Vec<Vec<u8>>> {
        let table = match self.architecture? {
            Architecture::Hopper => HOPPER,
            Architecture::Ampere => AMPERE,
            Architecture::Blackwell => BLACKWELL,
            _ => return None,
        };
        let single = (1..=8).map(|id| vec![id]);
        (self.gpus.len() <= 8).then(|| table.iter().map(|p| p.to_vec()).chain(single).collect())
    }

    /// Whether GPUs and switches are those of one whole board, all there.
    fn is_whole(&self) -> bool {
        let switches = match self.architecture {
            Some(Architecture::Hopper) => 4,
            Some(Architecture::Ampere) => 6,
            _ => return false,
        };
        self.gpus.len() == 8 && self.switches.len() == switches
    }

    /// What a VM with these slots has of the board. `modules`: the module ids that are known.
    pub fn split(&self, slots: &BTreeSet<PciSlot>, modules: &BTreeMap<PciSlot, u8>, facts: &HostFacts) -> Split {
        let mine: BTreeSet<PciSlot> = self.gpus.intersection(slots).copied().collect();
        let switches = self.switches.iter().filter(|s| slots.contains(&s.slot)).count();
        if switches > 0 {
            return self.with_switches(&mine, switches);
        }
        match self.partition(&mine, modules) {
            Ok(number) => self.activated(&mine, number, facts),
            Err(Split::Unknown { .. }) if mine.len() > 1 && self.is_without_partitions(facts) => Split::Wrong {
                why: format!("whichever partition these {} GPUs may be: {NONE_ACTIVE}", mine.len()),
                help: to_have_them(),
            },
            Err(other) => other,
        }
    }

    /// Switches go to a VM with the whole board, whose Fabric Manager is in the guest then.
    fn with_switches(&self, mine: &BTreeSet<PciSlot>, switches: usize) -> Split {
        let all = switches == self.switches.len() && *mine == self.gpus;
        if all && self.is_whole() {
            let says = format!("all {} GPUs and all {switches} switches: Fabric Manager runs in the guest", mine.len());
            return Split::Allowed(says);
        }
        Split::Unknown {
            why: format!(
                "{} of {} GPUs together with {switches} of {} switches: which switches go with which GPUs is not known",
                mine.len(),
                self.gpus.len(),
                self.switches.len()
            ),
            help:
                "give the VM all GPUs and all switches of the board, or none of the switches; NVIDIA's Fabric Manager \
                   guide has what else works (Full Passthrough Virtualization Model)"
                    .to_owned(),
        }
    }

    /// The partition that these GPUs are, with its number where that is known.
    fn partition(&self, mine: &BTreeSet<PciSlot>, modules: &BTreeMap<PciSlot, u8>) -> Result<Option<usize>, Split> {
        let count = mine.len();
        if !SIZES.contains(&count) {
            return Err(Split::Wrong {
                why: format!("{count} GPUs: NVSwitch partitions have 8, 4, 2 or 1"),
                help: match self.partitions() {
                    Some(all) => format!("partitions by module ids: {}", listed(&all, modules)),
                    None => "give the VM 1, 2, 4 or 8 GPUs of one partition".to_owned(),
                },
            });
        }
        let Some(all) = self.partitions() else {
            return Err(Split::Unknown {
                why: format!("which {count} of these {} GPUs make a partition is not known to gpuvm", self.gpus.len()),
                help: "Fabric Manager tells: fmpm -l".to_owned(),
            });
        };
        let ampere = self.architecture == Some(Architecture::Ampere);
        let upper = ampere && modules.iter().any(|(slot, id)| self.gpus.contains(slot) && *id > 8);
        let all: Vec<Vec<u8>> = match upper {
            true => all.into_iter().map(|p| p.into_iter().map(|id| id + 8).collect()).collect(),
            false => all,
        };
        let known: BTreeSet<u8> = mine.iter().filter_map(|s| modules.get(s).copied()).collect();
        let fits = |p: &&Vec<u8>| p.len() == count && known.iter().all(|id| p.contains(id));
        let fitting: Vec<&Vec<u8>> = all.iter().filter(fits).collect();
        let complete = known.len() == count;
        if *mine == self.gpus && count == 8 && !fitting.is_empty() {
            return Ok(self.number(0));
        }
        match fitting.first() {
            None => {
                let ids = joined(known.iter());
                let of_count: Vec<Vec<u8>> = all.iter().filter(|p| p.len() == count).cloned().collect();
                let list = listed(&of_count, modules);
                // No such place, whatever the list.
                let nowhere = known.iter().any(|id| !all.iter().any(|p| p.contains(id)));
                if ampere && matches!(count, 2 | 4) && !nowhere {
                    return Err(Split::Unknown {
                        why: format!(
                            "module ids {ids} are no partition of {count} by NVIDIA's default list ({list}), which NVIDIA \
                             changes for a machine on demand"
                        ),
                        help: "what this board's Fabric Manager has, by PCI addresses: fmpm -l".to_owned(),
                    });
                }
                Err(Split::Wrong {
                    why: format!("the GPUs with module ids {ids} are in no NVSwitch partition of {count}"),
                    help: format!("partitions of {count}, by module ids: {list}"),
                })
            }
            Some(one) if complete && ampere && count > 1 => Err(Split::Unknown {
                why: format!(
                    "module ids {} are a partition by NVIDIA's default list, if this board's Fabric Manager counts by them",
                    joined(one.iter())
                ),
                help: "what it has, by PCI addresses: fmpm -l; and fmpm -a ID before the VM starts".to_owned(),
            }),
            Some(one) if complete => Ok(all.iter().position(|p| p == *one).and_then(|at| self.number(at))),
            // One GPU is a partition, whichever it is.
            Some(_) if count == 1 => Ok(None),
            Some(_) => {
                let lacking: Vec<String> =
                    mine.iter().filter(|s| !modules.contains_key(s)).map(ToString::to_string).collect();
                Err(Split::Unknown {
                    why: format!(
                        "whether these {count} GPUs are a partition is not known without the module id of {}",
                        lacking.join(", ")
                    ),
                    help: "nvidia-smi -q tells it (GPU Module Id) while NVIDIA's driver has the card: write it as \
                           `moduleId` of its entry under `gpus`"
                        .to_owned(),
                })
            }
        }
    }

    /// This host's Fabric Manager joins all GPUs, and makes no partition active.
    fn is_without_partitions(&self, facts: &HostFacts) -> bool {
        !self.switches_in_a_vm(facts) && facts.fabric_mode.as_deref() == Some("0")
    }

    /// The switches are a VM's, whose Fabric Manager decides.
    fn switches_in_a_vm(&self, facts: &HostFacts) -> bool {
        let driver = |s: &PciAddress| facts.pci.get(s).and_then(|f| f.driver.as_deref());
        !self.switches.is_empty() && self.switches.iter().all(|s| driver(s) == Some("vfio-pci"))
    }

    /// The number by which Fabric Manager has the partition that is at this place of the list.
    fn number(&self, at: usize) -> Option<usize> {
        match self.architecture? {
            Architecture::Hopper => Some(at),
            Architecture::Blackwell => Some(at + 1),
            _ => None,
        }
    }

    /// Who makes the partition of these GPUs active, which has to be before their VM starts.
    fn activated(&self, mine: &BTreeSet<PciSlot>, number: Option<usize>, facts: &HostFacts) -> Split {
        let count = mine.len();
        let what = match count {
            1 => "a partition of its own".to_owned(),
            n => format!("these {n} GPUs are a partition"),
        };
        let of = number.map_or("ID".to_owned(), |n| n.to_string());
        let unknown = |why: String, help: String| Split::Unknown { why, help };
        if self.switches_in_a_vm(facts) {
            let why = format!("{what}; whether it is active only the Fabric Manager in the switches' VM tells");
            return Split::Partition { why, help: format!("there, before this VM starts: fmpm -l, and fmpm -a {of}") };
        }
        match facts.fabric_mode.as_deref() {
            Some("1") => Split::Partition {
                why: format!("{what}; whether it is active only the Fabric Manager tells"),
                help: format!("before the VM starts: fmpm -l, and fmpm -a {of}"),
            },
            Some("0") if count > 1 => Split::Wrong {
                why: format!("{what}, and {NONE_ACTIVE}"),
                help: to_have_them(),
            },
            Some("0") => unknown(
                format!("{what}, which this host's Fabric Manager does not separate (FABRIC_MODE=0)"),
                format!(
                    "FABRIC_MODE=1 in {FABRIC_MANAGER}, and fmpm -a {of} before the VM starts; or its NVLinks off in the \
                     guest (options nvidia NVreg_NvLinkDisable=1)"
                ),
            ),
            Some(mode) => unknown(
                format!("{what}, and Fabric Manager is set up for something else (FABRIC_MODE={mode})"),
                format!("FABRIC_MODE=1 in {FABRIC_MANAGER} is for VMs that have whole GPUs"),
            ),
            None => unknown(
                format!("{what}; there is no Fabric Manager's configuration here that would make it active"),
                "install nvidia-fabricmanager in the driver's version on the host, or in a VM that has all switches, with \
                 FABRIC_MODE=1"
                    .to_owned(),
            ),
        }
    }
}

const NONE_ACTIVE: &str = "this host's Fabric Manager makes none active for VMs (FABRIC_MODE=0)";

/// How a host comes to have partitions.
fn to_have_them() -> String {
    format!(
        "write FABRIC_MODE=1 to {FABRIC_MANAGER} and restart nvidia-fabricmanager: GPUs that stay with the host need an \
         active partition too then"
    )
}

fn joined<'a>(ids: impl Iterator<Item = &'a u8>) -> String {
    ids.map(ToString::to_string).collect::<Vec<_>>().join("+")
}

/// Partitions by module ids, with the slots where the ids are known. Single GPUs always are, and are left out of a longer
/// list.
fn listed(all: &[Vec<u8>], modules: &BTreeMap<PciSlot, u8>) -> String {
    let slot = |id: &u8| modules.iter().find(|(_, m)| *m == id).map(|(s, _)| s.to_string());
    let one = |p: &Vec<u8>| match p.iter().map(slot).collect::<Option<Vec<_>>>() {
        Some(slots) => format!("{} ({})", joined(p.iter()), slots.join(" ")),
        None => joined(p.iter()),
    };
    let singles = all.iter().all(|p| p.len() == 1);
    all.iter().filter(|p| singles || p.len() > 1).map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::display;
    use crate::resource::tests::facts;
    use crate::types::PciId;

    fn slot(n: u8) -> PciSlot {
        PciSlot { domain: 0, bus: 0x10 + n, device: 0 }
    }

    /// Eight GPUs at 11:00 to 18:00 with their switches at 40:00 and on.
    fn host(gpu: u16, switch: u16, switches: u8, driver: &str) -> HostFacts {
        let mut facts = facts();
        let mut add = |bus: u8, class: u32, device: u16, name: &str| {
            let address = PciSlot { domain: 0, bus, device: 0 }.function(0);
            let id = PciId { vendor: NVIDIA, device };
            let f =
                PciFunction { address, class, id, name: name.to_owned(), driver: Some(driver.to_owned()), ..display() };
            facts.pci.insert(address, f);
        };
        for n in 1..=8 {
            add(0x10 + n, 0x030200, gpu, "GPU");
        }
        for n in 0..switches {
            add(0x40 + n, 0x068000, switch, "NVSwitch");
        }
        facts
    }
    fn hopper() -> HostFacts {
        HostFacts { fabric_mode: Some("1".to_owned()), ..host(0x2330, 0x22a3, 4, "nvidia") }
    }
    fn ampere() -> HostFacts {
        HostFacts { fabric_mode: Some("1".to_owned()), ..host(0x20b0, 0x1af1, 6, "nvidia") }
    }

    fn blackwell() -> HostFacts {
        HostFacts { fabric_mode: Some("1".to_owned()), ..host(0x2901, 0, 0, "nvidia") }
    }

    /// The split of GPUs by their module ids, all of which are known; `?` before what is not known, `!` before what is wrong.
    fn split(facts: &HostFacts, ids: &[u8]) -> String {
        let modules = (1..=8).map(|n| (slot(n), n)).collect();
        judged(facts, &ids.iter().map(|n| slot(*n)).collect(), &modules)
    }
    fn judged(facts: &HostFacts, slots: &BTreeSet<PciSlot>, modules: &BTreeMap<PciSlot, u8>) -> String {
        match Board::of(facts).unwrap().split(slots, modules, facts) {
            Split::Allowed(says) => says,
            Split::Partition { why, help } | Split::Unknown { why, help } => format!("? {why} -> {help}"),
            Split::Wrong { why, help } => format!("! {why} -> {help}"),
        }
    }

    #[test]
    fn every_set_of_gpus_is_a_partition_of_nvidias_list_or_refused() {
        for facts in [hopper(), ampere(), blackwell()] {
            let table = Board::of(&facts).unwrap().partitions().unwrap();
            let a100 = Board::of(&facts).unwrap().architecture == Some(Architecture::Ampere);
            let mut right = 0;
            for set in 1u16..=255 {
                let ids: Vec<u8> = (1..=8).filter(|n| set >> (n - 1) & 1 == 1).collect();
                let said = split(&facts, &ids);
                let soft = a100 && matches!(ids.len(), 2 | 4);
                match table.contains(&ids) {
                    true if soft => {
                        assert!(said.starts_with("? ") && said.contains("if this board's"), "{ids:?}: {said}");
                        right += 1;
                    }
                    true => right += usize::from(said.starts_with("? ") && said.contains("whether it is active")),
                    false if soft => {
                        assert!(said.starts_with("? ") && said.contains("changes for a machine"), "{ids:?}: {said}");
                    }
                    false => assert!(said.starts_with("! "), "{ids:?}: {said}"),
                }
            }
            assert_eq!(right, 15, "8, two of 4, four of 2, eight of 1");
        }
    }

    #[test]
    fn what_is_allowed_is_named() {
        let said = split(&hopper(), &[1, 2]);
        assert_eq!(
            said,
            "! the GPUs with module ids 1+2 are in no NVSwitch partition of 2 -> partitions of 2, by module ids: \
             1+3 (0000:11:00 0000:13:00), 2+4 (0000:12:00 0000:14:00), 5+7 (0000:15:00 0000:17:00), \
             6+8 (0000:16:00 0000:18:00)"
        );
        assert!(split(&hopper(), &[5, 7]).ends_with("fmpm -a 5"), "the number that fmpm lists");
        assert!(split(&ampere(), &[1, 2]).contains("fmpm -a ID"));
        assert!(split(&blackwell(), &[5, 6]).ends_with("fmpm -a 6"), "its numbers begin with 1");
        assert!(split(&blackwell(), &[1, 3]).starts_with("! "));
        // The GPUs of a board that is strapped as the upper one of two.
        let upper: BTreeMap<_, _> = (1..=8).map(|n| (slot(n), n + 8)).collect();
        let said = judged(&ampere(), &[slot(1), slot(2)].into(), &upper);
        assert!(said.starts_with("? module ids 9+10 are a partition"), "{said}");
        assert!(judged(&hopper(), &[slot(1), slot(2)].into(), &upper).starts_with("! "), "no H100 board has them");
        assert!(split(&hopper(), &[1, 2, 3]).starts_with("! 3 GPUs: NVSwitch partitions have 8, 4, 2 or 1"));
    }

    #[test]
    fn without_module_ids_only_what_is_impossible_is_refused() {
        let facts = hopper();
        let two: BTreeSet<_> = [slot(1), slot(3)].into();
        let none = BTreeMap::new();
        let said = judged(&facts, &two, &none);
        assert!(said.starts_with("? ") && said.contains("the module id of 0000:11:00, 0000:13:00"), "{said}");
        assert!(judged(&facts, &two, &[(slot(1), 1)].into()).contains("the module id of 0000:13:00"));
        assert!(judged(&facts, &two, &[(slot(1), 9)].into()).starts_with("! "), "this board has no such place");
        assert!(judged(&facts, &[slot(1)].into(), &none).contains("a partition of its own"));
        let all: BTreeSet<_> = (1..=8).map(slot).collect();
        assert!(judged(&facts, &all, &none).contains("these 8 GPUs are a partition"));
        let four: BTreeSet<_> = (1..=4).map(slot).collect();
        let crossing: BTreeMap<_, _> = [(slot(1), 1), (slot(2), 5)].into();
        assert!(judged(&facts, &four, &crossing).starts_with("! the GPUs with module ids 1+5"));
    }

    #[test]
    fn nothing_passes_without_a_fabric_manager_that_is_known_to_serve_it() {
        let with = |mode: Option<&str>| HostFacts { fabric_mode: mode.map(str::to_owned), ..hopper() };
        for mode in [None, Some("0"), Some("1"), Some("2"), Some("")] {
            for ids in [&[1][..], &[1, 3], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8]] {
                let said = split(&with(mode), ids);
                let refused = mode == Some("0") && ids.len() > 1;
                assert!(said.starts_with(if refused { "! " } else { "? " }), "{mode:?} {ids:?}: {said}");
            }
        }
        // Whichever it may be, where none is made active there is none.
        let a100 = HostFacts { fabric_mode: Some("0".to_owned()), ..ampere() };
        for ids in [&[1, 2][..], &[1, 7], &[1, 2, 3, 4]] {
            assert!(split(&a100, ids).starts_with("! whichever partition these"), "{ids:?}");
        }
        let served = host(0x2330, 0x22a3, 4, "vfio-pci");
        assert!(split(&served, &[1, 3]).contains("the Fabric Manager in the switches' VM tells"));
    }

    #[test]
    fn a_whole_board_with_its_switches_needs_nobody() {
        let facts = hopper();
        let board = Board::of(&facts).unwrap();
        let mut slots: BTreeSet<PciSlot> =
            board.gpus.iter().copied().chain(board.switches.iter().map(|s| s.slot)).collect();
        let none = BTreeMap::new();
        assert!(judged(&facts, &slots, &none).starts_with("all 8 GPUs and all 4 switches"));
        slots.remove(&slot(1));
        assert!(judged(&facts, &slots, &none).starts_with("? 7 of 8 GPUs together with 4 of 4 switches"));
        let mut less = hopper();
        less.pci.remove(&board.switches[0]);
        slots.insert(slot(1));
        assert!(judged(&less, &slots, &none).starts_with("? "), "one of the switches is missing");
    }

    #[test]
    fn cards_beside_the_board_are_not_on_it() {
        let mut facts = hopper();
        let mut add = |bus: u8, device: u16, name: &str| {
            let address = PciSlot { domain: 0, bus, device: 0 }.function(0);
            let id = PciId { vendor: NVIDIA, device };
            facts.pci.insert(address, PciFunction { address, id, name: name.to_owned(), ..display() });
        };
        add(0x60, 0x1eb8, "TU104GL [Tesla T4]");
        add(0x61, 0x2331, "GH100 [H100 PCIe]");
        assert_eq!(Board::of(&facts).unwrap().gpus.len(), 8);
        let without: BTreeMap<_, _> =
            facts.pci.iter().filter(|(_, f)| !f.is_nvswitch()).map(|(a, f)| (*a, f.clone())).collect();
        assert_eq!(Board::of(&HostFacts { pci: without, ..facts }), None);
        // Two boards that are joined: which eight or sixteen go together is not known here.
        let mut two = ampere();
        for n in 9..=16 {
            let address = slot(n).function(0);
            let id = PciId { vendor: NVIDIA, device: 0x20b0 };
            two.pci.insert(address, PciFunction { address, id, name: "GPU".to_owned(), ..display() });
        }
        assert!(split(&two, &[1, 2]).starts_with("? which 2 of these 16 GPUs make a partition is not known"));
        assert!(split(&two, &[1, 2, 3]).starts_with("! "));
    }
}
