//! What a manifest says of a VM that is there, and an apply does not do: a disk is neither moved nor taken for another, what is
//! put in when a VM is made is not put in later, and each is told in place of nothing.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::host::Host;

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
storage:
  big: { dir: /srv/big }
  other: { dir: /srv/other }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB, 2GiB], network: nat, start: manual }
";

fn with_vm() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let host = Host::bare(MANIFEST);
        for folder in ["big", "other"] {
            fs::create_dir_all(host.at("host/root/srv").join(folder)).unwrap();
        }
        host.says("apply --yes --reboot", 0);
        host.dir
    });
    made.path()
}

impl Host {
    /// The host with this list of disks in its manifest.
    fn with_disks(disks: &str) -> Self {
        Self::copy(with_vm()).and_disks(disks)
    }
    fn and_disks(self, disks: &str) -> Self {
        fs::write(self.at("host.yaml"), MANIFEST.replace("[1GiB, 2GiB]", disks)).unwrap();
        self
    }
    fn told(&self, words: &str, code: i32) -> String {
        self.says(words, code).split_whitespace().collect::<Vec<_>>().join(" ")
    }
    fn sources(&self) -> Vec<String> {
        let xml = self.domain("tiny")["inactiveXml"].as_str().unwrap().to_owned();
        let files = xml.split("<source file='").skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned());
        files.collect()
    }
}

#[test]
fn a_disk_is_not_moved_by_another_storage_or_another_place_in_the_list() {
    for (disks, goes, comes) in [
        ("[{ size: 1GiB, pool: big }, 2GiB]", "default/tiny-0.qcow2", "big/tiny-0.qcow2"),
        ("[{ size: 1GiB, pool: big }, { size: 2GiB, pool: big }]", "default/tiny-0.qcow2", "big/tiny-0.qcow2"),
        ("[1GiB, { size: 2GiB, pool: big }]", "default/tiny-1.qcow2", "big/tiny-1.qcow2"),
        // One that is put first.
        ("[{ size: 4GiB, pool: big }, 1GiB, 2GiB]", "default/tiny-0.qcow2", "big/tiny-0.qcow2"),
    ] {
        let host = Host::with_disks(disks);
        let before = host.sources();
        let said = host.told("apply --yes", 1);
        assert!(said.contains(&format!("its disk `{goes}` would go, and `{comes}` would be made")), "{disks}: {said}");
        assert!(said.contains("vms.tiny.disks") && said.contains("takeOver: true"), "{disks}: {said}");
        assert_eq!(host.sources(), before);
        assert!(!host.at("host/root/srv/big").join("tiny-0.qcow2").exists());
    }
    let said = Host::with_disks("[{ size: 1GiB, pool: big }, 2GiB]").told("plan", 1);
    let copy = "gpuvm vm stop tiny, qemu-img convert -O qcow2 /var/lib/libvirt/images/tiny-0.qcow2 /srv/big/tiny-0.qcow2, \
                virsh pool-refresh big";
    assert!(said.contains(copy), "{said}");
}

#[test]
fn the_last_disk_of_a_list_goes_and_no_other_changes_with_it() {
    for disks in ["[2GiB]", "[{ size: 1GiB, bus: sata }]"] {
        let host = Host::with_disks(disks);
        let before = host.sources();
        let said = host.told("apply --yes", 1);
        assert!(said.contains("`default/tiny-1.qcow2` would go, and `default/tiny-0.qcow2` become another"), "{said}");
        assert!(said.contains("to do without `default/tiny-1.qcow2`, take that off the end"), "{said}");
        assert_eq!(host.sources(), before);
    }
    let host = Host::with_disks("[1GiB]");
    host.told("apply --yes", 0);
    assert_eq!(host.sources(), ["/var/lib/libvirt/images/tiny-0.qcow2"]);
    let host = host.and_disks("[3GiB]");
    host.told("apply --yes", 0);
    // What is put at the end is another one, wherever it is.
    let host = host.and_disks("[3GiB, { size: 4GiB, pool: big }]");
    host.told("apply --yes", 0);
    assert_eq!(host.sources(), ["/var/lib/libvirt/images/tiny-0.qcow2", "/srv/big/tiny-1.qcow2"]);
    // From one directory of a person's to another.
    let said = host.and_disks("[3GiB, { size: 4GiB, pool: other }]").told("apply --yes", 1);
    assert!(said.contains("`big/tiny-1.qcow2` would go, and `other/tiny-1.qcow2` would be made"), "{said}");
}

