//! Snapshots on a copy of a recorded host: the files of disks hold a few lines in place of what a guest would write, and a
//! layer's lines cover those below it. What only a real qemu-img and a real libvirt show is elsewhere: unit tests of
//! `src/resource/layers.rs`, the scenario `snapshots` of the lab.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::host::Host;
use crate::machine::{command, stderr, stdout, tree};

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB, 2GiB], network: nat, start: manual }
";
const POOL: &str = "host/root/var/lib/libvirt/images";
const NVRAM: &str = "/var/lib/libvirt/qemu/nvram/tiny_VARS.fd";

const CLOUDY: &str = "  cloudy:
    image: debian-13
    cpus: 1
    memory: 512MiB
    disks: [10GiB]
    network: { name: nat, address: 192.168.122.50/24, gateway: 192.168.122.1 }
    start: manual
    user: { name: alice, sshKeys: [gh:alice] }
";

/// A host with a stopped VM of two disks, whose UEFI variables and TPM were written.
fn with_vm() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let host = Host::made(MANIFEST);
        host.libvirt(|known| {
            let tiny = &mut known["domains"][0];
            (tiny["active"], tiny["liveXml"]) = (false.into(), serde_json::Value::Null);
            let xml = tiny["inactiveXml"].as_str().unwrap();
            let tpm =
                "  <tpm model='tpm-crb'>\n      <backend type='emulator' version='2.0'/>\n    </tpm>\n  </devices>";
            let xml = xml.replace("</devices>", tpm);
            let xml = xml.replacen("</os>", &format!("  <nvram>{NVRAM}</nvram>\n  </os>"), 1);
            tiny["inactiveXml"] = xml.into();
        });
        host.write_part(&host.nvram(), "variables 1");
        host.write_part(&host.tpm(), "keys 1");
        host.guest_writes("a=1");
        host.dir
    });
    made.path()
}

