//! `gpuvm plan`: manifest → facts → desired → compared → shown.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use miette::IntoDiagnostic;

use super::status::{Standing, cut_off, standing};
use super::{PolicyArgs, SelectArgs, Target, code, host, keeps, print, say};
use crate::apply::StateDir;
use crate::host::{Probe, live};
use crate::manifest;
use crate::plan::{Diff, Plan, SavedPlan};
use crate::report::{self, Detail};

/// Arguments of `gpuvm plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Save the plan: `gpuvm apply FILE` does exactly that, or nothing.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How the plan is written to stdout.
    #[arg(long, value_enum, default_value = "text")]
    output: PlanOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlanOutput {
    Text,
    Json,
    Markdown,
}

pub(super) fn run(args: &PlanArgs, verbose: bool) -> miette::Result<u8> {
    let manifest = manifest::load(&args.target.file)?;
    let policies: Vec<_> = args.policy.read()?.into_iter().collect();
    let this;
    let recorded;
    let (probe, state): (&dyn Probe, _) = match &args.target.root {
        Some(dir) => {
            recorded = host::recorded(dir)?;
            (&recorded, dir.join("root").join(host::STATE))
        }
        None => {
            this = host::live();
            (&this, Path::new("/").join(host::STATE))
        }
    };
    let state = StateDir::open(state).into_diagnostic()?;
    let past = state.past().into_diagnostic()?;
    if let Err(other) = host::is_meant(&manifest, probe) {
        say(&format!("{other}\n"));
        return Ok(code::REFUSED);
    }
    let waits = args.target.root.is_none() && live::waits_for_boot();
    match standing(&state, waits) {
        Standing::CutOff(run) => say(&cut_off(&state, run)),
        Standing::AtWork(run) => say(&format!("run {run} is at work: this is what it has not done yet\n")),
        Standing::WaitsForBoot(run) => say(&format!("run {run} goes on at the next boot\n")),
        Standing::NoRun | Standing::Ended(..) => {}
    }
    let selection = args.select.selection();
    let (plan, _) = host::plan_now(&manifest, &selection, probe, &past);
    if let Some(out) = &args.out {
        let mut saved = SavedPlan::new(plan.clone(), selection, host::saved_manifest(&manifest)?);
        saved.policies = policies.clone();
        save(out, &serde_json::to_vec_pretty(&saved).into_diagnostic()?)?;
    }
    print(&match args.output {
        PlanOutput::Text => report::plan_text(&plan, if verbose { Detail::Verbose } else { Detail::Normal }),
        PlanOutput::Json => report::plan_json(&plan),
        PlanOutput::Markdown => report::plan_markdown(&plan),
    })?;
    Ok(if keeps(&policies, &plan, args.policy.now()) { verdict(&plan) } else { code::REFUSED })
}

/// Writes a saved plan for its owner alone: the manifest in it may hold secrets.
fn save(path: &Path, bytes: &[u8]) -> miette::Result<()> {
    use std::io::Write as _;
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?; // 0600
        file.write_all(bytes)?;
        file.persist(path).map(drop).map_err(|e| e.error)
    };
    write().map_err(|e| miette::miette!("the plan could not be saved as `{}`: {e}", path.display()))
}

/// The exit code that a plan stands for.
pub(super) fn verdict(plan: &Plan) -> u8 {
    if plan.blocked() {
        code::ERROR
    } else if plan.entries.iter().any(|e| matches!(e.diff, Diff::Change(_)))
        || plan.order.iter().any(|i| !matches!(i, crate::plan::Item::Reboot { .. }))
    {
        code::CHANGES
    } else if plan.entries.iter().any(|e| matches!(e.diff, Diff::Waits { .. })) {
        code::WAITS
    } else {
        code::OK
    }
}
