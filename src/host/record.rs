//! Writes a host down to a folder, so that it can be planned and rehearsed elsewhere: everything that was looked at,
//! with stand-ins for what identifies it. Secrets are never looked at by facts; files that hold them are refused here too.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fixture::{Record, RecordedLibvirt, RecordedQuery, RecordedStat};
use super::{
    Answer, DeviceUsers, FileKind, GuestAgent, HostError, Initramfs, Myself, Output, Probe, Program, Stat,
    Virtualisation,
};
use crate::resource::libvirt_domain::{is_marked, without_private_parts};
use crate::resource::snapshots::is_ours;
use crate::types::{DomainName, MacAddress, sha256_hex, without_userinfo};

/// Remembers every answer of the probe below.
pub struct Recorder<'a> {
    below: &'a dyn Probe,
    files: RefCell<BTreeMap<PathBuf, Vec<u8>>>,
    links: RefCell<BTreeMap<PathBuf, PathBuf>>,
    dirs: RefCell<BTreeSet<PathBuf>>,
    record: RefCell<Record>,
}

/// Never written down, whoever asked.
const SECRET: [&str; 5] = ["/etc/shadow", "/etc/gshadow", "/etc/ssh", "/root/.ssh", "/etc/ssl/private"];

/// Where facts read files that may be closed to others: of each, what identifies and what is secret is known, and left
/// out when it is written down.
const READ: [&str; 10] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/boot",
    "/lib",
    "/usr/lib",
    "/etc/netplan",
    "/var/lib/gpuvm/network",
    "/var/lib/gpuvm/seen",
];

impl<'a> Recorder<'a> {
    /// An empty record of a host.
    pub fn new(below: &'a dyn Probe) -> Self {
        Self {
            below,
            files: RefCell::default(),
            links: RefCell::default(),
            dirs: RefCell::default(),
            record: RefCell::default(),
        }
    }

    /// The path without links on the way, each of which is remembered. The last component stays as it is.
    fn real(&self, path: &Path) -> Result<PathBuf, HostError> {
        let mut at = PathBuf::from("/");
        let mut todo: Vec<OsString> = path.iter().skip(1).map(OsString::from).collect::<Vec<_>>();
        todo.reverse();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(&part);
            if todo.is_empty() {
                break;
            }
            if let Answer::Value(target) = self.below.link(&at)? {
                links += 1;
                if links > 40 {
                    return Err(HostError::Refused(format!("`{}` goes through too many links", path.display())));
                }
                self.links.borrow_mut().insert(at.clone(), target.clone());
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                todo.extend(
                    target.iter().filter(|p| *p != "/").map(OsString::from).collect::<Vec<_>>().into_iter().rev(),
                );
            }
        }
        Ok(at)
    }

    /// The real place of a file, its last link followed and remembered too.
    fn followed(&self, path: &Path) -> Result<PathBuf, HostError> {
        let mut at = self.real(path)?;
        for _ in 0..40 {
            let Answer::Value(target) = self.below.link(&at)? else { return Ok(at) };
            self.links.borrow_mut().insert(at.clone(), target.clone());
            at = self.real(&at.parent().unwrap_or(Path::new("/")).join(target))?;
        }
        Err(HostError::Refused(format!("`{}` goes through too many links", path.display())))
    }

    /// Whether everybody may read a file.
    fn is_open(&self, path: &Path) -> Result<bool, HostError> {
        Ok(self.below.stat(path)?.value().is_none_or(|stat| stat.mode.bits() & 0o004 != 0))
    }

    fn denied<T>(&self, path: &Path, answer: &Answer<T>) {
        if answer.is_denied() {
            self.record.borrow_mut().denied.insert(path.to_owned());
        }
    }

    /// The vendor and device ids that were seen, as sysfs writes them without their `0x`.
    fn devices(&self) -> BTreeSet<(String, String)> {
        let files = self.files.borrow();
        let id = |path: &Path| {
            let text = String::from_utf8_lossy(files.get(path)?).trim().trim_start_matches("0x").to_owned();
            Some(text).filter(|t| !t.is_empty())
        };
        let vendors = files.keys().filter(|p| p.ends_with("vendor"));
        vendors.filter_map(|path| Some((id(path)?, id(&path.with_file_name("device"))?))).collect()
    }

    /// Writes the record to a new folder.
    pub fn write(&self, dir: &Path) -> Result<(), HostError> {
        let root = dir.join("root");
        let at = |path: &Path| root.join(nameless(path.strip_prefix("/").unwrap_or(path)));
        let make = |path: &Path| fs::create_dir_all(path).map_err(HostError::file(path));
        make(&root)?;
        for path in self.dirs.borrow().iter() {
            make(&at(path))?;
        }
        let devices = self.devices();
        for (path, bytes) in self.files.borrow().iter() {
            let place = at(path);
            make(place.parent().unwrap_or(&root))?;
            let text = match path.file_name().is_some_and(|n| n == "pci.ids") {
                true => names_of(&String::from_utf8_lossy(bytes), &devices).into_bytes(),
                false => redacted(path, bytes),
            };
            fs::write(&place, text).map_err(HostError::file(&place))?;
        }
        for (path, target) in self.links.borrow().iter() {
            let place = at(path);
            make(place.parent().unwrap_or(&root))?;
            std::os::unix::fs::symlink(nameless(target), &place).map_err(HostError::file(&place))?;
        }
        let mut record = self.record.borrow().clone();
        record.stats = record.stats.into_iter().map(|(path, stat)| (nameless(&path), stat)).collect();
        record.denied = record.denied.iter().map(|path| nameless(path)).collect();
        for query in &mut record.queries {
            if let Some(output) = &mut query.output {
                output.stdout = stand_ins(&output.stdout);
                if query.program == Program::NvidiaSmi {
                    output.stdout = without_serial(&output.stdout);
                }
                output.stderr = stand_ins(&output.stderr);
            }
        }
        record.save(&dir.join(Record::NAME))
    }
}

