//! What a host can do to a run beside ending it: a full disk, a file system that cannot be written, another gpuvm, damage
//! in gpuvm's own state, signals, a clock that jumps. Each has a clear error and loses nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gpuvm::apply::{ABOUT_FORMAT, About, Allowed, Apply, Order, StateDir};
use gpuvm::host::fixture::Fixture;
use gpuvm::host::{Answer, DeviceUsers, HostError, Initramfs, Probe, Program, Running, Stat, Virtualisation};
use gpuvm::plan::{SavedPlan, Selection, Step};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::machine::{command, copy_tree, fast_folder, gpuvm, repository, stderr, stdout, tree};

const MANIFEST: &str = "tests/cases/nat-network/host.yaml";

struct Host {
    work: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let work = fast_folder();
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &work.path().join("host"));
        // The defaults of vmctl name the manifest where it lies, which is elsewhere for each.
        let manifest = fs::read_to_string(repository().join(MANIFEST)).unwrap();
        fs::write(work.path().join("host.yaml"), manifest + "\nvmctl: { manifest: /root/host.yaml }\n").unwrap();
        Self { work }
    }
    fn root(&self) -> PathBuf {
        self.work.path().join("host")
    }
    fn state(&self) -> PathBuf {
        self.root().join("root/var/lib/gpuvm")
    }
    fn run(&self, args: &[&str]) -> Output {
        gpuvm(&[args, &["--root", "host"]].concat(), self.work.path())
    }
    fn apply(&self) -> Output {
        self.run(&["apply", "--yes", "--reboot"])
    }
    /// Everything went well in the end: nothing differs from a run that nothing happened to.
    fn is_as_undisturbed(&self) {
        let other = Host::new();
        assert!(other.apply().status.success());
        assert_eq!(self.run(&["plan"]).status.code(), Some(0));
        assert_eq!(tree(&self.root()), tree(&other.root()));
    }
}

/// What an error says, without the lines that it was broken into.
fn said_by(output: &Output) -> String {
    stderr(output).replace("\n  │ ", " ")
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not root: mount namespaces cannot be made, this is not shown");
    }
    root
}

