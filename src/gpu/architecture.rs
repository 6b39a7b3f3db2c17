//! The architecture of an NVIDIA GPU by its device id, which decides the kernel modules that it can work with.
//!
//! What is not in the table is not known: names and neighbouring ids are no reason to guess.

use serde::{Deserialize, Serialize};

use crate::types::PciId;

/// NVIDIA's vendor id.
pub const NVIDIA: u16 = 0x10de;

/// Architectures of NVIDIA's, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // NVIDIA's own names
pub enum Architecture {
    Fermi,
    Kepler,
    Maxwell,
    Pascal,
    Volta,
    Turing,
    Ampere,
    Ada,
    Hopper,
    Blackwell,
}

/// `architecture id…` a line.
const TABLE: &str = include_str!("nvidia-architectures");

impl Architecture {
    const ALL: [(&'static str, Architecture); 10] = [
        ("fermi", Architecture::Fermi),
        ("kepler", Architecture::Kepler),
        ("maxwell", Architecture::Maxwell),
        ("pascal", Architecture::Pascal),
        ("volta", Architecture::Volta),
        ("turing", Architecture::Turing),
        ("ampere", Architecture::Ampere),
        ("ada", Architecture::Ada),
        ("hopper", Architecture::Hopper),
        ("blackwell", Architecture::Blackwell),
    ];

    /// The architecture of a display function; `None` where the table does not have it.
    pub fn of(id: PciId) -> Option<Self> {
        let wanted = format!("{:04x}", id.device);
        let line = |line: &'static str| {
            let (name, ids) = line.split_once(' ')?;
            ids.split(' ').any(|id| id == wanted).then_some(name)
        };
        let name = TABLE.lines().filter(|l| !l.starts_with('#')).find_map(line).filter(|_| id.vendor == NVIDIA)?;
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, a)| *a)
    }

    /// As NVIDIA writes it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Whether the open kernel modules work with it: they need the GPU system processor, which came with Turing
    /// (NVIDIA's driver README, "Open Linux Kernel Modules").
    pub fn takes_open(self) -> bool {
        self >= Architecture::Turing
    }

    /// Whether the proprietary kernel modules work with it: not from Blackwell on (the same chapter).
    pub fn takes_proprietary(self) -> bool {
        self < Architecture::Blackwell
    }

    /// The last branch that has it, where one is the last (NVIDIA's list of legacy GPUs, and the release notes of 580).
    pub fn last_branch(self) -> Option<u32> {
        match self {
            Architecture::Fermi => Some(390),
            Architecture::Kepler => Some(470),
            Architecture::Maxwell | Architecture::Pascal | Architecture::Volta => Some(580),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_known_by_their_id_and_others_are_not_guessed() {
        let of = |device| Architecture::of(PciId { vendor: NVIDIA, device });
        for (device, wanted) in [
            (0x1b80, Architecture::Pascal),
            (0x1db1, Architecture::Volta),
            (0x1e04, Architecture::Turing),
            (0x1eb8, Architecture::Turing),
            (0x2204, Architecture::Ampere),
            (0x20b5, Architecture::Ampere),
            (0x2684, Architecture::Ada),
            (0x2330, Architecture::Hopper),
            (0x2b85, Architecture::Blackwell),
            (0x2901, Architecture::Blackwell),
        ] {
            assert_eq!(of(device), Some(wanted), "{device:04x}");
        }
        // Audio of an RTX 4090, an NVSwitch, an id between those of two Ada cards, another maker's.
        for device in [0x22ba, 0x22a3, 0x2683, 0xffff] {
            assert_eq!(of(device), None, "{device:04x}");
        }
        assert_eq!(Architecture::of(PciId { vendor: 0x1002, device: 0x2684 }), None);
    }

    #[test]
    fn the_table_is_whole_and_names_no_card_twice() {
        let ids: Vec<&str> = TABLE
            .lines()
            .filter(|l| !l.starts_with('#'))
            .flat_map(|l| l.split(' ').skip(1))
            .inspect(|id| assert!(id.len() == 4 && u16::from_str_radix(id, 16).is_ok(), "{id}"))
            .collect();
        let distinct: std::collections::BTreeSet<&&str> = ids.iter().collect();
        assert!(ids.len() > 900 && distinct.len() == ids.len());
        for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
            assert!(Architecture::ALL.iter().any(|(n, _)| line.starts_with(n)), "{line}");
        }
    }
}