impl Probe for Recorder<'_> {
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
        let answer = self.below.read(path)?;
        self.denied(path, &answer);
        if let Answer::Value(bytes) = &answer
            && !SECRET.iter().any(|s| path.starts_with(s))
        {
            let real = self.followed(path)?;
            // What only its owner may read (a file that a manifest names, say) is there, and no more is told of it.
            let told = READ.iter().any(|folder| real.starts_with(folder)) || self.is_open(&real)?;
            self.files.borrow_mut().insert(real, if told { bytes.clone() } else { Vec::new() });
        }
        Ok(answer)
    }
    // On a recorded host the same stands for this program everywhere, and what else lies at its place is another one.
    fn myself(&self) -> Result<Myself, HostError> {
        self.below.myself()
    }
    fn digest(&self, path: &Path) -> Result<Answer<String>, HostError> {
        let answer = self.below.digest(path)?;
        self.denied(path, &answer);
        if let Answer::Value(digest) = &answer {
            let mine = *digest == self.below.myself()?.sha256;
            let told = if mine { Myself::STAND_IN } else { "another program\n" };
            self.files.borrow_mut().insert(self.followed(path)?, told.into());
        }
        Ok(answer)
    }
    // What is on a disk is a guest's: it is not written down.
    fn head(&self, path: &Path, most: usize) -> Result<Answer<Vec<u8>>, HostError> {
        self.below.head(path, most)
    }
    fn blank(&self, disk: &Path) -> Result<Answer<bool>, HostError> {
        self.below.blank(disk)
    }
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError> {
        let answer = self.below.stat(path)?;
        self.denied(path, &answer);
        if let Answer::Value(stat) = &answer {
            let real = self.real(path)?;
            match stat.kind {
                FileKind::Directory => {
                    self.dirs.borrow_mut().insert(real.clone());
                }
                FileKind::Link => {
                    if let Answer::Value(target) = self.below.link(&real)? {
                        self.links.borrow_mut().insert(real.clone(), target);
                    }
                }
                FileKind::File | FileKind::Other => {
                    self.files.borrow_mut().entry(real.clone()).or_default();
                }
            }
            let plain = if stat.kind == FileKind::Directory { 0o755 } else { 0o644 };
            if stat.kind != FileKind::Link && (stat.mode.bits(), stat.uid, stat.gid) != (plain, 0, 0) {
                let known = RecordedStat { mode: stat.mode, uid: stat.uid, gid: stat.gid };
                self.record.borrow_mut().stats.insert(real, known);
            }
        }
        Ok(answer)
    }
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
        let answer = self.below.list(dir)?;
        self.denied(dir, &answer);
        if let Answer::Value(names) = &answer {
            let real = self.followed(dir)?;
            for name in names {
                // What a name is has to be known for the name to be in the record.
                let path = real.join(name);
                match self.below.link(&path)? {
                    Answer::Value(target) => {
                        self.links.borrow_mut().insert(path, target);
                    }
                    _ => {
                        self.stat(&path)?;
                    }
                }
            }
            self.dirs.borrow_mut().insert(real);
        }
        Ok(answer)
    }
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError> {
        let answer = self.below.link(path)?;
        self.denied(path, &answer);
        if let Answer::Value(target) = &answer {
            let real = self.real(path)?;
            self.links.borrow_mut().insert(real, target.clone());
        }
        Ok(answer)
    }
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<Output>, HostError> {
        let answer = self.below.query(program, args)?;
        let queries = &mut self.record.borrow_mut().queries;
        // Asked again for another manifest, it answers the same.
        if !queries.iter().any(|q| q.program == program && q.args == args) {
            let args = args.iter().map(|a| (*a).to_owned()).collect();
            queries.push(RecordedQuery { program, args, output: answer.clone().value() });
        }
        Ok(answer)
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        let answer = self.below.virtualisation()?;
        self.record.borrow_mut().libvirt = match &answer {
            Answer::Absent => RecordedLibvirt::Absent,
            Answer::Denied => RecordedLibvirt::Denied,
            Answer::Value(known) => RecordedLibvirt::Known(public(known)),
        };
        Ok(answer)
    }
    fn initramfs(&self, path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
        let answer = self.below.initramfs(path)?;
        self.denied(path, &answer);
        if let Answer::Value(known) = &answer {
            // The file is there, and what was looked at of it is in the record.
            self.stat(path)?;
            self.record.borrow_mut().initramfs.insert(path.to_owned(), (**known).clone());
        }
        Ok(answer)
    }
    /// What a guest says of itself is its owner's: it is passed on, and not written down.
    fn guest_agent(&self, vm: &DomainName) -> Result<Answer<Arc<GuestAgent>>, HostError> {
        self.below.guest_agent(vm)
    }
    fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError> {
        let answer = self.below.device_users()?;
        self.record.borrow_mut().device_users = Some((*answer).clone());
        Ok(answer)
    }
}

