//! The text that can be checked: numbered words, each with a running checksum, and a last one that says
//! how many they were. It depends on the request's name alone, so that an answer to somebody else's
//! request is damage, too. Pure: no IO, no clock.
//!
//! ```text
//! 0.3f9a01bc.77d0e412 1.08cc51e9.1b2a90f3 end.2.1b2a90f3
//! ```

use std::fmt::Write as _;

use serde::Serialize;

/// What is wrong with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Damage {
    /// A word is not what it should be.
    Altered,
    /// A word came more than once.
    Repeated,
    /// The words came in another order.
    Swapped,
    /// A word in the middle is not there.
    Missing,
    /// The end is not there.
    Short,
    /// More came after the end.
    Trailing,
}

/// One word's content and the checksum up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    content: u32,
    sum: u32,
}

/// The words of a request, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    state: u64,
    sum: u32,
}

impl Words {
    pub(crate) fn of(name: &str) -> Self {
        // FNV-1a spreads the name; what follows is splitmix64.
        let state = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { state, sum: 0 }
    }

    fn next(&mut self) -> Word {
        let content = self.mix();
        // A multiplication between two additions makes the sum depend on the order.
        self.sum = self.sum.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ content;
        Word {
            content,
            sum: self.sum,
        }
    }

    fn mix(&mut self) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }
}

/// The text of an answer, token by token.
#[derive(Debug)]
pub(crate) struct Text {
    words: Words,
    next: u32,
    count: u32,
}

impl Text {
    pub(crate) fn of(name: &str, count: u32) -> Self {
        Self {
            words: Words::of(name),
            next: 0,
            count,
        }
    }

    /// The next token; the last one carries the end.
    pub(crate) fn token(&mut self) -> String {
        let Word { content, sum } = self.words.next();
        let mut text = format!("{}.{content:08x}.{sum:08x} ", self.next);
        self.next = self.next.saturating_add(1);
        if self.next == self.count {
            // Writing to a string cannot fail.
            let _ = write!(text, "end.{}.{sum:08x} ", self.count);
        }
        text
    }
}

/// Looks at a text as it arrives, in pieces of any length.
#[derive(Debug)]
pub(crate) struct Checker {
    expected: Vec<Word>,
    seen: Vec<bool>,
    /// What should come next if all is well.
    next: usize,
    begun: String,
    ended: bool,
    altered: bool,
    repeated: bool,
    disordered: bool,
    trailing: bool,
}

/// Longer than any word; what is longer is not one of ours.
const LONGEST_WORD: usize = 64;

impl Checker {
    pub(crate) fn of(name: &str, count: u32) -> Self {
        let mut words = Words::of(name);
        let expected: Vec<Word> = (0..count).map(|_| words.next()).collect();
        Self {
            seen: vec![false; expected.len()],
            expected,
            next: 0,
            begun: String::new(),
            ended: false,
            altered: false,
            repeated: false,
            disordered: false,
            trailing: false,
        }
    }

    /// More of the text.
    pub(crate) fn push(&mut self, text: &str) {
        for piece in text.split_inclusive(' ') {
            match piece.strip_suffix(' ') {
                Some(last) => {
                    self.begun.push_str(last);
                    let word = std::mem::take(&mut self.begun);
                    self.word(&word);
                }
                None if self.begun.len() + piece.len() <= LONGEST_WORD => {
                    self.begun.push_str(piece);
                }
                None => self.altered = true,
            }
        }
    }

