//! The pool of one model, as the gateway, the applier and the budget know it. What it decides is in the
//! core, what happens at the same time in the desk; the dialler makes its connections.

mod check;
mod claim;
mod conn;
mod core;
mod counters;
mod desk;
mod dialler;
mod discovery;
mod drain;
mod error;
mod follow;
mod inner;
mod io;
mod lease;
mod leased;
mod lock;
mod probe;
mod refusal;
mod request_body;
mod retry;
mod revocation;
mod snapshot;
mod target;
mod tls;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use forebay_proto::{EndpointId, ModelId, ResolvedModel};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::discovery::{Discovering, Why};
#[cfg(feature = "fuzzing")]
pub(crate) use self::discovery::{Form, read_list};
pub use self::{
    claim::{Ask, Claim, FlowId, Priority},
    counters::{CloseReason, Counters, Fault, OpenReason, TurnedAway, Verdict},
    discovery::RefusedServer,
    error::{AcquireError, Busy},
    lease::{Kind, Lease, Progress, SendError, SendFailed},
    probe::Probing,
    request_body::RequestBody,
    retry::{NoRetry, Retrying, Tried},
    revocation::Revocation,
    snapshot::{
        AddressSnapshot, DiscoverySnapshot, EndpointSnapshot, LeaseSnapshot, PoolSnapshot,
        QuarantineSnapshot,
    },
};
use self::{
    conn::Conn,
    core::{Answered, How, Place, Refused, Wish},
    desk::Desk,
    dialler::Dialler,
    inner::Inner,
    probe::Reconnects,
};
pub(crate) use self::{
    leased::{LeaseUse, Leased},
    request_body::Edit,
    revocation::told,
};
use crate::{
    budget::{Budget, Need},
    keys::KeyCell,
    leases::Leases,
    metrics::Metrics,
    resolve::Resolver,
};

/// What all pools of a worker have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    /// Where their tasks run.
    pub(crate) tasks: TaskTracker,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) probing: Arc<Probing>,
    pub(crate) discovering: Arc<Discovering>,
    /// What opens endpoints' credentials.
    pub(crate) keys: Arc<KeyCell>,
    /// What is lent of fleet-wide limits.
    pub(crate) leases: Arc<Leases>,
}

/// The bounded set of connections of one model.
#[derive(Debug)]
pub struct Pool {
    model: ModelId,
    common: Common,
    desk: Arc<Desk<Conn>>,
    /// The names of its endpoints are followed; the task is told of changes.
    follows: AtomicBool,
    names_changed: Arc<Notify>,
    /// The sources of its endpoints are followed; the task is told of changes.
    discovers: AtomicBool,
    sources_changed: Arc<Notify>,
    /// Its endpoints are asked what they serve.
    asks: AtomicBool,
    reconnects: Arc<Reconnects>,
    /// Its endpoints are checked; the task is told of changes.
    checks: AtomicBool,
    checks_changed: Arc<Notify>,
    /// Requests that are being sent again to another endpoint.
    retries: AtomicUsize,
    /// The model was removed.
    retired: Arc<AtomicBool>,
    stop: CancellationToken,
}

impl Pool {
    /// A pool for this model. Connections are opened on demand, and ahead of it by the sweep.
    #[must_use]
    pub(crate) fn new(model: &ResolvedModel, common: &Common, cap: usize) -> Arc<Self> {
        let reconnects = Arc::<Reconnects>::default();
        let dialler = Dialler {
            model: model.id.clone(),
            tasks: common.tasks.clone(),
            connect_seconds: common.metrics.connect_seconds(&model.id),
            reconnects: reconnects.clone(),
        };
        let inner = Inner::new(model, cap, fastrand::u64(..));
        let pool = Arc::new(Self {
            model: model.id.clone(),
            common: common.clone(),
            desk: Desk::new(inner, Box::new(dialler), common.budget.clone()),
            follows: AtomicBool::new(false),
            names_changed: Arc::default(),
            discovers: AtomicBool::new(false),
            sources_changed: Arc::default(),
            asks: AtomicBool::new(false),
            reconnects,
            checks: AtomicBool::new(false),
            checks_changed: Arc::default(),
            retries: AtomicUsize::new(0),
            retired: Arc::default(),
            stop: CancellationToken::new(),
        });
        pool.reshape(model);
        pool
    }

