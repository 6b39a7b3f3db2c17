//! Rules of an apply: judged when the plan is made and again when a change starts, on clocks of their own; and the
//! example that uses them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use gpuvm::apply::{ABOUT_FORMAT, About, Allowed, Apply, ApplyError, Order, StateDir};
use gpuvm::cli::plan_now;
use gpuvm::host::fixture::Fixture;
use gpuvm::manifest;
use gpuvm::plan::{Past, Policy, SavedManifest, SavedPlan, Selection};

use crate::foreign::{Foreign, Has, domains};
use crate::machine::{repository, tree};

const FILES: &str =
    "version: 1\nfiles:\n  /etc/a: { content: a }\n  /etc/b: { content: b }\n  /etc/c: { content: c }\n";
const HOUR: &str = "version: 1\nrules:\n  early: { refuse: [change], except: [{ days: [sat], from: \"02:00\", to: \"03:00\", zone: UTC }] }\n";

fn host(manifest: &str, policy: &str) -> Foreign {
    let host = Foreign::new(&[]);
    host.set_manifest(manifest);
    fs::write(host.dir.path().join("policy.yaml"), policy).unwrap();
    host
}

#[test]
fn each_risk_of_a_plan_is_refused_with_the_change_and_the_rule_and_nothing_is_changed() {
    let vfio = "version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: vfio }\n";
    let bridge = "version: 1\nbridge: { name: br0 }\n";
    for (manifest, rule, said) in [
        (vfio, "no: { refuse: [reboot] }", "`vfio-binding[work]` has the risk reboot, which rule `no` refuses"),
        (
            vfio,
            "no: { refuse: [boot-config] }",
            "`vfio-binding[work]` has the risk boot-config, which rule `no` refuses",
        ),
        (
            bridge,
            "still: { refuse: [network-loss] }",
            "`bridge[br0]` has the risk network-loss, which rule `still` refuses",
        ),
        (FILES, "few: { atMost: 2 }", "3 changes are more than rule `few` allows (at most 2)"),
        (FILES, "none: { refuse: [change] }", "`file[/etc/b]` is to be changed, which rule `none` refuses"),
    ] {
        let host = host(manifest, &format!("version: 1\nrules:\n  {rule}\n"));
        let before = tree(&host.dir.path().join("host"));
        for verb in ["plan", "apply"] {
            let (code, all) = host.run(
                &[&[verb, "--policy", "policy.yaml"][..], if verb == "apply" { &["--yes", "--reboot"] } else { &[] }]
                    .concat(),
            );
            assert!(code == 4 && all.contains(said), "{verb}, {rule}: {all}");
        }
        assert_eq!(tree(&host.dir.path().join("host")), before);
        assert!(!host.root("/var/lib/gpuvm/runs").exists());
    }
}

#[test]
fn a_guest_restart_is_for_its_window() {
    let (name, xml) = domains().into_iter().find(|(n, _)| n == "shared").unwrap();
    let host = Foreign::new(&[Has::Libvirt, Has::Bridge]);
    host.define(&name, &xml, true, false);
    assert_eq!(host.run(&["init"]).0, 0);
    assert_eq!(host.run(&["adopt", "--save", "--yes", "libvirt-domain/shared"]).0, 0);
    host.set_manifest(&host.manifest().replace("    cpus: 2\n", "    cpus: 3\n"));
    let policy = repository().join("examples/gitops/policy.yaml").display().to_string();
    let (code, said) = host.run(&["apply", "--yes", "--policy", &policy, "--at", "2025-06-06T12:00:00Z"]);
    assert!(
        code == 4
            && said.contains("rule `guests-at-night` refuses outside sat sun 02:00–05:00 Europe/Berlin (now it is"),
        "{said}"
    );
    let (code, said) = host.run(&["apply", "--yes", "--policy", &policy, "--at", "2025-06-07T03:00:00+02:00"]);
    assert!(code == 3 && host.definition("shared").contains("<vcpu placement='static'>3<"), "{said}");
}

