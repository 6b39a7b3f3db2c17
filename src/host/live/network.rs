//! Switches the host's network under a guard: a plain shell script in a unit of its own, which outlives gpuvm and goes
//! on after a restart of the host. It puts everything back unless what answered before answers again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files::{link, make_dir, remove, write};
use crate::host::{HostError, Program, Running};
use crate::plan::{Content, FileWrite, NetworkSwitch, Proof};

/// Where the guard lives, and its unit.
const GUARD: &str = "/var/lib/gpuvm/guard";
const UNIT: &str = "/etc/systemd/system/gpuvm-network-guard.service";
/// What starts it at boot, as `systemctl enable` would make it, without another reload of all units.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/gpuvm-network-guard.service";
const UNIT_NAME: &str = "gpuvm-network-guard.service";
const SCRIPT: &str = include_str!("guard.sh");
const UNIT_TEXT: &str = "# Written by gpuvm, for the time of one change of the network.\n\
[Unit]\nDescription=gpuvm: puts the network back unless what answered before answers again\n\
ConditionKernelCommandLine=!gpuvm.off\nAfter=network.target systemd-networkd.service\n\n\
[Service]\nType=simple\nEnvironment=PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
ExecStart=/bin/sh /var/lib/gpuvm/guard/guard.sh /var/lib/gpuvm/guard\nRestart=on-failure\nRestartSec=1\n\n\
[Install]\nWantedBy=multi-user.target\n";

/// How long the guard may take to ask what answers now: some seconds for each that does not.
const MEASURE_LIMIT: Duration = Duration::from_secs(90);
/// How long putting everything back may take.
const UNDO_LIMIT: Duration = Duration::from_secs(180);
/// netplan waits for systemd-networkd and udev.
const APPLY_LIMIT: Duration = Duration::from_secs(120);
const SHORT_LIMIT: Duration = Duration::from_secs(60);

/// How long a guard that goes on after a boot may take: what it asks for, its patience, and putting everything back.
const DECISION_LIMIT: Duration = Duration::from_secs(360);

/// Waits until a change of the network that was cut off is decided: what is planned before that would be of files and
/// links that may go back at any moment. A guard that decides nothing is left to whoever changes the network next.
pub fn network_decided(progress: &mut dyn FnMut(&str)) {
    decided(Path::new(GUARD), Path::new(UNIT), DECISION_LIMIT, progress);
}

fn decided(guard: &Path, unit: &Path, limit: Duration, progress: &mut dyn FnMut(&str)) {
    let verdict = guard.join("verdict");
    if !guard.exists() || !unit.exists() || verdict.exists() {
        return;
    }
    progress(&format!(
        "a change of the network was cut off, and its guard decides whether it stays (journalctl -fu {UNIT_NAME}): \
         waiting at most {} s for that",
        limit.as_secs()
    ));
    if let Err(e) = wait_for(&verdict, limit) {
        tracing::warn!("whether the network's guard has decided is not known: {e}");
    }
}

/// Carries out the change; an error means that everything was put back, or that nothing was begun.
pub(super) fn switch(step: &NetworkSwitch, running: &mut Running<'_>) -> Result<(), HostError> {
    let guard = Path::new(GUARD);
    clear(guard)?;
    // Everything that can be refused is refused before the first change.
    let files = files_of(step, running)?;
    lay(guard, step, &peers())?;
    arm(guard)?;
    (running.progress)("asking what answers now");
    wait_for(&guard.join("ready"), MEASURE_LIMIT)?.ok_or_else(|| {
        HostError::Refused(format!(
            "the network guard did not start; nothing was changed. See: journalctl -u {UNIT_NAME}"
        ))
    })?;
    if let Err(e) = change(step, &files, guard, running) {
        // The guard is the only one that puts back.
        write(&guard.join("give-up"), format!("{e}\n").as_bytes(), 0o600, 0, 0)?;
    }
    verdict(guard, step, running)
}

/// Writes the files, has netplan check them, and makes them live.
fn change(
    step: &NetworkSwitch,
    files: &BTreeMap<PathBuf, Planned>,
    guard: &Path,
    running: &mut Running<'_>,
) -> Result<(), HostError> {
    for (path, file) in files {
        match file {
            Planned::Gone => remove(path)?,
            Planned::Is { bytes, mode, uid, gid } => write(path, bytes, *mode, *uid, *gid)?,
        }
    }
    (running.progress)("netplan checks the new files");
    perform(Program::Netplan, &["generate"], SHORT_LIMIT)?;
    write(&guard.join("switched"), b"", 0o600, 0, 0)?;
    for link in &step.delete_links {
        if Path::new("/sys/class/net").join(link.as_str()).exists() {
            perform(Program::Ip, &["link", "delete", "dev", link.as_str()], SHORT_LIMIT)?;
        }
    }
    (running.progress)("netplan makes them live");
    match perform(Program::Netplan, &["apply"], APPLY_LIMIT) {
        // It may hang on one link while all others are well: the guard decides.
        Ok(()) | Err(HostError::Timeout { .. }) => write(&guard.join("applied"), b"", 0o600, 0, 0),
        other => other,
    }
}

