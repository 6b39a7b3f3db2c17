//! Binding of PCI functions through sysfs (Documentation/ABI/testing/sysfs-bus-pci). A write there can sleep for ever in
//! the kernel, so a process that can be left behind makes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{files, program};
use crate::host::{HostError, Program};
use crate::plan::{BindTarget, SlotBinding, VgpuStep, VirtualFunctionsStep};
use crate::resource::{vgpu, virtual_functions};
use crate::types::PciAddress;

/// More than the unit of the script has (`TimeoutStartSec`).
const SCRIPT_LIMIT: Duration = Duration::from_secs(200);

/// Probing a GPU's driver takes seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// Binds every function, and puts back those that it moved where one fails.
pub(super) fn bind(binding: &SlotBinding, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    for (address, planned) in &binding.functions {
        let now = driver(*address);
        let right = now.as_deref() == Some("vfio-pci") && binding.target == BindTarget::Vfio;
        if !right && now != *planned {
            return Err(HostError::Refused(format!(
                "{address} is on {} and was on {} when the plan was made; plan again",
                now.as_deref().unwrap_or("no driver"),
                planned.as_deref().unwrap_or("no driver"),
            )));
        }
    }
    // Before any function leaves its driver: without the module nothing would take it.
    if binding.target == BindTarget::Vfio && !Path::new("/sys/bus/pci/drivers/vfio-pci").exists() {
        program::perform(Program::Modprobe, &["--", "vfio-pci"], LIMIT, progress)?;
    }
    let mut moved = Vec::new();
    for (address, before) in &binding.functions {
        if let Err(error) = one(*address, &binding.target, progress) {
            // Whoever still sleeps in the kernel holds the function: a second one would only sleep beside it.
            if !matches!(error, HostError::Timeout { .. }) {
                moved.push((*address, before.as_deref()));
            }
            for (address, before) in moved.into_iter().rev() {
                if let Err(e) = put_back(address, before, progress) {
                    tracing::error!("{address} could not be put back: {e}");
                }
            }
            return Err(error);
        }
        moved.push((*address, before.as_deref()));
    }
    Ok(())
}

/// Virtual functions: the unit of their script makes them, and says why not; they go at once.
pub(super) fn virtual_functions(step: &VirtualFunctionsStep, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let (at, name) = (device(step.physical).join("sriov_numvfs"), step.name.as_str());
    let number = || fs::read_to_string(&at).ok().and_then(|t| t.trim().parse::<u16>().ok()).unwrap_or_default();
    let done = Path::new(virtual_functions::DONE);
    if step.count == 0 {
        let now = number();
        if now != 0 && now != step.before {
            let (physical, before) = (step.physical, step.before);
            return Err(HostError::Refused(format!(
                "{physical} has {now} virtual functions and had {before} when the plan was made; plan again"
            )));
        }
        // Before they go: cut off in between, what is left says that it is not as it was made.
        files::remove(&done.join(name))?;
        if now != 0 {
            progress(&format!("{}: {now} virtual functions go", step.physical));
            write(&at, "0")?;
        }
        return Ok(());
    }
    let why = done.join("why").join(name);
    files::remove(&why)?;
    let started =
        program::perform(Program::Systemctl, &["start", &virtual_functions::unit(name)], SCRIPT_LIMIT, progress);
    match (started, fs::read_to_string(&why)) {
        (Err(_), Ok(why)) => Err(HostError::Refused(why.trim().to_owned())),
        (Err(e), Err(_)) => Err(e),
        // The unit starts nothing with `gpuvm.off`, and says nothing then.
        (Ok(()), _) if number() != step.count => Err(HostError::Refused(format!(
            "{} has {} virtual functions after its unit has run: systemctl status {}",
            step.physical,
            number(),
            virtual_functions::unit(name)
        ))),
        (Ok(()), _) => Ok(()),
    }
}

