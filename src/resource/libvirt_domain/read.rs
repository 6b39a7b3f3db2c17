//! The managed fields of a definition, whoever wrote it and however libvirt put it in order since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::write::MARK;
use super::{Disk, DiskOptions, Pins};
use crate::host::Domain;
use crate::plan::FieldDiff;
use crate::types::{ByteSize, MacAddress, MdevUuid, PciAddress, PciSlot, cpu_list, cpu_list_text};

/// What of a definition gpuvm compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Whether gpuvm's mark is in it.
    pub marked: bool,
    /// The user that the mark names, who gets into the guest.
    pub login: Option<String>,
    /// `kvm` or `qemu`.
    pub accel: String,
    /// Virtual processors at most.
    pub cpus: u32,
    /// As the guest sees them, where the definition says that.
    pub topology: Option<String>,
    /// Which of the host's processors they are pinned to.
    pub pins: Pins,
    /// Memory at most.
    pub memory: ByteSize,
    /// The size of its huge pages; zero where it takes the host's usual ones.
    pub huge_pages: Option<ByteSize>,
    /// Whether it boots with UEFI.
    pub uefi: bool,
    /// The kernel that it boots.
    pub kernel: Option<String>,
    /// The initramfs with it.
    pub initrd: Option<String>,
    /// The command line with it.
    pub cmdline: Option<String>,
    /// Each disk by its source, with what backs that.
    pub disks: Vec<Vec<String>>,
    /// What is said of each disk beside its source, in the same order.
    pub options: Vec<DiskOptions>,
    /// The images in its CD-ROM drives.
    pub cdroms: Vec<String>,
    /// Network cards by address: `bridge br0`.
    pub nics: BTreeMap<MacAddress, String>,
    /// Passed PCI functions.
    pub functions: BTreeSet<PciAddress>,
    /// Parts that are one element each, with what they are.
    pub extras: BTreeMap<String, String>,
}

impl Projection {
    /// Whether a disk is there, itself or under snapshots.
    pub(super) fn has_disk(&self, disk: &Disk) -> bool {
        self.disks.iter().flatten().any(|source| is_disk(source, disk))
    }

    /// What is said of a disk, itself or under snapshots.
    pub(super) fn options_of(&self, disk: &Disk) -> Option<&DiskOptions> {
        let at = self.disks.iter().position(|sources| sources.iter().any(|s| is_disk(s, disk)))?;
        self.options.get(at)
    }

    /// Whether the guest writes to this disk itself, and not to a layer over it.
    pub(super) fn writes_to(&self, disk: &Disk) -> bool {
        self.disks.iter().filter_map(|d| d.first()).any(|source| is_disk(source, disk))
    }

    /// Takes up what its disks go on in, by the first file of each: a definition need not say it.
    pub fn go_on_in(&mut self, chains: &BTreeMap<PathBuf, Vec<PathBuf>>) {
        for disk in &mut self.disks {
            let chain = disk.first().and_then(|first| chains.get(Path::new(first)));
            for under in chain.into_iter().flatten().map(|p| p.to_string_lossy().into_owned()) {
                if !disk.contains(&under) {
                    disk.push(under);
                }
            }
        }
    }

    /// The mediated devices that it has.
    pub fn mediated(&self) -> impl Iterator<Item = MdevUuid> {
        super::extras::mediated_of(&self.extras)
    }

    /// Whether an image is in one of its CD-ROM drives.
    pub(super) fn has_cdrom(&self, path: &Path) -> bool {
        self.cdroms.iter().any(|c| Path::new(c) == path)
    }

