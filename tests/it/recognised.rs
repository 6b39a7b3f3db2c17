//! A card that the manifest names by its UUID or serial number, on a copy of a recorded host: once it is bound for VMs nothing
//! tells these any more. It is recognised by what is remembered of it, and no other card ever is.

use std::fs;

use crate::host::Host;

const UUID: &str = "GPU-eaf23aa1-4d3d-596c-da66-b86b0e5db584";
const SERIAL: &str = "8d1c3f0a5e7b2244";

fn manifest(by: &str) -> String {
    format!(
        "version: 1\nnetworks:\n  nat: {{ libvirt: default }}\ngpus:\n  work: {{ match: {{ {by} }}, use: vfio }}\nvms:\n  \
         tiny: {{ cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, gpus: [work], start: manual }}\n"
    )
}

/// What a driver of its own tells of a card.
fn tells(host: &Host, card: &str, by_uuid: bool) {
    let (path, text) = match by_uuid {
        true => (
            format!("host/root/proc/driver/nvidia/gpus/{card}/information"),
            format!("Model: \t\t NVIDIA GeForce RTX 4090\nGPU UUID: \t {UUID}\nDevice Minor: \t 1\n"),
        ),
        false => (format!("host/root/sys/bus/pci/devices/{card}/unique_id"), format!("{SERIAL}\n")),
    };
    fs::create_dir_all(host.at(&path).parent().unwrap()).unwrap();
    fs::write(host.at(&path), text).unwrap();
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn made(by_uuid: bool) -> Host {
    let by = if by_uuid { format!("uuid: \"{UUID}\"") } else { format!("serial: \"{SERIAL}\"") };
    let host = Host::bare(&manifest(&by));
    tells(&host, "0000:02:00.0", by_uuid);
    host.says("apply --yes --reboot", 0);
    host
}

#[test]
fn one_apply_binds_it_boots_and_defines_the_vm_and_the_next_has_nothing_to_do() {
    for by_uuid in [true, false] {
        let host = made(by_uuid);
        assert!(host.domain("tiny")["inactiveXml"].as_str().unwrap().contains("bus='0x02'"));
        for told in ["proc/driver/nvidia/gpus/0000:02:00.0/information", "sys/bus/pci/devices/0000:02:00.0/unique_id"] {
            assert!(!host.at(&format!("host/root/{told}")).exists(), "{told} is its own driver's");
        }
        host.says("plan -f host.yaml", 0);
        // Asleep, it tells nothing at all.
        fs::write(host.at("host/root/sys/bus/pci/devices/0000:02:00.0/power_state"), "D3cold\n").unwrap();
        let plan = words(&host.says("plan -f host.yaml -v", 0));
        let how = "recognised by its ids and its place (pcie:12.0/0): its";
        assert!(plan.contains(how), "{plan}");
        let said = words(&host.says("gpu explain work -f host.yaml", 3));
        assert!(said.contains(&format!("ok identity {how}")), "{said}");
        assert!(said.contains("0000:02:00"), "{said}");
        let status = words(&host.says("gpu status work -f host.yaml", 0));
        assert!(status.contains("(remembered; not told now)"), "{status}");
        host.says("gpu detach tiny work --yes", 0);
        host.says("gpu attach tiny work --yes", 0);
        // An undo gives it back to its driver, which tells again.
        host.says("undo --yes", 0);
        host.says("undo --yes", 0);
        host.says("apply --yes", 0);
    }
}

#[test]
fn another_card_in_its_place_is_not_taken_for_it() {
    let host = made(true);
    fs::write(host.at("host/root/sys/bus/pci/devices/0000:02:00.0/device"), "0x2704\n").unwrap();
    let said = words(&host.says("plan -f host.yaml", 1));
    assert!(
        said.contains("no GPU fits the match (a UUID is known only while NVIDIA's driver holds the card)"),
        "{said}"
    );

    // The card itself is elsewhere, and says so.
    let host = made(true);
    tells(&host, "0000:01:00.0", true);
    let said = words(&host.says("gpu explain work -f host.yaml", 3));
    assert!(said.starts_with("work 0000:01:00") && !said.contains("recognised"), "{said}");
}
