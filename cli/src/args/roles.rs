//! The flags of the processes that run: control plane, worker, both. Each has an environment variable.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use forebay_control::StoreLocation;
use forebay_proto::{WorkerId, probe::Cidr};
use http::Uri;

use super::{
    client::{DEFAULT_CONTROL, control_url},
    etcd::EtcdArgs,
    leases::LeaseArgs,
    rings::RingArgs,
};

/// The pool settings that a fresh control plane begins with.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pool settings of a fresh store")]
pub(crate) struct FreshArgs {
    /// Pool size of a model on a fresh store, unless the model says otherwise.
    #[arg(long, hide_env_values = true, env = "GATEWAY_MAX_CONCURRENT", value_name = "N", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) gateway_max_concurrent: u32,
    /// How many models of that size a worker's budget holds, on a fresh store.
    #[arg(long, hide_env_values = true, env = "GATEWAY_MAX_MODELS_CONCURRENT", value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) gateway_max_models_concurrent: u32,
}

/// Where a control plane listens.
#[derive(Debug, Args)]
#[command(next_help_heading = "Control plane")]
pub(crate) struct ControlListen {
    /// Address of the control port: gRPC, and /metrics, /livez, /readyz.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_CONTROL_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50051"
    )]
    pub(crate) control_listen: SocketAddr,
    /// Refuse a damaged store instead of building it again from its automatic export.
    #[arg(long, hide_env_values = true, env = "FOREBAY_NO_RECOVERY")]
    pub(crate) no_recovery: bool,
    /// Oldest age of a worker's stream. Each ends in good order between half of it and all of it and is opened anew,
    /// so that workers spread over control planes again. `0s`: never; otherwise at least `1m`.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_STREAM_AGE",
        value_name = "TIME",
        default_value = "60m",
        value_parser = stream_age
    )]
    pub(crate) stream_age: Duration,
    /// File with the secret under which clients' keys are hashed, in 64 hex digits; more lines are older ones.
    /// [default: `pepper` beside the store, made at the first start]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_PEPPER_FILE",
        value_name = "FILE"
    )]
    pub(crate) pepper_file: Option<PathBuf>,
    /// File with the secret with which credentials of endpoints are sealed, in the same form.
    /// [default: `seal.key` beside the store, made at the first start]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_SEAL_KEY_FILE",
        value_name = "FILE"
    )]
    pub(crate) seal_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rings: RingArgs,
    #[command(flatten)]
    pub(crate) leases: LeaseArgs,
}

/// Who may use a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuthMode {
    /// Who has a key, from the first key on; before that anybody on this machine, and others with --insecure only
    Auto,
    /// Who has a key
    Required,
    /// Anybody, keys or not; on an address that others can reach with --insecure only
    Open,
}

/// Streams that end all the time would leave workers nothing but reconnecting.
fn stream_age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match age.is_zero() || age >= Duration::from_secs(60) {
        true => Ok(age),
        false => Err("must be `0s` (never) or at least `1m`".to_owned()),
    }
}

/// Control planes have other things to do.
fn rebalance_every(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match every.is_zero() || every >= Duration::from_secs(1) {
        true => Ok(every),
        false => Err("must be `0s` (never) or at least `1s`".to_owned()),
    }
}

/// Engines have other things to do.
fn probe_every(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match every >= Duration::from_secs(1) {
        true => Ok(every),
        false => Err("must be at least `1s`".to_owned()),
    }
}