/// What libvirt knows, as it is written down. The addresses of gpuvm's own VMs stay: they are made up, and compared.
fn public(known: &Virtualisation) -> Virtualisation {
    let mut known = known.clone();
    let definition = |xml: &str| {
        let xml = without_private_parts(xml);
        if is_marked(&xml) { xml } else { stand_ins(&xml) }
    };
    for domain in &mut known.domains {
        domain.inactive_xml = definition(&domain.inactive_xml);
        domain.live_xml = domain.live_xml.as_deref().map(definition);
        for snapshot in &mut domain.snapshots {
            snapshot.xml = snapshot_as_written(&snapshot.xml, definition);
        }
    }
    let others = known.pools.iter_mut().map(|p| &mut p.xml).chain(known.networks.iter_mut().map(|n| &mut n.xml));
    for xml in others.chain([&mut known.capabilities]) {
        *xml = stand_ins(xml);
    }
    known
}

/// A snapshot with the definitions in it as they are written down elsewhere; what a person wrote of it stays out.
fn snapshot_as_written(xml: &str, definition: impl Fn(&str) -> String) -> String {
    let Ok(doc) = roxmltree::Document::parse(xml) else { return String::new() };
    let mut parts = Vec::new();
    for part in doc.root_element().children().filter(|c| c.is_element()) {
        let Some(text) = xml.get(part.range()) else { continue };
        let name = part.tag_name().name();
        parts.push(match name {
            "domain" | "inactiveDomain" => {
                let inside = text.strip_prefix(&format!("<{name}")).and_then(|t| t.strip_suffix(&format!("</{name}>")));
                let whole = definition(&format!("<domain{}</domain>", inside.unwrap_or("/>")));
                let inside = whole.strip_prefix("<domain").and_then(|t| t.strip_suffix("</domain>"));
                format!("<{name}{}</{name}>", inside.unwrap_or(">"))
            }
            // gpuvm's own word is compared.
            "description" if !is_ours(part.text().unwrap_or_default()) => continue,
            "cookie" => continue,
            _ => text.to_owned(),
        });
    }
    format!("<domainsnapshot>\n  {}\n</domainsnapshot>\n", parts.join("\n  "))
}

/// Of pci.ids, a megabyte and a half, the names of the devices that the host has.
fn names_of(pci_ids: &str, devices: &BTreeSet<(String, String)>) -> String {
    let mut vendor = None;
    let wanted = |line: &&str| {
        let id = line.trim_start_matches('\t').get(..4).unwrap_or_default();
        match line.len() - line.trim_start_matches('\t').len() {
            // Between the devices of a vendor too.
            _ if line.starts_with('#') => false,
            0 => {
                vendor = devices.iter().map(|(v, _)| v).find(|v| *v == id);
                vendor.is_some()
            }
            1 => vendor.is_some_and(|v| devices.contains(&(v.clone(), id.to_owned()))),
            _ => false,
        }
    };
    pci_ids.lines().filter(wanted).flat_map(|l| [l, "\n"]).collect()
}

/// Of dpkg's status what is read of it.
fn fields_of_packages(text: &str) -> String {
    let whole = ["Package: ", "Status: ", "Version: ", "Architecture: "];
    let names = ["Depends: ", "Pre-Depends: ", "Provides: "];
    let one = |line: &str| {
        if line.is_empty() || whole.iter().any(|w| line.starts_with(w)) {
            return Some(format!("{line}\n"));
        }
        let field = names.iter().find(|n| line.starts_with(**n))?;
        let name = |of: &str| of.split_whitespace().next().unwrap_or_default().to_owned();
        let one_of = |list: &str| list.split('|').map(name).collect::<Vec<_>>().join(" | ");
        let lists: Vec<String> = line.strip_prefix(field)?.split(',').map(one_of).collect();
        Some(format!("{field}{}\n", lists.join(", ")))
    };
    text.lines().filter_map(one).collect()
}

