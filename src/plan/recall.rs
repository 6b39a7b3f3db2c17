//! Cards that cannot say who they are: NVIDIA's driver alone tells a UUID, and serial numbers are told by a driver or while
//! the card is awake. A card that is bound for VMs is on vfio-pci and may sleep, so that what it is named by is not told any
//! more once gpuvm did what it was asked to. What was told when it was bound is in the ledger.

use super::Past;
use crate::facts::{HostFacts, PciFunction};
use crate::resource::Wanted;
use crate::resource::vfio_binding::Card;

impl Past {
    /// Fills in what is remembered of cards that do not tell it now: of a card with the same ids in the same place, whose
    /// driver is not there to tell another, and only where no card tells the same by itself.
    pub fn recall(&self, facts: &mut HostFacts) {
        let told = facts.clone();
        let tells = |of: fn(&PciFunction) -> &Option<String>, value: &str| {
            told.pci.values().any(|o| of(o).as_ref().is_some_and(|told| told.eq_ignore_ascii_case(value)))
        };
        for card in self.owned.values().filter_map(card) {
            let Some(address) = told.pci.values().find(|f| is_it(card, f, &told)).map(|f| f.address) else { continue };
            let Some(f) = facts.pci.get_mut(&address) else { continue };
            let on_vfio = f.driver.as_deref().is_some_and(|d| d.contains("vfio"));
            if let Some(uuid) = card.uuid.as_ref().filter(|uuid| !tells(|o| &o.uuid, uuid))
                && f.uuid.is_none()
                && f.driver.as_deref() != Some("nvidia")
            {
                (f.uuid, f.recalled.uuid) = (Some(uuid.clone()), true);
            }
            if let Some(serial) = card.serial.as_ref().filter(|serial| !tells(|o| &o.serial, serial))
                && f.serial.is_none()
                && (on_vfio || f.driver.is_none() || !f.is_awake())
            {
                (f.serial, f.recalled.serial) = (Some(serial.clone()), true);
            }
        }
    }
}

fn card(wanted: &Wanted) -> Option<&Card> {
    match wanted {
        Wanted::VfioBinding(binding) => binding.card.as_ref(),
        Wanted::SharedGpu(shared) => shared.card.as_ref(),
        _ => None,
    }
}

/// Whether the first function of a slot may be the card: the same model in the same place, that tells nothing else.
fn is_it(card: &Card, f: &PciFunction, facts: &HostFacts) -> bool {
    let first = facts.slot(f.address.slot).next().is_some_and(|first| first.address == f.address);
    let other = |told: &Option<String>, was: &Option<String>| {
        told.as_ref().zip(was.as_ref()).is_some_and(|(told, was)| !told.eq_ignore_ascii_case(was))
    };
    let same_model = (card.id, card.subsystem, card.path.as_str()) == (f.id, f.subsystem, f.path.as_str());
    first && same_model && !other(&f.uuid, &card.uuid) && !other(&f.serial, &card.serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::display;
    use crate::gpu::identity::{Criterion, find};
    use crate::plan::Key;
    use crate::resource::Resource;
    use crate::resource::vfio_binding::{VfioBinding, Vouched};

    const UUID: &str = "GPU-1";

    /// A card on vfio-pci, which tells nothing.
    fn card(slot: &str, path: &str) -> PciFunction {
        PciFunction {
            address: format!("{slot}.0").parse().unwrap(),
            path: path.to_owned(),
            subsystem: Some("1458:4104".parse().unwrap()),
            driver: Some("vfio-pci".to_owned()),
            ..display()
        }
    }

    fn host(cards: &[PciFunction]) -> HostFacts {
        let mut facts = crate::resource::tests::facts();
        facts.pci = cards.iter().map(|f| (f.address, f.clone())).collect();
        facts
    }

    /// What is remembered of a card that told its UUID then.
    fn remembers(all: &[(&str, &PciFunction)]) -> Past {
        let mut past = Past::default();
        for (name, f) in all {
            let then = host(&[PciFunction { uuid: Some(UUID.to_owned()), ..(*f).clone() }]);
            let binding = VfioBinding {
                name: (*name).to_owned(),
                slot: f.address.slot,
                companions: Default::default(),
                card: Card::of(&then, f.address.slot),
                vouched: Vouched::default(),
                still_for_vms: false,
            };
            past.owned.insert(Key::new(VfioBinding::KIND, *name), binding.into());
        }
        past
    }

    fn meant(past: &Past, cards: &[PciFunction]) -> Result<String, usize> {
        let mut facts = host(cards);
        past.recall(&mut facts);
        let found = find(&Criterion::Uuid(UUID.to_owned()), true, &facts);
        found.map(|f| f.address.slot.to_string()).map_err(|e| e.fitting)
    }

    #[test]
    fn it_is_the_card_of_these_ids_in_this_place_and_no_other() {
        let (a, b) = (card("0000:01:00", "pcie:1.0/0"), card("0000:02:00", "pcie:6.0/0"));
        let past = remembers(&[("work", &b)]);
        assert_eq!(meant(&past, &[a.clone(), b.clone()]), Ok("0000:02:00".to_owned()));
        // Other numbers of its bus, the same place.
        let renumbered = card("0000:03:00", "pcie:6.0/0");
        assert_eq!(meant(&past, &[a.clone(), renumbered]), Ok("0000:03:00".to_owned()));
        assert_eq!(meant(&Past::default(), &[a.clone(), b.clone()]), Err(0), "nothing is remembered");
        for other in [
            PciFunction { id: "10de:2704".parse().unwrap(), ..b.clone() },
            PciFunction { subsystem: None, ..b.clone() },
            PciFunction { path: "pcie:7.0/0".to_owned(), ..b.clone() },
            PciFunction { uuid: Some("GPU-2".to_owned()), ..b.clone() },
            // Its driver is there to tell, and does not yet.
            PciFunction { driver: Some("nvidia".to_owned()), ..b.clone() },
        ] {
            assert_eq!(meant(&past, &[a.clone(), other.clone()]), Err(0), "{other:?}");
        }
    }

    #[test]
    fn what_a_card_tells_itself_counts_and_two_that_may_be_it_are_refused() {
        let (a, b) = (card("0000:01:00", "pcie:1.0/0"), card("0000:02:00", "pcie:6.0/0"));
        let past = remembers(&[("work", &b)]);
        let tells = PciFunction { uuid: Some(UUID.to_owned()), driver: Some("nvidia".to_owned()), ..a.clone() };
        assert_eq!(meant(&past, &[tells, b.clone()]), Ok("0000:01:00".to_owned()));
        let both = remembers(&[("work", &b), ("former", &a)]);
        assert_eq!(meant(&both, &[a, b]), Err(2));
    }
}
