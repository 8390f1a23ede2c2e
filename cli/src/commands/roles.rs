//! `forebay control` and `forebay worker`: one plane per process.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use forebay_control::{
    BoundControl, ControlSettings, Recovery, ReplicaSettings, SecretPaths, StoreLocation,
};
use forebay_dataplane::{BoundWorker, HandOver, WorkerSettings, keys::Auth};
use forebay_proto::{PoolSettings, PoolSize, WorkerId, pool::ModelsConcurrent};
use http::Uri;
use tokio_util::sync::CancellationToken;

use super::{offline, standalone::control_flag};
use crate::{
    args::{AuthMode, Control, ControlListen, FreshArgs, LogArgs, RoleArgs, Worker, WorkerListen},
    open_files,
    signals::until_signalled,
    supervisor::{self, Sockets},
    telemetry::Telemetry,
    ui,
};

/// Runs a control plane until a signal.
pub(crate) async fn control(log: &LogArgs, args: Control) -> anyhow::Result<()> {
    if let Some(command) = args.offline {
        return offline::run(command).await;
    }
    let telemetry = Telemetry::start(log, "forebay-control", &host_name())?;
    open_files::raise_limit();
    let store = match args.store {
        Some(store) => store,
        None => StoreLocation::Sled(control_dir(&data_dir(args.role.data_dir.as_deref())?)),
    };
    let mut settings = control_settings(&args.control, &args.role, &args.fresh, store)?;
    settings.replica = ReplicaSettings {
        name: Some(args.replica_id.unwrap_or_else(host_name)),
        access: args.etcd.access(args.role.insecure),
    };
    let bound = BoundControl::bind(settings).await?;
    let addr = bound.addr();
    let (program, flag) = (ui::program(), control_flag(addr));
    ui::say(&format!(
        "Forebay control plane on {addr}: gRPC with reflection, /metrics, /livez, /readyz\n\n\
         Try next:\n  \
         {program} worker{flag}\n  \
         {program} models create NAME --endpoint http://HOST:8000{flag}\n  \
         grpcurl -plaintext {addr} list"
    ));
    supervisor::ready(&format!("serving on {addr}"));
    let shutdown = CancellationToken::new();
    let running = shutdown.clone();
    let work = async { Ok(bound.run(running).await?) };
    let result = until_signalled(work, shutdown).await;
    telemetry.stop().await;
    result
}

/// Runs a worker until a signal.
pub(crate) async fn worker(log: &LogArgs, args: Worker, sockets: Sockets) -> anyhow::Result<()> {
    let id = match args.worker_id {
        Some(id) => id,
        None => WorkerId::new(host_name()).context("--worker-id must be given")?,
    };
    let telemetry = Telemetry::start(log, "forebay-worker", id.as_str())?;
    open_files::raise_limit();
    let control: Vec<_> = args.control.iter().map(ToString::to_string).collect();
    let mut settings = worker_settings(id.clone(), args.control, &args.worker, &args.role)?;
    settings.rebalance_every = Some(args.rebalance_every).filter(|every| !every.is_zero());
    settings.hand_over = match (args.successor, args.take_over) {
        (true, _) => HandOver::Succeed,
        (false, true) => HandOver::TakeOver,
        (false, false) => HandOver::Offer,
    };
    let bound = BoundWorker::bind_with(settings, sockets.of_worker()?).await?;
    ui::say(&format!(
        "Forebay worker {id}\n\n  \
         gateway   http://{}/v1\n  \
         admin     http://{}\n  \
         follows   {}\n\n\
         Try next:\n  \
         curl http://{}/v1/models",
        bound.gateway_addr(),
        bound.admin_addr(),
        control.join(", "),
        bound.gateway_addr(),
    ));
    let shutdown = CancellationToken::new();
    let running = shutdown.clone();
    let (serving, status) = (
        bound.serving(),
        format!("serving on {}", bound.gateway_addr()),
    );
    let work = async {
        let mut tells = std::pin::pin!(async {
            serving.cancelled().await;
            supervisor::ready(&status);
            supervisor::successors().await
        });
        tokio::select! {
            result = bound.run(running) => Ok(result?),
            never = &mut tells => match never {},
        }
    };
    let result = until_signalled(work, shutdown).await;
    telemetry.stop().await;
    result
}

