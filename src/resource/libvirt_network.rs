//! A virtual network that libvirt has: used by a VM, so it is started now and at boot. Never made, never changed.

use serde::{Deserialize, Serialize};

use super::Resource;
use super::libvirt::{Libvirt, ask, known};
use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::{Action, Change, Diff, FieldDiff, Step};
use crate::types::ResourceName;

/// A network of libvirt's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtNetwork {
    /// libvirt's name for it.
    pub name: ResourceName,
}

impl LibvirtNetwork {
    fn change(&self) -> Change {
        let mut change = Change::new(Action::Change, "started, now and at boot");
        change.steps.push(Step::Network { name: self.name.clone(), active: true, autostart: true });
        change
    }
}

impl Resource for LibvirtNetwork {
    const KIND: &'static str = "libvirt-network";
    type State = Libvirt;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn probe(&self, host: &dyn Probe) -> Result<Libvirt, HostError> {
        ask(host)
    }

    fn diff(&self, state: &Libvirt, _: Option<&Self>, _: &HostFacts) -> Diff {
        let known = match known(state, || self.change()) {
            Ok(known) => known,
            Err(diff) => return *diff,
        };
        let Some(network) = known.network(self.name.as_str()) else {
            let there: Vec<&str> = known.networks.iter().map(|n| n.name.as_str()).collect();
            let there =
                if there.is_empty() { "it has none".to_owned() } else { format!("it has {}", there.join(", ")) };
            return Diff::Blocked {
                why: format!("libvirt has no network `{}`; {there}", self.name),
                help: "define it (virsh net-define), or name one that is there: virsh net-list --all".to_owned(),
            };
        };
        let mut change = self.change();
        let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
        for (field, is) in [("started", network.active), ("autostart", network.autostart)] {
            if !is {
                change.fields.push(FieldDiff::new(field, yes_no(is), yes_no(true)));
            }
        }
        if change.fields.is_empty() { Diff::InSync { evidence: "started".to_owned() } } else { Diff::Change(change) }
    }

    /// Other VMs may be on it: it stays.
    fn remove(&self, _: &Libvirt, _: &HostFacts) -> Diff {
        Diff::stays("networks of libvirt's stay as they are")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::host::{Answer, Network, Virtualisation};
    use crate::resource::tests::facts;

    #[test]
    fn a_network_is_started_and_never_made() {
        let diff = |networks: Vec<Network>| {
            let known = Virtualisation { networks, ..Virtualisation::default() };
            let wanted = LibvirtNetwork { name: "default".parse().unwrap() };
            wanted.diff(&Answer::Value(Arc::new(known)), None, &facts())
        };
        let network = |on| Network { name: "default".to_owned(), active: on, autostart: on, xml: String::new() };
        assert!(matches!(diff(vec![]), Diff::Blocked { .. }));
        assert!(matches!(diff(vec![network(true)]), Diff::InSync { .. }));
        assert!(matches!(diff(vec![network(false)]), Diff::Change(c) if c.fields.len() == 2));
    }
}
