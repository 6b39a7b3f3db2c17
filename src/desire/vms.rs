//! `vms`, and what they imply: libvirt and QEMU, KVM, the pools and volumes of their disks, the networks that they are
//! on. Pools and networks come from `storage`, `libvirt.pool` and `networks`, and are wanted where a VM uses them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::gpus::{proof, resolve};
use super::{Desired, Shared, guests, images, parts, sockets, starts, vgpu, virtual_functions};
use crate::facts::HostFacts;
use crate::image::Builtin;
use crate::manifest::{self, DiskEntry, Loaded, Manifest, NicEntry, StartWhen, VmEntry, VmState};
use crate::plan::{BlockStore, Finding, Key, Severity};
use crate::resource::block_volume::BlockVolume;
use crate::resource::libvirt_domain::{
    Accel, Arch, Disk, DiskOptions, Extra, Firmware, Install, Kernel, LibvirtDomain, Near, Nic, NicOn, PassedSlot,
    Pins, Topology,
};
use crate::resource::{
    Resource, libvirt_network::LibvirtNetwork, pool::Pool, shared_gpu::SharedGpu, vgpu::Vgpus,
    virtual_functions::VirtualFunctions, volume::Volume,
};
use crate::types::{DomainName, MacAddress, MdevUuid, ResourceName, cpu_list_text, sha256_hex};

/// Where libvirt's own packages put disks.
pub const IMAGES: &str = "/var/lib/libvirt/images";

/// The pool of disks that name none.
const DEFAULT: &str = "default";

pub(super) fn desire(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired, shared: &mut Shared) {
    let m = &manifest.manifest;
    let kept = m.vms.values().any(|vm| !vm.absent);
    if m.libvirt.is_some() || kept {
        want_package(shared, "libvirt-daemon-system", if kept { "vms" } else { "libvirt" });
    }
    storage(m, desired);
    let kvm = if kept { readiness(m, facts, desired, shared) } else { false };
    if kept {
        hypervisor(m, facts, desired, shared);
        images::packages(m, facts, shared);
        parts::packages(m, facts, shared);
    }
    for (name, vm) in &m.vms {
        one(manifest, facts, desired, kvm, name, vm);
    }
    if m.libvirt.is_some() || kept {
        sockets::desire(m, facts, if kept { "vms" } else { "libvirt" }, desired);
    }
}

pub(super) fn want_package(shared: &mut Shared, name: &str, from: &str) {
    shared.packages.entry(name.to_owned()).or_default().insert(from.to_owned());
}

pub(super) fn finding(severity: Severity, code: &str, place: &str, message: String, help: &str) -> Finding {
    Finding { severity, code: code.to_owned(), place: place.to_owned(), message, help: help.to_owned() }
}

/// QEMU and its firmware, by the names of the distribution.
fn hypervisor(m: &Manifest, facts: &HostFacts, desired: &mut Desired, shared: &mut Shared) {
    let (qemu, uefi) = match (facts.os.id.as_str(), facts.os.arch.as_str()) {
        ("debian" | "ubuntu", "amd64") => ("qemu-system-x86", "ovmf"),
        ("debian" | "ubuntu", "arm64") => ("qemu-system-arm", "qemu-efi-aarch64"),
        (os, arch) => {
            return desired.findings.push(finding(
                Severity::Error,
                "no-hypervisor",
                "vms",
                format!("it is not known which packages bring QEMU on {os} {arch}"),
                "VMs are for Debian and Ubuntu on amd64 and arm64 in this version",
            ));
        }
    };
    want_package(shared, qemu, "vms");
    want_package(shared, "qemu-utils", "vms");
    if m.vms.values().any(|vm| !vm.absent && vm.firmware != manifest::Firmware::Bios) {
        want_package(shared, uefi, "vms");
    }
}

