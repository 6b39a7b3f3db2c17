//! What `vmctl create` takes where nothing else is said, from any folder: the manifest, and what new VMs in it have. An
//! apply writes it from the manifest's section `vmctl`, and it is read by nothing else.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{GuestUserEntry, LoadError, parse_as};
use crate::types::ResourceName;

/// The content of [`Defaults::PATH`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// The manifest that new VMs are written into.
    pub manifest: PathBuf,
    /// What they are on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ResourceName>,
    /// Where their disks are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<ResourceName>,
    /// Who gets into them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<GuestUserEntry>,
}

impl Defaults {
    /// Where they are on a host.
    pub const PATH: &str = "/etc/vmctl/defaults.yaml";
    /// How the line with the manifest begins.
    pub const MANIFEST: &str = "manifest: ";
    /// How a file of ours begins. What else lies there is somebody's.
    pub const HEAD: &str = "# Written by gpuvm";

    /// The file's text.
    pub fn text(&self) -> String {
        // Plain data has a form in YAML.
        let yaml = serde_yaml::to_string(self).unwrap_or_default();
        format!(
            "{}: what `vmctl create` takes where nothing else is said, from any\n\
             # folder. An apply writes it from the section `vmctl` of the manifest: change it\n\
             # there.\n{yaml}",
            Self::HEAD
        )
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// Every mistake in it, at its place.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        parse_as(Self::PATH, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let all = Defaults {
            manifest: "/srv/a host/#1: \"x\".yaml".into(),
            network: Some("br0".parse().unwrap()),
            pool: Some("fast".parse().unwrap()),
            user: Some(GuestUserEntry {
                name: "alice".parse().unwrap(),
                ssh_keys: vec!["file:alice.pub".parse().unwrap()],
            }),
        };
        assert_eq!(Defaults::parse(&all.text()).unwrap(), all);
        let few = Defaults { manifest: "/root/host.yaml".into(), network: None, pool: None, user: None };
        assert_eq!(few.text().lines().last(), Some("manifest: /root/host.yaml"));
        assert_eq!(Defaults::parse(&few.text()).unwrap(), few);
        assert!(Defaults::parse("manifest: /x\nnetwrok: br0\n").is_err());
    }
}
