//! The steps that put one place back: a file, a unit, a pool, a network, whatever it was then.

use std::path::Path;

use super::Thing;
use crate::host::Probe;
use crate::net::netplan;
use crate::plan::{Change, Content, FieldDiff, FileWrite, Place, Seen, ServiceAction, Step};
use crate::types::Mode;

impl Thing<'_> {
    /// The steps for one place.
    pub(super) fn place(&mut self, place: &Place, before: &Seen, is: &Seen, change: &mut Change, probe: &dyn Probe) {
        let yes_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
        match (place, before, is) {
            (Place::File(path), _, _) => self.file(path, before, change),
            (Place::Unit(unit), Seen::Unit { file: boot, active }, Seen::Unit { file: boot_now, active: now }) => {
                let mut step = |field: &str, is: &str, was: &str, action| {
                    change.fields.push(FieldDiff::new(field, Some(is.to_owned()), Some(was.to_owned())));
                    change.steps.push(Step::Service { unit: unit.clone(), action });
                };
                match (boot.as_str(), boot_now.as_str()) {
                    ("enabled", "disabled") => step("at boot", boot_now, boot, ServiceAction::Enable),
                    ("disabled", "enabled") => step("at boot", boot_now, boot, ServiceAction::Disable),
                    _ => {}
                }
                match (active == "active", now == "active") {
                    (true, false) => step("now", now, active, ServiceAction::Start),
                    (false, true) => step("now", now, active, ServiceAction::Stop),
                    _ => {}
                }
            }
            (Place::Member { group, user }, ..) => {
                let present = *before == Seen::There;
                change.steps.push(Step::GroupMember { group: group.clone(), user: user.clone(), present });
            }
            (Place::Module(_), Seen::Nothing, _) => {}
            (Place::Module(name), ..) => change.steps.push(Step::Module { name: name.clone() }),
            (Place::Pool(name), Seen::Nothing, _) => {
                change.steps.push(Step::RemovePool { name: name.clone() });
                change.notes.push("its directory and the files in it stay".to_owned());
            }
            (Place::Pool(name), Seen::Pool { path, .. }, Seen::Nothing) => {
                change.steps.push(Step::Pool { name: name.clone(), path: path.clone() });
            }
            (Place::Pool(name), ..) => self.stays.push(format!("pool {name} stays started, now and at boot")),
            (Place::Volume { .. } | Place::Device(_), ..) => self.disk(place, before, is, change),
            (Place::Image(path), Seen::Nothing, _) => {
                let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                self.stays
                    .push(format!("the image {name} stays where it was fetched to; `gpuvm image prune` deletes it"));
            }
            (
                Place::Network(name),
                Seen::Network { active, autostart },
                Seen::Network { active: on, autostart: boot },
            ) => {
                for (field, is, was) in [("started", on, active), ("autostart", boot, autostart)] {
                    if is != was {
                        change.fields.push(FieldDiff::new(field, yes_no(*is), yes_no(*was)));
                    }
                }
                change.steps.push(Step::Network { name: name.clone(), active: *active, autostart: *autostart });
            }
            (Place::Network(name), Seen::Network { active, autostart }, _) => {
                change.steps.push(Step::Network { name: name.clone(), active: *active, autostart: *autostart });
            }
            (Place::Domain(_), ..) => self.domain(place, before, is, change, probe),
            _ => {}
        }
    }

    fn file(&mut self, path: &Path, before: &Seen, change: &mut Change) {
        let now = self.now.files.get(path).map(Vec::as_slice);
        let then = match before {
            Seen::File { sha256, .. } => self.recorded.contents.get(sha256).map(Vec::as_slice),
            _ => None,
        };
        // What only root may read is not shown, but for netplan's files, of which all but the secrets is.
        let netplan = path.starts_with("/etc/netplan");
        let open = |seen: &Seen| match seen {
            Seen::File { mode, .. } => mode.bits() & 0o004 != 0,
            _ => true,
        };
        let is = self.now.of(&Place::File(path.to_owned()));
        let shown = |bytes: Option<&[u8]>| {
            let text = bytes.map(|b| String::from_utf8_lossy(b).into_owned());
            if netplan { text.map(|t| netplan::redacted(&t)) } else { text }
        };
        let name = path.display().to_string();
        let is_text = |bytes: Option<&[u8]>| bytes.is_none_or(|b| std::str::from_utf8(b).is_ok() && !b.contains(&0));
        let leads = |seen: &Seen| match seen {
            Seen::Link(target) => Some(format!("→ {}", target.display())),
            _ => None,
        };
        if leads(is).is_some() || leads(before).is_some() {
            change.fields.push(FieldDiff::new(name, leads(is), leads(before)));
        } else if !netplan && open(is) && open(before) && !(is_text(now) && is_text(then)) {
            change.fields.push(FieldDiff::new(name, None, None));
            change.notes.push("its content is not shown: it is no text".to_owned());
        } else if netplan || (open(is) && open(before)) {
            change.fields.push(FieldDiff::text(name, shown(now).as_deref(), shown(then).as_deref()));
        } else {
            change.fields.push(FieldDiff::new(name, None, None));
            change.notes.push("its content is not shown: only root may read it".to_owned());
        }
        match before {
            Seen::File { sha256, mode, uid, gid } => change.steps.push(Step::WriteFile(FileWrite {
                path: path.to_owned(),
                content: Content::Secret(sha256.clone()),
                mode: Mode::new(mode.bits()),
                owner: uid.to_string(),
                group: gid.to_string(),
            })),
            Seen::Link(target) => {
                change.steps.push(Step::Link { path: path.to_owned(), target: target.clone() });
            }
            _ => change.steps.push(Step::RemoveFile { path: path.to_owned() }),
        }
    }
}
