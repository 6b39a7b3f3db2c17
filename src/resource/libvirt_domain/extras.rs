//! Parts of a VM that are each one element of its definition: how it is written, and how one that is there is known
//! again. What people put beside them stays.

use std::collections::BTreeMap;
use std::path::PathBuf;

use roxmltree::{Document, Node};
use serde::{Deserialize, Serialize};

use super::Arch;
use super::read::{child, devices};
use crate::types::{MdevUuid, UsbId, xml_escape as e};

/// A part of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Extra {
    /// A TPM 2.0, emulated by swtpm.
    Tpm,
    /// A screen for people.
    Display(Display),
    /// A USB device of the host's, wherever it is plugged in; one that is missing does not keep the VM from starting.
    Usb(UsbId),
    /// A vGPU that is a mediated device of the host's.
    Mediated(MdevUuid),
    /// A folder of the host's.
    Folder {
        /// What the guest mounts it by.
        tag: String,
        /// The folder.
        path: PathBuf,
    },
}

/// A screen for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Display {
    /// VNC, on the host's loopback.
    Vnc,
    /// SPICE, on the host's loopback.
    Spice,
}

impl Display {
    const fn name(self) -> &'static str {
        match self {
            Display::Vnc => "vnc",
            Display::Spice => "spice",
        }
    }
}

/// Keys of all extras in order, each with what it is.
pub(super) type Told = BTreeMap<String, String>;

impl Extra {
    /// What it is known by in a definition and in a plan.
    pub(super) fn key(&self) -> String {
        match self {
            Extra::Tpm => "tpm".to_owned(),
            Extra::Display(_) => "display".to_owned(),
            Extra::Usb(id) => format!("usb {id}"),
            Extra::Mediated(uuid) => format!("{MEDIATED}{uuid}"),
            Extra::Folder { tag, .. } => format!("folder {tag}"),
        }
    }

    /// What it is, in the words of [`told`].
    pub(super) fn value(&self) -> String {
        match self {
            Extra::Tpm => "2.0, emulated".to_owned(),
            Extra::Display(display) => format!("{} on 127.0.0.1", display.name()),
            Extra::Usb(_) | Extra::Mediated(_) => "passed".to_owned(),
            Extra::Folder { path, .. } => path.display().to_string(),
        }
    }

    /// Its elements.
    pub(super) fn elements(&self, arch: Arch) -> Vec<String> {
        match self {
            Extra::Tpm => {
                let model = if arch == Arch::X86_64 { "tpm-crb" } else { "tpm-tis" };
                vec![format!("<tpm model='{model}'>\n      <backend type='emulator' version='2.0'/>\n    </tpm>")]
            }
            Extra::Display(display) => vec![
                format!(
                    "<graphics type='{}' port='-1' autoport='yes' listen='127.0.0.1'>\n      \
                     <listen type='address' address='127.0.0.1'/>\n    </graphics>",
                    display.name()
                ),
                // A passed GPU may draw too; this one is what the display shows.
                "<video>\n      <model type='virtio' heads='1' primary='yes'/>\n    </video>".to_owned(),
            ],
            Extra::Usb(id) => vec![format!(
                "<hostdev mode='subsystem' type='usb' managed='yes'>\n      <source startupPolicy='optional'>\n        \
                 <vendor id='0x{:04x}'/>\n        <product id='0x{:04x}'/>\n      </source>\n    </hostdev>",
                id.vendor, id.product
            )],
            // libvirt neither makes it nor takes it away: `managed` says nothing of mediated devices (formatdomain).
            Extra::Mediated(uuid) => vec![format!(
                "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n      <source>\n        \
                 <address uuid='{uuid}'/>\n      </source>\n    </hostdev>"
            )],
            Extra::Folder { tag, path } => vec![format!(
                "<filesystem type='mount' accessmode='passthrough'>\n      <driver type='virtiofs'/>\n      \
                 <source dir='{}'/>\n      <target dir='{}'/>\n    </filesystem>",
                e(&path.to_string_lossy()),
                e(tag)
            )],
        }
    }