/// Runs a script in a mount namespace of its own, in the host's folder, with gpuvm as `$1`.
fn in_namespace(host: &Host, script: &str) -> Output {
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-euc", script, "bash", env!("CARGO_BIN_EXE_gpuvm")])
        .current_dir(host.work.path())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_stops_a_run_which_goes_on_when_there_is_room() {
    if !is_root() {
        return;
    }
    let mut stopped = 0;
    for kilobytes in [4, 8, 12, 16, 24, 32, 48, 64, 96] {
        let host = Host::new();
        // gpuvm's own state on a disk of this size; then the same disk with room.
        let script = format!(
            "mkdir -p host/root/var/lib/gpuvm; mount -t tmpfs -o mode=700,size={kilobytes}k none host/root/var/lib/gpuvm
             \"$1\" apply --yes --reboot --root host && code=0 || code=$?
             echo \"first $code\"
             [ $code = 0 ] || {{
               \"$1\" plan --root host >/dev/null && plan=0 || plan=$?
               echo \"plan $plan\"
               mount -o remount,size=10m host/root/var/lib/gpuvm
               \"$1\" apply --resume --root host || \"$1\" apply --yes --reboot --root host
             }}
             cp -a host/root/var/lib/gpuvm kept; umount host/root/var/lib/gpuvm; cp -a kept/. host/root/var/lib/gpuvm"
        );
        let out = in_namespace(&host, &script);
        let said = format!("{}{}", stdout(&out), stderr(&out));
        assert!(out.status.success(), "{kilobytes} KiB: {said}");
        if said.contains("first 1") {
            stopped += 1;
            assert!(said.contains("No space left on device") && said.contains("make room"), "{kilobytes} KiB: {said}");
            assert!(["plan 0", "plan 2", "plan 3"].iter().any(|p| said.contains(p)), "{kilobytes} KiB: {said}");
        }
        host.is_as_undisturbed();
    }
    assert!(stopped >= 4, "only {stopped} of the disks were full");
}

#[test]
fn a_full_disk_under_the_host_itself_stops_a_run_which_goes_on_when_there_is_room() {
    if !is_root() {
        return;
    }
    let mut stopped = 0;
    for free in [8, 16, 40, 80, 160, 320] {
        let host = Host::new();
        let script = format!(
            "mkdir disk; mount -t tmpfs none disk; cp -a host disk/host; cd disk
             used=$(df -k --output=used . | tail -1); mount -o remount,size=$((used + {free}))k $PWD
             \"$1\" apply -f ../host.yaml --yes --reboot --root host && code=0 || code=$?
             echo \"first $code\"
             mount -o remount,size=100m $PWD
             [ $code = 0 ] || \"$1\" apply --resume --root host || \"$1\" apply -f ../host.yaml --yes --reboot --root host
             rm -rf ../host; cp -a host ../host"
        );
        let out = in_namespace(&host, &script);
        let said = format!("{}{}", stdout(&out), stderr(&out));
        assert!(out.status.success(), "{free} KiB: {said}");
        if said.contains("first 1") {
            stopped += 1;
            assert!(said.contains("No space left on device"), "{free} KiB: {said}");
        }
        host.is_as_undisturbed();
    }
    assert!(stopped >= 2, "only {stopped} of the disks were full");
}

#[test]
fn a_state_folder_that_cannot_be_written_is_told_before_anything_is_changed() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let before = tree(&host.root());
    let out = in_namespace(
        &host,
        "mkdir -p host/root/var/lib/gpuvm; mount -t tmpfs -o mode=700,ro none host/root/var/lib/gpuvm
         \"$1\" apply --yes --reboot --root host",
    );
    let said = said_by(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("Read-only file system") && said.contains("remount,rw"), "{said}");
    assert_eq!(tree(&host.root()), before);

    // No permission: as a user who may read the host and not write it.
    fs::set_permissions(host.work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = host.work.path().join("gpuvm");
    fs::copy(env!("CARGO_BIN_EXE_gpuvm"), &program).unwrap();
    let out = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["apply", "--yes", "--reboot", "--root", "host"])
        .current_dir(host.work.path())
        .output()
        .unwrap();
    let said = said_by(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("not permitted") && said.contains("run gpuvm as root"), "{said}");
    assert_eq!(tree(&host.root()), before);
}

/// A process that stopped itself at a place that it passes.
struct Paused(Pid, std::process::Child);

fn pause_at(host: &Host, place: u64) -> Option<Paused> {
    let mut child = command(&["apply", "--yes", "--reboot", "--root", "host"], host.work.path())
        .env("GPUVM_PAUSE_AT", place.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    match waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap() {
        WaitStatus::Stopped(..) => Some(Paused(pid, child)),
        _ => {
            let _ = child.wait();
            None
        }
    }
}

#[test]
fn a_signal_stops_a_run_between_two_steps_and_a_lost_terminal_does_not() {
    let mut stopped = 0;
    for place in [10, 40, 70, 100] {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let host = Host::new();
            let Some(Paused(pid, mut child)) = pause_at(&host, place) else { panic!("{place} is past the end") };
            if signal == Signal::SIGHUP {
                // The terminal is gone with all that is written to it.
                drop((child.stdout.take(), child.stderr.take()));
            }
            kill(pid, signal).unwrap();
            kill(pid, Signal::SIGCONT).unwrap();
            let out = child.wait_with_output().unwrap();
            let said = format!("{}{}", stdout(&out), stderr(&out));
            if signal == Signal::SIGHUP {
                assert_eq!(out.status.code(), Some(0), "{place}: {said}");
            } else {
                assert_eq!(out.status.code(), Some(1), "{place}: {said}");
                assert!(said.contains("was stopped between two steps"), "{place}: {said}");
                assert!(said.contains("gpuvm apply --root host --resume"), "{place}: {said}");
                let journal = fs::read_to_string(host.state().join("runs/1/journal.jsonl")).unwrap_or_default();
                let last = journal.lines().last().unwrap_or_default();
                assert!(!last.contains("\"state\":\"begins\""), "a step was left in the middle: {last}");
                stopped += 1;
                assert_eq!(host.run(&["plan"]).status.code(), Some(2));
                assert_eq!(host.run(&["apply", "--resume"]).status.code(), Some(0));
            }
            host.is_as_undisturbed();
        }
    }
    assert_eq!(stopped, 8);
}

