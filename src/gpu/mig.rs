//! MIG: what NVIDIA's driver tells of a card that is cut into instances, as `nvidia-smi` has it. Names, numbers and places
//! of profiles are the card's own: they differ between models, and the widths of the tables between drivers, so that
//! words are read and never columns.
//!
//! `nvidia-smi` wakes the card that it is asked of, so it is asked only where a manifest names MIG or instances are there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::holders::{self, HolderKind};
use super::{names, text};
use crate::host::{Answer, DeviceUser, HostError, Output, Probe, Program};
use crate::types::PciAddress;

/// What a card says of MIG.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigCard {
    /// NVIDIA's name of its architecture (`Ampere`); empty where the driver does not tell.
    pub architecture: String,
    /// Whether MIG mode is on now.
    pub on: bool,
    /// Whether it is on after the next reset of the card.
    pub pending: bool,
    /// Its profiles; `None` where the driver tells of them only once MIG mode is on.
    pub profiles: Option<Vec<Profile>>,
    /// The instances that are there, by their place.
    pub instances: Vec<Instance>,
    /// Who uses the card itself, instances apart; NVIDIA's persistence daemon does not count.
    pub users: BTreeSet<String>,
    /// Why there may be users that are not named.
    pub hidden: Option<String>,
}

/// What an instance can be made as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// `3g.20gb`
    pub name: String,
    /// The driver's number of it.
    pub id: u32,
    /// How many of it an empty card has room for.
    pub most: usize,
    /// Where it can start, in slices of memory.
    pub starts: Vec<u32>,
    /// How many slices it takes.
    pub size: u32,
}

/// A GPU instance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// The driver's number of it.
    pub id: u32,
    /// What it was made as.
    pub profile: String,
    /// Its first slice.
    pub start: u32,
    /// How many slices it has.
    pub size: u32,
    /// The UUIDs of its compute instances, which containers are given.
    pub uuids: Vec<String>,
    /// How many compute instances it has.
    pub compute: usize,
    /// Who uses it.
    pub users: BTreeSet<String>,
}

/// What asking a card about MIG came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// This.
    Card(MigCard),
    /// It cannot be cut into instances.
    Without,
    /// It could not be told: the reason.
    Unknown(String),
}

/// What `nvidia-smi` says where no instance is there, and where MIG mode is off.
const NO_INSTANCES: &str = "No GPU instances found";
const NOT_ON: &str = "No MIG-enabled devices found";

/// Asks a card. Nothing is changed. What does not answer in time, or answers with anything else than what is known, is
/// unknown and never "none".
pub fn ask(probe: &dyn Probe, address: PciAddress) -> Told {
    match told(probe, address) {
        Ok(told) => told,
        Err(why) => Told::Unknown(why),
    }
}

