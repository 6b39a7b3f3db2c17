//! What was seen of a card in use: that it came back from a reset. A listed method is no proof that it works, so a start
//! and stop with a VM is what counts, and it is remembered by card and kernel.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::facts::PciFunction;
use crate::host::{Answer, Probe};
use crate::types::PciId;

/// Where it is remembered.
pub const SEEN: &str = "/var/lib/gpuvm/seen.json";

/// A card that a VM had, and that answered after it was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seen {
    /// Vendor and device.
    pub id: PciId,
    /// The subsystem's.
    pub subsystem: Option<PciId>,
    /// The path of ports.
    pub path: String,
    /// The serial number, where it is known.
    #[serde(default)]
    pub serial: Option<String>,
    /// How often a VM was stopped with it and it answered.
    pub cycles: u32,
    /// The kernel that this was with last.
    pub kernel: String,
}

impl Seen {
    /// Whether it is about this card in this place.
    pub fn is_of(&self, f: &PciFunction) -> bool {
        let serial = self.serial.as_ref().zip(f.serial.as_ref()).is_none_or(|(a, b)| a == b);
        self.cycles > 0
            && serial
            && (self.id, self.subsystem, self.path.as_str()) == (f.id, f.subsystem, f.path.as_str())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    cards: Vec<Seen>,
}

/// All that is remembered; a file that cannot be understood counts as nothing seen.
pub(super) fn load(probe: &dyn Probe) -> Vec<Seen> {
    let bytes = probe.read(Path::new(SEEN)).ok().and_then(Answer::value).unwrap_or_default();
    serde_json::from_slice::<File>(&bytes).ok().filter(|f| f.format == 1).map(|f| f.cards).unwrap_or_default()
}
