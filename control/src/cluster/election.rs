//! Who decides. A lease of this process in etcd, kept every second or so; a key that exists as long as the lease of
//! whoever made it; who finds no such key makes it. The revision of etcd at which it was made is the term: it only grows.
//!
//! ```text
//!   no lease ──granted──▶ Follower ──made the key──▶ Leader(term)
//!      ▲                     │                          │
//!      └── over, or not kept for as long as it lasts ───┴── at the end: revoked, so that the next one need not wait
//! ```
//!
//! Here the lease counts as over when it was last *asked* to be kept as long ago as it lasts, by this process's own
//! monotonic clock: that is never later than etcd's. A process that was stopped meanwhile notices late; what it decides
//! in between is refused by the store, which compares the term.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Leadership, Shared};
use crate::{
    etcd::{
        Budget, CallError,
        api::{RangeRequest, TxnRequest},
        ops,
    },
    metrics::Metrics,
};

/// How long others wait for a replica that says nothing.
const LEASE: Duration = Duration::from_secs(5);
/// How often the lease is kept and the key looked at.
const EVERY: Duration = Duration::from_millis(1_200);
/// At the end.
const REVOKE_WITHIN: Duration = Duration::from_secs(1);

/// What a replica says of itself.
#[derive(Clone, PartialEq, prost::Message)]
struct ReplicaMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    instance: String,
    #[prost(string, tag = "3")]
    version: String,
}

/// The name of the one that wrote that it decides.
pub(crate) fn leader_name(value: &[u8]) -> Option<String> {
    let message = ReplicaMessage::decode(value).ok()?;
    Some(message.name).filter(|name| !name.is_empty())
}

/// Stands for election until told to stop.
pub(crate) async fn run(
    shared: Shared,
    leading: watch::Sender<Leadership>,
    leased: watch::Sender<Option<i64>>,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
) {
    let mut candidate = Candidate {
        shared,
        leading,
        leased,
        metrics,
        lease: None,
    };
    loop {
        let due = Instant::now() + EVERY.mul_f64(0.8 + 0.4 * fastrand::f64());
        let kept = match candidate.lease {
            None => {
                tokio::select! {
                    kept = candidate.keep() => kept,
                    () = stopping.cancelled() => break,
                }
            }
            // However long a call takes.
            Some((_, over)) => tokio::select! {
                kept = candidate.keep() => kept,
                () = sleep_until(over) => {
                    candidate.lose("the lease was not kept in time");
                    None
                }
                () = stopping.cancelled() => break,
            },
        };
        if let Some((lease, over)) = kept {
            tokio::select! {
                () = candidate.stand(lease) => {}
                () = sleep_until(over) => candidate.lose("who decides was not known in time"),
                () = stopping.cancelled() => break,
            }
        }
        tokio::select! {
            () = sleep_until(due) => {}
            () = stopping.cancelled() => break,
        }
    }
    candidate.resign().await;
}

struct Candidate {
    shared: Shared,
    leading: watch::Sender<Leadership>,
    leased: watch::Sender<Option<i64>>,
    metrics: Arc<Metrics>,
    /// And when it is over unless it is kept.
    lease: Option<(i64, Instant)>,
}

impl Candidate {
    /// Keeps the lease, or gets one. Gives it, and when it is over.
    async fn keep(&mut self) -> Option<(i64, Instant)> {
        let asked = Instant::now();
        let kept = match self.lease {
            Some((lease, _)) => match self.shared.etcd.keep(lease).await {
                Ok(true) => Ok(lease),
                Ok(false) => return self.is_over(),
                Err(error) if error.is_gone() => return self.is_over(),
                Err(error) => Err(error),
            },
            None => self.join().await,
        };
        let lease = match kept {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(%error, "the lease was not kept");
                return None;
            }
        };
        self.lease = Some((lease, asked + LEASE));
        self.leased
            .send_if_modified(|known| known.replace(lease) != Some(lease));
        self.lease
    }

    fn is_over<T>(&mut self) -> Option<T> {
        self.lose("the lease is over");
        None
    }

    /// Makes the key, if nobody has it.
    async fn stand(&mut self, lease: i64) {
        match self.campaign(lease).await {
            Ok(leadership) => self.is(leadership),
            Err(error) => tracing::debug!(%error, "who decides is not known"),
        }
    }

    /// A lease, and under it this replica's name.
    async fn join(&self) -> Result<i64, CallError> {
        let lease = self.shared.etcd.grant(LEASE).await?;
        let replica = &self.shared.replica;
        let key = self
            .shared
            .layout
            .key(&format!("replica/{}", replica.instance));
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::put(key, self.message(), lease)],
            failure: Vec::new(),
        };
        self.shared.etcd.txn(txn, Budget::SHORT).await?;
        Ok(lease)
    }

    fn message(&self) -> Vec<u8> {
        let replica = &self.shared.replica;
        ReplicaMessage {
            name: replica.name.clone(),
            instance: replica.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
        .encode_to_vec()
    }

    async fn campaign(&self, lease: i64) -> Result<Leadership, CallError> {
        let Shared { etcd, layout, .. } = &self.shared;
        let txn = TxnRequest {
            compare: vec![ops::made_at(layout.leader(), 0)],
            success: vec![
                ops::put(layout.leader(), self.message(), lease),
                ops::get(layout.leader()),
            ],
            failure: vec![ops::get(layout.leader()), ops::get(layout.leader())],
        };
        let answer = etcd.txn(txn, Budget::SHORT).await?;
        let found = ops::found(answer.responses.get(1));
        // One that hangs on a lease that was given up is not this term's any more, though it was made here.
        let own = found.filter(|kv| kv.lease == lease);
        self.count().await?;
        Ok(match own {
            Some(kv) => Leadership::Leader {
                term: u64::try_from(kv.create_revision).unwrap_or(0),
            },
            None => Leadership::Follower,
        })
    }

    async fn count(&self) -> Result<(), CallError> {
        let key = self.shared.layout.key("replica/");
        let range = RangeRequest {
            range_end: ops::after_prefix(&key),
            key,
            keys_only: true,
            ..RangeRequest::default()
        };
        let found = self.shared.etcd.range(range, Budget::SHORT).await?;
        let count = i64::try_from(found.kvs.len()).unwrap_or(i64::MAX);
        self.metrics.replicas.replicas.set(count);
        Ok(())
    }

    fn is(&self, leadership: Leadership) {
        self.metrics
            .replicas
            .leader
            .set(leadership.term().is_some().into());
        let changed = self.leading.send_if_modified(|known| {
            let changed = *known != leadership;
            *known = leadership;
            changed
        });
        if changed {
            let replica = &self.shared.replica.name;
            match leadership {
                Leadership::Leader { term } => {
                    tracing::info!(replica, term, "this control plane decides");
                }
                Leadership::Follower => tracing::info!(replica, "another control plane decides"),
            }
        }
    }

    fn lose(&mut self, why: &str) {
        tracing::warn!(why, "this control plane has no lease");
        self.lease = None;
        self.leased.send_replace(None);
        self.is(Leadership::Follower);
    }

    /// Others need not wait for the lease to run out.
    async fn resign(&mut self) {
        self.is(Leadership::Follower);
        if let Some((lease, _)) = self.lease.take() {
            let revoked = timeout(REVOKE_WITHIN, self.shared.etcd.revoke(lease)).await;
            if !matches!(revoked, Ok(Ok(()))) {
                tracing::info!("the lease runs out by itself");
            }
        }
    }
}
