//! What an apply may not do, whatever the manifest says: rules that a plan is judged by when it is made, and each of its
//! changes again when it starts, since windows close while an apply runs. Fit for an apply that nobody watches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};

use super::{Action, Change, Diff, Item, Key, Plan, Risk};
use crate::types::{ResourceName, as_string};

/// What gpuvm may not do on a host. Version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// The format of this file: 1.
    pub version: u32,
    /// The rules, by the name that a refusal gives.
    pub rules: BTreeMap<ResourceName, Rule>,
}

/// One rule. At least one of `refuse` and `atMost` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// What is refused.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refuse: BTreeSet<Refused>,
    /// How many changes one run may make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<u32>,
    /// When the rule does not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<Window>,
}

/// What a rule refuses: a risk by the word that a plan has for it in brackets, a removal, or any change at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// Any change.
    Change,
    /// A thing of gpuvm's is taken away.
    Removal,
    /// It takes effect at the next boot, or the host is booted for it.
    Reboot,
    /// What the host boots with changes.
    BootConfig,
    /// The host's network is interrupted.
    NetworkLoss,
    /// A screen of the host goes dark.
    DisplayLoss,
    /// What runs containers is restarted, and its containers with it.
    ContainersRestart,
    /// A VM is restarted, or has to be.
    GuestRestart,
    /// Packages are removed or go back to an older version.
    PackageRemoval,
    /// Data of a person goes away.
    DataLoss,
}

/// Hours of some days, in the time of one place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    /// The days on which it begins.
    pub days: BTreeSet<Day>,
    /// When it begins.
    pub from: TimeOfDay,
    /// When it ends; before `from`, on the next day.
    pub to: TimeOfDay,
    /// The place (`Europe/Berlin`, `UTC`), as the IANA database names it.
    pub zone: String,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    const fn name(self) -> &'static str {
        match self {
            Day::Mon => "mon",
            Day::Tue => "tue",
            Day::Wed => "wed",
            Day::Thu => "thu",
            Day::Fri => "fri",
            Day::Sat => "sat",
            Day::Sun => "sun",
        }
    }
    const fn of(day: Weekday) -> Self {
        match day {
            Weekday::Monday => Day::Mon,
            Weekday::Tuesday => Day::Tue,
            Weekday::Wednesday => Day::Wed,
            Weekday::Thursday => Day::Thu,
            Weekday::Friday => Day::Fri,
            Weekday::Saturday => Day::Sat,
            Weekday::Sunday => Day::Sun,
        }
    }
}

/// A time of day, in minutes from midnight; `24:00` is the end of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay(u16);

/// A text that is no time of day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time of day; write it in quotes as \"02:30\"")]
pub struct TimeError(String);

impl FromStr for TimeOfDay {
    type Err = TimeError;
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let two =
            |t: &str| (t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit())).then(|| t.parse::<u16>().ok()).flatten();
        text.split_once(':')
            .and_then(|(h, m)| Some((two(h)?, two(m)?)))
            .filter(|(h, m)| (*h < 24 && *m < 60) || (*h, *m) == (24, 0))
            .map(|(h, m)| Self(h * 60 + m))
            .ok_or_else(|| TimeError(text.to_owned()))
    }
}
impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}
as_string!(TimeOfDay, "a time of day", "^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$", "02:30");

impl Window {
    /// Whether a moment lies in it; else why that cannot be told.
    fn holds(&self, now: Timestamp) -> Result<bool, String> {
        let there = now.to_zoned_datetime(self.zone()?);
        let minute = u16::from(there.hour().unsigned_abs()) * 60 + u16::from(there.minute().unsigned_abs());
        let on = |day: Weekday| self.days.contains(&Day::of(day));
        let today = there.date().weekday();
        if self.from < self.to {
            return Ok(on(today) && (self.from.0..self.to.0).contains(&minute));
        }
        let yesterday = there.date().checked_sub(1.day()).map_err(|e| e.to_string())?.weekday();
        Ok((on(today) && minute >= self.from.0) || (on(yesterday) && minute < self.to.0))
    }

