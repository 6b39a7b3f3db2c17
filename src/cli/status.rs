//! `gpuvm status`: how the last run stands, and following one that is at work.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use miette::{IntoDiagnostic, miette};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::progress::{Screen, Told as Progress};
use super::run::EVENTS;
use super::{code, host, print, tell};
use crate::apply::{Ending, StateDir};
use crate::host::live;

/// Arguments of `gpuvm status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show what the run does until it ends.
    #[arg(long)]
    follow: bool,
    /// A recorded host in place of this machine.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How it is written to stdout.
    #[arg(long, value_enum, default_value = "text")]
    output: super::Output,
}

/// How the last run stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// There was none.
    NoRun,
    /// It is at work.
    AtWork(u64),
    /// It goes on at the next boot.
    WaitsForBoot(u64),
    /// It was cut off in the middle.
    CutOff(u64),
    /// It is over.
    Ended(u64, Ending),
}

/// How the last run stands; `here` where that is this machine, whose systemd knows of runs too.
pub(super) fn standing(state: &StateDir, here: bool) -> Standing {
    match state.last_run() {
        0 => Standing::NoRun,
        // In this order: a run at work has no ending, and one that just ended has no lock.
        run if state.at_work() => Standing::AtWork(run),
        run => match state.ending(run) {
            Some(ending) => Standing::Ended(run, ending),
            // Its process was started, and has not come to its lock yet.
            None if here && live::is_started(run) => Standing::AtWork(run),
            None if here && live::waits_for_boot() => Standing::WaitsForBoot(run),
            None => Standing::CutOff(run),
        },
    }
}

/// Whether a new run can begin; else why not, and what to do about the one in its way.
pub(super) fn free(state: &StateDir, here: bool) -> miette::Result<()> {
    match standing(state, here) {
        Standing::AtWork(run) => Err(miette!(help = "see what it does: gpuvm status --follow", "run {run} is at work")),
        Standing::WaitsForBoot(run) => Err(miette!(
            help = "boot it:     systemctl reboot\nor close it: gpuvm apply --abandon",
            "run {run} waits for the host to boot, and goes on then"
        )),
        Standing::CutOff(run) => Err(miette!("{}", cut_off(state, run).trim_end())),
        Standing::NoRun | Standing::Ended(..) => Ok(()),
    }
}

pub(super) fn run(args: &StatusArgs, quiet: bool) -> miette::Result<u8> {
    let dir = host::state_of(args.root.as_deref())?;
    let here = args.root.is_none();
    let state = StateDir::open(&dir).into_diagnostic()?;
    let mut standing = self::standing(&state, here);
    if args.follow
        && let Standing::AtWork(run) = standing
    {
        follow(&state.run_dir(run), 0, quiet, &|| here && live::is_started(run)).into_diagnostic()?;
        let state = StateDir::open(&dir).into_diagnostic()?;
        standing = self::standing(&state, here);
    }
    let Told { state: word, run: number, text, code } = told(&state, &standing, |run| state.log(run));
    let next_boot = super::next_boot::recorded(&dir).and_then(|r| r.warning());
    let refused = if here { crate::gpu::refused_starts(&host::live()) } else { Vec::new() };
    match args.output {
        super::Output::Text => {
            let refused: String = refused.iter().map(crate::report::refused_start).collect();
            tell(&(text + next_boot.as_deref().unwrap_or_default() + &refused))?;
        }
        super::Output::Json => print(&format!(
            "{}\n",
            serde_json::json!({
                "format": 1, "run": number, "state": word, "code": code, "text": text, "nextBoot": next_boot,
                "refusedStarts": refused
            })
        ))?,
    }
    Ok(code)
}

/// How the last run stands, in words.
pub(super) fn last_run(state: &StateDir, here: bool) -> String {
    told(state, &standing(state, here), |run| state.run_dir(run).join("log")).text
}

/// What is said of a run.
struct Told {
    /// A stable word for programs.
    state: &'static str,
    run: u64,
    text: String,
    code: u8,
}

fn told(state: &StateDir, standing: &Standing, log: impl Fn(u64) -> PathBuf) -> Told {
    let log = |run: &u64| format!("log: {}\n", log(*run).display());
    let (state, run, text, code) = match standing {
        Standing::NoRun => ("none", 0, "no run yet\n".to_owned(), code::OK),
        Standing::AtWork(run) => (
            "at-work",
            *run,
            format!("run {run} is at work\nfollow it: gpuvm status --follow\n") + &log(run),
            code::WAITS,
        ),
        Standing::WaitsForBoot(run) => ("waits-for-boot", *run, waits_for_boot(*run) + "\n" + &log(run), code::WAITS),
        Standing::CutOff(run) => ("cut-off", *run, cut_off(state, *run) + &log(run), code::ERROR),
        Standing::Ended(run, ending) => ("ended", *run, ending.text.clone() + &log(run), ending.code),
    };
    Told { state, run, text, code }
}

