//! The shipped script on a folder that plays sysfs, with a card whose driver offers mediated devices (the driver, the kernel's
//! part of a write and sriov-manage are played, by the kernel's document and NVIDIA's guide); and how a card compares with
//! what is wanted.

use std::os::unix::fs::symlink;

use super::super::*;
use super::*;
use crate::facts::tests::display;
use crate::resource::tests::{PlayedRoot, facts};

const PHYSICAL: &str = "0000:02:00.0";
const TYPE: &str = "GRID T4-4Q";
const OTHERS: &str = "aa618089-8b16-4d01-a136-25a0f3c73123";

/// Makes one of a type while there is room, takes one away, and counts what is left: of a function, all of one type.
const KERNEL: &str = r#"echo "${2##*/} $1" >> ROOT/writes
case $2 in
  */create)
    kind=${2%/create}
    on=$(cd -P ${kind%/*}/.. && pwd)
    [ "$(cat $kind/available_instances)" != 0 ] || { echo "printf: write error: No space left on device" >&2; exit 1; }
    mkdir -p $on/$1 ROOT/sys/bus/mdev/devices
    ln -s $kind $on/$1/mdev_type
    ln -s ../../kernel/iommu_groups/$((40 + $(ls ROOT/sys/bus/mdev/devices | wc -l))) $on/$1/iommu_group
    ln -s $on/$1 ROOT/sys/bus/mdev/devices/$1 ;;
  */remove)
    uuid=${2%/remove}
    on=$(readlink $uuid)
    rm -rf $on $uuid
    on=${on%/*} ;;
  *) echo "printf: write error: Invalid argument" >&2; exit 1 ;;
esac
made=$(ls -d $on/*-*-*-*-* 2> /dev/null | wc -l)
for kind in $on/mdev_supported_types/*; do
  echo $(($(cat $kind/most) - made)) > $kind/available_instances
done
"#;

/// Turns two virtual functions on, each of which offers one mediated device, or off.
const MANAGE_PLAYED: &str = r#"echo "sriov-manage $*" >> ROOT/writes
at=ROOT/sys/bus/pci/devices/0000:02:00
case $1 in
  -e)
    for n in 4 5; do
      for kind in 222 223; do
        mkdir -p $at.$n/mdev_supported_types/nvidia-$kind
        echo 1 > $at.$n/mdev_supported_types/nvidia-$kind/most
        echo 1 > $at.$n/mdev_supported_types/nvidia-$kind/available_instances
        echo "GRID T4-$((kind - 218))Q" > $at.$n/mdev_supported_types/nvidia-$kind/name
      done
      ln -s ../$(basename $at.$n) $at.0/virtfn$((n - 4))
    done
    echo 2 > $at.0/sriov_numvfs ;;
  -d)
    rm -rf $at.[45] $at.0/virtfn*
    echo 0 > $at.0/sriov_numvfs ;;
esac
"#;

fn uuid(number: usize) -> MdevUuid {
    MdevUuid::of("host", "t4", number)
}

/// On the card's own function.
fn wanted(count: usize, vgpu_type: &str) -> Vgpus {
    Vgpus {
        name: "t4".parse().unwrap(),
        physical: PHYSICAL.parse().unwrap(),
        id: "10de:1eb8".parse().unwrap(),
        pattern: "*/pci0000:00/0000:00:12.0/0000:??:00.0".to_owned(),
        card: None,
        vouched: Vouched::default(),
        vgpu_type: vgpu_type.to_owned(),
        functions: vec![PHYSICAL.parse().unwrap(); count],
        mediated: (0..count).map(uuid).collect(),
    }
}

/// On virtual functions.
fn on_virtual(count: usize) -> Vgpus {
    let functions = (0..count).map(|n| format!("0000:02:00.{}", n + 4).parse().unwrap()).collect();
    Vgpus { functions, ..wanted(count, TYPE) }
}

struct Machine(PlayedRoot);

impl std::ops::Deref for Machine {
    type Target = PlayedRoot;
    fn deref(&self) -> &PlayedRoot {
        &self.0
    }
}