    fn zone(&self) -> Result<TimeZone, String> {
        TimeZone::get(&self.zone)
            .map_err(|_| format!("the time zone `{}` is not known here (package tzdata, or a typing error)", self.zone))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days: Vec<&str> = self.days.iter().map(|d| d.name()).collect();
        write!(f, "{} {}–{} {}", days.join(" "), self.from, self.to, self.zone)
    }
}

impl Refused {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Refused::Change => "change",
            Refused::Removal => "removal",
            Refused::Reboot => Risk::Reboot.name(),
            Refused::BootConfig => Risk::BootConfig.name(),
            Refused::NetworkLoss => Risk::NetworkLoss.name(),
            Refused::DisplayLoss => Risk::DisplayLoss.name(),
            Refused::ContainersRestart => Risk::ContainersRestart.name(),
            Refused::GuestRestart => Risk::GuestRestart.name(),
            Refused::PackageRemoval => Risk::PackageRemoval.name(),
            Refused::DataLoss => Risk::DataLoss.name(),
        }
    }
    fn is_in(self, change: &Change) -> bool {
        match self {
            Refused::Change => true,
            Refused::Removal => change.action == Action::Remove,
            risk => change.risks.iter().any(|r| r.name() == risk.name()),
        }
    }
}

impl Rule {
    /// Whether one of its windows is open. What cannot be told is not.
    fn open(&self, now: Timestamp) -> bool {
        self.except.iter().any(|w| w.holds(now) == Ok(true))
    }

    /// When it does not hold, and what time it is there, for the message of a refusal.
    fn times(&self, now: Timestamp) -> String {
        let Some(first) = self.except.first() else { return String::new() };
        let windows: Vec<String> = self.except.iter().map(ToString::to_string).collect();
        let there = match first.zone() {
            Ok(zone) => {
                let there = now.to_zoned_datetime(zone);
                format!("now it is {} {} there", Day::of(there.date().weekday()).name(), there.strftime("%H:%M"))
            }
            Err(why) => why,
        };
        format!(" outside {} ({there})", windows.join(" and "))
    }
}

