//! What a host is already, in the words of a manifest: the text of `gpuvm init`, and the entries that `gpuvm adopt`
//! writes. Looks and changes nothing. What the host calls things may be hostile: see [`words`].

mod binding;
mod entry;
mod file;
mod given;
mod init;
mod insert;
mod new_vm;
mod vm;
pub mod words;

pub use binding::{Source, sources};
pub use entry::{Entry, Extra, describe};
pub use given::{give, take};
pub use init::init;
pub use new_vm::{NewVm, new_vm};

/// Why a thing cannot be described, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// Why.
    pub why: String,
    /// The next step.
    pub help: String,
}

fn refused(why: impl Into<String>, help: impl Into<String>) -> Refused {
    Refused { why: why.into(), help: help.into() }
}
