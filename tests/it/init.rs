//! `gpuvm init`: on every recorded host, and on hosts that people set up by hand, the manifest is valid, says what is
//! there, and would change nothing.

use std::fs;

use proptest::prelude::*;

use crate::composed::expand;
use crate::foreign::{Foreign, Has, domains};
use crate::machine::{copy_tree, gpuvm, repository, tree};

/// Every recorded host that is shipped, and every mixture of what people set up by hand.
fn hosts() -> Vec<(String, Foreign)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(repository().join("examples/hosts")).unwrap() {
        let path = entry.unwrap().path();
        let host = Foreign { dir: tempfile::tempdir().unwrap() };
        copy_tree(&path, &host.dir.path().join("host"));
        all.push((path.file_name().unwrap().to_string_lossy().into_owned(), host));
    }
    for mixture in 0..8u8 {
        let has: Vec<Has> = [(1, Has::Libvirt), (2, Has::Bridge), (4, Has::Vfio)]
            .into_iter()
            .filter(|(bit, _)| mixture & bit != 0)
            .map(|(_, has)| has)
            .collect();
        let host = Foreign::new(&has);
        if has.contains(&Has::Libvirt) {
            for (name, xml) in domains() {
                host.define(&name, &xml, name == "spice", name == "windows");
            }
        }
        all.push((format!("{has:?}"), host));
    }
    all
}

#[test]
fn its_plan_is_empty_on_every_host() {
    let schema = jsonschema::draft7::new(&gpuvm::manifest::schema()).unwrap();
    for (name, host) in hosts() {
        let before = tree(&host.dir.path().join("host"));
        let (code, said) = host.run(&["init"]);
        assert!(code == 0 && said.contains("nothing would change"), "{name}: {said}");
        let text = host.manifest();
        let value: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert!(schema.is_valid(&value), "{name}:\n{text}");
        gpuvm::manifest::parse("host.yaml", &text).unwrap();
        let (code, said) = host.run(&["plan"]);
        assert!(code == 0 && said.contains("nothing to do"), "{name}: {said}\n{text}");
        let (code, said) = host.run(&["apply", "--yes", "--reboot"]);
        assert!(code == 0 && tree(&host.dir.path().join("host")) == before, "{name}: {said}");
    }
}

