//! The host's devices go into a running VM and out of it: the whole card or nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use super::definition::ours;
use super::{LOOK_AGAIN, UNPLUG_LIMIT, lookup, said};
use crate::host::HostError;
use crate::resource::libvirt_domain::{passed_function, project};
use crate::types::{DomainName, PciAddress};

/// The passed functions of a running VM.
fn passed(domain: &Domain) -> Result<BTreeSet<PciAddress>, HostError> {
    let xml = domain.get_xml_desc(0).map_err(|e| said(&e))?;
    project(&xml).map(|p| p.functions).map_err(HostError::Libvirt)
}

/// The host function that an element passes.
fn function_of(device: &str) -> Result<PciAddress, HostError> {
    passed_function(device).ok_or_else(|| HostError::Refused(format!("this passes no device of the host: {device}")))
}

fn running(connection: &Connect, name: &DomainName) -> Result<Domain, HostError> {
    let domain = lookup(connection, name)?.ok_or_else(|| HostError::Refused(format!("there is no VM `{name}`")))?;
    ours(&domain, name)?;
    Ok(domain)
}

/// One by one, since libvirt plugs whole guest slots only; what it took goes back where it refuses another.
pub(super) fn attach(connection: &Connect, name: &DomainName, devices: &[String]) -> Result<(), HostError> {
    let domain = running(connection, name)?;
    let there = passed(&domain)?;
    let mut taken = Vec::new();
    for device in devices {
        if there.contains(&function_of(device)?) {
            continue;
        }
        if let Err(e) = domain.attach_device_flags(device, sys::VIR_DOMAIN_AFFECT_LIVE) {
            if let Err(e) = detach(connection, name, &taken, UNPLUG_LIMIT) {
                tracing::error!("VM `{name}` keeps a part of the card: {e}");
            }
            return Err(said(&e));
        }
        taken.push(device.clone());
    }
    Ok(())
}

/// libvirt's call returns before the guest has let go: what counts is that the device has left the running definition.
pub(super) fn detach(
    connection: &Connect,
    name: &DomainName,
    devices: &[String],
    limit: Duration,
) -> Result<(), HostError> {
    let domain = running(connection, name)?;
    let there = passed(&domain)?;
    let mut leaving = BTreeSet::new();
    for device in devices {
        let function = function_of(device)?;
        if there.contains(&function) {
            domain.detach_device_flags(device, sys::VIR_DOMAIN_AFFECT_LIVE).map_err(|e| said(&e))?;
            leaving.insert(function);
        }
    }
    let begun = Instant::now();
    loop {
        let there = passed(&domain)?;
        let Some(left) = leaving.iter().find(|f| there.contains(f)) else { return Ok(()) };
        if begun.elapsed() >= limit {
            // The whole card or nothing: what the guest has let go of goes back into it.
            let gone = devices.iter().filter(|d| function_of(d).is_ok_and(|f| !there.contains(&f)));
            for device in gone {
                if let Err(e) = domain.attach_device_flags(device, sys::VIR_DOMAIN_AFFECT_LIVE) {
                    tracing::error!("VM `{name}` has a part of the card only: {}", e.message());
                }
            }
            return Err(HostError::Refused(format!(
                "the guest of VM `{name}` did not let go of {left} within {} s; stop what uses it there, and try again",
                limit.as_secs()
            )));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
