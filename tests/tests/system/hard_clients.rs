//! Clients that leave in ways that are hard to see, do not read, or do not speak.

use std::time::Duration;

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Ended, RawClient, WorkerHandle, eventually_within, model_at};

async fn setup(size: u32, idle: Duration) -> (Cluster, WorkerHandle, MockServer) {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig {
        interval: Duration::ZERO,
        ..MockConfig::serving("m")
    })
    .await
    .unwrap();
    let model = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(size),
            ..wire::Pool::default()
        }),
        timeouts: Some(wire::Timeouts {
            idle: prost_types::Duration::try_from(idle).ok(),
            ..wire::Timeouts::default()
        }),
        ..model_at("m", &upstream.url())
    };
    cluster.create_and_wait(model).await;
    (cluster, worker, upstream)
}

async fn served(worker: &WorkerHandle) {
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
}

/// A byte that hyper does not read hides the end of the connection from it. 50 such clients would
/// otherwise hold every slot of a model until its timeout.
#[tokio::test(flavor = "multi_thread")]
async fn one_more_byte_does_not_hide_that_a_client_left() {
    let minute = Duration::from_secs(60);
    for (extra, reset) in [
        (&b"\n"[..], false),
        (b"G", true),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", false),
    ] {
        let (_cluster, worker, upstream) = setup(1, minute).await;
        upstream.set_faults(Faults {
            stall_before_response: 1,
            ..Faults::default()
        });
        let mut client = RawClient::connect(worker.gateway()).await;
        client.chat("m", true, 1).await;
        client.write(extra).await;
        forebay_tests::eventually("the request is upstream", async || {
            (upstream.stats().in_flight == 1).then_some(())
        })
        .await;
        match reset {
            true => client.reset(),
            false => drop(client),
        }
        let within = Duration::from_millis(200);
        eventually_within(within, "the upstream sees the cancel", async || {
            (upstream.stats().cancelled == 1).then_some(())
        })
        .await;
        served(&worker).await;
        let gone = ["code=\"499\"", "source=\"client\""];
        let page = worker.metrics().await;
        assert_eq!(page.sum("forebay_requests_total", &gone), 1.0);
    }
}

/// The body of an answer that nobody reads is not polled, and its own limits with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_gives_its_slot_back() {
    let (_cluster, worker, upstream) = setup(1, Duration::from_millis(500)).await;
    let mut client = RawClient::connect(worker.gateway()).await;
    // More than the sockets' buffers hold.
    client.chat("m", true, 1_000_000).await;
    client.read_until("token0").await;
    eventually_within(Duration::from_secs(5), "the upstream sees it", async || {
        (upstream.stats().cancelled == 1).then_some(())
    })
    .await;
    served(&worker).await;
    drop(client);
    let gone = ["code=\"499\"", "source=\"client\""];
    forebay_tests::eventually("it is the client's", async || {
        let page = worker.metrics().await;
        (page.sum("forebay_requests_total", &gone) == 1.0).then_some(())
    })
    .await;
}

/// Whoever writes everything before he reads must hear why it was too much.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_heard_by_who_sends_it_all_first() {
    let (_cluster, worker, _upstream) = setup(1, Duration::from_secs(60)).await;
    let body = vec![b'x'; 8 << 20];
    for (path, code) in [
        ("/v1/chat/completions", "body_too_large"),
        ("/v1/nothing", "not_found"),
    ] {
        let mut client = RawClient::connect(worker.gateway()).await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        client.write(head.as_bytes()).await;
        client.write(&body).await;
        let answer = client.read_to_end().await;
        assert!(answer.contains(code), "{path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_name_cannot_forge_a_line_of_the_log() {
    let (_cluster, worker, _upstream) = setup(1, Duration::from_secs(60)).await;
    let body = "{\"model\":\"x\\nERROR forged \\u001b[2J\"}";
    let answer = worker.client().post("/v1/completions").body(body).send();
    let answer: serde_json::Value = answer.await.unwrap().json().await.unwrap();
    assert_eq!(answer["error"]["code"], "invalid_model");
    // What is logged is the message: it shows such characters, and has none of them.
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(!message.contains(char::is_control), "{message:?}");
}
