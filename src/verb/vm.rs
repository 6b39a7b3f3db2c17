//! Verbs about one VM. They change VMs of gpuvm's alone: one that others made stays untouched, and is theirs to start.

use std::sync::Arc;

use super::{Compiled, Look, entry};
use crate::host::{Answer, Domain, HostError, Virtualisation};
use crate::plan::{Action, Change, Diff, FieldDiff, Key, Step};
use crate::resource::libvirt_domain::{LibvirtDomain, is_marked};
use crate::resource::{Resource, Wanted};
use crate::types::DomainName;

/// A VM runs.
pub(super) fn start(name: &DomainName, look: Look<'_>) -> Result<Compiled, HostError> {
    let key = key(name);
    let diff = match find(name, look, "start")? {
        Err(diff) => diff,
        Ok((domain, _)) if domain.active => Diff::InSync { evidence: "it runs".to_owned() },
        Ok(_) => {
            let mut change = Change::new(Action::Change, "started");
            change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
            change.steps.push(Step::StartDomain { name: name.clone() });
            Diff::Change(change)
        }
    };
    let mut compiled = Compiled::default();
    // A first start that is still owed is made with this one.
    if let Some(Wanted::LibvirtDomain(last)) = look.past.owned.get(&key).filter(|_| starts(&diff)) {
        compiled.ours.insert(key.clone(), Some(LibvirtDomain { start_owed: false, ..last.clone() }.into()));
    }
    compiled.entries.push(entry(key, &format!("vm start {name}"), diff));
    Ok(compiled)
}

fn starts(diff: &Diff) -> bool {
    matches!(diff, Diff::Change(_) | Diff::InSync { .. })
}

pub(super) fn key(name: &DomainName) -> Key {
    Key::new(LibvirtDomain::KIND, name.as_str())
}

/// The VM, which is gpuvm's; else what to say in place of a change.
pub(super) fn find(
    name: &DomainName,
    look: Look<'_>,
    word: &str,
) -> Result<Result<(Domain, Arc<Virtualisation>), Diff>, HostError> {
    let known = match look.probe.virtualisation()? {
        Answer::Value(known) => known,
        Answer::Absent => {
            return Ok(Err(Diff::Blocked {
                why: "libvirt is not installed, or its daemon has no socket".to_owned(),
                help: "see what is missing: gpuvm plan; or start it: systemctl start libvirtd.socket".to_owned(),
            }));
        }
        Answer::Denied => {
            return Ok(Err(Diff::Unknown { why: "this user may not ask libvirt: run gpuvm as root".to_owned() }));
        }
    };
    let Some(domain) = known.domain(name.as_str()).cloned() else {
        let names: Vec<&str> = known.domains.iter().map(|d| d.name.as_str()).collect();
        let help = match names.is_empty() {
            true => "this host has no VM; declare one in host.yaml, and gpuvm apply".to_owned(),
            false => format!("there is: {}", names.join(", ")),
        };
        return Ok(Err(Diff::Blocked { why: "there is no VM of this name".to_owned(), help }));
    };
    if !is_marked(&domain.inactive_xml) {
        return Ok(Err(Diff::Blocked {
            why: "it was not made by gpuvm, which leaves it as it is".to_owned(),
            help: format!("virsh {word} {name}; or hand it over first: gpuvm adopt libvirt-domain/{name}"),
        }));
    }
    Ok(Ok((domain, known)))
}