impl Host {
    fn snapshots() -> Self {
        Self::copy(with_vm())
    }
    fn nvram(&self) -> PathBuf {
        self.at("host/root").join(NVRAM.trim_start_matches('/'))
    }
    fn tpm(&self) -> PathBuf {
        let uuid = self.domain("tiny")["uuid"].as_str().unwrap().to_owned();
        self.at("host/root/var/lib/libvirt/swtpm").join(uuid).join("tpm2/tpm2-00.permall")
    }
    fn write_part(&self, path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fn parts(&self) -> [String; 2] {
        [self.nvram(), self.tpm()].map(|path| fs::read_to_string(path).unwrap())
    }
    fn top(&self, target: &str) -> PathBuf {
        let domain = self.domain("tiny");
        let doc = roxmltree::Document::parse(domain["inactiveXml"].as_str().unwrap()).unwrap();
        let is = |n: &roxmltree::Node<'_, '_>| n.has_tag_name("target") && n.attribute("dev") == Some(target);
        let disk = doc.descendants().find(is).unwrap().parent().unwrap();
        let source = disk.children().find(|c| c.has_tag_name("source")).unwrap().attribute("file").unwrap();
        self.at(&format!("host/root{source}"))
    }
    /// The guest writes a line to each of its disks.
    fn guest_writes(&self, line: &str) {
        for target in ["vda", "vdb"] {
            let top = self.top(target);
            let text = [fs::read(&top).unwrap(), format!("{target}.{line}\n").into_bytes()].concat();
            fs::write(top, text).unwrap();
        }
    }
    /// What the guest would find on a disk.
    fn disk_content(&self, target: &str) -> BTreeMap<String, String> {
        let (mut all, mut at) = (BTreeMap::new(), self.top(target));
        loop {
            let bytes = fs::read(&at).unwrap();
            let layer = bytes.starts_with(b"QFI\xfb");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let lines =
                if layer { text.split("\nwritten:\n").nth(1).unwrap() } else { text.split_once('\n').unwrap().1 };
            for (k, v) in lines.lines().filter_map(|l| l.split_once('=')) {
                all.entry(k.trim_start_matches(target).trim_start_matches('.').to_owned()).or_insert(v.to_owned());
            }
            if !layer {
                return all;
            }
            let length = u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize;
            at = self.at(&format!("host/root{}", String::from_utf8_lossy(&bytes[104..104 + length])));
        }
    }
    /// The same of both disks, which always go along, in a line.
    fn content(&self) -> String {
        let [a, b] = ["vda", "vdb"].map(|t| self.disk_content(t));
        assert_eq!(a, b);
        a.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    }
    fn disks(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.at(POOL))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|n| n.starts_with("tiny-"))
            .collect();
        names.sort();
        names
    }
    fn copies(&self) -> usize {
        fs::read_dir(self.at("host/root/var/lib/gpuvm/snapshots")).map_or(0, Iterator::count)
    }
    fn list(&self) -> Vec<serde_json::Value> {
        let said = self.says("vm snapshot list tiny --output json", 0);
        serde_json::from_str::<serde_json::Value>(&said).unwrap()["snapshots"].as_array().unwrap().clone()
    }
    fn owns_disk(&self, name: &str) -> bool {
        let ledger = fs::read_to_string(self.at("host/root/var/lib/gpuvm/ledger.json")).unwrap();
        let ledger: serde_json::Value = serde_json::from_str(&ledger).unwrap();
        ledger["owned"].as_array().unwrap().iter().any(|o| o[0]["name"] == name)
    }
    fn flat(&self, words: &str, code: i32) -> String {
        self.says(words, code).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_vm_goes_back_with_all_that_it_was_and_forth_again() {
    let host = Host::snapshots();
    let said = host.says("vm snapshot create tiny first", 0);
    assert!(said.contains("tiny has the snapshot first\n") && !said.contains("apply this?"), "{said}");
    assert_eq!(host.disks(), ["tiny-0+1.qcow2", "tiny-0.qcow2", "tiny-1+1.qcow2", "tiny-1.qcow2"]);
    assert_eq!(host.says("plan", 0).lines().count(), 1, "for the manifest nothing is different");
    let listed = host.list();
    assert_eq!((&listed[0]["name"], &listed[0]["current"]), (&"first".into(), &true.into()));
    assert_eq!(listed[0]["parts"], serde_json::json!(["nvram", "tpm"]));
    // What a backup is made of.
    let part =
        |n: usize| fs::read_to_string(host.at(&format!("host/root{}", listed[0]["copies"][n].as_str().unwrap())));
    assert_eq!([0, 1].map(|n| part(n).unwrap()), ["variables 1", "keys 1"]);
    let file = |n: usize| listed[0]["files"][n].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    assert_eq!([0, 1].map(file), ["tiny-0.qcow2", "tiny-1.qcow2"]);

    let before = host.domain("tiny")["inactiveXml"].clone();
    host.guest_writes("a=2");
    host.guest_writes("b=2");
    host.write_part(&host.nvram(), "variables 2");
    host.write_part(&host.tpm(), "keys 2");
    host.libvirt(|known| {
        let xml = known["domains"][0]["inactiveXml"].as_str().unwrap().replace(">1</vcpu>", ">2</vcpu>");
        known["domains"][0]["inactiveXml"] = xml.into();
    });
    let said = host.flat("vm snapshot restore tiny first --yes", 0);
    assert!(said.contains("how it is now stays as snapshot `before-first`") && !said.contains("data-loss"), "{said}");
    assert_eq!((host.content().as_str(), host.parts()), ("a=1", ["variables 1", "keys 1"].map(str::to_owned)));
    let after = host.domain("tiny")["inactiveXml"].as_str().unwrap().to_owned();
    assert_eq!(after.replace("+3.qcow2", "+1.qcow2"), before.as_str().unwrap(), "the definition is as it was");
    assert!(!host.disks().iter().any(|d| d.contains("+2")), "no empty layer is left: {:?}", host.disks());
    assert_eq!(host.says("plan", 0).lines().count(), 1);

    host.guest_writes("c=3");
    host.flat("vm snapshot restore tiny before-first --keep third --yes", 0);
    assert_eq!((host.content().as_str(), host.parts()), ("a=2 b=2", ["variables 2", "keys 2"].map(str::to_owned)));
    assert!(host.domain("tiny")["inactiveXml"].as_str().unwrap().contains(">2</vcpu>"));
    let said = host.flat("vm snapshot restore tiny third --discard --yes", 0);
    assert!(said.contains("[data-loss]") && said.contains("is lost"), "{said}");
    assert_eq!(host.content(), "a=1 c=3");
    let listed = host.says("vm snapshot list tiny", 0);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines.len() == 3 && lines[2].starts_with("third") && lines[2].contains("it goes on from here"), "{listed}");
}

