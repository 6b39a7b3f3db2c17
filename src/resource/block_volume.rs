//! A block volume: a VM's disk in an LVM volume group, an LVM thin pool or a ZFS dataset that a person made. It is made and
//! grown, never shrunk, never moved, and goes by a word of its own alone: with its VM, or by an undo with the data. libvirt has pools for two of the three, which cannot grow a
//! volume, and whose stop would deactivate a group that the host may run from: so the tools of LVM and ZFS are asked
//! themselves. Whose a volume is, and whether it has come to its end, is written at the volume, by tags and properties
//! that it has from the moment that it is there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::image;
use super::libvirt_domain::{has_disk, user_of};
use super::volume::FromImage;
use super::{Resource, Wanted};
use crate::facts::HostFacts;
use crate::host::{Answer, HostError, Output, Probe, Program};
use crate::image::Cached;
use crate::plan::{
    Action, BlockStore, BlockVolumeStep, Change, Diff, FieldDiff, Finding, Risk, Severity, Step, WaitFor,
};
use crate::types::{ByteSize, DomainName, ResourceName};

/// A VM's disk in storage of blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockVolume {
    /// Its name in `storage`.
    pub storage: ResourceName,
    /// What that is.
    pub store: BlockStore,
    /// Its name there: `desktop-0`.
    pub name: String,
    /// What the guest sees.
    pub size: ByteSize,
    /// The VM whose disk it is.
    pub vm: DomainName,
    /// Use one that is there and is not gpuvm's, with what is on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// gpuvm made it; in the ledger alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
    /// What it begins as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<FromImage>,
}

/// One question for all logical volumes (lvs(8), lvmreport(7)); sizes in bytes.
pub const LVS: [&str; 7] = [
    "--reportformat",
    "json",
    "--units",
    "b",
    "--nosuffix",
    "-o",
    "vg_name,lv_name,lv_size,lv_attr,pool_lv,data_percent,metadata_percent,lv_tags",
];
/// One for all volume groups.
pub const VGS: [&str; 7] =
    ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", "vg_name,vg_free,vg_extent_size"];
/// One for all datasets (zfs-list(8)): exact numbers, tabs between.
pub const ZFS_LIST: [&str; 6] =
    ["list", "-Hp", "-t", "filesystem,volume", "-o", "name,type,volsize,available,gpuvm:vm,gpuvm:image,gpuvm:state"];

/// A volume that is being made: what is on it is nobody's yet.
pub const BEGUN: &str = "gpuvm.begun";
/// What precedes the VM's name in a tag.
pub const OF_VM: &str = "gpuvm.vm:";
/// What precedes the image's name in a tag.
pub const OF_IMAGE: &str = "gpuvm.image:";

/// A volume as its own tools tell of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What a guest sees, in bytes.
    pub size: u64,
    /// The VM that gpuvm made it for.
    pub vm: Option<String>,
    /// The image that it began as.
    pub image: Option<String>,
    /// gpuvm has begun to make it.
    pub begun: bool,
    /// Why it cannot be a disk.
    pub odd: Option<String>,
    /// Something has it open; only LVM tells.
    pub open: bool,
    /// It has snapshots that would go with it, as LVM's thick ones do. Thin ones stay by themselves, and ZFS refuses.
    pub snapshots: bool,
}

impl Found {
    /// Why a VM's volume is not deleted. `closes`: the VM has it open, and ends before.
    pub fn hinders(&self, vm: &DomainName, closes: bool) -> Option<String> {
        if self.vm.as_deref() != Some(vm.as_str()) {
            return Some(format!("nothing at it says that gpuvm made it for {vm}"));
        }
        if let Some(odd) = &self.odd {
            return Some(odd.clone());
        }
        if self.snapshots {
            return Some("it has snapshots, which would go with it".to_owned());
        }
        (self.open && !closes).then(|| "something on this host has it open".to_owned())
    }
}

/// Where volumes are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// What is free for new ones, in bytes; of a thin pool, what is not promised to volumes yet.
    pub free: u64,
    /// The size of an extent: sizes are whole numbers of it.
    pub extent: u64,
    /// How full a thin pool is.
    pub thin: Option<Fullness>,
    /// Its volumes by name.
    pub volumes: BTreeMap<String, Found>,
}

