//! What is said on a rehearsal: a command to type next is about the recorded host too. Whoever copies it must not act on
//! the machine that they sit at.
//!
//! The texts come from everywhere (a plan, the end of a run that was written down, an error), and know nothing of where
//! they are shown. So this is done here, at the edge, to all that is said, by the command line's own definition.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{ArgMatches, CommandFactory};

use super::{Cli, shell_word};

/// The recorded host that this command is about.
static HOST: OnceLock<PathBuf> = OnceLock::new();

/// Remembers `--root`, whichever command it was given to.
pub(super) fn begin(mut matches: &ArgMatches) {
    while let Some((_, deeper)) = matches.subcommand() {
        matches = deeper;
    }
    if let Ok(Some(root)) = matches.try_get_one::<PathBuf>("root") {
        // A process has one command line.
        let _ = HOST.set(root.clone());
    }
}

/// The text with `--root DIR` in each command that takes it and does not have it.
pub(super) fn said(text: &str) -> String {
    HOST.get().map_or_else(|| text.to_owned(), |root| on(root, text))
}

fn on(root: &Path, text: &str) -> String {
    let option = format!(" --root {}", shell_word(&root.to_string_lossy()));
    let commands = Cli::command();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("gpuvm") {
        let (before, from) = rest.split_at(at);
        out += before;
        let begins = !unstyled_end(before).ends_with(|c: char| c.is_alphanumeric() || "/._-".contains(c));
        let words = from.strip_prefix("gpuvm").unwrap_or_default();
        let long = "gpuvm".len() + if begins { takes_root(&commands, words) } else { 0 };
        out += from.get(..long).unwrap_or_default();
        rest = from.get(long..).unwrap_or_default();
        let command = rest.split(['\n', '`', ';', '&']).next().unwrap_or_default();
        if long > "gpuvm".len() && !command.contains("--root") && !command.trim_start().starts_with("--record") {
            out += &option;
        }
    }
    out + rest
}

/// How long the words are that name a command with `--root`; 0 where it is none.
fn takes_root(commands: &clap::Command, text: &str) -> usize {
    let from = next_word(text);
    let word: String = from.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
    let blank = text.len() - from.len();
    let Some(command) = commands.find_subcommand(&word).filter(|_| blank > 0) else { return 0 };
    let long = blank + word.len();
    if command.get_arguments().any(|a| a.get_long() == Some("root")) {
        return long;
    }
    match takes_root(command, text.get(long..).unwrap_or_default()) {
        0 => 0,
        deeper => long + deeper,
    }
}

/// Each word of a dimmed line is dimmed for itself: what switches that on and off (ECMA-48's SGR) is no part of a command.
fn next_word(text: &str) -> &str {
    let mut rest = text;
    loop {
        let next = rest.trim_start();
        let next = next.strip_prefix("\x1b[").and_then(|sgr| Some(sgr.split_once('m')?.1)).unwrap_or(next);
        if next.len() == rest.len() {
            return rest;
        }
        rest = next;
    }
}

/// The same, at the end.
fn unstyled_end(text: &str) -> &str {
    let is_sgr = |s: &str| s.strip_suffix('m').is_some_and(|n| n.chars().all(|c| c.is_ascii_digit() || c == ';'));
    match text.rsplit_once("\x1b[") {
        Some((before, sgr)) if is_sgr(sgr) => unstyled_end(before),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_to_type_is_about_the_recorded_host() {
        for (text, said) in [
            ("go back: gpuvm undo 7\n", "go back: gpuvm undo --root 'a b' 7\n"),
            (
                "\x1b[2mit:\x1b[0m \x1b[2mgpuvm\x1b[0m\n    \x1b[2mvm\x1b[0m \x1b[2minfo\x1b[0m \x1b[2mweb\x1b[0m",
                "\x1b[2mit:\x1b[0m \x1b[2mgpuvm\x1b[0m\n    \x1b[2mvm\x1b[0m \x1b[2minfo --root 'a b'\x1b[0m \x1b[2mweb\x1b[0m",
            ),
            (
                "gpuvm vm start web && gpuvm vm wait web",
                "gpuvm vm start --root 'a b' web && gpuvm vm wait --root 'a b' web",
            ),
            ("`gpuvm plan` shows it", "`gpuvm plan --root 'a b'` shows it"),
            ("and gpuvm\n      apply --reboot", "and gpuvm\n      apply --root 'a b' --reboot"),
            ("apply: gpuvm apply -f x --root 'a b'\n", "apply: gpuvm apply -f x --root 'a b'\n"),
            // These take none, or are none.
            ("gpuvm facts --record DIR", "gpuvm facts --record DIR"),
            ("gpuvm schema; gpuvm.off; gpuvm apples; /usr/local/bin/gpuvm plan; gpuvm", ""),
            ("/var/lib/gpuvm\nplan", ""),
        ] {
            let wanted = if said.is_empty() { text } else { said };
            assert_eq!(on(Path::new("a b"), text), wanted);
        }
    }
}
