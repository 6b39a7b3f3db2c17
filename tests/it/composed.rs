//! A host as one short file (tests/hosts/NAME/machine.yaml), expanded into a recorded host: the PCI tree with what sysfs
//! says of each function, who has device nodes open, VMs, and files of /proc, /etc and /boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde::Deserialize;

/// The file's form. What is left out is what an ordinary Debian 13 host has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Machine {
    pub os: String,
    pub arch: String,
    pub kernel: String,
    pub cmdline: String,
    /// `intel`, `amd`, `arm` or `none`.
    pub iommu: String,
    /// ACPI tables; by default the one of the IOMMU.
    pub tables: Option<Vec<String>>,
    pub address_bits: u32,
    /// Whether there is /dev/kvm.
    pub kvm: bool,
    pub uefi: bool,
    /// `on`, `off` or `hidden`.
    pub secure_boot: String,
    pub root: bool,
    pub hostname: String,
    pub packages: Vec<String>,
    pub modules: Vec<String>,
    /// One function a line: address, class, ids, driver or `-`, group or `-`, then words; indented below its bridge.
    pub devices: String,
    /// `pid name control-group node…`
    pub processes: Vec<String>,
    pub hidden: Option<String>,
    /// Running VMs: `name: [functions]`.
    pub vms: BTreeMap<String, Vec<String>>,
    pub files: BTreeMap<String, String>,
    /// What each initramfs holds, as a record has it.
    pub initramfs: BTreeMap<String, serde_json::Value>,
    pub denied: Vec<String>,
    /// What `apt-get -s install` says to so many packages.
    pub apt: BTreeMap<String, String>,
    /// `Packages` of repositories that are not among the host's sources, by address.
    pub repositories: BTreeMap<String, String>,
    /// Reserved regions that are `direct`, by group.
    pub direct: BTreeMap<u32, String>,
    /// The name of the host that `host.yaml` was applied on before: its state is laid into this one.
    pub applied_on: Option<String>,
    /// Whether all that is known of each GPU is shown too.
    pub status: bool,
    /// What to explain; by default every GPU.
    pub explain: Option<Vec<String>>,
    /// Whether the plan of its manifest is shown too.
    pub plan: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            os: "debian 13".into(),
            arch: "amd64".into(),
            kernel: "6.12.41+deb13-amd64".into(),
            cmdline: "BOOT_IMAGE=/boot/vmlinuz root=UUID=0 ro quiet".into(),
            iommu: "intel".into(),
            tables: None,
            address_bits: 46,
            kvm: true,
            uefi: true,
            secure_boot: "off".into(),
            root: true,
            hostname: "gpu-01".into(),
            packages: vec!["initramfs-tools=0.148".into(), "ovmf=2025.02-8".into(), "grub-efi-amd64=2.12".into()],
            modules: vec!["kvm".into()],
            devices: String::new(),
            processes: Vec::new(),
            hidden: None,
            vms: BTreeMap::new(),
            files: BTreeMap::new(),
            initramfs: BTreeMap::new(),
            denied: Vec::new(),
            apt: BTreeMap::new(),
            repositories: BTreeMap::new(),
            direct: BTreeMap::new(),
            applied_on: None,
            status: false,
            explain: None,
            plan: false,
        }
    }
}

struct Tree<'a> {
    root: &'a Path,
}

impl Tree<'_> {
    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let at = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, content).unwrap();
    }
    fn dir(&self, path: &str) {
        fs::create_dir_all(self.root.join(path.trim_start_matches('/'))).unwrap();
    }
    /// A link to a path of the machine, made relative as sysfs does.
    fn link(&self, path: &str, target: &str) {
        let at = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        let up = "../".repeat(path.trim_start_matches('/').split('/').count() - 1);
        symlink(format!("{up}{}", target.trim_start_matches('/')), at).unwrap();
    }
}

fn bytes(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.len() - 1);
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => panic!("{text}: a size is 16M or 32G"),
    };
    number.parse::<u64>().unwrap() << shift
}

