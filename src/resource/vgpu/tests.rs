//! The shipped script, run as its unit runs it, on a folder that plays sysfs (NVIDIA's driver and sriov-manage are played, by
//! what NVIDIA's guide and public listings say of them); and how a card compares with what is wanted.

use std::os::unix::fs::symlink;

use super::*;
use crate::facts::tests::display;
use crate::resource::tests::{PlayedRoot, facts};

const PHYSICAL: &str = "0000:02:00.0";
const TYPE: &str = "NVIDIA A40-8Q";

/// What the driver does with a write: a type that it lists is made, and once the card is full it lists none.
const KERNEL: &str = r#"echo "$(basename $(dirname $(dirname $2))) $1" >> ROOT/writes
lists() {
  made=0
  for f in ROOT/sys/bus/pci/devices/0000:02:00.[4-7]; do
    [ -e $f/nvidia ] && [ "$(cat $f/nvidia/current_vgpu_type)" != 0 ] && made=$((made + 1))
  done
  for f in ROOT/sys/bus/pci/devices/0000:02:00.[4-7]; do
    [ -e $f/nvidia ] || continue
    echo "ID    : vGPU Name" > $f/nvidia/creatable_vgpu_types
    [ $made -ge $(cat ROOT/fits) ] || [ "$(cat $f/nvidia/current_vgpu_type)" != 0 ] ||
      printf '562   : NVIDIA A40-4Q\n564   : NVIDIA A40-8Q\n' >> $f/nvidia/creatable_vgpu_types
  done
}
if [ $1 != 0 ] && ! grep -q "^$1 " $(dirname $2)/creatable_vgpu_types; then
  echo "printf: write error: Invalid argument" >&2; exit 1
fi
echo $1 > $2
lists
"#;

/// Turns four virtual functions on, or off; while the driver starts it makes none and says nothing.
const MANAGE_PLAYED: &str = r#"echo "sriov-manage $*" >> ROOT/writes
at=ROOT/sys/bus/pci/devices/0000:02:00
case $1 in
  -e)
    left=$(cat ROOT/starting 2> /dev/null || echo 0)
    [ $left = 0 ] || { echo $((left - 1)) > ROOT/starting; echo "driver is busy"; exit 0; }
    for n in 4 5 6 7; do
      mkdir -p $at.$n/nvidia
      ln -s ../../../kernel/iommu_groups/2$n $at.$n/iommu_group
      ln -s ../../../bus/pci/drivers/nvidia $at.$n/driver
      echo 0 > $at.$n/nvidia/current_vgpu_type
      printf 'ID    : vGPU Name\n562   : NVIDIA A40-4Q\n564   : NVIDIA A40-8Q\n' > $at.$n/nvidia/creatable_vgpu_types
      ln -s ../$(basename $at.$n) $at.0/virtfn$((n - 4))
    done
    echo 4 > $at.0/sriov_numvfs ;;
  -d)
    [ ! -e ROOT/locked ] || { echo "Cannot obtain unbindLock"; exit 1; }
    rm -rf $at.[4-7] $at.0/virtfn*
    echo 0 > $at.0/sriov_numvfs ;;
esac
"#;

fn wanted(count: u8, vgpu_type: &str) -> Vgpus {
    Vgpus {
        name: "a40".parse().unwrap(),
        physical: PHYSICAL.parse().unwrap(),
        id: "10de:2235".parse().unwrap(),
        pattern: "*/pci0000:00/0000:00:12.0/0000:??:00.0".to_owned(),
        card: None,
        vouched: Vouched::default(),
        vgpu_type: vgpu_type.to_owned(),
        functions: (0..count).map(|n| format!("0000:02:00.{}", n + 4).parse().unwrap()).collect(),
        mediated: Vec::new(),
    }
}

struct Machine(PlayedRoot);

impl std::ops::Deref for Machine {
    type Target = PlayedRoot;
    fn deref(&self) -> &PlayedRoot {
        &self.0
    }
}

