//! How a rollout stands, as it is written down; on a real etcd, and on a registry that is played.

use forebay_proto::{Digest, Epoch};

use super::{
    super::tests::{Played, parts, position, published},
    *,
};
use crate::{
    cluster::{Cluster, Replica, take_charge},
    etcd::{Etcd, EtcdAccess, EtcdLocation},
    fleet::Fleet,
};

#[test]
fn what_is_written_down_is_read_back() {
    let position = |revision: u64| Position {
        epoch: Epoch::new("aa").unwrap(),
        revision: Revision::new(revision),
        digest: Digest::of(&revision.to_be_bytes()),
    };
    let record = Record {
        stable: Some((&position(3)).into()),
        candidate: Some((&position(5)).into()),
        members: vec!["w1".into(), "w2".into()],
        ring: 1,
        rings: 3,
        returning: Some("slow".into()),
        returns: vec![ReturnMessage {
            first: 2,
            by: 3,
            reason: "errors".into(),
        }],
        report_millis: 1_250,
    };
    let read = Standing::read(&record.encode_to_vec()).unwrap();
    assert_eq!(
        (&read.stable, read.candidate.as_ref()),
        (&position(3), Some(&position(5)))
    );
    assert!(read.staging.has(&WorkerId::new("w2").unwrap()));
    assert_eq!(read.staging.report_every, Duration::from_millis(1_250));
    assert_eq!(read.staging.returns[0].by, Revision::new(3));
    assert!(Standing::read(b"x").is_none());
    assert!(Standing::read(&Record::default().encode_to_vec()).is_none());
}

fn standing(stable: u64, candidate: Option<u64>) -> Standing {
    let staging = Staging {
        report_every: Duration::from_secs(1),
        stable: Revision::new(stable),
        candidate: candidate.map(Revision::new),
        members: Arc::default(),
        ring: 0,
        rings: 2,
        returning: None,
        returns: Vec::new(),
    };
    Standing {
        stable: position(stable),
        candidate: candidate.map(position),
        staging: Arc::new(staging),
    }
}

/// What one that starts with this revision offers to all, or nothing for now.
async fn first(
    newest: u64,
    has: Option<(u64, u64)>,
    standing: Standing,
    late: bool,
) -> Option<u64> {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path(), Played::with(has), Arc::<Fleet>::default());
    let newest = Target::alone(published(newest));
    let offer = first_of(&parts, &standing, &newest, late).await?;
    let worker = WorkerId::new("w").unwrap();
    Some(offer.of(Some(&worker), None).revision().get())
}

#[tokio::test]
async fn one_that_starts_offers_nothing_that_is_proven_nowhere() {
    let tried = |stable, candidate| standing(stable, Some(candidate));
    assert_eq!(first(11, Some((9, 9)), tried(9, 11), false).await, Some(9));
    // The candidate is not here yet.
    assert_eq!(first(10, Some((9, 9)), tried(9, 11), false).await, Some(9));
    // What is stable is newer than what is here: it comes, or it does not.
    assert_eq!(first(10, None, standing(12, None), false).await, None);
    assert_eq!(first(10, None, standing(12, None), true).await, Some(10));
    // It is to be had no more, or is something else by now.
    assert_eq!(first(11, None, tried(9, 11), false).await, Some(11));
    assert_eq!(first(11, Some((9, 7)), tried(9, 11), false).await, Some(11));
    let other = Position {
        epoch: Epoch::new("bb").unwrap(),
        ..position(9)
    };
    let moved = Standing {
        stable: other,
        ..tried(9, 11)
    };
    assert_eq!(first(11, Some((9, 9)), moved, false).await, Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_late_undoes_nothing_that_was_written_since() {
    let members = forebay_etcd::Etcd::start().await;
    let at: EtcdLocation = members.store("rollout").parse().unwrap();
    let etcd = Arc::new(Etcd::new(&at, &EtcdAccess::default()).unwrap());
    let shared = Cluster::new(etcd, Replica::new(Some("a".to_owned()))).shared;
    let term = take_charge(&shared, 0).await;
    let record = |stable| {
        let record = Record {
            stable: Some((&position(stable)).into()),
            ..Record::default()
        };
        record.encode_to_vec()
    };
    let stable = async || {
        let standing = read(&shared).await.unwrap().0;
        standing.map(|standing| standing.stable.revision.get())
    };
    let mut over = 0;
    put(&shared, term, &mut over, record(3)).await.unwrap();
    let held_up = put_over(&shared, term, 0, record(3));
    put(&shared, term, &mut over, record(6)).await.unwrap();
    let late = shared.etcd.txn(held_up, Budget::WRITE).await.unwrap();
    assert!(!late.succeeded);
    assert_eq!(stable().await, Some(6));
    // One whose answer was lost is known again, and written over.
    for next in [7, 9] {
        let lost = put_over(&shared, term, over, record(7));
        let lost = shared.etcd.txn(lost, Budget::WRITE).await.unwrap();
        assert!(lost.succeeded);
        put(&shared, term, &mut over, record(next)).await.unwrap();
        assert_eq!(read(&shared).await.unwrap().1, over);
    }
    assert_eq!(stable().await, Some(9));
    // In a term that is over nothing is written or taken away.
    let next = take_charge(&shared, 0).await;
    let error = put(&shared, term, &mut over, record(10)).await.unwrap_err();
    assert!(error.contains("another control plane"), "{error}");
    assert!(forget_in(&shared, term).await);
    assert_eq!(stable().await, Some(9));
    assert!(forget_in(&shared, next).await);
    assert_eq!(stable().await, None);
}
