//! The bridge from a manifest to a host and back, by the program itself on a copy of the shipped recorded host.

use std::fs;

use crate::machine::{copy_tree, gpuvm, repository, stdout, tree};

#[test]
fn a_bridge_is_planned_made_in_sync_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
    // cloud-init wrote the card's netplan entry, and would again.
    copy_tree(&repository().join("tests/cases/twin/overlay"), &dir.path().join("host"));
    let manifest = |text: &str| fs::write(dir.path().join("host.yaml"), text).unwrap();
    let run = |args: &[&str]| gpuvm(&[args, &["-f", "host.yaml", "--root", "host"]].concat(), dir.path());
    let before = tree(&dir.path().join("host"));

    manifest("version: 1\nbridge: { name: br0, uplink: auto }\n");
    let plan = stdout(&run(&["plan"]));
    for said in
        ["enp0s2 → br0, DHCP kept, MAC kept", "[network-loss]", "-      dhcp4: true", "guarded:", "originals are kept"]
    {
        assert!(plan.contains(said), "{said}\n{plan}");
    }
    let applied = run(&["apply", "--yes"]);
    assert!(applied.status.success(), "{}{}", stdout(&applied), String::from_utf8_lossy(&applied.stderr));
    let second = run(&["plan"]);
    assert_eq!(second.status.code(), Some(0), "{}", stdout(&second));
    let during = tree(&dir.path().join("host"));
    assert!(!during["/etc/netplan/50-cloud-init.yaml"].contains("enp0s2"));
    assert!(during["/etc/netplan/90-gpuvm-br0.yaml"].contains("dhcp4: true"));
    assert_eq!(
        during["/etc/cloud/cloud.cfg.d/99-gpuvm-network.cfg"].lines().last(),
        Some("network: {config: disabled}")
    );

    manifest("version: 1\n");
    let back = run(&["apply", "--yes"]);
    assert!(back.status.success(), "{}{}", stdout(&back), String::from_utf8_lossy(&back.stderr));
    assert_eq!(run(&["plan"]).status.code(), Some(0));
    assert_eq!(tree(&dir.path().join("host")), before);
}
