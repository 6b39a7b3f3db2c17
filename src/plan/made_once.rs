//! What a VM gets when it is made and never after: a manifest that says it otherwise later changes nothing, and that is told.

use super::{Finding, Past, Severity};
use crate::desire::Desired;
use crate::host::{Answer, Probe};
use crate::resource::Wanted;
use crate::resource::libvirt_domain::LibvirtDomain;

/// Each VM that is there and was made with something else than the manifest says now.
pub(super) fn made_once(desired: &Desired, past: &Past, probe: &dyn Probe) -> Vec<Finding> {
    let pairs = desired.nodes.iter().filter_map(|(key, node)| match (&node.wanted, past.owned.get(key)?) {
        (Wanted::LibvirtDomain(vm), Wanted::LibvirtDomain(last)) if !vm.absent && !last.absent => Some((vm, last)),
        _ => None,
    });
    let others: Vec<(&LibvirtDomain, &LibvirtDomain)> =
        pairs.filter(|(vm, last)| vm.smbios != last.smbios || vm.additions != last.additions).collect();
    if others.is_empty() {
        return Vec::new();
    }
    // One that libvirt does not tell of is made yet, or not known.
    let Ok(Answer::Value(known)) = probe.virtualisation() else { return Vec::new() };
    let mut all = Vec::new();
    for (vm, last) in others {
        let Some(domain) = known.domain(vm.name.as_str()) else { continue };
        all.extend(vm.unlike_made(last, &domain.inactive_xml).into_iter().map(|field| Finding {
            severity: Severity::Warning,
            code: "made-once".to_owned(),
            place: format!("vms.{}.{field}", vm.name),
            message: format!(
                "`{field}` is put in when a VM is made, and this one was made with something else: it stays as it is"
            ),
            help: format!("write it as it was, or change it in the VM by hand too (virsh edit {})", vm.name),
        }));
    }
    all
}
