//! A GPU that host and VMs share, on copies of a recorded host: whose it is, in every way in which a VM starts and ends
//! there; two VMs that want it; and what a start that was cut off leaves. The hand-over itself is played: the shipped
//! script has its own tests beside it.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::host;
use crate::machine::{copy_tree, fast_folder, gpuvm, repository, stderr, stdout};

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
gpus:
  render: { match: { address: \"0000:01:00\" }, use: host }
  spare: { match: { address: \"0000:02:00\" }, use: shared, release: [ollama.service, idle.service, \"docker:comfyui\"] }
vms:
  one: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [spare], start: manual }
  two: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [spare], start: manual }
  bare: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, start: manual }
";
const HOSTS: &str = "nvidia snd_hda_intel";
const VFIO: &str = "vfio-pci vfio-pci";

fn made() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = fast_folder();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
        fs::write(dir.path().join("host.yaml"), MANIFEST).unwrap();
        let host = host::Host { dir };
        host.record(|record| {
            for query in record["queries"].as_array_mut().unwrap() {
                let more = match query["args"][0].as_str().unwrap() {
                    "list-units" => "ollama.service loaded active running x\nidle.service loaded inactive dead x\n",
                    "list-unit-files" => "ollama.service enabled enabled\nidle.service disabled enabled\n",
                    _ => continue,
                };
                let out = query["output"]["stdout"].as_str().unwrap().to_owned() + more;
                query["output"]["stdout"] = out.into();
            }
        });
        host.says("apply --yes --reboot", 0);
        host.dir
    });
    made.path()
}

/// The recorded host, and what is of shared cards on it.
struct Host(host::Host);

impl std::ops::Deref for Host {
    type Target = host::Host;
    fn deref(&self) -> &host::Host {
        &self.0
    }
}

