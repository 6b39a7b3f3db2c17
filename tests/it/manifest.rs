//! Manifests: each rule with its message and place, the schema against another implementation, and hostile input.

use std::path::{Path, PathBuf};

use gpuvm::manifest::{LoadError, Manifest, load, parse, schema};
use proptest::prelude::*;

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn shipped() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(beside("manifests")).unwrap();
    let mut found: Vec<_> =
        folder.map(|entry| entry.unwrap().path()).filter(|p| p.extension().unwrap() == "yaml").collect();
    found.sort();
    assert!(found.len() >= 3);
    found
}

/// `line:column path: message`, one a problem; the drawing of the report must not fail either.
fn problems(source: &str) -> Vec<String> {
    let invalid = match parse("host.yaml", source) {
        Ok(_) => return Vec::new(),
        Err(invalid) => invalid,
    };
    let listed =
        invalid.problems().iter().map(|p| format!("{}:{} {}: {}", p.line, p.column, p.path, p.message)).collect();
    let mut drawn = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
        .render_report(&mut drawn, &invalid)
        .unwrap();
    assert!(drawn.contains("host.yaml has "), "{drawn}");
    listed
}

const GPUS: &str = "gpus: { render: { match: '01:00', use: host }, work: { match: '02:00', use: vfio } }\n";