#[test]
fn an_undo_leads_back_from_a_snapshot_and_from_a_restore_and_says_what_does_not_come_back() {
    let host = Host::snapshots();
    let said = host.flat("vm snapshot create tiny first", 0);
    assert!(said.contains("go back: gpuvm undo 2"), "{said}");
    host.guest_writes("a=2");
    host.flat("vm snapshot restore tiny first --yes", 0);
    assert_eq!(host.content(), "a=1");
    host.guest_writes("c=3");
    // As before the restore; and how it was after it stays too.
    let said = host.flat("undo --yes", 0);
    assert!(
        said.contains("the way back from run 3: gpuvm vm snapshot restore tiny before-first --keep after-first"),
        "{said}"
    );
    assert_eq!(host.content(), "a=2");
    let said = host.flat("undo --yes", 0);
    assert!(said.contains("gpuvm vm snapshot restore tiny after-first --keep after-before-first"), "{said}");
    assert_eq!(host.content(), "a=1 c=3");
    // A snapshot's way back takes nothing from the VM as it is.
    let said = host.flat("undo 2 --plan", 2);
    assert!(said.contains("gpuvm vm snapshot delete tiny first") && said.contains("[data-loss]"), "{said}");
    host.flat("undo 2 --yes", 0);
    assert_eq!(host.content(), "a=1 c=3");
    let said = host.flat("undo 2 --yes", 1);
    assert!(said.contains("has no snapshot `first` any more") && said.contains("cannot be undone"), "{said}");
    let said = host.flat("undo --yes", 1);
    assert!(said.contains("alone held was given up with it") && said.contains("cannot be undone"), "{said}");
    host.flat("vm snapshot create tiny first", 0);
    let said = host.flat("undo 2 --yes", 1);
    assert!(said.contains("was made anew since"), "{said}");
    host.flat("vm snapshot restore tiny before-first --discard --yes", 0);
    let said = host.flat("undo --yes", 1);
    assert!(said.contains("was thrown away") && said.contains("cannot be undone"), "{said}");
    assert_eq!(host.content(), "a=2", "and nothing was changed by that");
}

#[test]
fn one_that_goes_leaves_every_other_state_and_at_the_end_the_disks_as_they_were_made() {
    let host = Host::snapshots();
    for n in ["1", "2", "3"] {
        host.says(&format!("vm snapshot create tiny s{n}"), 0);
        host.guest_writes(&format!("after{n}=x"));
    }
    host.flat("vm snapshot restore tiny s2 --keep s4 --yes", 0);
    host.guest_writes("branch=x");
    let states = |host: &Host, left: &[&str]| {
        for name in left {
            let at = Host::copy(host.dir.path());
            at.flat(&format!("vm snapshot restore tiny {name} --discard --yes"), 0);
            let wanted = match *name {
                "s1" => "a=1",
                "s2" => "a=1 after1=x",
                "s3" => "a=1 after1=x after2=x",
                _ => "a=1 after1=x after2=x after3=x",
            };
            assert_eq!(at.content(), wanted, "{name} of {left:?}");
        }
        assert_eq!(host.content(), "a=1 after1=x branch=x");
    };
    states(&host, &["s1", "s2", "s3", "s4"]);
    for (name, left) in [("s3", &["s1", "s2", "s4"][..]), ("s1", &["s2", "s4"]), ("s2", &["s4"]), ("s4", &[])] {
        let said = host.flat(&format!("vm snapshot delete tiny {name} --yes"), 0);
        assert!(said.contains("[data-loss]") && said.contains(&format!("tiny has no snapshot {name}")), "{said}");
        states(&host, left);
        assert_eq!(host.says("plan", 0).lines().count(), 1);
    }
    assert_eq!(host.disks(), ["tiny-0.qcow2", "tiny-1.qcow2"]);
    assert_eq!((host.top("vda"), host.copies()), (host.at(POOL).join("tiny-0.qcow2"), 0));
}