/// Whether VMs can be run by the processor, with findings where it was asked for and cannot.
fn readiness(m: &Manifest, facts: &HostFacts, desired: &mut Desired, shared: &mut Shared) -> bool {
    let module = match facts.cpu.virtualisation.as_deref() {
        Some("vmx") => Some("kvm_intel"),
        Some("svm") => Some("kvm_amd"),
        _ => None,
    };
    // A processor with the flag whose driver is loaded and gives no device: the firmware has it locked.
    let locked = !facts.cpu.kvm_device && module.is_some_and(|m| facts.modules.contains(m));
    let ready = !locked && (facts.cpu.kvm_device || module.is_some());
    let why = if locked {
        "KVM's driver is loaded and there is no /dev/kvm: virtualisation is locked by the firmware"
    } else {
        "the processor offers no virtualisation (no vmx or svm flag, no /dev/kvm)"
    };
    let mut wants_kvm = false;
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let place = format!("vms.{name}");
        let help = "turn on VT-x or AMD-V (SVM) in the firmware; on a virtual host, allow nested virtualisation";
        match vm.accel {
            manifest::Accel::Tcg => {}
            _ if ready => wants_kvm = true,
            manifest::Accel::Kvm => {
                desired.findings.push(finding(Severity::Error, "no-kvm", &place, why.to_owned(), help))
            }
            manifest::Accel::Auto => {
                let message = format!("{why}; the VM is emulated, which is slow");
                desired.findings.push(finding(Severity::Warning, "no-kvm", &place, message, help));
            }
        }
    }
    if let (true, Some(module)) = (wants_kvm, module) {
        shared.modules.entry(module.to_owned()).or_insert_with(|| "vms".to_owned());
    }
    ready
}

/// Where a disk is, if that is storage of blocks.
fn store_of<'a>(m: &Manifest, disk: &'a DiskEntry) -> Option<(&'a ResourceName, BlockStore)> {
    let name = disk.pool.as_ref()?;
    let entry = m.storage.get(name)?;
    let thin = |pool: &manifest::LvmThinPool| {
        let (group, pool) = pool.as_str().split_once('/')?;
        Some(BlockStore::LvmThin { group: group.to_owned(), pool: pool.to_owned() })
    };
    let thick = |group: &manifest::LvmGroup| BlockStore::Lvm { group: group.to_string() };
    let zfs = |dataset: &manifest::ZfsDataset| BlockStore::Zfs { dataset: dataset.to_string() };
    let store = entry.lvm.as_ref().map(thick).or_else(|| entry.zfs.as_ref().map(zfs));
    store.or_else(|| thin(entry.lvm_thin.as_ref()?)).map(|store| (name, store))
}

/// Where a disk's pool is, and whether a person made that directory.
fn pool_of(m: &Manifest, disk: &DiskEntry) -> Option<(ResourceName, PathBuf, bool)> {
    match &disk.pool {
        Some(name) => m.storage.get(name).and_then(|s| Some((name.clone(), s.dir.clone()?, true))),
        None => default_pool(m),
    }
}

/// `storage`: a pool each.
fn storage(m: &Manifest, desired: &mut Desired) {
    let packages = Key::new("package", "");
    for (name, entry) in &m.storage {
        let place = format!("storage.{name}");
        if name.as_str() == DEFAULT {
            desired.findings.push(finding(
                Severity::Error,
                "pool-name",
                &place,
                "`default` is the pool of disks that name none".to_owned(),
                "write its directory as `libvirt: { pool: … }`, or give the storage another name",
            ));
            continue;
        }
        if let Some(path) = entry.dir.clone() {
            desired.want(&place, [packages.clone()], Pool { name: name.clone(), path, existing: true });
        }
    }
    if let Some(path) = m.libvirt.as_ref().and_then(|l| l.pool.clone())
        && let Ok(name) = DEFAULT.parse()
    {
        desired.want("libvirt.pool", [packages], Pool { name, path, existing: false });
    }
    let mut seen: Vec<(&Path, &str)> = Vec::new();
    let default = m.libvirt.as_ref().and_then(|l| l.pool.as_deref()).unwrap_or(Path::new(IMAGES));
    let all = m.storage.iter().filter_map(|(n, s)| Some((s.dir.as_deref()?, n.as_str())));
    for (path, name) in [(default, DEFAULT)].into_iter().chain(all) {
        match seen.iter().find(|(p, _)| p.components().eq(path.components())) {
            Some((_, other)) => desired.findings.push(finding(
                Severity::Error,
                "same-directory",
                &format!("storage.{name}"),
                format!("`{}` is the directory of pool `{other}` already", path.display()),
                if *other == DEFAULT {
                    "leave `pool` out where you use it: it is the default"
                } else {
                    "keep one of them"
                },
            )),
            None => seen.push((path, name)),
        }
    }
}

