//! A VM that is not there yet, as an entry of a manifest: what `gpuvm create` writes.

use super::insert::{Value, insert, whole};
use super::words::{quoted, scalar};
use super::{Refused, refused};
use crate::manifest::{ImageEntry, Loaded, NvidiaBranch, SshKey, UserName};
use crate::types::{ByteSize, DomainName, ResourceName};

/// What a person said of a new VM.
#[derive(Debug, Clone)]
pub struct NewVm {
    /// Its name.
    pub name: DomainName,
    /// What its disk begins as.
    pub image: ResourceName,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory.
    pub memory: ByteSize,
    /// Its disk.
    pub disk: ByteSize,
    /// Where that is, by a name of the manifest's; in the default pool where left out.
    pub pool: Option<ResourceName>,
    /// Who gets in.
    pub user: UserName,
    /// With which keys.
    pub keys: Vec<SshKey>,
    /// What it is on; where left out, what the manifest has only one of.
    pub network: Option<ResourceName>,
    /// Its address with the prefix, and the gateway.
    pub address: Option<String>,
    /// The gateway.
    pub gateway: Option<String>,
    /// GPUs by their names.
    pub gpus: Vec<ResourceName>,
    /// Ubuntu's desktop.
    pub desktop: bool,
    /// NVIDIA's driver.
    pub nvidia: Option<NvidiaBranch>,
    /// It starts with the host, and now.
    pub start: bool,
    /// Where the image is a file of the host's: that, and its sha256 in hex.
    pub image_file: Option<(String, String)>,
    /// It starts by BIOS.
    pub bios: bool,
}

/// The entry alone, and the manifest's text with it.
pub fn new_vm(new: &NewVm, loaded: &Loaded) -> Result<(String, String), Refused> {
    let m = &loaded.manifest;
    if m.vms.contains_key(&new.name) {
        return Err(refused(
            format!("the manifest has a VM `{}` already", new.name),
            "give this one another name, or change that one there",
        ));
    }
    let mut lines = vec![
        format!("image: {}", scalar(new.image.as_str())),
        format!("cpus: {}", new.cpus),
        format!("memory: {}", new.memory),
        match &new.pool {
            None => format!("disks: [{}]", new.disk),
            Some(pool) => format!("disks: [{{ pool: {}, size: {} }}]", scalar(pool.as_str()), new.disk),
        },
    ];
    if new.bios {
        lines.push("firmware: bios".to_owned());
    }
    let keys = new.keys.iter().map(|k| quoted(k.as_str())).collect::<Vec<_>>().join(", ");
    lines.push(format!("user: {{ name: {}, sshKeys: [{keys}] }}", scalar(new.user.as_str())));
    let bridge = m.bridge.as_ref().map(|b| b.name.to_string());
    let names: Vec<String> = bridge.into_iter().chain(m.networks.keys().map(ToString::to_string)).collect();
    let network = match (&new.network, &names[..]) {
        (Some(named), _) => named.to_string(),
        (None, [only]) => only.clone(),
        (None, []) => {
            return Err(refused(
                "the manifest has no network that a VM could be on",
                "write `bridge: { name: br0, uplink: auto }`, or `networks: { nat: { libvirt: default } }`",
            ));
        }
        (None, several) => {
            return Err(refused(
                format!("the manifest has several networks: {}", several.join(", ")),
                "say which: --network NAME",
            ));
        }
    };
    lines.push(match (&new.address, &new.gateway) {
        (None, _) => format!("network: {}", scalar(&network)),
        (Some(address), None) => format!("network: {{ name: {}, address: {} }}", scalar(&network), quoted(address)),
        (Some(address), Some(gateway)) => format!(
            "network: {{ name: {}, address: {}, gateway: {} }}",
            scalar(&network),
            quoted(address),
            quoted(gateway)
        ),
    });
    if !new.gpus.is_empty() {
        let gpus = new.gpus.iter().map(|g| scalar(g.as_str())).collect::<Vec<_>>().join(", ");
        lines.push(format!("gpus: [{gpus}]"));
    }
    let mut ubuntu = Vec::new();
    if new.desktop {
        ubuntu.push("desktop: true".to_owned());
    }
    ubuntu.extend(new.nvidia.iter().map(|branch| format!("nvidia: \"{branch}\"")));
    if !ubuntu.is_empty() {
        lines.push(format!("ubuntu: {{ {} }}", ubuntu.join(", ")));
    }
    if new.start {
        lines.push("start: boot".to_owned());
    }
    let value = Value::Block(lines);
    let name = scalar(new.name.as_str());
    let (mut shown, mut text) = (whole(Some("vms"), &name, &value), loaded.text.clone());
    if let Some((file, sha256)) = &new.image_file {
        let there = m.images.get(&new.image);
        let same = |e: &ImageEntry| e.sha256.as_ref().is_some_and(|s| s.as_str().eq_ignore_ascii_case(sha256));
        if let Some(entry) = there.filter(|e| !same(e)) {
            let is = entry.path.as_ref().map_or("something else".to_owned(), |p| format!("`{}`", p.as_str()));
            return Err(refused(
                format!("the manifest has an image `{}` already, and that is {is}", new.image),
                "give that one another name there",
            ));
        }
        if there.is_none() {
            let image = scalar(new.image.as_str());
            let entry = Value::Inline(format!("{{ path: {}, sha256: {sha256} }}", quoted(file)));
            shown = whole(Some("images"), &image, &entry) + &shown;
            text = insert(&text, Some("images"), &image, &entry)?;
        }
    }
    Ok((shown, insert(&text, Some("vms"), &name, &value)?))
}
