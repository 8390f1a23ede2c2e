//! Three control planes with one registry, each with a copy of its store: what is written to one must be written to the
//! others by hand, and until then they are behind, as replicas are whose store is ahead of them. They listen at one port
//! of three addresses, so that a name can stand for them.

use std::{fs, net::SocketAddr, path::Path};

use forebay_control::LeaseSettings;
use forebay_proto::wire;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use wire::{fleet_client::FleetClient, model_registry_client::ModelRegistryClient};

use crate::{
    Scrape,
    cluster::{Running, control},
    lasting_addr,
};

/// Three control planes.
#[derive(Debug)]
pub struct Trio {
    dir: TempDir,
    port: u16,
    running: [Option<Running>; 3],
}

impl Trio {
    /// Starts them, with these models.
    pub async fn start(models: Vec<wire::Model>) -> Self {
        let mut trio = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            port: lasting_addr().port(),
            running: [const { None }; 3],
        };
        trio.start_one(0).await;
        for model in models {
            trio.write(0, model).await;
        }
        trio.stop_one(0).await;
        for n in 1..3 {
            copy(&trio.store(0), &trio.store(n));
        }
        for n in 0..3 {
            trio.start_one(n).await;
        }
        trio
    }

    fn store(&self, n: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("control-{n}"))
    }

    /// Where one listens.
    #[must_use]
    pub fn addr(&self, n: usize) -> SocketAddr {
        let last = u8::try_from(n + 1).expect("a few");
        SocketAddr::from(([127, 0, 0, last], self.port))
    }

    /// The port of all of them.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The url of one.
    #[must_use]
    pub fn url(&self, n: usize) -> String {
        format!("http://{}", self.addr(n))
    }

    /// Those of all.
    #[must_use]
    pub fn urls(&self) -> String {
        [0, 1, 2].map(|n| self.url(n)).join(",")
    }

    /// Which one this url is of.
    #[must_use]
    pub fn number(&self, url: &str) -> Option<usize> {
        (0..3).find(|n| url.contains(&self.addr(*n).to_string()))
    }

    /// Stops one in good order.
    pub async fn stop_one(&mut self, n: usize) {
        if let Some(running) = self.running.get_mut(n).and_then(Option::take) {
            running.stop().await;
        }
    }

    /// Starts one where it was.
    pub async fn start_one(&mut self, n: usize) {
        let (_, running) = control(
            self.store(n),
            self.addr(n),
            (None, None, LeaseSettings::default()),
        )
        .await;
        if let Some(place) = self.running.get_mut(n) {
            *place = Some(running);
        }
    }

    /// Starts one with a store of its own, of which nobody else knows.
    pub async fn start_foreign(&mut self, n: usize) {
        let store = self.dir.path().join("foreign");
        let (_, running) =
            control(store, self.addr(n), (None, None, LeaseSettings::default())).await;
        if let Some(place) = self.running.get_mut(n) {
            *place = Some(running);
        }
    }

    fn channel(&self, n: usize) -> Channel {
        let endpoint = Endpoint::from_shared(self.url(n)).expect("our own url");
        endpoint.connect_lazy()
    }

    /// Writes a model to one, and gives the revision.
    pub async fn write(&self, n: usize, model: wire::Model) -> u64 {
        let request = wire::UpdateModelRequest {
            model: Some(model),
            allow_missing: true,
            ..wire::UpdateModelRequest::default()
        };
        let mut registry = ModelRegistryClient::new(self.channel(n));
        let written = registry.update_model(request).await;
        written.expect("the model is written").into_inner().revision
    }

    /// The workers of one.
    pub async fn workers(&self, n: usize) -> Vec<wire::Worker> {
        let mut fleet = FleetClient::new(self.channel(n));
        let request = wire::ListWorkersRequest::default();
        let list = fleet.list_workers(request).await;
        list.expect("the workers are listed").into_inner().workers
    }

    /// The metrics of one.
    pub async fn metrics(&self, n: usize) -> Scrape {
        let answer = reqwest::get(format!("{}/metrics", self.url(n))).await;
        let answer = answer.expect("/metrics answers");
        Scrape::new(answer.text().await.expect("a page of metrics"))
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("a copy")),
        }
    }
}
