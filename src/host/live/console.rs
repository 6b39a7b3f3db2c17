//! A VM's serial console on this terminal, through libvirt's stream: nobody but libvirt needs rights on the pty.
//!
//! A daemon that hangs keeps whoever asks it, and a guest that takes nothing keeps whoever writes to it. So threads do both,
//! which can be left behind: the key that leaves, and a signal, are always heard.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, TrySendError, channel, sync_channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use virt::connect::Connect;
use virt::stream::Stream;
use virt::sys;

use super::libvirt::{SYSTEM, in_time, loaded, lookup, said};
use crate::host::{HostError, no_console};
use crate::types::DomainName;

/// ^], which leaves it, as in telnet(1) and virsh(1).
pub const LEAVE: u8 = 0x1d;

/// How long libvirt may take to open a console.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// How long what was typed last, and the end of the connection, are waited for.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// How much may be typed that the guest has not taken yet, in parts of at most `PART` bytes.
const PARTS: usize = 1024;
const PART: usize = 1024;
/// How often a guest that takes nothing is tried again.
const TRY_AGAIN_MS: u16 = 50;

/// How a console came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The person left it.
    ByKey,
    /// There is nothing more to be read: the VM ended, or standard input did.
    AtItsEnd,
}

/// Attaches to the console of a running VM until ^] is typed or it ends. `force` throws out whoever has it.
pub fn console(name: &DomainName, force: bool) -> Result<Left, HostError> {
    if !loaded() {
        return Err(HostError::Libvirt("libvirt.so.0 is not installed; install libvirt0".to_owned()));
    }
    let vm = name.clone();
    let (connection, stream) = in_time("libvirt", OPEN_LIMIT, move || opened(&vm, force))?;
    let stream = Arc::new(stream);
    let from_vm = Arc::clone(&stream);
    let to_vm =
        move |bytes: &[u8]| send_all(bytes, |rest| stream.send(rest).map_err(|e| io::Error::other(e.message())));
    let receive = move |buffer: &mut [u8]| from_vm.recv(buffer).map_err(|e| io::Error::other(e.message()));
    let left = on_this_terminal(name, receive, to_vm);
    let mut connection = connection;
    let _ = in_time("libvirt", CLOSE_LIMIT, move || connection.close().map_err(|e| said(&e)));
    left
}

/// The same with a console that something else plays, at the other end of a socket.
pub fn played_console(name: &DomainName, line: UnixStream) -> Result<Left, HostError> {
    let mut to_vm = line.try_clone().map_err(HostError::file(Path::new("the played console")))?;
    let mut from_vm = line;
    on_this_terminal(name, move |buffer| from_vm.read(buffer), move |bytes| to_vm.write_all(bytes))
}

fn opened(name: &DomainName, force: bool) -> Result<(Connect, Stream), HostError> {
    let connection = Connect::open(Some(SYSTEM)).map_err(|e| said(&e))?;
    let domain = lookup(&connection, name)?.ok_or_else(|| HostError::Refused(format!("there is no VM `{name}`")))?;
    if !domain.is_active().map_err(|e| said(&e))? {
        return Err(HostError::Refused(no_console(name)));
    }
    let stream = Stream::new(&connection, 0).map_err(|e| said(&e))?;
    let flags = if force { sys::VIR_DOMAIN_CONSOLE_FORCE } else { 0 };
    domain.open_console(None, &stream, flags).map_err(|e| {
        let text = e.message().to_owned();
        match text.contains("Active console session") {
            true => HostError::Refused(format!("someone has the console of `{name}`; to take it: --force")),
            false => said(&e),
        }
    })?;
    Ok((connection, stream))
}

fn on_this_terminal(
    name: &DomainName,
    receive: impl FnMut(&mut [u8]) -> io::Result<usize> + Send + 'static,
    send: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
) -> Result<Left, HostError> {
    let raw = Raw::of_stdin();
    let left = pump(&io::stdin(), receive, send);
    raw.restore();
    left.map_err(|e| HostError::Libvirt(format!("the console of `{name}` broke off: {e}")))
}

