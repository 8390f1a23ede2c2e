//! `forebay fleet rollout --wait` in a pipeline: what it prints while it waits, and how it ends.

use forebay_tests::model_at;

use crate::roles::{ANY, Control, FOREBAY, Worker, run};
use forebay_tests::Process;

const NOWHERE: &str = "http://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_the_worker_comes_and_never_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
    let (url, data) = (control.url(), dir.path().join("w"));
    let worker = Worker::start(&url, "w1", &data, &[]).await;
    let first = control.create(model_at("m", NOWHERE)).await.revision;
    let wait = |within| {
        [
            "fleet",
            "rollout",
            "--wait",
            "--within",
            within,
            "--control",
            &url,
        ]
    };
    // A worker is told of before it is there.
    worker.ready().await;
    let (code, out, err) = run(&wait("30s")).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let line = format!("revision {first}: 1 of 1 applied, 0 partial, 0 pending, 0 refused, 0 gone");
    assert!(err.lines().any(|told| told == line), "{err}");

    worker.process.kill().await;
    let second = control.create(model_at("n", NOWHERE)).await.revision;
    let (code, out, err) = run(&wait("1s")).await;
    assert_eq!(code, Some(4), "{out}{err}");
    assert!(err.contains("1 are not connected"), "{err}");
    let document = ["fleet", "rollout", "--control", &url, "-o", "json"];
    let (code, out, err) = run(&document).await;
    assert_eq!(code, Some(0), "{err}");
    let rollout: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(rollout["workers"][0]["lagRevisions"], "1", "{out}");

    // Over a restart of the control plane, too.
    let long = [
        "fleet",
        "rollout",
        "--wait",
        "--within",
        "20s",
        "--control",
        &url,
    ];
    let mut waiting = Process::start(FOREBAY, &long, &[]);
    waiting.printed("0 of 0 applied").await;
    let listen = control.addr.to_string();
    control.process.kill().await;
    let control = Control::start(&listen, &dir.path().join("control"), &[]).await;
    let _worker = Worker::start(&control.url(), "w1", &data, &[]).await;
    let (code, out, err) = waiting.end().await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains(&format!("revision {second} of {second}: complete")),
        "{out}"
    );
}

/// A worker that may not open enough files for a second model stands for any harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_what_is_taken_back_says_by_what_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let rings = [("FOREBAY_RINGS", "1"), ("FOREBAY_RING_SOAK", "5s")];
    let control = Control::start(ANY, &dir.path().join("control"), &rings).await;
    let (url, data) = (control.url(), dir.path().join("w"));
    let worker = Worker::start_limited(&url, "small", &data, 200).await;
    let first = control.create(model_at("m", NOWHERE)).await.revision;
    let wait = [
        "fleet",
        "rollout",
        "--wait",
        "--within",
        "20s",
        "--control",
        &url,
    ];
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(0), "{out}{err}");
    worker.ready().await;
    // All that are connected run it before it has soaked: only then is it what there is to go back to.
    let page = format!("{url}/metrics");
    let stable = format!("forebay_rollout_stable_revision {first}\n");
    forebay_tests::eventually("it is stable", async || {
        let text = reqwest::get(&page).await.ok()?.text().await.ok()?;
        text.contains(&stable).then_some(())
    })
    .await;

    let second = control.create(model_at("n", NOWHERE)).await.revision;
    let revision = second.to_string();
    let wait = [
        "fleet",
        "rollout",
        &revision,
        "--wait",
        "--within",
        "20s",
        "--control",
        &url,
    ];
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(5), "{out}{err}");
    let back = format!(
        "taken back by revision {}: revision {second} did not pass",
        second + 1
    );
    assert!(err.contains(&back) && err.contains("worker small"), "{err}");
    let history = run(&["fleet", "revisions", "--control", &url]).await.1;
    assert!(
        history.contains("forebay") && history.contains("did not pass"),
        "{history}"
    );

    let (code, _, err) = run(&["control", "--rings", "1,x", "--data-dir", "/nowhere"]).await;
    assert_eq!(code, Some(64), "{err}");
    assert!(err.contains("\"x\" is not a ring"), "{err}");
}
