//! gpuvm itself on the host, and `vmctl`: put there by an apply, called, taken away again, and never put over something
//! else. A recorded host has what stands for the program, since nothing on it is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::host::Host;
use crate::machine::{command, copy_tree, fast_folder, repository, stderr, stdout};
use crate::terminal::Terminal;

const MANIFEST: &str = "version: 1
networks: { nat: { libvirt: default } }
storage: { big: { dir: /srv/vms } }
vms:
  tiny: { cpus: 1, memory: 512MiB, disks: [1GiB], network: nat, start: manual }
";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDexampleexampleexampleexampleexampleexampl alice@desk\n";
const PLACES: [&str; 3] = ["usr/local/bin/gpuvm", "usr/local/bin/vmctl", "etc/vmctl/defaults.yaml"];

/// The recorded host as it is.
fn bare(manifest: &str) -> Host {
    let dir = fast_folder();
    copy_tree(&repository().join("examples/hosts/twin-debian13"), &dir.path().join("host"));
    fs::create_dir_all(dir.path().join("host/root/srv/vms")).unwrap();
    fs::write(dir.path().join("host.yaml"), manifest).unwrap();
    Host { dir }
}

fn there(host: &Host) -> Vec<&'static str> {
    let on_host = |path: &&str| host.at("host/root").join(path).symlink_metadata().is_ok();
    PLACES.into_iter().filter(on_host).collect()
}

#[test]
fn an_apply_puts_it_there_and_undo_and_an_empty_manifest_take_it_away() {
    let host = bare(MANIFEST);
    let said = host.says("apply --yes", 0);
    assert!(said.contains("  done  program\n  done  vmctl\n"), "{said}");
    assert_eq!(there(&host), PLACES);
    let defaults = fs::read_to_string(host.at("host/root/etc/vmctl/defaults.yaml")).unwrap();
    let manifest = host.at("host.yaml").canonicalize().unwrap();
    assert!(defaults.ends_with(&format!("\nmanifest: {}\n", manifest.display())), "{defaults}");
    host.says("plan", 0);
    // No more of the program than its digest is written down.
    let journal = fs::read_to_string(host.at("host/root/var/lib/gpuvm/runs/1/journal.jsonl")).unwrap();
    assert!(journal.contains("\"program\":\"") && journal.contains("\"answers\":{\"path\":\"/usr/local/bin/vmctl\""));

    let empty = Host::copy(host.dir.path());
    fs::write(empty.at("host.yaml"), "version: 1\n").unwrap();
    let said = empty.says("apply --yes", 0);
    assert!(said.contains("- program") && said.contains("a copy elsewhere can still show, plan and undo"), "{said}");
    assert!(there(&empty).is_empty() && !empty.at("host/root/etc/vmctl").exists(), "{:?}", there(&empty));
    empty.says("undo 2 --yes", 0);
    assert_eq!(there(&empty), PLACES);

    let said = host.says("undo 1 --yes", 0);
    assert!(there(&host).is_empty() && !host.at("host/root/etc/vmctl").exists(), "{said}");
    fs::write(host.at("host.yaml"), format!("{MANIFEST}vmctl: {{ install: false }}\n")).unwrap();
    host.says("apply --yes", 0);
    assert!(there(&host).is_empty());
}

