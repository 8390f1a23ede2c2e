//! The pool as a pure state machine: it takes events and returns effects. It knows no socket, no
//! task and no clock; the time of an event is an argument.
//!
//! A connection is connecting, idle, active or gone:
//!
//! ```text
//!   Connect ──connected──▶ idle ──grant──▶ active ──release──▶ idle
//!      │                    │                 │
//!      └─connect_failed     └─ close          └─ close (not reusable, over size, retired, too old)
//! ```
//!
//! Invariants; 1, 4, 5 and 6 are asserted whenever the pool comes to rest in test builds, 2 and 3 have
//! tests of their own:
//! 1. open (idle + active + connecting) never grows beyond the size, nor beyond the cap that the
//!    worker's budget leaves to the pool. After a shrink of either, what is in use stays in use, and
//!    nothing is opened until it fits again.
//! 2. Keepalive is the size: a returned connection that fits is kept, whatever the count of idle ones.
//! 3. Waiters are served first come, first served; an arrival never overtakes one.
//! 4. Nobody waits while there is an idle connection that he may use and room to use it; if there is room, as
//!    many connects are under way as are waited for, unless every endpoint is backing off.
//! 5. No idle connection belongs to a retired endpoint.
//! 6. opened - closed = idle + active.

mod idle;
mod look;
mod origin;
mod pump;
mod types;

use std::{cell::Cell, collections::VecDeque, time::Duration};

use self::origin::Origin;
pub(super) use self::types::{
    Census, ConnId, Effect, Held, Idle, OriginId, Outcome, Place, Refused, Shape, Ticket, WaiterId,
};
use super::counters::{CloseReason, Counters, OpenReason};

/// A close this soon after a connection was handed out had happened before.
const AT_ONCE: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Waiter<W> {
    id: WaiterId,
    arrived: Duration,
    fresh: bool,
    waiter: W,
}

#[derive(Debug)]
struct Connecting {
    ticket: Ticket,
    origin: OriginId,
    reason: OpenReason,
}

#[derive(Debug)]
pub(super) struct Core<C, W> {
    shape: Shape,
    /// What the worker's budget leaves to this pool.
    cap: usize,
    retired: bool,
    origins: Vec<Origin<C>>,
    connecting: Vec<Connecting>,
    waiters: VecDeque<Waiter<W>>,
    ids: u64,
    /// The warm floor was reached once; what is opened for it from now on is a refill.
    filled: bool,
    pub(super) counters: Counters,
}

impl<C, W> Core<C, W> {
    /// A pool with no connection yet; [`Core::sweep`] starts to warm it.
    pub(super) fn new(
        shape: Shape,
        cap: usize,
        origins: impl IntoIterator<Item = (OriginId, u32)>,
    ) -> Self {
        let mut core = Self {
            shape,
            cap,
            retired: false,
            origins: Vec::new(),
            connecting: Vec::new(),
            waiters: VecDeque::new(),
            ids: 0,
            filled: false,
            counters: Counters::default(),
        };
        core.origins.extend(
            origins
                .into_iter()
                .map(|(id, weight)| Origin::new(id, weight)),
        );
        core
    }

    /// A request wants a connection.
    pub(super) fn acquire(
        &mut self,
        now: Duration,
        waiter: W,
        place: Place,
    ) -> (WaiterId, Vec<Effect<C, W>>) {
        let id = WaiterId(self.next_id());
        let waiter = Waiter {
            id,
            arrived: now,
            fresh: place == Place::FrontForFresh,
            waiter,
        };
        match place {
            Place::Back => self.waiters.push_back(waiter),
            Place::Front | Place::FrontForFresh => self.waiters.push_front(waiter),
        }
        let mut effects = self.pump(now);
        // Those for whom there is room wait for a connect, not in line.
        let room = self.shape.size.saturating_sub(self.active());
        if self.waiters.len().saturating_sub(room) > self.shape.max_waiting
            && place == Place::Back
            && let Some(last) = self.waiters.pop_back()
        {
            effects.push(Effect::Refuse {
                waiter: last.waiter,
                why: Refused::QueueFull,
            });
        }
        (id, effects)
    }

    /// A waiter went away. The connect that it caused goes on and serves the next one.
    pub(super) fn cancel(&mut self, id: WaiterId) -> Option<W> {
        let at = self.waiters.iter().position(|waiter| waiter.id == id)?;
        self.waiters.remove(at).map(|waiter| waiter.waiter)
    }

