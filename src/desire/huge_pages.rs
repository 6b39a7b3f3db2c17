//! The huge pages that a host keeps once its manifest is in force: those that it keeps now, and those that the manifest asks
//! the kernel for, by the rules of the kernel's command line (Documentation/admin-guide/kernel-parameters.txt, and
//! mm/hugetlb.c): a number is of the size that stands before it, else of the default one.

use std::collections::BTreeMap;

use crate::facts::HostFacts;
use crate::manifest::Manifest;
use crate::resource::kernel_arg::set_by_others;
use crate::types::ByteSize;

/// The size that a number is of where no argument names one, on x86 and on 64-bit ARM with pages of 4 KiB.
const USUAL: ByteSize = ByteSize::from_mib(2);

/// What there will be.
#[derive(Debug, Default)]
pub(super) struct HugePagesThen {
    /// How many of each size that the host has.
    pub total: BTreeMap<ByteSize, u64>,
    /// Whether an argument could not be read: then nothing is known of them.
    pub unknown: bool,
    /// That arguments of the manifest's were counted, for the reader.
    pub told: &'static str,
}

impl HugePagesThen {
    pub(super) fn of(m: &Manifest, facts: &HostFacts) -> Self {
        let mut then =
            Self { total: facts.cpu.huge_pages.iter().map(|p| (p.size, p.total)).collect(), ..Self::default() };
        // They are written in this order, after those of others.
        let ours: Vec<&str> = m.kernel_args.iter().map(|a| a.as_str()).collect();
        if !ours.iter().any(|a| a.starts_with("hugepages=")) {
            return then;
        }
        // What the running kernel was asked for, it has kept as far as it could.
        let asks = |a: &&str| a.starts_with("hugepages") || a.starts_with("default_hugepagesz");
        if ours.iter().filter(|a| asks(a)).all(|a| facts.kernel.cmdline.iter().any(|now| now == a)) {
            return then;
        }
        then.told = " with these `kernelArgs`";
        let all = || set_by_others(facts).map(String::as_str).chain(ours.iter().copied());
        let default = all().filter_map(|a| a.strip_prefix("default_hugepagesz=")).last();
        let Some(default) = default.map_or(Some(USUAL), size) else {
            then.unknown = true;
            return then;
        };
        let mut of = default;
        for argument in all() {
            match argument.split_once('=') {
                Some(("default_hugepagesz" | "hugepagesz", text)) => match size(text) {
                    Some(size) => of = size,
                    None => then.unknown = true,
                },
                Some(("hugepages", text)) => match count(text) {
                    // More than fits is not kept.
                    Some(n) => {
                        let fits = facts.cpu.memory.bytes() / of.bytes().max(1);
                        if let Some(total) = then.total.get_mut(&of) {
                            *total = if facts.cpu.memory.bytes() == 0 { n } else { n.min(fits) };
                        }
                    }
                    None => then.unknown = true,
                },
                _ => {}
            }
        }
        then
    }

    /// The memory that they are.
    pub(super) fn bytes(&self) -> u64 {
        self.total.iter().fold(0u64, |sum, (size, n)| sum.saturating_add(n.saturating_mul(size.bytes())))
    }
}

/// A size as the kernel's arguments have it: `2M`, `1G`.
fn size(text: &str) -> Option<ByteSize> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor: u64 = match unit {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return None,
    };
    Some(ByteSize::from_bytes(number.parse::<u64>().ok()?.checked_mul(factor)?)).filter(|s| s.bytes() > 0)
}

/// A number, or one for each node: `0:2,1:2`.
fn count(text: &str) -> Option<u64> {
    let mut sum = 0u64;
    for part in text.split(',') {
        let number = part.split_once(':').map_or(part, |(_, number)| number);
        sum = sum.checked_add(number.parse().ok()?)?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::HugePages;

    fn then(args: &str) -> HugePagesThen {
        let mut facts = crate::resource::tests::facts();
        facts.cpu.memory = ByteSize::from_gib(64);
        let keeps = |size, total| HugePages { size, total, more: 0 };
        facts.cpu.huge_pages = vec![keeps(ByteSize::from_mib(2), 512), keeps(ByteSize::from_gib(1), 0)];
        let text = format!("version: 1\nkernelArgs: [{args}]\n");
        HugePagesThen::of(&crate::manifest::parse("host.yaml", &text).unwrap(), &facts)
    }
    fn of(args: &str) -> (u64, u64) {
        let then = then(args);
        assert!(!then.unknown, "{args}");
        (then.total[&ByteSize::from_mib(2)], then.total[&ByteSize::from_gib(1)])
    }

    #[test]
    fn a_number_is_of_the_size_that_the_kernel_takes_it_for() {
        assert_eq!(of(""), (512, 0));
        assert_eq!(of("hpet=disable"), (512, 0));
        assert_eq!(of("hugepages=1024"), (1024, 0));
        assert_eq!(of("'hugepages=0:100,1:28'"), (128, 0));
        assert_eq!(of("default_hugepagesz=1G, hugepagesz=1G, hugepages=8"), (512, 8));
        assert_eq!(of("default_hugepagesz=1G, hugepages=8"), (512, 8));
        assert_eq!(of("hugepagesz=1G, hugepages=8"), (512, 8));
        assert_eq!(of("hugepages=8, hugepagesz=1G"), (8, 0), "it stands before its size");
        assert_eq!(of("default_hugepagesz=1G, hugepages=100"), (512, 64), "more than the host has memory for");
        assert!(then("hugepages=many").unknown && then("default_hugepagesz=1X, hugepages=1").unknown);
    }
}
