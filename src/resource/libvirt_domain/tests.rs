//! A VM against definitions: new ones, ours tuned by hand, and others'.

use std::sync::Arc;

use super::*;
use crate::host::Domain;
use crate::plan::{FieldDiff, Risk, TextEdit};
use crate::resource::tests::facts;
use crate::types::{MacAddress, PciSlot};

/// As the writer makes it.
pub(super) fn vm() -> LibvirtDomain {
    LibvirtDomain {
        name: "desk".parse().unwrap(),
        cpus: 4,
        topology: None,
        pins: None,
        near: None,
        memory: ByteSize::from_gib(8),
        huge_pages: None,
        disks: vec![disk(0)],
        nic: Some(nic("br0", 1)),
        slots: vec![slot("0000:02:00", &[0, 1])],
        seed: None,
        login: None,
        extras: Vec::new(),
        smbios: BTreeMap::new(),
        additions: Vec::new(),
        windows: false,
        media: Vec::new(),
        firmware: Firmware::Uefi,
        boot: None,
        accel: Accel::Kvm,
        arch: Arch::X86_64,
        autostart: false,
        start_when_made: false,
        running: None,
        absent: false,
        start_owed: false,
        install: None,
        install_owed: false,
    }
}
fn disk(n: usize) -> Disk {
    let volume = format!("desk-{n}.qcow2");
    let path = format!("/var/lib/libvirt/images/{volume}").into();
    Disk { pool: Some("default".parse().unwrap()), volume, block: false, path, options: DiskOptions::default() }
}
fn nic(bridge: &str, last: u8) -> Nic {
    Nic { on: NicOn::Bridge(bridge.parse().unwrap()), mac: MacAddress([0x52, 0x54, 0, 0, 0, last]) }
}
fn slot(at: &str, functions: &[u8]) -> PassedSlot {
    let slot: PciSlot = at.parse().unwrap();
    PassedSlot::whole(slot, functions.iter().map(|f| slot.function(*f)).collect())
}

/// The same VM after libvirt filled in its part and a person tuned it.
const TUNED: &str = r#"<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>desk</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata>
    <other:thing xmlns:other="urn:other">keep &amp; <me/></other:thing>
    <gpuvm:vm xmlns:gpuvm="urn:gpuvm:vm:1"/>
  </metadata>
  <memory unit='KiB'>8388608</memory>
  <currentMemory unit='KiB'>8388608</currentMemory>
  <vcpu placement='static' cpuset='0-3'>4</vcpu>
  <!-- pinned by hand -->
  <cputune>
    <vcpupin vcpu='0' cpuset='2'/>
  </cputune>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <loader readonly='yes' secure='no' type='pflash' format='raw'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/desk_VARS.fd</nvram>
    <boot dev='hd'/>
  </os>
  <cpu mode='host-passthrough' check='none' migratable='on'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native'/>
      <source file='/var/lib/libvirt/images/desk-0.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <serial>tuned</serial>
      <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/srv/iso/setup.iso'/>
      <target dev='sda' bus='sata'/>
    </disk>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'/>
    <controller type='pci' index='5' model='pcie-root-port'>
      <target chassis='5' port='0x14'/>
    </controller>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/>
      <source bridge='br0'/>
      <model type='virtio'/>
      <tune><sndbuf>1600</sndbuf></tune>
    </interface>
    <hostdev mode='subsystem' type='pci' managed='no'>
      <source>
        <address domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
      </source>
      <rom file='/srv/vbios.rom'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0' multifunction='on'/>
    </hostdev>
    <hostdev mode='subsystem' type='pci' managed='no'>
      <source>
        <address domain='0x0000' bus='0x02' slot='0x00' function='0x1'/>
      </source>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x1'/>
    </hostdev>
    <hostdev mode='subsystem' type='usb' managed='no'>
      <source>
        <vendor id='0x046d'/>
        <product id='0xc52b'/>
      </source>
    </hostdev>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-fw_cfg'/>
  </qemu:commandline>
</domain>
"#;

/// What an edit of the tuned definition took away and put in, line by line.
fn edit(change: impl FnOnce(&mut LibvirtDomain)) -> (Vec<String>, Vec<String>) {
    let mut wanted = vm();
    change(&mut wanted);
    edit_from(&vm(), &wanted, TUNED)
}
fn edit_from(last: &LibvirtDomain, wanted: &LibvirtDomain, xml: &str) -> (Vec<String>, Vec<String>) {
    let is = project(xml).unwrap();
    let after = crate::types::splice(xml, &splice::splice(wanted, Some(last), &is, xml).unwrap()).unwrap();
    let now = project(&after).unwrap();
    assert_eq!(wanted.differences(Some(last), &now), [], "it is as wanted afterwards:\n{after}");
    let diff = similar::TextDiff::from_lines(xml, after.as_str());
    let lines = |tag| {
        diff.iter_all_changes().filter(|c| c.tag() == tag).map(|c| c.value().trim().to_owned()).collect::<Vec<_>>()
    };
    (lines(similar::ChangeTag::Delete), lines(similar::ChangeTag::Insert))
}

pub(super) fn known(xml: &str, live: Option<&str>) -> Virtualisation {
    let domain = Domain {
        name: "desk".to_owned(),
        uuid: "11111111-2222-3333-4444-555555555555".to_owned(),
        active: live.is_some(),
        persistent: true,
        inactive_xml: xml.to_owned(),
        live_xml: live.map(str::to_owned),
        ..Domain::default()
    };
    Virtualisation { domains: vec![domain], ..Virtualisation::default() }
}
fn diff(wanted: &LibvirtDomain, known: Virtualisation) -> Diff {
    wanted.diff(&Answer::Value(Arc::new(known)).into(), Some(&vm()), &facts())
}
fn steps(diff: Diff) -> Vec<&'static str> {
    let Diff::Change(change) = diff else { panic!("no change: {diff:?}") };
    let name = |step: &Step| match step {
        Step::DefineDomain { .. } => "define",
        Step::EditDomain { .. } => "edit",
        Step::UndefineDomain { .. } => "undefine",
        Step::StartDomain { .. } => "start",
        Step::StopDomain { .. } => "stop",
        _ => "other",
    };
    change.steps.iter().map(name).collect()
}

