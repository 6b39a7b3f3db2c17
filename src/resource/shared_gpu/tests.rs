//! The shipped script, run as its units run it, on a folder that plays sysfs. What is played: the kernel's part of a write
//! to sysfs, systemd and Docker; files, locks and limits are real.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::*;
use crate::facts::tests::display;
use crate::resource::tests::PlayedRoot;

const FUNCTIONS: [(&str, &str, &str); 2] =
    [("0000:02:00.0", "10de:2684", "nvidia"), ("0000:02:00.1", "10de:22ba", "snd_hda_intel")];
const HOST: &str = "nvidia snd_hda_intel";
const VFIO: &str = "vfio-pci vfio-pci";
/// What runs at the beginning, and again at the end; `idle.service` is named and does not run.
const RUNS: &str = "comfy ollama.service";

/// Counts what changes something, and kills the script there.
const COUNT: &str = "n=$(($(cat ROOT/count 2> /dev/null || echo 0) + 1))\necho $n > ROOT/count\n\
    [ $n != \"$(cat ROOT/kill-at 2> /dev/null)\" ] || { kill -s KILL -- -$(cat ROOT/pid); kill -KILL 0; }\n";
const SYSTEMCTL: &str = "case $1 in\n\
    is-active) [ ! -e ROOT/mute ] || exit 1; [ -e ROOT/runs/$3 ] && echo active || echo inactive; exit ;;\n\
    esac\nCOUNT\ncase $1 in\n\
    stop) rm -f ROOT/runs/$3 ;;\n\
    start) [ ! -e ROOT/broken/$3 ] || exit 1; touch ROOT/runs/$3 ;;\nesac\n";
const DOCKER: &str = "case $1 in\n\
    ps) for one in ROOT/runs/*; do case $one in *.service) ;; *) echo \"${one##*/} running\" ;; esac; done; exit ;;\n\
    esac\nCOUNT\ncase $1 in\nstop) rm -f ROOT/runs/$2 ;;\nstart) touch ROOT/runs/$2 ;;\nesac\n";
/// The override is kept; a function that leaves its driver has none; one that is probed gets the driver of its override,
/// else its own.
const KERNEL: &str = "COUNT\ncase $2 in\n\
    */driver_override) printf '%s\\n' \"$1\" > \"$2\" ;;\n\
    */unbind) rm -f ROOT/sys/bus/pci/devices/$1/driver\n\
      [ ! -p ROOT/stuck ] || [ $1 != 0000:02:00.1 ] || read -r never < ROOT/stuck ;;\n\
    */drivers_probe) read -r driver < ROOT/sys/bus/pci/devices/$1/driver_override\n\
      [ -n \"$driver\" ] || driver=$(cat ROOT/own/$1)\n\
      ln -s ../../drivers/$driver ROOT/sys/bus/pci/devices/$1/driver ;;\nesac\n";

struct Machine {
    dir: PlayedRoot,
}