#[test]
fn of_two_at_once_one_does_it_and_the_other_says_so() {
    let host = Host::new();
    let Some(Paused(pid, child)) = pause_at(&host, 40) else { panic!("it went on") };
    let before = tree(&host.root());
    for verb in [&["apply", "--yes", "--reboot"][..], &["apply", "--resume"], &["apply", "--abandon"]] {
        let second = host.run(verb);
        assert_eq!(second.status.code(), Some(1));
        assert!(stderr(&second).contains("run 1 is at work"), "{}", stderr(&second));
    }
    let plan = host.run(&["plan"]);
    assert!(stderr(&plan).contains("run 1 is at work"), "{}", stderr(&plan));
    assert_eq!(tree(&host.root()), before);
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    host.is_as_undisturbed();

    // Both begin in the same moment: whoever comes second is refused or finds nothing to do.
    for _ in 0..5 {
        let host = Host::new();
        let start = || {
            command(&["apply", "--yes", "--reboot", "--root", "host"], host.work.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let codes: Vec<Option<i32>> =
            [start(), start()].map(|c| c.wait_with_output().unwrap().status.code()).into_iter().collect();
        assert!(codes.contains(&Some(0)), "{codes:?}");
        assert!(codes.iter().all(|c| matches!(c, Some(0 | 1 | 4))), "{codes:?}");
        host.is_as_undisturbed();
    }
}

#[test]
fn a_damaged_ledger_is_left_alone_and_comes_back_from_the_last_run() {
    let host = Host::new();
    assert!(host.apply().status.success());
    let ledger = host.state().join("ledger.json");
    let good = fs::read(&ledger).unwrap();
    let manifest = host.work.path().join("host.yaml");
    let more = fs::read_to_string(&manifest).unwrap() + "modules: [br_netfilter]\n";
    fs::write(&manifest, more).unwrap();
    assert!(host.apply().status.success());
    let before = tree(&host.root());
    let newer = String::from_utf8(fs::read(&ledger).unwrap()).unwrap().replacen("\"format\":1", "\"format\":2", 1);
    for (damage, why) in [
        (good[..good.len() / 2].to_vec(), "EOF"),
        (vec![0; 512], "expected value"),
        (Vec::new(), "EOF"),
        (newer.into_bytes(), "its format is 2"),
    ] {
        fs::write(&ledger, &damage).unwrap();
        for verb in [&["plan"][..], &["apply", "--yes", "--reboot"], &["apply", "--resume"]] {
            let out = host.run(verb);
            let said = said_by(&out);
            assert_eq!(out.status.code(), Some(1), "{said}");
            assert!(said.contains("cannot be understood") && said.contains(why), "{said}");
        }
        assert_eq!(fs::read(&ledger).unwrap(), damage, "it is left as it is");
        assert_eq!(tree(&host.root()), before);
    }
    // The way back that the message names: as it was before the last run, of which the plan then knows nothing.
    fs::copy(host.state().join("runs/2/ledger.json"), &ledger).unwrap();
    let plan = host.run(&["plan"]);
    assert_eq!(plan.status.code(), Some(0), "{}{}", stdout(&plan), stderr(&plan));
}

#[test]
fn a_torn_or_damaged_journal_is_told_apart() {
    let cut = |place: u64, damage: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let host = Host::new();
        let died = command(&["apply", "--yes", "--reboot", "--root", "host"], host.work.path())
            .env("GPUVM_DIE_AT", place.to_string())
            .output()
            .unwrap();
        assert!(!died.status.success());
        let journal = host.state().join("runs/1/journal.jsonl");
        let bytes = fs::read(&journal).unwrap();
        fs::write(&journal, damage(bytes)).unwrap();
        host
    };
    // Torn at any byte of its last line: goes on.
    for less in [1, 10, 40] {
        let host = cut(90, &|bytes| bytes[..bytes.len() - less].to_vec());
        assert_eq!(host.run(&["plan"]).status.code(), Some(2));
        let resumed = host.run(&["apply", "--resume"]);
        assert_eq!(resumed.status.code(), Some(0), "{}", stderr(&resumed));
        host.is_as_undisturbed();
    }
    // Damaged in the middle, or of a newer gpuvm: not taken up, and closed by the word for that.
    let broken = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replacen("\"key\"", "\"kez\"", 1).into_bytes();
    let newer =
        |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replacen("\"format\":1", "\"format\":9", 1).into_bytes();
    for (damage, why) in [(&broken as &dyn Fn(Vec<u8>) -> Vec<u8>, "line 2"), (&newer, "its format is 9")] {
        let host = cut(90, damage);
        let resumed = host.run(&["apply", "--resume"]);
        assert_eq!(resumed.status.code(), Some(1));
        let said = said_by(&resumed);
        assert!(said.contains(why) && said.contains("--abandon"), "{said}");
        assert_eq!(host.run(&["apply", "--abandon"]).status.code(), Some(0));
        assert_eq!(host.apply().status.code(), Some(0));
        host.is_as_undisturbed();
    }
}

/// Every file of a folder gets this time.
fn touch(dir: &Path, time: SystemTime) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap();
        if kind.is_dir() {
            touch(&path, time);
        } else if kind.is_file() {
            fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        }
    }
}

