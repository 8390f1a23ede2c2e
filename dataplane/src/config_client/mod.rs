//! Follows the control plane: keeps one stream open, applies what is pushed, answers, and has what proved good kept
//! on disk. What ended the process twice is not applied again.
//!
//! States: starting (from the file, if there is one) → connecting ⇄ following. The worker serves in
//! all of them; only the age of its configuration differs.

mod attempts;
mod backoff;
mod connector;
mod follow;
mod incoming;
mod keeper;
mod keys;
mod leases;
mod lkg;
mod session;
mod status;

use std::{path::PathBuf, sync::Arc, time::Duration};

use forebay_proto::{InstanceId, Position, WorkerId};
use http::Uri;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

pub(crate) use self::follow::{Order, follow};
use self::{
    attempts::Tried,
    backoff::{Backoff, Class},
    keeper::{Keeper, Marks},
    keys::KeysFollower,
    session::Session,
};
pub use self::{
    lkg::{Kept, LastKnownGood},
    status::{ConfigSource, ConfigStatus},
};
use crate::{
    apply::{Applied, Applier, Refusal, RefusalReason},
    health::ChangedHealth,
    keys::KeyCell,
    live::LiveCell,
    metrics::Metrics,
};

/// Where configurations that proved good are kept, and when they have.
#[derive(Debug)]
pub struct Keeping {
    /// The folder.
    pub lkg: LastKnownGood,
    /// How long one is in force, with the process alive, until it is good.
    pub soak: Duration,
}

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
    /// The process takes the place of another one.
    pub takes_over: bool,
}

/// The follower. There is exactly one per worker.
#[derive(Debug)]
pub struct ConfigClient {
    control: Vec<Uri>,
    identity: Identity,
    applier: Applier,
    live: Arc<LiveCell>,
    keys: KeysFollower,
    status: Arc<ConfigStatus>,
    metrics: Arc<Metrics>,
    keeper: Option<Keeper>,
    marks: Option<Marks>,
    /// What ended the process twice.
    quarantined: Vec<Position>,
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
        (live, keys): (Arc<LiveCell>, Arc<KeyCell>),
        status: Arc<ConfigStatus>,
        metrics: Arc<Metrics>,
        keeping: Option<Keeping>,
    ) -> Self {
        let file = keeping.as_ref().map(|keeping| keeping.lkg.keys_file());
        let keeper = keeping.map(|keeping| Keeper::new(keeping.lkg, keeping.soak));
        let (keeper, marks) = keeper.unzip();
        Self {
            control,
            identity,
            applier,
            live,
            keys: KeysFollower::new(keys, file),
            status,
            metrics,
            keeper,
            marks,
            quarantined: Vec::new(),
            held: None,
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
        let connector = connector::connector(session::CONNECT);
        endpoint.connect_with_connector(connector).await
    }

    /// Puts the newest configuration on disk in force that is not refused and did not end the process twice, if there
    /// is one.
    pub fn start_from_disk(&mut self) {
        // Before anything is served.
        self.keys.start();
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        if let Some(tried) = keeper.begin() {
            tell_of_crash(&tried);
        }
        self.quarantined = keeper.quarantined();
        self.status.quarantined(self.quarantined.len());
        for kept in keeper.load() {
            if let Some(refusal) = self.refuses(&kept.position) {
                self.tell_of(&kept.position, vec![refusal]);
                continue;
            }
            let on_trial = keeper.trying_again(&kept.position);
            match self
                .applier
                .apply(&kept.position, &kept.config, &kept.retained)
            {
                Ok(applied) => {
                    keeper.found(&kept);
                    self.took(kept, applied, ConfigSource::LastKnownGood, on_trial);
                    break;
                }
                Err(refusals) => self.tell_of(&kept.position, refusals),
            }
        }
        self.keeper = Some(keeper);
    }

    /// It is in force. If it has yet to prove good, that begins.
    fn took(&mut self, kept: Kept, applied: Applied, source: ConfigSource, on_trial: bool) {
        let position = &kept.position;
        for refusal in &applied.refusals {
            self.metrics.model_rejected(refusal.reason);
            tracing::error!(
                %position, model = refusal.model, field = refusal.field,
                reason = refusal.reason.word(), why = refusal.message, "model not taken"
            );
        }
        if source == ConfigSource::LastKnownGood {
            tracing::info!(%position, "serving the last known good configuration");
        }
        self.status.applied(source);
        let kept = Kept {
            retained: applied.retained,
            ..kept
        };
        if let Some(marks) = self.marks.as_mut().filter(|_| on_trial) {
            marks.in_force(kept.clone());
        }
        self.held = Some(kept);
    }

    /// Why it is not even tried.
    fn refuses(&self, position: &Position) -> Option<Refusal> {
        let same = |known: &&Position| known.digest == position.digest;
        self.quarantined.iter().find(same)?;
        let message = format!(
            "{position} ended this worker's process twice and is not tried again; write another revision, or remove \
             `last-known-good/attempts` from the worker's data directory and start it anew"
        );
        let (field, reason) = ("to.digest".to_owned(), RefusalReason::Quarantined);
        Some(Refusal::of_whole(field, reason, message))
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
        if let Some(keep) = self.keeper.take() {
            keeper.spawn(keep.run());
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
                Class::Lost | Class::Busy | Class::Refused => tracing::warn!(
                    control = %uri, reason = %ended, ?pause, "control plane lost, serving on"
                ),
            }
            next = next.wrapping_add(1);
            tokio::select! {
                () = sleep(pause) => {}
                () = shutdown.cancelled() => break,
            }
        }
        // Who comes next begins with what is on disk.
        self.keys.save().await;
        // Its end is the keeper's.
        drop(self.marks.take());
        while let Some(ended) = keeper.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the last-known-good keeper failed");
            }
        }
    }
}

fn tell_of_crash(tried: &Tried) {
    let (position, crashes) = (&tried.position, tried.crashes);
    match tried.is_quarantined() {
        true => tracing::error!(
            %position, crashes, "the process ended again while this was tried; it is not tried any more"
        ),
        false => tracing::error!(
            %position, crashes, "the process ended while this was tried; starting from what is known to be good"
        ),
    }
}

/// The default place of the files within a data directory.
#[must_use]
pub fn lkg_folder(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("last-known-good")
}
