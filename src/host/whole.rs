//! Files replaced as a whole. After a power cut at any moment there is the old file or the new one, never a part, and
//! at most a temporary one beside it whose name tells which file it was to become.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use crate::fail_point::fail_point;

/// Whose a file is to be.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner and group; `None` for those of this process.
    pub owner: Option<(u32, u32)>,
}

impl Attributes {
    /// For this user's eyes only.
    pub const PRIVATE: Self = Self { mode: 0o600, owner: None };
}

/// A name may have 255 bytes (NAME_MAX); the rest is for what is put around it.
const LONGEST: usize = 200;

/// What the name of a temporary file ends with.
const ENDING: &str = ".gpuvm-new";

/// Whether a file of this name is a temporary one, which no other goes on in.
pub fn is_temporary(name: &std::ffi::OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") && name.ends_with(ENDING.as_bytes())
}

/// The temporary file of a path. The leading dot keeps it from udev, netplan, modprobe, GRUB and cloud-init, which read
/// whole folders; the name is always the same, so that the next write of the path takes a left one away.
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut new = b".".to_vec();
    new.extend_from_slice(&name[..name.len().min(LONGEST)]);
    new.extend_from_slice(ENDING.as_bytes());
    path.with_file_name(std::ffi::OsString::from_vec(new))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// Takes away what a write that was cut off left beside this path.
pub fn tidy(path: &Path) -> io::Result<()> {
    match fs::remove_file(temporary(path)) {
        Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(e),
        _ => Ok(()),
    }
}

/// Temporary file with its owner, extended attributes and mode; fsync; rename; fsync of the folder. A link at the path
/// is replaced, never followed.
pub fn replace(path: &Path, bytes: &[u8], attributes: &Attributes) -> io::Result<()> {
    tidy(path)?;
    let new = temporary(path);
    // Exclusive: a link that someone puts there in the meantime is an error, not a way out.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let mut fill = || {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first)?;
        fail_point("half of the temporary file");
        file.write_all(second)?;
        if let Some((uid, gid)) = attributes.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        // After the owner, since a change of that drops capabilities; before the mode, which an ACL would change.
        keep_extended_attributes(path, &file)?;
        file.set_permissions(Permissions::from_mode(attributes.mode))?;
        file.sync_all()?;
        fail_point("before the rename");
        fs::rename(&new, path)
    };
    if let Err(e) = fill() {
        // The disk may be full: what is of no use is not left on it. The error that counts is the first one.
        let _ = fs::remove_file(&new);
        return Err(e);
    }
    fail_point("before fsync of the folder");
    sync_folder(path)
}

/// Hashes of the content that was there: they would be wrong for the new one (evm(7) and ima make them anew).
const OF_THE_CONTENT: [&str; 2] = ["security.ima", "security.evm"];

/// A label of SELinux, an access list, a person's own mark: what the old file had beside its mode, the new one has too.
fn keep_extended_attributes(old: &Path, new: &File) -> io::Result<()> {
    use xattr::FileExt as _;
    if !fs::symlink_metadata(old).is_ok_and(|m| m.is_file()) {
        return Ok(());
    }
    let names = match xattr::list(old) {
        Ok(names) => names,
        // This file system has none.
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(()),
        Err(e) => return Err(e),
    };
    for name in names.filter(|n| OF_THE_CONTENT.iter().all(|o| n != o)) {
        let Some(value) = xattr::get(old, &name)? else { continue };
        new.set_xattr(&name, &value).map_err(|e| {
            let name = name.to_string_lossy();
            io::Error::new(e.kind(), format!("its extended attribute `{name}` could not be kept: {e}"))
        })?;
    }
    Ok(())
}

/// Makes or replaces a symbolic link in one step.
pub fn replace_link(path: &Path, target: &Path) -> io::Result<()> {
    tidy(path)?;
    let new = temporary(path);
    symlink(target, &new)?;
    fail_point("before the rename of a link");
    fs::rename(&new, path)?;
    sync_folder(path)
}

/// Removes a directory that has nothing in it. Whether it is gone; one with something in it, or another file system's root,
/// stays.
pub fn remove_folder(path: &Path) -> io::Result<bool> {
    match fs::remove_dir(path) {
        Ok(()) => sync_folder(path).map(|()| true),
        Err(e) => match e.kind() {
            // One that a person replaced with a file or a link is theirs.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(true),
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy => Ok(false),
            _ => Err(e),
        },
    }
}

/// Removes a file and what a cut-off write left beside it; one that is not there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    tidy(path)?;
    fail_point("before a file is removed");
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_extended_attributes_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        xattr::set(&path, "user.mark", b"a person's").unwrap();
        let attributes = Attributes { mode: 0o640, owner: None };
        replace(&path, b"new", &attributes).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(xattr::get(&path, "user.mark").unwrap().as_deref(), Some(&b"a person's"[..]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_access_list_stays_and_the_mode_is_the_wanted_one() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        // acl(5) as the kernel keeps it: version 2, then tag, permissions, id: owner rw, user 65534 r, group r, mask r,
        // others none.
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1u16, 6u16, u32::MAX), (2, 4, 65534), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        {
            list.extend(tag.to_le_bytes());
            list.extend(permissions.to_le_bytes());
            list.extend(id.to_le_bytes());
        }
        if xattr::set(&path, "system.posix_acl_access", &list).is_err() {
            return; // this file system keeps no access lists
        }
        replace(&path, b"new", &Attributes { mode: 0o640, owner: None }).unwrap();
        assert_eq!(xattr::get(&path, "system.posix_acl_access").unwrap().as_deref(), Some(&list[..]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    }

    #[test]
    fn what_a_cut_off_write_left_is_taken_away_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&other, "of someone else").unwrap();
        symlink(&other, temporary(&path)).unwrap();
        replace(&path, b"new", &Attributes::PRIVATE).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"of someone else");
        fs::write(temporary(&path), "half").unwrap();
        remove(&path).unwrap();
        replace_link(&path, Path::new("a")).unwrap();
        replace_link(&path, Path::new("b")).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("b"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let long = dir.path().join("n".repeat(255));
        replace(&long, b"new", &Attributes::PRIVATE).unwrap();
        assert_eq!(fs::read(long).unwrap(), b"new");
    }
}
