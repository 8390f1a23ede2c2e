//! Control planes and workers of either version, as processes.

use std::{net::SocketAddr, path::Path, time::Duration};

use forebay_proto::wire;
use forebay_tests::{Process, eventually, eventually_within};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use wire::{
    fleet_client::FleetClient, keys_client::KeysClient, model_registry_client::ModelRegistryClient,
};

const ANY: &str = "127.0.0.1:0";
/// A worker that was refused waits for up to a minute.
const PATIENCE: Duration = Duration::from_secs(70);

/// A control plane.
pub(crate) struct Control {
    addr: SocketAddr,
    process: Process,
}

impl Control {
    pub(crate) async fn start(binary: &str, addr: SocketAddr, dir: &Path) -> Self {
        match Self::try_start(binary, addr, dir).await {
            Ok(control) => control,
            Err(why) => panic!("the control plane does not start: {why}"),
        }
    }

    /// Or why it does not start.
    pub(crate) async fn try_start(
        binary: &str,
        addr: SocketAddr,
        dir: &Path,
    ) -> Result<Self, String> {
        let (listen, dir) = (addr.to_string(), dir.to_string_lossy());
        let args = ["control", "--control-listen", &listen, "--data-dir", &dir];
        let mut process = Process::start(binary, &args, &[]);
        process
            .printed_or_ended("Forebay control plane on ")
            .await?;
        Ok(Self { addr, process })
    }

    fn channel(&self) -> Channel {
        let url = format!("http://{}", self.addr);
        Endpoint::from_shared(url)
            .expect("our own url")
            .connect_lazy()
    }

    pub(crate) fn registry(&self) -> ModelRegistryClient<Channel> {
        ModelRegistryClient::new(self.channel())
    }

    pub(crate) fn fleet(&self) -> FleetClient<Channel> {
        FleetClient::new(self.channel())
    }

    pub(crate) fn keys(&self) -> KeysClient<Channel> {
        KeysClient::new(self.channel())
    }

    /// Waits until it has said this in its log.
    pub(crate) async fn says(&mut self, text: &str) {
        self.process.printed(text).await;
    }

    pub(crate) async fn stop(self) {
        let (code, out, err) = self.process.terminate().await;
        assert_eq!(code, Some(0), "the control plane ends well: {out}{err}");
    }

    /// Ids of all models.
    pub(crate) async fn models(&self) -> Vec<String> {
        let asked = wire::ListModelsRequest {
            page_size: 1_000,
            ..wire::ListModelsRequest::default()
        };
        let listed = self.registry().list_models(asked).await;
        let models = listed.expect("models can be listed").into_inner().models;
        models.into_iter().map(|model| model.id).collect()
    }

    pub(crate) async fn newest(&self) -> u64 {
        let asked = wire::GetRolloutRequest { revision: None };
        let rollout = self.fleet().get_rollout(asked).await;
        rollout.expect("the rollout").into_inner().newest_revision
    }
}

/// A worker.
pub(crate) struct Worker {
    pub(crate) gateway: SocketAddr,
    admin: SocketAddr,
    process: Process,
}

impl Worker {
    pub(crate) async fn start(binary: &str, id: &str, control: SocketAddr, dir: &Path) -> Self {
        let (url, dir) = (format!("http://{control}"), dir.to_string_lossy());
        let args = ["worker", "--control", &url, "--listen", ANY];
        let more = ["--admin-listen", ANY, "--worker-id", id, "--data-dir", &dir];
        let mut process = Process::start(binary, &[&args[..], &more].concat(), &[]);
        let gateway = process.printed("gateway   http://").await;
        let admin = process.printed("admin     http://").await;
        let gateway = gateway.split('/').next().unwrap_or_default();
        Self {
            gateway: gateway.parse().expect("an address"),
            admin: admin.trim().parse().expect("an address"),
            process,
        }
    }

    /// Waits until it is ready for requests.
    pub(crate) async fn ready(&self) {
        let url = format!("http://{}/readyz", self.admin);
        eventually("the worker is ready", async || {
            let answer = reqwest::get(&url).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// What is in force.
    pub(crate) async fn config(&self) -> Value {
        let answer = reqwest::get(format!("http://{}/config", self.admin)).await;
        let document = answer.expect("the admin port answers").json().await;
        document.expect("a JSON document")
    }

    /// Waits until it runs the newest revision of this control plane, as that one told it.
    pub(crate) async fn is_current(&self, control: &Control) {
        let newest = control.newest().await;
        eventually_within(PATIENCE, "the worker is current", async || {
            let config = self.config().await;
            let runs = config.get("revision").and_then(Value::as_u64);
            let source = config.get("source").and_then(Value::as_str);
            (runs >= Some(newest) && source == Some("control_plane")).then_some(())
        })
        .await;
    }

    /// What it said in its log.
    pub(crate) fn log(&self) -> String {
        self.process.err()
    }

    /// Ends it in good order: what it has, it finishes.
    pub(crate) async fn stop(self) {
        let (code, out, err) = self.process.terminate().await;
        assert_eq!(code, Some(0), "the worker ends well: {out}{err}");
    }
}

/// Runs a command of a binary to its end.
pub(crate) async fn run(binary: &str, args: &[&str]) {
    let (code, out, err) = Process::start(binary, args, &[]).end().await;
    assert_eq!(code, Some(0), "{}: {out}{err}", args.join(" "));
}
