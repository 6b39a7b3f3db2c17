//! The medium of Ubuntu's installer: where on it lie the kernel and the initramfs that it starts with. Only the folders of
//! ISO 9660 (ECMA-119) are read, and every number in them is somebody's: none leads past the file, and none is read twice.

use std::io::{self, Read, Seek, SeekFrom};

/// A sector.
const SECTOR: u64 = 2048;
/// Where the descriptors begin, and how many are looked at.
const DESCRIPTORS: std::ops::Range<u64> = 16..32;
/// A folder of the installer's has some dozens of entries.
const LARGEST_FOLDER: u32 = 1 << 20;
/// A kernel has 15 MiB and its initramfs 80 MiB.
const LARGEST_FILE: u32 = 1 << 30;

/// Where the installer's files are (casper(7)).
const FOLDER: &str = "casper";
/// The kernel, and what it starts with.
const FILES: [&str; 2] = ["vmlinuz", "initrd"];

/// A part of a medium, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub from: u64,
    /// How long it is.
    pub length: u64,
}

/// Why nothing can be started from a medium.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// It is something else.
    #[error("it is no CD-ROM (ISO 9660)")]
    NoCdRom,
    /// It has no such file.
    #[error("it is no medium of Ubuntu's installer: `{0}` is not on it")]
    Missing(String),
    /// A number in it leads nowhere.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An entry of a folder.
struct Entry {
    sector: u32,
    length: u32,
    folder: bool,
}

/// The kernel and the initramfs of a medium of Ubuntu's installer.
pub fn kernel_and_initrd(medium: &mut (impl Read + Seek)) -> Result<[Extent; 2], MediumError> {
    let end = medium.seek(SeekFrom::End(0))?;
    let root = root(medium)?;
    let folder = find(medium, end, &root, FOLDER)?.filter(|e| e.folder);
    let folder = folder.ok_or_else(|| MediumError::Missing(format!("/{FOLDER}")))?;
    let mut extents = [Extent { from: 0, length: 0 }; 2];
    for (extent, name) in extents.iter_mut().zip(FILES) {
        let file = find(medium, end, &folder, name)?.filter(|e| !e.folder && e.length > 0);
        let file = file.ok_or_else(|| MediumError::Missing(format!("/{FOLDER}/{name}")))?;
        *extent = Extent { from: u64::from(file.sector) * SECTOR, length: file.length.into() };
        if file.length > LARGEST_FILE || extent.from + extent.length > end {
            return Err(MediumError::Damaged("a file lies past its end"));
        }
    }
    Ok(extents)
}

/// The top folder, by the primary descriptor.
fn root(medium: &mut (impl Read + Seek)) -> Result<Entry, MediumError> {
    for sector in DESCRIPTORS {
        medium.seek(SeekFrom::Start(sector * SECTOR))?;
        let mut bytes = [0; SECTOR as usize];
        match medium.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(MediumError::NoCdRom),
            read => read?,
        }
        match (&bytes[1..6], bytes[0]) {
            (b"CD001", 1) => return entry(&bytes[156..190]).ok_or(MediumError::Damaged("its top folder")),
            (b"CD001", 255) => break,
            (b"CD001", _) => {}
            _ => break,
        }
    }
    Err(MediumError::NoCdRom)
}

/// An entry: both numbers stand in it in both byte orders, the low byte first.
fn entry(bytes: &[u8]) -> Option<Entry> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some(Entry { sector: number(2)?, length: number(10)?, folder: bytes.get(25)? & 2 != 0 })
}

