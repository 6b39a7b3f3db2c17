//! Definitions of VMs: gpuvm's own, and edits of them that keep what libvirt and people put there.

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use super::{domain, lookup, said};
use crate::host::HostError;
use crate::plan::TextEdit;
use crate::resource::libvirt_domain::{MARK, is_marked, with_passwords, with_uuid};
use crate::types::{DomainName, ResourceName, sha256_hex};

/// A VM of this name that gpuvm did not make is left alone, whatever a plan said.
pub(in crate::host::live) fn ours(domain: &Domain, name: &DomainName) -> Result<(), HostError> {
    let xml = domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(|e| said(&e))?;
    if is_marked(&xml) {
        return Ok(());
    }
    Err(HostError::Refused(format!("VM `{name}` was not made by gpuvm; it is left as it is")))
}

pub(super) fn define(connection: &Connect, name: &DomainName, xml: &str, autostart: bool) -> Result<(), HostError> {
    let failed = |e: Error| said(&e);
    let xml = match lookup(connection, name)? {
        None => xml.to_owned(),
        Some(there) => {
            ours(&there, name)?;
            let xml = with_uuid(xml, &there.get_uuid_string().map_err(failed)?);
            let shown = there.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(failed)?;
            whole(&there, name, &xml, &shown)?
        }
    };
    let domain = Domain::define_xml(connection, &xml).map_err(failed)?;
    start_at_boot(&domain, autostart)
}

/// A VM of this name that is there is what an earlier try made.
pub(super) fn clone(
    connection: &Connect,
    name: &DomainName,
    from: &DomainName,
    snapshot: Option<&ResourceName>,
    edit: &TextEdit,
) -> Result<(), HostError> {
    if let Some(there) = lookup(connection, name)? {
        return ours(&there, name);
    }
    let other = lookup(connection, from)?
        .ok_or_else(|| HostError::Refused(format!("there is no VM `{from}` any more; plan again")))?;
    ours(&other, from)?;
    let known = domain(&other).map_err(|e| said(&e))?;
    let definition = match snapshot {
        None => Some(known.inactive_xml),
        Some(of) => known.definition_at(of.as_str()),
    };
    let xml = definition.as_deref().and_then(|xml| edit.apply(xml)).ok_or_else(|| {
        HostError::Refused(format!("the definition of VM `{from}` changed since the plan was made; plan again"))
    })?;
    Domain::define_xml(connection, &xml).map(drop).map_err(|e| said(&e))
}

pub(super) fn restore(
    connection: &Connect,
    name: &DomainName,
    snapshot: &ResourceName,
    before: &str,
    edit: &TextEdit,
) -> Result<(), HostError> {
    let there = lookup(connection, name)?
        .ok_or_else(|| HostError::Refused(format!("there is no VM `{name}` any more; plan again")))?;
    ours(&there, name)?;
    let known = domain(&there).map_err(|e| said(&e))?;
    if known.active || sha256_hex(known.inactive_xml.as_bytes()) != before {
        return Err(HostError::Refused(format!(
            "VM `{name}` was started or changed since the plan was made; plan again"
        )));
    }
    let xml = known.definition_at(snapshot.as_str()).and_then(|xml| edit.apply(&xml)).ok_or_else(|| {
        HostError::Refused(format!("snapshot `{snapshot}` of VM `{name}` changed since the plan was made; plan again"))
    })?;
    let whole = whole(&there, name, &xml, &known.inactive_xml)?;
    Domain::define_xml(connection, &whole).map(drop).map_err(|e| said(&e))
}

pub(super) fn edit_domain(
    connection: &Connect,
    name: &DomainName,
    edit: &TextEdit,
    autostart: bool,
) -> Result<(), HostError> {
    let there = lookup(connection, name)?
        .ok_or_else(|| HostError::Refused(format!("there is no VM `{name}` to change; plan again")))?;
    ours(&there, name)?;
    let shown = there.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(|e| said(&e))?;
    let xml = edit.apply(&shown).ok_or_else(|| {
        HostError::Refused(format!("the definition of VM `{name}` changed since the plan was made; plan again"))
    })?;
    if xml == shown {
        return start_at_boot(&there, autostart);
    }
    let domain = Domain::define_xml(connection, &whole(&there, name, &xml, &shown)?).map_err(|e| said(&e))?;
    start_at_boot(&domain, autostart)
}

/// A definition with what libvirt keeps to itself, from the VM that it replaces: a plan never holds passwords.
fn whole(there: &Domain, name: &DomainName, xml: &str, shown: &str) -> Result<String, HostError> {
    let flags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
    let whole = there.get_xml_desc(flags).map_err(|e| said(&e))?;
    with_passwords(xml, shown, &whole).ok_or_else(|| {
        HostError::Refused(format!(
            "VM `{name}` has a password that would be lost; change it by hand: virsh edit {name}"
        ))
    })
}

fn start_at_boot(domain: &Domain, autostart: bool) -> Result<(), HostError> {
    if domain.get_autostart().map_err(|e| said(&e))? != autostart {
        domain.set_autostart(autostart).map_err(|e| said(&e))?;
    }
    Ok(())
}

/// The mark goes into the stored definition by libvirt's own way for metadata, so that nothing else of it is written.
pub(super) fn mark(connection: &Connect, name: &DomainName, present: bool) -> Result<(), HostError> {
    let failed = |e: Error| said(&e);
    let domain =
        lookup(connection, name)?.ok_or_else(|| HostError::Refused(format!("there is no VM `{name}` to mark")))?;
    let is = is_marked(&domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(failed)?);
    if is == present {
        return Ok(());
    }
    let (element, config) = (sys::VIR_DOMAIN_METADATA_ELEMENT, sys::VIR_DOMAIN_AFFECT_CONFIG);
    let (content, prefix) = (present.then_some("<vm/>"), present.then_some("gpuvm"));
    domain.set_metadata(element as _, content, prefix, Some(MARK), config).map(drop).map_err(failed)
}

pub(super) fn undefine(connection: &Connect, name: &DomainName, wholly: bool, keep_tpm: bool) -> Result<(), HostError> {
    let Some(domain) = lookup(connection, name)? else { return Ok(()) };
    ours(&domain, name)?;
    if domain.is_active().map_err(|e| said(&e))? {
        return Err(HostError::Refused(format!("VM `{name}` runs; shut it down first: gpuvm vm stop {name}")));
    }
    // The variables may be there though the definition does not name their file (yet).
    let nvram = sys::VIR_DOMAIN_UNDEFINE_NVRAM;
    let kept = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
    let ways = match (wholly, keep_tpm) {
        // Without the flag the state would go: a libvirt that does not know it undefines nothing.
        (true, true) => vec![nvram | kept | sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM],
        (false, true) => vec![nvram | sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM],
        // The TPM's state has a flag since libvirt 8.9; before that it goes by itself.
        (true, false) => vec![nvram | kept | sys::VIR_DOMAIN_UNDEFINE_TPM, nvram | kept, kept, 0],
        (false, false) => vec![nvram, 0],
    };
    let mut last = Ok(());
    for flags in ways {
        last = domain.undefine_flags(flags);
        match &last {
            // A driver without UEFI or snapshots does not know the flag.
            Err(e) if e.code() == ErrorNumber::InvalidArg => {}
            _ => break,
        }
    }
    last.map_err(|e| said(&e))
}
