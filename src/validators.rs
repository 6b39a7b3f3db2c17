//! Programs of others that say whether what gpuvm writes is what they read: libvirt's schemas by xmllint(1), cloud-init's and
//! netplan's own checks. For tests alone; where a program is not installed, the test says so and shows nothing.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where libvirt's schemas are, where they are not installed: taken out of the package libvirt0 of another release.
const SCHEMAS: &str = "GPUVM_LIBVIRT_SCHEMAS";

/// Past the capture of the test runner: what was not shown has to be seen.
fn not_shown(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn installed(program: &str) -> bool {
    let there = ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(program).is_file());
    if !there {
        not_shown(&format!("{program} is not installed, so nothing is checked by it"));
    }
    there
}

#[allow(clippy::disallowed_methods)] // tests start programs of others themselves
fn accepts(program: &str, args: &[&str], text: &str) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} refuses it: {said}\n{text}");
}

/// One of libvirt's own schemas: `domain`, `storagepool`, `storagevol`, `network`, `domainsnapshot`.
pub(crate) fn libvirt(schema: &str, xml: &str) {
    let folder = std::env::var_os(SCHEMAS).map_or_else(|| PathBuf::from("/usr/share/libvirt/schemas"), PathBuf::from);
    let schema = folder.join(format!("{schema}.rng"));
    if !schema.is_file() {
        return not_shown(&format!("no {} (it is in libvirt0; {SCHEMAS} names another folder)", schema.display()));
    }
    if installed("xmllint") {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), xml).unwrap();
        let args = ["--noout", "--relaxng", schema.to_str().unwrap(), file.path().to_str().unwrap()];
        accepts("xmllint", &args, xml);
    }
}

/// cloud-init's own schema of `user-data`.
pub(crate) fn cloud_init(user_data: &str) {
    if installed("cloud-init") {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), user_data).unwrap();
        accepts("cloud-init", &["schema", "--config-file", file.path().to_str().unwrap()], user_data);
    }
}

/// Where Subiquity's schema is: `autoinstall-schema.json` of its sources, which no package has.
const SUBIQUITY: &str = "GPUVM_SUBIQUITY_SCHEMA";

/// Subiquity's own schema of what is below `autoinstall`.
pub(crate) fn subiquity(autoinstall: &serde_json::Value) {
    let Some(schema) = std::env::var_os(SUBIQUITY) else {
        return not_shown(&format!("{SUBIQUITY} names no copy of Subiquity's autoinstall-schema.json"));
    };
    let schema = std::fs::read_to_string(&schema).unwrap();
    let validator = jsonschema::draft7::new(&serde_json::from_str(&schema).unwrap()).unwrap();
    let wrong: Vec<String> =
        validator.iter_errors(autoinstall).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(wrong.is_empty(), "Subiquity's schema refuses it: {wrong:?}\n{autoinstall:#}");
}

/// What netplan makes of a `network-config`, which cloud-init hands on to it below `network`.
pub(crate) fn netplan(network_config: &str) {
    if installed("netplan") {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/netplan");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("50-cloud-init.yaml"), format!("{{\"network\": {network_config}}}")).unwrap();
        accepts("netplan", &["generate", "--root-dir", root.path().to_str().unwrap()], network_config);
    }
}

/// A command line of LVM's that changes nothing, for its group is not there. LVM says the same of words that it does not
/// take and of a kernel without device-mapper, so what it says of the words is looked for.
#[allow(clippy::disallowed_methods)] // tests start programs of others themselves
pub(crate) fn lvm(program: &str, args: &[&str]) {
    if !installed(program) {
        return;
    }
    let output = Command::new(program).args(args).env("LVM_SUPPRESS_FD_WARNINGS", "1").output().unwrap();
    let said = (String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr)).to_lowercase();
    let refusals = [
        "supported only",
        "unrecogni",
        "not permitted",
        "invalid argument",
        "incorrect syntax",
        "may not be used",
        "no command",
    ];
    let refused = refusals.iter().find(|words| said.contains(**words));
    assert_eq!(refused, None, "{program} {}: {said}", args.join(" "));
}
