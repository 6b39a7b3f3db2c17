//! The proof that a driver drives: the host's cards are bound to it, in the version that is wanted. Nothing is started for
//! it: the kernel tells. Packages and files bring the driver, and a boot takes it up.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::{HostFacts, LoadedModule, drivers};
use crate::host::{Answer, HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Risk, WaitFor};
use crate::types::{PackageName, PciAddress, ResourceName};

/// What is to drive the host's cards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Driver {
    /// The maker: `nvidia`, `amd`, `intel`.
    pub name: ResourceName,
    /// The display functions of the cards that stay with the host.
    pub cards: Vec<PciAddress>,
    /// Those of them that host and VMs share: on vfio-pci while a VM has one. Whether one has is the shared GPU's own to
    /// say, which gives it back where none has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<PciAddress>,
    /// The kernel's drivers that count: the first is the usual one.
    pub drivers: Vec<String>,
    /// How its version has to begin (`580.`), where packages bring it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it is the open one, where that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<bool>,
    /// The packages that bring it; none where they are not known yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageName>,
}

/// What drives them now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriverState {
    /// Each card with its driver.
    pub bound: Vec<(PciAddress, Option<String>)>,
    /// NVIDIA's module, where it is loaded.
    pub loaded: Option<LoadedModule>,
    /// The kernel that boots next, where it has no module of it.
    pub without: Option<String>,
}

/// The version of the driver in that of a package: without epoch and revision.
pub fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.split(['-', '+', '~']).next().unwrap_or(version)
}

/// Whether a version, of a package or of a module, is one that begins so. `580.` is a branch, `580.95.05` and
/// `580.95.05-1ubuntu1` are whole versions.
pub fn fits(version: &str, wanted: &str) -> bool {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    wanted.strip_suffix('.').map_or_else(
        || version == wanted || upstream(version) == wanted,
        |branch| version.strip_prefix(branch).is_some_and(|r| r.starts_with('.')),
    )
}

impl Driver {
    /// What is installed of it: the version of the first of its packages.
    fn installed<'a>(&self, facts: &'a HostFacts) -> Option<&'a str> {
        let mut all = self.packages.iter().map(|p| facts.package(p.as_str()));
        let first = all.next()??;
        all.all(|p| p.is_some()).then(|| upstream(&first.version))
    }

    /// Whether a card is lent to a VM now.
    fn lent(&self, card: &PciAddress, driver: Option<&str>) -> bool {
        self.shared.contains(card) && driver.is_some_and(|d| d.contains("vfio"))
    }

    /// Why it does not drive as it should now; `None` where it does.
    fn amiss(&self, state: &DriverState, facts: &HostFacts) -> Option<String> {
        let lent = |(card, driver): &(PciAddress, Option<String>)| self.lent(card, driver.as_deref());
        let fine = |driver: &Option<String>| driver.as_ref().is_some_and(|d| self.drivers.contains(d));
        if let Some((card, driver)) = state.bound.iter().find(|one| !lent(one) && !fine(&one.1)) {
            let driver = driver.as_deref().unwrap_or("no driver");
            return Some(format!("{card} is on {driver}, not on {}", self.drivers.join(" or ")));
        }
        let wanted = self.version.as_deref()?;
        // Nothing need be loaded while VMs have all of them: it is when the first comes back.
        if state.loaded.is_none() && !state.bound.is_empty() && state.bound.iter().all(lent) {
            return match self.installed(facts) {
                Some(installed) if fits(installed, wanted) || installed == upstream(wanted) => None,
                Some(installed) => {
                    Some(format!("version {installed} is installed, not {}", wanted.trim_end_matches('.')))
                }
                None => Some("its packages are not installed yet".to_owned()),
            };
        }
        let Some(running) = state.loaded.as_ref().and_then(|l| l.version.as_deref()) else {
            return Some("the module that is loaded does not tell its version".to_owned());
        };
        // `580.95.05-1ubuntu1` names a package; the module has no revision.
        let module = upstream(wanted);
        if !fits(running, if wanted.ends_with('.') { wanted } else { module }) {
            return Some(format!("version {running} runs, not {}", wanted.trim_end_matches('.')));
        }
        if let Some(installed) = self.installed(facts).filter(|i| *i != running) {
            return Some(format!("version {running} runs, and the libraries are {installed}"));
        }
        let open = state.loaded.as_ref().and_then(|l| l.open);
        match (self.open, open) {
            (Some(true), Some(false)) => Some("the proprietary module runs, not the open one".to_owned()),
            (Some(false), Some(true)) => Some("the open module runs, not the proprietary one".to_owned()),
            _ => None,
        }
    }
}

impl Resource for Driver {
    const KIND: &'static str = "driver";
    type State = DriverState;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<DriverState, HostError> {
        let mut state = DriverState::default();
        for card in &self.cards {
            let link = host.link(Path::new(&format!("/sys/bus/pci/devices/{card}/driver")))?;
            let name = match link {
                Answer::Value(target) => target.file_name().map(|n| n.to_string_lossy().into_owned()),
                Answer::Absent | Answer::Denied => None,
            };
            state.bound.push((*card, name));
        }
        Ok(state)
    }

