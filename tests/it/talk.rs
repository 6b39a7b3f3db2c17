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

/// Nothing starts that cannot: a new VM with locked memory refuses the plan, one that is there is left alone.
#[test]
fn a_vm_that_cannot_start_refuses_the_plan_that_makes_it() {
    let desk = Desk::new();
    fs::write(desk.path("host.yaml"), MANIFEST.replace("512MiB", "8GiB")).unwrap();
    let plan = desk.run(&["plan"]);
    assert_eq!((plan.code, plan.stderr.as_str()), (1, ""), "{}", plan.stdout);
    assert!(plan.stdout.contains("× vms.tiny: 8GiB of memory, locked while it runs"), "{}", plan.stdout);
    let before = tree(&desk.path("host"));
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 1);
    assert_eq!(tree(&desk.path("host")), before);
    let manual = MANIFEST.replace("512MiB", "8GiB").replace("start: boot", "start: manual");
    fs::write(desk.path("host.yaml"), manual).unwrap();
    let plan = desk.run(&["plan"]);
    assert!(plan.code == 2 && plan.stdout.contains("! vms.tiny: 8GiB of memory, locked"), "{}", plan.stdout);
    // What runs with less is no start of this plan's.
    fs::write(desk.path("host.yaml"), MANIFEST).unwrap();
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);
    fs::write(desk.path("host.yaml"), MANIFEST.replace("512MiB", "8GiB")).unwrap();
    let plan = desk.run(&["plan"]);
    assert!(plan.code == 2 && plan.stdout.contains("! vms.tiny: 8GiB of memory, locked"), "{}", plan.stdout);
}

/// The second line of each shipped manifest names the recorded host that it can be rehearsed on, or says that none fits.
#[test]
fn a_shipped_manifest_says_which_recorded_host_it_fits() {
    let recorded: Vec<PathBuf> =
        fs::read_dir(repository().join("examples/hosts")).unwrap().map(|e| e.unwrap().path()).collect();
    let plan = |manifest: &PathBuf, host: &PathBuf| {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(host, &dir.path().join("host"));
        let output = gpuvm(&["plan", "-f", manifest.to_str().unwrap(), "--root", "host"], dir.path());
        (output.status.code(), crate::machine::stdout(&output) + &crate::machine::stderr(&output))
    };
    let mut fit = 0;
    for entry in fs::read_dir(repository().join("manifests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().nth(1).unwrap();
        let name = |line: &str| line.split([';', ' ']).next().unwrap().trim_end_matches('.').to_owned();
        match line.strip_prefix("# Rehearse it on a copy of examples/hosts/").map(name) {
            Some(host) => {
                let (code, said) = plan(&path, &repository().join("examples/hosts").join(host));
                assert_eq!(
                    (code, said.contains("  ! ")),
                    (Some(2), line.contains("so the plan warns")),
                    "{line}\n{said}"
                );
                fit += 1;
            }
            None => {
                let why = line
                    .strip_prefix("# No host of examples/hosts fits: none has ")
                    .unwrap_or_else(|| panic!("{line}"));
                for host in &recorded {
                    let (code, said) = plan(&path, host);
                    assert!(code == Some(1) && said.contains("blocked: "), "{line}\n{said}");
                    // What it lacks is what the plan says.
                    let place = why.trim_end_matches('.').split(' ').next_back().unwrap();
                    assert!(said.contains(place), "{place}\n{said}");
                }
            }
        }
    }
    assert!(fit >= 3, "{fit}");
}

#[test]
fn verbs_take_yes_like_an_apply_and_a_guest_of_a_record_is_not_entered() {
    let desk = Desk::new();
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);
    for args in [&["vm", "stop", "tiny", "-y"][..], &["vm", "start", "tiny", "--yes"], &["vm", "restart", "tiny", "-y"]]
    {
        let said = desk.run(args);
        assert_eq!(said.code, 0, "{args:?}: {}", said.stderr);
    }
    for args in [&["vm", "ssh", "tiny"][..], &["vm", "console", "tiny"]] {
        let said = desk.run(args);
        assert_eq!(said.code, 1, "{args:?}");
        assert!(said.stderr.contains("`host` is a recorded host: no guest runs there"), "{}", said.stderr);
    }
    let info = desk.run(&["vm", "info", "tiny"]).stdout;
    assert!(info.contains("agent     not known: the record has no answer of it, and cannot be asked"), "{info}");
    let free = desk.run(&["ip", "check", "--free", "2"]);
    assert_eq!((free.code, free.stdout.as_str()), (3, ""), "an address on stdout would be taken for a free one");
    assert!(free.stderr.starts_with("UNKNOWN: "), "{}", free.stderr);
    let file = desk.run(&["adopt", "file//etc/nothing"]);
    assert!(
        file.code == 1 && file.stderr.contains("the record `host` does not hold `/etc/nothing`"),
        "{}",
        file.stderr
    );
}

