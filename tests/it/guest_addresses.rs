//! Addresses that no guest may have: each refused where it is written, and before anything is changed.

use std::fs;

use crate::host::Host;

const MANIFEST: &str = "version: 1
networks:
  nat: { libvirt: default }
";

fn with(address: &str) -> String {
    let nic = format!("network: {{ name: nat, address: {address} }}");
    format!("{MANIFEST}vms:\n  desk: {{ cpus: 1, memory: 512MiB, disks: [1GiB], {nic}, start: manual }}\n")
}

/// The recorded host has 10.0.2.15/24, and 10.0.2.2 for a gateway.
#[test]
fn the_hosts_own_address_and_its_gateway_are_refused() {
    let host = Host::bare(&with("10.0.2.15/24"));
    let said = host.says("plan", 1);
    assert!(said.contains("vms.desk.network.address") && said.contains("10.0.2.15 is this host's own"), "{said}");
    assert!(said.contains("gpuvm ip check --free 1"), "{said}");
    fs::write(host.at("host.yaml"), with("10.0.2.2/24")).unwrap();
    let said = host.says("plan", 1);
    assert!(said.contains("10.0.2.2 is the gateway by which this host reaches"), "{said}");
    // One that is routed to the guest alone has its router elsewhere.
    for address in ["10.0.2.77/24", "10.0.2.77/32, gateway: 192.0.2.1"] {
        fs::write(host.at("host.yaml"), with(address)).unwrap();
        host.says("plan", 2);
    }
    // `create` refuses the same.
    fs::write(host.at("host.yaml"), MANIFEST).unwrap();
    fs::write(host.at("a.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPJ1s6V4hSUNtWlmK9SZ3jBqkYW0GmFdJ9ux7dkoHJXv a\n")
        .unwrap();
    let create = "create ubuntu desk --yes --user bob --key file:a.pub --address";
    let said = host.says(&format!("{create} 10.0.2.15/24"), 1);
    assert!(said.contains("10.0.2.15 is this host's own"), "{said}");
    assert_eq!(fs::read_to_string(host.at("host.yaml")).unwrap(), MANIFEST);
}

#[test]
fn a_mistake_in_what_create_would_write_is_shown_under_the_manifests_name() {
    let host = Host::bare(MANIFEST);
    fs::write(host.at("a.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPJ1s6V4hSUNtWlmK9SZ3jBqkYW0GmFdJ9ux7dkoHJXv a\n")
        .unwrap();
    let said = host.says("create ubuntu desk --yes --user bob --key file:a.pub --address 10.0.2.255/24", 1);
    assert!(said.contains("the entry was not written, and `host.yaml` is as it was"), "{said}");
    assert!(
        said.contains("host.yaml has 1 problem") && said.contains("the broadcast address of 10.0.2.0/24"),
        "{said}"
    );
    assert!(!said.contains(".gpuvm-create-"), "{said}");
    assert_eq!(fs::read_to_string(host.at("host.yaml")).unwrap(), MANIFEST);
}

#[test]
fn an_address_that_is_only_declared_is_not_free() {
    let host = Host::bare(&with("10.0.2.77/24"));
    for words in ["ip check 10.0.2.77", "ip check 10.0.2.77 -f host.yaml"] {
        let said = host.says(words, 1);
        assert!(said.contains("IN USE") && said.contains("VM desk is to have it by host.yaml"), "{said}");
    }
    assert!(host.says("ip check 10.0.2.77 -f none.yaml", 1).contains("cannot read `none.yaml`"));
    // What a manifest would say that cannot be read is not known.
    fs::write(host.at("host.yaml"), "version: 1\nvms: [").unwrap();
    let said = host.says("ip check 10.0.2.77", 3);
    assert!(said.contains("UNKNOWN"), "{said}");
}