    /// What of this stored definition is not in force in the running one.
    pub fn differs_from_running(&self, live: &Self) -> Vec<FieldDiff> {
        let mut all = Vec::new();
        let mut field = |name: &str, live: Option<String>, stored: Option<String>| {
            if live != stored {
                all.push(FieldDiff::new(name, live, stored));
            }
        };
        field("accel", Some(live.accel.clone()), Some(self.accel.clone()));
        field("cpus", Some(live.cpus.to_string()), Some(self.cpus.to_string()));
        field("cpu topology", live.topology.clone(), self.topology.clone());
        field("memory", Some(live.memory.to_string()), Some(self.memory.to_string()));
        let pages = |p: &Self| p.huge_pages.map(|p| p.to_string());
        field("memory pages", pages(live), pages(self));
        field("boot kernel", live.kernel.clone(), self.kernel.clone());
        field("boot initrd", live.initrd.clone(), self.initrd.clone());
        field("boot cmdline", live.cmdline.clone(), self.cmdline.clone());
        let cdroms = |p: &Self| p.cdroms.iter().cloned().collect::<BTreeSet<_>>();
        for (differs, is) in [
            (cdroms(self).difference(&cdroms(live)).next().cloned(), true),
            (cdroms(live).difference(&cdroms(self)).next().cloned(), false),
        ] {
            if let Some(path) = differs.filter(|p| p.ends_with("-seed.iso")) {
                let (before, after) = if is { (None, Some(path)) } else { (Some(path), None) };
                field("seed", before, after);
            }
        }
        let set = |p: &Self| p.disks.iter().filter_map(|d| d.first().cloned()).collect::<BTreeSet<_>>();
        let (stored, running) = (set(self), set(live));
        let there = || Some("attached".to_owned());
        stored.difference(&running).for_each(|d| field(&format!("disk {d}"), None, there()));
        running.difference(&stored).for_each(|d| field(&format!("disk {d}"), there(), None));
        for (sources, options) in self.disks.iter().zip(&self.options) {
            let at = live.disks.iter().position(|d| d.first() == sources.first());
            let (Some(running), Some(source)) = (at.and_then(|at| live.options.get(at)), sources.first()) else {
                continue;
            };
            for part in DiskOptions::PARTS {
                field(&format!("{part} of disk {source}"), running.part(part), options.part(part));
            }
        }
        for mac in self.nics.keys().chain(live.nics.keys()).collect::<BTreeSet<_>>() {
            field(&format!("nic {mac}"), live.nics.get(mac).cloned(), self.nics.get(mac).cloned());
        }
        // A USB device that was missing when it started is not in the definition that runs.
        let names = self.extras.keys().chain(live.extras.keys()).filter(|k| !k.starts_with("usb "));
        for name in names.collect::<BTreeSet<_>>() {
            field(name, live.extras.get(name).cloned(), self.extras.get(name).cloned());
        }
        let passed = || Some("passed".to_owned());
        self.functions.difference(&live.functions).for_each(|a| field(&format!("device {a}"), None, passed()));
        live.functions.difference(&self.functions).for_each(|a| field(&format!("device {a}"), passed(), None));
        all
    }
}

/// Processors as a guest sees them: sockets, dies, clusters, cores, threads. What is 1 and unusual is left out.
pub(super) fn topology_text([sockets, dies, clusters, cores, threads]: [u32; 5]) -> String {
    let more = [(dies, "dies"), (clusters, "clusters")];
    let more: String = more.iter().filter(|(n, _)| *n != 1).map(|(n, what)| format!("{n} {what} × ")).collect();
    format!("{sockets} sockets × {more}{cores} cores × {threads} threads")
}

fn topology(cpu: Node<'_, '_>) -> Option<String> {
    let at = child(cpu, "topology")?;
    let part = |name| at.attribute(name).map_or(Some(1), |v| v.parse().ok());
    let [a, b, c, d, e] = ["sockets", "dies", "clusters", "cores", "threads"].map(part);
    Some(topology_text([a?, b?, c?, d?, e?]))
}

/// What a definition says of a disk.
fn options(disk: Node<'_, '_>) -> DiskOptions {
    let of = |element, name| child(disk, element).and_then(|n| n.attribute(name)).map(str::to_owned);
    DiskOptions {
        bus: of("target", "bus"),
        // What libvirt writes out where nothing is said.
        cache: of("driver", "cache").filter(|c| c != "default"),
        discard: of("driver", "discard").or_else(|| Some("ignore".to_owned())),
    }
}

impl DiskOptions {
    /// What there is to say.
    pub(super) const PARTS: [&'static str; 3] = ["bus", "cache", "discard"];

    pub(super) fn part(&self, name: &str) -> Option<String> {
        match name {
            "bus" => self.bus.clone(),
            "cache" => self.cache.clone(),
            _ => self.discard.clone(),
        }
    }
}

/// Whether a VM has one of some disks, or layers over it, in its stored definition or as it runs.
pub fn has_disk(domain: &Domain, is: impl Fn(&str) -> bool) -> bool {
    let has = |xml: &String| project(xml).is_ok_and(|p| p.disks.iter().flatten().any(|source| is(source)));
    has(&domain.inactive_xml) || domain.live_xml.as_ref().is_some_and(has)
}

/// Whether a source, as [`sources`] writes it, is this disk.
pub(super) fn is_disk(source: &str, disk: &Disk) -> bool {
    let by_pool = disk.pool.as_ref().filter(|_| !disk.block).map(|pool| volume(pool.as_str(), &disk.volume));
    source == disk.path.to_string_lossy() || by_pool.as_deref() == Some(source)
}

fn volume(pool: &str, name: &str) -> String {
    format!("volume {pool}/{name}")
}

/// The child element of this name.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.is_element() && c.tag_name().namespace().is_none() && c.tag_name().name() == name)
}

