//! Takes what is there already under management, as it is: the ledger and, for a VM, a mark say that it is gpuvm's from
//! now on. Nothing else changes; what is not as the manifest has it is refused.

use super::{Resource, Wanted, libvirt_domain::LibvirtDomain};
use crate::facts::HostFacts;
use crate::host::{HostError, Probe};
use crate::plan::{Action, Change, Diff, Step};

/// The kinds of which a thing can be taken over.
pub const ADOPTABLE: [&str; 4] = ["libvirt-domain", "bridge", "file", "vfio-binding"];

impl Wanted {
    /// What taking it over comes to. `last` is what the ledger has of it.
    pub fn adopt(&self, last: Option<&Wanted>, host: &dyn Probe, facts: &HostFacts) -> Result<Diff, HostError> {
        let owned = last.is_some();
        match self {
            Wanted::LibvirtDomain(vm) => Ok(LibvirtDomain::adopt(vm, owned, &vm.probe(host)?.libvirt)),
            Wanted::Bridge(_) | Wanted::File(_) | Wanted::VfioBinding(_) => {
                Ok(as_it_is(self.compare(last, host, facts)?, owned, self.apart()))
            }
            other => Ok(Diff::Blocked {
                why: format!("a {} is not taken over by itself", other.key().kind),
                help: format!("what can be: {}", ADOPTABLE.join(", ")),
            }),
        }
    }

    /// What to do about one that is not as the manifest has it.
    fn apart(&self) -> String {
        match self {
            Wanted::Bridge(bridge) => format!(
                "gpuvm uses a bridge that others made: write `bridge: {{ name: {}, existing: true }}`",
                bridge.name
            ),
            Wanted::VfioBinding(binding) => {
                format!("see what binds it now, and what would replace that: gpuvm adopt vfio-binding/{}", binding.name)
            }
            _ => "adopting changes nothing: write it in the manifest as it is on the host first".to_owned(),
        }
    }
}

fn as_it_is(compared: Diff, owned: bool, help: String) -> Diff {
    match compared {
        Diff::InSync { evidence } if owned => Diff::InSync { evidence: format!("gpuvm's already; {evidence}") },
        Diff::InSync { evidence } => {
            let mut change = Change::new(Action::Change, "taken over as it is");
            change.notes.push(format!("as the manifest has it: {evidence}; nothing on the host changes"));
            change.steps.push(Step::Adopt);
            Diff::Change(change)
        }
        Diff::Change(change) | Diff::Waits { promise: change, .. } => Diff::Blocked {
            why: format!("it is not as the manifest has it ({}), and adopting changes nothing", change.what),
            help,
        },
        // The kind's own advice is to replace it, which is not what was asked for.
        Diff::Blocked { why, .. } => Diff::Blocked { why, help },
        unknown => unknown,
    }
}
