//! The definition of a new VM, and the elements that an edit puts into one that is there.

use std::fmt::Write as _;
use std::path::Path;

use super::{Accel, Arch, Disk, Extra, Firmware, LibvirtDomain, Nic, NicOn, PassedSlot, Pins, Topology};
use crate::types::{ByteSize, PciAddress, xml_escape as e};

/// The name space of gpuvm's mark in a definition's metadata.
pub const MARK: &str = "urn:gpuvm:vm:1";

/// gpuvm's mark, with the user who gets into the guest.
pub(super) fn mark(login: Option<&str>) -> String {
    let user = login.map(|login| format!(" user='{}'", e(login))).unwrap_or_default();
    format!("<gpuvm:vm xmlns:gpuvm='{MARK}'{user}/>")
}

/// The CPU that goes with an accelerator.
pub(super) const fn cpu_mode(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host-passthrough",
        Accel::Tcg => "maximum",
    }
}

pub(super) fn huge_pages(size: ByteSize) -> String {
    format!("<hugepages>\n      <page size='{}' unit='KiB'/>\n    </hugepages>", size.kib())
}

pub(super) fn pins(pins: &Pins) -> String {
    let cpus = pins.cpus.iter().map(|(cpu, on)| format!("\n    <vcpupin vcpu='{cpu}' cpuset='{}'/>", e(on)));
    let emulator = pins.emulator.iter().map(|on| format!("\n    <emulatorpin cpuset='{}'/>", e(on)));
    format!("<cputune>{}\n  </cputune>", cpus.chain(emulator).collect::<String>())
}

/// The name of the n-th disk of a bus, as the kernel's drivers count: vda … vdz, vdaa …, and sda … on any other bus.
pub(super) fn disk_name(bus: &str, n: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    let prefix = if bus == "virtio" { "vd" } else { "sd" };
    match n.checked_sub(26) {
        None => format!("{prefix}{}", letter(n)),
        Some(more) => format!("{prefix}{}{}", letter(more / 26), letter(more)),
    }
}

/// The first name that no other disk has, and takes it.
pub(super) fn free_name(bus: &str, taken: &mut Vec<String>) -> Option<String> {
    let name = (0..702).map(|n| disk_name(bus, n)).find(|name| !taken.contains(name))?;
    taken.push(name.clone());
    Some(name)
}

pub(super) fn disk(disk: &Disk, target: &str) -> String {
    let options = &disk.options;
    let (kind, format, source) = if disk.block { ("block", "raw", "dev") } else { ("file", "qcow2", "file") };
    // The host's page cache before a device that only the guest has is memory for nothing.
    let cache = options.cache.as_deref().or(disk.block.then_some("none"));
    let native = disk.block && matches!(cache, Some("none" | "directsync"));
    let cache = cache.map_or(String::new(), |c| format!(" cache='{}'", e(c)));
    let io = if native { " io='native'" } else { "" };
    format!(
        "<disk type='{kind}' device='disk'>\n      <driver name='qemu' type='{format}'{cache}{io} discard='{}'/>\n      \
         <source {source}='{}'/>\n      <target dev='{target}' bus='{}'/>\n    </disk>",
        e(options.discard.as_deref().unwrap_or("unmap")),
        e(&disk.path.to_string_lossy()),
        e(options.bus())
    )
}

/// What disks on `scsi` hang on. Where none is said, libvirt takes a model that few guests have a driver for.
pub(super) const SCSI: &str = "<controller type='scsi' index='0' model='virtio-scsi'/>";

/// How the guest sees its processors.
pub(super) fn topology(t: &Topology) -> String {
    format!("<topology sockets='{}' cores='{}' threads='{}'/>", t.sockets, t.cores, t.threads)
}

/// What Windows knows of running in a VM (formatdomain, "Hypervisor features"; docs/system/i386/hyperv in QEMU: `stimer` needs
/// `synic` and `time`, `tlbflush` and `ipi` need `vpindex`).
const HYPERV: &str = "<hyperv mode='custom'>
      <relaxed state='on'/>
      <vapic state='on'/>
      <spinlocks state='on' retries='8191'/>
      <vpindex state='on'/>
      <runtime state='on'/>
      <synic state='on'/>
      <stimer state='on'/>
      <reset state='on'/>
      <frequencies state='on'/>
      <tlbflush state='on'/>
      <ipi state='on'/>
    </hyperv>";

