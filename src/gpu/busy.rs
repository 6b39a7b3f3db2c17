//! How busy a card is, where its driver tells that without waking it. amdgpu does, in a file; reading it wakes a card that
//! sleeps, so that it is read of one that is awake by the kernel's own word.

use serde::Serialize;

use super::text;
use crate::facts::PciFunction;
use crate::host::Probe;

/// How busy a card is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Busy {
    /// Of its time, in percent.
    Percent(u8),
    /// Why it is not told.
    NotTold(String),
}

/// `gpu_busy_percent` (Documentation/gpu/amdgpu/thermal.rst in the kernel), `power/runtime_status`
/// (Documentation/ABI/testing/sysfs-devices-power).
pub(super) fn busy(probe: &dyn Probe, f: &PciFunction) -> Busy {
    let attribute = |name: &str| text(probe, &format!("{}/{}/{name}", super::DEVICES, f.address));
    let not_told = |why: &str| Busy::NotTold(why.to_owned());
    match f.driver.as_deref() {
        Some("amdgpu") => {
            if attribute("power/runtime_status").as_deref() != Some("active") || !f.is_awake() {
                return not_told("not asked: that would wake it");
            }
            let percent = attribute("gpu_busy_percent").and_then(|t| t.parse().ok()).filter(|p| *p <= 100);
            percent.map_or_else(|| not_told("this card's driver does not tell it"), Busy::Percent)
        }
        Some("nvidia") => not_told("nvidia-smi alone tells it, and is not asked: it wakes a sleeping card"),
        Some(driver) if driver.contains("vfio") => not_told("for VMs: the guest that has it knows"),
        Some(driver) => Busy::NotTold(format!("{driver} does not tell it")),
        None => not_told("no driver"),
    }
}
