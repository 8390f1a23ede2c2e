//! One client's connection: its first bytes, its protocol, the moment at which the client is gone, and how it
//! is left when the client still has something to say.
//!
//! It knows nothing of requests; dropping it drops those that it carries.

use std::{
    convert::Infallible,
    future::pending,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::Shutdown;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    alarm::Alarms,
    body::{ResponseBody, StreamFailed},
    clients::{Busy, Presence, Speaks},
    drive::{self, Ended, Lasting},
    hangup::Hangups,
    proxy::Proxy,
};
use crate::{
    ending::{Ending, Stage},
    handover::Resting,
    shared_socket::SharedSocket,
};

/// Most bytes of a request's head that are read before it is refused, and of an answer's pieces that are held: some
/// more than a head may have, so that most of what is too long can be told so in our own words.
const BUFFER: usize = 64 * 1024;
/// Most streams of one HTTP/2 connection, and what each may send before it is read.
const MOST_STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Most bytes of an HTTP/2 request's headers.
const HEADER_LIST: u32 = 16 * 1024;
/// What an HTTP/2 client has to answer a ping.
const PING_ANSWER: Duration = Duration::from_secs(10);
/// How often a client with bytes that nobody reads is asked whether it is still there.
const GONE_EVERY: Duration = Duration::from_millis(25);
/// How much is read of what nobody wants, and for how long, so that its client can hear why. It costs the reading, and
/// no memory; what a client could hold that way is a connection, and that only as long.
const LINGER_BYTES: usize = 64 << 20;
const LINGER_WITHIN: Duration = Duration::from_secs(2);
/// Most bytes that the kernel holds for a client and has not sent. It would hold megabytes, and a slow reader would
/// look like one that stopped.
const MOST_UNSENT: u32 = 64 * 1024;
/// Longest time for which what was sent may stay unread, or unanswered by a machine that is gone.
const UNREAD_FOR: Duration = Duration::from_secs(60);
/// How long a worker that ends waits for the first word of a client that was let in before.
const FIRST_WORD: Duration = Duration::from_millis(500);
/// What tells that the client closed its side, and nothing of the bytes before it: being woken for each
/// request's arrival would cost as much as reading it.
#[cfg(target_os = "linux")]
const CLOSED: Interest = Interest::PRIORITY;
#[cfg(not(target_os = "linux"))]
const CLOSED: Interest = Interest::READABLE;
/// How every HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end, or until it is given to the heir. `read` was sent ahead of a connection that was
/// taken over. Whether it takes too long about anything is for the sweep to say, who then aborts it
/// ([`super::clients`]).
pub(super) async fn serve(
    proxy: Arc<Proxy>,
    socket: TcpStream,
    read: Vec<u8>,
    presence: Arc<Presence>,
) {
    let ending = proxy.ending.clone();
    let speaks = tokio::select! {
        biased;
        speaks = first_bytes(&socket, &read) => speaks,
        () = waited_for(&ending) => Speaks::Nothing,
    };
    presence.speaks(speaks);
    let socket = Arc::new(socket);
    let (hangups, _ends) = Hangups::new(ending.clone());
    let ended = match speaks {
        Speaks::Nothing => Ended::AtRest(read.into()),
        speaks => tokio::select! {
            biased;
            ended = talk(&proxy, &socket, (speaks, read), &presence, &hangups) => ended,
            () = gone(&socket) => {
                tracing::debug!("client gone");
                return;
            }
            () = hangups.told() => {
                // What it did not read in all that time is not kept for it.
                reset(&socket);
                tracing::debug!("client hung up on");
                return;
            }
        },
    };
    match ended {
        // Before anything else that closes it.
        Ended::Cut => reset(&socket),
        Ended::Broken => linger(&socket).await,
        _ if presence.has_unread() => linger(&socket).await,
        Ended::Over => {}
        Ended::AtRest(read) => {
            if let (Some(heir), Some(socket)) = (ending.heir(), Arc::into_inner(socket)) {
                let read = read.into();
                // Gone, it can give no answer either.
                drop(heir.send(Resting { socket, read }).await);
            }
        }
    }
}

