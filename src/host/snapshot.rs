//! One planning pass asks each question once: a probe that remembers what the probe below it answered.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{
    Answer, DeviceUsers, GuestAgent, HostError, Initramfs, Myself, Output, Probe, Program, Stat, Virtualisation,
};
use crate::types::DomainName;

/// A program with its arguments.
type Query = (Program, Vec<String>);

/// Whoever did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Program(Program),
    Libvirt,
    Devices,
}

/// Caches every answer of the probe below. Errors are asked again, but whoever did not answer in time is not waited for
/// twice, whatever the question.
pub struct Snapshot<'a> {
    below: &'a dyn Probe,
    files: RefCell<BTreeMap<PathBuf, Answer<Vec<u8>>>>,
    stats: RefCell<BTreeMap<PathBuf, Answer<Stat>>>,
    lists: RefCell<BTreeMap<PathBuf, Answer<Vec<OsString>>>>,
    links: RefCell<BTreeMap<PathBuf, Answer<PathBuf>>>,
    digests: RefCell<BTreeMap<PathBuf, Answer<String>>>,
    queries: RefCell<BTreeMap<Query, Answer<Output>>>,
    virtualisation: RefCell<Option<Answer<Arc<Virtualisation>>>>,
    initramfs: RefCell<BTreeMap<PathBuf, Answer<Arc<Initramfs>>>>,
    device_users: RefCell<Option<Arc<DeviceUsers>>>,
    hanging: RefCell<BTreeMap<Asked, (String, Duration)>>,
}

impl<'a> Snapshot<'a> {
    /// An empty cache over a probe.
    pub fn new(below: &'a dyn Probe) -> Self {
        Self {
            below,
            files: RefCell::default(),
            stats: RefCell::default(),
            lists: RefCell::default(),
            links: RefCell::default(),
            digests: RefCell::default(),
            queries: RefCell::default(),
            virtualisation: RefCell::default(),
            initramfs: RefCell::default(),
            device_users: RefCell::default(),
            hanging: RefCell::default(),
        }
    }

    /// Asks someone who may hang; once they did, that is the answer.
    fn patiently<V>(&self, asked: Asked, ask: impl FnOnce() -> Result<V, HostError>) -> Result<V, HostError> {
        if let Some((what, limit)) = self.hanging.borrow().get(&asked) {
            return Err(HostError::Timeout { what: what.clone(), limit: *limit });
        }
        let answer = ask();
        if let Err(HostError::Timeout { what, limit }) = &answer {
            self.hanging.borrow_mut().insert(asked, (what.clone(), *limit));
        }
        answer
    }
}

/// Answers from the cache, or asks and remembers.
fn once<K: Ord, V: Clone>(
    cache: &RefCell<BTreeMap<K, V>>,
    key: K,
    ask: impl FnOnce(&K) -> Result<V, HostError>,
) -> Result<V, HostError> {
    if let Some(known) = cache.borrow().get(&key) {
        return Ok(known.clone());
    }
    let answer = ask(&key)?;
    cache.borrow_mut().insert(key, answer.clone());
    Ok(answer)
}

impl Probe for Snapshot<'_> {
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
        once(&self.files, path.to_owned(), |p| self.below.read(p))
    }
    // Of a disk, which nobody looks at twice.
    fn head(&self, path: &Path, most: usize) -> Result<Answer<Vec<u8>>, HostError> {
        self.below.head(path, most)
    }
    fn blank(&self, disk: &Path) -> Result<Answer<bool>, HostError> {
        self.below.blank(disk)
    }
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError> {
        once(&self.stats, path.to_owned(), |p| self.below.stat(p))
    }
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
        once(&self.lists, dir.to_owned(), |p| self.below.list(p))
    }
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError> {
        once(&self.links, path.to_owned(), |p| self.below.link(p))
    }
    fn myself(&self) -> Result<Myself, HostError> {
        self.below.myself()
    }
    fn digest(&self, path: &Path) -> Result<Answer<String>, HostError> {
        once(&self.digests, path.to_owned(), |p| self.below.digest(p))
    }
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<Output>, HostError> {
        let key = (program, args.iter().map(|a| (*a).to_owned()).collect());
        once(&self.queries, key, |_| self.patiently(Asked::Program(program), || self.below.query(program, args)))
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        if let Some(known) = &*self.virtualisation.borrow() {
            return Ok(known.clone());
        }
        let answer = self.patiently(Asked::Libvirt, || self.below.virtualisation())?;
        *self.virtualisation.borrow_mut() = Some(answer.clone());
        Ok(answer)
    }
    fn initramfs(&self, path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
        once(&self.initramfs, path.to_owned(), |p| self.below.initramfs(p))
    }
    fn guest_agent(&self, vm: &DomainName) -> Result<Answer<Arc<GuestAgent>>, HostError> {
        self.below.guest_agent(vm)
    }
    fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError> {
        if let Some(known) = &*self.device_users.borrow() {
            return Ok(known.clone());
        }
        let answer = self.patiently(Asked::Devices, || self.below.device_users())?;
        *self.device_users.borrow_mut() = Some(answer.clone());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A host on which nothing answers.
    #[derive(Default)]
    struct Hangs {
        asked: Cell<usize>,
    }

    impl Hangs {
        fn hang<V>(&self) -> Result<V, HostError> {
            self.asked.set(self.asked.get() + 1);
            Err(HostError::Timeout { what: "it".to_owned(), limit: Duration::from_secs(8) })
        }
    }

    impl Probe for Hangs {
        fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
            self.asked.set(self.asked.get() + 1);
            Err(HostError::File { path: path.to_owned(), source: std::io::ErrorKind::PermissionDenied.into() })
        }
        fn stat(&self, _: &Path) -> Result<Answer<Stat>, HostError> {
            self.hang()
        }
        fn list(&self, _: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
            self.hang()
        }
        fn link(&self, _: &Path) -> Result<Answer<PathBuf>, HostError> {
            self.hang()
        }
        fn query(&self, _: Program, _: &[&str]) -> Result<Answer<Output>, HostError> {
            self.hang()
        }
        fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
            self.hang()
        }
        fn initramfs(&self, _: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
            self.hang()
        }
        fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError> {
            self.hang()
        }
        fn guest_agent(&self, _: &DomainName) -> Result<Answer<Arc<GuestAgent>>, HostError> {
            self.hang()
        }
    }

    #[test]
    fn whoever_hangs_is_waited_for_once() {
        let host = Hangs::default();
        let snapshot = Snapshot::new(&host);
        let timed_out = |e: HostError| assert_eq!(e.to_string(), "it did not answer within 8 s");
        for args in [["-json", "address"], ["-json", "route"]] {
            timed_out(snapshot.query(Program::Ip, &args).unwrap_err());
        }
        for _ in 0..3 {
            timed_out(snapshot.virtualisation().unwrap_err());
            timed_out(snapshot.device_users().unwrap_err());
        }
        assert_eq!(host.asked.get(), 3);
        timed_out(snapshot.query(Program::AptGet, &[]).unwrap_err());
        assert_eq!(host.asked.get(), 4, "another program is asked");
        // What failed otherwise may be there the next time.
        for _ in 0..2 {
            snapshot.read(Path::new("/etc/shadow")).unwrap_err();
        }
        assert_eq!(host.asked.get(), 6);
        timed_out(Snapshot::new(&host).virtualisation().unwrap_err());
        assert_eq!(host.asked.get(), 7, "another pass asks anew");
    }
}