fn told(probe: &dyn Probe, address: PciAddress) -> Result<Told, String> {
    let id = address.to_string();
    let asked = |args: &[&str]| -> Result<Output, String> {
        match probe.query(Program::NvidiaSmi, args) {
            Ok(Answer::Value(output)) => Ok(output),
            Ok(Answer::Absent) => Err("nvidia-smi is not installed".to_owned()),
            Ok(Answer::Denied) => Err("nvidia-smi may not be run (not root)".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    };
    let failed = |what: &str, output: &Output| {
        let said = output.stdout.lines().chain(output.stderr.lines()).map(str::trim).find(|l| !l.is_empty());
        format!("nvidia-smi {what} ended with {}: {}", output.status, said.unwrap_or("nothing was said"))
    };
    let log = asked(&["-q", "-x", "-i", &id])?;
    if log.status != 0 {
        return Err(failed("-q -x", &log));
    }
    let Some(mut card) = log_of(&log.stdout)? else { return Ok(Told::Without) };
    let table = |what: &str| asked(&["mig", "-i", &id, what]);
    let (list, places) = (table("-lgip")?, table("-lgipp")?);
    let off = |output: &Output| output.stdout.contains(NOT_ON) || output.stderr.contains(NOT_ON);
    match profiles(&list.stdout, &places.stdout) {
        Some(all) => card.card.profiles = Some(all),
        None if !card.card.on && (off(&list) || off(&places)) => {}
        None if list.status != 0 => return Err(failed("mig -lgip", &list)),
        None => return Err(failed("mig -lgip and -lgipp", &places)),
    }
    if card.card.on {
        let there = table("-lgi")?;
        card.card.instances = match instances(&there.stdout) {
            Some(all) if !all.is_empty() => all,
            Some(_) if there.stdout.contains(NO_INSTANCES) || there.stderr.contains(NO_INSTANCES) => Vec::new(),
            _ => return Err(failed("mig -lgi", &there)),
        };
        let list = asked(&["-L"])?;
        if list.status != 0 {
            return Err(failed("-L", &list));
        }
        uuids(&mut card, &list.stdout);
    }
    agree(&card.card)?;
    users(&mut card, probe, address);
    card.card.instances.sort_by_key(|i| (i.start, i.id));
    Ok(Told::Card(card.card))
}

/// What `-q -x` tells, with what the rest is matched by.
#[derive(Default)]
struct Log {
    card: MigCard,
    uuid: String,
    /// Compute instances: the index that `-L` has, and their GPU instance.
    devices: Vec<(u32, u32)>,
    /// Processes: GPU instance where it is one's, number, name.
    processes: Vec<(Option<u32>, u32, String)>,
}

/// Reads the log of one card. `None` where it has no MIG.
fn log_of(xml: &str) -> Result<Option<Log>, String> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let doc = roxmltree::Document::parse_with_options(xml, options)
        .map_err(|e| format!("what nvidia-smi -q -x says is not understood: {e}"))?;
    let mut gpus = doc.descendants().filter(|n| n.has_tag_name("gpu"));
    let (Some(gpu), None) = (gpus.next(), gpus.next()) else {
        return Err("nvidia-smi -q -x does not tell of this one card".to_owned());
    };
    let of = |node: roxmltree::Node<'_, '_>, name: &str| {
        let child = node.children().find(|c| c.has_tag_name(name));
        child.and_then(|c| c.text()).map(|t| t.trim().to_owned()).unwrap_or_default()
    };
    let mode = gpu.children().find(|n| n.has_tag_name("mig_mode"));
    let (now, then) = mode.map_or_else(Default::default, |m| (of(m, "current_mig"), of(m, "pending_mig")));
    let on = match now.as_str() {
        "Enabled" => true,
        "Disabled" => false,
        // A driver of before MIG says nothing of it.
        "" | "N/A" | "[N/A]" => return Ok(None),
        other => return Err(format!("nvidia-smi says that MIG mode is `{other}`")),
    };
    let number = |node, name: &str| of(node, name).parse::<u32>().ok();
    let mut log = Log { uuid: of(gpu, "uuid"), ..Log::default() };
    log.card.architecture = of(gpu, "product_architecture");
    log.card.on = on;
    log.card.pending = if then.is_empty() { on } else { then == "Enabled" };
    for device in gpu.descendants().filter(|n| n.has_tag_name("mig_device")) {
        let (Some(index), Some(instance)) = (number(device, "index"), number(device, "gpu_instance_id")) else {
            return Err("nvidia-smi -q -x does not tell of which instance a MIG device is".to_owned());
        };
        log.devices.push((index, instance));
    }
    for process in gpu.descendants().filter(|n| n.has_tag_name("process_info")) {
        let Some(pid) = number(process, "pid") else {
            return Err("nvidia-smi -q -x does not tell the number of a process".to_owned());
        };
        log.processes.push((number(process, "gpu_instance_id"), pid, of(process, "process_name")));
    }
    Ok(Some(log))
}

/// The words of a table's row that begins with a card's number and `MIG`.
fn row(line: &str) -> Option<Vec<&str>> {
    let words: Vec<&str> = line.split(|c: char| c.is_whitespace() || c == '|').filter(|w| !w.is_empty()).collect();
    (words.get(1) == Some(&"MIG") && words.first()?.parse::<u32>().is_ok()).then_some(words)
}

/// The tables of profiles (`-lgip`) and of their places (`-lgipp`). `None` where either is not there.
fn profiles(list: &str, places: &str) -> Option<Vec<Profile>> {
    let mut at: BTreeMap<u32, (Vec<u32>, u32)> = BTreeMap::new();
    for line in places.lines() {
        // GPU  0 Profile ID 14 Placements: {0,1,2,3}:1
        let Some((_, rest)) = line.split_once("Profile ID") else { continue };
        let (id, rest) = rest.trim_start().split_once(' ')?;
        let (_, rest) = rest.split_once('{')?;
        let (starts, size) = rest.split_once('}')?;
        let starts: Option<Vec<u32>> = starts.split(',').map(|s| s.trim().parse().ok()).collect();
        at.insert(id.parse().ok()?, (starts?, size.trim_start_matches(':').trim().parse().ok()?));
    }
    let mut all = Vec::new();
    for words in list.lines().filter_map(row) {
        // |   0  MIG 1g.5gb        19     7/7        4.75       No     14     0     0   |
        let (name, id) = (*words.get(2)?, words.get(3)?.parse().ok()?);
        let (_, most) = words.get(4)?.split_once('/')?;
        let (starts, size) = at.get(&id)?.clone();
        all.push(Profile { name: name.to_owned(), id, most: most.parse().ok()?, starts, size });
    }
    (!all.is_empty()).then_some(all)
}

/// Whether the tables agree with themselves: what is placed by tables that do not could be placed over another's work.
fn agree(card: &MigCard) -> Result<(), String> {
    let twice = |what: &str| Err(format!("nvidia-smi's tables name {what} twice"));
    let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for profile in card.profiles.iter().flatten() {
        let Profile { name, id, starts, size, .. } = profile;
        if !names.insert(name) || !ids.insert(id) {
            return twice(&format!("the profile {name} or its number {id}"));
        }
        if starts.iter().any(|start| !is_place(*start, *size))
            || starts.iter().collect::<BTreeSet<_>>().len() != starts.len()
        {
            return Err(format!(
                "nvidia-smi's table of places for {name} makes no sense: {starts:?}, {size} slices each"
            ));
        }
    }
    let (mut ids, mut taken) = (BTreeSet::new(), 0);
    for Instance { id, profile, start, size, .. } in &card.instances {
        if !ids.insert(id) {
            return twice(&format!("the instance {id}"));
        }
        if !is_place(*start, *size) || taken & slices(*start, *size) != 0 {
            return Err(format!(
                "nvidia-smi's table of instances makes no sense: {profile} at {start}:{size} is no place, or another's"
            ));
        }
        taken |= slices(*start, *size);
    }
    Ok(())
}

/// Whether slices are some that a card can have; today's have eight.
fn is_place(start: u32, size: u32) -> bool {
    size > 0 && start.checked_add(size).is_some_and(|end| end <= u64::BITS)
}

/// The table of GPU instances (`-lgi`). `None` where a row of it is not understood: what is not seen would be taken for
/// free room.
fn instances(list: &str) -> Option<Vec<Instance>> {
    let one = |words: Vec<&str>| {
        // |   0  MIG 3g.20gb       9        1          4:4     |
        let (start, size) = words.get(5)?.split_once(':')?;
        Some(Instance {
            id: words.get(4)?.parse().ok()?,
            profile: (*words.get(2)?).to_owned(),
            start: start.parse().ok()?,
            size: size.parse().ok()?,
            uuids: Vec::new(),
            compute: 0,
            users: BTreeSet::new(),
        })
    };
    list.lines().filter_map(row).map(one).collect()
}

/// Gives each instance the UUIDs of its compute instances: `-L` has them by index, below the card.
fn uuids(log: &mut Log, list: &str) {
    let mine = list.lines().skip_while(|l| !l.contains(&format!("(UUID: {})", log.uuid))).skip(1);
    let mut by_index: BTreeMap<u32, String> = BTreeMap::new();
    for line in mine.take_while(|l| l.starts_with(' ')) {
        // |  MIG 3g.40gb     Device  0: (UUID: MIG-…)|
        let Some((_, rest)) = line.split_once("Device") else { continue };
        let Some((index, rest)) = rest.split_once(':') else { continue };
        let uuid = rest.split_once("UUID:").and_then(|(_, u)| u.trim().strip_suffix(')'));
        if let (Ok(index), Some(uuid)) = (index.trim().parse(), uuid) {
            by_index.insert(index, uuid.trim().to_owned());
        }
    }
    for (index, instance) in &log.devices {
        for one in log.card.instances.iter_mut().filter(|i| i.id == *instance) {
            one.compute += 1;
            one.uuids.extend(by_index.get(index).cloned());
        }
    }
}

/// Who uses each instance: processes that the driver names, whoever has an instance's node open, and a container that was
/// given one, running something on it or not; and who uses the card beside them.
fn users(log: &mut Log, probe: &dyn Probe, address: PciAddress) {
    let open = probe.device_users();
    let (known, hidden) = match &open {
        Ok(open) => (open.users.as_slice(), open.hidden.clone()),
        Err(e) => (&[][..], Some(e.to_string())),
    };
    let card = &mut log.card;
    card.hidden = hidden;
    for (instance, pid, name) in &log.processes {
        let user = known.iter().find(|u| u.pid == *pid);
        let name = name.rsplit('/').next().unwrap_or(name);
        let who = user.map_or_else(|| format!("{name} (pid {pid})"), holders::named);
        match card.instances.iter_mut().find(|i| Some(i.id) == *instance) {
            Some(one) => _ = one.users.insert(who),
            None => _ = card.users.insert(who),
        }
    }
    let Some(minor) = holders::minor(probe, address) else {
        let untold = "the driver does not tell which device nodes the card has".to_owned();
        card.hidden = Some(card.hidden.take().map_or(untold.clone(), |hidden| format!("{hidden}; {untold}")));
        return;
    };
    let capabilities = format!("/proc/driver/nvidia/capabilities/gpu{minor}/mig");
    for one in &mut card.instances {
        let at = format!("{capabilities}/gi{}", one.id);
        let below = names(probe, &at).into_iter().filter(|n| n.starts_with("ci")).map(|ci| format!("{at}/{ci}/access"));
        let nodes: BTreeSet<PathBuf> =
            std::iter::once(format!("{at}/access")).chain(below).filter_map(|file| node(probe, &file)).collect();
        let has = |u: &&DeviceUser| !u.nodes.is_disjoint(&nodes) || !u.given.is_disjoint(&nodes);
        one.users.extend(known.iter().filter(has).map(holders::named));
    }
    let whole = PathBuf::from(format!("/dev/nvidia{minor}"));
    // Whoever uses an instance has the card's own node open too.
    let counted = |who: &String| card.instances.iter().any(|i| i.users.contains(who));
    let others = known.iter().filter(|u| u.nodes.contains(&whole) && HolderKind::of(u) != HolderKind::Persistence);
    let others: Vec<String> = others.map(holders::named).filter(|who| !counted(who)).collect();
    card.users.extend(others);
}

/// The node that a capability is used by.
fn node(probe: &dyn Probe, file: &str) -> Option<PathBuf> {
    let told = text(probe, file)?;
    let minor: u32 = told.lines().find_map(|l| l.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())?;
    Some(PathBuf::from(format!("/dev/nvidia-caps/nvidia-cap{minor}")))
}

/// How a card comes to have exactly the wanted instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrangement {
    /// The numbers of those that are not wanted, or have to move for the others.
    pub remove: BTreeSet<u32>,
    /// What is made, and where.
    pub make: Vec<(String, u32)>,
    /// All that are there then, by their place.
    pub all: Vec<(String, u32)>,
}

