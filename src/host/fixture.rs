//! A recorded directory that plays a machine: `DIR/gpuvm-record.json` and the files below `DIR/root`.
//!
//! Steps really write files in the copy; what programs would do (apt, the boot loader, a reboot) is played from plain
//! rules below. What cannot be played is refused, never passed over in silence.

mod apt;
mod network;
mod play;
mod play_blocks;
mod play_console;
mod play_drivers;
mod play_guests;
mod play_initramfs;
mod play_iommu;
mod play_libvirt;
mod play_mig;
mod play_shared;
mod play_snapshots;
mod play_vgpus;
mod play_virtual_functions;
mod record_file;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

pub use record_file::{
    Grouped, Played, RECORD_FORMAT, Record, RecordedGroup, RecordedLibvirt, RecordedQuery, RecordedStat,
};

use super::whole::{self, Attributes};
use super::{
    Answer, DeviceUsers, FileKind, GuestAgent, Host, HostError, Initramfs, Myself, Output, Probe, Program, Running,
    Stat, Virtualisation,
};
use crate::fail_point::fail_point;
use crate::plan::{Content, FileWrite, Step};
use crate::types::{DomainName, Mode};

/// A copy of a recorded host.
#[derive(Debug)]
pub struct Fixture {
    dir: PathBuf,
    record: RefCell<Record>,
}

/// More links in one path than this is a loop (the kernel's own limit, path_resolution(7)).
const MOST_LINKS: u32 = 40;

impl Fixture {
    /// Opens a recorded host. A change of its network that was cut off goes back first, as the guard of a real host,
    /// which is no part of gpuvm's process, would have put it back by now; and a boot that was begun is done.
    pub fn open(dir: &Path) -> Result<Self, HostError> {
        let record = Record::load(&dir.join(Record::NAME))?;
        let fixture = Self { dir: dir.to_owned(), record: RefCell::new(record) };
        if !fixture.is_being_changed() {
            fixture.heal()?;
        }
        Ok(fixture)
    }

    /// Whether a gpuvm that lives is changing this host: it holds the lock.
    fn is_being_changed(&self) -> bool {
        let lock = fs::File::open(self.dir.join("root/var/lib/gpuvm/lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    /// What is no part of gpuvm's process comes to its end when that is killed.
    fn heal(&self) -> Result<(), HostError> {
        self.guard_puts_back()?;
        if self.record.borrow().booting {
            self.boot()?;
            self.save()?;
        }
        // What other programs were writing is theirs to clean up.
        for path in ["/etc/group", "/var/lib/dpkg/status"].map(Path::new) {
            whole::tidy(&self.place(path, true)?).map_err(HostError::file(path))?;
        }
        whole::tidy(&self.dir.join(Record::NAME)).map_err(HostError::file(&self.dir))
    }

    /// Writes down what of the host is not a file.
    fn save(&self) -> Result<(), HostError> {
        self.record.borrow().save(&self.dir.join(Record::NAME))
    }

    /// Where a path of the machine lies in the copy, whatever the links in it say: an absolute link starts again at
    /// the copy's root, and `..` stops there. With `follow`, the last component is followed too.
    fn place(&self, path: &Path, follow: bool) -> Result<PathBuf, HostError> {
        let root = self.dir.join("root");
        let mut links = 0;
        let mut todo: Vec<OsString> = parts(path);
        let mut at: Vec<OsString> = Vec::new();
        while let Some(part) = todo.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(part);
            let here: PathBuf = root.iter().map(OsString::from).chain(at.iter().cloned()).collect();
            if todo.is_empty() && !follow {
                break;
            }
            if let Ok(target) = fs::read_link(&here) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(HostError::Refused(format!("`{}` goes through too many links", path.display())));
                }
                at.pop();
                if target.is_absolute() {
                    at.clear();
                }
                todo.extend(parts(&target));
            }
        }
        Ok(root.iter().map(OsString::from).chain(at).collect())
    }

    fn denied(&self, path: &Path) -> bool {
        self.record.borrow().denied.iter().any(|d| path.starts_with(d))
    }

    /// Asks the copy about a path, unless the record says that its user was not allowed to.
    fn ask<T>(
        &self,
        path: &Path,
        follow: bool,
        ask: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<Answer<T>, HostError> {
        if self.denied(path) {
            return Ok(Answer::Denied);
        }
        match ask(&self.place(path, follow)?) {
            Ok(value) => Ok(Answer::Value(value)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Answer::Absent),
            Err(source) => Err(HostError::File { path: path.to_owned(), source }),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), HostError> {
        let place = self.place(path, true)?;
        let write = || {
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent)?;
            }
            // The kernel's own: nothing stands beside them, ever.
            if ["/proc", "/sys", "/dev"].iter().any(|top| path.starts_with(top)) {
                return fs::write(&place, bytes);
            }
            whole::replace(&place, bytes, &Attributes { mode: 0o644, owner: None })
        };
        write().map_err(HostError::file(path))
    }