/// Where a worker listens.
#[derive(Debug, Args)]
#[command(next_help_heading = "Worker")]
pub(crate) struct WorkerListen {
    /// Address of the gateway.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub(crate) listen: SocketAddr,
    /// Address of the admin port: /metrics, /livez, /readyz, /pools, /config.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8081"
    )]
    pub(crate) admin_listen: SocketAddr,
    /// DNS servers to ask for the addresses of endpoints, separated by commas. [default: the system's]
    #[arg(
        long = "dns-server",
        hide_env_values = true,
        env = "FOREBAY_DNS_SERVER",
        value_name = "ADDR",
        value_delimiter = ','
    )]
    pub(crate) dns_servers: Vec<SocketAddr>,
    /// Largest body of a request, in bytes.
    #[arg(long, hide_env_values = true, env = "FOREBAY_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 32 << 20)]
    pub(crate) max_body_bytes: usize,
    /// Hosts that clients may ask for, each with a port if only that one is meant, separated by commas; others are
    /// refused (421). [default: all]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_ALLOWED_HOSTS",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub(crate) allowed_hosts: Vec<String>,
    /// Most connections of one client's address (of IPv6, its /64); `0`: as many as there are. Behind a proxy or on
    /// one machine all clients have one address. [default: half of all]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_MAX_CONNECTIONS_PER_PEER",
        value_name = "N"
    )]
    pub(crate) max_connections_per_peer: Option<usize>,
    /// Most bytes of bodies of requests that are held at a time; further ones are refused with 503.
    #[arg(long, hide_env_values = true, env = "FOREBAY_MAX_BUFFERED_BYTES", value_name = "BYTES", default_value_t = 1 << 30)]
    pub(crate) max_buffered_bytes: usize,
    /// How long a pushed configuration is in force until it counts as good and is kept on disk; a worker that ends before
    /// without a word starts from the one before.
    #[arg(long, hide_env_values = true, env = "FOREBAY_SOAK", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) soak: Duration,
    /// How often an endpoint that was found not to serve its model is asked again; about that, at least `1s`.
    #[arg(long, hide_env_values = true, env = "FOREBAY_PROBE_EVERY", value_name = "TIME", default_value = "30s", value_parser = probe_every)]
    pub(crate) probe_every: Duration,
    /// How long a worker that is to stop goes on accepting requests, not ready any more, so that load balancers notice
    /// before its port is closed.
    #[arg(long, hide_env_values = true, env = "FOREBAY_DRAIN_DELAY", value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) drain_delay: Duration,
    /// Who may use the gateway.
    #[arg(long, hide_env_values = true, env = "FOREBAY_AUTH", value_name = "MODE", value_enum, default_value_t = AuthMode::Auto)]
    pub(crate) auth: AuthMode,
    /// What this worker counts for, relative to others, where a fleet-wide limit is not enough for all.
    #[arg(long, hide_env_values = true, env = "FOREBAY_FLEET_WEIGHT", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) fleet_weight: u32,
    /// How long requests in flight get when the worker stops.
    #[arg(long, hide_env_values = true, env = "FOREBAY_GRACE", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
}

/// What both planes share.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data and exposure")]
pub(crate) struct RoleArgs {
    /// Directory for the store and the last known good configuration.
    /// [default: forebay below $XDG_STATE_HOME or ~/.local/state]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_DATA_DIR",
        value_name = "DIR"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// Allow addresses that other machines can reach, without encryption or authentication. A gateway that asks for keys
    /// (see --auth) needs it for no address of its own.
    #[arg(long, hide_env_values = true, env = "FOREBAY_INSECURE")]
    pub(crate) insecure: bool,
    /// Blocks of addresses that probes of endpoints may dial although they would not (link-local, metadata, loopback
    /// of a control plane that others can reach, …), separated by commas.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_PROBE_ALLOW",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) probe_allow: Vec<Cidr>,
}