/// Windows takes the machine's clock for local time, and its own one from the hypervisor.
const WINDOWS_CLOCK: &str = "<clock offset='localtime'>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/>
    <timer name='hypervclock' present='yes'/>
  </clock>";

/// Ports that a new VM has to spare: a GPU has up to four functions, and libvirt plugs each into a port of its own.
const SPARE_PORTS: usize = 4;

/// How many ports libvirt gives to what a new definition has of its own: it takes the ones that are there first, and adds
/// one to spare itself only where a definition names none (pci-hotplug in libvirt's documentation).
fn own_ports(vm: &LibvirtDomain) -> usize {
    let virtio = vm.disks.iter().filter(|d| d.options.bus() == "virtio").count();
    let scsi = usize::from(vm.disks.iter().any(|d| d.options.bus() == "scsi") || vm.arch == Arch::Aarch64);
    let folders = vm.extras.iter().filter(|e| matches!(e, Extra::Folder { .. })).count();
    let display = usize::from(vm.extras.iter().any(|e| matches!(e, Extra::Display(_))));
    // The guest agent's channel, the memory balloon, the source of randomness, the USB controller.
    const ALWAYS: usize = 4;
    let mediated = vm.extras.iter().filter(|e| matches!(e, Extra::Mediated(_))).count();
    virtio + scsi + folders + display + mediated + usize::from(vm.nic.is_some()) + ALWAYS
}

/// The bus of CD-ROM drives on a machine.
pub(super) const fn cdrom_bus(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "sata",
        Arch::Aarch64 => "scsi",
    }
}

/// A CD-ROM drive with an image in it.
pub(super) fn cdrom(path: &Path, target: &str, bus: &str) -> String {
    format!(
        "<disk type='file' device='cdrom'>\n      <driver name='qemu' type='raw'/>\n      <source file='{}'/>\n      \
         <target dev='{target}' bus='{bus}'/>\n      <readonly/>\n    </disk>",
        e(&path.to_string_lossy())
    )
}

/// The `type` of a network card, and the `<source>` in it.
pub(super) fn nic_source(on: &NicOn) -> (&'static str, String) {
    match on {
        NicOn::Bridge(name) => ("bridge", format!("<source bridge='{}'/>", e(name.as_str()))),
        NicOn::Network(name) => ("network", format!("<source network='{}'/>", e(name.as_str()))),
    }
}

pub(super) fn interface(nic: &Nic, windows: bool) -> String {
    let (kind, source) = nic_source(&nic.on);
    // What a new Windows has a driver for.
    let model = if windows { "e1000e" } else { "virtio" };
    format!(
        "<interface type='{kind}'>\n      <mac address='{}'/>\n      {source}\n      <model type='{model}'/>\n    </interface>",
        nic.mac
    )
}

/// A port of the guest's that a passed slot is plugged into: its index is the bus behind it.
pub(super) fn root_port(index: u32) -> String {
    format!("<controller type='pci' index='{index}' model='pcie-root-port'/>")
}

/// The functions of a slot as one device of the guest: on the bus of one port, each with the function number that it
/// has on the host. `None` leaves the place in the guest to libvirt.
pub(super) fn hostdevs(slot: &PassedSlot, bus: Option<u32>) -> Vec<String> {
    // A device without a function 0 is not seen by the guest.
    let numbered = slot.functions.iter().any(|f| f.function == 0);
    let one = |(n, address): (usize, &PciAddress)| {
        let function = if numbered { usize::from(address.function) } else { n };
        hostdev(slot, *address, bus.map(|bus| (bus, function)))
    };
    slot.functions.iter().enumerate().map(one).collect()
}