#[test]
fn what_somebody_put_there_is_neither_replaced_nor_taken_away() {
    let host = bare(MANIFEST);
    fs::create_dir_all(host.at("host/root/usr/local/bin")).unwrap();
    fs::create_dir_all(host.at("host/root/etc/vmctl")).unwrap();
    for (path, said) in [
        ("usr/local/bin/gpuvm", "/usr/local/bin/gpuvm is another program than this gpuvm"),
        ("usr/local/bin/vmctl", "/usr/local/bin/vmctl is there, and does not lead to gpuvm"),
        ("etc/vmctl/defaults.yaml", "/etc/vmctl/defaults.yaml is there, and is not gpuvm's"),
    ] {
        let at = host.at("host/root").join(path);
        fs::write(&at, "#!/bin/sh\n# somebody's\n").unwrap();
        let came = host.says("apply --yes", 1).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(came.contains(said) && came.contains("vmctl: { install: false }"), "{came}");
        assert_eq!(fs::read_to_string(&at).unwrap(), "#!/bin/sh\n# somebody's\n");
        fs::remove_file(&at).unwrap();
    }
    // This very program, put there by hand: used, and theirs.
    let at = host.at("host/root/usr/local/bin/gpuvm");
    fs::write(&at, gpuvm::host::Myself::STAND_IN).unwrap();
    fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let said = host.says("apply --yes", 0);
    assert!(!said.contains("done  program") && said.contains("done  vmctl"), "{said}");
    fs::write(host.at("host.yaml"), "version: 1\n").unwrap();
    host.says("apply --yes", 0);
    assert_eq!(there(&host), ["usr/local/bin/gpuvm"]);
}

#[test]
fn one_that_gpuvm_put_there_is_renewed_and_what_it_was_comes_back() {
    let host = bare(MANIFEST);
    host.says("apply --yes", 0);
    // As an older gpuvm left it.
    let (ledger, old) = (host.at("host/root/var/lib/gpuvm/ledger.json"), "#!/bin/sh\necho 'gpuvm 0.0.9'\n");
    fs::write(host.at("host/root/usr/local/bin/gpuvm"), old).unwrap();
    let text = fs::read_to_string(&ledger).unwrap();
    let this = gpuvm::host::Myself::stand_in();
    let was = text.replace(&this.sha256, &gpuvm::types::sha256_hex(old.as_bytes()));
    let was = was.replace(&format!("\"version\":\"{}\"", this.version), "\"version\":\"0.0.9\"");
    fs::write(&ledger, was).unwrap();
    let said = host.says("apply --yes", 0);
    assert!(said.contains("~ program") && said.contains(&format!("0.0.9 → {}", this.version)), "{said}");
    let now = || fs::read_to_string(host.at("host/root/usr/local/bin/gpuvm")).unwrap();
    assert_eq!(now(), gpuvm::host::Myself::STAND_IN);
    host.says("undo 2 --yes", 0);
    assert_eq!(now(), old);
}

#[test]
fn a_plan_of_another_build_says_so() {
    let host = bare(MANIFEST);
    host.says("plan --out saved", 2);
    let text = fs::read_to_string(host.at("saved")).unwrap();
    let this = gpuvm::host::Myself::stand_in().sha256;
    assert!(text.contains(&this));
    fs::write(host.at("saved"), text.replace(&this, &"0".repeat(64))).unwrap();
    let said = host.says("apply saved --yes", 4);
    assert!(said.contains("sha256 000000000000…), and this is another one") && said.contains("plan again"), "{said}");
    assert!(there(&host).is_empty());
    fs::write(host.at("saved"), text).unwrap();
    host.says("apply saved --yes", 0);
    assert_eq!(there(&host), PLACES);

    // A run that was cut off in the middle of it.
    let host = bare(MANIFEST);
    let cut =
        command(&["apply", "--yes", "--root", "host"], host.dir.path()).env("GPUVM_DIE_AT", "40").output().unwrap();
    assert_ne!(cut.status.code(), Some(0));
    let order = host.at("host/root/var/lib/gpuvm/runs/1/order.json");
    let text = fs::read_to_string(&order).unwrap();
    fs::write(&order, text.replace(&this, &"0".repeat(64))).unwrap();
    let said = host.says("apply --resume", 1).replace('│', "").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("runs/1/gpuvm apply --resume") && said.contains("this is another one"), "{said}");
    fs::write(&order, text).unwrap();
    host.says("apply --resume", 0);
    assert_eq!(there(&host), PLACES);
}

