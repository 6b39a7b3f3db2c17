//! On recorded answers (tests/mig says where they are from).

use super::*;
use crate::host::fixture::{Fixture, Record, RecordedQuery};
use crate::host::{DeviceUser, DeviceUsers};

macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!("../../../tests/mig/", $name))
    };
}
const CARD: &str = "0000:81:00.0";
const LOG: &str = recorded!("a100-q.xml");

/// A host on which nvidia-smi answers so; what is not given has no answer.
fn host(answers: &[(&[&str], i32, &str)], users: DeviceUsers) -> (tempfile::TempDir, Fixture) {
    let dir = tempfile::tempdir().unwrap();
    let minor = dir.path().join("root/proc/driver/nvidia/gpus").join(CARD);
    std::fs::create_dir_all(&minor).unwrap();
    std::fs::write(minor.join("information"), "Device Minor: \t 0\n").unwrap();
    for (of, number) in [("gi1/access", 12), ("gi1/ci0/access", 13), ("gi2/access", 21)] {
        let at = dir.path().join("root/proc/driver/nvidia/capabilities/gpu0/mig").join(of);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, format!("DeviceFileMinor: {number}\nDeviceFileMode: 292\n")).unwrap();
    }
    let query = |(args, status, stdout): &(&[&str], i32, &str)| RecordedQuery {
        program: Program::NvidiaSmi,
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        output: Some(Output { status: *status, stdout: (*stdout).to_owned(), stderr: String::new() }),
    };
    let queries = answers.iter().map(query).collect();
    Record { queries, device_users: Some(users), ..Record::default() }.save(&dir.path().join(Record::NAME)).unwrap();
    let fixture = Fixture::open(dir.path()).unwrap();
    (dir, fixture)
}

const LOG_ARGS: &[&str] = &["-q", "-x", "-i", CARD];
const LGIP: &[&str] = &["mig", "-i", CARD, "-lgip"];
const LGIPP: &[&str] = &["mig", "-i", CARD, "-lgipp"];
const LGI: &[&str] = &["mig", "-i", CARD, "-lgi"];

fn a100() -> Vec<(&'static [&'static str], i32, &'static str)> {
    vec![
        (LOG_ARGS, 0, LOG),
        (LGIP, 0, recorded!("a100-40gb-lgip.txt")),
        (LGIPP, 0, recorded!("a100-40gb-lgipp.txt")),
        (LGI, 0, recorded!("a100-40gb-lgi.txt")),
        (&["-L"], 0, recorded!("a100-L.txt")),
    ]
}

fn asked(answers: &[(&[&str], i32, &str)]) -> Told {
    let (_dir, host) = host(answers, DeviceUsers::default());
    ask(&host, CARD.parse().unwrap())
}

fn card(answers: &[(&[&str], i32, &str)]) -> MigCard {
    match asked(answers) {
        Told::Card(card) => card,
        other => panic!("{other:?}"),
    }
}

/// An A100 with these instances: profile, start, whether somebody uses it.
fn with(instances: &[(&str, u32, bool)]) -> (MigCard, Vec<Profile>) {
    let mut card = card(&a100());
    let profiles = card.profiles.clone().unwrap();
    let size = |name: &str| profiles.iter().find(|p| p.name == name).unwrap().size;
    card.instances = instances
        .iter()
        .zip(1..)
        .map(|((name, start, used), id)| Instance {
            id,
            profile: (*name).to_owned(),
            start: *start,
            size: size(name),
            uuids: Vec::new(),
            compute: 1,
            users: used.then(|| "python3 (pid 1)".to_owned()).into_iter().collect(),
        })
        .collect();
    (card, profiles)
}

fn arranged(there: &[(&str, u32, bool)], wanted: &[&str]) -> Result<Arrangement, Impossible> {
    let (card, profiles) = with(there);
    let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
    let all = arrange(&card, &profiles, &wanted)?;
    // Whatever comes out, the card's own table allows it, and no slice is taken twice.
    let mut taken = 0;
    for (name, start) in &all.all {
        let profile = profiles.iter().find(|p| p.name == *name).unwrap();
        assert!(profile.starts.contains(start), "{all:?}");
        assert_eq!(taken & slices(*start, profile.size), 0, "{all:?}");
        taken |= slices(*start, profile.size);
    }
    assert_eq!(all.all.len(), wanted.len());
    Ok(all)
}

