//! How soon a registration is served: from the RPC's answer to the first 200 through the gateway, beside what the RPC
//! itself takes in the same run. `push-latency [REGISTRATIONS]`; control plane, worker and upstream are in this process.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

use std::{process::ExitCode, time::Duration};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Cluster, model_at};
use reqwest::StatusCode;
use tokio::time::{Instant, sleep, timeout};

const REGISTRATIONS: usize = 200;
/// Pushes keep 50 ms apart, and these are to be lone ones.
const LONE: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let asked = std::env::args().nth(1).map(|n| n.parse());
    let Ok(registrations) = asked.unwrap_or(Ok(REGISTRATIONS)) else {
        println!("usage: push-latency [REGISTRATIONS]");
        return ExitCode::from(64);
    };
    let ids: Vec<_> = (0..registrations).map(|n| format!("model-{n}")).collect();
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig {
        models: ids.clone(),
        ..MockConfig::default()
    });
    let upstream = upstream.await.expect("an upstream");
    let client = worker.client();
    let (mut written, mut served) = (Vec::new(), Vec::new());
    for id in &ids {
        let model = wire::Model {
            pool: Some(wire::Pool {
                // So many models of 50 would want more open files than a process usually gets.
                max_concurrent: Some(10),
                ..wire::Pool::default()
            }),
            ..model_at(id, &upstream.url())
        };
        let began = Instant::now();
        cluster.create(model).await;
        written.push(began.elapsed());
        let answered = Instant::now();
        let serves = async { while client.status(id).await != Some(StatusCode::OK) {} };
        if timeout(PATIENCE, serves).await.is_err() {
            println!("`{id}` was not served within {PATIENCE:?}");
            return ExitCode::FAILURE;
        }
        served.push(answered.elapsed());
        sleep(LONE).await;
    }
    let (write, serve) = (percentiles(written), percentiles(served));
    println!("{registrations} registrations, ms | p50 | p99 | most");
    println!("the RPC itself | {}", row(&write));
    println!("from its answer to the first 200 | {}", row(&serve));
    let times = serve.first().zip(write.first());
    println!(
        "ratio of the p50: {:.2}",
        times.map_or(0.0, |(serve, write)| serve / write)
    );
    ExitCode::SUCCESS
}

/// p50, p99 and the most, in milliseconds.
fn percentiles(mut took: Vec<Duration>) -> Vec<f64> {
    took.sort_unstable();
    let last = took.len().saturating_sub(1);
    let at = |percent: usize| took.get(last * percent / 100);
    let millis = |took: &Duration| took.as_secs_f64() * 1e3;
    [50, 99, 100]
        .into_iter()
        .filter_map(at)
        .map(millis)
        .collect()
}

fn row(millis: &[f64]) -> String {
    let cells: Vec<_> = millis.iter().map(|n| format!("{n:.1}")).collect();
    cells.join(" | ")
}