fn one(manifest: &Loaded, facts: &HostFacts, desired: &mut Desired, kvm: bool, name: &DomainName, vm: &VmEntry) {
    let m = &manifest.manifest;
    let place = format!("vms.{name}");
    let mut after = vec![Key::new("package", "")];
    let mut seed = None;
    let mut disks = Vec::new();
    let (mut slots, mut mediated) = (Vec::new(), Vec::new());
    let mut media = Vec::new();
    if !vm.absent {
        after.push(Key::new("module", ""));
        after.extend(vm.start_after.iter().map(|other| Key::new("libvirt-domain", other.as_str())));
        disks = self::disks(m, facts, desired, name, vm, &mut after);
        (slots, mediated) = self::slots(m, facts, desired, &place, vm, &mut after);
        media = self::media(m, facts, desired, &place, vm, &mut after);
        if guests::has_seed(vm)
            && let Some((pool, path, existing)) = pool_of_seed(m, vm)
        {
            let packages = Key::new("package", "");
            let pool = desired.want(&place, [packages.clone()], Pool { name: pool, path: path.clone(), existing });
            let needs = vec![packages, pool];
            let (at, key) = guests::want(manifest, desired, &facts.hostname, (name, vm), (&path, needs));
            after.push(key);
            seed = Some(at);
        }
    }
    let nic = vm.network.as_ref().filter(|_| !vm.absent).and_then(|nic| {
        let on = network(m, desired, nic, &mut after)?;
        Some(Nic { on, mac: nic.mac.unwrap_or_else(|| stable_mac(&facts.hostname, name, 0)) })
    });
    let install = installer(m, vm).filter(|_| !vm.absent).and_then(|(image, of)| {
        self::installs(facts, desired, &place, vm, &of);
        let (pool, path, existing) = default_pool(m)?;
        let key =
            desired.want(&place, [Key::new("package", "")], Pool { name: pool.clone(), path: path.clone(), existing });
        let (from, key) = images::want(m, facts, desired, &place, image, (&pool, &path, &key))?;
        after.push(key);
        Some(Install { image: from.name, pointer: from.pointer })
    });
    let domain = LibvirtDomain {
        name: name.clone(),
        cpus: vm.cpus.count.0,
        topology: vm.cpus.topology().map(|[sockets, cores, threads]| {
            let topoext = threads > 1 && facts.cpu.virtualisation.as_deref() == Some("svm");
            Topology { sockets, cores, threads, topoext }
        }),
        pins: pins(&vm.cpus),
        near: near(vm, &slots, facts),
        memory: vm.memory.size,
        huge_pages: vm.memory.pages,
        disks,
        nic,
        slots,
        login: seed.is_some().then(|| vm.user.as_ref().map(|user| user.name.to_string())).flatten(),
        seed,
        extras: match vm.absent {
            true => Vec::new(),
            false => parts::extras(vm).into_iter().chain(mediated.into_iter().map(Extra::Mediated)).collect(),
        },
        smbios: vm.smbios.as_ref().map(manifest::Smbios::entries).unwrap_or_default(),
        additions: parts::additions(manifest, desired, &place, vm),
        windows: vm.is_windows(),
        media,
        firmware: match vm.firmware {
            _ if vm.is_windows() => Firmware::UefiSecure,
            manifest::Firmware::Uefi => Firmware::Uefi,
            manifest::Firmware::UefiSecure => Firmware::UefiSecure,
            manifest::Firmware::Bios => Firmware::Bios,
        },
        boot: vm.boot.as_ref().map(|b| Kernel {
            kernel: b.kernel.clone(),
            initrd: b.initrd.clone(),
            cmdline: b.cmdline.clone(),
        }),
        accel: match vm.accel {
            manifest::Accel::Tcg => Accel::Tcg,
            manifest::Accel::Auto if !kvm => Accel::Tcg,
            manifest::Accel::Auto | manifest::Accel::Kvm => Accel::Kvm,
        },
        arch: if facts.os.arch == "arm64" { Arch::Aarch64 } else { Arch::X86_64 },
        autostart: vm.start == StartWhen::Boot && vm.start_after.is_empty(),
        start_when_made: vm.start == StartWhen::Boot,
        running: vm.state.map(|s| s == VmState::Running),
        absent: vm.absent,
        start_owed: false,
        install,
        install_owed: false,
    };
    let key = desired.want(&place, after, domain);
    starts::desire(name, vm, &key, desired);
    if vm.is_windows() && !vm.absent {
        windows(facts, desired, &place, vm);
    }
    if let Some((_, path, _)) = pool_of_seed(m, vm).filter(|_| vm.absent && guests::has_seed(vm)) {
        guests::want_gone(desired, name, &path, key);
    }
}

