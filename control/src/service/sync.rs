//! `WorkerSync`: opens a session per stream.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use forebay_proto::wire::{self, worker_sync_server::WorkerSync};
use futures_util::{StreamExt as _, stream::Map};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use crate::session::{Offer, Session};

/// Most words on their way to one worker, beside those that the connection has taken.
const UNDER_WAY: usize = 2;

/// How long a stream may wait for the newest revision to be made ready for sessions.
const FEED_WITHIN: Duration = Duration::from_secs(5);

type Word = Result<wire::ToWorker, Status>;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct SyncService {
    pub(crate) context: Context,
    pub(crate) offers: watch::Receiver<Offer>,
    /// Streams are ended at an age between these; nothing: never.
    pub(crate) ages: Option<RangeInclusive<Duration>>,
    pub(crate) sessions: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

impl SyncService {
    /// Drawn for each, so that streams that opened together do not end together.
    fn age(&self) -> Duration {
        let Some(ages) = &self.ages else {
            return Duration::MAX;
        };
        let spread = ages.end().saturating_sub(*ages.start());
        *ages.start() + spread.mul_f64(fastrand::f64())
    }
}

#[tonic::async_trait]
impl WorkerSync for SyncService {
    async fn get_standing(
        &self,
        _: Request<wire::GetStandingRequest>,
    ) -> Result<Response<wire::Standing>, Status> {
        let (workers, room) = self.context.fleet.load();
        let newest = &self.context.registry.published().position;
        Ok(Response::new(wire::Standing {
            newest: Some(newest.into()),
            workers: u32::try_from(workers).unwrap_or(u32::MAX),
            open: room && self.context.abreast.is() && !self.stopping.is_cancelled(),
            replica: self.context.replica.to_string(),
            hears: self.context.abreast.is(),
        }))
    }

    type SyncStream = Map<ReceiverStream<Box<Word>>, fn(Box<Word>) -> Word>;

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
            abreast,
            replica,
            leases,
            ..
        } = self.context.clone();
        // What was acknowledged before it came, a worker gets at once: the feed is a task behind the registry.
        let newest = registry.published().position.revision;
        let mut offers = self.offers.clone();
        let there = offers.wait_for(|offer| offer.newest() >= newest);
        if timeout(FEED_WITHIN, there).await.is_err() {
            return Err(Status::unavailable(
                "the newest revision is not ready; try again",
            ));
        }
        let session = Session::new(
            (self.offers.clone(), registry.watch_keys()),
            (fleet, metrics.clone()),
            leases.board.clone(),
            say,
            peer,
            (self.stopping.clone(), abreast),
            (self.age(), replica),
        );
        let heard = request.into_inner();
        self.sessions.spawn(async move {
            metrics.streams.inc();
            session.run(heard).await;
            metrics.streams.dec();
        });
        let unbox: fn(Box<Word>) -> Word = |word| *word;
        Ok(Response::new(ReceiverStream::new(said).map(unbox)))
    }
}
