use std::collections::BTreeMap;
use std::fs;

use serde_json::json;

use super::*;
use crate::facts;
use crate::host::fixture::{Fixture, Record, RecordedQuery};
use crate::host::{Host, Output, Program, Running};
use crate::resource::Wanted;

const FILE: &str = "/etc/netplan/50-cloud-init.yaml";
const OURS: &str = "/etc/netplan/90-gpuvm-br0.yaml";
const DHCP: &str = "# a comment\nnetwork:\n  version: 2\n  ethernets:\n    enp5s0:\n      dhcp4: true\n    enp6s0:\n      addresses: [10.9.0.2/24]\n";

/// A small recorded host: two cards, the first with the default route, and a link for each further name.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let small = Self(tempfile::tempdir().unwrap());
        let address = |local: &str| json!([{"family": "inet", "local": local, "prefixlen": 24, "scope": "global", "dynamic": true}]);
        let card = |index: u32, name: &str, local: &str| {
            json!({"ifindex": index, "ifname": name, "flags": ["UP", "LOWER_UP"], "operstate": "UP", "link_type": "ether",
                "address": format!("52:54:00:00:00:0{index}"), "addr_info": address(local)})
        };
        small.ip(json!([card(2, "enp5s0", "10.0.0.2"), card(3, "enp6s0", "10.9.0.2")]));
        for name in ["enp5s0", "enp6s0"] {
            small.sysfs(name, "", true);
        }
        small.write("/usr/sbin/netplan", "");
        small.write("/run/systemd/resolve/resolv.conf", "nameserver 10.0.0.1\n");
        small.write(FILE, DHCP);
        small
    }
    fn ip(&self, links: serde_json::Value) {
        let routes = json!([{"dst": "default", "gateway": "10.0.0.1", "dev": "enp5s0", "metric": 100, "flags": []}]);
        let answers: [(&[&str], String); 3] = [
            (&["-json", "address"], links.to_string()),
            (&["-json", "route", "show", "table", "main"], routes.to_string()),
            (&["-json", "-6", "route"], "[]".to_owned()),
        ];
        let queries = answers
            .map(|(args, stdout)| RecordedQuery {
                program: Program::Ip,
                args: args.iter().map(|a| (*a).to_owned()).collect(),
                output: Some(Output { status: 0, stdout, stderr: String::new() }),
            })
            .to_vec();
        Record { queries, ..Record::default() }.save(&self.0.path().join(Record::NAME)).unwrap();
    }
    /// Changes a link as `ip` shows it.
    fn change_link(&self, name: &str, change: impl Fn(&mut serde_json::Value)) {
        let record = Record::load(&self.0.path().join(Record::NAME)).unwrap();
        let mut links: serde_json::Value =
            serde_json::from_str(&record.queries[0].output.as_ref().unwrap().stdout).unwrap();
        links.as_array_mut().unwrap().iter_mut().filter(|l| l["ifname"] == name).for_each(change);
        let mut record = record;
        record.queries[0].output.as_mut().unwrap().stdout = links.to_string();
        record.save(&self.0.path().join(Record::NAME)).unwrap();
    }
    fn sysfs(&self, name: &str, uevent: &str, device: bool) {
        self.write(&format!("/sys/class/net/{name}/uevent"), uevent);
        if device {
            let link = self.place(&format!("/sys/class/net/{name}/device"));
            let _ = std::os::unix::fs::symlink("../../../devices/x", link);
        }
    }
    fn place(&self, path: &str) -> PathBuf {
        self.0.path().join("root").join(path.trim_start_matches('/'))
    }
    fn write(&self, path: &str, text: &str) {
        let place = self.place(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }
    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.place(path)).ok()
    }
    fn plan(&self, bridge: &Bridge) -> Diff {
        let fixture = Fixture::open(self.0.path()).unwrap();
        let facts = facts::collect(&fixture);
        Wanted::from(bridge.clone()).compare(None, &fixture, &facts).unwrap()
    }
    fn removal(&self, bridge: &Bridge) -> Diff {
        let fixture = Fixture::open(self.0.path()).unwrap();
        let facts = facts::collect(&fixture);
        Wanted::from(bridge.clone()).compare_removal(&fixture, &facts).unwrap()
    }
    fn removal_without(&self, bridge: &Bridge, leaving: &BTreeSet<String>) -> Diff {
        let fixture = Fixture::open(self.0.path()).unwrap();
        let facts = facts::collect(&fixture);
        bridge.compare_removal_without(leaving, &fixture, &facts).unwrap()
    }
    fn apply(&self, diff: Diff) -> Change {
        let Diff::Change(change) = diff else { panic!("{diff:#?}") };
        let mut fixture = Fixture::open(self.0.path()).unwrap();
        let secrets = BTreeMap::new();
        for step in &change.steps {
            let mut running =
                Running { secrets: &secrets, progress: &mut |_| {}, notes: &mut Vec::new(), run_dir: self.0.path() };
            fixture.execute(step, &mut running).unwrap();
        }
        change
    }
    fn blocked(&self, bridge: &Bridge) -> String {
        match self.plan(bridge) {
            Diff::Blocked { why, help } => format!("{why} | {help}"),
            other => panic!("{other:#?}"),
        }
    }
}

