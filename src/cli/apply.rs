//! `gpuvm apply`: plan → shown → asked → carried out in a process of its own → told.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::progress::{Screen, Told};
use super::run::{Around, EVENTS, carry_out as carry_out_here};
use super::source::Source;
use super::status::{Standing, cut_off, follow, standing};
use super::stop::Stop;
use super::{Output, PolicyArgs, SelectArgs, Target, code, host, keeps, plan::verdict, print, say, tell, tell_plan};
use crate::apply::{self, ABOUT_FORMAT, About, Allowed, ApplyError, Ending, Order, Purpose, StateDir};
use crate::host::{Host, Probe, live};
use crate::manifest;
use crate::plan::{Content, FileWrite, Plan, SavedPlan, Severity, Step};
use crate::report::{self, Detail};

/// Arguments of `gpuvm apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A plan that `gpuvm plan --out` saved: exactly that is done, or nothing.
    #[arg(conflicts_with_all = ["file", "only", "skip"])]
    plan: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Boot the host again where the plan needs it, and go on afterwards.
    #[arg(long)]
    reboot: bool,
    /// Go on with a run that was cut off, within what was approved then.
    #[arg(long, conflicts_with_all = ["plan", "abandon"])]
    resume: bool,
    /// Close a run that was cut off or waits for a boot; what it did stays done.
    #[arg(long, conflicts_with = "plan")]
    abandon: bool,
    #[command(flatten)]
    result: ResultArgs,
}

/// The host that an apply changes.
pub(super) enum Machine {
    /// This one, by a process apart.
    This,
    /// A recorded one, here.
    Recorded(Box<dyn Host>),
}

impl Machine {
    /// The host that is meant, with gpuvm's own state on it.
    pub(super) fn open(root: Option<&Path>) -> miette::Result<(Self, StateDir)> {
        let machine = match root {
            Some(dir) => Machine::Recorded(Box::new(host::recorded(dir)?)),
            None => Machine::This,
        };
        Ok((machine, StateDir::open(host::state_of(root)?).into_diagnostic()?))
    }
    /// The host, to look at.
    pub(super) fn probe<'a>(&'a self, live: &'a live::Live) -> &'a dyn Probe {
        match self {
            Machine::Recorded(host) => host.as_ref(),
            Machine::This => live,
        }
    }
}

