//! Rules for what a guest is told: its users, cloud-init, its address, and Windows' Setup.

use super::Checks;
use crate::manifest::guest_address::mistakes;
use crate::manifest::yaml_tree::Place;
use crate::manifest::{Firmware, GuestUserEntry, VmEntry, WindowsEntry};

impl<'a> Checks<'a> {
    /// Who gets into a guest.
    pub(super) fn user(&mut self, user: &GuestUserEntry, at: &Place<'a>) {
        if user.name.as_str() == "root"
            && let Some(at) = at.get("name")
        {
            let help = "name another; it may do everything by sudo";
            self.value(&at, "`root` does not log in".to_owned(), "no login for root", Some(help));
        }
        let keys = at.get("sshKeys");
        if let Some(keys) = keys.as_ref().filter(|_| user.ssh_keys.is_empty()) {
            let help = "write at least one, such as `file:alice.pub`";
            let message = format!("nobody could log in as `{}`", user.name);
            self.value(keys, message, "no key, and there is no password", Some(help));
        }
        for (key, at) in user.ssh_keys.iter().zip(keys.map(|keys| keys.items()).unwrap_or_default()) {
            if let Some(path) = key.beside() {
                self.beside(path, &at);
            }
        }
    }

    /// What cloud-init is to do.
    pub(super) fn guest(&mut self, vm: &VmEntry, place: &Place<'a>) {
        if let (Some(user), Some(at)) = (&vm.user, place.get("user")) {
            self.user(user, &at);
        }
        if let (Some(_), Some(at)) = (&vm.ubuntu, place.get("ubuntu")) {
            let of = vm
                .image
                .as_ref()
                .map(|name| self.manifest.images.get(name).and_then(|i| i.from.as_ref()).unwrap_or(name));
            let own = vm.image.as_ref().is_some_and(|name| {
                self.manifest.images.get(name).is_some_and(|i| i.url.is_some() || i.path.is_some())
            });
            if !own && of.is_none_or(|name| !name.as_str().starts_with("ubuntu-")) && !place.lacks("image") {
                let help = "write `image: ubuntu-24.04`, or take it out";
                let message = "`ubuntu` is for images of Ubuntu's".to_owned();
                self.wrong(&at, at.key_span(), message, "not one here", Some(help.to_owned()));
            }
        }
        let more = place.get("cloudInit");
        for (path, entry) in vm.cloud_init.iter().flat_map(|more| &more.files) {
            let Some(at) = more.as_ref().and_then(|m| m.get("files")?.get(path.as_str())) else { continue };
            if entry.content.is_some() == entry.source.is_some() && !at.lacks("content") && !at.lacks("source") {
                let message =
                    format!("`{path}` has {}", if entry.content.is_some() { "two contents" } else { "no content" });
                let help = "give one of `content` and `source`";
                self.wrong(&at, at.key_span(), message, "what is to be in it?", Some(help.to_owned()));
            }
            if let (Some(source), Some(at)) = (&entry.source, at.get("source")) {
                self.beside(source, &at);
            }
        }
        if let (Some(nic), Some(at)) = (&vm.network, place.get("network")) {
            if let Some(at) = at.get("gateway").filter(|_| nic.address.is_none() && !at.lacks("address")) {
                let help = "write `address` beside it, or take it out";
                self.value(&at, "a gateway without an address".to_owned(), "DHCP gives one", Some(help));
            }
            let v4 = |text: &str| !text.contains(':');
            if let (Some(gateway), Some(address), Some(at)) = (&nic.gateway, &nic.address, at.get("gateway"))
                && v4(gateway.as_str()) != v4(address.as_str())
            {
                let message = format!("`{gateway}` is no gateway for `{address}`");
                self.value(&at, message, "of the other family", Some("take one of the same kind of address"));
            }
            for wrong in mistakes(nic) {
                let at = at.get(wrong.field).unwrap_or_else(|| at.clone());
                self.value(&at, wrong.message, &wrong.label, Some(&wrong.help));
            }
        }
    }

    /// What cannot be with Windows 11.
    pub(super) fn windows(&mut self, vm: &VmEntry, place: &Place<'a>) {
        if !vm.is_windows() {
            return;
        }
        if let Some(at) = place.get("firmware").filter(|_| vm.firmware != Firmware::UefiSecure) {
            let help = "write `firmware: uefi-secure`, or leave it out";
            self.value(&at, "Windows 11 wants secure boot".to_owned(), "not with this", Some(help));
        }
        for field in ["user", "cloudInit", "ubuntu"] {
            if let Some(at) = place.get(field) {
                let help = "take it out; what its Setup is to be told goes into `windows`";
                let message = format!("`{field}` is for guests with cloud-init, which Windows has not");
                self.wrong(&at, at.key_span(), message, "not in Windows", Some(help.to_owned()));
            }
        }
        if let Some(at) = place.get("network").and_then(|n| n.get("address")) {
            let help = "take it out, and have your DHCP server keep one for its `mac`, or set it in Windows";
            self.value(&at, "Windows is not told its address".to_owned(), "for guests with cloud-init", Some(help));
        }
        if let (Some(told), Some(at)) = (&vm.windows, place.get("windows")) {
            self.windows_setup(told, &at);
        }
        if let (Some(image), Some(at)) = (vm.image.as_ref().filter(|_| vm.windows.is_some()), place.get("windows")) {
            let message = format!("`image: {image}` is Windows set up already");
            self.wrong(&at, at.key_span(), message, "for Setup only", Some("keep one of them".to_owned()));
        }
    }

    fn windows_setup(&mut self, told: &WindowsEntry, at: &Place<'a>) {
        match (&told.user, &told.password_file) {
            (Some(user), None) if !at.lacks("passwordFile") => {
                let help = "write `passwordFile: /root/NAME.password`, a file of root's alone (0600) with the password in \
                            its one line; or leave `user` out, and Windows asks at its first boot";
                let user_at = at.get("user").unwrap_or_else(|| at.clone());
                self.value(&user_at, format!("`{user}` has no password"), "nobody gets a default one", Some(help));
            }
            (None, Some(_)) if !at.lacks("user") => {
                let file = at.get("passwordFile").unwrap_or_else(|| at.clone());
                let help = "write `user` beside it, or take it out";
                self.value(&file, "a password for nobody".to_owned(), "whose?", Some(help));
            }
            _ => {}
        }
        // Accounts that every Windows has; and names of users have at most 20 characters (New-LocalUser).
        let taken = ["administrator", "guest", "defaultaccount", "system", "none"];
        if let (Some(user), Some(at)) = (&told.user, at.get("user")) {
            if taken.contains(&user.as_str()) {
                let message = format!("`{user}` is an account of Windows' own");
                self.value(&at, message, "taken", Some("take another name"));
            } else if user.as_str().len() > 20 {
                let message = format!("`{user}` is too long for a user of Windows'");
                self.value(&at, message, "at most 20 characters", None);
            }
        }
    }
}
