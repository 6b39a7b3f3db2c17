//! Dependencies point one way; the `use` lines are held to it.

use std::fs;
use std::path::Path;

use crate::machine::repository;

fn sources(dir: &Path, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            let name = path.strip_prefix(repository().join("src")).unwrap().display().to_string();
            all.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn modules_use_only_what_is_below_them() {
    let forbidden: [(&str, &[&str]); 11] = [
        ("resource/", &["manifest", "apply", "cli", "report", "desire"]),
        ("plan/", &["manifest", "apply", "cli", "report", "host::live", "host::fixture"]),
        ("facts/", &["manifest", "plan", "apply", "cli", "report", "desire", "resource", "gpu", "check", "host::live"]),
        ("gpu/", &["manifest", "plan", "apply", "cli", "report", "desire", "check", "host::live", "host::fixture"]),
        (
            "check/",
            &["manifest", "plan", "apply", "cli", "report", "desire", "resource", "host::live", "host::fixture"],
        ),
        ("verb/", &["manifest", "apply", "cli", "report", "desire", "host::live", "host::fixture"]),
        ("desire/", &["apply", "cli", "report", "host::live", "host::fixture"]),
        ("describe/", &["apply", "cli", "report", "host::live", "host::fixture"]),
        ("report/", &["cli", "manifest", "host::live", "host::fixture"]),
        ("apply/", &["manifest", "cli", "report", "desire", "facts", "host::live", "host::fixture"]),
        ("manifest/", &["facts", "plan", "apply", "cli", "report", "desire", "resource", "host"]),
    ];
    let mut all = Vec::new();
    sources(&repository().join("src"), &mut all);
    let mut wrong = Vec::new();
    for (file, text) in &all {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (layer, above) in forbidden {
            for module in above.iter().filter(|_| file.starts_with(layer)) {
                let path = format!("crate::{module}");
                let named = |line: &str| {
                    line.match_indices(&path)
                        .any(|(at, _)| !line[at + path.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
                };
                if code.lines().any(|l| !l.trim_start().starts_with("//") && named(l)) {
                    wrong.push(format!("{file} uses {path}"));
                }
            }
        }
    }
    assert!(all.len() > 20, "the sources were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
