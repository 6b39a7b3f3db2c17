//! VMs from images, as a person runs them on a copy of a recorded host: what is fetched once and kept, what a guest is
//! told, and that nothing of it is shown.

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine::{copy_tree, gpuvm, repository, stdout};

const MANIFEST: &str = "version: 1
networks: { nat: { libvirt: default } }
vms:
  web:
    image: ubuntu-24.04
    cpus: 1
    memory: 512MiB
    disks: [20GiB]
    user: { name: alice, sshKeys: [file:alice.pub] }
    network: nat
    cloudInit:
      files: { /etc/app: { content: canary-in-a-file } }
      userData: { chpasswd: { list: [alice:canary-in-user-data] } }
";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDexampleexampleexampleexampleexampleexampl alice@desk\n";
const IMAGES: &str = "host/root/var/lib/libvirt/images";

struct Machine {
    dir: tempfile::TempDir,
    manifest: String,
}

impl Machine {
    fn new() -> Self {
        let dir = crate::machine::fast_folder();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
        fs::write(dir.path().join("alice.pub"), KEY).unwrap();
        Self { dir, manifest: MANIFEST.to_owned() }
    }
    fn made() -> Self {
        let machine = Self::new();
        let (code, said) = machine.run(&["apply", "--yes"]);
        assert_eq!(code, 0, "{said}");
        machine
    }
    fn run(&self, args: &[&str]) -> (i32, String) {
        fs::write(self.dir.path().join("host.yaml"), &self.manifest).unwrap();
        let args: Vec<&str> = args.iter().copied().chain(["-f", "host.yaml", "--root", "host"]).collect();
        let output = gpuvm(&args, self.dir.path());
        (output.status.code().unwrap(), stdout(&output) + &String::from_utf8_lossy(&output.stderr))
    }
    fn with(&self, from: &str, to: &str) -> Self {
        assert!(self.manifest.contains(from));
        let dir = crate::machine::fast_folder();
        copy_tree(self.dir.path(), dir.path());
        Self { dir, manifest: self.manifest.replace(from, to) }
    }
    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
    fn seed(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path(&format!("{IMAGES}/web-seed.iso"))).unwrap()).into_owned()
    }
    fn images(&self) -> Vec<String> {
        let all = fs::read_dir(self.path(&format!("{IMAGES}/gpuvm-images"))).unwrap();
        let mut names: Vec<_> = all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn eight_lines_give_a_guest_its_user_and_its_key() {
    let machine = Machine::made();
    let seed = machine.seed();
    for told in [
        "#cloud-config",
        "\"name\": \"alice\"",
        KEY.trim(),
        "\"lock_passwd\": true",
        "qemu-guest-agent",
        "\"dhcp4\": true",
    ] {
        assert!(seed.contains(told), "{told}:\n{seed}");
    }
    let record = fs::read_to_string(machine.path("host/gpuvm-record.json")).unwrap();
    assert!(record.contains("web-seed.iso") && record.contains("device='cdrom'"), "the VM has it in a drive");
    assert!(record.contains("\"/var/lib/libvirt/images/web-seed.iso\": {\n      \"mode\": \"0600\""), "for root alone");
}

#[test]
fn what_a_guest_is_told_is_nowhere_shown() {
    let machine = Machine::new();
    let mut all = String::new();
    for args in [&["plan", "-v"][..], &["plan", "--output", "json"], &["apply", "--yes", "-v"], &["plan", "-v"]] {
        all += &machine.run(args).1;
    }
    let changed = machine.with("canary-in-a-file", "canary-in-another");
    all += &changed.run(&["plan", "-v"]).1;
    all += &changed.run(&["apply", "--yes"]).1;
    let shown = |args: &[&str]| stdout(&gpuvm(&[args, &["--root", "host"]].concat(), changed.dir.path()));
    all += &shown(&["show", "1", "-v"]);
    all += &shown(&["undo", "2", "--plan"]);
    let state = changed.path("host/root/var/lib/gpuvm");
    all += &fs::read_to_string(state.join("ledger.json")).unwrap();
    for run in ["1", "2"] {
        all += &fs::read_to_string(state.join("runs").join(run).join("journal.jsonl")).unwrap();
    }
    assert!(all.contains("web-seed.iso") && !all.contains("canary"), "{all}");
    assert!(changed.seed().contains("canary-in-another"), "and yet it is told");
}

#[test]
fn a_disk_stays_on_what_it_was_made_from() {
    let machine = Machine::made();
    let (code, said) = machine.with("image: ubuntu-24.04", "image: debian-13").run(&["plan"]);
    assert!(code == 1 && said.contains("a disk is never made anew") && said.contains("image: ubuntu-24.04"), "{said}");
    let (code, said) = machine.with("disks: [20GiB]", "disks: [10GiB]").run(&["plan"]);
    assert!(code == 1 && said.contains("never shrunk"), "{said}");
    let grown = machine.with("disks: [20GiB]", "disks: [30GiB]");
    assert_eq!(grown.run(&["apply", "--yes"]).0, 0);
    assert_eq!(grown.run(&["plan"]).0, 0);
    let pinned = format!("version: 1\nimages: {{ ubuntu-24.04: {{ sha256: {} }} }}", "ab".repeat(32));
    let pinned = machine.with("version: 1", &pinned);
    let (code, said) = pinned.run(&["apply", "--yes"]);
    assert!(code == 0 && said.contains("disks that were made from the former one stay on it"), "{said}");
    assert_eq!(pinned.images().len(), 3, "the former file is still there: {:?}", pinned.images());
    let small = machine.with("disks: [20GiB]", "disks: [20GiB]\n  new: { image: ubuntu-24.04, cpus: 1, memory: 512MiB, disks: [1GiB] }\n  old:\n    cpus: 1\n    memory: 512MiB");
    let (code, said) = small.run(&["plan"]);
    assert!(code == 1 && said.contains("the image has 3GiB, and the disk is to have 1GiB"), "{said}");
}

#[test]
fn images_are_listed_asked_for_anew_and_deleted_where_nothing_needs_them() {
    let machine = Machine::new();
    let (_, said) = machine.run(&["image", "list"]);
    assert!(said.contains("not fetched") && said.contains("for web") && said.contains("built in: debian-12"), "{said}");
    let (code, said) = machine.run(&["image", "pull", "--yes"]);
    assert!(code == 1 && said.contains("waits for libvirt"), "there is no pool to put it in yet: {said}");
    let machine = Machine::made();
    let (_, said) = machine.run(&["image", "list"]);
    assert!(said.contains("played, 600 MiB") && said.contains("default/web-0.qcow2, for web"), "{said}");
    let (code, said) = machine.run(&["image", "pull", "ubuntu-24.04", "--yes"]);
    assert!(code == 0 && said.contains("~ image[default/ubuntu-24.04]"), "{said}");
    let (code, said) = machine.run(&["image", "pull", "debian-13", "--yes"]);
    assert!(code == 1 && said.contains("no VM of this manifest is made from `debian-13`"), "{said}");
    assert_eq!(machine.run(&["plan"]).0, 0, "what was asked for is nothing that a manifest wants");
    let (code, said) = machine.run(&["image", "prune", "--yes"]);
    assert!(code == 0 && said.contains("nothing to do"), "{said}");

    let folder = machine.path(&format!("{IMAGES}/gpuvm-images"));
    fs::write(folder.join("old-0123456789ab.qcow2"), "x").unwrap();
    fs::write(folder.join(".old.part"), "x").unwrap();
    let (code, said) = machine.run(&["image", "prune", "--yes"]);
    assert!(code == 0 && said.contains("old-0123456789ab.qcow2"), "{said}");
    assert_eq!(machine.images().len(), 2, "{:?}", machine.images());
    assert_eq!(machine.run(&["plan"]).0, 0);
    let json = machine.run(&["image", "list", "--output", "json"]).1;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["disks"], serde_json::json!(["default/web-0.qcow2"]));
}