    /// The elements of a definition that this one is, or another of its key.
    pub(super) fn nodes<'a, 'i>(&self, doc: &'a Document<'i>) -> Vec<Node<'a, 'i>> {
        match self {
            Extra::Tpm => devices(doc, "tpm"),
            Extra::Display(_) => {
                // The video that came with it goes with it; other cards of a person's stay.
                let video = devices(doc, "video").into_iter().filter(|v| {
                    child(*v, "model")
                        .is_some_and(|m| m.attribute("primary") == Some("yes") && m.attribute("type") == Some("virtio"))
                });
                devices(doc, "graphics").into_iter().chain(video.take(1)).collect()
            }
            Extra::Usb(id) => devices(doc, "hostdev").into_iter().filter(|h| usb(*h) == Some(*id)).collect(),
            Extra::Mediated(uuid) => {
                devices(doc, "hostdev").into_iter().filter(|h| mediated(*h) == Some(*uuid)).collect()
            }
            Extra::Folder { tag, .. } => devices(doc, "filesystem")
                .into_iter()
                .filter(|f| child(*f, "target").and_then(|t| t.attribute("dir")) == Some(tag.as_str()))
                .collect(),
        }
    }
}

/// The ids of a passed USB device.
fn usb(hostdev: Node<'_, '_>) -> Option<UsbId> {
    if hostdev.attribute("type") != Some("usb") {
        return None;
    }
    let source = child(hostdev, "source")?;
    let id = |name| {
        let text = child(source, name)?.attribute("id")?;
        u16::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    };
    Some(UsbId { vendor: id("vendor")?, product: id("product")? })
}

/// How the key of a mediated device begins.
const MEDIATED: &str = "vgpu ";

/// The mediated devices among the extras of a definition.
pub(super) fn mediated_of(extras: &Told) -> impl Iterator<Item = MdevUuid> {
    extras.keys().filter_map(|key| key.strip_prefix(MEDIATED)?.parse().ok())
}

/// The UUID of a passed mediated device.
fn mediated(hostdev: Node<'_, '_>) -> Option<MdevUuid> {
    if hostdev.attribute("type") != Some("mdev") {
        return None;
    }
    child(child(hostdev, "source")?, "address")?.attribute("uuid")?.parse().ok()
}

/// All extras of a definition, whoever put them there.
pub(super) fn told(doc: &Document<'_>) -> Told {
    let mut all = Told::new();
    for tpm in devices(doc, "tpm") {
        let backend = child(tpm, "backend");
        let of = |name| backend.and_then(|b| b.attribute(name));
        let kind = if of("type") == Some("emulator") { "emulated" } else { "of the host's" };
        // libvirt takes 2.0 where none is said (formatdomain, "TPM device").
        all.insert("tpm".to_owned(), format!("{}, {kind}", of("version").unwrap_or("2.0")));
    }
    for graphics in devices(doc, "graphics") {
        let listen = child(graphics, "listen").and_then(|l| l.attribute("address")).or(graphics.attribute("listen"));
        let kind = graphics.attribute("type").unwrap_or_default();
        all.insert("display".to_owned(), format!("{kind} on {}", listen.unwrap_or("127.0.0.1")));
    }
    for hostdev in devices(doc, "hostdev") {
        if let Some(id) = usb(hostdev) {
            all.insert(format!("usb {id}"), "passed".to_owned());
        }
        if let Some(uuid) = mediated(hostdev) {
            all.insert(format!("{MEDIATED}{uuid}"), "passed".to_owned());
        }
    }
    for filesystem in devices(doc, "filesystem") {
        let of = |name| child(filesystem, name).and_then(|n| n.attribute("dir"));
        if let (Some(tag), Some(path)) = (of("target"), of("source")) {
            all.insert(format!("folder {tag}"), path.to_owned());
        }
    }
    all
}
