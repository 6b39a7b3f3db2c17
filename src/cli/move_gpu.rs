//! `gpuvm gpu attach` and `detach`: name → slot and card → a verb, carried out and recorded like any run; and what the
//! manifest says about it.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::adopt::save;
use super::apply::{Consent, Machine, ResultArgs, Talk, approve, need_root};
use super::defaults::manifest_of;
use super::gpu::meant;
use super::source::Source;
use super::status::free;
use super::{code, host, say};
use crate::apply::{Order, Purpose};
use crate::describe;
use crate::desire;
use crate::facts;
use crate::gpu::identity::Criterion;
use crate::host::{Probe, Snapshot};
use crate::manifest::{self, DeviceUse, Loaded};
use crate::plan::Past;
use crate::resource::Wanted;
use crate::resource::shared_gpu::shared_now;
use crate::resource::vfio_binding::Card;
use crate::types::DomainName;
use crate::undo::Edited;
use crate::verb::{MovedGpu, Verb};

/// A GPU that goes to a VM, or comes back from it.
#[derive(Debug, Args)]
pub struct MoveArgs {
    /// The VM.
    vm: DomainName,
    /// The GPU: its name in the manifest, address, slot path, model, id or UUID.
    gpu: String,
    /// The manifest, for the names that it gives; host.yaml where it is there, else the one of `vmctl`'s defaults.
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Write it into the manifest too; comments and order are kept.
    #[arg(long)]
    save: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    result: ResultArgs,
}

pub(super) fn run(args: &MoveArgs, attach: bool, talk: Talk<'_>) -> miette::Result<u8> {
    let talk = args.result.talk(talk);
    let (mut machine, mut state) = Machine::open(args.root.as_deref())?;
    let this = host::live();
    free(&state, matches!(machine, Machine::This))?;
    let past = state.past().into_diagnostic()?;
    let Meant { manifest, moved, named, warning } = match meant_move(args, attach, machine.probe(&this), &past)? {
        Ok(meant) => meant,
        Err(other) => {
            say(&format!("{other}\n"));
            return Ok(code::REFUSED);
        }
    };
    warning.iter().for_each(|w| say(w));
    let of = named.as_ref();
    let text = manifest.as_ref().map(|m| rewritten(args, m, of, attach)).transpose()?.flatten();
    if let (Some((name, DeviceUse::Host)), Some(m), true) = (of, &manifest, attach && !args.save) {
        say(&format!("`{}` keeps `{name}` for the host: this takes it from there for now\n", m.path.display()));
    }
    let purpose = Purpose::Verb(if attach { Verb::AttachGpu(moved) } else { Verb::DetachGpu(moved) });
    let source = Source::of(&purpose, &state).into_diagnostic()?;
    let (plan, _) = source.plan(machine.probe(&this), &past);

    let saved = Cell::new(false);
    let write = |text: &(Loaded, PathBuf)| {
        saved.set(true);
        save(&text.1, text.0.text.as_bytes(), 0o644, true)
    };
    let to_save = text.as_ref().filter(|_| args.save);
    if let (Some((new, path)), Some(old)) = (to_save, &manifest) {
        need_root(&machine)?;
        let diff = similar::TextDiff::from_lines(old.text.as_str(), new.text.as_str());
        let shown = format!("{}:\n{}\n", path.display(), diff.unified_diff().context_radius(1));
        talk.beside(&shown)?;
    }
    let consent = Consent { yes: args.yes, ..Consent::default() };
    let edited = to_save.zip(manifest.as_ref()).map(|((new, path), old)| {
        let gpu = of.map_or(args.gpu.as_str(), |(name, _)| name);
        edited((&args.vm, gpu), attach, path, old, new)
    });
    let order = Order { edited, ..Order::new(purpose, plan) };
    let code = approve(order, &mut machine, &mut state, consent, talk, || to_save.map_or(Ok(()), write))?;
    match text.as_ref().filter(|_| matches!(code, code::OK | code::WAITS)) {
        Some(text) if args.save && !saved.get() => write(text)?,
        Some((_, path)) if !args.save => differs(path, args, of, attach),
        _ => {}
    }
    Ok(code)
}

/// What is meant to move, and the manifest that names it.
struct Meant {
    manifest: Option<Loaded>,
    moved: MovedGpu,
    /// How that manifest names the card, and whom it gives it to.
    named: Option<(String, DeviceUse)>,
    /// What a person should know of the manifest that was not read.
    warning: Option<String>,
}

/// The manifest that is meant. A card that is named by its address needs none: a usual one that cannot be read is told of.
fn manifest_meant(args: &MoveArgs, probe: &dyn Probe) -> miette::Result<(Option<Loaded>, Option<String>)> {
    let read = || {
        let file = match &args.file {
            Some(file) => Some(file.clone()),
            None => manifest_of(args.root.as_deref(), probe)?,
        };
        Ok::<_, miette::Report>(file.map(|f| manifest::load(&f)).transpose()?)
    };
    let by_address = matches!(Criterion::guess(&args.gpu), Criterion::Address(_));
    match read() {
        Ok(manifest) => Ok((manifest, None)),
        Err(why) if by_address && args.file.is_none() && !args.save => Ok((
            None,
            Some(format!("{why}: what a manifest says of the card is not looked at; to have that, name it: -f FILE\n")),
        )),
        Err(why) => Err(why),
    }
}

