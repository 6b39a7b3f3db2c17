//! A VM whose system is installed from a medium: once, when it is made, onto its first disk, and never onto one that
//! something was written to. The VM is started with another definition for that, which libvirt forgets when it is off again:
//! in the one that is stored there is neither the medium nor the installer's kernel.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Addition, DomainState, Extra, Kernel, LibvirtDomain, project, write};
use crate::guest::DISK_SERIAL;
use crate::host::{Answer, Domain};
use crate::plan::{Change, FieldDiff, InstallStep, Step};
use crate::types::{ResourceName, xml_escape as e};

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Install {
    /// The image of its medium.
    pub image: ResourceName,
    /// The file that says what is kept of that.
    pub pointer: PathBuf,
}

/// What the installer is told by: without this word it asks a person before it writes to a disk ("Zero-touch deployment with
/// autoinstall" in Subiquity's documentation). Its progress is on the screen and on the serial console.
const COMMAND_LINE: &str = "autoinstall console=tty0 console=ttyS0";

impl Install {
    /// Where the medium's kernel and initramfs are put: beside it, where libvirt's confinement lets QEMU read them.
    fn kernel(&self, vm: &LibvirtDomain) -> Kernel {
        let at = |what: &str| self.pointer.with_file_name(format!("{}-install.{what}", vm.name));
        Kernel { kernel: at("vmlinuz"), initrd: Some(at("initrd")), cmdline: Some(COMMAND_LINE.to_owned()) }
    }
}

/// A definition with the medium itself in the place of what says what is kept of it.
pub fn with_medium(xml: &str, pointer: &Path, medium: &Path) -> String {
    let source = |path: &Path| format!("<source file='{}'/>", e(&path.to_string_lossy()));
    xml.replacen(&source(pointer), &source(medium), 1)
}

impl LibvirtDomain {
    /// The step that installs it; none where nothing is to be.
    fn installation(&self) -> Option<Step> {
        let (install, disk) = (self.install.as_ref()?, self.disks.first()?);
        let kernel = install.kernel(self);
        let kept = |extra: &&Extra| matches!(extra, Extra::Display(_) | Extra::Tpm);
        // The desktop's medium starts one, so there is a card for it.
        let card = Addition { at: "/domain/devices".to_owned(), xml: "<video><model type='vga'/></video>".to_owned() };
        let shown = self.extras.iter().any(|e| matches!(e, Extra::Display(_)));
        let for_it = Self {
            disks: vec![disk.clone()],
            slots: Vec::new(),
            extras: self.extras.iter().filter(kept).cloned().collect(),
            additions: if shown { Vec::new() } else { vec![card] },
            media: vec![install.pointer.clone()],
            boot: Some(kernel.clone()),
            ..self.clone()
        };
        let target = format!("bus='{}'/>", e(disk.options.bus()));
        let xml = write::new(&for_it)
            // The first one is the disk's: drives with CD-ROMs come behind it.
            .replacen(&target, &format!("{target}\n      <serial>{DISK_SERIAL}</serial>"), 1)
            // The kernel that was given to it once would install again.
            .replace("<on_reboot>restart</on_reboot>", "<on_reboot>destroy</on_reboot>");
        Some(Step::InstallDomain(InstallStep {
            name: self.name.clone(),
            xml,
            image: install.pointer.clone(),
            kernel: kernel.kernel,
            initrd: kernel.initrd?,
            disk: disk.path.clone(),
        }))
    }

    /// The image that it was installed from, and what is wanted in its place.
    pub(super) fn installed_from_another(&self, last: Option<&Self>) -> Option<(String, String)> {
        let was = &last?.install.as_ref()?.image;
        match &self.install {
            Some(install) if install.image == *was => None,
            Some(install) => Some((was.to_string(), format!("`{}`", install.image))),
            None => Some((was.to_string(), "something else".to_owned())),
        }
    }

