//! The mock vLLM as a program of its own, for compose files and for trying things by hand.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use forebay_mock::{MockConfig, MockServer};
use tokio::signal::unix::{SignalKind, signal};

/// A mock vLLM: made-up tokens, uvicorn's connection habits, faults on demand (`PUT /__faults`) and
/// exact counts (`GET /__stats`).
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen on.
    #[arg(long, env = "MOCK_LISTEN", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Models to serve, separated by commas.
    #[arg(
        long,
        env = "MOCK_MODELS",
        value_delimiter = ',',
        default_value = "mock"
    )]
    models: Vec<String>,
    /// Name told in the `x-mock-name` header.
    #[arg(long, env = "MOCK_NAME", default_value = "mock")]
    name: String,
    /// Milliseconds from a request to the head of its response.
    #[arg(long, env = "MOCK_LATENCY_MS", default_value_t = 0)]
    latency_ms: u64,
    /// Tokens of a response.
    #[arg(long, env = "MOCK_TOKENS", default_value_t = 16)]
    tokens: u32,
    /// Milliseconds between tokens.
    #[arg(long, env = "MOCK_INTERVAL_MS", default_value_t = 20)]
    interval_ms: u64,
    /// Milliseconds after a response until an idle connection is closed; 0 is never.
    #[arg(long, env = "MOCK_KEEP_ALIVE_MS", default_value_t = 5_000)]
    keep_alive_ms: u64,
    /// Milliseconds before the first byte of a new connection is read.
    #[arg(long, env = "MOCK_ACCEPT_DELAY_MS", default_value_t = 0)]
    accept_delay_ms: u64,
    /// Key that requests must carry.
    #[arg(long, env = "MOCK_API_KEY")]
    api_key: Option<String>,
    /// Requests above this many at once are answered with 503.
    #[arg(long, env = "MOCK_MAX_IN_FLIGHT")]
    max_in_flight: Option<usize>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    let listen = args.listen;
    let server = MockServer::start(MockConfig {
        listen,
        models: args.models,
        name: args.name,
        latency: Duration::from_millis(args.latency_ms),
        tokens: args.tokens,
        interval: Duration::from_millis(args.interval_ms),
        keep_alive: (args.keep_alive_ms > 0).then(|| Duration::from_millis(args.keep_alive_ms)),
        accept_delay: Duration::from_millis(args.accept_delay_ms),
        api_key: args.api_key,
        max_in_flight: args.max_in_flight,
        script: None,
    })
    .await
    .with_context(|| format!("cannot listen on {listen}"))?;
    writeln!(std::io::stdout(), "mock vLLM on {}", server.url())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    server.stop().await;
    Ok(())
}
