//! The pool as a pure state machine: it takes events and returns effects. It knows no socket, no
//! task and no clock; the time of an event is an argument. docs/adr/0010 has the whole of its states,
//! transitions and invariants.
//!
//! A connection is connecting, idle, active or gone:
//!
//! ```text
//!   Connect ──connected──▶ idle ──grant──▶ active ──release──▶ idle
//!      │                    │                 │
//!      └─connect_failed     └─ close          └─ close (not reusable, over size, retired, too old)
//! ```
//!
//! One that carries several requests (HTTP/2) is active with the first and idle after the last.
//!
//! Invariants; 1, 4, 5, 6 and 7 are asserted whenever the pool comes to rest in test builds, 2 and 3 have
//! tests of their own:
//! 1. open (idle + active + connecting) never grows beyond the size, nor beyond the cap that the
//!    worker's budget leaves to the pool. After a shrink of either, what is in use stays in use, and
//!    nothing is opened until it fits again.
//! 2. Keepalive is the size: a returned connection that fits is kept, whatever the count of idle ones.
//! 3. Within a flow waiters are served first come, first served, and an arrival never overtakes one, but one who
//!    needs a fresh connection, or a certain endpoint; between flows the turns are those of `line.rs`.
//! 4. Nobody waits while there is an idle connection that he may use and room to use it; if there is room, as
//!    many connects are under way as are waited for, unless every endpoint is backing off or out.
//! 5. No idle connection belongs to a retired endpoint.
//! 6. opened - closed = idle + active.
//! 7. A connection carries no more requests at a time than it can, and a pool no more than its size; it
//!    takes no more in than its admission limit, which is at most the size.
//! 8. An endpoint that is ejected gets no request while another may serve, and one that is half-open one at a time.
//! 9. Each request in flight is counted for one flow.

mod adaptive;
mod balance;
mod ejection;
mod flow;
mod handover;
mod health;
mod idle;
mod leased;
mod line;
mod look;
mod origin;
mod pulse;
mod pump;
mod release;
mod shared;
mod types;
mod warmth;
mod wish;

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    time::Duration,
};

use self::{
    adaptive::Adaptive,
    balance::{LeastLoaded, Scorer},
    health::Mood,
    leased::Leased,
    line::Line,
    origin::{Origin, Phase, Rest},
    warmth::Peak,
};
pub(super) use self::{
    adaptive::{Answered, How},
    ejection::{Rules, State},
    leased::Share,
    pulse::Pulse,
    shared::MOST_STREAMS,
    types::{
        Ask, Census, ConnId, Connection, Effect, Effects, EndpointKey, Held, Idle, OriginCensus,
        OriginId, OriginSpec, Outcome, Place, Refused, Seat, Shape, Standing, Ticket, WaiterId,
        Wish,
    },
};
use super::counters::{CloseReason, Counters, OpenReason};

/// A close this soon after a connection was handed out had happened before.
const AT_ONCE: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Connecting {
    ticket: Ticket,
    origin: OriginId,
    reason: OpenReason,
    began: Duration,
}

#[derive(Debug)]
pub(super) struct Core<C, W> {
    shape: Shape,
    /// What the worker's budget leaves to this pool.
    cap: usize,
    retired: bool,
    origins: Vec<Origin<C>>,
    connecting: Vec<Connecting>,
    line: Line<W>,
    /// What is let in while the engine is slow; nothing unless the model asks for it.
    adaptive: Option<Adaptive>,
    /// What of a fleet-wide limit is lent to it; nothing if its size is its own.
    leased: Option<Leased>,
    ids: u64,
    /// The warm floor was reached once; what is opened for it from now on is a refill.
    filled: bool,
    peak: Peak,
    /// Connections that have yet to be made in place of those of endpoints that changed.
    owed: usize,
    scorer: Box<dyn Scorer>,
    dice: fastrand::Rng,
    /// The endpoint that would have got a request if it had had a connection.
    wished: Option<OriginId>,
    mood: Mood,
    pub(super) counters: Counters,
}

impl<C: Connection, W> Core<C, W> {
    /// A pool with no endpoint yet; [`Core::reshape`] names them.
    pub(super) fn new(mut shape: Shape, cap: usize, seed: u64) -> Self {
        let leased = shape.fleet_wide.then(Leased::default);
        if leased.is_some() {
            shape.size = 0;
        }
        Self {
            leased,
            adaptive: shape
                .adaptive
                .map(|params| Adaptive::new(params, shape.size, Duration::ZERO)),
            shape,
            cap,
            retired: false,
            origins: Vec::new(),
            connecting: Vec::new(),
            line: Line::new(),
            ids: 0,
            filled: false,
            peak: Peak::default(),
            owed: 0,
            scorer: Box::new(LeastLoaded),
            dice: fastrand::Rng::with_seed(seed),
            wished: None,
            mood: Mood::default(),
            counters: Counters::default(),
        }
    }