#[test]
fn a_saved_plan_keeps_its_rules() {
    let host = host(FILES, HOUR);
    let (open, shut) = ("2025-06-07T02:30:00Z", "2025-06-07T03:30:00Z");
    assert_eq!(host.run(&["plan", "--policy", "policy.yaml", "--at", open, "--out", "saved.json"]).0, 2);
    // Without a word about rules they hold: now is not that hour, whenever this runs, but for one hour of a week.
    fs::write(host.dir.path().join("always.yaml"), "version: 1\nrules: { n: { atMost: 99 } }\n").unwrap();
    let (code, said) = host.run(&["apply", "saved.json", "--yes", "--policy", "always.yaml", "--at", shut]);
    assert!(code == 4 && said.contains("rule `early`"), "{said}");
    let (code, said) = host.run(&["apply", "saved.json", "--yes", "--policy", "always.yaml", "--at", open]);
    assert!(code == 0 && host.root("/etc/c").exists(), "{said}");
}

/// Applies on a clock that goes on by so many minutes each time it is looked at.
fn apply_with_a_clock(host: &Foreign, minutes: i64) -> Result<(), ApplyError> {
    let loaded = manifest::load(&host.dir.path().join("host.yaml")).unwrap();
    let policy: Policy = manifest::read(&host.dir.path().join("policy.yaml")).unwrap();
    let mut machine = Fixture::open(&host.dir.path().join("host")).unwrap();
    let mut state = StateDir::open(host.root("/var/lib/gpuvm")).unwrap();
    state.lock().unwrap();
    let selection = Selection::default();
    let (plan, _) = plan_now(&loaded, &selection, &machine, &Past::default());
    let now = Cell::new("2025-06-07T02:50:00Z".parse::<jiff::Timestamp>().unwrap());
    assert_eq!(policy.judge(&plan, now.get()), [], "it was fine when it was planned");
    let text = SavedManifest { path: loaded.path.clone(), text: loaded.text.clone(), files: BTreeMap::new() };
    let saved = SavedPlan::new(plan.clone(), selection.clone(), text);
    let order = Order { allowed: Allowed { reboot: true }, ..Order::from(saved) };
    let (at, asked) = (String::new(), String::new());
    let about = About { format: ABOUT_FORMAT, at, asked, undo: None, verb: None, plan: plan.clone(), edited: None };
    let run = state.new_run(&order, &about).unwrap();
    let clock = || {
        let at = now.get();
        now.set(at + jiff::SignedDuration::from_mins(minutes));
        at
    };
    let apply = Apply {
        plan: &|probe, past| plan_now(&loaded, &selection, probe, past),
        state: &mut state,
        run,
        allowed: Allowed { reboot: true },
        policies: &[policy],
        clock: &clock,
        secrets: &BTreeMap::new(),
        stop: &|| false,
        tell: &mut |_| {},
    };
    apply.run(&mut machine, &plan).map(drop)
}

#[test]
fn a_window_that_closes_while_it_runs_stops_it_before_the_next_change() {
    let there = |host: &Foreign| ["/etc/a", "/etc/b", "/etc/c"].map(|p| host.root(p).exists());
    let slow = host(FILES, HOUR);
    let Err(ApplyError::Policy(refusal)) = apply_with_a_clock(&slow, 6) else { panic!("the window closed") };
    assert_eq!(
        refusal.to_string(),
        "`file[/etc/c]` is to be changed, which rule `early` refuses outside sat 02:00–03:00 UTC (now it is sat 03:02 there)"
    );
    assert_eq!(there(&slow), [true, true, false], "what began is finished, and nothing else begins");
    let quick = host(FILES, HOUR);
    apply_with_a_clock(&quick, 1).unwrap();
    assert_eq!(there(&quick), [true; 3]);
}

#[test]
fn a_boot_is_judged_when_it_comes() {
    let vfio = "version: 1\ngpus:\n  work: { match: \"0000:02:00\", use: vfio }\n";
    let rule = HOUR.replace("[change]", "[reboot]");
    let slow = host(vfio, &rule);
    let Err(ApplyError::Policy(refusal)) = apply_with_a_clock(&slow, 2) else { panic!("the window closed") };
    assert!(refusal.to_string().starts_with("the host is to be booted, which rule `early` refuses"), "{refusal}");
    apply_with_a_clock(&host(vfio, &rule), 0).unwrap();
}

