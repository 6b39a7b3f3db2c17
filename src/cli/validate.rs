//! `gpuvm validate`: every problem of a manifest at once, without looking at any host; with `--root` also what the manifest
//! means on a recorded one.

use clap::Args;

use super::{Output, code, host, print};
use crate::apply::StateDir;
use crate::host::Snapshot;
use crate::plan::{Finding, Severity};
use crate::{desire, manifest, report};

/// Arguments of `gpuvm validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// The manifest.
    #[arg(short, long, default_value = "host.yaml")]
    file: std::path::PathBuf,
    /// A recorded host: whether what the manifest names is there, once. What would change, `plan` says.
    #[arg(long, value_name = "DIR")]
    root: Option<std::path::PathBuf>,
    /// How problems are written.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn run(args: &ValidateArgs) -> miette::Result<u8> {
    let (findings, problems) = match manifest::load(&args.file) {
        Ok(loaded) => (on_host(args, &loaded)?, Vec::new()),
        Err(error) if args.output == Output::Json => (Vec::new(), error.problems()),
        Err(error) => return Err(error.into()),
    };
    let wrong = !problems.is_empty() || findings.iter().any(|f| f.severity == Severity::Error);
    match args.output {
        Output::Text => {
            let found: String = findings.iter().map(report::finding).collect();
            let word = if wrong { "is not valid on this host" } else { "is valid" };
            print(&format!("{found}{} {word}\n", args.file.display()))?;
        }
        Output::Json => {
            let mut json = serde_json::json!({ "format": 1, "file": args.file, "problems": problems });
            if args.root.is_some() {
                json["findings"] = serde_json::json!(findings);
            }
            print(&format!("{json:#}\n"))?;
        }
    }
    Ok(if wrong { code::ERROR } else { code::OK })
}

/// What is wrong with the manifest and this host together.
fn on_host(args: &ValidateArgs, loaded: &manifest::Loaded) -> miette::Result<Vec<Finding>> {
    let Some(dir) = &args.root else { return Ok(Vec::new()) };
    let recorded = host::recorded(dir)?;
    let snapshot = Snapshot::new(&recorded);
    if let Err(message) = host::is_meant(loaded, &snapshot) {
        return Ok(vec![Finding {
            severity: Severity::Error,
            code: "other-host".to_owned(),
            place: "host".to_owned(),
            message,
            help: "name the record of that host, or correct `host`".to_owned(),
        }]);
    }
    let mut facts = host::facts_for(loaded, &snapshot);
    StateDir::open(host::state_of(Some(dir))?).and_then(|s| s.past()).unwrap_or_default().recall(&mut facts);
    Ok(desire::desire(loaded, &facts).findings)
}
