//! The entry of a manifest that describes one thing of the host as it is, and the manifest's text with it.

use std::path::PathBuf;

use super::insert::{Value, insert, whole};
use super::words::scalar;
use super::{Refused, file, refused, vm};
use crate::facts::{HostFacts, Known, LinkKind};
use crate::host::{Answer, Probe};
use crate::manifest::{self, BridgeSection, FilePath, Loaded, Uplink};
use crate::plan::Key;
use crate::types::{DomainName, InterfaceName};

/// A file that goes beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Where, from the manifest's folder.
    pub path: PathBuf,
    /// What.
    pub bytes: Vec<u8>,
    /// For its owner alone.
    pub private: bool,
}

/// An entry that the manifest does not have yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The entry itself, under its sections.
    pub shown: String,
    /// The manifest's text with it.
    pub text: String,
    /// What it refers to.
    pub extra: Option<Extra>,
}

/// One addition: the section that it is in (none for a section itself), its key and its value.
type Addition = (Option<&'static str>, String, Value);

/// Describes a VM, a bridge or a file as it is; `None` where the manifest has an entry for it.
pub fn describe(key: &Key, loaded: &Loaded, probe: &dyn Probe, facts: &HostFacts) -> Result<Option<Entry>, Refused> {
    let mut expected = loaded.manifest.clone();
    let mut additions: Vec<Addition> = Vec::new();
    let mut extra = None;
    match key.kind.as_str() {
        "libvirt-domain" => {
            let name: DomainName =
                key.name.parse().map_err(|e| refused(format!("{e}"), "rename it: virsh domrename"))?;
            if expected.vms.contains_key(&name) {
                return Ok(None);
            }
            let known =
                match probe.virtualisation().map_err(|e| refused(e.to_string(), "see: systemctl status libvirtd"))? {
                    Answer::Value(known) => known,
                    Answer::Absent => {
                        return Err(refused("libvirt is not installed here, so it has no VM", "see: gpuvm facts"));
                    }
                    Answer::Denied => return Err(refused("this user may not ask libvirt", "run gpuvm as root")),
                };
            let Some(domain) = known.domain(name.as_str()) else {
                let there: Vec<String> = known.domains.iter().map(|d| super::words::comment(&d.name)).collect();
                let there =
                    if there.is_empty() { "it has none".to_owned() } else { format!("it has {}", there.join(", ")) };
                return Err(refused(format!("libvirt has no VM `{name}`; {there}"), "see: virsh list --all"));
            };
            let described = vm::vm(&name, domain, &loaded.manifest, facts, &known)?;
            if let Some(bridge) = described.bridge {
                additions.push((None, "bridge".to_owned(), Value::Inline(used(&bridge))));
                expected.bridge = Some(bridge);
            }
            if let Some((network, entry)) = described.network {
                let value = Value::Inline(format!("{{ libvirt: {} }}", scalar(entry.libvirt.as_str())));
                additions.push((Some("networks"), scalar(network.as_str()), value));
                expected.networks.insert(network, entry);
            }
            let lines = vm::lines(&described.entry, &described.rest);
            additions.push((Some("vms"), scalar(name.as_str()), Value::Block(lines)));
            expected.vms.insert(name, described.entry);
        }
        "bridge" => {
            let name: InterfaceName = key.name.parse().map_err(|e| refused(format!("{e}"), "see: ip link"))?;
            match &expected.bridge {
                Some(bridge) if bridge.name == name => return Ok(None),
                Some(bridge) => {
                    let why = format!("the manifest has a bridge already, `{}`, and there is one", bridge.name);
                    return Err(refused(why, "take it out of the manifest first"));
                }
                None => {}
            }
            let net = match &facts.network {
                Known::Value(net) => net,
                Known::Unknown(why) => return Err(refused(why.clone(), "run gpuvm as root")),
            };
            match net.links.get(name.as_str()) {
                Some(link) if link.kind == LinkKind::Bridge => {}
                Some(_) => return Err(refused(format!("`{name}` is no bridge"), "see: ip link show type bridge")),
                None => return Err(refused(format!("there is no bridge `{name}`"), "see: ip link show type bridge")),
            }
            let bridge = BridgeSection { name, uplink: Uplink::Auto, existing: true };
            additions.push((None, "bridge".to_owned(), Value::Inline(used(&bridge))));
            expected.bridge = Some(bridge);
        }
        "file" => {
            let path: FilePath = key.name.parse().map_err(|e| refused(format!("{e}"), "write the whole path"))?;
            if expected.files.contains_key(&path) {
                return Ok(None);
            }
            let (entry, beside) = file::file(&path, probe, facts)?;
            additions.push((Some("files"), scalar(path.as_str()), Value::Block(file::lines(&entry))));
            expected.files.insert(path, entry);
            extra = beside;
        }
        other => {
            return Err(refused(
                format!("a {other} is not described by itself"),
                "the whole host is: gpuvm init -o -".to_owned(),
            ));
        }
    }
    let mut text = loaded.text.clone();
    let mut shown = String::new();
    for (section, key, value) in &additions {
        text = insert(&text, *section, key, value)?;
        shown += &whole(*section, key, value);
    }
    // What was written must be read as this and nothing else, or it is not used.
    match manifest::parse("host.yaml", &text) {
        Ok(read) if read == expected => Ok(Some(Entry { shown, text, extra })),
        Ok(_) => Err(refused("the manifest would say something else with it", format!("put it in by hand:\n{shown}"))),
        Err(invalid) => {
            let problems = invalid.problems();
            let why = problems.first().map(|p| p.message.clone()).unwrap_or_default();
            Err(refused(format!("with it the manifest would not be valid: {why}"), format!("the entry is:\n{shown}")))
        }
    }
}

fn used(bridge: &BridgeSection) -> String {
    format!("{{ name: {}, existing: true }}", scalar(bridge.name.as_str()))
}