#[test]
fn what_cannot_be_done_is_said_with_the_reason_and_nothing_changes() {
    let host = Host::snapshots();
    host.says("vm snapshot create tiny first", 0);
    let refused = |host: &Host, words: &str, why: &[&str]| {
        let before = tree(&host.at("host"));
        let said = host.flat(words, 1);
        assert!(why.iter().all(|w| said.contains(w)), "{words}: {said}");
        assert_eq!(tree(&host.at("host")), before, "{words}");
    };
    refused(&host, "vm snapshot create tiny first", &["has a snapshot `first` already"]);
    refused(&host, "vm snapshot restore tiny frist --yes", &["no snapshot `frist`", "there is: first"]);
    refused(&host, "vm snapshot delete tiny frist --yes", &["no snapshot `frist`"]);
    refused(&host, "vm snapshot restore tiny first", &["no terminal to ask on"]);
    refused(&host, "vm snapshot create tinny", &["there is no VM of this name"]);
    assert!(host.says("vm snapshot create tiny ../x", 64).contains("is not a name"));

    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let host = Host::copy(host.dir.path());
        host.libvirt(|known| change(&mut known["domains"][0]));
        host
    };
    let runs = changed(&|d| (d["active"], d["liveXml"]) = (true.into(), d["inactiveXml"].clone()));
    refused(&runs, "vm snapshot restore tiny first --yes", &["it runs", "gpuvm vm stop tiny"]);
    let saved = changed(&|d| d["saved"] = true.into());
    for words in ["create tiny", "restore tiny first --yes", "delete tiny first --yes"] {
        refused(&saved, &format!("vm snapshot {words}"), &["its memory is saved"]);
    }
    let xml = |from: &'static str, to: &'static str| {
        changed(&move |d| {
            let text = d["inactiveXml"].as_str().unwrap();
            assert!(text.contains(from), "{from}");
            d["inactiveXml"] = text.replacen(from, to, 1).into();
        })
    };
    let block = xml("<disk type='file' device='disk'>", "<disk type='block' device='disk'>");
    refused(&block, "vm snapshot create tiny", &["its disk `vda` is no file"]);
    let shared = xml("<target dev='vda'", "<shareable/><target dev='vda'");
    refused(&shared, "vm snapshot create tiny", &["is shared with other VMs"]);
    let theirs = changed(&|d| {
        let mut more = d["snapshots"][0].clone();
        more["xml"] = more["xml"].as_str().unwrap().replace("made by gpuvm", "mine").into();
        more["name"] = "by-hand".into();
        d["snapshots"].as_array_mut().unwrap().push(more);
    });
    for words in ["create tiny", "restore tiny first --yes", "delete tiny first --yes"] {
        refused(&theirs, &format!("vm snapshot {words}"), &["`by-hand` was not made by gpuvm"]);
    }
    let copy = Host::copy(host.dir.path());
    fs::remove_dir_all(copy.at("host/root/var/lib/gpuvm/snapshots")).unwrap();
    refused(&copy, "vm snapshot restore tiny first --yes", &["the copy of its UEFI variables is gone"]);
    let copy = Host::copy(host.dir.path());
    fs::remove_file(copy.at(POOL).join("tiny-1.qcow2")).unwrap();
    refused(&copy, "vm snapshot restore tiny first --yes", &["is not there any more"]);

    // What goes on in it is somebody else's.
    let clone = Host::copy(host.dir.path());
    clone.libvirt(|known| {
        let volumes = known["pools"][0]["volumes"].as_array_mut().unwrap();
        let mut other = volumes.iter().find(|v| v["name"] == "tiny-0.qcow2").unwrap().clone();
        other["backing"] = other["path"].take();
        (other["name"], other["path"]) = ("clone.qcow2".into(), "/var/lib/libvirt/images/clone.qcow2".into());
        volumes.push(other);
    });
    refused(&clone, "vm snapshot delete tiny first --yes", &["clone.qcow2` goes on in what it holds"]);
}

#[test]
fn a_disk_under_snapshots_is_neither_grown_nor_taken_out_nor_is_its_vm() {
    let host = Host::snapshots();
    host.says("vm snapshot create tiny first", 0);
    for (from, to, why) in [
        ("2GiB", "3GiB", "a disk under snapshots is not grown"),
        ("[1GiB, 2GiB]", "[1GiB]", "lies under snapshots"),
        ("start: manual", "absent: true", "it has snapshots (`first`)"),
    ] {
        fs::write(host.at("host.yaml"), MANIFEST.replace(from, to)).unwrap();
        let said = host.flat("plan", 1);
        assert!(said.contains(why), "{to}: {said}");
    }
}

