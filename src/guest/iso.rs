//! A CD-ROM image with a few files in its top folder: ISO 9660 (ECMA-119) with Joliet names, which is what cloud-init
//! and Windows read. The same files give the same bytes, so that a seed can be told by what it was made from.

/// A sector.
const SECTOR: usize = 2048;
/// Where each part lies, in sectors.
const PRIMARY: usize = 16;
const END: usize = 18;
const TABLES: [usize; 4] = [19, 20, 21, 22];
const FOLDERS: [usize; 2] = [23, 24];
const FILES: usize = 25;
/// A folder is one sector, so that no more than this fit in.
const MOST_FILES: usize = 8;
/// The part of the primary descriptor that is the writer's own, and how long it is.
const OURS: usize = PRIMARY * SECTOR + 883;
const OURS_LENGTH: usize = 512;
const MARK: &str = "gpuvm seed ";
/// 2000-01-01, in both forms: a time would make the same files another image.
const SHORT_TIME: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
const LONG_TIME: &[u8; 17] = b"2000010100000000\0";

/// A number in both byte orders.
fn both32(n: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    bytes[4..].copy_from_slice(&n.to_be_bytes());
    bytes
}
fn both16(n: u16) -> [u8; 4] {
    let (a, b) = (n.to_le_bytes(), n.to_be_bytes());
    [a[0], a[1], b[0], b[1]]
}

/// Joliet's letters: UCS-2, the high byte first.
fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn sectors(bytes: usize) -> usize {
    bytes.div_ceil(SECTOR)
}