#[test]
fn a_new_definition_is_what_was_wanted() {
    let hostile = Kernel {
        kernel: "/boot/a'b<c>&\"d".into(),
        initrd: Some("/boot/initrd".into()),
        cmdline: Some("a='b' <x/>".to_owned()),
    };
    let mut many = vm();
    many.disks = (0..30).map(disk).collect();
    many.slots = vec![slot("0000:02:00", &[0, 1]), slot("0001:81:1f", &[3])];
    many.huge_pages = Some(ByteSize::from_gib(1));
    many.boot = Some(hostile);
    let mut plain = vm();
    (plain.disks, plain.nic, plain.slots, plain.firmware) = (vec![], None, vec![], Firmware::Bios);
    plain.accel = Accel::Tcg;
    let mut arm = vm();
    arm.arch = Arch::Aarch64;
    for wanted in [vm(), many, plain, arm] {
        let xml = write::new(&wanted);
        let is = project(&xml).unwrap();
        assert_eq!(wanted.differences(None, &is), [], "{xml}");
        assert!(is.marked && is.uefi == (wanted.firmware == Firmware::Uefi));
    }
}

#[test]
fn an_address_that_somebody_gave_its_card_is_put_right_in_place_and_those_of_others_stay() {
    let ours = "<mac address='52:54:00:00:00:01'/>";
    let edited = TUNED.replace(ours, "<mac address='52:54:00:00:00:99'/>");
    let diff_of = |xml: &str| diff(&vm(), known(xml, None));
    let Diff::Change(change) = diff_of(&edited) else { panic!("it is drift") };
    let [field] = &change.fields[..] else { panic!("{:?}", change.fields) };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    assert_eq!(field.field, "address of the nic on bridge br0");
    assert_eq!((text(&field.before), text(&field.after)), ("52:54:00:00:00:99".into(), "52:54:00:00:00:01".into()));
    let [Step::EditDomain { edit, .. }] = &change.steps[..] else { panic!("{:?}", change.steps) };
    assert_eq!(edit.apply(&edited).unwrap(), TUNED, "and every other byte stays");

    // A card of somebody's beside it is nobody's to touch, whatever address it gets.
    let card = |bridge: &str, last: u8| {
        format!(
            "<interface type='bridge'><mac address='52:54:00:00:00:{last:02x}'/><source bridge='{bridge}'/></interface>\n  "
        )
    };
    let beside = |bridge: &str, of: &str| of.replace("</devices>", &format!("{}</devices>", card(bridge, 0x42)));
    for bridge in ["br0", "br7"] {
        assert!(matches!(diff_of(&beside(bridge, TUNED)), Diff::InSync { .. }), "{bridge}");
    }
    let Diff::Change(change) = diff_of(&beside("br7", &edited)) else { panic!("it is drift") };
    let [Step::EditDomain { edit, .. }] = &change.steps[..] else { panic!("{:?}", change.steps) };
    assert_eq!(edit.apply(&beside("br7", &edited)).unwrap(), beside("br7", TUNED));
    let Diff::Blocked { why, help } = diff_of(&beside("br0", &edited)) else { panic!("which one was it?") };
    assert!(why.contains("cannot be told") && help.contains("52:54:00:00:00:42"), "{why}: {help}");
    // Named in the manifest, it is the address that is wanted.
    let mut named = vm();
    named.nic = Some(nic("br0", 0x99));
    let kept = named.diff(&Answer::Value(Arc::new(known(&edited, None))).into(), Some(&vm()), &facts());
    assert!(matches!(kept, Diff::InSync { .. }), "{kept:?}");
    // A card that is gone as a whole is attached again.
    let at = TUNED.find("<interface").unwrap();
    let end = TUNED.find("</interface>").unwrap() + "</interface>".len();
    let Diff::Change(change) = diff_of(&format!("{}{}", &TUNED[..at], &TUNED[end..])) else { panic!("it is gone") };
    assert_eq!(change.fields[0].field, "nic 52:54:00:00:00:01");
}

#[test]
fn a_new_vm_is_put_near_its_gpu_or_where_the_manifest_says() {
    let near = Some(Near { node: 1, cpus: "8-15,24-31".to_owned() });
    let xml = write::new(&LibvirtDomain { near, ..vm() });
    assert!(xml.contains("<vcpu placement='static' cpuset='8-15,24-31'>4</vcpu>"), "{xml}");
    assert!(xml.contains("<numatune>\n    <memory mode='preferred' nodeset='1'/>\n  </numatune>"), "{xml}");
    let wanted = Pins { cpus: (0..4).map(|n| (n, (4 + n).to_string())).collect(), emulator: Some("0-1".to_owned()) };
    let xml = write::new(&LibvirtDomain { pins: Some(wanted.clone()), ..vm() });
    assert_eq!(project(&xml).unwrap().pins, wanted);
    assert!(!write::new(&vm()).contains("numatune") && !write::new(&vm()).contains("cputune"));
}

#[test]
fn pins_of_ours_change_and_what_else_tunes_processors_stays() {
    let pinned = |cpus: &[(u32, &str)]| {
        let cpus = cpus.iter().map(|(cpu, on)| (*cpu, (*on).to_owned())).collect();
        LibvirtDomain { pins: Some(Pins { cpus, emulator: None }), ..vm() }
    };
    let s = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
    let two = pinned(&[(0, "2"), (1, "3")]);
    let (gone, new) = edit_from(&vm(), &two, TUNED);
    assert_eq!((gone, new), (s(&[]), s(&["<vcpupin vcpu='1' cpuset='3'/>"])));
    assert_eq!(edit_from(&two, &pinned(&[(0, "2")]), TUNED), (s(&[]), s(&[])), "as it is");
    let (gone, new) = edit_from(&two, &vm(), TUNED);
    assert_eq!((gone, new), (s(&["<cputune>", "<vcpupin vcpu='0' cpuset='2'/>", "</cputune>"]), s(&[])));
    let quota = TUNED.replace("<vcpupin vcpu='0' cpuset='2'/>", "<quota>100</quota>");
    let Diff::Blocked { why, .. } = diff(&two, known(&quota, None)) else { panic!("it is changed") };
    assert!(why.contains("<quota>"), "{why}");
    let bare = write::new(&vm());
    let (gone, new) = edit_from(&vm(), &two, &bare);
    assert_eq!(gone, s(&[]));
    assert_eq!(
        new,
        s(&["<cputune>", "<vcpupin vcpu='0' cpuset='2'/>", "<vcpupin vcpu='1' cpuset='3'/>", "</cputune>"])
    );
}

