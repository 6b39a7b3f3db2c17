//! Files of the machine: users and groups by name, folders, and writes as a whole.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::Path;

use nix::unistd::{Group, User};

use crate::host::HostError;
use crate::host::whole::{self, Attributes};

/// The number of a user by name or number. Asked when the step runs: a package of the same apply may have made it.
pub(super) fn user(name: &str) -> Result<u32, HostError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(HostError::Refused(format!("the user `{name}` does not exist on this host"))),
        Err(e) => Err(HostError::Refused(format!("the user `{name}` could not be looked up: {e}"))),
    }
}

/// The number of a group by name or number.
pub(super) fn group(name: &str) -> Result<u32, HostError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(HostError::Refused(format!("the group `{name}` does not exist on this host"))),
        Err(e) => Err(HostError::Refused(format!("the group `{name}` could not be looked up: {e}"))),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Writes a whole file with its mode and owner, and makes the folder where it is not there.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32, uid: u32, gid: u32) -> Result<(), HostError> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        make_dir(folder, 0o755, 0, 0)?;
    }
    whole::replace(path, bytes, &Attributes { mode, owner: Some((uid, gid)) }).map_err(HostError::file(path))
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Result<(), HostError> {
    whole::remove(path).map_err(HostError::file(path))
}

/// Makes a directory, its missing parents as 0755, or corrects its mode and owner.
pub(super) fn make_dir(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<(), HostError> {
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        chown(path, Some(uid), Some(gid))?;
        File::open(folder_of(path))?.sync_all()
    };
    make().map_err(HostError::file(path))
}

/// Makes or replaces a symbolic link in one step.
pub(super) fn link(path: &Path, target: &Path) -> Result<(), HostError> {
    whole::replace_link(path, target).map_err(HostError::file(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn me() -> (u32, u32) {
        (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw())
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (uid, gid) = me();
        let other = dir.path().join("other");
        fs::write(&other, "of someone else").unwrap();
        let path = dir.path().join("file");
        symlink(&other, &path).unwrap();
        write(&path, b"new", 0o640, uid, gid).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_to_string(&other).unwrap(), "of someone else");
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");
        remove(&path).unwrap();
        remove(&path).unwrap();
        link(&path, Path::new("a")).unwrap();
        link(&path, Path::new("b")).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("b"));
    }

    #[test]
    fn a_user_that_is_not_there_is_named() {
        assert_eq!(user("root").unwrap(), 0);
        assert_eq!(group("4242").unwrap(), 4242);
        assert!(user("no-such-user").unwrap_err().to_string().contains("no-such-user"));
    }
}