#[test]
fn it_says_what_is_there_and_what_comes_next() {
    let host = Foreign::new(&[Has::Libvirt, Has::Bridge, Has::Vfio]);
    for (name, xml) in domains() {
        host.define(&name, &xml, name == "spice", false);
    }
    assert_eq!(host.run(&["init"]).0, 0);
    let text = host.manifest();
    for said in [
        "host: labhost",
        "bridge: { name: br0, existing: true }",
        "existing: true   # bound by others: used, never touched",
        "# vfio-pci by /etc/modprobe.d/vfio.conf:2: options vfio-pci ids=10de:2684,10de:22ba disable_vga=1",
        "#   goes by id, so that it takes 0000:01:00 too",
        "# vfio-pci by the kernel's command line: vfio-pci.ids=10de:2684",
        "match: { slot: \"pcie:12.0/0\" }",
        "expect: { id: \"10de:2684\" }",
        "#   iommu=pt   how the IOMMU is used",
        "#   libvirt-daemon-system 1",
        "#   spice: runs, 4 CPUs, 4GiB, 1 disks, 0 passed functions",
        "#     gpuvm adopt --save libvirt-domain/windows",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    assert!(text.lines().all(|l| l.chars().count() <= 160), "{text}");
}

/// Virtual functions that others made are told, and are no cards of their own.
#[test]
fn what_shares_itself_in_hardware_is_told() {
    for (name, told, count) in [
        (
            "sriov-of-many-kinds",
            "#   shared1: { match: \"0000:05:00\", use: host, virtualFunctions: { count: 2, use: host } }",
            0,
        ),
        ("sriov-vfs", "gpu1:", 1),
    ] {
        let host = Foreign { dir: tempfile::tempdir().unwrap() };
        let machine = fs::read_to_string(repository().join("tests/hosts").join(name).join("machine.yaml")).unwrap();
        expand(&serde_yaml::from_str(&machine).unwrap(), &host.dir.path().join("host"));
        assert_eq!(host.run(&["init"]).0, 0);
        let text = host.manifest();
        assert!(text.contains(told), "{text}");
        assert_eq!(text.matches("    match:").count(), count, "{text}");
        let (code, said) = host.run(&["plan"]);
        assert!(code == 0 && said.contains("nothing to do"), "{name}: {said}\n{text}");
    }
}

#[test]
fn what_is_there_is_never_replaced() {
    let host = Foreign::new(&[]);
    host.set_manifest("mine\n");
    let (code, said) = host.run(&["init"]);
    assert!(code == 1 && said.contains("is there already") && host.manifest() == "mine\n", "{said}");
    fs::remove_file(host.dir.path().join("host.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", host.dir.path().join("host.yaml")).unwrap();
    assert_eq!(host.run(&["init"]).0, 1, "a link to nowhere is not written through");
    assert!(!host.dir.path().join("nowhere").exists());
    let shown = gpuvm(&["init", "-o", "-", "--root", "host"], host.dir.path());
    assert!(shown.status.success() && String::from_utf8(shown.stdout).unwrap().contains("version: 1"));
}

#[test]
fn a_host_that_gpuvm_manages_has_its_manifest() {
    let host = Foreign::new(&[]);
    host.set_manifest("version: 1\nfiles: { /etc/made: { content: made } }\n");
    assert_eq!(host.run(&["apply", "--yes"]).0, 0);
    let (code, said) = host.run(&["init", "-o", "new.yaml"]);
    assert!(code == 1 && said.contains("manages 1 things") && !host.dir.path().join("new.yaml").exists(), "{said}");
}

/// What somebody may have called a VM, a bridge's port, a pool or a package's version.
fn hostile() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![
            any::<char>().prop_map(String::from),
            prop::sample::select(vec![
                "\n",
                "\r",
                "\u{85}",
                "\u{2028}",
                "\u{feff}",
                "\nvms:\n  evil: { cpus: 1, memory: 1GiB }\n",
                "# ",
                "\"",
                "'",
                "}",
                "]",
                ": ",
                "\u{1b}[31m",
                "\u{202e}",
                "\0",
                "$(reboot)",
                "`reboot`",
                "--",
                "..",
                "/",
            ])
            .prop_map(String::from),
        ],
        1..8,
    )
    .prop_map(|bits| bits.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn no_name_of_the_hosts_breaks_out(names in prop::collection::vec(hostile(), 6)) {
        let host = Foreign::new(&[Has::Libvirt, Has::Vfio]);
        let [vm, pool, network, option, module, pci] = &names[..] else { unreachable!() };
        host.define(vm, &domains()[0].1, false, false);
        host.record(|record| {
            let known = &mut record["libvirt"]["known"];
            known["pools"].as_array_mut().unwrap().push(serde_json::json!({
                "name": pool, "active": false, "autostart": false, "xml": "" }));
            known["networks"][1]["name"] = network.as_str().into();
        });
        host.append("/etc/modprobe.d/vfio.conf", &format!("options vfio-pci ids=10de:2684 {option}"));
        let file = module.replace(['/', '\0'], "_");
        host.write(&format!("/etc/modprobe.d/{}.conf", file.chars().take(30).collect::<String>()),
            "options vfio-pci ids=10de:2684\n");
        host.write("/usr/share/misc/pci.ids", &format!("10de  NVIDIA\n\t2684  {pci}\n"));
        let (code, said) = host.run(&["init"]);
        prop_assert!(code == 0, "{}", said);
        let text = host.manifest();
        let manifest = gpuvm::manifest::parse("host.yaml", &text).unwrap();
        prop_assert!(manifest.vms.is_empty() && manifest.gpus.len() == 3 && manifest.files.is_empty(), "{}", text);
        prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{:?}", text);
        prop_assert_eq!(host.run(&["plan"]).0, 0);
    }
}
