//! How far the end of a worker has come: what its ports, its connections and its requests look at.
//!
//! ```text
//!   serving ──▶ leaving ──────────▶ draining ──────────▶ cut
//!               not ready; clients  accepts no more;     what still runs is
//!               are told to come    what runs goes on    told, and ends
//!               anew
//! ```
//!
//! With an heir (see `handover`) there is no leaving: connections go to it as they come to rest. It only tells; when
//! what happens is for `running.rs` and the gateway to say.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::handover::Resting;

/// A stage; each has all that those before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    Serving,
    /// Clients are to come anew for their next request: another worker will have it.
    Leaving,
    /// No new connections.
    Draining,
    /// The grace is over.
    Cut,
}

/// The end of a worker.
#[derive(Debug)]
pub(crate) struct Ending {
    stage: watch::Sender<Stage>,
    /// The same, for those who ask often.
    now: AtomicU8,
    heir: Mutex<Option<mpsc::Sender<Resting>>>,
}

impl Default for Ending {
    fn default() -> Self {
        Self {
            stage: watch::channel(Stage::Serving).0,
            now: AtomicU8::new(Stage::Serving as u8),
            heir: Mutex::default(),
        }
    }
}

impl Ending {
    /// Goes on to this stage; never back.
    pub(crate) fn advance(&self, to: Stage) {
        self.now.fetch_max(to as u8, Ordering::AcqRel);
        self.stage.send_if_modified(|stage| {
            let later = *stage < to;
            if later {
                *stage = to;
            }
            later
        });
    }

    /// No new connections; those that are at rest go to the heir.
    pub(crate) fn hand_over(&self, heir: mpsc::Sender<Resting>) {
        *self.heir.lock() = Some(heir);
        self.advance(Stage::Draining);
    }

    /// Who gets connections that are at rest, if anybody does.
    pub(crate) fn heir(&self) -> Option<mpsc::Sender<Resting>> {
        self.heir.lock().clone()
    }

    /// Nothing comes to rest any more.
    pub(crate) fn no_more(&self) {
        drop(self.heir.lock().take());
    }

    /// True from this stage on.
    pub(crate) fn has_reached(&self, stage: Stage) -> bool {
        self.now.load(Ordering::Acquire) >= stage as u8
    }

    /// Waits for this stage.
    pub(crate) async fn reached(&self, stage: Stage) {
        // It cannot be closed while it is borrowed.
        drop(self.watch().wait_for(|now| *now >= stage).await);
    }

    /// Tells of each stage.
    pub(crate) fn watch(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }
}
