//! QEMU's own log of a VM, as libvirt keeps it.

use std::path::PathBuf;

use crate::types::DomainName;

/// Where the log of a VM is.
pub fn log_path(name: &DomainName) -> PathBuf {
    PathBuf::from(format!("/var/log/libvirt/qemu/{name}.log"))
}

/// What QEMU said last of itself, at most so many lines: not its command line, and not that it was told to end.
pub fn tail(log: &str, most: usize) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    // The command line goes over many lines, each but its last with a backslash at its end.
    let after = lines.iter().rposition(|l| l.trim_end().ends_with('\\')).map_or(0, |at| at + 2);
    // That libvirt runs QEMU as it was told to is no news either.
    let plain = |l: &&&str| {
        let l = l.trim();
        let ended =
            l.ends_with("reason=shutdown") || l.ends_with("reason=destroyed") || l.contains("terminating on signal");
        !l.is_empty() && !ended && !l.contains("char device redirected to") && !l.contains(" is tainted: ")
    };
    let said: Vec<&&str> = lines.get(after..).unwrap_or_default().iter().filter(plain).collect();
    said.iter().skip(said.len().saturating_sub(most)).map(|l| l.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_said_of_itself_is_left_and_its_command_line_is_not() {
        let ran = "2026-01-02 03:04:05.678+0000: starting up libvirt version: 9.0.0\nLC_ALL=C \\\n\
                   /usr/bin/qemu-system-x86_64 \\\n-name guest=desk \\\n-msg timestamp=on\n";
        let log = |more: &str| format!("{ran}an old error\n{ran}{more}");
        assert_eq!(tail(&log(""), 5), Vec::<String>::new());
        let ended = "2026-01-02 03:04:06.1+0000: Domain id=1 is tainted: host-cpu\nchar device redirected to /dev/pts/3 (label charserial0)\n2026-01-02T03:05:06Z qemu-system-x86_64: \
                     terminating on signal 15 from pid 7\n2026-01-02 03:05:06.7+0000: shutting down, reason=destroyed\n";
        assert_eq!(tail(&log(ended), 5), Vec::<String>::new());
        let failed =
            "vfio 0000:02:00.0: group 9 is not viable\n2026-01-02 03:05:06.7+0000: shutting down, reason=failed\n";
        assert_eq!(tail(&log(failed), 5)[0], "vfio 0000:02:00.0: group 9 is not viable");
        assert_eq!(tail(&log(failed), 1), ["2026-01-02 03:05:06.7+0000: shutting down, reason=failed"]);
        assert_eq!(tail("", 5), Vec::<String>::new());
    }
}
