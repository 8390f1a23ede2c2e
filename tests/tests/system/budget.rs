//! More models than the worker's budget holds: never more connections than that, nobody left out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Ended, WorkerHandle, eventually, eventually_within, model_at};
use tokio::{task::JoinSet, time::sleep};

const MODELS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Answers after which it is looked who had how many.
const ENOUGH: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that are closed, but that a busy mock has not got round to counting as closed when the
/// next ones are accepted. Requests in flight are counted exactly.
const LATE: u64 = 8;

/// A budget of 2 x 4 = 8 and five models of four.
async fn setup(interval: Duration) -> (Cluster, WorkerHandle, MockServer) {
    let (cluster, worker) = Cluster::with_worker().await;
    let settings = wire::UpdatePoolSettingsRequest {
        settings: Some(wire::PoolDefaults {
            max_concurrent: Some(4),
            max_models_concurrent: Some(2),
            queue: Some(wire::Queue {
                max_waiting: Some(1_000),
                ..wire::Queue::default()
            }),
            idle_timeout: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
            ..wire::PoolDefaults::default()
        }),
        ..Default::default()
    };
    cluster
        .settings()
        .update_pool_settings(settings)
        .await
        .unwrap();
    let upstream = MockServer::start(MockConfig {
        models: MODELS.map(str::to_owned).to_vec(),
        interval,
        keep_alive: None,
        ..MockConfig::default()
    })
    .await
    .unwrap();
    for id in MODELS {
        cluster.create_and_wait(model_at(id, &upstream.url())).await;
    }
    (cluster, worker, upstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn five_models_share_what_two_could_have_alone() {
    let (_cluster, worker, upstream) = setup(Duration::from_millis(4)).await;
    let served: Arc<[AtomicU64; MODELS.len()]> = Arc::default();
    let mut crowd = JoinSet::new();
    // The first model's crowd is ten times the others'.
    for (n, id) in MODELS.iter().enumerate() {
        for _ in 0..if n == 0 { 40 } else { 4 } {
            let (client, served) = (worker.client(), served.clone());
            crowd.spawn(async move {
                while !served
                    .iter()
                    .all(|one| one.load(Ordering::Relaxed) >= ENOUGH)
                {
                    assert_eq!(client.finish(id, Chat::Whole, 5).await, Ended::Well);
                    served[n].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let served = eventually_within(PATIENCE, "all are served", async || {
        let served = served.each_ref().map(|one| one.load(Ordering::Relaxed));
        served.iter().all(|one| *one >= ENOUGH).then_some(served)
    })
    .await;
    // Fails if one of them did.
    crowd.join_all().await;
    let stats = upstream.stats();
    println!(
        "served {served:?}; at most {} open and {} in flight",
        stats.peak_open, stats.peak_in_flight
    );
    assert!(stats.peak_open <= 8 + LATE, "{} open", stats.peak_open);
    assert_eq!(stats.peak_in_flight, 8, "all of them are used, and no more");
    // 8 slots for five who want: 1.6 each, which no crowd changes. Whole slots move now and then.
    let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
    assert!(least * 4 >= *most, "{served:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_model_alone_has_its_own_size_and_the_coldest_give_way() {
    let (_cluster, worker, upstream) = setup(Duration::from_millis(10)).await;
    for (n, id) in MODELS.iter().enumerate() {
        // What had a request a moment ago counts as wanted; after that it is only warm.
        sleep(Duration::from_millis(400)).await;
        let mut four = JoinSet::new();
        for _ in 0..4 {
            let client = worker.client();
            four.spawn(async move { client.finish(id, Chat::Whole, 10).await });
        }
        assert!(
            four.join_all()
                .await
                .iter()
                .all(|ended| *ended == Ended::Well)
        );
        let stats = upstream.stats();
        assert!(stats.peak_open <= 8 + LATE, "{stats:?}");
        assert!(
            stats.opened >= 4 * (n as u64 + 1),
            "each had its four: {stats:?}"
        );
    }
    // The two that came last still have theirs; what was evicted is said to be.
    let page = worker.metrics().await;
    let idle = |id: &str| {
        let model = format!("model=\"{id}\"");
        page.sum("forebay_pool_connections", &[&model, "state=\"idle\""])
    };
    assert_eq!((idle("d"), idle("e")), (4.0, 4.0), "{}", page.text());
    let closed = "forebay_pool_connections_closed_total";
    assert_eq!(page.sum(closed, &["reason=\"evicted\""]), 12.0);
    assert_eq!(page.sum(closed, &["reason=\"shrink\""]), 0.0);
    assert_eq!(page.sum("forebay_budget_connections", &[]), 8.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_not_cut_and_what_ends_goes_to_who_has_none() {
    let (_cluster, worker, upstream) = setup(Duration::from_millis(5)).await;
    let mut streams = JoinSet::new();
    for id in ["a", "b"] {
        for n in 0..6_u32 {
            let client = worker.client();
            streams.spawn(async move { client.finish(id, Chat::Stream, 100 + n * 20).await });
        }
    }
    eventually("eight streams run", async || {
        (upstream.stats().in_flight == 8).then_some(())
    })
    .await;
    // Two more wait at each of the two; the third has nothing, and is served with the first that ends.
    let client = worker.client();
    assert_eq!(client.finish("c", Chat::Whole, 1).await, Ended::Well);
    let running = upstream.stats().in_flight;
    assert!(running >= 6, "while most streams still run: {running}");
    assert!(
        streams
            .join_all()
            .await
            .iter()
            .all(|ended| *ended == Ended::Well)
    );
    assert!(upstream.stats().peak_open <= 8 + LATE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waited_in_vain_is_told_of_the_budget() {
    let (cluster, worker, upstream) = setup(Duration::from_millis(5)).await;
    let update = wire::UpdateModelRequest {
        model: Some(wire::Model {
            id: "c".to_owned(),
            pool: Some(wire::Pool {
                queue: Some(wire::Queue {
                    max_wait: Some(prost_types::Duration {
                        seconds: 0,
                        nanos: 200_000_000,
                    }),
                    ..wire::Queue::default()
                }),
                ..wire::Pool::default()
            }),
            ..wire::Model::default()
        }),
        ..Default::default()
    };
    let updated = cluster.registry().update_model(update).await.unwrap();
    cluster.rolled_out(updated.into_inner().revision).await;
    let mut streams = JoinSet::new();
    for id in ["a", "b"] {
        for _ in 0..4 {
            let client = worker.client();
            streams.spawn(async move { client.finish(id, Chat::Stream, 300).await });
        }
    }
    eventually("eight streams run", async || {
        (upstream.stats().in_flight == 8).then_some(())
    })
    .await;
    let Ended::Status(503, text) = worker.client().finish("c", Chat::Whole, 1).await else {
        unreachable!("not refused");
    };
    assert!(
        text.contains("saturated") && text.contains("budget of 8 connections"),
        "{text}"
    );
    assert!(
        streams
            .join_all()
            .await
            .iter()
            .all(|ended| *ended == Ended::Well)
    );
}