/// One function of a slot, with the bus and the function number that it has in the guest.
pub(super) fn hostdev(slot: &PassedSlot, address: PciAddress, place: Option<(u32, usize)>) -> String {
    let many = slot.functions.len() > 1;
    let place = place.map_or(String::new(), |(bus, function)| {
        let first = if many && function == 0 { " multifunction='on'" } else { "" };
        format!(
            "\n      <address type='pci' domain='0x0000' bus='{bus:#04x}' slot='0x00' function='{function:#x}'{first}/>"
        )
    });
    let at = address.slot;
    format!(
        "<hostdev mode='subsystem' type='pci' managed='no'>\n      <source>\n        \
         <address domain='{:#06x}' bus='{:#04x}' slot='{:#04x}' function='{:#x}'/>\n      </source>{place}\n    </hostdev>",
        at.domain, at.bus, at.device, address.function
    )
}

/// Memory that a folder's daemon shares with the guest.
pub(super) const SHARED: [&str; 2] = ["<source type='memfd'/>", "<access mode='shared'/>"];

pub(super) fn sysinfo(vm: &LibvirtDomain) -> String {
    let entry = |(name, value): (&String, &String)| format!("      <entry name='{}'>{}</entry>\n", e(name), e(value));
    let entries: String = vm.smbios.iter().map(entry).collect();
    format!("<sysinfo type='smbios'>\n    <system>\n{entries}    </system>\n  </sysinfo>")
}

/// The whole definition of a new VM.
pub(super) fn new(vm: &LibvirtDomain) -> String {
    let mut x = String::new();
    // Writing to a String cannot fail.
    let _ = definition(vm, &mut x);
    super::splice::with_additions(&x, &vm.additions).unwrap_or(x)
}

