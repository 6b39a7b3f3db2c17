//! libvirt's system connection: what it knows, read once in a pass, and the steps that change it.
//!
//! The library is opened at run time (virt-lazy), so that gpuvm starts where it is not installed yet. Everything is
//! done in a thread that can be left behind: a daemon that hangs must not hang a plan.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Once, mpsc};
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber, clear_error_callback};
use virt::network::Network;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::sys;

use super::snapshots;
use crate::host::{
    self, Answer, GuestAgent, GuestInterface, HostError, Running, SHUTDOWN_PATIENCE_S, Virtualisation,
    did_not_shut_down, power_was_cut,
};
use crate::plan::{Step, TextEdit, VolumeStep};
use crate::resource::chains::over;
use crate::resource::libvirt_domain::{
    MARK, disk_files, is_marked, passed_function, project, with_passwords, with_uuid,
};
use crate::types::{DomainName, PciAddress, ResourceName, sha256_hex, xml_escape};

pub(super) const SYSTEM: &str = "qemu:///system";

/// The sockets of the one daemon and of the one for QEMU: without either, nothing answers.
const SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];

/// A definition, a pool, a volume.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);
/// A VM with a device has all of its memory pinned before it starts.
const START_LIMIT: Duration = Duration::from_secs(600);
/// As much as the guest wrote since a snapshot goes from one file into another.
const COMMIT_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How long a guest may take to let go of a device.
const UNPLUG_LIMIT: Duration = Duration::from_secs(60);
/// How often a guest that shuts down or lets go is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A guest that is still on its way up does not hear it: it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(15);

pub(super) fn said(error: &Error) -> HostError {
    HostError::Libvirt(error.message().to_owned())
}

/// Does something in a thread, and leaves it behind where it takes too long.
fn in_time<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    match result.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(HostError::Timeout { what: what.to_owned(), limit }),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(HostError::Libvirt(format!("{what}: it ended without an answer")))
        }
    }
}

/// Opens the library; `false` where it is not installed. What is installed while gpuvm runs is found too.
pub(super) fn loaded() -> bool {
    static QUIET: Once = Once::new();
    let loaded = virt_lazy::retry().is_ok();
    if loaded {
        // libvirt would print every error to stderr itself.
        QUIET.call_once(clear_error_callback);
    }
    loaded
}

/// Everything that libvirt knows, unless it takes longer than this to say it.
pub(super) fn read(limit: Duration) -> Result<Answer<Virtualisation>, HostError> {
    if !SOCKETS.iter().any(|s| Path::new(s).exists()) || !loaded() {
        return Ok(Answer::Absent);
    }
    in_time("libvirt", limit, || {
        // Read-only: the daemon itself refuses a change then, and people who may not change may look.
        match Connect::open_read_only(Some(SYSTEM)) {
            Ok(mut connection) => {
                let known = collect(&connection).map_err(|e| said(&e));
                let _ = connection.close();
                known.map(Answer::Value)
            }
            Err(e) => refused(&e).map_or_else(|| Err(said(&e)), Ok),
        }
    })
}

/// Everything that libvirt knows, after it has looked into each of its pools once more.
pub(super) fn looked_anew() -> Result<Virtualisation, HostError> {
    if !loaded() {
        return Err(HostError::Libvirt("libvirt.so.0 is not installed; install libvirt0".to_owned()));
    }
    in_time("libvirt", CHANGE_LIMIT, || {
        let mut connection = Connect::open(Some(SYSTEM)).map_err(|e| said(&e))?;
        let known = refresh(&connection).and_then(|()| collect(&connection).map_err(|e| said(&e)));
        let _ = connection.close();
        known
    })
}

/// libvirt looks into a pool when it is started, and then only when it is told to.
pub(super) fn refresh(connection: &Connect) -> Result<(), HostError> {
    let started = connection.list_all_storage_pools(sys::VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE);
    for pool in started.map_err(|e| said(&e))? {
        pool.refresh(0).map_err(|e| said(&e))?;
    }
    Ok(())
}