#[test]
fn each_rule_names_the_thing_and_its_place() {
    let vm = |rest: &str| format!("version: 1\n{GPUS}vms:\n  a:\n    cpus: 1\n    memory: 1GiB\n{rest}");
    let memory = |memory: &str| format!("version: 1\nvms: {{ a: {{ cpus: 1, memory: {memory} }} }}\n");
    let top = |rest: &str| format!("version: 1\n{rest}");
    let nic = |fields: &str| {
        format!(
            "version: 1\nnetworks: {{ n: {{ libvirt: n }} }}\n\
             vms: {{ a: {{ cpus: 1, memory: 1GiB, network: {{ name: n, {fields} }} }} }}\n"
        )
    };
    let given = |functions: &str, devices: &str| {
        format!(
            "version: 1\ndevices:\n  n: {{ match: '01:00', use: host, virtualFunctions: {{ {functions} }} }}\nvms:\n  \
             a: {{ cpus: 1, memory: 1GiB, devices: [{devices}] }}\n"
        )
    };
    let cases = [
        // The format itself.
        ("version: 2\n".into(), "1:10 version: version 2 is not known"),
        ("host: a\n".into(), "1:1 : missing field `version`"),
        ("".into(), "1:1 : the file is empty"),
        ("- 1\n".into(), "1:1 : expected a mapping, found a list"),
        (top("version: 1\n"), "2:1 : `version` is given twice"),
        (
            top("gpus: { w: { match: 'pcie:12.0/0', use: vfio } }\n"),
            "2:21 gpus.w.match: `pcie:12.0/0` is a path of ports; write `match: { slot: \"pcie:12.0/0\" }`",
        ),
        (top("---\nversion: 1\n"), "2:1 : more than one YAML document"),
        (top("bridge:\n  name: br0\n  uplnk: auto\n"), "4:3 bridge.uplnk: unknown field `uplnk`"),
        (top("gpus:\n"), "2:1 gpus: expected a mapping, found nothing"),
        (top("drivers: { nvidia: {} }\n"), "2:12 drivers.nvidia: NVIDIA's driver has neither a branch nor a version"),
        (
            top("drivers: { nvidia: { branch: \"580\", version: 580.95.05 } }\n"),
            "2:37 drivers.nvidia.version: NVIDIA's driver has both `branch` and `version`",
        ),
        (
            top("drivers: { nvidia: { branch: \"580\", containers: [cdi, cdi] } }\n"),
            "2:55 drivers.nvidia.containers[1]: it is given twice",
        ),
        (
            top(
                "drivers:\n  nvidia:\n    branch: \"580\"\n    source: { url: \"http://r/\", key: ../k.asc, fingerprint: EB693B3035CD5710E231E123A4B469963BF863CC }\n",
            ),
            "5:38 drivers.nvidia.source.key: `../k.asc` does not lie beside the manifest",
        ),
        (
            top(
                "drivers:\n  nvidia:\n    branch: \"580\"\n    source: { url: \"http://r/\", key: k.asc, suite: noble, fingerprint: EB693B3035CD5710E231E123A4B469963BF863CC }\n",
            ),
            "5:15 drivers.nvidia.source: a suite has components",
        ),
        (
            top("drivers: { nvidia: { branch: \"580\", source: nvidia } }\n"),
            "2:45 drivers.nvidia.source: `nvidia` is no source; write `distribution`, or `{ url, key, fingerprint }`",
        ),
        // A section that cannot be read is one problem, not one more for each name in it.
        (
            top("gpuz: { w: { match: '02:00', use: vfio } }\nvms: { a: { cpus: 1, memory: 1GiB, gpus: [w] } }\n"),
            "2:1 gpuz: unknown field `gpuz`",
        ),
        (
            top("gpus: [w]\nvms: { a: { cpus: 1, memory: 1GiB, gpus: [w] } }\n"),
            "2:7 gpus: expected a mapping, found a list",
        ),
        (
            top("bridge: { nam: br0 }\nvms: { a: { cpus: 1, memory: 1GiB, network: br0 } }\n"),
            "2:11 bridge.nam: unknown field `nam`",
        ),
        (memory("16G"), "2:30 vms.a.memory: `16G` is ambiguous; write `16GiB`"),
        (vm("    start: boto\n"), "7:12 vms.a.start: unknown value `boto`"),
        (vm("    absent: yes\n"), "7:13 vms.a.absent: expected `true` or `false`, found `yes`"),
        (
            top("vms: { a: { cpus: 0, memory: 1GiB } }\n"),
            "2:19 vms.a.cpus: 0 virtual processors are not possible; write 1 to 1024",
        ),
        // Packages, files, kernel arguments.
        (
            top("packages: [vim, { name: vim, absent: true }]\n"),
            "2:25 packages[1]: package `vim` is wanted and to be removed",
        ),
        (top("files:\n  /etc/a: { mode: '0600' }\n"), "3:3 files./etc/a: `/etc/a` has no content"),
        (
            top("files:\n  /etc/a: { content: x, source: y }\n"),
            "3:25 files./etc/a: `/etc/a` has both `content` and `source`",
        ),
        (
            top("files:\n  /etc/a: { source: ../y }\n"),
            "3:21 files./etc/a.source: `../y` does not lie beside the manifest",
        ),
        (
            top("files:\n  /etc/a: { template: /y }\n"),
            "3:23 files./etc/a.template: `/y` does not lie beside the manifest",
        ),
        (top("kernelArgs: [quiet, quiet]\n"), "2:21 kernelArgs[1]: `quiet` is given twice"),
        (top("kernelArgs: [intel_iommu=off]\n"), "2:14 kernelArgs[0]: `intel_iommu=off` is refused"),
        (top("kernelArgs: [iommu=off]\n"), "2:14 kernelArgs[0]: `iommu=off` is refused"),
        (top("kernelArgs: [amd_iommu=on]\n"), "2:14 kernelArgs[0]: `amd_iommu=on` is refused"),
        (top("kernelArgs: ['vfio-pci.ids=10de:2684']\n"), "2:14 kernelArgs[0]: `vfio-pci.ids=10de:2684` is refused"),
        (
            top("kernelArgs: ['pcie_acs_override=downstream']\n"),
            "2:14 kernelArgs[0]: `pcie_acs_override=downstream` is refused",
        ),
        // Images, and what guests are told.
        (
            top("images: { golden: {} }\n"),
            "2:11 images.golden: `golden` says not where it comes from, and is no built-in image",
        ),
        (top("images: { g: { path: /a, from: debian-13 } }\n"), "2:16 images.g.path: `g` has both `from` and `path`"),
        (top("images: { g: { from: debian-14 } }\n"), "2:22 images.g.from: unknown image `debian-14`"),
        (top("images: { g: { url: 'https://a/b' } }\n"), "2:21 images.g.url: nothing says what `g` has to be"),
        (
            top("images: { g: { url: 'ftp://a/b' } }\n"),
            "2:21 images.g.url: `ftp://a/b` is not an address that begins with `https://` or `http://`, without a password",
        ),
        (
            top("images: { ubuntu-24.04: { baseUrl: 'http://a/b' } }\n"),
            "2:36 images.ubuntu-24.04.baseUrl: `ubuntu-24.04` comes over plain http",
        ),
        (
            top("images: { g: { path: /a, version: '1' } }\n"),
            "2:35 images.g.version: `g` is no built-in image, so it has no `version`",
        ),
        (vm("    image: ubuntu-24.4\n    disks: [4GiB]\n"), "7:12 vms.a.image: unknown image `ubuntu-24.4`"),
        (vm("    image: debian-13\n"), "7:12 vms.a.image: `image: debian-13` has no disk to go to"),
        (
            vm("    image: ubuntu-24.04-desktop\n    disks: [30GiB]\n    firmware: uefi-secure\n"),
            "9:15 vms.a.firmware: the installer's kernel is started directly, which secure boot refuses",
        ),
        (
            vm("    image: ubuntu-24.04-desktop\n    disks: [30GiB]\n    boot: { kernel: /boot/k }\n"),
            "9:5 vms.a.boot: a VM that boots a kernel of the host's never starts what is installed",
        ),
        (
            vm(
                "    image: i\n    disks: [30GiB]\n    ubuntu: { desktop: true }\nimages: { i: { from: ubuntu-24.04-desktop, path: /srv/u.iso } }\n",
            ),
            "9:24 vms.a.ubuntu.desktop: what this medium installs is a desktop",
        ),
        (
            top("images: { i: { from: ubuntu-24.04-desktop, path: /srv/u.iso, version: '24.04.2' } }\n"),
            "2:71 images.i.version: `i` is no built-in image, so it has no `version`",
        ),
        (vm("    media: [win11]\n"), "7:13 vms.a.media[0]: unknown image `win11`"),
        (
            vm("    media: [g]\nimages: { g: { path: /a } }\n"),
            "7:13 vms.a.media[0]: `g` is no CD-ROM whose digest is given",
        ),
        (vm("    windows: {}\n"), "7:5 vms.a.windows: a guest that is no Windows"),
        (vm("    guest: windows-11\n    windows: { user: bob }\n"), "8:22 vms.a.windows.user: `bob` has no password"),
        (
            vm("    guest: windows-11\n    windows: { passwordFile: /root/a }\n"),
            "8:30 vms.a.windows.passwordFile: a password for nobody",
        ),
        (
            vm("    guest: windows-11\n    windows: { user: guest, passwordFile: /root/a }\n"),
            "8:22 vms.a.windows.user: `guest` is an account of Windows' own",
        ),
        (
            vm("    guest: windows-11\n    windows: { language: german }\n"),
            "8:26 vms.a.windows.language: `german` is not a language as Windows has it: `en-US`, `de-DE`",
        ),
        (
            vm("    guest: windows-11\n    windows: {}\n    image: debian-13\n    disks: [4GiB]\n"),
            "8:5 vms.a.windows: `image: debian-13` is Windows set up already",
        ),
        (vm("    user: { name: root, sshKeys: ['gh:a'] }\n"), "7:19 vms.a.user.name: `root` does not log in"),
        (vm("    user: { name: bob, sshKeys: [] }\n"), "7:33 vms.a.user.sshKeys: nobody could log in as `bob`"),
        (
            vm("    user: { name: bob, sshKeys: ['file:../a.pub'] }\n"),
            "7:34 vms.a.user.sshKeys[0]: `../a.pub` does not lie beside the manifest",
        ),
        (
            vm("    cloudInit: { files: { /etc/a: {} } }\n"),
            "7:27 vms.a.cloudInit.files./etc/a: `/etc/a` has no content",
        ),
        (
            top(
                "networks: { n: { libvirt: n } }\nvms: { a: { cpus: 1, memory: 1GiB, network: { name: n, gateway: 10.0.0.1 } } }\n",
            ),
            "3:65 vms.a.network.gateway: a gateway without an address",
        ),
        (nic("address: 10.0.0.0/24"), "3:65 vms.a.network.address: `10.0.0.0/24` is no guest's address"),
        (nic("address: 10.0.0.255/24"), "3:65 vms.a.network.address: `10.0.0.255/24` is no guest's address"),
        (nic("address: 127.0.0.2/24"), "3:65 vms.a.network.address: `127.0.0.2/24` is no guest's address"),
        (nic("address: 'fd00::/64'"), "3:65 vms.a.network.address: `fd00::/64` is no guest's address"),
        (
            nic("address: 10.0.0.9/24, gateway: 10.9.9.9"),
            "3:87 vms.a.network.gateway: `10.9.9.9` is no gateway for `10.0.0.9/24`",
        ),
        (
            nic("address: 10.0.0.9/24, gateway: 10.0.0.9"),
            "3:87 vms.a.network.gateway: `10.0.0.9` is no gateway for `10.0.0.9/24`",
        ),
        (
            nic("address: 10.0.0.9/24, gateway: 10.0.0.255"),
            "3:87 vms.a.network.gateway: `10.0.0.255` is no gateway for `10.0.0.9/24`",
        ),
        (
            nic(
                "address: 'fd00::1/64' } },\n  b: { cpus: 1, memory: 1GiB, network: { name: n, address: 'fd00:0::1/64'",
            ),
            "4:60 vms.b.network.address: VMs `a` and `b` have the same address `fd00::1`",
        ),
        // Parts of a VM.
        (vm("    usb: ['046d:c52b', '046d:c52b']\n"), "7:24 vms.a.usb[1]: USB device 046d:c52b is given twice"),
        (
            vm("    folders: [{ path: /a, tag: t }, { path: /b, tag: t }]\n"),
            "7:39 vms.a.folders[1]: folder `t` is given twice",
        ),
        (
            vm("    xml: [{ at: /devices, add: <a/> }]\n"),
            "7:17 vms.a.xml[0].at: `/devices` is no place in a definition",
        ),
        (
            vm("    xml: [{ at: /domain, add: '<a><b></a>' }]\n"),
            "7:31 vms.a.xml[0].add: it cannot go into a definition: it is not well-formed: expected 'b' tag, not 'a' at 1:7",
        ),
        (
            vm("    xml: [{ at: /domain, add: <a passwd='x'/> }]\n"),
            "7:31 vms.a.xml[0].add: it cannot go into a definition: `passwd` is for secrets, which a manifest's XML is not",
        ),
        (
            vm("    image: debian-13\n    disks: [9GiB]\n    ubuntu: { desktop: true }\n"),
            "9:5 vms.a.ubuntu: `ubuntu` is for images of Ubuntu's",
        ),
        // Devices.
        (top("gpus: { a: { match: {}, use: vfio } }\n"), "2:21 gpus.a.match: `match` names no device"),
        (
            top("gpus: { a: { match: { address: '01:00', id: '10de:2684' }, use: vfio } }\n"),
            "2:41 gpus.a.match: `match` has more than one field",
        ),
        (
            top("gpus: { a: { match: '01:00', use: vfio }, b: { match: { address: '0000:01:00.0' }, use: host } }\n"),
            "2:66 gpus.b.match: `0000:01:00` is `gpus.a` already",
        ),
        (
            top("gpus: { a: { match: '01:00', use: vfio } }\ndevices: { b: { match: '01:00', use: vfio } }\n"),
            "3:24 devices.b.match: `0000:01:00` is `gpus.a` already",
        ),
        // Networks and paths.
        (top("bridge: { name: br0, uplink: br0 }\n"), "2:30 bridge.uplink: bridge `br0` has itself as its uplink"),
        (
            top("bridge: { name: br0 }\nnetworks: { br0: { libvirt: default } }\n"),
            "3:13 networks.br0: `br0` is a network and the bridge",
        ),
        (top("libvirt: { pool: images }\n"), "2:18 libvirt.pool: `images` is not an absolute path without `..`"),
        (
            top("storage: { a: { dir: /srv/../x } }\n"),
            "2:22 storage.a.dir: `/srv/../x` is not an absolute path without `..`",
        ),
        (
            vm("    boot: { kernel: vmlinuz }\n"),
            "7:21 vms.a.boot.kernel: `vmlinuz` is not an absolute path without `..`",
        ),
        (
            vm("    boot: { kernel: /vmlinuz, initrd: ../initrd }\n"),
            "7:39 vms.a.boot.initrd: `../initrd` is not an absolute path without `..`",
        ),
        // What a VM names.
        (vm("    gpus: [worc]\n"), "7:12 vms.a.gpus[0]: unknown GPU `worc`"),
        (vm("    devices: [work]\n"), "7:15 vms.a.devices[0]: unknown device `work`"),
        (vm("    network: br0\n"), "7:14 vms.a.network: unknown network `br0`"),
        (vm("    disks: [1GiB, { size: 1GiB, pool: fast }]\n"), "7:39 vms.a.disks[1].pool: unknown pool `fast`"),
        (vm("    gpus: [work, work]\n"), "7:18 vms.a.gpus[1]: GPU `work` is named twice in one VM"),
        (vm("    gpus: [render]\n"), "7:12 vms.a.gpus[0]: GPU `render` stays with the host"),
        (
            vm("    gpus: [work]\n    start: boot\n  b: { cpus: 1, memory: 1GiB, gpus: [work], state: running }\n"),
            "9:38 vms.b.gpus[0]: GPU `work` is in VMs `a` and `b`, which both run",
        ),
        // Sizes, life, addresses.
        (memory("16MiB"), "2:30 vms.a.memory: 16MiB of memory is too little"),
        (
            top("vms: { a: { cpus: { count: 4, pin: '0-1' }, memory: 1GiB } }\n"),
            "2:36 vms.a.cpus.pin: 4 virtual processors are pinned to 2 of the host's",
        ),
        (
            top("vms: { a: { cpus: { count: 4, pin: '4-' }, memory: 1GiB } }\n"),
            "2:36 vms.a.cpus.pin: `4-` is not a list of processors, such as `4-11` or `0,2,4-7`",
        ),
        (
            top("vms: { a: { cpus: { count: 8, cores: 4, threads: 3 }, memory: 1GiB } }\n"),
            "2:28 vms.a.cpus.count: 1 socket of 4 cores of 3 threads are 12 processors, not 8",
        ),
        (top("vms: { a: { cpus: { pin: '0-1' }, memory: 1GiB } }\n"), "2:21 vms.a.cpus: missing field `count`"),
        (vm("    disks: [{ path: /dev/sdb }]\n"), "7:21 vms.a.disks[0].path: `/dev/sdb` is no stable name of a disk"),
        (
            vm("    disks: [{ path: /dev/disk/by-id/a, size: 1GiB }]\n"),
            "7:40 vms.a.disks[0].size: a device that is there has no `size`",
        ),
        (vm("    disks: [{ bus: sata }]\n"), "7:15 vms.a.disks[0]: missing field `size`"),
        (
            vm("    image: debian-13\n    disks: [{ path: /dev/disk/by-id/a }]\n"),
            "8:21 vms.a.disks[0].path: `image: debian-13` would be written over what is on `/dev/disk/by-id/a`",
        ),
        (
            vm(
                "    disks: [{ path: /dev/disk/by-id/a }]\n  b: { cpus: 1, memory: 1GiB, disks: [{ path: /dev/disk/by-id/a }] }\n",
            ),
            "8:41 vms.b.disks[0]: `/dev/disk/by-id/a` is a disk of VMs `a` and `b`",
        ),
        (vm("    guest: windows-11\n    firmware: bios\n"), "8:15 vms.a.firmware: Windows 11 wants secure boot"),
        (
            vm("    guest: windows-11\n    user: { name: b, sshKeys: ['gh:b'] }\n"),
            "8:5 vms.a.user: `user` is for guests with cloud-init, which Windows has not",
        ),
        (vm("    startAfter: [b]\n"), "7:18 vms.a.startAfter[0]: unknown VM `b`"),
        (
            vm(
                "    startAfter: [b]\n  b: { cpus: 1, memory: 1GiB, startAfter: [c] }\n  c: { cpus: 1, memory: 1GiB, absent: true }\n",
            ),
            "8:44 vms.b.startAfter[0]: VM `b` would wait for `c`, which is to be taken away",
        ),
        (vm("    startAfter: [a]\n"), "7:18 vms.a.startAfter[0]: VM `a` would wait for itself, by way of `a`"),
        (memory("{ size: 1GiB, pages: 4MiB }"), "2:51 vms.a.memory.pages: there are no huge pages of 4MiB"),
        (
            memory("{ size: 1536MiB, pages: 1GiB }"),
            "2:38 vms.a.memory.size: 1536MiB of memory is not a multiple of 1GiB",
        ),
        (
            top("devices:\n  n: { match: '01:00', use: vfio, virtualFunctions: { count: 2 } }\n"),
            "3:35 devices.n.virtualFunctions: `devices.n` does not stay with the host, whose driver makes virtual functions",
        ),
        (
            top("gpus:\n  n: { match: '01:00', use: host, virtualFunctions: { count: 2 } }\n"),
            "3:35 gpus.n.virtualFunctions: `gpus.n` cannot have plain virtual functions",
        ),
        (
            top("gpus:\n  a: { match: '01:00', use: vfio, vgpu: { type: NVIDIA A40-8Q, count: 1 } }\n"),
            "3:35 gpus.a.vgpu: `gpus.a` does not stay with the host, whose driver makes vGPUs",
        ),
        (
            top("devices:\n  a: { match: '01:00', use: host, vgpu: { type: NVIDIA A40-8Q, count: 1 } }\n"),
            "3:35 devices.a.vgpu: `devices.a` cannot have vGPUs",
        ),
        (
            top("gpus:\n  a: { match: '01:00', use: host, vgpu: { type: NVIDIA A40-8Q, count: 0 } }\n"),
            "3:71 gpus.a.vgpu.count: no vGPUs are asked for",
        ),
        (
            top("gpus:\n  a: { match: '01:00', use: host, vgpu: { type: 'a/b', count: 1 } }\n"),
            "3:49 gpus.a.vgpu.type: `a/b` is not a type of vGPU as the card's list names it",
        ),
        (
            top(
                "gpus:\n  a: { match: '01:00', use: host, vgpu: { type: T, count: 2 } }\nvms:\n  v: { cpus: 1, memory: 1GiB, gpus: [a/2] }\n",
            ),
            "5:38 vms.v.gpus[0]: GPU `a` has no vGPU 2",
        ),
        (
            top(
                "gpus:\n  a: { match: '01:00', use: host, vgpu: { type: T, count: 2 } }\nvms:\n  v: { cpus: 1, memory: 1GiB, gpus: [a] }\n",
            ),
            "5:38 vms.v.gpus[0]: GPU `a` stays with the host",
        ),
        (
            top("gpus:\n  a: { match: '01:00', use: vfio }\nvms:\n  v: { cpus: 1, memory: 1GiB, gpus: [a/0] }\n"),
            "5:38 vms.v.gpus[0]: GPU `a` has no vGPUs",
        ),
        (
            top(
                "gpus:\n  a: { match: '01:00', use: vfio, moduleId: 3 }\n  b: { match: '02:00', use: vfio, moduleId: 3 }\n",
            ),
            "4:45 gpus.b.moduleId: two GPUs have the module id 3",
        ),
        (
            top("gpus:\n  a: { match: '01:00', use: vfio, moduleId: 0 }\n"),
            "3:45 gpus.a.moduleId: no board has a module 0",
        ),
        (
            top("devices:\n  n: { match: '01:00', use: host, moduleId: 1 }\n"),
            "3:35 devices.n.moduleId: `devices.n` is no GPU on a board",
        ),
        (
            top("gpus:\n  a: { match: '01:00', use: host, mig: [1g.5gb], vgpu: { type: T, count: 2 } }\n"),
            "3:50 gpus.a.vgpu: `gpus.a` has both `mig` and `vgpu`",
        ),
        (
            top("gpus:\n  n: { match: '01:00', use: vfio, mig: [1g.5gb] }\n"),
            "3:35 gpus.n.mig: `gpus.n` does not stay with the host, whose driver makes MIG instances",
        ),
        (
            top("gpus:\n  n: { match: '01:00', use: shared, mig: [1g.5gb] }\n"),
            "3:37 gpus.n.mig: `gpus.n` cannot go to a VM and be cut into MIG instances",
        ),
        (
            top("devices:\n  n: { match: '01:00', use: host, mig: [1g.5gb] }\n"),
            "3:35 devices.n.mig: `devices.n` cannot be cut into MIG instances",
        ),
        (
            top("gpus:\n  n: { match: '01:00', use: host, mig: [] }\n"),
            "3:40 gpus.n.mig: no MIG instances are asked for",
        ),
        (
            top("gpus:\n  n: { match: '01:00', use: host, mig: [1g.5gb+me, 'all'] }\n"),
            "3:52 gpus.n.mig[1]: `all` is not a MIG profile as `nvidia-smi mig -lgip` names it",
        ),
        (
            top(
                "gpus:\n  n: { match: '01:00', use: host, mig: [1g.5gb] }\nvms:\n  a: { cpus: 1, memory: 1GiB, gpus: [n] }\n",
            ),
            "5:38 vms.a.gpus[0]: GPU `n` is cut into MIG instances for the host's containers",
        ),
        (
            top(
                "gpus:\n  n: { match: '01:00', use: host, mig: [1g.5gb] }\nvms:\n  a: { cpus: 1, memory: 1GiB, gpus: [n/0] }\n",
            ),
            "5:38 vms.a.gpus[0]: GPU `n` is cut into MIG instances for the host's containers",
        ),
        (
            top("vms:\n  a: { cpus: 1, memory: 1GiB, gpus: [MIG-00000000-0000-0000-0000-000000000001] }\n"),
            "3:38 vms.a.gpus[0]: `MIG-00000000-0000-0000-0000-000000000001` is a MIG instance, which no VM can have",
        ),
        (
            top("devices:\n  n: { match: '01:00', use: host, virtualFunctions: { count: 0 } }\n"),
            "3:62 devices.n.virtualFunctions.count: no virtual functions are asked for",
        ),
        (
            top(
                "devices:\n  n:\n    match: '01:00'\n    use: host\n    virtualFunctions:\n      count: 1\n      macs: ['52:54:00:00:00:01', '52:54:00:00:00:02']\n",
            ),
            "8:35 devices.n.virtualFunctions.macs[1]: `52:54:00:00:00:02` is for a virtual function 1, and there are 1",
        ),
        (given("count: 2", "n/2"), "5:41 vms.a.devices[0]: device `n` has no virtual function 2"),
        (given("count: 2", "n"), "5:41 vms.a.devices[0]: device `n` stays with the host"),
        (given("count: 2, use: host", "n/0"), "5:41 vms.a.devices[0]: the virtual functions of `n` stay with the host"),
        (given("count: 2", "n/0, n/0"), "5:46 vms.a.devices[1]: device `n/0` is named twice in one VM"),
        (given("count: 2", "m/0"), "5:41 vms.a.devices[0]: unknown device `m`"),
        (
            given("count: 2", "n/01"),
            "5:41 vms.a.devices[0]: `n/01` is not a device's name, or with `/` and the number of a vGPU or virtual function: `nic/0`",
        ),
        (
            top("devices:\n  n: { match: '01:00', use: host }\nvms:\n  a: { cpus: 1, memory: 1GiB, devices: [n/0] }\n"),
            "5:41 vms.a.devices[0]: device `n` has no virtual functions",
        ),
        (
            top(
                "devices:\n  n: { match: '01:00', use: host, virtualFunctions: { count: 2 } }\nvms:\n  a: { cpus: 1, memory: 1GiB, start: boot, devices: [n/1] }\n  b: { cpus: 1, memory: 1GiB, start: boot, devices: [n/0, n/1] }\n",
            ),
            "6:59 vms.b.devices[1]: device `n/1` is in VMs `a` and `b`, which both run",
        ),
        (vm("    disks: [512KiB]\n"), "7:13 vms.a.disks[0]: a disk of 512KiB is too small"),
        (vm("    absent: true\n    state: running\n"), "8:12 vms.a.state: VM `a` is to be taken away and to run"),
        (
            vm("    start: boot\n    state: stopped\n"),
            "8:12 vms.a.state: VM `a` starts with the host and has to be stopped",
        ),
        (
            top(
                "bridge: { name: br0 }\nvms:\n  a: &a { cpus: 1, memory: 1GiB, network: { name: br0, mac: '52:54:00:00:00:01' } }\n  b:\n    cpus: 1\n    memory: 1GiB\n    network: { name: br0, mac: '52:54:00:00:00:01' }\n",
            ),
            "8:32 vms.b.network.mac: VMs `a` and `b` have the same address `52:54:00:00:00:01`",
        ),
        (
            top(
                "bridge: { name: br0 }\nvms: { a: { cpus: 1, memory: 1GiB, network: { name: br0, mac: '53:54:00:00:00:01' } } }\n",
            ),
            "3:63 vms.a.network.mac: `53:54:00:00:00:01` is the address of a group",
        ),
    ];
    let wrong: Vec<_> = cases.iter().filter(|(source, want)| problems(source) != [*want]).collect();
    for (source, want) in &wrong {
        eprintln!("{source}\n  want {want}\n  got  {:#?}\n", problems(source));
    }
    assert!(wrong.is_empty(), "{} of {} cases", wrong.len(), cases.len());
}

