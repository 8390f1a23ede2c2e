//! Upstreams that break rules: what they say never reaches a client as another, complete answer.

use forebay_proto::wire;
use forebay_tests::{After, Chat, Cluster, RawClient, RawUpstream, WorkerHandle, model_at};

async fn setup(answer: &str, after: After) -> (Cluster, WorkerHandle, RawUpstream) {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = RawUpstream::start(answer, after).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    (cluster, worker, upstream)
}

/// Two who read it differently see two different answers.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_two_lengths_is_refused() {
    let body = "1e\r\n{\"choices\":[],\"id\":\"xxxxxxxx\"}\r\n0\r\n\r\n";
    for head in [
        "content-length: 10\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 500",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}");
        let (_cluster, worker, _upstream) = setup(&answer, After::Keep).await;
        let answer = worker
            .client()
            .chat("m", Chat::Whole, 1)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 502);
        let text = answer.text().await.unwrap();
        assert!(text.contains("both a content-length"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_end_an_answer_and_keep_its_connection() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\
                  trailer: x-t\r\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\nx-t: 1\r\n\r\n";
    let (_cluster, worker, upstream) = setup(answer, After::Keep).await;
    for _ in 0..3 {
        let answer = worker
            .client()
            .chat("m", Chat::Stream, 1)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.text().await.unwrap(), "data: [DONE]\n\n");
    }
    assert_eq!(upstream.connections(), 1);
    let page = worker.metrics().await;
    let well = ["code=\"200\"", "source=\"upstream\""];
    assert_eq!(page.sum("forebay_requests_total", &well), 3.0);
}

/// To an upstream of HTTP/1.0 the client need not know that it is one.
#[tokio::test(flavor = "multi_thread")]
async fn the_version_of_an_answer_is_ours() {
    let answer = "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let (_cluster, worker, _upstream) = setup(answer, After::Close).await;
    let mut client = RawClient::connect(worker.gateway()).await;
    for _ in 0..2 {
        client.chat("m", false, 1).await;
        let answer = client.read_until("{}").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// An error event after half an event would only make that one unreadable.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_cut_is_not_continued() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                  transfer-encoding: chunked\r\n\r\nc\r\ndata: {\"choi\r\n";
    let (_cluster, worker, _upstream) = setup(answer, After::Close).await;
    let mut client = RawClient::connect(worker.gateway()).await;
    client.chat("m", true, 1).await;
    let answer = client.read_to_end().await;
    assert!(answer.contains("data: {\"choi"), "{answer}");
    assert!(
        !answer.contains("error") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

/// The engine behind it is down: told soon, with the cause, and without a storm of connects.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_accepts_and_closes_is_told_as_one_that_cannot_be_reached() {
    let (cluster, worker) = Cluster::with_worker().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut closing = tokio::task::JoinSet::new();
    closing.spawn(async move {
        let mut accepted = 0;
        while let Ok((socket, _)) = listener.accept().await {
            drop(socket);
            accepted += 1;
            assert!(accepted < 200, "a storm of connects");
        }
    });
    let model = wire::Model {
        pool: Some(wire::Pool {
            warm: Some(4),
            ..wire::Pool::default()
        }),
        ..model_at("m", &url)
    };
    cluster.create_and_wait(model).await;
    let answer = worker
        .client()
        .chat("m", Chat::Whole, 1)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 502);
    let text = answer.text().await.unwrap();
    assert!(text.contains("upstream_connect"), "{text}");
    assert!(
        text.contains(&url[7..]) || text.contains("as soon as"),
        "{text}"
    );
    assert!(closing.try_join_next().is_none(), "no storm");
}

/// A head has to fit what is kept to read into.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_7_kib_passes_and_one_of_9_is_told() {
    for (kib, status) in [(7, 200), (9, 502)] {
        let long = "x".repeat(kib * 1_024);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 14\r\nx-long: {long}\r\n\r\n{{\"choices\":[]}}"
        );
        let (_cluster, worker, upstream) = setup(&answer, After::Keep).await;
        let answer = worker.client().chat("m", Chat::Whole, 1).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), status, "{kib} KiB");
        if status == 502 {
            let text = answer.text().await.unwrap();
            assert!(text.contains("upstream_reset"), "{text}");
        }
        assert_eq!(upstream.requests(), 1, "it may have run: not again");
    }
}
