//! One archive in the `newc` format (cpio(5)): a header of hexadecimal numbers, the name, the content, each padded to four.

use std::io::Read;

use super::{Initramfs, Unreadable};

const HEADER: usize = 110;
/// A path is no longer (PATH_MAX).
const LONGEST_NAME: usize = 4096;
/// Of what is kept.
const LONGEST_TEXT: usize = 64 << 10;
const MOST_TEXTS: usize = 256;
/// A distribution's kernel has 6,000 modules.
const MOST_MODULES: usize = 50_000;
/// Ten times what a large initramfs has.
const MOST_ENTRIES: u32 = 200_000;

/// What was found so far.
#[derive(Default)]
pub(super) struct Found {
    pub(super) content: Initramfs,
    pub(super) archives: u32,
    entries: u32,
    modules: usize,
}

/// Whether an archive begins with this: without and with checksums.
pub(super) fn begins(head: &[u8]) -> bool {
    head.starts_with(b"070701") || head.starts_with(b"070702")
}

/// Reads one archive up to its trailer.
pub(super) fn archive(from: &mut dyn Read, found: &mut Found) -> Result<(), Unreadable> {
    found.archives += 1;
    loop {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        if !begins(&header) {
            return Err(Unreadable::Malformed("an entry of its archive has no header".to_owned()));
        }
        // mode is the second number, the content's size the seventh, the name's size with its NUL the twelfth.
        let (mode, size, name_size) = (number(&header, 1)?, number(&header, 6)?, number(&header, 11)? as usize);
        if !(1..=LONGEST_NAME + 1).contains(&name_size) {
            return Err(Unreadable::Malformed(format!("a name of {name_size} bytes")));
        }
        let mut name = vec![0; name_size];
        from.read_exact(&mut name)?;
        let name: Vec<u8> = name.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        if name == b"TRAILER!!!" {
            return Ok(());
        }
        found.entries += 1;
        if found.entries > MOST_ENTRIES {
            return Err(Unreadable::TooMuch("files"));
        }
        skip(from, padding(HEADER + name_size))?;
        let is_file = mode & 0o170_000 == 0o100_000;
        let path = is_file.then(|| plain(&name)).flatten();
        if let Some((release, module)) = path.as_deref().and_then(module) {
            found.modules += 1;
            if found.modules > MOST_MODULES {
                return Err(Unreadable::TooMuch("modules"));
            }
            found.content.modules.entry(release).or_default().insert(module);
        }
        match path.filter(|p| is_kept(p) && size as usize <= LONGEST_TEXT) {
            Some(path) => {
                let mut text = vec![0; size as usize];
                from.read_exact(&mut text)?;
                if found.content.texts.len() >= MOST_TEXTS {
                    return Err(Unreadable::TooMuch("files of gpuvm"));
                }
                found.content.texts.insert(path, String::from_utf8_lossy(&text).into_owned());
            }
            None => skip(from, u64::from(size))?,
        }
        skip(from, padding(size as usize))?;
    }
}

fn number(header: &[u8; HEADER], nth: usize) -> Result<u32, Unreadable> {
    let digits = header.get(6 + 8 * nth..14 + 8 * nth).unwrap_or_default();
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
    let number = digits.and_then(|d| u32::from_str_radix(d, 16).ok());
    number.ok_or_else(|| Unreadable::Malformed("a header without its numbers".to_owned()))
}

fn padding(size: usize) -> u64 {
    (4 - size as u64 % 4) % 4
}

fn skip(from: &mut dyn Read, bytes: u64) -> Result<(), Unreadable> {
    match std::io::copy(&mut from.take(bytes), &mut std::io::sink())? {
        skipped if skipped == bytes => Ok(()),
        _ => Err(Unreadable::Truncated),
    }
}

/// The path without `/` and `./` before it; none where it is not a plain one: the kernel would leave the tree by it.
fn plain(name: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(name).ok()?.trim_start_matches("./").trim_start_matches('/');
    let fits = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.chars().any(char::is_control);
    path.split('/').all(fits).then(|| path.to_owned())
}

/// Release and name, where it is a kernel module.
fn module(path: &str) -> Option<(String, String)> {
    let below = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
    let (release, rest) = below.split_once('/')?;
    let (name, suffix) = rest.rsplit('/').next()?.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| (release.to_owned(), name.replace('-', "_")))
}

/// Whether the content is of interest: ours, and the list of what initramfs-tools loads.
fn is_kept(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.contains("gpuvm")) || path == "conf/modules"
}
