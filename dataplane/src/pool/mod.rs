//! The pool of one model: the core behind one short lock, and the tasks that connect, drive and
//! settle its connections.
//!
//! Lock discipline: inside the lock only the core's bookkeeping happens. Effects are carried out
//! after it is released: no await, no wake-up and no drop of a connection under it, and never two
//! pools' locks at once.

mod conn;
mod core;
mod counters;
mod error;
mod follow;
mod inner;
mod io;
mod lease;
mod snapshot;
mod target;
mod tls;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use forebay_proto::{ModelId, ResolvedModel};
use parking_lot::Mutex;
use prometheus::Histogram;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use self::inner::Inner;
use self::{
    conn::{Conn, ConnectError, Driver},
    core::{
        ConnId, Connection as _, Effect, Held, OriginId, Outcome, Place, Refused, Ticket, WaiterId,
    },
    target::Target,
};
pub use self::{
    counters::{CloseReason, Counters, OpenReason},
    error::{AcquireError, Busy},
    lease::{Kind, Lease, Progress, SendError, SendFailed},
    snapshot::{EndpointSnapshot, PoolSnapshot},
};
use crate::{
    budget::{Budget, Need},
    metrics::Metrics,
    resolve::Resolver,
};

type Granted = Result<Lease, Refused>;
type Effects = Vec<Effect<Conn, oneshot::Sender<Granted>>>;

/// What all pools of a worker have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    /// Where their tasks run.
    pub(crate) tasks: TaskTracker,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) resolver: Arc<Resolver>,
}

/// The bounded set of connections of one model.
#[derive(Debug)]
pub struct Pool {
    model: ModelId,
    tasks: TaskTracker,
    born: Instant,
    connect_seconds: Histogram,
    budget: Arc<Budget>,
    resolver: Arc<Resolver>,
    /// The names of its endpoints are followed; the task is told of changes.
    follows: AtomicBool,
    names_changed: Arc<Notify>,
    stop: CancellationToken,
    inner: Mutex<Inner>,
}

impl Pool {
    /// A pool for this model. Connections are opened on demand, and ahead of it by the sweep.
    #[must_use]
    pub(crate) fn new(model: &ResolvedModel, common: &Common, cap: usize) -> Arc<Self> {
        let pool = Arc::new(Self {
            model: model.id.clone(),
            tasks: common.tasks.clone(),
            born: Instant::now(),
            connect_seconds: common.metrics.connect_seconds(&model.id),
            budget: common.budget.clone(),
            resolver: common.resolver.clone(),
            follows: AtomicBool::new(false),
            names_changed: Arc::default(),
            stop: CancellationToken::new(),
            inner: Mutex::new(Inner::new(model, cap, fastrand::u64(..))),
        });
        pool.reshape(model);
        pool
    }

    /// A connection for one request, in turn. Safe to drop at any await: the place in line is given
    /// up, or the connection returned.
    pub async fn acquire(self: &Arc<Self>, deadline: Instant) -> Result<Lease, AcquireError> {
        self.acquire_at(Place::Back, deadline).await
    }

    /// The same for one whose connection turned out to be dead at the first byte: it had its turn.
    pub async fn acquire_again(self: &Arc<Self>, deadline: Instant) -> Result<Lease, AcquireError> {
        self.acquire_at(Place::Front, deadline).await
    }

    /// A connection that carried no request yet, for one whose connection was closed under it.
    pub async fn acquire_fresh(self: &Arc<Self>, deadline: Instant) -> Result<Lease, AcquireError> {
        self.acquire_at(Place::FrontForFresh, deadline).await
    }

    async fn acquire_at(
        self: &Arc<Self>,
        mut place: Place,
        deadline: Instant,
    ) -> Result<Lease, AcquireError> {
        let began = Instant::now();
        loop {
            let lease = self.wait_in_line(began, deadline, place).await?;
            if lease.is_live() {
                return Ok(lease);
            }
            // Closed by the upstream an instant ago: not this request's fault, nor its wait anew.
            self.inner.lock().core.counters.stale_at_checkout += 1;
            lease.discard(CloseReason::Upstream);
            if place == Place::Back {
                place = Place::Front;
            }
        }
    }

    async fn wait_in_line(
        self: &Arc<Self>,
        began: Instant,
        deadline: Instant,
        place: Place,
    ) -> Result<Lease, AcquireError> {
        let (sender, receiver) = oneshot::channel();
        let now = self.now();
        let (id, effects) = self.inner.lock().core.acquire(now, sender, place);
        let mut line = InLine {
            pool: self,
            id,
            served: false,
        };
        self.carry_out(effects);
        self.budget.note_change();
        let answer = timeout_at(deadline, receiver).await;
        line.served = answer.is_ok();
        match answer {
            Ok(Ok(Ok(lease))) => Ok(lease),
            Ok(Ok(Err(Refused::QueueFull))) => Err(AcquireError::QueueFull(self.busy())),
            Ok(Ok(Err(Refused::ConnectFailed(error)))) => Err(AcquireError::Connect {
                model: self.model.clone(),
                error,
            }),
            Ok(Err(_)) | Err(_) => Err(AcquireError::Timeout {
                waited: began.elapsed(),
                busy: self.busy(),
            }),
        }
    }

