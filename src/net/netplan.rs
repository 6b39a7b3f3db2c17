//! netplan's files: which entries configure a link, and how what a link has moves to a bridge over it. Pure functions
//! from texts to texts; every byte that is not named here stays as it is.
//!
//! netplan joins lists over files, so that an address cannot be taken from a link by another file: the entry is cut
//! out of the file that holds it. And a file may name only what it or an earlier one defines (netplan's reader ends each
//! file with "interface … is not defined"), so that an entry that others name stays where it is, without its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::yaml::{self, Document, Kind, Node, Pair};
use crate::types::{InterfaceName, MacAddress, Splice, splice};

/// A link, as netplan's `match` sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkId<'a> {
    /// Its name now.
    pub name: &'a str,
    /// Its permanent address.
    pub mac: Option<MacAddress>,
    /// Its driver.
    pub driver: Option<String>,
    /// Whether it is a card; a `match` looks at these only.
    pub physical: bool,
}

/// Why a link's configuration cannot be moved, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// Why.
    pub why: String,
    /// The next step for the person.
    pub help: String,
}

fn refused<T>(why: impl Into<String>, help: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { why: why.into(), help: help.into() })
}

/// All of netplan's files, in merge order.
#[derive(Debug, Clone)]
pub struct Config {
    files: Vec<File>,
}

#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    text: String,
    document: Document,
}

/// An entry of a section: `ethernets`, `enp5s0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryName {
    /// The section.
    pub section: String,
    /// The key in it, which is the link's name where no `match` says otherwise.
    pub id: String,
}

impl std::fmt::Display for EntryName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.section, self.id)
    }
}

/// Sections of devices that netplan makes, whose id is the link's name.
const MADE: [&str; 2] = ["bonds", "vlans"];

/// What a link has by being on a network: it moves to the bridge.
const MOVES: [&str; 24] = [
    "dhcp4",
    "dhcp6",
    "dhcp-identifier",
    "dhcp4-overrides",
    "dhcp6-overrides",
    "accept-ra",
    "ra-overrides",
    "addresses",
    "optional-addresses",
    "gateway4",
    "gateway6",
    "nameservers",
    "routes",
    "routing-policy",
    "link-local",
    "ipv6-mtu",
    "ipv6-privacy",
    "ipv6-address-generation",
    "ipv6-address-token",
    "critical",
    "optional",
    "ignore-carrier",
    "activation-mode",
    "renderer",
];

/// What belongs to the link itself, by whichever name: it stays with it.
const STAYS: [&str; 26] = [
    "match",
    "set-name",
    "mtu",
    "macaddress",
    "wakeonlan",
    "emit-lldp",
    "receive-checksum-offload",
    "transmit-checksum-offload",
    "tcp-segmentation-offload",
    "tcp6-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "large-receive-offload",
    "virtual-function-count",
    "embedded-switch-mode",
    "delay-virtual-functions-rebind",
    "infiniband-mode",
    "link",
    "id",
    "interfaces",
    "parameters",
    "optional",
    "ignore-carrier",
    "activation-mode",
    "renderer",
    "neigh-suppress",
];

/// What of one file changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The file.
    pub path: PathBuf,
    /// Its changes, in order.
    pub splices: Vec<Splice>,
    /// Its text before.
    pub before: String,
    /// Its text afterwards.
    pub after: String,
}

/// How a link's configuration moves to a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The entry.
    pub entry: EntryName,
    /// Changes of files that are there.
    pub edits: Vec<Edit>,
    /// Our own file.
    pub ours: String,
    /// What moved, as YAML: to tell later whether an entry that came back is the same one.
    pub moved: String,
    /// The fixed addresses that moved, with prefix length.
    pub addresses: Vec<String>,
    /// The keys that moved, for the reader.
    pub keys: Vec<String>,
}

