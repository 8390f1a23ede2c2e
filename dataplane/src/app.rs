//! The composition root of a worker: has its ports opened (`listeners.rs`), reads the last known good configuration,
//! and tells where it listens. `running.rs` has the rest.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use forebay_proto::{InstanceId, WorkerId, probe::Cidr};
use http::Uri;
use prometheus::Registry;
use tokio::net::{TcpListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    admin::Admin,
    apply::{Applier, open_file_limit},
    budget::Budget,
    config_client::{
        ConfigClient, ConfigStatus, Controls, Identity, Keeping, LastKnownGood, lkg_folder,
    },
    ending::Ending,
    gateway::{ClientLimits, Gateway},
    handover::{self, Offer},
    keys::{Auth, KeyCell},
    leases::Leases,
    listeners::{Passed, open},
    live::LiveCell,
    metrics::Metrics,
    pool::{Common, Discovering, Probing},
    resolve::Resolver,
};

/// Who may reach the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Programs on this machine.
    LoopbackOnly,
    /// Anybody, without authentication. Said explicitly.
    Insecure,
}

/// Whether processes of one worker take each other's place (`handover`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandOver {
    /// No.
    Never,
    /// Another one may take this one's.
    Offer,
    /// The same, and this one takes that of the one that runs, if one does.
    TakeOver,
    /// The same, and this one takes that of the one that runs, wherever that listens; without one it does not start. It
    /// is how a process starts its own successor.
    Succeed,
}

/// Settings of the process; what the control plane pushes is not among them.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Stable over restarts.
    pub worker_id: WorkerId,
    /// Control planes, any of which will do. A name stands for all its addresses.
    pub control: Vec<Uri>,
    /// How often it is looked whether another one has less to do, on average; nothing: never.
    pub rebalance_every: Option<Duration>,
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// Where the admin port listens.
    pub admin_listen: SocketAddr,
    /// Whether these may be anything but loopback; the gateway may in any case if it asks for keys.
    pub exposure: Exposure,
    /// Who may use the gateway.
    pub auth: Auth,
    /// Whom to ask for the addresses of endpoints; the system's servers if empty.
    pub dns_servers: Vec<SocketAddr>,
    /// How often an endpoint that does not serve its model is asked again.
    pub probe_every: Duration,
    /// Addresses that probes may dial although they would not.
    pub probe_allow: Vec<Cidr>,
    /// Where the last known good configuration is kept; nowhere if absent.
    pub data_dir: Option<PathBuf>,
    /// How long a configuration is in force, with the process alive, until it counts as good and is kept there.
    pub soak: Duration,
    /// Largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// How long it goes on accepting when it is to stop, not ready any more.
    pub drain_delay: Duration,
    /// What else is taken from clients, and for how long.
    pub clients: ClientLimits,
    /// Most bytes of bodies of requests that are held at a time.
    pub max_buffered_bytes: usize,
    /// How long requests in flight get at the end.
    pub grace: Duration,
    /// Whether a new process may take its place.
    pub hand_over: HandOver,
    /// What this worker counts for, relative to others, where a fleet-wide limit is not enough for all.
    pub fleet_weight: u32,
    /// Version of the build.
    pub build: String,
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No control plane was named.
    #[error("no control plane is named; say --control http://HOST:50051")]
    NoControl,
    /// A port must not be reachable from elsewhere.
    #[error(
        "{flag} {addr} can be reached from other machines and there is no authentication; \
         use a loopback address, or say --insecure if that is what you want"
    )]
    Exposed {
        /// The flag.
        flag: &'static str,
        /// Its value.
        addr: SocketAddr,
    },
    /// A port cannot be bound.
    #[error("cannot listen on {addr}: {error}; choose another address with {flag}")]
    Bind {
        /// The flag.
        flag: &'static str,
        /// Its value.
        addr: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// What was passed as a port is none.
    #[error(
        "the socket that was passed for {flag} cannot be used: {error}; pass a TCP socket that listens"
    )]
    Passed {
        /// The flag.
        flag: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The data directory cannot be used.
    #[error("data directory {} cannot be used: {error}; choose another with --data-dir", .folder.display())]
    DataDir {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process of this worker runs, and this one was not told to take its place, or the other way round.
    #[error("{} is where a running worker is asked for its place: {error}", .place.display())]
    Place {
        /// Its Unix socket.
        place: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The process that runs did not hand over, and serves on.
    #[error("not taken over: {0}; the process that runs serves on")]
    TakeOver(String),
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A worker that is bound and ready to run.
pub struct BoundWorker {
    pub(crate) gateway: (TcpListener, SocketAddr),
    pub(crate) admin: (TcpListener, SocketAddr),
    pub(crate) place: Place,
    pub(crate) drain_delay: Duration,
    pub(crate) serving: CancellationToken,
    pub(crate) parts: Parts,
}

/// Where processes of this worker find each other.
#[derive(Debug)]
pub(crate) enum Place {
    /// Nowhere.
    None,
    /// Here, from now on.
    Offered(Offer),
    /// Here, once this process is ready to serve in the place of the one behind this stream.
    Taken(PathBuf, UnixStream),
}

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) live: Arc<LiveCell>,
    pub(crate) client: ConfigClient,
    /// Makes another one.
    pub(crate) remake: Box<dyn Fn() -> ConfigClient + Send + Sync>,
    pub(crate) serving: Gateway,
    pub(crate) admin: Admin,
    pub(crate) tasks: TaskTracker,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) ending: Arc<Ending>,
}

