//! Who has device nodes open: the links below /proc/PID/fd; and which containers have nodes of MIG instances in a /dev of their
//! own. Opens no device.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::device_users::{CAPABILITIES, DeviceUser, DeviceUsers, OwnDev, control_group, is_watched, own_dev};

/// The first PID namespace's number (`PROC_PID_INIT_INO` in the kernel's include/linux/proc_ns.h).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// One pass over all processes. A process that ends meanwhile is no error.
pub(super) fn read() -> DeviceUsers {
    let mut users = Vec::new();
    let mut refused = 0u32;
    let mut untold = BTreeSet::new();
    // Each namespace of mounts is looked into once; in the host's, nodes are there for everybody.
    let mut namespaces: BTreeSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    namespaces.extend(fs::read_link("/proc/1/ns/mnt"));
    let Ok(processes) = fs::read_dir("/proc") else {
        return DeviceUsers { users, hidden: Some("/proc could not be read".to_owned()) };
    };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let at = entry.path();
        let files = match fs::read_dir(at.join("fd")) {
            Ok(files) => files,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                refused += 1;
                continue;
            }
            Err(_) => continue,
        };
        let nodes: BTreeSet<PathBuf> =
            files.flatten().filter_map(|f| fs::read_link(f.path()).ok()).filter(|t| is_watched(t)).collect();
        let mut given = BTreeSet::new();
        if fs::read_link(at.join("ns/mnt")).is_ok_and(|namespace| namespaces.insert(namespace)) {
            match given_to(&at) {
                Some(all) => given = all,
                None => _ = untold.insert(pid),
            }
        }
        if !nodes.is_empty() || !given.is_empty() {
            let text = |name: &str| fs::read_to_string(at.join(name)).unwrap_or_default();
            users.push(DeviceUser {
                pid,
                name: text("comm").trim().to_owned(),
                cgroup: control_group(&text("cgroup")),
                nodes,
                given,
            });
        }
    }
    users.sort_by_key(|u| u.pid);
    let root = nix::unistd::geteuid().is_root();
    let namespace = fs::read_link("/proc/self/ns/pid").map(|n| n.display().to_string()).unwrap_or_default();
    let hidden = if refused > 0 || !root {
        Some(format!("the open files of other users' processes may not be seen (not root; {refused} refused)"))
    } else if namespace != FIRST_NAMESPACE {
        Some("gpuvm runs in a container and sees its processes only".to_owned())
    } else {
        untold.first().map(|pid| format!("what process {pid} has in its own {CAPABILITIES} could not be looked at"))
    };
    DeviceUsers { users, hidden }
}

/// The nodes of MIG instances in the /dev of a process that has one of its own; `None` where that cannot be told. A process
/// that ends meanwhile has none.
fn given_to(process: &Path) -> Option<BTreeSet<PathBuf>> {
    let Ok(mounts) = fs::read_to_string(process.join("mountinfo")) else { return Some(BTreeSet::new()) };
    match own_dev(&mounts) {
        OwnDev::Host => return Some(BTreeSet::new()),
        // On a host without a node of an instance there is none to give.
        OwnDev::Hidden => return (!Path::new(CAPABILITIES).exists()).then(BTreeSet::new),
        OwnDev::Own => {}
    }
    let folder = process.join("root").join(CAPABILITIES.trim_start_matches('/'));
    // A link in its place would lead out of the container.
    if !fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) {
        return Some(BTreeSet::new());
    }
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    Some(names.map(|name| Path::new(CAPABILITIES).join(name)).collect())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    /// A namespace of mounts with a /dev of its own plays the container: a shell that has nothing open.
    #[test]
    fn a_container_that_only_has_the_node_of_an_instance_is_seen() {
        let script = "mount -t tmpfs none /dev && mkdir /dev/nvidia-caps && : > /dev/nvidia-caps/nvidia-cap12 && \
                      echo there && read -r end";
        #[allow(clippy::disallowed_methods)] // a test starts what an engine would start
        let started = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = started else { return println!("SKIPPED: no unshare(1)") };
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let users = read().users;
        drop(child.stdin.take());
        child.wait().unwrap();
        if line != "there\n" {
            return println!("SKIPPED: a namespace of mounts may not be made here (not root)");
        }
        let of = users.iter().find(|u| u.pid == child.id()).unwrap();
        assert!(of.nodes.is_empty(), "{of:?}");
        assert_eq!(of.given, BTreeSet::from([PathBuf::from("/dev/nvidia-caps/nvidia-cap12")]));
    }
}
