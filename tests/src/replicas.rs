//! Several control planes on one etcd, in this process, and workers that follow some of them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use forebay_control::{
    BoundControl, ControlSettings, EtcdAccess, LeaseSettings, ReplicaSettings, RolloutSettings,
    SecretPaths,
};
use forebay_proto::{PoolSettings, wire};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use wire::{
    fleet_client::FleetClient, model_registry_client::ModelRegistryClient,
    revisions_client::RevisionsClient,
};

use crate::{
    Scrape, WorkerHandle,
    cluster::{Running, run_worker, scrape, worker_settings},
    lasting_addr,
};

/// The control planes.
#[derive(Debug)]
pub struct Replicas {
    dir: TempDir,
    store: String,
    rings: Option<RolloutSettings>,
    leases: LeaseSettings,
    planes: Vec<Plane>,
}

#[derive(Debug)]
struct Plane {
    addr: SocketAddr,
    running: Option<Running>,
}

impl Replicas {
    /// Starts so many on this store.
    pub async fn start(store: &str, count: usize) -> Self {
        Self::of(store, count, None, LeaseSettings::default()).await
    }

    /// The same, with leases that hold for so long.
    pub async fn with_leases(store: &str, count: usize, leases: LeaseSettings) -> Self {
        Self::of(store, count, None, leases).await
    }

    /// The same, rolling out in rings.
    pub async fn with_rings(store: &str, count: usize, rings: RolloutSettings) -> Self {
        Self::of(store, count, Some(rings), LeaseSettings::default()).await
    }

    async fn of(
        store: &str,
        count: usize,
        rings: Option<RolloutSettings>,
        leases: LeaseSettings,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, digit) in [("pepper", "1"), ("seal.key", "2")] {
            std::fs::write(dir.path().join(name), digit.repeat(64)).expect("a secret");
        }
        let mut replicas = Self {
            dir,
            store: store.to_owned(),
            rings,
            leases,
            planes: Vec::new(),
        };
        for n in 0..count {
            let addr = lasting_addr();
            replicas.planes.push(Plane {
                addr,
                running: None,
            });
            replicas.restart(n).await;
        }
        replicas
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.planes.len()
    }

    /// Where one listens.
    #[must_use]
    pub fn url(&self, n: usize) -> String {
        format!("http://{}", self.plane(n).addr)
    }

    /// Starts one that does not run, where it was.
    pub async fn restart(&mut self, n: usize) {
        let settings = ControlSettings {
            listen: self.plane(n).addr,
            exposure: forebay_control::Exposure::LoopbackOnly,
            store: self.store.parse().expect("a store"),
            fresh_settings: PoolSettings::default(),
            recovery: forebay_control::Recovery::Automatic,
            stream_age: None,
            rings: self.rings.clone(),
            probe_allow: Vec::new(),
            secrets: SecretPaths {
                pepper: Some(self.dir.path().join("pepper")),
                seal_key: Some(self.dir.path().join("seal.key")),
            },
            leases: self.leases,
            replica: ReplicaSettings {
                name: Some(format!("c{n}")),
                access: EtcdAccess::default(),
            },
        };
        let bound = BoundControl::bind(settings)
            .await
            .expect("a control plane starts");
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let stopping = stop.clone();
        tasks.spawn(async move {
            bound
                .run(stopping)
                .await
                .expect("the control plane ends well");
        });
        let plane = self
            .planes
            .get_mut(n)
            .expect("there is such a control plane");
        plane.running = Some(Running { stop, tasks });
    }

    /// Stops one in good order.
    pub async fn stop(&mut self, n: usize) {
        let plane = self
            .planes
            .get_mut(n)
            .expect("there is such a control plane");
        if let Some(running) = plane.running.take() {
            running.stop().await;
        }
    }

    /// Starts a worker that follows these.
    pub async fn worker(&self, name: &str, follows: &[usize]) -> WorkerHandle {
        let control: Vec<_> = follows.iter().map(|n| self.url(*n)).collect();
        let data: PathBuf = self.dir.path().join(name);
        run_worker(name, worker_settings(name, &control, data)).await
    }

    /// A connection to one, made at the first call; calls on it end after this time.
    #[must_use]
    pub fn channel(&self, n: usize, patience: Duration) -> Channel {
        Endpoint::from_shared(self.url(n))
            .expect("our own url")
            .connect_timeout(patience)
            .timeout(patience)
            .connect_lazy()
    }

    /// The registry of models.
    #[must_use]
    pub fn registry(&self, n: usize) -> ModelRegistryClient<Channel> {
        ModelRegistryClient::new(self.channel(n, Duration::from_secs(20)))
    }

    /// The history.
    #[must_use]
    pub fn revisions(&self, n: usize) -> RevisionsClient<Channel> {
        RevisionsClient::new(self.channel(n, Duration::from_secs(20)))
    }

    /// The fleet.
    #[must_use]
    pub fn fleet(&self, n: usize) -> FleetClient<Channel> {
        FleetClient::new(self.channel(n, Duration::from_secs(20)))
    }

    /// The metrics of one.
    pub async fn metrics(&self, n: usize) -> Scrape {
        scrape(self.plane(n).addr).await
    }

    /// What `/readyz` of one says, with its status.
    pub async fn ready(&self, n: usize) -> (u16, String) {
        let answer = reqwest::get(format!("{}/readyz", self.url(n))).await;
        let answer = answer.expect("the control port answers");
        let status = answer.status().as_u16();
        (status, answer.text().await.expect("a text"))
    }

    /// Who decides, if one of them does.
    pub async fn leader(&self) -> Option<usize> {
        for (n, plane) in self.planes.iter().enumerate() {
            if plane.running.is_some()
                && self.metrics(n).await.sum("forebay_control_leader", &[]) > 0.5
            {
                return Some(n);
            }
        }
        None
    }

    fn plane(&self, n: usize) -> &Plane {
        self.planes.get(n).expect("there is such a control plane")
    }
}
