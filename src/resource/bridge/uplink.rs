//! Which link becomes the bridge's port, which one is, and why another cannot.

use super::{Bridge, Memory, Stop, UplinkChoice, blocked};
use crate::facts::{Link, LinkKind, Manager, NetworkFacts};
use crate::types::InterfaceName;

impl Bridge {
    /// The link that the manifest means, on a host where the bridge is not there yet.
    pub(super) fn find_uplink<'a>(&self, net: &'a NetworkFacts) -> Result<(InterfaceName, &'a Link), Stop> {
        let known = || {
            let cards = net.links.iter().filter(|(_, l)| l.kind != LinkKind::Other);
            let shown =
                |(n, l): (&String, &Link)| format!("{n} {}", l.permanent_mac.map_or(String::new(), |m| m.to_string()));
            format!("there are: {}", cards.map(shown).collect::<Vec<_>>().join(", "))
        };
        let name = match &self.uplink {
            UplinkChoice::Auto => net.uplink.clone().ok_or_else(|| {
                blocked(
                    "no link has a default route, so that `uplink: auto` means none",
                    format!("name the uplink; {}", known()),
                )
            })?,
            UplinkChoice::Name(name) => name.to_string(),
            UplinkChoice::Mac(mac) => {
                // A VLAN has the address of its card.
                let fits = |l: &&Link| l.permanent_mac == Some(*mac) && l.is_card();
                let all: Vec<&String> = net.links.iter().filter(|(_, l)| fits(l)).map(|(n, _)| n).collect();
                match all.as_slice() {
                    [one] => (*one).clone(),
                    [] => return Err(blocked(format!("no card has the address {mac}"), known())),
                    several => {
                        return Err(blocked(
                            format!("{} cards have the address {mac}", several.len()),
                            "name the uplink",
                        ));
                    }
                }
            }
        };
        let link = net.links.get(&name).ok_or_else(|| blocked(format!("there is no link `{name}`"), known()))?;
        let name = name.parse().map_err(|e| blocked(format!("{e}"), "rename the link"))?;
        Ok((name, link))
    }

    /// Everything about a link that keeps it from becoming the bridge's port.
    pub(super) fn unfit(&self, name: &InterfaceName, link: &Link, net: &NetworkFacts) -> Option<Stop> {
        let existing = format!("make the bridge `{}` yourself and write `existing: true`", self.name);
        match link.kind {
            LinkKind::Physical | LinkKind::Bond | LinkKind::Vlan => {}
            LinkKind::Wireless => {
                return Some(blocked(
                    format!("`{name}` is wireless; a bridge cannot go over it"),
                    "name a wired link as `uplink`",
                ));
            }
            LinkKind::Bridge => {
                return Some(blocked(
                    format!("`{name}` is a bridge already, and not gpuvm's"),
                    format!("use it: bridge: {{ name: {name}, existing: true }}"),
                ));
            }
            LinkKind::Other => {
                return Some(blocked(format!("`{name}` is no card, bond or VLAN"), "name another link as `uplink`"));
            }
        }
        if let Some(master) = &link.master {
            return Some(blocked(
                format!("`{name}` is a port of `{master}` already"),
                "use that one: name it as `uplink` (a bond), or with `existing: true` (a bridge)",
            ));
        }
        let managers: Vec<Manager> = link.managers.iter().copied().collect();
        match managers.as_slice() {
            [Manager::Netplan] => {}
            [Manager::Ifupdown] => {
                return Some(blocked(
                    format!("ifupdown configures `{name}` (/etc/network/interfaces), which gpuvm does not write"),
                    format!("move it to netplan (package netplan.io), or {existing}"),
                ));
            }
            [Manager::NetworkManager] => {
                return Some(blocked(
                    format!("NetworkManager configures `{name}`, which gpuvm does not write"),
                    format!(
                        "make the bridge with nmcli and write `existing: true`, or move `{name}` to netplan with `renderer: networkd`"
                    ),
                ));
            }
            [Manager::Networkd] => {
                return Some(blocked(
                    format!("systemd-networkd configures `{name}` by a file of its own, which gpuvm does not write"),
                    format!("move it to netplan, or {existing}"),
                ));
            }
            [] => {
                let why = if net.netplan_installed { "no netplan file names it" } else { "netplan is not installed" };
                return Some(blocked(
                    format!("nothing that gpuvm knows configures `{name}`: {why}"),
                    format!("write an entry for it in /etc/netplan (package netplan.io), or {existing}"),
                ));
            }
            several => {
                let names: Vec<&str> = several.iter().map(|m| m.name()).collect();
                return Some(blocked(
                    format!("`{name}` is configured by {} at once", names.join(" and ")),
                    "leave one of them, netplan if gpuvm is to make the bridge",
                ));
            }
        }
        (!net.netplan_installed)
            .then(|| blocked("netplan is not installed, although its files are there", "install netplan.io"))
    }
}

/// The link that a bridge was made over: a card by its address, since its name changes when a card is added.
pub(super) fn remembered<'a>(memory: &Memory, net: &'a NetworkFacts) -> Result<(InterfaceName, &'a Link), Stop> {
    let found = match memory.card {
        Some(mac) => net.links.iter().find(|(_, l)| l.is_card() && l.permanent_mac == Some(mac)),
        None => net.links.get_key_value(memory.uplink.as_str()),
    };
    let gone = || {
        let mac = memory.card.map_or(String::new(), |m| format!(" ({m})"));
        blocked(
            format!("the bridge's uplink `{}`{mac} is not there", memory.uplink),
            "put the card back, or take `bridge` out of the manifest",
        )
    };
    let (name, link) = found.ok_or_else(gone)?;
    Ok((name.parse().map_err(|e| blocked(format!("{e}"), "rename the link"))?, link))
}
