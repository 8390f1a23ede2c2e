//! Upstreams that speak HTTP/2: many requests on a connection, and what may go wrong with it.

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer, Speaks};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Ended, WorkerHandle, eventually};
use futures_util::{StreamExt as _, future::join_all};
use tokio::time::sleep;
use wire::EndpointProtocol;

use super::transports::{model, pool, update};

async fn setup(config: MockConfig) -> (Cluster, WorkerHandle, MockServer) {
    let (cluster, worker) = Cluster::with_worker().await;
    let mock = MockServer::start(MockConfig {
        speaks: Speaks::Http2,
        ..config
    })
    .await
    .unwrap();
    let http2 = EndpointProtocol::Http2;
    cluster
        .create_and_wait(model(&mock.url(), http2, None))
        .await;
    (cluster, worker, mock)
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_carries_many_requests_on_few_connections_and_a_cancel_costs_none() {
    let (_cluster, worker, mock) = setup(MockConfig::serving("m")).await;
    let streams = (0..40).map(|_| {
        let client = worker.client();
        async move { client.finish("m", Chat::Stream, 40).await }
    });
    for ended in join_all(streams).await {
        assert_eq!(ended, Ended::Well);
    }
    let stats = mock.stats();
    assert_eq!(stats.peak_in_flight, 40);
    assert_eq!(stats.opened, 2, "32 on each: {stats:?}");
    let mut stream = worker
        .client()
        .chat("m", Chat::Stream, 100_000)
        .send()
        .await
        .unwrap()
        .bytes_stream();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    eventually("the upstream sees the cancel", async || {
        (mock.stats().cancelled == 1).then_some(())
    })
    .await;
    assert_eq!(mock.stats().open, 2, "and the connection stays");
    assert_eq!(pool(&worker).await["in_flight"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_opens_more_when_the_server_takes_fewer() {
    let (_cluster, worker, mock) = setup(MockConfig {
        max_streams: Some(5),
        ..MockConfig::serving("m")
    })
    .await;
    let streams = (0..20).map(|_| {
        let client = worker.client();
        async move { client.finish("m", Chat::Stream, 60).await }
    });
    for ended in join_all(streams).await {
        assert_eq!(ended, Ended::Well);
    }
    let stats = mock.stats();
    assert_eq!(stats.peak_in_flight, 20);
    assert!((4..=6).contains(&stats.opened), "{stats:?}");
}

/// An answer that nobody reads fills its own window, not that of the others on the connection.
#[tokio::test(flavor = "multi_thread")]
async fn over_http2_a_client_that_does_not_read_holds_up_nobody() {
    let (_cluster, worker, mock) = setup(MockConfig {
        interval: Duration::ZERO,
        ..MockConfig::serving("m")
    })
    .await;
    let mut unread = Vec::new();
    for _ in 0..8 {
        let stream = worker.client().chat("m", Chat::Stream, 1_000_000).send();
        unread.push(stream.await.unwrap());
    }
    // Until what can be buffered on the way is full.
    let tokens = async || {
        let before = mock.stats().tokens;
        sleep(Duration::from_millis(300)).await;
        (mock.stats().tokens == before).then_some(())
    };
    eventually("the streams are stuck", tokens).await;
    for _ in 0..10 {
        let ended = worker.client().finish("m", Chat::Stream, 100).await;
        assert_eq!(ended, Ended::Well);
    }
    assert_eq!(mock.stats().opened, 1, "all on one connection");
    drop(unread);
}

/// A server that is being replaced sends GOAWAY, answers what it has and takes no more.
#[tokio::test(flavor = "multi_thread")]
async fn over_http2_a_server_that_goes_in_good_order_loses_nothing() {
    let (_cluster, worker, mock) = setup(MockConfig::serving("m")).await;
    for _ in 0..5 {
        let client = worker.client();
        let streams = (0..20).map(|_| client.finish("m", Chat::Stream, 100));
        let going = async {
            eventually("all are upstream", async || {
                (mock.stats().in_flight == 20).then_some(())
            })
            .await;
            mock.go_away();
            // New ones meanwhile, which must go elsewhere.
            let more = (0..20).map(|_| client.finish("m", Chat::Whole, 1));
            join_all(more).await
        };
        let (streams, more) = tokio::join!(join_all(streams), going);
        for ended in streams.iter().chain(&more) {
            assert_eq!(*ended, Ended::Well);
        }
    }
    let stats = mock.stats();
    assert_eq!((stats.completed, stats.cancelled), (200, 0), "{stats:?}");
}

/// Cut because nobody reads it, a stream is cancelled upstream, and its connection stays.
#[tokio::test(flavor = "multi_thread")]
async fn over_http2_an_answer_that_nobody_reads_is_cancelled() {
    let (cluster, worker, mock) = setup(MockConfig {
        interval: Duration::ZERO,
        ..MockConfig::serving("m")
    })
    .await;
    let impatient = wire::Model {
        timeouts: Some(wire::Timeouts {
            idle: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..wire::Timeouts::default()
        }),
        ..model(&mock.url(), EndpointProtocol::Http2, None)
    };
    update(&cluster, impatient).await;
    let client = worker.client();
    let unread = client.chat("m", Chat::Stream, 10_000_000).send().await;
    eventually("the upstream is told", async || {
        (mock.stats().cancelled == 1).then_some(())
    })
    .await;
    assert_eq!(mock.stats().in_flight, 0);
    assert_eq!(client.finish("m", Chat::Whole, 1).await, Ended::Well);
    assert_eq!(mock.stats().opened, 1);
    drop(unread);
}
