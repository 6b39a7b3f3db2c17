//! The console of a VM within the screen. `gpuvm vm console` runs below it, on pipes, and what comes of the guest is drawn by
//! a terminal emulator of our own: of all that a guest writes, only characters, their looks and the cursor reach the
//! terminal. The process can be ended at any time, whatever hangs: the guest, libvirt, or neither.

use std::io::{self, Read, Write};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use vt100::{Callbacks, Parser, Screen};

use crate::host::HostError;
use crate::host::live::{LEAVE, start_myself};
use crate::types::{DomainName, is_plain};

/// What a guest takes its serial terminal to be until somebody tells it (ttys have no size of their own on a serial line).
const ROWS: u16 = 24;
const COLUMNS: u16 = 80;
/// How much that was typed may wait for a guest that takes nothing.
const MOST_TYPED: usize = 1 << 16;
/// How much of the guest's may wait to be drawn; the rest waits with the guest.
const MOST_UNSEEN: usize = 1 << 16;
/// What is kept of what the process says when it ends.
const MOST_SAID: usize = 1 << 13;
/// A write of so much to a pipe that is ready does not wait (pipe(7), PIPE_BUF).
const AT_ONCE: usize = 4096;
/// How long is drawn before keys are looked for again, and in which parts: a few bytes may ask for much.
const DRAWN: Duration = Duration::from_millis(20);
const DRAWN_AT_ONCE: usize = 256;
/// How long the process may take to end by itself.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What the guest asked its terminal, as far as it is answered: where the cursor is and how large the screen is, so that
/// resize(1) in the guest finds the size out, and that it is a plain terminal.
#[derive(Default)]
struct Answers(Vec<u8>);

impl Callbacks for Answers {
    fn unhandled_csi(&mut self, screen: &mut Screen, i1: Option<u8>, _: Option<u8>, params: &[&[u16]], c: char) {
        let first = params.first().and_then(|p| p.first()).copied().unwrap_or(0);
        let (row, column) = screen.cursor_position();
        let (rows, columns) = screen.size();
        // DSR, the text area's size, DA1 (XTerm Control Sequences, "Functions using CSI").
        let answer = match (i1, c, first) {
            (None, 'n', 5) => "\x1b[0n".to_owned(),
            (None, 'n', 6) => format!("\x1b[{};{}R", row + 1, column + 1),
            (None, 't', 18) => format!("\x1b[8;{rows};{columns}t"),
            (None, 'c', 0) => "\x1b[?1;2c".to_owned(),
            _ => return,
        };
        // A guest that asks without an end gets no answers without an end.
        if self.0.len() < AT_ONCE {
            self.0.extend(answer.into_bytes());
        }
    }
}

/// How a console came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// By the key that leaves it.
    Left,
    /// There is nothing more to be read; what the process said, where it failed.
    Over { failed: bool, said: String },
}

/// A console that is open, or is being opened.
pub(super) struct Console {
    name: DomainName,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    screen: Parser<Answers>,
    /// Read, and not drawn yet.
    unseen: Vec<u8>,
    /// Typed, and not taken by the guest yet.
    typed: Vec<u8>,
    said: Vec<u8>,
    /// Something of the guest's was seen.
    heard: bool,
    /// Something that was typed found no room.
    lost: bool,
}

fn size(rows: u16, columns: u16) -> (NonZeroU16, NonZeroU16) {
    let at_least = |n: u16, least: u16| NonZeroU16::new(n.max(least)).unwrap_or(NonZeroU16::MIN);
    (at_least(rows, ROWS), at_least(columns, COLUMNS))
}

impl Console {
    /// Opens the console of a VM with these arguments of `gpuvm`.
    pub(super) fn open(name: DomainName, args: &[String]) -> Result<Self, HostError> {
        Ok(Self::of(name, start_myself(args)?))
    }

    /// What this process shows; it takes the pipes that the process has.
    fn of(name: DomainName, mut child: Child) -> Self {
        let (rows, columns) = size(0, 0);
        Self {
            name,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
            screen: Parser::new_with_callbacks(rows, columns, 0, Answers::default()),
            unseen: Vec::new(),
            typed: Vec::new(),
            said: Vec::new(),
            heard: false,
            lost: false,
        }
    }

    pub(super) fn name(&self) -> &DomainName {
        &self.name
    }

