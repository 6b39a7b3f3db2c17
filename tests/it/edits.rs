//! What people edit of a VM, in its manifest entry; and what of a definition an edit took out and put in.

use std::fs;

use crate::foreign::{Foreign, Has};
use crate::machine::copy_tree;

const ALL: [Has; 3] = [Has::Libvirt, Has::Bridge, Has::Vfio];

/// A host with this VM, and its own manifest.
pub fn host(name: &str, xml: &str) -> Foreign {
    let host = Foreign::new(&ALL);
    host.define(name, xml, name == "spice", name == "windows");
    let (code, said) = host.run(&["init"]);
    assert_eq!(code, 0, "{said}");
    host
}

pub fn adopted(name: &str, xml: &str) -> Foreign {
    let host = host(name, xml);
    let (code, said) = host.run(&["adopt", "--save", "--yes", &format!("libvirt-domain/{name}")]);
    assert_eq!(code, 0, "{name}: {said}\n{}", host.manifest());
    host
}

/// A text as tags, text and white space: what differs between two lists of them differs in the bytes.
fn tokens(xml: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = xml;
    while !rest.is_empty() {
        let end = match rest.strip_prefix('<') {
            Some(_) => rest.find('>').map_or(rest.len(), |n| n + 1),
            None => rest.find('<').unwrap_or(rest.len()),
        };
        all.push(&rest[..end]);
        rest = &rest[end..];
    }
    all
}

/// What an edit took out and put in, in tokens.
pub fn difference(before: &str, after: &str) -> (Vec<String>, Vec<String>) {
    let (old, new) = (tokens(before), tokens(after));
    let (mut out, mut inside) = (Vec::new(), Vec::new());
    for op in similar::capture_diff_slices(similar::Algorithm::Myers, &old, &new) {
        if op.tag() != similar::DiffTag::Equal {
            out.extend(old[op.old_range()].iter().map(|t| (*t).to_owned()));
            inside.extend(new[op.new_range()].iter().map(|t| (*t).to_owned()));
        }
    }
    (out, inside)
}

fn tag(token: &str) -> &str {
    let name = token.trim_start_matches(['<', '/']);
    name.split(|c: char| c.is_whitespace() || "/>".contains(c)).next().unwrap_or_default()
}

/// The tokens that are of none of these elements. Their texts (numbers, white space) do not count.
pub fn beside<'a>(tokens: &'a [String], elements: &[&str]) -> Vec<&'a String> {
    tokens.iter().filter(|t| t.starts_with('<') && !elements.contains(&tag(t))).collect()
}

/// An edit of the manifest's entry, as a person would write it; `None` where the VM has no such field.
pub struct Edit {
    pub what: &'static str,
    pub edit: fn(&str, &str) -> Option<String>,
    /// Elements that may be taken out or changed.
    pub out: &'static [&'static str],
    /// Elements that may be put in.
    pub inside: &'static [&'static str],
}

/// The manifest with a line put behind the VM's own.
fn with_line(manifest: &str, name: &str, line: &str) -> String {
    manifest.replace(&format!("\n  {name}:\n"), &format!("\n  {name}:\n    {line}\n"))
}
/// The VM's entry, to its end.
fn entry<'a>(manifest: &'a str, name: &str) -> &'a str {
    manifest.split(&format!("\n  {name}:\n")).nth(1).unwrap()
}
/// The VM's entry with a line of it replaced; none where it has no such line.
fn replaced(manifest: &str, name: &str, key: &str, with: &str) -> Option<String> {
    let old = entry(manifest, name).lines().find(|l| l.starts_with(&format!("    {key}:")))?;
    Some(manifest.replacen(&format!("{old}\n"), with, 1))
}

pub const EDITS: [Edit; 7] = [
    Edit {
        what: "cpus",
        edit: |m, name| {
            let now = if entry(m, name).contains("cpus: 6\n") { 5 } else { 6 };
            replaced(m, name, "cpus", &format!("    cpus: {now}\n"))
        },
        out: &["vcpu"],
        inside: &["vcpu"],
    },
    Edit {
        what: "memory",
        edit: |m, name| {
            let huge = entry(m, name).contains("pages: 1GiB");
            replaced(
                m,
                name,
                "memory",
                if huge { "    memory: { size: 40GiB, pages: 1GiB }\n" } else { "    memory: 7GiB\n" },
            )
        },
        out: &["memory", "currentMemory"],
        inside: &["memory", "currentMemory"],
    },
    Edit {
        what: "disk added",
        edit: |m, name| match replaced(m, name, "disks", "") {
            Some(_) => {
                let old = entry(m, name).lines().find(|l| l.starts_with("    disks:"))?;
                Some(m.replacen(old, &old.replace(']', ", 5GiB]"), 1))
            }
            None => Some(with_line(m, name, "disks: [5GiB]")),
        },
        out: &[],
        inside: &["disk", "driver", "source", "target"],
    },
    Edit {
        what: "nic moved",
        edit: |m, name| {
            let old = entry(m, name).lines().find(|l| l.starts_with("    network:"))?.to_owned();
            let to = if old.contains("br0") { old.replace("br0", "nat") } else { old.replace("default", "br0") };
            let moved = m.replacen(&old, &to, 1);
            Some(if to.contains("nat") {
                moved.replacen("\nvms:", "\nnetworks: { nat: { libvirt: default } }\nvms:", 1)
            } else {
                moved
            })
        },
        out: &["interface", "source"],
        inside: &["interface", "source"],
    },
    Edit {
        what: "nic removed",
        edit: |m, name| replaced(m, name, "network", ""),
        out: &[
            "interface",
            "mac",
            "source",
            "model",
            "driver",
            "mtu",
            "vlan",
            "tag",
            "virtualport",
            "parameters",
            "filterref",
            "address",
            "link",
            "boot",
            "bandwidth",
            "inbound",
            "outbound",
        ],
        inside: &[],
    },
    Edit {
        what: "gpu added",
        edit: |m, name| match entry(m, name).contains("    gpus:") {
            true => None,
            false => Some(with_line(m, name, "gpus: [gpu3]")),
        },
        out: &[],
        inside: &["controller", "hostdev", "source", "address"],
    },
    Edit {
        what: "gpu removed",
        edit: |m, name| replaced(m, name, "gpus", ""),
        out: &["hostdev", "driver", "source", "address", "rom"],
        inside: &[],
    },
];

/// The record, gpuvm's state and the disks, to begin again from.
pub fn keep(host: &Foreign) {
    fs::copy(host.dir.path().join("host/gpuvm-record.json"), host.dir.path().join("record.kept")).unwrap();
    copy_tree(&host.root("/var/lib/gpuvm"), &host.dir.path().join("state.kept"));
    copy_tree(&host.root("/var/lib/libvirt/images"), &host.dir.path().join("images.kept"));
}
pub fn restore(host: &Foreign) {
    fs::copy(host.dir.path().join("record.kept"), host.dir.path().join("host/gpuvm-record.json")).unwrap();
    for (kept, path) in [("state.kept", "/var/lib/gpuvm"), ("images.kept", "/var/lib/libvirt/images")] {
        fs::remove_dir_all(host.root(path)).unwrap();
        copy_tree(&host.dir.path().join(kept), &host.root(path));
    }
}

/// Whether an edit is refused because people tuned the very thing in a way that one number does not describe.
pub fn set_by_hand(said: &str) -> bool {
    ["was set by hand to", "is split over NUMA cells by hand"].iter().any(|why| said.contains(why))
        && said.contains("first: virsh edit ")
}