/// How full a thin pool is, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fullness {
    /// What guests wrote.
    pub data: u64,
    /// What the pool keeps of that.
    pub metadata: u64,
}

impl Fullness {
    /// The fuller of the two: the pool halts as soon as one is full (lvmthin(7)).
    pub fn most(self) -> u64 {
        self.data.max(self.metadata)
    }
}

/// What is said of a thin pool from here on, in percent.
const NEARLY_FULL: u64 = 90;

/// The thin pools that disks of a manifest are in and that are nearly full, each once. What cannot be told is said of the
/// disks.
pub fn nearly_full<'a>(wanted: impl Iterator<Item = &'a Wanted>, probe: &dyn Probe) -> Vec<Finding> {
    let blocks = wanted.filter_map(|w| if let Wanted::BlockVolume(block) = w { Some(block) } else { None });
    let pools: BTreeMap<&ResourceName, &BlockStore> = blocks.map(|b| (&b.storage, &b.store)).collect();
    let mut all = Vec::new();
    for (name, store) in pools {
        if !matches!(store, BlockStore::LvmThin { .. }) {
            continue;
        }
        let Ok(Answer::Value(Some(Place { thin: Some(full), .. }))) = look(store, probe) else { continue };
        let (data, metadata) = (full.data >= NEARLY_FULL, full.metadata >= NEARLY_FULL);
        let (what, word) = match (data, metadata) {
            (false, false) => continue,
            (true, false) => ("its data", "--size"),
            (false, true) => ("its metadata", "--poolmetadatasize"),
            (true, true) => ("its data and its metadata", "--size +… --poolmetadatasize"),
        };
        all.push(Finding {
            severity: Severity::Warning,
            code: "nearly-full".to_owned(),
            place: format!("storage.{name}"),
            // Without the figure, which is another one each time.
            message: format!("{store} is nearly full ({what}, lvs): a full thin pool halts every VM in it"),
            help: format!("make it larger: lvextend {word} +… {}", store.words()),
        });
    }
    all
}

impl Place {
    /// The bytes of a size there: a whole number of extents.
    pub fn whole(&self, size: ByteSize) -> u64 {
        let extent = self.extent.max(1);
        size.bytes().div_ceil(extent).saturating_mul(extent)
    }
}

/// What is told of a store: `None` where there is none of this name.
pub fn look(store: &BlockStore, probe: &dyn Probe) -> Result<Answer<Option<Place>>, HostError> {
    let said = |program: Program, args: &[&str]| -> Result<Answer<String>, HostError> {
        Ok(match probe.query(program, args)? {
            Answer::Value(Output { status: 0, stdout, .. }) => Answer::Value(stdout),
            Answer::Value(Output { stderr, .. }) => {
                let why = stderr.lines().next().unwrap_or("it failed").to_owned();
                return Err(HostError::Refused(format!("{}: {why}", program.name())));
            }
            Answer::Absent => Answer::Absent,
            Answer::Denied => Answer::Denied,
        })
    };
    match store {
        BlockStore::Zfs { dataset } => Ok(said(Program::Zfs, &ZFS_LIST)?.map(|text| zfs(&text, dataset))),
        BlockStore::Lvm { group } | BlockStore::LvmThin { group, .. } => {
            let (groups, volumes) = (said(Program::Vgs, &VGS)?, said(Program::Lvs, &LVS)?);
            let thin = match store {
                BlockStore::LvmThin { pool, .. } => Some(pool.as_str()),
                _ => None,
            };
            Ok(match (groups, volumes) {
                (Answer::Value(groups), Answer::Value(volumes)) => Answer::Value(lvm(&groups, &volumes, group, thin)?),
                (Answer::Absent, _) | (_, Answer::Absent) => Answer::Absent,
                _ => Answer::Denied,
            })
        }
    }
}

/// The rows of a report of LVM's.
fn rows(text: &str, of: &str) -> Result<Vec<BTreeMap<String, String>>, HostError> {
    let unreadable = || HostError::Refused("what LVM reports cannot be read".to_owned());
    let value: Value = serde_json::from_str(text).map_err(|_| unreadable())?;
    let reports = value["report"].as_array().ok_or_else(unreadable)?;
    let all = reports.iter().flat_map(|r| r[of].as_array().into_iter().flatten());
    all.map(|row| serde_json::from_value(row.clone()).map_err(|_| unreadable())).collect()
}