impl Machine {
    /// A card that four of the smaller type fit on; `sriov`: by its virtual functions.
    fn new(sriov: bool) -> Self {
        let machine = Self(PlayedRoot::new());
        machine.card(PHYSICAL, "pci0000:00/0000:00:12.0", "10de:1eb8", "nvidia");
        let root = machine.path().display().to_string();
        machine.program("kernel", &KERNEL.replace("ROOT", &root));
        let own = format!("sys/bus/pci/devices/{PHYSICAL}");
        if sriov {
            machine.write(&format!("{own}/sriov_numvfs"), "0\n");
            machine.program_at("usr/lib/nvidia/sriov-manage", &MANAGE_PLAYED.replace("ROOT", &root));
        } else {
            for (kind, name, most) in [("222", TYPE, "4"), ("223", "GRID T4-8Q", "2")] {
                let at = format!("{own}/mdev_supported_types/nvidia-{kind}");
                machine.write(&format!("{at}/name"), format!("{name}\n"));
                machine.write(&format!("{at}/most"), most);
                machine.write(&format!("{at}/available_instances"), format!("{most}\n"));
            }
        }
        machine
    }
    fn run(&self, wanted: &Vgpus, words: &[&str]) -> (bool, String) {
        self.write("etc/gpuvm/vgpu/t4", wanted.text());
        self.run_script(SCRIPT.1, &[&["t4"], words].concat())
    }
    fn done(&self, wanted: &Vgpus) {
        let (done, said) = self.run(wanted, &[]);
        assert!(done, "{said}");
        assert_eq!(self.read("run/gpuvm/vgpu/t4"), wanted.text());
    }
    fn refused(&self, wanted: &Vgpus) -> String {
        let (done, said) = self.run(wanted, &[]);
        assert!(!done, "it succeeds: {said}");
        assert_eq!(self.read("run/gpuvm/vgpu/why/t4").trim(), said);
        said
    }
    /// The type of each of the first, `-` where it is not there.
    fn types(&self) -> String {
        let one = |n| self.read(&format!("sys/bus/mdev/devices/{}/mdev_type/name", uuid(n))).trim().to_owned();
        let all = (0..3).map(one).map(|name| if name.is_empty() { "-".to_owned() } else { name });
        all.collect::<Vec<_>>().join(", ")
    }
    fn writes(&self) -> String {
        let all = self.read("writes");
        self.write("writes", "");
        all.lines().collect::<Vec<_>>().join(", ")
    }
    /// Somebody has this one open.
    fn open(&self, n: usize) {
        let group = std::fs::read_link(self.at(&format!("sys/bus/mdev/devices/{}/iommu_group", uuid(n)))).unwrap();
        std::fs::create_dir_all(self.at("proc/77/fd")).unwrap();
        let _ = std::fs::remove_file(self.at("proc/77/fd/9"));
        symlink(std::path::Path::new("/dev/vfio").join(group.file_name().unwrap()), self.at("proc/77/fd/9")).unwrap();
    }
    /// What somebody else makes, by mdevctl or by hand.
    fn others(&self, on: &str, kind: &str) {
        let create = self.at(&format!("sys/bus/pci/devices/{on}/mdev_supported_types/{kind}/create"));
        let kernel = self.at("bin/kernel");
        #[allow(clippy::disallowed_methods)] // a test plays the kernel
        let made = std::process::Command::new(kernel).arg(OTHERS).arg(create).status().unwrap();
        assert!(made.success());
        self.writes();
    }
    fn has_others(&self) -> bool {
        self.at(&format!("sys/bus/mdev/devices/{OTHERS}/mdev_type/name")).exists()
    }
}

#[test]
fn they_are_made_on_the_card_itself_and_stay() {
    let machine = Machine::new(false);
    machine.done(&wanted(2, TYPE));
    assert_eq!(machine.types(), "GRID T4-4Q, GRID T4-4Q, -");
    assert_eq!(machine.writes(), format!("create {}, create {}", uuid(0), uuid(1)));
    machine.open(0);
    machine.done(&wanted(2, TYPE));
    assert_eq!(machine.writes(), "", "once more changes nothing, whoever has one");
    std::fs::remove_dir_all(machine.at("run")).unwrap();
    machine.done(&wanted(2, TYPE));
    assert_eq!(machine.writes(), "", "nor where no list of this boot's is left: their types have names");
    machine.done(&wanted(3, TYPE));
    assert_eq!(machine.writes(), format!("create {}", uuid(2)), "one more leaves those that are there");
    machine.done(&wanted(1, TYPE));
    assert_eq!(machine.types(), "GRID T4-4Q, -, -");
    assert!(machine.run(&wanted(1, TYPE), &["off"]).1.contains("is in use (pid 77)"));
    std::fs::remove_file(machine.at("proc/77/fd/9")).unwrap();
    assert!(machine.run(&wanted(1, TYPE), &["off"]).0);
    assert_eq!(machine.types(), "-, -, -");
    assert!(!machine.at("run/gpuvm/vgpu/t4").exists());
}