    fn diff(&self, state: &DriverState, _: Option<&Self>, facts: &HostFacts) -> Diff {
        let known: Option<&drivers::DriverFacts> = facts.drivers.as_ref();
        let state = DriverState {
            loaded: known.and_then(|k| k.nvidia.clone()),
            without: known.filter(|k| !k.next_has_module).map(|k| k.next_kernel.clone()),
            ..state.clone()
        };
        let version = state.loaded.as_ref().and_then(|l| l.version.as_deref()).filter(|_| self.version.is_some());
        let names = self.cards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let lent = state.bound.iter().filter(|(card, d)| self.lent(card, d.as_deref()));
        let lent = lent.map(|(card, _)| card.to_string()).collect::<Vec<_>>().join(", ");
        let lent = if lent.is_empty() { lent } else { format!("; for a VM now: {lent}") };
        let Some(why) = self.amiss(&state, facts) else {
            return Diff::InSync {
                evidence: format!(
                    "{} {}on {names}{lent}",
                    self.drivers.join("/"),
                    version.map_or(String::new(), |v| format!("{v} "))
                ),
            };
        };
        // Booting without the module would end without a driver, and nouveau is off by then.
        // What dpkg was cut off in is finished first.
        let unfinished = facts
            .packages
            .value()
            .is_some_and(|all| all.values().any(|p| super::package::UNFINISHED.contains(&p.status.as_str())));
        if let Some(kernel) = &state.without
            && !unfinished
            && self.installed(facts).is_some()
            && self.version.is_some()
        {
            return Diff::Blocked {
                why: format!(
                    "the packages are installed, and there is no module of it for kernel {kernel}, which boots next"
                ),
                help: format!(
                    "see why it was not built: cat /var/lib/dkms/nvidia*/*/build/make.log; are its headers there: dpkg -s linux-headers-{kernel}"
                ),
            };
        }
        let what = match self.version.as_deref() {
            Some(v) => {
                format!("{} {} drives {names} once the host has booted", self.drivers[0], v.trim_end_matches('.'))
            }
            None => format!("{} drives {names} once the host has booted", self.drivers[0]),
        };
        let mut promise = Change::new(Action::Change, what);
        for (card, driver) in &state.bound {
            if !self.lent(card, driver.as_deref()) && !driver.as_ref().is_some_and(|d| self.drivers.contains(d)) {
                let before = driver.clone().unwrap_or_else(|| "no driver".to_owned());
                promise.fields.push(FieldDiff::new(card.to_string(), Some(before), Some(self.drivers[0].clone())));
            }
        }
        promise.risks.insert(Risk::Reboot);
        Diff::Waits { on: WaitFor::Reboot, why, promise }
    }

