//! The chain of the next boot, in the order in which it happens.

use super::super::{Link, Status, Verdict};
use super::{Chosen, Content, GRUB_CFG, NextBoot, NextBootReport, Rule};
use crate::facts::drivers::is_module;
use crate::facts::{HostFacts, InitramfsTool};
use crate::gpu::Gpu;

/// Goes through the whole chain.
pub fn judge(next: &NextBoot, facts: &HostFacts, gpus: &[Gpu]) -> NextBootReport {
    let kept: Vec<String> = next.rules.iter().map(|r| r.name.clone()).collect();
    let report = |verdict, summary, links| NextBootReport {
        kernel: next.release.clone(),
        kept: kept.clone(),
        verdict,
        summary,
        links,
    };
    if kept.is_empty() {
        return report(None, "nothing is kept for VMs on this host".to_owned(), Vec::new());
    }
    let mut links = vec![kernel(next, facts)];
    if next.release.is_some() {
        links.push(command_line(next, facts));
        links.push(modules(next));
        links.push(initramfs(next, facts, &|_| true));
        links.extend(drivers(next, facts, gpus));
    }
    let of = |status: Status| links.iter().filter(move |l| l.status == status);
    let unknown: Vec<&str> = of(Status::Unknown).map(|l| l.name).collect();
    let (verdict, summary) = match of(Status::Fail).next() {
        Some(link) => (Verdict::Fail, format!("{}: {}", link.name, link.says)),
        None if unknown.is_empty() => {
            (Verdict::Pass, format!("kept for VMs at the next boot too: {}", kept.join(", ")))
        }
        None => (Verdict::Unknown, format!("nothing known stands in the way; not known: {}", unknown.join(", "))),
    };
    report(Some(verdict), summary, links)
}

fn kernel(next: &NextBoot, facts: &HostFacts) -> Link {
    let (source, value) = match &next.chosen {
        Chosen::Configured(by, title) => (GRUB_CFG.to_owned(), format!("{by} ({title})")),
        Chosen::Newest(_) => ("/boot".to_owned(), next.newest.clone().unwrap_or_else(|| "no kernel".to_owned())),
    };
    let link = |status, says: String| Link::new("kernel", status, says).seen(source.clone(), value.clone());
    let Some(release) = &next.release else {
        return match &next.chosen {
            Chosen::Configured(_, title) => {
                link(Status::Fail, format!("`{title}` starts next, which is no Linux of this host")).fix(
                    "choose this host's entry: grub-set-default, or GRUB_DEFAULT in /etc/default/grub and update-grub",
                )
            }
            Chosen::Newest(why) => {
                link(Status::Unknown, format!("no kernel was found in /boot; {why}")).fix("run it as root")
            }
        };
    };
    let which = if *release == facts.kernel.release { "the running one" } else { "not the running one" };
    match &next.chosen {
        Chosen::Newest(why) => {
            let fix = if why.contains("not root") { "run it as root" } else { "look at the boot loader's menu" };
            link(Status::Unknown, format!("{release} is the newest here, and may start next: {why}")).fix(fix)
        }
        Chosen::Configured(..) if !next.kernel_there => {
            link(Status::Fail, format!("{release} starts next, and /boot/vmlinuz-{release} is not there"))
                .fix("update-grub, or install that kernel again")
        }
        Chosen::Configured(..) => link(Status::Ok, format!("{release} starts next, {which}")),
    }
}

fn command_line(next: &NextBoot, facts: &HostFacts) -> Link {
    let Some((source, words)) = &next.cmdline else {
        return Link::new("command line", Status::Unknown, "what it is started with could not be read")
            .seen(GRUB_CFG, "not read")
            .fix("run it as root");
    };
    let find = |wrong: &dyn Fn(&str) -> bool| words.iter().find(|w| wrong(w));
    let fail = |word: &str, says: String| {
        Link::new("command line", Status::Fail, says)
            .seen(source.clone(), word)
            .fix(format!("take `{word}` out of the boot loader's configuration, then update-grub"))
    };
    if let Some(word) = find(&crate::facts::turns_iommu_off) {
        return fail(word, format!("`{word}` turns the IOMMU off"));
    }
    if let Some(word) = find(&super::super::links::turns_remapping_off) {
        return fail(word, format!("`{word}` turns interrupt remapping off: vfio refuses then"));
    }
    if let Some(word) = find(&|w| w == "gpuvm.off" || w.starts_with("gpuvm.off=")) {
        return fail(word, format!("`{word}`: early binding is switched off for that boot"));
    }
    let asks = |w: &str| w == "intel_iommu=on";
    if facts.kernel.cmdline.iter().any(|w| asks(w)) && find(&asks).is_none() && next.intel_on != Some(true) {
        let status = if next.intel_on == Some(false) { Status::Fail } else { Status::Unknown };
        let says = "the running kernel has `intel_iommu=on`, and the next one is started without it";
        return Link::new("command line", status, says)
            .seen("/proc/cmdline", "intel_iommu=on")
            .seen(source.clone(), words.join(" "))
            .fix("kernelArgs: [intel_iommu=on] in host.yaml and gpuvm apply, or update-grub");
    }
    Link::new("command line", Status::Ok, "nothing turns the IOMMU or early binding off")
        .seen(source.clone(), words.join(" "))
}

