//! The flags of the commands that ask a control plane.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use http::Uri;

use super::{
    discovery::DiscoveryArgs,
    examples::{
        APPLY_EXAMPLES, CREATE_EXAMPLES, DIFF_EXAMPLES, ROLLOUT_EXAMPLES, SET_EXAMPLES,
        UPDATE_EXAMPLES,
    },
    failure::FailureArgs,
    leases::ScopeArgs,
};

/// Where client commands and workers look for the control plane unless told otherwise.
pub(crate) const DEFAULT_CONTROL: &str = "http://127.0.0.1:50051";

/// Reads the url of a control plane.
pub(super) fn control_url(text: &str) -> Result<Uri, String> {
    let way_out = "write it as http://HOST:PORT";
    let url: Uri = text
        .parse()
        .map_err(|error| format!("not a url ({error}); {way_out}"))?;
    match (url.scheme_str(), url.authority()) {
        (Some("http"), Some(_)) => Ok(url),
        (Some("http") | None, _) => Err(format!("no scheme or no host; {way_out}")),
        (Some(scheme), _) => Err(format!("scheme `{scheme}` is not supported; {way_out}")),
    }
}

/// How client commands reach the control plane and print.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Call and output")]
pub(crate) struct ClientArgs {
    /// The control plane; of several, separated by commas, the first that answers.
    #[arg(long, hide_env_values = true, env = "FOREBAY_CONTROL", value_name = "URL", value_delimiter = ',', value_parser = control_url, default_value = DEFAULT_CONTROL)]
    pub(crate) control: Vec<Uri>,
    /// Form of the output.
    #[arg(short, long, hide_env_values = true, env = "FOREBAY_OUTPUT", value_name = "FORM", value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Longest wait for an answer.
    #[arg(long, hide_env_values = true, env = "FOREBAY_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
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
#[command(next_help_heading = "Write")]
pub(crate) struct WriteArgs {
    /// Check everything, but write nothing.
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) validate_only: bool,
    /// Makes the write idempotent. [default: a new UUID]
    #[arg(long, value_name = "ID")]
    pub(crate) request_id: Option<String>,
    /// Why, for the history of revisions.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Who, for the history of revisions. [default: the name of the user]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_AUTHOR",
        value_name = "NAME"
    )]
    pub(crate) author: Option<String>,
}

/// By what requests are weighed against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QueueCostArg {
    /// Each counts as one.
    Request,
    /// By their size, a token for each four bytes.
    Tokens,
}

/// What can be said of a model's pool and deadlines.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Pool and deadlines")]
pub(crate) struct PoolArgs {
    /// Pool size: most requests in flight, and most connections kept warm.
    #[arg(long, value_name = "N")]
    pub(crate) max_concurrent: Option<u32>,
    /// Refused unless it is the pool size; here so that you can see why.
    #[arg(long, value_name = "N")]
    pub(crate) keepalive: Option<u32>,
    /// Most requests waiting.
    #[arg(long, value_name = "N")]
    pub(crate) max_waiting: Option<u32>,
    /// Longest wait, such as 30s.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) max_wait: Option<Duration>,
    /// Request header that names the tenant; tenants take turns. Empty: none.
    #[arg(long, value_name = "HEADER")]
    pub(crate) tenant_header: Option<String>,
    /// Request header that says `high`, `normal` or `low`. Empty: none.
    #[arg(long, value_name = "HEADER")]
    pub(crate) priority_header: Option<String>,
    /// By what requests are weighed against each other where there are fewer slots than tenants.
    #[arg(long, value_enum, value_name = "COST")]
    pub(crate) queue_cost: Option<QueueCostArg>,
    /// Let fewer requests in while the engine is slow, but no fewer than this; 0: never.
    #[arg(long, value_name = "N")]
    pub(crate) adaptive_min: Option<u32>,
    /// A stream whose first byte comes later than this is slow, such as 2s; 0s: by comparison.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) adaptive_first_byte: Option<Duration>,
    /// By comparison: slow is what takes so many percent of the quickest of its size.
    #[arg(long, value_name = "PERCENT")]
    pub(crate) adaptive_tolerance: Option<u32>,
    /// Connections opened ahead of need.
    #[arg(long, value_name = "N")]
    pub(crate) warm: Option<u32>,
    /// Longest idle time of a connection; keep it below the server's own.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Oldest age of a connection; 0s is no limit.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) max_connection_age: Option<Duration>,
    /// Send a request once more when its reused connection was closed at once, unanswered.
    #[arg(long, value_name = "BOOL")]
    pub(crate) replay_unanswered: Option<bool>,
    /// Longest time for a connection to be established.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) connect_timeout: Option<Duration>,
    /// Longest time to the head of a response.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) first_byte_timeout: Option<Duration>,
    /// Longest silence within a response.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) stream_idle_timeout: Option<Duration>,
    /// Longest time for a whole request.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) total_timeout: Option<Duration>,
}

