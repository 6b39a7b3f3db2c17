//! vGPUs as a person has them: the card's own list and driver decide; a VM that has one keeps it; what gpuvm did not make
//! stays. NVIDIA's driver is played.

use std::fs;

use crate::host::Host;
use crate::machine::{copy_tree, repository};

const A40: &str = "version: 1
gpus:
  a40: { match: { address: \"0000:03:00\" }, use: host, vgpu: { type: NVIDIA A40-8Q, count: 2 } }
networks:
  nat: { libvirt: default }
vms:
  web: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [a40/1], start: boot }
";
// Where the links of /sys/bus/pci lead, which are those of a host.
const SYS: &str = "host/root/sys/devices/pci0000:00/0000:00:13.0/0000:03:00";

fn host(manifest: &str) -> Host {
    let host = Host::bare(manifest);
    copy_tree(&repository().join("tests/cases/vgpu/overlay"), &host.at("host"));
    host
}

fn made() -> Host {
    let host = host(A40);
    host.says("apply --yes --reboot", 0);
    host
}

fn types(host: &Host) -> String {
    let one =
        |n: u8| fs::read_to_string(host.at(&format!("{SYS}.{n}/nvidia/current_vgpu_type"))).unwrap_or("-".to_owned());
    (4..8).map(one).map(|t| t.trim().to_owned()).collect::<Vec<_>>().join(" ")
}

/// As it was before it was cut into lines.
fn says(host: &Host, command: &str, code: i32) -> String {
    host.says(command, code).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What would take a vGPU from under the VM that runs with it is refused, and nothing of it is done: `there` tells what is
/// there. The manifest without any.
fn keeps_what_a_vm_has<T: PartialEq + std::fmt::Debug>(host: &Host, there: impl Fn(&Host) -> T) -> String {
    let before = there(host);
    let without = A40.replace(", vgpu: { type: NVIDIA A40-8Q, count: 2 }", "").replace(", gpus: [a40/1]", "");
    for (then, what) in [
        (A40.replace("A40-8Q", "A40-4Q"), "its vGPUs would be changed, and VM `web` has one of them"),
        (A40.replace("count: 2", "count: 1").replace(", gpus: [a40/1]", ""), "would be changed, and VM `web`"),
        (without.clone(), "they left the manifest, and VM `web` has one of them"),
    ] {
        fs::write(host.at("host.yaml"), then).unwrap();
        let plan = says(host, "plan -f host.yaml", 1);
        assert!(plan.contains(what), "{plan}");
        says(host, "apply --yes", 1);
        assert_eq!(there(host), before);
    }
    without
}

#[test]
fn a_vm_that_runs_with_one_keeps_it_and_others_come_beside_it() {
    let host = made();
    assert_eq!(types(&host), "564 564 0 0");
    assert!(host.domain("web")["inactiveXml"].as_str().unwrap().contains("function='0x5'"), "{}", host.domain("web"));
    let with = |text: &str| fs::write(host.at("host.yaml"), text).unwrap();
    let without = keeps_what_a_vm_has(&host, types);
    with(&A40.replace("count: 2", "count: 3"));
    says(&host, "apply --yes", 0);
    assert_eq!(types(&host), "564 564 564 0");
    let said = says(&host, "undo --yes", 1);
    assert!(
        said.contains("VM `web` runs with one of them"),
        "which of them would go, the file that comes back says: {said}"
    );
    assert_eq!(types(&host), "564 564 564 0");
    host.libvirt(|known| {
        known["domains"][0]["active"] = false.into();
        known["domains"][0]["liveXml"] = serde_json::Value::Null;
    });
    says(&host, "undo --yes", 0);
    assert_eq!(types(&host), "564 564 0 0");
    with(&without.replace("start: boot", "start: manual"));
    says(&host, "apply --yes", 0);
    assert_eq!(types(&host), "- - - -");
    assert!(!host.domain("web")["inactiveXml"].as_str().unwrap().contains("<hostdev"));
}

#[test]
fn a_vm_that_would_stay_with_one_that_goes_is_named() {
    let host = made();
    host.libvirt(|known| {
        known["domains"][0]["active"] = false.into();
        known["domains"][0]["liveXml"] = serde_json::Value::Null;
    });
    let alone = &A40[..A40.find("networks:").unwrap()];
    for then in ["version: 1\n".to_owned(), alone.replace("count: 2", "count: 1")] {
        fs::write(host.at("host.yaml"), &then).unwrap();
        let plan = says(&host, "plan -f host.yaml", 1);
        assert!(plan.contains("VM `web` stays and has 0000:03:00.5, which vgpu[a40] will not have"), "{then}: {plan}");
    }
}

#[test]
fn what_the_host_or_the_card_cannot_do_is_refused_before_anything_changes() {
    let refused = |change: &dyn Fn(&Host), manifest: &str, what: &str| {
        let host = host(manifest);
        change(&host);
        let plan = says(&host, "plan -f host.yaml", 1);
        assert!(plan.contains(what), "{what}: {plan}");
        says(&host, "apply --yes --reboot", 1);
        assert!(!host.at("host/root/etc/gpuvm").exists());
    };
    let nothing = |_: &Host| {};
    refused(
        &nothing,
        &A40.replace("count: 2", "count: 5"),
        "gpus.a40.vgpu.count: 0000:03:00.0 can have 4 vGPUs at most",
    );
    let drivers = "drivers: { nvidia: { branch: \"570\" } }\n";
    refused(&nothing, &format!("{A40}{drivers}"), "installs the data centre driver, which makes no vGPUs");
    let without = |host: &Host| fs::remove_file(host.at("host/root/usr/lib/nvidia/sriov-manage")).unwrap();
    refused(&without, A40, "NVIDIA's vGPU driver for KVM hosts is not installed");
    let plain = |host: &Host| {
        for name in ["sriov_totalvfs", "sriov_numvfs"] {
            fs::remove_file(host.at(&format!("{SYS}.0/{name}"))).unwrap();
        }
    };
    refused(&plain, A40, "has no virtual functions (SR-IOV)");
    let other = |host: &Host| fs::write(host.at(&format!("{SYS}.0/vendor")), "0x1002\n").unwrap();
    refused(&other, A40, "is no card of NVIDIA's");
}

/// A kernel on which the driver offers mediated devices.
fn older(host: &Host) {
    fs::write(host.at("host/root/proc/sys/kernel/osrelease"), "6.1.0-38-amd64\n").unwrap();
}

/// The mediated devices of the host, each with the function that it is on.
fn mediated(host: &Host) -> Vec<(String, String)> {
    let Ok(all) = fs::read_dir(host.at("host/root/sys/bus/mdev/devices")) else { return Vec::new() };
    let mut all: Vec<_> = all
        .map(|entry| {
            let entry = entry.unwrap();
            let on = fs::read_link(entry.path()).unwrap();
            let on = on.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            (on, entry.file_name().to_string_lossy().into_owned())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn on_an_older_kernel_a_vm_has_a_mediated_device_and_keeps_it() {
    let host = host(A40);
    older(&host);
    let said = says(&host, "apply --yes --reboot", 0);
    let all = mediated(&host);
    assert_eq!(all.iter().map(|(on, _)| on.as_str()).collect::<Vec<_>>(), ["0000:03:00.4", "0000:03:00.5"], "{said}");
    assert!(says(&host, "plan -f host.yaml", 0).contains("nothing to do"));
    let xml = host.domain("web")["inactiveXml"].as_str().unwrap().to_owned();
    let device = format!("<address uuid='{}'/>", all[1].1);
    assert!(xml.contains("type='mdev'") && xml.contains("model='vfio-pci'") && xml.contains(&device), "{xml}");
    let info = says(&host, "vm info web", 0);
    assert!(info.contains("a40/1"), "{info}");
    let shown = says(&host, "gpu status 0000:03:00", 0);
    assert!(shown.contains("mediated types offered, 2 made"), "{shown}");
    let with = |text: &str| fs::write(host.at("host.yaml"), text).unwrap();
    let without = keeps_what_a_vm_has(&host, mediated);
    with(&A40.replace("count: 2", "count: 3"));
    says(&host, "apply --yes", 0);
    assert_eq!(mediated(&host)[..2], all);
    assert!(says(&host, "undo --yes", 1).contains("VM `web` runs with one of them"));
    host.libvirt(|known| {
        known["domains"][0]["active"] = false.into();
        known["domains"][0]["liveXml"] = serde_json::Value::Null;
    });
    says(&host, "undo --yes", 0);
    assert_eq!(mediated(&host), all);
    // Without the manifest's word for it, the VM would stay with one that goes.
    let alone = &A40[..A40.find("networks:").unwrap()];
    with(&alone.replace("count: 2", "count: 1"));
    let plan = says(&host, "plan -f host.yaml", 1);
    assert!(plan.contains(&format!("VM `web` stays and has {}, which vgpu[a40] will not have", all[1].1)), "{plan}");
    with(&without.replace("start: boot", "start: manual"));
    says(&host, "apply --yes", 0);
    assert_eq!(mediated(&host), []);
    assert!(!host.domain("web")["inactiveXml"].as_str().unwrap().contains("<hostdev"));
}

#[test]
fn vms_with_different_ones_run_beside_each_other_and_one_takes_the_others_by_the_word_for_it() {
    let vm = |name: &str, gpu: &str| {
        format!("  {name}: {{ cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [{gpu}], start: manual }}\n")
    };
    let manifest = A40.replace("start: boot", "start: manual") + &vm("beside", "a40/0") + &vm("same", "a40/1");
    for mediated in [false, true] {
        let host = host(&manifest);
        if mediated {
            older(&host);
        }
        says(&host, "apply --yes --reboot", 0);
        says(&host, "vm start web", 0);
        says(&host, "vm start beside", 0);
        let said = says(&host, "vm start same", 1);
        assert!(said.contains("VM `web` has its") && said.contains("gpuvm vm start same --swap"), "{said}");
        let info = says(&host, "vm info same", 0);
        assert!(info.contains("VM `web` has ") && info.contains("gpuvm vm start same --swap"), "{info}");
        says(&host, "vm start same --swap", 0);
        let runs = |name: &str| host.domain(name)["active"] == true;
        assert_eq!(["web", "beside", "same"].map(runs), [false, true, true]);
    }
}

#[test]
fn what_somebody_else_made_there_stays() {
    let host = host(A40);
    older(&host);
    // Below the card itself, where nothing of gpuvm's is: another's, by hand.
    let own = host.at(&format!("{SYS}.0"));
    let other = "aa618089-8b16-4d01-a136-25a0f3c73123";
    fs::create_dir_all(own.join(other)).unwrap();
    says(&host, "apply --yes --reboot", 0);
    fs::create_dir_all(own.join(other)).unwrap();
    host.libvirt(|known| {
        known["domains"][0]["active"] = false.into();
        known["domains"][0]["liveXml"] = serde_json::Value::Null;
    });
    let without = A40.replace(", vgpu: { type: NVIDIA A40-8Q, count: 2 }", "").replace(", gpus: [a40/1]", "");
    fs::write(host.at("host.yaml"), without.replace("start: boot", "start: manual")).unwrap();
    says(&host, "apply --yes", 0);
    assert!(own.join(other).exists());
    assert_eq!(mediated(&host), []);
}

#[test]
fn a_type_that_the_card_does_not_have_is_refused_with_those_that_it_has() {
    // Its virtual functions were turned on by hand, so that the card tells.
    let host = made();
    host.libvirt(|known| {
        known["domains"][0]["active"] = false.into();
        known["domains"][0]["liveXml"] = serde_json::Value::Null;
    });
    for n in 4..8 {
        fs::write(host.at(&format!("{SYS}.{n}/nvidia/current_vgpu_type")), "0\n").unwrap();
    }
    fs::write(host.at("host.yaml"), A40.replace("A40-8Q", "A40-9Q")).unwrap();
    let plan = says(&host, "plan -f host.yaml", 1);
    assert!(plan.contains("`NVIDIA A40-9Q` is no type that 0000:03:00.0 can have now"), "{plan}");
    assert!(plan.contains("what it can: NVIDIA A40-1B, NVIDIA A40-1Q"), "{plan}");
}

#[test]
fn a_card_with_vgpus_is_shown_so_and_not_given_away() {
    let host = made();
    let shown = says(&host, "gpu status 0000:03:00", 0);
    assert!(shown.contains("vgpu 0000:03:00.4 type 564") && shown.contains("4 of 4 virtual functions on"), "{shown}");
    let said = says(&host, "gpu explain 0000:03:00", 1);
    assert!(said.contains("2 vGPUs are made of it") && said.contains("sriov-manage -d takes them away"), "{said}");
}
