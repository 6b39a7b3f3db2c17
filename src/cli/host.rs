//! Opens the host that a command is about: this machine, or a recorded one.

use std::collections::BTreeMap;
use std::path::Path;

use miette::miette;

use crate::desire::{self, Desired};
use crate::facts::{self, HostFacts};
use crate::host::fixture::Fixture;
use crate::host::live::Live;
use crate::host::{Probe, Snapshot};
use crate::manifest::Loaded;
use crate::plan::{self, Key, Past, Plan};
use crate::resource::Wanted;

/// Where gpuvm keeps its state on a host.
pub const STATE: &str = "var/lib/gpuvm";

/// This machine, to look at.
pub fn live() -> Live {
    Live::new(crate::vm::libvirt::read)
}

/// A recorded host.
pub fn recorded(dir: &Path) -> miette::Result<Fixture> {
    Fixture::open(dir).map_err(|e| {
        miette!(help = "record a host with `gpuvm facts --record DIR`", "`{}` is no recorded host: {e}", dir.display())
    })
}

/// The host guard: a manifest for another host is refused.
pub fn is_meant(manifest: &Loaded, facts: &HostFacts) -> Result<(), String> {
    match &manifest.manifest.host {
        Some(host) if host.as_str() != facts.hostname => Err(format!(
            "`{}` is for the host `{host}`, and this is `{}`; nothing was changed",
            manifest.path.display(),
            facts.hostname
        )),
        _ => Ok(()),
    }
}

/// One planning pass over a host as it is now.
pub fn plan_now(manifest: &Loaded, probe: &dyn Probe, past: &Past) -> (Plan, BTreeMap<Key, Wanted>) {
    let snapshot = Snapshot::new(probe);
    let facts = facts::collect(&snapshot);
    let desired: Desired = desire::desire(manifest, &facts);
    let plan = plan::build(&desired, past, &snapshot, &facts, &manifest.digest);
    (plan, desired.nodes.into_iter().map(|(key, node)| (key, node.wanted)).collect())
}
