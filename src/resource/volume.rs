//! A volume: a VM's disk in a pool. It is made and grown, never shrunk, and never taken away. One of its name that is
//! not gpuvm's may hold anything: it is used only where the manifest says so.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Resource;
use super::chains::chain_of;
use super::image;
use super::libvirt::{Libvirt, ask, known};
use super::libvirt_domain::{disk_files, project};
use super::tops::{Top, top};
use crate::facts::HostFacts;
use crate::host::{self, Answer, HostError, Probe, Virtualisation};
use crate::image::Cached;
use crate::plan::{Action, Change, Diff, FieldDiff, Step, VolumeStep, WaitFor};
use crate::types::{ByteSize, DomainName, ResourceName};

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
    /// The VM whose disk it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<DomainName>,
    /// Use one that is there and is not gpuvm's, with what is on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// gpuvm made it. The manifest never says that: the ledger does, and where it does not, the disk is a person's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
    /// gpuvm has begun to make it, and whether that came to its end is not known: the ledger's word too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
    /// What it begins as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<FromImage>,
}

/// The image that a volume begins as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FromImage {
    /// Its name.
    pub name: ResourceName,
    /// The file that says what is kept of it.
    pub pointer: PathBuf,
}

/// What a volume is compared with.
#[derive(Debug)]
pub struct State {
    libvirt: Libvirt,
    /// What is kept of the image that it begins as.
    image: Option<Cached>,
    /// A file of its name in the pool's directory that libvirt has not listed: its lists are as old as their last refresh.
    unlisted: Option<PathBuf>,
    /// The file that its VM writes to, where that is a layer over it.
    layer: Option<PathBuf>,
    /// The same where its VM's definition has it not: what that will write to when it is made anew.
    top: Option<PathBuf>,
}

impl From<Libvirt> for State {
    fn from(libvirt: Libvirt) -> Self {
        Self { libvirt, image: None, unlisted: None, layer: None, top: None }
    }
}

/// The format of every volume that gpuvm makes.
const FORMAT: &str = "qcow2";

impl Volume {
    fn step(&self, grow: bool, begun: bool) -> Step {
        Step::Volume(VolumeStep {
            pool: self.pool.clone(),
            name: self.name.clone(),
            size: self.size,
            format: FORMAT.to_owned(),
            grow,
            begun,
            image: self.image.as_ref().filter(|_| !grow).map(|i| i.pointer.clone()),
        })
    }
    fn made(&self) -> Change {
        self.making(false)
    }
    fn making(&self, begun: bool) -> Change {
        let from = self.image.as_ref().map_or(String::new(), |i| format!(", from {}", i.name));
        let mut change = Change::new(Action::Create, format!("{}, {FORMAT}{from}", self.size));
        change.steps.push(self.step(false, begun));
        change
    }

    /// Whether its VM has it in its definition, also below a snapshot: then it is what that VM is, gpuvm's or not.
    fn of_its_vm(&self, volume: &host::Volume, known: &Virtualisation) -> bool {
        let path = volume.path.to_string_lossy();
        let domain = self.vm.as_ref().and_then(|vm| known.domain(vm.as_str()));
        let is = domain.and_then(|d| project(&d.inactive_xml).ok());
        is.is_some_and(|is| is.disks.iter().flatten().any(|source| *source == path))
    }

    /// The layer over it that its VM writes to, as the files themselves say.
    fn layer(&self, known: &Virtualisation, host: &dyn Probe) -> Option<PathBuf> {
        let path = &known.pool(self.pool.as_str())?.volumes.iter().find(|v| v.name == self.name)?.path;
        let domain = known.domain(self.vm.as_ref()?.as_str())?;
        let mut files = disk_files(&domain.inactive_xml).into_iter().map(PathBuf::from).filter(|f| f != path);
        files.find(|file| chain_of(file, known, host).contains(path))
    }