/// An entry of a folder. The folder itself and its parent are named 0 and 1.
fn record(name: &[u8], sector: usize, length: usize, folder: bool) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(both32(sector as u32));
    bytes.extend(both32(length as u32));
    bytes.extend(SHORT_TIME);
    bytes.extend([if folder { 2 } else { 0 }, 0, 0]);
    bytes.extend(both16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    if !bytes.len().is_multiple_of(2) {
        bytes.push(0);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}

/// A volume descriptor, primary or Joliet's.
fn descriptor(joliet: bool, label: &str, total: usize, ours: &str) -> Vec<u8> {
    let text = |text: &str, length: usize| {
        let mut bytes = if joliet { wide(text) } else { text.as_bytes().to_vec() };
        let blank: &[u8] = if joliet { &[0, b' '] } else { b" " };
        while bytes.len() < length {
            bytes.extend_from_slice(&blank[..blank.len().min(length - bytes.len())]);
        }
        bytes.truncate(length);
        bytes
    };
    let [little, big] = if joliet { [TABLES[2], TABLES[3]] } else { [TABLES[0], TABLES[1]] };
    let mut d = vec![if joliet { 2 } else { 1 }];
    d.extend(b"CD001\x01\0");
    d.extend(text("", 32));
    d.extend(text(label, 32));
    d.extend([0; 8]);
    d.extend(both32(total as u32));
    // Joliet, level 3.
    d.extend(if joliet { *b"%/E" } else { [0; 3] });
    d.extend([0; 29]);
    d.extend(both16(1));
    d.extend(both16(1));
    d.extend(both16(SECTOR as u16));
    d.extend(both32(10));
    d.extend((little as u32).to_le_bytes());
    d.extend([0; 4]);
    d.extend((big as u32).to_be_bytes());
    d.extend([0; 4]);
    d.extend(record(&[0], FOLDERS[usize::from(joliet)], SECTOR, true));
    for length in [128, 128, 128, 128, 37, 37, 37] {
        d.extend(text("", length));
    }
    let unset = [b"0000000000000000\0".as_slice(); 2].concat();
    d.extend([LONG_TIME.as_slice(), LONG_TIME.as_slice(), &unset].concat());
    d.extend([1, 0]);
    let mut own = ours.as_bytes().to_vec();
    own.resize(OURS_LENGTH, 0);
    d.extend(own);
    d.resize(SECTOR, 0);
    d
}

/// An image with these files, in the order of their names. `made_from` is a word that [`made_from`] gives back.
pub fn image(label: &str, files: &[(&str, &[u8])], made_from: &str) -> Vec<u8> {
    let mut files: Vec<_> = files.iter().take(MOST_FILES).collect();
    files.sort_by_key(|(name, _)| name.to_ascii_uppercase());
    let total = FILES + files.iter().map(|(_, content)| sectors(content.len())).sum::<usize>();
    let mut out = vec![0; PRIMARY * SECTOR];
    let ours = format!("{MARK}{made_from}");
    out.extend(descriptor(false, label, total, &ours));
    out.extend(descriptor(true, label, total, ""));
    out.extend([&[255], b"CD001\x01".as_slice()].concat());
    out.resize((END + 1) * SECTOR, 0);
    for (n, at) in TABLES.into_iter().enumerate() {
        let folder = FOLDERS[n / 2] as u32;
        out.extend([1, 0]);
        // Of each pair, the second is for machines of the other byte order.
        out.extend(if n.is_multiple_of(2) { folder.to_le_bytes() } else { folder.to_be_bytes() });
        out.extend(if n.is_multiple_of(2) { [1, 0] } else { [0, 1] });
        out.extend([0, 0]);
        out.resize((at + 1) * SECTOR, 0);
    }
    for (joliet, at) in [false, true].into_iter().zip(FOLDERS) {
        out.extend(record(&[0], at, SECTOR, true));
        out.extend(record(&[1], at, SECTOR, true));
        let mut sector = FILES;
        for (name, content) in &files {
            // Linux shows the short name in lower case and without its end where it does not know Joliet.
            let dot = if name.contains('.') { "" } else { "." };
            let short = || format!("{}{dot};1", name.to_ascii_uppercase()).into_bytes();
            let name = if joliet { wide(name) } else { short() };
            out.extend(record(&name, sector, content.len(), false));
            sector += sectors(content.len());
        }
        out.resize((at + 1) * SECTOR, 0);
    }
    for (_, content) in &files {
        out.extend(*content);
        out.resize(sectors(out.len()) * SECTOR, 0);
    }
    out
}

/// What an image says that it was made from; `None` for one that is not of ours.
pub fn made_from(image: &[u8]) -> Option<&str> {
    let own = image.get(OURS..OURS + OURS_LENGTH)?;
    let end = own.iter().position(|b| *b == 0)?;
    std::str::from_utf8(&own[..end]).ok()?.strip_prefix(MARK)
}

const JOLIET: usize = 17;

/// The files of an image that [`image`] made, by the numbers that stand in it; `None` where one of them leads nowhere.
pub fn files(image: &[u8], joliet: bool) -> Option<Vec<(String, Vec<u8>)>> {
    let number = |at: usize| {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let byte = |at: usize| image.get(at).copied().map(usize::from);
    let descriptor = (if joliet { JOLIET } else { PRIMARY }) * SECTOR;
    let mut at = number(descriptor + 156 + 2)?.checked_mul(SECTOR)?;
    let mut found = Vec::new();
    while byte(at)? != 0 && found.len() < MOST_FILES {
        let name = image.get(at + 33..at + 33 + byte(at + 32)?)?;
        if byte(at + 25)? & 2 == 0 {
            let name = match joliet {
                true => {
                    let wide: Vec<u16> = name.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
                    String::from_utf16(&wide).ok()?
                }
                false => String::from_utf8(name.to_vec()).ok()?,
            };
            let from = number(at + 2)?.checked_mul(SECTOR)?;
            found.push((name, image.get(from..from.checked_add(number(at + 10)?)?)?.to_vec()));
        }
        at += byte(at)?;
    }
    Some(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let long = vec![b'x'; 5000];
        image("cidata", &[("user-data", &long), ("meta-data", b"a"), ("network-config", b"")], "sha256:ab")
    }

    #[test]
    fn what_is_put_in_comes_out_under_both_names() {
        let image = example();
        assert!(image.len().is_multiple_of(SECTOR) && image == example());
        let read = files(&image, true).unwrap();
        let names: Vec<_> = read.iter().map(|(n, c)| (n.as_str(), c.len())).collect();
        assert_eq!(names, [("meta-data", 1), ("network-config", 0), ("user-data", 5000)]);
        let short: Vec<_> = files(&image, false).unwrap().into_iter().map(|(n, c)| (n, c.len())).collect();
        assert_eq!(short[2], ("USER-DATA.;1".to_owned(), 5000));
        let total = u32::from_le_bytes(image[PRIMARY * SECTOR + 80..][..4].try_into().unwrap()) as usize;
        assert_eq!(total * SECTOR, image.len());
        assert_eq!(made_from(&image), Some("sha256:ab"));
        assert_eq!(made_from(&image[..1000]), None);
        assert_eq!(made_from(&vec![b'x'; image.len()]), None);
    }

    /// `cargo test -- --ignored other_readers`, where xorriso and blkid are installed.
    #[test]
    #[ignore = "needs xorriso and blkid"]
    #[allow(clippy::disallowed_methods)]
    fn other_readers_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.iso");
        std::fs::write(&path, example()).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = std::process::Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let said = run("blkid", &["-p", "-o", "export", "seed.iso"]);
        assert!(said.contains("LABEL=cidata") && said.contains("TYPE=iso9660"), "{said}");
        run("xorriso", &["-indev", "seed.iso", "-osirrox", "on", "-extract", "/", "out"]);
        assert_eq!(std::fs::read(dir.path().join("out/user-data")).unwrap().len(), 5000);
        let said = run("xorriso", &["-indev", "seed.iso", "-report_about", "WARNING", "-find", "/", "-type", "f"]);
        for name in ["'/meta-data'", "'/network-config'", "'/user-data'"] {
            assert!(said.contains(name), "{said}");
        }
    }
}
