//! Follows the control plane: keeps one stream open to one of its replicas, applies what is pushed, answers, and has what
//! proved good kept on disk. What ended the process twice is not applied again.
//!
//! States: starting (from the file, if there is one) → connecting ⇄ following. The worker serves in
//! all of them; only the age of its configuration differs. Which replica it follows, and when it goes to another, is for
//! `roam.rs`.

mod attempts;
mod backoff;
mod chooser;
mod connector;
mod ended;
mod follow;
mod incoming;
mod keeper;
mod keys;
mod leases;
mod line;
mod lkg;
mod look;
mod names;
mod roam;
mod session;
mod status;

use std::{path::PathBuf, sync::Arc, time::Duration};

use forebay_proto::{InstanceId, Position, WorkerId, wire};
use http::Uri;

use self::{
    attempts::Tried,
    keeper::{Keeper, Marks},
    keys::KeysFollower,
    roam::Shared,
};
pub(crate) use self::{
    chooser::Left,
    follow::{Order, follow},
};
pub use self::{
    lkg::{Kept, LastKnownGood},
    status::{ConfigSource, ConfigStatus, Followed},
};
use crate::{
    apply::{Applied, Applier, Refusal, RefusalReason},
    health::ChangedHealth,
    keys::KeyCell,
    live::LiveCell,
    metrics::Metrics,
    resolve::Resolver,
};

/// Which control planes there are, and how they are found.
#[derive(Debug, Clone)]
pub struct Controls {
    /// Any of which will do. A name stands for all its addresses.
    pub urls: Vec<Uri>,
    /// How often it is looked whether another one has less to do, on average; nothing: never.
    pub look_every: Option<Duration>,
    /// Whom to ask for addresses; nobody: names are connected to as they are.
    pub(crate) resolver: Option<Arc<Resolver>>,
}

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
    shared: Arc<Shared>,
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
    /// What was refused last, if nothing was applied since: the next control plane need not try it.
    refused: Option<wire::Nack>,
    /// How requests went for what was changed lately.
    changed: ChangedHealth,
}

impl ConfigClient {
    /// Follows one of these control planes.
    #[must_use]
    pub fn new(
        controls: Controls,
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
            shared: Arc::new(Shared::new(controls)),
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
            refused: None,
            changed: ChangedHealth::default(),
        }
    }

    /// From now on it connects over this.
    #[cfg(feature = "simulation")]
    pub(crate) fn over(&mut self, network: crate::simulation::Connect) {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.line.network = Some(network);
        }
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
            if let Some(held) = self.in_force_instead(&kept.position) {
                tracing::warn!(kept = %kept.position, %held, "what is on disk is not newer than what is in force, serving on");
                continue;
            }
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

    /// What stays in force, where that is not to be changed for this: who goes on after a rest may have something that its
    /// disk did not take, and what is there then is older, or of the store before.
    fn in_force_instead(&self, kept: &Position) -> Option<Position> {
        let held = self.live.load().position.clone()?;
        let newer = held.epoch == kept.epoch && held.revision <= kept.revision;
        (!newer).then_some(held)
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
        self.refused = None;
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

#[cfg(test)]
mod tests {
    use forebay_proto::{Config, Epoch, PoolSettings, Revision};
    use prometheus::Registry;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::pool::Common;

    fn kept(epoch: &str, revision: u64) -> Kept {
        let budget = PoolSettings::default().budget().unwrap();
        let (config, digest) = Config::new(budget, Vec::new()).unwrap().encode();
        Kept {
            position: Position {
                epoch: Epoch::new(epoch).unwrap(),
                revision: Revision::new(revision),
                digest,
            },
            config,
            retained: Vec::new(),
        }
    }

    fn client(live: &Arc<LiveCell>, lkg: LastKnownGood) -> ConfigClient {
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        let common = Common {
            tasks: TaskTracker::new(),
            metrics: metrics.clone(),
            budget: Arc::default(),
            resolver: Arc::new(Resolver::new(&[])),
            probing: Arc::default(),
            discovering: Arc::default(),
            keys: Arc::default(),
            leases: Arc::default(),
        };
        let controls = Controls {
            urls: Vec::new(),
            look_every: None,
            resolver: None,
        };
        let identity = Identity {
            worker: WorkerId::new("w").unwrap(),
            instance: InstanceId::new("i").unwrap(),
            build: String::new(),
            gateway_address: String::new(),
            takes_over: false,
        };
        ConfigClient::new(
            controls,
            identity,
            Applier::new(live.clone(), common, 1 << 20),
            (live.clone(), Arc::default()),
            Arc::default(),
            metrics,
            Some(Keeping {
                lkg,
                soak: Duration::from_secs(1),
            }),
        )
    }

    /// Nobody took over, and what was in force could not be written: the disk was full.
    #[tokio::test]
    async fn who_goes_on_keeps_what_is_in_force_unless_the_disk_has_something_newer() {
        let dir = tempfile::tempdir().unwrap();
        let lkg = LastKnownGood::open(&lkg_folder(dir.path())).unwrap();
        let live = Arc::<LiveCell>::default();
        let held = kept("bb", 5);
        let first = client(&live, lkg.clone());
        first
            .applier
            .apply(&held.position, &held.config, &[])
            .unwrap();
        for (on_disk, in_force) in [
            // Of the store before.
            (kept("aa", 9), &held),
            (kept("bb", 4), &held),
            // The other process wrote it before it gave up.
            (kept("bb", 6), &kept("bb", 6)),
        ] {
            lkg.save(&on_disk).unwrap();
            client(&live, lkg.clone()).start_from_disk();
            let position = live.load().position.clone();
            assert_eq!(position.as_ref(), Some(&in_force.position));
        }
    }
}
