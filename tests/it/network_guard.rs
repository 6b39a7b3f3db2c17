//! The network guard for real: the script that is shipped, in a network namespace with a neighbour in another one.
//! netplan, systemctl and ping are played; links, addresses, routes and neighbour discovery are the kernel's.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::repository;
use crate::namespaces::TWO;

/// The words that scenarios are written in.
const BEGIN: &str = r#"
netplan apply
answered() { ping 10.9.0.1; ip neighbour show to 10.9.0.1 dev v0 | grep -q REACHABLE; }
until_true answered
arm() { sh "$T/guard/guard.sh" "$T/guard" >>"$T/log" 2>&1 & guard=$!; }
wait_for() { n=0; until [ -e "$T/guard/$1" ]; do n=$((n+1)); [ $n -gt 300 ] && { echo "no $1"; cat "$T/log"; exit 9; }; sleep 0.1; done; }
switch() { printf '%s\n' "$1" >"$T/etc/conf"; echo ours >"$T/etc/ours"; : >"$T/guard/switched"; }
"#;

const NETPLAN: &str = r#"#!/bin/sh
echo "netplan $*" >>"$T/log"
[ "$1" = apply ] || exit 0
[ -e "$T/slow" ] && sleep 5
ip address flush dev v0
case $(cat "$T/etc/conf") in
plain)
    ip link set v0 nomaster
    ip link set v0 up
    [ -e "$T/no-lease" ] && exit 0
    ip address add 10.9.0.2/24 dev v0
    ip route replace default via 10.9.0.1 ;;
bridge|broken)
    ip link show dev br0 >/dev/null 2>&1 || ip link add br0 type bridge
    ip link set v0 master br0
    ip link set br0 up
    [ "$(cat "$T/etc/conf")" = broken ] && { ip address flush dev br0; exit 0; }
    ip address replace 10.9.0.2/24 dev br0
    ip route replace default via 10.9.0.1 ;;
esac
"#;

/// Nothing answers a real ping in every sandbox; a datagram makes the kernel look for its neighbour all the same.
const PING: &str = r#"#!/bin/bash
for a; do :; done
for _ in {1..20}; do
    echo >"/dev/udp/$a/9"
    case $(ip neighbour show to "$a") in *REACHABLE*) break ;; esac
    sleep 0.1
done
exit 1
"#;

struct Place(tempfile::TempDir);

