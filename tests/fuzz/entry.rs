//! What is fed with hostile bytes, and what has to hold whatever they are. Each function panics where something does
//! not: the fuzz targets call them, and `tests/it/fuzz.rs` does over the corpus.
#![allow(dead_code)] // each target uses one of them

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use gpuvm::apply::StateDir;
use gpuvm::facts::HostFacts;
use gpuvm::gpu::mig;
use gpuvm::host::{
    Answer, DeviceUsers, Domain, FileKind, HostError, Initramfs, Output, Probe, Program, Stat, Virtualisation,
};
use gpuvm::manifest::Loaded;
use gpuvm::plan::{Diff, Past, Plan, SavedPlan, Selection, Step};
use gpuvm::resource::Resource as _;
use gpuvm::resource::libvirt_domain::{self, LibvirtDomain};
use gpuvm::resource::package::read_simulation;
use gpuvm::types::{DomainName, Mode, compare_versions};
use gpuvm::{check, cli, describe, facts, gpu, host, manifest, report};

/// A manifest: every mistake is told at a place within the text, and a valid one can be planned for.
pub fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match manifest::parse("host.yaml", &text) {
        Err(invalid) => {
            let problems = invalid.problems();
            assert!(!problems.is_empty(), "it is refused without a reason");
            let lines = text.split('\n').count();
            assert!(problems.iter().all(|p| (1..=lines + 1).contains(&p.line) && p.column >= 1));
            let mut drawn = String::new();
            let theme = miette::GraphicalTheme::unicode_nocolor();
            miette::GraphicalReportHandler::new_themed(theme)
                .render_report(&mut drawn, &invalid)
                .expect("it can be drawn");
            calm(&drawn);
        }
        Ok(_) => {
            // Files that it refers to are not read here: what needs them is left out of the plan.
            let loaded = manifest::reload(Path::new("host.yaml"), text.into_owned(), BTreeMap::new());
            plan_for(&loaded.expect("what was valid once is valid"), &Memory::twin(), &Past::default());
        }
    }
}

/// A host that says anything: it can be shown, judged, planned for and described, and no word of it steers a terminal.
pub fn facts(data: &[u8]) {
    let Some(host) = Memory::parse(data) else { return };
    let facts = facts::collect(&host);
    calm(&report::facts_text(&facts));
    let gpus = gpu::collect(&host, &facts);
    let looked = check::Looked::look(&host, &facts, &gpus);
    for gpu in &gpus {
        let explanation = check::explain(&facts, &looked, &gpus, gpu, &check::Asked::default());
        calm(&report::explanation(&explanation, true));
    }
    let next = check::NextBoot::look(&host, &facts);
    calm(&report::next_boot(&check::judge_next_boot(&next, &facts, &gpus), true));
    let drawn = gpu::topology::topology(&host, &facts, &gpus, true);
    calm(&report::topology_text(&drawn));
    report::topology_svg(&drawn);
    plan_for(wanted(), &host, &Past::default());
    describes(&host, &facts);
}

/// What `nvidia-smi` says of a card's MIG: read, unknown or none; and what is placed by its tables has a place in them that
/// nothing else has.
pub fn mig(data: &[u8]) {
    let Some(host) = Memory::parse(data) else { return };
    let card = match mig::ask(&host, "0000:81:00.0".parse().expect("an address")) {
        mig::Told::Card(card) => card,
        mig::Told::Unknown(why) => return assert!(!why.is_empty(), "unknown without a reason"),
        mig::Told::Without => return,
    };
    let Some(profiles) = &card.profiles else { return };
    let names: Vec<String> = profiles.iter().map(|p| p.name.clone()).collect();
    for count in [1, 2, 7] {
        for from in 0..names.len().min(8) {
            let wanted: Vec<String> = names.iter().cycle().skip(from).take(count).cloned().collect();
            match mig::arrange(&card, profiles, &wanted) {
                Err(no) => assert!(!no.why.is_empty() && !no.help.is_empty(), "refused without a reason"),
                Ok(all) => {
                    assert_eq!(all.all.len(), wanted.len());
                    for (profile, start) in &all.make {
                        let of = |p: &mig::Profile| p.name == *profile && p.starts.contains(start);
                        assert!(profiles.iter().any(of), "{profile} at {start} is no place of the card's");
                    }
                    let places: std::collections::BTreeSet<u32> = all.all.iter().map(|(_, start)| *start).collect();
                    assert_eq!(places.len(), all.all.len(), "two in one place: {:?}", all.all);
                }
            }
        }
    }
}

