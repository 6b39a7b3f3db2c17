//! What is merged and dropped, with the real qemu-img on real files: whatever tree of snapshots there is, and wherever it
//! is interrupted, every state that something needs stays what it was.

use std::fs;
use std::process::Command;

use super::*;
use crate::image::{Behind, behind};
use crate::types::sha256_hex;

fn installed() -> bool {
    Path::new("/usr/bin/qemu-img").exists() && Path::new("/usr/bin/qemu-io").exists()
}

#[allow(clippy::disallowed_methods)] // a test starts what the live host would
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    said
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// A disk with snapshots on the disk of this machine.
struct Disk {
    dir: tempfile::TempDir,
    format: &'static str,
    top: PathBuf,
    /// Each snapshot's file.
    held: BTreeMap<String, PathBuf>,
    outside: BTreeMap<PathBuf, String>,
    marks: u32,
    last: u32,
}

impl Disk {
    fn new(format: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("desk-0.qcow2");
        run("qemu-img", &["create", "-q", "-f", format, path(&top), "1M"]);
        Self { dir, format, top, held: BTreeMap::new(), outside: BTreeMap::new(), marks: 0, last: 0 }
    }
    fn base(&self) -> PathBuf {
        self.dir.path().join("desk-0.qcow2")
    }
    fn format_of(&self, file: &Path) -> &'static str {
        if file == self.base() { self.format } else { "qcow2" }
    }
    /// The guest writes: a pattern of its own over a part that others wrote to too.
    fn write(&mut self) {
        self.marks += 1;
        let words = format!("write -P {} {}k 96k", self.marks % 251 + 1, (self.marks * 37) % 900);
        run("qemu-io", &["-f", self.format_of(&self.top), "-c", &words, path(&self.top)]);
    }
    fn new_layer(&mut self, under: &Path) {
        self.last += 1;
        let new = layer(&self.base(), self.last);
        let format = self.format_of(under);
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", path(under), "-F", format, path(&new)]);
        self.top = new;
    }
    fn hold(&mut self, name: &str) {
        self.held.insert(name.to_owned(), self.top.clone());
        self.new_layer(&self.top.clone());
    }
    fn restore(&mut self, name: &str) {
        let under = self.held[name].clone();
        self.new_layer(&under);
    }
    fn content(&self, file: &Path) -> String {
        let raw = self.dir.path().join("raw");
        run("qemu-img", &["convert", "-U", "-f", self.format_of(file), "-O", "raw", path(file), path(&raw)]);
        sha256_hex(&fs::read(raw).unwrap())
    }
    /// What every state that is needed holds.
    fn states(&self) -> BTreeMap<String, String> {
        let held = self.held.iter().map(|(name, file)| (name.clone(), self.content(file)));
        let outside = self.outside.iter().map(|(file, who)| (who.clone(), self.content(file)));
        held.chain(outside).chain([("top".to_owned(), self.content(&self.top))]).collect()
    }
    /// As the files themselves say it.
    fn layers(&self) -> Layers {
        let mut under = BTreeMap::new();
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let file = entry.unwrap().path();
            if number(&self.base(), &file).is_some() {
                let Behind::File(name) = behind(&fs::read(&file).unwrap()) else { panic!("{}", file.display()) };
                under.insert(file, name);
            }
        }
        Layers {
            base: self.base(),
            under,
            tops: BTreeSet::from([self.top.clone()]),
            held: self.held.values().cloned().collect(),
            outside: self.outside.clone(),
        }
    }
    fn make(&mut self, one: &Move) {
        match one {
            Move::Commit { top, into } => {
                run("qemu-img", &["commit", "-q", "-d", "-f", "qcow2", "-b", path(into), path(top)]);
            }
            Move::Rebase { path: file, onto } => {
                let format = self.format_of(onto);
                run("qemu-img", &["rebase", "-q", "-f", "qcow2", "-b", path(onto), "-F", format, path(file)]);
            }
            Move::Refer { from, to } => {
                for file in self.held.values_mut().chain([&mut self.top]).filter(|f| *f == from) {
                    file.clone_from(to);
                }
            }
            Move::Remove { path } => fs::remove_file(path).unwrap(),
        }
    }
    /// All of it, interrupted after so many moves and taken up again. Every state stays at every moment.
    fn settle(&mut self, interrupted: usize) {
        let states = self.states();
        for one in self.layers().settle().iter().take(interrupted) {
            self.make(one);
            assert_eq!(self.states(), states, "after {one:?}");
        }
        for one in self.layers().settle() {
            self.make(&one);
            assert_eq!(self.states(), states, "after {one:?}");
        }
        assert_eq!(self.layers().settle(), [], "nothing is left to do");
    }
}

