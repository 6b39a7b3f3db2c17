//! The shipped hook, run as libvirt runs it, on a folder that plays sysfs.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::facts::{PciFunction, tests::display};
use crate::gpu::{REFUSED, SEEN};
use crate::resource::tests::PlayedRoot;

/// Work is a card of two functions behind port 12.0, alone in its group beside a bridge.
struct Machine {
    dir: PlayedRoot,
}

impl std::ops::Deref for Machine {
    type Target = PlayedRoot;
    fn deref(&self) -> &PlayedRoot {
        &self.dir
    }
}

fn work(function: u8) -> PciFunction {
    PciFunction {
        address: format!("0000:02:00.{function}").parse().unwrap(),
        path: "pcie:12.0/0".to_owned(),
        id: if function == 0 { "10de:2684" } else { "10de:22ba" }.parse().unwrap(),
        subsystem: Some("1458:4104".parse().unwrap()),
        ..display()
    }
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: PlayedRoot::new() };
        for (address, ids, class) in [
            ("0000:02:00.0", "10de:2684", "0x030000"),
            ("0000:02:00.1", "10de:22ba", "0x040300"),
            ("0000:00:12.0", "8086:7ab8", "0x060400"),
        ] {
            machine.plug(address, "0000:00:12.0", ids, class);
        }
        machine.write("proc/cmdline", "quiet ro\n");
        machine.write("proc/sys/kernel/osrelease", "6.12.41\n");
        let mut facts = crate::resource::tests::facts();
        facts.pci.extend([work(0), work(1)].map(|f| (f.address, f)));
        let meant = Meant { name: "work".to_owned(), slot: work(0).address.slot, serial: None };
        machine.write("etc/gpuvm/devices", devices(&[meant], &[], &[], &facts));
        // What systemd is asked for is written down.
        machine.systemctl("exit 0");
        machine
    }

    fn sys(&self, function: &str, attribute: &str) -> String {
        format!("sys/bus/pci/devices/{function}/{attribute}")
    }

    fn systemctl(&self, then: &str) {
        let root = self.dir.path().display().to_string();
        self.program("systemctl", &format!("echo \"$*\" >> {root}/asked\n{}\n", then.replace("ROOT", &root)));
    }

    /// A function on vfio-pci in group 9.
    fn plug(&self, address: &str, port: &str, ids: &str, class: &str) {
        let real = self.at(&format!("sys/devices/pci0000:00/{port}/{address}"));
        std::fs::create_dir_all(&real).unwrap();
        let link = self.at(&format!("sys/bus/pci/devices/{address}"));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&real, link).unwrap();
        let (vendor, device) = ids.split_once(':').unwrap();
        for (name, text) in
            [("vendor", vendor), ("device", device), ("subsystem_vendor", "1458"), ("subsystem_device", "4104")]
        {
            self.write(&self.sys(address, name), format!("0x{text}\n"));
        }
        self.write(&self.sys(address, "class"), format!("{class}\n"));
        self.write(&self.sys(address, "config"), [0xde, 0x10, 0x84, 0x26, 0, 0]);
        self.drive(address, "vfio-pci");
        let group = self.at("sys/kernel/iommu_groups/9");
        std::fs::create_dir_all(group.join("devices").join(address)).unwrap();
        let _ = std::os::unix::fs::symlink(&group, real.join("iommu_group"));
    }
    fn drive(&self, address: &str, driver: &str) {
        let folder = self.at(&format!("sys/bus/pci/drivers/{driver}"));
        std::fs::create_dir_all(&folder).unwrap();
        let link = self.at(&self.sys(address, "driver"));
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(folder, link).unwrap();
    }

    /// What libvirt would see: whether the hook lets it go on, and what it says.
    fn hook(&self, op: &str, sub: &str, xml: &str) -> (bool, String) {
        let root = self.dir.path().display().to_string();
        let mut text = HOOK.1.replace("PATH=/usr/sbin", &format!("PATH={root}/bin:/usr/sbin"));
        for folder in ["/sys/", "/etc/gpuvm", "/var/lib/", "/var/log/", "/run/", "/proc/"] {
            // Only where a path begins.
            for before in ["=", " ", "\"$"] {
                text = text.replace(&format!("{before}{folder}"), &format!("{before}{root}{folder}"));
            }
        }
        let hook = self.at("hook");
        std::fs::write(&hook, text).unwrap();
        #[allow(clippy::disallowed_methods)] // a test runs what libvirt would run
        let mut ran = Command::new("/bin/sh")
            .arg(&hook)
            .args(["desktop", op, sub, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that has nothing to look at does not read it, which libvirt does not mind either.
        let _ = ran.stdin.take().unwrap().write_all(xml.as_bytes());
        let out = ran.wait_with_output().unwrap();
        assert!(out.stdout.is_empty(), "stdout is the definition's");
        (out.status.success(), String::from_utf8_lossy(&out.stderr).trim().to_owned())
    }
    fn start(&self, xml: &str) -> (bool, String) {
        self.hook("prepare", "begin", xml)
    }
    fn refused(&self, xml: &str) -> String {
        let (starts, said) = self.start(xml);
        assert!(!starts, "it starts: {said}");
        let why = said.strip_prefix("gpuvm refuses to start VM desktop: ").unwrap_or_else(|| panic!("{said}"));
        let kept = self.read(&format!("{}/desktop", &REFUSED[1..]));
        assert_eq!(kept.split_once('\n').unwrap().1.trim(), why);
        why.to_owned()
    }
}

/// A definition as libvirt formats it for a hook.
fn vm(mark: &str, functions: &[&str], managed: &str) -> String {
    let hostdev = |f: &&str| {
        let number = f.rsplit_once('.').unwrap().1;
        let bus = &f[5..7];
        format!(
            "    <hostdev mode='subsystem' type='pci' managed='{managed}'>\n      <driver name='vfio'/>\n      <source>\n        \
             <address domain='0x0000' bus='0x{bus}' slot='0x00' function='0x{number}'/>\n      </source>\n      \
             <alias name='hostdev0'/>\n      <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x{number}'/>\n    \
             </hostdev>\n"
        )
    };
    let devices: String = functions.iter().map(hostdev).collect();
    format!(
        "<domain type='kvm' id='1'>\n  <name>desktop</name>\n  <metadata>\n    {mark}\n  </metadata>\n  <devices>\n    \
         <disk type='file' device='disk'>\n      <source file='/a'/>\n      <address type='pci' domain='0x0000' bus='0x02' \
         slot='0x00' function='0x0'/>\n    </disk>\n{devices}  </devices>\n</domain>\n"
    )
}

const MARK: &str = "<gpuvm:vm xmlns:gpuvm=\"urn:gpuvm:vm:1\"/>";
const BOTH: [&str; 2] = ["0000:02:00.0", "0000:02:00.1"];

fn ours() -> String {
    vm(MARK, &BOTH, "no")
}

#[test]
fn as_it_was_meant_it_starts() {
    let machine = Machine::new();
    assert_eq!(machine.start(&ours()), (true, String::new()));
}

#[test]
fn another_card_or_another_place_is_refused() {
    let machine = Machine::new();
    machine.write(&machine.sys("0000:02:00.0", "device"), "0x2704\n");
    assert!(
        machine
            .refused(&ours())
            .starts_with("0000:02:00.0 is another device: it was 10de:2684 (work), and is 10de:2704")
    );
    let machine = Machine::new();
    machine.write(&machine.sys("0000:02:00.1", "subsystem_device"), "0x0001\n");
    assert!(machine.refused(&ours()).contains("its subsystem was 1458:4104 (work), and is 1458:0001"));
    let machine = Machine::new();
    machine.plug("0000:02:00.0", "0000:00:13.0", "10de:2684", "0x030000");
    let why = machine.refused(&ours());
    assert!(why.starts_with("the addresses have changed: work was at pcie:12.0/0, and 0000:02:00.0 is "), "{why}");
    assert!(why.contains("pci0000:00/0000:00:13.0/0000:02:00.0 now"), "{why}");
    let machine = Machine::new();
    std::fs::remove_file(machine.at("sys/bus/pci/devices/0000:02:00.1")).unwrap();
    assert!(machine.refused(&ours()).starts_with("work (0000:02:00.1) is not there"));
}

#[test]
fn a_serial_number_that_the_manifest_names_is_looked_at() {
    let machine = Machine::new();
    let list = machine.read("etc/gpuvm/devices").replacen("work -", "work 00-11", 1);
    machine.write("etc/gpuvm/devices", list);
    std::fs::create_dir_all(machine.at("var/log/libvirt/qemu")).unwrap();
    assert_eq!(machine.start(&ours()), (true, String::new()), "one that its driver alone tells decides nothing");
    let log = machine.read("var/log/libvirt/qemu/desktop.log");
    assert!(log.contains("the serial number of work (0000:02:00.0) is told by its own driver alone"), "{log}");
    machine.write(&machine.sys("0000:02:00.0", "serial_number"), "00-11\n");
    assert!(machine.start(&ours()).0);
    machine.write(&machine.sys("0000:02:00.0", "serial_number"), "00-12\n");
    assert!(machine.refused(&ours()).contains("its serial number was 00-11 (work), and is 00-12"));
}

/// Configuration space with a serial number behind another capability.
fn config(serial: [u8; 8]) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(&[0xde, 0x10, 0x84, 0x26]);
    // Advanced error reporting, version 2, and the next at 0x160.
    bytes[0x100..0x104].copy_from_slice(&[0x01, 0x00, 0x02, 0x16]);
    bytes[0x160..0x164].copy_from_slice(&[0x03, 0x00, 0x01, 0x00]);
    bytes[0x164..0x16c].copy_from_slice(&serial);
    bytes
}

