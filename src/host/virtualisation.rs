//! What libvirt knows, as plain data: read from the daemon once in a pass, or from a record.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::{ByteSize, xml_escape};

/// Everything that libvirt's system connection knows, sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Virtualisation {
    /// libvirt's version as it counts: major × 1 000 000 + minor × 1 000 + release.
    pub version: u64,
    /// Host capabilities (`virsh capabilities`).
    #[serde(default)]
    pub capabilities: String,
    /// The VMs.
    #[serde(default)]
    pub domains: Vec<Domain>,
    /// The storage pools with their volumes.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// The virtual networks.
    #[serde(default)]
    pub networks: Vec<Network>,
}

/// One VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it runs now (paused counts as running).
    pub active: bool,
    /// The number that libvirt gave to this start of it: its next start has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Whether its processors stand still, while it counts as running.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// What libvirt says about how it came to stand still or to end, where that is worth telling: `it crashed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Whether its memory was saved when it was put to rest: its next start goes on from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub saved: bool,
    /// Whether a definition is stored; a transient domain has none.
    pub persistent: bool,
    /// Whether libvirt starts it at boot.
    pub autostart: bool,
    /// The definition for the next start (`VIR_DOMAIN_XML_INACTIVE`), byte for byte.
    pub inactive_xml: String,
    /// The running definition; only where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_xml: Option<String>,
    /// What libvirt keeps of its snapshots, whoever made them; by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<Snapshot>,
}

/// One snapshot of a VM, as libvirt keeps it (formatsnapshot).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Whether the VM goes on from it: the next one becomes its child.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub current: bool,
    /// All that libvirt says of it, with the VM's definition as it was then.
    pub xml: String,
}

impl Domain {
    /// The definition for the next start that is kept in a snapshot.
    pub fn definition_at(&self, snapshot: &str) -> Option<String> {
        self.snapshots.iter().find(|s| s.name == snapshot)?.definitions().into_iter().next()
    }
}

impl Snapshot {
    /// The definitions that are kept in it: the one for the next start first, where the VM ran when it was made.
    pub fn definitions(&self) -> Vec<String> {
        let Ok(doc) = roxmltree::Document::parse(&self.xml) else { return Vec::new() };
        let of = |name: &'static str| doc.root_element().children().find(move |c| c.has_tag_name(name));
        let text = |name: &'static str| {
            let whole = self.xml.get(of(name)?.range())?;
            // It stands one level deeper than a definition of its own.
            let lines = whole.lines().map(|line| line.strip_prefix("  ").unwrap_or(line));
            let whole = lines.collect::<Vec<_>>().join("\n") + "\n";
            let inside = whole.strip_prefix(&format!("<{name}"))?;
            let inside = inside.trim_end().strip_suffix(&format!("</{name}>"))?;
            Some(format!("<domain{inside}</domain>\n"))
        };
        ["inactiveDomain", "domain"].into_iter().filter_map(text).collect()
    }
}

/// One storage pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Whether it is started.
    pub active: bool,
    /// Whether libvirt starts it at boot.
    pub autostart: bool,
    /// Its definition.
    pub xml: String,
    /// What is free where it lies, in bytes; only where it is started and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    /// Its volumes; empty where it is not started.
    #[serde(default)]
    pub volumes: Vec<Volume>,
}

/// One volume of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// `qcow2`, `raw`, … as libvirt says.
    pub format: String,
    /// The size that a guest sees, in bytes.
    pub capacity: u64,
    /// The file that it goes on in where nothing was written to it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<PathBuf>,
}

impl Pool {
    /// The directory of a directory pool; none for pools of other types.
    pub fn directory(&self) -> Option<PathBuf> {
        let doc = roxmltree::Document::parse(&self.xml).ok()?;
        let pool = doc.root_element();
        let target = pool.children().find(|c| c.has_tag_name("target"))?;
        let path = target.children().find(|c| c.has_tag_name("path"))?.text()?.trim();
        (matches!(pool.attribute("type"), Some("dir" | "fs" | "netfs")) && !path.is_empty()).then(|| path.into())
    }
}

impl Volume {
    /// The size that a guest sees.
    pub fn size(&self) -> ByteSize {
        ByteSize::from_bytes(self.capacity)
    }
}

/// One virtual network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whether it is started.
    pub active: bool,
    /// Whether libvirt starts it at boot.
    pub autostart: bool,
    /// Its definition.
    pub xml: String,
}

