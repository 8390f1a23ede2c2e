//! `WorkerSync`: opens a session per stream.

use std::net::SocketAddr;

use forebay_proto::wire::{self, worker_sync_server::WorkerSync};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use crate::session::Session;

/// Most words on their way to one worker.
const UNDER_WAY: usize = 4;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct SyncService {
    pub(crate) context: Context,
    pub(crate) sessions: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

#[tonic::async_trait]
impl WorkerSync for SyncService {
    type SyncStream = ReceiverStream<Result<wire::ToWorker, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<wire::FromWorker>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let peer = request
            .remote_addr()
            .map_or("unknown".to_owned(), |a: SocketAddr| a.to_string());
        let (say, said) = mpsc::channel(UNDER_WAY);
        let Context {
            registry,
            fleet,
            metrics,
            ..
        } = self.context.clone();
        let session = Session::new(registry.watch(), fleet, say, peer, self.stopping.clone());
        let heard = request.into_inner();
        self.sessions.spawn(async move {
            metrics.streams.inc();
            session.run(heard).await;
            metrics.streams.dec();
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }
}
