//! What runs on the simulated machines.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use forebay_control::simulation::Disk;
use forebay_dataplane::simulation::{Connect, Io, Worker};
use forebay_proto::{InstanceId, WorkerId, wire};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, server::Connected};
use tower::service_fn;
use turmoil::net::{TcpListener, TcpStream};
use wire::model_registry_client::ModelRegistryClient;

use super::world::{Expected, World};

const PORT: u16 = 50_051;
const MODELS: u64 = 6;
/// How long the operator waits for an answer before it asks again.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection that was accepted.
struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

pub(super) async fn control(disk: Disk) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let incoming = futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await;
        Some((accepted.map(|(socket, _)| Accepted(socket)), listener))
    });
    forebay_control::simulation::run(disk, Box::pin(incoming), CancellationToken::new()).await?;
    Ok(())
}

pub(super) async fn worker(world: Arc<World>, number: usize) -> turmoil::Result {
    let network = Connect::new(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default().to_owned();
        let socket = TcpStream::connect((host, PORT)).await?;
        Ok(Box::new(socket) as Box<dyn Io>)
    });
    let instance = world.next_instance();
    let worker = Worker::new(
        WorkerId::new(format!("w{number}"))?,
        InstanceId::new(format!("i{instance}"))?,
        format!("http://control:{PORT}").parse()?,
        network,
    )?;
    world.started(number, worker.in_force());
    worker.run(CancellationToken::new()).await;
    Ok(())
}

/// Writes, each until it is answered, with the same request id; then looks at what came of them.
pub(super) async fn operator(world: Arc<World>, until: Duration) -> turmoil::Result {
    let mut dice = fastrand::Rng::with_seed(world.seed);
    let mut number = 0;
    while turmoil::elapsed() < until {
        sleep(Duration::from_millis(dice.u64(20..1_500))).await;
        number += 1;
        let id = format!("m{}", dice.u64(..MODELS));
        let delete = dice.u64(..5) == 0;
        let mut tries = 0;
        let revision = loop {
            tries += 1;
            let sent = match delete {
                true => remove(&id, number).await,
                false => put(&id, number).await,
            };
            match sent {
                Some(revision) => break revision,
                None => sleep(Duration::from_millis(dice.u64(10..500))).await,
            }
        };
        world.acknowledged(revision, tries);
        world.expect(&id, (!delete).then_some(number));
    }
    let found = loop {
        match list().await {
            Some(found) => break found,
            None => sleep(Duration::from_millis(200)).await,
        }
    };
    world.found(found);
    Ok(())
}

async fn registry() -> Option<ModelRegistryClient<Channel>> {
    let connector = service_fn(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default().to_owned();
        TcpStream::connect((host, PORT)).await.map(TokioIo::new)
    });
    let endpoint = Endpoint::from_shared(format!("http://control:{PORT}")).ok()?;
    let connected = timeout(PATIENCE, endpoint.connect_with_connector(connector)).await;
    Some(ModelRegistryClient::new(connected.ok()?.ok()?))
}

/// The number stands in the model's total time limit.
async fn put(id: &str, number: u64) -> Option<u64> {
    let seconds = i64::try_from(number).ok()?;
    let request = wire::UpdateModelRequest {
        model: Some(wire::Model {
            id: id.to_owned(),
            endpoints: vec![wire::Endpoint {
                id: "a".to_owned(),
                url: "http://10.0.0.1:8000".to_owned(),
                ..wire::Endpoint::default()
            }],
            timeouts: Some(wire::Timeouts {
                total: Some(prost_types::Duration { seconds, nanos: 0 }),
                ..wire::Timeouts::default()
            }),
            ..wire::Model::default()
        }),
        allow_missing: true,
        request_id: format!("r{number}"),
        ..wire::UpdateModelRequest::default()
    };
    let mut registry = registry().await?;
    let answer = timeout(PATIENCE, registry.update_model(request)).await;
    Some(answer.ok()?.ok()?.into_inner().revision)
}

async fn remove(id: &str, number: u64) -> Option<u64> {
    let request = wire::DeleteModelRequest {
        id: id.to_owned(),
        allow_missing: true,
        request_id: format!("r{number}"),
        ..wire::DeleteModelRequest::default()
    };
    let mut registry = registry().await?;
    let answer = timeout(PATIENCE, registry.delete_model(request)).await;
    Some(answer.ok()?.ok()?.into_inner().revision)
}

async fn list() -> Option<Expected> {
    let mut registry = registry().await?;
    let answer = timeout(
        PATIENCE,
        registry.list_models(wire::ListModelsRequest::default()),
    )
    .await;
    let models = answer.ok()?.ok()?.into_inner().models;
    let number = |model: wire::Model| {
        let seconds = model.timeouts?.total?.seconds;
        Some((model.id, u64::try_from(seconds).ok()?))
    };
    models.into_iter().map(number).collect()
}
