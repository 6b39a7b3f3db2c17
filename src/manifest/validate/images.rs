//! Rules for `images`, and for what VMs make of one: a disk that begins as it, an installer's medium, a CD-ROM.

use super::Checks;
use crate::image;
use crate::manifest::yaml_de::closest;
use crate::manifest::yaml_tree::Place;
use crate::manifest::{Firmware, VmEntry};

impl<'a> Checks<'a> {
    pub(super) fn images(&mut self) {
        let manifest = self.manifest;
        for (name, entry) in &manifest.images {
            let place = self.at(&["images", name.as_str()]);
            let known = image::builtin(name.as_str()).is_some();
            let given = ["from", "url", "path"].into_iter().filter_map(|f| Some((f, place.get(f)?)));
            let given: Vec<_> = given.collect();
            match &given[..] {
                [] if known => {}
                [] => {
                    let help = "give one of `from`, `url` and `path`";
                    let message = format!("`{name}` says not where it comes from, and is no built-in image");
                    self.wrong(&place, place.key_span(), message, "from where?", Some(help.into()));
                }
                [_] => {}
                // The medium of an installer, from elsewhere.
                [("from", _), _] if entry.from.as_ref().is_some_and(|from| installs(from.as_str())) => {}
                [(first, at), (again, again_at), ..] => {
                    let message = format!("`{name}` has both `{first}` and `{again}`");
                    let (one, two) = ((at.key_span(), "one"), (again_at, again_at.key_span(), "another"));
                    self.twice(one, two, message, Some("keep one of them"));
                }
            }
            let built_in = match &entry.from {
                Some(from) => {
                    if let Some(at) = place.get("from") {
                        self.built_in(&at, from.as_str());
                    }
                    given.len() == 1
                }
                None => known && given.is_empty(),
            };
            for field in ["baseUrl", "version"] {
                if let Some(at) = place.get(field).filter(|_| !built_in) {
                    let message = format!("`{name}` is no built-in image, so it has no `{field}`");
                    self.value(&at, message, "of built-in images only", Some("take it out, or write `from`"));
                }
            }
            if let (Some(one), Some(two)) = (place.get("sha256"), place.get("sha512")) {
                let message = format!("`{name}` has two digests");
                let (one, two) = ((one.key_span(), "one"), (&two, two.key_span(), "another"));
                self.twice(one, two, message, Some("keep one of them"));
            }
            let pinned = entry.sha256.is_some() || entry.sha512.is_some();
            if let Some(at) = place.get("url").filter(|_| entry.url.is_some() && !pinned) {
                let help = "write its `sha256` or `sha512` beside it";
                let message = format!("nothing says what `{name}` has to be");
                self.value(&at, message, "may be anything by the time it is fetched", Some(help));
            }
            for (field, address) in [("url", &entry.url), ("baseUrl", &entry.base_url)] {
                let plain = address.as_ref().is_some_and(|a| a.as_str().starts_with("http://"));
                if let Some(at) = place.get(field).filter(|_| plain && !pinned) {
                    let message = format!("`{name}` comes over plain http");
                    let help = "use https, or pin its `sha256` or `sha512`";
                    self.value(&at, message, "anyone on the way can change it", Some(help));
                }
            }
        }
    }

    fn built_in(&mut self, at: &Place<'_>, name: &str) {
        if image::builtin(name).is_none() {
            let names = image::names();
            let label = match closest(name, names.iter().map(String::as_str)) {
                Some(best) => format!("no built-in image has this name; did you mean `{best}`?"),
                None => "no built-in image has this name".to_owned(),
            };
            let help = format!("there are {}, and Ubuntu's other releases by number", names.join(", "));
            self.wrong(at, at.span(), format!("unknown image `{name}`"), &label, Some(help));
        }
    }

