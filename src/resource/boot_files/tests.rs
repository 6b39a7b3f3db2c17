//! A folder that plays what the scripts of a boot see: a card in sysfs, and the script as its unit runs it.

use std::os::unix::fs::symlink;
use std::process::Command;

use crate::resource::tests::PlayedRoot;

impl PlayedRoot {
    /// A card of the host's below these ports, with its ids and its driver.
    pub(crate) fn card(&self, address: &str, ports: &str, ids: &str, driver: &str) {
        let real = self.at(&format!("sys/devices/{ports}/{address}"));
        std::fs::create_dir_all(&real).unwrap();
        std::fs::create_dir_all(self.at("sys/bus/pci/devices")).unwrap();
        symlink(&real, self.at(&format!("sys/bus/pci/devices/{address}"))).unwrap();
        let (vendor, device) = ids.split_once(':').unwrap();
        self.write(&format!("sys/bus/pci/devices/{address}/vendor"), format!("0x{vendor}\n"));
        self.write(&format!("sys/bus/pci/devices/{address}/device"), format!("0x{device}\n"));
        self.driver(address, Some(driver));
    }

    /// A card has this driver from now on.
    pub(crate) fn driver(&self, address: &str, name: Option<&str>) {
        let link = self.at(&format!("sys/bus/pci/devices/{address}/driver"));
        let _ = std::fs::remove_file(&link);
        if let Some(name) = name {
            let target = self.at(&format!("sys/bus/pci/drivers/{name}"));
            std::fs::create_dir_all(&target).unwrap();
            symlink(target, link).unwrap();
        }
    }

    /// Runs a script with this folder in place of the host's, where `kernel` in `bin` does the kernel's part of a write to
    /// sysfs. Whether it succeeded, and its last line.
    pub(crate) fn run_script(&self, script: &str, words: &[&str]) -> (bool, String) {
        let root = self.path().display().to_string();
        let mut text = script.replace("PATH=/usr/sbin", &format!("PATH={root}/bin:/usr/sbin"));
        for folder in ["sys", "etc", "run", "proc", "usr/lib"] {
            for end in ["/", "\n"] {
                text = text.replace(&format!("=/{folder}{end}"), &format!("={root}/{folder}{end}"));
            }
        }
        let write = "env printf '%s\\n' \"$1\" > \"$2\"";
        let writes = usize::from(text.contains("\nput() {"));
        assert_eq!(text.matches(write).count(), writes, "the one place that writes to sysfs");
        self.program("udevadm", &format!("echo \"$@\" >> {root}/settled\n"));
        self.write("script", text.replace(write, "kernel \"$1\" \"$2\""));
        #[allow(clippy::disallowed_methods)] // a test runs what systemd would run
        let ran = Command::new("/bin/sh").arg(self.at("script")).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).lines().last().unwrap_or_default().to_owned();
        (ran.status.success(), said)
    }
}
