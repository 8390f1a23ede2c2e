//! The composition root of the control plane: opens the store, binds the port, tells where it
//! listens, then serves until told to stop.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use forebay_proto::{
    PoolSettings, limits,
    probe::{AddressPolicy, Cidr},
    wire,
};
use prometheus::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::Stream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};
use tonic_health::{
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};
use wire::{
    fleet_server::FleetServer, keys_server::KeysServer, model_registry_server::ModelRegistryServer,
    pool_settings_server::PoolSettingsServer, revisions_server::RevisionsServer,
    worker_sync_server::WorkerSyncServer,
};

use crate::{
    accept::incoming,
    cluster::{Cluster, ReplicaSettings},
    etcd::EtcdError,
    exporter::{Exporter, StoreStatus},
    fleet::Fleet,
    http,
    leases::{Board, LeaseSettings, Leases, LocalBoard},
    metrics::Metrics,
    opening::{self, Opened, Opening, Own},
    plan::Plan,
    probe::Prober,
    registry::{RegistryHandle, WriterThread},
    rollout::RolloutSettings,
    secrets::SecretsError,
    service::{
        Context, FleetService, KeysService, ModelsService, RevisionsService, SettingsService,
        SyncService, Watchers,
    },
    session::{self, Abreast},
    store::{OpenError, Recovery, StoreLocation},
};

/// HTTP/2 pings find a peer that is gone without a word.
const PING: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);
/// Most calls at once on one connection.
const MOST_CALLS: u32 = 256;
/// How long calls under way get at the end.
const GRACE: Duration = Duration::from_secs(5);

/// Who may reach the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Programs on this machine.
    LoopbackOnly,
    /// Anybody, without encryption or authentication. Said explicitly.
    Insecure,
}

/// Settings of the process.
#[derive(Debug, Clone)]
pub struct ControlSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether that may be anything but loopback.
    pub exposure: Exposure,
    /// Where the registry is kept.
    pub store: StoreLocation,
    /// The pool settings of a fresh store.
    pub fresh_settings: PoolSettings,
    /// What becomes of a damaged store.
    pub recovery: Recovery,
    /// Oldest age of a worker's stream: each is ended between half of it and all of it, and opened anew. Nothing:
    /// never.
    pub stream_age: Option<Duration>,
    /// How revisions reach the workers in rings. Nothing: all at once.
    pub rings: Option<RolloutSettings>,
    /// Addresses that probes of endpoints may dial although they would not.
    pub probe_allow: Vec<Cidr>,
    /// Where its own secrets are.
    pub secrets: SecretPaths,
    /// How it shares a store with other control planes, if it does.
    pub replica: ReplicaSettings,
    /// How long what is lent of fleet-wide limits holds.
    pub leases: LeaseSettings,
}

/// Where the control plane's own secrets are: in its data directory, unless said otherwise.
#[derive(Debug, Clone, Default)]
pub struct SecretPaths {
    /// Under which clients' keys are hashed.
    pub pepper: Option<PathBuf>,
    /// With which credentials of endpoints are sealed.
    pub seal_key: Option<PathBuf>,
}

/// Why a control plane cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The port must not be reachable from elsewhere.
    #[error(
        "--control-listen {0} can be reached from other machines and there is neither encryption nor \
         authentication; use a loopback address, or say --insecure if that is what you want"
    )]
    Exposed(SocketAddr),
    /// The port cannot be bound.
    #[error("cannot listen on {addr}: {error}; choose another address with --control-listen")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store that is shared cannot be used.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// Its own secrets cannot be had.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The store's content cannot be used.
    #[error(
        "the store cannot be read: {0}; put a copy of it in place, or start with another --data-dir or --store"
    )]
    Load(String),
    /// The server failed.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The writer is gone, and with it the way to the store.
    #[error(
        "the writer of the registry ended; writes that were not answered may have been made; \
         start the control plane again, it reads back what is on disk"
    )]
    WriterEnded,
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A control plane that is bound and ready to run.
#[derive(Debug)]
pub struct BoundControl {
    listener: TcpListener,
    addr: SocketAddr,
    context: Context,
    metrics: Registry,
    writer: WriterThread,
    /// Of a store of its own.
    exporter: Option<Exporter>,
    plan: Plan,
}

