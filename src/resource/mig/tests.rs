//! The shipped script, run as its unit runs it, with a `nvidia-smi` on its PATH that is played by the forms of tests/mig;
//! and how a card compares with what is wanted.

use super::*;
use crate::facts::tests::display;
use crate::gpu::mig::Profile;
use crate::resource::tests::{PlayedRoot, facts};

const CARD: &str = "0000:81:00.0";

/// `nvidia-smi` of a card: its mode and instances are files; what it is asked for that changes something is written down.
const SMI: &str = r#"case "$*" in
  *-lgi | *--query-gpu*) ;;
  *) echo "$*" >> ROOT/asked ;;
esac
[ ! -e ROOT/hangs ] || exec sleep 600
[ ! -e ROOT/fails ] || { cat ROOT/fails; exit 9; }
case "$*" in
  "-i 0000:81:00.0 --query-gpu=mig.mode.current --format=csv,noheader") cat ROOT/mode ;;
  "-i 0000:81:00.0 -mig 1")
    if [ -e ROOT/pending ]; then
      echo "Warning: MIG mode is in pending enable state for GPU 00000000:81:00.0:In use by another client"
    else
      echo Enabled > ROOT/mode
      echo "Enabled MIG Mode for GPU 00000000:81:00.0"
    fi
    echo "All done." ;;
  "mig -i 0000:81:00.0 -lgi")
    [ -s ROOT/instances ] || { echo "No GPU instances found: Not Found"; exit 6; }
    sed -n 1,5p ROOT/lgi
    while read -r profile start; do
      printf '|   0  MIG %-12s    9        1          %s:4     |\n' "$profile" "$start"
      sed -n 1p ROOT/lgi
    done < ROOT/instances ;;
  "mig -i 0000:81:00.0 -cgi "*" -C")
    [ ! -e ROOT/full ] || { echo "Failed to create GPU instances: Insufficient Resources"; exit 4; }
    for one in $(echo "$5" | tr , ' '); do
      start=${one#*:}
      [ "$start" != "$one" ] || start=4
      echo "${one%%:*} $start" >> ROOT/instances
    done ;;
  *) exit 2 ;;
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

fn wanted(profiles: &[&str]) -> Mig {
    Mig {
        name: "compute".parse().unwrap(),
        physical: CARD.parse().unwrap(),
        id: "10de:20b0".parse().unwrap(),
        pattern: "*/pci0000:80/0000:80:01.0/0000:??:00.0".to_owned(),
        card: None,
        vouched: Vouched::default(),
        profiles: profiles.iter().map(|p| (*p).to_owned()).collect(),
        with_driver: false,
        cdi: false,
    }
}

impl Machine {
    /// MIG mode is in this state.
    fn new(mode: &str) -> Self {
        let machine = Self { dir: PlayedRoot::new() };
        machine.card(CARD, "pci0000:80/0000:80:01.0", "10de:20b0", "nvidia");
        machine.write("mode", format!("{mode}\n"));
        machine.write("instances", "");
        machine.write("lgi", include_str!("../../../tests/mig/a100-40gb-lgi.txt"));
        let root = machine.path().display().to_string();
        machine.program("nvidia-smi", &SMI.replace("ROOT", &root));
        machine
    }
    /// What the unit would say: whether it succeeded, and its last line.
    fn run(&self, text: &str) -> (bool, String) {
        self.write("etc/gpuvm/mig/compute", text);
        self.run_script(&SCRIPT.1.replace("timeout -k 5 60", "timeout -k 5 1"), &["compute"])
    }
    fn done(&self, text: &str) {
        let (done, said) = self.run(text);
        assert!(done, "{said}");
        assert!(!self.at("run/gpuvm/mig/why/compute").exists(), "what an earlier try failed of is over");
    }
    fn refused(&self, text: &str) -> String {
        let (done, said) = self.run(text);
        assert!(!done, "it succeeds: {said}");
        assert_eq!(self.read("run/gpuvm/mig/why/compute").trim(), said);
        said
    }
    fn asked(&self) -> String {
        let all = self.read("asked");
        self.write("asked", "");
        all.lines().collect::<Vec<_>>().join(", ")
    }
}

fn placed(all: &[(&str, u32)]) -> String {
    let all = all.iter().map(|(p, s)| ((*p).to_owned(), *s)).collect();
    wanted(&[]).text(Some(&Arrangement { all, ..Arrangement::default() }))
}

