//! One open upstream connection: hyper's handle to send on, and the watch on its socket.

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use forebay_proto::{Endpoint, EndpointId};
use futures_util::future::Either;
use http::{
    HeaderValue, Request, Response, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    core::{Connection, MOST_STREAMS},
    desk::Upstream,
    io::{SocketWatch, Transport, Unasked},
    request_body::RequestBody,
    target::{DialError, Target},
};

/// Most bytes of a response head, and what hyper keeps to read into. A buffer that grows with what comes, as
/// hyper's does unless told otherwise, stays large while its connection rests.
const BUFFER: usize = 8 * 1024;
/// Most interim answers before the one that counts, over HTTP/1.1.
const MOST_INTERIM: usize = 8;
/// Most bytes of a response's headers over HTTP/2.
const HEADER_LIST: u32 = 64 * 1024;
/// What one HTTP/2 stream may send before it is read: what is kept of an answer that nobody reads.
const STREAM_WINDOW: u32 = 64 * 1024;
/// All that there can be (RFC 9113 §6.9.1): the streams' windows are the limit, so that an answer that nobody reads
/// holds up no other. h2 also takes from it how many unread frames of a few bytes it bears before it ends the
/// connection, with all that is on it: half of this, at 256 bytes a frame, is more than all windows can hold.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
const _: () = assert!(MOST_STREAMS as u32 * STREAM_WINDOW < CONNECTION_WINDOW / 2 / 256);
/// Pings find an HTTP/2 server that is gone without a word.
const PING: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// How often it is looked whether the server's settings have come.
const LOOK_EVERY: Duration = Duration::from_millis(1);

type Body = RequestBody;

/// What drives a connection until it is closed.
pub(super) struct Driver {
    protocol: Protocol,
    /// Told when it is gone, however that came about.
    ended: DropGuard,
}

enum Protocol {
    Http1(Box<http1::Connection<TokioIo<Transport>, Body>>),
    Http2(
        Box<http2::Connection<TokioIo<Transport>, Body, Tracked>>,
        Arc<AtomicUsize>,
    ),
}

/// hyper's handle.
#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Body>),
    /// One for all handles on the connection, until its driver is gone; and how many requests at a time the server
    /// allows.
    Http2(
        Arc<Mutex<Option<http2::SendRequest<Body>>>>,
        Arc<AtomicUsize>,
    ),
    /// Let go of, because the driver is gone.
    Ended,
}

/// An open connection, or one of several handles on it.
#[derive(Debug)]
pub(super) struct Conn {
    sender: Sender,
    pub(super) watch: SocketWatch,
    pub(super) endpoint: EndpointId,
    /// The same, as it was when it was dialled.
    pub(super) at: Arc<Endpoint>,
    /// The endpoint whose source named it, and the address that was dialled.
    pub(super) source: Option<(Arc<Endpoint>, SocketAddr)>,
    /// `host:port`, as it stands in the configuration.
    host: HeaderValue,
    scheme: Scheme,
    /// The driver is gone.
    ended: CancellationToken,
    /// Ends the driver, and with it the socket; set once the driver runs.
    pub(super) driver: Option<AbortHandle>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("{0}")]
    Handshake(#[from] hyper::Error),
}

/// Dials an endpoint. The driver must be polled for anything to happen on the connection.
pub(super) async fn connect(
    target: &Target,
    tasks: &TaskTracker,
    within: Duration,
) -> Result<(Conn, Driver), ConnectError> {
    let dial = async {
        let dialled = target.dial().await?;
        let (sender, protocol) = match dialled.http2 {
            // Boxed: the future of every connect would be as large as this one.
            true => Box::pin(http2(dialled.transport, tasks)).await?,
            false => Box::pin(http1(dialled.transport)).await?,
        };
        let quiet = !dialled.http2 && !target.is_tls();
        dialled.watch.expect(match quiet {
            true => Unasked::Death,
            false => Unasked::Talk,
        });
        let ended = CancellationToken::new();
        let driver = Driver {
            protocol,
            ended: ended.clone().drop_guard(),
        };
        let conn = Conn {
            ended,
            sender,
            watch: dialled.watch,
            endpoint: target.endpoint.id.clone(),
            at: target.endpoint.clone(),
            source: target.source.clone().zip(target.address()),
            host: target.host.clone(),
            scheme: match target.is_tls() {
                true => Scheme::HTTPS,
                false => Scheme::HTTP,
            },
            driver: None,
        };
        Ok((conn, driver))
    };
    timeout(within, dial)
        .await
        .unwrap_or(Err(ConnectError::Timeout(within)))
}

async fn http1(transport: Transport) -> Result<(Sender, Protocol), hyper::Error> {
    let (sender, driver) = http1::Builder::new()
        .read_buf_exact_size(Some(BUFFER))
        .handshake(TokioIo::new(transport))
        .await?;
    Ok((Sender::Http1(sender), Protocol::Http1(Box::new(driver))))
}

async fn http2(
    transport: Transport,
    tasks: &TaskTracker,
) -> Result<(Sender, Protocol), hyper::Error> {
    let (sender, driver) = http2::Builder::new(Tracked(tasks.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        // Nothing is sent before it is known how much the server takes.
        .initial_max_send_streams(0)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(transport))
        .await?;
    let mut driver = Box::new(driver);
    while driver.current_max_send_streams() == 0 {
        let ended = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut driver).poll(cx)));
        if let Poll::Ready(result) = ended.await {
            result?;
            // Ended in good order before it began: the next look at it tells.
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    let allowed = Arc::new(AtomicUsize::new(driver.current_max_send_streams().max(1)));
    let sender = Arc::new(Mutex::new(Some(sender)));
    let sender = Sender::Http2(sender, allowed.clone());
    Ok((sender, Protocol::Http2(driver, allowed)))
}

