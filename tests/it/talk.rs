//! What the program says to the person who runs it, and its exit codes: the next step after a plan, an apply that stops
//! before a reboot, refusals that change nothing.

use std::fs;
use std::path::PathBuf;

use crate::machine::{copy_tree, gpuvm, repository, tree};

const MANIFEST: &str = "version: 1
gpus:
  work: { match: \"0000:02:00\", use: vfio }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB], gpus: [work], start: boot }
";

struct Desk(tempfile::TempDir);

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
        fs::write(dir.path().join("host.yaml"), MANIFEST).unwrap();
        Self(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn run(&self, args: &[&str]) -> Said {
        let output = gpuvm(&[args, &["--root", "host"]].concat(), self.0.path());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Said { code: output.status.code().unwrap(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

#[test]
fn a_plan_ends_with_what_to_type_next_and_its_data_does_not() {
    let desk = Desk::new();
    let plan = desk.run(&["plan"]);
    assert_eq!((plan.code, plan.stderr.as_str()), (2, "apply: gpuvm apply -f host.yaml --root host --reboot\n"));
    assert!(!plan.stdout.contains("gpuvm apply"), "{}", plan.stdout);
    assert_eq!(desk.run(&["plan"]).stdout, plan.stdout, "the same bytes");
    let some = desk.run(&["plan", "--only", "pool", "--skip", "volume"]);
    assert_eq!(some.stderr, "apply: gpuvm apply -f host.yaml --only pool --skip volume --root host\n");
    let saved = desk.run(&["plan", "--out", "the plan"]);
    assert_eq!(saved.stderr, "apply: gpuvm apply 'the plan' --root host --reboot\n");
    for quiet in [&["plan", "-q"][..], &["plan", "--output", "json"], &["plan", "--output", "markdown"]] {
        assert_eq!(desk.run(quiet).stderr, "", "{quiet:?}");
    }
    assert!(desk.run(&["plan", "-q"]).stdout.contains("changes, 1 reboot"));
    fs::write(desk.path("host.yaml"), MANIFEST.replace("0000:02:00", "0000:00:04")).unwrap();
    let blocked = desk.run(&["plan"]);
    assert_eq!((blocked.code, blocked.stderr.as_str()), (1, ""), "{}", blocked.stdout);
}

#[test]
fn an_apply_without_the_reboot_waits_and_says_how_to_go_on() {
    let desk = Desk::new();
    let first = desk.run(&["apply", "--yes"]);
    assert_eq!(first.code, 3, "{}{}", first.stdout, first.stderr);
    assert!(first.stderr.contains("stops before the reboot"), "{}", first.stderr);
    for line in ["vfio-binding[work] waits for reboot", "libvirt-domain[tiny] comes after the reboot", "--reboot\n"] {
        assert!(first.stdout.contains(line), "{line}: {}", first.stdout);
    }
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);
    let third = desk.run(&["plan"]);
    assert_eq!((third.code, third.stderr.as_str()), (0, ""));
    assert!(third.stdout.lines().count() == 1 && third.stdout.contains("nothing to do"), "{}", third.stdout);
    let comment = desk.run(&["plan", "--output", "markdown"]).stdout;
    assert!(comment.contains("nothing to do") && !comment.contains("```"), "an empty block: {comment}");
}

#[test]
fn nobody_to_ask_and_another_host_change_nothing() {
    let desk = Desk::new();
    let before = tree(&desk.path("host"));
    let asked = desk.run(&["apply"]);
    assert!(asked.code == 1 && asked.stderr.contains("--yes"), "{}", asked.stderr);
    let quiet = desk.run(&["apply", "-q"]);
    assert!(quiet.code == 1 && quiet.stdout.contains("+ package"), "what is asked about is shown: {}", quiet.stdout);
    fs::write(desk.path("host.yaml"), format!("{MANIFEST}host: gpu-99\n")).unwrap();
    for args in [&["plan"][..], &["apply", "--yes"]] {
        let refused = desk.run(args);
        assert!(refused.code == 4 && refused.stderr.contains("is for the host `gpu-99`"), "{}", refused.stderr);
    }
    assert_eq!(tree(&desk.path("host")), before);
    assert!(!desk.path("host/root/var/lib/gpuvm").exists(), "no run, no ledger");
}

#[test]
fn a_saved_plan_is_done_exactly_or_not_at_all() {
    let desk = Desk::new();
    assert_eq!(desk.run(&["plan", "--out", "saved"]).code, 2);
    let refused = |why: &str| {
        let before = tree(&desk.path("host"));
        let said = desk.run(&["apply", "saved", "--yes", "--reboot"]);
        assert!(said.code == 4 && said.stderr.contains(why), "{why}: {} {}", said.code, said.stderr);
        assert_eq!(tree(&desk.path("host")), before, "{why}");
    };
    fs::write(desk.path("host.yaml"), format!("{MANIFEST}# another\n")).unwrap();
    refused("changed since this plan was saved");
    fs::write(desk.path("host.yaml"), MANIFEST).unwrap();

    let list = desk.path("host/root/etc/modules-load.d/gpuvm.conf");
    fs::create_dir_all(list.parent().unwrap()).unwrap();
    fs::write(&list, "x\n").unwrap();
    refused("`module` is not as it was");
    fs::remove_file(&list).unwrap();

    let id = desk.path("host/root/etc/machine-id");
    let was = fs::read_to_string(&id).unwrap();
    fs::write(&id, "00000000000000000000000000000000\n").unwrap();
    refused("the plan was made for another host");
    fs::write(&id, was).unwrap();

    assert_eq!(desk.run(&["apply", "saved", "--yes", "--reboot"]).code, 0);
    refused("is not as it was");
}

#[test]
fn a_disk_that_a_person_left_there_is_not_written_into() {
    let desk = Desk::new();
    let absent = MANIFEST.replace("start: boot", "absent: true");
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);
    let record = desk.path("host/gpuvm-record.json");
    let mut known: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    known["libvirt"]["known"]["domains"][0]["active"] = false.into();
    fs::write(&record, serde_json::to_vec(&known).unwrap()).unwrap();
    fs::write(desk.path("host.yaml"), absent).unwrap();
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);

    // The VM is wanted again: what is on the disk that stayed is a person's to decide about.
    fs::write(desk.path("host.yaml"), MANIFEST).unwrap();
    let blocked = desk.run(&["plan"]);
    assert!(blocked.code == 1 && blocked.stdout.contains("takeOver: true"), "{}", blocked.stdout);
    fs::write(desk.path("host.yaml"), MANIFEST.replace("[1GiB]", "[{ size: 1GiB, takeOver: true }]")).unwrap();
    let apply = desk.run(&["apply", "--yes", "--reboot"]);
    assert_eq!(apply.code, 0, "{}{}", apply.stdout, apply.stderr);
}

#[test]
fn a_host_without_a_device_that_fits_says_what_to_look_at() {
    let desk = Desk::new();
    fs::remove_dir_all(desk.path("host/root/sys/bus/pci")).unwrap();
    let plan = desk.run(&["plan"]);
    assert!(plan.code == 1 && plan.stdout.contains("this host has none"), "{}", plan.stdout);
    assert!(!plan.stdout.contains("there are:"), "{}", plan.stdout);
}

#[test]
fn wrong_usage_is_told_apart_from_an_error() {
    let desk = Desk::new();
    for wrong in [&["plan", "--no-such-option"][..], &["no-such-command"], &["plan", "--output", "xml"]] {
        let said = gpuvm(wrong, desk.0.path());
        assert_eq!(said.status.code(), Some(64), "{wrong:?}");
        assert!(said.stdout.is_empty() && !said.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_manifest_that_is_wrong_changes_nothing_and_says_so() {
    let desk = Desk::new();
    fs::write(desk.path("host.yaml"), "version: 1\nvmz: {}\n").unwrap();
    let before = tree(&desk.path("host"));
    let said = desk.run(&["apply", "--yes", "--reboot"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("did you mean `vms`?"), "{}", said.stderr);
    assert!(said.stderr.contains("nothing was changed"), "{}", said.stderr);
    assert_eq!(tree(&desk.path("host")), before);
    assert_eq!(desk.run(&["status"]).stdout, "no run yet\n");
}

#[test]
fn a_pipe_is_a_manifest_too_and_one_that_nobody_fills_is_not_waited_for() {
    let desk = Desk::new();
    let pipe = desk.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let silent = gpuvm(&["validate", "-f", "pipe", "--output", "json"], desk.0.path());
    assert_eq!(silent.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_slice(&silent.stdout).unwrap();
    let message = told["problems"][0]["message"].as_str().unwrap();
    assert!(message.contains("pipe") && message.contains("nobody writes to"), "{message}");

    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, MANIFEST).unwrap()
    });
    let filled = gpuvm(&["validate", "-f", "pipe"], desk.0.path());
    assert_eq!(filled.status.code(), Some(0), "{}", String::from_utf8_lossy(&filled.stderr));
    writer.join().unwrap();
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let desk = Desk::new();
    fs::write(desk.path("host.yaml"), "version: 1\nvmz: {}\n").unwrap();
    let on_terminal = |no_color: Option<&str>| {
        // script(1) of util-linux gives it a terminal.
        let mut script = std::process::Command::new("script");
        script.args(["-qec", &format!("{} validate", env!("CARGO_BIN_EXE_gpuvm")), "/dev/null"]);
        script.current_dir(desk.0.path()).env("TERM", "xterm").env_remove("NO_COLOR").env_remove("CI");
        script.envs(no_color.map(|value| ("NO_COLOR", value)));
        String::from_utf8_lossy(&script.stdin(std::process::Stdio::null()).output().unwrap().stdout).into_owned()
    };
    let coloured = on_terminal(None);
    assert!(coloured.contains("\x1b[") && coloured.contains("vmz"), "{coloured:?}");
    let plain = on_terminal(Some("1"));
    assert!(!plain.contains("\x1b[") && plain.contains("vmz"), "{plain:?}");
    let piped = std::process::Command::new(env!("CARGO_BIN_EXE_gpuvm"))
        .arg("validate")
        .current_dir(desk.0.path())
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&piped.stderr).contains('\x1b'));
}