/// vGPUs: the unit of their script makes them, and says why not; the same script takes them away.
pub(super) fn vgpus(step: &VgpuStep, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let name = step.name.as_str();
    let done = Path::new(vgpu::DONE);
    let why = done.join("why").join(name);
    files::remove(&why)?;
    let ran = match step.count {
        // As text: the file may be gone already, where nothing of the manifest has vGPUs any more.
        0 => {
            let words = ["-c", vgpu::SCRIPT.1, vgpu::SCRIPT.0, name, "off"];
            program::perform_at(Path::new("/bin/sh"), &words, SCRIPT_LIMIT, progress).map_err(|e| match e {
                HostError::Timeout { limit, .. } => {
                    HostError::Timeout { what: format!("taking the vGPUs of {name} away"), limit }
                }
                _ => HostError::Refused(format!("the vGPUs of {name} did not go: see dmesg")),
            })
        }
        _ => program::perform(Program::Systemctl, &["start", &vgpu::unit(name)], SCRIPT_LIMIT, progress),
    };
    let same = || fs::read(done.join(name)).ok() == fs::read(Path::new(vgpu::KNOWN).join(name)).ok();
    match (ran, fs::read_to_string(&why)) {
        (Err(_), Ok(why)) => Err(HostError::Refused(why.trim().to_owned())),
        (Err(e), Err(_)) => Err(e),
        // The unit starts nothing with `gpuvm.off`, and says nothing then.
        (Ok(()), _) if step.count != 0 && !same() => Err(HostError::Refused(format!(
            "the vGPUs of {name} are not made after their unit has run: systemctl status {}",
            vgpu::unit(name)
        ))),
        (Ok(()), _) => Ok(()),
    }
}

/// What had no driver gets none.
fn put_back(address: PciAddress, before: Option<&str>, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    match before {
        Some("vfio-pci") => one(address, &BindTarget::Vfio, progress),
        Some(_) => one(address, &BindTarget::Host, progress),
        None => {
            let at = device(address);
            write(&at.join("driver_override"), "\n")?;
            if driver(address).is_some() { write(&at.join("driver/unbind"), &address.to_string()) } else { Ok(()) }
        }
    }
}

fn device(address: PciAddress) -> PathBuf {
    PathBuf::from(format!("/sys/bus/pci/devices/{address}"))
}

/// The driver of a function now.
fn driver(address: PciAddress) -> Option<String> {
    let link = fs::read_link(device(address).join("driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

fn one(address: PciAddress, target: &BindTarget, progress: &mut dyn FnMut(&str)) -> Result<(), HostError> {
    let wanted = *target == BindTarget::Vfio;
    let now = driver(address);
    let at = device(address);
    // A line end alone clears the override.
    write(&at.join("driver_override"), if wanted { "vfio-pci" } else { "\n" })?;
    if wanted && now.as_deref() == Some("vfio-pci") {
        return Ok(());
    }
    if let Some(now) = &now {
        progress(&format!("{address}: leaving {now}"));
        write(&at.join("driver/unbind"), &address.to_string()).map_err(|e| match e {
            HostError::Timeout { limit, .. } => {
                HostError::Timeout { what: format!("{now}, asked to let go of {address} (see dmesg),"), limit }
            }
            other => other,
        })?;
    }
    progress(&format!("{address}: looking for its driver"));
    write(Path::new("/sys/bus/pci/drivers_probe"), &address.to_string())?;
    match driver(address) {
        Some(driver) if wanted && driver != "vfio-pci" => {
            Err(HostError::Refused(format!("{address} came up on {driver} in place of vfio-pci")))
        }
        None if wanted => Err(HostError::Refused(format!("vfio-pci did not take {address}; see dmesg"))),
        _ => Ok(()),
    }
}

/// Writes an attribute from a process of its own.
fn write(path: &Path, value: &str) -> Result<(), HostError> {
    let myself = std::env::current_exe().map_err(HostError::file(Path::new("/proc/self/exe")))?;
    let path = path.display().to_string();
    program::perform_at(&myself, &["write-attribute", &path, value], LIMIT, &mut |_| {}).map_err(|e| match e {
        HostError::Timeout { limit, .. } => {
            HostError::Timeout { what: format!("writing `{}` to {path}", value.trim()), limit }
        }
        other => other,
    })
}

/// What the process does: writes below /sys/bus/pci and nowhere else.
pub fn write_attribute(path: &Path, value: &str) -> Result<(), HostError> {
    let climbs = path.components().any(|c| c == std::path::Component::ParentDir);
    if !path.starts_with("/sys/bus/pci") || climbs {
        return Err(HostError::Refused(format!("`{}` is no attribute of a PCI device", path.display())));
    }
    fs::write(path, value).map_err(HostError::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_pci_attributes_is_written() {
        for path in ["/etc/passwd", "/sys/bus/pci/../../../etc/passwd", "/sys/bus/pcix/a"] {
            assert!(write_attribute(Path::new(path), "x").is_err(), "{path}");
        }
    }
}