    /// A connection for one request, in turn. Safe to drop at any await: the place in line is given
    /// up, or the connection returned.
    pub async fn acquire(&self, claim: &Claim) -> Result<Lease, AcquireError> {
        self.acquire_at(Place::Back, &Wish::default(), claim).await
    }

    /// The same for one whose connection turned out to be dead at the first byte: it had its turn.
    pub async fn acquire_again(&self, claim: &Claim) -> Result<Lease, AcquireError> {
        self.acquire_at(Place::Front, &Wish::default(), claim).await
    }

    /// A connection to this endpoint and no other, for what only this one has; in turn, but past those who wait for
    /// others. However the endpoint stands, it is tried.
    pub async fn acquire_from(
        &self,
        endpoint: &EndpointId,
        claim: &Claim,
    ) -> Result<Lease, AcquireError> {
        let only = Some(self.desk.with(|inner, _| inner.key_of(endpoint)));
        let wish = Wish { only, not: vec![] };
        self.acquire_at(Place::Back, &wish, claim).await
    }

    /// A connection to an endpoint that the request was not sent to yet, for one that had its turn.
    pub async fn acquire_elsewhere(
        &self,
        tried: &Tried,
        claim: &Claim,
    ) -> Result<Lease, AcquireError> {
        let not = tried.origins();
        let wish = Wish { only: None, not };
        self.acquire_at(Place::Front, &wish, claim).await
    }

    /// True if nothing can be expected of any endpoint: another model may stand in.
    pub(crate) fn is_down(&self) -> bool {
        self.desk.with(|inner, now| inner.core.is_down(now))
    }

    /// A connection that carried no request yet, for one whose connection was closed under it.
    pub async fn acquire_fresh(&self, claim: &Claim) -> Result<Lease, AcquireError> {
        self.acquire_at(Place::FrontForFresh, &Wish::default(), claim)
            .await
    }

    async fn acquire_at(
        &self,
        mut place: Place,
        wish: &Wish,
        claim: &Claim,
    ) -> Result<Lease, AcquireError> {
        let began = Instant::now();
        loop {
            let lease = self.wait_in_line(began, claim, place, wish).await?;
            // One that was found dead at its first byte must not be so again and again.
            let live = match place {
                Place::Back => lease.seems_live(),
                Place::Front | Place::FrontForFresh => lease.is_live(),
            };
            if live {
                return Ok(lease);
            }
            // Closed by the upstream an instant ago: not this request's fault, nor its wait anew.
            self.desk
                .with(|inner, _| inner.core.counters.stale_at_checkout += 1);
            lease.discard(CloseReason::Upstream);
            if place == Place::Back {
                place = Place::Front;
            }
        }
    }

