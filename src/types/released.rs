//! What uses a shared GPU on the host, and is stopped for as long as a VM has it.

use std::fmt;
use std::str::FromStr;

use super::{NameError, UnitName};

/// A unit of systemd's, or a container by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Released {
    /// `ollama.service`.
    Unit(UnitName),
    /// `docker:NAME`.
    Docker(String),
    /// `podman:NAME`, of root's.
    Podman(String),
}

impl FromStr for Released {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || {
            NameError::new(
                text,
                "a unit or a container",
                "a service, socket, timer or path with its suffix (`ollama.service`), or `docker:NAME`, `podman:NAME`",
            )
        };
        // As Docker has it (RestrictedNamePattern of its source): a letter or digit, then these.
        let container = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            let fits = name.len() <= 128 && name.starts_with(|c: char| c.is_ascii_alphanumeric());
            (fits && name.chars().all(plain)).then(|| name.to_owned()).ok_or_else(error)
        };
        match text.split_once(':') {
            Some(("docker", name)) => container(name).map(Released::Docker),
            Some(("podman", name)) => container(name).map(Released::Podman),
            _ => {
                let runs = [".service", ".socket", ".timer", ".path"].iter().any(|suffix| text.ends_with(suffix));
                text.parse().ok().filter(|_| runs).map(Released::Unit).ok_or_else(error)
            }
        }
    }
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Released::Unit(unit) => write!(f, "{unit}"),
            Released::Docker(name) => write!(f, "docker:{name}"),
            Released::Podman(name) => write!(f, "podman:{name}"),
        }
    }
}

super::as_string!(
    Released,
    "a unit or a container",
    "^(docker:|podman:|)[A-Za-z0-9][A-Za-z0-9:._@\\\\-]*$",
    "ollama.service"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_unit_or_a_container_and_stays_one_word() {
        for text in ["ollama.service", "getty@tty1.service", "docker:comfy_ui", "podman:a.b-1"] {
            assert_eq!(text.parse::<Released>().unwrap().to_string(), text);
        }
        for text in [
            "ollama",
            "",
            "docker:",
            "docker:a b",
            "docker:../x",
            "docker:-x",
            "graphical.target",
            "a b.service",
            "docker:a\nb",
        ] {
            assert!(text.parse::<Released>().is_err(), "{text:?}");
        }
    }
}
