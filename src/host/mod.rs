//! The seam between gpuvm and a machine: `Probe` looks and cannot change, `Host` carries out steps.
//!
//! `live` is the only place that touches the real machine, `fixture` is a recorded directory that plays one,
//! `record` wraps a probe and writes down everything that it answered, `snapshot` caches one planning pass.

mod device_users;
pub mod fixture;
mod guest;
pub mod initramfs;
pub mod live;
mod myself;
pub mod record;
mod snapshot;
mod virtualisation;
pub mod whole;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use device_users::{DeviceUser, DeviceUsers};
pub use guest::{
    GuestAgent, GuestInterface, SHUTDOWN_PATIENCE_S, did_not_shut_down, no_console, not_blank, power_was_cut,
};
pub use initramfs::Initramfs;
pub use myself::Myself;
pub use snapshot::Snapshot;
pub use virtualisation::{Domain, Network, Pool, Snapshot as VmSnapshot, Virtualisation, Volume};

use crate::plan::Step;
use crate::types::{DomainName, Mode};

/// What a question was answered with. Absence is an answer; "not allowed to look" is one too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer<T> {
    /// It is there, and this is it.
    Value(T),
    /// It is not there.
    Absent,
    /// It may be there: this user is not allowed to look.
    Denied,
}

impl<T> Answer<T> {
    /// The value, where there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Answer::Value(value) => Some(value),
            Answer::Absent | Answer::Denied => None,
        }
    }
    /// Applies a function to the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Answer::Value(value) => Answer::Value(f(value)),
            Answer::Absent => Answer::Absent,
            Answer::Denied => Answer::Denied,
        }
    }
    /// Whether this user was not allowed to look.
    pub fn is_denied(&self) -> bool {
        matches!(self, Answer::Denied)
    }
}

/// What kind of thing a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link (`stat` does not follow the last component).
    Link,
    /// A device node, socket or pipe.
    Other,
}

/// What `lstat` tells of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: Mode,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The programs that gpuvm runs. Looked up in fixed directories and run with an argument list, never through a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// apt-get(8)
    AptGet,
    /// dpkg(1)
    Dpkg,
    /// dracut(8)
    Dracut,
    /// gpasswd(1): adds to and removes from a group.
    Gpasswd,
    /// gpgv(1)
    Gpgv,
    /// ip(8)
    Ip,
    /// ldconfig(8)
    Ldconfig,
    /// lvchange(8)
    Lvchange,
    /// lvcreate(8)
    Lvcreate,
    /// lvextend(8)
    Lvextend,
    /// lvremove(8)
    Lvremove,
    /// lvs(8)
    Lvs,
    /// modprobe(8)
    Modprobe,
    /// netplan(8)
    Netplan,
    /// nvidia-ctk, of NVIDIA's container toolkit
    NvidiaCtk,
    /// nvidia-smi, of NVIDIA's driver
    NvidiaSmi,
    /// qemu-img(1)
    QemuImg,
    /// sqv(1)
    Sqv,
    /// ssh(1)
    Ssh,
    /// systemctl(1)
    Systemctl,
    /// systemd-run(1)
    SystemdRun,
    /// udevadm(8)
    Udevadm,
    /// update-grub(8)
    UpdateGrub,
    /// update-initramfs(8)
    UpdateInitramfs,
    /// vgs(8)
    Vgs,
    /// zfs(8)
    Zfs,
}

impl Program {
    /// The file name of the program.
    pub const fn name(self) -> &'static str {
        match self {
            Program::AptGet => "apt-get",
            Program::Dpkg => "dpkg",
            Program::Dracut => "dracut",
            Program::Gpasswd => "gpasswd",
            Program::Gpgv => "gpgv",
            Program::Ip => "ip",
            Program::Ldconfig => "ldconfig",
            Program::Lvchange => "lvchange",
            Program::Lvcreate => "lvcreate",
            Program::Lvextend => "lvextend",
            Program::Lvremove => "lvremove",
            Program::Lvs => "lvs",
            Program::Modprobe => "modprobe",
            Program::Netplan => "netplan",
            Program::NvidiaCtk => "nvidia-ctk",
            Program::NvidiaSmi => "nvidia-smi",
            Program::QemuImg => "qemu-img",
            Program::Sqv => "sqv",
            Program::Ssh => "ssh",
            Program::Systemctl => "systemctl",
            Program::SystemdRun => "systemd-run",
            Program::Udevadm => "udevadm",
            Program::UpdateGrub => "update-grub",
            Program::UpdateInitramfs => "update-initramfs",
            Program::Vgs => "vgs",
            Program::Zfs => "zfs",
        }
    }
}

/// What a program said, whatever its exit status was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Exit status; 128 + signal where a signal ended it.
    pub status: i32,
    /// Standard output, as UTF-8 with replacement characters.
    pub stdout: String,
    /// Standard error, likewise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stderr: String,
}

