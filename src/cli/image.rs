//! `gpuvm image`: the images that disks are made from. To look at them changes nothing; to fetch and delete goes through
//! a plan like everything else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use miette::IntoDiagnostic;
use serde::Serialize;

use super::apply::{Consent, Machine, ResultArgs, Talk, approve};
use super::status::free;
use super::{Output, Target, code, host, print};
use crate::desire::{self, IMAGES};
use crate::facts;
use crate::host::{Answer, Probe, Snapshot};
use crate::image::{self, Cached, FOLDER};
use crate::manifest::{self, Loaded};
use crate::plan::{ImageTask, SavedPlan, Selection};
use crate::resource::Wanted;
use crate::resource::image::Want;
use crate::types::ResourceName;

/// Arguments of `gpuvm image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the images that are there or wanted, and the built-in names. Changes nothing.
    List {
        #[command(flatten)]
        target: Target,
        /// How it is written.
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Fetch the newest version of images that the manifest's VMs use; disks that are there stay on what they were made from.
    Pull {
        /// Which; all that its VMs use where none is named.
        names: Vec<ResourceName>,
        #[command(flatten)]
        target: Target,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        result: ResultArgs,
    },
    /// Delete images that no disk is made from and the manifest does not use.
    Prune {
        #[command(flatten)]
        target: Target,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        result: ResultArgs,
    },
}

pub(super) fn run(args: &ImageArgs, talk: Talk<'_>) -> miette::Result<u8> {
    match &args.verb {
        Verb::List { target, output } => list(target, *output),
        Verb::Pull { names, target, yes, result } => {
            // The time alone tells this asking from others.
            let asked = jiff::Timestamp::now().to_string();
            planned(target, ImageTask::Newest { names: names.clone(), asked }, *yes, result.talk(talk))
        }
        Verb::Prune { target, yes, result } => planned(target, ImageTask::Prune, *yes, result.talk(talk)),
    }
}

fn planned(target: &Target, task: ImageTask, yes: bool, talk: Talk<'_>) -> miette::Result<u8> {
    let (mut machine, mut state) = Machine::open(target.root.as_deref())?;
    free(&state, matches!(machine, Machine::This))?;
    let loaded = manifest::load(&target.file)?;
    let live = host::live();
    if let Err(other) = host::is_meant(&loaded, machine.probe(&live)) {
        return talk.result(None, code::REFUSED, &format!("{other}\n"));
    }
    let selection = Selection { images: Some(task), ..Selection::default() };
    let (plan, _) = host::plan_now(&loaded, &selection, machine.probe(&live), &state.past().into_diagnostic()?);
    let order = SavedPlan::new(plan, selection, host::saved_manifest(&loaded)?);
    approve(order.into(), &mut machine, &mut state, Consent { yes, reboot: false, at: None }, talk, || Ok(()))
}

/// An image in a pool, there or wanted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    pool: String,
    /// Left out where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<Cached>,
    /// The VMs of the manifest that are made from it.
    wanted_by: BTreeSet<String>,
    /// The disks that go on in its file; left out where libvirt does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    disks: Option<Vec<String>>,
}

fn list(target: &Target, output: Output) -> miette::Result<u8> {
    let (probe, _) = host::open(target.root.as_deref())?;
    let loaded = match target.file.exists() || target.file != Path::new("host.yaml") {
        true => manifest::load(&target.file)?,
        // The images that are there can be looked at without one.
        false => manifest::reload(&target.file, "version: 1\n".to_owned(), BTreeMap::new())?,
    };
    let all = collect(&loaded, probe.as_ref())?;
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&all).into_diagnostic()? + "\n",
        Output::Text => text(&all),
    };
    print(&text)?;
    Ok(code::OK)
}