fn definition(vm: &LibvirtDomain, x: &mut String) -> std::fmt::Result {
    let (arch, machine) = match vm.arch {
        Arch::X86_64 => ("x86_64", "q35"),
        Arch::Aarch64 => ("aarch64", "virt"),
    };
    writeln!(x, "<domain type='{}'>", vm.accel.name())?;
    writeln!(x, "  <name>{}</name>", e(vm.name.as_str()))?;
    writeln!(x, "  <metadata>\n    {}\n  </metadata>", mark(vm.login.as_deref()))?;
    writeln!(x, "  <memory unit='KiB'>{}</memory>", vm.memory.kib())?;
    let shared = vm.extras.iter().any(|e| matches!(e, Extra::Folder { .. }));
    if vm.huge_pages.is_some() || shared {
        writeln!(x, "  <memoryBacking>")?;
        if let Some(size) = vm.huge_pages {
            writeln!(x, "    {}", huge_pages(size))?;
        }
        if shared {
            writeln!(x, "    {}", SHARED.join("\n    "))?;
        }
        writeln!(x, "  </memoryBacking>")?;
    }
    // Preferred, not strict: a VM that does not fit on the node starts all the same, a little slower.
    let on = vm.near.as_ref().map_or(String::new(), |near| format!(" cpuset='{}'", e(&near.cpus)));
    writeln!(x, "  <vcpu placement='static'{on}>{}</vcpu>", vm.cpus)?;
    if let Some(wanted) = &vm.pins {
        writeln!(x, "  {}", pins(wanted))?;
    }
    if let Some(near) = &vm.near {
        writeln!(x, "  <numatune>\n    <memory mode='preferred' nodeset='{}'/>\n  </numatune>", near.node)?;
    }
    if !vm.smbios.is_empty() {
        writeln!(x, "  {}", sysinfo(vm))?;
    }
    match vm.firmware {
        Firmware::Uefi | Firmware::UefiSecure => writeln!(x, "  <os firmware='efi'>")?,
        Firmware::Bios => writeln!(x, "  <os>")?,
    }
    writeln!(x, "    <type arch='{arch}' machine='{machine}'>hvm</type>")?;
    if vm.firmware != Firmware::Bios {
        let yes_no = if vm.firmware == Firmware::UefiSecure { "yes" } else { "no" };
        writeln!(x, "    <firmware>")?;
        for feature in ["enrolled-keys", "secure-boot"] {
            writeln!(x, "      <feature enabled='{yes_no}' name='{feature}'/>")?;
        }
        writeln!(x, "    </firmware>")?;
    }
    if !vm.smbios.is_empty() {
        writeln!(x, "    <smbios mode='sysinfo'/>")?;
    }
    if let Some(boot) = &vm.boot {
        writeln!(x, "    <kernel>{}</kernel>", e(&boot.kernel.to_string_lossy()))?;
        if let Some(initrd) = &boot.initrd {
            writeln!(x, "    <initrd>{}</initrd>", e(&initrd.to_string_lossy()))?;
        }
        if let Some(cmdline) = &boot.cmdline {
            writeln!(x, "    <cmdline>{}</cmdline>", e(cmdline))?;
        }
    }
    if !vm.media.is_empty() {
        // The firmware tries what is named here and nothing else.
        writeln!(x, "    <boot dev='hd'/>\n    <boot dev='cdrom'/>")?;
    }
    writeln!(x, "  </os>")?;
    writeln!(x, "  <features>\n    <acpi/>")?;
    if vm.arch == Arch::X86_64 {
        writeln!(x, "    <apic/>")?;
    }
    if vm.firmware == Firmware::UefiSecure && vm.arch == Arch::X86_64 {
        // Without it, the guest could write to the firmware's own keys.
        writeln!(x, "    <smm state='on'/>")?;
    }
    if vm.windows && vm.accel == Accel::Kvm {
        writeln!(x, "    {HYPERV}")?;
    }
    writeln!(x, "  </features>")?;
    match &vm.topology {
        None => writeln!(x, "  <cpu mode='{}'/>", cpu_mode(vm.accel))?,
        Some(t) => {
            let topoext = t.topoext && vm.accel == Accel::Kvm;
            let feature = if topoext { "\n    <feature policy='require' name='topoext'/>" } else { "" };
            writeln!(x, "  <cpu mode='{}'>\n    {}{feature}\n  </cpu>", cpu_mode(vm.accel), topology(t))?;
        }
    }
    match (vm.windows, vm.accel) {
        (false, _) => writeln!(x, "  <clock offset='utc'/>")?,
        (true, Accel::Tcg) => writeln!(x, "  <clock offset='localtime'/>")?,
        (true, Accel::Kvm) => writeln!(x, "  {WINDOWS_CLOCK}")?,
    }
    for (event, what) in [("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")] {
        writeln!(x, "  <on_{event}>{what}</on_{event}>")?;
    }
    writeln!(x, "  <devices>")?;
    writeln!(x, "    <controller type='pci' index='0' model='pcie-root'/>")?;
    for bus in (1u32..).take(vm.slots.len() + own_ports(vm) + SPARE_PORTS) {
        writeln!(x, "    {}", root_port(bus))?;
    }
    if vm.disks.iter().any(|d| d.options.bus() == "scsi") {
        writeln!(x, "    {SCSI}")?;
    }
    let mut taken: Vec<String> = vm.seed.iter().map(|_| "sda".to_owned()).collect();
    for one in &vm.disks {
        // A definition of more disks than there are names has been refused.
        let Some(target) = free_name(one.options.bus(), &mut taken) else { break };
        writeln!(x, "    {}", disk(one, &target))?;
    }
    if let Some(seed) = &vm.seed {
        writeln!(x, "    {}", cdrom(seed, "sda", cdrom_bus(vm.arch)))?;
    }
    for image in &vm.media {
        let Some(target) = free_name(cdrom_bus(vm.arch), &mut taken) else { break };
        writeln!(x, "    {}", cdrom(image, &target, cdrom_bus(vm.arch)))?;
    }
    if let Some(nic) = &vm.nic {
        writeln!(x, "    {}", interface(nic, vm.windows))?;
    }
    writeln!(x, "    <serial type='pty'/>\n    <console type='pty'/>")?;
    writeln!(
        x,
        "    <channel type='unix'>\n      <target type='virtio' name='org.qemu.guest_agent.0'/>\n    </channel>"
    )?;
    for (bus, slot) in (1u32..).zip(&vm.slots) {
        for hostdev in hostdevs(slot, Some(bus)) {
            writeln!(x, "    {hostdev}")?;
        }
    }
    for extra in &vm.extras {
        for element in extra.elements(vm.arch) {
            writeln!(x, "    {element}")?;
        }
    }
    writeln!(x, "    <memballoon model='virtio'/>")?;
    writeln!(x, "    <rng model='virtio'>\n      <backend model='random'>/dev/urandom</backend>\n    </rng>")?;
    writeln!(x, "  </devices>\n</domain>")
}
