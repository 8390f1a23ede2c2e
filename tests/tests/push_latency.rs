//! How soon a registration is served: from the RPC's answer to the first 200 through the gateway.

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Cluster, model_at};
use reqwest::StatusCode;
use tokio::time::{Instant, sleep, timeout};

const REGISTRATIONS: usize = 200;
const P99: Duration = Duration::from_millis(50);
const LONE: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_served_at_once() {
    let (cluster, worker) = Cluster::with_worker().await;
    let ids: Vec<_> = (0..REGISTRATIONS).map(|n| format!("model-{n}")).collect();
    let upstream = MockServer::start(MockConfig {
        models: ids.clone(),
        ..MockConfig::default()
    })
    .await
    .unwrap();
    let client = worker.client();
    let mut took = Vec::new();
    for id in &ids {
        let model = wire::Model {
            pool: Some(wire::Pool {
                // 200 models of 50 would want more open files than a process usually gets.
                max_concurrent: Some(10),
                ..wire::Pool::default()
            }),
            ..model_at(id, &upstream.url())
        };
        cluster.create(model).await;
        let answered = Instant::now();
        let served = async { while client.status(id).await != Some(StatusCode::OK) {} };
        timeout(PATIENCE, served).await.unwrap();
        took.push(answered.elapsed());
        // A lone write: in a storm pushes keep 50 ms apart.
        sleep(LONE).await;
    }
    took.sort();
    let (p50, p99, most) = (took[100], took[197], took[199]);
    println!("{REGISTRATIONS} registrations to first 200: p50 {p50:?}, p99 {p99:?}, max {most:?}");
    assert!(p99 < P99, "p99 {p99:?}");
}