#[test]
fn the_functions_of_a_slot_are_one_device_of_the_guest() {
    let xml = write::new(&vm());
    let guest: Vec<&str> = xml.lines().map(str::trim).filter(|l| l.starts_with("<address type='pci'")).collect();
    assert_eq!(
        guest,
        [
            "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0' multifunction='on'/>",
            "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x1'/>",
        ]
    );
    assert!(xml.contains("<controller type='pci' index='1' model='pcie-root-port'/>"));
    assert!(xml.contains("<address domain='0x0000' bus='0x02' slot='0x00' function='0x1'/>"));
}

#[test]
fn disk_names_count_as_the_driver_does() {
    let names: Vec<String> = [0, 25, 26, 27, 51, 52].map(|n| write::disk_name("virtio", n)).into();
    assert_eq!(names, ["vda", "vdz", "vdaa", "vdab", "vdaz", "vdba"]);
}

#[test]
fn what_a_person_tuned_is_in_sync() {
    assert!(matches!(diff(&vm(), known(TUNED, None)), Diff::InSync { .. }));
    assert!(matches!(diff(&vm(), known(TUNED, Some(TUNED))), Diff::InSync { .. }));
}

#[test]
fn one_field_changes_and_every_other_byte_stays() {
    let s = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
    assert_eq!(edit(|_| {}), (vec![], vec![]));
    assert_eq!(
        edit(|vm| vm.cpus = 2),
        (
            s(&["<vcpu placement='static' cpuset='0-3'>4</vcpu>"]),
            s(&["<vcpu placement='static' cpuset='0-3'>2</vcpu>"])
        )
    );
    assert_eq!(
        edit(|vm| vm.memory = ByteSize::from_gib(4)),
        (
            s(&["<memory unit='KiB'>8388608</memory>", "<currentMemory unit='KiB'>8388608</currentMemory>"]),
            s(&["<memory unit='KiB'>4194304</memory>", "<currentMemory unit='KiB'>4194304</currentMemory>"])
        )
    );
    assert_eq!(
        edit(|vm| vm.nic = Some(nic("br1", 1))),
        (s(&["<source bridge='br0'/>"]), s(&["<source bridge='br1'/>"]))
    );
    let (out, put) = edit(|vm| vm.huge_pages = Some(ByteSize::from_mib(2)));
    assert_eq!(out, s(&[]));
    assert_eq!(
        put,
        s(&["<memoryBacking>", "<hugepages>", "<page size='2048' unit='KiB'/>", "</hugepages>", "</memoryBacking>"])
    );
    let (out, put) = edit(|vm| vm.disks.push(disk(1)));
    assert_eq!((out, put.len()), (s(&[]), 5));
    assert!(put.contains(&"<target dev='vdb' bus='virtio'/>".to_owned()));
    let (out, put) = edit(|vm| vm.accel = Accel::Tcg);
    assert_eq!(out.len(), 2, "{out:?}");
    assert_eq!(put[1], "<cpu mode='maximum' check='none' migratable='on'/>");
    let (out, put) = edit(|vm| {
        vm.boot = Some(Kernel { kernel: "/boot/k".into(), initrd: None, cmdline: Some("a&b".to_owned()) });
    });
    assert_eq!((out, put), (s(&[]), s(&["<kernel>/boot/k</kernel>", "<cmdline>a&amp;b</cmdline>"])));
}

#[test]
fn devices_come_and_go_as_whole_slots() {
    let (out, put) = edit(|vm| vm.slots.clear());
    assert_eq!((out.iter().filter(|l| l.starts_with("<hostdev")).count(), put), (2, vec![]));
    assert!(!out.iter().any(|l| l.contains("usb")), "another's device stays");
    let (out, put) = edit(|vm| vm.slots.push(slot("0000:03:00", &[0])));
    assert_eq!(out, Vec::<String>::new());
    assert!(put.contains(&"<controller type='pci' index='6' model='pcie-root-port'/>".to_owned()), "{put:?}");
    assert!(put.iter().any(|l| l.contains("bus='0x06' slot='0x00' function='0x0'/>")), "{put:?}");
    let (out, _) = edit(|vm| vm.nic = None);
    assert_eq!(out.len(), 6);
}

