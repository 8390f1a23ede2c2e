//! What brings the pool to rest after every transition: retire, hand over, grant, shrink, connect, give up.

use std::time::Duration;

use super::{
    Ask, Connecting, Connection, Core, Effect, Effects, Held, OriginId, Refused, Ticket, Wish,
    flow::Waiter,
    line::Spot as Stand,
    origin::{Origin, Phase, Trouble, lighter},
};
use crate::pool::counters::{CloseReason, OpenReason};

/// Connects under way that nobody waits for: so many, or an eighth of the floor, so that a restarted engine
/// is not stormed.
const WARM_AT_ONCE: usize = 4;
/// How long a request waits for an endpoint that just began to fail.
const PATIENCE: Duration = Duration::from_secs(1);
/// After this long without a single successful connect, requests are refused at once.
const FAIL_FAST: Duration = Duration::from_secs(3);
/// A connect that takes this long is not waited for alone where there is another endpoint.
const SLOW: Duration = Duration::from_millis(250);

impl<C: Connection, W> Core<C, W> {
    pub(super) fn pump_with(&mut self, now: Duration, first: Effect<C, W>) -> Vec<Effect<C, W>> {
        let mut effects = vec![first];
        effects.extend(self.pump(now));
        effects
    }

    /// Brings the pool to rest after a transition.
    pub(super) fn pump(&mut self, now: Duration) -> Vec<Effect<C, W>> {
        let mut effects = Vec::new();
        self.lapse(now);
        self.weigh(now);
        self.hand_over(now, &mut effects);
        self.close_retired(&mut effects);
        self.rebalance(now, &mut effects);
        self.grant(now, &mut effects);
        self.shrink(&mut effects);
        self.connect_for_waiters(now, &mut effects);
        self.open_wished(now, &mut effects);
        self.peak.note(now, self.in_flight());
        self.connect_for_warmth(now, &mut effects);
        self.refuse_hopeless(now, &mut effects);
        self.refuse_dry(now, &mut effects);
        self.forget_retired();
        #[cfg(test)]
        self.assert_invariants(now);
        effects
    }

    /// What rests where nothing is wanted any more, and shared connections after their last request.
    fn close_retired(&mut self, effects: &mut Vec<Effect<C, W>>) {
        let empty = self.retired && self.line.is_empty();
        for origin in &mut self.origins {
            let doomed = origin
                .shared
                .extract_if(.., |shared| shared.rests() && shared.doomed.is_some());
            for shared in doomed {
                let reason = shared.doomed.unwrap_or(CloseReason::Upstream);
                self.counters.count_closed(reason);
                effects.push(Effect::Close { conn: shared.conn });
            }
            if origin.phase == Phase::Retired || empty {
                for conn in origin.let_go(|_| true) {
                    self.counters.count_closed(CloseReason::Removed);
                    effects.push(Effect::Close { conn });
                }
            }
        }
    }

    fn grant(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        while !self.line.is_empty() && self.in_flight() < self.admitted() {
            // What does not fit any more is not taken into use.
            if self.busy() >= self.limit() {
                self.shrink(effects);
            }
            let Some((stand, mut held)) = self.next_grant(now) else {
                return;
            };
            let Some((waiter, seat)) = self.line.serve(stand) else {
                return;
            };
            held.seat = seat;
            held.lent = self.lend();
            self.count_checkout(&held);
            effects.push(Effect::Grant {
                waiter: waiter.waiter,
                held,
            });
        }
    }

    /// The connection of a request that does not have to wait. `None`: it has to line up.
    pub(in crate::pool) fn take_at_once(
        &mut self,
        now: Duration,
        ask: &Ask,
    ) -> Option<(Held<C>, Effects<C, W>)> {
        self.lapse(now);
        let room = self.in_flight() < self.admitted() && self.busy() < self.limit();
        if !room || !self.line.is_empty() {
            return None;
        }
        self.weigh(now);
        let (origin, spot) = self.choose(now, None, &Wish::default())?;
        let mut held = self.origins.get_mut(origin)?.take(spot, now)?;
        self.put_to_trial(now, origin, &mut held);
        held.seat = self.line.serve_at_once(ask);
        held.lent = self.lend();
        self.count_checkout(&held);
        // With one endpoint nothing else can have become due.
        let effects = match self.origins.len() {
            1 => {
                self.peak.note(now, self.in_flight());
                Vec::new()
            }
            _ => self.pump(now),
        };
        Some((held, effects))
    }

