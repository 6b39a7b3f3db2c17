//! What README.md says is run: its commands in order, in a copy of what they need.

use std::fs;
use std::process::Command;

use crate::machine::{copy_tree, repository};

/// The shell blocks of the README that are marked as rehearsed (```sh rehearsal).
fn blocks() -> Vec<String> {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    text.split("```sh rehearsal\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let work = tempfile::tempdir().unwrap();
    copy_tree(&repository().join("examples/hosts"), &work.path().join("examples/hosts"));
    copy_tree(&repository().join("manifests"), &work.path().join("manifests"));
    let blocks = blocks();
    assert!(!blocks.is_empty(), "the README has commands to run");
    for block in blocks {
        // The one thing that differs here: the program is built already.
        let script =
            block.replace("cargo run -q --", env!("CARGO_BIN_EXE_gpuvm")).replace("/tmp/rehearsal", "rehearsal");
        let out = Command::new("bash").args(["-c", &script]).current_dir(work.path()).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(matches!(out.status.code(), Some(0 | 2)), "{script}\n{said}");
        assert!(!said.contains("error"), "{script}\n{said}");
    }
}
