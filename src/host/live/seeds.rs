//! Seeds of guests on this machine: keys and passwords are read here, keys fetched too, and everything is put on one image.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::files;
use super::web::Web;
use crate::guest::{Again, KeySource, MOST_KEYS, Told, again, keys_in, password_in};
use crate::host::HostError;

/// Of one person's keys.
const LARGEST: u64 = 64 << 10;

fn refused(why: impl Into<String>) -> HostError {
    HostError::Refused(why.into())
}

/// Makes a seed. It is root's alone: libvirt gives it to QEMU when it starts the VM.
pub(super) fn make(
    path: &Path,
    inputs: &str,
    made_from: &[u8],
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    let told: Told = serde_json::from_slice(made_from)
        .map_err(|e| refused(format!("what `{}` is made from cannot be read: {e}", path.display())))?;
    let mut keys = Vec::new();
    for source in told.keys() {
        keys.extend(of(source, progress)?);
    }
    if keys.len() > MOST_KEYS {
        return Err(refused(format!("{} keys for one user; at most {MOST_KEYS}", keys.len())));
    }
    let password = told.password_file().map(password).transpose()?;
    files::write(path, &told.seed(&keys, password.as_deref(), inputs), 0o600, 0, 0)
}

/// The password in a file that is root's alone: looked at on the opened file, so that it is the one that is read.
fn password(path: &Path) -> Result<String, HostError> {
    let mut file = File::open(path).map_err(HostError::file(path))?;
    let about = file.metadata().map_err(HostError::file(path))?;
    if !about.is_file() || about.uid() != 0 || about.mode() & 0o077 != 0 {
        return Err(refused(format!("`{}` is no file of root's alone: chown root, chmod 600", path.display())));
    }
    let mut text = String::new();
    Read::by_ref(&mut file).take(LARGEST).read_to_string(&mut text).map_err(HostError::file(path))?;
    let password = password_in(&text).map_err(|why| refused(format!("`{}`: {why}", path.display())))?;
    Ok(password.to_owned())
}

/// Makes the seed of a clone from that of the VM that it began as.
pub(super) fn clone(from: &Path, to: &Path, own: Again<'_>) -> Result<(), HostError> {
    let image = std::fs::read(from).map_err(HostError::file(from))?;
    let made = again(&image, own).map_err(|why| refused(format!("`{}`: {why}", from.display())))?;
    files::write(to, &made, 0o600, 0, 0)
}

fn of(source: &KeySource, progress: &mut dyn FnMut(&str)) -> Result<Vec<String>, HostError> {
    let text = match source {
        KeySource::Text(key) => return Ok(vec![key.clone()]),
        KeySource::Host(path) => std::fs::read_to_string(path).map_err(HostError::file(path))?,
        KeySource::GitHub(_) | KeySource::GitLab(_) => {
            let url = source.url().unwrap_or_default();
            progress(&format!("keys from {url}"));
            String::from_utf8_lossy(&Web::new()?.small(&url, LARGEST, false)?).into_owned()
        }
    };
    keys_in(&text).map_err(|e| refused(format!("{source}: {e}")))
}
