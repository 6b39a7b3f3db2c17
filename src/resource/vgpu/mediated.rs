//! Mediated devices of a card, as sysfs has them: `mdev_supported_types` of the function that offers them, and a folder below
//! it for each that is made (the kernel's Documentation/driver-api/vfio-mediated-device.rst; NVIDIA's Virtual GPU Software User
//! Guide, "NVIDIA vGPU Information in the sysfs File System").

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::libvirt::ask;
use super::super::libvirt_domain::project;
use super::there;
use crate::host::{Answer, HostError, Probe};
use crate::types::{MdevUuid, PciAddress};

/// All mediated devices of the host, each a link to its folder.
pub const DEVICES: &str = "/sys/bus/mdev/devices";

/// One that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The function that it is on.
    pub on: PciAddress,
    /// Its type, as the driver names it (`GRID T4-2Q`); empty where it does not tell.
    pub vgpu_type: String,
}

fn folder(function: PciAddress) -> PathBuf {
    format!("/sys/bus/pci/devices/{function}").into()
}

/// Those on a card: on its own function, and on its virtual ones.
pub fn made(physical: PciAddress, host: &dyn Probe) -> BTreeMap<MdevUuid, Made> {
    let mut all = BTreeMap::new();
    for on in [physical].into_iter().chain(there(physical, host).into_values()) {
        let names = host.list(&folder(on)).ok().and_then(Answer::value).unwrap_or_default();
        for uuid in names.iter().filter_map(|n| n.to_str()?.parse::<MdevUuid>().ok()) {
            let name =
                host.text(&folder(on).join(uuid.to_string()).join("mdev_type/name")).ok().and_then(Answer::value);
            all.insert(uuid, Made { on, vgpu_type: name.unwrap_or_default().trim().to_owned() });
        }
    }
    all
}

/// The types that a function offers, each with whether one more can be made; `None` where it offers no mediated devices.
pub(super) fn offered(function: PciAddress, host: &dyn Probe) -> Result<Option<Vec<(String, bool)>>, HostError> {
    let at = folder(function).join("mdev_supported_types");
    let Some(types) = host.list(&at)?.value().filter(|types| !types.is_empty()) else { return Ok(None) };
    let mut all = Vec::new();
    for one in types {
        let text = |file: &str| Ok::<_, HostError>(host.text(&at.join(&one).join(file))?.value().unwrap_or_default());
        let left = text("available_instances")?.trim().parse::<u32>().unwrap_or_default();
        all.push((text("name")?.trim().to_owned(), left > 0));
    }
    Ok(Some(all))
}

/// Who has one, or may have. `None` is known to be nobody.
pub(super) fn held(uuid: MdevUuid, host: &dyn Probe) -> Option<String> {
    match ask(host) {
        Ok(Answer::Value(known)) => {
            for domain in known.domains.iter().filter(|d| d.active) {
                match project(domain.live_xml.as_deref().unwrap_or(&domain.inactive_xml)) {
                    Ok(is) if is.mediated().any(|m| m == uuid) => {
                        return Some(format!("VM `{}` has one of them", domain.name));
                    }
                    Ok(_) => {}
                    Err(why) => return Some(format!("VM `{}` cannot be read: {why}", domain.name)),
                }
            }
        }
        Ok(Answer::Absent) => {}
        Ok(Answer::Denied) => return Some("libvirt may not be asked (not root)".to_owned()),
        Err(e) => return Some(format!("whether a VM has one of them is not known: {e}")),
    }
    let users = match host.device_users() {
        Ok(users) => users,
        Err(e) => return Some(format!("who has it open is not known: {e}")),
    };
    let group = host.link(&PathBuf::from(DEVICES).join(uuid.to_string()).join("iommu_group")).ok();
    let node = group.and_then(Answer::value).and_then(|g| Some(PathBuf::from("/dev/vfio").join(g.file_name()?)));
    let holder = users.users.iter().find(|u| node.as_ref().is_some_and(|node| u.nodes.contains(node)));
    let holder = holder.map(|u| format!("{} (pid {}) has it open", u.name, u.pid));
    holder.or_else(|| users.hidden.as_ref().map(|why| format!("not all who may have it open could be seen: {why}")))
}

#[cfg(test)]
mod tests;