/// The settings of a control plane.
pub(crate) fn control_settings(
    listen: &ControlListen,
    role: &RoleArgs,
    fresh: &FreshArgs,
    store: StoreLocation,
) -> anyhow::Result<ControlSettings> {
    let exposure = match role.insecure {
        true => forebay_control::Exposure::Insecure,
        false => forebay_control::Exposure::LoopbackOnly,
    };
    let fresh_settings = fresh_settings(fresh)?;
    let recovery = match listen.no_recovery {
        true => Recovery::Forbidden,
        false => Recovery::Automatic,
    };
    Ok(ControlSettings {
        listen: listen.control_listen,
        exposure,
        store,
        fresh_settings,
        recovery,
        probe_allow: role.probe_allow.clone(),
        stream_age: Some(listen.stream_age).filter(|age| !age.is_zero()),
        rings: listen.rings.settings(),
        secrets: SecretPaths {
            pepper: listen.pepper_file.clone(),
            seal_key: listen.seal_key_file.clone(),
        },
        replica: ReplicaSettings::default(),
        leases: listen.leases.settings(),
    })
}

/// The settings of a worker.
pub(crate) fn worker_settings(
    worker_id: WorkerId,
    control: Vec<Uri>,
    listen: &WorkerListen,
    role: &RoleArgs,
) -> anyhow::Result<WorkerSettings> {
    let exposure = match role.insecure {
        true => forebay_dataplane::Exposure::Insecure,
        false => forebay_dataplane::Exposure::LoopbackOnly,
    };
    let data_dir = data_dir(role.data_dir.as_deref())?
        .join("worker")
        .join(worker_id.as_str());
    Ok(WorkerSettings {
        worker_id,
        control,
        rebalance_every: None,
        listen: listen.listen,
        admin_listen: listen.admin_listen,
        exposure,
        auth: match listen.auth {
            AuthMode::Auto => Auth::Auto,
            AuthMode::Required => Auth::Required,
            AuthMode::Open => Auth::Open,
        },
        data_dir: Some(data_dir),
        dns_servers: listen.dns_servers.clone(),
        soak: listen.soak,
        probe_every: listen.probe_every,
        probe_allow: role.probe_allow.clone(),
        max_body_bytes: listen.max_body_bytes,
        drain_delay: listen.drain_delay,
        clients: forebay_dataplane::ClientLimits {
            per_peer: listen.max_connections_per_peer,
            allowed_hosts: listen.allowed_hosts.clone(),
            ..forebay_dataplane::ClientLimits::default()
        },
        max_buffered_bytes: listen.max_buffered_bytes,
        grace: listen.grace,
        hand_over: HandOver::Never,
        fleet_weight: listen.fleet_weight,
        build: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Where the store is, below a data directory.
pub(crate) fn control_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("control")
}

/// The data directory: the one given, or the user's own.
pub(crate) fn data_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = state.filter(|dir| dir.is_absolute()).or_else(home);
    let base = base.ok_or_else(|| anyhow!("there is no HOME; name a directory with --data-dir"))?;
    Ok(base.join("forebay"))
}

fn fresh_settings(fresh: &FreshArgs) -> anyhow::Result<PoolSettings> {
    let settings = PoolSettings {
        max_concurrent: PoolSize::new(fresh.gateway_max_concurrent)?,
        max_models_concurrent: ModelsConcurrent::new(fresh.gateway_max_models_concurrent)?,
        ..PoolSettings::default()
    };
    settings
        .budget()
        .context("GATEWAY_MAX_CONCURRENT x GATEWAY_MAX_MODELS_CONCURRENT")?;
    Ok(settings)
}

/// The host's name, as far as it can stand in an id.
fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    name.chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .take(63)
        .collect()
}