/// Writes the host below `dir`.
pub fn expand(machine: &Machine, dir: &Path) {
    let root = dir.join("root");
    let tree = Tree { root: &root };
    let (id, version) = machine.os.split_once(' ').unwrap();
    let (uid, name) = if machine.root { (0, "root") } else { (1000, "alice") };
    tree.file("/etc/os-release", format!("ID={id}\nVERSION_ID=\"{version}\"\nPRETTY_NAME=\"{id} {version}\"\n"));
    tree.file("/etc/hostname", format!("{}\n", machine.hostname));
    tree.file("/etc/machine-id", "00000000000000000000000000000001\n");
    tree.file("/etc/passwd", "root:x:0:0::/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/bash\n");
    tree.file("/etc/group", "root:x:0:\n");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n");
    tree.file("/proc/sys/kernel/osrelease", format!("{}\n", machine.kernel));
    tree.file("/proc/cmdline", format!("{}\n", machine.cmdline));
    tree.file("/proc/self/status", format!("Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n"));
    tree.file("/proc/meminfo", "MemTotal:       65536000 kB\n");
    tree.file("/proc/swaps", "Filename Type Size Used Priority\n");
    let flag = if machine.iommu == "amd" { "svm" } else { "vmx" };
    let cpu = format!(
        "processor\t: 0\nvendor_id\t: x\nmodel name\t: CPU\nflags\t\t: fpu {flag}\naddress sizes\t: {} bits physical, 48 bits virtual\n",
        machine.address_bits
    );
    tree.file("/proc/cpuinfo", if machine.arch == "arm64" { "processor\t: 0\n".to_owned() } else { cpu });
    tree.file("/proc/modules", machine.modules.iter().map(|m| format!("{m} 1 0 - Live 0x0\n")).collect::<String>());
    if machine.kvm {
        tree.file("/dev/kvm", "");
    }
    tree.file(&format!("/lib/modules/{}/kernel/drivers/vfio/pci/vfio-pci.ko.xz", machine.kernel), "");
    tree.file(&format!("/boot/vmlinuz-{}", machine.kernel), "");
    let mut status =
        format!("Package: dpkg\nStatus: install ok installed\nArchitecture: {}\nVersion: 1.22\n\n", machine.arch);
    for package in machine.packages.iter().cloned().chain([format!("linux-image-{}=1", machine.kernel)]) {
        let (name, version) = package.split_once('=').unwrap_or((&package, "1"));
        let arch = &machine.arch;
        let _ = write!(
            status,
            "Package: {name}\nStatus: install ok installed\nArchitecture: {arch}\nVersion: {version}\n\n"
        );
    }
    tree.file("/var/lib/dpkg/status", status);
    let (unit, table) = match machine.iommu.as_str() {
        "intel" => ("dmar0", "DMAR"),
        "amd" => ("ivhd0", "IVRS"),
        "arm" => ("smmu3.0x0000000012000000", "IORT"),
        _ => ("", ""),
    };
    tree.dir("/sys/firmware/acpi/tables");
    tree.dir("/sys/kernel/iommu_groups");
    let tables = machine.tables.clone().unwrap_or_else(|| vec![table.to_owned()]);
    for table in tables.iter().filter(|t| !t.is_empty()) {
        // VT-d's header: flags at 37, bit 0 for interrupt remapping.
        let mut content = vec![0; 48];
        content[37] = 1;
        tree.file(&format!("/sys/firmware/acpi/tables/{table}"), content);
    }
    if !unit.is_empty() {
        tree.dir(&format!("/sys/class/iommu/{unit}"));
    }
    if machine.uefi {
        tree.dir("/sys/firmware/efi/efivars");
        let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        tree.file(variable, [6, 0, 0, 0, u8::from(machine.secure_boot == "on")]);
    }
    fs::copy(crate::machine::repository().join("tests/hosts/pci.ids"), {
        tree.dir("/usr/share/misc");
        root.join("usr/share/misc/pci.ids")
    })
    .unwrap();
    let mut mounts = String::from("20 1 0:5 / /proc rw - proc proc rw\n");
    let later = devices(machine, &tree, &mut mounts);
    tree.file("/proc/self/mountinfo", mounts);
    for (path, content) in &machine.files {
        tree.file(path, content);
    }
    let denied = machine.denied.iter().cloned();
    let denied: Vec<String> = match machine.secure_boot.as_str() {
        "hidden" => denied.chain(["/sys/firmware/efi/efivars".to_owned()]).collect(),
        _ => denied.collect(),
    };
    for path in machine.initramfs.keys() {
        tree.file(path, "");
    }
    let mut queries: Vec<serde_json::Value> = Vec::new();
    for (request, stdout) in &machine.apt {
        let args: Vec<&str> =
            ["-s", "-q", "--no-install-recommends", "install"].into_iter().chain(request.split_whitespace()).collect();
        queries.push(
            serde_json::json!({ "program": "apt-get", "args": args, "output": { "status": 0, "stdout": stdout } }),
        );
    }
    let mut record = serde_json::json!({
        "format": 1,
        "queries": queries,
        "repositories": machine.repositories,
        "initramfs": machine.initramfs,
        "libvirt": libvirt(machine),
        "denied": denied,
        "deviceUsers": users(machine),
    });
    if !later.is_empty() {
        record["grouped"] = grouped(later.into_iter().map(|(n, functions)| (n, functions, String::new())));
    }
    fs::write(dir.join("gpuvm-record.json"), serde_json::to_string_pretty(&record).unwrap()).unwrap();
}

