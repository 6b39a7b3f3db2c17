use super::*;

const MAC: &str = "52:54:00:00:00:01";

fn card(name: &'static str, mac: &str) -> LinkId<'static> {
    LinkId { name, mac: mac.parse().ok(), driver: Some("igb".to_owned()), physical: true }
}

fn moved_from(files: &[(&str, &str)], link: &LinkId<'_>) -> Result<Moved, Refused> {
    let files: Vec<(PathBuf, String)> = files
        .iter()
        .map(|(n, t)| {
            (
                PathBuf::from(if n.starts_with('/') { (*n).to_owned() } else { format!("/etc/netplan/{n}") }),
                (*t).to_owned(),
            )
        })
        .collect();
    let mut others = vec![card("enp6s0", "52:54:00:00:00:06"), link.clone()];
    if link.mac != MAC.parse().ok() {
        others.push(card("enp5s0", MAC));
    }
    to_bridge(
        &files,
        Path::new("/etc/netplan/90-gpuvm-br0.yaml"),
        link,
        &others,
        &"br0".parse().unwrap(),
        MAC.parse().unwrap(),
    )
}

fn moved(text: &str) -> Moved {
    moved_from(&[("50-a.yaml", text)], &card("enp5s0", MAC)).unwrap()
}

fn why(text: &str) -> String {
    let refused = moved_from(&[("50-a.yaml", text)], &card("enp5s0", MAC)).unwrap_err();
    assert!(!refused.help.is_empty());
    refused.why
}

fn yaml_of(value: impl Into<serde_yaml::Value>) -> serde_yaml::Value {
    value.into()
}

fn value(text: &str, path: &[&str]) -> serde_yaml::Value {
    let all: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
    path.iter().fold(all, |v, key| v.get(key).cloned().unwrap_or(serde_yaml::Value::Null))
}

#[test]
fn a_dhcp_card_moves_whole_and_the_rest_of_the_file_stays() {
    let text = "# made by hand\nnetwork:\n    version: 2\n    ethernets:\n        # the fast one\n        enp5s0:   # uplink\n            dhcp4: true\n            # why mac: the router\n            dhcp-identifier: mac\n            mtu: 9000\n            # deep\n        enp6s0: {dhcp4: no}\n# end\n";
    let m = moved(text);
    assert_eq!(
        m.edits[0].after,
        "# made by hand\nnetwork:\n    version: 2\n    ethernets:\n        # the fast one\n        enp6s0: {dhcp4: no}\n# end\n"
    );
    assert_eq!(
        m.ours.lines().skip(2).collect::<Vec<_>>().join("\n"),
        "network:\n  version: 2\n  ethernets:\n    enp5s0:\n      match:\n        macaddress: \"52:54:00:00:00:01\"\n      \
         dhcp4: false\n      dhcp6: false\n      mtu: 9000\n  bridges:\n    br0:\n      interfaces:\n        - enp5s0\n      \
         macaddress: \"52:54:00:00:00:01\"\n      parameters:\n        stp: false\n        forward-delay: 0\n      \
         dhcp4: true\n      dhcp-identifier: mac\n      mtu: 9000"
    );
    assert_eq!(m.keys, ["dhcp4", "dhcp-identifier"]);
}

#[test]
fn a_static_card_of_both_families_keeps_every_value() {
    let text = "network:\n  version: 2\n  renderer: networkd\n  ethernets:\n    enp5s0:\n      addresses:\n        - 203.0.113.7/32\n        - \"2001:db8::2/64\":\n            lifetime: 0\n            label: 'v6'\n      accept-ra: no\n      routes:\n        - to: 0.0.0.0/0\n          via: 203.0.113.1\n          on-link: true\n          metric: 50\n        - {to: default, via: 'fe80::1'}\n      nameservers:\n        search: [example.net]\n        addresses: [9.9.9.9, \"2620:fe::fe\"]\n      dhcp4-overrides: {use-dns: false}\n      optional: true\n";
    let m = moved(text);
    for key in ["addresses", "accept-ra", "routes", "nameservers", "dhcp4-overrides", "optional"] {
        assert_eq!(
            value(&m.ours, &["network", "bridges", "br0", key]),
            value(text, &["network", "ethernets", "enp5s0", key]),
            "{key}"
        );
    }
    assert_eq!(m.addresses, ["203.0.113.7/32", "2001:db8::2/64"]);
    assert_eq!(m.edits[0].after, "network:\n  version: 2\n  renderer: networkd\n");
}

#[test]
fn an_entry_by_mac_with_another_id_and_name_is_found() {
    let text = "network:\n  ethernets:\n    \"lan port\":\n      match: {macaddress: '52:54:00:00:00:01'}\n      set-name: lan0\n      dhcp4: true\n";
    let m = moved_from(&[("50-a.yaml", text)], &card("lan0", MAC)).unwrap();
    assert_eq!(value(&m.ours, &["network", "ethernets", "lan port", "set-name"]), yaml_of("lan0"));
    assert_eq!(value(&m.ours, &["network", "bridges", "br0", "interfaces"])[0], yaml_of("lan port"));
    assert_eq!(m.edits[0].after, "network: {}\n");
}

#[test]
fn a_wildcard_counts_only_where_nothing_else_fits_it() {
    let text =
        |glob: &str| format!("network:\n  ethernets:\n    all:\n      match: {{name: '{glob}'}}\n      dhcp4: true\n");
    assert!(why(&text("en*")).contains("also for enp6s0"));
    let m = moved(&text("enp5*"));
    assert_eq!(value(&m.ours, &["network", "ethernets", "all", "match", "macaddress"]), yaml_of(MAC));
    assert!(
        why("network:\n  ethernets:\n    all:\n      match: {driver: [e1000e, igb]}\n      dhcp4: true\n")
            .contains("also for")
    );
    assert!(why(&text("wl*")).contains("no netplan file"));
}

#[test]
fn globs() {
    for (pattern, text, fits) in [
        ("en*", "enp5s0", true),
        ("e?p5s0", "enp5s0", true),
        ("en[op]*", "enp5s0", true),
        ("en[!p]*", "enp5s0", false),
        ("eth[0-3]", "eth2", true),
        ("eth[0-3]", "eth4", false),
        ("", "a", false),
    ] {
        assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
    }
}

#[test]
fn an_entry_that_a_vlan_is_on_stays_without_what_moves() {
    let text = "network:\n  version: 2\n  ethernets:\n    enp5s0:\n      mtu: 9000\n      dhcp4: true\n      addresses: [10.0.0.2/24]\n  vlans:\n    storage: {id: 10, link: enp5s0, addresses: [10.1.0.2/24]}\n";
    let m = moved(text);
    let after = &m.edits[0].after;
    assert_eq!(
        value(after, &["network", "ethernets", "enp5s0"]),
        value("{match: {macaddress: '52:54:00:00:00:01'}, mtu: 9000}", &[])
    );
    assert_eq!(value(after, &["network", "vlans"]), value(text, &["network", "vlans"]));
    assert_eq!(value(&m.ours, &["network", "ethernets"]), serde_yaml::Value::Null);
    assert_eq!(value(&m.ours, &["network", "bridges", "br0", "dhcp4"]), yaml_of(true));

    let only =
        moved("network:\n  ethernets:\n    enp5s0:\n      dhcp4: true\n  vlans:\n    v: {id: 1, link: enp5s0}\n");
    assert_eq!(value(&only.edits[0].after, &["network", "ethernets", "enp5s0", "match", "macaddress"]), yaml_of(MAC));
    let line =
        moved("network:\n  ethernets:\n    enp5s0: {dhcp4: true, mtu: 1400}\n  vlans:\n    v: {id: 1, link: enp5s0}\n");
    assert_eq!(
        value(&line.edits[0].after, &["network", "ethernets", "enp5s0"]),
        value("{match: {macaddress: '52:54:00:00:00:01'}, mtu: 1400}", &[])
    );
}

#[test]
fn a_bond_and_a_vlan_lose_their_network_only() {
    let text = "network:\n  version: 2\n  ethernets:\n    enp5s0: {}\n    enp6s0: {}\n  bonds:\n    bond0:\n      interfaces: [enp5s0, enp6s0]\n      dhcp4: true   # from the router\n      parameters:\n        mode: 802.3ad\n      nameservers:\n        addresses:\n          - 10.0.0.1\n          # the second one\n          - 10.0.0.2\n";
    let bond = LinkId { physical: false, ..card("bond0", "52:54:00:00:00:09") };
    let m = moved_from(&[("50-a.yaml", text)], &bond).unwrap();
    assert_eq!(
        m.edits[0].after,
        "network:\n  version: 2\n  ethernets:\n    enp5s0: {}\n    enp6s0: {}\n  bonds:\n    bond0:\n      interfaces: [enp5s0, enp6s0]\n      parameters:\n        mode: 802.3ad\n"
    );
    assert_eq!(value(&m.ours, &["network", "ethernets"]), serde_yaml::Value::Null);
    assert_eq!(
        value(&m.ours, &["network", "bridges", "br0", "nameservers"]),
        value(text, &["network", "bonds", "bond0", "nameservers"])
    );

    let vlan = LinkId { physical: false, ..card("enp5s0.7", MAC) };
    let text = "network:\n  ethernets:\n    enp5s0: {dhcp4: false}\n  vlans:\n    enp5s0.7:\n      id: 7\n      link: enp5s0\n      addresses: [10.7.0.2/24]\n";
    let m = moved_from(&[("50-a.yaml", text)], &vlan).unwrap();
    assert_eq!(
        m.edits[0].after,
        "network:\n  ethernets:\n    enp5s0: {dhcp4: false}\n  vlans:\n    enp5s0.7:\n      id: 7\n      link: enp5s0\n"
    );
}

#[test]
fn several_files_are_joined_where_they_do_not_speak_of_the_same() {
    let one = "network:\n  version: 2\n  ethernets:\n    enp5s0:\n      dhcp4: true\n";
    let two = "network:\n  ethernets:\n    enp5s0:\n      mtu: 1400\n    enp6s0:\n      dhcp4: true\n";
    let m = moved_from(&[("10-a.yaml", one), ("20-b.yaml", two)], &card("enp5s0", MAC)).unwrap();
    assert_eq!(m.edits.len(), 2);
    assert_eq!(value(&m.ours, &["network", "ethernets", "enp5s0", "mtu"]), yaml_of(1400));
    assert_eq!(m.edits[1].after, "network:\n  ethernets:\n    enp6s0:\n      dhcp4: true\n");

    let other = "network:\n  ethernets:\n    enp5s0:\n      dhcp4: false\n";
    let refused = moved_from(&[("10-a.yaml", one), ("20-b.yaml", other)], &card("enp5s0", MAC)).unwrap_err();
    assert!(refused.why.contains("10-a.yaml") && refused.why.contains("20-b.yaml"), "{refused}");

    let made = moved_from(&[("/run/netplan/enp5s0.yaml", one)], &card("enp5s0", MAC)).unwrap_err();
    assert!(made.why.contains("/run/netplan/enp5s0.yaml"), "{made}");
}

#[test]
fn what_is_not_ours_to_move_is_refused() {
    for (text, said) in [
        ("network:\n  renderer: NetworkManager\n  ethernets:\n    enp5s0: {dhcp4: true}\n", "NetworkManager"),
        ("network:\n  ethernets:\n    enp5s0:\n      renderer: NetworkManager\n", "NetworkManager"),
        ("network:\n  ethernets:\n    enp5s0: &a {dhcp4: true}\n    enp6s0: *a\n", "anchors"),
        ("network: {ethernets: {enp5s0: {dhcp4: true}}}\n", "brackets"),
        ("network:\n  ethernets: {enp5s0: {dhcp4: true}}\n", "brackets"),
        ("network:\n  ethernets:\n    enp5s0:\n      auth: {password: x}\n", "`auth`"),
        (
            "network:\n  ethernets:\n    enp5s0: {dhcp4: true}\n  bridges:\n    br7: {interfaces: [enp5s0]}\n",
            "a port of `bridges.br7`",
        ),
        ("network:\n  ethernets:\n    enp5s0: {dhcp4: true}\n  bridges:\n    br0: {}\n", "bridges.br0"),
        ("network:\n  ethernets:\n    enp6s0: {dhcp4: true}\n", "no netplan file"),
        (
            "network:\n  ethernets:\n    enp5s0: {dhcp4: true}\n    b:\n      match: {macaddress: '52:54:00:00:00:01'}\n",
            "several",
        ),
        ("network:\n  ethernets:\n    enp5s0: [\n", "not valid YAML"),
    ] {
        assert!(why(text).contains(said), "{text}\n{}", why(text));
    }
}

#[test]
fn quotes_line_ends_and_tails_are_kept() {
    let m = moved("\"network\":\n  'ethernets':\n    \"enp5s0\":\n      \"dhcp4\": 'true'\n    enp6s0: {}");
    assert_eq!(m.edits[0].after, "\"network\":\n  'ethernets':\n    enp6s0: {}");
    let last = moved("network:\n  ethernets:\n    enp6s0: {}\n    enp5s0: {dhcp4: true}");
    assert_eq!(last.edits[0].after, "network:\n  ethernets:\n    enp6s0: {}\n");
}

#[test]
fn our_own_file_is_not_looked_at() {
    let ours = "network:\n  ethernets:\n    enp5s0: {}\n  bridges:\n    br0: {interfaces: [enp5s0]}\n";
    let text = "network:\n  ethernets:\n    enp5s0:\n      dhcp4: true\n";
    assert!(moved_from(&[("50-a.yaml", text), ("90-gpuvm-br0.yaml", ours)], &card("enp5s0", MAC)).is_ok());
}

#[test]
fn secrets_are_not_shown() {
    let text = "network:\n  wifis:\n    wl0:\n      access-points:\n        home:\n          password: \"canary1\"\n          auth: {identity: canary2, password: canary3}\n  tunnels:\n    wg0:\n      key: canary4\n      peers:\n        - keys: {public: canary5, shared: canary6}\n      mtu: 1400\n";
    let shown = redacted(text);
    assert!(!shown.contains("canary") && shown.contains("mtu: 1400") && shown.contains("home"), "{shown}");
    let block = redacted("network:\n  a:\n    password: |\n      canary7\n      canary8\n    x: 1\n");
    assert!(!block.contains("canary") && block.contains("x: 1"), "{block}");
    assert!(!redacted("a: [canary").contains("canary"));
}
