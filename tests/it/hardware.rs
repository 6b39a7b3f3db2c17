//! What may be done on any machine, done on this one: it looks, and changes nothing.

use std::process::Command;

use crate::machine::{repository, stderr, stdout};

#[test]
fn looking_at_this_machine_changes_nothing_of_it() {
    let look = Command::new(repository().join("tests/hardware/run"))
        .arg("look")
        .env("GPUVM", env!("CARGO_BIN_EXE_gpuvm"))
        .output()
        .unwrap();
    assert!(look.status.success(), "{}{}", stdout(&look), stderr(&look));
    assert!(stdout(&look).contains("nothing was woken"), "{}", stdout(&look));
}

#[test]
fn a_machine_is_changed_with_consent_alone() {
    let run = |consent: Option<&str>| {
        let mut twin = Command::new(repository().join("tests/hardware/run"));
        twin.args(["twin", "manifests/twin.yaml"]).env("GPUVM", "/bin/false").env_remove("GPUVM_HARDWARE_CONSENT");
        consent.map(|c| twin.env("GPUVM_HARDWARE_CONSENT", c));
        twin.output().unwrap()
    };
    for consent in [None, Some("yes"), Some("apply to another-host")] {
        let twin = run(consent);
        assert_eq!(twin.status.code(), Some(64), "{consent:?}: {}", stderr(&twin));
    }
}