#[test]
fn a_devices_own_serial_number_is_read_of_it_and_one_that_cannot_be_read_is_refused() {
    let machine = Machine::new();
    let list = machine.read("etc/gpuvm/devices").replacen("work -", "work 48-B0-2d-00-00-00-00-01", 1);
    machine.write("etc/gpuvm/devices", list);
    let at = machine.sys("0000:02:00.0", "config");
    let serial = [0x01, 0, 0, 0, 0, 0x2d, 0xb0, 0x48];
    machine.write(&at, config(serial));
    assert_eq!(machine.start(&ours()), (true, String::new()));
    machine.write(&at, config([0x02, 0, 0, 0, 0, 0x2d, 0xb0, 0x48]));
    let why = machine.refused(&ours());
    assert!(
        why.contains("its serial number was 48-B0-2d-00-00-00-00-01 (work), and is 48-b0-2d-00-00-00-00-02"),
        "{why}"
    );
    // Sixty-four bytes, a list that leads back to itself, and nothing behind the head.
    let mut round = config(serial);
    round[0x160..0x164].copy_from_slice(&[0x0b, 0x00, 0x01, 0x10]);
    for unreadable in [config(serial)[..64].to_vec(), round, config(serial)[..256].to_vec()] {
        machine.write(&at, unreadable);
        let why = machine.refused(&ours());
        assert!(
            why.starts_with("0000:02:00.0 may be another card of the same model: its serial number was 48-B0"),
            "{why}"
        );
        assert!(why.contains("match: { slot: \"pcie:12.0/0\" }"), "{why}");
    }
    machine.write(&machine.sys("0000:02:00.0", "serial_number"), "48-b0-2d-00-00-00-00-01\n");
    assert_eq!(machine.start(&ours()), (true, String::new()), "the kernel's own word");
}

