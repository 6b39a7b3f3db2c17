//! Hosts with their verdicts: a folder of tests/hosts is one. `machine.yaml` describes it, ORIGIN says from which facts it
//! was composed, `host.yaml` (where there is one) is its manifest, and `seen.txt` is what gpuvm says of it.
//! `UPDATE_CASES=1` writes what came out; a verdict is read by eye before it is kept. `KEEP_HOSTS=DIR` leaves the expanded
//! hosts there, to be looked at with `--root`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::composed::{Machine, expand};
use crate::machine::{copy_tree, gpuvm, repository, stdout};

fn hosts() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(repository().join("tests/hosts")).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.is_dir());
    all.sort();
    all
}

fn machine(host: &Path) -> Machine {
    let text = fs::read_to_string(host.join("machine.yaml")).unwrap();
    serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", host.display()))
}

/// What a person sees who types this, with the exit code.
fn said(args: &[&str], root: &Path, work: &Path, name: &str) -> String {
    let shown = args.join(" ");
    let out = gpuvm(&[args, &["--root", &root.display().to_string()]].concat(), work);
    let text = stdout(&out) + &String::from_utf8_lossy(&out.stderr);
    // As it reads on the host itself.
    let text = text.replace(&format!(" --root {}", root.display()), "");
    format!(
        "$ gpuvm {shown}\n{}exit {}\n\n",
        text.replace(&root.display().to_string(), name),
        out.status.code().unwrap()
    )
}

#[test]
fn every_host_has_its_verdict() {
    let keep = std::env::var_os("KEEP_HOSTS").map(PathBuf::from);
    let mut wrong = Vec::new();
    let all = hosts();
    for host in &all {
        let name = host.file_name().unwrap().to_str().unwrap();
        let origin = fs::read_to_string(host.join("ORIGIN")).unwrap_or_default();
        if origin.trim().len() < 40 {
            wrong.push(format!("{name}: its ORIGIN does not say where it is from"));
        }
        let work = tempfile::tempdir().unwrap();
        let root = work.path().join("host");
        let machine = machine(host);
        expand(&machine, &root);
        let manifest = host.join("host.yaml").is_file();
        if manifest {
            fs::copy(host.join("host.yaml"), work.path().join("host.yaml")).unwrap();
        }
        if let Some(before) = &machine.applied_on {
            let other = work.path().join("before");
            expand(&self::machine(&host.with_file_name(before)), &other);
            let apply = ["apply", "-f", "host.yaml", "--yes", "--reboot", "--root", "before"];
            let apply = gpuvm(&apply, work.path());
            if apply.status.code() != Some(0) {
                wrong.push(format!(
                    "{name}: on {before}: {}{}",
                    stdout(&apply),
                    String::from_utf8_lossy(&apply.stderr)
                ));
            }
            for kept in ["var/lib/gpuvm", "etc/udev/rules.d"] {
                copy_tree(&other.join("root").join(kept), &root.join("root").join(kept));
            }
        }
        let named: &[&str] = if manifest { &["-f", "host.yaml"] } else { &[] };
        let mut seen = said(&[&["gpu", "list"], named].concat(), &root, work.path(), name);
        if machine.status {
            seen += &said(&[&["gpu", "status"], named].concat(), &root, work.path(), name);
            let json =
                gpuvm(&["gpu", "status", "--output", "json", "--root", &root.display().to_string()], work.path());
            let json: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
            for gpu in &json {
                seen += &format!("{} busy in JSON: {}\n", gpu["slot"], gpu["busy"]);
            }
            seen += "\n";
        }
        let list = gpuvm(&["gpu", "list", "--output", "json", "--root", &root.display().to_string()], work.path());
        let list: Vec<serde_json::Value> = serde_json::from_slice(&list.stdout).unwrap();
        let every = || list.iter().map(|g| g["slot"].as_str().unwrap().to_owned()).collect();
        for gpu in machine.explain.clone().unwrap_or_else(every) {
            seen += &said(&[&["gpu", "explain", &gpu], named].concat(), &root, work.path(), name);
            let json = gpuvm(
                &["gpu", "explain", &gpu, "--output", "json", "--root", &root.display().to_string()],
                work.path(),
            );
            // An ambiguous name has no explanation.
            if let Ok(json) = serde_json::from_slice::<serde_json::Value>(&json.stdout) {
                sound(name, &json, &mut wrong);
            }
        }
        if machine.applied_on.is_some() || machine.plan {
            seen += &said(&["plan", "-f", "host.yaml"], &root, work.path(), name);
        } else if manifest {
            seen += &said(&["check", "-f", "host.yaml"], &root, work.path(), name);
        }
        if !machine.initramfs.is_empty() {
            seen += &said(&["check", "--next-boot"], &root, work.path(), name);
        }
        seen += &said(&["topology"], &root, work.path(), name);
        let svg = gpuvm(&["topology", "--output", "svg", "--root", &root.display().to_string()], work.path());
        if let Err(e) = roxmltree::Document::parse(&stdout(&svg)) {
            wrong.push(format!("{name}: the drawing is no XML: {e}"));
        }
        let seen = seen.lines().map(|l| format!("{}\n", l.trim_end())).collect::<String>();
        let golden = host.join("seen.txt");
        if std::env::var_os("UPDATE_CASES").is_some() {
            fs::write(&golden, &seen).unwrap();
        }
        let wanted = fs::read_to_string(&golden).unwrap_or_default();
        if wanted != seen {
            let diff =
                similar::TextDiff::from_lines(&wanted, &seen).unified_diff().header("wanted", "came").to_string();
            wrong.push(format!("{name}:\n{diff}"));
        }
        if let Some(keep) = &keep {
            copy_tree(&root, &keep.join(name));
        }
    }
    assert!(all.len() >= 30, "{} hosts", all.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What has to hold of every verdict, whatever the golden says: a PASS has no doubt in it, a FAIL has a reason and says
/// what to do, every link rests on something.
fn sound(name: &str, e: &serde_json::Value, wrong: &mut Vec<String>) {
    let links = e["links"].as_array().unwrap();
    let of = |status: &str| links.iter().filter(|l| l["status"] == status).count();
    let verdict = e["verdict"].as_str().unwrap();
    let right = match verdict {
        "PASS" => of("fail") + of("unknown") == 0,
        "UNKNOWN" => of("fail") == 0 && of("unknown") > 0,
        _ => of("fail") > 0,
    };
    if !right {
        wrong.push(format!("{name}: {verdict} does not follow from its links"));
    }
    for link in links {
        let bare = link["evidence"].as_array().unwrap().is_empty() && link["name"] != "holder";
        let helpless = link["status"] == "fail" && link["fix"].as_array().unwrap().is_empty() && link["name"] != "kind";
        if bare || helpless {
            wrong.push(format!("{name}: {} has no evidence or no fix: {}", link["name"], link["says"]));
        }
    }
}
