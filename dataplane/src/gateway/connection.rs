//! One client's connection: its first bytes, its protocol, and the moment at which the client is gone.
//!
//! It knows nothing of requests; dropping it drops those that it carries.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    alarm::Alarms,
    body::ResponseBody,
    drive::{self, Ended, Lasting, Waking},
    proxy::Proxy,
};
use crate::{ending::Stage, handover::Resting, shared_socket::SharedSocket};

/// Longest time to a client's first bytes.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(30);
/// Longest time to a request's head, and longest rest between requests: longer than the 60 s for which
/// load balancers keep theirs, so that it is never us who close while a request is on its way.
const HEAD_WITHIN: Duration = Duration::from_secs(90);
/// Most streams of one HTTP/2 connection.
const MOST_STREAMS: u32 = 1_000;
/// HTTP/2 pings find a client that is gone without a word.
const PING: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// How often a client with bytes that nobody reads is asked whether it is still there.
const GONE_EVERY: Duration = Duration::from_millis(25);
/// What tells that the client closed its side, and nothing of the bytes before it: being woken for each
/// request's arrival would cost as much as reading it.
#[cfg(target_os = "linux")]
const CLOSED: Interest = Interest::PRIORITY;
#[cfg(not(target_os = "linux"))]
const CLOSED: Interest = Interest::READABLE;
/// How every HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end, or until it is given to the heir. `read` was sent ahead of a connection that was
/// taken over.
pub(super) async fn serve(proxy: Arc<Proxy>, socket: TcpStream, read: Vec<u8>) {
    let ending = proxy.ending.clone();
    let speaks = tokio::select! {
        speaks = timeout(FIRST_BYTES_WITHIN, first_bytes(&socket, &read)) => speaks.ok(),
        () = ending.reached(Stage::Draining) => Some(Speaks::Nothing),
    };
    let socket = Arc::new(socket);
    let ended = match speaks {
        None => Ended::Over,
        Some(Speaks::Nothing) => Ended::AtRest(read.into()),
        Some(speaks) => tokio::select! {
            biased;
            ended = talk(&proxy, &socket, speaks, read) => ended,
            () = gone(&socket) => {
                tracing::debug!("client gone");
                Ended::Over
            }
        },
    };
    if let (Ended::AtRest(read), Some(heir)) = (ended, ending.heir())
        && let Some(socket) = Arc::into_inner(socket)
    {
        let read = read.into();
        // Gone, it can give no answer either.
        drop(heir.send(Resting { socket, read }).await);
    }
}

async fn talk(proxy: &Arc<Proxy>, socket: &Arc<TcpStream>, speaks: Speaks, read: Vec<u8>) -> Ended {
    let ending = &proxy.ending;
    let alarms = Alarms::default();
    let lasting = Arc::<Lasting>::default();
    let service = {
        let (proxy, alarms, lasting) = (proxy.clone(), alarms.clone(), lasting.clone());
        service_fn(move |request| -> Answering {
            let (proxy, alarms, lasting) = (proxy.clone(), alarms.clone(), lasting.clone());
            Box::pin(async move {
                lasting.asked(&request);
                let response = super::serve(&proxy, request, &alarms).await;
                lasting.answers(response.headers());
                Ok(response)
            })
        })
    };
    let io = TokioIo::new(ClientSocket {
        socket: SharedSocket(socket.clone()),
        ahead: read.into(),
    });
    if speaks == Speaks::Http2 {
        let mut builder = http2::Builder::new(Waking(ending.clone()));
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING_ANSWER)
            .max_concurrent_streams(MOST_STREAMS);
        return drive::http2(builder.serve_connection(io, service), ending).await;
    }
    let mut builder = http1::Builder::new();
    builder.timer(alarms).header_read_timeout(HEAD_WITHIN);
    drive::http1(builder.serve_connection(io, service), &lasting, ending).await
}

/// One request's answer on its way.
type Answering = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Nothing,
    Http1,
    Http2,
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

/// The socket as hyper has it.
#[derive(Debug)]
struct ClientSocket {
    socket: SharedSocket<TcpStream>,
    /// What comes first.
    ahead: Bytes,
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let some = buf.remaining().min(self.ahead.len());
            buf.put_slice(&self.ahead.split_to(some));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
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
