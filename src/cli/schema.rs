//! `gpuvm schema`: the JSON Schema of the manifest.

use super::{code, print};

pub(super) fn run() -> miette::Result<u8> {
    print(&format!("{:#}\n", crate::manifest::schema()))?;
    Ok(code::OK)
}
