//! Verbs on a copy of a recorded host: the same lock, journal, record and undo as an apply, and killed at every place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::host::Host;
use crate::machine::{command, stderr, stdout, tree};

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
        let host = Host::made(MANIFEST);
        host.libvirt(|known| {
            let mut theirs = known["domains"][0].clone();
            let xml = theirs["inactiveXml"].as_str().unwrap().replace("urn:gpuvm:vm:1", "urn:theirs");
            let xml = xml.replace("/tiny-0.qcow2", "/theirs-0.qcow2");
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

impl Host {
    pub fn new() -> Self {
        Self::copy(with_vms())
    }
    /// What libvirt knows, without how often a VM was started: one that was asked for again is another start.
    fn settled(&self) -> serde_json::Value {
        let mut known = self.libvirt(|_| {});
        known["domains"].as_array_mut().unwrap().iter_mut().for_each(|d| drop(d.as_object_mut().unwrap().remove("id")));
        known
    }
    /// What the ledger has as gpuvm's.
    fn owned(&self) -> serde_json::Value {
        let text = fs::read_to_string(self.at("host/root/var/lib/gpuvm/ledger.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["owned"].clone()
    }
    fn owns(&self, name: &str) -> bool {
        self.owned().as_array().unwrap().iter().any(|o| o[0]["name"] == name)
    }
    fn disk(&self) -> PathBuf {
        self.at("host/root/var/lib/libvirt/images/tiny-0.qcow2")
    }
    fn runs(&self) -> usize {
        fs::read_dir(self.at("host/root/var/lib/gpuvm/runs")).unwrap().count()
    }
}

#[test]
fn a_start_is_a_run_like_any_other_and_goes_back() {
    let host = Host::new();
    let before = host.owned();
    let said = host.says("vm start tiny", 0);
    assert!(said.contains("tiny runs\ngo back: gpuvm undo 2\n") && !said.contains("apply this?"), "{said}");
    assert!(host.domain("tiny")["active"] == true);
    assert_eq!(host.owned(), before, "what is gpuvm's stays gpuvm's");

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
    assert_eq!(host.owned(), before);
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
        ("vm stop theirs --force", "was not made by gpuvm"),
        ("vm restart theirs", "was not made by gpuvm"),
        ("vm delete theirs --yes", "was not made by gpuvm"),
        ("vm delete tinny --yes", "there is: theirs, tiny"),
        ("vm delete tiny", "there is no terminal to ask on"),
    ] {
        let said = host.says(words, 1);
        assert!(said.contains(why), "{words}: {said}");
    }
    assert!(host.says("vm start ../etc", 64).contains("is not a VM name"));
    assert_eq!(tree(&host.at("host")), before);
    assert_eq!(host.runs(), 1);
}

#[test]
fn a_guest_is_asked_and_its_power_is_cut_only_where_that_was_said() {
    let host = Host::new();
    host.says("vm start tiny", 0);
    host.record(|record| record["deaf"] = serde_json::json!(["tiny"]));
    let said = host.says("vm stop tiny --timeout 30", 1);
    assert!(said.contains("did not shut down within 30 s, and runs on") && said.contains("--force"), "{said}");
    assert!(host.domain("tiny")["active"] == true);
    let said = host.says("vm stop tiny --timeout 30 --force", 0);
    assert!(said.contains("did not shut down within 30 s: its power was cut\n"), "{said}");
    assert!(said.contains("tiny is off\ngo back: gpuvm undo 4\n"), "{said}");
    assert!(host.domain("tiny")["active"] == false);
    host.says("undo 4 --yes", 0);
    assert!(host.domain("tiny")["active"] == true);

    host.libvirt(|known| {
        known["domains"][1]["paused"] = true.into();
        known["domains"][1]["condition"] = "a disk failed, or its pool is full".into();
    });
    let said = host.says("vm stop tiny", 1);
    assert!(said.contains("a disk failed") && said.contains("virsh resume tiny"), "{said}");
    host.says("vm stop tiny --force", 0);

    // What the manifest wants to run comes back, and that is said.
    fs::write(host.at("host.yaml"), MANIFEST.replace("start: manual", "state: running")).unwrap();
    host.record(|record| record["deaf"] = serde_json::json!([]));
    host.says("apply --yes", 0);
    let said = host.says("vm stop tiny", 0);
    assert!(said.contains("the next apply starts it again"), "{said}");
}

#[test]
fn a_restart_is_another_start_of_the_same_vm() {
    let host = Host::new();
    host.says("vm start tiny", 0);
    let before = host.domain("tiny");
    let said = host.says("vm restart tiny", 0);
    assert!(said.contains("tiny runs anew\nrun 3; it cannot be undone\n"), "{said}");
    let after = host.domain("tiny");
    assert!(after["active"] == true && after["id"] != before["id"], "{before:#} {after:#}");
    assert!(host.says("undo --yes", 0).contains("nothing to do"));
    host.says("vm stop tiny", 0);
    host.says("vm restart tiny", 0);
    assert!(host.domain("tiny")["active"] == true, "one that was off is started");
}

#[test]
fn what_is_deleted_is_shown_and_what_others_use_or_made_stays() {
    let host = Host::new();
    let plan = "  - libvirt-domain[tiny]          its definition, UEFI variables, TPM state and
                                  saved memory   from gpuvm vm delete tiny
";
    host.says("vm start tiny", 0);
    assert!(host.says("vm delete tiny --yes", 1).contains("gpuvm vm stop tiny"));
    host.says("vm stop tiny", 0);

    let with_disk = |from: &str, to: &str| {
        host.libvirt(|known| {
            let xml = &mut known["domains"][0]["inactiveXml"];
            *xml = xml.as_str().unwrap().replace(from, to).into();
        })
    };
    with_disk("/theirs-0.qcow2", "/tiny-0.qcow2");
    let said = host.says("vm delete tiny --yes", 1);
    assert!(said.contains("VM `theirs` needs it too") && said.contains("--keep-disks"), "{said}");
    with_disk("/tiny-0.qcow2", "/theirs-0.qcow2");
    // A clone, of a VM whose definition does not say what its disk goes on in.
    host.libvirt(|known| {
        let volumes = known["pools"][0]["volumes"].as_array_mut().unwrap();
        let mut clone = volumes.iter().find(|v| v["name"] == "tiny-0.qcow2").unwrap().clone();
        clone["backing"] = clone["path"].take();
        (clone["name"], clone["path"]) = ("clone.qcow2".into(), "/var/lib/libvirt/images/clone.qcow2".into());
        volumes.push(clone);
    });
    let said = host.says("vm delete tiny --yes", 1);
    assert!(said.contains("the disk `/var/lib/libvirt/images/clone.qcow2` needs it too"), "{said}");
    host.libvirt(|known| drop(known["pools"][0]["volumes"].as_array_mut().unwrap().pop()));

    let said = host.says("vm delete tiny --yes", 0);
    assert!(said.contains(plan), "{said}");
    for line in ["- volume[default/tiny-0.qcow2]", "1GiB, with everything on it [data-loss]", "take `tiny` out"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.contains("tiny is gone\nrun 4; it cannot be undone\n"), "{said}");
    assert!(host.domain("tiny").is_null() && !host.disk().exists());
    assert!(!host.owns("tiny") && !host.owns("default/tiny-0.qcow2"), "{:#}", host.owned());
    assert!(!host.domain("theirs").is_null());
    assert!(host.says("vm delete tiny --yes", 1).contains("no VM of this name"));
}

#[test]
fn disks_that_are_kept_bring_the_vm_back_or_go_later() {
    let host = Host::new();
    host.libvirt(|known| {
        known["domains"].as_array_mut().unwrap().remove(0);
    });
    let said = host.says("vm delete tiny --keep-disks --yes", 0);
    assert!(said.contains("go back: gpuvm undo 2"), "{said}");
    assert!(host.domain("tiny").is_null() && host.disk().exists() && host.owns("default/tiny-0.qcow2"));
    let before = host.domain("tiny");
    host.says("undo --yes", 0);
    assert!(before.is_null() && !host.domain("tiny").is_null() && host.owns("tiny"));
    host.says("vm delete tiny --keep-disks --yes", 0);
    let said = host.says("vm delete tiny --yes", 0);
    assert!(said.contains("- volume[default/tiny-0.qcow2]") && !said.contains("libvirt-domain"), "{said}");
    assert!(!host.disk().exists() && !host.owns("default/tiny-0.qcow2"));
}

#[test]
fn a_disk_that_was_there_before_is_not_deleted() {
    let host = Host::new();
    host.libvirt(|known| {
        known["domains"].as_array_mut().unwrap().remove(0);
        let xml = known["domains"][0]["inactiveXml"].as_str().unwrap();
        let more = "<disk type='file' device='disk'><source file='/srv/photos.raw'/><target dev='vdz' bus='virtio'/></disk></devices>";
        known["domains"][0]["inactiveXml"] = xml.replace("</devices>", more).into();
    });
    // As an apply with `takeOver: true` would have written it down.
    let ledger = host.at("host/root/var/lib/gpuvm/ledger.json");
    let text = fs::read_to_string(&ledger).unwrap();
    fs::write(&ledger, text.replace("\"vm\":\"tiny\"", "\"vm\":\"tiny\",\"takeOver\":true")).unwrap();
    let said = host.says("vm delete tiny --yes", 0);
    assert!(said.contains("`/srv/photos.raw` stays: gpuvm did not make it"), "{said}");
    assert!(host.disk().exists() && !said.contains("data-loss"), "{said}");
}

#[test]
fn the_state_of_a_tpm_stays_with_the_disks_or_the_plan_says_that_it_is_lost() {
    let with_tpm = |version: u64| {
        let host = Host::new();
        let known = host.libvirt(|known| {
            known["version"] = version.into();
            let tiny = known["domains"].as_array_mut().unwrap().iter_mut().find(|d| d["name"] == "tiny").unwrap();
            let tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>";
            tiny["inactiveXml"] = tiny["inactiveXml"].as_str().unwrap().replace("</devices>", tpm).into();
        });
        let tiny = known["domains"].as_array().unwrap().iter().find(|d| d["name"] == "tiny").unwrap().clone();
        let state = host.at("host/root/var/lib/libvirt/swtpm").join(tiny["uuid"].as_str().unwrap());
        fs::create_dir_all(state.join("tpm2")).unwrap();
        fs::write(state.join("tpm2/tpm2-00.permall"), "the key of its disk").unwrap();
        (host, state.join("tpm2/tpm2-00.permall"))
    };
    let (host, state) = with_tpm(11_003_000);
    let said = host.says("vm delete tiny --keep-disks --yes", 0);
    assert!(said.contains("the state of its TPM stays with its disks") && !said.contains("data-loss"), "{said}");
    assert!(said.contains("go back: gpuvm undo 2"), "{said}");
    assert_eq!(fs::read_to_string(&state).unwrap(), "the key of its disk");
    let uuid = |host: &Host| host.domain("tiny")["uuid"].clone();
    host.says("undo --yes", 0);
    assert!(state.to_str().unwrap().contains(uuid(&host).as_str().unwrap()), "the VM finds it again");
    let said = host.says("vm delete tiny --yes", 0);
    assert!(said.contains("data-loss") && !state.exists(), "{said}");

    // An older libvirt cannot keep it.
    let (host, state) = with_tpm(8_000_000);
    let said = host.says("vm delete tiny --keep-disks --yes", 0);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("libvirt before 8.9") && said.contains("data-loss"), "{said}");
    assert!(said.contains("run 2; it cannot be undone") && !state.exists(), "{said}");
}

#[test]
fn saved_memory_is_not_lost_without_a_word() {
    let host = Host::new();
    host.libvirt(|known| {
        let tiny = known["domains"].as_array_mut().unwrap().iter_mut().find(|d| d["name"] == "tiny").unwrap();
        tiny["saved"] = true.into();
    });
    let said = host.says("vm delete tiny --keep-disks --yes", 0);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("its memory is saved, and is lost") && said.contains("data-loss"), "{said}");
    assert!(said.contains("it cannot be undone"), "{said}");
}

const CLOUDY: &str = "  cloudy:
    image: debian-13
    cpus: 1
    memory: 512MiB
    disks: [10GiB]
    network: nat
    start: manual
    user: { name: alice, sshKeys: [gh:alice] }
";

/// Another VM, with a seed.
fn with_seed() -> (Host, PathBuf) {
    let host = Host::new();
    fs::write(host.at("host.yaml"), format!("{MANIFEST}{CLOUDY}")).unwrap();
    host.says("apply --yes", 0);
    let images = fs::read_dir(host.at("host/root/var/lib/libvirt/images")).unwrap();
    let mut names = images.map(|e| e.unwrap().path());
    let seed = names.find(|p| p.to_str().unwrap().ends_with(".iso")).unwrap();
    (host, seed)
}

#[test]
fn a_seed_goes_with_its_vm_and_comes_back_with_it() {
    let (host, seed) = with_seed();
    let bytes = fs::read(&seed).unwrap();
    let said = host.says("vm delete cloudy --keep-disks --yes", 0);
    assert!(said.contains("- seed[cloudy]"), "{said}");
    assert!(!seed.exists() && !host.owned().to_string().contains("\"seed\""), "{:#}", host.owned());
    host.says("undo --yes", 0);
    assert_eq!(fs::read(&seed).unwrap(), bytes);
    assert!(host.owned().to_string().contains("\"seed\""), "{:#}", host.owned());
    // What is no seed of gpuvm's stays.
    fs::write(&seed, "somebody's").unwrap();
    host.says("vm delete cloudy --yes", 0);
    assert!(seed.exists());
}

#[test]
fn a_seed_that_libvirt_gave_to_qemu_was_not_changed_by_anyone() {
    let (host, seed) = with_seed();
    host.says("vm start cloudy", 0);
    let at = format!("/var/lib/libvirt/images/{}", seed.file_name().unwrap().to_str().unwrap());
    host.record(|record| {
        let stat = &mut record["stats"][&at];
        assert!(stat.is_object(), "its owner is recorded");
        (stat["uid"], stat["gid"]) = (64055.into(), 64055.into());
    });
    let said = host.says("undo 2 --yes", 0);
    assert!(!seed.exists() && host.domain("cloudy").is_null(), "{said}");
}

#[test]
fn a_verb_that_was_killed_anywhere_is_told_of_and_goes_on() {
    // What is asked, and how the host is before it.
    for (words, before) in [
        ("vm start tiny", None),
        ("vm stop tiny", Some("vm start tiny")),
        ("vm restart tiny", Some("vm start tiny")),
        ("vm delete tiny --yes", None),
        ("vm delete tiny --keep-disks --yes", None),
    ] {
        let prepared = Host::new();
        if let Some(before) = before {
            prepared.says(before, 0);
        }
        let undisturbed = Host::copy(prepared.dir.path());
        undisturbed.says(words, 0);
        let (known, owned) = (undisturbed.settled(), undisturbed.owned());
        let mut deaths = 0;
        for place in 1.. {
            let host = Host::copy(prepared.dir.path());
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
                // It may have been done by then.
                let again = host.run(words);
                let said = stdout(&again) + &stderr(&again);
                assert!(again.status.success() || said.contains("no VM of this name"), "{words} at {place}: {said}");
            }
            assert_eq!(host.settled(), known, "{words}: killed at {place}");
            assert_eq!(host.owned(), owned, "{words}: killed at {place}");
        }
        assert!(deaths > 10, "{words}: {deaths}");
    }
}
