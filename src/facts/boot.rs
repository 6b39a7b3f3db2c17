//! The boot loader and its variables, and the program that makes the initramfs.

use std::path::PathBuf;

use super::os::{arguments, exists, names, text};
use super::{Boot, BootLoader, InitramfsTool, Known};
use crate::host::Probe;

/// The drop-in that is ours; left out where it is asked what others set.
pub const OURS: &str = "99-gpuvm.cfg";

/// What starts the kernel. The initramfs tool is the one that is installed, not the one that a release number suggests:
/// Ubuntu went from initramfs-tools to dracut between two releases.
pub(super) fn boot(probe: &dyn Probe, packages: &Known<std::collections::BTreeMap<String, super::Package>>) -> Boot {
    let installed = |name: &str| packages.value().and_then(|p| p.get(name)).is_some_and(|p| p.installed);
    Boot {
        loader: loader(probe, installed("grub2-common")),
        initramfs: if installed("dracut") {
            InitramfsTool::Dracut
        } else if installed("initramfs-tools") || installed("initramfs-tools-core") {
            InitramfsTool::InitramfsTools
        } else {
            InitramfsTool::None
        },
        uefi: exists(probe, "/sys/firmware/efi"),
    }
}

/// The variable in which the loader that started this system names itself (the Boot Loader Interface of systemd).
const LOADER_INFO: &str = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

const SYSTEMD_BOOT: [&str; 4] =
    ["/etc/kernel/cmdline", "/boot/efi/loader/loader.conf", "/efi/loader/loader.conf", "/boot/loader/loader.conf"];
const EXTLINUX: [&str; 2] = ["/boot/extlinux/extlinux.conf", "/extlinux/extlinux.conf"];

/// Files of a boot loader stay when another one takes its place, so what the firmware was told comes first.
fn loader(probe: &dyn Probe, grub_installed: bool) -> BootLoader {
    let started_by = probe.read(LOADER_INFO.as_ref()).ok().and_then(crate::host::Answer::value).unwrap_or_default();
    // UTF-16, behind four bytes of attributes; the names are ASCII.
    let started_by: String =
        started_by.iter().skip(4).filter(|b| b.is_ascii_graphic()).map(|b| char::from(*b)).collect();
    let any = |paths: &[&str]| paths.iter().any(|p| exists(probe, p));
    if started_by.starts_with("systemd-boot") {
        return BootLoader::SystemdBoot;
    }
    if !exists(probe, "/etc/default/grub") {
        return if any(&SYSTEMD_BOOT) {
            BootLoader::SystemdBoot
        } else if any(&EXTLINUX) {
            BootLoader::Extlinux
        } else {
            BootLoader::Unknown(
                "neither /etc/default/grub, /etc/kernel/cmdline nor an extlinux.conf is there".to_owned(),
            )
        };
    }
    if !grub_installed && !exists(probe, "/usr/sbin/update-grub") {
        return BootLoader::GrubWithoutUpdate;
    }
    // grub-mkconfig reads /etc/default/grub, then grub.d/*.cfg in the order of their names.
    let mut drop_ins = Vec::new();
    let main = text(probe, "/etc/default/grub");
    let mut value = evaluate(DEFAULT, &main, Vec::new()).0;
    let mut always = evaluate(ALWAYS, &main, Vec::new()).0;
    for name in names(probe, "/etc/default/grub.d").into_iter().filter(|n| n.ends_with(".cfg")) {
        let path = format!("/etc/default/grub.d/{name}");
        let file = text(probe, &path);
        let (after, sets) = evaluate(DEFAULT, &file, value.clone().unwrap_or_default());
        drop_ins.push((PathBuf::from(path), sets));
        if name != OURS {
            value = value.and(after);
            always = always.and_then(|v| evaluate(ALWAYS, &file, v).0);
        }
    }
    BootLoader::Grub { cmdline_default: value, cmdline: always, drop_ins }
}

const DEFAULT: &str = "GRUB_CMDLINE_LINUX_DEFAULT";
const ALWAYS: &str = "GRUB_CMDLINE_LINUX";

