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

#[test]
fn what_a_removal_takes_along_is_said_where_it_is_known_and_nothing_is_removed_where_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path());
    fs::write(dir.path().join("host.yaml"), "version: 1\npackages: [{ name: curl, absent: true }]\n").unwrap();
    let run = |verb: &str| {
        let args = [verb, "-f", "host.yaml", "--root", "host"];
        let args = if verb == "apply" { [&args[..], &["--yes"]].concat() } else { args.to_vec() };
        let output = gpuvm(&args, dir.path());
        (output.status.code().unwrap(), stdout(&output) + &String::from_utf8(output.stderr).unwrap())
    };
    let status = dir.path().join("host/root/var/lib/dpkg/status");
    let package = |name: &str, more: &str| {
        let text = fs::read_to_string(&status).unwrap();
        let new = format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n{more}\n");
        fs::write(&status, text.trim_end().to_owned() + "\n\n" + &new).unwrap();
    };
    // A record of before dependencies were written down.
    package("curl", "");
    let before = tree(&dir.path().join("host"));
    let (code, text) = run("plan");
    assert!(code == 1 && text.contains("which packages depend on curl"), "{text}");
    assert_eq!(run("apply").0, 1);
    assert_eq!(tree(&dir.path().join("host")), before);
    // One that has them.
    package("fetcher", "Depends: libc6, curl (>= 1)\n");
    let (code, text) = run("plan");
    assert!(code == 1 && text.contains("it would remove fetcher"), "{text}");
    let both = "version: 1\npackages: [{ name: curl, absent: true }, { name: fetcher, absent: true }]\n";
    fs::write(dir.path().join("host.yaml"), both).unwrap();
    let (code, text) = run("plan");
    assert!(code == 2 && text.contains("remove 2"), "{text}");
    assert_eq!(run("apply").0, 0);
    assert_eq!(run("plan").0, 0);
}
