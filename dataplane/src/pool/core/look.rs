//! What can be read off the core: counts, needs, and what is known of endpoints. It changes nothing.

use std::{sync::Arc, time::Duration};

use super::{Census, Connection, Core, Idle, OriginCensus, OriginId, Pulse, origin::Origin};
use crate::budget::Need;

/// A connection whose last request ended this recently counts as wanted.
const RECENT: Duration = Duration::from_millis(250);

impl<C: Connection, W> Core<C, W> {
    /// What the budget leaves to it.
    pub(in crate::pool) fn cap(&self) -> usize {
        self.cap
    }

    /// Most requests in flight now.
    pub(in crate::pool) fn size(&self) -> usize {
        self.shape.size
    }

    /// What it has and wants, for the division of the budget.
    pub(in crate::pool) fn need(&self, now: Duration) -> Need {
        let drains = self.retired && self.line.is_empty();
        let coldest = self.origins.iter().filter_map(Origin::coldest).min();
        Need {
            size: if drains { 0 } else { self.shape.size },
            most: if drains { 0 } else { self.shape.most },
            busy: self.busy(),
            idle: self.resting() + self.connecting.len(),
            waiting: self.waiting(now),
            waited: self
                .line
                .oldest()
                .map_or(Duration::ZERO, |arrived| now.saturating_sub(arrived)),
            recent: self.recent(now),
            coldest: coldest.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
        }
    }

    /// Requests in flight, those that wait, and how many are let in at most: what is told to one who is sent away. Of all
    /// counts these are the ones that are had without a search, for many are sent away when there is least time for it.
    pub(in crate::pool) fn crowd(&self) -> (usize, usize, usize) {
        (self.in_flight(), self.line.len(), self.admitted())
    }

    /// True if somebody waits.
    pub(in crate::pool) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// True if one more is let in.
    pub(in crate::pool) fn has_room(&self) -> bool {
        // Those who wait for certain endpoints hold nobody else up.
        self.line.len() == self.line.wishing() && self.in_flight() < self.admitted()
    }

    /// True if there is something left of an endpoint, be it removed.
    pub(in crate::pool) fn knows(&self, origin: OriginId) -> bool {
        self.origins.iter().any(|known| known.id == origin)
    }

    /// True when as many connections are open ahead of need as are wanted, or there is no use in waiting
    /// for them.
    pub(in crate::pool) fn is_warm(&self) -> bool {
        let floor = self.shape.warm.min(self.limit());
        let slots = self.origins.iter().map(Origin::slots).sum::<usize>();
        let mut current = self.origins.iter().filter(|origin| origin.is_current());
        let warm = slots >= floor && self.owed == 0;
        warm || self.retired || current.all(|origin| origin.trouble.is_some())
    }

    /// Those who wait and could be served: an endpoint that fails is asked by one at a time.
    fn waiting(&self, now: Duration) -> usize {
        let mut current = self.origins.iter().filter(|origin| origin.is_current());
        match current.any(|origin| origin.is_reachable(now)) {
            true => self.line.len(),
            false => self.line.len().min(1),
        }
    }

    /// Connections that had a request a moment ago.
    fn recent(&self, now: Duration) -> usize {
        let fresh = |since: Duration| now.saturating_sub(since) < RECENT;
        let idle = self.origins.iter().flat_map(|origin| &origin.idle);
        let idle = idle.filter(|held| held.uses > 0 && fresh(held.idle_since));
        let shared = self.origins.iter().flat_map(|origin| &origin.shared);
        let shared = shared.filter(|s| s.rests() && s.uses > 0 && fresh(s.idle_since));
        idle.count() + shared.count()
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

    /// What is open to one endpoint.
    pub(in crate::pool) fn census_of(&self, now: Duration, origin: OriginId) -> OriginCensus {
        let origin = self.origins.iter().find(|known| known.id == origin);
        origin.map_or_else(OriginCensus::default, |origin| OriginCensus {
            open: origin.open(),
            in_flight: origin.in_flight(),
            state: origin.health.state(now),
            unreachable: !origin.is_reachable(now),
            why: origin.health.out().map(|(why, _)| why),
            pauses: origin
                .health
                .busy_until()
                .and_then(|until| until.checked_sub(now)),
        })
    }

    /// Where signs of life of an endpoint are noted.
    pub(in crate::pool) fn pulse_of(&self, origin: OriginId) -> Option<Arc<Pulse>> {
        let origin = self.origins.iter().find(|known| known.id == origin);
        origin.map(|origin| origin.pulse.clone())
    }

    /// Counts at this instant.
    pub(in crate::pool) fn census(&self, now: Duration) -> Census {
        let drains = |origin: &&Origin<C>| self.retired || !origin.is_current();
        let drained = || self.origins.iter().filter(drains);
        let draining = drained().map(Origin::busy).sum();
        Census {
            idle: self.resting(),
            active: self.busy() - draining,
            draining,
            connecting: self.connecting.len(),
            waiting: self.line.len(),
            in_flight: self.in_flight(),
            draining_requests: drained().map(Origin::in_flight).sum(),
            floor: if self.retired { 0 } else { self.floor(now) },
            admitted: self.admitted(),
            flows: self.line.busy_flows(),
            wanting: self.waiting(now),
            cooling: self.cooling(),
            lasting: self.lasting(),
        }
    }

    /// True when a retired pool has nothing left.
    pub(in crate::pool) fn is_empty(&self) -> bool {
        self.open() == 0 && self.line.is_empty()
    }
}
