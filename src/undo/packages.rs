//! Packages on the way back: what a run installed goes where nothing else needs it, what it removed comes again. Never
//! purged, never to an older version.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::host::{Answer, HostError, Probe, Program};
use crate::plan::{Action, Change, Diff, Risk, Seen, Step};
use crate::resource::package::{SIMULATE, Simulated, read_simulation};
use crate::types::PackageName;

/// What is to be done about packages, and what stays.
pub(super) fn compile(
    packages: &[(&PackageName, &Seen, &Seen)],
    probe: &dyn Probe,
    stays: &mut Vec<String>,
) -> Result<Diff, HostError> {
    let mut came = BTreeSet::new();
    let mut gone: Vec<(&PackageName, bool)> = Vec::new();
    for (name, before, now) in packages {
        match (before, now) {
            (Seen::Nothing, Seen::Package { .. }) => {
                came.insert(name.as_str());
            }
            (Seen::Package { auto, .. }, Seen::Nothing) => gone.push((name, *auto)),
            (Seen::Package { version: old, .. }, Seen::Package { version: new, .. }) if old != new => {
                stays.push(format!("{name} stays at {new}; it was {old}, and nothing goes to an older version"));
            }
            _ => {}
        }
    }
    let status = probe.text(Path::new("/var/lib/dpkg/status"))?.value().unwrap_or_default();
    let needed = needed(&status, &came);
    if !needed.is_empty() {
        let names: Vec<&str> = needed.iter().copied().collect();
        stays.push(format!("these stay, since something else needs them by now: {}", names.join(", ")));
    }
    let going: Vec<&str> = came.difference(&needed).copied().collect();
    if going.is_empty() && gone.is_empty() {
        return Ok(Diff::InSync { evidence: "as before".to_owned() });
    }
    // Those that someone asked for bring the others along, which stay marked as such.
    let asked: Vec<&&PackageName> = gone.iter().filter(|(_, auto)| !auto).map(|(name, _)| name).collect();
    let request: BTreeSet<PackageName> = if asked.is_empty() {
        gone.iter().map(|(name, _)| (*name).clone()).collect()
    } else {
        asked.into_iter().map(|name| (*name).clone()).collect()
    };
    let mut args: Vec<String> = SIMULATE.iter().map(|a| (*a).to_owned()).collect();
    args.extend(request.iter().map(ToString::to_string));
    args.extend(going.iter().map(|name| format!("{name}-")));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = match probe.query(Program::AptGet, &args) {
        Ok(Answer::Value(output)) => read_simulation(&output),
        Ok(_) => Simulated::NotAsked("apt-get may not be run or is not there".to_owned()),
        Err(e) => Simulated::NotAsked(e.to_string()),
    };
    let (install, remove) = match said {
        Simulated::Would { install, remove } => (install, remove),
        Simulated::NotKnown(name) => {
            return Ok(Diff::Blocked {
                why: format!("`{name}` is not in the package lists that are there"),
                help: "fetch them first: apt-get update".to_owned(),
            });
        }
        Simulated::Cannot(why) => return Ok(Diff::Blocked { why, help: "ask apt: apt-get -s install -f".to_owned() }),
        Simulated::NotAsked(why) => return Ok(Diff::Unknown { why }),
    };
    let more: Vec<&str> = remove.iter().map(PackageName::as_str).filter(|n| !going.contains(n)).collect();
    if !more.is_empty() {
        return Ok(Diff::Blocked {
            why: format!("apt would remove {} too, which the run did not install", more.join(", ")),
            help: "leave the packages as they are: --skip package".to_owned(),
        });
    }
    let mut change = match (going.len(), gone.len()) {
        (n, 0) => Change::new(Action::Remove, format!("remove {n} that the run installed")),
        (0, n) => Change::new(Action::Create, format!("install {n} that the run removed")),
        (n, m) => {
            Change::new(Action::Change, format!("remove {n} that the run installed, install {m} that it removed"))
        }
    };
    change.notes.extend(lines("- ", &remove.iter().map(PackageName::as_str).collect::<Vec<_>>()));
    change.notes.extend(lines("+ ", &install.iter().map(|p| p.name.as_str()).collect::<Vec<_>>()));
    if !remove.is_empty() {
        change.risks.insert(Risk::PackageRemoval);
        stays.push(
            "what the removed packages made stays: configuration, users and groups, caches, logs; \
             `apt-get purge NAME` clears one"
                .to_owned(),
        );
        let module = |n: &&PackageName| {
            n.as_str().contains("nvidia") && (n.as_str().contains("dkms") || n.as_str().starts_with("linux-modules-"))
        };
        if let Some(name) = remove.iter().find(module) {
            stays.push(format!("the module of {name}, where it is loaded, drives its cards until the next boot"));
        }
    }
    change.steps.push(Step::Apt { request, install, remove });
    Ok(Diff::Change(change))
}

/// Names in lines that a terminal can hold.
fn lines(mark: &str, names: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        match all.last_mut() {
            Some(line) if line.len() + name.len() < 70 => {
                line.push(' ');
                line.push_str(name);
            }
            _ => all.push(format!("{mark}{name}")),
        }
    }
    all
}

/// Those of the packages that an installed one beside them needs, directly or through others of them.
fn needed<'a>(status: &str, came: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let mut stanzas = Vec::new();
    let mut provides: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for stanza in status.split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        let (Some(name), true) = (field("Package"), field("Status").is_some_and(|s| s.ends_with(" ok installed")))
        else {
            continue;
        };
        provides.entry(name).or_default().insert(name);
        for other in field("Provides").into_iter().flat_map(|p| p.split(',')) {
            provides.entry(word(other)).or_default().insert(name);
        }
        let needs: Vec<&str> =
            [field("Depends"), field("Pre-Depends")].into_iter().flatten().flat_map(|d| d.split(',')).collect();
        stanzas.push((name, needs));
    }
    let mut kept: BTreeSet<&'a str> = BTreeSet::new();
    loop {
        let mut more = BTreeSet::new();
        for (name, needs) in &stanzas {
            if came.contains(name) && !kept.contains(name) {
                continue;
            }
            for need in needs {
                let fits: BTreeSet<&str> =
                    need.split('|').filter_map(|n| provides.get(word(n))).flatten().copied().collect();
                let stays = |n: &&str| !came.contains(n) || kept.contains(n);
                if !fits.iter().any(stays) {
                    more.extend(came.iter().filter(|n| fits.contains(*n)).copied());
                }
            }
        }
        if more.is_subset(&kept) {
            return kept;
        }
        kept.extend(more);
    }
}

/// `libc6:any (>= 2.34)` is about libc6.
fn word(text: &str) -> &str {
    text.trim().split([' ', ':', '(']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_something_else_needs_stays_with_all_that_it_needs_itself() {
        let one = |name: &str, more: &str| format!("Package: {name}\nStatus: install ok installed\n{more}\n");
        let status = [
            one("qemu", "Depends: libx (>= 1), libc6\n"),
            one("libx", "Pre-Depends: liby\n"),
            one("liby", ""),
            one("lonely", ""),
            one("mail", "Provides: mta\n"),
            one("editor", "Depends: libx:any | other\n"),
            one("cron", "Depends: exim | mta\n"),
            one("libc6", ""),
        ]
        .join("\n");
        let came = BTreeSet::from(["qemu", "libx", "liby", "lonely", "mail"]);
        assert_eq!(needed(&status, &came).into_iter().collect::<Vec<_>>(), ["libx", "liby", "mail"]);
        assert!(needed(&status, &BTreeSet::from(["qemu", "lonely"])).is_empty());
    }
}
