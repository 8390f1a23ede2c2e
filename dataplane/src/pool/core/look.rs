//! What can be read off the core: counts, needs, and what is known of endpoints. It changes nothing.

use std::time::Duration;

use super::{Census, Core, Idle, OriginId};
use crate::budget::Need;

/// A connection whose last request ended this recently counts as wanted.
const RECENT: Duration = Duration::from_millis(250);

impl<C, W> Core<C, W> {
    /// What the budget leaves to it.
    pub(in crate::pool) fn cap(&self) -> usize {
        self.cap
    }

    /// What it has and wants, for the division of the budget.
    pub(in crate::pool) fn need(&self, now: Duration) -> Need {
        let drains = self.retired && self.waiters.is_empty();
        let fronts = self.origins.iter().filter_map(|origin| origin.idle.front());
        let coldest = fronts.map(|held| held.idle_since).min();
        Need {
            size: if drains { 0 } else { self.shape.size },
            busy: self.active(),
            idle: self.idle() + self.connecting.len(),
            waiting: self.waiting(now),
            waited: self
                .waiters
                .front()
                .map_or(Duration::ZERO, |first| now.saturating_sub(first.arrived)),
            recent: self.recent(now),
            coldest: coldest.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
        }
    }

    /// True if there is something left of an endpoint, be it removed.
    pub(in crate::pool) fn knows(&self, origin: OriginId) -> bool {
        self.origins.iter().any(|known| known.id == origin)
    }

    /// True when as many connections are open ahead of need as are wanted, or there is no use in waiting
    /// for them.
    pub(in crate::pool) fn is_warm(&self) -> bool {
        let floor = self.shape.warm.min(self.limit());
        let open = self.idle() + self.active();
        let mut current = self.origins.iter().filter(|origin| !origin.retired);
        open >= floor || self.retired || current.all(|origin| origin.trouble.is_some())
    }

    /// Those who wait and could be served: an endpoint that fails is asked by one at a time.
    fn waiting(&self, now: Duration) -> usize {
        let mut current = self.origins.iter().filter(|origin| !origin.retired);
        match current.any(|origin| origin.is_reachable(now)) {
            true => self.waiters.len(),
            false => self.waiters.len().min(1),
        }
    }

    /// Connections that had a request a moment ago.
    fn recent(&self, now: Duration) -> usize {
        let idle = self.origins.iter().flat_map(|origin| &origin.idle);
        idle.filter(|held| held.uses > 0 && now.saturating_sub(held.idle_since) < RECENT)
            .count()
    }

    /// What is known of an endpoint's own idle limit, and the limit that is kept.
    pub(in crate::pool) fn idle_of(&self, now: Duration, origin: OriginId) -> Option<Idle> {
        let origin = self.origins.iter().find(|known| known.id == origin)?;
        let known = &origin.idle_limit;
        Some(Idle {
            announced: known.announced(),
            learned: known.learned(now),
            limit: known.limit(now, self.shape.idle_timeout),
        })
    }

    /// Counts at this instant.
    pub(in crate::pool) fn census(&self) -> Census {
        let draining = if self.retired {
            self.active()
        } else {
            self.origins
                .iter()
                .filter(|origin| origin.retired)
                .map(|origin| origin.active)
                .sum()
        };
        Census {
            idle: self.idle(),
            active: self.active() - draining,
            draining,
            connecting: self.connecting.len(),
            waiting: self.waiters.len(),
        }
    }

    /// True when a retired pool has nothing left.
    pub(in crate::pool) fn is_empty(&self) -> bool {
        self.open() == 0 && self.waiters.is_empty()
    }
}
