//! A card that leaves the manifest goes back to its own drivers: at once where nobody has it, else with the reason; and no
//! VM stays that would want it.

use std::fs;

use crate::host::Host;

const VFIO: &str = "version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: vfio }\n";
const WITH_VM: &str = "version: 1
networks:
  nat: { libvirt: default }
gpus:
  work: { match: \"0000:02:00\", use: vfio }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [work], start: boot }
";
const RULES: &str = "host/root/etc/udev/rules.d/61-gpuvm-vfio-work.rules";
const OWN: &str = "nvidia snd_hda_intel";
const KEPT: &str = "vfio-pci vfio-pci";

fn drivers(host: &Host) -> String {
    let driver = |n: u8| {
        let link = fs::read_link(host.at(&format!("host/root/sys/bus/pci/devices/0000:02:00.{n}/driver"))).unwrap();
        link.file_name().unwrap().to_str().unwrap().to_owned()
    };
    format!("{} {}", driver(0), driver(1))
}

/// The recorded host after an apply of the first manifest, with the second one to apply.
fn left(manifest: &str, then: &str) -> Host {
    let host = Host::made(manifest);
    assert_eq!(drivers(&host), KEPT);
    fs::write(host.at("host.yaml"), then).unwrap();
    host
}

/// As it was before it was cut into lines.
fn says(host: &Host, command: &str, code: i32) -> String {
    host.says(command, code).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn boots(host: &Host) -> u64 {
    host.record(|_| {})["boots"].as_u64().unwrap()
}

fn vm_ends(host: &Host) {
    host.libvirt(|known| {
        known["domains"][0]["active"] = false.into();
        known["domains"][0]["liveXml"] = serde_json::Value::Null;
    });
}

#[test]
fn one_that_nobody_has_is_back_at_once() {
    for then in ["version: 1\n".to_owned(), VFIO.replace("use: vfio", "use: host")] {
        let host = left(VFIO, &then);
        let before = boots(&host);
        let plan = says(&host, "plan -f host.yaml", 2);
        for part in ["0000:02:00 goes back to the host", ".0: vfio-pci → its own driver", "0 reboots"] {
            assert!(plan.contains(part), "{part}: {plan}");
        }
        host.says("apply -f host.yaml --yes --reboot", 0);
        assert_eq!(drivers(&host), OWN, "{then}");
        assert_eq!(boots(&host), before);
        assert!(!host.at(RULES).exists());
        host.says("plan -f host.yaml", 0);
        // And there and back again by undo.
        host.says("undo --yes --reboot", 0);
        assert_eq!(drivers(&host), KEPT);
    }
}

#[test]
fn one_that_somebody_has_waits_with_the_reason_and_for_a_boot_at_the_latest() {
    let host = left(VFIO, "version: 1\n");
    host.record(|record| {
        let qemu =
            serde_json::json!({ "pid": 4711, "name": "qemu-system-x86", "cgroup": "/", "nodes": ["/dev/vfio/9"] });
        record["deviceUsers"]["users"].as_array_mut().unwrap().push(qemu);
    });
    let reason = "qemu-system-x86 (pid 4711) has it open";
    let plan = says(&host, "plan -f host.yaml", 2);
    assert!(plan.contains(reason) && plan.contains("1 reboot,"), "{plan}");
    let said = says(&host, "apply -f host.yaml --yes", 3);
    assert!(
        said.contains("vfio-binding[work] waits for reboot: it is on vfio-pci still") && said.contains(reason),
        "{said}"
    );
    assert_eq!(drivers(&host), KEPT);
    let plan = says(&host, "plan -f host.yaml", 3);
    assert!(plan.contains(reason), "{plan}");
    host.says("apply -f host.yaml --yes --reboot", 0);
    assert_eq!(drivers(&host), OWN);
    host.says("plan -f host.yaml", 0);
}

#[test]
fn a_vm_that_stays_and_lists_it_is_named_before_anything_changes() {
    let host = left(WITH_VM, "version: 1\n");
    let plan = says(&host, "plan -f host.yaml", 1);
    for part in
        ["VM `tiny` stays and has 0000:02:00", "vfio-binding[work]", "gpuvm gpu detach tiny 0000:02:00", "absent: true"]
    {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    host.says("apply -f host.yaml --yes --reboot", 1);
    assert_eq!(drivers(&host), KEPT);
    assert!(host.at(RULES).exists());
    // Without the card in its definition it stays; while it runs with it, that waits.
    host.says("gpu detach tiny 0000:02:00 --yes", 3);
    let said = says(&host, "apply -f host.yaml --yes", 3);
    assert!(said.contains("VM `tiny` has it until it is shut down"), "{said}");
    assert_eq!(drivers(&host), KEPT);
    vm_ends(&host);
    let before = boots(&host);
    host.says("apply -f host.yaml --yes", 0);
    assert_eq!((drivers(&host), boots(&host)), (OWN.to_owned(), before));
    host.says("plan -f host.yaml", 0);
}

#[test]
fn a_vm_that_leaves_or_lets_go_in_the_same_plan_is_no_hindrance() {
    let gone = "version: 1\nvms:\n  tiny: { cpus: 1, memory: 512MiB, absent: true }\n";
    let without =
        WITH_VM.replace(", gpus: [work]", "").replace("gpus:\n  work: { match: \"0000:02:00\", use: vfio }\n", "");
    for then in [gone, &without] {
        let host = left(WITH_VM, then);
        vm_ends(&host);
        host.says("apply -f host.yaml --yes --reboot", 0);
        assert_eq!(drivers(&host), OWN, "{then}");
        host.says("plan -f host.yaml", 0);
    }
    // The VM leaves the manifest alone, and stays with its card.
    let host = left(WITH_VM, VFIO);
    let plan = says(&host, "plan -f host.yaml", 2);
    assert!(
        plan.contains("VM `tiny` stays and has 0000:02:00, and from now on nobody looks at that when it starts"),
        "{plan}"
    );
    host.says("apply -f host.yaml --yes --reboot", 0);
    assert_eq!(drivers(&host), KEPT);
    for gone in ["/etc/gpuvm/devices", "/etc/libvirt/hooks/qemu.d/gpuvm"] {
        assert!(!host.at(&format!("host/root{gone}")).exists(), "one without the other keeps it from starting");
    }
}

#[test]
fn one_that_stays_with_vms_in_another_way_stays_where_it_is() {
    let host = left(VFIO, &VFIO.replace("work:", "other:"));
    let before = boots(&host);
    let plan = says(&host, "plan -f host.yaml", 2);
    assert!(plan.contains("0000:02:00 is kept for VMs in another way"), "{plan}");
    host.says("apply -f host.yaml --yes --reboot", 0);
    assert_eq!((drivers(&host), boots(&host)), (KEPT.to_owned(), before));
    host.says("plan -f host.yaml", 0);
    // By id, it would come back to vfio-pci.
    let host = left(VFIO, "version: 1\n");
    fs::create_dir_all(host.at("host/root/etc/modprobe.d")).unwrap();
    fs::write(host.at("host/root/etc/modprobe.d/vfio.conf"), "options vfio-pci ids=10de:2684,10de:22ba\n").unwrap();
    let plan = says(&host, "plan -f host.yaml", 2);
    assert!(plan.contains("it stays on vfio-pci: `options vfio-pci ids=10de:2684,10de:22ba`"), "{plan}");
    host.says("apply -f host.yaml --yes --reboot", 0);
    assert_eq!(drivers(&host), KEPT);
    host.says("plan -f host.yaml", 0);
}
