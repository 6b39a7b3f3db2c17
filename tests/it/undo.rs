//! The way back, in every case of tests/cases: what `undo` plans and what does not go back is in the case's `undone.txt`;
//! every other byte of the host is as before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::cases::{cases, changes, expect, host};
use crate::machine::{command, copy_tree, fast_folder, gpuvm, repository, stderr, stdout, tree};

struct Host {
    work: tempfile::TempDir,
    manifest: String,
}

impl Host {
    fn new(case: &Path) -> Self {
        let work = fast_folder();
        let root = host(case, work.path());
        let new = Self { work, manifest: case.join("host.yaml").display().to_string() };
        let earlier = case.join("before.yaml");
        if earlier.is_file() {
            let (file, root) = (earlier.display().to_string(), root.display().to_string());
            let apply = gpuvm(&["apply", "-f", &file, "--root", &root, "--yes", "--reboot"], new.work.path());
            assert!(apply.status.success(), "{}", stderr(&apply));
        }
        new
    }
    fn named(case: &str) -> Self {
        Self::new(&repository().join("tests/cases").join(case))
    }
    fn run(&self, args: &[&str]) -> Output {
        gpuvm(&[args, &["--root", "host"]].concat(), self.work.path())
    }
    fn plan(&self, more: &[&str]) -> Output {
        self.run(&[&["plan", "-f", &self.manifest], more].concat())
    }
    fn apply(&self) -> Output {
        self.run(&["apply", "-f", &self.manifest, "--yes", "--reboot"])
    }
    fn undo(&self, more: &[&str]) -> Output {
        self.run(&[&["undo", "--yes", "--reboot"], more].concat())
    }
    fn tree(&self) -> BTreeMap<String, String> {
        tree(&self.work.path().join("host"))
    }
    /// The directories below /etc and /usr.
    fn folders(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, all: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    walk(&entry.path(), all);
                    all.insert(entry.path());
                }
            }
        }
        let mut all = BTreeSet::new();
        for top in ["etc", "usr"] {
            walk(&self.work.path().join("host/root").join(top), &mut all);
        }
        all
    }
    /// What a plan of the manifest would do, without what it says about it.
    fn would_do(&self) -> BTreeSet<(String, String)> {
        let plan = self.plan(&["--output", "json"]);
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        let changes = plan["entries"].as_array().unwrap().iter().filter_map(|entry| {
            let diff = &entry["diff"];
            // What the running kernel has is no matter of files.
            if entry["key"]["kind"] == "driver" {
                return None;
            }
            let action = diff["action"].as_str().or(diff["promise"]["action"].as_str())?;
            Some((entry["key"].to_string(), action.to_owned()))
        });
        changes.collect()
    }
}

fn succeeded(output: &Output, what: &str) {
    assert_eq!(output.status.code(), Some(0), "{what}:\n{}{}", stdout(output), stderr(output));
}

