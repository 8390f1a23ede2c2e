//! The promise in one test: 100 resizes under load, nothing lost, nothing torn down that fits.
//!
//! 200 requests a second, 30 % of them streams, while the pool's size goes between 20 and 80. What
//! the mock counts decides. Its own file, so that little else runs beside it.

#![expect(
    clippy::expect_used,
    reason = "in a test, a wrong assumption is to fail at once"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Client, Cluster, Ended, WorkerHandle, eventually, model_at};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

const RESIZES: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(200);
const EVERY: Duration = Duration::from_millis(5);

/// 200 requests a second at about 60 ms each need some 12 connections; each resize that shrinks
/// stays above that, so that every connection fits all the time.
#[tokio::test(flavor = "multi_thread")]
async fn resizes_under_load_lose_nothing_and_close_nothing_that_fits() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig {
        latency: Duration::from_millis(20),
        interval: Duration::from_millis(4),
        // Idle limits have their own tests; here they would close what the load leaves over.
        keep_alive: None,
        ..MockConfig::serving("m")
    })
    .await
    .unwrap();
    let created = cluster.create_and_wait(never_idle(&upstream)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    load.spawn(drive(worker.client(), stop.clone()));

    let mut registry = cluster.registry();
    let mut revision = created.revision;
    let mut before = Connections::of(&worker).await;
    for _ in 0..RESIZES {
        let size = fastrand::u32(20..=80);
        let updated = registry.update_model(resize("m", size)).await;
        revision = updated.unwrap().into_inner().revision;
        cluster.rolled_out(revision).await;
        sleep(BETWEEN).await;
        let after = Connections::within(&worker, size).await;
        after.closed_no_more_than_a_size_of(size, &before);
        before = after;
    }
    cluster.rolled_out(revision).await;
    stop.store(true, Ordering::Relaxed);
    let (sent, failed) = load.join_next().await.unwrap().unwrap();

    let (stats, page) = (upstream.stats(), worker.metrics().await);
    let opened = page.sum("forebay_pool_connections_opened_total", &[]);
    let closed = page.sum("forebay_pool_connections_closed_total", &[]);
    println!(
        "{RESIZES} resizes, {sent} requests: {} failed; mock: {} requests, {} streams, {} cancelled, \
         {} connections opened, at most {} open and {} in flight; worker: {opened} opened, {closed} closed",
        failed.len(),
        stats.requests,
        stats.streams,
        stats.cancelled,
        stats.opened,
        stats.peak_open,
        stats.peak_in_flight,
    );
    let changed = revision - created.revision;
    assert!(
        changed >= u64::from(RESIZES) * 8 / 10,
        "only {changed} revisions"
    );
    assert!(sent > 3_000, "only {sent} requests were made");
    assert_eq!(failed, [], "requests failed");
    assert_eq!(
        (stats.requests, stats.completed, stats.cancelled),
        (sent, sent, 0)
    );
    assert!(stats.streams * 4 > sent, "a quarter and more are streams");
    // Growth that was needed: as many as were ever wanted at once, each opened once and kept; only
    // what a smaller size had no room for was closed (checked at each resize above), and may have been
    // wanted again.
    let shrunk = page.sum(
        "forebay_pool_connections_closed_total",
        &["reason=\"shrink\""],
    );
    assert_eq!(closed, shrunk, "none closed that still fitted");
    assert!(stats.opened as f64 <= stats.peak_open as f64 + shrunk);
    assert!(stats.peak_open <= 80);
    assert!(
        stats.peak_open > 20 || closed == 0.0,
        "all fitted all the time"
    );
}

/// What the worker counts of one pool.
#[derive(Debug)]
struct Connections {
    opened: u64,
    closed: u64,
}

impl Connections {
    async fn of(worker: &WorkerHandle) -> Self {
        let page = worker.metrics().await;
        let sum = |name| page.sum(name, &[]) as u64;
        Self {
            opened: sum("forebay_pool_connections_opened_total"),
            closed: sum("forebay_pool_connections_closed_total"),
        }
    }

