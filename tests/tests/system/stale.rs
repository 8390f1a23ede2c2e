//! The seed's other bug: an upstream closes idle connections; no request may die of it.

use std::time::Duration;

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{
    After, Chat, Cluster, Ended, IdleSweep, RawUpstream, WorkerHandle, calmly, model_at,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// A pause of the machine that is as long as what these tests are about.
const STILL: Duration = Duration::from_millis(150);

/// The upstream closes after 100 ms; requests come right after that, again and again, with a pool
/// that would keep its connections for ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn requests_right_after_the_close_are_served() {
    calmly(STILL, || async {
        const KEEP_ALIVE: Duration = Duration::from_millis(100);
        let (cluster, worker) = Cluster::with_worker().await;
        let upstream = MockServer::start(MockConfig {
            keep_alive: Some(KEEP_ALIVE),
            interval: Duration::ZERO,
            ..MockConfig::serving("m")
        })
        .await
        .unwrap();
        let model = wire::Model {
            pool: Some(wire::Pool {
                idle_timeout: Some(prost_types::Duration {
                    seconds: 10,
                    nanos: 0,
                }),
                ..wire::Pool::default()
            }),
            ..model_at("m", &upstream.url())
        };
        cluster.create_and_wait(model).await;
        let client = worker.client();
        for round in 0..60_u64 {
            let mut burst = JoinSet::new();
            for _ in 0..8 {
                let client = client.clone();
                burst.spawn(async move { client.finish("m", Chat::Whole, 1).await });
            }
            for ended in burst.join_all().await {
                assert_eq!(ended, Ended::Well, "round {round}");
            }
            // From 5 ms after the close to 8 ms after it.
            let around = KEEP_ALIVE + Duration::from_millis(5) + Duration::from_micros(round * 50);
            sleep_until(Instant::now() + around).await;
        }
        let page = worker.metrics().await;
        assert!(
            page.sum(
                "forebay_pool_connections_closed_total",
                &["reason=\"upstream\""]
            ) > 0.0
        );
        assert_eq!(page.sum("forebay_requests_total", &["code=\"502\""]), 0.0);
    })
    .await;
}

/// With defaults the pool lets go first: 4 s against vLLM's 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn with_defaults_the_pool_lets_go_before_vllm_does() {
    calmly(STILL, || async {
        let (cluster, worker) = Cluster::with_worker().await;
        let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
        cluster
            .create_and_wait(model_at("m", &upstream.url()))
            .await;
        assert_eq!(
            worker.client().finish("m", Chat::Whole, 1).await,
            Ended::Well
        );
        sleep(Duration::from_millis(4_500)).await;
        let stats = upstream.stats();
        assert_eq!(
            (
                stats.opened,
                stats.open,
                stats.closed_idle,
                stats.closed_other
            ),
            (2, 1, 0, 1),
            "let go in time, and a new one stands ready"
        );
        assert_eq!(
            worker.client().finish("m", Chat::Whole, 1).await,
            Ended::Well
        );
    })
    .await;
}

/// An upstream that closes 2 ms after each answer, and requests that never stop: whatever crosses the
/// close on its way is sent once more on a fresh connection, and runs once.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cross_the_close_are_served_and_run_once() {
    calmly(STILL, || async {
        const EACH: u64 = 100;
        let (cluster, worker) = Cluster::with_worker().await;
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"choices\":[]}";
        let close = After::CloseAfter(Duration::from_millis(2));
        let upstream = RawUpstream::start(answer, close).await;
        cluster
            .create_and_wait(model_at("m", &upstream.url()))
            .await;
        let mut crowd = JoinSet::new();
        for n in 0..10_u64 {
            let client = worker.client();
            crowd.spawn(async move {
                for _ in 0..EACH {
                    assert_eq!(client.finish("m", Chat::Whole, 1).await, Ended::Well);
                    sleep(Duration::from_micros(1_500 + n * 100)).await;
                }
            });
        }
        crowd.join_all().await;
        assert_eq!(upstream.requests(), 10 * EACH, "each ran exactly once");
        let page = worker.metrics().await;
        let replays = page.sum("forebay_replays_total", &[]);
        println!("{} requests, {replays} replayed", 10 * EACH);
    })
    .await;
}

