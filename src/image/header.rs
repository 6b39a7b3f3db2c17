//! The header of an image (QEMU's docs/interop/qcow2): what a guest would see, and whether it leads out of its file. One
//! that names a file to go on with would give the guest any file of the host's.

use std::path::PathBuf;

/// What the first bytes of an image say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `qcow2` or `raw`.
    pub kind: &'static str,
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
}

/// Why a file is not used as an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Its header is cut off or wrong.
    #[error("its header is not that of a qcow2 image")]
    Broken,
    /// It goes on in another file.
    #[error("it names another file to read from, which a downloaded image has no business to")]
    LeadsOut,
    /// It is something else.
    #[error("it is {0}, and no disk image in qcow2 or raw form")]
    Other(&'static str),
}

/// What no disk begins with.
const OTHERS: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\xfd7zXZ\0", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"BZh", "compressed by bzip2"),
    (b"PK\x03\x04", "a zip archive"),
    (b"KDMV", "a VMware disk"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
];

/// Bit 2 of the incompatible features: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// btrfs has its first mark here, and nothing before it.
const BTRFS: (usize, &[u8]) = (0x10040, b"_BHRfS_M");

/// How much of a disk's beginning tells whether it is blank.
pub const HEAD: usize = 1 << 20;

/// Whether nothing was ever written to a disk, by the first [`HEAD`] bytes of its file or device. In a qcow2 file without
/// another below it, no cluster is in use then. Any other has neither a partition table nor a file system: those have
/// something in the first 4 KiB. What cannot be told counts as written to.
pub fn is_blank(head: &[u8]) -> bool {
    let zeros = |from: usize, length: usize| {
        head.get(from..from.saturating_add(length)).is_some_and(|part| part.iter().all(|b| *b == 0))
    };
    if !head.starts_with(b"QFI\xfb") {
        return zeros(0, 4096) && head.get(BTRFS.0..).is_none_or(|rest| !rest.starts_with(BTRFS.1));
    }
    let number = |at: usize, length: usize| {
        let part = head.get(at..at + length)?;
        usize::try_from(part.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b))).ok()
    };
    // backing_file_offset; l1_size and l1_table_offset: the table of what is in use, eight bytes an entry.
    let (Some(0), Some(entries), Some(table)) = (number(8, 8), number(36, 4), number(40, 8)) else { return false };
    entries > 0 && zeros(table, entries.saturating_mul(8))
}

/// Reads a header. `size` is that of the whole file.
pub fn header(bytes: &[u8], size: u64) -> Result<Header, HeaderError> {
    let starts = |with: &[u8]| bytes.len() >= with.len() && bytes[..with.len()].eq_ignore_ascii_case(with);
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| starts(magic)) {
        return Err(HeaderError::Other(what));
    }
    if !bytes.starts_with(b"QFI\xfb") {
        return match size {
            0 => Err(HeaderError::Other("empty")),
            size if !size.is_multiple_of(512) => Err(HeaderError::Other("no whole number of sectors long")),
            size => Ok(Header { kind: "raw", virtual_size: size }),
        };
    }
    let number = |at: usize, length: usize| {
        let part = bytes.get(at..at + length).ok_or(HeaderError::Broken)?;
        Ok(part.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b)))
    };
    let version = number(4, 4)?;
    let (backing, virtual_size) = (number(8, 8)?, number(24, 8)?);
    if !matches!(version, 2 | 3) || virtual_size == 0 {
        return Err(HeaderError::Broken);
    }
    if backing != 0 || (version == 3 && number(72, 8)? & EXTERNAL_DATA != 0) {
        return Err(HeaderError::LeadsOut);
    }
    Ok(Header { kind: "qcow2", virtual_size })
}

/// What a file goes on in where nothing was written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behind {
    /// Nothing: it is whole by itself.
    Nothing,
    /// Something that is no file of this host.
    Elsewhere,
    /// This file; a relative path begins at the folder of the one that names it.
    File(PathBuf),
    /// What it says cannot be read here.
    Unknown,
}

/// What the first bytes of a file name as the file behind it.
pub fn behind(bytes: &[u8]) -> Behind {
    if bytes.starts_with(b"QED\0") {
        return Behind::Unknown;
    }
    if !bytes.starts_with(b"QFI\xfb") {
        return Behind::Nothing;
    }
    let number = |at: usize, length: usize| {
        bytes.get(at..at + length).map(|part| part.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b)))
    };
    let name = match (number(8, 8), number(16, 4)) {
        (Some(0), _) => return Behind::Nothing,
        (Some(at), Some(length)) => {
            let at = usize::try_from(at).ok();
            at.and_then(|at| bytes.get(at..at.checked_add(usize::try_from(length).ok()?)?))
        }
        _ => None,
    };
    let Some(name) = name.and_then(|n| std::str::from_utf8(n).ok()).filter(|n| !n.is_empty()) else {
        return Behind::Unknown;
    };
    match name.split_once(':').filter(|(scheme, _)| !scheme.contains('/')) {
        None => Behind::File(name.into()),
        Some(("file", path)) => Behind::File(path.into()),
        Some((_, rest)) if rest.starts_with("//") => Behind::Elsewhere,
        Some(_) => Behind::Unknown,
    }
}

