//! Disks in LVM and ZFS, on copies of a recorded host whose tools answer from a table: what they are in is used, never made
//! or taken away; they themselves go with their VM, and none but those that gpuvm made for it.

use std::fs;

use serde_json::Value;

use crate::cases::with_answers;
use crate::host::Host;
use crate::machine::{command, repository, stderr};

const MANIFEST: &str = "version: 1
storage:
  fast: { lvmThin: vg0/vms }
vms:
  web:
    cpus: 1
    memory: 512MiB
    disks: [{ size: 20GiB, pool: fast }]
    start: manual
";

impl Host {
    fn with_lvm(manifest: &str) -> Self {
        let host = Self::bare(manifest);
        with_answers(&repository().join("tests/cases/block-storage/answers.json"), &host.at("host"));
        host
    }
    /// What lvs(8) has of a volume: its size and its tags.
    fn volume(&self, name: &str) -> Option<(u64, String)> {
        let record = self.record(|_| {});
        let queries = record["queries"].as_array().unwrap();
        let lvs = queries.iter().find(|q| q["program"] == "lvs").unwrap()["output"]["stdout"].as_str().unwrap();
        let report: serde_json::Value = serde_json::from_str(lvs).unwrap();
        let row = report["report"][0]["lv"].as_array().unwrap().iter().find(|row| row["lv_name"] == name)?;
        Some((row["lv_size"].as_str()?.parse().unwrap(), row["lv_tags"].as_str()?.to_owned()))
    }
    /// What the volumes of LVM are by lvs(8), changed.
    fn lvs(&self, change: impl Fn(&mut Vec<Value>)) {
        self.record(|record| {
            let queries = record["queries"].as_array_mut().unwrap();
            let lvs = queries.iter_mut().find(|q| q["program"] == "lvs").unwrap();
            let mut report: Value = serde_json::from_str(lvs["output"]["stdout"].as_str().unwrap()).unwrap();
            change(report["report"][0]["lv"].as_array_mut().unwrap());
            lvs["output"]["stdout"] = report.to_string().into();
        });
    }
    /// One of them, changed.
    fn lv(&self, name: &str, what: &str, is: &str) {
        self.lvs(|rows| rows.iter_mut().find(|row| row["lv_name"] == name).unwrap()[what] = is.into());
    }
    /// Whether ZFS has a volume.
    fn has_zvol(&self, name: &str) -> bool {
        let record = self.record(|_| {});
        let zfs = record["queries"].as_array().unwrap().iter().find(|q| q["program"] == "zfs").unwrap();
        zfs["output"]["stdout"].as_str().unwrap().contains(&format!("{name}\tvolume\t"))
    }
    fn ledger(&self) -> String {
        fs::read_to_string(self.at("host/root/var/lib/gpuvm/ledger.json")).unwrap()
    }
    fn flat_lines(&self, words: &str, code: i32) -> String {
        self.says(words, code).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_disk_in_a_thin_pool_is_made_grown_never_shrunk_and_goes_with_its_vm() {
    let host = Host::with_lvm(MANIFEST);
    host.says("apply --yes --reboot", 0);
    assert_eq!(host.volume("web-0"), Some((20 << 30, "gpuvm.vm:web".to_owned())));
    let xml = host.domain("web")["inactiveXml"].as_str().unwrap().to_owned();
    assert!(
        xml.contains("<disk type='block' device='disk'>") && xml.contains("<source dev='/dev/vg0/web-0'/>"),
        "{xml}"
    );
    host.says("plan", 0);

    fs::write(host.at("host.yaml"), MANIFEST.replace("20GiB", "30GiB")).unwrap();
    let said = host.flat_lines("apply --yes", 0);
    assert!(said.contains("size: 20GiB → 30GiB"), "{said}");
    assert_eq!(host.volume("web-0").unwrap().0, 30 << 30);
    fs::write(host.at("host.yaml"), MANIFEST).unwrap();
    let said = host.flat_lines("apply --yes", 1);
    assert!(said.contains("a disk is never shrunk"), "{said}");
    // To another place: the new one is a disk that its VM has not had, and the former one is not touched.
    fs::write(host.at("host.yaml"), MANIFEST.replace("20GiB", "30GiB").replace("lvmThin: vg0/vms", "lvm: vg0"))
        .unwrap();
    let said = host.flat_lines("apply --yes", 1);
    assert!(said.contains("elsewhere in the volume group"), "{said}");

    fs::write(host.at("host.yaml"), MANIFEST.replace("20GiB", "30GiB")).unwrap();
    let said = host.flat_lines("vm snapshot create web a", 1);
    assert!(said.contains("web"), "{said}");
    let kept = Host::copy(host.dir.path());
    kept.says("vm delete web --keep-disks --yes", 0);
    assert!(kept.volume("web-0").is_some() && kept.domain("web").is_null() && kept.ledger().contains("web-0"));
    // What is left of it goes when that is asked after all.
    kept.says("vm delete web --yes", 0);
    assert!(kept.volume("web-0").is_none() && !kept.ledger().contains("web-0"));

    let said = host.flat_lines("vm delete web --yes", 0);
    assert!(said.contains("[data-loss]") && said.contains("by lvremove --yes vg0/web-0"), "{said}");
    assert!(host.volume("web-0").is_none() && !host.at("host/root/dev/vg0/web-0").exists());
    assert!(!host.ledger().contains("web-0"), "{}", host.ledger());
    assert_eq!(host.volume("other-0"), Some((50 << 30, String::new())), "what is not its own is not touched");
}

/// With its VM goes what gpuvm made for it and nobody else has; whatever is not known to be that keeps both.
#[test]
fn a_disk_that_may_be_somebodys_is_not_deleted() {
    let made = Host::with_lvm(MANIFEST);
    made.says("apply --yes --reboot", 0);
    let refused = |change: &dyn Fn(&Host), why: &str| {
        let host = Host::copy(made.dir.path());
        change(&host);
        let said = host.flat_lines("vm delete web --yes", 1);
        assert!(said.contains(why) && said.contains("--keep-disks"), "{why}: {said}");
        assert!(host.at("host/root/dev/vg0/web-0").exists() && !host.domain("web").is_null(), "{why}");
    };
    refused(&|host| host.lv("web-0", "lv_tags", ""), "nothing at it says that gpuvm made it for web");
    refused(&|host| host.lv("web-0", "lv_tags", "gpuvm.vm:other"), "nothing at it says that gpuvm made it for web");
    refused(&|host| host.lv("web-0", "lv_attr", "Vwi-aotz--"), "something on this host has it open");
    refused(&|host| host.lv("web-0", "lv_attr", "owi-a-s---"), "it has snapshots, which would go with it");
    refused(&|host| host.lv("web-0", "lv_attr", "Vwi---tz--"), "not active");
    refused(&|host| host.lvs(|rows| rows.retain(|r| r["lv_name"] != "vms")), "there is no thin pool vg0/vms");
    refused(
        &|host| drop(host.record(|r| r["queries"].as_array_mut().unwrap().retain(|q| q["program"] != "lvs"))),
        "who needs it too",
    );
    let link = fs::read_link(made.at("host/root/dev/vg0/web-0")).unwrap();
    let node = link.file_name().unwrap().to_str().unwrap();
    let mounted = |host: &Host| {
        let path = host.at("host/root/proc/self/mountinfo");
        let text = fs::read_to_string(&path).unwrap();
        let dev = node.replace("dm-", "252:");
        fs::write(&path, text + &format!("99 1 {dev} / /mnt rw - ext4 /dev/mapper/vg0-web--0 rw\n")).unwrap();
    };
    refused(&mounted, &format!("`{node}` is mounted at /mnt"));
    // Another VM has it, by this name or by another one.
    for node in ["/dev/vg0/web-0", &format!("/dev/{node}")] {
        let shared = |host: &Host| {
            host.libvirt(|known| {
                let mut other = known["domains"][0].clone();
                let xml = other["inactiveXml"].as_str().unwrap().replace("/dev/vg0/web-0", node);
                let xml = xml.replace("<name>web</name>", "<name>theirs</name>");
                (other["name"], other["uuid"], other["inactiveXml"]) = ("theirs".into(), "t".into(), xml.into());
                known["domains"].as_array_mut().unwrap().push(other);
            });
        };
        refused(&shared, "theirs");
    }
    // What the ledger does not know as made stays, and is named.
    let adopted = Host::copy(made.dir.path());
    let ledger = adopted.ledger();
    assert!(ledger.contains("\"made\":true"), "{ledger}");
    fs::write(adopted.at("host/root/var/lib/gpuvm/ledger.json"), ledger.replace("\"made\":true", "\"made\":false"))
        .unwrap();
    let said = adopted.flat_lines("vm delete web --yes", 0);
    assert!(said.contains("`/dev/vg0/web-0` stays: nothing says that gpuvm made it"), "{said}");
    assert!(said.contains("lvremove vg0/web-0") && adopted.volume("web-0").is_some(), "{said}");
    let taken = Host::with_lvm(
        &MANIFEST
            .replace("  web:", "  other:")
            .replace("{ size: 20GiB, pool: fast }", "{ size: 50GiB, pool: fast, takeOver: true }"),
    );
    taken.says("apply --yes --reboot", 0);
    let grown = Host::copy(taken.dir.path());
    let said = taken.flat_lines("vm delete other --yes", 0);
    assert!(said.contains("stays: gpuvm did not make it") && taken.volume("other-0").is_some(), "{said}");
    let manifest = fs::read_to_string(grown.at("host.yaml")).unwrap();
    fs::write(grown.at("host.yaml"), manifest.replace("50GiB", "60GiB")).unwrap();
    grown.says("apply --yes", 0);
    let said = grown.flat_lines("vm delete other --yes", 0);
    assert!(said.contains("it was there before gpuvm used it") && grown.volume("other-0").is_some(), "{said}");
}

const TWO: &str = "disks: [{ size: 20GiB, pool: fast }, { size: 5GiB, pool: tank }]";

fn with_two() -> Host {
    let host = Host::with_lvm(
        &MANIFEST
            .replace("disks: [{ size: 20GiB, pool: fast }]", TWO)
            .replace("vms }\n", "vms }\n  tank: { zfs: tank/vms }\n"),
    );
    host.says("apply --yes --reboot", 0);
    host
}

#[test]
fn an_undo_deletes_them_by_a_word_of_its_own() {
    let host = with_two();
    assert!(host.volume("web-0").is_some() && host.has_zvol("tank/vms/web-1"));
    let said = host.flat_lines("undo 1 --plan", 2);
    assert!(said.contains("the disk /dev/vg0/web-0 stays, with its data") && said.contains("--with-data"), "{said}");
    let said = host.flat_lines("undo 1 --with-data --plan", 2);
    for words in ["[data-loss]", "by lvremove --yes vg0/web-0", "by zfs destroy tank/vms/web-1"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let open = Host::copy(host.dir.path());
    open.lv("web-0", "lv_attr", "Vwi-aotz--");
    let said = open.flat_lines("undo 1 --with-data --plan", 1);
    assert!(said.contains("has it open") && said.contains("--skip block-volume/fast/web-0"), "{said}");
    // The VM that has it open is shut down before.
    open.libvirt(|known| {
        let web = &mut known["domains"][0];
        (web["active"], web["liveXml"]) = (true.into(), web["inactiveXml"].clone());
    });
    assert!(open.flat_lines("undo 1 --with-data --plan", 2).contains("lvremove --yes vg0/web-0"));
    host.says("undo 1 --with-data --yes", 0);
    assert!(host.volume("web-0").is_none() && !host.has_zvol("tank/vms/web-1"));
    assert!(host.volume("other-0").is_some());
}

#[test]
fn a_delete_that_was_killed_anywhere_is_told_of_and_goes_on() {
    let base = with_two();
    let words = "vm delete web --yes";
    let undisturbed = Host::copy(base.dir.path());
    undisturbed.says(words, 0);
    let end = |host: &Host| {
        let record = host.record(|_| {});
        (
            record["queries"].clone(),
            record["libvirt"].clone(),
            serde_json::from_str::<Value>(&host.ledger()).unwrap()["owned"].clone(),
        )
    };
    let (mut deaths, mut between) = (0, 0);
    for place in (1..).step_by(2) {
        let host = Host::copy(base.dir.path());
        let asked: Vec<&str> = words.split(' ').chain(["--root", "host"]).collect();
        let died = command(&asked, host.dir.path()).env("GPUVM_DIE_AT", place.to_string()).output().unwrap();
        if died.status.success() {
            break;
        }
        deaths += 1;
        between += usize::from(host.volume("web-0").is_some() != host.has_zvol("tank/vms/web-1"));
        if stderr(&host.run("plan")).contains("was cut off") {
            host.says("apply --resume", 0);
        } else if !host.domain("web").is_null() {
            host.says(words, 0);
        }
        assert!(end(&host) == end(&undisturbed), "killed at {place}: {:?}", end(&host));
    }
    assert!(deaths > 8 && between > 0, "{deaths}, {between}");
}

#[test]
fn a_thin_pool_that_is_nearly_full_is_named_in_each_plan() {
    let host = Host::with_lvm(MANIFEST);
    host.says("apply --yes --reboot", 0);
    let message = "thin pool vg0/vms is nearly full";
    assert!(!host.flat_lines("plan", 0).contains(message));
    host.lv("vms", "data_percent", "90.00");
    for (words, code) in [("plan", 0), ("check -f host.yaml", 0)] {
        let said = host.flat_lines(words, code);
        assert!(said.contains(message) && said.contains("lvextend --size +… vg0/vms"), "{words}: {said}");
    }
}

#[test]
fn what_is_there_and_not_ours_is_left_and_what_is_not_there_is_not_made() {
    let host = Host::with_lvm(&MANIFEST.replace("  web:", "  other:"));
    let said = host.flat_lines("apply --yes --reboot", 1);
    assert!(said.contains("`/dev/vg0/other-0` is there already") && said.contains("takeOver: true"), "{said}");
    assert_eq!(host.volume("other-0"), Some((50 << 30, String::new())));
    for (wrong, says) in
        [("lvmThin: vg0/nope", "there is no thin pool vg0/nope"), ("lvm: vg7", "there is no volume group vg7")]
    {
        fs::write(host.at("host.yaml"), MANIFEST.replace("lvmThin: vg0/vms", wrong)).unwrap();
        let said = host.flat_lines("plan", 1);
        assert!(said.contains(says) && said.contains("never made or formatted"), "{said}");
    }
    // A record that was made for another manifest does not know: nothing is done on a guess.
    fs::write(host.at("host.yaml"), MANIFEST).unwrap();
    host.record(|record| record["queries"].as_array_mut().unwrap().retain(|q| q["program"] != "lvs"));
    let said = host.flat_lines("plan", 1);
    assert!(said.contains("what is in thin pool vg0/vms cannot be told"), "{said}");
}

#[test]
fn a_volume_that_a_killed_run_began_is_gone_on_with() {
    let host = Host::with_lvm(MANIFEST);
    host.lvs(|rows| {
        let mut row = rows[1].clone();
        (row["lv_name"], row["lv_size"]) = ("web-0".into(), (20u64 << 30).to_string().into());
        row["lv_tags"] = "gpuvm.begun,gpuvm.vm:web".into();
        rows.push(row);
    });
    let said = host.flat_lines("plan", 2);
    assert!(said.contains("an earlier run began it"), "{said}");
}

/// A VM that left the manifest stays, and what gpuvm made for it stays known: it is deleted by a later word.
#[test]
fn a_vm_that_left_the_manifest_takes_its_disks_along_when_it_goes() {
    let host = Host::with_lvm(MANIFEST);
    host.says("apply --yes --reboot", 0);
    let without = "version: 1\nstorage:\n  fast: { lvmThin: vg0/vms }\n";
    fs::write(host.at("host.yaml"), without).unwrap();
    for _ in 0..2 {
        let said = host.flat_lines("apply --yes", 0);
        assert!(said.contains("disks stay; to delete it: lvremove vg0/web-0"), "{said}");
        assert!(host.volume("web-0").is_some() && host.ledger().contains("web-0"));
    }
    let said = host.flat_lines("vm delete web --yes", 0);
    assert!(said.contains("by lvremove --yes vg0/web-0"), "{said}");
    assert!(host.volume("web-0").is_none() && !host.ledger().contains("web-0"));
    // One that somebody deleted is forgotten.
    let host = Host::with_lvm(MANIFEST);
    host.says("apply --yes --reboot", 0);
    fs::write(host.at("host.yaml"), without).unwrap();
    host.lvs(|rows| rows.retain(|row| row["lv_name"] != "web-0"));
    host.says("apply --yes", 0);
    assert!(!host.ledger().contains("web-0"));
}
