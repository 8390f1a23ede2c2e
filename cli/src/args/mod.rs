//! The command line.

mod bench;
mod client;
mod discovery;
mod etcd;
mod examples;
mod failure;
mod keys;
mod leases;
mod rings;
mod roles;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use http::Uri;
use tracing_subscriber::EnvFilter;

use self::examples::{EXAMPLES, STANDALONE_EXAMPLES, WORKER_EXAMPLES};
pub(crate) use self::{
    bench::{Bench, Load, Seed, ZeroLoss},
    client::{
        ClientArgs, DEFAULT_CONTROL, EndpointArgs, EndpointProtocol, Fleet, ModelArgs, Models,
        Output, Pool, PoolArgs, ProbeArgs, ProbeMode, QueueCostArg, StreamUsage, StreamingArgs,
        WriteArgs,
    },
    discovery::DiscoveryArgs,
    failure::{FailureArgs, RetryCause},
    keys::{KeyArgs, KeyPriority, Keys, SignArgs},
    roles::{
        AuthMode, Control, ControlListen, FreshArgs, Offline, RoleArgs, Standalone, StoreArgs,
        Worker, WorkerListen,
    },
};

/// A gateway for self-hosted LLMs whose connections are always warm and whose configuration changes
/// live, with nothing lost.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Logs and traces.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs and traces")]
pub(crate) struct LogArgs {
    /// Form of the log on standard error.
    #[arg(long, global = true, hide_env_values = true, env = "FOREBAY_LOG_FORMAT", value_name = "FORM", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// What to log: a level, or a filter such as `info,forebay_dataplane=debug`.
    #[arg(
        long,
        global = true,
        hide_env_values = true,
        env = "FOREBAY_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = log_filter
    )]
    pub(crate) log_level: String,
    /// Send traces to this OTLP collector over gRPC, such as http://127.0.0.1:4317.
    #[arg(
        long,
        global = true,
        hide_env_values = true,
        env = "FOREBAY_OTLP_ENDPOINT",
        value_name = "URL"
    )]
    pub(crate) otlp_endpoint: Option<String>,
}

/// Checks a filter of the log.
fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| {
            format!("{error}; write a level, such as `info`, or `info,forebay_dataplane=debug`")
        })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once per process")]
pub(crate) enum Command {
    /// Run a control plane and a worker in one process.
    #[command(after_help = STANDALONE_EXAMPLES)]
    Standalone(Standalone),
    /// Run a control plane; or export, import, check or move what it keeps.
    Control(Control),
    /// Run a worker: the gateway.
    #[command(after_help = WORKER_EXAMPLES)]
    Worker(Worker),
    /// Register, change and remove models.
    #[command(subcommand)]
    Models(Models),
    /// Make, change and revoke the keys of clients.
    #[command(subcommand)]
    Keys(Keys),
    /// Show and change what every model inherits.
    #[command(subcommand)]
    Pool(Pool),
    /// Show the workers and their leases, and how far a revision has come; diff and roll back revisions; drain and forget
    /// workers.
    #[command(subcommand)]
    Fleet(Fleet),
    /// Measure this gateway, or another one.
    #[command(subcommand)]
    Bench(Bench),
    /// Ask a URL whether it answers 200; for container health checks.
    Health {
        /// What to ask.
        #[arg(long, default_value = "http://127.0.0.1:8081/readyz")]
        url: Uri,
    },
    /// Print a completion script for a shell.
    Completions { shell: Shell },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (line, flag) in [
            (&["forebay", "control", "--store", "mysql:x"][..], "--store"),
            (
                &["forebay", "worker", "--worker-id", "a b"][..],
                "--worker-id",
            ),
            (
                &["forebay", "control", "--gateway-max-concurrent", "0"][..],
                "--gateway-max-concurrent",
            ),
            (&["forebay", "models", "create", "x"][..], "--endpoint"),
        ] {
            let error = Cli::try_parse_from(line).unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
    }
}