/// netplan's globs: `*`, `?` and `[…]` (glob(7)).
pub fn glob(pattern: &str, text: &str) -> bool {
    fn fits(p: &[char], t: &[char]) -> bool {
        match p.split_first() {
            None => t.is_empty(),
            Some(('*', rest)) => (0..=t.len()).any(|n| fits(rest, &t[n..])),
            Some(('?', rest)) => !t.is_empty() && fits(rest, &t[1..]),
            Some(('[', rest)) => {
                let Some(close) = rest.iter().skip(1).position(|c| *c == ']').map(|n| n + 1) else {
                    return t.first() == Some(&'[') && fits(rest, &t[1..]);
                };
                let Some((first, t_rest)) = t.split_first() else { return false };
                let not = matches!(rest[0], '!' | '^');
                let set = &rest[usize::from(not)..close];
                let mut found = false;
                let mut i = 0;
                while i < set.len() {
                    if i + 2 < set.len() && set[i + 1] == '-' {
                        found |= set[i] <= *first && *first <= set[i + 2];
                        i += 3;
                    } else {
                        found |= set[i] == *first;
                        i += 1;
                    }
                }
                found != not && fits(&rest[close + 1..], t_rest)
            }
            Some((c, rest)) => t.first() == Some(c) && fits(rest, &t[1..]),
        }
    }
    fits(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}

impl Config {
    /// Reads files in merge order.
    pub fn read(files: &[(PathBuf, String)]) -> Result<Self, Refused> {
        let files = files
            .iter()
            .map(|(path, text)| match yaml::read(text) {
                Ok(document) => Ok(File { path: path.clone(), text: text.clone(), document }),
                Err(why) => refused(
                    format!("`{}` cannot be understood: {why}", path.display()),
                    "correct it until `netplan generate` takes it",
                ),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { files })
    }

    fn pairs<'a>(&'a self, entry: &'a EntryName) -> impl Iterator<Item = (&'a File, &'a Pair)> {
        self.files.iter().filter_map(|f| Some((f, section(f, &entry.section)?.value.get(&entry.id)?)))
    }

    /// Every entry of every section, once.
    fn entries(&self) -> BTreeSet<EntryName> {
        let sections = self.files.iter().filter_map(network).flat_map(|n| n.value.pairs());
        sections
            .filter(|s| s.key != "openvswitch")
            .flat_map(|s| s.value.pairs().iter().map(move |p| (s, p)))
            // A section may have a renderer of its own beside its entries.
            .filter(|(_, p)| matches!(p.value.kind, Kind::Map(_)))
            .map(|(s, p)| EntryName { section: s.key.clone(), id: p.key.clone() })
            .collect()
    }

    /// The value of a key that the last file wins with.
    fn last<'a>(&'a self, entry: &'a EntryName, key: &str) -> Option<&'a Node> {
        self.pairs(entry).filter_map(|(_, p)| p.value.get(key)).last().map(|p| &p.value)
    }

    /// The renderer of all links, where a file names one.
    pub fn renderer(&self) -> Option<&str> {
        self.files.iter().filter_map(|f| network(f)?.value.get("renderer")?.value.scalar()).next_back()
    }

    /// The renderer of an entry: its own, its section's, or that of all.
    pub fn renderer_of<'a>(&'a self, entry: &'a EntryName) -> Option<&'a str> {
        let own = self.last(entry, "renderer").and_then(Node::scalar);
        let of_section = || {
            let mut all =
                self.files.iter().filter_map(|f| section(f, &entry.section)?.value.get("renderer")?.value.scalar());
            all.next_back()
        };
        own.or_else(of_section).or_else(|| self.renderer())
    }

    /// The entries that configure a link.
    pub fn entries_of(&self, link: &LinkId<'_>) -> Vec<EntryName> {
        self.entries().into_iter().filter(|e| self.is_for(e, link)).collect()
    }

    /// Whether an entry names a link.
    fn is_for(&self, entry: &EntryName, link: &LinkId<'_>) -> bool {
        if !matches!(entry.section.as_str(), "ethernets" | "wifis" | "modems") {
            return entry.id == link.name;
        }
        if self.last(entry, "match").is_none() {
            return entry.id == link.name;
        }
        let value = |key: &str| self.pairs(entry).filter_map(|(_, p)| p.value.get("match")?.value.get(key)).last();
        let (mac, name, driver) = (value("macaddress"), value("name"), value("driver"));
        let renamed = self.last(entry, "set-name").and_then(Node::scalar) == Some(link.name);
        link.physical
            && mac.is_none_or(|m| m.value.scalar().and_then(|t| t.parse().ok()).is_some_and(|m| link.mac == Some(m)))
            && name.is_none_or(|n| renamed || n.value.scalar().is_some_and(|g| glob(g, link.name)))
            && driver.is_none_or(|d| {
                let globs = d.value.items().iter().chain(std::iter::once(&d.value)).filter_map(Node::scalar);
                link.driver.as_deref().is_some_and(|is| globs.into_iter().any(|g| glob(g, is)))
            })
    }

    /// The entries that name this one as what they are made of.
    fn named_by(&self, entry: &EntryName) -> Vec<EntryName> {
        let names = |value: &Node| {
            value.get("link").is_some_and(|l| l.value.scalar() == Some(&entry.id))
                || value
                    .get("interfaces")
                    .is_some_and(|l| l.value.items().iter().any(|i| i.scalar() == Some(&entry.id)))
        };
        self.entries()
            .into_iter()
            .filter(|other| other != entry && self.pairs(other).any(|(_, p)| names(&p.value)))
            .collect()
    }
}

fn network(file: &File) -> Option<&Pair> {
    file.document.root.as_ref()?.get("network")
}

fn section<'a>(file: &'a File, name: &str) -> Option<&'a Pair> {
    network(file)?.value.get(name)
}