/// The image that a VM is installed from, where it is the medium of an installer.
pub(super) fn installer<'a>(m: &Manifest, vm: &'a VmEntry) -> Option<(&'a ResourceName, Builtin)> {
    let name = vm.image.as_ref()?;
    images::built_in(m, name).filter(|of| of.installs).map(|of| (name, of))
}

/// What Ubuntu's installer needs (Ubuntu's documentation of the desktop: 4 GB of memory, 25 GB of disk; a medium's own file
/// system lies in memory).
fn installs(facts: &HostFacts, desired: &mut Desired, place: &str, vm: &VmEntry, of: &Builtin) {
    let mut find = |severity, message: String, help: &str| {
        desired.findings.push(finding(severity, "installer", place, message, help));
    };
    if !of.is_for(&facts.os.arch) {
        let message = format!("there is no medium of Ubuntu's desktop for {} in this version", facts.os.arch);
        find(Severity::Error, message, "take a cloud image with `ubuntu: { desktop: true }`");
    }
    if vm.memory.size.bytes() < 4_000_000_000 {
        let message =
            format!("Ubuntu's desktop is installed with 4 GB of memory at least, and it has {}", vm.memory.size);
        find(Severity::Warning, message, "write `memory: 4GiB`, or more");
    }
    if let Some(size) = vm.disks.first().and_then(|d| d.size).filter(|size| size.bytes() < 25_000_000_000) {
        let message = format!("Ubuntu's desktop wants 25 GB of disk, and its first one has {size}");
        find(Severity::Warning, message, "write `disks: [30GiB]`, or more");
    }
}

/// What Windows 11 needs beside its parts.
fn windows(facts: &HostFacts, desired: &mut Desired, place: &str, vm: &VmEntry) {
    let mut find = |severity, message: &str, help: &str| {
        desired.findings.push(finding(severity, "windows", place, message.to_owned(), help));
    };
    if facts.os.arch == "arm64" {
        find(Severity::Error, "Windows 11 is for hosts on amd64 in this version", "run it on another host");
    }
    if vm.display == manifest::Display::None && vm.gpus.is_empty() {
        find(
            Severity::Warning,
            "nobody can see its guest: Windows has no console on a serial line",
            "write `display: vnc`",
        );
    }
}

/// The pool of a VM's seed: that of its first disk in one.
fn pool_of_seed(m: &Manifest, vm: &VmEntry) -> Option<(ResourceName, PathBuf, bool)> {
    match vm.disks.iter().find(|d| d.path.is_none() && store_of(m, d).is_none()) {
        Some(disk) => pool_of(m, disk),
        None => default_pool(m),
    }
}

fn default_pool(m: &Manifest) -> Option<(ResourceName, PathBuf, bool)> {
    let path = m.libvirt.as_ref().and_then(|l| l.pool.clone()).unwrap_or_else(|| IMAGES.into());
    Some((DEFAULT.parse().ok()?, path, false))
}

/// What of it is pinned: one processor of the host's each where there are as many, else all on all of them.
fn pins(cpus: &manifest::Cpus) -> Option<Pins> {
    let emulator = cpus.emulator.as_ref().map(|on| cpu_list_text(&on.numbers()));
    let on = cpus.pin.as_ref().map(manifest::CpuSet::numbers).unwrap_or_default();
    let count = cpus.count.0;
    let pinned: BTreeMap<u32, String> = match on.len() == count as usize {
        true => (0..count).zip(on.iter().map(u32::to_string)).collect(),
        false if on.is_empty() => BTreeMap::new(),
        false => (0..count).map(|cpu| (cpu, cpu_list_text(&on))).collect(),
    };
    (!pinned.is_empty() || emulator.is_some()).then_some(Pins { cpus: pinned, emulator })
}

