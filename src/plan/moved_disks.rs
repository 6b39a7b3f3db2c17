//! Disks that a list moves on paper: a disk is known by its place in its VM's list and by the storage that it is in, so another
//! storage, or another place in the list, is another disk, and a guest would find a blank one, or one of another size, where
//! its own was. An apply moves no data: it is refused, with how it is done.

use std::collections::BTreeMap;

use super::{Action, Change, Diff, Entry, Finding, Key, Past, Severity};
use crate::desire::Desired;
use crate::host::{Answer, Probe};
use crate::resource::block_volume::BlockVolume;
use crate::resource::libvirt_domain::{Disk, LibvirtDomain};
use crate::resource::volume::Volume;
use crate::resource::{Resource, Wanted};

/// Each VM that would lose a disk of its own while another one of its disks is made or becomes another.
pub(super) fn moved_disks(entries: &[Entry], desired: &Desired, past: &Past, probe: &dyn Probe) -> Vec<Finding> {
    let of = |wanted: Option<&Wanted>| match wanted {
        Some(Wanted::LibvirtDomain(vm)) if !vm.absent => Some(vm.clone()),
        _ => None,
    };
    let vms = desired.nodes.iter().filter(|(key, _)| !desired.adopt.contains(key));
    let pairs = vms.filter_map(|(key, node)| Some((of(Some(&node.wanted))?, of(past.owned.get(key))?)));
    let mut changed: Vec<(LibvirtDomain, LibvirtDomain)> = pairs.filter(|(vm, last)| vm.disks != last.disks).collect();
    if changed.is_empty() {
        return Vec::new();
    }
    // Where libvirt does not tell, no definition is changed.
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return Vec::new() };
    changed.retain(|(vm, _)| known.domain(vm.name.as_str()).is_some());
    let diffs: BTreeMap<&Key, &Diff> = entries.iter().map(|e| (&e.key, &e.diff)).collect();
    let one = |(vm, last): &(LibvirtDomain, LibvirtDomain)| {
        let gone = vm.disks_to_go(last, known.domain(vm.name.as_str())?).into_iter().next()?.clone();
        told(vm, last, &gone, &diffs)
    };
    changed.iter().filter_map(one).collect()
}

fn told(vm: &LibvirtDomain, last: &LibvirtDomain, gone: &Disk, diffs: &BTreeMap<&Key, &Diff>) -> Option<Finding> {
    let name = &vm.name;
    let change = |disk: &Disk| match *diffs.get(&volume_of(disk)?)? {
        Diff::Change(change) | Diff::Waits { promise: change, .. } => Some::<&Change>(change),
        _ => None,
    };
    let had = |disk: &Disk| last.disks.iter().find(|d| d.path == disk.path);
    let made = |disk: &&Disk| had(disk).is_none() && change(disk).is_some_and(|c| c.action == Action::Create);
    let (message, help) = if let Some(new) = vm.disks.iter().find(made) {
        let begins = match new.block {
            true => format!("make `{}` of the same size", new.path.display()),
            false => format!("virsh pool-refresh {}", new.pool.as_ref()?),
        };
        let (options, format) = if new.block { ("-n ", "raw") } else { ("", "qcow2") };
        let copy = format!("qemu-img convert {options}-O {format} {} {}", gone.path.display(), new.path.display());
        let copied = match new.block {
            true => format!("{begins}, {copy}"),
            false => format!("{copy}, {begins}"),
        };
        (
            format!(
                "its disk `{}` would go, and `{}` would be made beside that: a disk is known by its storage and its place \
                 in the list, and an apply moves nothing that is on one",
                gone.shown(),
                new.shown()
            ),
            format!(
                "put new disks at the end of the list; to move this one: gpuvm vm stop {name}, {copied}, and write \
                 `takeOver: true` at it; to do without what is on it, take it off the end of the list and apply that first"
            ),
        )
    } else {
        let grows = |disk: &&Disk| change(disk).is_some_and(|c| c.action == Action::Change);
        let differs = |disk: &&Disk| had(disk).is_some_and(|was| was.options != disk.options);
        let shorter = vm.disks.len() < last.disks.len();
        let kept = vm.disks.iter().find(|d| shorter && had(d).is_some() && (grows(d) || differs(d)))?;
        (
            format!(
                "its disk `{}` would go, and `{}` become another at once: a disk is known by its place in the list, so the \
                 last one goes, whichever is taken off",
                gone.shown(),
                kept.shown()
            ),
            format!(
                "to do without `{}`, take that off the end of the list and apply, and change the others then; to keep it, \
                 leave its place in the list",
                gone.shown()
            ),
        )
    };
    Some(Finding {
        severity: Severity::Error,
        code: "moved-disk".to_owned(),
        place: format!("vms.{name}.disks"),
        message,
        help,
    })
}

/// The volume that a disk is.
fn volume_of(disk: &Disk) -> Option<Key> {
    let kind = if disk.block { BlockVolume::KIND } else { Volume::KIND };
    Some(Key::new(kind, format!("{}/{}", disk.pool.as_ref()?, disk.volume)))
}
