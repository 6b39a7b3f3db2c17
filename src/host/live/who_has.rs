//! Asks a link who has addresses: frames of our own on a packet socket (packet(7)), which needs CAP_NET_RAW.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

use crate::host::{Answer, HostError};
use crate::net::who_has::{holder, question};
use crate::types::MacAddress;

/// How often each is asked: one frame may be lost, and a switch port may just be coming up.
const QUESTIONS: u32 = 3;
/// How far apart, where there is time for that.
const APART: Duration = Duration::from_secs(1);

/// How long frames that came meanwhile are read beyond that.
const GRACE: Duration = Duration::from_millis(100);

/// When each question is asked, so that every one of them has its share of the time to be answered in.
fn due(question: u32, wait: Duration) -> Duration {
    APART.min(wait / (QUESTIONS + 1)) * question
}

/// Who answered for which address within `wait`; `Denied` where this user may not send such frames.
pub fn who_has(
    link: &str,
    addresses: &BTreeSet<IpAddr>,
    wait: Duration,
) -> Result<Answer<BTreeMap<IpAddr, BTreeSet<MacAddress>>>, HostError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: Errno| HostError::Refused(format!("{what}: {}", e.desc()))
    };
    let Some(own) = own(link)? else {
        return Err(HostError::Refused(format!("`{link}` has no Ethernet address, so nobody can be asked on it")));
    };
    let mac = own.addr().map(MacAddress).unwrap_or(MacAddress([0; 6]));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = match socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll) {
        Ok(socket) => socket,
        Err(Errno::EPERM | Errno::EACCES) => return Ok(Answer::Denied),
        Err(e) => return Err(failed("a packet socket")(e)),
    };
    bind(socket.as_raw_fd(), &own).map_err(failed(link))?;
    let mut answered: BTreeMap<IpAddr, BTreeSet<MacAddress>> = BTreeMap::new();
    let mut heard: BTreeSet<IpAddr> = BTreeSet::new();
    let begun = Instant::now();
    let (mut asked, mut all_read) = (0, true);
    let mut frame = [0; 2048];
    while begun.elapsed() < wait {
        if asked < QUESTIONS && begun.elapsed() >= due(asked, wait) {
            for ip in addresses.iter().filter(|ip| !answered.contains_key(ip)) {
                match send(socket.as_raw_fd(), &question(mac, *ip), MsgFlags::empty()) {
                    Ok(_) => _ = heard.insert(*ip),
                    // A queue that is full for a moment: it is asked again.
                    Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
                    Err(e) => return Err(failed(link)(e)),
                }
            }
            asked += 1;
        }
        let next = if asked < QUESTIONS { due(asked, wait) } else { wait };
        let left = next.saturating_sub(begun.elapsed());
        let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&socket), PollFlags::POLLIN)], left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(failed(link)(e)),
        }
        all_read = false;
        // A link that never falls silent does not hold it up.
        while begun.elapsed() < next + GRACE {
            match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(n) => {
                    if let Some((ip, by)) = frame.get(..n).and_then(|f| holder(f, mac))
                        && addresses.contains(&ip)
                    {
                        answered.entry(ip).or_default().insert(by);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    all_read = true;
                    break;
                }
                Err(e) => return Err(failed(link)(e)),
            }
        }
        if addresses.iter().all(|ip| answered.contains_key(ip)) {
            break;
        }
    }
    let sure = |ip: &&IpAddr| answered.contains_key(*ip) || (all_read && heard.contains(*ip));
    match addresses.iter().find(|ip| !sure(ip)) {
        None => Ok(Answer::Value(answered)),
        Some(ip) => {
            Err(HostError::Refused(format!("there is too much going on on {link} to ask for {ip} there; try again")))
        }
    }
}

/// The Ethernet address of a link with its number, in the form that a packet socket is bound with.
fn own(link: &str) -> Result<Option<LinkAddr>, HostError> {
    let all = getifaddrs().map_err(|e| HostError::Refused(format!("the host's links: {}", e.desc())))?;
    let mut mine = all.filter(|a| a.interface_name == link).filter_map(|a| a.address?.as_link_addr().copied());
    Ok(mine.find(|a| a.halen() == 6 && a.addr().is_some_and(|mac| mac != [0; 6])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_asked_within_the_time_and_has_some_to_be_answered_in() {
        for seconds in [1, 2, 3, 4, 60] {
            let wait = Duration::from_secs(seconds);
            let last = due(QUESTIONS - 1, wait);
            assert!(due(0, wait) == Duration::ZERO && due(1, wait) > Duration::ZERO, "{seconds}");
            assert!(wait - last >= wait / (QUESTIONS + 1) && due(1, wait) <= APART, "{seconds}");
        }
        assert_eq!(due(2, Duration::from_secs(4)), APART * 2);
    }
}
