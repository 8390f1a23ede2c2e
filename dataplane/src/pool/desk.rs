//! Where connections are lent and given back: the core behind one short lock, the line of those who wait,
//! and loans that come back whatever happens.
//!
//! All of the pool's concurrency is here, and it is generic over the connection, so that the tests of
//! interleavings run this code and not a copy. Lock discipline: inside the lock only bookkeeping happens.
//! Effects are carried out after it is released: no await, no wake-up and no drop of a connection under
//! it, and never two pools' locks at once.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    core::{
        Ask, ConnId, Connection, Effect, Held, OriginId, Outcome, Place, Refused, Ticket, WaiterId,
        Wish,
    },
    counters::{CloseReason, Turn, Verdict},
    inner::Inner,
    lock::{Lock, others_may_run},
};
use crate::budget::Budget;

pub(super) type Granted<C> = Result<Loan<C>, Refused>;
pub(super) type Waiter<C> = oneshot::Sender<Granted<C>>;
pub(super) type Effects<C> = super::core::Effects<C, Waiter<C>>;

/// What the desk must know of a connection.
pub(super) trait Upstream: Connection + Send + 'static {
    /// Closes it now, whoever else has a handle on it.
    fn close(self);

    /// True if its task has ended.
    fn is_closed(&self) -> bool;

    /// True if a request could be sent now, as far as can be seen.
    fn is_live(&self) -> bool;
}

/// Who makes connections. It tells the desk how it went, at once or later.
pub(super) trait Dial<C: Upstream>: std::fmt::Debug + Send + Sync {
    fn dial(&self, desk: &Arc<Desk<C>>, ticket: Ticket, origin: OriginId);
}

/// The desk of one pool.
#[derive(Debug)]
pub(super) struct Desk<C: Upstream> {
    born: Instant,
    inner: Lock<Inner<C>>,
    dialler: Box<dyn Dial<C>>,
    budget: Arc<Budget>,
}

impl<C: Upstream> Desk<C> {
    pub(super) fn new(
        inner: Inner<C>,
        dialler: Box<dyn Dial<C>>,
        budget: Arc<Budget>,
    ) -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            inner: Lock::new(inner),
            dialler,
            budget,
        })
    }

    /// That time, as the core counts it.
    pub(super) fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.born)
    }

    /// Looks, or changes what has no effects.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Inner<C>, Duration) -> T) -> T {
        let now = self.born.elapsed();
        look(&mut self.inner.lock(), now)
    }

    /// A transition, and what it brings with it.
    pub(super) fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Inner<C>, Duration) -> Effects<C>,
    ) {
        let effects = self.with(change);
        self.carry_out(effects);
    }

    /// A connection at once, for one who comes when nobody waits and one is free.
    pub(super) fn take(self: &Arc<Self>, ask: &Ask) -> Option<Loan<C>> {
        let (held, effects) = self.with(|inner, now| inner.core.take_at_once(now, ask))?;
        let loan = Loan::new(self, held);
        self.carry_out(effects);
        self.budget.note_change();
        Some(loan)
    }

    /// Lines up. Dropping what it returns gives the place up, or the connection back.
    pub(super) fn line_up(self: &Arc<Self>, ask: &Ask, place: Place, wish: Wish) -> InLine<C> {
        let (sender, receiver) = oneshot::channel();
        let lined_up = self.with(|inner, now| inner.core.acquire(now, ask, sender, place, wish));
        let (id, effects) = lined_up;
        let line = InLine {
            desk: self.clone(),
            id,
            receiver,
            served: false,
        };
        self.carry_out(effects);
        self.budget.note_change();
        line
    }

    /// What an answer says of the endpoint that it came from.
    pub(super) fn judge(self: &Arc<Self>, origin: OriginId, verdict: Verdict) {
        let (turn, effects) = self.with(|inner, now| inner.core.judge(now, origin, verdict));
        self.carry_out(effects);
        self.tell(origin, turn);
    }

    /// What a check found.
    pub(super) fn checked(self: &Arc<Self>, origin: OriginId, passed: bool) {
        let (turn, effects) = self.with(|inner, now| {
            let after = inner.failure.health.after();
            inner.core.checked(now, origin, passed, after)
        });
        self.carry_out(effects);
        self.tell(origin, turn);
    }

    fn tell(&self, origin: OriginId, turn: Option<Turn>) {
        let Some(turn) = turn else { return };
        let named = self.with(|inner, _| {
            let target = inner.targets.get(&origin);
            target.map(|target| (inner.model.clone(), target.clone()))
        });
        let Some((model, target)) = named else { return };
        let (endpoint, address) = (&target.endpoint.id, &target.place);
        match turn {
            Turn::Out(why) => {
                let why = why.label();
                tracing::warn!(%model, %endpoint, %address, why, "an endpoint is ejected");
            }
            Turn::Back => tracing::info!(%model, %endpoint, %address, "an endpoint serves again"),
        }
    }

    /// A connect succeeded. Gives the name under which its end is to be told, and whether it is the first
    /// connection to an endpoint that is asked what it serves.
    pub(super) fn connected(
        self: &Arc<Self>,
        ticket: Ticket,
        origin: OriginId,
        conn: C,
    ) -> Option<(ConnId, bool)> {
        let ((id, effects), first) = self.with(|inner, now| {
            let first = inner.awaits_first(now, origin);
            (inner.core.connected(now, ticket, conn), first)
        });
        self.carry_out(effects);
        id.map(|id| (id, first))
    }

    /// A connect failed.
    pub(super) fn connect_failed(self: &Arc<Self>, ticket: Ticket, error: &str) {
        self.change(|inner, now| inner.core.connect_failed(now, ticket, error));
    }

    /// A connection's task ended.
    pub(super) fn ended(self: &Arc<Self>, id: ConnId) {
        self.change(|inner, now| inner.core.ended(now, id));
    }

    fn release(
        self: &Arc<Self>,
        held: Held<C>,
        outcome: Outcome,
        since: Instant,
        first_byte: Option<Duration>,
    ) {
        // One of several requests; what became of it says nothing of the others.
        let goes_on = held.shared && held.conn.is_live();
        let used = since.elapsed();
        self.change(|inner, now| {
            inner.note_use(now, used, first_byte);
            // Its end may have been told while it was on loan; under this lock it is told no more.
            let outcome = match (outcome, held.conn.is_closed()) {
                (Outcome::Reusable, true) => Outcome::Finished,
                (Outcome::Unused, true) => Outcome::Broken(CloseReason::Upstream),
                (Outcome::Broken(_), false) if goes_on => Outcome::Aborted,
                (Outcome::Declined, _) if !goes_on => Outcome::Broken(CloseReason::Upstream),
                (outcome, _) => outcome,
            };
            inner.core.release(now, held, outcome)
        });
        self.budget.note_change();
    }

    /// Does what the core decided. Outside the lock.
    fn carry_out(self: &Arc<Self>, effects: Effects<C>) {
        for effect in effects {
            others_may_run();
            match effect {
                // A waiter that has just gone gives the loan back by dropping it.
                Effect::Grant { waiter, held } => drop(waiter.send(Ok(Loan::new(self, held)))),
                Effect::Refuse { waiter, why } => drop(waiter.send(Err(why))),
                Effect::Connect { ticket, origin } => self.dialler.dial(self, ticket, origin),
                Effect::Close { conn } => conn.close(),
                Effect::LetGo { conn } => drop(conn),
                Effect::Revoke(revocation) => revocation.revoke(),
            }
        }
    }
}

