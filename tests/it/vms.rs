//! VMs from nothing to running on a copy of a recorded host: what is planned, promised, carried out and left alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::foreign::{Foreign, Has};
use crate::machine::{copy_tree, gpuvm, repository, stdout};

const MANIFEST: &str = "version: 1
gpus:
  work: { match: \"0000:02:00\", use: vfio }
networks:
  nat: { libvirt: default }
storage:
  big: { dir: /srv/vms }
libvirt: { operators: [] }
vms:
  tiny:
    cpus: 1
    memory: 512MiB
    disks: [1GiB, { size: 2GiB, pool: big }]
    network: nat
    gpus: [work]
    start: boot
";

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
        fs::create_dir_all(dir.path().join("host/root/srv/vms")).unwrap();
        Self { dir }
    }
    fn run(&self, manifest: &str, args: &[&str]) -> (i32, String) {
        fs::write(self.dir.path().join("host.yaml"), manifest).unwrap();
        let args: Vec<&str> = args.iter().copied().chain(["-f", "host.yaml", "--root", "host"]).collect();
        let output = gpuvm(&args, self.dir.path());
        let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), said)
    }
    fn plan(&self, manifest: &str) -> (i32, String) {
        self.run(manifest, &["plan"])
    }
    fn apply(&self, manifest: &str) -> (i32, String) {
        self.run(manifest, &["apply", "--yes", "--reboot"])
    }
    fn record(&self, change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
        let path = self.dir.path().join("host/gpuvm-record.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        record
    }
    fn libvirt(&self, change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
        self.record(|record| change(&mut record["libvirt"]["known"]))["libvirt"]["known"].clone()
    }
    fn domain(&self) -> serde_json::Value {
        self.libvirt(|_| {})["domains"][0].clone()
    }
    fn made() -> Self {
        let machine = Self::new();
        let (code, said) = machine.apply(MANIFEST);
        assert_eq!(code, 0, "{said}");
        machine
    }
}

#[test]
fn a_vm_is_made_across_the_reboot_and_then_nothing_is_left() {
    let machine = Machine::new();
    let (code, said) = machine.plan(MANIFEST);
    assert_eq!(code, 2, "{said}");
    let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("{what}:\n{said}"));
    assert!(at("+ package") < at("+ pool[default]") && at("+ pool[default]") < at("+ volume[default/tiny-0.qcow2]"));
    assert!(at("reboot, for") < at("+ libvirt-domain[tiny]"), "the VM needs the GPU, which needs the reboot:\n{said}");
    let (code, said) = machine.apply(MANIFEST);
    assert_eq!(code, 0, "{said}");
    let domain = machine.domain();
    assert!(domain["active"] == true && domain["autostart"] == true, "{domain:#}");
    assert!(machine.dir.path().join("host/root/srv/vms/tiny-1.qcow2").exists());
    let (code, said) = machine.plan(MANIFEST);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_running_vm_gets_its_change_at_its_next_start() {
    let machine = Machine::made();
    let changed = MANIFEST.replace("cpus: 1", "cpus: 2");
    let (code, said) = machine.plan(&changed);
    assert!(code == 2 && said.contains("cpus: 1 → 2") && said.contains("[guest-restart]"), "{said}");
    let (code, said) = machine.apply(&changed);
    assert!(code == 3 && said.contains("waits for guest restart"), "{said}");
    let domain = machine.domain();
    assert!(domain["active"] == true, "it runs on");
    assert!(domain["inactiveXml"].as_str().unwrap().contains("<vcpu placement='static'>2</vcpu>"));
    assert!(domain["liveXml"].as_str().unwrap().contains("<vcpu placement='static'>1</vcpu>"));
    assert_eq!(machine.plan(&changed).0, 3);
    machine.libvirt(|known| known["domains"][0]["liveXml"] = domain["inactiveXml"].clone());
    assert_eq!(machine.plan(&changed).0, 0, "once its owner started it again");
}

#[test]
fn what_a_person_stopped_stays_stopped() {
    let machine = Machine::made();
    machine.libvirt(|known| known["domains"][0]["active"] = false.into());
    assert_eq!(machine.plan(MANIFEST).0, 0);
    let (code, said) = machine.plan(&MANIFEST.replace("start: boot", "start: boot\n    state: running"));
    assert!(code == 2 && said.contains("running: no → yes"), "{said}");
}