    /// A connect succeeded.
    pub(super) fn connected(
        &mut self,
        now: Duration,
        ticket: Ticket,
        conn: C,
    ) -> (Option<ConnId>, Vec<Effect<C, W>>) {
        let Some(connect) = self.take_connecting(ticket) else {
            return (None, vec![Effect::Close { conn }]);
        };
        self.counters.count_opened(connect.reason);
        let id = ConnId(self.next_id());
        let fits = self.open() < self.limit();
        let no_room = self.no_room();
        let retired = self.retired && self.waiters.is_empty();
        let Some(origin) = self
            .origin_mut(connect.origin)
            .filter(|o| !o.retired && !retired)
        else {
            self.counters.count_closed(CloseReason::Removed);
            return (None, self.pump_with(now, Effect::Close { conn }));
        };
        origin.connected(now);
        if !fits {
            self.counters.count_closed(no_room);
            return (None, self.pump_with(now, Effect::Close { conn }));
        }
        let held = Held {
            conn,
            id,
            origin: origin.id,
            uses: 0,
            born: now,
            idle_since: now,
            granted: now,
        };
        origin.idle.push_back(held);
        (Some(id), self.pump(now))
    }

    /// A connect failed.
    pub(super) fn connect_failed(
        &mut self,
        now: Duration,
        ticket: Ticket,
        error: &str,
    ) -> Vec<Effect<C, W>> {
        let Some(connect) = self.take_connecting(ticket) else {
            return Vec::new();
        };
        self.counters.connect_failures += 1;
        if let Some(origin) = self.origin_mut(connect.origin) {
            origin.failed(now, error);
        }
        self.pump(now)
    }

    /// A lease ended.
    pub(super) fn release(
        &mut self,
        now: Duration,
        mut held: Held<C>,
        outcome: Outcome,
    ) -> Vec<Effect<C, W>> {
        let fits = self.open() <= self.limit();
        let no_room = self.no_room();
        let idle_pool = self.retired && self.waiters.is_empty();
        let too_old = self
            .shape
            .max_age
            .is_some_and(|most| now.saturating_sub(held.born) >= most);
        let Some(origin) = self.origin_mut(held.origin) else {
            self.counters.count_closed(CloseReason::Removed);
            return self.pump_with(now, Effect::Close { conn: held.conn });
        };
        origin.active = origin.active.saturating_sub(1);
        match outcome {
            Outcome::Reusable | Outcome::Finished => origin.trouble = None,
            Outcome::Broken(CloseReason::Upstream) if held.uses <= 1 => {
                origin.closed_unused(now, held.born);
            }
            // It had rested, and was found closed when it was to be used again.
            Outcome::Broken(CloseReason::Upstream)
                if now.saturating_sub(held.granted) < AT_ONCE =>
            {
                let rested = held.granted.saturating_sub(held.idle_since);
                origin.idle_limit.closed(now, rested);
            }
            Outcome::Unused | Outcome::Broken(_) => {}
        }
        let close = match outcome {
            Outcome::Broken(reason) => Some(reason),
            Outcome::Finished => Some(CloseReason::Upstream),
            _ if origin.retired || idle_pool => Some(CloseReason::Removed),
            _ if !fits => Some(no_room),
            _ if too_old => Some(CloseReason::Age),
            Outcome::Reusable | Outcome::Unused => None,
        };
        if let Some(reason) = close {
            self.counters.count_closed(reason);
            self.forget_retired();
            return self.pump_with(now, Effect::Close { conn: held.conn });
        }
        match outcome {
            Outcome::Unused => held.uses = held.uses.saturating_sub(1),
            Outcome::Reusable | Outcome::Finished | Outcome::Broken(_) => held.idle_since = now,
        }
        origin.idle.push_back(held);
        self.pump(now)
    }

    /// The connection's task ended. If it was idle, the upstream closed it.
    pub(super) fn ended(&mut self, now: Duration, id: ConnId) -> Vec<Effect<C, W>> {
        for origin in &mut self.origins {
            if let Some(at) = origin.idle.iter().position(|held| held.id == id)
                && let Some(held) = origin.idle.remove(at)
            {
                match held.uses {
                    0 => origin.closed_unused(now, held.born),
                    _ => origin
                        .idle_limit
                        .closed(now, now.saturating_sub(held.idle_since)),
                }
                self.counters.count_closed(CloseReason::Upstream);
                return self.pump_with(now, Effect::Close { conn: held.conn });
            }
        }
        Vec::new()
    }

    /// New parameters and endpoints. What still fits stays as it is.
    pub(super) fn reshape(
        &mut self,
        now: Duration,
        shape: Shape,
        origins: &[(OriginId, u32)],
    ) -> Vec<Effect<C, W>> {
        if shape.warm > self.shape.warm {
            self.filled = false;
        }
        self.shape = shape;
        for origin in &mut self.origins {
            match origins.iter().find(|(id, _)| *id == origin.id) {
                // Also one that was removed and is back before it was forgotten.
                Some((_, weight)) => (origin.weight, origin.retired) = (*weight, false),
                None => origin.retired = true,
            }
        }
        // What is being dialled there would serve nobody, and takes the place of what would.
        self.connecting
            .retain(|connect| origins.iter().any(|(id, _)| *id == connect.origin));
        for (id, weight) in origins {
            if self.origin_mut(*id).is_none() {
                self.origins.push(Origin::new(*id, *weight));
                self.filled = false;
            }
        }
        self.pump(now)
    }

