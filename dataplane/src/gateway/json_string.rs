//! Where a JSON string ends, 64 bytes at a time.
//!
//! Long prompts are long strings with an escape every line or so. Going from one special byte to the next costs
//! a mispredicted branch each; here every byte of a block becomes one bit of a word, and the question whether a
//! quote is escaped an addition. What it accepts is what RFC 8259 §7 calls a string, with its surrogates in
//! pairs. Whether bytes beyond ASCII are UTF-8 is for the caller to check: most strings have none.

use wide::u8x16;

const LANE: usize = 16;
/// Bytes that are looked at together: one for each bit of a word.
const BLOCK: usize = 64;
/// What may stand after a backslash.
const ESCAPES: [u8; 9] = *b"\"\\/bfnrtu";
const EVEN: u64 = u64::MAX / 3;

/// What a string looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JsonString {
    /// Its length, the closing quote included, the opening one not.
    pub(super) len: usize,
    /// Whether anything in it is escaped.
    pub(super) escapes: bool,
    /// Whether all of it is ASCII.
    pub(super) ascii: bool,
}

impl JsonString {
    /// Of a text that begins behind an opening quote. `None` if no well-formed string begins there.
    pub(super) fn find(text: &[u8]) -> Option<Self> {
        let (mut at, mut carry, mut escapes, mut high) = (0, 0, false, 0);
        // Where the second half of a surrogate pair must stand.
        let mut low_at = None;
        loop {
            let rest = text.get(at..)?;
            let block = match rest.first_chunk() {
                Some(block) => Block::new(block),
                // The zeros end what is not ended: they are no part of any string.
                None => Block::new(&padded(rest)?),
            };
            let quotes = block.bits(b'"');
            let escaped = escaped(block.bits(b'\\'), &mut carry);
            let ends = quotes & !escaped;
            // The bits before the first one that ends it, or all.
            let within = ends.wrapping_sub(1) & !ends;
            if block.controls() & within != 0 {
                return None;
            }
            high |= block.map(|lane| lane) & within;
            if escaped & within != 0 {
                escapes = true;
                let unicode = block.check_escapes(escaped & within)?;
                check_unicode(unicode, text, at, &mut low_at)?;
            }
            if ends != 0 {
                let len = at + ends.trailing_zeros() as usize + 1;
                let ascii = high == 0;
                return Some(Self {
                    len,
                    escapes,
                    ascii,
                });
            }
            at += BLOCK;
        }
    }
}

fn padded(rest: &[u8]) -> Option<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    block.get_mut(..rest.len())?.copy_from_slice(rest);
    Some(block)
}

/// Which bytes are escaped, given where backslashes stand. `carry` is 1 if the first one is escaped from the block
/// before. Adding the beginnings of runs of backslashes to the runs tells their parity (Langdale and Lemire,
/// "Parsing gigabytes of JSON per second", 2019, §3.1.1).
const fn escaped(backslashes: u64, carry: &mut u64) -> u64 {
    // One that is escaped itself escapes nothing.
    let backslashes = backslashes & !*carry;
    let follows = backslashes << 1 | *carry;
    let odd_starts = backslashes & !EVEN & !follows;
    let (ends, beyond) = odd_starts.overflowing_add(backslashes);
    *carry = beyond as u64;
    (EVEN ^ (ends << 1)) & follows
}

#[derive(Clone, Copy)]
struct Block([u8x16; BLOCK / LANE]);

impl Block {
    fn new(bytes: &[u8; BLOCK]) -> Self {
        let (lanes, _) = bytes.as_chunks::<LANE>();
        let lane = |n: usize| lanes.get(n).copied().unwrap_or_default().into();
        Self([lane(0), lane(1), lane(2), lane(3)])
    }

    /// A bit for each byte for which the lane has all bits set.
    fn map(&self, test: impl Fn(u8x16) -> u8x16) -> u64 {
        let lanes = self.0.iter().rev();
        lanes.fold(0, |bits, lane| {
            bits << LANE | u64::from(test(*lane).to_bitmask())
        })
    }

    fn bits(&self, byte: u8) -> u64 {
        self.map(|lane| lane.simd_eq(u8x16::splat(byte)))
    }

    fn controls(&self) -> u64 {
        let last = u8x16::splat(0x1f);
        self.map(|lane| lane.max(last).simd_eq(last))
    }

    /// What is escaped must be one of those. Gives where a `u` stands.
    fn check_escapes(&self, escaped: u64) -> Option<u64> {
        let known = |lane: u8x16| {
            let one_of = |known, byte: &u8| known | lane.simd_eq(u8x16::splat(*byte));
            ESCAPES.iter().fold(u8x16::ZERO, one_of)
        };
        (escaped & !self.map(known) == 0).then_some(())?;
        Some(escaped & self.bits(b'u'))
    }
}

/// Behind each `u` stand four digits, be it in the next block, and a surrogate is followed by its other half.
fn check_unicode(
    mut unicode: u64,
    text: &[u8],
    block: usize,
    low_at: &mut Option<usize>,
) -> Option<()> {
    while unicode != 0 {
        let at = block + unicode.trailing_zeros() as usize;
        let digits: &[u8; 4] = text.get(at + 1..)?.first_chunk()?;
        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
        // Surrogates are d800 to dfff; what is not one of them is done with here.
        let [first, second, ..] = digits;
        if first | 0x20 == b'd' && *second >= b'8' {
            check_surrogate(text, at, low_at)?;
        }
        unicode &= unicode - 1;
    }
    Some(())
}

