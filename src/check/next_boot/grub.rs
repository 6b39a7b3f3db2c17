//! What GRUB takes by default, from the grub.cfg that grub-mkconfig writes and from grubenv. It is no shell: what it does
//! not understand makes the answer unknown, never a guess.

use std::collections::BTreeMap;

/// An entry of the menu, or a submenu.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) title: String,
    pub(super) id: Option<String>,
    /// In a submenu, its entries.
    pub(super) entries: Vec<Entry>,
    /// The kernel's path as GRUB sees it, then its command line.
    pub(super) linux: Option<(String, String)>,
    pub(super) initrd: Vec<String>,
}

/// A grub.cfg.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Menu {
    pub(super) entries: Vec<Entry>,
    /// What `default` is set to where no entry is asked for once.
    pub(super) default: String,
}

/// What is inside braces.
enum Open {
    Entry(Entry),
    Other,
}

/// Reads the menu.
pub(super) fn parse(text: &str) -> Menu {
    let mut menu = Menu::default();
    let mut open: Vec<Open> = Vec::new();
    for line in text.lines().map(str::trim) {
        let words = words(line);
        let first = words.first().map_or("", String::as_str);
        match first {
            "menuentry" | "submenu" if line.ends_with('{') => {
                let is_id = |w: &String| matches!(w.as_str(), "$menuentry_id_option" | "--id");
                let id = words.iter().position(is_id).and_then(|at| words.get(at + 1)).cloned();
                let title = words.get(1).cloned().unwrap_or_default();
                open.push(Open::Entry(Entry { title, id, ..Entry::default() }));
            }
            "}" => {
                if let Some(Open::Entry(entry)) = open.pop() {
                    let above = open.iter_mut().rev().find_map(|o| match o {
                        Open::Entry(entry) => Some(&mut entry.entries),
                        Open::Other => None,
                    });
                    above.unwrap_or(&mut menu.entries).push(entry);
                }
            }
            "set" if open.is_empty() => {
                let value = words.get(1).and_then(|w| w.strip_prefix("default="));
                if let Some(value) = value.filter(|v| !v.contains("next_entry")) {
                    menu.default = value.to_owned();
                }
            }
            _ if line.ends_with('{') && !line.ends_with("${") => open.push(Open::Other),
            _ => {
                let Some(Open::Entry(entry)) = open.last_mut() else { continue };
                if matches!(first, "linux" | "linux16" | "linuxefi") {
                    // Quotes in the command line are the kernel's to read.
                    let rest = line.split_once(char::is_whitespace).map_or("", |(_, r)| r.trim());
                    let (path, args) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                    entry.linux = Some((path.to_owned(), args.trim().to_owned()));
                } else if matches!(first, "initrd" | "initrd16" | "initrdefi") {
                    entry.initrd = words.into_iter().skip(1).collect();
                }
            }
        }
    }
    menu
}

/// Words as a shell cuts them, without expanding anything.
fn words(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => all.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    all
}

