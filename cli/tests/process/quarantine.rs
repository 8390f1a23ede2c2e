//! What ends a worker's process: it starts from what proved good, and does not try again what ended it twice.

use std::{fs, path::Path};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{FakeControl, FakeStream, eventually, model_at, push_of};
use wire::{from_worker::Message as Heard, to_worker::Message as Say};

use crate::roles::{ANY, Control, Worker, run};

/// So long that nothing proves good within a test.
const NEVER: [(&str, &str); 1] = [("FOREBAY_SOAK", "10m")];
const SOON: [(&str, &str); 1] = [("FOREBAY_SOAK", "200ms")];

struct Scene {
    dir: tempfile::TempDir,
    control: FakeControl,
    upstream: MockServer,
}

impl Scene {
    async fn set() -> Self {
        let upstream = MockServer::start(MockConfig {
            models: ["m", "n"].map(str::to_owned).to_vec(),
            ..MockConfig::default()
        });
        Self {
            dir: tempfile::tempdir().unwrap(),
            control: FakeControl::start().await,
            upstream: upstream.await.unwrap(),
        }
    }

    async fn start(&mut self, env: &[(&str, &str)]) -> (Worker, FakeStream, wire::Hello) {
        let worker = Worker::start(&self.control.url(), "w", self.dir.path(), env).await;
        let (stream, hello) = self.control.greet().await;
        (worker, stream, hello)
    }

    fn push(&self, revision: u64, models: &[&str]) -> wire::Push {
        let url = self.upstream.url();
        push_of(
            revision,
            models.iter().map(|id| model_at(id, &url)).collect(),
        )
    }

    fn folder(&self) -> std::path::PathBuf {
        folder(self.dir.path())
    }
}

fn folder(data: &Path) -> std::path::PathBuf {
    data.join("worker/w/last-known-good")
}

/// Its content under another number.
fn again(push: &wire::Push, revision: u64) -> wire::Push {
    wire::Push {
        push_id: revision,
        to: push.to.clone().map(|to| wire::Position { revision, ..to }),
        ..push.clone()
    }
}

async fn takes(stream: &mut FakeStream, push: &wire::Push) {
    stream.say(Say::Push(push.clone())).await;
    let heard = stream.hear().await;
    assert!(
        matches!(&heard, Some(Heard::Ack(ack)) if ack.applied == push.to),
        "{heard:?}"
    );
}