#[test]
fn a_disk_that_a_person_moved_is_taken_over_where_it_is() {
    let host = Host::with_disks("[{ size: 1GiB, pool: big, takeOver: true }, 2GiB]");
    // As qemu-img and virsh pool-refresh leave it.
    fs::copy(host.at("host/root/var/lib/libvirt/images/tiny-0.qcow2"), host.at("host/root/srv/big/tiny-0.qcow2"))
        .unwrap();
    host.libvirt(|known| {
        let pools = known["pools"].as_array_mut().unwrap();
        let volumes = |p: &serde_json::Value| p["volumes"].as_array().cloned().unwrap_or_default();
        let all: Vec<_> = pools.iter().flat_map(volumes).collect();
        let mut moved = all.iter().find(|v| v["name"] == "tiny-0.qcow2").unwrap().clone();
        moved["path"] = "/srv/big/tiny-0.qcow2".into();
        let big = pools.iter_mut().find(|p| p["name"] == "big").unwrap();
        big["volumes"] = serde_json::json!([moved]);
    });
    let target = |host: &Host| {
        let xml = host.domain("tiny")["inactiveXml"].as_str().unwrap().to_owned();
        xml.split("tiny-0.qcow2").nth(1).unwrap().split("</disk>").next().unwrap().to_owned()
    };
    let before = target(&host);
    assert!(before.contains("dev='vda'"), "{before}");
    host.told("apply --yes", 0);
    assert_eq!(target(&host), before, "its guest has it where it was");
    assert_eq!(host.sources(), ["/srv/big/tiny-0.qcow2", "/var/lib/libvirt/images/tiny-1.qcow2"]);
    assert!(host.told("plan", 0).contains("nothing to do"));
    assert!(host.at("host/root/var/lib/libvirt/images/tiny-0.qcow2").exists(), "the former one stays");
}

#[test]
fn another_firmware_is_refused_and_what_is_put_in_once_is_named() {
    let host = Host::copy(with_vm());
    let says = |host: &Host, parts: &str| {
        fs::write(host.at("host.yaml"), MANIFEST.replace("start: manual", &format!("start: manual, {parts}"))).unwrap();
    };
    says(&host, "firmware: bios");
    let said = host.told("plan", 1);
    assert!(said.contains("made with firmware `uefi`, and the manifest says `bios`"), "{said}");

    let xml = "xml: [{ at: /domain/devices, add: \"<watchdog model='itco' action='reset'/>\" }]";
    let both = format!("smbios: {{ serial: canary-7 }}, {xml}");
    says(&host, &both);
    for words in ["plan", "apply --yes", "plan"] {
        let said = host.told(words, 0);
        for field in ["smbios", "xml"] {
            assert!(said.contains(&format!("vms.tiny.{field}")), "{words}: {said}");
            assert!(said.contains(&format!("`{field}` is put in when a VM is made")), "{words}: {said}");
        }
        assert!(!said.contains("canary-7"), "{said}");
    }
    // Another change takes neither along, nor forgets that.
    let more = fs::read_to_string(host.at("host.yaml")).unwrap().replace("512MiB", "768MiB");
    fs::write(host.at("host.yaml"), more).unwrap();
    host.told("apply --yes", 0);
    assert!(host.told("plan", 0).contains("vms.tiny.smbios"));
    // Put in by hand, and as libvirt writes it.
    host.libvirt(|known| {
        let tiny = known["domains"].as_array_mut().unwrap().iter_mut().find(|d| d["name"] == "tiny").unwrap();
        let xml = tiny["inactiveXml"].as_str().unwrap();
        let info = "<sysinfo type='smbios'>\n    <system>\n      <entry name='manufacturer'>a</entry>\n      \
                    <entry name='serial'>canary-7</entry>\n    </system>\n  </sysinfo>\n  <os";
        let dog = "<watchdog model='itco' action='reset'>\n      <alias name='w'/>\n    </watchdog>\n  </devices>";
        tiny["inactiveXml"] = xml.replacen("<os", info, 1).replace("</devices>", dog).into();
    });
    let said = host.told("plan", 0);
    assert!(!said.contains("put in when a VM is made"), "{said}");
    // Made with it, it has it.
    let anew = Host::bare(&fs::read_to_string(host.at("host.yaml")).unwrap());
    for folder in ["big", "other"] {
        fs::create_dir_all(anew.at("host/root/srv").join(folder)).unwrap();
    }
    anew.says("apply --yes --reboot", 0);
    assert!(!anew.told("plan", 0).contains("put in when a VM is made"));
    assert!(anew.domain("tiny")["inactiveXml"].as_str().unwrap().contains("canary-7"));
    says(&anew, xml);
    let said = anew.told("plan", 2);
    assert!(said.contains("vms.tiny.smbios") && !said.contains("vms.tiny.xml"), "{said}");
}
