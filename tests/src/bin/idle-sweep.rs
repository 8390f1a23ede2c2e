//! The long run of the idle sweep: upstreams that close after 1, 2, 5 and 30 s, 100,000 requests each (or
//! as many as the first argument says), without any configuration. Ends with 1 if one was lost.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

use std::{process::ExitCode, time::Duration};

use forebay_proto::wire;
use forebay_tests::{Cluster, IdleSweep};
use futures_util::future::join_all;

const REQUESTS: u64 = 100_000;

/// Idle limit in seconds, models. The longer the limit, the more pools, so that all end together.
const SWEEPS: [(u64, usize); 4] = [(1, 4), (2, 8), (5, 20), (30, 100)];

#[tokio::main]
async fn main() -> ExitCode {
    let asked = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let requests = asked.unwrap_or(REQUESTS);
    let (cluster, worker) = Cluster::with_worker().await;
    let room = wire::UpdatePoolSettingsRequest {
        settings: Some(wire::PoolDefaults {
            max_concurrent: Some(20),
            max_models_concurrent: Some(100),
            ..wire::PoolDefaults::default()
        }),
        ..wire::UpdatePoolSettingsRequest::default()
    };
    let settings = cluster.settings().update_pool_settings(room).await;
    settings.expect("a budget for all pools");
    let sweeps = SWEEPS.map(|(limit, models)| IdleSweep {
        limit: Duration::from_secs(limit),
        models,
        burst: 100,
        requests,
    });
    let runs = sweeps.map(|sweep| sweep.run(&cluster, &worker));
    let swept = join_all(runs).await;
    println!(
        "| upstream closes after | requests | failed | run by the upstream | closed idle by it | opened |"
    );
    println!("|---|---|---|---|---|---|");
    for (sweep, seen) in sweeps.iter().zip(&swept) {
        println!(
            "| {:?} | {} | {} | {} | {} | {} |",
            sweep.limit, seen.requests, seen.failed, seen.executed, seen.closed_idle, seen.opened
        );
        seen.failures.iter().for_each(|text| println!("{text}"));
    }
    let page = worker.metrics().await;
    let replays = page.sum("forebay_replays_total", &[]);
    println!("sent again: {replays}");
    let lost = |seen: &forebay_tests::Swept| seen.failed > 0 || seen.executed != seen.requests;
    match swept.iter().any(lost) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}
