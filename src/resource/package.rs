//! Packages of the distribution: one resource, one transaction. Versions are those that apt's own simulation gives.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Resource, driver};
use crate::facts::{HostFacts, Known, Package, packages};
use crate::host::{Answer, HostError, Output, Probe, Program};
use crate::plan::{Action, AptPackage, Change, Diff, FieldDiff, Risk, Step, WaitFor};
use crate::types::{PackageName, compare_versions, sha256_hex};

/// The packages that a host is to have, and those that it is not to have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackageSet {
    /// Wanted, each with the sections that it follows from.
    pub wanted: BTreeMap<PackageName, BTreeSet<String>>,
    /// Not wanted.
    pub absent: BTreeSet<PackageName>,
    /// sha256 in hex over the sources and pins of apt's that the manifest declares, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<String>,
    /// Its name among several transactions; empty for the usual one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stage: String,
    /// How the versions of some have to begin, as [`driver::fits`] reads it: one that is installed in another version
    /// counts as missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<PackageName, String>,
    /// What may be removed, or replaced by what is wanted, though nobody declared it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub replaceable: BTreeSet<PackageName>,
    /// Whether what is replaceable, and what is wanted, may go back to an older version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub older: bool,
    /// Why apt cannot be asked about it yet: its sources or preferences come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

impl PackageSet {
    /// Whether a package is there, in a version that will do.
    fn is_there(&self, name: &PackageName, known: &BTreeMap<String, Package>) -> bool {
        let fits = |p: &Package| self.versions.get(name).is_none_or(|wanted| driver::fits(&p.version, wanted));
        known.get(name.as_str()).is_some_and(|p| p.installed && fits(p))
    }
}

/// What dpkg and apt say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageState {
    /// What apt would do for what is missing; `None` where nothing is.
    pub simulated: Option<Simulated>,
    /// dpkg's journal is not empty: it was cut off in the middle.
    pub cut_off: bool,
    /// What the package lists were fetched for last, and did not have before: [`PackageSet::mark`].
    pub fetched_for: Option<String>,
}

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

/// Where dpkg notes what it has not yet written to its status file (dpkg's `--audit` looks here too).
const JOURNAL: &str = "/var/lib/dpkg/updates";

/// Where it is remembered that the lists were fetched for packages that they did not have: fetching them once more is
/// no answer to a wrong name.
pub const FETCHED_FOR: &str = "/var/lib/gpuvm/package-lists";

/// The states that a transaction leaves behind when it is cut off (dpkg(1)).
pub const UNFINISHED: [&str; 5] =
    ["half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending"];

impl PackageSet {
    /// Stands for a package that the lists did not have, and for the sources that the manifest declares.
    fn mark(&self, unknown: &str) -> String {
        sha256_hex(format!("{unknown}\n{}", self.sources.as_deref().unwrap_or_default()).as_bytes())
    }

    /// What will be done once apt can be asked: the names that are known, and the most that may come of them.
    fn promise(&self, why: &str, missing: &[&PackageName], known: &BTreeMap<String, Package>) -> Diff {
        let names = missing.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(" ");
        let what = match names.as_str() {
            "" if !self.stage.is_empty() => {
                "install what holds the branch, where the source has such a package".to_owned()
            }
            "" => "install packages that are not known by name yet".to_owned(),
            names => format!("install {names}, and what is not known by name yet"),
        };
        let mut promise = Change::new(Action::Create, what);
        let leaves = |n: &PackageName| known.get(n.as_str()).is_some_and(|p| p.installed);
        let may_go: Vec<&str> =
            self.absent.iter().filter(|n| leaves(n)).chain(&self.replaceable).map(PackageName::as_str).collect();
        if !may_go.is_empty() {
            promise.risks.insert(Risk::PackageRemoval);
            promise.notes.push(format!("may replace or remove: {}", may_go.join(" ")));
        }
        promise.notes.push(format!(
            "{why}; which versions, and what else, apt says then: a removal of anything else ends the run"
        ));
        let request = missing.iter().map(|n| (*n).clone()).collect();
        promise.steps.push(Step::Apt { request, install: Vec::new(), remove: Vec::new() });
        Diff::Waits { on: WaitFor::PackageIndex, why: why.to_owned(), promise }
    }

