//! A connection that carries several requests at a time (HTTP/2), within the core.

use std::time::Duration;

use super::{ConnId, Connection, Held, OriginId, Seat};
use crate::pool::counters::CloseReason;

/// Most requests at a time on one connection, whatever the server allows: one that fails takes no more
/// than these with it.
pub(in crate::pool) const MOST_STREAMS: usize = 32;

#[derive(Debug)]
pub(super) struct Shared<C> {
    pub(super) conn: C,
    pub(super) id: ConnId,
    /// Requests on it now.
    pub(super) streams: usize,
    /// Requests that it may carry at a time.
    pub(super) most: usize,
    pub(super) uses: u64,
    pub(super) born: Duration,
    /// Since when it carries none.
    pub(super) idle_since: Duration,
    /// It gets no more requests, and is closed after the last that it has.
    pub(super) doomed: Option<CloseReason>,
}

impl<C: Connection> Shared<C> {
    pub(super) fn new(conn: C, id: ConnId, now: Duration) -> Self {
        Self {
            most: bounded(conn.streams()),
            conn,
            id,
            streams: 0,
            uses: 0,
            born: now,
            idle_since: now,
            doomed: None,
        }
    }

    /// One request's place on it.
    pub(super) fn grant(&mut self, origin: OriginId, now: Duration) -> Option<Held<C>> {
        let conn = self.conn.another()?;
        let idle_since = self.idle_since;
        self.streams += 1;
        self.uses += 1;
        let uses = self.uses;
        Some(Held {
            lent: None,
            conn,
            id: self.id,
            origin,
            uses,
            shared: true,
            in_question: false,
            trial: None,
            born: self.born,
            idle_since,
            granted: now,
            seat: Seat::SHARED,
        })
    }
}

impl<C> Shared<C> {
    /// True if it can carry one more.
    pub(super) fn has_room(&self) -> bool {
        self.doomed.is_none() && self.streams < self.most
    }

    /// True if it carries none.
    pub(super) fn rests(&self) -> bool {
        self.streams == 0
    }

    /// The server took one less than it had said, and may know why: no more than these from now on.
    pub(super) fn declined(&mut self) {
        self.most = self.most.min(self.streams.max(1));
    }

    /// The server allows another number from now on.
    pub(super) fn allow(&mut self, streams: usize) {
        self.most = bounded(streams);
    }
}

/// A server that allows none for now will allow some again, or close.
fn bounded(streams: usize) -> usize {
    streams.min(MOST_STREAMS)
}