impl Machine {
    /// A card that so many of them fit on.
    fn new(fits: u8) -> Self {
        let machine = Self(PlayedRoot::new());
        machine.card(PHYSICAL, "pci0000:00/0000:00:12.0", "10de:2235", "nvidia");
        machine.write(&format!("sys/bus/pci/devices/{PHYSICAL}/sriov_numvfs"), "0\n");
        machine.write("fits", fits.to_string());
        let root = machine.path().display().to_string();
        machine.program("kernel", &KERNEL.replace("ROOT", &root));
        machine.program("sleep", &format!("echo \"$@\" >> {root}/slept\n"));
        machine.program_at("usr/lib/nvidia/sriov-manage", &MANAGE_PLAYED.replace("ROOT", &root));
        machine
    }

    /// What the unit would say: whether it succeeded, and its last line.
    fn run(&self, wanted: &Vgpus, words: &[&str]) -> (bool, String) {
        self.write("etc/gpuvm/vgpu/a40", wanted.text());
        self.run_script(SCRIPT.1, &[&["a40"], words].concat())
    }
    fn done(&self, wanted: &Vgpus) {
        let (done, said) = self.run(wanted, &[]);
        assert!(done, "{said}");
        assert_eq!(self.read("run/gpuvm/vgpu/a40"), wanted.text());
        assert!(!self.at("run/gpuvm/vgpu/why/a40").exists());
    }
    fn refused(&self, wanted: &Vgpus) -> String {
        let (done, said) = self.run(wanted, &[]);
        assert!(!done, "it succeeds: {said}");
        assert_eq!(self.read("run/gpuvm/vgpu/why/a40").trim(), said);
        said
    }
    fn types(&self) -> String {
        let all = (4..8).map(|n| self.read(&format!("sys/bus/pci/devices/0000:02:00.{n}/nvidia/current_vgpu_type")));
        all.map(|t| if t.is_empty() { "-".to_owned() } else { t.trim().to_owned() }).collect::<Vec<_>>().join(" ")
    }
    fn writes(&self) -> String {
        let all = self.read("writes");
        std::fs::write(self.at("writes"), "").unwrap();
        all.lines().collect::<Vec<_>>().join(", ")
    }
    /// Somebody has this virtual function open.
    fn open(&self, n: u8) {
        std::fs::create_dir_all(self.at("proc/77/fd")).unwrap();
        symlink(format!("/dev/vfio/2{n}"), self.at("proc/77/fd/9")).unwrap();
    }
    fn close(&self) {
        std::fs::remove_file(self.at("proc/77/fd/9")).unwrap();
    }
}

#[test]
fn they_are_made_on_the_virtual_functions_that_were_said() {
    let machine = Machine::new(4);
    machine.done(&wanted(2, TYPE));
    assert_eq!(machine.types(), "564 564 0 0");
    assert_eq!(machine.writes(), "sriov-manage -e 0000:02:00.0, 0000:02:00.4 564, 0000:02:00.5 564");
    machine.open(4);
    machine.done(&wanted(2, TYPE));
    assert_eq!(machine.writes(), "", "once more changes nothing, whoever has one");
    machine.done(&wanted(3, TYPE));
    assert_eq!(machine.writes(), "0000:02:00.6 564", "one more leaves those that are there");
    machine.done(&wanted(1, TYPE));
    assert_eq!(machine.types(), "564 0 0 0");
}

#[test]
fn one_that_is_in_use_is_never_taken() {
    let machine = Machine::new(4);
    machine.done(&wanted(2, TYPE));
    machine.open(5);
    machine.writes();
    assert!(machine.refused(&wanted(1, TYPE)).contains("0000:02:00.5 is in use (pid 77)"));
    assert!(machine.refused(&wanted(2, "NVIDIA A40-4Q")).contains("0000:02:00.5 is in use (pid 77)"));
    assert!(machine.read("sys/bus/pci/devices/0000:02:00.5/nvidia/current_vgpu_type").starts_with("564"));
    let (done, _) = machine.run(&wanted(2, TYPE), &["off"]);
    assert!(!done);
    assert!(!machine.read("writes").contains("0000:02:00.5 0"), "{}", machine.read("writes"));
    machine.close();
    machine.done(&wanted(2, "NVIDIA A40-4Q"));
    assert_eq!(machine.types(), "562 562 0 0");
}

