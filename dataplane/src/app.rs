//! The composition root of a worker: binds every port and reads the last known good configuration,
//! tells where it listens, then runs until told to stop.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use forebay_proto::{InstanceId, WorkerId, probe::Cidr};
use http::Uri;
use prometheus::Registry;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    admin::Admin,
    apply::{Applier, open_file_limit},
    budget::Budget,
    config_client::{ConfigClient, ConfigStatus, Identity, Keeping, LastKnownGood, lkg_folder},
    gateway::Gateway,
    live::LiveCell,
    metrics::Metrics,
    pool::{Common, Probing, SWEEP},
    resolve::Resolver,
};

/// How long the connections' tasks may take to end after the last request did.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Who may reach the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Programs on this machine.
    LoopbackOnly,
    /// Anybody, without authentication. Said explicitly.
    Insecure,
}

/// Settings of the process; what the control plane pushes is not among them.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Stable over restarts.
    pub worker_id: WorkerId,
    /// Control planes, any of which will do.
    pub control: Vec<Uri>,
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// Where the admin port listens.
    pub admin_listen: SocketAddr,
    /// Whether these may be anything but loopback.
    pub exposure: Exposure,
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
    /// Most bytes of bodies of requests that are held at a time.
    pub max_buffered_bytes: usize,
    /// How long requests in flight get at the end.
    pub grace: Duration,
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
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A worker that is bound and ready to run.
#[derive(Debug)]
pub struct BoundWorker {
    gateway: (TcpListener, SocketAddr),
    admin: (TcpListener, SocketAddr),
    parts: Parts,
}

#[derive(Debug)]
struct Parts {
    live: Arc<LiveCell>,
    client: ConfigClient,
    serving: Gateway,
    admin: Admin,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
}

impl BoundWorker {
    /// Binds every port and puts the last known good configuration in force.
    pub async fn bind(settings: WorkerSettings) -> Result<Self, WorkerError> {
        if settings.control.is_empty() {
            return Err(WorkerError::NoControl);
        }
        let gateway = bind("--listen", settings.listen, settings.exposure).await?;
        let admin = bind("--admin-listen", settings.admin_listen, settings.exposure).await?;
        let lkg = open_lkg(settings.data_dir.clone()).await?;
        let parts = Parts::new(settings, gateway.1, lkg).await?;
        Ok(Self {
            gateway,
            admin,
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

    /// Serves until told to stop; then lets requests in flight finish and closes everything.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let Parts {
            live,
            client,
            serving,
            admin,
            tasks,
            metrics,
            budget,
        } = self.parts;
        let sweeping = CancellationToken::new();
        let mut loops = JoinSet::new();
        loops.spawn(sweep(live.clone(), metrics, sweeping.clone()));
        loops.spawn(budget.run(live.clone(), sweeping.clone()));
        loops.spawn(client.run(shutdown.child_token()));
        let (status, stopping) = (admin.status.clone(), shutdown.clone());
        loops.spawn(async move {
            stopping.cancelled().await;
            status.stop();
        });
        let admin_stop = CancellationToken::new();
        let mut admin_task = JoinSet::new();
        admin_task.spawn(admin.run(self.admin.0, admin_stop.clone()));

        serving.run(self.gateway.0, shutdown.clone()).await;
        live.shutdown();
        sweeping.cancel();
        admin_stop.cancel();
        tasks.close();
        if timeout(LAST_TASKS, tasks.wait()).await.is_err() {
            tracing::warn!(
                left = tasks.len(),
                "upstream connections did not end in time"
            );
        }
        while let Some(ended) = loops.join_next().await {
            ended.map_err(|error| WorkerError::Internal(error.to_string()))?;
        }
        admin_task.shutdown().await;
        Ok(())
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
        let instance = InstanceId::new(Uuid::new_v4().to_string());
        let identity = Identity {
            worker: settings.worker_id,
            instance: instance.map_err(|error| WorkerError::Internal(error.to_string()))?,
            build: settings.build,
            gateway_address: gateway_addr.to_string(),
        };
        let budget = Arc::new(Budget::default());
        let open_files = open_file_limit();
        let common = Common {
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            budget: budget.clone(),
            resolver: Arc::new(Resolver::new(&settings.dns_servers)),
            probing: Arc::new(Probing::new(settings.probe_every, settings.probe_allow)),
        };
        let applier = Applier::new(live.clone(), common, open_files);
        let mut client = ConfigClient::new(
            settings.control,
            identity,
            applier,
            live.clone(),
            status.clone(),
            metrics.clone(),
            lkg.map(|lkg| Keeping {
                lkg,
                soak: settings.soak,
            }),
        );
        client.start_from_disk();
        let bodies = (settings.max_body_bytes, settings.max_buffered_bytes);
        let grace = settings.grace;
        let serving = Gateway::new(live.clone(), metrics.clone(), bodies, grace, open_files);
        let admin = Admin {
            live: live.clone(),
            status,
            registry,
        };
        Ok(Self {
            live,
            client,
            serving,
            admin,
            tasks,
            metrics,
            budget,
        })
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

async fn sweep(live: Arc<LiveCell>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut ticks = interval(SWEEP);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let gone = live.sweep();
                // Not one that is back already.
                let live = live.load();
                let gone = gone.iter().filter(|model| !live.models.contains_key(*model));
                gone.for_each(|model| metrics.forget(model));
            }
            () = stop.cancelled() => return,
        }
    }
}