/// What the agent inside a guest says. It needs a connection that may change things: the daemon says so.
pub(super) fn ask_agent(vm: &DomainName, limit: Duration) -> Result<Answer<GuestAgent>, HostError> {
    if !SOCKETS.iter().any(|s| Path::new(s).exists()) || !loaded() {
        return Ok(Answer::Absent);
    }
    let vm = vm.clone();
    in_time(&format!("the guest agent of `{vm}`"), limit, move || {
        let mut connection = match Connect::open(Some(SYSTEM)) {
            Ok(connection) => connection,
            Err(e) => return refused(&e).map_or_else(|| Err(said(&e)), Ok),
        };
        let answer = match lookup(&connection, &vm)? {
            None => Ok(Answer::Absent),
            Some(domain) => match virt_lazy::agent_interfaces(&domain) {
                Some(all) => Ok(Answer::Value(agent(all))),
                None => match Error::last_error() {
                    // It was there a moment ago, or the guest is still on its way up.
                    e if matches!(
                        e.code(),
                        ErrorNumber::AgentUnresponsive | ErrorNumber::AgentUnsynced | ErrorNumber::OperationInvalid
                    ) =>
                    {
                        Ok(Answer::Absent)
                    }
                    e => Err(said(&e)),
                },
            },
        };
        let _ = connection.close();
        answer
    })
}

fn agent(all: Vec<virt_lazy::Interface>) -> GuestAgent {
    let interface = |i: virt_lazy::Interface| GuestInterface { name: i.name, mac: i.hardware, addresses: i.addresses };
    GuestAgent { interfaces: all.into_iter().map(interface).collect() }
}

/// A failure to connect that is an answer.
fn refused<T>(error: &Error) -> Option<Answer<T>> {
    let text = error.message();
    match error.code() {
        ErrorNumber::AccessDenied | ErrorNumber::AuthFailed | ErrorNumber::AuthUnavailable => Some(Answer::Denied),
        _ if text.contains("Permission denied") => Some(Answer::Denied),
        _ if text.contains("No such file or directory") => Some(Answer::Absent),
        _ => None,
    }
}

/// What vanished while it was asked about is not there.
fn unless_gone<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    use ErrorNumber::{NoDomain, NoNetwork, NoStoragePool, NoStorageVolume};
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.code(), NoDomain | NoNetwork | NoStoragePool | NoStorageVolume) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn collect(connection: &Connect) -> Result<Virtualisation, Error> {
    let mut known = Virtualisation {
        version: u64::from(connection.get_lib_version()?),
        // Its capabilities are not asked for: to tell them, libvirt starts every QEMU that is installed.
        ..Virtualisation::default()
    };
    for one in connection.list_all_domains(0)? {
        known.domains.extend(unless_gone(domain(&one))?);
    }
    for one in connection.list_all_storage_pools(0)? {
        known.pools.extend(unless_gone(pool(&one))?);
    }
    for one in connection.list_all_networks(0)? {
        known.networks.extend(unless_gone(network(&one))?);
    }
    known.domains.sort_by(|a, b| a.name.cmp(&b.name));
    known.pools.sort_by(|a, b| a.name.cmp(&b.name));
    known.networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(known)
}

fn domain(one: &Domain) -> Result<host::Domain, Error> {
    let (active, persistent) = (one.is_active()?, one.is_persistent()?);
    let (state, reason) = one.get_state()?;
    let saved = persistent && !active && one.has_managed_save(0)?;
    Ok(host::Domain {
        name: one.get_name()?,
        uuid: one.get_uuid_string()?,
        active,
        id: one.get_id().filter(|_| active),
        paused: active && matches!(state, sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED),
        // After a boot of the host libvirt does not say any more how a VM came to be off.
        condition: condition(state, reason).or(saved.then_some(MEMORY_SAVED)).map(str::to_owned),
        saved,
        persistent,
        autostart: persistent && one.get_autostart()?,
        // Never with VIR_DOMAIN_XML_SECURE: passwords stay where they are.
        inactive_xml: one.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?,
        live_xml: if active { Some(one.get_xml_desc(0)?) } else { None },
        snapshots: snapshots::of(one)?,
    })
}

const MEMORY_SAVED: &str = "its memory is saved, and the next start goes on from there";