    /// New parameters and endpoints, live. What still fits stays open.
    pub fn reshape(self: &Arc<Self>, model: &ResolvedModel) {
        let now = self.now();
        let effects = self.inner.lock().reshape(now, model);
        self.carry_out(effects);
        self.follow_names();
    }

    /// Has the names of its endpoints resolved, if there are any.
    fn follow_names(self: &Arc<Self>) {
        if self.names().is_empty() && !self.follows.load(Ordering::Acquire) {
            return;
        }
        self.names_changed.notify_one();
        if !self.follows.swap(true, Ordering::AcqRel) {
            let (pool, resolver) = (Arc::downgrade(self), self.resolver.clone());
            let (changed, stop) = (self.names_changed.clone(), self.stop.clone());
            self.tasks
                .spawn(follow::follow(pool, resolver, changed, stop));
        }
    }

    /// The model was removed: serves who still holds it, then empties.
    pub fn retire(self: &Arc<Self>) {
        let now = self.now();
        let effects = self.inner.lock().core.retire(now);
        self.carry_out(effects);
    }

    /// The model is registered again before its last request was done: what is open is its again.
    pub(crate) fn revive(self: &Arc<Self>, model: &ResolvedModel) {
        self.inner.lock().core.revive();
        self.reshape(model);
    }

    /// The model that it is for.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// Closes what is idle and keeps nothing any more: the worker stops.
    pub fn shutdown(self: &Arc<Self>) {
        self.stop.cancel();
        let effects = self.inner.lock().core.shutdown();
        self.carry_out(effects);
    }

    /// Time went by. To be called every [`SWEEP`].
    pub fn sweep(self: &Arc<Self>) {
        let now = self.now();
        let effects = self.inner.lock().core.sweep(now);
        self.carry_out(effects);
    }

    /// True when its connections are open as far ahead of need as is wanted.
    pub(crate) fn is_warm(&self) -> bool {
        self.inner.lock().core.is_warm()
    }

    /// What it has and wants, for the division of the budget.
    pub(crate) fn need(&self) -> Need {
        let now = self.now();
        self.inner.lock().core.need(now)
    }

    /// What the budget leaves to it from now on.
    pub(crate) fn set_cap(self: &Arc<Self>, cap: usize) {
        let now = self.now();
        let effects = self.inner.lock().core.set_cap(now, cap);
        self.carry_out(effects);
    }

    /// The same, but never more than before. Returns the cap that holds.
    pub(crate) fn lower_cap(self: &Arc<Self>, cap: usize) -> usize {
        let now = self.now();
        let (cap, effects) = {
            let core = &mut self.inner.lock().core;
            let cap = cap.min(core.cap());
            (cap, core.set_cap(now, cap))
        };
        self.carry_out(effects);
        cap
    }

