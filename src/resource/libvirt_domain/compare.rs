//! A VM that libvirt has: edited in place, started, shut down or taken away, or why nothing of that is done.

use super::{DomainState, Firmware, LibvirtDomain, Projection, project, splice};
use crate::host::{Domain, Virtualisation};
use crate::plan::{Action, Change, Diff, FieldDiff, Risk, Step, TextEdit, WaitFor};

impl LibvirtDomain {
    /// One that libvirt has.
    pub(super) fn compare(
        &self,
        domain: &Domain,
        state: &DomainState,
        known: &Virtualisation,
        last: Option<&Self>,
    ) -> Diff {
        let name = &self.name;
        if !domain.persistent {
            return Diff::Blocked {
                why: "a VM of this name runs without a stored definition (a transient one)".to_owned(),
                help: format!("end it (virsh shutdown {name}), or name this one differently"),
            };
        }
        let mut is = match project(&domain.inactive_xml) {
            Ok(is) => is,
            Err(why) => return Diff::Unknown { why: format!("its definition cannot be read: {why}") },
        };
        is.go_on_in(&state.chains);
        if !is.marked {
            return Diff::Blocked {
                why: "a VM of this name was not made by gpuvm; it is left as it is".to_owned(),
                help: format!("name this one differently, or hand that one over: gpuvm adopt libvirt-domain/{name}"),
            };
        }
        if self.absent {
            return self.undefine(domain, known);
        }
        if let Some(refused) = self.refused(last, &is) {
            return refused;
        }
        let mut fields = self.differences(last, &is);
        let of_definition = !fields.is_empty();
        if domain.autostart != self.autostart {
            let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
            fields.push(FieldDiff::new("starts with the host", yes_no(domain.autostart), yes_no(self.autostart)));
        }
        let mut change = Change::new(Action::Change, "edited in place");
        if !fields.is_empty() {
            let splices = if of_definition {
                match splice::splice(self, last, &is, &domain.inactive_xml) {
                    Ok(splices) => splices,
                    Err(splice::Refused { why, help }) => return Diff::Blocked { why, help },
                }
            } else {
                Vec::new()
            };
            let edit = match TextEdit::new(&domain.inactive_xml, splices) {
                Ok(edit) => edit,
                Err(e) => return Diff::Unknown { why: format!("its definition cannot be changed in place: {e}") },
            };
            if fields.iter().any(|f| f.field.starts_with("disk ") && f.field.ends_with(" bus")) {
                change.notes.push(
                    "its guest has to have the driver for the other bus of its disk, or it does not find it".to_owned(),
                );
            }
            if fields.iter().any(|f| f.field.starts_with("address of the nic")) {
                change.notes.push(
                    "somebody gave its card another address; to keep that, name it in the manifest: `network: { …, mac: … }`"
                        .to_owned(),
                );
            }
            change.what = fields.iter().map(|f| f.field.as_str()).collect::<Vec<_>>().join(", ");
            change.fields = fields;
            change.steps.push(Step::EditDomain { name: name.clone(), edit, autostart: self.autostart });
            if domain.active && of_definition {
                change.risks.insert(Risk::GuestRestart);
                change.complete_after = Some(WaitFor::GuestRestart);
                change.notes.push("it runs on as it is; the change takes effect at its next start".to_owned());
            }
        }
        let first_start_owed = last.is_some_and(|l| l.start_owed) && self.start_when_made;
        // An installer turns the VM off at its end.
        let installs = self.install_when_owed(state, domain, last, &mut change);
        let active = domain.active && !installs;
        match (self.running, active) {
            (None, false) if first_start_owed => {
                change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
                change.notes.push("its first start, which did not succeed when it was made".to_owned());
                change.steps.push(self.start());
            }
            (Some(true), false) => {
                change.fields.push(FieldDiff::new("running", Some("no".to_owned()), Some("yes".to_owned())));
                change.steps.push(self.start());
            }
            (Some(false), true) => {
                change.fields.push(FieldDiff::new("running", Some("yes".to_owned()), Some("no".to_owned())));
                change.risks.insert(Risk::GuestRestart);
                change.complete_after = None;
                change.notes.push("its guest is asked to shut down; it is never powered off".to_owned());
                change.steps.push(Step::shut_down(name));
            }
            _ => {}
        }
        if !change.steps.is_empty() {
            if change.what == "edited in place" {
                change.what = if self.running == Some(false) { "shut down" } else { "started" }.to_owned();
            }
            return Diff::Change(change);
        }
        match self.waits_for_restart(domain, &is) {
            Some(diff) => diff,
            None => Diff::InSync {
                evidence: format!("{}, {}", if domain.active { "running" } else { "stopped" }, self.summary()),
            },
        }
    }

