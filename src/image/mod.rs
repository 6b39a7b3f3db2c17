//! Disk images that VMs are made from: which there are by name, how the lists of their makers are read, and what is kept
//! of one that was fetched. Pure: nothing here goes online or touches the host.

mod builtin;
mod cached;
mod header;
mod lists;
mod medium;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use builtin::{Builtin, builtin, key, names};
pub use cached::{CACHED_FORMAT, Cached, FOLDER, pointer};
#[cfg(test)]
pub(crate) use header::tests::over;
pub use header::{Behind, HEAD, Header, HeaderError, behind, header, is_blank, qcow2_over};
pub use lists::{ListError, Listed, in_streams, in_sums, like_in_sums, path_of_products};
#[cfg(test)]
pub(crate) use medium::tests::medium as medium_for_tests;
pub use medium::{Extent, MediumError, kernel_and_initrd};

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Origin {
    /// A product of a simplestreams tree.
    Streams {
        /// The top of the tree, with its `/`.
        base: String,
        /// The index below it.
        index: String,
        /// The entry of the index.
        content: String,
        /// The product.
        product: String,
        /// The item of a version: the first that there is.
        files: Vec<String>,
        /// The key that signs it, by fingerprint.
        signed_by: String,
        /// This version, in place of the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
    },
    /// A file that stands in a list of checksums beside it.
    Sums {
        /// The top of the tree, with its `/`.
        base: String,
        /// The list below it.
        list: String,
        /// The file below it. A `*` in its name is the number of a point release, of which the newest is taken.
        file: String,
        /// The key that signs the list, by fingerprint; without one, it is trusted as far as its server is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed_by: Option<String>,
    },
    /// An address.
    Url {
        /// The whole of it.
        url: String,
    },
    /// A file of the host's.
    Path {
        /// The file.
        path: PathBuf,
    },
    /// A disk of a VM, with all that it goes on in: a template. Nothing else has it.
    Disk {
        /// The VM.
        vm: String,
        /// The file of the disk.
        path: PathBuf,
        /// What that is: `qcow2`, `raw`.
        kind: String,
        /// Whether the VM starts it by BIOS: on a disk that was set up so, UEFI may find nothing to start.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        bios: bool,
    },
}

impl Origin {
    /// Whether what it says is trusted because it is signed.
    pub fn signed(&self) -> bool {
        matches!(self, Origin::Streams { .. } | Origin::Sums { signed_by: Some(_), .. })
    }

    /// The address or the path, as a person would look for it.
    pub fn place(&self) -> String {
        match self {
            Origin::Streams { base, product, version, .. } => match version {
                Some(version) => format!("{base} ({product}, version {version})"),
                None => format!("{base} ({product}, the newest)"),
            },
            Origin::Sums { base, file, .. } => format!("{base}{file}"),
            Origin::Url { url } => url.clone(),
            Origin::Path { path } => path.display().to_string(),
            Origin::Disk { vm, path, .. } => format!("{vm}'s disk ({})", path.display()),
        }
    }

    /// The same, of this version only.
    #[must_use]
    pub fn of_version(&self, wanted: &str) -> Self {
        match self.clone() {
            Origin::Streams { base, index, content, product, files, signed_by, .. } => {
                let version = Some(wanted.to_owned());
                Origin::Streams { base, index, content, product, files, signed_by, version }
            }
            other => other,
        }
    }
}

/// What the bytes of an image have to add up to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// sha256, in hex.
    Sha256(String),
    /// sha512, in hex.
    Sha512(String),
}

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no digest: write `sha256:` and 64, or `sha512:` and 128 characters of 0-9 and a-f")]
pub struct NoDigest(String);

impl FromStr for Digest {
    type Err = NoDigest;
    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let hex = |hex: &str, most: usize| {
            (hex.len() == most && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hex.to_ascii_lowercase())
        };
        let read = match text.split_once(':') {
            Some(("sha256", rest)) => hex(rest, 64).map(Digest::Sha256),
            Some(("sha512", rest)) => hex(rest, 128).map(Digest::Sha512),
            _ => None,
        };
        read.ok_or_else(|| NoDigest(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Digest::Sha256(hex) => write!(f, "sha256:{hex}"),
            Digest::Sha512(hex) => write!(f, "sha512:{hex}"),
        }
    }
}

crate::types::as_string!(
    Digest,
    "a digest: `sha256:` or `sha512:` with hex digits",
    "^(sha256:[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128})$",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let text = format!("sha256:{}", "aB".repeat(32));
        let read: Digest = text.parse().unwrap();
        assert_eq!(read.to_string(), text.to_lowercase());
        let long = format!("sha512:{}", "0f".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().to_string(), long);
        for wrong in ["", "sha256:", "sha256:zz", "md5:00", &"a".repeat(64), &format!("sha512:{}", "0".repeat(64))] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}
