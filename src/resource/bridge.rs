//! The bridge that VMs share the host's network through, over a card, a bond or a VLAN that netplan configures.
//!
//! What the uplink had moves to the bridge in one guarded step. What was taken out of which file is remembered beside
//! gpuvm's ledger, so that it can be put back; secrets in netplan's files never get into a plan.

mod uplink;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::uplink::remembered;
use super::Resource;
use crate::facts::{HostFacts, Known, Link, LinkKind, NetworkFacts};
use crate::host::{Answer, HostError, Probe};
use crate::net::netplan::{self, Moved};
use crate::plan::{Action, Change, Diff, FieldDiff, FileEdit, FileWrite, NetworkSwitch, Proof, Risk, Step};
use crate::types::{InterfaceName, MacAddress, Mode, inverse, sha256_hex};

/// Which link becomes the bridge's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UplinkChoice {
    /// The link with the default route.
    Auto,
    /// By name.
    Name(InterfaceName),
    /// By its permanent Ethernet address.
    Mac(MacAddress),
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// Its name.
    pub name: InterfaceName,
    /// Its port.
    pub uplink: UplinkChoice,
    /// It is there already: used, never touched.
    pub existing: bool,
}

/// What was done for a bridge, to tell later what differs, and to put it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    /// [`MEMORY_FORMAT`].
    format: u32,
    /// The uplink's name when it was made.
    uplink: InterfaceName,
    /// The uplink's permanent address, where it is a card.
    card: Option<MacAddress>,
    /// The bridge's address.
    mac: MacAddress,
    /// Our netplan file.
    ours: String,
    /// What moved, to know an entry that came back.
    moved: String,
    /// Fixed addresses with prefix length.
    addresses: Vec<String>,
    /// Whether IPv4 comes from DHCP.
    dhcp4: bool,
    /// What puts back what was taken out of files.
    back: Vec<FileEdit>,
    /// Whether cloud-init's rewriting was turned off.
    cloud_init: bool,
    /// The text of networkd's drop-in that keeps the identity for DHCP.
    drop_in: Option<String>,
}

/// The number of the format of [`Memory`]; another one is not touched.
const MEMORY_FORMAT: u32 = 1;

/// How long the guard waits for what answered before: spanning tree, LACP and a slow DHCP server need more than half a
/// minute each.
const PATIENCE_S: u32 = 75;

/// What turns cloud-init's network configuration off (cloud-init's documentation, "Network configuration").
const CLOUD_INIT: &str = "/etc/cloud/cloud.cfg.d/99-gpuvm-network.cfg";
const CLOUD_INIT_TEXT: &str = "# Written by gpuvm: cloud-init would write the card's addresses into /etc/netplan again.\n\
network: {config: disabled}\n";

/// What is there.
#[derive(Debug)]
pub struct BridgeState {
    memory: Known<Option<Memory>>,
    ours: Option<(String, Mode)>,
    cloud_init_off: Option<String>,
    drop_in: Option<String>,
}

/// Why no change can be planned.
enum Stop {
    /// It must not be done; with the next step.
    Blocked { why: String, help: String },
    /// It could not be told.
    Unknown(String),
}

impl From<Stop> for Diff {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Blocked { why, help } => Diff::Blocked { why, help },
            Stop::Unknown(why) => Diff::Unknown { why },
        }
    }
}

impl From<netplan::Refused> for Stop {
    fn from(refused: netplan::Refused) -> Self {
        Stop::Blocked { why: refused.why, help: refused.help }
    }
}

/// Blocked, with the next step.
fn blocked(why: impl Into<String>, help: impl Into<String>) -> Stop {
    Stop::Blocked { why: why.into(), help: help.into() }
}

impl Bridge {
    fn ours(&self) -> PathBuf {
        format!("/etc/netplan/90-gpuvm-{}.yaml", self.name).into()
    }
    fn memory(&self) -> PathBuf {
        format!("/var/lib/gpuvm/network/{}.json", self.name).into()
    }
    /// netplan calls the file of a bridge so, and systemd.network(5) reads drop-ins beside its name.
    fn drop_in(&self) -> PathBuf {
        format!("/etc/systemd/network/10-netplan-{}.network.d/90-gpuvm.conf", self.name).into()
    }

