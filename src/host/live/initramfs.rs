//! The content of an initramfs, read by a thread that can be left behind: a disk may not answer.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::answered;
use crate::host::{Answer, HostError, Initramfs, initramfs};

/// 200 MB packed take 3 s on a slow machine.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn read(path: &Path) -> Result<Answer<Arc<Initramfs>>, HostError> {
    read_within(path, LIMIT)
}

fn read_within(path: &Path, limit: Duration) -> Result<Answer<Arc<Initramfs>>, HostError> {
    // Opening a pipe would wait for someone who writes.
    match answered(path, std::fs::metadata(path))? {
        Answer::Value(meta) if !meta.is_file() => {
            return Err(HostError::Refused(format!("`{}` is no file", path.display())));
        }
        Answer::Value(_) => {}
        Answer::Absent => return Ok(Answer::Absent),
        Answer::Denied => return Ok(Answer::Denied),
    }
    let file = match answered(path, File::open(path))? {
        Answer::Value(file) => file,
        Answer::Absent => return Ok(Answer::Absent),
        Answer::Denied => return Ok(Answer::Denied),
    };
    let (sent, received) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sent.send(initramfs::read(BufReader::with_capacity(256 << 10, file), Instant::now() + limit));
    });
    match received.recv_timeout(limit + Duration::from_secs(1)) {
        Ok(Ok(found)) => Ok(Answer::Value(Arc::new(found))),
        Ok(Err(why)) => Err(HostError::Refused(format!("`{}`: {why}", path.display()))),
        Err(_) => Err(HostError::Timeout { what: path.display().to_string(), limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("initrd.img");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(read(&pipe).is_err());
        assert_eq!(read(&dir.path().join("none")).unwrap(), Answer::Absent);
        std::fs::write(dir.path().join("text"), "no initramfs at all").unwrap();
        let said = read(&dir.path().join("text")).unwrap_err().to_string();
        assert!(said.contains("no initramfs"), "{said}");
    }
}
