//! Follows what other replicas write: when a head moved, the writer is told to take it over. It reads nothing of the
//! registry itself.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Looks, Shared};
use crate::{
    etcd::{Budget, CallError, api::RangeRequest, ops::after_prefix},
    registry::RegistryHandle,
};

/// How often it looks without having been told.
const EVERY: Duration = Duration::from_secs(1);

/// Follows until told to stop.
pub(crate) async fn run(shared: Shared, registry: RegistryHandle, stopping: CancellationToken) {
    let mut looks = Looks::new(shared.etcd.clone(), shared.layout.heads(), EVERY);
    let mut followed = Vec::new();
    loop {
        tokio::select! {
            () = looks.next() => {}
            () = stopping.cancelled() => return,
        }
        match heads(&shared).await {
            Err(error) => shared.lag.away(error.to_string()),
            Ok(heads) if heads == followed => shared.lag.in_step(),
            Ok(heads) => match registry.follow().await {
                Ok(()) => {
                    followed = heads;
                    shared.lag.in_step();
                }
                Err(error) => shared.lag.away(error.to_string()),
            },
        }
    }
}

/// Which heads there are, and when each was written last.
async fn heads(shared: &Shared) -> Result<Vec<(Vec<u8>, i64)>, CallError> {
    let key = shared.layout.heads();
    let range = RangeRequest {
        range_end: after_prefix(&key),
        key,
        keys_only: true,
        ..RangeRequest::default()
    };
    let found = shared.etcd.range(range, Budget::SHORT).await?;
    let heads = found.kvs.into_iter();
    Ok(heads.map(|kv| (kv.key, kv.mod_revision)).collect())
}