/// A first half is followed by a second one, and a second half follows a first one.
fn check_surrogate(text: &[u8], at: usize, low_at: &mut Option<usize>) -> Option<()> {
    if code_unit(text, at + 1)? >= 0xdc00 {
        return (*low_at == Some(at)).then_some(());
    }
    let low = at + 6;
    let follows = text.get(at + 5..=low)? == b"\\u";
    let paired = (0xdc00..0xe000).contains(&code_unit(text, low + 1)?);
    *low_at = Some(low);
    (follows && paired).then_some(())
}

/// Four hexadecimal digits.
fn code_unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at.checked_add(4)?)?;
    digits.iter().try_fold(0, |unit, digit| {
        Some(unit << 4 | char::from(*digit).to_digit(16)?)
    })
}

/// What is wrong, and how far into it, with a text that begins behind an opening quote and is no string: for
/// messages, byte by byte.
pub(super) fn fault(text: &[u8]) -> (usize, &'static str) {
    let mut at = 0;
    loop {
        let escape = match text.get(at) {
            None => return (at, "a string that does not end"),
            Some(b'"') => return (at, "a string"),
            Some(0..0x20) => return (at, "a control character in a string"),
            Some(b'\\') => text.get(at + 1),
            Some(_) => {
                at += 1;
                continue;
            }
        };
        let unit = |at: usize| {
            let escaped = text.get(at..at + 2) == Some(b"\\u");
            code_unit(text, at + 2).filter(|_| escaped)
        };
        at += match (escape, unit(at)) {
            (Some(b'u'), Some(0xd800..0xdc00))
                if unit(at + 6).is_some_and(|unit| (0xdc00..0xe000).contains(&unit)) =>
            {
                12
            }
            (Some(b'u'), Some(0xd800..0xe000)) => {
                return (at, "half of a surrogate pair");
            }
            (Some(b'u'), Some(_)) => 6,
            (Some(byte), _) if *byte != b'u' && ESCAPES.contains(byte) => 2,
            _ => return (at, "an escape that JSON does not know"),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Byte by byte.
    fn slowly(text: &[u8]) -> Option<JsonString> {
        let (mut at, mut escapes) = (0, false);
        let unit = |at: usize| {
            let digits = std::str::from_utf8(text.get(at..at + 6)?).ok()?;
            let digits = digits.strip_prefix("\\u")?;
            let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(digits, 16).ok().filter(|_| hex)
        };
        loop {
            match *text.get(at)? {
                b'"' => {
                    return Some(JsonString {
                        len: at + 1,
                        escapes,
                        ascii: text[..at].is_ascii(),
                    });
                }
                b'\\' => {
                    escapes = true;
                    at += match *text.get(at + 1)? {
                        b'u' => match unit(at)? {
                            0xd800..0xdc00 => {
                                (0xdc00..0xe000).contains(&unit(at + 6)?).then_some(12)?
                            }
                            0xdc00..0xe000 => return None,
                            _ => 6,
                        },
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                        _ => return None,
                    };
                }
                0..0x20 => return None,
                _ => at += 1,
            }
        }
    }

    #[test]
    fn every_byte_is_seen_at_every_place_of_a_block() {
        for byte in 0..=u8::MAX {
            for at in 0..2 * BLOCK {
                for before in [b'x', b'\\', 0xc3] {
                    let mut text = vec![b'x'; 3 * BLOCK];
                    text[at] = byte;
                    text[at.saturating_sub(1)] = before;
                    text[2 * BLOCK + 7] = b'"';
                    assert_eq!(JsonString::find(&text), slowly(&text), "{byte:#x} at {at}");
                }
            }
        }
    }

    #[test]
    fn runs_of_backslashes_of_every_length_end_where_they_should() {
        for (start, run) in
            (0..BLOCK).flat_map(|start| (0..2 * BLOCK + 2).map(move |run| (start, run)))
        {
            let text = ["x".repeat(start), "\\".repeat(run), "\"y\"".to_owned()].concat();
            assert_eq!(
                JsonString::find(text.as_bytes()),
                slowly(text.as_bytes()),
                "{run} at {start}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn it_agrees_with_going_byte_by_byte(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "\\", "\\", "\"", "\\\"", "\\\\", "\\u00e9", "\\u12", "\\ud83d", "\\ude00", "\\uD83D\\uDE00", "\\n", "\\x", "u", "n", "é", "\u{1f}",
                "a", "a longer text without anything", " and one that is longer than a whole block of sixty-four bytes",
            ]), 0..24),
        ) {
            let text = pieces.concat();
            let found = JsonString::find(text.as_bytes());
            prop_assert_eq!(found, slowly(text.as_bytes()), "{}", text);
            prop_assert_eq!(found.is_some(), fault(text.as_bytes()).1 == "a string", "{}", text);
        }
    }
}
