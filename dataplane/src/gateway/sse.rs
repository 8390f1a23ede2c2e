//! Server-sent events, looked at in passing: where one ends, whether the stream said that it is over, whether it
//! tells of an error, how many tokens it took. Pure.
//!
//! It is fed in pieces, cut anywhere, and keeps some hundred bytes, however long an event is. What it finds does not
//! depend on the cuts. Most events come whole and in one line: of those only what may matter is looked at (see
//! [`Needles`]). It must not keep, change or delay a byte of what passes.

use std::sync::LazyLock;

use memchr::{memchr2, memmem};

use super::facts::{Facts, Finish, JsonScan, Short, Usage};

/// Longest line of a stream.
pub(super) const LONGEST_LINE: usize = 1 << 20;
/// Longest event.
pub(super) const LONGEST_EVENT: usize = 4 << 20;
/// What ends the streams of chats and completions.
const DONE: &[u8; 6] = b"[DONE]";

/// How a stream says what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `data:` alone, and `[DONE]` at the end: chats and completions.
    Plain,
    /// Events have a type, in `event:` or in their JSON; one of them is the last.
    Typed,
    /// One or the other, as the engine has it: what is heard and what is spoken.
    Either,
}

/// What a stream said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// It said that it is over.
    pub(super) ended: bool,
    /// It told of an error.
    pub(super) error: bool,
    pub(super) usage: Usage,
    pub(super) finish: Option<Finish>,
    /// Events that may have carried a token.
    pub(super) events: u64,
}

/// What came is longer than anything that is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooLong {
    #[error("a line of more than {LONGEST_LINE} bytes")]
    Line,
    #[error("an event of more than {LONGEST_EVENT} bytes")]
    Event,
}

/// An event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// How many bytes of the piece belong to it and to what came before.
    pub(super) at: usize,
    /// It has the usage and no choices.
    pub(super) usage_alone: bool,
}

/// What a type says of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    #[default]
    Unnamed,
    Delta,
    /// Its data may say something.
    Telling,
    Last,
    LastFailed,
    Error,
    Other,
}

impl Kind {
    fn of(name: &Short) -> Self {
        match name.get() {
            b"" if name.is_empty() => Self::Unnamed,
            b"error" => Self::Error,
            b"message_start" | b"message_delta" => Self::Telling,
            b"response.failed" => Self::LastFailed,
            b"response.completed"
            | b"response.incomplete"
            | b"response.cancelled"
            | b"message_stop"
            | b"transcript.text.done"
            | b"speech.audio.done" => Self::Last,
            name if name.ends_with(b"delta") => Self::Delta,
            _ => Self::Other,
        }
    }
}

/// What the line is that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Field {
    /// Its first bytes, which tell.
    #[default]
    Name,
    /// After `data:`, or `event:`: perhaps a blank, which does not count.
    DataStart,
    Data,
    EventStart,
    Event,
    Comment,
    Other,
}

/// The scanner.
#[derive(Debug)]
pub(super) struct Sse {
    dialect: Dialect,
    seen: Seen,
    field: Field,
    /// Of the line under way, up to a colon.
    label: Short,
    line: usize,
    event: usize,
    after_cr: bool,
    /// There are lines of an event that has not ended, comments aside.
    open: bool,
    name: Short,
    has_data: bool,
    /// The first bytes of the data.
    head: Short,
    json: JsonScan,
}