fn lvm(groups: &str, volumes: &str, group: &str, thin: Option<&str>) -> Result<Option<Place>, HostError> {
    let number = |row: &BTreeMap<String, String>, name: &str| {
        row.get(name).and_then(|v| v.split('.').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let text = |row: &BTreeMap<String, String>, name: &str| row.get(name).cloned().unwrap_or_default();
    let groups = rows(groups, "vg")?;
    let Some(of) = groups.iter().find(|row| text(row, "vg_name") == group) else { return Ok(None) };
    let mut place = Place { free: number(of, "vg_free"), extent: number(of, "vg_extent_size"), ..Place::default() };
    let all: Vec<_> = rows(volumes, "lv")?.into_iter().filter(|row| text(row, "vg_name") == group).collect();
    if let Some(pool) = thin {
        let found = all.iter().find(|row| text(row, "lv_name") == pool && text(row, "lv_attr").starts_with('t'));
        let Some(found) = found else { return Ok(None) };
        let promised: u64 = all.iter().filter(|r| text(r, "pool_lv") == pool).map(|r| number(r, "lv_size")).sum();
        place.free = number(found, "lv_size").saturating_sub(promised);
        place.thin =
            Some(Fullness { data: number(found, "data_percent"), metadata: number(found, "metadata_percent") });
    }
    for row in &all {
        let tags = text(row, "lv_tags");
        let tag = |prefix: &str| tags.split(',').find_map(|t| t.strip_prefix(prefix)).map(str::to_owned);
        let (attr, pool) = (text(row, "lv_attr"), text(row, "pool_lv"));
        // lvs(8): the first character is what it is, the fifth whether it is active.
        let odd = match (attr.chars().next(), attr.chars().nth(4)) {
            (Some('-' | 'm' | 'M' | 'r' | 'R' | 'V' | 'o'), Some('a')) if pool == thin.unwrap_or_default() => None,
            (Some('-' | 'm' | 'M' | 'r' | 'R' | 'V' | 'o'), Some('a')) => {
                Some("it lies elsewhere in the volume group".to_owned())
            }
            (Some('-' | 'm' | 'M' | 'r' | 'R' | 'V' | 'o'), _) => {
                Some("it is not active (lvchange --activate y)".to_owned())
            }
            _ => Some(format!("it is no plain volume (lvs shows it as `{attr}`)")),
        };
        let found = Found {
            size: number(row, "lv_size"),
            vm: tag(OF_VM),
            image: tag(OF_IMAGE),
            begun: tags.split(',').any(|t| t == BEGUN),
            odd,
            open: attr.chars().nth(5) == Some('o'),
            snapshots: attr.starts_with(['o', 'O']),
        };
        place.volumes.insert(text(row, "lv_name"), found);
    }
    Ok(Some(place))
}

fn zfs(text: &str, dataset: &str) -> Option<Place> {
    let rows: Vec<Vec<&str>> =
        text.lines().map(|l| l.split('\t').collect()).filter(|r: &Vec<_>| r.len() == 7).collect();
    let of = rows.iter().find(|r| r[0] == dataset && r[1] == "filesystem")?;
    // What a volume's size has to be a multiple of is its block size: a MiB is one of each.
    let mut place = Place { free: of[3].parse().unwrap_or(0), extent: 1 << 20, ..Place::default() };
    let own = |value: &str| (value != "-").then(|| value.to_owned());
    for row in &rows {
        let Some(name) = row[0].strip_prefix(dataset).and_then(|rest| rest.strip_prefix('/')) else { continue };
        let found = Found {
            size: row[2].parse().unwrap_or(0),
            vm: own(row[4]),
            image: own(row[5]),
            begun: row[6] == "begun",
            odd: (row[1] != "volume").then(|| "it is a file system, and no volume".to_owned()),
            ..Found::default()
        };
        place.volumes.insert(name.to_owned(), found);
    }
    Some(place)
}

/// What a volume is compared with.
#[derive(Debug)]
pub struct State {
    place: Result<Answer<Option<Place>>, String>,
    /// What is kept of the image that it begins as.
    image: Option<Cached>,
    /// Whether libvirt answers.
    libvirt: bool,
    /// Its VM has it in its definition already.
    had: bool,
    /// Another VM has it.
    other: Option<String>,
}

impl BlockVolume {
    /// Its node, which its VM has as a disk.
    pub fn device(&self) -> PathBuf {
        self.store.device(&self.name)
    }

    fn step(&self, grow: bool) -> Step {
        Step::BlockVolume(BlockVolumeStep {
            store: self.store.clone(),
            name: self.name.clone(),
            size: self.size,
            vm: self.vm.clone(),
            grow,
            image: self.image.as_ref().filter(|_| !grow).map(|i| i.pointer.clone()),
            image_name: self.image.as_ref().filter(|_| !grow).map(|i| i.name.clone()),
        })
    }

    fn making(&self) -> Change {
        let from = self.image.as_ref().map_or(String::new(), |i| format!(", from {}", i.name));
        let mut change = Change::new(Action::Create, format!("{} in {}{from}", self.size, self.store));
        if self.image.is_some() {
            change
                .notes
                .push("the image is written to it as a whole, once, when gpuvm itself has just made it".to_owned());
        }
        change.steps.push(self.step(false));
        change
    }

    /// Room for so much more; without figures, which change all the time.
    fn room(&self, place: &Place, more: u64, change: &mut Change) -> Option<Diff> {
        let full = place.thin.map_or(0, Fullness::most);
        if place.thin.is_none() && place.free < more {
            return Some(Diff::Blocked {
                why: format!("{} has not so much room left", self.store),
                help: "write a smaller size, or give it more room first: storage is used, never made".to_owned(),
            });
        }
        if full >= 95 {
            return Some(Diff::Blocked {
                why: format!("{} is all but full: a full thin pool halts every VM in it", self.store),
                help: format!("make it larger first: lvextend --size +… {}", self.store.words()),
            });
        }
        if full >= 80 {
            change.notes.push(format!("{} is nearly full: a full thin pool halts every VM in it (lvs)", self.store));
        }
        if place.thin.is_some() && place.free < more {
            change.notes.push(format!(
                "more is promised to the volumes of {} than it has: it takes up what guests write, and a full one halts \
                 every VM in it",
                self.store
            ));
        }
        None
    }

    /// What its VM's end comes to for it, data and all: a VM `but` counts as gone. `leave` is how a person has it stay.
    pub fn deletion(&self, but: impl Fn(&str) -> bool, leave: &str, probe: &dyn Probe) -> Result<Diff, HostError> {
        let stays = |why: &str| Ok(Diff::stays(why));
        let device = self.device();
        let blocked = |why: String| Ok(Diff::Blocked { why, help: format!("put that right first; or {leave}") });
        let unknown = |why: String| Ok(Diff::Unknown { why: format!("who needs it too: {why}; to go on, {leave}") });
        if self.take_over {
            return stays("it was there before gpuvm used it");
        }
        if !self.made {
            return stays("nothing says that gpuvm made it");
        }
        let place = match look(&self.store, probe) {
            Ok(Answer::Value(Some(place))) => place,
            Ok(Answer::Absent | Answer::Value(None)) => {
                return blocked(format!("there is no {}, so what is in it is not known", self.store));
            }
            Ok(Answer::Denied) => return unknown(format!("only root may look into {}", self.store)),
            Err(why) => return unknown(why.to_string()),
        };
        let Some(found) = place.volumes.get(&self.name) else {
            return Ok(Diff::InSync { evidence: "it is gone".to_owned() });
        };
        let Some(known) = super::libvirt::ask(probe)?.value() else {
            return unknown("libvirt does not answer".to_owned());
        };
        let closes = but(self.vm.as_str()) && known.domain(self.vm.as_str()).is_some_and(|d| d.active);
        if let Some(why) = found.hinders(&self.vm, closes) {
            return blocked(format!("`{}` is not deleted: {why}", device.display()));
        }
        if let Some(user) = known.named_by(&device, but) {
            return blocked(format!("{user} needs it too"));
        }
        match user_of(&device, &self.vm, &known, probe) {
            Err(why) => return unknown(why),
            Ok(Some(user)) => return blocked(format!("`{}` is not deleted: {user}", device.display())),
            Ok(None) => {}
        }
        let size = ByteSize::from_bytes(found.size);
        let mut change = Change::new(Action::Remove, format!("{size} in {}, with everything on it", self.store));
        change.risks.insert(Risk::DataLoss);
        let (program, args) = self.store.removal(&self.name);
        change.notes.push(format!("by {} {}", program.name(), args.join(" ")));
        let (store, name, vm) = (self.store.clone(), self.name.clone(), self.vm.clone());
        change.steps.push(Step::RemoveBlockVolume { store, name, vm });
        Ok(Diff::Change(change))
    }

    /// Why it cannot be made by this name.
    fn bad_name(&self) -> Option<String> {
        // lvm(8), "Valid names".
        const RESERVED: [&str; 11] = [
            "_cdata", "_cmeta", "_corig", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta",
            "_vorigin",
        ];
        let lvm = !matches!(self.store, BlockStore::Zfs { .. });
        RESERVED
            .iter()
            .find(|word| lvm && self.name.contains(*word))
            .map(|w| format!("LVM keeps names with `{w}` to itself"))
    }
}

impl Resource for BlockVolume {
    const KIND: &'static str = "block-volume";
    type State = State;

    fn name(&self) -> String {
        format!("{}/{}", self.storage, self.name)
    }

    /// One that was grown, or was there already, has not been made by that.
    fn kept(&self, last: Option<&Self>, made: bool) -> Self {
        Self { made: made || last.is_some_and(|l| l.made), ..self.clone() }
    }

    fn probe(&self, host: &dyn Probe) -> Result<State, HostError> {
        let place = look(&self.store, host).map_err(|e| e.to_string());
        let image = match &self.image {
            Some(from) => image::kept(host, &from.pointer)?,
            None => None,
        };
        let path = self.device().to_string_lossy().into_owned();
        let known = super::libvirt::ask(host)?.value();
        let domains = known.iter().flat_map(|k| &k.domains);
        let who: Vec<&str> = domains.filter(|d| has_disk(d, |s| s == path)).map(|d| d.name.as_str()).collect();
        let other = who.iter().find(|name| **name != self.vm.as_str()).map(|name| (*name).to_owned());
        let libvirt = known.is_some();
        Ok(State { place, image, libvirt, had: who.contains(&self.vm.as_str()), other })
    }

    fn diff(&self, state: &State, last: Option<&Self>, _: &HostFacts) -> Diff {
        let blocked = |why: String, help: String| Diff::Blocked { why, help };
        let store = &self.store;
        let place = match &state.place {
            Err(why) => return Diff::Unknown { why: format!("what is in {store} cannot be told: {why}") },
            Ok(Answer::Denied) => {
                return Diff::Unknown { why: format!("only root may look into {store}: run gpuvm as root") };
            }
            Ok(Answer::Absent) | Ok(Answer::Value(None)) => {
                return blocked(
                    format!("there is no {store}"),
                    "make it first, or correct `storage`: storage is used, never made or formatted".to_owned(),
                );
            }
            Ok(Answer::Value(Some(place))) => place,
        };
        if let Some(other) = &state.other {
            return blocked(
                format!("`{}` is a disk of VM `{other}`", self.device().display()),
                "two guests that write to one disk destroy it: take it from that one first".to_owned(),
            );
        }
        let Some(found) = place.volumes.get(&self.name) else {
            if state.had {
                return blocked(
                    format!("its VM has it, and it is gone from {store}"),
                    "bring it back by LVM's or ZFS's own means; a disk is never made anew".to_owned(),
                );
            }
            if let Some(why) = self.bad_name() {
                return blocked(why, "give the VM another name".to_owned());
            }
            if let Some((why, help)) = state.image.as_ref().and_then(|kept| image::too_small(kept, self.size)) {
                return blocked(why, help);
            }
            let mut change = self.making();
            // An image lies in a pool of libvirt's first.
            if self.image.is_some() && state.image.is_none() && !state.libvirt {
                return Diff::Waits {
                    on: WaitFor::Libvirt,
                    why: "its image is kept in a pool of libvirt's, which is not there yet".to_owned(),
                    promise: change,
                };
            }
            if let Some(refused) = self.room(place, place.whole(self.size), &mut change) {
                return refused;
            }
            return Diff::Change(change);
        };
        let ours = found.vm.as_deref() == Some(self.vm.as_str());
        if found.begun && ours {
            let mut change = self.making();
            change.notes.push("an earlier run began it, and did not come to its end: nobody has had it yet".to_owned());
            return Diff::Change(change);
        }
        if !ours && !state.had && !self.take_over && !last.is_some_and(|l| l.take_over) {
            return blocked(
                format!(
                    "`{}` is there already, and this VM has not had it: the guest would write into it",
                    self.device().display()
                ),
                "to use it with what is on it, write `takeOver: true` at the disk; else give the VM another name"
                    .to_owned(),
            );
        }
        if let Some(odd) = &found.odd {
            return blocked(
                format!("`{}`: {odd}", self.device().display()),
                "put that right first: a disk is neither moved nor converted".to_owned(),
            );
        }
        if let (Some(wanted), Some(is)) = (&self.image, &found.image)
            && is != wanted.name.as_str()
        {
            return blocked(
                format!("it was made from `{is}`, and the manifest says `{}`: a disk is never made anew", wanted.name),
                format!("write `image: {is}`, or give a new VM another name"),
            );
        }
        let (is, wanted) = (found.size, place.whole(self.size));
        let is_size = ByteSize::from_bytes(is);
        if is == wanted || is == self.size.bytes() {
            return Diff::InSync { evidence: format!("{is_size} in {store}") };
        }
        if is > wanted {
            return blocked(
                format!("it has {is_size}, and the manifest says {}: a disk is never shrunk", self.size),
                format!("write `{is_size}` in the manifest"),
            );
        }
        let mut change = Change::new(Action::Change, format!("grows to {}", self.size));
        change.fields.push(FieldDiff::new("size", Some(is_size.to_string()), Some(self.size.to_string())));
        change.notes.push("the guest's partition and file system are the guest's to grow".to_owned());
        change.steps.push(self.step(true));
        match self.room(place, wanted - is, &mut change) {
            Some(refused) => refused,
            None => Diff::Change(change),
        }
    }

    /// Data of a person: it stays, and is known as long as its VM is there.
    fn remove(&self, state: &State, _: &HostFacts) -> Diff {
        match state.had {
            true => Diff::Stays { why: "its VM stays, and has it".to_owned(), ours: true },
            false => Diff::stays(format!("disks stay; to delete it: {}", self.store.remove_words(&self.name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Fixture, Record, RecordedQuery};
    use crate::resource::tests::facts;

    const VGS: &str = r#"{"report":[{"vg":[
        {"vg_name":"vg0","vg_free":"10737418240","vg_extent_size":"4194304"},
        {"vg_name":"root","vg_free":"0","vg_extent_size":"4194304"}]}]}"#;

    fn lvs(more: &str) -> String {
        format!(
            r#"{{"report":[{{"lv":[
            {{"vg_name":"vg0","lv_name":"vms","lv_size":"21474836480","lv_attr":"twi-aotz--","pool_lv":"","data_percent":"12.50","metadata_percent":"7.00","lv_tags":""}},
            {{"vg_name":"vg0","lv_name":"old","lv_size":"4294967296","lv_attr":"Vwi-a-tz--","pool_lv":"vms","data_percent":"1.00","metadata_percent":"","lv_tags":"mine"}}{more}]}}]}}"#
        )
    }
    fn row(name: &str, gib: u64, attr: &str, pool: &str, tags: &str) -> String {
        format!(
            r#",{{"vg_name":"vg0","lv_name":"{name}","lv_size":"{}","lv_attr":"{attr}","pool_lv":"{pool}","data_percent":"","metadata_percent":"","lv_tags":"{tags}"}}"#,
            gib << 30
        )
    }
    fn thin() -> BlockVolume {
        BlockVolume {
            storage: "fast".parse().unwrap(),
            store: BlockStore::LvmThin { group: "vg0".to_owned(), pool: "vms".to_owned() },
            name: "desk-0".to_owned(),
            size: ByteSize::from_gib(8),
            vm: "desk".parse().unwrap(),
            take_over: false,
            made: false,
            image: None,
        }
    }
    fn at(wanted: &BlockVolume, text: &str) -> State {
        let place = match &wanted.store {
            BlockStore::Zfs { dataset } => zfs(text, dataset),
            BlockStore::Lvm { group } => lvm(VGS, text, group, None).unwrap(),
            BlockStore::LvmThin { group, pool } => lvm(VGS, text, group, Some(pool)).unwrap(),
        };
        State { place: Ok(Answer::Value(place)), image: None, libvirt: true, had: false, other: None }
    }
    fn diff(wanted: &BlockVolume, text: &str) -> Diff {
        wanted.diff(&at(wanted, text), None, &facts())
    }
    fn why(diff: Diff) -> String {
        match diff {
            Diff::Blocked { why, .. } | Diff::Unknown { why } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_volume_is_made_once_and_grown_and_nothing_else() {
        let Diff::Change(change) = diff(&thin(), &lvs("")) else { panic!("it is made") };
        assert!(matches!(&change.steps[..], [Step::BlockVolume(step)] if !step.grow), "{:?}", change.steps);
        let image = FromImage { name: "debian-13".parse().unwrap(), pointer: "/i/debian-13.json".into() };
        let from = BlockVolume { image: Some(image), ..thin() };
        assert!(matches!(diff(&from, &lvs("")), Diff::Change(_)), "the image comes in the same round");
        let early = State { libvirt: false, ..at(&from, &lvs("")) };
        assert!(matches!(from.diff(&early, None, &facts()), Diff::Waits { .. }));
        let made = |gib, tags| lvs(&row("desk-0", gib, "Vwi-a-tz--", "vms", tags));
        assert!(matches!(diff(&thin(), &made(8, "gpuvm.vm:desk")), Diff::InSync { .. }));
        let Diff::Change(change) = diff(&thin(), &made(4, "gpuvm.vm:desk")) else { panic!("it grows") };
        assert!(matches!(&change.steps[..], [Step::BlockVolume(step)] if step.grow));
        assert!(why(diff(&thin(), &made(9, "gpuvm.vm:desk"))).contains("never shrunk"));
        for tags in ["", "gpuvm.vm:other", "gpuvm.vm:other,gpuvm.begun", "gpuvm.begun"] {
            assert!(why(diff(&thin(), &made(8, tags))).contains("this VM has not had it"), "{tags}");
        }
        // A run that was killed in between: its own word is at the volume.
        let Diff::Change(change) = diff(&thin(), &made(8, "gpuvm.begun,gpuvm.vm:desk")) else { panic!("it goes on") };
        assert!(change.notes.iter().any(|n| n.contains("did not come to its end")), "{:?}", change.notes);
        let taken = BlockVolume { take_over: true, ..thin() };
        assert!(matches!(diff(&taken, &made(8, "mine")), Diff::InSync { .. }));
        let gone = State { had: true, ..at(&thin(), &lvs("")) };
        assert!(why(thin().diff(&gone, Some(&thin()), &facts())).contains("it is gone"), "not made anew");
    }

    #[test]
    fn what_is_not_a_plain_volume_of_this_pool_is_no_disk() {
        let ours = |attr, pool| why(diff(&thin(), &lvs(&row("desk-0", 8, attr, pool, "gpuvm.vm:desk"))));
        assert!(ours("Vwi---tz--", "vms").contains("not active"));
        assert!(ours("-wi-a-----", "").contains("elsewhere"), "a disk is not moved");
        assert!(ours("swi-a-s---", "vms").contains("no plain volume"));
        let no_pool = BlockVolume { store: BlockStore::LvmThin { group: "vg0".into(), pool: "old".into() }, ..thin() };
        assert!(why(diff(&no_pool, &lvs(""))).contains("there is no thin pool vg0/old"));
        let no_group = BlockVolume { store: BlockStore::Lvm { group: "vg1".into() }, ..thin() };
        assert!(why(diff(&no_group, &lvs(""))).contains("there is no volume group vg1"));
        let reserved = BlockVolume { name: "a_tmeta-0".into(), ..thin() };
        assert!(why(diff(&reserved, &lvs(""))).contains("_tmeta"));
        let other = State { other: Some("web".into()), ..at(&thin(), &lvs("")) };
        assert!(why(thin().diff(&other, None, &facts())).contains("VM `web`"));
        let state = State { place: Err("lvs: it hangs".into()), ..at(&thin(), &lvs("")) };
        assert!(matches!(thin().diff(&state, None, &facts()), Diff::Unknown { .. }));
    }

    #[test]
    fn room_is_looked_at_before() {
        let notes = |text: &str| match diff(&BlockVolume { size: ByteSize::from_gib(18), ..thin() }, text) {
            Diff::Change(change) => change.notes.concat(),
            other => why(other),
        };
        assert!(notes(&lvs("")).contains("more is promised"));
        assert!(notes(&lvs("").replace("12.50", "81.00")).contains("nearly full"));
        assert!(notes(&lvs("").replace("7.00", "96.10")).contains("all but full"), "what it keeps of it counts too");
        let thick = BlockVolume { store: BlockStore::Lvm { group: "vg0".into() }, ..thin() };
        assert!(matches!(diff(&thick, &lvs("")), Diff::Change(_)));
        assert!(
            why(diff(&BlockVolume { size: ByteSize::from_gib(11), ..thick }, &lvs(""))).contains("not so much room")
        );
    }

    #[test]
    fn a_thin_pool_that_is_nearly_full_is_named() {
        let text = |data: &str, metadata: &str| lvs("").replace("12.50", data).replace("7.00", metadata);
        let said = |text: &str, store: BlockStore| {
            let query = |program: Program, args: &[&str], stdout: &str| RecordedQuery {
                program,
                args: args.iter().map(|a| (*a).to_owned()).collect(),
                output: Some(Output { status: 0, stdout: stdout.to_owned(), stderr: String::new() }),
            };
            let record = Record {
                queries: vec![query(Program::Vgs, &super::VGS, VGS), query(Program::Lvs, &LVS, text)],
                ..Record::default()
            };
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("root")).unwrap();
            record.save(&dir.path().join(Record::NAME)).unwrap();
            let wanted: [Wanted; 2] = [
                BlockVolume { store: store.clone(), ..thin() }.into(),
                BlockVolume { store, name: "desk-1".to_owned(), ..thin() }.into(),
            ];
            let all = nearly_full(wanted.iter(), &Fixture::open(dir.path()).unwrap());
            all.into_iter().map(|f| format!("{}: {} {}", f.place, f.message, f.help)).collect::<Vec<_>>()
        };
        let pool = || thin().store;
        assert_eq!(said(&text("89.99", "89.99"), pool()), [""; 0]);
        let data = said(&text("90.00", "7.00"), pool());
        assert_eq!(data.len(), 1, "once for all disks in it: {data:?}");
        assert!(data[0].starts_with("storage.fast: thin pool vg0/vms is nearly full (its data, lvs)"), "{data:?}");
        assert!(data[0].ends_with("lvextend --size +… vg0/vms"), "{data:?}");
        assert!(said(&text("12.50", "97.20"), pool())[0].ends_with("--poolmetadatasize +… vg0/vms"));
        assert_eq!(said(&text("99.00", "99.00"), BlockStore::Lvm { group: "vg0".to_owned() }), [""; 0]);
    }

    #[test]
    fn a_volume_has_whole_extents() {
        let thick =
            BlockVolume { store: BlockStore::Lvm { group: "vg0".into() }, size: ByteSize::from_mib(4097), ..thin() };
        let row =
            row("desk-0", 0, "-wi-a-----", "", "gpuvm.vm:desk").replace("\"0\"", &format!("\"{}\"", 4100u64 << 20));
        assert!(matches!(diff(&thick, &lvs(&row)), Diff::InSync { .. }));
    }

    #[test]
    fn zfs_tells_the_same() {
        let zvol = BlockVolume { store: BlockStore::Zfs { dataset: "tank/vms".into() }, ..thin() };
        let list = |more: &str| {
            format!("tank\tfilesystem\t-\t99\t-\t-\t-\ntank/vms\tfilesystem\t-\t10737418240\t-\t-\t-\n{more}")
        };
        assert!(matches!(diff(&zvol, &list("")), Diff::Change(_)));
        let row = |size: u64, kind: &str, rest: &str| list(&format!("tank/vms/desk-0\t{kind}\t{size}\t1\t{rest}\n"));
        assert!(matches!(diff(&zvol, &row(8 << 30, "volume", "desk\t-\tmade")), Diff::InSync { .. }));
        assert!(matches!(diff(&zvol, &row(4 << 30, "volume", "desk\t-\tmade")), Diff::Change(_)));
        assert!(matches!(diff(&zvol, &row(8 << 30, "volume", "desk\t-\tbegun")), Diff::Change(_)));
        assert!(why(diff(&zvol, &row(8 << 30, "volume", "-\t-\t-"))).contains("has not had it"));
        assert!(why(diff(&zvol, &row(0, "filesystem", "desk\t-\tmade"))).contains("no volume"));
        let nowhere = BlockVolume { store: BlockStore::Zfs { dataset: "tank/x".into() }, ..zvol };
        assert!(why(diff(&nowhere, &list(""))).contains("there is no dataset tank/x"));
    }
}
