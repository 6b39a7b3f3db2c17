//! A VM of its own that begins as another one is, or was at a snapshot: its disks copied or, linked, as layers over what a
//! snapshot holds; a UUID, addresses, UEFI variables and a seed of its own; a TPM that is empty; and no device that the
//! other has, unless that was said.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::snapshot::Subject;
use super::vm::{find, key};
use super::{Compiled, Look};
use crate::host::{Answer, HostError, Pool};
use crate::plan::{Action, Change, CopyVolumeStep, Diff, FileCopy, Finding, Severity, Step, TextEdit};
use crate::resource::libvirt_domain::{
    Clone, Disk, Drive, Extra, LibvirtDomain, as_clone, cards, drives, is_marked, project,
};
use crate::resource::seed::Seed;
use crate::resource::snapshots::Part;
use crate::resource::volume::Volume;
use crate::resource::{Resource, Wanted};
use crate::types::{ByteSize, DomainName, MacAddress, PciSlot, ResourceName, sha256_hex};

/// What was said of a clone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The VM that it begins as.
    pub from: &'a DomainName,
    /// Its name.
    pub name: &'a DomainName,
    /// As that was then; as it is now where none is said.
    pub snapshot: Option<&'a ResourceName>,
    /// Its disks are layers over what the snapshot holds.
    pub linked: bool,
    /// The passed devices that it is to have too.
    pub keeps: &'a BTreeSet<PciSlot>,
}

fn blocked(why: impl Into<String>, help: impl Into<String>) -> Box<Diff> {
    Box::new(Diff::Blocked { why: why.into(), help: help.into() })
}

fn unknown(why: impl Into<String>) -> Box<Diff> {
    Box::new(Diff::Unknown { why: why.into() })
}

pub(super) fn clone(wish: Wish<'_>, look: Look<'_>) -> Result<Compiled, HostError> {
    let mut compiled = Compiled::default();
    let (domain, known) = match find(wish.from, look, "clone")? {
        Ok(found) => found,
        Err(diff) => {
            compiled.entry(&key(wish.from), [], *diff);
            return Ok(compiled);
        }
    };
    if let Some(there) = known.domain(wish.name.as_str()) {
        let macs: Vec<MacAddress> =
            project(&there.inactive_xml).map(|p| p.nics.into_keys().collect()).unwrap_or_default();
        compiled.ours.extend(kept(wish, look, &macs).map(|w| (w.key(), Some(w))));
        let diff = match is_marked(&there.inactive_xml) {
            true => Diff::InSync { evidence: "it is there".to_owned() },
            false => *blocked("others have a VM of this name", "give this one another name"),
        };
        compiled.entry(&key(wish.name), [], diff);
        return Ok(compiled);
    }
    let subject = Subject::of(wish.from, domain, known, look.probe);
    let made = subject.and_then(|subject| Cloning { wish, subject, look }.compile(&mut compiled));
    if let Err(diff) = made {
        compiled.entries.clear();
        compiled.ours.clear();
        compiled.entry(&key(wish.name), [], *diff);
    }
    Ok(compiled)
}

struct Cloning<'a> {
    wish: Wish<'a>,
    subject: Subject<'a>,
    look: Look<'a>,
}

/// What it is a copy of.
struct Original {
    definition: String,
    drives: Vec<Drive>,
    /// Where its UEFI variables are.
    nvram: Option<PathBuf>,
}

