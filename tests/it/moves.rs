//! A GPU into a VM and back, on copies of a recorded host with two equal cards: the whole slot or nothing, idempotent,
//! killed at every place, with the manifest's word kept apart from the host's.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::host::Host;
use crate::machine::{command, stderr};

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
gpus:
  render: { match: { address: \"0000:01:00\" }, use: host }   # draws the desktop
  work: { match: { address: \"0000:02:00\" }, use: host }     # nobody's yet
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, start: manual }   # the first
  other: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, start: manual }
";

/// A host with two stopped VMs of gpuvm's.
fn with_vms() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| Host::made(MANIFEST).dir);
    made.path()
}

impl Host {
    fn with_cards() -> Self {
        Self::copy(with_vms())
    }
    /// The VM runs, with this many free ports.
    fn runs_with(&self, name: &str, ports: u32) {
        self.record(|record| {
            let all = record["libvirt"]["known"]["domains"].as_array_mut().unwrap();
            let domain = all.iter_mut().find(|d| d["name"] == name).unwrap();
            let port = |n: u32| {
                format!(
                    "<controller type='pci' index='{n}' model='pcie-root-port'>\n      <address type='pci' domain='0x0000' \
                     bus='0x00' slot='0x02' function='{n:#x}'/>\n    </controller>\n    "
                )
            };
            let ports: String = (1..=ports).map(port).collect();
            // libvirt has given places to all that is its own: what is played has these ports and no other.
            let xml = domain["inactiveXml"].as_str().unwrap();
            let own = |line: &&str| !line.contains("pcie-root-port");
            let xml: String = xml.lines().filter(own).map(|line| format!("{line}\n")).collect();
            // What is stored already is passed as one device of the guest.
            domain["liveXml"] = xml.replacen("<disk", &format!("{ports}<disk"), 1).into();
            domain["active"] = true.into();
        });
    }
    fn stops(&self, name: &str) {
        self.record(|record| {
            let all = record["libvirt"]["known"]["domains"].as_array_mut().unwrap();
            let domain = all.iter_mut().find(|d| d["name"] == name).unwrap();
            (domain["active"], domain["liveXml"]) = (false.into(), serde_json::Value::Null);
        });
    }
    /// The drivers of the two functions of the card in slot 2.
    fn drivers(&self) -> String {
        let driver = |function: &str| {
            let link = self.at(&format!("host/root/sys/bus/pci/devices/0000:02:00.{function}/driver"));
            fs::read_link(link).map_or("none".to_owned(), |l| l.file_name().unwrap().to_str().unwrap().to_owned())
        };
        format!("{} {}", driver("0"), driver("1"))
    }
    fn passed(&self, name: &str, which: &str) -> usize {
        self.domain(name)[which].as_str().unwrap_or_default().matches("<hostdev ").count()
    }
}

const HOSTS: &str = "nvidia snd_hda_intel";
const VFIO: &str = "vfio-pci vfio-pci";
const ATTACH: &str = "gpu attach tiny 0000:02:00 --yes";
const DETACH: &str = "gpu detach tiny 0000:02:00 --yes";

#[test]
fn a_card_goes_in_and_out_as_a_whole_twenty_times() {
    let host = Host::with_cards();
    assert_eq!(host.drivers(), HOSTS);
    for round in 0..20 {
        let said = host.says(ATTACH, 0);
        assert!(said.contains(".0: nvidia → vfio-pci") && said.contains("tiny has 0000:02:00"), "{said}");
        assert_eq!((host.drivers().as_str(), host.passed("tiny", "inactiveXml")), (VFIO, 2), "round {round}");
        let said = host.says(DETACH, 0);
        assert!(said.contains("tiny does not have 0000:02:00"), "{said}");
        assert_eq!((host.drivers().as_str(), host.passed("tiny", "inactiveXml")), (HOSTS, 0), "round {round}");
    }
    let said = host.says(DETACH, 0);
    assert!(said.starts_with("nothing to do: tiny does not have 0000:02:00"), "{said}");
    host.says(ATTACH, 0);
    let said = host.says(ATTACH, 0);
    assert!(said.starts_with("nothing to do: tiny has 0000:02:00"), "{said}");
    host.says("plan", 0);
    host.says("undo --yes", 0);
    assert_eq!((host.drivers().as_str(), host.passed("tiny", "inactiveXml")), (HOSTS, 0));
}

