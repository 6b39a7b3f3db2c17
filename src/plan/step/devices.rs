//! What steps do with PCI devices: bind a slot, make virtual functions, vGPUs and MIG instances.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::{PciAddress, ResourceName};

/// The driver that a function is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BindTarget {
    /// vfio-pci, by `driver_override`.
    Vfio,
    /// Whatever driver the kernel finds for it: the override is cleared and the function is probed again.
    Host,
}

/// All functions of a slot, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotBinding {
    /// Each function with the driver that it had when the plan was made.
    pub functions: Vec<(PciAddress, Option<String>)>,
    /// What they are to be bound to.
    pub target: BindTarget,
}

/// How many virtual functions a device has (SR-IOV). What else is said of them is in a file that is written before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualFunctionsStep {
    /// The device's name, which its file and unit have.
    pub name: ResourceName,
    /// Its function that has them.
    pub physical: PciAddress,
    /// How many there are.
    pub before: u16,
    /// How many there will be. None needs neither file nor unit.
    pub count: u16,
}

/// How many vGPUs a card has. What else is said of them is in a file that is written before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VgpuStep {
    /// The card's name, which its file and unit have.
    pub name: ResourceName,
    /// Its function that has them.
    pub physical: PciAddress,
    /// How many there are.
    pub before: u16,
    /// How many there will be.
    pub count: u16,
}

/// MIG of a card: from which state to which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigStep {
    /// The card's name.
    pub name: ResourceName,
    /// Its function.
    pub physical: PciAddress,
    /// How it was when the plan was made: what is neither in this nor in the other is nobody's to touch.
    pub before: MigState,
    /// How it will be.
    pub after: MigState,
}

/// MIG of a card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigState {
    /// Whether MIG mode is on.
    pub on: bool,
    /// Its GPU instances.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<MigInstance>,
}

/// A GPU instance of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigInstance {
    /// What it is made as (`3g.20gb`).
    pub profile: String,
    /// Its first slice of the card's memory; left out where the card tells of its places only once MIG mode is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u32>,
}

impl MigState {
    /// Whether it has an instance of this profile in this place.
    pub fn has(&self, profile: &str, start: u32) -> bool {
        self.instances.iter().any(|i| i.profile == profile && i.start == Some(start))
    }
}

impl std::fmt::Display for MigState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let one = |i: &MigInstance| match i.start {
            Some(start) => format!("{} at {start}", i.profile),
            None => i.profile.clone(),
        };
        match (self.on, self.instances.is_empty()) {
            (false, true) => f.write_str("off"),
            (_, true) => f.write_str("on, without instances"),
            (_, false) => f.write_str(&self.instances.iter().map(one).collect::<Vec<_>>().join(", ")),
        }
    }
}