#[test]
fn one_that_is_in_use_is_never_taken_and_what_others_made_stays() {
    let machine = Machine::new(false);
    machine.others(PHYSICAL, "nvidia-222");
    machine.done(&wanted(2, TYPE));
    machine.open(1);
    machine.writes();
    for other in [wanted(1, TYPE), wanted(2, "GRID T4-8Q")] {
        let said = machine.refused(&other);
        assert!(said.contains(&format!("{PHYSICAL}/{} is in use (pid 77)", uuid(1))), "{said}");
    }
    assert!(!machine.run(&wanted(2, TYPE), &["off"]).0);
    assert!(!machine.read("writes").contains("remove"), "{}", machine.read("writes"));
    assert_eq!(machine.types(), "GRID T4-4Q, GRID T4-4Q, -");
    std::fs::remove_file(machine.at("proc/77/fd/9")).unwrap();
    // With what others made there is room for none of the larger type beside both.
    let said = machine.refused(&wanted(2, "GRID T4-8Q"));
    assert!(said.contains("no vGPU of type GRID T4-8Q can be made on 0000:02:00.0 (1 of them are made)"), "{said}");
    assert!(said.ends_with("What can: GRID T4-4Q"), "{said}");
    assert!(machine.run(&wanted(2, TYPE), &["off"]).0);
    assert_eq!((machine.types().as_str(), machine.has_others()), ("-, -, -", true));
}

#[test]
fn on_virtual_functions_they_come_after_sriov_manage_and_go_with_them() {
    let machine = Machine::new(true);
    machine.done(&on_virtual(2));
    assert_eq!(machine.types(), "GRID T4-4Q, GRID T4-4Q, -");
    let made = format!("sriov-manage -e {PHYSICAL}, create {}, create {}", uuid(0), uuid(1));
    assert_eq!(machine.writes(), made);
    assert!(machine.run(&on_virtual(2), &["off"]).0);
    assert!(machine.writes().ends_with(&format!("sriov-manage -d {PHYSICAL}")));

    machine.done(&on_virtual(1));
    machine.others("0000:02:00.5", "nvidia-223");
    let said = machine.refused(&on_virtual(2));
    assert!(said.contains("can be made on 0000:02:00.5 (1 of them are made). What can: nothing more"), "{said}");
    assert!(machine.run(&on_virtual(2), &["off"]).0);
    assert_eq!((machine.types().as_str(), machine.has_others()), ("-, -, -", true));
    assert!(!machine.writes().contains("sriov-manage -d"), "somebody else's is on them");
    // In another place than the one that was meant, it is made anew.
    let mut elsewhere = on_virtual(1);
    elsewhere.functions[0] = "0000:02:00.5".parse().unwrap();
    assert!(machine.refused(&elsewhere).contains("is 0000:02:00.4, and was to be 0000:02:00.5"));
}

#[test]
fn a_driver_that_offers_none_or_another_way_is_told() {
    let machine = Machine::new(false);
    std::fs::remove_dir_all(machine.at(&format!("sys/bus/pci/devices/{PHYSICAL}/mdev_supported_types"))).unwrap();
    let said = machine.refused(&wanted(1, TYPE));
    assert!(said.contains("0000:02:00.0, a function of t4, has no vGPU types"), "{said}");
    machine.write(&format!("sys/bus/pci/devices/{PHYSICAL}/nvidia/current_vgpu_type"), "0\n");
    assert!(machine.refused(&wanted(1, TYPE)).contains("offers vGPUs by nvidia/current_vgpu_type"));
    machine.driver(PHYSICAL, Some("vfio-pci"));
    assert!(machine.refused(&wanted(1, TYPE)).contains("is on vfio-pci, and not on NVIDIA's driver"));
    assert_eq!(machine.writes(), "");
}

/// The facts of a host with that card.
fn host() -> HostFacts {
    let mut all = facts();
    all.iommu = crate::facts::Iommu::On { kind: "amd".to_owned(), groups: BTreeMap::new() };
    let card = PciFunction {
        address: PHYSICAL.parse().unwrap(),
        class: 0x03_0200,
        id: "10de:1eb8".parse().unwrap(),
        driver: Some("nvidia".to_owned()),
        group: Some(20),
        ..display()
    };
    all.pci.insert(card.address, card);
    all
}

/// These are made, by number; the second is held where that is said.
fn state(of: &Vgpus, numbers: &[usize], used: bool) -> VgpuState {
    let made = |n: &usize| (uuid(*n), Made { on: PHYSICAL.parse().unwrap(), vgpu_type: TYPE.to_owned() });
    let who = (Vgpu::Mediated(uuid(1)), "VM `web` has one of them".to_owned());
    VgpuState {
        text: Some(of.text()),
        at_boot: Some(of.boot_text()),
        done: Answer::Value(of.text()),
        why: None,
        driver: true,
        types: BTreeMap::new(),
        devices: numbers.iter().map(made).collect(),
        mediated: true,
        creatable: vec![TYPE.to_owned(), "GRID T4-8Q".to_owned()],
        held: used.then_some(who).into_iter().collect(),
    }
}

fn why(diff: Diff) -> String {
    match diff {
        Diff::Blocked { why, help } => format!("{why} -> {help}"),
        other => panic!("{other:?}"),
    }
}