#[test]
fn what_stands_under_a_wrong_name_is_checked_too() {
    let source = "version: 1
gpus:
  \"my card\": { match: { adress: '01:00' }, use: nonsense }
vmss:
  desk: { cpus: many, memory: 1GiB, network: br9 }
  \"b b\": { cpus: 2, memory: 4GiB, gpus: [nope] }
files:
  etc/motd: { mode: '999' }
services:
  a b: { enabled: perhaps }
oddities: { cpus: many }
";
    let said: Vec<String> =
        problems(source).iter().map(|p| p.split(": ").take(2).collect::<Vec<_>>().join(": ")).collect();
    let paths: Vec<&str> = said.iter().map(|p| p.split([' ', ':']).nth(2).map_or("", |_| p.as_str())).collect();
    for (at, says) in [
        ("3:3 gpus.my card: ", "`my card` is not a name"),
        ("3:25 gpus.my card.match.adress: ", "unknown field `adress`"),
        ("3:49 gpus.my card.use: ", "unknown value `nonsense`"),
        ("4:1 vmss: ", "unknown field `vmss`"),
        ("5:17 vmss.desk.cpus: ", "expected a number"),
        ("5:46 vmss.desk.network: ", "unknown network `br9`"),
        ("6:3 vmss.b b: ", "`b b` is not a VM name"),
        ("6:42 vmss.b b.gpus[0]: ", "unknown GPU `nope`"),
        ("8:3 files.etc/motd: ", "`etc/motd` is not an absolute path"),
        ("8:3 files.etc/motd: ", "`etc/motd` has no content"),
        ("8:21 files.etc/motd.mode: ", "`999` is not a file mode"),
        ("10:3 services.a b: ", ""),
        ("10:19 services.a b.enabled: ", "expected `true` or `false`"),
        ("11:1 oddities: ", "unknown field `oddities`"),
    ] {
        assert!(paths.iter().any(|p| p.starts_with(&format!("{at}{says}"))), "{at}{says}\n{}", paths.join("\n"));
    }
    assert_eq!(paths.len(), 14, "{}", paths.join("\n"));
    assert!(!said.join(" ").contains("x-"), "what is read in place of a name is nobody's: {}", said.join("\n"));
}