#[test]
fn a_guest_that_runs_is_asked_to_hold_its_writes_and_it_is_said_when_none_hears() {
    let host = Host::snapshots();
    host.says("vm start tiny", 0);
    let said = host.flat("vm snapshot create tiny", 0);
    assert!(said.contains("no agent answers in its guest") && said.contains("tiny has the snapshot 1"), "{said}");
    assert_eq!(host.list()[0]["ran"], true);
    host.record(|record| record["agents"] = serde_json::json!({ "tiny": { "interfaces": [] } }));
    host.guest_writes("b=2");
    let said = host.flat("vm snapshot create tiny second", 0);
    assert!(said.contains("holds its writes") && !said.contains("no agent"), "{said}");
    // What it writes to is merged while it runs; what is below that only once it is off.
    let said = host.flat("vm snapshot delete tiny 1 --yes", 1);
    assert!(said.contains("only while it is off") && said.contains("gpuvm vm stop tiny"), "{said}");
    host.guest_writes("c=3");
    // libvirt's AppArmor profile of a running VM denies what it would have to write to, or does after the first merge.
    let uuid = host.domain("tiny")["uuid"].as_str().unwrap().to_owned();
    let profile = host.at(&format!("host/root/etc/apparmor.d/libvirt/libvirt-{uuid}.files"));
    for rules in ["  deny \"/var/lib/libvirt/images/tiny-0+1.qcow2\" w,\n", "  \"/x\" rw,\n"] {
        host.write_part(&profile, rules);
        let said = host.flat("vm snapshot delete tiny second --yes", 1);
        assert!(said.contains("AppArmor lets its QEMU only read") && said.contains("gpuvm vm stop tiny"), "{said}");
    }
    fs::remove_file(&profile).unwrap();
    host.flat("vm snapshot delete tiny second --yes", 0);
    assert_eq!(host.content(), "a=1 b=2 c=3");
    // What a run that failed left of one that libvirt has forgotten is merged with the same words.
    let left = Host::copy(host.dir.path());
    left.libvirt(|known| known["domains"][0]["snapshots"] = serde_json::json!([]));
    left.flat("vm snapshot delete tiny 1 --yes", 0);
    assert_eq!((left.content().as_str(), left.disks().len()), ("a=1 b=2 c=3", 2));
    assert!(left.flat("vm snapshot delete tiny 1 --yes", 1).contains("it has none"));
    assert_eq!(host.disks(), ["tiny-0+1.qcow2", "tiny-0.qcow2", "tiny-1+1.qcow2", "tiny-1.qcow2"]);
    host.flat("vm snapshot delete tiny 1 --yes", 0);
    assert_eq!((host.content().as_str(), host.disks().len()), ("a=1 b=2 c=3", 2));
}

#[test]
fn killed_anywhere_no_state_is_lost_and_it_goes_on_to_the_same_end() {
    let base = Host::snapshots();
    base.says("vm snapshot create tiny one", 0);
    base.guest_writes("b=2");
    base.write_part(&base.nvram(), "variables 2");
    base.says("vm snapshot create tiny two", 0);
    base.guest_writes("c=3");
    let settled = |host: &Host| {
        let mut known = host.libvirt(|_| {});
        known["domains"].as_array_mut().unwrap().iter_mut().for_each(|d| drop(d.as_object_mut().unwrap().remove("id")));
        (known, host.content(), host.disks(), host.copies(), host.parts())
    };
    for words in [
        "vm snapshot create tiny three",
        "vm snapshot restore tiny one --keep now --yes",
        "vm snapshot restore tiny one --discard --yes",
        "vm snapshot delete tiny one --yes",
        "vm snapshot delete tiny two --yes",
    ] {
        let undisturbed = Host::copy(base.dir.path());
        undisturbed.says(words, 0);
        let end = settled(&undisturbed);
        let mut deaths = 0;
        // Every third place: each step has several.
        for place in (1..).step_by(3) {
            let host = Host::copy(base.dir.path());
            let asked: Vec<&str> = words.split(' ').chain(["--root", "host"]).collect();
            let died = command(&asked, host.dir.path()).env("GPUVM_DIE_AT", place.to_string()).output().unwrap();
            if died.status.success() {
                break;
            }
            deaths += 1;
            let told = host.run("plan");
            if stderr(&told).contains("was cut off") {
                let refused = host.says(words, 1);
                assert!(refused.contains("gpuvm apply --resume") || refused.contains("already"), "{refused}");
                host.says("apply --resume", 0);
                assert!(settled(&host) == end, "{words}: killed at {place}");
            } else {
                let again = host.run(words);
                let said = stdout(&again) + &stderr(&again);
                // What was not begun is done now; what was done is there.
                let done = again.status.success() || said.contains("already") || said.contains("no snapshot");
                assert!(done, "{words} at {place}: {said}");
                if again.status.success() && !words.contains("--discard") {
                    assert_eq!(host.content(), end.1, "{words}: killed at {place}");
                }
            }
        }
        assert!(deaths > 8, "{words}: {deaths}");
    }
}

