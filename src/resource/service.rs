//! systemd units: whether one starts at boot, and whether it runs now.

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::HostFacts;
use crate::host::{Answer, HostError, Probe, Program};
use crate::plan::{Action, Change, Diff, FieldDiff, ServiceAction, Step, WaitFor};
use crate::types::UnitName;

/// A unit, and what of it is managed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// The unit.
    pub unit: UnitName,
    /// Whether it starts at boot; `None` where that is not managed.
    pub enabled: Option<bool>,
    /// Whether it runs now; `None` where that is not managed.
    pub running: Option<bool>,
    /// A package of the same manifest may bring it: as long as it is not there, it is waited for.
    pub awaited: bool,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitState {
    /// systemd does not know it.
    Missing,
    /// systemd could not be asked.
    NotAsked(String),
    /// It is there.
    There {
        /// `enabled`, `disabled`, `static`, `masked`, … (systemctl(1), is-enabled).
        file: String,
        /// `active`, `inactive`, `failed`, … (systemd(1)).
        active: String,
    },
}

/// One question for all units of a pass: what starts at boot.
pub const UNIT_FILES: [&str; 5] = ["list-unit-files", "--all", "--no-legend", "--no-pager", "--plain"];
/// And what runs.
pub const UNITS: [&str; 5] = ["list-units", "--all", "--no-legend", "--no-pager", "--plain"];

/// The columns of the line that begins with the unit's name.
fn line<'a>(text: &'a str, unit: &str) -> Option<Vec<&'a str>> {
    text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).find(|c| c.first() == Some(&unit))
}

impl Resource for Service {
    const KIND: &'static str = "service";
    type State = UnitState;

