//! Verbs on a copy of a recorded host: the same lock, journal, record and undo as an apply, and killed at every place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use crate::machine::{command, copy_tree, fast_folder, gpuvm, repository, stderr, stdout, tree};

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, start: manual }
";

/// A host with a stopped VM of gpuvm's, and one that others made.
fn with_vms() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = fast_folder();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
        fs::write(dir.path().join("host.yaml"), MANIFEST).unwrap();
        let apply = gpuvm(&["apply", "--yes", "--reboot", "--root", "host"], dir.path());
        assert_eq!(apply.status.code(), Some(0), "{}{}", stdout(&apply), stderr(&apply));
        let host = Host { dir };
        host.libvirt(|known| {
            let mut theirs = known["domains"][0].clone();
            let xml = theirs["inactiveXml"].as_str().unwrap().replace("urn:gpuvm:vm:1", "urn:theirs");
            (theirs["name"], theirs["uuid"], theirs["inactiveXml"]) = ("theirs".into(), "u".into(), xml.into());
            (theirs["active"], theirs["liveXml"]) = (false.into(), serde_json::Value::Null);
            let tiny = &mut known["domains"][0];
            (tiny["active"], tiny["liveXml"]) = (false.into(), serde_json::Value::Null);
            known["domains"].as_array_mut().unwrap().insert(0, theirs);
        });
        host.dir
    });
    made.path()
}

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = fast_folder();
        copy_tree(with_vms(), dir.path());
        Self { dir }
    }
    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
    fn run(&self, words: &str) -> Output {
        let words: Vec<&str> = words.split(' ').chain(["--root", "host"]).collect();
        gpuvm(&words, self.dir.path())
    }
    /// Runs it, which ends with this code; what it said.
    fn says(&self, words: &str, code: i32) -> String {
        let output = self.run(words);
        let said = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{words}: {said}");
        said
    }
    fn libvirt(&self, change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
        let path = self.at("host/gpuvm-record.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record["libvirt"]["known"]);
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        record["libvirt"]["known"].clone()
    }
    fn domain(&self, name: &str) -> serde_json::Value {
        let known = self.libvirt(|_| {});
        known["domains"].as_array().unwrap().iter().find(|d| d["name"] == name).cloned().unwrap_or_default()
    }
    fn runs(&self) -> usize {
        fs::read_dir(self.at("host/root/var/lib/gpuvm/runs")).unwrap().count()
    }
}

#[test]
fn a_start_is_a_run_like_any_other_and_goes_back() {
    let host = Host::new();
    let ledger = || fs::read_to_string(host.at("host/root/var/lib/gpuvm/ledger.json")).unwrap();
    let owned = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap()["owned"].clone();
    let before = owned(ledger());
    let said = host.says("vm start tiny", 0);
    assert!(said.contains("tiny runs\ngo back: gpuvm undo 2\n") && !said.contains("apply this?"), "{said}");
    assert!(host.domain("tiny")["active"] == true);
    assert_eq!(owned(ledger()), before, "what is gpuvm's stays gpuvm's");

    let history = host.says("history", 0);
    assert!(history.lines().next().unwrap().contains("done      gpuvm vm start tiny"), "{history}");
    let json: serde_json::Value = serde_json::from_str(&host.says("history --output json", 0)).unwrap();
    assert_eq!(json["runs"][0]["verb"]["startVm"]["name"], "tiny");
    assert!(host.says("show 2", 0).contains("done          libvirt-domain[tiny]   start the VM"));

    let runs = host.runs();
    assert_eq!(host.says("vm start tiny", 0), "nothing to do: tiny runs\n");
    assert_eq!(host.runs(), runs, "what is done already is no run");
    let said = host.says("undo --yes", 0);
    assert!(said.contains("running: yes → no"), "{said}");
    assert!(host.domain("tiny")["active"] == false);
    assert_eq!(owned(ledger()), before);
    assert_eq!(host.says("plan", 0).lines().count(), 1, "the manifest has nothing to say about it");
}

#[test]
fn a_vm_of_others_or_none_is_named_and_nothing_changes() {
    let host = Host::new();
    let before = tree(&host.at("host"));
    for (words, why) in [
        ("vm start theirs", "was not made by gpuvm"),
        ("vm start tinny", "there is: theirs, tiny"),
        ("vm start theirs", "gpuvm adopt libvirt-domain/theirs"),
    ] {
        let said = host.says(words, 1);
        assert!(said.contains(why), "{words}: {said}");
    }
    assert!(host.says("vm start ../etc", 64).contains("is not a VM name"));
    assert_eq!(tree(&host.at("host")), before);
    assert_eq!(host.runs(), 1);
}

#[test]
fn a_verb_that_was_killed_anywhere_is_told_of_and_goes_on() {
    // What is asked, and how the host is before it.
    for (words, before) in [("vm start tiny", None)] as [(&str, Option<&str>); 1] {
        let prepared = Host::new();
        if let Some(before) = before {
            prepared.says(before, 0);
        }
        let undisturbed = Host { dir: fast_folder() };
        copy_tree(prepared.dir.path(), undisturbed.dir.path());
        undisturbed.says(words, 0);
        let known = undisturbed.libvirt(|_| {});
        let mut deaths = 0;
        for place in 1.. {
            let host = Host { dir: fast_folder() };
            copy_tree(prepared.dir.path(), host.dir.path());
            let asked: Vec<&str> = words.split(' ').chain(["--root", "host"]).collect();
            let died = command(&asked, host.dir.path()).env("GPUVM_DIE_AT", place.to_string()).output().unwrap();
            if died.status.success() {
                break;
            }
            deaths += 1;
            let told = host.run("plan");
            if stderr(&told).contains("was cut off") {
                let refused = host.says(words, 1);
                assert!(refused.contains("gpuvm apply --resume"), "{refused}");
                host.says("apply --resume", 0);
            } else {
                host.says(words, 0);
            }
            assert_eq!(host.libvirt(|_| {}), known, "{words}: killed at {place}");
        }
        assert!(deaths > 10, "{words}: {deaths}");
    }
}
