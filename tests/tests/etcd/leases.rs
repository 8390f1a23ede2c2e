//! Limits of all workers together, with several control planes: one decides, any of them has workers, and whatever becomes
//! of whom, the engine never sees more than the limit.

use std::time::Duration;

use forebay_control::LeaseSettings;
use forebay_etcd::Etcd;
use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Crowd, Replicas, WorkerHandle, eventually, eventually_within, model_at};
use tonic::Code;
use wire::{LeaseState, PoolScope};

use crate::turn;

const LIMIT: u32 = 12;
const QUICK: LeaseSettings = LeaseSettings {
    ttl: Duration::from_secs(4),
    linger: Duration::from_secs(1),
};
/// Until all is lent again to those who are there.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// An engine that refuses, and counts, what is above the limit.
async fn engine() -> MockServer {
    let config = MockConfig {
        interval: Duration::from_millis(20),
        max_in_flight: Some(LIMIT as usize),
        ..MockConfig::serving("m")
    };
    MockServer::start(config).await.unwrap()
}

fn fleet_wide(engine: &MockServer) -> wire::Model {
    wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(LIMIT),
            scope: PoolScope::Fleet.into(),
            queue: Some(wire::Queue {
                max_waiting: Some(100),
                ..wire::Queue::default()
            }),
            ..wire::Pool::default()
        }),
        ..model_at("m", &engine.url())
    }
}

/// As this control plane tells it, whoever decides.
async fn pool(replicas: &Replicas, n: usize) -> Option<wire::FleetPool> {
    let list = wire::ListLeasesRequest::default();
    let list = replicas.fleet(n).list_leases(list).await;
    list.ok()?.into_inner().pools.into_iter().next()
}

/// Waits until all of it is lent, evenly over so many, and used.
async fn all_lent(replicas: &Replicas, n: usize, workers: usize, what: &str) {
    let what = format!("{what}: all is lent evenly and used");
    eventually_within(SETTLES_WITHIN, &what, async || {
        let pool = pool(replicas, n).await?;
        let held = pool.leases.iter().filter(|l| l.state() == LeaseState::Held);
        let sizes: Vec<u32> = held.map(|lease| lease.size).collect();
        let even = sizes.iter().max()? - sizes.iter().min()? <= 1;
        let whole = sizes.iter().sum::<u32>() == LIMIT && pool.in_flight + 2 >= LIMIT;
        (sizes.len() == workers && even && whole).then_some(())
    })
    .await;
}

fn never_above(engine: &MockServer) {
    let stats = engine.stats();
    assert_eq!(stats.over_limit, 0, "{stats:?}");
    assert!(stats.peak_in_flight <= u64::from(LIMIT), "{stats:?}");
}

async fn decides(replicas: &Replicas) -> usize {
    eventually("one decides", async || replicas.leader().await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_all_workers_holds_whoever_decides() {
    let _turn = turn().await;
    let mut etcd = Etcd::start().await;
    let engine = engine().await;
    let mut replicas = Replicas::with_leases(&etcd.store("leases"), 3, QUICK).await;
    let mut workers: Vec<WorkerHandle> = Vec::new();
    for (name, follows) in [
        ("w0", [0, 1, 2]),
        ("w1", [1, 2, 0]),
        ("w2", [2, 0, 1]),
        ("w3", [0, 2, 1]),
    ] {
        workers.push(replicas.worker(name, &follows).await);
    }
    let first = decides(&replicas).await;
    let create = wire::CreateModelRequest {
        model: Some(fleet_wide(&engine)),
        ..wire::CreateModelRequest::default()
    };
    let mut registry = replicas.registry((first + 1) % 3);
    registry.create_model(create).await.unwrap();
    let crowd = Crowd::new("m", 40, 4..=12);
    crowd.ask(workers.iter().map(WorkerHandle::gateway).collect());
    all_lent(&replicas, first, 4, "at first").await;
    everybody_tells_the_same(&replicas, first).await;

    replicas.stop(first).await;
    let second = decides(&replicas).await;
    assert_ne!(second, first);
    all_lent(&replicas, second, 4, "another one decides").await;
    replicas.restart(first).await;

    // Its workers go to the others, and one that has no workers may decide.
    let other = 3 - first - second;
    replicas.stop(other).await;
    all_lent(&replicas, second, 4, "workers went over").await;
    replicas.restart(other).await;
    let member = etcd.leader().await;
    etcd.kill(member).await;
    all_lent(&replicas, first, 4, "a member of etcd is away").await;
    etcd.mend().await;
    etcd.compact().await;

    let gone = workers.pop().unwrap();
    crowd.ask(workers.iter().map(WorkerHandle::gateway).collect());
    gone.stop().await;
    let leader = decides(&replicas).await;
    all_lent(&replicas, leader, 3, "a worker left").await;
    never_above(&engine);
    println!("{:?}", crowd.fates());
    for worker in workers {
        worker.stop().await;
    }
}

async fn everybody_tells_the_same(replicas: &Replicas, leader: usize) {
    for n in 0..3 {
        let seen = eventually(&format!("c{n} tells of leases"), async || {
            pool(replicas, n)
                .await
                .filter(|pool| pool.leases.len() == 4)
        })
        .await;
        assert_eq!((seen.model.as_str(), seen.limit), ("m", LIMIT));
        let request = wire::ListWorkersRequest::default();
        let list = replicas.fleet(n).list_workers(request).await.unwrap();
        let list = list.into_inner().workers;
        let leased = list.iter().filter(|worker| worker.leases.len() == 1);
        assert_eq!(leased.count(), list.len(), "c{n}: {list:?}");
        // The limit is one, and counted once.
        let limits = replicas.metrics(n).await.sum("forebay_fleet_limit", &[]);
        assert_eq!(limits > 0.5, n == leader, "c{n}: {limits}");
        let unknown = wire::ListLeasesRequest {
            model: "other".into(),
        };
        let refused = replicas.fleet(n).list_leases(unknown).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "c{n}: {refused}");
        let forget = wire::ForgetWorkerRequest { id: "w0".into() };
        let refused = replicas.fleet(n).forget_worker(forget).await.unwrap_err();
        assert_ne!(refused.code(), Code::Ok, "c{n}: it is connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_workers_have_their_floors_and_then_all_again() {
    let _turn = turn().await;
    let mut etcd = Etcd::start().await;
    let engine = engine().await;
    let replicas = Replicas::with_leases(&etcd.store("floors"), 2, QUICK).await;
    let workers = [
        replicas.worker("w0", &[0, 1]).await,
        replicas.worker("w1", &[1, 0]).await,
    ];
    let leader = decides(&replicas).await;
    let create = wire::CreateModelRequest {
        model: Some(fleet_wide(&engine)),
        ..wire::CreateModelRequest::default()
    };
    replicas.registry(0).create_model(create).await.unwrap();
    let crowd = Crowd::new("m", 40, 4..=12);
    crowd.ask(workers.iter().map(WorkerHandle::gateway).collect());
    all_lent(&replicas, leader, 2, "at first").await;
    for n in 0..3 {
        etcd.kill(n).await;
    }
    eventually_within(SETTLES_WITHIN, "the floors are left", async || {
        (engine.stats().in_flight <= 2).then_some(())
    })
    .await;
    let refused = replicas
        .fleet(1 - leader)
        .list_leases(wire::ListLeasesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(
        refused.message().contains("etcd does not answer"),
        "{refused}"
    );
    etcd.mend().await;
    let leader = decides(&replicas).await;
    all_lent(&replicas, leader, 2, "etcd is back").await;
    never_above(&engine);
    for worker in workers {
        worker.stop().await;
    }
}