#[test]
fn the_card_of_the_manifests_own_vm_is_where_it_belongs() {
    let desk = Desk::new();
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);
    let check = desk.run(&["check", "-f", "host.yaml"]).stdout;
    assert!(check.contains("  ok    holder        the VM tiny has it, to which the manifest gives it"), "{check}");
    assert!(check.contains("verdict  UNKNOWN") && check.contains("not known: reset\n"), "{check}");
    // Who does not know of the manifest, or whose manifest gives it to another VM, is told.
    let bare = desk.run(&["gpu", "explain", "0000:02:00"]);
    assert!(bare.code == 1 && bare.stdout.contains("  FAIL  holder        the VM tiny\n"), "{}", bare.stdout);
    fs::write(desk.path("host.yaml"), MANIFEST.replace("tiny:", "other:")).unwrap();
    let other = desk.run(&["check", "-f", "host.yaml"]);
    assert!(other.code == 1 && other.stdout.contains("  FAIL  holder        the VM tiny\n"), "{}", other.stdout);
    // A name is the manifest's, and what there is is listed.
    let name = desk.run(&["gpu", "explain", "work"]).stderr;
    assert!(name.contains("-f host.yaml") && name.contains("# 0000:02:00 GeForce RTX 4090"), "{name}");
    let list = desk.run(&["gpu", "list", "-f", "host.yaml"]).stdout;
    assert!(list.contains("group 4  boot display\n") && list.contains("group 8  free\n"), "{list}");
    // And a VM of gpuvm's own keeps it when its entry is written anew, or is not written.
    fs::write(desk.path("host.yaml"), "version: 1\n").unwrap();
    let bare = desk.run(&["adopt", "libvirt-domain/tiny"]);
    assert_eq!((bare.code, bare.stdout.as_str()), (1, ""), "{}", bare.stderr);
    assert!(bare.stderr.contains("gave it 0000:02:00") && bare.stderr.contains("use: vfio"), "{}", bare.stderr);
    fs::write(desk.path("host.yaml"), MANIFEST.split("vms:").next().unwrap()).unwrap();
    let entry = desk.run(&["adopt", "libvirt-domain/tiny"]);
    assert!(entry.code == 0 && entry.stdout.contains("gpus: [work]"), "{}{}", entry.stdout, entry.stderr);
}

#[test]
fn an_undo_shows_that_files_go_and_with_v_what_was_in_them() {
    let desk = Desk::new();
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);
    let plan = desk.run(&["undo", "--plan"]).stdout;
    assert!(plan.contains("61-gpuvm-vfio-work.rules: goes, 6 lines (-v shows them)\n"), "{plan}");
    assert!(!plan.contains("GOTO=\"gpuvm_end\""), "{plan}");
    assert!(desk.run(&["undo", "--plan", "-v"]).stdout.contains("-ENV{gpuvm.off}==\"?*\", GOTO=\"gpuvm_end\""));
}

/// Each command that is said to be typed next, up to the end of its line.
fn commands(text: &str) -> Vec<String> {
    let verbs = ["apply", "plan", "undo", "status", "check", "history", "show", "vm ", "gpu ", "ip ", "image ", "init"];
    let all = text.match_indices("gpuvm ").map(|(at, _)| text[at..].split(['\n', '`', ';', '&']).next().unwrap());
    all.filter(|c| verbs.iter().any(|v| c["gpuvm ".len()..].starts_with(v))).map(str::to_owned).collect()
}