    async fn wait_in_line(
        &self,
        began: Instant,
        claim: &Claim,
        place: Place,
        wish: &Wish,
    ) -> Result<Lease, AcquireError> {
        if place == Place::Back
            && wish.is_any()
            && let Some(loan) = self.desk.take(&claim.ask)
            && let Some(lease) = Lease::new(loan, self.common.tasks.clone())
        {
            return Ok(lease);
        }
        if let Some(wrong) = self.all_wrong() {
            return Err(wrong);
        }
        let patience = self.patience(claim);
        let deadline = patience.map_or(claim.deadline, |until| until.min(claim.deadline));
        if place == Place::Back && patience.is_some_and(|until| until <= began) {
            return Err(self.too_late(began, claim, patience));
        }
        let in_line = self.desk.line_up(&claim.ask, place, wish.clone());
        let answer = timeout_at(deadline, in_line).await;
        let lease = match answer.ok().flatten() {
            Some(Ok(loan)) => Lease::new(loan, self.common.tasks.clone()),
            Some(Err(Refused::NoEndpoint)) => {
                let (model, why) = (self.model.clone(), no_endpoint(wish));
                return Err(AcquireError::NoEndpoint { model, why });
            }
            Some(Err(Refused::Dry)) => {
                let model = self.model.clone();
                return Err(AcquireError::Leaving { model });
            }
            Some(Err(Refused::QueueFull | Refused::Displaced)) => {
                return Err(AcquireError::QueueFull(self.busy()));
            }
            Some(Err(Refused::Crowded)) => {
                return Err(AcquireError::Crowded(self.busy()));
            }
            Some(Err(Refused::ConnectFailed(error))) => {
                let model = self.model.clone();
                // It may have been found out while this one waited.
                let wrong = self.all_wrong();
                return Err(wrong.unwrap_or(AcquireError::Connect { model, error }));
            }
            None => None,
        };
        lease.ok_or_else(|| self.too_late(began, claim, patience))
    }

    /// Until when there is use in waiting, where the client said how long it does: later, three of four answers
    /// would begin after it has given up. Where there is room nobody is judged by the others' answers.
    fn patience(&self, claim: &Claim) -> Option<Instant> {
        let until = claim.patience?;
        let needed = self.desk.with(|inner, _| match inner.core.has_room() {
            true => Duration::ZERO,
            false => inner.prompt(),
        });
        Some(until.checked_sub(needed).unwrap_or(until))
    }

    /// The head of a stream came, so long after its request of so many bytes was sent; what the engine's own
    /// latency says is for a model that is let in adaptively.
    pub fn note_stream(&self, took: Duration, bytes: usize) {
        self.note_answer(took, bytes, How::Stream(took));
    }

    /// The engine refused a request because it has enough, so long after it was sent.
    pub fn note_refused(&self, took: Duration, bytes: usize) {
        self.note_answer(took, bytes, How::Refused);
    }

    fn note_answer(&self, took: Duration, bytes: usize, how: How) {
        self.desk.change(|inner, now| {
            let sent = now.saturating_sub(took);
            inner.core.answered(now, &Answered { sent, bytes, how })
        });
    }

    /// New parameters and endpoints, live. What still fits stays open.
    pub fn reshape(self: &Arc<Self>, model: &ResolvedModel) {
        self.desk.change(|inner, now| inner.reshape(now, model));
        self.follow_sources();
        self.follow_endpoints();
    }

    /// The endpoints are others than before.
    fn follow_endpoints(self: &Arc<Self>) {
        self.follow_names();
        self.ask_endpoints();
        self.check_endpoints();
    }

    /// Has the sources of its endpoints followed, if there are any.
    fn follow_sources(self: &Arc<Self>) {
        let sources = self.desk.with(|inner, _| {
            let mut configured = inner.configured.iter();
            configured.any(|endpoint| endpoint.url.discovery().is_some())
        });
        if sources && !self.discovers.swap(true, Ordering::AcqRel) {
            let (pool, common) = (Arc::downgrade(self), self.common.clone());
            let (changed, stop) = (self.sources_changed.clone(), self.stop.clone());
            let follow = discovery::follow(pool, common, changed, stop, self.retired.clone());
            self.common.tasks.spawn(follow);
        }
        self.sources_changed.notify_one();
    }

    /// Has its endpoints checked, if they are to be.
    fn check_endpoints(self: &Arc<Self>) {
        let checked = self
            .desk
            .with(|inner, _| inner.failure.health.path.is_some());
        if checked && !self.checks.swap(true, Ordering::AcqRel) {
            let (changed, stop) = (self.checks_changed.clone(), self.stop.clone());
            let pool = (self.model.clone(), Arc::downgrade(self));
            let check = check::follow(pool, self.common.clone(), changed, stop);
            self.common.tasks.spawn(check);
        }
        self.checks_changed.notify_one();
    }

