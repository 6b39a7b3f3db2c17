//! Programs: those that only look, with a short limit, and those that change something, with what they say as progress.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::host::{HostError, Output, Program};
use crate::types::without_userinfo;

/// Programs are looked for here and nowhere else, whatever PATH says.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How many of its last lines an error quotes.
const QUOTED: usize = 12;

/// Where a program is, if it is installed.
pub(super) fn place(program: Program) -> Option<PathBuf> {
    FOLDERS.iter().map(|f| Path::new(f).join(program.name())).find(|p| p.is_file())
}

fn start(path: &Path, args: &[&str]) -> Result<Child, HostError> {
    #[allow(clippy::disallowed_methods)] // this is the one place that starts programs
    Command::new(path)
        .args(args)
        .env_clear()
        .env("PATH", FOLDERS.join(":"))
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/root")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // needrestart(8) must neither ask nor restart what gpuvm did not plan.
        .env("NEEDRESTART_SUSPEND", "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(HostError::file(path))
}

/// Becomes another program, with this terminal and this environment. Comes back only where that failed.
pub fn become_program(program: Program, args: &[String]) -> HostError {
    use std::os::unix::process::CommandExt;
    let Some(path) = place(program) else { return HostError::NoProgram(program.name()) };
    #[allow(clippy::disallowed_methods)] // this is the one place that starts programs
    let error = Command::new(&path).args(args).exec();
    HostError::File { path, source: error }
}

/// Starts this program once more, with pipes for what it is told, what it writes and what it says.
pub fn start_myself(args: &[String]) -> Result<Child, HostError> {
    let path = Path::new("/proc/self/exe");
    #[allow(clippy::disallowed_methods)] // this is the one place that starts programs
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(HostError::file(path))
}

fn number(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

/// Runs a program and collects what it says. One that does not end in time is killed and not waited for: it may sleep
/// in the kernel, deaf to signals.
pub(super) fn ask(path: &Path, args: &[&str], limit: Duration) -> Result<Output, HostError> {
    let mut child = start(path, args)?;
    let collect = |pipe: Option<Box<dyn Read + Send>>| {
        let (sent, received) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            let _ = sent.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        received
    };
    let stdout = collect(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = collect(child.stderr.take().map(|p| Box::new(p) as _));
    let deadline = Instant::now() + limit;
    let said = |pipe: &mpsc::Receiver<String>| pipe.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    let (Ok(stdout), Ok(stderr)) = (said(&stdout), said(&stderr)) else {
        let _ = child.kill();
        return Err(HostError::Timeout { what: format!("`{} {}`", path.display(), args.join(" ")), limit });
    };
    let status = child.wait().map_err(HostError::file(path))?;
    Ok(Output { status: number(status), stdout, stderr })
}

/// Runs a program that changes something; each line that it says is progress. A status other than 0 is an error with
/// the last lines. One that does not end in time is left behind.
pub(super) fn perform(
    program: Program,
    args: &[&str],
    limit: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    let path = place(program).ok_or(HostError::NoProgram(program.name()))?;
    perform_at(&path, args, limit, progress)
}

/// The same for a program by its path: gpuvm itself, for what may block.
pub(super) fn perform_at(
    path: &Path,
    args: &[&str],
    limit: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HostError> {
    let mut child = start(path, args)?;
    let command = || format!("{} {}", path.display(), args.join(" "));
    let (sent, lines) = mpsc::channel::<String>();
    let pipes: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|p| Box::new(p) as _), child.stderr.take().map(|p| Box::new(p) as _)];
    for pipe in pipes.into_iter().flatten() {
        let sent = sent.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                // It is shown, logged and kept: a URL in it may hold a password.
                let text = without_userinfo(String::from_utf8_lossy(&line).trim_end()).into_owned();
                line.clear();
                if sent.send(text).is_err() {
                    break;
                }
            }
        });
    }
    drop(sent);
    let deadline = Instant::now() + limit;
    let mut last = std::collections::VecDeque::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.is_empty() => {}
            Ok(line) => {
                progress(&line);
                tracing::debug!(program = %path.display(), "{line}");
                if last.len() == QUOTED {
                    last.pop_front();
                }
                last.push_back(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                return Err(HostError::Timeout { what: format!("`{}`", command()), limit });
            }
        }
    }
    let status = number(child.wait().map_err(HostError::file(path))?);
    match status {
        0 => Ok(()),
        status => {
            let said = last.into_iter().collect::<Vec<_>>().join("\n  ");
            Err(HostError::Failed { command: command(), status, said })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_program_that_hangs_is_left_behind() {
        let short = Duration::from_millis(500);
        let start = Instant::now();
        let result = ask(Path::new("/bin/sleep"), &["60"], short);
        assert!(matches!(result, Err(HostError::Timeout { .. })), "{result:?}");
        // Both of its pipes are open all the while.
        assert!((short..short * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
        let result = perform_at(Path::new("/bin/sleep"), &["60"], short, &mut |_| {});
        assert!(matches!(result, Err(HostError::Timeout { .. })), "{result:?}");
    }

    #[test]
    fn more_than_a_pipe_holds_comes_through() {
        let output = ask(Path::new("/usr/bin/seq"), &["200000"], LIMIT).unwrap();
        assert_eq!((output.status, output.stdout.lines().count()), (0, 200_000));
        let mut seen = 0;
        perform_at(Path::new("/usr/bin/seq"), &["200000"], LIMIT, &mut |_| seen += 1).unwrap();
        assert_eq!(seen, 200_000);
    }

    #[test]
    fn no_password_of_a_url_is_told() {
        let script = "echo Err:1 http://me:canary@deb.example x; echo E: http://me:canary@deb.example >&2; exit 1";
        let mut told = Vec::new();
        let error = perform_at(Path::new("/bin/sh"), &["-c", script], LIMIT, &mut |l| told.push(l.to_owned()));
        let HostError::Failed { said, .. } = error.unwrap_err() else { panic!("it did not fail") };
        assert!(told.len() == 2 && said.contains("deb.example"), "{told:?}");
        assert!(!told.iter().chain([&said]).any(|t| t.contains("canary")), "{told:?} {said}");
    }

    #[test]
    fn a_failure_is_told_in_the_words_of_the_program() {
        let said = perform_at(Path::new("/bin/ls"), &["/nonexistent"], LIMIT, &mut |_| {}).unwrap_err().to_string();
        assert!(said.contains("status 2") && said.contains("No such file"), "{said}");
    }
}
