//! Signs of life of one endpoint, noted beside the pool's lock: an integer each, so that a usual request costs
//! no more than that. They are counts and nothing else; what follows from them is for the core.

use std::sync::atomic::{AtomicU64, Ordering};

/// Held by the core and by every connection to the endpoint.
#[derive(Debug, Default)]
pub(in crate::pool) struct Pulse {
    answers: AtomicU64,
    moved: AtomicU64,
}

impl Pulse {
    /// A request was answered as it should be, as far as its head tells.
    pub(in crate::pool) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer that had begun well did not end so.
    pub(in crate::pool) fn retract(&self) {
        let less = |answers: u64| answers.checked_sub(1);
        let _ = self
            .answers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Something came from it.
    pub(in crate::pool) fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Good answers so far.
    pub(in crate::pool) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// How often something came so far.
    pub(in crate::pool) fn movement(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}