impl std::ops::Deref for Machine {
    type Target = PlayedRoot;
    fn deref(&self) -> &PlayedRoot {
        &self.dir
    }
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: PlayedRoot::new() };
        for (address, ids, driver) in FUNCTIONS {
            let real = machine.at(&format!("sys/devices/pci0000:00/0000:00:12.0/{address}"));
            std::fs::create_dir_all(&real).unwrap();
            std::fs::create_dir_all(machine.at("sys/bus/pci/devices")).unwrap();
            symlink(&real, machine.at(&format!("sys/bus/pci/devices/{address}"))).unwrap();
            let (vendor, device) = ids.split_once(':').unwrap();
            let file = |name: &str| format!("sys/bus/pci/devices/{address}/{name}");
            machine.write(&file("vendor"), format!("0x{vendor}\n"));
            machine.write(&file("device"), format!("0x{device}\n"));
            machine.write(&file("driver_override"), "(null)\n");
            machine.write(&file("config"), [0xde, 0x10, 0x84, 0x26]);
            machine.write(&format!("own/{address}"), driver);
            std::fs::create_dir_all(machine.at(&format!("sys/bus/pci/drivers/{driver}"))).unwrap();
            symlink(format!("../../drivers/{driver}"), real.join("driver")).unwrap();
            symlink("../../../../kernel/iommu_groups/9", real.join("iommu_group")).unwrap();
        }
        std::fs::create_dir_all(machine.at("sys/bus/pci/drivers/vfio-pci")).unwrap();
        machine.write("sys/bus/pci/devices/0000:02:00.0/drm/card1/uevent", "MAJOR=226\nDEVNAME=dri/card1\n");
        machine.write("proc/driver/nvidia/gpus/0000:02:00.0/information", "Model: x\nDevice Minor: \t 3\n");
        machine.write("proc/uptime", "1000.12 3000.00\n");
        for one in RUNS.split(' ') {
            machine.write(&format!("runs/{one}"), "");
        }
        for (name, text) in [("systemctl", SYSTEMCTL), ("docker", DOCKER), ("kernel", KERNEL), ("modprobe", "exit 1\n")]
        {
            machine.program(name, text);
        }
        // What the script itself does to files counts as well.
        for name in ["mv", "rm"] {
            machine.program(name, &format!("COUNT\nexec /usr/bin/{name} \"$@\"\n"));
        }
        let gpu = SharedGpu {
            name: "spare".to_owned(),
            slot: "0000:02:00".parse().unwrap(),
            companions: BTreeSet::new(),
            card: None,
            vouched: Vouched::default(),
            release: ["ollama.service", "idle.service", "docker:comfy"].map(|r| r.parse().unwrap()).to_vec(),
        };
        let functions = FUNCTIONS.map(|(address, id, _)| PciFunction {
            address: address.parse().unwrap(),
            id: id.parse().unwrap(),
            ..display()
        });
        machine.write("etc/gpuvm/shared/spare", gpu.text(&functions.iter().collect::<Vec<_>>()));
        machine
    }

    fn program(&self, name: &str, text: &str) {
        let root = self.dir.path().display().to_string();
        let real = |text: &str| text.replace("rm -f", "/usr/bin/rm -f").replace("ROOT", &root);
        let text = if name == "mv" || name == "rm" { text.replace("ROOT", &root) } else { real(text) };
        self.dir.program(name, &text.replace("COUNT", &real(COUNT)));
    }

    /// What the unit would say: whether it succeeded, and its last line.
    fn run(&self, words: &str) -> (bool, String) {
        let root = self.dir.path().display().to_string();
        let mut text = SCRIPT.1.replace("PATH=/usr/sbin", &format!("PATH={root}/bin:/usr/sbin"));
        for folder in ["/sys", "/etc", "/var", "/run", "/proc"] {
            text = text.replace(&format!("={folder}"), &format!("={root}{folder}"));
        }
        let write = "printf '%s\\n' \"$1\" > \"$2\"\n    ) 2> /dev/null &";
        assert_eq!(text.matches(write).count(), 1, "the one place that writes to sysfs");
        let text = text
            .replace(write, "kernel \"$1\" \"$2\"\n    ) 2> /dev/null &")
            .replace("write_limit=30", "write_limit=1");
        self.write("shared-gpu", text);
        std::fs::set_permissions(self.at("shared-gpu"), std::fs::Permissions::from_mode(0o755)).unwrap();
        // In a process group of its own, which is killed as a whole. What is left behind may hold the pipes: a file.
        let log = std::fs::File::create(self.at("log")).unwrap();
        #[allow(clippy::disallowed_methods)] // a test runs what systemd would run
        let mut child = std::os::unix::process::CommandExt::process_group(&mut Command::new("/bin/sh"), 0)
            .args(["-c", "echo $$ > \"$0/pid\"; exec \"$0/shared-gpu\" $1", &root, words])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let done = child.wait().unwrap().success();
        (done, self.read("log").lines().last().unwrap_or_default().to_owned())
    }
    fn done(&self, words: &str) {
        let (done, said) = self.run(words);
        assert!(done, "{words}: {said}");
    }
    fn refused(&self, words: &str) -> String {
        let (done, said) = self.run(words);
        assert!(!done, "{words} succeeds: {said}");
        assert_eq!(self.read("run/gpuvm/shared/why/spare").trim(), said);
        said
    }

    fn drivers(&self) -> String {
        let driver = |(address, ..): (&str, &str, &str)| {
            let link = std::fs::read_link(self.at(&format!("sys/bus/pci/devices/{address}/driver")));
            link.map_or("none".to_owned(), |l| l.file_name().unwrap().to_str().unwrap().to_owned())
        };
        FUNCTIONS.map(driver).join(" ")
    }
    fn runs(&self) -> String {
        let mut all: Vec<String> = std::fs::read_dir(self.at("runs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all.join(" ")
    }
    fn state(&self) -> String {
        self.read("var/lib/gpuvm/shared/spare")
    }
    fn claim(&self) -> String {
        self.read("run/gpuvm/shared/claim/spare")
    }
    /// libvirt's hook does this when a VM has ended.
    fn ended(&self) {
        let _ = std::fs::remove_file(self.at("run/gpuvm/shared/claim/spare"));
    }
    fn is_the_hosts(&self) {
        assert_eq!((self.drivers().as_str(), self.runs().as_str()), (HOST, RUNS));
        assert_eq!((self.state(), self.claim()), (String::new(), String::new()));
    }
    fn is_the_vms(&self) {
        assert_eq!((self.drivers().as_str(), self.runs().as_str()), (VFIO, ""));
        assert!(self.state().contains("owed ollama.service\nowed docker:comfy\n"), "{}", self.state());
        assert_eq!(self.claim(), "desktop 1000\n");
    }
    /// A process has a node open.
    fn opens(&self, node: &str) {
        self.write("proc/4242/comm", "steam\n");
        self.write("proc/4242/cgroup", "0::/user.slice/app-steam.scope\n");
        std::fs::create_dir_all(self.at("proc/4242/fd")).unwrap();
        let _ = std::fs::remove_file(self.at("proc/4242/fd/7"));
        symlink(node, self.at("proc/4242/fd/7")).unwrap();
    }
}

#[test]
fn it_goes_over_as_a_whole_and_what_ran_before_runs_again_and_nothing_else() {
    let machine = Machine::new();
    machine.done("take spare:desktop");
    machine.is_the_vms();
    assert!(machine.state().starts_with("vm desktop\ndriver 0000:02:00.0 nvidia\n"), "{}", machine.state());
    // Once more changes nothing: a start that libvirt tries again.
    machine.done("take spare:desktop");
    machine.is_the_vms();
    // As long as it has it, nobody gives it back.
    machine.done("give spare");
    machine.is_the_vms();
    machine.ended();
    machine.done("give spare");
    machine.is_the_hosts();
    machine.done("give spare");
    machine.is_the_hosts();
}

#[test]
fn a_second_vm_is_refused_by_the_name_of_the_first() {
    let machine = Machine::new();
    machine.done("take spare:desktop");
    let why = machine.refused("take spare:other");
    assert_eq!(why, "VM desktop has spare. To shut that down first: gpuvm vm start other --swap");
    machine.is_the_vms();
    // Between the end of one and the start of the other nothing need be given back.
    machine.ended();
    machine.done("take spare:other");
    assert_eq!((machine.drivers().as_str(), machine.claim().as_str()), (VFIO, "other 1000\n"));
    machine.ended();
    machine.done("give spare");
    machine.is_the_hosts();
}

#[test]
fn whoever_else_uses_it_is_named_and_left_alone_and_the_host_has_all_back() {
    for node in ["/dev/dri/card1", "/dev/nvidia3", "/dev/vfio/9"] {
        let machine = Machine::new();
        machine.opens(node);
        let why = machine.refused("take spare:desktop");
        assert!(why.ends_with("under release: steam (pid 4242, app-steam.scope)"), "{why}");
        machine.is_the_hosts();
        machine.opens("/dev/dri/card0");
        machine.done("take spare:desktop");
        machine.is_the_vms();
    }
    // Without the number of the card, it may be any of NVIDIA's nodes.
    let machine = Machine::new();
    machine.opens("/dev/nvidia0");
    std::fs::remove_dir_all(machine.at("proc/driver")).unwrap();
    assert!(machine.refused("take spare:desktop").contains("steam"));
    machine.is_the_hosts();
    machine.opens("/dev/nvidiactl");
    machine.done("take spare:desktop");
    machine.is_the_vms();
}

#[test]
fn what_cannot_go_over_is_refused_before_anything_is_stopped() {
    let untouched = |spoil: &dyn Fn(&Machine), reason: &str| {
        let machine = Machine::new();
        spoil(&machine);
        let why = machine.refused("take spare:desktop");
        assert!(why.contains(reason), "{why}");
        machine.is_the_hosts();
        assert_eq!(machine.read("count").trim(), "1", "no more than the reason of before was taken away");
    };
    let silent: &dyn Fn(&Machine) = &|m| m.write("sys/bus/pci/devices/0000:02:00.1/config", [0xff; 64]);
    untouched(silent, "(0000:02:00.1) does not answer: it reads as ones");
    untouched(
        &|m| m.write("sys/bus/pci/devices/0000:02:00.0/device", "0x2204\n"),
        "is not the device of spare any more",
    );
    untouched(
        &|m| m.write("mute", ""),
        "whether ollama.service runs cannot be told, so that it cannot be stopped for spare: see systemctl status ollama",
    );
    let none: &dyn Fn(&Machine) = &|m| std::fs::remove_dir(m.at("sys/bus/pci/drivers/vfio-pci")).unwrap();
    untouched(none, "vfio-pci is not there");
    let machine = Machine::new();
    for words in ["take ../spare:desktop", "take spare:", "take spare", "give", "take .x:y", "free spare"] {
        assert!(!machine.run(words).0, "{words}");
        machine.is_the_hosts();
    }
    assert!(machine.run("take unknown:desktop").1.contains("does not say what unknown is"));
}

#[test]
fn a_driver_that_never_lets_go_is_left_behind_with_the_reason() {
    let machine = Machine::new();
    nix::unistd::mkfifo(&machine.at("stuck"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let begun = std::time::Instant::now();
    let why = machine.refused("take spare:desktop");
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    assert!(why.contains("/0000:02:00.1/driver/unbind has not come back from the kernel within 1 s"), "{why}");
    // The function that had moved is the host's again, what was stopped runs, and no VM has anything.
    assert_eq!((machine.drivers().as_str(), machine.runs().as_str()), ("nvidia none", RUNS));
    assert!(machine.state().contains("\nleft ") && machine.claim().is_empty(), "{}", machine.state());
    // Nothing is begun anew on top of it.
    let again = machine.refused("take spare:desktop");
    assert!(again.contains("an earlier write for 0000:02:00.1 has not come back"), "{again}");
    assert_eq!(machine.runs(), RUNS);
    // The kernel comes back after all: the next word mends it.
    std::fs::write(machine.at("stuck"), "\n").unwrap();
    std::fs::remove_file(machine.at("stuck")).unwrap();
    let lock = std::fs::File::open(machine.at("run/gpuvm/shared/write/0000:02:00.1")).unwrap();
    lock.lock().unwrap();
    drop(lock);
    machine.done("give spare");
    machine.is_the_hosts();
}

#[test]
fn a_start_that_was_cut_off_keeps_it_for_a_while_and_a_vm_that_runs_for_ever() {
    let machine = Machine::new();
    machine.done("take spare:desktop");
    machine.write("proc/uptime", "1119.00 3000.00\n");
    machine.done("give spare");
    machine.is_the_vms();
    machine.write("proc/uptime", "1121.00 3000.00\n");
    // Its QEMU runs, or somebody has the group open.
    machine.write("run/libvirt/qemu/desktop.pid", "77");
    machine.write("proc/77/comm", "qemu-system-x86\n");
    machine.refused("take spare:other");
    std::fs::remove_dir_all(machine.at("proc/77")).unwrap();
    machine.opens("/dev/vfio/9");
    machine.refused("take spare:other");
    machine.done("give spare");
    machine.is_the_vms();
    std::fs::remove_dir_all(machine.at("proc/4242")).unwrap();
    machine.done("give spare");
    machine.is_the_hosts();
    // Who knows that the VM has ended need not wait.
    machine.done("take spare:desktop");
    machine.done("give spare:other");
    assert_eq!(machine.drivers(), VFIO);
    // Unless it runs all the same, as one that was started meanwhile.
    machine.write("proc/77/comm", "qemu-system-x86\n");
    machine.done("give spare:desktop");
    assert_eq!((machine.drivers().as_str(), machine.claim().as_str()), (VFIO, "desktop 1121\n"));
    std::fs::remove_dir_all(machine.at("proc/77")).unwrap();
    machine.done("give spare:desktop");
    machine.is_the_hosts();
}

#[test]
fn the_time_of_a_start_begins_when_all_is_handed_over() {
    let machine = Machine::new();
    let slow = SYSTEMCTL.replace("stop) ", "stop) echo '1090.50 3000.00' > ROOT/proc/uptime; ");
    machine.program("systemctl", &slow);
    machine.done("take spare:desktop");
    assert_eq!(machine.claim(), "desktop 1090\n");
    machine.write("proc/uptime", "1209.00 3000.00\n");
    machine.done("give spare");
    assert_eq!(machine.drivers(), VFIO);
}

#[test]
fn a_card_that_others_bind_by_its_id_has_not_come_back() {
    let machine = Machine::new();
    machine.done("take spare:desktop");
    machine.ended();
    machine.write("own/0000:02:00.0", "vfio-pci");
    let why = machine.refused("give spare");
    assert!(why.starts_with("0000:02:00.0 went to vfio-pci instead of nvidia: something else binds it"), "{why}");
    assert!(machine.state().contains("\nleft 0000:02:00.0 went to vfio-pci"), "{}", machine.state());
    assert_eq!((machine.drivers().as_str(), machine.runs().as_str()), ("vfio-pci snd_hda_intel", RUNS));
    machine.write("own/0000:02:00.0", "nvidia");
    machine.done("give spare");
    machine.is_the_hosts();
}

#[test]
fn a_module_that_never_loads_is_left_behind_and_holds_nothing() {
    let machine = Machine::new();
    nix::unistd::mkfifo(&machine.at("module"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::remove_dir(machine.at("sys/bus/pci/drivers/vfio-pci")).unwrap();
    // Deaf to signals, as in the kernel.
    machine.program("modprobe", "trap '' TERM\nread -r never < ROOT/module\n");
    let begun = std::time::Instant::now();
    assert!(machine.refused("take spare:desktop").contains("vfio-pci is not there"));
    // It has not the lock of the hand-over, so the next one is not kept waiting.
    assert!(machine.refused("take spare:desktop").contains("vfio-pci is not there"));
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    machine.is_the_hosts();
    std::fs::write(machine.at("module"), "\n").unwrap();
    let lock = std::fs::File::open(machine.at("run/gpuvm/shared/write/module-vfio-pci")).unwrap();
    lock.lock().unwrap();
}

#[test]
fn what_a_service_leaves_running_does_not_hold_the_hand_over() {
    let machine = Machine::new();
    nix::unistd::mkfifo(&machine.at("daemon"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let forks = SYSTEMCTL.replace("stop) ", "stop) (read -r never < ROOT/daemon) > /dev/null 2>&1 & ");
    machine.program("systemctl", &forks);
    machine.done("take spare:desktop");
    let lock = std::fs::File::open(machine.at("run/gpuvm/shared/lock/spare")).unwrap();
    let free = lock.try_lock();
    std::fs::write(machine.at("daemon"), "\n").unwrap();
    assert!(free.is_ok(), "{free:?}");
}

#[test]
fn without_docker_nothing_of_it_runs_and_one_that_does_not_answer_is_named() {
    let machine = Machine::new();
    let refuses = DOCKER.replace("ps) ", "ps) exit 1; ");
    machine.program("docker", &refuses);
    std::fs::remove_file(machine.at("runs/comfy")).unwrap();
    machine.done("take spare:desktop");
    assert!(machine.state().contains("owed ollama.service\n") && !machine.state().contains("comfy"));
    for part in ["docker.service", "docker.socket"] {
        let machine = Machine::new();
        machine.program("docker", &refuses);
        machine.write(&format!("runs/{part}"), "");
        let why = machine.refused("take spare:desktop");
        assert!(why.ends_with("for spare: see systemctl status docker"), "{why}");
        assert_eq!(machine.drivers(), HOST);
    }
}

#[test]
fn what_somebody_has_open_or_does_not_answer_stays_on_vfio() {
    let machine = Machine::new();
    machine.done("take spare:desktop");
    machine.ended();
    machine.opens("/dev/vfio/9");
    assert!(machine.refused("give spare").contains("steam (pid 4242"), "{}", machine.read("log"));
    assert_eq!((machine.drivers().as_str(), machine.runs().as_str()), (VFIO, ""));
    std::fs::remove_dir_all(machine.at("proc/4242")).unwrap();
    machine.write("sys/bus/pci/devices/0000:02:00.0/config", [0xff; 64]);
    let why = machine.refused("give spare");
    assert!(why.starts_with("0000:02:00.0 does not answer"), "{why}");
    assert_eq!((machine.drivers().as_str(), machine.runs().as_str()), ("vfio-pci snd_hda_intel", RUNS));
    machine.write("sys/bus/pci/devices/0000:02:00.0/config", [0xde, 0x10, 0x84, 0x26]);
    // Without the card it ended.
    std::fs::remove_file(machine.at("runs/comfy")).unwrap();
    machine.done("give spare");
    machine.is_the_hosts();
}

#[test]
fn what_does_not_start_again_is_owed_and_the_rest_runs() {
    let machine = Machine::new();
    machine.done("take spare:desktop");
    machine.ended();
    machine.write("broken/ollama.service", "");
    assert_eq!(machine.refused("give spare"), "ollama.service did not start again");
    assert_eq!((machine.drivers().as_str(), machine.runs().as_str()), (HOST, "comfy"));
    assert!(machine.state().contains("owed ollama.service\nleft ollama.service did not"), "{}", machine.state());
    std::fs::remove_file(machine.at("broken/ollama.service")).unwrap();
    machine.done("boot");
    machine.is_the_hosts();
}

#[test]
fn after_a_crash_of_the_host_the_boot_starts_what_had_been_stopped() {
    let machine = Machine::new();
    machine.done("take spare:desktop");
    // The kernel knows nothing of it any more, and /run is empty.
    for (address, _, driver) in FUNCTIONS {
        let at = machine.at(&format!("sys/bus/pci/devices/{address}/driver"));
        std::fs::remove_file(&at).unwrap();
        symlink(format!("../../drivers/{driver}"), at).unwrap();
        machine.write(&format!("sys/bus/pci/devices/{address}/driver_override"), "(null)\n");
    }
    std::fs::remove_dir_all(machine.at("run")).unwrap();
    machine.write("proc/uptime", "20.00 30.00\n");
    machine.done("boot");
    machine.is_the_hosts();
    machine.done("boot");
}

/// Runs it and kills it at one place after another, each time from the beginning; `after` looks and goes on.
fn killed_everywhere(before: impl Fn(&Machine), words: &str, after: impl Fn(&Machine)) -> u32 {
    for place in 1.. {
        let machine = Machine::new();
        before(&machine);
        let _ = std::fs::remove_file(machine.at("count"));
        machine.write("kill-at", place.to_string());
        let (done, said) = machine.run(words);
        std::fs::remove_file(machine.at("kill-at")).unwrap();
        if done {
            return place - 1;
        }
        assert_eq!(machine.read("count").trim(), place.to_string(), "it ended by itself: {said}");
        // A VM has all of it or nothing: with half of a slot, libvirt's hook refuses the start.
        assert!(machine.drivers() != VFIO || !machine.state().is_empty(), "what it did is written down");
        after(&machine);
    }
    0
}

#[test]
fn killed_anywhere_the_next_word_mends_it() {
    let taken = |m: &Machine| m.done("take spare:desktop");
    let given = |m: &Machine| {
        taken(m);
        m.ended();
    };
    // As the hook does after a start that failed.
    let hook = |m: &Machine| {
        m.ended();
        m.done("give spare");
        m.is_the_hosts();
    };
    let again = |m: &Machine| {
        taken(m);
        m.is_the_vms();
        m.ended();
        m.done("give spare");
        m.is_the_hosts();
    };
    let places = [
        killed_everywhere(|_| (), "take spare:desktop", hook),
        killed_everywhere(|_| (), "take spare:desktop", again),
        killed_everywhere(given, "give spare", hook),
        killed_everywhere(given, "give spare", again),
    ];
    assert!(places.iter().all(|places| *places >= 8), "{places:?}");
}

#[test]
fn gpuvm_off_switches_every_unit_off() {
    for (path, text) in UNITS.iter().filter(|(path, _)| path.ends_with(".service")) {
        assert!(text.contains("\nConditionKernelCommandLine=!gpuvm.off\n"), "{path}");
        assert!(text.contains(&format!("\nExecStart={} ", SCRIPT.0)), "{path}");
    }
}

#[test]
fn what_others_bind_by_id_is_not_shared() {
    let gpu = SharedGpu {
        name: "spare".to_owned(),
        slot: display().address.slot,
        companions: BTreeSet::new(),
        card: None,
        vouched: Vouched::default(),
        release: Vec::new(),
    };
    let id = display().id.to_string();
    let told = |line: &str, arg: &str| {
        let state = SharedState {
            text: None,
            handover: Handover::default(),
            libvirt: Answer::Absent,
            missing: Vec::new(),
            by_id: vec![("/etc/modprobe.d/vfio.conf".to_owned(), line.to_owned())],
        };
        let mut facts = crate::resource::tests::facts();
        facts.iommu = crate::facts::Iommu::On { kind: "intel".to_owned(), groups: Default::default() };
        facts.pci.insert(display().address, PciFunction { group: Some(9), ..display() });
        facts.kernel.cmdline = vec![arg.to_owned()];
        match gpu.diff(&state, None, &facts) {
            Diff::Blocked { why, .. } => why,
            Diff::Change(_) => "shared".to_owned(),
            other => format!("{other:?}"),
        }
    };
    let line = format!("options vfio-pci ids=10de:ffff,{}:1458:4104", id.to_uppercase());
    assert!(told(&line, "quiet").contains("(/etc/modprobe.d/vfio.conf) binds"), "{}", told(&line, "quiet"));
    assert_eq!(told("options vfio-pci ids=10de:ffff", "quiet"), "shared");
    let boot = told("options vfio-pci ids=10de:ffff", &format!("vfio-pci.ids={id}"));
    assert!(boot.contains("(the kernel's command line) binds"), "{boot}");
}
