//! What a run tells while it is at work: as lines in a file that anyone can follow, and on the terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::LogFormat;
use crate::apply::{Ending, Event};

/// One thing that a run told; a line of `events.jsonl` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub(super) enum Told {
    /// A thing is being changed.
    Begins { key: String },
    /// How far it is.
    Progress { line: String },
    /// Something to be read about it, though nothing failed.
    Note { line: String },
    /// It is done.
    Done { key: String, seconds: u64 },
    /// The host boots again; the run goes on afterwards.
    Rebooting,
    /// The run is over.
    Ended(Ending),
}

impl Told {
    /// Writes it to the log: a line that reads as a sentence, or fields for programs. `key` is the thing that is being
    /// changed, kept from one call to the next.
    pub(super) fn log(&self, key: &mut String, format: LogFormat) {
        if let Told::Begins { key: begun } = self {
            key.clone_from(begun);
        }
        if format == LogFormat::Text {
            return self.lines(key).iter().for_each(|line| tracing::info!("{line}"));
        }
        match self {
            Told::Begins { key } => tracing::info!(event = "begins", %key),
            Told::Progress { line } => tracing::info!(event = "progress", %key, %line),
            Told::Note { line } => tracing::info!(event = "note", %key, %line),
            Told::Done { key, seconds } => tracing::info!(event = "done", %key, seconds),
            Told::Rebooting => tracing::info!(event = "rebooting"),
            Told::Ended(ending) => tracing::info!(event = "ended", code = ending.code, text = %ending.text),
        }
    }

    /// As a person reads it.
    fn lines(&self, key: &str) -> Vec<String> {
        match self {
            Told::Begins { key } => vec![format!("{key}: begins")],
            Told::Progress { line } | Told::Note { line } => vec![format!("{key}: {}", one_line(line))],
            Told::Done { key, seconds } => vec![format!("{key}: done after {seconds} s")],
            Told::Rebooting => vec!["the host boots again".to_owned()],
            Told::Ended(ending) => ending.text.lines().map(one_line).filter(|l| !l.trim().is_empty()).collect(),
        }
    }
}

/// What programs say must not steer the terminal, or look like another line of a log.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
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
            Event::Note(line) => Told::Note { line: (*line).to_owned() },
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
                self.line.set_message(format!("{}: {}", self.key, one_line(line)));
            }
            Told::Note { line } => self.say(&format!("  {}", one_line(line))),
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat) -> Vec<String> {
        let log = Log::default();
        let to = log.clone();
        let writer = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || to.clone());
        let told = [
            Told::Begins { key: "package".to_owned() },
            Told::Progress { line: "Setting up libvirt0\u{1b}[1m …\r".to_owned() },
            Told::Done { key: "package".to_owned(), seconds: 19 },
            Told::Rebooting,
            Told::Ended(Ending { code: 0, text: "run 7: 1 change done\n\n".to_owned() }),
        ];
        let all = || {
            let mut key = String::new();
            told.iter().for_each(|t| t.log(&mut key, format));
        };
        match format {
            LogFormat::Text => tracing::subscriber::with_default(writer.finish(), all),
            LogFormat::Json => tracing::subscriber::with_default(writer.json().finish(), all),
        }
        let bytes = log.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_log_of_text_reads_as_people_read() {
        let lines = logged(LogFormat::Text);
        let said: Vec<&str> = lines.iter().map(|l| l.split_once("progress: ").unwrap().1).collect();
        assert_eq!(
            said,
            [
                "package: begins",
                "package: Setting up libvirt0[1m …",
                "package: done after 19 s",
                "the host boots again",
                "run 7: 1 change done"
            ]
        );
    }

    #[test]
    fn a_log_of_json_has_fields() {
        let fields: Vec<serde_json::Value> = logged(LogFormat::Json)
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["fields"].clone())
            .collect();
        let at = |n: usize, field: &str| fields[n][field].clone();
        assert_eq!((at(0, "event"), at(0, "key")), ("begins".into(), "package".into()));
        assert_eq!((at(1, "event"), at(1, "key")), ("progress".into(), "package".into()));
        assert_eq!((at(2, "event"), at(2, "seconds")), ("done".into(), 19.into()));
        assert_eq!((at(3, "event"), at(4, "code")), ("rebooting".into(), 0.into()));
    }
}
