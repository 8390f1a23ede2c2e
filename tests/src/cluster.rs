//! Control plane and workers in this process, on free ports, with their data in a directory that
//! goes away with them. Stopping is orderly; [`WorkerHandle::data_dir`] and the store live on until
//! the cluster is dropped, so that a restart finds them.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use forebay_control::{
    BoundControl, ControlSettings, LeaseSettings, RolloutSettings, StoreLocation,
};
use forebay_dataplane::{BoundWorker, ClientLimits, WorkerSettings};
use forebay_proto::{PoolSettings, WorkerId, wire};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use wire::{
    fleet_client::FleetClient, keys_client::KeysClient, model_registry_client::ModelRegistryClient,
    pool_settings_client::PoolSettingsClient,
};

use crate::{Client, Scrape, eventually, lasting_addr};

const LARGEST_BODY: usize = 1 << 20;
const BUFFERED: usize = 1 << 30;
const GRACE: Duration = Duration::from_secs(5);
/// How often a worker looks whether another control plane has less to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shorter than what a worker waits otherwise until a configuration counts as good.
const SOAK: Duration = Duration::from_millis(500);

/// A control plane and where everything of the test is kept.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    addr: SocketAddr,
    control: Option<Running>,
    dns: Vec<SocketAddr>,
    clients: ClientLimits,
    stream_age: Option<Duration>,
    rings: Option<RolloutSettings>,
    leases: LeaseSettings,
    buffered: usize,
    /// The names of workers that were started to follow this control plane and no other.
    workers: Mutex<Vec<Weak<str>>>,
}

/// A running worker.
#[derive(Debug)]
pub struct WorkerHandle {
    name: Arc<str>,
    gateway: SocketAddr,
    admin: SocketAddr,
    running: Running,
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
}

impl Running {
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("the server's task ends well");
        }
    }
}

impl Cluster {
    /// Starts a control plane on an empty store.
    pub async fn start() -> Self {
        Self::of(None, None).await
    }

    /// Starts one that rolls out in rings.
    pub async fn with_rings(rings: RolloutSettings) -> Self {
        Self::of(None, Some(rings)).await
    }

    /// Starts one that ends the streams of workers at this age at the latest.
    pub async fn with_stream_age(stream_age: Option<Duration>) -> Self {
        Self::of(stream_age, None).await
    }

    /// Starts one whose leases hold for so long.
    pub async fn with_leases(leases: LeaseSettings) -> Self {
        let mut cluster = Self::of(None, None).await;
        cluster.stop_control().await;
        cluster.leases = leases;
        cluster.start_control().await;
        cluster
    }

    async fn of(stream_age: Option<Duration>, rings: Option<RolloutSettings>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = dir.path().join("control");
        let leases = LeaseSettings::default();
        let settings = (stream_age, rings.clone(), leases);
        let (addr, control) = control(store, lasting_addr(), settings).await;
        Self {
            dir,
            addr,
            control: Some(control),
            dns: Vec::new(),
            clients: ClientLimits::default(),
            stream_age,
            rings,
            leases,
            buffered: BUFFERED,
            workers: Mutex::default(),
        }
    }

    /// From now on workers hold no more bytes of bodies than these.
    pub fn hold(&mut self, bytes: usize) {
        self.buffered = bytes;
    }

    /// From now on workers ask this DNS server.
    pub fn ask(&mut self, dns: SocketAddr) {
        self.dns = vec![dns];
    }

    /// From now on workers take no more than this from clients.
    pub fn limit(&mut self, clients: ClientLimits) {
        self.clients = clients;
    }

    /// Starts a control plane and one worker, and waits until that is connected.
    pub async fn with_worker() -> (Self, WorkerHandle) {
        let cluster = Self::start().await;
        let worker = cluster.worker("w1").await;
        worker.ready().await;
        (cluster, worker)
    }

    /// Where the control plane listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops the control plane in good order; its data stay.
    pub async fn stop_control(&mut self) {
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
    }

