//! Who has device nodes open: the links below /proc/PID/fd. Opens no device.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::host::device_users::{DeviceUser, DeviceUsers, control_group, is_watched};

/// The first PID namespace's number (`PROC_PID_INIT_INO` in the kernel's include/linux/proc_ns.h).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// One pass over all processes. A process that ends meanwhile is no error.
pub(super) fn read() -> DeviceUsers {
    let mut users = Vec::new();
    let mut refused = 0u32;
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
        if !nodes.is_empty() {
            let text = |name: &str| fs::read_to_string(at.join(name)).unwrap_or_default();
            users.push(DeviceUser {
                pid,
                name: text("comm").trim().to_owned(),
                cgroup: control_group(&text("cgroup")),
                nodes,
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
        None
    };
    DeviceUsers { users, hidden }
}