/// The NUMA node of its first GPU that has one, unless the manifest itself says where it runs.
fn near(vm: &VmEntry, slots: &[PassedSlot], facts: &HostFacts) -> Option<Near> {
    if vm.cpus.pin.is_some() {
        return None;
    }
    let number = slots.iter().flat_map(|s| &s.functions).find_map(|f| facts.pci.get(f)?.numa_node)?;
    let node = facts.cpu.nodes.iter().find(|n| n.number == number && n.cpus.len() >= vm.cpus.count.0 as usize)?;
    Some(Near { node: number, cpus: cpu_list_text(&node.cpus) })
}

/// The pools and volumes of a VM's disks.
fn disks(
    m: &Manifest,
    facts: &HostFacts,
    desired: &mut Desired,
    name: &DomainName,
    vm: &VmEntry,
    after: &mut Vec<Key>,
) -> Vec<Disk> {
    let packages = Key::new("package", "");
    let place = format!("vms.{name}");
    let mut all = Vec::new();
    for (n, entry) in vm.disks.iter().enumerate() {
        if let Some(path) = &entry.path {
            let path = PathBuf::from(path.as_str());
            all.push(Disk { pool: None, volume: String::new(), block: true, path, options: options(entry) });
            continue;
        }
        let Some(size) = entry.size else { continue };
        let options = |entry: &DiskEntry| {
            let said = options(entry);
            // What a new Windows has a driver for.
            let usual = vm.is_windows().then(|| "sata".to_owned());
            DiskOptions { bus: said.bus.clone().or(usual), ..said }
        };
        // What a medium installs begins as a blank disk.
        let image = vm.image.as_ref().filter(|_| n == 0 && installer(m, vm).is_none());
        if let Some((storage, store)) = store_of(m, entry) {
            let volume = format!("{name}-{n}");
            // An image is kept as a file, in the pool of disks that name none.
            let image = image.and_then(|image| {
                let (pool, path, existing) = default_pool(m)?;
                let wanted = Pool { name: pool.clone(), path: path.clone(), existing };
                let key = desired.want(&place, [packages.clone()], wanted);
                images::want(m, facts, desired, &place, image, (&pool, &path, &key))
            });
            let (image, image_key) = image.unzip();
            let path = store.device(&volume);
            let wanted = BlockVolume {
                storage: storage.clone(),
                store,
                name: volume.clone(),
                size,
                vm: name.clone(),
                take_over: entry.take_over,
                made: false,
                image,
            };
            let needs = [packages.clone()].into_iter().chain(image_key);
            after.push(desired.want(&place, needs, wanted));
            all.push(Disk { pool: Some(storage.clone()), volume, block: true, path, options: options(entry) });
            continue;
        }
        let Some((pool, path, existing)) = pool_of(m, entry) else { continue };
        let volume = format!("{name}-{n}.qcow2");
        let wanted = Pool { name: pool.clone(), path: path.clone(), existing };
        let pool_key = desired.want(&place, [packages.clone()], wanted);
        let image = image.and_then(|i| images::want(m, facts, desired, &place, i, (&pool, &path, &pool_key)));
        let (image, image_key) = image.unzip();
        let wanted = Volume {
            pool: pool.clone(),
            name: volume.clone(),
            size,
            vm: Some(name.clone()),
            take_over: entry.take_over,
            made: false,
            begun: false,
            image,
        };
        let needs = [packages.clone(), pool_key.clone()].into_iter().chain(image_key);
        let volume_key = desired.want(&place, needs, wanted);
        after.extend([pool_key, volume_key]);
        all.push(Disk { path: path.join(&volume), pool: Some(pool), volume, block: false, options: options(entry) });
    }
    all
}

