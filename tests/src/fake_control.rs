//! A control plane that says what the test wants: a real gRPC server, and a stream per worker that the test speaks on.

use std::{net::SocketAddr, time::Duration};

use forebay_proto::{Config, Digest, ModelSpec, PoolSettings, Revision, limits, wire};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use wire::{
    from_worker::Message as Heard,
    to_worker::Message as Say,
    worker_sync_server::{WorkerSync, WorkerSyncServer},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane of the test's.
#[derive(Debug)]
pub struct FakeControl {
    addr: SocketAddr,
    streams: mpsc::Receiver<FakeStream>,
    _serving: JoinSet<()>,
}

/// A worker's stream.
#[derive(Debug)]
pub struct FakeStream {
    say: mpsc::Sender<Result<wire::ToWorker, Status>>,
    heard: Streaming<wire::FromWorker>,
}

struct Service(mpsc::Sender<FakeStream>);

#[tonic::async_trait]
impl WorkerSync for Service {
    type SyncStream = ReceiverStream<Result<wire::ToWorker, Status>>;

    async fn get_standing(
        &self,
        _: Request<wire::GetStandingRequest>,
    ) -> Result<Response<wire::Standing>, Status> {
        Err(Status::unimplemented("as builds before it"))
    }

    async fn sync(
        &self,
        request: Request<Streaming<wire::FromWorker>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let (say, said) = mpsc::channel(4);
        let heard = request.into_inner();
        let stream = FakeStream { say, heard };
        let taken = self.0.send(stream).await;
        taken.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

impl FakeControl {
    /// Starts one.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("its address");
        let (accept, streams) = mpsc::channel(1);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let server = Server::builder().add_service(WorkerSyncServer::new(Service(accept)));
            let incoming = TcpListenerStream::new(listener);
            server
                .serve_with_incoming(incoming)
                .await
                .expect("it serves");
        });
        Self {
            addr,
            streams,
            _serving: serving,
        }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Waits for a worker, welcomes it, and gives what it holds.
    pub async fn accept(&mut self) -> (FakeStream, Option<wire::Position>) {
        let (stream, hello) = self.greet().await;
        (stream, hello.applied)
    }

    /// Waits for a worker, welcomes it, and gives its first word.
    pub async fn greet(&mut self) -> (FakeStream, wire::Hello) {
        let stream = timeout(PATIENCE, self.streams.recv()).await;
        let mut stream = stream.expect("a worker comes").expect("the server runs");
        let Some(Heard::Hello(hello)) = stream.hear().await else {
            panic!("a worker says hello first");
        };
        let welcome = wire::Welcome {
            protocol: 2,
            ..wire::Welcome::default()
        };
        stream.say(Say::Welcome(welcome)).await;
        (stream, hello)
    }
}

impl FakeStream {
    /// Says this.
    pub async fn say(&self, message: Say) {
        let message = Some(message);
        // A worker that ended the stream does not hear it.
        drop(self.say.send(Ok(wire::ToWorker { message })).await);
    }

    /// Says a body in chunks of the usual size.
    pub async fn say_chunks(&self, push_id: u64, body: &[u8]) {
        let most = body.len().div_ceil(limits::CHUNK_BYTES);
        for (n, data) in body.chunks(limits::CHUNK_BYTES).enumerate() {
            let chunk = wire::Chunk {
                push_id,
                index: u32::try_from(n).expect("few chunks"),
                last: n + 1 == most,
                data: data.to_vec().into(),
            };
            self.say(Say::Chunk(chunk)).await;
        }
    }

    /// Cuts the stream.
    pub async fn cut(&self) {
        drop(self.say.send(Err(Status::unavailable("cut"))).await);
    }

    /// The worker's next word that is no heartbeat; nothing when it ended the stream.
    pub async fn hear(&mut self) -> Option<Heard> {
        loop {
            match self.hear_any().await {
                Some(Heard::Heartbeat(_)) => {}
                word => return word,
            }
        }
    }

    /// The worker's next word, whatever it is; nothing when it ended the stream.
    pub async fn hear_any(&mut self) -> Option<Heard> {
        let heard = timeout(PATIENCE, self.heard.message()).await;
        let heard = heard.expect("a word or the end").ok().flatten();
        heard.and_then(|message| message.message)
    }
}

/// A configuration of these models, as one push in one message.
#[must_use]
pub fn push_of(revision: u64, models: Vec<wire::Model>) -> wire::Push {
    let settings = PoolSettings::default();
    let resolved = models.into_iter().map(|model| {
        let spec = ModelSpec::try_from(model).expect("a model");
        let model = spec.resolve(&settings, Revision::new(revision));
        model.expect("a model that fits")
    });
    let budget = settings.budget().expect("a budget");
    let config = Config::new(budget, resolved.collect()).expect("a configuration");
    let (config, digest): (_, Digest) = config.encode();
    wire::Push {
        push_id: revision,
        to: Some(wire::Position {
            epoch: "fa".to_owned(),
            revision,
            digest: digest.as_bytes().to_vec().into(),
        }),
        config,
        ..wire::Push::default()
    }
}
