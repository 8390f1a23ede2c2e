//! One client's connection: its first bytes, its protocol, and the moment at which the client is gone.
//!
//! It knows nothing of requests; dropping it drops those that it carries.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::{conn::auto, graceful::Watcher},
};
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{alarm::Alarms, hangup::Hangups, proxy::Proxy};
use crate::shared_socket::SharedSocket;

/// Longest time to a client's first bytes.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(30);
/// Longest time to a request's head, and longest rest between requests: longer than the 60 s for which
/// load balancers keep theirs, so that it is never us who close while a request is on its way.
const HEAD_WITHIN: Duration = Duration::from_secs(90);
/// Most streams of one HTTP/2 connection.
const MOST_STREAMS: u32 = 1_000;
/// Most bytes of an answer that are held for a client, beside what the kernel holds: what more there is stays upstream.
/// Also the most that a head may have.
const MOST_BUFFERED: usize = 64 * 1024;
/// Most bytes that the kernel holds for a client and has not sent. It would hold megabytes, and a slow reader would
/// look like one that stopped.
const MOST_UNSENT: u32 = 64 * 1024;
/// Longest time for which what was sent may stay unread, or unanswered by a machine that is gone.
const UNREAD_FOR: Duration = Duration::from_secs(60);
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
    let (hangups, _ends) = Hangups::new();
    let mut builder = auto::Builder::new(hangups.clone());
    let alarms = Alarms::default();
    builder
        .http1()
        .timer(alarms.clone())
        .max_buf_size(MOST_BUFFERED)
        .header_read_timeout(HEAD_WITHIN);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .max_send_buf_size(MOST_BUFFERED)
        .max_concurrent_streams(MOST_STREAMS);
    let of_requests = hangups.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (proxy, alarms) = (proxy.clone(), alarms.clone());
        let hangup = of_requests.of_request(request.version());
        async move { Ok::<_, Infallible>(super::serve(&proxy, request, &alarms, hangup).await) }
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
        () = hangups.told() => {
            // What it did not read in all that time is not kept for it.
            let reset = SockRef::from(&*socket).set_linger(Some(Duration::ZERO));
            tracing::debug!(?reset, "client hung up on");
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
