//! `gpuvm vm snapshot`: how a VM is, kept to go back to.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use miette::{IntoDiagnostic, miette};

use super::apply::{Consent, Machine, ResultArgs, Talk};
use super::vm::perform;
use super::{Output, code, host, print, vm_look};
use crate::host::{Answer, Virtualisation};
use crate::report;
use crate::resource::snapshots::{Part, snapshots};
use crate::types::{DomainName, ResourceName};
use crate::verb::{Asked, Verb, asked, layers_of};

/// Arguments of `gpuvm vm snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Keep how a VM is: its disks, its definition, its UEFI variables and its TPM's state; never its memory.
    Create(CreateArgs),
    /// The snapshots of a VM, and where it goes on from.
    List(ListArgs),
    /// Bring a VM that is off back to how it was: shown and asked about first.
    Restore(RestoreArgs),
    /// Take a snapshot away; how the VM is now stays: shown and asked about first.
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The VM.
    vm: DomainName,
    /// The snapshot's name; the next free number where left out.
    name: Option<ResourceName>,
    /// Nothing is asked in any case.
    #[arg(short, long)]
    yes: bool,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The VM.
    vm: DomainName,
    /// What is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// The VM.
    vm: DomainName,
    /// The snapshot.
    name: ResourceName,
    /// How it is now is kept as a snapshot of this name; `before-NAME` where left out.
    #[arg(long, value_name = "NAME")]
    keep: Option<ResourceName>,
    /// How it is now is lost.
    #[arg(long, conflicts_with = "keep")]
    discard: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// The VM.
    vm: DomainName,
    /// The snapshot.
    name: ResourceName,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
}

pub(super) fn run(args: &SnapshotArgs, talk: Talk<'_>) -> miette::Result<u8> {
    match &args.command {
        SnapshotCommand::List(list) => self::list(list),
        SnapshotCommand::Create(create) => {
            perform(create.root.as_deref(), Consent::default(), create.result.talk(talk), |machine| {
                let (asked, _) = look(machine, &create.vm)?;
                let name = create.vm.clone();
                let snapshot = match &create.name {
                    Some(given) if asked.names.iter().any(|n| n == given.as_str()) => {
                        return Err(miette!(
                            help =
                                format!("give this one another name; which there are: gpuvm vm snapshot list {name}"),
                            "VM `{name}` has a snapshot `{given}` already"
                        ));
                    }
                    Some(given) => given.clone(),
                    None => free(&asked, "")?,
                };
                Ok(Verb::CreateSnapshot { name, snapshot, layer: asked.layer })
            })
        }
        SnapshotCommand::Restore(restore) => {
            let consent = Consent { yes: restore.yes, ..Consent::default() };
            perform(restore.root.as_deref(), consent, restore.result.talk(talk), |machine| {
                let (asked, _) = look(machine, &restore.vm)?;
                let keep = match (&restore.keep, restore.discard) {
                    (_, true) => None,
                    (Some(keep), _) if asked.names.iter().any(|n| n == keep.as_str()) => {
                        return Err(miette!("VM `{}` has a snapshot `{keep}` already", restore.vm));
                    }
                    (Some(keep), _) => Some(keep.clone()),
                    (None, _) => Some(free(&asked, &format!("before-{}", restore.name))?),
                };
                back_to(machine, &restore.vm, &restore.name, keep)
            })
        }
        SnapshotCommand::Delete(delete) => {
            let consent = Consent { yes: delete.yes, ..Consent::default() };
            perform(delete.root.as_deref(), consent, delete.result.talk(talk), |machine| {
                let (asked, _) = look(machine, &delete.vm)?;
                let seen = asked.left || asked.names.iter().any(|n| n == delete.name.as_str());
                Ok(Verb::DeleteSnapshot { name: delete.vm.clone(), snapshot: delete.name.clone(), seen })
            })
        }
    }
}