/// What `gpuvm init` writes of a host is a manifest.
fn describes(host: &dyn Probe, facts: &HostFacts) {
    let text = describe::init(host, facts);
    if let Err(invalid) = manifest::parse("host.yaml", &text) {
        panic!("`init` wrote what is no manifest: {:?}\n{text}", invalid.problems());
    }
}

/// gpuvm's own files, damaged or made up: each is read or refused, and none is changed by that. The first byte says which.
pub fn state(data: &[u8]) {
    const NAMES: [&str; 8] = [
        "ledger.json",
        "runs/1/journal.jsonl",
        "runs/1/about.json",
        "runs/1/order.json",
        "runs/1/before.jsonl",
        "runs/1/after.json",
        "runs/1/ended.json",
        "saved",
    ];
    let Some((first, data)) = data.split_first() else { return };
    let dir = scratch();
    let name = NAMES[usize::from(*first) % NAMES.len()];
    // The others are as the run left them that the corpus was made of.
    let path = dir.join(name);
    let before = fs::read(&path).unwrap_or_default();
    write(&path, data);
    if let Ok(saved) = SavedPlan::read(&dir.join("saved")) {
        show(&saved.plan);
    }
    if let Ok(state) = StateDir::open(&dir) {
        let past = state.past();
        state.runs();
        state.ending(1);
        state.boots(1, "boot-0");
        let _ = (state.journal_lines(1), state.interrupted(1), state.done(1), state.order(1));
        if let Ok(about) = state.about(1) {
            show(&about.plan);
        }
        if let Ok(recorded) = state.recorded(1) {
            show(&recorded.plan);
        }
        if let Ok(past) = past {
            plan_for(wanted(), &Memory::twin(), &past);
        }
    }
    assert_eq!(fs::read(&path).unwrap_or_default(), data, "reading changed {name}");
    write(&path, &before);
}

fn write(path: &Path, data: &[u8]) {
    if let Err(e) = fs::write(path, data) {
        panic!("{}: {e}", path.display());
    }
}

/// A folder of this thread's with the state of a run, as it lies beside the corpus.
fn scratch() -> PathBuf {
    thread_local! {
        static DIR: PathBuf = {
            let top = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
            let thread = format!("{:?}", std::thread::current().id());
            let number: String = thread.chars().filter(char::is_ascii_digit).collect();
            let dir = top.join(format!("gpuvm-fuzz-{}-{number}", std::process::id()));
            fs::create_dir_all(dir.join("runs/1/before")).unwrap_or_default();
            let seeds = Path::new(env!("CARGO_MANIFEST_DIR"));
            let seeds = [seeds.join("tests/fuzz/corpus/state"), seeds.join("corpus/state")].into_iter().find(|d| d.is_dir());
            for seed in fs::read_dir(seeds.unwrap_or_default()).into_iter().flatten().flatten() {
                let Ok(bytes) = fs::read(seed.path()) else { continue };
                let name = seed.file_name().to_string_lossy().into_owned();
                let place = if name.contains("ledger") || name.contains("saved") { String::new() } else { "runs/1/".to_owned() };
                write(&dir.join(place + &name), bytes.get(1..).unwrap_or_default());
            }
            dir
        };
    }
    DIR.with(Clone::clone)
}

/// A VM's definition: what is read of it is read twice alike; marks come and go without a trace; an edit touches managed
/// elements alone, can be taken back byte for byte, and what it leaves is a definition.
pub fn domain(data: &[u8]) {
    let Ok(xml) = std::str::from_utf8(data) else { return };
    let public = libvirt_domain::without_private_parts(xml);
    if libvirt_domain::project(xml).is_ok() && !public.is_empty() {
        libvirt_domain::project(&public).expect("it can be read without its private parts too");
    }
    libvirt_domain::disk_files(xml);
    libvirt_domain::managed_functions(xml);
    let _ = libvirt_domain::with_passwords(xml, xml, xml);
    parses(xml, &libvirt_domain::with_uuid(xml, "00000000-0000-4000-8000-000000000001"));
    if let Some(marked) = libvirt_domain::with_mark(xml, true) {
        parses(xml, &marked);
        // What cannot be read counts as not marked.
        if libvirt_domain::project(xml).is_ok_and(|is| !is.marked) {
            assert!(libvirt_domain::is_marked(&marked), "the mark is not in\n{marked}");
            edited(&marked);
        }
        let without = libvirt_domain::with_mark(&marked, false).expect("a mark can be taken away again");
        assert!(!libvirt_domain::is_marked(&without), "the mark is still in\n{without}");
    }
    edited(xml);
}

