//! `bridge`: the bridge that VMs share the host's network through.

use super::Desired;
use crate::manifest::{Loaded, Uplink};
use crate::resource::bridge::{Bridge, UplinkChoice};

pub(super) fn desire(manifest: &Loaded, desired: &mut Desired) {
    let Some(section) = &manifest.manifest.bridge else { return };
    let uplink = match &section.uplink {
        Uplink::Auto => UplinkChoice::Auto,
        Uplink::Name(name) => UplinkChoice::Name(name.clone()),
        Uplink::Mac(mac) => UplinkChoice::Mac(*mac),
    };
    desired.want("bridge", [], Bridge { name: section.name.clone(), uplink, existing: section.existing });
}
