//! Who has device nodes open, as plain data: read from /proc once in a pass, or from a record.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The processes that have nodes of graphics, sound, compute or passthrough devices open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceUsers {
    /// By process number.
    #[serde(default)]
    pub users: Vec<DeviceUser>,
    /// Why there may be others that were not seen ("not root: …").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<String>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceUser {
    /// Process number.
    pub pid: u32,
    /// Its name (`comm` in proc(5)).
    pub name: String,
    /// Its control group (`/system.slice/ollama.service`), which tells service, container and VM.
    #[serde(default)]
    pub cgroup: String,
    /// The nodes that it has open.
    pub nodes: BTreeSet<PathBuf>,
    /// Nodes of MIG instances that a container was given, open or not: they are in its own /dev, and whatever it starts next
    /// opens them. Told of one process of each container.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub given: BTreeSet<PathBuf>,
}

/// Where the nodes of MIG instances are (NVIDIA's MIG user guide, "Device Nodes and Capabilities").
pub(super) const CAPABILITIES: &str = "/dev/nvidia-caps";

/// File systems of the kernel's own: behind any other may be a program or another machine, which answers when it wants to.
const LOCAL: [&str; 9] = ["tmpfs", "ramfs", "rootfs", "overlay", "ext4", "xfs", "btrfs", "zfs", "squashfs"];

/// What a process has for /dev, by its list of mounts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OwnDev {
    /// What its namespace of mounts has of it is the host's: the whole of devtmpfs.
    Host,
    /// A folder of its own, which the kernel itself keeps: looking into it waits for nobody.
    Own,
    /// It cannot be looked into: what answers for it may be anybody's program.
    Hidden,
}

/// Tells by the text of mountinfo (proc_pid_mountinfo(5)). The last mount at a place is the one that is seen.
pub(super) fn own_dev(mountinfo: &str) -> OwnDev {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        Some((before.split(' ').nth(4)?.to_owned(), after.split(' ').next()?.to_owned()))
    };
    let mounts: Vec<(String, String)> = mountinfo.lines().filter_map(mount).collect();
    let at = |place: &str| mounts.iter().rev().find(|(at, _)| at == place).map(|(_, kind)| kind.as_str());
    match (at("/dev"), at(CAPABILITIES)) {
        (_, Some(kind)) if !matches!(kind, "tmpfs" | "devtmpfs") => OwnDev::Hidden,
        (_, Some(_)) | (Some("tmpfs"), _) => OwnDev::Own,
        (Some("devtmpfs"), None) => OwnDev::Host,
        (Some(_), None) => OwnDev::Hidden,
        (None, None) if at("/").is_none_or(|kind| LOCAL.contains(&kind)) => OwnDev::Own,
        (None, None) => OwnDev::Hidden,
    }
}

/// Whether a node is one that a GPU, or a function of its card, can be used through.
pub(super) fn is_watched(node: &Path) -> bool {
    const FOLDERS: [&str; 4] = ["/dev/dri", "/dev/snd", "/dev/vfio", "/dev/nvidia-caps"];
    const NAMES: [&str; 4] = ["/dev/nvidia", "/dev/fb", "/dev/i2c-", "/dev/kfd"];
    let text = node.to_string_lossy();
    FOLDERS.iter().any(|f| node.starts_with(f)) || NAMES.iter().any(|n| text.starts_with(n))
}

/// The control group of the unified hierarchy, else the longest of the old ones (cgroups(7)).
pub(super) fn control_group(text: &str) -> String {
    let path = |l: &str| l.splitn(3, ':').nth(2).unwrap_or_default().to_owned();
    let unified = text.lines().find(|l| l.starts_with("0::")).map(path).filter(|p| p.len() > 1);
    unified.or_else(|| text.lines().map(path).max_by_key(String::len)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_gpus_are_watched_and_others_are_not() {
        for node in
            ["/dev/dri/card1", "/dev/nvidia0", "/dev/nvidiactl", "/dev/vfio/12", "/dev/snd/pcmC1D3p", "/dev/fb0"]
        {
            assert!(is_watched(Path::new(node)), "{node}");
        }
        for node in ["/dev/null", "/dev/pts/0", "/dev/drinks", "/home/a/dev/dri", "socket:[1]"] {
            assert!(!is_watched(Path::new(node)), "{node}");
        }
    }

    #[test]
    fn what_a_process_has_for_dev_is_told_by_its_mounts() {
        let host = "25 30 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw,size=1k\n26 25 0:23 / /dev/pts rw - devpts devpts rw\n";
        assert_eq!(own_dev(host), OwnDev::Host);
        let root = "500 400 0:60 / / rw - overlay overlay rw\n";
        assert_eq!(
            own_dev(&format!("{root}501 500 0:61 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k\n")),
            OwnDev::Own
        );
        // libnvidia-container mounts each node by itself; a later mount covers an earlier one.
        let node = "502 501 0:5 /nvidia-caps/nvidia-cap12 /dev/nvidia-caps/nvidia-cap12 rw - devtmpfs udev rw\n";
        assert_eq!(own_dev(&format!("{host}501 500 0:61 / /dev rw - tmpfs tmpfs rw\n{node}")), OwnDev::Own);
        for other in ["501 500 0:61 / /dev rw - fuse.x x rw\n", "501 500 0:61 / /dev/nvidia-caps rw - nfs4 x rw\n"] {
            assert_eq!(own_dev(&format!("{host}{other}")), OwnDev::Hidden, "{other}");
        }
        assert_eq!(own_dev(root), OwnDev::Own, "nodes in its root itself");
        assert_eq!(own_dev("500 400 0:60 / / rw - fuse.sshfs x rw\n"), OwnDev::Hidden);
    }

    #[test]
    fn the_unified_control_group_wins() {
        assert_eq!(control_group("0::/system.slice/ollama.service\n"), "/system.slice/ollama.service");
        assert_eq!(control_group("12:devices:/docker/abc\n1:name=systemd:/\n0::/\n"), "/docker/abc");
    }
}