fn parses(before: &str, after: &str) {
    if libvirt_domain::project(before).is_ok() {
        libvirt_domain::project(after).unwrap_or_else(|why| panic!("{why}:\n{after}\nwas\n{before}"));
    }
}

/// Elements that an edit may take away or change.
const MANAGED: [&str; 24] = [
    "vcpu",
    "memory",
    "currentMemory",
    "memoryBacking",
    "hugepages",
    "page",
    "disk",
    "driver",
    "source",
    "target",
    "interface",
    "mac",
    "model",
    "hostdev",
    "address",
    "rom",
    "kernel",
    "initrd",
    "cmdline",
    "cpu",
    "domain",
    "os",
    "boot",
    "gpuvm:vm",
];

fn edited(xml: &str) {
    let mut host = Memory::default();
    let domain = Domain {
        name: "desktop".into(),
        uuid: "00000000-0000-4000-8000-000000000000".into(),
        persistent: true,
        inactive_xml: xml.to_owned(),
        ..Domain::default()
    };
    host.libvirt = Some(Arc::new(Virtualisation { domains: vec![domain], ..Virtualisation::default() }));
    let facts = empty();
    for vm in vms() {
        let Ok(state) = vm.probe(&host) else { continue };
        let Diff::Change(change) = vm.diff(&state, Some(&vms()[0]), facts) else { continue };
        for step in &change.steps {
            let Step::EditDomain { edit, .. } = step else { continue };
            let after = edit.apply(xml).expect("an edit fits the text that it was made for");
            parses(xml, &after);
            let back = gpuvm::types::inverse(xml, &edit.splices).expect("an edit has a way back");
            assert_eq!(gpuvm::types::splice(&after, &back).ok().as_deref(), Some(xml));
            for splice in &edit.splices {
                for element in xml[splice.at..splice.at + splice.remove].split('<').skip(1) {
                    let name = element.trim_start_matches('/').split(|c: char| c.is_whitespace() || "/>".contains(c));
                    let name = name.into_iter().next().unwrap_or_default();
                    assert!(foreign(xml, splice.at) || MANAGED.contains(&name), "`{name}` was taken out of\n{xml}");
                }
            }
        }
    }
}

/// Whether a place lies within a disk, card or device, which go as a whole with all that is in them.
fn foreign(xml: &str, at: usize) -> bool {
    ["disk", "interface", "hostdev"].iter().any(|name| xml[at..].trim_start().starts_with(&format!("<{name}")))
}

/// Two wishes for the same VM, which differ in every managed field.
fn vms() -> &'static [LibvirtDomain] {
    static VMS: OnceLock<Vec<LibvirtDomain>> = OnceLock::new();
    VMS.get_or_init(|| {
        let vm = |cpus: u32, memory: &str, rest: &str| {
            let text = format!(
                r#"{{"name":"desktop","cpus":{cpus},"memory":"{memory}","hugePages":null,"firmware":"uefi","accel":"kvm",
                "arch":"x86_64","autostart":false,"startWhenMade":false,"running":null,"absent":false,{rest}}}"#
            );
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
        };
        let disk = |n: u32| {
            format!(r#"{{"pool":"default","volume":"desktop-{n}.qcow2","path":"/var/lib/libvirt/images/desktop-{n}.qcow2"}}"#)
        };
        vec![
            vm(
                2,
                "2GiB",
                &format!(
                    r#""disks":[{}],"nic":{{"on":{{"bridge":"br0"}},"mac":"52:54:00:00:00:01"}},
                    "slots":[{{"slot":"0000:02:00","functions":["0000:02:00.0","0000:02:00.1"]}}],"boot":null"#,
                    disk(0)
                ),
            ),
            vm(
                3,
                "3GiB",
                &format!(
                    r#""disks":[{}],"nic":{{"on":{{"network":"default"}},"mac":"52:54:00:00:00:02"}},
                    "slots":[{{"slot":"0000:01:00","functions":["0000:01:00.0"]}}],
                    "boot":{{"kernel":"/boot/vmlinuz","initrd":"/boot/initrd.img","cmdline":"a='b' c=\"<d>&\""}}"#,
                    disk(1)
                ),
            ),
        ]
    })
}

