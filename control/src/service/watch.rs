//! `WatchRollout`: a rollout as it changes. Each is computed when the reader has room for it, so a slow one misses
//! what was in between and costs nothing; there is no queue and no task.

use std::{sync::Arc, time::Duration};

use forebay_proto::{Revision, wire};
use futures_util::{Stream, stream::unfold};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Context,
    status::{self, Reason},
};
use crate::registry::Published;

/// Most who watch at the same time.
const WATCHERS: usize = 64;
/// From one to the next, at least.
const APART: Duration = Duration::from_millis(200);
/// All watchers together may have a core for one part in so many of its time.
const PART: u32 = 20;

/// Those who watch.
#[derive(Debug, Clone)]
pub(crate) struct Watchers {
    room: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Watchers {
    /// Nobody yet; the last are sent away when the control plane stops.
    pub(crate) fn new(stopping: CancellationToken) -> Self {
        Self {
            room: Arc::new(Semaphore::new(WATCHERS)),
            stopping,
        }
    }

    fn count(&self) -> u32 {
        let count = WATCHERS.saturating_sub(self.room.available_permits());
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// The rollout of a revision, or of the newest there is, as it changes.
pub(super) fn watch(
    context: &Context,
    watchers: &Watchers,
    revision: Option<Revision>,
    follow: bool,
) -> Result<impl Stream<Item = Result<wire::Rollout, Status>> + use<>, Status> {
    let permit = watchers.room.clone().try_acquire_owned().map_err(|_| {
        let message = format!("{WATCHERS} calls watch rollouts already; use GetRollout");
        status::with_reason(Code::ResourceExhausted, Reason::Busy, message)
    })?;
    let published = context.registry.watch();
    let newest = published.borrow().position.revision;
    // What is waited for does not move when somebody else writes meanwhile.
    let revision = revision.or((!follow).then_some(newest));
    let watching = Watching {
        changes: context.fleet.watch(),
        context: context.clone(),
        published,
        watchers: watchers.clone(),
        revision,
        follow,
        due: Instant::now(),
        first: true,
        ended: false,
        _permit: permit,
    };
    Ok(unfold(watching, Watching::next))
}

struct Watching {
    context: Context,
    changes: watch::Receiver<()>,
    published: watch::Receiver<Arc<Published>>,
    watchers: Watchers,
    /// Nothing: whatever is the newest.
    revision: Option<Revision>,
    follow: bool,
    /// When the next may be computed.
    due: Instant,
    first: bool,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<wire::Rollout, Status>, Self)> {
        if self.ended {
            return None;
        }
        let stopping = self.watchers.stopping.clone();
        let alive = tokio::select! {
            alive = self.changed() => alive,
            () = stopping.cancelled() => false,
        };
        if !alive {
            self.ended = true;
            let status = Status::unavailable("the control plane is stopping");
            return Some((Err(status), self));
        }
        let began = Instant::now();
        self.changes.borrow_and_update();
        let newest = self.published.borrow_and_update().position.clone();
        let revision = self.revision.unwrap_or(newest.revision);
        let rollout = self.context.fleet.rollout(revision, &newest);
        let took = began.elapsed();
        self.due = Instant::now() + APART.max(took * PART * self.watchers.count());
        self.ended = rollout.complete && !self.follow;
        Some((Ok(rollout), self))
    }

    /// Waits until there is something to tell. False when the registry is gone.
    async fn changed(&mut self) -> bool {
        if std::mem::take(&mut self.first) {
            return true;
        }
        let changed = tokio::select! {
            changed = self.changes.changed() => changed.is_ok(),
            changed = self.published.changed() => changed.is_ok(),
        };
        sleep_until(self.due).await;
        changed
    }
}
