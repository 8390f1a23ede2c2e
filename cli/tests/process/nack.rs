//! A worker that cannot run a configuration says why, serves on what it has, and takes the next.

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Ended, eventually, model_at};

use crate::roles::{ANY, Control, Worker, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_too_few_files_refuses_with_the_arithmetic_and_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
    // 64 of its own, 50 connections of clients and 50 to upstreams: room for one model, not for two.
    let (url, data) = (control.url(), dir.path().join("w"));
    let worker = Worker::start_limited(&url, "small", &data, 200).await;
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let first = control.create(model_at("m", &upstream.url())).await;
    worker.ready().await;
    eventually("the first is served", async || {
        let ended = worker.client().finish("m", Chat::Whole, 1).await;
        (ended == Ended::Well).then_some(())
    })
    .await;

    let second = control.create(model_at("n", &upstream.url())).await;
    let refused = eventually("the worker refuses", async || {
        let request = wire::GetWorkerRequest {
            id: "small".to_owned(),
        };
        let worker = control.fleet().get_worker(request).await.ok()?.into_inner();
        (worker.state() == wire::WorkerState::Refused).then_some(worker)
    })
    .await;
    assert_eq!(refused.applied_revision, first.revision);
    assert_eq!(refused.refused_revision, second.revision);
    let refusal = &refused.refusals[0];
    assert_eq!(refusal.reason, "OPEN_FILES");
    for part in [
        "100 connections",
        "264 open files",
        "may open 200",
        "ulimit -n",
    ] {
        assert!(
            refusal.message.contains(part),
            "{part}: {}",
            refusal.message
        );
    }
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    assert_eq!(worker.client().status("n").await.unwrap(), 404);
    let page = worker.page("/metrics").await;
    assert!(
        page.contains("forebay_config_rejected_total{reason=\"OPEN_FILES\"} 1"),
        "{page}"
    );
    // For pipelines: an exit code and the reason.
    let wait = ["fleet", "rollout", "--wait", "--control", &url];
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(3));
    assert!(
        err.contains("1 workers refused") && err.contains("small: ") && out.contains("OPEN_FILES"),
        "{out}{err}"
    );

    // Refused once, not again and again; the next revision that fits is taken.
    let delete = wire::DeleteModelRequest {
        id: "m".to_owned(),
        ..Default::default()
    };
    control.registry().delete_model(delete).await.unwrap();
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(worker.client().status("m").await.unwrap(), 404);
    let page = worker.page("/metrics").await;
    assert!(
        page.contains("forebay_config_rejected_total{reason=\"OPEN_FILES\"} 1"),
        "{page}"
    );
}

/// What is refused on disk is passed over for what is older.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_starts_with_the_newest_configuration_that_it_can_run() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
    let (url, data) = (control.url(), dir.path().join("w"));
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let worker = Worker::start(&url, "w", &data, &[("FOREBAY_SOAK", "50ms")]).await;
    let wait = ["fleet", "rollout", "--wait", "--control", &url];
    worker.ready().await;
    let folder = data.join("worker/w/last-known-good");
    // The first of all has no models.
    for (id, generation) in [("m", "previous"), ("n", "oldest")] {
        control.create(model_at(id, &upstream.url())).await;
        assert_eq!(run(&wait).await.0, Some(0));
        eventually("it proved good and is on disk", async || {
            folder.join(generation).exists().then_some(())
        })
        .await;
    }
    worker.process.terminate().await;
    control.process.kill().await;
    let worker = Worker::start_limited(&url, "w", &data, 200).await;
    worker.ready().await;
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    assert_eq!(worker.client().status("n").await.unwrap(), 404);
}

/// The remedy that the message names works, without anybody writing a new revision.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_started_again_with_more_files_takes_what_it_refused() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
    let (url, data) = (control.url(), dir.path().join("w"));
    for id in ["m", "n"] {
        control.create(model_at(id, "http://127.0.0.1:1")).await;
    }
    let worker = Worker::start_limited(&url, "w", &data, 200).await;
    eventually("the worker refuses", async || {
        let page = worker.page("/metrics").await;
        page.contains("{reason=\"OPEN_FILES\"} 1").then_some(())
    })
    .await;
    let wait = ["fleet", "rollout", "--wait", "--control", &url];
    worker.process.kill().await;
    let worker = Worker::start_limited(&url, "w", &data, 1_000).await;
    worker.ready().await;
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(0), "{out}{err}");
}
