//! What the fuzz targets call, over their corpus and over simple mutations of it: any compiler can do this much, and what
//! was once found stays found. `GPUVM_FUZZ_ROUNDS=1000` goes on longer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[path = "../fuzz/entry.rs"]
mod entry;

use crate::machine::repository;

/// Marsaglia's xorshift: the same mutations in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (n.max(1) as u64)).unwrap()
    }
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let at = self.below(length + 1);
        at..(at + 1 + self.below(24)).min(length).max(at)
    }
}

/// What parsers stumble over.
const WORDS: [&[u8]; 18] = [
    b"\0",
    b"\n",
    b"\xff",
    b"\x1b[2J",
    b"-1",
    b"99999999999999999999",
    b"0x",
    b"../",
    b"\n@ /",
    b"{",
    b"]",
    b"\"",
    b"'",
    b"<",
    b"]]>",
    b": ",
    b"&amp;",
    "\u{202e}ü".as_bytes(),
];

fn mutated(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let range = dice.range(data.len());
        match dice.below(7) {
            0 if !range.is_empty() => data[range.start] ^= 1 << dice.below(8),
            1 => drop(data.drain(range)),
            2 => {
                let again = data[range.clone()].to_vec();
                data.splice(range.end..range.end, again);
            }
            3 => drop(data.splice(range, WORDS[dice.below(WORDS.len())].iter().copied())),
            4 => data.truncate(range.start),
            5 => {
                let from = dice.range(other.len());
                data.splice(range, other[from].iter().copied());
            }
            _ => data.splice(range.start..range.start, WORDS[dice.below(WORDS.len())].iter().copied()).for_each(drop),
        }
    }
    data
}

fn over_the_corpus(name: &str, holds: fn(&[u8])) {
    let folder = repository().join("tests/fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|f| fs::read(f).unwrap()).collect();
    assert!(seeds.len() >= 4, "{name}: the corpus is gone");
    let rounds = std::env::var("GPUVM_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for (seed, file) in seeds.iter().zip(&files) {
        for round in 0..=rounds {
            let other = &seeds[dice.below(seeds.len())];
            let data = if round == 0 { seed.clone() } else { mutated(seed, other, &mut dice) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| holds(&data))) {
                let crash = std::env::temp_dir().join(format!("gpuvm-{name}-crash"));
                fs::write(&crash, &data).unwrap();
                eprintln!("{name}: round {round} of {}: the input is {}", file.display(), crash.display());
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{name}: {} inputs of the corpus, {} mutations", seeds.len(), seeds.len() * rounds);
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            over_the_corpus(stringify!($name), entry::$name);
        })*

        #[test]
        fn every_target_is_run_here_and_by_the_fuzzer() {
            let toml = fs::read_to_string(repository().join("tests/fuzz/Cargo.toml")).unwrap();
            let script = fs::read_to_string(repository().join("tests/fuzz/run")).unwrap();
            let names = [$(stringify!($name)),*];
            assert_eq!(toml.matches("[[bin]]").count(), names.len());
            assert!(script.contains(&format!("set -- {}\n", names.join(" "))), "{names:?}");
            for name in names {
                assert!(toml.contains(&format!("name = \"{name}\"")), "{name}");
            }
        }
    };
}

targets! { apt domain facts initramfs manifest mig state }
