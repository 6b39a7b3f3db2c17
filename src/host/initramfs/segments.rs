//! The archives of an initramfs one after the other, each plain or compressed, and the limits that hold for all of them.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::time::Instant;

use super::cpio::{Found, archive, begins};
use super::{Initramfs, Unreadable};

/// All that is read, packed and unpacked. The largest initramfs seen, with all firmware, unpacks to 600 MB.
const MOST_BYTES: u64 = 3 << 30;
/// What a decompressor may remember of what it wrote: `xz -9` and `zstd --ultra -22` ask for 64 and 128 MiB.
const WINDOW: u64 = 128 << 20;
/// A block of the older lz4 format holds this much (`LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE` in lib/decompress_unlz4.c).
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Reads an initramfs. It gives up at this moment, or where the content grows beyond all measure.
pub fn read(source: impl BufRead, until: Instant) -> Result<Initramfs, Unreadable> {
    let limits = Limits { left: Cell::new(MOST_BYTES), until };
    let mut raw = Metered { below: source, limits: &limits };
    let mut found = Found::default();
    while let Some(head) = head(&mut raw)? {
        let mut rest = Cursor::new(head).chain(&mut raw);
        let broken = |e: &dyn std::fmt::Display| Unreadable::Malformed(e.to_string());
        match head {
            plain if begins(&plain) => archive(&mut rest, &mut found)?,
            [0x1f, 0x8b, ..] => archives(flate2::bufread::GzDecoder::new(rest), &limits, &mut found)?,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let frame = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(rest, WINDOW);
                archives(frame.map_err(|e| broken(&e))?, &limits, &mut found)?;
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => {
                let kib = u32::try_from(WINDOW >> 10).unwrap_or(u32::MAX);
                archives(lzma_rust2::XzReader::new_mem_limit(rest, false, kib), &limits, &mut found)?;
            }
            [a, b, c, d, ..] if [a, b, c, d] == LZ4_MAGIC => {
                rest.read_exact(&mut [0; 4])?;
                archives(Lz4Blocks { below: rest, block: Vec::new(), at: 0 }, &limits, &mut found)?;
            }
            [b'B', b'Z', b'h', ..] => return Err(Unreadable::Compression("bzip2")),
            [0x5d, 0, 0, ..] => return Err(Unreadable::Compression("lzma")),
            [0x89, b'L', b'Z', b'O', ..] => return Err(Unreadable::Compression("lzo")),
            _ => return Err(Unreadable::Malformed("neither an archive nor compressed".to_owned())),
        }
    }
    match found.archives {
        0 => Err(Unreadable::Malformed("it is empty".to_owned())),
        _ => Ok(found.content),
    }
}

/// The archives within one compressed part.
fn archives(unpacked: impl Read, limits: &Limits, found: &mut Found) -> Result<(), Unreadable> {
    let mut unpacked = BufReader::with_capacity(64 << 10, Metered { below: unpacked, limits });
    while let Some(head) = head(&mut unpacked)? {
        if !begins(&head) {
            return Err(Unreadable::Malformed("what is compressed in it is no archive".to_owned()));
        }
        archive(&mut Cursor::new(head).chain(&mut unpacked), found)?;
    }
    Ok(())
}

/// The six bytes that tell what follows, behind the zeros that fill up what was before; none at the end.
fn head(from: &mut impl BufRead) -> Result<Option<[u8; 6]>, Unreadable> {
    loop {
        let ahead = from.fill_buf()?;
        let (zeros, length) = (ahead.iter().take_while(|b| **b == 0).count(), ahead.len());
        if length == 0 {
            return Ok(None);
        }
        from.consume(zeros);
        if zeros < length {
            break;
        }
    }
    let mut head = [0; 6];
    from.read_exact(&mut head)?;
    Ok(Some(head))
}

/// What is left of what may be read.
struct Limits {
    left: Cell<u64>,
    until: Instant,
}

impl Limits {
    fn count(&self, bytes: usize) -> io::Result<()> {
        if Instant::now() >= self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = self.left.get().checked_sub(bytes as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.left.set(left);
        Ok(())
    }
}

/// A reader that keeps to the limits.
struct Metered<'a, R> {
    below: R,
    limits: &'a Limits,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.below.read(into)?;
        self.limits.count(read)?;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Metered<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.limits.count(0)?;
        self.below.fill_buf()
    }
    fn consume(&mut self, bytes: usize) {
        // What is too much is found by the next read.
        let _ = self.limits.count(bytes);
        self.below.consume(bytes);
    }
}

/// The format of `lz4 -l`: a size and a block, until the file ends.
struct Lz4Blocks<R> {
    below: R,
    block: Vec<u8>,
    at: usize,
}

impl<R: Read> Lz4Blocks<R> {
    fn next(&mut self) -> io::Result<bool> {
        let mut size = LZ4_MAGIC;
        // One file may follow another.
        while size == LZ4_MAGIC {
            match self.below.read(&mut size[..1])? {
                0 => return Ok(false),
                _ => self.below.read_exact(&mut size[1..])?,
            }
        }
        let size = u32::from_le_bytes(size) as usize;
        if size == 0 {
            return Ok(false);
        }
        // What cannot be packed grows by one byte in 255 (`LZ4_COMPRESSBOUND`).
        if size > LZ4_BLOCK + LZ4_BLOCK / 255 + 16 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an lz4 block of {size} bytes")));
        }
        let mut packed = vec![0; size];
        self.below.read_exact(&mut packed)?;
        self.block.resize(LZ4_BLOCK, 0);
        let length = lz4_flex::block::decompress_into(&packed, &mut self.block)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        self.block.truncate(length);
        self.at = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Lz4Blocks<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.block.len() {
            if !self.next()? {
                return Ok(0);
            }
        }
        let ready = self.block.get(self.at..).unwrap_or_default();
        let length = ready.len().min(into.len());
        into[..length].copy_from_slice(&ready[..length]);
        self.at += length;
        Ok(length)
    }
}