/// The CD-ROMs of a VM. Images are kept in the pool of disks that name none.
fn media(
    m: &Manifest,
    facts: &HostFacts,
    desired: &mut Desired,
    place: &str,
    vm: &VmEntry,
    after: &mut Vec<Key>,
) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for medium in &vm.media {
        let Some(image) = medium.image() else {
            all.push(medium.as_str().into());
            continue;
        };
        let Some((pool, path, existing)) = default_pool(m) else { continue };
        let wanted = Pool { name: pool.clone(), path: path.clone(), existing };
        let key = desired.want(place, [Key::new("package", "")], wanted);
        let found = images::medium(m, facts, desired, place, &image, (&pool, &path, &key));
        let Some((file, image)) = found else { continue };
        after.extend([key, image]);
        all.push(file);
    }
    all
}

/// What the manifest says of a disk beside what it is.
fn options(entry: &DiskEntry) -> DiskOptions {
    use manifest::{DiskBus as Bus, DiskCache as Cache, DiskDiscard as Discard};
    let bus = entry.bus.map(|bus| match bus {
        Bus::Virtio => "virtio",
        Bus::Scsi => "scsi",
        Bus::Sata => "sata",
    });
    let cache = entry.cache.map(|cache| match cache {
        Cache::None => "none",
        Cache::Writeback => "writeback",
        Cache::Writethrough => "writethrough",
        Cache::Directsync => "directsync",
    });
    let discard = entry.discard.map(|discard| match discard {
        Discard::Unmap => "unmap",
        Discard::Ignore => "ignore",
    });
    let [bus, cache, discard] = [bus, cache, discard].map(|word| word.map(str::to_owned));
    DiskOptions { bus, cache, discard }
}

/// The slots of a VM's GPUs and devices, and those of its vGPUs that are mediated devices. One that is not found has its finding already.
fn slots(
    m: &Manifest,
    facts: &HostFacts,
    desired: &mut Desired,
    place: &str,
    vm: &VmEntry,
    after: &mut Vec<Key>,
) -> (Vec<PassedSlot>, Vec<MdevUuid>) {
    let gpus = vm.gpus.iter().filter(|g| g.function.is_none());
    let gpus = gpus.map(|g| (&g.name, m.gpus.get(&g.name), true));
    let devices = vm.devices.iter().filter(|d| d.function.is_none());
    let devices = devices.map(|d| (&d.name, m.devices.get(&d.name), false));
    let mut all: Vec<PassedSlot> = Vec::new();
    let mut mediated = Vec::new();
    for (name, entry, gpu) in gpus.chain(devices) {
        let Some(slot) = entry.and_then(|e| resolve(e, gpu, facts).ok()) else { continue };
        if all.iter().any(|s| s.slot == slot) {
            let message = format!("`{name}` is {slot}, which the VM has already by another name");
            desired.findings.push(finding(Severity::Error, "same-device", place, message, "name each device once"));
            continue;
        }
        after.extend([Key::new("vfio-binding", name.as_str()), Key::new(SharedGpu::KIND, name.as_str()), proof()]);
        all.push(PassedSlot::whole(slot, facts.slot(slot).map(|f| f.address).collect()));
    }
    for gpu in &vm.gpus {
        let (Some(number), Some(entry)) = (gpu.function, m.gpus.get(&gpu.name)) else { continue };
        let Some(places) = vgpu::resolved(entry, facts) else { continue };
        let Some(address) = places.functions.get(usize::from(number)).copied() else { continue };
        after.extend([Key::new(Vgpus::KIND, gpu.name.as_str()), proof()]);
        match places.uuids(&gpu.name, facts).get(usize::from(number)) {
            Some(uuid) => mediated.push(*uuid),
            None => all.push(PassedSlot::virtual_function(address)),
        }
    }
    for device in &vm.devices {
        let (Some(number), Some(entry)) = (device.function, m.devices.get(&device.name)) else { continue };
        let found = virtual_functions::resolved(entry, facts);
        let Some(address) = found.and_then(|(_, all)| all.get(usize::from(number)).copied()) else { continue };
        after.extend([Key::new(VirtualFunctions::KIND, device.name.as_str()), proof()]);
        all.push(PassedSlot::virtual_function(address));
    }
    (all, mediated)
}

