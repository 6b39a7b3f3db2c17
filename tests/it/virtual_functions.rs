//! Virtual functions as a person has them: a VM that has one, or would stay with one that goes, keeps them as they are, and
//! is named; undone while a VM runs with one, nothing changes.

use std::fs;

use crate::host::Host;
use crate::machine::{copy_tree, repository};

const NIC: &str = "version: 1
devices:
  nic: { match: \"0000:03:00\", use: host, virtualFunctions: { count: 2 } }
networks:
  nat: { libvirt: default }
vms:
  router: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, devices: [nic/1], start: boot }
";

fn made() -> Host {
    let host = Host::bare(NIC);
    copy_tree(&repository().join("tests/cases/virtual-functions/overlay"), &host.at("host"));
    host.says("apply --yes --reboot", 0);
    host
}

fn number(host: &Host) -> String {
    fs::read_to_string(host.at("host/root/sys/bus/pci/devices/0000:03:00.0/sriov_numvfs")).unwrap().trim().to_owned()
}

/// As it was before it was cut into lines.
fn says(host: &Host, command: &str, code: i32) -> String {
    host.says(command, code).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn ends(host: &Host) {
    host.libvirt(|known| {
        known["domains"][0]["active"] = false.into();
        known["domains"][0]["liveXml"] = serde_json::Value::Null;
    });
}

#[test]
fn a_vm_that_runs_with_one_keeps_them_all() {
    let host = made();
    assert_eq!(number(&host), "2");
    let without = NIC.replace(", virtualFunctions: { count: 2 }", "").replace(", devices: [nic/1]", "");
    for (then, what) in [
        (
            NIC.replace("count: 2", "count: 3"),
            "its virtual functions would be changed, and VM `router` has one of them",
        ),
        (
            NIC.replace("count: 2", "count: 2, use: host").replace(", devices: [nic/1]", ""),
            "would be changed, and VM `router`",
        ),
        (without.clone(), "they left the manifest, and VM `router` has one of them"),
    ] {
        fs::write(host.at("host.yaml"), then).unwrap();
        let plan = says(&host, "plan -f host.yaml", 1);
        assert!(plan.contains(what), "{plan}");
        says(&host, "apply --yes", 1);
        assert_eq!(number(&host), "2");
    }
    ends(&host);
    fs::write(host.at("host.yaml"), NIC.replace("count: 2", "count: 3").replace("start: boot", "start: manual"))
        .unwrap();
    says(&host, "apply --yes", 0);
    assert_eq!(number(&host), "3");
    fs::write(host.at("host.yaml"), without.replace("start: boot", "start: manual")).unwrap();
    says(&host, "apply --yes", 0);
    assert_eq!(number(&host), "0");
    assert!(!host.domain("router")["inactiveXml"].as_str().unwrap().contains("<hostdev"));
}

#[test]
fn a_vm_that_would_stay_with_one_that_goes_is_named() {
    let host = made();
    ends(&host);
    let alone = &NIC[..NIC.find("networks:").unwrap()];
    for then in [
        "version: 1\n".to_owned(),
        alone.replace("count: 2", "count: 1"),
        alone.replace("count: 2", "count: 2, use: host"),
    ] {
        fs::write(host.at("host.yaml"), &then).unwrap();
        let plan = says(&host, "plan -f host.yaml", 1);
        let what = "VM `router` stays and has 0000:03:10.2, which virtual-functions[nic] will not have for VMs";
        assert!(plan.contains(what), "{then}: {plan}");
    }
    fs::write(host.at("host.yaml"), alone).unwrap();
    let plan = says(&host, "plan -f host.yaml", 2);
    assert!(!plan.contains("would not start any more"), "it keeps what it has: {plan}");
}

#[test]
fn an_undo_waits_for_the_vm_that_a_later_run_gave_one() {
    let host = Host::bare(&NIC.replace(", devices: [nic/1]", ""));
    copy_tree(&repository().join("tests/cases/virtual-functions/overlay"), &host.at("host"));
    host.says("apply --yes --reboot", 0);
    ends(&host);
    fs::write(host.at("host.yaml"), NIC.replace("start: boot", "start: boot, state: running")).unwrap();
    host.says("apply --yes --reboot", 0);
    let said = says(&host, "undo 1 --yes --skip libvirt-domain", 1);
    assert!(said.contains("VM `router` runs with one of them"), "{said}");
    assert_eq!(number(&host), "2");
}