    fn count_checkout(&mut self, held: &Held<C>) {
        match held.uses {
            0 | 1 => self.counters.new += 1,
            _ => self.counters.reused += 1,
        }
    }

    /// Whose turn it is of those who can be served, and his connection.
    fn next_grant(&mut self, now: Duration) -> Option<(Stand, Held<C>)> {
        let can = |since, wish: &Wish| {
            let mut origins = self.origins.iter();
            origins.any(|o| self.suits(now, o, wish) && o.spot(since).is_some())
        };
        let any = can(None, &Wish::default());
        let served = |waiter: &Waiter<W>| match waiter.is_plain() {
            true => any,
            false => can(waiter.fresh_since, &waiter.wish),
        };
        let stand = self.line.next(served)?;
        let waiter = self.line.at(stand)?;
        let (fresh_since, wish) = (waiter.fresh_since, waiter.wish.clone());
        let (origin, spot) = self.choose(now, fresh_since, &wish)?;
        let mut held = self.origins.get_mut(origin)?.take(spot, now)?;
        self.put_to_trial(now, origin, &mut held);
        Some((stand, held))
    }

    fn shrink(&mut self, effects: &mut Vec<Effect<C, W>>) {
        while self.open() > self.limit() {
            if !self.close_leaving(effects) && !self.close_coldest(self.no_room(), effects) {
                return;
            }
        }
    }

    pub(super) fn close_coldest(
        &mut self,
        reason: CloseReason,
        effects: &mut Vec<Effect<C, W>>,
    ) -> bool {
        let resting = self.origins.iter_mut().filter(|o| o.coldest().is_some());
        let coldest = resting.min_by_key(|origin| origin.coldest());
        let Some(conn) = coldest.and_then(Origin::pop_coldest) else {
            return false;
        };
        self.counters.count_closed(reason);
        effects.push(Effect::Close { conn });
        true
    }

    fn connect_for_waiters(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        self.make_room_for_fresh(effects);
        let room = self.admitted().saturating_sub(self.in_flight());
        let spoken_for = self.connect_for_wishes(now, room, effects);
        let plain = self.line.len() - self.line.wishing();
        let wanted = plain.min(room) + spoken_for;
        while plain > 0 && self.expected(now) < wanted {
            if self.open() >= self.limit() && !self.make_room(now, &Wish::default(), effects) {
                return;
            }
            if !self.connect(now, OpenReason::Demand, effects) {
                return;
            }
        }
    }

    /// Requests that the connects under way will be able to carry. Those to an endpoint that fails, or that
    /// take long, are not counted on while another endpoint may do better.
    pub(super) fn expected(&self, now: Duration) -> usize {
        let sound = |origin: &Origin<C>| {
            origin.is_current() && origin.trouble.is_none() && self.takes(now, origin)
        };
        let streams = |connect: &Connecting| {
            let mut origins = self.origins.iter();
            let origin = origins.find(|origin| origin.id == connect.origin);
            let slow = now.saturating_sub(connect.began) >= SLOW;
            let mut others = self.origins.iter().filter(|o| o.id != connect.origin);
            match slow || !origin.is_some_and(sound) {
                true if others.any(sound) => 0,
                _ => origin.and_then(|origin| origin.streams).unwrap_or(1),
            }
        };
        self.connecting.iter().map(streams).sum()
    }

    /// One who needs a fresh connection must not wait for the idle ones to go.
    fn make_room_for_fresh(&mut self, effects: &mut Vec<Effect<C, W>>) {
        let wanted = self.line.wanting_fresh();
        let missing = wanted.saturating_sub(self.connecting.len());
        for _ in 0..missing {
            if self.open() < self.limit() {
                return;
            }
            self.close_coldest(CloseReason::Evicted, effects);
        }
    }

    /// Connections that are kept open ahead of need now.
    pub(super) fn floor(&self, now: Duration) -> usize {
        let mut current = self.origins.iter().filter(|origin| origin.is_current());
        let unasked = match current.any(|origin| origin.closes_unused(now)) {
            true => 0,
            false => self.peak.get(now),
        };
        self.shape.warm.max(unasked).min(self.limit())
    }