/// What a file of shell assignments makes of a variable, and whether it sets it. Plain assignments with
/// a reference to the variable itself are understood; anything that would need a shell gives `None`.
fn evaluate(name: &str, file: &str, before: Vec<String>) -> (Option<Vec<String>>, bool) {
    let mut value = Some(before.join(" "));
    let mut sets = false;
    for line in file.lines().map(str::trim).filter(|l| !l.starts_with('#') && l.contains(name)) {
        let Some(rest) = line.strip_prefix("export ").unwrap_or(line).strip_prefix(name) else {
            // It reads the variable, or sets it inside something else: only a shell knows.
            if line.contains(&format!("{name}=")) {
                return (None, true);
            }
            continue;
        };
        let (rest, append) = match (rest.strip_prefix("+="), rest.strip_prefix('=')) {
            (Some(rest), _) => (rest, true),
            (None, Some(rest)) => (rest, false),
            _ => continue,
        };
        sets = true;
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let text = match quote {
            Some(q) => rest[1..].split_once(q).map(|(inside, _)| inside),
            None => Some(rest.split([' ', ';', '#']).next().unwrap_or_default()),
        };
        value = match (value, text) {
            (Some(old), Some(new)) => {
                let new = if quote == Some('\'') {
                    new.to_owned()
                } else {
                    new.replace(&format!("${{{name}}}"), &old).replace(&format!("${name}"), &old)
                };
                let plain = quote == Some('\'') || !new.contains(['$', '`', '\\']);
                plain.then(|| if append { old + &new } else { new })
            }
            _ => None,
        };
    }
    (value.map(|v| arguments(&v)), sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_evaluated_as_a_shell_would() {
        let after = |file: &str| evaluate(DEFAULT, file, vec!["quiet".to_owned()]).0.map(|v| v.join(" "));
        for (file, want) in [
            ("GRUB_CMDLINE_LINUX_DEFAULT=\"console=tty1 console=ttyS0\"", Some("console=tty1 console=ttyS0")),
            ("GRUB_CMDLINE_LINUX_DEFAULT=\"${GRUB_CMDLINE_LINUX_DEFAULT} a\"", Some("quiet a")),
            ("GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT a=1 b\"", Some("quiet a=1 b")),
            ("GRUB_CMDLINE_LINUX_DEFAULT+=\" a\"", Some("quiet a")),
            ("GRUB_CMDLINE_LINUX_DEFAULT=splash # why", Some("splash")),
            ("# GRUB_CMDLINE_LINUX_DEFAULT=\"x\"\nGRUB_TIMEOUT=0", Some("quiet")),
            ("GRUB_CMDLINE_LINUX_DEFAULT=\"$(cat /x)\"", None),
            ("if true; then GRUB_CMDLINE_LINUX_DEFAULT=x; fi", None),
        ] {
            assert_eq!(after(file).as_deref(), want, "{file}");
        }
        let both = "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"intel_iommu=off\"\n";
        assert_eq!(evaluate(ALWAYS, both, Vec::new()).0.unwrap(), ["intel_iommu=off"]);
    }

    #[test]
    fn a_boot_loader_is_told_by_what_started_the_system_and_by_its_files() {
        let told = |files: &[(&str, &[u8])], grub: bool| {
            let dir = tempfile::tempdir().unwrap();
            for (path, bytes) in files {
                let path = dir.path().join("root").join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
            std::fs::create_dir_all(dir.path().join("root")).unwrap();
            let record = crate::host::fixture::Record::default();
            record.save(&dir.path().join(crate::host::fixture::Record::NAME)).unwrap();
            loader(&crate::host::fixture::Fixture::open(dir.path()).unwrap(), grub)
        };
        let info = LOADER_INFO.trim_start_matches('/');
        let utf16 = |s: &str| [6u8, 0, 0, 0].into_iter().chain(s.bytes().flat_map(|b| [b, 0])).collect::<Vec<u8>>();
        let grub = ("etc/default/grub", "GRUB_TIMEOUT=0\n".as_bytes());
        assert!(matches!(told(&[grub], true), BootLoader::Grub { .. }));
        assert!(matches!(told(&[grub, ("usr/sbin/update-grub", b"")], false), BootLoader::Grub { .. }));
        assert_eq!(told(&[grub], false), BootLoader::GrubWithoutUpdate);
        assert!(matches!(told(&[grub, (info, &utf16("GRUB 2.12"))], true), BootLoader::Grub { .. }));
        assert_eq!(told(&[grub, (info, &utf16("systemd-boot 257"))], true), BootLoader::SystemdBoot);
        assert_eq!(told(&[("boot/efi/loader/loader.conf", b"")], true), BootLoader::SystemdBoot);
        assert_eq!(told(&[("boot/extlinux/extlinux.conf", b"")], true), BootLoader::Extlinux);
        assert!(matches!(told(&[], true), BootLoader::Unknown(_)));
    }
}