/// Why a VM stands still or ended, where that is worth telling: not what a person did to it.
fn condition(state: sys::virDomainState, reason: i32) -> Option<&'static str> {
    let reason = u32::try_from(reason).ok()?;
    match state {
        sys::VIR_DOMAIN_PAUSED => match reason {
            sys::VIR_DOMAIN_PAUSED_IOERROR => Some("a disk failed, or its pool is full"),
            sys::VIR_DOMAIN_PAUSED_WATCHDOG => Some("its watchdog halted it"),
            sys::VIR_DOMAIN_PAUSED_CRASHED => Some("its guest crashed"),
            sys::VIR_DOMAIN_PAUSED_SAVE | sys::VIR_DOMAIN_PAUSED_DUMP => Some("its memory is being saved"),
            sys::VIR_DOMAIN_PAUSED_SNAPSHOT => Some("a snapshot is being made"),
            sys::VIR_DOMAIN_PAUSED_MIGRATION => Some("it is being moved to another host"),
            _ => None,
        },
        sys::VIR_DOMAIN_PMSUSPENDED => Some("its guest sleeps"),
        sys::VIR_DOMAIN_SHUTDOWN => Some("it is shutting down"),
        sys::VIR_DOMAIN_CRASHED => Some("its guest crashed"),
        sys::VIR_DOMAIN_SHUTOFF => match reason {
            sys::VIR_DOMAIN_SHUTOFF_CRASHED => Some("it crashed"),
            sys::VIR_DOMAIN_SHUTOFF_FAILED => Some("it could not be started"),
            sys::VIR_DOMAIN_SHUTOFF_SAVED => Some(MEMORY_SAVED),
            _ => None,
        },
        _ => None,
    }
}

fn pool(one: &StoragePool) -> Result<host::Pool, Error> {
    let active = one.is_active()?;
    let mut volumes = Vec::new();
    for volume in if active { one.list_all_volumes(0)? } else { Vec::new() } {
        volumes.extend(unless_gone(self::volume(&volume))?);
    }
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(host::Pool {
        name: one.get_name()?,
        active,
        autostart: one.get_autostart()?,
        xml: one.get_xml_desc(0)?,
        available: if active { Some(one.get_info()?.available) } else { None },
        volumes,
    })
}

fn volume(one: &StorageVol) -> Result<host::Volume, Error> {
    let xml = one.get_xml_desc(0)?;
    let doc = roxmltree::Document::parse(&xml).ok();
    // The format of what backs it stands in its own element.
    let of = |parent: &str, name: &str| {
        let parent = doc.as_ref()?.root_element().children().find(|n| n.has_tag_name(parent))?;
        parent.children().find(|n| n.has_tag_name(name))
    };
    let format = of("target", "format").and_then(|f| f.attribute("type")).map(str::to_owned);
    let backing = of("backingStore", "path").and_then(|p| p.text()).map(|p| PathBuf::from(p.trim()));
    Ok(host::Volume {
        name: one.get_name()?,
        path: PathBuf::from(one.get_path()?),
        format: format.unwrap_or_else(|| "unknown".to_owned()),
        capacity: one.get_info()?.capacity,
        backing,
    })
}

fn network(one: &Network) -> Result<host::Network, Error> {
    Ok(host::Network {
        name: one.get_name()?,
        active: one.is_active()?,
        autostart: one.get_autostart()?,
        xml: one.get_xml_desc(0)?,
    })
}

/// Carries out a step of libvirt's.
pub fn execute(step: &Step, running: &mut Running<'_>) -> Result<(), HostError> {
    if !loaded() {
        return Err(HostError::Libvirt("libvirt.so.0 is not installed; install libvirt0".to_owned()));
    }
    let (what, limit) = match step {
        Step::StartDomain { name } => (format!("starting VM `{name}`"), START_LIMIT),
        Step::StopDomain { name, patience_s, .. } => {
            let patience = patience_s.unwrap_or(SHUTDOWN_PATIENCE_S);
            if patience > 0 {
                (running.progress)(&format!("{name} is asked to shut down; this waits up to {patience} s"));
            }
            (format!("shutting VM `{name}` down"), Duration::from_secs(patience.into()) + CHANGE_LIMIT)
        }
        Step::AttachDevices { name, .. } => (format!("plugging devices into VM `{name}`"), START_LIMIT),
        Step::DetachDevices { name, .. } => {
            (running.progress)(&format!("the guest of {name} is asked to let go"));
            (format!("unplugging devices from VM `{name}`"), UNPLUG_LIMIT + CHANGE_LIMIT)
        }
        Step::MakeSnapshot(step) => (format!("the snapshot of VM `{}`", step.name), START_LIMIT),
        Step::CommitLayer { top, .. } => {
            (running.progress)("QEMU puts the layers together; this may take a while");
            (format!("merging `{}`", top.display()), COMMIT_LIMIT)
        }
        _ => ("libvirt".to_owned(), CHANGE_LIMIT),
    };
    let step = step.clone();
    in_time(&what, limit, move || {
        let mut connection = Connect::open(Some(SYSTEM)).map_err(|e| said(&e))?;
        let mut notes = Vec::new();
        let result = perform(&connection, &step, &mut notes);
        let _ = connection.close();
        result.map(|()| notes)
    })
    .map(|notes| running.notes.extend(notes))
}