impl BoundControl {
    /// Binds the port, opens the store and reads it.
    pub async fn bind(settings: ControlSettings) -> Result<Self, ControlError> {
        let addr = settings.listen;
        if settings.exposure == Exposure::LoopbackOnly && !addr.ip().is_loopback() {
            return Err(ControlError::Exposed(addr));
        }
        let failed = |error| ControlError::Bind { addr, error };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let internal = |error: prometheus::Error| ControlError::Internal(error.to_string());
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).map_err(internal)?);
        let leases = settings.leases;
        let Opened {
            handle,
            writer,
            own,
            kept,
        } = opening::open(Opening {
            store: settings.store,
            fresh: settings.fresh_settings,
            recovery: settings.recovery,
            secrets: settings.secrets,
            replica: settings.replica,
            all_at_once: settings.rings.is_none(),
            metrics: metrics.clone(),
        })
        .await?;
        let (abreast, replica) = among(&own);
        let (status, exporter, cluster) = keep(own, &handle, &metrics);
        let dir = exporter.as_ref().map(|exporter| exporter.dir.clone());
        let board: Arc<dyn Board> = match &cluster {
            Some(cluster) => cluster.board.clone(),
            None => Arc::new(LocalBoard::new(dir)),
        };
        let drains = cluster.as_ref().map(|cluster| cluster.drains());
        let position = handle.published().position.clone();
        tracing::info!(%addr, %position, "control plane ready");
        let context = Context {
            registry: handle,
            fleet: Arc::new(Fleet::default()),
            metrics,
            status,
            prober: Arc::new(prober(addr, settings.probe_allow)),
            abreast,
            replica,
            leases: Arc::new(Leases::new(board, leases, position)),
            drains,
        };
        Ok(Self {
            listener,
            addr,
            context,
            metrics: registry,
            writer,
            exporter,
            plan: Plan {
                stream_age: settings.stream_age,
                staged: settings.rings.map(|rings| (rings, kept)),
                cluster,
            },
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until told to stop; then ends the streams and finishes the writes that were taken.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ControlError> {
        let Self {
            listener,
            context,
            metrics,
            writer,
            exporter,
            plan,
            ..
        } = self;
        let export_stop = CancellationToken::new();
        let exporting = exporter.map(|exporter| exporter.run(export_stop.clone()));
        let exporting = JoinSet::from_iter(exporting);
        let incoming = incoming(listener);
        let served = serve(incoming, context, metrics, plan, shutdown).await;
        // The last handle is gone with the routes: the writer finishes and the store is closed.
        let joined = tokio::task::spawn_blocking(move || writer.join());
        if timeout(GRACE, joined).await.is_err() {
            tracing::warn!("the writer did not finish in time");
        }
        // After the writer: the last export has the last write.
        export_stop.cancel();
        if timeout(GRACE, exporting.join_all()).await.is_err() {
            tracing::warn!("the last export did not finish in time");
        }
        served
    }
}

/// Whether it hears from its store, and what it is called among those that have the same.
fn among(own: &Own) -> (Abreast, Arc<str>) {
    match own {
        // The store is part of the process.
        Own::Directory { .. } => (Abreast::always(), Arc::from("")),
        Own::Shared(cluster) => {
            let name = Arc::from(cluster.shared.replica.name.as_str());
            (Abreast::told_by(cluster.shared.lag.watch()), name)
        }
    }
}

/// Serves what comes in until told to stop; then ends the streams.
pub(crate) async fn serve<Io>(
    incoming: impl Stream<Item = io::Result<Io>>,
    context: Context,
    metrics: Registry,
    plan: Plan,
    shutdown: CancellationToken,
) -> Result<(), ControlError>
where
    Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let sessions = TaskTracker::new();
    let published = context.registry.watch();
    let (feed, offers) = session::targets(&published);
    let counts = context.metrics.clone();
    sessions.spawn(session::follow(published, feed, counts, shutdown.clone()));
    let stream_age = plan.stream_age;
    let (offers, alone) = plan.begin(&context, offers, &sessions, &shutdown).await;
    // Held to the end of the select: otherwise a server that ends in good order lets go of the writer
    // first, and that would look like a writer that died.
    let registry = context.registry.clone();
    let trouble = registry.trouble();
    let (reporter, health) = tonic_health::server::health_reporter();
    let sync = SyncService {
        context: context.clone(),
        offers,
        ages: stream_age.map(|most| most / 2..=most),
        sessions: sessions.clone(),
        stopping: shutdown.clone(),
    };
    let routes = routes(context, sync, metrics, health)?;
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING_ANSWER))
        .max_concurrent_streams(Some(MOST_CALLS))
        .add_routes(routes);
    let stop = shutdown.clone();
    let serving = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    let served = tokio::select! {
        served = serving => served.map_err(ControlError::from),
        () = async { shutdown.cancelled().await; sleep(GRACE).await } => Ok(()),
        () = watch_store(trouble, reporter) => Err(ControlError::WriterEnded),
    };
    drop((registry, alone));
    shutdown.cancel();
    end_sessions(&sessions).await;
    served
}

