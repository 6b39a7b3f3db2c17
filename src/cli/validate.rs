//! `gpuvm validate`: every problem of a manifest at once, without looking at any host.

use clap::Args;

use super::{Output, code, print};
use crate::manifest;

/// Arguments of `gpuvm validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// The manifest.
    #[arg(short, long, default_value = "host.yaml")]
    file: std::path::PathBuf,
    /// How problems are written.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn run(args: &ValidateArgs) -> miette::Result<u8> {
    let problems = match manifest::load(&args.file) {
        Ok(_) if args.output == Output::Text => {
            print(&format!("{} is valid\n", args.file.display()))?;
            return Ok(code::OK);
        }
        Ok(_) => Vec::new(),
        Err(error) if args.output == Output::Json => error.problems(),
        Err(error) => return Err(error.into()),
    };
    let json = serde_json::json!({ "format": 1, "file": args.file, "problems": problems });
    print(&format!("{json:#}\n"))?;
    Ok(if problems.is_empty() { code::OK } else { code::ERROR })
}
