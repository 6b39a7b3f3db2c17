//! What is on a seed: one of the three that guests understand.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ANSWER_FILE, Autoinstall, Guest, KeySource, Windows, iso, windows};

/// What a guest is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Told {
    /// Windows' Setup.
    Windows(Windows),
    /// Ubuntu's installer.
    Autoinstall(Autoinstall),
    /// cloud-init.
    CloudInit(Guest),
}

impl Told {
    /// The keys that let in.
    pub fn keys(&self) -> &[KeySource] {
        self.guest().and_then(|guest| guest.user.as_ref()).map(|u| u.keys.as_slice()).unwrap_or_default()
    }

    /// What a Linux is to be, whoever makes it so.
    pub fn guest(&self) -> Option<&Guest> {
        match self {
            Self::CloudInit(guest) | Self::Autoinstall(Autoinstall { installs: guest }) => Some(guest),
            Self::Windows(_) => None,
        }
    }

    /// The file of the host's with a password.
    pub fn password_file(&self) -> Option<&Path> {
        match self {
            Self::Windows(windows) => windows.account.as_ref().map(|a| a.password_file.as_path()),
            Self::CloudInit(_) | Self::Autoinstall(_) => None,
        }
    }

    /// The whole image, with the keys and the password that were read by now. `made_from` is what tells it from others.
    pub fn seed(&self, keys: &[String], password: Option<&str>, made_from: &str) -> Vec<u8> {
        match self {
            Self::CloudInit(guest) => guest.seed(keys, made_from),
            Self::Autoinstall(told) => told.seed(keys, made_from),
            Self::Windows(told) => {
                let answers = told.answer_file(password);
                iso::image(windows::LABEL, &[(ANSWER_FILE, answers.as_bytes())], made_from)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{autoinstall, cloud_init, windows};

    #[test]
    fn each_is_read_back_as_what_it_was() {
        for told in [
            Told::Windows(windows::tests::windows()),
            Told::Autoinstall(autoinstall::tests::autoinstall()),
            Told::CloudInit(cloud_init::tests::guest()),
        ] {
            assert_eq!(serde_json::from_slice::<Told>(&serde_json::to_vec(&told).unwrap()).unwrap(), told);
        }
        let told = Told::Windows(windows::tests::windows());
        let image = told.seed(&[], Some("secret"), "abc");
        assert_eq!(iso::made_from(&image), Some("abc"));
        let [(name, answers)] = &iso::files(&image, true).unwrap()[..] else { panic!("one file") };
        assert!(name == ANSWER_FILE && String::from_utf8_lossy(answers).contains("<Value>secret</Value>"));
        assert_eq!(iso::files(&image, false).unwrap()[0].0, "AUTOUNATTEND.XML;1");
    }
}