fn modules(next: &NextBoot) -> Link {
    let release = next.release.as_deref().unwrap_or_default();
    let file = format!("/lib/modules/{release}/modules.dep");
    match &next.modules {
        None => Link::new("modules", Status::Unknown, format!("the modules of {release} could not be read"))
            .seen(file, "not read")
            .fix(format!("apt-get install --reinstall linux-image-{release}, or depmod {release}")),
        Some(all) if all.contains("vfio_pci") => {
            let how = if next.built_in.contains("vfio_pci") { "built in" } else { "there" };
            Link::new("modules", Status::Ok, format!("vfio-pci is {how}")).seen(file, "vfio-pci")
        }
        Some(_) => Link::new("modules", Status::Fail, format!("{release} has no vfio-pci")).seen(file, "no vfio-pci").fix(
            format!(
                "install its other modules: linux-modules-extra-{release} (Ubuntu); a `cloud` kernel of Debian's has none"
            ),
        ),
    }
}

/// Whether what binds devices early by these rules is in the initramfs. Also asked for one GPU alone.
pub(in crate::check) fn initramfs(next: &NextBoot, facts: &HostFacts, of: &dyn Fn(&Rule) -> bool) -> Link {
    let release = next.release.as_deref().unwrap_or_default();
    let again = match facts.boot.initramfs {
        InitramfsTool::Dracut => format!("dracut --force --kver {release}"),
        _ => format!("update-initramfs -u -k {release}"),
    };
    let link = |status, says: String| Link::new("initramfs", status, says);
    let Some((last, _)) = next.initramfs.last() else {
        return link(
            Status::Fail,
            format!("{release} is started without an initramfs: nothing binds before the drivers"),
        )
        .seen(GRUB_CFG, "no initrd")
        .fix(format!("update-initramfs -c -k {release}, then update-grub"));
    };
    for (path, content) in &next.initramfs {
        match content {
            Content::Read(_) => {}
            // The name is a guess where the kernel is one.
            Content::Missing if matches!(next.chosen, Chosen::Newest(_)) => {
                return link(Status::Unknown, format!("no initramfs was found for {release}"))
                    .seen(path.clone(), "absent")
                    .fix("run it as root, or look at the boot loader's menu");
            }
            Content::Missing => {
                return link(Status::Fail, format!("{path} is not there")).seen(path.clone(), "absent").fix(
                    match facts.boot.initramfs {
                        InitramfsTool::Dracut => again,
                        _ => format!("update-initramfs -c -k {release}"),
                    },
                );
            }
            Content::Unknown(why) => {
                let fix = if why.contains("not root") { "run it as root".to_owned() } else { again };
                return link(Status::Unknown, format!("{path}: {why}")).seen(path.clone(), "not read").fix(fix);
            }
        }
    }
    let Some(all) = next.unpacked() else {
        return link(Status::Unknown, "it could not be read".to_owned()).seen(last.clone(), "not read").fix(again);
    };
    let fail = |says: String, value: String| link(Status::Fail, says).seen(last.clone(), value).fix(again.clone());
    let there = |m: &str| next.built_in.contains(m) || all.has_module(release, m);
    if let Some(missing) = ["vfio", "vfio_pci"].into_iter().find(|m| !there(m)) {
        let others: Vec<&str> = all.modules.keys().map(String::as_str).filter(|r| *r != release).collect();
        let others = if others.is_empty() { String::new() } else { format!("; it is made for {}", others.join(", ")) };
        return fail(
            format!("{missing} is not in it{others}: the card's own driver comes first"),
            format!("no {missing}"),
        );
    }
    for rule in next.rules.iter().filter(|r| of(r)) {
        match all.text_named(&rule.file) {
            None => return fail(format!("the rule for {} is not in it", rule.name), format!("no {}", rule.file)),
            Some(text) if text != rule.text => {
                return fail(
                    format!("the rule for {} in it is an older one", rule.name),
                    format!("{} differs from the one in /etc/udev/rules.d", rule.file),
                );
            }
            Some(_) => {}
        }
    }
    // dracut loads what is forced in before udev and its rules.
    let hook = all.texts.keys().any(|path| path.ends_with("gpuvm-override.sh"));
    if facts.boot.initramfs == InitramfsTool::Dracut && !hook {
        return fail("gpuvm's dracut module is not in it".to_owned(), "no gpuvm-override.sh".to_owned());
    }
    link(Status::Ok, "vfio-pci and the rules are in it".to_owned())
        .seen(last.clone(), "vfio-pci, 61-gpuvm-vfio-*.rules")
}

