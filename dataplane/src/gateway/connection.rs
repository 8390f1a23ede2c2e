//! One client's connection: its first bytes, its protocol, and the moment at which the client is gone.
//!
//! It knows nothing of requests; dropping it drops those that it carries.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::Watcher},
};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{alarm::Alarms, proxy::Proxy};
use crate::shared_socket::SharedSocket;

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

/// Serves a connection to its end.
pub(super) async fn serve(
    proxy: Arc<Proxy>,
    socket: TcpStream,
    watcher: Watcher,
    stopping: CancellationToken,
) {
    let began = tokio::select! {
        began = timeout(FIRST_BYTES_WITHIN, first_bytes(&socket)) => began.unwrap_or(false),
        () = stopping.cancelled() => false,
    };
    if !began {
        return;
    }
    let socket = Arc::new(socket);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let alarms = Alarms::default();
    builder
        .http1()
        .timer(alarms.clone())
        .header_read_timeout(HEAD_WITHIN);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .max_concurrent_streams(MOST_STREAMS);
    let service = service_fn(move |request| {
        let (proxy, alarms) = (proxy.clone(), alarms.clone());
        async move { Ok::<_, Infallible>(super::serve(&proxy, request, &alarms).await) }
    });
    let io = TokioIo::new(SharedSocket(socket.clone()));
    let connection = watcher.watch(builder.serve_connection(io, service));
    tokio::select! {
        biased;
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(error, "client connection ended");
            }
        }
        () = gone(&socket) => tracing::debug!("client gone"),
    }
}

/// Waits until it is clear which protocol the client speaks. hyper would wait for that without a limit.
async fn first_bytes(socket: &TcpStream) -> bool {
    let mut start = [0; PREFACE.len()];
    loop {
        let read = socket.peek(&mut start).await.unwrap_or(0);
        let seen = start.get(..read).unwrap_or_default();
        match read {
            0 => return false,
            _ if read < PREFACE.len() && PREFACE.starts_with(seen) => sleep(GONE_EVERY).await,
            _ => return true,
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