/// Why the machine could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file could not be read or written.
    #[error("`{path}`: {source}")]
    File {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program is not in any of the fixed directories.
    #[error("`{0}` is not installed")]
    NoProgram(&'static str),
    /// A program failed.
    #[error("`{command}` failed with status {status}: {said}")]
    Failed {
        /// The command line, for reading only.
        command: String,
        /// Exit status.
        status: i32,
        /// The end of what it said.
        said: String,
    },
    /// Something did not answer in time and was left behind.
    #[error("{what} did not answer within {} s", .limit.as_secs())]
    Timeout {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// libvirt refused or failed, in its own words.
    #[error("libvirt: {0}")]
    Libvirt(String),
    /// A recorded host does not hold the answer.
    #[error("the record does not hold {0}")]
    NotRecorded(String),
    /// The step cannot be carried out in the state that the host is in.
    #[error("{0}")]
    Refused(String),
}

/// What to do about a libvirt that does not answer. VMs are processes of their own: they run on without the daemon.
pub const LIBVIRT_HANGS: &str = "its daemon hangs, or is slow to start: try again; to restart it, which leaves VMs \
                                 running: systemctl restart libvirtd (virtqemud where libvirt is modular)";

impl HostError {
    /// What to do about it, where that is known.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            HostError::Timeout { what, .. } if what.ends_with("libvirt") => Some(LIBVIRT_HANGS),
            _ => None,
        }
    }
    /// For `map_err` on I/O with a path.
    pub fn file(path: &Path) -> impl FnOnce(std::io::Error) -> HostError + '_ {
        |source| HostError::File { path: path.to_owned(), source }
    }
}

/// Looks at a machine and cannot change it. All paths are absolute, as on the machine itself.
pub trait Probe {
    /// The content of a file; links are followed. A directory is an error.
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError>;
    /// The first bytes of a file or a block device, at most so many; links are followed. `Absent` for anything else.
    fn head(&self, path: &Path, most: usize) -> Result<Answer<Vec<u8>>, HostError> {
        Ok(self.read(path)?.map(|mut bytes| {
            bytes.truncate(most);
            bytes
        }))
    }
    /// Whether nothing was ever written to a disk, as far as its first bytes tell (see [`crate::image::is_blank`]).
    fn blank(&self, disk: &Path) -> Result<Answer<bool>, HostError> {
        Ok(self.head(disk, crate::image::HEAD)?.map(|head| crate::image::is_blank(&head)))
    }
    /// What the path itself is (`lstat`).
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError>;
    /// Where a link points, as it is written in the link. `Absent` where the path is no link.
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError>;
    /// What a program that only looks answers; `Absent` where it is not installed. Limited in time.
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<Output>, HostError>;
    /// Everything that libvirt knows, asked once; `Absent` where libvirt is not installed.
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError>;
    /// What an initramfs holds, as far as it is asked for. Limited in time and memory.
    fn initramfs(&self, path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError>;
    /// Who has nodes of graphics, sound and passthrough devices open, asked once.
    fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError>;
    /// What the agent inside a running VM's guest says; `Absent` where it does not answer. Limited in time.
    fn guest_agent(&self, vm: &DomainName) -> Result<Answer<Arc<GuestAgent>>, HostError>;
    /// The program that runs, as it could be put on this host.
    fn myself(&self) -> Result<Myself, HostError> {
        Ok(Myself::stand_in())
    }
    /// sha256 in hex of a file that is too large to be had as a whole; links are followed.
    fn digest(&self, path: &Path) -> Result<Answer<String>, HostError> {
        Ok(self.read(path)?.map(|bytes| crate::types::sha256_hex(&bytes)))
    }
    /// The content of a file as text, with replacement characters where it is not UTF-8.
    fn text(&self, path: &Path) -> Result<Answer<String>, HostError> {
        Ok(self.read(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// What a step may use while it is carried out.
pub struct Running<'a> {
    /// Payloads that must not be in a plan, by their sha256 in hex.
    pub secrets: &'a std::collections::BTreeMap<String, Vec<u8>>,
    /// Where the step tells how far it is; one short line each.
    pub progress: &'a mut dyn FnMut(&str),
    /// Where the step leaves what a person should read once it is over, though it did not fail.
    pub notes: &'a mut Vec<String>,
    /// The run's directory, for what must outlive the process (network guard files, kept originals).
    pub run_dir: &'a Path,
}

/// A machine that can also be changed: one step at a time, each of which is idempotent.
pub trait Host: Probe {
    /// Carries out one step.
    fn execute(&mut self, step: &Step, running: &mut Running<'_>) -> Result<(), HostError>;
    /// Takes away what a write of this file that was cut off left beside it.
    fn tidy(&mut self, path: &Path) -> Result<(), HostError>;
    /// Removes a directory that has nothing in it. Whether it is gone: one with something in it stays.
    fn remove_folder(&mut self, path: &Path) -> Result<bool, HostError>;
}