pub(super) fn run(args: &ApplyArgs, talk: Talk<'_>) -> miette::Result<u8> {
    let talk = args.result.talk(talk);
    let (mut machine, mut state) = Machine::open(args.target.root.as_deref())?;
    if args.policy.at.is_some() && args.target.root.is_none() {
        return Err(miette!(
            help = "try rules out with `gpuvm plan --at`",
            "`--at` is for rehearsals: name one with `--root`"
        ));
    }
    if !args.abandon && !args.resume && matches!(machine, Machine::This) && !nix::unistd::geteuid().is_root() {
        // The plan is shown all the same: that needs no rights.
        say("apply needs root: this shows the plan only\n");
    }
    let this = matches!(machine, Machine::This);
    let network_decided = || {
        if this && nix::unistd::geteuid().is_root() {
            live::network_decided(&mut |text| say(&format!("{text}\n")));
        }
    };
    match standing(&state, this) {
        Standing::AtWork(run) => {
            return Err(miette!(help = "see what it does: gpuvm status --follow", "run {run} is at work"));
        }
        Standing::WaitsForBoot(run) | Standing::CutOff(run) if args.abandon => {
            need_root(&machine)?;
            state.lock().into_diagnostic()?;
            if matches!(machine, Machine::This) {
                live::stay().into_diagnostic()?;
            }
            // A journal that is damaged must not keep a run from being closed.
            let mut this = live::Live::for_a_run();
            let host: &mut dyn Host = match &mut machine {
                Machine::Recorded(host) => host.as_mut(),
                Machine::This => &mut this,
            };
            if let Err(e) = apply::tidy(&state, run, host) {
                say(&format!("what the step that was cut off left beside its files is not known: {e}\n"));
            }
            let mut settled = || {
                let source = Source::of(&state.order(run)?.purpose, &state)?;
                Ok::<_, ApplyError>(source.abandoned(&mut state, host)?)
            };
            if let Err(e) = settled() {
                say(&format!("what is gone stays in the ledger as gpuvm's: {e}\n"));
            }
            if let Err(e) = state.fold_up(run, host) {
                say(&format!("which folders are gpuvm's to take away could not be written down: {e}\n"));
            }
            if let Err(e) = apply::record_after(&state, run, host, false) {
                say(&format!("how the run left the host could not be recorded: {e}\n"));
            }
            let text = format!("run {run} was abandoned; what it did stays done\n");
            state.finish(run, &Ending { code: code::ERROR, text: text.clone() }).into_diagnostic()?;
            return talk.result(Some(run), code::OK, &text);
        }
        Standing::WaitsForBoot(run) => {
            return Err(miette!(
                help = "boot it:     systemctl reboot\nor close it: gpuvm apply --abandon",
                "run {run} waits for the host to boot, and goes on then"
            ));
        }
        Standing::CutOff(run) if args.resume => {
            need_root(&machine)?;
            network_decided();
            let order = state.order(run).into_diagnostic()?;
            if let Some(why) = other_program(&order.plan, machine.probe(&host::live())) {
                return Err(miette!(
                    help = format!(
                        "go on with that one: {}/gpuvm apply --resume\nor close the run:     gpuvm apply --abandon",
                        state.run_dir(run).display()
                    ),
                    "run {run} {why}"
                ));
            }
            let stop = watch(&machine)?;
            return carry_out(&mut state, run, &mut machine, &stop, args.policy.at, talk);
        }
        Standing::CutOff(run) => return Err(miette!("{}", cut_off(&state, run).trim_end())),
        _ if args.resume || args.abandon => return Err(miette!("no run was cut off; nothing was changed")),
        _ => {}
    }

    network_decided();
    let order = match &args.plan {
        Some(path) => {
            let saved = SavedPlan::read(path).into_diagnostic()?;
            if let Some(why) = manifest_changed(&saved)? {
                say(&format!("{why}\n"));
                return Ok(code::REFUSED);
            }
            if let Some(why) = other_program(&saved.plan, machine.probe(&host::live())) {
                say(&format!("this plan {why}; apply it with that one, or plan again; nothing was changed\n"));
                return Ok(code::REFUSED);
            }
            saved
        }
        None => {
            let loaded = manifest::load(&args.target.file)?;
            let selection = args.select.selection();
            let live = host::live();
            let probe = machine.probe(&live);
            if let Err(other) = host::is_meant(&loaded, probe) {
                return talk.result(None, code::REFUSED, &format!("{other}\n"));
            }
            let (plan, _) = host::plan_now(&loaded, &selection, probe, &state.past().into_diagnostic()?);
            SavedPlan::new(plan, selection, host::saved_manifest(&loaded)?)
        }
    };
    let mut order = order;
    order.policies.extend(args.policy.read()?);
    let consent = Consent { yes: args.yes, reboot: args.reboot, at: args.policy.at };
    approve(order.into(), &mut machine, &mut state, consent, talk, || Ok(()))
}

/// How a command talks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Talk<'a> {
    /// Only results and errors.
    pub quiet: bool,
    /// How much of a plan is shown.
    pub detail: Detail,
    /// The options for the log of a run, as they were given.
    pub log: &'a [String],
    /// How the result is written to stdout; with JSON, the plan that is asked about is talk.
    pub output: Output,
}

/// How a command that changes something tells how it ended.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct ResultArgs {
    /// How the result is written to stdout; with `json`, everything else is said on stderr.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl ResultArgs {
    pub(super) fn talk(self, talk: Talk<'_>) -> Talk<'_> {
        Talk { output: self.output, ..talk }
    }
}

/// How a command that changes something ended.
#[derive(serde::Serialize)]
struct Ended<'a> {
    format: u32,
    /// The run's number, where there was one.
    run: Option<u64>,
    /// The exit code.
    code: u8,
    /// In words.
    said: &'a str,
}

impl Talk<'_> {
    /// Tells the result; what went wrong is told as talk too.
    pub(super) fn result(&self, run: Option<u64>, code: u8, said: &str) -> miette::Result<u8> {
        let wrong = matches!(code, code::ERROR | code::REFUSED);
        match self.output {
            Output::Json => {
                let ended = Ended { format: 1, run, code, said: said.trim_end() };
                print(&(serde_json::to_string_pretty(&ended).into_diagnostic()? + "\n"))?;
            }
            Output::Text if wrong => say(said),
            Output::Text => tell(said)?,
        }
        Ok(code)
    }

    /// The same of what is told already: for programs alone.
    pub(super) fn stopped(&self, code: u8, said: &str) -> miette::Result<u8> {
        if self.output == Output::Json { self.result(None, code, said) } else { Ok(code) }
    }

    /// What stands beside the result, for a person to see.
    pub(super) fn beside(&self, text: &str) -> miette::Result<()> {
        match self.output {
            Output::Json => say(text),
            Output::Text => print(text)?,
        }
        Ok(())
    }

    /// Shows a plan that something is done with.
    pub(super) fn plan(&self, plan: &Plan, detail: Detail) -> miette::Result<()> {
        match self.output {
            Output::Json => {
                say(&report::plan_text_as(plan, detail, str::to_owned));
                Ok(())
            }
            Output::Text => tell_plan(plan, detail),
        }
    }
}