fn collect(loaded: &Loaded, probe: &dyn Probe) -> miette::Result<Vec<Listed>> {
    let snapshot = Snapshot::new(probe);
    let facts = facts::collect(&snapshot);
    let desired = desire::desire(loaded, &facts);
    let mut pools: BTreeMap<String, PathBuf> = BTreeMap::from([("default".to_owned(), IMAGES.into())]);
    let mut all: BTreeMap<(String, String), Listed> = BTreeMap::new();
    let mut at = |pool: &str, name: &str, change: &mut dyn FnMut(&mut Listed)| {
        let new = || Listed {
            name: name.to_owned(),
            pool: pool.to_owned(),
            kept: None,
            wanted_by: BTreeSet::new(),
            disks: None,
        };
        change(all.entry((name.to_owned(), pool.to_owned())).or_insert_with(new));
    };
    for node in desired.nodes.values() {
        match &node.wanted {
            Wanted::Pool(pool) => _ = pools.insert(pool.name.to_string(), pool.path.clone()),
            Wanted::Image(wanted) => {
                if let Want::Kept { name, .. } = &wanted.want {
                    at(wanted.pool.as_str(), name.as_str(), &mut |_| {});
                }
            }
            Wanted::Volume(volume) => {
                if let (Some(image), Some(vm)) = (&volume.image, &volume.vm) {
                    at(volume.pool.as_str(), image.name.as_str(), &mut |l| _ = l.wanted_by.insert(vm.to_string()));
                }
            }
            _ => {}
        }
    }
    let known = snapshot.virtualisation().map_err(host::told)?.value();
    for (pool, directory) in &pools {
        let folder = directory.join(FOLDER);
        let names = match snapshot.list(&folder).into_diagnostic()? {
            Answer::Value(names) => names,
            Answer::Absent => continue,
            // Whoever may not list may still read what has a known name.
            Answer::Denied => all_names(&desired).into_iter().map(|n| format!("{n}.json").into()).collect(),
        };
        for name in names {
            let name = name.to_string_lossy();
            let Some(name) = name.strip_suffix(".json").filter(|n| !n.starts_with('.')) else { continue };
            let text = snapshot.text(&image::pointer(directory, name)).into_diagnostic()?.value();
            let Some(kept) = text.as_deref().and_then(Cached::parse) else { continue };
            let file = folder.join(&kept.file);
            let disks = known.as_ref().map(|known| {
                let volumes = known.pools.iter().flat_map(|p| p.volumes.iter().map(move |v| (p, v)));
                let of = volumes.filter(|(_, v)| v.backing.as_deref() == Some(&file));
                of.map(|(p, v)| format!("{}/{}", p.name, v.name)).collect()
            });
            at(pool, name, &mut |l| (l.kept, l.disks) = (Some(kept.clone()), disks.clone()));
        }
    }
    Ok(all.into_values().collect())
}

fn all_names(desired: &desire::Desired) -> BTreeSet<String> {
    let of = |w: &Wanted| match w {
        Wanted::Volume(volume) => volume.image.as_ref().map(|i| i.name.to_string()),
        _ => None,
    };
    desired.nodes.values().filter_map(|n| of(&n.wanted)).collect()
}

fn text(all: &[Listed]) -> String {
    let mut rows: Vec<[String; 4]> = Vec::new();
    for one in all {
        let vms = one.wanted_by.iter().cloned().collect::<Vec<_>>().join(", ");
        let vms = if vms.is_empty() { String::new() } else { format!("for {vms}") };
        let state = match &one.kept {
            None => "not fetched".to_owned(),
            Some(kept) => {
                let version =
                    kept.version.clone().unwrap_or_else(|| kept.sha256.get(..12).unwrap_or_default().to_owned());
                format!("{version}, {} MiB", kept.bytes >> 20)
            }
        };
        let disks = match one.disks.as_deref() {
            Some([]) => "no disk".to_owned(),
            Some([one]) => one.clone(),
            Some(many) => format!("{} disks", many.len()),
            None => String::new(),
        };
        let place = format!("in {}", one.pool);
        rows.push([
            one.name.clone(),
            state,
            place,
            [disks, vms].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(", "),
        ]);
    }
    let width = |n: usize| rows.iter().map(|r| r[n].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut out = String::new();
    for [name, state, place, used] in &rows {
        let line =
            format!("{name:w0$}  {state:w1$}  {place:w2$}  {used}", w0 = widths[0], w1 = widths[1], w2 = widths[2]);
        out += line.trim_end();
        out.push('\n');
    }
    if !rows.is_empty() {
        out.push('\n');
    }
    out + &format!("built in: {}, and Ubuntu's other releases by number\n", image::names().join(", "))
}