#[test]
fn a_deleted_vm_takes_its_snapshots_with_it_by_name_and_kept_disks_keep_theirs() {
    let host = Host::snapshots();
    host.says("vm snapshot create tiny one", 0);
    host.guest_writes("b=2");
    host.says("vm snapshot create tiny two", 0);
    assert!(host.says("vm list", 0).contains("2 snapshots"));
    assert!(host.flat("vm info tiny", 0).contains("snapshots one, two"));
    let kept = Host::copy(host.dir.path());
    let said = kept.flat("vm delete tiny --keep-disks --yes", 0);
    assert!(said.contains("its snapshots go with it: one, two; the files that hold their disks stay"), "{said}");
    assert!(said.contains("data-loss") && said.contains("it cannot be undone"), "{said}");
    assert!(!said.contains("gpuvm did not make it"), "{said}");
    assert_eq!((kept.disks().len(), kept.copies()), (6, 0));

    // What goes on in one of its layers is somebody else's, and it stays whole.
    let used = Host::copy(host.dir.path());
    used.libvirt(|known| {
        let volumes = known["pools"][0]["volumes"].as_array_mut().unwrap();
        let mut other = volumes.iter().find(|v| v["name"] == "tiny-0+1.qcow2").unwrap().clone();
        other["backing"] = other["path"].take();
        (other["name"], other["path"]) = ("clone.qcow2".into(), "/var/lib/libvirt/images/clone.qcow2".into());
        volumes.push(other);
    });
    let said = used.flat("vm delete tiny --yes", 1);
    assert!(said.contains("clone.qcow2` needs") && used.disks().len() == 6, "{said}");

    let said = host.flat("vm delete tiny --yes", 0);
    assert!(said.contains("its snapshots go with it: one, two") && said.contains("tiny-0+1.qcow2"), "{said}");
    assert!(host.domain("tiny").is_null() && host.disks().is_empty() && host.copies() == 0, "{:?}", host.disks());
}

#[test]
fn a_clone_is_a_vm_of_its_own() {
    let host = Host::snapshots();
    let said = host.flat("vm clone tiny copy --yes", 0);
    assert!(said.contains("copy begins as tiny") && said.contains("its TPM is empty"), "{said}");
    assert!(said.contains("its guest has the name, the machine id and the host keys of tiny's"), "{said}");
    assert!(
        said.contains("gpuvm adopt libvirt-domain/copy --save") && said.contains("go back: gpuvm undo 2"),
        "{said}"
    );
    let [tiny, copy] = ["tiny", "copy"].map(|name| host.domain(name));
    let xml = |d: &serde_json::Value| d["inactiveXml"].as_str().unwrap().to_owned();
    let mac = |d: &serde_json::Value| xml(d).split("<mac address='").nth(1).unwrap()[..17].to_owned();
    assert!(tiny["uuid"] != copy["uuid"] && mac(&tiny) != mac(&copy) && copy["active"] == false);
    assert!(xml(&copy).contains("copy_VARS.fd") && !xml(&copy).contains("tiny"), "{}", xml(&copy));
    let vars = host.nvram().with_file_name("copy_VARS.fd");
    assert_eq!(fs::read_to_string(vars).unwrap(), "variables 1");
    let disk = |name: &str| fs::read_to_string(host.at(POOL).join(name)).unwrap();
    assert!(disk("copy-0.qcow2").contains("vda.a=1") && disk("copy-1.qcow2").contains("vdb.a=1"));
    host.flat("vm clone tiny copy --yes", 1);
    // Taken into the manifest, it stays as it is.
    let taken = Host::copy(host.dir.path());
    taken.says("adopt libvirt-domain/copy --save --yes", 0);
    let plan = taken.says("plan", 0);
    assert!(plan.starts_with("labhost: nothing to do"), "{plan}");
    assert!(taken.owns_disk("default/copy-1.qcow2"));
    host.flat("vm delete copy --yes", 0);
    assert!(!host.at(POOL).join("copy-0.qcow2").exists(), "its disks are its own, and go with it");
    assert_eq!(host.content(), "a=1");

    // An undo leaves the copies, but where it is told to take them.
    host.flat("vm clone tiny copy --yes", 0);
    let said = host.flat("undo --with-data --yes", 0);
    assert!(host.domain("copy").is_null() && !host.at(POOL).join("copy-0.qcow2").exists(), "{said}");
}

