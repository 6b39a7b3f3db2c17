//! Input that means harm: secrets are found nowhere but where they have to be, names do not leave their places, links
//! are not followed, a record of someone else's does not lead out of its folder, and what gpuvm keeps is root's alone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::foreign::{Foreign, Has};
use crate::machine::{copy_tree, fast_folder, gpuvm, repository, stderr, stdout, tree};

const DOMAIN: &str = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>office</name>
  <uuid>00000000-0000-4000-8000-000000000000</uuid>
  <title>canary-title</title>
  <description>canary-description</description>
  <metadata><app:key xmlns:app='urn:app'>canary-metadata</app:key></metadata>
  <!-- canary-comment -->
  <memory unit='KiB'>1048576</memory>
  <vcpu placement='static'>1</vcpu>
  <sysinfo type='smbios'><system><entry name='serial'>canary-smbios</entry></system></sysinfo>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>
  <devices>
    <graphics type='vnc' port='-1' autoport='yes' passwd='canary-vnc'/>
    <interface type='network'>
      <mac address='52:54:00:aa:bb:cc'/>
      <source network='default'/>
      <model type='virtio'/>
    </interface>
  </devices>
  <qemu:commandline><qemu:arg value='-fw_cfg'/><qemu:arg value='opt/x,string=canary-qemu'/></qemu:commandline>
</domain>
";

const MANIFEST: &str = "version: 1
files:
  /etc/token: { content: \"canary-content\\n\", secret: true, takeOver: true }
  /etc/key: { source: key, secret: true, mode: \"0640\" }
  /etc/motd: { content: \"public\\n\", takeOver: true }
modules: [br_netfilter]
bridge: { name: br0, uplink: auto }
networks: { nat: { libvirt: default } }
gpus: { work: { match: '0000:02:00', use: vfio } }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [work], start: boot }
";

/// A host with a secret in every place where one can be.
fn planted() -> Foreign {
    let host = Foreign::new(&[Has::Libvirt]);
    host.define("office", DOMAIN, false, false);
    host.write("/etc/token", "canary-previous\n");
    host.write("/etc/hand-made", "canary-private\n");
    host.append("/etc/fstab", "//nas.lan/vms /srv/vms cifs username=me,password=canary-fstab 0 0\n");
    host.append("/etc/passwd", "bob:x:1001:1001:canary-name,,,:/home/bob:/bin/bash\n");
    host.write("/etc/shadow", "root:$6$canary-shadow:1:0:99999:7:::\n");
    host.write("/etc/apt/sources.list.d/own.list", "deb https://me:canary-apt@deb.example/ stable main\n");
    host.write("/etc/apt/auth.conf.d/own.conf", "machine deb.example login me password canary-auth\n");
    host.write("/etc/NetworkManager/system-connections/a.nmconnection", "[wifi-security]\npsk=canary-psk\n");
    let netplan = fs::read_to_string(host.root("/etc/netplan/50-cloud-init.yaml")).unwrap();
    let wifi = "  wifis:\n    wl0:\n      dhcp4: true\n      access-points:\n        home: { password: canary-wifi }\n  tunnels:\n    wg0:\n      mode: wireguard\n      key: canary-wireguard\n";
    host.write("/etc/netplan/50-cloud-init.yaml", &(netplan.trim_end().to_owned() + "\n" + wifi));
    host.append("/boot/grub/grub.cfg", "password_pbkdf2 root grub.pbkdf2.canary-grub\n");
    host.append("/run/systemd/netif/leases/2", "HOSTNAME=canary-lease\n");
    let cmdline = fs::read_to_string(host.root("/proc/cmdline")).unwrap();
    host.write("/proc/cmdline", &format!("{} ks=https://me:canary-cmd!line@deb.example/ks\n", cmdline.trim_end()));
    let status = fs::read_to_string(host.root("/var/lib/dpkg/status")).unwrap();
    host.write(
        "/var/lib/dpkg/status",
        &status.replacen("\nVersion: ", "\nDescription: canary-description-of-package\nVersion: ", 1),
    );
    host.record(|record| {
        for path in ["/etc/token", "/etc/hand-made", "/etc/shadow"] {
            record["stats"][path] = json!({ "mode": "0600", "uid": 0, "gid": 0 });
        }
    });
    fs::write(host.dir.path().join("key"), "canary-source\n").unwrap();
    host.set_manifest(MANIFEST);
    host
}

/// The canaries in a text, each by its name.
fn canaries(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    text.split("canary-").skip(1).map(name).collect()
}

/// Every file below a folder, links not followed.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            t if t.is_dir() => all.extend(files(&entry.path())),
            t if t.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
    all.sort();
    all
}

/// Where gpuvm's own state may hold what was secret on the host: for the way back, and for a run that goes on.
fn may_hold(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        ["kept", _] | ["runs", _, "before", _] => true,
        ["runs", _, file] => {
            ["before.jsonl", "after.json", "order.json", "about.json", "journal.jsonl"].contains(&file)
        }
        _ => false,
    }
}