/// How the configuration of `link` moves to a bridge over it. `mac` is what the bridge is pinned to; `others` are all
/// links of the host. `own` is our own file, which is not looked at.
pub fn to_bridge(
    files: &[(PathBuf, String)],
    own: &Path,
    link: &LinkId<'_>,
    others: &[LinkId<'_>],
    bridge: &InterfaceName,
    mac: MacAddress,
) -> Result<Moved, Refused> {
    let foreign: Vec<(PathBuf, String)> = files.iter().filter(|(path, _)| path != own).cloned().collect();
    let config = Config::read(&foreign)?;
    let entries = config.entries_of(link);
    let entry = match entries.as_slice() {
        [entry] => entry.clone(),
        [] => {
            return refused(
                format!("no netplan file configures `{}`", link.name),
                format!(
                    "write an entry for it in /etc/netplan first, or make the bridge `{bridge}` and write `existing: true`"
                ),
            );
        }
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            return refused(
                format!("several netplan entries configure `{}`: {}", link.name, names.join(", ")),
                "leave one of them",
            );
        }
    };
    may_move(&config, &entry, link, others, bridge)?;
    let whole = merged(&config, &entry)?;
    let made = MADE.contains(&entry.section.as_str());
    let stays_in_place = made || !config.named_by(&entry).is_empty();

    let mut edits = Vec::new();
    for (file, pair) in config.pairs(&entry) {
        let mut splices =
            if stays_in_place { without_keys(file, pair, &whole)? } else { without_entry(file, &entry.section, pair)? };
        let first = config.pairs(&entry).next().is_some_and(|(f, _)| f.path == file.path);
        if stays_in_place && !made && first {
            known_by_mac(file, pair, &whole, link, &mut splices)?;
        }
        if splices.is_empty() {
            continue;
        }
        let after = splice(&file.text, &splices).map_err(|e| Refused {
            why: format!("`{}`: {e}", file.path.display()),
            help: "write its entries in plain block style".to_owned(),
        })?;
        yaml::read(&after).map_err(|e| Refused {
            why: format!("`{}` would not be valid afterwards: {e}", file.path.display()),
            help: "write its entries in plain block style".to_owned(),
        })?;
        edits.push(Edit { path: file.path.clone(), splices, before: file.text.clone(), after });
    }

    let moving: Vec<&Pair> = whole.iter().filter(|p| MOVES.contains(&p.key.as_str())).collect();
    let mut moved = String::new();
    for pair in &moving {
        yaml::write_pair(&mut moved, pair, 3);
    }
    // A bridge takes the smallest size of its ports, which a VM's tap would make 1500, unless it has one of its own.
    let mut size = String::new();
    if let Some(mtu) = whole.iter().find(|p| p.key == "mtu") {
        yaml::write_pair(&mut size, mtu, 3);
    }
    let uplink = (!stays_in_place).then(|| uplink_entry(&entry.id, &whole, link));
    let addresses = moving.iter().filter(|p| p.key == "addresses").flat_map(|p| p.value.items()).filter_map(address_of);
    Ok(Moved {
        ours: our_text(bridge, &entry, uplink.as_deref(), mac, &(moved.clone() + &size)),
        addresses: addresses.collect(),
        keys: moving.iter().map(|p| p.key.clone()).collect(),
        entry,
        edits,
        moved,
    })
}

/// An address is a word, or a mapping with the address as its only key.
fn address_of(node: &Node) -> Option<String> {
    node.scalar().map(str::to_owned).or_else(|| node.pairs().first().map(|p| p.key.clone()))
}

