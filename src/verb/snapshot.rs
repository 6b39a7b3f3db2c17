//! Snapshots of a VM: made, gone back to, and taken away. They are of its disks, its definition, its UEFI variables and its
//! TPM's state; never of memory (see [`crate::resource::snapshots`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::vm::find;
use super::{Compiled, Look};
use crate::host::{Answer, Domain, HostError, Probe, Virtualisation};
use crate::plan::{
    Action, Change, Diff, FieldDiff, FileCopy, Finding, Key, Risk, Severity, SnapshotStep, Step, TextEdit, WaitFor,
};
use crate::resource::chains::{all_over, chain_of};
use crate::resource::layers::{Layers, Move, base, layer, number};
use crate::resource::libvirt_domain::{Drive, drives, with_file_moved, with_sources, without_private_parts};
use crate::resource::snapshots::{self, Part, Snapshot, others, snapshots, tpm_elsewhere};
use crate::types::{DomainName, ResourceName, line_edits, sha256_hex, splice};

/// The kind of a snapshot in plans.
pub(super) const KIND: &str = "snapshot";

fn key(vm: &DomainName, snapshot: &str) -> Key {
    Key::new(KIND, format!("{vm}/{snapshot}"))
}

fn blocked(why: impl Into<String>, help: impl Into<String>) -> Box<Diff> {
    Box::new(Diff::Blocked { why: why.into(), help: help.into() })
}

fn unknown(why: impl Into<String>) -> Box<Diff> {
    Box::new(Diff::Unknown { why: why.into() })
}

fn note(code: &str, message: String) -> Finding {
    Finding { severity: Severity::Note, code: code.to_owned(), place: String::new(), message, help: String::new() }
}

/// A VM with its snapshots and the disks that they are of.
pub(super) struct Subject<'a> {
    name: &'a DomainName,
    pub(super) domain: Domain,
    pub(super) known: Arc<Virtualisation>,
    probe: &'a dyn Probe,
    /// Its snapshots, oldest first.
    pub(super) all: Vec<Snapshot>,
    /// The disks of its stored definition.
    pub(super) drives: Vec<Drive>,
}

impl<'a> Subject<'a> {
    /// Looks; else what to say in place of a change.
    fn look(name: &'a DomainName, look: Look<'a>, word: &str) -> Result<Result<Self, Box<Diff>>, HostError> {
        let (domain, known) = match find(name, look, word)? {
            Ok(found) => found,
            Err(diff) => return Ok(Err(diff)),
        };
        Ok(Self::of(name, domain, known, look.probe).and_then(|subject| match others(name, &subject.all) {
            Some((why, help)) => Err(blocked(why, help)),
            None => Ok(subject),
        }))
    }

    pub(super) fn of(
        name: &'a DomainName,
        domain: Domain,
        known: Arc<Virtualisation>,
        probe: &'a dyn Probe,
    ) -> Result<Self, Box<Diff>> {
        let all = snapshots(&domain).map_err(unknown)?;
        let drives =
            drives(&domain.inactive_xml).map_err(|e| unknown(format!("its definition cannot be read: {e}")))?;
        Ok(Self { name, domain, known, probe, all, drives })
    }

    fn snapshot(&self, name: &ResourceName) -> Option<&Snapshot> {
        self.all.iter().find(|s| s.name == name.as_str())
    }

    fn none(&self, name: &ResourceName) -> Box<Diff> {
        let names: Vec<&str> = self.all.iter().map(|s| s.name.as_str()).collect();
        let there = if names.is_empty() { "it has none".to_owned() } else { format!("there is: {}", names.join(", ")) };
        blocked(format!("VM `{}` has no snapshot `{name}`", self.name), there)
    }

    /// What stands against doing anything with its disks.
    pub(super) fn quiet(&self) -> Result<(), Box<Diff>> {
        let name = self.name;
        if !self.domain.persistent {
            return Err(blocked("it has no stored definition (a transient VM)", "define it: virsh define"));
        }
        if self.domain.saved {
            return Err(blocked(
                "its memory is saved, and goes with its disks as they are now: with others the guest would destroy them",
                format!("let it go on and shut down first: gpuvm vm start {name}, then gpuvm vm stop {name}"),
            ));
        }
        Ok(())
    }

