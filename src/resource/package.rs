//! Packages of the distribution: one resource, one transaction. Versions are those that apt's own simulation gives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::{HostFacts, Known};
use crate::host::{Answer, HostError, Output, Probe, Program};
use crate::plan::{Action, AptPackage, Change, Diff, FieldDiff, Risk, Step, WaitFor};
use crate::types::PackageName;

/// The packages that a host is to have, and those that it is not to have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackageSet {
    /// Wanted, each with the sections that it follows from.
    pub wanted: BTreeMap<PackageName, BTreeSet<String>>,
    /// Not wanted.
    pub absent: BTreeSet<PackageName>,
}

/// What apt would do for what is missing; `None` where nothing is.
pub type Simulation = Option<Simulated>;

/// How a simulation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Simulated {
    /// What it would do.
    Would {
        /// Packages that it installs or upgrades.
        install: Vec<AptPackage>,
        /// Packages that it removes.
        remove: Vec<PackageName>,
    },
    /// apt does not know a package: the lists are missing or old, or there is none of this name.
    NotKnown(String),
    /// apt cannot do it, in its words.
    Cannot(String),
    /// apt could not be asked.
    NotAsked(String),
}

const STATUS: &str = "/var/lib/dpkg/status";

impl Resource for PackageSet {
    const KIND: &'static str = "package";
    type State = Simulation;

    fn name(&self) -> String {
        String::new()
    }

    fn probe(&self, host: &dyn Probe) -> Result<Simulation, HostError> {
        let status = host.text(Path::new(STATUS))?.value().unwrap_or_default();
        let installed: BTreeSet<&str> = status
            .split("\n\n")
            .filter(|s| s.lines().any(|l| l.starts_with("Status: ") && l.ends_with(" ok installed")))
            .filter_map(|s| s.lines().find_map(|l| l.strip_prefix("Package: ")))
            .collect();
        let mut args: Vec<String> =
            self.wanted.keys().filter(|n| !installed.contains(n.as_str())).map(ToString::to_string).collect();
        // A minus behind the name removes it (apt-get(8)).
        args.extend(self.absent.iter().filter(|n| installed.contains(n.as_str())).map(|n| format!("{n}-")));
        if args.is_empty() {
            return Ok(None);
        }
        let args: Vec<&str> = SIMULATE.iter().copied().chain(args.iter().map(String::as_str)).collect();
        Ok(Some(match host.query(Program::AptGet, &args) {
            Ok(Answer::Value(output)) => read_simulation(&output),
            Ok(Answer::Absent) => Simulated::NotAsked("apt-get is not installed".to_owned()),
            Ok(Answer::Denied) => Simulated::NotAsked("apt-get may not be run".to_owned()),
            Err(e) => Simulated::NotAsked(e.to_string()),
        }))
    }

    fn diff(&self, state: &Simulation, _: Option<&Self>, facts: &HostFacts) -> Diff {
        let packages = match &facts.packages {
            Known::Value(packages) => packages,
            Known::Unknown(why) => return Diff::Unknown { why: why.clone() },
        };
        let missing: Vec<&PackageName> =
            self.wanted.keys().filter(|n| !packages.get(n.as_str()).is_some_and(|p| p.installed)).collect();
        let wanted = missing.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(" ");
        let (install, remove) = match state {
            None => return Diff::InSync { evidence: format!("{} installed", self.wanted.len()) },
            Some(Simulated::Would { install, remove }) => (install, remove),
            Some(Simulated::NotKnown(name)) => {
                let mut change = Change::new(Action::Create, format!("fetch the package lists, then install {wanted}"));
                change.notes.push(format!("`{name}` is not in the package lists that are there"));
                change.steps.push(Step::AptIndex);
                change.complete_after = Some(WaitFor::PackageIndex);
                return Diff::Change(change);
            }
            Some(Simulated::Cannot(said)) => {
                return Diff::Blocked { why: said.clone(), help: "ask apt: apt-get -s install ".to_owned() + &wanted };
            }
            Some(Simulated::NotAsked(why)) => return Diff::Unknown { why: why.clone() },
        };
        let surprise: Vec<_> = remove.iter().filter(|n| !self.absent.contains(*n)).map(PackageName::as_str).collect();
        if !surprise.is_empty() {
            return Diff::Blocked {
                why: format!("installing {wanted} would remove {}", surprise.join(", ")),
                help: "declare them as `{ name: …, absent: true }` if they may go".to_owned(),
            };
        }
        let asked = missing.len();
        let what = match (asked, remove.len()) {
            (0, n) => format!("remove {n}: {}", remove.iter().map(PackageName::as_str).collect::<Vec<_>>().join(" ")),
            (n, _) => format!("install {n}: {wanted} ({} with what they need)", install.len()),
        };
        let action = if asked == 0 { Action::Remove } else { Action::Create };
        let mut change = Change::new(action, what);
        change.fields = install.iter().filter(|p| missing.contains(&&p.name)).map(field).collect();
        change.fields.extend(
            remove
                .iter()
                .map(|n| FieldDiff::new(n.as_str(), packages.get(n.as_str()).map(|p| p.version.clone()), None)),
        );
        if !remove.is_empty() {
            change.risks.insert(Risk::PackageRemoval);
        }
        let request = missing.into_iter().cloned().collect();
        change.steps.push(Step::Apt { request, install: install.clone(), remove: remove.clone() });
        Diff::Change(change)
    }