#[test]
fn what_leaves_the_manifest_is_kept_and_only_absent_takes_the_definition() {
    let machine = Machine::made();
    let without = MANIFEST.split("vms:").next().unwrap();
    let (code, said) = machine.apply(without);
    assert_eq!(code, 0, "{said}");
    assert_eq!(machine.domain()["name"], "tiny");
    let absent = MANIFEST.replace("start: boot", "absent: true");
    let (code, said) = machine.plan(&absent);
    assert!(code == 1 && said.contains("gpuvm vm stop --root host tiny"), "{said}");
    machine.libvirt(|known| known["domains"][0]["active"] = false.into());
    let (code, said) = machine.apply(&absent);
    assert_eq!(code, 0, "{said}");
    assert_eq!(machine.domain(), serde_json::Value::Null);
    assert!(machine.dir.path().join("host/root/srv/vms/tiny-1.qcow2").exists(), "disks stay");
}

#[test]
fn a_vm_of_another_is_never_touched() {
    let machine = Machine::made();
    let theirs = |known: &mut serde_json::Value| {
        let xml = known["domains"][0]["inactiveXml"].as_str().unwrap().replace("urn:gpuvm:vm:1", "urn:theirs");
        known["domains"][0]["inactiveXml"] = xml.into();
    };
    let before = machine.libvirt(theirs);
    let (code, said) = machine.apply(&MANIFEST.replace("cpus: 1", "cpus: 2"));
    assert!(code == 1 && said.contains("not made by gpuvm"), "{said}");
    assert_eq!(machine.libvirt(|_| {}), before);
}

#[test]
fn a_disk_grows_and_a_smaller_one_is_refused() {
    let machine = Machine::made();
    let (code, said) = machine.apply(&MANIFEST.replace("disks: [1GiB", "disks: [3GiB"));
    assert_eq!(code, 0, "{said}");
    let (code, said) = machine.plan(MANIFEST);
    assert!(code == 1 && said.contains("never shrunk"), "{said}");
}

#[test]
fn a_device_that_leaves_the_vm_leaves_its_definition() {
    let machine = Machine::made();
    let (code, said) = machine.apply(&MANIFEST.replace("    gpus: [work]\n", ""));
    assert_eq!(code, 3, "{said}");
    assert!(!machine.domain()["inactiveXml"].as_str().unwrap().contains("<hostdev"));
}

#[test]
fn what_cannot_be_is_said_before_anything_changes() {
    let machine = Machine::new();
    let blocked = |manifest: &str, word: &str| {
        let (code, said) = machine.plan(manifest);
        assert!(code == 1 && said.contains(word), "{word}: {said}");
    };
    blocked(&MANIFEST.replace("/srv/vms", "/srv/nowhere"), "there is no directory `/srv/nowhere`");
    blocked(&MANIFEST.replace("/srv/vms", "/var/lib/libvirt/images"), "the directory of pool `default` already");
    fs::remove_file(machine.dir.path().join("host/root/dev/kvm")).unwrap();
    let info = machine.dir.path().join("host/root/proc/cpuinfo");
    fs::write(&info, fs::read_to_string(&info).unwrap().replace(" svm ", " ")).unwrap();
    blocked(&MANIFEST.replace("cpus: 1", "cpus: 1\n    accel: kvm"), "the processor offers no virtualisation");
    let (code, said) = machine.plan(MANIFEST);
    assert!(code == 2 && said.contains("emulated, which is slow"), "{said}");
}

#[test]
fn a_first_start_that_failed_is_owed_until_it_succeeded() {
    let machine = Machine::new();
    let manifest = MANIFEST.replace("cpus: 1", "cpus: 1\n    boot: { kernel: /srv/vmlinuz }");
    // One that may not be looked at is found missing by the start only.
    machine.record(|record| record["denied"] = serde_json::json!(["/srv/vmlinuz"]));
    let (code, said) = machine.apply(&manifest);
    assert!(code == 1 && said.contains("cannot start"), "{said}");
    assert!(machine.domain()["active"] == false, "it is made, and does not run");

    let (code, said) = machine.plan(&manifest);
    assert!(code == 2 && said.contains("running: no → yes") && said.contains("its first start"), "{said}");
    machine.record(|record| record["denied"] = serde_json::json!([]));
    fs::write(machine.dir.path().join("host/root/srv/vmlinuz"), "").unwrap();
    let (code, said) = machine.apply(&manifest);
    assert_eq!(code, 0, "{said}");
    assert!(machine.domain()["active"] == true);

    // From now on it is its owner's to stop.
    machine.libvirt(|known| known["domains"][0]["active"] = false.into());
    assert_eq!(machine.plan(&manifest).0, 0);
}

