//! The shipped script, run as its unit runs it, on a folder that plays sysfs (the kernel's part of a write, and ip(8), are
//! played); and how a device compares with what is wanted.

use std::os::unix::fs::symlink;

use super::*;
use crate::facts::tests::display;
use crate::resource::tests::{PlayedRoot, facts};

const PHYSICAL: &str = "0000:02:00.0";

/// Makes and takes functions as the kernel does, whose drivers get them where that is not switched off or an override
/// says so (drivers/pci/iov.c, `pci_device_can_probe`).
const KERNEL: &str = r#"probe() {
  read -r override < ROOT/sys/bus/pci/devices/$1/driver_override
  read -r auto < ROOT/sys/bus/pci/devices/0000:02:00.0/sriov_drivers_autoprobe
  driver=$override
  [ -n "$override" ] || { [ "$auto" = 0 ] && return; driver=igbvf; }
  ln -s ../../drivers/$driver ROOT/sys/bus/pci/devices/$1/driver
}
echo "${2##*/} $1" >> ROOT/writes
case $2 in
  */sriov_numvfs)
    if [ $1 != 0 ] && [ -e ROOT/refuses ]; then cat ROOT/refuses >&2; exit 1; fi
    if [ $1 != 0 ] && [ "$(cat "$2")" != 0 ]; then echo "printf: write error: Device or resource busy" >&2; exit 1; fi
    for link in ROOT/sys/bus/pci/devices/0000:02:00.0/virtfn*; do
      [ -L $link ] && rm -rf ROOT/sys/bus/pci/devices/$(basename $(readlink $link)) $link
    done
    echo $1 > $2
    n=0
    while [ $n -lt $1 ]; do
      at=0000:02:10.$((n * 2))
      mkdir ROOT/sys/bus/pci/devices/$at
      ln -s ../../../kernel/iommu_groups/$((20 + n)) ROOT/sys/bus/pci/devices/$at/iommu_group
      echo > ROOT/sys/bus/pci/devices/$at/driver_override
      ln -s ../$at ROOT/sys/bus/pci/devices/0000:02:00.0/virtfn$n
      probe $at
      n=$((n + 1))
    done ;;
  */unbind) rm ROOT/sys/bus/pci/devices/$1/driver ;;
  */drivers_probe) probe $1 ;;
  *) printf '%s\n' "$1" > "$2" ;;
esac
"#;

struct Machine {
    dir: PlayedRoot,
}

impl std::ops::Deref for Machine {
    type Target = PlayedRoot;
    fn deref(&self) -> &PlayedRoot {
        &self.dir
    }
}

fn wanted(count: usize, for_vms: bool) -> VirtualFunctions {
    let one = |n: usize| {
        let mac = MacAddress([0x52, 0x54, 0, 0, 0, n as u8]);
        (format!("0000:02:10.{:x}", n * 2).parse().unwrap(), Some(mac))
    };
    VirtualFunctions {
        name: "nic".parse().unwrap(),
        physical: PHYSICAL.parse().unwrap(),
        id: "8086:10c9".parse().unwrap(),
        pattern: "*/pci0000:00/0000:00:12.0/0000:??:00.0".to_owned(),
        card: None,
        vouched: Vouched::default(),
        for_vms,
        functions: (0..count).map(one).collect(),
    }
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: PlayedRoot::new() };
        machine.card(PHYSICAL, "pci0000:00/0000:00:12.0", "8086:10c9", "igb");
        std::fs::create_dir_all(machine.at("sys/bus/pci/drivers/vfio-pci")).unwrap();
        let file = |name: &str| format!("sys/bus/pci/devices/{PHYSICAL}/{name}");
        for (name, text) in [("sriov_numvfs", "0"), ("sriov_drivers_autoprobe", "1"), ("net/enp2s0/operstate", "up")] {
            machine.write(&file(name), format!("{text}\n"));
        }
        let root = machine.path().display().to_string();
        machine.program("kernel", &KERNEL.replace("ROOT", &root));
        machine.program("ip", &format!("echo \"$@\" >> {root}/ip\n"));
        machine.program("modprobe", "exit 1\n");
        machine
    }

    /// What the unit would say: whether it succeeded, and its last line.
    fn run(&self, wanted: &VirtualFunctions) -> (bool, String) {
        self.write("etc/gpuvm/virtual-functions/nic", wanted.text());
        self.run_script(SCRIPT.1, &["nic"])
    }
    fn done(&self, wanted: &VirtualFunctions) {
        let (done, said) = self.run(wanted);
        assert!(done, "{said}");
        assert_eq!(self.read("run/gpuvm/virtual-functions/nic"), wanted.text());
    }
    fn refused(&self, wanted: &VirtualFunctions) -> String {
        let (done, said) = self.run(wanted);
        assert!(!done, "it succeeds: {said}");
        assert_eq!(self.read("run/gpuvm/virtual-functions/why/nic").trim(), said);
        said
    }
    fn drivers(&self) -> String {
        let all = (0..3).map(|n| format!("sys/bus/pci/devices/0000:02:10.{}", n * 2));
        let driver = |at: String| match std::fs::read_link(self.at(&at).join("driver")) {
            Ok(link) => link.file_name().unwrap().to_str().unwrap().to_owned(),
            Err(_) if self.at(&at).is_dir() => "none".to_owned(),
            Err(_) => "-".to_owned(),
        };
        all.map(driver).collect::<Vec<_>>().join(" ")
    }
    fn writes(&self) -> String {
        let all = self.read("writes");
        std::fs::write(self.at("writes"), "").unwrap();
        all.lines().collect::<Vec<_>>().join(", ")
    }
}

