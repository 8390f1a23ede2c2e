//! Takes connections back from answers that nobody reads.
//!
//! A body's own limits are looked at when it is polled, and a client that does not read keeps it from
//! being polled. The watchdog looks at all of them every second, and cuts those that are over time, on both sides: over
//! HTTP/1.1 that closes their connection, over HTTP/2 it cancels their stream. For that it holds the bodies.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pool::{CloseReason, Lease, Revocation};

/// How often [`Watchdog::sweep`] is called.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Longest time for which a client may not take what there is for it. It begins when all buffers on the way are full, which
/// takes some seconds when there are many such clients: all of that is to be over within 60 s.
const STALL: Duration = Duration::from_secs(45);
/// How much later than it was due a comment may be taken, at the least.
const LATE: Duration = Duration::from_secs(5);
/// What the body itself gets to notice it first.
const MARGIN: Duration = Duration::from_secs(1);

/// All leases that answers hold.
#[derive(Debug, Default)]
pub(super) struct Watchdog(Arc<Watched>);

/// A piece of an answer.
type Came = Result<Frame<Bytes>, hyper::Error>;

type Watched = Mutex<Slab<Arc<Shared>>>;

/// A client that is given comments, watched over until that is over: what it waits for goes on only while it reads.
#[derive(Debug)]
pub(super) struct Watch(Loan);

/// An answer and the lease that it comes over, watched over until it is dropped.
#[derive(Debug)]
pub(super) struct Loan {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    key: usize,
}

#[derive(Debug)]
struct Shared {
    /// Nothing of a client that is given comments, and of an answer that is over.
    held: Mutex<Option<(Incoming, Lease)>>,
    comments: bool,
    began: Instant,
    /// When the answer last moved on, in milliseconds since it began.
    moved: AtomicU64,
    /// It waits for the upstream: that nothing moves is not the client's doing.
    waits: AtomicBool,
    idle: Duration,
    deadline: Instant,
    /// Told when what it uses of a fleet-wide limit is lost; whoever reads is told in the answer.
    revocation: Option<Revocation>,
    /// That was seen, at an earlier sweep.
    was_revoked: AtomicBool,
    cut: AtomicBool,
    hangup: CancellationToken,
}

impl Watchdog {
    /// Watches over an answer.
    pub(super) fn lend(
        &self,
        body: Incoming,
        lease: Lease,
        idle: Duration,
        deadline: Instant,
        hangup: CancellationToken,
    ) -> Loan {
        self.put(Some((body, lease)), (idle, deadline), hangup)
    }

    /// Watches over a client that is given comments, each so long after the one before.
    pub(super) fn watch(
        &self,
        every: Duration,
        idle: Duration,
        deadline: Instant,
        hangup: CancellationToken,
    ) -> Watch {
        let idle = idle.min(STALL).max(every.saturating_add(LATE));
        Watch(self.put(None, (idle, deadline), hangup))
    }

    fn put(
        &self,
        held: Option<(Incoming, Lease)>,
        (idle, deadline): (Duration, Instant),
        hangup: CancellationToken,
    ) -> Loan {
        let revocation = held.as_ref().and_then(|(_, lease)| lease.revocation());
        let shared = Arc::new(Shared {
            revocation,
            was_revoked: AtomicBool::new(false),
            comments: held.is_none(),
            held: Mutex::new(held),
            began: Instant::now(),
            moved: AtomicU64::new(0),
            waits: AtomicBool::new(true),
            idle,
            deadline,
            cut: AtomicBool::new(false),
            hangup,
        });
        Loan {
            key: self.0.lock().insert(shared.clone()),
            shared,
            watched: self.0.clone(),
        }
    }

    /// Cuts what is over time.
    pub(super) fn sweep(&self) {
        let watched: Vec<_> = self.0.lock().iter().map(|(_, loan)| loan.clone()).collect();
        let now = Instant::now();
        watched
            .iter()
            .filter(|loan| loan.is_over(now))
            .for_each(|loan| loan.cut());
    }
}