/// All child elements of this name.
pub(super) fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |c| c.is_element() && c.tag_name().namespace().is_none() && c.tag_name().name() == name)
}

/// The devices of a definition of one sort.
pub(super) fn devices<'a, 'i>(doc: &'a Document<'i>, name: &'static str) -> Vec<Node<'a, 'i>> {
    child(doc.root_element(), "devices").map(|d| children(d, name).collect()).unwrap_or_default()
}

fn text(node: Option<Node<'_, '_>>) -> Option<String> {
    node.and_then(|n| n.text()).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

/// A size with libvirt's units (formatdomain, "Memory Allocation"): KiB where none is given.
pub(super) fn size(node: Node<'_, '_>, value: &str) -> Option<ByteSize> {
    let number: u64 = value.trim().parse().ok()?;
    let factor = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor).map(ByteSize::from_bytes)
}

/// The sources of a disk: its own first, then what backs it.
pub(super) fn sources(disk: Node<'_, '_>) -> Vec<String> {
    disk.descendants()
        .filter(|n| n.has_tag_name("source") && !n.ancestors().any(|a| a.has_tag_name("mirror")))
        .filter_map(|source| {
            let plain = ["file", "dev", "dir"].into_iter().find_map(|a| source.attribute(a)).map(str::to_owned);
            plain.or_else(|| Some(volume(source.attribute("pool")?, source.attribute("volume")?)))
        })
        .collect()
}

/// The files that a definition has QEMU take as they are, and those of which it says something else: whether a disk's own
/// or one behind it (formatdomain, "Hard drives, floppy disks, CDROMs": `driver`'s `type`, `format` in `backingStore`).
pub fn raw_and_others(xml: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let Ok(doc) = Document::parse(xml) else { return Default::default() };
    let (mut raw, mut others) = (BTreeSet::new(), BTreeSet::new());
    for source in devices(&doc, "disk").iter().flat_map(|d| d.descendants()).filter(|n| n.has_tag_name("source")) {
        let Some(of) = source.parent_element() else { continue };
        let format = if of.has_tag_name("disk") { "driver" } else { "format" };
        let is_raw = child(of, format).and_then(|f| f.attribute("type")) == Some("raw");
        if let Some(path) = ["file", "dev"].into_iter().find_map(|a| source.attribute(a)) {
            if is_raw { &mut raw } else { &mut others }.insert(path.to_owned());
        }
    }
    (raw, others)
}

/// The network devices that a running VM's cards have on the host (formatdomain, "Overriding the target element").
pub fn taps(live_xml: &str) -> BTreeSet<String> {
    let Ok(doc) = Document::parse(live_xml) else { return BTreeSet::new() };
    let devices = devices(&doc, "interface").into_iter();
    devices.filter_map(|card| child(card, "target")?.attribute("dev").map(str::to_owned)).collect()
}

/// The address of a network card and what it is on.
pub(super) fn nic(interface: Node<'_, '_>) -> Option<(MacAddress, String)> {
    let mac = child(interface, "mac")?.attribute("address")?.parse().ok()?;
    let kind = interface.attribute("type")?;
    let on = child(interface, "source").and_then(|s| s.attribute(kind)).unwrap_or_default();
    Some((mac, format!("{kind} {on}").trim().to_owned()))
}

/// The host function that a hostdev passes; `None` for USB, mdev and others.
pub(super) fn function(hostdev: Node<'_, '_>) -> Option<PciAddress> {
    if hostdev.attribute("mode") != Some("subsystem") || hostdev.attribute("type") != Some("pci") {
        return None;
    }
    let address = child(child(hostdev, "source")?, "address")?;
    let number = |name: &str| match address.attribute(name) {
        None => Some(0),
        Some(text) => match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        },
    };
    let slot = PciSlot {
        domain: number("domain")?,
        bus: u8::try_from(number("bus")?).ok()?,
        device: u8::try_from(number("slot")?).ok()?,
    };
    Some(slot.function(u8::try_from(number("function")?).ok()?))
}

