//! Clients' keys: how one is written, what it may do, and the version of all of them.
//!
//! `fbk_<12 id>_<43 secret><6 checksum>`, letters and digits throughout: 43 of 62 hold 256 bits. The checksum (CRC-32 of
//! what stands before it) lets scanners of source code tell a key from what only looks like one; nobody here relies on
//! it. It makes no key and knows no secret of the fleet; hashing is [`crate::secret`]'s.

use std::{
    collections::BTreeSet,
    fmt,
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use crate::{
    ids::ModelId,
    limits,
    revision::{Digest, Epoch},
    violation::InvalidValue,
};

/// How every key begins.
pub const PREFIX: &str = "fbk_";
/// Characters of the public part, the secret, and the checksum.
const ID: usize = 12;
const SECRET: usize = 43;
const CHECKSUM: usize = 6;
/// Length of a key.
pub const KEY_CHARS: usize = PREFIX.len() + ID + 1 + SECRET + CHECKSUM;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The public part of a key: 12 letters and digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; ID]);

impl KeyId {
    /// Checks and keeps the text.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        let bytes = <[u8; ID]>::try_from(text.as_bytes()).ok();
        let good = bytes.filter(|bytes| bytes.iter().all(u8::is_ascii_alphanumeric));
        good.map(Self).ok_or_else(|| {
            InvalidValue::new(format!(
                "must be the {ID} letters and digits that follow `{PREFIX}` in a key"
            ))
        })
    }

    /// Of random bytes.
    #[must_use]
    pub fn of_random(random: &[u8; 9]) -> Self {
        let mut digits = [b'0'; ID];
        to_base62(random, &mut digits);
        Self(digits)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The text of a key with this public part and these random bytes.
#[must_use]
pub fn compose(id: &KeyId, random: &[u8; 32]) -> String {
    let mut secret = [b'0'; SECRET];
    to_base62(random, &mut secret);
    let secret = std::str::from_utf8(&secret).unwrap_or_default();
    let text = format!("{PREFIX}{id}_{secret}");
    let mut checksum = [b'0'; CHECKSUM];
    to_base62(&crc32(text.as_bytes()).to_be_bytes(), &mut checksum);
    text + std::str::from_utf8(&checksum).unwrap_or_default()
}

/// The public part of what may be a key, by its form alone.
#[must_use]
pub fn public_part(text: &str) -> Option<KeyId> {
    let rest = text
        .strip_prefix(PREFIX)
        .filter(|_| text.len() == KEY_CHARS)?;
    let (id, rest) = rest.split_at_checked(ID)?;
    let secret = rest.strip_prefix('_')?;
    let plain = secret.bytes().all(|byte| byte.is_ascii_alphanumeric());
    KeyId::new(id).ok().filter(|_| plain)
}

/// True of a key whose checksum fits: what scanners look for.
#[must_use]
pub fn is_well_formed(text: &str) -> bool {
    let Some((body, said)) = text
        .len()
        .checked_sub(CHECKSUM)
        .and_then(|at| text.split_at_checked(at))
    else {
        return false;
    };
    let mut checksum = [b'0'; CHECKSUM];
    to_base62(&crc32(body.as_bytes()).to_be_bytes(), &mut checksum);
    public_part(text).is_some() && said.as_bytes() == checksum
}

/// The number that the bytes are, as so many digits of base 62; of what does not fit the end.
fn to_base62(bytes: &[u8], digits: &mut [u8]) {
    let mut number = bytes.to_vec();
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let here = rest << 8 | u32::from(*byte);
            // Less than 256: the rest is less than 62.
            *byte = u8::try_from(here / 62).unwrap_or(u8::MAX);
            rest = here % 62;
        }
        *digit = DIGITS.get(rest as usize).copied().unwrap_or(b'0');
    }
    zeroize::Zeroize::zeroize(&mut number);
}

/// CRC-32 as in Ethernet and zip.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// The name of a key, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyName(String);