    /// The disks that a snapshot is of: all that the guest writes to. Each has to be in a file of its own.
    fn written(&self) -> Result<Vec<(&Drive, &PathBuf)>, Box<Diff>> {
        let mut all = Vec::new();
        for drive in self.drives.iter().filter(|d| d.writable) {
            let target = &drive.target;
            let refuse = |why: &str, help: &str| Err(blocked(format!("its disk `{target}` {why}"), help));
            let Some(file) = &drive.file else {
                let help =
                    "what it is on has snapshots of its own (lvcreate --snapshot, zfs snapshot), with the VM shut down";
                return refuse("is no file, so that no layer can be put over it", help);
            };
            if drive.shareable {
                return refuse(
                    "is shared with other VMs, which would go on without the layer",
                    "take `shareable` out first",
                );
            }
            if drive.transient {
                return refuse("forgets what is written to it when the VM ends", "take `transient` out first");
            }
            if !["qcow2", "raw"].contains(&drive.format.as_str()) {
                return refuse(
                    &format!("is {}, which gpuvm does not know how to merge", drive.format),
                    "use qcow2 or raw",
                );
            }
            all.push((drive, file));
        }
        match all.is_empty() {
            true => Err(blocked("it has no disk that a snapshot could be of", "")),
            false => Ok(all),
        }
    }

    /// The file that each written disk began as, by its target.
    fn base(&self, file: &Path) -> PathBuf {
        base(file, &chain_of(file, &self.known, self.probe)).to_owned()
    }

    /// The files beside that of a disk: those in its folder, and those that libvirt lists there.
    fn beside(&self, base: &Path) -> Result<BTreeSet<PathBuf>, String> {
        let folder = base.parent().unwrap_or(Path::new("/"));
        let volumes = self.known.pools.iter().flat_map(|p| &p.volumes).map(|v| v.path.clone());
        let mut all: BTreeSet<PathBuf> = volumes.filter(|p| p.parent() == Some(folder)).collect();
        match self.probe.list(folder).map_err(|e| e.to_string())? {
            Answer::Value(names) => all.extend(names.iter().map(|n| folder.join(n))),
            Answer::Absent => {}
            // Another user than root: libvirt refuses a name that is taken.
            Answer::Denied => return Ok(all),
        }
        // What libvirt has listed once may be gone.
        all.retain(|p| !matches!(self.probe.stat(p), Ok(Answer::Absent)));
        Ok(all)
    }

    /// The number that no layer of its disks has, nor had, as far as anything tells of it.
    fn next_layer(&self) -> Result<u32, String> {
        let mut highest = 0;
        for base in self.drives.iter().filter(|d| d.writable).filter_map(|d| d.file.as_deref()).map(|f| self.base(f)) {
            let told = self.domain.snapshots.iter().flat_map(|s| mentioned(&s.xml));
            let all = self.beside(&base)?.into_iter().chain(told);
            highest = all.filter_map(|path| number(&base, &path)).chain([highest]).max().unwrap_or(0);
        }
        Ok(highest + 1)
    }

    /// The files of one disk, without what a snapshot that is to go holds.
    fn layers(&self, base: &Path, without: Option<&str>) -> Result<Layers, String> {
        let mut layers = Layers { base: base.to_owned(), ..Layers::default() };
        let mut files = BTreeSet::from([base.to_owned()]);
        files.extend(self.beside(base)?.into_iter().filter(|p| number(base, p).is_some()));
        for file in files.iter().filter(|f| *f != base) {
            match chain_of(file, &self.known, self.probe).into_iter().next() {
                Some(under) if files.contains(&under) => drop(layers.under.insert(file.clone(), under)),
                _ => {
                    return Err(format!(
                        "what `{}` goes on in cannot be told, or is none of this disk's",
                        file.display()
                    ));
                }
            }
        }
        let mine = |drives: Vec<Drive>| drives.into_iter().filter_map(|d| d.file).filter(|f| files.contains(f));
        layers.tops.extend(mine(self.drives.clone()));
        if let Some(live) = &self.domain.live_xml {
            layers.tops.extend(mine(drives(live)?));
        }
        for snapshot in self.all.iter().filter(|s| Some(s.name.as_str()) != without) {
            layers.held.extend(mine(snapshot.drives.clone()));
        }
        for file in &files {
            let over = all_over(file, &self.known, self.probe)?.into_iter().find(|over| !files.contains(over));
            let over = over.map(|over| format!("`{}`", over.display()));
            if let Some(who) = over.or_else(|| self.known.named_by(file, |vm| vm == self.domain.name)) {
                layers.outside.insert(file.clone(), who);
            }
        }
        Ok(layers)
    }