impl Cloning<'_> {
    fn compile(&self, compiled: &mut Compiled) -> Result<(), Box<Diff>> {
        let Wish { from, name, .. } = self.wish;
        let original = self.original()?;
        let mut disks = BTreeMap::new();
        let mut after = Vec::new();
        for (n, drive) in original.drives.iter().filter(|d| d.writable).enumerate() {
            let (volume, path, diff) = self.disk(n, drive)?;
            after.push(volume.key());
            compiled.ours.insert(volume.key(), Some(volume.clone().into()));
            compiled.entry(&volume.key(), [], diff);
            disks.insert(drive.target.clone(), path);
        }
        let seed = self.seed(compiled)?;
        after.extend(seed.iter().map(|(_, seed)| seed.key()));
        let nvram = self.nvram(&original)?;
        let macs = self.macs(&original.definition)?;
        let own = Clone {
            name,
            macs: &macs,
            nvram: nvram.as_ref().map(|copy| copy.to.clone()),
            seed: seed.as_ref().map(|(former, seed)| (former.clone(), seed.path.clone())),
            disks: &disks,
            keeps: self.wish.keeps,
        };
        let edits = as_clone(&original.definition, &own)
            .map_err(|why| unknown(format!("its definition cannot be read: {why}")))?;
        let edit = TextEdit::new(&original.definition, edits).map_err(|e| unknown(e.to_string()))?;
        let xml = &original.definition;
        let of = self.wish.snapshot.map_or(String::new(), |s| format!(" as in its snapshot {s}"));
        let mut change = Change::new(Action::Create, format!("a VM that begins as {from}{of}"));
        change.notes.push("a UUID and network addresses of its own; off, and not started with the host".to_owned());
        if xml.contains("<tpm") {
            change.notes.push(format!(
                "its TPM is empty: what {from}'s guest keeps there (keys of encrypted disks) is not in it"
            ));
        }
        self.devices(&original, &mut change)?;
        if xml.contains("<graphics") {
            change.notes.push("a password of its display is not copied: set one yourself (virsh edit)".to_owned());
        }
        change.notes.push(format!(
            "host.yaml does not list it, and the next apply lets go of it: gpuvm adopt libvirt-domain/{name} --save"
        ));
        change.steps.extend(nvram.map(Step::CopyFile));
        let (name, from, snapshot) = (name.clone(), from.clone(), self.wish.snapshot.cloned());
        change.steps.push(Step::CloneDomain { name, from, snapshot, edit });
        compiled.ours.extend(kept(self.wish, self.look, &macs).map(|w| (w.key(), Some(w))));
        compiled.entry(&key(self.wish.name), after, Diff::Change(change));
        Ok(())
    }

    fn original(&self) -> Result<Original, Box<Diff>> {
        let Wish { from, name, snapshot, linked, .. } = self.wish;
        let domain = &self.subject.domain;
        let Some(of) = snapshot else {
            if linked {
                return Err(blocked(
                    format!("a layer needs something under it that is not written to, and {from} writes to its disks"),
                    format!(
                        "make a snapshot first (gpuvm vm snapshot create {from} for-{name}), and say --snapshot for-{name}"
                    ),
                ));
            }
            if domain.active {
                return Err(blocked(
                    format!("{from} runs, and writes to its disks while they would be copied"),
                    format!("shut it down first: gpuvm vm stop {from}; or copy a snapshot of it: --snapshot NAME"),
                ));
            }
            self.subject.quiet()?;
            let drives = drives(&domain.inactive_xml).map_err(unknown)?;
            let nvram = Part::Nvram.place(&domain.inactive_xml, &domain.uuid);
            return Ok(Original { definition: domain.inactive_xml.clone(), drives, nvram });
        };
        let there = self.subject.all.iter().find(|s| s.name == of.as_str());
        let there = there.ok_or_else(|| {
            blocked(format!("{from} has no snapshot `{of}`"), format!("which there are: gpuvm vm snapshot list {from}"))
        })?;
        if !there.ours {
            return Err(blocked(format!("its snapshot `{of}` was not made by gpuvm"), "take one that was"));
        }
        let nvram = there.parts.contains(&Part::Nvram).then(|| Part::Nvram.copy(&domain.uuid, &there.name));
        Ok(Original { definition: there.definition.clone(), drives: there.drives.clone(), nvram })
    }

    /// A disk of it: the volume, where that is, and what is to be done.
    fn disk(&self, n: usize, drive: &Drive) -> Result<(Volume, PathBuf, Diff), Box<Diff>> {
        let Wish { from, name, linked, .. } = self.wish;
        let target = &drive.target;
        let refuse = |why: &str, help: &str| blocked(format!("disk `{target}` of {from} {why}"), help);
        let file = drive.file.as_ref().ok_or_else(|| refuse("is no file", "copy what it is on by its own means"))?;
        if matches!(self.look.probe.stat(file), Ok(Answer::Absent)) {
            return Err(refuse("is not there", "bring it back first"));
        }
        let known = &self.subject.known;
        let folder = |p: &&Pool| p.active && p.directory().as_deref() == file.parent();
        let pool = known.pools.iter().find(folder);
        let pool = pool.ok_or_else(|| refuse("is in no started pool of libvirt's", "have a pool for its folder"))?;
        let in_pool: ResourceName =
            pool.name.parse().map_err(|_| refuse("is in a pool with a name that gpuvm does not have", ""))?;
        let base = known.pools.iter().flat_map(|p| &p.volumes).find(|v| v.path == *file);
        let size = base.map(|v| v.capacity).ok_or_else(|| {
            refuse("is not listed by libvirt, so how large it is is not known", "virsh pool-refresh, then try again")
        })?;
        let volume = Volume {
            pool: in_pool.clone(),
            name: format!("{name}-{n}.qcow2"),
            size: ByteSize::from_bytes(size),
            vm: Some(name.clone()),
            take_over: false,
            made: true,
            begun: false,
            image: None,
        };
        let path = file.with_file_name(&volume.name);
        // The ledger has the word before the file is begun, and the file has its name only once it is whole.
        let begun = self.look.past.owned.contains_key(&volume.key());
        let there = matches!(self.look.probe.stat(&path), Ok(Answer::Value(_)));
        let listed = known.pools.iter().flat_map(|p| &p.volumes).any(|v| v.path == path);
        if there && !begun {
            return Err(blocked(
                format!("`{}` is there already, and may hold anything", path.display()),
                "give the clone another name",
            ));
        }
        // One that libvirt does not list yet is listed by the same step, which copies nothing twice.
        if there && listed {
            return Ok((volume, path, Diff::InSync { evidence: "it is there".to_owned() }));
        }
        let what = if linked { "a layer over what the snapshot holds" } else { "a copy" };
        let mut change = Change::new(Action::Create, format!("{}, {what} of {}", volume.size, file.display()));
        if !linked && pool.available.is_some_and(|free| free < size) {
            change
                .notes
                .push("the pool may have less room than that: it is looked at before anything is copied".to_owned());
        }
        change.steps.push(Step::CopyVolume(CopyVolumeStep {
            pool: in_pool,
            name: volume.name.clone(),
            path: path.clone(),
            from: file.clone(),
            format: drive.format.clone(),
            linked,
        }));
        Ok((volume, path, Diff::Change(change)))
    }

    /// The image that tells its guest that it is another one now; with the path of the other's.
    fn seed(&self, compiled: &mut Compiled) -> Result<Option<(PathBuf, Seed)>, Box<Diff>> {
        let Wish { from, name, .. } = self.wish;
        let seed = self.look.past.seeds().find(|s| s.vm == *from);
        // Setup's answer file is all that Windows' has, with a password in it; what is installed reads none of it again.
        let Some(other) = seed.filter(|s| !s.windows && !s.installer) else {
            let (message, help) = match seed {
                Some(seed) if seed.installer => (
                    format!(
                        "its Ubuntu has the name, the machine id and the host keys of {from}'s, which was installed"
                    ),
                    "change them inside before both are on one network",
                ),
                Some(_) => (
                    format!(
                        "its Windows has the name, the security identifiers and the accounts of {from}'s; the CD-ROM with \
                         Setup's answer file is not in it"
                    ),
                    "sysprep /generalize inside, before both are on one network",
                ),
                None => (
                    format!("its guest has the name, the machine id and the host keys of {from}'s"),
                    "change them inside before both are on one network",
                ),
            };
            compiled.findings.push(Finding {
                severity: Severity::Warning,
                code: "same-guest".to_owned(),
                place: String::new(),
                message,
                help: help.to_owned(),
            });
            return Ok(None);
        };
        let path = other.path.with_file_name(format!("{name}-seed.iso"));
        let macs = self.macs(&self.subject.domain.inactive_xml)?;
        let inputs = sha256_hex(format!("{} for {name}", other.inputs).as_bytes());
        let instance = format!("gpuvm-{name}-1");
        let mut shown = other.shown.clone();
        shown.insert("hostname".to_owned(), host_name(name));
        let fixed = shown.get("address").filter(|a| *a != "by DHCP").cloned();
        if let Some(address) = fixed {
            compiled.findings.push(Finding {
                severity: Severity::Warning,
                code: "by-dhcp".to_owned(),
                place: String::new(),
                message: format!("{from} has the address {address}: the clone asks for one by DHCP"),
                help: String::new(),
            });
            shown.insert("address".to_owned(), "by DHCP".to_owned());
        }
        let seed = Seed {
            vm: name.clone(),
            path: path.clone(),
            inputs: inputs.clone(),
            instance: instance.clone(),
            shown,
            key_files: Vec::new(),
            password_file: None,
            windows: false,
            installer: false,
            absent: false,
        };
        let key = seed.key();
        let diff = match self.look.probe.stat(&path) {
            Ok(Answer::Absent) => {
                let mut change = Change::new(Action::Create, "what tells its guest that it is another one");
                change.notes.push("cloud-init sets it up anew: users, packages, commands, new host keys".to_owned());
                change.steps.push(Step::CloneSeed {
                    from: other.path.clone(),
                    to: path,
                    hostname: host_name(name),
                    instance,
                    mac: macs.first().copied(),
                    inputs,
                });
                Diff::Change(change)
            }
            _ if self.look.past.owned.contains_key(&key) => Diff::InSync { evidence: "it is there".to_owned() },
            Ok(Answer::Value(_)) => {
                return Err(blocked(format!("`{}` is there already", path.display()), "give the clone another name"));
            }
            _ => return Err(unknown(format!("`{}` may not be looked at: run gpuvm as root", path.display()))),
        };
        compiled.ours.insert(key.clone(), Some(seed.clone().into()));
        compiled.entry(&key, [], diff);
        Ok(Some((other.path.clone(), seed)))
    }

    /// Its UEFI variables begin as the other's: what boots is written in them.
    fn nvram(&self, original: &Original) -> Result<Option<FileCopy>, Box<Diff>> {
        let place = Part::Nvram.place(&original.definition, "");
        let (Some(from), Some(place)) = (&original.nvram, place) else { return Ok(None) };
        match self.look.probe.stat(from) {
            Ok(Answer::Value(_)) => {
                let to = place.with_file_name(format!("{}_VARS.fd", self.wish.name));
                if let Some(user) = self.subject.known.named_by(&to, |_| false) {
                    return Err(blocked(format!("{user} has `{}`", to.display()), "give the clone another name"));
                }
                Ok(Some(FileCopy { from: from.clone(), to }))
            }
            // They are made at a first start.
            Ok(Answer::Absent) if self.wish.snapshot.is_none() => Ok(None),
            Ok(Answer::Absent) => Err(blocked(format!("`{}` is gone", from.display()), "bring it back from a backup")),
            Ok(Answer::Denied) => Err(unknown("only root may read its UEFI variables: run gpuvm as root")),
            Err(e) => Err(unknown(e.to_string())),
        }
    }

    /// What it does not have of the other's devices.
    fn devices(&self, original: &Original, change: &mut Change) -> Result<(), Box<Diff>> {
        let is = project(&original.definition).map_err(unknown)?;
        let slots: BTreeSet<PciSlot> = is.functions.iter().map(|f| f.slot).collect();
        if let Some(none) = self.wish.keeps.iter().find(|s| !slots.contains(s)) {
            return Err(blocked(
                format!("{} does not have {none}", self.wish.from),
                format!("give it to the clone afterwards: gpuvm gpu attach {} GPU", self.wish.name),
            ));
        }
        for slot in &slots {
            change.notes.push(match self.wish.keeps.contains(slot) {
                true => format!("it has {slot} too: only one of the two can run with it at a time"),
                false => format!("it does not have {slot}: gpuvm gpu attach {} GPU gives it one", self.wish.name),
            });
        }
        Ok(())
    }

    /// Addresses that no card of any VM has.
    fn macs(&self, xml: &str) -> Result<Vec<MacAddress>, Box<Diff>> {
        let count = cards(xml).map_err(|why| unknown(format!("its definition cannot be read: {why}")))?;
        let known = &self.subject.known;
        let of = |xml: &str| project(xml).map(|p| p.nics.into_keys().collect::<Vec<_>>()).unwrap_or_default();
        let taken: BTreeSet<MacAddress> = known
            .domains
            .iter()
            .filter(|d| d.name != self.wish.name.as_str())
            .flat_map(|d| of(&d.inactive_xml))
            .collect();
        let mut all: Vec<MacAddress> = Vec::new();
        for n in 0..count {
            let mut tries = (0u32..).map(|salt| mac(&self.look.facts.hostname, self.wish.name, n, salt));
            all.extend(tries.find(|mac| !taken.contains(mac) && !all.contains(mac)));
        }
        Ok(all)
    }
}

