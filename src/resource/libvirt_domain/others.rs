//! Which running VMs have a device that a definition lists: a device is in one running VM at a time, and libvirt refuses
//! the start of a second one.

use std::collections::BTreeSet;

use super::project;
use crate::facts::HostFacts;
use crate::host::Virtualisation;

/// The running VMs that have a device of this definition, which is of the VM `name`, each with one such device, or, where
/// facts tell the groups, one of an IOMMU group of its devices, which goes to one VM at a time. Virtual functions of one card
/// share a slot, and go each its own way. An error says which definition cannot be read.
pub fn others_with_its_devices<'a>(
    name: &str,
    xml: &str,
    known: &'a Virtualisation,
    facts: Option<&HostFacts>,
) -> Result<Vec<(&'a str, String)>, String> {
    let devices = |name: &str, xml: &str| {
        let is = project(xml).map_err(|why| format!("the definition of VM `{name}` cannot be read: {why}"))?;
        let vgpus: BTreeSet<_> = is.mediated().collect();
        Ok::<_, String>((is.functions.into_iter().collect::<BTreeSet<_>>(), vgpus))
    };
    let (functions, vgpus) = devices(name, xml)?;
    let mut all = Vec::new();
    if functions.is_empty() && vgpus.is_empty() {
        return Ok(all);
    }
    for other in known.domains.iter().filter(|d| d.active && d.name != name) {
        let has = devices(&other.name, other.live_xml.as_deref().unwrap_or(&other.inactive_xml))?;
        let function = has.0.intersection(&functions).next().map(|f| format!("its device {f}"));
        let vgpu = || has.1.intersection(&vgpus).next().map(|uuid| format!("its vGPU {uuid}"));
        let group = || {
            let (f, group, own) = has.0.iter().find_map(|f| {
                let own = functions.iter().find_map(|own| Some((facts?.shared_group(*f, *own)?, own)));
                own.map(|(group, own)| (f, group, own))
            })?;
            Some(format!("{f} of IOMMU group {group}, which goes to one VM at a time and has {own} of this one too"))
        };
        all.extend(function.or_else(vgpu).or_else(group).map(|device| (other.name.as_str(), device)));
    }
    Ok(all)
}
