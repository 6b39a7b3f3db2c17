//! What a guest says for itself, and what it did not do when it was asked.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::types::DomainName;

/// How long a guest may take to shut down where nobody says otherwise, in seconds.
pub const SHUTDOWN_PATIENCE_S: u32 = 90;

/// What the agent inside a guest answers (qemu-ga). Names and addresses are the guest's own words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestAgent {
    /// The guest's network interfaces.
    #[serde(default)]
    pub interfaces: Vec<GuestInterface>,
}

/// A network interface inside a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestInterface {
    /// Its name there: `enp1s0`.
    pub name: String,
    /// Its address on the link, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its addresses, without their prefixes.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// A guest that was asked to shut down, and runs on.
pub fn did_not_shut_down(name: &DomainName, patience_s: u32) -> String {
    format!(
        "VM `{name}` did not shut down within {patience_s} s, and runs on; look at its guest: gpuvm vm console {name}; \
         to cut its power: gpuvm vm stop {name} --force"
    )
}

/// Why a VM that is off has no console.
pub fn no_console(name: &DomainName) -> String {
    format!("VM `{name}` is off; start it: gpuvm vm start {name}")
}

/// A guest that was asked, and whose power was cut when it did not listen.
pub fn power_was_cut(name: &DomainName, patience_s: u32) -> String {
    match patience_s {
        0 => format!("the power of {name} was cut at once, without asking its guest"),
        n => format!("{name} did not shut down within {n} s: its power was cut"),
    }
}

/// What is said where a system was to be installed and something is on its disk by now.
pub fn not_blank(disk: &Path) -> String {
    format!(
        "there is something on `{}` already: nothing was installed over it. If its system does not start, its installation \
         was cut off: gpuvm vm delete, and apply again",
        disk.display()
    )
}