/// What may have run is not run again by one who said so.
#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_request_is_sent_again_once_or_not_at_all() {
    for replay in [true, false] {
        let (cluster, worker) = Cluster::with_worker().await;
        let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
        let model = wire::Model {
            pool: Some(wire::Pool {
                replay_unanswered: Some(replay),
                ..wire::Pool::default()
            }),
            ..model_at("m", &upstream.url())
        };
        cluster.create_and_wait(model).await;
        let client = worker.client();
        assert_eq!(client.finish("m", Chat::Whole, 1).await, Ended::Well);
        upstream.set_faults(Faults {
            reset_before_response: 1,
            ..Faults::default()
        });
        let ended = client.finish("m", Chat::Whole, 1).await;
        match replay {
            true => assert_eq!(ended, Ended::Well),
            false => assert!(matches!(ended, Ended::Status(502, _)), "{ended:?}"),
        }
        assert_eq!(upstream.stats().requests, 2 + u64::from(replay));
        // One that fails again is told, and not sent a third time.
        upstream.set_faults(Faults {
            reset_before_response: 2,
            ..Faults::default()
        });
        let before = upstream.stats().requests;
        let ended = client.finish("m", Chat::Whole, 1).await;
        assert!(matches!(ended, Ended::Status(502, _)), "{ended:?}");
        assert_eq!(upstream.stats().requests - before, 1 + u64::from(replay));
    }
}

async fn endpoint(worker: &WorkerHandle) -> serde_json::Value {
    worker.document("/pools").await["pools"][0]["endpoints"][0]["addresses"][0].clone()
}

/// Nobody configured anything: after a few closes the pool lets go before the upstream does.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_limit_is_learned_from_the_closes() {
    calmly(STILL, || async {
        let (cluster, worker) = Cluster::with_worker().await;
        let upstream = MockServer::start(MockConfig {
            keep_alive: Some(Duration::from_millis(600)),
            interval: Duration::ZERO,
            ..MockConfig::serving("m")
        })
        .await
        .unwrap();
        cluster
            .create_and_wait(model_at("m", &upstream.url()))
            .await;
        let burst = async || {
            let mut burst = JoinSet::new();
            for _ in 0..4 {
                let client = worker.client();
                burst.spawn(async move { client.finish("m", Chat::Whole, 1).await });
            }
            assert!(
                burst
                    .join_all()
                    .await
                    .iter()
                    .all(|ended| *ended == Ended::Well)
            );
        };
        // Once could have been anything.
        for _ in 0..2 {
            burst().await;
            sleep(Duration::from_millis(900)).await;
        }
        let closed = upstream.stats().closed_idle;
        assert!(closed > 1, "the first times it was the upstream");
        let known = endpoint(&worker).await;
        let learned = known["learned_idle_seconds"].as_f64().unwrap();
        assert!((0.55..0.8).contains(&learned), "{known}");
        assert!(
            known["idle_limit_seconds"].as_f64().unwrap() <= learned / 1.9,
            "{known}"
        );

        let before = upstream.stats().closed_idle;
        for _ in 0..3 {
            burst().await;
            sleep(Duration::from_millis(900)).await;
        }
        assert_eq!(
            upstream.stats().closed_idle,
            before,
            "from then on it was the pool"
        );
        // What was learned outlives a revision.
        let update = wire::UpdateModelRequest {
            model: Some(wire::Model {
                id: "m".to_owned(),
                pool: Some(wire::Pool {
                    max_concurrent: Some(20),
                    ..wire::Pool::default()
                }),
                ..wire::Model::default()
            }),
            ..Default::default()
        };
        let updated = cluster.registry().update_model(update).await.unwrap();
        cluster.rolled_out(updated.into_inner().revision).await;
        assert_eq!(
            endpoint(&worker).await["learned_idle_seconds"].as_f64(),
            Some(learned)
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_idle_limit_is_kept() {
    let (cluster, worker) = Cluster::with_worker().await;
    let answer = "HTTP/1.1 200 OK\r\nkeep-alive: timeout=2, max=100\r\ncontent-length: 14\r\n\r\n\
                  {\"choices\":[]}";
    let upstream = RawUpstream::start(answer, After::Keep).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    assert_eq!(endpoint(&worker).await["idle_limit_seconds"], 4.0);
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    let known = endpoint(&worker).await;
    assert_eq!(known["announced_idle_seconds"], 2.0);
    assert_eq!(known["idle_limit_seconds"], 1.5);
}

/// The long run of this is `idle-sweep`, see docs/bench.
#[tokio::test(flavor = "multi_thread")]
async fn bursts_around_the_idle_limit_lose_nothing() {
    let (cluster, worker) = Cluster::with_worker().await;
    let sweep = IdleSweep {
        limit: Duration::from_millis(500),
        models: 4,
        burst: 50,
        requests: 2_000,
    };
    let seen = sweep.run(&cluster, &worker).await;
    assert_eq!(seen.failed, 0, "{:?}", seen.failures);
    assert_eq!(seen.executed, seen.requests, "each exactly once");
}