fn verdict(guard: &Path, step: &NetworkSwitch, running: &mut Running<'_>) -> Result<(), HostError> {
    let limit = Duration::from_secs(step.patience_s.into()) + UNDO_LIMIT;
    (running.progress)(&format!("waiting at most {} s for what answered before", step.patience_s));
    let said = wait_for(&guard.join("verdict"), limit)?
        .ok_or_else(|| HostError::Timeout { what: format!("the network guard (journalctl -u {UNIT_NAME})"), limit })?;
    match said.trim().strip_prefix("reverted:") {
        None => {
            let proofs = fs::read_to_string(guard.join("proofs")).unwrap_or_default();
            (running.progress)(&format!("answers again: {}", proofs.lines().collect::<Vec<_>>().join(", ")));
            clear(guard)
        }
        Some(why) => {
            clear(guard)?;
            Err(HostError::Refused(format!(
                "the network was put back as it was: {}; look at that, then apply again",
                why.trim()
            )))
        }
    }
}

/// Takes away a guard that has done its work. One that has not is left to do it.
fn clear(guard: &Path) -> Result<(), HostError> {
    if !guard.exists() {
        return Ok(());
    }
    let armed = Path::new(UNIT).exists();
    if armed && !guard.join("verdict").exists() {
        return Err(HostError::Refused(format!(
            "a change of the network is under guard and not decided yet; wait for it (journalctl -fu {UNIT_NAME}), or start it: systemctl start {UNIT_NAME}"
        )));
    }
    // Without its unit it was never armed, so that nothing was changed.
    if armed {
        remove(Path::new(WANTED))?;
        remove(Path::new(UNIT))?;
    }
    fs::remove_dir_all(guard).map_err(HostError::file(guard))?;
    perform(Program::Systemctl, &["daemon-reload"], SHORT_LIMIT)
}

fn arm(guard: &Path) -> Result<(), HostError> {
    write(Path::new(UNIT), UNIT_TEXT.as_bytes(), 0o644, 0, 0)?;
    let wanted = Path::new(WANTED);
    let armed = make_dir(wanted.parent().unwrap_or(Path::new("/")), 0o755, 0, 0)
        .and_then(|()| link(wanted, Path::new(UNIT)))
        .and_then(|()| perform(Program::Systemctl, &["daemon-reload"], SHORT_LIMIT))
        .and_then(|()| perform(Program::Systemctl, &["start", "--no-block", UNIT_NAME], SHORT_LIMIT));
    if armed.is_err() {
        remove(wanted)?;
        remove(Path::new(UNIT))?;
        fs::remove_dir_all(guard).map_err(HostError::file(guard))?;
    }
    armed
}

/// A file as it is to be.
#[derive(Debug)]
enum Planned {
    Gone,
    Is { bytes: Vec<u8>, mode: u32, uid: u32, gid: u32 },
}

/// The contents that the step gives each of its files, from what is there now.
fn files_of(step: &NetworkSwitch, running: &Running<'_>) -> Result<BTreeMap<PathBuf, Planned>, HostError> {
    let mut files = BTreeMap::new();
    for edit in &step.edit {
        let text = fs::read_to_string(&edit.path).map_err(HostError::file(&edit.path))?;
        let meta = fs::metadata(&edit.path).map_err(HostError::file(&edit.path))?;
        let changed = edit.apply(&text).ok_or_else(|| {
            HostError::Refused(format!("`{}` changed since the plan was made; plan again", edit.path.display()))
        })?;
        let mode = meta.permissions().mode() & 0o7777;
        files.insert(
            edit.path.clone(),
            Planned::Is { bytes: changed.into_bytes(), mode, uid: meta.uid(), gid: meta.gid() },
        );
    }
    for file in &step.write {
        let bytes = match &file.content {
            Content::Text(text) => text.clone().into_bytes(),
            Content::Program(_) => {
                return Err(HostError::Refused(format!("`{}` is no program", file.path.display())));
            }
            Content::Secret(digest) => running.secrets.get(digest).cloned().ok_or_else(|| {
                HostError::Refused(format!("the secret for `{}` is not at hand", file.path.display()))
            })?,
        };
        let (uid, gid) = root_only(file)?;
        files.insert(file.path.clone(), Planned::Is { bytes, mode: file.mode.bits(), uid, gid });
    }
    files.extend(step.remove.iter().map(|path| (path.clone(), Planned::Gone)));
    Ok(files)
}