/// The entry of this name. Names are in capitals there, and files have a version.
fn find(medium: &mut (impl Read + Seek), end: u64, folder: &Entry, name: &str) -> Result<Option<Entry>, MediumError> {
    let from = u64::from(folder.sector) * SECTOR;
    if folder.length > LARGEST_FOLDER || from + u64::from(folder.length) > end {
        return Err(MediumError::Damaged("a folder lies past its end"));
    }
    let mut bytes = vec![0; folder.length as usize];
    medium.seek(SeekFrom::Start(from))?;
    medium.read_exact(&mut bytes)?;
    // No entry goes over the end of a sector: what is left of one is zeros.
    for sector in bytes.chunks(SECTOR as usize) {
        let mut at = 0;
        while let Some(length) = sector.get(at).map(|n| usize::from(*n)).filter(|n| *n > 0) {
            let Some(bytes) = sector.get(at..at + length) else {
                return Err(MediumError::Damaged("an entry of a folder lies past its sector"));
            };
            let own = bytes.get(32).and_then(|n| bytes.get(33..33 + usize::from(*n)));
            let own = own.ok_or(MediumError::Damaged("a name lies past its entry"))?;
            let own = own.split(|b| *b == b';').next().unwrap_or_default();
            if own.strip_suffix(b".").unwrap_or(own).eq_ignore_ascii_case(name.as_bytes()) {
                return Ok(entry(bytes));
            }
            at += length;
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use super::*;

    fn record(name: &[u8], sector: u32, length: u32, folder: bool) -> Vec<u8> {
        let mut bytes = vec![0, 0];
        for number in [sector, length] {
            bytes.extend(number.to_le_bytes());
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend([0; 7]);
        bytes.extend([if folder { 2 } else { 0 }, 0, 0, 1, 0, 0, 1]);
        bytes.push(name.len() as u8);
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes[0] = bytes.len() as u8;
        bytes
    }

    /// A medium with what is looked at: `casper`'s folder has two sectors, and the kernel is in the second.
    pub(crate) fn medium(kernel: &[u8], initrd: &[u8]) -> Vec<u8> {
        let sector = SECTOR as usize;
        let at = |bytes: &mut Vec<u8>, n: usize| bytes.resize(n * sector, 0);
        let mut out = Vec::new();
        at(&mut out, 16);
        out.extend(b"\x01CD001\x01");
        out.resize(16 * sector + 156, 0);
        out.extend(record(&[0], 20, SECTOR as u32, true));
        at(&mut out, 17);
        out.extend(b"\xffCD001\x01");
        at(&mut out, 20);
        for (name, folder) in [(&[0][..], 20), (&[1], 20), (b"BOOT", 20), (b"CASPER", 21)] {
            out.extend(record(name, folder, if folder == 21 { 2 * SECTOR as u32 } else { SECTOR as u32 }, true));
        }
        at(&mut out, 21);
        let initrd_at = 23 + kernel.len().div_ceil(sector);
        out.extend(record(&[0], 21, 2 * SECTOR as u32, true));
        out.extend(record(b"FILESYSTEM.MANIFEST;1", 0, 0, false));
        out.extend(record(b"INITRD.;1", initrd_at as u32, initrd.len() as u32, false));
        at(&mut out, 22);
        out.extend(record(b"VMLINUZ.;1", 23, kernel.len() as u32, false));
        at(&mut out, 23);
        out.extend(kernel);
        at(&mut out, initrd_at);
        out.extend(initrd);
        out.resize(out.len().next_multiple_of(sector), 0);
        out
    }

    fn read(bytes: &[u8]) -> Result<[Vec<u8>; 2], MediumError> {
        let extents = kernel_and_initrd(&mut Cursor::new(bytes))?;
        Ok(extents.map(|e| bytes[e.from as usize..][..e.length as usize].to_vec()))
    }

    #[test]
    fn kernel_and_initramfs_are_found_by_their_names() {
        let kernel = vec![b'k'; 5000];
        assert_eq!(read(&medium(&kernel, b"initramfs")).unwrap(), [kernel, b"initramfs".to_vec()]);
    }

    #[test]
    fn what_is_no_installer_is_said_and_no_number_of_it_leads_away() {
        let whole = medium(&[b'k'; 5000], b"initramfs");
        let said = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(said(b"").contains("no CD-ROM") && said(&[0; 65536]).contains("no CD-ROM"));
        let seed = crate::guest::iso::image("cidata", &[("user-data", b"x")], "abc");
        assert!(said(&seed).contains("`/casper` is not on it"), "{}", said(&seed));
        let without = |name: &[u8]| {
            let at = whole.windows(name.len()).position(|w| w == name).unwrap();
            let mut bytes = whole.clone();
            bytes[at] = b'X';
            said(&bytes)
        };
        assert!(without(b"VMLINUZ").contains("`/casper/vmlinuz`") && without(b"INITRD").contains("`/casper/initrd`"));
        // Behind the last of them is nothing but zeros.
        let [_, last] = kernel_and_initrd(&mut Cursor::new(&whole)).unwrap();
        for cut in (0..(last.from + last.length) as usize).step_by(511) {
            assert!(read(&whole[..cut]).is_err(), "cut off at {cut}");
        }
        for at in 16 * 2048..24 * 2048 {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let _ = read(&bytes);
            }
        }
    }
}