/// Why they cannot be had, and what is possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// Why.
    pub why: String,
    /// What is possible.
    pub help: String,
}

/// Places instances by the card's own table. Those that are there and wanted stay where they are, unless the others have
/// no room then; one that somebody uses never moves.
pub fn arrange(card: &MigCard, profiles: &[Profile], wanted: &[String]) -> Result<Arrangement, Impossible> {
    let of = |name: &str| profiles.iter().find(|p| p.name == name);
    let room = || profiles.iter().map(|p| format!("{} ×{}", p.name, p.most)).collect::<Vec<_>>().join(", ");
    for name in wanted {
        let Some(profile) = of(name) else {
            let why = format!("`{name}` is no profile of this card");
            return Err(Impossible { why, help: format!("it has, each alone: {}", room()) });
        };
        let asked = wanted.iter().filter(|w| *w == name).count();
        if asked > profile.most {
            let why = format!("`{name}` is wanted {asked} times, and the card has room for {}", profile.most);
            return Err(Impossible { why, help: format!("it has room for, each alone: {}", room()) });
        }
    }
    let wants = |name: &str| wanted.iter().filter(|w| *w == name).count();
    let mut kept: Vec<&Instance> = Vec::new();
    let mut there: Vec<&Instance> = card.instances.iter().collect();
    there.sort_by_key(|i| (i.users.is_empty(), i.start));
    for one in there {
        if kept.iter().filter(|k| k.profile == one.profile).count() < wants(&one.profile) {
            kept.push(one);
        }
    }
    let used = |i: &&Instance| !i.users.is_empty();
    let stuck: Vec<&Instance> = card.instances.iter().filter(used).collect();
    for keep in [kept.clone(), kept.into_iter().filter(used).collect()] {
        let mut left: Vec<&Profile> = Vec::new();
        for profile in profiles {
            let has = keep.iter().filter(|k| k.profile == profile.name).count();
            left.extend(std::iter::repeat_n(profile, wants(&profile.name).saturating_sub(has)));
        }
        let fixed = keep.iter().chain(stuck.iter()).fold(0, |all, i| all | slices(i.start, i.size));
        if let Some(make) = placed(left, fixed) {
            let stays = |i: &Instance| keep.iter().any(|k| k.id == i.id);
            let remove = card.instances.iter().filter(|i| !stays(i)).map(|i| i.id).collect();
            let mut all: Vec<(String, u32)> = keep.iter().map(|i| (i.profile.clone(), i.start)).collect();
            all.extend(make.iter().cloned());
            all.sort_by_key(|(_, start)| *start);
            return Ok(Arrangement { remove, make, all });
        }
    }
    let fixed = stuck.iter().fold(0, |all, i| all | slices(i.start, i.size));
    let beside = match stuck.is_empty() {
        true => String::new(),
        false => {
            let who = |i: &&Instance| {
                let users = i.users.iter().cloned().collect::<Vec<_>>().join(", ");
                format!("{} at {}, which is used by {users}", i.profile, i.start)
            };
            format!(" beside {}", stuck.iter().map(who).collect::<Vec<_>>().join("; "))
        }
    };
    let mut without: Vec<&String> = Vec::new();
    for (at, name) in wanted.iter().enumerate().filter(|_| stuck.is_empty()) {
        let rest = wanted.iter().enumerate().filter(|(n, _)| *n != at).filter_map(|(_, w)| of(w)).collect();
        if !without.contains(&name) && placed(rest, fixed).is_some() {
            without.push(name);
        }
    }
    let without = without.iter().map(|w| format!("without one {w} they fit; ")).collect::<String>();
    let help = format!("{without}it has room for, each alone: {}", room());
    Err(Impossible { why: format!("{} do not fit on the card together{beside}", wanted.join(", ")), help })
}