/// A definition with a vGPU that is a mediated device.
fn with_mediated(uuid: &str) -> String {
    vm(MARK, &[], "no").replace(
        "  </devices>",
        &format!(
            "    <hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci' display='off'>\n      <source>\n        \
             <address uuid='{uuid}'/>\n      </source>\n      <alias name='hostdev0'/>\n      <address type='pci' \
             domain='0x0000' bus='0x07' slot='0x00' function='0x0'/>\n    </hostdev>\n  </devices>"
        ),
    )
}

#[test]
fn a_mediated_device_has_to_be_there_below_its_card() {
    let machine = Machine::new();
    let uuid = MdevUuid::of("host", "t4", 0);
    let mut facts = crate::resource::tests::facts();
    let card = work(0);
    facts.pci.insert(card.address, card.clone());
    machine.write("etc/gpuvm/devices", devices(&[], &[], &[(uuid, ("t4/0".to_owned(), card))], &facts));
    let made = |port: &str| {
        let real = machine.at(&format!("sys/devices/pci0000:00/{port}/0000:02:00.0/{uuid}"));
        std::fs::create_dir_all(&real).unwrap();
        let link = machine.at(&format!("sys/bus/mdev/devices/{uuid}"));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&real, link).unwrap();
    };
    let xml = with_mediated(&uuid.to_string());
    let why = machine.refused(&xml);
    assert!(why.starts_with(&format!("t4/0 ({uuid}) is not there")) && why.contains("gpuvm-vgpu@t4.service"), "{why}");
    made("0000:00:12.0");
    assert_eq!(machine.start(&xml), (true, String::new()));
    let others = with_mediated("aa618089-8b16-4d01-a136-25a0f3c73123");
    assert_eq!(machine.start(&others), (true, String::new()), "what is not gpuvm's is its owner's business");
    machine.write(&machine.sys("0000:02:00.0", "device"), "0x2704\n");
    assert!(machine.refused(&xml).contains("0000:02:00.0 is another card: it was 10de:2684 (t4/0), and is 10de:2704"));
    made("0000:00:13.0");
    assert!(machine.refused(&xml).starts_with("the addresses have changed: t4/0 was at "));
    assert!(machine.refused(&with_mediated("../x")).contains("cannot be understood"));
}

