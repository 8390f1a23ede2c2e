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
//! Invariants, asserted after every transition in test builds:
//! 1. open (idle + active + connecting) never grows beyond the size. After a shrink, what is in
//!    use stays in use, and nothing is opened until it fits again.
//! 2. Keepalive is the size: a returned connection that fits is kept, whatever the count of idle ones.
//! 3. Waiters are served first come, first served; an arrival never overtakes one.
//! 4. Nobody waits while there is an idle connection and room to use it; if there is room, as
//!    many connects are under way as are waited for, unless every endpoint is backing off.
//! 5. No idle connection belongs to a retired endpoint.
//! 6. opened - closed = idle + active.

use std::{cell::Cell, collections::VecDeque, sync::Arc, time::Duration};

use super::counters::{CloseReason, Counters, OpenReason};

/// Most connects under way that nobody waits for, so that a restarted engine is not stormed.
const WARM_AT_ONCE: usize = 4;
/// First pause after a failed connect; doubles up to [`BACKOFF_MOST`].
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest pause between connects to an endpoint that fails.
const BACKOFF_MOST: Duration = Duration::from_secs(2);
/// How long a request waits for an endpoint that just began to fail.
const PATIENCE: Duration = Duration::from_secs(1);
/// After this long without a single successful connect, requests are refused at once.
const FAIL_FAST: Duration = Duration::from_secs(3);

/// An endpoint of one generation. A changed url is a new origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OriginId(pub(super) u64);

/// A connect under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WaiterId(u64);

/// An open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnId(u64);

/// The parameters, as the core needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) size: usize,
    pub(super) warm: usize,
    pub(super) max_waiting: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_age: Option<Duration>,
}

/// An open connection with its history. Idle ones live in the core, active ones with their lease.
#[derive(Debug)]
pub(super) struct Held<C> {
    pub(super) conn: C,
    pub(super) id: ConnId,
    pub(super) origin: OriginId,
    pub(super) uses: u64,
    born: Duration,
    idle_since: Duration,
}

/// How a connection comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// At a message boundary: it can carry the next request.
    Reusable,
    /// It was handed out but nothing was asked of it.
    Unused,
    /// It cannot be used again.
    Broken(CloseReason),
}

/// Why a waiter is sent away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    QueueFull,
    ConnectFailed(Arc<str>),
}

/// What the shell must do.
#[derive(Debug)]
pub(super) enum Effect<C, W> {
    Grant { waiter: W, held: Held<C> },
    Refuse { waiter: W, why: Refused },
    Connect { ticket: Ticket, origin: OriginId },
    Close { conn: C },
}

/// Where a waiter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Back,
    /// For one whose connection turned out to be dead: it had waited its turn.
    Front,
}

/// Counts at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) idle: usize,
    pub(super) active: usize,
    pub(super) draining: usize,
    pub(super) connecting: usize,
    pub(super) waiting: usize,
}

#[derive(Debug)]
struct Waiter<W> {
    id: WaiterId,
    arrived: Duration,
    waiter: W,
}

#[derive(Debug)]
struct Connecting {
    ticket: Ticket,
    origin: OriginId,
    reason: OpenReason,
}

