//! How a worker ends, and what a crowd or a stalled log does to one that does not.

use std::{net::TcpStream, process::Stdio};

use forebay_mock::{MockConfig, MockServer};
use forebay_tests::{Chat, Ended, eventually, model_at};
use tokio::{io::AsyncReadExt as _, process::Command, task::JoinSet};

use crate::roles::{ANY, Control, FOREBAY, Worker};

async fn setup(files: u32) -> (tempfile::TempDir, Control, Worker, MockServer) {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, &dir.path().join("control"), &[]).await;
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
    control.create(model_at("m", &upstream.url())).await;
    let worker = Worker::start_limited(&control.url(), "w", &dir.path().join("w"), files).await;
    worker.ready().await;
    (dir, control, worker, upstream)
}

/// A stream of some two seconds, running.
async fn stream(worker: &Worker, upstream: &MockServer) -> JoinSet<Ended> {
    let client = worker.client();
    let mut stream = JoinSet::new();
    stream.spawn(async move { client.finish("m", Chat::Stream, 400).await });
    eventually("the stream runs", async || {
        (upstream.stats().in_flight == 1).then_some(())
    })
    .await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_says_so_and_lets_its_streams_end() {
    let (_dir, _control, worker, upstream) = setup(1_000).await;
    let stream = stream(&worker, &upstream).await;
    worker.process.signal_end();
    let readyz = format!("http://{}/readyz", worker.admin);
    eventually("it is not ready", async || {
        let answer = reqwest::get(&readyz).await.ok()?;
        let status = answer.status();
        (status == 503 && answer.text().await.ok()?.contains("draining")).then_some(())
    })
    .await;
    assert_eq!(stream.join_all().await, [Ended::Well]);
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(0), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let (_dir, _control, mut worker, upstream) = setup(1_000).await;
    let stream = stream(&worker, &upstream).await;
    worker.process.signal_end();
    worker.process.printed("stopping").await;
    worker.process.signal_end();
    let (code, _, err) = worker.process.end().await;
    assert_eq!(code, Some(1));
    assert!(err.contains("second SIGTERM"), "{err}");
    assert_ne!(stream.join_all().await, [Ended::Well]);
}

/// A crowd that says nothing gets the files of clients, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_crowd_does_not_take_the_admin_port_with_it() {
    let (_dir, control, worker, _upstream) = setup(200).await;
    let crowd: Vec<_> = (0..150)
        .map(|_| TcpStream::connect(worker.gateway).unwrap())
        .collect();
    let ready = worker.page("/readyz").await;
    assert!(ready.contains("live"), "{ready}");
    let created = control.create(model_at("gone", "http://127.0.0.1:1")).await;
    assert!(created.revision > 1);
    assert!(!worker.process.err().contains("accept failed"));
    drop(crowd);
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
}

/// Nobody reads what it logs: the pipe fills, requests go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stalls_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(FOREBAY)
        .args([
            "standalone",
            "--listen",
            ANY,
            "--admin-listen",
            ANY,
            "--control-listen",
            ANY,
        ])
        .arg("--data-dir")
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut out, mut printed) = (child.stdout.take().unwrap(), Vec::new());
    while !String::from_utf8_lossy(&printed).contains("Ctrl-C") {
        assert!(out.read_buf(&mut printed).await.unwrap() > 0);
    }
    let printed = String::from_utf8(printed).unwrap();
    let gateway = printed.split("gateway   http://").nth(1).unwrap();
    let client = forebay_tests::Client::new(gateway.split('/').next().unwrap().parse().unwrap());
    eventually("it is configured", async || {
        client
            .status("nobody")
            .await
            .filter(|status| *status == 404)
    })
    .await;
    for _ in 0..2_000 {
        assert_eq!(client.status("nobody").await.unwrap(), 404);
    }
    child.kill().await.unwrap();
}