/// What a record has of groups that come with `intel_iommu=on`: number, functions, reserved regions.
fn grouped(groups: impl Iterator<Item = (u32, Vec<String>, String)>) -> serde_json::Value {
    let group = |(number, functions, reserved): (u32, Vec<String>, String)| {
        (number.to_string(), serde_json::json!({ "functions": functions, "reserved": reserved }))
    };
    let groups: serde_json::Map<_, _> = groups.map(group).collect();
    serde_json::json!({ "argument": "intel_iommu=on", "unit": "dmar0", "groups": groups })
}

/// Turns the IOMMU of a recorded host off, as a kernel does that uses Intel's where it is told to only: its groups are
/// what comes once it is told.
pub fn iommu_off(host: &Path) {
    let root = host.join("root");
    let (groups, devices) = (root.join("sys/kernel/iommu_groups"), root.join("sys/bus/pci/devices"));
    let mut all = Vec::new();
    let names = |dir: &Path| -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    for number in names(&groups) {
        let functions = names(&groups.join(&number).join("devices"));
        for function in &functions {
            fs::remove_file(devices.join(function).join("iommu_group")).unwrap();
        }
        let reserved = fs::read_to_string(groups.join(&number).join("reserved_regions")).unwrap_or_default();
        fs::remove_dir_all(groups.join(&number)).unwrap();
        all.push((number.parse().unwrap(), functions, reserved));
    }
    fs::remove_dir_all(root.join("sys/class/iommu")).unwrap();
    let file = host.join("gpuvm-record.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    record["grouped"] = grouped(all.into_iter());
    fs::write(file, serde_json::to_string_pretty(&record).unwrap()).unwrap();
}

fn users(machine: &Machine) -> serde_json::Value {
    let user = |line: &String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        serde_json::json!({ "pid": words[0].parse::<u32>().unwrap(), "name": words[1], "cgroup": words[2], "nodes": words[3..] })
    };
    let mut users = serde_json::json!({ "users": machine.processes.iter().map(user).collect::<Vec<_>>() });
    if let Some(hidden) = &machine.hidden {
        users["hidden"] = hidden.as_str().into();
    }
    users
}

fn libvirt(machine: &Machine) -> serde_json::Value {
    if machine.vms.is_empty() {
        return "absent".into();
    }
    let domain = |(name, functions): (&String, &Vec<String>)| {
        let mut devices = String::new();
        for f in functions {
            let words: Vec<&str> = f.split([':', '.']).collect();
            let _ = write!(
                devices,
                "<hostdev mode='subsystem' type='pci' managed='no'><source><address domain='0x{}' bus='0x{}' slot='0x{}' function='0x{}'/></source></hostdev>",
                words[0], words[1], words[2], words[3]
            );
        }
        let xml = format!(
            "<domain type='kvm'><name>{name}</name><memory unit='KiB'>1048576</memory><vcpu>2</vcpu><os><type>hvm</type></os><devices>{devices}</devices></domain>"
        );
        serde_json::json!({ "name": name, "uuid": "0", "active": true, "persistent": true, "autostart": false, "inactiveXml": xml, "liveXml": xml })
    };
    serde_json::json!({ "known": { "version": 11_003_000, "domains": machine.vms.iter().map(domain).collect::<Vec<_>>() } })
}

