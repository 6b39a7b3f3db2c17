//! ssh's public keys: where they come from, and what is one.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a key comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeySource {
    /// The key itself.
    Text(String),
    /// A file of the host's, read when the seed is made.
    Host(PathBuf),
    /// What a user of GitHub's shows there, fetched when the seed is made.
    GitHub(String),
    /// The same of GitLab's.
    GitLab(String),
}

impl KeySource {
    /// Where the keys are to be fetched.
    pub fn url(&self) -> Option<String> {
        match self {
            KeySource::GitHub(name) => Some(format!("https://github.com/{name}.keys")),
            KeySource::GitLab(name) => Some(format!("https://gitlab.com/{name}.keys")),
            KeySource::Text(_) | KeySource::Host(_) => None,
        }
    }
}

/// As a plan shows it.
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::Text(key) => {
                let mut words = key.split_whitespace();
                let (kind, body) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let end = body.get(body.len().saturating_sub(8)..).unwrap_or_default();
                let name = words.next().map_or(String::new(), |name| format!(" {name}"));
                write!(f, "{kind} …{end}{name}")
            }
            KeySource::Host(path) => write!(f, "those in {}", path.display()),
            KeySource::GitHub(name) => write!(f, "those of {name} at GitHub"),
            KeySource::GitLab(name) => write!(f, "those of {name} at GitLab"),
        }
    }
}

/// Why a text has no public keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is the half that stays with its owner.
    #[error("it is a private key, which belongs nowhere but to its owner; take the file that ends in .pub")]
    Private,
    /// A line is something else.
    #[error("`{0}` is no public key of ssh's")]
    NoKey(String),
    /// There is none.
    #[error("there is no key in it")]
    Empty,
}

const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// The keys of a text as ssh-keygen(1) writes it, one a line; comments and empty lines are none.
pub fn keys_in(text: &str) -> Result<Vec<String>, KeyError> {
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if line.contains("PRIVATE KEY") {
            return Err(KeyError::Private);
        }
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let body = words.next().unwrap_or_default();
        let base64 = body.len() > 40 && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        // The name of its kind is in the key again, with its length before it: "AAAA" is the beginning of that.
        if !KINDS.contains(&kind) || !base64 || !body.starts_with("AAAA") || line.chars().any(char::is_control) {
            return Err(KeyError::NoKey(line.chars().take(40).filter(|c| !c.is_control()).collect()));
        }
        keys.push(line.to_owned());
    }
    if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5l1yqS5m0k9Z0sWZbG0sUeXAMPLEEXAMPLEEXAMPLE alice@desk";

    #[test]
    fn only_public_keys_are_keys() {
        assert_eq!(keys_in(&format!("# mine\n\n{KEY}\r\n  {KEY}")).unwrap(), [KEY, KEY]);
        assert_eq!(keys_in("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl"), Err(KeyError::Private));
        assert_eq!(keys_in("\n# none\n"), Err(KeyError::Empty));
        for wrong in [
            "Not Found",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-dss AAAAB3NzaC1kc3MAAACBAO0000000000000000000000000000000",
        ] {
            assert!(matches!(keys_in(wrong), Err(KeyError::NoKey(_))), "{wrong}");
        }
        let shown = KeySource::Text(KEY.to_owned()).to_string();
        assert_eq!(shown, "ssh-ed25519 …EXAMPLE alice@desk".replace("EXAMPLE", "LEEXAMPLE".get(1..).unwrap()));
        assert_eq!(KeySource::GitLab("bob".to_owned()).url().unwrap(), "https://gitlab.com/bob.keys");
    }
}
