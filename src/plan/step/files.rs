//! What steps write to files: a whole one, some places of one, a copy.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::{Mode, Splice, SpliceError, sha256_hex, splice};

/// What is written to a file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Content {
    /// The text itself.
    Text(String),
    /// A secret: only its sha256 in hex is in the plan; the payload is a 0600 file of the run.
    Secret(String),
    /// The program that carries the plan out, by its sha256 in hex: another one is refused.
    Program(String),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Content::Secret(digest) => write!(f, "Secret({digest})"),
            Content::Program(digest) => write!(f, "Program({digest})"),
        }
    }
}

/// A whole file as it will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileWrite {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub content: Content,
    /// Permission bits.
    pub mode: Mode,
    /// Owner by name, resolved when the step runs (a package may make the user).
    pub owner: String,
    /// Group by name.
    pub group: String,
}

impl FileWrite {
    /// A root-owned file.
    pub fn root(path: impl Into<PathBuf>, text: impl Into<String>, mode: u32) -> Self {
        Self {
            path: path.into(),
            content: Content::Text(text.into()),
            mode: Mode::new(mode),
            owner: "root".to_owned(),
            group: "root".to_owned(),
        }
    }
}

/// Changes of a text that is there and is not in the plan: it may hold passwords.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TextEdit {
    /// sha256 in hex of the text before; another text is refused.
    pub before: String,
    /// What changes.
    pub splices: Vec<Splice>,
    /// sha256 in hex of the text afterwards.
    pub after: String,
}

impl TextEdit {
    /// The edit of a text.
    pub fn new(text: &str, splices: Vec<Splice>) -> Result<Self, SpliceError> {
        let after = sha256_hex(splice(text, &splices)?.as_bytes());
        Ok(Self { before: sha256_hex(text.as_bytes()), splices, after })
    }
    /// The text afterwards; `None` where the text is not the one that was planned for. One that is changed already
    /// stays as it is.
    pub fn apply(&self, text: &str) -> Option<String> {
        let digest = sha256_hex(text.as_bytes());
        if digest == self.after {
            return Some(text.to_owned());
        }
        let changed = (digest == self.before).then(|| splice(text, &self.splices).ok()).flatten()?;
        (sha256_hex(changed.as_bytes()) == self.after).then_some(changed)
    }
}

/// Changes of a file that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEdit {
    /// The file. Its mode and owner stay.
    pub path: PathBuf,
    /// What changes in it.
    #[serde(flatten)]
    pub edit: TextEdit,
}

impl FileEdit {
    /// The edit of a file's text.
    pub fn new(path: impl Into<PathBuf>, text: &str, splices: Vec<Splice>) -> Result<Self, SpliceError> {
        Ok(Self { path: path.into(), edit: TextEdit::new(text, splices)? })
    }
    /// As [`TextEdit::apply`].
    pub fn apply(&self, text: &str) -> Option<String> {
        self.edit.apply(text)
    }
}

/// A small file that is copied as a whole, with its mode and owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileCopy {
    /// The file.
    pub from: PathBuf,
    /// Where its copy goes.
    pub to: PathBuf,
}