/// The variables of grubenv (grub-editenv(1)).
pub(super) fn environment(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The entry that starts next, and what chose it; else why that cannot be told.
pub(super) fn chosen<'a>(menu: &'a Menu, env: &BTreeMap<String, String>) -> Result<(&'a Entry, String), String> {
    let set = |name: &str| env.get(name).filter(|v| !v.is_empty());
    let (wanted, by) = match (set("next_entry"), menu.default.as_str()) {
        (Some(once), _) => (once.clone(), format!("next_entry={once}, for one boot")),
        (None, "${saved_entry}") => {
            let saved = set("saved_entry").cloned().unwrap_or_default();
            (saved.clone(), format!("saved_entry={saved}"))
        }
        (None, other) if other.contains('$') => {
            return Err(format!("`default` is `{other}`, which only GRUB evaluates"));
        }
        (None, fixed) => (fixed.to_owned(), format!("default={fixed}")),
    };
    // `>` leads into a submenu, `>>` is one that belongs to a title (GRUB's manual, `default`).
    let wanted = wanted.replace(">>", "\0");
    let mut parts = wanted.split('>').map(|p| p.replace('\0', ">"));
    let mut level = &menu.entries;
    loop {
        let part = parts.next().unwrap_or_default();
        let by_name = |e: &&Entry| e.title == part || e.id.as_deref() == Some(part.as_str());
        let at = part.parse::<usize>().ok().and_then(|n| level.get(n)).or_else(|| level.iter().find(by_name));
        // What is not in the menu is the first one to GRUB.
        let Some(entry) = at.or(level.first()) else { return Err("the menu is empty".to_owned()) };
        if entry.entries.is_empty() {
            return Ok((entry, by));
        }
        level = &entry.entries;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CFG: &str = r#"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
  fi
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {
	load_video
	linux	/vmlinuz-6.12.57 root=UUID=1 ro  quiet dyndbg="file a +p"
	initrd	/intel-ucode.img /initrd.img-6.12.57
}
submenu 'Advanced options for Debian' $menuentry_id_option 'gnulinux-advanced-1' {
	menuentry 'Debian, with Linux 6.12.57' --class debian $menuentry_id_option 'gnulinux-6.12.57-advanced-1' {
		linux	/vmlinuz-6.12.57 root=UUID=1 ro quiet
		initrd	/initrd.img-6.12.57
	}
	menuentry 'Debian, with Linux 6.12.41 > old' $menuentry_id_option 'gnulinux-6.12.41-advanced-1' {
		linux	/vmlinuz-6.12.41 root=UUID=1 ro intel_iommu=off
		initrd	/initrd.img-6.12.41
	}
}
menuentry 'It'\''s Windows' $menuentry_id_option 'osprober-efi-1' {
	chainloader /EFI/Microsoft/Boot/bootmgfw.efi
}
"#;

    fn kernel(env: &str) -> String {
        let menu = parse(CFG);
        let (entry, _) = chosen(&menu, &environment(env)).unwrap();
        entry.linux.as_ref().map_or(entry.title.clone(), |(path, _)| path.clone())
    }

    #[test]
    fn the_default_is_found_as_grub_finds_it() {
        for (env, wanted) in [
            ("# GRUB Environment Block\n", "/vmlinuz-6.12.57"),
            ("saved_entry=gnulinux-advanced-1>gnulinux-6.12.41-advanced-1\n", "/vmlinuz-6.12.41"),
            ("saved_entry=1>1\n", "/vmlinuz-6.12.41"),
            ("saved_entry=Advanced options for Debian>Debian, with Linux 6.12.41 >> old\n", "/vmlinuz-6.12.41"),
            ("saved_entry=gnulinux-advanced-1\n", "/vmlinuz-6.12.57"),
            ("saved_entry=a kernel that was removed\n", "/vmlinuz-6.12.57"),
            ("saved_entry=0\nnext_entry=1>1\n", "/vmlinuz-6.12.41"),
            ("saved_entry=It's Windows\n", "It's Windows"),
        ] {
            assert_eq!(kernel(env), wanted, "{env}");
        }
    }

    #[test]
    fn a_command_line_keeps_its_quotes_and_every_initrd_counts() {
        let menu = parse(CFG);
        assert_eq!(menu.entries.len(), 3);
        let entry = &menu.entries[0];
        assert_eq!(entry.linux.as_ref().unwrap().1, "root=UUID=1 ro  quiet dyndbg=\"file a +p\"");
        assert_eq!(entry.initrd, ["/intel-ucode.img", "/initrd.img-6.12.57"]);
    }

    #[test]
    fn what_only_grub_can_evaluate_is_not_guessed() {
        let menu = parse("set default=\"${some_script}\"\nmenuentry 'a' {\nlinux /vmlinuz-1\n}\n");
        assert!(chosen(&menu, &BTreeMap::new()).is_err());
        assert!(chosen(&parse(""), &BTreeMap::new()).is_err());
        // Braces that never close, and too many that do.
        parse("menuentry 'a' {\nmenuentry 'b' {\n");
        assert!(parse("}\n}\nmenuentry 'a' {\n}\n").entries.len() == 1);
    }
}
