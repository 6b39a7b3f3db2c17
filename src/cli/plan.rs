//! `gpuvm plan`: manifest → facts → desired → compared → shown.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use miette::IntoDiagnostic;

use super::status::{Standing, cut_off, standing};
use super::{PolicyArgs, SelectArgs, Target, code, host, keeps, print, say, shell_word, tell_plan};
use crate::apply::StateDir;
use crate::manifest;
use crate::plan::{Diff, Item, Plan, SavedPlan};
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

pub(super) fn run(args: &PlanArgs, detail: Detail) -> miette::Result<u8> {
    let manifest = manifest::load(&args.target.file)?;
    let policies: Vec<_> = args.policy.read()?.into_iter().collect();
    let (probe, state) = host::open(args.target.root.as_deref())?;
    let probe = probe.as_ref();
    let state = StateDir::open(state).into_diagnostic()?;
    let past = state.past().into_diagnostic()?;
    if args.target.root.is_none() && !nix::unistd::geteuid().is_root() && detail != Detail::Summary {
        say("not root: some answers may be missing, and what is not known counts as unsafe\n");
    }
    if let Err(other) = host::is_meant(&manifest, probe) {
        say(&format!("{other}\n"));
        return Ok(code::REFUSED);
    }
    match standing(&state, args.target.root.is_none()) {
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
    match args.output {
        PlanOutput::Text => tell_plan(&plan, detail)?,
        PlanOutput::Json => print(&report::plan_json(&plan))?,
        PlanOutput::Markdown => print(&report::plan_markdown(&plan))?,
    }
    if !keeps(&policies, &plan, args.policy.now()) {
        return Ok(code::REFUSED);
    }
    let verdict = verdict(&plan);
    if args.output == PlanOutput::Text && detail != Detail::Summary && may_apply(&plan, verdict) {
        // Not to stdout: a plan of the same host and manifest is the same bytes, however it was asked for.
        say(&format!("apply: {}\n", next(args, &plan)));
    }
    Ok(verdict)
}

/// Whether an apply would do anything.
fn may_apply(plan: &Plan, verdict: u8) -> bool {
    verdict == code::CHANGES || (verdict == code::WAITS && boots(plan))
}

fn boots(plan: &Plan) -> bool {
    plan.order.iter().any(|i| matches!(i, Item::Reboot { .. }))
}

/// What to type to have this plan carried out.
fn next(args: &PlanArgs, plan: &Plan) -> String {
    let mut words = vec!["gpuvm".to_owned(), "apply".to_owned()];
    let path = |path: &Path| path.to_string_lossy().into_owned();
    match &args.out {
        Some(saved) => words.push(path(saved)),
        None => {
            words.extend(["-f".to_owned(), path(&args.target.file)]);
            let selected = args.select.only.iter().map(|s| ("--only", s));
            for (option, selector) in selected.chain(args.select.skip.iter().map(|s| ("--skip", s))) {
                words.extend([option.to_owned(), selector.to_string()]);
            }
            words.extend(args.policy.policy.iter().flat_map(|p| ["--policy".to_owned(), path(p)]));
        }
    }
    words.extend(args.target.root.iter().flat_map(|r| ["--root".to_owned(), path(r)]));
    if boots(plan) {
        words.push("--reboot".to_owned());
    }
    let words: Vec<String> = words.iter().map(|w| shell_word(w)).collect();
    let sudo = args.target.root.is_none() && !nix::unistd::geteuid().is_root();
    format!("{}{}", if sudo { "sudo " } else { "" }, words.join(" "))
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
