//! Clients that ask for streams and read nothing: what a worker holds for each, when it hangs up on them, and whether
//! others notice. `stalled-readers [READERS] [http1|http2]`: the second is what the upstream speaks. The worker (and a
//! control plane, which rests) is a process of its own: this program, run once more.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use forebay_mock::{MockConfig, MockServer, Speaks};
use forebay_proto::wire;
use forebay_tests::{
    Chat, Client, Cluster, Ended, Process, RawClient, Scrape, eventually_within, model_at,
};
use tokio::time::{Instant, sleep};

const READERS: usize = 1_000;
const MOST_KIB: f64 = 256.0;

#[tokio::main]
async fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    match asked.as_slice() {
        ["worker", url, protocol] => worker(url, protocol).await,
        [] => measure(READERS, "http1").await,
        [readers] => measure(readers.parse().expect("a number"), "http1").await,
        [readers, protocol, ..] => measure(readers.parse().expect("a number"), protocol).await,
    }
}

async fn worker(url: &str, protocol: &str) -> ExitCode {
    let (cluster, worker) = Cluster::with_worker().await;
    let settings = wire::UpdatePoolSettingsRequest {
        settings: Some(wire::PoolDefaults {
            max_concurrent: Some(2_000),
            max_models_concurrent: Some(1),
            ..wire::PoolDefaults::default()
        }),
        ..wire::UpdatePoolSettingsRequest::default()
    };
    let updated = cluster.settings().update_pool_settings(settings).await;
    updated.expect("a large pool");
    let mut model = model_at("m", url);
    if protocol == "http2" {
        for endpoint in &mut model.endpoints {
            endpoint.protocol = wire::EndpointProtocol::Http2.into();
        }
    }
    cluster.create_and_wait(model).await;
    println!("serves {} {}", worker.gateway(), worker.admin());
    std::future::pending().await
}

async fn measure(readers: usize, protocol: &str) -> ExitCode {
    let mock = MockServer::start(MockConfig {
        interval: Duration::ZERO,
        speaks: match protocol {
            "http2" => Speaks::Http2,
            _ => Speaks::Http1,
        },
        ..MockConfig::serving("m")
    });
    let mock = mock.await.expect("an upstream");
    let program = std::env::current_exe().expect("this program");
    let mut child = Process::start(program, &["worker", &mock.url(), protocol], &[]);
    let serves = child.printed("serves ").await;
    let mut addrs = serves
        .split_whitespace()
        .map(|addr| addr.parse::<SocketAddr>().expect("an address"));
    let (gateway, admin) = (addrs.next().unwrap(), addrs.next().unwrap());
    let client = Client::new(gateway);
    assert_eq!(client.finish("m", Chat::Stream, 100).await, Ended::Well);
    let before = kib(child.id());
    let mut stalled = Vec::new();
    for _ in 0..readers {
        let mut reader = RawClient::connect(gateway).await;
        reader.chat("m", true, 1_000_000_000).await;
        stalled.push(reader);
    }
    let began = Instant::now();
    let (mut healthy, mut failed, mut most) = (0, 0, 0);
    let over = async || {
        let page = reqwest::get(format!("http://{admin}/metrics")).await.ok()?;
        let page = Scrape::new(page.text().await.ok()?);
        let gone = page.sum("forebay_streams_total", &["not_read"]);
        (gone >= readers as f64).then_some(())
    };
    while over().await.is_none() && began.elapsed() < Duration::from_secs(90) {
        match client.finish("m", Chat::Stream, 100).await {
            Ended::Well => healthy += 1,
            other => {
                failed += 1;
                println!("{other:?}");
            }
        }
        most = most.max(kib(child.id()));
        sleep(Duration::from_millis(200)).await;
    }
    let closed = began.elapsed();
    let cancelled = mock.stats().cancelled;
    let upstream = eventually_within(Duration::from_secs(5), "no stream upstream", async || {
        (mock.stats().in_flight == 0).then_some(())
    });
    upstream.await;
    let each = most.saturating_sub(before) as f64 / readers as f64;
    println!(
        "{readers} readers, upstream {protocol}: {each:.0} KiB each of the worker's memory; all hung up on {closed:.1?} \
         after the last had asked; {cancelled} cancelled upstream; others meanwhile: {healthy} well, {failed} failed"
    );
    drop(stalled);
    let bad = each > MOST_KIB || failed > 0 || closed > Duration::from_secs(61);
    if bad {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Resident memory of a process.
fn kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}