    /// The text of a file; empty where it is not there.
    fn old(&self, path: &str) -> Result<String, HostError> {
        Ok(self.text(Path::new(path))?.value().unwrap_or_default())
    }

    fn write_file(&self, file: &FileWrite, running: &Running<'_>) -> Result<(), HostError> {
        let bytes = match &file.content {
            Content::Text(text) => text.as_bytes(),
            Content::Program(digest) if *digest == Myself::stand_in().sha256 => Myself::STAND_IN.as_bytes(),
            Content::Program(_) => {
                return Err(HostError::Refused(format!(
                    "`{}` was to be the gpuvm that the plan was made with, and this is another one",
                    file.path.display()
                )));
            }
            Content::Secret(digest) => running.secrets.get(digest).ok_or_else(|| {
                HostError::Refused(format!("the secret for `{}` is not at hand", file.path.display()))
            })?,
        };
        let stat = RecordedStat {
            mode: file.mode,
            uid: self.number("/etc/passwd", &file.owner)?,
            gid: self.number("/etc/group", &file.group)?,
        };
        // Before the file: a new one never stands there with another mode than its own.
        if self.record.borrow_mut().stats.insert(file.path.clone(), stat) != Some(stat) {
            self.save()?;
        }
        self.write(&file.path, bytes)
    }

    /// The number of a user or group of the recorded host; a number stands for itself.
    fn number(&self, file: &str, name: &str) -> Result<u32, HostError> {
        if let Ok(number) = name.parse() {
            return Ok(number);
        }
        let text = self.old(file)?;
        let found = text.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&name));
        match found.and_then(|f| f.get(2).and_then(|n| n.parse().ok())) {
            Some(number) => Ok(number),
            None if name == "root" => Ok(0),
            None => Err(HostError::Refused(format!("`{name}` is not in {file}"))),
        }
    }

    fn remove(&self, path: &Path) -> Result<(), HostError> {
        if self.record.borrow_mut().stats.remove(path).is_some() {
            self.save()?;
        }
        whole::remove(&self.place(path, false)?).map_err(HostError::file(path))
    }

    /// A folder with all that is in it.
    fn remove_all(&self, path: &Path) -> Result<(), HostError> {
        match fs::remove_dir_all(self.place(path, false)?) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(HostError::file(path)),
        }
    }

    fn make_dir(&self, path: &Path) -> Result<(), HostError> {
        fs::create_dir_all(self.place(path, true)?).map_err(HostError::file(path))
    }

    fn make_link(&self, path: &Path, target: &Path) -> Result<(), HostError> {
        let place = self.place(path, false)?;
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(HostError::file(path))?;
        }
        whole::replace_link(&place, target).map_err(HostError::file(path))
    }
}

