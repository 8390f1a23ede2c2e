//! The gateway: accepts clients' connections and serves their requests, each under a span that
//! continues the client's trace.

mod again;
mod alarm;
mod answer;
mod answer_metrics;
mod attempt;
mod auth;
mod body;
mod buffered;
mod caller;
mod clients;
mod connection;
mod crowd;
mod drive;
mod error;
mod facts;
mod form_body;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hangup;
mod head;
mod headers;
mod include_usage;
mod json_body;
mod json_scan;
mod json_string;
mod keep_alive;
mod kept;
mod media;
mod models;
mod pace;
mod passing;
mod paths;
mod proxy;
mod read;
mod reading;
mod record;
mod responses;
mod sse;
mod stand_in;
mod stream_style;
mod strip;
mod turn;
mod verdict;
mod watchdog;

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use http::{HeaderValue, Request, Response, Version, header, request::Parts};
use hyper::body::Incoming;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tracing::field;

pub(crate) use self::answer_metrics::{AnswerMetrics, AnswerSeries};
pub use self::clients::ClientLimits;
use self::{
    alarm::Alarms,
    body::ResponseBody,
    buffered::Buffers,
    clients::Presence,
    crowd::Crowd,
    error::GatewayError,
    head::Hosts,
    paths::{Dialect, Found, Target},
    proxy::{Proxy, Served},
    record::RequestRecord,
    responses::Responses,
    turn::Flows,
    watchdog::Watchdog,
};
#[cfg(feature = "fuzzing")]
pub(crate) use self::{
    form_body::read as read_form, json_body::read as read_json, reading::Reading,
};
use crate::{
    apply::client_connections,
    ending::{Ending, Stage},
    handover::Resting,
    keys::KeyCell,
    live::LiveCell,
    metrics::{Metrics, Source},
    trace_context,
};

/// Most connections of clients at once; when all are in use, further ones wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 16_384;
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
    /// Serves what is in force. Bodies over the limits are refused; at the end, requests in flight get
    /// `grace` to finish. Clients get no more of the `open_files` than the upstreams leave.
    #[must_use]
    pub(crate) fn new(
        (live, keys): (Arc<LiveCell>, Arc<KeyCell>),
        metrics: Arc<Metrics>,
        (max_body_bytes, max_buffered_bytes): (usize, usize),
        limits: ClientLimits,
        ending: Arc<Ending>,
        grace: Duration,
        open_files: u64,
    ) -> Self {
        Self {
            proxy: Arc::new(Proxy {
                live,
                keys,
                metrics,
                max_body_bytes,
                buffers: Buffers::new(max_buffered_bytes),
                flows: Flows::default(),
                hosts: Hosts::new(&limits.allowed_hosts),
                limits,
                ending,
                watchdog: Watchdog::default(),
                responses: Responses::default(),
            }),
            grace,
            most_connections: client_connections(open_files).min(MOST_CONNECTIONS),
        }
    }

    /// Serves who connects, and who was `adopted` from another process, until it drains; then lets requests in flight
    /// finish, and tells those that are not finished at the end of the grace.
    pub(crate) async fn run(self, listener: TcpListener, mut adopted: mpsc::Receiver<Resting>) {
        let ending = self.proxy.ending.clone();
        let mut crowd = Crowd::new(self.proxy, self.most_connections);
        crowd.serve(listener, &mut adopted).await;
        if !crowd.finish(self.grace, &mut adopted).await {
            tracing::warn!(grace = ?self.grace, "requests still in flight are cut");
            ending.advance(Stage::Cut);
            // Who does not read what he is told is not waited for.
            crowd.finish(LAST_WORDS, &mut adopted).await;
        }
        crowd.close().await;
    }
}