#[test]
fn what_is_missing_comes_with_what_to_write() {
    let invalid = parse("host.yaml", "vms: { a: { network: br0 } }\n").unwrap_err();
    let help: Vec<String> = invalid.problems().into_iter().filter_map(|p| p.help).collect();
    for says in ["`version: 1`", "`cpus: 2`", "`memory: 4GiB`", "`bridge: { name: br0, uplink: auto }`"] {
        assert!(help.iter().any(|h| h.contains(says)), "{says}: {help:?}");
    }
}

#[test]
fn several_problems_are_told_at_once_and_none_twice() {
    let source = "version: 1\n\
        gpus:\n  work: { match: '02:00', uze: vfio }\n\
        bridge: { name: br0, uplink: auto }\n\
        vms:\n\
        \x20 a:\n    cpus: many\n    memory: 1GiB\n    gpus: [work]\n\
        \x20 b:\n    cpus: 1\n    memory: 16G\n    firmware: uefy\n\
        \x20 c: { cpus: 1, memory: 1GiB, gpus: [worc], network: br1, cpus: 2 }\n";
    assert_eq!(
        problems(source),
        [
            "3:27 gpus.work.uze: unknown field `uze`",
            "7:11 vms.a.cpus: expected a number of virtual processors, or `{ count, pin, emulator, sockets, cores, threads }`, found `many`",
            "12:13 vms.b.memory: `16G` is ambiguous; write `16GiB`",
            "13:15 vms.b.firmware: unknown value `uefy`",
            "14:38 vms.c.gpus[0]: unknown GPU `worc`",
            "14:54 vms.c.network: unknown network `br1`",
            "14:59 : `cpus` is given twice",
        ]
    );
}

