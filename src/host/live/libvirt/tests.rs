use super::storage::{pool_xml, volume_xml};
use super::*;
use crate::plan::{TextEdit, VolumeStep};
use crate::resource::libvirt_domain::{MARK, is_marked, project};
use crate::types::{ByteSize, Splice};
use crate::validators;

/// libvirt's own test driver: a hypervisor in memory, the same for all tests of the process. `None` where libvirt is
/// not installed.
fn connection() -> Option<Connect> {
    loaded().then(|| Connect::open(Some("test:///default")).unwrap())
}

fn step(connection: &Connect, step: Step) -> Result<(), String> {
    perform(connection, &step, &mut Vec::new()).map_err(|e| e.to_string())
}

const XML: &str = "<domain type='test'>\n  <name>mine</name>\n  <metadata><v xmlns='urn:gpuvm:vm:1'/></metadata>\n  \
                   <memory unit='KiB'>65536</memory>\n  <vcpu>1</vcpu>\n  <os><type>hvm</type></os>\n</domain>";

fn define(name: &str, xml: &str) -> Step {
    Step::DefineDomain { name: name.parse().unwrap(), xml: xml.to_owned(), autostart: true }
}

#[test]
fn a_vm_is_defined_again_started_shut_down_and_undefined() {
    let Some(mut connection) = connection() else { return };
    let c = &connection;
    step(c, define("mine", XML)).unwrap();
    let first = collect(c).unwrap().domain("mine").unwrap().clone();
    assert!(first.persistent && first.autostart && !first.active && first.live_xml.is_none());
    assert!(is_marked(&first.inactive_xml), "the mark survives libvirt: {}", first.inactive_xml);
    step(c, define("mine", &XML.replace("<vcpu>1", "<vcpu>2"))).unwrap();
    let second = collect(c).unwrap().domain("mine").unwrap().clone();
    assert_eq!(second.uuid, first.uuid);
    assert_eq!(project(&second.inactive_xml).unwrap().cpus, 2);
    let at = second.inactive_xml.find(">2</vcpu>").unwrap() + 1;
    let three = Splice { at, remove: 1, insert: "3".to_owned() };
    let edit = TextEdit::new(&second.inactive_xml, vec![three]).unwrap();
    let edited = |edit| Step::EditDomain { name: "mine".parse().unwrap(), edit, autostart: false };
    step(c, edited(edit.clone())).unwrap();
    let third = collect(c).unwrap().domain("mine").unwrap().clone();
    assert!(project(&third.inactive_xml).unwrap().cpus == 3 && !third.autostart && third.uuid == first.uuid);
    let only_autostart = TextEdit::new(&third.inactive_xml, Vec::new()).unwrap();
    step(c, Step::EditDomain { name: "mine".parse().unwrap(), edit: only_autostart, autostart: true }).unwrap();
    let stale = TextEdit { after: "another".to_owned(), ..edit };
    let said = step(c, edited(stale)).unwrap_err();
    assert!(said.contains("changed since the plan"), "{said}");

    let name: DomainName = "mine".parse().unwrap();
    let mark = |present| step(c, Step::MarkDomain { name: name.clone(), present }).unwrap();
    let stored = || collect(c).unwrap().domain("mine").unwrap().inactive_xml.clone();
    let marked = stored();
    mark(false);
    assert!(!is_marked(&stored()), "{}", stored());
    mark(true);
    mark(true);
    assert!(is_marked(&stored()) && stored().matches(MARK).count() == marked.matches(MARK).count(), "{}", stored());
    assert_eq!(project(&stored()).unwrap(), project(&marked).unwrap());
    step(c, Step::StartDomain { name: name.clone() }).unwrap();
    step(c, Step::StartDomain { name: name.clone() }).unwrap();
    assert!(collect(c).unwrap().domain("mine").unwrap().live_xml.is_some());
    let said = step(c, Step::undefine(&name, false)).unwrap_err();
    assert!(said.contains("gpuvm vm stop mine"), "{said}");
    step(c, Step::shut_down(&name)).unwrap();
    step(c, Step::shut_down(&name)).unwrap();
    step(c, Step::undefine(&name, false)).unwrap();
    step(c, Step::undefine(&name, false)).unwrap();
    assert_eq!(collect(c).unwrap().domain("mine"), None);
    assert!(step(c, Step::StartDomain { name }).unwrap_err().contains("no VM `mine`"));
    let _ = connection.close();
}