/// A file as it is written down.
fn redacted(path: &Path, bytes: &[u8]) -> Vec<u8> {
    if path == Path::new("/etc/machine-id") {
        return format!("{}\n", &sha256_hex(bytes)[..32]).into_bytes();
    }
    // dpkg's status is large, and few fields of it are read; of what a package needs, the names.
    if path == Path::new("/var/lib/dpkg/status") {
        return fields_of_packages(&String::from_utf8_lossy(bytes)).into_bytes();
    }
    // Serial numbers and UUIDs of cards, in the files that facts read them from.
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if path.starts_with("/sys") && matches!(name, "serial_number" | "unique_id" | "serial") {
        return format!("{}\n", &sha256_hex(bytes)[..16]).into_bytes();
    }
    if path.starts_with("/proc/driver/nvidia/gpus") {
        let text = String::from_utf8_lossy(bytes);
        let line = |l: &str| match l.split_once("GPU-") {
            Some((before, uuid)) if !uuid.contains('?') => {
                let d = sha256_hex(uuid.trim().as_bytes());
                format!("{before}GPU-{}-{}-{}-{}-{}\n", &d[..8], &d[8..12], &d[12..16], &d[16..20], &d[20..32])
            }
            _ => format!("{l}\n"),
        };
        return text.lines().map(line).collect::<String>().into_bytes();
    }
    // Of the next kernel, what `check --next-boot` reads: whether it has drivers of GPUs and vfio, and the IOMMU's default.
    if path.starts_with("/lib/modules") || path.starts_with("/usr/lib/modules") {
        let wanted = ["vfio", "/gpu/", "dkms", "nvidia"];
        let text = String::from_utf8_lossy(bytes);
        let lines = text.lines().filter(|l| name != "modules.dep" || wanted.iter().any(|w| l.contains(w)));
        return lines
            .flat_map(|l| [l.split(':').next().unwrap_or_default(), if name == "modules.dep" { ":\n" } else { "\n" }])
            .collect::<String>()
            .into_bytes();
    }
    if path.starts_with("/boot") && name.starts_with("config-") {
        let text = String::from_utf8_lossy(bytes);
        return text.lines().filter(|l| l.contains("IOMMU")).flat_map(|l| [l, "\n"]).collect::<String>().into_bytes();
    }
    // Passwords of the boot menu.
    if path.starts_with("/boot/grub") {
        let text = String::from_utf8_lossy(bytes);
        return text
            .lines()
            .filter(|l| !l.contains("password"))
            .flat_map(|l| [l, "\n"])
            .collect::<String>()
            .into_bytes();
    }
    // Of udev's database, one entry of block devices is read; beside it are serial numbers, names and labels of disks.
    if path.starts_with("/run/udev/data") {
        let text = String::from_utf8_lossy(bytes);
        return text
            .lines()
            .filter(|l| l.starts_with("E:ID_FS_TYPE="))
            .flat_map(|l| [l, "\n"])
            .collect::<String>()
            .into_bytes();
    }
    // Of configuration space, the header: a serial number is behind it.
    if path.starts_with("/sys") && name == "config" {
        return bytes.get(..64).unwrap_or(bytes).to_vec();
    }
    if path == Path::new(crate::gpu::SEEN) {
        let Ok(mut seen) = serde_json::from_slice::<serde_json::Value>(bytes) else { return Vec::new() };
        for card in seen.get_mut("cards").and_then(|c| c.as_array_mut()).into_iter().flatten() {
            if let Some(serial) = card.get_mut("serial").filter(|s| s.is_string()) {
                // As the file that the serial number is read from becomes.
                let told = format!("{}\n", serial.as_str().unwrap_or_default());
                *serial = sha256_hex(told.as_bytes())[..16].into();
            }
        }
        return seen.to_string().into_bytes();
    }
    // The users' real names are nobody's business.
    if path == Path::new("/etc/passwd") {
        let text = String::from_utf8_lossy(bytes);
        let line = |l: &str| {
            let mut f: Vec<&str> = l.split(':').collect();
            if let Some(name) = f.get_mut(4) {
                *name = "";
            }
            f.join(":") + "\n"
        };
        return text.lines().map(line).collect::<String>().into_bytes();
    }
    // Of fstab, the mount points are read; its options may hold passwords of network file systems, its sources servers.
    if path == Path::new("/etc/fstab") {
        let text = String::from_utf8_lossy(bytes);
        let entries = text.lines().filter(|l| !l.trim_start().starts_with('#'));
        let points = entries.filter_map(|l| l.split_whitespace().nth(1));
        return points.map(|p| format!("none {p} auto defaults 0 0\n")).collect::<String>().into_bytes();
    }
    // Of mounts, what lies where is read; the options of network file systems name servers and users.
    if path.ends_with("mountinfo") {
        let text = String::from_utf8_lossy(bytes);
        return text.lines().map(|l| mount(l) + "\n").collect::<String>().into_bytes();
    }
    // Passwords of Wi-Fi, tunnels and 802.1X are in netplan's files.
    if path.parent().is_some_and(|folder| folder.ends_with("netplan")) {
        return stand_ins(&crate::net::netplan::redacted(&String::from_utf8_lossy(bytes))).into_bytes();
    }
    // Of a lease, two fields are read; what follows the association in `CLIENTID` identifies the machine.
    if path.starts_with("/run/systemd/netif/leases") {
        let text = String::from_utf8_lossy(bytes);
        let line = |l: &str| match l.split_once('=')? {
            ("ADDRESS", _) => Some(format!("{l}\n")),
            ("CLIENTID", id) => Some(format!("CLIENTID={}\n", id.get(..10)?)),
            _ => None,
        };
        return stand_ins(&text.lines().filter_map(line).collect::<String>()).into_bytes();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => stand_ins(text).into_bytes(),
        Err(_) => bytes.to_vec(),
    }
}