#[test]
fn virtual_functions_of_one_slot_come_and_go_one_by_one() {
    let function = |at: &str| PassedSlot::virtual_function(at.parse().unwrap());
    let with = |all: &[PassedSlot]| {
        let mut vm = vm();
        vm.slots.extend(all.iter().cloned());
        vm
    };
    let both = with(&[function("0000:03:10.0"), function("0000:03:10.2")]);
    let xml = edited(&both, Some(&vm()), TUNED);
    let is = |xml: &str| {
        let all = project(xml).unwrap().functions;
        all.iter().filter(|f| f.slot.bus == 3).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(is(&xml), ["0000:03:10.0", "0000:03:10.2"]);
    // Each is function 0 of a device of its own in the guest, whatever it is on the host.
    let guest =
        xml.matches("slot='0x00' function='0x0'/>").count() - TUNED.matches("slot='0x00' function='0x0'/>").count();
    assert_eq!(guest, 2, "{xml}");
    let second = with(&[function("0000:03:10.2")]);
    let less = edited(&second, Some(&both), &xml);
    assert_eq!(is(&less), ["0000:03:10.2"]);
    let names = |wanted: &LibvirtDomain| {
        let all = wanted.differences(Some(&both), &project(&xml).unwrap());
        all.into_iter().map(|f| f.field).collect::<Vec<_>>()
    };
    assert_eq!(names(&second), ["device 0000:03:10.0"]);
    assert_eq!(names(&both), [""; 0]);
    // What is wanted as a whole keeps what was passed alone.
    assert_eq!(names(&with(&[slot("0000:03:10", &[0, 2])])), [""; 0]);
    assert_eq!(is(&edited(&vm(), Some(&second), &less)), [""; 0]);
}

#[test]
fn what_was_not_ours_is_not_taken_away() {
    let mut without = vm();
    (without.slots, without.nic, without.disks) = (vec![], None, vec![]);
    assert_eq!(edit_from(&without.clone(), &without, TUNED), (vec![], vec![]));
}

#[test]
fn elements_without_content_are_filled() {
    let xml = "<domain type='kvm'><name>desk</name><metadata><m xmlns='urn:gpuvm:vm:1'/></metadata>\
               <memory>1024</memory><vcpu>4</vcpu><os firmware='efi'/><memoryBacking a='>'/><devices><!-- x --></devices></domain>";
    let mut wanted = vm();
    wanted.huge_pages = Some(ByteSize::from_mib(2));
    let splices = splice::splice(&wanted, None, &project(xml).unwrap(), xml).unwrap();
    let after = crate::types::splice(xml, &splices).unwrap();
    assert_eq!(wanted.differences(None, &project(&after).unwrap()), [], "{after}");
    assert!(after.contains("<!-- x -->") && after.contains("<memoryBacking a='>'>"), "{after}");
}

#[test]
fn what_would_break_the_guest_is_refused() {
    let refuses = |wanted: &LibvirtDomain, xml: &str, word: &str| match diff(wanted, known(xml, None)) {
        Diff::Blocked { why, help } => assert!(why.contains(word) && !help.is_empty(), "{why}"),
        other => panic!("{word}: {other:?}"),
    };
    let mut bios = vm();
    bios.firmware = Firmware::Bios;
    bios.cpus = 2;
    refuses(&bios, TUNED, "UEFI");
    let mut two = vm();
    two.cpus = 2;
    let topology = TUNED.replace("migratable='on'/>", "><topology sockets='1' cores='2' threads='2'/></cpu>");
    refuses(&two, &topology, "topology");
    let mut small = vm();
    small.memory = ByteSize::from_gib(1);
    refuses(&small, &TUNED.replace("migratable='on'/>", "><numa/></cpu>"), "NUMA");
    refuses(&vm(), &TUNED.replace("desk-0.qcow2", "desk-0.snap1"), "snapshot");
    refuses(&vm(), &TUNED.replace("urn:gpuvm", "urn:others"), "not made by gpuvm");
}

#[test]
fn a_disk_below_a_snapshot_is_there() {
    let over = "<source file='/var/lib/libvirt/images/desk-0.snap1'/>\n      <backingStore type='file'>\
                <source file='/var/lib/libvirt/images/desk-0.qcow2'/></backingStore>";
    let xml = TUNED.replace("<source file='/var/lib/libvirt/images/desk-0.qcow2'/>", over);
    assert!(matches!(diff(&vm(), known(&xml, None)), Diff::InSync { .. }));
}

#[test]
fn a_transient_vm_is_left_alone() {
    let mut known = known(TUNED, Some(TUNED));
    known.domains[0].persistent = false;
    assert!(matches!(diff(&vm(), known), Diff::Blocked { .. }));
}

#[test]
fn a_running_vm_changes_for_its_next_start_and_waits() {
    let mut wanted = vm();
    wanted.cpus = 2;
    let Diff::Change(change) = diff(&wanted, known(TUNED, Some(TUNED))) else { panic!("it changes") };
    assert!(change.risks.contains(&Risk::GuestRestart));
    assert_eq!(change.complete_after, Some(WaitFor::GuestRestart));
    let [Step::EditDomain { edit, .. }] = &change.steps[..] else { panic!("{:?}", change.steps) };
    let xml = &edit.apply(TUNED).unwrap();
    let after = diff(&wanted, known(xml, Some(TUNED)));
    let Diff::Waits { on: WaitFor::GuestRestart, promise, .. } = after else { panic!("it waits: {after:?}") };
    assert!(promise.steps.is_empty(), "nobody restarts it");
    assert!(matches!(diff(&wanted, known(xml, None)), Diff::InSync { .. }), "not running, nothing waits");
}

#[test]
fn only_an_explicit_word_starts_or_stops_a_vm() {
    let with = |running| LibvirtDomain { running, ..vm() };
    assert_eq!(steps(diff(&with(Some(true)), known(TUNED, None))), ["start"]);
    assert_eq!(steps(diff(&with(Some(false)), known(TUNED, Some(TUNED)))), ["stop"]);
    assert!(matches!(diff(&with(None), known(TUNED, None)), Diff::InSync { .. }));
    let made = |start_when_made, running| {
        steps(diff(&LibvirtDomain { start_when_made, running, ..vm() }, Virtualisation::default()))
    };
    assert_eq!(made(false, None), ["define"]);
    assert_eq!(made(true, None), ["define", "start"]);
    assert_eq!(made(true, Some(false)), ["define"]);
    let started = LibvirtDomain { start_when_made: true, ..vm() };
    assert!(matches!(diff(&started, known(TUNED, None)), Diff::InSync { .. }), "only once, when it is made");
    // Making it did not come to its end: the ledger has it as it was begun.
    let after_failure = |wanted: &LibvirtDomain, live| {
        wanted.diff(&Answer::Value(Arc::new(known(TUNED, live))).into(), Some(&started.begun()), &facts())
    };
    assert_eq!(steps(after_failure(&started, None)), ["start"]);
    assert!(matches!(after_failure(&started, Some(TUNED)), Diff::InSync { .. }), "it runs: nothing is owed");
    let stopped = LibvirtDomain { running: Some(false), ..started.clone() };
    assert!(matches!(after_failure(&stopped, None), Diff::InSync { .. }));
    assert!(matches!(after_failure(&vm(), None), Diff::InSync { .. }), "no longer wanted");
}

#[test]
fn autostart_alone_is_no_restart() {
    let wanted = LibvirtDomain { autostart: true, ..vm() };
    let Diff::Change(change) = diff(&wanted, known(TUNED, Some(TUNED))) else { panic!("it changes") };
    assert!(change.risks.is_empty());
    let [Step::EditDomain { edit, autostart: true, .. }] = &change.steps[..] else { panic!("{:?}", change.steps) };
    assert_eq!(edit.apply(TUNED).unwrap(), TUNED);
}

#[test]
fn absent_takes_the_definition_away_unless_it_runs() {
    let gone = LibvirtDomain { absent: true, ..vm() };
    assert_eq!(steps(diff(&gone, known(TUNED, None))), ["undefine"]);
    assert!(matches!(diff(&gone, known(TUNED, Some(TUNED))), Diff::Blocked { .. }));
    assert!(matches!(diff(&gone, known(&TUNED.replace("urn:gpuvm", "urn:x"), None)), Diff::Blocked { .. }));
    assert!(matches!(diff(&gone, Virtualisation::default()), Diff::InSync { .. }));
    assert!(matches!(gone.diff(&Answer::Absent.into(), None, &facts()), Diff::InSync { .. }));
    assert!(matches!(vm().remove(&Answer::Value(Arc::new(known(TUNED, None))).into(), &facts()), Diff::Stays { .. }));
}

#[test]
fn before_libvirt_is_there_everything_is_promised() {
    let wanted = LibvirtDomain { start_when_made: true, ..vm() };
    let Diff::Waits { on: WaitFor::Libvirt, promise, .. } = wanted.diff(&Answer::Absent.into(), None, &facts()) else {
        panic!("it waits")
    };
    assert_eq!((promise.action, promise.steps.len()), (Action::Create, 2));
    assert!(matches!(wanted.diff(&Answer::Denied.into(), None, &facts()), Diff::Unknown { .. }));
}

#[test]
fn the_plan_shows_fields_and_never_what_others_wrote() {
    let mut wanted = vm();
    (wanted.cpus, wanted.memory) = (2, ByteSize::from_gib(4));
    let Diff::Change(change) = diff(&wanted, known(TUNED, None)) else { panic!("it changes") };
    // As a saved plan and its JSON have it, steps and all.
    let shown = serde_json::to_string(&change).unwrap();
    assert!(shown.contains("cpus") && shown.contains("4GiB"), "{shown}");
    for foreign in ["fw_cfg", "keep", "vbios", "setup.iso"] {
        assert!(!shown.contains(foreign), "{shown}");
    }
}

#[test]
fn the_uuid_of_the_vm_that_is_there_is_kept() {
    let xml = write::new(&vm());
    let with = with_uuid(&xml, "11111111-2222-3333-4444-555555555555");
    assert!(with.contains("<name>desk</name>\n  <uuid>11111111-2222-3333-4444-555555555555</uuid>\n"), "{with}");
    assert_eq!(with_uuid(&with, "other"), with);
}

#[test]
fn a_record_holds_nothing_that_others_wrote_for_themselves() {
    let xml =
        TUNED.replace("<uuid>", "<title>canary</title>\n  <sysinfo type='smbios'><x>canary</x></sysinfo>\n  <uuid>");
    let kept = without_private_parts(&xml);
    for foreign in ["canary", "fw_cfg", "other:thing", "pinned by hand"] {
        assert!(!kept.contains(foreign), "{foreign}: {kept}");
    }
    assert_eq!(project(&kept), project(TUNED));
    assert_eq!(without_private_parts("<broken"), "");
}

#[test]
fn what_libvirt_hides_is_put_back_or_nothing_is_done() {
    let xml = |inside: &str| format!("<domain><devices>{inside}</devices></domain>");
    let shown = xml("<graphics type='vnc' port='1'/><graphics type='spice'/>");
    let whole = xml("<graphics type='vnc' port='1' passwd='p&lt;' connected='keep'/><graphics type='spice'/>");
    let after = with_passwords(&shown.replace("port='1'", "port='2'"), &shown, &whole).unwrap();
    assert_eq!(
        after,
        whole.replace("port='1' passwd='p&lt;' connected='keep'", "passwd='p&lt;' connected='keep' port='2'")
    );
    assert_eq!(with_passwords(&shown, &shown, &shown), Some(shown.clone()));
    assert_eq!(with_passwords(&xml(""), &shown, &whole), None, "no place for it");
    assert_eq!(
        with_passwords(&shown, &shown, &whole.replace("<domain>", "<domain secret='1'>")),
        None,
        "something else"
    );
}

#[test]
fn a_kernel_that_is_not_there_is_found_before_anything_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("root/boot")).unwrap();
    std::fs::write(dir.path().join("root/boot/vmlinuz"), "").unwrap();
    crate::host::fixture::Record::default().save(&dir.path().join(crate::host::fixture::Record::NAME)).unwrap();
    let host = crate::host::fixture::Fixture::open(dir.path()).unwrap();
    let boots = |kernel: &str| {
        let boot = Kernel { kernel: kernel.into(), initrd: None, cmdline: None };
        let wanted = LibvirtDomain { boot: Some(boot), running: Some(true), ..vm() };
        wanted.diff(&wanted.probe(&host).unwrap(), None, &facts())
    };
    assert!(matches!(boots("/boot/vmlinuz"), Diff::Waits { .. }));
    let Diff::Blocked { why, .. } = boots("/boot/other") else { panic!("it is not there") };
    assert!(why.contains("`/boot/other`"), "{why}");
}

