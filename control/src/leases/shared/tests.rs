//! On three real members, in one test, so that they are started once.

use std::time::Duration;

use forebay_proto::{InstanceId, ModelId};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{letters::Letter, *};
use crate::{
    cluster::{Cluster, Replica, take_charge},
    etcd::{
        Etcd, EtcdAccess, EtcdLocation,
        api::{Event, KeyValue, WatchResponse},
    },
    leases::words::{Report, Share, Use},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane as the board knows it.
struct Plane {
    board: Arc<EtcdBoard>,
    etcd: Arc<Etcd>,
    lease: i64,
    leased: watch::Sender<Option<i64>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Plane {
    async fn start(members: &forebay_etcd::Etcd, prefix: &str, name: &str) -> Self {
        let at: EtcdLocation = members.store(prefix).parse().unwrap();
        let etcd = Arc::new(Etcd::new(&at, &EtcdAccess::default()).unwrap());
        let cluster = Cluster::new(etcd.clone(), Replica::new(Some(name.to_owned())));
        let lease = etcd.grant(Duration::from_secs(60)).await.unwrap();
        let (leased, follows) = watch::channel(Some(lease));
        let (board, stop, mut tasks) = (cluster.board, CancellationToken::new(), JoinSet::new());
        tasks.spawn(board.clone().run(follows, stop.clone()));
        Self {
            board,
            etcd,
            lease,
            leased,
            stop,
            tasks,
        }
    }

    /// It decides, whoever did before.
    async fn take_charge(&self) -> u64 {
        take_charge(&self.board.shared, self.lease).await
    }

    /// Waits until a worker stands so.
    async fn hears(&self, n: usize, so: impl Fn(&Standing) -> bool) -> Standing {
        let heard = async {
            loop {
                let news = self.board.demands().await;
                let found = news
                    .into_iter()
                    .find(|(w, standing)| *w == worker(n) && so(standing));
                if let Some((_, standing)) = found {
                    return standing;
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("it is heard")
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn worker(n: usize) -> WorkerId {
    WorkerId::new(format!("w{n}")).unwrap()
}

fn model() -> ModelId {
    ModelId::new("m").unwrap()
}

fn standing(stream: u64, count: u32, report: u64) -> Standing {
    let used = Use {
        size: 3,
        ..Use::default()
    };
    Standing {
        stream,
        instance: InstanceId::new("i").unwrap(),
        takes_over: false,
        count,
        displaces: false,
        repeated: false,
        knows: true,
        connected: true,
        report: Some(Report {
            number: report,
            uses: BTreeMap::from([(model(), used)]),
            weight: 1,
            ..Report::default()
        }),
    }
}

fn grant(stream: u64, number: u64, size: u32) -> Arc<Grant> {
    Arc::new(Grant {
        stream,
        number,
        answers: 1,
        ttl: Duration::from_secs(10),
        linger: Duration::from_secs(10),
        shares: BTreeMap::from([(model(), Share { size, floor: 1 })]),
    })
}

fn table(workers: usize) -> Table {
    let floors = BTreeMap::from([(model(), 1)]);
    Table {
        ttl: Duration::from_secs(10),
        workers: (0..workers).map(|n| (worker(n), floors.clone())).collect(),
        ..Table::default()
    }
}

async fn lent(from: &mut watch::Receiver<Option<Arc<Grant>>>) -> Arc<Grant> {
    let lent = timeout(PATIENCE, from.wait_for(Option::is_some)).await;
    let lent = lent.expect("it is lent").unwrap().clone();
    lent.unwrap()
}

/// Nobody is asked, and nothing is there.
#[tokio::test]
async fn what_a_watch_of_an_earlier_term_brings_is_not_heard_in_this_one() {
    let at: EtcdLocation = "etcd://127.0.0.1:1/none".parse().unwrap();
    let etcd = Arc::new(Etcd::new(&at, &EtcdAccess::default()).unwrap());
    let board = Cluster::new(etcd, Replica::new(None)).board;
    let (before, now) = (Call { term: 6, round: 1 }, Call { term: 7, round: 1 });
    board.inner.lock().lead = Some(Lead {
        term: 7,
        lines: Lines::default(),
        news: BTreeMap::new(),
        questions: VecDeque::new(),
    });
    let prefix = board.key("said/");
    let said = |call| WatchResponse {
        events: vec![Event {
            kv: Some(KeyValue {
                key: [prefix.as_slice(), b"b"].concat(),
                value: Letter {
                    call,
                    number: 1,
                    afresh: true,
                    words: vec![(worker(1), standing(1, 1, 1))],
                    questions: Vec::new(),
                }
                .encode(),
                ..KeyValue::default()
            }),
            ..Event::default()
        }],
        ..WatchResponse::default()
    };
    let there = BTreeSet::from(["b".to_owned()]);
    assert!(board.begins(now, &there));
    assert!(!board.begins(before, &there), "that is over");
    board.hear_letters(before, &prefix, said(now));
    assert!(board.heard().is_none());
    board.hear_letters(now, &prefix, said(now));
    assert_eq!(board.heard().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_three_real_members() {
    let mut members = forebay_etcd::Etcd::start().await;
    what_is_said_at_one_is_heard_and_answered_by_the_other(&members).await;
    what_is_decided_in_an_older_term_is_refused_and_who_comes_next_knows_all(&members).await;
    a_write_of_the_table_whose_answer_is_lost_does_not_undo_a_newer_one(&members).await;
    whose_lease_is_over_is_not_there_and_comes_back(&members).await;
    compaction_and_the_loss_of_a_member_cost_a_call_at_most(&mut members).await;
}

async fn what_is_said_at_one_is_heard_and_answered_by_the_other(members: &forebay_etcd::Etcd) {
    let (a, b) = (
        Plane::start(members, "said", "a").await,
        Plane::start(members, "said", "b").await,
    );
    let mut allotted = b.board.allotted(&worker(1));
    b.board.report(&worker(1), standing(40, 1, 1));
    let term = a.take_charge().await;
    assert_eq!(a.board.begin(term).await.unwrap(), None);
    let heard = a.hears(1, |standing| standing.connected).await;
    a.board
        .allot(term, vec![(worker(1), grant(heard.stream, 1, 8))])
        .await
        .unwrap();
    let got = lent(&mut allotted).await;
    assert_eq!(
        (got.stream, got.number),
        (40, 1),
        "by the numbers of its own stream"
    );
    // It goes over; what the first one says of it then is of no worker that is there.
    a.board.report(&worker(1), standing(7, 2, 1));
    let moved = a.hears(1, |standing| standing.count == 2).await;
    assert!(moved.stream > heard.stream);
    b.board.report(
        &worker(1),
        Standing {
            connected: false,
            ..standing(40, 1, 1)
        },
    );
    b.board.report(&worker(2), standing(41, 1, 1));
    let all = a.hears(2, |_| true).await;
    assert!(all.connected);
    let mut again = a.board.allotted(&worker(1));
    a.board
        .allot(term, vec![(worker(1), grant(moved.stream, 1, 8))])
        .await
        .unwrap();
    assert_eq!(lent(&mut again).await.stream, 7);
    a.end().await;
    b.end().await;
}

async fn what_is_decided_in_an_older_term_is_refused_and_who_comes_next_knows_all(
    members: &forebay_etcd::Etcd,
) {
    let (a, b) = (
        Plane::start(members, "terms", "a").await,
        Plane::start(members, "terms", "b").await,
    );
    let first = a.take_charge().await;
    a.board.begin(first).await.unwrap();
    for n in 0..50 {
        let plane = if n % 2 == 0 { &a } else { &b };
        plane.board.report(&worker(n), standing(1, 1, 1));
    }
    let heard = a.hears(1, |_| true).await;
    a.board.keep(first, table(400)).await.unwrap();
    let mut allotted = b.board.allotted(&worker(1));
    let second = b.take_charge().await;
    assert!(second > first);
    let late = a
        .board
        .allot(first, vec![(worker(1), grant(heard.stream, 1, 99))])
        .await;
    assert_eq!(late, Err(Fenced));
    let late = a.board.keep(first, Table::default()).await;
    assert!(matches!(late, Err(TableError::Fenced(_))), "{late:?}");
    a.board.end();
    assert_eq!(b.board.begin(second).await.unwrap(), Some(table(400)));
    let (mut missing, mut stream) = (50, 0);
    while missing > 0 {
        let news = timeout(PATIENCE, b.board.demands())
            .await
            .expect("all are heard");
        missing -= news.len();
        let one = news.iter().find(|(id, _)| *id == worker(1));
        stream = one.map_or(stream, |(_, standing)| standing.stream);
    }
    assert_eq!(
        *allotted.borrow_and_update(),
        None,
        "nothing of the older term came"
    );
    b.board
        .allot(second, vec![(worker(1), grant(stream, 1, 5))])
        .await
        .unwrap();
    assert_eq!(lent(&mut allotted).await.shares[&model()].size, 5);
    a.end().await;
    b.end().await;
}

async fn a_write_of_the_table_whose_answer_is_lost_does_not_undo_a_newer_one(
    members: &forebay_etcd::Etcd,
) {
    let a = Plane::start(members, "table", "a").await;
    let term = a.take_charge().await;
    a.board.begin(term).await.unwrap();
    a.board.keep(term, table(3)).await.unwrap();
    // Made, and not known to be: as when its future was dropped.
    let before = {
        let kept = a.board.kept.lock().await;
        (kept.head(), kept.parts().clone())
    };
    a.board.keep(term, table(4)).await.unwrap();
    a.board.kept.lock().await.set(before.0, before.1);
    a.board.keep(term, table(5)).await.unwrap();
    assert_eq!(a.board.read_table().await.unwrap(), Some(table(5)));
    a.board.keep(term, table(1)).await.unwrap();
    assert_eq!(
        a.board.read_table().await.unwrap(),
        Some(table(1)),
        "what is gone is gone"
    );
    let floors = (0..9_000).map(|n| (ModelId::new(format!("{n:0>128}")).unwrap(), 1));
    let large = Table {
        workers: BTreeMap::from([(worker(2), floors.collect())]),
        ..table(5)
    };
    let refused = a.board.keep(term, large).await.unwrap_err();
    assert!(refused.to_string().contains("fewer workers"), "{refused}");
    assert_eq!(a.board.read_table().await.unwrap(), Some(table(1)));
    a.board.keep(term, table(2)).await.unwrap();
    let key = a.board.key("table/0000");
    let txn = TxnRequest {
        success: vec![ops::put(key, b"nonsense".to_vec(), 0)],
        ..TxnRequest::default()
    };
    a.etcd.txn(txn, Budget::WRITE).await.unwrap();
    let error = a.board.read_table().await.unwrap_err();
    assert!(
        error.to_string().contains("/table/leases/table/"),
        "{error}"
    );
    a.end().await;
}

async fn whose_lease_is_over_is_not_there_and_comes_back(members: &forebay_etcd::Etcd) {
    let (a, b) = (
        Plane::start(members, "over", "a").await,
        Plane::start(members, "over", "b").await,
    );
    let term = a.take_charge().await;
    a.board.begin(term).await.unwrap();
    b.board.report(&worker(1), standing(1, 1, 1));
    let first = a.hears(1, |standing| standing.connected).await;
    b.etcd.revoke(b.lease).await.unwrap();
    a.hears(1, |standing| !standing.connected).await;
    let lease = b.etcd.grant(Duration::from_secs(60)).await.unwrap();
    b.leased.send_replace(Some(lease));
    let back = a.hears(1, |standing| standing.connected).await;
    assert!(back.stream > first.stream);
    a.end().await;
    b.end().await;
}

async fn compaction_and_the_loss_of_a_member_cost_a_call_at_most(members: &mut forebay_etcd::Etcd) {
    let (a, b) = (
        Plane::start(members, "lost", "a").await,
        Plane::start(members, "lost", "b").await,
    );
    let term = a.take_charge().await;
    a.board.begin(term).await.unwrap();
    let mut allotted = b.board.allotted(&worker(1));
    for n in 1..=6 {
        b.board.report(&worker(1), standing(1, 1, n));
        let heard = a
            .hears(1, |standing| {
                let report = standing.report.as_ref();
                report.is_some_and(|report| report.number == n)
            })
            .await;
        let (mut stream, size) = (heard.stream, u32::try_from(n).unwrap());
        // What is lost is decided again, for the line that there is by then.
        let came = async {
            for number in 1.. {
                let lent = vec![(worker(1), grant(stream, n * 1_000 + number, size))];
                a.board.allot(term, lent).await.unwrap();
                let news = timeout(Duration::from_millis(200), a.board.demands()).await;
                let news = news.unwrap_or_default().into_iter().next();
                stream = news.map_or(stream, |(_, standing)| standing.stream);
                let got = allotted.borrow_and_update().clone();
                if got.is_some_and(|got| got.shares[&model()].size == size) {
                    return;
                }
            }
        };
        let lent = timeout(PATIENCE, came).await;
        lent.expect("what is lent comes");
        match n {
            1 | 4 => members.compact().await,
            2 => members.kill(0).await,
            3 => members.restart(0),
            5 => members.kill(1).await,
            _ => {}
        }
    }
    members.mend().await;
    a.end().await;
    b.end().await;
}
