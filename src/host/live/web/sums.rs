//! What a file adds up to.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::Digest as _;

use crate::host::HostError;
use crate::image::Digest;
use crate::types::hex;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host::live) struct Sums {
    pub sha256: String,
    pub sha512: String,
    pub bytes: u64,
}

impl Sums {
    /// Whether it is what a digest says.
    pub fn is(&self, digest: &Digest) -> bool {
        match digest {
            Digest::Sha256(hex) => *hex == self.sha256,
            Digest::Sha512(hex) => *hex == self.sha512,
        }
    }

    /// Reads a whole file.
    pub fn of(path: &Path) -> Result<Self, HostError> {
        let failed = |e| HostError::File { path: path.to_owned(), source: e };
        let mut file = File::open(path).map_err(failed)?;
        let (mut short, mut long, mut bytes) = (sha2::Sha256::new(), sha2::Sha512::new(), 0);
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => {
                    short.update(&buffer[..n]);
                    long.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
        Ok(Self { sha256: hex(&short.finalize()), sha512: hex(&long.finalize()), bytes })
    }
}
