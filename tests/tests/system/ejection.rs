//! An endpoint that breaks is left out and comes back by itself; one that is busy, or has a bad client, stays.

use std::time::Duration;

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Outage, WorkerHandle, eventually, eventually_within, model_at};
use futures_util::future::join_all;
use tokio::time::Instant;

pub(super) fn always(status: u16) -> Faults {
    Faults {
        status: Some(status),
        status_for: u32::MAX,
        ..Faults::default()
    }
}

pub(super) async fn mocks(n: usize) -> Vec<MockServer> {
    let mut mocks = Vec::new();
    for _ in 0..n {
        let config = MockConfig {
            interval: Duration::from_millis(1),
            tokens: 2,
            ..MockConfig::serving("m")
        };
        mocks.push(MockServer::start(config).await.unwrap());
    }
    mocks
}

/// A model at all of them, called `e1`, `e2`, …
pub(super) fn at(id: &str, mocks: &[MockServer]) -> wire::Model {
    let endpoint = |mock: &MockServer| wire::Endpoint {
        url: mock.url(),
        ..wire::Endpoint::default()
    };
    wire::Model {
        endpoints: mocks.iter().map(endpoint).collect(),
        ..model_at(id, "")
    }
}

fn millis(millis: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: millis / 1_000,
        nanos: i32::try_from(millis % 1_000 * 1_000_000).unwrap(),
    })
}

/// Ejected for so long, checked as told.
fn failing(
    id: &str,
    mocks: &[MockServer],
    out: i64,
    health: Option<wire::HealthCheck>,
) -> wire::Model {
    wire::Model {
        ejection: Some(wire::Ejection {
            failures: Some(3),
            base_time: millis(out),
            max_time: millis(out * 4),
            ..wire::Ejection::default()
        }),
        health,
        ..at(id, mocks)
    }
}

fn checked(every: i64) -> Option<wire::HealthCheck> {
    Some(wire::HealthCheck {
        path: "/health".into(),
        interval: millis(every),
        timeout: millis(every / 2),
        unhealthy_after: Some(2),
        healthy_after: Some(1),
    })
}

pub(super) async fn statuses(worker: &WorkerHandle, model: &str, n: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..n {
        let status = worker.client().status(model).await.unwrap();
        statuses.push(status.as_u16());
    }
    statuses
}

