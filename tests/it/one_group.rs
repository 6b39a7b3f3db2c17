//! Two cards of one IOMMU group, on a copy of a recorded host: a group goes to one VM at a time. VMs that are to run beside each
//! other with one of them each are refused by name, and so is what would come to that: a start, an attach.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::OnceLock;

use crate::host::Host;

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
gpus:
  a: { match: { address: \"0000:01:00\" }, use: vfio }
  b: { match: { address: \"0000:02:00\" }, use: vfio }
vms:
  one: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [a], start: manual }
  two: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [b], start: manual }
  bare: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, start: manual }
";

/// The recorded host with its two cards in group 9.
fn bare(manifest: &str) -> Host {
    let host = Host::bare(manifest);
    let root = host.at("host/root/sys");
    for function in ["0000:01:00.0", "0000:01:00.1"] {
        let link = root.join("bus/pci/devices").join(function).join("iommu_group");
        fs::remove_file(&link).unwrap();
        symlink("../../../../kernel/iommu_groups/9", link).unwrap();
        let (old, new) = (root.join("kernel/iommu_groups/8/devices"), root.join("kernel/iommu_groups/9/devices"));
        fs::rename(old.join(function), new.join(function)).unwrap();
    }
    fs::remove_dir_all(root.join("kernel/iommu_groups/8")).unwrap();
    host
}

/// The same with its VMs, which are off.
fn made() -> Host {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made: &Path = MADE
        .get_or_init(|| {
            let host = bare(MANIFEST);
            host.says("apply --yes --reboot", 0);
            host.dir
        })
        .path();
    Host::copy(made)
}

fn says(host: &Host, words: &str, code: i32) -> String {
    host.says(words, code).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn runs(host: &Host) -> String {
    let record = host.libvirt(|_| {});
    let all = record["domains"].as_array().unwrap().iter().filter(|d| d["active"] == true);
    all.map(|d| d["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_plan_that_would_run_both_is_refused_by_name_and_explain_says_why() {
    let host = bare(&MANIFEST.replace("start: manual", "start: boot"));
    let said = says(&host, "plan -f host.yaml", 1);
    let why = "0000:02:00 is in IOMMU group 9 with 0000:01:00, which VM `one` has: a group goes to one VM at a time, and both \
               are to run";
    assert!(said.contains(why) && said.contains("vms.two") && said.contains("`start: manual`"), "{said}");
    let said = says(&host, "gpu explain b -f host.yaml", 1);
    let why =
        "VM `two` has this card, and VM `one` has 0000:01:00 of the same group 9: a group goes to one VM at a time";
    assert!(said.contains(&format!("FAIL group {why}")), "{said}");

    // One of them runs at a time: no plan stands in the way of that, and no verdict is sure.
    let host = bare(MANIFEST);
    says(&host, "plan -f host.yaml", 2);
    let said = says(&host, "gpu explain a -f host.yaml", 3);
    assert!(said.contains("? group VM `one` has this card, and VM `two` has 0000:02:00 of the same group 9"), "{said}");
    // Both in one VM, and given to none else.
    for vms in ["gpus: [a, b], start: boot", "start: boot"] {
        let host = bare(&MANIFEST.replace("gpus: [a], start: manual", vms).replace("gpus: [b], ", ""));
        says(&host, "plan -f host.yaml", 2);
        let said = says(&host, "gpu explain a -f host.yaml", 3);
        assert!(said.contains("ok group 9: 0000:01:00.0 0000:01:00.1, and 0000:02:00.0 0000:02:00.1"), "{said}");
    }
    let host = bare(&MANIFEST.replace("gpus: [a], start: manual", "start: manual"));
    let said = says(&host, "gpu explain a -f host.yaml", 3);
    assert!(
        said.contains("? group VM `two` has 0000:02:00 of group 9: while it runs, this card can go to no"),
        "{said}"
    );
}

#[test]
fn a_second_vm_is_refused_by_the_first_ones_device_or_takes_its_place() {
    let host = made();
    says(&host, "vm start one", 0);
    let said = says(&host, "vm start two", 1);
    let why = "VM `one` has 0000:01:00.0 of IOMMU group 9, which goes to one VM at a time and has 0000:02:00.0 of this one too";
    assert!(said.contains(why) && said.contains("gpuvm vm start two --swap"), "{said}");
    let info = says(&host, "vm info two", 0);
    assert!(info.contains(why) && info.contains("gpuvm vm start two --swap"), "{info}");
    assert_eq!(runs(&host), "one");
    says(&host, "vm start bare", 0);
    says(&host, "vm start two --swap", 0);
    assert_eq!(runs(&host), "bare two");
}

#[test]
fn a_card_of_a_running_vms_group_goes_to_no_other_vm() {
    let host = made();
    says(&host, "gpu detach two b --yes", 0);
    says(&host, "vm start one", 0);
    let said = says(&host, "gpu attach bare b --yes", 1);
    let why = "VM `one` has 0000:01:00.0 of its IOMMU group 9, and runs: a group goes to one VM at a time";
    assert!(said.contains(why) && said.contains("gpuvm vm stop one"), "{said}");
    assert!(!host.domain("bare")["inactiveXml"].as_str().unwrap().contains("<hostdev "));
    // The VM that has the group gets the rest of it, with its own process on the group's node.
    host.record(|record| {
        record["deviceUsers"] = serde_json::json!({ "users": [
            { "pid": 99, "name": "qemu-system-x86", "cgroup": "/machine.slice/machine-qemu\\x2d1\\x2done.scope", "nodes": ["/dev/vfio/9"] },
        ] });
    });
    says(&host, "gpu attach one b --yes", 3);
    assert!(host.domain("one")["inactiveXml"].as_str().unwrap().contains("bus='0x02'"));
}
