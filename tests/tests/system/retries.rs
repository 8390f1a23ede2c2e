//! What one endpoint did not take goes to another, before a byte reached the client and under a budget; what it may
//! have begun with does not, unless that was asked for.

use std::time::Duration;

use forebay_mock::Faults;
use forebay_proto::wire::{self, RetryOn};
use forebay_tests::{Chat, Cluster, WorkerHandle};
use futures_util::future::join_all;

use super::ejection::{always, at, mocks, statuses};

/// Never ejects, so that the broken one is asked again and again.
fn model(mocks: &[forebay_mock::MockServer], retry: Option<wire::Retry>) -> wire::Model {
    wire::Model {
        ejection: Some(wire::Ejection {
            failures: Some(0),
            ..wire::Ejection::default()
        }),
        retry,
        ..at("m", mocks)
    }
}

fn on(causes: &[RetryOn], attempts: u32) -> Option<wire::Retry> {
    Some(wire::Retry {
        max_attempts: Some(attempts),
        on: causes.iter().map(|cause| (*cause).into()).collect(),
    })
}

async fn retried(worker: &WorkerHandle, cause: &str) -> f64 {
    let cause = format!("cause=\"{cause}\"");
    worker
        .metrics()
        .await
        .sum("forebay_retries_total", &["model=\"m\"", &cause])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_is_too_busy_for_another_takes() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(2).await;
    cluster.create_and_wait(model(&mocks, None)).await;
    for status in [503, 429] {
        mocks[0].set_faults(always(status));
        // The one that is asked declines it again after a second, and not before.
        assert_eq!(statuses(&worker, "m", 20).await, [200; 20], "{status}");
    }
    assert!(retried(&worker, "busy").await >= 2.0);
    // Each was made once.
    assert_eq!(mocks[1].stats().requests, 40);
    // How it went is told to who asks.
    let explained = async || {
        let chat = worker
            .client()
            .chat("m", Chat::Whole, 1)
            .header("x-forebay-explain", "1");
        let answer = chat.send().await.unwrap();
        answer.headers()["x-forebay-attempts"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.push(explained().await);
    }
    assert!(seen.contains(&"2".to_owned()), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_for_a_pause_gets_it_and_if_all_do_the_client_is_told() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(2).await;
    cluster.create_and_wait(model(&mocks, None)).await;
    let pause = Faults {
        retry_after: Some(30),
        ..always(429)
    };
    mocks[0].set_faults(pause.clone());
    assert_eq!(statuses(&worker, "m", 30).await, [200; 30]);
    assert_eq!(mocks[0].stats().requests, 1, "it asked not to be asked");
    mocks[1].set_faults(pause);
    // It has not said so yet when it is asked.
    statuses(&worker, "m", 1).await;
    let answer = worker
        .client()
        .chat("m", Chat::Whole, 1)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.headers()["retry-after"], "30");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_run_is_sent_again_only_if_that_was_asked_for() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(2).await;
    let mut model = model(&mocks, None);
    model.pool = Some(wire::Pool {
        replay_unanswered: Some(false),
        ..wire::Pool::default()
    });
    cluster.create_and_wait(model.clone()).await;
    let faults = [
        (always(500), RetryOn::ServerError, "server_error"),
        (always(502), RetryOn::BadGateway, "bad_gateway"),
        (
            Faults {
                reset_before_response: u32::MAX,
                ..Faults::default()
            },
            RetryOn::Reset,
            "reset",
        ),
    ];
    for (fault, cause, word) in faults {
        model.retry = None;
        let revision = cluster.update(model.clone()).await.revision;
        cluster.rolled_out(revision).await;
        mocks[0].set_faults(fault);
        let seen = statuses(&worker, "m", 30).await;
        assert!(seen.iter().any(|status| *status >= 500), "{word}: {seen:?}");
        assert_eq!(retried(&worker, word).await, 0.0);
        model.retry = on(&[cause], 2);
        let revision = cluster.update(model.clone()).await.revision;
        cluster.rolled_out(revision).await;
        let seen = statuses(&worker, "m", 30).await;
        // After so many in a row it is known to fail; it is asked again all the same, as it is not ejected.
        assert_eq!(seen, [200; 30], "{word}");
        let retries = retried(&worker, word).await;
        assert!(retries > 0.0);
        // What makes a response that is kept is sent once.
        let mut made = Vec::new();
        for _ in 0..20 {
            let body = serde_json::json!({"model": "m", "input": "hi", "max_output_tokens": 1});
            let answer = worker.client().post("/v1/responses").json(&body).send();
            made.push(answer.await.unwrap().status().as_u16());
        }
        assert!(made.iter().any(|status| *status >= 500), "{word}: {made:?}");
        assert_eq!(retried(&worker, word).await, retries);
        mocks[0].set_faults(Faults::default());
        statuses(&worker, "m", 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_are_sent_again_than_the_budget_allows_and_none_if_all_fail() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(2).await;
    cluster
        .create_and_wait(model(&mocks, on(&[RetryOn::ServerError], 5)))
        .await;
    mocks.iter().for_each(|mock| mock.set_faults(always(500)));
    let client = worker.client();
    let mut asked = 0_u64;
    for _ in 0..10 {
        let many = join_all((0..20).map(|_| client.status("m"))).await;
        assert!(many.iter().flatten().all(|status| status.as_u16() == 500));
        asked += 20;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let attempts: u64 = mocks.iter().map(|mock| mock.stats().requests).sum();
    assert!(attempts * 10 <= asked * 12, "{attempts} of {asked}");
    assert!(attempts >= asked);
}
