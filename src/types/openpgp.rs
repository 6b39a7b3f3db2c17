//! Fingerprints of OpenPGP keys in ASCII armour (RFC 9580): of the primary keys, which is what a person compares. Nothing
//! is verified with them here: that is apt's.

use super::base64::from_base64;

/// Why a text is no key that can be told by its fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenPgpError {
    /// There is no armoured block of a public key in it.
    #[error("it is no public key in ASCII armour (`-----BEGIN PGP PUBLIC KEY BLOCK-----`)")]
    NotArmoured,
    /// The block is cut off or damaged.
    #[error("its armoured block is damaged")]
    Damaged,
    /// The key is of a version whose fingerprint is not known here.
    #[error("it holds a key of version {0}, and only version 4 is known here")]
    Version(u8),
}

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";
/// Packet types: a primary key (5.5.1.1).
const PRIMARY: u8 = 6;

/// The fingerprints of all primary keys, as 40 upper-case hex digits each, in their order.
pub fn fingerprints(armoured: &str) -> Result<Vec<String>, OpenPgpError> {
    let mut all = Vec::new();
    let mut rest = armoured;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        let (block, after) = after.split_once(END).ok_or(OpenPgpError::Damaged)?;
        rest = after;
        packets(&decoded(block)?, &mut all)?;
    }
    if all.is_empty() { Err(OpenPgpError::NotArmoured) } else { Ok(all) }
}

/// The bytes of a block: behind its headers, which end with an empty line, without the checksum.
fn decoded(block: &str) -> Result<Vec<u8>, OpenPgpError> {
    let mut lines = block.lines().map(str::trim).skip(1);
    let body: Vec<&str> = match block.lines().skip(1).any(|l| l.trim().is_empty()) {
        true => lines.skip_while(|l| !l.is_empty()).collect(),
        false => lines.by_ref().collect(),
    };
    let text: String = body.into_iter().take_while(|l| !l.starts_with('=')).collect();
    from_base64(text.split('=').next().unwrap_or_default()).ok_or(OpenPgpError::Damaged)
}

/// Goes through the packets (4.2) and adds the fingerprint of each primary key.
fn packets(mut bytes: &[u8], all: &mut Vec<String>) -> Result<(), OpenPgpError> {
    while let Some((&tag, rest)) = bytes.split_first() {
        if tag & 0x80 == 0 {
            return Err(OpenPgpError::Damaged);
        }
        let number = |n: usize| {
            let value = rest.get(..n)?.iter().fold(0usize, |v, b| v << 8 | usize::from(*b));
            Some((value, n))
        };
        let (kind, length) = if tag & 0x40 == 0 {
            (tag >> 2 & 0x0f, [1, 2, 4].get(usize::from(tag & 3)).and_then(|n| number(*n)))
        } else {
            let first = rest.first().copied().unwrap_or(224);
            let length = match first {
                0..192 => Some((usize::from(first), 1)),
                192..224 => rest.get(1).map(|b| (((usize::from(first) - 192) << 8) + usize::from(*b) + 192, 2)),
                255 => number(5).map(|(v, n)| (v & 0xffff_ffff, n)),
                // Of partial lengths, which keys do not have.
                _ => None,
            };
            (tag & 0x3f, length)
        };
        let (length, taken) = length.ok_or(OpenPgpError::Damaged)?;
        let body = rest.get(taken..).and_then(|r| r.get(..length)).ok_or(OpenPgpError::Damaged)?;
        if kind == PRIMARY {
            match body.first() {
                Some(4) => all.push(fingerprint(body)),
                Some(version) => return Err(OpenPgpError::Version(*version)),
                None => return Err(OpenPgpError::Damaged),
            }
        }
        bytes = &rest[taken + length..];
    }
    Ok(())
}

/// Of a key of version 4 (5.5.4.2): SHA-1 over 0x99, two bytes of length, and the packet's body.
fn fingerprint(body: &[u8]) -> String {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(&[0x99, (body.len() >> 8) as u8, body.len() as u8]);
    hash.update(body);
    hash.digest().bytes().iter().map(|b| format!("{b:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made for this test, and signs nothing.
    const KEY: &str = include_str!("../../tests/keys/test.asc");
    const FINGERPRINT: &str = include_str!("../../tests/keys/test.fingerprint");

    #[test]
    fn a_key_is_told_by_its_fingerprint() {
        assert_eq!(fingerprints(KEY).unwrap(), [FINGERPRINT.trim()]);
        let two = format!("{KEY}\n{KEY}");
        assert_eq!(fingerprints(&two).unwrap().len(), 2, "a second one is seen");
    }

    #[test]
    fn what_is_no_key_is_refused_and_nothing_panics() {
        assert_eq!(fingerprints("<html>not found</html>"), Err(OpenPgpError::NotArmoured));
        for cut in (0..KEY.trim_end().len()).step_by(7) {
            if let Ok(found) = fingerprints(&KEY[..cut]) {
                panic!("cut at {cut}: {found:?}");
            }
        }
        for at in 60..KEY.len() {
            let mut bytes = KEY.as_bytes().to_vec();
            bytes[at] = b'A';
            let _ = fingerprints(std::str::from_utf8(&bytes).unwrap());
        }
    }
}
