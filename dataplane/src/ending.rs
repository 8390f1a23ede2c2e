//! How far the end of a worker has come: what its ports, its connections and its requests look at.
//!
//! ```text
//!   serving ──leave──▶ leaving ──drain──▶ draining ──cut──▶ cut
//!                      not ready;        accepts no more;   what still runs is
//!                      clients are told  what runs goes on  told, and ends
//!                      to come anew
//! ```
//!
//! With an heir (see `handover`) there is no leaving: connections go to it as they come to rest. It only tells; when
//! what happens is for `app.rs` to say.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::handover::Resting;

/// The end of a worker.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    leaving: AtomicBool,
    draining: CancellationToken,
    cut: CancellationToken,
    /// The same as `cut`, for who asks often.
    is_cut: AtomicBool,
    heir: Mutex<Option<mpsc::Sender<Resting>>>,
}

impl Ending {
    /// Clients are to come anew for their next request: another worker will have it.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// True if clients are to come anew.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// No new connections.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    /// No new connections; those that are at rest go to the heir.
    pub(crate) fn hand_over(&self, heir: mpsc::Sender<Resting>) {
        *self.heir.lock() = Some(heir);
        self.drain();
    }

    /// Waits until there are to be no new connections.
    pub(crate) fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Who gets connections that are at rest, if anybody does.
    pub(crate) fn heir(&self) -> Option<mpsc::Sender<Resting>> {
        self.heir.lock().clone()
    }

    /// Nothing comes to rest any more.
    pub(crate) fn no_more(&self) {
        drop(self.heir.lock().take());
    }

    /// The grace is over.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.cut.cancel();
    }

    /// True if the grace is over.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    /// Waits until the grace is over.
    pub(crate) fn until_cut(&self) -> WaitForCancellationFuture<'_> {
        self.cut.cancelled()
    }
}
