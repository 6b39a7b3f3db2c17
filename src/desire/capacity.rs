//! What the VMs ask for against what the host has: processors, memory, huge pages. A VM that asks for more than there is
//! fails when it starts, in the middle of an apply or at three in the morning. Warnings only: what a VM is defined with
//! may be meant for another day, and one that was taken over is as its owner made it.

use std::collections::BTreeMap;

use super::Desired;
use crate::facts::HostFacts;
use crate::manifest::{Manifest, StartWhen, VmEntry, VmState};
use crate::plan::{Finding, Severity};
use crate::types::ByteSize;

pub(super) fn check(m: &Manifest, facts: &HostFacts, desired: &mut Desired) {
    let mut find = |code: &str, place: String, message: String, help: String| {
        let severity = Severity::Warning;
        desired.findings.push(Finding { severity, code: code.to_owned(), place, message, help });
    };
    let host = facts.cpu.memory;
    let known = host.bytes() > 0;
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let place = format!("vms.{name}");
        if facts.cpu.count > 0 && vm.cpus.count.0 > facts.cpu.count {
            find(
                "too-many-cpus",
                place.clone(),
                format!("{} CPUs, and the host has {}: they wait for each other", vm.cpus.count.0, facts.cpu.count),
                format!("write at most `cpus: {}`", facts.cpu.count),
            );
        }
        // Memory of a VM with a device is locked from its start on, and huge pages never leave either.
        let locked = !vm.gpus.is_empty() || !vm.devices.is_empty() || vm.memory.pages.is_some();
        if known && vm.memory.size >= host {
            find(
                "too-much-memory",
                place,
                match locked {
                    true => format!("{} of memory, and the host has {}: it cannot start", vm.memory.size, round(host)),
                    false => format!("{} of memory, and the host has {}", vm.memory.size, round(host)),
                },
                "give it less, and leave the host some".to_owned(),
            );
        }
    }
    let running = || m.vms.iter().filter(|(_, vm)| runs(vm));
    let all = running().fold(0u64, |sum, (_, vm)| sum.saturating_add(vm.memory.size.bytes()));
    if known && all >= host.bytes() && running().all(|(_, vm)| vm.memory.size < host) {
        let names: Vec<String> = running().map(|(name, _)| format!("`{name}`")).collect();
        find(
            "too-much-memory",
            "vms".to_owned(),
            format!(
                "{} run at the same time with {} of memory together, and the host has {}",
                names.join(", "),
                round(ByteSize::from_bytes(all)),
                round(host)
            ),
            "give them less, or write `start: manual` for one of them".to_owned(),
        );
    }
    huge_pages(m, facts, &mut find);
}

/// Whether the manifest makes a VM run.
fn runs(vm: &VmEntry) -> bool {
    !vm.absent
        && vm.state != Some(VmState::Stopped)
        && (vm.start == StartWhen::Boot || vm.state == Some(VmState::Running))
}

/// Rounded down to MiB: what the kernel keeps for itself makes an odd number of KiB.
fn round(size: ByteSize) -> ByteSize {
    ByteSize::from_mib(size.mib())
}

