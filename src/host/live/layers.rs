//! Layers of disks that no VM runs with, by qemu-img(1). It locks what it works on, so that a file which QEMU has open is
//! refused by it; what is made has a temporary name until it is whole.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::web::Room;
use super::{files, program};
use crate::host::whole::{self, Attributes};
use crate::host::{HostError, Program};
use crate::image::{Behind, behind};
use crate::plan::{CopyVolumeStep, FileCopy};
use crate::resource::snapshots::FOLDER;

/// Disks have terabytes, and disks are slow.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A header and the maps of a disk are read for it.
const MEASURE_LIMIT: Duration = Duration::from_secs(600);

/// What is copied as a whole is in memory for that: UEFI variables have half a MiB, a TPM's state some KiB.
const LARGEST_COPY: u64 = 64 << 20;

fn text(path: &Path) -> Result<&str, HostError> {
    path.to_str().ok_or_else(|| HostError::Refused(format!("`{}` is no name that can be passed on", path.display())))
}

fn qemu_img(args: &[&str], progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    program::perform(Program::QemuImg, args, LIMIT, progress)
}

/// What a file goes on in.
fn under(path: &Path) -> Option<PathBuf> {
    use std::io::Read as _;
    let mut head = Vec::new();
    File::open(path).ok()?.take(64 << 10).read_to_end(&mut head).ok()?;
    match behind(&head) {
        Behind::File(name) => Some(path.parent()?.join(name)),
        _ => None,
    }
}

/// How much a file takes up: nothing needs more room where it is copied to.
fn allocated(path: &Path) -> Result<u64, HostError> {
    let about = fs::metadata(path).map_err(HostError::file(path))?;
    Ok(about.blocks().saturating_mul(512))
}

