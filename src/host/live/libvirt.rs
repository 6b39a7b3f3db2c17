//! libvirt's system connection: what it knows, read once in a pass, and the steps that change it.
//!
//! The library is opened at run time (virt-lazy), so that gpuvm starts where it is not installed yet. Everything is
//! done in a thread that can be left behind: a daemon that hangs must not hang a plan.

mod definition;
mod install;
mod plug;
mod storage;

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
use crate::plan::Step;
use crate::types::DomainName;

pub(super) use definition::ours;
pub(super) use install::install;
pub(super) use storage::device_grew;

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
pub(super) fn in_time<T: Send + 'static>(
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

/// The same with something that may take long. A daemon that is busy with it answers others all the while; one that does
/// not is not waited for until the end.
fn while_it_answers<T: Send + 'static>(
    what: &str,
    limit: Duration,
    answers: impl Fn() -> Result<(), HostError> + Copy + Send + 'static,
    patience: Patience,
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    let begun = Instant::now();
    let mut asked: Option<(Instant, mpsc::Receiver<()>)> = None;
    let mut answered = begun;
    loop {
        match result.recv_timeout(patience.look_again.min(limit.saturating_sub(begun.elapsed()))) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(HostError::Libvirt(format!("{what}: it ended without an answer")));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if begun.elapsed() >= limit {
            return Err(HostError::Timeout { what: what.to_owned(), limit });
        }
        match &asked {
            None if answered.elapsed() >= patience.ask_again => {
                let (tell, told) = mpsc::channel();
                // That it refuses is an answer too.
                std::thread::spawn(move || {
                    let _ = answers();
                    tell.send(())
                });
                asked = Some((Instant::now(), told));
            }
            None => {}
            Some((_, told)) if !matches!(told.try_recv(), Err(mpsc::TryRecvError::Empty)) => {
                (asked, answered) = (None, Instant::now());
            }
            Some((since, _)) if since.elapsed() >= patience.limit => {
                return Err(HostError::Timeout { what: format!("{what}: libvirt"), limit: patience.limit });
            }
            Some(_) => {}
        }
    }
}

/// How a daemon is watched that works on something.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// How often the work is looked at.
    look_again: Duration,
    /// How long after its last answer it is asked for one.
    ask_again: Duration,
    /// How long it may take to give it.
    limit: Duration,
}

impl Patience {
    const OF_A_STEP: Self = Self {
        look_again: Duration::from_millis(500),
        ask_again: Duration::from_secs(10),
        limit: Duration::from_secs(60),
    };
}

/// Asks the daemon for nothing but an answer.
fn answers() -> Result<(), HostError> {
    let mut connection = Connect::open_read_only(Some(SYSTEM)).map_err(|e| said(&e))?;
    let version = connection.get_lib_version().map(drop).map_err(|e| said(&e));
    let _ = connection.close();
    version
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
    while_it_answers(&what, limit, answers, Patience::OF_A_STEP, move || {
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
        Step::Pool { name, path } => storage::make_pool(connection, name.as_str(), path).map_err(|e| said(&e)),
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
        Step::RemoveVolume { pool, name } => storage::remove_volume(connection, pool.as_str(), name),
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
        Step::Volume(volume) => storage::make_volume(connection, volume),
        Step::DefineDomain { name, xml, autostart } => definition::define(connection, name, xml, *autostart),
        Step::CloneDomain { name, from, snapshot, edit } => {
            definition::clone(connection, name, from, snapshot.as_ref(), edit)
        }
        Step::RestoreDomain { name, snapshot, before, edit } => {
            definition::restore(connection, name, snapshot, before, edit)
        }
        Step::EditDomain { name, edit, autostart } => definition::edit_domain(connection, name, edit, *autostart),
        Step::MarkDomain { name, present } => definition::mark(connection, name, *present),
        Step::UndefineDomain { name, wholly, keep_tpm, .. } => {
            definition::undefine(connection, name, *wholly, *keep_tpm)
        }
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
        Step::AttachDevices { name, devices, .. } => plug::attach(connection, name, devices),
        Step::DetachDevices { name, devices } => plug::detach(connection, name, devices, UNPLUG_LIMIT),
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
mod tests;