    /// The files that its disks began as, now or in a snapshot.
    fn bases(&self) -> BTreeSet<PathBuf> {
        let now = self.drives.iter().filter(|d| d.writable).filter_map(|d| d.file.as_ref());
        let then = self.all.iter().flat_map(Snapshot::files);
        now.chain(then).map(|file| self.base(file)).collect()
    }

    /// What a disk file is taken for by QEMU.
    fn format_of(&self, file: &Path, base: &Path) -> String {
        let of = |drives: &[Drive]| drives.iter().find(|d| d.file.as_deref() == Some(file)).map(|d| d.format.clone());
        let known = of(&self.drives).or_else(|| self.all.iter().find_map(|s| of(&s.drives)));
        let volumes = || self.known.pools.iter().flat_map(|p| &p.volumes);
        let listed = || volumes().find(|v| v.path == file).map(|v| v.format.clone());
        // A layer is always this; of what is no layer, somebody says it.
        if file != base { "qcow2".to_owned() } else { known.or_else(listed).unwrap_or_else(|| "raw".to_owned()) }
    }
}

/// Every path in a text of libvirt's.
fn mentioned(xml: &str) -> Vec<PathBuf> {
    let Ok(doc) = roxmltree::Document::parse(xml) else { return Vec::new() };
    let sources = doc.descendants().filter(|n| n.has_tag_name("source"));
    sources.filter_map(|n| n.attribute("file").map(PathBuf::from)).collect()
}

/// What is decided when a snapshot is asked for, so that it is known again when it is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The number of the layers that are to be made.
    pub layer: u32,
    /// The files that the VM's disks are in now.
    pub files: Vec<PathBuf>,
    /// The snapshots that there are.
    pub names: Vec<String>,
    /// Layers that no snapshot needs any more are still there: a run that took one away failed, or was closed.
    pub left: bool,
}

/// Looks; empty where nothing is known of the VM, which its plan then says.
pub fn asked(name: &DomainName, known: Arc<Virtualisation>, probe: &dyn Probe) -> Asked {
    let domain = known.domain(name.as_str()).cloned();
    let Some(Ok(subject)) = domain.map(|domain| Subject::of(name, domain, known, probe)) else {
        return Asked { layer: 1, ..Asked::default() };
    };
    Asked {
        layer: subject.next_layer().unwrap_or(1),
        files: subject.drives.iter().filter(|d| d.writable).filter_map(|d| d.file.clone()).collect(),
        names: subject.all.iter().map(|s| s.name.clone()).collect(),
        left: subject.bases().iter().any(|base| subject.layers(base, None).is_ok_and(|l| !l.settle().is_empty())),
    }
}

/// The layers of this number of those disks.
pub fn layers_of(files: &[PathBuf], number: u32, known: &Virtualisation, probe: &dyn Probe) -> Vec<PathBuf> {
    files.iter().map(|file| layer(base(file, &chain_of(file, known, probe)), number)).collect()
}

/// A snapshot is there.
pub(super) fn create(
    name: &DomainName,
    snapshot: &ResourceName,
    layer: u32,
    look: Look<'_>,
) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let diff = match Subject::look(name, look, "snapshot-create")? {
        Err(diff) => *diff,
        Ok(subject) => match subject.snapshot(snapshot) {
            Some(_) => Diff::InSync { evidence: "it is there".to_owned() },
            None => match subject.making(snapshot, layer, &mut compiled) {
                Ok(change) => Diff::Change(change),
                Err(diff) => *diff,
            },
        },
    };
    compiled.entry(&key(name, snapshot.as_str()), [], diff);
    Ok(compiled)
}