/// Waits a little for what streams have to say at their end.
async fn end_sessions(sessions: &TaskTracker) {
    sessions.close();
    if timeout(GRACE, sessions.wait()).await.is_err() {
        tracing::warn!(
            left = sessions.len(),
            "streams of workers did not end in time"
        );
    }
}

/// What keeps the store well while it works, and what tells of it.
fn keep(
    own: Own,
    handle: &RegistryHandle,
    metrics: &Arc<Metrics>,
) -> (Arc<StoreStatus>, Option<Exporter>, Option<Box<Cluster>>) {
    match own {
        Own::Directory {
            dir,
            lock,
            recovered,
        } => {
            metrics.recovered.set(recovered.is_some().into());
            let status = Arc::new(StoreStatus::new(recovered));
            let exporter = Exporter {
                dir,
                lock,
                published: handle.watch(),
                keys: handle.watch_keys(),
                status: status.clone(),
                metrics: metrics.clone(),
            };
            (status, Some(exporter), None)
        }
        Own::Shared(cluster) => {
            let status = StoreStatus::shared(cluster.shared.lag.clone());
            (Arc::new(status), None, Some(cluster))
        }
    }
}

/// Whoever listens on loopback only is on a machine for trying things out, with its engines beside it.
fn prober(own: SocketAddr, allowed: Vec<Cidr>) -> Prober {
    Prober::new(AddressPolicy {
        loopback: own.ip().is_loopback(),
        allowed,
        own: Some(own),
    })
}

/// Tells of the store's health for as long as there is a writer.
async fn watch_store(mut trouble: watch::Receiver<Option<String>>, health: HealthReporter) {
    type Models = ModelRegistryServer<ModelsService>;
    type Settings = PoolSettingsServer<SettingsService>;
    type Revisions = RevisionsServer<RevisionsService>;
    type Keys = KeysServer<KeysService>;
    health.set_serving::<FleetServer<FleetService>>().await;
    loop {
        let failed = trouble.borrow_and_update().is_some();
        if failed {
            health.set_not_serving::<Models>().await;
            health.set_not_serving::<Settings>().await;
            health.set_not_serving::<Revisions>().await;
            health.set_not_serving::<Keys>().await;
        } else {
            health.set_serving::<Models>().await;
            health.set_serving::<Settings>().await;
            health.set_serving::<Revisions>().await;
            health.set_serving::<Keys>().await;
        }
        if trouble.changed().await.is_err() {
            return;
        }
    }
}

fn routes(
    context: Context,
    sync: SyncService,
    metrics: Registry,
    health: HealthServer<impl Health>,
) -> Result<Routes, ControlError> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(wire::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let internal =
        |error: tonic_reflection::server::Error| ControlError::Internal(error.to_string());
    let v1 = reflection().build_v1().map_err(internal)?;
    let v1alpha = reflection().build_v1alpha().map_err(internal)?;
    let models = ModelRegistryServer::new(ModelsService(context.clone()));
    let settings = PoolSettingsServer::new(SettingsService(context.clone()));
    let fleet = FleetServer::new(FleetService {
        context: context.clone(),
        watchers: Watchers::new(sync.stopping.clone()),
    });
    let revisions = RevisionsServer::new(RevisionsService(context.clone()));
    let keys = KeysServer::new(KeysService(context.clone()));
    let sync = WorkerSyncServer::new(sync)
        .max_decoding_message_size(limits::WORKER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES);
    let routes = Routes::from(http::routes(context, metrics));
    Ok(routes
        .add_service(health)
        .add_service(v1)
        .add_service(v1alpha)
        .add_service(models.max_decoding_message_size(limits::MESSAGE_BYTES))
        .add_service(settings.max_decoding_message_size(limits::MESSAGE_BYTES))
        .add_service(revisions)
        .add_service(keys)
        .add_service(fleet.max_encoding_message_size(4 * limits::MESSAGE_BYTES))
        .add_service(sync))
}
