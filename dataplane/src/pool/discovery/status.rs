//! How a source does: for `/pools`, metrics and the log.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// Most servers that are told of which are not used.
const TOLD: usize = 16;

/// Why a source, or a server of it, is not as it should be. The label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// A name cannot be resolved.
    Resolve,
    /// The list's server cannot be reached.
    Connect,
    /// The list did not come in time.
    Timeout,
    /// Its server answered with another status.
    Status,
    /// It pointed elsewhere.
    Redirect,
    /// It is of another type.
    ContentType,
    /// It is too large.
    TooLarge,
    /// It is no list.
    Malformed,
    /// The file cannot be read.
    File,
    /// The source itself is where nothing is dialled.
    Blocked,
    /// It says that there are no servers, and there were some.
    Empty,
    /// Servers are outside of what is allowed.
    Refused,
    /// There are more servers than are used.
    TooMany,
}

impl Why {
    /// The label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Redirect => "redirect",
            Self::ContentType => "content_type",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::File => "file",
            Self::Blocked => "blocked",
            Self::Empty => "empty",
            Self::Refused => "refused",
            Self::TooMany => "too_many",
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) why: Why,
    /// For people; no text of a list is in it.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(why: Why, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { why, text }
    }
}

/// A server that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedServer {
    /// Where it is.
    pub url: String,
    /// Why not.
    pub why: String,
}

/// How a source does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// When it was last understood.
    pub(crate) understood: Option<Instant>,
    /// When its servers are of an earlier process.
    pub(crate) from_disk: bool,
    /// It says that there are none, and those that were there serve on.
    pub(crate) kept_alive: bool,
    /// What was wrong at the last look.
    pub(crate) failure: Option<Failure>,
    /// Servers that are not used, at most a few of them.
    pub(crate) refused: Vec<RefusedServer>,
    /// How many there are.
    pub(crate) refused_count: usize,
    /// Those that came back too often.
    pub(crate) calming: usize,
    /// Those for which there is no room.
    pub(crate) no_room: usize,
}

impl Status {
    /// Those that are not used.
    pub(super) fn refuse(&mut self, refused: Vec<RefusedServer>) {
        self.refused_count = refused.len();
        self.refused = refused;
        self.refused.truncate(TOLD);
    }

    /// In one word.
    pub(crate) fn word(&self) -> &'static str {
        match (self.understood, &self.failure) {
            _ if self.kept_alive => "empty",
            (None, _) if self.from_disk => "last_known_good",
            (None, _) => "waiting",
            (Some(_), Some(_)) => "stale",
            (Some(_), None) => "fresh",
        }
    }

    /// Since when it was not understood.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.understood.map(|at| at.elapsed())
    }
}