impl KeyName {
    /// Checks and keeps the text.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidValue> {
        let text = text.into();
        let length = text.chars().count();
        if length > limits::KEY_NAME_CHARS {
            return Err(InvalidValue::new(format!(
                "{length} characters long, at most {} are allowed",
                limits::KEY_NAME_CHARS
            )));
        }
        match text.chars().any(char::is_control) {
            true => Err(InvalidValue::new("must not have control characters")),
            false => Ok(Self(text)),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What becomes of a key's requests where there are more than can be served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// After the others.
    Low,
    /// In turn.
    #[default]
    Normal,
    /// Before the others.
    High,
}

/// What a key may do. Limits hold on each worker by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySpec {
    /// For people.
    pub name: KeyName,
    /// By id or alias. Empty: all.
    pub models: BTreeSet<ModelId>,
    /// When it ends.
    pub expires: Option<SystemTime>,
    /// Most requests in a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Most tokens in a minute.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Most requests in flight.
    pub max_concurrent: Option<NonZeroU32>,
    /// Against other keys.
    pub priority: Priority,
    /// Against other keys of the same priority.
    pub weight: KeyWeight,
}

impl KeySpec {
    /// Whether it may use what is asked for under this name; of a registered model that is its id.
    #[must_use]
    pub fn allows(&self, asked: &str, id: Option<&ModelId>) -> bool {
        self.models.is_empty()
            || self.models.contains(asked)
            || id.is_some_and(|id| self.models.contains(id))
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// A share: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyWeight(u32);

impl KeyWeight {
    /// Checks the range.
    pub fn new(weight: u32) -> Result<Self, InvalidValue> {
        in_range(weight, &limits::KEY_WEIGHT).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for KeyWeight {
    fn default() -> Self {
        Self(1)
    }
}

/// The number, if it is in the range.
pub(crate) fn in_range(
    number: u32,
    range: &std::ops::RangeInclusive<u32>,
) -> Result<u32, InvalidValue> {
    match range.contains(&number) {
        true => Ok(number),
        false => Err(InvalidValue::new(format!(
            "{number} is outside {} to {}",
            range.start(),
            range.end()
        ))),
    }
}

/// Furthest expiry from now that makes sense to a clock.
pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// All keys at one version, named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysPosition {
    /// Lineage of the store.
    pub epoch: Epoch,
    /// Number of the last change; 0 before the first.
    pub version: u64,
    /// Content.
    pub digest: Digest,
}

impl fmt::Display for KeysPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epoch: String = self.epoch.as_str().chars().take(8).collect();
        write!(f, "keys {}@{epoch}", self.version)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_has_its_form_and_every_slip_shows(
            id in any::<[u8; 9]>(), random in any::<[u8; 32]>(), at in 0..KEY_CHARS
        ) {
            let id = KeyId::of_random(&id);
            let text = compose(&id, &random);
            prop_assert_eq!(text.len(), KEY_CHARS);
            prop_assert_eq!(public_part(&text), Some(id));
            prop_assert!(is_well_formed(&text));
            let mut slipped = text.into_bytes();
            slipped[at] = if slipped[at] == b'a' { b'b' } else { b'a' };
            let slipped = String::from_utf8(slipped).unwrap();
            prop_assert!(!is_well_formed(&slipped));
        }

        #[test]
        fn no_text_is_trouble(text in ".{0,80}") {
            prop_assert!(public_part(&text).is_none());
            prop_assert!(!is_well_formed(&text));
        }
    }

    #[test]
    fn the_checksum_is_the_one_of_zip() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn all_256_bits_are_in_the_secret() {
        let id = KeyId::of_random(&[7; 9]);
        let mut all = std::collections::BTreeSet::new();
        for bit in 0..256 {
            let mut random = [0xFF; 32];
            random[bit / 8] ^= 1 << (bit % 8);
            all.insert(compose(&id, &random));
        }
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn an_id_allows_all_names_of_its_model_and_an_alias_itself() {
        let model = |text: &str| ModelId::new(text).unwrap();
        let of = |names: &[&str]| KeySpec {
            models: names.iter().map(|name| model(name)).collect(),
            ..KeySpec::default()
        };
        let id = model("llama");
        assert!(of(&[]).allows("anything", None));
        assert!(of(&["llama"]).allows("default", Some(&id)));
        assert!(of(&["default"]).allows("default", Some(&id)));
        assert!(!of(&["default"]).allows("llama", Some(&id)));
        assert!(!of(&["llama"]).allows("gpt", None));
    }
}