    /// What its VM will write to, where its definition went and the files of its snapshots stayed.
    fn top(&self, known: &Virtualisation, host: &dyn Probe) -> Option<PathBuf> {
        let path = &known.pool(self.pool.as_str())?.volumes.iter().find(|v| v.name == self.name)?.path;
        let vm = self.vm.as_ref().filter(|vm| known.domain(vm.as_str()).is_none())?;
        // What else there is to say of that is said of the VM.
        match top(path, vm, known, host) {
            Ok(Top::Layer(top)) => Some(top),
            _ => None,
        }
    }

    fn unlisted(&self, known: &Virtualisation, host: &dyn Probe) -> Result<Option<PathBuf>, HostError> {
        let Some(pool) = known.pool(self.pool.as_str()).filter(|p| p.active) else { return Ok(None) };
        let Some(path) = pool.directory().map(|d| d.join(&self.name)) else { return Ok(None) };
        let listed = pool.volumes.iter().any(|v| v.name == self.name);
        Ok(if listed || host.stat(&path)? == Answer::Absent { None } else { Some(path) })
    }

    /// A disk that was made from something else than the manifest says now. What it was made from once is no matter of a
    /// disk that a person handed over with what is on it.
    fn another_image(&self, volume: &host::Volume) -> Option<Diff> {
        let wanted = self.image.as_ref().filter(|_| !self.take_over)?;
        let is = volume.backing.as_deref().and_then(Cached::image_of);
        if is == Some(wanted.name.as_str()) {
            return None;
        }
        let help = match is {
            Some(is) => format!("write `image: {is}`, or give a new VM another name"),
            None => "take `image` out, or give a new VM another name".to_owned(),
        };
        let was = is.map_or("without an image".to_owned(), |is| format!("from `{is}`"));
        Some(Diff::Blocked {
            why: format!("it was made {was}, and the manifest says `{}`: a disk is never made anew", wanted.name),
            help,
        })
    }

    /// Warns where the pool has less room than the disk may come to need. The figures stay out of it: they change all
    /// the time, and the same plan of the same host has the same bytes.
    fn room(&self, pool: &host::Pool, more: u64, change: &mut Change) {
        if pool.available.is_some_and(|free| free < more) {
            change.notes.push(format!(
                "the pool has less room than that: it takes up what the guest writes, and a full pool halts the VM \
                 (virsh pool-info {})",
                self.pool
            ));
        }
    }
}

impl Resource for Volume {
    const KIND: &'static str = "volume";
    type State = State;

    fn name(&self) -> String {
        format!("{}/{}", self.pool, self.name)
    }

    fn begun(&self) -> Self {
        Self { begun: true, ..self.clone() }
    }

    /// A disk that was grown, or was there already, has not been made by that.
    fn kept(&self, last: Option<&Self>, made: bool) -> Self {
        Self { made: made || last.is_some_and(|l| l.made), begun: self.begun && made, ..self.clone() }
    }

    fn probe(&self, host: &dyn Probe) -> Result<State, HostError> {
        let image = match &self.image {
            Some(from) => image::kept(host, &from.pointer)?,
            None => None,
        };
        let libvirt = ask(host)?;
        let (unlisted, layer, top) = match &libvirt {
            Answer::Value(known) => (self.unlisted(known, host)?, self.layer(known, host), self.top(known, host)),
            _ => (None, None, None),
        };
        Ok(State { libvirt, image, unlisted, layer, top })
    }