impl Subject<'_> {
    fn making(&self, snapshot: &ResourceName, number: u32, compiled: &mut Compiled) -> Result<Change, Box<Diff>> {
        self.quiet()?;
        let written = self.written()?;
        self.same_disks_running()?;
        let mut layers = Vec::new();
        for (drive, file) in &written {
            layers.push((drive.target.clone(), layer(&self.base(file), number)));
        }
        let stays: Vec<String> = self.drives.iter().filter(|d| !d.writable).map(|d| d.target.clone()).collect();
        let (parts, copies) = self.copies(snapshot, compiled)?;
        let quiesce = self.domain.active && !self.domain.paused && self.agent_answers();
        let disks = if layers.len() == 1 { "its disk".to_owned() } else { format!("its {} disks", layers.len()) };
        let beside: Vec<&str> = parts.iter().map(|p| p.name()).collect();
        let beside = if beside.is_empty() { String::new() } else { format!(", {}", beside.join(", ")) };
        let mut change = Change::new(Action::Create, format!("{disks}, its definition{beside}"));
        if self.domain.active {
            compiled.findings.push(match quiesce {
                true => note("quiesced", "its guest writes everything out, and holds its writes meanwhile".to_owned()),
                false => Finding {
                    severity: Severity::Warning,
                    code: "not-quiesced".to_owned(),
                    place: String::new(),
                    message: "no agent answers in its guest: what is on its disks then is as after a power cut"
                        .to_owned(),
                    help: "install qemu-guest-agent in the guest, or shut it down first".to_owned(),
                },
            });
            change.notes.push("what is in its memory is not in it".to_owned());
        }
        for (_, path) in &layers {
            change.notes.push(format!("from then on it writes to {}", path.display()));
        }
        change.notes.push(format!("to take it back: gpuvm vm snapshot delete {} {snapshot}", self.name));
        let xml = snapshots::xml(snapshot, &parts, &layers, &stays);
        let (name, snapshot) = (self.name.clone(), snapshot.clone());
        change.steps.push(Step::MakeSnapshot(SnapshotStep { name, snapshot, xml, layers, copies, quiesce }));
        Ok(change)
    }

    /// A disk that was changed in the stored definition only would go on without its layer at the next start.
    fn same_disks_running(&self) -> Result<(), Box<Diff>> {
        let Some(live) = self.domain.live_xml.as_deref().filter(|_| self.domain.active) else { return Ok(()) };
        let of = |all: &[Drive]| -> BTreeSet<(String, Option<PathBuf>)> {
            all.iter().filter(|d| d.writable).map(|d| (d.target.clone(), d.file.clone())).collect()
        };
        let live = drives(live).map_err(|e| unknown(format!("its running definition cannot be read: {e}")))?;
        if of(&live) == of(&self.drives) {
            return Ok(());
        }
        Err(blocked(
            "it runs with other disks than it is to have at its next start",
            format!("have it take them up first: gpuvm vm restart {}", self.name),
        ))
    }

    fn agent_answers(&self) -> bool {
        matches!(self.probe.guest_agent(self.name), Ok(Answer::Value(_)))
    }

    /// What a snapshot keeps beside libvirt.
    fn copies(
        &self,
        snapshot: &ResourceName,
        compiled: &mut Compiled,
    ) -> Result<(BTreeSet<Part>, Vec<FileCopy>), Box<Diff>> {
        let (mut parts, mut copies) = (BTreeSet::new(), Vec::new());
        for part in Part::ALL {
            let xml = self.domain.live_xml.as_deref().unwrap_or(&self.domain.inactive_xml);
            if part == Part::Tpm && tpm_elsewhere(xml) {
                return Err(blocked(
                    "its definition says where its TPM's state is, and gpuvm knows libvirt's own place only",
                    "take <source> out of its <tpm>, with the VM shut down",
                ));
            }
            let Some(from) = part.place(xml, &self.domain.uuid) else { continue };
            match self.probe.stat(&from) {
                Ok(Answer::Value(_)) => {
                    let to = part.copy(&self.domain.uuid, snapshot.as_str());
                    parts.insert(part);
                    copies.push(FileCopy { from, to });
                }
                // Made at its first start.
                Ok(Answer::Absent) => {}
                Ok(Answer::Denied) if part == Part::Tpm => {
                    return Err(unknown("only root may read the state of its TPM: run gpuvm as root"));
                }
                Ok(Answer::Denied) => compiled.findings.push(note(
                    "without-nvram",
                    "its UEFI variables are not in it, since only root may read them: a restore leaves them as they are then"
                        .to_owned(),
                )),
                Err(e) => return Err(unknown(e.to_string())),
            }
        }
        Ok((parts, copies))
    }
}

