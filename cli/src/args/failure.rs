//! The flags that say what becomes of a model's requests when its endpoints fail.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// Checks, ejection, retries, and the models that stand in.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Failure")]
pub(crate) struct FailureArgs {
    /// Check endpoints by asking for this path, such as /health. [default: no checks]
    #[arg(long, value_name = "PATH")]
    pub(crate) health_path: Option<String>,
    /// Time between two checks. [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) health_interval: Option<Duration>,
    /// Longest time for the answer to a check. [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) health_timeout: Option<Duration>,
    /// Failed checks in a row that take an endpoint out. [default: 3]
    #[arg(long, value_name = "N")]
    pub(crate) unhealthy_after: Option<u32>,
    /// Good checks in a row that give it its trial. [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) healthy_after: Option<u32>,
    /// Broken answers in a row that take an endpoint out; 0 is never. [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) eject_after: Option<u32>,
    /// The first time out; doubles. [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) eject_time: Option<Duration>,
    /// The longest time out. [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) eject_max_time: Option<Duration>,
    /// All serve if more than this share of the weight would be out. [default: 50]
    #[arg(long, value_name = "PERCENT")]
    pub(crate) panic_percent: Option<u32>,
    /// Most endpoints that one request is sent to. [default: 2]
    #[arg(long, value_name = "N")]
    pub(crate) max_attempts: Option<u32>,
    /// After what it is sent to another; repeat it, or separate by commas. [default: busy]
    #[arg(long, value_name = "CAUSE", value_delimiter = ',')]
    pub(crate) retry_on: Vec<RetryCause>,
    /// A model that stands in when no endpoint can serve; repeat it for several, in order.
    #[arg(long = "fallback", value_name = "MODEL")]
    pub(crate) fallbacks: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RetryCause {
    /// 429 or 503: it was not taken
    Busy,
    /// 502: it may have run
    BadGateway,
    /// 500: it may have run
    ServerError,
    /// No answer, or none that can be read: it may have run
    Reset,
}