#[test]
fn those_for_vms_are_seen_by_no_driver_of_the_hosts() {
    let machine = Machine::new();
    machine.done(&wanted(2, true));
    assert_eq!(machine.drivers(), "vfio-pci vfio-pci -");
    assert_eq!(
        machine.writes(),
        "sriov_drivers_autoprobe 0, sriov_numvfs 2, driver_override vfio-pci, drivers_probe 0000:02:10.0, \
         driver_override vfio-pci, drivers_probe 0000:02:10.2"
    );
    let addresses = "link set dev enp2s0 vf 0 mac 52:54:00:00:00:00\nlink set dev enp2s0 vf 1 mac 52:54:00:00:00:01\n";
    assert_eq!(machine.read("ip"), addresses);
    machine.done(&wanted(2, true));
    assert_eq!(machine.writes(), "", "once more changes nothing");
}

#[test]
fn those_of_the_host_have_their_addresses_before_their_driver() {
    let machine = Machine::new();
    machine.done(&wanted(1, false));
    assert_eq!(machine.drivers(), "igbvf - -");
    assert_eq!(
        machine.writes(),
        "sriov_drivers_autoprobe 0, sriov_numvfs 1, driver_override , sriov_drivers_autoprobe 1, \
         drivers_probe 0000:02:10.0"
    );
    machine.done(&wanted(1, true));
    assert_eq!(machine.drivers(), "vfio-pci - -", "they change hands without going");
    machine.done(&wanted(1, false));
    assert_eq!(machine.drivers(), "igbvf - -");
}

#[test]
fn another_number_goes_through_none_while_nobody_has_one() {
    let machine = Machine::new();
    machine.done(&wanted(2, true));
    std::fs::create_dir_all(machine.at("proc/77/fd")).unwrap();
    symlink("/dev/vfio/21", machine.at("proc/77/fd/9")).unwrap();
    machine.writes();
    std::fs::remove_file(machine.at("ip")).unwrap();
    machine.done(&wanted(2, true));
    assert_eq!(machine.read("ip"), "link set dev enp2s0 vf 0 mac 52:54:00:00:00:00\n", "who has one keeps it as it is");
    let said = machine.refused(&wanted(3, true));
    assert!(said.contains("0000:02:10.2 is in use (pid 77)"), "{said}");
    assert_eq!(machine.writes(), "");
    std::fs::remove_file(machine.at("proc/77/fd/9")).unwrap();
    machine.done(&wanted(3, true));
    assert_eq!(machine.drivers(), "vfio-pci vfio-pci vfio-pci");
    assert!(!machine.at("run/gpuvm/virtual-functions/why/nic").exists(), "what an earlier try failed of is over");
    machine.done(&wanted(1, true));
    assert_eq!(machine.drivers(), "vfio-pci - -");
}