/// A host whose manifest lies on it, and the words of `vmctl create` from another folder.
fn with_defaults(more: &str) -> (Host, PathBuf) {
    let host = bare(MANIFEST);
    let manifest = host.at("host/root/srv/host.yaml");
    fs::create_dir_all(manifest.parent().unwrap()).unwrap();
    let text = format!("{MANIFEST}vmctl:\n  manifest: /srv/host.yaml\n{more}");
    fs::write(&manifest, text).unwrap();
    fs::write(manifest.with_file_name("alice.pub"), KEY).unwrap();
    fs::remove_file(host.at("host.yaml")).unwrap();
    host.says("apply --yes -f host/root/srv/host.yaml", 0);
    (host, manifest)
}

#[test]
fn a_new_vm_needs_no_manifest_named() {
    let (host, manifest) = with_defaults("  pool: big\n  user: { name: alice, sshKeys: [file:alice.pub] }\n");
    let said = host.says("create ubuntu desk --yes", 0);
    let text = fs::read_to_string(&manifest).unwrap();
    assert!(text.contains("disks: [{ pool: big, size: 25GiB }]") && text.contains("name: alice"), "{text}\n{said}");
    let undone = host.says("undo --plan", 2).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(undone.contains("which an undo leaves as it is: `vms.desk` is new"), "{undone}");
    // Another manifest than that of the defaults has none of them.
    fs::write(host.at("host.yaml"), MANIFEST).unwrap();
    let said = host.says("create ubuntu other --yes --user bob", 1);
    assert!(said.contains("say it: --key"), "{said}");
}