    /// What drives the cards is up to packages and kernel from now on.
    fn remove(&self, _: &DriverState, _: &HostFacts) -> Diff {
        Diff::stays("the driver stays as it is")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::facts::{DriverFacts, Known, Package, SecureBoot};

    #[test]
    fn versions_fit_a_branch_or_one_version() {
        for (version, wanted, fit) in [
            ("580.95.05-0ubuntu1", "580.", true),
            ("1:580.95.05-0ubuntu1", "580.", true),
            ("5800.1-1", "580.", false),
            ("575.57.08-0ubuntu1", "580.", false),
            ("580.95.05-0ubuntu1", "580.95.05", true),
            ("580.95.050-0ubuntu1", "580.95.05", false),
            ("580.95.05-0ubuntu1", "580.95.05-0ubuntu1", true),
            ("580.95.05-0ubuntu2", "580.95.05-0ubuntu1", false),
            ("580.95.05", "580.95.05", true),
        ] {
            assert_eq!(fits(version, wanted), fit, "{version} {wanted}");
        }
    }

    fn known(loaded: Option<(&str, bool)>, module: bool) -> HostFacts {
        let mut facts = super::super::tests::facts();
        facts.drivers = Some(DriverFacts {
            offers: BTreeMap::new(),
            lists: Default::default(),
            unread: Vec::new(),
            preferences: BTreeMap::new(),
            others: Vec::new(),
            nvidia: loaded.map(|(v, open)| LoadedModule { version: Some(v.to_owned()), open: Some(open) }),
            running_kernel: "6.8.0-1".to_owned(),
            next_kernel: "6.8.0-1".to_owned(),
            next_has_module: module,
            secure_boot: SecureBoot::Off("not started by UEFI"),
            own_key: Known::Unknown(String::new()),
        });
        facts
    }
    fn told(driver: &str, loaded: Option<(&str, bool)>, installed: Option<&str>, module: bool) -> String {
        let wanted = Driver {
            name: "nvidia".parse().unwrap(),
            cards: vec!["0000:01:00.0".parse().unwrap()],
            shared: Vec::new(),
            drivers: vec!["nvidia".to_owned()],
            version: Some("580.".to_owned()),
            open: Some(true),
            packages: vec!["nvidia-open-580".parse().unwrap()],
        };
        let mut facts = known(loaded, module);
        let package = |v: &str| Package { version: v.to_owned(), installed: true, ..Package::default() };
        let all = installed.map(|v| ("nvidia-open-580".to_owned(), package(v)));
        facts.packages = Known::Value(all.into_iter().collect());
        let driver = Some(driver.to_owned()).filter(|d| !d.is_empty());
        let state = DriverState { bound: vec![(wanted.cards[0], driver)], ..DriverState::default() };
        match wanted.diff(&state, None, &facts) {
            Diff::InSync { evidence } => evidence,
            Diff::Waits { on: WaitFor::Reboot, why, .. } => format!("reboot: {why}"),
            Diff::Blocked { why, .. } => format!("blocked: {why}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_driver_is_proven_by_what_the_kernel_tells() {
        let runs = Some(("580.95.05", true));
        let package = Some("580.95.05-0ubuntu1");
        assert_eq!(told("nvidia", runs, package, true), "nvidia 580.95.05 on 0000:01:00.0");
        for (driver, loaded, installed, module, wanted) in [
            ("nouveau", None, None, false, "reboot: 0000:01:00.0 is on nouveau, not on nvidia"),
            ("", None, package, true, "reboot: 0000:01:00.0 is on no driver, not on nvidia"),
            ("nvidia", Some(("575.57.08", true)), package, true, "reboot: version 575.57.08 runs, not 580"),
            (
                "nvidia",
                Some(("580.65.06", true)),
                package,
                true,
                "reboot: version 580.65.06 runs, and the libraries are 580.95.05",
            ),
            (
                "nvidia",
                Some(("580.95.05", false)),
                package,
                true,
                "reboot: the proprietary module runs, not the open one",
            ),
            // Never booted without a module: the host's display would be gone.
            (
                "nouveau",
                None,
                package,
                false,
                "blocked: the packages are installed, and there is no module of it for kernel 6.8.0-1, which boots next",
            ),
        ] {
            assert_eq!(told(driver, loaded, installed, module), wanted);
        }
    }
    #[test]
    fn a_shared_card_that_a_vm_has_needs_no_boot() {
        let card = |a: &str| a.parse::<PciAddress>().unwrap();
        let [own, shared] = [card("0000:01:00.0"), card("0000:02:00.0")];
        let told = |on: [&str; 2],
                    of: &[PciAddress],
                    version: Option<&str>,
                    loaded: Option<(&str, bool)>,
                    has: Option<&str>| {
            let wanted = Driver {
                name: "nvidia".parse().unwrap(),
                cards: vec![own, shared],
                shared: of.to_vec(),
                drivers: vec!["nvidia".to_owned()],
                version: version.map(str::to_owned),
                open: None,
                packages: vec!["nvidia-open-580".parse().unwrap()],
            };
            let mut facts = known(loaded, true);
            let package = |v: &str| Package { version: v.to_owned(), installed: true, ..Package::default() };
            facts.packages =
                Known::Value(has.map(|v| ("nvidia-open-580".to_owned(), package(v))).into_iter().collect());
            let bound = [own, shared].into_iter().zip(on.map(|d| Some(d.to_owned()))).collect();
            match wanted.diff(&DriverState { bound, ..DriverState::default() }, None, &facts) {
                Diff::InSync { evidence } => evidence,
                Diff::Waits { on: WaitFor::Reboot, why, promise } => {
                    format!("reboot: {why} ({})", promise.fields.len())
                }
                other => format!("{other:?}"),
            }
        };
        let (branch, runs, package) = (Some("580."), Some(("580.95.05", true)), Some("580.95.05-0ubuntu1"));
        let one = told(["nvidia", "vfio-pci"], &[shared], branch, runs, package);
        assert_eq!(one, "nvidia 580.95.05 on 0000:01:00.0, 0000:02:00.0; for a VM now: 0000:02:00.0");
        // One that is the host's alone is not lent, and one of the host's on another driver needs the boot as before.
        let alone = told(["nvidia", "vfio-pci"], &[], branch, runs, package);
        assert_eq!(alone, "reboot: 0000:02:00.0 is on vfio-pci, not on nvidia (1)");
        let other = told(["nouveau", "vfio-pci"], &[shared], branch, None, package);
        assert_eq!(other, "reboot: 0000:01:00.0 is on nouveau, not on nvidia (1)");
        // With all of them lent, nothing is loaded: the packages tell.
        let all = |has| told(["vfio-pci", "vfio-pci"], &[own, shared], branch, None, has);
        assert!(all(package).starts_with("nvidia on 0000:01:00.0"), "{}", all(package));
        assert_eq!(all(Some("575.57.08-1")), "reboot: version 575.57.08 is installed, not 580 (0)");
        assert_eq!(all(None), "reboot: its packages are not installed yet (0)");
        // The kernel's own drivers have no version.
        assert!(told(["nvidia", "vfio-pci"], &[shared], None, None, None).starts_with("nvidia on"));
    }
}
