//! The stream between workers and control plane: deltas, chunks, and a control plane that does not keep to them.

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::{Parts, limits, wire};
use forebay_tests::{
    Cluster, FakeControl, FakeStream, PlayedFleet, Stalled, WorkerHandle, eventually, model_at,
    push_of,
};
use prost::Message as _;
use reqwest::StatusCode;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use wire::{from_worker::Message as Heard, to_worker::Message as Say};

/// Longer than two pushes keep apart.
const LONE: Duration = Duration::from_millis(60);

fn small(id: &str, url: &str) -> wire::Model {
    let pool = wire::Pool {
        max_concurrent: Some(1),
        ..wire::Pool::default()
    };
    wire::Model {
        pool: Some(pool),
        ..model_at(id, url)
    }
}

/// Registers so many models, and gives the revision.
async fn register(cluster: &Cluster, models: usize) -> u64 {
    let mut writing = JoinSet::new();
    for turn in 0..64 {
        let mut registry = cluster.registry();
        writing.spawn(async move {
            let mut newest = 0;
            for n in (turn..models).step_by(64) {
                let model = Some(small(&format!("model-{n:05}"), "http://10.0.0.1:8000"));
                let request = wire::CreateModelRequest {
                    model,
                    ..Default::default()
                };
                let made = registry.create_model(request).await.unwrap().into_inner();
                newest = newest.max(made.revision);
            }
            newest
        });
    }
    writing.join_all().await.into_iter().max().unwrap()
}

