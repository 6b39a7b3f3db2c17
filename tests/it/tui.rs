//! The screen of `gpuvm tui` on a pseudo-terminal of 80 × 24: what a person sees, line by line, what keys do, and that the
//! terminal is given back on every way out. `UPDATE_CASES=1` writes the screens that came; read them before you keep them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use nix::pty::openpty;
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

/// Plays the guest of `tiny`, which runs: a program on a terminal of its own, as a guest's getty has it. It is started anew
/// for each who opens the console.
fn guest(host: &Host, program: &'static str) {
    host.says("vm start tiny", 0);
    let at = host.at("host/root/run/libvirt/qemu/tiny.console");
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    let listens = UnixListener::bind(&at).unwrap();
    std::thread::spawn(move || {
        for line in listens.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(line, program));
        }
    });
}

/// Until the console is left, or the program ends.
fn serve(line: UnixStream, program: &str) {
    let pair = openpty(None, None).unwrap();
    let end = || Stdio::from(pair.slave.try_clone().unwrap());
    let mut shell = Command::new("setsid");
    shell.args(["--ctty", "sh", "-c", program]).stdin(end()).stdout(end()).stderr(end());
    let mut shell = shell.spawn().unwrap();
    drop(pair.slave);
    let (writes, reads) = (fs::File::from(pair.master.try_clone().unwrap()), fs::File::from(pair.master));
    let takes = line.try_clone().unwrap();
    std::thread::spawn(move || {
        passed_on(reads, &line);
        let _ = line.shutdown(std::net::Shutdown::Both);
    });
    passed_on(takes, writes);
    let _ = shell.kill();
    shell.wait().unwrap();
}

fn passed_on(mut from: impl Read, mut to: impl Write) {
    let mut part = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut part) {
        if to.write_all(&part[..n]).is_err() {
            break;
        }
    }
}

const WAY_OUT: &str = " console of tiny   Ctrl-] (or Ctrl-5) leaves it";

/// The screen with the console of `tiny` open.
fn with_console(host: &Host) -> Terminal {
    let mut terminal = tui(host, &[]);
    terminal.until_screen("VMs", |screen| screen.contains("theirs   off") && settled(screen));
    terminal.keys("j");
    terminal.until_screen("tiny", |screen| screen.contains("tiny   running") && settled(screen));
    terminal.keys("c");
    terminal.until_seen("console", |screen| screen.lines().nth(23).is_some_and(|l| l.starts_with(WAY_OUT)));
    terminal
}

fn back_at_the_vms(terminal: &mut Terminal) {
    terminal.until_screen("VMs again", |screen| screen.contains("s start  t stop  c console") && settled(screen));
}

#[test]
fn the_console_of_a_vm_is_typed_at_and_left_by_the_key_on_the_screen() {
    let host = Host::new();
    // A shell at a guest's terminal; each line that is typed comes back by the terminal, and once more by the program.
    guest(
        &host,
        r#"stty -echo -isig; printf '\033[1mlabguest\033[0m login:\n'; while read -r l; do echo "got <$l>"; done"#,
    );
    let mut terminal = with_console(&host);
    terminal.until_seen("login", |screen| screen.starts_with("labguest login:\n"));
    assert!(terminal.drawn().screen().cell(0, 0).unwrap().bold());
    // All keys are the guest's, those of the screen and ^C too.
    terminal.keys("q1\u{3}s\r");
    terminal.until_seen("what was typed", |screen| screen.contains("got <q1s>"));
    // What comes behind the key that leaves is nobody's.
    terminal.keys("\u{1d}q");
    back_at_the_vms(&mut terminal);
    // A second time: it was given back.
    terminal.keys("c");
    terminal.until_seen("again", |screen| screen.starts_with("labguest login:\n") && screen.contains(WAY_OUT));
    // A larger window is used as a whole, a smaller one shows where the cursor is, and the way out is on the last line.
    for (rows, columns) in [(40, 120), (12, 50), (24, 80)] {
        terminal.resize(rows, columns);
        terminal.keys(&format!("{rows}\r"));
        terminal.until_seen("another size", |screen| {
            screen.contains(&format!("got <{rows}>"))
                && screen.lines().nth(usize::from(rows) - 1).is_some_and(|l| l.starts_with(" console of tiny   Ctrl-]"))
        });
    }
    terminal.keys("\u{1d}");
    back_at_the_vms(&mut terminal);
    terminal.keys("q");
    let (status, said) = terminal.end();
    assert!(status.success(), "{said}");
}

