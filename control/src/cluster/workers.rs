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
/// How often a part is written when what is there is not what was known.
const TRIES: usize = 3;
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
    let mut told = BTreeMap::new();
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

/// A part as it was told, if that is known, and the revision of etcd's at which it was written.
type Told = (Option<Vec<u8>>, i64);

async fn tell(
    shared: &Shared,
    fleet: &Fleet,
    lease: i64,
    told: &mut BTreeMap<u32, Told>,
) -> Result<(), CallError> {
    let mut now: BTreeMap<u32, Vec<u8>> = fleet
        .export(&shared.replica.name, PARTS)
        .into_iter()
        .collect();
    // One that has nobody any more is told as that: taken away, it could come back by what was sent before.
    for n in told.keys() {
        let nobody = || crate::fleet::nobody(&shared.replica.name);
        now.entry(*n).or_insert_with(nobody);
    }
    for (n, part) in now {
        if part.len() > PART_BYTES {
            let bytes = part.len();
            tracing::warn!(
                bytes,
                "too much to tell of workers, others do not see some of them"
            );
            continue;
        }
        let same = |(before, _): &Told| before.as_ref() == Some(&part);
        if !told.get(&n).is_some_and(same) {
            tell_part(shared, lease, (n, part), told).await?;
        }
    }
    Ok(())
}

/// Writes a part over what it was told as last. What was sent before, and comes late, undoes nothing that was told since.
async fn tell_part(
    shared: &Shared,
    lease: i64,
    (n, part): (u32, Vec<u8>),
    told: &mut BTreeMap<u32, Told>,
) -> Result<(), CallError> {
    let instance = &shared.replica.instance;
    let key = shared.layout.key(&format!("workers/{instance}/{n:04}"));
    for _ in 0..TRIES {
        let over = told.get(&n).map_or(0, |(_, over)| *over);
        // Until it is answered, nothing is known of it.
        told.insert(n, (None, over));
        let txn = put_over(key.clone(), over, part.clone(), lease);
        let answer = shared.etcd.txn(txn, Budget::SHORT).await?;
        if answer.succeeded {
            let written = answer.header.map_or(0, |header| header.revision);
            told.insert(n, (Some(part), written));
            return Ok(());
        }
        // An answer was lost, or what is there is of the lease before.
        let there = ops::found(answer.responses.first()).map_or(0, |kv| kv.mod_revision);
        told.insert(n, (None, there));
    }
    Err(CallError::Unknown("it changes all the time".to_owned()))
}

fn put_over(key: Vec<u8>, over: i64, part: Vec<u8>, lease: i64) -> TxnRequest {
    TxnRequest {
        compare: vec![ops::unchanged_since(key.clone(), over)],
        success: vec![ops::put(key.clone(), part, lease)],
        failure: vec![ops::get(key)],
    }
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
    use crate::{
        cluster::{Cluster, Replica},
        etcd::{Etcd, EtcdAccess, EtcdLocation},
    };

    #[test]
    fn a_part_is_named_by_its_key() {
        let named = |key: &[u8]| named(b"/x/workers/", key);
        assert_eq!(named(b"/x/workers/ab/0007"), Some(("ab".to_owned(), 7)));
        assert_eq!(named(b"/x/workers/ab"), None);
        assert_eq!(named(b"/x/other/ab/0007"), None);
        assert_eq!(named(b"/x/workers/ab/x"), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_late_undoes_nothing_that_was_told_since() {
        let members = forebay_etcd::Etcd::start().await;
        let at: EtcdLocation = members.store("workers").parse().unwrap();
        let etcd = Arc::new(Etcd::new(&at, &EtcdAccess::default()).unwrap());
        let shared = Cluster::new(etcd, Replica::new(Some("a".to_owned()))).shared;
        let lease = shared.etcd.grant(Duration::from_secs(60)).await.unwrap();
        let key = shared
            .layout
            .key(&format!("workers/{}/0007", shared.replica.instance));
        let there = async || {
            let one = RangeRequest {
                key: key.clone(),
                ..RangeRequest::default()
            };
            let found = shared.etcd.range(one, Budget::WRITE).await.unwrap();
            found.kvs.first().map(|kv| kv.value.clone())
        };
        let mut told = BTreeMap::new();
        let mut tell =
            async |part: &[u8]| tell_part(&shared, lease, (7, part.to_vec()), &mut told).await;
        tell(b"one").await.unwrap();
        let held_up = put_over(key.clone(), 0, b"one".to_vec(), lease);
        tell(b"two").await.unwrap();
        let late = shared.etcd.txn(held_up, Budget::WRITE).await.unwrap();
        assert!(!late.succeeded);
        assert_eq!(there().await.as_deref(), Some(&b"two"[..]));
        // What somebody else wrote meanwhile, or an answer that was lost, is written over.
        let txn = TxnRequest {
            success: vec![ops::put(key.clone(), b"other".to_vec(), lease)],
            ..TxnRequest::default()
        };
        shared.etcd.txn(txn, Budget::WRITE).await.unwrap();
        tell(b"three").await.unwrap();
        assert_eq!(there().await.as_deref(), Some(&b"three"[..]));
    }
}