#[test]
fn a_stranger_in_the_group_is_refused_and_a_bridge_is_none() {
    let machine = Machine::new();
    machine.plug("0000:03:00.0", "0000:00:12.0", "8086:15f3", "0x020000");
    let why = machine.refused(&ours());
    assert!(why.starts_with("0000:03:00.0 (8086:15f3) shares the IOMMU group of work (0000:02:00.0)"), "{why}");
    let machine = Machine::new();
    std::fs::remove_file(machine.at("sys/bus/pci/devices/0000:02:00.0/iommu_group")).unwrap();
    assert!(machine.refused(&ours()).contains("has no IOMMU group"));
}

#[test]
fn a_card_that_does_not_answer_or_is_on_its_driver_is_refused() {
    let machine = Machine::new();
    // A virtual function has no vendor and device of its own there, and answers all the same.
    machine.write(&machine.sys("0000:02:00.0", "config"), [0xff, 0xff, 0xff, 0xff, 0x06, 0x04, 0x10, 0x00]);
    assert_eq!(machine.start(&ours()), (true, String::new()));
    machine.write(&machine.sys("0000:02:00.0", "config"), [0xff; 64]);
    assert!(machine.refused(&ours()).starts_with("work (0000:02:00.0) does not answer: it reads as ones"));
    let machine = Machine::new();
    machine.drive("0000:02:00.1", "snd_hda_intel");
    assert!(machine.refused(&ours()).starts_with("work (0000:02:00.1) is on snd_hda_intel, not on vfio-pci"));
    // libvirt itself takes it from its driver, after the hook.
    assert_eq!(machine.start(&vm(MARK, &BOTH, "yes")), (true, String::new()));
    machine.drive("0000:02:00.1", "nvgrace_gpu_vfio_pci");
    assert!(machine.start(&ours()).0);
}

