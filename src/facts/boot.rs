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
        loader: loader(probe),
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

fn loader(probe: &dyn Probe) -> BootLoader {
    if !exists(probe, "/etc/default/grub") {
        return if exists(probe, "/etc/kernel/cmdline") || exists(probe, "/boot/efi/loader/loader.conf") {
            BootLoader::SystemdBoot
        } else {
            BootLoader::Unknown("neither /etc/default/grub nor /etc/kernel/cmdline is there".to_owned())
        };
    }
    // grub-mkconfig reads /etc/default/grub, then grub.d/*.cfg in the order of their names.
    let mut value = Some(Vec::new());
    let mut drop_ins = Vec::new();
    let main = text(probe, "/etc/default/grub");
    value = value.and_then(|v| evaluate(&main, v).0);
    for name in names(probe, "/etc/default/grub.d").into_iter().filter(|n| n.ends_with(".cfg")) {
        let path = format!("/etc/default/grub.d/{name}");
        let file = text(probe, &path);
        let (after, sets) = evaluate(&file, value.clone().unwrap_or_default());
        drop_ins.push((PathBuf::from(path), sets));
        if name != OURS {
            value = value.and(after);
        }
    }
    BootLoader::Grub { cmdline_default: value, drop_ins }
}

/// What a file of shell assignments makes of GRUB_CMDLINE_LINUX_DEFAULT, and whether it sets it. Plain assignments with
/// a reference to the variable itself are understood; anything that would need a shell gives `None`.
fn evaluate(file: &str, before: Vec<String>) -> (Option<Vec<String>>, bool) {
    const NAME: &str = "GRUB_CMDLINE_LINUX_DEFAULT";
    let mut value = Some(before.join(" "));
    let mut sets = false;
    for line in file.lines().map(str::trim).filter(|l| !l.starts_with('#') && l.contains(NAME)) {
        let Some(rest) = line.strip_prefix("export ").unwrap_or(line).strip_prefix(NAME) else {
            // It reads the variable, or sets it inside something else: only a shell knows.
            if line.contains(&format!("{NAME}=")) {
                return (None, true);
            }
            continue;
        };
        sets = true;
        let (rest, append) = match (rest.strip_prefix("+="), rest.strip_prefix('=')) {
            (Some(rest), _) => (rest, true),
            (None, Some(rest)) => (rest, false),
            _ => continue,
        };
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
                    new.replace(&format!("${{{NAME}}}"), &old).replace(&format!("${NAME}"), &old)
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
        let after = |file: &str| evaluate(file, vec!["quiet".to_owned()]).0.map(|v| v.join(" "));
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
    }
}
