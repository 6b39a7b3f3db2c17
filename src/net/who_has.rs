//! The frames that ask who has an address, and what an answer looks like: an ARP probe (RFC 5227, section 1.1: its sender
//! has no address, so that no cache learns anything from it) and a neighbour solicitation as in duplicate address
//! detection (RFC 4862, section 5.4.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::MacAddress;

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A frame that asks on a link who has an address. `mac` is the link's own.
pub fn question(mac: MacAddress, ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => arp_probe(mac, ip),
        IpAddr::V6(ip) => solicitation(mac, ip),
    }
}

fn arp_probe(mac: MacAddress, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac.0);
    frame.extend(ARP);
    // Ethernet, IPv4, six and four bytes, a request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

fn solicitation(mac: MacAddress, ip: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = ip.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(ip.octets());
    let sum = checksum(Ipv6Addr::UNSPECIFIED, group, &message);
    message.splice(2..4, sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0xff, a, b, c];
    frame.extend(mac.0);
    frame.extend(IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    // A hop limit of 255 says that no router has passed it on.
    frame.extend([ICMPV6, 255]);
    frame.extend(Ipv6Addr::UNSPECIFIED.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// The checksum of ICMPv6, over its pseudo-header too (RFC 8200, section 8.1).
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes: Vec<u8> = from.octets().into_iter().chain(to.octets()).collect();
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, ICMPV6]);
    bytes.extend(message);
    let words = bytes.chunks(2).map(|w| match w {
        [a, b] => u32::from(u16::from_be_bytes([*a, *b])),
        [a] => u32::from(u16::from_be_bytes([*a, 0])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whose frame tells that an address is taken: by an answer, by anything else that ARP sends in its name, or by someone
/// who is about to take it. `None` for a frame that says nothing of the kind, and for the link's own.
pub fn holder(frame: &[u8], own: MacAddress) -> Option<(IpAddr, MacAddress)> {
    let source = mac(frame.get(6..12)?)?;
    if source == own {
        return None;
    }
    let kind: [u8; 2] = frame.get(12..14)?.try_into().ok()?;
    match kind {
        ARP => {
            let body = frame.get(14..42)?;
            if body.get(..6)? != [0, 1, 8, 0, 6, 4] {
                return None;
            }
            let sender = mac(body.get(8..14)?)?;
            let [from, to] = [body.get(14..18)?, body.get(24..28)?].map(v4);
            match (from?, to?) {
                // Another one's probe.
                (Ipv4Addr::UNSPECIFIED, to) => Some((to.into(), sender)),
                (from, _) => Some((from.into(), sender)),
            }
        }
        IPV6 => {
            let packet = frame.get(14..)?;
            let message = packet.get(40..)?;
            if packet.get(6..8)? != [ICMPV6, 255] {
                return None;
            }
            let target = Ipv6Addr::from(<[u8; 16]>::try_from(message.get(8..24)?).ok()?);
            let from = Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?);
            match *message.first()? {
                ADVERTISEMENT => Some((target.into(), source)),
                // Another one that looks whether it may take it.
                SOLICITATION if from.is_unspecified() => Some((target.into(), source)),
                _ => None,
            }
        }
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<MacAddress> {
    Some(MacAddress(bytes.try_into().ok()?))
}

fn v4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    fn arp(operation: u8, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut frame = [OWN.0.as_slice(), &OTHER.0, &ARP, &[0, 1, 8, 0, 6, 4, 0, operation], &OTHER.0, &from].concat();
        frame.extend([OWN.0.as_slice(), &to].concat());
        frame
    }

    #[test]
    fn an_answer_a_claim_and_a_probe_of_another_all_take_an_address() {
        let taken = |frame: &[u8]| holder(frame, OWN).map(|(ip, mac)| (ip.to_string(), mac));
        let at = |ip: &str| Some((ip.to_owned(), OTHER));
        assert_eq!(taken(&arp(2, [10, 9, 0, 7], [0, 0, 0, 0])), at("10.9.0.7"), "an answer");
        assert_eq!(taken(&arp(1, [10, 9, 0, 7], [10, 9, 0, 7])), at("10.9.0.7"), "a claim");
        assert_eq!(taken(&arp(1, [0; 4], [10, 9, 0, 8])), at("10.9.0.8"), "a probe");
        assert_eq!(holder(&question(OWN, [10, 9, 0, 8].into()), OWN), None, "our own question");
        for end in 0..42 {
            assert_eq!(taken(&arp(2, [10, 9, 0, 7], [0; 4])[..end]), None, "cut off at {end}");
        }
    }

    #[test]
    fn a_question_is_what_the_standards_say() {
        let frame = question(OWN, [10, 9, 0, 8].into());
        assert_eq!((frame.len(), &frame[..6], &frame[28..32]), (42, &[0xff; 6][..], &[0; 4][..]));
        assert_eq!(&frame[38..], [10, 9, 0, 8]);
        let ip: Ipv6Addr = "fd00::12:3456".parse().unwrap();
        let frame = question(OWN, ip.into());
        assert_eq!(&frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(&frame[38..54], "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap().octets());
        // A sum over a message with its own sum in it is nothing.
        let group = Ipv6Addr::from(<[u8; 16]>::try_from(&frame[38..54]).unwrap());
        assert_eq!(checksum(Ipv6Addr::UNSPECIFIED, group, &frame[54..]), 0);
        assert_eq!(holder(&question(OTHER, ip.into()), OWN), Some((ip.into(), OTHER)), "another's probe");
        let mut answer = frame.clone();
        answer[6..12].copy_from_slice(&OTHER.0);
        answer[54] = ADVERTISEMENT;
        answer[22] = 0xfe;
        assert_eq!(holder(&answer, OWN), Some((ip.into(), OTHER)));
        answer[21] = 64;
        assert_eq!(holder(&answer, OWN), None, "it came from beyond a router");
    }
}
