//! Archives made here, in every compression, and archives that mean harm.

use std::io::Write;
use std::time::{Duration, Instant};

use super::*;

const VFIO: &str = "usr/lib/modules/6.12.57/kernel/drivers/vfio/pci/vfio-pci.ko.xz";
const RULE: &str = "usr/lib/udev/rules.d/61-gpuvm-vfio-work.rules";

fn entry(name: &str, mode: u32, size: u32, content: &[u8]) -> Vec<u8> {
    let mut out = b"070701".to_vec();
    for number in [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0] {
        out.extend(format!("{number:08X}").bytes());
    }
    out.extend(name.bytes().chain([0]));
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn cpio(files: &[(&str, &str)]) -> Vec<u8> {
    let files = files.iter().map(|(name, text)| entry(name, 0o100_644, text.len() as u32, text.as_bytes()));
    let mut out: Vec<u8> = files.chain([entry("TRAILER!!!", 0, 0, b"")]).flatten().collect();
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn main_archive() -> Vec<u8> {
    let filler = "A firmware that is long enough to be packed. ".repeat(5000);
    cpio(&[
        (VFIO, "x"),
        ("usr/lib/firmware/long.bin", &filler),
        (RULE, "KERNEL==\"0000:01:00.0\"\n"),
        ("conf/modules", "vfio_pci\n"),
    ])
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}
fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}
fn xz(data: &[u8]) -> Vec<u8> {
    let mut out = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    out.write_all(data).unwrap();
    out.finish().unwrap()
}
fn lz4(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in data.chunks(100_000) {
        let packed = lz4_flex::block::compress(block);
        out.extend((packed.len() as u32).to_le_bytes());
        out.extend(packed);
    }
    out
}

fn look(bytes: &[u8]) -> Result<Initramfs, Unreadable> {
    read(bytes, Instant::now() + Duration::from_secs(60))
}

type Pack = (&'static str, fn(&[u8]) -> Vec<u8>);
const PACKS: [Pack; 5] = [("plain", |d| d.to_vec()), ("gzip", gzip), ("zstd", zstd), ("xz", xz), ("lz4", lz4)];

#[test]
fn every_compression_is_read_behind_the_microcode() {
    let early = cpio(&[("kernel/x86/microcode/GenuineIntel.bin", "microcode")]);
    for (name, pack) in PACKS {
        let file = [early.clone(), pack(&main_archive())].concat();
        let found = look(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            found.has_module("6.12.57", "vfio_pci") && !found.has_module("6.12.41", "vfio_pci"),
            "{name}: {found:?}"
        );
        assert_eq!(found.text_named("61-gpuvm-vfio-work.rules"), Some("KERNEL==\"0000:01:00.0\"\n"), "{name}");
        assert_eq!(found.texts["conf/modules"], "vfio_pci\n", "{name}");
        assert_eq!(found.texts.len(), 2, "{name}: what is not asked for is not kept");
    }
}

#[test]
fn what_follows_is_unpacked_over_what_was_before() {
    let later = cpio(&[(RULE, "later"), ("lib/modules/6.12.57/kernel/nvidia.ko", "")]);
    for (name, pack) in PACKS {
        // The older lz4 format does not tell where it ends.
        let file = [pack(&main_archive()), vec![0; 12], pack(&later)].concat();
        let found = look(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.text_named("61-gpuvm-vfio-work.rules"), Some("later"), "{name}");
        assert!(found.has_module("6.12.57", "nvidia") && found.has_module("6.12.57", "vfio_pci"), "{name}");
    }
}

#[test]
fn one_that_is_cut_off_is_no_answer() {
    for (name, pack) in PACKS {
        let whole = pack(&main_archive());
        // Far enough from the end that it is content and not padding.
        for cut in [5, 60, whole.len() / 2, whole.len() - 600.min(whole.len() / 3)] {
            let got = look(&whole[..cut]);
            assert!(got.is_err(), "{name} cut at {cut}: {got:?}");
        }
    }
    assert!(matches!(look(b""), Err(Unreadable::Malformed(_))));
    assert!(matches!(look(&[0; 4096]), Err(Unreadable::Malformed(_))));
    assert!(matches!(look(b"BZh91AY&SY"), Err(Unreadable::Compression("bzip2"))));
}

#[test]
fn sizes_that_are_lies_cost_nothing() {
    let huge = entry("usr/lib/firmware/a", 0o100_644, u32::MAX, b"short");
    assert!(matches!(look(&huge), Err(Unreadable::Truncated)));
    let huge = entry(RULE, 0o100_644, u32::MAX, b"short");
    assert!(matches!(look(&huge), Err(Unreadable::Truncated)), "nothing is set aside for what it claims");
    let mut name = entry("a", 0o100_644, 0, b"");
    name[6 + 8 * 11..14 + 8 * 11].copy_from_slice(b"FFFFFFFF");
    assert!(matches!(look(&name), Err(Unreadable::Malformed(_))));
    name[6 + 8 * 11..14 + 8 * 11].copy_from_slice(b"+0000002");
    assert!(matches!(look(&name), Err(Unreadable::Malformed(_))));
    let block = [vec![0x02, 0x21, 0x4c, 0x18], u32::MAX.to_le_bytes().to_vec(), vec![1; 64]].concat();
    assert!(matches!(look(&block), Err(Unreadable::Malformed(_))));
}

#[test]
fn a_bomb_is_given_up() {
    // Four GiB of a file's content in a few MB, which are never held.
    let piece = gzip(&vec![0; 64 << 20]);
    assert!(piece.len() < 100_000);
    let begin = gzip(&entry("a", 0o100_644, 0, b""));
    let whole: Vec<u8> = [begin].into_iter().chain(std::iter::repeat_n(piece, 64)).flatten().collect();
    let soon = read(&whole[..], Instant::now());
    assert!(matches!(soon, Err(Unreadable::TooSlow)), "{soon:?}");
    let got = read(&whole[..], Instant::now() + Duration::from_secs(1));
    assert!(got.is_err(), "{got:?}");
}

#[test]
fn names_that_lead_out_of_the_tree_are_not_taken_for_what_they_end_in() {
    for name in [
        "../lib/modules/6.12.57/vfio-pci.ko",
        "lib/modules/../vfio-pci.ko",
        "lib/modules/6.12.57/\u{1b}[2J/vfio-pci.ko",
    ] {
        let found = look(&cpio(&[(name, "")])).unwrap();
        assert!(found.modules.is_empty(), "{name}: {found:?}");
    }
    let link = [entry(RULE, 0o120_777, 11, b"/etc/shadow"), entry("TRAILER!!!", 0, 0, b"")].concat();
    assert_eq!(look(&link).unwrap(), Initramfs::default(), "a link is not a rule");
    let found =
        look(&cpio(&[("./lib/modules/6.1/vfio-pci.ko.zst", ""), ("lib/modules/6.1/vfio-pci.ko.txt", "")])).unwrap();
    assert_eq!(found.modules["6.1"].len(), 1);
}

#[test]
fn damage_never_panics() {
    let mut state = 7u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize
    };
    let small = cpio(&[(VFIO, "module"), (RULE, &"rule ".repeat(100)), ("conf/modules", "vfio\n")]);
    let mut refused = 0;
    for (_, pack) in PACKS {
        let whole = pack(&small);
        for _ in 0..100 {
            let mut damaged = whole.clone();
            for _ in 0..1 + random() % 4 {
                let at = random() % damaged.len();
                damaged[at] = random() as u8;
            }
            refused += u32::from(read(&damaged[..], Instant::now() + Duration::from_secs(5)).is_err());
        }
    }
    assert!(refused > 150, "{refused}");
}