#[test]
fn what_the_kernel_refuses_is_said_with_what_to_do() {
    let machine = Machine::new();
    for (kernel, said) in [
        ("printf: write error: Cannot allocate memory", "left no room for 2 virtual functions of nic"),
        ("printf: write error: No such file or directory", "the driver igb of nic makes no virtual functions"),
        ("printf: write error: Input/output error", "got no 2 virtual functions: Input/output error"),
    ] {
        machine.write("refuses", kernel);
        let why = machine.refused(&wanted(2, true));
        assert!(why.contains(said), "{why}");
        assert_eq!(machine.drivers(), "- - -");
    }
}

#[test]
fn another_device_in_its_place_stays_untouched() {
    let machine = Machine::new();
    let other = VirtualFunctions { id: "8086:1563".parse().unwrap(), ..wanted(1, true) };
    assert!(machine.refused(&other).contains("another device: it was 8086:1563 (nic), and is 8086:10c9"));
    let other = VirtualFunctions { pattern: "*/pci0000:00/0000:00:13.0/0000:??:00.0".to_owned(), ..wanted(1, true) };
    assert!(machine.refused(&other).contains("the addresses have changed"));
    let mut elsewhere = wanted(1, true);
    elsewhere.functions[0].0 = "0000:02:11.0".parse().unwrap();
    assert_eq!(machine.writes(), "");
    assert!(machine.refused(&elsewhere).contains("is 0000:02:10.0, and was to be 0000:02:11.0"));
    assert_eq!(machine.drivers(), "none - -", "nothing has taken it");
    assert_eq!(machine.read("ip"), "");
    std::fs::remove_file(machine.at(&format!("sys/bus/pci/devices/{PHYSICAL}/driver"))).unwrap();
    assert!(machine.refused(&wanted(1, true)).contains("has no driver"));
    assert!(machine.read("settled").contains("settle"), "its driver was waited for");
}

/// A card with so many functions on, on these drivers.
fn host(drivers: &[&str], carries: &[Carries]) -> HostFacts {
    let mut all = facts();
    let mut physical = PciFunction {
        address: PHYSICAL.parse().unwrap(),
        class: 0x02_0000,
        id: "8086:10c9".parse().unwrap(),
        driver: Some("igb".to_owned()),
        carries: carries.iter().cloned().collect(),
        ..display()
    };
    let mut sriov = Sriov { total: 7, now: drivers.len() as u16, ..Sriov::default() };
    for ((n, driver), (address, _)) in (0u16..).zip(drivers).zip(&wanted(drivers.len(), true).functions) {
        sriov.functions.insert(n, *address);
        let f = PciFunction { address: *address, driver: Some((*driver).to_owned()), ..physical.clone() };
        all.pci.insert(
            *address,
            PciFunction { carries: std::collections::BTreeSet::new(), virtual_of: Some(physical.address), ..f },
        );
    }
    physical.sriov = Some(sriov);
    all.pci.insert(physical.address, physical);
    all
}

fn state(of: &VirtualFunctions, held: Option<&str>) -> FunctionsState {
    FunctionsState {
        text: Some(of.text()),
        at_boot: Some(of.boot_text()),
        done: Answer::Value(of.text()),
        why: None,
        held: held.map(str::to_owned),
    }
}

#[test]
fn what_is_as_it_should_be_is_left_alone_and_what_differs_is_named() {
    let two = wanted(2, false);
    let diff = |of: &VirtualFunctions, facts: &HostFacts| of.diff(&state(of, None), Some(of), facts);
    assert!(matches!(diff(&two, &host(&["igbvf", "igbvf"], &[])), Diff::InSync { .. }));
    let Diff::Change(change) = diff(&two, &host(&["igbvf", "vfio-pci"], &[])) else { panic!() };
    assert_eq!(change.fields[0].field, "1: 0000:02:10.2");
    let Diff::Change(change) = diff(&two, &host(&[], &[])) else { panic!() };
    assert!(matches!(&change.steps[..], [Step::VirtualFunctions(s)] if (s.before, s.count) == (0, 2)));
    // Not all that the script does is seen in sysfs.
    let undone = FunctionsState { done: Answer::Absent, ..state(&two, None) };
    assert!(matches!(two.diff(&undone, Some(&two), &host(&["igbvf", "igbvf"], &[])), Diff::Change(_)));
    let denied = FunctionsState { done: Answer::Denied, ..state(&two, None) };
    assert!(matches!(two.diff(&denied, Some(&two), &host(&["igbvf", "igbvf"], &[])), Diff::InSync { .. }));
}

