//! An operating system is installed: a VM is started with another definition than the one that is stored, which libvirt
//! forgets when the VM is off again (virDomainCreateXML on a VM that is defined), and is waited for.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use super::super::{files, images};
use super::definition::ours;
use super::{CHANGE_LIMIT, START_LIMIT, SYSTEM, in_time, lookup, said};
use crate::host::{HostError, Probe, Running, not_blank};
use crate::image::{Extent, kernel_and_initrd};
use crate::plan::InstallStep;
use crate::resource::libvirt_domain::{project, with_medium, with_uuid};
use crate::types::DomainName;

/// An installer that fetches from a slow mirror, on an emulated machine, is at work for an hour.
const LIMIT: Duration = Duration::from_secs(3 * 3600);
/// How often it is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often it is told that it is at work still.
const TELL_AGAIN: Duration = Duration::from_secs(60);

fn refused(why: String) -> HostError {
    HostError::Refused(why)
}

/// Installs it. `probe` looks at the disk at the last moment.
pub fn install(step: &InstallStep, probe: &dyn Probe, running: &mut Running<'_>) -> Result<(), HostError> {
    let blank = probe.blank(&step.disk)?.value() == Some(true);
    let (own, progress) = (step.clone(), &mut *running.progress);
    let begun =
        with_libvirt(&format!("starting the installer of VM `{}`", step.name), START_LIMIT, move |connection| {
            begin(connection, &own, blank)
        })?;
    if !begun {
        running.notes.push(not_blank(&step.disk));
        return Ok(());
    }
    let name = &step.name;
    progress(&format!("its installer is at work; to look at it: gpuvm vm console {name}, or its display"));
    let (since, mut told) = (Instant::now(), Instant::now());
    loop {
        let of = name.clone();
        if let Some(how) = with_libvirt("libvirt", CHANGE_LIMIT, move |connection| ended(connection, &of))? {
            return how.map_err(|how| {
                refused(format!(
                    "the installer of VM `{name}` {how}, and its disk is not whole; to begin anew: gpuvm vm delete {name}, \
                     and apply again"
                ))
            });
        }
        if since.elapsed() >= LIMIT {
            return Err(refused(format!(
                "the installer of VM `{name}` has not turned it off within {} h: look what it says (gpuvm vm console {name}, or \
                 its display); nothing was stopped, and gpuvm apply --resume waits on",
                LIMIT.as_secs() / 3600
            )));
        }
        if told.elapsed() >= TELL_AGAIN {
            told = Instant::now();
            progress(&format!("its installer is at work, for {} min", since.elapsed().as_secs() / 60));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn with_libvirt<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce(&Connect) -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    in_time(what, limit, move || {
        let mut connection = Connect::open(Some(SYSTEM)).map_err(|e| said(&e))?;
        let result = work(&connection);
        let _ = connection.close();
        result
    })
}

/// Starts it. One that was started by an earlier try goes on; `false` where the disk is not blank.
pub(super) fn begin(connection: &Connect, step: &InstallStep, blank: bool) -> Result<bool, HostError> {
    let name = &step.name;
    let domain = lookup(connection, name)?.ok_or_else(|| refused(format!("there is no VM `{name}` to install")))?;
    ours(&domain, name)?;
    if domain.is_active().map_err(|e| said(&e))? {
        let live = domain.get_xml_desc(0).map_err(|e| said(&e))?;
        let kernel = project(&live).ok().and_then(|live| live.kernel);
        return match kernel.is_some_and(|kernel| Path::new(&kernel) == step.kernel) {
            true => Ok(true),
            false => Err(refused(format!("VM `{name}` was started since the plan was made; plan again"))),
        };
    }
    if !blank {
        return Ok(false);
    }
    let medium = step.image.with_file_name(images::kept(&step.image)?.file);
    let mut from = File::open(&medium).map_err(HostError::file(&medium))?;
    let extents = kernel_and_initrd(&mut from).map_err(|why| refused(format!("`{}`: {why}", medium.display())))?;
    for (extent, to) in extents.into_iter().zip([&step.kernel, &step.initrd]) {
        extract(&mut from, extent, to).map_err(HostError::file(to))?;
    }
    let uuid = domain.get_uuid_string().map_err(|e| said(&e))?;
    let xml = with_uuid(&with_medium(&step.xml, &step.image, &medium), &uuid);
    let started = Domain::create_xml(connection, &xml, 0).map(drop).map_err(|e| said(&e));
    // QEMU has them in memory from its start on.
    [&step.kernel, &step.initrd].into_iter().try_for_each(|path| files::remove(path))?;
    started.map(|()| true)
}

/// Whoever may start QEMU may read them, as all of the medium.
fn extract(from: &mut File, extent: Extent, to: &Path) -> std::io::Result<()> {
    // What a try that was cut off left has another owner by now, or is whole: it is made anew.
    match fs::remove_file(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::create_new(to)?;
    from.seek(SeekFrom::Start(extent.from))?;
    std::io::copy(&mut from.take(extent.length), &mut file)?;
    file.set_permissions(Permissions::from_mode(0o444))
}

/// How it ended; `None` while it runs. Turned off from inside, or asked to boot again, is as it should be.
pub(super) fn ended(connection: &Connect, name: &DomainName) -> Result<Option<Result<(), &'static str>>, HostError> {
    let Some(domain) = lookup(connection, name)? else { return Ok(Some(Err("was taken away with its VM"))) };
    if domain.is_active().map_err(|e| said(&e))? {
        return Ok(None);
    }
    let (_, reason) = domain.get_state().map_err(|e| said(&e))?;
    Ok(Some(match u32::try_from(reason) {
        Ok(sys::VIR_DOMAIN_SHUTOFF_CRASHED) => Err("crashed"),
        Ok(sys::VIR_DOMAIN_SHUTOFF_DESTROYED) => Err("had its power cut"),
        Ok(sys::VIR_DOMAIN_SHUTOFF_FAILED) => Err("could not be started"),
        _ => Ok(()),
    }))
}
