//! gpuvm itself, and its name `vmctl`: what everyday work with VMs and GPUs needs on the host. A manifest that has none of
//! these has no use for it.

use super::Desired;
use super::vms::finding;
use crate::facts::{HostFacts, Known};
use crate::manifest::{Defaults, Loaded, Manifest};
use crate::plan::Severity;
use crate::resource::program::InstalledProgram;
use crate::resource::vmctl::Vmctl;

/// Whether the manifest has gpuvm installed.
pub fn installs_program(manifest: &Manifest) -> bool {
    !because_of(manifest).is_empty()
}

/// The sections that it follows from.
fn because_of(m: &Manifest) -> Vec<&'static str> {
    if m.vmctl.as_ref().is_some_and(|vmctl| !vmctl.install) {
        return Vec::new();
    }
    let sections = [
        ("devices", !m.devices.is_empty()),
        ("gpus", !m.gpus.is_empty()),
        ("libvirt", m.libvirt.is_some()),
        ("vmctl", m.vmctl.is_some()),
        ("vms", !m.vms.is_empty()),
    ];
    sections.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired) {
    let from = because_of(&manifest.manifest).join(", ");
    let this = match &facts.myself {
        _ if from.is_empty() => return,
        // Whoever asks for no plan does not ask for this either.
        None => return,
        Some(Known::Value(this)) => this,
        Some(Known::Unknown(why)) => {
            desired.findings.push(finding(
                Severity::Error,
                "program",
                "vmctl",
                format!("this program, which is to be installed, could not be read: {why}"),
                "run it from another place, or write `vmctl: { install: false }`",
            ));
            return;
        }
    };
    let program = InstalledProgram { version: this.version.clone(), sha256: this.sha256.clone() };
    let said = manifest.manifest.vmctl.as_ref();
    let defaults = Defaults {
        manifest: match said.and_then(|v| v.manifest.as_ref()) {
            Some(path) => path.as_str().into(),
            None => std::path::absolute(&manifest.path).unwrap_or_else(|_| manifest.path.clone()),
        },
        network: said.and_then(|v| v.network.clone()),
        pool: said.and_then(|v| v.pool.clone()),
        user: said.and_then(|v| v.user.clone()),
    };
    let vmctl = Vmctl {
        program: program.clone(),
        path: Defaults::PATH.into(),
        head: Defaults::HEAD.to_owned(),
        text: defaults.text(),
        // Where a manifest lies is not what it says: of several that say the same, the first one is the default.
        first_stays: said.is_none_or(|v| v.manifest.is_none()).then(|| Defaults::MANIFEST.to_owned()),
    };
    let key = desired.want(&from, [], program);
    desired.want(&from, [key], vmctl);
}