/// What apt and dpkg say: versions have one order, and what apt would do is read or refused.
pub fn apt(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data).into_owned();
    match first % 3 {
        0 => {
            let (stdout, stderr) = text.split_once("\n--\n").unwrap_or((&text, ""));
            let status = i32::from(first & 64);
            read_simulation(&Output { status, stdout: stdout.to_owned(), stderr: stderr.to_owned() });
        }
        1 => {
            let mut host = Memory::default();
            host.files.insert("/var/lib/dpkg/status".into(), data.to_vec());
            let facts = facts::collect(&host);
            plan_for(wanted(), &host, &Past::default());
            calm(&report::facts_text(&facts));
        }
        _ => {
            let words: Vec<&str> = text.lines().take(3).collect();
            for (a, b) in words.iter().zip(words.iter().skip(1)) {
                assert_eq!(compare_versions(a, b), compare_versions(b, a).reverse(), "{a:?} {b:?}");
                assert!(compare_versions(a, a).is_eq());
            }
            if let [a, b, c] = words[..]
                && compare_versions(a, b).is_le()
                && compare_versions(b, c).is_le()
            {
                assert!(compare_versions(a, c).is_le(), "{a:?} {b:?} {c:?}");
            }
        }
    }
}

/// An initramfs, whatever it says of itself: read within its limits, or refused.
pub fn initramfs(data: &[u8]) {
    let begin = Instant::now();
    let _ = host::initramfs::read(data, begin + Duration::from_secs(5));
    assert!(begin.elapsed() < Duration::from_secs(20), "it went on after its time");
}

/// One planning pass, and all that is shown of it.
fn plan_for(loaded: &Loaded, host: &dyn Probe, past: &Past) {
    let (plan, _) = cli::plan_now(loaded, &Selection::default(), host, past);
    show(&plan);
    let saved = serde_json::to_string(&plan).expect("a plan is data");
    let again: Plan = serde_json::from_str(&saved).expect("a plan can be read again");
    assert_eq!(again, plan);
}

fn show(plan: &Plan) {
    for detail in [report::Detail::Summary, report::Detail::Normal, report::Detail::Verbose] {
        calm(&report::plan_text(plan, detail));
    }
    calm(&report::plan_markdown(plan));
    report::plan_json(plan);
}

/// Nothing in it moves a cursor, sets a title or clears a screen. (Colours are put in by whoever prints.)
fn calm(text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() && c != '\n' && c != '\t') {
        rest = &rest[at..];
        // Our own: `ESC [ numbers m`.
        let ours = rest.strip_prefix("\u{1b}[").and_then(|r| {
            let end = r.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            r[end..].strip_prefix('m')
        });
        match ours {
            Some(after) => rest = after,
            None => panic!("a control character in {text:?}"),
        }
    }
}

fn empty() -> &'static HostFacts {
    static FACTS: OnceLock<HostFacts> = OnceLock::new();
    FACTS.get_or_init(|| facts::collect(&Memory::default()))
}

/// A manifest that wants something of everything.
fn wanted() -> &'static Loaded {
    static WANTED: OnceLock<Loaded> = OnceLock::new();
    WANTED.get_or_init(|| {
        let text = "version: 1\npackages: [htop, { name: tmux, absent: true }]\n\
                    files: { /etc/motd: { content: \"a\\nb\\n\" }, /etc/token: { content: canary, secret: true } }\n\
                    services: { ssh.service: { enabled: true, running: true } }\nkernelArgs: [quiet]\nmodules: [br_netfilter]\n\
                    gpus: { work: { match: '02:00', use: vfio }, render: { match: '01:00', use: host } }\n\
                    bridge: { name: br0, uplink: auto }\nnetworks: { nat: { libvirt: default } }\n\
                    storage: { big: { dir: /srv/vms } }\n\
                    vms: { desktop: { cpus: 2, memory: 2GiB, disks: [1GiB, { size: 2GiB, pool: big }], network: br0, gpus: [work] } }\n";
        let loaded = manifest::reload(Path::new("host.yaml"), text.to_owned(), BTreeMap::new());
        loaded.unwrap_or_else(|e| panic!("{e:?}"))
    })
}

/// A host in memory. In its text form each part begins with a line: `@ /path`, `@ /path -> target`,
/// `@ $ program arguments`, or `@ vm NAME`.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    files: BTreeMap<PathBuf, Vec<u8>>,
    links: BTreeMap<PathBuf, PathBuf>,
    queries: BTreeMap<String, String>,
    libvirt: Option<Arc<Virtualisation>>,
}

