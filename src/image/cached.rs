//! What is kept of an image that was fetched: the file itself, read-only and never replaced, under a name with its
//! digest; and beside it, under the image's name, what it is. Disks that were made from it go on with their file when a
//! newer one was fetched.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Origin;

/// The folder of images in a pool's directory: libvirt's confinement lets QEMU read what backs a disk there.
pub const FOLDER: &str = "gpuvm-images";

/// The number of the format of [`Cached`]; another one counts as not there.
pub const CACHED_FORMAT: u32 = 1;

/// The file that says what is kept of an image.
pub fn pointer(pool: &Path, name: &str) -> PathBuf {
    pool.join(FOLDER).join(format!("{name}.json"))
}

/// What is kept of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cached {
    /// [`CACHED_FORMAT`].
    pub format: u32,
    /// The file beside this one.
    pub file: String,
    /// `qcow2` or `raw`.
    pub kind: String,
    /// sha256 of the file, in hex.
    pub sha256: String,
    /// sha512 of the file, in hex.
    pub sha512: String,
    /// Its bytes.
    pub bytes: u64,
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// Where it came from.
    pub origin: Origin,
    /// Its version, where its maker gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it is trusted.
    pub trusted: String,
    /// What a person asked for the newest with, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
}

impl Cached {
    /// Reads one; `None` where it is not what this gpuvm writes.
    pub fn parse(text: &str) -> Option<Self> {
        let read: Self = serde_json::from_str(text).ok()?;
        let plain = !read.file.is_empty() && !read.file.starts_with('.') && !read.file.contains('/');
        (read.format == CACHED_FORMAT && plain).then_some(read)
    }

    /// As it is written.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The name of the file of an image with this digest.
    pub fn file_name(image: &str, sha256: &str, kind: &str) -> String {
        let ending = if kind == "qcow2" { "qcow2" } else { "img" };
        format!("{image}-{}.{ending}", sha256.get(..12).unwrap_or(sha256))
    }

    /// The image that a file of this name is of.
    pub fn image_of(file: &Path) -> Option<&str> {
        if file.parent()?.file_name()? != FOLDER {
            return None;
        }
        let (image, digest) = file.file_stem()?.to_str()?.rsplit_once('-')?;
        (digest.len() == 12 && digest.bytes().all(|b| b.is_ascii_hexdigit())).then_some(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_which_image_it_is_of() {
        let name = Cached::file_name("ubuntu-24.04", &"ab".repeat(32), "qcow2");
        assert_eq!(name, "ubuntu-24.04-abababababab.qcow2");
        assert_eq!(Cached::image_of(&Path::new("/srv").join(FOLDER).join(&name)), Some("ubuntu-24.04"));
        assert_eq!(Cached::image_of(&Path::new("/srv").join(&name)), None);
        assert_eq!(Cached::image_of(&Path::new("/srv").join(FOLDER).join("golden.qcow2")), None);
        let there = Cached {
            format: CACHED_FORMAT,
            file: name,
            kind: "qcow2".to_owned(),
            sha256: String::new(),
            sha512: String::new(),
            bytes: 1,
            virtual_size: 2,
            origin: Origin::Path { path: "/a".into() },
            version: None,
            trusted: String::new(),
            asked: None,
        };
        assert_eq!(Cached::parse(&there.text()), Some(there.clone()));
        for file in ["../x", "/x", "", ".x"] {
            assert_eq!(Cached::parse(&Cached { file: file.to_owned(), ..there.clone() }.text()), None, "{file}");
        }
        assert_eq!(Cached::parse(&Cached { format: 9, ..there }.text()), None);
    }
}
