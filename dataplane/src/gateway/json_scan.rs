//! Goes over a JSON text once, strictly, without building anything: what is there, and where.
//!
//! What it accepts every parser accepts, and understands alike: RFC 8259 with UTF-8 throughout, surrogates in
//! pairs, numbers that a double can hold, and no deeper than [`DEEPEST`]. It knows nothing of requests.

use std::ops::Range;

use super::json_string::{self, JsonString};

/// Deepest nesting, the outermost value included.
pub(super) const DEEPEST: u32 = 64;
/// Numbers of so many digits, and without an exponent, are known to be in range.
const SURELY_IN_RANGE: usize = 300;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) what: &'static str,
}

/// What is wanted of a text that may not be all there.
pub(super) type Scanned<T> = Result<T, Fault>;

/// A string, quotes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quoted {
    pub(super) at: Range<usize>,
    /// It has no escapes: what is between the quotes is what it says.
    pub(super) plain: bool,
}

/// A place in a text.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// At its beginning.
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// Where it is.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Whether all was read: a text that faults there may only be cut short.
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    fn fault<T>(&self, what: &'static str) -> Scanned<T> {
        let at = self.at;
        Err(Fault { at, what })
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    pub(super) fn blank(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, wanted: u8, what: &'static str) -> Scanned<()> {
        match self.take(wanted) {
            true => Ok(()),
            false => self.fault(what),
        }
    }

    /// The beginning of an object; true if it has a first key, at which it stops.
    pub(super) fn open_object(&mut self) -> Scanned<bool> {
        self.blank();
        self.expect(b'{', "something other than `{`")?;
        self.blank();
        Ok(!self.take(b'}'))
    }

    /// A key and its colon; it stops at the value.
    pub(super) fn key(&mut self) -> Scanned<Quoted> {
        let key = self.quoted("something other than a key in quotes")?;
        self.blank();
        self.expect(b':', "something other than `:`")?;
        self.blank();
        Ok(key)
    }

    /// After a value of an object: true if another key comes, at which it stops.
    pub(super) fn next_key(&mut self) -> Scanned<bool> {
        self.goes_on(b'}')
    }

    /// The end of the text.
    pub(super) fn end(&mut self) -> Scanned<()> {
        self.blank();
        match self.is_at_end() {
            true => Ok(()),
            false => self.fault("something after the end"),
        }
    }

    /// A string, if that is the value.
    pub(super) fn string_value(&mut self) -> Scanned<Option<Quoted>> {
        match self.peek() {
            Some(b'"') => self.quoted("").map(Some),
            _ => Ok(None),
        }
    }

    fn quoted(&mut self, else_what: &'static str) -> Scanned<Quoted> {
        let start = self.at;
        let string = self.string(else_what)?;
        Ok(Quoted {
            at: start..self.at,
            plain: !string.escapes,
        })
    }

    fn string(&mut self, else_what: &'static str) -> Scanned<JsonString> {
        self.expect(b'"', else_what)?;
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(string) = JsonString::find(rest) else {
            let (within, what) = json_string::fault(rest);
            self.at += within;
            return self.fault(what);
        };
        if !string.ascii
            && let Err(error) = std::str::from_utf8(rest.get(..string.len).unwrap_or_default())
        {
            self.at += error.valid_up_to();
            return self.fault("a byte that is not UTF-8");
        }
        self.at += string.len;
        Ok(string)
    }

    /// After an element: whether another one comes.
    fn goes_on(&mut self, end: u8) -> Scanned<bool> {
        self.blank();
        if self.take(b',') {
            self.blank();
            return Ok(true);
        }
        match self.take(end) {
            true => Ok(false),
            false => self.fault("something other than `,` or the end of an object or array"),
        }
    }

    /// A value at this depth, whatever it is. Gives where it stands.
    pub(super) fn value(&mut self, depth: u32) -> Scanned<Range<usize>> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => self.string("").map(drop),
            Some(b'{') => self.elements(b'}', depth),
            Some(b'[') => self.elements(b']', depth),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.fault("something other than a value"),
        }?;
        Ok(start..self.at)
    }

    fn elements(&mut self, end: u8, depth: u32) -> Scanned<()> {
        if depth > DEEPEST {
            return self.fault("nesting deeper than 64");
        }
        self.at += 1;
        self.blank();
        if self.take(end) {
            return Ok(());
        }
        loop {
            if end == b'}' {
                self.key()?;
            }
            self.value(depth + 1)?;
            if !self.goes_on(end)? {
                return Ok(());
            }
        }
    }

    fn word(&mut self, word: &[u8]) -> Scanned<()> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return self.fault("something other than a value");
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Scanned<()> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        let exponent = self.take(b'e') || self.take(b'E');
        if exponent {
            let _sign = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        if exponent || self.at - start > SURELY_IN_RANGE {
            let text = self.text.get(start..self.at).unwrap_or_default();
            let number = std::str::from_utf8(text).ok();
            let number = number.and_then(|text| text.parse::<f64>().ok());
            // Some parsers make infinity of it, others give up.
            if !number.is_some_and(f64::is_finite) {
                self.at = start;
                return self.fault("a number out of range");
            }
        }
        Ok(())
    }

    /// One or more.
    fn digits(&mut self) -> Scanned<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        match self.at > start {
            true => Ok(()),
            false => self.fault("a number without a digit where one must stand"),
        }
    }
}

/// What a string says, of this text. `None` for what is no string.
pub(super) fn unescape(text: &[u8], quoted: &Quoted) -> Option<String> {
    serde_json::from_slice(text.get(quoted.at.clone())?).ok()
}