#[test]
fn nothing_that_a_guest_writes_gets_out_of_its_place() {
    let host = Host::new();
    // Clipboard, title, another screen, mouse, paste, a margin, a reset, questions, DCS, bell, C1, direction, then a word.
    guest(
        &host,
        "stty raw -echo; printf '\\033]52;c;cHduZWQ=\\007\\033]0;owned\\007\\033[?1049h\\033[?1000h\\033[?1006h\\033[?2004h\\033[5;6r\
         \\033[?1049l\\033c\\033[c\\033[6n\\033[>c\\033P$q\\042p\\033\\\\\\007\\302\\2332J\\342\\200\\256\\033[24;1Hbelow\\033[1;1HREADY '
         dd bs=1 count=13 2>/dev/null | od -An -c | tr -s ' ' | tr -d '\\n'; sleep 600",
    );
    let mut terminal = with_console(&host);
    let from = terminal.said.len();
    // What it asked is answered to it, by the screen and not by the terminal.
    terminal.until_seen("READY", |screen| screen.starts_with("READY  033 [ ? 1 ; 2 c 033 [ 1 ; 1 R"));
    let said = String::from_utf8_lossy(&terminal.said[from..]).into_owned();
    for steers in
        ["\x1b]", "\x1bP", "\x07", "\x1bc", "?1049", "?1000", "?1006", "?2004", "5;6r", "\x1b[c", "\x1b[6n", "\x1b[>c"]
    {
        assert!(!said.contains(steers), "{steers:?} in {said:?}");
    }
    for hidden in ["\u{9b}", "\u{202e}"] {
        assert!(!said.contains(hidden), "{said:?}");
    }
    assert!(terminal.screen().lines().nth(23).is_some_and(|l| l.starts_with(WAY_OUT)), "{}", terminal.screen());
    terminal.keys("\u{1d}");
    back_at_the_vms(&mut terminal);
    terminal.keys("q");
    assert!(terminal.end().0.success());
}

#[test]
fn a_console_is_left_whatever_the_guest_does_and_its_end_is_said() {
    let host = Host::new();
    // One that writes without an end, one that takes nothing, one whose terminal nobody answers at.
    for program in ["yes 'and so on'", "stty raw; sleep 600"] {
        let at = host.at("host/root/run/libvirt/qemu/tiny.console");
        let _ = fs::remove_file(&at);
        guest(&host, program);
        let mut terminal = with_console(&host);
        if program.starts_with("yes") {
            terminal.until_seen("much", |screen| screen.contains("and so on\nand so on"));
        }
        terminal.keys(&"x".repeat(3000));
        terminal.keys("\u{1d}");
        back_at_the_vms(&mut terminal);
        terminal.keys("q");
        assert!(terminal.end().0.success());
    }
    // Nobody takes the connection: what opens it waits, and is left all the same.
    let at = host.at("host/root/run/libvirt/qemu/tiny.console");
    fs::remove_file(&at).unwrap();
    let silent = UnixListener::bind(&at).unwrap();
    let mut terminal = with_console(&host);
    assert!(terminal.screen().contains("Enter shows where it is"));
    terminal.keys("\u{1d}");
    back_at_the_vms(&mut terminal);
    // The guest ends.
    terminal.keys("c");
    let connections: Vec<UnixStream> = silent.incoming().take(2).map(Result::unwrap).collect();
    terminal.until_seen("console", |screen| screen.contains(WAY_OUT));
    drop(connections);
    terminal.until_screen("its end", |screen| screen.contains("it ended: the VM is off") && screen.contains("any key"));
    terminal.keys(" ");
    back_at_the_vms(&mut terminal);
    // One that is off has none, in the words of the command.
    terminal.keys("k");
    terminal.until_screen("theirs", |screen| screen.contains("not gpuvm's: left as it is"));
    terminal.keys("c");
    terminal.until_screen("none", |screen| screen.contains("no guest runs there"));
    terminal.keys(" ");
    // And while it is open, a signal is a way out as everywhere.
    terminal.keys("j");
    terminal.until_screen("tiny", |screen| screen.contains("tiny   running") && settled(screen));
    terminal.keys("c");
    terminal.until_seen("console", |screen| screen.contains(WAY_OUT));
    let before = terminal.before.clone();
    kill(Pid::from_raw(terminal.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let (status, said, settings) = terminal.end_with_settings();
    assert_eq!((status.code(), settings), (Some(143), before), "{said}");
}

#[test]
fn the_command_gives_the_terminal_to_the_guest_and_takes_it_back() {
    let host = Host::new();
    let off = host.says("vm console tiny", 1);
    assert!(off.contains("no guest runs there"), "{off}");
    guest(&host, "stty raw -echo; printf 'READY '; dd bs=1 count=4 2>/dev/null | od -An -c | tr -d '\\n'; sleep 600");
    let args = ["vm", "console", "tiny", "--root", "host"];
    let mut terminal = Terminal::start_with(env!("CARGO_BIN_EXE_gpuvm").as_ref(), &args, host.dir.path(), &[]);
    let before = terminal.before.clone();
    terminal.until_seen("READY", |screen| screen.contains("Ctrl-] leaves it") && screen.contains("READY"));
    assert_ne!(terminal.settings(), before);
    terminal.keys("a\u{3}\u{4}b");
    terminal.until_seen("keys", |screen| screen.contains("a 003 004   b"));
    terminal.keys("\u{1d}");
    let (status, said, settings) = terminal.end_with_settings();
    assert_eq!((status.code(), settings), (Some(0), before), "{said}");
    host.says("vm stop tiny", 0);
    let off = host.says("vm console tiny", 1);
    assert!(off.contains("VM `tiny` is off; start it: gpuvm vm start tiny"), "{off}");
}
