//! The change of the host's network, and what must answer after it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FileEdit, FileWrite};
use crate::types::{InterfaceName, MacAddress};

/// A change of the host's network as one guarded whole: new files, removed files, what must answer afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSwitch {
    /// The bridge.
    pub bridge: InterfaceName,
    /// Its port.
    pub uplink: InterfaceName,
    /// The link that has the host's addresses now.
    pub from: InterfaceName,
    /// The link that has them afterwards.
    pub to: InterfaceName,
    /// The bridge's address, which is the uplink's.
    pub mac: MacAddress,
    /// Files that change at some places only.
    #[serde(default)]
    pub edit: Vec<FileEdit>,
    /// Files as they will be.
    #[serde(default)]
    pub write: Vec<FileWrite>,
    /// Files that go away.
    #[serde(default)]
    pub remove: Vec<PathBuf>,
    /// Links of ours that go away with the change.
    #[serde(default)]
    pub delete_links: Vec<InterfaceName>,
    /// Links that the change makes, and that go away when it is undone.
    #[serde(default)]
    pub made_links: Vec<InterfaceName>,
    /// What must answer; anything that did not answer before the change is left out when the step runs.
    pub proofs: BTreeSet<Proof>,
    /// How long the guard waits for the proofs, in seconds.
    pub patience_s: u32,
}

impl NetworkSwitch {
    /// The files that it changes in whichever way.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.edit.iter().map(|e| &e.path).chain(self.write.iter().map(|f| &f.path)).chain(&self.remove)
    }
}

/// Something that answered before a network change and must answer after it. Looked for on [`NetworkSwitch::from`]
/// before and on [`NetworkSwitch::to`] afterwards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Proof {
    /// The link is up.
    Link,
    /// The address is on the link.
    Address(std::net::IpAddr),
    /// A default route goes through the link.
    DefaultRoute {
        /// Of IPv6.
        v6: bool,
    },
    /// The gateway answers.
    Gateway(std::net::IpAddr),
    /// The name server answers a query.
    NameServer(std::net::IpAddr),
    /// The peer of an ssh session answers. Found when the step runs.
    Peer(std::net::IpAddr),
}
