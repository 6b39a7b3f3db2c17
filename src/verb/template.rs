//! A template: the first disk of a VM that is off, whole by itself and read-only among a pool's images, so that disks are
//! made from it as from any image. What its guest made its own is in it, and is said.

use super::snapshot::Subject;
use super::vm::{find, known};
use super::{Compiled, Look};
use crate::host::{Answer, HostError, Pool, Virtualisation};
use crate::image::{Cached, FOLDER, Origin, pointer};
use crate::plan::{Action, Change, Diff, FetchStep, Finding, Key, Risk, Severity, Step};
use crate::resource::chains::all_over;
use crate::resource::image::{is_template, used};
use crate::resource::libvirt_domain::{Drive, project};
use crate::types::{DomainName, ResourceName};

/// The kind of a template in plans.
const KIND: &str = "template";

pub(super) fn save(name: &DomainName, template: &ResourceName, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let diff = match find(name, look, "vol-download")? {
        Err(diff) => *diff,
        Ok((domain, known)) => match Subject::of(name, domain, known, look.probe) {
            Err(diff) => *diff,
            Ok(subject) => saving(&subject, name, template, look, &mut compiled)?,
        },
    };
    compiled.entry(&Key::new(KIND, template.as_str()), [], diff);
    Ok(compiled)
}

/// A template goes, in whichever pool it is. One that disks go on in stays: they would be lost with it.
pub(super) fn delete(template: &ResourceName, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let diff = match known(look)? {
        Err(diff) => *diff,
        Ok(known) => deleting(template, &known, look)?,
    };
    compiled.entry(&Key::new(KIND, template.as_str()), [], diff);
    Ok(compiled)
}

fn deleting(template: &ResourceName, known: &Virtualisation, look: Look<'_>) -> Result<Diff, HostError> {
    // A disk in a pool that is not started may go on in it.
    if let Some(idle) = known.pools.iter().find(|p| !p.active) {
        return Ok(Diff::Blocked {
            why: format!("pool `{}` is not started, so what its disks are made from is not known", idle.name),
            help: format!("start it: virsh pool-start {}", idle.name),
        });
    }
    let mut change = Change::new(Action::Remove, "with everything that is in it");
    for directory in known.pools.iter().filter_map(Pool::directory) {
        let pointer = pointer(&directory, template.as_str());
        let text = match look.probe.text(&pointer)? {
            Answer::Value(text) => text,
            Answer::Absent => continue,
            Answer::Denied => {
                return Ok(Diff::Unknown { why: "this user may not look at the images: run gpuvm as root".into() });
            }
        };
        let Some(kept) = Cached::parse(&text).filter(is_template) else { continue };
        let file = directory.join(FOLDER).join(&kept.file);
        match used(known, look.probe) {
            Err(why) => {
                return Ok(Diff::Unknown { why: format!("which disks are made from it is not known: {why}") });
            }
            Ok(names) if names.contains(&kept.file) => {
                let over = all_over(&file, known, look.probe).unwrap_or_default();
                let disk = over.iter().next().map_or("a disk".to_owned(), |d| format!("`{}`", d.display()));
                return Ok(Diff::Blocked {
                    why: format!("{disk} goes on in it, and would be lost"),
                    help: "delete the VM with that disk first (gpuvm vm list); else the template stays".to_owned(),
                });
            }
            Ok(_) => {}
        }
        // The word on it goes last: a run that was killed in between finds it again.
        change.notes.push(format!("{}: it is nowhere else", file.display()));
        change.steps.extend([file, pointer].map(|path| Step::RemoveImage { path }));
    }
    if change.steps.is_empty() {
        return Ok(Diff::InSync { evidence: "it is gone".to_owned() });
    }
    change.risks.insert(Risk::DataLoss);
    change
        .notes
        .push(format!("a host.yaml whose `images` name it makes no further VM from it: take `{template}` out there"));
    Ok(Diff::Change(change))
}

fn saving(
    subject: &Subject<'_>,
    name: &DomainName,
    template: &ResourceName,
    look: Look<'_>,
    compiled: &mut Compiled,
) -> Result<Diff, HostError> {
    let blocked = |why: String, help: String| Ok(Diff::Blocked { why, help });
    if subject.domain.active {
        return blocked(
            format!("{name} runs, and writes to its disk while that would be copied"),
            format!("shut it down first: gpuvm vm stop {name}"),
        );
    }
    if let Err(diff) = subject.quiet() {
        return Ok(*diff);
    }
    let mut written = subject.drives.iter().filter(|d| d.writable);
    let Some(Drive { file: Some(file), format, .. }) = written.next() else {
        return blocked("its first disk is no file".to_owned(), "copy what it is on by its own means".to_owned());
    };
    let folder = |p: &&Pool| p.active && p.directory().as_deref() == file.parent();
    let Some(directory) = subject.known.pools.iter().find(folder).and_then(Pool::directory) else {
        return blocked(
            format!("`{}` is in no started pool of libvirt's", file.display()),
            "have a pool for its folder: `storage` in host.yaml".to_owned(),
        );
    };
    let bios = project(&subject.domain.inactive_xml).is_ok_and(|is| !is.uefi);
    let origin = Origin::Disk { vm: name.to_string(), path: file.clone(), kind: format.clone(), bios };
    match look.probe.text(&pointer(&directory, template.as_str()))? {
        Answer::Absent => {}
        Answer::Denied => {
            return Ok(Diff::Unknown { why: "this user may not look at the images: run gpuvm as root".into() });
        }
        // The run that makes it knows it again; whoever asks anew is told before.
        Answer::Value(text) => {
            return Ok(match Cached::parse(&text).is_some_and(|kept| kept.origin == origin) {
                true => Diff::InSync { evidence: "it is there".to_owned() },
                false => Diff::Blocked {
                    why: format!("there is an image `{template}` already"),
                    help: "give the template another name".to_owned(),
                },
            });
        }
    }
    let mut change = Change::new(Action::Create, format!("all that is on {}, in one file", file.display()));
    for drive in written {
        change.notes.push(format!("its disk `{}` is not in it: a template has one disk", drive.target));
    }
    change.notes.push("in a guest with cloud-init: cloud-init clean --logs --machine-id --configs all".to_owned());
    change.notes.push(format!("to make a VM from it: gpuvm vm template use {template} NAME"));
    compiled.findings.push(Finding {
        severity: Severity::Warning,
        code: "same-guest".to_owned(),
        place: String::new(),
        message: "what its guest made its own is in it: name, machine id, host keys of ssh, users, logs".to_owned(),
        help: format!("take that out first, with {name} shut down: virt-sysprep -d {name}; in Windows: sysprep"),
    });
    change.steps.push(Step::Fetch(FetchStep {
        name: template.clone(),
        pool: directory,
        origin,
        digest: None,
        asked: None,
        medium: false,
    }));
    Ok(Diff::Change(change))
}