    /// Starts the control plane again where it was.
    pub async fn start_control(&mut self) {
        assert!(self.control.is_none(), "the control plane runs already");
        let store = self.dir.path().join("control");
        let settings = (self.stream_age, self.rings.clone(), self.leases);
        let (_, control) = control(store, self.addr, settings).await;
        self.control = Some(control);
    }

    /// Starts a worker of this name, with the data of an earlier one of the name.
    pub async fn worker(&self, name: &str) -> WorkerHandle {
        self.worker_of(name, &self.url()).await
    }

    /// The same, but it follows this control plane, or these, separated by commas.
    pub async fn worker_of(&self, name: &str, control: &str) -> WorkerHandle {
        self.worker_in(name, name, control).await
    }

    /// The same, with data of its own below this name.
    pub async fn worker_in(&self, name: &str, data: &str, control: &str) -> WorkerHandle {
        let controls: Vec<_> = control.split(',').map(str::to_owned).collect();
        let settings = WorkerSettings {
            dns_servers: self.dns.clone(),
            clients: self.clients.clone(),
            max_buffered_bytes: self.buffered,
            ..worker_settings(name, &controls, self.dir.path().join(data))
        };
        let worker = run_worker(name, settings).await;
        if control == self.url() {
            self.workers.lock().push(Arc::downgrade(&worker.name));
        }
        worker
    }

    /// A connection to the control plane, made at the first call.
    #[must_use]
    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url())
            .expect("our own url")
            .connect_lazy()
    }

    /// The registry of models.
    #[must_use]
    pub fn registry(&self) -> ModelRegistryClient<Channel> {
        ModelRegistryClient::new(self.channel())
    }

    /// The pool settings.
    #[must_use]
    pub fn settings(&self) -> PoolSettingsClient<Channel> {
        PoolSettingsClient::new(self.channel())
    }

    /// Clients' keys.
    #[must_use]
    pub fn keys(&self) -> KeysClient<Channel> {
        KeysClient::new(self.channel())
    }

    /// Where everything of the test is kept.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The fleet.
    #[must_use]
    pub fn fleet(&self) -> FleetClient<Channel> {
        FleetClient::new(self.channel())
    }

    /// Registers a model.
    pub async fn create(&self, model: wire::Model) -> wire::Model {
        let request = wire::CreateModelRequest {
            model: Some(model),
            ..Default::default()
        };
        let created = self.registry().create_model(request).await;
        created.expect("the model is registered").into_inner()
    }

    /// Makes a registered model what this says, and nothing besides.
    pub async fn update(&self, model: wire::Model) -> wire::Model {
        let paths = [
            "aliases",
            "endpoints",
            "pool",
            "timeouts",
            "health",
            "ejection",
            "retry",
            "fallbacks",
        ];
        let request = wire::UpdateModelRequest {
            model: Some(model),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.map(str::to_owned).to_vec(),
            }),
            ..wire::UpdateModelRequest::default()
        };
        let updated = self.registry().update_model(request).await;
        updated.expect("the model is updated").into_inner()
    }

    /// Registers a model and waits until every connected worker runs it.
    pub async fn create_and_wait(&self, model: wire::Model) -> wire::Model {
        let created = self.create(model).await;
        self.rolled_out(created.revision).await;
        created
    }

    /// Waits until every connected worker runs this revision or a newer one, and every worker that runs beside this control
    /// plane is one of them: a rollout to nobody is complete, too.
    pub async fn rolled_out(&self, revision: u64) {
        let mut fleet = self.fleet();
        eventually(&format!("revision {revision} rolled out"), async || {
            let request = wire::GetRolloutRequest {
                revision: Some(revision),
            };
            let rollout = fleet.get_rollout(request).await.ok()?.into_inner();
            (rollout.complete && rollout.applied as usize >= self.workers_alive()).then_some(())
        })
        .await;
    }

    fn workers_alive(&self) -> usize {
        let mut workers = self.workers.lock();
        workers.retain(|name| name.strong_count() > 0);
        // Two of one name are one to the control plane.
        let names: BTreeSet<_> = workers.iter().filter_map(Weak::upgrade).collect();
        names.len()
    }

    /// The control plane's metrics.
    pub async fn metrics(&self) -> Scrape {
        scrape(self.addr).await
    }
}