/// The way back from a verb whose run recorded nothing that could be put back, since what is in a disk is in no record: the
/// verb that is the other one's way back. `None` for verbs whose way back is the record; an error where there is none.
pub(super) fn way_back(verb: &Verb, run: u64, later: &[Verb], machine: &Machine) -> miette::Result<Option<Verb>> {
    let none = |why: String, help: String| miette!(help = help, "{why}: run {run} cannot be undone");
    // One of the same name that was made since is another.
    let made_again = |vm: &DomainName, of: &ResourceName| {
        later.iter().any(|l| match l {
            Verb::CreateSnapshot { name, snapshot, .. } => name == vm && snapshot == of,
            Verb::RestoreSnapshot { name, keep: Some(keep), .. } => name == vm && keep == of,
            _ => false,
        })
    };
    let there = |vm: &DomainName, of: &ResourceName| {
        let (asked, _) = look(machine, vm)?;
        let list = format!("which there are: gpuvm vm snapshot list {vm}");
        if !asked.names.iter().any(|n| n == of.as_str()) {
            return Err(none(format!("VM `{vm}` has no snapshot `{of}` any more"), list));
        }
        if made_again(vm, of) {
            return Err(none(format!("the snapshot `{of}` of VM `{vm}` was made anew since"), list));
        }
        Ok(asked)
    };
    match verb {
        Verb::CreateSnapshot { name, snapshot, .. } => {
            there(name, snapshot)?;
            Ok(Some(Verb::DeleteSnapshot { name: name.clone(), snapshot: snapshot.clone(), seen: true }))
        }
        Verb::RestoreSnapshot { name, snapshot, keep: Some(keep), .. } => {
            let asked = there(name, keep)?;
            let kept = free(&asked, &format!("after-{snapshot}"))?;
            back_to(machine, name, keep, Some(kept)).map(Some)
        }
        Verb::RestoreSnapshot { name, snapshot, keep: None, .. } => Err(none(
            format!("how VM `{name}` was before it went back to `{snapshot}` was thrown away (--discard)"),
            format!("what is kept of it: gpuvm vm snapshot list {name}"),
        )),
        Verb::DeleteSnapshot { name, snapshot, .. } => Err(none(
            format!("what the snapshot `{snapshot}` of VM `{name}` alone held was given up with it"),
            format!("how the VM is now can be kept: gpuvm vm snapshot create {name}"),
        )),
        Verb::SaveTemplate { template, .. } => Ok(Some(Verb::DeleteTemplate { template: template.clone() })),
        Verb::DeleteTemplate { template } => Err(none(
            format!("the template `{template}` was nowhere else"),
            "a VM's disk can be saved as one: gpuvm vm template save".to_owned(),
        )),
        _ => Ok(None),
    }
}

/// Going back to a snapshot, with the number of the layers that the disks go on in then.
fn back_to(
    machine: &Machine,
    name: &DomainName,
    snapshot: &ResourceName,
    keep: Option<ResourceName>,
) -> miette::Result<Verb> {
    let (asked, known) = look(machine, name)?;
    let this = crate::host::live::Live::for_a_plan();
    // Keeping it puts a layer of its own over each disk, which stays empty.
    let (layer, leaves) = match (&keep, &known) {
        (Some(_), Some(known)) => (asked.layer + 1, layers_of(&asked.files, asked.layer, known, machine.probe(&this))),
        _ => (asked.layer, asked.files),
    };
    Ok(Verb::RestoreSnapshot { name: name.clone(), snapshot: snapshot.clone(), layer, keep, leaves })
}

/// A name that no snapshot of it has: this one, or with the next number.
fn free(asked: &Asked, wanted: &str) -> miette::Result<ResourceName> {
    let dash = if wanted.is_empty() { "" } else { "-" };
    let numbered = (1u32..).map(|n| format!("{wanted}{dash}{n}"));
    let plain = (!wanted.is_empty()).then(|| wanted.to_owned());
    let name = plain.into_iter().chain(numbered).find(|name| asked.names.iter().all(|n| n != name));
    name.unwrap_or_default().parse().into_diagnostic()
}

/// What is decided when it is asked for.
fn look(machine: &Machine, vm: &DomainName) -> miette::Result<(Asked, Option<Arc<Virtualisation>>)> {
    let this = crate::host::live::Live::for_a_plan();
    let probe = machine.probe(&this);
    match probe.virtualisation().map_err(host::told)? {
        Answer::Value(known) => Ok((asked(vm, known.clone(), probe), Some(known))),
        // The plan says so.
        Answer::Absent | Answer::Denied => Ok((Asked { layer: 1, ..Asked::default() }, None)),
    }
}

fn list(args: &ListArgs) -> miette::Result<u8> {
    let (probe, _) = host::open(args.root.as_deref())?;
    let known = vm_look::ask(probe.as_ref())?;
    let domain = vm_look::find(&known, &args.vm)?;
    let all = snapshots(domain).map_err(|why| miette!("{why}"))?;
    let listed: Vec<report::ListedSnapshot> = all
        .iter()
        .map(|s| report::ListedSnapshot {
            name: s.name.clone(),
            created: jiff::Timestamp::from_second(s.created)
                .ok()
                .filter(|_| s.created > 0)
                .map(|t| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
            parent: s.parent.clone(),
            current: s.current,
            ours: s.ours,
            ran: s.ran,
            parts: s.parts.iter().map(|p: &Part| p.word().to_owned()).collect(),
            files: s.files().map(|f| f.display().to_string()).collect(),
            copies: s.parts.iter().map(|p| p.copy(&domain.uuid, &s.name).display().to_string()).collect(),
        })
        .collect();
    print(&match args.output {
        Output::Json => vm_look::json(&serde_json::json!({ "format": 1, "vm": domain.name, "snapshots": listed }))?,
        Output::Text => report::snapshot_list(&domain.name, &listed),
    })?;
    Ok(code::OK)
}
