//! A template: the first disk of a VM that is off, whole by itself and read-only among a pool's images, so that disks are
//! made from it as from any image. What its guest made its own is in it, and is said.

use super::snapshot::Subject;
use super::vm::find;
use super::{Compiled, Look};
use crate::host::{Answer, HostError, Pool};
use crate::image::{Cached, Origin, pointer};
use crate::plan::{Action, Change, Diff, FetchStep, Finding, Key, Severity, Step};
use crate::resource::libvirt_domain::Drive;
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
    let origin = Origin::Disk { vm: name.to_string(), path: file.clone(), kind: format.clone() };
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
    }));
    Ok(Diff::Change(change))
}