#[test]
fn nothing_that_others_wrote_into_a_vm_is_in_a_plan_or_a_journal() {
    let machine = Machine::made();
    machine.libvirt(|known| {
        let xml = known["domains"][0]["inactiveXml"].as_str().unwrap();
        let tuned = "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
                     <qemu:arg value='secret,id=s0,data=canary'/></qemu:commandline></domain>";
        known["domains"][0]["inactiveXml"] = xml.replace("</domain>", tuned).into();
    });
    let changed = MANIFEST.replace("cpus: 1", "cpus: 2");
    for output in ["text", "json", "markdown"] {
        let (code, said) = machine.run(&changed, &["plan", "--output", output]);
        assert!(code == 2 && said.contains("tiny") && !said.contains("canary"), "{said}");
    }
    let (code, said) = machine.run(&changed, &["plan", "--out", "saved"]);
    assert_eq!(code, 2, "{said}");
    assert!(!fs::read_to_string(machine.dir.path().join("saved")).unwrap().contains("canary"));
    let (code, said) = machine.apply(&changed);
    assert!(code == 3 && !said.contains("canary"), "{said}");
    assert!(machine.domain()["inactiveXml"].as_str().unwrap().contains("canary"), "it stays in the VM itself");
    let runs = machine.dir.path().join("host/root/var/lib/gpuvm/runs");
    for run in fs::read_dir(runs).unwrap() {
        for file in fs::read_dir(run.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let held = String::from_utf8_lossy(&fs::read(&path).unwrap()).contains("canary");
            // How the VM was and is, for the way back: for root alone.
            let record = name.starts_with("before") || name.starts_with("after");
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert!(!held || (record && mode == 0o600), "{} {mode:o}", path.display());
        }
    }
}

