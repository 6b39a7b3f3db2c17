//! The addresses that guests are given against what this host knows of its networks: the host's own would take it off the
//! network, and its gateway's with it.

use std::net::IpAddr;

use super::Desired;
use super::vms::finding;
use crate::facts::{HostFacts, Known};
use crate::manifest::Manifest;
use crate::plan::Severity;

/// The code of an address that the host reaches others by. A VM that is the router already has it for good: it refuses
/// plans that make or start the VM, as what else keeps a VM from starting.
pub const GATEWAY: &str = "gateway-address";

pub(super) fn check(m: &Manifest, facts: &HostFacts, desired: &mut Desired) {
    let Known::Value(network) = &facts.network else { return };
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let address = vm.network.as_ref().and_then(|nic| nic.address.as_ref());
        let ip = address.and_then(|a| a.as_str().split('/').next()?.parse::<IpAddr>().ok());
        let Some(ip) = ip else { continue };
        let (severity, code, message) = match (network.link_with(ip), network.reached_by(ip), network.nobodys(ip)) {
            (Some(link), ..) => (
                Severity::Error,
                "host-address",
                format!(
                    "{ip} is this host's own, on {link}: with the VM on the network, nobody reaches the host reliably"
                ),
            ),
            (None, Some(to), _) => {
                // A guest may be the router to somewhere; that the host reaches everything by it, nobody wants by mistake.
                let (severity, what) = match to {
                    "default" => (Severity::Error, "everything else"),
                    to => (Severity::Warning, to),
                };
                let message = format!("{ip} is the gateway by which this host reaches {what}: it would lose it");
                (severity, GATEWAY, message)
            }
            (None, None, Some(why)) => (Severity::Error, "no-address", format!("{ip} is no guest's address: {why}")),
            (None, None, None) => continue,
        };
        let place = format!("vms.{name}.network.address");
        let help = "give it one that is free, which this looks for: gpuvm ip check --free 1";
        desired.findings.push(finding(severity, code, &place, message, help));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Address, Link, NetworkFacts, Route};

    fn said(address: &str) -> String {
        let own = Address {
            address: "10.9.0.2".parse().unwrap(),
            prefix: 24,
            dynamic: false,
            scope: "global".to_owned(),
            temporary: false,
        };
        let link = Link { addresses: vec![own], ..Link::default() };
        let via = Some("10.9.0.1".parse().unwrap());
        let (to, link_of) = ("default".to_owned(), "br0".to_owned());
        let route = Route { to, v6: false, via, link: link_of, metric: 100, on_link: false };
        let links = [("br0".to_owned(), link)].into();
        let mut facts = crate::resource::tests::facts();
        facts.network = Known::Value(NetworkFacts { links, routes: vec![route], ..NetworkFacts::default() });
        let text = format!(
            "version: 1\nbridge: {{ name: br0, existing: true }}\n\
             vms: {{ a: {{ cpus: 1, memory: 1GiB, network: {{ name: br0, address: {address} }} }} }}\n"
        );
        let mut desired = Desired::default();
        check(&crate::manifest::parse("host.yaml", &text).unwrap(), &facts, &mut desired);
        desired.findings.iter().map(|f| format!("{:?} {} {}: {}", f.severity, f.code, f.place, f.message)).collect()
    }

    #[test]
    fn a_guest_has_none_of_the_hosts_addresses() {
        let place = "vms.a.network.address";
        assert!(
            said("10.9.0.2/24")
                .starts_with(&format!("Error host-address {place}: 10.9.0.2 is this host's own, on br0"))
        );
        // Whatever prefix it is written with.
        assert!(said("10.9.0.2/16").starts_with("Error host-address"));
        assert!(said("10.9.0.1/24").starts_with(&format!("Error gateway-address {place}: 10.9.0.1 is the gateway")));
        assert!(said("10.9.0.255/16").contains("the broadcast address of 10.9.0.0/24, which br0 is in"));
        assert_eq!(said("10.9.0.7/24"), "");
        assert_eq!(said("192.168.7.2/24"), "", "of a network that the host is not in nothing is known");
    }
}
