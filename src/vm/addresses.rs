//! Where VMs and other machines are: the addresses that someone knows of a network card. The guest's own agent knows
//! best; a lease was given out; a neighbour was heard. None of them proves that it is there now.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::{Answer, GuestAgent, Probe, Program};
use crate::types::MacAddress;

/// Who told an address, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AddressSource {
    /// The agent inside the guest.
    Agent,
    /// A lease that a network of libvirt's gave out.
    Lease,
    /// The host's neighbour table (ARP, neighbour discovery).
    Neighbour,
}

impl AddressSource {
    /// As it is shown.
    pub const fn word(self) -> &'static str {
        match self {
            AddressSource::Agent => "guest agent",
            AddressSource::Lease => "DHCP lease",
            AddressSource::Neighbour => "neighbour table",
        }
    }
}

/// An address, and who told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Who told it.
    pub source: AddressSource,
}

impl Address {
    /// Whether it means something beyond its own link.
    pub fn is_routable(&self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
            IpAddr::V6(ip) => !ip.is_loopback() && !link_local(ip) && !ip.is_unspecified(),
        }
    }
}

fn link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

/// An address that was heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Whose.
    pub mac: MacAddress,
    /// The address.
    pub ip: IpAddr,
    /// On which link of the host, where that is known.
    pub link: Option<String>,
    /// The name that came with it.
    pub hostname: Option<String>,
    /// Who told it.
    pub source: AddressSource,
}

/// What leases and neighbours tell, asked once.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// All of it.
    pub heard: Vec<Heard>,
    /// What could not be asked, and why.
    pub unknown: Vec<String>,
}

/// How the neighbour tables are asked for.
pub const NEIGHBOURS: [&str; 3] = ["-json", "neigh", "show"];

/// Where the dnsmasq of each of libvirt's networks writes its leases down.
const LEASES: &str = "/var/lib/libvirt/dnsmasq";

impl Told {
    /// Asks. `now` in seconds since 1970 leaves out what has run out by then.
    pub fn ask(probe: &dyn Probe, now: Option<i64>) -> Self {
        let mut told = Self::default();
        told.leases(probe, now);
        told.neighbours(probe);
        told
    }

    /// The addresses of a card, best source first.
    pub fn of(&self, mac: MacAddress) -> Vec<Address> {
        let mine = self.heard.iter().filter(|h| h.mac == mac);
        mine.map(|h| Address { ip: h.ip, source: h.source }).collect()
    }

    fn leases(&mut self, probe: &dyn Probe, now: Option<i64>) {
        let names = match probe.list(Path::new(LEASES)) {
            Ok(Answer::Value(names)) => names,
            Ok(Answer::Denied) => return self.unknown.push("leases: only root may look at them".to_owned()),
            Ok(Answer::Absent) => return,
            Err(e) => return self.unknown.push(format!("leases: {e}")),
        };
        for name in names {
            let name = name.to_string_lossy().into_owned();
            let Some(bridge) = name.strip_suffix(".status") else { continue };
            let text = match probe.text(&Path::new(LEASES).join(&name)) {
                Ok(Answer::Value(text)) => text,
                Ok(Answer::Denied) => {
                    self.unknown.push(format!("leases on {bridge}: only root may look at them"));
                    continue;
                }
                // It went with its network a moment ago.
                Ok(Answer::Absent) => continue,
                Err(e) => {
                    self.unknown.push(format!("leases on {bridge}: {e}"));
                    continue;
                }
            };
            // libvirt leaves an empty file where there is no lease.
            let leases: Vec<Lease> = match text.trim() {
                "" => Vec::new(),
                text => match serde_json::from_str(text) {
                    Ok(leases) => leases,
                    Err(e) => {
                        self.unknown.push(format!("leases on {bridge}: what is written down cannot be read: {e}"));
                        continue;
                    }
                },
            };
            let valid = |l: &Lease| now.is_none_or(|now| l.expiry == 0 || l.expiry > now);
            for lease in leases.into_iter().filter(valid) {
                match (lease.mac.and_then(|m| m.parse().ok()), lease.ip.parse()) {
                    (Some(mac), Ok(ip)) => self.heard.push(Heard {
                        mac,
                        ip,
                        link: Some(bridge.to_owned()),
                        hostname: lease.hostname,
                        source: AddressSource::Lease,
                    }),
                    _ => self.unknown.push(format!("leases on {bridge}: whose {} is", lease.ip)),
                }
            }
        }
    }

    fn neighbours(&mut self, probe: &dyn Probe) {
        let text = match probe.query(Program::Ip, &NEIGHBOURS) {
            Ok(Answer::Value(output)) if output.status == 0 => output.stdout,
            Ok(Answer::Value(output)) => return self.unknown.push(format!("neighbours: {}", output.stderr.trim())),
            Ok(_) => return self.unknown.push("neighbours: `ip` is not installed".to_owned()),
            Err(e) => return self.unknown.push(format!("neighbours: {e}")),
        };
        let all: Vec<Neighbour> = match text.trim() {
            "" => Vec::new(),
            text => match serde_json::from_str(text) {
                Ok(all) => all,
                Err(e) => return self.unknown.push(format!("neighbours: what `ip` says cannot be read: {e}")),
            },
        };
        self.heard.extend(all.into_iter().filter_map(|n| {
            // One that did not answer lately has no address on the link.
            let dead = n.state.iter().any(|s| s == "FAILED" || s == "INCOMPLETE");
            Some(Heard {
                mac: n.lladdr.filter(|_| !dead)?.parse().ok()?,
                ip: n.dst,
                link: Some(n.dev),
                hostname: None,
                source: AddressSource::Neighbour,
            })
        }));
    }
}

#[derive(Deserialize)]
struct Lease {
    #[serde(rename = "ip-address")]
    ip: String,
    #[serde(rename = "mac-address")]
    mac: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(rename = "expiry-time", default)]
    expiry: i64,
}

#[derive(Deserialize)]
struct Neighbour {
    dst: IpAddr,
    dev: String,
    lladdr: Option<String>,
    #[serde(default)]
    state: Vec<String>,
}

/// What the agent inside a guest says of its cards.
pub(super) fn of_agent(agent: &GuestAgent) -> BTreeMap<MacAddress, Vec<Address>> {
    let mut all: BTreeMap<MacAddress, Vec<Address>> = BTreeMap::new();
    for interface in &agent.interfaces {
        let Some(mac) = interface.mac.as_ref().and_then(|m| m.parse().ok()) else { continue };
        let ips = interface.addresses.iter().filter_map(|a| a.parse().ok());
        all.entry(mac).or_default().extend(ips.map(|ip| Address { ip, source: AddressSource::Agent }));
    }
    all
}

/// Each address once, from whoever knows best.
pub(super) fn join(first: Vec<Address>, then: Vec<Address>) -> Vec<Address> {
    let mut all: BTreeMap<IpAddr, AddressSource> = BTreeMap::new();
    for Address { ip, source } in first.into_iter().chain(then) {
        all.entry(ip).and_modify(|known| *known = source.min(*known)).or_insert(source);
    }
    all.into_iter().map(|(ip, source)| Address { ip, source }).collect()
}