    fn diff(&self, state: &State, last: Option<&Self>, _: &HostFacts) -> Diff {
        let known = match known(&state.libvirt, || self.made()) {
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
            // The ledger has the word before the file is begun.
            let begun = state.unlisted.is_some() && last.is_some_and(|l| l.begun);
            if let Some(path) = state.unlisted.as_ref().filter(|_| !begun) {
                return Diff::Blocked {
                    why: format!(
                        "`{}` is there, and libvirt does not know of it: it may hold anything",
                        path.display()
                    ),
                    help: format!("have libvirt look again: virsh pool-refresh {}; then plan once more", self.pool),
                };
            }
            if let Some((why, help)) = state.image.as_ref().and_then(|kept| image::too_small(kept, self.size)) {
                return Diff::Blocked { why, help };
            }
            let mut change = self.making(begun);
            self.room(pool, self.size.bytes(), &mut change);
            return Diff::Change(change);
        };
        // What gpuvm made, or was handed over once, has been this VM's. A run that failed leaves a word in the ledger too.
        let had = last.is_some_and(|l| l.made || l.take_over);
        if !had && !self.take_over && state.layer.is_none() && !self.of_its_vm(volume, known) {
            let (pool, path) = (&self.pool, volume.path.display());
            return Diff::Blocked {
                why: format!("`{path}` is there already, and this VM has not had it: the guest would write into it"),
                help: format!(
                    "to use it with what is on it, write `takeOver: true` at the disk; if it is of no use: \
                     virsh vol-delete {} --pool {pool}",
                    self.name
                ),
            };
        }
        if volume.format != FORMAT {
            let path = volume.path.display();
            return Diff::Blocked {
                why: format!("`{path}` is {}, and the disks of gpuvm's VMs are {FORMAT}", volume.format),
                help: format!("convert a copy: qemu-img convert -O {FORMAT} {path} {path}.new"),
            };
        }
        if let Some(diff) = self.another_image(volume) {
            return diff;
        }
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
        if let Some(layer) = state.layer.as_ref().or(state.top.as_ref()) {
            let vm = self.vm.as_ref().map_or(String::new(), ToString::to_string);
            return Diff::Blocked {
                why: format!(
                    "it has {is}, and its VM writes to `{}` over it: a disk under snapshots is not grown",
                    layer.display()
                ),
                help: format!(
                    "take the snapshots away first (gpuvm vm snapshot list {vm}), or write `{is}` in the manifest"
                ),
            };
        }
        let mut change = Change::new(Action::Change, format!("grows to {}", self.size));
        change.fields.push(FieldDiff::new("size", Some(is.to_string()), Some(self.size.to_string())));
        change.notes.push("the guest's partition and file system are the guest's to grow".to_owned());
        change.steps.push(self.step(true, false));
        self.room(pool, self.size.bytes() - is.bytes(), &mut change);
        Diff::Change(change)
    }

