//! Control planes and workers as processes of their own.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use forebay_proto::wire;
use forebay_tests::{Client, Process, eventually};
use tonic::transport::{Channel, Endpoint};
use wire::{fleet_client::FleetClient, model_registry_client::ModelRegistryClient};

/// The binary under test.
pub(crate) const FOREBAY: &str = env!("CARGO_BIN_EXE_forebay");
/// Any free port.
pub(crate) const ANY: &str = "127.0.0.1:0";

/// Runs a command to its end.
pub(crate) async fn run(args: &[&str]) -> (Option<i32>, String, String) {
    Process::start(FOREBAY, args, &[]).end().await
}

/// A running control plane.
pub(crate) struct Control {
    pub(crate) addr: SocketAddr,
    pub(crate) process: Process,
}

impl Control {
    /// Starts one, and waits until it listens.
    pub(crate) async fn start(listen: &str, dir: &Path, env: &[(&str, &str)]) -> Self {
        let dir = dir.to_str().unwrap();
        let args = ["control", "--control-listen", listen, "--data-dir", dir];
        let mut process = Process::start(FOREBAY, &args, env);
        let rest = process.printed("Forebay control plane on ").await;
        let addr = rest.split(": ").next().unwrap().parse().unwrap();
        Self { addr, process }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn registry(&self) -> ModelRegistryClient<Channel> {
        ModelRegistryClient::new(channel(&self.url()))
    }

    pub(crate) fn fleet(&self) -> FleetClient<Channel> {
        FleetClient::new(channel(&self.url()))
    }

    /// Registers a model.
    pub(crate) async fn create(&self, model: wire::Model) -> wire::Model {
        let request = wire::CreateModelRequest {
            model: Some(model),
            ..Default::default()
        };
        let created = self.registry().create_model(request).await;
        created.unwrap().into_inner()
    }
}

/// A connection to a control plane, made at the first call.
pub(crate) fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned())
        .unwrap()
        .connect_lazy()
}

/// A running worker.
pub(crate) struct Worker {
    pub(crate) gateway: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Process,
}

impl Worker {
    /// Starts one, and waits until it listens.
    pub(crate) async fn start(control: &str, id: &str, dir: &Path, env: &[(&str, &str)]) -> Self {
        let args = worker_args(control, id, dir.to_str().unwrap());
        Self::of(Process::start(FOREBAY, &args, env)).await
    }

    /// The same, with no more than so many open files.
    pub(crate) async fn start_limited(control: &str, id: &str, dir: &Path, files: u32) -> Self {
        let args = worker_args(control, id, dir.to_str().unwrap());
        Self::of(Process::start_limited(FOREBAY, &args, files)).await
    }

    /// The same, with more arguments.
    pub(crate) async fn start_with(control: &str, id: &str, dir: &Path, more: &[&str]) -> Self {
        let args = worker_args(control, id, dir.to_str().unwrap());
        let args = [&args, more].concat();
        Self::of(Process::start(FOREBAY, &args, &[])).await
    }

    /// The same, with its gateway on a socket that it is passed, as systemd's socket activation does.
    pub(crate) async fn start_on(
        listener: &TcpListener,
        control: &str,
        id: &str,
        dir: &Path,
        more: &[&str],
    ) -> Self {
        let args = worker_args(control, id, dir.to_str().unwrap());
        let args = [&args, more].concat();
        let passed = ("gateway", listener);
        Self::of(Process::start_on(passed, FOREBAY, &args, &[])).await
    }

    async fn of(mut process: Process) -> Self {
        let gateway = process.printed("gateway   http://").await;
        let admin = process.printed("admin     http://").await;
        Self {
            gateway: gateway.split('/').next().unwrap().parse().unwrap(),
            admin: admin.parse().unwrap(),
            process,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.gateway)
    }

    /// Waits until it has a configuration.
    pub(crate) async fn ready(&self) {
        let url = format!("http://{}/readyz", self.admin);
        eventually("the worker is ready", async || {
            let answer = reqwest::get(&url).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// A page of the admin port.
    pub(crate) async fn page(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.admin);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }
}

fn worker_args<'a>(control: &'a str, id: &'a str, dir: &'a str) -> [&'a str; 11] {
    [
        "worker",
        "--control",
        control,
        "--listen",
        ANY,
        "--admin-listen",
        ANY,
        "--worker-id",
        id,
        "--data-dir",
        dir,
    ]
}