#[test]
fn a_boot_turns_the_mode_on_and_makes_them_in_their_places() {
    let machine = Machine::new("Disabled");
    let text = placed(&[("2g.10gb", 0), ("3g.20gb", 4)]);
    machine.done(&text);
    assert_eq!(
        machine.asked(),
        "-i 0000:81:00.0 -mig 1, mig -i 0000:81:00.0 -cgi 2g.10gb:0,3g.20gb:4 -C",
        "each with its compute instance"
    );
    machine.done(&text);
    assert_eq!(machine.asked(), "", "once more changes nothing");
}

#[test]
fn what_is_missing_is_made_and_nothing_goes() {
    let machine = Machine::new("Enabled");
    machine.write("instances", "1g.5gb 6\n1g.5gb 0\n3g.20gb 4\n");
    machine.done(&placed(&[("1g.5gb", 0), ("1g.5gb", 1), ("3g.20gb", 4)]));
    assert_eq!(machine.asked(), "mig -i 0000:81:00.0 -cgi 1g.5gb:1 -C", "another's at 6 stays");
    // A card that did not tell its places when the file was written: how many there are is what counts.
    machine.write("instances", "1g.5gb 3\n1g.5gb 2\n");
    machine.done(&wanted(&["1g.5gb", "3g.20gb", "1g.5gb", "1g.5gb+me"]).text(None));
    assert_eq!(machine.asked(), "mig -i 0000:81:00.0 -cgi 3g.20gb,1g.5gb+me -C", "the largest first");
}

#[test]
fn what_cannot_be_done_is_said() {
    let machine = Machine::new("Disabled");
    let text = placed(&[("3g.20gb", 4)]);
    machine.write("pending", "");
    let said = machine.refused(&text);
    assert!(said.contains("waits for a reset of the card: Warning: MIG mode is in pending enable state"), "{said}");
    assert_eq!(machine.asked(), "-i 0000:81:00.0 -mig 1", "nothing is made before");
    std::fs::remove_file(machine.at("pending")).unwrap();
    machine.write("full", "");
    let said = machine.refused(&text);
    assert!(said.contains("(3g.20gb:4): Failed to create GPU instances: Insufficient Resources"), "{said}");
    machine.write("fails", "Failed to initialize NVML: Driver/library version mismatch\n");
    let said = machine.refused(&text);
    assert_eq!(said, "nvidia-smi does not tell of compute: Failed to initialize NVML: Driver/library version mismatch");
    std::fs::remove_file(machine.at("fails")).unwrap();
    machine.write("mode", "[N/A]\n");
    assert!(machine.refused(&text).contains("has no MIG: its mode is [N/A]"));
    machine.write("mode", "Enabled\n");
    std::fs::remove_file(machine.at("full")).unwrap();
    machine.done(&text);
}

#[test]
fn one_that_hangs_is_left_behind() {
    let machine = Machine::new("Enabled");
    machine.write("hangs", "");
    let said = machine.refused(&placed(&[("3g.20gb", 4)]));
    assert_eq!(said, "nvidia-smi does not tell of compute: it said nothing");
}

#[test]
fn another_card_in_its_place_stays_untouched() {
    let machine = Machine::new("Disabled");
    let file = |card: &str| format!("card {card}\ninstance 3g.20gb 4\n");
    let here = "*/pci0000:80/0000:80:01.0/0000:??:00.0";
    let said = machine.refused(&file(&format!("{CARD} 10de:2330 {here}")));
    assert!(said.contains("another card: it was 10de:2330 (compute), and is 10de:20b0"), "{said}");
    let said = machine.refused(&file(&format!("{CARD} 10de:20b0 */pci0000:80/0000:80:02.0/0000:??:00.0")));
    assert!(said.contains("the addresses have changed"), "{said}");
    assert!(machine.refused(&file(&format!("0000:82:00.0 10de:20b0 {here}"))).contains("is not there"));
    assert!(machine.read("settled").contains("settle"), "its driver was waited for");
    assert!(machine.refused("instance 3g.20gb 4\n").contains("does not say which card"));
    machine.driver(CARD, Some("vfio-pci"));
    assert!(machine.refused(&file(&format!("{CARD} 10de:20b0 {here}"))).contains("not on nvidia"));
    assert_eq!(machine.asked(), "");
}

#[test]
fn the_unit_is_off_with_an_argument_and_holds_up_no_boot() {
    let unit = UNIT.1;
    assert!(unit.contains("ConditionKernelCommandLine=!gpuvm.off"));
    assert!(unit.contains("TimeoutStartSec=180") && unit.contains("KillMode=process"));
    assert!(wanted(&[]).boot_text().contains("Wants=gpuvm-mig@compute.service"), "wanted, and never required");
}

