//! A VM that libvirt has, as an entry of `vms`: the parts of its definition that a manifest has words for. Everything
//! else stays in the definition, unmanaged, and is named in a comment.

use std::path::{Path, PathBuf};

use super::words::{comment, scalar};
use super::{Refused, refused};
use crate::desire::{IMAGES, slot_of};
use crate::facts::{HostFacts, Known, LinkKind};
use crate::host::{Domain, Virtualisation};
use crate::manifest::{
    Accel, BridgeSection, CpuCount, DeviceUse, DirectBoot, DiskEntry, Firmware, GivenDevice, Manifest, Memory,
    NetworkEntry, NicEntry, StartWhen, Uplink, VmEntry,
};
use crate::resource::libvirt_domain::{Projection, is_marked, project};
use crate::types::{ByteSize, DomainName, PciAddress, PciSlot, ResourceName};

/// A VM as a manifest has it.
#[derive(Debug)]
pub(super) struct Described {
    pub entry: VmEntry,
    /// What of it stays unmanaged.
    pub rest: Vec<String>,
    /// A network that the manifest does not have yet.
    pub network: Option<(ResourceName, NetworkEntry)>,
    /// The bridge, where the manifest has none yet.
    pub bridge: Option<BridgeSection>,
}

/// Describes a VM as it is.
pub(super) fn vm(
    name: &DomainName,
    domain: &Domain,
    manifest: &Manifest,
    facts: &HostFacts,
    known: &Virtualisation,
) -> Result<Described, Refused> {
    let by_hand = |why: String| refused(why, format!("look at it: virsh dumpxml {name}"));
    let is = project(&domain.inactive_xml).map_err(|why| by_hand(format!("its definition cannot be read: {why}")))?;
    let accel = match is.accel.as_str() {
        "kvm" if facts.cpu.kvm_device || facts.cpu.virtualisation.is_some() => Accel::Auto,
        "kvm" => Accel::Kvm,
        "qemu" => Accel::Tcg,
        other => return Err(by_hand(format!("it is of type `{}`, and gpuvm has VMs of QEMU only", comment(other)))),
    };
    if !(1..=1024).contains(&is.cpus) {
        return Err(by_hand(format!("it has {} virtual processors", is.cpus)));
    }
    if is.memory < ByteSize::from_mib(32) || !is.memory.bytes().is_multiple_of(1024) {
        return Err(by_hand(format!("its memory of {} is nothing that a manifest has", is.memory)));
    }
    let mut rest = Vec::new();
    let pages = is.huge_pages.filter(|p| {
        [ByteSize::from_mib(2), ByteSize::from_gib(1)].contains(p) && is.memory.bytes().is_multiple_of(p.bytes())
    });
    if is.huge_pages.is_some() && pages.is_none() {
        rest.push("huge pages of the host's usual size".to_owned());
    }
    let (disks, other_disks) = disks(name, &is, manifest, known);
    // A disk that is added later would be this one, with a guest's data in it.
    let numbered = |source: &&String| {
        let file = Path::new(source).file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
        let number = file.strip_prefix(&format!("{name}-")).and_then(|rest| rest.strip_suffix(".qcow2"));
        number.is_some_and(|n| n.parse::<u16>().is_ok())
    };
    if let Some(taken) = other_disks.iter().find(numbered) {
        return Err(refused(
            format!("its disk `{}` has a name that gpuvm gives to disks, and is not as gpuvm has them", comment(taken)),
            "they are qcow2 volumes of a started pool, numbered from 0 without a gap; give this one another name",
        ));
    }
    rest.extend(other_disks.iter().map(|d| format!("disk {}", comment(d))));
    match is.disks.iter().filter(|d| d.is_empty()).count() {
        0 => {}
        1 => rest.push("a disk that is no file".to_owned()),
        n => rest.push(format!("{n} disks that are no files")),
    }
    let nic = nic(&is, manifest, facts, known, &mut rest);
    let (gpus, devices) = devices(&is, manifest, facts, &mut rest);
    // What gpuvm gave it and the entry does not name, the next apply would take away.
    let unnamed = is.functions.iter().find(|a| rest.contains(&passed(a)));
    if let Some(address) = unnamed.filter(|_| is_marked(&domain.inactive_xml)) {
        let card = facts.slot(address.slot).next();
        let (section, gpu) = match facts.slot(address.slot).any(crate::facts::PciFunction::is_gpu) {
            true => ("gpus", true),
            false => ("devices", false),
        };
        let fits = card.map_or_else(
            || format!("match: {{ address: \"{}\" }}", address.slot),
            |f| crate::gpu::identity::shortest(f, gpu, facts),
        );
        return Err(refused(
            format!(
                "gpuvm made it and gave it {}, which the manifest does not name: its entry would be without",
                address.slot
            ),
            format!("name the device first, as it was named before: `{section}: {{ NAME: {{ {fits}, use: vfio }} }}`"),
        ));
    }
    let boot = boot(&is, &mut rest);
    let entry = VmEntry {
        cpus: CpuCount(is.cpus).into(),
        memory: Memory { size: is.memory, pages },
        image: None,
        disks,
        user: None,
        cloud_init: None,
        ubuntu: None,
        network: nic.entry,
        gpus: gpus.into_iter().map(GivenDevice::from).collect(),
        devices: devices.into_iter().map(GivenDevice::from).collect(),
        firmware: if is.uefi { Firmware::Uefi } else { Firmware::Bios },
        guest: None,
        windows: None,
        media: Vec::new(),
        tpm: false,
        display: crate::manifest::Display::None,
        usb: Vec::new(),
        folders: Vec::new(),
        smbios: None,
        xml: Vec::new(),
        boot,
        accel,
        start: if domain.autostart { StartWhen::Boot } else { StartWhen::Manual },
        start_after: Vec::new(),
        state: None,
        absent: false,
    };
    Ok(Described { entry, rest, network: nic.network, bridge: nic.bridge })
}