/// What a VM's network card is on.
fn network(m: &Manifest, desired: &mut Desired, nic: &NicEntry, after: &mut Vec<Key>) -> Option<NicOn> {
    if let Some(bridge) = m.bridge.as_ref().filter(|b| b.name.as_str() == nic.name.as_str()) {
        after.push(Key::new("bridge", bridge.name.as_str()));
        return Some(NicOn::Bridge(bridge.name.clone()));
    }
    let entry = m.networks.get(&nic.name)?;
    let wanted = LibvirtNetwork { name: entry.libvirt.clone() };
    after.push(desired.want(&format!("networks.{}", nic.name), [Key::new("package", "")], wanted));
    Some(NicOn::Network(entry.libvirt.clone()))
}

/// An address that stays the same for this VM on this host: QEMU's prefix, and three bytes of a digest.
pub(super) fn stable_mac(host: &str, vm: &DomainName, index: usize) -> MacAddress {
    let [a, b, c] = stable_bytes(&format!("{host}\n{vm}\n{index}"));
    MacAddress([0x52, 0x54, 0x00, a, b, c])
}

/// Three bytes of a text's digest.
pub(super) fn stable_bytes(text: &str) -> [u8; 3] {
    let digest = sha256_hex(text.as_bytes());
    [0, 1, 2].map(|n| u8::from_str_radix(&digest[n * 2..n * 2 + 2], 16).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stays_and_is_no_other_vms() {
        let mac = |host: &str, vm: &str| stable_mac(host, &vm.parse().unwrap(), 0).to_string();
        assert_eq!(mac("a", "web"), mac("a", "web"));
        assert!(mac("a", "web").starts_with("52:54:00:"));
        assert_ne!(mac("a", "web"), mac("a", "db"));
        assert_ne!(mac("a", "web"), mac("b", "web"));
    }

    fn desired(os: &str, arch: &str, text: &str) -> (Vec<String>, Vec<String>, Desired) {
        let mut facts = crate::resource::tests::facts();
        (facts.os.id, facts.os.arch) = (os.to_owned(), arch.to_owned());
        facts.cpu.virtualisation = Some("vmx".to_owned());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.yaml");
        std::fs::write(&path, text).unwrap();
        let loaded = manifest::load(&path).unwrap();
        let (mut desired, mut shared) = (Desired::default(), Shared::default());
        desire(&loaded, &facts, &mut desired, &mut shared);
        (shared.packages.into_keys().collect(), shared.modules.into_keys().collect(), desired)
    }
    const VM: &str = "version: 1\nvms:\n  a: { cpus: 1, memory: 1GiB, disks: [1GiB] }\n";

    #[test]
    fn a_vm_implies_what_it_needs_by_the_distributions_names() {
        let (packages, modules, _) = desired("debian", "amd64", VM);
        assert_eq!(packages, ["libvirt-daemon-system", "ovmf", "qemu-system-x86", "qemu-utils"]);
        assert_eq!(modules, ["kvm_intel"]);
        let (packages, _, _) = desired("ubuntu", "arm64", VM);
        assert_eq!(packages, ["libvirt-daemon-system", "qemu-efi-aarch64", "qemu-system-arm", "qemu-utils"]);
        let (_, modules, _) = desired("debian", "amd64", &VM.replace("cpus: 1,", "cpus: 1, accel: tcg,"));
        assert!(modules.is_empty(), "what is emulated needs no KVM");
        let (packages, _, desired) = desired("fedora", "amd64", VM);
        assert_eq!(packages, ["libvirt-daemon-system"]);
        assert!(desired.findings.iter().any(|f| f.code == "no-hypervisor" && f.severity == Severity::Error));
    }

    #[test]
    fn only_what_is_used_is_wanted() {
        let keys = |text: &str| {
            let (_, _, desired) = desired("debian", "amd64", text);
            desired.nodes.keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(keys(VM), ["libvirt-domain[a]", "pool[default]", "volume[default/a-0.qcow2]"]);
        assert_eq!(keys(&VM.replace("disks: [1GiB]", "absent: true")), ["libvirt-domain[a]"]);
        assert_eq!(keys("version: 1\nnetworks: { n: { libvirt: default } }\n"), [""; 0], "no VM is on it");
        assert_eq!(
            keys("version: 1\nlibvirt: { pool: /srv/p }\nstorage: { s: { dir: /srv/s } }\n"),
            ["pool[default]", "pool[s]"]
        );
    }
}
