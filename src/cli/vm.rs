//! `gpuvm vm`: what is done with VMs from day to day. What changes something is a verb: a plan, carried out and recorded
//! like any other.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use miette::{IntoDiagnostic, miette};

use super::apply::{Consent, Machine, ResultArgs, Talk, approve};
use super::plan::verdict;
use super::source::Source;
use super::status::free;
use super::{code, host, say, snapshot, template, vm_look};
use crate::apply::{Order, Purpose, blocked};
use crate::host::{Answer, Host, Running, live};
use crate::plan::{Diff, Past, Step};
use crate::report;
use crate::types::{DomainName, PciSlot, ResourceName};
use crate::verb::{Stop, Verb, nvram_of};

/// Arguments of `gpuvm vm`.
#[derive(Debug, Args)]
pub struct VmArgs {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// One line a VM: whether it runs, CPUs, memory, GPUs, where it can be reached.
    List(vm_look::ListArgs),
    /// All that is known of a VM: addresses and who told them, devices, disks, and why it does not start.
    Info(vm_look::InfoArgs),
    /// Wait until a VM runs, is off, or can be reached.
    Wait(vm_look::WaitArgs),
    /// A VM's serial console on this terminal; Ctrl-] leaves it.
    Console(vm_look::ConsoleArgs),
    /// What QEMU wrote about a VM.
    Logs(vm_look::LogsArgs),
    /// A shell in a VM's guest: finds where it can be reached, and becomes ssh.
    Ssh(vm_look::SshArgs),
    /// Start a VM.
    Start(StartArgs),
    /// Ask a VM's guest to shut down, and wait until it has.
    Stop(StopArgs),
    /// Shut a VM down and start it again: what changed in its definition takes effect.
    Restart(StopArgs),
    /// Delete a VM that gpuvm made, with its disks: shown and asked about first.
    Delete(DeleteArgs),
    /// Make a VM that begins as another one: shown and asked about first.
    Clone(CloneArgs),
    /// Disks of VMs, kept to make others from.
    Template(template::TemplateArgs),
    /// How a VM is, kept to go back to.
    Snapshot(snapshot::SnapshotArgs),
}

/// A VM, and where it is.
#[derive(Debug, Args)]
struct OneArgs {
    /// The VM.
    name: DomainName,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
}

#[derive(Debug, Args)]
struct StartArgs {
    #[command(flatten)]
    vm: OneArgs,
    #[command(flatten)]
    yes: Plain,
    /// Ask VMs that have its devices to shut down first, and wait until they have; power is never cut.
    #[arg(long)]
    swap: bool,
}

