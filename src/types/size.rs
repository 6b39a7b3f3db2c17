//! Sizes with their unit, and file modes.

use std::fmt;
use std::str::FromStr;

/// Why a size or a mode could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No unit, or one that is not known.
    #[error("`{0}` is not a size; write a whole number with its unit: KiB, MiB, GiB or TiB")]
    Size(String),
    /// A decimal unit, which people mean in different ways.
    #[error("`{text}` is ambiguous; write `{hint}`")]
    Decimal {
        /// What was written.
        text: String,
        /// The same number with the binary unit.
        hint: String,
    },
    /// More than 64 bits hold.
    #[error("`{0}` is too large")]
    TooLarge(String),
    /// Not an octal mode.
    #[error("`{0}` is not a file mode; write it in octal and in quotes, such as \"0644\"")]
    Mode(String),
}

/// A size in bytes, written with a binary unit (`16GiB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size of so many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }
    /// A size of so many MiB.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }
    /// A size of so many GiB.
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib << 30)
    }
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
    /// In KiB, rounded down: the unit of libvirt's memory elements.
    pub const fn kib(self) -> u64 {
        self.0 >> 10
    }
    /// In MiB, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl FromStr for ByteSize {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let wrong = || SizeError::Size(text.to_owned());
        if number.is_empty() {
            return Err(wrong());
        }
        if let Some((name, _)) = UNITS.iter().find(|(name, _)| {
            let first = &name[..1];
            unit.eq_ignore_ascii_case(first) || unit.eq_ignore_ascii_case(&format!("{first}B"))
        }) {
            return Err(SizeError::Decimal { text: text.to_owned(), hint: format!("{number}{name}") });
        }
        let (_, shift) = UNITS.iter().find(|(name, _)| unit == *name).ok_or_else(wrong)?;
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(ByteSize)
            .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    /// With the largest unit that needs no fraction; plain bytes where none does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 >= 1 << shift && self.0.trailing_zeros() >= *shift) {
            Some((name, shift)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

super::as_string!(ByteSize, "a size with its unit", "^[0-9]+ ?(KiB|MiB|GiB|TiB)$", "16GiB");

/// Permission bits of a file, with setuid, setgid and sticky (`0644`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode(u32);

impl Mode {
    /// The mode of these bits; those above 07777 are cut off.
    pub const fn new(bits: u32) -> Self {
        Self(bits & 0o7777)
    }
    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for Mode {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        ((3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b)))
            .then(|| u32::from_str_radix(text, 8).ok())
            .flatten()
            .map(Mode)
            .ok_or_else(|| SizeError::Mode(text.to_owned()))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

super::as_string!(Mode, "a file mode in octal", "^[0-7]{3,4}$", "0644");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_back_as_they_were_written() {
        for text in ["1KiB", "512MiB", "16GiB", "2TiB", "1536MiB"] {
            assert_eq!(text.parse::<ByteSize>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("16 GiB".parse::<ByteSize>(), Ok(ByteSize::from_gib(16)));
    }

    #[test]
    fn a_size_without_a_binary_unit_is_refused_with_what_to_write() {
        let said = |text: &str| text.parse::<ByteSize>().map_err(|e| e.to_string());
        assert_eq!(said("16G"), Err("`16G` is ambiguous; write `16GiB`".to_owned()));
        assert_eq!(said("16gb"), Err("`16gb` is ambiguous; write `16GiB`".to_owned()));
        for text in ["", "16", "GiB", "1.5GiB", "-1GiB", "16XiB"] {
            assert!(matches!(text.parse::<ByteSize>(), Err(SizeError::Size(_))), "{text}");
        }
        assert!(matches!("99999999999TiB".parse::<ByteSize>(), Err(SizeError::TooLarge(_))));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!("0640".parse::<Mode>().map(Mode::bits), Ok(0o640));
        assert_eq!("755".parse::<Mode>().map(|m| m.to_string()), Ok("0755".to_owned()));
        assert!("420x".parse::<Mode>().is_err() && "0888".parse::<Mode>().is_err());
    }
}
