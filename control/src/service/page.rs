//! Pages of lists: their size, and where the next one begins.

use forebay_proto::{Violations, limits};
use tonic::Status;

use super::status;

/// Entries of a page unless asked otherwise.
const USUAL: usize = 50;
/// Most entries of a page.
const MOST: usize = 1_000;
const BAD_TOKEN: &str = "is not one of ours; use the next_page_token of the answer before";

/// Which page is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Most entries.
    pub(super) size: usize,
    /// The last entry of the page before it.
    pub(super) after: Option<String>,
}

impl Page {
    /// Reads what a client sent: size 0 is 50, above 1000 is 1000.
    pub(super) fn read(size: i32, token: &str) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let size = match usize::try_from(size) {
            Ok(0) => USUAL,
            Ok(size) => size.min(MOST),
            Err(_) => {
                let message = format!("{size} is negative; use 0 for the default of {USUAL}");
                violations.add("page_size", message);
                USUAL
            }
        };
        let after = read_token(token);
        if after.is_none() && !token.is_empty() {
            violations.add("page_token", BAD_TOKEN);
        }
        violations.finish(Some(Self { size, after }))
    }
}

/// The token of the page after this entry. It does not show what it is: clients must not make their
/// own.
pub(super) fn token(last: &str) -> String {
    last.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// A token that is well-formed, and of another list.
pub(super) fn bad_token() -> Status {
    let mut violations = Violations::new();
    violations.add("page_token", BAD_TOKEN);
    status::violated(&violations)
}

fn read_token(token: &str) -> Option<String> {
    if token.is_empty() || token.len() > 2 * limits::MODEL_ID_CHARS {
        return None;
    }
    let bytes: Option<Vec<u8>> = token.as_bytes().chunks(2).map(hex_byte).collect();
    String::from_utf8(bytes?).ok()
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(pair).ok();
    let digits = digits.filter(|digits| digits.len() == 2 && !digits.starts_with('+'))?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back_and_others_refused() {
        let page = Page::read(5_000, &token("llama-3.1:8b")).unwrap();
        assert_eq!(page.after.as_deref(), Some("llama-3.1:8b"));
        assert_eq!(page.size, 1_000);
        assert_eq!(
            Page::read(0, "").unwrap(),
            Page {
                size: 50,
                after: None
            }
        );
        for bad in ["x", "zz", "6", "+1", "ff", &"61".repeat(200)] {
            let violations = Page::read(-1, bad).unwrap_err();
            let fields: Vec<_> = violations
                .as_slice()
                .iter()
                .map(|v| v.field.as_str())
                .collect();
            assert_eq!(fields, ["page_size", "page_token"], "{bad}");
        }
    }
}
