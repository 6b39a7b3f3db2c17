//! `gpuvm ip`: the addresses that are known on the host's networks, and whether one is free: asked on the link itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use miette::{IntoDiagnostic, miette};
use serde::Serialize;

use super::defaults::manifest_of;
use super::vm_look::told;
use super::{Output, code, host, print, say};
use crate::apply::StateDir;
use crate::facts;
use crate::facts::{NetworkFacts, PciFunction};
use crate::host::{Answer, Probe, Snapshot, Virtualisation, live};
use crate::manifest::{self, Defaults, Manifest};
use crate::plan::Past;
use crate::report::{self, ListedAddress};
use crate::resource::Wanted;
use crate::resource::libvirt_domain::project;
use crate::types::{MacAddress, PciAddress, ip_within};
use crate::vm::{self, Around, Told};

/// Arguments of `gpuvm ip`.
#[derive(Debug, Args)]
pub struct IpArgs {
    #[command(subcommand)]
    command: IpCommand,
}

#[derive(Debug, Subcommand)]
enum IpCommand {
    /// The addresses that are known of this host, its VMs and its neighbours, each with who told it.
    List(LookArgs),
    /// Whether an address is free: asked on its link, and looked for in leases, neighbour tables and VMs.
    ///
    /// Ends with 0 for FREE, 1 for IN USE, 3 for UNKNOWN. What does not answer three questions within the time is free as
    /// far as can be seen: a machine that is off, or does not answer anyone, is not seen.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct LookArgs {
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How it is written to stdout.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The addresses.
    #[arg(required_unless_present = "free")]
    address: Vec<IpAddr>,
    /// Find so many free IPv4 addresses, from the end of the network.
    #[arg(long, value_name = "N", conflicts_with = "address", value_parser = clap::value_parser!(u16).range(1..=64))]
    free: Option<u16>,
    /// The link to ask on; for an address the one whose network it is in, for `--free` the bridge for VMs.
    #[arg(long, value_name = "LINK")]
    on: Option<String>,
    /// How long answers are waited for, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    wait: u64,
    /// The manifest, for the addresses that it gives to VMs; host.yaml where it is there, else the one of `vmctl`'s defaults.
    #[arg(short, long)]
    file: Option<PathBuf>,
    #[command(flatten)]
    look: LookArgs,
}

pub(super) fn run(args: &IpArgs) -> miette::Result<u8> {
    match &args.command {
        IpCommand::List(look) => list(look),
        IpCommand::Check(check) => self::check(check),
    }
}

/// What is known of a host's addresses.
struct Seen {
    network: NetworkFacts,
    past: Past,
    told: Told,
    /// VMs by the addresses of their cards.
    cards: BTreeMap<MacAddress, String>,
    /// What running guests say themselves.
    guests: Vec<(IpAddr, String, MacAddress)>,
    /// What the manifest gives away, applied or not, each with a sentence.
    declared: Vec<(IpAddr, String)>,
}

/// The addresses that the manifest gives to VMs. A default one that cannot be read leaves that unknown. One for another host
/// counts too: its VMs may well be on the same network.
fn declare(seen: &mut Seen, file: Option<&Path>, root: Option<&Path>, probe: &dyn Probe) -> miette::Result<()> {
    let (path, loaded) = match file {
        Some(file) => (file.to_owned(), Ok(manifest::load(file)?)),
        None => match manifest_of(root, probe) {
            Ok(None) => return Ok(()),
            Ok(Some(path)) => (path.clone(), manifest::load(&path).map_err(|e| e.to_string())),
            Err(e) => (PathBuf::from(Defaults::PATH), Err(e.to_string())),
        },
    };
    match loaded {
        Ok(loaded) => seen.declared = declared(&loaded.manifest, &path),
        Err(why) => {
            seen.told.unknown.push(format!("the addresses that the manifest gives to VMs: {why}; name it: -f FILE"));
        }
    }
    Ok(())
}

