//! The disks that a run made: they stay, or go with what is on them where a person asked for that, once nothing needs them.

use std::path::Path;

use super::{Thing, same, selector};
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Change, Diff, Key, Place, Risk, Seen, Step, VolumeStep};
use crate::resource::Wanted;
use crate::resource::chains::over;
use crate::types::{ByteSize, ResourceName};

impl Thing<'_> {
    /// What becomes of a disk. One that the run made goes only with its data, where that was asked for.
    pub(super) fn disk(&mut self, place: &Place, before: &Seen, is: &Seen, change: &mut Change) {
        match (place, before, is) {
            (Place::Volume { pool, name }, Seen::Nothing, _) if self.back.with_data => {
                change.steps.push(Step::RemoveVolume { pool: pool.clone(), name: name.clone() });
                change.risks.insert(Risk::DataLoss);
                change.notes.push("with everything that a guest wrote to it".to_owned());
            }
            (Place::Volume { pool, name }, Seen::Nothing, _) => self.stays.push(format!(
                "the disk {name} in pool {pool} stays, with its data; to delete it: gpuvm undo {} --with-data",
                self.back.run
            )),
            (Place::Volume { pool, name }, Seen::Volume { capacity, format }, Seen::Nothing) => {
                let Ok(pool) = pool.as_str().parse() else { return };
                change.steps.push(Step::Volume(VolumeStep {
                    pool,
                    name: name.clone(),
                    size: ByteSize::from_bytes(*capacity),
                    format: format.clone(),
                    grow: false,
                    begun: false,
                    image: None,
                }));
                self.stays
                    .push(format!("what was on the disk {name} is gone; an empty one is made where none is left"));
            }
            (Place::Volume { name, .. }, ..) => {
                self.stays.push(format!("the disk {name} stays as large as it is: a disk is never shrunk"));
            }
            (Place::Device(path), Seen::Nothing, _) => {
                self.stays.push(format!(
                    "the disk {} stays, with its data; to delete it: gpuvm undo {} --with-data",
                    path.display(),
                    self.back.run
                ));
            }
            (Place::Device(path), _, Seen::Nothing) => {
                self.stays
                    .push(format!("what was on the disk {} is gone; an apply makes an empty one", path.display()));
            }
            (Place::Device(path), ..) => {
                self.stays.push(format!("the disk {} stays as large as it is: a disk is never shrunk", path.display()));
            }
            _ => {}
        }
    }

    /// Why it cannot be told which disks a pool has.
    pub(super) fn pool_not_started(
        &self,
        place: &Place,
        is: &Seen,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        if let (Place::Volume { pool, .. }, Seen::Nothing, true) = (place, is, self.back.with_data)
            && let Answer::Value(known) = probe.virtualisation()?
            && known.pool(pool.as_str()).is_some_and(|p| !p.active)
        {
            let why = format!("pool `{pool}` is not started, so what is in it is not known");
            return Ok(Some(Diff::Blocked { why, help: format!("start it: virsh pool-start {pool}") }));
        }
        Ok(None)
    }

    /// A block volume that the run made goes, with what is on it; or why it cannot.
    pub(super) fn block_goes(
        &mut self,
        key: &Key,
        (place, path): (&Place, &Path),
        is: &Seen,
        change: &mut Change,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        if let Some(why) = self.changed_since(place, is) {
            return Ok(Some(Diff::Blocked { why, help: format!("to {}", self.leave(key)) }));
        }
        let deletion = match self.ours {
            Some(Wanted::BlockVolume(block)) => block.deletion(|vm| self.undefines(vm), &self.leave(key), probe)?,
            _ => Diff::stays("nothing says that gpuvm made it"),
        };
        match deletion {
            Diff::Change(goes) => {
                change.steps.extend(goes.steps);
                change.risks.extend(goes.risks);
                change.notes.extend(goes.notes);
                change.notes.push("with everything that a guest wrote to it".to_owned());
            }
            Diff::Stays { why, .. } => self.stays.push(format!("the disk {} stays: {why}", path.display())),
            Diff::InSync { .. } => {}
            refused => return Ok(Some(refused)),
        }
        Ok(None)
    }

    /// Why a disk that the run made cannot go with what is on it.
    pub(super) fn disk_stays(
        &self,
        key: &Key,
        (pool, name): (&ResourceName, &str),
        is: &Seen,
        probe: &dyn Probe,
    ) -> Result<Option<Diff>, HostError> {
        let place = Place::Volume { pool: pool.clone(), name: name.to_owned() };
        let skip = format!("to {}", self.leave(key));
        let blocked = |why: String| Ok(Some(Diff::Blocked { why, help: skip.clone() }));
        if let Some(why) = self.changed_since(&place, is) {
            return blocked(why);
        }
        let Answer::Value(known) = probe.virtualisation()? else {
            return Ok(Some(Diff::Unknown { why: format!("libvirt does not say who uses {place}") }));
        };
        let there = known.pool(pool.as_str()).and_then(|p| p.volumes.iter().find(|v| v.name == name));
        let Some(there) = there else { return Ok(None) };
        let over = match over(&there.path, &known, probe) {
            Ok(over) => over.map(|path| format!("the disk `{}`", path.display())),
            Err(why) => return Ok(Some(Diff::Unknown { why: format!("who needs {place}: {why}") })),
        };
        let user = known.user_of_but(&there.path, |vm| self.undefines(vm)).or(over);
        user.map_or(Ok(None), |user| blocked(format!("{user} needs {place}")))
    }

    /// Why a disk is not the one that the run made.
    fn changed_since(&self, place: &Place, is: &Seen) -> Option<String> {
        if let Some(run) = self.recorded.since.get(place) {
            return Some(format!("{place} was made or changed by run {run} too"));
        }
        // A run that was cut off did not see how it left it.
        let after = self.recorded.after.get(place)?;
        (!same(after, is)).then(|| format!("{place} was changed since run {}", self.back.run))
    }

    /// The VMs that this undo takes away need nothing any more.
    fn undefines(&self, vm: &str) -> bool {
        self.recorded.before.iter().any(|(k, place, before)| {
            matches!((place, before), (Place::Domain(n), Seen::Nothing) if n.as_str() == vm) && !self.back.skips(k)
        })
    }

    /// How a person has a thing stay.
    fn leave(&self, key: &Key) -> String {
        format!("leave it as it is: gpuvm undo {} --with-data --skip {}", self.back.run, selector(key))
    }
}