    /// Passes on what came and what was typed, and waits for either at most so long; how it ended, where it did.
    pub(super) fn pass(&mut self, stdin: BorrowedFd<'_>, tick_ms: u8) -> io::Result<Option<End>> {
        self.draw_what_came();
        let tick = if self.unseen.is_empty() { PollTimeout::from(tick_ms) } else { PollTimeout::ZERO };
        let room = self.unseen.len() < MOST_UNSEEN;
        let (mut keys, mut from_vm, mut says, mut to_vm) = (false, false, false, false);
        {
            let mut fds = vec![(&mut keys, PollFd::new(stdin, PollFlags::POLLIN))];
            if let Some(stdout) = self.stdout.as_ref().filter(|_| room) {
                fds.push((&mut from_vm, PollFd::new(stdout.as_fd(), PollFlags::POLLIN)));
            }
            if let Some(stderr) = &self.stderr {
                fds.push((&mut says, PollFd::new(stderr.as_fd(), PollFlags::POLLIN)));
            }
            if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.typed.is_empty()) {
                fds.push((&mut to_vm, PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)));
            }
            let (flags, mut polled): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
            // A signal is looked for by whoever called.
            let _ = poll(&mut polled, tick);
            for (flag, fd) in flags.into_iter().zip(&polled) {
                *flag = fd.revents().is_some_and(|r| !r.is_empty());
            }
        }
        let mut part = [0; AT_ONCE];
        if keys {
            let n = nix::unistd::read(stdin, &mut part).map_err(io::Error::from)?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the terminal is gone"));
            }
            if self.type_in(part.get(..n).unwrap_or_default()) {
                return Ok(Some(End::Left));
            }
        }
        if says && let Some(stderr) = &mut self.stderr {
            match stderr.read(&mut part) {
                Ok(n @ 1..) => {
                    let room = MOST_SAID.saturating_sub(self.said.len());
                    self.said.extend_from_slice(part.get(..n.min(room)).unwrap_or_default());
                }
                _ => self.stderr = None,
            }
        }
        if from_vm && let Some(stdout) = &mut self.stdout {
            match stdout.read(&mut part) {
                Ok(n @ 1..) => self.unseen.extend_from_slice(part.get(..n).unwrap_or_default()),
                _ => self.stdout = None,
            }
        }
        if to_vm && let Some(stdin) = &mut self.stdin {
            let n = self.typed.len().min(AT_ONCE);
            match stdin.write(self.typed.get(..n).unwrap_or_default()) {
                Ok(n) => drop(self.typed.drain(..n)),
                Err(_) => self.stdin = None,
            }
        }
        if self.stdout.is_none() && self.stderr.is_none() && self.unseen.is_empty() {
            let failed = !self.child.wait()?.success();
            return Ok(Some(End::Over { failed, said: String::from_utf8_lossy(&self.said).into_owned() }));
        }
        Ok(None)
    }

    /// Takes in keys; whether the one that leaves was among them. What was typed behind that one is nobody's.
    fn type_in(&mut self, keys: &[u8]) -> bool {
        let until = keys.iter().position(|b| *b == LEAVE);
        let keys = keys.get(..until.unwrap_or(keys.len())).unwrap_or_default();
        if self.typed.len() + keys.len() > MOST_TYPED {
            self.lost = true;
        } else {
            self.lost = false;
            self.typed.extend(as_the_guest_wants(keys, self.screen.screen().application_cursor()));
        }
        until.is_some()
    }

    /// For a while only: keys are more important.
    fn draw_what_came(&mut self) {
        let begun = Instant::now();
        let mut drawn = 0;
        for part in self.unseen.chunks(DRAWN_AT_ONCE) {
            self.screen.process(part);
            drawn += part.len();
            if begun.elapsed() >= DRAWN {
                break;
            }
        }
        self.heard |= drawn > 0;
        self.unseen.drain(..drawn);
        let answers = std::mem::take(&mut self.screen.callbacks_mut().0);
        if self.typed.len() + answers.len() <= AT_ONCE {
            self.typed.extend(answers);
        }
    }

    /// Ends it. What was typed last still goes to the guest, where it takes it.
    pub(super) fn close(mut self) {
        if let Some(stdin) = &mut self.stdin
            && !self.typed.is_empty()
            && poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO).is_ok_and(|n| n > 0)
        {
            let _ = stdin.write(self.typed.get(..self.typed.len().min(AT_ONCE)).unwrap_or_default());
        }
        // Without anything that could still be typed it ends by itself, and with it the other end of what it writes.
        self.stdin = None;
        let end = Instant::now() + CLOSE_LIMIT;
        let mut part = [0; AT_ONCE];
        while let Some(stdout) = &mut self.stdout {
            let left =
                PollTimeout::try_from(end.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
            let ready = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], left);
            if Instant::now() >= end
                || !matches!(ready, Ok(0) | Err(nix::errno::Errno::EINTR)) && !matches!(stdout.read(&mut part), Ok(1..))
            {
                self.stdout = None;
            }
        }
        let _ = self.child.kill();
        // It may take its time to be gone; nobody waits for that here.
        std::thread::spawn(move || self.child.wait());
    }

    /// Draws the screen of the guest and, on the last line, the way out. A screen with more lines than there is room for is
    /// shown around the cursor.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let whole = frame.area();
        let room = Rect { height: whole.height.saturating_sub(1), ..whole };
        let wanted = size(room.height, room.width);
        if self.screen.screen().size() != wanted {
            self.screen.set_size(wanted.0, wanted.1);
        }
        let screen = self.screen.screen();
        let (row, column) = screen.cursor_position();
        let from = |at: u16, room: u16| (at + 1).saturating_sub(room);
        let (top, left) = (from(row, room.height), from(column, room.width));
        let buffer = frame.buffer_mut();
        for y in 0..room.height {
            for x in 0..room.width {
                let Some(place) = buffer.cell_mut(Position::new(room.x + x, room.y + y)) else { continue };
                let Some(cell) = screen.cell(top + y, left + x) else { continue };
                // The second half of a wide character is drawn by the first.
                if !cell.is_wide_continuation() || x == 0 {
                    let shown =
                        cell.has_contents() && !(cell.is_wide() && x + 1 == room.width) && is_plain(cell.contents());
                    place.set_symbol(if shown { cell.contents() } else { " " });
                }
                place.set_style(style(cell));
            }
        }
        let seen = |at: u16, from: u16, room: u16| at.checked_sub(from).filter(|at| *at < room);
        if let (false, Some(x), Some(y)) =
            (screen.hide_cursor(), seen(column, left, room.width), seen(row, top, room.height))
        {
            frame.set_cursor_position(Position::new(room.x + x, room.y + y));
        }
        let hint = match (self.lost, self.heard) {
            (true, _) => "Ctrl-] leaves it   the guest takes nothing: keys are lost",
            (false, false) => "Ctrl-] (or Ctrl-5) leaves it   Enter shows where it is",
            (false, true) => "Ctrl-] (or Ctrl-5) leaves it",
        };
        let line = format!(" console of {}   {hint}", self.name);
        let bar = Rect { y: whole.y + room.height, height: whole.height - room.height, ..whole };
        let bar_style = Style::new().add_modifier(Modifier::REVERSED);
        frame.render_widget(
            ratatui::widgets::Paragraph::new(format!("{line:<width$}", width = usize::from(bar.width)))
                .style(bar_style),
            bar,
        );
    }
}