#[test]
fn a_running_vm_gets_it_at_once_where_it_has_a_port_for_each_function() {
    let host = Host::with_cards();
    host.runs_with("tiny", 2);
    let said = host.says(ATTACH, 0);
    assert!(said.contains("plugged in while it runs"), "{said}");
    assert_eq!((host.passed("tiny", "liveXml"), host.passed("tiny", "inactiveXml")), (2, 2));
    let live = host.domain("tiny")["liveXml"].as_str().unwrap().to_owned();
    for bus in ["0x01", "0x02"] {
        let place = format!("<address type='pci' domain='0x0000' bus='{bus}' slot='0x00' function='0x0'/>");
        assert!(live.contains(&place), "{live}");
    }
    assert!(host.says(ATTACH, 0).starts_with("nothing to do"));
    let said = host.says("undo --yes", 1);
    assert!(said.contains("VM `tiny` runs with it") && said.contains("gpuvm gpu detach tiny 0000:02:00"), "{said}");
    let said = host.says(DETACH, 0);
    assert!(said.contains("its guest is asked to let go"), "{said}");
    assert_eq!((host.passed("tiny", "liveXml"), host.passed("tiny", "inactiveXml")), (0, 0));
    assert_eq!(host.drivers(), HOSTS);
}

#[test]
fn without_a_port_it_is_for_the_next_start_and_comes_back_after_the_vm_is_shut_down() {
    let host = Host::with_cards();
    host.runs_with("tiny", 1);
    let said = host.says(ATTACH, 3);
    assert!(said.contains("no free PCI Express port for each of the 2"), "{said}");
    assert_eq!((host.passed("tiny", "liveXml"), host.passed("tiny", "inactiveXml")), (0, 2));
    assert_eq!(host.drivers(), VFIO);
    host.stops("tiny");
    assert!(host.says(ATTACH, 0).starts_with("nothing to do"));
    // It runs with it now, as one device of two functions.
    host.runs_with("tiny", 0);
    let said = host.says(DETACH, 3);
    assert!(said.contains("libvirt unplugs no device of several functions"), "{said}");
    assert_eq!((host.passed("tiny", "inactiveXml"), host.drivers().as_str()), (0, VFIO), "the VM still has it");
    host.stops("tiny");
    host.says(DETACH, 0);
    assert_eq!(host.drivers(), HOSTS);
}

#[test]
fn whoever_uses_it_is_named_and_nothing_moves() {
    let host = Host::with_cards();
    host.record(|record| {
        record["deviceUsers"] = serde_json::json!({ "users": [
            { "pid": 1330, "name": "ollama", "cgroup": "/system.slice/ollama.service", "nodes": ["/dev/vfio/9", "/dev/dri/card9"] },
        ] });
    });
    let sys = host.at("host/root/sys/class/drm");
    fs::create_dir_all(&sys).unwrap();
    let _ = fs::remove_file(sys.join("card9"));
    std::os::unix::fs::symlink("../../devices/pci0000:00/0000:00:12.0/0000:02:00.0/drm/card9", sys.join("card9"))
        .unwrap();
    let said = host.says(ATTACH, 1);
    assert!(said.contains("ollama.service: ollama (pid 1330) uses it"), "{said}");
    assert!(said.contains("systemctl stop ollama.service"), "{said}");
    host.record(|record| record["deviceUsers"] = serde_json::json!({ "users": [], "hidden": "not root" }));
    let said = host.says(ATTACH, 1);
    assert!(said.contains("who uses it is not known: not root"), "{said}");
    assert_eq!((host.drivers().as_str(), host.passed("tiny", "inactiveXml")), (HOSTS, 0));
}

