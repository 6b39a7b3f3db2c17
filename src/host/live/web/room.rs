//! Whether what is fetched or copied has room where it is put.

use std::path::Path;

use super::mib;
use crate::host::HostError;

/// What is left free where an image is put: its disks take up what guests write, and a full pool halts them.
const RESERVE: u64 = 1 << 30;

/// How full the place of an image may become.
#[derive(Debug, Clone, Copy)]
pub(in crate::host::live) struct Room {
    /// What stays free, in bytes.
    pub reserve: u64,
    /// What is free in a folder, in bytes; none where that cannot be told.
    pub free: fn(&Path) -> Option<u64>,
}

impl Default for Room {
    fn default() -> Self {
        Self { reserve: RESERVE, free }
    }
}

impl Room {
    /// Whether so many bytes more have room beside a file, and the reserve stays.
    pub fn has(&self, part: &Path, more: u64) -> Result<(), HostError> {
        let folder = part.parent().unwrap_or(Path::new("/"));
        let at = folder.display();
        let Some(free) = (self.free)(folder) else {
            return Err(HostError::Refused(format!("how much is free in `{at}` cannot be told; nothing is put there")));
        };
        if free >= more.saturating_add(self.reserve) {
            return Ok(());
        }
        let reserve = mib(self.reserve);
        Err(HostError::Refused(match more {
            0 => {
                format!("`{at}` has {} free, and {reserve} stay free for the disks of VMs; make room there", mib(free))
            }
            more => format!(
                "`{at}` has {} free, and {} are needed while {reserve} stay free for the disks of VMs; make room there",
                mib(free),
                mib(more)
            ),
        }))
    }
}

fn free(folder: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    #[allow(clippy::unnecessary_cast)] // the types differ between architectures
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}
