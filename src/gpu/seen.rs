//! What was seen of a card in use: that it came back from a reset. A listed method is no proof that it works. What counts
//! is that a VM started with the card, that it was given back, and that it answered then: the card was reset at both ends
//! by vfio-pci. libvirt's hook of ours sees that, and remembers it by the card's ids and place, a file each.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::facts::PciFunction;
use crate::host::{Answer, Probe};
use crate::types::PciId;

/// Where it is remembered.
pub const SEEN: &str = "/var/lib/gpuvm/seen";

/// Where the hook says which starts it refused, until one succeeds or the host boots.
pub const REFUSED: &str = "/run/gpuvm/refused";

/// A card that a VM had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// The file that says so.
    #[serde(skip)]
    pub file: PathBuf,
    /// Vendor and device.
    pub id: PciId,
    /// The subsystem's.
    pub subsystem: Option<PciId>,
    /// The path of ports.
    pub path: String,
    /// How often a VM was stopped with it and it answered, since it last did not.
    pub cycles: u32,
    /// Whether it did not answer after the last VM.
    pub lost: bool,
    /// The kernel that this was with last.
    pub kernel: String,
    /// The VM that had it last.
    pub vm: String,
}

impl Seen {
    /// Whether it is about this card in this place.
    pub fn is_of(&self, f: &PciFunction) -> bool {
        (self.cycles > 0 || self.lost)
            && (self.id, self.subsystem, self.path.as_str()) == (f.id, f.subsystem, f.path.as_str())
    }

    /// Lines of a word and a value, as the hook writes them.
    fn parse(file: PathBuf, text: &str) -> Option<Self> {
        let value = |word: &str| text.lines().find_map(|l| l.strip_prefix(word)?.strip_prefix(' ')).map(str::trim);
        Some(Self {
            id: value("id")?.parse().ok()?,
            subsystem: value("subsystem")?.parse().ok(),
            path: value("place")?.to_owned(),
            cycles: value("cycles")?.parse().ok()?,
            lost: value("lost") == Some("yes"),
            kernel: value("kernel")?.to_owned(),
            vm: value("vm").unwrap_or_default().to_owned(),
            file,
        })
    }
}

/// All that is remembered; what cannot be understood counts as not seen.
pub fn remembered(probe: &dyn Probe) -> Vec<Seen> {
    let names = super::names(probe, SEEN).into_iter().filter(|n| !n.ends_with(".new"));
    let one = |name: String| {
        let file = Path::new(SEEN).join(name);
        let text = probe.text(&file).ok().and_then(Answer::value)?;
        Seen::parse(file, &text)
    };
    names.filter_map(one).collect()
}

/// A start that the hook refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedStart {
    /// The VM.
    pub vm: String,
    /// When, in UTC.
    pub at: String,
    /// Why, and what to do.
    pub why: String,
}

/// The starts that were refused since the host booted, of VMs that did not start since.
pub fn refused_starts(probe: &dyn Probe) -> Vec<RefusedStart> {
    let one = |vm: String| {
        let text = probe.text(&Path::new(REFUSED).join(&vm)).ok().and_then(Answer::value)?;
        let (at, why) = text.split_once('\n')?;
        Some(RefusedStart { vm, at: at.to_owned(), why: why.trim().to_owned() })
    };
    super::names(probe, REFUSED).into_iter().filter_map(one).collect()
}