fn pins(tune: Node<'_, '_>) -> Pins {
    let on = |n: Node<'_, '_>| n.attribute("cpuset").map(|c| cpu_list_text(&cpu_list(c)));
    let cpu = |n: Node<'_, '_>| Some((n.attribute("vcpu")?.parse().ok()?, on(n)?));
    Pins {
        cpus: children(tune, "vcpupin").filter_map(cpu).collect(),
        emulator: child(tune, "emulatorpin").and_then(on),
    }
}

/// The host functions that libvirt itself takes from their drivers for a VM, and gives back (`managed='yes'`).
pub fn managed_functions(xml: &str) -> Vec<PciAddress> {
    let Ok(doc) = Document::parse(xml) else { return Vec::new() };
    let managed = devices(&doc, "hostdev").into_iter().filter(|h| h.attribute("managed") == Some("yes"));
    managed.filter_map(function).collect()
}

/// The file of a VM's UEFI variables, where its definition names one.
pub fn nvram(xml: &str) -> Option<String> {
    let doc = Document::parse(xml).ok()?;
    text(child(child(doc.root_element(), "os")?, "nvram"))
}

/// Whether gpuvm's mark is in a definition. One that cannot be read is not marked.
pub fn is_marked(xml: &str) -> bool {
    project(xml).is_ok_and(|p| p.marked)
}

/// The files that the disks of a definition are in, themselves and not what backs them.
pub fn disk_files(xml: &str) -> Vec<String> {
    let Ok(doc) = Document::parse(xml) else { return Vec::new() };
    let disks = devices(&doc, "disk");
    disks.into_iter().filter_map(|d| child(d, "source")?.attribute("file").map(str::to_owned)).collect()
}

/// The managed fields of a definition.
pub fn project(xml: &str) -> Result<Projection, String> {
    let doc = Document::parse(xml).map_err(|e| e.to_string())?;
    let root = doc.root_element();
    if !root.has_tag_name("domain") {
        return Err(format!("it is a <{}>, no <domain>", root.tag_name().name()));
    }
    let memory = child(root, "memory").ok_or("it has no <memory>")?;
    let os = child(root, "os").ok_or("it has no <os>")?;
    let mark = child(root, "metadata")
        .and_then(|m| m.children().find(|c| c.is_element() && c.tag_name().namespace() == Some(MARK)));
    let page = child(root, "memoryBacking")
        .and_then(|m| child(m, "hugepages"))
        .map(|h| child(h, "page").and_then(|p| size(p, p.attribute("size")?)).unwrap_or_default());
    let media = |d: &Node<'_, '_>| matches!(d.attribute("device"), Some("cdrom" | "floppy"));
    let disks: Vec<_> = devices(&doc, "disk").into_iter().filter(|d| !media(d)).collect();
    let cdroms = devices(&doc, "disk").into_iter().filter(|d| d.attribute("device") == Some("cdrom"));
    Ok(Projection {
        marked: mark.is_some(),
        login: mark.and_then(|m| m.attribute("user")).map(str::to_owned),
        accel: root.attribute("type").unwrap_or_default().to_owned(),
        cpus: text(child(root, "vcpu")).map_or(Some(1), |t| t.parse().ok()).ok_or("its <vcpu> is no number")?,
        topology: child(root, "cpu").and_then(topology),
        pins: child(root, "cputune").map(pins).unwrap_or_default(),
        memory: memory.text().and_then(|t| size(memory, t)).ok_or("its <memory> is no size")?,
        huge_pages: page,
        uefi: os.attribute("firmware") == Some("efi")
            || child(os, "loader").is_some_and(|l| l.attribute("type") == Some("pflash")),
        kernel: text(child(os, "kernel")),
        initrd: text(child(os, "initrd")),
        cmdline: text(child(os, "cmdline")),
        options: disks.iter().map(|d| options(*d)).collect(),
        disks: disks.into_iter().map(sources).collect(),
        cdroms: cdroms.flat_map(|d| sources(d).into_iter().next()).collect(),
        nics: devices(&doc, "interface").into_iter().filter_map(nic).collect(),
        functions: devices(&doc, "hostdev").into_iter().filter_map(function).collect(),
        extras: super::extras::told(&doc),
    })
}
