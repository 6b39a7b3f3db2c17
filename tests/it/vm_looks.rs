//! What is told about VMs: on copies of recorded hosts, with what their guests, leases and neighbours would say.

use std::fs;

use crate::host::Host;
use crate::machine::{copy_tree, fast_folder, gpuvm, repository, stderr, stdout};

const MANIFEST: &str = "version: 1
gpus:
  work: { match: \"0000:02:00\", use: vfio }
networks:
  nat: { libvirt: default }
vms:
  desktop: { cpus: 4, memory: 4GiB, disks: [100GiB], gpus: [work], network: nat, start: boot }
  build: { cpus: 2, memory: 2GiB, disks: [20GiB], network: nat, start: manual }
";

/// A desktop with a GPU that runs, a stopped one, and one of others.
fn desk() -> Host {
    let dir = fast_folder();
    copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
    fs::write(dir.path().join("host.yaml"), MANIFEST).unwrap();
    let host = Host { dir };
    let ids = host.at("host/root/usr/share/misc/pci.ids");
    fs::create_dir_all(ids.parent().unwrap()).unwrap();
    fs::copy(repository().join("tests/hosts/pci.ids"), ids).unwrap();
    // More memory than the VMs have: one with a GPU that does not fit is refused.
    let meminfo = host.at("host/root/proc/meminfo");
    let text = fs::read_to_string(&meminfo).unwrap();
    fs::write(&meminfo, text.replacen("4007956", "16007956", 1)).unwrap();
    host.says("apply --yes --reboot", 0);
    let mut mac = String::new();
    host.libvirt(|known| {
        let all = known["domains"].as_array_mut().unwrap();
        let mut theirs = all.iter().find(|d| d["name"] == "build").cloned().unwrap();
        let xml = theirs["inactiveXml"].as_str().unwrap().replace("urn:gpuvm:vm:1", "urn:theirs");
        let xml = xml.replace("org.qemu.guest_agent.0", "org.theirs.0");
        (theirs["name"], theirs["uuid"], theirs["inactiveXml"]) = ("router".into(), "u".into(), xml.into());
        all.push(theirs);
        let desktop = all.iter_mut().find(|d| d["name"] == "desktop").unwrap();
        let agent = "name='org.qemu.guest_agent.0'";
        let live = desktop["inactiveXml"].as_str().unwrap().replace(agent, &format!("{agent} state='connected'"));
        mac = live.split("<mac address='").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        (desktop["active"], desktop["liveXml"]) = (true.into(), live.into());
    });
    let interfaces = serde_json::json!([
        { "name": "enp1s0", "mac": mac, "addresses": ["192.168.122.23", "fe80::1"] },
        { "name": "docker0", "mac": "02:42:00:00:00:01", "addresses": ["172.17.0.1"] },
        { "name": "wg0", "addresses": ["10.6.0.2"] },
    ]);
    let neighbours = serde_json::json!([
        { "dst": "192.168.122.23", "dev": "virbr0", "lladdr": mac, "state": ["REACHABLE"] },
        { "dst": "fd00::23", "dev": "virbr0", "lladdr": mac, "state": ["STALE"] },
        { "dst": "192.168.122.99", "dev": "virbr0", "state": ["FAILED"] },
        { "dst": "192.168.122.77", "dev": "virbr0", "lladdr": "52:54:00:00:00:77", "state": ["STALE"] },
    ]);
    host.record(|record| {
        record["agents"] = serde_json::json!({ "desktop": { "interfaces": interfaces } });
        record["queries"].as_array_mut().unwrap().push(serde_json::json!({
            "program": "ip", "args": ["-json", "neigh", "show"],
            "output": { "status": 0, "stdout": neighbours.to_string() },
        }));
    });
    let leases = host.at("host/root/var/lib/libvirt/dnsmasq");
    fs::create_dir_all(&leases).unwrap();
    let lease = serde_json::json!([
        { "ip-address": "192.168.122.23", "mac-address": mac, "hostname": "desktop", "expiry-time": 7 },
        { "ip-address": "192.168.122.50", "mac-address": "52:54:00:00:00:50", "hostname": "laptop", "expiry-time": 7 },
    ]);
    fs::write(leases.join("virbr0.status"), lease.to_string()).unwrap();
    host
}

#[test]
fn the_pictures_in_the_documents_are_what_is_said() {
    let host = desk();
    let shows = |name: &str| fs::read_to_string(repository().join(name)).unwrap();
    let documents = shows("README.md") + &shows("src/cli/README.md");
    let mut missing = String::new();
    for words in ["vm list", "vm info desktop"] {
        let said = host.says(words, 0);
        let shown = format!("$ gpuvm {words}\n{said}");
        assert!(said.lines().all(|l| l.chars().count() <= 80), "{said}");
        if !documents.contains(&shown) {
            missing += &shown;
        }
    }
    assert!(missing.is_empty(), "neither README.md nor src/cli/README.md shows this:\n{missing}");
}

#[test]
fn addresses_come_with_who_told_them_and_scripts_get_values() {
    let host = desk();
    let json = |words: &str| serde_json::from_str::<serde_json::Value>(&stdout(&host.run(words))).unwrap();
    let list = json("vm list --output json");
    let names: Vec<_> =
        list["vms"].as_array().unwrap().iter().map(|v| (v["name"].as_str().unwrap(), v["ours"] == true)).collect();
    assert_eq!(names, [("build", true), ("desktop", true), ("router", false)]);
    let vm = &json("vm info desktop --output json")["vm"];
    assert_eq!((&vm["state"], &vm["cpus"], &vm["agent"]), (&"running".into(), &4.into(), &"answers".into()));
    assert_eq!((&vm["devices"][0]["name"], &vm["devices"][0]["gpu"]), (&"work".into(), &true.into()));
    assert_eq!(vm["disks"][0]["size"], 100u64 << 30);
    let told: Vec<String> =
        vm["nics"][0]["addresses"].as_array().unwrap().iter().map(|a| format!("{} {}", a["ip"], a["source"])).collect();
    // Each once, from who knows best; what is inside the guest alone is not among them.
    assert_eq!(told, ["\"192.168.122.23\" \"agent\"", "\"fd00::23\" \"neighbour\"", "\"fe80::1\" \"agent\""]);

    host.record(|record| record["agents"] = serde_json::json!({}));
    let vm = &json("vm info desktop --output json")["vm"];
    assert_eq!((&vm["agent"], &vm["nics"][0]["addresses"][0]["source"]), (&"silent".into(), &"lease".into()));
}

#[test]
fn what_keeps_a_vm_from_starting_is_said() {
    let host = desk();
    host.says("vm stop desktop", 0);
    let info = host.says("vm info desktop", 0);
    assert!(!info.contains("would not start"), "{info}");
    fs::remove_file(host.at("host/root/var/lib/libvirt/images/desktop-0.qcow2")).unwrap();
    host.libvirt(|known| known["networks"][0]["active"] = false.into());
    let driver = host.at("host/root/sys/bus/pci/devices/0000:02:00.0").canonicalize().unwrap().join("driver");
    fs::remove_file(&driver).unwrap();
    let log = host.at("host/root/var/log/libvirt/qemu");
    fs::create_dir_all(&log).unwrap();
    let ran =
        "2026-01-02 03:04:05.678+0000: starting up libvirt version: 11.3.0\n/usr/bin/qemu-system-x86_64 \\\n-name x\n";
    fs::write(log.join("desktop.log"), format!("{ran}vfio 0000:02:00.0: group 17 is not viable\u{1b}[2J\n")).unwrap();
    host.says("vm start desktop", 1);
    let info = host.says("vm info desktop", 0);
    for line in [
        "its disk `/var/lib/libvirt/images/desktop-0.qcow2` is not there",
        "→ virsh net-start default",
        "device 0000:02:00.0 is on no driver, not on vfio-pci",
        "its last start failed:\n      run 3 failed: `libvirt-domain[desktop]` failed:",
        "group 17 is not viable",
    ] {
        assert!(info.contains(line), "{line}:\n{info}");
    }
    assert!(!info.contains('\u{1b}'), "what QEMU says does not steer the terminal");
    let logs = host.says("vm logs desktop -n 1", 0);
    assert!(logs.starts_with("vfio 0000:02:00.0") && logs.lines().count() == 1 && !logs.contains('\u{1b}'), "{logs}");
    let said = host.says("vm logs build", 1);
    assert!(said.contains("/var/log/libvirt/qemu/build.log"), "{said}");
}

#[test]
fn it_is_waited_for_as_long_as_was_said() {
    let host = desk();
    assert_eq!(host.says("vm wait desktop --for running", 0), "desktop: running\n");
    assert_eq!(host.says("vm wait desktop --for agent", 0), "desktop: its agent answers\n");
    assert_eq!(host.says("vm wait build --for stopped", 0), "build: off\n");
    assert_eq!(host.says("vm wait build --for running --timeout 0", 3), "build: off, after 0 s\n");
    assert_eq!(host.says("vm wait build --for agent --timeout 0", 3), "build: off, after 0 s\n");
    assert!(host.says("vm wait router --for agent", 1).contains("nothing to wait for"));
    assert!(host.says("vm wait nowhere --for running", 1).contains("there is: build, desktop, router"));
}

#[test]
fn a_host_without_libvirt_says_so() {
    let host = desk();
    host.record(|record| record["libvirt"] = "absent".into());
    assert!(host.says("vm list", 1).contains("libvirt is not installed"));
    host.record(|record| record["libvirt"] = "denied".into());
    assert!(host.says("vm info desktop", 1).contains("adduser $USER libvirt"));
}

#[test]
fn vmctl_is_the_same_program() {
    let host = desk();
    let link = host.at("vmctl");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_gpuvm"), &link).unwrap();
    #[allow(clippy::disallowed_methods)] // a test starts the program itself
    let vmctl = |args: &[&str]| {
        std::process::Command::new(&link).args(args).current_dir(host.dir.path()).env("NO_COLOR", "1").output().unwrap()
    };
    let list = vmctl(&["list", "--root", "host"]);
    assert_eq!(stdout(&list), stdout(&gpuvm(&["vm", "list", "--root", "host"], host.dir.path())), "{}", stderr(&list));
    assert!(vmctl(&["stop", "desktop", "--root", "host"]).status.success());
    assert!(host.domain("desktop")["active"] == false);
    assert!(stdout(&vmctl(&[])).contains("vmctl ip check|list"));
}

#[test]
fn the_addresses_of_a_host_are_listed_with_whose_they_are() {
    let host = desk();
    let said = host.says("ip list", 0);
    for (ip, words) in [
        ("192.168.122.23", "VM desktop  "),
        ("192.168.122.50", "laptop"),
        ("192.168.122.77", "neighbour table"),
        ("fd00::23", "VM desktop  virbr0"),
    ] {
        let line = said.lines().find(|l| l.split(' ').next() == Some(ip)).unwrap_or_else(|| panic!("{ip}:\n{said}"));
        assert!(line.contains(words), "{line}");
    }
    assert!(said.contains("this host") && !said.contains("192.168.122.99") && !said.contains("fe80::"), "{said}");
    let taken = host.says("ip check 192.168.122.50", 1);
    assert!(taken.contains("IN USE") && taken.contains("a lease to 52:54:00:00:00:50"), "{taken}");
    let unknown = host.says("ip check 192.168.122.51", 3);
    assert!(unknown.contains("UNKNOWN"), "{unknown}");
}
