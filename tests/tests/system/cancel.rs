//! The client's disappearance reaches the upstream within 200 ms, in every phase, and gives the slot
//! back.

use std::time::Duration;

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, WorkerHandle, calmly, eventually, eventually_within, model_at};
use futures_util::StreamExt as _;
use tokio::{task::JoinSet, time::sleep};

/// A pause of the machine that matters to that.
const STILL: Duration = Duration::from_millis(50);

const WITHIN: Duration = Duration::from_millis(200);

async fn setup(config: MockConfig) -> (Cluster, WorkerHandle, MockServer) {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(config).await.unwrap();
    let model = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(1),
            ..wire::Pool::default()
        }),
        ..model_at("m", &upstream.url())
    };
    cluster.create_and_wait(model).await;
    (cluster, worker, upstream)
}

/// Waits until the upstream saw it, and the pool is free again.
async fn seen(worker: &WorkerHandle, upstream: &MockServer) {
    eventually_within(WITHIN, "the upstream sees the cancel", async || {
        (upstream.stats().cancelled == 1).then_some(())
    })
    .await;
    assert_eq!(upstream.stats().in_flight, 0);
    upstream.set_faults(Faults::default());
    assert_eq!(worker.client().status("m").await.unwrap(), 200);
    let page = worker.metrics().await;
    let closed = "forebay_pool_connections_closed_total";
    assert_eq!(page.sum(closed, &["reason=\"cancelled\""]), 1.0);
    let requests = page.sum(
        "forebay_requests_total",
        &["code=\"499\"", "source=\"client\""],
    );
    assert_eq!(requests, 1.0, "{}", page.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_mid_stream() {
    calmly(STILL, || async {
        let (_cluster, worker, upstream) = setup(MockConfig::serving("m")).await;
        let answer = worker
            .client()
            .chat("m", Chat::Stream, 100_000)
            .send()
            .await
            .unwrap();
        let mut stream = answer.bytes_stream();
        for _ in 0..5 {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        seen(&worker, &upstream).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_byte_of_a_stream_and_of_a_whole_answer() {
    calmly(STILL, || async {
        for chat in [Chat::Stream, Chat::Whole] {
            let (_cluster, worker, upstream) = setup(MockConfig::serving("m")).await;
            upstream.set_faults(Faults {
                stall_before_response: 1,
                ..Faults::default()
            });
            let client = worker.client();
            let mut asking = JoinSet::new();
            asking.spawn(async move { client.chat("m", chat, 1).send().await });
            eventually("the request is upstream", async || {
                (upstream.stats().in_flight == 1).then_some(())
            })
            .await;
            asking.shutdown().await;
            seen(&worker, &upstream).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_line() {
    calmly(STILL, || async {
        let (_cluster, worker, upstream) = setup(MockConfig::serving("m")).await;
        let client = worker.client();
        let mut first = client
            .chat("m", Chat::Stream, 100_000)
            .send()
            .await
            .unwrap()
            .bytes_stream();
        first.next().await.unwrap().unwrap();
        let waiting = async || worker.metrics().await.sum("forebay_pool_waiting", &[]);
        let mut asking = JoinSet::new();
        let second = client.clone();
        asking.spawn(async move { second.chat("m", Chat::Whole, 1).send().await });
        eventually("the second waits", async || {
            (waiting().await == 1.0).then_some(())
        })
        .await;
        asking.shutdown().await;
        eventually_within(WITHIN, "the line is empty", async || {
            (waiting().await == 0.0).then_some(())
        })
        .await;
        sleep(Duration::from_millis(50)).await;
        assert_eq!(upstream.stats().requests, 1, "it never went upstream");
    })
    .await;
}