#[test]
fn what_stands_beside_a_wrong_or_missing_field_is_checked_too() {
    let source = "gpus:\n  work: { match: '01:0', use: vfio }\n  more: { match: '01:00' }\n\
        vms:\n\
        \x20 a: { cpus: 0, memory: 16GB, gpus: [worc, work] }\n\
        \x20 b: { cpu: 1, memory: { pages: 3MiB }, disks: [0GiB, { pool: fast }] }\n";
    assert_eq!(
        problems(source),
        [
            "1:1 : missing field `version`",
            "2:18 gpus.work.match: `01:0` is not a PCI slot; write it as `0000:01:00`",
            "3:11 gpus.more: missing field `use`",
            "5:14 vms.a.cpus: 0 virtual processors are not possible; write 1 to 1024",
            "5:25 vms.a.memory: `16GB` is ambiguous; write `16GiB`",
            "5:38 vms.a.gpus[0]: unknown GPU `worc`",
            "6:8 vms.b.cpu: unknown field `cpu`",
            "6:26 vms.b.memory: missing field `size`",
            "6:33 vms.b.memory.pages: there are no huge pages of 3MiB",
            "6:49 vms.b.disks[0]: a disk of 0B is too small",
            "6:57 vms.b.disks[1]: missing field `size`",
            "6:63 vms.b.disks[1].pool: unknown pool `fast`",
        ]
    );
}

