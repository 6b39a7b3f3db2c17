//! `gpuvm undo`: a plan towards the state before a run, approved and carried out like any other.

use std::path::PathBuf;

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::apply::{Consent, Machine, ResultArgs, Talk, approve};
use super::plan::verdict;
use super::snapshot::way_back;
use super::source::Source;
use super::status::free;
use super::{host, say, tell_plan};
use crate::apply::{Order, Purpose};
use crate::undo::Back;

/// Arguments of `gpuvm undo`.
#[derive(Debug, Args)]
pub struct UndoArgs {
    /// The run, as `gpuvm history` numbers it; the last one where none is given.
    run: Option<u64>,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Show the plan and change nothing.
    #[arg(long, conflicts_with_all = ["yes", "reboot"])]
    plan: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Boot the host again where that is needed, and go on afterwards.
    #[arg(long)]
    reboot: bool,
    /// Delete the disks that the run made too, with the data on them.
    #[arg(long)]
    with_data: bool,
    /// Leave these as they are now: KIND or KIND/NAME.
    #[arg(long, value_name = "KIND[/NAME]")]
    skip: Vec<crate::plan::Selector>,
    #[command(flatten)]
    result: ResultArgs,
}

pub(super) fn run(args: &UndoArgs, talk: Talk<'_>) -> miette::Result<u8> {
    let talk = args.result.talk(talk);
    let (mut machine, mut state) = Machine::open(args.root.as_deref())?;
    free(&state, matches!(machine, Machine::This))?;
    if state.last_run() == 0 {
        return Err(miette!("there was no run yet: nothing to undo"));
    }
    let run = args.run.unwrap_or_else(|| state.last_run());
    if !state.runs().contains(&run) {
        let kept = state.runs().iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        return Err(miette!(help = format!("there is: {kept}"), "there is no record of a run {run}"));
    }
    let verb = match state.about(run).into_diagnostic()?.verb {
        Some(verb) => {
            let later = state.runs().into_iter().filter(|n| *n > run).filter_map(|n| state.about(n).ok()?.verb);
            way_back(&verb, run, &later.collect::<Vec<_>>(), &machine)?
        }
        None => None,
    };
    let back = Back { run, with_data: args.with_data, skip: args.skip.clone() };
    let purpose = match verb {
        Some(verb) => {
            if !talk.quiet {
                say(&format!("the way back from run {run}: gpuvm {}\n", verb.words()));
            }
            Purpose::Verb(verb)
        }
        None => Purpose::Undo(back),
    };
    let source = Source::of(&purpose, &state).into_diagnostic()?;
    let this = host::live();
    let (plan, _) = source.plan(machine.probe(&this), &state.past().into_diagnostic()?);
    if args.plan {
        tell_plan(&plan, talk.detail)?;
        return Ok(verdict(&plan));
    }
    let consent = Consent { yes: args.yes, reboot: args.reboot, at: None };
    approve(Order::new(purpose, plan), &mut machine, &mut state, consent, talk, || Ok(()))
}
