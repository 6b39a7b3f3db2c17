//! `gpuvm adopt`: what people made by hand comes under management without a byte of it being lost, then or by a later
//! edit of the manifest.

use std::fs;

use roxmltree::Document;

use crate::edits::{EDITS, adopted, beside, difference, host, keep, restore, set_by_hand};
use crate::foreign::{Foreign, Has, domains};
use crate::machine::tree;

#[test]
fn a_vm_is_taken_over_by_a_mark_alone() {
    for (name, xml) in domains() {
        let host = adopted(&name, &xml);
        let marked = host.definition(&name);
        let (out, inside) = difference(&xml, &marked);
        assert!(out.is_empty(), "{name}: lost {out:?}");
        assert!(beside(&inside, &["gpuvm:vm", "metadata"]).is_empty(), "{name}: {inside:?}");
        Document::parse(&marked).unwrap();
        let (code, said) = host.run(&["plan"]);
        assert!(matches!(code, 0) && said.contains("nothing to do"), "{name}: {said}\n{}", host.manifest());
        let (code, said) = host.run(&["adopt", "--yes", &format!("libvirt-domain/{name}")]);
        assert!(code == 0 && host.definition(&name) == marked, "{name}: a second time is nothing: {said}");
    }
}

#[test]
fn after_that_one_field_changes_one_element_and_nothing_is_lost() {
    let (mut edits, mut lost, mut strange) = (0, Vec::new(), Vec::new());
    for (name, xml) in domains() {
        let host = adopted(&name, &xml);
        let (manifest, before) = (host.manifest(), host.definition(&name));
        keep(&host);
        for edit in &EDITS {
            let Some(changed) = (edit.edit)(&manifest, &name) else { continue };
            host.set_manifest(&changed);
            let (code, said) = host.run(&["plan"]);
            if code == 1 && set_by_hand(&said) {
                continue;
            }
            let of_vm =
                said.lines().filter(|l| l.trim_start().starts_with("~ ") && !l.contains("libvirt-domain")).count();
            assert!(code == 2 && of_vm == 0, "{name}, {}: {said}\n{changed}", edit.what);
            let (code, said) = host.run(&["apply", "--yes"]);
            assert!(matches!(code, 0 | 3), "{name}, {}: {said}", edit.what);
            let after = host.definition(&name);
            let (out, inside) = difference(&before, &after);
            assert!(!out.is_empty() || !inside.is_empty(), "{name}, {}: nothing changed", edit.what);
            edits += 1;
            let gone = beside(&out, edit.out);
            if !gone.is_empty() || (edit.out.is_empty() && !out.is_empty()) {
                lost.push(format!("{name}, {}: {out:?}", edit.what));
            }
            // An element that is changed comes back; nothing else is put in.
            if !beside(&inside, edit.inside).is_empty() {
                strange.push(format!("{name}, {}: {inside:?}", edit.what));
            }
            Document::parse(&after).unwrap();
            let (code, said) = host.run(&["plan"]);
            assert!(matches!(code, 0 | 3), "{name}, {}: as wanted afterwards: {said}", edit.what);
            restore(&host);
        }
    }
    eprintln!(
        "{} definitions, {edits} edits: {} lost something of others, {} put in more",
        domains().len(),
        lost.len(),
        strange.len()
    );
    assert!(lost.is_empty() && strange.is_empty(), "{lost:#?}\n{strange:#?}");
    assert!(edits >= 60, "{edits} edits were tried");
}

