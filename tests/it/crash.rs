//! gpuvm is killed at every place that it passes, in every case of tests/cases: before, inside and after every step, and
//! between the writes of its journal, ledger and refreshes. After each death the next plan has to explain what is there,
//! and both ways on (`--resume`, and `--abandon` with a new apply) have to end in the very same bytes as a run that
//! nothing happened to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::cases::{cases, host};
use crate::machine::{command, copy_tree, fast_folder, gpuvm, repository, stderr, stdout};

type Tree = BTreeMap<String, Vec<u8>>;

/// Every file and link with its content: the host, its record, and gpuvm's own state.
fn whole_tree(dir: &Path) -> Tree {
    fn walk(dir: &Path, top: &Path, all: &mut Tree) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(top).unwrap().display().to_string();
            if kind.is_dir() {
                walk(&path, top, all);
            } else if kind.is_symlink() {
                all.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()).into_bytes());
            } else {
                all.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut all = Tree::new();
    walk(dir, dir, &mut all);
    all
}

const STATE: &str = "root/var/lib/gpuvm";

/// What two runs that end alike have alike: all but the runs themselves, their number, and how often was booted.
fn outcome(mut tree: Tree) -> Tree {
    tree.retain(|name, _| !name.starts_with(&format!("{STATE}/runs/")) && *name != format!("{STATE}/lock"));
    let forget = |bytes: &mut Vec<u8>, key: &str| {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        value.as_object_mut().unwrap().remove(key);
        *bytes = serde_json::to_vec(&value).unwrap();
    };
    forget(tree.get_mut("gpuvm-record.json").unwrap(), "boots");
    if let Some(ledger) = tree.get_mut(&format!("{STATE}/ledger.json")) {
        forget(ledger, "lastRun");
    }
    tree
}

/// Files that go through several whole contents in one run.
const IN_PARTS: [&str; 4] = ["root/var/lib/dpkg/status", "root/etc/group", "root/proc/modules", "gpuvm-record.json"];

/// A file that is neither what it was nor what it becomes, or what is not whole.
fn half_written(dead: &Tree, before: &Tree, after: &Tree) -> Vec<String> {
    let host = |name: &&String| !name.starts_with(STATE) && *name != "gpuvm-guard.json";
    let names: BTreeSet<&String> = dead.keys().chain(before.keys()).chain(after.keys()).filter(host).collect();
    let wrong = |name: &&&String| {
        let now = dead.get(**name);
        if now == before.get(**name) || now == after.get(**name) || name.ends_with(".gpuvm-new") {
            return false;
        }
        let text = String::from_utf8_lossy(now.map_or(&b""[..], |b| b)).into_owned();
        // A disk that is made, and not installed yet.
        let installed = after.get(**name).and_then(|a| a.strip_suffix(b"installed=yes\n"));
        if now.is_some_and(|now| Some(&now[..]) == installed) {
            return false;
        }
        !IN_PARTS.contains(&name.as_str())
            || !match name.as_str() {
                "gpuvm-record.json" => serde_json::from_str::<serde_json::Value>(&text).is_ok(),
                "root/var/lib/dpkg/status" => {
                    let whole = |s: &str| {
                        s.trim().is_empty() || ["Package: ", "Status: ", "Version: "].iter().all(|f| s.contains(f))
                    };
                    text.ends_with("\n\n") && text.split("\n\n").all(whole)
                }
                "root/etc/group" => text.ends_with('\n') && text.lines().all(|l| l.split(':').count() == 4),
                _ => text.ends_with("0x0000000000000000\n"),
            }
    };
    names.iter().filter(wrong).map(|n| (*n).clone()).collect()
}

/// One case, ready to be started again and again.
struct Start {
    name: String,
    manifest: String,
    _work: tempfile::TempDir,
    host: PathBuf,
    before: Tree,
    after: Tree,
    /// The first number that nothing is passed at any more.
    end: AtomicU64,
    seen: Mutex<BTreeSet<Vec<u8>>>,
    distinct: AtomicUsize,
}