    fn create(&self, state: &BridgeState, net: &NetworkFacts) -> Result<Diff, Stop> {
        if let Some(link) = net.links.get(self.name.as_str()) {
            let what = if link.kind == LinkKind::Bridge { "a bridge" } else { "a link" };
            return Err(blocked(
                format!("there is {what} `{}` already, which is not gpuvm's", self.name),
                "write `existing: true` to use it as it is, or name the bridge otherwise",
            ));
        }
        if state.ours.is_some() {
            return Err(blocked(
                format!("{} is there, and what it was made from is not known", self.ours().display()),
                "take it away, with the network as it was before, and plan again",
            ));
        }
        let files = net.netplan_texts().map_err(Stop::Unknown)?;
        netplan::Config::read(&files)?;
        let (uplink, link) = self.find_uplink(net)?;
        if let Some(unfit) = self.unfit(&uplink, link, net) {
            return Err(unfit);
        }
        let moved = self.moved(&uplink, link, net)?;
        let mac = link
            .mac
            .ok_or_else(|| blocked(format!("`{uplink}` has no Ethernet address"), "name another link as `uplink`"))?;
        let dhcp4 = says_true(&moved.moved, "dhcp4");
        let by_mac = moved.moved.lines().any(|l| l.trim() == "dhcp-identifier: mac");
        let lease = net.leases.iter().find(|lease| link.addresses.iter().any(|a| a.address == lease.address));
        let drop_in =
            lease.filter(|_| dhcp4 && !by_mac).map(|lease| drop_in_text(&self.name, &uplink, lease.association));
        let memory = Memory {
            format: MEMORY_FORMAT,
            uplink: uplink.clone(),
            card: link.permanent_mac.filter(|_| link.is_card()),
            mac,
            ours: moved.ours.clone(),
            moved: moved.moved.clone(),
            addresses: moved.addresses.clone(),
            dhcp4,
            back: back(&moved)?,
            cloud_init: net.cloud_init && cuts_cloud_init(&moved),
            drop_in,
        };
        let kept = if dhcp4 { "DHCP kept" } else { "addresses kept" };
        let mut change = Change::new(Action::Create, format!("{uplink} → {}, {kept}, MAC kept", self.name));
        let switch = self.switch(&uplink, &uplink, &memory, net);
        self.fill(&mut change, switch, state, &memory, &moved)?;
        if link.addresses.iter().any(|a| a.address.is_ipv4() && a.prefix == 32 && a.scope == "global")
            || net.routes.iter().any(|r| r.link == uplink.as_str() && r.to == "default" && r.on_link)
        {
            change.notes.push("this looks like a provider's network: many pass frames of the host's own MAC only; there a VM needs a routed or NAT network".to_owned());
        }
        Ok(Diff::Change(change))
    }

    fn moved(&self, uplink: &InterfaceName, link: &Link, net: &NetworkFacts) -> Result<Moved, Stop> {
        let files = net.netplan_texts().map_err(Stop::Unknown)?;
        let (Some(id), Some(mac)) = (net.link_id(uplink.as_str()), link.mac) else {
            return Err(blocked(format!("`{uplink}` has no Ethernet address"), "name another link as `uplink`"));
        };
        netplan::to_bridge(&files, &self.ours(), &id, &net.link_ids(), &self.name, mac).map_err(Stop::from)
    }

    /// The step without files: from the link that has the network now to the bridge.
    fn switch(
        &self,
        from: &InterfaceName,
        uplink: &InterfaceName,
        memory: &Memory,
        net: &NetworkFacts,
    ) -> NetworkSwitch {
        let there = net.links.contains_key(self.name.as_str());
        NetworkSwitch {
            bridge: self.name.clone(),
            uplink: uplink.clone(),
            from: from.clone(),
            to: self.name.clone(),
            mac: memory.mac,
            edit: Vec::new(),
            write: Vec::new(),
            remove: Vec::new(),
            delete_links: Vec::new(),
            made_links: if there { Vec::new() } else { vec![self.name.clone()] },
            proofs: proofs(from, net),
            patience_s: PATIENCE_S,
        }
    }