#[test]
fn a_seed_goes_into_a_drive_of_its_own() {
    let path = std::path::PathBuf::from("/var/lib/libvirt/images/desk-seed.iso");
    let with = LibvirtDomain { seed: Some(path.clone()), ..vm() };
    let new = write::new(&with);
    let drive = "<target dev='sda' bus='sata'/>\n      <readonly/>";
    assert!(new.contains("device='cdrom'") && new.contains(drive), "{new}");
    let is = project(&new).unwrap();
    assert!(is.has_cdrom(&path) && is.disks.len() == 1 && with.differences(None, &is).is_empty());
    // Into one that was tuned by hand, beside what is there; and out of it again.
    let is = project(TUNED).unwrap();
    assert_eq!(with.differences(None, &is).iter().filter(|f| f.field == "seed").count(), 1);
    let edit = TextEdit::new(TUNED, splice::splice(&with, None, &is, TUNED).unwrap()).unwrap();
    let put = edit.apply(TUNED).unwrap();
    let now = project(&put).unwrap();
    assert!(now.has_cdrom(&path), "{put}");
    let back = splice::splice(&vm(), Some(&with), &now, &put).unwrap();
    let back = TextEdit::new(&put, back).unwrap().apply(&put).unwrap();
    assert!(!project(&back).unwrap().has_cdrom(&path) && project(&back).unwrap().disks == is.disks, "{back}");
    // One that runs has it at its next start.
    let fields: Vec<String> = now.differs_from_running(&is).into_iter().map(|f| f.field).collect();
    assert!(fields.contains(&"seed".to_owned()), "{fields:?}");
}

#[test]
fn the_network_devices_of_a_running_vm_are_named_in_what_runs() {
    let live = "<domain><devices><interface type='bridge'><source bridge='br0'/><target dev='vnet3'/></interface>\
        <interface type='network'><source network='default'/><target dev='vnet4'/></interface>\
        <disk type='file'><target dev='vda' bus='virtio'/></disk></devices></domain>";
    assert_eq!(taps(live).into_iter().collect::<Vec<_>>(), ["vnet3", "vnet4"]);
    assert!(taps("<domain><devices/></domain>").is_empty() && taps("no XML").is_empty());
}