/// How the endpoints are reached; holds for all that are named. A file (`models apply`) can say it for each.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Endpoints")]
pub(crate) struct EndpointArgs {
    /// What is spoken on their connections. [default: http1]
    #[arg(long, value_name = "PROTOCOL", requires = "served")]
    pub(crate) protocol: Option<EndpointProtocol>,
    /// PEM file of the certificates that sign theirs. [default: the roots of the worker's system]
    #[arg(long, value_name = "FILE", requires = "served")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Name that their certificates must have. [default: the url's host]
    #[arg(long, value_name = "NAME", requires = "served")]
    pub(crate) tls_server_name: Option<String>,
    /// Absolute path, on the worker's machine, of the certificate that it shows.
    #[arg(long, value_name = "FILE", requires = "served")]
    pub(crate) tls_client_certificate: Option<String>,
    /// Absolute path, on the worker's machine, of that certificate's key.
    #[arg(long, value_name = "FILE", requires = "served")]
    pub(crate) tls_client_key: Option<String>,
    /// File with the token that requests to an endpoint carry in place of the client's key: of one endpoint by its id
    /// (`e1`, `e2`, … in the order given), or of all. The token is sealed, and never shown again.
    #[arg(long = "credential-file", value_name = "[ENDPOINT=]FILE")]
    pub(crate) credential_files: Vec<String>,
    /// Take away the token of an endpoint, by its id.
    #[arg(long = "clear-credential", value_name = "ENDPOINT")]
    pub(crate) clear_credentials: Vec<String>,
    /// Take any certificate; for trying things on your own machine.
    #[arg(long, requires = "served")]
    pub(crate) tls_skip_verification: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointProtocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
    /// What the server prefers of the two; https only
    Auto,
}

/// Whether it is looked at what the endpoints serve.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Endpoints")]
pub(crate) struct ProbeArgs {
    /// What becomes of endpoints that serve another model. [default: off]
    #[arg(long, value_name = "MODE")]
    pub(crate) probe: Option<ProbeMode>,
    /// Name under which they list it. [default: the model's id]
    #[arg(long, value_name = "NAME")]
    pub(crate) served_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProbeMode {
    /// Nobody looks
    Off,
    /// It is told
    Report,
    /// They are refused, and get no requests
    Enforce,
}

/// How its streams are passed on.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Streams")]
pub(crate) struct StreamingArgs {
    /// Whether the engine is asked for the usage of streams that did not ask; see docs/models.md. [default: pass]
    #[arg(long, value_name = "WORD")]
    pub(crate) stream_usage: Option<StreamUsage>,
    /// Send a comment to a client of a stream that has heard nothing for this long; see docs/models.md. [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) stream_keep_alive: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamUsage {
    /// Requests go as they are
    Pass,
    /// It is asked, and what it adds is taken out again
    Inject,
}

/// What a model can be told beside its names.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    #[command(flatten)]
    pub(crate) reached: EndpointArgs,
    #[command(flatten)]
    pub(crate) discovery: DiscoveryArgs,
    #[command(flatten)]
    pub(crate) probe: ProbeArgs,
    #[command(flatten)]
    pub(crate) failure: FailureArgs,
    #[command(flatten)]
    pub(crate) streaming: StreamingArgs,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
}