/// Slices as bits.
fn slices(start: u32, size: u32) -> u64 {
    let ones = 1u64.checked_shl(size).map_or(u64::MAX, |bit| bit - 1);
    ones.checked_shl(start).unwrap_or_default()
}

/// Finds a place for each: the largest first, those with the fewest places first among equals.
fn placed(mut wanted: Vec<&Profile>, fixed: u64) -> Option<Vec<(String, u32)>> {
    wanted.sort_by_key(|p| (std::cmp::Reverse(p.size), p.starts.len(), p.id));
    let needed: u32 = wanted.iter().map(|p| p.size).sum();
    let whole = wanted.iter().flat_map(|p| p.starts.iter().map(|s| slices(*s, p.size))).fold(0, |all, s| all | s);
    if needed > (whole & !fixed).count_ones() {
        return None;
    }
    fn next(wanted: &[&Profile], taken: u64, made: &mut Vec<(String, u32)>) -> bool {
        let Some((first, rest)) = wanted.split_first() else { return true };
        // Two of the same are in order of their places: no other order is tried.
        let after = made.last().filter(|(name, _)| *name == first.name).map(|(_, start)| *start);
        for start in first.starts.iter().copied().filter(|s| after.is_none_or(|a| *s > a)) {
            let own = slices(start, first.size);
            if own & taken == 0 {
                made.push((first.name.clone(), start));
                if next(rest, taken | own, made) {
                    return true;
                }
                made.pop();
            }
        }
        false
    }
    let mut made = Vec::new();
    next(&wanted, fixed, &mut made).then_some(made)
}

