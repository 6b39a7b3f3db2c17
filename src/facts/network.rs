//! The network as it is now: links, addresses, routes, name servers, netplan's files, and who configures each link.
//! Connections of NetworkManager are never read: they hold passwords; their names are enough.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Known;
use super::os::{exists, names, text};
use crate::host::{Answer, Probe, Program};
use crate::net::netplan::{self, LinkId};
use crate::types::{MacAddress, PciAddress};

/// The network as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkFacts {
    /// Links by name.
    pub links: BTreeMap<String, Link>,
    /// Routes of the main table, IPv4 and IPv6.
    pub routes: Vec<Route>,
    /// Name servers that the host uses; its own stub is left out.
    pub name_servers: Vec<IpAddr>,
    /// The link of the best default route, IPv4 before IPv6.
    pub uplink: Option<String>,
    /// Every netplan file that counts, in merge order.
    pub netplan: Vec<NetplanFile>,
    /// `networkd` or `NetworkManager`, where netplan's files say so for all links.
    pub renderer: Option<String>,
    /// Whether netplan itself is installed.
    pub netplan_installed: bool,
    /// Whether cloud-init is installed, which writes netplan's files again.
    pub cloud_init: bool,
    /// IPv4 leases of systemd-networkd.
    pub leases: Vec<Lease>,
}

/// An IPv4 lease of systemd-networkd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// The number that the client named its link by (IAID).
    pub association: u32,
}

/// A program that configures a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    /// netplan with systemd-networkd as renderer.
    Netplan,
    /// NetworkManager, by itself or as netplan's renderer.
    NetworkManager,
    /// /etc/network/interfaces.
    Ifupdown,
    /// systemd-networkd with files of its own.
    Networkd,
}

impl Manager {
    /// As it is written for people.
    pub const fn name(self) -> &'static str {
        match self {
            Manager::Netplan => "netplan",
            Manager::NetworkManager => "NetworkManager",
            Manager::Ifupdown => "ifupdown",
            Manager::Networkd => "systemd-networkd",
        }
    }
}

/// One netplan file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetplanFile {
    /// Its path.
    pub path: PathBuf,
    /// Its text, which may hold passwords and is never written down.
    #[serde(skip)]
    pub text: Known<String>,
}

/// What kind of link it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A network card.
    Physical,
    /// Wireless: cannot be a bridge's port.
    Wireless,
    /// A bridge.
    Bridge,
    /// A bond.
    Bond,
    /// A VLAN.
    Vlan,
    /// The loopback, a tap, a tunnel, a half of a pair.
    #[default]
    Other,
}

/// One link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// What it is.
    pub kind: LinkKind,
    /// Ethernet address now.
    pub mac: Option<MacAddress>,
    /// The address that the hardware came with; `mac` where the kernel names no other.
    pub permanent_mac: Option<MacAddress>,
    /// Whether it is switched on (the flag `UP`).
    pub up: bool,
    /// `UP`, `DOWN`, `UNKNOWN`, … (operational state)
    pub state: String,
    /// The bridge or bond that it is a port of.
    pub master: Option<String>,
    /// The link below a VLAN.
    pub parent: Option<String>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// The PCI function that it is a port of.
    pub pci: Option<PciAddress>,
    /// The driver.
    pub driver: Option<String>,
    /// Who configures it, as far as files tell.
    pub managers: BTreeSet<Manager>,
}

/// One address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Without prefix length.
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
    /// Whether a lease or a router advertisement gave it.
    pub dynamic: bool,
    /// `global`, `link`, `host`.
    pub scope: String,
    /// A temporary address of IPv6 privacy extensions.
    pub temporary: bool,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// `default`, or a prefix.
    pub to: String,
    /// Whether it is one of IPv6.
    pub v6: bool,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The link.
    pub link: String,
    /// Metric.
    pub metric: u32,
    /// Whether the next hop counts as reachable although no prefix of the link holds it.
    pub on_link: bool,
}

