//! Reads a form with a file (`multipart/form-data`, RFC 7578) in one pass, without a copy of anything but
//! short fields.
//!
//! Parsers of forms are lenient in different ways, and what one takes for a field is another's file. This one
//! takes what every client of the field sends and nothing else: no preamble, no epilogue, no folded lines, no
//! backslashes in names, no `filename*`, no encodings. What it accepts is read alike by Python's
//! `python-multipart`, which is what vLLM reads forms with; a test compares them.

use std::ops::Range;

use memchr::memmem;

use super::{
    error::GatewayError,
    json_body::whole_number,
    reading::{Key, ModelField, Reading, Seen},
};

/// Most parts of a form.
const MOST_PARTS: usize = 64;
/// Longest head of a part.
const LONGEST_HEAD: usize = 8 << 10;
/// Longest value of a field that is read.
const LONGEST_FIELD: usize = 1 << 10;
/// Longest boundary (RFC 2046 §5.1.1).
const LONGEST_BOUNDARY: usize = 70;

type Read<T> = Result<T, GatewayError>;

fn wrong<T>(what: &'static str) -> Read<T> {
    Err(GatewayError::NotAForm { what })
}

/// The boundary of this content type, whose parameters are given. Other parameters than a charset of UTF-8
/// would mean something to some parser.
pub(super) fn boundary(parameters: &str) -> Option<String> {
    let mut boundary = None;
    for parameter in parameters.split(';') {
        let (name, value) = parameter.trim_matches([' ', '\t']).split_once('=')?;
        let value = match value.strip_prefix('"') {
            Some(quoted) => quoted.strip_suffix('"')?,
            None => value,
        };
        match name {
            name if name.eq_ignore_ascii_case("charset") => {
                value.eq_ignore_ascii_case("utf-8").then_some(())?;
            }
            name if name.eq_ignore_ascii_case("boundary") && boundary.is_none() => {
                let known =
                    |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_-./=?".contains(&byte);
                let fits = (1..=LONGEST_BOUNDARY).contains(&value.len());
                boundary = (fits && value.bytes().all(known)).then(|| value.to_owned());
                boundary.as_ref()?;
            }
            _ => return None,
        }
    }
    boundary
}

/// Reads it.
pub(crate) fn read(body: &[u8], boundary: &str) -> Read<Reading> {
    let mut form = Form {
        seen: Seen::default(),
        reading: Reading::default(),
    };
    let delimiter = format!("\r\n--{boundary}");
    let delimiter = delimiter.as_bytes();
    let finder = memmem::Finder::new(delimiter);
    let opening = delimiter.get(2..).unwrap_or_default();
    if !body.starts_with(opening) {
        return wrong("it does not begin with its boundary");
    }
    let mut at = opening.len();
    for _ in 0..=MOST_PARTS {
        let rest = body.get(at..).unwrap_or_default();
        if rest.starts_with(b"--") {
            return match rest {
                b"--" | b"--\r\n" => Ok(form.reading),
                _ => wrong("something stands after its last boundary"),
            };
        }
        if !rest.starts_with(b"\r\n") {
            return wrong("a boundary is followed by something other than a line's end");
        }
        at += 2;
        let (part, content) = head(body, at)?;
        let content_bytes = body.get(content..).unwrap_or_default();
        let Some(length) = finder.find(content_bytes) else {
            return wrong("a part has no boundary after it");
        };
        form.take(&part, body, content..content + length)?;
        at = content + length + delimiter.len();
    }
    wrong("it has more than 64 parts")
}

/// What the head of a part says.
#[derive(Debug, Default)]
struct Part {
    name: String,
    is_file: bool,
}