fn declared(m: &Manifest, path: &Path) -> Vec<(IpAddr, String)> {
    let mut all = Vec::new();
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let Some(nic) = &vm.network else { continue };
        let ip = |text: &str| text.split('/').next()?.parse::<IpAddr>().ok();
        let by = path.display();
        let own = nic.address.as_ref().and_then(|a| ip(a.as_str()));
        all.extend(own.map(|ip| (ip, format!("VM {name} is to have it by {by}"))));
        let gateway = nic.gateway.as_ref().and_then(|g| ip(g.as_str()));
        all.extend(gateway.map(|ip| (ip, format!("the gateway of VM {name} by {by}"))));
    }
    all
}

fn look(probe: &dyn Probe, state: &Path, root: Option<&Path>) -> miette::Result<Seen> {
    let facts = facts::collect(probe);
    let network = match facts.network {
        facts::Known::Value(network) => network,
        facts::Known::Unknown(why) => return Err(miette!("the host's network is not known: {why}")),
    };
    let mut told = told(probe, root);
    let past = StateDir::open(state).and_then(|s| s.past()).unwrap_or_else(|e| {
        told.unknown.push(format!("the addresses that gpuvm gave to VMs: {e}"));
        Past::default()
    });
    let mut seen = Seen { network, past, told, cards: BTreeMap::new(), guests: Vec::new(), declared: Vec::new() };
    vms(&mut seen, probe, &facts.pci);
    Ok(seen)
}

/// What VMs have. Where libvirt does not answer, the link itself is asked all the same.
fn vms(seen: &mut Seen, probe: &dyn Probe, pci: &BTreeMap<PciAddress, PciFunction>) {
    let why = match probe.virtualisation() {
        Ok(Answer::Value(known)) => {
            seen.cards = cards(&known);
            for vm in vm::all(probe, &known, Around { pci, past: &seen.past, told: &seen.told }) {
                for nic in &vm.nics {
                    let addresses = nic.addresses.iter().filter(|a| a.source == vm::AddressSource::Agent);
                    seen.guests.extend(addresses.map(|a| (a.ip, vm.name.clone(), nic.mac)));
                }
            }
            return;
        }
        // Without libvirt there are no VMs, unless it was there when gpuvm made one.
        Ok(Answer::Absent) if !seen.past.owned.values().any(|w| matches!(w, Wanted::LibvirtDomain(_))) => return,
        Ok(Answer::Absent) => "libvirt does not answer".to_owned(),
        Ok(Answer::Denied) => "this user may not ask libvirt".to_owned(),
        Err(e) => e.to_string(),
    };
    seen.told.unknown.push(format!("VMs: {why}"));
}

fn cards(known: &Virtualisation) -> BTreeMap<MacAddress, String> {
    let all = known.domains.iter().flat_map(|d| {
        let is = [Some(&d.inactive_xml), d.live_xml.as_ref()].into_iter().flatten().filter_map(|x| project(x).ok());
        is.flat_map(|is| is.nics.into_keys()).map(|mac| (mac, d.name.clone())).collect::<Vec<_>>()
    });
    all.collect()
}

fn list(args: &LookArgs) -> miette::Result<u8> {
    let (probe, state) = host::open(args.root.as_deref())?;
    let snapshot = Snapshot::new(probe.as_ref());
    let seen = look(&snapshot, &state, args.root.as_deref())?;
    let all = listed(&seen);
    print(&match args.output {
        Output::Json => {
            let value = serde_json::json!({ "format": 1, "addresses": all, "unknown": seen.told.unknown });
            serde_json::to_string_pretty(&value).into_diagnostic()? + "\n"
        }
        Output::Text => report::ip_list(&all),
    })?;
    if args.output == Output::Text {
        seen.told.unknown.iter().for_each(|u| say(&format!("?  {}\n", report::safe(u))));
    }
    Ok(code::OK)
}