#[test]
fn one_snapshot_that_goes_leaves_the_disk_as_it_was_made() {
    if !installed() {
        return;
    }
    for format in ["qcow2", "raw"] {
        let mut disk = Disk::new(format);
        disk.write();
        disk.hold("a");
        disk.write();
        disk.held.remove("a");
        disk.settle(0);
        assert_eq!((&disk.top, disk.layers().under.len()), (&disk.base(), 0));
    }
}

#[test]
fn a_layer_that_a_clone_goes_on_in_stays() {
    if !installed() {
        return;
    }
    let mut disk = Disk::new("qcow2");
    disk.write();
    disk.hold("a");
    disk.write();
    disk.hold("b");
    disk.write();
    let held = disk.held.remove("b").unwrap();
    disk.outside.insert(held.clone(), "clone".to_owned());
    disk.held.remove("a");
    disk.settle(usize::MAX);
    assert!(held.exists());
}

/// A small generator of its own, so that a failure can be made again by its seed.
fn next(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) as usize % below
}

#[test]
fn whatever_tree_there_is_no_state_is_lost() {
    if !installed() {
        return;
    }
    for round in 0..3u64 {
        let mut seed = round;
        let mut disk = Disk::new(if round % 2 == 0 { "qcow2" } else { "raw" });
        for n in 0..7 {
            let names: Vec<String> = disk.held.keys().cloned().collect();
            match next(&mut seed, 4) {
                2 if !names.is_empty() => {
                    let name = names[next(&mut seed, names.len())].clone();
                    if next(&mut seed, 2) == 0 {
                        disk.hold(&format!("kept{n}"));
                    }
                    disk.restore(&name);
                }
                3 if !names.is_empty() => {
                    let name = names[next(&mut seed, names.len())].clone();
                    disk.held.remove(&name);
                    let interrupted = next(&mut seed, 5);
                    disk.settle(interrupted);
                }
                _ => disk.hold(&format!("s{n}")),
            }
            disk.write();
        }
        while let Some((name, _)) = disk.held.pop_first() {
            let interrupted = next(&mut seed, 5);
            disk.settle(interrupted);
            assert!(
                disk.layers().under.len() <= disk.held.len() * 2 + 1,
                "seed {round}, without {name}: {disk:?}",
                disk = disk.layers()
            );
        }
        assert_eq!((&disk.top, disk.layers().under.len()), (&disk.base(), 0), "seed {round}: it is as it was made");
    }
}

#[test]
fn while_it_runs_only_what_it_writes_to_is_merged() {
    let (base, one, two) = (
        PathBuf::from("/srv/desk-0.qcow2"),
        layer(Path::new("/srv/desk-0.qcow2"), 1),
        layer(Path::new("/srv/desk-0.qcow2"), 2),
    );
    let chain = |held: &[&PathBuf]| Layers {
        base: base.clone(),
        under: BTreeMap::from([(one.clone(), base.clone()), (two.clone(), one.clone())]),
        tops: BTreeSet::from([two.clone()]),
        held: held.iter().map(|p| (*p).clone()).collect(),
        outside: BTreeMap::new(),
    };
    let commit = |top: &PathBuf, into: &PathBuf| Move::Commit { top: top.clone(), into: into.clone() };
    let remove = |path: &PathBuf| Move::Remove { path: path.clone() };
    assert_eq!(chain(&[&base]).settle_live(&two).unwrap(), [commit(&two, &one), remove(&two)]);
    assert_eq!(
        chain(&[]).settle_live(&two).unwrap(),
        [commit(&two, &one), remove(&two), commit(&one, &base), remove(&one)]
    );
    let said = chain(&[&one]).settle_live(&two).unwrap_err();
    assert!(said.contains("while it is off"), "{said}");
    assert_eq!(chain(&[&base, &one]).settle_live(&two).unwrap(), []);
}

#[test]
fn a_layer_is_known_by_its_name() {
    let base = Path::new("/srv/desk-0.qcow2");
    assert_eq!(number(base, &layer(base, 12)), Some(12));
    for other in ["/srv/desk-0.qcow2", "/srv/desk-1+2.qcow2", "/else/desk-0+2.qcow2", "/srv/desk-0+x.qcow2"] {
        assert_eq!(number(base, Path::new(other)), None, "{other}");
    }
    let chain = [layer(base, 1), base.to_owned(), PathBuf::from("/srv/image.qcow2")];
    assert_eq!(super::base(&layer(base, 2), &chain), base);
    assert_eq!(super::base(base, &chain[2..]), base);
}
