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
    fn the_unified_control_group_wins() {
        assert_eq!(control_group("0::/system.slice/ollama.service\n"), "/system.slice/ollama.service");
        assert_eq!(control_group("12:devices:/docker/abc\n1:name=systemd:/\n0::/\n"), "/docker/abc");
    }
}
