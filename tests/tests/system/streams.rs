//! Streams: what is read of them in passing, how they end, and what a model's configuration adds.

use std::time::Duration;

use bytes::Bytes;
use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{
    After, Chat, Cluster, Ended, RawClient, RawUpstream, Scrape, WorkerHandle, eventually, model_at,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use wire::{EndpointProtocol, StreamUsage};

const MINUTE: Duration = Duration::from_secs(60);

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn streaming(url: &str, usage: StreamUsage, keep_alive: Option<i64>) -> wire::Model {
    wire::Model {
        streaming: Some(wire::Streaming {
            usage: usage.into(),
            keep_alive: keep_alive.and_then(seconds),
        }),
        ..model_at("m", url)
    }
}

async fn setup(
    config: MockConfig,
    usage: StreamUsage,
    keep_alive: Option<i64>,
) -> (Cluster, WorkerHandle, MockServer) {
    let (cluster, worker) = Cluster::with_worker().await;
    let mock = MockServer::start(config).await.unwrap();
    cluster
        .create_and_wait(streaming(&mock.url(), usage, keep_alive))
        .await;
    (cluster, worker, mock)
}

async fn raw(answer: &str) -> (Cluster, WorkerHandle, RawUpstream) {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = RawUpstream::start(answer, After::Close).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    (cluster, worker, upstream)
}

/// Requests are counted when their bodies are dropped, a moment after the client has all.
async fn counted(worker: &WorkerHandle, name: &str, labels: &[&str], wanted: f64) -> Scrape {
    eventually(&format!("{name} {labels:?} {wanted}"), async || {
        let page = worker.metrics().await;
        (page.sum(name, labels) == wanted).then_some(page)
    })
    .await
}

async fn text_of(worker: &WorkerHandle, body: serde_json::Value) -> String {
    let answer = worker.client().post("/v1/chat/completions").json(&body);
    answer.send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_reasons_are_read_in_passing() {
    let (_cluster, worker, _mock) = setup(MockConfig::serving("m"), StreamUsage::Pass, None).await;
    let ask = |stream: bool, usage: bool| {
        json!({"model": "m", "stream": stream, "max_tokens": 5, "messages": [],
            "stream_options": {"include_usage": usage}})
    };
    assert!(
        text_of(&worker, ask(false, false))
            .await
            .contains("\"usage\"")
    );
    assert!(
        text_of(&worker, ask(true, true))
            .await
            .contains("\"usage\"")
    );
    assert!(
        !text_of(&worker, ask(true, false))
            .await
            .contains("\"usage\"")
    );
    let page = counted(&worker, "forebay_streams_total", &["complete"], 2.0).await;
    let tokens = |kind: &str| page.sum("forebay_tokens_total", &[kind]);
    assert_eq!(tokens("\"prompt\""), 14.0);
    assert_eq!(tokens("\"completion\""), 10.0);
    assert_eq!(tokens("\"counted\""), 6.0, "the opening one is one, too");
    assert_eq!(page.sum("forebay_finish_reasons_total", &["\"stop\""]), 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_an_error_is_no_success_and_passes_as_it_is() {
    let (_cluster, worker, mock) = setup(MockConfig::serving("m"), StreamUsage::Pass, None).await;
    mock.set_faults(Faults {
        error_event_after: Some(3),
        ..Faults::default()
    });
    let text = worker.client().chat("m", Chat::Stream, 9).send().await;
    let text = text.unwrap().text().await.unwrap();
    assert!(text.contains("EngineCore died"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let labels = ["code=\"502\"", "source=\"upstream\""];
    let page = counted(&worker, "forebay_requests_total", &labels, 1.0).await;
    let ended = page.sum("forebay_streams_total", &["error_event"]);
    assert_eq!(ended, 1.0);
    assert_eq!(mock.stats().open, 1, "its connection is as good as before");
}

/// Without a length or chunks the end of the connection is all there is: it says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_connection_is_not_the_end_of_an_answer() {
    let sse = "content-type: text/event-stream\r\n\r\n";
    let json = "content-type: application/json\r\n\r\n";
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
    let last = event.replace("null", "\"stop\"");
    for (head, body, whole) in [
        (sse, event.to_owned(), false),
        (sse, format!("{event}data: [DO"), false),
        (sse, format!("{event}data: [DONE]\n\n"), true),
        (sse, last, true),
        (json, "{\"choices\":[{}".to_owned(), false),
        (json, "{\"choices\":[{}]}".to_owned(), true),
    ] {
        let (_cluster, worker, _upstream) = raw(&format!("HTTP/1.1 200 OK\r\n{head}{body}")).await;
        let mut client = RawClient::connect(worker.gateway()).await;
        client.chat("m", head == sse, 1).await;
        let text = match whole {
            true => client.read_until("\r\n0\r\n\r\n").await,
            false => client.read_to_end().await,
        };
        assert_eq!(text.ends_with("0\r\n\r\n"), whole, "{text}");
        let between = head == sse && body.ends_with("\n\n") && !whole;
        assert_eq!(text.contains("upstream_reset"), between, "{text}");
        let code = if whole { "200" } else { "502" };
        let labels = [&*format!("code=\"{code}\""), "source=\"upstream\""];
        counted(&worker, "forebay_requests_total", &labels, 1.0).await;
    }
}

/// Its framing proves it whole; that it did not say so is noted.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_end_without_an_end_passes_and_is_counted() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                  9\r\ndata: x\n\n\r\n0\r\n\r\n";
    let (_cluster, worker, _upstream) = raw(answer).await;
    let answer = worker.client().chat("m", Chat::Stream, 1).send().await;
    let answer = answer.unwrap();
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    assert_eq!(answer.text().await.unwrap(), "data: x\n\n");
    counted(&worker, "forebay_streams_total", &["unterminated"], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_an_end_is_cut() {
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(0x10_0000));
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{}",
        chunk.repeat(3)
    );
    let (_cluster, worker, _upstream) = raw(&answer).await;
    let mut client = RawClient::connect(worker.gateway()).await;
    client.chat("m", true, 1).await;
    let text = client.read_to_end().await;
    assert!(text.len() < 0x11_0000, "{}", text.len());
    counted(&worker, "forebay_streams_total", &["cut"], 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_was_asked_for_by_us_is_not_for_the_client() {
    let (_cluster, worker, _mock) =
        setup(MockConfig::serving("m"), StreamUsage::Inject, None).await;
    let mut body = json!({"model": "m", "stream": true, "max_tokens": 5, "messages": []});
    let text = text_of(&worker, body.clone()).await;
    assert!(!text.contains("usage"), "{text}");
    assert!(text.contains("token4"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let page = counted(&worker, "forebay_tokens_total", &["\"prompt\""], 7.0).await;
    assert_eq!(page.sum("forebay_tokens_total", &["\"completion\""]), 5.0);
    assert_eq!(page.sum("forebay_tokens_total", &["\"counted\""]), 0.0);
    // Who asks gets it.
    body["stream_options"] = json!({"include_usage": true});
    let text = text_of(&worker, body.clone()).await;
    assert!(text.contains("\"usage\""), "{text}");
    let body = json!({"model": "m", "max_tokens": 5, "messages": []});
    assert!(text_of(&worker, body).await.contains("\"usage\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_keep_a_client_while_it_waits() {
    let config = MockConfig {
        latency: Duration::from_millis(2_500),
        ..MockConfig::serving("m")
    };
    let (_cluster, worker, mock) = setup(config, StreamUsage::Pass, Some(1)).await;
    let client = worker.client();
    let answer = client.chat("m", Chat::Stream, 3).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key("x-request-id"));
    let text = answer.text().await.unwrap();
    assert!(
        text.starts_with(": keep-alive\n\n: keep-alive\n\ndata: "),
        "{text}"
    );
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    // A whole answer has nothing to be put into.
    assert_eq!(client.finish("m", Chat::Whole, 1).await, Ended::Well);

    // What is known in time has its own status; later it is told in the stream.
    let (failed, comments) = (["code=\"503\"", "source=\"upstream\""], ": keep-alive\n\n");
    mock.set_faults(Faults {
        status: Some(503),
        status_for: 1,
        ..Faults::default()
    });
    let mut client = RawClient::connect(worker.gateway()).await;
    client.chat("m", true, 1).await;
    let text = client.read_to_end().await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains(comments), "{text}");
    assert!(
        text.contains("data: {\"error\":{\"code\":503,\"message\":\"as asked\""),
        "{text}"
    );
    assert!(!text.ends_with("0\r\n\r\n"), "no clean end: {text}");
    counted(&worker, "forebay_requests_total", &failed, 1.0).await;
    mock.set_faults(Faults {
        reset_before_response: 5,
        ..Faults::default()
    });
    let refused = worker.client().chat("m", Chat::Stream, 1).send().await;
    assert_eq!(refused.unwrap().status(), 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_fill_the_silence_between_events() {
    let config = MockConfig {
        interval: Duration::from_millis(1_500),
        ..MockConfig::serving("m")
    };
    let (_cluster, worker, _mock) = setup(config, StreamUsage::Inject, Some(1)).await;
    let text = worker.client().chat("m", Chat::Stream, 2).send().await;
    let text = text.unwrap().text().await.unwrap();
    let first = text.find("token0").unwrap();
    let comment = text.find(": keep-alive\n\n").unwrap();
    let second = text.find("token1").unwrap();
    assert!(first < comment && comment < second, "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

/// A client that does not read is hung up on: the upstream is cancelled, and its own connection is gone.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_hung_up_on() {
    let config = MockConfig {
        interval: Duration::ZERO,
        ..MockConfig::serving("m")
    };
    let (cluster, worker, mock) = setup(config, StreamUsage::Pass, None).await;
    let impatient = wire::Model {
        timeouts: Some(wire::Timeouts {
            idle: seconds(1),
            ..wire::Timeouts::default()
        }),
        ..model_at("m", &mock.url())
    };
    super::transports::update(&cluster, impatient).await;
    let mut client = RawClient::connect(worker.gateway()).await;
    client.chat("m", true, 10_000_000).await;
    eventually("the upstream is told", async || {
        (mock.stats().cancelled == 1).then_some(())
    })
    .await;
    let text = client.read_to_end().await;
    assert!(!text.ends_with("0\r\n\r\n"));
    counted(&worker, "forebay_streams_total", &["not_read"], 1.0).await;

    // Over HTTP/2 it is the stream that goes, and its neighbour stays.
    let (sender, _driver) = framed(&worker).await;
    let mut unread = ask(&sender, "m", 10_000_000).await;
    eventually("the upstream is told", async || {
        (mock.stats().cancelled == 2).then_some(())
    })
    .await;
    let reset = async {
        while let Some(data) = unread.data().await {
            if let Err(error) = data {
                return error.is_reset();
            }
        }
        false
    };
    assert!(timeout(MINUTE, reset).await.unwrap(), "it was reset");
    let mut next = ask(&sender, "m", 3).await;
    let mut text = Vec::new();
    while let Some(data) = next.data().await {
        text.extend_from_slice(&data.unwrap());
    }
    assert!(text.ends_with(b"data: [DONE]\n\n"));
}

/// Nor is one waited for that has no room for the comments: what it asked for goes on only while it reads.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_comments_is_hung_up_on() {
    let config = MockConfig {
        latency: Duration::from_secs(600),
        ..MockConfig::serving("m")
    };
    let (cluster, worker, mock) = setup(config, StreamUsage::Pass, Some(1)).await;
    let impatient = wire::Model {
        timeouts: Some(wire::Timeouts {
            idle: seconds(1),
            ..wire::Timeouts::default()
        }),
        ..streaming(&mock.url(), StreamUsage::Pass, Some(1))
    };
    super::transports::update(&cluster, impatient).await;
    let socket = tokio::net::TcpStream::connect(worker.gateway())
        .await
        .unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (sender, connection) = builder.handshake(socket).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let mut unread = ask(&sender, "m", 5).await;
    let data = timeout(MINUTE, unread.data()).await;
    let error = data.unwrap().unwrap().unwrap_err();
    assert!(error.is_reset(), "{error}");
    eventually("the upstream is told", async || {
        (mock.stats().cancelled == 1).then_some(())
    })
    .await;
    counted(&worker, "forebay_streams_total", &["not_read"], 1.0).await;
}

/// One that reads slowly is not taken for one that does not.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_is_served() {
    let config = MockConfig {
        interval: Duration::ZERO,
        ..MockConfig::serving("m")
    };
    let (cluster, worker, mock) = setup(config, StreamUsage::Pass, None).await;
    let impatient = wire::Model {
        timeouts: Some(wire::Timeouts {
            idle: seconds(2),
            ..wire::Timeouts::default()
        }),
        ..model_at("m", &mock.url())
    };
    super::transports::update(&cluster, impatient).await;
    let socket = TcpSocket::new_v4().unwrap();
    // A segment on the loopback interface is 64 KiB; the window opens by that or by half of this.
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut socket = socket.connect(worker.gateway()).await.unwrap();
    let body = r#"{"model":"m","stream":true,"max_tokens":10000000,"messages":[]}"#;
    let length = body.len();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all((head + body).as_bytes()).await.unwrap();
    let mut some = vec![0; 8 << 10];
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        socket.read_exact(&mut some).await.unwrap();
        sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(mock.stats().cancelled, 0);
}

type Sender = h2::client::SendRequest<Bytes>;

async fn framed(worker: &WorkerHandle) -> (Sender, JoinSet<()>) {
    let socket = tokio::net::TcpStream::connect(worker.gateway())
        .await
        .unwrap();
    // A stream that is not read must not take the room of the others, which is the client's own doing.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(16 << 20);
    let (sender, connection) = builder.handshake(socket).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    (sender, driver)
}

async fn ask(sender: &Sender, model: &str, tokens: u32) -> h2::RecvStream {
    let body = json!({"model": model, "stream": true, "max_tokens": tokens, "messages": []});
    let request = http::Request::post("http://x/v1/chat/completions");
    let (answer, mut stream) = sender
        .clone()
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    stream
        .send_data(Bytes::from(body.to_string()), true)
        .unwrap();
    answer.await.unwrap().into_body()
}

/// Over HTTP/2 upstream: tens of thousands of tiny frames that nobody reads, on several streams of one connection,
/// and one that is read beside them.
#[tokio::test(flavor = "multi_thread")]
async fn unread_frames_end_no_neighbour() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(flood(listener));
    let (cluster, worker) = Cluster::with_worker().await;
    let model = super::transports::model(&url, EndpointProtocol::Http2, None);
    cluster.create_and_wait(model).await;
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut client = RawClient::connect(worker.gateway()).await;
        client.chat("m", true, 30_000).await;
        unread.push(client);
    }
    sleep(Duration::from_secs(1)).await;
    for _ in 0..5 {
        let ended = worker.client().finish("m", Chat::Stream, 50).await;
        assert_eq!(ended, Ended::Well);
    }
    let page = worker.metrics().await;
    let opened = page.sum("forebay_pool_connections_opened_total", &[]);
    assert_eq!(opened, 1.0, "all on one connection, and it lives");
    assert_eq!(page.sum("forebay_streams_total", &["cut"]), 0.0);
    drop(unread);
}

/// Sends as many events of 30 bytes as tokens were asked for, each in a frame of its own.
async fn flood(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let mut streams = JoinSet::new();
            while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                streams.spawn(async move {
                    let mut body = Vec::new();
                    while let Some(Ok(data)) = request.body_mut().data().await {
                        body.extend_from_slice(&data);
                    }
                    let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    let head =
                        http::Response::builder().header("content-type", "text/event-stream");
                    let mut stream = respond
                        .send_response(head.body(()).unwrap(), false)
                        .unwrap();
                    for _ in 0..asked["max_tokens"].as_u64().unwrap() {
                        if !send(
                            &mut stream,
                            Bytes::from_static(b"data: {\"choices\":[{}],\"a\":1}\n\n"),
                        )
                        .await
                        {
                            return;
                        }
                    }
                    let done = Bytes::from_static(b"data: [DONE]\n\n");
                    drop(stream.send_data(done, true));
                });
            }
        });
    }
}

async fn send(stream: &mut h2::SendStream<Bytes>, data: Bytes) -> bool {
    stream.reserve_capacity(data.len());
    while stream.capacity() < data.len() {
        match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            _ => return false,
        }
    }
    stream.send_data(data, false).is_ok()
}
