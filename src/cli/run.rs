//! The process of a run: reads what was approved from the run's directory and carries it out on this machine. Started
//! by `gpuvm apply` in a unit of its own, and by the resume unit after a reboot; not for people.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::progress::{Teller, Told};
use super::{code, host, plan::verdict};
use crate::apply::{Apply, ApplyError, Ending, Event, Order, Outcome, StateDir};
use crate::host::{Host, live};
use crate::plan::Item;
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
    let ending = carry_out(&mut state, number, &order, &mut live::Live::for_a_run(), &jiff::Timestamp::now, &mut tell);
    state.finish(number, &ending).into_diagnostic()?;
    tell(&Told::Ended(ending.clone()));
    Ok(ending.code)
}

/// Where a run tells what it does.
pub(super) const EVENTS: &str = "events.jsonl";

/// Carries a run out on a machine and says how it ended. The state is locked.
pub(super) fn carry_out(
    state: &mut StateDir,
    run: u64,
    order: &Order,
    machine: &mut dyn Host,
    clock: &dyn Fn() -> jiff::Timestamp,
    tell: &mut dyn FnMut(&Told),
) -> Ending {
    let manifest = match host::restore(&order.saved.manifest) {
        Ok(manifest) => manifest,
        Err(e) => return Ending { code: code::ERROR, text: format!("the run's manifest cannot be read: {e}\n") },
    };
    let selection = order.saved.selection.clone();
    let secrets = desire::secrets(&manifest, &facts::hostname(machine));
    let mut teller = Teller::default();
    let apply = Apply {
        plan: &|probe, past| host::plan_now(&manifest, &selection, probe, past),
        state,
        run,
        allowed: order.allowed,
        policies: &order.saved.policies,
        clock,
        secrets: &secrets,
        tell: &mut |event: Event<'_>| tell(&teller.told(&event)),
    };
    ending(apply.run(machine, &order.saved.plan), run, &order.saved.manifest.path)
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
