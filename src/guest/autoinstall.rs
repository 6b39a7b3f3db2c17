//! What Subiquity, the installer on Ubuntu's media, is told: its own document, as `user-data` of a NoCloud seed ("Autoinstall
//! configuration reference manual", "Cloud-init and autoinstall interaction" in Subiquity's documentation). What a guest from
//! an image is told by cloud-init, an installed one is told by the installer or, at its first boot, by the cloud-init that
//! the installer leaves behind.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::cloud_init::{Guest, LABEL, merge, pretty, write_files};
use super::iso;

/// The serial number that the one disk has which is installed to: it has that while the installer runs, and no other has it.
/// A virtio disk's serial number has at most 20 bytes (VIRTIO_BLK_ID_BYTES).
pub const DISK_SERIAL: &str = "gpuvm-install";

/// A guest that is to be installed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoinstall {
    /// What it is to be.
    pub installs: Guest,
}

impl Autoinstall {
    /// `user-data`. `keys` are those of the user, fetched by now.
    pub fn user_data(&self, keys: &[String]) -> String {
        format!("#cloud-config\n{}\n", pretty(&json!({ "autoinstall": self.document(keys) })))
    }

    /// Below `autoinstall`.
    fn document(&self, keys: &[String]) -> Value {
        let guest = &self.installs;
        let mut more = guest.user_data.clone();
        let own = more.remove("autoinstall");
        let mut install = Map::new();
        let mut set = |name: &str, value: Value| _ = install.insert(name.to_owned(), value);
        set("version", json!(1));
        set("interactive-sections", json!([]));
        // cloud-init's words for what the installer sets up itself.
        for name in ["locale", "timezone"] {
            if let Some(value) = more.get(name).filter(|v| v.is_string()) {
                set(name, value.clone());
            }
        }
        if let Some(layout) = more.get("keyboard").and_then(|k| k.get("layout")) {
            let variant = more.get("keyboard").and_then(|k| k.get("variant")).cloned().unwrap_or(json!(""));
            set("keyboard", json!({ "layout": layout, "variant": variant }));
        }
        if let Some(user) = &guest.user {
            // A text that no password encrypts to: it lets nobody in (shadow(5)).
            set("identity", json!({ "username": user.name, "hostname": guest.hostname, "password": "!" }));
            set("ssh", json!({ "install-server": true, "authorized-keys": keys, "allow-pw": false }));
        }
        set("packages", json!(guest.packages));
        if let Some(mut network) = guest.network() {
            // The desktop shows the network that NetworkManager has.
            network["renderer"] = json!("NetworkManager");
            set("network", network);
        }
        // Whatever else is plugged in is not looked at; without this, it would be the largest disk.
        let disk = json!({ "serial": format!("*{DISK_SERIAL}*") });
        set("storage", json!({ "layout": { "name": "direct", "match": disk } }));
        set("shutdown", json!("poweroff"));
        set("user-data", Value::Object(self.first_boot(more)));
        if let Some(Value::Object(own)) = &own {
            merge(&mut install, own);
        }
        Value::Object(install)
    }

    /// What the guest's own cloud-init does at its first boot.
    fn first_boot(&self, more: Map<String, Value>) -> Map<String, Value> {
        let guest = &self.installs;
        let mut files = guest.files.clone();
        // Nobody has a password, so sudo asks for none.
        files.extend(guest.user.as_ref().map(|user| super::GuestFile {
            path: "/etc/sudoers.d/90-gpuvm".to_owned(),
            content: format!("{} ALL=(ALL) NOPASSWD:ALL\n", user.name),
            mode: "0440".to_owned(),
            owner: "root:root".to_owned(),
        }));
        let mut data = Map::new();
        if guest.user.is_none() {
            data.insert("hostname".to_owned(), json!(guest.hostname));
        }
        data.insert("disable_root".to_owned(), json!(true));
        if !files.is_empty() {
            data.insert("write_files".to_owned(), write_files(&files));
        }
        if !guest.commands.is_empty() {
            data.insert("runcmd".to_owned(), json!(guest.commands));
        }
        merge(&mut data, &more);
        data
    }

