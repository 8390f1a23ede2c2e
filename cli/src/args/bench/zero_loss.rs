//! The flags of `forebay bench zero-loss`.

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use http::{HeaderName, HeaderValue, Uri};

use crate::args::client::Output;

#[derive(Debug, Args)]
pub(crate) struct ZeroLoss {
    #[command(flatten)]
    pub(crate) gateway: GatewayArgs,
    #[command(flatten)]
    pub(crate) upstream: UpstreamArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) hook: HookArgs,
    /// Exit with 0 also when something was lost, done twice or could not be reconfigured.
    #[arg(long)]
    pub(crate) allow_loss: bool,
    /// Form of the report.
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// The gateway that is looked at.
#[derive(Debug, Args)]
#[command(next_help_heading = "Gateway")]
pub(crate) struct GatewayArgs {
    /// Base of its OpenAI interface.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080/v1")]
    pub(crate) url: Uri,
    /// What requests put in `model`; each draws one of these.
    #[arg(
        long = "model",
        value_name = "NAME,…",
        value_delimiter = ',',
        required = true
    )]
    pub(crate) models: Vec<String>,
    /// Add this to every request, such as `authorization: Bearer KEY`; repeat it for several.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

/// The upstreams behind it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Upstreams")]
pub(crate) struct UpstreamArgs {
    /// Where to start counting upstreams; the gateway must lead to them.
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',', default_values = ["127.0.0.1:18001", "127.0.0.1:18002"])]
    pub(crate) upstream_listen: Vec<SocketAddr>,
    /// Start none: the gateway leads to others. Then only the form of answers is checked, and neither
    /// connections nor repeated executions are seen.
    #[arg(long, conflicts_with_all = ["upstream_listen", "upstream_keep_alive"])]
    pub(crate) upstream_elsewhere: bool,
    /// They close a connection that is idle for this long, as vLLM does after 5 s; 0s is never.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) upstream_keep_alive: Duration,
}

/// What is asked of it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Requests a second, whatever becomes of those before.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub(crate) rate: u32,
    /// How much of it is streams, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    pub(crate) stream_share: f64,
    /// Tokens of a stream.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) stream_tokens: u32,
    /// Tokens of a plain answer.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) plain_tokens: u32,
    /// The upstreams' time for a token.
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = humantime::parse_duration)]
    pub(crate) token_interval: Duration,
    /// How long requests are made.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// How long they are made before anything is measured.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
    /// Longest time of one request.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    /// Most requests in flight; what is due above it counts as failed.
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    pub(crate) most_in_flight: u32,
    /// Chooses the models and the streams; the same seed makes the same requests. [default: a new one]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// What reconfigures it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reconfiguration")]
pub(crate) struct HookArgs {
    /// Command that reconfigures the gateway, for `sh -c`. Its environment has FOREBAY_BENCH_STEP (0, 1, …),
    /// FOREBAY_BENCH_UPSTREAMS (ADDR,ADDR), FOREBAY_BENCH_PHASE, FOREBAY_BENCH_URL and FOREBAY_BENCH_SEED.
    #[arg(long, value_name = "CMD")]
    pub(crate) hook: Option<String>,
    /// From one start of it to the next.
    #[arg(long, value_name = "TIME", default_value = "600ms", value_parser = humantime::parse_duration)]
    pub(crate) every: Duration,
    /// How many are started at once, each with a step of its own.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) hooks_per_burst: u32,
    /// Longest time of one; it is killed then, and has failed.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) hook_timeout: Duration,
    /// Make the same requests first without the hook, and tell the difference.
    #[arg(long)]
    pub(crate) baseline: bool,
    /// Run this then instead of the hook, so that starting processes costs the same in both.
    #[arg(long, value_name = "CMD", requires = "baseline", requires = "hook")]
    pub(crate) baseline_hook: Option<String>,
}

/// Reads `NAME: VALUE`.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let way_out = "write it as `NAME: VALUE`";
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| format!("no colon; {way_out}"))?;
    let name = HeaderName::try_from(name.trim())
        .map_err(|_| format!("{:?} is not the name of a header; {way_out}", name.trim()))?;
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| format!("the value has characters that no header may have; {way_out}"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_value() {
        let (name, value) = header("Authorization: Bearer a:b").unwrap();
        assert_eq!(
            (name.as_str(), value.as_bytes()),
            ("authorization", &b"Bearer a:b"[..])
        );
        for bad in ["authorization", "a b: c", ": c", "a: b\nc: d"] {
            assert!(header(bad).unwrap_err().contains("NAME: VALUE"), "{bad}");
        }
    }
}
