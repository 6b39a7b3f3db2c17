//! Takes a VM that others made under management: a mark in its metadata, and nothing else. Only one that is already as
//! it is wanted: what differs would have to be changed, and that is no adoption.

use super::{Firmware, LibvirtDomain, project};
use crate::host::{Answer, Domain};
use crate::plan::{Action, Change, Diff, FieldDiff, Step};
use crate::resource::libvirt::Libvirt;

fn blocked(why: impl Into<String>, help: impl Into<String>) -> Diff {
    Diff::Blocked { why: why.into(), help: help.into() }
}

impl LibvirtDomain {
    /// What adopting it comes to. `owned` says whether the ledger has it already.
    pub(in crate::resource) fn adopt(&self, owned: bool, state: &Libvirt) -> Diff {
        let name = &self.name;
        let known = match state {
            Answer::Value(known) => known,
            Answer::Absent => return blocked("libvirt is not installed here, so it has no VM", "see: gpuvm facts"),
            Answer::Denied => {
                return Diff::Unknown { why: "this user may not ask libvirt: run gpuvm as root".to_owned() };
            }
        };
        if self.absent {
            return blocked("the manifest says `absent: true`", "a VM that is to go away is not taken over first");
        }
        let Some(domain) = known.domain(name.as_str()) else {
            let there: Vec<&str> = known.domains.iter().map(|d| d.name.as_str()).collect();
            let there =
                if there.is_empty() { "it has none".to_owned() } else { format!("it has {}", there.join(", ")) };
            return blocked(format!("libvirt has no VM `{name}`; {there}"), "see: virsh list --all");
        };
        if !domain.persistent {
            return blocked(
                "it runs without a stored definition (a transient one)",
                format!("store it first: virsh dumpxml {name} > {name}.xml && virsh define {name}.xml"),
            );
        }
        let is = match project(&domain.inactive_xml) {
            Ok(is) => is,
            Err(why) => return Diff::Unknown { why: format!("its definition cannot be read: {why}") },
        };
        if is.marked && owned {
            return Diff::InSync { evidence: "gpuvm's already".to_owned() };
        }
        let mut fields = self.differences(None, &is);
        fields.extend(self.beside_the_definition(domain));
        let firmware = |uefi: bool| Some(if uefi { "uefi" } else { "bios" }.to_owned());
        if is.uefi != (self.firmware != Firmware::Bios) {
            fields.push(FieldDiff::new("firmware", firmware(is.uefi), firmware(!is.uefi)));
        }
        if !fields.is_empty() {
            let shown = |f: &FieldDiff| {
                let side = |s: &Option<String>| s.clone().unwrap_or_else(|| "none".to_owned());
                format!("{}: it has {}, the manifest wants {}", f.field, side(&f.before), side(&f.after))
            };
            return blocked(
                format!(
                    "it is not as the manifest describes it: {}",
                    fields.iter().map(shown).collect::<Vec<_>>().join("; ")
                ),
                format!(
                    "adopting changes nothing: write it as it is first; take `vms.{name}` out, and this prints it: gpuvm adopt libvirt-domain/{name}"
                ),
            );
        }
        let mut change = Change::new(Action::Change, "taken over as it is");
        if is.marked {
            change.notes.push("it has gpuvm's mark already; nothing on the host changes".to_owned());
            change.steps.push(Step::Adopt);
        } else {
            change.fields.push(FieldDiff::new("gpuvm's mark in its metadata", None, Some("put in".to_owned())));
            change.notes.push("nothing else of its definition changes; it runs on as it does".to_owned());
            change.steps.push(Step::MarkDomain { name: name.clone(), present: true });
        }
        Diff::Change(change)
    }

    fn beside_the_definition(&self, domain: &Domain) -> Vec<FieldDiff> {
        let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
        let mut fields = Vec::new();
        if domain.autostart != self.autostart {
            fields.push(FieldDiff::new("starts with the host", yes_no(domain.autostart), yes_no(self.autostart)));
        }
        if let Some(running) = self.running.filter(|r| *r != domain.active) {
            fields.push(FieldDiff::new("running", yes_no(domain.active), yes_no(running)));
        }
        fields
    }
}
