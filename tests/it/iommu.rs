//! `use: vfio` implies that the IOMMU is on: on hosts whose kernel was not told to use it, the argument is planned with it,
//! and what is bound is looked at again once the groups are known.

use std::fs;

use crate::composed::{expand, iommu_off};
use crate::host::Host;
use crate::machine::fast_folder;

const VFIO: &str = "version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: vfio }\n";
const RULES: &str = "host/root/etc/udev/rules.d/61-gpuvm-vfio-work.rules";

/// The recorded host without the IOMMU.
fn off(manifest: &str) -> Host {
    let host = Host::bare(manifest);
    iommu_off(&host.at("host"));
    host
}

fn driver(host: &Host) -> String {
    let link = fs::read_link(host.at("host/root/sys/bus/pci/devices/0000:02:00.0/driver")).unwrap();
    link.file_name().unwrap().to_str().unwrap().to_owned()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_argument_is_planned_and_the_binding_waits_for_the_groups() {
    let host = off(VFIO);
    let plan = words(&host.says("plan -f host.yaml", 2));
    for part in [
        "+ kernel-arg intel_iommu=on [reboot] [boot-config] from use: vfio",
        "exact once the IOMMU is on (`intel_iommu=on`)",
        "8 changes, 2 reboots, nothing removed",
    ] {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    assert!(!plan.contains("iommu=pt"), "{plan}");
    let before = plan.find("+ kernel-arg").unwrap();
    let boot = plan.find("── reboot, for kernel-arg, vfio-binding[work]").unwrap();
    let bound = plan.find("+ vfio-binding[work]").unwrap();
    assert!(before < boot && boot < bound, "{plan}");
    // Without a word for the boots, what is before them is done, and nothing of the card.
    let said = host.says("apply -f host.yaml --yes", 3);
    assert!(said.contains("waits for reboot: its IOMMU group is known once the host was booted"), "{said}");
    assert!(!host.at(RULES).exists());
    host.says("apply -f host.yaml --yes --reboot", 0);
    assert_eq!(driver(&host), "vfio-pci");
    host.says("plan -f host.yaml", 0);
    // It stays on for as long as it is needed, and goes with the last that needs it.
    fs::write(host.at("host.yaml"), "version: 1\n").unwrap();
    host.says("apply -f host.yaml --yes --reboot", 0);
    assert_eq!(driver(&host), "nvidia");
    assert!(!fs::read_to_string(host.at("host/root/proc/cmdline")).unwrap().contains("iommu"));
    assert!(fs::read_dir(host.at("host/root/sys/kernel/iommu_groups")).unwrap().next().is_none());
}

#[test]
fn a_group_that_turns_out_to_be_shared_ends_the_run_before_anything_is_bound() {
    let host = off(VFIO);
    host.record(|record| {
        let functions = record["grouped"]["groups"]["9"]["functions"].as_array_mut().unwrap();
        functions.push("0000:00:02.0".into());
        let groups = record["grouped"]["groups"].as_object_mut().unwrap();
        for (number, group) in groups {
            if number != "9" {
                group["functions"].as_array_mut().unwrap().retain(|f| f != "0000:00:02.0");
            }
        }
    });
    let said = words(&host.says("apply -f host.yaml --yes --reboot", 1));
    assert!(said.contains("vfio-binding[work]: it shares its IOMMU group with 0000:00:02.0"), "{said}");
    assert!(said.contains("carries the uplink enp0s2"), "{said}");
    assert!(!host.at(RULES).exists());
    assert_eq!(driver(&host), "nvidia");
    assert_eq!(host.record(|_| {})["boots"], 1, "the second boot is not asked for");
    let plan = words(&host.says("plan -f host.yaml", 1));
    assert!(plan.contains("it shares its IOMMU group with"), "{plan}");
}

#[test]
fn what_an_argument_does_not_mend_is_refused() {
    let refused = |host: &Host, why: &str| {
        let plan = words(&host.says("plan -f host.yaml", 1));
        assert!(plan.contains(why), "{why}: {plan}");
        host.says("apply -f host.yaml --yes --reboot", 1);
        assert_eq!(driver(host), "nvidia");
    };
    // The firmware has none.
    let host = off(VFIO);
    fs::remove_file(host.at("host/root/sys/firmware/acpi/tables/DMAR")).unwrap();
    refused(&host, "there is no IOMMU: no DMAR, IVRS or IORT table");
    // AMD's is on by default.
    fs::write(host.at("host/root/sys/firmware/acpi/tables/IVRS"), "").unwrap();
    refused(&host, "the IOMMU is off: the firmware has a IVRS table, but the kernel made no groups");
    let cmdline = |host: &Host, more: &str| {
        let path = host.at("host/root/proc/cmdline");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{} {more}\n", text.trim())).unwrap();
    };
    cmdline(&host, "amd_iommu=off");
    refused(&host, "`amd_iommu=off` on the kernel's command line");
    // It was asked for, and there are no groups.
    let host = off(VFIO);
    cmdline(&host, "intel_iommu=on");
    refused(&host, "the firmware has a DMAR table, but the kernel made no groups");
    // GRUB's files turn it off for the next boot.
    for grouped in [false, true] {
        let host = if grouped { off(VFIO) } else { Host::bare(VFIO) };
        let grub = host.at("host/root/etc/default/grub.d/50-other.cfg");
        fs::create_dir_all(grub.parent().unwrap()).unwrap();
        fs::write(grub, "GRUB_CMDLINE_LINUX=\"iommu=off\"\n").unwrap();
        refused(&host, "GRUB's files have `iommu=off`");
    }
    // Which groups come was not recorded, so the boot is not played.
    let host = off(VFIO);
    host.record(|record| drop(record.as_object_mut().unwrap().remove("grouped")));
    let said = words(&host.says("apply -f host.yaml --yes --reboot", 1));
    assert!(said.contains("which IOMMU groups there are once it is on"), "{said}");
    assert_eq!(driver(&host), "nvidia");
}

#[test]
fn intels_own_gpu_is_left_out_until_the_kernel_is_told() {
    let machine = "devices: |
  00:02.0 0300 8086:4680 i915 +g0 reset=flr bars=16M,256M drm=card0,renderD128
  00:1a.0 0604 8086:7ac4 pcieport g10
    05:00.0 0108 144d:a80a nvme g15 block=nvme0n1:/
";
    let dir = fast_folder();
    let mut machine: crate::composed::Machine = serde_yaml::from_str(machine).unwrap();
    machine.packages.push("grub2-common=2.12".to_owned());
    expand(&machine, &dir.path().join("host"));
    fs::write(dir.path().join("host.yaml"), "version: 1\ngpus:\n  own: { match: \"0000:00:02\", use: vfio }\n")
        .unwrap();
    let host = Host { dir };
    fs::create_dir_all(host.at("host/root/boot/grub")).unwrap();
    fs::write(host.at("host/root/boot/grub/grub.cfg"), "").unwrap();
    let plan = words(&host.says("plan -f host.yaml", 2));
    assert!(plan.contains("kernel-arg intel_iommu=on") && plan.contains("2 reboots"), "{plan}");
    host.says("apply -f host.yaml --yes --reboot", 0);
    let link = fs::read_link(host.at("host/root/sys/bus/pci/devices/0000:00:02.0/driver")).unwrap();
    assert!(link.ends_with("vfio-pci"));
    host.says("plan -f host.yaml", 0);
}
