//! The program that runs, as something that can be put on a host: told by its digest, so that a plan holds no more of it.

use serde::{Deserialize, Serialize};

use crate::types::sha256_hex;

/// This program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Myself {
    /// Its version.
    pub version: String,
    /// sha256 in hex of its file.
    pub sha256: String,
}

impl Myself {
    /// What stands for it on a recorded host, where it is not run: the same for every build of a version.
    pub const STAND_IN: &str =
        concat!("#!/bin/sh\n# Stands for gpuvm on a recorded host.\necho 'gpuvm ", env!("CARGO_PKG_VERSION"), "'\n");

    /// This program by its digest.
    pub fn of(sha256: String) -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), sha256 }
    }

    /// What stands for it.
    pub fn stand_in() -> Self {
        Self::of(sha256_hex(Self::STAND_IN.as_bytes()))
    }

    /// What `--version` says.
    pub fn said(version: &str) -> String {
        format!("gpuvm {version}")
    }
}
