//! A worker that does not believe all that it is told: what is older, of another history, empty or bad.

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::{Digest, Parts, wire};
use forebay_tests::{
    Cluster, FakeControl, FakeStream, WorkerHandle, eventually, model_at, push_of,
};
use prost::Message as _;
use reqwest::StatusCode;
use wire::{from_worker::Message as Heard, to_worker::Message as Say};

/// A worker that runs revision 5 of a control plane of the test's, with one model.
struct Scene {
    cluster: Cluster,
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
        let models = ["m", "n", "x"].map(str::to_owned).to_vec();
        let upstream = MockServer::start(MockConfig {
            models,
            ..MockConfig::default()
        });
        let upstream = upstream.await.unwrap();
        let (stream, _) = control.accept().await;
        let mut scene = Self {
            cluster,
            control,
            worker,
            upstream,
            stream,
        };
        let first = scene.push(5, &["m"]);
        scene.takes(first).await;
        scene
    }

    fn push(&self, revision: u64, models: &[&str]) -> wire::Push {
        let url = self.upstream.url();
        push_of(
            revision,
            models.iter().map(|id| model_at(id, &url)).collect(),
        )
    }

    async fn takes(&mut self, push: wire::Push) -> wire::Ack {
        let to = push.to.clone();
        self.stream.say(Say::Push(push)).await;
        match self.stream.hear().await {
            Some(Heard::Ack(ack)) if ack.applied == to => ack,
            other => unreachable!("{other:?}"),
        }
    }

    /// It is refused for this reason, and nothing of it is in force.
    async fn refuses(&mut self, say: Say, to: Option<wire::Position>, reason: &str) {
        self.stream.say(say).await;
        let nack = match self.stream.hear().await {
            Some(Heard::Nack(nack)) => nack,
            other => unreachable!("{reason}: {other:?}"),
        };
        assert_eq!(nack.attempted, to, "{reason}");
        assert_eq!(nack.refusals.len(), 1, "{nack:?}");
        assert_eq!(nack.refusals[0].reason, reason);
        self.unmoved().await;
        let page = self.worker.metrics().await;
        let label = format!("reason=\"{reason}\"");
        assert!(page.sum("forebay_config_rejected_total", &[&label]) >= 1.0);
    }

    async fn unmoved(&self) {
        let config = self.worker.document("/config").await;
        assert_eq!(config["revision"], 5);
        assert_eq!(config["models"].as_array().unwrap().len(), 1);
        assert_eq!(self.status("m").await, Some(StatusCode::OK));
        assert_eq!(self.status("x").await, Some(StatusCode::NOT_FOUND));
    }

    /// Revision 6, with `m` as it was before and without `x`.
    async fn serves_partly(&self) {
        let statuses = [("m", 200), ("n", 200), ("x", 404)];
        for (model, status) in statuses {
            assert_eq!(self.status(model).await.unwrap(), status, "{model}");
        }
        let config = self.worker.document("/config").await;
        assert_eq!(config["revision"], 6);
        assert_eq!(config["models"][0]["retained"], true);
        assert_eq!(config["refusals"][1]["reason"], "INVALID_FIELD");
        let page = self.worker.metrics().await;
        assert_eq!(page.sum("forebay_config_models_refused", &[]), 2.0);
        assert_eq!(page.sum("forebay_config_models_retained", &[]), 1.0);
    }

    async fn status(&self, model: &str) -> Option<StatusCode> {
        self.worker.client().status(model).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_older_or_another_history_is_applied() {
    let mut scene = Scene::set().await;
    let held = scene.push(5, &["m"]);

    let older = scene.push(4, &["m", "x"]);
    let to = older.to.clone();
    scene
        .refuses(Say::Push(older.clone()), to, "OLDER_REVISION")
        .await;

    // The same, as a delta that fits what is held.
    let (old, new) = (Parts::split(&held.config), Parts::split(&older.config));
    let (old, new) = (old.unwrap(), new.unwrap());
    let ids = old.differences(&new);
    let change = new.change(ids.iter().map(String::as_str));
    let delta = wire::Delta {
        push_id: 7,
        from: held.to.clone(),
        to: older.to.clone(),
        change: change.encode_to_vec().into(),
        ..wire::Delta::default()
    };
    scene
        .refuses(Say::Delta(delta), older.to, "OLDER_REVISION")
        .await;

    // A second writer who gave the same number.
    let second = scene.push(5, &["m", "x"]);
    let to = second.to.clone();
    scene
        .refuses(Say::Push(second), to, "SAME_REVISION_OTHER_DIGEST")
        .await;

    // One that lost its store.
    let mut empty = scene.push(9, &[]);
    empty.to.as_mut().unwrap().epoch = "fb".to_owned();
    let to = empty.to.clone();
    scene.refuses(Say::Push(empty), to, "EMPTY_STORE").await;

    let mut other = scene.push(6, &["m", "x"]);
    other.config = scene.push(6, &["m", "n"]).config;
    let to = other.to.clone();
    scene.refuses(Say::Push(other), to, "DIGEST_MISMATCH").await;

    // Nor on the next stream; and what is newer is taken.
    scene.stream.cut().await;
    let (stream, applied) = scene.control.accept().await;
    assert_eq!(applied, held.to);
    scene.stream = stream;
    let older = scene.push(1, &["x"]);
    let to = older.to.clone();
    scene.refuses(Say::Push(older), to, "OLDER_REVISION").await;
    let newer = scene.push(6, &["m", "x"]);
    scene.takes(newer).await;
    assert_eq!(scene.status("x").await, Some(StatusCode::OK));
}

/// The configuration with this model's endpoints taken away.
fn spoilt(push: wire::Push, id: &str) -> wire::Push {
    let mut config = wire::Config::decode(push.config.clone()).unwrap();
    let model = config
        .models
        .iter_mut()
        .find(|model| model.id == id)
        .unwrap();
    model.endpoints.clear();
    let config = config.encode_to_vec();
    let digest = Digest::of(&config).as_bytes().to_vec().into();
    wire::Push {
        to: push.to.map(|to| wire::Position { digest, ..to }),
        config: config.into(),
        ..push
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retained_model_is_served_and_survives_a_restart_without_the_control_plane() {
    let mut scene = Scene::set().await;
    let partly = spoilt(scene.push(6, &["m", "n", "x"]), "m");
    let partly = spoilt(partly, "x");
    let ack = scene.takes(partly.clone()).await;
    let told: Vec<_> = ack.refusals.iter().map(|r| r.model.as_str()).collect();
    assert_eq!(told, ["m", "x"]);
    scene.serves_partly().await;
    let (held, next) = (&partly, spoilt(scene.push(7, &["m", "n"]), "m"));
    let (old, new) = (Parts::split(&held.config), Parts::split(&next.config));
    let (old, new) = (old.unwrap(), new.unwrap());
    let ids = old.differences(&new);

    let Scene {
        cluster,
        mut control,
        worker,
        upstream,
        stream,
    } = scene;
    worker.stop().await;
    drop(stream);
    let worker = cluster.worker_of("w1", &control.url()).await;
    let (stream, hello) = control.greet().await;
    assert_eq!(hello.applied, partly.to);
    assert_eq!(hello.refusals, ack.refusals);
    assert_eq!(hello.quarantined, []);
    let mut scene = Scene {
        cluster,
        control,
        worker,
        upstream,
        stream,
    };
    scene.serves_partly().await;

    // A delta changes what was pushed, not what is in force.
    let change = new.change(ids.iter().map(String::as_str));
    let delta = wire::Delta {
        push_id: 7,
        from: partly.to,
        to: next.to.clone(),
        change: change.encode_to_vec().into(),
        ..wire::Delta::default()
    };
    scene.stream.say(Say::Delta(delta)).await;
    match scene.stream.hear().await {
        Some(Heard::Ack(ack)) => assert_eq!((ack.applied, ack.refusals.len()), (next.to, 1)),
        other => unreachable!("{other:?}"),
    }
    assert_eq!(
        scene.status("m").await,
        Some(StatusCode::OK),
        "retained still"
    );
    let good = scene.push(8, &["m", "n"]);
    assert_eq!(scene.takes(good).await.refusals, []);
    eventually("nothing is retained", async || {
        let page = scene.worker.metrics().await;
        (page.sum("forebay_config_models_retained", &[]) == 0.0).then_some(())
    })
    .await;
}
