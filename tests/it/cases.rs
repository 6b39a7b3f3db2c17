//! Data-only cases: a folder of tests/cases is one. It holds a manifest, the host that it is for (a recorded one in
//! `base`, or a composed one in `machine.yaml`, with files to lay over it in `overlay/` and what
//! further programs answered in `answers.json`; with `iommu-off`, its kernel was not
//! told to use the IOMMU), a manifest that was applied before (`before.yaml`), and what has to come out: the plan, every
//! file that an apply changes, and what is left. `UPDATE_CASES=1` writes what came out; read it before you keep it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::composed::{expand, iommu_off};
use crate::machine::{copy_tree, gpuvm, repository, stdout, tree};

pub fn cases() -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(repository().join("tests/cases"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("host.yaml").is_file())
        .collect();
    all.sort();
    all
}

/// The copy of the host that a case starts from.
pub fn host(case: &Path, work: &Path) -> PathBuf {
    let root = work.join("host");
    if let Ok(machine) = fs::read_to_string(case.join("machine.yaml")) {
        expand(&serde_yaml::from_str(&machine).unwrap_or_else(|e| panic!("{}: {e}", case.display())), &root);
    } else {
        let base = fs::read_to_string(case.join("base")).unwrap();
        copy_tree(&repository().join("examples/hosts").join(base.trim()), &root);
    }
    if case.join("overlay").is_dir() {
        copy_tree(&case.join("overlay"), &root);
    }
    if case.join("answers.json").is_file() {
        with_answers(&case.join("answers.json"), &root);
    }
    if case.join("iommu-off").is_file() {
        iommu_off(&root);
    }
    root
}

/// What further programs answered, put into a record.
pub fn with_answers(answers: &Path, root: &Path) {
    let read = |path: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    let path = root.join("gpuvm-record.json");
    let (mut record, more) = (read(&path), read(answers));
    record["queries"].as_array_mut().unwrap().extend(more.as_array().unwrap().iter().cloned());
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
}

pub fn expect(path: &Path, came: &str, wrong: &mut Vec<String>) {
    if std::env::var_os("UPDATE_CASES").is_some() {
        fs::write(path, came).unwrap();
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    if wanted != came {
        let diff = similar::TextDiff::from_lines(&wanted, came).unified_diff().header("wanted", "came").to_string();
        wrong.push(format!("{}:\n{diff}", path.strip_prefix(repository()).unwrap().display()));
    }
}

/// The documents on a CD-ROM image: between them is nothing but zeros.
fn documents(image: &str) -> String {
    let texts = image.split('\0').filter(|t| t.starts_with("#cloud-config") || t.starts_with('{'));
    texts.collect::<String>()
}

/// The changed files of an apply, as text: new ones whole, others as a difference.
pub fn changes(
    before: &std::collections::BTreeMap<String, String>,
    after: &std::collections::BTreeMap<String, String>,
) -> String {
    let mut out = String::new();
    for path in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (old, new) = (before.get(path), after.get(path));
        if old != new {
            let (old, new) = match path.ends_with("-seed.iso") {
                true => (old.map(|t| documents(t)), new.map(|t| documents(t))),
                false => (old.cloned(), new.cloned()),
            };
            let old = old.as_deref().unwrap_or("");
            let gone = if new.is_none() { " (gone)" } else { "" };
            let diff = similar::TextDiff::from_lines(old, new.as_deref().unwrap_or(""));
            let mut diff = diff.unified_diff().context_radius(1).to_string();
            if path == "/var/lib/dpkg/status" {
                // Of packages, the names say enough: the plan has the versions.
                let names = diff.lines().filter_map(|l| l.strip_prefix("+Package: "));
                let left = diff.matches("+Status: deinstall ok config-files").count();
                diff = match left {
                    0 => format!("new: {}\n", names.collect::<Vec<_>>().join(" ")),
                    n => format!("removed, with their configuration left: {n}\n"),
                };
            }
            let _ = writeln!(out, "== {path}{gone}\n{diff}");
        }
    }
    out
}

