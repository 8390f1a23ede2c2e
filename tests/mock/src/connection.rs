//! One connection: uvicorn's idle limit, the delay of a handshake, and resets on demand.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    config::Speaks,
    serve::Shared,
    socket::{SharedSocket, Socket},
    stats::{Closed, Counts},
};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What HTTP is spoken on.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What is to become of a connection, told by its requests.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    reset: AtomicBool,
    busy: AtomicU64,
    served: AtomicU64,
    changed: Notify,
}

impl Fate {
    /// To be reset as soon as may be.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// A request begins; it ends when the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
        Busy(self.clone())
    }

    fn is_idle(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0 && self.served.load(Ordering::Acquire) > 0
    }
}

/// A request under way on a connection.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Fate>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
        self.0.served.fetch_add(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

/// Counts the end of a connection, however it comes.
struct Open<'a> {
    counts: &'a Counts,
    why: Closed,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.counts.closed(self.why);
    }
}

/// Serves a connection until either side has had enough.
pub(crate) async fn serve(shared: Arc<Shared>, socket: Socket) {
    shared.counts.opened();
    let mut open = Open {
        counts: &shared.counts,
        why: Closed::Other,
    };
    let socket = Arc::new(socket);
    if shared.faults.lock().refuse {
        open.why = Closed::Fault;
        socket.reset_on_close();
        return;
    }
    sleep(shared.config.accept_delay).await;
    let fate = Arc::new(Fate::default());
    let plain = SharedSocket(socket.clone());
    let io: Box<dyn Io> = match &shared.tls {
        Some(acceptor) => match acceptor.accept(plain).await {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                tracing::debug!(%error, "no TLS");
                return;
            }
        },
        None => Box::new(plain),
    };
    let mut connection = std::pin::pin!(speak(shared.clone(), fate.clone(), io));
    loop {
        let idle = idle_deadline(&fate, shared.config.keep_alive);
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                if fate.reset.load(Ordering::Acquire) {
                    open.why = Closed::Fault;
                    socket.reset_on_close();
                }
                return;
            }
            () = fate.changed.notified() => {
                if fate.reset.load(Ordering::Acquire) {
                    open.why = Closed::Fault;
                    socket.reset_on_close();
                    return;
                }
            }
            () = idle => {
                open.why = Closed::Idle;
                return;
            }
        }
    }
}

async fn speak(shared: Arc<Shared>, fate: Arc<Fate>, io: Box<dyn Io>) -> Result<(), AnyError> {
    let (speaks, max_streams) = (shared.config.speaks, shared.config.max_streams);
    let service =
        service_fn(move |request| crate::serve::answer(shared.clone(), fate.clone(), request));
    let io = TokioIo::new(io);
    match speaks {
        Speaks::Http1 => {
            let connection = http1::Builder::new().serve_connection(io, service);
            connection.await.map_err(Into::into)
        }
        Speaks::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            let connection = builder.max_concurrent_streams(max_streams);
            let connection = connection.serve_connection(io, service);
            connection.await.map_err(Into::into)
        }
        Speaks::Both => {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(max_streams);
            builder.serve_connection(io, service).await
        }
    }
}

/// Runs out when the connection is idle for too long; never while it is busy or unused.
fn idle_deadline(
    fate: &Fate,
    keep_alive: Option<Duration>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    match keep_alive.filter(|_| fate.is_idle()) {
        Some(limit) => Box::pin(sleep_until(Instant::now() + limit)),
        None => Box::pin(std::future::pending()),
    }
}