    /// Requests that could be carried at a time by what is open.
    fn slots(&self) -> usize {
        self.origins.iter().map(Origin::slots).sum()
    }

    fn connect_for_warmth(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        if self.retired {
            return;
        }
        let floor = self.floor(now);
        let reason = if self.filled {
            OpenReason::Refill
        } else {
            OpenReason::Warm
        };
        let at_once = WARM_AT_ONCE.max(floor / 8);
        while self.slots() + self.expected(now) < floor
            && self.open() < self.limit()
            && self.connecting.len() < at_once
        {
            if !self.connect(now, reason, effects) {
                return;
            }
        }
        self.filled |= self.slots() >= floor;
    }

    /// Starts one connect, to the endpoint that can carry least for its weight.
    fn connect(
        &mut self,
        now: Duration,
        reason: OpenReason,
        effects: &mut Vec<Effect<C, W>>,
    ) -> bool {
        // What is opened ahead of need may go to one that asked for a pause.
        let will_do = |origin: &&Origin<C>| match reason {
            OpenReason::Demand => self.takes(now, origin),
            OpenReason::Warm | OpenReason::Refill | OpenReason::Replace => {
                origin.may_be_warmed(now)
            }
        };
        let Some(origin) = self.neediest(now, will_do) else {
            return false;
        };
        self.connect_to(now, origin, reason, effects);
        true
    }

    /// The endpoint that can carry least for its weight, of those to which a connection may be opened.
    pub(super) fn neediest(
        &self,
        now: Duration,
        will_do: impl Fn(&&Origin<C>) -> bool,
    ) -> Option<OriginId> {
        let able = self.origins.iter().filter(|o| self.may_dial(now, o));
        let best = able.filter(will_do).min_by(|a, b| {
            let slots = |origin: &Origin<C>| {
                let each = origin.streams.unwrap_or(1);
                origin.slots() + self.connecting_to(origin.id) * each
            };
            // Where connects hang already another one helps least.
            let hangs = |origin: &Origin<C>| self.hangs(now, origin.id);
            let lighter = lighter(slots(a), a.weight, slots(b), b.weight);
            hangs(a).cmp(&hangs(b)).then(lighter)
        });
        best.map(|origin| origin.id)
    }

    /// True if a connect there takes longer than is waited for.
    fn hangs(&self, now: Duration, origin: OriginId) -> bool {
        let mut there = self.connecting.iter().filter(|c| c.origin == origin);
        there.any(|connect| now.saturating_sub(connect.began) >= SLOW)
    }

    pub(super) fn connect_to(
        &mut self,
        now: Duration,
        origin: OriginId,
        reason: OpenReason,
        effects: &mut Vec<Effect<C, W>>,
    ) {
        let ticket = Ticket(self.next_id());
        self.connecting.push(Connecting {
            ticket,
            origin,
            reason,
            began: now,
        });
        effects.push(Effect::Connect { ticket, origin });
    }

    /// Sends waiters away when nothing can come for them: every endpoint fails, nothing is open.
    fn refuse_hopeless(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        self.refuse_wishes(now, effects);
        // What only drains will serve nobody.
        let serving = self.origins.iter().filter(|o| o.phase != Phase::Retired);
        let open = serving.map(Origin::open).sum::<usize>() + self.connecting.len();
        // Without a cap no connect was tried: it is the budget that is waited for.
        if self.line.is_empty() || open > 0 || self.limit() == 0 {
            return;
        }
        let current = self.origins.iter().filter(|origin| origin.is_current());
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
        let patience = patience(now, since);
        for waiter in self.line.take_those_who_waited(now, patience) {
            let why = Refused::ConnectFailed(error.clone());
            let waiter = waiter.waiter;
            effects.push(Effect::Refuse { waiter, why });
        }
    }
}

/// How long one waits for what fails since then.
pub(super) fn patience(now: Duration, since: Duration) -> Duration {
    match now.saturating_sub(since) >= FAIL_FAST {
        true => Duration::ZERO,
        false => PATIENCE,
    }
}