/// The drivers of GPUs that stay with the host: built by DKMS for the one kernel and not for the other.
fn drivers(next: &NextBoot, facts: &HostFacts, gpus: &[Gpu]) -> Vec<Link> {
    let (Some(release), Some(modules)) = (&next.release, &next.modules) else { return Vec::new() };
    let mut links: Vec<Link> = Vec::new();
    for gpu in gpus {
        let Some(first) = facts.slot(gpu.slot).find(|f| f.is_gpu()) else { continue };
        if next.rules.iter().any(|r| r.functions.contains(&first.address)) {
            continue;
        }
        let Some(driver) = first.driver.as_deref().filter(|d| !d.contains("vfio")) else { continue };
        let told = next.driver_modules.get(driver);
        let module = told.map_or_else(|| driver.replace('-', "_"), |m| m.replace('-', "_"));
        let there = modules.iter().any(|m| is_module(m, &module));
        let link = |status, says: String| {
            Link::new("host driver", status, says).seen(
                format!("/lib/modules/{release}/modules.dep"),
                if there { module.clone() } else { format!("no {module}") },
            )
        };
        if there {
            links.push(link(Status::Ok, format!("{}: {driver} is there", gpu.slot)));
            continue;
        }
        let built = || next.dkms.iter().filter(|(b, _)| b.starts_with(driver));
        // A driver has its own name and is in a module of maybe another: without a word of sysfs or DKMS, that is not known.
        if told.is_none() && built().next().is_none() {
            links.push(
                link(Status::Unknown, format!("{}: which module {driver} is in could not be told", gpu.slot))
                    .seen(format!("/sys/bus/pci/drivers/{driver}/module"), "not there, or not recorded")
                    .fix(format!("see it on the host: readlink /sys/bus/pci/drivers/{driver}/module"))
                    .fix(format!("and then whether {release} has it: modinfo -k {release} MODULE")),
            );
            continue;
        }
        let mut link = link(Status::Fail, format!("{} stays with the host, and {release} has no {module}", gpu.slot));
        for (built, kernels) in built() {
            let kernels: Vec<&str> = kernels.iter().map(String::as_str).collect();
            link = link.seen(format!("/var/lib/dkms/{built}"), kernels.join(" "));
        }
        // Only what DKMS builds can be built for another kernel.
        let fix = match built().next() {
            Some(_) => format!("apt-get install linux-headers-{release}, then dkms autoinstall -k {release}"),
            None => format!("look where it comes from: modinfo {module}; and install what brings it for {release}"),
        };
        links.push(link.fix(fix).fix("or keep the running kernel as the default until the driver is built"));
    }
    links
}

/// Each link on its own: one thing is wrong at a time.
#[cfg(test)]
mod tests {
    use super::super::*;
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
            judge(&NextBoot::look(&host, &facts), &facts, &crate::gpu::collect(&host, &facts))
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

    /// A GPU of the host's on bochs-drm, which is in the module bochs (drivers/gpu/drm/tiny/bochs.c in the kernel).
    fn with_gpu(host: &Host, driver: &str, module: Option<&str>) {
        let at = "/sys/bus/pci/devices/0000:00:06.0";
        for (name, value) in [("vendor", "0x1234"), ("device", "0x1111"), ("class", "0x030000")] {
            host.file(&format!("{at}/{name}"), value);
        }
        let link = |from: &str, to: &str| {
            let from = host.dir.path().join("root").join(&from[1..]);
            std::fs::create_dir_all(from.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, from).unwrap();
        };
        link(&format!("{at}/driver"), &format!("/sys/bus/pci/drivers/{driver}"));
        if let Some(module) = module {
            link(&format!("/sys/bus/pci/drivers/{driver}/module"), &format!("/sys/module/{module}"));
        }
    }

    #[test]
    fn a_driver_is_looked_for_in_the_module_that_it_is_in() {
        use crate::check::Status;
        const LIST: &str = "/lib/modules/6.12.57/modules.dep";
        let both =
            |module: &str| format!("kernel/drivers/vfio/pci/vfio-pci.ko.xz:\nkernel/drivers/gpu/{module}.ko.xz:\n");
        for (driver, module, there, status) in [
            ("bochs-drm", Some("bochs"), "bochs", Status::Ok),
            ("bochs-drm", Some("bochs"), "other", Status::Fail),
            // A record without that link: a module of the driver's own name is the driver's, and no more is known.
            ("i915", None, "i915", Status::Ok),
            ("bochs-drm", None, "bochs", Status::Unknown),
        ] {
            let host = Host::new().with(LIST, &both(there));
            with_gpu(&host, driver, module);
            let report = host.judged();
            let link = report.links.iter().find(|l| l.name == "host driver").unwrap();
            assert_eq!(link.status, status, "{driver} {module:?} {there}: {link:#?}");
            assert!(!link.fix.iter().any(|f| f.contains("dkms")), "DKMS has not built it: {link:#?}");
        }
        // What DKMS has built for another kernel it can build for this one.
        let host = Host::new().with("/var/lib/dkms/bochs-drm/1.0/6.12.41/x86_64/module/bochs.ko", "");
        with_gpu(&host, "bochs-drm", None);
        let report = host.judged();
        let link = report.links.iter().find(|l| l.name == "host driver").unwrap();
        assert!(link.status == Status::Fail && link.fix.iter().any(|f| f.contains("dkms autoinstall")), "{link:#?}");
    }
}
