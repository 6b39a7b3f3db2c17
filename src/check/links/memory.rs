//! Whether the memory of all cards of a VM fits what its firmware has room for.

use std::collections::BTreeSet;

use super::{On, device};
use crate::check::{Link, Status};
use crate::gpu::Gpu;
use crate::types::PciSlot;

/// Whether the card's large windows fit the one that the guest's firmware has for them: an eighth of the address space
/// with OVMF since 2022.11 (`PlatformDynamicMmioWindow`), 32 GiB before; 512 GiB on Arm's `virt` machine.
pub(super) fn memory(on: &On<'_>) -> Link {
    let slots: BTreeSet<PciSlot> = on
        .asked
        .vms
        .iter()
        .max_by_key(|(_, s)| on.gpus.iter().filter(|g| s.contains(&g.slot)).count())
        .map_or_else(|| BTreeSet::from([on.gpu.slot]), |(_, s)| s.clone());
    let cards: Vec<&Gpu> = on.gpus.iter().filter(|g| slots.contains(&g.slot)).collect();
    let of = |g: &Gpu| g.bars.iter().filter(|b| b.wide).map(|b| b.size).sum::<u64>();
    let file = format!("{}/resource", device(on.gpu.slot.function(0)));
    if on.gpu.bars.is_empty() {
        return Link::new("memory", Status::Unknown, "the sizes of its windows are not known")
            .seen(file, "absent or empty");
    }
    let all: u64 = cards.iter().map(|g| of(g)).sum();
    let rounded: u64 = cards.iter().map(|g| of(g).next_power_of_two()).sum();
    let largest = on.gpu.bars.iter().map(|b| b.size).max().unwrap_or(0);
    let what = match cards.len() {
        1 => format!("windows of {}", size(all)),
        n => format!("windows of {} on {n} GPUs of one VM", size(all)),
    };
    let link = |status, says: String| {
        Link::new("memory", status, says).seen(file.clone(), format!("largest {}", size(largest)))
    };
    if all == 0 {
        let says = format!("no window that is placed by 64 bits; the largest, of {}, fits any guest", size(largest));
        return link(Status::Ok, says);
    }
    if all <= 16 << 30 {
        return link(Status::Ok, format!("{what} fit the guest's window"));
    }
    let (window, told) = if on.facts.os.arch == "arm64" {
        (512u64 << 30, "the virt machine's window".to_owned())
    } else {
        let recent = |v: &str| {
            v.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok()).take(2).collect::<Vec<_>>()
                >= vec![2022, 11]
        };
        let ovmf = on.facts.package("ovmf").map(|p| recent(&p.version));
        let release = on.facts.os.version.split('.').next().and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
        // What the distribution would bring, where none is installed yet.
        let brings = matches!((on.facts.os.id.as_str(), release), ("debian", 12..) | ("ubuntu", 23..));
        match (ovmf.unwrap_or(brings), on.looked.address_bits) {
            (true, Some(bits)) => {
                (1u64 << bits.min(46).saturating_sub(3), format!("an eighth of {} bits", bits.min(46)))
            }
            (true, None) => return link(Status::Unknown, format!("{what}; the processor's address width is not told")),
            (false, _) => (32u64 << 30, "of OVMF before 2022.11".to_owned()),
        }
    };
    let window_text = format!("the guest's window of {} ({told})", size(window));
    if all > window {
        let fewer = if cards.len() > 1 { "give fewer GPUs to one VM, or turn" } else { "turn" };
        let fail = link(Status::Fail, format!("{what} do not fit {window_text}"))
            .fix(format!("{fewer} Resizable BAR off in the firmware's setup"));
        return if window == 32 << 30 { fail.fix("or use OVMF 2022.11 or later") } else { fail };
    }
    if rounded <= window || cards.len() == 1 && all + (1 << 30) <= window {
        return link(Status::Ok, format!("{what} fit {window_text}"));
    }
    link(Status::Unknown, format!("{what} are tight for {window_text}: it depends on how they are laid out"))
}

/// Rounded up to a tenth, so that what does not fit never looks as if it did.
fn size(bytes: u64) -> String {
    let in_unit = |shift: u32, unit: &str| {
        let tenths = bytes.saturating_mul(10).div_ceil(1 << shift);
        match tenths % 10 {
            0 => format!("{} {unit}", tenths / 10),
            rest => format!("{}.{rest} {unit}", tenths / 10),
        }
    };
    match bytes {
        b if b >= 1 << 40 => in_unit(40, "TiB"),
        b if b >= 1 << 30 => in_unit(30, "GiB"),
        b if b >= 1 << 20 => in_unit(20, "MiB"),
        _ => in_unit(10, "KiB"),
    }
}
