//! What a newcomer runs first.

use std::path::Path;

use forebay_tests::{Chat, Client, Ended, Process, Scrape, eventually};

use crate::roles::{ANY, FOREBAY, run};

const ARGS: [&str; 8] = [
    "standalone",
    "--demo",
    "--listen",
    ANY,
    "--admin-listen",
    ANY,
    "--control-listen",
    ANY,
];

async fn address(demo: &mut Process, before: &str) -> String {
    let rest = demo.printed(before).await;
    let end = rest.find(['/', ' ']).unwrap_or(rest.len());
    rest[..end].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_serves_three_models_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let temporary = scratch.path().to_str().unwrap();
    let mut demo = Process::start(FOREBAY, &ARGS, &[("TMPDIR", temporary)]);
    demo.printed("Ctrl-C stops everything").await;
    let gateway = address(&mut demo, "gateway   http://").await;
    let admin = address(&mut demo, "admin     http://").await;
    let control = address(&mut demo, "control   ").await;
    // The sentence that an operator of the seed's gateway looks for.
    assert!(
        demo.err()
            .contains("HTTP Client Pool: max_connections=150, max_keepalive_connections=150"),
        "{}",
        demo.err()
    );
    let client = Client::new(gateway.parse().unwrap());
    for model in ["llama-3.1-8b", "qwen2.5-7b", "mistral-7b", "default"] {
        assert_eq!(client.finish(model, Chat::Stream, 2).await, Ended::Well);
    }
    let metrics = async || {
        let page = reqwest::get(format!("http://{admin}/metrics"))
            .await
            .unwrap();
        Scrape::new(page.text().await.unwrap())
    };
    let page = metrics().await;
    assert_eq!(page.sum("forebay_pool_size", &[]), 150.0);
    assert_eq!(page.sum("forebay_pool_keepalive", &[]), 150.0);
    assert!(
        page.samples("forebay_pool_coverage_ratio")
            .all(|sample| sample.value == 1.0)
    );
    let before = page.sum("forebay_requests_total", &["code=\"200\""]);
    eventually("the demo's own traffic", async || {
        let now = metrics()
            .await
            .sum("forebay_requests_total", &["code=\"200\""]);
        (now >= before + 2.0).then_some(())
    })
    .await;

    // What the banner says to type.
    let control = format!("http://{control}");
    let list = ["models", "list", "--control", &control];
    let (code, out, err) = run(&list).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.lines().count(), 4, "{out}");
    let seed = ["pool", "set", "--keepalive", "100", "--control", &control];
    let (code, _, err) = run(&seed).await;
    assert_eq!(code, Some(1));
    for part in ["keepalive", "150 connections", "100", "66.7 %"] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let wait = ["fleet", "rollout", "--wait", "--control", &control];
    let (code, out, err) = run(&wait).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("complete; 1 applied"), "{out}");

    let (code, _, err) = demo.terminate().await;
    assert_eq!(code, Some(0), "{err}");
    assert!(is_empty(scratch.path()), "the demo's data are gone");
}

/// Where there is one core, everything runs on one thread.
#[tokio::test(flavor = "multi_thread")]
async fn one_core_is_enough() {
    let args = [&["-c", "0", FOREBAY][..], &ARGS[..]].concat();
    let scratch = tempfile::tempdir().unwrap();
    let temporary = scratch.path().to_str().unwrap();
    let mut demo = Process::start("taskset", &args, &[("TMPDIR", temporary)]);
    demo.printed("Ctrl-C stops everything").await;
    let gateway = address(&mut demo, "gateway   http://").await;
    let client = Client::new(gateway.parse().unwrap());
    for chat in [Chat::Whole, Chat::Stream] {
        assert_eq!(client.finish("default", chat, 20).await, Ended::Well);
    }
    let (code, _, err) = demo.terminate().await;
    assert_eq!(code, Some(0), "{err}");
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

/// With a data directory the models of the demo before are there, at the ports of the mocks before.
#[tokio::test(flavor = "multi_thread")]
async fn a_demo_can_be_run_again_on_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let data = ["--data-dir", dir.path().to_str().unwrap()];
    let args = [&ARGS[..], &data[..]].concat();
    for _ in 0..2 {
        let mut demo = Process::start(FOREBAY, &args, &[]);
        demo.printed("Ctrl-C stops everything").await;
        let gateway = address(&mut demo, "gateway   http://").await;
        let client = Client::new(gateway.parse().unwrap());
        assert_eq!(client.finish("default", Chat::Whole, 1).await, Ended::Well);
        let (code, _, err) = demo.terminate().await;
        assert_eq!(code, Some(0), "{err}");
    }
}