impl NetworkFacts {
    /// The ports of a bridge or bond.
    pub fn ports<'a>(&'a self, master: &'a str) -> impl Iterator<Item = (&'a String, &'a Link)> {
        self.links.iter().filter(move |(_, l)| l.master.as_deref() == Some(master))
    }
    /// How netplan sees a link.
    pub fn link_id<'a>(&self, name: &'a str) -> Option<LinkId<'a>> {
        let link = self.links.get(name)?;
        Some(LinkId { name, mac: link.permanent_mac, driver: link.driver.clone(), physical: link.is_card() })
    }
    /// Every link as netplan sees it.
    pub fn link_ids(&self) -> Vec<LinkId<'_>> {
        self.links.keys().filter_map(|name| self.link_id(name)).collect()
    }
    /// netplan's files with their texts; else the first that could not be read, with the reason.
    pub fn netplan_texts(&self) -> Result<Vec<(PathBuf, String)>, String> {
        self.netplan
            .iter()
            .map(|f| match &f.text {
                Known::Value(text) => Ok((f.path.clone(), text.clone())),
                Known::Unknown(why) => Err(format!("`{}` could not be read: {why}", f.path.display())),
            })
            .collect()
    }
}

impl Link {
    /// A card, wired or not.
    pub fn is_card(&self) -> bool {
        matches!(self.kind, LinkKind::Physical | LinkKind::Wireless)
    }
}

/// Reads the network; what `ip` does not tell makes the whole unknown.
pub(super) fn network(probe: &dyn Probe) -> Known<NetworkFacts> {
    match collect(probe) {
        Ok(facts) => Known::Value(facts),
        Err(why) => Known::Unknown(why),
    }
}

fn collect(probe: &dyn Probe) -> Result<NetworkFacts, String> {
    let mut facts = NetworkFacts {
        links: links(&ask(probe, &["-json", "address"])?)?,
        routes: routes(&ask(probe, &["-json", "route", "show", "table", "main"])?, false)?,
        ..NetworkFacts::default()
    };
    facts.routes.extend(routes(&ask(probe, &["-json", "-6", "route"])?, true)?);
    for (name, link) in &mut facts.links {
        look_at(probe, name, link);
    }
    let best = |v6| {
        let fitting = facts.routes.iter().filter(move |r| r.to == "default" && r.v6 == v6);
        fitting.min_by_key(|r| r.metric).map(|r| r.link.clone())
    };
    facts.uplink = best(false).or_else(|| best(true));
    facts.name_servers = name_servers(probe);
    facts.netplan = netplan_files(probe);
    facts.netplan_installed = ["/usr/sbin/netplan", "/sbin/netplan"].iter().any(|p| exists(probe, p));
    facts.cloud_init = exists(probe, "/etc/cloud");
    facts.leases = leases(probe);
    mark_managers(probe, &mut facts);
    Ok(facts)
}

/// `CLIENTID` is `ff`, four bytes of association, and the machine's own identity, which is not looked at (RFC 4361).
fn leases(probe: &dyn Probe) -> Vec<Lease> {
    const FOLDER: &str = "/run/systemd/netif/leases";
    let lease = |name: String| {
        let text = text(probe, &format!("{FOLDER}/{name}"));
        let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        let address = value("ADDRESS")?.parse().ok()?;
        let id = value("CLIENTID")?.strip_prefix("ff")?;
        Some(Lease { address, association: u32::from_str_radix(id.get(..8)?, 16).ok()? })
    };
    names(probe, FOLDER).into_iter().filter_map(lease).collect()
}

