//! libvirt, as far as it answers: which VMs, pools and networks there are.

use serde::Serialize;

use super::Known;
use super::os::exists;
use crate::host::{Answer, Probe};

/// Where packages put the units of the daemons that libvirt is split into.
const MODULAR: &str = "/usr/lib/systemd/system/virtqemud.socket";
/// And of the one daemon for everything.
const MONOLITHIC: &str = "/usr/lib/systemd/system/libvirtd.socket";

/// What is known of libvirt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LibvirtFacts {
    /// What it says; nothing where it is not installed or none of its sockets is there.
    pub answers: Known<Option<Libvirt>>,
    /// Whether only the units of its split daemons are installed.
    pub modular: bool,
}

/// What libvirt says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Libvirt {
    /// Its version: `11.3.0`.
    pub version: String,
    /// Its VMs.
    pub domains: Vec<Domain>,
    /// Its storage pools.
    pub pools: Vec<Part>,
    /// Its virtual networks.
    pub networks: Vec<Part>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it runs now; one that stands still counts too.
    pub running: bool,
    /// Whether a definition is stored.
    pub persistent: bool,
    /// Whether libvirt starts it with the host.
    pub autostart: bool,
}

/// A pool or a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Whether it is started.
    pub active: bool,
    /// Whether libvirt starts it with the host.
    pub autostart: bool,
}

pub(super) fn libvirt(probe: &dyn Probe) -> LibvirtFacts {
    let answers = match probe.virtualisation() {
        Ok(Answer::Absent) => Known::Value(None),
        Ok(Answer::Denied) => Known::Unknown("only root and the group libvirt may ask it".to_owned()),
        Err(e) => Known::Unknown(e.to_string()),
        Ok(Answer::Value(known)) => {
            let v = known.version;
            let part = |name: &str, active, autostart| Part { name: name.to_owned(), active, autostart };
            Known::Value(Some(Libvirt {
                // virConnectGetLibVersion: major × 1 000 000 + minor × 1 000 + release.
                version: format!("{}.{}.{}", v / 1_000_000, v / 1_000 % 1_000, v % 1_000),
                domains: known
                    .domains
                    .iter()
                    .map(|d| Domain {
                        name: d.name.clone(),
                        uuid: d.uuid.clone(),
                        running: d.active,
                        persistent: d.persistent,
                        autostart: d.autostart,
                    })
                    .collect(),
                pools: known.pools.iter().map(|p| part(&p.name, p.active, p.autostart)).collect(),
                networks: known.networks.iter().map(|n| part(&n.name, n.active, n.autostart)).collect(),
            }))
        }
    };
    LibvirtFacts { answers, modular: exists(probe, MODULAR) && !exists(probe, MONOLITHIC) }
}
