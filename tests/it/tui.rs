//! The screen of `gpuvm tui` on a pseudo-terminal of 80 × 24: what a person sees, line by line, what keys do, and that the
//! terminal is given back on every way out. `UPDATE_CASES=1` writes the screens that came; read them before you keep them.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cases::expect;
use crate::host::Host;
use crate::machine::repository;
use crate::terminal::Terminal;

fn tui(host: &Host, env: &[(&str, &str)]) -> Terminal {
    let args = ["tui", "--root", "host", "-f", "host.yaml"];
    Terminal::start_with(env!("CARGO_BIN_EXE_gpuvm").as_ref(), &args, host.dir.path(), env)
}

/// All that is known has come: nothing is being asked for the first time.
fn settled(screen: &str) -> bool {
    !screen.contains("asking …") && screen.lines().next().is_some_and(|l| l.contains("labhost"))
}

#[test]
fn what_is_seen_in_80_columns_is_what_was_read_by_eye() {
    let host = Host::new();
    let mut wrong = Vec::new();
    let mut terminal = tui(&host, &[]);
    let mut look = |terminal: &mut Terminal, name: &str, keys: &str, shows: &str| {
        terminal.keys(keys);
        terminal.until_screen(name, |screen| screen.contains(shows) && settled(screen));
        let screen = terminal.screen();
        assert!(screen.lines().all(|l| l.chars().count() <= 80), "{screen}");
        expect(&repository().join(format!("tests/tui/{name}.txt")), &screen, &mut wrong);
    };
    look(&mut terminal, "vms", "", "would not start:");
    look(&mut terminal, "vm-of-gpuvm", "j", "tiny   off   gpuvm's");
    look(&mut terminal, "start", "s", "y: do it");
    terminal.keys("n");
    look(&mut terminal, "attach", "a", "a GPU for tiny");
    terminal.keys("n");
    look(&mut terminal, "gpus", "2", "the boot display");
    look(&mut terminal, "host", "1", "uplink enp0s2");
    look(&mut terminal, "plan", "4", "in sync");
    look(&mut terminal, "run", "5", "nothing is being carried out");
    terminal.keys("q");
    let (status, said) = terminal.end();
    assert!(status.success(), "{said}");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_vm_is_started_stopped_and_given_a_gpu_as_by_the_commands() {
    let host = Host::new();
    let mut terminal = tui(&host, &[]);
    let mut press = |keys: &str, shows: &str| {
        terminal.keys(keys);
        terminal.until_screen(keys, |screen| screen.contains(shows) && settled(screen));
        terminal.screen()
    };
    press("", "theirs   off");
    press("j", "tiny   off   gpuvm's");
    // Not without the word.
    press("s", "y: do it");
    press("n", "s start  t stop");
    assert_eq!(host.domain("tiny")["active"], false);
    let shown = press("s", "y: do it");
    assert!(shown.contains("gpuvm vm start tiny"), "{shown}");
    press("y", "go back: gpuvm undo");
    assert_eq!(host.domain("tiny")["active"], true);
    press("3", "tiny   running   gpuvm's");
    let shown = press("s", "any key goes on");
    assert!(shown.contains("nothing to do"), "{shown}");
    press(" ", "s start  t stop");
    press("t", "y: do it");
    press("y", "tiny is off");
    assert_eq!(host.domain("tiny")["active"], false);
    // What the command refuses is refused here, in the same words.
    press("3", "tiny   off   gpuvm's");
    press("k", "not gpuvm's: left as it is");
    let shown = press("s", "any key goes on");
    assert!(shown.contains("nothing was changed"), "{shown}");
    press(" ", "s start  t stop");
    press("j", "tiny   off   gpuvm's");
    press("a", "a GPU for tiny");
    let shown = press("jj\r", "y: do it");
    assert!(shown.contains("gpuvm gpu attach tiny"), "{shown}");
    press("y", "go back: gpuvm undo");
    let xml = host.domain("tiny")["inactiveXml"].as_str().unwrap().to_owned();
    assert!(xml.contains("<hostdev"), "{xml}");
    terminal.keys("q");
    assert!(terminal.end().0.success());
    let history = host.says("history", 0);
    assert!(history.contains("gpuvm vm start tiny") && history.contains("gpuvm gpu attach tiny"), "{history}");
}

#[test]
fn what_does_not_answer_is_unknown_and_keys_are_heard_all_the_same() {
    let host = Host::new();
    // Whoever reads it waits for a writer that never comes, as for a daemon that hangs.
    let pipe = host.at("host/root/proc/modules");
    fs::remove_file(&pipe).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let mut terminal = tui(&host, &[]);
    terminal.until_screen("VMs", |screen| screen.contains("? unknown: no answer for"));
    terminal.keys("2");
    terminal.until_screen("GPUs", |screen| screen.contains("page up, down: more of it"));
    terminal.keys("q");
    let (status, said) = terminal.end();
    assert!(status.success(), "{said}");
}

#[test]
fn no_name_of_others_steers_the_screen() {
    let host = Host::new();
    host.libvirt(|known| {
        let xml = known["domains"][0]["inactiveXml"].as_str().unwrap().replace("<name>theirs<", "<name>a\u{202e}b<");
        known["domains"][0]["inactiveXml"] = xml.into();
        known["domains"][0]["name"] = "a\u{1b}[2J\u{202e}b".into();
    });
    let mut terminal = tui(&host, &[]);
    terminal.until_screen("VMs", |screen| screen.contains("a\\u{1b}[2J\\u{202e}b") && settled(screen));
    terminal.keys("q");
    assert!(terminal.end().0.success());
}

#[test]
fn the_terminal_is_given_back_on_every_way_out() {
    let host = Host::new();
    let signals = [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)];
    for (way, code) in signals.map(|(signal, code)| (Some(signal), code)).into_iter().chain([(None, 0)]) {
        let mut terminal = tui(&host, &[]);
        let before = terminal.before.clone();
        terminal.until_screen("VMs", settled);
        assert_ne!(terminal.settings(), before, "every key is the screen's");
        match way {
            Some(signal) => kill(Pid::from_raw(terminal.id().try_into().unwrap()), signal).unwrap(),
            None => terminal.keys("\u{3}"),
        }
        let (status, said, settings) = terminal.end_with_settings();
        assert_eq!((status.code(), settings), (Some(code), before), "{way:?}: {said}");
        assert!(said.contains("\x1b[?1049l"), "{way:?}");
    }
    // What a panic says is read on the terminal as it was before.
    let terminal = tui(&host, &[("GPUVM_PANIC", "1")]);
    let (status, said) = terminal.end();
    assert_eq!(status.code(), Some(101), "{said}");
    let (_, after) = said.split_once("\x1b[?1049l").unwrap();
    assert!(after.contains("as a test asked"), "{said}");
    // The connection is lost.
    let mut terminal = tui(&host, &[]);
    terminal.until_screen("VMs", settled);
    terminal.hang_up();
    let (status, _) = terminal.end();
    assert!(!status.success());
}