#[test]
fn an_image_in_a_cd_rom_drive_stays_until_it_is_out_of_it() {
    let machine = Machine::made();
    let plain = machine.manifest.clone();
    let iso = machine.path("host/root/srv/tools.iso");
    fs::create_dir_all(iso.parent().unwrap()).unwrap();
    fs::write(&iso, vec![0; 4096]).unwrap();
    let digest = "ab".repeat(32);
    let of = |from: &str| format!("version: 1\nimages: {{ tools: {{ {from}, sha256: {digest} }} }}");
    let with =
        |from: &str| machine.with("version: 1", &of(from)).with("network: nat\n", "network: nat\n    media: [tools]\n");
    for from in ["path: /srv/tools.iso", "url: 'https://example.org/tools.iso'"] {
        let medium = with(from);
        let (code, said) = medium.run(&["apply", "--yes"]);
        assert_eq!(code, 0, "{said}");
        let file = "tools-abababababab.img".to_owned();
        assert!(medium.images().contains(&file), "{:?}", medium.images());
        let record = fs::read_to_string(medium.path("host/gpuvm-record.json")).unwrap();
        assert!(record.contains(&file), "the VM has it in a drive");
        assert_eq!(medium.run(&["plan"]).0, 0);
        // The manifest says no word of it any more, and the drive has it still.
        let mut dropped = medium;
        dropped.manifest.clone_from(&plain);
        let (code, said) = dropped.run(&["image", "prune", "--yes"]);
        assert!(code == 0 && !said.contains(&file) && dropped.images().contains(&file), "{said}");
        let (code, said) = dropped.run(&["apply", "--yes"]);
        assert_eq!(code, 0, "{said}");
        let (code, said) = dropped.run(&["image", "prune", "--yes"]);
        assert!(code == 0 && said.contains(&file) && !dropped.images().contains(&file), "{said}");
    }
    // What is a disk inside is no medium, whatever it is called.
    let disk = with("path: /srv/tools.iso");
    let mut bytes = over("base.qcow2");
    bytes[8..20].fill(0);
    fs::write(disk.path("host/root/srv/tools.iso"), bytes).unwrap();
    let (code, said) = disk.run(&["apply", "--yes"]);
    assert!(code == 1 && said.contains("a CD-ROM drive reads a medium as it is"), "{said}");
    assert_eq!(disk.images(), machine.images(), "nothing of it is left");
}