#[test]
fn two_vms_that_do_not_both_run_may_have_the_same_gpu() {
    let vms = |b: &str| {
        format!(
            "version: 1\n{GPUS}vms:\n  a: {{ cpus: 1, memory: 1GiB, gpus: [work], start: boot }}\n  b: {{ cpus: 1, memory: 1GiB, gpus: [work], {b} }}\n"
        )
    };
    for b in ["start: manual", "start: boot, absent: true", "accel: tcg"] {
        assert_eq!(problems(&vms(b)), [""; 0], "{b}");
    }
}

#[test]
fn the_report_says_what_was_probably_meant() {
    let source = format!("version: 1\n{GPUS}vms: {{ a: {{ cpus: 1, memory: 1GiB, gpus: [worc] }} }}\n");
    let report = format!("{:?}", miette::Report::new(parse("host.yaml", &source).unwrap_err()));
    for part in ["host.yaml has 1 problem", "host.yaml:3:43", "did you mean `work`?", "gpuvm::manifest"] {
        assert!(report.contains(part), "{part}: {report}");
    }
}

#[test]
fn files_are_read_from_the_manifests_folder_only() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.yaml");
    std::fs::write(folder.path().join("motd"), "one").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), folder.path().join("link")).unwrap();
    let write = |source: &str| {
        std::fs::write(&path, format!("version: 1\nfiles:\n  /etc/motd: {{ source: {source} }}\n")).unwrap();
    };

    write("motd");
    let loaded = load(&path).unwrap();
    assert_eq!(loaded.files[Path::new("motd")], b"one");
    assert_eq!(loaded.digest.len(), 64);
    assert_eq!(load(&path).unwrap().digest, loaded.digest);
    std::fs::write(folder.path().join("motd"), "two").unwrap();
    assert_ne!(load(&path).unwrap().digest, loaded.digest);

    for (source, want) in [
        ("mtod", "cannot read `mtod`: no such file"),
        ("link", "`link` is a link that leads out of the manifest's folder"),
        (".", "`.` is not a file"),
        ("../host.yaml", "`../host.yaml` does not lie beside the manifest"),
        ("/etc/passwd", "`/etc/passwd` does not lie beside the manifest"),
    ] {
        write(source);
        let Err(LoadError::Invalid(invalid)) = load(&path) else { panic!("{source}") };
        let problem = &invalid.problems()[0];
        assert_eq!((problem.message.as_str(), problem.line, problem.column), (want, 3, 24));
        assert_eq!(problem.path, "files./etc/motd.source");
    }
}