/// What to do about a run that waits for a boot.
fn waits_for_boot(run: u64) -> String {
    format!(
        "run {run} waits for the host to boot, and goes on then\n\
         boot it:     systemctl reboot\n\
         or close it: gpuvm apply --abandon"
    )
}

/// What to do about a run that was cut off.
pub(super) fn cut_off(state: &StateDir, run: u64) -> String {
    let at = match (state.interrupted(run), state.done(run)) {
        (Err(e), _) | (_, Err(e)) => format!("; {e}"),
        (Ok(Some(line)), _) => format!(", in the middle of `{}`", line.key),
        (Ok(None), Ok(done)) => match done.last() {
            Some(last) => format!(" after `{last}`"),
            None => " before its first step".to_owned(),
        },
    };
    format!(
        "run {run} was cut off{at}\n\
         go on with it, within what was approved: gpuvm apply --resume\n\
         or close it and plan anew:               gpuvm apply --abandon\n"
    )
}

/// How long a run may take from its start to its lock where nobody knows whether its process is there.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Shows what a run tells from this byte of its events on, until it ends, boots the host, or is cut off. `started`: its
/// process is there. On a host with much to do that is so for long before it has its lock.
pub(super) fn follow(
    run_dir: &Path,
    from: u64,
    quiet: bool,
    started: &dyn Fn() -> bool,
) -> std::io::Result<Option<Ending>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(run_dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
    let mut screen = Screen::new(quiet);
    let path: PathBuf = run_dir.join(EVENTS);
    let mut lines: Option<BufReader<File>> = None;
    let mut line = String::new();
    let begin = Instant::now();
    let mut seen = false;
    let top = run_dir.parent().and_then(Path::parent).unwrap_or(run_dir);
    loop {
        if lines.is_none() {
            lines = File::open(&path).ok().map(BufReader::new);
            if let Some(lines) = &mut lines {
                lines.seek(SeekFrom::Start(from))?;
            }
        }
        // Before the reading: what it wrote last is still read.
        let at_work = started() || StateDir::open(top).is_ok_and(|s| s.at_work());
        seen |= at_work;
        let over = !at_work && (seen || begin.elapsed() > START_LIMIT);
        if let Some(lines) = &mut lines {
            while lines.read_line(&mut line)? > 0 && line.ends_with('\n') {
                seen = true;
                if let Ok(told) = serde_json::from_str::<Progress>(&line) {
                    screen.show(&told);
                    if let Progress::Ended(ending) = told {
                        return Ok(Some(ending));
                    }
                }
                line.clear();
            }
        }
        if over {
            screen.show(&Progress::Ended(Ending { code: code::ERROR, text: String::new() }));
            return Ok(None);
        }
        // The end of a process wakes no watch on a file, hence the limit.
        let _ =
            poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&inotify), PollFlags::POLLIN)], PollTimeout::from(1000u16));
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_process_is_there_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("state/runs");
        let here = runs.join("7");
        std::fs::create_dir_all(&here).unwrap();
        let end =
            serde_json::to_string(&Progress::Ended(Ending { code: code::OK, text: "done\n".to_owned() })).unwrap();
        // It was seen, and has not the lock that would tell of it.
        let asked = std::cell::Cell::new(0);
        let until_third = || {
            asked.set(asked.get() + 1);
            if asked.get() == 3 {
                std::fs::write(here.join(EVENTS), format!("{end}\n")).unwrap();
            }
            asked.get() <= 3
        };
        let ending = follow(&here, 0, true, &until_third).unwrap();
        assert_eq!(ending.map(|e| e.text), Some("done\n".to_owned()));
        // One whose process went without a word was cut off.
        std::fs::remove_file(here.join(EVENTS)).unwrap();
        asked.set(5);
        let seen_once = || {
            asked.set(asked.get() + 1);
            asked.get() == 6
        };
        assert_eq!(follow(&here, 0, true, &seen_once).unwrap().map(|e| e.text), None);
    }

    #[test]
    fn each_standing_is_told_with_the_next_step_and_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let runs = StateDir::open(dir.path().join("state")).unwrap();
        let ended = Ending { code: code::ERROR, text: "run 7 failed: why\n".to_owned() };
        for (standing, state, exit, says) in [
            (Standing::NoRun, "none", code::OK, "no run yet\n"),
            (Standing::AtWork(7), "at-work", code::WAITS, "gpuvm status --follow\nlog: /runs/7/log\n"),
            (Standing::WaitsForBoot(7), "waits-for-boot", code::WAITS, "gpuvm apply --abandon\nlog: /runs/7/log\n"),
            (Standing::CutOff(7), "cut-off", code::ERROR, "gpuvm apply --resume\n"),
            (Standing::Ended(7, ended), "ended", code::ERROR, "run 7 failed: why\nlog: /runs/7/log\n"),
        ] {
            let told = told(&runs, &standing, |run| PathBuf::from(format!("/runs/{run}/log")));
            assert_eq!((told.state, told.code), (state, exit));
            assert!(told.text.contains(says) && told.text.ends_with('\n'), "{}", told.text);
        }
    }
}