impl Memory {
    fn parse(data: &[u8]) -> Option<Self> {
        let mut host = Self::default();
        let mut domains = Vec::new();
        let text = data.strip_prefix(b"@ ")?;
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut from = 0;
        for at in 0..text.len() {
            if text[at..].starts_with(b"\n@ ") {
                parts.push(&text[from..=at]);
                from = at + 3;
            }
        }
        parts.push(text.get(from..).unwrap_or_default());
        for part in parts {
            let end = part.iter().position(|b| *b == b'\n').unwrap_or(part.len());
            let head = String::from_utf8_lossy(&part[..end]).into_owned();
            let body = part.get(end + 1..).unwrap_or_default();
            if let Some(query) = head.strip_prefix("$ ") {
                host.queries.insert(query.to_owned(), String::from_utf8_lossy(body).into_owned());
            } else if let Some(name) = head.strip_prefix("vm ") {
                let xml = String::from_utf8_lossy(body).into_owned();
                let live_xml = Some(xml.clone());
                let domain = Domain {
                    name: name.to_owned(),
                    active: true,
                    persistent: true,
                    inactive_xml: xml,
                    live_xml,
                    ..Domain::default()
                };
                domains.push(domain);
            } else if let Some((path, target)) = head.split_once(" -> ") {
                host.links.insert(path.into(), target.into());
            } else if head.starts_with('/') {
                host.files.insert(head.into(), body.to_vec());
            }
        }
        if !domains.is_empty() {
            host.libvirt = Some(Arc::new(Virtualisation { domains, ..Virtualisation::default() }));
        }
        Some(host)
    }

    /// The host of the corpus with two equal cards.
    fn twin() -> Self {
        static TWIN: OnceLock<Memory> = OnceLock::new();
        TWIN.get_or_init(|| Self::parse(include_bytes!("corpus/facts/twin")).unwrap_or_default()).clone()
    }

    fn children(&self, dir: &Path) -> Vec<OsString> {
        let below = |path: &PathBuf| Some(path.strip_prefix(dir).ok()?.iter().next()?.to_owned());
        let mut names: Vec<OsString> = self.files.keys().chain(self.links.keys()).filter_map(below).collect();
        names.sort();
        names.dedup();
        names
    }
}

impl Probe for Memory {
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
        Ok(self.files.get(path).map_or(Answer::Absent, |bytes| Answer::Value(bytes.clone())))
    }
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError> {
        let kind = if self.files.contains_key(path) {
            FileKind::File
        } else if self.links.contains_key(path) {
            FileKind::Link
        } else if !self.children(path).is_empty() {
            FileKind::Directory
        } else {
            return Ok(Answer::Absent);
        };
        Ok(Answer::Value(Stat { kind, mode: Mode::new(0o644), uid: 0, gid: 0 }))
    }
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
        Ok(match self.children(dir) {
            none if none.is_empty() => Answer::Absent,
            names => Answer::Value(names),
        })
    }
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError> {
        Ok(self.links.get(path).map_or(Answer::Absent, |target| Answer::Value(target.clone())))
    }
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<Output>, HostError> {
        let asked = format!("{} {}", program.name(), args.join(" "));
        let known = self.queries.get(&asked).or_else(|| self.queries.get(program.name()));
        Ok(known.map_or(Answer::Absent, |said| {
            Answer::Value(Output { status: 0, stdout: said.clone(), stderr: String::new() })
        }))
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        Ok(self.libvirt.clone().map_or(Answer::Absent, Answer::Value))
    }
    fn initramfs(&self, path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
        let Some(bytes) = self.files.get(path) else { return Ok(Answer::Absent) };
        let until = Instant::now() + Duration::from_secs(5);
        match host::initramfs::read(bytes.as_slice(), until) {
            Ok(found) => Ok(Answer::Value(Arc::new(found))),
            Err(why) => Err(HostError::Refused(why.to_string())),
        }
    }
    fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError> {
        let text = self.files.get(Path::new("/device-users"));
        Ok(Arc::new(text.and_then(|t| serde_json::from_slice(t).ok()).unwrap_or_default()))
    }
    fn guest_agent(&self, _: &DomainName) -> Result<Answer<Arc<host::GuestAgent>>, HostError> {
        Ok(Answer::Absent)
    }
}
