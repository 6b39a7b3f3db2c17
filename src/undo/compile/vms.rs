//! VMs: the definition that one had, whether it ran, and which one has a device now.

use std::collections::BTreeSet;

use super::{Thing, same};
use crate::host::{Answer, Domain, HostError, Probe};
use crate::plan::{Change, Diff, Entry, FieldDiff, Place, Risk, Seen, Step, TextEdit, WaitFor};
use crate::resource::libvirt_domain::{self, Projection, project, without_private_parts};
use crate::types::{PciAddress, line_edits};

impl Thing<'_> {
    pub(super) fn domain(&mut self, place: &Place, before: &Seen, is: &Seen, change: &mut Change, probe: &dyn Probe) {
        let Place::Domain(name) = place else { return };
        match (before, is) {
            (Seen::Nothing, Seen::Domain { active, .. }) => {
                if *active {
                    change.steps.push(Step::shut_down(name));
                    change.risks.insert(Risk::GuestRestart);
                    change.notes.push("its guest is asked to shut down; it is never powered off".to_owned());
                }
                // Its disks stay, and what is on them may be locked with a key from there.
                let keep_tpm = !self.back.with_data
                    && probe.virtualisation().ok().and_then(Answer::value).is_some_and(|known| {
                        let domain = known.domain(name.as_str());
                        domain.is_some_and(|domain| libvirt_domain::keep_tpm(domain, &known, change))
                    });
                change.steps.push(Step::undefine(name, keep_tpm));
                change.notes.push("its definition goes, with its UEFI variables".to_owned());
            }
            (Seen::Domain { xml, autostart, active }, Seen::Nothing) => {
                change.steps.push(Step::DefineDomain { name: name.clone(), xml: xml.clone(), autostart: *autostart });
                if *active {
                    change.steps.push(Step::StartDomain { name: name.clone() });
                }
            }
            (Seen::Domain { xml, autostart, active }, Seen::Domain { active: runs, xml: xml_now, .. }) => {
                if !same(before, is) {
                    // What others wrote into it may be secret: it is not shown, and an edit does not carry it.
                    let [now, then] = [xml_now, xml].map(|xml| without_private_parts(xml));
                    change.fields.push(FieldDiff::text(place.to_string(), Some(&now), Some(&then)));
                    if now == then && xml_now != xml {
                        change.notes.push("what differs is others' (a title, metadata, …) and is not shown".to_owned());
                    }
                    let (name, autostart) = (name.clone(), *autostart);
                    change.steps.push(match TextEdit::new(xml_now, line_edits(xml_now, xml)) {
                        Ok(edit) => Step::EditDomain { name, edit, autostart },
                        Err(_) => Step::DefineDomain { name, xml: xml.clone(), autostart },
                    });
                    if *runs && *active {
                        change.risks.insert(Risk::GuestRestart);
                        change.complete_after = Some(WaitFor::GuestRestart);
                        change.notes.push("it runs on as it is; the change takes effect at its next start".to_owned());
                    }
                }
                // Only what the run itself did about it, and nobody else since.
                let left = match self.recorded.after.get(place) {
                    Some(Seen::Domain { active, .. }) => Some(active),
                    _ => None,
                };
                match (active, runs) {
                    (true, false) if left.is_none_or(|left| left == runs) => {
                        change.steps.push(Step::StartDomain { name: name.clone() });
                        change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
                    }
                    (false, true) if left == Some(runs) => {
                        change.steps.push(Step::shut_down(name));
                        change.risks.insert(Risk::GuestRestart);
                        change.fields.push(FieldDiff::new("running", Some("yes".to_owned()), Some("no".to_owned())));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Whether the same undo shuts a VM down: it was not there before the run, or the run started it.
    pub(super) fn stops(&self, vm: &str) -> bool {
        self.recorded.before.iter().any(|(key, place, before)| {
            let its = matches!(place, Place::Domain(name) if name.as_str() == vm);
            let started = || matches!(self.recorded.after.get(place), Some(Seen::Domain { active: true, .. }));
            its && !self.back.skips(key)
                && match before {
                    Seen::Nothing => true,
                    Seen::Domain { active, .. } => !active && started(),
                    _ => false,
                }
        })
    }
}

/// The network devices of VMs that a plan stops.
pub(super) fn leaving(entries: &[Entry], probe: &dyn Probe) -> BTreeSet<String> {
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return BTreeSet::new() };
    let changes = entries.iter().filter_map(|e| if let Diff::Change(c) = &e.diff { Some(c) } else { None });
    let stopped = changes.flat_map(|c| &c.steps).filter_map(|step| match step {
        Step::StopDomain { name, .. } => known.domain(name.as_str())?.live_xml.as_deref(),
        _ => None,
    });
    stopped.flat_map(libvirt_domain::taps).collect()
}

/// The running VM that has one of some functions.
pub(super) fn running_with(one: impl Fn(&PciAddress) -> bool, probe: &dyn Probe) -> Result<Option<String>, HostError> {
    running(|is| is.functions.iter().any(&one), probe)
}

/// The first VM that runs as this says.
pub(super) fn running(of: impl Fn(&Projection) -> bool, probe: &dyn Probe) -> Result<Option<String>, HostError> {
    let Answer::Value(known) = probe.virtualisation()? else { return Ok(None) };
    let has = |d: &&Domain| {
        let live = d.live_xml.as_deref().filter(|_| d.active).and_then(|xml| project(xml).ok());
        live.is_some_and(|p| of(&p))
    };
    Ok(known.domains.iter().find(has).map(|d| d.name.clone()))
}
