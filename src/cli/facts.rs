//! `gpuvm facts`: what gpuvm sees of a host; `--record` writes everything that it looked at to a folder.

use std::path::PathBuf;

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::{Output, code, host, print, say};
use crate::host::record::Recorder;
use crate::host::{Probe, Program, Snapshot};
use crate::plan::{Past, Selection};
use crate::resource::service;
use crate::{facts, manifest, report};

/// Arguments of `gpuvm facts`.
#[derive(Debug, Args)]
pub struct FactsArgs {
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR", conflicts_with = "record")]
    root: Option<PathBuf>,
    /// Write everything that was looked at to a new folder, without secrets and with stand-ins for names that identify.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// With --record: look at what this manifest needs too (versions of packages), so that it can be planned. May be given several times.
    #[arg(short, long, requires = "record")]
    file: Vec<PathBuf>,
    /// How facts are written.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn run(args: &FactsArgs) -> miette::Result<u8> {
    let live;
    let recorded;
    let probe: &dyn Probe = match &args.root {
        Some(dir) => {
            recorded = host::recorded(dir)?;
            &recorded
        }
        None => {
            live = host::live();
            &live
        }
    };
    let facts = match &args.record {
        None => facts::collect(&Snapshot::new(probe)),
        Some(dir) => {
            if dir.exists() {
                return Err(miette!(
                    help = "name a folder that does not exist yet",
                    "`{}` is there already",
                    dir.display()
                ));
            }
            let recorder = Recorder::new(probe);
            let facts = facts::collect(&Snapshot::new(&recorder));
            // What is asked to explain GPUs, so that this can be done elsewhere.
            let gpus = crate::gpu::collect(&recorder, &facts);
            crate::check::Looked::look(&recorder, &facts, &gpus);
            crate::check::NextBoot::look(&recorder, &facts);
            // Of cards that are cut already: asking another would wake it.
            for gpu in gpus.iter().filter(|g| !g.sharing.mig_instances.is_empty()) {
                let display = gpu.functions.iter().find(|f| f.role == "display");
                let _ = display.map(|f| crate::gpu::mig::ask(&recorder, f.address));
            }
            // What any manifest may ask.
            for question in [service::UNIT_FILES, service::UNITS] {
                let _ = recorder.query(Program::Systemctl, &question);
            }
            // What `gpuvm init` wants to know: who else binds devices.
            let _ = crate::describe::init(&Snapshot::new(&recorder), &facts);
            for file in &args.file {
                host::plan_now(&manifest::load(file)?, &Selection::default(), &recorder, &Past::default());
            }
            recorder.write(dir).into_diagnostic()?;
            say(&format!("recorded to {}; look through it before you give it away\n", dir.display()));
            facts
        }
    };
    print(&match args.output {
        Output::Text => report::facts_text(&facts),
        Output::Json => serde_json::to_string_pretty(&facts).into_diagnostic()? + "\n",
    })?;
    Ok(code::OK)
}