fn send_all(mut bytes: &[u8], mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = bytes.get(n..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Every key goes to the guest while the console is open.
struct Raw(Option<Termios>);

impl Raw {
    fn of_stdin() -> Self {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        Self(tcsetattr(&stdin, SetArg::TCSANOW, &raw).is_ok().then_some(before))
    }
    /// Called by hand on every way out: a release build ends without destructors where something panics.
    fn restore(self) {
        if let Some(before) = self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
        }
    }
}

/// Passes bytes both ways, each in a thread that can be left behind.
fn pump(
    input: &(impl AsFd + ?Sized),
    mut receive: impl FnMut(&mut [u8]) -> io::Result<usize> + Send + 'static,
    mut send: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
) -> io::Result<Left> {
    let (over, ends) = UnixStream::pair()?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        pipe::register(signal, ends.try_clone()?)?;
    }
    let ended = ends.try_clone()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut out = io::stdout();
        while let Ok(n @ 1..) = receive(&mut buffer) {
            if out.write_all(buffer.get(..n).unwrap_or_default()).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
        let _ = (&ends).write_all(&[0]);
    });
    let (to_vm, parts) = sync_channel::<Vec<u8>>(PARTS);
    let (done, sent) = channel();
    std::thread::spawn(move || {
        let result = parts.iter().try_for_each(|part| send(&part));
        if result.is_err() {
            let _ = (&ended).write_all(&[0]);
        }
        let _ = done.send(result);
    });
    let mut typed = std::fs::File::from(input.as_fd().try_clone_to_owned()?);
    let mut buffer = [0; PART];
    let mut waits: Option<Vec<u8>> = None;
    let left = loop {
        if let Some(part) = waits.take()
            && let Err(TrySendError::Full(part)) = to_vm.try_send(part)
        {
            waits = Some(part);
        }
        // What is typed stays with the terminal while there is no room for it.
        let (looked_at, limit) = if waits.is_some() { (1, TRY_AGAIN_MS.into()) } else { (2, PollTimeout::NONE) };
        let mut fds = [PollFd::new(over.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(fds.get_mut(..looked_at).unwrap_or_default(), limit) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => drop(other?),
        }
        let [ended, stdin] = fds.map(|f| f.revents().is_some_and(|r| !r.is_empty()));
        if ended {
            break Left::AtItsEnd;
        }
        if !stdin {
            continue;
        }
        let n = typed.read(&mut buffer)?;
        let bytes = buffer.get(..n).unwrap_or_default();
        let until = bytes.iter().position(|b| *b == LEAVE);
        waits = Some(bytes.get(..until.unwrap_or(n)).unwrap_or_default().to_vec());
        match (until, n) {
            (Some(_), _) => break Left::ByKey,
            (None, 0) => break Left::AtItsEnd,
            _ => {}
        }
    };
    if let Some(part) = waits {
        let _ = to_vm.try_send(part);
    }
    drop(to_vm);
    match sent.recv_timeout(CLOSE_LIMIT) {
        Ok(Err(e)) => Err(e),
        Ok(Ok(())) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(left),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;

    /// What is typed, what the guest got of it, and how it ended.
    fn typed(bytes: &[u8], guest_ends: bool) -> (Vec<u8>, Left) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        if bytes.is_empty() && !guest_ends {
            drop(theirs.shutdown(std::net::Shutdown::Write));
        }
        let got = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&got);
        // A guest that says nothing until it ends.
        let (end, ended) = mpsc::channel::<()>();
        let end = if guest_ends {
            drop(end);
            None
        } else {
            Some(end)
        };
        let receive = move |_: &mut [u8]| ended.recv().map(|()| 1).or(Ok(0));
        let left = pump(&ours, receive, move |b| {
            sink.lock().unwrap().extend_from_slice(b);
            Ok(())
        });
        drop(end);
        let got = got.lock().unwrap().clone();
        (got, left.unwrap())
    }

    #[test]
    fn what_is_typed_goes_to_the_guest_until_the_key_that_leaves() {
        assert_eq!(typed(b"root\r\x1dnever", false), (b"root\r".to_vec(), Left::ByKey));
        assert_eq!(typed(b"\x03\x04\x1d", false), (b"\x03\x04".to_vec(), Left::ByKey), "^C and ^D are the guest's");
        assert_eq!(typed(b"", false).1, Left::AtItsEnd, "nothing more can be typed");
        assert_eq!(typed(b"", true).1, Left::AtItsEnd, "the guest ended");
    }

    #[test]
    fn a_guest_or_a_daemon_that_takes_nothing_keeps_nobody() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"never taken\x1d").unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (hold_too, held_too) = mpsc::channel::<()>();
        let receive = move |_: &mut [u8]| held.recv().map(|()| 0).or(Ok(0));
        let left = pump(&ours, receive, move |_| held_too.recv().map_err(|_| io::ErrorKind::BrokenPipe.into()));
        assert_eq!(left.unwrap(), Left::ByKey);
        drop((hold, hold_too));
    }

    #[test]
    fn what_goes_in_parts_goes_whole() {
        let mut got = Vec::new();
        send_all(b"abcdef", |b| {
            got.push(b[0]);
            Ok(1)
        })
        .unwrap();
        assert_eq!(got, b"abcdef");
        assert!(send_all(b"a", |_| Ok(0)).is_err());
    }
}