impl Host {
    fn new() -> Self {
        Self(host::Host::copy(made()))
    }
    fn says(&self, words: &str, code: i32) -> String {
        let output = self.run(words);
        let said = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{words}: {said}");
        // As it was before it was cut into lines.
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    }
    fn with_domain(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        self.record(|record| {
            let all = record["libvirt"]["known"]["domains"].as_array_mut().unwrap();
            change(all.iter_mut().find(|d| d["name"] == name).unwrap());
        });
    }
    fn running(&self) -> String {
        let record = self.record(|_| {});
        // An undo of the run that installed libvirt leaves none.
        let all = record["libvirt"]["known"]["domains"].as_array().into_iter().flatten();
        all.filter(|d| d["active"] == true).map(|d| d["name"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
    }
    fn drivers(&self) -> String {
        let driver = |function: &str| {
            let link = self.at(&format!("host/root/sys/bus/pci/devices/0000:02:00.{function}/driver"));
            fs::read_link(link).map_or("none".to_owned(), |l| l.file_name().unwrap().to_str().unwrap().to_owned())
        };
        format!("{} {}", driver("0"), driver("1"))
    }
    fn service(&self, unit: &str) -> String {
        let record = self.record(|_| {});
        let units = record["queries"].as_array().unwrap().iter().find(|q| q["args"][0] == "list-units").unwrap();
        let text = units["output"]["stdout"].as_str().unwrap();
        text.lines().find(|l| l.starts_with(unit)).unwrap().split_whitespace().nth(2).unwrap().to_owned()
    }
    /// Whose the card is, what runs on the host, and which VMs run.
    fn is(&self, drivers: &str, ollama: &str, running: &str) {
        let now = (self.drivers(), self.service("ollama.service"), self.running());
        assert_eq!(now, (drivers.to_owned(), ollama.to_owned(), running.to_owned()));
        assert_eq!(self.service("idle.service"), "inactive");
    }
}

#[test]
fn it_is_the_hosts_until_a_vm_starts_and_again_when_that_has_ended() {
    let host = Host::new();
    host.is(HOSTS, "active", "");
    let status = host.says("gpu status spare -f host.yaml", 0);
    let whose =
        "shared the host's until a VM starts with it; stopped then: ollama.service, idle.service, docker:comfyui";
    assert!(status.contains(whose), "{status}");
    let info = host.says("vm info one", 0);
    assert!(info.contains("shared: the host's until this VM starts") && !info.contains("would not start"), "{info}");
    host.says("vm start one", 0);
    host.is(VFIO, "inactive", "one");
    host.says("plan -f host.yaml", 0);
    let status = host.says("gpu status spare -f host.yaml", 0);
    assert!(status.contains("VM one has it; stopped for it: ollama.service"), "{status}");
    assert!(host.says("gpu list -f host.yaml", 0).contains("shared: VM one"));
    host.says("vm stop one", 0);
    host.is(HOSTS, "active", "");
    host.says("plan -f host.yaml", 0);
    // A restart gives it back and takes it again.
    host.says("vm start one", 0);
    host.says("vm restart one", 0);
    host.is(VFIO, "inactive", "one");
    host.says("undo --yes 3", 0);
}

#[test]
fn a_second_vm_is_refused_by_the_name_of_the_first_or_takes_its_place_in_one_run() {
    let host = Host::new();
    host.says("vm start one", 0);
    let said = host.says("vm start two", 1);
    assert!(said.contains("VM `one` has its device 0000:02:00.0, and runs"), "{said}");
    assert!(said.contains("gpuvm vm start --root host two --swap"), "{said}");
    host.is(VFIO, "inactive", "one");
    let info = host.says("vm info two", 0);
    assert!(info.contains("VM `one` has device 0000:02:00.0") && info.contains("--swap"), "{info}");

    let said = host.says("vm start two --swap", 0);
    host.is(VFIO, "inactive", "two");
    let run = said
        .split("gpuvm undo --root host ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .trim_end_matches(['.', ';', ')']);
    host.says(&format!("undo {run} --yes"), 0);
    host.is(VFIO, "inactive", "one");
    // Nobody in the way: the word changes nothing.
    host.says("vm stop one", 0);
    host.says("vm start two --swap", 0);
    host.says("vm start two --swap", 0);
    host.is(VFIO, "inactive", "two");
}

#[test]
fn a_guest_that_does_not_shut_down_keeps_it() {
    let host = Host::new();
    host.says("vm start one", 0);
    host.record(|record| record["deaf"] = serde_json::json!(["one"]));
    let said = host.says("vm start two --swap", 1);
    assert!(said.contains("one"), "{said}");
    host.is(VFIO, "inactive", "one");
    // One that others made is not shut down at all.
    let host = Host::new();
    host.says("vm start one", 0);
    host.with_domain("one", |d| {
        for which in ["inactiveXml", "liveXml"] {
            d[which] = d[which].as_str().unwrap().replace("urn:gpuvm:vm:1", "urn:theirs").into();
        }
    });
    let said = host.says("vm start two --swap", 1);
    assert!(said.contains("not made by gpuvm") && said.contains("virsh shutdown one"), "{said}");
    host.is(VFIO, "inactive", "one");
}

#[test]
fn what_a_start_that_was_cut_off_leaves_the_next_apply_gives_back() {
    let host = Host::new();
    host.says("vm start one", 0);
    host.with_domain("one", |d| (d["active"], d["liveXml"]) = (false.into(), serde_json::Value::Null));
    let said = host.says("plan -f host.yaml", 2);
    assert!(said.contains("shared-gpu[spare]") && said.contains("no VM has it any more"), "{said}");
    assert!(said.contains("ollama.service: stopped for a VM → started"), "{said}");
    host.says("apply -f host.yaml --yes", 0);
    host.is(HOSTS, "active", "");
    host.says("plan -f host.yaml", 0);
    // As does a boot.
    host.says("vm start one", 0);
    fs::write(host.at("host.yaml"), MANIFEST.replace("vms:", "kernelArgs: [hpet=disable]\nvms:")).unwrap();
    host.says("apply -f host.yaml --yes --reboot", 0);
    host.is(HOSTS, "active", "");
}

#[test]
fn it_changes_hands_when_a_vm_starts_or_ends_and_at_no_other_time() {
    let host = Host::new();
    let said = host.says("gpu attach bare spare -f host.yaml --yes", 0);
    assert!(said.contains("does not give"), "{said}");
    host.is(HOSTS, "active", "");
    host.says("vm start bare", 0);
    host.is(VFIO, "inactive", "bare");
    let said = host.says("gpu detach bare spare -f host.yaml --yes", 3);
    assert!(said.contains("until it is shut down, and then the host has it back"), "{said}");
    host.is(VFIO, "inactive", "bare");
    host.says("vm stop bare", 0);
    host.is(HOSTS, "active", "");
    host.says("vm start bare", 0);
    host.is(HOSTS, "active", "bare");
    let said = host.says("gpu attach bare spare -f host.yaml --yes", 3);
    assert!(said.contains("from its next start on"), "{said}");
    host.is(HOSTS, "active", "bare");
}

#[test]
fn it_leaves_the_manifest_when_no_vm_has_it() {
    let host = Host::new();
    host.says("vm start one", 0);
    let line = MANIFEST.lines().find(|l| l.contains("spare:")).unwrap();
    let without = MANIFEST.replace(&format!("{line}\n"), "").replace(" gpus: [spare],", "");
    fs::write(host.at("host.yaml"), without).unwrap();
    let said = host.says("plan -f host.yaml", 1);
    assert!(said.contains("it left the manifest, and VM `one` has it"), "{said}");
    host.says("vm stop one", 0);
    host.says("apply -f host.yaml --yes", 0);
    host.is(HOSTS, "active", "");
    assert!(!host.at("host/root/usr/local/lib/gpuvm/shared-gpu").exists());
    assert!(!host.at("host/root/etc/gpuvm/shared/spare").exists());
}

#[test]
fn an_undo_takes_the_hand_over_away_when_no_vm_has_it() {
    // The VM stays, so what gives the card back when it ends stays too.
    let host = Host::new();
    host.says("vm start one", 0);
    let said = host.says("undo 1 --yes --skip libvirt-domain/one", 1);
    assert!(said.contains("VM `one` has `spare`") && said.contains("gpuvm vm stop --root host one"), "{said}");
    for path in ["usr/local/lib/gpuvm/shared-gpu", "etc/systemd/system/gpuvm-give@.service", "etc/gpuvm/shared/spare"] {
        assert!(host.at("host/root").join(path).exists(), "{path}");
    }
    host.is(VFIO, "inactive", "one");
    // The same undo stops it: the card goes back first, and is waited for.
    let said = host.says("undo 1 --yes", 0);
    assert!(said.contains("it goes back to the host first, once VM `one` has ended"), "{said}");
    host.is(HOSTS, "active", "");
    assert!(!host.at("host/root/usr/local/lib/gpuvm/shared-gpu").exists());
    // What a start that was cut off left is owed.
    let host = Host::new();
    host.says("vm start one", 0);
    host.with_domain("one", |d| (d["active"], d["liveXml"]) = (false.into(), serde_json::Value::Null));
    let said = host.says("undo 1 --yes", 1);
    assert!(said.contains("`spare` has not all gone back") && said.contains("start gpuvm-give@spare:one"), "{said}");
    assert!(host.at("host/root/usr/local/lib/gpuvm/shared-gpu").exists());
}

#[test]
fn who_uses_it_is_judged_by_what_is_stopped_for_a_vm() {
    let host = Host::new();
    let user = |name: &str, cgroup: &str| serde_json::json!({ "pid": 77, "name": name, "cgroup": cgroup, "nodes": ["/dev/nvidia1"] });
    let explain = |user: serde_json::Value| {
        host.record(|record| record["deviceUsers"] = serde_json::json!({ "users": [user] }));
        let output = gpuvm(
            &["gpu", "explain", "spare", "-f", "host.yaml", "--output", "json", "--root", "host"],
            host.dir.path(),
        );
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let links = all["links"].as_array().unwrap();
        let link = |name: &str| links.iter().find(|l| l["name"] == name).cloned().unwrap();
        assert!(link("next boot")["says"].as_str().unwrap().starts_with("the host's"));
        (link("holder")["status"].as_str().unwrap().to_owned(), link("holder")["says"].as_str().unwrap().to_owned())
    };
    let node = host.at("host/root/proc/driver/nvidia/gpus/0000:02:00.0");
    fs::create_dir_all(&node).unwrap();
    fs::write(node.join("information"), "Device Minor: 1\n").unwrap();
    let (status, says) = explain(user("steam", "/user.slice/user-1000.slice/session-2.scope"));
    assert_eq!(status, "fail", "{says}");
    let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let (status, says) = explain(user("python3", &format!("/system.slice/docker-{id}.scope")));
    assert_eq!(status, "unknown", "{says}");
    let (status, says) = explain(user("ollama", "/system.slice/ollama.service"));
    assert!(status == "ok" && says.contains("stopped while a VM has the card"), "{says}");
}

#[test]
fn mistakes_are_named_at_their_places() {
    let host = Host::new();
    for (from, to, said) in [
        ("use: shared, release", "use: vfio, release", "is not shared, so nothing is stopped for a VM"),
        ("use: shared", "use: shared, existing: true", "only with `use: vfio`"),
        ("idle.service", "ollama.service", "`ollama.service` is given twice"),
        ("idle.service", "idle", "not a unit or a container"),
        ("gpus:\n  render", "devices:\n  render", "cannot be shared by the host and its VMs"),
        ("start: manual", "start: boot", "in VMs `one` and `two`, which both run"),
    ] {
        let text = MANIFEST.replace(from, to);
        let text = if to.starts_with("devices") { text.replace("gpus: [spare]", "devices: [spare]") } else { text };
        fs::write(host.at("bad.yaml"), text).unwrap();
        let output = gpuvm(&["validate", "-f", "bad.yaml"], host.dir.path());
        let all = (stdout(&output) + &stderr(&output)).replace(['│', '\n'], " ");
        let all = all.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(output.status.code() != Some(0) && all.contains(said), "{said}: {all}");
    }
}
