//! An upstream that fails is told to the client truthfully: never a clean end, never a second run of
//! what may have run.

use std::time::Duration;

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Ended, WorkerHandle, model_at};
use futures_util::StreamExt as _;

async fn setup() -> (Cluster, WorkerHandle, MockServer) {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let short = |millis: i32| prost_types::Duration {
        seconds: 0,
        nanos: millis * 1_000_000,
    };
    let model = wire::Model {
        timeouts: Some(wire::Timeouts {
            first_byte: Some(short(300)),
            idle: Some(short(300)),
            ..wire::Timeouts::default()
        }),
        ..model_at("m", &upstream.url())
    };
    cluster.create_and_wait(model).await;
    (cluster, worker, upstream)
}

/// All that came of a stream, and how it ended.
async fn read(worker: &WorkerHandle) -> (String, Result<(), reqwest::Error>) {
    let answer = worker
        .client()
        .chat("m", Chat::Stream, 50)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let (mut text, mut stream) = (String::new(), answer.bytes_stream());
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Err(error) => return (text, Err(error)),
        }
    }
    (text, Ok(()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_in_mid_stream_becomes_an_error_event_and_an_aborted_body() {
    let (_cluster, worker, upstream) = setup().await;
    upstream.set_faults(Faults {
        reset_mid_stream_after: Some(3),
        ..Faults::default()
    });
    let (text, end) = read(&worker).await;
    assert!(end.is_err(), "never a clean end");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    let event: serde_json::Value =
        serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(event["error"]["code"], "upstream_reset");
    assert!(
        text.matches("data: ").count() > 3,
        "what came before was passed on: {text}"
    );
    assert!(!text.contains("[DONE]"));
    let page = worker.metrics().await;
    assert_eq!(
        page.sum(
            "forebay_requests_total",
            &["code=\"502\"", "source=\"upstream\""]
        ),
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_in_mid_stream_ends_after_the_idle_timeout() {
    let (_cluster, worker, upstream) = setup().await;
    upstream.set_faults(Faults {
        stall_mid_stream_after: Some(3),
        ..Faults::default()
    });
    let (text, end) = read(&worker).await;
    assert!(end.is_err());
    assert!(
        text.contains("upstream_timeout") && text.contains("300ms"),
        "{text}"
    );
    forebay_tests::eventually_within(Duration::from_millis(200), "cancelled", async || {
        (upstream.stats().in_flight == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_of_the_engine_passes_unchanged() {
    let (_cluster, worker, upstream) = setup().await;
    upstream.set_faults(Faults {
        error_event_after: Some(2),
        ..Faults::default()
    });
    let (text, end) = read(&worker).await;
    assert!(end.is_ok() && text.contains("\"error\"") && text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_a_timeout_and_is_not_repeated() {
    let (_cluster, worker, upstream) = setup().await;
    upstream.set_faults(Faults {
        stall_before_response: 1,
        ..Faults::default()
    });
    let Ended::Status(504, body) = worker.client().finish("m", Chat::Whole, 1).await else {
        panic!("not a 504");
    };
    assert!(
        body.contains("upstream_timeout") && body.contains("300ms"),
        "{body}"
    );
    assert_eq!(upstream.stats().requests, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_after_the_request_was_sent_is_told_and_not_repeated() {
    let (_cluster, worker, upstream) = setup().await;
    upstream.set_faults(Faults {
        reset_before_response: 1,
        ..Faults::default()
    });
    let Ended::Status(502, body) = worker.client().finish("m", Chat::Whole, 1).await else {
        panic!("not a 502");
    };
    assert!(body.contains("upstream_reset"), "{body}");
    assert_eq!(upstream.stats().requests, 1);
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_upstream_passes_unchanged() {
    let (_cluster, worker, upstream) = setup().await;
    upstream.set_faults(Faults {
        status: Some(503),
        status_for: 1,
        ..Faults::default()
    });
    let Ended::Status(503, body) = worker.client().finish("m", Chat::Whole, 1).await else {
        panic!("not the upstream's 503");
    };
    assert!(body.contains("MockedError"), "{body}");
    let stats = upstream.stats();
    assert_eq!((stats.requests, stats.opened), (1, 1));
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    assert_eq!(upstream.stats().opened, 1, "the connection was kept");
}