fn huge_pages(m: &Manifest, facts: &HostFacts, find: &mut impl FnMut(&str, String, String, String)) {
    // Those that the manifest itself asks the kernel for are there after the boot.
    let asked = m.kernel_args.iter().any(|a| a.as_str().starts_with("hugepages="));
    if facts.cpu.huge_pages.is_empty() || asked {
        return;
    }
    let mut wanted: BTreeMap<ByteSize, (u64, Vec<String>)> = BTreeMap::new();
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let Some(pages) = vm.memory.pages else { continue };
        let entry = wanted.entry(pages).or_default();
        let need = vm.memory.size.bytes() / pages.bytes().max(1);
        // All that run at the same time; of the others, the largest one.
        entry.0 = if runs(vm) { entry.0.saturating_add(need) } else { entry.0.max(need) };
        entry.1.push(format!("`{name}`"));
    }
    for (size, (need, names)) in wanted {
        let has = facts.cpu.huge_pages.iter().find(|p| p.size == size).map(|p| p.total);
        if has.is_some_and(|has| has >= need) {
            continue;
        }
        let short = if size == ByteSize::from_gib(1) { "1G" } else { "2M" };
        let (message, help) = match has {
            Some(has) => (
                format!("{} needs {need} pages of {size}, and the host keeps {has}", names.join(", ")),
                format!(
                    "keep them from the boot on: kernelArgs: [default_hugepagesz={short}, hugepagesz={short}, \
                     hugepages={need}]"
                ),
            ),
            None => (
                format!("{} asks for pages of {size}, which this host does not have", names.join(", ")),
                "take `pages` out, or write a size that it has".to_owned(),
            ),
        };
        find("huge-pages", "vms".to_owned(), message, help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::HugePages;

    /// The findings for a host of 4 CPUs and 16 GiB, of which 512 pages of 2 MiB are kept.
    fn findings(vms: &str) -> Vec<String> {
        let mut facts = crate::resource::tests::facts();
        facts.cpu.count = 4;
        facts.cpu.memory = ByteSize::from_bytes((16 << 30) - 4096 * 3);
        facts.cpu.huge_pages = vec![HugePages { size: ByteSize::from_mib(2), total: 512 }];
        found(vms, &facts)
    }
    fn found(vms: &str, facts: &HostFacts) -> Vec<String> {
        let gpus = "gpus: { w: { match: '0000:01:00', use: vfio } }\n";
        let manifest = crate::manifest::parse("host.yaml", &format!("version: 1\n{gpus}{vms}")).unwrap();
        let mut desired = Desired::default();
        check(&manifest, facts, &mut desired);
        desired.findings.iter().map(|f| format!("{:?} {} {}: {}", f.severity, f.code, f.place, f.message)).collect()
    }

    #[test]
    fn more_than_the_host_has_is_found_before_a_start_fails() {
        assert_eq!(findings("vms: { a: { cpus: 4, memory: 8GiB, start: boot } }"), [""; 0]);
        let one = |vms: &str| findings(vms).join("\n");
        assert!(one("vms: { a: { cpus: 5, memory: 8GiB } }").starts_with("Warning too-many-cpus vms.a: 5 CPUs"));
        let said = one("vms: { a: { cpus: 1, memory: 16GiB, gpus: [w] } }");
        assert!(
            said.starts_with(
                "Warning too-much-memory vms.a: 16GiB of memory, and the host has 16383MiB: it cannot start"
            ),
            "{said}"
        );
        assert!(one("vms: { a: { cpus: 1, memory: 16GiB } }").starts_with("Warning too-much-memory vms.a"));
        let two = "vms:\n  a: { cpus: 1, memory: 8GiB, start: boot }\n  b: { cpus: 1, memory: 8GiB, start: manual }\n";
        assert_eq!(findings(two), [""; 0]);
        let said = findings(&two.replace("manual", "boot"));
        assert!(said.len() == 1 && said[0].starts_with("Warning too-much-memory vms: `a`, `b` run"), "{said:?}");
        assert_eq!(findings(&two.replace("manual", "boot").replace("a: {", "a: { absent: true,")), [""; 0]);
    }

    #[test]
    fn huge_pages_that_are_not_kept_are_missed() {
        let vm = |size: &str, pages: &str| {
            format!("vms: {{ a: {{ cpus: 1, memory: {{ size: {size}, pages: {pages} }}, start: boot }} }}\n")
        };
        assert_eq!(findings(&vm("1GiB", "2MiB")), [""; 0]);
        let said = findings(&vm("2GiB", "2MiB"));
        assert_eq!(said, ["Warning huge-pages vms: `a` needs 1024 pages of 2MiB, and the host keeps 512"]);
        assert!(findings(&vm("1GiB", "1GiB"))[0].contains("which this host does not have"));
        assert_eq!(findings(&(vm("2GiB", "2MiB") + "kernelArgs: [hugepages=1024]\n")), [""; 0]);
    }

    #[test]
    fn of_a_host_that_told_nothing_nothing_is_said() {
        let facts = crate::resource::tests::facts();
        let vm = "vms: { a: { cpus: 999, memory: { size: 900GiB, pages: 1GiB }, gpus: [w] } }\n";
        assert_eq!(found(vm, &facts), [""; 0]);
    }
}