#[test]
fn every_case_goes_back_and_forth_again() {
    let mut wrong = Vec::new();
    let mut gone_back = 0;
    for case in cases() {
        let host = Host::new(&case);
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        if host.plan(&[]).status.code() != Some(2) {
            continue;
        }
        let before = host.tree();
        let folders = host.folders();
        let would_do = host.would_do();
        succeeded(&host.apply(), &name);
        let applied = host.tree();

        let plan = host.run(&["undo", "--plan"]);
        assert_eq!(plan.status.code(), Some(2), "{name}: {}{}", stdout(&plan), stderr(&plan));
        assert_eq!(host.tree(), applied, "{name}: to plan an undo changes nothing");
        assert!(!stdout(&plan).contains("canary"), "{name}: a secret is in the plan of an undo");
        succeeded(&host.undo(&[]), &name);
        let undone = host.tree();
        let text = stdout(&plan) + "\nwhat is not as before\n\n" + &changes(&before, &undone);
        expect(&case.join("undone.txt"), &text, &mut wrong);
        // What programs made may stay, each named in the plan; files that gpuvm wrote never do.
        for path in undone.keys().chain(before.keys()).filter(|p| undone.get(*p) != before.get(*p)) {
            let of_programs = ["/etc/group", "/proc/modules", "/var/lib/dpkg/status"].contains(&path.as_str());
            // A driver whose packages went is the running kernel's until it boots; apt's lists are a cache.
            let of_driver = path.contains("/nvidia/version")
                || path.ends_with("/driver") && undone.get(path).is_some_and(|to| to.contains("drivers/nvidia"))
                || path.starts_with("/var/lib/apt/lists/");
            let told = !of_driver || text.contains("drives its cards until the next boot");
            if !told {
                wrong.push(format!("{name}: that the driver still runs is not told"));
            }
            // A disk in storage that a person made is theirs to delete, and the plan says so.
            // What the kernel and udev have of it goes with it.
            let nodes = ["/dev/dm-", "/dev/zd", "/sys/class/block/", "/sys/devices/virtual/block/", "/run/udev/data/b"];
            let of_storage = text.contains(&format!("the disk {path} stays, with its data"))
                || nodes.iter().any(|n| path.starts_with(n)) && text.contains("the disk /dev/");
            if of_storage {
                continue;
            }
            if !of_programs && !of_driver && !path.starts_with("/var/lib/libvirt/images/") && path != "/dev/kvm" {
                wrong.push(format!("{name}: {path} is not as it was"));
            }
        }
        // Those that a program made for what it was told to write are its own.
        let of_programs = |p: &&std::path::PathBuf| ["etc/cdi", "etc/docker"].iter().any(|f| p.ends_with(f));
        let stayed = host.folders();
        let stayed: Vec<_> = stayed.symmetric_difference(&folders).filter(|p| !of_programs(p)).collect();
        if !stayed.is_empty() {
            wrong.push(format!("{name}: these folders stayed: {stayed:?}"));
        }
        let but_storage = |all: BTreeSet<(String, String)>| -> BTreeSet<(String, String)> {
            all.into_iter().filter(|(key, _)| !key.contains("\"block-volume\"")).collect()
        };
        let (now, would_do) = (but_storage(host.would_do()), but_storage(would_do));
        if now != would_do {
            wrong.push(format!("{name}: after the undo the manifest plans {now:?}, not {would_do:?}"));
        }
        // The run before it was the earlier manifest's, where there is one.
        let run = if case.join("before.yaml").is_file() { "2" } else { "1" };
        let again = host.run(&["undo", run, "--plan"]);
        if again.status.code() != Some(0) {
            wrong.push(format!("{name}: a second undo of the same run would do something:\n{}", stdout(&again)));
        }

        // An undo is a run like any other, so that it can be undone.
        succeeded(&host.undo(&[]), &format!("{name}: undo of the undo"));
        let forth = host.tree();
        if forth != applied {
            wrong.push(format!("{name}: the undo of the undo is not what was applied:\n{}", changes(&applied, &forth)));
        }
        let plan = host.plan(&[]);
        if plan.status.code() != Some(0) {
            wrong.push(format!("{name}: after the undo of the undo:\n{}", stdout(&plan)));
        }
        gone_back += 1;
    }
    assert!(gone_back >= 4, "{gone_back} cases went back");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_run_that_was_killed_anywhere_goes_back() {
    let mut killed = 0;
    for case in ["twin", "gpu-for-vms", "operators"] {
        let host = Host::named(case);
        let before = host.tree();
        let ready = host.work.path().join("host");
        for place in (20..400).step_by(23) {
            let copy = Host::named(case);
            let root = copy.work.path().join("host");
            fs::remove_dir_all(&root).unwrap();
            copy_tree(&ready, &root);
            let died =
                command(&["apply", "-f", &copy.manifest, "--root", "host", "--yes", "--reboot"], copy.work.path())
                    .env("GPUVM_DIE_AT", place.to_string())
                    .output()
                    .unwrap();
            if died.status.success() {
                break;
            }
            killed += 1;
            // Some die when the end is written down already.
            if !root.join("root/var/lib/gpuvm/runs/1/ended.json").exists() {
                let undo = copy.undo(&[]);
                assert!(stderr(&undo).contains("cut off"), "{case} at {place}: {}", stderr(&undo));
                succeeded(&copy.run(&["apply", "--abandon"]), case);
            }
            succeeded(&copy.undo(&[]), &format!("{case} at {place}"));
            let undone = copy.tree();
            let differ: Vec<_> =
                before.keys().chain(undone.keys()).filter(|p| before.get(*p) != undone.get(*p)).collect();
            let of_programs = |p: &&&String| {
                !["/etc/group", "/proc/modules", "/var/lib/dpkg/status", "/dev/kvm"].contains(&p.as_str())
                    && !p.starts_with("/var/lib/libvirt/images/")
            };
            let differ: Vec<_> = differ.iter().filter(of_programs).collect();
            assert!(differ.is_empty(), "{case} at {place}: {differ:?} are not as they were");
        }
    }
    assert!(killed > 20, "killed {killed} times only");
}

#[test]
fn what_was_changed_since_is_refused_by_name_and_left_out_by_a_word() {
    let host = Host::named("gpu-for-vms");
    succeeded(&host.apply(), "apply");
    let path = host.work.path().join("host/root/etc/sysctl.d/60-gpuvm-guests.conf");
    fs::write(&path, "# mine now\n").unwrap();
    let before = host.tree();
    let undo = host.undo(&[]);
    let said = stdout(&undo);
    assert_eq!(undo.status.code(), Some(1), "{said}");
    assert!(said.contains("/etc/sysctl.d/60-gpuvm-guests.conf was changed since run 1"), "{said}");
    assert!(said.contains("gpuvm undo --root host 1 --skip file//etc/sysctl.d/60-gpuvm-guests.conf"), "{said}");
    assert_eq!(host.tree(), before, "nothing was changed");
    succeeded(&host.undo(&["--skip", "file//etc/sysctl.d/60-gpuvm-guests.conf"]), "without that file");
    assert_eq!(fs::read_to_string(&path).unwrap(), "# mine now\n");
    assert!(!host.tree().contains_key("/etc/modules-load.d/gpuvm.conf"));
}

#[test]
fn a_disk_goes_only_by_its_own_word() {
    let host = Host::named("nat-network");
    succeeded(&host.apply(), "apply");
    let disk = "/var/lib/libvirt/images/web-0.qcow2";
    succeeded(&host.undo(&[]), "undo");
    assert!(host.tree().contains_key(disk), "it stays without the word");

    let host = Host::named("nat-network");
    succeeded(&host.apply(), "apply");
    let plan = stdout(&host.run(&["undo", "--plan", "--with-data"]));
    assert!(plan.contains("[data-loss]"), "{plan}");
    succeeded(&host.undo(&["--with-data"]), "undo");
    assert!(!host.tree().contains_key(disk), "it goes with the word");
}

#[test]
fn the_runs_are_listed_and_shown() {
    let host = Host::named("operators");
    assert_eq!(stdout(&host.run(&["history"])), "no run yet\n");
    succeeded(&host.apply(), "apply");
    succeeded(&host.undo(&[]), "undo");
    let list = stdout(&host.run(&["history"]));
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    assert!(lines[0].starts_with("   2 ") && lines[0].contains("gpuvm undo"), "{list}");
    assert!(lines[1].starts_with("   1 ") && lines[1].contains("6 changes") && lines[1].contains("done"), "{list}");
    let json: serde_json::Value = serde_json::from_slice(&host.run(&["history", "--output", "json"]).stdout).unwrap();
    assert_eq!((&json["format"], &json["runs"][0]["undo"], &json["runs"][1]["run"]), (&1.into(), &1.into(), &1.into()));
    let shown = stdout(&host.run(&["show", "1"]));
    for said in ["what was approved", "group-member[kvm/alice]", "join the group", "run 1: 6 changes done", "log: "] {
        assert!(shown.contains(said), "{said}\n{shown}");
    }
    for output in
        [shown, stdout(&host.run(&["show", "--output", "json"])), stdout(&host.run(&["show", "1", "--output", "json"]))]
    {
        assert!(!output.contains("canary"), "a secret is shown");
    }
    assert_eq!(host.run(&["show", "7"]).status.code(), Some(1));
    // For root's eyes only.
    let state = host.work.path().join("host/root/var/lib/gpuvm");
    for name in ["runs/1/before.jsonl", "runs/1/after.json", "runs/1/about.json", "runs/1/journal.jsonl"] {
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(state.join(name)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn old_runs_are_forgotten() {
    let host = Host::named("operators");
    for _ in 0..18 {
        succeeded(&host.apply(), "apply");
        succeeded(&host.undo(&[]), "undo");
    }
    let runs = stdout(&host.run(&["history"])).lines().count();
    assert_eq!(runs, usize::try_from(gpuvm::apply::KEPT_RUNS).unwrap());
    assert_eq!(host.run(&["undo", "1"]).status.code(), Some(1));
}

#[test]
fn a_disk_that_something_still_needs_does_not_go_with_its_data() {
    let host = Host::named("nat-network");
    succeeded(&host.apply(), "apply");
    // The VM stays, and so does what it runs on, whatever the words are.
    let disk = "/var/lib/libvirt/images/web-0.qcow2";
    let refused = |words: &[&str], why: &str| {
        let undo = host.undo(words);
        let said = stdout(&undo) + &stderr(&undo);
        assert!(!undo.status.success() && said.contains(why), "{words:?}: {said}");
        assert!(host.tree().contains_key(disk), "{words:?}");
        assert!(!host.tree().contains_key("/runs/2"), "the plan says so, and nothing begins");
    };
    refused(&["1", "--with-data", "--skip", "libvirt-domain"], "VM `web` needs volume default/web-0.qcow2");

    let known = |change: &dyn Fn(&mut serde_json::Value)| {
        let path = host.work.path().join("host/gpuvm-record.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record["libvirt"]["known"]);
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    };
    let volume = |known: &mut serde_json::Value, field: &str, value: serde_json::Value| {
        let all = known["pools"][0]["volumes"].as_array_mut().unwrap();
        all.iter_mut().find(|v| v["name"] == "web-0.qcow2").unwrap()[field] = value;
    };
    // A clone of it.
    known(&|known| {
        let volumes = known["pools"][0]["volumes"].as_array_mut().unwrap();
        let mut clone = volumes.iter().find(|v| v["name"] == "web-0.qcow2").unwrap().clone();
        clone["backing"] = clone["path"].take();
        (clone["name"], clone["path"]) = ("clone.qcow2".into(), "/var/lib/libvirt/images/clone.qcow2".into());
        volumes.push(clone);
    });
    refused(&["1", "--with-data"], "the disk `/var/lib/libvirt/images/clone.qcow2` needs volume default/web-0.qcow2");
    known(&|known| drop(known["pools"][0]["volumes"].as_array_mut().unwrap().pop()));
    // It is another one by now.
    let size = known_size(&host);
    known(&|known| volume(known, "capacity", (size + (1 << 30)).into()));
    refused(&["1", "--with-data"], "volume default/web-0.qcow2 was changed since run 1");
    known(&|known| volume(known, "capacity", size.into()));
    // In a pool that is stopped it is there all the same.
    let pool = std::cell::RefCell::new(serde_json::Value::Null);
    known(&|known| {
        *pool.borrow_mut() = known["pools"][0].clone();
        (known["pools"][0]["active"], known["pools"][0]["volumes"]) = (false.into(), serde_json::json!([]));
    });
    refused(&["1", "--with-data"], "virsh pool-start default");
    known(&|known| known["pools"][0] = pool.take());
    succeeded(&host.undo(&["1", "--with-data"]), "undo");
    assert!(!host.tree().contains_key(disk));
}

fn known_size(host: &Host) -> u64 {
    let record = fs::read(host.work.path().join("host/gpuvm-record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let all = record["libvirt"]["known"]["pools"][0]["volumes"].as_array().unwrap().clone();
    all.iter().find(|v| v["name"] == "web-0.qcow2").unwrap()["capacity"].as_u64().unwrap()
}

#[test]
fn a_disk_that_a_later_run_made_anew_is_not_the_runs_any_more() {
    let host = Host::named("nat-network");
    succeeded(&host.apply(), "apply");
    succeeded(&host.run(&["vm", "delete", "web", "--yes"]), "delete");
    succeeded(&host.apply(), "apply once more");
    let undo = host.undo(&["1", "--with-data"]);
    let said = stdout(&undo) + &stderr(&undo);
    assert!(!undo.status.success() && said.contains("was made or changed by run 3 too"), "{said}");
    assert!(host.tree().contains_key("/var/lib/libvirt/images/web-0.qcow2"));
}