#[test]
fn those_in_use_stay_and_so_do_those_of_others() {
    let (two, three) = (wanted(2, false), wanted(3, false));
    let facts = host(&["igbvf", "igbvf"], &[]);
    let why = |diff: Diff| match diff {
        Diff::Blocked { why, .. } => why,
        other => panic!("{other:?}"),
    };
    let held = state(&two, Some("VM `web` has one of them"));
    assert!(why(three.diff(&held, Some(&two), &facts)).contains("VM `web`"));
    assert!(why(two.remove(&held, &facts)).contains("left the manifest, and VM `web`"));
    assert!(why(three.diff(&state(&two, None), None, &facts)).contains("2 virtual functions that gpuvm did not make"));
    let mut other_address = two.clone();
    other_address.functions[0].1 = None;
    assert!(why(other_address.diff(&held, Some(&two), &facts)).contains("VM `web`"));
    let mut used = facts.clone();
    let link = Carries::Uplink("enp2s0v0".to_owned());
    used.pci.get_mut(&two.functions[0].0).unwrap().carries.insert(link);
    assert!(why(two.remove(&state(&two, None), &used)).contains("0000:02:10.0 carries the uplink enp2s0v0"));
    let Diff::Change(change) = three.diff(&state(&two, None), Some(&two), &facts) else { panic!() };
    assert!(change.notes.iter().any(|n| n.contains("away for a moment")), "{change:?}");
    let Diff::Change(change) = two.remove(&state(&two, None), &facts) else { panic!() };
    assert!(matches!(change.steps[0], Step::VirtualFunctions(VirtualFunctionsStep { count: 0, .. })));
    // Another card is in its place: the file goes, and its functions stay.
    let mut was = two.clone();
    was.card = Card::of(&facts, two.physical.slot).map(|c| Card { id: "8086:1563".parse().unwrap(), ..c });
    let Diff::Change(change) = was.remove(&state(&was, None), &facts) else { panic!() };
    assert!(change.steps.iter().all(|s| matches!(s, Step::RemoveFile { .. })), "{change:?}");
}

#[test]
fn a_group_with_something_of_the_hosts_is_refused_once_it_is_known() {
    let two = wanted(2, true);
    let mut facts = host(&["vfio-pci", "vfio-pci"], &[]);
    facts.iommu = crate::facts::Iommu::On { kind: "intel".to_owned(), groups: BTreeMap::new() };
    let group = |facts: &mut HostFacts, all: [u32; 3]| {
        let addresses = [two.physical, two.functions[0].0, two.functions[1].0];
        for (address, group) in addresses.into_iter().zip(all) {
            facts.pci.get_mut(&address).unwrap().group = Some(group);
        }
    };
    let diff = |facts: &HostFacts| two.diff(&state(&two, None), Some(&two), facts);
    group(&mut facts, [1, 2, 2]);
    assert!(matches!(diff(&facts), Diff::InSync { .. }), "they may share one");
    group(&mut facts, [1, 2, 1]);
    let Diff::Blocked { why, .. } = diff(&facts) else { panic!() };
    assert!(why.starts_with("0000:02:10.2 shares its IOMMU group with 0000:02:00.0"), "{why}");
}

#[test]
fn a_device_that_the_host_needs_is_refused_or_its_risk_is_said() {
    let two = wanted(2, false);
    let uplink = host(&[], &[Carries::Uplink("enp2s0".to_owned())]);
    let Diff::Change(change) = two.diff(&state(&two, None), None, &uplink) else { panic!() };
    assert!(change.risks.contains(&Risk::NetworkLoss));
    assert!(change.notes.iter().any(|n| n.contains("enp2s0") && n.contains("nothing guards that")), "{change:?}");
    let root = host(&[], &[Carries::Mount("/".into())]);
    let Diff::Blocked { why, .. } = two.diff(&state(&two, None), None, &root) else { panic!() };
    assert!(why.contains("carries the file system /"), "{why}");
    let mut given = host(&[], &[]);
    given.pci.get_mut(&two.physical).unwrap().driver = Some("vfio-pci".to_owned());
    let Diff::Blocked { why, .. } = two.diff(&state(&two, None), None, &given) else { panic!() };
    assert!(why.contains("is on vfio-pci"), "{why}");
}