async fn talk(
    proxy: &Arc<Proxy>,
    socket: &Arc<TcpStream>,
    (speaks, read): (Speaks, Vec<u8>),
    presence: &Arc<Presence>,
    hangups: &Hangups,
) -> Ended {
    let ending = &proxy.ending;
    let alarms = Alarms::default();
    let lasting = Arc::<Lasting>::default();
    let service = {
        let (proxy, lasting, presence) = (proxy.clone(), lasting.clone(), presence.clone());
        let hangups = hangups.clone();
        service_fn(move |request: Request<Incoming>| -> Answering {
            let (proxy, alarms) = (proxy.clone(), alarms.clone());
            let (lasting, presence) = (lasting.clone(), presence.clone());
            let hangup = hangups.of_request(request.version());
            Box::pin(async move {
                let Some(busy) = presence.begin() else {
                    // The connection is closed, here and now.
                    return pending().await;
                };
                lasting.asked(&request);
                let response = super::serve(&proxy, request, &alarms, &presence, hangup).await;
                lasting.answers(response.headers());
                Ok(response.map(|body| Tracked { body, _busy: busy }))
            })
        })
    };
    let io = TokioIo::new(ClientSocket {
        socket: SharedSocket(socket.clone()),
        ahead: read.into(),
        presence: presence.clone(),
    });
    match speaks {
        Speaks::Http2 => {
            let connection = http2_builder(proxy, hangups).serve_connection(io, service);
            drive::http2(connection, ending).await
        }
        Speaks::Nothing | Speaks::Http1 => {
            let mut builder = http1::Builder::new();
            // The sweep tells whether a head takes too long.
            builder.header_read_timeout(None).max_buf_size(BUFFER);
            drive::http1(builder.serve_connection(io, service), &lasting, ending).await
        }
    }
}

/// Sets a new connection's options.
pub(super) fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(socket);
        socket.set_tcp_notsent_lowat(MOST_UNSENT)?;
        socket.set_tcp_user_timeout(Some(UNREAD_FOR))?;
    }
    Ok(())
}

/// One request's answer on its way.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Tracked>, Infallible>> + Send>>;

fn http2_builder(proxy: &Proxy, hangups: &Hangups) -> http2::Builder<Hangups> {
    let mut builder = http2::Builder::new(hangups.clone());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(proxy.limits.ping)
        .keep_alive_timeout(PING_ANSWER.min(proxy.limits.ping))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_streams(MOST_STREAMS);
    builder
}

/// For so long is waited for what a client has to say that was let in, once the worker ends: it may be on its way. An heir
/// waits in this one's place.
async fn waited_for(ending: &Ending) {
    ending.reached(Stage::Draining).await;
    if ending.heir().is_none() {
        sleep(FIRST_WORD).await;
    }
}

/// Waits until it is clear which protocol the client speaks. hyper would wait for that without a limit.
async fn first_bytes(socket: &TcpStream, ahead: &[u8]) -> Speaks {
    if !ahead.is_empty() {
        return Speaks::Http1;
    }
    let mut start = [0; PREFACE.len()];
    loop {
        let read = socket.peek(&mut start).await.unwrap_or(0);
        let seen = start.get(..read).unwrap_or_default();
        match PREFACE.starts_with(seen) {
            _ if read == 0 => return Speaks::Nothing,
            true if read < PREFACE.len() => sleep(GONE_EVERY).await,
            true => return Speaks::Http2,
            false => return Speaks::Http1,
        }
    }
}

/// Waits until the client is gone. hyper notices that by itself, unless there are bytes of the client
/// that it does not read yet: then it would serve somebody who left.
async fn gone(socket: &TcpStream) {
    loop {
        match socket.ready(CLOSED).await {
            Ok(ready) if !ready.is_read_closed() => sleep(GONE_EVERY).await,
            Ok(_) | Err(_) => return,
        }
    }
}

/// Once it is dropped the client gets a RST in place of a FIN.
fn reset(socket: &TcpStream) {
    // An error says that the client was faster.
    let reset = SockRef::from(socket).set_linger(Some(Duration::ZERO));
    if let Err(error) = reset {
        tracing::debug!(%error, "not reset, closed");
    }
}

/// Says the end, and reads on for a while what nobody wants. Closed with bytes unread, a connection is reset, and the
/// client never sees what it was told.
async fn linger(socket: &TcpStream) {
    // An error says that the client was faster.
    let _ = rustix::net::shutdown(socket, Shutdown::Write);
    let mut dropped = [0; 8 * 1024];
    let mut left = LINGER_BYTES;
    let rest = async {
        while left > 0 && socket.readable().await.is_ok() {
            match socket.try_read(&mut dropped) {
                Ok(0) => return,
                Ok(read) => left = left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // Longer than that is the client's own fault.
    drop(timeout(LINGER_WITHIN, rest).await);
}

/// An answer; the request is over when it is dropped.
#[derive(Debug)]
struct Tracked {
    body: ResponseBody,
    _busy: Busy,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = StreamFailed;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFailed>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The socket as hyper has it: what passes is noted.
#[derive(Debug)]
pub(super) struct ClientSocket {
    socket: SharedSocket<TcpStream>,
    /// What comes first.
    pub(super) ahead: Bytes,
    presence: Arc<Presence>,
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match self.ahead.is_empty() {
            true => Pin::new(&mut self.socket).poll_read(cx, buf),
            false => {
                let some = buf.remaining().min(self.ahead.len());
                buf.put_slice(&self.ahead.split_to(some));
                Poll::Ready(Ok(()))
            }
        };
        self.presence
            .came(buf.filled().len().saturating_sub(before));
        polled
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.presence.wrote(polled.is_ready());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