/// What is meant; else that the manifest is for another host.
fn meant_move(args: &MoveArgs, attach: bool, probe: &dyn Probe, past: &Past) -> miette::Result<Result<Meant, String>> {
    let (manifest, warning) = manifest_meant(args, probe)?;
    if let Some(Err(other)) = manifest.as_ref().map(|m| host::is_meant(m, probe)) {
        return Ok(Err(other));
    }
    let mut facts = facts::collect(&Snapshot::new(probe));
    past.recall(&mut facts);
    let slot = meant(&args.gpu, manifest.as_ref(), &facts)?;
    let card = Card::of(&facts, slot).ok_or_else(|| miette!("there is no device at {slot}"))?;
    // Whatever the card was named by, the manifest speaks of it by its own name.
    let named = manifest.as_ref().and_then(|m| {
        let by_name = m.manifest.gpus.iter().find(|(n, _)| n.as_str() == args.gpu);
        by_name.or_else(|| m.manifest.gpus.iter().find(|(_, e)| desire::slot_of(e, true, &facts) == Some(slot)))
    });
    let by_name = named.is_some_and(|(name, _)| name.as_str() == args.gpu);
    if attach && !args.save && by_name && named.is_some_and(|(_, entry)| entry.usage == DeviceUse::Host) {
        return Err(miette!(
            help =
                "`--save` gives it to VMs there too, with `use: vfio`; or name the card by its address, for now alone",
            "the manifest keeps `{}` for the host",
            args.gpu
        ));
    }
    let kept = match named {
        Some((_, entry)) => entry.usage != DeviceUse::Host || (attach && args.save),
        None => past.owned.values().any(|w| matches!(w, Wanted::VfioBinding(b) if b.slot == slot)),
    };
    let shared = named.is_some_and(|(_, entry)| entry.usage == DeviceUse::Shared)
        || shared_now(probe).iter().any(|s| s.slot == slot);
    let modules = manifest.as_ref().map(|m| desire::modules(&m.manifest, &facts)).unwrap_or_default();
    let moved = MovedGpu { vm: args.vm.clone(), gpu: args.gpu.clone(), slot, card, kept, shared, modules };
    let named = named.map(|(name, entry)| (name.to_string(), entry.usage));
    Ok(Ok(Meant { manifest, moved, named, warning }))
}

/// What a GPU's way to a VM or back is, without a word for the manifest.
pub(super) fn purpose(
    vm: &DomainName,
    gpu: &str,
    attach: bool,
    file: Option<&Path>,
    root: Option<&Path>,
    probe: &dyn Probe,
    past: &Past,
) -> miette::Result<Purpose> {
    let args = MoveArgs {
        vm: vm.clone(),
        gpu: gpu.to_owned(),
        file: file.map(Path::to_path_buf),
        save: false,
        yes: false,
        root: root.map(Path::to_path_buf),
        result: ResultArgs::default(),
    };
    match meant_move(&args, attach, probe, past)? {
        Ok(Meant { moved, .. }) => {
            Ok(Purpose::Verb(if attach { Verb::AttachGpu(moved) } else { Verb::DetachGpu(moved) }))
        }
        Err(other) => Err(miette!("{other}")),
    }
}

/// What is written into the manifest, for the way back from the run.
fn edited((vm, gpu): (&DomainName, &str), attach: bool, path: &Path, old: &Loaded, new: &Loaded) -> Edited {
    let mut entries = vec![match attach {
        true => format!("`vms.{vm}.gpus` has `{gpu}` now"),
        false => format!("`vms.{vm}.gpus` has no `{gpu}` any more"),
    }];
    let usage = |of: &Loaded| of.manifest.gpus.get(gpu).map(|entry| entry.usage);
    if usage(old) != usage(new) {
        entries.push(format!("`gpus.{gpu}.use` is `vfio` now, and was `host`"));
    }
    Edited::new(path, entries)
}

/// The manifest says something else, which an apply would bring about.
fn differs(path: &Path, args: &MoveArgs, named: Option<&(String, DeviceUse)>, attach: bool) {
    let (path, vm) = (path.display(), &args.vm);
    let gpu = named.map_or(&args.gpu, |(name, _)| name);
    say(&match attach {
        true => format!("`{path}` does not give `{gpu}` to `{vm}`; the same with `--save` writes it there\n"),
        false => format!(
            "`{path}` gives `{gpu}` to `{vm}`: the next apply gives it back; the same with `--save` takes it out there\n"
        ),
    });
}

/// The manifest that says the same, where it does not yet.
fn rewritten(
    args: &MoveArgs,
    manifest: &Loaded,
    named: Option<&(String, DeviceUse)>,
    attach: bool,
) -> miette::Result<Option<(Loaded, PathBuf)>> {
    let (vm, gpu) = (args.vm.as_str(), named.map_or(args.gpu.as_str(), |(name, _)| name.as_str()));
    let entry = manifest.manifest.vms.get(&args.vm);
    let lists = entry.is_some_and(|vm| vm.gpus.iter().any(|g| g.function.is_none() && g.name.as_str() == gpu));
    if lists == attach || (named.is_none() && !args.save) {
        return Ok(None);
    }
    if named.is_none() {
        return Err(miette!(
            help = format!("name it under `gpus` in `{}`", manifest.path.display()),
            "the manifest names no GPU that is `{gpu}`"
        ));
    }
    let text = match attach {
        true => describe::give(&manifest.text, vm, gpu),
        false => describe::take(&manifest.text, vm, gpu),
    };
    let text = match text {
        Ok(text) => text,
        // It is said, and nothing else needs it.
        Err(_) if !args.save => return Ok(Some((manifest.clone(), manifest.path.clone()))),
        Err(e) => return Err(miette!(help = e.help, "{}", e.why)),
    };
    let loaded = manifest::reload(&manifest.path, text, manifest.files.clone())?;
    Ok(Some((loaded, manifest.path.clone())))
}