    /// Fills in the files that differ, with what the reader wants to know.
    fn fill(
        &self,
        change: &mut Change,
        mut switch: NetworkSwitch,
        state: &BridgeState,
        memory: &Memory,
        moved: &Moved,
    ) -> Result<(), Stop> {
        for edit in &moved.edits {
            let wrong =
                |e| blocked(format!("`{}`: {e}", edit.path.display()), "write its entries in plain block style");
            switch.edit.push(FileEdit::new(&edit.path, &edit.before, edit.splices.clone()).map_err(wrong)?);
            let (before, after) = (netplan::redacted(&edit.before), netplan::redacted(&edit.after));
            change.fields.push(FieldDiff::text(edit.path.display().to_string(), Some(&before), Some(&after)));
        }
        let mut write = |path: PathBuf, before: Option<&str>, text: &str, mode: u32| {
            if before != Some(text) {
                change.fields.push(FieldDiff::text(path.display().to_string(), before, Some(text)));
            }
            switch.write.push(FileWrite::root(path, text, mode));
        };
        let private = Mode::new(0o600);
        if state.ours.as_ref().is_none_or(|(text, mode)| *text != memory.ours || *mode != private) {
            write(self.ours(), state.ours.as_ref().map(|(t, _)| t.as_str()), &memory.ours, 0o600);
        }
        if memory.cloud_init && state.cloud_init_off.as_deref() != Some(CLOUD_INIT_TEXT) {
            write(CLOUD_INIT.into(), state.cloud_init_off.as_deref(), CLOUD_INIT_TEXT, 0o644);
        }
        if let Some(text) = memory.drop_in.as_ref().filter(|t| state.drop_in.as_ref() != Some(*t)) {
            write(self.drop_in(), state.drop_in.as_deref(), text, 0o644);
        }
        if state.memory.value().and_then(Option::as_ref) != Some(memory) {
            let text = serde_json::to_string_pretty(memory).map_err(|e| Stop::Unknown(e.to_string()))?;
            switch.write.push(FileWrite::root(self.memory(), text + "\n", 0o600));
        }
        change.notes.push(guarded(&switch));
        if !moved.edits.is_empty() {
            change.notes.push("the originals are kept; no other entry of any file changes".to_owned());
        }
        change.risks.insert(Risk::NetworkLoss);
        change.steps.push(Step::SwitchNetwork(switch));
        Ok(())
    }

    /// It was made once: what differs now.
    fn compare(&self, memory: &Memory, state: &BridgeState, net: &NetworkFacts) -> Result<Diff, Stop> {
        let (uplink, link) = remembered(memory, net)?;
        let other = match &self.uplink {
            UplinkChoice::Auto => None,
            UplinkChoice::Name(name) => (*name != uplink).then(|| name.to_string()),
            UplinkChoice::Mac(mac) => (memory.card != Some(*mac)).then(|| mac.to_string()),
        };
        if let Some(other) = other {
            return Err(blocked(
                format!("the bridge is over `{uplink}`, and the manifest says {other}"),
                "take `bridge` out, apply, and put it in again with the new uplink",
            ));
        }
        // An entry of the uplink that came back, by a hand or by another program.
        let files = net.netplan_texts().map_err(Stop::Unknown)?;
        let foreign: Vec<_> = files.iter().filter(|(path, _)| *path != self.ours()).cloned().collect();
        let config = netplan::Config::read(&foreign).map_err(Stop::from)?;
        let id = net.link_id(uplink.as_str());
        let back_again = id.is_some_and(|id| !config.entries_of(&id).is_empty());
        let mut memory = memory.clone();
        let moved =
            if back_again { Some(self.moved(&uplink, link, net)?).filter(|m| !m.edits.is_empty()) } else { None };
        if let Some(moved) = &moved {
            if !moved.keys.is_empty() && moved.moved != memory.moved {
                let paths: Vec<String> = moved.edits.iter().map(|e| e.path.display().to_string()).collect();
                return Err(blocked(
                    format!(
                        "`{uplink}` has an entry again in {}, which differs from what the bridge has",
                        paths.join(", ")
                    ),
                    format!(
                        "take it out there, or take `bridge` out of the manifest and apply, to begin anew; the bridge has: {}",
                        self.ours().display()
                    ),
                ));
            }
            for edit in back(moved)? {
                memory.back.retain(|b| b.path != edit.path);
                memory.back.push(edit);
            }
        }
        let wrong = not_live(self.name.as_str(), &uplink, link, &memory, net);
        let nothing = Moved {
            entry: netplan::EntryName { section: String::new(), id: String::new() },
            edits: Vec::new(),
            ours: String::new(),
            moved: String::new(),
            addresses: Vec::new(),
            keys: Vec::new(),
        };
        let from = match net.links.get(self.name.as_str()) {
            Some(_) if net.uplink.as_deref() != Some(uplink.as_str()) => self.name.clone(),
            _ => uplink.clone(),
        };
        let mut change = Change::new(Action::Change, String::new());
        let switch = self.switch(&from, &uplink, &memory, net);
        self.fill(&mut change, switch, state, &memory, moved.as_ref().unwrap_or(&nothing))?;
        let files = change.steps.iter().any(|s| matches!(s, Step::SwitchNetwork(s) if s.paths().next().is_some()));
        if wrong.is_empty() && !files {
            let addresses = net.links.get(self.name.as_str()).into_iter().flat_map(|l| &l.addresses);
            let addresses: Vec<String> =
                addresses.filter(|a| a.scope == "global").map(|a| format!("{}/{}", a.address, a.prefix)).collect();
            return Ok(Diff::InSync { evidence: format!("over {uplink}, {}", addresses.join(", ")) });
        }
        change.what = match (files, wrong.as_slice()) {
            (_, [first, ..]) => format!("{first}: made again"),
            _ => "its files were changed: written again".to_owned(),
        };
        for line in wrong {
            change.notes.push(format!("now: {line}"));
        }
        Ok(Diff::Change(change))
    }
}

