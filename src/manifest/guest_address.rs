//! The address that a guest is given, by itself: whether a machine can have it, and whether its gateway is to be reached.

use std::net::IpAddr;

use super::NicEntry;
use crate::types::{ip_meaning, ip_network, ip_no_machines, ip_within};

/// What is wrong with a field of `network`.
pub(super) struct Wrong {
    pub field: &'static str,
    pub message: String,
    pub label: String,
    pub help: String,
}

/// Every mistake. An address and a gateway of two families are told of by whoever asks.
pub(super) fn mistakes(nic: &NicEntry) -> Vec<Wrong> {
    let Some((address, (ip, prefix))) = nic.address.as_ref().and_then(|a| Some((a, parsed(a.as_str())?))) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    let mut wrong = |field, message, label: String, help: String| all.push(Wrong { field, message, label, help });
    let no_machine = |ip: IpAddr| match ip_no_machines(ip) {
        true => Some("no machine on a network can have it".to_owned()),
        false => ip_meaning(ip, prefix),
    };
    if let Some(what) = no_machine(ip) {
        let help = "write one that a machine can have; `gpuvm ip check` tells whether it is free";
        wrong("address", format!("`{address}` is no guest's address"), what, help.to_owned());
    }
    let gateway = nic.gateway.as_ref().and_then(|g| g.as_str().parse::<IpAddr>().ok());
    let Some(gateway) = gateway.filter(|g| g.is_ipv4() == ip.is_ipv4()) else { return all };
    // RFC 4861, section 6.1.2: routers are known by an address of the link, whatever the prefix.
    let of_the_link = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
    // An address that is routed to the guest alone has its router elsewhere, on the same link.
    let alone = prefix == if ip.is_ipv4() { 32 } else { 128 };
    let network = ip_network(ip, prefix);
    let message = format!("`{gateway}` is no gateway for `{address}`");
    if gateway == ip {
        wrong("gateway", message, "the guest itself".to_owned(), "write the address of the router".to_owned());
    } else if let Some(what) = no_machine(gateway) {
        wrong("gateway", message, what, "write the address of the router".to_owned());
    } else if !of_the_link && !alone && !ip_within(gateway, ip, prefix) {
        let help = "the guest would not reach it: write the network's own length after the address, or its router";
        wrong("gateway", message, format!("outside {network}"), help.to_owned());
    }
    all
}

/// An address with the length of its prefix.
fn parsed(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    Some((ip.parse().ok()?, prefix.parse().ok()?))
}
