//! Which card is meant: by address, path of ports, model, ids, serial number or UUID. What fits several cards is
//! refused, with the shortest line for each that fits it alone.

use std::collections::BTreeMap;

use crate::facts::{HostFacts, PciFunction};
use crate::types::{CardId, PciAddress, PciSlot};

/// By what a card is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Criterion {
    /// Its slot now.
    Address(PciSlot),
    /// The path of ports.
    Path(String),
    /// The last words of the model's name.
    Model(String),
    /// Its ids.
    Id(CardId),
    /// Its serial number.
    Serial(String),
    /// NVIDIA's UUID.
    Uuid(String),
}

impl Criterion {
    /// What a person types on a command line, by its form.
    pub fn guess(text: &str) -> Self {
        if let Ok(slot) = text.parse::<PciSlot>() {
            Criterion::Address(slot)
        } else if let Ok(address) = text.parse::<PciAddress>() {
            Criterion::Address(address.slot)
        } else if let Ok(id) = text.parse() {
            Criterion::Id(id)
        } else if text.starts_with("pci:") || text.starts_with("pcie:") {
            Criterion::Path(text.to_owned())
        } else if text.starts_with("GPU-") {
            Criterion::Uuid(text.to_owned())
        } else {
            Criterion::Model(text.to_owned())
        }
    }

    fn fits(&self, f: &PciFunction) -> bool {
        match self {
            Criterion::Address(slot) => *slot == f.address.slot,
            Criterion::Path(path) => *path == f.path,
            Criterion::Model(model) => is_model(model, f),
            Criterion::Id(card) => card.id == f.id && card.subsystem.is_none_or(|s| Some(s) == f.subsystem),
            Criterion::Serial(serial) => f.serial.as_ref().is_some_and(|s| s.eq_ignore_ascii_case(serial)),
            Criterion::Uuid(uuid) => f.uuid.as_ref().is_some_and(|u| u.eq_ignore_ascii_case(uuid)),
        }
    }

    /// As it stands in a manifest.
    pub fn line(&self) -> String {
        let (field, value) = match self {
            Criterion::Address(slot) => ("address", slot.to_string()),
            Criterion::Path(path) => ("slot", path.clone()),
            Criterion::Model(model) => ("model", model.clone()),
            Criterion::Id(id) => ("id", id.to_string()),
            Criterion::Serial(serial) => ("serial", serial.clone()),
            Criterion::Uuid(uuid) => ("uuid", uuid.clone()),
        };
        format!("match: {{ {field}: {} }}", serde_json::Value::from(value))
    }
}

/// Whole words from the end, so that `RTX 4070` is no `RTX 4070 Ti`. pci.ids names several models of one chip with `/`
/// between them: each of them fits, with or without the brand of the first.
fn is_model(wanted: &str, f: &PciFunction) -> bool {
    let wanted: Vec<String> = wanted.split_whitespace().map(str::to_lowercase).collect();
    let words = |name: &str| name.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>();
    if wanted.is_empty() {
        return false;
    }
    let first = f.model().split('/').next().unwrap_or_default();
    let brand: Vec<String> = words(first).into_iter().take_while(|w| !w.chars().any(|c| c.is_ascii_digit())).collect();
    let mut names = vec![words(&f.name), words(f.model())];
    for one in f.model().split('/') {
        let one = words(one);
        names.push([brand.clone(), one.clone()].concat());
        names.push(one);
    }
    names.iter().any(|name| name.ends_with(&wanted))
}

/// Why a card was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotOne {
    /// How many fit.
    pub fitting: usize,
    /// Those that fit, or where none does, all: each with a line that fits it alone.
    pub candidates: Vec<(PciSlot, String, String)>,
}

impl NotOne {
    /// One line a candidate, to be put into a manifest.
    pub fn lines(&self) -> String {
        if self.candidates.is_empty() {
            return "none".to_owned();
        }
        let wide = self.candidates.iter().map(|(_, _, line)| line.chars().count()).max().unwrap_or(0);
        let line = |(slot, name, line): &(PciSlot, String, String)| format!("{line:wide$}   # {slot} {name}");
        self.candidates.iter().map(line).collect::<Vec<_>>().join("\n      ")
    }
}