#[test]
fn without_gpuvms_files_only_vms_with_its_devices_are_refused() {
    let machine = Machine::new();
    std::fs::remove_file(machine.at("etc/gpuvm/devices")).unwrap();
    let why = machine.refused(&ours());
    assert!(why.contains("/etc/gpuvm/devices is not there") && why.contains("gpuvm apply writes it"), "{why}");
    for others in [vm(MARK, &[], "no"), vm("<x/>", &BOTH, "no"), vm("", &[], "no"), String::new()] {
        assert_eq!(machine.start(&others), (true, String::new()), "{others}");
    }
}

#[test]
fn vms_of_others_start_whatever_the_card_is() {
    let machine = Machine::new();
    machine.write(&machine.sys("0000:02:00.0", "device"), "0x2704\n");
    assert!(machine.start(&vm("<other:vm xmlns:other=\"urn:other\"/>", &BOTH, "no")).0);
    // What the manifest does not name is its owner's own business.
    machine.plug("0000:04:00.0", "0000:00:14.0", "8086:15f3", "0x020000");
    assert!(machine.start(&vm(MARK, &["0000:04:00.0"], "no")).0);
}

#[test]
fn what_cannot_be_understood_is_refused() {
    let machine = Machine::new();
    for (from, to) in [("bus='0x02'", "bus='0x0g'"), ("function='0x1'", ""), ("<source>", "<sauce>")] {
        let xml = ours();
        let at = xml.find("<hostdev").unwrap();
        let xml = xml[..at].to_owned() + &xml[at..].replace(from, to);
        assert!(machine.refused(&xml).contains("cannot be understood"), "{from}");
    }
}

#[test]
fn the_virtual_function_of_a_network_card_is_looked_at_too() {
    let machine = Machine::new();
    let xml = ours().replace("<hostdev mode='subsystem' type='pci'", "<interface type='hostdev'");
    let xml = xml.replace("</hostdev>", "</interface>").replace("<address domain=", "<address type='pci' domain=");
    assert!(machine.start(&xml).0);
    machine.write(&machine.sys("0000:02:00.1", "device"), "0x2704\n");
    assert!(machine.refused(&xml).starts_with("0000:02:00.1 is another device"));
}

#[test]
fn a_vgpu_stays_with_nvidias_driver_and_has_a_type() {
    let machine = Machine::new();
    machine.drive("0000:02:00.1", "nvidia");
    assert!(machine.refused(&ours()).contains("(0000:02:00.1) is on nvidia, not on vfio-pci"));
    let file = machine.sys("0000:02:00.1", "nvidia/current_vgpu_type");
    std::fs::create_dir_all(machine.at(&file).parent().unwrap()).unwrap();
    machine.write(&file, "0\n");
    assert!(machine.refused(&ours()).contains("(0000:02:00.1) has no vGPU"));
    machine.write(&file, "564\n");
    assert!(machine.start(&ours()).0);
    // What is no vGPU's driver makes none of it.
    machine.drive("0000:02:00.1", "snd_hda_intel");
    assert!(machine.refused(&ours()).contains("is on snd_hda_intel"));
}

#[test]
fn gpuvm_off_switches_it_off() {
    let machine = Machine::new();
    machine.write(&machine.sys("0000:02:00.0", "device"), "0x2704\n");
    for off in ["gpuvm.off", "gpuvm.off=1"] {
        machine.write("proc/cmdline", format!("quiet {off} ro\n"));
        assert_eq!(machine.start(&ours()), (true, String::new()));
    }
    machine.write("proc/cmdline", "quiet gpuvm.offset\n");
    machine.refused(&ours());
}