#[test]
fn a_vm_is_installed_with_another_definition_than_the_one_that_stays() {
    let Some(mut connection) = connection() else { return };
    let c = &connection;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let kept = crate::image::Cached {
        format: crate::image::CACHED_FORMAT,
        file: "u-abc.img".to_owned(),
        kind: "raw".to_owned(),
        sha256: String::new(),
        sha512: String::new(),
        bytes: 0,
        virtual_size: 0,
        origin: crate::image::Origin::Path { path: "/srv/u.iso".into() },
        version: None,
        trusted: String::new(),
        asked: None,
    };
    std::fs::write(at("u.json"), kept.text()).unwrap();
    std::fs::write(at("u-abc.img"), crate::image::medium_for_tests(b"kernel", b"initrd")).unwrap();
    let xml = XML.replace("mine", "installed");
    step(c, define("installed", &xml)).unwrap();
    let stored = || collect(c).unwrap().domain("installed").unwrap().clone();
    let before = stored();
    let step_of = crate::plan::InstallStep {
        name: "installed".parse().unwrap(),
        xml: xml.replace("<type>hvm</type>", &format!("<type>hvm</type><kernel>{}</kernel>", at("v").display())),
        image: at("u.json"),
        kernel: at("v"),
        initrd: at("i"),
        disk: "/srv/installed-0.qcow2".into(),
    };
    assert!(!install::begin(c, &step_of, false).unwrap(), "its disk is not blank");
    assert!(!stored().active);
    assert!(install::begin(c, &step_of, true).unwrap());
    let runs = stored();
    assert!(runs.active && runs.uuid == before.uuid, "{runs:?}");
    assert_eq!(runs.inactive_xml, before.inactive_xml, "what is stored stays");
    let kernel = |xml: &str| project(xml).unwrap().kernel;
    assert_eq!(kernel(runs.live_xml.as_deref().unwrap()), Some(at("v").display().to_string()));
    assert!(!at("v").exists() && !at("i").exists(), "they were taken away again");
    assert!(install::begin(c, &step_of, false).unwrap(), "it goes on");
    assert_eq!(install::ended(c, &step_of.name).unwrap(), None);
    step(c, Step::shut_down(&step_of.name)).unwrap();
    assert_eq!(install::ended(c, &step_of.name).unwrap(), Some(Ok(())));
    assert_eq!(stored().inactive_xml, before.inactive_xml);
    step(c, Step::StartDomain { name: step_of.name.clone() }).unwrap();
    assert_eq!(kernel(stored().live_xml.as_deref().unwrap()), None);
    let said = install::begin(c, &step_of, true).unwrap_err().to_string();
    assert!(said.contains("was started since"), "{said}");
    step(c, Step::shut_down(&step_of.name)).unwrap();
    std::fs::write(at("u-abc.img"), "no medium").unwrap();
    let said = install::begin(c, &step_of, true).unwrap_err().to_string();
    assert!(said.contains("no CD-ROM") && !stored().active, "{said}");
    step(c, Step::undefine(&step_of.name, false)).unwrap();
    let _ = connection.close();
}

