//! The seed of a VM as that of its clone: all that the guest was told is in it, keys included, which no plan has. What tells
//! one guest from another is its own.

use serde_json::{Value, json};

use super::{ANSWER_FILE, LABEL, iso};
use crate::types::MacAddress;

/// What of a clone's seed is its own.
#[derive(Debug, Clone, Copy)]
pub struct Again<'a> {
    /// Its guest's name.
    pub hostname: &'a str,
    /// What tells cloud-init to set it up anew.
    pub instance: &'a str,
    /// The address of its network card, by which the guest knows it; the addresses on it are asked for by DHCP.
    pub mac: Option<MacAddress>,
    /// What the image says that it was made from.
    pub inputs: &'a str,
}

/// The image of the clone; else why there is none.
pub fn again(image: &[u8], own: Again<'_>) -> Result<Vec<u8>, String> {
    if iso::made_from(image).is_none() {
        return Err("it is no seed of gpuvm's".to_owned());
    }
    let mut files = iso::files(image, true).ok_or("it is damaged")?;
    // There is a password in it, and what is a clone is installed.
    if files.iter().any(|(name, _)| name == ANSWER_FILE) {
        return Err("it is for Windows' Setup, and a clone is an installed Windows".to_owned());
    }
    // An installed system reads its seed no more (Subiquity leaves it cloud-init without a source, and then disables that).
    if files.iter().any(|(name, content)| name == "user-data" && installs(content)) {
        return Err("it is for Ubuntu's installer, and a clone is an installed Ubuntu".to_owned());
    }
    for (name, content) in &mut files {
        let text = String::from_utf8(std::mem::take(content)).map_err(|_| format!("its {name} is no text"))?;
        let body = text.strip_prefix("#cloud-config\n");
        let mut value: Value = serde_json::from_str(body.unwrap_or(&text)).map_err(|e| format!("its {name}: {e}"))?;
        match name.as_str() {
            "meta-data" => {
                value["instance-id"] = json!(own.instance);
                value["local-hostname"] = json!(own.hostname);
            }
            "user-data" => {
                for name in ["hostname", "fqdn"].iter().filter(|n| value.get(**n).is_some()).collect::<Vec<_>>() {
                    value[*name] = json!(own.hostname);
                }
            }
            "network-config" => network(&mut value, own.mac),
            _ => {}
        }
        let head = if body.is_some() { "#cloud-config\n" } else { "" };
        let text = serde_json::to_string_pretty(&value).map_err(|e| e.to_string())?;
        *content = format!("{head}{text}\n").into_bytes();
    }
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
    Ok(iso::image(LABEL, &files, own.inputs))
}

/// Whether a `user-data` is the installer's: the one key that it has.
fn installs(user_data: &[u8]) -> bool {
    let text = user_data.strip_prefix(b"#cloud-config\n").unwrap_or(user_data);
    serde_json::from_slice::<Value>(text).is_ok_and(|value| value.get("autoinstall").is_some())
}

/// Two guests with one address would take it from each other.
fn network(value: &mut Value, mac: Option<MacAddress>) {
    let Some(card) = value.get_mut("ethernets").and_then(|e| e.get_mut("lan")).and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(mac) = mac {
        card.insert("match".to_owned(), json!({ "macaddress": mac.to_string() }));
    }
    if card.remove("addresses").is_some() {
        card.remove("routes");
        card.insert("dhcp4".to_owned(), json!(true));
        card.insert("dhcp-identifier".to_owned(), json!("mac"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::cloud_init::tests::guest;

    #[test]
    fn an_answer_file_is_copied_to_nobody() {
        let told = crate::guest::Told::Windows(crate::guest::windows::tests::windows());
        let own = Again { hostname: "copy", instance: "gpuvm-copy-1", mac: None, inputs: "def" };
        assert!(again(&told.seed(&[], Some("secret"), "abc"), own).unwrap_err().contains("Setup"));
        let told = crate::guest::Told::Autoinstall(crate::guest::autoinstall::tests::autoinstall());
        assert!(again(&told.seed(&[], None, "abc"), own).unwrap_err().contains("installed Ubuntu"));
    }

    #[test]
    fn a_clone_is_told_the_same_and_that_it_is_another() {
        let key = "ssh-ed25519 AAAA canary".to_owned();
        let image = guest().seed(std::slice::from_ref(&key), "abc");
        let mac: MacAddress = "52:54:00:00:00:99".parse().unwrap();
        let own = Again { hostname: "copy", instance: "gpuvm-copy-1", mac: Some(mac), inputs: "def" };
        let made = again(&image, own).unwrap();
        assert_eq!(iso::made_from(&made), Some("def"));
        let read = |image: &[u8], name: &str| {
            let files = iso::files(image, true).unwrap();
            let text = files.into_iter().find(|(n, _)| n == name).map(|(_, c)| String::from_utf8(c).unwrap()).unwrap();
            serde_json::from_str::<Value>(text.trim_start_matches("#cloud-config\n")).unwrap()
        };
        let meta = read(&made, "meta-data");
        assert_eq!(meta, json!({ "instance-id": "gpuvm-copy-1", "local-hostname": "copy" }));
        let mut user = read(&image, "user-data");
        user["hostname"] = json!("copy");
        assert_eq!(read(&made, "user-data"), user, "all else is as it was, keys too");
        assert!(user.to_string().contains("canary"));
        let card = &read(&made, "network-config")["ethernets"]["lan"];
        assert_eq!(card["match"]["macaddress"], "52:54:00:00:00:99");
        assert!(card.get("addresses").is_none() && card["dhcp4"] == true, "{card}");
        assert!(again(&image[..3000], own).is_err() && again(b"somebody's", own).is_err());
        for cut in [image.len() / 2, 25 * 2048, 24 * 2048 + 40] {
            assert!(again(&image[..cut], own).is_err(), "cut off at {cut}");
        }
    }
}
