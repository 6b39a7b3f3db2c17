//! Lists of processors, as the kernel and libvirt write them: `0-3,8`.

use std::collections::BTreeSet;

/// The numbers of a list; what is none of it is left out.
pub fn cpu_list(text: &str) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for part in text.trim().split(',') {
        let number = |n: &str| n.trim().parse::<u32>().ok();
        match part.split_once('-') {
            None => all.extend(number(part)),
            // No machine has more, and a list of another's must not fill the memory.
            Some((first, last)) => {
                if let Some((first, last)) = number(first).zip(number(last)) {
                    all.extend((first..=last).take(4096));
                }
            }
        }
    }
    all
}

/// The shortest list of some numbers.
pub fn cpu_list_text(cpus: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let text = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_written_in_its_shortest_form() {
        for (text, shortest) in [("0-3,8", "0-3,8"), ("8,0,1,2,3\n", "0-3,8"), ("5", "5"), ("", ""), ("3-1,x", "")] {
            assert_eq!(cpu_list_text(&cpu_list(text)), shortest, "{text}");
        }
    }
}