#[test]
fn without_save_it_prints_the_entry_and_changes_nothing() {
    let (name, xml) = domains().into_iter().find(|(n, _)| n == "several").unwrap();
    let host = host(&name, &xml);
    let (before, manifest) = (tree(&host.dir.path().join("host")), host.manifest());
    let (code, said) = host.run(&["adopt", "libvirt-domain/several"]);
    assert_eq!(code, 0, "{said}");
    for line in [
        "vms:\n  several:\n    cpus: 2\n    memory: 2GiB\n    disks: [10GiB, 20GiB]\n",
        "    network: { name: br0, mac: \"52:54:00:00:06:01\" }\n    firmware: bios\n",
        "    #   network card 52:54:00:00:06:02 (direct)\n",
        "    #   disk volume other/extra.qcow2\n",
        "`host.yaml` does not have this yet",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert!(host.manifest() == manifest && tree(&host.dir.path().join("host")) == before);
    assert!(!host.root("/var/lib/gpuvm").exists());
}

#[test]
fn what_differs_from_the_manifest_is_refused_with_the_difference() {
    let (name, xml) = domains().into_iter().find(|(n, _)| n == "shared").unwrap();
    let host = host(&name, &xml);
    let manifest = host.manifest() + "\nvms:\n  shared: { cpus: 3, memory: 6GiB }\n";
    host.set_manifest(&manifest);
    let (code, said) = host.run(&["plan"]);
    assert!(code == 1 && said.contains("gpuvm adopt libvirt-domain/shared"), "{said}");
    let (code, said) = host.run(&["adopt", "--yes", "libvirt-domain/shared"]);
    assert!(code == 1 && said.contains("cpus: it has 2, the manifest wants 3"), "{said}");
    assert_eq!(host.definition("shared"), xml);
    let (code, said) = host.run(&["adopt", "--yes", "libvirt-domain/none"]);
    assert!(code == 1 && said.contains("it has shared"), "{said}");
}

#[test]
fn a_disk_that_gpuvm_could_take_for_its_own_is_refused() {
    let (_, xml) = domains().into_iter().find(|(n, _)| n == "spice").unwrap();
    let host = host("spice", &xml);
    host.record(|r| {
        r["libvirt"]["known"]["pools"][0]["volumes"].as_array_mut().unwrap().retain(|v| v["name"] != "spice-0.qcow2")
    });
    let (code, said) = host.run(&["adopt", "--save", "--yes", "libvirt-domain/spice"]);
    assert!(code == 1 && said.contains("that gpuvm gives to disks"), "{said}");
}

#[test]
fn it_is_shown_and_journalled_like_any_apply() {
    let (name, xml) = domains().into_iter().find(|(n, _)| n == "shared").unwrap();
    let host = host(&name, &xml);
    let (code, said) = host.run(&["adopt", "--save", "--yes", "libvirt-domain/shared"]);
    assert_eq!(code, 0, "{said}");
    let undone = host.run(&["undo", "--plan"]).1.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(undone.contains("which an undo leaves as it is: `libvirt-domain[shared]` has an entry now"), "{undone}");
    for line in
        ["+  shared:", "~ libvirt-domain[shared]", "nothing else of its definition changes", "1 change, 0 reboots"]
    {
        assert!(said.contains(line), "{line}\n{said}");
    }
    let journal = fs::read_to_string(host.root("/var/lib/gpuvm/runs/1/journal.jsonl")).unwrap();
    assert!(journal.contains("markDomain"), "{journal}");
    let without = host.manifest().split("\nvms:").next().unwrap().to_owned() + "\n";
    host.set_manifest(&without);
    let (code, said) = host.run(&["apply", "--yes"]);
    assert!(code == 0 && host.definition("shared").contains("virtiofs"), "one that leaves the manifest stays: {said}");
}

#[test]
fn save_keeps_comments_and_order_and_is_not_written_where_it_cannot_be() {
    let (name, xml) = domains().into_iter().find(|(n, _)| n == "shared").unwrap();
    let host = host(&name, &xml);
    let manifest = "# mine\nversion: 1   # one\nbridge: { name: br0, existing: true }\n\nvms:\n    # first\n    other: { cpus: 1, memory: 1GiB, firmware: bios } # last\n\n# the end\nmodules: []\n";
    host.set_manifest(manifest);
    let (code, said) = host.run(&["adopt", "--save", "--yes", "libvirt-domain/shared"]);
    assert_eq!(code, 0, "{said}");
    let now = host.manifest();
    let diff = similar::TextDiff::from_lines(manifest, now.as_str());
    assert!(diff.iter_all_changes().all(|c| c.tag() != similar::ChangeTag::Delete), "{now}");
    assert!(now.contains("# last\n    shared:\n      cpus: 2\n"), "{now}");

    let flow = "version: 1\nvms: { other: { cpus: 1, memory: 1GiB } }\n";
    let host = self::host(&name, &xml);
    host.set_manifest(flow);
    let (code, said) = host.run(&["adopt", "--save", "--yes", "libvirt-domain/shared"]);
    assert!(code == 1 && said.contains("braces") && said.contains("cpus: 2"), "{said}");
    assert!(host.manifest() == flow && host.definition("shared") == xml);
}

#[test]
fn a_file_comes_under_management_as_it_is() {
    let host = Foreign::new(&[]);
    host.write("/etc/motd", "Welcome: # to\n  the \"host\"\n");
    host.write("/etc/secret.conf", "password\n");
    host.record(|r| r["stats"]["/etc/secret.conf"] = serde_json::json!({ "mode": "0640", "uid": 0, "gid": 0 }));
    assert_eq!(host.run(&["init"]).0, 0);
    let before = tree(&host.dir.path().join("host"));
    let (code, said) = host.run(&["adopt", "--save", "--yes", "file//etc/motd", "file/etc/secret.conf"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(tree(&host.dir.path().join("host")), before);
    assert!(!said.contains("password") && !host.manifest().contains("password"), "{said}");
    assert!(
        host.manifest().contains("  /etc/motd:\n    content: |\n      Welcome: # to\n        the \"host\"\n"),
        "{}",
        host.manifest()
    );
    let copy = host.dir.path().join("files/etc_secret.conf");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(host.run(&["plan"]).0, 0, "{}", host.run(&["plan"]).1);
    // It is gpuvm's now: another content needs no `takeOver`.
    host.set_manifest(&host.manifest().replace("Welcome: # to", "Welcome"));
    let (code, said) = host.run(&["apply", "--yes"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read_to_string(host.root("/etc/motd")).unwrap(), "Welcome\n  the \"host\"\n");

    let host = Foreign::new(&[]);
    host.write("/etc/motd", "theirs\n");
    host.set_manifest("version: 1\nfiles: { /etc/motd: { content: \"mine\\n\" } }\n");
    let (code, said) = host.run(&["adopt", "--yes", "file/etc/motd"]);
    assert!(code == 1 && said.contains("adopting changes nothing"), "{said}");
    for (name, why) in
        [("file/etc/none", "does not hold `/etc/none`"), ("file/etc", "no regular file"), ("file/etc/../x", "without")]
    {
        let (code, said) = host.run(&["adopt", "--yes", name]);
        assert!(code == 1 && said.contains(why), "{name}: {said}");
    }
}

#[test]
fn a_bridge_that_is_there_is_used_and_never_touched() {
    let host = Foreign::new(&[Has::Bridge]);
    host.set_manifest("version: 1\n");
    let before = tree(&host.dir.path().join("host"));
    let (code, said) = host.run(&["adopt", "--save", "--yes", "bridge/br0"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(host.manifest(), "version: 1\n\nbridge: { name: br0, existing: true }\n");
    assert_eq!(host.run(&["plan"]).0, 0);
    host.set_manifest("version: 1\n");
    assert_eq!(host.run(&["apply", "--yes"]).0, 0);
    assert_eq!(tree(&host.dir.path().join("host")), before);
    let (code, said) = host.run(&["adopt", "--yes", "bridge/enp0s2"]);
    assert!(code == 1 && said.contains("is no bridge"), "{said}");
}

#[test]
fn a_binding_by_hand_is_explained_and_not_taken_over() {
    let host = Foreign::new(&[Has::Vfio]);
    assert_eq!(host.run(&["init"]).0, 0);
    let before = tree(&host.dir.path().join("host"));
    let (code, said) = host.run(&["adopt", "--yes", "vfio-binding/gpu3"]);
    assert_eq!(code, 1, "{said}");
    for line in [
        "/etc/modprobe.d/vfio.conf:2\n",
        "options vfio-pci ids=10de:2684,10de:22ba",
        "goes by id: it takes 0000:01:00 too",
        "the kernel's command line\n",
        "+ vfio-binding[gpu3]",
        "/etc/udev/rules.d/61-gpuvm-vfio-gpu3.rules",
        "Nothing was changed",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert_eq!(tree(&host.dir.path().join("host")), before);

    // Written by gpuvm and forgotten by its ledger: that is taken over.
    let host = Foreign::new(&[]);
    host.set_manifest("version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: vfio }\n");
    assert_eq!(host.run(&["apply", "--yes", "--reboot"]).0, 0);
    fs::remove_dir_all(host.root("/var/lib/gpuvm")).unwrap();
    let before = tree(&host.dir.path().join("host"));
    let (code, said) = host.run(&["adopt", "--yes", "vfio-binding/work"]);
    assert!(code == 0 && said.contains("taken over as it is"), "{said}");
    assert_eq!(tree(&host.dir.path().join("host")), before);
    let ledger = fs::read_to_string(host.root("/var/lib/gpuvm/ledger.json")).unwrap();
    assert!(ledger.contains("vfio-binding") && !ledger.contains("\"module\""), "{ledger}");
}

#[test]
fn a_binding_that_is_said_to_be_there_has_to_be() {
    let host = Foreign::new(&[]);
    host.set_manifest("version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: vfio, existing: true }\n");
    let (code, said) = host.run(&["plan"]);
    assert!(code == 1 && said.contains("0000:02:00.0 is on nvidia"), "{said}");
    host.set_manifest("version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: host, existing: true }\n");
    let (code, said) = host.run(&["plan"]);
    assert!(code == 1 && said.contains("only with `use: vfio`"), "{said}");
}

#[test]
fn a_disk_that_was_only_grown_is_not_gpuvms_to_delete() {
    let (name, xml) = domains().into_iter().find(|(n, _)| n == "several").unwrap();
    let host = adopted(&name, &xml);
    let manifest = host.manifest();
    host.set_manifest(&manifest.replace("disks: [10GiB, 20GiB]", "disks: [15GiB, 20GiB, 1GiB]"));
    let (code, said) = host.run(&["apply", "--yes"]);
    assert!(code == 0 && said.contains("grows to 15GiB"), "{said}");
    let volumes = || {
        let known = host.record(|_| {})["libvirt"]["known"]["pools"][0]["volumes"].clone();
        known.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(volumes().contains(&"several-2.qcow2".to_owned()), "{:?}", volumes());
    let (code, said) = host.run(&["vm", "delete", "several", "--yes"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(said.matches("- volume[").count(), 1, "{said}");
    for (stays, why) in [
        ("several-0.qcow2", "`default/several-0.qcow2` stays: nothing says that gpuvm made it"),
        ("several-1.qcow2", "`/var/lib/libvirt/images/several-1.qcow2` stays: gpuvm did not make it"),
    ] {
        assert!(said.contains(why), "{said}");
        assert!(volumes().contains(&stays.to_owned()), "{stays}: {said}");
    }
    assert!(!volumes().contains(&"several-2.qcow2".to_owned()), "what gpuvm made goes: {said}");
}