/// What a rule refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The rule.
    pub rule: String,
    /// What was to be changed; `None` for the whole plan.
    pub key: Option<Key>,
    /// Why, as a sentence that names both.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Policy {
    /// What types cannot say is wrong with it.
    pub fn problems(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.version != 1 {
            all.push(format!("version {} is not known; write `version: 1`", self.version));
        }
        for (name, rule) in &self.rules {
            if rule.refuse.is_empty() && rule.at_most.is_none() {
                all.push(format!("rules.{name}: it refuses nothing; give `refuse` or `atMost`"));
            }
            for window in &rule.except {
                if window.days.is_empty() {
                    all.push(format!("rules.{name}: a window without days is never open"));
                }
                if window.from == window.to {
                    all.push(format!("rules.{name}: a window from {0} to {0} has no length", window.from));
                }
                all.extend(window.zone().err().map(|why| format!("rules.{name}: {why}")));
            }
        }
        all
    }

    /// Everything of a plan that is refused at this time.
    pub fn judge(&self, plan: &Plan, now: Timestamp) -> Vec<Refusal> {
        let entries = plan.order.iter().filter_map(|item| match item {
            Item::Entry { index } => plan.entries.get(*index),
            _ => None,
        });
        let changes: Vec<(&Key, &Change)> = entries
            .filter_map(|entry| match &entry.diff {
                Diff::Change(change) | Diff::Waits { promise: change, .. } => Some((&entry.key, change)),
                _ => None,
            })
            .collect();
        let mut all: Vec<Refusal> = changes.iter().flat_map(|(key, change)| self.refusals(key, change, now)).collect();
        // That the host boots is a risk of the changes that need it; that VMs run then is none of theirs.
        let guests = plan.order.iter().map(Item::guests).max().unwrap_or(0);
        all.extend(self.judge_guests(guests, now));
        all.extend(self.too_many(changes.len(), now));
        all
    }

    /// Why a change must not start now, as the `count`-th of its run.
    pub fn judge_start(&self, key: &Key, change: &Change, count: usize, now: Timestamp) -> Option<Refusal> {
        self.refusals(key, change, now).into_iter().next().or_else(|| self.too_many(count, now).into_iter().next())
    }

    /// Why the host must not be booted now, while so many VMs run.
    pub fn judge_reboot(&self, guests: usize, now: Timestamp) -> Option<Refusal> {
        self.of_boot(Refused::Reboot, "the host is to be booted", now).or_else(|| self.judge_guests(guests, now))
    }

    /// Why so many VMs must not be taken down with the host now.
    fn judge_guests(&self, guests: usize, now: Timestamp) -> Option<Refusal> {
        self.of_boot(Refused::GuestRestart, "the host is to be booted while VMs run", now).filter(|_| guests > 0)
    }

    fn of_boot(&self, what: Refused, why: &str, now: Timestamp) -> Option<Refusal> {
        let (name, rule) = self.rules.iter().find(|(_, r)| r.refuse.contains(&what) && !r.open(now))?;
        Some(Refusal {
            rule: name.to_string(),
            key: Some(Key::new("reboot", "")),
            message: format!("{why}, which rule `{name}` refuses{}", rule.times(now)),
        })
    }

    fn refusals(&self, key: &Key, change: &Change, now: Timestamp) -> Vec<Refusal> {
        let mut all = Vec::new();
        for (name, rule) in &self.rules {
            let Some(what) = rule.refuse.iter().find(|what| what.is_in(change)) else { continue };
            if rule.open(now) {
                continue;
            }
            let is = match what {
                Refused::Change => "is to be changed".to_owned(),
                Refused::Removal => "is to be removed".to_owned(),
                risk => format!("has the risk {}", risk.name()),
            };
            all.push(Refusal {
                rule: name.to_string(),
                key: Some(key.clone()),
                message: format!("`{key}` {is}, which rule `{name}` refuses{}", rule.times(now)),
            });
        }
        all
    }

    fn too_many(&self, count: usize, now: Timestamp) -> Vec<Refusal> {
        let over = self.rules.iter().filter_map(|(name, rule)| {
            let most = rule.at_most.filter(|most| count > *most as usize && !rule.open(now))?;
            Some(Refusal {
                rule: name.to_string(),
                key: None,
                message: format!(
                    "{count} changes are more than rule `{name}` allows (at most {most}){}",
                    rule.times(now)
                ),
            })
        });
        over.collect()
    }
}

/// The JSON Schema (draft-07) of a policy.
pub fn policy_schema() -> serde_json::Value {
    let mut root = SchemaSettings::draft07().into_generator().into_root_schema_for::<Policy>().to_value();
    root["title"] = serde_json::json!("gpuvm policy");
    root["properties"]["version"]["const"] = serde_json::json!(1);
    root["definitions"]["Rule"]["anyOf"] = ["refuse", "atMost"].map(|f| serde_json::json!({ "required": [f] })).into();
    root["definitions"]["Window"]["properties"]["days"]["minItems"] = serde_json::json!(1);
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(yaml: &str) -> Policy {
        serde_yaml::from_str(yaml).unwrap()
    }
    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }
    fn change(risk: Risk) -> Change {
        let mut change = Change::new(Action::Change, "");
        change.risks.insert(risk);
        change
    }
    fn said(policy: &Policy, risk: Risk, time: &str) -> String {
        let key = Key::new("libvirt-domain", "win");
        policy.judge_start(&key, &change(risk), 1, at(time)).map_or(String::new(), |r| r.to_string())
    }

    const NIGHT: &str = "version: 1