    /// What a VM's first disk begins as.
    pub(super) fn image(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let (Some(name), Some(at)) = (&vm.image, place.get("image")) else { return };
        let declared = self.names("images");
        if !declared.contains(&name.as_str()) && image::builtin(name.as_str()).is_none() && !self.unreadable("images") {
            let built_in = image::names();
            let all = declared.iter().copied().chain(built_in.iter().map(String::as_str));
            let label = match closest(name.as_str(), all) {
                Some(best) => format!("no image has this name; did you mean `{best}`?"),
                None => "no image has this name".to_owned(),
            };
            let help = format!(
                "name it under `images`; built in: {}, and Ubuntu's other releases by number",
                built_in.join(", ")
            );
            self.wrong(&at, at.span(), format!("unknown image `{name}`"), &label, Some(help));
        }
        if vm.disks.is_empty() && !vm.absent && place.get("disks").is_none_or(|d| d.items().is_empty()) {
            let message = format!("`image: {name}` has no disk to go to");
            self.value(&at, message, "the first disk begins as it", Some("write `disks: [20GiB]`"));
        }
    }

    /// A VM that is installed from a medium.
    pub(super) fn installed(&mut self, vm: &VmEntry, place: &Place<'a>) {
        let Some(name) = &vm.image else { return };
        let entry = self.manifest.images.get(name);
        let own = entry.is_some_and(|e| e.from.is_none() && (e.url.is_some() || e.path.is_some()));
        let of = entry.and_then(|e| e.from.as_ref()).unwrap_or(name);
        if own || !installs(of.as_str()) {
            return;
        }
        if let Some(at) = place.get("firmware").filter(|_| vm.firmware == Firmware::UefiSecure) {
            let message = "the installer's kernel is started directly, which secure boot refuses".to_owned();
            self.value(&at, message, "it trusts Ubuntu's boot loader only", Some("write `firmware: uefi`"));
        }
        if let Some(at) = place.get("boot") {
            let message = "a VM that boots a kernel of the host's never starts what is installed".to_owned();
            self.wrong(&at, at.key_span(), message, "in its place", Some("take it out".to_owned()));
        }
        let desktop = vm.ubuntu.as_ref().is_some_and(|ubuntu| ubuntu.desktop);
        if let Some(at) = place.get("ubuntu").and_then(|u| u.get("desktop")).filter(|_| desktop) {
            let message = "what this medium installs is a desktop".to_owned();
            self.value(&at, message, "for cloud images", Some("take it out"));
        }
    }

    /// CD-ROMs that are images: their place is known before they are fetched, by their digest.
    pub(super) fn media(&mut self, vm: &VmEntry, place: &Place<'a>) {
        if let Some(at) = place.get("windows").filter(|_| !vm.is_windows() && !place.lacks("guest")) {
            let help = "write `guest: windows-11`, or take it out";
            self.wrong(&at, at.key_span(), "a guest that is no Windows".to_owned(), "of it", Some(help.to_owned()));
        }
        let names = self.names("images");
        let items = place.get("media").map(|list| list.items()).unwrap_or_default();
        for (medium, at) in vm.media.iter().zip(items) {
            let Some(name) = medium.image() else { continue };
            self.known(&at, name.as_str(), &names, "image", "images");
            let Some(entry) = self.manifest.images.get(&name) else { continue };
            let image_at = self.at(&["images", name.as_str()]);
            if (entry.url.is_none() && entry.path.is_none()) || (entry.sha256.is_none() && !image_at.lacks("sha256")) {
                let message = format!("`{name}` is no CD-ROM whose digest is given");
                let help = format!(
                    "write `images: {{ {name}: {{ url: …, sha256: … }} }}`; a file of this host can be named by its path here"
                );
                self.value(&at, message, "needs `url` or `path`, and `sha256`", Some(&help));
            }
        }
    }
}

/// Whether a built-in image is the medium of an installer.
fn installs(name: &str) -> bool {
    image::builtin(name).is_some_and(|of| of.installs)
}