    /// Packages are not taken away because a manifest no longer names them: something else may need them by now.
    fn remove(&self, _: &Simulation, _: &HostFacts) -> Diff {
        Diff::InSync { evidence: "packages stay; `absent: true` removes one".to_owned() }
    }
}

/// How apt is asked what it would do, without doing it.
pub const SIMULATE: [&str; 4] = ["-s", "-q", "--no-install-recommends", "install"];

fn field(package: &AptPackage) -> FieldDiff {
    FieldDiff::new(package.name.as_str(), package.before.clone(), Some(package.version.clone()))
}

/// What `apt-get -s` said: `Inst NAME [OLD] (NEW …)`, `Remv NAME [OLD]`, or errors behind `E:`.
pub fn read_simulation(output: &Output) -> Simulated {
    let errors: Vec<&str> =
        output.stderr.lines().chain(output.stdout.lines()).filter_map(|l| l.strip_prefix("E: ")).collect();
    if let Some(name) = errors.iter().find_map(|e| e.strip_prefix("Unable to locate package ")) {
        return Simulated::NotKnown(name.to_owned());
    }
    if let Some(name) =
        errors.iter().find_map(|e| e.strip_prefix("Package '")?.strip_suffix("' has no installation candidate"))
    {
        return Simulated::NotKnown(name.to_owned());
    }
    if output.status != 0 || !errors.is_empty() {
        return Simulated::Cannot(
            errors.first().map_or(format!("apt-get ended with {}", output.status), |e| (*e).to_owned()),
        );
    }
    let mut install = Vec::new();
    let mut remove = Vec::new();
    for line in output.stdout.lines() {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let Ok(name) = rest.split([' ', ':']).next().unwrap_or_default().parse::<PackageName>() else { continue };
        let before = rest.split_once(" [").and_then(|(_, r)| r.split_once(']')).map(|(v, _)| v.to_owned());
        match verb {
            "Inst" => {
                let version = rest.split_once('(').and_then(|(_, r)| r.split([' ', ')']).next()).unwrap_or_default();
                let before = before.filter(|_| rest.find('[') < rest.find('('));
                install.push(AptPackage { name, version: version.to_owned(), before });
            }
            "Remv" => remove.push(name),
            _ => {}
        }
    }
    Simulated::Would { install, remove }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: i32, stdout: &str, stderr: &str) -> Simulated {
        read_simulation(&Output { status, stdout: stdout.to_owned(), stderr: stderr.to_owned() })
    }

    #[test]
    fn the_simulation_is_read() {
        let out = "NOTE: This is only a simulation!\nRemv old [1.0]\nInst libx [1:2-1] (1:2-2 Debian:13/stable [amd64]) []\n\
                   Inst htop (3.4.1-5 Debian:13.1/stable [amd64])\nConf htop (3.4.1-5 Debian:13.1/stable [amd64])\n";
        let Simulated::Would { install, remove } = said(0, out, "") else { panic!("it would") };
        let seen: Vec<_> = install.iter().map(|p| (p.name.as_str(), p.version.as_str(), p.before.as_deref())).collect();
        assert_eq!(seen, [("libx", "1:2-2", Some("1:2-1")), ("htop", "3.4.1-5", None)]);
        assert_eq!(remove.iter().map(PackageName::as_str).collect::<Vec<_>>(), ["old"]);
    }

    #[test]
    fn a_package_that_apt_does_not_know_is_told_apart_from_one_that_it_cannot_install() {
        assert_eq!(said(100, "", "E: Unable to locate package htop\n"), Simulated::NotKnown("htop".to_owned()));
        assert_eq!(
            said(100, "", "E: Held packages were changed\n"),
            Simulated::Cannot("Held packages were changed".to_owned())
        );
        assert_eq!(said(1, "", ""), Simulated::Cannot("apt-get ended with 1".to_owned()));
    }
}