    /// True when a retired pool has nothing left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.lock().core.is_empty()
    }

    /// The endpoint at the other end said how long it waits for the next request.
    fn announce(&self, origin: OriginId, timeout: Duration) {
        self.inner.lock().core.announce(origin, timeout);
    }

    /// Counts a request that found its connection dead at its first byte.
    pub fn count_stale_at_send(&self) {
        self.inner.lock().core.counters.stale_at_send += 1;
    }

    /// Everything there is to tell, at one instant.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        let now = self.now();
        let inner = self.inner.lock();
        PoolSnapshot::new(&self.model, now, &inner)
    }

    fn release(self: &Arc<Self>, held: Held<Conn>, outcome: Outcome, since: Instant) {
        let now = self.now();
        let effects = {
            let mut inner = self.inner.lock();
            inner.note_use(since.elapsed());
            // Its end may have been told while it was on loan; under this lock it is told no more.
            let outcome = match (outcome, held.conn.is_closed()) {
                (Outcome::Reusable, true) => Outcome::Finished,
                (Outcome::Unused, true) => Outcome::Broken(CloseReason::Upstream),
                // One of several requests; what became of it says nothing of the others.
                (Outcome::Broken(_), false) if held.shared && held.conn.is_live() => {
                    Outcome::Aborted
                }
                (outcome, _) => outcome,
            };
            inner.core.release(now, held, outcome)
        };
        self.carry_out(effects);
        self.budget.note_change();
    }

    /// Does what the core decided. Outside the lock.
    fn carry_out(self: &Arc<Self>, effects: Effects) {
        let mut effects = effects;
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Grant { waiter, held } => self.hand_over(waiter, held),
                    Effect::Refuse { waiter, why } => drop(waiter.send(Err(why))),
                    Effect::Connect { ticket, origin } => {
                        effects.extend(self.start_connect(ticket, origin));
                    }
                    Effect::Close { conn } => conn.close(),
                    Effect::LetGo { conn } => drop(conn),
                }
            }
        }
    }

    /// A waiter that has just gone gives the lease back by dropping it.
    fn hand_over(self: &Arc<Self>, waiter: oneshot::Sender<Granted>, held: Held<Conn>) {
        drop(waiter.send(Ok(Lease::new(self.clone(), held))));
    }

    fn start_connect(self: &Arc<Self>, ticket: Ticket, origin: OriginId) -> Effects {
        let known = {
            let inner = self.inner.lock();
            let target = inner.targets.get(&origin);
            target.map(|target| (target.clone(), inner.connect_timeout))
        };
        let Some((target, within)) = known else {
            let now = self.now();
            return self
                .inner
                .lock()
                .core
                .connect_failed(now, ticket, "the endpoint was removed");
        };
        let endpoint = &target.endpoint;
        let span = tracing::info_span!(
            "connect", model = %self.model, endpoint = %endpoint.id, url = %endpoint.url
        );
        self.tasks.spawn(
            self.clone()
                .connect(ticket, target, within)
                .instrument(span),
        );
        Vec::new()
    }

    async fn connect(self: Arc<Self>, ticket: Ticket, target: Target, within: Duration) {
        let began = Instant::now();
        match conn::connect(&target, &self.tasks, within).await {
            Ok((conn, driver)) => {
                self.connect_seconds.observe(began.elapsed().as_secs_f64());
                self.connected(ticket, conn, driver);
            }
            Err(error) => self.connect_failed(ticket, &target, &error),
        }
    }

    fn connected(self: &Arc<Self>, ticket: Ticket, mut conn: Conn, driver: Driver) {
        let now = self.now();
        let (name, named) = oneshot::channel();
        let known_as: Arc<OnceLock<ConnId>> = Arc::default();
        // The driver first: a waiter that is granted this connection needs it to run.
        let (pool, known) = (self.clone(), known_as.clone());
        let driving = self.tasks.spawn(async move {
            let allowed = |streams| {
                if let Some(id) = known.get() {
                    pool.allow(*id, streams);
                }
            };
            if let Err(error) = driver.run(allowed).await {
                tracing::debug!(model = %pool.model, %error, "upstream connection ended");
            }
            if let Ok(id) = named.await {
                pool.ended(id);
            }
        });
        conn.driver = Some(driving.abort_handle());
        let (streams, handle) = (conn.streams(), conn.another());
        let (id, effects) = self.inner.lock().core.connected(now, ticket, conn);
        if let Some(id) = id {
            let _ = known_as.set(id);
            // A driver that has ended already needs no name.
            let _ = name.send(id);
            // The server may have changed its mind while nobody could be told.
            let now_allowed = handle.map(|handle| handle.streams());
            if let Some(allowed) = now_allowed.filter(|allowed| *allowed != streams) {
                self.allow(id, allowed);
            }
        }
        self.carry_out(effects);
    }

    /// The server allows another number of requests at a time on a connection.
    fn allow(self: &Arc<Self>, id: ConnId, streams: usize) {
        let now = self.now();
        let effects = self.inner.lock().core.allow(now, id, streams);
        self.carry_out(effects);
    }

    fn connect_failed(self: &Arc<Self>, ticket: Ticket, target: &Target, error: &ConnectError) {
        let endpoint = &target.endpoint;
        let text = format!("endpoint `{}` ({}): {error}", endpoint.id, endpoint.url);
        tracing::warn!(model = %self.model, endpoint = %endpoint.id, %error, "connect failed");
        let now = self.now();
        let effects = self.inner.lock().core.connect_failed(now, ticket, &text);
        self.carry_out(effects);
    }

    fn ended(self: &Arc<Self>, id: ConnId) {
        let now = self.now();
        let effects = self.inner.lock().core.ended(now, id);
        self.carry_out(effects);
    }

    fn busy(&self) -> Busy {
        let now = self.now();
        let inner = self.inner.lock();
        let census = inner.core.census(now);
        Busy {
            model: self.model.clone(),
            size: inner.params.size.get() as usize,
            active: census.in_flight,
            waiting: census.waiting,
            max_waiting: inner.params.max_waiting as usize,
            budget: (inner.core.cap() < inner.params.size.get() as usize)
                .then(|| self.budget.limit()),
            retry_after: inner.retry_after(census.waiting),
        }
    }

    fn now(&self) -> Duration {
        self.born.elapsed()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How often [`Pool::sweep`] is called; idle connections outlive their limit by at most this.
pub const SWEEP: Duration = Duration::from_millis(100);

/// A place in line, given up when the waiting future is dropped or out of time.
struct InLine<'a> {
    pool: &'a Pool,
    id: WaiterId,
    served: bool,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if !self.served {
            let waiter = self.pool.inner.lock().core.cancel(self.id);
            drop(waiter);
            self.pool.budget.note_change();
        }
    }
}

#[cfg(test)]
mod tests;