#[test]
fn what_does_not_fit_is_said_with_what_does() {
    let machine = Machine::new(2);
    let why = machine.refused(&wanted(1, "NVIDIA A40-9Q"));
    assert!(why.ends_with("What can: NVIDIA A40-4Q, NVIDIA A40-8Q") && why.contains("NVIDIA A40-9Q"), "{why}");
    assert_eq!(machine.types(), "0 0 0 0");
    let why = machine.refused(&wanted(3, TYPE));
    assert!(why.contains("on 0000:02:00.6 (2 of them are made). What can: nothing more"), "{why}");
    machine.done(&wanted(2, TYPE));
    assert_eq!(machine.types(), "564 564 0 0");
}

#[test]
fn without_nvidias_vgpu_driver_nothing_is_made() {
    let machine = Machine::new(4);
    machine.write("starting", "9");
    assert!(
        machine.refused(&wanted(1, TYPE)).contains("sriov-manage made no virtual functions of a40: driver is busy")
    );
    assert_eq!(machine.read("slept").lines().count(), 4, "it was given time");
    machine.write("starting", "2");
    machine.done(&wanted(1, TYPE));

    let machine = Machine::new(4);
    std::fs::remove_file(machine.at("usr/lib/nvidia/sriov-manage")).unwrap();
    assert!(machine.refused(&wanted(1, TYPE)).contains("NVIDIA's vGPU driver for KVM hosts is not installed"));

    let machine = Machine::new(4);
    machine.driver(PHYSICAL, Some("vfio-pci"));
    assert!(machine.refused(&wanted(1, TYPE)).contains("is on vfio-pci, and not on NVIDIA's driver"));
    assert_eq!(machine.read("writes"), "");
}

#[test]
fn mediated_devices_and_silent_functions_are_told_apart() {
    let machine = Machine::new(4);
    machine.done(&wanted(1, TYPE));
    for n in 4..8 {
        std::fs::remove_dir_all(machine.at(&format!("sys/bus/pci/devices/0000:02:00.{n}/nvidia"))).unwrap();
    }
    assert!(machine.refused(&wanted(1, TYPE)).contains("0000:02:00.4, a function of a40, has no vGPU types"));
    machine.write("sys/bus/pci/devices/0000:02:00.4/mdev_supported_types/nvidia-564/name", "NVIDIA A40-8Q\n");
    let said = machine.refused(&wanted(1, TYPE));
    assert!(said.contains("offers vGPUs by mdev_supported_types, and was to by nvidia/current_vgpu_type"), "{said}");
}

#[test]
fn another_card_in_its_place_stays_untouched() {
    let machine = Machine::new(4);
    let other = Vgpus { id: "10de:20b5".parse().unwrap(), ..wanted(1, TYPE) };
    assert!(machine.refused(&other).contains("another card: it was 10de:20b5 (a40), and is 10de:2235"));
    let other = Vgpus { pattern: "*/pci0000:00/0000:00:13.0/0000:??:00.0".to_owned(), ..wanted(1, TYPE) };
    assert!(machine.refused(&other).contains("the addresses have changed"));
    assert!(!machine.run(&other, &["off"]).0);
    assert_eq!(machine.read("writes"), "");
    let mut elsewhere = wanted(1, TYPE);
    elsewhere.functions[0] = "0000:02:00.5".parse().unwrap();
    assert!(machine.refused(&elsewhere).contains("is 0000:02:00.4, and was to be 0000:02:00.5"));
    assert_eq!(machine.types(), "0 0 0 0");
}

