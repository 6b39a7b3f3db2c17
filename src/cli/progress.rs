//! What a run tells while it is at work: as lines in a file that anyone can follow, and on the terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::apply::{Ending, Event};

/// One thing that a run told; a line of `events.jsonl` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub(super) enum Told {
    /// A thing is being changed.
    Begins { key: String },
    /// How far it is.
    Progress { line: String },
    /// It is done.
    Done { key: String, seconds: u64 },
    /// The host boots again; the run goes on afterwards.
    Rebooting,
    /// The run is over.
    Ended(Ending),
}

/// Turns events into what is told, with the time that each took.
#[derive(Debug, Default)]
pub(super) struct Teller {
    begun: Option<Instant>,
}

impl Teller {
    pub(super) fn told(&mut self, event: &Event<'_>) -> Told {
        match event {
            Event::Begins(key) => {
                self.begun = Some(Instant::now());
                Told::Begins { key: key.to_string() }
            }
            Event::Progress(line) => Told::Progress { line: (*line).to_owned() },
            Event::Done(key) => {
                let seconds = self.begun.take().map_or(0, |b| b.elapsed().as_secs());
                Told::Done { key: key.to_string(), seconds }
            }
            Event::Rebooting => Told::Rebooting,
        }
    }
}

/// Shows it on standard error: one line for what is done, and on a terminal a last line for what is going on.
pub(super) struct Screen {
    line: ProgressBar,
    key: String,
    quiet: bool,
}

impl Screen {
    pub(super) fn new(quiet: bool) -> Self {
        let line = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {wide_msg} {elapsed}") {
            line.set_style(style);
        }
        Self { line, key: String::new(), quiet }
    }

    pub(super) fn show(&mut self, told: &Told) {
        match told {
            Told::Begins { key } => {
                self.key.clone_from(key);
                self.line.reset_elapsed();
                self.line.set_message(key.clone());
                self.line.enable_steady_tick(Duration::from_millis(120));
            }
            Told::Progress { line } => {
                // What programs say must not steer the terminal.
                let line: String = line.chars().filter(|c| !c.is_control()).collect();
                self.line.set_message(format!("{}: {line}", self.key));
            }
            Told::Done { key, seconds } => {
                let time = if *seconds >= 2 { format!("   {seconds} s") } else { String::new() };
                self.say(&format!("  done  {key}{time}"));
            }
            Told::Rebooting => self.say("── the host boots again ──"),
            Told::Ended(_) => self.line.finish_and_clear(),
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            self.line.suspend(|| super::say(&format!("{text}\n")));
        }
    }
}
