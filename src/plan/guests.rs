//! What a reboot of the host means for the VMs that run: those with passed devices cannot be saved by libvirt, and would
//! have the power cut; they are asked to shut down first. The others are the business of the host's libvirt-guests.

use super::{Diff, Entry, Item, Step};
use crate::host::{Answer, Probe};
use crate::resource::libvirt_domain::project;

/// Names the VMs that run at each reboot of an order. What the plan itself stops is not among them.
pub(crate) fn name_guests(order: &mut [Item], entries: &[Entry], probe: &dyn Probe) {
    let reboots = order.iter_mut().filter_map(|item| match item {
        Item::Reboot { shut_down, running, .. } => Some((shut_down, running)),
        _ => None,
    });
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return };
    for (shut_down, running) in reboots {
        for domain in known.domains.iter().filter(|d| d.active && !stopped(entries, &d.name)) {
            let live = domain.live_xml.as_deref().unwrap_or(&domain.inactive_xml);
            let passed = project(live).is_ok_and(|p| !p.functions.is_empty());
            match domain.name.parse() {
                Ok(name) if passed => shut_down.push(name),
                _ => running.push(domain.name.clone()),
            }
        }
    }
}

fn stopped(entries: &[Entry], vm: &str) -> bool {
    let changes = entries.iter().filter_map(|e| if let Diff::Change(c) = &e.diff { Some(c) } else { None });
    changes.flat_map(|c| &c.steps).any(|s| matches!(s, Step::StopDomain { name, .. } if name.as_str() == vm))
}