/// The disks that have the name and the place that gpuvm gives them, in order, and the sources of all others.
fn disks(name: &DomainName, is: &Projection, m: &Manifest, known: &Virtualisation) -> (Vec<DiskEntry>, Vec<String>) {
    let default = m.libvirt.as_ref().and_then(|l| l.pool.clone()).unwrap_or_else(|| IMAGES.into());
    let pools: Vec<(Option<&ResourceName>, &str, &Path)> = std::iter::once((None, "default", default.as_path()))
        .chain(m.storage.iter().filter_map(|(n, s)| Some((Some(n), n.as_str(), s.dir.as_deref()?))))
        .collect();
    // Under a snapshot it is the same disk.
    let sources: Vec<&String> = is.disks.iter().flatten().collect();
    let mut taken: Vec<String> = Vec::new();
    let mut disks = Vec::new();
    let find = |n: usize| {
        let volume = format!("{name}-{n}.qcow2");
        pools.iter().find_map(|(entry, pool, dir)| {
            let path = dir.join(&volume).display().to_string();
            let pool = known.pool(pool).filter(|p| p.active && p.autostart)?;
            let found = pool.volumes.iter().find(|v| v.name == volume && v.format == "qcow2")?;
            let size = found.size();
            let fits = sources.contains(&&path) && size >= ByteSize::from_mib(1) && size.bytes().is_multiple_of(1024);
            fits.then(|| (path, DiskEntry { pool: entry.cloned(), ..size.into() }))
        })
    };
    while let Some((path, disk)) = find(disks.len()) {
        taken.push(path);
        disks.push(disk);
    }
    let covered = |d: &&Vec<String>| d.iter().any(|s| taken.contains(s));
    let others = is.disks.iter().filter(|d| !covered(d)).flatten();
    (disks, others.cloned().collect())
}

#[derive(Default)]
struct DescribedNic {
    entry: Option<NicEntry>,
    network: Option<(ResourceName, NetworkEntry)>,
    bridge: Option<BridgeSection>,
}

/// The first card that is on something a manifest has; the others stay as they are.
fn nic(
    is: &Projection,
    m: &Manifest,
    facts: &HostFacts,
    known: &Virtualisation,
    rest: &mut Vec<String>,
) -> DescribedNic {
    let mut found = DescribedNic::default();
    for (mac, is_on) in &is.nics {
        let (kind, name) = is_on.split_once(' ').unwrap_or((is_on, ""));
        let mut one = DescribedNic::default();
        let word: Option<ResourceName> = name.parse().ok();
        let fits = found.entry.is_none() && mac.0[0] & 1 == 0;
        let on = |name, mac| NicEntry { name, mac: Some(mac), address: None, gateway: None, nameservers: Vec::new() };
        let entry = word.filter(|_| fits).and_then(|name| match kind {
            "bridge" => {
                match &m.bridge {
                    Some(bridge) if bridge.name.as_str() == name.as_str() => {}
                    None if is_bridge(facts, name.as_str()) && !m.networks.contains_key(&name) => {
                        let bridge = name.as_str().parse().ok()?;
                        one.bridge = Some(BridgeSection { name: bridge, uplink: Uplink::Auto, existing: true });
                    }
                    _ => return None,
                }
                Some(on(name, *mac))
            }
            // A network that is not started would be, which is no adoption.
            "network" if known.network(name.as_str()).is_some_and(|n| n.active && n.autostart) => {
                match m.networks.iter().find(|(_, n)| n.libvirt == name) {
                    Some((key, _)) => Some(on(key.clone(), *mac)),
                    None if m.networks.contains_key(&name) => None,
                    None if m.bridge.as_ref().is_some_and(|b| b.name.as_str() == name.as_str()) => None,
                    None => {
                        one.network = Some((name.clone(), NetworkEntry { libvirt: name.clone() }));
                        Some(on(name, *mac))
                    }
                }
            }
            _ => None,
        });
        match entry {
            Some(entry) => found = DescribedNic { entry: Some(entry), ..one },
            None => rest.push(format!("network card {mac} ({})", comment(is_on))),
        }
    }
    found
}

