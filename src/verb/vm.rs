//! Verbs about whether a VM runs. They are for VMs of gpuvm's alone: one that others made stays untouched, and is theirs
//! to start.

use std::sync::Arc;

use super::{Compiled, Look, Stop};
use crate::host::{Answer, Domain, HostError, Virtualisation};
use crate::plan::{Action, Change, Diff, FieldDiff, Finding, Key, Risk, Severity, Step};
use crate::resource::libvirt_domain::{LibvirtDomain, is_marked, others_with_its_devices};
use crate::resource::{Resource, Wanted};
use crate::types::DomainName;

/// A VM runs. With `swap`, those that have its devices are off before.
pub(super) fn start(name: &DomainName, swap: bool, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let mut after = Vec::new();
    let diff = match find(name, look, "start")? {
        Err(diff) => *diff,
        Ok((domain, _)) if domain.paused => stands_still(name, &domain),
        Ok((domain, _)) if domain.active => Diff::InSync { evidence: "it runs".to_owned() },
        Ok((domain, known)) => {
            match others_with_its_devices(&domain.name, &domain.inactive_xml, &known, Some(look.facts)) {
                Err(why) => Diff::Unknown { why },
                Ok(others) => match others.first() {
                    None => starting(name),
                    Some((other, device)) if !swap => Diff::Blocked {
                        why: format!("VM `{other}` has {device}, and runs"),
                        help: format!("shut that down first, and start this one: gpuvm vm start {name} --swap"),
                    },
                    Some(_) => {
                        for (other, _) in others {
                            after.push(gives_way(other, look, &mut compiled)?);
                        }
                        starting(name)
                    }
                },
            }
        }
    };
    first_start(name, look, &diff, &mut compiled);
    compiled.entry(&key(name), after, diff);
    Ok(compiled)
}

/// Another VM is off before: its guest is asked, and waited for, and its power is never cut.
fn gives_way(other: &str, look: Look<'_>, compiled: &mut Compiled) -> Result<Key, HostError> {
    let Ok(name) = other.parse::<DomainName>() else {
        let key = Key::new(LibvirtDomain::KIND, other);
        let help = format!("shut it down yourself: virsh shutdown {other}");
        compiled.entry(
            &key,
            [],
            Diff::Blocked { why: "it was not made by gpuvm, which leaves it as it is".to_owned(), help },
        );
        return Ok(key);
    };
    let off = stop(&name, Stop::default(), look)?;
    compiled.entries.extend(off.entries);
    compiled.findings.extend(off.findings);
    Ok(key(&name))
}

/// A VM is off.
pub(super) fn stop(name: &DomainName, how: Stop, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let diff = match ours(name, look, "shutdown")? {
        Err(diff) => *diff,
        Ok(domain) if !domain.active => Diff::InSync { evidence: "it is off".to_owned() },
        Ok(domain) if domain.paused && !how.force => stands_still(name, &domain),
        Ok(domain) => {
            if let Some(Wanted::LibvirtDomain(LibvirtDomain { running: Some(true), .. })) =
                look.past.owned.get(&key(name))
            {
                compiled.findings.push(Finding {
                    severity: Severity::Warning,
                    code: "comes-back".to_owned(),
                    place: format!("vms.{name}"),
                    message: "the manifest says `state: running`: the next apply starts it again".to_owned(),
                    help: String::new(),
                });
            }
            let mut change = stopping(name, &domain, how);
            change.fields.push(FieldDiff::new("running", Some("yes".to_owned()), Some("no".to_owned())));
            Diff::Change(change)
        }
    };
    compiled.entry(&key(name), [], diff);
    Ok(compiled)
}

/// A VM runs, and not from that start. One that was off is started.
pub(super) fn restart(
    name: &DomainName,
    ran_as: Option<u32>,
    how: Stop,
    look: Look<'_>,
) -> Result<Compiled, HostError> {
    let diff = match ours(name, look, "reboot")? {
        Err(diff) => *diff,
        Ok(domain) if !domain.active => starting(name),
        Ok(domain) if domain.id != ran_as => Diff::InSync { evidence: "it was started since".to_owned() },
        Ok(domain) if domain.paused && !how.force => stands_still(name, &domain),
        Ok(domain) => {
            let mut change = stopping(name, &domain, how);
            change.what = "shut down, and started again".to_owned();
            change.steps.push(Step::StartDomain { name: name.clone() });
            Diff::Change(change)
        }
    };
    let mut compiled = Compiled::default();
    first_start(name, look, &diff, &mut compiled);
    compiled.entry(&key(name), [], diff);
    Ok(compiled)
}

