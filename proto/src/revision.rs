//! The names of a configuration: its epoch (lineage), revision (number) and digest (content).

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::violation::InvalidValue;

/// Number of a whole configuration. Only grows within an [`Epoch`]; 0 is before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// Before the first revision.
    pub const ZERO: Self = Self(0);

    /// Names a revision.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next one. Saturates: 2^64 writes do not happen.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Lineage of a store: 1 to 64 lower-case hex digits, drawn when the store is made or restored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Epoch(String);

impl Epoch {
    /// Checks and keeps the text.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidValue> {
        let text = text.into();
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if text.is_empty() || text.len() > 64 || !text.chars().all(hex) {
            return Err(InvalidValue::new("must be 1 to 64 lower-case hex digits"));
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of an encoded configuration.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidValue> {
        bytes.try_into().map(Self).map_err(|_| {
            InvalidValue::new(format!(
                "a digest has 32 bytes, this one has {}",
                bytes.len()
            ))
        })
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn from_hex(text: &str) -> Result<Self, InvalidValue> {
        let bad = || InvalidValue::new("a digest is 64 lower-case hex digits");
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        Self::from_slice(&bytes.ok_or_else(bad)?).map_err(|_| bad())
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A configuration, named in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Lineage.
    pub epoch: Epoch,
    /// Number.
    pub revision: Revision,
    /// Content.
    pub digest: Digest,
}

impl Position {
    /// True of a later one of the same lineage.
    #[must_use]
    pub fn is_after(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.revision > other.revision
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.digest.to_string();
        let epoch = self.epoch.as_str();
        let short = |text: &str| text.chars().take(8).collect::<String>();
        write!(f, "{}@{}/{}", self.revision, short(epoch), short(&digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_print_as_hex_and_read_back() {
        let digest = Digest::of(b"");
        assert!(digest.to_string().starts_with("e3b0c44298fc1c14"));
        assert_eq!(Digest::from_slice(digest.as_bytes()), Ok(digest));
        assert!(Digest::from_slice(&[0; 31]).is_err());
        let hex = digest.to_string();
        assert_eq!(Digest::from_hex(&hex), Ok(digest));
        for bad in ["", "é", &hex[1..], &hex[2..], &hex.to_uppercase()] {
            assert!(Digest::from_hex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn epochs_are_hex() {
        assert!(Epoch::new("0af9").is_ok());
        for bad in ["", "XY", "0 1"] {
            assert!(Epoch::new(bad).is_err(), "{bad}");
        }
    }
}