#[test]
fn what_is_no_manifest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.yaml");
    assert!(matches!(load(&path), Err(LoadError::Unreadable { .. })));
    std::fs::write(&path, [b'a', 0xff]).unwrap();
    assert!(matches!(load(&path), Err(LoadError::NotText { .. })));
    let large = format!("version: 1\n{}", "#".repeat(1 << 20));
    std::fs::write(&path, &large).unwrap();
    assert!(matches!(load(&path), Err(LoadError::TooLarge { .. })));
    assert_eq!(problems(&large), ["1:1 : larger than 1 MiB, which no manifest is"]);
}

#[test]
fn bombs_and_depth_are_refused() {
    let mut bomb = "version: 1\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..10 {
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(",")));
    }
    assert!(problems(&bomb)[0].ends_with("too many values, or aliases that expand to too many"));
    for text in ["[", "- ", "{a: "] {
        assert!(problems(&text.repeat(100_000))[0].contains("not valid YAML"), "{text}");
    }
}

#[test]
fn the_schema_is_current() {
    for (schema, file) in [
        (schema(), "host.schema.json"),
        (gpuvm::plan::schema(), "plan.schema.json"),
        (gpuvm::plan::policy_schema(), "policy.schema.json"),
    ] {
        let want = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let file = beside(&format!("schema/{file}"));
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&file, &want).unwrap();
        }
        let is = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(is == want, "{} is stale: run UPDATE_SCHEMA=1 cargo test --test it manifest", file.display());
    }
}