/// What counts: displays that are no management controller's or hypervisor's where a GPU is meant, else all that is no
/// bridge.
fn counts(f: &PciFunction, gpu: bool) -> bool {
    f.virtual_of.is_none() && if gpu { f.is_gpu() } else { !f.is_bridge() }
}

fn slots<'a>(criterion: &Criterion, gpu: bool, facts: &'a HostFacts) -> BTreeMap<PciSlot, &'a PciFunction> {
    // From the back, so that a slot's first function is the one that stays.
    let fitting = facts.pci.values().rev().filter(|f| counts(f, gpu) && criterion.fits(f));
    fitting.map(|f| (f.address.slot, f)).collect()
}

/// The one card that fits.
pub fn find<'a>(criterion: &Criterion, gpu: bool, facts: &'a HostFacts) -> Result<&'a PciFunction, NotOne> {
    let fitting = slots(criterion, gpu, facts);
    match (fitting.len(), fitting.values().next()) {
        (1, Some(one)) => Ok(one),
        (count, _) => {
            let is_offered =
                |f: &&PciFunction| counts(f, gpu) && (!gpu || !f.is_management() && !f.is_virtual_display());
            let all: BTreeMap<PciSlot, &PciFunction> = match count {
                0 => facts.pci.values().rev().filter(is_offered).map(|f| (f.address.slot, f)).collect(),
                _ => fitting,
            };
            let candidate = |f: &&PciFunction| (f.address.slot, f.model().to_owned(), shortest(f, gpu, facts));
            Err(NotOne { fitting: count, candidates: all.values().map(candidate).collect() })
        }
    }
}

/// The shortest line that fits this card alone: what survives a new slot or a new number first, the address last.
pub fn shortest(f: &PciFunction, gpu: bool, facts: &HostFacts) -> String {
    let ids = CardId { id: f.id, subsystem: None };
    let all = [
        (f.model() != f.id.to_string()).then(|| Criterion::Model(f.model().to_owned())),
        Some(Criterion::Id(ids)),
        f.subsystem.map(|s| Criterion::Id(CardId { subsystem: Some(s), ..ids })),
        Some(Criterion::Path(f.path.clone())),
        f.serial.clone().map(Criterion::Serial),
        f.uuid.clone().map(Criterion::Uuid),
    ];
    let alone = all.into_iter().flatten().find(|c| slots(c, gpu, facts).len() == 1);
    alone.unwrap_or(Criterion::Address(f.address.slot)).line()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_by_its_last_words_and_no_other_model_fits() {
        let mut facts = crate::resource::tests::facts();
        let mut names = |name: &str| {
            let f = crate::facts::PciFunction { name: name.to_owned(), ..crate::facts::tests::display() };
            facts.pci.insert(f.address, f.clone());
            f
        };
        let ti = names("AD104 [GeForce RTX 4070 Ti]");
        assert!(
            is_model("RTX 4070 Ti", &ti)
                && is_model("geforce rtx 4070 ti", &ti)
                && is_model("AD104 [GeForce RTX 4070 Ti]", &ti)
        );
        assert!(
            !is_model("RTX 4070", &ti) && !is_model("", &ti) && !is_model("Ti RTX", &ti) && !is_model("070 Ti", &ti)
        );
        let navi = names("Navi 31 [Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M]");
        assert!(is_model("Radeon RX 7900 XTX", &navi) && is_model("7900 XTX", &navi) && is_model("RX 7900 XT", &navi));
        assert!(!is_model("RX 7900", &navi));
        let plain = names("NVIDIA GeForce RTX 3090");
        assert!(is_model("RTX 3090", &plain) && !is_model("RTX 3090 Ti", &plain));
    }

    #[test]
    fn what_a_person_types_is_told_by_its_form() {
        assert_eq!(Criterion::guess("02:00"), Criterion::Address("0000:02:00".parse().unwrap()));
        assert_eq!(Criterion::guess("0000:02:00.1"), Criterion::Address("0000:02:00".parse().unwrap()));
        assert_eq!(Criterion::guess("10de:2684:1458:4104"), Criterion::Id("10de:2684:1458:4104".parse().unwrap()));
        assert!(matches!(Criterion::guess("pcie:1.0/0"), Criterion::Path(_)));
        assert!(matches!(Criterion::guess("RTX 4090"), Criterion::Model(_)));
        assert_eq!(Criterion::guess("10de:2684").line(), "match: { id: \"10de:2684\" }");
    }
}