    fn word(&mut self, word: &str) {
        if self.ended {
            self.trailing = true;
            return;
        }
        let mut parts = word.split('.');
        let parsed = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("end"), Some(count), Some(sum), None) => return self.end(count, sum),
            (Some(n), Some(content), Some(sum), None) => number(n, content, sum),
            _ => None,
        };
        let Some((n, found)) = parsed else {
            self.altered = true;
            return;
        };
        match (self.expected.get(n), self.seen.get_mut(n)) {
            (Some(expected), Some(seen)) if *expected == found => {
                self.repeated |= *seen;
                self.disordered |= n != self.next;
                *seen = true;
                self.next = n + 1;
            }
            _ => self.altered = true,
        }
    }

    fn end(&mut self, count: &str, sum: &str) {
        self.ended = true;
        let right = count.parse() == Ok(self.expected.len())
            && u32::from_str_radix(sum, 16).ok() == self.expected.last().map(|word| word.sum);
        self.altered |= !right;
    }

    /// The verdict, once everything is there.
    pub(crate) fn verdict(&self) -> Result<(), Damage> {
        let all = self.seen.iter().all(|seen| *seen);
        let damage = if self.altered {
            Damage::Altered
        } else if self.repeated {
            Damage::Repeated
        } else if self.trailing || !self.begun.is_empty() && self.ended {
            Damage::Trailing
        } else if self.disordered && all {
            Damage::Swapped
        } else if self.disordered || self.ended && !all {
            Damage::Missing
        } else if !self.ended || !all {
            Damage::Short
        } else {
            return Ok(());
        };
        Err(damage)
    }
}

fn number(n: &str, content: &str, sum: &str) -> Option<(usize, Word)> {
    let word = Word {
        content: u32::from_str_radix(content, 16).ok()?,
        sum: u32::from_str_radix(sum, 16).ok()?,
    };
    Some((n.parse().ok()?, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "zl.7.42";
    const COUNT: u32 = 6;

    fn tokens(name: &str, count: u32) -> Vec<String> {
        let mut text = Text::of(name, count);
        (0..count).map(|_| text.token()).collect()
    }

    fn verdict(text: &str) -> Result<(), Damage> {
        let mut checker = Checker::of(NAME, COUNT);
        checker.push(text);
        checker.verdict()
    }

    #[test]
    fn a_whole_text_is_well_however_it_is_cut_into_pieces() {
        let text = tokens(NAME, COUNT).concat();
        for size in [1, 2, 3, 7, 19, text.len()] {
            let mut checker = Checker::of(NAME, COUNT);
            for piece in text.as_bytes().chunks(size) {
                checker.push(std::str::from_utf8(piece).unwrap());
            }
            assert_eq!(checker.verdict(), Ok(()), "in pieces of {size}");
        }
    }

    #[test]
    fn every_kind_of_damage_is_seen() {
        let tokens = tokens(NAME, COUNT);
        let without = |n: usize| {
            let mut tokens = tokens.clone();
            tokens.remove(n);
            tokens.concat()
        };
        let mut swapped = tokens.clone();
        swapped.swap(1, 3);
        let mut twice = tokens.clone();
        twice.insert(3, tokens[2].clone());
        assert_eq!(verdict(&without(0)), Err(Damage::Missing));
        assert_eq!(verdict(&without(2)), Err(Damage::Missing));
        assert_eq!(verdict(&without(5)), Err(Damage::Short));
        assert_eq!(verdict(&tokens[..3].concat()), Err(Damage::Short));
        assert_eq!(verdict(""), Err(Damage::Short));
        assert_eq!(verdict(&swapped.concat()), Err(Damage::Swapped));
        assert_eq!(verdict(&twice.concat()), Err(Damage::Repeated));
        let more = format!("{}more ", tokens.concat());
        assert_eq!(verdict(&more), Err(Damage::Trailing));
        let half = format!("{}mo", tokens.concat());
        assert_eq!(verdict(&half), Err(Damage::Trailing));
    }

    /// Every single character, replaced by another one.
    #[test]
    fn no_altered_character_goes_unseen() {
        let text = tokens(NAME, COUNT).concat();
        for at in 0..text.len() {
            for other in ["0", "f", ".", " ", "x"] {
                let mut altered = text.clone();
                altered.replace_range(at..=at, other);
                assert!(
                    altered == text || verdict(&altered).is_err(),
                    "{other:?} at {at}: {altered}"
                );
            }
        }
    }

    #[test]
    fn the_answer_to_another_request_is_damage() {
        let text = tokens("zl.7.43", COUNT).concat();
        assert_eq!(verdict(&text), Err(Damage::Altered));
        let longer = tokens(NAME, COUNT + 1).concat();
        assert_eq!(verdict(&longer), Err(Damage::Altered));
        assert_eq!(verdict(&"x".repeat(1_000)), Err(Damage::Altered));
    }
}