impl Sse {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            seen: Seen::default(),
            field: Field::Name,
            label: Short::default(),
            line: 0,
            event: 0,
            after_cr: false,
            open: false,
            name: Short::default(),
            has_data: false,
            head: Short::default(),
            json: JsonScan::default(),
        }
    }

    pub(super) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// What is added here belongs to no event of theirs.
    pub(super) fn is_between_events(&self) -> bool {
        self.line == 0 && !self.open
    }

    /// The next piece. Told of each event that ends in it.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut ended: impl FnMut(Ended),
    ) -> Result<(), TooLong> {
        let mut at = 0;
        while let Some(rest) = piece.get(at..).filter(|rest| !rest.is_empty()) {
            if std::mem::take(&mut self.after_cr) && rest.first() == Some(&b'\n') {
                at += 1;
                continue;
            }
            if let Some((used, usage_alone)) = self.whole_event(rest) {
                at += used;
                ended(Ended { at, usage_alone });
                continue;
            }
            let end = memchr2(b'\n', b'\r', rest);
            let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            self.grow(text.len())?;
            self.text(text);
            let Some(end) = end else { break };
            self.after_cr = rest.get(end) == Some(&b'\r');
            at += end + 1;
            if let Some(usage_alone) = self.end_line() {
                // The second half of CRLF is its, too.
                if self.after_cr && piece.get(at) == Some(&b'\n') {
                    self.after_cr = false;
                    at += 1;
                }
                ended(Ended { at, usage_alone });
            }
        }
        Ok(())
    }

    /// An event of one line of data that is here from end to end: how long it is.
    fn whole_event(&mut self, rest: &[u8]) -> Option<(usize, bool)> {
        let data = match self.line == 0 && !self.has_data {
            true => rest.strip_prefix(b"data:")?,
            false => return None,
        };
        let end = memchr2(b'\n', b'\r', data)?;
        let (text, after) = data.split_at_checked(end)?;
        let blank = match after {
            [b'\n', b'\n', ..] => 2,
            [b'\r', b'\n', b'\r', b'\n', ..] => 4,
            _ => return None,
        };
        // Longer ones are measured, and refused, elsewhere.
        if text.len() > LONGEST_LINE - 5 {
            return None;
        }
        let text = text.strip_prefix(b" ").unwrap_or(text);
        let kind = Kind::of(&self.name);
        let facts = match self.dialect {
            _ if text.starts_with(DONE) => None,
            Dialect::Plain if NEEDLES.none_in(text) => Some(Facts::default()),
            Dialect::Typed | Dialect::Either if matches!(kind, Kind::Delta | Kind::Other) => {
                Some(Facts::default())
            }
            _ => Some(JsonScan::all(text)),
        };
        let usage_alone = self.dispatch(kind, facts.as_ref());
        Some((5 + end + blank, usage_alone))
    }

    fn grow(&mut self, bytes: usize) -> Result<(), TooLong> {
        self.line += bytes;
        self.event += bytes;
        match (self.line > LONGEST_LINE, self.event > LONGEST_EVENT) {
            (true, _) => Err(TooLong::Line),
            (_, true) => Err(TooLong::Event),
            _ => Ok(()),
        }
    }

    /// A part of a line.
    fn text(&mut self, text: &[u8]) {
        let mut rest = text;
        while let Some(first) = rest.first() {
            let used = match self.field {
                Field::Name => match *first == b':' {
                    true => {
                        self.name_ends();
                        1
                    }
                    false => {
                        let colon = memchr::memchr(b':', rest).unwrap_or(rest.len());
                        self.label.push(rest.get(..colon).unwrap_or_default());
                        colon
                    }
                },
                Field::DataStart | Field::EventStart => {
                    self.field = match self.field {
                        Field::DataStart => Field::Data,
                        _ => Field::Event,
                    };
                    usize::from(*first == b' ')
                }
                Field::Data => {
                    self.data(rest);
                    rest.len()
                }
                Field::Event => {
                    self.name.push(rest);
                    rest.len()
                }
                Field::Comment | Field::Other => rest.len(),
            };
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    /// The name of a field ended, with a colon or with its line.
    fn name_ends(&mut self) {
        self.field = match self.label.get() {
            b"" if self.label.is_empty() => Field::Comment,
            b"data" => {
                if self.has_data {
                    self.data(b"\n");
                }
                self.has_data = true;
                Field::DataStart
            }
            b"event" => {
                self.name.clear();
                Field::EventStart
            }
            _ => Field::Other,
        };
        self.label.clear();
    }

    fn data(&mut self, text: &[u8]) {
        self.head.push_some(text, DONE.len());
        self.json.push(text);
    }

    /// `Some` if that ended an event: whether it had the usage and no choices.
    fn end_line(&mut self) -> Option<bool> {
        let length = std::mem::take(&mut self.line);
        if self.field == Field::Name && length > 0 {
            self.name_ends();
        }
        let field = std::mem::take(&mut self.field);
        if length > 0 {
            self.open |= field != Field::Comment;
            if !self.open {
                self.event = 0;
            }
            return None;
        }
        let kind = Kind::of(&self.name);
        if !self.has_data {
            self.clear();
            return Some(false);
        }
        let facts = match (self.dialect, kind) {
            _ if self.head.get() == DONE => None,
            (Dialect::Typed | Dialect::Either, Kind::Delta | Kind::Other) => Some(Facts::default()),
            _ => Some(*self.json.facts()),
        };
        Some(self.dispatch(kind, facts.as_ref()))
    }

    /// An event with data is over; without facts it is [`DONE`].
    fn dispatch(&mut self, kind: Kind, facts: Option<&Facts>) -> bool {
        let Some(facts) = facts else {
            self.seen.ended = true;
            self.clear();
            return false;
        };
        let kind = match (self.dialect, kind) {
            (Dialect::Typed | Dialect::Either, Kind::Unnamed) => Kind::of(&facts.kind),
            _ => kind,
        };
        let seen = &mut self.seen;
        let error = facts.error || matches!(kind, Kind::Error | Kind::LastFailed);
        seen.error |= error;
        seen.usage.update(facts.usage);
        let usage_alone = facts.usage.is_known() && facts.no_choices && !error;
        match self.dialect {
            Dialect::Plain => {
                seen.finish = facts.finish.or(seen.finish);
                seen.events += u64::from(!error && !usage_alone);
            }
            Dialect::Typed => {
                seen.finish = facts.stop.or(seen.finish);
                seen.ended |= matches!(kind, Kind::Last | Kind::LastFailed);
                seen.events += u64::from(kind == Kind::Delta);
            }
            Dialect::Either => {
                seen.finish = facts.stop.or(facts.finish).or(seen.finish);
                seen.ended |= matches!(kind, Kind::Last | Kind::LastFailed);
                let plain = kind == Kind::Unnamed && !error && !usage_alone;
                seen.events += u64::from(kind == Kind::Delta || plain);
            }
        }
        self.clear();
        usage_alone
    }

    fn clear(&mut self) {
        (self.event, self.open) = (0, false);
        self.name.clear();
        if std::mem::take(&mut self.has_data) {
            self.head.clear();
            self.json = JsonScan::default();
        }
    }
}

/// Text without which an event of a chat says nothing that is looked for. A key is told from the same word within a
/// string by its quotes, which would be escaped there.
struct Needles {
    usage: memmem::Finder<'static>,
    error: memmem::Finder<'static>,
    finish: memmem::Finder<'static>,
}

static NEEDLES: LazyLock<Needles> = LazyLock::new(|| Needles {
    usage: memmem::Finder::new("\"usage\""),
    error: memmem::Finder::new("\"error\""),
    finish: memmem::Finder::new(FINISH),
});
const FINISH: &str = "\"finish_reason\"";

impl Needles {
    fn none_in(&self, text: &[u8]) -> bool {
        // The last of them is in every event, and null in all but one.
        let finishes = |at: usize| {
            let value = text.get(at + FINISH.len()..).unwrap_or_default();
            value.trim_ascii_start().strip_prefix(b":").is_none_or(|v| {
                let value = v.trim_ascii_start();
                !value.starts_with(b"null")
            })
        };
        self.usage.find(text).is_none()
            && self.error.find(text).is_none()
            && !self.finish.find_iter(text).any(finishes)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "sse_oracle.rs"]
pub(crate) mod oracle;

#[cfg(test)]
#[path = "sse_tests.rs"]
mod tests;
