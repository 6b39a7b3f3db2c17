//! A user's membership in a local group.

use serde::{Deserialize, Serialize};

use super::Resource;
use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::{Action, Change, Diff, Step, WaitFor};

/// The groups that libvirt's package makes.
const BROUGHT: [&str; 2] = ["libvirt", "kvm"];
const PACKAGE: &str = "libvirt-daemon-system";

/// One user in one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupMember {
    /// The group.
    pub group: String,
    /// The user.
    pub user: String,
}

impl GroupMember {
    fn step(&self, present: bool) -> Step {
        Step::GroupMember { group: self.group.clone(), user: self.user.clone(), present }
    }
    fn join(&self) -> Change {
        let mut change = Change::new(Action::Create, format!("{} joins {}", self.user, self.group));
        change.notes.push("takes effect at the user's next login".to_owned());
        change.steps.push(self.step(true));
        change
    }
    /// Listed in the group, or it is the user's primary one.
    fn is_member(&self, facts: &HostFacts) -> bool {
        facts.groups.get(&self.group).is_some_and(|g| {
            g.members.contains(&self.user) || facts.users.get(&self.user).is_some_and(|u| u.gid == g.gid)
        })
    }
}

impl Resource for GroupMember {
    const KIND: &'static str = "group-member";
    /// Groups and users are facts.
    type State = ();

    fn name(&self) -> String {
        format!("{}/{}", self.group, self.user)
    }

    fn probe(&self, _: &dyn Probe) -> Result<(), HostError> {
        Ok(())
    }

    fn diff(&self, (): &(), _: Option<&Self>, facts: &HostFacts) -> Diff {
        if !facts.users.contains_key(&self.user) {
            return Diff::Blocked {
                why: format!("there is no local user `{}`", self.user),
                help: format!("make it first: adduser {}", self.user),
            };
        }
        let brought = BROUGHT.contains(&self.group.as_str()) && facts.package(PACKAGE).is_none();
        if !facts.groups.contains_key(&self.group) && brought {
            return Diff::Waits {
                on: WaitFor::Libvirt,
                why: format!("{PACKAGE} brings the group `{}`", self.group),
                promise: self.join(),
            };
        }
        if !facts.groups.contains_key(&self.group) {
            return Diff::Blocked {
                why: format!("there is no group `{}`", self.group),
                help: "install the package that brings it (libvirt-daemon-system) by listing it under `packages`"
                    .to_owned(),
            };
        }
        if self.is_member(facts) {
            return Diff::InSync { evidence: "member".to_owned() };
        }
        Diff::Change(self.join())
    }

    fn remove(&self, (): &(), facts: &HostFacts) -> Diff {
        if !facts.groups.get(&self.group).is_some_and(|g| g.members.contains(&self.user)) {
            return Diff::InSync { evidence: "no member".to_owned() };
        }
        let mut change = Change::new(Action::Remove, format!("{} leaves {}", self.user, self.group));
        change.steps.push(self.step(false));
        Diff::Change(change)
    }
}