/// The network's files are root's.
fn root_only(file: &FileWrite) -> Result<(u32, u32), HostError> {
    match (file.owner.as_str(), file.group.as_str()) {
        ("root", "root") => Ok((0, 0)),
        _ => Err(HostError::Refused(format!("`{}` would not belong to root", file.path.display()))),
    }
}

/// The guard's folder, made whole before it has its name.
fn lay(guard: &Path, step: &NetworkSwitch, peers: &BTreeSet<IpAddr>) -> Result<(), HostError> {
    let new = guard.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(HostError::file(&new))?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(new.join("old")).map_err(HostError::file(&new))?;
    let mut restore = String::new();
    let mut absent = String::new();
    for (number, path) in step.paths().collect::<BTreeSet<_>>().into_iter().enumerate() {
        let shown = path.to_str().filter(|t| !t.contains('\n') && t.starts_with('/'));
        let shown = shown.ok_or_else(|| HostError::Refused(format!("`{}` cannot be guarded", path.display())))?;
        match fs::read(path) {
            Ok(bytes) => {
                let meta = fs::metadata(path).map_err(HostError::file(path))?;
                let copy = new.join("old").join(number.to_string());
                write(&copy, &bytes, meta.permissions().mode() & 0o7777, meta.uid(), meta.gid())?;
                restore += &format!("{number} {shown}\n");
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => absent += &format!("{shown}\n"),
            Err(source) => return Err(HostError::File { path: path.clone(), source }),
        }
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let links: String = step.made_links.iter().map(|l| format!("{l}\n")).collect();
    let wanted = wanted(step, peers);
    let files: [(&str, &str); 10] = [
        ("guard.sh", SCRIPT),
        ("wanted", &wanted),
        ("from", step.from.as_str()),
        ("to", step.to.as_str()),
        ("patience", &step.patience_s.to_string()),
        ("restore", &restore),
        ("absent", &absent),
        ("links", &links),
        ("boot", boot.trim()),
        ("units", &format!("{UNIT}\n{WANTED}\n")),
    ];
    for (name, text) in files {
        let line = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        write(&new.join(name), format!("{text}{line}").as_bytes(), 0o600, uid(), gid())?;
    }
    let place = || {
        fs::rename(&new, guard)?;
        File::open(guard.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    place().map_err(HostError::file(guard))
}

fn uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

fn gid() -> u32 {
    nix::unistd::getgid().as_raw()
}

/// The proofs as the guard reads them.
fn wanted(step: &NetworkSwitch, peers: &BTreeSet<IpAddr>) -> String {
    let line = |proof: &Proof| match proof {
        Proof::Link => "link\n".to_owned(),
        Proof::Address(a) => format!("address {a}\n"),
        Proof::DefaultRoute { v6 } => format!("route {}\n", if *v6 { 6 } else { 4 }),
        Proof::Gateway(a) => format!("gateway {a}\n"),
        Proof::NameServer(a) => format!("name-server {a}\n"),
        Proof::Peer(a) => format!("peer {a}\n"),
    };
    step.proofs.iter().cloned().chain(peers.iter().copied().map(Proof::Peer)).map(|p| line(&p)).collect()
}

/// Whoever is connected to the ssh server now: gpuvm itself may run in a unit without a terminal.
fn peers() -> BTreeSet<IpAddr> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut all = connected(&text("/proc/net/tcp"));
    all.extend(connected(&text("/proc/net/tcp6")));
    let told = std::env::var("SSH_CONNECTION").ok();
    all.extend(told.and_then(|c| c.split(' ').next()?.parse::<IpAddr>().ok()).filter(|a| !a.is_loopback()));
    all
}

/// proc_net_tcp: the peers of established connections (state 01) to the local port 22. Addresses are words of 32 bits
/// in the order of the machine.
fn connected(table: &str) -> BTreeSet<IpAddr> {
    let peer = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        (state == "01" && local.ends_with(":0016")).then(|| address(remote.split(':').next()?)).flatten()
    };
    table.lines().filter_map(peer).filter(|a| !a.is_loopback()).collect()
}

fn address(hex: &str) -> Option<IpAddr> {
    let word = |i: usize| Some(u32::from_str_radix(hex.get(i * 8..i * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for i in 0..4 {
                bytes[i * 4..i * 4 + 4].copy_from_slice(&word(i)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// Waits for a file of the guard's and reads it; `None` where it does not come in time.
fn wait_for(path: &Path, limit: Duration) -> Result<Option<String>, HostError> {
    let end = Instant::now() + limit;
    loop {
        match fs::read_to_string(path) {
            Ok(text) => return Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(HostError::File { path: path.to_owned(), source }),
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn perform(program: Program, args: &[&str], limit: Duration) -> Result<(), HostError> {
    super::program::perform(program, args, limit, &mut |_| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_guard_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (guard, unit) = (dir.path().join("guard"), dir.path().join("unit"));
        let waits = |limit: u64| {
            let mut said = String::new();
            decided(&guard, &unit, Duration::from_secs(limit), &mut |text| said.push_str(text));
            said
        };
        assert_eq!(waits(60), "", "there is no guard");
        fs::create_dir(&guard).unwrap();
        assert_eq!(waits(60), "", "it was never armed");
        fs::write(&unit, "").unwrap();
        // The guard decides when this has begun to wait for it, and not before.
        let mut said = 0;
        decided(&guard, &unit, Duration::from_secs(60), &mut |text| {
            assert!(text.contains("decides whether it stays"), "{text}");
            said += 1;
            fs::write(guard.join("verdict"), "kept\n").unwrap();
        });
        assert_eq!(said, 1);
        assert_eq!(waits(60), "", "it is decided");
        fs::remove_file(guard.join("verdict")).unwrap();
        assert!(waits(0).contains("at most 0 s"), "one that decides nothing is given up");
    }

    #[test]
    fn the_guard_can_be_switched_off_at_the_console() {
        assert!(UNIT_TEXT.contains("\nConditionKernelCommandLine=!gpuvm.off\n"));
    }

    #[test]
    fn peers_of_ssh_are_found_in_both_tables() {
        let four = "  sl  local_address rem_address   st\n   0: 0F02000A:0016 0202000A:D0B2 01 00000000:00000000\n   1: 0F02000A:0016 0302000A:D0B2 06 0\n   2: 00000000:0016 00000000:0000 0A 0\n   3: 0F02000A:0050 0402000A:D0B2 01 0\n   4: 0100007F:0016 0100007F:D0B2 01 0\n";
        assert_eq!(connected(four), BTreeSet::from(["10.0.2.2".parse().unwrap()]));
        let six = "  sl\n   0: 0000000000000000FFFF00000F02000A:0016 0000000000000000FFFF00000202000A:D0B2 01 0\n   1: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:D0B2 01 0\n";
        assert_eq!(connected(six), BTreeSet::from(["10.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()]));
        assert!(connected("garbage\n 0: x y 01\n 0: a:0016 zz:1 01\n").is_empty());
    }

    #[test]
    fn the_guard_gets_every_file_that_changes_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (there, not_there) = (dir.path().join("a file.yaml"), dir.path().join("b.yaml"));
        fs::write(&there, "old\n").unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o640)).unwrap();
        let name = |n: &str| n.parse().unwrap();
        let step = NetworkSwitch {
            bridge: name("br0"),
            uplink: name("a"),
            from: name("a"),
            to: name("br0"),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            edit: Vec::new(),
            write: vec![FileWrite::root(&there, "new\n", 0o600), FileWrite::root(&not_there, "new\n", 0o600)],
            remove: Vec::new(),
            delete_links: Vec::new(),
            made_links: vec![name("br0")],
            proofs: BTreeSet::from([Proof::Link, Proof::DefaultRoute { v6: true }]),
            patience_s: 90,
        };
        let guard = dir.path().join("guard");
        lay(&guard, &step, &BTreeSet::from(["10.0.2.2".parse().unwrap()])).unwrap();
        let text = |n: &str| fs::read_to_string(guard.join(n)).unwrap();
        assert_eq!(text("restore"), format!("0 {}\n", there.display()));
        assert_eq!(text("absent"), format!("{}\n", not_there.display()));
        assert_eq!(
            (text("old/0"), fs::metadata(guard.join("old/0")).unwrap().permissions().mode() & 0o777),
            ("old\n".to_owned(), 0o640)
        );
        assert_eq!(text("wanted"), "link\nroute 6\npeer 10.0.2.2\n");
        assert_eq!(
            (text("to"), text("patience"), text("links")),
            ("br0\n".to_owned(), "90\n".to_owned(), "br0\n".to_owned())
        );
    }
}