fn is_bridge(facts: &HostFacts, name: &str) -> bool {
    matches!(&facts.network, Known::Value(net) if net.links.get(name).is_some_and(|l| l.kind == LinkKind::Bridge))
}

fn passed(address: &PciAddress) -> String {
    format!("passed device {address}")
}

/// The passed slots that the manifest keeps for VMs, by their names there.
fn devices(
    is: &Projection,
    m: &Manifest,
    facts: &HostFacts,
    rest: &mut Vec<String>,
) -> (Vec<ResourceName>, Vec<ResourceName>) {
    let mut taken: Vec<PciSlot> = Vec::new();
    let mut named = |entries: &std::collections::BTreeMap<ResourceName, crate::manifest::DeviceEntry>, gpu: bool| {
        let mut all = Vec::new();
        for (name, entry) in entries.iter().filter(|(_, e)| e.usage == DeviceUse::Vfio) {
            let Some(slot) = slot_of(entry, gpu, facts).filter(|s| !taken.contains(s)) else { continue };
            let mut functions = facts.slot(slot).peekable();
            // A slot is in a VM as a whole, or it is not what a manifest means.
            if functions.peek().is_some() && functions.all(|f| is.functions.contains(&f.address)) {
                taken.push(slot);
                all.push(name.clone());
            }
        }
        all
    };
    let gpus = named(&m.gpus, true);
    let devices = named(&m.devices, false);
    for address in is.functions.iter().filter(|a| !taken.contains(&a.slot)) {
        rest.push(passed(address));
    }
    (gpus, devices)
}

fn boot(is: &Projection, rest: &mut Vec<String>) -> Option<DirectBoot> {
    let whole = |text: &String| {
        let path = PathBuf::from(text);
        let down = path.is_absolute() && !path.components().any(|c| matches!(c, std::path::Component::ParentDir));
        (down && !text.chars().any(char::is_control)).then_some(path)
    };
    let kernel = is.kernel.as_ref()?;
    let boot = whole(kernel).and_then(|kernel| {
        let initrd = match &is.initrd {
            None => None,
            Some(text) => Some(whole(text)?),
        };
        Some(DirectBoot { kernel, initrd, cmdline: is.cmdline.clone() })
    });
    if boot.is_none() {
        rest.push(format!("the kernel that it boots ({})", comment(kernel)));
    }
    boot
}

/// The entry as lines of a block.
pub(super) fn lines(entry: &VmEntry, rest: &[String]) -> Vec<String> {
    let mut lines = vec![format!("cpus: {}", entry.cpus.count.0)];
    lines.push(match entry.memory.pages {
        Some(pages) => format!("memory: {{ size: {}, pages: {pages} }}", entry.memory.size),
        None => format!("memory: {}", entry.memory.size),
    });
    let list = |names: &[GivenDevice]| names.iter().map(|n| scalar(&n.to_string())).collect::<Vec<_>>().join(", ");
    if !entry.disks.is_empty() {
        let disk = |d: &DiskEntry| match &d.pool {
            Some(pool) => format!("{{ size: {}, pool: {} }}", d.size.unwrap_or_default(), scalar(pool.as_str())),
            None => d.size.unwrap_or_default().to_string(),
        };
        lines.push(format!("disks: [{}]", entry.disks.iter().map(disk).collect::<Vec<_>>().join(", ")));
    }
    if let Some(nic) = &entry.network {
        let mac = nic.mac.map_or(String::new(), |m| format!(", mac: \"{m}\""));
        lines.push(format!("network: {{ name: {}{mac} }}", scalar(nic.name.as_str())));
    }
    for (section, names) in [("gpus", &entry.gpus), ("devices", &entry.devices)] {
        if !names.is_empty() {
            lines.push(format!("{section}: [{}]", list(names)));
        }
    }
    if entry.firmware == Firmware::Bios {
        lines.push("firmware: bios".to_owned());
    }
    match entry.accel {
        Accel::Auto => {}
        Accel::Kvm => lines.push("accel: kvm".to_owned()),
        Accel::Tcg => lines.push("accel: tcg".to_owned()),
    }
    if let Some(boot) = &entry.boot {
        lines.push("boot:".to_owned());
        lines.push(format!("  kernel: {}", scalar(&boot.kernel.to_string_lossy())));
        lines.extend(boot.initrd.iter().map(|i| format!("  initrd: {}", scalar(&i.to_string_lossy()))));
        lines.extend(boot.cmdline.iter().map(|c| format!("  cmdline: {}", scalar(c))));
    }
    if entry.start == StartWhen::Boot {
        lines.push("start: boot".to_owned());
    }
    if !rest.is_empty() {
        lines.push("# In its definition and left to you:".to_owned());
        lines.extend(rest.iter().map(|r| format!("#   {r}")));
    }
    lines
}
