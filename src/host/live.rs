//! The machine itself. The only module that touches it.
//!
//! What gpuvm needs of a device the kernel keeps in sysfs attributes that do not touch the device. Attributes that do
//! (the link's speed, configuration space) are read by `facts::pci` only where the device is awake, so that none wakes.

mod apt;
mod block_volumes;
mod console;
mod device_users;
mod files;
mod images;
mod initramfs;
mod layers;
mod libvirt;
mod mig;
mod myself;
mod network;
mod pci;
mod program;
mod runner;
mod seeds;
mod snapshots;
mod web;
mod who_has;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use console::{LEAVE, Left, console, played_console};
pub use network::network_decided;
pub use pci::write_attribute;
pub use program::{become_program, start_myself};
pub use runner::{RESUME_UNIT, is_started, keep_program, launch, stay, wait_for_devices, waits_for_boot};
pub use who_has::who_has;

use super::{
    Answer, DeviceUsers, FileKind, GuestAgent, Host, HostError, Initramfs, Myself, Output, Probe, Program, Running,
    Stat, Virtualisation,
};
use crate::guest::Again;
use crate::plan::{Content, Refresh, Step};
use crate::types::{DomainName, Mode, sha256_hex};

/// How long a program that only looks may take; then it is left behind.
const QUERY_LIMIT: Duration = Duration::from_secs(8);

/// apt's simulation reads all package lists, which takes a slow machine longer.
const APT_LIMIT: Duration = Duration::from_secs(60);

/// systemd reads the files of all units to list them, which took an emulated machine 13 s.
const UNITS_LIMIT: Duration = Duration::from_secs(30);

/// NVIDIA's driver wakes a card that nobody holds open, which takes it seconds.
const DRIVER_LIMIT: Duration = Duration::from_secs(30);

/// What takes a moment on any machine.
const SHORT_LIMIT: Duration = Duration::from_secs(60);
/// systemd gives a unit 90 s to stop and 90 s to start.
const SERVICE_LIMIT: Duration = Duration::from_secs(240);
/// An initramfs for every kernel on a slow disk.
const BOOT_LIMIT: Duration = Duration::from_secs(1800);

/// This machine.
#[derive(Debug)]
pub struct Live {
    libvirt_limit: Duration,
}

impl Live {
    /// The machine for someone who waits for a plan: what does not answer soon is unknown.
    pub fn for_a_plan() -> Self {
        Self { libvirt_limit: Duration::from_secs(8) }
    }

    /// The machine for a run: a daemon that was installed a moment ago, or that a boot just starts, is waited for.
    pub fn for_a_run() -> Self {
        Self { libvirt_limit: Duration::from_secs(120) }
    }
}

/// Absence and refusal are answers; anything else is an error that names the path.
fn answered<T>(path: &Path, result: io::Result<T>) -> Result<Answer<T>, HostError> {
    match result {
        Ok(value) => Ok(Answer::Value(value)),
        Err(e) => match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Answer::Absent),
            io::ErrorKind::PermissionDenied => Ok(Answer::Denied),
            _ => Err(HostError::File { path: path.to_owned(), source: e }),
        },
    }
}