/// Changes a model, and gives the revision.
async fn change(cluster: &Cluster, total: i64) -> u64 {
    let timeouts = wire::Timeouts {
        total: Some(prost_types::Duration {
            seconds: total,
            nanos: 0,
        }),
        ..wire::Timeouts::default()
    };
    let request = wire::UpdateModelRequest {
        model: Some(wire::Model {
            timeouts: Some(timeouts),
            ..small("model-00007", "http://10.0.0.1:8000")
        }),
        ..Default::default()
    };
    let made = cluster.registry().update_model(request).await.unwrap();
    made.into_inner().revision
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_thousand_models_one_change_takes_less_than_two_kib() {
    let cluster = Cluster::start().await;
    let worker = cluster.worker("w1").await;
    let mut revision = register(&cluster, 2_000).await;
    cluster.rolled_out(revision).await;
    let mut fleet = PlayedFleet::new(&cluster.url(), 5);
    fleet.connect(revision).await;
    let first = fleet.pushed();
    assert_eq!((first.pushes, first.deltas), (5, 0));
    assert!(first.most > 8 * limits::CHUNK_BYTES, "in chunks: {first:?}");

    for total in 100..104 {
        sleep(LONE).await;
        fleet.expect(revision + 1);
        revision = change(&cluster, total).await;
        fleet.all_hold().await;
        let pushed = fleet.pushed();
        assert_eq!((pushed.pushes, pushed.deltas), (5, 5));
        assert!(pushed.most < 2_048, "{pushed:?}");
    }
    // A real worker splices them, and what comes out is what was registered.
    cluster.rolled_out(revision).await;
    let page = worker.metrics().await;
    assert_eq!(page.sum("forebay_config_resyncs_total", &[]), 0.0);
    assert_eq!(page.sum("forebay_config_rejected_total", &[]), 0.0);
    let page = cluster.metrics().await;
    let kind = |kind| page.sum("forebay_control_pushes_total", &[kind]);
    assert!(kind("kind=\"delta\"") >= 24.0, "{}", page.text());

    // It comes back after a pause, and is not too far behind.
    worker.stop().await;
    let whole = kind("kind=\"whole\"");
    revision = change(&cluster, 200).await;
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    cluster.rolled_out(revision).await;
    let page = cluster.metrics().await;
    let wholes = page.sum("forebay_control_pushes_total", &["kind=\"whole\""]);
    assert_eq!(wholes, whole, "from its last known good, by a delta");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_stalled_workers_do_not_delay_a_healthy_one() {
    const WRITES: i64 = 20;
    const STALLED: u64 = 100;
    let cluster = Cluster::start().await;
    // More than the window of a stream that nobody reads.
    let mut revision = register(&cluster, 2_000).await;
    let stalled = Stalled::open(&cluster.url(), STALLED as usize).await;
    let mut fleet = PlayedFleet::new(&cluster.url(), 1);
    fleet.connect(revision).await;
    let first = fleet.pushed();
    assert!(first.most > 128 << 10, "larger than any window: {first:?}");
    let mut worst = Duration::ZERO;
    for total in 100..100 + WRITES {
        sleep(LONE).await;
        fleet.expect(revision + 1);
        revision = change(&cluster, total).await;
        let answered = Instant::now();
        worst = worst.max(fleet.all_hold().await.saturating_duration_since(answered));
    }
    assert!(worst < Duration::from_millis(500), "{worst:?}");
    assert_eq!(fleet.lost(), 0);
    let healthy = fleet.pushed();
    assert_eq!(
        (healthy.pushes, healthy.deltas),
        (WRITES as u64, WRITES as u64)
    );
    // Each stalled one has its first push still, and nothing was queued behind it.
    let page = cluster.metrics().await;
    let kind = |kind| page.sum("forebay_control_pushes_total", &[kind]) as u64;
    assert_eq!(kind("kind=\"whole\""), STALLED + 1);
    assert_eq!(kind("kind=\"delta\""), WRITES as u64);
    let mut fleet = cluster.fleet();
    let rollout = fleet.get_rollout(wire::GetRolloutRequest::default());
    let rollout = rollout.await.unwrap().into_inner();
    assert_eq!((rollout.applied, u64::from(rollout.pending)), (1, STALLED));
    drop(stalled);
}

/// Streams end, workers come back, and nothing is pushed again.
#[tokio::test(flavor = "multi_thread")]
async fn streams_are_renewed_at_their_age() {
    let cluster = Cluster::with_stream_age(Some(Duration::from_millis(600))).await;
    let revision = register(&cluster, 1).await;
    let mut fleet = PlayedFleet::new(&cluster.url(), 3);
    fleet.connect(revision).await;
    eventually("streams ended", async || (fleet.lost() >= 9).then_some(())).await;
    assert_eq!(fleet.pushed().pushes, 3, "the first of each, no more");
}

/// A fake control plane, a worker that runs revision 1 of it, and an upstream that it serves.
struct Scene {
    _cluster: Cluster,
    control: FakeControl,
    worker: WorkerHandle,
    upstream: MockServer,
    stream: FakeStream,
}

impl Scene {
    async fn set() -> Self {
        let cluster = Cluster::start().await;
        let mut control = FakeControl::start().await;
        let worker = cluster.worker_of("w1", &control.url()).await;
        let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
        let (mut stream, applied) = control.accept().await;
        assert_eq!(applied, None);
        let first = push_of(1, vec![model_at("m", &upstream.url())]);
        stream.say(Say::Push(first.clone())).await;
        assert!(matches!(stream.hear().await, Some(Heard::Ack(ack)) if ack.applied == first.to));
        let scene = Self {
            _cluster: cluster,
            control,
            worker,
            upstream,
            stream,
        };
        scene.serves("m").await;
        scene
    }

    fn first(&self) -> wire::Push {
        push_of(1, vec![model_at("m", &self.upstream.url())])
    }

    /// Many models, so that it takes more than one chunk.
    fn second(&self) -> wire::Push {
        let url = self.upstream.url();
        let more = (0..500).map(|n| small(&format!("model-{n:05}"), &url));
        push_of(2, more.chain([model_at("m", &url)]).collect())
    }

    fn announced(&self) -> (Say, Vec<u8>) {
        let push = self.second();
        let (body, chunked_bytes) = (push.config.to_vec(), push.config.len() as u64);
        let announced = wire::Push {
            config: Vec::new().into(),
            chunked_bytes,
            ..push
        };
        (Say::Push(announced), body)
    }

    fn delta(&self) -> wire::Delta {
        let (first, second) = (self.first(), self.second());
        let old = Parts::split(&first.config).unwrap();
        let new = Parts::split(&second.config).unwrap();
        let ids = old.differences(&new);
        let change = new.change(ids.iter().map(String::as_str));
        wire::Delta {
            push_id: 2,
            from: first.to,
            to: second.to,
            change: change.encode_to_vec().into(),
            ..wire::Delta::default()
        }
    }

    async fn serves(&self, model: &str) {
        let status = self.worker.client().status(model).await;
        assert_eq!(status, Some(StatusCode::OK));
    }

    /// The worker comes back with what it held; then it takes what is right.
    async fn comes_back(&mut self) {
        let (stream, applied) = self.control.accept().await;
        assert_eq!(applied, self.first().to, "nothing of it is left");
        self.stream = stream;
        self.serves("m").await;
        self.takes_the_second().await;
    }

    async fn takes_the_second(&mut self) {
        let (announced, body) = self.announced();
        self.stream.say(announced).await;
        self.stream.say_chunks(2, &body).await;
        let second = self.second();
        let heard = self.stream.hear().await;
        assert!(
            matches!(&heard, Some(Heard::Ack(ack)) if ack.applied == second.to),
            "{heard:?}"
        );
        self.serves("m").await;
        let page = self.worker.metrics().await;
        assert_eq!(page.sum("forebay_config_rejected_total", &[]), 0.0);
    }

    async fn resyncs(&mut self, delta: wire::Delta) {
        let body = delta.change.clone();
        let announced = wire::Delta {
            change: Vec::new().into(),
            chunked_bytes: body.len() as u64,
            ..delta
        };
        self.stream.say(Say::Delta(announced)).await;
        self.stream.say_chunks(2, &body).await;
        match self.stream.hear().await {
            Some(Heard::Resync(resync)) => assert_eq!(resync.applied, self.first().to),
            other => unreachable!("{other:?}"),
        }
        self.serves("m").await;
        let page = self.worker.metrics().await;
        assert_eq!(page.sum("forebay_config_resyncs_total", &[]), 1.0);
        self.takes_the_second().await;
    }
}

/// Not only with the next sign of life, some seconds from now: the control plane may judge a rollout by then.
#[tokio::test(flavor = "multi_thread")]
async fn how_requests_went_is_said_as_soon_as_the_worker_is_welcome() {
    let mut scene = Scene::set().await;
    scene.stream.cut().await;
    let (stream, _) = scene.control.accept().await;
    scene.stream = stream;
    let (announced, body) = scene.announced();
    scene.stream.say(announced).await;
    scene.stream.say_chunks(2, &body).await;
    match scene.stream.hear_any().await {
        Some(Heard::Heartbeat(beat)) => assert!(beat.health.is_some(), "{beat:?}"),
        other => unreachable!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_cut_leaves_nothing() {
    let mut scene = Scene::set().await;
    let (announced, body) = scene.announced();
    scene.stream.say(announced).await;
    let first = wire::Chunk {
        push_id: 2,
        data: body[..limits::CHUNK_BYTES].to_vec().into(),
        ..wire::Chunk::default()
    };
    scene.stream.say(Say::Chunk(first)).await;
    scene.stream.cut().await;
    scene.comes_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_out_of_order_or_too_many_bytes_end_the_stream_and_nothing_else() {
    let mut scene = Scene::set().await;
    let (announced, body) = scene.announced();
    let chunk = |index, data: &[u8]| {
        Say::Chunk(wire::Chunk {
            push_id: 2,
            index,
            last: false,
            data: data.to_vec().into(),
        })
    };
    scene.stream.say(announced.clone()).await;
    scene.stream.say(chunk(1, &body[..9])).await;
    assert_eq!(scene.stream.hear().await, None);

    let (stream, applied) = scene.control.accept().await;
    assert_eq!(applied, scene.first().to);
    scene.stream = stream;
    scene.serves("m").await;
    scene.stream.say(announced).await;
    scene.stream.say(chunk(0, &body)).await;
    scene.stream.say(chunk(1, b"one more")).await;
    assert_eq!(scene.stream.hear().await, None);
    scene.comes_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_from_another_configuration_is_not_taken() {
    let mut scene = Scene::set().await;
    let delta = wire::Delta {
        from: scene.second().to,
        ..scene.delta()
    };
    scene.resyncs(delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_with_another_result_is_not_taken() {
    let mut scene = Scene::set().await;
    let mut delta = scene.delta();
    let to = delta.to.as_mut().unwrap();
    to.digest = vec![7; 32].into();
    scene.resyncs(delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_is_no_failure_and_touches_no_pool() {
    let mut scene = Scene::set().await;
    let opened = scene.upstream.stats().opened;
    for _ in 0..5 {
        let reason = wire::goodbye::Reason::Age.into();
        scene
            .stream
            .say(Say::Goodbye(wire::Goodbye { reason }))
            .await;
        let told = Instant::now();
        let (stream, applied) = scene.control.accept().await;
        assert!(
            told.elapsed() < Duration::from_secs(1),
            "{:?}",
            told.elapsed()
        );
        assert_eq!(applied, scene.first().to);
        scene.stream = stream;
    }
    scene.serves("m").await;
    assert_eq!(scene.upstream.stats().opened, opened);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_models_go_in_chunks() {
    let mut scene = Scene::set().await;
    let url = scene.upstream.url();
    let models = (0..limits::MODELS - 1).map(|n| small(&format!("model-{n:05}"), &url));
    let push = push_of(3, models.chain([model_at("m", &url)]).collect());
    let announced = wire::Push {
        config: Vec::new().into(),
        chunked_bytes: push.config.len() as u64,
        ..push.clone()
    };
    assert!(push.config.len() > 60 * limits::CHUNK_BYTES);
    scene.stream.say(Say::Push(announced)).await;
    scene.stream.say_chunks(3, &push.config).await;
    let heard = scene.stream.hear().await;
    assert!(
        matches!(&heard, Some(Heard::Ack(ack)) if ack.applied == push.to),
        "{heard:?}"
    );
    scene.serves("m").await;
}