/// Gives a file its name, once all of it is on the disk.
fn place(part: &Path, path: &Path) -> Result<(), HostError> {
    let place = || {
        let file = File::open(part)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.sync_all()?;
        fs::rename(part, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    place().map_err(HostError::file(path))
}

/// Makes an empty layer over a file.
pub(super) fn new(path: &Path, below: &Path, format: &str, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    if path.exists() {
        return match under(path).as_deref() == Some(below) {
            true => Ok(()),
            false => Err(HostError::Refused(format!("`{}` is there, and something else; plan again", path.display()))),
        };
    }
    Room::default().has(path, 1 << 20)?;
    let part = whole::temporary(path);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", text(below)?, "-F", format, text(&part)?], progress)?;
    place(&part, path)
}

/// Makes a volume from another disk's file. It has its name once it is whole: one that is there is done.
pub(super) fn copy_volume(copy: &CopyVolumeStep, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    if copy.linked {
        new(&copy.path, &copy.from, &copy.format, progress)?;
    } else if !copy.path.exists() {
        flat(&copy.from, &copy.format, &whole::temporary(&copy.path), progress)?;
        place(&whole::temporary(&copy.path), &copy.path)?;
    }
    // libvirt lists what it finds when it is told to look.
    super::libvirt::looked_anew().map(drop)
}

/// All that a disk holds, whatever files it is in, as one qcow2 file; not before there is room for it.
pub(super) fn flat(from: &Path, format: &str, to: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let measure = ["measure", "--output", "json", "-f", format, "-O", "qcow2", text(from)?];
    let place = program::place(Program::QemuImg).ok_or(HostError::NoProgram("qemu-img"))?;
    let said = program::ask(&place, &measure, MEASURE_LIMIT)?;
    let needed = serde_json::from_str::<serde_json::Value>(&said.stdout).ok().and_then(|v| v["required"].as_u64());
    let needed = needed.ok_or_else(|| {
        HostError::Refused(format!("how much is on `{}` cannot be told: {}", from.display(), said.stderr.trim()))
    })?;
    Room::default().has(to, needed)?;
    progress(&format!("copies {} MiB", needed >> 20));
    qemu_img(&["convert", "-q", "-f", format, "-O", "qcow2", text(from)?, text(to)?], progress)
}

/// A layer's content goes into the file below it; the layer stays.
pub(super) fn commit(top: &Path, into: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    if under(top).as_deref() != Some(into) {
        return Err(HostError::Refused(format!(
            "`{}` does not go on in `{}`; plan again",
            top.display(),
            into.display()
        )));
    }
    Room::default().has(into, allocated(top)?)?;
    qemu_img(&["commit", "-q", "-d", "-f", "qcow2", "-b", text(into)?, text(top)?], progress)
}

/// A layer goes on in another file, with what differs in it.
pub(super) fn rebase(path: &Path, onto: &Path, format: &str, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    match under(path) {
        Some(now) if now == onto => return Ok(()),
        Some(now) => Room::default().has(path, allocated(&now)?)?,
        None => return Err(HostError::Refused(format!("`{}` is no layer any more; plan again", path.display()))),
    }
    qemu_img(&["rebase", "-q", "-f", "qcow2", "-b", text(onto)?, "-F", format, text(path)?], progress)
}

/// Copies a small file as a whole, with its mode and owner.
pub(super) fn copy_file(copy: &FileCopy) -> Result<(), HostError> {
    let FileCopy { from, to } = copy;
    let about = fs::symlink_metadata(from).map_err(HostError::file(from))?;
    if !about.is_file() || about.len() > LARGEST_COPY {
        return Err(HostError::Refused(format!(
            "`{}` is no small file of its own; it is left as it is",
            from.display()
        )));
    }
    if to.starts_with(FOLDER) {
        files::make_dir(Path::new(FOLDER), 0o700, 0, 0)?;
    }
    let bytes = fs::read(from).map_err(HostError::file(from))?;
    let attributes = Attributes { mode: about.mode() & 0o7777, owner: Some((about.uid(), about.gid())) };
    whole::replace(to, &bytes, &attributes).map_err(HostError::file(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_made_merged_and_put_over_another_once() {
        if program::place(Program::QemuImg).is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let quiet = &mut |_: &str| {};
        let (base, one, two) = (at("d-0.qcow2"), at("d-0+1.qcow2"), at("d-0+2.qcow2"));
        qemu_img(&["create", "-q", "-f", "raw", text(&base).unwrap(), "1M"], quiet).unwrap();
        for _ in 0..2 {
            new(&one, &base, "raw", quiet).unwrap();
            new(&two, &one, "qcow2", quiet).unwrap();
        }
        assert_eq!((under(&two), under(&one)), (Some(one.clone()), Some(base.clone())));
        assert_eq!(fs::metadata(&two).unwrap().mode() & 0o777, 0o600);
        let said = new(&two, &base, "raw", quiet).unwrap_err().to_string();
        assert!(said.contains("something else"), "{said}");
        for _ in 0..2 {
            rebase(&two, &base, "raw", quiet).unwrap();
            commit(&one, &base, quiet).unwrap();
        }
        assert_eq!(under(&two), Some(base.clone()));
        let said = commit(&two, &one, quiet).unwrap_err().to_string();
        assert!(said.contains("does not go on in"), "{said}");
        assert!(rebase(&base, &one, "qcow2", quiet).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing temporary is left");
    }

    #[test]
    fn a_copy_has_the_mode_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let copy = |from: &str, to: &str| copy_file(&FileCopy { from: dir.path().join(from), to: dir.path().join(to) });
        fs::write(dir.path().join("a"), "variables").unwrap();
        fs::set_permissions(dir.path().join("a"), Permissions::from_mode(0o600)).unwrap();
        copy("a", "b").unwrap();
        copy("a", "b").unwrap();
        let about = fs::metadata(dir.path().join("b")).unwrap();
        assert_eq!((about.mode() & 0o777, fs::read(dir.path().join("b")).unwrap()), (0o600, b"variables".to_vec()));
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        assert!(copy("link", "c").is_err() && copy("none", "c").is_err());
    }
}
