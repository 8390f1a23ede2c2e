//! One endpoint within the core: its idle connections, what is in use, and its trouble.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{Held, OriginId};

/// First pause after a failed connect; doubles up to [`BACKOFF_MOST`].
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest pause between connects to an endpoint that fails.
const BACKOFF_MOST: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Origin<C> {
    pub(super) id: OriginId,
    pub(super) weight: u32,
    pub(super) retired: bool,
    /// Oldest in front; taken from the back.
    pub(super) idle: VecDeque<Held<C>>,
    pub(super) active: usize,
    pub(super) trouble: Option<Trouble>,
}

/// An endpoint that fails.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) since: Duration,
    pub(super) retry_at: Duration,
    pub(super) failures: u32,
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
        }
    }

    /// One that fails is tried again one connect at a time, after its pause.
    pub(super) fn may_connect(&self, now: Duration, connecting: usize) -> bool {
        let ready = |trouble: &Trouble| trouble.retry_at <= now && connecting == 0;
        !self.retired && self.trouble.as_ref().is_none_or(ready)
    }

    pub(super) fn failed(&mut self, now: Duration, error: &str) {
        let (since, failures) = match &self.trouble {
            Some(trouble) => (trouble.since, trouble.failures.saturating_add(1)),
            None => (now, 1),
        };
        let pause = BACKOFF_FIRST.saturating_mul(1 << failures.min(16).saturating_sub(1));
        let retry_at = now + pause.min(BACKOFF_MOST);
        self.trouble = Some(Trouble {
            since,
            retry_at,
            failures,
            error: error.into(),
        });
    }
}

/// Orders `a / weight` before `b / weight`, without dividing.
pub(super) fn lighter(a: usize, a_weight: u32, b: usize, b_weight: u32) -> std::cmp::Ordering {
    let scaled = |n: usize, weight: u32| (n as u64).saturating_mul(u64::from(weight));
    scaled(a, b_weight).cmp(&scaled(b, a_weight))
}
