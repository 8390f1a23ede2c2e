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
    let wait = [
        "fleet",
        "rollout",
        "--wait",
        "--within",
        "1s",
        "--control",
        &url,
    ];
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let line = format!("revision {first}: 1 of 1 applied, 0 pending, 0 refused, 0 gone");
    assert!(err.lines().any(|told| told == line), "{err}");

    worker.process.kill().await;
    let second = control.create(model_at("n", NOWHERE)).await.revision;
    let (code, out, err) = run(&wait).await;
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
