//! A volume: a VM's disk in a pool. It is made and grown, never shrunk, and never taken away.

use serde::{Deserialize, Serialize};

use super::Resource;
use super::libvirt::{Libvirt, ask, known};
use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Step, VolumeStep, WaitFor};
use crate::types::{ByteSize, ResourceName};

/// A volume of a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The pool.
    pub pool: ResourceName,
    /// Its name in the pool: `desktop-0.qcow2`.
    pub name: String,
    /// What the guest sees.
    pub size: ByteSize,
}

/// The format of every volume that gpuvm makes.
const FORMAT: &str = "qcow2";

impl Volume {
    fn step(&self, grow: bool) -> Step {
        Step::Volume(VolumeStep {
            pool: self.pool.clone(),
            name: self.name.clone(),
            size: self.size,
            format: FORMAT.to_owned(),
            grow,
        })
    }
    fn made(&self) -> Change {
        let mut change = Change::new(Action::Create, format!("{}, {FORMAT}", self.size));
        change.steps.push(self.step(false));
        change
    }
}

impl Resource for Volume {
    const KIND: &'static str = "volume";
    type State = Libvirt;

    fn name(&self) -> String {
        format!("{}/{}", self.pool, self.name)
    }

    fn probe(&self, host: &dyn Probe) -> Result<Libvirt, HostError> {
        ask(host)
    }

    fn diff(&self, state: &Libvirt, _: Option<&Self>, _: &HostFacts) -> Diff {
        let known = match known(state, || self.made()) {
            Ok(known) => known,
            Err(diff) => return *diff,
        };
        let Some(pool) = known.pool(self.pool.as_str()) else { return Diff::Change(self.made()) };
        if !pool.active {
            return Diff::Waits {
                on: WaitFor::Libvirt,
                why: format!("pool `{}` is not started, so its volumes are not known", self.pool),
                promise: self.made(),
            };
        }
        let Some(volume) = pool.volumes.iter().find(|v| v.name == self.name) else {
            return Diff::Change(self.made());
        };
        let is = volume.size();
        if is == self.size {
            return Diff::InSync { evidence: format!("{is}, {}", volume.format) };
        }
        if is > self.size {
            return Diff::Blocked {
                why: format!("it has {is}, and the manifest says {}: a disk is never shrunk", self.size),
                help: format!("write `{is}` in the manifest"),
            };
        }
        let mut change = Change::new(Action::Change, format!("grows to {}", self.size));
        change.fields.push(FieldDiff::new("size", Some(is.to_string()), Some(self.size.to_string())));
        change.notes.push("the guest's partition and file system are the guest's to grow".to_owned());
        change.steps.push(self.step(true));
        Diff::Change(change)
    }

    /// Data of a person: it stays.
    fn remove(&self, _: &Libvirt, _: &HostFacts) -> Diff {
        Diff::InSync {
            evidence: format!("disks stay; delete one with: virsh vol-delete {} --pool {}", self.name, self.pool),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::host::{self, Answer, Virtualisation};
    use crate::resource::tests::facts;

    fn diff(volume: Option<u64>, active: bool) -> Diff {
        let volumes = volume
            .map(|mib| host::Volume {
                name: "vm-0.qcow2".to_owned(),
                path: "/srv/vms/vm-0.qcow2".into(),
                format: "qcow2".to_owned(),
                capacity: mib << 20,
            })
            .into_iter()
            .collect();
        let pool = host::Pool { name: "fast".to_owned(), active, volumes, ..host::Pool::default() };
        let known = Virtualisation { pools: vec![pool], ..Virtualisation::default() };
        let wanted =
            Volume { pool: "fast".parse().unwrap(), name: "vm-0.qcow2".to_owned(), size: ByteSize::from_mib(100) };
        wanted.diff(&Answer::Value(Arc::new(known)), None, &facts())
    }

    #[test]
    fn a_disk_is_made_and_grown_and_never_shrunk() {
        assert!(matches!(diff(None, true), Diff::Change(Change { action: Action::Create, .. })));
        assert!(matches!(diff(Some(100), true), Diff::InSync { .. }));
        let Diff::Change(change) = diff(Some(50), true) else { panic!("it grows") };
        assert!(matches!(&change.steps[..], [Step::Volume(VolumeStep { grow: true, .. })]), "{:?}", change.steps);
        assert!(matches!(diff(Some(200), true), Diff::Blocked { .. }));
    }

    #[test]
    fn what_a_stopped_pool_holds_is_not_known() {
        assert!(matches!(diff(None, false), Diff::Waits { on: WaitFor::Libvirt, .. }));
    }
}
