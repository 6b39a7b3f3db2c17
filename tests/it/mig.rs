//! MIG instances as a person has them: told with their UUIDs, there again after a boot, and never taken from under a
//! container. What nvidia-smi answers is of recorded forms (tests/mig), and what a change makes of it is played.

use std::fs;

use crate::cases;
use crate::host::Host;
use crate::machine::{fast_folder, repository};

/// The host of the case, with its manifest.
fn bare() -> Host {
    let dir = fast_folder();
    let case = repository().join("tests/cases/mig");
    cases::host(&case, dir.path());
    fs::copy(case.join("host.yaml"), dir.path().join("host.yaml")).unwrap();
    Host { dir }
}

fn made() -> Host {
    let host = bare();
    host.says("apply --yes", 0);
    host
}

fn says(host: &Host, command: &str, code: i32) -> String {
    host.says(command, code).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The names of the instances that its driver lists for containers, with their UUIDs.
fn list(host: &Host) -> String {
    let record = host.record(|_| {});
    let queries = record["queries"].as_array().unwrap();
    let list = queries.iter().find(|q| q["args"][0] == "-L").unwrap();
    list["output"]["stdout"].as_str().unwrap().to_owned()
}

/// A container has the instance that the driver has a node of this number for.
fn used(host: &Host, cap: u32) {
    let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    host.record(|record| {
        record["deviceUsers"]["users"] = serde_json::json!([{
            "pid": 77,
            "name": "vllm",
            "cgroup": format!("/system.slice/docker-{id}.scope"),
            "nodes": ["/dev/nvidia0", format!("/dev/nvidia-caps/nvidia-cap{cap}")],
        }]);
    });
}

fn manifest(host: &Host, profiles: &str) {
    let text = fs::read_to_string(repository().join("tests/cases/mig/host.yaml")).unwrap();
    let (head, _) = text.split_once(", mig:").unwrap();
    let text = if profiles.is_empty() { format!("{head} }}\n") } else { format!("{head}, mig: {profiles} }}\n") };
    fs::write(host.at("host.yaml"), text).unwrap();
}

#[test]
fn status_has_their_uuids_and_a_boot_makes_them_again() {
    let host = made();
    let before = list(&host);
    let status = says(&host, "gpu status -f host.yaml", 0);
    assert!(status.contains("mig 4 GPU instances"), "{status}");
    for line in before.lines().filter(|l| l.contains("MIG ")) {
        let uuid = line.split("UUID: ").nth(1).unwrap().trim_end_matches(')');
        assert!(status.contains(uuid), "{uuid}: {status}");
    }
    assert!(says(&host, "gpu list -f host.yaml", 0).contains("4 MIG instances, kept for the host"));
    // What is in the manifest comes again at each boot: it is taken out there, and not by nvidia-smi.
    let said = says(&host, "gpu explain 0000:81:00 -f host.yaml", 1);
    assert!(said.contains("take `mig` out of host.yaml") && !said.contains("mig -dci"), "{said}");
    let text = fs::read_to_string(host.at("host.yaml")).unwrap();
    fs::write(host.at("host.yaml"), format!("{text}kernelArgs: [quiet_boot=1]\n")).unwrap();
    host.says("apply --yes --reboot", 0);
    assert_eq!(host.record(|_| {})["boots"], 1);
    assert_eq!(list(&host), before);
    says(&host, "plan", 0);
}

#[test]
fn one_that_a_container_has_stays_whatever_is_wanted() {
    let host = made();
    let before = list(&host);
    // The last by its place is 3g.20gb at 4; its compute instance has the number after its own.
    used(&host, 40);
    let who = "is used by docker 0123456789ab (vllm, pid 77)";
    for profiles in ["[2g.10gb, 1g.5gb]", "[7g.40gb]", ""] {
        manifest(&host, profiles);
        let plan = says(&host, "plan", 1);
        assert!(plan.contains(who), "{profiles}: {plan}");
        says(&host, "apply --yes", 1);
        assert_eq!(list(&host), before, "{profiles}");
    }
    let undo = says(&host, "undo 1 --yes", 1);
    assert!(undo.contains(who), "{undo}");
    assert_eq!(list(&host), before);
    // The others may change around it.
    manifest(&host, "[3g.20gb, 3g.20gb]");
    says(&host, "apply --yes", 0);
    assert_eq!(list(&host).matches("MIG 3g.20gb").count(), 2);
    assert!(before.lines().any(|l| l.contains("3g.20gb") && list(&host).contains(l.split("UUID: ").nth(1).unwrap())));
}

#[test]
fn a_card_that_does_not_answer_is_left_alone() {
    let host = made();
    host.record(|record| {
        record["queries"].as_array_mut().unwrap().retain(|q| q["args"][0] != "-q");
    });
    for profiles in ["[7g.40gb]", ""] {
        manifest(&host, profiles);
        let plan = says(&host, "plan", 1);
        assert!(plan.contains("-q -x -i 0000:81:00.0"), "{plan}");
        says(&host, "apply --yes", 1);
    }
    assert!(list(&host).contains("MIG 3g.20gb"));
}

#[test]
fn wrong_profiles_and_sets_that_do_not_fit_are_refused_with_the_cards_own() {
    let host = made();
    for (profiles, said) in [
        ("[3g.40gb]", "`3g.40gb` is no profile of this card"),
        ("[3g.40gb]", "1g.5gb ×7, 1g.5gb+me ×1, 1g.10gb ×4, 2g.10gb ×3, 3g.20gb ×2, 4g.20gb ×1, 7g.40gb ×1"),
        ("[3g.20gb, 3g.20gb, 1g.5gb]", "3g.20gb, 3g.20gb, 1g.5gb do not fit on the card together"),
        ("[3g.20gb, 3g.20gb, 1g.5gb]", "without one 1g.5gb they fit"),
    ] {
        manifest(&host, profiles);
        let plan = says(&host, "plan", 1);
        assert!(plan.contains(said), "{plan}");
    }
}

#[test]
fn a_set_that_does_not_fit_is_refused_by_the_apply_where_only_the_mode_tells() {
    let host = bare();
    manifest(&host, "[3g.20gb, 3g.20gb, 1g.5gb]");
    let plan = says(&host, "plan", 2);
    assert!(plan.contains("the card tells of its profiles once MIG mode is on"), "{plan}");
    let said = says(&host, "apply --yes", 1);
    assert!(said.contains("do not fit on the card together"), "{said}");
    assert!(!list(&host).contains("MIG 1g"));
    assert!(says(&host, "plan", 1).contains("without one 1g.5gb they fit"));
}
