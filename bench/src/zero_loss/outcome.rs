//! How a request ended, and the counts of that. Pure: no IO, no clock.

use std::{collections::BTreeMap, error::Error, fmt, io, time::Duration};

use serde::Serialize;

use super::{
    answer::Cut,
    histogram::{Histogram, Quantiles},
    sequence::Damage,
};

/// How a request ended. Each ends in exactly one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With a whole answer.
    Well(Times),
    /// Without an answer, or with another status than 200.
    Failed(Failure),
    /// The connection was closed or reset under the request, before a byte of an answer.
    Reset(Connection),
    /// The answer began and is not whole.
    Cut(Cut),
}

/// How long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// From the time it was due to its answer: the whole of a plain one, the first bytes of a stream.
    pub(crate) answer: Duration,
    /// The longest wait between two frames of a stream.
    pub(crate) silence: Option<Duration>,
}

/// Why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// No connection to the gateway.
    Connect,
    /// Another status than 200.
    Status(u16),
    /// No answer in time.
    Timeout,
    /// What came is not HTTP.
    Protocol,
    /// Not sent, because too many were in flight.
    TooManyInFlight,
}

/// Which kind of connection was reset under a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    /// It had carried a request before: closed by the gateway while it was idle.
    Reused,
    /// Opened for this request.
    New,
}

impl Failure {
    fn label(self) -> String {
        match self {
            Self::Connect => "connect".to_owned(),
            Self::Status(status) => format!("status_{status}"),
            Self::Timeout => "timeout".to_owned(),
            Self::Protocol => "protocol".to_owned(),
            Self::TooManyInFlight => "too_many_in_flight".to_owned(),
        }
    }
}

impl Cut {
    fn label(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::NoDone => "no_done",
            Self::ErrorEvent => "error_event",
            Self::Malformed => "malformed",
            Self::Timeout => "timeout",
            Self::Text(Damage::Altered) => "text_altered",
            Self::Text(Damage::Repeated) => "text_repeated",
            Self::Text(Damage::Swapped) => "text_swapped",
            Self::Text(Damage::Missing) => "text_missing",
            Self::Text(Damage::Short) => "text_short",
            Self::Text(Damage::Trailing) => "text_trailing",
        }
    }
}

/// For the message of a first try.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well(_) => f.write_str("it did"),
            Self::Failed(failure) => write!(f, "it failed ({})", failure.label()),
            Self::Reset(_) => f.write_str("the connection was closed before an answer"),
            Self::Cut(cut) => write!(f, "its answer is not whole ({})", cut.label()),
        }
    }
}

/// What an error before the head of an answer means.
pub(crate) fn before_the_head(error: &hyper::Error, connection: Connection) -> Ended {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_io(error) {
        return Ended::Reset(connection);
    }
    Ended::Failed(Failure::Protocol)
}

/// Somewhere below, the socket failed.
fn is_io(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<io::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// How the requests of a run ended.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    requests: u64,
    streams: u64,
    ok: u64,
    failed: BTreeMap<Failure, u64>,
    cut: BTreeMap<Cut, u64>,
    reset: Resets,
    answer: Histogram,
    silence: Histogram,
}

/// Connections closed or reset under a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resets {
    /// That had carried a request before.
    pub reused: u64,
    /// That were opened for the request.
    pub new: u64,
}

/// How the requests ended, to be told.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcomes {
    /// Requests made.
    pub requests: u64,
    /// Of these, streams.
    pub streams: u64,
    /// With a whole answer.
    pub ok: u64,
    /// Without an answer, by reason.
    pub failed: BTreeMap<String, u64>,
    /// Answers that began and are not whole, by reason.
    pub cut: BTreeMap<String, u64>,
    /// The connection was closed or reset under the request, before a byte of an answer.
    pub reset: Resets,
    /// From the time a request was due to its answer, in milliseconds: the whole of a plain one, the
    /// first bytes of a stream.
    pub answer_ms: Quantiles,
    /// The longest wait between two frames of each stream, in milliseconds.
    pub silence_ms: Quantiles,
}

impl Tally {
    pub(crate) fn add(&mut self, stream: bool, ended: Ended) {
        self.requests += 1;
        self.streams += u64::from(stream);
        match ended {
            Ended::Well(times) => {
                self.ok += 1;
                self.answer.record(times.answer);
                if let Some(silence) = times.silence {
                    self.silence.record(silence);
                }
            }
            Ended::Failed(failure) => *self.failed.entry(failure).or_default() += 1,
            Ended::Reset(Connection::Reused) => self.reset.reused += 1,
            Ended::Reset(Connection::New) => self.reset.new += 1,
            Ended::Cut(cut) => *self.cut.entry(cut).or_default() += 1,
        }
    }

    pub(crate) fn outcomes(&self) -> Outcomes {
        let failed = self.failed.iter();
        Outcomes {
            requests: self.requests,
            streams: self.streams,
            ok: self.ok,
            failed: failed.map(|(why, n)| (why.label(), *n)).collect(),
            cut: self
                .cut
                .iter()
                .map(|(why, n)| (why.label().to_owned(), *n))
                .collect(),
            reset: self.reset,
            answer_ms: self.answer.quantiles(),
            silence_ms: self.silence.quantiles(),
        }
    }
}

impl Outcomes {
    /// Requests without an answer.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Answers that are not whole.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.cut.values().sum()
    }

    /// Requests that did not end well, whatever the reason.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.failed() + self.cut() + self.reset.reused + self.reset.new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_counts_once() {
        let well = Ended::Well(Times {
            answer: Duration::from_millis(3),
            silence: Some(Duration::from_millis(7)),
        });
        let mut tally = Tally::default();
        for (stream, ended) in [
            (true, well),
            (false, Ended::Failed(Failure::Status(502))),
            (false, Ended::Failed(Failure::Status(502))),
            (false, Ended::Failed(Failure::Connect)),
            (false, Ended::Reset(Connection::Reused)),
            (false, Ended::Reset(Connection::New)),
            (true, Ended::Cut(Cut::NoDone)),
            (true, Ended::Cut(Cut::Text(Damage::Swapped))),
        ] {
            tally.add(stream, ended);
        }
        let outcomes = tally.outcomes();
        assert_eq!(
            (outcomes.requests, outcomes.streams, outcomes.ok),
            (8, 3, 1)
        );
        assert_eq!(outcomes.failed["status_502"], 2);
        assert_eq!(outcomes.failed["connect"], 1);
        assert_eq!(outcomes.cut["text_swapped"], 1);
        assert_eq!(outcomes.reset, Resets { reused: 1, new: 1 });
        assert_eq!(outcomes.ok + outcomes.lost(), outcomes.requests);
        assert_eq!(outcomes.answer_ms.max, 3.0);
        assert_eq!(outcomes.silence_ms.max, 7.0);
    }
}