/// The beginning of a qcow2 image of 1 GiB that goes on in another file, without anything in it: what a rehearsal has in
/// place of one.
pub fn qcow2_over(name: &str) -> Vec<u8> {
    let mut bytes = b"QFI\xfb".to_vec();
    bytes.extend(3u32.to_be_bytes());
    bytes.extend(104u64.to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(16u32.to_be_bytes());
    bytes.extend((1u64 << 30).to_be_bytes());
    bytes.resize(104, 0);
    bytes.extend(name.as_bytes());
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The beginning of a qcow2 image that goes on in another file.
    pub(crate) fn over(name: &str) -> Vec<u8> {
        qcow2_over(name)
    }

    #[test]
    fn a_disk_is_blank_until_something_is_written_to_it() {
        let zeros = |length: usize, at: usize, what: &[u8]| {
            let mut bytes = vec![0; length];
            bytes[at..at + what.len()].copy_from_slice(what);
            bytes
        };
        assert!(is_blank(&vec![0; HEAD]) && is_blank(&zeros(HEAD, 5000, b"left over")));
        assert!(!is_blank(&zeros(HEAD, 510, b"\x55\xaa")) && !is_blank(&zeros(HEAD, 0x10040, b"_BHRfS_M")));
        assert!(!is_blank(b"") && !is_blank(&over("base.qcow2")) && !is_blank(&qcow2(3, 0, 1, 0)[..40]));
        let mut fresh = zeros(HEAD, 0, b"QFI\xfb\0\0\0\x03");
        fresh[36..48].copy_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 3, 0, 0]);
        assert!(is_blank(&fresh));
        fresh[0x30000 + 24] = 0x80;
        assert!(!is_blank(&fresh), "the last entry of its table");
    }

    /// Where qemu-img and qemu-io are installed.
    #[test]
    #[allow(clippy::disallowed_methods)]
    fn qemus_own_blank_disks_are_blank() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        let run = |program: &str, args: &[&str]| {
            std::process::Command::new(program).args(args).arg(&disk).output().is_ok_and(|o| o.status.success())
        };
        for format in ["qcow2", "raw"] {
            let mut made = std::process::Command::new("qemu-img");
            made.args(["create", "-q", "-f", format]).arg(&disk).arg("3T");
            if !made.output().is_ok_and(|o| o.status.success()) {
                return;
            }
            let head = || {
                use std::io::Read as _;
                let mut bytes = Vec::new();
                std::fs::File::open(&disk).unwrap().take(HEAD as u64).read_to_end(&mut bytes).unwrap();
                bytes
            };
            assert!(is_blank(&head()), "{format}");
            if run("qemu-io", &["-f", format, "-c", "write -P 1 0 512"]) {
                assert!(!is_blank(&head()), "{format}");
            }
        }
    }

    #[test]
    fn what_is_behind_a_file_is_read_or_not_known() {
        for (name, is) in [
            ("base.qcow2", Behind::File("base.qcow2".into())),
            ("/srv/a:b.qcow2", Behind::File("/srv/a:b.qcow2".into())),
            ("file:/srv/a", Behind::File("/srv/a".into())),
            ("nbd://x/y", Behind::Elsewhere),
            ("json:{}", Behind::Unknown),
        ] {
            assert_eq!(behind(&over(name)), is, "{name}");
        }
        assert_eq!(behind(&qcow2(3, 0, 1, 0)), Behind::Nothing);
        assert_eq!(behind(&[0; 512]), Behind::Nothing);
        let whole = over("base.qcow2");
        for end in 4..whole.len() {
            assert_eq!(behind(&whole[..end]), Behind::Unknown, "cut off at {end}");
        }
        assert_eq!(behind(&qcow2(3, u64::MAX, 1, 0)), Behind::Unknown);
    }

    fn qcow2(version: u32, backing: u64, size: u64, features: u64) -> Vec<u8> {
        let mut bytes = b"QFI\xfb".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend(backing.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend(size.to_be_bytes());
        bytes.resize(72, 0);
        bytes.extend(features.to_be_bytes());
        bytes
    }

    #[test]
    fn what_leads_out_of_its_file_is_refused() {
        let read = |bytes: Vec<u8>| header(&bytes, 1 << 20);
        assert_eq!(read(qcow2(3, 0, 3 << 30, 0)).unwrap(), Header { kind: "qcow2", virtual_size: 3 << 30 });
        assert_eq!(read(qcow2(2, 0, 1, 0)[..72].to_vec()).unwrap().virtual_size, 1);
        assert_eq!(read(qcow2(3, 104, 1, 0)), Err(HeaderError::LeadsOut));
        assert_eq!(read(qcow2(3, 0, 1, EXTERNAL_DATA)), Err(HeaderError::LeadsOut));
        assert_eq!(read(qcow2(4, 0, 1, 0)), Err(HeaderError::Broken));
        assert_eq!(read(b"QFI\xfb\0\0".to_vec()), Err(HeaderError::Broken));
    }

    #[test]
    fn what_is_no_disk_is_named() {
        assert_eq!(header(b"\0\0", 1024).unwrap(), Header { kind: "raw", virtual_size: 1024 });
        for (bytes, size, what) in [
            (&b"\xfd7zXZ\0"[..], 512, "xz"),
            (b"<!doctype html>", 512, "web page"),
            (b"", 0, "empty"),
            (b"abc", 3, "sectors"),
        ] {
            assert!(header(bytes, size).unwrap_err().to_string().contains(what), "{what}");
        }
    }
}