    /// Why apt must not do what it would, or `None`. What a person put on hold, removals that nobody declared, and
    /// ways back to older versions are refused; each is named.
    fn refused(
        &self,
        install: &[AptPackage],
        remove: &[PackageName],
        known: &BTreeMap<String, Package>,
    ) -> Option<(String, String)> {
        let held = |n: &PackageName| known.get(n.as_str()).is_some_and(|p| p.held);
        let held: Vec<&str> =
            install.iter().map(|p| &p.name).chain(remove).filter(|n| held(n)).map(PackageName::as_str).collect();
        if !held.is_empty() {
            let held = held.join(" ");
            return Some((
                format!("it would change what is on hold: {held}"),
                format!("if it may: apt-mark unhold {held}"),
            ));
        }
        let declared = |n: &PackageName| self.absent.contains(n) || self.replaceable.contains(n);
        let surprise: Vec<_> = remove.iter().filter(|n| !declared(n)).map(PackageName::as_str).collect();
        // Nobody takes out what the same manifest needs: the sources offer two that do not go together.
        if let Some(needed) = remove.iter().find(|n| self.wanted.contains_key(*n)) {
            return Some((
                format!("it would remove {}, and {needed} is needed itself", surprise.join(" ")),
                format!("see which package asks for that: apt-get -s install {needed}"),
            ));
        }
        if !surprise.is_empty() {
            return Some((
                format!("it would remove {}", surprise.join(" ")),
                "if they may go, declare them under `packages`: `{ name: …, absent: true }`".to_owned(),
            ));
        }
        let older = |p: &&AptPackage| {
            p.before.as_ref().is_some_and(|before| compare_versions(&p.version, before) == Ordering::Less)
        };
        let may =
            |p: &&AptPackage| self.older && (self.replaceable.contains(&p.name) || self.wanted.contains_key(&p.name));
        let back: Vec<&AptPackage> = install.iter().filter(older).filter(|p| !may(p)).collect();
        let first = back.first()?;
        let shown = |p: &&AptPackage| format!("{} {} → {}", p.name, p.before.as_deref().unwrap_or_default(), p.version);
        Some((
            format!("it would go back to older versions: {}", back.iter().map(shown).collect::<Vec<_>>().join(", ")),
            format!("a pin or a hold of apt's asks for that: apt-cache policy {}", first.name),
        ))
    }
}

impl Resource for PackageSet {
    const KIND: &'static str = "package";
    type State = PackageState;

    fn name(&self) -> String {
        self.stage.clone()
    }

