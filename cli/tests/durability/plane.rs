//! A control plane as a process on a data directory, and what it answers.

use std::{collections::BTreeMap, path::Path, time::Duration};

use forebay_proto::wire;
use forebay_tests::{Process, newest_position};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use wire::model_registry_client::ModelRegistryClient;

/// The binary under test, unless the environment names another one.
const FOREBAY: &str = env!("CARGO_BIN_EXE_forebay");
pub(crate) const BINARY: &str = "FOREBAY_TEST_BINARY";
const PAGE: u32 = 1_000;

/// A running control plane.
pub(crate) struct Plane {
    pub(crate) process: Process,
    pub(crate) url: String,
    /// From its start until it said where it listens.
    pub(crate) took: Duration,
}

/// What is in force.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) epoch: String,
    pub(crate) revision: u64,
    pub(crate) models: BTreeMap<String, wire::Model>,
}

/// Starts a process, and does not wait for it.
pub(crate) fn spawn(data: &Path, env: &[(&str, &str)]) -> Process {
    let args = [
        "control",
        "--control-listen",
        "127.0.0.1:0",
        "--log-level",
        "error",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let program = std::env::var(BINARY).unwrap_or_else(|_| FOREBAY.to_owned());
    Process::start(program, &args, env)
}

impl Plane {
    /// Starts one, and waits until it listens.
    pub(crate) async fn start(data: &Path, env: &[(&str, &str)]) -> Self {
        Self::try_start(data, env).await.unwrap()
    }

    /// The same of one that may refuse to: then with what words.
    pub(crate) async fn try_start(data: &Path, env: &[(&str, &str)]) -> Result<Self, String> {
        let began = Instant::now();
        let mut process = spawn(data, env);
        let said = process
            .printed_or_ended("Forebay control plane on ")
            .await?;
        let addr = said.split(": ").next().unwrap();
        Ok(Self {
            url: format!("http://{addr}"),
            process,
            took: began.elapsed(),
        })
    }

    /// A connection of its own to the registry.
    pub(crate) fn registry(&self) -> ModelRegistryClient<Channel> {
        let endpoint = Endpoint::from_shared(self.url.clone()).unwrap();
        ModelRegistryClient::new(endpoint.connect_lazy())
    }

    /// Everything that it holds.
    pub(crate) async fn in_force(&self) -> InForce {
        let position = newest_position(&self.url).await.unwrap();
        let (mut models, mut page_token) = (BTreeMap::new(), String::new());
        let mut registry = self
            .registry()
            .max_decoding_message_size(forebay_proto::limits::MESSAGE_BYTES);
        loop {
            let request = wire::ListModelsRequest {
                page_size: i32::try_from(PAGE).unwrap(),
                page_token,
                ..Default::default()
            };
            let page = registry.list_models(request).await.unwrap().into_inner();
            models.extend(
                page.models
                    .into_iter()
                    .map(|model| (model.id.clone(), model)),
            );
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        InForce {
            epoch: position.epoch,
            revision: position.revision,
            models,
        }
    }
}
