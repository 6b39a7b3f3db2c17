//! What an address is in its network: a machine's, or nobody's.

use std::net::IpAddr;

/// Whether an address is in the network of another one, whose prefix has so many bits.
pub fn ip_within(ip: IpAddr, network: IpAddr, prefix: u8) -> bool {
    match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let shift = 32u32.saturating_sub(prefix.into());
            u64::from(u32::from(a)) >> shift == u64::from(u32::from(b)) >> shift
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let shift = 128u32.saturating_sub(prefix.into());
            let cut = |ip: u128| ip.checked_shr(shift).unwrap_or(0);
            cut(a.into()) == cut(b.into())
        }
        _ => false,
    }
}

/// Whether no machine can have an address, whatever its network: unspecified, the loopback's, a group's, reserved
/// (RFC 6890, RFC 1112 for 240.0.0.0/4).
pub fn ip_no_machines(ip: IpAddr) -> bool {
    let reserved = match ip {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_broadcast() || v4.octets()[0] >= 240 || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unspecified(),
    };
    reserved || ip.is_loopback() || ip.is_multicast()
}

/// What an address means in a network of this prefix where it is no machine's own, with that network.
pub fn ip_meaning(ip: IpAddr, prefix: u8) -> Option<String> {
    match ip {
        // RFC 3021: with 31 bits, both are machines.
        IpAddr::V4(v4) if prefix <= 30 => {
            let rest = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let what = match u32::from(v4) & rest {
                0 => "the network's own address",
                part if part == rest => "the broadcast address",
                _ => return None,
            };
            Some(format!("{what} of {}", ip_network(ip, prefix)))
        }
        // RFC 4291, section 2.6.1: it means the routers of the network; RFC 6164: not so with 127 bits.
        IpAddr::V6(v6) if prefix <= 126 => {
            let rest = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            (u128::from(v6) & rest == 0).then(|| format!("the routers' address of {}", ip_network(ip, prefix)))
        }
        _ => None,
    }
}

/// The network that an address is in, as it is written: `10.9.0.0/24`.
pub fn ip_network(ip: IpAddr, prefix: u8) -> String {
    match ip {
        IpAddr::V4(v4) => {
            let rest = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            format!("{}/{prefix}", std::net::Ipv4Addr::from(u32::from(v4) & !rest))
        }
        IpAddr::V6(v6) => {
            let rest = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            format!("{}/{prefix}", std::net::Ipv6Addr::from(u128::from(v6) & !rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_its_prefix_says() {
        let within = |ip: &str, network: &str, prefix| ip_within(ip.parse().unwrap(), network.parse().unwrap(), prefix);
        assert!(within("10.9.0.255", "10.9.0.2", 24) && !within("10.9.1.0", "10.9.0.2", 24));
        assert!(within("8.8.8.8", "1.1.1.1", 0) && !within("10.9.0.3", "10.9.0.2", 32));
        assert!(within("fd00::1", "fd00::2", 64) && !within("fd01::1", "fd00::2", 64) && within("::1", "fd00::2", 0));
        assert!(!within("10.9.0.1", "fd00::2", 0));
    }

    #[test]
    fn the_ends_of_a_network_are_nobodys() {
        let meaning = |ip: &str, prefix| ip_meaning(ip.parse().unwrap(), prefix).unwrap_or_default();
        assert_eq!(meaning("10.9.0.0", 24), "the network's own address of 10.9.0.0/24");
        assert_eq!(meaning("10.9.0.127", 25), "the broadcast address of 10.9.0.0/25");
        assert_eq!(meaning("fd09::", 64), "the routers' address of fd09::/64");
        for (ip, prefix) in [("10.9.0.127", 24), ("10.9.0.0", 31), ("10.9.0.1", 32), ("fd09::1", 64), ("fd09::", 127)] {
            assert_eq!(meaning(ip, prefix), "", "{ip}/{prefix}");
        }
    }
}
