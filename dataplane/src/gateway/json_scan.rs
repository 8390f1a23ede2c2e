//! A quick look for the `model` of a JSON object, which gives up where there is anything to decide.
//!
//! What it finds, a full parser finds as well: it checks the syntax of the whole text. What it does not
//! understand at once (an escape in a name, a second `model`, deep nesting, every error) it leaves to the
//! parser, and with it every message. It knows nothing of requests.

use std::ops::Range;

use super::json_string::JsonString;

/// Deepest nesting that it follows.
const DEEPEST: u32 = 64;

/// Where the string stands, quotes included, that is the `model` of this object.
pub(super) fn model(text: &str) -> Option<Range<usize>> {
    let mut scan = Scan {
        text: text.as_bytes(),
        at: 0,
    };
    let mut model = None;
    scan.open(b'{')?;
    if !scan.closes(b'}') {
        loop {
            let key = scan.plain_string()?;
            scan.open(b':')?;
            scan.blank();
            if text.get(key) == Some("\"model\"") {
                // The second one is for the parser to refuse.
                if model.is_some() {
                    return None;
                }
                model = Some(scan.plain_string()?);
            } else {
                scan.value(DEEPEST)?;
            }
            if !scan.goes_on(b'}')? {
                break;
            }
        }
    }
    scan.blank();
    model.filter(|_| scan.at == text.len())
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn blank(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    /// This byte, after blanks.
    fn open(&mut self, wanted: u8) -> Option<()> {
        self.blank();
        self.take(wanted).then_some(())
    }

    /// Whether something that was just opened is empty.
    fn closes(&mut self, end: u8) -> bool {
        self.blank();
        self.take(end)
    }

    /// After an element: whether another one comes.
    fn goes_on(&mut self, end: u8) -> Option<bool> {
        self.blank();
        match self.take(b',') {
            true => {
                self.blank();
                Some(true)
            }
            false => self.take(end).then_some(false),
        }
    }

    /// A string without escapes.
    fn plain_string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        (!self.string()?.escapes).then_some(start..self.at)
    }

    fn string(&mut self) -> Option<JsonString> {
        self.take(b'"').then_some(())?;
        let string = JsonString::find(self.text.get(self.at..)?)?;
        self.at += string.len;
        Some(string)
    }

    fn value(&mut self, deeper: u32) -> Option<()> {
        match self.peek()? {
            b'"' => self.string().map(drop),
            b'{' => self.elements(b'}', deeper.checked_sub(1)?),
            b'[' => self.elements(b']', deeper.checked_sub(1)?),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn elements(&mut self, end: u8, deeper: u32) -> Option<()> {
        self.at += 1;
        if self.closes(end) {
            return Some(());
        }
        loop {
            if end == b'}' {
                self.string()?;
                self.open(b':')?;
                self.blank();
            }
            self.value(deeper)?;
            if !self.goes_on(end)? {
                return Some(());
            }
        }
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.text.get(self.at..)?.starts_with(word).then_some(())?;
        self.at += word.len();
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Some(())
    }

    /// One or more.
    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}
