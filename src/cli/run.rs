//! The process of a run: reads what was approved from the run's directory and carries it out on this machine. Started
//! by `gpuvm apply` in a unit of its own, and by the resume unit after a reboot; not for people.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::progress::{Teller, Told};
use super::source::Source;
use super::status::cut_off;
use super::stop::Stop;
use super::{code, plan::verdict};
use crate::apply::{Apply, ApplyError, Ending, Event, Order, Outcome, Purpose, StateDir};
use crate::host::{Host, live};
use crate::plan::Item;
use crate::report;

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
    // Whoever started this holds it until systemd says that this runs: nobody sees a run that is nobody's.
    state.lock_within(HANDOVER).into_diagnostic()?;
    let booted = live::waits_for_boot();
    // Before anything else: a run that ends this process in some bad way must not be started at each boot.
    live::stay().into_diagnostic()?;
    if booted {
        live::wait_for_devices();
        live::network_decided(&mut |text| tracing::info!("{text}"));
    }
    let mut events = std::fs::File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(args.dir.join(EVENTS))
        .into_diagnostic()?;
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

/// How long the command that starts a run may take to give it the lock.
const HANDOVER: Duration = Duration::from_secs(60);

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
    let ending = ending(result, run, order);
    state.finish(run, &ending).map_err(|e| {
        miette!(
            help = "nothing that was done is lost; once that is mended: gpuvm apply --resume",
            "{}and how it ended could not be written down: {e}",
            ending.text
        )
    })?;
    Ok(ending)
}

/// Carries the steps out, whatever the run is for.
fn steps(
    state: &mut StateDir,
    run: u64,
    order: &Order,
    machine: &mut dyn Host,
    around: Around<'_>,
    tell: &mut dyn FnMut(&Told),
) -> Result<Outcome, ApplyError> {
    let source = Source::of(&order.purpose, state)?;
    let secrets = source.secrets(machine);
    let mut teller = Teller::default();
    let apply = Apply {
        plan: &|probe, past| source.plan(probe, past),
        state,
        run,
        allowed: order.allowed,
        policies: &order.policies,
        clock: around.clock,
        secrets: &secrets,
        stop: &|| around.stop.is_asked(),
        tell: &mut |event: Event<'_>| {
            around.stop.host_goes_down(matches!(event, Event::Rebooting));
            tell(&teller.told(&event));
        },
    };
    let outcome = apply.run(machine, &order.plan)?;
    source.ended(state, &outcome)?;
    Ok(outcome)
}

fn ending(result: Result<Outcome, ApplyError>, run: u64, order: &Order) -> Ending {
    let purpose = &order.purpose;
    let again = match purpose {
        Purpose::Verb(verb) => format!("to try again: gpuvm {}", verb.words()),
        _ => "`gpuvm plan` shows what is left, and the next apply goes on from there".to_owned(),
    };
    match result {
        Ok(outcome) => {
            let boot = outcome.left.order.iter().any(|i| matches!(i, Item::Reboot { .. }));
            let mut text = match purpose {
                Purpose::Verb(verb) => report::verb_outcome(&outcome, verb, &order.plan),
                _ => report::outcome(&outcome),
            };
            let code = match verdict(&outcome.left) {
                // What is left comes after a boot that was not allowed.
                code::CHANGES | code::WAITS if boot => {
                    text += &format!("go on, the reboot included: {}\n", with_reboot(purpose));
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
            text: match purpose {
                Purpose::Verb(_) => format!("run {run} refused: {refused}\n{again}\n"),
                _ => format!("run {run} refused: {refused}\nsee what it is now: gpuvm plan\n"),
            },
        },
        Err(refused @ ApplyError::Policy(_)) => Ending {
            code: code::REFUSED,
            text: format!("run {run} stopped by the policy: {refused}\nwhat was done stays done; {again}\n"),
        },
        Err(e) => {
            let help = e.help().map(|help| format!("{help}\n")).unwrap_or_default();
            Ending {
                code: code::ERROR,
                text: format!("run {run} failed: {e}\n{help}what was done stays done; {again}\n"),
            }
        }
    }
}

/// What to type to have the rest of it, after a boot.
fn with_reboot(purpose: &Purpose) -> String {
    match purpose {
        Purpose::Manifest { manifest, .. } => {
            format!("gpuvm apply -f {} --reboot", super::shell_word(&manifest.path.to_string_lossy()))
        }
        Purpose::Undo(back) => format!("gpuvm undo {} --reboot", back.run),
        Purpose::Verb(verb) => format!("gpuvm {} --reboot", verb.words()),
    }
}