fn perform(connection: &Connect, step: &Step, notes: &mut Vec<String>) -> Result<(), HostError> {
    match step {
        Step::Pool { name, path } => make_pool(connection, name.as_str(), path).map_err(|e| said(&e)),
        Step::RemovePool { name } => {
            let remove = || {
                let Some(pool) = unless_gone(StoragePool::lookup_by_name(connection, name.as_str()))? else {
                    return Ok(());
                };
                if pool.is_active()? {
                    pool.destroy()?;
                }
                pool.undefine()
            };
            remove().map_err(|e| said(&e))
        }
        Step::RemoveVolume { pool, name } => remove_volume(connection, pool.as_str(), name),
        Step::Network { name, active, autostart } => {
            let set = || {
                let network = Network::lookup_by_name(connection, name.as_str())?;
                match (network.is_active()?, active) {
                    (false, true) => drop(network.create()?),
                    (true, false) => network.destroy()?,
                    _ => {}
                }
                network.set_autostart(*autostart)
            };
            set().map(drop).map_err(|e| said(&e))
        }
        Step::Volume(volume) => make_volume(connection, volume),
        Step::DefineDomain { name, xml, autostart } => define(connection, name, xml, *autostart),
        Step::CloneDomain { name, from, snapshot, edit } => clone(connection, name, from, snapshot.as_ref(), edit),
        Step::RestoreDomain { name, snapshot, before, edit } => restore(connection, name, snapshot, before, edit),
        Step::EditDomain { name, edit, autostart } => edit_domain(connection, name, edit, *autostart),
        Step::MarkDomain { name, present } => mark(connection, name, *present),
        Step::UndefineDomain { name, wholly, keep_tpm, .. } => undefine(connection, name, *wholly, *keep_tpm),
        Step::StartDomain { name } => match lookup(connection, name)? {
            None => Err(HostError::Refused(format!("there is no VM `{name}` to start"))),
            Some(domain) if domain.is_active().map_err(|e| said(&e))? => Ok(()),
            Some(domain) => domain.create().map(drop).map_err(|e| said(&e)),
        },
        Step::StopDomain { name, patience_s, cut_power } => match lookup(connection, name)? {
            None => Ok(()),
            Some(domain) => {
                shut_down(&domain, name, patience_s.unwrap_or(SHUTDOWN_PATIENCE_S), *cut_power).map(|n| notes.extend(n))
            }
        },
        Step::AttachDevices { name, devices, .. } => attach(connection, name, devices),
        Step::DetachDevices { name, devices } => detach(connection, name, devices, UNPLUG_LIMIT),
        Step::MakeSnapshot(step) => snapshots::make(connection, step),
        Step::KeepSnapshot { name, snapshot, moved, format, current } => {
            let moved = moved.as_ref().map(|moved| (moved, format.as_deref().unwrap_or("qcow2")));
            snapshots::keep(connection, name, snapshot, moved, *current)
        }
        Step::ForgetSnapshot { name, snapshot, copies } => snapshots::forget(connection, name, snapshot, copies),
        Step::RemoveLayer { path } => snapshots::remove(connection, path),
        Step::CommitLayer { top, into, live: Some((name, disk)) } => {
            snapshots::commit(connection, name, disk, top, into)
        }
        other => Err(HostError::Refused(format!("this is no step of libvirt's: {other:?}"))),
    }
}

pub(super) fn lookup(connection: &Connect, name: &DomainName) -> Result<Option<Domain>, HostError> {
    unless_gone(Domain::lookup_by_name(connection, name.as_str())).map_err(|e| said(&e))
}

fn pool_xml(name: &str, path: &Path) -> String {
    // 0711: whoever knows a disk's name may reach it, as QEMU's user does; nobody may list.
    format!(
        "<pool type='dir'><name>{}</name><target><path>{}</path><permissions><mode>0711</mode></permissions></target></pool>",
        xml_escape(name),
        xml_escape(&path.to_string_lossy())
    )
}

