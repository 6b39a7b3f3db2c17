//! How places are now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::facts;
use crate::gpu::mig;
use crate::host::{Answer, FileKind, HostError, Probe, Virtualisation};
use crate::plan::{Place, Seen};
use crate::resource::mig::state;
use crate::resource::service::{Service, UnitState};
use crate::resource::{Resource, vgpu};
use crate::types::{UnitName, sha256_hex};

/// What was seen, with the contents of the files among it.
#[derive(Debug, Default)]
pub struct Looked {
    /// How each place is.
    pub seen: BTreeMap<Place, Seen>,
    /// The bytes of files, by path.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Looked {
    /// How a place is; nothing is there where it was not looked at.
    pub(super) fn of(&self, place: &Place) -> &Seen {
        self.seen.get(place).unwrap_or(&Seen::Nothing)
    }
}

/// Looks at places. dpkg's status and libvirt are read once, and only where one of the places needs them.
pub fn look(probe: &dyn Probe, places: &BTreeSet<Place>) -> Result<Looked, HostError> {
    let mut all = Looked::default();
    let packages = match places.iter().any(|p| matches!(p, Place::Package(_))) {
        true => Some((facts::packages(probe), auto_installed(probe)?)),
        false => None,
    };
    let libvirt = if places.iter().any(Place::is_libvirts) { probe.virtualisation()? } else { Answer::Absent };
    for place in places {
        let seen = match place {
            Place::File(path) => file(probe, path, &mut all.files)?,
            Place::Package(name) => match &packages {
                Some((facts::Known::Value(known), auto)) => match known.get(name.as_str()).filter(|p| p.installed) {
                    Some(p) => Seen::Package { version: p.version.clone(), auto: auto.contains(name.as_str()) },
                    None => Seen::Nothing,
                },
                _ => Seen::Denied,
            },
            Place::Unit(unit) => unit_state(probe, unit)?,
            Place::Member { group, user } => {
                let text = probe.text(Path::new("/etc/group"))?.value().unwrap_or_default();
                let fields = text.lines().map(|l| l.split(':').collect::<Vec<_>>());
                let of_group = fields.into_iter().find(|f| f.first() == Some(&group.as_str()));
                let member = of_group.is_some_and(|f| f.get(3).is_some_and(|m| m.split(',').any(|m| m == user)));
                there(member)
            }
            Place::Module(name) => {
                let text = probe.text(Path::new("/proc/modules"))?.value().unwrap_or_default();
                let name = name.replace('-', "_");
                there(text.lines().any(|l| l.split(' ').next() == Some(name.as_str())))
            }
            Place::Function(address) | Place::FunctionAtBoot(address) => {
                let link = probe.link(Path::new(&format!("/sys/bus/pci/devices/{address}/driver")))?.value();
                Seen::Driver(link.and_then(|l| Some(l.file_name()?.to_string_lossy().into_owned())))
            }
            Place::VirtualFunctions { physical, .. } => {
                let text = probe.text(Path::new(&format!("/sys/bus/pci/devices/{physical}/sriov_numvfs")))?;
                text.value().and_then(|t| t.trim().parse().ok()).map_or(Seen::Nothing, Seen::Count)
            }
            Place::Vgpus { name, physical } => Seen::Count(vgpu::count(name, *physical, probe)),
            // Before its driver is there, nothing is made of it; asking would be of no use.
            Place::Mig { physical, .. } if !mig::is_driven(probe, *physical) => Seen::Nothing,
            Place::Mig { physical, .. } => match mig::ask(probe, *physical) {
                mig::Told::Card(card) => Seen::Mig(state(&card)),
                mig::Told::Without => Seen::Nothing,
                mig::Told::Unknown(why) => {
                    tracing::warn!("{physical}: {why}");
                    Seen::Denied
                }
            },
            Place::Argument(argument) => {
                let text = probe.text(Path::new("/proc/cmdline"))?.value().unwrap_or_default();
                there(text.split_whitespace().any(|a| a == argument))
            }
            Place::Image(path) | Place::Device(path) => match probe.stat(path)? {
                Answer::Value(_) => Seen::There,
                Answer::Absent => Seen::Nothing,
                Answer::Denied => Seen::Denied,
            },
            Place::Pool(_) | Place::Volume { .. } | Place::Network(_) | Place::Domain(_) => match &libvirt {
                Answer::Value(known) => at_libvirt(known, place),
                Answer::Absent => Seen::Nothing,
                Answer::Denied => Seen::Denied,
            },
        };
        all.seen.insert(place.clone(), seen);
    }
    Ok(all)
}

fn there(yes: bool) -> Seen {
    if yes { Seen::There } else { Seen::Nothing }
}

fn file(probe: &dyn Probe, path: &Path, contents: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<Seen, HostError> {
    let stat = match probe.stat(path)? {
        Answer::Value(stat) => stat,
        Answer::Absent => return Ok(Seen::Nothing),
        Answer::Denied => return Ok(Seen::Denied),
    };
    Ok(match stat.kind {
        FileKind::File => match probe.read(path)? {
            Answer::Value(bytes) => {
                let sha256 = sha256_hex(&bytes);
                contents.insert(path.to_owned(), bytes);
                Seen::File { sha256, mode: stat.mode, uid: stat.uid, gid: stat.gid }
            }
            Answer::Absent => Seen::Nothing,
            Answer::Denied => Seen::Denied,
        },
        FileKind::Link => probe.link(path)?.value().map_or(Seen::Other, Seen::Link),
        _ => Seen::Other,
    })
}

fn unit_state(probe: &dyn Probe, unit: &UnitName) -> Result<Seen, HostError> {
    let service = Service { unit: unit.clone(), enabled: None, running: None, awaited: false };
    Ok(match service.probe(probe)? {
        UnitState::There { file, active } => Seen::Unit { file, active },
        UnitState::Missing => Seen::Nothing,
        UnitState::NotAsked(_) => Seen::Denied,
    })
}

/// The packages that came along with others (apt keeps it in extended_states).
fn auto_installed(probe: &dyn Probe) -> Result<BTreeSet<String>, HostError> {
    let text = probe.text(Path::new("/var/lib/apt/extended_states"))?.value().unwrap_or_default();
    let auto = text.split("\n\n").filter(|s| s.lines().any(|l| l == "Auto-Installed: 1"));
    Ok(auto.filter_map(|s| s.lines().find_map(|l| l.strip_prefix("Package: "))).map(str::to_owned).collect())
}

fn at_libvirt(known: &Arc<Virtualisation>, place: &Place) -> Seen {
    let seen = match place {
        Place::Pool(name) => known.pool(name.as_str()).map(|p| Seen::Pool {
            path: p.directory().unwrap_or_default(),
            active: p.active,
            autostart: p.autostart,
        }),
        Place::Volume { pool, name } => known
            .pool(pool.as_str())
            .and_then(|p| p.volumes.iter().find(|v| v.name == *name))
            .map(|v| Seen::Volume { capacity: v.capacity, format: v.format.clone() }),
        Place::Network(name) => {
            known.network(name.as_str()).map(|n| Seen::Network { active: n.active, autostart: n.autostart })
        }
        Place::Domain(name) => known.domain(name.as_str()).map(|d| Seen::Domain {
            xml: d.inactive_xml.clone(),
            autostart: d.autostart,
            active: d.active,
        }),
        _ => None,
    };
    seen.unwrap_or(Seen::Nothing)
}