#[test]
fn a_new_vm_is_asked_about_on_a_terminal() {
    let (host, manifest) = with_defaults("");
    let args = ["create", "ubuntu", "desk", "--root", "host"];
    let mut terminal = Terminal::start(env!("CARGO_BIN_EXE_gpuvm").as_ref(), &args, host.dir.path());
    terminal.answer("processors [2]: ", "none\n");
    terminal.answer("processors [2]: ", "4\n");
    terminal.answer("memory [4GiB]: ", "\n");
    terminal.answer("disk [25GiB]: ", "30GiB\n");
    terminal.answer("user of the guest: ", "alice\n");
    terminal.answer("key that lets in", "file:alice.pub\n");
    terminal.answer("apply this? [y/N] ", "y\n");
    let (status, said) = terminal.end();
    assert!(status.success(), "{said}");
    let text = fs::read_to_string(&manifest).unwrap();
    for line in ["cpus: 4", "memory: 4GiB", "disks: [30GiB]", "user: { name: alice, sshKeys: [\"file:alice.pub\"] }"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(host.domain("desk")["name"], "desk");

    // No is no.
    let args = ["create", "ubuntu", "other", "--cpus", "1", "--memory", "1GiB", "--disk", "9GiB", "--root", "host"];
    let more = ["--user", "alice", "--key", "file:alice.pub"];
    let vmctl = host.at("vmctl");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_gpuvm"), &vmctl).unwrap();
    let mut terminal = Terminal::start(&vmctl, &[&args[..], &more].concat(), host.dir.path());
    terminal.answer("apply this? [y/N] ", "n\n");
    let (status, said) = terminal.end();
    assert!(status.code() == Some(2) && said.contains("nothing was changed"), "{said}");
    assert_eq!(fs::read_to_string(&manifest).unwrap(), text);
}

fn run_in(host: &Host, program: &Path, words: &str) -> Output {
    Command::new(program)
        .args(words.split(' ').chain(["--root", "host"]))
        .current_dir(host.dir.path())
        .env("NO_COLOR", "1")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_short_word_answers_under_the_name_vmctl() {
    let host = Host::new();
    let vmctl = host.at("vmctl");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_gpuvm"), &vmctl).unwrap();
    let run = |words: &str| run_in(&host, &vmctl, words);
    for (words, code, said) in [
        ("list", 0, "tiny"),
        ("info tiny", 0, "tiny"),
        ("start tiny", 0, "tiny runs"),
        ("stop tiny", 0, "tiny is off"),
        ("gpu status", 0, "GeForce RTX 4090"),
        ("gpu list", 0, "0000:02:00"),
        ("ip list", 0, "10.0.2.15"),
        ("ip check 10.0.2.15", 1, "IN USE"),
        ("ssh tiny", 1, "tiny"),
        ("delete tiny --yes", 0, "tiny"),
        ("gpu attach theirs 0000:02:00", 1, "was not made by gpuvm"),
        ("gpu detach theirs 0000:02:00", 1, "theirs"),
    ] {
        let output = run(words);
        let came = stdout(&output) + &stderr(&output);
        assert!(output.status.code() == Some(code) && came.contains(said), "{words}: {:?}: {came}", output.status);
    }
    for words in
        ["list", "info theirs", "gpu status", "gpu list", "gpu explain 0000:02:00", "ip list", "ip check 10.0.2.15"]
    {
        let output = run(&format!("{words} --output json"));
        let json: Result<serde_json::Value, _> = serde_json::from_slice(&output.stdout);
        assert!(json.is_ok(), "{words}: {}{}", stdout(&output), stderr(&output));
    }
    let host = Host::new();
    let json = |words: &str, code: i32| {
        let output = run_in(&host, &vmctl, &format!("{words} --output json"));
        let ended: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{words}: {e}: {}{}", stdout(&output), stderr(&output)));
        assert!(output.status.code() == Some(code) && ended["code"] == code, "{words}: {ended}");
        ended
    };
    assert_eq!(json("start tiny", 0)["said"], "tiny runs\ngo back: gpuvm undo 2");
    assert_eq!(json("start tiny", 0)["run"], serde_json::Value::Null);
    assert!(json("start theirs", 1)["said"].as_str().unwrap().contains("was not made by gpuvm"));
    assert!(json("gpu attach theirs 0000:02:00", 1)["said"].as_str().unwrap().contains("was not made by gpuvm"));
    assert_eq!(json("stop tiny", 0)["run"], 3);
    assert_eq!(json("snapshot create tiny good", 0)["run"], 4);
    assert_eq!(json("snapshot restore tiny good --discard --yes", 0)["run"], 5);
    assert_eq!(json("delete tiny --yes", 0)["run"], 6);
}

#[test]
fn the_other_changing_words_answer_programs_too() {
    let host = bare(MANIFEST);
    host.says("apply --yes", 0);
    let json = |words: &str, code: i32| {
        let output = host.run(&format!("{words} --output json"));
        let ended: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{words}: {e}: {}{}", stdout(&output), stderr(&output)));
        assert_eq!(output.status.code(), Some(code), "{words}: {ended}");
        ended
    };
    for (n, words) in [
        (1, "vm start tiny"),
        (2, "vm stop tiny"),
        (3, "vm snapshot create tiny good"),
        (4, "vm snapshot delete tiny good --yes"),
        (5, "vm template save tiny golden --yes"),
        (6, "vm template delete golden --yes"),
        (7, "vm clone tiny other --yes"),
        (8, "undo --yes"),
    ] {
        let ended = json(words, 0);
        assert!(ended["run"] == n + 1 && ended["code"] == 0, "{words}: {ended}");
    }
    assert_eq!(json("apply --yes", 0)["said"], "nothing to do");
    assert_eq!(json("image prune --yes", 0)["said"], "nothing to do");
    assert_eq!(json("adopt libvirt-domain/tiny", 0)["code"], 0);
    assert_eq!(json("vm wait tiny --for stopped", 0)["reached"], true);
    assert_eq!(json("vm wait tiny --for running --timeout 0", 3)["reached"], false);
    fs::write(host.at("host.yaml"), MANIFEST.replace("1GiB", "2GiB")).unwrap();
    assert_eq!(json("apply --yes", 0)["run"], 10);
}
