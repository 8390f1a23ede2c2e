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
mod inner;
mod io;
mod lease;
mod snapshot;

use std::{collections::HashMap, sync::Arc, time::Duration};

use forebay_proto::{Endpoint, ModelId, ResolvedModel};
use parking_lot::Mutex;
use prometheus::Histogram;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use self::inner::{Inner, shape};
use self::{
    conn::{Conn, ConnectError, Driver},
    core::{ConnId, Core, Effect, Held, OriginId, Outcome, Place, Refused, Ticket, WaiterId},
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
};

type Granted = Result<Lease, Refused>;
type Effects = Vec<Effect<Conn, oneshot::Sender<Granted>>>;

/// The bounded set of connections of one model.
#[derive(Debug)]
pub struct Pool {
    model: ModelId,
    tasks: TaskTracker,
    born: Instant,
    connect_seconds: Histogram,
    budget: Arc<Budget>,
    inner: Mutex<Inner>,
}

impl Pool {
    /// A pool for this model. Connections are opened on demand, and ahead of it by the sweep.
    #[must_use]
    pub(crate) fn new(
        model: &ResolvedModel,
        tasks: TaskTracker,
        metrics: &Metrics,
        budget: Arc<Budget>,
        cap: usize,
    ) -> Arc<Self> {
        let mut inner = Inner {
            core: Core::new(shape(&model.pool), cap, []),
            params: model.pool.clone(),
            connect_timeout: model.timeouts.connect,
            origins: HashMap::new(),
            former: HashMap::new(),
            next_origin: 0,
            mean_use: Duration::from_secs(1),
        };
        let effects = inner.reshape(Duration::ZERO, model);
        let pool = Arc::new(Self {
            model: model.id.clone(),
            tasks,
            born: Instant::now(),
            connect_seconds: metrics.connect_seconds(&model.id),
            budget,
            inner: Mutex::new(inner),
        });
        pool.carry_out(effects);
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
        PoolSnapshot::new(
            &self.model,
            &inner.params,
            inner.core.census(),
            &inner.core.counters,
            inner.core.cap(),
        )
        .with_endpoints(
            inner
                .origins
                .iter()
                .map(|(id, e)| (e, inner.core.idle_of(now, *id))),
        )
    }

    fn release(self: &Arc<Self>, held: Held<Conn>, outcome: Outcome, since: Instant) {
        let now = self.now();
        let effects = {
            let mut inner = self.inner.lock();
            inner.note_use(since.elapsed());
            // Its end may have been told while it was on loan; under this lock it is told no more.
            let outcome = match (outcome, held.conn.sender.is_closed()) {
                (Outcome::Reusable, true) => Outcome::Finished,
                (Outcome::Unused, true) => Outcome::Broken(CloseReason::Upstream),
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
            inner
                .origins
                .get(&origin)
                .map(|e| (e.clone(), inner.connect_timeout))
        };
        let Some((endpoint, within)) = known else {
            let now = self.now();
            return self
                .inner
                .lock()
                .core
                .connect_failed(now, ticket, "the endpoint was removed");
        };
        let span = tracing::info_span!(
            "connect", model = %self.model, endpoint = %endpoint.id, url = %endpoint.url
        );
        self.tasks.spawn(
            self.clone()
                .connect(ticket, endpoint, within)
                .instrument(span),
        );
        Vec::new()
    }

    async fn connect(self: Arc<Self>, ticket: Ticket, endpoint: Endpoint, within: Duration) {
        let began = Instant::now();
        match conn::connect(&endpoint, within).await {
            Ok((conn, driver)) => {
                self.connect_seconds.observe(began.elapsed().as_secs_f64());
                self.connected(ticket, conn, driver);
            }
            Err(error) => self.connect_failed(ticket, &endpoint, &error),
        }
    }

    fn connected(self: &Arc<Self>, ticket: Ticket, mut conn: Conn, driver: Driver) {
        let now = self.now();
        let (name, named) = oneshot::channel();
        // The driver first: a waiter that is granted this connection needs it to run.
        let pool = self.clone();
        let driving = self.tasks.spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(model = %pool.model, %error, "upstream connection ended");
            }
            if let Ok(id) = named.await {
                pool.ended(id);
            }
        });
        conn.driver = Some(driving.abort_handle());
        let (id, effects) = self.inner.lock().core.connected(now, ticket, conn);
        if let Some(id) = id {
            // A driver that has ended already needs no name.
            let _ = name.send(id);
        }
        self.carry_out(effects);
    }

    fn connect_failed(self: &Arc<Self>, ticket: Ticket, endpoint: &Endpoint, error: &ConnectError) {
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
        let inner = self.inner.lock();
        let census = inner.core.census();
        Busy {
            model: self.model.clone(),
            size: inner.params.size.get() as usize,
            active: census.active + census.draining,
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