#[test]
fn other_moments_are_not_its_own() {
    let machine = Machine::new();
    machine.write(&machine.sys("0000:02:00.0", "device"), "0x2704\n");
    for (op, sub) in [("start", "begin"), ("stopped", "end"), ("reconnect", "begin"), ("migrate", "begin"), ("", "")] {
        assert_eq!(machine.hook(op, sub, &ours()), (true, String::new()), "{op}");
    }
}

#[test]
fn a_start_that_succeeds_takes_the_reason_away_and_the_log_keeps_it() {
    let machine = Machine::new();
    std::fs::create_dir_all(machine.at("var/log/libvirt/qemu")).unwrap();
    machine.drive("0000:02:00.1", "snd_hda_intel");
    machine.refused(&ours());
    machine.drive("0000:02:00.1", "vfio-pci");
    assert!(machine.start(&ours()).0);
    assert!(!machine.at("run/gpuvm/refused/desktop").exists());
    let log = machine.read("var/log/libvirt/qemu/desktop.log");
    assert!(log.contains("gpuvm refuses to start it: work (0000:02:00.1) is on snd_hda_intel"), "{log}");
}

/// What is remembered of the card, as the reader of it understands it.
fn remembered(machine: &Machine) -> Option<(u32, bool)> {
    let file = Path::new(SEEN).join("10de:2684-1458:4104-pcie:12.0_0");
    let text = machine.read(&file.display().to_string()[1..]);
    let fixture = tempfile::tempdir().unwrap();
    let at = fixture.path().join("root").join(&file.display().to_string()[1..]);
    std::fs::create_dir_all(at.parent().unwrap()).unwrap();
    std::fs::write(at, text).unwrap();
    crate::host::fixture::Record::default().save(&fixture.path().join(crate::host::fixture::Record::NAME)).unwrap();
    let probe = crate::host::fixture::Fixture::open(fixture.path()).unwrap();
    let seen = crate::gpu::remembered(&probe);
    let one = seen.iter().find(|s| s.is_of(&work(0)))?;
    assert_eq!((one.kernel.as_str(), one.vm.as_str()), ("6.12.41", "desktop"));
    Some((one.cycles, one.lost))
}

#[test]
fn a_card_counts_as_come_back_when_a_vm_ran_with_it_and_it_answers_afterwards() {
    let machine = Machine::new();
    let ran = |machine: &Machine| {
        assert_eq!(machine.hook("started", "begin", &ours()), (true, String::new()));
        assert_eq!(machine.hook("release", "end", &ours()), (true, String::new()));
    };
    // A start that failed releases too, and proves nothing.
    assert!(machine.hook("release", "end", &ours()).0);
    assert_eq!(remembered(&machine), None);
    ran(&machine);
    assert_eq!(remembered(&machine), Some((1, false)));
    ran(&machine);
    assert_eq!(remembered(&machine), Some((2, false)));
    machine.write(&machine.sys("0000:02:00.0", "config"), [0xff; 64]);
    ran(&machine);
    assert_eq!(remembered(&machine), Some((0, true)));
    machine.write(&machine.sys("0000:02:00.0", "config"), [0xde, 0x10, 0x84, 0x26]);
    ran(&machine);
    assert_eq!(remembered(&machine), Some((1, false)));
    assert!(!machine.at("run/gpuvm/with/desktop").exists());
    // What cannot be read says nothing.
    std::fs::remove_file(machine.at("sys/bus/pci/devices/0000:02:00.0/config")).unwrap();
    ran(&machine);
    assert_eq!(remembered(&machine), Some((1, false)));
}