/// What a person said of going back to a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Back<'a> {
    /// The VM.
    pub vm: &'a DomainName,
    /// The snapshot.
    pub snapshot: &'a ResourceName,
    /// The number of the layers that it goes on in.
    pub layer: u32,
    /// How it is now is kept as this snapshot; else it is lost.
    pub keep: Option<&'a ResourceName>,
    /// The layers that nothing needs any more once it is back.
    pub leaves: &'a [PathBuf],
}

/// A VM is as it was.
pub(super) fn restore(back: Back<'_>, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let key_of = |name: &ResourceName| key(back.vm, name.as_str());
    let subject = match Subject::look(back.vm, look, "snapshot-revert")? {
        Ok(subject) => subject,
        Err(diff) => {
            compiled.entry(&key_of(back.snapshot), [], *diff);
            return Ok(compiled);
        }
    };
    let (name, domain) = (back.vm, &subject.domain);
    let ready = || {
        let there = subject.snapshot(back.snapshot).ok_or_else(|| subject.none(back.snapshot))?;
        if domain.active {
            let help = format!("shut it down first: gpuvm vm stop {name}");
            return Err(blocked("it runs, and its disks would change under its guest", help));
        }
        subject.quiet()?;
        Ok(there)
    };
    let there = match ready() {
        Ok(there) => there,
        Err(diff) => {
            compiled.entry(&key_of(back.snapshot), [], *diff);
            return Ok(compiled);
        }
    };
    // How it is now, first: once its disks are others, there is nothing left to keep.
    let (mut after, mut kept) = (Vec::new(), true);
    let goes_on = subject.goes_on_in(back.layer);
    if let Some(keep) = back.keep.filter(|_| !goes_on) {
        let diff = match subject.snapshot(keep) {
            Some(_) => Diff::InSync { evidence: "it is there".to_owned() },
            None => subject.making(keep, back.layer.saturating_sub(1), &mut compiled).map_or_else(|d| *d, Diff::Change),
        };
        kept = !matches!(diff, Diff::Change(_));
        compiled.entry(&key_of(keep), [], diff);
        after.push(key_of(keep));
    }
    let diff = match subject.going_back(there, back, goes_on).unwrap_or_else(|diff| *diff) {
        // Its definition is another one by then.
        Diff::Change(promise) if !kept => {
            Diff::Waits { on: WaitFor::Snapshot, why: "how it is now is kept first".to_owned(), promise }
        }
        diff => diff,
    };
    compiled.entry(&key_of(back.snapshot), after, diff);
    Ok(compiled)
}

