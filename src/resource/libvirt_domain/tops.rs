//! The files that a definition gets for disks which it has not: what was written to each last, and never what is below it.

use std::path::Path;

use super::{Disk, DomainState, LibvirtDomain, Projection, project};
use crate::host::{Probe, Virtualisation};
use crate::plan::Diff;
use crate::resource::tops::{Top, top};

impl LibvirtDomain {
    /// Looks at what goes on in the disks that its definition has not.
    pub(super) fn look_at_tops(&self, state: &mut DomainState, known: &Virtualisation, host: &dyn Probe) {
        let is = known.domain(self.name.as_str()).map(|d| project(&d.inactive_xml));
        // What cannot be read is told as that.
        let Ok(is) = is.transpose() else { return };
        let has = |is: &Projection, disk: &Disk| {
            let mut is = is.clone();
            is.go_on_in(&state.chains);
            is.has_disk(disk)
        };
        let anew = self.disks.iter().filter(|d| !is.as_ref().is_some_and(|is| has(is, d)));
        let tops: Vec<_> = anew.map(|d| (d.path.clone(), top(&d.path, &self.name, known, host))).collect();
        state.tops.extend(tops);
    }

    /// The file of a disk that it goes on in.
    pub(super) fn layer_over<'a>(state: &'a DomainState, disk: &Path) -> Option<&'a Path> {
        match state.tops.get(disk) {
            Some(Ok(Top::Layer(top))) => Some(top),
            _ => None,
        }
    }

    /// Why a disk is not given to it. `anew`: it gets a whole definition, in which each disk is the layer that is to be
    /// written to; into one that is there a layer is not put, since its snapshots may hold it.
    pub(super) fn refused_below(&self, state: &DomainState, anew: bool) -> Option<Diff> {
        let name = &self.name;
        self.disks.iter().find_map(|disk| match state.tops.get(&disk.path)? {
            Err(why) => Some(Diff::Unknown {
                why: format!(
                    "whether something goes on in its disk `{}`: {why}; a file that has nothing to do with it is in \
                         nobody's way once it is out of the pool (virsh pool-refresh)",
                    disk.shown()
                ),
            }),
            Ok(Top::Refused { why, help }) => {
                Some(Diff::Blocked { why: format!("its disk `{}`: {why}", disk.shown()), help: help.clone() })
            }
            Ok(Top::Layer(top)) if !anew => Some(Diff::Blocked {
                why: format!(
                    "its definition has lost its disk `{}`, and what was written to that last is in `{}`",
                    disk.shown(),
                    top.display()
                ),
                help: format!(
                    "give it that file again: virsh attach-disk {name} '{}' TARGET --subdriver qcow2 --config",
                    top.display()
                ),
            }),
            Ok(Top::Layer(_) | Top::Itself) => None,
        })
    }

    /// The same VM with each disk in the file that is to be written to.
    pub(super) fn on_tops(&self, state: &DomainState) -> Self {
        let mut on = self.clone();
        for disk in &mut on.disks {
            if let Some(top) = Self::layer_over(state, &disk.path) {
                disk.path = top.to_owned();
            }
        }
        on
    }

    /// What is to be known of that.
    pub(super) fn told_of_tops(&self, state: &DomainState) -> Vec<String> {
        let over = self.disks.iter().filter_map(|d| Some((d, Self::layer_over(state, &d.path)?)));
        let mut all: Vec<String> = over
            .map(|(disk, top)| {
                format!(
                    "its disk {} goes on in `{}`, which holds what was written since its snapshots",
                    disk.shown(),
                    top.display()
                )
            })
            .collect();
        if !all.is_empty() {
            all.push(format!(
                "no snapshot needs those layers any more: gpuvm vm snapshot delete {} NAME merges them, whatever the name",
                self.name
            ));
        }
        all
    }
}
