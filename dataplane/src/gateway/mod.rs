//! The gateway: accepts clients' connections and serves their requests, each under a span that
//! continues the client's trace.

mod alarm;
mod answer;
mod attempt;
mod body;
mod connection;
mod drive;
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
mod watchdog;

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, Version, header, request::Parts};
use hyper::body::Incoming;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tracing::field;

use self::{
    alarm::Alarms,
    body::ResponseBody,
    error::GatewayError,
    paths::Target,
    proxy::{Answer, Proxy},
    record::RequestRecord,
    watchdog::Watchdog,
};
use crate::{
    apply::client_connections,
    ending::{Ending, Stage},
    handover::Resting,
    live::LiveCell,
    metrics::{Metrics, Source},
    trace_context,
};

/// Most connections of clients at once; further ones wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 16_384;
/// Pause after a failed accept: out of files, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long those that are cut have to be told.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    pub(crate) fn new(
        live: Arc<LiveCell>,
        metrics: Arc<Metrics>,
        max_body_bytes: usize,
        ending: Arc<Ending>,
        grace: Duration,
        open_files: u64,
    ) -> Self {
        Self {
            proxy: Arc::new(Proxy {
                live,
                metrics,
                max_body_bytes,
                ending,
                watchdog: Watchdog::default(),
            }),
            grace,
            most_connections: client_connections(open_files).min(MOST_CONNECTIONS),
        }
    }

    /// Serves who connects, and who was `adopted` from another process, until it drains; then lets requests in flight
    /// finish, and tells those that are not finished at the end of the grace.
    pub(crate) async fn run(self, listener: TcpListener, mut adopted: mpsc::Receiver<Resting>) {
        let ending = self.proxy.ending.clone();
        let permits = Arc::new(Semaphore::new(self.most_connections));
        let mut ticks = interval(watchdog::EVERY);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &permits) => accepted,
                Some(Resting { socket, read }) = adopted.recv() => {
                    // They were let in once.
                    connections.spawn(connection::serve(self.proxy.clone(), socket, read));
                    continue;
                }
                Some(_) = connections.join_next() => continue,
                _ = ticks.tick() => {
                    self.proxy.watchdog.sweep();
                    continue;
                }
                () = ending.reached(Stage::Draining) => break,
            };
            let (socket, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let serving = connection::serve(self.proxy.clone(), socket, Vec::new());
            connections.spawn(async move {
                serving.await;
                drop(permit);
            });
        }
        drop(listener);
        // What was on its way from the process before this one has no other place.
        while let Some(Resting { socket, read }) = adopted.recv().now_or_never().flatten() {
            connections.spawn(connection::serve(self.proxy.clone(), socket, read));
        }
        let mut all_done = async || while connections.join_next().await.is_some() {};
        if timeout(self.grace, all_done()).await.is_err() {
            tracing::warn!(grace = ?self.grace, "requests still in flight are cut");
            ending.advance(Stage::Cut);
            // Who does not read what he is told is not waited for.
            drop(timeout(LAST_WORDS, all_done()).await);
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
        let mut answer = pin!(answer(proxy, target, &parts, body, alarms, &mut record));
        let in_time = poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Pending if proxy.ending.has_reached(Stage::Cut) => Poll::Ready(None),
            polled => polled.map(Some),
        });
        trace_context::within(&span, pin!(in_time)).await
    };
    let mut response = match answer {
        Some(Ok(answer)) => proxy.pass_on(answer, record),
        Some(Err(response)) => response,
        None => refuse(&GatewayError::Draining, &mut record),
    };
    if parts.version <= Version::HTTP_11 && proxy.ending.has_reached(Stage::Leaving) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
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
    Err(match result {
        Ok(response) => {
            record.answered(response.status().as_u16(), Source::Gateway);
            response
        }
        Err(error) => refuse(&error, record),
    })
}

fn refuse(error: &GatewayError, record: &mut RequestRecord) -> Response<ResponseBody> {
    tracing::info!(request_id = record.request_id(), %error, "request refused");
    let response = error.to_response();
    record.answered(response.status().as_u16(), error.source());
    response
}