impl Loan {
    /// The answer moved on.
    pub(super) fn moved(&self, now: Instant) {
        let since = now.saturating_duration_since(self.shared.began);
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.shared.moved.store(millis, Ordering::Relaxed);
    }

    /// There is something of ours for the client: from now on it is waited for.
    pub(super) fn gave(&self, now: Instant) {
        self.moved(now);
        self.shared.waits.store(false, Ordering::Relaxed);
    }

    /// What comes next; `None` if it was taken.
    pub(super) fn poll_frame(&self, cx: &mut Context<'_>) -> Option<Poll<Option<Came>>> {
        let mut held = self.shared.held.lock();
        let (body, _) = held.as_mut()?;
        let polled = Pin::new(body).poll_frame(cx);
        self.shared
            .waits
            .store(polled.is_pending(), Ordering::Relaxed);
        Some(polled)
    }

    /// True if nothing comes any more.
    pub(super) fn is_at_end(&self) -> bool {
        let held = self.shared.held.lock();
        held.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    /// How much comes.
    pub(super) fn size_hint(&self) -> SizeHint {
        let held = self.shared.held.lock();
        held.as_ref()
            .map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }

    /// The lease, if nobody took it before. The body is dropped: what had not come of it is not wanted.
    pub(super) fn take(&self) -> Option<Lease> {
        let held = self.shared.held.lock().take();
        held.map(|(_, lease)| lease)
    }

    /// Told when what it uses of a fleet-wide limit is lost.
    pub(super) fn revocation(&self) -> Option<Revocation> {
        self.shared.revocation.clone()
    }

    /// For how long its client may not take it.
    pub(super) fn stall(&self) -> Duration {
        self.shared.stall()
    }

    /// True if the watchdog took it.
    pub(super) fn was_cut(&self) -> bool {
        self.shared.cut.load(Ordering::Acquire)
    }
}

impl Watch {
    /// The client took what there was, and asks for more.
    pub(super) fn asked(&self) {
        self.0.moved(Instant::now());
    }

    /// For how long it did not, if it is over for that.
    pub(super) fn was_cut(&self) -> Option<Duration> {
        self.0.was_cut().then(|| self.0.shared.idle)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // What it holds is dropped after the lock.
        let _shared = self.watched.lock().try_remove(self.key);
    }
}

impl Shared {
    fn is_over(&self, now: Instant) -> bool {
        let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
        let silent = now.saturating_duration_since(self.began + moved);
        let most = match self.waits.load(Ordering::Relaxed) {
            true => self.idle,
            false => self.stall(),
        };
        silent > most + MARGIN || now > self.deadline + MARGIN || self.is_overdue()
    }

    /// It was to end, and its client had from the sweep before this one on to read that.
    fn is_overdue(&self) -> bool {
        let revocation = self.revocation.as_ref();
        let revoked = revocation.is_some_and(Revocation::is_revoked);
        revoked && self.was_revoked.swap(true, Ordering::AcqRel)
    }

    fn stall(&self) -> Duration {
        self.idle.min(STALL)
    }

    fn cut(&self) {
        if self.comments {
            if !self.cut.swap(true, Ordering::AcqRel) {
                tracing::warn!("comments that their client does not read are cut");
                self.hangup.cancel();
            }
            return;
        }
        let held = {
            let mut held = self.held.lock();
            self.cut.fetch_or(held.is_some(), Ordering::AcqRel);
            held.take()
        };
        let Some((body, lease)) = held else { return };
        // First the body: over HTTP/2 that is what cancels.
        drop(body);
        tracing::warn!(endpoint = %lease.endpoint(), "an answer that its client does not read is cut");
        lease.discard(CloseReason::Cancelled);
        // The other side, too: nobody else would notice before the client does something.
        self.hangup.cancel();
    }
}
