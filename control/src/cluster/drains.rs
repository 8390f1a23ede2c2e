//! Carries the word that a worker is to end to the control plane that has it. A key per word, which goes when that one
//! has heard it, or when it is too late; nothing is decided here, and nobody waits for a worker. The word names the process
//! of the worker that is meant: whoever comes in its place meanwhile is not.

use std::{sync::Arc, time::Duration};

use forebay_proto::InstanceId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Looks, Shared};
use crate::{
    etcd::{
        Budget, CallError,
        api::{RangeRequest, TxnRequest},
        ops,
    },
    fleet::{CannotDrain, Fleet},
};

/// How long who asks waits.
const WITHIN: Duration = Duration::from_secs(3);
/// Then nobody is to hear it any more.
const LASTS: Duration = Duration::from_secs(10);
/// How often it is looked without having been told of a change.
const EVERY: Duration = Duration::from_secs(5);
const ANSWER_EVERY: Duration = Duration::from_millis(500);
/// So begins what stands there until it is heard; the worker's process follows.
const ASKED: &[u8] = b"?";

/// Why a word did not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uncarried {
    /// The other one says so.
    Refused(CannotDrain),
    /// Whether it was heard is not known.
    Unanswered(String),
}

/// The way to other control planes.
#[derive(Debug, Clone)]
pub(crate) struct Drains(Shared);

impl Drains {
    pub(super) fn new(shared: Shared) -> Self {
        Self(shared)
    }

    /// Has this process of a worker, which the control plane with that process has, told to end.
    pub(crate) async fn carry(
        &self,
        instance: &str,
        (worker, process): (&str, &InstanceId),
    ) -> Result<(), Uncarried> {
        let carried = timeout(WITHIN, self.ask(instance, worker, process)).await;
        let silent = || Uncarried::Unanswered("it did not answer in time".to_owned());
        let answer = carried.map_err(|_| silent())?;
        let answer = answer.map_err(|error| Uncarried::Unanswered(error.to_string()))?;
        answer.map_or(Ok(()), |why| Err(Uncarried::Refused(why)))
    }

    async fn ask(
        &self,
        instance: &str,
        worker: &str,
        process: &InstanceId,
    ) -> Result<Option<CannotDrain>, CallError> {
        let Shared { etcd, layout, .. } = &self.0;
        let key = layout.key(&format!("drain/{instance}/{worker}"));
        let lease = etcd.grant(LASTS).await?;
        let asked = [ASKED, process.as_str().as_bytes()].concat();
        put(&self.0, key.clone(), &asked, lease).await?;
        let mut looks = Looks::new(etcd.clone(), key.clone(), ANSWER_EVERY);
        loop {
            looks.next().await;
            let one = RangeRequest {
                key: key.clone(),
                ..RangeRequest::default()
            };
            let found = etcd.range(one, Budget::SHORT).await?;
            match found.kvs.first() {
                None => return Ok(None),
                Some(kv) if kv.value.starts_with(ASKED) => {}
                Some(kv) => return Ok(Some(read(&kv.value))),
            }
        }
    }
}

/// Hears which workers of this control plane are to end, until told to stop.
pub(super) async fn hear(shared: Shared, fleet: Arc<Fleet>, stopping: CancellationToken) {
    let prefix = format!("drain/{}/", shared.replica.instance);
    let prefix = shared.layout.key(&prefix);
    let mut looks = Looks::new(shared.etcd.clone(), prefix.clone(), EVERY);
    loop {
        tokio::select! {
            () = looks.next() => {}
            () = stopping.cancelled() => return,
        }
        if let Err(error) = hear_all(&shared, &fleet, &prefix).await {
            tracing::debug!(%error, "which workers others want to end is not known");
        }
    }
}

async fn hear_all(shared: &Shared, fleet: &Fleet, prefix: &[u8]) -> Result<(), CallError> {
    let all = RangeRequest {
        key: prefix.to_vec(),
        range_end: ops::after_prefix(prefix),
        ..RangeRequest::default()
    };
    for kv in shared.etcd.all(all).await? {
        let worker = kv.key.strip_prefix(prefix).unwrap_or_default();
        let worker = String::from_utf8_lossy(worker).into_owned();
        let Some(process) = kv.value.strip_prefix(ASKED) else {
            continue;
        };
        let process = String::from_utf8_lossy(process);
        match fleet.drain_process(&worker, &process) {
            Ok(()) => {
                tracing::info!(
                    worker,
                    "worker is told to end, as another control plane was asked"
                );
                let txn = TxnRequest {
                    success: vec![ops::delete(kv.key)],
                    ..TxnRequest::default()
                };
                shared.etcd.txn(txn, Budget::SHORT).await?;
            }
            Err(why) => {
                let lease = shared.etcd.grant(LASTS).await?;
                put(shared, kv.key, word(&why), lease).await?;
            }
        }
    }
    Ok(())
}

async fn put(shared: &Shared, key: Vec<u8>, value: &[u8], lease: i64) -> Result<(), CallError> {
    let txn = TxnRequest {
        success: vec![ops::put(key, value.to_vec(), lease)],
        ..TxnRequest::default()
    };
    shared.etcd.txn(txn, Budget::SHORT).await.map(drop)
}

fn word(why: &CannotDrain) -> &'static [u8] {
    match why {
        CannotDrain::TooOld => b"too old",
        CannotDrain::Unknown => b"unknown",
        // It went meanwhile; where to, who asks will know as soon as this one.
        CannotDrain::Gone | CannotDrain::Elsewhere { .. } => b"gone",
    }
}

fn read(word: &[u8]) -> CannotDrain {
    match word {
        b"too old" => CannotDrain::TooOld,
        b"unknown" => CannotDrain::Unknown,
        _ => CannotDrain::Gone,
    }
}