#[test]
fn a_vm_of_another_is_neither_defined_over_nor_undefined() {
    let Some(mut connection) = connection() else { return };
    let before = collect(&connection).unwrap().domain("test").unwrap().clone();
    let said = step(&connection, define("test", &XML.replace("mine", "test"))).unwrap_err();
    assert!(said.contains("not made by gpuvm"), "{said}");
    step(&connection, Step::shut_down(&"test".parse().unwrap())).unwrap();
    let said = step(&connection, Step::undefine(&"test".parse().unwrap(), false)).unwrap_err();
    assert!(said.contains("not made by gpuvm"), "{said}");
    assert_eq!(collect(&connection).unwrap().domain("test").unwrap().inactive_xml, before.inactive_xml);
    let _ = connection.close();
}

#[test]
fn a_password_that_a_person_set_survives_a_change() {
    let Some(mut connection) = connection() else { return };
    let graphics = "<devices><graphics type='vnc' port='-1' passwd='canary&amp;'/></devices>\n</domain>";
    step(&connection, define("shown", &XML.replace("mine", "shown").replace("</domain>", graphics))).unwrap();
    let shown = collect(&connection).unwrap().domain("shown").unwrap().inactive_xml.clone();
    assert!(shown.contains("<graphics") && !shown.contains("canary"), "{shown}");
    step(&connection, define("shown", &shown.replace(">1</vcpu>", ">2</vcpu>"))).unwrap();
    let there = lookup(&connection, &"shown".parse().unwrap()).unwrap().unwrap();
    let whole = there.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE).unwrap();
    assert!(whole.contains("passwd='canary&amp;'") && whole.contains(">2</vcpu>"), "{whole}");
    let _ = connection.close();
}

#[test]
fn pools_and_volumes_are_what_libvirts_own_schemas_say() {
    let file = Path::new("/srv/a&b'<c>");
    validators::libvirt("storagepool", &pool_xml("a<b", file));
    let want = VolumeStep {
        pool: "mine".parse().unwrap(),
        name: "vm-0.qcow2".to_owned(),
        size: ByteSize::from_gib(1),
        format: "qcow2".to_owned(),
        grow: false,
        begun: false,
        image: None,
    };
    for backing in [None, Some((file, "qcow2"))] {
        validators::libvirt("storagevol", &volume_xml(&want, backing));
    }
}

#[test]
fn pools_and_volumes_are_made_once_and_never_shrunk() {
    let Some(mut connection) = connection() else { return };
    let c = &connection;
    let dir = tempfile::tempdir().unwrap();
    let pool = Step::Pool { name: "mine".parse().unwrap(), path: dir.path().to_owned() };
    step(c, pool.clone()).unwrap();
    step(c, pool).unwrap();
    let volume = |mib, grow| {
        Step::Volume(VolumeStep {
            pool: "mine".parse().unwrap(),
            name: "vm-0.qcow2".to_owned(),
            size: ByteSize::from_mib(mib),
            format: "qcow2".to_owned(),
            grow,
            begun: false,
            image: None,
        })
    };
    step(c, volume(8, false)).unwrap();
    step(c, volume(8, false)).unwrap();
    let known = collect(c).unwrap();
    let made = known.pool("mine").unwrap();
    assert!(made.active && made.autostart);
    let seen: Vec<_> = made.volumes.iter().map(|v| (v.name.as_str(), v.format.as_str(), v.size())).collect();
    assert_eq!(seen, [("vm-0.qcow2", "qcow2", ByteSize::from_mib(8))]);
    assert!(step(c, volume(4, true)).unwrap_err().contains("left as it is"));
    assert!(step(c, volume(16, false)).unwrap_err().contains("left as it is"));
    let _ = connection.close();
}

#[test]
fn a_network_is_started_and_what_libvirt_says_is_passed_on() {
    let Some(mut connection) = connection() else { return };
    step(&connection, Step::Network { name: "default".parse().unwrap(), active: true, autostart: true }).unwrap();
    let known = collect(&connection).unwrap();
    assert!(known.network("default").unwrap().autostart && known.version > 1_000_000);
    let said =
        step(&connection, Step::Network { name: "none".parse().unwrap(), active: true, autostart: true }).unwrap_err();
    assert!(said.starts_with("libvirt: ") && said.contains("none"), "{said}");
    let _ = connection.close();
}

