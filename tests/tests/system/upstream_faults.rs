//! An upstream that fails is told to the client truthfully: never a clean end, never a second run of
//! what may have run.

use std::time::Duration;

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{After, Chat, Cluster, Ended, RawClient, RawUpstream, WorkerHandle, model_at};
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

/// What a client gets of an answer in these bytes, after which the upstream does this: all that came, and whether the
/// connection ended cleanly.
async fn passed_on(version: &str, answer: &str, after: After) -> (String, bool) {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = RawUpstream::start(answer, after).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let mut client = RawClient::connect(worker.gateway()).await;
    client.chat_in(version, "m", false).await;
    match version {
        // It keeps the connection, unless the answer broke off.
        "HTTP/1.1" if after == After::Close => (client.read_until("\r\n0\r\n\r\n").await, true),
        _ => client.read_to_its_end().await,
    }
}

const UNTIL_CLOSE: &str =
    "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"choices\":[]}";

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_with_its_connection_is_whole_after_a_clean_end_alone() {
    let (one, two) = ("HTTP/1.0", "HTTP/1.1");
    for (version, answer) in [
        (one, UNTIL_CLOSE),
        (two, UNTIL_CLOSE),
        (one, &UNTIL_CLOSE.replace("HTTP/1.0", "HTTP/1.1")),
    ] {
        let (text, clean) = passed_on(version, answer, After::Close).await;
        assert!(clean && text.contains("{\"choices\":[]}"), "{text}");
        let (text, clean) = passed_on(version, answer, After::Reset).await;
        assert!(text.contains("{\"choices\":[]}"), "{text}");
        match version {
            "HTTP/1.0" => assert!(!clean, "looks whole: {text}"),
            _ => assert!(
                text.contains("transfer-encoding: chunked") && !text.ends_with("0\r\n\r\n"),
                "looks whole: {text}"
            ),
        }
    }
}

/// Over HTTP/1.0 there are no chunks that could be missing.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_off_looks_broken_off_over_http_1_0_too() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n";
    let lengthed = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nab";
    let unfinished =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"choices\":[{\"text\":\"ab";
    for answer in [chunked, lengthed, unfinished] {
        let (text, clean) = passed_on("HTTP/1.0", answer, After::Close).await;
        assert!(text.contains("ab"), "{text}");
        // A length that is missed says it as well.
        assert!(!clean || text.contains("content-length: 10"), "{text}");
    }
    let whole = format!("{chunked}0\r\n\r\n");
    let (text, clean) = passed_on("HTTP/1.0", &whole, After::Close).await;
    assert!(clean && text.ends_with("\r\n\r\nab"), "{text}");
}
