//! Another model stands in when a model's endpoints cannot serve, and the client is told which.

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, WorkerHandle, eventually, model_at};

use super::ejection::always;

/// Where nobody listens.
const NOWHERE: &str = "http://127.0.0.1:1";

async fn mock(model: &str) -> MockServer {
    MockServer::start(MockConfig::serving(model)).await.unwrap()
}

async fn asked(worker: &WorkerHandle, model: &str) -> (u16, Option<String>, String) {
    let answer = worker
        .client()
        .chat(model, Chat::Whole, 1)
        .send()
        .await
        .unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let served = headers.get("x-forebay-model");
    let served = served.map(|model| model.to_str().unwrap().to_owned());
    (status, served, answer.text().await.unwrap())
}

fn standing_in(id: &str, url: &str, fallbacks: &[&str]) -> wire::Model {
    wire::Model {
        fallbacks: fallbacks.iter().map(ToString::to_string).collect(),
        ..model_at(id, url)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_that_can_stands_in_and_the_answer_says_so() {
    let (cluster, worker) = Cluster::with_worker().await;
    let (own, other) = (mock("a").await, mock("c").await);
    cluster.create_and_wait(model_at("b", NOWHERE)).await;
    cluster.create_and_wait(model_at("c", &other.url())).await;
    cluster
        .create_and_wait(standing_in("a", &own.url(), &["b", "c"]))
        .await;
    assert_eq!(asked(&worker, "a").await.0, 200);
    assert_eq!(asked(&worker, "a").await.1, None, "its own serves");
    // Answers of its own, whatever they are, are the client's.
    own.set_faults(Faults {
        status: Some(500),
        status_for: 1,
        ..Faults::default()
    });
    assert_eq!(asked(&worker, "a").await.0, 500);
    own.stop().await;
    eventually("another stands in", async || {
        let (status, served, body) = asked(&worker, "a").await;
        (status == 200 && served.as_deref() == Some("c")).then(|| {
            // It was asked for by its own name.
            assert!(body.contains("\"c\""), "{body}");
        })
    })
    .await;
    assert_eq!(other.stats().by_model.keys().collect::<Vec<_>>(), ["c"]);
    let page = worker.metrics().await;
    assert!(page.sum("forebay_fallbacks_total", &["model=\"a\""]) >= 1.0);
    // When none can, the client is told what is wrong with the model that it asked for.
    other.stop().await;
    eventually("nobody serves", async || {
        let (status, served, body) = asked(&worker, "a").await;
        (status == 502 && served.is_none() && body.contains("`a`")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_that_stand_in_for_each_other_are_no_circle() {
    let (cluster, worker) = Cluster::with_worker().await;
    cluster.create_and_wait(model_at("a", NOWHERE)).await;
    cluster
        .create_and_wait(standing_in("b", NOWHERE, &["a"]))
        .await;
    let a = standing_in("a", NOWHERE, &["b"]);
    let revision = cluster.update(a).await.revision;
    cluster.rolled_out(revision).await;
    let (status, _, body) = asked(&worker, "a").await;
    assert_eq!(status, 502, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_engine_is_found_dead_is_stood_in_for_at_once() {
    let (cluster, worker) = Cluster::with_worker().await;
    let (own, other) = (mock("a").await, mock("b").await);
    cluster.create_and_wait(model_at("b", &other.url())).await;
    let mut model = standing_in("a", &own.url(), &["b"]);
    model.health = Some(wire::HealthCheck {
        path: "/health".into(),
        interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
        ..wire::HealthCheck::default()
    });
    cluster.create_and_wait(model).await;
    own.set_faults(Faults {
        health: Some(503),
        ..always(500)
    });
    eventually("another stands in", async || {
        (asked(&worker, "a").await.1.as_deref() == Some("b")).then_some(())
    })
    .await;
    own.set_faults(Faults::default());
    eventually("its own serves", async || {
        let (status, served, _) = asked(&worker, "a").await;
        (status == 200 && served.is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_stands_in_must_be_registered_when_it_is_named_and_may_go_later() {
    let cluster = Cluster::start().await;
    let mut registry = cluster.registry();
    let create = |model| wire::CreateModelRequest {
        model: Some(model),
        ..wire::CreateModelRequest::default()
    };
    let unknown = standing_in("a", NOWHERE, &["b"]);
    let refused = registry
        .create_model(create(unknown.clone()))
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("model.fallbacks[0]"),
        "{refused}"
    );
    let itself = standing_in("a", NOWHERE, &["a"]);
    assert!(registry.create_model(create(itself)).await.is_err());
    cluster
        .create(wire::Model {
            aliases: vec!["x".into()],
            ..model_at("b", NOWHERE)
        })
        .await;
    let alias = registry
        .create_model(create(standing_in("a", NOWHERE, &["x"])))
        .await;
    assert!(alias.unwrap_err().message().contains("name the model, `b`"));
    cluster.create(unknown).await;
    let delete = wire::DeleteModelRequest {
        id: "b".into(),
        ..wire::DeleteModelRequest::default()
    };
    registry.delete_model(delete).await.unwrap();
    // It may be changed without a word of what went.
    let mut changed = standing_in("a", NOWHERE, &["b"]);
    changed.aliases = vec!["y".into()];
    let changed = cluster.update(changed).await;
    assert_eq!(changed.fallbacks, ["b"]);
}
