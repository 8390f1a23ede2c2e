//! What brings the pool to rest after every transition: retire, grant, shrink, connect, give up.

use std::time::Duration;

use super::{
    Connecting, Core, Effect, Held, Refused, Ticket,
    origin::{Origin, Trouble, lighter},
};
use crate::pool::counters::{CloseReason, OpenReason};

/// Most connects under way that nobody waits for, so that a restarted engine is not stormed.
const WARM_AT_ONCE: usize = 4;
/// How long a request waits for an endpoint that just began to fail.
const PATIENCE: Duration = Duration::from_secs(1);
/// After this long without a single successful connect, requests are refused at once.
const FAIL_FAST: Duration = Duration::from_secs(3);

impl<C, W> Core<C, W> {
    pub(super) fn pump_with(&mut self, now: Duration, first: Effect<C, W>) -> Vec<Effect<C, W>> {
        let mut effects = vec![first];
        effects.extend(self.pump(now));
        effects
    }

    /// Brings the pool to rest after a transition: retire, grant, shrink, connect, give up.
    pub(super) fn pump(&mut self, now: Duration) -> Vec<Effect<C, W>> {
        let mut effects = self.close_retired();
        self.grant(now, &mut effects);
        self.shrink(&mut effects);
        self.connect_for_waiters(now, &mut effects);
        self.connect_for_warmth(now, &mut effects);
        self.refuse_hopeless(now, &mut effects);
        self.forget_retired();
        #[cfg(test)]
        self.assert_invariants(now);
        effects
    }

    fn close_retired(&mut self) -> Vec<Effect<C, W>> {
        let mut effects = Vec::new();
        let empty = self.retired && self.waiters.is_empty();
        for origin in self
            .origins
            .iter_mut()
            .filter(|origin| origin.retired || empty)
        {
            for held in origin.idle.drain(..) {
                self.counters.count_closed(CloseReason::Removed);
                effects.push(Effect::Close { conn: held.conn });
            }
        }
        effects
    }

    fn grant(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        while self.active() < self.limit() {
            let Some((at, mut held)) = self.next_grant() else {
                return;
            };
            let Some(waiter) = self.waiters.remove(at) else {
                return;
            };
            match held.uses {
                0 => self.counters.new += 1,
                _ => self.counters.reused += 1,
            }
            held.uses += 1;
            held.granted = now;
            effects.push(Effect::Grant {
                waiter: waiter.waiter,
                held,
            });
        }
    }

    /// The first who waits and can be served, and his connection: the newest idle one, of the endpoint
    /// with the least in use for its weight.
    fn next_grant(&mut self) -> Option<(usize, Held<C>)> {
        let (any, unused) = (
            self.best_idle(Origin::newest),
            self.best_idle(Origin::unused),
        );
        let at = self
            .waiters
            .iter()
            .position(|waiter| if waiter.fresh { unused } else { any }.is_some())?;
        let fresh = self.waiters.get(at)?.fresh;
        let (origin, place) = if fresh { unused } else { any }?;
        let origin = self.origins.get_mut(origin)?;
        let held = origin.idle.remove(place)?;
        origin.active += 1;
        Some((at, held))
    }

    /// The endpoint that is to serve next among those that have such an idle connection, and where it is.
    fn best_idle(&self, find: fn(&Origin<C>) -> Option<usize>) -> Option<(usize, usize)> {
        let candidates = self.origins.iter().enumerate();
        let candidates = candidates.filter_map(|(n, origin)| Some((n, origin, find(origin)?)));
        let best = candidates
            .min_by(|(_, a, _), (_, b, _)| lighter(a.active, a.weight, b.active, b.weight));
        best.map(|(n, _, place)| (n, place))
    }

    fn shrink(&mut self, effects: &mut Vec<Effect<C, W>>) {
        while self.open() > self.limit() {
            if !self.close_coldest(self.no_room(), effects) {
                return;
            }
        }
    }