#[test]
fn a_mistake_in_the_rules_is_shown_at_its_place_and_nothing_is_done() {
    for (policy, said) in [
        ("version: 1\nrules:\n  a: { refuse: [rebot] }\n", "rebot"),
        ("version: 1\nrules:\n  a: { refuse: [reboot], excpt: [] }\n", "excpt"),
        ("version: 1\nrules:\n  a: {}\n", "it refuses nothing"),
        (
            "version: 1\nrules:\n  a: { refuse: [reboot], except: [{ days: [sat], from: \"1:00\", to: \"02:00\", zone: UTC }] }\n",
            "1:00",
        ),
        (
            "version: 1\nrules:\n  a: { refuse: [reboot], except: [{ days: [sat], from: \"01:00\", to: \"02:00\", zone: Mars/Base }] }\n",
            "Mars/Base",
        ),
    ] {
        let host = host(FILES, policy);
        let (code, all) = host.run(&["apply", "--yes", "--policy", "policy.yaml"]);
        assert!(code == 1 && all.contains(said) && !host.root("/etc/a").exists(), "{policy}: {all}");
    }
    let host = host(FILES, HOUR);
    let (code, _) = host.run(&["apply", "--yes", "--policy", "none.yaml"]);
    assert!(code == 1 && !host.root("/etc/a").exists(), "rules that cannot be read are no rules that allow everything");
}

#[test]
fn the_shipped_example_is_valid_and_does_what_it_says() {
    let folder = repository().join("examples/gitops");
    let policy: Policy = manifest::read(&folder.join("policy.yaml")).unwrap();
    assert_eq!(policy.problems(), [""; 0]);
    let value: serde_json::Value =
        serde_yaml::from_str(&fs::read_to_string(folder.join("policy.yaml")).unwrap()).unwrap();
    let schema = jsonschema::draft7::new(&gpuvm::plan::policy_schema()).unwrap();
    assert!(schema.is_valid(&value));
    assert!(!schema.is_valid(&serde_json::json!({ "version": 1, "rules": { "a": {} } })));

    // The units: what each needs is there, and systemd itself finds nothing wrong where it is installed.
    let service = fs::read_to_string(folder.join("gpuvm-gitops.service")).unwrap();
    assert!(service.contains("\nExecStart=/usr/local/sbin/gpuvm-gitops\n") && service.contains("\nType=oneshot\n"));
    for unit in ["gpuvm-gitops.service", "gpuvm-gitops.timer"] {
        let text = fs::read_to_string(folder.join(unit)).unwrap();
        let plain = |l: &str| {
            l.is_empty() || l.starts_with(['#', '[']) || l.split_once('=').is_some_and(|(k, _)| !k.contains(' '))
        };
        assert!(text.lines().all(plain), "{unit}");
    }
    if let Ok(out) = Command::new("systemd-analyze").args(["calendar", "*:0/30"]).output() {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    // The script, on a repository of its own: a push is applied, one that breaks a rule is refused.
    let host = Foreign::new(&[]);
    let at = |path: &str| host.dir.path().join(path).display().to_string();
    let git = |args: &[&str]| {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"];
        let out = Command::new("git").args(identity).args(args).output().unwrap();
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let push = |manifest: &str| {
        fs::write(host.dir.path().join("repo/labhost.yaml"), manifest).unwrap();
        git(&["-C", &at("repo"), "add", "."]);
        git(&["-C", &at("repo"), "commit", "-q", "-m", "change"]);
    };
    git(&["init", "-q", &at("repo")]);
    push("version: 1\nhost: labhost\nfiles: { /etc/issue.net: { content: \"from git\\n\" } }\n");
    git(&["clone", "-q", &at("repo"), &at("checkout")]);
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_gpuvm")).parent().unwrap().display().to_string();
    let run = || {
        let out = Command::new(folder.join("gpuvm-gitops"))
            .args(["--root", &at("host")])
            .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
            .envs([
                ("GPUVM_CHECKOUT", at("checkout")),
                ("GPUVM_POLICY", folder.join("policy.yaml").display().to_string()),
            ])
            .env("GPUVM_HOST", "labhost")
            .output()
            .unwrap();
        (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    assert_eq!(run().0, 0);
    assert_eq!(fs::read_to_string(host.root("/etc/issue.net")).unwrap(), "from git\n");
    push("version: 1\nhost: labhost\nfiles: { /etc/issue.net: { content: \"again\\n\" } }\nbridge: { name: br0 }\n");
    let (code, said) = run();
    assert!(code == 4 && said.contains("rule `stays-reachable`"), "{said}");
    assert_eq!(fs::read_to_string(host.root("/etc/issue.net")).unwrap(), "from git\n", "the whole of it is refused");
}
