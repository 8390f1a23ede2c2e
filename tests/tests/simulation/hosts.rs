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
use forebay_tests::model_at;
use futures_util::stream::{BoxStream, StreamExt as _};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, server::Connected},
};
use tower::service_fn;
use turmoil::net::{TcpListener, TcpStream};
use wire::model_registry_client::ModelRegistryClient;

use super::world::{Expected, World};

pub(super) const PORT: u16 = 50_051;
const MODELS: u64 = 6;
/// How long an operator waits for an answer before it asks again.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// A connection that was accepted.
pub(super) struct Accepted<T>(pub(super) T);

impl<T> Connected for Accepted<T> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<T: AsyncRead + Unpin> AsyncRead for Accepted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Accepted<T> {
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
    let incoming = incoming().await?;
    forebay_control::simulation::run(disk, incoming, CancellationToken::new()).await?;
    Ok(())
}

/// What connects to the control port.
pub(super) async fn incoming() -> io::Result<BoxStream<'static, io::Result<Accepted<TcpStream>>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let incoming = futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await;
        Some((accepted.map(|(socket, _)| Accepted(socket)), listener))
    });
    Ok(incoming.boxed())
}

/// The network of the machine that calls it.
pub(super) fn network() -> Connect {
    Connect::new(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default().to_owned();
        let socket = TcpStream::connect((host, PORT)).await?;
        Ok(Box::new(socket) as Box<dyn Io>)
    })
}

pub(super) async fn worker(world: Arc<World>, number: usize) -> turmoil::Result {
    let instance = world.next_instance();
    let control = vec![format!("http://control:{PORT}").parse()?];
    let worker = Worker::new(
        WorkerId::new(format!("w{number}"))?,
        InstanceId::new(format!("i{instance}"))?,
        (control, None),
        network(),
    )?;
    world.started(number, worker.in_force());
    worker.run(CancellationToken::new()).await;
    Ok(())
}

/// Writes, each until it is answered, with the same request id; then looks at what came of all of them. None of
/// the writes is the same twice: without the memory of request ids a repetition is refused.
pub(super) async fn operator(world: Arc<World>, number: usize, until: Duration) -> turmoil::Result {
    let mut dice = fastrand::Rng::with_seed(world.seed ^ ((number as u64) << 32));
    let mut writes = 0;
    while turmoil::elapsed() < until {
        sleep(Duration::from_millis(dice.u64(20..1_500))).await;
        writes += 1;
        let model = format!("o{number}-m{}", dice.u64(..MODELS));
        let write = match (world.expects(number, &model), dice.u64(..4)) {
            (false, _) => Write::Create(writes),
            (true, 0) => Write::Delete,
            (true, _) => Write::Update(writes),
        };
        let mut tries = 0;
        let revision = loop {
            tries += 1;
            match write.send(&model, &format!("o{number}-r{writes}")).await {
                Ok(revision) => break revision,
                Err(Some(refused)) => {
                    world.fails(format!("{write:?} of {model}, try {tries}: {refused}"));
                    return Ok(());
                }
                Err(None) => sleep(Duration::from_millis(dice.u64(10..500))).await,
            }
        };
        world.acknowledged(number, revision, tries);
        world.expect(number, &model, write.leaves());
    }
    let found = loop {
        match list().await {
            Some(found) => break found,
            None => sleep(Duration::from_millis(200)).await,
        }
    };
    world.found(number, found);
    Ok(())
}

/// What an operator asks for. The number stands in the model's total time limit.
#[derive(Debug, Clone, Copy)]
pub(super) enum Write {
    Create(u64),
    Update(u64),
    Delete,
}

impl Write {
    /// What the model shows afterwards.
    fn leaves(self) -> Option<u64> {
        match self {
            Self::Create(number) | Self::Update(number) => Some(number),
            Self::Delete => None,
        }
    }

    /// Gives the revision; or why it was refused; or nothing, when it is not known what became of it.
    pub(super) async fn send(self, model: &str, request_id: &str) -> Result<u64, Option<String>> {
        let mut registry = registry("control").await.ok_or(None)?;
        let request_id = request_id.to_owned();
        let shown = self.leaves().map(|number| showing(model, number));
        let answered = timeout(PATIENCE, async {
            match self {
                Self::Create(_) => {
                    let request = wire::CreateModelRequest {
                        model: shown,
                        request_id,
                        ..wire::CreateModelRequest::default()
                    };
                    let made = registry.create_model(request).await?;
                    Ok(made.into_inner().revision)
                }
                Self::Update(_) => {
                    let request = wire::UpdateModelRequest {
                        model: shown,
                        request_id,
                        ..wire::UpdateModelRequest::default()
                    };
                    let made = registry.update_model(request).await?;
                    Ok(made.into_inner().revision)
                }
                Self::Delete => {
                    let request = wire::DeleteModelRequest {
                        id: model.to_owned(),
                        request_id,
                        ..wire::DeleteModelRequest::default()
                    };
                    let made = registry.delete_model(request).await?;
                    Ok(made.into_inner().revision)
                }
            }
        });
        match answered.await {
            Ok(Ok(revision)) => Ok(revision),
            Ok(Err(status)) => Err(refusal(&status)),
            Err(_) => Err(None),
        }
    }
}

/// What is not the fault of network, store or control plane.
fn refusal(status: &Status) -> Option<String> {
    let refused = matches!(
        status.code(),
        Code::AlreadyExists | Code::NotFound | Code::InvalidArgument | Code::Aborted
    );
    refused.then(|| status.message().to_owned())
}

pub(super) fn showing(model: &str, number: u64) -> wire::Model {
    let total = prost_types::Duration {
        seconds: i64::try_from(number).unwrap_or(i64::MAX),
        nanos: 0,
    };
    wire::Model {
        timeouts: Some(wire::Timeouts {
            total: Some(total),
            ..wire::Timeouts::default()
        }),
        ..model_at(model, "http://10.0.0.1:8000")
    }
}

/// The registry at this control plane.
pub(super) async fn registry(host: &str) -> Option<ModelRegistryClient<Channel>> {
    let connector = service_fn(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default().to_owned();
        TcpStream::connect((host, PORT)).await.map(TokioIo::new)
    });
    let endpoint = Endpoint::from_shared(format!("http://{host}:{PORT}")).ok()?;
    let connected = timeout(PATIENCE, endpoint.connect_with_connector(connector)).await;
    Some(ModelRegistryClient::new(connected.ok()?.ok()?))
}

async fn list() -> Option<Expected> {
    let mut registry = registry("control").await?;
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
