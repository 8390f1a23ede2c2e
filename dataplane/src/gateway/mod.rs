//! The gateway: accepts clients' connections and serves their requests, each under a span that
//! continues the client's trace.

mod alarm;
mod answer;
mod attempt;
mod body;
mod buffered;
mod connection;
mod error;
mod headers;
mod json_scan;
mod json_string;
mod model_field;
mod models;
mod paths;
mod proxy;
mod read;
mod record;
mod turn;
mod watchdog;

use std::{pin::pin, sync::Arc, time::Duration};

use http::{Request, Response, request::Parts};
use hyper::body::Incoming;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::field;

use self::{
    alarm::Alarms,
    body::ResponseBody,
    buffered::Buffers,
    error::GatewayError,
    paths::Target,
    proxy::{Answer, Proxy},
    record::RequestRecord,
    turn::Flows,
    watchdog::Watchdog,
};
use crate::{
    apply::client_connections,
    live::LiveCell,
    metrics::{Metrics, Source},
    trace_context,
};

/// Most connections of clients at once; further ones wait in the listener's backlog.
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
    /// Serves what is in force. Bodies over the limits are refused; at the end, requests in flight get
    /// `grace` to finish. Clients get no more of the `open_files` than the upstreams leave.
    #[must_use]
    pub fn new(
        live: Arc<LiveCell>,
        metrics: Arc<Metrics>,
        (max_body_bytes, max_buffered_bytes): (usize, usize),
        grace: Duration,
        open_files: u64,
    ) -> Self {
        Self {
            proxy: Arc::new(Proxy {
                live,
                metrics,
                max_body_bytes,
                buffers: Buffers::new(max_buffered_bytes),
                flows: Flows::default(),
                watchdog: Watchdog::default(),
            }),
            grace,
            most_connections: client_connections(open_files).min(MOST_CONNECTIONS),
        }
    }

    /// Serves until told to stop, then lets requests in flight finish.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(self.most_connections));
        let mut ticks = interval(watchdog::EVERY);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &permits) => accepted,
                Some(_) = connections.join_next() => continue,
                _ = ticks.tick() => {
                    self.proxy.watchdog.sweep();
                    continue;
                }
                () = shutdown.cancelled() => break,
            };
            let (socket, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (proxy, stopping) = (self.proxy.clone(), shutdown.clone());
            let serving = connection::serve(proxy, socket, graceful.watcher(), stopping);
            connections.spawn(async move {
                serving.await;
                drop(permit);
            });
        }
        drop(listener);
        if timeout(self.grace, graceful.shutdown()).await.is_err() {
            tracing::warn!(grace = ?self.grace, "requests still in flight are cut");
        }
        connections.shutdown().await;
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    socket.set_nodelay(true)?;
    Ok((socket, permit))
}

/// Serves one request under a span that continues the client's trace.
async fn serve(
    proxy: &Proxy,
    request: Request<Incoming>,
    alarms: &Alarms,
) -> Response<ResponseBody> {
    let (parts, body) = request.into_parts();
    let request_id = headers::request_id(&parts.headers);
    let target = Target::find(&parts.method, parts.uri.path());
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
        Err(response) => response,
    };
    span.record("status", response.status().as_u16());
    response
        .headers_mut()
        .insert(headers::REQUEST_ID, request_id);
    response
}

/// Gives an upstream's answer, or else the gateway's own.
async fn answer(
    proxy: &Proxy,
    target: Result<Target, GatewayError>,
    parts: &Parts,
    body: Incoming,
    alarms: &Alarms,
    record: &mut RequestRecord,
) -> Result<Answer, Response<ResponseBody>> {
    let result = match target {
        Ok(Target::Inference(path)) => match proxy.serve(path, parts, body, alarms, record).await {
            Ok(answer) => return Ok(answer),
            Err(error) => Err(error),
        },
        Ok(Target::Models) => Ok(models::list(&proxy.live.load())),
        Ok(Target::Model(name)) => models::get(&proxy.live.load(), &name),
        Err(error) => {
            read::discard(parts, body).await;
            Err(error)
        }
    };
    let (response, source) = match result {
        Ok(response) => (response, Source::Gateway),
        Err(error) => {
            tracing::info!(request_id = record.request_id(), %error, "request refused");
            (error.to_response(), error.source())
        }
    };
    record.answered(response.status().as_u16(), source);
    Err(response)
}
