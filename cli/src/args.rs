//! The command line. Every flag has an environment variable.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use forebay_control::StoreLocation;
use forebay_proto::WorkerId;
use http::Uri;

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

const EXAMPLES: &str = "\
Examples:
  forebay standalone --demo                 everything in one process, with three built-in models
  forebay models create llama --endpoint http://10.0.0.5:8000
  forebay models update llama --max-concurrent 80
  forebay fleet rollout --wait";

/// Logs and traces.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Form of the log on standard error.
    #[arg(long, global = true, env = "FOREBAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// What to log: a level, or a filter such as `info,forebay_dataplane=debug`.
    #[arg(long, global = true, env = "FOREBAY_LOG", default_value = "info")]
    pub(crate) log_level: String,
    /// Send traces to this OTLP collector over gRPC, such as http://127.0.0.1:4317.
    #[arg(long, global = true, env = "FOREBAY_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a control plane and a worker in one process.
    Standalone(Standalone),
    /// Run a control plane.
    Control(Control),
    /// Run a worker: the gateway.
    Worker(Worker),
    /// Register, change and remove models.
    #[command(subcommand)]
    Models(Models),
    /// Show and change what every model inherits.
    #[command(subcommand)]
    Pool(Pool),
    /// Show the workers, and how far a revision has come.
    #[command(subcommand)]
    Fleet(Fleet),
    /// Ask a URL whether it answers 200; for container health checks.
    Health {
        /// What to ask.
        #[arg(long, default_value = "http://127.0.0.1:8081/readyz")]
        url: Uri,
    },
    /// Print a completion script for a shell.
    Completions { shell: Shell },
}

/// The pool settings that a fresh control plane begins with.
#[derive(Debug, Args)]
pub(crate) struct FreshArgs {
    /// Pool size of a model on a fresh store, unless the model says otherwise.
    #[arg(long, env = "GATEWAY_MAX_CONCURRENT", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) gateway_max_concurrent: u32,
    /// How many models of that size a worker's budget holds, on a fresh store.
    #[arg(long, env = "GATEWAY_MAX_MODELS_CONCURRENT", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) gateway_max_models_concurrent: u32,
}

/// Where a control plane listens.
#[derive(Debug, Args)]
pub(crate) struct ControlListen {
    /// Address of the control port: gRPC, and /metrics, /livez, /readyz.
    #[arg(
        long,
        env = "FOREBAY_CONTROL_LISTEN",
        default_value = "127.0.0.1:50051"
    )]
    pub(crate) control_listen: SocketAddr,
}

/// Where a worker listens.
#[derive(Debug, Args)]
pub(crate) struct WorkerListen {
    /// Address of the gateway.
    #[arg(long, env = "FOREBAY_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Address of the admin port: /metrics, /livez, /readyz, /pools, /config.
    #[arg(long, env = "FOREBAY_ADMIN_LISTEN", default_value = "127.0.0.1:8081")]
    pub(crate) admin_listen: SocketAddr,
    /// Largest body of a request, in bytes.
    #[arg(long, env = "FOREBAY_MAX_BODY_BYTES", default_value_t = 32 << 20)]
    pub(crate) max_body_bytes: usize,
    /// How long requests in flight get when the worker stops.
    #[arg(long, env = "FOREBAY_GRACE", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
}

/// What both planes share.
#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    /// Directory for the store and the last known good configuration.
    /// [default: forebay below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "FOREBAY_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Allow addresses that other machines can reach, without encryption or authentication.
    #[arg(long, env = "FOREBAY_INSECURE")]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Standalone {
    /// Add three built-in models and a little traffic, in a data directory that is thrown away.
    #[arg(long)]
    pub(crate) demo: bool,
    #[command(flatten)]
    pub(crate) control: ControlListen,
    #[command(flatten)]
    pub(crate) worker: WorkerListen,
    #[command(flatten)]
    pub(crate) role: RoleArgs,
    #[command(flatten)]
    pub(crate) fresh: FreshArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Control {
    #[command(flatten)]
    pub(crate) control: ControlListen,
    /// Where to keep the registry: sled:DIRECTORY. [default: sled: and `control` below the data directory]
    #[arg(long, env = "FOREBAY_STORE")]
    pub(crate) store: Option<StoreLocation>,
    #[command(flatten)]
    pub(crate) role: RoleArgs,
    #[command(flatten)]
    pub(crate) fresh: FreshArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// Control planes to follow, separated by commas.
    #[arg(long, env = "FOREBAY_CONTROL", value_delimiter = ',', default_value = DEFAULT_CONTROL)]
    pub(crate) control: Vec<Uri>,
    /// Name of this worker, stable over restarts. [default: the host's name]
    #[arg(long, env = "FOREBAY_WORKER_ID")]
    pub(crate) worker_id: Option<WorkerId>,
    #[command(flatten)]
    pub(crate) worker: WorkerListen,
    #[command(flatten)]
    pub(crate) role: RoleArgs,
}

