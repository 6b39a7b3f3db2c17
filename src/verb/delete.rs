//! A VM goes: its definition with what libvirt keeps for it, its seed, and the disks that gpuvm made for it and nothing
//! else uses.
//! What gpuvm did not make stays, and is named.

use std::path::PathBuf;

use super::vm::{foreign, key, known, none};
use super::{Compiled, Look};
use crate::host::{Domain, HostError, Probe, Virtualisation};
use crate::plan::{Action, Change, Diff, Finding, Key, Risk, Severity, Step};
use crate::resource::block_volume::BlockVolume;
use crate::resource::chains::{all_over, chain_of};
use crate::resource::layers::number;
use crate::resource::libvirt_domain::{is_marked, keep_tpm, nvram, project};
use crate::resource::seed::Seed;
use crate::resource::snapshots::{Part, snapshots};
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
    let disks: Vec<&Volume> = look.past.owned.values().filter_map(|w| of(name, w)).collect();
    let blocks: Vec<&BlockVolume> = look.past.owned.values().filter_map(|w| block_of(name, w)).collect();
    let domain = known.domain(name.as_str());
    let definition = match (domain, uuid) {
        (None, None) if disks.is_empty() && blocks.is_empty() || keep_disks => Some(none(&known)),
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
        (Some(domain), _) => Some(undefined(name, domain, keep_disks, &known)),
    };
    let layers = match layers(&disks, keep_disks, &known, look.probe) {
        Ok(layers) => layers,
        Err(why) => {
            compiled.entry(&key(name), [], Diff::Unknown { why });
            return Ok(compiled);
        }
    };
    let vm_stays = !definition.as_ref().is_none_or(|d| matches!(d, Diff::Change(_) | Diff::InSync { .. }));
    if let Some(diff) = definition {
        compiled.ours.insert(key(name), None);
        compiled.entry(&key(name), [], diff);
    }
    // What is said of its disks is of no use where the VM stays.
    if vm_stays {
        return Ok(compiled);
    }
    let mut before = vec![key(name)];
    if !layers.is_empty() {
        let at = Key::new(super::snapshot::KIND, name.as_str());
        compiled.entry(&at, [key(name)], without_layers(name, &layers, &known, look.probe));
        before.push(at);
    }
    for volume in &disks {
        let at = Key::new(Volume::KIND, volume.name());
        let diff = disk(name, volume, keep_disks, &layers, &known, look.probe);
        if gone(volume, &known) {
            compiled.ours.insert(at.clone(), None);
        }
        if let (false, Diff::Stays { why, .. }) = (keep_disks, &diff) {
            compiled.ours.insert(at.clone(), None);
            compiled.findings.push(stays(
                format!("`{}` stays: {why}", volume.name()),
                format!("to delete it, with what is on it: virsh vol-delete {} --pool {}", volume.name, volume.pool),
            ));
        }
        compiled.entry(&at, before.clone(), diff);
    }
    seed(name, look, &known, &mut compiled)?;
    for block in &blocks {
        let diff = match keep_disks {
            true => Diff::stays("it stays, as asked"),
            false => {
                let leave = format!("leave the disks: gpuvm vm delete {name} --keep-disks");
                block.deletion(|vm| vm == name.as_str(), &leave, look.probe)?
            }
        };
        if !keep_disks && diff.settled() {
            compiled.ours.insert(block.key(), None);
        }
        if let (false, Diff::Stays { why, .. }) = (keep_disks, &diff) {
            let message = format!("`{}` stays: {why}", block.device().display());
            let help = format!("to delete it, with what is on it: {}", block.store.remove_words(&block.name));
            compiled.findings.push(stays(message, help));
        }
        compiled.entry(&block.key(), [key(name)], diff);
    }
    if let Some(domain) = domain {
        compiled.findings.extend(foreign_disks(domain, &disks, &blocks, &layers, &known, look.probe));
    }
    Ok(compiled)
}