impl Virtualisation {
    /// Whether a VM's definition can go while the state of its TPM stays (`VIR_DOMAIN_UNDEFINE_KEEP_TPM`, libvirt 8.9).
    pub fn keeps_tpm(&self) -> bool {
        self.version >= 8_009_000
    }

    /// Who needs the file of a disk: another VM than `but` that names it, running or not, or a disk that goes on in it.
    /// A definition that only mentions it counts: whoever deletes it cannot take that back.
    pub fn user_of(&self, path: &Path, but: Option<&str>) -> Option<String> {
        self.user_of_but(path, |name| but == Some(name))
    }
    /// The same, where VMs by name do not count.
    pub fn user_of_but(&self, path: &Path, but: impl Fn(&str) -> bool) -> Option<String> {
        let over = || {
            let volumes = self.pools.iter().flat_map(|p| &p.volumes);
            volumes.into_iter().find(|v| v.path != path && v.backing.as_deref() == Some(path))
        };
        self.named_by(path, but).or_else(|| over().map(|v| format!("the disk `{}`", v.path.display())))
    }
    /// The VM that names the file of a disk in its definition, or its snapshot whose state that holds.
    pub fn named_by(&self, path: &Path, but: impl Fn(&str) -> bool) -> Option<String> {
        let text = path.to_string_lossy();
        let in_xml = xml_escape(&text);
        // A definition may have a disk by its pool and its name in it.
        let volumes = self.pools.iter().flat_map(|p| p.volumes.iter().map(move |v| (p, v)));
        let by_pool: Vec<[String; 4]> = volumes
            .filter(|(_, v)| v.path == path)
            .map(|(p, v)| (xml_escape(&p.name), xml_escape(&v.name)))
            .map(|(p, v)| {
                [format!("pool='{p}'"), format!("volume='{v}'"), format!("pool=\"{p}\""), format!("volume=\"{v}\"")]
            })
            .collect();
        let mentions = |xml: &str| {
            let all = |words: &[String]| words.iter().all(|word| xml.contains(word.as_str()));
            xml.contains(&*text) || xml.contains(&in_xml) || by_pool.iter().any(|w| all(&w[..2]) || all(&w[2..]))
        };
        let names = |d: &&Domain| mentions(&d.inactive_xml) || d.live_xml.as_deref().is_some_and(mentions);
        let vm = self.domains.iter().filter(|d| !but(&d.name)).find(names);
        // The state that a snapshot holds is in the disks of the definition that is kept in it.
        let of_snapshot = || {
            let domains = self.domains.iter().filter(|d| !but(&d.name));
            let mut snapshots = domains.flat_map(|d| d.snapshots.iter().map(move |s| (d, s)));
            let found = snapshots.find(|(_, s)| s.definitions().iter().any(|xml| mentions(xml)));
            found.map(|(d, s)| format!("snapshot `{}` of VM `{}`", s.name, d.name))
        };
        vm.map(|d| format!("VM `{}`", d.name)).or_else(of_snapshot)
    }
    /// The VM of this name.
    pub fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.iter().find(|d| d.name == name)
    }
    /// The pool of this name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|p| p.name == name)
    }
    /// The network of this name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|n| n.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_its_path_and_by_its_pool() {
        let path = Path::new("/srv/a&b/x-0.qcow2");
        let of = |name: &str, path: &Path| Volume {
            name: name.to_owned(),
            path: path.to_owned(),
            format: "qcow2".to_owned(),
            capacity: 1,
            backing: None,
        };
        let pool = Pool { name: "fast".to_owned(), volumes: vec![of("x-0.qcow2", path)], ..Pool::default() };
        let user = |xml: &str| {
            let domain = Domain { name: "other".to_owned(), inactive_xml: xml.to_owned(), ..Domain::default() };
            Virtualisation { domains: vec![domain], pools: vec![pool.clone()], ..Virtualisation::default() }
                .user_of(path, None)
        };
        for xml in [
            "<source file='/srv/a&amp;b/x-0.qcow2'/>",
            "<source pool='fast' volume='x-0.qcow2'/>",
            "<source volume=\"x-0.qcow2\" pool=\"fast\"/>",
        ] {
            assert_eq!(user(xml).as_deref(), Some("VM `other`"), "{xml}");
        }
        for xml in ["<source file='/srv/y-0.qcow2'/>", "<source pool='slow' volume='x-0.qcow2'/>", ""] {
            assert_eq!(user(xml), None, "{xml}");
        }
    }
}