#[derive(Debug, Args)]
pub(crate) struct Standalone {
    /// Add three built-in models and a little traffic, in a data directory that is thrown away.
    #[arg(long, env = "FOREBAY_DEMO", hide_env_values = true)]
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

/// What is done to a store while no control plane is at work on it.
#[derive(Debug, Subcommand)]
pub(crate) enum Offline {
    /// Write everything registered into one file. Beside a running control plane: as it was a few seconds ago at most.
    Export {
        #[command(flatten)]
        dir: StoreArgs,
        /// The file; it must not exist.
        #[arg(short, long, value_name = "FILE", default_value = "forebay.export")]
        out: PathBuf,
    },
    /// Make the store of an empty data directory from an export. Workers take it over as a whole. An etcd gets it from there,
    /// with `forebay control migrate`: `--store etcd://…` is refused here.
    Import {
        /// The export.
        file: PathBuf,
        #[command(flatten)]
        dir: StoreArgs,
    },
    /// Read everything in a store and say what is wrong. Nothing is changed, but that in an etcd a large commit that was
    /// made, and whose control plane ended before all of it was in its place, is finished.
    Check {
        #[command(flatten)]
        dir: StoreArgs,
    },
    /// Move everything registered, with its history, from a data directory to an etcd or back. The source is left as it
    /// is; the target must be empty. No control plane may be at work on either.
    Migrate {
        /// Where it is: sled:DIRECTORY or etcd://HOST:PORT[,…][/PREFIX].
        #[arg(long, value_name = "STORE")]
        from: StoreLocation,
        /// Where it is to be.
        #[arg(long, value_name = "STORE")]
        to: StoreLocation,
        #[command(flatten)]
        etcd: EtcdArgs,
        /// Allow an etcd on other machines without encryption.
        #[arg(long, hide_env_values = true, env = "FOREBAY_INSECURE")]
        insecure: bool,
    },
    /// Give the registry of an etcd a new epoch, after a snapshot of etcd was restored: workers that hold newer revisions
    /// than it has take it over as a whole.
    NewEpoch {
        /// The store: etcd://HOST:PORT[,…][/PREFIX].
        #[arg(
            long,
            hide_env_values = true,
            env = "FOREBAY_STORE",
            value_name = "STORE"
        )]
        store: StoreLocation,
        #[command(flatten)]
        etcd: EtcdArgs,
        /// Allow an etcd on other machines without encryption.
        #[arg(long, hide_env_values = true, env = "FOREBAY_INSECURE")]
        insecure: bool,
    },
}

/// Which store.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Data directory of the control plane.
    /// [default: forebay below $XDG_STATE_HOME or ~/.local/state]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_DATA_DIR",
        value_name = "DIR"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// The store: sled:DIRECTORY or, but for `import`, etcd://HOST:PORT[,…][/PREFIX].
    /// [default: sled: and `control` below the data directory]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_STORE",
        value_name = "STORE"
    )]
    pub(crate) store: Option<StoreLocation>,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    /// Allow an etcd on other machines without encryption.
    #[arg(long, hide_env_values = true, env = "FOREBAY_INSECURE")]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Control {
    #[command(subcommand)]
    pub(crate) offline: Option<Offline>,
    #[command(flatten)]
    pub(crate) control: ControlListen,
    /// Where to keep the registry: sled:DIRECTORY, or etcd://HOST:PORT[,HOST:PORT…][/PREFIX] (etcds:// with TLS), which
    /// several control planes may share. [default: sled: and `control` below the data directory]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_STORE",
        value_name = "STORE"
    )]
    pub(crate) store: Option<StoreLocation>,
    /// Name of this control plane among those that share an etcd. [default: the host's name]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_REPLICA_ID",
        value_name = "NAME"
    )]
    pub(crate) replica_id: Option<String>,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    #[command(flatten)]
    pub(crate) role: RoleArgs,
    #[command(flatten)]
    pub(crate) fresh: FreshArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// Control planes to follow, separated by commas: any of them will do, as long as they serve the same registry. A
    /// name stands for all its addresses, as long as its records say.
    #[arg(long, hide_env_values = true, env = "FOREBAY_CONTROL", value_name = "URL", value_delimiter = ',', value_parser = control_url, default_value = DEFAULT_CONTROL)]
    pub(crate) control: Vec<Uri>,
    /// Name of this worker, stable over restarts. [default: the host's name]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_WORKER_ID",
        value_name = "ID"
    )]
    pub(crate) worker_id: Option<WorkerId>,
    /// How often it is looked whether another control plane has fewer workers, on average, so that they spread again when
    /// one returns. `0s`: never; otherwise at least `1s`.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_REBALANCE_EVERY",
        value_name = "TIME",
        default_value = "30s",
        value_parser = rebalance_every
    )]
    pub(crate) rebalance_every: Duration,
    /// Take the place of the process of this worker that runs, if one does: its ports, the connections that wait there,
    /// and those of clients as they come to rest. It ends when its last request has. Nobody is refused.
    #[arg(long, hide_env_values = true, env = "FOREBAY_TAKE_OVER")]
    pub(crate) take_over: bool,
    /// Set by a worker that starts its own successor (SIGUSR2): take over, wherever it listens.
    #[arg(long, hide = true, env = "FOREBAY_SUCCESSOR")]
    pub(crate) successor: bool,
    #[command(flatten)]
    pub(crate) worker: WorkerListen,
    #[command(flatten)]
    pub(crate) role: RoleArgs,
}