/// For whoever says it to every verb.
#[derive(Debug, Args)]
struct Plain {
    /// Nothing is asked in any case: this is done as it is said, and what it would come to is in the plan of the run.
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct StopArgs {
    #[command(flatten)]
    vm: OneArgs,
    #[command(flatten)]
    yes: Plain,
    /// How long its guest is waited for; it runs on when that is over.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=86_400))]
    timeout: Option<u32>,
    /// Cut its power when its guest has not shut down by then. `--timeout 0 --force` does so at once.
    #[arg(long)]
    force: bool,
}

impl StopArgs {
    fn how(&self) -> Stop {
        Stop { patience_s: self.timeout, force: self.force }
    }
}

#[derive(Debug, Args)]
struct DeleteArgs {
    #[command(flatten)]
    vm: OneArgs,
    /// Leave its disks where they are.
    #[arg(long)]
    keep_disks: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct CloneArgs {
    /// The VM that it begins as.
    vm: DomainName,
    /// Its name.
    name: DomainName,
    /// As that was at this snapshot; as it is now, with its guest shut down, where left out.
    #[arg(long, value_name = "NAME")]
    snapshot: Option<ResourceName>,
    /// Layers over what the snapshot holds in place of copies: quick and small, and the snapshot has to stay.
    #[arg(long)]
    linked: bool,
    /// A passed device that it is to have too, by its slot (0000:02:00): only one of the two can run with it at a time.
    #[arg(long = "gpu", value_name = "SLOT")]
    gpus: Vec<PciSlot>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
}

impl CloneArgs {
    /// A name that is taken is a mistake; one that a run was cut off with goes on by that run.
    fn verb(&self, machine: &Machine) -> miette::Result<Verb> {
        let taken = || miette!(help = "give this one another name", "there is a VM `{}` already", self.name);
        let of = seen(machine, &self.vm)?;
        if seen(machine, &self.name)?.is_some() {
            return Err(taken());
        }
        let this = host::live();
        let nvram = of.and_then(|d| nvram_of(&d.inactive_xml, &self.name));
        if let Some(path) = nvram.filter(|path| matches!(machine.probe(&this).stat(path), Ok(Answer::Value(_)))) {
            return Err(miette!(
                help = "they were another VM's of this name: take them away, or give this one another name",
                "there are UEFI variables in `{}` already",
                path.display()
            ));
        }
        Ok(Verb::CloneVm {
            from: self.vm.clone(),
            name: self.name.clone(),
            snapshot: self.snapshot.clone(),
            linked: self.linked,
            keeps: self.gpus.iter().copied().collect(),
        })
    }
}

pub(super) fn run(args: &VmArgs, talk: Talk<'_>) -> miette::Result<u8> {
    let plain = |said: &Plain| Consent { yes: said.yes, ..Consent::default() };
    match &args.command {
        VmCommand::List(args) => vm_look::list(args),
        VmCommand::Info(args) => vm_look::info(args),
        VmCommand::Wait(args) => vm_look::wait(args, talk),
        VmCommand::Console(args) => vm_look::console(args, talk),
        VmCommand::Logs(args) => vm_look::logs(args),
        VmCommand::Ssh(args) => vm_look::ssh(args),
        VmCommand::Clone(clone) => {
            let consent = Consent { yes: clone.yes, ..Consent::default() };
            perform(clone.root.as_deref(), consent, clone.result.talk(talk), |machine| clone.verb(machine))
        }
        VmCommand::Template(args) => template::run(args, talk),
        VmCommand::Snapshot(args) => snapshot::run(args, talk),
        VmCommand::Start(start) => {
            perform(start.vm.root.as_deref(), plain(&start.yes), start.vm.result.talk(talk), |_| {
                Ok(Verb::StartVm { name: start.vm.name.clone(), swap: start.swap })
            })
        }
        VmCommand::Stop(stop) => perform(stop.vm.root.as_deref(), plain(&stop.yes), stop.vm.result.talk(talk), |_| {
            Ok(Verb::StopVm { name: stop.vm.name.clone(), how: stop.how() })
        }),
        VmCommand::Restart(stop) => {
            perform(stop.vm.root.as_deref(), plain(&stop.yes), stop.vm.result.talk(talk), |machine| {
                let name = &stop.vm.name;
                let ran_as = seen(machine, name)?.filter(|d| d.active).and_then(|d| d.id);
                Ok(Verb::RestartVm { name: name.clone(), ran_as, how: stop.how() })
            })
        }
        VmCommand::Delete(delete) => {
            let consent = Consent { yes: delete.yes, ..Consent::default() };
            perform(delete.vm.root.as_deref(), consent, delete.vm.result.talk(talk), |machine| {
                let name = &delete.vm.name;
                let uuid = seen(machine, name)?.map(|d| d.uuid);
                Ok(Verb::DeleteVm { name: name.clone(), uuid, keep_disks: delete.keep_disks })
            })
        }
    }
}

/// The VM that a person means, as it is now: a verb says which it is about, so that it knows it again.
fn seen(machine: &Machine, name: &DomainName) -> miette::Result<Option<crate::host::Domain>> {
    let this = host::live();
    match machine.probe(&this).virtualisation().map_err(host::told)? {
        Answer::Value(known) => Ok(known.domain(name.as_str()).cloned()),
        // The plan says so.
        Answer::Absent | Answer::Denied => Ok(None),
    }
}

/// Plans a verb, shows it and asks as it needs, and carries it out.
pub(super) fn perform(
    root: Option<&Path>,
    consent: Consent,
    talk: Talk<'_>,
    verb: impl FnOnce(&Machine) -> miette::Result<Verb>,
) -> miette::Result<u8> {
    if root.is_none() && !nix::unistd::geteuid().is_root() {
        return without_root(verb(&Machine::This)?, talk);
    }
    let (mut machine, mut state) = Machine::open(root)?;
    free(&state, matches!(machine, Machine::This))?;
    let purpose = Purpose::Verb(verb(&machine)?);
    let source = Source::of(&purpose, &state).into_diagnostic()?;
    let this = host::live();
    let (plan, _) = source.plan(machine.probe(&this), &state.past().into_diagnostic()?);
    approve(Order::new(purpose, plan), &mut machine, &mut state, consent, talk, || Ok(()))
}

/// Another user than root, whom libvirt lets at its VMs (group libvirt): the same steps, without gpuvm's lock, journal and
/// undo, which are root's. Only what libvirt itself does as one thing.
fn without_root(verb: Verb, talk: Talk<'_>) -> miette::Result<u8> {
    let as_root = || miette!(help = format!("sudo gpuvm {}", verb.words()), "this needs root; nothing was changed");
    let of_libvirt = matches!(
        verb,
        Verb::StartVm { .. } | Verb::StopVm { .. } | Verb::RestartVm { .. } | Verb::CreateSnapshot { .. }
    );
    if !of_libvirt {
        return Err(as_root());
    }
    let mut this = live::Live::for_a_run();
    let source = Source::Verb(verb.clone());
    let (plan, _) = source.plan(&this, &Past::default());
    if verdict(&plan) == code::OK {
        return talk.result(None, code::OK, &format!("nothing to do: {}\n", verb.done()));
    }
    if blocked(&plan).is_some() {
        return talk.result(None, code::ERROR, &report::refused(&plan));
    }
    // Copies of what only root may read are root's to keep.
    let copies = |step: &Step| matches!(step, Step::MakeSnapshot(s) if !s.copies.is_empty());
    if plan.changes().any(|(_, c)| c.steps.iter().any(copies)) {
        return Err(as_root());
    }
    plan.findings.iter().for_each(|f| say(&report::finding(f)));
    if !talk.quiet {
        say("not root: libvirt is asked directly, so there is no run to look at or to undo\n");
    }
    let (secrets, mut notes) = (Default::default(), Vec::new());
    for (_, change) in plan.changes() {
        for step in &change.steps {
            let mut progress = |line: &str| {
                if !talk.quiet {
                    say(&format!("  {line}\n"));
                }
            };
            let mut running =
                Running { secrets: &secrets, progress: &mut progress, notes: &mut notes, run_dir: Path::new("/") };
            let done = this.execute(step, &mut running);
            notes.drain(..).for_each(|note| say(&format!("  {note}\n")));
            done.map_err(|e| miette!("{e}"))?;
        }
    }
    let (left, _) = source.plan(&this, &Past::default());
    if left.entries.iter().any(|e| matches!(e.diff, Diff::Change(_))) {
        return Err(miette!("libvirt did it, and it is not so: see gpuvm vm info"));
    }
    talk.result(None, code::OK, &format!("{}\n", verb.done()))
}
