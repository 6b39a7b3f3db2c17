//! What is shown, asked by threads that can be left behind: a daemon that hangs must not take the screen with it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::apply::StateDir;
use crate::cli::defaults::manifest_of;
use crate::cli::{gpu, host, status, vm_look};
use crate::facts;
use crate::host::Snapshot;
use crate::manifest;
use crate::plan::Selection;
use crate::report::{self, Detail};
use crate::types::{safe, safe_line};

/// Which host, and which manifest.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub file: Option<PathBuf>,
    pub root: Option<PathBuf>,
}

impl Target {
    pub(super) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }
}

/// One thing of a list.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// What verbs call it.
    pub name: String,
    /// Its line.
    pub line: String,
    /// All that is known of it.
    pub detail: Vec<String>,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// What it is about.
    pub title: String,
    pub items: Vec<Item>,
    pub lines: Vec<String>,
}

/// What a thread found out.
pub(super) type Answer<T> = Result<T, String>;

/// What is asked again and again, in the background.
pub(super) struct Watched<T> {
    asked: Option<(Instant, Receiver<Answer<T>>)>,
    known: Option<(Instant, Answer<T>)>,
}

impl<T> Default for Watched<T> {
    fn default() -> Self {
        Self { asked: None, known: None }
    }
}

/// What has been asked for longer than this is not known, whatever was known before.
const PATIENCE: Duration = Duration::from_secs(3);

impl<T: Send + 'static> Watched<T> {
    /// Asks, unless it is being asked: a thread that hangs stays the only one.
    pub(super) fn ask(&mut self, what: impl FnOnce() -> Answer<T> + Send + 'static) {
        if self.asked.is_some() {
            return;
        }
        let (sent, receiver) = channel();
        std::thread::spawn(move || sent.send(what()));
        self.asked = Some((Instant::now(), receiver));
    }

    /// Takes in what has come; whether something has.
    pub(super) fn take_in(&mut self) -> bool {
        let Some((_, receiver)) = &self.asked else { return false };
        let answer = match receiver.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return false,
            Err(TryRecvError::Disconnected) => Err("whoever asked has ended".to_owned()),
        };
        self.asked = None;
        self.known = Some((Instant::now(), answer));
        true
    }

    /// What is known, be it old.
    pub(super) fn known(&self) -> Option<&Answer<T>> {
        self.known.as_ref().map(|(_, answer)| answer)
    }

    /// What came, for whoever asked once.
    pub(super) fn take(&mut self) -> Option<Answer<T>> {
        self.known.take().map(|(_, answer)| answer)
    }

    /// Whether it is to be asked anew.
    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        self.asked.is_none() && self.known.as_ref().is_none_or(|(at, _)| at.elapsed() >= age)
    }

    /// Why what is shown may not be so: it could not be told, or nobody has answered for too long.
    pub(super) fn doubt(&self) -> Option<String> {
        if let Some((since, _)) = &self.asked
            && since.elapsed() >= PATIENCE
        {
            let before = if self.known.is_some() { "; below is what was known before" } else { "" };
            return Some(format!("unknown: no answer for {} s{before}", since.elapsed().as_secs()));
        }
        match &self.known {
            Some((_, Err(why))) => Some(format!("unknown: {}", safe_line(why))),
            Some((_, Ok(_))) => None,
            None => Some("asking …".to_owned()),
        }
    }
}

/// A text for people as lines for this screen: without colours, and nothing in it steers the terminal.
pub(super) fn lines(text: &str) -> Vec<String> {
    let plain = anstream::adapter::strip_str(text).to_string();
    safe(&plain).lines().map(|line| line.replace('\t', "    ")).collect()
}

fn said(error: &miette::Report) -> String {
    match error.help() {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    }
}

pub(super) fn host(target: &Target) -> Answer<Seen> {
    let look = || -> miette::Result<Seen> {
        let (probe, state) = host::open(target.root())?;
        let snapshot = Snapshot::new(probe.as_ref());
        let facts = facts::collect(&snapshot);
        let mut text = report::facts_text(&facts);
        if let Ok(state) = StateDir::open(state) {
            text += "\n";
            text += &status::last_run(&state, target.root.is_none());
        }
        let title = format!("{}   {}   Linux {}", facts.hostname, facts.os.name, facts.kernel.release);
        Ok(Seen { title: safe_line(&title), lines: lines(&text), ..Seen::default() })
    };
    look().map_err(|e| said(&e))
}