impl Start {
    /// `None` for a case in which nothing is applied.
    fn new(case: &Path) -> Option<Self> {
        let work = fast_folder();
        let host = host(case, work.path());
        let root = host.display().to_string();
        let earlier = case.join("before.yaml");
        if earlier.is_file() {
            let file = earlier.display().to_string();
            let apply = gpuvm(&["apply", "-f", &file, "--root", &root, "--yes", "--reboot"], work.path());
            assert!(apply.status.success(), "{}", stderr(&apply));
        }
        let manifest = case.join("host.yaml").display().to_string();
        let plan = gpuvm(&["plan", "-f", &manifest, "--root", &root], work.path());
        if plan.status.code() != Some(2) {
            return None;
        }
        let done = work.path().join("done");
        copy_tree(&host, &done);
        let start = Self {
            name: case.file_name().unwrap().to_string_lossy().into_owned(),
            before: whole_tree(&host),
            manifest,
            host,
            after: Tree::new(),
            end: AtomicU64::new(u64::MAX),
            seen: Mutex::default(),
            distinct: AtomicUsize::new(0),
            _work: work,
        };
        let apply = start.run(&done, &["apply", "--yes", "--reboot"]);
        assert!(apply.status.success(), "{}: {}", start.name, stderr(&apply));
        let second = start.run(&done, &["plan"]);
        assert_eq!(second.status.code(), Some(0), "{}: {}", start.name, stdout(&second));
        Some(Self { after: outcome(whole_tree(&done)), ..start })
    }

    fn args(&self, root: &Path, args: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        all.extend(["-f".to_owned(), self.manifest.clone(), "--root".to_owned(), root.display().to_string()]);
        all
    }

    fn run(&self, root: &Path, args: &[&str]) -> std::process::Output {
        let args = self.args(root, args);
        gpuvm(&args.iter().map(String::as_str).collect::<Vec<_>>(), Path::new("/"))
    }