    /// Data of a person: it stays. It is known as long as its VM is there: that goes by a later word, and what gpuvm made
    /// for it is known from nowhere else.
    fn remove(&self, state: &State, _: &HostFacts) -> Diff {
        let known = known(&state.libvirt, || self.made()).ok();
        let vm = self.vm.as_ref().zip(known).and_then(|(vm, known)| known.domain(vm.as_str()));
        match vm {
            Some(_) => Diff::Stays { why: "its VM stays, and has it".to_owned(), ours: true },
            None => {
                Diff::stays(format!("disks stay; delete one with: virsh vol-delete {} --pool {}", self.name, self.pool))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::resource::tests::facts;

    const PATH: &str = "/srv/vms/vm-0.qcow2";

    fn wanted() -> Volume {
        Volume {
            pool: "fast".parse().unwrap(),
            name: "vm-0.qcow2".to_owned(),
            size: ByteSize::from_mib(100),
            vm: Some("vm".parse().unwrap()),
            take_over: false,
            made: false,
            begun: false,
            image: None,
        }
    }
    /// As the ledger has what gpuvm made.
    fn made(wanted: &Volume) -> Volume {
        wanted.kept(None, true)
    }
    fn there(mib: u64) -> host::Volume {
        host::Volume {
            name: "vm-0.qcow2".into(),
            path: PATH.into(),
            format: "qcow2".into(),
            capacity: mib << 20,
            backing: None,
        }
    }
    fn pool(volume: Option<host::Volume>) -> host::Pool {
        host::Pool { name: "fast".into(), active: true, volumes: volume.into_iter().collect(), ..host::Pool::default() }
    }
    fn against(wanted: &Volume, last: Option<&Volume>, known: Virtualisation) -> Diff {
        wanted.diff(&Answer::Value(Arc::new(known)).into(), last, &facts())
    }
    fn with(pool: host::Pool) -> Virtualisation {
        Virtualisation { pools: vec![pool], ..Virtualisation::default() }
    }
    /// What it is where gpuvm made it.
    fn ours(volume: Option<host::Volume>) -> Diff {
        against(&wanted(), Some(&made(&wanted())), with(pool(volume)))
    }

    #[test]
    fn a_disk_is_made_and_grown_and_never_shrunk() {
        assert!(matches!(ours(None), Diff::Change(Change { action: Action::Create, .. })));
        assert!(matches!(ours(Some(there(100))), Diff::InSync { .. }));
        let Diff::Change(change) = ours(Some(there(50))) else { panic!("it grows") };
        assert!(matches!(&change.steps[..], [Step::Volume(VolumeStep { grow: true, .. })]), "{:?}", change.steps);
        assert!(matches!(ours(Some(there(200))), Diff::Blocked { .. }));
    }

    #[test]
    fn under_a_layer_it_is_not_grown_and_what_is_never_done_is_told_first() {
        let under = |mib: u64, layer: bool| {
            let known: Libvirt = Answer::Value(Arc::new(with(pool(Some(there(mib))))));
            let over = Some(PathBuf::from("/srv/vms/vm-0+1.qcow2"));
            let state = match layer {
                true => State { layer: over, ..known.into() },
                false => State { top: over, ..known.into() },
            };
            match wanted().diff(&state, Some(&made(&wanted())), &facts()) {
                Diff::Blocked { why, help } => format!("{why}; {help}"),
                other => panic!("{other:?}"),
            }
        };
        // In its VM's definition, or there without that.
        for layer in [true, false] {
            let said = under(50, layer);
            assert!(said.contains("vm-0+1.qcow2` over it: a disk under snapshots is not grown"), "{said}");
            let said = under(200, layer);
            assert!(said.contains("never shrunk") && !said.contains("snapshot"), "{said}");
        }
    }

    #[test]
    fn a_file_that_libvirt_has_not_listed_may_hold_anything() {
        let state = State { unlisted: Some(PATH.into()), ..Answer::Value(Arc::new(with(pool(None)))).into() };
        for last in [None, Some(made(&wanted()))] {
            let Diff::Blocked { help, .. } = wanted().diff(&state, last.as_ref(), &facts()) else { panic!("{last:?}") };
            assert!(help.contains("virsh pool-refresh fast"), "{help}");
        }
        // A run that was killed while libvirt made it.
        let begun = wanted().begun().kept(None, true);
        let Diff::Change(change) = wanted().diff(&state, Some(&begun), &facts()) else { panic!("it goes on") };
        assert!(matches!(&change.steps[..], [Step::Volume(VolumeStep { begun: true, .. })]), "{:?}", change.steps);
        assert!(!begun.kept(Some(&begun), false).begun && !begun.kept(None, false).begun, "it failed, or it is done");
    }

    #[test]
    fn what_a_stopped_pool_holds_is_not_known() {
        let stopped = host::Pool { active: false, ..pool(None) };
        assert!(matches!(against(&wanted(), None, with(stopped)), Diff::Waits { on: WaitFor::Libvirt, .. }));
    }

    #[test]
    fn a_volume_of_someone_else_is_used_only_where_the_manifest_says_so() {
        let known = |xml: Option<(&str, &str)>| {
            let domains = xml.map(|(name, disk)| host::Domain {
                name: name.to_owned(),
                inactive_xml: format!(
                    "<domain><memory>1</memory><vcpu>1</vcpu><os/><devices><disk type='file' device='disk'>\
                     <source file='{disk}'/></disk></devices></domain>"
                ),
                ..host::Domain::default()
            });
            Virtualisation { domains: domains.into_iter().collect(), ..with(pool(Some(there(100)))) }
        };
        for foreign in [None, Some(("vm", "/elsewhere")), Some(("other", PATH))] {
            let Diff::Blocked { help, .. } = against(&wanted(), None, known(foreign)) else { panic!("{foreign:?}") };
            assert!(help.contains("takeOver"), "{help}");
        }
        assert!(matches!(against(&wanted(), None, known(Some(("vm", PATH)))), Diff::InSync { .. }), "its VM has it");
        let taken = Volume { take_over: true, ..wanted() };
        assert!(matches!(against(&taken, None, known(None)), Diff::InSync { .. }));
        assert!(
            matches!(against(&wanted(), Some(&taken), known(None)), Diff::InSync { .. }),
            "it was handed over once"
        );
        // A run that was to make it failed: that it is in the ledger makes it nobody's.
        let failed = wanted().begun().kept(None, false);
        assert!(matches!(against(&wanted(), Some(&failed), known(None)), Diff::Blocked { .. }));
    }

    #[test]
    fn only_what_was_made_counts_as_made() {
        let (adopted, made) = (wanted().kept(None, false), wanted().kept(None, true));
        assert!(!adopted.made && made.made);
        assert!(!wanted().kept(Some(&adopted), false).made, "it only grew");
        assert!(wanted().kept(Some(&made), false).made, "it was made once");
        // As a ledger has it that does not know the word.
        let old = serde_json::to_value(&made).unwrap();
        let old = serde_json::Value::Object(
            old.as_object().unwrap().clone().into_iter().filter(|(k, _)| k != "made").collect(),
        );
        assert!(!serde_json::from_value::<Volume>(old).unwrap().made);
    }

    #[test]
    fn a_disk_is_never_made_anew_from_another_image() {
        let from = |name: &str| Volume {
            image: Some(FromImage {
                name: name.parse().unwrap(),
                pointer: format!("/srv/vms/gpuvm-images/{name}.json").into(),
            }),
            ..wanted()
        };
        let backed = |name: &str| {
            let backing = Some(format!("/srv/vms/gpuvm-images/{name}-0123456789ab.qcow2").into());
            Some(host::Volume { backing, ..there(100) })
        };
        let diff = |wanted: &Volume, volume| against(wanted, Some(&made(wanted)), with(pool(volume)));
        let Diff::Change(change) = diff(&from("debian-13"), None) else { panic!("it is made") };
        assert!(
            matches!(&change.steps[..], [Step::Volume(VolumeStep { image: Some(_), .. })])
                && change.what.contains("from debian-13")
        );
        // The version of it may have become another since.
        assert!(matches!(diff(&from("debian-13"), backed("debian-13")), Diff::InSync { .. }));
        let Diff::Blocked { why, help } = diff(&from("debian-13"), backed("ubuntu-24.04")) else {
            panic!("another image")
        };
        assert!(why.contains("made from `ubuntu-24.04`") && help.contains("image: ubuntu-24.04"), "{why} {help}");
        assert!(matches!(diff(&from("debian-13"), Some(there(100))), Diff::Blocked { .. }));
        assert!(matches!(diff(&wanted(), backed("debian-13")), Diff::InSync { .. }), "no longer in the manifest");
        let Diff::Change(change) =
            diff(&from("debian-13"), backed("debian-13").map(|v| host::Volume { capacity: 9 << 20, ..v }))
        else {
            panic!("it grows")
        };
        assert!(matches!(&change.steps[..], [Step::Volume(VolumeStep { image: None, grow: true, .. })]));
    }

    #[test]
    fn a_disk_of_another_format_would_be_read_wrongly() {
        let Diff::Blocked { why, .. } = ours(Some(host::Volume { format: "raw".into(), ..there(100) })) else {
            panic!("it is raw")
        };
        assert!(why.contains("raw"), "{why}");
    }

    #[test]
    fn a_pool_without_the_room_is_said_without_figures_that_change() {
        let notes = |available: Option<u64>, volume: Option<host::Volume>| {
            let pool = host::Pool { available, ..pool(volume) };
            let Diff::Change(change) = against(&wanted(), Some(&made(&wanted())), with(pool)) else {
                panic!("a change")
            };
            change.notes.concat()
        };
        assert!(notes(Some(99 << 20), None).contains("less room"));
        assert_eq!(notes(Some(99 << 20), None), notes(Some(7), None));
        assert!(!notes(Some(100 << 20), None).contains("less room") && !notes(None, None).contains("less room"));
        assert!(notes(Some(49 << 20), Some(there(50))).contains("less room"));
        assert!(!notes(Some(50 << 20), Some(there(50))).contains("less room"));
    }
}
