//! The demo: three built-in models, registered over gRPC like anybody's, and a little traffic.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wire::model_registry_client::ModelRegistryClient;

use super::{
    models,
    standalone::{Addresses, control_flag, listening},
};
use crate::{args::WriteArgs, client, ui};

/// The models and what else they answer to.
const MODELS: [(&str, Option<&str>); 3] = [
    ("llama-3.1-8b", Some("default")),
    ("qwen2.5-7b", None),
    ("mistral-7b", None),
];
const SERVED_WITHIN: Duration = Duration::from_secs(10);
const REQUEST_EVERY: Duration = Duration::from_millis(500);
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// A running demo.
pub(crate) struct Demo {
    addresses: Addresses,
    _mocks: Vec<MockServer>,
}

impl Demo {
    /// Runs until told to stop.
    pub(crate) async fn run(
        addresses: Addresses,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let running = async {
            let demo = Self::start(addresses).await?;
            ui::say(&demo.banner());
            demo.traffic().await;
            Ok(())
        };
        tokio::select! {
            result = running => result,
            () = shutdown.cancelled() => Ok(()),
        }
    }

    async fn start(addresses: Addresses) -> anyhow::Result<Self> {
        let control = format!("http://{}", addresses.control).parse()?;
        let channel = client::connect_to(&control, SERVED_WITHIN).await?;
        let mut registry = ModelRegistryClient::new(channel);
        let mut mocks = Vec::new();
        for (id, alias) in MODELS {
            let mock = MockServer::start(MockConfig {
                tokens: 24,
                interval: Duration::from_millis(40),
                latency: Duration::from_millis(60),
                ..MockConfig::serving(id)
            })
            .await
            .context("a built-in model cannot start")?;
            let model = wire::Model {
                id: id.to_owned(),
                aliases: alias.into_iter().map(str::to_owned).collect(),
                endpoints: vec![models::endpoint(mock.url())],
                ..wire::Model::default()
            };
            let write = WriteArgs {
                validate_only: false,
                request_id: None,
                reason: Some("a model of the demo".to_owned()),
                author: None,
            };
            match models::create(&mut registry, model, &write).await {
                // With --data-dir the models of an earlier demo are there, at other ports.
                Err(error) if format!("{error:#}").contains("NAME_TAKEN") => {
                    move_to(&mut registry, id, &mock).await?;
                }
                result => drop(result?),
            }
            mocks.push(mock);
        }
        let demo = Self {
            addresses,
            _mocks: mocks,
        };
        demo.wait_until_served().await?;
        Ok(demo)
    }

    async fn wait_until_served(&self) -> anyhow::Result<()> {
        let served = async {
            for (id, _) in MODELS {
                while !matches!(self.chat(id, false).await, Ok(StatusCode::OK)) {
                    sleep(Duration::from_millis(20)).await;
                }
            }
        };
        timeout(SERVED_WITHIN, served)
            .await
            .context("the built-in models are not served")
    }

    /// A request now and then, a third of them streams.
    async fn traffic(&self) {
        let mut ticks = interval(REQUEST_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for (id, _) in MODELS.iter().cycle() {
            for stream in [false, true] {
                ticks.tick().await;
                if let Err(error) = self.chat(id, stream).await {
                    tracing::warn!(%error, model = id, "demo request failed");
                }
            }
        }
    }

    async fn chat(&self, model: &str, stream: bool) -> anyhow::Result<StatusCode> {
        let body = serde_json::json!({
            "model": model, "stream": stream, "max_tokens": 12,
            "messages": [{"role": "user", "content": "hello"}],
        });
        timeout(REQUEST_WITHIN, self.post(body.to_string()))
            .await
            .context("no answer")?
    }

    async fn post(&self, body: String) -> anyhow::Result<StatusCode> {
        let gateway = self.addresses.gateway;
        let socket = TcpStream::connect(gateway).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let request = Request::post("/v1/chat/completions")
            .header(header::HOST, gateway.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }

    fn banner(&self) -> String {
        let Addresses {
            control,
            gateway,
            admin,
        } = self.addresses;
        let models: Vec<_> = MODELS.iter().map(|(id, _)| *id).collect();
        let (program, flag) = (ui::program(), control_flag(control));
        format!(
            "{listening}\n\
             Three built-in models are registered and get a little traffic:\n\
             {models} (`default` is an alias of the first).\n\
             Copy and paste:\n\n\
             # a chat, streamed\n\
             curl -N http://{gateway}/v1/chat/completions -H 'content-type: application/json' \\\n  \
             -d '{{\"model\":\"default\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}'\n\n\
             # resize a pool, live: no request is lost, no warm connection closed that still fits\n\
             grpcurl -plaintext -d '{{\"model\":{{\"id\":\"qwen2.5-7b\",\"pool\":{{\"maxConcurrent\":80}}}}}}' \\\n  \
             {control} forebay.v1.ModelRegistry/UpdateModel\n\n\
             # a keepalive smaller than the pool is refused, with the arithmetic\n\
             grpcurl -plaintext -d '{{\"settings\":{{\"keepalive\":100}}}}' \\\n  \
             {control} forebay.v1.PoolSettings/UpdatePoolSettings\n\n\
             # the pools of the worker\n\
             curl -s http://{admin}/pools\n\n\
             # without grpcurl\n\
             {program} models list{flag}\n\
             {program} models update qwen2.5-7b --max-concurrent 80{flag}\n\
             {program} fleet rollout{flag}\n\n\
             Ctrl-C stops everything and leaves nothing behind.",
            listening = listening(self.addresses),
            models = models.join(", "),
        )
    }
}

async fn move_to(
    registry: &mut ModelRegistryClient<tonic::transport::Channel>,
    id: &str,
    mock: &MockServer,
) -> anyhow::Result<()> {
    let model = wire::Model {
        id: id.to_owned(),
        endpoints: vec![models::endpoint(mock.url())],
        ..wire::Model::default()
    };
    let request = wire::UpdateModelRequest {
        model: Some(model),
        ..Default::default()
    };
    client::call(registry.update_model(request)).await.map(drop)
}