    /// Dies at one place and goes on from there, both ways. What went wrong comes back.
    fn die_at(&self, number: u64) -> Vec<String> {
        let work = fast_folder();
        let dead = work.path().join("dead");
        copy_tree(&self.host, &dead);
        let args = self.args(&dead, &["apply", "--yes", "--reboot"]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let died = command(&args, Path::new("/")).env("GPUVM_DIE_AT", number.to_string()).output().unwrap();
        if died.status.success() {
            self.end.fetch_min(number, Ordering::SeqCst);
            return Vec::new();
        }
        let said = stderr(&died);
        let place = format!("{} at {number} ({})", self.name, said.lines().last().unwrap_or_default());
        if died.status.signal() != Some(9) {
            return vec![format!("{place}: it ended with {:?}\n{said}", died.status)];
        }
        let tree = whole_tree(&dead);
        // The same bytes on the disk have the same future.
        let mut known = tree.clone();
        known.retain(|name, _| !name.ends_with("/about.json")); // it tells the time, which nothing reads
        if !self.seen.lock().unwrap().insert(serde_json::to_vec(&known).unwrap()) {
            return Vec::new();
        }
        self.distinct.fetch_add(1, Ordering::SeqCst);
        let mut wrong: Vec<String> = half_written(&tree, &self.before, &self.after)
            .iter()
            .map(|f| format!("{place}: `{f}` is half written"))
            .collect();

        let other = work.path().join("other");
        copy_tree(&dead, &other);
        let plan = self.run(&dead, &["plan"]);
        let cut_off = stderr(&plan).contains("was cut off");
        if !matches!(plan.status.code(), Some(0 | 2 | 3)) {
            wrong.push(format!(
                "{place}: the next plan ends with {:?}\n{}{}",
                plan.status,
                stdout(&plan),
                stderr(&plan)
            ));
        }
        let runs = fs::read_dir(dead.join(STATE).join("runs")).map_or(0, |d| d.count());
        let ended = dead.join(STATE).join(format!("runs/{runs}/ended.json")).exists();
        let began = dead.join(STATE).join(format!("runs/{runs}/journal.jsonl")).exists();
        if began && !ended && !cut_off {
            wrong.push(format!("{place}: the next plan does not tell of the run that was cut off\n{}", stderr(&plan)));
        }
        let mut ends = |what: &str, root: &Path, verbs: &[&[&str]]| {
            for verb in verbs {
                let went = self.run(root, verb);
                if went.status.code() != Some(0) {
                    wrong.push(format!(
                        "{place}: {what}: {verb:?} ended with {:?}\n{}{}",
                        went.status,
                        stdout(&went),
                        stderr(&went)
                    ));
                    return;
                }
            }
            let came = outcome(whole_tree(root));
            let names: BTreeSet<_> = came.keys().chain(self.after.keys()).collect();
            let differ: Vec<_> = names.into_iter().filter(|n| came.get(*n) != self.after.get(*n)).collect();
            if !differ.is_empty() {
                wrong.push(format!("{place}: {what}: these are not as after an undisturbed run: {differ:?}"));
            }
        };
        let again: &[&str] = &["apply", "--yes", "--reboot"];
        if cut_off {
            ends("taken up", &dead, &[&["apply", "--resume"]]);
            ends("abandoned", &other, &[&["apply", "--abandon"], again]);
        } else {
            ends("applied again", &dead, &[again]);
        }
        wrong
    }
}

#[test]
fn nothing_is_lost_wherever_it_is_killed() {
    let mut starts: Vec<Start> = cases().iter().filter_map(|c| Start::new(c)).collect();
    starts.extend(Start::new(&bind_now()));
    assert!(starts.len() > 4, "cases that apply something");
    // For work on one of them: GPUVM_CASE=twin cargo test crash
    if let Ok(name) = std::env::var("GPUVM_CASE") {
        starts.retain(|s| s.name == name);
    }
    // All places take some nine minutes of two cores: GPUVM_EVERY_DEATH=1 cargo test crash -- --nocapture
    let stride = if std::env::var_os("GPUVM_EVERY_DEATH").is_some() { 1 } else { 8 };
    let places: Vec<AtomicU64> = starts.iter().map(|_| AtomicU64::new(0)).collect();
    let wrong = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for (start, next) in starts.iter().zip(&places) {
                    loop {
                        let number = next.fetch_add(stride, Ordering::SeqCst) + 1;
                        if number >= start.end.load(Ordering::SeqCst) {
                            break;
                        }
                        wrong.lock().unwrap().extend(start.die_at(number));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    let mut deaths = 0;
    for start in &starts {
        let passed = start.end.load(Ordering::SeqCst) - 1;
        let tried = passed.div_ceil(stride);
        deaths += tried;
        println!(
            "{:<16} killed at {tried} places of about {passed}, {} different disks",
            start.name,
            start.distinct.load(Ordering::SeqCst)
        );
        assert!(passed > 20, "{}: only {passed} places: are fail points built in?", start.name);
    }
    println!("{} cases, {deaths} deaths, {} losses", starts.len(), wrong.len());
    // Many places lose in one way: each way once, with the first place.
    let mut ways: BTreeMap<&str, (&String, usize)> = BTreeMap::new();
    for one in &wrong {
        ways.entry(one.split_once("): ").map_or(one.as_str(), |(_, way)| way)).or_insert((one, 0)).1 += 1;
    }
    let shown: Vec<String> = ways.values().map(|(first, times)| format!("{times} times: {first}")).collect();
    assert!(wrong.is_empty(), "{} losses:\n{}", wrong.len(), shown.join("\n\n"));
}

/// A case that is made here, since a laid-over tree cannot take a link away: a slot without a driver, which is bound at
/// once and not at the next boot. Both of its functions move, or none.
fn bind_now() -> PathBuf {
    static DIR: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let dir = DIR.get_or_init(fast_folder).path().join("bind-now");
    let base = dir.join("host");
    copy_tree(&repository().join("examples/hosts/twin-debian13"), &base);
    for function in ["0", "1"] {
        let at = base.join(format!("root/sys/bus/pci/devices/0000:02:00.{function}/driver"));
        fs::remove_file(at.parent().unwrap().canonicalize().unwrap().join("driver")).unwrap();
    }
    fs::write(dir.join("base"), base.display().to_string()).unwrap();
    fs::write(dir.join("host.yaml"), "version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: vfio }\n").unwrap();
    dir
}