/// Where client commands and workers look for the control plane unless told otherwise.
pub(crate) const DEFAULT_CONTROL: &str = "http://127.0.0.1:50051";

/// How client commands reach the control plane and print.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// The control plane.
    #[arg(long, env = "FOREBAY_CONTROL", default_value = DEFAULT_CONTROL)]
    pub(crate) control: Uri,
    /// Form of the output.
    #[arg(short, long, env = "FOREBAY_OUTPUT", value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Longest wait for an answer.
    #[arg(long, env = "FOREBAY_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: what grpcurl prints.
    Json,
    /// The same as YAML.
    Yaml,
}

/// How a write is made.
#[derive(Debug, Clone, Args)]
pub(crate) struct WriteArgs {
    /// Check everything, but write nothing.
    #[arg(long)]
    pub(crate) validate_only: bool,
    /// Makes the write idempotent. [default: a new UUID]
    #[arg(long)]
    pub(crate) request_id: Option<String>,
}

/// What can be said of a model's pool and deadlines.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PoolArgs {
    /// Pool size: most requests in flight, and most connections kept warm.
    #[arg(long)]
    pub(crate) max_concurrent: Option<u32>,
    /// Refused unless it is the pool size; here so that you can see why.
    #[arg(long)]
    pub(crate) keepalive: Option<u32>,
    /// Most requests waiting.
    #[arg(long)]
    pub(crate) max_waiting: Option<u32>,
    /// Longest wait, such as 30s.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) max_wait: Option<Duration>,
    /// Connections opened ahead of need.
    #[arg(long)]
    pub(crate) warm: Option<u32>,
    /// Longest idle time of a connection; keep it below the server's own.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Oldest age of a connection; 0s is no limit.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) max_connection_age: Option<Duration>,
    /// Longest time for a connection to be established.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) connect_timeout: Option<Duration>,
    /// Longest time to the head of a response.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) first_byte_timeout: Option<Duration>,
    /// Longest silence within a response.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) stream_idle_timeout: Option<Duration>,
    /// Longest time for a whole request.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) total_timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// Register a model.
    Create {
        /// What clients put in `model`.
        id: String,
        /// Where it is served, such as http://10.0.0.5:8000; repeat it for several.
        #[arg(long = "endpoint", required = true)]
        endpoints: Vec<String>,
        /// Another name for it; repeat it for several.
        #[arg(long = "alias")]
        aliases: Vec<String>,
        #[command(flatten)]
        pool: PoolArgs,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one model.
    Get {
        id: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show all models.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change what is named, and nothing else.
    Update {
        id: String,
        /// Replace the endpoints by these.
        #[arg(long = "endpoint")]
        endpoints: Vec<String>,
        /// Replace the aliases by these.
        #[arg(long = "alias")]
        aliases: Vec<String>,
        /// Go back to what is inherited, such as `pool.max_concurrent` or `timeouts`.
        #[arg(long = "clear")]
        clear: Vec<String>,
        /// Only if this is still its etag.
        #[arg(long, default_value = "")]
        etag: String,
        #[command(flatten)]
        pool: PoolArgs,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a model; its requests in flight finish.
    Delete {
        id: String,
        /// Only if this is still its etag.
        #[arg(long, default_value = "")]
        etag: String,
        /// Succeed also when there is no such model.
        #[arg(long)]
        allow_missing: bool,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Create or replace the models of a file: JSON or YAML, one model, a list, or `models:`.
    Apply {
        /// The file; - is standard input.
        #[arg(short, long)]
        file: PathBuf,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Print all models in the form that `apply` reads.
    Export {
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "parsed once per process")]
pub(crate) enum Pool {
    /// Show the pool settings.
    Get {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change what is named; every model that inherits it changes with it.
    Set {
        /// How many models of default size a worker's budget holds.
        #[arg(long)]
        max_models_concurrent: Option<u32>,
        /// Go back to the built-in default, such as `warm` or `timeouts`.
        #[arg(long = "clear")]
        clear: Vec<String>,
        #[command(flatten)]
        pool: PoolArgs,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Fleet {
    /// Show the workers.
    Workers {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show how far a revision has come.
    Rollout {
        /// The revision. [default: the newest]
        revision: Option<u64>,
        /// Wait until every connected worker runs it; fails when one refuses it.
        #[arg(long)]
        wait: bool,
        /// Longest wait with --wait.
        #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
        within: Duration,
        #[command(flatten)]
        client: ClientArgs,
    },
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