/// The facts of a host with this driver on the card.
fn on(driver: Option<&str>) -> HostFacts {
    let mut facts = facts();
    let card = PciFunction {
        address: CARD.parse().unwrap(),
        id: "10de:20b0".parse().unwrap(),
        driver: driver.map(str::to_owned),
        ..display()
    };
    facts.pci.insert(card.address, card);
    facts
}

fn a100() -> MigCard {
    let one = |name: &str, id, most, starts: &[u32], size| Profile {
        name: name.into(),
        id,
        most,
        starts: starts.into(),
        size,
    };
    MigCard {
        architecture: "Ampere".into(),
        on: true,
        pending: true,
        profiles: Some(vec![one("1g.5gb", 19, 7, &[0, 1, 2, 3, 4, 5, 6], 1), one("3g.20gb", 9, 2, &[0, 4], 4)]),
        ..MigCard::default()
    }
}

fn instance(profile: &str, start: u32, user: Option<&str>) -> Instance {
    Instance {
        id: start + 1,
        profile: profile.into(),
        start,
        size: if profile.starts_with('3') { 4 } else { 1 },
        uuids: vec![format!("MIG-{start}")],
        compute: 1,
        users: user.into_iter().map(str::to_owned).collect(),
    }
}

fn now(told: Option<Told>) -> MigNow {
    MigNow { text: None, at_boot: None, why: None, told }
}

fn of(card: &MigCard) -> MigNow {
    now(Some(Told::Card(card.clone())))
}

fn diff(mig: &Mig, state: &MigNow) -> Diff {
    mig.diff(state, None, &on(Some("nvidia")))
}

fn changes(diff: Diff) -> Change {
    match diff {
        Diff::Change(change) => change,
        other => panic!("{other:?}"),
    }
}

fn mig_step(change: &Change) -> MigStep {
    let steps: Vec<_> = change.steps.iter().filter_map(|s| if let Step::Mig(m) = s { Some(m) } else { None }).collect();
    assert_eq!(steps.len(), 1, "{change:?}");
    steps[0].clone()
}

#[test]
fn a_card_without_mode_gets_it_and_its_instances() {
    let mig = wanted(&["3g.20gb", "1g.5gb"]);
    let off = MigCard { on: false, pending: false, ..a100() };
    let change = changes(diff(&mig, &of(&off)));
    assert_eq!(mig_step(&change).after.to_string(), "3g.20gb at 0, 1g.5gb at 4");
    assert!(change.notes.iter().any(|n| n.contains("waits for a reboot")), "{:?}", change.notes);
    let untold = MigCard { profiles: None, architecture: "Hopper".into(), ..off.clone() };
    let change = changes(diff(&mig, &of(&untold)));
    assert_eq!(mig_step(&change).after.to_string(), "3g.20gb, 1g.5gb", "placed once the card tells of its places");
    assert!(change.notes.iter().any(|n| n.contains("gone after each boot")), "{:?}", change.notes);
    // Its file has no places, which is as good once the card tells of them.
    let made = MigCard { instances: vec![instance("3g.20gb", 4, None), instance("1g.5gb", 0, None)], ..a100() };
    let text = Some(mig.text(None));
    let files = MigNow { text, at_boot: Some(mig.boot_text()), ..of(&made) };
    assert!(matches!(diff(&mig, &files), Diff::InSync { .. }), "{:?}", diff(&mig, &files));
    let other = MigNow { text: Some(wanted(&["3g.20gb"]).text(None)), ..files };
    let change = changes(diff(&mig, &other));
    assert_eq!(change.steps.len(), 1, "the file alone: {change:?}");
}

#[test]
fn a_mode_that_waits_for_a_reset_is_waited_for() {
    let mig = wanted(&["3g.20gb"]);
    let waits = MigCard { on: false, ..a100() };
    let change = changes(diff(&mig, &of(&waits)));
    assert_eq!(change.complete_after, Some(WaitFor::Reboot));
    assert!(!change.steps.iter().any(|s| matches!(s, Step::Mig(_))));
    let text = mig.text(Some(&mig::arrange(&waits, waits.profiles.as_ref().unwrap(), &mig.profiles).unwrap()));
    let files = MigNow { text: Some(text), at_boot: Some(mig.boot_text()), ..of(&waits) };
    let Diff::Waits { on: WaitFor::Reboot, why, .. } = diff(&mig, &files) else { panic!("it waits") };
    assert!(why.contains("nvidia-smi --gpu-reset -i 0000:81:00.0"), "{why}");
}