/// What of the running bridge is not as its files say.
fn not_live(name: &str, uplink: &InterfaceName, link: &Link, memory: &Memory, net: &NetworkFacts) -> Vec<String> {
    let Some(bridge) = net.links.get(name).filter(|l| l.kind == LinkKind::Bridge) else {
        return vec![format!("`{name}` is not there")];
    };
    let mut wrong = Vec::new();
    if link.master.as_deref() != Some(name) {
        wrong.push(format!("`{uplink}` is not its port"));
    }
    if !bridge.up {
        wrong.push("it is switched off".to_owned());
    }
    if bridge.mac != Some(memory.mac) {
        wrong.push(format!(
            "its address is {}, not {}",
            bridge.mac.map_or("none".to_owned(), |m| m.to_string()),
            memory.mac
        ));
    }
    for wanted in &memory.addresses {
        let address = wanted.split('/').next().unwrap_or_default();
        if !bridge.addresses.iter().any(|a| a.address.to_string() == address || address.parse() == Ok(a.address)) {
            wrong.push(format!("it does not have {wanted}"));
        }
    }
    if memory.dhcp4 && !bridge.addresses.iter().any(|a| a.address.is_ipv4() && a.scope == "global") {
        wrong.push("it has no IPv4 address from DHCP".to_owned());
    }
    wrong
}

/// What answers now on a link, as far as facts tell; the guard asks before the change.
fn proofs(from: &InterfaceName, net: &NetworkFacts) -> std::collections::BTreeSet<Proof> {
    let mut all = std::collections::BTreeSet::from([Proof::Link]);
    if let Some(link) = net.links.get(from.as_str()) {
        // What a router announced changes with the link, and is not what the host is known by.
        let lasting = link
            .addresses
            .iter()
            .filter(|a| a.scope == "global" && !a.temporary && (a.address.is_ipv4() || !a.dynamic));
        all.extend(lasting.map(|a| Proof::Address(a.address)));
    }
    for route in net.routes.iter().filter(|r| r.to == "default" && r.link == from.as_str()) {
        all.insert(Proof::DefaultRoute { v6: route.v6 });
        all.extend(route.via.map(Proof::Gateway));
    }
    all.extend(net.name_servers.iter().copied().map(Proof::NameServer));
    all
}

