//! The process of a run: reads what was approved from the run's directory and carries it out on this machine. Started
//! by `gpuvm apply` in a unit of its own, and by the resume unit after a reboot; not for people.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::progress::{Teller, Told};
use super::status::cut_off;
use super::stop::Stop;
use super::{code, host, plan::verdict};
use crate::apply::{Apply, ApplyError, Ending, Event, Order, Outcome, Planned, StateDir};
use crate::host::{Host, Probe, live};
use crate::plan::{Item, Past};
use crate::{desire, facts, report};

/// Arguments of `gpuvm run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The run's directory.
    dir: PathBuf,
}

pub(super) fn run(args: &RunArgs, log: super::LogFormat) -> miette::Result<u8> {
    let number = args.dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
    let (Some(number), Some(top)) = (number, args.dir.parent().and_then(Path::parent)) else {
        return Err(miette!("`{}` is no run's directory", args.dir.display()));
    };
    let stop = Stop::watch().into_diagnostic()?;
    let mut state = StateDir::open(top).into_diagnostic()?;
    state.lock().into_diagnostic()?;
    // Before anything else: a run that ends this process in some bad way must not be started at each boot.
    live::stay().into_diagnostic()?;
    let mut events =
        std::fs::File::options().create(true).append(true).mode(0o600).open(args.dir.join(EVENTS)).into_diagnostic()?;
    let mut write = |told: &Told| {
        if let Ok(mut line) = serde_json::to_vec(told) {
            line.push(b'\n');
            if let Err(e) = events.write_all(&line) {
                tracing::warn!("the progress could not be written: {e}");
            }
        }
    };
    let mut key = String::new();
    let mut tell = |told: &Told| {
        told.log(&mut key, log);
        write(told);
    };
    let order = state.order(number).into_diagnostic()?;
    let mut machine = live::Live::for_a_run();
    let around = Around { stop: &stop, clock: &jiff::Timestamp::now };
    let ending = carry_out(&mut state, number, &order, &mut machine, around, &mut tell)?;
    tell(&Told::Ended(ending.clone()));
    Ok(ending.code)
}

/// Where a run tells what it does.
pub(super) const EVENTS: &str = "events.jsonl";

/// What a run looks up to between its steps.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    /// Whether someone asked it to stop.
    pub stop: &'a Stop,
    /// What time it is, for policies.
    pub clock: &'a dyn Fn() -> jiff::Timestamp,
}

/// Carries a run out on a machine, says how it ended, and writes that down. The state is locked. A run that was stopped
/// did not end.
pub(super) fn carry_out(
    state: &mut StateDir,
    run: u64,
    order: &Order,
    machine: &mut dyn Host,
    around: Around<'_>,
    tell: &mut dyn FnMut(&Told),
) -> miette::Result<Ending> {
    let result = steps(state, run, order, machine, around, tell);
    // Neither is an end of the run: it can go on.
    let why = match &result {
        Err(ApplyError::Stopped) => Some("stopped between two steps, as asked".to_owned()),
        Err(ApplyError::State(e)) => Some(format!("stopped, since what it does cannot be written down: {e}")),
        _ => None,
    };
    if let Some(why) = why {
        let text = format!("run {run} was {why}\n{}", cut_off(state, run));
        return Ok(Ending { code: code::ERROR, text });
    }
    let ending = ending(result, run, &order.saved.manifest.path);
    state.finish(run, &ending).map_err(|e| {
        miette!(
            help = "nothing that was done is lost; once that is mended: gpuvm apply --resume",
            "{}and how it ended could not be written down: {e}",
            ending.text
        )
    })?;
    Ok(ending)
}

/// What a run is to do: what a manifest says, or the way back from another run.
fn steps(
    state: &mut StateDir,
    run: u64,
    order: &Order,
    machine: &mut dyn Host,
    around: Around<'_>,
    tell: &mut dyn FnMut(&Told),
) -> Result<Outcome, ApplyError> {
    let Some(back) = &order.undo else {
        let manifest = host::restore(&order.saved.manifest)
            .map_err(|e| ApplyError::Blocked(format!("the run's manifest: {e}")))?;
        let selection = order.saved.selection.clone();
        let source = Source {
            plan: &|probe, past| host::plan_now(&manifest, &selection, probe, past),
            secrets: &desire::secrets(&manifest, &facts::hostname(machine)),
        };
        return interpret(state, run, order, machine, around, tell, source);
    };
    // The same interpreter, with the contents that the run kept in place of a manifest's secrets.
    let recorded = state.recorded(back.run)?;
    let source =
        Source { plan: &|probe, past| host::undo_now(back, &recorded, probe, past), secrets: &recorded.contents };
    let outcome = interpret(state, run, order, machine, around, tell, source)?;
    let keys = outcome.left.entries.iter().map(|e| e.key.clone()).collect();
    state.own_as_before(&keys, &recorded.owned)?;
    Ok(outcome)
}

/// Where the plans of a run come from, and the payloads that are not in them.
struct Source<'a> {
    plan: &'a dyn Fn(&dyn Probe, &Past) -> Planned,
    secrets: &'a BTreeMap<String, Vec<u8>>,
}

fn interpret(
    state: &mut StateDir,
    run: u64,
    order: &Order,
    machine: &mut dyn Host,
    around: Around<'_>,
    tell: &mut dyn FnMut(&Told),
    source: Source<'_>,
) -> Result<Outcome, ApplyError> {
    let mut teller = Teller::default();
    let apply = Apply {
        plan: source.plan,
        state,
        run,
        allowed: order.allowed,
        policies: &order.saved.policies,
        clock: around.clock,
        secrets: source.secrets,
        stop: &|| around.stop.is_asked(),
        tell: &mut |event: Event<'_>| {
            around.stop.host_goes_down(matches!(event, Event::Rebooting));
            tell(&teller.told(&event));
        },
    };
    apply.run(machine, &order.saved.plan)
}

fn ending(result: Result<Outcome, ApplyError>, run: u64, manifest: &Path) -> Ending {
    match result {
        Ok(outcome) => {
            let boot = outcome.left.order.iter().any(|i| matches!(i, Item::Reboot { .. }));
            let mut text = report::outcome(&outcome);
            let code = match verdict(&outcome.left) {
                // What is left comes after a boot that was not allowed.
                code::CHANGES | code::WAITS if boot => {
                    text += &format!(
                        "go on, the reboot included: gpuvm apply -f {} --reboot\n",
                        super::shell_word(&manifest.to_string_lossy())
                    );
                    code::WAITS
                }
                // Nothing more could be done, and yet something differs.
                code::CHANGES => code::ERROR,
                other => other,
            };
            Ending { code, text }
        }
        Err(refused @ (ApplyError::Stale(_) | ApplyError::BeyondApproved(_))) => Ending {
            code: code::REFUSED,
            text: format!("run {run} refused: {refused}\nsee what it is now: gpuvm plan\n"),
        },
        Err(refused @ ApplyError::Policy(_)) => Ending {
            code: code::REFUSED,
            text: format!(
                "run {run} stopped by the policy: {refused}\nwhat was done stays done; `gpuvm plan` shows what is left\n"
            ),
        },
        Err(e) => Ending {
            code: code::ERROR,
            text: format!(
                "run {run} failed: {e}\n\
                 what was done stays done; `gpuvm plan` shows what is left, and the next apply goes on from there\n"
            ),
        },
    }
}