/// The beginning of a qcow2 image that goes on in another file.
fn over(name: &str) -> Vec<u8> {
    let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
    bytes.extend(104u64.to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(16u32.to_be_bytes());
    bytes.extend((3u64 << 30).to_be_bytes());
    bytes.resize(104, 0);
    bytes.extend(name.as_bytes());
    bytes
}

#[test]
fn a_disk_that_libvirt_has_not_listed_keeps_its_image_and_what_is_under_it() {
    let machine = Machine::made();
    let disk = machine.path(&format!("{IMAGES}/loose.qcow2"));
    // Made by hand, behind libvirt's back: its list of the pool is as old as its last refresh.
    fs::write(machine.path(&format!("{IMAGES}/gpuvm-images/old-0123456789ab.qcow2")), "x").unwrap();
    fs::write(&disk, over("gpuvm-images/old-0123456789ab.qcow2")).unwrap();
    let (code, said) = machine.run(&["image", "prune", "--yes"]);
    assert!(code == 0 && said.contains("nothing to do"), "{said}");
    fs::write(&disk, over("json:{}")).unwrap();
    let (code, said) = machine.run(&["image", "prune", "--yes"]);
    assert!(code == 1 && said.contains("loose.qcow2` goes on in cannot be told"), "{said}");
    assert_eq!(machine.images().len(), 3, "{:?}", machine.images());

    fs::write(&disk, over("web-0.qcow2")).unwrap();
    let delete = |words: &[&str]| {
        let words: Vec<&str> = words.iter().copied().chain(["--root", "host"]).collect();
        let output = gpuvm(&words, machine.dir.path());
        stdout(&output) + &String::from_utf8_lossy(&output.stderr)
    };
    gpuvm(&["vm", "stop", "web", "--root", "host"], machine.dir.path());
    let said = delete(&["vm", "delete", "web", "--yes"]);
    assert!(
        said.contains("loose.qcow2` needs it too") && machine.path(&format!("{IMAGES}/web-0.qcow2")).exists(),
        "{said}"
    );
    fs::remove_file(&disk).unwrap();
    let said = delete(&["vm", "delete", "web", "--yes"]);
    assert!(said.contains("web is gone"), "{said}");

    // Nothing of the manifest is in that pool any more, and its images are still to be had rid of.
    let machine = Machine { manifest: "version: 1\n".to_owned(), ..machine };
    let (code, said) = machine.run(&["image", "prune", "--yes"]);
    assert!(code == 0 && machine.images().is_empty(), "{said}");
}

#[test]
fn a_file_that_libvirt_has_not_listed_is_no_disk_of_a_new_vm() {
    let machine = Machine::made();
    let machine = machine.with("vms:\n", "vms:\n  new: { cpus: 1, memory: 512MiB, disks: [1GiB], start: manual }\n");
    let disk = machine.path(&format!("{IMAGES}/new-0.qcow2"));
    fs::write(&disk, "photos").unwrap();
    let (code, said) = machine.run(&["apply", "--yes"]);
    assert!(code == 1 && said.contains("libvirt does not know of it") && said.contains("virsh pool-refresh"), "{said}");
    assert_eq!(fs::read_to_string(&disk).unwrap(), "photos");
}

#[test]
fn a_guest_that_was_set_up_is_not_set_up_again_by_accident() {
    let machine = Machine::made();
    let changed = machine.with("name: alice", "name: bob");
    let (code, said) = changed.run(&["plan"]);
    assert!(code == 2 && said.contains("takes nothing of this up") && said.contains("generation"), "{said}");
    assert!(said.contains("user: alice") && said.contains("→ bob"), "{said}");
    assert_eq!(changed.run(&["apply", "--yes"]).0, 0);
    assert!(changed.seed().contains("gpuvm-web-1"));
    let again = changed.with("cloudInit:", "cloudInit:\n      generation: 2");
    let (code, said) = again.run(&["plan"]);
    assert!(code == 2 && said.contains("once more at its next start"), "{said}");
    assert_eq!(again.run(&["apply", "--yes"]).0, 0);
    assert!(again.seed().contains("gpuvm-web-2"));
}

#[test]
fn a_seed_goes_with_its_vm_and_is_not_made_over_another_file() {
    let machine = Machine::made();
    let gone = machine.with("cpus: 1", "absent: true\n    cpus: 1");
    let (code, said) = gone.run(&["apply", "--yes"]);
    assert!(code == 0 && said.contains("- seed[web]"), "{said}");
    assert!(!gone.path(&format!("{IMAGES}/web-seed.iso")).exists());
    assert!(gone.path(&format!("{IMAGES}/web-0.qcow2")).exists(), "the disk stays");
    assert_eq!(gone.run(&["plan"]).0, 0);

    let other = gone.with("absent: true", "absent: false");
    fs::write(other.path(&format!("{IMAGES}/web-seed.iso")), "of a person").unwrap();
    let (code, said) = other.run(&["plan"]);
    assert!(code == 1 && said.contains("gpuvm did not make it"), "{said}");
}

#[test]
fn a_key_that_is_none_is_named_before_anything_changes() {
    let machine = Machine::new();
    for (text, what) in
        [("", "there is no key in it"), ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "it is a private key")]
    {
        fs::write(machine.path("alice.pub"), text).unwrap();
        let (code, said) = machine.run(&["plan"]);
        assert!(code == 1 && said.contains(what) && said.contains("alice.pub"), "{said}");
    }
    let on_host = machine.with("file:alice.pub", "file:/root/key.pub");
    let (code, said) = on_host.run(&["plan"]);
    assert!(code == 1 && said.contains("/root/key.pub"), "{said}");
    fs::create_dir_all(on_host.path("host/root/root")).unwrap();
    fs::write(on_host.path("host/root/root/key.pub"), KEY).unwrap();
    assert_eq!(on_host.run(&["apply", "--yes"]).0, 0);
    assert!(on_host.seed().contains(KEY.trim()));
    assert!(Path::new(&on_host.path(IMAGES)).exists());
}

