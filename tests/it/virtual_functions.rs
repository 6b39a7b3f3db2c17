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

#[test]
fn two_ports_of_one_card_have_an_entry_each() {
    const PORTS: &str = "version: 1
devices:
  p0: { match: \"0000:03:00\", use: host, virtualFunctions: { count: 2 } }
  p1: { match: \"0000:03:00\", use: host, virtualFunctions: { count: 1, function: 1 } }
vms:
  router: { cpus: 1, memory: 512MiB, disks: [1GiB], devices: [p0/1, p1/0] }
";
    let host = Host::bare(PORTS);
    copy_tree(&repository().join("tests/cases/virtual-functions/overlay"), &host.at("host"));
    let sys = host.at("host/root/sys");
    let real = sys.join("devices/pci0000:00/0000:00:13.0");
    copy_tree(&real.join("0000:03:00.0"), &real.join("0000:03:00.1"));
    fs::remove_dir_all(real.join("0000:03:00.1/net")).unwrap();
    let (group, own) = (sys.join("kernel/iommu_groups/12"), real.join("0000:03:00.1/iommu_group"));
    fs::create_dir_all(group.join("devices")).unwrap();
    fs::copy(sys.join("kernel/iommu_groups/11/reserved_regions"), group.join("reserved_regions")).unwrap();
    let device = "../../../../devices/pci0000:00/0000:00:13.0/0000:03:00.1";
    std::os::unix::fs::symlink(device, group.join("devices/0000:03:00.1")).unwrap();
    fs::remove_file(&own).unwrap();
    std::os::unix::fs::symlink("../../../../kernel/iommu_groups/12", own).unwrap();
    let device = "../../../devices/pci0000:00/0000:00:13.0/0000:03:00.1";
    std::os::unix::fs::symlink(device, sys.join("bus/pci/devices/0000:03:00.1")).unwrap();
    host.says("apply --yes --reboot", 0);
    let number = |f: u8| {
        let file = host.at(&format!("host/root/sys/bus/pci/devices/0000:03:00.{f}/sriov_numvfs"));
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    assert_eq!((number(0), number(1)), ("2".to_owned(), "1".to_owned()));
    let xml = host.domain("router")["inactiveXml"].as_str().unwrap().to_owned();
    for function in ["0x1", "0x2"] {
        assert!(xml.contains(&format!("bus='0x03' slot='0x10' function='{function}'")), "{function}: {xml}");
    }
    says(&host, "plan -f host.yaml", 0);
    fs::write(host.at("host.yaml"), PORTS.replace(", function: 1", "")).unwrap();
    let said = says(&host, "plan -f host.yaml", 1);
    assert!(said.contains("`0000:03:00` is `devices.p0` already"), "{said}");
    let without = PORTS.replace(", p1/0", "");
    let begin = without.find("  p1:").unwrap();
    let end = begin + without[begin..].find('\n').unwrap() + 1;
    fs::write(host.at("host.yaml"), without[..begin].to_owned() + &without[end..]).unwrap();
    host.says("apply --yes", 0);
    assert_eq!((number(0), number(1)), ("2".to_owned(), "0".to_owned()));
}
