//! The documents themselves. They are written as JSON, which every reader of YAML reads, and in which no text can be taken
//! for a number or a truth value (cloud-init's reader takes `no` for false).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::keys::KeySource;
use crate::types::MacAddress;

/// The label that cloud-init looks for.
pub const LABEL: &str = "cidata";

/// More keys than this are no person's.
pub const MOST_KEYS: usize = 64;

/// A guest as it is to be set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Its name in its own eyes.
    pub hostname: String,
    /// What tells cloud-init whether it has set this guest up already: another one makes it do so once more.
    pub instance: String,
    /// Who gets in.
    pub user: Option<GuestUser>,
    /// Packages.
    pub packages: Vec<String>,
    /// Files.
    pub files: Vec<GuestFile>,
    /// Commands at the end of the first boot, each as a list of words.
    pub commands: Vec<Vec<String>>,
    /// Its network card.
    pub nic: Option<GuestNic>,
    /// More of cloud-init's own words, merged over all that.
    pub user_data: Map<String, Value>,
}

/// A user of a guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestUser {
    /// The name.
    pub name: String,
    /// Keys that let in.
    pub keys: Vec<KeySource>,
}

/// A file of a guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestFile {
    /// Where.
    pub path: String,
    /// What.
    pub content: String,
    /// Permission bits, in octal.
    pub mode: String,
    /// `user:group`.
    pub owner: String,
}

/// A network card of a guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestNic {
    /// Its address on the wire.
    pub mac: MacAddress,
    /// Addresses with the length of their prefix; DHCP where there is none.
    pub addresses: Vec<String>,
    /// Where packets go that are for others.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
}

impl Guest {
    /// `user-data`. `keys` are those of the user, fetched by now.
    pub fn user_data(&self, keys: &[String]) -> String {
        let mut data = Map::new();
        let mut set = |name: &str, value: Value| _ = data.insert(name.to_owned(), value);
        set("hostname", json!(self.hostname));
        set("manage_etc_hosts", json!("localhost"));
        set("ssh_pwauth", json!(false));
        set("disable_root", json!(true));
        if let Some(user) = &self.user {
            // No password is set, and none lets in: so sudo asks for none.
            set(
                "users",
                json!([{
                    "name": user.name,
                    "groups": ["adm", "sudo"],
                    "shell": "/bin/bash",
                    "sudo": "ALL=(ALL) NOPASSWD:ALL",
                    "lock_passwd": true,
                    "ssh_authorized_keys": keys,
                }]),
            );
        }
        if !self.packages.is_empty() {
            set("package_update", json!(true));
            set("packages", json!(self.packages));
        }
        if !self.files.is_empty() {
            set("write_files", write_files(&self.files));
        }
        if !self.commands.is_empty() {
            set("runcmd", json!(self.commands));
        }
        merge(&mut data, &self.user_data);
        format!("#cloud-config\n{}\n", pretty(&Value::Object(data)))
    }

    /// `meta-data`.
    pub fn meta_data(&self) -> String {
        pretty(&json!({ "instance-id": self.instance, "local-hostname": self.hostname })) + "\n"
    }

    /// `network-config`, version 2: netplan's words.
    pub fn network_config(&self) -> Option<String> {
        Some(pretty(&self.network()?) + "\n")
    }

    pub(super) fn network(&self) -> Option<Value> {
        let nic = self.nic.as_ref()?;
        let mut card = json!({ "match": { "macaddress": nic.mac.to_string() } });
        if nic.addresses.is_empty() {
            card["dhcp4"] = json!(true);
            // The address of the card is what leases are known by elsewhere.
            card["dhcp-identifier"] = json!("mac");
        } else {
            card["addresses"] = json!(nic.addresses);
            if let Some(gateway) = nic.gateway {
                let mut route = json!({ "to": if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "via": gateway });
                // An address alone is in no network with its gateway, which is on this link all the same.
                if nic.addresses.iter().all(|a| a.ends_with("/32") || a.ends_with("/128")) {
                    route["on-link"] = json!(true);
                }
                card["routes"] = json!([route]);
            }
        }
        if !nic.nameservers.is_empty() {
            card["nameservers"] = json!({ "addresses": nic.nameservers });
        }
        Some(json!({ "version": 2, "ethernets": { "lan": card } }))
    }

    /// The whole image. `made_from` is what tells it from others.
    pub fn seed(&self, keys: &[String], made_from: &str) -> Vec<u8> {
        let (user, meta, network) = (self.user_data(keys), self.meta_data(), self.network_config());
        let mut files = vec![("user-data", user.as_bytes()), ("meta-data", meta.as_bytes())];
        files.extend(network.iter().map(|n| ("network-config", n.as_bytes())));
        super::iso::image(LABEL, &files, made_from)
    }
}

/// Files in cloud-init's words.
pub(super) fn write_files(files: &[GuestFile]) -> Value {
    let file = |file: &GuestFile| {
        // A user of the guest's own is made later than files are written.
        let later = file.owner.split(':').any(|name| name != "root");
        let mut value = json!({
            "path": file.path, "content": file.content, "permissions": file.mode, "owner": file.owner,
        });
        if let (true, Some(value)) = (later, value.as_object_mut()) {
            value.insert("defer".to_owned(), json!(true));
        }
        value
    };
    files.iter().map(file).collect()
}

pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Maps are merged, lists are joined, and anything else is replaced.
pub(super) fn merge(into: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (into.get_mut(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => old.extend(new.iter().cloned()),
            _ => _ = into.insert(name.clone(), value.clone()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::validators;

    pub(crate) fn guest() -> Guest {
        Guest {
            hostname: "web".to_owned(),
            instance: "web-1".to_owned(),
            user: Some(GuestUser { name: "alice".to_owned(), keys: vec![KeySource::GitHub("alice".to_owned())] }),
            packages: vec!["qemu-guest-agent".to_owned()],
            files: vec![
                GuestFile {
                    path: "/etc/motd".to_owned(),
                    content: "no\n".to_owned(),
                    mode: "0644".to_owned(),
                    owner: "root:root".to_owned(),
                },
                GuestFile {
                    path: "/home/alice/x".to_owned(),
                    content: String::new(),
                    mode: "0600".to_owned(),
                    owner: "alice:alice".to_owned(),
                },
            ],
            commands: vec![vec!["systemctl".to_owned(), "enable".to_owned()]],
            nic: Some(GuestNic {
                mac: "52:54:00:01:02:03".parse().unwrap(),
                addresses: vec!["192.168.1.50/24".to_owned()],
                gateway: Some("192.168.1.1".parse().unwrap()),
                nameservers: vec!["1.1.1.1".parse().unwrap()],
            }),
            user_data: json!({ "packages": ["vim"], "ssh_pwauth": true, "growpart": { "mode": "off" } })
                .as_object()
                .unwrap()
                .clone(),
        }
    }

    /// What a reader of YAML sees in a document.
    fn read(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn nobody_gets_a_password_and_more_words_are_merged() {
        let text = guest().user_data(&["ssh-ed25519 AAAA alice".to_owned()]);
        assert!(text.starts_with("#cloud-config\n"));
        let data = read(&text);
        assert_eq!(data["users"][0]["lock_passwd"], true);
        assert_eq!(data["users"][0]["ssh_authorized_keys"], json!(["ssh-ed25519 AAAA alice"]));
        assert_eq!(data["packages"], json!(["qemu-guest-agent", "vim"]));
        assert_eq!((&data["ssh_pwauth"], &data["growpart"]["mode"]), (&json!(true), &json!("off")));
        assert_eq!(data["write_files"][0]["content"], "no\n");
        assert_eq!((data["write_files"][0].get("defer"), &data["write_files"][1]["defer"]), (None, &json!(true)));
        let bare = Guest { user_data: Map::new(), user: None, ..guest() };
        let data = read(&bare.user_data(&[]));
        assert!(data.get("users").is_none() && data["ssh_pwauth"] == false && data["disable_root"] == true);
    }

    #[test]
    fn the_network_is_told_by_the_cards_address() {
        let config = read(&guest().network_config().unwrap());
        let card = &config["ethernets"]["lan"];
        assert_eq!((&config["version"], &card["match"]["macaddress"]), (&json!(2), &json!("52:54:00:01:02:03")));
        assert_eq!(card["routes"], json!([{ "to": "0.0.0.0/0", "via": "192.168.1.1" }]));
        assert!(card.get("dhcp4").is_none());
        let alone = GuestNic { addresses: vec!["203.0.113.7/32".to_owned()], ..guest().nic.unwrap() };
        let config = read(&Guest { nic: Some(alone), ..guest() }.network_config().unwrap());
        let route = json!({ "to": "0.0.0.0/0", "via": "192.168.1.1", "on-link": true });
        assert_eq!(config["ethernets"]["lan"]["routes"], json!([route]));
        let dhcp = GuestNic { addresses: vec![], gateway: None, nameservers: vec![], ..guest().nic.unwrap() };
        let config = read(&Guest { nic: Some(dhcp), ..guest() }.network_config().unwrap());
        assert_eq!(config["ethernets"]["lan"]["dhcp4"], true);
        assert_eq!(Guest { nic: None, ..guest() }.network_config(), None);
        assert_eq!(read(&guest().meta_data())["instance-id"], "web-1");
    }

    #[test]
    fn the_documents_are_what_their_readers_say() {
        let dhcp = GuestNic { addresses: vec![], gateway: None, nameservers: vec![], ..guest().nic.unwrap() };
        let six = GuestNic {
            addresses: vec!["2001:db8::5/64".to_owned()],
            gateway: Some("2001:db8::1".parse().unwrap()),
            ..guest().nic.unwrap()
        };
        for nic in [guest().nic.unwrap(), dhcp, six] {
            validators::netplan(&Guest { nic: Some(nic), ..guest() }.network_config().unwrap());
        }
        let bare =
            Guest { user: None, packages: vec![], files: vec![], commands: vec![], user_data: Map::new(), ..guest() };
        for guest in [guest(), bare] {
            validators::cloud_init(&guest.user_data(&["ssh-ed25519 AAAA alice".to_owned()]));
        }
    }

    #[test]
    fn all_of_it_is_on_the_image() {
        let image = guest().seed(&[], "abc");
        let names: Vec<_> = crate::guest::iso::files(&image, true).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["meta-data", "network-config", "user-data"]);
        assert_eq!(crate::guest::iso::made_from(&image), Some("abc"));
    }
}