impl WorkerHandle {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients connect.
    #[must_use]
    pub fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    /// Where operators connect.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A client of the gateway.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.gateway)
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        let url = format!("http://{}/readyz", self.admin);
        eventually("the worker is ready", async || {
            let answer = reqwest::get(&url).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Its metrics.
    pub async fn metrics(&self) -> Scrape {
        scrape(self.admin).await
    }

    /// A JSON document of the admin port.
    pub async fn document(&self, path: &str) -> serde_json::Value {
        let url = format!("http://{}{path}", self.admin);
        let answer = reqwest::get(url).await.expect("the admin port answers");
        answer.json().await.expect("a JSON document")
    }

    /// Stops it in good order and waits until nothing of it is left.
    pub async fn stop(self) {
        self.running.stop().await;
    }
}

/// A worker that follows these control planes.
pub(crate) fn worker_settings(name: &str, control: &[String], data_dir: PathBuf) -> WorkerSettings {
    let control = control.iter().map(|url| url.parse().expect("a url"));
    WorkerSettings {
        worker_id: WorkerId::new(name).expect("a worker's name"),
        control: control.collect(),
        rebalance_every: Some(LOOK_EVERY),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        exposure: forebay_dataplane::Exposure::LoopbackOnly,
        auth: forebay_dataplane::keys::Auth::Auto,
        data_dir: Some(data_dir),
        dns_servers: Vec::new(),
        soak: SOAK,
        probe_every: Duration::from_secs(1),
        probe_allow: Vec::new(),
        max_body_bytes: LARGEST_BODY,
        drain_delay: Duration::ZERO,
        clients: ClientLimits::default(),
        max_buffered_bytes: BUFFERED,
        grace: GRACE,
        hand_over: forebay_dataplane::HandOver::Never,
        fleet_weight: 1,
        build: "test".to_owned(),
    }
}

pub(crate) async fn run_worker(name: &str, settings: WorkerSettings) -> WorkerHandle {
    let bound = BoundWorker::bind(settings).await.expect("a worker starts");
    let (gateway, admin) = (bound.gateway_addr(), bound.admin_addr());
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let stopping = stop.clone();
    tasks.spawn(async move { bound.run(stopping).await.expect("the worker ends well") });
    WorkerHandle {
        name: name.into(),
        gateway,
        admin,
        running: Running { stop, tasks },
    }
}

/// A model of one endpoint.
#[must_use]
pub fn model_at(id: &str, url: &str) -> wire::Model {
    wire::Model {
        id: id.to_owned(),
        endpoints: vec![wire::Endpoint {
            id: String::new(),
            url: url.to_owned(),
            ..wire::Endpoint::default()
        }],
        ..wire::Model::default()
    }
}

pub(crate) async fn control(
    dir: PathBuf,
    listen: SocketAddr,
    (stream_age, rings, leases): (Option<Duration>, Option<RolloutSettings>, LeaseSettings),
) -> (SocketAddr, Running) {
    let settings = ControlSettings {
        listen,
        exposure: forebay_control::Exposure::LoopbackOnly,
        store: StoreLocation::Sled(dir),
        fresh_settings: PoolSettings::default(),
        recovery: forebay_control::Recovery::Automatic,
        stream_age,
        rings,
        probe_allow: Vec::new(),
        secrets: forebay_control::SecretPaths::default(),
        replica: forebay_control::ReplicaSettings::default(),
        leases,
    };
    let bound = BoundControl::bind(settings)
        .await
        .expect("a control plane starts");
    let addr = bound.addr();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let stopping = stop.clone();
    tasks.spawn(async move {
        bound
            .run(stopping)
            .await
            .expect("the control plane ends well");
    });
    (addr, Running { stop, tasks })
}

pub(crate) async fn scrape(addr: SocketAddr) -> Scrape {
    let answer = reqwest::get(format!("http://{addr}/metrics")).await;
    let answer = answer.expect("/metrics answers");
    Scrape::new(answer.text().await.expect("a page of metrics"))
}