/// Arrows and their neighbours as the guest's program asked for them (DECCKM).
fn as_the_guest_wants(keys: &[u8], application: bool) -> Vec<u8> {
    let mut told = keys.to_vec();
    if application {
        for at in 0..told.len().saturating_sub(2) {
            if let Some([0x1b, bracket @ b'[', b'A'..=b'D' | b'F' | b'H']) = told.get_mut(at..at + 3) {
                *bracket = b'O';
            }
        }
    }
    told
}

fn style(cell: &vt100::Cell) -> Style {
    let color = |color| match color {
        vt100::Color::Default => Color::Reset,
        vt100::Color::Idx(n) => Color::Indexed(n),
        vt100::Color::Rgb(r, g, b) => Color::Rgb(r, g, b),
    };
    let looks = [
        (cell.bold(), Modifier::BOLD),
        (cell.dim(), Modifier::DIM),
        (cell.italic(), Modifier::ITALIC),
        (cell.underline(), Modifier::UNDERLINED),
        (cell.inverse(), Modifier::REVERSED),
    ];
    let looks = looks.into_iter().filter(|(has, _)| *has).fold(Modifier::empty(), |all, (_, one)| all | one);
    Style::new().fg(color(cell.fgcolor())).bg(color(cell.bgcolor())).add_modifier(looks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    /// A console without a process.
    fn console() -> Console {
        #[allow(clippy::disallowed_methods)] // a test may start programs
        let child = std::process::Command::new("/bin/true").spawn().unwrap();
        Console::of("tiny".parse().unwrap(), child)
    }

    /// The lines that are shown in a terminal of this size once the guest wrote this.
    fn shown(console: &mut Console, bytes: &[u8], width: u16, height: u16) -> Vec<String> {
        console.unseen.extend_from_slice(bytes);
        while !console.unseen.is_empty() {
            console.draw_what_came();
        }
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| console.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn the_screen_follows_the_cursor_where_there_is_less_room_than_the_guest_thinks() {
        let mut console = console();
        let lines = shown(&mut console, b"\x1b[1;1Hfirst\x1b[24;1Hlast", 80, 24);
        assert_eq!((lines[0].as_str(), lines[22].as_str()), ("", "last"));
        assert!(lines[23].starts_with(" console of tiny   Ctrl-]"), "{lines:?}");
        let lines = shown(&mut console, b"\x1b[1;1H", 80, 24);
        assert_eq!((lines[0].as_str(), lines[22].as_str()), ("first", ""));
        // A line that is longer than the window.
        let lines = shown(&mut console, b"\x1b[1;70Hright", 40, 10);
        assert!(lines[0].ends_with("right"), "{lines:?}");
        // One that is larger, and asks to be used.
        let lines = shown(&mut console, b"\x1b[999;999H\x1b[6n", 120, 50);
        assert_eq!((console.typed.as_slice(), lines.len()), (&b"\x1b[24;80R"[..], 50));
        console.typed.clear();
        shown(&mut console, b"\x1b[999;999H\x1b[6n\x1b[18t", 120, 50);
        assert_eq!(String::from_utf8_lossy(&console.typed), "\x1b[49;120R\x1b[8;49;120t");
    }

    #[test]
    fn keys_go_as_the_guest_asked_for_them_and_the_one_that_leaves_does_not() {
        let mut console = console();
        assert!(!console.type_in(b"ls\r\x03\x1b[A"));
        assert_eq!(console.typed, b"ls\r\x03\x1b[A");
        console.typed.clear();
        shown(&mut console, b"\x1b[?1h", 80, 24);
        assert!(console.type_in(b"\x1b[A\x1b[B\x1b[3~\x1dq"));
        assert_eq!(console.typed, b"\x1bOA\x1bOB\x1b[3~");
        // A guest that takes nothing.
        console.typed = vec![b'x'; MOST_TYPED];
        assert!(!console.type_in(b"y") && console.lost);
        assert!(shown(&mut console, b"", 80, 24)[23].ends_with("keys are lost"));
        assert!(console.type_in(b"\x1d"), "the way out is heard all the same");
    }

    #[test]
    fn who_asks_without_an_end_is_not_answered_without_an_end() {
        let mut console = console();
        shown(&mut console, "\x1b[6n".repeat(100_000).as_bytes(), 80, 24);
        assert!(console.typed.len() <= AT_ONCE, "{}", console.typed.len());
    }

    /// What a guest may write: bytes of all kinds, and what is made of the parts of sequences.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            ("\x1b[\\[(\\]P_^]", "[?>!]?[0-9;:]{0,12}", "[ -~]").prop_map(|(a, b, c)| (a + &b + &c).into_bytes()),
            "\\PC{0,12}".prop_map(String::into_bytes),
            Just("\u{202e}\u{200b}\u{9b}31m日本\u{301}🇩🇪👩\u{200d}💻".as_bytes().to_vec()),
            (0u16..200, 0u16..300).prop_map(|(y, x)| format!("\x1b[{y};{x}H").into_bytes()),
        ];
        proptest::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn whatever_a_guest_writes_is_characters_in_their_places(
            parts in proptest::collection::vec((hostile(), 1u16..130, 1u16..40), 1..5),
        ) {
            let mut console = console();
            for (bytes, width, height) in parts {
                let lines = shown(&mut console, &bytes, width, height);
                prop_assert!(lines.iter().all(|line| is_plain(line)), "{lines:?}");
                if height > 1 && width > 30 {
                    prop_assert!(lines[usize::from(height) - 1].starts_with(" console of tiny   Ctrl-]"), "{lines:?}");
                }
            }
        }
    }
}
