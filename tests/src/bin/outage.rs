//! All endpoints of a model fail for 60 s (or as many as the first argument says) and return, once for each way to
//! fail. Ends with 1 if upstreams were asked more than 1.2 times a request, got more than twice the steady load when
//! they returned, or were not served from again within five seconds.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

use std::{process::ExitCode, time::Duration};

use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Cluster, Outage, WorkerHandle, model_at};

/// Requests a second.
const RATE: u32 = 50;

fn always(status: u16) -> Faults {
    Faults {
        status: Some(status),
        status_for: u32::MAX,
        ..Faults::default()
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let asked = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let lasts = Duration::from_secs(asked.unwrap_or(60));
    let (_cluster, worker, upstreams) = scene().await;
    println!(
        "| for {lasts:?} all | requests | attempts | first second | last failure after the return | failed after it |"
    );
    println!("|---|---|---|---|---|---|");
    let mut good = true;
    for (what, fault) in faults() {
        let outage = Outage {
            model: "m".to_owned(),
            rate: RATE,
            lasts,
            fault,
        };
        let seen = outage.run(&worker, &upstreams).await;
        println!(
            "| {what} | {} | {} | {} | {:.2} s | {} |",
            seen.requests,
            seen.attempts,
            seen.first_second,
            seen.recovered.as_secs_f64(),
            seen.failed_after
        );
        good &= seen.is_good(RATE);
    }
    println!(
        "ejections: {}",
        worker.metrics().await.sum("forebay_ejections_total", &[])
    );
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Three endpoints of one model, and a policy that sends everything again that it can.
async fn scene() -> (Cluster, WorkerHandle, Vec<MockServer>) {
    let (cluster, worker) = Cluster::with_worker().await;
    let mut upstreams = Vec::new();
    for _ in 0..3 {
        let config = MockConfig::serving("m");
        upstreams.push(MockServer::start(config).await.expect("a mock"));
    }
    let endpoint = |upstream: &MockServer| wire::Endpoint {
        url: upstream.url(),
        ..wire::Endpoint::default()
    };
    let all = wire::RetryOn::Busy as i32..=wire::RetryOn::Reset as i32;
    let model = wire::Model {
        endpoints: upstreams.iter().map(endpoint).collect(),
        retry: Some(wire::Retry {
            max_attempts: Some(3),
            on: all.collect(),
        }),
        timeouts: Some(wire::Timeouts {
            first_byte: Some(prost_types::Duration {
                seconds: 2,
                nanos: 0,
            }),
            ..wire::Timeouts::default()
        }),
        ..model_at("m", "")
    };
    cluster.create_and_wait(model).await;
    (cluster, worker, upstreams)
}

/// Ways to fail.
fn faults() -> [(&'static str, Faults); 5] {
    [
        ("answer 500", always(500)),
        ("answer 503, as a full vLLM", always(503)),
        (
            "close connections as they are made",
            Faults {
                refuse: true,
                ..always(500)
            },
        ),
        (
            "close instead of answering",
            Faults {
                reset_before_response: u32::MAX,
                ..Faults::default()
            },
        ),
        (
            "are silent",
            Faults {
                stall_before_response: u32::MAX,
                ..Faults::default()
            },
        ),
    ]
}