fn starting(name: &DomainName) -> Diff {
    let mut change = Change::new(Action::Change, "started");
    change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
    change.steps.push(Step::StartDomain { name: name.clone() });
    Diff::Change(change)
}

fn stopping(name: &DomainName, domain: &Domain, how: Stop) -> Change {
    let mut change = Change::new(Action::Change, "shut down");
    // A guest that stands still hears nothing.
    let patience_s = if domain.paused { Some(0) } else { how.patience_s };
    change.steps.push(Step::StopDomain { name: name.clone(), patience_s, cut_power: how.force });
    change.risks.insert(Risk::GuestRestart);
    if how.force {
        change.risks.insert(Risk::DataLoss);
        change.notes.push("what its guest has not written to its disks by then is lost".to_owned());
    }
    change
}

fn stands_still(name: &DomainName, domain: &Domain) -> Diff {
    let why = domain.condition.as_ref().map_or(String::new(), |c| format!(": {c}"));
    Diff::Blocked {
        why: format!("it is paused, so its guest hears nothing{why}"),
        help: format!("let it go on: virsh resume {name}; or cut its power: gpuvm vm stop {name} --force"),
    }
}

/// A first start that is still owed is made with this one.
fn first_start(name: &DomainName, look: Look<'_>, diff: &Diff, compiled: &mut Compiled) {
    let key = key(name);
    if let (Some(Wanted::LibvirtDomain(last)), Diff::Change(_) | Diff::InSync { .. }) =
        (look.past.owned.get(&key), diff)
    {
        compiled.ours.insert(key, Some(LibvirtDomain { start_owed: false, ..last.clone() }.into()));
    }
}

pub(super) fn key(name: &DomainName) -> Key {
    Key::new(LibvirtDomain::KIND, name.as_str())
}

/// What libvirt knows; else what to say in place of a change.
pub(super) fn known(look: Look<'_>) -> Result<Result<Arc<Virtualisation>, Box<Diff>>, HostError> {
    Ok(match look.probe.virtualisation()? {
        Answer::Value(known) => Ok(known),
        Answer::Absent => Err(Box::new(Diff::Blocked {
            why: "libvirt is not installed, or its daemon has no socket".to_owned(),
            help: "see what is missing: gpuvm plan; or start it: systemctl start libvirtd.socket".to_owned(),
        })),
        Answer::Denied => {
            Err(Box::new(Diff::Unknown { why: "this user may not ask libvirt: run gpuvm as root".to_owned() }))
        }
    })
}

/// There is no VM of this name.
pub(super) fn none(known: &Virtualisation) -> Diff {
    let names: Vec<&str> = known.domains.iter().map(|d| d.name.as_str()).collect();
    let help = match names.is_empty() {
        true => "this host has no VM; declare one in host.yaml, and gpuvm apply".to_owned(),
        false => format!("there is: {}", names.join(", ")),
    };
    Diff::Blocked { why: "there is no VM of this name".to_owned(), help }
}

/// A VM that others made.
pub(super) fn foreign(name: &DomainName, word: &str) -> Diff {
    Diff::Blocked {
        why: "it was not made by gpuvm, which leaves it as it is".to_owned(),
        help: format!("virsh {word} {name}; or hand it over first: gpuvm adopt libvirt-domain/{name}"),
    }
}

/// What was looked for; else what to say in place of a change.
type Found<T> = Result<Result<T, Box<Diff>>, HostError>;

/// The VM, which is gpuvm's, with all that libvirt knows.
pub(super) fn find(name: &DomainName, look: Look<'_>, word: &str) -> Found<(Domain, Arc<Virtualisation>)> {
    Ok(known(look)?.and_then(|known| match known.domain(name.as_str()) {
        None => Err(Box::new(none(&known))),
        Some(domain) if !is_marked(&domain.inactive_xml) => Err(Box::new(foreign(name, word))),
        Some(domain) => Ok((domain.clone(), known)),
    }))
}

/// The same, of the VM alone.
fn ours(name: &DomainName, look: Look<'_>, word: &str) -> Found<Domain> {
    Ok(find(name, look, word)?.map(|(domain, _)| domain))
}