fn shown(all: &[(String, u32)]) -> String {
    all.iter().map(|(name, start)| format!("{name}:{start}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn tables_are_read_whatever_their_width() {
    let all = profiles(recorded!("a100-40gb-lgip.txt"), recorded!("a100-40gb-lgipp.txt")).unwrap();
    let of = |name: &str| all.iter().find(|p| p.name == name).unwrap().clone();
    assert_eq!(all.len(), 7);
    let three = Profile { name: "3g.20gb".into(), id: 9, most: 2, starts: vec![0, 4], size: 4 };
    assert_eq!(of("3g.20gb"), three);
    assert_eq!((of("1g.5gb+me").id, of("1g.5gb+me").most), (20, 1));
    assert_eq!((of("7g.40gb").id, of("7g.40gb").size), (0, 8));
    let wide = profiles(recorded!("a30-lgip.txt"), recorded!("a30-lgipp.txt")).unwrap();
    let names: Vec<(&str, u32)> = wide.iter().map(|p| (p.name.as_str(), p.id)).collect();
    assert_eq!(names, [("1g.6gb", 14), ("1g.6gb+me", 21), ("2g.12gb", 5), ("2g.12gb+me", 6), ("4g.24gb", 0)]);
    assert_eq!(profiles(recorded!("a30-lgip.txt"), recorded!("a100-40gb-lgipp.txt")), None, "no place for one of them");
    assert_eq!(profiles("", ""), None);
}

#[test]
fn instances_have_their_uuids_and_whoever_uses_them() {
    let card = card(&a100());
    assert!(card.on && card.pending);
    let shown: Vec<_> = card.instances.iter().map(|i| (i.id, i.profile.as_str(), i.start, i.compute)).collect();
    assert_eq!(shown, [(2, "3g.20gb", 0, 1), (1, "3g.20gb", 4, 1)], "by their places");
    assert_eq!(card.instances[0].uuids, ["MIG-a1000000-0000-0000-0000-000000000001"]);
    assert_eq!(card.instances[0].users, BTreeSet::from(["python3 (pid 5762)".to_owned()]));
    assert!(card.instances[1].users.is_empty() && card.users.is_empty());
}

#[test]
fn a_container_that_has_an_instance_is_named() {
    let user = |pid, name: &str, cgroup: &str, nodes: &[&str]| DeviceUser {
        pid,
        name: name.into(),
        cgroup: cgroup.into(),
        nodes: nodes.iter().map(PathBuf::from).collect(),
        given: BTreeSet::new(),
    };
    let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let docker = format!("/system.slice/docker-{id}.scope");
    let users = vec![
        user(77, "vllm", &docker, &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap13"]),
        user(5762, "python3", "/user.slice", &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap21"]),
        user(8, "nvidia-persiste", "/system.slice/nvidia-persistenced.service", &["/dev/nvidia0"]),
        user(9, "nv-hostengine", "/system.slice/nvidia-dcgm.service", &["/dev/nvidia0"]),
    ];
    let (_dir, host) = host(&a100(), DeviceUsers { users, hidden: None });
    let Told::Card(card) = ask(&host, CARD.parse().unwrap()) else { panic!("it is told") };
    assert_eq!(card.instances[1].users, BTreeSet::from(["docker 0123456789ab (vllm, pid 77)".to_owned()]));
    assert_eq!(card.instances[0].users, BTreeSet::from(["python3 (pid 5762)".to_owned()]), "told twice, and one");
    assert_eq!(card.users, BTreeSet::from(["nvidia-dcgm.service (nv-hostengine, pid 9)".to_owned()]));
}

#[test]
fn a_container_that_was_given_an_instance_has_it_before_anything_runs_on_it() {
    let idle = DeviceUser {
        pid: 77,
        name: "sleep".into(),
        cgroup: "/docker/0123456789abcdef".into(),
        nodes: BTreeSet::new(),
        given: ["/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"].map(PathBuf::from).into(),
    };
    let (_dir, host) = host(&a100(), DeviceUsers { users: vec![idle], hidden: None });
    let Told::Card(card) = ask(&host, CARD.parse().unwrap()) else { panic!("it is told") };
    assert_eq!(card.instances[1].users, BTreeSet::from(["docker 0123456789ab (sleep, pid 77)".to_owned()]));
    assert!(card.users.is_empty() && card.hidden.is_none());
}

#[test]
fn without_the_numbers_of_its_nodes_who_uses_an_instance_is_not_known() {
    let (dir, host) = host(&a100(), DeviceUsers::default());
    std::fs::remove_dir_all(dir.path().join("root/proc/driver/nvidia/gpus")).unwrap();
    let Told::Card(card) = ask(&host, CARD.parse().unwrap()) else { panic!("it is told") };
    assert_eq!(card.hidden.as_deref(), Some("the driver does not tell which device nodes the card has"));
}

#[test]
fn uuids_are_of_this_card_alone() {
    let list = recorded!("h100-L.txt");
    let mut log = Log { uuid: "GPU-00000000-0000-0000-0000-000000000000".into(), ..Log::default() };
    // The instances of that recording: its -q has them.
    log.devices = vec![(0, 2), (1, 3), (2, 9), (3, 10)];
    let bare = |id| Instance { id, ..with(&[("1g.5gb", 0, false)]).0.instances.remove(0) };
    log.card.instances = [2, 3, 9, 10].map(bare).into();
    let other = "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n  MIG 7g.80gb     Device  0: (UUID: MIG-other)\n";
    let mut both = log.card.clone();
    uuids(&mut log, &format!("{list}{other}"));
    let all: Vec<&str> = log.card.instances.iter().flat_map(|i| &i.uuids).map(String::as_str).collect();
    assert_eq!(all.len(), 4);
    assert_eq!(all[3], "MIG-00000003-0000-0000-0000-000000000003");
    std::mem::swap(&mut both, &mut log.card);
    log.uuid = "GPU-2".into();
    uuids(&mut log, list);
    assert!(log.card.instances.iter().all(|i| i.uuids.is_empty()), "another card's are nobody's here");
}

#[test]
fn what_is_not_told_is_unknown_and_never_none() {
    let off = LOG.replace("Enabled", "Disabled");
    let told = |at: usize, status: i32, text: &'static str| {
        let mut answers = a100();
        answers[at] = (answers[at].0, status, text);
        asked(&answers)
    };
    for at in 0..5 {
        let without: Vec<_> = a100().into_iter().enumerate().filter(|(n, _)| *n != at).map(|(_, a)| a).collect();
        assert!(matches!(asked(&without), Told::Unknown(why) if why.contains("does not hold")), "{at}");
        assert!(matches!(told(at, 9, "NVIDIA-SMI has failed"), Told::Unknown(_)), "{at}");
    }
    for text in ["", "<nvidia_smi_log/>", "Unable to determine the device handle for GPU0000:81:00.0: Unknown Error"] {
        assert!(matches!(told(0, 0, text), Told::Unknown(_)), "{text}");
    }
    assert!(matches!(told(3, 0, ""), Told::Unknown(_)), "no table and no word that there is none");
    let Told::Card(none) = told(3, 6, "No GPU instances found: Not Found\n") else { panic!("none is an answer") };
    assert_eq!(none.instances, []);
    let mut answers = a100();
    answers[0].2 = &off;
    let not_yet = card(&answers);
    assert_eq!((not_yet.on, not_yet.profiles), (false, None), "it tells of them once MIG mode is on");
    let never = LOG.replace("Enabled", "N/A");
    answers[0].2 = &never;
    assert_eq!(asked(&answers), Told::Without);
}

#[test]
fn tables_that_contradict_themselves_are_unknown() {
    let a100 = a100();
    for (at, from, to, says) in [
        (1, "1g.5gb ", "2g.10gb ", "the profile 2g.10gb or its number 14 twice"),
        (2, "{0,1,2,3,4,5,6}:1", "{0,1,2,3,4,5,6}:0", "no sense"),
        (2, "{0,1,2,3,4,5,6}:1", "{0,1,1,3,4,5,6}:1", "no sense"),
        (2, "{0,1,2,3,4,5,6}:1", "{0,1,2,3,4,5,4294967295}:2", "no sense"),
        (3, "4:4", "0:4", "no place, or another's"),
        (3, "4:4", "4:four", "mig -lgi ended with 0"),
        (3, "9        1", "9        2", "the instance 2 twice"),
    ] {
        let mut answers = a100.clone();
        let text = answers[at].2.replacen(from, to, 1);
        assert_ne!(text, answers[at].2, "{from}");
        answers[at].2 = &text;
        match asked(&answers) {
            Told::Unknown(why) => assert!(why.contains(says), "{to}: {why}"),
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn instances_are_placed_by_the_cards_own_table() {
    let empty = |wanted: &[&str]| arranged(&[], wanted).map(|a| shown(&a.make));
    assert_eq!(empty(&["3g.20gb", "2g.10gb", "2g.10gb"]).unwrap(), "3g.20gb:4 2g.10gb:0 2g.10gb:2");
    assert_eq!(empty(&["1g.5gb", "3g.20gb", "1g.5gb"]).unwrap(), "3g.20gb:0 1g.5gb:4 1g.5gb:5");
    assert_eq!(empty(&["3g.20gb", "4g.20gb"]).unwrap(), "4g.20gb:0 3g.20gb:4");
    assert_eq!(empty(&["1g.5gb"; 7]).unwrap().split(' ').count(), 7);
    assert_eq!(empty(&["2g.10gb", "2g.10gb", "2g.10gb", "1g.5gb"]).unwrap(), "2g.10gb:0 2g.10gb:2 2g.10gb:4 1g.5gb:6");
}

#[test]
fn what_the_card_has_no_room_for_is_refused_with_what_is_possible() {
    let no = |there: &[(&str, u32, bool)], wanted: &[&str]| arranged(there, wanted).unwrap_err();
    let wrong = no(&[], &["3g.40gb"]);
    assert_eq!(wrong.why, "`3g.40gb` is no profile of this card");
    assert!(wrong.help.contains("1g.5gb ×7, 1g.5gb+me ×1, 1g.10gb ×4"), "{}", wrong.help);
    assert!(no(&[], &["1g.5gb+me"; 2]).why.contains("wanted 2 times, and the card has room for 1"));
    let many = no(&[], &["3g.20gb", "3g.20gb", "1g.5gb"]);
    assert!(many.why.contains("do not fit on the card together"), "{}", many.why);
    assert!(many.help.starts_with("without one 3g.20gb they fit; without one 1g.5gb they fit; "), "{}", many.help);
    let stuck = no(&[("1g.5gb", 1, true), ("1g.5gb", 5, true)], &["1g.5gb", "1g.5gb", "3g.20gb"]);
    assert!(stuck.why.contains("beside 1g.5gb at 1, which is used by python3 (pid 1); 1g.5gb at 5"), "{}", stuck.why);
}

#[test]
fn what_is_there_and_wanted_stays_as_long_as_the_rest_fits() {
    let more = arranged(&[("3g.20gb", 4, false)], &["3g.20gb", "2g.10gb"]).unwrap();
    assert_eq!((more.remove.len(), shown(&more.make)), (0, "2g.10gb:0".to_owned()));
    let fewer = arranged(&[("1g.5gb", 0, false), ("1g.5gb", 1, true)], &["1g.5gb"]).unwrap();
    assert_eq!(fewer.remove, BTreeSet::from([1]), "the one that is used stays");
    assert_eq!(shown(&fewer.all), "1g.5gb:1");
    let moved = arranged(&[("1g.5gb", 1, false), ("1g.5gb", 5, false)], &["1g.5gb", "1g.5gb", "3g.20gb"]).unwrap();
    assert_eq!(moved.remove, BTreeSet::from([1, 2]), "both stand in the way of the third");
    let around = arranged(&[("1g.5gb", 1, true), ("1g.5gb", 5, false)], &["1g.5gb", "1g.5gb", "3g.20gb"]).unwrap();
    assert_eq!((around.remove, shown(&around.all)), (BTreeSet::from([2]), "1g.5gb:0 1g.5gb:1 3g.20gb:4".to_owned()));
    let same = arranged(&[("3g.20gb", 4, false), ("3g.20gb", 0, false)], &["3g.20gb", "3g.20gb"]).unwrap();
    assert_eq!((same.remove.len(), same.make.len()), (0, 0));
}

#[test]
fn slices_are_bits() {
    assert_eq!((slices(0, 4), slices(4, 4), slices(0, 8)), (0x0f, 0xf0, 0xff));
    assert_eq!(slices(70, 1), 0, "beyond what a card can have");
}
