//! Follows the control plane: keeps one stream open, applies what is pushed, answers, and keeps the
//! last known good configuration on disk.
//!
//! States: starting (from the file, if there is one) → connecting ⇄ following. The worker serves in
//! all of them; only the age of its configuration differs.

mod backoff;
mod incoming;
mod lkg;
mod session;
mod status;

use std::{path::PathBuf, sync::Arc, time::Duration};

use forebay_proto::{InstanceId, Position, WorkerId};
use http::Uri;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use self::{
    backoff::{Backoff, Class},
    session::Session,
};
pub use self::{
    lkg::{Kept, LastKnownGood},
    status::{ConfigSource, ConfigStatus},
};
use crate::{
    apply::{Applier, Refusal},
    health::ChangedHealth,
    live::LiveCell,
    metrics::Metrics,
};

/// Pause before a configuration that could not be written is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(10);

/// Who the worker is to the control plane.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Stable over restarts.
    pub worker: WorkerId,
    /// New with each start.
    pub instance: InstanceId,
    /// Version of the build.
    pub build: String,
    /// Address of the gateway, for people.
    pub gateway_address: String,
}

/// The follower. There is exactly one per worker.
#[derive(Debug)]
pub struct ConfigClient {
    control: Vec<Uri>,
    identity: Identity,
    applier: Applier,
    live: Arc<LiveCell>,
    status: Arc<ConfigStatus>,
    metrics: Arc<Metrics>,
    lkg: Option<LastKnownGood>,
    keep: watch::Sender<Option<Kept>>,
    /// What is in force, as it was pushed: what deltas change.
    held: Option<Kept>,
    /// How requests went for what was changed lately.
    changed: ChangedHealth,
    #[cfg(feature = "simulation")]
    network: Option<crate::simulation::Connect>,
}

impl ConfigClient {
    /// Follows one of these control planes.
    #[must_use]
    pub fn new(
        control: Vec<Uri>,
        identity: Identity,
        applier: Applier,
        live: Arc<LiveCell>,
        status: Arc<ConfigStatus>,
        metrics: Arc<Metrics>,
        lkg: Option<LastKnownGood>,
    ) -> Self {
        let (keep, held) = (watch::Sender::new(None), None);
        Self {
            control,
            identity,
            applier,
            live,
            status,
            metrics,
            lkg,
            keep,
            held,
            changed: ChangedHealth::default(),
            #[cfg(feature = "simulation")]
            network: None,
        }
    }

    /// From now on it connects over this.
    #[cfg(feature = "simulation")]
    pub(crate) fn over(&mut self, network: crate::simulation::Connect) {
        self.network = Some(network);
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        #[cfg(feature = "simulation")]
        if let Some(network) = &self.network {
            return network.open(endpoint).await;
        }
        endpoint.connect().await
    }

    /// Puts the newest configuration on disk in force that is not refused, if there is one.
    pub fn start_from_disk(&mut self) {
        let kept: Vec<Kept> = self.lkg.iter().flat_map(LastKnownGood::load).collect();
        for kept in &kept {
            let Kept { position, config } = kept;
            match self.applier.apply(position, config) {
                Ok(_) => {
                    self.held = Some(kept.clone());
                    self.status.applied(ConfigSource::LastKnownGood);
                    tracing::info!(%position, "serving the last known good configuration");
                    return;
                }
                Err(refusals) => self.tell_of(position, refusals),
            }
        }
    }

    fn tell_of(&self, position: &Position, refusals: Vec<Refusal>) {
        for refusal in refusals {
            self.metrics.rejected(refusal.reason);
            let (field, why) = (refusal.field, refusal.message);
            tracing::error!(%position, field, why, "last known good configuration refused");
        }
    }

    /// Follows until told to stop.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut keeper = JoinSet::new();
        if let Some(lkg) = self.lkg.take() {
            keeper.spawn(keep_on_disk(lkg, self.keep.subscribe()));
        }
        let mut backoff = Backoff::default();
        let mut next = fastrand::usize(..self.control.len().max(1));
        while let Some(uri) = self.control.get(next % self.control.len().max(1)).cloned() {
            let began = Instant::now();
            let ended = Session::follow(&mut self, &uri, &shutdown).await;
            self.status.disconnected();
            if shutdown.is_cancelled() {
                break;
            }
            let pause = backoff.after(began.elapsed(), ended.class());
            match ended.class() {
                Class::Told => tracing::info!(
                    control = %uri, reason = %ended, ?pause, "stream ended in good order, serving on"
                ),
                Class::Lost | Class::Refused => tracing::warn!(
                    control = %uri, reason = %ended, ?pause, "control plane lost, serving on"
                ),
            }
            next = next.wrapping_add(1);
            tokio::select! {
                () = sleep(pause) => {}
                () = shutdown.cancelled() => break,
            }
        }
        drop(self.keep);
        while let Some(ended) = keeper.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the last-known-good keeper failed");
            }
        }
    }
}

/// Writes the newest configuration to disk; intermediate ones are skipped. Ends when the client does,
/// after writing the last.
async fn keep_on_disk(lkg: LastKnownGood, mut newest: watch::Receiver<Option<Kept>>) {
    let mut pause = None;
    while next_to_keep(&mut newest, pause).await {
        let Some(kept) = newest.borrow_and_update().clone() else {
            continue;
        };
        let lkg = lkg.clone();
        let position = kept.position.clone();
        let saved = tokio::task::spawn_blocking(move || lkg.save(&kept)).await;
        pause = match saved.map_err(std::io::Error::other).flatten() {
            Ok(()) => {
                tracing::debug!(%position, "last known good saved");
                None
            }
            Err(error) => {
                tracing::error!(%position, %error, "last known good not saved");
                Some(SAVE_AGAIN)
            }
        };
    }
}

/// Waits for a newer one, or until the last is to be tried again. False when the client has ended.
async fn next_to_keep(newest: &mut watch::Receiver<Option<Kept>>, pause: Option<Duration>) -> bool {
    let changed = newest.changed();
    match pause {
        None => changed.await.is_ok(),
        Some(pause) => {
            timeout(pause, changed).await.is_ok_and(|c| c.is_ok()) || newest.has_changed().is_ok()
        }
    }
}

/// The default place of the files within a data directory.
#[must_use]
pub fn lkg_folder(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("last-known-good")
}
