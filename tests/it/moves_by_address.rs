//! A GPU that is named by its address: what the manifest says of it is said all the same, by the name that it has there.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::host::Host;

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
gpus:
  render: { match: { address: \"0000:01:00\" }, use: host }   # draws the desktop
  work: { match: { address: \"0000:02:00\" }, use: vfio }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [work], start: manual }
  other: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, start: manual }
";

fn made() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    MADE.get_or_init(|| Host::made(MANIFEST).dir).path()
}

#[test]
fn a_card_that_the_host_keeps_is_told_of_by_its_name_and_by_every_plan() {
    let host = Host::copy(made());
    let said = host.says("gpu attach other 0000:01:00 -f host.yaml --yes", 0);
    assert!(said.contains("`host.yaml` keeps `render` for the host"), "{said}");
    assert!(said.contains("does not give `render` to `other`"), "{said}");
    let said = host.says("plan", 0);
    assert!(said.contains("gpus.render") && said.contains("VM `other` has it"), "{said}");
    assert!(said.contains("gpuvm gpu detach other 0000:01:00"), "{said}");
    host.says("gpu detach other 0000:01:00 --yes", 0);
    assert!(!host.says("plan", 0).contains("gpus.render"));
    // On vfio-pci with nobody: not the host's either.
    let driver = host.at("host/root/sys/bus/pci/devices/0000:01:00.1/driver");
    fs::remove_file(&driver).unwrap();
    std::os::unix::fs::symlink("../../../../bus/pci/drivers/vfio-pci", &driver).unwrap();
    let said = host.says("plan", 0);
    assert!(said.contains("0000:01:00.1 is on vfio-pci, where the host cannot use it"), "{said}");
}

#[test]
fn what_leaves_the_manifest_goes_back_in_the_same_plan_and_is_no_warning() {
    let host = Host::copy(made());
    let text = MANIFEST.replace("\"0000:02:00\" }, use: vfio", "\"0000:02:00\" }, use: host");
    fs::write(host.at("host.yaml"), text.replace("gpus: [work], ", "")).unwrap();
    let said = host.says("plan", 2);
    assert!(said.contains("vfio-binding[work]") && !said.contains("it stays with the host"), "{said}");
}

#[test]
fn a_detach_says_that_the_next_apply_gives_it_back_and_save_writes_it_by_its_name() {
    let host = Host::copy(made());
    let said = host.says("gpu detach tiny 0000:02:00 -f host.yaml --yes", 0);
    assert!(said.contains("`host.yaml` gives `work` to `tiny`: the next apply gives it back"), "{said}");
    host.says("gpu attach tiny 0000:02:00 --yes", 0);
    host.says("gpu detach tiny 0000:02:00 --save --yes", 0);
    assert!(!fs::read_to_string(host.at("host.yaml")).unwrap().contains("gpus: [work]"));
    host.says("gpu attach other 0000:02:00 --save --yes", 0);
    let text = fs::read_to_string(host.at("host.yaml")).unwrap();
    assert!(text.lines().any(|l| l.contains("other:") && l.contains("gpus: [work]")), "{text}");
    assert!(text.contains("# draws the desktop"));
    // One that the manifest does not name cannot be written by a name.
    let without: String = MANIFEST.lines().filter(|l| !l.contains("render")).map(|l| format!("{l}\n")).collect();
    fs::write(host.at("host.yaml"), without).unwrap();
    let said = host.says("gpu attach other 0000:01:00 --save --yes", 1);
    assert!(said.contains("the manifest names no GPU that is `0000:01:00`"), "{said}");
}

#[test]
fn a_manifest_that_has_moved_keeps_no_card_from_going_by_its_address() {
    let host = Host::copy(made());
    // The defaults name the manifest of the apply, which the record does not have.
    fs::rename(host.at("host.yaml"), host.at("elsewhere.yaml")).unwrap();
    let defaults = host.at("host/root/etc/vmctl/defaults.yaml");
    fs::create_dir_all(defaults.parent().unwrap()).unwrap();
    fs::write(&defaults, "manifest: /srv/twin.yaml\n").unwrap();
    let said = host.says("gpu detach tiny 0000:02:00 --yes", 0);
    assert!(said.contains("twin.yaml") && said.contains("-f FILE"), "{said}");
    host.says("gpu attach tiny 0000:02:00 --yes", 0);
    // By a name, and to be written there, it is needed.
    assert!(host.says("gpu detach tiny work --yes", 1).contains("cannot read"));
    assert!(host.says("gpu detach tiny 0000:02:00 --save --yes", 1).contains("cannot read"));
    assert!(host.says("gpu detach tiny 0000:02:00 -f none.yaml --yes", 1).contains("cannot read `none.yaml`"));
}