/// The sentence about the guard.
fn guarded(switch: &NetworkSwitch) -> String {
    let mut words = Vec::new();
    for proof in &switch.proofs {
        match proof {
            Proof::Link => words.push("link".to_owned()),
            Proof::Address(a) | Proof::Gateway(a) => words.push(a.to_string()),
            Proof::DefaultRoute { v6: false } => words.push("route".to_owned()),
            Proof::DefaultRoute { v6: true } => words.push("IPv6 route".to_owned()),
            Proof::NameServer(a) => words.push(format!("DNS {a}")),
            Proof::Peer(_) => {}
        }
    }
    format!("guarded: goes back unless what answers now does so again: {}, ssh peer", words.join(", "))
}

/// What puts the texts back.
fn back(moved: &Moved) -> Result<Vec<FileEdit>, Stop> {
    let edit = |e: &netplan::Edit| FileEdit::new(&e.path, &e.after, inverse(&e.before, &e.splices)?);
    moved.edits.iter().map(|e| edit(e).map_err(|e| Stop::Unknown(e.to_string()))).collect()
}

fn cuts_cloud_init(moved: &Moved) -> bool {
    moved.edits.iter().any(|e| e.path.file_name().is_some_and(|n| n == "50-cloud-init.yaml"))
}

fn says_true(moved: &str, key: &str) -> bool {
    let value = |l: &str| {
        l.trim().strip_prefix(key)?.strip_prefix(':').map(|v| v.trim().trim_matches('"').to_ascii_lowercase())
    };
    moved.lines().filter_map(value).any(|v| ["true", "yes", "on", "y"].contains(&v.as_str()))
}

/// systemd.network(5): networkd names itself to a DHCP server by the machine and by a number made from the link's name,
/// so that a bridge would be a stranger and get another address.
fn drop_in_text(bridge: &InterfaceName, uplink: &InterfaceName, iaid: u32) -> String {
    format!(
        "# Written by gpuvm: {bridge} is the DHCP client that {uplink} was, so that the lease stays.\n[DHCPv4]\nIAID={iaid}\n"
    )
}

impl Resource for Bridge {
    const KIND: &'static str = "bridge";
    type State = BridgeState;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<BridgeState, HostError> {
        let ours = self.ours();
        let memory = match host.text(&self.memory())? {
            Answer::Absent => Known::Value(None),
            Answer::Denied => Known::Unknown(format!("{} may not be read (not root)", self.memory().display())),
            Answer::Value(text) => match serde_json::from_str::<Memory>(&text) {
                Ok(memory) if memory.format == MEMORY_FORMAT => Known::Value(Some(memory)),
                Ok(memory) => Known::Unknown(format!("{} has the format {}", self.memory().display(), memory.format)),
                Err(e) => Known::Unknown(format!("{}: {e}", self.memory().display())),
            },
        };
        Ok(BridgeState {
            memory,
            ours: match (host.stat(&ours)?, host.text(&ours)?) {
                (Answer::Value(stat), Answer::Value(text)) => Some((text, stat.mode)),
                _ => None,
            },
            cloud_init_off: host.text(Path::new(CLOUD_INIT))?.value(),
            drop_in: host.text(&self.drop_in())?.value(),
        })
    }

    fn diff(&self, state: &BridgeState, _: Option<&Self>, facts: &HostFacts) -> Diff {
        let net = match &facts.network {
            Known::Value(net) => net,
            Known::Unknown(why) => return Diff::Unknown { why: why.clone() },
        };
        if self.existing {
            return match net.links.get(self.name.as_str()) {
                Some(link) if link.kind == LinkKind::Bridge => Diff::InSync {
                    evidence: format!("there, with {} ports; not gpuvm's", net.ports(self.name.as_str()).count()),
                },
                Some(_) => blocked(format!("`{}` is there, and is no bridge", self.name), "name a bridge").into(),
                None => blocked(
                    format!("`existing: true`, and there is no bridge `{}`", self.name),
                    "make it first, or take `existing` out so that gpuvm makes it",
                )
                .into(),
            };
        }
        let result = match &state.memory {
            Known::Unknown(why) => Err(Stop::Unknown(why.clone())),
            Known::Value(None) => self.create(state, net),
            Known::Value(Some(memory)) => self.compare(memory, state, net),
        };
        result.unwrap_or_else(Diff::from)
    }

    fn remove(&self, state: &BridgeState, facts: &HostFacts) -> Diff {
        self.remove_without(&BTreeSet::new(), state, facts)
    }
}