    /// Once what has no room in this size is gone.
    async fn within(worker: &WorkerHandle, size: u32) -> Self {
        eventually("what has no room is gone", async || {
            let seen = Self::of(worker).await;
            (seen.opened - seen.closed <= u64::from(size)).then_some(seen)
        })
        .await
    }

    /// Since `before` there was one resize. At the very most everything that was open then or opened
    /// since was open at once, and what of that has no room in the new size may be closed.
    fn closed_no_more_than_a_size_of(&self, size: u32, before: &Self) {
        let open = before.opened - before.closed + (self.opened - before.opened);
        let surplus = open.saturating_sub(u64::from(size));
        let closed = self.closed - before.closed;
        assert!(
            closed <= surplus,
            "{closed} closed, {surplus} too many for {size}: {before:?} {self:?}"
        );
    }
}

/// A size below what is in use: nothing is cut, the surplus goes as it is returned.
#[tokio::test(flavor = "multi_thread")]
async fn a_shrink_below_what_is_in_use_waits_for_it() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig {
        interval: Duration::from_millis(10),
        ..MockConfig::serving("s")
    })
    .await
    .unwrap();
    let created = cluster
        .create_and_wait(model_at("s", &upstream.url()))
        .await;
    assert_eq!(created.resolved_pool.unwrap().max_concurrent, Some(50));
    let client = worker.client();
    let mut streams = JoinSet::new();
    for _ in 0..40 {
        let client = client.clone();
        streams.spawn(async move { client.finish("s", Chat::Stream, 500).await });
    }
    eventually("the streams run", async || {
        (upstream.stats().in_flight == 40).then_some(())
    })
    .await;
    let updated = cluster.registry().update_model(resize("s", 5)).await;
    cluster
        .rolled_out(updated.unwrap().into_inner().revision)
        .await;
    assert_eq!(upstream.stats().in_flight, 40, "nothing was cut");
    let ended = streams.join_all().await;
    assert!(ended.iter().all(|ended| *ended == Ended::Well), "{ended:?}");
    eventually("five are left", async || {
        (upstream.stats().open == 5).then_some(())
    })
    .await;
    let stats = upstream.stats();
    assert_eq!((stats.opened, stats.cancelled), (40, 0));
}

/// A model whose idle limit is far away.
fn never_idle(upstream: &MockServer) -> wire::Model {
    let far = prost_types::Duration {
        seconds: 600,
        nanos: 0,
    };
    wire::Model {
        pool: Some(wire::Pool {
            idle_timeout: Some(far),
            // What a machine that stands still holds up comes at once, and waits.
            queue: Some(wire::Queue {
                max_waiting: Some(10_000),
                ..wire::Queue::default()
            }),
            ..wire::Pool::default()
        }),
        ..model_at("m", &upstream.url())
    }
}

fn resize(id: &str, size: u32) -> wire::UpdateModelRequest {
    wire::UpdateModelRequest {
        model: Some(wire::Model {
            id: id.to_owned(),
            pool: Some(wire::Pool {
                max_concurrent: Some(size),
                ..wire::Pool::default()
            }),
            ..wire::Model::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["pool.max_concurrent".to_owned()],
        }),
        ..Default::default()
    }
}

/// Open load: a request every 5 ms, whatever became of those before.
async fn drive(client: Client, stop: Arc<AtomicBool>) -> (u64, Vec<Ended>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    let (mut sent, mut failed) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let client = client.clone();
        let chat = if sent % 10 < 3 {
            Chat::Stream
        } else {
            Chat::Whole
        };
        requests.spawn(async move { client.finish("m", chat, 10).await });
        sent += 1;
        while let Some(ended) = requests.try_join_next() {
            failed.extend(Some(ended.expect("a request's task")).filter(|e| *e != Ended::Well));
        }
    }
    failed.extend(
        requests
            .join_all()
            .await
            .into_iter()
            .filter(|e| *e != Ended::Well),
    );
    (sent, failed)
}
