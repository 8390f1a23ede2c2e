//! Who is let in, who waits, and who is told to come again: tenants, priorities, clients that give up, bodies that do
//! not fit, an engine that has enough. The long runs are in `overload` (docs/bench/admission.md).

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Ended, Tenant, WorkerHandle, eventually, model_at, offer};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

async fn mock(interval: u64) -> MockServer {
    MockServer::start(MockConfig {
        models: vec!["m".to_owned()],
        interval: Duration::from_millis(interval),
        ..MockConfig::default()
    })
    .await
    .unwrap()
}

fn model(mock: &MockServer, size: u32, queue: wire::Queue) -> wire::Model {
    wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(size),
            queue: Some(queue),
            ..wire::Pool::default()
        }),
        ..model_at("m", &mock.url())
    }
}

fn queue(max_waiting: u32) -> wire::Queue {
    wire::Queue {
        max_waiting: Some(max_waiting),
        tenant_header: Some("x-tenant".to_owned()),
        priority_header: Some("x-priority".to_owned()),
        ..wire::Queue::default()
    }
}

async fn pool(worker: &WorkerHandle) -> Value {
    worker.document("/pools").await["pools"][0].clone()
}

/// Waits until so many wait.
async fn in_line(worker: &WorkerHandle, waiting: u64) {
    eventually(&format!("{waiting} in line"), async || {
        (pool(worker).await["waiting"] == waiting).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_floods_is_refused_and_nobody_else() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(20).await;
    cluster
        .create_and_wait(model(&upstream, 4, queue(12)))
        .await;
    // 4 slots of 200 ms: 19 a second at the most, and six a share. Low rates, as the machine may be busy.
    let tenant = |name: &str, rate: f64| Tenant {
        name: name.to_owned(),
        rate,
        tokens: 10.0,
        obeys: false,
    };
    let tenants = [tenant("flood", 60.0), tenant("a", 2.0), tenant("b", 2.0)];
    let seen = offer(&worker.client(), "m", &tenants, Duration::from_secs(4), 1).await;
    println!(
        "{:?}",
        seen.iter()
            .map(|(n, s)| (n, s.requests, &s.refused))
            .collect::<Vec<_>>()
    );
    for name in ["a", "b"] {
        let one = &seen[name];
        assert!(one.requests > 2);
        assert!(one.refused.is_empty() && one.broken == 0, "{name}: {one:?}");
        assert_eq!(one.latencies.len() as u64, one.requests, "{name}");
    }
    let flood = &seen["flood"];
    let codes: Vec<&str> = flood.refused.keys().map(String::as_str).collect();
    assert_eq!(codes, ["429 queue_full"]);
    assert_eq!((flood.broken, flood.untold), (0, 0));
    assert!(flood.latencies.len() > 20, "what is left over is lent");
    // Nothing that was refused came to the upstream, and nothing that came was in vain.
    let served: usize = seen.values().map(|one| one.latencies.len()).sum();
    assert_eq!(upstream.stats().completed, served as u64);
    assert!(upstream.stats().peak_in_flight <= 4);
    let page = worker.metrics().await;
    let refused: u64 = flood.refused.values().sum();
    assert_eq!(
        page.sum("forebay_queue_refused_total", &["model=\"m\""]),
        refused as f64
    );
    assert_eq!(
        page.sum("forebay_queue_flows", &["model=\"m\""]),
        0.0,
        "all are gone"
    );
    let seen = pool(&worker).await;
    assert!(seen["drain_per_second"].as_f64().unwrap() > 1.0, "{seen}");
    assert!(
        !worker.metrics().await.text().contains("flood"),
        "no tenant's name is a label"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_urgent_overtake_the_others_in_line() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(20).await;
    cluster
        .create_and_wait(model(&upstream, 1, queue(10)))
        .await;
    let client = worker.client();
    let ask = |priority: &'static str, n: u32| {
        let request = client.chat("m", Chat::Whole, 20);
        async move {
            let answer = request.header("x-priority", priority).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.bytes().await.unwrap();
            (priority, n)
        }
    };
    let mut all = JoinSet::new();
    all.spawn(ask("normal", 0));
    eventually("the slot is taken", async || {
        (upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    for (n, priority) in [(1, "low"), (2, "normal"), (3, "high"), (4, "nonsense")] {
        all.spawn(ask(priority, n));
        in_line(&worker, u64::from(n)).await;
    }
    let mut order = Vec::new();
    while let Some(ended) = all.join_next().await {
        order.push(ended.unwrap());
    }
    let expected = [
        ("normal", 0),
        ("high", 3),
        ("normal", 2),
        ("nonsense", 4),
        ("low", 1),
    ];
    assert_eq!(order, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_before_his_turn_is_not_sent_upstream() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(50).await;
    cluster
        .create_and_wait(model(&upstream, 1, queue(10)))
        .await;
    let client = worker.client();
    let held = TaskTracker::new().spawn({
        let client = client.clone();
        async move { client.finish("m", Chat::Whole, 60).await }
    });
    eventually("the slot is taken", async || {
        (upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    for (header, value) in [
        ("x-stainless-read-timeout", "0.3"),
        ("x-stainless-timeout", "0.2"),
        ("x-envoy-expected-rq-timeout-ms", "250"),
    ] {
        let request = client.chat("m", Chat::Whole, 1).header(header, value);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 503, "{header}");
        assert!(answer.headers().contains_key("retry-after"));
        let millis = answer.headers()["retry-after-ms"].to_str().unwrap();
        assert!(
            (1_000..=120_000).contains(&millis.parse::<u64>().unwrap()),
            "{millis}"
        );
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "saturated");
        assert!(
            body["error"]["message"]
                .as_str()
                .unwrap()
                .contains("the client said")
        );
    }
    // Nonsense is no limit.
    let waits = client
        .chat("m", Chat::Whole, 1)
        .header("x-stainless-read-timeout", "-1");
    let waits = TaskTracker::new().spawn(waits.send());
    assert_eq!(held.await.unwrap(), Ended::Well);
    assert_eq!(waits.await.unwrap().unwrap().status(), 200);
    assert_eq!(upstream.stats().requests, 2);
    let page = worker.metrics().await;
    let left = page.sum(
        "forebay_queue_refused_total",
        &["reason=\"client_deadline\""],
    );
    assert_eq!(left, 3.0);
}

/// Its next byte is a comment: that it waits for an answer for longer than it would for a byte is no reason to refuse it.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_given_comments_does_not_give_up() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(50).await;
    let streaming = wire::Streaming {
        keep_alive: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..wire::Streaming::default()
    };
    cluster
        .create_and_wait(wire::Model {
            streaming: Some(streaming),
            ..model(&upstream, 1, queue(10))
        })
        .await;
    let client = worker.client();
    let held = TaskTracker::new().spawn({
        let client = client.clone();
        async move { client.finish("m", Chat::Whole, 120).await }
    });
    eventually("the slot is taken", async || {
        (upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    let ask = |chat, seconds| {
        let request = client.chat("m", chat, 1);
        request.header("x-stainless-read-timeout", seconds).send()
    };
    // No stream, no comments; and one who would have given up before the first of them.
    assert_eq!(ask(Chat::Whole, "1.5").await.unwrap().status(), 503);
    assert_eq!(ask(Chat::Stream, "0.5").await.unwrap().status(), 503);
    let stream = ask(Chat::Stream, "1.2").await.unwrap();
    assert_eq!(stream.status(), 200);
    let text = stream.text().await.unwrap();
    assert!(
        text.starts_with(": keep-alive") && text.contains("[DONE]"),
        "{text}"
    );
    assert_eq!(held.await.unwrap(), Ended::Well);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_all_requests_together_are_bounded() {
    let mut cluster = Cluster::start().await;
    cluster.hold(64 << 10);
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    let upstream = mock(50).await;
    cluster
        .create_and_wait(model(&upstream, 4, queue(10)))
        .await;
    let client = worker.client();
    let body = |bytes: usize| {
        let text = "x".repeat(bytes);
        format!(
            r#"{{"model":"m","max_tokens":40,"messages":[{{"role":"user","content":"{text}"}}]}}"#
        )
    };
    let post = |body: reqwest::Body| client.post("/v1/chat/completions").body(body).send();
    let chunked = |bytes: usize| {
        let parts = body(bytes).into_bytes();
        let parts: Vec<_> = parts
            .chunks(4_096)
            .map(|part| Ok::<_, std::io::Error>(part.to_vec()))
            .collect();
        reqwest::Body::wrap_stream(futures_util::stream::iter(parts))
    };
    // One that never fits, announced or not.
    for body in [reqwest::Body::from(body(100 << 10)), chunked(100 << 10)] {
        let answer = post(body).await.unwrap();
        assert_eq!(answer.status(), 503);
        assert!(answer.headers().contains_key("retry-after"));
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "overloaded");
    }
    assert_eq!(upstream.stats().requests, 0);
    // One beside another, and again when that is done.
    let first = TaskTracker::new().spawn(post(body(40 << 10).into()));
    eventually("it is with the upstream", async || {
        (upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    assert_eq!(post(chunked(40 << 10)).await.unwrap().status(), 503);
    assert_eq!(post(body(10 << 10).into()).await.unwrap().status(), 200);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(post(chunked(40 << 10)).await.unwrap().status(), 200);
}

/// An engine that takes two at a time behind a pool of eight: fewer are let in, and no connection is closed for it.
#[tokio::test(flavor = "multi_thread")]
async fn less_is_let_in_while_the_engine_refuses() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig {
        models: vec!["m".to_owned()],
        interval: Duration::from_millis(5),
        max_in_flight: Some(2),
        ..MockConfig::default()
    })
    .await
    .unwrap();
    let mut model = model(&upstream, 8, queue(100));
    model.pool.as_mut().unwrap().adaptive = Some(wire::Adaptive {
        min: Some(1),
        ..wire::Adaptive::default()
    });
    let made = cluster.create_and_wait(model).await;
    let resolved = made.resolved_pool.unwrap().adaptive.unwrap();
    assert_eq!(
        (resolved.min, resolved.tolerance_percent),
        (Some(1), Some(200))
    );
    assert_eq!(pool(&worker).await["admission_limit"], 8);
    let mut crowd = JoinSet::new();
    for _ in 0..8 {
        let client = worker.client();
        crowd.spawn(async move {
            loop {
                client.finish("m", Chat::Stream, 10).await;
            }
        });
    }
    eventually("fewer are let in", async || {
        let limit = pool(&worker).await["admission_limit"].as_u64()?;
        (limit <= 3).then_some(())
    })
    .await;
    let page = worker.metrics().await;
    assert!(page.sum("forebay_pool_admission_limit", &["model=\"m\""]) <= 3.0);
    let seen = pool(&worker).await;
    assert_eq!(
        seen["closed"]["shrink"], 0,
        "only admission shrinks: {seen}"
    );
    crowd.shutdown().await;
    // Switched off, the size is the limit again.
    let mut off = cluster.registry();
    let update = wire::UpdateModelRequest {
        model: Some(wire::Model {
            id: "m".to_owned(),
            ..wire::Model::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["pool.adaptive".to_owned()],
        }),
        ..wire::UpdateModelRequest::default()
    };
    let updated = off.update_model(update).await.unwrap().into_inner();
    cluster.rolled_out(updated.revision).await;
    assert_eq!(pool(&worker).await["admission_limit"], 8);
}
