//! A VM goes: its definition with what libvirt keeps for it, and the disks that gpuvm made for it and nothing else uses.
//! What gpuvm did not make stays, and is named.

use std::path::PathBuf;

use super::vm::{foreign, key, known, none};
use super::{Compiled, Look};
use crate::host::{Domain, HostError, Virtualisation};
use crate::plan::{Action, Change, Diff, Finding, Key, Risk, Severity, Step};
use crate::resource::libvirt_domain::{is_marked, nvram, project};
use crate::resource::volume::Volume;
use crate::resource::{Resource, Wanted};
use crate::types::DomainName;

pub(super) fn delete(
    name: &DomainName,
    uuid: Option<&str>,
    keep_disks: bool,
    look: Look<'_>,
) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let known = match known(look)? {
        Ok(known) => known,
        Err(diff) => {
            compiled.entry(&key(name), [], *diff);
            return Ok(compiled);
        }
    };
    let made: Vec<&Volume> = look.past.owned.values().filter_map(|w| of(name, w)).collect();
    let domain = known.domain(name.as_str());
    let definition = match (domain, uuid) {
        (None, None) if made.is_empty() || keep_disks => Some(none(&known)),
        (None, None) => None,
        (None, Some(_)) => Some(Diff::InSync { evidence: "it is gone".to_owned() }),
        (Some(domain), _) if !is_marked(&domain.inactive_xml) => Some(foreign(name, "undefine")),
        (Some(domain), uuid) if uuid != Some(domain.uuid.as_str()) => Some(Diff::Blocked {
            why: "another VM has this name by now".to_owned(),
            help: format!("look at it: gpuvm vm info {name}"),
        }),
        (Some(domain), _) if domain.active => {
            Some(Diff::Blocked { why: "it runs".to_owned(), help: format!("shut it down first: gpuvm vm stop {name}") })
        }
        (Some(domain), _) => Some(undefined(name, domain)),
    };
    let stays = !definition.as_ref().is_none_or(|d| matches!(d, Diff::Change(_) | Diff::InSync { .. }));
    if let Some(diff) = definition {
        compiled.ours.insert(key(name), None);
        compiled.entry(&key(name), [], diff);
    }
    // What is said of its disks is of no use where the VM stays.
    if stays {
        return Ok(compiled);
    }
    for volume in &made {
        let at = Key::new(Volume::KIND, volume.name());
        let diff = disk(name, volume, keep_disks, &known);
        if gone(volume, &known) {
            compiled.ours.insert(at.clone(), None);
        }
        compiled.entry(&at, [key(name)], diff);
    }
    for seed in look.past.seeds() {
        if seed.vm == *name {
            compiled.findings.push(Finding {
                severity: Severity::Note,
                code: "stays".to_owned(),
                place: String::new(),
                message: format!("its seed `{}` stays, for root's eyes", seed.path.display()),
                help: "it goes with `absent: true` in host.yaml".to_owned(),
            });
        }
    }
    if let Some(domain) = domain {
        compiled.findings.extend(foreign_disks(domain, &made, &known));
    }
    Ok(compiled)
}

/// A disk that gpuvm made for this VM.
fn of<'a>(name: &DomainName, wanted: &'a Wanted) -> Option<&'a Volume> {
    match wanted {
        Wanted::Volume(volume) if volume.vm.as_ref() == Some(name) => Some(volume),
        _ => None,
    }
}

fn undefined(name: &DomainName, domain: &Domain) -> Diff {
    let mut change = Change::new(Action::Remove, "its definition, UEFI variables, TPM state and saved memory");
    if domain.inactive_xml.contains("<tpm") {
        change.risks.insert(Risk::DataLoss);
        change.notes.push(
            "what its guest keeps in the TPM (keys of encrypted disks) is lost, also with --keep-disks".to_owned(),
        );
    }
    change.steps.push(Step::UndefineDomain {
        name: name.clone(),
        wholly: true,
        nvram: nvram(&domain.inactive_xml).map(PathBuf::from),
    });
    change.notes.push(format!(
        "while host.yaml lists it, the next apply makes it anew: take `{name}` out, or write `absent: true`"
    ));
    Diff::Change(change)
}

fn at<'a>(volume: &Volume, known: &'a Virtualisation) -> Option<&'a crate::host::Volume> {
    known.pool(volume.pool.as_str())?.volumes.iter().find(|v| v.name == volume.name)
}

/// Nothing is where it was. What a stopped pool holds is not known.
fn gone(volume: &Volume, known: &Virtualisation) -> bool {
    at(volume, known).is_none() && known.pool(volume.pool.as_str()).is_none_or(|p| p.active)
}

fn disk(name: &DomainName, volume: &Volume, keep: bool, known: &Virtualisation) -> Diff {
    let stays = |why: &str| Diff::InSync { evidence: why.to_owned() };
    if keep {
        return stays("it stays, as asked");
    }
    if volume.take_over {
        return stays("it stays: it was there before gpuvm used it");
    }
    let Some(there) = at(volume, known) else {
        return match gone(volume, known) {
            true => stays("it is gone"),
            false => Diff::Blocked {
                why: format!("its pool `{}` is not started, so what is in it is not known", volume.pool),
                help: format!("virsh pool-start {}; or leave the disks: --keep-disks", volume.pool),
            },
        };
    };
    if let Some(user) = known.user_of(&there.path, Some(name.as_str())) {
        return Diff::Blocked {
            why: format!("{user} needs it too"),
            help: format!("take it from that one first; or leave the disks: gpuvm vm delete {name} --keep-disks"),
        };
    }
    let mut change = Change::new(Action::Remove, format!("{}, with everything on it", there.size()));
    change.risks.insert(Risk::DataLoss);
    change.steps.push(Step::RemoveVolume { pool: volume.pool.clone(), name: volume.name.clone() });
    Diff::Change(change)
}

/// What its definition names and gpuvm did not make.
fn foreign_disks(domain: &Domain, made: &[&Volume], known: &Virtualisation) -> Vec<Finding> {
    let ours: Vec<String> =
        made.iter().filter_map(|v| Some(at(v, known)?.path.to_string_lossy().into_owned())).collect();
    let Ok(is) = project(&domain.inactive_xml) else { return Vec::new() };
    let first = is.disks.iter().filter_map(|d| d.first()).filter(|source| !ours.contains(source));
    let stays = |source: &String| Finding {
        severity: Severity::Note,
        code: "stays".to_owned(),
        place: String::new(),
        message: format!("`{source}` stays: gpuvm did not make it"),
        help: String::new(),
    };
    first.map(stays).collect()
}