#[test]
fn schema_and_reader_agree() {
    let validator = jsonschema::draft7::new(&schema()).unwrap();
    let by_schema = |source: &str| {
        let value: serde_yaml::Value = serde_yaml::from_str(source).unwrap();
        validator.is_valid(&serde_json::to_value(value).unwrap())
    };
    for path in shipped() {
        let source = std::fs::read_to_string(&path).unwrap();
        assert!(by_schema(&source), "{}", path.display());
        let loaded = load(&path).unwrap();
        // Another YAML reader sees the same, and what is written is read again as the same.
        let other: Manifest = serde_yaml::from_str(&source).unwrap();
        assert_eq!(loaded.manifest, other);
        let written = serde_yaml::to_string(&other).unwrap();
        assert_eq!(parse("written", &written).unwrap(), other, "{written}");
        let json = serde_json::to_value(&other).unwrap();
        assert!(validator.is_valid(&json), "{json:#}");

        let typo = source.replacen("version:", "versoin:", 1);
        assert!(typo != source && !by_schema(&typo) && parse("typo", &typo).is_err(), "{}", path.display());
    }
    for (source, fine) in [
        ("packages: [vim, { name: vim }]", true),
        ("packages: [{ nmae: vim }]", false),
        ("packages: [Vim!]", false),
        ("vms: { a: { cpus: 1, memory: 1GiB } }", true),
        ("vms: { a: { cpus: 1, memory: { size: 1GiB, pages: 2MiB } } }", true),
        ("vms: { a: { cpus: { count: 8, pin: '4-11', emulator: '0,2' }, memory: 1GiB } }", true),
        ("vms: { a: { cpus: { pin: '4-11' }, memory: 1GiB } }", false),
        ("vms: { a: { cpus: { count: 8, pin: '4-' }, memory: 1GiB } }", false),
        ("vms: { a: { cpus: 1, memory: 1G } }", false),
        ("vms: { a: { cpus: 0, memory: 1GiB } }", false),
        ("vms: { a: { cpus: 1 } }", false),
        ("vms: { a: { cpus: 1, memory: 1GiB, start: later } }", false),
        ("vms: { a b: { cpus: 1, memory: 1GiB } }", false),
        ("gpus: { a: { match: { id: '10de:2684' }, use: vfio } }", true),
        ("gpus: { a: { match: { id: '10de:2684', address: '01:00' }, use: vfio } }", false),
        ("bridge: { name: br0, uplink: { mac: '52:54:00:00:00:01' } }", true),
        ("bridge: { name: br0, uplink: { mac: 1 } }", false),
        ("files: { /etc/a: { content: x } }", true),
        ("files: { /etc/a: { content: x, source: y } }", false),
        ("files: { etc/a: { content: x } }", false),
    ] {
        let source = format!("version: 1\n{source}\n");
        assert_eq!((by_schema(&source), parse("x", &source).is_ok()), (fine, fine), "{source}");
    }
    assert!(!by_schema("version: 2\n"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_a_manifest_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>(), any::<bool>()), 1..12)
    ) {
        let mut bytes = include_bytes!("../../manifests/twin.yaml").to_vec();
        for (at, edit, byte, mark) in edits {
            // Half of the bytes are those that mean something to YAML.
            let byte = if mark { b"[]{}:,-&*!|>'\"%@`#?\t\n ~<"[byte as usize % 24] } else { byte };
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => _ = bytes.remove(at),
            }
        }
        problems(&String::from_utf8_lossy(&bytes));
    }
}