/// A line of mountinfo(5): the file system behind the dash, its source and options follow.
fn mount(line: &str) -> String {
    let Some((before, after)) = line.split_once(" - ") else { return String::new() };
    let mut words = after.split(' ');
    let (kind, source) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // `server:/export`, `[2001:db8::1]:/export`, `//server/share`, `user@server:`.
    let remote = source.starts_with("//") || source.contains(':') && !source.starts_with("/dev/");
    if remote {
        return format!("{before} - {kind} host-{}.example:/ rw", &sha256_hex(source.as_bytes())[..8]);
    }
    line.to_owned()
}

/// Stable stand-ins: MAC addresses keep their form (02 marks a local one), public addresses become documentation ones
/// (RFC 5737), hosts of URLs become `host-….example`.
fn stand_ins(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || ":.-_/".contains(c);
    let text = without_userinfo(text);
    let mut out = String::with_capacity(text.len());
    let mut rest: &str = &text;
    while !rest.is_empty() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if word == 0 {
            let one = rest.chars().next().map_or(1, char::len_utf8);
            out.push_str(&rest[..one]);
            rest = &rest[one..];
        } else {
            out.push_str(&stand_in(&rest[..word]));
            rest = &rest[word..];
        }
    }
    out
}

/// The serial number of a card in NVIDIA's log, as the file in sysfs becomes that has one.
fn without_serial(log: &str) -> String {
    let Some((head, rest)) = log.split_once("<serial>") else { return log.to_owned() };
    let Some((serial, tail)) = rest.split_once("</serial>") else { return log.to_owned() };
    let told = sha256_hex(format!("{serial}\n").as_bytes());
    format!("{head}<serial>{}</serial>{}", told.get(..16).unwrap_or_default(), without_serial(tail))
}

fn stand_in(word: &str) -> String {
    if let Some((scheme, after)) = word.split_once("://") {
        let (_, path) = after.split_once('/').map_or((after, String::new()), |(h, p)| (h, format!("/{p}")));
        let host = after.split('/').next().unwrap_or_default();
        return format!("{scheme}://host-{}.example{path}", &sha256_hex(host.as_bytes())[..8]);
    }
    if let Ok(mac) = word.parse::<MacAddress>()
        && mac.0 != [0; 6]
        && mac.0 != [0xff; 6]
    {
        return local(mac).to_string();
    }
    if let Some(name) = card_by_mac(word) {
        return name;
    }
    let (address, prefix) = word.split_once('/').map_or((word, String::new()), |(a, p)| (a, format!("/{p}")));
    // The same one with a prefix length and without.
    let digest = sha256_hex(address.as_bytes());
    match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(a))
            if !(a.is_private()
                || a.is_loopback()
                || a.is_link_local()
                || a.is_unspecified()
                || a.is_broadcast()
                || a.octets()[0] >= 224
                || a.octets()[0] < 4) =>
        {
            format!("192.0.2.{}{prefix}", u8::from_str_radix(&digest[..2], 16).unwrap_or(1))
        }
        Ok(std::net::IpAddr::V6(a)) if a.segments()[0] & 0xe000 == 0x2000 => {
            format!("2001:db8::{}{prefix}", &digest[..4])
        }
        Ok(std::net::IpAddr::V6(a)) if a.octets()[11..13] == [0xff, 0xfe] => format!("{}{prefix}", by_stand_in(a)),
        _ => word.to_owned(),
    }
}

/// The stand-in of a card's address: 02 marks a local one.
fn local(mac: MacAddress) -> MacAddress {
    let digest = sha256_hex(mac.to_string().as_bytes());
    let byte = |i: usize| u8::from_str_radix(&digest[i * 2..i * 2 + 2], 16).unwrap_or_default();
    MacAddress([2, byte(0), byte(1), byte(2), byte(3), byte(4)])
}

