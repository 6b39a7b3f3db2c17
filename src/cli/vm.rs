//! `gpuvm vm`: what is done with VMs from day to day. What changes something is a verb: a plan, carried out and recorded
//! like any other.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use miette::IntoDiagnostic;

use super::apply::{Consent, Machine, Talk, approve};
use super::host;
use super::source::Source;
use super::status::free;
use crate::apply::{Order, Purpose, StateDir};
use crate::host::live;
use crate::types::DomainName;
use crate::verb::Verb;

/// Arguments of `gpuvm vm`.
#[derive(Debug, Args)]
pub struct VmArgs {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// Start a VM.
    Start(OneArgs),
}

/// A VM, and where it is.
#[derive(Debug, Args)]
struct OneArgs {
    /// The VM.
    name: DomainName,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

pub(super) fn run(args: &VmArgs, talk: Talk<'_>) -> miette::Result<u8> {
    match &args.command {
        VmCommand::Start(one) => {
            let (mut machine, state) = Machine::open(one.root.as_deref())?;
            perform(Verb::StartVm { name: one.name.clone() }, &mut machine, state, Consent::default(), talk)
        }
    }
}

/// Plans a verb, shows and asks as it needs, and carries it out.
pub(super) fn perform(
    verb: Verb,
    machine: &mut Machine,
    mut state: StateDir,
    consent: Consent,
    talk: Talk<'_>,
) -> miette::Result<u8> {
    free(&state, matches!(machine, Machine::This) && live::waits_for_boot())?;
    let purpose = Purpose::Verb(verb);
    let source = Source::of(&purpose, &state).into_diagnostic()?;
    let this = host::live();
    let (plan, _) = source.plan(machine.probe(&this), &state.past().into_diagnostic()?);
    approve(Order::new(purpose, plan), machine, &mut state, consent, talk, || Ok(()))
}