    /// Has its endpoints asked what they serve, if they are to be.
    fn ask_endpoints(self: &Arc<Self>) {
        let asked = self.desk.with(|inner, _| inner.asked.is_some());
        if asked && !self.asks.swap(true, Ordering::AcqRel) {
            let pool = (self.model.clone(), Arc::downgrade(self));
            let stop = self.stop.clone();
            let ask = probe::follow(pool, self.common.clone(), self.reconnects.clone(), stop);
            self.common.tasks.spawn(ask);
        }
        self.reconnects.wake();
    }

    /// Has the names of its endpoints resolved, if there are any.
    fn follow_names(self: &Arc<Self>) {
        if self.names().is_empty() && !self.follows.load(Ordering::Acquire) {
            return;
        }
        self.names_changed.notify_one();
        if !self.follows.swap(true, Ordering::AcqRel) {
            let (pool, resolver) = (Arc::downgrade(self), self.common.resolver.clone());
            let (changed, stop) = (self.names_changed.clone(), self.stop.clone());
            let follow = follow::follow(pool, resolver, changed, stop);
            self.common.tasks.spawn(follow);
        }
    }

    /// The model was removed: serves who still holds it, then empties.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.desk.change(|inner, now| inner.core.retire(now));
    }

    /// The model is registered again before its last request was done: what is open is its again.
    pub(crate) fn revive(self: &Arc<Self>, model: &ResolvedModel) {
        self.retired.store(false, Ordering::Release);
        self.desk.with(|inner, _| inner.core.revive());
        self.reshape(model);
    }

    /// The model that it is for.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// Closes what is idle and keeps nothing any more: the worker stops.
    pub fn shutdown(&self) {
        self.stop.cancel();
        self.desk.change(|inner, _| inner.core.shutdown());
    }

    /// Time went by. To be called every [`SWEEP`].
    pub fn sweep(self: &Arc<Self>) {
        self.desk.change(|inner, now| inner.core.sweep(now));
        self.weigh_reserves();
    }

    /// True when its connections are open as far ahead of need as is wanted.
    pub(crate) fn is_warm(&self) -> bool {
        self.desk.with(|inner, _| inner.core.is_warm())
    }

    /// What it has and wants, for the division of the budget.
    pub(crate) fn need(&self) -> Need {
        self.desk.with(|inner, now| inner.core.need(now))
    }

    /// What the budget leaves to it from now on.
    pub(crate) fn set_cap(&self, cap: usize) {
        self.desk.change(|inner, now| inner.core.set_cap(now, cap));
    }

    /// The same, but never more than before. Returns the cap that holds.
    pub(crate) fn lower_cap(&self, cap: usize) -> usize {
        let mut lower = cap;
        self.desk.change(|inner, now| {
            lower = cap.min(inner.core.cap());
            inner.core.set_cap(now, lower)
        });
        lower
    }

    /// True when a retired pool has nothing left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.desk.with(|inner, _| inner.core.is_empty())
    }

    /// Requests in flight on what was removed: the model, or an endpoint of it.
    pub(crate) fn draining_requests(&self) -> usize {
        self.desk
            .with(|inner, now| inner.core.census(now).draining_requests)
    }

    /// Counts a request that found its connection dead at its first byte.
    pub fn count_stale_at_send(&self) {
        self.desk
            .with(|inner, _| inner.core.counters.stale_at_send += 1);
    }

    /// Everything there is to tell, at one instant.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        self.desk
            .with(|inner, now| PoolSnapshot::new(&self.model, now, inner))
    }
}

fn no_endpoint(wish: &Wish) -> &'static str {
    match wish.only {
        Some(_) => "the one that has what it asks for is gone",
        None => "it was sent to all that serve",
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How often [`Pool::sweep`] is called; idle connections outlive their limit by at most this.
pub const SWEEP: Duration = Duration::from_millis(100);

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