/// The card is the host's until its VM starts.
fn shared() -> Machine {
    let machine = Machine::new();
    machine.write("etc/gpuvm/shared/work", "function 0000:02:00.0 10de:2684\nfunction 0000:02:00.1 10de:22ba\n");
    for (function, driver) in [("0000:02:00.0", "nvidia"), ("0000:02:00.1", "snd_hda_intel")] {
        machine.drive(function, driver);
    }
    machine.systemctl(
        "case \"$*\" in *gpuvm-take@*) ;; *) exit 0 ;; esac\n[ ! -e ROOT/fails ] || exit 1\n\
         for f in 0 1; do ln -sfn ROOT/sys/bus/pci/drivers/vfio-pci ROOT/sys/bus/pci/devices/0000:02:00.$f/driver; done\n\
         mkdir -p ROOT/run/gpuvm/shared/claim; echo desktop 1 > ROOT/run/gpuvm/shared/claim/work",
    );
    machine
}

#[test]
fn a_shared_card_is_handed_over_once_everything_else_is_as_it_was_meant() {
    let machine = shared();
    machine.write(&machine.sys("0000:02:00.1", "config"), [0xff; 64]);
    machine.refused(&ours());
    assert_eq!(machine.read("asked"), "", "nothing was taken from the host");
    machine.write(&machine.sys("0000:02:00.1", "config"), [0xde, 0x10, 0x84, 0x26]);
    assert_eq!(machine.start(&ours()), (true, String::new()));
    assert_eq!(machine.read("asked"), "start gpuvm-take@work:desktop.service\n");
    // Another VM's end is none of its business.
    machine.write("run/gpuvm/shared/claim/work", "other 1\n");
    assert!(machine.hook("release", "end", &ours()).0);
    assert_eq!(machine.read("run/gpuvm/shared/claim/work"), "other 1\n");
    machine.write("run/gpuvm/shared/claim/work", "desktop 1\n");
    // Whatever its definition says by then.
    assert_eq!(machine.hook("release", "end", ""), (true, String::new()));
    assert!(!machine.at("run/gpuvm/shared/claim/work").exists());
    assert!(
        machine.read("asked").ends_with("\nstart --no-block gpuvm-give@work.service\n"),
        "{}",
        machine.read("asked")
    );
}

#[test]
fn a_hand_over_that_fails_keeps_the_vm_from_starting_and_says_why() {
    let machine = shared();
    machine.write("fails", "");
    assert!(machine.refused(&ours()).contains("systemctl status gpuvm-take@work:desktop.service"));
    // The reason is that of this try.
    machine.write("run/gpuvm/shared/why/work", "what was long ago\n");
    assert!(machine.refused(&ours()).contains("systemctl status gpuvm-take@work:desktop.service"));
    machine.systemctl(
        "case \"$*\" in *gpuvm-take@*) ;; *) exit 0 ;; esac\nmkdir -p ROOT/run/gpuvm/shared/why\n\
         echo VM other has work > ROOT/run/gpuvm/shared/why/work; exit 1",
    );
    assert_eq!(machine.refused(&ours()), "VM other has work");
    // Where it was handed over and is not there, it is given back at once.
    std::fs::remove_file(machine.at("fails")).unwrap();
    machine.systemctl("case \"$*\" in *gpuvm-take@*) ;; *) exit 0 ;; esac\nmkdir -p ROOT/run/gpuvm/shared/claim; echo desktop 1 > ROOT/run/gpuvm/shared/claim/work");
    assert!(machine.refused(&ours()).contains("is on nvidia, not on vfio-pci"));
    assert!(machine.read("asked").ends_with("start --no-block gpuvm-give@work.service\n"));
    machine.write("proc/cmdline", "quiet gpuvm.off\n");
    machine.write("asked", "");
    assert!(machine.start(&ours()).0 && machine.read("asked").is_empty());
}

#[test]
fn the_time_of_a_start_begins_when_the_last_card_is_handed_over() {
    let machine = shared();
    machine.write("proc/uptime", "500.25 900.00\n");
    machine.write("run/gpuvm/shared/claim/another", "other 7\n");
    assert_eq!(machine.start(&ours()), (true, String::new()));
    assert_eq!(machine.read("run/gpuvm/shared/claim/work"), "desktop 500\n");
    assert_eq!(machine.read("run/gpuvm/shared/claim/another"), "other 7\n");
}