    /// The whole image. `made_from` is what tells it from others.
    pub fn seed(&self, keys: &[String], made_from: &str) -> Vec<u8> {
        let (user, meta) = (self.user_data(keys), self.installs.meta_data());
        iso::image(LABEL, &[("user-data", user.as_bytes()), ("meta-data", meta.as_bytes())], made_from)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::guest::cloud_init::tests::guest;
    use crate::validators;

    pub(crate) fn autoinstall() -> Autoinstall {
        let more = json!({
            "locale": "de_DE.UTF-8", "timezone": "Europe/Berlin", "keyboard": { "layout": "de", "options": "x" },
            "bootcmd": ["true"], "autoinstall": { "codecs": { "install": true }, "packages": ["vim"] },
        });
        Autoinstall { installs: Guest { user_data: more.as_object().unwrap().clone(), ..guest() } }
    }

    fn document(of: &Autoinstall) -> Value {
        let text = of.user_data(&["ssh-ed25519 AAAA alice".to_owned()]);
        let whole: Value = serde_yaml::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        // Any other key beside it ends the installation (Subiquity since 24.04).
        assert_eq!(whole.as_object().unwrap().len(), 1);
        whole["autoinstall"].clone()
    }

    #[test]
    fn nothing_is_asked_and_nobody_gets_a_password() {
        let is = document(&autoinstall());
        assert_eq!(
            (&is["version"], &is["interactive-sections"], &is["shutdown"]),
            (&json!(1), &json!([]), &json!("poweroff"))
        );
        assert_eq!(is["identity"], json!({ "username": "alice", "hostname": "web", "password": "!" }));
        assert_eq!(is["ssh"]["authorized-keys"], json!(["ssh-ed25519 AAAA alice"]));
        assert_eq!(is["ssh"]["allow-pw"], false);
        let files = is["user-data"]["write_files"].as_array().unwrap();
        assert_eq!(files.last().unwrap()["content"], "alice ALL=(ALL) NOPASSWD:ALL\n");
        assert!(is["user-data"].get("users").is_none(), "the installer makes the user");
    }

    #[test]
    fn only_the_disk_that_is_made_for_it_is_installed_to() {
        let is = document(&autoinstall());
        assert_eq!(is["storage"]["layout"], json!({ "name": "direct", "match": { "serial": "*gpuvm-install*" } }));
        assert!(DISK_SERIAL.len() <= 20);
    }

    #[test]
    fn cloud_inits_words_of_language_go_to_the_installer_too() {
        let is = document(&autoinstall());
        assert_eq!((&is["locale"], &is["timezone"]), (&json!("de_DE.UTF-8"), &json!("Europe/Berlin")));
        assert_eq!(is["keyboard"], json!({ "layout": "de", "variant": "" }));
        assert_eq!((&is["user-data"]["bootcmd"], &is["codecs"]["install"]), (&json!(["true"]), &json!(true)));
        assert!(is["user-data"].get("autoinstall").is_none());
        assert_eq!(is["packages"], json!(["qemu-guest-agent", "vim"]), "lists are joined");
        assert_eq!(is["network"]["ethernets"]["lan"]["match"]["macaddress"], "52:54:00:01:02:03");
    }

    #[test]
    fn subiquitys_schema_and_cloud_inits_accept_it() {
        let bare = Guest { user: None, nic: None, files: vec![], user_data: Map::new(), ..guest() };
        for one in [autoinstall(), Autoinstall { installs: bare }] {
            let is = document(&one);
            validators::subiquity(&is);
            validators::cloud_init(&format!("#cloud-config\n{}\n", is["user-data"]));
        }
    }

    #[test]
    fn both_documents_are_on_the_image() {
        let image = autoinstall().seed(&[], "abc");
        let names: Vec<_> = iso::files(&image, true).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["meta-data", "user-data"]);
    }
}
