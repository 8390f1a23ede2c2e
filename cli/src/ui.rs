//! The one place that writes to the terminal. A reader that has gone away is not an error.

use std::io::Write as _;

/// For people and programs: standard output.
pub(crate) fn say(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// For people: standard error.
pub(crate) fn error(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// How this program was called, so that what is printed to be copied also runs.
pub(crate) fn program() -> String {
    let called = std::env::args().next().filter(|name| !name.contains(' '));
    called.unwrap_or_else(|| "forebay".to_owned())
}
