//! `gpuvm adopt`: what is there → its entry in the manifest → a plan that changes nothing but the mark → as any apply.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;

use clap::Args;
use miette::{IntoDiagnostic, miette};

use super::apply::{Consent, Machine, ResultArgs, Talk, approve, need_root};
use super::status::free;
use super::{Target, code, host, rehearsal, say};
use crate::apply::Order;
use crate::describe::{self, Entry, Refused};
use crate::host::{Probe, Snapshot};
use crate::manifest::{self, Loaded};
use crate::plan::{Diff, Key, Past, SavedPlan, Selection};
use crate::report::{self, Detail};
use crate::resource::ADOPTABLE;
use crate::undo::Edited;
use crate::{desire, facts};

/// Arguments of `gpuvm adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// What: `libvirt-domain/NAME`, `bridge/NAME`, `file/PATH`, `vfio-binding/NAME`.
    #[arg(required = true, value_name = "KIND/NAME")]
    things: Vec<Thing>,
    #[command(flatten)]
    target: Target,
    /// Write the entries that the manifest lacks into it; comments and order are kept.
    #[arg(long)]
    save: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    result: ResultArgs,
}

/// A thing by kind and name, as on the command line.
#[derive(Debug, Clone)]
struct Thing(Key);

impl FromStr for Thing {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("write a kind and a name; what can be taken over: {}", ADOPTABLE.join(", "));
        let (kind, name) = text.split_once('/').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        if !ADOPTABLE.contains(&kind) {
            return Err(wrong());
        }
        // A path is given with its own slash or with the one that parts it from the kind.
        let name = if kind == "file" && !name.starts_with('/') { format!("/{name}") } else { name.to_owned() };
        Ok(Self(Key::new(kind, name)))
    }
}

pub(super) fn run(args: &AdoptArgs, talk: Talk<'_>) -> miette::Result<u8> {
    let talk = args.result.talk(talk);
    let (mut machine, mut state) = Machine::open(args.target.root.as_deref())?;
    let live = host::live();
    free(&state, matches!(machine, Machine::This))?;
    let before = manifest::load(&args.target.file)?;
    if let Err(other) = host::is_meant(&before, machine.probe(&live)) {
        return talk.result(None, code::REFUSED, &format!("{other}\n"));
    }
    let things: BTreeSet<Key> = args.things.iter().map(|t| t.0.clone()).collect();
    let past = state.past().into_diagnostic()?;

    let mut loaded = before.clone();
    let (mut missing, mut written): (Vec<Entry>, Vec<String>) = Default::default();
    for thing in things.iter().filter(|t| t.kind != "vfio-binding") {
        let entry = described(thing, &loaded, machine.probe(&live)).map_err(|e| in_a_record(e, thing, args))?;
        if let Some(entry) = entry {
            let mut files = loaded.files.clone();
            files.extend(entry.extra.iter().map(|e| (e.path.clone(), e.bytes.clone())));
            loaded = manifest::reload(&before.path, entry.text.clone(), files)?;
            missing.push(entry);
            written.push(format!("`{thing}` has an entry now"));
        }
    }
    if !missing.is_empty() && !args.save {
        for entry in &missing {
            talk.beside(&entry.shown)?;
        }
        let path = args.target.file.display();
        say(&format!("`{path}` does not have this yet; put it in, or say `--save`; nothing was changed\n"));
        for extra in missing.iter().filter_map(|e| e.extra.as_ref()) {
            say(&format!("its content is copied to `{}` beside the manifest by `--save`\n", extra.path.display()));
        }
        return talk.stopped(code::OK, "the manifest does not have it yet; nothing was changed");
    }
    for thing in things.iter().filter(|t| t.kind == "vfio-binding") {
        if let Some(told) = foreign_binding(thing, &loaded, machine.probe(&live), &past)? {
            talk.beside(&rehearsal::said(&told))?;
            return talk.stopped(code::ERROR, "it cannot be taken over as it is; nothing was changed");
        }
    }

    let selection = Selection { adopt: things, ..Selection::default() };
    let (plan, _) = host::plan_now(&loaded, &selection, machine.probe(&live), &past);
    let order = SavedPlan::new(plan, selection, host::saved_manifest(&loaded)?);
    let edited = (!written.is_empty()).then(|| Edited::new(&args.target.file, written));
    let order = Order { edited, ..order.into() };
    if loaded.text != before.text {
        need_root(&machine)?;
        let diff = similar::TextDiff::from_lines(before.text.as_str(), loaded.text.as_str());
        talk.beside(&format!("{}:\n{}\n", args.target.file.display(), diff.unified_diff().context_radius(1)))?;
    }
    approve(order, &mut machine, &mut state, Consent { yes: args.yes, reboot: false, at: None }, talk, || {
        for extra in missing.iter().filter_map(|e| e.extra.as_ref()) {
            let folder = args.target.file.parent().unwrap_or(Path::new(""));
            save(&folder.join(&extra.path), &extra.bytes, if extra.private { 0o600 } else { 0o644 }, false)?;
        }
        if loaded.text != before.text {
            save(&args.target.file, loaded.text.as_bytes(), 0o644, true)?;
        }
        Ok(())
    })
}