/// Where a model is served: endpoints, or sources that name them.
fn served() -> ArgGroup {
    let group = ArgGroup::new("served").args(["endpoints", "discover"]);
    group.multiple(true)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// Register a model.
    #[command(after_help = CREATE_EXAMPLES, group = served().required(true))]
    Create {
        /// What clients put in `model`.
        id: String,
        /// Where it is served, such as http://10.0.0.5:8000; repeat it for several.
        #[arg(long = "endpoint", value_name = "URL")]
        endpoints: Vec<String>,
        /// Another name for it; repeat it for several.
        #[arg(long = "alias", value_name = "NAME")]
        aliases: Vec<String>,
        #[command(flatten)]
        flags: ModelArgs,
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
        /// As they were at this revision. [default: the newest]
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change what is named, and nothing else.
    #[command(after_help = UPDATE_EXAMPLES, group = served())]
    Update {
        id: String,
        /// Replace the endpoints by these.
        #[arg(long = "endpoint", value_name = "URL")]
        endpoints: Vec<String>,
        /// Replace the aliases by these.
        #[arg(long = "alias", value_name = "NAME")]
        aliases: Vec<String>,
        /// Go back to what is inherited, such as `pool.max_concurrent` or `timeouts`.
        #[arg(long = "clear", value_name = "PATH")]
        clear: Vec<String>,
        /// Only if this is still its etag.
        #[arg(long, default_value = "")]
        etag: String,
        #[command(flatten)]
        flags: ModelArgs,
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
    /// Make the registry hold what a file says: JSON or YAML, one model, a list, or `models:`.
    /// What differs is shown first, and written as one revision.
    #[command(after_help = APPLY_EXAMPLES)]
    Apply {
        /// The file; - is standard input.
        #[arg(short, long)]
        file: PathBuf,
        /// Remove the models that the file does not have.
        #[arg(long)]
        prune: bool,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Print all models in the form that `apply` reads.
    Export {
        /// As they were at this revision. [default: the newest]
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
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
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// How many models of default size a worker's budget holds.
        #[arg(long, value_name = "N")]
        max_models_concurrent: Option<u32>,
        /// Go back to the built-in default, such as `warm` or `timeouts`.
        #[arg(long = "clear", value_name = "PATH")]
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
    /// Show what was changed, when, by whom and why; the newest first.
    Revisions {
        /// How many.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what differs between two revisions.
    #[command(after_help = DIFF_EXAMPLES)]
    Diff {
        /// The revision to begin with. [default: the one before the other]
        from: Option<u64>,
        /// The revision to end with. [default: the newest]
        to: Option<u64>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make a new revision with the content of an earlier one; what differs is shown first.
    Rollback {
        /// The revision whose content is wanted.
        revision: u64,
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Have a worker end: it is not ready any more, its requests in flight finish, and it exits.
    Drain {
        /// The worker's id.
        worker: String,
        /// Wait until it is gone.
        #[arg(long)]
        wait: bool,
        /// Longest wait with --wait.
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        within: Duration,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show how limits that hold for all workers together (scope fleet) are lent to them.
    Leases {
        /// One model alone.
        model: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Forget a worker that is not connected and whose process has ended: what is kept for it is free at once.
    Forget {
        /// The worker's id.
        worker: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show how far a revision has come.
    #[command(after_help = ROLLOUT_EXAMPLES)]
    Rollout {
        /// The revision. [default: the newest]
        revision: Option<u64>,
        /// Wait until every connected worker runs it; ends at once when one refuses it.
        #[arg(long)]
        wait: bool,
        /// Longest wait with --wait.
        #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
        within: Duration,
        #[command(flatten)]
        client: ClientArgs,
    },
}