/// Every address once, from whoever knows best.
fn listed(seen: &Seen) -> Vec<ListedAddress> {
    let mut all: BTreeMap<IpAddr, ListedAddress> = BTreeMap::new();
    for (name, link) in &seen.network.links {
        for a in link.addresses.iter().filter(|a| a.scope == "global") {
            let source = if a.dynamic { "its own, by lease or advertisement" } else { "its own" };
            let mac = link.mac.map(|m| m.to_string());
            let one = ListedAddress {
                ip: a.address,
                of: "this host".to_owned(),
                link: name.clone(),
                mac,
                source: source.to_owned(),
            };
            all.entry(a.address).or_insert(one);
        }
    }
    let whose = |mac: &MacAddress| seen.cards.get(mac).map(|vm| format!("VM {vm}"));
    for (ip, vm, mac) in &seen.guests {
        let link = String::new();
        let (of, source) = (format!("VM {vm}"), vm::AddressSource::Agent.word().to_owned());
        all.entry(*ip).or_insert(ListedAddress { ip: *ip, of, link, mac: Some(mac.to_string()), source });
    }
    for h in &seen.told.heard {
        let of = whose(&h.mac).or_else(|| h.hostname.clone()).unwrap_or_else(|| "?".to_owned());
        let one = ListedAddress {
            ip: h.ip,
            of,
            link: h.link.clone().unwrap_or_default(),
            mac: Some(h.mac.to_string()),
            source: h.source.word().to_owned(),
        };
        all.entry(h.ip).or_insert(one);
    }
    all.retain(|_, a| vm::Address { ip: a.ip, source: vm::AddressSource::Neighbour }.is_routable());
    all.into_values().collect()
}

/// What is said of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Said {
    #[serde(rename = "FREE")]
    Free,
    #[serde(rename = "UNKNOWN")]
    Unknown,
    #[serde(rename = "IN USE")]
    InUse,
}

impl Said {
    const fn word(self) -> &'static str {
        match self {
            Said::Free => "FREE",
            Said::Unknown => "UNKNOWN",
            Said::InUse => "IN USE",
        }
    }
}

/// One address that was asked about.
#[derive(Debug, Clone, Serialize)]
struct Checked {
    address: IpAddr,
    verdict: Said,
    /// What that rests on.
    because: Vec<String>,
}

/// Who is asked on a link, for so long: given in so that what is said of the answers can be tested without a network.
type Ask<'a> = dyn Fn(&str, &BTreeSet<IpAddr>) -> Result<Answer<BTreeMap<IpAddr, BTreeSet<MacAddress>>>, String> + 'a;

fn check(args: &CheckArgs) -> miette::Result<u8> {
    let root = args.look.root.as_deref();
    let (probe, state) = host::open(root)?;
    let snapshot = Snapshot::new(probe.as_ref());
    let mut seen = look(&snapshot, &state, root)?;
    declare(&mut seen, args.file.as_deref(), root, &snapshot)?;
    let wait = Duration::from_secs(args.wait);
    let recorded = args.look.root.is_some();
    if let (true, Some(n)) = (recorded, args.free) {
        if args.look.output == Output::Json {
            print("{\n  \"format\": 1,\n  \"checked\": []\n}\n")?;
        }
        say(&format!(
            "UNKNOWN: which {n} are free only the network itself can tell, and a recorded host has none\n\
             what the record knows of: gpuvm ip list\n"
        ));
        return Ok(code::WAITS);
    }
    let ask = |link: &str, addresses: &BTreeSet<IpAddr>| match recorded {
        true => Err("nobody can be asked on a recorded host".to_owned()),
        false => live::who_has(link, addresses, wait).map_err(|e| e.to_string()),
    };
    let (checked, free) = match args.free {
        Some(n) => find_free(&seen, args.on.as_deref(), n.into(), &ask)?,
        None => (judge(&seen, args.on.as_deref(), &args.address, &ask), true),
    };
    print(&match args.look.output {
        Output::Json => {
            let value = serde_json::json!({ "format": 1, "checked": checked });
            serde_json::to_string_pretty(&value).into_diagnostic()? + "\n"
        }
        Output::Text => text(&checked),
    })?;
    let worst = checked.iter().map(|c| c.verdict).max();
    Ok(match worst {
        Some(Said::InUse) => code::ERROR,
        Some(Said::Unknown) => code::WAITS,
        _ if !free => code::ERROR,
        _ => code::OK,
    })
}

