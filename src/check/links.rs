//! The links of the chain, in the order in which a person would look: what cannot be helped first.

mod card;
mod driver;
mod group;
mod holders;
mod host;
mod memory;
mod next_boot;
mod nvswitch;

pub(super) use host::turns_remapping_off;

use card::{answers, display, identity, kind, reset, sharing};
use driver::{driver, variant};
use group::{elsewhere, group, needed};
use holders::holders;
use host::{command_line, firmware, kvm, remapping, secure_boot};
use memory::memory;
use next_boot::{next_boot, next_initramfs};
use nvswitch::nvswitch;

use super::{Asked, Link, Looked};
use crate::facts::{HostFacts, PciFunction};
use crate::gpu::Gpu;
use crate::types::PciAddress;

/// What a link is judged from.
pub(super) struct On<'a> {
    pub(super) facts: &'a HostFacts,
    pub(super) looked: &'a Looked,
    pub(super) gpus: &'a [Gpu],
    pub(super) gpu: &'a Gpu,
    pub(super) asked: &'a Asked,
}

/// Every link.
pub(super) fn all(on: &On<'_>) -> Vec<Link> {
    if let Some(kind) = kind(on) {
        return vec![kind];
    }
    let mut links = Vec::new();
    links.extend(identity(on));
    links.push(kvm(on));
    links.push(firmware(on));
    links.push(command_line(on));
    links.extend(remapping(on));
    links.push(group(on));
    links.extend(elsewhere(on));
    links.extend(needed(on));
    links.push(answers(on));
    links.push(driver(on));
    links.extend(holders(on));
    links.push(display(on));
    links.extend(sharing(on));
    links.push(reset(on));
    links.push(memory(on));
    links.push(secure_boot(on));
    links.push(next_boot(on));
    links.extend(next_initramfs(on));
    links.extend(nvswitch(on));
    links.extend(variant(on));
    links
}

/// The functions of the card itself.
fn own<'a>(on: &On<'a>) -> Vec<&'a PciFunction> {
    on.facts.card(on.gpu.slot).collect()
}

/// What sysfs has of a function.
fn device(function: PciAddress) -> String {
    format!("/sys/bus/pci/devices/{function}")
}
