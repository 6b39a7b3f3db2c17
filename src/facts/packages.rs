//! dpkg's status file, without starting dpkg.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Known, Package};
use crate::host::{Answer, Probe};

/// Where dpkg keeps it (dpkg(1)).
pub const STATUS: &str = "/var/lib/dpkg/status";

/// What of a stanza is needed here.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stanza<'a> {
    pub(super) name: &'a str,
    pub(super) status: &'a str,
    pub(super) version: &'a str,
    pub(super) arch: &'a str,
}

/// The stanzas of a status file.
pub(super) fn stanzas(text: &str) -> impl Iterator<Item = Stanza<'_>> {
    text.split("\n\n").filter(|s| !s.trim().is_empty()).map(|stanza| {
        let mut one = Stanza::default();
        for line in stanza.lines() {
            match line.split_once(": ") {
                Some(("Package", v)) => one.name = v,
                Some(("Status", v)) => one.status = v,
                Some(("Version", v)) => one.version = v,
                Some(("Architecture", v)) => one.arch = v,
                _ => {}
            }
        }
        one
    })
}

/// Every package that dpkg knows. A status file that cannot be read is not the same as no packages.
pub fn packages(probe: &dyn Probe) -> Known<BTreeMap<String, Package>> {
    match probe.text(Path::new(STATUS)) {
        Ok(Answer::Value(text)) => Known::Value(parse(&text)),
        Ok(Answer::Absent) => Known::Unknown(format!("{STATUS} is not there: no Debian or Ubuntu")),
        Ok(Answer::Denied) => Known::Unknown(format!("{STATUS} may not be read")),
        Err(e) => Known::Unknown(e.to_string()),
    }
}

fn parse(text: &str) -> BTreeMap<String, Package> {
    stanzas(text)
        .filter(|s| !s.name.is_empty())
        .map(|s| {
            let package = Package {
                version: s.version.to_owned(),
                installed: s.status.ends_with(" ok installed"),
                status: s.status.rsplit(' ').next().unwrap_or_default().to_owned(),
                held: s.status.starts_with("hold "),
            };
            (s.name.to_owned(), package)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        let all = parse(
            "Package: a\nStatus: install ok installed\nVersion: 1\nDescription: x\n Package: no\n\n\
             Package: b\nStatus: deinstall ok config-files\nVersion: 2\n\n\
             Package: c\nStatus: hold ok installed\nVersion: 3\n\nPackage: d\nStatus: install ok half-configured\n",
        );
        let seen = |n: &str| all.get(n).map(|p| (p.installed, p.held, p.status.as_str()));
        assert_eq!(seen("a"), Some((true, false, "installed")));
        assert_eq!(seen("b"), Some((false, false, "config-files")));
        assert_eq!(seen("c"), Some((true, true, "installed")));
        assert_eq!(seen("d"), Some((false, false, "half-configured")));
    }
}