#[test]
fn a_card_that_another_vm_runs_with_is_refused_by_that_name() {
    let host = Host::with_cards();
    host.says("gpu attach other 0000:02:00 --yes", 0);
    host.runs_with("other", 0);
    let said = host.says(ATTACH, 1);
    assert!(said.contains("VM `other` has it, and runs") && said.contains("gpuvm gpu detach other"), "{said}");
    assert_eq!(host.passed("tiny", "inactiveXml"), 0);
    // Taken out of a VM that does not run with it, it stays where it is used.
    assert!(host.says(DETACH, 0).starts_with("nothing to do"));
    assert_eq!(host.drivers(), VFIO);
}

#[test]
fn one_that_is_on_vfio_already_is_looked_at_all_the_same() {
    let host = Host::with_cards();
    host.says(ATTACH, 0);
    host.says("gpu attach other 0000:02:00 --yes", 0);
    host.says("gpu detach tiny 0000:02:00 --yes", 0);
    let users = |name: &str| {
        host.record(|record| {
            record["deviceUsers"] = serde_json::json!({ "users": [
                { "pid": 1440, "name": name, "cgroup": "/user.slice/x.scope", "nodes": ["/dev/vfio/9"] },
            ] });
        });
    };
    for name in ["qemu-system-x86", "dpdk-testpmd"] {
        users(name);
        let said = host.says(ATTACH, 1);
        assert!(said.contains(name) && said.contains("uses it"), "{said}");
    }
    host.record(|record| record["deviceUsers"] = serde_json::json!({ "users": [], "hidden": "not root" }));
    let said = host.says(ATTACH, 1);
    assert!(said.contains("who uses it is not known: not root"), "{said}");
    host.record(|record| record["deviceUsers"] = serde_json::json!({ "users": [] }));
    // Its registers read as ones.
    fs::write(host.at("host/root/sys/bus/pci/devices/0000:02:00.0/current_link_width"), "63\n").unwrap();
    let said = host.says(ATTACH, 1);
    assert!(said.contains("the card does not answer: it reads as ones"), "{said}");
    assert_eq!(host.passed("tiny", "inactiveXml"), 0);
    let list = host.says("gpu list", 0);
    let line = list.lines().find(|l| l.contains("0000:02:00")).unwrap();
    assert!(line.ends_with("does not answer"), "{line}");
}

#[test]
fn the_manifests_word_is_said_and_saved_when_asked() {
    let host = Host::with_cards();
    let manifest = || fs::read_to_string(host.at("host.yaml")).unwrap();
    let said = host.says("gpu attach tiny work --yes", 1);
    assert!(said.contains("the manifest keeps `work` for the host") && said.contains("--save"), "{said}");
    assert_eq!(host.drivers(), HOSTS);
    let said = host.says("gpu attach tiny work --save --yes", 0);
    assert!(said.contains("+  tiny: { cpus: 1"), "{said}");
    let with = MANIFEST.replace("\"0000:02:00\" }, use: host }", "\"0000:02:00\" }, use: vfio }").replacen(
        "start: manual }   # the first",
        "start: manual, gpus: [work] }   # the first",
        1,
    );
    assert_eq!(manifest(), with);
    // An undo leads the host back, and names what it leaves in the manifest.
    let back = Host::copy(host.dir.path());
    let flat = |said: String| said.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["undo --plan", "undo --yes"] {
        let said = flat(back.says(words, if words.ends_with("plan") { 2 } else { 0 }));
        assert!(
            said.contains("host.yaml` too, which an undo leaves as it is: `vms.tiny.gpus` has `work` now"),
            "{said}"
        );
        assert!(said.contains("`gpus.work.use` is `vfio` now, and was `host`"), "{said}");
    }
    assert_eq!(back.drivers(), HOSTS);
    assert_eq!(fs::read_to_string(back.at("host.yaml")).unwrap(), with);
    let said = host.says("gpu detach tiny work --yes", 0);
    assert!(said.contains("the next apply gives it back"), "{said}");
    assert_eq!((host.drivers().as_str(), host.passed("tiny", "inactiveXml")), (VFIO, 0), "it is kept for VMs");
    host.says("gpu detach tiny work --save --yes", 0);
    assert_eq!(manifest(), with.replace("gpus: [work]", "gpus: []"));
    // Nothing but the manifest was changed by that: the last run is another one, which wrote none.
    assert!(!host.says("undo --plan", 2).contains("which an undo leaves"));
    // By its address, it is written by its name.
    host.says("gpu attach tiny 0000:02:00 --save --yes", 0);
    assert_eq!(manifest(), with);
}

