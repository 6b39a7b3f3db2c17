//! A card is in one running VM at a time: what a plan starts with a card that another running VM has is refused by the name
//! of that one, before anything is changed.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::host::Host;

const GPUS: &str = "version: 1
networks:
  nat: { libvirt: default }
gpus:
  work: { match: { address: \"0000:02:00\" }, use: vfio }
vms:
";

fn vm(name: &str, more: &str) -> String {
    format!("  {name}: {{ cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, {more} }}\n")
}

/// A host whose VM `tiny` has a card, and is off.
fn with_a_card() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    MADE.get_or_init(|| Host::made(&(GPUS.to_owned() + &vm("tiny", "gpus: [work], start: manual"))).dir).path()
}

impl Host {
    /// The VM `tiny` runs with its card; what the manifest has now is not applied yet.
    fn taken(vms: &[String]) -> Self {
        let host = Self::copy(with_a_card());
        host.says("vm start tiny", 0);
        fs::write(host.at("host.yaml"), GPUS.to_owned() + &vms.concat()).unwrap();
        host
    }
    fn is_on(&self, name: &str) -> bool {
        self.domain(name)["active"] == true
    }
}

#[test]
fn a_plan_starts_no_vm_with_a_card_that_another_running_one_has() {
    let new = vm("tiny2", "gpus: [work], start: boot");
    for (what, vms) in [
        ("the first one gave it up, and runs on", vec![vm("tiny", "start: manual"), new.clone()]),
        ("it was renamed", vec![new.clone()]),
        ("both have it", vec![vm("tiny", "gpus: [work], start: manual"), new.clone()]),
        ("by the state", vec![vm("tiny2", "gpus: [work], start: manual, state: running")]),
    ] {
        let host = Host::taken(&vms);
        for words in ["plan", "apply --yes"] {
            let said = host.says(words, 1);
            assert!(said.contains("VM `tiny` has its device 0000:02:00.0, and runs"), "{what}: {said}");
            assert!(said.contains("gpuvm vm stop --root host tiny") || said.contains("gpuvm vm stop tiny"), "{said}");
        }
        assert!(host.domain("tiny2").is_null(), "{what}: nothing was changed");
        host.says("vm stop tiny", 0);
        host.says("apply --yes", 0);
        assert!(host.is_on("tiny2") && !host.is_on("tiny"), "{what}");
        // Nor does any other verb that starts one.
        if !host.domain("tiny").is_null() && what == "both have it" {
            let said = host.says("vm restart tiny", 1);
            assert!(said.contains("VM `tiny2` has its device 0000:02:00.0"), "{said}");
        }
    }
}

#[test]
fn a_vm_that_the_same_plan_shuts_down_goes_first() {
    // By its name, the new one would come before it.
    let vms = [vm("tiny", "gpus: [work], start: manual, state: stopped"), vm("a", "gpus: [work], start: boot")];
    let host = Host::taken(&vms);
    let said = host.says("apply --yes", 0);
    assert!(host.is_on("a") && !host.is_on("tiny"), "{said}");
    host.says("plan", 0);
    // And the way back gives it to the first again, in that order.
    host.says("undo --yes", 0);
    assert!(host.is_on("tiny") && host.domain("a").is_null());
}

#[test]
fn a_vm_of_others_is_named_with_their_tool() {
    let host = Host::taken(&[vm("tiny2", "gpus: [work], start: boot")]);
    host.libvirt(|known| {
        for domain in known["domains"].as_array_mut().unwrap() {
            for which in ["inactiveXml", "liveXml"] {
                domain[which] =
                    domain[which].as_str().unwrap_or_default().replace("urn:gpuvm:vm:1", "urn:theirs").into();
            }
        }
    });
    let said = host.says("plan", 1);
    assert!(said.contains("shut that down first: virsh shutdown tiny"), "{said}");
}

#[test]
fn undo_starts_no_vm_with_a_card_that_has_another_user_by_now() {
    let host = Host::taken(&[vm("tiny", "gpus: [work], start: manual"), vm("other", "gpus: [work], start: manual")]);
    host.says("apply --yes", 0);
    host.says("vm stop tiny", 0);
    let runs = fs::read_dir(host.at("host/root/var/lib/gpuvm/runs")).unwrap().count();
    host.says("vm start other", 0);
    let said = host.says(&format!("undo {runs} --yes"), 1);
    assert!(said.contains("VM `other` has its device 0000:02:00.0, and runs"), "{said}");
    assert!(host.is_on("other") && !host.is_on("tiny"));
}