    fn close_coldest(&mut self, reason: CloseReason, effects: &mut Vec<Effect<C, W>>) -> bool {
        let coldest = self
            .origins
            .iter_mut()
            .filter(|origin| !origin.idle.is_empty())
            .min_by_key(|origin| origin.idle.front().map(|held| held.idle_since));
        let Some(held) = coldest.and_then(|origin| origin.idle.pop_front()) else {
            return false;
        };
        self.counters.count_closed(reason);
        effects.push(Effect::Close { conn: held.conn });
        true
    }

    fn connect_for_waiters(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        self.make_room_for_fresh(effects);
        while self.connecting.len() < self.waiters.len() && self.open() < self.limit() {
            if !self.connect(now, OpenReason::Demand, effects) {
                return;
            }
        }
    }

    /// One who needs a fresh connection must not wait for the idle ones to go.
    fn make_room_for_fresh(&mut self, effects: &mut Vec<Effect<C, W>>) {
        let wanted = self.waiters.iter().filter(|waiter| waiter.fresh).count();
        let missing = wanted.saturating_sub(self.connecting.len());
        for _ in 0..missing {
            if self.open() < self.limit() {
                return;
            }
            self.close_coldest(CloseReason::Evicted, effects);
        }
    }

    fn connect_for_warmth(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        if self.retired {
            return;
        }
        let floor = self.shape.warm.min(self.limit());
        let reason = if self.filled {
            OpenReason::Refill
        } else {
            OpenReason::Warm
        };
        while self.open() < floor && self.connecting.len() < WARM_AT_ONCE {
            if !self.connect(now, reason, effects) {
                return;
            }
        }
        self.filled |= self.open() - self.connecting.len() >= floor;
    }

    /// Starts one connect, to the endpoint with the fewest connections for its weight.
    fn connect(
        &mut self,
        now: Duration,
        reason: OpenReason,
        effects: &mut Vec<Effect<C, W>>,
    ) -> bool {
        let best = self
            .origins
            .iter()
            .filter(|origin| origin.may_connect(now, self.connecting_to(origin.id)))
            .min_by(|a, b| {
                let open = |origin: &Origin<C>| {
                    origin.active + origin.idle.len() + self.connecting_to(origin.id)
                };
                lighter(open(a), a.weight, open(b), b.weight)
            });
        let Some(origin) = best.map(|origin| origin.id) else {
            return false;
        };
        let ticket = Ticket(self.next_id());
        self.connecting.push(Connecting {
            ticket,
            origin,
            reason,
        });
        effects.push(Effect::Connect { ticket, origin });
        true
    }

    /// Sends waiters away when nothing can come for them: every endpoint fails, nothing is open.
    fn refuse_hopeless(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        // Without a cap no connect was tried: it is the budget that is waited for.
        if self.waiters.is_empty() || self.open() > 0 || self.limit() == 0 {
            return;
        }
        let current = self.origins.iter().filter(|origin| !origin.retired);
        let troubles: Option<Vec<&Trouble>> = current.map(|o| o.fresh_trouble(now)).collect();
        let Some(troubles) = troubles else { return };
        let since = troubles
            .iter()
            .map(|trouble| trouble.since)
            .max()
            .unwrap_or_default();
        let error = troubles
            .first()
            .map_or_else(|| "no endpoint".into(), |t| t.error.clone());
        let failing = now.saturating_sub(since);
        let patience = if failing >= FAIL_FAST {
            Duration::ZERO
        } else {
            PATIENCE
        };
        while let Some(first) = self.waiters.front()
            && now.saturating_sub(first.arrived) >= patience
            && let Some(waiter) = self.waiters.pop_front()
        {
            let why = Refused::ConnectFailed(error.clone());
            effects.push(Effect::Refuse {
                waiter: waiter.waiter,
                why,
            });
        }
    }
}
