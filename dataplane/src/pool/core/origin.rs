//! One endpoint within the core: its idle connections, what is in use, and its trouble.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{Held, OriginId, idle::IdleLimit};

/// First pause after a failed connect; doubles up to [`BACKOFF_MOST`].
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest pause between connects to an endpoint that fails.
const BACKOFF_MOST: Duration = Duration::from_secs(2);

/// A connection closed within this time of its beginning was no connection.
const SOON: Duration = Duration::from_secs(1);
/// After this long a connection to an endpoint that failed is taken for a real one.
const HOLDS: Duration = Duration::from_millis(100);
/// After this long without a failure the next one begins a new run.
const FORGOTTEN: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Origin<C> {
    pub(super) id: OriginId,
    pub(super) weight: u32,
    pub(super) retired: bool,
    /// Oldest in front; taken from the back.
    pub(super) idle: VecDeque<Held<C>>,
    pub(super) active: usize,
    pub(super) trouble: Option<Trouble>,
    pub(super) idle_limit: IdleLimit,
}

/// An endpoint that fails. It is over with the first request that is answered; a connection alone says
/// little, as anything in between may accept it and close it again.
#[derive(Debug)]
pub(super) struct Trouble {
    /// When this run of failures began.
    pub(super) since: Duration,
    last: Duration,
    retry_at: Duration,
    failures: u32,
    /// When a connection was made since. If it holds, others may follow.
    connected: Option<Duration>,
    pub(super) error: Arc<str>,
}

impl<C> Origin<C> {
    pub(super) fn new(id: OriginId, weight: u32) -> Self {
        Self {
            id,
            weight,
            retired: false,
            idle: VecDeque::new(),
            active: 0,
            trouble: None,
            idle_limit: IdleLimit::default(),
        }
    }

    /// One that fails is tried again one connect at a time, after its pause.
    pub(super) fn may_connect(&self, now: Duration, connecting: usize) -> bool {
        let ready = |trouble: &Trouble| {
            let holds = |at: Duration| now.saturating_sub(at) >= HOLDS;
            trouble.connected.is_some_and(holds) || (trouble.retry_at <= now && connecting == 0)
        };
        !self.retired && self.trouble.as_ref().is_none_or(ready)
    }

    /// Where the newest idle connection is.
    pub(super) fn newest(&self) -> Option<usize> {
        self.idle.len().checked_sub(1)
    }

    /// Where the newest idle connection is that carried no request yet.
    pub(super) fn unused(&self) -> Option<usize> {
        self.idle.iter().rposition(|held| held.uses == 0)
    }

    /// Its trouble, unless that is so old that nothing is known any more.
    pub(super) fn fresh_trouble(&self, now: Duration) -> Option<&Trouble> {
        let fresh = |trouble: &&Trouble| now.saturating_sub(trouble.last) < FORGOTTEN;
        self.trouble.as_ref().filter(fresh)
    }

    /// True if connects may be expected to succeed.
    pub(super) fn is_reachable(&self, now: Duration) -> bool {
        self.fresh_trouble(now)
            .is_none_or(|trouble| trouble.connected.is_some())
    }

    /// A connection was made.
    pub(super) fn connected(&mut self, now: Duration) {
        if let Some(trouble) = &mut self.trouble {
            trouble.connected.get_or_insert(now);
        }
    }

    /// A connection was closed by the upstream before it carried an answer. Soon after it was made, that
    /// is as good as no connection.
    pub(super) fn closed_unused(&mut self, now: Duration, born: Duration) {
        if now.saturating_sub(born) < SOON {
            self.failed(now, "it closes connections as soon as they are made");
        }
    }

    pub(super) fn failed(&mut self, now: Duration, error: &str) {
        // Of a failure long ago nothing is known any more.
        let recent = |trouble: &&Trouble| now.saturating_sub(trouble.last) < FORGOTTEN;
        let (since, failures) = match self.trouble.as_ref().filter(recent) {
            Some(trouble) => (trouble.since, trouble.failures.saturating_add(1)),
            None => (now, 1),
        };
        let pause = BACKOFF_FIRST.saturating_mul(1 << failures.min(16).saturating_sub(1));
        let retry_at = now + pause.min(BACKOFF_MOST);
        self.trouble = Some(Trouble {
            since,
            last: now,
            retry_at,
            failures,
            connected: None,
            error: error.into(),
        });
    }
}

/// Orders `a / weight` before `b / weight`, without dividing.
pub(super) fn lighter(a: usize, a_weight: u32, b: usize, b_weight: u32) -> std::cmp::Ordering {
    let scaled = |n: usize, weight: u32| (n as u64).saturating_mul(u64::from(weight));
    scaled(a, b_weight).cmp(&scaled(b, a_weight))
}