/// The image that told its guest what to do at its first boot, with keys and maybe passwords in it: nobody else's.
fn seed(name: &DomainName, look: Look<'_>, known: &Virtualisation, compiled: &mut Compiled) -> Result<(), HostError> {
    for seed in look.past.seeds().filter(|seed| seed.vm == *name) {
        if let Some(user) = known.user_of(&seed.path, Some(name.as_str())) {
            let message = format!("its seed `{}` stays: {user} needs it too", seed.path.display());
            compiled.findings.push(stays(message, String::new()));
            continue;
        }
        let gone = Seed { absent: true, ..seed.clone() };
        let diff = gone.diff(&gone.probe(look.probe)?, Some(seed), look.facts);
        compiled.ours.insert(seed.key(), None);
        compiled.entry(&seed.key(), [key(name)], diff);
    }
    Ok(())
}

fn stays(message: String, help: String) -> Finding {
    Finding { severity: Severity::Note, code: "stays".to_owned(), place: String::new(), message, help }
}

fn block_of<'a>(name: &DomainName, wanted: &'a Wanted) -> Option<&'a BlockVolume> {
    match wanted {
        Wanted::BlockVolume(block) if block.vm == *name => Some(block),
        _ => None,
    }
}

/// A disk of this VM's.
fn of<'a>(name: &DomainName, wanted: &'a Wanted) -> Option<&'a Volume> {
    match wanted {
        Wanted::Volume(volume) if volume.vm.as_ref() == Some(name) => Some(volume),
        _ => None,
    }
}

fn undefined(name: &DomainName, domain: &Domain, keep_disks: bool, known: &Virtualisation) -> Diff {
    let tpm = domain.inactive_xml.contains("<tpm");
    let mut change = Change::new(Action::Remove, "its definition, UEFI variables, TPM state and saved memory");
    let copies = |s: &str| Part::ALL.into_iter().map(|p| p.copy(&domain.uuid, s)).collect::<Vec<_>>();
    let mut forgotten = Vec::new();
    for snapshot in snapshots(domain).unwrap_or_default() {
        change.risks.insert(Risk::DataLoss);
        forgotten.push(snapshot.name.clone());
        // What others made is libvirt's to forget, with the definition.
        if let (true, Ok(of)) = (snapshot.ours, snapshot.name.parse()) {
            let (name, copies) = (name.clone(), copies(&snapshot.name));
            change.steps.push(Step::ForgetSnapshot { name, snapshot: of, copies });
        }
    }
    if !forgotten.is_empty() {
        let stay = match keep_disks {
            true => "; the files that hold their disks stay, and a VM made anew of them goes on as this one is now",
            false => "",
        };
        change.notes.push(format!("its snapshots go with it: {}{stay}", forgotten.join(", ")));
    }
    let keep_tpm = keep_disks && keep_tpm(domain, known, &mut change);
    if keep_tpm {
        change.what = "its definition, UEFI variables and saved memory".to_owned();
    } else if tpm && !keep_disks {
        change.risks.insert(Risk::DataLoss);
        change.notes.push("what its guest keeps in the TPM (keys of encrypted disks) is lost".to_owned());
    }
    if domain.saved {
        change.risks.insert(Risk::DataLoss);
        change.notes.push(format!(
            "its memory is saved, and is lost: to its disks that is as if its power was cut; let it shut down first: \
             gpuvm vm start {name}, then gpuvm vm stop {name}"
        ));
    }
    change.steps.push(Step::UndefineDomain {
        name: name.clone(),
        wholly: true,
        nvram: nvram(&domain.inactive_xml).map(PathBuf::from),
        keep_tpm,
    });
    change.notes.push(format!(
        "while host.yaml lists it, the next apply makes it anew: take `{name}` out, or write `absent: true`"
    ));
    Diff::Change(change)
}

fn at_pool<'a>(volume: &Volume, known: &'a Virtualisation) -> Option<&'a crate::host::Volume> {
    known.pool(volume.pool.as_str())?.volumes.iter().find(|v| v.name == volume.name)
}

/// Nothing is where it was. What a stopped pool holds is not known.
fn gone(volume: &Volume, known: &Virtualisation) -> bool {
    at_pool(volume, known).is_none() && known.pool(volume.pool.as_str()).is_none_or(|p| p.active)
}