#[test]
fn a_planted_secret_is_in_no_output_log_plan_or_record() {
    let host = planted();
    let mut commands = 0;
    let mut run = |args: &[&str], codes: &[i32]| {
        let root: &[&str] = if args[0] == "validate" { &[] } else { &["--root", "host"] };
        let args = [args, root].concat();
        let output = gpuvm(&args, host.dir.path());
        let said = stdout(&output) + &stderr(&output);
        assert!(codes.contains(&output.status.code().unwrap()), "{args:?}: {:?}: {said}", output.status.code());
        assert!(canaries(&said).is_empty(), "{args:?} says {:?}:\n{said}", canaries(&said));
        commands += 1;
        said
    };
    run(&["validate"], &[0]);
    run(&["validate", "--output", "json"], &[0]);
    run(&["init", "-o", "-"], &[0, 2]);
    for words in
        ["facts", "facts --output json", "gpu list", "gpu status", "gpu explain 0000:02:00", "check -v", "topology"]
    {
        run(&words.split(' ').collect::<Vec<_>>(), &[0, 1, 3]);
    }
    run(&["check", "--next-boot", "-v"], &[0, 1, 3]);
    for words in ["plan", "plan -v", "plan -vv", "plan --output json", "plan --output markdown", "plan --out saved"] {
        run(&words.split(' ').collect::<Vec<_>>(), &[2]);
    }
    // A saved plan is for its owner: it has the manifest and its files, and nothing of the host's secrets.
    let saved = host.dir.path().join("saved");
    assert_eq!(fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    let saved = canaries(&fs::read_to_string(saved).unwrap());
    assert_eq!(saved, ["content", "source"].map(str::to_owned).into());

    let adopt = "version: 1\nnetworks: { nat: { libvirt: default } }\n";
    fs::write(host.dir.path().join("adopt.yaml"), adopt).unwrap();
    run(&["adopt", "-f", "adopt.yaml", "libvirt-domain/office", "file/etc/hand-made"], &[0, 1]);
    run(&["apply", "-vv", "--yes", "--reboot"], &[0, 3]);
    for words in
        ["status", "status --output json", "history", "history --output json", "show 1", "show 1 --output json"]
    {
        run(&words.split(' ').collect::<Vec<_>>(), &[0, 3]);
    }
    run(&["undo", "1", "--plan"], &[2]);
    // A change of each, cut off, gone on with, and undone.
    let changed = MANIFEST.replace("canary-content", "canary-second").replace("\"public\\n\"", "\"other\\n\"");
    host.set_manifest(&changed);
    fs::write(host.dir.path().join("key"), "canary-third\n").unwrap();
    run(&["plan", "-v"], &[2]);
    let cut =
        crate::machine::command(&["-vv", "--log-format", "json", "apply", "--yes", "--root", "host"], host.dir.path())
            .env("GPUVM_DIE_AT", "60")
            .output()
            .unwrap();
    let said = stdout(&cut) + &stderr(&cut);
    assert!(!cut.status.success() && canaries(&said).is_empty(), "{said}");
    run(&["plan"], &[2]);
    held_by_root_alone(&host);
    run(&["apply", "--resume"], &[0, 3]);
    run(&["adopt", "--save", "--yes", "libvirt-domain/office", "file/etc/hand-made"], &[0, 3]);
    run(&["plan", "-v"], &[0, 3]);
    let manifest = host.manifest();
    host.set_manifest(&manifest.replace("cpus: 1\n", "cpus: 2\n"));
    run(&["plan", "-v", "--output", "json"], &[2]);
    run(&["apply", "-vv", "--yes"], &[0, 3]);
    for number in ["4", "3", "2", "1"] {
        run(&["show", number], &[0]);
        run(&["undo", number, "--plan"], &[0, 1, 2]);
    }
    run(&["undo", "4", "--yes"], &[0, 3]);
    // The VM goes, and comes back with all that others wrote into it.
    host.set_manifest(&manifest.replacen("\n  office:\n", "\n  office:\n    absent: true\n", 1));
    run(&["apply", "--yes"], &[0, 3]);
    assert!(
        host.record(|_| {})["libvirt"]["known"]["domains"].as_array().unwrap().iter().all(|d| d["name"] != "office")
    );
    run(&["undo", "--plan"], &[2]);
    run(&["undo", "--yes"], &[0, 3]);
    for words in ["show 7", "show 7 --output json", "undo 7 --plan", "history", "status"] {
        run(&words.split(' ').collect::<Vec<_>>(), &[0, 1, 2, 3]);
    }
    let held = held_by_root_alone(&host);
    assert!(held >= 6, "the canaries are planted in vain: {held}");
    // The VM itself lost none of them.
    assert_eq!(canaries(&host.definition("office")), canaries(DOMAIN));

    eprintln!("{commands} commands, {held} files of gpuvm's hold what was secret, for root alone");
}

const WINDOWS: &str = "version: 1
images:
  win11: { url: 'https://iso.example/win11.iso', sha256: ABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB }
vms:
  win:
    guest: windows-11
    cpus: 2
    memory: 4GiB
    disks: [64GiB]
    display: vnc
    media: [win11, /srv/virtio-win.iso]
    windows: { user: alice, passwordFile: /root/alice.password, edition: Windows 11 Pro, acceptLicense: true }
";

#[test]
fn a_password_for_windows_is_on_its_cd_rom_alone() {
    let host = Foreign::new(&[Has::Libvirt]);
    for name in ["swtpm", "swtpm-tools"] {
        let stanza = format!("\nPackage: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n");
        host.append("/var/lib/dpkg/status", &stanza);
    }
    host.write("/srv/virtio-win.iso", "drivers");
    host.set_manifest(WINDOWS);
    let run = |args: &[&str], codes: &[i32]| {
        let args = [args, &["--root", "host"]].concat();
        let output = gpuvm(&args, host.dir.path());
        let said = (stdout(&output) + &stderr(&output)).replace("\n  │ ", " ");
        assert!(codes.contains(&output.status.code().unwrap()), "{args:?}: {:?}: {said}", output.status.code());
        assert!(canaries(&said).is_empty(), "{args:?} says {:?}:\n{said}", canaries(&said));
        said
    };
    let said = run(&["plan"], &[1]);
    assert!(said.contains("alice.password") && said.contains("not there"), "{said}");
    host.write("/root/alice.password", "canary-password\n");
    let mode = |mode: &str| {
        host.record(|record| record["stats"]["/root/alice.password"] = json!({ "mode": mode, "uid": 0, "gid": 0 }));
    };
    mode("0644");
    let said = run(&["plan"], &[1]);
    assert!(said.contains("not a file of root's alone"), "{said}");
    mode("0600");
    for words in ["plan", "plan -vv", "plan --output json", "plan --output markdown", "plan --out saved"] {
        run(&words.split(' ').collect::<Vec<_>>(), &[2]);
    }
    let saved = fs::read_to_string(host.dir.path().join("saved")).unwrap();
    assert!(canaries(&saved).is_empty(), "the run reads it, not the plan");
    run(&["apply", "-vv", "--yes", "--reboot"], &[0, 3]);
    let seed = host.root("/var/lib/libvirt/images/win-seed.iso");
    let image = fs::read(&seed).unwrap();
    let files = gpuvm::guest::iso::files(&image, true).unwrap();
    let [(name, answers)] = &files[..] else { panic!("{files:?}") };
    assert_eq!(name, "autounattend.xml");
    assert!(String::from_utf8_lossy(answers).contains("<Value>canary-password</Value>"));
    assert_eq!(host.record(|_| {})["stats"]["/var/lib/libvirt/images/win-seed.iso"]["mode"], "0600");
    let definition = host.definition("win");
    for file in ["/var/lib/libvirt/images/gpuvm-images/win11-abababababab.img", "win-seed.iso", "/srv/virtio-win.iso"] {
        assert!(definition.contains(file), "{file}: {definition}");
    }
    run(&["plan"], &[0, 3]);
    // A clone is an installed Windows: nobody reads the password from its drives.
    run(&["vm", "stop", "win", "--force", "--yes"], &[0]);
    let said = run(&["vm", "clone", "win", "twin", "-vv", "--yes"], &[0]);
    assert!(said.contains("answer file is not in it") && !said.contains("cloud-init"), "{said}");
    let definition = host.definition("twin");
    assert!(!definition.contains("-seed.iso") && definition.contains("/srv/virtio-win.iso"), "{definition}");
    assert!(!host.root("/var/lib/libvirt/images/twin-seed.iso").exists());
    let ledger = fs::read_to_string(host.root("/var/lib/gpuvm/ledger.json")).unwrap();
    let ledger: serde_json::Value = serde_json::from_str(&ledger).unwrap();
    let owned = ledger["owned"].as_array().unwrap().iter();
    let twin = owned.map(ToString::to_string).find(|o| o.contains("libvirt-domain") && o.contains("\"twin\"")).unwrap();
    assert!(twin.contains("/srv/virtio-win.iso") && !twin.contains("-seed.iso"), "{twin}");
    run(&["vm", "delete", "twin", "--yes"], &[0]);
    // Setup is over: the password goes from the guest's drives.
    let done = WINDOWS.split("    windows: ").next().unwrap();
    host.set_manifest(done);
    run(&["apply", "-vv", "--yes"], &[0, 3]);
    assert!(!host.definition("win").contains("win-seed.iso"));
    for words in ["show 1", "show 1 --output json", "history", "status --output json", "undo 2 --plan", "vm info win"] {
        run(&words.split(' ').collect::<Vec<_>>(), &[0, 1, 2, 3]);
    }
    held_by_root_alone(&host);
}

/// Files with a canary in gpuvm's state are those that have to hold it, and are root's alone; it counts them.
fn held_by_root_alone(host: &Foreign) -> usize {
    let state = host.root("/var/lib/gpuvm");
    let mut held = 0;
    for file in files(&state) {
        let name = file.strip_prefix(&state).unwrap().display().to_string();
        let found = canaries(&String::from_utf8_lossy(&fs::read(&file).unwrap()));
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        if !found.is_empty() {
            assert!(may_hold(&name) && mode == 0o600, "{name} ({mode:o}) has {found:?}");
            held += 1;
        }
    }
    held
}

#[test]
fn a_record_to_be_given_away_holds_no_secret() {
    use gpuvm::host::fixture::Fixture;
    use gpuvm::host::record::Recorder;
    use gpuvm::host::{Probe as _, Snapshot};
    let host = planted();
    // As on the host itself: what `gpuvm facts --record` asks, and what any other file would add to it.
    let fixture = Fixture::open(&host.dir.path().join("host")).unwrap();
    let recorder = Recorder::new(&fixture);
    let facts = gpuvm::facts::collect(&Snapshot::new(&recorder));
    let gpus = gpuvm::gpu::collect(&recorder, &facts);
    gpuvm::check::Looked::look(&recorder, &facts, &gpus);
    gpuvm::check::NextBoot::look(&recorder, &facts);
    gpuvm::describe::init(&Snapshot::new(&recorder), &facts);
    let loaded = gpuvm::manifest::load(&host.dir.path().join("host.yaml")).unwrap();
    gpuvm::cli::plan_now(&loaded, &Default::default(), &recorder, &Default::default());
    for path in ["/etc/shadow", "/etc/fstab", "/boot/grub/grub.cfg", "/run/systemd/netif/leases/2"] {
        recorder.read(Path::new(path)).unwrap();
    }
    let to = host.dir.path().join("record");
    recorder.write(&to).unwrap();
    let mut looked = 0;
    for file in files(&to) {
        let found = canaries(&String::from_utf8_lossy(&fs::read(&file).unwrap()));
        // What the manifest replaces was looked at by its plan.
        assert!(found.is_empty(), "{} has {found:?}", file.display());
        looked += 1;
    }
    assert!(looked > 100, "{looked}");
    let record: Value = serde_json::from_slice(&fs::read(to.join("gpuvm-record.json")).unwrap()).unwrap();
    assert!(record.to_string().contains("office"), "the VM itself is in the record");
}

/// A copy of the recorded host with a manifest that makes all kinds of files.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let work = fast_folder();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &work.path().join("host"));
        fs::write(work.path().join("host.yaml"), MANIFEST.replace("takeOver: true }\n  /etc/key", "}\n  /etc/key"))
            .unwrap();
        fs::write(work.path().join("key"), "key\n").unwrap();
        Self(work)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn state(&self) -> PathBuf {
        self.path("host/root/var/lib/gpuvm")
    }
    fn run(&self, args: &[&str]) -> (i32, String) {
        let output = gpuvm(&[args, &["--root", "host"]].concat(), self.0.path());
        (output.status.code().unwrap(), (stdout(&output) + &stderr(&output)).replace("\n  │ ", " "))
    }
    fn applied() -> Self {
        let host = Self::new();
        let (code, said) = host.run(&["apply", "--yes", "--reboot"]);
        assert_eq!(code, 0, "{said}");
        host
    }
}

