//! Room for a VM beside those that run: what cannot start is not started, and what may be swapped is told of.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::host::Host;

/// The recorded host has less than 4 GiB.
const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
gpus:
  render: { match: { address: \"0000:01:00\" }, use: host }
  work: { match: { address: \"0000:02:00\" }, use: vfio }
vms:
  big: { cpus: 1, memory: 3GiB, disks: [1GiB], network: nat, start: manual }
  two: { cpus: 1, memory: 3GiB, disks: [1GiB], network: nat, start: manual }
  cards: { cpus: 1, memory: 3GiB, disks: [1GiB], network: nat, gpus: [work], start: manual }
";

fn made() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    MADE.get_or_init(|| Host::made(MANIFEST).dir).path()
}

impl Host {
    /// A VM as if it had this card, and another maker.
    fn becomes(&self, name: &str, theirs: bool, card: Option<&str>) {
        self.libvirt(|known| {
            let all = known["domains"].as_array_mut().unwrap();
            let domain = all.iter_mut().find(|d| d["name"] == name).unwrap();
            for which in ["inactiveXml", "liveXml"] {
                let Some(xml) = domain[which].as_str() else { continue };
                let mark = if theirs { "urn:theirs" } else { "urn:gpuvm:vm:1" };
                let card = card.map_or(String::new(), |bus| {
                    format!(
                        "<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='{bus}' slot='0x00' \
                         function='0x0'/></source></hostdev></devices>"
                    )
                });
                let mut xml = xml.replace("urn:gpuvm:vm:1", mark);
                if !card.is_empty() {
                    xml = xml.replace("</devices>", &card);
                }
                domain[which] = xml.into();
            }
        });
    }
}

#[test]
fn memory_that_is_not_locked_is_a_warning_with_the_names_of_those_that_run() {
    let host = Host::copy(made());
    let said = host.says("vm start big", 0);
    assert!(!said.contains("of memory"), "{said}");
    let said = host.says("vm start two", 0);
    assert!(said.contains("it has 3GiB of memory; `big` run with 3GiB, and the host has"), "{said}");
    // Whoever made it.
    host.says("vm stop two", 0);
    host.becomes("big", true, None);
    assert!(host.says("vm start two", 0).contains("`big` run with 3GiB"));
}

#[test]
fn memory_that_is_locked_and_not_there_is_no_start() {
    let host = Host::copy(made());
    host.says("vm start big", 0);
    // What is not locked gives way.
    let said = host.says("vm start cards", 0);
    assert!(said.contains("it has 3GiB of memory; `big` run with 3GiB"), "{said}");
    host.says("vm stop cards", 0);
    host.becomes("big", true, Some("0x07"));
    for words in ["vm start cards", "vm restart cards"] {
        let said = host.says(words, 1);
        assert!(said.contains("it has 3GiB of memory, locked while it runs; `big` run with 3GiB"), "{said}");
        assert!(said.contains("it cannot start") && said.contains("gpuvm vm stop"), "{said}");
    }
    assert_eq!(host.domain("cards")["active"], false);
    // An apply that would start one counts those of others too.
    let new = "  new: { cpus: 1, memory: 3GiB, disks: [1GiB], network: nat, gpus: [work], start: boot }\n";
    fs::write(host.at("host.yaml"), MANIFEST.to_owned() + new).unwrap();
    let said = host.says("plan", 1);
    assert!(said.contains("it has 3GiB of memory, locked while it runs; `big` run with 3GiB"), "{said}");
}

#[test]
fn huge_pages_that_are_in_use_are_not_there_for_another() {
    let pages = MANIFEST.replace("memory: 3GiB", "memory: { size: 64MiB, pages: 2MiB }");
    let host = Host::bare(&pages);
    let kept = host.at("host/root/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    fs::write(&kept, "40\n").unwrap();
    host.says("apply --yes --reboot", 0);
    fs::write(&kept, "40\n").unwrap();
    host.says("vm start big", 0);
    let said = host.says("vm start two", 1);
    let why = "it needs 32 huge pages of 2MiB, and the host keeps 40, of which `big` use 32: it cannot start";
    assert!(said.contains(why) && said.contains("gpuvm vm stop"), "{said}");
    // What the kernel makes on demand is there too, and what somebody's hook makes is not known.
    fs::write(kept.with_file_name("nr_overcommit_hugepages"), "24\n").unwrap();
    host.says("vm start two", 0);
    host.says("vm stop two", 0);
    fs::remove_file(kept.with_file_name("nr_overcommit_hugepages")).unwrap();
    host.says("vm start two", 1);
    fs::create_dir_all(host.at("host/root/etc/libvirt/hooks")).unwrap();
    fs::write(host.at("host/root/etc/libvirt/hooks/qemu"), "#!/bin/sh\n").unwrap();
    host.says("vm start two", 0);
}

#[test]
fn what_the_same_plan_shuts_down_for_the_room_goes_first() {
    let host = Host::copy(made());
    host.says("vm start two", 0);
    host.becomes("two", false, Some("0x07"));
    let manifest = MANIFEST.replace("two: { cpus: 1,", "two: { state: stopped, cpus: 1,");
    let manifest = manifest.replace("cards: { cpus: 1,", "cards: { state: running, cpus: 1,");
    fs::write(host.at("host.yaml"), manifest).unwrap();
    let said = host.says("apply --yes", 0);
    let done = |name: &str| said.find(&format!("done  libvirt-domain[{name}]")).unwrap();
    assert!(done("two") < done("cards"), "{said}");
}
