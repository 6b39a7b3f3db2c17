//! What README.md and the documents beside it say is run: commands in order, in a copy of what they need.

use std::fs;
use std::process::Command;

use crate::machine::{copy_tree, gpuvm, repository, stdout};

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

/// As the golden screens of `gpuvm tui`, `…` for what is left out.
#[test]
fn the_screen_that_is_shown_is_one_that_was_seen() {
    let text = fs::read_to_string(repository().join("src/cli/README.md")).unwrap();
    let seen = fs::read_to_string(repository().join("tests/tui/vm-of-gpuvm.txt")).unwrap();
    let mut lines = seen.lines();
    let picture = text.split("```screen\n").nth(1).unwrap().split("```").next().unwrap();
    for line in picture.lines().filter(|l| l.trim() != "…") {
        assert!(lines.any(|l| l == line), "`{line}` is not there, or not behind the line before:\n{seen}");
    }
}

/// Each line of the picture is a line of the plan, in its order; `…` stands for what is left out.
#[test]
fn the_picture_of_the_readme_is_a_plan_as_it_is() {
    let work = tempfile::tempdir().unwrap();
    copy_tree(&repository().join("examples/hosts/twin-debian13"), &work.path().join("host"));
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let yaml = text.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    fs::write(work.path().join("host.yaml"), yaml).unwrap();
    let plan = gpuvm(&["plan", "-f", "host.yaml", "--root", "host"], work.path());
    let plan = stdout(&plan);
    let mut lines = plan.lines();
    let picture = text.split("$ gpuvm plan -f host.yaml\n").nth(1).unwrap().split("```").next().unwrap();
    for line in picture.lines().filter(|l| l.trim() != "…") {
        assert!(lines.any(|l| l == line), "`{line}` is not there, or not behind the line before:\n{plan}");
    }
}

/// What a document refers to is there.
#[test]
fn links_lead_somewhere() {
    for name in ["README.md", "manifests/README.md", "src/cli/README.md", "tests/README.md", "tests/lab/README.md"] {
        let path = repository().join(name);
        let text = fs::read_to_string(&path).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|l| !l.contains("://") && !l.starts_with('#')) {
            let file = link.split('#').next().unwrap();
            assert!(path.parent().unwrap().join(file).exists(), "{name} leads to {link}, which is not there");
        }
    }
}

/// Each section of a manifest that a document shows is one that can be written.
#[test]
fn manifests_that_are_shown_are_read() {
    for name in ["README.md", "manifests/README.md", "src/cli/README.md"] {
        let text = fs::read_to_string(repository().join(name)).unwrap();
        for block in text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            // A policy, and the piece of what `init` writes, are no manifests.
            if block.contains("rules:") || block.starts_with(' ') {
                continue;
            }
            let work = tempfile::tempdir().unwrap();
            let version = if block.starts_with("version:") || block.starts_with('#') { "" } else { "version: 1\n" };
            fs::write(work.path().join("host.yaml"), format!("{version}{block}")).unwrap();
            fs::copy(repository().join("manifests/alice.pub"), work.path().join("alice.pub")).unwrap();
            let validated = gpuvm(&["validate", "-f", "host.yaml"], work.path());
            assert!(matches!(validated.status.code(), Some(0 | 1)), "{block}");
            let words = String::from_utf8_lossy(&validated.stderr).into_owned();
            // What another piece has, or a person's own file, is all that may be missing.
            let missing = |l: &&str| {
                ["unknown network", "unknown pool", "cannot read `3bf863cc.pub`"].iter().any(|m| l.contains(m))
            };
            let said = words
                .lines()
                .filter_map(|l| l.trim_start().strip_prefix("× "))
                .filter(|l| !l.starts_with("host.yaml has "));
            let wrong: Vec<&str> = said.filter(|l| !missing(l)).collect();
            assert!(wrong.is_empty(), "{name}:\n{block}\n{words}");
        }
    }
}