pub(super) fn gpus(target: &Target) -> Answer<Seen> {
    let look = || -> miette::Result<Seen> {
        let all = gpu::named(target.root(), target.file.as_deref())?;
        let rows = lines(&report::gpu_list(&all));
        let items = all.iter().zip(&rows).map(|(gpu, row)| Item {
            name: gpu.name.clone().unwrap_or_else(|| gpu.gpu.slot.to_string()),
            line: row.clone(),
            detail: lines(&report::gpu_status(gpu)),
        });
        let items = items.collect();
        Ok(Seen { items, lines: rows.get(all.len()..).unwrap_or_default().to_vec(), ..Seen::default() })
    };
    look().map_err(|e| said(&e))
}

pub(super) fn vms(target: &Target) -> Answer<Seen> {
    let look = || -> miette::Result<Seen> {
        let (list, all) = vm_look::all(target.root())?;
        // Beneath a VM's line its condition may stand, which is in its details too.
        let rows: Vec<String> = lines(&list).into_iter().filter(|l| !l.starts_with("  ! ")).collect();
        let items = all.into_iter().zip(rows).map(|((name, info), line)| Item { name, line, detail: lines(&info) });
        Ok(Seen { items: items.collect(), ..Seen::default() })
    };
    look().map_err(|e| said(&e))
}

pub(super) fn plan(target: &Target) -> Answer<Seen> {
    let look = || -> miette::Result<Seen> {
        let (probe, state) = host::open(target.root())?;
        let file = match &target.file {
            Some(file) => Some(file.clone()),
            None => manifest_of(target.root(), probe.as_ref())?,
        };
        let Some(file) = file else {
            return Ok(Seen { lines: lines("no manifest here: gpuvm tui -f host.yaml\n"), ..Seen::default() });
        };
        let loaded = manifest::load(&file)?;
        if let Err(other) = host::is_meant(&loaded, probe.as_ref()) {
            return Ok(Seen { lines: lines(&other), ..Seen::default() });
        }
        let past = StateDir::open(state).and_then(|s| s.past()).map_err(|e| miette::miette!("{e}"))?;
        let (plan, _) = host::plan_now(&loaded, &Selection::default(), probe.as_ref(), &past);
        let text = report::plan_text(&plan, Detail::Normal);
        let apply = format!("\nto carry it out: gpuvm apply -f {}\n", file.display());
        Ok(Seen { lines: lines(&(text + &apply)), ..Seen::default() })
    };
    look().map_err(|e| said(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_unknown_and_asked_once() {
        let (release, waits) = channel::<()>();
        let mut watched = Watched::default();
        assert_eq!(watched.doubt().unwrap(), "asking …");
        watched.ask(move || {
            let _ = waits.recv();
            Ok(1)
        });
        watched.ask(|| panic!("asked twice"));
        assert!(!watched.take_in() && !watched.is_older_than(Duration::ZERO));
        watched.asked.as_mut().unwrap().0 -= PATIENCE;
        assert!(watched.doubt().unwrap().starts_with("unknown: no answer for 3 s"));
        release.send(()).unwrap();
        while !watched.take_in() {
            std::thread::yield_now();
        }
        assert_eq!((watched.doubt(), watched.known()), (None, Some(&Ok(1))));
        watched.ask(|| Err("a\u{1b}[2Jb".to_owned()));
        while !watched.take_in() {
            std::thread::yield_now();
        }
        assert_eq!(watched.doubt().unwrap(), "unknown: a\\u{1b}[2Jb");
    }

    #[test]
    fn no_text_steers_the_screen() {
        assert_eq!(lines("\u{1b}[31mred\u{1b}[0m\n\tin\u{9b}2J\u{202e}\r\n"), ["red", "    in\\u{9b}2J\\u{202e}\\r"]);
    }
}