    /// A request wants a connection.
    pub(super) fn acquire(
        &mut self,
        now: Duration,
        ask: &Ask,
        waiter: W,
        place: Place,
        wish: Wish,
    ) -> (WaiterId, Vec<Effect<C, W>>) {
        let seq = self.next_id();
        let id = match place {
            Place::Back => self.line.push(now, seq, ask, wish, waiter),
            Place::Front => self.line.push_front(now, seq, ask, None, wish, waiter),
            Place::FrontForFresh => {
                let fresh_since = Some(now);
                self.line
                    .push_front(now, seq, ask, fresh_since, wish, waiter)
            }
        };
        let mut effects = self.pump(now);
        // Those for whom there is room wait for a connect, not in line.
        let room = self.admitted().saturating_sub(self.in_flight());
        if self.line.len().saturating_sub(room) > self.shape.max_waiting
            && place == Place::Back
            && let Some((waiter, why)) = self.line.turn_away(id)
        {
            self.counters.count_refused(&why);
            effects.push(Effect::Refuse { waiter, why });
        }
        (id, effects)
    }

    /// A waiter went away. The connect that it caused goes on and serves the next one.
    pub(super) fn cancel(&mut self, id: WaiterId) -> Option<W> {
        self.line.remove(id)
    }

    /// The head of an answer says how the engine does.
    pub(super) fn answered(&mut self, now: Duration, answered: &Answered) -> Vec<Effect<C, W>> {
        let in_flight = self.in_flight();
        let size = self.shape.size;
        let adaptive = self.adaptive.as_mut();
        match adaptive.is_some_and(|a| a.answered(now, answered, in_flight, size)) {
            true => self.pump(now),
            false => Vec::new(),
        }
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
        let retired = self.retired && self.line.is_empty();
        let Some(origin) = self
            .origin_mut(connect.origin)
            .filter(|o| o.is_current() && !retired)
        else {
            self.counters.count_closed(CloseReason::Removed);
            return (None, self.pump_with(now, Effect::Close { conn }));
        };
        origin.connected(now);
        if !fits {
            self.counters.count_closed(no_room);
            return (None, self.pump_with(now, Effect::Close { conn }));
        }
        origin.admit(conn, id, now);
        if connect.reason == OpenReason::Replace {
            self.owed = self.owed.saturating_sub(1);
        }
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

    /// The server allows another number of requests at a time on this connection.
    pub(super) fn allow(&mut self, now: Duration, id: ConnId, streams: usize) -> Vec<Effect<C, W>> {
        let mut shared = self.origins.iter_mut().flat_map(|o| &mut o.shared);
        if let Some(shared) = shared.find(|shared| shared.id == id) {
            shared.allow(streams);
        }
        self.pump(now)
    }

    /// The connection's task ended. If it was idle, the upstream closed it.
    pub(super) fn ended(&mut self, now: Duration, id: ConnId) -> Vec<Effect<C, W>> {
        let mut origins = self.origins.iter_mut();
        match origins.find_map(|origin| origin.ended(now, id)) {
            Some(conn) => {
                self.counters.count_closed(CloseReason::Upstream);
                self.pump_with(now, Effect::Close { conn })
            }
            None => Vec::new(),
        }
    }

    /// New parameters and endpoints. What still fits stays as it is. Those of the old ones that are in
    /// `changed` serve until their heirs are warm; others that are gone serve nobody any more.
    pub(super) fn reshape(
        &mut self,
        now: Duration,
        shape: Shape,
        origins: &[OriginSpec],
        changed: &[OriginId],
    ) -> Vec<Effect<C, W>> {
        if shape.warm > self.shape.warm {
            self.filled = false;
        }
        let shape = self.lend_to(now, shape);
        self.adaptive = match (self.adaptive.take(), shape.adaptive) {
            (Some(mut adaptive), Some(params)) => {
                adaptive.reshape(params, self.shape.size, shape.size);
                Some(adaptive)
            }
            (None, Some(params)) => Some(Adaptive::new(params, shape.size, now)),
            (_, None) => None,
        };
        self.shape = shape;
        let wanted: HashMap<OriginId, &OriginSpec> = origins.iter().map(|o| (o.id, o)).collect();
        for origin in &mut self.origins {
            match wanted.get(&origin.id) {
                // Also one that was removed and is back before it was forgotten.
                Some(spec) => {
                    (origin.weight, origin.standing) = (spec.weight, spec.standing);
                    origin.endpoint = spec.endpoint;
                    origin.phase = Phase::Current;
                }
                None => origin.leave(now, changed.contains(&origin.id)),
            }
        }
        // What is being dialled there would serve nobody, and takes the place of what would.
        self.connecting
            .retain(|connect| wanted.contains_key(&connect.origin));
        let known: HashSet<OriginId> = self.origins.iter().map(|origin| origin.id).collect();
        for spec in origins.iter().filter(|spec| !known.contains(&spec.id)) {
            let mut origin = Origin::new(spec);
            let mut like = self.origins.iter().filter(|o| Some(o.id) == spec.like);
            if let Some(like) = like.next() {
                origin.resemble(like);
            }
            self.origins.push(origin);
            self.filled = false;
        }
        self.begin_handover();
        self.heed();
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

    /// The name of an endpoint cannot be resolved.
    pub(super) fn unresolved(
        &mut self,
        now: Duration,
        origin: OriginId,
        error: &str,
    ) -> Vec<Effect<C, W>> {
        if let Some(origin) = self.origin_mut(origin) {
            origin.failed(now, error);
        }
        self.pump(now)
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
        self.roll(now);
        self.lapse(now);
        let limits: Vec<(OriginId, Duration)> = self.idle_limits(now);
        let expired = |rest: &Rest| {
            let mut limits = limits.iter();
            let limit = limits.find_map(|(id, limit)| (*id == rest.origin).then_some(*limit));
            limit.is_some_and(|limit| now.saturating_sub(rest.idle_since) >= limit)
        };
        let mut effects = self.close_idle(CloseReason::Idle, |rest| rest.uses > 0 && expired(rest));
        // Those that never carried a request are the warm floor: uvicorn never times them out, so
        // only what exceeds the floor goes.
        let surplus = Cell::new(self.open().saturating_sub(self.floor(now)));
        effects.extend(self.close_idle(CloseReason::Idle, |rest| {
            let close = rest.uses == 0 && surplus.get() > 0 && expired(rest);
            surplus.set(surplus.get() - usize::from(close));
            close
        }));
        if let Some(most) = self.shape.max_age {
            let old = |born: Duration| now.saturating_sub(born) >= most;
            effects.extend(self.close_idle(CloseReason::Age, |rest| old(rest.born)));
            let shared = self.origins.iter_mut().flat_map(|o| &mut o.shared);
            for shared in shared.filter(|shared| old(shared.born)) {
                shared.doomed.get_or_insert(CloseReason::Age);
            }
        }
        effects.extend(self.pump(now));
        self.revoke_lapsed(now, &mut effects);
        effects
    }

    fn close_idle(
        &mut self,
        reason: CloseReason,
        close: impl Fn(&Rest) -> bool,
    ) -> Vec<Effect<C, W>> {
        let mut effects = Vec::new();
        for origin in &mut self.origins {
            for conn in origin.let_go(&close) {
                self.counters.count_closed(reason);
                effects.push(Effect::Close { conn });
            }
        }
        effects
    }

    fn forget_retired(&mut self) {
        self.origins
            .retain(|origin| origin.is_current() || origin.open() > 0);
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

    fn resting(&self) -> usize {
        self.origins.iter().map(Origin::resting).sum()
    }

    /// Connections that carry a request.
    fn busy(&self) -> usize {
        self.origins.iter().map(Origin::busy).sum()
    }

    /// Requests.
    fn in_flight(&self) -> usize {
        self.origins.iter().map(Origin::in_flight).sum()
    }

    fn open(&self) -> usize {
        let open = self.origins.iter().map(Origin::open);
        open.sum::<usize>() + self.connecting.len()
    }

    /// Why a connection that does not fit is closed: the pool is too small, or the budget is short.
    fn no_room(&self) -> CloseReason {
        match self.open() > self.shape.size {
            true => CloseReason::Shrink,
            false => CloseReason::Evicted,
        }
    }

    /// Most requests in flight that are let in now.
    fn admitted(&self) -> usize {
        let adaptive = self.adaptive.as_ref();
        let let_in = adaptive.map_or(self.shape.size, |a| a.limit().min(self.shape.size));
        let_in.min(self.shape.size.saturating_sub(self.cooling()))
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
