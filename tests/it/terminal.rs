//! The program on a terminal of its own, as a person sits at it: a pseudo-terminal, which is told what to type once
//! something was shown.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

/// On a machine that is busy otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Terminal {
    child: Child,
    keys: Option<Arc<File>>,
    gone: Arc<AtomicBool>,
    /// How the terminal was before anyone had it.
    pub before: Termios,
    shown: Receiver<Vec<u8>>,
    /// All that was shown so far.
    pub said: Vec<u8>,
    /// Lines and characters.
    size: (u16, u16),
}

impl Terminal {
    /// Starts gpuvm, or what leads to it, on a terminal of 24 lines of 80 characters.
    pub fn start(program: &Path, args: &[&str], folder: &Path) -> Self {
        Self::start_with(program, args, folder, &[])
    }

    pub fn start_with(program: &Path, args: &[&str], folder: &Path, env: &[(&str, &str)]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        // The child must not hold the other end of its own terminal.
        fcntl(&pair.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let before = tcgetattr(&pair.slave).unwrap();
        // A session of its own, so that the terminal is this one wherever the tests run.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(program)
            .args(args)
            .current_dir(folder)
            .env("NO_COLOR", "1")
            .env("TERM", "xterm-256color")
            .env_remove("SUDO_USER")
            .env("USER", "root")
            .envs(env.iter().copied())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        drop(pair.slave);
        let keys = Arc::new(File::from(pair.master));
        let screen = Arc::clone(&keys);
        let gone = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&gone);
        let (sent, shown) = channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while !over.load(Ordering::SeqCst) {
                let mut fds = [PollFd::new(screen.as_fd(), PollFlags::POLLIN)];
                if matches!(poll(&mut fds, PollTimeout::from(50u8)), Ok(0) | Err(_)) {
                    continue;
                }
                // Once nobody has the other end any more, this is EIO.
                match (&*screen).read(&mut part) {
                    Ok(n @ 1..) if sent.send(part[..n].to_vec()).is_ok() => {}
                    _ => break,
                }
            }
        });
        Self { child, keys: Some(keys), gone, before, shown, said: Vec::new(), size: (24, 80) }
    }

    /// Takes in what is shown until something holds of it.
    pub fn until(&mut self, what: &str, holds: impl Fn(&[u8]) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.said) {
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(part) => self.said.extend(part),
                Err(why) => {
                    let over = if why == RecvTimeoutError::Timeout { "too late" } else { "it ended" };
                    panic!("{what}: {over}:\n{}", self.text());
                }
            }
        }
    }

    /// Waits for a text that was not there before, and types an answer.
    pub fn answer(&mut self, question: &str, answer: &str) {
        let from = self.said.len();
        let rest = |said: &[u8]| String::from_utf8_lossy(said).matches(question).count();
        let before = rest(&self.said[..from]);
        self.until(question, |said| rest(said) > before || (before == 0 && rest(said) > 0));
        self.keys(answer);
    }

    pub fn keys(&mut self, keys: &str) {
        (&**self.keys.as_ref().unwrap()).write_all(keys.as_bytes()).unwrap();
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.said).replace('\r', "")
    }

    /// What a person sees, without blanks at the ends.
    pub fn screen(&self) -> String {
        let text = self.drawn().screen().contents();
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n"
    }

    /// The terminal, with all that it was sent since it has this size.
    pub fn drawn(&self) -> vt100::Parser {
        let [rows, columns] = [self.size.0, self.size.1].map(|n| n.try_into().unwrap());
        let mut screen = vt100::Parser::new(rows, columns, 0);
        screen.process(&self.said);
        screen
    }

    /// Makes it another size, as a person does with a window. What was shown before is of no use then.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        (self.size, self.said) = ((rows, columns), Vec::new());
        let terminal = Stdio::from(self.keys.as_ref().unwrap().try_clone().unwrap());
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let made = Command::new("stty").args(["rows", &rows, "cols", &columns]).stdin(terminal).status().unwrap();
        assert!(made.success());
    }

    /// Waits until a person sees something.
    pub fn until_seen(&mut self, what: &str, holds: impl Fn(&str) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.screen()) {
            // What is shown all the time would be waited for without an end.
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(part) if Instant::now() < end => self.said.extend(part),
                _ => panic!("{what}:\n{}", self.screen()),
            }
        }
    }

    /// Waits until a person sees something: the end of a whole picture, after which the cursor is hidden.
    pub fn until_screen(&mut self, what: &str, holds: impl Fn(&str) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !self.said.ends_with(b"\x1b[?25l") || !holds(&self.screen()) {
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(part) if Instant::now() < end => self.said.extend(part),
                _ => panic!("{what}:\n{}", self.screen()),
            }
        }
    }

    /// How the terminal is now.
    pub fn settings(&self) -> Termios {
        tcgetattr(&**self.keys.as_ref().unwrap()).unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The terminal is gone: a connection that was lost.
    pub fn hang_up(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        self.keys = None;
    }

    /// Takes in the rest, and how it ended, and the terminal as it was left.
    pub fn end_with_settings(mut self) -> (ExitStatus, String, Termios) {
        let status = self.child.wait().unwrap();
        let settings = self.settings();
        while let Ok(part) = self.shown.recv_timeout(Duration::from_secs(1)) {
            self.said.extend(part);
        }
        (status, self.text(), settings)
    }

    /// Takes in the rest, and how it ended.
    pub fn end(mut self) -> (ExitStatus, String) {
        let end = Instant::now() + PATIENCE;
        while let Ok(part) = self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.said.extend(part);
        }
        let status = self.child.wait().unwrap();
        (status, self.text())
    }
}

/// A test that fails leaves nobody behind.
impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.gone.store(true, Ordering::SeqCst);
    }
}