    fn name(&self) -> String {
        self.unit.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<UnitState, HostError> {
        let ask = |args: &[&str]| match host.query(Program::Systemctl, args) {
            Ok(Answer::Value(output)) if output.status == 0 => Ok(output.stdout),
            Ok(Answer::Value(output)) => Err(output.stderr.lines().next().unwrap_or("systemctl failed").to_owned()),
            Ok(Answer::Absent) => Err("systemctl is not installed".to_owned()),
            Ok(Answer::Denied) => Err("systemctl may not be run".to_owned()),
            Err(e) => Err(e.to_string()),
        };
        let (files, units) = match (ask(&UNIT_FILES), ask(&UNITS)) {
            (Ok(files), Ok(units)) => (files, units),
            (Err(why), _) | (_, Err(why)) => return Ok(UnitState::NotAsked(why)),
        };
        let unit = self.unit.as_str();
        // `getty@tty1.service` has the unit file `getty@.service`.
        let template =
            unit.split_once('@').and_then(|(name, rest)| Some(format!("{name}@.{}", rest.rsplit_once('.')?.1)));
        let file = line(&files, unit).or_else(|| line(&files, template.as_deref()?));
        let active = line(&units, unit).filter(|c| c.get(1) != Some(&"not-found"));
        Ok(match (file, active) {
            (None, None) => UnitState::Missing,
            (file, active) => UnitState::There {
                file: file.and_then(|c| c.get(1).copied()).unwrap_or("generated").to_owned(),
                active: active.and_then(|c| c.get(2).copied()).unwrap_or("inactive").to_owned(),
            },
        })
    }

    fn diff(&self, state: &UnitState, _: Option<&Self>, _: &HostFacts) -> Diff {
        let (file, active) = match state {
            UnitState::There { file, active } => (file.as_str(), active.as_str()),
            UnitState::NotAsked(why) => return Diff::Unknown { why: why.clone() },
            UnitState::Missing if self.enabled != Some(true) && self.running != Some(true) => {
                return Diff::InSync { evidence: "there is no such unit".to_owned() };
            }
            UnitState::Missing if self.awaited => {
                let mut promise = Change::new(Action::Create, self.wanted());
                promise.steps = self.steps("disabled", "inactive");
                let why = "a package of this plan is to bring it".to_owned();
                return Diff::Waits { on: WaitFor::PackageIndex, why, promise };
            }
            UnitState::Missing => {
                return Diff::Blocked {
                    why: format!("there is no unit `{}`", self.unit),
                    help: "name the package that brings it under `packages`, or its file under `files`".to_owned(),
                };
            }
        };
        if file == "masked" && (self.enabled == Some(true) || self.running == Some(true)) {
            return Diff::Blocked {
                why: format!("`{}` is masked: someone decided that it never starts", self.unit),
                help: format!("if that is over: systemctl unmask {}", self.unit),
            };
        }
        let steps = self.steps(file, active);
        if steps.is_empty() {
            return Diff::InSync { evidence: format!("{file}, {active}") };
        }
        let mut change = Change::new(Action::Change, self.wanted());
        for step in &steps {
            let Step::Service { action, .. } = step else { continue };
            change.fields.push(match action {
                ServiceAction::Enable => FieldDiff::new("at boot", Some(file.to_owned()), Some("enabled".to_owned())),
                ServiceAction::Disable => FieldDiff::new("at boot", Some(file.to_owned()), Some("disabled".to_owned())),
                ServiceAction::Start | ServiceAction::Restart => {
                    FieldDiff::new("now", Some(active.to_owned()), Some("active".to_owned()))
                }
                ServiceAction::Stop => FieldDiff::new("now", Some(active.to_owned()), Some("inactive".to_owned())),
            });
        }
        change.steps = steps;
        Diff::Change(change)
    }

    /// What a unit was before is not known to be what is wanted now: it stays as it is.
    fn remove(&self, _: &UnitState, _: &HostFacts) -> Diff {
        Diff::stays("the unit stays as it is")
    }
}

impl Service {
    fn wanted(&self) -> String {
        let boot = self.enabled.map(|e| if e { "starts at boot" } else { "does not start at boot" });
        let now = self.running.map(|r| if r { "runs" } else { "does not run" });
        [boot, now].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn steps(&self, file: &str, active: &str) -> Vec<Step> {
        // Of the others (`static`, `indirect`, `generated`, `alias`) none can be enabled by its name.
        let enabled = matches!(file, "enabled" | "enabled-runtime");
        let can = matches!(file, "enabled" | "enabled-runtime" | "disabled");
        let runs = matches!(active, "active" | "activating" | "reloading");
        let mut steps = Vec::new();
        let mut step = |action| steps.push(Step::Service { unit: self.unit.clone(), action });
        match self.enabled {
            Some(true) if !enabled && can => step(ServiceAction::Enable),
            Some(false) if enabled => step(ServiceAction::Disable),
            _ => {}
        }
        match self.running {
            Some(true) if !runs => step(ServiceAction::Start),
            Some(false) if runs => step(ServiceAction::Stop),
            _ => {}
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(enabled: Option<bool>, running: Option<bool>) -> Service {
        Service { unit: "demo.service".parse().unwrap(), enabled, running, awaited: false }
    }

    #[test]
    fn only_what_differs_is_done() {
        let words = |s: &Service, file: &str, active: &str| {
            let word = |s: &Step| if let Step::Service { action, .. } = s { action.name() } else { "?" };
            s.steps(file, active).iter().map(word).collect::<Vec<_>>().join(" ")
        };
        let (on, off) = (service(Some(true), Some(true)), service(Some(false), Some(false)));
        for (wanted, file, active, want) in [
            (&on, "disabled", "inactive", "enable start"),
            (&on, "enabled", "failed", "start"),
            (&on, "enabled", "active", ""),
            (&on, "static", "active", ""),
            (&off, "enabled", "active", "disable stop"),
            (&off, "disabled", "inactive", ""),
            (&service(None, None), "disabled", "failed", ""),
        ] {
            assert_eq!(words(wanted, file, active), want, "{file} {active}");
        }
    }

    #[test]
    fn columns_are_found_by_the_whole_name() {
        let text = "demo-x.service enabled enabled\ndemo.service disabled enabled\n";
        assert_eq!(line(text, "demo.service").unwrap()[1], "disabled");
        assert_eq!(line(text, "demo"), None);
    }
}
