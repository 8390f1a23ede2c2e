//! A control plane that was paused while another one took over its store: nothing of its old state is applied.

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{eventually, model_at};

use crate::{
    roles::{ANY, Control, Worker, run},
    rolling::copy,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_was_paused_while_another_took_over_applies_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (old_store, new_store) = (dir.path().join("old"), dir.path().join("new"));
    let data = dir.path().join("w");
    let upstream = MockServer::start(MockConfig {
        models: ["m", "n", "x"].map(str::to_owned).to_vec(),
        ..MockConfig::default()
    });
    let upstream = upstream.await.unwrap();
    let url = upstream.url();
    let old = Control::start(ANY, &old_store, &[]).await;
    let first = old.create(model_at("m", &url)).await;
    old.process.pause();

    // Another one goes on with what it had: the same history.
    copy(&old_store, &new_store);
    let new = Control::start(ANY, &new_store, &[]).await;
    let second = new.create(model_at("n", &url)).await;
    assert_eq!(second.revision, first.revision + 1);
    let worker = Worker::start(&new.url(), "w", &data, &[]).await;
    worker.ready().await;
    let wait = ["fleet", "rollout", "--wait", "--control", &new.url()];
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(0), "{out}{err}");
    worker.process.terminate().await;

    // It comes back, and the worker comes to it.
    old.process.resume();
    let worker = Worker::start(&old.url(), "w", &data, &[]).await;
    let unmoved = async || {
        let config: serde_json::Value =
            serde_json::from_str(&worker.page("/config").await).unwrap();
        assert_eq!(config["revision"], second.revision);
        for (model, status) in [("m", 200), ("n", 200), ("x", 404)] {
            assert_eq!(
                worker.client().status(model).await.unwrap(),
                status,
                "{model}"
            );
        }
    };
    eventually("it is told", async || {
        worker
            .process
            .err()
            .contains("runs a newer revision")
            .then_some(())
    })
    .await;
    unmoved().await;

    // A write there gets the number that the worker has, for another content.
    let other = old.create(model_at("x", &url)).await;
    assert_eq!(other.revision, second.revision);
    let refused = eventually("the worker refuses", async || {
        let id = "w".to_owned();
        let mut fleet = old.fleet();
        let known = fleet.get_worker(wire::GetWorkerRequest { id }).await;
        let known = known.ok()?.into_inner();
        (known.refused_revision == other.revision).then_some(known)
    })
    .await;
    assert_eq!(refused.refusals[0].reason, "SAME_REVISION_OTHER_DIGEST");
    unmoved().await;
}