/// Every line of `devices`; returns the groups that come with `intel_iommu=on` alone.
fn devices(machine: &Machine, tree: &Tree<'_>, mounts: &mut String) -> BTreeMap<u32, Vec<String>> {
    let mut later: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut above: Vec<String> = Vec::new();
    let mut next: u64 = 0x40_0000_0000;
    let mut minor = 0;
    let mut made: BTreeSet<String> = BTreeSet::new();
    for line in machine.devices.lines().filter(|l| !l.trim().is_empty() && !l.trim().starts_with('#')) {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let mut words = line.split_whitespace();
        let short = words.next().unwrap();
        let address = if short.matches(':').count() == 1 { format!("0000:{short}") } else { short.to_owned() };
        above.truncate(depth);
        let class = words.next().unwrap();
        let ids: Vec<&str> = words.next().unwrap().split(':').collect();
        let (driver, group) = (words.next().unwrap(), words.next().unwrap());
        let words: Vec<(&str, &str)> = words.map(|w| w.split_once('=').unwrap_or((w, ""))).collect();
        let word = |name: &str| words.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        if depth == 0 {
            above.push(format!("/sys/devices/pci{}", &address[..7]));
        }
        let parent = above.last().unwrap().clone();
        let at = format!("{parent}/{address}");
        if depth == 0 {
            above.pop();
        }
        above.push(at.clone());
        assert!(made.insert(address.clone()), "{address} is there twice");
        tree.link(&format!("/sys/bus/pci/devices/{address}"), &at);
        let set = |name: &str, value: &str| tree.file(&format!("{at}/{name}"), format!("{value}\n"));
        set("class", &format!("0x{class}{}", if class.len() == 4 { "00" } else { "" }));
        set("vendor", &format!("0x{}", ids[0]));
        set("device", &format!("0x{}", ids[1]));
        set("subsystem_vendor", &format!("0x{}", ids.get(2).unwrap_or(&"0000")));
        set("subsystem_device", &format!("0x{}", ids.get(3).unwrap_or(&"0000")));
        set("driver_override", "(null)");
        set("numa_node", word("numa").unwrap_or("-1"));
        let power = word("power").unwrap_or("D0");
        if power != "-" {
            set("power_state", power);
        }
        if class.starts_with("03") {
            set("boot_vga", if word("boot").is_some() { "1" } else { "0" });
        }
        if let Some(methods) = word("reset") {
            set("reset_method", &methods.replace(',', " "));
        }
        if driver != "-" {
            tree.dir(&format!("/sys/bus/pci/drivers/{driver}"));
            tree.link(&format!("{at}/driver"), &format!("/sys/bus/pci/drivers/{driver}"));
            // Each of these drivers is in a module of its own name (`bochs-drm`, which is not, is in no host here).
            let module = driver.replace('-', "_");
            let link = format!("/sys/bus/pci/drivers/{driver}/module");
            if !tree.root.join(&link[1..]).is_symlink() {
                tree.link(&link, &format!("/sys/module/{module}"));
            }
        }
        // +N: what the kernel makes only with `intel_iommu=on`.
        if let Some(number) = group.strip_prefix('+') {
            later.entry(number.trim_start_matches('g').parse().unwrap()).or_default().push(address.clone());
        } else if group != "-" && machine.iommu != "none" {
            let number: u32 = group.trim_start_matches('g').parse().unwrap();
            let groups = format!("/sys/kernel/iommu_groups/{number}");
            tree.link(&format!("{groups}/devices/{address}"), &at);
            tree.link(&format!("{at}/iommu_group"), &groups);
            let regions =
                machine.direct.get(&number).cloned().unwrap_or("0x00000000fee00000 0x00000000feefffff msi".into());
            tree.file(&format!("{groups}/reserved_regions"), regions + "\n");
        }
        if let Some(link) = word("link") {
            let (speed, width) = link.split_once('x').unwrap();
            let speed = if speed == "?" { "Unknown".to_owned() } else { format!("{speed} GT/s PCIe") };
            for (name, value) in [
                ("current_link_speed", speed.as_str()),
                ("max_link_speed", speed.as_str()),
                ("current_link_width", width),
                ("max_link_width", width),
            ] {
                set(name, value);
            }
        }
        // Other functions have small windows, which nothing is judged by.
        if let Some(bars) = word("bars") {
            let mut lines = Vec::new();
            let start = word("at").map(|a| u64::from_str_radix(a, 16).unwrap());
            for (i, bar) in bars.split(',').enumerate() {
                let narrow = bar.ends_with('L');
                let size = bytes(bar.trim_end_matches('L'));
                next = next.next_multiple_of(size);
                let from = start.filter(|_| i == 0).unwrap_or(next);
                next += size;
                let flags = if narrow { 0x40200 } else { 0x14220c };
                lines.push(format!("{from:#018x} {:#018x} {flags:#018x}", from + size - 1));
                if !narrow {
                    lines.push(format!("{0:#018x} {0:#018x} {0:#018x}", 0));
                }
            }
            lines.resize(13, format!("{0:#018x} {0:#018x} {0:#018x}", 0));
            set("resource", &lines.join("\n"));
        }
        if let Some(bytes) = word("config") {
            let byte = u8::from_str_radix(bytes, 16).unwrap();
            tree.file(&format!("{at}/config"), vec![byte; 64]);
        }
        for (name, folder) in [("drm", "drm"), ("snd", "sound")] {
            for node in word(name).into_iter().flat_map(|v| v.split(',')) {
                tree.dir(&format!("{at}/{folder}/{node}"));
                tree.link(&format!("/sys/class/{folder}/{node}"), &format!("{at}/{folder}/{node}"));
            }
        }
        if let Some(net) = word("net") {
            let (name, state) = net.split_once(':').unwrap();
            tree.file(&format!("{at}/net/{name}/operstate"), format!("{state}\n"));
            tree.link(&format!("/sys/class/net/{name}"), &format!("{at}/net/{name}"));
        }
        // NAME@SUBSYSTEM – with the kernel's multipath a controller is linked below its subsystem, and the disk lies there.
        let of_subsystem = word("nvme").map(|nvme| {
            let (name, number) = nvme.split_once('@').unwrap();
            let subsystem = format!("/sys/devices/virtual/nvme-subsystem/nvme-subsys{number}");
            tree.file(&format!("{at}/nvme/{name}/subsysnqn"), format!("nqn.2014.08.org.nvmexpress:{number}\n"));
            tree.link(&format!("{subsystem}/{name}"), &format!("{at}/nvme/{name}"));
            if !tree.root.join(&format!("/sys/class/nvme-subsystem/nvme-subsys{number}")[1..]).is_symlink() {
                tree.link(&format!("/sys/class/nvme-subsystem/nvme-subsys{number}"), &subsystem);
            }
            subsystem
        });
        // NAME:USE – a mount point, `md0` or another holder with its own mount, `zfs`, or nothing.
        if let Some(block) = word("block") {
            minor += 1;
            let (name, used) = block.split_once(':').unwrap_or((block, ""));
            let disk = of_subsystem.map_or(format!("{at}/block/{name}"), |subsystem| format!("{subsystem}/{name}"));
            tree.file(&format!("{disk}/dev"), format!("259:{minor}\n"));
            tree.dir(&format!("{disk}/holders"));
            tree.link(&format!("/sys/class/block/{name}"), &disk);
            if used.starts_with('/') {
                let _ = writeln!(mounts, "{} 1 259:{minor} / {used} rw - ext4 /dev/{name} rw", 30 + minor);
            } else if let Some(kind) = used.strip_prefix('@') {
                tree.file(&format!("/run/udev/data/b259:{minor}"), format!("E:ID_FS_TYPE={kind}\n"));
            } else if !used.is_empty() {
                tree.dir(&format!("{disk}/holders/{used}"));
            }
        }
        // ON/MOST, and where the functions will be: /OFFSET/STRIDE/DEVICE.
        for (name, value) in ["sriov_numvfs", "sriov_totalvfs", "sriov_offset", "sriov_stride", "sriov_vf_device"]
            .into_iter()
            .zip(word("vfs").into_iter().flat_map(|v| v.split('/')))
        {
            set(name, value);
        }
        if let Some(of) = word("physfn") {
            let (of, number) = of.split_once('#').unwrap_or((of, ""));
            let physical = format!("{}/{of}", above.first().cloned().unwrap_or_default());
            tree.link(&format!("{at}/physfn"), &physical);
            if !number.is_empty() {
                tree.link(&format!("{physical}/virtfn{number}"), &at);
            }
        }
        if let Some(number) = word("minor") {
            let model = word("model").unwrap_or("NVIDIA GPU").replace('_', " ");
            let uuid = word("uuid").unwrap_or("GPU-????????-????-????-????-????????????");
            tree.file(
                &format!("/proc/driver/nvidia/gpus/{address}/information"),
                format!("Model: \t\t {model}\nIRQ:   \t\t 77\nGPU UUID: \t {uuid}\nVideo BIOS: \t 94.02.26.40.81\nBus Type: \t PCIe\nDevice Minor: \t {number}\nGPU Excluded:\t No\n"),
            );
        }
        for (name, attribute) in [("busy", "gpu_busy_percent"), ("runtime", "power/runtime_status")] {
            if let Some(value) = word(name) {
                set(attribute, value);
            }
        }
        if let Some(serial) = word("serial") {
            set("serial_number", serial);
        }
    }
    later
}
