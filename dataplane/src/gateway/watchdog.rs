//! Takes connections back from answers that nobody reads.
//!
//! A body's own limits are looked at when it is polled, and a client that does not read keeps it from
//! being polled. The watchdog looks at all of them every second, and closes the upstream connection of
//! those that are over time. It knows nothing of HTTP.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::pool::{CloseReason, Lease};

/// How often [`Watchdog::sweep`] is called.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// What the body itself gets to notice it first.
const MARGIN: Duration = Duration::from_secs(1);

/// All leases that answers hold.
#[derive(Debug, Default)]
pub(super) struct Watchdog(Mutex<Vec<Weak<Shared>>>);

/// A lease that an answer holds.
#[derive(Debug)]
pub(super) struct Loan(Arc<Shared>);

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
        self.0.lock().push(Arc::downgrade(&shared));
        Loan(shared)
    }

    /// Cuts what is over time.
    pub(super) fn sweep(&self) {
        let mut loans = self.0.lock();
        loans.retain(|loan| loan.strong_count() > 0);
        let watched: Vec<_> = loans.iter().filter_map(Weak::upgrade).collect();
        drop(loans);
        let now = Instant::now();
        watched
            .iter()
            .filter(|loan| loan.is_over(now))
            .for_each(|loan| loan.cut());
    }
}

impl Loan {
    /// The answer moved on.
    pub(super) fn moved(&self) {
        let millis = self.0.began.elapsed().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.0.moved.store(millis, Ordering::Relaxed);
    }

    /// The lease, if nobody took it before.
    pub(super) fn take(&self) -> Option<Lease> {
        self.0.lease.lock().take()
    }

    /// True if the watchdog took it.
    pub(super) fn was_cut(&self) -> bool {
        self.0.cut.load(Ordering::Acquire)
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