/// `backing`: the file that it goes on in, and what that is.
fn volume_xml(want: &VolumeStep, backing: Option<(&Path, &str)>) -> String {
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

fn make_pool(connection: &Connect, name: &str, path: &Path) -> Result<(), Error> {
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
fn remove_volume(connection: &Connect, pool: &str, name: &str) -> Result<(), HostError> {
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
    match over(&path, &known, &super::Live::for_a_run()) {
        Ok(None) => {}
        Ok(Some(over)) => return Err(kept(format!("the disk `{}` needs it", over.display()))),
        Err(why) => return Err(kept(format!("who needs it is not known: {why}"))),
    }
    volume.delete(0).map_err(failed)
}

fn make_volume(connection: &Connect, want: &VolumeStep) -> Result<(), HostError> {
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
                let image = super::images::kept(pointer)?;
                if image.virtual_size > want.size.bytes() {
                    return Err(HostError::Refused(format!(
                        "the image has {}, and disk `{}` is to have {}: it would be cut off",
                        crate::types::ByteSize::from_bytes(image.virtual_size),
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
    match over(Path::new(&path), &collect(connection).map_err(failed)?, &super::Live::for_a_run()) {
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
pub(super) fn device_grew(path: &Path, bytes: u64) -> Result<(), HostError> {
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

/// A VM of this name that gpuvm did not make is left alone, whatever a plan said.
pub(super) fn ours(domain: &Domain, name: &DomainName) -> Result<(), HostError> {
    let xml = domain.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(|e| said(&e))?;
    if is_marked(&xml) {
        return Ok(());
    }
    Err(HostError::Refused(format!("VM `{name}` was not made by gpuvm; it is left as it is")))
}

fn define(connection: &Connect, name: &DomainName, xml: &str, autostart: bool) -> Result<(), HostError> {
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
fn clone(
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

fn restore(
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

fn edit_domain(connection: &Connect, name: &DomainName, edit: &TextEdit, autostart: bool) -> Result<(), HostError> {
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
fn mark(connection: &Connect, name: &DomainName, present: bool) -> Result<(), HostError> {
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

fn undefine(connection: &Connect, name: &DomainName, wholly: bool, keep_tpm: bool) -> Result<(), HostError> {
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
fn attach(connection: &Connect, name: &DomainName, devices: &[String]) -> Result<(), HostError> {
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
fn detach(connection: &Connect, name: &DomainName, devices: &[String], limit: Duration) -> Result<(), HostError> {
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

/// Asks the guest, and waits. Its power is cut only where that was asked for; then a note says so.
fn shut_down(
    domain: &Domain,
    name: &DomainName,
    patience_s: u32,
    cut_power: bool,
) -> Result<Option<String>, HostError> {
    let runs = || match unless_gone(domain.is_active()) {
        Ok(active) => Ok(active.unwrap_or(false)),
        Err(e) => Err(said(&e)),
    };
    let patience = Duration::from_secs(patience_s.into());
    let begun = Instant::now();
    let mut asked: Option<Instant> = None;
    while runs()? {
        if begun.elapsed() >= patience {
            if !cut_power {
                return Err(HostError::Refused(did_not_shut_down(name, patience_s)));
            }
            return match domain.destroy() {
                Ok(()) => Ok(Some(power_was_cut(name, patience_s))),
                // It went down by itself in the last moment.
                Err(_) if !runs()? => Ok(None),
                Err(e) => Err(said(&e)),
            };
        }
        if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            match domain.shutdown() {
                Ok(_) => {}
                // Only the first question has to be heard: it may be on its way down by now.
                Err(_) if asked.is_some() || !runs()? => {}
                Err(_) if cut_power => {}
                Err(e) => return Err(said(&e)),
            }
            asked = Some(Instant::now());
        }
        std::thread::sleep(LOOK_AGAIN.min(patience));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ByteSize, Splice};
    use crate::validators;

    /// libvirt's own test driver: a hypervisor in memory, the same for all tests of the process. `None` where libvirt is
    /// not installed.
    fn connection() -> Option<Connect> {
        loaded().then(|| Connect::open(Some("test:///default")).unwrap())
    }

    fn step(connection: &Connect, step: Step) -> Result<(), String> {
        perform(connection, &step, &mut Vec::new()).map_err(|e| e.to_string())
    }

    const XML: &str = "<domain type='test'>\n  <name>mine</name>\n  <metadata><v xmlns='urn:gpuvm:vm:1'/></metadata>\n  \
                       <memory unit='KiB'>65536</memory>\n  <vcpu>1</vcpu>\n  <os><type>hvm</type></os>\n</domain>";

    fn define(name: &str, xml: &str) -> Step {
        Step::DefineDomain { name: name.parse().unwrap(), xml: xml.to_owned(), autostart: true }
    }

    #[test]
    fn a_vm_is_defined_again_started_shut_down_and_undefined() {
        let Some(mut connection) = connection() else { return };
        let c = &connection;
        step(c, define("mine", XML)).unwrap();
        let first = collect(c).unwrap().domain("mine").unwrap().clone();
        assert!(first.persistent && first.autostart && !first.active && first.live_xml.is_none());
        assert!(is_marked(&first.inactive_xml), "the mark survives libvirt: {}", first.inactive_xml);
        step(c, define("mine", &XML.replace("<vcpu>1", "<vcpu>2"))).unwrap();
        let second = collect(c).unwrap().domain("mine").unwrap().clone();
        assert_eq!(second.uuid, first.uuid);
        assert_eq!(project(&second.inactive_xml).unwrap().cpus, 2);
        let at = second.inactive_xml.find(">2</vcpu>").unwrap() + 1;
        let three = Splice { at, remove: 1, insert: "3".to_owned() };
        let edit = TextEdit::new(&second.inactive_xml, vec![three]).unwrap();
        let edited = |edit| Step::EditDomain { name: "mine".parse().unwrap(), edit, autostart: false };
        step(c, edited(edit.clone())).unwrap();
        let third = collect(c).unwrap().domain("mine").unwrap().clone();
        assert!(project(&third.inactive_xml).unwrap().cpus == 3 && !third.autostart && third.uuid == first.uuid);
        let only_autostart = TextEdit::new(&third.inactive_xml, Vec::new()).unwrap();
        step(c, Step::EditDomain { name: "mine".parse().unwrap(), edit: only_autostart, autostart: true }).unwrap();
        let stale = TextEdit { after: "another".to_owned(), ..edit };
        let said = step(c, edited(stale)).unwrap_err();
        assert!(said.contains("changed since the plan"), "{said}");

        let name: DomainName = "mine".parse().unwrap();
        let mark = |present| step(c, Step::MarkDomain { name: name.clone(), present }).unwrap();
        let stored = || collect(c).unwrap().domain("mine").unwrap().inactive_xml.clone();
        let marked = stored();
        mark(false);
        assert!(!is_marked(&stored()), "{}", stored());
        mark(true);
        mark(true);
        assert!(is_marked(&stored()) && stored().matches(MARK).count() == marked.matches(MARK).count(), "{}", stored());
        assert_eq!(project(&stored()).unwrap(), project(&marked).unwrap());
        step(c, Step::StartDomain { name: name.clone() }).unwrap();
        step(c, Step::StartDomain { name: name.clone() }).unwrap();
        assert!(collect(c).unwrap().domain("mine").unwrap().live_xml.is_some());
        let said = step(c, Step::undefine(&name, false)).unwrap_err();
        assert!(said.contains("gpuvm vm stop mine"), "{said}");
        step(c, Step::shut_down(&name)).unwrap();
        step(c, Step::shut_down(&name)).unwrap();
        step(c, Step::undefine(&name, false)).unwrap();
        step(c, Step::undefine(&name, false)).unwrap();
        assert_eq!(collect(c).unwrap().domain("mine"), None);
        assert!(step(c, Step::StartDomain { name }).unwrap_err().contains("no VM `mine`"));
        let _ = connection.close();
    }

    #[test]
    fn a_vm_of_another_is_neither_defined_over_nor_undefined() {
        let Some(mut connection) = connection() else { return };
        let before = collect(&connection).unwrap().domain("test").unwrap().clone();
        let said = step(&connection, define("test", &XML.replace("mine", "test"))).unwrap_err();
        assert!(said.contains("not made by gpuvm"), "{said}");
        step(&connection, Step::shut_down(&"test".parse().unwrap())).unwrap();
        let said = step(&connection, Step::undefine(&"test".parse().unwrap(), false)).unwrap_err();
        assert!(said.contains("not made by gpuvm"), "{said}");
        assert_eq!(collect(&connection).unwrap().domain("test").unwrap().inactive_xml, before.inactive_xml);
        let _ = connection.close();
    }

    #[test]
    fn a_password_that_a_person_set_survives_a_change() {
        let Some(mut connection) = connection() else { return };
        let graphics = "<devices><graphics type='vnc' port='-1' passwd='canary&amp;'/></devices>\n</domain>";
        step(&connection, define("shown", &XML.replace("mine", "shown").replace("</domain>", graphics))).unwrap();
        let shown = collect(&connection).unwrap().domain("shown").unwrap().inactive_xml.clone();
        assert!(shown.contains("<graphics") && !shown.contains("canary"), "{shown}");
        step(&connection, define("shown", &shown.replace(">1</vcpu>", ">2</vcpu>"))).unwrap();
        let there = lookup(&connection, &"shown".parse().unwrap()).unwrap().unwrap();
        let whole = there.get_xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE).unwrap();
        assert!(whole.contains("passwd='canary&amp;'") && whole.contains(">2</vcpu>"), "{whole}");
        let _ = connection.close();
    }

    #[test]
    fn pools_and_volumes_are_what_libvirts_own_schemas_say() {
        let file = Path::new("/srv/a&b'<c>");
        validators::libvirt("storagepool", &pool_xml("a<b", file));
        let want = VolumeStep {
            pool: "mine".parse().unwrap(),
            name: "vm-0.qcow2".to_owned(),
            size: ByteSize::from_gib(1),
            format: "qcow2".to_owned(),
            grow: false,
            begun: false,
            image: None,
        };
        for backing in [None, Some((file, "qcow2"))] {
            validators::libvirt("storagevol", &volume_xml(&want, backing));
        }
    }

    #[test]
    fn pools_and_volumes_are_made_once_and_never_shrunk() {
        let Some(mut connection) = connection() else { return };
        let c = &connection;
        let dir = tempfile::tempdir().unwrap();
        let pool = Step::Pool { name: "mine".parse().unwrap(), path: dir.path().to_owned() };
        step(c, pool.clone()).unwrap();
        step(c, pool).unwrap();
        let volume = |mib, grow| {
            Step::Volume(VolumeStep {
                pool: "mine".parse().unwrap(),
                name: "vm-0.qcow2".to_owned(),
                size: ByteSize::from_mib(mib),
                format: "qcow2".to_owned(),
                grow,
                begun: false,
                image: None,
            })
        };
        step(c, volume(8, false)).unwrap();
        step(c, volume(8, false)).unwrap();
        let known = collect(c).unwrap();
        let made = known.pool("mine").unwrap();
        assert!(made.active && made.autostart);
        let seen: Vec<_> = made.volumes.iter().map(|v| (v.name.as_str(), v.format.as_str(), v.size())).collect();
        assert_eq!(seen, [("vm-0.qcow2", "qcow2", ByteSize::from_mib(8))]);
        assert!(step(c, volume(4, true)).unwrap_err().contains("left as it is"));
        assert!(step(c, volume(16, false)).unwrap_err().contains("left as it is"));
        let _ = connection.close();
    }

    #[test]
    fn a_network_is_started_and_what_libvirt_says_is_passed_on() {
        let Some(mut connection) = connection() else { return };
        step(&connection, Step::Network { name: "default".parse().unwrap(), active: true, autostart: true }).unwrap();
        let known = collect(&connection).unwrap();
        assert!(known.network("default").unwrap().autostart && known.version > 1_000_000);
        let said = step(&connection, Step::Network { name: "none".parse().unwrap(), active: true, autostart: true })
            .unwrap_err();
        assert!(said.starts_with("libvirt: ") && said.contains("none"), "{said}");
        let _ = connection.close();
    }

    fn run(step: &Step) {
        let (secrets, mut notes) = (Default::default(), Vec::new());
        let mut running =
            Running { secrets: &secrets, progress: &mut |_| {}, notes: &mut notes, run_dir: Path::new("/nowhere") };
        execute(step, &mut running).unwrap();
    }

    /// Plans and executes until nothing is left to do; the ways that it took.
    fn settle<R: crate::resource::Resource>(
        wanted: &R,
        last: Option<&R>,
        facts: &crate::facts::HostFacts,
    ) -> Vec<String>
    where
        R::State: From<Answer<std::sync::Arc<Virtualisation>>>,
    {
        let mut seen = Vec::new();
        for _ in 0..4 {
            let state = read(CHANGE_LIMIT).unwrap().map(std::sync::Arc::new);
            match wanted.diff(&state.into(), last, facts) {
                crate::plan::Diff::Change(change) => {
                    seen.push(change.what);
                    change.steps.iter().for_each(run);
                }
                crate::plan::Diff::InSync { .. } => return seen,
                crate::plan::Diff::Waits { on, .. } => {
                    seen.push(format!("waits for {}", on.name()));
                    return seen;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("no end: {seen:?}")
    }

    /// `cargo test -- --ignored real_daemon`, on a machine whose libvirt may be changed: QEMU emulates there.
    #[test]
    #[ignore = "makes a VM at the system's libvirt"]
    fn real_daemon() {
        use crate::resource::libvirt_domain::{
            Accel, Arch, Disk, Firmware, Kernel, LibvirtDomain, Nic, NicOn, PassedSlot,
        };
        use crate::resource::{libvirt_network::LibvirtNetwork, pool::Pool, volume::Volume};

        let record = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(record.path().join("root")).unwrap();
        host::fixture::Record::default().save(&record.path().join(host::fixture::Record::NAME)).unwrap();
        let facts = crate::facts::collect(&host::fixture::Fixture::open(record.path()).unwrap());

        let dir = PathBuf::from("/var/lib/libvirt/gpuvm-test");
        let pool = Pool { name: "gpuvm-test".parse().unwrap(), path: dir.clone(), existing: false };
        run(&Step::Pool { name: pool.name.clone(), path: dir.clone() });
        let volume = |n: usize, mib| Volume {
            pool: pool.name.clone(),
            name: format!("gpuvm-test-{n}.qcow2"),
            size: ByteSize::from_mib(mib),
            vm: Some("gpuvm-test".parse().unwrap()),
            take_over: false,
            made: false,
            begun: false,
            image: None,
        };
        assert_eq!(settle(&volume(0, 64), None, &facts).len(), 1);
        assert_eq!(settle(&volume(1, 64), None, &facts).len(), 1);
        settle(&LibvirtNetwork { name: "default".parse().unwrap() }, None, &facts);
        let disk = |n: usize| Disk {
            pool: Some(pool.name.clone()),
            volume: format!("gpuvm-test-{n}.qcow2"),
            block: false,
            path: dir.join(format!("gpuvm-test-{n}.qcow2")),
            options: Default::default(),
        };
        let first = LibvirtDomain {
            name: "gpuvm-test".parse().unwrap(),
            cpus: 1,
            topology: None,
            pins: None,
            near: None,
            memory: ByteSize::from_mib(128),
            huge_pages: None,
            disks: vec![disk(0)],
            nic: Some(Nic {
                on: NicOn::Network("default".parse().unwrap()),
                mac: crate::types::MacAddress([0x52, 0x54, 0, 1, 2, 3]),
            }),
            slots: vec![],
            seed: None,
            login: None,
            extras: vec![],
            smbios: Default::default(),
            additions: vec![],
            windows: false,
            media: vec![],
            firmware: Firmware::Uefi,
            boot: None,
            accel: Accel::Tcg,
            arch: Arch::X86_64,
            autostart: true,
            start_when_made: true,
            running: None,
            absent: false,
            start_owed: false,
        };
        assert_eq!(settle(&first, None, &facts).len(), 1, "in sync once it is made and started");
        assert_eq!(settle(&first, Some(&first), &facts).len(), 0);
        assert_eq!(settle(&volume(0, 96), None, &facts).len(), 1, "a running VM's disk grows");
        let uuid = || {
            let Answer::Value(known) = read(CHANGE_LIMIT).unwrap() else { panic!("libvirt is there") };
            known.domain("gpuvm-test").unwrap().uuid.clone()
        };
        let before = uuid();

        let mut second = first.clone();
        (second.cpus, second.memory, second.autostart) = (2, ByteSize::from_mib(192), false);
        second.disks.push(disk(1));
        second.boot =
            Some(Kernel { kernel: "/boot/vmlinuz".into(), initrd: None, cmdline: Some("a='b' \"c\" <&>".into()) });
        let slot: crate::types::PciSlot = "0000:7f:00".parse().unwrap();
        second.slots = vec![PassedSlot::whole(slot, vec![slot.function(0), slot.function(1)])];
        let seen = settle(&second, Some(&first), &facts);
        assert_eq!(seen[1..], ["waits for guest restart"], "{seen:?}");
        assert_eq!(settle(&second, Some(&second), &facts), ["waits for guest restart"]);
        assert_eq!(uuid(), before, "it is the same VM");
        let back = settle(&first, Some(&second), &facts);
        assert_eq!(back.len(), 1, "what runs is what was stored first: {back:?}");

        // The guest has no system and does not listen; what ends it here is the test, never gpuvm.
        let mut connection = Connect::open(Some(SYSTEM)).unwrap();
        lookup(&connection, &first.name).unwrap().unwrap().destroy().unwrap();
        let absent = LibvirtDomain { absent: true, ..first.clone() };
        assert_eq!(settle(&absent, Some(&first), &facts).len(), 1);
        for n in [0, 1] {
            assert!(disk(n).path.exists(), "disks stay");
        }
        let made = StoragePool::lookup_by_name(&connection, "gpuvm-test").unwrap();
        for one in made.list_all_volumes(0).unwrap() {
            one.delete(0).unwrap();
        }
        made.destroy().unwrap();
        made.undefine().unwrap();
        let _ = connection.close();
    }

    #[test]
    fn what_hangs_is_left_behind() {
        let result = in_time("it", Duration::from_millis(20), || {
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        });
        assert!(matches!(result, Err(HostError::Timeout { .. })), "{result:?}");
    }
}