#[test]
fn a_clone_of_a_snapshot_may_be_linked_and_holds_that_snapshot() {
    let host = Host::snapshots();
    let said = host.flat("vm clone tiny copy --linked --yes", 1);
    assert!(said.contains("something under it that is not written to"), "{said}");
    host.says("vm snapshot create tiny one", 0);
    host.guest_writes("b=2");
    host.says("vm start tiny", 0);
    let said = host.flat("vm clone tiny copy --yes", 1);
    assert!(said.contains("tiny runs") && said.contains("--snapshot NAME"), "{said}");
    host.flat("vm clone tiny whole --snapshot one --yes", 0);
    let whole = fs::read_to_string(host.at(POOL).join("whole-0.qcow2")).unwrap();
    assert!(whole.contains("vda.a=1") && !whole.contains("b=2"), "{whole}");
    host.flat("vm clone tiny copy --linked --snapshot one --yes", 0);
    host.says("vm stop tiny", 0);
    for words in ["vm snapshot delete tiny one --yes", "vm delete tiny --yes"] {
        let said = host.flat(words, 1);
        assert!(said.contains("copy-0.qcow2"), "{words}: {said}");
    }
    // What is merged elsewhere leaves what it goes on in.
    host.says("vm snapshot create tiny two", 0);
    host.flat("vm snapshot delete tiny two --yes", 0);
    assert_eq!(host.content(), "a=1 b=2");
    host.flat("vm delete copy --yes", 0);
    host.flat("vm snapshot delete tiny one --yes", 0);
    assert_eq!(
        (host.content().as_str(), host.disks()),
        ("a=1 b=2", vec!["tiny-0.qcow2".to_owned(), "tiny-1.qcow2".into()])
    );
}

#[test]
fn a_clone_is_told_by_a_seed_of_its_own_that_it_is_another() {
    let host = Host::snapshots();
    fs::write(host.at("host.yaml"), format!("{MANIFEST}{CLOUDY}")).unwrap();
    host.says("apply --yes", 0);
    let said = host.flat("vm clone cloudy twin --yes", 0);
    assert!(said.contains("asks for one by DHCP") && said.contains("cloud-init sets it up anew"), "{said}");
    let seed = fs::read(host.at(POOL).join("twin-seed.iso")).unwrap();
    let text = String::from_utf8_lossy(&seed);
    assert!(text.contains("gpuvm-twin-1") && text.contains("\"local-hostname\": \"twin\""), "{said}");
    assert!(text.contains("alice") && !text.contains("192.168.122.50"));
    let xml = host.domain("twin")["inactiveXml"].as_str().unwrap().to_owned();
    let mac = xml.split("<mac address='").nth(1).unwrap()[..17].to_owned();
    assert!(xml.contains("twin-seed.iso") && text.contains(&mac), "{mac}: {xml}");
    host.flat("vm delete twin --yes", 0);
    assert!(!host.at(POOL).join("twin-seed.iso").exists() && host.at(POOL).join("cloudy-seed.iso").exists());
}

#[test]
fn a_template_is_an_image_that_nothing_prunes_and_vms_are_made_from() {
    let host = Host::snapshots();
    let said = host.flat("vm template save tiny golden --yes", 0);
    assert!(said.contains("there is the template golden") && said.contains("its disk `vdb` is not in it"), "{said}");
    assert!(said.contains("virt-sysprep -d tiny"), "{said}");
    assert!(host.says("vm template list", 0).starts_with("golden   "));
    let said = host.flat("vm template save tiny golden --yes", 1);
    assert!(said.contains("there is a template `golden` already"), "{said}");
    host.says("vm start tiny", 0);
    assert!(host.flat("vm template save tiny other --yes", 1).contains("tiny runs"));
    host.says("image prune --yes", 0);
    assert!(host.says("vm template list", 0).contains("golden"), "nothing else has it");

    let said = host.flat(
        "vm template use golden desk --user alice --key gh:alice --disk 5GiB --cpus 1 --memory 512MiB --no-start --yes",
        0,
    );
    assert!(said.contains("images: golden: { path: "), "{said}");
    let manifest = fs::read_to_string(host.at("host.yaml")).unwrap();
    assert!(manifest.contains("image: golden") && manifest.starts_with(MANIFEST), "{manifest}");
    assert!(!host.domain("desk").is_null());
    assert!(host.says("plan", 0).contains("nothing to do"));
    assert!(host.says("vm template list", 0).starts_with("golden   "), "it is still a template");
    assert!(host.flat("vm template use none desk2 --user a --key gh:a", 1).contains("there is: golden"));
    // It goes by its own word, and not from under a disk.
    let said = host.flat("vm template delete golden --yes", 1);
    assert!(said.contains("desk-0.qcow2` goes on in it"), "{said}");
    host.flat("vm delete desk --yes", 0);
    let images = || fs::read_dir(host.at(POOL).join("gpuvm-images")).unwrap().count();
    assert_eq!(images(), 2, "the template and the word on it");
    let said = host.flat("vm template delete golden --yes", 0);
    assert!(said.contains("it is nowhere else") && said.contains("there is no template golden"), "{said}");
    assert_eq!((images(), host.says("vm template list", 0).as_str()), (0, "no template\n"));
    assert!(host.flat("vm template delete golden --yes", 1).contains("there is no template `golden`"));
}

