//! The composition root of a worker: binds every port, or takes them over, reads the last known good configuration,
//! and tells where it listens. `running.rs` has the rest.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use forebay_proto::{InstanceId, WorkerId, probe::Cidr};
use http::Uri;
use prometheus::Registry;
use tokio::net::{TcpListener, UnixStream};
use tokio_util::task::TaskTracker;
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
    handover::{self, HandoverError, Offer, Taken, take_over},
    keys::{Auth, KeyCell},
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
    pub(crate) ending: Arc<Ending>,
}

impl BoundWorker {
    /// Binds every port and puts the last known good configuration in force.
    pub async fn bind(settings: WorkerSettings) -> Result<Self, WorkerError> {
        if settings.control.is_empty() {
            return Err(WorkerError::NoControl);
        }
        let data_dir = settings.data_dir.as_deref();
        let place = data_dir.filter(|_| settings.hand_over != HandOver::Never);
        let place = place.map(handover::place);
        // The gateway may be reached from elsewhere, if whoever comes has a key.
        let open = settings.exposure == Exposure::Insecure || settings.auth != Auth::Open;
        let exposure = match open {
            true => Exposure::Insecure,
            false => settings.exposure,
        };
        let (gateway, admin, stream) = match take(&settings, place.as_deref()).await? {
            Some(Taken {
                gateway,
                admin,
                stream,
            }) => {
                let gateway = taken("--listen", settings.listen, exposure, gateway)?;
                let admin = taken(
                    "--admin-listen",
                    settings.admin_listen,
                    settings.exposure,
                    admin,
                )?;
                (gateway, admin, Some(stream))
            }
            None => {
                let gateway = bind("--listen", settings.listen, exposure).await?;
                let admin = bind("--admin-listen", settings.admin_listen, settings.exposure);
                (gateway, admin.await?, None)
            }
        };
        let lkg = open_lkg(settings.data_dir.clone()).await?;
        let place = match (place, stream) {
            (None, _) => Place::None,
            (Some(place), Some(stream)) => Place::Taken(place, stream),
            (Some(place), None) => offer(place).await?,
        };
        let drain_delay = settings.drain_delay;
        let parts = Parts::new(settings, gateway.1, lkg).await?;
        Ok(Self {
            gateway,
            admin,
            place,
            drain_delay,
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
}

impl Parts {
    async fn new(
        settings: WorkerSettings,
        gateway_addr: SocketAddr,
        lkg: Option<LastKnownGood>,
    ) -> Result<Self, WorkerError> {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let metrics = Arc::new(metrics.map_err(|e| WorkerError::Internal(e.to_string()))?);
        let live = Arc::new(LiveCell::default());
        let status = Arc::new(ConfigStatus::default());
        let tasks = TaskTracker::new();
        let identity = identity(settings.worker_id, settings.build, gateway_addr)?;
        let budget = Arc::new(Budget::default());
        let exposed =
            settings.exposure == Exposure::LoopbackOnly && !gateway_addr.ip().is_loopback();
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
        };
        let remake = {
            let (live, status, metrics) = (live.clone(), status.clone(), metrics.clone());
            let (soak, keys) = (settings.soak, keys.clone());
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
        };
        let mut client = remake();
        client.start_from_disk();
        let ending = Arc::new(Ending::default());
        let bodies = (settings.max_body_bytes, settings.max_buffered_bytes);
        let grace = settings.grace;
        warn_of_exposure(exposed && keys.load().is_empty(), gateway_addr);
        let serving = Gateway::new(
            (live.clone(), keys.clone()),
            metrics.clone(),
            bodies,
            settings.clients,
            ending.clone(),
            grace,
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
            ending,
        })
    }
}

/// A new process of this worker.
fn identity(
    worker: WorkerId,
    build: String,
    gateway_addr: SocketAddr,
) -> Result<Identity, WorkerError> {
    let instance = InstanceId::new(Uuid::new_v4().to_string());
    Ok(Identity {
        worker,
        instance: instance.map_err(|error| WorkerError::Internal(error.to_string()))?,
        build,
        gateway_address: gateway_addr.to_string(),
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

async fn bind(
    flag: &'static str,
    addr: SocketAddr,
    exposure: Exposure,
) -> Result<(TcpListener, SocketAddr), WorkerError> {
    if exposure == Exposure::LoopbackOnly && !addr.ip().is_loopback() {
        return Err(WorkerError::Exposed { flag, addr });
    }
    let failed = |error| WorkerError::Bind { flag, addr, error };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Asks the process that runs for its place, if this one is to take it.
async fn take(
    settings: &WorkerSettings,
    place: Option<&Path>,
) -> Result<Option<Taken>, WorkerError> {
    let place = place.filter(|_| settings.hand_over == HandOver::TakeOver);
    let Some(place) = place else { return Ok(None) };
    let taken = take_over(place).await;
    taken.map_err(|error: HandoverError| WorkerError::TakeOver(error.to_string()))
}

/// A listener that was taken over. It stays where it is, whatever the flag says.
fn taken(
    flag: &'static str,
    addr: SocketAddr,
    exposure: Exposure,
    listener: TcpListener,
) -> Result<(TcpListener, SocketAddr), WorkerError> {
    let bound = listener.local_addr();
    let bound = bound.map_err(|error| WorkerError::Bind { flag, addr, error })?;
    if exposure == Exposure::LoopbackOnly && !bound.ip().is_loopback() {
        return Err(WorkerError::Exposed { flag, addr: bound });
    }
    if addr.port() != 0 && addr != bound {
        return Err(WorkerError::TakeOver(format!(
            "{flag} {addr} is not where that process listens ({bound}); take over with the same addresses, and move \
             with a restart"
        )));
    }
    Ok((listener, bound))
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
