//! One request on its way to an upstream, as often as it takes: a connection, the request, the head of
//! the answer. What may be sent again is decided here, and nowhere else.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{Span, field};

use super::{
    alarm::Alarm,
    answer::{broken_rule, connection_word, finish_head, stream_limits},
    body::StreamLimits,
    error::GatewayError,
    headers,
    proxy::Proxy,
    turn,
};
use crate::{
    live::{Live, Route},
    pool::{AcquireError, Ask, Claim, CloseReason, Kind, Lease, Progress},
    trace_context::{self, within},
};

/// How soon after it was sent a request's connection must be closed for that to be a race with the
/// upstream's idle limit.
const AT_ONCE: Duration = Duration::from_millis(250);
/// Most times that one request is sent again because nothing of it had left.
const MOST_REPLAYS: u32 = 3;

/// A request that is ready to be sent, as often as it takes.
pub(super) struct Outgoing<'a> {
    pub(super) path: &'static str,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) route: &'a Route,
    pub(super) deadline: Instant,
    /// Its place among the others in line.
    pub(super) ask: Ask,
    /// When its client gives up, if it said so.
    pub(super) patience: Option<Instant>,
    pub(super) explain: bool,
    /// Time spent reading the client's body and waiting for a connection: not overhead.
    pub(super) waited: Duration,
    /// The part of it that was spent in the line, the connect that it may have caused included.
    pub(super) queued: Duration,
    /// From the request's leaving to the head of the answer.
    pub(super) first_byte: Duration,
    /// For its deadlines, one after the other.
    pub(super) alarm: Alarm,
}

impl Proxy {
    /// Takes a connection and sends, again while nothing of the request has left.
    pub(super) async fn send(
        &self,
        outgoing: &mut Outgoing<'_>,
        live: &Live,
        began: Instant,
    ) -> Result<(Response<Incoming>, Lease, StreamLimits, Span), GatewayError> {
        let mut replays = 0;
        let mut unanswered = false;
        loop {
            let want = match (unanswered, replays) {
                (true, _) => Want::Fresh,
                (false, 0) => Want::First,
                (false, _) => Want::Again,
            };
            let (lease, sending) = self.acquire(outgoing, want).await?;
            let overhead = (sending - began).saturating_sub(outgoing.waited);
            outgoing.route.metrics.overhead(overhead.as_secs_f64());
            let span = tracing::info_span!(
                "upstream",
                endpoint = %lease.endpoint(),
                connection = connection_word(lease.kind()),
                status = field::Empty,
            );
            let kind = lease.kind();
            let sent = {
                let sent = pin!(self.send_once(outgoing, lease, sending, &span));
                within(&span, sent).await
            };
            match sent {
                Ok((mut response, lease)) => {
                    span.record("status", response.status().as_u16());
                    finish_head(&mut response, outgoing, live, &lease);
                    let limits = stream_limits(outgoing, &response);
                    return Ok((response, lease, limits, span));
                }
                Err(Failed::NothingSent(_)) if replays < MOST_REPLAYS => {
                    replays += 1;
                    outgoing.waited += sending.elapsed();
                    let cause = if kind == Kind::Reused {
                        "stale"
                    } else {
                        "unsent"
                    };
                    self.metrics.replay(&outgoing.route.model.id, cause);
                }
                Err(Failed::Unanswered(_)) if !unanswered && may_replay(outgoing, sending) => {
                    unanswered = true;
                    outgoing.waited += sending.elapsed();
                    self.metrics.replay(&outgoing.route.model.id, "unanswered");
                }
                Err(
                    Failed::NothingSent(error) | Failed::Unanswered(error) | Failed::Told(error),
                ) => return Err(error),
            }
        }
    }

