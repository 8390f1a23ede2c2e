//! One process of a worker takes over from another, and both share what the worker is lent of a fleet-wide limit.

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Client, Crowd, Ended, RawClient, eventually, model_at};
use tokio::task::JoinSet;

use crate::{handover::Scene, roles::Worker};

/// Of the model, all workers together.
const LIMIT: u32 = 8;

/// With an engine that counts what is above the limit.
async fn limited() -> (Scene, MockServer) {
    let scene = Scene::new().await;
    let engine = MockServer::start(MockConfig {
        max_in_flight: Some(LIMIT as usize),
        ..MockConfig::serving("f")
    });
    let engine = engine.await.unwrap();
    scene.control.create(fleet_wide(&engine, LIMIT)).await;
    (scene, engine)
}

/// A model whose limit is that of all workers together.
fn fleet_wide(engine: &MockServer, limit: u32) -> wire::Model {
    wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(limit),
            scope: wire::PoolScope::Fleet.into(),
            queue: Some(wire::Queue {
                max_waiting: Some(100),
                ..wire::Queue::default()
            }),
            ..wire::Pool::default()
        }),
        ..model_at("f", &engine.url())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_processes_together_keep_to_what_the_worker_is_lent() {
    let (scene, engine) = limited().await;
    let mut worker = scene.worker(&[]).await;
    let crowd = Crowd::new("f", 24, 20..=60);
    crowd.ask(vec![worker.gateway]);
    let all_used = async |what: &str| {
        eventually(what, async || {
            (engine.stats().in_flight == u64::from(LIMIT)).then_some(())
        })
        .await;
    };
    all_used("all of it is used").await;
    for n in 0..3 {
        let next =
            Worker::start_with(&scene.control.url(), "w", &scene.data(), &["--take-over"]).await;
        let (code, _, err) = std::mem::replace(&mut worker, next).process.end().await;
        assert_eq!(code, Some(0), "{err}");
        let before = engine.stats().completed;
        eventually(&format!("the heir serves, {n}"), async || {
            (engine.stats().completed > before + 50).then_some(())
        })
        .await;
        all_used("the heir uses all of it").await;
    }
    let stats = engine.stats();
    assert_eq!(stats.over_limit, 0, "{} at once", stats.peak_in_flight);
    let fates = crowd.fates();
    assert_eq!(fates.keys().collect::<Vec<_>>(), ["served"], "{fates:?}");
}

/// Of a limit, each of three processes has its part, and all of them together no more than all.
#[tokio::test(flavor = "multi_thread")]
async fn three_processes_together_keep_to_what_the_worker_is_lent() {
    let (scene, engine) = limited().await;
    let mut workers = vec![scene.worker(&[]).await];
    let gateway = workers[0].gateway;
    let mut long = JoinSet::new();
    for _ in 0..LIMIT - 2 {
        let client = Client::new(gateway);
        long.spawn(async move { client.finish("f", Chat::Stream, 1_400).await });
    }
    eventually("they run", async || {
        (engine.stats().in_flight == u64::from(LIMIT - 2)).then_some(())
    })
    .await;
    let crowd = Crowd::new("f", 24, 20..=60);
    crowd.ask(vec![gateway]);
    for _ in 0..2 {
        let heir = ["--take-over"];
        workers.push(Worker::start_with(&scene.control.url(), "w", &scene.data(), &heir).await);
    }
    assert_eq!(long.join_all().await, vec![Ended::Well; LIMIT as usize - 2]);
    let newest = workers.pop().unwrap();
    for worker in workers {
        let (code, _, err) = worker.process.end().await;
        assert_eq!(code, Some(0), "{err}");
    }
    eventually("the newest uses all of it", async || {
        (engine.stats().in_flight == u64::from(LIMIT)).then_some(())
    })
    .await;
    let stats = engine.stats();
    assert_eq!(stats.over_limit, 0, "{} at once", stats.peak_in_flight);
    let fates = crowd.fates();
    assert_eq!(fates.keys().collect::<Vec<_>>(), ["served"], "{fates:?}");
    drop(newest);
}

/// Another worker has all of the limit: in line for nothing one waits in vain, where there is an heir to go to.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_line_where_nothing_is_lent_is_sent_to_the_heir() {
    let scene = Scene::new().await;
    let engine = MockServer::start(MockConfig::serving("f")).await.unwrap();
    let mut model = fleet_wide(&engine, 1);
    let queue = model.pool.as_mut().and_then(|pool| pool.queue.as_mut());
    queue.unwrap().max_wait = Some(Duration::from_secs(120).try_into().unwrap());
    scene.control.create(model).await;
    let other_data = scene.dir.path().join("other");
    let other = Worker::start_with(&scene.control.url(), "other", &other_data, &[]).await;
    other.ready().await;
    let mut holds = RawClient::connect(other.gateway).await;
    holds.chat("f", true, 100_000).await;
    holds.read_until("token1 ").await;
    let worker = scene.worker(&[]).await;
    let mut waits = RawClient::connect(worker.gateway).await;
    waits.chat("f", false, 1).await;
    eventually("it is in line", async || {
        let page: serde_json::Value = serde_json::from_str(&worker.page("/pools").await).ok()?;
        let pools = page["pools"].as_array().cloned().unwrap_or_default();
        let pool = pools.into_iter().find(|pool| pool["model"] == "f")?;
        (pool["waiting"] == 1 && pool["size"] == 0).then_some(())
    })
    .await;
    let heir = ["--take-over"];
    let heir = Worker::start_with(&scene.control.url(), "w", &scene.data(), &heir).await;
    let answer = waits.read_until("draining").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    drop(waits);
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(0), "{err}");
    // The heir has it once it is free.
    drop(holds);
    let served = Client::new(heir.gateway).finish("f", Chat::Whole, 1).await;
    assert_eq!(served, Ended::Well);
}