impl Place {
    fn new(proofs: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let t = place.path();
        for folder in ["bin", "etc", "guard/old"] {
            fs::create_dir_all(t.join(folder)).unwrap();
        }
        let program = |name: &str, text: &str| {
            fs::write(t.join("bin").join(name), text).unwrap();
            fs::set_permissions(t.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("netplan", NETPLAN);
        program("ping", PING);
        program("systemctl", "#!/bin/sh\necho \"systemctl $*\" >>\"$T/log\"\n");
        fs::write(t.join("etc/conf"), "plain\n").unwrap();
        fs::set_permissions(t.join("etc/conf"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(t.join("etc/conf"), Some(7), Some(8)).unwrap();
        let guard = |name: &str, text: &str| fs::write(t.join("guard").join(name), text).unwrap();
        guard("guard.sh", &fs::read_to_string(repository().join("src/host/live/guard.sh")).unwrap());
        guard("wanted", proofs);
        guard("from", "v0\n");
        guard("to", "br0\n");
        guard("patience", "4\n");
        guard("old/0", "plain\n");
        fs::set_permissions(t.join("guard/old/0"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(t.join("guard/old/0"), Some(7), Some(8)).unwrap();
        guard("restore", &format!("0 {}\n", t.join("etc/conf").display()));
        guard("absent", &format!("{}\n", t.join("etc/ours").display()));
        guard("links", "br0\n");
        guard("boot", &fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap());
        guard("units", &format!("{}\n", t.join("unit").display()));
        fs::write(t.join("unit"), "").unwrap();
        place
    }

    /// A guard that keeps the change does so as soon as it may, and has to wait out a machine that is busy.
    fn patient(self) -> Self {
        fs::write(self.path().join("guard/patience"), "60\n").unwrap();
        self
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    /// Runs a scenario in a namespace of its own and gives what it printed.
    fn run(&self, scenario: &str) -> String {
        let shell = if Path::new("/usr/bin/dash").exists() { "dash" } else { "sh" };
        let output = Command::new("unshare")
            .args(["-n", shell, "-c", &format!("{TWO}{BEGIN}{scenario}")])
            .env("T", self.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}\n{}\n{}", text(&output.stdout), text(&output.stderr), self.text("log"));
        text(&output.stdout)
    }

    fn is_as_it_was(&self) {
        let conf = self.path().join("etc/conf");
        let meta = fs::metadata(&conf).unwrap();
        assert_eq!(fs::read_to_string(&conf).unwrap(), "plain\n");
        assert_eq!((meta.permissions().mode() & 0o777, meta.uid(), meta.gid()), (0o600, 7, 8));
        let names: Vec<PathBuf> = fs::read_dir(self.path().join("etc")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names, [conf], "our file is gone, and no temporary one is left");
        assert!(!self.path().join("unit").exists());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const PROOFS: &str = "link\naddress 10.9.0.2\nroute 4\ngateway 10.9.0.1\ngateway 10.9.0.77\nname-server 10.9.0.1\n";

/// Whether this user may make network namespaces.
fn may() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: no network namespaces");
        return false;
    }
    let made = Command::new("unshare").args(["-n", "ip", "link", "add", "br0", "type", "bridge"]).output();
    assert!(made.is_ok_and(|o| o.status.success()), "root without network namespaces: install util-linux and iproute2");
    true
}

#[test]
fn a_switch_stays_when_what_answered_answers_again() {
    if !may() {
        return;
    }
    let place = Place::new(PROOFS).patient();
    let said = place.run(
        "arm; wait_for ready; switch bridge; sleep 2; [ -e $T/guard/verdict ] && echo early\n\
         netplan apply; : >$T/guard/applied; wait_for verdict; wait $guard; ip -br address show dev br0",
    );
    assert_eq!(place.text("guard/verdict"), "kept\n", "{}", place.text("log"));
    assert_eq!(
        place.text("guard/proofs"),
        "link\naddress 10.9.0.2\nroute 4\ngateway 10.9.0.1\n",
        "what did not answer before is not asked for"
    );
    assert!(said.contains("10.9.0.2/24") && !said.contains("early"), "{said}");
    assert_eq!(place.text("etc/conf"), "bridge\n");
    assert!(!place.path().join("unit").exists());
}

#[test]
fn a_switch_that_loses_the_address_goes_back_byte_for_byte() {
    if !may() {
        return;
    }
    let place = Place::new(PROOFS);
    let said = place.run(
        "arm; wait_for ready; switch broken; netplan apply; : >$T/guard/applied; wait_for verdict; wait $guard\n\
         ip -br address show dev v0; ip link show dev br0 2>/dev/null; true",
    );
    assert_eq!(place.text("guard/verdict"), "reverted: address 10.9.0.2 did not answer\n");
    place.is_as_it_was();
    assert!(said.contains("10.9.0.2/24") && !said.contains("br0"), "{said}");
}

#[test]
fn an_address_that_nobody_gives_back_is_put_back() {
    if !may() {
        return;
    }
    // The files are as before, and the DHCP server is gone.
    let place = Place::new(PROOFS);
    let said = place.run(
        "arm; wait_for ready; switch broken; : >$T/no-lease; netplan apply; : >$T/guard/applied; wait_for verdict\n\
         wait $guard; ip -br address show dev v0; ip route show default",
    );
    assert_eq!(place.text("guard/verdict"), "reverted: address 10.9.0.2 did not answer\n");
    assert!(said.contains("10.9.0.2/24") && said.contains("default via 10.9.0.1 dev v0"), "{said}");
    place.is_as_it_was();
}

#[test]
fn what_answers_only_because_nothing_is_live_yet_does_not_count() {
    if !may() {
        return;
    }
    // The bridge is live already and its new file breaks it.
    let place = Place::new("link\naddress 10.9.0.2\n");
    fs::write(place.path().join("guard/from"), "br0\n").unwrap();
    fs::write(place.path().join("guard/links"), "").unwrap();
    place.run(
        "echo bridge >$T/etc/conf; netplan apply; cp $T/etc/conf $T/guard/old/0; arm; wait_for ready; switch broken\n\
         sleep 3; netplan apply; : >$T/guard/applied; wait_for verdict; wait $guard",
    );
    assert_eq!(place.text("guard/verdict"), "reverted: address 10.9.0.2 did not answer\n");
    assert_eq!(place.text("etc/conf"), "bridge\n");
}

#[test]
fn a_guard_that_is_killed_goes_on_where_it_was() {
    if !may() {
        return;
    }
    let place = Place::new(PROOFS);
    place.run(
        "arm; wait_for ready; switch broken; netplan apply; : >$T/guard/applied; sleep 1; kill -9 $guard\n\
         [ -e $T/guard/verdict ] && exit 8\n\
         : >$T/slow; arm; wait_for undoing; sleep 1; kill -9 $guard; [ -e $T/guard/verdict ] && exit 7\n\
         rm $T/slow; arm; wait_for verdict; wait $guard",
    );
    assert_eq!(place.text("guard/verdict"), "reverted: address 10.9.0.2 did not answer\n");
    place.is_as_it_was();
}

#[test]
fn a_host_that_was_restarted_in_the_middle_decides_at_boot() {
    if !may() {
        return;
    }
    let place = Place::new(PROOFS);
    place.run(
        "arm; wait_for ready; kill -9 $guard; echo broken >$T/etc/conf; echo ours >$T/etc/ours; echo another >$T/guard/boot\n\
         arm; wait_for verdict; wait $guard",
    );
    assert!(place.text("guard/verdict").starts_with("reverted: the host was restarted before"), "not switched");
    place.is_as_it_was();

    let place = Place::new(PROOFS).patient();
    place.run(
        "arm; wait_for ready; kill -9 $guard; switch bridge; echo another >$T/guard/boot; netplan apply\n\
         arm; wait_for verdict",
    );
    assert_eq!(place.text("guard/verdict"), "kept\n", "switched, and it answers");
}

#[test]
fn a_change_that_is_given_up_goes_back_at_once() {
    if !may() {
        return;
    }
    let place = Place::new(PROOFS);
    place.run(
        "arm; wait_for ready; echo broken >$T/etc/conf; echo ours >$T/etc/ours; echo 'netplan refuses it' >$T/guard/give-up\n\
         wait_for verdict; wait $guard",
    );
    assert_eq!(place.text("guard/verdict"), "reverted: netplan refuses it\n");
    place.is_as_it_was();
}
