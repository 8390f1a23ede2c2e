//! Exact counts, taken where the thing happens.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

/// Most `traceparent` headers remembered.
const REMEMBERED: usize = 1_000;

/// Counts at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MockStats {
    /// Connections accepted.
    pub opened: u64,
    /// Connections open now.
    pub open: u64,
    /// Most connections open at once.
    pub peak_open: u64,
    /// Connections closed because they were idle for too long.
    pub closed_idle: u64,
    /// Connections closed by a fault.
    pub closed_fault: u64,
    /// Connections that the peer reset.
    pub closed_reset: u64,
    /// Connections closed by the peer, or with the server.
    pub closed_other: u64,
    /// Requests for inference.
    pub requests: u64,
    /// Requests in flight now.
    pub in_flight: u64,
    /// Most requests in flight at once.
    pub peak_in_flight: u64,
    /// Requests above `max_in_flight`.
    pub over_limit: u64,
    /// Requests whose answer was made to its end.
    pub completed: u64,
    /// Requests whose client went away before.
    pub cancelled: u64,
    /// Streams begun.
    pub streams: u64,
    /// Tokens made.
    pub tokens: u64,
    /// Requests by model.
    pub by_model: BTreeMap<String, u64>,
    /// The newest `traceparent` headers.
    pub traceparents: VecDeque<String>,
    /// Time since the last cancel.
    #[serde(skip)]
    pub last_cancel: Option<Instant>,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    Idle,
    Fault,
    Reset,
    Other,
}

#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<MockStats>);

impl Counts {
    pub(crate) fn snapshot(&self) -> MockStats {
        self.0.lock().clone()
    }

    pub(crate) fn reset(&self) {
        let mut stats = self.0.lock();
        let (open, in_flight) = (stats.open, stats.in_flight);
        *stats = MockStats {
            open,
            peak_open: open,
            in_flight,
            ..MockStats::default()
        };
    }

    pub(crate) fn opened(&self) {
        let mut stats = self.0.lock();
        stats.opened += 1;
        stats.open += 1;
        stats.peak_open = stats.peak_open.max(stats.open);
    }

    pub(crate) fn closed(&self, why: Closed) {
        let mut stats = self.0.lock();
        stats.open = stats.open.saturating_sub(1);
        match why {
            Closed::Idle => stats.closed_idle += 1,
            Closed::Fault => stats.closed_fault += 1,
            Closed::Reset => stats.closed_reset += 1,
            Closed::Other => stats.closed_other += 1,
        }
    }

    /// A request begins. False if that is one too many.
    pub(crate) fn begin(&self, most: Option<usize>, traceparent: Option<&str>) -> bool {
        let mut stats = self.0.lock();
        stats.requests += 1;
        stats.in_flight += 1;
        stats.peak_in_flight = stats.peak_in_flight.max(stats.in_flight);
        if let Some(traceparent) = traceparent {
            stats.traceparents.push_back(traceparent.to_owned());
            if stats.traceparents.len() > REMEMBERED {
                stats.traceparents.pop_front();
            }
        }
        let over = most.is_some_and(|most| stats.in_flight > most as u64);
        stats.over_limit += u64::from(over);
        !over
    }

    pub(crate) fn model(&self, model: &str) {
        *self.0.lock().by_model.entry(model.to_owned()).or_default() += 1;
    }

    pub(crate) fn stream(&self) {
        self.0.lock().streams += 1;
    }

    pub(crate) fn token(&self) {
        self.0.lock().tokens += 1;
    }

    pub(crate) fn end(&self, completed: bool) {
        let mut stats = self.0.lock();
        stats.in_flight = stats.in_flight.saturating_sub(1);
        if completed {
            stats.completed += 1;
        } else {
            stats.cancelled += 1;
            stats.last_cancel = Some(Instant::now());
        }
    }
}

impl MockStats {
    /// How long ago the last cancel was.
    #[must_use]
    pub fn since_last_cancel(&self) -> Option<Duration> {
        self.last_cancel.map(|at| at.elapsed())
    }
}
