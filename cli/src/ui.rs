//! The one place that writes to the terminal. A reader that has gone away is not an error.

use std::io::{IsTerminal as _, Write as _, stderr};

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

/// Goes back to the beginning of the line and empties it.
const ANEW: &str = "\r\x1b[2K";

/// What is under way, for people: on a terminal one line that is written anew, otherwise a line for each change.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    shown: String,
}

impl Progress {
    /// Shows where it is now.
    pub(crate) fn show(&mut self, text: &str) {
        if self.shown == text {
            return;
        }
        text.clone_into(&mut self.shown);
        match stderr().is_terminal() {
            true => drop(write!(stderr(), "{ANEW}{text}")),
            false => error(text),
        }
    }

    /// Nothing more is under way.
    pub(crate) fn end(&self) {
        if stderr().is_terminal() {
            drop(write!(stderr(), "{ANEW}"));
        }
    }
}