    /// With a new VM, where its disk is blank.
    pub(super) fn install_when_made(&self, state: &DomainState, change: &mut Change) {
        let (Some(install), Some(step)) = (&self.install, self.installation()) else { return };
        let disk = self.disks.first().map(|d| d.path.display().to_string()).unwrap_or_default();
        if state.blank == Answer::Value(false) {
            change.notes.push(format!(
                "there is something on `{disk}`: nothing is installed over it, and the VM starts with what is there"
            ));
            return;
        }
        change.notes.push(format!(
            "its system is installed from {} onto `{disk}`, which is blank: this takes a quarter of an hour or longer, and \
             is waited for; no other start of it installs anything",
            install.image
        ));
        change.steps.push(step);
    }

    /// With a VM that a run which did not come to its end has made. Whether there is something to install, or to wait for.
    pub(super) fn install_when_owed(
        &self,
        state: &DomainState,
        domain: &Domain,
        last: Option<&Self>,
        change: &mut Change,
    ) -> bool {
        let Some(step) = self.installation().filter(|_| last.is_some_and(|l| l.install_owed)) else { return false };
        let Step::InstallDomain(install) = &step else { return false };
        let live = domain.live_xml.as_deref().and_then(|xml| project(xml).ok());
        let goes_on = domain.active
            && live.and_then(|live| live.kernel).is_some_and(|kernel| Path::new(&kernel) == install.kernel);
        if !goes_on && (domain.active || state.blank != Answer::Value(true)) {
            return false;
        }
        change.fields.push(FieldDiff::new("installed", Some("no".to_owned()), Some("yes".to_owned())));
        change.notes.push(match goes_on {
            true => "its installer is at work, and is waited for".to_owned(),
            false => "it was made, and not installed: its disk is blank".to_owned(),
        });
        change.steps.push(step);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{known, vm};
    use super::*;
    use crate::host::Virtualisation;
    use crate::plan::{Action, Diff};
    use crate::resource::Resource as _;
    use crate::resource::libvirt::Libvirt;
    use crate::resource::libvirt_domain::Display;
    use crate::resource::tests::facts;
    use crate::validators;

    fn desktop() -> LibvirtDomain {
        let install = Install { image: "u".parse().unwrap(), pointer: "/srv/gpuvm-images/u.json".into() };
        LibvirtDomain {
            install: Some(install),
            seed: Some("/srv/desk-seed.iso".into()),
            start_when_made: true,
            extras: vec![Extra::Usb("046d:c52b".parse().unwrap())],
            ..vm()
        }
    }
    fn state(known: Virtualisation, blank: Answer<bool>) -> DomainState {
        let known: Libvirt = Answer::Value(Arc::new(known));
        DomainState { blank, ..known.into() }
    }
    fn steps(diff: Diff) -> Vec<String> {
        match diff {
            Diff::Change(change) => change.steps.iter().map(Step::name).collect(),
            other => panic!("{other:?}"),
        }
    }
    fn install(vm: &LibvirtDomain) -> InstallStep {
        match vm.installation() {
            Some(Step::InstallDomain(step)) => step,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn its_installer_sees_one_disk_and_nothing_that_is_passed() {
        let mut wanted = desktop();
        wanted.disks.push(super::super::Disk {
            pool: None,
            volume: String::new(),
            block: true,
            path: "/dev/disk/by-id/somebodys".into(),
            options: wanted.disks[0].options.clone(),
        });
        let step = install(&wanted);
        let is = project(&step.xml).unwrap();
        assert_eq!(is.disks, [["/var/lib/libvirt/images/desk-0.qcow2"]]);
        assert_eq!(is.cdroms, ["/srv/desk-seed.iso", "/srv/gpuvm-images/u.json"]);
        assert!(is.functions.is_empty() && !step.xml.contains("type='usb'"), "{}", step.xml);
        assert_eq!(is.kernel.as_deref(), Some("/srv/gpuvm-images/desk-install.vmlinuz"));
        assert!(is.cmdline.unwrap().split(' ').any(|word| word == "autoinstall"));
        assert!(step.xml.contains("<on_reboot>destroy</on_reboot>"), "it would install again");
        let doc = roxmltree::Document::parse(&step.xml).unwrap();
        let serial = doc.descendants().find(|n| n.has_tag_name("serial") && n.text() == Some(DISK_SERIAL)).unwrap();
        assert_eq!(serial.parent_element().unwrap().attribute("device"), Some("disk"));
        assert!(step.xml.contains("<model type='vga'/>"));
        let filled = with_medium(&step.xml, &step.image, Path::new("/srv/gpuvm-images/u-abc.img"));
        assert_eq!(project(&filled).unwrap().cdroms[1], "/srv/gpuvm-images/u-abc.img");
        validators::libvirt("domain", &filled);
        let shown = LibvirtDomain { extras: vec![Extra::Display(Display::Vnc)], ..desktop() };
        validators::libvirt("domain", &install(&shown).xml);
        assert_eq!(install(&shown).xml.matches("<video>").count(), 1);
        for bus in ["sata", "scsi"] {
            let mut other = desktop();
            other.disks[0].options.bus = Some(bus.to_owned());
            let xml = install(&other).xml;
            let doc = roxmltree::Document::parse(&xml).unwrap();
            let serial = doc.descendants().find(|n| n.has_tag_name("serial") && n.text() == Some(DISK_SERIAL)).unwrap();
            assert_eq!(serial.parent_element().unwrap().attribute("device"), Some("disk"), "{bus}");
        }
    }

    #[test]
    fn what_is_stored_installs_nothing() {
        let Diff::Change(change) = desktop().diff(&state(Virtualisation::default(), Answer::Absent), None, &facts())
        else {
            panic!("it is made")
        };
        let [Step::DefineDomain { xml, .. }, Step::InstallDomain(_), Step::StartDomain { .. }] = &change.steps[..]
        else {
            panic!("{:?}", change.steps)
        };
        assert!(!xml.contains("<kernel>") && !xml.contains("gpuvm-images") && !xml.contains(DISK_SERIAL), "{xml}");
        assert!(change.notes.concat().contains("is installed from u onto"), "{:?}", change.notes);
        let left_off = LibvirtDomain { start_when_made: false, ..desktop() };
        let made = steps(left_off.diff(&state(Virtualisation::default(), Answer::Value(true)), None, &facts()));
        assert_eq!(made, ["define the VM", "install the VM's system"]);
    }

    #[test]
    fn nothing_is_installed_over_what_is_there() {
        let fresh = || state(Virtualisation::default(), Answer::Value(false));
        let Diff::Change(change) = desktop().diff(&fresh(), None, &facts()) else { panic!("it is made") };
        assert!(change.action == Action::Create && change.notes.concat().contains("nothing is installed over it"));
        assert!(!change.steps.iter().any(|s| matches!(s, Step::InstallDomain(_))));
        let denied = desktop().diff(&state(Virtualisation::default(), Answer::Denied), None, &facts());
        assert!(matches!(denied, Diff::Unknown { .. }), "{denied:?}");
    }

    #[test]
    fn what_a_run_left_owed_is_installed_once() {
        let stored = write::new(&desktop());
        let diff = |owed: bool, live: Option<&str>, blank: bool| {
            let last = LibvirtDomain { install_owed: owed, start_owed: owed, ..desktop() };
            desktop().diff(&state(known(&stored, live), Answer::Value(blank)), Some(&last), &facts())
        };
        assert_eq!(steps(diff(true, None, true)), ["install the VM's system", "start the VM"]);
        assert_eq!(steps(diff(true, None, false)), ["start the VM"], "it is taken as installed");
        let at_work = install(&desktop()).xml;
        assert_eq!(steps(diff(true, Some(&at_work), false)), ["install the VM's system", "start the VM"]);
        assert!(matches!(diff(true, Some(&stored), false), Diff::InSync { .. }), "it runs from its disk");
        for (live, blank) in [(None, true), (None, false), (Some(stored.as_str()), true)] {
            assert!(matches!(diff(false, live, blank), Diff::InSync { .. }), "{live:?} {blank}");
        }
        let another = Install { image: "v".parse().unwrap(), pointer: "/srv/gpuvm-images/v.json".into() };
        for install in [Some(another), None] {
            let wanted = LibvirtDomain { install, ..desktop() };
            let diff = wanted.diff(&state(known(&stored, None), Answer::Value(false)), Some(&desktop()), &facts());
            assert!(matches!(&diff, Diff::Blocked { why, .. } if why.contains("installed from `u`")), "{diff:?}");
        }
        assert!(desktop().begun().install_owed && !vm().begun().install_owed);
    }
}