impl Bridge {
    /// As it is taken away once these ports are gone, which the same plan sees to before.
    pub fn compare_removal_without(
        &self,
        leaving: &BTreeSet<String>,
        host: &dyn Probe,
        facts: &HostFacts,
    ) -> Result<Diff, HostError> {
        Ok(self.remove_without(leaving, &self.probe(host)?, facts))
    }

    fn remove_without(&self, leaving: &BTreeSet<String>, state: &BridgeState, facts: &HostFacts) -> Diff {
        let memory = match &state.memory {
            _ if self.existing => return Diff::InSync { evidence: "it was never gpuvm's".to_owned() },
            Known::Value(Some(memory)) => memory,
            Known::Value(None) if state.ours.is_none() => return Diff::InSync { evidence: "gone".to_owned() },
            Known::Value(None) => {
                return blocked(
                    format!("what was moved to {} is not known any more", self.ours().display()),
                    "move it back by hand",
                )
                .into();
            }
            Known::Unknown(why) => return Diff::Unknown { why: why.clone() },
        };
        let net = match &facts.network {
            Known::Value(net) => net,
            Known::Unknown(why) => return Diff::Unknown { why: why.clone() },
        };
        self.take_back(leaving, memory, state, net).unwrap_or_else(Diff::from)
    }

    fn take_back(
        &self,
        leaving: &BTreeSet<String>,
        memory: &Memory,
        state: &BridgeState,
        net: &NetworkFacts,
    ) -> Result<Diff, Stop> {
        let (uplink, _) = remembered(memory, net)?;
        let ports = net.ports(self.name.as_str()).map(|(n, _)| n.as_str());
        let guests: Vec<&str> = ports.filter(|n| *n != uplink.as_str() && !leaving.contains(*n)).collect();
        if !guests.is_empty() {
            return Err(blocked(
                format!("`{}` is in use by {}", self.name, guests.join(", ")),
                "stop the VMs that are on it, or take those ports off",
            ));
        }
        let mut change = Change::new(Action::Remove, format!("{} → {uplink}: everything goes back", self.name));
        let from = if net.links.contains_key(self.name.as_str()) { &self.name } else { &uplink };
        let mut switch = NetworkSwitch {
            to: uplink.clone(),
            made_links: Vec::new(),
            delete_links: vec![self.name.clone()],
            ..self.switch(from, &uplink, memory, net)
        };
        let texts = net.netplan_texts().map_err(Stop::Unknown)?;
        for edit in &memory.back {
            let text = texts.iter().find(|(path, _)| *path == edit.path).map_or("", |(_, t)| t.as_str());
            let Some(after) = edit.apply(text) else {
                return Err(blocked(
                    format!(
                        "`{}` was changed since the entry of `{uplink}` was taken out, so that it cannot be put back as it was",
                        edit.path.display()
                    ),
                    format!(
                        "put it back by hand from {} and take that file away; then run `netplan apply`",
                        self.ours().display()
                    ),
                ));
            };
            if sha256_hex(text.as_bytes()) != edit.edit.after {
                let (before, after) = (netplan::redacted(text), netplan::redacted(&after));
                change.fields.push(FieldDiff::text(edit.path.display().to_string(), Some(&before), Some(&after)));
                switch.edit.push(edit.clone());
            }
        }
        let mut gone = |path: PathBuf, text: Option<&str>| {
            if let Some(text) = text {
                change.fields.push(FieldDiff::text(path.display().to_string(), Some(text), None));
                switch.remove.push(path);
            }
        };
        gone(self.ours(), state.ours.as_ref().map(|(t, _)| t.as_str()));
        gone(CLOUD_INIT.into(), state.cloud_init_off.as_deref().filter(|t| memory.cloud_init && *t == CLOUD_INIT_TEXT));
        gone(self.drop_in(), state.drop_in.as_deref().filter(|_| memory.drop_in.is_some()));
        switch.remove.push(self.memory());
        change.notes.push(guarded(&switch));
        change.risks.insert(Risk::NetworkLoss);
        change.steps.push(Step::SwitchNetwork(switch));
        Ok(Diff::Change(change))
    }
}

#[cfg(test)]
mod tests;