/// An address in QEMU's own range, the same for the same names.
fn mac(hostname: &str, vm: &DomainName, n: usize, salt: u32) -> MacAddress {
    let hex = sha256_hex(format!("gpuvm clone {hostname} {vm} {n} {salt}").as_bytes());
    let byte = |at: usize| hex.get(at..at + 2).and_then(|h| u8::from_str_radix(h, 16).ok()).unwrap_or(0);
    MacAddress([0x52, 0x54, 0x00, byte(0), byte(2), byte(4)])
}

/// A host name has fewer characters than a VM's name may have.
fn host_name(vm: &DomainName) -> String {
    let text: String = vm.as_str().chars().map(|c| if matches!(c, '.' | '_') { '-' } else { c }).collect();
    text.trim_end_matches('-').to_owned()
}

/// What the ledger has of it as a VM, where it has the other one.
fn kept(wish: Wish<'_>, look: Look<'_>, macs: &[MacAddress]) -> Option<Wanted> {
    let Some(Wanted::LibvirtDomain(of)) = look.past.owned.get(&key(wish.from)) else { return None };
    let name = wish.name;
    let disk = |(n, disk): (usize, &Disk)| {
        let volume = format!("{name}-{n}.qcow2");
        Disk { path: disk.path.with_file_name(&volume), volume, ..disk.clone() }
    };
    let answers = look.past.seeds().any(|s| s.vm == *wish.from && (s.windows || s.installer));
    let mut nic = of.nic.clone();
    // The ledger knows one card; of a VM with several, which of them that is nobody says.
    nic.iter_mut().zip(macs).for_each(|(nic, mac)| nic.mac = *mac);
    let clone = LibvirtDomain {
        name: name.clone(),
        disks: of.disks.iter().enumerate().map(disk).collect(),
        nic,
        slots: of.slots.iter().filter(|s| wish.keeps.contains(&s.slot)).cloned().collect(),
        // What is the other's alone; its definition has none either.
        extras: of.extras.iter().filter(|e| !matches!(e, Extra::Mediated(_))).cloned().collect(),
        seed: of.seed.as_ref().filter(|_| !answers).map(|seed| seed.with_file_name(format!("{name}-seed.iso"))),
        autostart: false,
        start_when_made: false,
        running: None,
        absent: false,
        start_owed: false,
        // Its disk is a copy of one that is installed.
        install: None,
        install_owed: false,
        ..of.clone()
    };
    Some(clone.into())
}

/// Where the UEFI variables of a clone of this name would be, beside those of the other; for who asks whether the name is
/// free.
pub fn nvram_of(xml: &str, name: &DomainName) -> Option<PathBuf> {
    let place: PathBuf = Part::Nvram.place(xml, "")?;
    Some(Path::new(&place).with_file_name(format!("{name}_VARS.fd")))
}
