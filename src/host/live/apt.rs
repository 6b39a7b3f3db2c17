//! Package transactions: what was planned, simulated once more, or nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::program;
use crate::host::{HostError, Program};
use crate::plan::AptPackage;
use crate::resource::package::{Simulated, read_simulation};
use crate::types::PackageName;

/// A download over a slow line and an initramfs for every kernel.
const TRANSACTION_LIMIT: Duration = Duration::from_secs(3600);
/// The simulation reads all package lists.
const SIMULATION_LIMIT: Duration = Duration::from_secs(120);
/// How long another package manager is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(600);

/// The locks that apt takes, in its order (apt-get(8), FILES).
const LOCKS: [&str; 3] = ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock"];

/// Configuration files that a person changed are kept, others become the package's; apt asks nobody.
const QUIET: [&str; 9] = [
    "-y",
    "-q",
    "--no-install-recommends",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Use-Pty=0",
];

/// Fetches the package lists.
pub(super) fn index(progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    wait_for_locks(progress)?;
    // Without this word apt-get ends with 0 although a source did not answer.
    let args = ["update", "-q", "-o", "APT::Update::Error-Mode=any"];
    program::perform(Program::AptGet, &args, TRANSACTION_LIMIT, progress)
}

/// Carries out one transaction. apt is asked once more what it would do; anything but what was planned is refused.
pub(super) fn transaction(
    asked: &[String],
    install: &[AptPackage],
    remove: &[PackageName],
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    wait_for_locks(progress)?;
    recover(progress)?;
    let apt = program::place(Program::AptGet).ok_or(HostError::NoProgram("apt-get"))?;
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    let simulate: Vec<&str> = crate::resource::package::SIMULATE.iter().copied().chain(asked.iter().copied()).collect();
    match read_simulation(&program::ask(&apt, &simulate, SIMULATION_LIMIT)?) {
        Simulated::Would { install: now, remove: going } => {
            if let Some(other) = difference(install, remove, &now, &going) {
                return Err(HostError::Refused(format!(
                    "apt would now do something else than was planned: {other}; plan again"
                )));
            }
        }
        Simulated::NotKnown(name) => {
            return Err(HostError::Refused(format!("apt does not know `{name}` any more; plan again")));
        }
        Simulated::Cannot(why) | Simulated::NotAsked(why) => return Err(HostError::Refused(format!("apt: {why}"))),
    }
    let versions: BTreeMap<&str, &str> = install.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
    let exact: Vec<String> = asked
        .iter()
        .map(|name| match versions.get(name) {
            Some(version) => format!("{name}={version}"),
            None => (*name).to_owned(),
        })
        .collect();
    let args: Vec<&str> = QUIET.iter().copied().chain(["install"]).chain(exact.iter().map(String::as_str)).collect();
    program::perform(Program::AptGet, &args, TRANSACTION_LIMIT, progress)
}

/// What apt would do now and was not planned, or the other way round.
fn difference(
    install: &[AptPackage],
    remove: &[PackageName],
    now: &[AptPackage],
    going: &[PackageName],
) -> Option<String> {
    let version = |list: &[AptPackage]| -> BTreeMap<String, String> {
        list.iter().map(|p| (p.name.to_string(), p.version.clone())).collect()
    };
    let (planned, now) = (version(install), version(now));
    let new = now.iter().find(|(name, v)| planned.get(*name) != Some(v)).map(|(n, v)| format!("install {n} {v}"));
    let missing = || planned.keys().find(|n| !now.contains_key(*n)).map(|n| format!("not install {n}"));
    let gone = || going.iter().find(|n| !remove.contains(n)).map(|n| format!("remove {n}"));
    let kept = || remove.iter().find(|n| !going.contains(n)).map(|n| format!("not remove {n}"));
    new.or_else(missing).or_else(gone).or_else(kept)
}

/// A transaction that was cut off in the middle is finished first, as dpkg itself asks for.
fn recover(progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    // dpkg leaves numbered files there while a transaction is open (dpkg's own check for `--audit`).
    let open = fs::read_dir("/var/lib/dpkg/updates").is_ok_and(|mut d| {
        d.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())))
    });
    let status = fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default();
    let half = ["half-configured", "half-installed", "unpacked", "triggers-pending"];
    let cut = |l: &str| l.starts_with("Status: ") && half.iter().any(|h| l.ends_with(h));
    if open || status.lines().any(cut) {
        progress("an earlier package transaction was cut off: finishing it first");
        let args = ["--configure", "-a", "--force-confdef", "--force-confold"];
        program::perform(Program::Dpkg, &args, TRANSACTION_LIMIT, progress)?;
    }
    Ok(())
}

/// Waits until no other package manager works, says which one it waits for, and gives up after ten minutes.
fn wait_for_locks(progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let begin = Instant::now();
    let mut told = None;
    for path in LOCKS.map(Path::new) {
        let Ok(file) = File::options().read(true).write(true).open(path) else { continue };
        // The kernel tells of a released record lock only to one who queues for it, without a limit: hence the looking.
        while let Some(pid) = holder(&file).map_err(HostError::file(path))? {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if begin.elapsed() > LOCK_LIMIT {
                return Err(HostError::Refused(format!(
                    "`{}` (pid {pid}) still holds {} after {} min; try again when it is done",
                    name.trim(),
                    path.display(),
                    LOCK_LIMIT.as_secs() / 60
                )));
            }
            if told != Some(pid) {
                progress(&format!("waiting for `{}` (pid {pid}), which holds {}", name.trim(), path.display()));
                told = Some(pid);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    Ok(())
}

/// Who holds a record lock that would keep us from writing.
fn holder(file: &File) -> std::io::Result<Option<i32>> {
    let mut lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock))?;
    Ok((i32::from(lock.l_type) != nix::libc::F_UNLCK).then_some(lock.l_pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> AptPackage {
        AptPackage { name: name.parse().unwrap(), version: version.to_owned(), before: None }
    }

    #[test]
    fn another_transaction_than_the_planned_one_is_seen() {
        let planned = [package("aa", "1"), package("bb", "1")];
        let gone: Vec<PackageName> = vec!["old".parse().unwrap()];
        let says = |now: &[AptPackage], going: &[PackageName]| difference(&planned, &gone, now, going);
        assert_eq!(says(&planned, &gone), None);
        assert_eq!(says(&[package("aa", "1"), package("bb", "2")], &gone).unwrap(), "install bb 2");
        assert_eq!(says(&planned[..1], &gone).unwrap(), "not install bb");
        assert_eq!(says(&planned, &[]).unwrap(), "not remove old");
        assert_eq!(says(&planned, &["old".parse().unwrap(), "new".parse().unwrap()]).unwrap(), "remove new");
    }

    #[test]
    fn a_lock_names_its_holder() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(holder(&file).unwrap(), None);
    }
}