/// A card's name that is made of its address (systemd.net-naming-scheme(7): `enx525400123456`), with the stand-in's.
fn card_by_mac(word: &str) -> Option<String> {
    let kind = ["enx", "ibx", "slx", "wlx", "wwx"].into_iter().find(|k| word.starts_with(k))?;
    let hex = word.get(3..).filter(|h| h.len() == 12 && h.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let mac: Vec<&str> = (0..6).filter_map(|i| hex.get(i * 2..i * 2 + 2)).collect();
    let stand_in = local(mac.join(":").parse().ok()?).to_string();
    Some(format!("{kind}{}", stand_in.replace(':', "")))
}

/// An address of a link that is made of the card's (modified EUI-64, RFC 4291 appendix A), with the stand-in's.
fn by_stand_in(address: std::net::Ipv6Addr) -> std::net::Ipv6Addr {
    let mut bytes = address.octets();
    let real = MacAddress([bytes[8] ^ 2, bytes[9], bytes[10], bytes[13], bytes[14], bytes[15]]);
    let [a, b, c, d, e, f] = local(real).0;
    bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    bytes.into()
}

/// A path, with such names in it.
fn nameless(path: &Path) -> PathBuf {
    let part = |part: std::path::Component<'_>| match part {
        std::path::Component::Normal(name) => {
            let by_mac = name.to_str().and_then(card_by_mac);
            by_mac.map_or_else(|| name.to_owned(), OsString::from)
        }
        other => other.as_os_str().to_owned(),
    };
    path.components().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Domain, VmSnapshot};

    #[test]
    fn of_a_package_the_names_of_what_it_needs_are_written_down() {
        let status = "Package: b\nStatus: install ok installed\nMaintainer: Alice <alice@corp.test>\nArchitecture: amd64\n\
                      Provides: mta (= 1), x\nVersion: 2\nPre-Depends: init (>= 1.54~) | other\nDepends: a (>= 1) | b:any,\
                      \u{20}libc6\nConffiles:\n /etc/b 0123\nDescription: Depends: not\n Depends: not\n\nPackage: c\n";
        let kept = "Package: b\nStatus: install ok installed\nArchitecture: amd64\nProvides: mta, x\nVersion: 2\n\
                    Pre-Depends: init | other\nDepends: a | b:any, libc6\n\nPackage: c\n";
        assert_eq!(redacted(Path::new("/var/lib/dpkg/status"), status.as_bytes()), kept.as_bytes());
    }

    #[test]
    fn what_identifies_becomes_a_stable_stand_in() {
        let text =
            "mac 52:54:00:12:34:56 via 203.0.114.7/24 at 2a01:4f8::1 from http://mirror.corp.test/debian x 10.0.0.1";
        let out = stand_ins(text);
        for secret in ["52:54:00:12:34:56", "203.0.114.7", "2a01:4f8", "mirror.corp.test"] {
            assert!(!out.contains(secret), "{out}");
        }
        assert!(out.contains("10.0.0.1") && out.contains("/debian") && out.contains("192.0.2."), "{out}");
        assert_eq!(out, stand_ins(text));
        assert_eq!(stand_ins("ordinary text: 0000:01:00.0\n"), "ordinary text: 0000:01:00.0\n");
    }

    #[test]
    fn a_cards_address_is_not_in_its_names_and_its_links_addresses_either() {
        let mac = stand_ins("52:54:00:4c:41:42");
        assert_eq!(mac, "02:27:cb:41:35:17");
        let text = r#""altnames":["enx5254004c4142"],"local":"fe80::5054:ff:fe4c:4142/64""#;
        assert_eq!(stand_ins(text), r#""altnames":["enx0227cb413517"],"local":"fe80::27:cbff:fe41:3517/64""#);
        assert_eq!(stand_ins("fe80::2 enxyz enp0s2 fe80::1:2"), "fe80::2 enxyz enp0s2 fe80::1:2");
        assert_eq!(
            nameless(Path::new("/sys/class/net/enx5254004c4142/address")),
            Path::new("/sys/class/net/enx0227cb413517/address")
        );
        assert_eq!(nameless(Path::new("../../devices/x")), Path::new("../../devices/x"));
    }

    #[test]
    fn disks_cannot_be_told_by_udevs_database() {
        let data =
            b"S:disk/by-id/nvme-canary\nE:ID_SERIAL=canary\nE:ID_FS_TYPE=ext4\nE:ID_FS_UUID=canary\nE:ID_WWN=canary\n";
        assert_eq!(redacted(Path::new("/run/udev/data/b259:0"), data), b"E:ID_FS_TYPE=ext4\n");
    }

    #[test]
    fn passwords_of_networks_and_identities_of_leases_are_not_written_down() {
        let netplan = b"network:\n  wifis:\n    wl0: {access-points: {a: {password: canary}}}\n";
        let text = String::from_utf8(redacted(Path::new("/etc/netplan/50-wifi.yaml"), netplan)).unwrap();
        assert!(!text.contains("canary") && text.contains("wl0"), "{text}");
        let lease = b"ADDRESS=10.0.2.15\nCLIENTID=ff0a1b2c3d0002canary\nHOSTNAME=canary\n";
        let text = String::from_utf8(redacted(Path::new("/run/systemd/netif/leases/2"), lease)).unwrap();
        assert_eq!(text, "ADDRESS=10.0.2.15\nCLIENTID=ff0a1b2c3d\n");
    }

    #[test]
    fn a_snapshot_is_written_down_without_what_others_wrote_into_it() {
        let one = |description: &str, mark: &str| {
            let of = |name: &str| {
                format!(
                    "<{name} type='kvm'>\n    <name>vm</name>\n    <metadata>{mark}<x xmlns='urn:x'>canary</x></metadata>\n    \
                     <title>canary</title>\n    <devices>\n      <disk type='file' device='disk'>\n        \
                     <source file='/srv/vm-0.qcow2'/>\n        <target dev='vda'/>\n      </disk>\n      \
                     <graphics type='vnc' passwd='canary'/>\n    </devices>\n  </{name}>"
                )
            };
            let xml = format!(
                "<domainsnapshot>\n  <name>s</name>\n  <description>{description}</description>\n  \
                 <creationTime>7</creationTime>\n  {}\n  {}\n  <cookie>canary</cookie>\n</domainsnapshot>\n",
                of("domain"),
                of("inactiveDomain")
            );
            let snapshots = vec![VmSnapshot { name: "s".to_owned(), current: true, xml }];
            let domain = Domain { name: "vm".to_owned(), snapshots, ..Domain::default() };
            public(&Virtualisation { domains: vec![domain], ..Virtualisation::default() }).domains.remove(0)
        };
        let ours = one("made by gpuvm (1): nvram", "<gpuvm:vm xmlns:gpuvm='urn:gpuvm:vm:1'/>");
        let text = &ours.snapshots[0].xml;
        assert!(!text.contains("canary") && text.contains("made by gpuvm (1): nvram"), "{text}");
        let read = crate::resource::snapshots::snapshots(&ours).unwrap().remove(0);
        assert!(read.ours && read.created == 7);
        assert_eq!(read.files().collect::<Vec<_>>(), [Path::new("/srv/vm-0.qcow2")]);
        assert_eq!(ours.snapshots[0].definitions().len(), 2);
        let theirs = one("canary", "");
        assert!(!theirs.snapshots[0].xml.contains("canary"), "{}", theirs.snapshots[0].xml);
    }

    #[test]
    fn of_the_names_of_devices_only_those_that_are_there_are_written_down() {
        let ids = "# a list\n10de  NVIDIA\n# Ada, retail\n\t2684  AD102\n\t\t10de 16f4  sub\n\t2685  other\n8086  Intel\n\t2684  theirs\nC 03  Display\n";
        let seen = BTreeSet::from([("10de".to_owned(), "2684".to_owned())]);
        assert_eq!(names_of(ids, &seen), "10de  NVIDIA\n\t2684  AD102\n");
    }

    #[test]
    fn of_a_program_only_whether_it_is_this_one_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("root/usr/local/bin")).unwrap();
        fs::write(from.join("root/usr/local/bin/gpuvm"), Myself::STAND_IN).unwrap();
        fs::write(from.join("root/usr/local/bin/other"), "canary").unwrap();
        Record::default().save(&from.join(Record::NAME)).unwrap();
        let host = crate::host::fixture::Fixture::open(&from).unwrap();
        let recorder = Recorder::new(&host);
        for name in ["gpuvm", "other"] {
            recorder.digest(&Path::new("/usr/local/bin").join(name)).unwrap();
        }
        recorder.write(&to).unwrap();
        let read = |name: &str| fs::read_to_string(to.join("root/usr/local/bin").join(name)).unwrap();
        assert_eq!((read("gpuvm").as_str(), read("other").as_str()), (Myself::STAND_IN, "another program\n"));
    }

    #[test]
    fn a_link_that_was_only_looked_at_is_in_the_record() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("root/usr/sbin")).unwrap();
        std::os::unix::fs::symlink("../share/tool", from.join("root/usr/sbin/tool")).unwrap();
        Record::default().save(&from.join(Record::NAME)).unwrap();
        let host = crate::host::fixture::Fixture::open(&from).unwrap();
        let recorder = Recorder::new(&host);
        let seen = recorder.stat(Path::new("/usr/sbin/tool")).unwrap().value().unwrap();
        recorder.write(&to).unwrap();
        let again = crate::host::fixture::Fixture::open(&to).unwrap();
        assert_eq!(again.stat(Path::new("/usr/sbin/tool")).unwrap(), Answer::Value(seen));
    }

    #[test]
    fn of_fstab_only_the_mount_points_are_written_down() {
        let fstab =
            b"# canary\nUUID=1 / ext4 defaults 0 1\n//canary/share /srv/vms cifs user=canary,password=canary 0 0\n";
        let text = String::from_utf8(redacted(Path::new("/etc/fstab"), fstab)).unwrap();
        assert_eq!(text, "none / auto defaults 0 0\nnone /srv/vms auto defaults 0 0\n");
    }

    #[test]
    fn of_network_mounts_neither_servers_nor_users_are_written_down() {
        let mounts = b"26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            40 26 0:50 / /srv/vms rw shared:9 - nfs4 canary.lan:/export rw,addr=192.0.2.7,clientaddr=canary\n\
            41 26 0:51 / /srv/iso rw - cifs //canary/iso rw,username=canary\n\
            42 26 0:52 / /srv/z rw - zfs tank/canary rw\n";
        let text = String::from_utf8(redacted(Path::new("/proc/self/mountinfo"), mounts)).unwrap();
        assert!(text.contains("26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"), "{text}");
        assert!(text.contains("40 26 0:50 / /srv/vms rw shared:9 - nfs4 host-"), "{text}");
        assert!(text.contains("tank/canary") && text.matches("canary").count() == 1, "{text}");
    }

    #[test]
    fn cards_cannot_be_told_by_their_numbers() {
        let at = |path: &str, text: &str| String::from_utf8(redacted(Path::new(path), text.as_bytes())).unwrap();
        let serial = at("/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/serial_number", "48-b0-2d-00-00-00-00-02\n");
        assert!(!serial.contains("48-b0") && serial.len() == 17, "{serial}");
        let info = at(
            "/proc/driver/nvidia/gpus/0000:01:00.0/information",
            "Model: \t\t NVIDIA GeForce RTX 3090\nGPU UUID: \t GPU-eaf23aa1-4d3d-596c-da66-b86b0e5db584\nDevice Minor: \t 0\n",
        );
        assert!(
            !info.contains("eaf23aa1") && info.contains("GPU UUID: \t GPU-") && info.contains("Minor: \t 0"),
            "{info}"
        );
        let seen = at(crate::gpu::SEEN, "{\"format\":1,\"cards\":[{\"serial\":\"48-b0-2d-00-00-00-00-02\"}]}");
        assert!(seen.contains(serial.trim()) && !seen.contains("48-b0"), "{seen}");
        assert_eq!(redacted(Path::new("/sys/devices/x/config"), &[7; 4096]).len(), 64);
    }

    #[test]
    fn a_card_has_one_stand_in_for_its_serial_number_whoever_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let card = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
        fs::create_dir_all(from.join("root").join(card)).unwrap();
        fs::write(from.join("root").join(card).join("serial_number"), "1422221078123\n").unwrap();
        let log = "<gpu id=\"00000000:01:00.0\">\n<serial>1422221078123</serial>\n<vbios_version>92.00</vbios_version>\n</gpu>\n\
                   <gpu id=\"00000000:02:00.0\">\n<serial>1422221078456</serial>\n</gpu>\n";
        let args = ["-q", "-x"];
        let output = Output { status: 0, stdout: log.to_owned(), stderr: String::new() };
        let query =
            RecordedQuery { program: Program::NvidiaSmi, args: args.map(str::to_owned).into(), output: Some(output) };
        Record { queries: vec![query], ..Record::default() }.save(&from.join(Record::NAME)).unwrap();
        let host = crate::host::fixture::Fixture::open(&from).unwrap();
        let recorder = Recorder::new(&host);
        let file = Path::new("/").join(card).join("serial_number");
        recorder.text(&file).unwrap();
        recorder.query(Program::NvidiaSmi, &args).unwrap();
        recorder.write(&to).unwrap();
        let record = fs::read_to_string(to.join(Record::NAME)).unwrap();
        assert!(!record.contains("1422221078") && record.contains("92.00"), "{record}");
        let again = crate::host::fixture::Fixture::open(&to).unwrap();
        let serial = again.text(&file).unwrap().value().unwrap();
        assert!(record.contains(&format!("<serial>{}</serial>", serial.trim())), "{serial}: {record}");
    }

    #[test]
    fn of_what_boots_next_neither_passwords_nor_megabytes_are_written_down() {
        let at = |path: &str, text: &str| String::from_utf8(redacted(Path::new(path), text.as_bytes())).unwrap();
        let cfg = at("/boot/grub/grub.cfg", "set superusers=\"a\"\npassword_pbkdf2 a grub.canary\nmenuentry 'x' {\n");
        assert!(!cfg.contains("canary") && cfg.contains("menuentry"), "{cfg}");
        let list = "kernel/fs/ext4.ko: a\nkernel/drivers/vfio/vfio.ko: kernel/b.ko\nupdates/dkms/nvidia.ko.zst:\n";
        let list = at("/lib/modules/6.12.57/modules.dep", list);
        assert_eq!(list, "kernel/drivers/vfio/vfio.ko:\nupdates/dkms/nvidia.ko.zst:\n");
        assert_eq!(at("/boot/config-6.1", "CONFIG_A=y\nCONFIG_INTEL_IOMMU=y\n"), "CONFIG_INTEL_IOMMU=y\n");
    }

    #[test]
    fn the_machine_id_and_real_names_are_not_written_down() {
        let id = b"0123456789abcdef0123456789abcdef\n";
        assert!(!String::from_utf8(redacted(Path::new("/etc/machine-id"), id)).unwrap().contains("0123456789abcdef"));
        let passwd = redacted(Path::new("/etc/passwd"), b"alice:x:1000:1000:Alice Example,,,:/home/alice:/bin/bash\n");
        assert_eq!(passwd, b"alice:x:1000:1000::/home/alice:/bin/bash\n");
    }
}