fn step(diff: Diff) -> (u16, u16) {
    let Diff::Change(change) = diff else { panic!("{diff:?}") };
    let step = change.steps.iter().find_map(|s| if let Step::Vgpus(s) = s { Some((s.before, s.count)) } else { None });
    step.unwrap()
}

#[test]
fn what_is_as_it_should_be_is_left_alone_and_one_in_use_stays() {
    let (one, two, three) = (wanted(1, TYPE), wanted(2, TYPE), wanted(3, TYPE));
    let both = || state(&two, &[0, 1], true);
    assert!(matches!(two.diff(&both(), Some(&two), &host()), Diff::InSync { .. }));
    // A boot takes them all.
    let off = VgpuState { done: Answer::Absent, ..state(&two, &[], false) };
    assert_eq!(step(two.diff(&off, Some(&two), &host())), (0, 2));
    assert_eq!(step(three.diff(&both(), Some(&two), &host())), (2, 3), "one more touches none");
    assert!(why(one.diff(&both(), Some(&two), &host())).contains("VM `web`"));
    assert!(why(wanted(2, "GRID T4-8Q").diff(&both(), Some(&two), &host())).contains("VM `web`"));
    assert!(why(two.remove(&both(), &host())).contains("left the manifest, and VM `web`"));
    assert_eq!(step(two.remove(&state(&two, &[0, 1], false), &host())), (2, 0));
    let mut moved = both();
    moved.held.clear();
    moved.devices.insert(uuid(0), Made { on: "0000:02:00.4".parse().unwrap(), vgpu_type: TYPE.to_owned() });
    let Diff::Change(change) = two.diff(&moved, Some(&two), &host()) else { panic!() };
    assert!(change.fields.iter().any(|f| f.before.as_deref() == Some("GRID T4-4Q on 0000:02:00.4")), "{change:?}");
}

#[test]
fn what_others_made_stays_and_is_refused_only_in_the_way() {
    let two = wanted(2, TYPE);
    let with = |of: &Vgpus, uuid: MdevUuid, on: &str| {
        let mut state = VgpuState { text: None, done: Answer::Absent, ..state(of, &[], false) };
        state.devices.insert(uuid, Made { on: on.parse().unwrap(), vgpu_type: "GRID T4-8Q".to_owned() });
        state
    };
    let others: MdevUuid = OTHERS.parse().unwrap();
    assert_eq!(step(two.diff(&with(&two, others, PHYSICAL), None, &host())), (0, 2), "there may be room beside it");
    let said = why(two.diff(&with(&two, uuid(0), PHYSICAL), None, &host()));
    assert!(said.contains("0000:02:00.0 has a vGPU (GRID T4-8Q) that gpuvm did not make"), "{said}");
    assert!(said.ends_with(&format!("write 1 to /sys/bus/mdev/devices/{}/remove", uuid(0))), "{said}");
    let mut sriov = host();
    let virtuals = on_virtual(2);
    let places = (0u16..).zip(virtuals.functions.iter().copied()).collect();
    let own = sriov.pci.get_mut(&two.physical).unwrap();
    own.sriov = Some(Sriov { total: 2, now: 2, functions: places, ..Sriov::default() });
    let own = own.clone();
    for (address, group) in virtuals.functions.iter().zip(30..) {
        let f = PciFunction { address: *address, virtual_of: Some(own.address), sriov: None, ..own.clone() };
        sriov.pci.insert(*address, PciFunction { group: Some(group), ..f });
    }
    assert!(why(virtuals.diff(&with(&virtuals, others, "0000:02:00.5"), None, &sriov)).contains("did not make"));
    assert_eq!(step(on_virtual(1).diff(&with(&on_virtual(1), others, "0000:02:00.5"), None, &sriov)), (0, 1));
}

#[test]
fn a_driver_that_cannot_is_refused_with_why() {
    let one = wanted(1, TYPE);
    let fresh = VgpuState { text: None, done: Answer::Absent, ..state(&one, &[], false) };
    assert!(matches!(one.diff(&fresh, None, &host()), Diff::Change(_)));
    let old = VgpuState { driver: false, ..state(&one, &[], false) };
    assert!(matches!(one.diff(&VgpuState { done: Answer::Absent, ..old }, None, &host()), Diff::Change(_)));
    let none = VgpuState { mediated: false, ..state(&one, &[], false) };
    assert!(why(one.diff(&none, None, &host())).contains("0000:02:00.0 tells no vGPU types"));
    let without = VgpuState { mediated: false, driver: false, ..state(&one, &[], false) };
    assert!(why(one.diff(&without, None, &host())).contains("the data centre driver"));
    let wrong = wanted(1, "GRID T4-9Q");
    assert!(why(wrong.diff(&fresh, None, &host())).contains("what it can: GRID T4-4Q, GRID T4-8Q"));
}
