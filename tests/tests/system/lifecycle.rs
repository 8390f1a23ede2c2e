//! A model's life: registered, served, changed under load, deleted; and each plane without the other.

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Ended, eventually, model_at};
use reqwest::StatusCode;
use tokio::{task::JoinSet, time::sleep};

async fn mock(models: &[&str]) -> MockServer {
    let config = MockConfig {
        models: models.iter().map(ToString::to_string).collect(),
        ..MockConfig::default()
    };
    MockServer::start(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_model_is_served() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["llama"]).await;
    let client = worker.client();
    assert_eq!(client.status("llama").await, Some(StatusCode::NOT_FOUND));
    let created = cluster
        .create_and_wait(wire::Model {
            aliases: vec!["default".to_owned()],
            ..model_at("llama", &upstream.url())
        })
        .await;
    assert!(created.revision > 0 && !created.etag.is_empty());
    let resolved = created.resolved_pool.unwrap();
    assert_eq!(resolved.max_concurrent, Some(50));
    assert_eq!(resolved.keepalive, Some(50));
    for name in ["llama", "default"] {
        assert_eq!(client.finish(name, Chat::Whole, 4).await, Ended::Well);
        assert_eq!(client.finish(name, Chat::Stream, 4).await, Ended::Well);
    }
    let stats = upstream.stats();
    assert_eq!((stats.opened, stats.requests, stats.streams), (1, 4, 2));
    assert_eq!(
        stats.by_model["llama"], 4,
        "an alias is rewritten to the id"
    );
    let page = worker.metrics().await;
    assert_eq!(
        page.sum("forebay_pool_checkouts_total", &["kind=\"new\""]),
        1.0
    );
    assert_eq!(
        page.sum("forebay_pool_checkouts_total", &["kind=\"reused\""]),
        3.0
    );
    assert_eq!(
        page.sum("forebay_config_revision", &[]),
        created.revision as f64
    );
    worker.stop().await;
    eventually("all connections closed", async || {
        (upstream.stats().open == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_tells_how_it_was_served_when_asked() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["m"]).await;
    let created = cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let client = worker.client();
    for connection in ["new", "reused"] {
        let chat = client.chat("m", Chat::Whole, 1);
        let answer = chat.header("x-forebay-explain", "1").send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("x-forebay-revision"), created.revision.to_string());
        assert_eq!(header("x-forebay-endpoint"), "e1");
        assert_eq!(header("x-forebay-connection"), connection);
        let timing = header("server-timing");
        let (queue, first_byte) = timing.split_once(", ").unwrap();
        assert!(queue.starts_with("queue;dur="), "{timing}");
        // The mock takes 5 ms for a token.
        let millis: f64 = first_byte.split_once("dur=").unwrap().1.parse().unwrap();
        assert!(millis >= 5.0, "{timing}");
        answer.bytes().await.unwrap();
    }
    let plain = client.chat("m", Chat::Whole, 1).send().await.unwrap();
    for name in ["x-forebay-revision", "server-timing"] {
        assert!(!plain.headers().contains_key(name), "unasked: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_models_at_fifty_are_a_pool_of_150_kept_alive_in_full() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["a", "b", "c"]).await;
    for id in ["a", "b", "c"] {
        cluster.create_and_wait(model_at(id, &upstream.url())).await;
    }
    let page = worker.metrics().await;
    assert_eq!(page.sum("forebay_pool_size", &[]), 150.0);
    assert_eq!(page.sum("forebay_pool_keepalive", &[]), 150.0);
    for coverage in page.samples("forebay_pool_coverage_ratio") {
        assert_eq!(coverage.value, 1.0, "{coverage:?}");
    }
    assert_eq!(page.samples("forebay_pool_coverage_ratio").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_moves_takes_new_requests_and_the_old_one_ends_its_own() {
    let (cluster, worker) = Cluster::with_worker().await;
    let (old, new) = (
        mock(&["m", "n", "o", "other"]).await,
        mock(&["m", "n", "o", "other"]).await,
    );
    cluster.create_and_wait(model_at("m", &old.url())).await;
    let client = worker.client();
    let mut streams = JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        // About half a second of tokens.
        streams.spawn(async move { client.finish("m", Chat::Stream, 100).await });
    }
    eventually("the streams run", async || {
        (old.stats().in_flight == 10).then_some(())
    })
    .await;
    let update = wire::UpdateModelRequest {
        model: Some(model_at("m", &new.url())),
        ..Default::default()
    };
    let updated = cluster.registry().update_model(update).await.unwrap();
    cluster.rolled_out(updated.into_inner().revision).await;
    assert_eq!(client.finish("m", Chat::Whole, 1).await, Ended::Well);
    assert_eq!((old.stats().requests, new.stats().requests), (10, 1));
    while let Some(ended) = streams.join_next().await {
        assert_eq!(ended.unwrap(), Ended::Well);
    }
    eventually("the old connections are closed", async || {
        (old.stats().open == 0).then_some(())
    })
    .await;
    assert_eq!(old.stats().cancelled, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_model_ends_its_streams_and_takes_no_more() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["m", "n", "o", "other"]).await;
    let created = cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    // One that stays, so that the configuration does not become empty.
    cluster
        .create_and_wait(model_at("n", &upstream.url()))
        .await;
    let client = worker.client();
    let stream = {
        let client = client.clone();
        let mut task = JoinSet::new();
        task.spawn(async move { client.finish("m", Chat::Stream, 100).await });
        task
    };
    eventually("the stream runs", async || {
        (upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    let delete = wire::DeleteModelRequest {
        id: "m".to_owned(),
        etag: created.etag,
        ..Default::default()
    };
    let deleted = cluster.registry().delete_model(delete).await.unwrap();
    cluster.rolled_out(deleted.into_inner().revision).await;
    assert_eq!(client.status("m").await, Some(StatusCode::NOT_FOUND));
    assert_eq!(client.status("n").await, Some(StatusCode::OK));
    assert_eq!(stream.join_all().await, [Ended::Well]);
    let page = worker.metrics().await;
    assert_eq!(page.sum("forebay_pool_size", &["model=\"m\""]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_starts_and_serves_without_the_control_plane() {
    let (mut cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["m", "n", "o", "other"]).await;
    let created = cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    cluster.stop_control().await;
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    worker.stop().await;

    let worker = cluster.worker("w1").await;
    worker.ready().await;
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    let config = worker.document("/config").await;
    assert_eq!(config["source"], "last_known_good");
    assert_eq!(config["revision"], created.revision);

    cluster.start_control().await;
    eventually("the control plane is followed again", async || {
        let config = worker.document("/config").await;
        (config["source"] == "control_plane").then_some(())
    })
    .await;
    let other = cluster
        .create_and_wait(model_at("other", &upstream.url()))
        .await;
    assert!(other.revision > created.revision);
    assert_eq!(
        worker.client().finish("other", Chat::Whole, 1).await,
        Ended::Well
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_restart_keeps_everything_and_disturbs_nobody() {
    let (mut cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["m", "n", "o", "other"]).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let before = cluster
        .create_and_wait(model_at("n", &upstream.url()))
        .await;
    let client = worker.client();
    assert_eq!(client.finish("m", Chat::Whole, 1).await, Ended::Well);
    let opened = upstream.stats().opened;
    let mut stream = JoinSet::new();
    let streaming = client.clone();
    stream.spawn(async move { streaming.finish("m", Chat::Stream, 200).await });

    cluster.stop_control().await;
    sleep(Duration::from_millis(100)).await;
    cluster.start_control().await;
    let mut registry = cluster.registry();
    let list = registry.list_models(wire::ListModelsRequest::default());
    let list = list.await.unwrap().into_inner();
    let ids: Vec<_> = list.models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(ids, ["m", "n"]);
    assert_eq!(list.revision, before.revision);
    let after = cluster
        .create_and_wait(model_at("o", &upstream.url()))
        .await;
    assert_eq!(after.revision, before.revision + 1);
    assert_eq!(stream.join_all().await, [Ended::Well]);
    assert_eq!(client.finish("m", Chat::Whole, 1).await, Ended::Well);
    assert_eq!(upstream.stats().opened, opened, "no connection was remade");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_worker_gets_what_was_registered_before_it() {
    let cluster = Cluster::start().await;
    let upstream = mock(&["m", "n", "o", "other"]).await;
    cluster.create(model_at("m", &upstream.url())).await;
    let (first, second) = (cluster.worker("w1").await, cluster.worker("w2").await);
    for worker in [&first, &second] {
        worker.ready().await;
        assert_eq!(
            worker.client().finish("m", Chat::Whole, 1).await,
            Ended::Well
        );
    }
    first.stop().await;
    assert_eq!(
        second.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    let mut fleet = cluster.fleet();
    eventually("the first is told as gone", async || {
        let workers = fleet.list_workers(wire::ListWorkersRequest::default());
        let workers = workers.await.ok()?.into_inner().workers;
        let gone = workers.iter().find(|worker| worker.id == "w1")?;
        (gone.state() == wire::WorkerState::Gone).then_some(())
    })
    .await;
}

/// Deleted and registered again while its streams run, a model is still bounded once.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_comes_back_at_once_has_its_old_pool() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["m", "n"]).await;
    let small = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(2),
            ..wire::Pool::default()
        }),
        ..model_at("m", &upstream.url())
    };
    cluster.create_and_wait(small.clone()).await;
    cluster
        .create_and_wait(model_at("n", &upstream.url()))
        .await;
    let client = worker.client();
    let mut streams = JoinSet::new();
    for _ in 0..2 {
        let client = client.clone();
        streams.spawn(async move { client.finish("m", Chat::Stream, 1_000).await });
    }
    eventually("the streams run", async || {
        (upstream.stats().in_flight == 2).then_some(())
    })
    .await;
    for _ in 0..5 {
        let delete = wire::DeleteModelRequest {
            id: "m".to_owned(),
            ..Default::default()
        };
        let deleted = cluster.registry().delete_model(delete).await.unwrap();
        cluster.rolled_out(deleted.into_inner().revision).await;
        cluster.create_and_wait(small.clone()).await;
    }
    for _ in 0..4 {
        let client = client.clone();
        streams.spawn(async move { client.finish("m", Chat::Whole, 2).await });
    }
    for ended in streams.join_all().await {
        assert_eq!(ended, Ended::Well);
    }
    let stats = upstream.stats();
    assert_eq!(
        (stats.peak_in_flight, stats.peak_open, stats.opened),
        (2, 2, 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_with_a_warm_floor_counts_as_applied_when_it_is_warm() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = mock(&["m"]).await;
    // So many that they cannot all be there by chance when the answer is.
    let warm = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(150),
            warm: Some(150),
            ..wire::Pool::default()
        }),
        ..model_at("m", &upstream.url())
    };
    let created = cluster.create(warm).await;
    let mut fleet = cluster.fleet();
    let revision = Some(created.revision);
    while {
        let rollout = fleet.get_rollout(wire::GetRolloutRequest { revision });
        !rollout.await.unwrap().into_inner().complete
    } {}
    let page = worker.metrics().await;
    let idle = page.sum("forebay_pool_connections", &["state=\"idle\""]);
    assert_eq!(idle, 150.0);
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    assert_eq!(
        upstream.stats().opened,
        150,
        "the first request opened none"
    );
    // One that cannot be reached holds nothing up.
    let gone = mock(&["n"]).await;
    let url = gone.url();
    gone.stop().await;
    let unreachable = wire::Model {
        pool: Some(wire::Pool {
            warm: Some(10),
            ..wire::Pool::default()
        }),
        ..model_at("n", &url)
    };
    let began = tokio::time::Instant::now();
    cluster.create_and_wait(unreachable).await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

/// Moved and moved back within a moment, an endpoint has its connections again.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_comes_back_at_once_keeps_its_connections() {
    let (cluster, worker) = Cluster::with_worker().await;
    let (here, there) = (mock(&["m"]).await, mock(&["m"]).await);
    cluster.create_and_wait(model_at("m", &here.url())).await;
    let client = worker.client();
    let mut streams = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        streams.spawn(async move { client.finish("m", Chat::Stream, 1_000).await });
    }
    eventually("the streams run", async || {
        (here.stats().in_flight == 5).then_some(())
    })
    .await;
    for url in [there.url(), here.url()] {
        let update = wire::UpdateModelRequest {
            model: Some(model_at("m", &url)),
            ..Default::default()
        };
        let updated = cluster.registry().update_model(update).await.unwrap();
        cluster.rolled_out(updated.into_inner().revision).await;
    }
    for ended in streams.join_all().await {
        assert_eq!(ended, Ended::Well);
    }
    let mut again = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        again.spawn(async move { client.finish("m", Chat::Whole, 5).await });
    }
    assert!(
        again
            .join_all()
            .await
            .iter()
            .all(|ended| *ended == Ended::Well)
    );
    assert_eq!((here.stats().opened, there.stats().requests), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_failures_and_streams_is_part_of_what_is_in_force() {
    let (cluster, worker) = Cluster::with_worker().await;
    cluster
        .create_and_wait(model_at("other", "http://127.0.0.1:1"))
        .await;
    let model = wire::Model {
        health: Some(wire::HealthCheck {
            path: "/health".into(),
            unhealthy_after: Some(7),
            ..wire::HealthCheck::default()
        }),
        ejection: Some(wire::Ejection {
            panic_percent: Some(100),
            ..wire::Ejection::default()
        }),
        retry: Some(wire::Retry {
            max_attempts: Some(3),
            on: vec![wire::RetryOn::Reset.into(), wire::RetryOn::Busy.into()],
        }),
        fallbacks: vec!["other".into()],
        streaming: Some(wire::Streaming {
            usage: wire::StreamUsage::Inject.into(),
            ..wire::Streaming::default()
        }),
        ..model_at("m", "http://127.0.0.1:1")
    };
    cluster.create_and_wait(model).await;
    let config = worker.document("/config").await;
    let shown = &config["models"][0];
    assert_eq!(shown["id"], "m");
    let health = &shown["health"];
    assert_eq!(
        (&health["path"], &health["unhealthy_after"]),
        (&"/health".into(), &7.into())
    );
    assert_eq!(health["timeout_seconds"], 2.0, "what was not said, too");
    assert_eq!(shown["ejection"]["panic_percent"], 100);
    assert_eq!(shown["retry"]["on"], serde_json::json!(["busy", "reset"]));
    assert_eq!(shown["fallbacks"], serde_json::json!(["other"]));
    assert_eq!(shown["streaming"]["usage"], "inject");
    assert_eq!(config["models"][1]["health"], serde_json::Value::Null);
}
