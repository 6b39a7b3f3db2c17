//! `gpuvm vm template`: disks of VMs kept as images, to make others from.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use miette::{IntoDiagnostic, miette};

use super::apply::{Consent, ResultArgs, Talk};
use super::create::{Begins, VmArgs, create};
use super::vm::perform;
use super::{Output, code, host, print, say, vm_look};
use crate::host::{Answer, Probe};
use crate::image::{Cached, FOLDER, Origin};
use crate::report;
use crate::resource::image::is_template;
use crate::types::{ByteSize, DomainName, ResourceName};
use crate::verb::Verb;

/// Arguments of `gpuvm vm template`.
#[derive(Debug, Args)]
pub struct TemplateArgs {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, Subcommand)]
enum TemplateCommand {
    /// Keep the first disk of a VM that is off as a template: shown and asked about first.
    Save(SaveArgs),
    /// The templates of this host.
    List(ListArgs),
    /// Delete a template: shown and asked about first. One that disks go on in stays.
    Delete(DeleteArgs),
    /// Make a VM from a template, as `gpuvm create` does: its entry in the manifest, its plan, and that carried out.
    Use(Box<UseArgs>),
    /// Copy a template to a file, and print the manifest's entry for it.
    Export(ExportArgs),
}

#[derive(Debug, Args)]
struct SaveArgs {
    /// The VM.
    vm: DomainName,
    /// The template's name.
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

#[derive(Debug, Args)]
struct ListArgs {
    /// What is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// The template.
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

#[derive(Debug, Args)]
struct UseArgs {
    /// The template.
    template: ResourceName,
    #[command(flatten)]
    vm: VmArgs,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The template.
    name: ResourceName,
    /// Where it is copied to; one that is there stays.
    file: PathBuf,
    /// How the entry is printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// Refused: what a recorded host has is no disk.
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
}

/// A template, with where it lies.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Template {
    name: String,
    pool: String,
    file: PathBuf,
    #[serde(flatten)]
    kept: Cached,
}

pub(super) fn run(args: &TemplateArgs, talk: Talk<'_>) -> miette::Result<u8> {
    match &args.command {
        TemplateCommand::Save(save) => {
            let there = all(save.root.as_deref())?;
            if there.iter().any(|t| t.name == save.name.as_str()) {
                return Err(miette!(
                    help = "give this one another name; which there are: gpuvm vm template list",
                    "there is a template `{}` already",
                    save.name
                ));
            }
            perform(
                save.root.as_deref(),
                Consent { yes: save.yes, ..Consent::default() },
                save.result.talk(talk),
                |_| Ok(Verb::SaveTemplate { name: save.vm.clone(), template: save.name.clone() }),
            )
        }
        TemplateCommand::List(list) => self::list(list),
        TemplateCommand::Delete(delete) => {
            find(all(delete.root.as_deref())?, &delete.name)?;
            perform(
                delete.root.as_deref(),
                Consent { yes: delete.yes, ..Consent::default() },
                delete.result.talk(talk),
                |_| Ok(Verb::DeleteTemplate { template: delete.name.clone() }),
            )
        }
        TemplateCommand::Use(of) => {
            let template = find(all(of.vm.root())?, &of.template)?;
            let file = (template.file.display().to_string(), template.kept.sha256.clone());
            let bios = matches!(template.kept.origin, Origin::Disk { bios: true, .. });
            create(&of.vm, Begins { image: &template.name, file: Some(file), bios }, false, None, talk)
        }
        TemplateCommand::Export(export) => self::export(export),
    }
}

fn find(all: Vec<Template>, name: &ResourceName) -> miette::Result<Template> {
    let names: Vec<String> = all.iter().map(|t| t.name.clone()).collect();
    all.into_iter().find(|t| t.name == name.as_str()).ok_or_else(|| {
        let help = match names.is_empty() {
            true => "this host has none; make one: gpuvm vm template save VM NAME".to_owned(),
            false => format!("there is: {}", names.join(", ")),
        };
        miette!(help = help, "there is no template `{name}`")
    })
}

/// The templates of all pools, by name.
fn all(root: Option<&Path>) -> miette::Result<Vec<Template>> {
    let (probe, _) = host::open(root)?;
    let known = vm_look::ask(probe.as_ref())?;
    let mut all = Vec::new();
    for pool in known.pools.iter().filter(|p| p.active) {
        let Some(folder) = pool.directory().map(|d| d.join(FOLDER)) else { continue };
        all.extend(of_folder(probe.as_ref(), &pool.name, &folder)?);
    }
    all.sort_by(|a, b| (&a.name, &a.pool).cmp(&(&b.name, &b.pool)));
    Ok(all)
}

fn of_folder(probe: &dyn Probe, pool: &str, folder: &Path) -> miette::Result<Vec<Template>> {
    let names = match probe.list(folder).into_diagnostic()? {
        Answer::Value(names) => names,
        Answer::Absent => return Ok(Vec::new()),
        Answer::Denied => {
            return Err(miette!(help = "run gpuvm as root", "only root may look into `{}`", folder.display()));
        }
    };
    let mut all = Vec::new();
    for name in names {
        let name = name.to_string_lossy().into_owned();
        let Some(template) = name.strip_suffix(".json").filter(|n| !n.starts_with('.')) else { continue };
        let text = probe.text(&folder.join(&name)).into_diagnostic()?.value();
        if let Some(kept) = text.as_deref().and_then(Cached::parse).filter(is_template) {
            let (name, pool) = (template.to_owned(), pool.to_owned());
            all.push(Template { name, pool, file: folder.join(&kept.file), kept });
        }
    }
    Ok(all)
}

fn list(args: &ListArgs) -> miette::Result<u8> {
    let all = all(args.root.as_deref())?;
    let line = |t: &Template| {
        let of = match &t.kept.origin {
            Origin::Disk { vm, bios: true, .. } => format!("from VM {vm}, starts by BIOS"),
            Origin::Disk { vm, .. } => format!("from VM {vm}"),
            other => other.place(),
        };
        let size = ByteSize::from_bytes(t.kept.virtual_size);
        report::safe(&format!("{}   {size}   {of}   {}", t.name, t.file.display())) + "\n"
    };
    print(&match (args.output, all.is_empty()) {
        (Output::Json, _) => vm_look::json(&serde_json::json!({ "format": 1, "templates": all }))?,
        (Output::Text, true) => "no template\n".to_owned(),
        (Output::Text, false) => all.iter().map(line).collect(),
    })?;
    Ok(code::OK)
}

fn export(args: &ExportArgs) -> miette::Result<u8> {
    if let Some(dir) = &args.root {
        return Err(miette!("`{}` is a recorded host: what it has is no disk", dir.display()));
    }
    let template = find(all(None)?, &args.name)?;
    let folder = args.file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = nix::sys::statvfs::statvfs(folder).into_diagnostic()?;
    #[allow(clippy::unnecessary_cast)] // the types differ between architectures
    let room = (free.blocks_available() as u64).saturating_mul(free.fragment_size() as u64);
    if room < template.kept.bytes {
        return Err(miette!(
            "`{}` has {} MiB free, and {} are needed; nothing was written",
            folder.display(),
            room >> 20,
            template.kept.bytes >> 20
        ));
    }
    say(&format!("{} MiB\n", template.kept.bytes >> 20));
    let copy = || {
        let mut from = std::fs::File::open(&template.file)?;
        let mut to = tempfile::NamedTempFile::new_in(folder)?;
        std::io::copy(&mut from, to.as_file_mut())?;
        to.as_file().sync_all()?;
        to.persist_noclobber(&args.file).map(drop).map_err(|e| e.error)
    };
    copy().map_err(|e: std::io::Error| miette!("`{}` could not be written: {e}", args.file.display()))?;
    let path = args.file.canonicalize().into_diagnostic()?;
    let (path, sha256) = (path.display().to_string(), &template.kept.sha256);
    print(&match args.output {
        Output::Json => vm_look::json(&serde_json::json!({
            "format": 1, "template": args.name, "path": path, "sha256": sha256, "bytes": template.kept.bytes,
        }))?,
        Output::Text => {
            let quoted = serde_json::to_string(&path).into_diagnostic()?;
            format!("images:\n  {}: {{ path: {quoted}, sha256: {sha256} }}\n", args.name)
        }
    })?;
    Ok(code::OK)
}