fn text(checked: &[Checked]) -> String {
    let wide = checked.iter().map(|c| c.address.to_string().len()).max().unwrap_or(0);
    let mut out = String::new();
    for c in checked {
        let address = c.address.to_string();
        let mut because = c.because.iter();
        let first = because.next().cloned().unwrap_or_default();
        out += format!("{address:wide$}  {:<7}  {}", c.verdict.word(), report::safe(&first)).trim_end();
        out.push('\n');
        because.for_each(|b| out += &format!("{:1$}{2}\n", "", wide + 11, report::safe(b)));
    }
    out
}

/// What is known of an address without asking anyone.
fn known(seen: &Seen, ip: IpAddr) -> Vec<String> {
    let mut all: Vec<String> = seen.network.nobodys(ip).into_iter().collect();
    for (name, link) in &seen.network.links {
        if link.addresses.iter().any(|a| a.address == ip) {
            all.push(format!("this host has it on {name}"));
        }
    }
    // A VM that is off answers nothing, and has its address again at its next start.
    for seed in seen.past.seeds() {
        let fixed = seed.shown.get("address").and_then(|a| a.split('/').next()?.trim().parse().ok());
        if fixed == Some(ip) {
            all.push(format!("VM {} has it by host.yaml", seed.vm));
        }
    }
    if all.is_empty() {
        all.extend(seen.declared.iter().filter(|(at, _)| *at == ip).map(|(_, said)| said.clone()));
    }
    for (_, vm, _) in seen.guests.iter().filter(|(at, ..)| *at == ip) {
        all.push(format!("VM {vm} has it (guest agent)"));
    }
    for h in seen.told.heard.iter().filter(|h| h.ip == ip) {
        let whose = seen.cards.get(&h.mac).map_or(h.mac.to_string(), |vm| format!("VM {vm}, {}", h.mac));
        all.push(match h.source {
            vm::AddressSource::Lease => format!("a lease to {whose}"),
            _ => format!("heard of lately: {whose} ({})", h.source.word()),
        });
    }
    let gateways = seen.network.routes.iter().filter(|r| r.via == Some(ip));
    all.extend(gateways.take(1).map(|r| format!("the gateway of {}", r.to)));
    all
}

/// Why nobody's silence on a link means anything for an address.
fn not_there(network: &NetworkFacts, link: &str, ip: IpAddr) -> Option<String> {
    let Some(of) = network.links.get(link) else { return Some(format!("this host has no link {link}")) };
    if !of.up || ["DOWN", "LOWERLAYERDOWN", "NOTPRESENT"].contains(&of.state.as_str()) {
        return Some(format!("{link} is down: nobody there hears a question"));
    }
    if of.addresses.iter().any(|a| ip_within(ip, a.address, a.prefix)) {
        return None;
    }
    let of: Vec<String> = of.addresses.iter().map(|a| format!("{}/{}", a.address, a.prefix)).collect();
    let has = if of.is_empty() { "no address".to_owned() } else { of.join(", ") };
    Some(format!("{link} has {has}: nothing says that {ip} would be there"))
}

/// The link of the host whose network an address is in.
fn link_of(network: &NetworkFacts, ip: IpAddr) -> Option<String> {
    let mut links = network.links.iter().filter(|(_, l)| l.up && l.mac.is_some());
    let of = links.find(|(_, l)| l.addresses.iter().any(|a| ip_within(ip, a.address, a.prefix)));
    of.map(|(name, _)| name.clone())
}