impl Subject<'_> {
    /// Whether its disks are layers of this number.
    fn goes_on_in(&self, number_of: u32) -> bool {
        let mut written = self.drives.iter().filter(|d| d.writable).filter_map(|d| d.file.as_ref()).peekable();
        written.peek().is_some() && written.all(|file| number(&self.base(file), file) == Some(number_of))
    }

    fn going_back(&self, there: &Snapshot, back: Back<'_>, goes_on: bool) -> Result<Diff, Box<Diff>> {
        let name = self.name;
        let mut change = Change::new(Action::Change, "back to how it was");
        let ours = || back.snapshot.clone();
        if !goes_on {
            let mut sources = BTreeMap::new();
            for drive in there.drives.iter().filter(|d| d.writable) {
                let target = &drive.target;
                let file = drive.file.as_ref().ok_or_else(|| {
                    blocked(format!("its disk `{target}` is no file in that snapshot"), "virsh snapshot-dumpxml")
                })?;
                if matches!(self.probe.stat(file), Ok(Answer::Absent)) {
                    return Err(blocked(
                        format!("`{}`, which held its state, is not there any more", file.display()),
                        format!(
                            "bring it back, or take the snapshot away: gpuvm vm snapshot delete {name} {}",
                            there.name
                        ),
                    ));
                }
                let path = layer(&self.base(file), back.layer);
                change.steps.push(Step::NewLayer {
                    path: path.clone(),
                    under: file.clone(),
                    format: drive.format.clone(),
                });
                sources.insert(target.as_str(), path);
            }
            self.parts_back(there, &mut change)?;
            let by_target = sources.iter().map(|(t, p)| (*t, (p.as_path(), "qcow2"))).collect();
            let edits = with_sources(&there.definition, &by_target);
            let edits = edits.ok_or_else(|| unknown("the definition in it cannot be read"))?;
            let edit = TextEdit::new(&there.definition, edits.clone()).map_err(|e| unknown(e.to_string()))?;
            let then = splice(&there.definition, &edits).map_err(|e| unknown(e.to_string()))?;
            let now = &self.domain.inactive_xml;
            let [shown, then] = [now, &then].map(|xml| without_private_parts(xml));
            change.fields.push(FieldDiff::text("its definition", Some(&shown), Some(&then)));
            change.steps.push(Step::RestoreDomain {
                name: name.clone(),
                snapshot: ours(),
                before: sha256_hex(now.as_bytes()),
                edit,
            });
            self.lost(back, &mut change)?;
        }
        if !there.current {
            change.steps.push(Step::KeepSnapshot {
                name: name.clone(),
                snapshot: ours(),
                moved: None,
                format: None,
                current: true,
            });
        }
        // The layers that it wrote to before: nothing needs them once its definition has others.
        let held = |path: &PathBuf| self.all.iter().any(|s| s.files().any(|f| f == path));
        for path in back.leaves.iter().filter(|p| number(&self.base(p), p).is_some() && !held(p)) {
            if matches!(self.probe.stat(path), Ok(Answer::Value(_))) {
                change.steps.push(Step::RemoveLayer { path: path.clone() });
            }
        }
        if change.steps.is_empty() {
            return Ok(Diff::InSync { evidence: "it goes on from it".to_owned() });
        }
        Ok(Diff::Change(change))
    }

    /// UEFI variables and TPM state, as far as the snapshot has them.
    fn parts_back(&self, there: &Snapshot, change: &mut Change) -> Result<(), Box<Diff>> {
        for part in Part::ALL {
            let place = part.place(&there.definition, &self.domain.uuid);
            let place = place.or_else(|| part.place(&self.domain.inactive_xml, &self.domain.uuid));
            if !there.parts.contains(&part) {
                let is_there = place.is_some_and(|p| matches!(self.probe.stat(&p), Ok(Answer::Value(_))));
                if is_there {
                    change.notes.push(format!("the snapshot has no {}: they stay as they are now", part.name()));
                }
                continue;
            }
            let from = part.copy(&self.domain.uuid, &there.name);
            if matches!(self.probe.stat(&from), Ok(Answer::Absent)) {
                return Err(blocked(
                    format!("the copy of its {} is gone (`{}`)", part.name(), from.display()),
                    "bring it back from a backup: without it its guest may not boot, or not open its encrypted disks",
                ));
            }
            let to = place.ok_or_else(|| unknown(format!("where its {} go is not said any more", part.name())))?;
            change.steps.push(Step::CopyFile(FileCopy { from, to }));
        }
        Ok(())
    }

    /// What is newer than the snapshot, and where it stays or that it does not.
    fn lost(&self, back: Back<'_>, change: &mut Change) -> Result<(), Box<Diff>> {
        match back.keep {
            Some(keep) => change.notes.push(format!(
                "how it is now stays as snapshot `{keep}`: gpuvm vm snapshot restore {} {keep}",
                self.name
            )),
            None => {
                change.risks.insert(Risk::DataLoss);
                let since =
                    self.all.iter().find(|s| s.current).map_or(String::new(), |s| format!(" since `{}`", s.name));
                change.notes.push(format!("what its guest wrote{since} is lost, with its definition as it is now"));
            }
        }
        Ok(())
    }
}