fn with_extras() -> LibvirtDomain {
    LibvirtDomain {
        extras: vec![
            Extra::Tpm,
            Extra::Display(Display::Vnc),
            Extra::Usb("046d:c52b".parse().unwrap()),
            Extra::Folder { tag: "share".to_owned(), path: "/srv/share".into() },
        ],
        ..vm()
    }
}

fn edited(wanted: &LibvirtDomain, last: Option<&LibvirtDomain>, xml: &str) -> String {
    let is = project(xml).unwrap();
    let edit = TextEdit::new(xml, splice::splice(wanted, last, &is, xml).unwrap()).unwrap();
    edit.apply(xml).unwrap()
}

#[test]
fn parts_are_written_known_again_put_in_and_taken_out() {
    let wanted = with_extras();
    let new = write::new(&wanted);
    let is = project(&new).unwrap();
    assert_eq!(wanted.differences(None, &is), [], "{new}");
    let values: Vec<String> = is.extras.iter().map(|(k, v)| format!("{k}: {v}")).collect();
    assert_eq!(
        values,
        ["display: vnc on 127.0.0.1", "folder share: /srv/share", "tpm: 2.0, emulated", "usb 046d:c52b: passed"]
    );
    assert!(new.contains("<access mode='shared'/>") && new.contains("startupPolicy='optional'"), "{new}");
    // Into one without any of them, and out of it again: what others put there stays.
    let plain = write::new(&vm());
    let put = edited(&wanted, Some(&vm()), &plain);
    assert_eq!(project(&put).unwrap().extras, is.extras, "{put}");
    assert!(put.contains("<access mode='shared'/>"), "{put}");
    let back = edited(&vm(), Some(&wanted), &put);
    assert!(project(&back).unwrap().extras.is_empty(), "{back}");
}

#[test]
fn a_part_that_becomes_another_takes_the_place_of_the_former() {
    let (vnc, mut spice) = (with_extras(), with_extras());
    spice.extras[1] = Extra::Display(Display::Spice);
    let xml = write::new(&vnc);
    let fields = spice.differences(Some(&vnc), &project(&xml).unwrap());
    let want = FieldDiff::new("display", Some("vnc on 127.0.0.1".to_owned()), Some("spice on 127.0.0.1".to_owned()));
    assert_eq!(fields, [want]);
    let now = edited(&spice, Some(&vnc), &xml);
    assert_eq!((now.matches("<graphics").count(), now.matches("<video>").count()), (1, 1), "{now}");
    assert!(spice.differences(Some(&spice), &project(&now).unwrap()).is_empty());
    let fields: Vec<String> =
        project(&now).unwrap().differs_from_running(&project(&xml).unwrap()).into_iter().map(|f| f.field).collect();
    assert_eq!(fields, ["display"], "one that runs has it at its next start");
}

#[test]
fn secure_boot_and_a_persons_own_elements_are_for_new_ones() {
    let wanted = LibvirtDomain {
        firmware: Firmware::UefiSecure,
        smbios: BTreeMap::from([("serial".to_owned(), "a<b".to_owned())]),
        additions: vec![
            Addition { at: "/domain/devices".to_owned(), xml: "<watchdog model='itco'/>".to_owned() },
            Addition { at: "/domain".to_owned(), xml: "<qemu:commandline xmlns:qemu='urn:q'/>".to_owned() },
        ],
        ..vm()
    };
    let new = write::new(&wanted);
    for part in [
        "<feature enabled='yes' name='secure-boot'/>",
        "<smm state='on'/>",
        "<smbios mode='sysinfo'/>",
        "<entry name='serial'>a&lt;b</entry>",
        "<watchdog model='itco'/>",
        "<qemu:commandline xmlns:qemu='urn:q'/>",
    ] {
        assert!(new.contains(part), "{part}: {new}");
    }
    let is = project(&new).unwrap();
    assert!(is.uefi && wanted.differences(None, &is).is_empty());
    // Its keys are of the firmware that it was made with.
    let known = Virtualisation {
        domains: vec![Domain { name: "desk".to_owned(), persistent: true, inactive_xml: new, ..Domain::default() }],
        ..Virtualisation::default()
    };
    let state = DomainState::from(Answer::Value(Arc::new(known)));
    let Diff::Blocked { why, .. } = vm().diff(&state, Some(&wanted), &facts()) else { panic!("another firmware") };
    assert!(why.contains("`uefi-secure`") && why.contains("`uefi`"), "{why}");
}

#[test]
fn who_gets_in_is_in_the_mark_and_nothing_else_follows_from_it() {
    let wanted = LibvirtDomain { login: Some("alice".to_owned()), ..vm() };
    let xml = write::new(&wanted);
    let read = project(&xml).unwrap();
    assert_eq!((read.marked, read.login.as_deref()), (true, Some("alice")));
    assert_eq!(project(&write::new(&vm())).unwrap().login, None);
    // A guest takes its seed up once: another user in the manifest is no other definition.
    let other = LibvirtDomain { login: Some("bob".to_owned()), ..vm() };
    assert_eq!(edited(&other, Some(&wanted), &xml), xml);
}

