//! One process of a worker takes over from another: nobody is refused, nothing is cut, and if it does not come about
//! the old one is what it was.

use std::{path::Path, time::Duration};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Client, Ended, Process, RawClient, eventually, model_at};
use tokio::task::JoinSet;

use crate::roles::{ANY, Control, FOREBAY, Worker};

pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) control: Control,
    upstream: MockServer,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
        let any = MockConfig {
            models: Vec::new(),
            ..MockConfig::default()
        };
        let upstream = MockServer::start(any).await.unwrap();
        control.create(model_at("m", &upstream.url())).await;
        Self {
            dir,
            control,
            upstream,
        }
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("w")
    }

    pub(crate) async fn worker(&self, more: &[&str]) -> Worker {
        let worker = Worker::start_with(&self.control.url(), "w", &self.data(), more).await;
        worker.ready().await;
        worker
    }

    async fn known(&self) -> wire::Worker {
        let request = wire::GetWorkerRequest { id: "w".into() };
        let worker = self.control.fleet().get_worker(request).await;
        worker.unwrap().into_inner()
    }
}

/// Asks again and again, each time over a connection of its own or over a kept one, until told to stop.
fn load(client: &Client, fresh: bool, over: &tokio_util::sync::CancellationToken) -> JoinSet<u64> {
    let mut all = JoinSet::new();
    for n in 0..4 {
        let (client, over) = (client.clone(), over.clone());
        all.spawn(async move {
            let mut served = 0;
            while !over.is_cancelled() {
                let (chat, tokens) = match n % 2 {
                    0 => (Chat::Whole, 1),
                    _ => (Chat::Stream, 20),
                };
                let mut asked = client.chat("m", chat, tokens);
                if fresh {
                    asked = asked.header("connection", "close");
                }
                let answer = asked.send().await.unwrap();
                let status = answer.status();
                let text = answer.text().await.unwrap();
                assert_eq!(status, 200, "{text}");
                assert!(chat == Chat::Whole || text.ends_with("data: [DONE]\n\n"));
                served += 1;
            }
            served
        });
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_takes_over_and_nobody_notices() {
    let scene = Scene::new().await;
    let mut worker = scene.worker(&[]).await;
    let client = worker.client();
    let over = tokio_util::sync::CancellationToken::new();
    let mut loads = [
        load(&client, false, &over),
        load(&Client::new(worker.gateway), true, &over),
    ];
    // One that rests between two requests, one whose next request is half there, and one in the middle of a long stream.
    let mut resting = RawClient::connect(worker.gateway).await;
    resting.chat("m", false, 1).await;
    resting.read_until("usage").await;
    let mut half = RawClient::connect(worker.gateway).await;
    half.chat("m", false, 1).await;
    half.read_until("usage").await;
    half.write(b"POST /v1/chat/completions HTTP/1.1\r\nho")
        .await;
    let mut streaming = RawClient::connect(worker.gateway).await;
    streaming.chat("m", true, 300).await;
    streaming.read_until("token1 ").await;

    let first = scene.known().await.instance_id;
    let gateway = worker.gateway;
    for n in 0..3 {
        // What it was told last is what the next one begins with.
        let model = format!("n{n}");
        scene
            .control
            .create(model_at(&model, &scene.upstream.url()))
            .await;
        let next =
            Worker::start_with(&scene.control.url(), "w", &scene.data(), &["--take-over"]).await;
        assert_eq!(next.gateway, gateway);
        let (code, _, err) = std::mem::replace(&mut worker, next).process.end().await;
        assert_eq!(code, Some(0), "{err}");
        assert!(err.contains("handed over"), "{err}");
        let served = worker.client().status(&model).await;
        assert_eq!(served.unwrap(), 200, "{}", worker.process.err());
        if n == 0 {
            // It came to rest in the old process, and is answered by the new one.
            let all = streaming.read_until("\r\n0\r\n\r\n").await;
            assert!(
                all.contains("data: [DONE]") && !all.contains("\"error\""),
                "{all}"
            );
        }
        for kept in [&mut resting, &mut streaming] {
            kept.chat("m", false, 1).await;
            kept.read_until("usage").await;
        }
    }
    let body = r#"{"model":"m","max_tokens":1,"messages":[]}"#;
    let rest = format!("st: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    half.write(rest.as_bytes()).await;
    half.read_until("usage").await;

    over.cancel();
    for load in &mut loads {
        while let Some(served) = load.join_next().await {
            assert!(served.unwrap() > 0);
        }
    }
    eventually("the fleet knows the newest alone", async || {
        let known = scene.known().await;
        (known.gone_time.is_none() && known.instance_id != first).then_some(())
    })
    .await;
    assert_eq!(scene.upstream.stats().in_flight, 0);
}

/// The old one serves on, and follows the control plane again.
async fn is_as_before(scene: &Scene, worker: &Worker, model: &str) {
    scene
        .control
        .create(model_at(model, &scene.upstream.url()))
        .await;
    eventually("it follows the control plane", async || {
        let status = worker.client().status(model).await?;
        (status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_take_over_changes_nothing() {
    let scene = Scene::new().await;
    let worker = scene.worker(&[]).await;

    let dir = scene.data();
    let start = |more: &[&str]| {
        let (control, dir) = (scene.control.url(), dir.to_str().unwrap());
        let args = [
            "worker",
            "--control",
            &control,
            "--worker-id",
            "w",
            "--data-dir",
            dir,
        ];
        Process::start(FOREBAY, &[&args, more].concat(), &[]).end()
    };
    let (code, _, err) = start(&["--listen", ANY, "--admin-listen", ANY]).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("--take-over"), "{err}");
    is_as_before(&scene, &worker, "a").await;

    let elsewhere = [
        "--take-over",
        "--listen",
        "127.0.0.1:1",
        "--admin-listen",
        ANY,
    ];
    let (code, _, err) = start(&elsewhere).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("take over with the same addresses"), "{err}");
    is_as_before(&scene, &worker, "b").await;

    // Somebody asks and goes, says nonsense, or stays silent once it has what it asked for.
    let place = place(&dir);
    for says in [&b"HELO\0\0\0\x011"[..], b"GET / HTTP/1.1\r\n\r\n", b""] {
        let mut asks = tokio::net::UnixStream::connect(&place).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut asks, says)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    is_as_before(&scene, &worker, "c").await;
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
}

/// It waits for a configuration when it is told to stop: the old one is what it was.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_stopped_before_it_is_ready_leaves_the_old_one_serving() {
    let dir = tempfile::tempdir().unwrap();
    let control = forebay_tests::lasting_addr();
    let url = format!("http://{control}");
    let data = dir.path().join("w");
    let worker = Worker::start_with(&url, "w", &data, &[]).await;
    let next = Worker::start_with(&url, "w", &data, &["--take-over"]).await;
    assert_eq!(next.gateway, worker.gateway);
    let (code, _, err) = next.process.terminate().await;
    // Without a code if it had not come to listen to signals.
    assert!(matches!(code, None | Some(1)), "{code:?} {err}");
    let any = MockConfig {
        models: Vec::new(),
        ..MockConfig::default()
    };
    let upstream = MockServer::start(any).await.unwrap();
    let scene = Scene {
        control: Control::start(&control.to_string(), &dir.path().join("control"), &[]).await,
        dir,
        upstream,
    };
    is_as_before(&scene, &worker, "m").await;
}

/// Killed while it warms its pools, again and again: the old one serves what it served, and nothing speaks against that.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_before_it_is_ready_is_no_crash_of_the_worker() {
    let scene = Scene::new().await;
    let worker = scene.worker(&[]).await;
    // Nobody answers there: who waits until it is warm waits.
    let silent = tokio::net::TcpListener::bind(ANY).await.unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let slow = wire::Model {
        pool: Some(wire::Pool {
            warm: Some(1),
            ..wire::Pool::default()
        }),
        ..model_at("slow", &url)
    };
    let revision = scene.control.create(slow).await.revision;
    let serves = async |instance: &str| {
        eventually("it serves the newest revision", async || {
            let known = scene.known().await;
            let here = known.instance_id == instance && known.gone_time.is_none();
            (here && known.applied_revision == revision).then_some(())
        })
        .await;
    };
    let instance = scene.known().await.instance_id;
    for _ in 0..3 {
        serves(&instance).await;
        let heir = ["--take-over"];
        let next = Worker::start_with(&scene.control.url(), "w", &scene.data(), &heir).await;
        next.process.kill().await;
    }
    serves(&instance).await;
    let said = worker.process.err();
    assert!(!said.contains("the process ended"), "{said}");
    let attempts = scene.data().join("worker/w/last-known-good/attempts");
    let attempts = std::fs::read_to_string(attempts).unwrap_or_default();
    assert!(!attempts.contains("crashed 1"), "{attempts}");
    assert_eq!(worker.client().status("m").await.unwrap(), 200);
}

/// The heir ends while the old process still answers: its place is free, and the stream goes on.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_heir_ends_another_one_can_come() {
    let scene = Scene::new().await;
    let worker = scene.worker(&[]).await;
    let client = worker.client();
    let mut stream = JoinSet::new();
    stream.spawn(async move { client.finish("m", Chat::Stream, 1_000).await });
    eventually("the stream runs", async || {
        (scene.upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    let heir = scene.worker(&["--take-over"]).await;
    heir.process.kill().await;
    let (control, data) = (scene.control.url(), scene.data());
    let (listen, admin) = (worker.gateway.to_string(), worker.admin.to_string());
    let data = data.to_str().unwrap();
    let args = [
        "worker",
        "--control",
        &control,
        "--worker-id",
        "w",
        "--data-dir",
        data,
    ];
    let there = ["--take-over", "--listen", &listen, "--admin-listen", &admin];
    let mut third = Process::start(FOREBAY, &[&args[..], &there].concat(), &[]);
    third.printed("gateway   http://").await;
    eventually("it serves", async || {
        let status = Client::new(worker.gateway).status("m").await?;
        (status == 200).then_some(())
    })
    .await;
    assert_eq!(stream.join_all().await, [Ended::Well]);
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(0), "{err}");
}

/// Where the worker of a test is asked.
fn place(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("worker/w/handover.sock")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_has_a_worker_end() {
    let scene = Scene::new().await;
    let worker = scene.worker(&[]).await;
    let client = worker.client();
    let mut stream = JoinSet::new();
    stream.spawn(async move { client.finish("m", Chat::Stream, 200).await });
    eventually("the stream runs", async || {
        (scene.upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    let drained = crate::roles::run(&[
        "fleet",
        "drain",
        "w",
        "--wait",
        "--control",
        &scene.control.url(),
    ])
    .await;
    assert_eq!(drained.0, Some(0), "{}", drained.2);
    assert!(drained.1.contains("gone"), "{}", drained.1);
    assert_eq!(stream.join_all().await, [Ended::Well]);
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(0), "{err}");
    // There is nobody left to tell.
    let again =
        crate::roles::run(&["fleet", "drain", "w", "--control", &scene.control.url()]).await;
    assert_eq!(again.0, Some(1));
    assert!(again.2.contains("not connected"), "{}", again.2);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_the_grace_clients_are_told() {
    let scene = Scene::new().await;
    let worker = scene.worker(&["--grace", "500ms"]).await;
    let mut streaming = RawClient::connect(worker.gateway).await;
    streaming.chat("m", true, 100_000).await;
    streaming.read_until("token1 ").await;
    let mut waiting = RawClient::connect(worker.gateway).await;
    waiting.chat("m", false, 100_000).await;
    eventually("both run", async || {
        (scene.upstream.stats().in_flight == 2).then_some(())
    })
    .await;
    worker.process.signal_end();
    let streamed = streaming.read_to_end().await;
    assert!(streamed.contains(r#""code":"draining""#), "{streamed}");
    assert!(!streamed.contains("[DONE]") && !streamed.ends_with("0\r\n\r\n"));
    let waited = waiting.read_to_end().await;
    assert!(waited.starts_with("HTTP/1.1 503 "), "{waited}");
    assert!(waited.contains(r#""code":"draining""#), "{waited}");
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(0), "{err}");
    eventually("both are cancelled", async || {
        (scene.upstream.stats().in_flight == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_accepts_until_balancers_had_time_to_notice() {
    let scene = Scene::new().await;
    let worker = scene.worker(&["--drain-delay", "2s"]).await;
    worker.process.signal_end();
    let readyz = format!("http://{}/readyz", worker.admin);
    eventually("it is not ready", async || {
        (reqwest::get(&readyz).await.ok()?.status() == 503).then_some(())
    })
    .await;
    let answer = Client::new(worker.gateway)
        .chat("m", Chat::Whole, 1)
        .send()
        .await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close");
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(0), "{err}");
}

/// The oldest process still answers when the third takes over from the second, which has nothing to do itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_rest_in_the_oldest_of_three_processes_comes_to_the_newest() {
    let scene = Scene::new().await;
    let oldest = scene.worker(&[]).await;
    let gateway = oldest.gateway;
    let mut streams = Vec::new();
    for tokens in [700, 1_400] {
        let mut streaming = RawClient::connect(gateway).await;
        streaming.chat("m", true, tokens).await;
        streaming.read_until("token1 ").await;
        streams.push(streaming);
    }
    let mut resting = RawClient::connect(gateway).await;
    resting.chat("m", false, 1).await;
    resting.read_until("usage").await;
    let take_over = async || {
        let heir = ["--take-over"];
        Worker::start_with(&scene.control.url(), "w", &scene.data(), &heir).await
    };
    let second = take_over().await;
    let newest = take_over().await;
    assert_eq!(newest.gateway, gateway);
    for streaming in &mut streams {
        let rest = streaming.read_until("\r\n0\r\n\r\n").await;
        let whole = rest.contains("data: [DONE]") && !rest.contains("\"error\"");
        assert!(whole, "{rest}");
    }
    for (name, process) in [("oldest", oldest.process), ("second", second.process)] {
        let (code, _, err) = process.end().await;
        assert_eq!(code, Some(0), "{name}: {err}");
        assert!(err.contains("handed over"), "{name}: {err}");
    }
    for kept in streams.iter_mut().chain([&mut resting]) {
        kept.chat("m", false, 1).await;
        kept.read_until("usage").await;
    }
}
