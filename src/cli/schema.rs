//! `gpuvm schema`: the JSON Schema of the manifest, or of a plan's JSON.

use clap::{Args, ValueEnum};

use super::{code, print};

/// Arguments of `gpuvm schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Of what.
    #[arg(value_enum, default_value = "manifest")]
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Of {
    /// host.yaml
    Manifest,
    /// What `gpuvm plan --output json` writes.
    Plan,
    /// What `--policy` reads.
    Policy,
}

pub(super) fn run(args: &SchemaArgs) -> miette::Result<u8> {
    let schema = match args.of {
        Of::Manifest => crate::manifest::schema(),
        Of::Plan => crate::plan::schema(),
        Of::Policy => crate::plan::policy_schema(),
    };
    print(&format!("{schema:#}\n"))?;
    Ok(code::OK)
}