async fn state(worker: &WorkerHandle, endpoint: &str) -> String {
    let pools = worker.document("/pools").await;
    let endpoints = pools["pools"][0]["endpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().find(|e| e["id"] == endpoint).unwrap();
    endpoint["state"].as_str().unwrap().to_owned()
}

async fn becomes(worker: &WorkerHandle, endpoint: &str, wanted: &str) {
    let what = format!("{endpoint} becomes {wanted}");
    eventually_within(Duration::from_secs(20), &what, async || {
        (state(worker, endpoint).await == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_breaks_is_left_out_and_comes_back_with_one_request() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(3).await;
    cluster
        .create_and_wait(failing("m", &mocks, 1_500, None))
        .await;
    statuses(&worker, "m", 20).await;
    mocks[0].set_faults(always(500));
    let broken = statuses(&worker, "m", 60).await;
    let broken = broken.iter().filter(|status| **status == 500).count();
    // A third of all, were it not; how many of them it takes depends on how many there are in a time.
    assert!(
        (3..=12).contains(&broken),
        "{broken} before it was left out"
    );
    assert_eq!(state(&worker, "e1").await, "ejected");
    let page = worker.metrics().await;
    let ejected = page.sum(
        "forebay_ejections_total",
        &["model=\"m\"", "reason=\"status\""],
    );
    assert_eq!(ejected, 1.0);
    let out = page.sum(
        "forebay_endpoint_state",
        &["endpoint=\"e1\"", "state=\"ejected\""],
    );
    assert_eq!(out, 1.0);
    // Its time is over: of many at once one shows that it is not sound yet.
    becomes(&worker, "e1", "half_open").await;
    mocks[0].reset_stats();
    let client = worker.client();
    let many = join_all((0..20).map(|_| client.status("m"))).await;
    let broken = many.iter().flatten().filter(|s| s.as_u16() == 500);
    assert_eq!(broken.count(), 1);
    assert_eq!(mocks[0].stats().requests, 1);
    // It is sound again.
    mocks[0].set_faults(Faults::default());
    becomes(&worker, "e1", "half_open").await;
    eventually("it is trusted again", async || {
        assert!(statuses(&worker, "m", 5).await.iter().all(|s| *s == 200));
        (state(&worker, "e1").await == "healthy").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storms_of_busy_answers_long_prefills_and_one_bad_client_eject_nobody() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(2).await;
    let mut model = failing("m", &mocks, 1_500, None);
    model.timeouts = Some(wire::Timeouts {
        first_byte: millis(60),
        ..wire::Timeouts::default()
    });
    model.ejection = None;
    // Nothing is hidden by sending it again.
    model.retry = Some(wire::Retry {
        max_attempts: Some(1),
        on: vec![],
    });
    cluster.create_and_wait(model.clone()).await;
    statuses(&worker, "m", 10).await;
    for (faults, expected) in [
        (always(429), 429),
        // vLLM's word for a full queue.
        (always(503), 503),
        (
            Faults {
                stall_before_response: 10,
                ..Faults::default()
            },
            504,
        ),
    ] {
        mocks[0].set_faults(faults.clone());
        let seen = statuses(&worker, "m", 40).await;
        assert!(seen.contains(&expected), "{expected}: {seen:?}");
        mocks[0].set_faults(Faults::default());
    }
    // Whatever this one asks for breaks, on every endpoint; how fast is another matter.
    model.timeouts = None;
    let updated = cluster.update(model).await;
    cluster.rolled_out(updated.revision).await;
    for mock in &mocks {
        mock.set_faults(Faults {
            status_to: Some("bad".into()),
            ..always(500)
        });
    }
    for n in 0..120 {
        let agent = if n % 3 == 0 { "good" } else { "bad" };
        let chat = worker
            .client()
            .chat("m", Chat::Whole, 1)
            .header("user-agent", agent);
        let status = chat.send().await.unwrap().status();
        assert_eq!(status.is_success(), agent == "good");
    }
    let page = worker.metrics().await;
    assert_eq!(page.sum("forebay_ejections_total", &[]), 0.0);
    assert_eq!(state(&worker, "e1").await, "healthy");
    assert_eq!(state(&worker, "e2").await, "healthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_find_a_dead_engine_and_its_return_without_a_request() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(2).await;
    cluster
        .create_and_wait(failing("m", &mocks, 60_000, checked(200)))
        .await;
    mocks[0].set_faults(Faults {
        health: Some(503),
        ..always(500)
    });
    becomes(&worker, "e1", "ejected").await;
    assert_eq!(
        statuses(&worker, "m", 30).await,
        [200; 30],
        "nobody was hurt"
    );
    mocks[0].set_faults(Faults::default());
    becomes(&worker, "e1", "half_open").await;
    eventually("it serves", async || {
        statuses(&worker, "m", 4).await;
        (state(&worker, "e1").await == "healthy").then_some(())
    })
    .await;
    assert!(mocks[0].stats().requests > 0);
    // The checks' own connections are no part of the pool.
    let page = worker.metrics().await;
    let opened = page.sum("forebay_pool_connections_opened_total", &[]);
    assert!(opened < 20.0, "{opened}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_gets_no_answer_ejects_only_where_nothing_moves() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mut servers = Vec::new();
    for _ in 0..2 {
        let config = MockConfig {
            interval: Duration::from_millis(20),
            tokens: 10_000,
            ..MockConfig::serving("m")
        };
        servers.push(MockServer::start(config).await.unwrap());
    }
    cluster
        .create_and_wait(failing("m", &servers, 60_000, checked(400)))
        .await;
    // Streams run on both.
    let client = worker.client();
    let mut streams = Vec::new();
    while servers.iter().any(|server| server.stats().in_flight == 0) {
        streams.push(client.chat("m", Chat::Stream, 10_000).send().await.unwrap());
    }
    servers[0].set_faults(Faults {
        health_stalls: true,
        ..Faults::default()
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        for stream in &mut streams {
            stream.chunk().await.unwrap();
        }
        assert_eq!(state(&worker, "e1").await, "healthy", "it is busy");
    }
    drop(streams);
    becomes(&worker, "e1", "ejected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_fail_none_is_asked_more_often_and_all_are_back_at_once() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(3).await;
    cluster
        .create_and_wait(failing("m", &mocks, 1_000, None))
        .await;
    statuses(&worker, "m", 20).await;
    for fault in [
        always(500),
        always(503),
        Faults {
            refuse: true,
            ..always(500)
        },
    ] {
        mocks.iter().for_each(|mock| mock.reset_stats());
        mocks.iter().for_each(|mock| mock.set_faults(fault.clone()));
        let (mut asked, began) = (0_u64, Instant::now());
        while began.elapsed() < Duration::from_secs(2) {
            statuses(&worker, "m", 1).await;
            asked += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let attempts: u64 = mocks.iter().map(|mock| mock.stats().requests).sum();
        assert!(
            attempts * 10 <= asked * 12 + 30,
            "{attempts} attempts of {asked} requests"
        );
        mocks
            .iter()
            .for_each(|mock| mock.set_faults(Faults::default()));
        let began = Instant::now();
        eventually_within(Duration::from_secs(10), "it is back", async || {
            let seen = statuses(&worker, "m", 10).await;
            seen.iter().all(|status| *status == 200).then_some(())
        })
        .await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

/// The short form of `outage`, which does it for a minute and in more ways.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_all_is_no_storm_and_its_end_no_stampede() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = mocks(3).await;
    cluster.create_and_wait(at("m", &mocks)).await;
    let outage = Outage {
        model: "m".into(),
        rate: 40,
        lasts: Duration::from_secs(4),
        fault: always(500),
    };
    let seen = outage.run(&worker, &mocks).await;
    assert!(seen.requests >= 100, "{seen:?}");
    assert!(seen.is_good(outage.rate), "{seen:?}");
}