fn run(step: &Step) {
    let (secrets, mut notes) = (Default::default(), Vec::new());
    let mut running =
        Running { secrets: &secrets, progress: &mut |_| {}, notes: &mut notes, run_dir: Path::new("/nowhere") };
    execute(step, &mut running).unwrap();
}

/// Plans and executes until nothing is left to do; the ways that it took.
fn settle<R: crate::resource::Resource>(wanted: &R, last: Option<&R>, facts: &crate::facts::HostFacts) -> Vec<String>
where
    R::State: From<Answer<std::sync::Arc<Virtualisation>>>,
{
    let mut seen = Vec::new();
    for _ in 0..4 {
        let state = read(CHANGE_LIMIT).unwrap().map(std::sync::Arc::new);
        match wanted.diff(&state.into(), last, facts) {
            crate::plan::Diff::Change(change) => {
                seen.push(change.what);
                change.steps.iter().for_each(run);
            }
            crate::plan::Diff::InSync { .. } => return seen,
            crate::plan::Diff::Waits { on, .. } => {
                seen.push(format!("waits for {}", on.name()));
                return seen;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("no end: {seen:?}")
}

/// `cargo test -- --ignored real_daemon`, on a machine whose libvirt may be changed: QEMU emulates there.
#[test]
#[ignore = "makes a VM at the system's libvirt"]
fn real_daemon() {
    use crate::resource::libvirt_domain::{Accel, Arch, Disk, Firmware, Kernel, LibvirtDomain, Nic, NicOn, PassedSlot};
    use crate::resource::{libvirt_network::LibvirtNetwork, pool::Pool, volume::Volume};

    let record = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(record.path().join("root")).unwrap();
    host::fixture::Record::default().save(&record.path().join(host::fixture::Record::NAME)).unwrap();
    let facts = crate::facts::collect(&host::fixture::Fixture::open(record.path()).unwrap());

    let dir = PathBuf::from("/var/lib/libvirt/gpuvm-test");
    let pool = Pool { name: "gpuvm-test".parse().unwrap(), path: dir.clone(), existing: false };
    run(&Step::Pool { name: pool.name.clone(), path: dir.clone() });
    let volume = |n: usize, mib| Volume {
        pool: pool.name.clone(),
        name: format!("gpuvm-test-{n}.qcow2"),
        size: ByteSize::from_mib(mib),
        vm: Some("gpuvm-test".parse().unwrap()),
        take_over: false,
        made: false,
        begun: false,
        image: None,
    };
    assert_eq!(settle(&volume(0, 64), None, &facts).len(), 1);
    assert_eq!(settle(&volume(1, 64), None, &facts).len(), 1);
    settle(&LibvirtNetwork { name: "default".parse().unwrap() }, None, &facts);
    let disk = |n: usize| Disk {
        pool: Some(pool.name.clone()),
        volume: format!("gpuvm-test-{n}.qcow2"),
        block: false,
        path: dir.join(format!("gpuvm-test-{n}.qcow2")),
        options: Default::default(),
    };
    let first = LibvirtDomain {
        name: "gpuvm-test".parse().unwrap(),
        cpus: 1,
        topology: None,
        pins: None,
        near: None,
        memory: ByteSize::from_mib(128),
        huge_pages: None,
        disks: vec![disk(0)],
        nic: Some(Nic {
            on: NicOn::Network("default".parse().unwrap()),
            mac: crate::types::MacAddress([0x52, 0x54, 0, 1, 2, 3]),
        }),
        slots: vec![],
        seed: None,
        login: None,
        extras: vec![],
        smbios: Default::default(),
        additions: vec![],
        windows: false,
        media: vec![],
        firmware: Firmware::Uefi,
        boot: None,
        accel: Accel::Tcg,
        arch: Arch::X86_64,
        autostart: true,
        start_when_made: true,
        running: None,
        absent: false,
        start_owed: false,
        install: None,
        install_owed: false,
    };
    assert_eq!(settle(&first, None, &facts).len(), 1, "in sync once it is made and started");
    assert_eq!(settle(&first, Some(&first), &facts).len(), 0);
    assert_eq!(settle(&volume(0, 96), None, &facts).len(), 1, "a running VM's disk grows");
    let uuid = || {
        let Answer::Value(known) = read(CHANGE_LIMIT).unwrap() else { panic!("libvirt is there") };
        known.domain("gpuvm-test").unwrap().uuid.clone()
    };
    let before = uuid();

    let mut second = first.clone();
    (second.cpus, second.memory, second.autostart) = (2, ByteSize::from_mib(192), false);
    second.disks.push(disk(1));
    second.boot =
        Some(Kernel { kernel: "/boot/vmlinuz".into(), initrd: None, cmdline: Some("a='b' \"c\" <&>".into()) });
    let slot: crate::types::PciSlot = "0000:7f:00".parse().unwrap();
    second.slots = vec![PassedSlot::whole(slot, vec![slot.function(0), slot.function(1)])];
    let seen = settle(&second, Some(&first), &facts);
    assert_eq!(seen[1..], ["waits for guest restart"], "{seen:?}");
    assert_eq!(settle(&second, Some(&second), &facts), ["waits for guest restart"]);
    assert_eq!(uuid(), before, "it is the same VM");
    let back = settle(&first, Some(&second), &facts);
    assert_eq!(back.len(), 1, "what runs is what was stored first: {back:?}");

    // The guest has no system and does not listen; what ends it here is the test, never gpuvm.
    let mut connection = Connect::open(Some(SYSTEM)).unwrap();
    lookup(&connection, &first.name).unwrap().unwrap().destroy().unwrap();
    let absent = LibvirtDomain { absent: true, ..first.clone() };
    assert_eq!(settle(&absent, Some(&first), &facts).len(), 1);
    for n in [0, 1] {
        assert!(disk(n).path.exists(), "disks stay");
    }
    let made = StoragePool::lookup_by_name(&connection, "gpuvm-test").unwrap();
    for one in made.list_all_volumes(0).unwrap() {
        one.delete(0).unwrap();
    }
    made.destroy().unwrap();
    made.undefine().unwrap();
    let _ = connection.close();
}

#[test]
fn what_hangs_is_left_behind() {
    let result = in_time("it", Duration::from_millis(20), || {
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    });
    assert!(matches!(result, Err(HostError::Timeout { .. })), "{result:?}");
}

#[test]
fn a_daemon_that_works_is_waited_for_and_one_that_hangs_is_not() {
    let ms = Duration::from_millis;
    let patience = Patience { look_again: ms(1), ask_again: ms(5), limit: ms(200) };
    let hangs = || {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    };
    let (hold, held) = mpsc::channel::<()>();
    let never = move || held.recv().map_err(|_| HostError::Refused("never".to_owned()));
    let why = while_it_answers("the work", Duration::from_secs(600), hangs, patience, never).unwrap_err();
    assert_eq!(why.to_string(), "the work: libvirt did not answer within 0 s");
    assert!(why.help().is_some_and(|help| help.contains("systemctl restart libvirtd")));
    drop(hold);
    // It takes longer than an answer may take, and answers, be it by a refusal.
    let refuses = || Err(HostError::Refused("not now".to_owned()));
    let slow = move || {
        std::thread::sleep(ms(400));
        Ok(7)
    };
    assert_eq!(while_it_answers("the work", Duration::from_secs(600), refuses, patience, slow).unwrap(), 7);
    // And it has an end.
    let (hold, held) = mpsc::channel::<()>();
    let never = move || held.recv().map_err(|_| HostError::Refused("never".to_owned()));
    let why = while_it_answers("the work", ms(50), refuses, patience, never).unwrap_err();
    assert!(matches!(&why, HostError::Timeout { what, .. } if what == "the work"), "{why}");
    drop(hold);
}
