//! `gpuvm ip check` on real links: network namespaces with neighbours that answer, do not, or answer late. Root only.

use std::fs;
use std::process::Command;

use crate::machine::fast_folder;
use crate::namespaces::TWO;

/// Ours has 10.9.0.2, theirs 10.9.0.1 and what a scenario gives it.
const BEGIN: &str = r#"
theirs ip address add fd09::1/64 dev v1 nodad
ip link set v0 up
ip address add 10.9.0.2/24 dev v0
ip address add fd09::2/64 dev v0 nodad
carrier() { [ "$(cat /sys/class/net/v0/carrier)" = 1 ]; }
until_true carrier
check() { "$GPUVM" ip check "$@"; echo "ends with $?"; }
"#;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs a scenario in a namespace of its own and gives what it printed.
fn run(scenario: &str) -> String {
    let folder = fast_folder();
    let script = folder.path().join("scenario");
    fs::write(&script, format!("{TWO}{BEGIN}{scenario}")).unwrap();
    // Mounts of its own, so that /sys shows the links of the namespace.
    let output = Command::new("unshare")
        .args(["-n", "-m", "sh", "-c", "mount -t sysfs sysfs /sys && exec sh \"$0\""])
        .arg(&script)
        .env("GPUVM", env!("CARGO_BIN_EXE_gpuvm"))
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn who_answers_has_it_who_does_not_has_it_not_and_late_is_early_enough() {
    if !is_root() {
        return;
    }
    // The late one has its address only after the first question was asked.
    let said = run("
        check 10.9.0.1
        check 10.9.0.7
        check 10.9.0.2
        check fd09::1
        check fd09::7
        (sleep 1.4; theirs ip address add 10.9.0.8/24 dev v1) & check 10.9.0.8
        (sleep 1.4; theirs ip address add fd09::8/64 dev v1 nodad) & check fd09::8
        check 10.77.0.1
        check --on v0 10.77.0.9
        check 10.9.0.255
        check --wait 1 10.9.0.17
    ");
    let told: Vec<(&str, &str)> = said
        .lines()
        .filter(|l| !l.starts_with(' '))
        .filter_map(|l| l.split_once("  ").or_else(|| l.split_once("ends with ")))
        .map(|(a, b)| (a, b.trim()))
        .collect();
    let expect = |ip: &str, verdict: &str, code: &str| {
        let at = told.iter().position(|(a, _)| *a == ip).unwrap_or_else(|| panic!("{ip}: {said}"));
        assert!(told[at].1.starts_with(verdict), "{ip} {verdict}: {said}");
        assert_eq!(told[at + 1].1, code, "{ip}: {said}");
    };
    expect("10.9.0.1", "IN USE", "1");
    expect("10.9.0.7", "FREE", "0");
    expect("10.9.0.2", "IN USE", "1");
    expect("fd09::1", "IN USE", "1");
    expect("fd09::7", "FREE", "0");
    expect("10.9.0.8", "IN USE", "1");
    expect("fd09::8", "IN USE", "1");
    expect("10.77.0.1", "UNKNOWN", "3");
    expect("10.77.0.9", "UNKNOWN", "3");
    assert!(said.contains("nothing says that 10.77.0.9 would be there"), "{said}");
    expect("10.9.0.255", "IN USE", "1");
    expect("10.9.0.17", "FREE", "0");
    assert!(said.contains("answers for it on v0"), "{said}");
}

#[test]
fn without_the_right_to_ask_nothing_is_free_and_free_ones_are_found() {
    if !is_root() {
        return;
    }
    let said = run("
        theirs ip address add 10.9.0.253/24 dev v1
        check --free 2 --on v0
        setpriv --bounding-set -net_raw --inh-caps -net_raw \"$GPUVM\" ip check 10.9.0.7; echo ends with $?
    ");
    let lines: Vec<&str> = said.lines().filter(|l| !l.starts_with(' ')).collect();
    assert!(lines[0].starts_with("10.9.0.254  FREE") && lines[1].starts_with("10.9.0.252  FREE"), "{said}");
    assert_eq!(lines[2], "ends with 0", "{said}");
    assert!(lines[3].starts_with("10.9.0.7  UNKNOWN") && said.contains("run gpuvm as root"), "{said}");
    assert_eq!(lines[4], "ends with 3", "{said}");
}