#[test]
fn the_card_is_given_back_whole_where_nothing_else_is_on_it() {
    let machine = Machine::new(4);
    machine.done(&wanted(2, TYPE));
    assert!(machine.run(&wanted(2, TYPE), &["off"]).0);
    assert_eq!(machine.types(), "- - - -");
    assert!(machine.read("writes").ends_with("sriov-manage -d 0000:02:00.0\n"));
    assert!(!machine.at("run/gpuvm/vgpu/a40").exists());

    machine.done(&wanted(1, TYPE));
    machine.write("sys/bus/pci/devices/0000:02:00.7/nvidia/current_vgpu_type", "562\n");
    assert!(machine.run(&wanted(1, TYPE), &["off"]).0);
    assert_eq!(machine.types(), "0 0 0 562", "somebody else's stays");
    machine.write("sys/bus/pci/devices/0000:02:00.7/nvidia/current_vgpu_type", "0\n");
    machine.write("locked", "");
    assert!(machine.run(&wanted(1, TYPE), &["off"]).0, "virtual functions that stay on harm nobody");
}

/// A card with its virtual functions on where there are types for them, each in a group of its own.
fn host(types: &[u32]) -> HostFacts {
    let mut all = facts();
    all.iommu = crate::facts::Iommu::On { kind: "amd".to_owned(), groups: BTreeMap::new() };
    let mut physical = PciFunction {
        address: PHYSICAL.parse().unwrap(),
        class: 0x03_0200,
        id: "10de:2235".parse().unwrap(),
        driver: Some("nvidia".to_owned()),
        group: Some(20),
        ..display()
    };
    let mut sriov = Sriov { total: 4, now: types.len() as u16, ..Sriov::default() };
    for ((n, group), address) in (0u16..).zip(24..).zip(&wanted(types.len() as u8, TYPE).functions) {
        sriov.functions.insert(n, *address);
        let f = PciFunction { address: *address, virtual_of: Some(physical.address), ..physical.clone() };
        all.pci.insert(*address, PciFunction { group: Some(group), ..f });
    }
    physical.sriov = Some(sriov);
    all.pci.insert(physical.address, physical);
    all
}

fn state(of: &Vgpus, types: &[u32], held: &[usize]) -> VgpuState {
    let all = wanted(types.len() as u8, TYPE).functions;
    VgpuState {
        text: Some(of.text()),
        at_boot: Some(of.boot_text()),
        done: Answer::Value(of.text()),
        why: None,
        driver: true,
        types: all.iter().copied().zip(types.iter().copied()).collect(),
        devices: BTreeMap::new(),
        mediated: false,
        creatable: vec!["NVIDIA A40-4Q".to_owned(), TYPE.to_owned()],
        held: held.iter().map(|n| (Vgpu::On(all[*n]), "VM `web` has one of them".to_owned())).collect(),
    }
}

fn why(diff: Diff) -> String {
    match diff {
        Diff::Blocked { why, help } => format!("{why} -> {help}"),
        other => panic!("{other:?}"),
    }
}

fn fields(diff: Diff) -> Vec<String> {
    let Diff::Change(change) = diff else { panic!("{diff:?}") };
    change.fields.iter().filter(|f| !f.field.starts_with("/etc")).map(|f| f.field.clone()).collect()
}

#[test]
fn what_is_as_it_should_be_is_left_alone_and_what_differs_is_named() {
    let two = wanted(2, TYPE);
    let on = [564, 564, 0, 0];
    assert!(matches!(two.diff(&state(&two, &on, &[0, 1]), Some(&two), &host(&on)), Diff::InSync { .. }));
    let denied = VgpuState { done: Answer::Denied, ..state(&two, &on, &[]) };
    assert!(matches!(two.diff(&denied, Some(&two), &host(&on)), Diff::InSync { .. }));
    // A boot takes them all.
    let off = VgpuState { done: Answer::Absent, ..state(&two, &[], &[]) };
    let Diff::Change(change) = two.diff(&off, Some(&two), &host(&[])) else { panic!() };
    assert!(matches!(&change.steps[..], [Step::Vgpus(s)] if (s.before, s.count) == (0, 2)), "{change:?}");
    assert!(change.notes.iter().any(|n| n.contains("once its virtual functions are on")));
    let one_gone = state(&two, &[564, 0, 0, 0], &[]);
    assert_eq!(fields(two.diff(&one_gone, Some(&two), &host(&on))), ["1: 0000:02:00.5"]);
}

