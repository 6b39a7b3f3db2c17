//! One planning pass asks each question once: a probe that remembers what the probe below it answered.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{
    Answer, DeviceUsers, GuestAgent, HostError, Initramfs, Myself, Output, Probe, Program, Stat, Virtualisation,
};
use crate::types::DomainName;

/// A program with its arguments.
type Query = (Program, Vec<String>);

/// Caches every answer of the probe below; errors are asked again.
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
        }
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
        once(&self.queries, key, |_| self.below.query(program, args))
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        if let Some(known) = &*self.virtualisation.borrow() {
            return Ok(known.clone());
        }
        let answer = self.below.virtualisation()?;
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
        let answer = self.below.device_users()?;
        *self.device_users.borrow_mut() = Some(answer.clone());
        Ok(answer)
    }
}
