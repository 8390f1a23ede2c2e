//! Who is in charge, and rollouts in rings that outlive it.

use std::time::Duration;

use forebay_control::RolloutSettings;
use forebay_etcd::Etcd;
use forebay_proto::wire;
use forebay_tests::{Replicas, WorkerHandle, eventually, eventually_within, model_at};

use crate::turn;

fn rings(soak: u64) -> RolloutSettings {
    RolloutSettings {
        rings: "1".parse().unwrap(),
        soak: Duration::from_secs(soak),
        max_errors: 0.1,
        max_slowdown: 3.0,
    }
}

async fn register(replicas: &Replicas, n: usize, id: &str) -> u64 {
    let request = wire::CreateModelRequest {
        model: Some(model_at(id, "http://127.0.0.1:9")),
        ..wire::CreateModelRequest::default()
    };
    let created = replicas.registry(n).create_model(request).await.unwrap();
    created.into_inner().revision
}

async fn rollout(replicas: &Replicas, n: usize, revision: u64) -> Option<wire::Rollout> {
    let request = wire::GetRolloutRequest {
        revision: Some(revision),
    };
    let rollout = replicas.fleet(n).get_rollout(request).await.ok()?;
    Some(rollout.into_inner())
}

async fn stop(workers: Vec<WorkerHandle>) {
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_in_charge_and_another_takes_over() {
    let _turn = turn().await;
    let etcd = Etcd::start().await;
    let mut replicas = Replicas::start(&etcd.store("charge"), 3).await;
    let leader = eventually("one is in charge", async || replicas.leader().await).await;
    // It stays so, whoever else comes.
    let other = (leader + 1) % 3;
    replicas.stop(other).await;
    replicas.restart(other).await;
    assert_eq!(replicas.leader().await, Some(leader));
    replicas.stop(leader).await;
    let next = eventually("another one is", async || replicas.leader().await).await;
    assert_ne!(next, leader);
    register(&replicas, next, "m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_spans_the_workers_of_all_and_outlives_who_is_in_charge() {
    let _turn = turn().await;
    let etcd = Etcd::start().await;
    let mut replicas = Replicas::with_rings(&etcd.store("rings"), 2, rings(6)).await;
    let mut workers = Vec::new();
    for (name, follows) in [
        ("w0", [0, 1]),
        ("w1", [1, 0]),
        ("w2", [0, 1]),
        ("w3", [1, 0]),
    ] {
        workers.push(replicas.worker(name, &follows).await);
    }
    let leader = eventually("one is in charge", async || replicas.leader().await).await;
    for n in 0..2 {
        eventually("both see all workers", async || {
            let rollout = rollout(&replicas, n, 1).await?;
            (rollout.applied == 4).then_some(())
        })
        .await;
    }
    // Written at the one that is not in charge, tried on one worker, seen the same from both.
    let revision = register(&replicas, 1 - leader, "m").await;
    for n in 0..2 {
        eventually("one worker tries it", async || {
            let rollout = rollout(&replicas, n, revision).await?;
            assert!(rollout.applied <= 1, "no more than the ring: {rollout:?}");
            (rollout.applied == 1 && rollout.stage() == wire::RolloutStage::Ring).then_some(())
        })
        .await;
    }
    // Who is in charge goes; the other goes on, and all get it in the end.
    replicas.stop(leader).await;
    let next = 1 - leader;
    eventually_within(Duration::from_secs(60), "all have it", async || {
        let rollout = rollout(&replicas, next, revision).await?;
        (rollout.applied == 4 && rollout.stage() == wire::RolloutStage::Everywhere).then_some(())
    })
    .await;
    stop(workers).await;
}