#[test]
fn a_command_to_type_next_is_about_the_rehearsed_host_too() {
    let desk = Desk::new();
    let mut hints = 0;
    for (args, says) in [
        (&["init", "-o", "as-is.yaml"][..], "next: "),
        (&["plan"], "apply: "),
        (&["gpu", "explain", "0000:01:00"], "gpuvm apply"),
        (&["apply", "--yes"], "go on, the reboot included: "),
        (&["status"], "go on, the reboot included: "),
        (&["apply", "--yes", "--reboot"], "go back: gpuvm undo"),
        (&["status"], "go back: gpuvm undo"),
        (&["show"], "go back: gpuvm undo"),
        (&["vm", "stop", "tiny"], "go back: gpuvm undo"),
        (&["vm", "logs", "nobody"], "gpuvm vm list"),
        (&["init", "-o", "again.yaml"], "gpuvm plan"),
        (&["undo", "--yes", "--skip", "libvirt-domain"], ""),
        (&["show", "99"], "gpuvm history"),
    ] {
        let said = desk.run(args);
        let text = said.stdout + &said.stderr;
        assert!(text.contains(says), "{args:?} does not say {says}: {text}");
        for command in commands(&text) {
            assert!(command.contains("--root host"), "{args:?}: {command}\n{text}");
            hints += 1;
        }
    }
    assert!(hints >= 12, "{hints}");
}

/// Also where it is shown in a plan: what is approved is what is written.
#[test]
fn a_command_in_a_file_stays_as_the_file_has_it() {
    let desk = Desk::new();
    let content = "see it: gpuvm plan -f /root/host.yaml";
    fs::write(desk.path("host.yaml"), format!("version: 1\nfiles:\n  /etc/hint: {{ content: \"{content}\\n\" }}\n"))
        .unwrap();
    let line = format!("+{content}\n");
    let plan = desk.run(&["plan", "-v"]);
    assert!(plan.code == 2 && plan.stdout.contains(&line), "{}{}", plan.stdout, plan.stderr);
    let apply = desk.run(&["apply", "--yes"]);
    assert!(apply.code == 0 && apply.stdout.contains(&line), "{}{}", apply.stdout, apply.stderr);
    assert_eq!(fs::read_to_string(desk.path("host/root/etc/hint")).unwrap(), format!("{content}\n"));
    let show = desk.run(&["show"]).stdout;
    assert!(show.contains(&line) && show.contains("go back: gpuvm undo --root host"), "{show}");
}

#[test]
fn init_says_where_it_wrote_and_replaces_nothing() {
    let desk = Desk::new();
    let refused = desk.run(&["init"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    for says in ["`host.yaml` is there already, and is not replaced; nothing was written", "`-o FILE`", "`-o -`"] {
        assert!(refused.stderr.contains(says), "{says}: {}", refused.stderr);
    }
    assert_eq!(fs::read_to_string(desk.path("host.yaml")).unwrap(), MANIFEST);
    let wrote = desk.run(&["init", "-o", "new.yaml"]);
    let at = desk.path("new.yaml").canonicalize().unwrap();
    assert_eq!(wrote.code, 0, "{}", wrote.stderr);
    assert!(wrote.stderr.starts_with(&format!("wrote {}\n", at.display())), "{}", wrote.stderr);
    assert!(wrote.stderr.contains("gpuvm plan --root host -f new.yaml\n"), "{}", wrote.stderr);
}

#[test]
fn a_valid_manifest_may_name_what_a_host_does_not_have() {
    let desk = Desk::new();
    let said = desk.run(&["validate"]);
    assert_eq!((said.code, said.stdout.as_str()), (0, "host.yaml is valid\n"), "{}", said.stderr);
    fs::write(desk.path("host.yaml"), MANIFEST.replace("0000:02:00", "0000:0a:00")).unwrap();
    let said = desk.run(&["validate"]);
    assert!(said.code == 1 && said.stdout.contains("× gpus.work: no GPU fits"), "{}", said.stdout);
    assert!(said.stdout.ends_with("host.yaml is not valid on this host\n"), "{}", said.stdout);
    let json = desk.run(&["validate", "--output", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(json.code == 1 && value["problems"] == serde_json::json!([]), "{value}");
    assert_eq!(value["findings"][0]["place"], "gpus.work");
    fs::write(desk.path("host.yaml"), format!("host: another\n{MANIFEST}")).unwrap();
    let said = desk.run(&["validate"]);
    assert!(said.code == 1 && said.stdout.contains("× host: `host.yaml` is for the host `another`"), "{}", said.stdout);
}

#[test]
fn what_is_said_to_be_read_is_there() {
    let desk = Desk::new();
    assert_eq!(desk.run(&["apply", "--yes", "--reboot"]).code, 0);
    let said = desk.run(&["status"]);
    let log = said.stderr.lines().chain(said.stdout.lines()).find_map(|l| l.strip_prefix("log: ")).unwrap().to_owned();
    assert!(desk.path(&log).is_file(), "{log}");
}
