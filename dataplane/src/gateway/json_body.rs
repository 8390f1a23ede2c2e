//! Reads a JSON body in one pass, without building a tree. What it says is the same for every engine, or it is
//! refused: see `reading.rs`.

use std::ops::Range;

use super::{
    error::GatewayError,
    json_scan::{Fault, Quoted, Scan, unescape},
    reading::{Key, ModelField, Reading, Seen},
};

impl From<Fault> for GatewayError {
    fn from(fault: Fault) -> Self {
        Self::NotJson {
            what: fault.what,
            at: fault.at,
        }
    }
}

/// Reads it.
pub(crate) fn read(body: &[u8]) -> Result<Reading, GatewayError> {
    let mut reader = Reader {
        body,
        scan: Scan::new(body),
        seen: Seen::default(),
        reading: Reading::default(),
    };
    if let Some(what) = odd_beginning(body) {
        return Err(GatewayError::NotJson { what, at: 0 });
    }
    if reader.scan.open_object()? {
        loop {
            reader.entry()?;
            if !reader.scan.next_key()? {
                break;
            }
        }
    }
    reader.scan.end()?;
    Ok(reader.reading)
}

/// What Python would read all the same.
fn odd_beginning(body: &[u8]) -> Option<&'static str> {
    match body {
        [0xef, 0xbb, 0xbf, ..] => Some("a byte order mark"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] => {
            Some("UTF-16 or UTF-32; send UTF-8")
        }
        [] => Some("nothing at all"),
        _ => None,
    }
}

struct Reader<'a> {
    body: &'a [u8],
    scan: Scan<'a>,
    seen: Seen,
    reading: Reading,
}

impl<'a> Reader<'a> {
    /// One key and its value.
    fn entry(&mut self) -> Result<(), GatewayError> {
        let key = self.scan.key()?;
        let found = match self.plain(&key) {
            Some(key) => self.seen.key(key)?,
            None => {
                let key = unescape(self.body, &key).unwrap_or_default();
                self.seen.key(&key)?
            }
        };
        let Some((name, key)) = found else {
            self.scan.value(2)?;
            return Ok(());
        };
        match key {
            Key::Model => self.reading.model = self.model()?,
            Key::Stream => self.reading.stream = self.flag(name)?,
            Key::StreamOptions => self.stream_options(name)?,
            Key::PreviousResponse => {
                let at = self.scan.string_value()?;
                self.reading.previous_response = match at {
                    Some(id) => unescape(self.body, &id),
                    None => self.null(name, "a string").map(|()| None)?,
                };
            }
            key => {
                let number = self.number(name)?;
                if let Some(limit) = self.reading.limits.of(key) {
                    *limit = number;
                }
            }
        }
        Ok(())
    }

