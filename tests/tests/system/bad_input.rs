//! What the gateway answers to bad input: a status, a stable code, what is wrong and the way out.

use forebay_mock::{MockConfig, MockServer};
use forebay_tests::{Cluster, WorkerHandle, lasting_addr, model_at};
use reqwest::Response;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const CHAT: &str = "/v1/chat/completions";

async fn setup() -> (Cluster, WorkerHandle, MockServer) {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    (cluster, worker, upstream)
}

/// Asserts the status, the code and that each of these stands in the message.
async fn refused(answer: Response, status: u16, code: &str, says: &[&str]) -> Value {
    assert_eq!(answer.status(), status);
    let headers = answer.headers().clone();
    assert!(headers.contains_key("x-request-id"), "{headers:?}");
    let body: Value = answer.json().await.unwrap();
    let error = &body["error"];
    assert_eq!(error["code"], code, "{body}");
    let message = error["message"].as_str().unwrap();
    for part in says {
        assert!(message.contains(part), "{part:?} not in {message:?}");
    }
    let retry = headers.contains_key("retry-after");
    let never = headers.get("x-should-retry").is_some_and(|v| v == "false");
    assert!(
        retry != never,
        "either it helps to retry or it does not: {headers:?}"
    );
    error.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_routed() {
    let (_cluster, worker, upstream) = setup().await;
    let client = worker.client();
    let send = async |body: &str| {
        client
            .post(CHAT)
            .body(body.to_owned())
            .send()
            .await
            .unwrap()
    };

    for body in [r#"{"messages":[]}"#, r#"{"model":7}"#, r#"{"model":null}"#] {
        let error = refused(send(body).await, 400, "model_missing", &["`model`"]).await;
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"], "model");
    }
    let says = ["the model `nobody` does not exist", "/v1/models"];
    let error = refused(
        send(r#"{"model":"nobody"}"#).await,
        404,
        "model_not_found",
        &says,
    )
    .await;
    assert_eq!(error["param"], "model");
    for body in ["", "{", "[1]", "\"m\"", "model=m", r#"{"model":"m""#] {
        refused(
            send(body).await,
            400,
            "invalid_json",
            &["not a JSON object"],
        )
        .await;
    }
    assert_eq!(
        upstream.stats().by_model.len(),
        0,
        "nothing of this went upstream"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large() {
    let (_cluster, worker, upstream) = setup().await;
    let client = worker.client();
    let body = format!(r#"{{"model":"m","pad":"{}"}}"#, "x".repeat(2 << 20));
    let says = ["1048576 bytes", "--max-body-bytes"];
    let announced = client.post(CHAT).body(body.clone()).send().await.unwrap();
    refused(announced, 413, "body_too_large", &says).await;
    let pieces = futures_util::stream::iter(
        body.into_bytes()
            .chunks(64 * 1024)
            .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()))
            .collect::<Vec<_>>(),
    );
    let chunked = client
        .post(CHAT)
        .body(reqwest::Body::wrap_stream(pieces))
        .send()
        .await
        .unwrap();
    refused(chunked, 413, "body_too_large", &says).await;
    assert_eq!(upstream.stats().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods_that_are_not_served() {
    let (_cluster, worker, upstream) = setup().await;
    let client = worker.client();
    // An engine's management paths are never reachable.
    for path in [
        "/",
        "/health",
        "/v1",
        "/v1/load_lora_adapter",
        "/sleep",
        "/metrics",
        "/__stats",
        "/v1/chat/completions/..",
        "//v1/models",
    ] {
        let answer = client.get(path).send().await.unwrap();
        refused(answer, 404, "not_found", &["no such path"]).await;
    }
    let answer = client.get(CHAT).send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "POST");
    refused(answer, 405, "method_not_allowed", &["POST"]).await;
    assert_eq!(upstream.stats().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_http() {
    let (_cluster, worker, _upstream) = setup().await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(worker.gateway()).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 400"),
            "{text}"
        );
    }
    assert_eq!(worker.client().status("m").await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn smuggled_lengths_are_refused() {
    let (_cluster, worker, upstream) = setup().await;
    let body = r#"{"model":"m"}"#;
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ncontent-length: 3\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(worker.gateway()).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 400"));
    assert_eq!(upstream.stats().requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_named_and_comes_back_by_itself() {
    let (cluster, worker) = Cluster::with_worker().await;
    // Nobody is there yet, and nobody else is given the port meanwhile.
    let addr = lasting_addr();
    let url = format!("http://{addr}");
    cluster.create_and_wait(model_at("m", &url)).await;
    let client = worker.client();
    let answer = client
        .post(CHAT)
        .body(r#"{"model":"m"}"#)
        .send()
        .await
        .unwrap();
    let says = ["model `m`", &url, "refused"];
    refused(answer, 502, "upstream_connect", &says).await;
    let config = MockConfig {
        listen: addr,
        ..MockConfig::serving("m")
    };
    let _upstream = MockServer::start(config).await.unwrap();
    forebay_tests::eventually("served again", async || {
        client.status("m").await.filter(|status| *status == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_configuration_says_so() {
    let mut cluster = Cluster::start().await;
    cluster.stop_control().await;
    let worker = cluster.worker("w1").await;
    let answer = worker
        .client()
        .post(CHAT)
        .body(r#"{"model":"m"}"#)
        .send()
        .await
        .unwrap();
    refused(
        answer,
        503,
        "not_configured",
        &["waits for the control plane"],
    )
    .await;
    let ready = reqwest::get(format!("http://{}/readyz", worker.admin()))
        .await
        .unwrap();
    assert_eq!(ready.status(), 503);
}