/// The head that begins here, and where its content begins.
fn head(body: &[u8], start: usize) -> Read<(Part, usize)> {
    let rest = body.get(start..).unwrap_or_default();
    let rest = rest.get(..LONGEST_HEAD).unwrap_or(rest);
    let Some(length) = memmem::find(rest, b"\r\n\r\n") else {
        return wrong("the head of a part does not end, or is longer than 8 KiB");
    };
    let mut part = None;
    let mut content_type = false;
    let lines = rest.get(..length).unwrap_or_default();
    let Ok(lines) = std::str::from_utf8(lines) else {
        return wrong("the head of a part is not UTF-8");
    };
    for line in lines.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            return wrong("a line in the head of a part has no colon");
        };
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if name.is_empty()
            || !name.bytes().all(token)
            || value.contains(|c: char| c.is_control() && c != '\t')
        {
            return wrong("a line in the head of a part has a byte that does not belong there");
        }
        let value = value.trim_matches([' ', '\t']);
        if name.eq_ignore_ascii_case("content-disposition") {
            if part.is_some() {
                return wrong("a part has two content-dispositions");
            }
            part = Some(disposition(value)?);
        } else if name.eq_ignore_ascii_case("content-type") {
            if std::mem::replace(&mut content_type, true) {
                return wrong("a part has two content-types");
            }
        } else if name.eq_ignore_ascii_case("content-transfer-encoding")
            && !["binary", "8bit", "7bit"].contains(&value)
        {
            return wrong("a part is encoded");
        }
    }
    match part {
        Some(part) => Ok((part, start + length + 4)),
        None => wrong("a part has no content-disposition"),
    }
}

/// `form-data; name="…"; filename="…"`.
fn disposition(value: &str) -> Read<Part> {
    if value.contains('\\') {
        return wrong("a part's name has a backslash");
    }
    let Some(mut rest) = value.strip_prefix("form-data") else {
        return wrong("a part is no form-data");
    };
    let (mut name, mut is_file) = (None, false);
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            break;
        }
        let parameter = rest
            .strip_prefix(';')
            .map(|rest| rest.trim_start_matches([' ', '\t']));
        let Some((key, after)) = parameter.and_then(|parameter| parameter.split_once('=')) else {
            return wrong("a part's content-disposition cannot be read");
        };
        let value = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"'),
            None => {
                let token = |c: char| c.is_ascii_alphanumeric() || "-_.[]".contains(c);
                let end = after.find(|c| !token(c)).unwrap_or(after.len());
                after
                    .split_at_checked(end)
                    .filter(|(token, _)| !token.is_empty())
            }
        };
        let Some((value, after)) = value else {
            return wrong("a part's content-disposition cannot be read");
        };
        rest = after;
        match key {
            "name" if name.is_none() => name = Some(value.to_owned()),
            "filename" if !is_file => is_file = true,
            _ => {
                return wrong(
                    "a part's content-disposition has a parameter twice, or one that is not known",
                );
            }
        }
    }
    match name {
        Some(name) => Ok(Part { name, is_file }),
        None => wrong("a part has no name"),
    }
}

struct Form {
    seen: Seen,
    reading: Reading,
}

impl Form {
    fn take(&mut self, part: &Part, body: &[u8], at: Range<usize>) -> Read<()> {
        let Some((name, key)) = self.seen.key(&part.name)? else {
            return Ok(());
        };
        let content = body.get(at.clone()).unwrap_or_default();
        let text = std::str::from_utf8(content).ok();
        let text = text.filter(|text| text.len() <= LONGEST_FIELD && !part.is_file);
        let Some(text) = text else {
            return Err(GatewayError::wrong_value(name, "a short text, not a file"));
        };
        match key {
            Key::Model => {
                self.reading.model = Some(ModelField {
                    name: text.to_owned(),
                    at,
                    quoted: false,
                });
            }
            Key::Stream => {
                self.reading.stream = match text {
                    "true" | "True" | "1" => true,
                    "false" | "False" | "0" => false,
                    _ => return Err(GatewayError::wrong_value(name, "`true` or `false`")),
                };
            }
            key => {
                let Some(limit) = self.reading.limits.of(key) else {
                    return Err(GatewayError::wrong_value(name, "absent from a form"));
                };
                let number = whole_number(text.as_bytes());
                let wanted = GatewayError::wrong_value(name, "a non-negative integer");
                *limit = Some(number.ok_or(wanted)?);
            }
        }
        Ok(())
    }
}