fn br0() -> Bridge {
    Bridge { name: "br0".parse().unwrap(), uplink: UplinkChoice::Auto, existing: false }
}

fn in_sync(diff: &Diff) -> bool {
    matches!(diff, Diff::InSync { .. })
}

#[test]
fn it_is_made_found_in_sync_and_taken_back_byte_for_byte() {
    for uplink in [
        UplinkChoice::Auto,
        UplinkChoice::Name("enp5s0".parse().unwrap()),
        UplinkChoice::Mac("52:54:00:00:00:02".parse().unwrap()),
    ] {
        let host = Small::new();
        let bridge = Bridge { uplink, ..br0() };
        let change = host.apply(host.plan(&bridge));
        assert_eq!(change.risks, [Risk::NetworkLoss].into());
        assert_eq!(host.text(FILE).unwrap(), DHCP.replace("    enp5s0:\n      dhcp4: true\n", ""));
        assert!(host.text(OURS).unwrap().contains("52:54:00:00:00:02"));
        let Step::SwitchNetwork(switch) = &change.steps[0] else { panic!() };
        let proofs = [
            Proof::Link,
            Proof::Address("10.0.0.2".parse().unwrap()),
            Proof::DefaultRoute { v6: false },
            Proof::Gateway("10.0.0.1".parse().unwrap()),
            Proof::NameServer("10.0.0.1".parse().unwrap()),
        ];
        assert_eq!(switch.proofs, proofs.into());
        let second = host.plan(&bridge);
        assert!(in_sync(&second), "{second:#?}");
        host.apply(host.removal(&bridge));
        assert_eq!(host.text(FILE).unwrap(), DHCP);
        assert_eq!(host.text(OURS), None);
        assert!(in_sync(&host.removal(&bridge)));
    }
}

#[test]
fn the_client_identity_moves_with_dhcp() {
    const DROP_IN: &str = "/etc/systemd/network/10-netplan-br0.network.d/90-gpuvm.conf";
    let host = Small::new();
    host.write("/run/systemd/netif/leases/2", "ADDRESS=10.0.0.2\nCLIENTID=ff0000000a0002\n");
    host.write("/run/systemd/netif/leases/3", "ADDRESS=10.9.0.2\nCLIENTID=ff0000000b0002\n");
    host.apply(host.plan(&br0()));
    assert!(host.text(DROP_IN).unwrap().ends_with("[DHCPv4]\nIAID=10\n"));
    assert!(in_sync(&host.plan(&br0())));
    let host = Small::new();
    host.write(FILE, &DHCP.replace("dhcp4: true", "dhcp4: true\n      dhcp-identifier: mac"));
    host.write("/run/systemd/netif/leases/2", "ADDRESS=10.0.0.2\nCLIENTID=0152540000000002\n");
    host.apply(host.plan(&br0()));
    assert_eq!(host.text(DROP_IN), None);
}

