//! A worker whose network is somebody else's, so that a simulation can cut it. It follows the control plane and
//! puts in force what it is pushed, with the product's own code; it has no gateway and no disk.

use std::{fmt, io, pin::Pin, sync::Arc, time::Duration};

use forebay_proto::{InstanceId, ModelId, Position, WorkerId};
use http::Uri;
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

use crate::{
    apply::Applier,
    budget::Budget,
    config_client::{ConfigClient, ConfigStatus, Controls, Identity},
    live::LiveCell,
    metrics::Metrics,
    pool::Common,
    resolve::Resolver,
};

/// A connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Opening = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// How connections are made.
#[derive(Clone)]
pub struct Connect(Arc<dyn Fn(Uri) -> Opening + Send + Sync>);

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connect")
    }
}

impl Connect {
    /// With this.
    pub fn new<F>(connect: impl Fn(Uri) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Box<dyn Io>>> + Send + 'static,
    {
        Self(Arc::new(move |uri| Box::pin(connect(uri))))
    }

    /// A channel over it.
    pub async fn open(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        let connect = self.0.clone();
        let connector = service_fn(move |uri| {
            let opening = connect(uri);
            async move { opening.await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await
    }
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    live: Arc<LiveCell>,
    client: ConfigClient,
    status: Arc<ConfigStatus>,
}

/// What a worker has in force.
#[derive(Debug, Clone)]
pub struct InForce(Arc<LiveCell>, Arc<ConfigStatus>);

impl InForce {
    /// Which revision.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.0.load().position.clone()
    }

    /// Its models.
    #[must_use]
    pub fn models(&self) -> Vec<ModelId> {
        self.0.load().models.keys().cloned().collect()
    }

    /// The control plane that it follows; nothing while it follows none.
    #[must_use]
    pub fn follows(&self) -> Option<String> {
        let followed = self.1.followed()?;
        followed.since.map(|_| followed.control)
    }

    /// How often it went from one control plane to another.
    #[must_use]
    pub fn moves(&self) -> u32 {
        self.1.moves().0
    }

    /// True while it is turned away because another process has its id.
    #[must_use]
    pub fn is_turned_away(&self) -> bool {
        self.1.twin().is_some()
    }
}

impl Worker {
    /// One that follows one of these control planes over this network.
    pub fn new(
        worker: WorkerId,
        instance: InstanceId,
        (urls, look_every): (Vec<Uri>, Option<Duration>),
        network: Connect,
    ) -> Result<Self, prometheus::Error> {
        let metrics = Arc::new(Metrics::new(&Registry::new())?);
        let live = Arc::new(LiveCell::default());
        let common = Common {
            tasks: TaskTracker::new(),
            metrics: metrics.clone(),
            budget: Arc::new(Budget::default()),
            resolver: Arc::new(Resolver::new(&[])),
            probing: Arc::default(),
            discovering: Arc::default(),
            keys: Arc::default(),
            leases: Arc::default(),
        };
        let applier = Applier::new(live.clone(), common, 1 << 20);
        let identity = Identity {
            worker,
            instance,
            build: "simulated".to_owned(),
            gateway_address: String::new(),
            takes_over: false,
        };
        let status = Arc::new(ConfigStatus::default());
        let mut client = ConfigClient::new(
            Controls {
                urls,
                look_every,
                resolver: None,
            },
            identity,
            applier,
            (live.clone(), Arc::default()),
            status.clone(),
            metrics,
            None,
        );
        client.over(network);
        Ok(Self {
            live,
            client,
            status,
        })
    }

    /// What it has in force, as it changes.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        InForce(self.live.clone(), self.status.clone())
    }

    /// Follows until told to stop or dropped.
    pub async fn run(self, shutdown: CancellationToken) {
        self.client.run(shutdown).await;
    }
}