/// A snapshot is gone, and what it alone needed is merged or dropped. `seen`: it was there when that was asked,
/// or what a run that failed left of one.
pub(super) fn delete(
    name: &DomainName,
    snapshot: &ResourceName,
    seen: bool,
    look: Look<'_>,
) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let diff = match Subject::look(name, look, "snapshot-delete")? {
        Err(diff) => *diff,
        Ok(subject) if !seen && subject.snapshot(snapshot).is_none() => *subject.none(snapshot),
        Ok(subject) => subject.going(snapshot).unwrap_or_else(|diff| *diff),
    };
    compiled.entry(&key(name, snapshot.as_str()), [], diff);
    Ok(compiled)
}

impl Subject<'_> {
    fn going(&self, snapshot: &ResourceName) -> Result<Diff, Box<Diff>> {
        self.quiet()?;
        let there = self.snapshot(snapshot);
        let mut change = Change::new(Action::Remove, "what it alone holds is lost; how the VM is now stays");
        let copies: Vec<PathBuf> =
            Part::ALL.into_iter().map(|p| p.copy(&self.domain.uuid, snapshot.as_str())).collect();
        // libvirt forgets it first: copies that are left are of a run that was cut off.
        let left = copies.iter().any(|copy| matches!(self.probe.stat(copy), Ok(Answer::Value(_))));
        if there.is_some() || left {
            change.risks.insert(Risk::DataLoss);
            let (name, snapshot) = (self.name.clone(), snapshot.clone());
            change.steps.push(Step::ForgetSnapshot { name, snapshot, copies });
        }
        let mut moves = Vec::new();
        for base in self.bases() {
            let layers = self.layers(&base, Some(snapshot.as_str())).map_err(unknown)?;
            let mine = there.into_iter().flat_map(Snapshot::files);
            for file in mine {
                if let Some(who) = layers.outside.get(file) {
                    return Err(blocked(
                        format!("{who} goes on in what it holds (`{}`)", file.display()),
                        "delete that first, or copy it without --linked: gpuvm vm clone",
                    ));
                }
            }
            let of_disk = match self.live_top(&base)? {
                Some((_, top)) => layers.settle_live(&top).map_err(|why| {
                    let help =
                        format!("shut it down first: gpuvm vm stop {}; or delete newer snapshots first", self.name);
                    blocked(why, help)
                })?,
                None => layers.settle(),
            };
            moves.extend(of_disk.into_iter().map(|one| (base.clone(), one)));
        }
        self.confined(&moves)?;
        self.carried_out(&moves, snapshot, &mut change)?;
        if change.steps.is_empty() {
            return Ok(Diff::InSync { evidence: "it is gone".to_owned() });
        }
        Ok(Diff::Change(change))
    }

    /// libvirt's AppArmor profile of a running VM denies writing to what was behind a disk when the profile was made, and
    /// it is made anew after each merge; a rule that lets QEMU at the file does not undo that (virt-aa-helper.c, vah_add_path).
    fn confined(&self, moves: &[(PathBuf, Move)]) -> Result<(), Box<Diff>> {
        let into =
            moves.iter().filter_map(|(_, one)| if let Move::Commit { into, .. } = one { Some(into) } else { None });
        let into: Vec<&PathBuf> = into.collect();
        if !self.domain.active || into.is_empty() {
            return Ok(());
        }
        let profile = format!("/etc/apparmor.d/libvirt/libvirt-{}.files", self.domain.uuid);
        let rules = match self.probe.text(Path::new(&profile)).map_err(|e| unknown(e.to_string()))? {
            Answer::Value(rules) => rules,
            Answer::Absent => return Ok(()),
            Answer::Denied => return Err(unknown(format!("only root may read `{profile}`: run gpuvm as root"))),
        };
        let denied = |file: &PathBuf| rules.lines().any(|l| l.trim() == format!("deny \"{}\" w,", file.display()));
        let first = into.iter().find(|file| denied(file)).or_else(|| into.get(1));
        first.map_or(Ok(()), |file| {
            Err(blocked(
                format!(
                    "it runs, and AppArmor lets its QEMU only read `{}`, which the merge writes to",
                    file.display()
                ),
                format!("shut it down first: gpuvm vm stop {}", self.name),
            ))
        })
    }

    /// The file that the running VM writes to of a disk, with the disk's name.
    fn live_top(&self, of: &Path) -> Result<Option<(String, PathBuf)>, Box<Diff>> {
        let Some(live) = self.domain.live_xml.as_deref().filter(|_| self.domain.active) else { return Ok(None) };
        let drives = drives(live).map_err(|e| unknown(format!("its running definition cannot be read: {e}")))?;
        let written = drives.into_iter().filter(|d| d.writable);
        let mut files = written.filter_map(|d| Some((d.target, d.file?)));
        Ok(files.find(|(_, file)| self.base(file) == of))
    }

    /// The moves of all disks as steps. Whatever names a file that was merged names the other one before it goes; the VM's
    /// definition is changed once for all of them.
    fn carried_out(
        &self,
        moves: &[(PathBuf, Move)],
        without: &ResourceName,
        change: &mut Change,
    ) -> Result<(), Box<Diff>> {
        let (mut merged, mut referred, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        let mut definition = self.domain.inactive_xml.clone();
        let mut seen = BTreeSet::new();
        for (base, one) in moves {
            // What comes before a commit of its disk is made before it.
            let late = seen.contains(base);
            let steps = if late { &mut dropped } else { &mut merged };
            match one {
                Move::Commit { top, into } => {
                    let live = self.live_top(base)?.map(|(disk, _)| (self.name.clone(), disk));
                    change.notes.push(format!("{} is merged into {}", top.display(), into.display()));
                    // While it runs, QEMU itself goes on in the file below, and libvirt's definitions with it.
                    if live.is_none() {
                        seen.insert(base);
                    }
                    steps.push(Step::CommitLayer { top: top.clone(), into: into.clone(), live });
                }
                Move::Rebase { path, onto } => {
                    let format = self.format_of(onto, base);
                    change.notes.push(format!("{} goes over {}", path.display(), onto.display()));
                    steps.push(Step::RebaseLayer { path: path.clone(), onto: onto.clone(), format });
                }
                Move::Remove { path } => {
                    change.notes.push(format!("{} goes: nothing needs it then", path.display()));
                    steps.push(Step::RemoveLayer { path: path.clone() });
                }
                Move::Refer { from, to } => {
                    let format = self.format_of(to, base);
                    let names = |drives: &[Drive]| drives.iter().any(|d| d.file.as_ref() == Some(from));
                    for snapshot in self.all.iter().filter(|s| s.name != without.as_str() && names(&s.drives)) {
                        let Ok(snapshot) = snapshot.name.parse() else {
                            return Err(unknown(format!(
                                "the name of its snapshot `{}` is none of gpuvm's",
                                snapshot.name
                            )));
                        };
                        referred.push(Step::KeepSnapshot {
                            name: self.name.clone(),
                            snapshot,
                            moved: Some(FileCopy { from: from.clone(), to: to.clone() }),
                            format: Some(format.clone()),
                            current: false,
                        });
                    }
                    if names(&self.drives) {
                        let edits = with_file_moved(&definition, from, (to, &format));
                        let moved = edits.and_then(|edits| splice(&definition, &edits).ok());
                        definition = moved.ok_or_else(|| unknown("its definition cannot be read"))?;
                    }
                }
            }
        }
        let now = &self.domain.inactive_xml;
        if definition != *now {
            let edit = TextEdit::new(now, line_edits(now, &definition)).map_err(|e| unknown(e.to_string()))?;
            referred.push(Step::EditDomain { name: self.name.clone(), edit, autostart: self.domain.autostart });
        }
        change.steps.extend(merged.into_iter().chain(referred).chain(dropped));
        Ok(())
    }
}