impl BoundWorker {
    /// Binds every port and puts the last known good configuration in force.
    pub async fn bind(settings: WorkerSettings) -> Result<Self, WorkerError> {
        Self::bind_with(settings, Passed::default()).await
    }

    /// The same, but for ports that somebody opened for this process.
    pub async fn bind_with(settings: WorkerSettings, passed: Passed) -> Result<Self, WorkerError> {
        if settings.control.is_empty() {
            return Err(WorkerError::NoControl);
        }
        let data_dir = settings.data_dir.as_deref();
        let place = data_dir.filter(|_| settings.hand_over != HandOver::Never);
        let place = place.map(handover::place);
        let (gateway, admin, stream) = open(&settings, passed, place.as_deref()).await?;
        let lkg = open_lkg(settings.data_dir.clone()).await?;
        let place = match (place, stream) {
            (None, _) => Place::None,
            (Some(place), Some(stream)) => Place::Taken(place, stream),
            (Some(place), None) => offer(place).await?,
        };
        let drain_delay = settings.drain_delay;
        let takes_over = matches!(place, Place::Taken(..));
        let parts = Parts::new(settings, gateway.1, lkg, takes_over).await?;
        Ok(Self {
            gateway,
            admin,
            place,
            drain_delay,
            serving: CancellationToken::new(),
            parts,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn gateway_addr(&self) -> SocketAddr {
        self.gateway.1
    }

    /// Where operators and monitors connect.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.1
    }

    /// Cancelled once this process serves: when it runs, or when it has taken over from the one before.
    #[must_use]
    pub fn serving(&self) -> CancellationToken {
        self.serving.clone()
    }
}

impl Parts {
    async fn new(
        settings: WorkerSettings,
        gateway_addr: SocketAddr,
        lkg: Option<LastKnownGood>,
        takes_over: bool,
    ) -> Result<Self, WorkerError> {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let metrics = Arc::new(metrics.map_err(|e| WorkerError::Internal(e.to_string()))?);
        let (live, status) = <(Arc<LiveCell>, Arc<ConfigStatus>)>::default();
        let budget = Arc::new(Budget::default());
        let tasks = TaskTracker::new();
        let leases = Arc::new(Leases::new(settings.fleet_weight));
        let identity = identity(settings.worker_id, settings.build, gateway_addr, takes_over)?;
        if takes_over {
            leases.begin_beside();
        }
        let exposed = is_exposed(settings.exposure, gateway_addr);
        let keys = Arc::new(KeyCell::new(settings.auth, exposed));
        let open_files = open_file_limit();
        let resolver = Arc::new(Resolver::new(&settings.dns_servers));
        let controls = Controls {
            urls: settings.control,
            look_every: settings.rebalance_every,
            resolver: Some(resolver.clone()),
        };
        let common = Common {
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            budget: budget.clone(),
            resolver,
            probing: Arc::new(Probing::new(settings.probe_every, settings.probe_allow)),
            discovering: Arc::new(Discovering::new(settings.data_dir.as_deref())),
            keys: keys.clone(),
            leases: leases.clone(),
        };
        let remade = Remade {
            controls,
            keys: keys.clone(),
            keeping: (lkg, settings.soak),
            open_files,
        };
        let remake = remaker(remade, identity, common, (live.clone(), status.clone()));
        let mut client = remake();
        client.start_from_disk();
        warn_of_exposure(exposed && keys.load().is_empty(), gateway_addr);
        let ending = Arc::new(Ending::default());
        let serving = Gateway::new(
            (live.clone(), keys.clone()),
            metrics.clone(),
            (settings.max_body_bytes, settings.max_buffered_bytes),
            settings.clients,
            ending.clone(),
            settings.grace,
            open_files,
        );
        let admin = Admin {
            live: live.clone(),
            keys,
            status,
            registry,
        };
        Ok(Self {
            live,
            client,
            remake: Box::new(remake),
            serving,
            admin,
            tasks,
            metrics,
            budget,
            leases,
            ending,
        })
    }
}

/// Others reach it who are not meant to without keys.
fn is_exposed(exposure: Exposure, gateway: SocketAddr) -> bool {
    exposure == Exposure::LoopbackOnly && !gateway.ip().is_loopback()
}

/// The configuration client, whenever a new one is needed.
fn remaker(
    settings: Remade,
    identity: Identity,
    common: Common,
    (live, status): (Arc<LiveCell>, Arc<ConfigStatus>),
) -> impl Fn() -> ConfigClient {
    let Remade {
        controls,
        keys,
        keeping: (lkg, soak),
        open_files,
    } = settings;
    let metrics = common.metrics.clone();
    move || {
        ConfigClient::new(
            controls.clone(),
            identity.clone(),
            Applier::new(live.clone(), common.clone(), open_files),
            (live.clone(), keys.clone()),
            status.clone(),
            metrics.clone(),
            lkg.clone().map(|lkg| Keeping { lkg, soak }),
        )
    }
}

/// What each configuration client begins with.
struct Remade {
    controls: Controls,
    keys: Arc<KeyCell>,
    keeping: (Option<LastKnownGood>, Duration),
    open_files: u64,
}

/// A new process of this worker.
fn identity(
    worker: WorkerId,
    build: String,
    gateway_addr: SocketAddr,
    takes_over: bool,
) -> Result<Identity, WorkerError> {
    let instance = InstanceId::new(Uuid::new_v4().to_string());
    Ok(Identity {
        worker,
        instance: instance.map_err(|error| WorkerError::Internal(error.to_string()))?,
        build,
        gateway_address: gateway_addr.to_string(),
        takes_over,
    })
}

fn warn_of_exposure(nobody_has_a_key: bool, addr: SocketAddr) {
    if nobody_has_a_key {
        tracing::warn!(
            %addr,
            "the gateway can be reached from other machines: until there is a key, nobody is let in"
        );
    }
}

/// Lets another process ask for this one's place. Where that cannot be, it is told, and nobody can.
async fn offer(place: PathBuf) -> Result<Place, WorkerError> {
    match Offer::bind(&place).await {
        Ok(offer) => Ok(Place::Offered(offer)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(WorkerError::Place { place, error })
        }
        Err(error) => {
            let place = place.display();
            tracing::warn!(%place, %error, "no other process can take over from this one");
            Ok(Place::None)
        }
    }
}

async fn open_lkg(data_dir: Option<PathBuf>) -> Result<Option<LastKnownGood>, WorkerError> {
    let Some(data_dir) = data_dir else {
        return Ok(None);
    };
    let folder = lkg_folder(&data_dir);
    let opened = tokio::task::spawn_blocking({
        let folder = folder.clone();
        move || LastKnownGood::open(&folder)
    });
    let opened = opened
        .await
        .map_err(|error| WorkerError::Internal(error.to_string()))?;
    opened
        .map(Some)
        .map_err(|error| WorkerError::DataDir { folder, error })
}