impl Probe for Live {
    fn read(&self, path: &Path) -> Result<Answer<Vec<u8>>, HostError> {
        answered(path, fs::read(path))
    }
    fn head(&self, path: &Path, most: usize) -> Result<Answer<Vec<u8>>, HostError> {
        use std::io::Read as _;
        use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
        // A pipe would be waited for.
        let open = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let read = open.and_then(|file| {
            let kind = file.metadata()?.file_type();
            if !kind.is_file() && !kind.is_block_device() {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            file.take(most as u64).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        });
        Ok(match answered(path, read)? {
            Answer::Value(bytes) => bytes.map_or(Answer::Absent, Answer::Value),
            Answer::Absent => Answer::Absent,
            Answer::Denied => Answer::Denied,
        })
    }
    fn stat(&self, path: &Path) -> Result<Answer<Stat>, HostError> {
        let answer = answered(path, fs::symlink_metadata(path))?;
        Ok(answer.map(|m| Stat {
            kind: match m.file_type() {
                t if t.is_file() => FileKind::File,
                t if t.is_dir() => FileKind::Directory,
                t if t.is_symlink() => FileKind::Link,
                _ => FileKind::Other,
            },
            mode: Mode::new(m.permissions().mode()),
            uid: m.uid(),
            gid: m.gid(),
        }))
    }
    fn list(&self, dir: &Path) -> Result<Answer<Vec<OsString>>, HostError> {
        let names =
            fs::read_dir(dir).and_then(|all| all.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>());
        Ok(answered(dir, names)?.map(|mut names| {
            names.sort();
            names
        }))
    }
    fn link(&self, path: &Path) -> Result<Answer<PathBuf>, HostError> {
        match fs::read_link(path) {
            // EINVAL: it is there, but no link.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(Answer::Absent),
            other => answered(path, other),
        }
    }
    fn query(&self, program: Program, args: &[&str]) -> Result<Answer<Output>, HostError> {
        let limit = match program {
            Program::AptGet => APT_LIMIT,
            Program::Systemctl => UNITS_LIMIT,
            Program::NvidiaSmi => DRIVER_LIMIT,
            _ => QUERY_LIMIT,
        };
        match program::place(program) {
            None => Ok(Answer::Absent),
            Some(path) => program::ask(&path, args, limit).map(Answer::Value),
        }
    }
    fn virtualisation(&self) -> Result<Answer<Arc<Virtualisation>>, HostError> {
        Ok(libvirt::read(self.libvirt_limit)?.map(Arc::new))
    }
    fn initramfs(&self, path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
        initramfs::read(path)
    }
    fn guest_agent(&self, vm: &DomainName) -> Result<Answer<Arc<GuestAgent>>, HostError> {
        Ok(libvirt::ask_agent(vm, QUERY_LIMIT)?.map(Arc::new))
    }
    fn device_users(&self) -> Result<Arc<DeviceUsers>, HostError> {
        Ok(Arc::new(device_users::read()))
    }
    fn myself(&self) -> Result<Myself, HostError> {
        myself::myself()
    }
    fn digest(&self, path: &Path) -> Result<Answer<String>, HostError> {
        answered(path, myself::digest(path))
    }
}

/// Every change is made by the step that names it, and by nothing else.
impl Host for Live {
    fn execute(&mut self, step: &Step, running: &mut Running<'_>) -> Result<(), HostError> {
        let progress = &mut *running.progress;
        match step {
            Step::WriteFile(file) => {
                let program;
                let bytes = match &file.content {
                    Content::Text(text) => text.as_bytes(),
                    Content::Secret(digest) => running.secrets.get(digest).map(Vec::as_slice).ok_or_else(|| {
                        HostError::Refused(format!("the secret for `{}` is not in this run", file.path.display()))
                    })?,
                    Content::Program(digest) => {
                        program = myself::bytes()?;
                        if sha256_hex(&program) != *digest {
                            return Err(HostError::Refused(format!(
                                "`{}` was to be the gpuvm that the plan was made with, and this is another one",
                                file.path.display()
                            )));
                        }
                        &program
                    }
                };
                let (uid, gid) = (files::user(&file.owner)?, files::group(&file.group)?);
                files::write(&file.path, bytes, file.mode.bits(), uid, gid)
            }
            Step::RemoveFile { path } => files::remove(path),
            Step::MakeDir { path, mode, owner, group } => {
                files::make_dir(path, mode.bits(), files::user(owner)?, files::group(group)?)
            }
            Step::Link { path, target } => files::link(path, target),
            Step::Answers { path, version } => myself::answers(path, version),
            Step::RestoreFile { path } => {
                Err(HostError::Refused(format!("`{}` was not turned into what it was", path.display())))
            }
            Step::AptIndex { mark } => apt::index(mark, progress),
            Step::FinishPackages => apt::finish(progress),
            Step::Apt { request, install, remove } => {
                let mut asked: Vec<String> = request.iter().map(ToString::to_string).collect();
                asked.extend(remove.iter().map(|name| format!("{name}-")));
                apt::transaction(&asked, install, remove, progress)
            }
            Step::Service { unit, action } => {
                program::perform(Program::Systemctl, &[action.name(), unit.as_str()], SERVICE_LIMIT, progress)
            }
            Step::Module { name } => program::perform(Program::Modprobe, &["--", name], SHORT_LIMIT, progress),
            Step::GroupMember { group, user, present } => {
                let word = if *present { "-a" } else { "-d" };
                program::perform(Program::Gpasswd, &[word, user, group], SHORT_LIMIT, progress)
            }
            Step::Mig(step) => mig::set(step, self, running),
            Step::SwitchNetwork(switch) => network::switch(switch, running),
            Step::BindSlot(binding) => pci::bind(binding, progress),
            Step::VirtualFunctions(step) => pci::virtual_functions(step, progress),
            Step::Vgpus(step) => pci::vgpus(step, progress),
            Step::Refresh { refresh } => self.refresh(refresh, progress),
            Step::Reboot => runner::reboot(running.run_dir, progress),
            Step::Adopt => Ok(()),
            Step::BlockVolume(volume) => block_volumes::make(volume, self, progress),
            Step::RemoveBlockVolume { store, name, vm } => block_volumes::remove((store, name), vm, self, progress),
            Step::Fetch(fetch) => images::fetch(fetch, progress),
            Step::RemoveImage { path } => images::remove(path, self),
            Step::Seed { path, inputs } => {
                let made_from = running.secrets.get(inputs).ok_or_else(|| {
                    HostError::Refused(format!("what `{}` is made from is not in this run", path.display()))
                })?;
                seeds::make(path, inputs, made_from, progress)
            }
            Step::Pool { .. }
            | Step::MarkDomain { .. }
            | Step::Volume(_)
            | Step::RemovePool { .. }
            | Step::RemoveVolume { .. }
            | Step::Network { .. }
            | Step::DefineDomain { .. }
            | Step::CloneDomain { .. }
            | Step::RestoreDomain { .. }
            | Step::EditDomain { .. }
            | Step::UndefineDomain { .. }
            | Step::StartDomain { .. }
            | Step::StopDomain { .. }
            | Step::MakeSnapshot(_)
            | Step::KeepSnapshot { .. }
            | Step::ForgetSnapshot { .. }
            | Step::RemoveLayer { .. }
            | Step::CommitLayer { live: Some(_), .. }
            | Step::DetachDevices { .. } => libvirt::execute(step, running),
            Step::InstallDomain(step) => libvirt::install(step, self, running),
            Step::CopyFile(copy) => layers::copy_file(copy),
            Step::CopyVolume(copy) => layers::copy_volume(copy, progress),
            Step::CloneSeed { from, to, hostname, instance, mac, inputs } => {
                seeds::clone(from, to, Again { hostname, instance, mac: *mac, inputs })
            }
            Step::NewLayer { path, under, format } => layers::new(path, under, format, progress),
            Step::CommitLayer { top, into, live: None } => layers::commit(top, into, progress),
            Step::RebaseLayer { path, onto, format } => layers::rebase(path, onto, format, progress),
            Step::AttachDevices { else_back, .. } => {
                let attached = libvirt::execute(step, running);
                if let (Err(_), Some(back)) = (&attached, else_back)
                    && let Err(e) = pci::bind(back, running.progress)
                {
                    tracing::error!("the slot could not be given back: {e}");
                }
                attached
            }
        }
    }
    fn tidy(&mut self, path: &Path) -> Result<(), HostError> {
        super::whole::tidy(path).map_err(HostError::file(path))
    }
    fn remove_folder(&mut self, path: &Path) -> Result<bool, HostError> {
        super::whole::remove_folder(path).map_err(HostError::file(path))
    }
}

impl Live {
    fn refresh(&self, refresh: &Refresh, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
        match refresh {
            Refresh::DaemonReload => program::perform(Program::Systemctl, &["daemon-reload"], SHORT_LIMIT, progress),
            Refresh::Udev => program::perform(Program::Udevadm, &["control", "--reload"], SHORT_LIMIT, progress),
            // Only one of the two owns the initramfs; dracut's program may be there beside initramfs-tools.
            Refresh::Initramfs if program::place(Program::UpdateInitramfs).is_some() => {
                program::perform(Program::UpdateInitramfs, &["-u", "-k", "all"], BOOT_LIMIT, progress)
            }
            Refresh::Initramfs => {
                program::perform(Program::Dracut, &["--regenerate-all", "--force"], BOOT_LIMIT, progress)
            }
            Refresh::BootLoader => program::perform(Program::UpdateGrub, &[], BOOT_LIMIT, progress),
            Refresh::LibvirtHooks => {
                let folders =
                    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
                for unit in ["libvirtd.service", "virtqemud.service"] {
                    // One that does not run looks for hooks when it starts.
                    if folders.iter().any(|folder| Path::new(folder).join(unit).exists()) {
                        program::perform(
                            Program::Systemctl,
                            &["try-reload-or-restart", unit],
                            SERVICE_LIMIT,
                            progress,
                        )?;
                    }
                }
                Ok(())
            }
            Refresh::LinkerCache => program::perform(Program::Ldconfig, &[], SHORT_LIMIT, progress),
            // It asks the driver for its devices, which may wake cards.
            Refresh::Containers(of) => program::perform(Program::NvidiaCtk, of.arguments(), SHORT_LIMIT, progress),
            // One that does not run has nothing old to forget.
            Refresh::Restart(unit) => {
                program::perform(Program::Systemctl, &["try-restart", unit.as_str()], SERVICE_LIMIT, progress)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_that_was_planned_is_put_in_place_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bin/gpuvm");
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        // Another program is running from there.
        std::fs::copy("/bin/sleep", &path).unwrap();
        #[allow(clippy::disallowed_methods)] // a test may start programs
        let mut runs = std::process::Command::new(&path).arg("60").spawn().unwrap();
        let mut live = Live::for_a_plan();
        let mut put = |digest: &str| {
            let me = (nix::unistd::getuid().to_string(), nix::unistd::getgid().to_string());
            let write = crate::plan::FileWrite {
                path: path.clone(),
                content: Content::Program(digest.to_owned()),
                mode: Mode::new(0o755),
                owner: me.0,
                group: me.1,
            };
            let (mut notes, secrets) = (Vec::new(), std::collections::BTreeMap::new());
            let mut running = Running {
                secrets: &secrets,
                progress: &mut |_| {},
                notes: &mut notes,
                run_dir: Path::new("/nonexistent"),
            };
            live.execute(&Step::WriteFile(write), &mut running)
        };
        let this = myself::myself().unwrap();
        let refused = put(&sha256_hex(b"another")).unwrap_err().to_string();
        assert!(refused.contains("was to be the gpuvm that the plan was made with"), "{refused}");
        assert_eq!(myself::digest(&path).unwrap(), myself::digest(Path::new("/bin/sleep")).unwrap());
        put(&this.sha256).unwrap();
        assert_eq!(myself::digest(&path).unwrap(), this.sha256);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
        runs.kill().unwrap();
        runs.wait().unwrap();
    }

    #[test]
    fn absence_is_an_answer() {
        let live = Live::for_a_plan();
        assert_eq!(live.read(Path::new("/nonexistent/file")).unwrap(), Answer::Absent);
        assert_eq!(live.link(Path::new("/etc/passwd")).unwrap(), Answer::Absent);
        assert!(live.read(Path::new("/etc")).is_err());
    }
}
