//! A host that people set up by hand, made of a recorded one: VMs by virsh, a bridge by netplan, a card kept for VMs by
//! modprobe and GRUB, packages.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::machine::{copy_tree, gpuvm, on_the_host, repository, stdout};

/// What is set up on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    /// Packages of VMs, libvirt with its network and its pool.
    Libvirt,
    /// `br0` over the card.
    Bridge,
    /// The second NVIDIA card (0000:02:00) on vfio-pci, by its id.
    Vfio,
}

/// The host in a folder of its own.
pub struct Foreign {
    pub dir: tempfile::TempDir,
}

/// The hand-tuned definitions by name.
pub fn domains() -> Vec<(String, String)> {
    let mut all: Vec<_> = fs::read_dir(repository().join("tests/domains"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&p).unwrap()))
        .collect();
    all.sort();
    all
}

/// One of the default pool.
fn volume(name: &str, gib: u64) -> Value {
    let path = format!("/var/lib/libvirt/images/{name}");
    json!({ "name": name, "path": path, "format": "qcow2", "capacity": gib << 30 })
}

impl Foreign {
    pub fn new(has: &[Has]) -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        copy_tree(&repository().join("examples/hosts/twin-debian13"), &host.dir.path().join("host"));
        if has.contains(&Has::Libvirt) {
            host.libvirt();
        }
        if has.contains(&Has::Bridge) {
            host.bridge();
        }
        if has.contains(&Has::Vfio) {
            host.vfio();
        }
        host
    }

    pub fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("host/root").join(path.trim_start_matches('/'))
    }
    pub fn write(&self, path: &str, text: &str) {
        let place = self.root(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }
    pub fn append(&self, path: &str, text: &str) {
        let old = fs::read_to_string(self.root(path)).unwrap_or_default();
        self.write(path, &(old + text));
    }

    /// The record beside the files, changed.
    pub fn record(&self, change: impl FnOnce(&mut Value)) -> Value {
        let path = self.dir.path().join("host/gpuvm-record.json");
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        record
    }

    fn libvirt(&self) {
        for name in ["libvirt-daemon-system", "qemu-system-x86", "qemu-utils", "ovmf"] {
            let stanza = format!("\nPackage: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n");
            self.append("/var/lib/dpkg/status", &stanza);
        }
        fs::create_dir_all(self.root("/var/lib/libvirt/images")).unwrap();
        let pool = json!({
            "name": "default", "active": true, "autostart": true,
            "xml": "<pool type='dir'>\n  <name>default</name>\n  <target>\n    <path>/var/lib/libvirt/images</path>\n  </target>\n</pool>\n",
            "volumes": [volume("kernel-0.qcow2", 4), volume("kernel-0.snap1", 4), volume("several-0.qcow2", 10),
                volume("several-1.qcow2", 20), volume("spice-0.qcow2", 60), volume("windows-0.qcow2", 200)],
        });
        let network = |name: &str, on: bool| {
            let xml = format!("<network>\n  <name>{name}</name>\n  <forward mode='nat'/>\n</network>\n");
            json!({ "name": name, "active": on, "autostart": on, "xml": xml })
        };
        let known = json!({
            "version": 11_003_000, "domains": [], "pools": [pool],
            "networks": [network("default", true), network("lab", false)],
        });
        self.record(|record| record["libvirt"] = json!({ "known": known }));
    }

    /// Defines a VM as virsh would, with its disks in the default pool.
    pub fn define(&self, name: &str, xml: &str, active: bool, autostart: bool) {
        let domain = json!({
            "name": name, "uuid": "00000000-0000-4000-8000-000000000000", "active": active, "persistent": true,
            "autostart": autostart, "inactiveXml": xml, "liveXml": active.then_some(xml),
        });
        let disks = xml.split("/var/lib/libvirt/images/").skip(1).filter_map(|rest| rest.split(['\'', '"']).next());
        self.record(|record| {
            record["libvirt"]["known"]["domains"].as_array_mut().unwrap().push(domain);
            let volumes = record["libvirt"]["known"]["pools"][0]["volumes"].as_array_mut().unwrap();
            for disk in disks.filter(|d| d.ends_with(".qcow2")) {
                if !volumes.iter().any(|v| v["name"] == disk) {
                    volumes.push(volume(disk, 40));
                }
            }
        });
    }

    /// The stored definition of a VM.
    pub fn definition(&self, name: &str) -> String {
        let record = self.record(|_| {});
        let domains = record["libvirt"]["known"]["domains"].as_array().unwrap().clone();
        domains.iter().find(|d| d["name"] == name).unwrap()["inactiveXml"].as_str().unwrap().to_owned()
    }

    fn bridge(&self) {
        self.write(
            "/etc/netplan/50-cloud-init.yaml",
            "network:\n  version: 2\n  ethernets:\n    enp0s2: {}\n  bridges:\n    br0:\n      interfaces: [enp0s2]\n      dhcp4: true\n",
        );
        fs::create_dir_all(self.root("/sys/devices/virtual/net/br0/bridge")).unwrap();
        self.write("/sys/devices/virtual/net/br0/uevent", "DEVTYPE=bridge\nINTERFACE=br0\n");
        std::os::unix::fs::symlink("../../devices/virtual/net/br0", self.root("/sys/class/net/br0")).unwrap();
        self.record(|record| {
            for query in record["queries"].as_array_mut().unwrap().iter_mut().filter(|q| q["program"] == "ip") {
                let text = query["output"]["stdout"].as_str().unwrap().to_owned();
                let mut list: Vec<Value> = serde_json::from_str(text.trim()).unwrap();
                if query["args"] == json!(["-json", "address"]) {
                    let card = list.iter_mut().find(|l| l["ifname"] == "enp0s2").unwrap();
                    let mut bridge = card.clone();
                    card["master"] = "br0".into();
                    card["addr_info"] = json!([]);
                    bridge["ifname"] = "br0".into();
                    bridge["ifindex"] = 9.into();
                    list.push(bridge);
                } else {
                    list.iter_mut().filter(|r| r["dev"] == "enp0s2").for_each(|r| r["dev"] = "br0".into());
                }
                query["output"]["stdout"] = serde_json::to_string(&list).unwrap().into();
            }
        });
    }

    fn vfio(&self) {
        for function in ["0000:02:00.0", "0000:02:00.1"] {
            let link = self.root(&format!("/sys/bus/pci/devices/{function}")).canonicalize().unwrap().join("driver");
            fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink("../../../../bus/pci/drivers/vfio-pci", link).unwrap();
        }
        self.write(
            "/etc/modprobe.d/vfio.conf",
            "# by hand\noptions vfio-pci ids=10de:2684,10de:22ba disable_vga=1\nsoftdep nvidia pre: vfio-pci\n",
        );
        self.write("/etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet iommu=pt vfio-pci.ids=10de:2684\"\n");
        let cmdline = fs::read_to_string(self.root("/proc/cmdline")).unwrap();
        self.write("/proc/cmdline", &format!("{} iommu=pt vfio-pci.ids=10de:2684\n", cmdline.trim_end()));
    }

    pub fn manifest(&self) -> String {
        fs::read_to_string(self.dir.path().join("host.yaml")).unwrap()
    }
    pub fn set_manifest(&self, text: &str) {
        fs::write(self.dir.path().join("host.yaml"), text).unwrap();
    }

    /// Runs a command on the copy: its exit code, and all that it said.
    pub fn run(&self, args: &[&str]) -> (i32, String) {
        run_in(self.dir.path(), args)
    }
}

fn run_in(dir: &Path, args: &[&str]) -> (i32, String) {
    let args: Vec<&str> = args.iter().copied().chain(["--root", "host"]).collect();
    let output = gpuvm(&args, dir);
    let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), on_the_host(&said))
}