#[test]
fn a_disks_bus_cache_and_discard_are_managed_where_they_are_said() {
    let with = |bus: Option<&str>, cache: Option<&str>, discard: Option<&str>| {
        let own = |word: Option<&str>| word.map(str::to_owned);
        let options = DiskOptions { bus: own(bus), cache: own(cache), discard: own(discard) };
        LibvirtDomain { disks: vec![Disk { options, ..disk(0) }], ..vm() }
    };
    let (gone, new) = edit(|vm| *vm = with(None, Some("writeback"), Some("unmap")));
    assert_eq!(gone, ["<driver name='qemu' type='qcow2' cache='none' io='native'/>"]);
    assert_eq!(new, ["<driver discard='unmap' name='qemu' type='qcow2' cache='writeback'/>"]);
    let (gone, new) = edit(|vm| *vm = with(Some("scsi"), None, None));
    let target = "<target dev='vda' bus='virtio'/>";
    let address = "<address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>";
    assert_eq!(gone, [target, address], "what it was on is no place on the other bus");
    // `sda` is the drive with a person's setup in it.
    assert_eq!(new, ["<target dev='sdb' bus='scsi'/>", write::SCSI]);
    let hand = TUNED.replace("<devices>", "<devices><controller type='scsi' index='0' model='lsilogic'/>");
    let is = project(&hand).unwrap();
    let refused = splice::splice(&with(Some("scsi"), None, None), Some(&vm()), &is, &hand).unwrap_err();
    assert!(refused.why.contains("SCSI controller"), "{refused:?}");
    // What the manifest no longer says is as usual again; what it never said stays a person's.
    let (gone, new) = edit_from(&with(None, Some("none"), None), &vm(), TUNED);
    assert_eq!((gone.len(), new), (1, vec!["<driver name='qemu' type='qcow2'/>".to_owned()]));
    assert_eq!(edit(|_| ()), (vec![], vec![]));
    let xml = write::new(&with(Some("sata"), Some("directsync"), Some("ignore")));
    assert!(xml.contains("cache='directsync' discard='ignore'") && xml.contains("dev='sda' bus='sata'"), "{xml}");
    let mut all = with(Some("scsi"), None, None);
    all.disks.push(Disk { options: DiskOptions { bus: Some("sata".into()), ..DiskOptions::default() }, ..disk(1) });
    all.seed = Some("/srv/seed.iso".into());
    let xml = write::new(&all);
    let names: Vec<String> = drives(&xml).unwrap().into_iter().map(|d| d.target).collect();
    assert_eq!(names, ["sdb", "sdc", "sda"]);
    assert!(xml.contains(write::SCSI), "{xml}");
    assert_eq!(all.differences(None, &project(&xml).unwrap()), []);
}

#[test]
fn a_disk_on_another_bus_needs_a_driver_in_the_guest_and_waits_for_its_start() {
    let mut wanted = vm();
    wanted.disks[0].options.bus = Some("sata".to_owned());
    let Diff::Change(change) = diff(&wanted, known(TUNED, Some(TUNED))) else { panic!("a change") };
    assert!(change.notes.iter().any(|n| n.contains("driver for the other bus")), "{:?}", change.notes);
    let stored = TUNED.replace("dev='vda' bus='virtio'", "dev='sdb' bus='sata'");
    let Diff::Waits { why, .. } = diff(&wanted, known(&stored, Some(TUNED))) else { panic!("it waits") };
    assert!(why.starts_with("bus of disk /var/lib/libvirt/images/desk-0.qcow2"), "{why}");
    assert!(matches!(diff(&vm(), known(&stored, Some(TUNED))), Diff::InSync { .. }), "a person's own wish");
}

#[test]
fn the_guest_sees_its_processors_as_the_manifest_says() {
    let topology = |sockets, cores, threads| Some(Topology { sockets, cores, threads, topoext: false });
    let with = |topology| LibvirtDomain { topology, ..vm() };
    let xml = write::new(&with(topology(1, 2, 2)));
    assert!(xml.contains("<topology sockets='1' cores='2' threads='2'/>"), "{xml}");
    let (gone, new) = edit(|vm| *vm = with(topology(1, 2, 2)));
    assert_eq!(gone, ["<cpu mode='host-passthrough' check='none' migratable='on'/>"]);
    assert_eq!(new[1..], ["<topology sockets='1' cores='2' threads='2'/>", "</cpu>"]);
    let amd = with(topology(1, 2, 2).map(|t| Topology { topoext: true, ..t }));
    let feature = "<feature policy='require' name='topoext'/>";
    assert!(write::new(&amd).contains(feature) && !xml.contains(feature));
    assert_eq!(amd.differences(None, &project(&write::new(&amd)).unwrap()), []);
    assert!(!write::new(&LibvirtDomain { accel: Accel::Tcg, ..amd }).contains(feature), "of KVM only");
    let last = with(topology(1, 2, 2));
    let more = LibvirtDomain { cpus: 8, topology: topology(2, 2, 2), ..vm() };
    let after = edited(&more, Some(&last), &xml);
    assert!(after.contains(">8</vcpu>") && after.contains("sockets='2' cores='2' threads='2'"), "{after}");
    assert!(!edited(&vm(), Some(&last), &xml).contains("topology"), "it left the manifest");
    // As libvirt writes it out.
    let full = xml.replace("sockets='1' cores", "sockets='1' dies='1' clusters='1' cores");
    assert_eq!(last.differences(Some(&last), &project(&full).unwrap()), []);
}

#[test]
fn a_new_vm_has_ports_to_spare_for_a_gpu_that_comes_later() {
    for slots in [vec![], vec![slot("0000:02:00", &[0, 1]), slot("0000:03:00", &[0])]] {
        let wanted = LibvirtDomain { slots, ..vm() };
        let xml = write::new(&wanted);
        let ports = xml.matches("model='pcie-root-port'").count();
        // One disk, one card, and what every VM has: channel, balloon, randomness, USB.
        assert_eq!(ports, wanted.slots.len() + 6 + 4, "{xml}");
        // As libvirt places what is its own: at the first ports that are free.
        let mut free = (1u32..).skip(wanted.slots.len());
        let mut placed = xml.replace(
            "model='pcie-root-port'/>",
            "model='pcie-root-port'><address type='pci' bus='0x00'/></controller>",
        );
        for what in [
            "bus='virtio'/>",
            "<model type='virtio'/>",
            "name='org.qemu.guest_agent.0'/>",
            "<memballoon model='virtio'/>",
            "model='random'>/dev/urandom</backend>",
        ] {
            let at = format!(
                "{}<address type='pci' bus='{:#04x}'/>",
                what.replace("<memballoon model='virtio'/>", "<memballoon model='virtio'>"),
                free.next().unwrap()
            );
            let end = if what.starts_with("<memballoon") { "</memballoon>" } else { "" };
            placed = placed.replace(what, &format!("{at}{end}"));
        }
        let card = slot("0000:05:00", &[0, 1, 2, 3]);
        let devices = plugs(&placed, &card).unwrap_or_else(|| panic!("no port for each function:\n{placed}"));
        assert_eq!(devices.len(), 4);
    }
}

