//! A write into sysfs in a process of its own: gpuvm leaves it behind where the kernel does not come back.

use std::path::PathBuf;

use clap::Args;
use miette::IntoDiagnostic;

use super::code;
use crate::host::live;

/// Arguments of `gpuvm write-attribute`.
#[derive(Debug, Args)]
pub struct WriteAttributeArgs {
    path: PathBuf,
    value: String,
}

pub(super) fn run(args: &WriteAttributeArgs) -> miette::Result<u8> {
    live::write_attribute(&args.path, &args.value).into_diagnostic()?;
    Ok(code::OK)
}