#[derive(Debug)]
struct Origin<C> {
    id: OriginId,
    weight: u32,
    retired: bool,
    /// Oldest in front; taken from the back.
    idle: VecDeque<Held<C>>,
    active: usize,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    since: Duration,
    retry_at: Duration,
    failures: u32,
    error: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Core<C, W> {
    shape: Shape,
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
    pub(super) fn new(shape: Shape, origins: impl IntoIterator<Item = (OriginId, u32)>) -> Self {
        let mut core = Self {
            shape,
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
            waiter,
        };
        match place {
            Place::Back => self.waiters.push_back(waiter),
            Place::Front => self.waiters.push_front(waiter),
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
        let fits = self.open() < self.shape.size;
        let retired = self.retired && self.waiters.is_empty();
        let Some(origin) = self
            .origin_mut(connect.origin)
            .filter(|o| !o.retired && !retired)
        else {
            self.counters.count_closed(CloseReason::Removed);
            return (None, self.pump_with(now, Effect::Close { conn }));
        };
        origin.trouble = None;
        if !fits {
            self.counters.count_closed(CloseReason::Shrink);
            return (None, self.pump_with(now, Effect::Close { conn }));
        }
        let held = Held {
            conn,
            id,
            origin: origin.id,
            uses: 0,
            born: now,
            idle_since: now,
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
        let fits = self.open() <= self.shape.size;
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
        let close = match outcome {
            Outcome::Broken(reason) => Some(reason),
            _ if origin.retired || idle_pool => Some(CloseReason::Removed),
            _ if !fits => Some(CloseReason::Shrink),
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
            Outcome::Reusable | Outcome::Broken(_) => held.idle_since = now,
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
                Some((_, weight)) => origin.weight = *weight,
                None => origin.retired = true,
            }
        }
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

    /// Closes what is idle and keeps nothing any more: the worker stops.
    pub(super) fn shutdown(&mut self) -> Vec<Effect<C, W>> {
        self.retired = true;
        self.close_idle(CloseReason::Shutdown, |_| true)
    }

    /// Time went by: idle and age limits, back-off that is over, requests whose patience is.
    pub(super) fn sweep(&mut self, now: Duration) -> Vec<Effect<C, W>> {
        let idle_timeout = self.shape.idle_timeout;
        let max_age = self.shape.max_age;
        let expired = |held: &Held<C>| now.saturating_sub(held.idle_since) >= idle_timeout;
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

    /// Counts at this instant.
    pub(super) fn census(&self) -> Census {
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
    pub(super) fn is_empty(&self) -> bool {
        self.open() == 0 && self.waiters.is_empty()
    }

    fn pump_with(&mut self, now: Duration, first: Effect<C, W>) -> Vec<Effect<C, W>> {
        let mut effects = vec![first];
        effects.extend(self.pump(now));
        effects
    }

    /// Brings the pool to rest after a transition: retire, grant, shrink, connect, give up.
    fn pump(&mut self, now: Duration) -> Vec<Effect<C, W>> {
        let mut effects = self.close_retired();
        self.grant(&mut effects);
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

    fn grant(&mut self, effects: &mut Vec<Effect<C, W>>) {
        while !self.waiters.is_empty() && self.active() < self.shape.size {
            // The endpoint with the least in use for its weight; its newest idle connection.
            let best = self
                .origins
                .iter_mut()
                .filter(|origin| !origin.idle.is_empty())
                .min_by(|a, b| lighter(a.active, a.weight, b.active, b.weight));
            let Some(origin) = best else { return };
            let Some(mut held) = origin.idle.pop_back() else {
                return;
            };
            let Some(waiter) = self.waiters.pop_front() else {
                origin.idle.push_back(held);
                return;
            };
            origin.active += 1;
            match held.uses {
                0 => self.counters.new += 1,
                _ => self.counters.reused += 1,
            }
            held.uses += 1;
            effects.push(Effect::Grant {
                waiter: waiter.waiter,
                held,
            });
        }
    }

    fn shrink(&mut self, effects: &mut Vec<Effect<C, W>>) {
        while self.open() > self.shape.size {
            let coldest = self
                .origins
                .iter_mut()
                .filter(|origin| !origin.idle.is_empty())
                .min_by_key(|origin| origin.idle.front().map(|held| held.idle_since));
            let Some(held) = coldest.and_then(|origin| origin.idle.pop_front()) else {
                return;
            };
            self.counters.count_closed(CloseReason::Shrink);
            effects.push(Effect::Close { conn: held.conn });
        }
    }

    fn connect_for_waiters(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        while self.connecting.len() < self.waiters.len() && self.open() < self.shape.size {
            if !self.connect(now, OpenReason::Demand, effects) {
                return;
            }
        }
    }

    fn connect_for_warmth(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        if self.retired {
            return;
        }
        let floor = self.shape.warm.min(self.shape.size);
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
        if self.waiters.is_empty() || self.open() > 0 {
            return;
        }
        let current = self.origins.iter().filter(|origin| !origin.retired);
        let troubles: Option<Vec<&Trouble>> = current.map(|o| o.trouble.as_ref()).collect();
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

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

impl<C> Origin<C> {
    fn new(id: OriginId, weight: u32) -> Self {
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
    fn may_connect(&self, now: Duration, connecting: usize) -> bool {
        let ready = |trouble: &Trouble| trouble.retry_at <= now && connecting == 0;
        !self.retired && self.trouble.as_ref().is_none_or(ready)
    }

    fn failed(&mut self, now: Duration, error: &str) {
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
fn lighter(a: usize, a_weight: u32, b: usize, b_weight: u32) -> std::cmp::Ordering {
    let scaled = |n: usize, weight: u32| (n as u64).saturating_mul(u64::from(weight));
    scaled(a, b_weight).cmp(&scaled(b, a_weight))
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
