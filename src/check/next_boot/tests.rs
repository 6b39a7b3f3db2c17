//! Each link on its own: one thing is wrong at a time.

use super::*;
use crate::facts;
use crate::host::fixture::{Fixture, Record};

const RULE: &str = "ACTION==\"add\", KERNEL==\"0000:01:00.0\", ATTR{driver_override}=\"vfio-pci\"\n";
const NEW: &str = "6.12.57";
const CFG: &str =
    "set default=\"0\"\nmenuentry 'Debian' {\nlinux /vmlinuz-6.12.57 ro quiet\ninitrd /initrd.img-6.12.57\n}\n";

struct Host {
    dir: tempfile::TempDir,
    record: Record,
}

impl Host {
    /// One on which all is well.
    fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap(), record: Record::default() };
        host.file("/etc/default/grub", "");
        host.file(
            "/var/lib/dpkg/status",
            "Package: grub2-common\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\n\n\
             Package: initramfs-tools\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n",
        );
        host.file("/proc/sys/kernel/osrelease", "6.12.41\n");
        host.file("/proc/cmdline", "ro quiet intel_iommu=on\n");
        host.file(GRUB_CFG, CFG);
        host.file("/boot/config-6.12.57", "CONFIG_INTEL_IOMMU_DEFAULT_ON=y\n");
        host.file("/boot/vmlinuz-6.12.57", "");
        host.file("/boot/initrd.img-6.12.57", "");
        host.file("/lib/modules/6.12.57/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: a b\n");
        host.file("/etc/udev/rules.d/61-gpuvm-vfio-work.rules", RULE);
        host.with_initramfs(NEW, &["vfio", "vfio_pci"], RULE)
    }
    fn file(&self, path: &str, text: &str) {
        let at = self.dir.path().join("root").join(&path[1..]);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, text).unwrap();
    }
    fn gone(self, path: &str) -> Self {
        std::fs::remove_file(self.dir.path().join("root").join(&path[1..])).unwrap();
        self
    }
    fn with(self, path: &str, text: &str) -> Self {
        self.file(path, text);
        self
    }
    fn with_initramfs(mut self, release: &str, modules: &[&str], rule: &str) -> Self {
        let modules = modules.iter().map(|m| (*m).to_owned()).collect();
        let mut content =
            Initramfs { modules: BTreeMap::from([(release.to_owned(), modules)]), texts: BTreeMap::new() };
        if !rule.is_empty() {
            content.texts.insert("usr/lib/udev/rules.d/61-gpuvm-vfio-work.rules".to_owned(), rule.to_owned());
        }
        self.record.initramfs.insert("/boot/initrd.img-6.12.57".into(), content);
        self
    }
    fn denied(mut self, path: &str) -> Self {
        self.record.denied.insert(path.into());
        self
    }
    fn judged(&self) -> NextBootReport {
        self.record.save(&self.dir.path().join(Record::NAME)).unwrap();
        let host = Fixture::open(self.dir.path()).unwrap();
        let facts = facts::collect(&host);
        judge(&NextBoot::look(&host, &facts), &facts, &[])
    }
}

#[test]
fn one_wrong_thing_is_found_and_named() {
    let pass = Host::new().judged();
    assert_eq!((pass.verdict, pass.kernel.as_deref()), (Some(Verdict::Pass), Some(NEW)), "{pass:#?}");
    let modules = "/lib/modules/6.12.57/modules.dep";
    let (fail, unknown) = (Verdict::Fail, Verdict::Unknown);
    for (what, host, verdict, link) in [
        ("vfio-pci not in it", Host::new().with_initramfs(NEW, &["vfio"], RULE), fail, "initramfs"),
        ("made for another", Host::new().with_initramfs("6.12.41", &["vfio", "vfio_pci"], RULE), fail, "initramfs"),
        ("no rule", Host::new().with_initramfs(NEW, &["vfio", "vfio_pci"], ""), fail, "initramfs"),
        ("older rule", Host::new().with_initramfs(NEW, &["vfio", "vfio_pci"], "# old\n"), fail, "initramfs"),
        ("no file", Host::new().gone("/boot/initrd.img-6.12.57"), fail, "initramfs"),
        ("hidden", Host::new().denied("/boot/initrd.img-6.12.57"), unknown, "initramfs"),
        ("no initrd", Host::new().with(GRUB_CFG, &CFG.replace("initrd", "#")), fail, "initramfs"),
        ("iommu off", Host::new().with(GRUB_CFG, &CFG.replace("quiet", "intel_iommu=off")), fail, "command line"),
        ("gpuvm.off", Host::new().with(GRUB_CFG, &CFG.replace("quiet", "gpuvm.off")), fail, "command line"),
        ("not on by itself", Host::new().with("/boot/config-6.12.57", "# n\n"), fail, "command line"),
        ("not known", Host::new().gone("/boot/config-6.12.57"), unknown, "command line"),
        ("no module", Host::new().with(modules, "kernel/fs/ext4.ko:\n"), fail, "modules"),
        ("no list", Host::new().gone(modules), unknown, "modules"),
        ("no kernel", Host::new().gone("/boot/vmlinuz-6.12.57"), fail, "kernel"),
        ("no menu", Host::new().gone(GRUB_CFG), unknown, "kernel"),
        ("Windows", Host::new().with(GRUB_CFG, "menuentry 'Windows' {\nchainloader x\n}\n"), fail, "kernel"),
    ] {
        let report = host.judged();
        assert_eq!(report.verdict, Some(verdict), "{what}: {report:#?}");
        let worst = report.links.iter().find(|l| l.status != crate::check::Status::Ok).unwrap();
        assert_eq!(worst.name, link, "{what}: {report:#?}");
        assert!(!worst.fix.is_empty() && !worst.evidence.is_empty(), "{what}: {worst:#?}");
    }
}

#[test]
fn what_is_built_in_need_not_be_in_the_initramfs() {
    let built_in = "kernel/drivers/vfio/vfio.ko\nkernel/drivers/vfio/pci/vfio-pci.ko\n";
    let host = Host::new().with("/lib/modules/6.12.57/modules.builtin", built_in).with_initramfs(NEW, &[], RULE);
    assert_eq!(host.judged().verdict, Some(Verdict::Pass));
}

#[test]
fn where_nothing_is_kept_there_is_no_verdict() {
    let report = Host::new().gone("/etc/udev/rules.d/61-gpuvm-vfio-work.rules").judged();
    assert_eq!(report.verdict, None);
    assert!(report.links.is_empty());
}
