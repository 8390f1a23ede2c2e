//! Keeps an export of the newest revision beside the database, off the path of a write.
//!
//! It follows what is published, so that a write neither waits for it nor knows of it. Writes that follow
//! one another soon are exported once. A failed export is told of (log, metric, `/readyz`) and tried again;
//! it stops nothing. At a good end what is not exported yet is.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use forebay_proto::{Epoch, Revision};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Lag,
    metrics::Metrics,
    registry::{Published, keys::PublishedKeys},
    store::{
        Stored, export,
        recover::{DirLock, Recovered},
    },
};

#[cfg(test)]
#[path = "exporter_tests.rs"]
mod tests;

/// Between two exports, and so the longest between a write and the begin of its export. One that takes long
/// is made less often.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(1_500);
/// The pause in durations of the last export.
const REST: u32 = 20;

/// What is to be said of the store while it works.
#[derive(Debug)]
pub(crate) struct StoreStatus {
    recovered: Option<Recovered>,
    export_failed: Mutex<Option<String>>,
    /// Of a store that others write to, too.
    lag: Option<Arc<Lag>>,
}

impl StoreStatus {
    pub(crate) fn new(recovered: Option<Recovered>) -> Self {
        Self {
            recovered,
            export_failed: Mutex::new(None),
            lag: None,
        }
    }

    /// Of a store that is shared.
    pub(crate) fn shared(lag: Arc<Lag>) -> Self {
        Self {
            lag: Some(lag),
            ..Self::new(None)
        }
    }

    /// How long ago everything that others wrote was known.
    pub(crate) fn lag(&self) -> Duration {
        self.lag
            .as_ref()
            .map_or(Duration::ZERO, |lag| lag.elapsed())
    }
}

impl fmt::Display for StoreStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(recovered) = &self.recovered {
            writeln!(f, "at the start {recovered}")?;
        }
        if let Some(error) = &*self.export_failed.lock() {
            writeln!(
                f,
                "the automatic export failed, writes go on: {error}; a damaged store would be recovered from an older one"
            )?;
        }
        if let Some(lag) = &self.lag {
            lag.fmt(f)?;
        }
        Ok(())
    }
}

/// Exports a directory's registry.
#[derive(Debug)]
pub(crate) struct Exporter {
    pub(crate) dir: PathBuf,
    /// Nobody else works in the directory until the last export is made.
    pub(crate) lock: DirLock,
    pub(crate) published: watch::Receiver<Arc<Published>>,
    pub(crate) keys: watch::Receiver<Arc<PublishedKeys>>,
    pub(crate) status: Arc<StoreStatus>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Exporter {
    /// Exports until told to stop, and then once more if need be.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut exported = None;
        loop {
            let began = Instant::now();
            exported = self.export(exported).await;
            let pause = (began.elapsed() * REST).clamp(PAUSE, LONGEST_PAUSE);
            let behind = exported.as_ref() != Some(&self.position());
            tokio::select! {
                () = stop.cancelled() => break,
                () = async {
                    sleep(pause).await;
                    // The writer may be gone; then there is nothing more to come, but the end.
                    if !behind && self.changed().await.is_none() {
                        std::future::pending::<()>().await;
                    }
                } => {}
            }
        }
        self.export(exported).await;
        drop(self.lock);
    }

    fn position(&self) -> At {
        position_of(&self.published.borrow(), &self.keys.borrow())
    }

    /// Waits until there is something new; nothing if there will not be.
    async fn changed(&mut self) -> Option<()> {
        let changed = tokio::select! {
            changed = self.published.changed() => changed,
            changed = self.keys.changed() => changed,
        };
        changed.ok()
    }

    /// Makes an export unless there is one of this position; gives the position of the newest.
    async fn export(&mut self, before: Option<At>) -> Option<At> {
        let published = self.published.borrow_and_update().clone();
        let keys = self.keys.borrow_and_update().clone();
        let position = position_of(&published, &keys);
        if before.as_ref() == Some(&position) {
            return before;
        }
        let dir = self.dir.clone();
        let now = SystemTime::now();
        let saving = tokio::task::spawn_blocking(move || {
            let stored = Stored {
                keys: keys.book.stored(),
                ..published.state.stored()
            };
            export::save(&dir, &stored, now)
        });
        let saved = match saving.await {
            Ok(saved) => saved.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = saved {
            self.metrics.export_failures.inc();
            let told = self.status.export_failed.lock().replace(error.clone());
            // Once per cause: on a full disk it fails each time.
            if told.as_ref() != Some(&error) {
                tracing::error!(%error, "the automatic export failed");
            }
            return before;
        }
        if self.status.export_failed.lock().take().is_some() {
            tracing::info!("the automatic export works again");
        }
        let revision = position.1.get();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let as_gauge = |number| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.export_revision.set(as_gauge(revision));
        self.metrics.export_time.set(as_gauge(seconds));
        tracing::debug!(revision, "exported");
        Some(position)
    }
}

/// Lineage, revision, and version of the keys.
type At = (Epoch, Revision, u64);

fn position_of(published: &Published, keys: &PublishedKeys) -> At {
    let position = &published.position;
    (
        position.epoch.clone(),
        position.revision,
        keys.book.version(),
    )
}