#[test]
fn a_clone_that_was_killed_anywhere_is_told_of_and_goes_on() {
    let base = Host::snapshots();
    let words = "vm clone tiny copy --yes";
    let undisturbed = Host::copy(base.dir.path());
    undisturbed.says(words, 0);
    let end = undisturbed.libvirt(|_| {});
    let mut deaths = 0;
    for place in (1..).step_by(3) {
        let host = Host::copy(base.dir.path());
        let asked: Vec<&str> = words.split(' ').chain(["--root", "host"]).collect();
        let died = command(&asked, host.dir.path()).env("GPUVM_DIE_AT", place.to_string()).output().unwrap();
        if died.status.success() {
            break;
        }
        deaths += 1;
        if stderr(&host.run("plan")).contains("was cut off") {
            host.says("apply --resume", 0);
            assert!(host.libvirt(|_| {}) == end, "killed at {place}");
        }
    }
    assert!(deaths > 8, "{deaths}");
}

#[test]
fn what_others_wrote_into_a_vm_is_in_no_output() {
    let host = Host::snapshots();
    let written = |words: &str| {
        host.libvirt(|known| {
            let xml = known["domains"][0]["inactiveXml"].as_str().unwrap().to_owned();
            let rest = xml.split("<description>").next().unwrap().to_owned();
            let tail = xml.split("</description>").nth(1).map(str::to_owned);
            let (head, tail) = match tail {
                Some(tail) => (rest, tail),
                None => xml.split_once("  <memory ").map(|(a, b)| (a.to_owned(), format!("\n  <memory {b}"))).unwrap(),
            };
            known["domains"][0]["inactiveXml"] = format!("{head}<description>{words}</description>{tail}").into();
        });
    };
    let mut said = String::new();
    written("canary-first");
    said += &host.says("vm snapshot create tiny one", 0);
    written("canary-second");
    for words in
        ["vm snapshot restore tiny one --yes", "vm clone tiny copy --snapshot one --yes", "vm clone tiny more --yes"]
    {
        said += &host.says(words, 0);
    }
    for words in ["show 2", "show 3", "show 3 --output json", "show 4 --output json", "undo --plan", "vm info tiny"] {
        let output = host.run(words);
        said += &(stdout(&output) + &stderr(&output));
    }
    said += &host.says("vm snapshot list tiny --output json", 0);
    assert!(!said.contains("canary"), "{said}");
    let first = |name: &str| host.domain(name)["inactiveXml"].as_str().unwrap().contains("canary-first");
    assert!(first("tiny") && first("copy") && first("more"), "they lost none of it");
}

#[test]
fn what_starts_by_bios_does_so_in_the_vms_of_its_template_too() {
    let host = Host::made(&MANIFEST.replace("start: manual", "start: manual, firmware: bios"));
    host.libvirt(|known| {
        let tiny = &mut known["domains"][0];
        (tiny["active"], tiny["liveXml"]) = (false.into(), serde_json::Value::Null);
    });
    host.guest_writes("a=1");
    host.flat("vm template save tiny golden --yes", 0);
    assert!(host.says("vm template list", 0).contains("starts by BIOS"));
    host.flat("vm template use golden desk --user alice --key gh:alice --disk 5GiB --no-start --yes", 0);
    let manifest = fs::read_to_string(host.at("host.yaml")).unwrap();
    assert!(manifest.contains("    firmware: bios\n"), "{manifest}");
    assert!(!host.domain("desk")["inactiveXml"].as_str().unwrap().contains("firmware='efi'"));
}
