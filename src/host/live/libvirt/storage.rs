//! Directory pools, and the disks in them: made once, grown, never shrunk.

use std::path::{Path, PathBuf};

use virt::connect::Connect;
use virt::error::Error;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::sys;

use super::{CHANGE_LIMIT, SYSTEM, collect, in_time, loaded, refresh, said, unless_gone};
use crate::host::HostError;
use crate::host::live::{Live, images};
use crate::plan::VolumeStep;
use crate::resource::chains::over;
use crate::resource::libvirt_domain::{disk_files, project};
use crate::types::{ByteSize, xml_escape};

pub(super) fn pool_xml(name: &str, path: &Path) -> String {
    // 0711: whoever knows a disk's name may reach it, as QEMU's user does; nobody may list.
    format!(
        "<pool type='dir'><name>{}</name><target><path>{}</path><permissions><mode>0711</mode></permissions></target></pool>",
        xml_escape(name),
        xml_escape(&path.to_string_lossy())
    )
}

/// `backing`: the file that it goes on in, and what that is.
pub(super) fn volume_xml(want: &VolumeStep, backing: Option<(&Path, &str)>) -> String {
    let backing = backing.map_or(String::new(), |(path, kind)| {
        format!(
            "<backingStore><path>{}</path><format type='{}'/></backingStore>",
            xml_escape(&path.to_string_lossy()),
            xml_escape(kind)
        )
    });
    format!(
        "<volume><name>{}</name><capacity unit='bytes'>{}</capacity><allocation>0</allocation>\
         <target><format type='{}'/></target>{backing}</volume>",
        xml_escape(&want.name),
        want.size.bytes(),
        xml_escape(&want.format)
    )
}

pub(super) fn make_pool(connection: &Connect, name: &str, path: &Path) -> Result<(), Error> {
    let pool = match unless_gone(StoragePool::lookup_by_name(connection, name))? {
        Some(pool) => pool,
        None => StoragePool::define_xml(connection, &pool_xml(name, path), 0)?,
    };
    if !pool.is_active()? {
        // Building sets mode and owner: a directory that is there keeps its own.
        if !path.is_dir() {
            pool.build(0)?;
        }
        pool.create(0)?;
    }
    pool.set_autostart(true)?;
    Ok(())
}

/// What a disk holds cannot come back: who needs it is asked anew, of every pool as it is on the disk by now.
pub(super) fn remove_volume(connection: &Connect, pool: &str, name: &str) -> Result<(), HostError> {
    let failed = |e: Error| said(&e);
    let Some(pool) = unless_gone(StoragePool::lookup_by_name(connection, pool)).map_err(failed)? else { return Ok(()) };
    refresh(connection)?;
    let Some(volume) = unless_gone(StorageVol::lookup_by_name(&pool, name)).map_err(failed)? else { return Ok(()) };
    let path = PathBuf::from(volume.get_path().map_err(failed)?);
    let known = collect(connection).map_err(failed)?;
    let kept = |why: String| HostError::Refused(format!("`{}` is not deleted: {why}", path.display()));
    if let Some(user) = known.user_of(&path, None) {
        return Err(kept(format!("{user} needs it")));
    }
    match over(&path, &known, &Live::for_a_run()) {
        Ok(None) => {}
        Ok(Some(over)) => return Err(kept(format!("the disk `{}` needs it", over.display()))),
        Err(why) => return Err(kept(format!("who needs it is not known: {why}"))),
    }
    volume.delete(0).map_err(failed)
}

pub(super) fn make_volume(connection: &Connect, want: &VolumeStep) -> Result<(), HostError> {
    let failed = |e: Error| said(&e);
    let pool = StoragePool::lookup_by_name(connection, want.pool.as_str()).map_err(failed)?;
    let lookup = || unless_gone(StorageVol::lookup_by_name(&pool, &want.name)).map_err(failed);
    let listed = lookup()?.is_some();
    pool.refresh(0).map_err(failed)?;
    let found = lookup()?;
    // What libvirt made, it has listed, unless it ended meanwhile: a file that only shows up now was put there by others.
    if let (false, false, Some(volume)) = (listed, want.begun, &found) {
        return Err(HostError::Refused(format!(
            "`{}` is there, and libvirt did not know of it when the plan was made; it is left as it is: plan again",
            volume.get_path().map_err(failed)?
        )));
    }
    let Some(volume) = found else {
        if want.grow {
            return Err(HostError::Refused(format!(
                "there is no volume `{}` in pool `{}` to grow",
                want.name, want.pool
            )));
        }
        let backing = match &want.image {
            None => None,
            Some(pointer) => {
                let image = images::kept(pointer)?;
                if image.virtual_size > want.size.bytes() {
                    return Err(HostError::Refused(format!(
                        "the image has {}, and disk `{}` is to have {}: it would be cut off",
                        ByteSize::from_bytes(image.virtual_size),
                        want.name,
                        want.size
                    )));
                }
                Some((pointer.with_file_name(&image.file), image.kind))
            }
        };
        let xml = volume_xml(want, backing.as_ref().map(|(path, kind)| (path.as_path(), kind.as_str())));
        return StorageVol::create_xml(&pool, &xml, 0).map(drop).map_err(failed);
    };
    let is = volume.get_info().map_err(failed)?.capacity;
    if is == want.size.bytes() {
        return Ok(());
    }
    if is > want.size.bytes() || !want.grow {
        return Err(HostError::Refused(format!(
            "volume `{}` is there with {is} bytes and not {}; it is left as it is",
            want.name,
            want.size.bytes()
        )));
    }
    let path = volume.get_path().map_err(failed)?;
    match over(Path::new(&path), &collect(connection).map_err(failed)?, &Live::for_a_run()) {
        Ok(None) => {}
        Ok(Some(over)) => {
            let over = over.display();
            return Err(HostError::Refused(format!("`{path}` is not grown: `{over}` goes on in it; plan again")));
        }
        Err(why) => {
            return Err(HostError::Refused(format!("`{path}` is not grown: who goes on in it is not known: {why}")));
        }
    }
    // QEMU holds the file of a running VM: it has to grow it itself, and tells the guest.
    for domain in connection.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE).map_err(failed)? {
        let Some(xml) = unless_gone(domain.get_xml_desc(0)).map_err(failed)? else { continue };
        if disk_files(&xml).contains(&path) {
            domain.block_resize(&path, want.size.bytes(), sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES).map_err(failed)?;
            return pool.refresh(0).map(drop).map_err(failed);
        }
    }
    volume.resize(want.size.bytes(), 0).map(drop).map_err(failed)
}

/// A block device has grown: the VM that runs with it is told. Without libvirt, or without such a VM, nothing is to do.
pub(in crate::host::live) fn device_grew(path: &Path, bytes: u64) -> Result<(), HostError> {
    if !loaded() {
        return Ok(());
    }
    let path = path.to_string_lossy().into_owned();
    in_time("telling a VM that its disk grew", CHANGE_LIMIT, move || {
        let failed = |e: Error| said(&e);
        let mut connection = Connect::open(Some(SYSTEM)).map_err(failed)?;
        for domain in connection.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE).map_err(failed)? {
            let Some(xml) = unless_gone(domain.get_xml_desc(0)).map_err(failed)? else { continue };
            if project(&xml).is_ok_and(|is| is.disks.iter().any(|d| d.first() == Some(&path))) {
                domain.block_resize(&path, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES).map_err(failed)?;
            }
        }
        let _ = connection.close();
        Ok(())
    })
}
