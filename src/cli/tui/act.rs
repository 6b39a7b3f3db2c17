//! What changes something: the same verb, checks, plan and run as on the command line. The plan that was shown is the one
//! that is carried out; a host that changed meanwhile refuses it.

use std::path::PathBuf;
use std::sync::mpsc::Sender;

use miette::miette;

use super::look::{Answer, Target, lines};
use crate::apply::{Ending, Order, Purpose};
use crate::cli::apply::{Machine, need_root, new_run};
use crate::cli::progress::Told;
use crate::cli::run::{Around, EVENTS, carry_out};
use crate::cli::source::Source;
use crate::cli::status::free;
use crate::cli::stop::Stop;
use crate::cli::{code, host, move_gpu, plan::verdict};
use crate::host::live;
use crate::report::{self, Detail};
use crate::types::DomainName;
use crate::verb::{Stop as How, Verb};

/// What a person wants.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    Start(DomainName),
    Stop(DomainName),
    Attach(DomainName, String),
    Detach(DomainName, String),
}

/// What it comes to.
pub(super) struct Prepared {
    pub title: String,
    pub lines: Vec<String>,
    /// What is carried out where the person says so; `None` where there is nothing to carry out.
    pub order: Option<Order>,
    /// The last run when it was planned.
    pub last: u64,
}

fn text(error: &miette::Report) -> String {
    match error.help() {
        Some(help) => format!("{error}\n{help}"),
        None => error.to_string(),
    }
}

/// Plans it.
pub(super) fn prepare(target: &Target, wish: &Wish) -> Answer<Prepared> {
    let plan = || -> miette::Result<Prepared> {
        let (machine, state) = Machine::open(target.root())?;
        free(&state, matches!(machine, Machine::This))?;
        let this = host::live();
        let past = state.past().map_err(|e| miette!("{e}"))?;
        let purpose = match wish {
            Wish::Start(name) => Purpose::Verb(Verb::StartVm { name: name.clone(), swap: false }),
            Wish::Stop(name) => {
                Purpose::Verb(Verb::StopVm { name: name.clone(), how: How { patience_s: None, force: false } })
            }
            Wish::Attach(vm, gpu) | Wish::Detach(vm, gpu) => {
                let attach = matches!(wish, Wish::Attach(..));
                move_gpu::purpose(vm, gpu, attach, target.file.as_deref(), target.root(), machine.probe(&this), &past)?
            }
        };
        let title = match &purpose {
            Purpose::Verb(verb) => format!("gpuvm {}", verb.words()),
            _ => String::new(),
        };
        if need_root(&machine).is_err() {
            return Err(miette!(
                help = format!("sudo gpuvm tui; a start or a stop also as one of the group libvirt: {title}"),
                "what is done here is a run, which needs root; nothing was changed"
            ));
        }
        let source = Source::of(&purpose, &state).map_err(|e| miette!("{e}"))?;
        let (plan, _) = source.plan(machine.probe(&this), &past);
        let may = verdict(&plan) == code::CHANGES;
        let shown = match verdict(&plan) {
            code::OK => "nothing to do\n".to_owned(),
            code::ERROR => report::refused(&plan),
            _ => report::plan_text(&plan, Detail::Normal),
        };
        let order = may.then(|| Order::new(purpose, plan));
        Ok(Prepared { title, lines: lines(&shown), order, last: state.last_run() })
    };
    plan().map_err(|e| text(&e))
}

/// Where a run that was begun tells what it does.
pub(super) enum Begun {
    /// In this file, by a process of its own.
    There(PathBuf),
    /// It is over: a rehearsal, whose events were sent.
    Over,
}

/// Carries it out: on this machine by a process that does not need this screen, on a recorded one here.
pub(super) fn carry_it_out(
    target: &Target,
    mut order: Order,
    last: u64,
    log: &[String],
    sent: &Sender<Told>,
) -> Answer<Begun> {
    let mut act = || -> miette::Result<Begun> {
        let (mut machine, mut state) = Machine::open(target.root())?;
        state.lock().map_err(|e| miette!("{e}"))?;
        if state.last_run() != last {
            return Err(miette!("run {} came in between; nothing was changed", state.last_run()));
        }
        let asked = match &order.purpose {
            Purpose::Verb(verb) => verb.words(),
            _ => String::new(),
        };
        let number = new_run(&mut order, &mut state, false, asked)?;
        match &mut machine {
            Machine::This => {
                let dir = state.run_dir(number);
                live::keep_program(&dir).map_err(|e| miette!("{e}"))?;
                let launched = live::launch(&dir, number, log);
                state.unlock();
                launched.map_err(|e| miette!("{e}"))?;
                Ok(Begun::There(dir.join(EVENTS)))
            }
            Machine::Recorded(host) => {
                let stop = Stop::default();
                let around = Around { stop: &stop, clock: &jiff::Timestamp::now };
                let mut tell = |told: &Told| {
                    let _ = sent.send(told.clone());
                };
                let ending: Ending = carry_out(&mut state, number, &order, host.as_mut(), around, &mut tell)?;
                let _ = sent.send(Told::Ended(ending));
                Ok(Begun::Over)
            }
        }
    };
    act().map_err(|e| text(&e))
}