#[test]
fn every_case_plans_applies_and_is_in_sync_then() {
    let mut wrong = Vec::new();
    let schema = jsonschema::draft7::new(&gpuvm::plan::schema()).unwrap();
    for case in cases() {
        let work = tempfile::tempdir().unwrap();
        let root = host(&case, work.path());
        let manifest = case.join("host.yaml").display().to_string();
        let run = |verb: &str, more: &[&str]| {
            let root = root.display().to_string();
            gpuvm(&[&[verb, "-f", &manifest, "--root", &root], more].concat(), work.path())
        };
        let earlier = case.join("before.yaml");
        if earlier.is_file() {
            let (file, root) = (earlier.display().to_string(), root.display().to_string());
            let apply = gpuvm(&["apply", "-f", &file, "--root", &root, "--yes", "--reboot"], work.path());
            if apply.status.code() != Some(0) {
                wrong.push(format!("{}: {}", earlier.display(), String::from_utf8_lossy(&apply.stderr)));
            }
        }
        let before = tree(&root);
        let plan = run("plan", &[]);
        let code = plan.status.code();
        let mut shown = format!("exit {}\n", code.unwrap());
        shown.push_str(&stdout(&plan));
        let said = String::from_utf8_lossy(&plan.stderr).replace(&manifest, "host.yaml");
        shown.push_str(&said.replace(&root.display().to_string(), "HOST"));
        expect(&case.join("plan.txt"), &shown, &mut wrong);
        if tree(&root) != before {
            wrong.push(format!("{}: plan changed something", case.display()));
        }
        let json = run("plan", &["--output", "json"]);
        let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        wrong.extend(schema.iter_errors(&value).map(|e| format!("{}: {e} ({})", case.display(), e.instance_path())));
        if run("plan", &["--output", "json"]).stdout != json.stdout {
            wrong.push(format!("{}: the same plan twice is not the same bytes", case.display()));
        }
        if code != Some(2) {
            let apply = run("apply", &["--yes", "--reboot"]);
            if tree(&root) != before {
                wrong.push(format!("{}: apply changed something although {:?}", case.display(), apply.status));
            }
            for stale in ["applied.txt", "undone.txt"].map(|f| case.join(f)).iter().filter(|f| f.exists()) {
                wrong.push(format!("{}: nothing is applied here", stale.display()));
            }
            continue;
        }
        let apply = run("apply", &["--yes", "--reboot"]);
        if apply.status.code() != Some(0) {
            let said = String::from_utf8_lossy(&apply.stderr).into_owned();
            wrong.push(format!("{}: apply ended with {:?}\n{said}", case.display(), apply.status));
        }
        let after = tree(&root);
        let changed = changes(&before, &after).replace(&case.display().to_string(), "CASE");
        expect(&case.join("applied.txt"), &changed, &mut wrong);
        let second = run("plan", &["-v"]);
        if second.status.code() != Some(0) {
            wrong.push(format!("{}: the second plan is not empty:\n{}", case.display(), stdout(&second)));
        }
        let third = run("apply", &["--yes", "--reboot"]);
        if third.status.code() != Some(0) || tree(&root) != after {
            wrong.push(format!("{}: an apply with nothing to do did something", case.display()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A kind counts where a case changes it and the change is carried out, by steps or by the boot that it waits for: one that
/// only blocks shows nothing of its steps.
#[test]
fn no_kind_is_without_a_case() {
    let applied = |case: &PathBuf| case.join("applied.txt").is_file();
    let plans = cases().into_iter().filter(applied).map(|c| fs::read_to_string(c.join("plan.txt")).unwrap());
    let plans = plans.collect::<String>();
    let changed = |kind: &str| {
        let key =
            |line: &str| line.strip_prefix("  ").and_then(|l| l.strip_prefix(['+', '~', '-', '…'])).map(str::to_owned);
        let mut keys = plans.lines().filter_map(key).filter_map(|l| l.split_whitespace().next().map(str::to_owned));
        keys.any(|k| k == kind || k.starts_with(&format!("{kind}[")))
    };
    let missing: Vec<_> = gpuvm::resource::Wanted::KINDS.iter().filter(|kind| !changed(kind)).collect();
    assert!(missing.is_empty(), "no case changes {missing:?}");
}

#[test]
fn what_acts_at_boot_can_be_switched_off_on_the_command_line() {
    let acts = ["/etc/udev/rules.d/", "/etc/initramfs-tools/", "/usr/lib/dracut/", "/etc/systemd/system/"];
    // They put modules and files into the initramfs and do nothing there.
    let packs = ["/etc/initramfs-tools/hooks/gpuvm", "/usr/lib/dracut/modules.d/90gpuvm/module-setup.sh"];
    let mut seen = BTreeSet::new();
    for case in cases() {
        let applied = fs::read_to_string(case.join("applied.txt")).unwrap_or_default();
        for (path, text) in applied.split("== /").filter_map(|part| part.split_once('\n')) {
            let path = format!("/{path}");
            let of_a_person = !path.contains("gpuvm");
            if path.ends_with("(gone)") || of_a_person || !acts.iter().any(|folder| path.starts_with(folder)) {
                continue;
            }
            assert!(packs.contains(&path.as_str()) || text.contains("gpuvm.off"), "{path} acts at boot in any case");
            seen.insert(path);
        }
    }
    for path in ["/etc/udev/rules.d/61-gpuvm-vfio-work.rules", "/usr/lib/dracut/modules.d/90gpuvm/gpuvm-override.sh"] {
        assert!(seen.contains(path), "no case writes {path}: {seen:?}");
    }
}