fn ask(probe: &dyn Probe, args: &[&str]) -> Result<String, String> {
    match probe.query(Program::Ip, args) {
        Ok(Answer::Value(output)) if output.status == 0 => Ok(output.stdout),
        Ok(Answer::Value(output)) => Err(format!("`ip {}` failed: {}", args.join(" "), output.stderr.trim())),
        Ok(Answer::Absent) => Err("`ip` is not installed (package iproute2)".to_owned()),
        Ok(Answer::Denied) => Err("`ip` may not be run (not root)".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

#[derive(Deserialize)]
struct IpLink {
    #[serde(default)]
    ifindex: u32,
    ifname: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    operstate: String,
    master: Option<String>,
    link: Option<String>,
    #[serde(default)]
    link_type: String,
    address: Option<String>,
    permaddr: Option<String>,
    #[serde(default)]
    addr_info: Vec<IpAddressInfo>,
}

#[derive(Deserialize)]
struct IpAddressInfo {
    local: Option<IpAddr>,
    #[serde(default)]
    prefixlen: u8,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    dynamic: bool,
    #[serde(default)]
    temporary: bool,
}

#[derive(Deserialize)]
struct IpRoute {
    #[serde(default)]
    dst: String,
    gateway: Option<IpAddr>,
    via: Option<IpVia>,
    dev: Option<String>,
    #[serde(default)]
    metric: u32,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    nexthops: Vec<IpRoute>,
}

#[derive(Deserialize)]
struct IpVia {
    host: Option<IpAddr>,
}

/// `ip` prints nothing at all for an empty list in some versions.
fn list<T: serde::de::DeserializeOwned>(json: &str, what: &str) -> Result<Vec<T>, String> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    // `ip -json` pads with empty objects where a filter hid a link.
    let all: Vec<serde_json::Value> = serde_json::from_str(json).map_err(|e| format!("`ip` {what}: {e}"))?;
    all.into_iter()
        .filter(|v| v.as_object().is_some_and(|o| !o.is_empty()))
        .map(|v| serde_json::from_value(v).map_err(|e| format!("`ip` {what}: {e}")))
        .collect()
}

fn links(json: &str) -> Result<BTreeMap<String, Link>, String> {
    let link = |l: IpLink| {
        let ether = l.link_type == "ether";
        let mac = l.address.filter(|_| ether).and_then(|m| m.parse().ok());
        let addresses = l.addr_info.into_iter().filter_map(|a| {
            Some(Address {
                address: a.local?,
                prefix: a.prefixlen,
                dynamic: a.dynamic,
                scope: a.scope,
                temporary: a.temporary,
            })
        });
        let facts = Link {
            index: l.ifindex,
            mac,
            permanent_mac: l.permaddr.and_then(|m| m.parse().ok()).or(mac),
            up: l.flags.iter().any(|f| f == "UP"),
            state: l.operstate,
            master: l.master,
            parent: l.link,
            addresses: addresses.collect(),
            ..Link::default()
        };
        (l.ifname, facts)
    };
    Ok(list::<IpLink>(json, "address")?.into_iter().map(link).collect())
}

fn routes(json: &str, v6: bool) -> Result<Vec<Route>, String> {
    let mut all = Vec::new();
    for route in list::<IpRoute>(json, "route")? {
        let (to, metric) = (route.dst.clone(), route.metric);
        let hops = if route.nexthops.is_empty() { vec![route] } else { route.nexthops };
        for hop in hops {
            let Some(link) = hop.dev else { continue };
            all.push(Route {
                to: to.clone(),
                v6,
                via: hop.gateway.or(hop.via.and_then(|v| v.host)),
                link,
                metric,
                on_link: hop.flags.iter().any(|f| f == "onlink"),
            });
        }
    }
    Ok(all)
}

/// What sysfs tells of a link.
fn look_at(probe: &dyn Probe, name: &str, link: &mut Link) {
    let at = format!("/sys/class/net/{name}");
    let target = |path: String| probe.link(path.as_ref()).ok().and_then(Answer::value);
    let device = target(format!("{at}/device")).is_some();
    let uevent = text(probe, &format!("{at}/uevent"));
    link.kind = match uevent.lines().find_map(|l| l.strip_prefix("DEVTYPE=")) {
        Some("bridge") => LinkKind::Bridge,
        Some("bond") => LinkKind::Bond,
        Some("vlan") => LinkKind::Vlan,
        Some("wlan") => LinkKind::Wireless,
        _ if exists(probe, &format!("{at}/phy80211")) || exists(probe, &format!("{at}/wireless")) => LinkKind::Wireless,
        _ if exists(probe, &format!("{at}/bridge")) => LinkKind::Bridge,
        _ if device => LinkKind::Physical,
        _ => LinkKind::Other,
    };
    link.pci = target(at.clone()).and_then(|t| t.iter().rev().find_map(|part| part.to_string_lossy().parse().ok()));
    link.driver =
        target(format!("{at}/device/driver")).and_then(|t| t.file_name().map(|n| n.to_string_lossy().into_owned()));
}

/// From systemd-resolved's list where it runs, since resolv.conf(5) then names its stub only.
fn name_servers(probe: &dyn Probe) -> Vec<IpAddr> {
    let resolved = text(probe, "/run/systemd/resolve/resolv.conf");
    let lists = if resolved.is_empty() { text(probe, "/etc/resolv.conf") } else { resolved };
    let mut all: Vec<IpAddr> = Vec::new();
    for line in lists.lines() {
        let address = line.trim().strip_prefix("nameserver").map(str::trim).and_then(|a| a.parse::<IpAddr>().ok());
        if let Some(address) = address.filter(|a| !a.is_loopback() && !all.contains(a)) {
            all.push(address);
        }
    }
    all
}

/// netplan's files in merge order: by name, whichever folder they are in; a name in /run hides the one in /etc, which
/// hides the one in /lib (netplan(5)).
fn netplan_files(probe: &dyn Probe) -> Vec<NetplanFile> {
    let mut by_name: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in ["/lib/netplan", "/etc/netplan", "/run/netplan"] {
        for name in names(probe, folder).into_iter().filter(|n| n.ends_with(".yaml")) {
            by_name.insert(name.clone(), PathBuf::from(folder).join(name));
        }
    }
    let read = |path: PathBuf| {
        let text = match probe.text(&path) {
            Ok(Answer::Value(text)) => Known::Value(text),
            Ok(Answer::Denied) => Known::Unknown("not root".to_owned()),
            Ok(Answer::Absent) => Known::Unknown("it is a link to nowhere".to_owned()),
            Err(e) => Known::Unknown(e.to_string()),
        };
        NetplanFile { path, text }
    };
    by_name.into_values().map(read).collect()
}

fn mark_managers(probe: &dyn Probe, facts: &mut NetworkFacts) {
    let config = facts.netplan_texts().ok().and_then(|files| netplan::Config::read(&files).ok());
    facts.renderer = config.as_ref().and_then(|c| c.renderer().map(str::to_owned));
    let ifupdown = if ["/usr/sbin/ifup", "/sbin/ifup"].iter().any(|p| exists(probe, p)) {
        ifupdown_links(probe)
    } else {
        BTreeSet::new()
    };
    let own_files = networkd_files(probe);
    let mut found: Vec<(String, BTreeSet<Manager>)> = Vec::new();
    for (name, link) in facts.links.iter().filter(|(_, l)| l.kind != LinkKind::Other) {
        let mut managers = BTreeSet::new();
        if let (Some(config), Some(id)) = (&config, facts.link_id(name)) {
            for entry in config.entries_of(&id) {
                managers.insert(match config.renderer_of(&entry) {
                    Some("NetworkManager") => Manager::NetworkManager,
                    _ => Manager::Netplan,
                });
            }
        }
        if ifupdown.contains(name) {
            managers.insert(Manager::Ifupdown);
        }
        let manages = |device: &str| device.lines().any(|l| l.starts_with("managed=") && l != "managed=false");
        if manages(&text(probe, &format!("/run/NetworkManager/devices/{}", link.index)))
            || (managers.is_empty() && !names(probe, "/etc/NetworkManager/system-connections").is_empty())
        {
            managers.insert(Manager::NetworkManager);
        }
        let state = text(probe, &format!("/run/systemd/netif/links/{}", link.index));
        let own = match state.lines().find_map(|l| l.strip_prefix("NETWORK_FILE=")) {
            Some(file) => !file.contains("/10-netplan-"),
            None => !managers.contains(&Manager::Netplan) && own_files.iter().any(|t| names_link(t, name, link)),
        };
        if own {
            managers.insert(Manager::Networkd);
        }
        found.push((name.clone(), managers));
    }
    for (name, managers) in found {
        if let Some(link) = facts.links.get_mut(&name) {
            link.managers = managers;
        }
    }
}

/// The links that interfaces(5) and its usual folder configure, but the loopback.
fn ifupdown_links(probe: &dyn Probe) -> BTreeSet<String> {
    const FOLDER: &str = "/etc/network/interfaces.d";
    let files = names(probe, FOLDER).into_iter().map(|n| format!("{FOLDER}/{n}"));
    let all = std::iter::once("/etc/network/interfaces".to_owned()).chain(files);
    let texts: Vec<String> = all.map(|path| text(probe, &path)).collect();
    let lines = texts.iter().flat_map(|t| t.lines());
    let stanzas = lines.filter_map(|l| {
        let mut words = l.split_whitespace();
        (words.next() == Some("iface")).then(|| words.next()).flatten()
    });
    // `bridge_ports` of a stanza belong to ifupdown too.
    let ports = texts.iter().flat_map(|t| t.lines()).filter_map(|l| {
        let line = l.trim();
        line.strip_prefix("bridge_ports")
            .or_else(|| line.strip_prefix("bridge-ports"))
            .or_else(|| line.strip_prefix("bond-slaves"))
    });
    stanzas.chain(ports.flat_map(str::split_whitespace)).filter(|n| *n != "lo").map(str::to_owned).collect()
}

/// Texts of systemd.network(5) files that netplan did not write.
fn networkd_files(probe: &dyn Probe) -> Vec<String> {
    let folders = ["/etc/systemd/network", "/run/systemd/network"];
    folders
        .iter()
        .flat_map(|f| names(probe, f).into_iter().map(move |n| (f, n)))
        .filter(|(_, n)| n.ends_with(".network") && !n.starts_with("10-netplan-"))
        .map(|(f, n)| text(probe, &format!("{f}/{n}")))
        .collect()
}

/// Whether the `[Match]` of a systemd.network(5) file names a link.
fn names_link(file: &str, name: &str, link: &Link) -> bool {
    let mut section = "";
    let mut fits = false;
    for line in file.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| section == "[Match]") {
            fits |= match key.trim() {
                "Name" => value.split_whitespace().any(|glob| netplan::glob(glob, name)),
                "MACAddress" | "PermanentMACAddress" => value
                    .split_whitespace()
                    .any(|m| m.parse().ok().is_some_and(|m| link.mac == Some(m) || link.permanent_mac == Some(m))),
                _ => false,
            };
        }
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_as_ip_prints_them() {
        let json = r#"[{},{"ifindex":2,"ifname":"enp5s0","flags":["BROADCAST","MULTICAST","UP","LOWER_UP"],"mtu":1500,
            "operstate":"UP","link_type":"ether","address":"52:54:00:00:00:01","permaddr":"52:54:00:00:00:02","addr_info":[
            {"family":"inet","local":"10.0.2.15","prefixlen":24,"scope":"global","dynamic":true,"valid_life_time":86000},
            {"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"}]},
            {"ifindex":3,"ifname":"bond0.7","link":"bond0","flags":[],"link_type":"ether","addr_info":[]}]"#;
        let all = links(json).unwrap();
        let card = &all["enp5s0"];
        assert_eq!(card.permanent_mac.unwrap().to_string(), "52:54:00:00:00:02");
        assert!(card.up && card.addresses[0].dynamic && card.addresses[1].scope == "link");
        assert_eq!(all["bond0.7"].parent.as_deref(), Some("bond0"));
        assert!(links("").unwrap().is_empty());
        assert!(links("no").is_err());
    }

    #[test]
    fn routes_with_several_hops_and_hops_of_the_other_family() {
        let json = r#"[{"dst":"default","gateway":"10.0.2.2","dev":"enp5s0","protocol":"dhcp","metric":100,"flags":["onlink"]},
            {"dst":"default","metric":50,"flags":[],"nexthops":[{"gateway":"10.1.0.1","dev":"a","weight":1,"flags":[]},{"via":{"family":"inet6","host":"fe80::1"},"dev":"b","flags":[]}]}]"#;
        let all = routes(json, false).unwrap();
        assert!(all[0].on_link && all[0].metric == 100);
        assert_eq!(all.iter().map(|r| r.link.as_str()).collect::<Vec<_>>(), ["enp5s0", "a", "b"]);
        assert_eq!(all[2].via, Some("fe80::1".parse().unwrap()));
    }

    #[test]
    fn a_network_file_names_links_by_glob_or_mac() {
        let link = Link { mac: "52:54:00:00:00:01".parse().ok(), ..Link::default() };
        assert!(names_link("[Match]\nName=en* eth0\n[Network]\nDHCP=yes\n", "enp5s0", &link));
        assert!(names_link("[Match]\nMACAddress=52:54:00:00:00:01\n", "x", &link));
        assert!(!names_link("[Match]\nName=wl*\n[Network]\nName=enp5s0\n", "enp5s0", &link));
    }
}