/// Everything that keeps an entry from being moved.
fn may_move(
    config: &Config,
    entry: &EntryName,
    link: &LinkId<'_>,
    others: &[LinkId<'_>],
    bridge: &InterfaceName,
) -> Result<(), Refused> {
    if config.renderer_of(entry) == Some("NetworkManager") {
        return refused(
            format!("NetworkManager configures `{}` (netplan's renderer)", link.name),
            format!(
                "make the bridge with NetworkManager (nmcli) and write `existing: true`, or set `renderer: networkd` for `{entry}`"
            ),
        );
    }
    match entry.section.as_str() {
        "ethernets" | "bonds" | "vlans" => {}
        "wifis" => {
            return refused(format!("`{}` is wireless; a bridge cannot go over it", link.name), "use a wired link");
        }
        other => {
            return refused(
                format!("`{}` is one of netplan's `{other}`; a bridge goes over a card, a bond or a VLAN", link.name),
                "name another `uplink`, or use a bridge that is there with `existing: true`",
            );
        }
    }
    if let Some(taken) = config.entries().into_iter().find(|e| e.id == bridge.as_str()) {
        let (file, _) = config.pairs(&taken).next().map_or((None, None), |(f, p)| (Some(f), Some(p)));
        let at = file.map_or(String::new(), |f| format!(" in {}", f.path.display()));
        return refused(
            format!("netplan has an entry `{taken}`{at} already, which is not gpuvm's"),
            "write `existing: true` to use it, or name the bridge otherwise",
        );
    }
    if let Some(port) =
        config.named_by(entry).into_iter().find(|e| matches!(e.section.as_str(), "bridges" | "bonds" | "vrfs"))
    {
        return refused(
            format!("`{}` is a port of `{port}` already", entry.id),
            "name that one as `uplink`, or use it with `existing: true`",
        );
    }
    let also: Vec<&str> =
        others.iter().filter(|o| o.name != link.name && config.is_for(entry, o)).map(|o| o.name).collect();
    if !also.is_empty() {
        return refused(
            format!("the netplan entry `{entry}` is for `{}` and also for {}", link.name, also.join(", ")),
            format!("write an entry for `{}` alone (match: macaddress), and try again", link.name),
        );
    }
    for (file, _) in config.pairs(entry) {
        if !file.path.starts_with("/etc/netplan") {
            return refused(
                format!("`{}` holds `{entry}`, and is made by another program", file.path.display()),
                "find what writes it, or move the entry to a file in /etc/netplan",
            );
        }
        if file.document.anchors {
            return refused(
                format!(
                    "`{}` uses anchors or aliases, so that an entry cannot be taken out alone",
                    file.path.display()
                ),
                "write the values out, and try again",
            );
        }
    }
    Ok(())
}

/// The keys of an entry over all files; a key in two files is fine where it says the same thing.
fn merged(config: &Config, entry: &EntryName) -> Result<Vec<Pair>, Refused> {
    let mut all: BTreeMap<String, (PathBuf, Pair)> = BTreeMap::new();
    let mut order = Vec::new();
    for (file, pair) in config.pairs(entry) {
        if !matches!(pair.value.kind, Kind::Map(_)) {
            return refused(
                format!("`{entry}` in {} is no mapping", file.path.display()),
                "correct it until `netplan generate` takes it",
            );
        }
        for key in pair.value.pairs() {
            if !MOVES.contains(&key.key.as_str()) && !STAYS.contains(&key.key.as_str()) {
                return refused(
                    format!(
                        "`{entry}` in {} has `{}`, and gpuvm does not know whether it belongs to the link or to the bridge",
                        file.path.display(),
                        key.key
                    ),
                    "make the bridge yourself and write `existing: true`",
                );
            }
            match all.get(&key.key) {
                Some((first, known)) if !known.value.same(&key.value) || !known.value.items().is_empty() => {
                    return refused(
                        format!("`{}` of `{entry}` is in {} and in {}", key.key, first.display(), file.path.display()),
                        "netplan joins them; write it in one of the files only",
                    );
                }
                Some(_) => {}
                None => {
                    order.push(key.key.clone());
                    all.insert(key.key.clone(), (file.path.clone(), key.clone()));
                }
            }
        }
    }
    Ok(order.into_iter().filter_map(|k| all.remove(&k).map(|(_, p)| p)).collect())
}

/// The lines of a key of a block mapping with its value and the comments below that belong to it.
fn lines_of(text: &str, pair: &Pair) -> Option<std::ops::Range<usize>> {
    let start = text[..pair.key_span.start].rfind('\n').map_or(0, |n| n + 1);
    let indent = pair.key_span.start - start;
    if !text[start..pair.key_span.start].bytes().all(|b| b == b' ') {
        return None;
    }
    let content = pair.value.span.end.max(pair.key_span.end);
    let mut end = text[content..].find('\n').map_or(text.len(), |n| content + n + 1);
    let rest = text[content..end].trim();
    if !(rest.is_empty() || rest == ":" || rest.trim_start_matches(':').trim_start().starts_with('#')) {
        return None;
    }
    // Comments that are deeper than the key are the entry's.
    while let Some(line) = text[end..].lines().next().filter(|l| l.trim_start().starts_with('#')) {
        if line.len() - line.trim_start().len() <= indent {
            break;
        }
        end = text[end..].find('\n').map_or(text.len(), |n| end + n + 1);
    }
    Some(start..end)
}

fn flow<T>(file: &File, what: &str) -> Result<T, Refused> {
    refused(
        format!(
            "`{what}` in {} is written in brackets, so that an entry cannot be taken out alone",
            file.path.display()
        ),
        "write it over several lines (block style), and try again",
    )
}

fn gone(range: std::ops::Range<usize>) -> Splice {
    Splice { at: range.start, remove: range.len(), insert: String::new() }
}

/// The entry cut out; its section too, where nothing else is in it.
fn without_entry(file: &File, section_name: &str, pair: &Pair) -> Result<Vec<Splice>, Refused> {
    let (Some(network), Some(section)) = (network(file), section(file, section_name)) else { return Ok(Vec::new()) };
    if section.value.flow || network.value.flow {
        return flow(file, section_name);
    }
    let Some(lines) = lines_of(&file.text, pair) else { return flow(file, &pair.key) };
    let mut splices = vec![gone(lines)];
    if section.value.pairs().len() == 1 {
        // The line of the section's key alone, so that comments below it stay.
        splices.insert(0, key_line(file, section)?);
        if network.value.pairs().len() == 1 {
            // netplan takes `network: {}`, and not a `network:` with nothing below.
            let colon = network.key_span.end + file.text[network.key_span.end..].find(':').map_or(0, |n| n + 1);
            splices.insert(0, Splice { at: colon, remove: 0, insert: " {}".to_owned() });
        }
    }
    Ok(splices)
}

fn key_line(file: &File, pair: &Pair) -> Result<Splice, Refused> {
    let start = file.text[..pair.key_span.start].rfind('\n').map_or(0, |n| n + 1);
    let end = file.text[pair.key_span.end..].find('\n').map_or(file.text.len(), |n| pair.key_span.end + n + 1);
    if file.text[start..pair.key_span.start].bytes().all(|b| b == b' ') && end <= pair.value.span.start {
        Ok(gone(start..end))
    } else {
        flow(file, &pair.key)
    }
}

/// The keys that move cut out of the entry, which stays.
fn without_keys(file: &File, pair: &Pair, whole: &[Pair]) -> Result<Vec<Splice>, Refused> {
    let here = pair.value.pairs();
    let stays_too = |key: &str| STAYS.contains(&key) && MOVES.contains(&key);
    let cut: Vec<&Pair> = here.iter().filter(|p| MOVES.contains(&p.key.as_str()) && !stays_too(&p.key)).collect();
    if cut.is_empty() {
        return Ok(Vec::new());
    }
    if cut.len() == here.len() || pair.value.flow {
        // Nothing is left, or it is one line: written anew.
        let left: Vec<&Pair> = whole
            .iter()
            .filter(|p| here.iter().any(|h| h.key == p.key) && !cut.iter().any(|c| c.key == p.key))
            .collect();
        let depth = (pair.key_span.start - file.text[..pair.key_span.start].rfind('\n').map_or(0, |n| n + 1)) / 2 + 1;
        let mut text = String::new();
        if left.is_empty() {
            text += " {}";
        } else {
            text += "\n";
            for p in left {
                yaml::write_pair(&mut text, p, depth);
            }
            text.truncate(text.trim_end().len());
        }
        let colon = pair.key_span.end + file.text[pair.key_span.end..].find(':').map_or(0, |n| n + 1);
        return Ok(vec![Splice { at: colon, remove: pair.value.span.end.max(colon) - colon, insert: text }]);
    }
    cut.into_iter()
        .map(|p| match lines_of(&file.text, p) {
            Some(lines) => Ok(gone(lines)),
            None => flow(file, &pair.key),
        })
        .collect()
}

/// An entry that stays where it is gets a `match` by MAC where it has none that names it.
fn known_by_mac(
    file: &File,
    pair: &Pair,
    whole: &[Pair],
    link: &LinkId<'_>,
    splices: &mut Vec<Splice>,
) -> Result<(), Refused> {
    let by_mac = whole.iter().any(|p| p.key == "match" && p.value.get("macaddress").is_some());
    let (Some(mac), false) = (link.mac, by_mac) else { return Ok(()) };
    if whole.iter().any(|p| p.key == "match") {
        // It names this link only (seen above); others name the entry, so that it is left as it is.
        return Ok(());
    }
    let start = file.text[..pair.key_span.start].rfind('\n').map_or(0, |n| n + 1);
    let pad = " ".repeat((pair.key_span.start - start) + 2);
    let written = format!("\n{pad}match:\n{pad}  macaddress: \"{mac}\"");
    let colon = pair.key_span.end + file.text[pair.key_span.end..].find(':').map_or(0, |n| n + 1);
    match splices.iter_mut().find(|s| s.at == colon) {
        Some(own) => own.insert = if own.insert == " {}" { written } else { written + &own.insert },
        None if pair.value.flow => return flow(file, &pair.key),
        None => {
            let child = pair.value.pairs().first().map_or(0, |p| p.key_span.start);
            let child_pad = child - file.text[..child].rfind('\n').map_or(0, |n| n + 1);
            let pad = " ".repeat(child_pad);
            let insert = format!("\n{pad}match:\n{pad}  macaddress: \"{mac}\"");
            splices.insert(0, Splice { at: colon, remove: 0, insert });
        }
    }
    Ok(())
}

/// The entry of the uplink in our own file: known by MAC, without anything of a network.
fn uplink_entry(id: &str, whole: &[Pair], link: &LinkId<'_>) -> String {
    let mut out = format!("  ethernets:\n    {}:\n", yaml::word(id));
    let matches = whole.iter().find(|p| p.key == "match");
    match (link.mac, matches) {
        (Some(mac), _) => out += &format!("      match:\n        macaddress: \"{mac}\"\n"),
        (None, Some(pair)) => yaml::write_pair(&mut out, pair, 3),
        (None, None) => {}
    }
    out += "      dhcp4: false\n      dhcp6: false\n";
    for pair in whole.iter().filter(|p| STAYS.contains(&p.key.as_str()) && p.key != "match") {
        yaml::write_pair(&mut out, pair, 3);
    }
    out
}

/// Our own file.
fn our_text(bridge: &InterfaceName, entry: &EntryName, uplink: Option<&str>, mac: MacAddress, moved: &str) -> String {
    format!(
        "# Written by gpuvm: the bridge {bridge} over {}, with everything that {} had.\n\
         # Take `bridge` out of the manifest and apply, and all of it goes back.\n\
         network:\n  version: 2\n{}  bridges:\n    {bridge}:\n      interfaces:\n        - {}\n      \
         macaddress: \"{mac}\"\n      parameters:\n        stp: false\n        forward-delay: 0\n{moved}",
        entry.id,
        entry.id,
        uplink.unwrap_or_default(),
        yaml::word(&entry.id),
    )
}

/// Keys whose values are never shown or written down.
const SECRET: [&str; 8] = ["password", "psk", "key", "keys", "auth", "shared", "private", "client-key-password"];

/// A text with the values of secret keys taken out; for people and records.
pub fn redacted(text: &str) -> String {
    fn collect(node: &Node, secret: bool, out: &mut Vec<Splice>) {
        match &node.kind {
            Kind::Scalar { .. } if secret && !node.span.is_empty() => {
                out.push(Splice { at: node.span.start, remove: node.span.len(), insert: "\"(not shown)\"".to_owned() });
            }
            Kind::Scalar { .. } => {}
            Kind::Seq(items) => items.iter().for_each(|i| collect(i, secret, out)),
            Kind::Map(pairs) => {
                pairs.iter().for_each(|p| collect(&p.value, secret || SECRET.contains(&p.key.as_str()), out));
            }
        }
    }
    let unreadable = || "# not shown: it is not valid YAML\n".to_owned();
    let Ok(document) = yaml::read(text) else { return unreadable() };
    let mut splices = Vec::new();
    if let Some(root) = &document.root {
        collect(root, false, &mut splices);
    }
    splice(text, &splices).unwrap_or_else(|_| unreadable())
}

#[cfg(test)]
mod tests;
