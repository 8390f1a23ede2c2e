//! Several control planes on one store: who decides, what each knows of the others, and how each follows what the others
//! write (docs/adr/0028).
//!
//! Every replica serves: reads from its memory, writes through the store's order of revisions, streams to its own
//! workers. Only decisions about the whole fleet (rollouts in rings, leases of connections) are one replica's: that which
//! holds the lease. Losing it ends decisions, not streams. A decision carries the term that it was made in, and the
//! store refuses it under a later one, so that a replica that was asleep decides nothing when it wakes.

mod drains;
mod election;
mod follow;
mod lag;
mod metrics;
mod secrets;
mod watching;
mod workers;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    drains::{Drains, Uncarried},
    election::leader_name,
    lag::Lag,
    metrics::ReplicaMetrics,
    secrets::check as check_secrets,
    watching::Looks,
};
use crate::{
    etcd::{Etcd, EtcdAccess},
    fleet::Fleet,
    leases::EtcdBoard,
    metrics::Metrics,
    registry::RegistryHandle,
    store::etcd::Layout,
};

/// How this control plane shares a store with others.
#[derive(Debug, Clone, Default)]
pub struct ReplicaSettings {
    /// Its name among them; the host's, if absent.
    pub name: Option<String>,
    /// How it gets into the etcd that they share.
    pub access: EtcdAccess,
}

/// Whether this process decides. A term is a fencing token: it only grows, and what was decided under an older one is
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// Another one does, or nobody.
    Follower,
    /// It does, in this term.
    Leader {
        /// Which one.
        term: u64,
    },
}

impl Leadership {
    /// Of a process that shares its store with nobody: it decides, always. The sender is to be kept.
    pub(crate) fn alone() -> (watch::Sender<Self>, watch::Receiver<Self>) {
        watch::channel(Self::Leader { term: 1 })
    }

    /// The term, if it decides.
    pub(crate) fn term(self) -> Option<u64> {
        match self {
            Self::Leader { term } => Some(term),
            Self::Follower => None,
        }
    }
}

/// What a replica is to the others.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    pub(crate) name: String,
    /// Of this process.
    pub(crate) instance: String,
}

impl Replica {
    pub(crate) fn new(name: Option<String>) -> Self {
        let name = name.unwrap_or_default();
        let name: String = name
            .chars()
            .filter(|c| c.is_ascii_graphic())
            .take(63)
            .collect();
        Self {
            name: match name.is_empty() {
                true => "control".to_owned(),
                false => name,
            },
            instance: uuid::Uuid::new_v4().simple().to_string(),
        }
    }
}

/// A replica's part in the store that is shared.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) etcd: Arc<Etcd>,
    pub(crate) layout: Layout,
    pub(crate) replica: Replica,
    pub(crate) lag: Arc<Lag>,
    pub(crate) leadership: watch::Receiver<Leadership>,
}

/// The same, before it runs.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) shared: Shared,
    /// Where they meet over leases.
    pub(crate) board: Arc<EtcdBoard>,
    leading: watch::Sender<Leadership>,
}

impl Cluster {
    /// The way to others with the word that a worker is to end.
    pub(crate) fn drains(&self) -> Drains {
        Drains::new(self.shared.clone())
    }

    pub(crate) fn new(etcd: Arc<Etcd>, replica: Replica) -> Self {
        let layout = Layout::new(etcd.at().prefix());
        let (leading, leadership) = watch::channel(Leadership::Follower);
        let shared = Shared {
            etcd,
            layout,
            replica,
            lag: Arc::default(),
            leadership,
        };
        Self {
            board: Arc::new(EtcdBoard::new(shared.clone())),
            shared,
            leading,
        }
    }

    /// Starts what makes a replica of it.
    pub(crate) fn start(
        self,
        registry: RegistryHandle,
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        tasks: &TaskTracker,
        stopping: CancellationToken,
    ) {
        let (leased, lease) = watch::channel(None);
        let Self {
            shared,
            board,
            leading,
        } = self;
        tasks.spawn(board.run(lease.clone(), stopping.clone()));
        tasks.spawn(follow::run(shared.clone(), registry, stopping.clone()));
        tasks.spawn(election::run(
            shared.clone(),
            leading,
            leased,
            metrics.clone(),
            stopping.clone(),
        ));
        tasks.spawn(workers::publish(
            shared.clone(),
            fleet.clone(),
            lease,
            stopping.clone(),
        ));
        tasks.spawn(drains::hear(
            shared.clone(),
            fleet.clone(),
            stopping.clone(),
        ));
        tasks.spawn(workers::follow(shared, fleet, stopping));
    }
}

/// Makes this one the one in charge, whoever was before. Gives the term.
#[cfg(test)]
pub(crate) async fn take_charge(shared: &Shared, lease: i64) -> u64 {
    use crate::etcd::{Budget, api::TxnRequest, ops};
    let leader = shared.layout.leader();
    let mut answers = Vec::new();
    for op in [
        ops::delete(leader.clone()),
        ops::put(leader.clone(), vec![1], lease),
        ops::get(leader.clone()),
    ] {
        let txn = TxnRequest {
            success: vec![op],
            ..TxnRequest::default()
        };
        answers.push(shared.etcd.txn(txn, Budget::WRITE).await.unwrap());
    }
    let found = answers.pop().unwrap();
    let made = ops::found(found.responses.first()).unwrap().create_revision;
    u64::try_from(made).unwrap()
}