#[test]
fn a_device_of_the_hosts_is_a_disk_by_its_stable_name() {
    let path = "/dev/disk/by-id/nvme-eui.0025".into();
    let given = Disk { pool: None, volume: String::new(), block: true, path, options: DiskOptions::default() };
    let wanted = LibvirtDomain { disks: vec![disk(0), given], ..vm() };
    let xml = write::new(&wanted);
    let says = "<disk type='block' device='disk'>\n      <driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>\n      \
                <source dev='/dev/disk/by-id/nvme-eui.0025'/>";
    assert!(xml.contains(says), "{xml}");
    assert_eq!(wanted.differences(None, &project(&xml).unwrap()), []);
    let (gone, new) = edit(|vm| *vm = wanted.clone());
    assert!(gone.is_empty() && new.contains(&"<source dev='/dev/disk/by-id/nvme-eui.0025'/>".to_owned()), "{new:?}");
    let after = edited(&vm(), Some(&wanted), &xml);
    assert!(!after.contains("by-id") && after.contains("desk-0.qcow2"), "it leaves the VM, and stays as it is");
    let read = |text: &str| serde_json::from_str::<Disk>(text).unwrap();
    assert_eq!(
        read(r#"{"pool":"default","volume":"desk-0.qcow2","path":"/var/lib/libvirt/images/desk-0.qcow2"}"#),
        disk(0)
    );
}

#[test]
fn secure_boot_of_ours_is_edited_like_any_other() {
    let secure = LibvirtDomain { firmware: Firmware::UefiSecure, ..vm() };
    let more = LibvirtDomain { cpus: 8, ..secure.clone() };
    assert!(edited(&more, Some(&secure), &write::new(&secure)).contains(">8</vcpu>"));
}

/// Every part that the writer has, alone and together.
#[test]
fn a_definition_is_what_libvirts_own_schema_says() {
    let hostile =
        Kernel { kernel: "/boot/a'b<c>&\"d".into(), initrd: Some("/i".into()), cmdline: Some("a='b'".into()) };
    let options = |bus: &str| DiskOptions {
        bus: Some(bus.to_owned()),
        cache: Some("directsync".to_owned()),
        discard: Some("ignore".to_owned()),
    };
    let device = Disk {
        pool: None,
        volume: String::new(),
        block: true,
        path: "/dev/disk/by-id/nvme-eui.0025".into(),
        options: DiskOptions::default(),
    };
    let mut disks: Vec<Disk> = ["virtio", "scsi", "sata"]
        .iter()
        .enumerate()
        .map(|(n, bus)| Disk { options: options(bus), ..disk(n) })
        .collect();
    disks.push(device);
    let all = LibvirtDomain {
        topology: Some(Topology { sockets: 1, cores: 2, threads: 2, topoext: true }),
        pins: Some(Pins { cpus: BTreeMap::from([(0, "2-3".to_owned())]), emulator: Some("0".to_owned()) }),
        near: Some(Near { node: 0, cpus: "0-7".to_owned() }),
        huge_pages: Some(ByteSize::from_gib(1)),
        disks,
        slots: vec![slot("0000:02:00", &[0, 1]), slot("0001:81:1f", &[3])],
        seed: Some("/srv/seed.iso".into()),
        smbios: BTreeMap::from([("serial".to_owned(), "a<b".to_owned()), ("product".to_owned(), "c".to_owned())]),
        boot: Some(hostile),
        firmware: Firmware::UefiSecure,
        ..with_extras()
    };
    let spice = LibvirtDomain { extras: vec![Extra::Display(Display::Spice)], ..vm() };
    let network = Nic { on: NicOn::Network("default".parse().unwrap()), ..nic("br0", 2) };
    let bios = LibvirtDomain { firmware: Firmware::Bios, accel: Accel::Tcg, nic: Some(network), ..vm() };
    let arm = LibvirtDomain { arch: Arch::Aarch64, seed: Some("/srv/seed.iso".into()), ..with_extras() };
    let windows = LibvirtDomain {
        windows: true,
        firmware: Firmware::UefiSecure,
        media: vec!["/srv/a&b.iso".into(), "/srv/c.iso".into()],
        ..with_extras()
    };
    for wanted in [vm(), all.clone(), spice, bios, arm, windows] {
        crate::validators::libvirt("domain", &write::new(&wanted));
    }
    // What an edit puts in stands where it may.
    let plain = write::new(&LibvirtDomain { disks: vec![disk(0)], slots: vec![], ..vm() });
    let edited = edited(&LibvirtDomain { firmware: Firmware::Uefi, huge_pages: None, ..all }, Some(&vm()), &plain);
    crate::validators::libvirt("domain", &edited);
}

#[test]
fn a_machine_for_windows_is_made_so_and_stays_so() {
    let media: Vec<PathBuf> = vec!["/srv/win11.iso".into(), "/srv/virtio-win.iso".into()];
    let wanted =
        LibvirtDomain { windows: true, media, firmware: Firmware::UefiSecure, extras: vec![Extra::Tpm], ..vm() };
    let xml = write::new(&wanted);
    for part in [
        "<hyperv mode='custom'>",
        "offset='localtime'",
        "hypervclock",
        "<boot dev='cdrom'/>",
        "e1000e",
        "secure-boot",
        "<tpm ",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    assert_eq!(wanted.differences(None, &project(&xml).unwrap()), []);
    let emulated = write::new(&LibvirtDomain { accel: Accel::Tcg, ..wanted.clone() });
    assert!(!emulated.contains("hyperv"), "of KVM only: {emulated}");
    assert!(!write::new(&vm()).contains("<boot dev"), "libvirt's own order");
    // Setup is over.
    let done = LibvirtDomain { media: vec!["/srv/virtio-win.iso".into()], ..wanted.clone() };
    let after = edited(&done, Some(&wanted), &xml);
    assert!(!after.contains("win11.iso") && after.contains("virtio-win.iso"), "{after}");
    let back = edited(&wanted, Some(&done), &after);
    assert!(back.contains("/srv/win11.iso"), "{back}");
    let known = || known(&xml, None);
    let state = || DomainState::from(Answer::Value(Arc::new(known())));
    let other = LibvirtDomain { windows: false, ..wanted.clone() };
    assert!(matches!(other.diff(&state(), Some(&wanted), &facts()), Diff::Blocked { .. }));
    let gone = DomainState { no_media: vec!["/srv/win11.iso".into()], ..state() };
    assert!(matches!(wanted.diff(&gone, Some(&wanted), &facts()), Diff::InSync { .. }), "nothing is to be done");
    let more = LibvirtDomain { cpus: 8, ..wanted.clone() };
    let Diff::Blocked { why, .. } = more.diff(&gone, Some(&wanted), &facts()) else { panic!("it would not start") };
    assert!(why.contains("win11.iso"), "{why}");
}
