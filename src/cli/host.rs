//! Opens the host that a command is about: this machine, or a recorded one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use miette::miette;

use crate::desire::{self, Desired};
use crate::facts::{self, HostFacts, Known};
use crate::host::fixture::Fixture;
use crate::host::live::Live;
use crate::host::{HostError, Probe, Snapshot};
use crate::manifest::{self, Loaded};
use crate::plan::{self, Key, Past, Plan, SavedManifest, Selection};
use crate::resource::Wanted;

/// Where gpuvm keeps its state on a host.
pub const STATE: &str = "var/lib/gpuvm";

/// This machine, to look at.
pub fn live() -> Live {
    Live::for_a_plan()
}

/// A recorded host.
pub fn recorded(dir: &Path) -> miette::Result<Fixture> {
    state_of(Some(dir))?;
    Fixture::open(dir).map_err(|e| {
        miette!(help = "record a host with `gpuvm facts --record DIR`", "`{}` is no recorded host: {e}", dir.display())
    })
}

/// An error of the host's as people read it: with what to do about it, where that is known.
pub(super) fn told(error: HostError) -> miette::Report {
    match error.help() {
        Some(help) => miette!(help = help, "{error}"),
        None => miette!("{error}"),
    }
}

/// The host that is meant, to look at, and where gpuvm keeps its state on it.
pub fn open(root: Option<&Path>) -> miette::Result<(Box<dyn Probe>, PathBuf)> {
    let probe: Box<dyn Probe> = match root {
        Some(dir) => Box::new(recorded(dir)?),
        None => Box::new(live()),
    };
    Ok((probe, state_of(root)?))
}

/// Where gpuvm keeps its state on this machine or a recorded one. A record comes from others: a link in it must not lead
/// a rehearsal to this machine's own state.
pub fn state_of(root: Option<&Path>) -> miette::Result<PathBuf> {
    let Some(dir) = root else { return Ok(Path::new("/").join(STATE)) };
    let mut at = dir.join("root");
    let parts = Path::new(STATE).iter().map(Some).chain([None]);
    for part in parts {
        if at.is_symlink() {
            return Err(miette!(
                help = "a record of gpuvm's has a folder there",
                "`{}` is a link; a rehearsal does not follow it",
                at.display()
            ));
        }
        at.extend(part);
    }
    Ok(at)
}

/// The host guard: a manifest for another host is refused.
pub fn is_meant(manifest: &Loaded, probe: &dyn Probe) -> Result<(), String> {
    let hostname = facts::hostname(probe);
    match &manifest.manifest.host {
        Some(host) if host.as_str() != hostname => Err(format!(
            "`{}` is for the host `{host}`, and this is `{hostname}`; nothing was changed",
            manifest.path.display()
        )),
        _ => Ok(()),
    }
}

/// What is known of a host, with what this manifest needs beside that.
pub fn facts_for(manifest: &Loaded, probe: &dyn Probe) -> HostFacts {
    let mut facts = facts::collect(probe);
    if manifest.manifest.drivers.is_some() {
        facts.drivers = Some(facts::drivers::look(probe, &facts));
    }
    facts
}

/// One planning pass over a host as it is now.
pub fn plan_now(
    manifest: &Loaded,
    selection: &Selection,
    probe: &dyn Probe,
    past: &Past,
) -> (Plan, BTreeMap<Key, Wanted>) {
    let snapshot = Snapshot::new(probe);
    let mut facts = facts_for(manifest, &snapshot);
    past.recall(&mut facts);
    if desire::installs_program(&manifest.manifest) {
        facts.myself = Some(snapshot.myself().map_or_else(|e| Known::Unknown(e.to_string()), Known::Value));
    }
    let mut desired: Desired = desire::desire(manifest, &facts);
    let mut past = past.clone();
    let known = match selection.images {
        Some(_) => snapshot.virtualisation().ok().and_then(crate::host::Answer::value),
        None => None,
    };
    selection.narrow(&mut desired, &mut past, known.as_deref());
    let plan = plan::build(&desired, &past, &snapshot, &facts, &manifest.digest);
    (plan, desired.nodes.into_iter().map(|(key, node)| (key, node.wanted)).collect())
}

/// A manifest as a saved plan holds it.
pub fn saved_manifest(manifest: &Loaded) -> miette::Result<SavedManifest> {
    let text = |(path, bytes): (&PathBuf, &Vec<u8>)| match String::from_utf8(bytes.clone()) {
        Ok(text) => Ok((path.clone(), text)),
        Err(_) => Err(miette!("`{}` is not text in UTF-8", path.display())),
    };
    Ok(SavedManifest {
        path: std::path::absolute(&manifest.path).unwrap_or_else(|_| manifest.path.clone()),
        text: manifest.text.clone(),
        files: manifest.files.iter().map(text).collect::<miette::Result<_>>()?,
    })
}

/// The manifest of a saved plan.
pub fn restore(saved: &SavedManifest) -> Result<Loaded, manifest::LoadError> {
    let files = saved.files.iter().map(|(path, text)| (path.clone(), text.clone().into_bytes())).collect();
    manifest::reload(&saved.path, saved.text.clone(), files)
}
