//! The public keys of the agent that runs for whoever calls: `--key agent`. They are asked for once, by hand, and written
//! into the manifest as they are, so that a plan means the same for everyone and after a boot.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::time::Duration;

use miette::miette;

use crate::guest::keys_in;
use crate::manifest::SshKey;
use crate::types::to_base64;

/// A key of the command line.
#[derive(Debug, Clone)]
pub(super) enum GivenKey {
    /// What the manifest takes too.
    Key(SshKey),
    /// All that the agent has.
    Agent,
}

impl FromStr for GivenKey {
    type Err = <SshKey as FromStr>::Err;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "agent" { Ok(Self::Agent) } else { text.parse().map(Self::Key) }
    }
}

impl GivenKey {
    /// As the manifest takes them.
    pub(super) fn written(&self) -> miette::Result<Vec<SshKey>> {
        match self {
            GivenKey::Key(key) => Ok(vec![key.clone()]),
            GivenKey::Agent => of_agent(std::env::var_os("SSH_AUTH_SOCK")),
        }
    }
}

/// An agent that does not answer by then is left. One that asks a person asks for what a key signs, and not for this.
const LIMIT: Duration = Duration::from_secs(5);
/// `SSH_AGENTC_REQUEST_IDENTITIES` and its answer (draft-ietf-sshm-ssh-agent, "Requesting a list of keys").
const ASK: u8 = 11;
const KEYS: u8 = 12;
/// OpenSSH's own limit of a message.
const MOST: usize = 256 * 1024;

fn of_agent(socket: Option<OsString>) -> miette::Result<Vec<SshKey>> {
    let Some(socket) = socket.filter(|s| !s.is_empty()) else {
        return Err(miette!(
            help = "under sudo: sudo --preserve-env=SSH_AUTH_SOCK gpuvm …; or name a key: --key file:alice.pub",
            "no ssh agent runs for you (SSH_AUTH_SOCK is not set)"
        ));
    };
    let asked = || {
        let mut agent = UnixStream::connect(&socket)?;
        agent.set_read_timeout(Some(LIMIT))?;
        agent.set_write_timeout(Some(LIMIT))?;
        agent.write_all(&[0, 0, 0, 1, ASK])?;
        let mut length = [0; 4];
        agent.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MOST {
            return Err(std::io::Error::other("its answer is longer than an agent's may be"));
        }
        let mut answer = vec![0; length];
        agent.read_exact(&mut answer)?;
        Ok(answer)
    };
    let place = socket.display();
    let answer = asked().map_err(|e| miette!("the ssh agent at `{place}` does not answer: {e}"))?;
    let lines = lines(&answer).ok_or_else(|| miette!("what answers at `{place}` is no ssh agent"))?;
    // Kinds that a guest's sshd is not known to take (certificates, and what is to come) are left out.
    let keys = lines.iter().filter_map(|line| keys_in(line).ok()).flatten();
    let keys: Vec<SshKey> = keys.filter_map(|key| key.parse().ok()).collect();
    if keys.is_empty() {
        return Err(miette!(help = "ssh-add puts one in; ssh-add -L shows them", "the ssh agent has no key to use"));
    }
    Ok(keys)
}

/// The keys of an answer as lines of an authorized_keys file; `None` where it is none.
fn lines(answer: &[u8]) -> Option<Vec<String>> {
    let mut rest = answer.strip_prefix(&[KEYS])?;
    let count = number(&mut rest)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let (key, comment) = (string(&mut rest)?, string(&mut rest)?);
        let kind = string(&mut &key[..])?;
        let kind = std::str::from_utf8(kind).ok()?;
        let comment: String = String::from_utf8_lossy(comment).chars().filter(|c| !c.is_control()).collect();
        all.push(format!("{kind} {} {comment}", to_base64(key)).trim_end().to_owned());
    }
    rest.is_empty().then_some(all)
}

/// A `uint32` (RFC 4251, 5).
fn number(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_be_bytes(*head))
}

/// A `string`: its length, and so many bytes.
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::types::from_base64;

    const BODY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIDoVBuLRmDtQoGpVJtuJMiLFGSqsOhAaOFZ1kCmEnVKR";

    fn with_length(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn answer(keys: &[(&[u8], &str)]) -> Vec<u8> {
        let mut all = vec![KEYS];
        all.extend(u32::try_from(keys.len()).unwrap().to_be_bytes());
        for (key, comment) in keys {
            all.extend([with_length(key), with_length(comment.as_bytes())].concat());
        }
        all
    }

    /// An agent that answers once.
    fn asked(answer: Vec<u8>) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut question = [0; 5];
            peer.read_exact(&mut question).unwrap();
            assert_eq!(question, [0, 0, 0, 1, ASK]);
            peer.write_all(&answer).unwrap();
        });
        let keys = of_agent(Some(socket.into_os_string()));
        agent.join().unwrap();
        keys.map(|keys| keys.iter().map(|k| k.as_str().to_owned()).collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_keys_of_an_agent_are_written_as_they_are() {
        let key = from_base64(BODY).unwrap();
        let certificate = with_length(b"ssh-ed25519-cert-v01@openssh.com");
        let all = answer(&[(&key, "alice@desk\n- ssh-rsa"), (&certificate, "")]);
        assert_eq!(asked(with_length(&all)).unwrap(), [format!("ssh-ed25519 {BODY} alice@desk- ssh-rsa")]);
        assert_eq!(asked(with_length(&answer(&[]))).unwrap_err(), "the ssh agent has no key to use");
        for wrong in [&all[..20], &[5][..], &[KEYS, 255, 255, 255, 255][..]] {
            assert!(asked(with_length(wrong)).unwrap_err().ends_with("is no ssh agent"), "{wrong:?}");
        }
        assert!(asked(vec![255; 4]).unwrap_err().contains("longer than an agent's may be"));
        assert!(asked(with_length(&all)[..9].to_vec()).unwrap_err().contains("does not answer"));
        assert!(of_agent(None).unwrap_err().to_string().contains("no ssh agent runs for you"));
    }
}