#[test]
fn what_gpuvm_keeps_is_for_root_alone() {
    let host = Host::new();
    // Someone made the folder before, for all to look into.
    fs::create_dir_all(host.state()).unwrap();
    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(host.run(&["apply", "--yes", "--reboot"]).0, 0);
    let mut seen = 0;
    let mut look = vec![host.state()];
    while let Some(path) = look.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mode = meta.permissions().mode() & 0o7777;
        let name = path.strip_prefix(host.state()).unwrap().display().to_string();
        // The bridge's own note is written as any file of the host's; it lies in a folder of root's.
        let played = name.starts_with("network");
        if meta.is_dir() {
            look.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            assert!(mode == 0o700 || played, "{name} {mode:o}");
        } else {
            assert!(mode == 0o600 || played, "{name} {mode:o}");
        }
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn links_in_gpuvms_folders_are_not_followed() {
    for name in ["", "runs", "kept", "runs/1"] {
        let host = Host::applied();
        let elsewhere = host.path("elsewhere");
        let at = if name.is_empty() { host.state() } else { host.state().join(name) };
        assert!(at.is_dir(), "{name} is not there");
        fs::rename(&at, &elsewhere).unwrap();
        symlink(&elsewhere, &at).unwrap();
        let before: Vec<_> = files(&elsewhere).into_iter().map(|f| (fs::read(&f).unwrap(), f)).collect();
        let (host_before, manifest) = (tree(&host.path("host")), fs::read_to_string(host.path("host.yaml")).unwrap());
        fs::write(host.path("host.yaml"), manifest + "kernelArgs: [quiet]\n").unwrap();
        for verb in [
            &["plan"][..],
            &["apply", "--yes", "--reboot"],
            &["status"],
            &["history"],
            &["undo", "1", "--plan"],
            &["show", "1"],
        ] {
            let (code, said) = host.run(verb);
            match name {
                // A run that is a link is none of ours: it is not shown and not undone.
                "runs/1" if verb.contains(&"1") => {
                    assert!(code == 1 && said.contains("no record of a run 1"), "{verb:?}: {said}");
                }
                "runs/1" => {}
                _ => {
                    assert_eq!(code, 1, "{name} {verb:?}: {said}");
                    assert!(said.contains("is a link"), "{name} {verb:?}: {said}");
                }
            }
        }
        let after: Vec<_> = files(&elsewhere).into_iter().map(|f| (fs::read(&f).unwrap(), f)).collect();
        assert!(before == after, "{name}: something was written through the link");
        if name != "runs/1" {
            assert_eq!(tree(&host.path("host")), host_before, "{name}");
        }
    }
    // The names of single files.
    for name in ["lock", "ledger.json", ".ledger.json.gpuvm-new"] {
        let host = Host::applied();
        let other = host.path("other");
        fs::write(&other, "of someone else").unwrap();
        let at = host.state().join(name);
        let was = fs::read(&at).ok();
        let _ = fs::remove_file(&at);
        symlink(&other, &at).unwrap();
        let manifest = fs::read_to_string(host.path("host.yaml")).unwrap() + "kernelArgs: [quiet]\n";
        fs::write(host.path("host.yaml"), manifest).unwrap();
        let (code, said) = host.run(&["apply", "--yes", "--reboot"]);
        assert_eq!(fs::read_to_string(&other).unwrap(), "of someone else", "{name}");
        assert!(if was.is_some() { code == 1 } else { code == 0 }, "{name}: {code} {said}");
    }
}

#[test]
fn a_folder_that_others_may_write_into_is_not_used() {
    let host = Host::applied();
    for name in ["", "runs", "kept"] {
        let at = host.state().join(name);
        fs::set_permissions(&at, fs::Permissions::from_mode(0o777)).unwrap();
        for verb in [&["plan"][..], &["apply", "--yes"], &["undo", "--plan"]] {
            let (code, said) = host.run(verb);
            assert!(code == 1 && said.contains("may be written by other users"), "{name} {verb:?}: {said}");
        }
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
        // Only root can give a folder away.
        if std::os::unix::fs::chown(&at, Some(65534), None).is_ok() {
            let (code, said) = host.run(&["plan"]);
            assert!(code == 1 && said.contains("belongs to another user"), "{name}: {said}");
            std::os::unix::fs::chown(&at, Some(nix::unistd::getuid().as_raw()), None).unwrap();
        }
    }
    assert_eq!(host.run(&["plan"]).0, 0);
}

#[test]
fn a_record_of_someone_elses_does_not_lead_out_of_its_folder() {
    for link in ["root", "root/var", "root/var/lib", "root/var/lib/gpuvm"] {
        let host = Host::new();
        let at = host.path("host").join(link);
        let outside = host.path("outside");
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        if at.exists() {
            fs::rename(&at, &outside).unwrap();
        } else {
            fs::create_dir_all(&outside).unwrap();
        }
        symlink(&outside, &at).unwrap();
        let before = files(&outside);
        for verb in [
            &["plan"][..],
            &["apply", "--yes", "--reboot"],
            &["status"],
            &["history"],
            &["facts"],
            &["init", "-o", "new.yaml"],
        ] {
            let (code, said) = host.run(verb);
            // Facts alone read no state of gpuvm's.
            assert!(code == 1 && said.contains("is a link"), "{link} {verb:?}: {code} {said}");
        }
        assert_eq!(files(&outside), before, "{link}");
    }
    // A link of the host's that points out of the record stays in it.
    let host = Host::new();
    let outside = host.path("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::remove_dir_all(host.path("host/root/etc/modprobe.d")).unwrap();
    symlink(&outside, host.path("host/root/etc/modprobe.d")).unwrap();
    fs::remove_file(host.path("host/root/etc/motd")).unwrap();
    symlink(outside.join("motd"), host.path("host/root/etc/motd")).unwrap();
    host.run(&["apply", "--yes", "--reboot"]);
    assert!(files(&outside).is_empty(), "{:?}", files(&outside));
}

#[test]
fn a_state_of_a_newer_gpuvm_is_left_as_it_is() {
    let host = Host::applied();
    let mut refused = 0;
    for file in files(&host.state()) {
        let good = fs::read(&file).unwrap();
        let Ok(text) = String::from_utf8(good.clone()) else { continue };
        let newer = text.replacen("\"format\":1", "\"format\":99", 1).replacen("\"format\": 1", "\"format\": 99", 1);
        if newer == text {
            continue;
        }
        fs::write(&file, &newer).unwrap();
        let before = tree(&host.path("host"));
        let name = file.strip_prefix(host.state()).unwrap().display().to_string();
        let said: Vec<(i32, String)> =
            [&["plan"][..], &["undo", "--plan"], &["show", "1"], &["history"]].map(|v| host.run(v)).into();
        let of_it =
            said.iter().filter(|(code, said)| *code == 1 && said.contains("format") && said.contains("99")).count();
        // What only a verdict of the next boot is in is judged anew.
        assert!(of_it > 0, "{name} was read although it is newer: {said:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), newer, "{name}");
        assert_eq!(tree(&host.path("host")), before, "{name}");
        fs::write(&file, good).unwrap();
        refused += 1;
    }
    assert!(refused >= 4, "{refused}: the ledger and its copy, the journal, the record");
    assert_eq!(host.run(&["plan"]).0, 0);
}

#[test]
fn no_name_of_a_manifest_leaves_its_place() {
    let hostile = [
        "../../etc/x",
        "a/b",
        "/abs",
        "..",
        ".",
        "-rf",
        "a b",
        "a\\nb",
        "a;reboot",
        "$(reboot)",
        "`reboot`",
        "a'b",
        "<x>",
        "a&b",
        "%n",
        "é",
        "a\\u0000b",
        "a\\u001b[2J",
        "*",
    ];
    // Where each name ends up: a domain, a volume, a rule's file, a link, a module list, a unit, a group, a command line.
    let places = [
        "vms: { \"NAME\": { cpus: 1, memory: 1GiB } }",
        "gpus: { \"NAME\": { match: '02:00', use: vfio } }",
        "devices: { \"NAME\": { match: '02:00', use: vfio } }",
        "storage: { \"NAME\": { dir: /srv } }",
        "networks: { \"NAME\": { libvirt: default } }",
        "networks: { nat: { libvirt: \"NAME\" } }",
        "bridge: { name: \"NAME\" }",
        "bridge: { name: br0, uplink: \"NAME\" }",
        "packages: [\"NAME\"]",
        "services: { \"NAME\": { enabled: true } }",
        "services: { \"NAME.service\": { enabled: true } }",
        "modules: [\"NAME\"]",
        "libvirt: { operators: [\"NAME\"] }",
        "host: \"NAME\"",
        "files: { /etc/a: { source: \"NAME/../../x\" } }",
        "files: { \"/etc/../NAME/x\": { content: a } }",
        "vms: { a: { cpus: 1, memory: 1GiB, disks: [{ size: 1GiB, pool: \"NAME\" }] } }",
        "vms: { a: { cpus: 1, memory: 1GiB, network: \"NAME\" } }",
        "vms: { a: { cpus: 1, memory: 1GiB, gpus: [\"NAME\"] } }",
    ];
    let mut refused = 0;
    for place in places {
        for name in hostile {
            let text = format!("version: 1\n{}\n", place.replace("NAME", name));
            if let Ok(read) = gpuvm::manifest::parse("host.yaml", &text) {
                panic!("`{name}` is accepted in {place}: {read:?}");
            }
            refused += 1;
        }
    }
    for argument in
        ["a\"b", "a'b", "a$b", "a`b`", "a b", "a;b", "a\\\\b", "a|b", "a&b", "a\\nb", "a>b", "a#b", "a{b}", "-a"]
    {
        let text = format!("version: 1\nkernelArgs: [\"{}\"]\n", argument.replace('"', "\\\""));
        assert!(gpuvm::manifest::parse("host.yaml", &text).is_err(), "kernelArgs: {argument}");
    }
    eprintln!("{refused} names, none accepted");
}

/// What a manifest's free texts become in files that others parse: the text itself, and nothing beside it.
#[test]
fn free_texts_break_out_of_nothing() {
    let hostile = "x' onx='1\"/><disk type=\"block\"/>&amp;]]>$(touch PWNED)`touch PWNED`;touch PWNED";
    let quoted = serde_json::to_string(hostile).unwrap();
    let host = Host::new();
    let path = "/srv/a'b\"c<d>&$(touch PWNED)";
    fs::create_dir_all(host.path("host/root/srv")).unwrap();
    let place = host.path("host/root").join(path.trim_start_matches('/'));
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("vmlinuz"), "").unwrap();
    let path_text = serde_json::to_string(path).unwrap();
    let kernel = serde_json::to_string(&format!("{path}/vmlinuz")).unwrap();
    let manifest = format!(
        "version: 1\nkernelArgs: [module.a=b-c]\nstorage: {{ odd: {{ dir: {path_text} }} }}\n\
         vms:\n  tiny:\n    cpus: 1\n    memory: 512MiB\n    disks: [{{ size: 1GiB, pool: odd }}]\n    boot: {{ kernel: {kernel}, cmdline: {quoted} }}\n"
    );
    fs::write(host.path("host.yaml"), manifest).unwrap();
    let (code, said) = host.run(&["apply", "--yes", "--reboot"]);
    assert_eq!(code, 0, "{said}");
    let record: Value = serde_json::from_slice(&fs::read(host.path("host/gpuvm-record.json")).unwrap()).unwrap();
    let known = &record["libvirt"]["known"];
    let xml = known["domains"][0]["inactiveXml"].as_str().unwrap();
    let doc = roxmltree::Document::parse(xml).unwrap();
    let text = |name: &str| {
        doc.descendants().find(|n| n.has_tag_name(name)).and_then(|n| n.text()).unwrap_or_default().to_owned()
    };
    assert_eq!((text("cmdline"), text("kernel")), (hostile.to_owned(), format!("{path}/vmlinuz")));
    let disks: Vec<_> = doc.descendants().filter(|n| n.has_tag_name("disk")).collect();
    assert_eq!(disks.len(), 1, "{xml}");
    let source = disks[0].children().find(|n| n.has_tag_name("source")).unwrap();
    assert_eq!(source.attribute("file"), Some(format!("{path}/tiny-0.qcow2").as_str()));
    // What a shell reads: GRUB's drop-in, as update-grub sources it.
    let grub = host.path("host/root/etc/default/grub.d/99-gpuvm.cfg");
    let shell = std::process::Command::new("sh")
        .args(["-euc", "GRUB_CMDLINE_LINUX_DEFAULT=quiet; . \"$1\"; printf %s \"$GRUB_CMDLINE_LINUX_DEFAULT\"", "sh"])
        .arg(&grub)
        .current_dir(host.0.path())
        .output()
        .unwrap();
    assert!(shell.status.success(), "{}", stderr(&shell));
    assert!(stdout(&shell).ends_with("module.a=b-c"), "{}", stdout(&shell));
    assert!(!host.path("PWNED").exists());
}

#[test]
fn a_saved_plan_that_was_tampered_with_is_refused() {
    let host = Host::new();
    let (code, said) = host.run(&["plan", "--out", "saved"]);
    assert_eq!(code, 2, "{said}");
    let good = fs::read_to_string(host.path("saved")).unwrap();
    let before = tree(&host.path("host"));
    let mut tampered = 0;
    for (from, to) in [
        ("/etc/token\"", "/etc/sudoers.d/x\""),
        ("/etc/udev/rules.d/61-gpuvm-vfio-work.rules", "/etc/udev/rules.d/../../cron.d/x"),
        ("tiny-0.qcow2", "../../../etc/x"),
        ("br_netfilter", "../../evil"),
        ("\"mode\": \"0600\"", "\"mode\": \"4777\""),
        ("\"format\": ", "\"format\": 9"),
    ] {
        let text = good.replace(from, to);
        if text == good {
            panic!("{from} is not in the plan");
        }
        fs::write(host.path("saved"), text).unwrap();
        let (code, said) = host.run(&["apply", "saved", "--yes", "--reboot"]);
        assert!(code == 4 || code == 1, "{from}: {code} {said}");
        assert_eq!(tree(&host.path("host")), before, "{from}: {said}");
        tampered += 1;
    }
    assert_eq!(tampered, 6);
    fs::write(host.path("saved"), good).unwrap();
    assert_eq!(host.run(&["apply", "saved", "--yes", "--reboot"]).0, 0);
}