#[test]
fn cloud_init_is_turned_off_where_its_file_was_cut() {
    let host = Small::new();
    host.write("/etc/cloud/cloud.cfg", "");
    host.apply(host.plan(&br0()));
    assert_eq!(host.text(CLOUD_INIT).unwrap(), CLOUD_INIT_TEXT);
    host.apply(host.removal(&br0()));
    assert_eq!(host.text(CLOUD_INIT), None);
    let host = Small::new();
    host.apply(host.plan(&br0()));
    assert_eq!(host.text(CLOUD_INIT), None, "there is no cloud-init");
}

#[test]
fn what_was_changed_by_hand_is_repaired() {
    let host = Small::new();
    host.apply(host.plan(&br0()));
    let ours = host.text(OURS).unwrap();
    host.write(OURS, &ours.replace("dhcp4: true", "dhcp4: false"));
    let change = host.apply(host.plan(&br0()));
    assert!(change.fields.iter().any(|f| f.field == OURS), "{:#?}", change.fields);
    assert_eq!(host.text(OURS).unwrap(), ours);
    fs::remove_file(host.place(OURS)).unwrap();
    host.apply(host.plan(&br0()));
    assert_eq!(host.text(OURS).unwrap(), ours);

    // cloud-init wrote the same entry again, in another form.
    let again =
        "network:\n  version: 2\n  ethernets:\n    enp5s0: {dhcp4: true}\n    enp6s0: {addresses: [10.9.0.2/24]}\n";
    host.write(FILE, again);
    host.apply(host.plan(&br0()));
    assert!(!host.text(FILE).unwrap().contains("enp5s0"));
    assert!(in_sync(&host.plan(&br0())));
    host.apply(host.removal(&br0()));
    assert_eq!(host.text(FILE).unwrap(), again);
}

#[test]
fn an_entry_that_came_back_otherwise_is_not_overwritten() {
    let host = Small::new();
    host.apply(host.plan(&br0()));
    host.write(FILE, &DHCP.replace("dhcp4: true", "addresses: [10.0.0.9/24]"));
    assert!(host.blocked(&br0()).contains("has an entry again"));
}

#[test]
fn configured_and_not_live_is_a_difference() {
    let host = Small::new();
    host.apply(host.plan(&br0()));
    host.change_link("enp5s0", |l| l["master"] = serde_json::Value::Null);
    let Diff::Change(change) = host.plan(&br0()) else { panic!() };
    assert!(change.what.contains("`enp5s0` is not its port"), "{}", change.what);
    host.change_link("enp5s0", |l| l["master"] = "br0".into());
    host.change_link("br0", |l| l["address"] = "52:54:00:00:00:99".into());
    assert!(matches!(host.plan(&br0()), Diff::Change(_)));
    host.change_link("br0", |l| l["address"] = "52:54:00:00:00:02".into());
    host.change_link("br0", |l| l["addr_info"] = json!([]));
    assert!(matches!(host.plan(&br0()), Diff::Change(_)));
}

#[test]
fn a_card_with_another_name_is_still_the_uplink() {
    let host = Small::new();
    host.apply(host.plan(&br0()));
    host.sysfs("enp7s0", "", true);
    host.change_link("enp5s0", |l| l["ifname"] = "enp7s0".into());
    assert!(in_sync(&host.plan(&br0())), "{:#?}", host.plan(&br0()));
}

#[test]
fn other_managers_are_refused_with_the_next_step() {
    let host = Small::new();
    host.write("/usr/sbin/ifup", "");
    host.write("/etc/network/interfaces", "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n");
    host.write("/etc/network/interfaces.d/lan", "allow-hotplug enp5s0\niface enp5s0 inet dhcp\n");
    assert!(host.blocked(&br0()).contains("netplan and ifupdown at once"));
    host.write(FILE, "network:\n  version: 2\n");
    assert!(host.blocked(&br0()).contains("ifupdown configures `enp5s0`"));
    fs::remove_file(host.place("/usr/sbin/ifup")).unwrap();
    assert!(host.blocked(&br0()).contains("no netplan file names it"));
    host.write("/etc/systemd/network/20-lan.network", "[Match]\nName=en*\n[Network]\nDHCP=yes\n");
    assert!(host.blocked(&br0()).contains("systemd-networkd configures"));
    fs::remove_file(host.place("/etc/systemd/network/20-lan.network")).unwrap();
    host.write("/etc/NetworkManager/system-connections/lan.nmconnection", "canary");
    assert!(host.blocked(&br0()).contains("NetworkManager configures"));

    let host = Small::new();
    host.write("/etc/netplan/01-network-manager-all.yaml", "network: {version: 2, renderer: NetworkManager}\n");
    assert!(host.blocked(&br0()).contains("NetworkManager configures"));
}