    fn probe(&self, host: &dyn Probe) -> Result<PackageState, HostError> {
        if self.waits.is_some() {
            return Ok(PackageState::default());
        }
        let known = match packages::packages(host) {
            Known::Value(known) => known,
            Known::Unknown(why) => {
                return Ok(PackageState { simulated: Some(Simulated::NotAsked(why)), ..PackageState::default() });
            }
        };
        let installed = |n: &PackageName| known.get(n.as_str()).is_some_and(|p| p.installed);
        let journal = host.list(Path::new(JOURNAL))?.value().unwrap_or_default();
        let cut_off = journal.iter().any(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        let mut args: Vec<String> =
            self.wanted.keys().filter(|n| !self.is_there(n, &known)).map(ToString::to_string).collect();
        // A minus behind the name removes it (apt-get(8)).
        args.extend(self.absent.iter().filter(|n| installed(n)).map(|n| format!("{n}-")));
        // Without a name, apt says what it would do about what is half done.
        if args.is_empty() && !cut_off && unfinished(&known).is_empty() {
            return Ok(PackageState::default());
        }
        let args: Vec<&str> = SIMULATE.iter().copied().chain(args.iter().map(String::as_str)).collect();
        let simulated = match host.query(Program::AptGet, &args) {
            Ok(Answer::Value(output)) => read_simulation(&output),
            Ok(Answer::Absent) => Simulated::NotAsked("apt-get is not installed".to_owned()),
            Ok(Answer::Denied) => Simulated::NotAsked("apt-get may not be run".to_owned()),
            Err(e) => Simulated::NotAsked(e.to_string()),
        };
        let fetched_for = match &simulated {
            Simulated::NotKnown(_) => host.text(Path::new(FETCHED_FOR))?.value(),
            _ => None,
        };
        Ok(PackageState { simulated: Some(simulated), cut_off, fetched_for })
    }

    fn diff(&self, state: &PackageState, _: Option<&Self>, facts: &HostFacts) -> Diff {
        let known = match &facts.packages {
            Known::Value(known) => known,
            Known::Unknown(why) => return Diff::Unknown { why: why.clone() },
        };
        let installed = |n: &PackageName| known.get(n.as_str()).is_some_and(|p| p.installed);
        let missing: Vec<&PackageName> = self.wanted.keys().filter(|n| !self.is_there(n, known)).collect();
        if let Some(why) = &self.waits {
            return self.promise(why, &missing, known);
        }
        let names = missing.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(" ");
        let unfinished = unfinished(known);
        let finish = state.cut_off || !unfinished.is_empty();
        let mut change = Change::new(if missing.is_empty() { Action::Change } else { Action::Create }, "");
        if finish {
            let which = if unfinished.is_empty() { String::new() } else { format!(": {}", unfinished.join(" ")) };
            change.notes.push(format!("first finishes a package transaction that was cut off{which}"));
            change.steps.push(Step::FinishPackages);
        }
        let (install, remove) = match &state.simulated {
            None => return Diff::InSync { evidence: format!("{} installed", self.wanted.len()) },
            Some(Simulated::Would { install, remove }) => (install, remove),
            Some(Simulated::NotKnown(name)) if state.fetched_for.as_deref() == Some(&self.mark(name)) => {
                return Diff::Blocked {
                    why: format!("no package source knows `{name}`, and their lists were fetched for it"),
                    help: format!(
                        "correct the name, or add the source that has it and run: apt-get update (look for it: apt-cache search {name})"
                    ),
                };
            }
            Some(Simulated::NotKnown(name)) => {
                change.what = format!("fetch the package lists, then install {names}");
                change.notes.push(format!("`{name}` is not in the package lists that are there"));
                change
                    .notes
                    .push("first of all: a source that does not answer ends the run before anything else".to_owned());
                if self.absent.iter().any(installed) {
                    change.risks.insert(Risk::PackageRemoval);
                }
                change.steps.push(Step::AptIndex { mark: self.mark(name) });
                change.complete_after = Some(WaitFor::PackageIndex);
                return Diff::Change(change);
            }
            Some(Simulated::Cannot(_)) if finish => {
                change.what = match missing.is_empty() {
                    true => "finish what was cut off".to_owned(),
                    false => format!("finish what was cut off, then install {names}"),
                };
                change.complete_after = Some(WaitFor::PackageIndex);
                return Diff::Change(change);
            }
            Some(Simulated::Cannot(said)) => {
                return Diff::Blocked { why: said.clone(), help: format!("ask apt: apt-get -s install {names}") };
            }
            Some(Simulated::NotAsked(why)) => return Diff::Unknown { why: why.clone() },
        };
        // What was cut off while it was unpacked, only another unpacking finishes, which `dpkg --configure` is not.
        let torn = |(name, p): &(&String, &Package)| {
            p.status == "half-installed" && !install.iter().any(|i| i.name.as_str() == name.as_str())
        };
        if let Some((name, _)) = known.iter().find(torn) {
            return Diff::Blocked {
                why: format!("`{name}` is half installed: it was cut off while it was unpacked"),
                help: format!("unpack it again: apt-get install --reinstall {name}"),
            };
        }
        let wrong = |p: &&AptPackage| self.versions.get(&p.name).is_some_and(|w| !driver::fits(&p.version, w));
        if let Some(package) = install.iter().find(wrong) {
            let wanted = self.versions.get(&package.name).map_or("", |w| w.trim_end_matches('.'));
            return Diff::Blocked {
                why: format!("apt would install {} {}, and {wanted} is wanted", package.name, package.version),
                help: format!("another pin or source goes before ours: apt-cache policy {}", package.name),
            };
        }
        let comes = |n: &PackageName| install.iter().any(|p| p.name == *n) || unfinished.contains(&n.as_str());
        if let Some(name) = missing.iter().find(|n| !comes(n)) {
            return Diff::Blocked {
                why: format!("`{name}` is no package of its own: apt would take another one for it"),
                help: format!("name that one in its place: apt-cache showpkg {name}"),
            };
        }
        if let Some((why, help)) = self.refused(install, remove, known) {
            let what = if missing.is_empty() { String::new() } else { format!("to install {names}: ") };
            return Diff::Blocked { why: format!("{what}{why}"), help };
        }
        change.what = match (missing.len(), remove.len()) {
            (0, 0) => "finish what was cut off".to_owned(),
            (0, n) => format!("remove {n}: {}", remove.iter().map(PackageName::as_str).collect::<Vec<_>>().join(" ")),
            (n, _) => format!("install {n}: {names} ({} with what they need)", install.len()),
        };
        if missing.is_empty() && !remove.is_empty() {
            change.action = Action::Remove;
        }
        // What is there already and becomes another version is worth a line too.
        change.fields =
            install.iter().filter(|p| missing.contains(&&p.name) || p.before.is_some()).map(field).collect();
        change.fields.extend(
            remove.iter().map(|n| FieldDiff::new(n.as_str(), known.get(n.as_str()).map(|p| p.version.clone()), None)),
        );
        let back = |p: &AptPackage| {
            p.before.as_ref().is_some_and(|before| compare_versions(&p.version, before) == Ordering::Less)
        };
        if !remove.is_empty() || install.iter().any(back) {
            change.risks.insert(Risk::PackageRemoval);
        }
        if !(install.is_empty() && remove.is_empty()) {
            let request = missing.into_iter().cloned().collect();
            change.steps.push(Step::Apt { request, install: install.clone(), remove: remove.clone() });
        }
        // What it brings (a pin) decides what apt would do about the rest.
        if !self.stage.is_empty() {
            change.complete_after = Some(WaitFor::PackageIndex);
        }
        Diff::Change(change)
    }

    /// Packages are not taken away because a manifest no longer names them: something else may need them by now.
    fn remove(&self, _: &PackageState, _: &HostFacts) -> Diff {
        Diff::stays("packages stay; `absent: true` removes one")
    }
}

/// How apt is asked what it would do, without doing it.
pub const SIMULATE: [&str; 4] = ["-s", "-q", "--no-install-recommends", "install"];

/// What a cut-off transaction left half done.
fn unfinished(known: &BTreeMap<String, Package>) -> Vec<&str> {
    known.iter().filter(|(_, p)| UNFINISHED.contains(&p.status.as_str())).map(|(name, _)| name.as_str()).collect()
}

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
    // A name that only stands for others has no candidate either; apt says so beside its error.
    let stands_for =
        |l: &str| l.strip_prefix("Package ")?.strip_suffix(" is a virtual package provided by:").map(str::to_owned);
    if let Some(name) = output.stdout.lines().chain(output.stderr.lines()).find_map(stands_for) {
        return Simulated::Cannot(format!("`{name}` is a virtual package: name one that provides it"));
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
        let out = "Package awk is a virtual package provided by:\n  mawk 1\n  gawk 1\n\n";
        let virtual_one = said(100, out, "E: Package 'awk' has no installation candidate\n");
        assert_eq!(virtual_one, Simulated::Cannot("`awk` is a virtual package: name one that provides it".to_owned()));
    }