#[test]
fn a_new_vm_is_written_into_the_manifest_and_made() {
    let mut machine = Machine::new();
    let networks = "networks: { nat: { libvirt: default } }\nvmctl: { install: false }\n";
    machine.manifest = format!("version: 1   # of mine\n{networks}");
    let create = ["create", "ubuntu", "desk", "--user", "alice", "--key", "file:alice.pub", "--disk", "30GiB"];
    let (code, said) = machine.run(&[&create[..], &["--print"]].concat());
    assert!(code == 0 && said.contains("    image: ubuntu-24.04\n") && said.contains("nothing was changed"), "{said}");
    let text = || fs::read_to_string(machine.path("host.yaml")).unwrap();
    assert_eq!(text(), machine.manifest);
    let more = ["--desktop", "--nvidia", "580", "--release", "26.04", "--yes"];
    let (code, said) = machine.run(&[&create[..], &more].concat());
    assert_eq!(code, 0, "{said}");
    assert!(
        text().starts_with("version: 1   # of mine\n") && text().contains("ubuntu: { desktop: true, nvidia: \"580\" }")
    );
    let seed = fs::read(machine.path(&format!("{IMAGES}/desk-seed.iso"))).unwrap();
    let seed = String::from_utf8_lossy(&seed).into_owned();
    for told in [
        "ubuntu-desktop-minimal",
        "nvidia-driver-580-open",
        "linux-modules-nvidia-580-open-generic",
        "graphical.target",
    ] {
        assert!(seed.contains(told), "{told}:\n{seed}");
    }
    // As a manifest that somebody wrote by hand.
    let root = ["--root", "host"];
    let plan = gpuvm(&[&["plan", "-f", "host.yaml"][..], &root].concat(), machine.dir.path());
    assert_eq!(plan.status.code(), Some(0), "{}", stdout(&plan));
    let again = gpuvm(&[&create[..], &["-f", "host.yaml", "--yes"], &root].concat(), machine.dir.path());
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && said.contains("has a VM `desk` already"), "{said}");
}

#[test]
fn what_cannot_be_made_leaves_the_manifest_as_it_was() {
    let mut machine = Machine::new();
    machine.manifest = "version: 1\nnetworks: { a: { libvirt: default }, b: { libvirt: other } }\n".to_owned();
    let create = |more: &[&str]| {
        let base = ["create", "ubuntu", "desk", "--user", "alice", "--yes"];
        let (code, said) = machine.run(&[&base[..], more].concat());
        assert_eq!(fs::read_to_string(machine.path("host.yaml")).unwrap(), machine.manifest);
        assert!(code == 1 || code == 64 || code == 2, "{code}: {said}");
        said
    };
    assert!(create(&["--key", "file:alice.pub"]).contains("several networks: a, b"));
    assert!(create(&["--network", "a"]).contains("say it: --key"));
    assert!(create(&["--network", "a", "--key", "file:none.pub"]).contains("cannot read `none.pub`"));
    assert!(create(&["--network", "a", "--key", "file:alice.pub", "--release", "9.9"]).contains("there is no image"));
    assert!(create(&["--network", "c", "--key", "file:alice.pub"]).contains("unknown network `c`"));
    let left = fs::read_dir(machine.dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".gpuvm-create"));
    assert_eq!(left.count(), 0);
}