    /// Gives a connection, and when it was given.
    async fn acquire(
        &self,
        outgoing: &mut Outgoing<'_>,
        want: Want,
    ) -> Result<(Lease, Instant), GatewayError> {
        let model = &outgoing.route.model;
        let began = Instant::now();
        // What it waited before counts: one limit for all attempts.
        let left = model.pool.max_wait.saturating_sub(outgoing.queued);
        let deadline = outgoing.deadline.min(began + left);
        let claim = Claim {
            ask: outgoing.ask,
            deadline,
            patience: outgoing.patience,
        };
        let span = tracing::info_span!("queue", model = %model.id);
        let pool = &outgoing.route.pool;
        let lease = match want {
            Want::First => within(&span, pin!(pool.acquire(&claim))).await,
            Want::Again => within(&span, pin!(pool.acquire_again(&claim))).await,
            Want::Fresh => within(&span, pin!(pool.acquire_fresh(&claim))).await,
        };
        let now = Instant::now();
        let queued = now - began;
        outgoing.waited += queued;
        outgoing.queued += queued;
        outgoing.route.metrics.waited(queued.as_secs_f64());
        lease
            .map(|lease| (lease, now))
            .map_err(|error: AcquireError| {
                let request_id = outgoing.request_id();
                tracing::warn!(model = %model.id, request_id, %error, "no connection");
                error.into()
            })
    }

    async fn send_once(
        &self,
        outgoing: &mut Outgoing<'_>,
        mut lease: Lease,
        began: Instant,
        span: &Span,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let model = &outgoing.route.model;
        let request = outgoing.request(&lease, span);
        let within = model.timeouts.first_byte;
        let deadline = outgoing.deadline.min(began + within);
        let answer = {
            let sending = pin!(lease.send(request));
            outgoing.alarm.within(deadline, sending).await
        };
        let names = |lease: &Lease| (model.id.to_string(), lease.endpoint().to_string());
        match answer {
            Some(Ok(response)) => match broken_rule(&response) {
                Some(rule) => {
                    let (name, endpoint) = names(&lease);
                    lease.discard(CloseReason::Error);
                    Err(Failed::Told(GatewayError::UpstreamProtocol {
                        model: name,
                        endpoint,
                        rule,
                    }))
                }
                None => {
                    let took = began.elapsed();
                    outgoing.first_byte = took;
                    outgoing.route.metrics.first_byte(took.as_secs_f64());
                    lease.answered_after(took);
                    turn::note_load(outgoing.route, &response, took, outgoing.body.len());
                    Ok((response, lease))
                }
            },
            Some(Err(failed)) => {
                let (name, endpoint) = names(&lease);
                let unsent = failed.progress == Progress::NothingSent;
                let closed = lease.kind() == Kind::Reused && failed.is_unanswered_close();
                if unsent && lease.kind() == Kind::Reused {
                    outgoing.route.pool.count_stale_at_send();
                }
                lease.discard(match unsent || closed {
                    true => CloseReason::Upstream,
                    false => CloseReason::Error,
                });
                let error = failed.error;
                let error = GatewayError::UpstreamReset {
                    model: name,
                    endpoint,
                    error,
                    sent: !unsent,
                };
                Err(match (unsent, closed) {
                    (true, _) => Failed::NothingSent(error),
                    (false, true) => Failed::Unanswered(error),
                    (false, false) => Failed::Told(error),
                })
            }
            None => {
                let (name, endpoint) = names(&lease);
                lease.discard(CloseReason::Error);
                let within = match began.elapsed() < within {
                    true => model.timeouts.total,
                    false => within,
                };
                Err(Failed::Told(GatewayError::UpstreamTimeout {
                    model: name,
                    endpoint,
                    within,
                }))
            }
        }
    }
}

/// Which connection is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Any, in turn.
    First,
    /// Any, for one that had its turn.
    Again,
    /// One that carried no request yet, for one that had its turn.
    Fresh,
}

enum Failed {
    /// It may be sent again.
    NothingSent(GatewayError),
    /// The reused connection that it was sent on was closed before anything came back: most likely
    /// the upstream had closed it already.
    Unanswered(GatewayError),
    /// It may not: the client is told.
    Told(GatewayError),
}

impl Outgoing<'_> {
    /// What names it in logs.
    fn request_id(&self) -> &str {
        let id = self.headers.get(headers::REQUEST_ID);
        id.and_then(|id| id.to_str().ok()).unwrap_or_default()
    }

    fn request(&self, lease: &Lease, span: &Span) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = http::Method::POST;
        let mut headers = self.headers.clone();
        trace_context::inject(span, &mut headers);
        *request.headers_mut() = headers;
        lease.address(self.path, &mut request);
        request
    }
}

/// A close that comes later than this is no race: the upstream had the request.
fn may_replay(outgoing: &Outgoing<'_>, sent: Instant) -> bool {
    outgoing.route.model.pool.replay_unanswered && sent.elapsed() < AT_ONCE
}
