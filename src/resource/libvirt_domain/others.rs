//! Which running VMs have a device that a definition lists: a device is in one running VM at a time, and libvirt refuses
//! the start of a second one.

use std::collections::BTreeSet;

use super::project;
use crate::host::Virtualisation;

/// The running VMs that have a device of this definition, which is of the VM `name`, each with one such device. Virtual
/// functions of one card share a slot, and go each its own way. An error says which definition cannot be read.
pub fn others_with_its_devices<'a>(
    name: &str,
    xml: &str,
    known: &'a Virtualisation,
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
        let function = has.0.intersection(&functions).next().map(|f| format!("device {f}"));
        let vgpu = || has.1.intersection(&vgpus).next().map(|uuid| format!("vGPU {uuid}"));
        all.extend(function.or_else(vgpu).map(|device| (other.name.as_str(), device)));
    }
    Ok(all)
}