impl Driver {
    /// Drives the connection to its end; tells when the server allows another number of requests.
    pub(super) async fn run(self, mut allowed_changed: impl FnMut(usize)) -> hyper::Result<()> {
        // In this order: who hears of the end finds the driver gone.
        let _ended = self.ended;
        match self.protocol {
            Protocol::Http1(driver) => driver.await,
            Protocol::Http2(mut driver, allowed) => {
                std::future::poll_fn(|cx| {
                    let polled = Pin::new(&mut driver).poll(cx);
                    let now = driver.current_max_send_streams();
                    if allowed.swap(now, Ordering::AcqRel) != now {
                        allowed_changed(now);
                    }
                    polled
                })
                .await
            }
        }
    }
}

/// hyper's own tasks, owned like all others.
#[derive(Debug, Clone)]
pub(super) struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

impl Connection for Conn {
    fn streams(&self) -> usize {
        match &self.sender {
            Sender::Http1(_) | Sender::Ended => 1,
            Sender::Http2(_, allowed) => allowed.load(Ordering::Acquire),
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self.sender, Sender::Http2(..))
    }

    fn another(&self) -> Option<Self> {
        let Sender::Http2(sender, allowed) = &self.sender else {
            return None;
        };
        Some(Self {
            sender: Sender::Http2(sender.clone(), allowed.clone()),
            watch: self.watch.clone(),
            endpoint: self.endpoint.clone(),
            at: self.at.clone(),
            source: self.source.clone(),
            host: self.host.clone(),
            scheme: self.scheme.clone(),
            ended: self.ended.clone(),
            driver: self.driver.clone(),
        })
    }
}

impl Upstream for Conn {
    /// Dropping hyper's handle would leave the socket open for as long as a body is held or a write is stuck.
    fn close(self) {
        // In this order: a driver that still ran would take our own end for the upstream's.
        if let Some(driver) = self.driver {
            driver.abort();
        }
        self.watch.shut_down();
    }

    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender, _) => sender.lock().as_ref().is_none_or(|s| s.is_closed()),
            Sender::Ended => true,
        }
    }

    /// A driver that has not run yet is no reason to give up a new connection, so this does not ask whether
    /// hyper is ready.
    fn is_live(&self) -> bool {
        !self.is_closed() && !self.watch.is_dead()
    }
}

impl Conn {
    /// True if it is at rest, and can carry a request.
    pub(super) fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender, _) => sender.lock().as_ref().is_some_and(|s| s.is_ready()),
            Sender::Ended => false,
        }
    }

    /// Waits until it is; false if it never will be.
    pub(super) async fn ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            // One that is not closed takes a request, now or when the server allows it.
            Sender::Http2(..) => !self.is_closed(),
            Sender::Ended => false,
        }
    }

    /// Writes on the request where it goes, in the way of the protocol.
    pub(super) fn address(&self, path: PathAndQuery, request: &mut Request<Body>) {
        match &self.sender {
            Sender::Http1(_) | Sender::Ended => {
                *request.uri_mut() = Uri::from(path);
                let host = self.host.clone();
                request.headers_mut().insert(header::HOST, host);
            }
            Sender::Http2(..) => {
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(self.scheme.clone());
                parts.authority = Authority::try_from(self.host.as_bytes()).ok();
                parts.path_and_query = Some(path);
                *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
            }
        }
    }

    /// hyper reads interim answers (1xx) and says nothing, however many there are. After some the connection is ended,
    /// as if the upstream had done so.
    fn bound_interim(&self, request: &mut Request<Body>) {
        let (watch, seen) = (self.watch.clone(), AtomicUsize::new(0));
        hyper::ext::on_informational(request, move |_| {
            if seen.fetch_add(1, Ordering::Relaxed) == MOST_INTERIM {
                watch.shut_down();
            }
        });
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// hyper hands the request to the driver through a channel. One that is put in just while the driver goes stays
    /// there, and its answer is waited for in vain, for as long as there is a handle to put another one in: so when the
    /// driver is gone, the handle goes, and what was left behind comes back. What the server has already is driven by
    /// tasks of its own, and is answered all the same.
    /// Nothing if the connection was let go of before.
    pub(super) async fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<Body>>>> {
        self.watch.arm();
        if !self.is_shared() {
            self.bound_interim(&mut request);
        }
        let answer = match &mut self.sender {
            Sender::Http1(sender) => Either::Left(sender.try_send_request(request)),
            Sender::Http2(sender, _) => {
                let mut sender = sender.lock();
                Either::Right(sender.as_mut()?.try_send_request(request))
            }
            Sender::Ended => return None,
        };
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answered = &mut answer => return Some(answered),
            () = self.ended.cancelled() => {}
        }
        if let Sender::Http2(sender, _) = std::mem::replace(&mut self.sender, Sender::Ended) {
            // Let go of outside of the lock: what was left behind is told here and now.
            let last = sender.lock().take();
            drop(last);
        }
        Some(answer.await)
    }
}
