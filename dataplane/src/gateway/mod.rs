//! The gateway: accepts clients' connections and serves their requests, each under a span that
//! continues the client's trace.

mod alarm;
mod answer;
mod attempt;
mod body;
mod clients;
mod connection;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod head;
mod headers;
mod json_scan;
mod json_string;
mod model_field;
mod models;
mod pace;
mod paths;
mod proxy;
mod read;
mod record;
mod watchdog;

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, Version, header, request::Parts};
use hyper::body::Incoming;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::field;

pub use self::clients::ClientLimits;
use self::{
    alarm::Alarms,
    body::ResponseBody,
    clients::{Clients, Peer, Presence},
    error::GatewayError,
    head::Hosts,
    paths::Target,
    proxy::{Answer, Proxy},
    record::RequestRecord,
    watchdog::Watchdog,
};
use crate::{
    apply::client_connections,
    live::LiveCell,
    metrics::{Metrics, Source},
    trace_context,
};

/// Most connections of clients at once; when all are in use, further ones wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 16_384;
/// Pause after a failed accept: out of files, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves clients.
#[derive(Debug)]
pub struct Gateway {
    proxy: Arc<Proxy>,
    grace: Duration,
    most_connections: usize,
}

impl Gateway {
    /// Serves what is in force. Bodies over the limit are refused; at the end, requests in flight get
    /// `grace` to finish. Clients get no more of the `open_files` than the upstreams leave.
    #[must_use]
    pub fn new(
        live: Arc<LiveCell>,
        metrics: Arc<Metrics>,
        max_body_bytes: usize,
        limits: ClientLimits,
        grace: Duration,
        open_files: u64,
    ) -> Self {
        Self {
            proxy: Arc::new(Proxy {
                live,
                metrics,
                max_body_bytes,
                hosts: Hosts::new(&limits.allowed_hosts),
                limits,
                watchdog: Watchdog::default(),
            }),
            grace,
            most_connections: client_connections(open_files).min(MOST_CONNECTIONS),
        }
    }

    /// Serves until told to stop, then lets requests in flight finish.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let (limits, metrics) = (self.proxy.limits.clone(), self.proxy.metrics.clone());
        let mut clients = Clients::new(limits, self.most_connections, metrics);
        let mut ticks = interval(watchdog::EVERY);
        let mut connections = JoinSet::new();
        loop {
            let room = clients.has_room();
            let accepted = tokio::select! {
                accepted = accept(&listener), if room => accepted,
                Some(ended) = connections.join_next_with_id() => {
                    clients.remove(ended.map_or_else(|error| error.id(), |(id, ())| id));
                    continue;
                }
                _ = ticks.tick() => {
                    self.proxy.watchdog.sweep();
                    clients.sweep();
                    continue;
                }
                () = shutdown.cancelled() => break,
            };
            let (socket, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let peer = Peer::of(from.ip());
            if !clients.admits(peer) {
                tracing::debug!(%from, "refused: this peer has as many connections as it may");
                continue;
            }
            let (proxy, stopping) = (self.proxy.clone(), shutdown.clone());
            let presence = clients.presence();
            let watcher = graceful.watcher();
            let serving = connection::serve(proxy, socket, presence.clone(), watcher, stopping);
            clients.add(peer, presence, connections.spawn(serving));
        }
        drop(listener);
        if timeout(self.grace, graceful.shutdown()).await.is_err() {
            tracing::warn!(grace = ?self.grace, "requests still in flight are cut");
        }
        connections.shutdown().await;
    }
}

async fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, SocketAddr)> {
    let (socket, from) = listener.accept().await?;
    socket.set_nodelay(true)?;
    Ok((socket, from))
}

/// Serves one request under a span that continues the client's trace.
async fn serve(
    proxy: &Proxy,
    request: Request<Incoming>,
    alarms: &Alarms,
    presence: &Presence,
) -> Response<ResponseBody> {
    let (mut parts, body) = request.into_parts();
    head::drop_foreign(&mut parts.headers);
    let request_id = headers::request_id(&parts.headers);
    let target = match head::check(&parts, &proxy.hosts) {
        Ok(()) => Target::find(&parts.method, parts.uri.path()),
        Err(error) => Err(error.into()),
    };
    let path = target.as_ref().map_or(paths::UNKNOWN, Target::label);
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{} {path}", parts.method),
        otel.kind = "server",
        request_id = request_id.to_str().unwrap_or_default(),
        model = field::Empty,
        status = field::Empty,
    );
    trace_context::adopt(&span, &parts.headers);
    let mut record = RequestRecord::new(proxy.metrics.clone(), path, request_id.clone());
    let answer = {
        let answer = pin!(answer(proxy, target, &parts, body, alarms, &mut record));
        trace_context::within(&span, answer).await
    };
    let mut response = match answer {
        Ok(answer) => proxy.pass_on(answer, record),
        Err((response, Rest::Read)) => response,
        Err((mut response, Rest::Unread)) => {
            presence.leaves_unread();
            if parts.version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        }
    };
    span.record("status", response.status().as_u16());
    response
        .headers_mut()
        .insert(headers::REQUEST_ID, request_id);
    response
}

/// What is known of a request's body once it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It was read to its end: the connection can carry the next request.
    Read,
    /// It was not, or nobody can say where it ends: nothing that comes after it is a request.
    Unread,
}

/// Gives an upstream's answer, or else the gateway's own.
async fn answer(
    proxy: &Proxy,
    target: Result<Target, GatewayError>,
    parts: &Parts,
    mut body: Incoming,
    alarms: &Alarms,
    record: &mut RequestRecord,
) -> Result<Answer, (Response<ResponseBody>, Rest)> {
    let mut rest = Rest::Read;
    let result = match target {
        Ok(Target::Inference(path)) => match proxy.serve(path, parts, body, alarms, record).await {
            Ok(answer) => return Ok(answer),
            Err(error) => Err(error),
        },
        Ok(local) => {
            if !read::discard(parts, &mut body).await {
                rest = Rest::Unread;
            }
            match local {
                Target::Model(name) => models::get(&proxy.live.load(), &name),
                _ => Ok(models::list(&proxy.live.load())),
            }
        }
        Err(error) => {
            if error.leaves_unread() || !read::discard(parts, &mut body).await {
                rest = Rest::Unread;
            }
            Err(error)
        }
    };
    let (response, source) = match result {
        Ok(response) => (response, Source::Gateway),
        Err(error) => {
            if error.leaves_unread() {
                rest = Rest::Unread;
            }
            tracing::info!(request_id = record.request_id(), %error, "request refused");
            (error.to_response(), error.source())
        }
    };
    record.answered(response.status().as_u16(), source);
    Err((response, rest))
}