#[test]
fn killed_anywhere_it_is_told_of_and_goes_on_and_the_slot_ends_whole() {
    for (words, ports) in [(ATTACH, None), (ATTACH, Some(2)), (DETACH, Some(2))] {
        let prepared = Host::with_cards();
        if let Some(ports) = ports {
            prepared.runs_with("tiny", ports);
        }
        if words == DETACH {
            prepared.says(ATTACH, 0);
        }
        let undisturbed = Host::copy(prepared.dir.path());
        undisturbed.says(words, 0);
        let end = (undisturbed.domain("tiny"), undisturbed.drivers());
        let mut deaths = 0;
        for place in 1.. {
            let host = Host::copy(prepared.dir.path());
            let asked: Vec<&str> = words.split(' ').chain(["--root", "host"]).collect();
            let died = command(&asked, host.dir.path()).env("GPUVM_DIE_AT", place.to_string()).output().unwrap();
            if died.status.success() {
                break;
            }
            deaths += 1;
            if stderr(&host.run("plan")).contains("was cut off") {
                host.says("apply --resume", 0);
            } else {
                host.says(words, 0);
            }
            assert_eq!((host.domain("tiny"), host.drivers()), end, "{words}: killed at {place}");
        }
        assert!(deaths > 15, "{words}: {deaths}");
    }
}

#[test]
fn cards_that_nvswitches_join_go_to_a_vm_as_nvidia_allows() {
    let made = |first: u8, second: u8| {
        let host = Host::with_cards();
        // Two cards of an HGX H100's, of whose switches one is seen.
        let devices = host.at("host/root/sys/bus/pci/devices");
        let write = |at: &str, text: &str| fs::write(devices.join(at), text).unwrap();
        for card in ["0000:01:00.0", "0000:02:00.0"] {
            write(&format!("{card}/device"), "0x2330\n");
        }
        for (file, text) in [("class", "0x068000\n"), ("vendor", "0x10de\n"), ("device", "0x22a3\n")] {
            write(&format!("0000:00:1f.3/{file}"), text);
        }
        let places = MANIFEST
            .replace("\"0000:01:00\" }, use: host", &format!("\"0000:01:00\" }}, use: host, moduleId: {first}"))
            .replace("\"0000:02:00\" }, use: host", &format!("\"0000:02:00\" }}, use: host, moduleId: {second}"));
        fs::write(host.at("host.yaml"), places).unwrap();
        host
    };
    let host = made(1, 2);
    host.says(ATTACH, 0);
    for runs in [false, true] {
        if runs {
            host.runs_with("tiny", 2);
        }
        let said = host.says("gpu attach tiny 0000:01:00 --yes", 1);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("the GPUs with module ids 1+2 are in no NVSwitch partition of 2"), "{said}");
        assert!(said.contains("partitions of 2, by module ids: 1+3") && said.contains("gpuvm apply"), "{said}");
        assert_eq!(host.passed("tiny", "inactiveXml"), 2, "the first alone");
    }
    let said = host.says(ATTACH, 0);
    assert!(said.starts_with("nothing to do"), "{said}");

    let host = made(1, 3);
    host.says(ATTACH, 0);
    host.says("gpu attach tiny 0000:01:00 --yes", 0);
    assert_eq!(host.passed("tiny", "inactiveXml"), 4);
}