#[test]
fn those_in_use_stay_and_others_change() {
    let (two, three) = (wanted(2, TYPE), wanted(3, TYPE));
    let on = [564, 564, 0, 0];
    let more = three.diff(&state(&two, &on, &[0, 1]), Some(&two), &host(&on));
    assert_eq!(fields(more), ["2: 0000:02:00.6"], "one more touches none that is in use");
    let one = wanted(1, TYPE);
    assert_eq!(fields(one.diff(&state(&two, &on, &[0]), Some(&two), &host(&on))), ["0000:02:00.5"]);
    assert!(why(one.diff(&state(&two, &on, &[1]), Some(&two), &host(&on))).contains("VM `web`"));
    let other = wanted(2, "NVIDIA A40-4Q");
    assert!(why(other.diff(&state(&two, &on, &[1]), Some(&two), &host(&on))).contains("VM `web`"));
    assert!(why(two.remove(&state(&two, &on, &[1]), &host(&on))).contains("left the manifest, and VM `web`"));
    let Diff::Change(change) = two.remove(&state(&two, &on, &[]), &host(&on)) else { panic!() };
    assert!(matches!(&change.steps[0], Step::Vgpus(s) if (s.before, s.count) == (2, 0)));
    assert_eq!(change.steps.len(), 3, "and both files go");
    // A removal that was cut off goes on: what they were on is turned off.
    let none = [0, 0, 0, 0];
    let Diff::Change(change) = two.remove(&state(&two, &none, &[]), &host(&none)) else { panic!() };
    assert!(matches!(&change.steps[0], Step::Vgpus(s) if s.count == 0));
}

#[test]
fn what_cannot_be_is_refused_with_what_can() {
    let two = wanted(2, TYPE);
    let none = [0, 0, 0, 0];
    let blocked = |of: &Vgpus, state: VgpuState, facts: &HostFacts| why(of.diff(&state, None, facts));
    let wrong = wanted(1, "NVIDIA A40-9Q");
    let said = blocked(&wrong, state(&wrong, &none, &[]), &host(&none));
    assert!(
        said.contains("`NVIDIA A40-9Q` is no type") && said.ends_with("what it can: NVIDIA A40-4Q, NVIDIA A40-8Q"),
        "{said}"
    );
    let no_driver = VgpuState { driver: false, ..state(&two, &[], &[]) };
    assert!(blocked(&two, no_driver, &host(&[])).contains("the data centre driver"));
    let mediated = VgpuState { mediated: true, types: BTreeMap::new(), ..state(&two, &none, &[]) };
    assert!(blocked(&two, mediated, &host(&none)).contains("offers the vGPUs of 0000:02:00.0 as mediated devices"));
    let silent = VgpuState { types: BTreeMap::new(), ..state(&two, &none, &[]) };
    assert!(blocked(&two, silent, &host(&none)).contains("nvidia-vgpu-mgr"));
    let mut given = host(&[]);
    given.pci.get_mut(&two.physical).unwrap().driver = Some("vfio-pci".to_owned());
    assert!(blocked(&two, state(&two, &[], &[]), &given).contains("is on vfio-pci"));
    let mut shared = host(&none);
    shared.pci.get_mut(&two.functions[1]).unwrap().group = Some(20);
    let said = blocked(&two, state(&two, &none, &[]), &shared);
    assert!(said.starts_with("0000:02:00.5 shares its IOMMU group with 0000:02:00.0"), "{said}");
    // Of others, whether in a place of its own or not.
    for types in [[562, 0, 0, 0], [0, 0, 0, 562]] {
        let others = VgpuState { text: None, done: Answer::Absent, ..state(&two, &types, &[]) };
        assert!(blocked(&two, others, &host(&types)).contains("(type 562) that gpuvm did not make"));
    }
    // Cut off in the middle, they are its own.
    let begun = VgpuState { done: Answer::Absent, ..state(&two, &[564, 0, 0, 0], &[]) };
    assert!(matches!(two.diff(&begun, None, &host(&none)), Diff::Change(_)));
}