async fn refuses(stream: &mut FakeStream, push: &wire::Push) -> wire::Refusal {
    stream.say(Say::Push(push.clone())).await;
    match stream.hear().await {
        Some(Heard::Nack(mut nack)) if nack.attempted == push.to => nack.refusals.remove(0),
        other => unreachable!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_the_process_twice_is_not_tried_again() {
    let mut scene = Scene::set().await;
    let (good, bad) = (scene.push(1, &["m"]), scene.push(2, &["m", "n"]));
    let (worker, mut stream, _) = scene.start(&SOON).await;
    takes(&mut stream, &good).await;
    let attempts = scene.folder().join("attempts");
    eventually("it proved good", async || {
        (!attempts.exists()).then_some(())
    })
    .await;
    worker.process.terminate().await;

    let (mut worker, mut stream, hello) = scene.start(&NEVER).await;
    assert_eq!(hello.applied, good.to);
    for crashes in 1..=2 {
        takes(&mut stream, &bad).await;
        assert_eq!(worker.client().status("n").await.unwrap(), 200);
        worker.process.kill().await;
        let text = fs::read_to_string(&attempts).unwrap();
        assert!(text.contains("trying fa 2 "), "{text}");
        let hello;
        (worker, stream, hello) = scene.start(&NEVER).await;
        assert_eq!(hello.applied, good.to, "from what proved good");
        let quarantined: Vec<_> = bad
            .to
            .clone()
            .into_iter()
            .filter(|_| crashes == 2)
            .collect();
        assert_eq!(hello.quarantined, quarantined);
        assert_eq!(worker.client().status("m").await.unwrap(), 200);
        assert_eq!(worker.client().status("n").await.unwrap(), 404);
    }
    for push in [bad.clone(), again(&bad, 3)] {
        let refusal = refuses(&mut stream, &push).await;
        assert_eq!(refusal.reason, "QUARANTINED");
        assert!(
            refusal.message.contains("last-known-good/attempts"),
            "{refusal:?}"
        );
        assert_eq!(worker.client().status("n").await.unwrap(), 404);
    }
    let page = worker.page("/metrics").await;
    assert!(page.contains("forebay_config_quarantined 1\n"), "{page}");
    assert!(
        page.contains("forebay_config_rejected_total{reason=\"QUARANTINED\"} 2"),
        "{page}"
    );
    // Another content is free, and so is this one when somebody says so.
    takes(&mut stream, &scene.push(4, &["n"])).await;
    worker.process.terminate().await;
    fs::remove_file(&attempts).unwrap();
    let (worker, mut stream, hello) = scene.start(&NEVER).await;
    assert_eq!(hello.quarantined, []);
    takes(&mut stream, &again(&bad, 5)).await;
    assert_eq!(worker.client().status("n").await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_in_good_order_is_no_crash_and_loses_nothing() {
    let mut scene = Scene::set().await;
    let (mut worker, mut stream, _) = scene.start(&NEVER).await;
    for revision in 1..=4 {
        let push = scene.push(revision, &["m"]);
        takes(&mut stream, &push).await;
        // Once more without a push: it is on trial, and that is no crash either.
        for _ in 0..2 {
            let (code, _, err) = worker.process.terminate().await;
            assert_eq!(code, Some(0), "{err}");
            let hello;
            (worker, stream, hello) = scene.start(&NEVER).await;
            assert_eq!(
                (hello.applied, hello.quarantined),
                (push.to.clone(), vec![])
            );
        }
    }
    let (_, _, err) = worker.process.terminate().await;
    assert!(!err.contains("the process ended"), "{err}");
}

/// The control plane goes away, however often: that ends no process.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_stream_is_no_crash() {
    let mut scene = Scene::set().await;
    let (worker, mut stream, _) = scene.start(&NEVER).await;
    let push = scene.push(1, &["m"]);
    takes(&mut stream, &push).await;
    for _ in 0..3 {
        stream.cut().await;
        let hello;
        (stream, hello) = scene.control.greet().await;
        assert_eq!(
            (hello.applied, hello.quarantined),
            (push.to.clone(), vec![])
        );
    }
    assert_eq!(worker.client().status("m").await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_says_who_has_it_in_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
    let (url, data) = (control.url(), dir.path().join("w"));
    control.create(model_at("m", "http://127.0.0.1:1")).await;
    let mut worker = Worker::start(&url, "w", &data, &NEVER).await;
    let wait = ["fleet", "rollout", "--wait", "--control", &url];
    for _ in 0..2 {
        worker.ready().await;
        assert_eq!(run(&wait).await.0, Some(0));
        worker.process.kill().await;
        worker = Worker::start(&url, "w", &data, &NEVER).await;
    }
    let refused = eventually("the worker says so", async || {
        let id = "w".to_owned();
        let mut fleet = control.fleet();
        let known = fleet.get_worker(wire::GetWorkerRequest { id }).await;
        let known = known.ok()?.into_inner();
        (known.state() == wire::WorkerState::Refused).then_some(known)
    })
    .await;
    assert_eq!(refused.refusals[0].reason, "QUARANTINED");
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(3));
    assert!(
        out.contains("QUARANTINED") && err.contains("1 workers refused"),
        "{out}{err}"
    );
    control.create(model_at("n", "http://127.0.0.1:1")).await;
    worker.ready().await;
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(0), "{out}{err}");
}
