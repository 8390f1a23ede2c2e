//! Socket activation: a worker serves on the socket that it is passed, which outlives it. The rest of what a service
//! manager and a worker have to do with each other is in tests/outside/test_systemd.py.

use std::net::TcpListener;

use forebay_mock::{MockConfig, MockServer};
use forebay_tests::{Chat, Client, Process, eventually, model_at};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::roles::{ANY, Control, FOREBAY, Worker};

struct Scene {
    dir: tempfile::TempDir,
    control: Control,
    upstream: MockServer,
    /// What systemd keeps.
    listener: TcpListener,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
        let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
        control.create(model_at("m", &upstream.url())).await;
        let listener = TcpListener::bind(ANY).unwrap();
        Self {
            dir,
            control,
            upstream,
            listener,
        }
    }

    async fn worker(&self, more: &[&str]) -> Worker {
        let (url, data) = (self.control.url(), self.dir.path().join("w"));
        let worker = Worker::start_on(&self.listener, &url, "w", &data, more).await;
        assert_eq!(worker.gateway, self.listener.local_addr().unwrap());
        worker.ready().await;
        worker
    }
}

/// Asks again and again over connections of their own; gives how often, once told to stop.
fn load(client: &Client, over: &CancellationToken) -> JoinSet<u64> {
    let mut all = JoinSet::new();
    for _ in 0..4 {
        let (client, over) = (client.clone(), over.clone());
        all.spawn(async move {
            let mut served = 0;
            while !over.is_cancelled() {
                let asked = client.chat("m", Chat::Whole, 1);
                let answer = asked.header("connection", "close").send().await.unwrap();
                assert_eq!(answer.status(), 200);
                served += 1;
            }
            served
        });
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_worker_restarts_its_clients_wait_in_line() {
    let scene = Scene::new().await;
    let mut worker = scene.worker(&[]).await;
    let over = CancellationToken::new();
    let mut clients = load(&worker.client(), &over);
    for _ in 0..3 {
        let before = scene.upstream.stats().requests;
        eventually("requests are served", async || {
            (scene.upstream.stats().requests > before + 20).then_some(())
        })
        .await;
        let (code, _, err) = worker.process.terminate().await;
        assert_eq!(code, Some(0), "{err}");
        worker = scene.worker(&[]).await;
    }
    over.cancel();
    while let Some(served) = clients.join_next().await {
        assert!(served.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_over_must_be_passed_the_same_socket() {
    let scene = Scene::new().await;
    let worker = scene.worker(&[]).await;
    let next = scene.worker(&["--take-over"]).await;
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(0), "{err}");
    let (url, data) = (scene.control.url(), scene.dir.path().join("w"));
    let other = TcpListener::bind(ANY).unwrap();
    let args = [
        "worker",
        "--control",
        &url,
        "--worker-id",
        "w",
        "--data-dir",
        data.to_str().unwrap(),
        "--take-over",
        "--admin-listen",
        ANY,
    ];
    let (code, _, err) = Process::start_on(("gateway", &other), FOREBAY, &args, &[])
        .end()
        .await;
    assert_eq!(code, Some(1));
    assert!(err.contains("not where that process listens"), "{err}");
    let served = next.client().status("m").await;
    assert_eq!(served.unwrap(), 200);
}