rules:
  night:
    refuse: [guest-restart]
    except:
      - { days: [sat], from: \"22:00\", to: \"02:00\", zone: Europe/Berlin }
";

    #[test]
    fn a_window_is_open_by_the_clock_of_its_place() {
        let night = policy(NIGHT);
        assert_eq!(night.problems(), [""; 0]);
        for (time, open) in [
            ("2025-06-07T20:00:00+02:00", false), // a Saturday
            ("2025-06-07T21:59:59+02:00", false),
            ("2025-06-07T22:00:00+02:00", true),
            ("2025-06-08T01:59:59+02:00", true),
            ("2025-06-08T02:00:00+02:00", false),
            ("2025-06-07T01:00:00+02:00", false), // the night before began on Friday
            ("2025-06-07T20:30:00Z", true),
            ("2025-12-06T20:30:00Z", false), // in winter it is 21:30 there
            ("2025-12-06T21:30:00Z", true),
            // The clock goes back at 03:00 on 2025-10-26; 02:30 comes twice and is outside both times.
            ("2025-10-25T23:59:59Z", true),
            ("2025-10-26T00:30:00Z", false),
            ("2025-10-26T01:30:00Z", false),
            // It goes forward at 02:00 on 2025-03-30.
            ("2025-03-30T00:59:59Z", true),
            ("2025-03-30T01:00:00Z", false),
        ] {
            assert_eq!(said(&night, Risk::GuestRestart, time).is_empty(), open, "{time}");
        }
    }

    #[test]
    fn a_refusal_names_the_change_the_rule_and_the_time() {
        assert_eq!(
            said(&policy(NIGHT), Risk::GuestRestart, "2025-06-06T12:02:00Z"),
            "`libvirt-domain[win]` has the risk guest-restart, which rule `night` refuses outside sat 22:00–02:00 \
             Europe/Berlin (now it is fri 14:02 there)"
        );
        assert_eq!(said(&policy(NIGHT), Risk::NetworkLoss, "2025-06-06T12:02:00Z"), "");
    }

    #[test]
    fn every_risk_can_be_refused_by_the_word_that_a_plan_has_for_it() {
        for risk in [
            Risk::Reboot,
            Risk::BootConfig,
            Risk::NetworkLoss,
            Risk::DisplayLoss,
            Risk::ContainersRestart,
            Risk::GuestRestart,
            Risk::PackageRemoval,
            Risk::DataLoss,
        ] {
            let rule = policy(&format!("version: 1\nrules: {{ no: {{ refuse: [{}] }} }}\n", risk.name()));
            assert!(said(&rule, risk, "2025-06-06T12:00:00Z").contains("rule `no`"), "{}", risk.name());
            assert!(rule.judge_reboot(0, at("2025-06-06T12:00:00Z")).is_some() == (risk == Risk::Reboot));
        }
    }

    #[test]
    fn removals_and_numbers_are_refused_too() {
        let rules = policy("version: 1\nrules:\n  keep: { refuse: [removal] }\n  few: { atMost: 2 }\n");
        let key = Key::new("file", "/etc/motd");
        let judge = |action, count| {
            let refusal = rules.judge_start(&key, &Change::new(action, ""), count, at("2025-06-06T12:00:00Z"));
            refusal.map_or(String::new(), |r| r.to_string())
        };
        assert_eq!(judge(Action::Change, 2), "");
        assert_eq!(judge(Action::Remove, 1), "`file[/etc/motd]` is to be removed, which rule `keep` refuses");
        assert_eq!(judge(Action::Change, 3), "3 changes are more than rule `few` allows (at most 2)");
    }

    #[test]
    fn a_zone_that_is_not_known_keeps_the_rule_shut() {
        let lost = policy(&NIGHT.replace("Europe/Berlin", "Europe/Nowhere"));
        assert!(lost.problems()[0].contains("Europe/Nowhere"));
        assert!(said(&lost, Risk::GuestRestart, "2025-06-07T22:30:00+02:00").contains("not known here"));
    }

    #[test]
    fn what_says_nothing_is_a_problem() {
        let bad = policy(
            "version: 2\nrules:\n  a: {}\n  b: { refuse: [change], except: [{ days: [], from: \"01:00\", to: \"01:00\", zone: UTC }] }\n",
        );
        assert_eq!(bad.problems().len(), 4, "{:?}", bad.problems());
        for text in ["2:00", "24:01", "02:60", "02.00", "", "0200"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
        assert_eq!("24:00".parse::<TimeOfDay>().unwrap().to_string(), "24:00");
    }
}
