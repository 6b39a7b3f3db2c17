//! What is in an initramfs, as far as a judgement needs it: which kernel modules, and the small files that say what is
//! bound early. It is read as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst): archives
//! one after the other, each plain or compressed. Nothing is ever unpacked to a disk, and memory and time are bounded,
//! whatever the file says of itself.

mod cpio;
mod segments;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

pub use segments::read;

/// What an initramfs holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Initramfs {
    /// Modules by kernel release, each by its file's name with `_` and without `.ko`.
    pub modules: BTreeMap<String, BTreeSet<String>>,
    /// The content of files of gpuvm's own, and of the list of modules to load, by path without a leading `/`.
    pub texts: BTreeMap<String, String>,
}

impl Initramfs {
    /// Whether it has a module for this kernel.
    pub fn has_module(&self, release: &str, module: &str) -> bool {
        self.modules.get(release).is_some_and(|all| all.contains(module))
    }

    /// The content of a file by its name, whatever folder it is in.
    pub fn text_named(&self, name: &str) -> Option<&str> {
        self.texts.iter().find(|(path, _)| path.rsplit('/').next() == Some(name)).map(|(_, text)| text.as_str())
    }

    /// Puts what a later archive holds over this: the kernel unpacks them in this order.
    pub fn add(&mut self, later: Initramfs) {
        for (release, modules) in later.modules {
            self.modules.entry(release).or_default().extend(modules);
        }
        self.texts.extend(later.texts);
    }
}

/// Why an initramfs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The file is cut off.
    #[error("it ends in the middle")]
    Truncated,
    /// Something else than an archive.
    #[error("it is no initramfs: {0}")]
    Malformed(String),
    /// A compression that is not read here.
    #[error("it is compressed with {0}, which gpuvm does not read")]
    Compression(&'static str),
    /// It says of itself that it is larger than any initramfs.
    #[error("it holds more than an initramfs does ({0})")]
    TooMuch(&'static str),
    /// It took too long.
    #[error("it was not read in time")]
    TooSlow,
    /// Reading failed.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for Unreadable {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Unreadable::Truncated,
            io::ErrorKind::TimedOut => Unreadable::TooSlow,
            io::ErrorKind::FileTooLarge => Unreadable::TooMuch("its content"),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
                Unreadable::Malformed(e.to_string())
            }
            _ => Unreadable::Io(e),
        }
    }
}

#[cfg(test)]
mod tests;