    /// What a string without escapes says.
    fn plain(&self, quoted: &Quoted) -> Option<&'a str> {
        let within = quoted.at.start + 1..quoted.at.end - 1;
        let text = self.body.get(within).filter(|_| quoted.plain)?;
        std::str::from_utf8(text).ok()
    }

    fn model(&mut self) -> Result<Option<ModelField>, GatewayError> {
        let Some(quoted) = self.scan.string_value()? else {
            self.scan.value(2)?;
            return Err(GatewayError::ModelMissing);
        };
        let name = match self.plain(&quoted) {
            Some(name) => name.to_owned(),
            None => unescape(self.body, &quoted).unwrap_or_default(),
        };
        Ok(Some(ModelField {
            name,
            at: quoted.at,
            quoted: true,
        }))
    }

    fn text_of(&self, at: Range<usize>) -> &'a [u8] {
        self.body.get(at).unwrap_or_default()
    }

    /// `true` or `false`; `null` is as good as nothing.
    fn flag(&mut self, name: &'static str) -> Result<bool, GatewayError> {
        let at = self.scan.value(2)?;
        match self.text_of(at) {
            b"true" => Ok(true),
            b"false" | b"null" => Ok(false),
            _ => Err(GatewayError::wrong_value(name, "`true` or `false`")),
        }
    }

    /// A non-negative integer; `null` is as good as nothing, and so is the -1 with which clients of llama.cpp ask for as
    /// much as there is.
    fn number(&mut self, name: &'static str) -> Result<Option<u64>, GatewayError> {
        let at = self.scan.value(2)?;
        match self.text_of(at) {
            b"null" | b"-1" => Ok(None),
            text => whole_number(text)
                .map(Some)
                .ok_or(GatewayError::wrong_value(
                    name,
                    "a non-negative integer, or -1",
                )),
        }
    }

    fn null(&mut self, name: &'static str, wanted: &'static str) -> Result<(), GatewayError> {
        let at = self.scan.value(2)?;
        match self.text_of(at) {
            b"null" => Ok(()),
            _ => Err(GatewayError::wrong_value(name, wanted)),
        }
    }

    fn stream_options(&mut self, name: &'static str) -> Result<(), GatewayError> {
        let start = self.scan.at();
        if self.scan.peek() != Some(b'{') {
            self.null(name, "an object")?;
            self.reading.stream_options = Some(start..self.scan.at());
            return Ok(());
        }
        let mut seen = false;
        if self.scan.open_object()? {
            loop {
                let key = self.scan.key()?;
                let said = match self.plain(&key) {
                    Some(said) => Some(said.to_owned()),
                    None => unescape(self.body, &key),
                };
                let said = said.unwrap_or_default();
                if said.eq_ignore_ascii_case(INCLUDE_USAGE) {
                    if said != INCLUDE_USAGE {
                        return Err(GatewayError::OtherwiseWritten {
                            name: INCLUDE_USAGE,
                        });
                    }
                    if std::mem::replace(&mut seen, true) {
                        return Err(GatewayError::Twice {
                            name: INCLUDE_USAGE,
                        });
                    }
                    self.reading.include_usage = self.flag(INCLUDE_USAGE)?;
                } else {
                    self.scan.value(3)?;
                }
                if !self.scan.next_key()? {
                    break;
                }
            }
        }
        self.reading.stream_options = Some(start..self.scan.at());
        Ok(())
    }
}

const INCLUDE_USAGE: &str = "include_usage";

/// Digits and nothing else, that fit.
pub(super) fn whole_number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok()
}

/// What the beginning of a JSON text says at this path of keys, outermost first.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This.
    Text(String),
    /// Nothing yet: more of the text is needed.
    NotYet,
    /// Nothing, and more will not change it.
    Never,
}

/// Longest word that faults at its beginning when it is cut: a surrogate pair.
const LONGEST_CUT: usize = 12;

/// Looks for a string in a text of which only the beginning may be there.
pub(super) fn find_text(text: &[u8], path: &[&str]) -> Found {
    let mut scan = Scan::new(text);
    match walk(&mut scan, text, path) {
        Ok(Some(found)) => Found::Text(found),
        Ok(None) => Found::Never,
        // It may only have been cut short: at its end, or in a word or an escape just before.
        Err(_) if scan.is_at_end() => Found::NotYet,
        Err(_) if scan.at() > 0 && text.len() - scan.at() <= LONGEST_CUT => Found::NotYet,
        Err(_) => Found::Never,
    }
}

fn walk(scan: &mut Scan<'_>, text: &[u8], path: &[&str]) -> Result<Option<String>, Fault> {
    let Some((wanted, deeper)) = path.split_first() else {
        if scan.is_at_end() {
            scan.value(2)?;
        }
        let string = scan.string_value()?;
        return Ok(string.and_then(|quoted| unescape(text, &quoted)));
    };
    if !scan.open_object()? {
        return Ok(None);
    }
    loop {
        let key = scan.key()?;
        if unescape(text, &key).as_deref() == Some(*wanted) {
            return walk(scan, text, deeper);
        }
        scan.value(2)?;
        if !scan.next_key()? {
            return Ok(None);
        }
    }
}

#[cfg(test)]
#[path = "json_body_tests.rs"]
mod tests;
