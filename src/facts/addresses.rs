//! Whose an address is, as far as the host itself knows without asking anyone.

use std::net::IpAddr;

use super::NetworkFacts;
use crate::types::{ip_meaning, ip_no_machines, ip_within};

impl NetworkFacts {
    /// The link that has this address.
    pub fn link_with(&self, ip: IpAddr) -> Option<&str> {
        let has = self.links.iter().find(|(_, link)| link.addresses.iter().any(|a| a.address == ip));
        has.map(|(name, _)| name.as_str())
    }

    /// Where packets go by way of this address: `default`, or a prefix.
    pub fn reached_by(&self, ip: IpAddr) -> Option<&str> {
        let mut by = self.routes.iter().filter(|r| r.via == Some(ip)).map(|r| r.to.as_str());
        let first = by.clone().next()?;
        Some(by.find(|to| *to == "default").unwrap_or(first))
    }

    /// Why an address can be no machine's own.
    pub fn nobodys(&self, ip: IpAddr) -> Option<String> {
        if ip_no_machines(ip) {
            return Some("no machine on a network can have it".to_owned());
        }
        let all = self.links.iter().flat_map(|(name, link)| link.addresses.iter().map(move |a| (name, a)));
        let mut of = all.filter(|(_, a)| ip_within(ip, a.address, a.prefix));
        of.find_map(|(name, a)| Some(format!("{}, which {name} is in", ip_meaning(ip, a.prefix)?)))
    }
}