/// The components of a path in reverse, so that the next one is popped.
fn parts(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|c| match c {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

impl Probe for Fixture {
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
        let answer = self.ask(path, true, |place| fs::read(place))?;
        // A new name for each boot, as the kernel gives it (random(4)).
        Ok(match answer {
            Answer::Absent if path == Path::new("/proc/sys/kernel/random/boot_id") => {
                Answer::Value(format!("boot-{}\n", self.record.borrow().boots).into_bytes())
            }
            other => other,
        })
    }
    fn blank(&self, disk: &Path) -> Result<Answer<bool>, HostError> {
        Ok(self.read(disk)?.map(|bytes| {
            let played = play_libvirt::is_blank(&String::from_utf8_lossy(&bytes));
            played.unwrap_or_else(|| crate::image::is_blank(&bytes))
        }))
    }
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError> {
        let known = self.record.borrow().stats.get(path).copied();
        self.ask(path, false, |place| {
            let meta = fs::symlink_metadata(place)?;
            let (kind, mode) = match meta.file_type() {
                t if t.is_dir() => (FileKind::Directory, 0o755),
                t if t.is_symlink() => (FileKind::Link, 0o777),
                // A checkout keeps no more of a mode than whether the file can be run.
                t if t.is_file() => {
                    (FileKind::File, if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 })
                }
                _ => (FileKind::Other, 0o600),
            };
            Ok(match known {
                Some(stat) => Stat { kind, mode: stat.mode, uid: stat.uid, gid: stat.gid },
                None => Stat { kind, mode: Mode::new(mode), uid: 0, gid: 0 },
            })
        })
    }
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
        self.ask(dir, true, |place| {
            let mut names = fs::read_dir(place)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        })
    }
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError> {
        self.ask(path, false, |place| match fs::read_link(place) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(io::ErrorKind::NotFound.into()),
            other => other,
        })
    }
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<Output>, HostError> {
        let record = self.record.borrow();
        let known = record.queries.iter().find(|q| q.program == program && q.args == args);
        if program == Program::NvidiaSmi && self.is_without_mig_mode(&record, args) {
            return Ok(Answer::Value(play_mig::not_on()));
        }
        if program == Program::AptGet && known.is_none_or(|q| q.output.as_ref().is_some_and(|o| o.status == 0)) {
            drop(record);
            return self.simulated(args);
        }
        match known {
            Some(known) => Ok(known.output.clone().map_or(Answer::Absent, Answer::Value)),
            None => Err(HostError::NotRecorded(format!("`{} {}`", program.name(), args.join(" ")))),
        }
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        Ok(match &self.record.borrow().libvirt {
            RecordedLibvirt::Absent => Answer::Absent,
            RecordedLibvirt::Denied => Answer::Denied,
            RecordedLibvirt::Known(known) => Answer::Value(Arc::new(known.clone())),
        })
    }
    fn initramfs(&self, path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
        if self.denied(path) {
            return Ok(Answer::Denied);
        }
        if self.stat(path)? == Answer::Absent {
            return Ok(Answer::Absent);
        }
        match self.record.borrow().initramfs.get(path) {
            Some(known) => Ok(Answer::Value(Arc::new(known.clone()))),
            None => Err(HostError::NotRecorded(format!("what is in `{}`", path.display()))),
        }
    }
    fn guest_agent(&self, vm: &DomainName) -> Result<Answer<Arc<GuestAgent>>, HostError> {
        let agent = self.record.borrow().agents.get(vm.as_str()).cloned();
        Ok(agent.map_or(Answer::Absent, |agent| Answer::Value(Arc::new(agent))))
    }
    fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError> {
        match &self.record.borrow().device_users {
            Some(known) => Ok(Arc::new(known.clone())),
            None => Err(HostError::NotRecorded("who has device nodes open".to_owned())),
        }
    }
}

impl Host for Fixture {
    fn execute(&mut self, step: &Step, running: &mut Running<'_>) -> Result<(), HostError> {
        self.play(step, running)?;
        fail_point("a step was played, and the record is not written");
        self.save()?;
        if matches!(step, Step::SwitchNetwork(_)) { self.guard_is_content() } else { Ok(()) }
    }
    fn tidy(&mut self, path: &Path) -> Result<(), HostError> {
        whole::tidy(&self.place(path, false)?).map_err(HostError::file(path))
    }
    fn remove_folder(&mut self, path: &Path) -> Result<bool, HostError> {
        whole::remove_folder(&self.place(path, false)?).map_err(HostError::file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, Fixture) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        fs::write(dir.path().join("root/etc/inside"), "inside").unwrap();
        fs::write(dir.path().join("outside"), "outside").unwrap();
        Record::default().save(&dir.path().join(Record::NAME)).unwrap();
        let fixture = Fixture::open(dir.path()).unwrap();
        (dir, fixture)
    }

    #[test]
    fn no_link_leads_out_of_the_copy() {
        let (dir, fixture) = fixture();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, dir.path().join("root/etc").join(name)).unwrap()
        };
        link("/etc/inside", "absolute");
        link("../../../../../etc/inside", "up");
        link("../../outside", "out");
        link("/", "top");
        link("loop", "loop");
        let read = |path: &str| fixture.text(Path::new(path));
        assert_eq!(read("/etc/absolute").unwrap(), Answer::Value("inside".to_owned()));
        assert_eq!(read("/etc/up").unwrap(), Answer::Value("inside".to_owned()));
        assert_eq!(read("/etc/top/etc/inside").unwrap(), Answer::Value("inside".to_owned()));
        assert_eq!(read("/etc/out").unwrap(), Answer::Absent);
        assert_eq!(read("/../outside").unwrap(), Answer::Absent);
        assert!(read("/etc/loop").is_err());
    }

    #[test]
    fn a_record_of_another_format_is_refused() {
        let (dir, _) = fixture();
        fs::write(dir.path().join(Record::NAME), "{\"format\":99}").unwrap();
        assert!(Fixture::open(dir.path()).is_err());
    }
}
