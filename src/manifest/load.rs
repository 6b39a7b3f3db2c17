//! Reading a manifest: size limit, YAML with places, every error at once, the files that it refers to.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use super::Manifest;

/// A manifest that was read and found valid.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub manifest: Manifest,
    /// Where it was read from.
    pub path: PathBuf,
    /// The files beside it that it refers to (`source`, `template`), as it names them.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// sha256 in hex over the manifest and those files.
    pub digest: String,
}
/// Every problem of one manifest.
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct Invalid;
/// Why a manifest could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not valid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}
/// Reads a manifest and the files that it refers to.
pub fn load(_path: &Path) -> Result<Loaded, LoadError> { Err(Invalid.into()) }
/// Reads a manifest from text.
pub fn parse(_name: &str, _source: &str) -> Result<Manifest, Invalid> { Err(Invalid) }
