//! VMs that a plan starts with a device that a running VM has: libvirt would refuse the start in the middle of the run. The
//! plan does so before anything is changed, by the name of the other; one that the same plan shuts down goes first.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, Diff, Entry, Key, Step, WaitFor};
use crate::facts::HostFacts;
use crate::host::{Answer, Domain, Probe, Virtualisation};
use crate::resource::Resource;
use crate::resource::libvirt_domain::{LibvirtDomain, is_marked, others_with_its_devices};

/// Refuses each start of a VM whose devices another one has. Where libvirt does not tell, nothing is started either.
pub(crate) fn refuse_taken(entries: &mut [Entry], probe: &dyn Probe, facts: &HostFacts) {
    let starts: Vec<usize> = (0..entries.len()).filter(|n| starting(&entries[*n]).is_some()).collect();
    if starts.is_empty() {
        return;
    }
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return };
    let stops: BTreeMap<String, Key> = entries.iter().filter_map(stopped).collect();
    // What this plan starts has its devices too, from then on.
    let mut then = Virtualisation::clone(&known);
    for n in starts {
        let Some(change) = starting(&entries[n]) else { continue };
        let name = entries[n].key.name.clone();
        match judge(&name, change, (&known, &then), &stops, facts) {
            Ok((xml, after)) => {
                entries[n].after.extend(after);
                starts_with(&mut then, &name, xml);
            }
            Err(diff) => entries[n].diff = *diff,
        }
    }
}

/// The change of a VM's that starts it; one that waits for a boot is looked at again after that.
pub(super) fn starting(entry: &Entry) -> Option<&Change> {
    let change = match &entry.diff {
        Diff::Change(change) => change,
        Diff::Waits { on, promise, .. } if *on != WaitFor::Reboot => promise,
        _ => return None,
    };
    let starts = |s: &Step| matches!(s, Step::StartDomain { .. });
    (entry.key.kind == LibvirtDomain::KIND && change.steps.iter().any(starts)).then_some(change)
}

/// The VM that an entry shuts down for good, with the key of that.
pub(super) fn stopped(entry: &Entry) -> Option<(String, Key)> {
    let Diff::Change(change) = &entry.diff else { return None };
    let steps = change.steps.iter().rev();
    let last = steps.filter_map(|step| match step {
        Step::StopDomain { name, .. } => Some(Some(name.to_string())),
        Step::StartDomain { .. } => Some(None),
        _ => None,
    });
    Some((last.flatten().next()?, entry.key.clone())).filter(|_| starting(entry).is_none())
}

/// The definition that the VM is started with and what has to be done before; else what to say in place of the change.
fn judge(
    name: &str,
    change: &Change,
    (known, then): (&Virtualisation, &Virtualisation),
    stops: &BTreeMap<String, Key>,
    facts: &HostFacts,
) -> Result<(String, BTreeSet<Key>), Box<Diff>> {
    let unknown = |why: String| Box::new(Diff::Unknown { why });
    let xml = definition(name, change, known)
        .ok_or_else(|| unknown("the definition that it would start with is not known; plan again".to_owned()))?;
    let mut after = BTreeSet::new();
    for (other, device) in others_with_its_devices(name, &xml, then, Some(facts)).map_err(unknown)? {
        let runs = known.domain(other).filter(|d| d.active);
        match (runs, stops.get(other)) {
            (Some(_), Some(stop)) => _ = after.insert(stop.clone()),
            (Some(domain), None) => {
                let stop = if is_marked(&domain.inactive_xml) { "gpuvm vm stop" } else { "virsh shutdown" };
                return Err(Box::new(Diff::Blocked {
                    why: format!("it would be started, and VM `{other}` has {device}, and runs"),
                    help: format!("shut that down first: {stop} {other}"),
                }));
            }
            (None, _) => {
                return Err(Box::new(Diff::Blocked {
                    why: format!("it would be started, and so would VM `{other}`, which has {device}"),
                    help: "a device is in one running VM at a time: let one of them be off".to_owned(),
                }));
            }
        }
    }
    Ok((xml, after))
}

/// The definition that a VM has once this change has come to its start.
pub(super) fn definition(name: &str, change: &Change, known: &Virtualisation) -> Option<String> {
    let mut xml = known.domain(name).map(|d| d.inactive_xml.clone());
    for step in &change.steps {
        match step {
            Step::DefineDomain { xml: new, .. } => xml = Some(new.clone()),
            Step::EditDomain { edit, .. } => xml = edit.apply(&xml?),
            Step::RestoreDomain { snapshot, edit, .. } => {
                xml = edit.apply(&known.domain(name)?.definition_at(snapshot.as_str())?);
            }
            Step::CloneDomain { from, snapshot, edit, .. } => {
                let from = known.domain(from.as_str())?;
                let of = match snapshot {
                    None => from.inactive_xml.clone(),
                    Some(snapshot) => from.definition_at(snapshot.as_str())?,
                };
                xml = edit.apply(&of);
            }
            _ => {}
        }
    }
    xml
}

fn starts_with(then: &mut Virtualisation, name: &str, xml: String) {
    let domain = Domain {
        name: name.to_owned(),
        active: true,
        live_xml: Some(xml.clone()),
        inactive_xml: xml,
        ..Domain::default()
    };
    then.domains.retain(|d| d.name != name);
    then.domains.push(domain);
}