    /// The model was removed. Requests that hold the configuration before still get served; then
    /// the pool is empty.
    pub(super) fn retire(&mut self, now: Duration) -> Vec<Effect<C, W>> {
        self.retired = true;
        self.pump(now)
    }

    /// The worker's budget leaves another number of connections to this pool.
    pub(super) fn set_cap(&mut self, now: Duration, cap: usize) -> Vec<Effect<C, W>> {
        if self.cap == cap {
            return Vec::new();
        }
        self.cap = cap;
        self.pump(now)
    }

    /// The endpoint said how long it waits for the next request.
    pub(super) fn announce(&mut self, origin: OriginId, timeout: Duration) {
        if let Some(origin) = self.origin_mut(origin) {
            origin.idle_limit.announce(timeout);
        }
    }

    fn idle_limits(&self, now: Duration) -> Vec<(OriginId, Duration)> {
        let configured = self.shape.idle_timeout;
        let limit = |origin: &Origin<C>| (origin.id, origin.idle_limit.limit(now, configured));
        self.origins.iter().map(limit).collect()
    }

    /// The model is back before its pool was empty; [`Core::reshape`] comes next.
    pub(super) fn revive(&mut self) {
        self.retired = false;
        self.filled = false;
    }

    /// Closes what is idle and keeps nothing any more: the worker stops.
    pub(super) fn shutdown(&mut self) -> Vec<Effect<C, W>> {
        self.retired = true;
        self.close_idle(CloseReason::Shutdown, |_| true)
    }

    /// Time went by: idle and age limits, back-off that is over, requests whose patience is.
    pub(super) fn sweep(&mut self, now: Duration) -> Vec<Effect<C, W>> {
        let limits: Vec<(OriginId, Duration)> = self.idle_limits(now);
        let max_age = self.shape.max_age;
        let expired = |held: &Held<C>| {
            let mut limits = limits.iter();
            let limit = limits.find_map(|(id, limit)| (*id == held.origin).then_some(*limit));
            limit.is_some_and(|limit| now.saturating_sub(held.idle_since) >= limit)
        };
        let mut effects = self.close_idle(CloseReason::Idle, |held| held.uses > 0 && expired(held));
        // Those that never carried a request are the warm floor: uvicorn never times them out, so
        // only what exceeds the floor goes.
        let surplus = Cell::new(self.open().saturating_sub(self.shape.warm));
        effects.extend(self.close_idle(CloseReason::Idle, |held| {
            let close = held.uses == 0 && surplus.get() > 0 && expired(held);
            surplus.set(surplus.get() - usize::from(close));
            close
        }));
        effects.extend(self.close_idle(CloseReason::Age, |held| {
            max_age.is_some_and(|most| now.saturating_sub(held.born) >= most)
        }));
        effects.extend(self.pump(now));
        effects
    }

    fn close_idle(
        &mut self,
        reason: CloseReason,
        close: impl Fn(&Held<C>) -> bool,
    ) -> Vec<Effect<C, W>> {
        let mut effects = Vec::new();
        for origin in &mut self.origins {
            let (closing, keeping) = origin.idle.drain(..).partition(|held| close(held));
            origin.idle = keeping;
            for held in VecDeque::<Held<C>>::into_iter(closing) {
                self.counters.count_closed(reason);
                effects.push(Effect::Close { conn: held.conn });
            }
        }
        effects
    }

    fn forget_retired(&mut self) {
        self.origins
            .retain(|origin| !origin.retired || origin.active > 0 || !origin.idle.is_empty());
    }

    fn take_connecting(&mut self, ticket: Ticket) -> Option<Connecting> {
        let at = self
            .connecting
            .iter()
            .position(|connect| connect.ticket == ticket)?;
        Some(self.connecting.swap_remove(at))
    }

    fn connecting_to(&self, origin: OriginId) -> usize {
        self.connecting
            .iter()
            .filter(|connect| connect.origin == origin)
            .count()
    }

    fn origin_mut(&mut self, id: OriginId) -> Option<&mut Origin<C>> {
        self.origins.iter_mut().find(|origin| origin.id == id)
    }

    fn idle(&self) -> usize {
        self.origins.iter().map(|origin| origin.idle.len()).sum()
    }

    fn active(&self) -> usize {
        self.origins.iter().map(|origin| origin.active).sum()
    }

    fn open(&self) -> usize {
        self.idle() + self.active() + self.connecting.len()
    }

    /// Why a connection that does not fit is closed: the pool is too small, or the budget is short.
    fn no_room(&self) -> CloseReason {
        match self.open() > self.shape.size {
            true => CloseReason::Shrink,
            false => CloseReason::Evicted,
        }
    }

    /// Most connections open now.
    fn limit(&self) -> usize {
        self.shape.size.min(self.cap)
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

#[cfg(test)]
mod tests;
