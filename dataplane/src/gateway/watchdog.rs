//! Takes connections back from answers that nobody reads.
//!
//! A body's own limits are looked at when it is polled, and a client that does not read keeps it from
//! being polled. The watchdog looks at all of them every second, and closes the upstream connection of
//! those that are over time. It knows nothing of HTTP.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;

use crate::pool::{CloseReason, Lease};

/// How often [`Watchdog::sweep`] is called.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// What the body itself gets to notice it first.
const MARGIN: Duration = Duration::from_secs(1);

/// All leases that answers hold.
#[derive(Debug, Default)]
pub(super) struct Watchdog(Arc<Watched>);

type Watched = Mutex<Slab<Arc<Shared>>>;

/// A lease that an answer holds, watched over until it is dropped.
#[derive(Debug)]
pub(super) struct Loan {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    key: usize,
}

#[derive(Debug)]
struct Shared {
    lease: Mutex<Option<Lease>>,
    began: Instant,
    /// When the answer last moved on, in milliseconds since it began.
    moved: AtomicU64,
    idle: Duration,
    deadline: Instant,
    cut: AtomicBool,
}

impl Watchdog {
    /// Watches over a lease.
    pub(super) fn lend(&self, lease: Lease, idle: Duration, deadline: Instant) -> Loan {
        let shared = Arc::new(Shared {
            lease: Mutex::new(Some(lease)),
            began: Instant::now(),
            moved: AtomicU64::new(0),
            idle,
            deadline,
            cut: AtomicBool::new(false),
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

    /// The lease, if nobody took it before.
    pub(super) fn take(&self) -> Option<Lease> {
        self.shared.lease.lock().take()
    }

    /// True if the watchdog took it.
    pub(super) fn was_cut(&self) -> bool {
        self.shared.cut.load(Ordering::Acquire)
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
        silent > self.idle + MARGIN || now > self.deadline + MARGIN
    }

    fn cut(&self) {
        let Some(lease) = self.lease.lock().take() else {
            return;
        };
        self.cut.store(true, Ordering::Release);
        tracing::warn!(endpoint = %lease.endpoint(), "an answer that its client does not read is cut");
        lease.discard(CloseReason::Cancelled);
    }
}