/// What was said beforehand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Consent {
    /// Do not ask.
    pub yes: bool,
    /// Reboots are allowed.
    pub reboot: bool,
    /// The time of a rehearsal; now where none is said.
    pub at: Option<jiff::Timestamp>,
}

/// Shows a plan, asks, does `before`, and carries it out.
pub(super) fn approve(
    mut order: Order,
    machine: &mut Machine,
    state: &mut StateDir,
    consent: Consent,
    talk: Talk<'_>,
    before: impl FnOnce() -> miette::Result<()>,
) -> miette::Result<u8> {
    let approved = &order.plan;
    let verb = match &order.purpose {
        Purpose::Verb(verb) => Some(verb),
        _ => None,
    };
    let plain = verb.filter(|verb| verb.manner().plain);
    if let (Some(verb), code::OK) = (verb, verdict(approved)) {
        return talk.result(None, code::OK, &format!("nothing to do: {}\n", verb.done()));
    }
    match (plain, verdict(approved)) {
        // It does what it says: there is nothing to show and nothing to ask.
        (Some(_), code::CHANGES) if talk.detail != Detail::Verbose => {
            approved.findings.iter().for_each(|f| say(&report::finding(f)));
        }
        (Some(_), code::ERROR) => say(&report::refused(approved)),
        _ => {
            // What is asked about is shown, however quiet it is to be.
            let detail = if talk.quiet && !consent.yes { Detail::Normal } else { talk.detail };
            talk.plan(approved, detail)?;
        }
    }
    match verdict(approved) {
        code::ERROR => return talk.stopped(code::ERROR, &report::refused(approved)),
        code::OK => return talk.stopped(code::OK, "nothing to do"),
        code::WAITS if !(consent.reboot && waits_for_a_boot(approved)) => {
            return talk.stopped(code::WAITS, "it waits for a boot, or for a VM to be started anew");
        }
        _ => {}
    }
    let now = consent.at.unwrap_or_else(jiff::Timestamp::now);
    if !keeps(&order.policies, approved, now) {
        return talk.stopped(code::REFUSED, "a rule refuses it; nothing was changed");
    }
    need_root(machine)?;
    if !consent.reboot && !talk.quiet && boots(approved) {
        say("this stops before the reboot; with `--reboot` it goes on through it\n");
    }
    if !consent.yes && plain.is_none() && !asked()? {
        say("nothing was changed\n");
        return talk.stopped(code::CHANGES, "nothing was changed");
    }
    let stop = watch(machine)?;
    let last = state.last_run();
    state.lock().into_diagnostic()?;
    if state.last_run() != last {
        let said = format!("run {} came in between; plan again; nothing was changed\n", state.last_run());
        return talk.result(None, code::REFUSED, &said);
    }
    before()?;
    let number = new_run(&mut order, state, consent.reboot, asked_for())?;
    carry_out(state, number, machine, &stop, consent.at, talk)
}

/// Makes a run of what was approved, and asked for in these words; the state is locked.
pub(super) fn new_run(order: &mut Order, state: &mut StateDir, reboot: bool, asked: String) -> miette::Result<u64> {
    let about = About {
        format: ABOUT_FORMAT,
        at: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        asked,
        undo: if let Purpose::Undo(back) = &order.purpose { Some(back.run) } else { None },
        verb: if let Purpose::Verb(verb) = &order.purpose { Some(verb.clone()) } else { None },
        plan: order.plan.clone(),
        edited: order.edited.clone(),
    };
    order.allowed = Allowed { reboot };
    state.new_run(order, &about).into_diagnostic()
}

/// A run that is carried out here is stopped between two steps; one in a process of its own does not depend on this one.
fn watch(machine: &Machine) -> miette::Result<Stop> {
    match machine {
        Machine::Recorded(_) => Stop::watch().into_diagnostic(),
        Machine::This => Ok(Stop::default()),
    }
}