#[test]
fn nothing_goes_from_under_who_uses_it() {
    let mig = wanted(&["3g.20gb"]);
    let with = |instances| MigCard { instances, ..a100() };
    let used = with(vec![instance("1g.5gb", 0, Some("docker 0123456789ab (vllm, pid 7)"))]);
    let Diff::Blocked { why, .. } = diff(&mig, &of(&used)) else { panic!("it is used") };
    assert_eq!(why, "1g.5gb at 0 (MIG-0) would go, and is used by docker 0123456789ab (vllm, pid 7)");
    let Diff::Blocked { .. } = wanted(&["1g.5gb"]).remove(&of(&used), &on(Some("nvidia"))) else {
        panic!("it is used")
    };
    let unseen = MigCard { hidden: Some("not root".into()), ..with(vec![instance("1g.5gb", 0, None)]) };
    assert!(matches!(diff(&mig, &of(&unseen)), Diff::Unknown { .. }), "who may use it is not seen");
    let free = with(vec![instance("1g.5gb", 0, None)]);
    let change = changes(diff(&mig, &of(&free)));
    assert!(change.notes.iter().any(|n| n.contains("not made by gpuvm")), "{:?}", change.notes);
    let busy = MigCard { on: false, pending: false, users: ["dcgm (pid 9)".to_owned()].into(), ..a100() };
    let Diff::Blocked { why, .. } = diff(&mig, &of(&busy)) else { panic!("the card is used") };
    assert!(why.contains("used by dcgm (pid 9)"), "{why}");
    // What stays is nobody's trouble.
    let same = MigCard { users: ["dcgm (pid 9)".to_owned()].into(), ..with(vec![instance("3g.20gb", 0, Some("x"))]) };
    assert!(!matches!(diff(&mig, &of(&same)), Diff::Blocked { .. }));
}

#[test]
fn what_is_not_known_is_not_touched() {
    let mig = wanted(&["3g.20gb"]);
    let unknown = now(Some(Told::Unknown("nvidia-smi did not answer within 30 s".into())));
    assert!(matches!(diff(&mig, &unknown), Diff::Unknown { .. }));
    assert!(matches!(mig.remove(&unknown, &on(Some("nvidia"))), Diff::Unknown { .. }));
    let Diff::Blocked { why, .. } = diff(&mig, &now(Some(Told::Without))) else { panic!("it has none") };
    assert!(why.contains("cannot be cut"), "{why}");
    let Diff::Blocked { why, .. } = diff(&wanted(&["2g.10gb"]), &of(&a100())) else { panic!("no such profile") };
    assert_eq!(why, "`2g.10gb` is no profile of this card");
    for driver in [None, Some("nouveau"), Some("vfio-pci")] {
        assert!(matches!(mig.diff(&now(None), None, &on(driver)), Diff::Blocked { .. }), "{driver:?}");
    }
    let with_driver = Mig { with_driver: true, ..mig };
    let diff = with_driver.diff(&now(None), None, &on(Some("nouveau")));
    assert!(matches!(diff, Diff::Waits { on: WaitFor::Reboot, .. }), "{diff:?}");
}

#[test]
fn one_without_its_compute_instance_gets_it() {
    let mig = wanted(&["3g.20gb"]);
    let bare = Instance { compute: 0, uuids: Vec::new(), ..instance("3g.20gb", 0, None) };
    let change = changes(diff(&mig, &of(&MigCard { instances: vec![bare], ..a100() })));
    let step = mig_step(&change);
    assert_eq!(step.before, step.after);
}

#[test]
fn what_leaves_goes_and_what_gpuvm_did_not_make_stays() {
    let mig = wanted(&["3g.20gb"]);
    let all = MigCard { instances: vec![instance("1g.5gb", 0, None), instance("3g.20gb", 4, None)], ..a100() };
    let gone = |card: &MigCard| mig.remove(&of(card), &on(Some("nvidia")));
    let change = changes(gone(&all));
    assert_eq!(mig_step(&change).after.to_string(), "1g.5gb at 0");
    assert!(change.notes[0].contains("stay, and MIG mode on"), "{:?}", change.notes);
    let own = MigCard { instances: vec![instance("3g.20gb", 4, None)], ..a100() };
    assert!(!mig_step(&changes(gone(&own))).after.on, "the last takes the mode with it");
    assert!(matches!(gone(&MigCard { on: false, pending: false, ..a100() }), Diff::InSync { .. }));
    assert!(matches!(gone(&MigCard { pending: false, ..a100() }), Diff::InSync { .. }), "off after the next reset");
    let files = MigNow { text: Some(String::new()), at_boot: Some(String::new()), ..now(None) };
    let change = changes(mig.remove(&files, &on(Some("vfio-pci"))));
    assert_eq!(change.steps.len(), 2, "the files alone");
}
