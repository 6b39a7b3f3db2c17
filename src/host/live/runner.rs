//! The process that carries out a run: apart from the terminal, so that a lost connection changes nothing, and once more
//! after a reboot, by a unit that removes itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{files, myself, program};
use crate::host::{HostError, Program};

/// The unit that goes on with a run. It is removed by the run that it starts, before anything else: it cannot loop.
pub const RESUME_UNIT: &str = "/etc/systemd/system/gpuvm-resume.service";
const WANTED_BY: &str = "/etc/systemd/system/multi-user.target.wants/gpuvm-resume.service";

/// How long systemd may take to start a unit.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long devices may take after a boot: udev's own limit for one of its events (`event_timeout`, udev.conf(5)).
const DEVICES_LIMIT: Duration = Duration::from_secs(180);

/// How long services and VMs may take to stop before it counts as an error.
const DOWN_LIMIT: Duration = Duration::from_secs(900);

/// How long the step that is at work may take when the run is to stop. Only gpuvm itself is told to (`KillMode=mixed`):
/// dpkg in the middle of a package is not.
const STEP_LIMIT: Duration = Duration::from_secs(900);

/// `Type=exec`: the boot does not wait for the run. The run waits for the network, so that an address that is on its way
/// is not taken for one that is missing; what waits for it gives up by itself (systemd-networkd-wait-online(8)).
/// `gpuvm.off` on the kernel's command line keeps it from starting.
fn unit(run_dir: &Path, log: &[String]) -> String {
    let dir = run_dir.display();
    let stop = STEP_LIMIT.as_secs();
    let log: String = log.iter().map(|option| format!("{option} ")).collect();
    format!(
        "# Written by gpuvm for one boot; it removes itself.\n\
         [Unit]\n\
         Description=gpuvm goes on with a run after the reboot\n\
         ConditionKernelCommandLine=!gpuvm.off\n\
         ConditionPathExists={dir}/gpuvm\n\
         Wants=network-online.target\n\
         After=network-online.target libvirtd.service virtqemud.socket\n\
         \n\
         [Service]\n\
         Type=exec\n\
         KillMode=mixed\n\
         TimeoutStopSec={stop}\n\
         ExecStart={dir}/gpuvm {log}run {dir}\n\
         StandardError=append:{dir}/log\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// Starts the process of a run in a transient unit of its own. `log` are the options of gpuvm's that say how much it
/// logs and how.
pub fn launch(run_dir: &Path, run: u64, log: &[String]) -> Result<(), HostError> {
    let args = launch_args(run_dir, run, log);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    program::perform(Program::SystemdRun, &args, START_LIMIT, &mut |_| {})
}

fn launch_args(run_dir: &Path, run: u64, log: &[String]) -> Vec<String> {
    let dir = run_dir.display();
    let mut args: Vec<String> = ["--quiet", "--collect", "--property=Type=exec"].map(str::to_owned).into();
    args.extend([format!("--unit=gpuvm-run-{run}"), format!("--property=StandardError=append:{dir}/log")]);
    args.extend(["--".to_owned(), format!("{dir}/gpuvm")]);
    args.extend(log.iter().cloned());
    args.extend(["run".to_owned(), dir.to_string()]);
    args
}

/// The options that stand before the command `run`: the process after a reboot logs as the one before.
fn options_before_run(args: impl Iterator<Item = String>) -> Vec<String> {
    args.skip(1).take_while(|arg| arg != "run").collect()
}

/// Puts this program into the run's directory: what is installed may change before the run goes on.
pub fn keep_program(run_dir: &Path) -> Result<(), HostError> {
    files::write(&run_dir.join("gpuvm"), &myself::bytes()?, 0o700, 0, 0)
}

/// Leaves the run to the next boot and goes down. Returns only where that fails.
pub(super) fn reboot(run_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let log = options_before_run(std::env::args());
    files::write(Path::new(RESUME_UNIT), unit(run_dir, &log).as_bytes(), 0o644, 0, 0)?;
    files::make_dir(Path::new("/etc/systemd/system/multi-user.target.wants"), 0o755, 0, 0)?;
    files::link(Path::new(WANTED_BY), Path::new(RESUME_UNIT))?;
    let down = program::perform(Program::Systemctl, &["reboot"], Duration::from_secs(60), progress);
    if down.is_ok() {
        // systemd ends this process on the way down.
        std::thread::sleep(DOWN_LIMIT);
    }
    stay()?;
    down?;
    Err(HostError::Timeout { what: "the way down".to_owned(), limit: DOWN_LIMIT })
}

/// Takes the unit away, so that one boot starts it once.
pub fn stay() -> Result<(), HostError> {
    files::remove(Path::new(WANTED_BY))?;
    files::remove(Path::new(RESUME_UNIT))
}

/// Waits until udev is done with the devices that the boot found: a driver that is on its way is not one that is missing.
/// What hangs is left behind; udev gives up a worker after as long.
pub fn wait_for_devices() {
    let limit = format!("--timeout={}", DEVICES_LIMIT.as_secs());
    let wait = program::perform(Program::Udevadm, &["settle", &limit], DEVICES_LIMIT + START_LIMIT, &mut |_| {});
    if let Err(e) = wait {
        tracing::warn!("udev is not done with the devices yet: {e}");
    }
}

/// Whether the process of a run is there: systemd keeps a control group for a unit as long as it runs.
pub fn is_started(run: u64) -> bool {
    let group = |unit: &str| Path::new("/sys/fs/cgroup/system.slice").join(unit).join("cgroup.procs");
    let runs = |unit: &str| std::fs::read(group(unit)).is_ok_and(|processes| !processes.is_empty());
    runs(&format!("gpuvm-run-{run}.service")) || runs("gpuvm-resume.service")
}

/// Whether a run waits for the next boot.
pub fn waits_for_boot() -> bool {
    PathBuf::from(WANTED_BY).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_logs_as_it_was_asked_to_before_and_after_a_reboot() {
        let dir = Path::new("/var/lib/gpuvm/runs/7");
        let log = vec!["-v".to_owned(), "--log-format=json".to_owned()];
        let args = launch_args(dir, 7, &log);
        assert!(args.contains(&"--property=StandardError=append:/var/lib/gpuvm/runs/7/log".to_owned()), "{args:?}");
        let at = args.iter().position(|a| a == "--").unwrap() + 1;
        assert_eq!(
            args[at..],
            ["/var/lib/gpuvm/runs/7/gpuvm", "-v", "--log-format=json", "run", "/var/lib/gpuvm/runs/7"]
        );
        assert_eq!(options_before_run(args[at..].iter().cloned()), log);
        let text = unit(dir, &log);
        assert!(
            text.contains("\nExecStart=/var/lib/gpuvm/runs/7/gpuvm -v --log-format=json run /var/lib/gpuvm/runs/7\n")
        );
        assert!(unit(dir, &[]).contains("/gpuvm run /var"));
        // `gpuvm.off` on the kernel's command line keeps it from starting.
        assert!(text.contains("\nConditionKernelCommandLine=!gpuvm.off\n"));
    }
}
