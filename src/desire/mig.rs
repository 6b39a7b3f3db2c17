//! `gpus.NAME.mig`: which card is cut into instances for containers, and what makes them at boot.

use super::Desired;
use super::gpus::{resolve, scripts, vouched};
use super::vms::finding;
use crate::facts::HostFacts;
use crate::gpu::architecture::NVIDIA;
use crate::manifest::{ContainerRuntime, DeviceUse, Loaded};
use crate::plan::{Key, Severity};
use crate::resource::vfio_binding::Card;
use crate::resource::{mig, mig::Mig};

pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired) {
    let m = &manifest.manifest;
    let nvidia = m.drivers.as_ref().and_then(|d| d.nvidia.as_ref());
    let cdi = nvidia
        .is_some_and(|n| n.containers.iter().any(|c| matches!(c, ContainerRuntime::Podman | ContainerRuntime::Cdi)));
    let mut parts = Vec::new();
    for (name, entry) in &m.gpus {
        let Some(profiles) = entry.mig.as_ref().filter(|_| entry.usage == DeviceUse::Host) else { continue };
        // A GPU that is not found has its finding.
        let Ok(slot) = resolve(entry, true, facts) else { continue };
        let place = format!("gpus.{name}.mig");
        let Some(physical) = facts.slot(slot).find(|f| f.is_gpu()) else { continue };
        if physical.id.vendor != NVIDIA {
            let message = format!("{} ({}) is not NVIDIA's, and has no MIG", physical.address, physical.name);
            desired.findings.push(finding(Severity::Error, "no-mig", &place, message, "take `mig` out"));
            continue;
        }
        if parts.is_empty() {
            parts = scripts("mig", mig::SCRIPT, &[mig::UNIT], desired);
        }
        let needs = parts.iter().cloned().chain(nvidia.map(|_| Key::new("driver", "nvidia")));
        let all = Mig {
            name: name.clone(),
            physical: physical.address,
            id: physical.id,
            pattern: physical.path_pattern().unwrap_or_else(|| "*".to_owned()),
            card: Card::of(facts, slot),
            vouched: vouched(entry),
            profiles: profiles.iter().map(ToString::to_string).collect(),
            with_driver: nvidia.is_some(),
            cdi,
        };
        desired.want(&place, needs, all);
    }
}
