//! What the VMs ask for against what the host has: processors, memory, huge pages. A VM that asks for more than there is
//! fails when it starts, in the middle of an apply or at three in the morning. What cannot start and is to run refuses the
//! plan before anything is changed: memory that is locked, huge pages, processors that are not there. The rest is a
//! warning: what a person starts may be meant for another day, and what is not locked may be swapped. All is compared
//! with what the host has, not with what is free, so that a VM that runs already is not counted twice.

use std::collections::BTreeMap;

use super::Desired;
use super::huge_pages::HugePagesThen;
use crate::facts::HostFacts;
use crate::manifest::{CpuSet, GivenDevice, Manifest, StartWhen, VmEntry, VmState};
use crate::plan::{Finding, Severity};
use crate::types::{ByteSize, cpu_list_text};

/// The codes of what keeps a VM from starting. Where a plan neither makes nor starts such a VM (it runs already, or was
/// taken over as it is), they are warnings there.
pub const ADMISSION: [&str; 3] = ["too-much-memory", "huge-pages", super::addresses::GATEWAY];

pub(super) fn check(m: &Manifest, facts: &HostFacts, desired: &mut Desired) {
    let mut find = |severity, code: &str, place: String, message: String, help: String| {
        desired.findings.push(Finding { severity, code: code.to_owned(), place, message, help });
    };
    let host = facts.cpu.memory;
    let known = host.bytes() > 0;
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let place = format!("vms.{name}");
        if facts.cpu.count > 0 && vm.cpus.count.0 > facts.cpu.count {
            find(
                Severity::Warning,
                "too-many-cpus",
                place.clone(),
                format!("{} CPUs, and the host has {}: they wait for each other", vm.cpus.count.0, facts.cpu.count),
                format!("write at most `cpus: {}`", facts.cpu.count),
            );
        }
        // Memory of a VM with a device is locked from its start on, and huge pages never leave either.
        let locked = locked(vm) || vm.memory.pages.is_some();
        if known && vm.memory.size >= host {
            find(
                if locked && runs(vm) { Severity::Error } else { Severity::Warning },
                "too-much-memory",
                place,
                match locked {
                    true => format!(
                        "{} of memory, locked while it runs, and the host has {}: it cannot start",
                        vm.memory.size,
                        round(host)
                    ),
                    false => format!("{} of memory, and the host has {}", vm.memory.size, round(host)),
                },
                match runs(vm) {
                    true => "give it less, and leave the host some; or write `start: manual`".to_owned(),
                    false => "give it less, and leave the host some".to_owned(),
                },
            );
        }
    }
    let running = || m.vms.iter().filter(|(_, vm)| runs(vm));
    let all = running().fold(0u64, |sum, (_, vm)| sum.saturating_add(vm.memory.size.bytes()));
    let pages = HugePagesThen::of(m, facts);
    let kept = pages.bytes();
    let left = host.bytes().saturating_sub(kept);
    let never_leaves = || running().filter(|(_, vm)| locked(vm) && vm.memory.pages.is_none());
    let pinned = never_leaves().fold(0u64, |sum, (_, vm)| sum.saturating_add(vm.memory.size.bytes()));
    let each_fits = running().all(|(_, vm)| vm.memory.size < host);
    if known && pinned >= left && pinned > 0 && each_fits {
        let names: Vec<String> = never_leaves().map(|(name, _)| format!("`{name}`")).collect();
        let beside = match kept {
            0 => String::new(),
            kept => format!(" beside its huge pages of {}", round(ByteSize::from_bytes(kept))),
        };
        find(
            Severity::Error,
            "too-much-memory",
            "vms".to_owned(),
            format!(
                "{} run at the same time with {} of memory that is locked, and the host has {}{beside}: not all of them \
                 can start",
                names.join(", "),
                round(ByteSize::from_bytes(pinned)),
                round(ByteSize::from_bytes(left))
            ),
            "give them less, or write `start: manual` for one of them".to_owned(),
        );
    } else if known && all >= host.bytes() && each_fits {
        let names: Vec<String> = running().map(|(name, _)| format!("`{name}`")).collect();
        find(
            Severity::Warning,
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
    huge_pages(m, facts, &pages, &mut find);
    near(m, facts, &mut find);
    pins(m, facts, desired);
}

/// What is locked in memory on one NUMA node by VMs that run at the same time, beside their GPUs.
fn near(m: &Manifest, facts: &HostFacts, find: &mut impl FnMut(Severity, &str, String, String, String)) {
    for node in &facts.cpu.nodes {
        let on_node = |gpu: &GivenDevice| {
            let slot = m.gpus.get(&gpu.name).and_then(|e| super::slot_of(e, true, facts));
            slot.is_some_and(|slot| facts.slot(slot).any(|f| f.numa_node == Some(node.number)))
        };
        let there = || m.vms.iter().filter(|(_, vm)| runs(vm) && vm.gpus.first().is_some_and(on_node));
        let all = there().fold(0u64, |sum, (_, vm)| sum.saturating_add(vm.memory.size.bytes()));
        if node.memory.bytes() > 0 && all >= node.memory.bytes() && all < facts.cpu.memory.bytes() {
            let names: Vec<String> = there().map(|(name, _)| format!("`{name}`")).collect();
            find(
                Severity::Warning,
                "numa",
                "vms".to_owned(),
                format!(
                    "{} want {} on NUMA node {}, beside their GPUs, and it has {}: some of it is taken from another, \
                     which is slower",
                    names.join(", "),
                    round(ByteSize::from_bytes(all)),
                    node.number,
                    round(node.memory)
                ),
                "give them less, or put a card into a slot of another node".to_owned(),
            );
        }
    }
}

/// Pins on processors that are not there: QEMU does not start. Pins of two VMs on the same ones: they wait for each other.
fn pins(m: &Manifest, facts: &HostFacts, desired: &mut Desired) {
    let kept = || m.vms.iter().filter(|(_, vm)| !vm.absent);
    for (name, vm) in kept() {
        for (field, set) in [("pin", &vm.cpus.pin), ("emulator", &vm.cpus.emulator)] {
            let over = set.iter().flat_map(|s| s.numbers()).find(|n| facts.cpu.count > 0 && *n >= facts.cpu.count);
            let Some(over) = over else { continue };
            desired.findings.push(Finding {
                severity: Severity::Error,
                code: "no-cpu".to_owned(),
                place: format!("vms.{name}.cpus.{field}"),
                message: format!("there is no processor {over}: the host has {}, from 0", facts.cpu.count),
                help: format!("write numbers up to {}", facts.cpu.count - 1),
            });
        }
    }
    let pinned = |vm: &VmEntry| vm.cpus.pin.as_ref().map(CpuSet::numbers).filter(|_| runs(vm));
    let all: Vec<_> = kept().filter_map(|(name, vm)| Some((name, pinned(vm)?))).collect();
    for (n, (name, cpus)) in all.iter().enumerate() {
        let other = all.iter().take(n).find(|(_, other)| !other.is_disjoint(cpus));
        let Some((other, on)) = other else { continue };
        let both = cpus.intersection(on).copied().collect();
        desired.findings.push(Finding {
            severity: Severity::Warning,
            code: "same-cpus".to_owned(),
            place: format!("vms.{name}.cpus.pin"),
            message: format!("`{other}` runs at the same time and is pinned to CPUs {} too", cpu_list_text(&both)),
            help: "pin each VM to processors of its own".to_owned(),
        });
    }
}

/// Whether its memory stays in place while it runs, since devices reach into it.
fn locked(vm: &VmEntry) -> bool {
    !vm.gpus.is_empty() || !vm.devices.is_empty()
}

/// Whether the manifest makes a VM run.
pub fn runs(vm: &VmEntry) -> bool {
    !vm.absent
        && vm.state != Some(VmState::Stopped)
        && (vm.start == StartWhen::Boot || vm.state == Some(VmState::Running))
}

/// Rounded down to MiB: what the kernel keeps for itself makes an odd number of KiB.
fn round(size: ByteSize) -> ByteSize {
    ByteSize::from_mib(size.mib())
}

fn huge_pages(
    m: &Manifest,
    facts: &HostFacts,
    pages: &HugePagesThen,
    find: &mut impl FnMut(Severity, &str, String, String, String),
) {
    if facts.cpu.huge_pages.is_empty() || pages.unknown {
        return;
    }
    // A file of the manifest's may bring them in this very apply (`vm.nr_hugepages` in sysctl.d).
    let by_file = m.files.values().any(|f| f.content.as_deref().is_none_or(|text| text.contains("hugepages")));
    // Of each size: pages of those that run at the same time, of all that are to start one day, and their names.
    let mut wanted: BTreeMap<ByteSize, (u64, u64, Vec<String>)> = BTreeMap::new();
    for (name, vm) in m.vms.iter().filter(|(_, vm)| !vm.absent) {
        let Some(pages) = vm.memory.pages else { continue };
        let entry = wanted.entry(pages).or_default();
        let need = vm.memory.size.bytes() / pages.bytes().max(1);
        // All that run at the same time; of the others, the largest one.
        entry.1 = if runs(vm) { entry.1.saturating_add(need) } else { entry.1.max(need) };
        if runs(vm) {
            entry.0 = entry.0.saturating_add(need);
        }
        entry.2.push(format!("`{name}`"));
    }
    for (size, (at_once, need, names)) in wanted {
        let more = facts.cpu.huge_pages.iter().find(|p| p.size == size).map_or(0, |p| p.more);
        let has = pages.total.get(&size).map(|has| has.saturating_add(more));
        if has.is_some_and(|has| has >= need) {
            continue;
        }
        let short = if size == ByteSize::from_gib(1) { "1G" } else { "2M" };
        let (message, help) = match has {
            Some(has) => (
                format!("{} needs {need} pages of {size}, and the host keeps {has}{}", names.join(", "), pages.told),
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
        let cannot = at_once > has.unwrap_or(0) && !by_file;
        let severity = if cannot { Severity::Error } else { Severity::Warning };
        let message = if cannot { format!("{message}: what is to run cannot start") } else { message };
        find(severity, "huge-pages", "vms".to_owned(), message, help);
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
        facts.cpu.huge_pages = vec![HugePages { size: ByteSize::from_mib(2), total: 512, more: 0 }];
        found(vms, &facts)
    }
    fn found(vms: &str, facts: &HostFacts) -> Vec<String> {
        let gpus = "gpus: { w: { match: '0000:01:00', use: vfio }, v: { match: '0000:02:00', use: vfio } }\n";
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
        for (start, severity) in [("manual", "Warning"), ("boot", "Error")] {
            let said = one(&format!("vms: {{ a: {{ cpus: 1, memory: 16GiB, gpus: [w], start: {start} }} }}"));
            let locked = "too-much-memory vms.a: 16GiB of memory, locked while it runs, and the host has 16383MiB: it cannot start";
            assert_eq!(said, format!("{severity} {locked}"));
        }
        let unlocked = one("vms: { a: { cpus: 1, memory: 16GiB, start: boot } }");
        assert!(unlocked.starts_with("Warning too-much-memory vms.a"), "swap may be there: {unlocked}");
        assert!(one("vms: { a: { cpus: 1, memory: 16GiB } }").starts_with("Warning too-much-memory vms.a"));
        let two = "vms:\n  a: { cpus: 1, memory: 8GiB, start: boot }\n  b: { cpus: 1, memory: 8GiB, start: manual }\n";
        assert_eq!(findings(two), [""; 0]);
        let said = findings(&two.replace("manual", "boot"));
        assert!(said.len() == 1 && said[0].starts_with("Warning too-much-memory vms: `a`, `b` run"), "{said:?}");
        assert_eq!(findings(&two.replace("manual", "boot").replace("a: {", "a: { absent: true,")), [""; 0]);
        // Locked, they do not both start; the GiB of huge pages is not there for them either.
        let gpus = two.replacen("cpus: 1", "cpus: 1, gpus: [w]", 1).replace("cpus: 1, mem", "cpus: 1, gpus: [v], mem");
        assert_eq!(findings(&gpus), [""; 0]);
        let said = findings(&gpus.replace("manual", "boot").replace("8GiB", "7680MiB")).join("\n");
        assert!(said.starts_with("Error too-much-memory vms: `a`, `b` run at the same time with 15GiB"), "{said}");
        assert!(said.contains("the host has 15359MiB beside its huge pages of 1GiB"), "{said}");
    }

    #[test]
    fn huge_pages_that_are_not_kept_are_missed() {
        let vm = |size: &str, pages: &str| {
            format!("vms: {{ a: {{ cpus: 1, memory: {{ size: {size}, pages: {pages} }}, start: boot }} }}\n")
        };
        assert_eq!(findings(&vm("1GiB", "2MiB")), [""; 0]);
        let said = findings(&vm("2GiB", "2MiB"));
        let lacks = "huge-pages vms: `a` needs 1024 pages of 2MiB, and the host keeps 512";
        assert_eq!(said, [format!("Error {lacks}: what is to run cannot start")]);
        assert_eq!(findings(&vm("2GiB", "2MiB").replace("boot", "manual")), [format!("Warning {lacks}")]);
        let file = "files: { /etc/sysctl.d/90-pages.conf: { content: \"vm.nr_hugepages = 1024\" } }\n";
        assert_eq!(findings(&(vm("2GiB", "2MiB") + file)), [format!("Warning {lacks}")], "this apply brings them");
        assert_eq!(findings(&(vm("2GiB", "2MiB") + &file.replace("hugepages", "swappiness"))).len(), 1);
        assert!(findings(&vm("1GiB", "1GiB"))[0].contains("which this host does not have"));
        assert_eq!(findings(&(vm("2GiB", "2MiB") + "kernelArgs: [hugepages=1024]\n")), [""; 0]);
        // Too few of them, or of another size, are not enough by being asked for.
        let said = findings(&(vm("2GiB", "2MiB") + "kernelArgs: [hugepages=1000]\n"));
        let few = "huge-pages vms: `a` needs 1024 pages of 2MiB, and the host keeps 1000 with these `kernelArgs`";
        assert_eq!(said, [format!("Error {few}: what is to run cannot start")]);
        let said = findings(&(vm("1GiB", "2MiB") + "kernelArgs: [hugepages=1, hugepagesz=1G]\n"));
        assert!(said[0].contains("needs 512 pages of 2MiB, and the host keeps 1 with"), "{said:?}");
    }

    #[test]
    fn pins_are_on_processors_that_are_there_and_on_each_once() {
        let vm = |pin: &str| format!("{{ cpus: {{ count: 2, pin: \"{pin}\" }}, memory: 1GiB, start: boot }}");
        assert_eq!(findings(&format!("vms: {{ a: {}, b: {} }}", vm("0-1"), vm("2,3"))), [""; 0]);
        let said = findings(&format!("vms: {{ a: {} }}", vm("3-4")));
        assert_eq!(said, ["Error no-cpu vms.a.cpus.pin: there is no processor 4: the host has 4, from 0"]);
        let said = findings(&format!("vms: {{ a: {}, b: {} }}", vm("0-2"), vm("1-3")));
        assert_eq!(said, ["Warning same-cpus vms.b.cpus.pin: `a` runs at the same time and is pinned to CPUs 1-2 too"]);
    }

    #[test]
    fn what_does_not_fit_on_the_node_of_its_gpu_is_said() {
        let mut facts = crate::resource::tests::facts();
        facts.cpu.memory = ByteSize::from_gib(64);
        let node = |number| crate::facts::NumaNode {
            number,
            cpus: (number * 8..number * 8 + 8).collect(),
            memory: ByteSize::from_gib(32),
        };
        facts.cpu.nodes = vec![node(0), node(1)];
        let gpu = crate::facts::PciFunction { numa_node: Some(1), ..crate::facts::tests::display() };
        facts.pci.insert(gpu.address, gpu);
        let vm = |memory: &str| format!("vms: {{ a: {{ cpus: 2, memory: {memory}, gpus: [w], start: boot }} }}");
        assert_eq!(found(&vm("16GiB"), &facts), [""; 0]);
        let said = found(&vm("40GiB"), &facts);
        assert!(said.len() == 1 && said[0].contains("`a` want 40GiB on NUMA node 1"), "{said:?}");
    }

    #[test]
    fn of_a_host_that_told_nothing_nothing_is_said() {
        let facts = crate::resource::tests::facts();
        let vm = "vms: { a: { cpus: 999, memory: { size: 900GiB, pages: 1GiB }, gpus: [w] } }\n";
        assert_eq!(found(vm, &facts), [""; 0]);
    }
}