/// A place in line.
#[derive(Debug)]
pub(super) struct InLine<C: Upstream> {
    desk: Arc<Desk<C>>,
    id: WaiterId,
    receiver: oneshot::Receiver<Granted<C>>,
    served: bool,
}

impl<C: Upstream> Future for InLine<C> {
    /// `None` if the pool is gone.
    type Output = Option<Granted<C>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.receiver).poll(cx));
        self.served = true;
        Poll::Ready(answer.ok())
    }
}

impl<C: Upstream> Drop for InLine<C> {
    fn drop(&mut self) {
        if !self.served {
            let waiter = self.desk.with(|inner, _| inner.core.cancel(self.id));
            drop(waiter);
            self.desk.budget.note_change();
        }
    }
}

/// A connection, or one request's place on one, on loan. However it ends, it comes back exactly once.
#[derive(Debug)]
pub(super) struct Loan<C: Upstream> {
    desk: Arc<Desk<C>>,
    held: Option<Held<C>>,
    in_use: bool,
    since: Instant,
    /// How long the answer's first byte took.
    first_byte: Option<Duration>,
}

impl<C: Upstream> Loan<C> {
    fn new(desk: &Arc<Desk<C>>, held: Held<C>) -> Self {
        Self {
            desk: desk.clone(),
            held: Some(held),
            in_use: false,
            since: Instant::now(),
            first_byte: None,
        }
    }

    pub(super) fn desk(&self) -> &Arc<Desk<C>> {
        &self.desk
    }

    pub(super) fn held(&self) -> Option<&Held<C>> {
        self.held.as_ref()
    }

    /// To send on it. From now on its end without a word is that of a request.
    pub(super) fn start(&mut self) -> Option<&mut Held<C>> {
        self.in_use = true;
        self.held.as_mut()
    }

    /// The answer's first byte took so long.
    pub(super) fn answered_after(&mut self, took: Duration) {
        self.first_byte = Some(took);
    }

    /// Gives it back, with what became of it.
    pub(super) fn give_back(mut self, outcome: Outcome) {
        if let Some(held) = self.held.take() {
            self.desk
                .release(held, outcome, self.since, self.first_byte);
        }
    }

    /// The connection, to wait for it to come to rest.
    pub(super) fn conn_mut(&mut self) -> Option<&mut C> {
        self.held.as_mut().map(|held| &mut held.conn)
    }
}

impl<C: Upstream> Drop for Loan<C> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let outcome = match self.in_use {
                false => Outcome::Unused,
                true => Outcome::Broken(CloseReason::Cancelled),
            };
            self.desk
                .release(held, outcome, self.since, self.first_byte);
        }
    }
}