fn judge(seen: &Seen, on: Option<&str>, addresses: &[IpAddr], ask: &Ask<'_>) -> Vec<Checked> {
    let mut by_link: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for ip in addresses {
        if let Some(link) = on.map(str::to_owned).or_else(|| link_of(&seen.network, *ip)) {
            by_link.entry(link).or_default().insert(*ip);
        }
    }
    let answers: BTreeMap<&String, _> = by_link.iter().map(|(link, ips)| (link, ask(link, ips))).collect();
    let mut all = Vec::new();
    for ip in addresses {
        let mut because = Vec::new();
        let link = by_link.iter().find(|(_, ips)| ips.contains(ip)).map(|(link, _)| link);
        let asked = link.and_then(|link| Some((link, answers.get(link)?)));
        let mut verdict = match asked {
            None => {
                because.push("no link of this host is on its network: nobody there can be asked".to_owned());
                Said::Unknown
            }
            Some((link, Ok(Answer::Value(answered)))) => match answered.get(ip).filter(|macs| !macs.is_empty()) {
                Some(macs) => {
                    for mac in macs {
                        let vm = seen.cards.get(mac).map_or(String::new(), |vm| format!(", which is VM {vm}"));
                        because.push(format!("{mac} answers for it on {link}{vm}"));
                    }
                    Said::InUse
                }
                None => {
                    because.push(format!("nobody answers for it on {link}"));
                    match not_there(&seen.network, link, *ip) {
                        Some(why) => {
                            because.push(why);
                            Said::Unknown
                        }
                        None => Said::Free,
                    }
                }
            },
            Some((link, Ok(_))) => {
                because.push(format!("this user may not ask on {link}: run gpuvm as root"));
                Said::Unknown
            }
            Some((_, Err(why))) => {
                because.push(why.clone());
                Said::Unknown
            }
        };
        let known = known(seen, *ip);
        if !known.is_empty() {
            verdict = Said::InUse;
            // What is known comes first, and then that it does not answer now.
            because.splice(0..0, known);
        } else if verdict == Said::Free && !seen.told.unknown.is_empty() {
            verdict = Said::Unknown;
            because.extend(seen.told.unknown.iter().map(|u| format!("not known: {u}")));
        }
        all.push(Checked { address: *ip, verdict, because });
    }
    all
}

/// Free addresses of a link's IPv4 network, from its end: home routers and installers begin at the other one. Whether
/// there were as many as were asked for.
fn find_free(seen: &Seen, on: Option<&str>, n: usize, ask: &Ask<'_>) -> miette::Result<(Vec<Checked>, bool)> {
    let of_vms = || {
        seen.past.owned.values().find_map(|w| match w {
            Wanted::Bridge(bridge) => Some(bridge.name.to_string()),
            _ => None,
        })
    };
    let link = on.map(str::to_owned).or_else(of_vms).or_else(|| seen.network.uplink.clone());
    let link = link.ok_or_else(|| miette!(help = "name one: --on LINK", "this host has no uplink to look on"))?;
    let addresses = seen.network.links.get(&link).map(|l| l.addresses.as_slice()).unwrap_or_default();
    let network = addresses.iter().find_map(|a| match a.address {
        IpAddr::V4(ip) if a.scope == "global" && (8..=30).contains(&a.prefix) => Some((ip, a.prefix)),
        _ => None,
    });
    let (ip, prefix) = network.ok_or_else(|| {
        miette!(help = "see what there is: gpuvm ip list", "`{link}` has no IPv4 address, so its network is not known")
    })?;
    let (mut found, mut left) = (Vec::new(), candidates(ip, prefix));
    while found.len() < n && !left.is_empty() {
        // A few more than are missing: some of them are taken.
        let batch: Vec<IpAddr> = left.drain(..left.len().min((n - found.len()) * 2 + 4)).map(IpAddr::V4).collect();
        let unasked: Vec<IpAddr> = batch.into_iter().filter(|ip| known(seen, *ip).is_empty()).collect();
        if unasked.is_empty() {
            continue;
        }
        let judged = judge(seen, Some(&link), &unasked, ask);
        // What cannot be asked about is told, in place of being looked for on and on.
        if let Some(unknown) = judged.iter().find(|c| c.verdict == Said::Unknown) {
            return Ok((vec![unknown.clone()], false));
        }
        found.extend(judged.into_iter().filter(|c| c.verdict == Said::Free));
    }
    found.truncate(n);
    if found.len() < n {
        say(&format!("{} of {n}: nothing more of {ip}/{prefix} is free\n", found.len()));
    }
    Ok((found.clone(), found.len() == n))
}

/// At most so many addresses of a network are looked at.
const MOST_LOOKED_AT: u32 = 1024;

