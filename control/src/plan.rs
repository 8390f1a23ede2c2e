//! What is begun when a control plane serves, in its order: what meets other control planes, rollouts, leases. What each
//! of them does is its own.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::{Cluster, Leadership},
    rollout::{self, Kept, RegistryPast, RolloutSettings},
    service::Context,
    session::Offer,
};

/// What is begun when a control plane serves.
pub(crate) struct Plan {
    pub(crate) stream_age: Option<Duration>,
    /// In rings, and where what is stable is kept.
    pub(crate) staged: Option<(RolloutSettings, Kept)>,
    /// With others on one store.
    pub(crate) cluster: Option<Box<Cluster>>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Begins it. Gives what workers are offered, and what is to be held to the end: who shares its store with nobody
    /// decides for as long as it runs.
    pub(crate) async fn begin(
        self,
        context: &Context,
        published: watch::Receiver<Offer>,
        sessions: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> (watch::Receiver<Offer>, watch::Sender<Leadership>) {
        let (alone, mut leadership) = Leadership::alone();
        if let Some(cluster) = self.cluster {
            leadership = cluster.shared.leadership.clone();
            if self.staged.is_none() {
                let shared = cluster.shared.clone();
                sessions.spawn(rollout::forget_shared(shared, shutdown.clone()));
            }
            cluster.start(
                context.registry.clone(),
                context.fleet.clone(),
                context.metrics.clone(),
                sessions,
                shutdown.clone(),
            );
        }
        let leads = leadership.clone();
        let offers = match self.staged {
            None => published,
            Some((settings, kept)) => {
                let parts = rollout::Parts {
                    settings,
                    kept,
                    leadership,
                    past: RegistryPast(context.registry.clone()),
                    fleet: context.fleet.clone(),
                    metrics: context.metrics.clone(),
                };
                rollout::start(parts, published, sessions, shutdown.clone()).await
            }
        };
        let leases = context.leases.clone();
        sessions.spawn(leases.run(offers.clone(), leads, shutdown.clone()));
        (offers, alone)
    }
}