/// The command line that began this, as it was typed.
fn asked_for() -> String {
    std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Carries a run out: a recorded host's here, this machine's in a process that outlives the terminal.
fn carry_out(
    state: &mut StateDir,
    number: u64,
    machine: &mut Machine,
    stop: &Stop,
    at: Option<jiff::Timestamp>,
    talk: Talk<'_>,
) -> miette::Result<u8> {
    // Another time is for rehearsals alone.
    let clock = || at.unwrap_or_else(jiff::Timestamp::now);
    let ending = match machine {
        Machine::Recorded(host) => {
            state.lock().into_diagnostic()?;
            let order = state.order(number).into_diagnostic()?;
            let mut screen = Screen::new(talk.quiet);
            let around = Around { stop, clock: &clock };
            let ending = carry_out_here(state, number, &order, host.as_mut(), around, &mut |told| screen.show(told))?;
            screen.show(&Told::Ended(ending.clone()));
            Some(ending)
        }
        Machine::This => {
            let dir = state.run_dir(number);
            live::keep_program(&dir).into_diagnostic()?;
            let seen = std::fs::metadata(dir.join(EVENTS)).map_or(0, |m| m.len());
            let launched = live::launch(&dir, number, talk.log);
            state.unlock();
            launched.into_diagnostic()?;
            say(&format!("run {number}; it goes on without this terminal: gpuvm status --follow\n"));
            follow(&dir, seen, talk.quiet, &|| live::is_started(number)).into_diagnostic()?
        }
    };
    match ending {
        Some(ending) => talk.result(Some(number), ending.code, &ending.text),
        None if live::waits_for_boot() => {
            let said = format!("run {number} goes on after the reboot: gpuvm status --follow\n");
            talk.result(Some(number), code::WAITS, &said)
        }
        None => Err(miette!("{}", cut_off(state, number).trim_end())),
    }
}

pub(super) fn need_root(machine: &Machine) -> miette::Result<()> {
    if matches!(machine, Machine::This) && !nix::unistd::geteuid().is_root() {
        return Err(miette!(
            help = "sudo gpuvm apply …",
            "changing this host needs root: it writes below /etc and /sys; nothing was changed"
        ));
    }
    Ok(())
}

fn boots(plan: &Plan) -> bool {
    plan.order.iter().any(|i| matches!(i, crate::plan::Item::Reboot { .. }))
}

fn waits_for_a_boot(plan: &Plan) -> bool {
    boots(plan) && !plan.findings.iter().any(|f| f.severity == Severity::Error)
}

/// Why a plan that installs the program that it was made with cannot be carried out by this one.
fn other_program(plan: &Plan, probe: &dyn Probe) -> Option<String> {
    let steps = plan.changes().flat_map(|(_, change)| &change.steps);
    let planned = steps.filter_map(|step| match step {
        Step::WriteFile(FileWrite { content: Content::Program(digest), .. }) => Some(digest),
        _ => None,
    });
    let this = probe.myself().map(|this| this.sha256).unwrap_or_default();
    planned.into_iter().find(|digest| **digest != this).map(|digest| {
        let short = |digest: &str| digest.get(..12).unwrap_or("not known").to_owned();
        format!(
            "installs the gpuvm that made it (version {}, sha256 {}…), and this is another one (version {}, sha256 {}…)",
            plan.writer,
            short(digest),
            env!("CARGO_PKG_VERSION"),
            short(&this)
        )
    })
}

/// Why a saved plan's manifest is not what lies there now. One that is gone is no contradiction.
fn manifest_changed(saved: &SavedPlan) -> miette::Result<Option<String>> {
    let path = &saved.manifest.path;
    if !path.exists() {
        return Ok(None);
    }
    let same = manifest::load(path).is_ok_and(|now| now.digest == saved.plan.manifest);
    let said = format!("`{}` changed since this plan was saved; plan again; nothing was changed", path.display());
    Ok((!same).then_some(said))
}

/// Asks on the terminal. Without one there is nobody to ask, and no answer is no.
fn asked() -> miette::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(miette!(
            help = "say `--yes` to apply without asking",
            "there is no terminal to ask on; nothing was changed"
        ));
    }
    say("apply this? [y/N] ");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).into_diagnostic()?;
    Ok(matches!(line.trim(), "y" | "yes"))
}