/// The addresses of a network from its end, without its own and the broadcast.
fn candidates(ip: Ipv4Addr, prefix: u8) -> Vec<Ipv4Addr> {
    let size = 1u32.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let first = u32::from(ip) & !(size.wrapping_sub(1));
    let last = first.saturating_add(size.saturating_sub(2));
    let from = (first + 1).max(last.saturating_sub(MOST_LOOKED_AT - 1));
    (from..=last).rev().map(Ipv4Addr::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Address, Link};
    use crate::host::fixture::{Fixture, Record, RecordedLibvirt, RecordedQuery};
    use crate::vm::Heard;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 9]);

    fn seen() -> Seen {
        let address = Address {
            address: "10.9.0.2".parse().unwrap(),
            prefix: 24,
            dynamic: false,
            scope: "global".to_owned(),
            temporary: false,
        };
        let link = Link { up: true, mac: Some(MacAddress([2; 6])), addresses: vec![address], ..Link::default() };
        let network = NetworkFacts {
            links: [("br0".to_owned(), link)].into(),
            uplink: Some("br0".to_owned()),
            ..NetworkFacts::default()
        };
        let (past, told, cards) = (Past::default(), Told::default(), [(MAC, "desk".to_owned())].into());
        Seen { network, past, told, cards, guests: Vec::new(), declared: Vec::new() }
    }
    fn heard(ip: &str, source: vm::AddressSource) -> Heard {
        Heard { mac: MAC, ip: ip.parse().unwrap(), link: None, hostname: None, source }
    }
    fn nobody(_: &str, _: &BTreeSet<IpAddr>) -> Result<Answer<BTreeMap<IpAddr, BTreeSet<MacAddress>>>, String> {
        Ok(Answer::Value(BTreeMap::new()))
    }
    fn said(seen: &Seen, ip: &str, ask: &Ask<'_>) -> (Said, String) {
        let all = judge(seen, None, &[ip.parse().unwrap()], ask);
        (all[0].verdict, all[0].because.join("; "))
    }

    #[test]
    fn an_address_that_anyone_knows_of_is_never_free() {
        let mut seen = seen();
        assert_eq!(said(&seen, "10.9.0.7", &nobody), (Said::Free, "nobody answers for it on br0".to_owned()));
        let answers =
            |_: &str, ips: &BTreeSet<IpAddr>| Ok(Answer::Value(ips.iter().map(|ip| (*ip, [MAC].into())).collect()));
        let (verdict, because) = said(&seen, "10.9.0.7", &answers);
        assert!(
            verdict == Said::InUse && because.contains("52:54:00:00:00:09 answers") && because.ends_with("VM desk")
        );
        assert_eq!(said(&seen, "10.9.0.2", &nobody).0, Said::InUse, "the host's own does not answer itself");
        for source in [vm::AddressSource::Lease, vm::AddressSource::Neighbour] {
            seen.told.heard = vec![heard("10.9.0.7", source)];
            let (verdict, because) = said(&seen, "10.9.0.7", &nobody);
            assert!(verdict == Said::InUse && because.contains("VM desk"), "{because}");
        }
        seen.told.heard.clear();
        seen.guests = vec![("10.9.0.7".parse().unwrap(), "desk".to_owned(), MAC)];
        assert_eq!(said(&seen, "10.9.0.7", &nobody).0, Said::InUse);
        seen.guests.clear();
        let seed = crate::resource::seed::Seed {
            vm: "desk".parse().unwrap(),
            path: "/var/lib/libvirt/images/desk-seed.iso".into(),
            inputs: String::new(),
            instance: String::new(),
            shown: [("address".to_owned(), "10.9.0.7/24".to_owned())].into(),
            key_files: Vec::new(),
            password_file: None,
            windows: false,
            installer: false,
            absent: false,
        };
        seen.past.owned.insert(crate::plan::Key::new("seed", "desk"), Wanted::Seed(seed));
        let (verdict, because) = said(&seen, "10.9.0.7", &nobody);
        assert!(
            verdict == Said::InUse && because.contains("by host.yaml"),
            "one that is off answers nothing: {because}"
        );
        seen.past.owned.clear();
        let text = "version: 1\nbridge: { name: br0, existing: true }\nvms:\n\
            \x20 new: { cpus: 1, memory: 1GiB, network: { name: br0, address: 10.9.0.7/24, gateway: 10.9.0.9 } }\n\
            \x20 gone: { absent: true, cpus: 1, memory: 1GiB, network: { name: br0, address: 10.9.0.11/24 } }\n";
        seen.declared = declared(&manifest::parse("host.yaml", text).unwrap(), Path::new("host.yaml"));
        let (verdict, because) = said(&seen, "10.9.0.7", &nobody);
        assert!(verdict == Said::InUse && because.contains("VM new is to have it by host.yaml"), "{because}");
        assert!(said(&seen, "10.9.0.9", &nobody).1.contains("the gateway of VM new"));
        assert_eq!(said(&seen, "10.9.0.11", &nobody).0, Said::Free);
    }

    #[test]
    fn what_cannot_be_asked_is_unknown_and_never_free() {
        let denied = |_: &str, _: &BTreeSet<IpAddr>| Ok(Answer::Denied);
        let broken = |_: &str, _: &BTreeSet<IpAddr>| Err("the link is down".to_owned());
        let mut seen = seen();
        assert!(said(&seen, "10.9.0.7", &denied).1.contains("run gpuvm as root"));
        for ask in [&denied as &Ask<'_>, &broken] {
            assert_eq!(said(&seen, "10.9.0.7", ask).0, Said::Unknown);
        }
        assert_eq!(said(&seen, "192.168.7.7", &nobody).0, Said::Unknown, "no link is there");
        // Whose silence on a link means nothing.
        let on = |seen: &Seen, link, ip: &str| judge(seen, Some(link), &[ip.parse().unwrap()], &nobody)[0].clone();
        let other = on(&seen, "br0", "192.168.7.7");
        assert!(other.verdict == Said::Unknown && other.because.concat().contains("br0 has 10.9.0.2/24"), "{other:?}");
        assert_eq!(on(&seen, "br0", "10.9.0.7").verdict, Said::Free);
        assert_eq!(on(&seen, "br7", "10.9.0.7").verdict, Said::Unknown, "there is no such link");
        let link = seen.network.links.get_mut("br0").unwrap();
        link.state = "DOWN".to_owned();
        assert!(said(&seen, "10.9.0.7", &nobody).1.contains("br0 is down"));
        seen.network.links.get_mut("br0").unwrap().state = "UP".to_owned();
        assert_eq!(said(&seen, "10.9.0.2", &denied).0, Said::InUse, "it is known all the same");
        seen.told.unknown.push("leases: only root may look at them".to_owned());
        assert_eq!(said(&seen, "10.9.0.7", &nobody).0, Said::Unknown);
    }

    #[test]
    fn an_address_that_no_machine_can_have_is_not_free() {
        let mut seen = seen();
        let v6 = Address {
            address: "fd09::2".parse().unwrap(),
            prefix: 64,
            ..seen.network.links["br0"].addresses[0].clone()
        };
        seen.network.links.get_mut("br0").unwrap().addresses.push(v6);
        for (ip, why) in [
            ("10.9.0.0", "the network's own address of 10.9.0.0/24"),
            ("10.9.0.255", "the broadcast address of 10.9.0.0/24"),
            ("fd09::", "the routers' address of fd09::/64"),
            ("0.0.0.0", "no machine"),
            ("255.255.255.255", "no machine"),
            ("224.0.0.251", "no machine"),
            ("127.0.0.2", "no machine"),
            ("ff02::1", "no machine"),
            ("::1", "no machine"),
        ] {
            let (verdict, because) = said(&seen, ip, &nobody);
            assert!(verdict == Said::InUse && because.contains(why), "{ip}: {because}");
        }
        assert_eq!(said(&seen, "fd09::7", &nobody).0, Said::Free);
    }

    /// A host whose libvirt and leases say this; whether an address is free there, if nobody on the link answers.
    fn on_a_host(libvirt: RecordedLibvirt, lease: Option<&str>) -> (Said, String) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("root/var/lib/libvirt/dnsmasq");
        std::fs::create_dir_all(&folder).unwrap();
        if let Some(text) = lease {
            std::fs::write(folder.join("virbr0.status"), text).unwrap();
        }
        let query = |args: &[&str], text: &str| RecordedQuery {
            program: crate::host::Program::Ip,
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            output: Some(crate::host::Output { status: 0, stdout: text.to_owned(), stderr: String::new() }),
        };
        let record = Record { libvirt, queries: vec![query(&["-json", "neigh", "show"], "[]")], ..Record::default() };
        record.save(&dir.path().join(Record::NAME)).unwrap();
        let probe = Fixture::open(dir.path()).unwrap();
        let mut seen = seen();
        (seen.told, seen.cards, seen.guests) = (told(&probe, Some(dir.path())), BTreeMap::new(), Vec::new());
        vms(&mut seen, &probe, &Default::default());
        said(&seen, "10.9.0.7", &nobody)
    }

    #[test]
    fn what_libvirt_or_its_leases_do_not_say_is_unknown() {
        let known = || RecordedLibvirt::Known(Virtualisation::default());
        assert_eq!(on_a_host(known(), None).0, Said::Free);
        assert_eq!(on_a_host(RecordedLibvirt::Absent, Some("")).0, Said::Free, "a host without VMs");
        assert_eq!(on_a_host(RecordedLibvirt::Denied, None).0, Said::Unknown);
        for (text, why) in [
            ("[ {", "cannot be read"),
            (r#"[{"ip-address": "10.9.0.7", "mac-address": "none", "expiry-time": 0}]"#, "whose 10.9.0.7 is"),
            (r#"[{"ip-address": "10.9.0.7", "expiry-time": 0}]"#, "whose 10.9.0.7 is"),
        ] {
            let (verdict, because) = on_a_host(known(), Some(text));
            assert!(verdict == Said::Unknown && because.contains(why), "{text}: {because}");
        }
        let lease = r#"[{"ip-address": "10.9.0.7", "mac-address": "52:54:00:00:00:09", "expiry-time": 0}]"#;
        assert_eq!(on_a_host(known(), Some(lease)).0, Said::InUse);
    }

    #[test]
    fn free_ones_are_found_from_the_end_and_what_is_taken_is_left_out() {
        let mut seen = seen();
        seen.told.heard = vec![heard("10.9.0.253", vm::AddressSource::Lease)];
        let taken: IpAddr = "10.9.0.254".parse().unwrap();
        let asked = std::cell::RefCell::new(BTreeSet::new());
        let ask = |link: &str, ips: &BTreeSet<IpAddr>| {
            assert_eq!(link, "br0");
            asked.borrow_mut().extend(ips.iter().copied());
            let answers = ips.iter().filter(|ip| **ip == taken).map(|ip| (*ip, [MAC].into()));
            Ok(Answer::Value(answers.collect()))
        };
        let (found, enough) = find_free(&seen, None, 2, &ask).unwrap();
        let addresses: Vec<String> = found.iter().map(|c| c.address.to_string()).collect();
        assert!(enough && addresses == ["10.9.0.252", "10.9.0.251"], "{addresses:?}");
        assert!(asked.borrow().contains(&taken) && !asked.borrow().contains(&"10.9.0.253".parse::<IpAddr>().unwrap()));
        assert!(!asked.borrow().contains(&"10.9.0.255".parse::<IpAddr>().unwrap()), "the broadcast address");
        let everyone =
            |_: &str, ips: &BTreeSet<IpAddr>| Ok(Answer::Value(ips.iter().map(|ip| (*ip, [MAC].into())).collect()));
        let (found, enough) = find_free(&seen, None, 2, &everyone).unwrap();
        assert!(found.is_empty() && !enough);
    }

    #[test]
    fn addresses_are_looked_for_from_the_end_of_their_network() {
        assert_eq!(
            candidates("10.9.0.2".parse().unwrap(), 30),
            ["10.9.0.2", "10.9.0.1"].map(|a| a.parse::<Ipv4Addr>().unwrap())
        );
        assert_eq!(candidates("10.0.0.2".parse().unwrap(), 8).len(), 1024);
    }
}