#[test]
fn a_clock_that_jumps_does_not_matter() {
    let host = Host::new();
    let before = stdout(&host.run(&["plan"]));
    let hundred_years = Duration::from_secs(100 * 365 * 86400);
    for time in [SystemTime::UNIX_EPOCH, SystemTime::now() + hundred_years] {
        touch(&host.root(), time);
        assert_eq!(stdout(&host.run(&["plan"])), before);
    }
    // In the middle of a run, too.
    let Some(Paused(pid, child)) = pause_at(&host, 60) else { panic!("it went on") };
    touch(&host.root(), SystemTime::UNIX_EPOCH);
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    touch(&host.root(), SystemTime::now() + hundred_years);
    host.is_as_undisturbed();
}

/// A recorded host whose libvirt answers so many times that something is changed, and then not any more.
struct Frozen {
    below: Fixture,
    answers: usize,
    fails: fn() -> HostError,
}

impl Frozen {
    fn of_libvirt(step: &Step) -> bool {
        matches!(
            step,
            Step::Pool { .. }
                | Step::Volume(_)
                | Step::Network { .. }
                | Step::DefineDomain { .. }
                | Step::StartDomain { .. }
        )
    }
}

impl Probe for Frozen {
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
        self.below.read(path)
    }
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError> {
        self.below.stat(path)
    }
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
        self.below.list(dir)
    }
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError> {
        self.below.link(path)
    }
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<gpuvm::host::Output>, HostError> {
        self.below.query(program, args)
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        if self.answers == 0 { Err((self.fails)()) } else { self.below.virtualisation() }
    }
    fn initramfs(&self, path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
        self.below.initramfs(path)
    }
    fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError> {
        self.below.device_users()
    }
    fn guest_agent(&self, vm: &gpuvm::types::DomainName) -> Result<Answer<Arc<gpuvm::host::GuestAgent>>, HostError> {
        self.below.guest_agent(vm)
    }
}