/// The libraries that the loader needs before the program starts (elf(5), 64-bit little-endian).
fn needed(elf: &[u8]) -> Vec<String> {
    let number = |at: usize, bytes: usize| (0..bytes).rev().fold(0usize, |n, i| n << 8 | usize::from(elf[at + i]));
    let headers: Vec<usize> = (0..number(56, 2)).map(|n| number(32, 8) + n * number(54, 2)).collect();
    let (load, dynamic) = (1, 2);
    let of = |kind| headers.iter().copied().filter(move |h| number(*h, 4) == kind);
    let file = |address: usize| {
        let segment = of(load).find(|h| (number(h + 16, 8)..number(h + 16, 8) + number(h + 32, 8)).contains(&address));
        segment.map(|h| address - number(h + 16, 8) + number(h + 8, 8)).unwrap()
    };
    let at = of(dynamic).next().unwrap();
    let entries: Vec<(usize, usize)> = (0..number(at + 32, 8) / 16)
        .map(|n| number(at + 8, 8) + n * 16)
        .map(|e| (number(e, 8), number(e + 8, 8)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let strings = file(entries.iter().find(|(tag, _)| *tag == 5).unwrap().1);
    let name = |at: usize| String::from_utf8(elf[at..].iter().copied().take_while(|b| *b != 0).collect()).unwrap();
    entries.iter().filter(|(tag, _)| *tag == 1).map(|(_, at)| name(strings + at)).collect()
}

#[test]
fn the_program_starts_without_libvirt() {
    let needed = needed(&fs::read(env!("CARGO_BIN_EXE_gpuvm")).unwrap());
    assert!(needed.iter().any(|n| n.starts_with("libc.so")), "{needed:?}");
    assert!(!needed.iter().any(|n| n.contains("virt")), "{needed:?}");
}

#[test]
fn before_the_host_boots_a_vm_with_passed_devices_is_asked_to_shut_down() {
    let machine = Machine::made();
    let more = MANIFEST.replace("vms:", "kernelArgs: [hpet=disable]\nvms:");
    let (_, said) = machine.plan(&more);
    let line = "first asked to shut down, for it has passed devices: `tiny`";
    assert!(said.contains(line), "{said}");
    // A rule that lets no guest be restarted lets no host boot under one.
    fs::write(machine.dir.path().join("policy.yaml"), "version: 1\nrules:\n  guests: { refuse: [guest-restart] }\n")
        .unwrap();
    let (code, said) = machine.run(&more, &["plan", "--policy", "policy.yaml"]);
    assert!(code == 4 && said.contains("booted while VMs run, which rule `guests` refuses"), "{said}");

    let (code, said) = machine.apply(&more);
    assert_eq!(code, 0, "{said}");
    let journal = fs::read_to_string(machine.dir.path().join("host/root/var/lib/gpuvm/runs/2/journal.jsonl")).unwrap();
    let at = |what: &str| journal.lines().position(|l| l.contains(what)).unwrap_or_else(|| panic!("{what}: {journal}"));
    assert!(at("stopDomain") < at("\"reboot\""), "{journal}");
    assert_eq!(machine.domain()["active"], true, "it starts with the host");

    // One that does not run, and one without devices, are left to themselves.
    machine.libvirt(|known| known["domains"][0]["active"] = false.into());
    let (_, said) = machine.plan(&MANIFEST.replace("vms:", "kernelArgs: [hpet=force]\nvms:"));
    assert!(!said.contains("first asked"), "{said}");
}

/// A host on which libvirt is installed and none of its sockets is there.
fn silent(units: &str) -> Foreign {
    let host = Foreign::new(&[Has::Libvirt]);
    host.record(|r| {
        r["libvirt"] = "absent".into();
        for query in r["queries"].as_array_mut().unwrap().iter_mut().filter(|q| q["args"][0] == "list-unit-files") {
            let text = query["output"]["stdout"].as_str().unwrap().to_owned() + units;
            query["output"]["stdout"] = text.into();
        }
    });
    host
}
const TINY: &str = "vms:\n  t: { cpus: 1, memory: 256MiB, disks: [1GiB], accel: tcg }\n";

#[test]
fn where_nothing_answers_for_libvirt_its_socket_is_turned_on_first() {
    let host = silent("libvirtd.socket disabled enabled\n");
    assert!(host.run(&["facts"]).1.contains("libvirt   none answers"));
    host.set_manifest(&format!("version: 1\n{TINY}"));
    let (code, said) = host.run(&["plan"]);
    assert!(code == 2 && said.contains("~ service[libvirtd.socket]"), "{said}");
    let (code, said) = host.run(&["apply", "--yes"]);
    assert!(code == 0 && said.find("service[libvirtd.socket]") < said.find("done  pool[default]"), "{said}");
    let (code, said) = host.run(&["plan"]);
    assert!(code == 0 && !said.contains("libvirtd.socket"), "an answer is all that is wanted of it: {said}");
    assert!(host.run(&["facts"]).1.contains("vm        t: off"));

    let host = silent("");
    host.set_manifest(&format!("version: 1\n{TINY}"));
    let (code, said) = host.run(&["plan"]);
    assert!(code == 1 && said.contains("there is no unit `libvirtd.socket`"), "{said}");
}

#[test]
fn the_sockets_that_the_manifest_names_are_on_and_the_others_off() {
    let virt = ["interface", "network", "nodedev", "nwfilter", "qemu", "secret", "storage"];
    let modular: String = virt.iter().map(|n| format!("virt{n}d.socket disabled enabled\n")).collect();
    let host = silent(&format!("libvirtd.socket enabled enabled\nlibvirtd.service enabled enabled\n{modular}"));
    host.set_manifest(&format!("version: 1\nlibvirt: {{ sockets: modular }}\n{TINY}"));
    let (code, said) = host.run(&["plan"]);
    assert!(code == 2 && said.contains("from libvirt.sockets"), "{said}");
    let (code, said) = host.run(&["apply", "--yes"]);
    assert_eq!(code, 0, "{said}");
    let at = |text: &str| said.find(&format!("done  service[{text}]")).unwrap_or_else(|| panic!("{text}: {said}"));
    assert!(at("libvirtd.service") < at("virtqemud.socket") && at("libvirtd.socket") < at("virtqemud.socket"));
    assert!(at("virtstoraged.socket") < said.find("done  pool[default]").unwrap(), "{said}");
    assert_eq!(host.run(&["plan"]).0, 0);
    // A word about a unit by its name is what counts.
    let services = "services: { virtqemud.socket: { enabled: false, running: false } }";
    host.set_manifest(&format!("version: 1\nlibvirt: {{ sockets: modular }}\n{services}\n{TINY}"));
    let (_, said) = host.run(&["plan"]);
    assert!(said.contains("~ service[virtqemud.socket]") && said.contains("does not start at boot"), "{said}");
}
