//! Keys, as terminals send them (ECMA-48; XTerm Control Sequences, "PC-Style Function Keys"). Read here and by no library:
//! what is typed at a console goes to the guest as it comes, and two readers of one terminal lose what is typed.

use std::io;
use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, poll};
use ratatui::crossterm::event::KeyCode;

/// ^C, which every terminal has.
pub(super) const QUIT: KeyCode = KeyCode::Char('\u{3}');

/// How long the rest of a key may take over a slow line, until it was Escape alone.
const REST_MS: u8 = 50;

/// The keys that wait at a terminal; it has some.
pub(super) fn read(terminal: BorrowedFd<'_>) -> io::Result<Vec<KeyCode>> {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 1024];
        let n = nix::unistd::read(terminal, &mut part).map_err(io::Error::from)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the terminal is gone"));
        }
        bytes.extend_from_slice(part.get(..n).unwrap_or_default());
        let begun = [&b"\x1b"[..], b"\x1b[", b"\x1bO"].iter().any(|key| bytes.ends_with(key));
        if !begun || poll(&mut [PollFd::new(terminal, PollFlags::POLLIN)], REST_MS).unwrap_or(0) == 0 {
            return Ok(parse(&bytes));
        }
    }
}

fn parse(bytes: &[u8]) -> Vec<KeyCode> {
    let text = String::from_utf8_lossy(bytes);
    let mut keys = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => match rest.next() {
                None => keys.push(KeyCode::Esc),
                Some('[' | 'O') => {
                    let mut numbers = String::new();
                    while let Some(c) = rest.next_if(|c| matches!(c, ' '..='?')) {
                        numbers.push(c);
                    }
                    let key = rest.next().and_then(|last| named(last, &numbers));
                    keys.extend(key);
                }
                // With Alt, which nothing here is.
                Some(_) => {}
            },
            '\r' | '\n' => keys.push(KeyCode::Enter),
            '\t' => keys.push(KeyCode::Tab),
            '\u{3}' => keys.push(QUIT),
            c if c.is_control() => {}
            c => keys.push(KeyCode::Char(c)),
        }
    }
    keys
}

fn named(last: char, numbers: &str) -> Option<KeyCode> {
    Some(match (last, numbers) {
        ('A', _) => KeyCode::Up,
        ('B', _) => KeyCode::Down,
        ('C', _) => KeyCode::Right,
        ('D', _) => KeyCode::Left,
        ('H', _) | ('~', "1" | "7") => KeyCode::Home,
        ('Z', _) => KeyCode::BackTab,
        ('~', "5") => KeyCode::PageUp,
        ('~', "6") => KeyCode::PageDown,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_terminals_send() {
        use KeyCode::{BackTab, Char, Down, Enter, Esc, Home, Left, PageDown, PageUp, Right, Tab, Up};
        let all = "qü\r\t\x1b[A\x1bOB\x1b[C\x1b[1;5D\x1b[H\x1b[5~\x1b[6~\x1b[Z\x03";
        let keys = [Char('q'), Char('ü'), Enter, Tab, Up, Down, Right, Left, Home, PageUp, PageDown, BackTab, QUIT];
        assert_eq!(parse(all.as_bytes()), keys);
        // What is no key of these is none: no part of it is taken for one.
        assert_eq!(parse(b"\x1b[15~\x1bq\x1b[?1;2y\x01\x1dy\x1b"), [Char('y'), Esc]);
    }
}
