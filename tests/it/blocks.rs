//! Disks in LVM and ZFS, on copies of a recorded host whose tools answer from a table: used, never made or taken away.

use std::fs;

use crate::cases::with_answers;
use crate::host::Host;
use crate::machine::repository;

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
    fn flat_lines(&self, words: &str, code: i32) -> String {
        self.says(words, code).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_disk_in_a_thin_pool_is_made_grown_never_shrunk_and_stays() {
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
    let said = host.flat_lines("vm delete web --yes", 0);
    assert!(said.contains("`/dev/vg0/web-0` stays") && said.contains("lvremove vg0/web-0"), "{said}");
    assert!(host.volume("web-0").is_some(), "it is in storage of a person's");
    let said = host.flat_lines("vm snapshot create web a", 1);
    assert!(said.contains("web"), "{said}");
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
    host.record(|record| {
        let queries = record["queries"].as_array_mut().unwrap();
        let lvs = queries.iter_mut().find(|q| q["program"] == "lvs").unwrap();
        let text = lvs["output"]["stdout"].as_str().unwrap();
        let mut report: serde_json::Value = serde_json::from_str(text).unwrap();
        let rows = report["report"][0]["lv"].as_array_mut().unwrap();
        let mut row = rows[1].clone();
        (row["lv_name"], row["lv_size"]) = ("web-0".into(), (20u64 << 30).to_string().into());
        row["lv_tags"] = "gpuvm.begun,gpuvm.vm:web".into();
        rows.push(row);
        lvs["output"]["stdout"] = report.to_string().into();
    });
    let said = host.flat_lines("plan", 2);
    assert!(said.contains("an earlier run began it"), "{said}");
}
