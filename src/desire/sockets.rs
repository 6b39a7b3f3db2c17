//! The sockets through which libvirt answers: those that the manifest names, and in any case one.

use super::Desired;
use crate::facts::{HostFacts, Known};
use crate::manifest::{Manifest, Sockets};
use crate::plan::Key;
use crate::resource::{
    Resource, libvirt_domain::LibvirtDomain, libvirt_network::LibvirtNetwork, pool::Pool, service::Service,
    volume::Volume,
};

/// Of the one daemon for everything, what is asked first.
const MONOLITHIC: [&str; 3] = ["libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"];
/// What else starts it; the last two by TCP, which are off unless someone turned them on.
const OF_MONOLITHIC: [&str; 3] = ["libvirtd.service", "libvirtd-tcp.socket", "libvirtd-tls.socket"];
/// Of the daemons that it is split into: QEMU's first (libvirt's page "Libvirt Daemons").
const MODULAR: [&str; 7] = [
    "virtqemud.socket",
    "virtinterfaced.socket",
    "virtnetworkd.socket",
    "virtnodedevd.socket",
    "virtnwfilterd.socket",
    "virtsecretd.socket",
    "virtstoraged.socket",
];

/// Wants the sockets, before anything that libvirt is asked to do. Where they are left to gpuvm, systemd is asked only if
/// libvirt is installed and nothing answers for it.
pub(super) fn desire(m: &Manifest, facts: &HostFacts, from: &str, desired: &mut Desired) {
    let packages = facts.packages.value();
    let installed = packages.and_then(|all| all.get("libvirt-daemon-system")).is_some_and(|p| p.installed);
    let on = |on: bool| move |unit: &&'static str| (*unit, on);
    let units: Vec<(&str, bool)> = match m.libvirt.as_ref().map(|l| l.sockets).unwrap_or_default() {
        Sockets::Auto => {
            // What it is silent for otherwise (it hangs, nobody may ask) is said by whoever asks.
            if !installed || facts.libvirt.answers != Known::Value(None) {
                return;
            }
            let units: &[&str] = if facts.libvirt.modular { &MODULAR } else { &MONOLITHIC[..1] };
            units.iter().map(on(true)).collect()
        }
        Sockets::Monolithic => {
            let other = facts.libvirt.modular.then_some(MODULAR).into_iter().flatten();
            MONOLITHIC[..2].iter().map(on(true)).chain(other.map(|u| (u, false))).collect()
        }
        // The one daemon lets go of its sockets before the others take them; VMs run on meanwhile.
        Sockets::Modular => {
            let off = OF_MONOLITHIC.iter().chain(&MONOLITHIC).map(on(false));
            off.chain(MODULAR.iter().map(on(true))).collect()
        }
    };
    let mut before = vec![Key::new("package", "")];
    let place = if m.libvirt.as_ref().is_some_and(|l| l.sockets != Sockets::Auto) { "libvirt.sockets" } else { from };
    for (unit, on) in units {
        // What the manifest says of a unit by its name is what counts.
        let Ok(unit) = unit.parse() else { continue };
        if m.services.contains_key(&unit) {
            continue;
        }
        let wanted = Service { unit, enabled: Some(on), running: Some(on), awaited: !installed };
        let key = desired.want(place, before.clone(), wanted);
        before.push(key);
    }
    let asks =
        |key: &Key| [Pool::KIND, Volume::KIND, LibvirtNetwork::KIND, LibvirtDomain::KIND].contains(&key.kind.as_str());
    for (_, node) in desired.nodes.iter_mut().filter(|(key, _)| asks(key)) {
        node.after.extend(before.iter().cloned());
    }
}
