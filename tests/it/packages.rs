//! Packages that no list knows: the lists are fetched before anything else is changed, and once.

use std::fs;

use crate::machine::{copy_tree, gpuvm, repository, stdout, tree};

const MANIFEST: &str =
    "version: 1\npackages: [htpo]\nkernelArgs: [iommu=pt]\nfiles:\n  /etc/issue.net: { content: \"x\\n\" }\n";

fn host(dir: &std::path::Path) {
    copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.join("host"));
    let path = dir.join("host/gpuvm-record.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["queries"].as_array_mut().unwrap().push(serde_json::json!({
        "program": "apt-get",
        "args": ["-s", "-q", "--no-install-recommends", "install", "htpo"],
        "output": { "status": 100, "stdout": "", "stderr": "E: Unable to locate package htpo\n" },
    }));
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[test]
fn a_package_that_no_source_knows_ends_the_run_before_anything_else_changed() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path());
    fs::write(dir.path().join("host.yaml"), MANIFEST).unwrap();
    let run = |args: &[&str]| {
        let output = gpuvm(&[args, &["-f", "host.yaml", "--root", "host"]].concat(), dir.path());
        (output.status.code().unwrap(), stdout(&output), String::from_utf8(output.stderr).unwrap())
    };
    let (code, json, _) = run(&["plan", "--output", "json"]);
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    let first = plan["order"][0]["index"].as_u64().unwrap() as usize;
    assert_eq!((code, &plan["entries"][first]["key"]["kind"]), (2, &"package".into()), "before everything else");

    let before = tree(&dir.path().join("host"));
    let (code, _, said) = run(&["apply", "--yes", "--reboot"]);
    assert!(code == 1 && said.contains("no package source knows `htpo`"), "{said}");
    assert_eq!(tree(&dir.path().join("host")), before, "only the lists were fetched");

    // The next plan says so at once, with what to do.
    let (code, text, _) = run(&["plan"]);
    assert!(code == 1 && text.contains("correct the name, or add the source"), "{text}");

    // A source among the files comes before the package, and is a reason to look again.
    let source = "  /etc/apt/sources.list.d/more.list: { content: \"deb http://mirror.test x main\\n\" }\n";
    fs::write(dir.path().join("host.yaml"), MANIFEST.to_owned() + source).unwrap();
    let (code, text, _) = run(&["plan"]);
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}:\n{text}"));
    assert_eq!(code, 2, "{text}");
    assert!(at("+ file[/etc/apt/sources.list.d/more.list]") < at("+ package"), "{text}");
    assert!(at("+ package") < at("+ file[/etc/issue.net]"), "{text}");
}