#[test]
fn links_that_cannot_be_a_port_are_refused() {
    let host = Small::new();
    let by_name = |n: &str| Bridge { uplink: UplinkChoice::Name(n.parse().unwrap()), ..br0() };
    assert!(
        host.blocked(&by_name("enp9s0")).contains("there is no link `enp9s0` | there are: enp5s0 52:54:00:00:00:02")
    );
    assert!(
        host.blocked(&Bridge { uplink: UplinkChoice::Mac("52:54:00:00:00:77".parse().unwrap()), ..br0() })
            .contains("no card has")
    );
    host.sysfs("enp6s0", "DEVTYPE=wlan\n", true);
    assert!(host.blocked(&by_name("enp6s0")).contains("wireless"));
    host.sysfs("enp6s0", "DEVTYPE=bridge\n", false);
    assert!(host.blocked(&by_name("enp6s0")).contains("existing: true"));
    host.change_link("enp5s0", |l| l["master"] = "bond0".into());
    assert!(host.blocked(&br0()).contains("a port of `bond0`"));
}

#[test]
fn a_foreign_bridge_is_used_or_left_alone() {
    let host = Small::new();
    host.change_link("enp6s0", |l| l["ifname"] = "br0".into());
    host.sysfs("br0", "DEVTYPE=bridge\n", false);
    assert!(host.blocked(&br0()).contains("not gpuvm's"));
    let existing = Bridge { existing: true, ..br0() };
    assert!(in_sync(&host.plan(&existing)));
    assert!(in_sync(&host.removal(&existing)));
    let other = Bridge { name: "br9".parse().unwrap(), ..existing };
    assert!(host.blocked(&other).contains("no bridge `br9`"));
}

#[test]
fn a_bridge_in_use_and_a_changed_file_are_not_taken_back() {
    let host = Small::new();
    host.apply(host.plan(&br0()));
    host.change_link("enp6s0", |l| l["master"] = "br0".into());
    assert!(matches!(host.removal(&br0()), Diff::Blocked { why, .. } if why.contains("in use by enp6s0")));
    // A plan that takes the VM down before says whose that port is.
    let without = |port: &str| host.removal_without(&br0(), &BTreeSet::from([port.to_owned()]));
    assert!(matches!(without("enp6s0"), Diff::Change(c) if c.action == Action::Remove));
    assert!(matches!(without("vnet7"), Diff::Blocked { .. }));
    host.change_link("enp6s0", |l| l["master"] = serde_json::Value::Null);
    host.write(FILE, "network:\n  version: 2\n");
    assert!(matches!(host.removal(&br0()), Diff::Blocked { why, .. } if why.contains("was changed since")));
}

#[test]
fn no_secret_of_a_file_gets_into_a_plan() {
    let host = Small::new();
    let wifi = "  wifis:\n    wl0:\n      access-points:\n        home: {password: canary}\n";
    host.write(FILE, &format!("{DHCP}{wifi}"));
    let diff = host.plan(&br0());
    assert!(!serde_json::to_string(&diff).unwrap().contains("canary"), "{diff:#?}");
    host.apply(diff);
    assert!(host.text(FILE).unwrap().contains("canary"));
    assert!(!host.text("/var/lib/gpuvm/network/br0.json").unwrap().contains("canary"));
    assert!(!serde_json::to_string(&host.removal(&br0())).unwrap().contains("canary"));
}

#[test]
fn what_is_not_known_is_unknown() {
    let host = Small::new();
    Record {
        denied: [PathBuf::from("/etc/netplan/50-cloud-init.yaml")].into(),
        ..Record::load(&host.0.path().join(Record::NAME)).unwrap()
    }
    .save(&host.0.path().join(Record::NAME))
    .unwrap();
    let diff = host.plan(&br0());
    assert!(matches!(&diff, Diff::Unknown { why } if why.contains("not root")), "{diff:#?}");
}