    /// Why it is not made what the manifest says: what it was made or installed as stays, and nothing is taken from it
    /// that cannot be told or is needed.
    fn refused(&self, last: Option<&Self>, is: &Projection) -> Option<Diff> {
        let name = &self.name;
        // Whether it is UEFI at all, the definition says; whether with secure boot, what it was made as.
        let uefi = |firmware| firmware != Firmware::Bios;
        let other = |l: &&Self| l.firmware != self.firmware && uefi(l.firmware) && uefi(self.firmware);
        if let Some(last) = last.filter(other) {
            return Some(Diff::Blocked {
                why: format!(
                    "it was made with firmware `{}`, and the manifest says `{}`",
                    last.firmware.name(),
                    self.firmware.name()
                ),
                help: format!("its system was installed for the former: write `firmware: {}`", last.firmware.name()),
            });
        }
        if let Some(last) = last.filter(|l| l.windows != self.windows) {
            let was = if last.windows { "for Windows" } else { "for any guest" };
            return Some(Diff::Blocked {
                why: format!("its machine was made {was}, and the manifest says otherwise"),
                help: "correct `guest`, or make a new VM: its system was installed on that machine".to_owned(),
            });
        }
        if let Some(disk) = self.disks_to_drop(last).find(|d| is.has_disk(d) && !is.writes_to(d)) {
            return Some(Diff::Blocked {
                why: format!("its disk `{}` is to be taken out, and lies under snapshots", disk.shown()),
                help: format!("take those away first: gpuvm vm snapshot list {name}"),
            });
        }
        if let (Some(nic), [first, .., _]) = (&self.nic, &self.cards_of_another_address(last, is)[..]) {
            let on = nic.on.name();
            return Some(Diff::Blocked {
                why: format!("its card {} is not there, and which of those on {on} it was cannot be told", nic.mac),
                help: format!(
                    "give it its address again (virsh edit {name}), or have the manifest name the one that it has: \
                     `network: {{ …, mac: \"{first}\" }}`"
                ),
            });
        }
        if let Some((was, wanted)) = self.installed_from_another(last) {
            return Some(Diff::Blocked {
                why: format!(
                    "it was installed from `{was}`, and the manifest says {wanted}: a disk is never made anew"
                ),
                help: format!("write `image: {was}`, or make a new VM"),
            });
        }
        None
    }

    fn undefine(&self, domain: &Domain, known: &Virtualisation) -> Diff {
        if domain.active {
            return Diff::Blocked {
                why: "it runs, and the manifest says `absent: true`".to_owned(),
                help: format!("shut it down first: gpuvm vm stop {}", self.name),
            };
        }
        if let Some(snapshot) = domain.snapshots.first() {
            return Diff::Blocked {
                why: format!("it has snapshots (`{}`), and the manifest says `absent: true`", snapshot.name),
                help: format!(
                    "take them away first (gpuvm vm snapshot list {0}), or all of it: gpuvm vm delete {0}",
                    self.name
                ),
            };
        }
        let mut change = Change::new(Action::Remove, "its definition, with its UEFI variables; its disks stay");
        let keep_tpm = keep_tpm(domain, known, &mut change);
        change.steps.push(Step::undefine(&self.name, keep_tpm));
        Diff::Change(change)
    }
}

/// A VM goes and its disks stay, and with them what its guest keeps in its TPM, where libvirt can leave that; else the
/// change says that it is lost. Whether the step is to leave it.
pub fn keep_tpm(domain: &Domain, known: &Virtualisation, change: &mut Change) -> bool {
    if !domain.inactive_xml.contains("<tpm") {
        return false;
    }
    let at = format!("/var/lib/libvirt/swtpm/{}", domain.uuid);
    if known.keeps_tpm() {
        change.notes.push(format!("the state of its TPM stays with its disks, in {at}"));
        return true;
    }
    change.risks.insert(Risk::DataLoss);
    change.notes.push(format!(
        "libvirt before 8.9 cannot keep the state of a TPM: what its guest keeps there (keys of encrypted disks) is lost, \
         and `gpuvm undo` does not bring it back; to keep it, copy {at} first"
    ));
    false
}
