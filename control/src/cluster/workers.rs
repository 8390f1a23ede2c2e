//! Each replica tells the others of its workers, and hears of theirs: rollouts look at the whole fleet, and so do those
//! who ask for it at any replica.
//!
//! What is told is under the replica's lease, so it goes when the replica does. It is told in a fixed number of parts, a
//! part only when something in it changed, all of them at most once a second: an idle fleet writes nothing, a large one
//! no more than its workers change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Looks, Shared};
use crate::{
    etcd::{
        Budget, CallError,
        api::{RangeRequest, TxnRequest},
        ops,
    },
    fleet::Fleet,
};

/// In so many parts a replica's workers are told.
const PARTS: u32 = 64;
/// Largest part: etcd takes 1.5 MiB in a request.
const PART_BYTES: usize = 1 << 20;
/// Between two times that something is told.
const APART: Duration = Duration::from_secs(1);
/// How often others' parts are looked at without having been told of a change.
const EVERY: Duration = Duration::from_secs(5);

/// Tells others of this replica's workers, until told to stop.
pub(super) async fn publish(
    shared: Shared,
    fleet: Arc<Fleet>,
    mut lease: watch::Receiver<Option<i64>>,
    stopping: CancellationToken,
) {
    let mut changed = fleet.watch();
    let mut told: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut under = None;
    loop {
        let now = *lease.borrow_and_update();
        if under != now {
            // What was told under the lease before went with it.
            told.clear();
            under = now;
        }
        fleet.meet_others();
        if let Some(lease) = under
            && let Err(error) = tell(&shared, &fleet, lease, &mut told).await
        {
            tracing::debug!(%error, "others were not told of this control plane's workers");
        }
        tokio::select! {
            () = sleep(APART) => {}
            () = stopping.cancelled() => return,
        }
        tokio::select! {
            _ = changed.changed() => {}
            // How requests go is no change that is told of, and what failed is tried again.
            () = sleep(APART) => {}
            () = stopping.cancelled() => return,
        }
    }
}

async fn tell(
    shared: &Shared,
    fleet: &Fleet,
    lease: i64,
    told: &mut BTreeMap<u32, Vec<u8>>,
) -> Result<(), CallError> {
    let now: BTreeMap<u32, Vec<u8>> = fleet
        .export(&shared.replica.name, PARTS)
        .into_iter()
        .collect();
    let key = |n: u32| {
        let instance = &shared.replica.instance;
        shared.layout.key(&format!("workers/{instance}/{n:04}"))
    };
    for n in 0..PARTS {
        let op = match (now.get(&n), told.get(&n)) {
            (Some(part), before) if before != Some(part) => {
                if part.len() > PART_BYTES {
                    let bytes = part.len();
                    tracing::warn!(
                        bytes,
                        "too much to tell of workers, others do not see some of them"
                    );
                    continue;
                }
                ops::put(key(n), part.clone(), lease)
            }
            (None, Some(_)) => ops::delete(key(n)),
            _ => continue,
        };
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![op],
            failure: Vec::new(),
        };
        shared.etcd.txn(txn, Budget::SHORT).await?;
        match now.get(&n) {
            Some(part) => drop(told.insert(n, part.clone())),
            None => drop(told.remove(&n)),
        }
    }
    Ok(())
}

/// Hears of the workers of others, until told to stop.
pub(super) async fn follow(shared: Shared, fleet: Arc<Fleet>, stopping: CancellationToken) {
    let prefix = shared.layout.key("workers/");
    let mut looks = Looks::new(shared.etcd.clone(), prefix.clone(), EVERY);
    let mut heard: BTreeMap<(String, u32), i64> = BTreeMap::new();
    loop {
        tokio::select! {
            () = looks.next() => {}
            () = stopping.cancelled() => return,
        }
        if let Err(error) = hear(&shared, &fleet, &prefix, &mut heard).await {
            tracing::debug!(%error, "others' workers are seen as they were");
        }
    }
}

/// Reads the parts that are new, and forgets those that are gone.
async fn hear(
    shared: &Shared,
    fleet: &Fleet,
    prefix: &[u8],
    heard: &mut BTreeMap<(String, u32), i64>,
) -> Result<(), CallError> {
    let all = RangeRequest {
        key: prefix.to_vec(),
        range_end: ops::after_prefix(prefix),
        keys_only: true,
        ..RangeRequest::default()
    };
    let mut there = BTreeMap::new();
    for kv in shared.etcd.all(all).await? {
        if let Some(name) =
            named(prefix, &kv.key).filter(|(who, _)| *who != shared.replica.instance)
        {
            there.insert(name, (kv.key, kv.mod_revision));
        }
    }
    let gone: Vec<_> = heard
        .keys()
        .filter(|name| !there.contains_key(*name))
        .cloned()
        .collect();
    for name in gone {
        fleet.import(&name.0, name.1, None);
        heard.remove(&name);
    }
    for (name, (key, written)) in there {
        if heard.get(&name) == Some(&written) {
            continue;
        }
        let one = RangeRequest {
            key,
            ..RangeRequest::default()
        };
        let found = shared.etcd.range(one, Budget::SHORT).await?;
        if let Some(kv) = found.kvs.first() {
            fleet.import(&name.0, name.1, Some(&kv.value));
            heard.insert(name, kv.mod_revision);
        }
    }
    Ok(())
}

/// Whose part it is, and which.
fn named(prefix: &[u8], key: &[u8]) -> Option<(String, u32)> {
    let rest = std::str::from_utf8(key.strip_prefix(prefix)?).ok()?;
    let (instance, n) = rest.split_once('/')?;
    Some((instance.to_owned(), n.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_named_by_its_key() {
        let named = |key: &[u8]| named(b"/x/workers/", key);
        assert_eq!(named(b"/x/workers/ab/0007"), Some(("ab".to_owned(), 7)));
        assert_eq!(named(b"/x/workers/ab"), None);
        assert_eq!(named(b"/x/other/ab/0007"), None);
        assert_eq!(named(b"/x/workers/ab/x"), None);
    }
}