    fn set(wanted: &[&str], absent: &[&str]) -> PackageSet {
        let name = |n: &&str| n.parse::<PackageName>().unwrap();
        PackageSet {
            wanted: wanted.iter().map(|n| (name(n), BTreeSet::new())).collect(),
            absent: absent.iter().map(name).collect(),
            ..PackageSet::default()
        }
    }
    /// A host with these packages, each with its state as dpkg writes it.
    fn host(packages: &[(&str, &str)]) -> HostFacts {
        let mut facts = super::super::tests::facts();
        let package = |status: &str| Package {
            version: "2".to_owned(),
            installed: status.ends_with(" ok installed"),
            status: status.rsplit(' ').next().unwrap_or_default().to_owned(),
            held: status.starts_with("hold "),
        };
        facts.packages = Known::Value(packages.iter().map(|(n, s)| ((*n).to_owned(), package(s))).collect());
        facts
    }
    fn would(out: &str) -> PackageState {
        PackageState { simulated: Some(said(0, out, "")), ..PackageState::default() }
    }
    fn blocked(diff: Diff) -> String {
        match diff {
            Diff::Blocked { why, help } => format!("{why} | {help}"),
            other => panic!("{other:?}"),
        }
    }
    fn change(diff: Diff) -> Change {
        match diff {
            Diff::Change(change) => change,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_on_hold_counts_as_installed_and_is_never_changed() {
        let facts = host(&[("aa", "hold ok installed"), ("libaa", "hold ok installed")]);
        let diff = set(&["aa"], &[]).diff(&PackageState::default(), None, &facts);
        assert_eq!(diff, Diff::InSync { evidence: "1 installed".to_owned() });
        let upgrade = would("Inst libaa [2] (3 Debian:13 [amd64])\nInst bb (1 Debian:13 [amd64])\n");
        let why = blocked(set(&["bb"], &[]).diff(&upgrade, None, &facts));
        assert_eq!(why, "to install bb: it would change what is on hold: libaa | if it may: apt-mark unhold libaa");
        let why = blocked(set(&[], &["aa"]).diff(&would("Remv aa [2]\n"), None, &facts));
        assert_eq!(why, "it would change what is on hold: aa | if it may: apt-mark unhold aa");
    }

    #[test]
    fn removals_are_refused_unless_declared_and_downgrades_always() {
        let facts = host(&[("old", "install ok installed"), ("lib", "install ok installed")]);
        let out = would("Remv old [2]\nInst new (1 Debian:13 [amd64])\n");
        let why = blocked(set(&["new"], &[]).diff(&out, None, &facts));
        assert!(why.starts_with("to install new: it would remove old | "), "{why}");
        let declared = change(set(&["new"], &["old"]).diff(&out, None, &facts));
        assert!(declared.risks.contains(&Risk::PackageRemoval));
        let out = would("Inst lib [2] (1~rc1 Debian:13 [amd64])\nInst new (1 Debian:13 [amd64])\n");
        let why = blocked(set(&["new"], &[]).diff(&out, None, &facts));
        assert!(why.starts_with("to install new: it would go back to older versions: lib 2 → 1~rc1 | "), "{why}");
        let newer = change(set(&["new"], &[]).diff(
            &would("Inst lib [2] (10 Debian:13 [amd64])\nInst new (1 Debian:13 [amd64])\n"),
            None,
            &facts,
        ));
        assert!(newer.fields.iter().any(|f| f.field == "lib" && f.after.as_deref() == Some("10")), "said in the plan");
    }

    #[test]
    fn a_cut_off_transaction_is_finished_first_even_where_nothing_is_missing() {
        let facts = host(&[("aa", "install ok installed"), ("bb", "install ok half-configured")]);
        let finish = change(set(&["aa"], &[]).diff(&would(""), None, &facts));
        assert_eq!(finish.steps, [Step::FinishPackages]);
        assert_eq!(finish.notes, ["first finishes a package transaction that was cut off: bb"]);
        let open = PackageState { cut_off: true, ..would("Inst cc (1 Debian:13 [amd64])\n") };
        let both = change(set(&["aa", "cc"], &[]).diff(&open, None, &host(&[("aa", "install ok installed")])));
        assert!(matches!(&both.steps[..], [Step::FinishPackages, Step::Apt { .. }]), "{:?}", both.steps);
        let torn = host(&[("aa", "install ok installed"), ("bb", "install reinstreq half-installed")]);
        let why = blocked(set(&["aa"], &[]).diff(&would(""), None, &torn));
        assert!(why.ends_with("apt-get install --reinstall bb"), "{why}");
        // What apt can say only once that is done ends the round.
        let cannot = PackageState { simulated: Some(Simulated::Cannot("x".to_owned())), ..PackageState::default() };
        let first = change(set(&["cc"], &[]).diff(&cannot, None, &facts));
        assert_eq!((first.steps.len(), first.complete_after), (1, Some(WaitFor::PackageIndex)));
    }

    #[test]
    fn a_name_that_no_source_knows_is_looked_for_once() {
        let (facts, wanted) = (host(&[]), set(&["htpo"], &[]));
        let state = PackageState { simulated: Some(Simulated::NotKnown("htpo".to_owned())), ..PackageState::default() };
        let fetch = change(wanted.diff(&state, None, &facts));
        let [Step::AptIndex { mark }] = &fetch.steps[..] else { panic!("{:?}", fetch.steps) };
        let fetched = PackageState { fetched_for: Some(mark.clone()), ..state };
        let why = blocked(wanted.diff(&fetched, None, &facts));
        assert!(
            why.starts_with("no package source knows `htpo`, and their lists were fetched for it | correct the name")
        );
        // A source that the manifest adds is a reason to look again.
        let more = PackageSet { sources: Some("of a file".to_owned()), ..wanted };
        assert_eq!(change(more.diff(&fetched, None, &facts)).steps.len(), 1);
    }

    #[test]
    fn a_name_that_only_others_provide_is_refused() {
        let why = blocked(set(&["awk"], &[]).diff(&would(""), None, &host(&[("mawk", "install ok installed")])));
        assert!(why.starts_with("`awk` is no package of its own"), "{why}");
    }
}