/// Serves one request under a span that continues the client's trace.
async fn serve(
    proxy: &Arc<Proxy>,
    request: Request<Incoming>,
    alarms: &Alarms,
    presence: &Presence,
    hangup: CancellationToken,
) -> Response<ResponseBody> {
    let (mut parts, body) = request.into_parts();
    head::drop_foreign(&mut parts.headers);
    let request_id = headers::request_id(&parts.headers);
    let mut found = paths::find(&parts.method, parts.uri.path(), parts.uri.query());
    if let Err(error) = head::check(&parts, &proxy.hosts) {
        found.target = Err(error.into());
    }
    let (path, dialect) = (found.label, found.dialect);
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
        let mut answer = pin!(answer(proxy, found, &parts, body, alarms, &mut record));
        let in_time = poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Pending if proxy.ending.has_reached(Stage::Cut) => Poll::Ready(None),
            polled => polled.map(Some),
        });
        trace_context::within(&span, pin!(in_time)).await
    };
    let quota = record.quota();
    let mut response = match answer {
        Some(Ok(Served::Answer(answer))) => proxy.pass_on(*answer, record, hangup),
        Some(Ok(Served::Late(late))) => late.response(proxy.clone(), record, hangup),
        Some(Err((response, Rest::Read))) => response,
        Some(Err((mut response, Rest::Unread))) => {
            presence.leaves_unread();
            if parts.version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        }
        None => {
            presence.leaves_unread();
            refuse(&GatewayError::Draining, dialect, &mut record)
        }
    };
    if parts.version <= Version::HTTP_11 && proxy.ending.has_reached(Stage::Leaving) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    span.record("status", response.status().as_u16());
    if let Some(quota) = quota {
        quota.write(response.headers_mut());
    }
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
    proxy: &Arc<Proxy>,
    found: Found,
    parts: &Parts,
    mut body: Incoming,
    alarms: &Alarms,
    record: &mut RequestRecord,
) -> Result<Served, (Response<ResponseBody>, Rest)> {
    let mut rest = Rest::Read;
    let admitted = found.target.and_then(|target| {
        let caller = auth::caller(&proxy.keys, &parts.headers)?;
        if matches!(target, Target::Inference(_) | Target::Response(_)) {
            record.hold(caller.enter(record.began())?);
        }
        Ok((target, caller))
    });
    let result = match admitted {
        Ok((Target::Inference(operation), caller)) => {
            let served = proxy.serve(operation, parts, &caller, body, alarms, record);
            match served.await {
                Ok(served) => return Ok(served),
                Err(error) => Err(error),
            }
        }
        Ok((Target::Response(kept), caller)) => {
            let answer = proxy.serve_response(kept, parts, &caller, body, alarms, record);
            match answer.await {
                Ok(answer) => return Ok(Served::Answer(Box::new(answer))),
                Err(error) => Err(error),
            }
        }
        Ok((local, caller)) => {
            if !read::discard(parts, &mut body).await {
                rest = Rest::Unread;
            }
            match local {
                Target::Model(name) => models::get(&proxy.live.load(), &name, &caller),
                _ => Ok(models::list(&proxy.live.load(), &caller)),
            }
        }
        Err(error) => {
            if error.leaves_unread() || !read::discard(parts, &mut body).await {
                rest = Rest::Unread;
            }
            Err(error)
        }
    };
    let response = match result {
        Ok(response) => {
            record.answered(response.status().as_u16(), Source::Gateway);
            response
        }
        Err(error) => {
            if error.leaves_unread() {
                rest = Rest::Unread;
            }
            if let Some(reason) = error.auth_reason() {
                proxy.metrics.auth_rejected(reason);
            }
            record.note_quota(error.quota());
            refuse(&error, found.dialect, record)
        }
    };
    Err((response, rest))
}

fn refuse(
    error: &GatewayError,
    dialect: Dialect,
    record: &mut RequestRecord,
) -> Response<ResponseBody> {
    tracing::info!(request_id = record.request_id(), %error, "request refused");
    let response = error.to_response(dialect);
    record.answered(response.status().as_u16(), error.source());
    response
}

/// See [`crate::fuzzing`].
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_sse(text: &[u8], cuts: &[usize]) {
    for dialect in [
        sse::Dialect::Plain,
        sse::Dialect::Typed,
        sse::Dialect::Either,
    ] {
        sse::oracle::check(dialect, text, cuts.iter().copied());
    }
}
