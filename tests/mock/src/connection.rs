//! One connection: uvicorn's idle limit, the delay of a handshake, and resets on demand.

use std::{
    error::Error,
    io,
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
        // Its idle time is over: the limit must not strike in the middle of the answer.
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
                    if is_reset(&error) {
                        open.why = Closed::Reset;
                    }
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
    let told = shared.clone();
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
            let mut connection = std::pin::pin!(connection.serve_connection(io, service));
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(Into::into),
                () = told.going.notified() => connection.as_mut().graceful_shutdown(),
            }
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

/// The peer sent RST instead of FIN.
fn is_reset(error: &AnyError) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionReset;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::sleep,
    };

    use crate::{MockConfig, MockServer};

    async fn ask(socket: &mut TcpStream, tokens: u32) {
        let body = format!(r#"{{"model":"mock","stream":true,"max_tokens":{tokens}}}"#);
        let length = body.len();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ";
        let request = format!("{head}{length}\r\n\r\n{body}");
        socket.write_all(request.as_bytes()).await.unwrap();
    }

    async fn read_until_done(socket: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"[DONE]\n\n\r\n0\r\n\r\n") {
            let read = socket.read_buf(&mut bytes).await.unwrap();
            let text = String::from_utf8_lossy(&bytes);
            assert!(read > 0, "closed in the middle of an answer: {text}");
        }
        String::from_utf8(bytes).unwrap()
    }

    /// The second answer takes longer than what was left of the idle time when it was asked for.
    #[tokio::test]
    async fn the_idle_limit_does_not_strike_in_an_answer() {
        let mock = MockServer::start(MockConfig {
            keep_alive: Some(Duration::from_millis(150)),
            interval: Duration::from_millis(10),
            ..MockConfig::default()
        });
        let mock = mock.await.unwrap();
        let mut socket = TcpStream::connect(mock.addr()).await.unwrap();
        ask(&mut socket, 1).await;
        read_until_done(&mut socket).await;
        sleep(Duration::from_millis(50)).await;
        ask(&mut socket, 30).await;
        let answer = read_until_done(&mut socket).await;
        assert!(answer.contains("token29"), "{answer}");
        let end = socket.read_u8().await;
        assert!(end.is_err(), "and then it is closed");
        assert_eq!(mock.stats().closed_idle, 1);
    }
}