impl gpuvm::host::Host for Frozen {
    fn execute(&mut self, step: &Step, running: &mut Running<'_>) -> Result<(), HostError> {
        if Self::of_libvirt(step) {
            self.answers = self.answers.checked_sub(1).ok_or_else(self.fails)?;
        }
        self.below.execute(step, running)
    }
    fn tidy(&mut self, path: &Path) -> Result<(), HostError> {
        self.below.tidy(path)
    }
    fn remove_folder(&mut self, path: &Path) -> Result<bool, HostError> {
        self.below.remove_folder(path)
    }
}

#[test]
fn a_libvirt_that_stops_or_freezes_in_the_middle_ends_the_run_which_goes_on_later() {
    let stopped = || HostError::Libvirt("Failed to connect socket to '/run/libvirt/libvirt-sock'".to_owned());
    let frozen = || HostError::Timeout { what: "libvirt".to_owned(), limit: Duration::from_secs(120) };
    let mut ended = 0;
    for fails in [stopped as fn() -> HostError, frozen] {
        for answers in 1..8 {
            let host = Host::new();
            assert_eq!(host.run(&["plan", "--out", "saved"]).status.code(), Some(2));
            let saved = SavedPlan::read(&host.work.path().join("saved")).unwrap();
            let (manifest, approved) = (saved.manifest.clone(), saved.plan.clone());
            let loaded = gpuvm::manifest::reload(&manifest.path, manifest.text, Default::default()).unwrap();
            let mut order: Order = saved.into();
            order.allowed = Allowed { reboot: true };
            let about = About {
                format: ABOUT_FORMAT,
                at: String::new(),
                asked: "apply".to_owned(),
                undo: None,
                verb: None,
                plan: approved.clone(),
                edited: None,
            };
            let mut state = StateDir::open(host.state()).unwrap();
            state.lock().unwrap();
            let run = state.new_run(&order, &about).unwrap();
            let mut below = Frozen { below: Fixture::open(&host.root()).unwrap(), answers, fails };
            let apply = Apply {
                plan: &|probe, past| gpuvm::cli::plan_now(&loaded, &Selection::default(), probe, past),
                state: &mut state,
                run,
                allowed: order.allowed,
                policies: &[],
                clock: &jiff::Timestamp::now,
                secrets: &Default::default(),
                stop: &|| false,
                tell: &mut |_| {},
            };
            let result = apply.run(&mut below, &approved);
            let nothing_left = below.answers > 0;
            drop((below, state));
            let Err(error) = result else {
                assert!(nothing_left, "it went on without libvirt");
                break;
            };
            ended += 1;
            let said = error.to_string();
            assert!(said.contains("libvirt"), "{answers}: {said}");
            // How it left what libvirt has no part in is known, for an undo.
            let record = host.state().join(format!("runs/{run}"));
            let before = fs::read_to_string(record.join("before.jsonl")).unwrap();
            let after: serde_json::Value =
                serde_json::from_slice(&fs::read(record.join("after.json")).unwrap()).unwrap();
            let left: Vec<String> = after["places"].as_array().unwrap().iter().map(|p| p[0].to_string()).collect();
            for line in before.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()) {
                let Some(place) = line.get("place").map(ToString::to_string) else { continue };
                let libvirts = ["pool", "volume", "network", "domain"].iter().any(|k| line["place"].get(k).is_some());
                assert!(libvirts || left.contains(&place), "{answers}: {place}");
            }
            // libvirt is back.
            let plan = host.run(&["plan"]);
            assert!(matches!(plan.status.code(), Some(0 | 2)), "{}", stderr(&plan));
            assert!(stderr(&plan).contains("gpuvm apply --root host --resume"), "{}", stderr(&plan));
            let resumed = host.run(&["apply", "--resume"]);
            assert_eq!(resumed.status.code(), Some(0), "{answers}: {}{}", stdout(&resumed), stderr(&resumed));
            host.is_as_undisturbed();
        }
    }
    assert!(ended >= 6, "{ended}");
    eprintln!("libvirt stopped or frozen at {ended} places of a run: no loss");
}
