//! The program that runs: its file, also where another one has taken its name meanwhile, and whether it answers where it
//! was put.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::program;
use crate::host::{HostError, Myself};
use crate::types::hex;

/// The kernel's way to the file of this process (proc_pid_exe(5)).
const FILE: &str = "/proc/self/exe";

/// How long it may take to tell its version, from a slow disk.
const LIMIT: Duration = Duration::from_secs(30);

/// The file's content.
pub(super) fn bytes() -> Result<Vec<u8>, HostError> {
    std::fs::read(FILE).map_err(HostError::file(Path::new(FILE)))
}

/// This program; its file is read once.
pub(super) fn myself() -> Result<Myself, HostError> {
    static KNOWN: OnceLock<Myself> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let sha256 = File::open(FILE).and_then(digest_of).map_err(HostError::file(Path::new(FILE)))?;
    Ok(KNOWN.get_or_init(|| Myself::of(sha256)).clone())
}

/// sha256 in hex of a file.
pub(super) fn digest(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let (is, mine) = (file.metadata()?, std::fs::metadata(FILE)?);
    // This program itself, run from there.
    if (is.dev(), is.ino()) == (mine.dev(), mine.ino())
        && let Ok(known) = myself()
    {
        return Ok(known.sha256);
    }
    digest_of(file)
}

fn digest_of(mut file: File) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut part = vec![0; 1 << 16];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex(&sum.finalize())),
            n => sum.update(part.get(..n).unwrap_or_default()),
        }
    }
}

/// Calls it by a name that people type.
pub(super) fn answers(path: &Path, version: &str) -> Result<(), HostError> {
    let said = program::ask(path, &["--version"], LIMIT)?;
    if said.status == 0 && said.stdout.trim() == Myself::said(version) {
        return Ok(());
    }
    Err(HostError::Failed {
        command: format!("{} --version", path.display()),
        status: said.status,
        said: format!("{}{}", said.stdout, said.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_known_by_its_digest_wherever_it_is_run_from() {
        let mine = myself().unwrap();
        assert_eq!(mine.sha256, crate::types::sha256_hex(&bytes().unwrap()));
        assert_eq!(digest(&std::env::current_exe().unwrap()).unwrap(), mine.sha256);
        let other = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(other.path(), "other").unwrap();
        assert_eq!(digest(other.path()).unwrap(), crate::types::sha256_hex(b"other"));
    }

    #[test]
    fn what_does_not_tell_the_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("vmctl");
        std::fs::write(&at, "#!/bin/sh\necho gpuvm 1.2.3\n").unwrap();
        std::fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        answers(&at, "1.2.3").unwrap();
        let why = answers(&at, "1.2.4").unwrap_err().to_string();
        assert!(why.contains("vmctl --version") && why.contains("gpuvm 1.2.3"), "{why}");
        // One that cannot be run at all.
        std::fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(answers(&at, "1.2.3").unwrap_err().to_string().contains("vmctl"));
    }
}