/// The layers over a VM's disks, uppermost first: files that gpuvm made for its snapshots.
fn layers(disks: &[&Volume], keep: bool, known: &Virtualisation, probe: &dyn Probe) -> Result<Vec<PathBuf>, String> {
    let mut all: Vec<PathBuf> = Vec::new();
    for volume in disks.iter().filter(|v| !keep && v.made) {
        let Some(base) = at_pool(volume, known).map(|v| v.path.clone()) else { continue };
        let (mut open, mut at) = (vec![base.clone()], 0);
        while let Some(path) = open.get(at).cloned() {
            let over = all_over(&path, known, probe).map_err(|why| format!("who needs its disks too: {why}"))?;
            open.extend(
                over.into_iter().filter(|o| number(&base, o).is_some() && !open.contains(o)).collect::<Vec<_>>(),
            );
            at += 1;
        }
        all.extend(open.into_iter().skip(1).rev());
    }
    Ok(all)
}

/// They go, unless something that is none of them goes on in one.
fn without_layers(name: &DomainName, layers: &[PathBuf], known: &Virtualisation, probe: &dyn Probe) -> Diff {
    let mut change = Change::new(Action::Remove, "what its snapshots hold, and what was written since");
    change.risks.insert(Risk::DataLoss);
    for path in layers {
        let over = match all_over(path, known, probe) {
            Ok(over) => over.into_iter().find(|o| !layers.contains(o)).map(|o| format!("`{}`", o.display())),
            Err(why) => return Diff::Unknown { why: format!("who needs its disks too: {why}") },
        };
        if let Some(user) = known.named_by(path, |vm| vm == name.as_str()).or(over) {
            return Diff::Blocked {
                why: format!("{user} needs `{}` too", path.display()),
                help: format!("take it from that one first; or leave the disks: gpuvm vm delete {name} --keep-disks"),
            };
        }
        change.notes.push(path.display().to_string());
        change.steps.push(Step::RemoveLayer { path: path.clone() });
    }
    Diff::Change(change)
}

fn disk(
    name: &DomainName,
    volume: &Volume,
    keep: bool,
    layers: &[PathBuf],
    known: &Virtualisation,
    probe: &dyn Probe,
) -> Diff {
    if keep {
        return Diff::stays("it stays, as asked");
    }
    let Some(there) = at_pool(volume, known) else {
        return match gone(volume, known) {
            true => Diff::InSync { evidence: "it is gone".to_owned() },
            false => Diff::Blocked {
                why: format!("its pool `{}` is not started, so what is in it is not known", volume.pool),
                help: format!("virsh pool-start {}; or leave the disks: --keep-disks", volume.pool),
            },
        };
    };
    if volume.take_over {
        return Diff::stays("it was there before gpuvm used it");
    }
    if !volume.made {
        return Diff::stays("nothing says that gpuvm made it");
    }
    let over = match all_over(&there.path, known, probe) {
        Ok(over) => over.into_iter().find(|o| !layers.contains(o)).map(|p| format!("the disk `{}`", p.display())),
        Err(why) => return Diff::Unknown { why: format!("who needs it too: {why}; --keep-disks leaves the disks") },
    };
    if let Some(user) = known.named_by(&there.path, |vm| vm == name.as_str()).or(over) {
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

/// What its definition names and the ledger has no word of.
fn foreign_disks(
    domain: &Domain,
    disks: &[&Volume],
    blocks: &[&BlockVolume],
    layers: &[PathBuf],
    known: &Virtualisation,
    probe: &dyn Probe,
) -> Vec<Finding> {
    let mut ours: Vec<PathBuf> = disks.iter().filter_map(|v| Some(at_pool(v, known)?.path.clone())).collect();
    ours.extend(blocks.iter().map(|b| b.device()));
    ours.extend(layers.iter().cloned());
    let Ok(is) = project(&domain.inactive_xml) else { return Vec::new() };
    let first = is.disks.iter().filter_map(|d| d.first()).map(PathBuf::from);
    // With its disks kept, the layers over them are kept too.
    let its = |file: &PathBuf| ours.contains(file) || chain_of(file, known, probe).iter().any(|f| ours.contains(f));
    let theirs = first.filter(|file| !its(file));
    theirs.map(|file| stays(format!("`{}` stays: gpuvm did not make it", file.display()), String::new())).collect()
}