/// A record has what was looked at when it was made, and that was not every file of the host.
fn in_a_record(error: miette::Report, thing: &Key, args: &AdoptArgs) -> miette::Report {
    match &args.target.root {
        Some(dir) if thing.kind == "file" && !dir.join("root").join(thing.name.trim_start_matches('/')).exists() => {
            miette!(
                help = "a record has the files that were looked at: make it anew with a manifest that lists this one under \
                        `files` (gpuvm facts --record DIR -f FILE), or adopt it on the host itself, without `--root`",
                "the record `{}` does not hold `{}`",
                dir.display(),
                thing.name
            )
        }
        _ => error,
    }
}

fn described(thing: &Key, loaded: &Loaded, probe: &dyn Probe) -> miette::Result<Option<Entry>> {
    let snapshot = Snapshot::new(probe);
    let facts = facts::collect(&snapshot);
    describe::describe(thing, loaded, &snapshot, &facts)
        .map_err(|Refused { why, help }| miette!(help = help, "{}/{}: {why}", thing.kind, thing.name))
}

/// A binding that others wrote: what it is, and what would replace it. Nothing of it is taken over.
fn foreign_binding(thing: &Key, loaded: &Loaded, probe: &dyn Probe, past: &Past) -> miette::Result<Option<String>> {
    let snapshot = Snapshot::new(probe);
    let facts = facts::collect(&snapshot);
    let entry = |map: &std::collections::BTreeMap<crate::types::ResourceName, manifest::DeviceEntry>| {
        map.get(thing.name.as_str()).cloned()
    };
    let (entry, gpu) = match (entry(&loaded.manifest.gpus), entry(&loaded.manifest.devices)) {
        (Some(entry), _) => (entry, true),
        (None, Some(entry)) => (entry, false),
        (None, None) => {
            return Err(miette!(
                help = "name it under `gpus` or `devices`; see what this host has: gpuvm init -o -",
                "the manifest has no device `{}`",
                thing.name
            ));
        }
    };
    let Some(slot) = desire::slot_of(&entry, gpu, &facts) else { return Ok(None) };
    // What gpuvm itself would do about it, and nothing else of the manifest.
    let mut own = loaded.clone();
    let section = if gpu { &mut own.manifest.gpus } else { &mut own.manifest.devices };
    for entry in section.iter_mut().filter(|(n, _)| n.as_str() == thing.name).map(|(_, e)| e) {
        (entry.existing, entry.usage) = (false, manifest::DeviceUse::Vfio);
    }
    let only = format!("{}/{}", thing.kind, thing.name).parse().into_diagnostic()?;
    let selection = Selection { only: vec![only], ..Selection::default() };
    let (plan, _) = host::plan_now(&own, &selection, &snapshot, past);
    if plan.entries.iter().any(|e| e.key == *thing && matches!(e.diff, Diff::InSync { .. })) {
        return Ok(None);
    }
    let name = facts.slot(slot).next().map(|f| f.name.clone()).unwrap_or_default();
    let mut told = format!("{thing}   {slot} {}\n\n", describe::words::comment(&name));
    let sources = describe::sources(slot, &snapshot, &facts);
    told += match sources.is_empty() {
        true => "no file that gpuvm knows binds it to vfio-pci\n",
        false => "what binds it to vfio-pci now, and gpuvm did not write:\n",
    };
    for source in &sources {
        told += &format!(
            "  {}\n      {}\n",
            describe::words::comment(&source.place),
            describe::words::comment(&source.text)
        );
        if !source.also.is_empty() {
            let also: Vec<String> = source.also.iter().map(ToString::to_string).collect();
            told += &format!("      goes by id: it takes {} too\n", also.join(", "));
        }
    }
    told += "\nit cannot be taken over as it is: gpuvm binds by address, with rules of its own. What it would do:\n\n";
    told += &report::plan_text(&plan, Detail::Normal);
    told += &format!(
        "\nto have it so: write `use: vfio` without `existing` for `{}`, and apply. What is there stays beside it: take\n\
         it out yourself once the plan is empty. Nothing was changed.\n",
        thing.name
    );
    Ok(Some(told))
}

/// A file as a whole or not at all. One that is there keeps its mode and owner.
pub(super) fn save(path: &Path, bytes: &[u8], mode: u32, replace: bool) -> miette::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    // A link stays a link: what it leads to is written.
    let path = if replace { path.canonicalize().into_diagnostic()? } else { path.to_owned() };
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        let was = path.metadata().ok();
        let mode = was.as_ref().map_or(mode, |m| m.permissions().mode() & 0o7777);
        if let Some(was) = &was {
            std::os::unix::fs::fchown(file.as_file(), Some(was.uid()), Some(was.gid()))?;
        }
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        match replace {
            true => file.persist(&path).map(drop).map_err(|e| e.error),
            false => match file.persist_noclobber(&path) {
                Err(_) if std::fs::read(&path).is_ok_and(|there| there == bytes) => Ok(()),
                other => other.map(drop).map_err(|e| e.error),
            },
        }
    };
    write().map_err(|e| miette!("`{}` could not be written: {e}; nothing was changed", path.display()))
}