/// Whether NVIDIA's driver has the card: asking it of another wakes nothing and tells nothing.
pub fn is_driven(probe: &dyn Probe, address: PciAddress) -> bool {
    let link = probe.link(Path::new(&format!("/sys/bus/pci/devices/{address}/driver")));
    let link = link.ok().and_then(Answer::value);
    link.is_some_and(|l| l.file_name().is_some_and(|n| n == "nvidia"))
}

/// Turns the mode on or off, makes and takes instances: what `nvidia-smi` is asked for, word by word.
pub mod words {
    use super::PciAddress;

    /// MIG mode on or off.
    pub fn mode(card: PciAddress, on: bool) -> Vec<String> {
        ["-i".to_owned(), card.to_string(), "-mig".to_owned(), if on { "1" } else { "0" }.to_owned()].into()
    }
    /// Makes instances at their places, each with its compute instance.
    pub fn make(card: PciAddress, all: &[(String, u32)]) -> Vec<String> {
        let all: Vec<String> = all.iter().map(|(profile, start)| format!("{profile}:{start}")).collect();
        ["mig", "-i", &card.to_string(), "-cgi", &all.join(","), "-C"].map(str::to_owned).into()
    }
    /// The compute instance of one that has none.
    pub fn compute(card: PciAddress, instance: u32) -> Vec<String> {
        ["mig", "-i", &card.to_string(), "-gi", &instance.to_string(), "-cci"].map(str::to_owned).into()
    }
    /// Takes the compute instances of one away, then itself.
    pub fn take(card: PciAddress, instance: u32, compute: bool) -> Vec<String> {
        let word = if compute { "-dci" } else { "-dgi" };
        ["mig", "-i", &card.to_string(), word, "-gi", &instance.to_string()].map(str::to_owned).into()
    }
}

/// Why a card could not be asked, as an error of the host's.
pub fn unknown(address: PciAddress, why: &str) -> HostError {
    HostError::Refused(format!("what MIG instances {address} has is not known: {why}"))
}

#[cfg(test)]
mod tests;
