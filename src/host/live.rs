//! The machine itself, to look at. The only module that touches it; it changes nothing.
//!
//! PCI configuration space is never read: that would wake a sleeping GPU. What gpuvm needs of a device the kernel keeps
//! in sysfs attributes that do not touch the device.

#[allow(dead_code)] // until steps are carried out on this machine
mod network;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::{Answer, FileKind, HostError, Output, Probe, Program, Stat, Virtualisation};
use crate::types::Mode;

/// How long a program that only looks may take; then it is left behind.
const QUERY_LIMIT: Duration = Duration::from_secs(10);

/// apt's simulation reads all package lists, which takes a slow machine longer.
const APT_LIMIT: Duration = Duration::from_secs(60);

/// Programs are looked for here and nowhere else, whatever PATH says.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Reads what libvirt knows.
pub type ReadLibvirt = fn() -> Result<Answer<Virtualisation>, HostError>;

/// This machine.
#[derive(Debug)]
pub struct Live {
    libvirt: ReadLibvirt,
}

impl Live {
    /// The machine, with the way to ask its libvirt.
    pub fn new(libvirt: ReadLibvirt) -> Self {
        Self { libvirt }
    }
}

/// Absence and refusal are answers; anything else is an error that names the path.
fn answered<T>(path: &Path, result: io::Result<T>) -> Result<Answer<T>, HostError> {
    match result {
        Ok(value) => Ok(Answer::Value(value)),
        Err(e) => match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Answer::Absent),
            io::ErrorKind::PermissionDenied => Ok(Answer::Denied),
            _ => Err(HostError::File { path: path.to_owned(), source: e }),
        },
    }
}

impl Probe for Live {
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
        answered(path, fs::read(path))
    }
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError> {
        let answer = answered(path, fs::symlink_metadata(path))?;
        Ok(answer.map(|m| Stat {
            kind: match m.file_type() {
                t if t.is_file() => FileKind::File,
                t if t.is_dir() => FileKind::Directory,
                t if t.is_symlink() => FileKind::Link,
                _ => FileKind::Other,
            },
            mode: Mode::new(m.permissions().mode()),
            uid: m.uid(),
            gid: m.gid(),
        }))
    }
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
        let names =
            fs::read_dir(dir).and_then(|all| all.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>());
        Ok(answered(dir, names)?.map(|mut names| {
            names.sort();
            names
        }))
    }
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError> {
        match fs::read_link(path) {
            // EINVAL: it is there, but no link.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(Answer::Absent),
            other => answered(path, other),
        }
    }
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<Output>, HostError> {
        let name = program.name();
        match FOLDERS.iter().map(|f| Path::new(f).join(name)).find(|p| p.is_file()) {
            None => Ok(Answer::Absent),
            Some(path) => {
                let limit = if program == Program::AptGet { APT_LIMIT } else { QUERY_LIMIT };
                ask(&path, args, limit).map(Answer::Value)
            }
        }
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        Ok((self.libvirt)()?.map(Arc::new))
    }
}

/// Runs a program and collects what it says. One that does not end in time is killed and not waited for: it may sleep
/// in the kernel, deaf to signals.
fn ask(path: &Path, args: &[&str], limit: Duration) -> Result<Output, HostError> {
    #[allow(clippy::disallowed_methods)] // this is the one place that starts programs
    let mut child = Command::new(path)
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(HostError::file(path))?;
    let collect = |pipe: Option<Box<dyn Read + Send>>| {
        let (sent, received) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            let _ = sent.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        received
    };
    let stdout = collect(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = collect(child.stderr.take().map(|p| Box::new(p) as _));
    let (Ok(stdout), Ok(stderr)) = (stdout.recv_timeout(limit), stderr.recv_timeout(limit)) else {
        let _ = child.kill();
        return Err(HostError::Timeout { what: format!("{} {}", path.display(), args.join(" ")), limit });
    };
    let status = child.wait().map_err(HostError::file(path))?;
    let status = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1);
    Ok(Output { status, stdout, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_left_behind() {
        let result = ask(Path::new("/bin/sleep"), &["60"], Duration::from_millis(50));
        assert!(matches!(result, Err(HostError::Timeout { .. })), "{result:?}");
    }

    #[test]
    fn more_than_a_pipe_holds_comes_through() {
        let output = ask(Path::new("/usr/bin/seq"), &["200000"], QUERY_LIMIT).unwrap();
        assert_eq!((output.status, output.stdout.lines().count()), (0, 200_000));
    }

    #[test]
    fn absence_is_an_answer() {
        let live = Live::new(|| Ok(Answer::Absent));
        assert_eq!(live.read(Path::new("/nonexistent/file")).unwrap(), Answer::Absent);
        assert_eq!(live.link(Path::new("/etc/passwd")).unwrap(), Answer::Absent);
        assert!(live.read(Path::new("/etc")).is_err());
    }
}
