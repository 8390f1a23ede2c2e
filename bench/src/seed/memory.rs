//! What an idle connection costs Forebay in memory, and what its first request costs a model that was
//! registered warm. Both need a Forebay to themselves.
//!
//! Memory is read twice: when everything has run once, clients included, but few connections are open, and when
//! the pool is full of idle ones. What the allocator keeps of the clients is in both, and falls out.

use std::time::Duration;

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    SeedError,
    gateway::Gateway,
    load::Target,
    plan::{Plan, ratio},
    upstreams::Upstreams,
};

/// Waves that fill the pool.
const WAVES: usize = 3;
/// After the clients are gone; shorter than any idle limit.
const SETTLE: Duration = Duration::from_millis(700);
/// Longest time of a client whom the gateway answers by itself.
const STRANGER_WITHIN: Duration = Duration::from_secs(10);

/// Memory of the process with some idle connections.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// Connections open to upstreams, counted there.
    pub connections: u64,
    /// Resident, in KiB.
    pub rss_kib: u64,
    /// Resident, written to, and not shared, in KiB.
    pub private_dirty_kib: u64,
}

/// What idle connections cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// With hardly any.
    pub few: Reading,
    /// With the pool full.
    pub full: Reading,
    /// The growth of private dirty memory per connection, in KiB.
    pub kib_per_connection: f64,
}

/// The first request after a registration with `warm` set.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Warm {
    /// Connections ahead of need, all models together.
    pub warm: u64,
    /// Connections open before the first request, counted upstream.
    pub opened_before: u64,
    /// Connections that the first request to each model opened.
    pub opened_by_first_requests: u64,
    /// The longest of these requests, in milliseconds.
    pub slowest_first_request: f64,
}

/// Registers with the whole pool warm and sends one request to each model.
pub(crate) async fn warm(
    gateway: &Gateway,
    plan: &Plan,
    upstreams: &Upstreams,
) -> Result<Warm, SeedError> {
    gateway
        .register(plan, &upstreams.urls(), plan.max_concurrent)
        .await?;
    let opened_before = upstreams.opened();
    // The mock's handshake begins when a connection is accepted and is not seen by who connects: let it
    // pass, so that the first request shows what it takes by itself.
    sleep(plan.handshake).await;
    let target = Target::gateway(plan, gateway.addr());
    // All at once: one after the other, the first would be idle for too long, and be replaced, before the
    // last is asked.
    let mut tasks = JoinSet::new();
    for n in 0..plan.models {
        let target = target.clone();
        tasks.spawn(async move {
            let began = Instant::now();
            target.ask(n).await.map(|()| began.elapsed())
        });
    }
    let mut slowest = Duration::ZERO;
    for answered in tasks.join_all().await {
        let latency = answered.map_err(|error| SeedError::First(error.to_string()))?;
        slowest = slowest.max(latency);
    }
    target.close().await;
    Ok(Warm {
        warm: plan.size() as u64,
        opened_before,
        opened_by_first_requests: upstreams.opened() - opened_before,
        slowest_first_request: slowest.as_secs_f64() * 1_000.0,
    })
}

/// Fills the pool and sees what it costs. None where the system does not say.
pub(crate) async fn memory(
    gateway: &Gateway,
    plan: &Plan,
    upstreams: &Upstreams,
) -> Result<Option<Memory>, SeedError> {
    gateway.register(plan, &upstreams.urls(), 0).await?;
    strangers(gateway, plan).await;
    at_once(gateway, plan, plan.models).await;
    let few = reading(gateway, upstreams);
    for _ in 0..WAVES {
        at_once(gateway, plan, plan.size()).await;
    }
    let full = reading(gateway, upstreams);
    let (Some(few), Some(full)) = (few, full) else {
        return Ok(None);
    };
    let grown = full.private_dirty_kib.saturating_sub(few.private_dirty_kib);
    let more = full.connections.saturating_sub(few.connections);
    let kib_per_connection = ratio(small(grown), small(more));
    Ok(Some(Memory {
        few,
        full,
        kib_per_connection,
    }))
}

fn small(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Requests at once from clients who then go away.
async fn at_once(gateway: &Gateway, plan: &Plan, requests: usize) {
    let target = Target::gateway(plan, gateway.addr());
    let mut tasks = JoinSet::new();
    for n in 0..requests {
        let target = target.clone();
        // What fails here shows in the count of connections.
        tasks.spawn(async move { drop(target.ask(n).await) });
    }
    while tasks.join_next().await.is_some() {}
    target.close().await;
    sleep(SETTLE).await;
}

/// As many clients as there are slots, all connected before the first asks, for a model that nobody has:
/// the gateway answers them by itself.
async fn strangers(gateway: &Gateway, plan: &Plan) {
    let mut sockets = Vec::new();
    for _ in 0..plan.size() {
        let connected = timeout(STRANGER_WITHIN, TcpStream::connect(gateway.addr())).await;
        sockets.extend(connected.ok().and_then(Result::ok));
    }
    let mut tasks = JoinSet::new();
    for mut socket in sockets {
        tasks.spawn(async move {
            let asked = timeout(STRANGER_WITHIN, ask_for_nobody(&mut socket)).await;
            drop(asked);
            socket
        });
    }
    let sockets = tasks.join_all().await;
    drop(sockets);
    sleep(SETTLE).await;
}

async fn ask_for_nobody(socket: &mut TcpStream) -> std::io::Result<()> {
    let body = r#"{"model":"nobody","messages":[]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await?;
    // The head of the answer is enough.
    socket.read(&mut [0; 512]).await.map(drop)
}

fn reading(gateway: &Gateway, upstreams: &Upstreams) -> Option<Reading> {
    let id = gateway.id()?;
    let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
    Some(Reading {
        connections: upstreams.open().iter().sum(),
        rss_kib: field(&text, "Rss:")?,
        private_dirty_kib: field(&text, "Private_Dirty:")?,
    })
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_page_is_read() {
        let page = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\n\
                    Rss:               12345 kB\nPrivate_Clean:        7 kB\nPrivate_Dirty:      4567 kB\n";
        assert_eq!(field(page, "Rss:"), Some(12_345));
        assert_eq!(field(page, "Private_Dirty:"), Some(4_567));
        assert_eq!(field(page, "Pss:"), None);
    }
}
