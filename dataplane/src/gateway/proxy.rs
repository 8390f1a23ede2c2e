//! The way of one request: body, model, route, connection, upstream, answer.
//!
//! It loads what is in force once and so sees exactly one revision. Every wait has a deadline; when
//! the client goes away the future is dropped, wherever it stands, and with it the place in line or
//! the connection.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts,
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};
use tracing::{Span, field};

use super::{
    alarm::{Alarm, Alarms},
    body::{ResponseBody, StreamLimits, UpstreamBody},
    error::GatewayError,
    headers,
    model_field::ModelField,
    record::RequestRecord,
    watchdog::Watchdog,
};
use crate::{
    live::{Live, LiveCell, Route},
    metrics::Metrics,
    pool::{AcquireError, CloseReason, Kind, Lease, Progress},
    trace_context::{self, within},
};

/// Longest time for a client to send its body.
const BODY_WITHIN: Duration = Duration::from_secs(60);
/// How much of a refused body is read, and for how long, so that its client can hear the refusal.
const DISCARDED_BYTES: usize = 64 << 20;
const DISCARDED_WITHIN: Duration = Duration::from_secs(5);
/// How soon after it was sent a request's connection must be closed for that to be a race with the
/// upstream's idle limit.
const AT_ONCE: Duration = Duration::from_millis(250);
/// Most times that one request is sent again because nothing of it had left.
const MOST_REPLAYS: u32 = 3;

/// What serves requests.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) live: Arc<LiveCell>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) max_body_bytes: usize,
    pub(super) watchdog: Watchdog,
}

/// A request that is ready to be sent, as often as it takes.
struct Outgoing<'a> {
    path: &'static str,
    headers: HeaderMap,
    body: Bytes,
    route: &'a Route,
    deadline: Instant,
    explain: bool,
    /// Time spent reading the client's body and waiting for a connection: not overhead.
    waited: Duration,
    /// The part of it that was spent in the line, the connect that it may have caused included.
    queued: Duration,
    /// From the request's leaving to the head of the answer.
    first_byte: Duration,
    /// For its deadlines, one after the other.
    alarm: Alarm,
}

/// An answer whose body is still to come, and what it takes to pass that on.
pub(super) struct Answer {
    response: Response<Incoming>,
    lease: Lease,
    limits: StreamLimits,
    alarm: Alarm,
    span: Span,
}

impl Proxy {
    /// Passes an answer on.
    pub(super) fn pass_on(
        &self,
        answer: Answer,
        mut record: RequestRecord,
    ) -> Response<ResponseBody> {
        let limits = answer.limits;
        let (parts, body) = answer.response.into_parts();
        record.passing_on(parts.status.as_u16());
        let (idle, deadline) = (limits.idle, limits.deadline);
        let loan = self.watchdog.lend(body, answer.lease, idle, deadline);
        let body = UpstreamBody::new(loan, record, limits, answer.alarm, answer.span);
        Response::from_parts(parts, ResponseBody::Stream(Box::new(body)))
    }

    /// Serves one request for inference.
    pub(super) async fn serve(
        &self,
        path: &'static str,
        parts: &Parts,
        body: Incoming,
        alarms: &Alarms,
        record: &mut RequestRecord,
    ) -> Result<Answer, GatewayError> {
        let mut alarm = alarms.set(record.began() + BODY_WITHIN);
        let body = self.read_body(parts, body, &mut alarm).await?;
        let reading = record.began().elapsed();
        let field = ModelField::find(&body)?;
        let live = self.live.load();
        let route = find_route(&live, &field.name)?;
        record.route(route);
        Span::current().record("model", route.model.id.as_str());
        let mut outgoing = Outgoing {
            path,
            headers: headers::for_upstream(&parts.headers, record.request_id_header()),
            body: field.body_for(route.model.id.as_str(), &body),
            route,
            deadline: record.began() + route.model.timeouts.total,
            explain: parts
                .headers
                .get(headers::EXPLAIN)
                .is_some_and(|value| value == "1"),
            waited: reading,
            queued: Duration::ZERO,
            first_byte: Duration::ZERO,
            alarm,
        };
        let (response, lease, limits, span) =
            self.send(&mut outgoing, &live, record.began()).await?;
        let alarm = outgoing.alarm;
        Ok(Answer {
            response,
            lease,
            limits,
            alarm,
            span,
        })
    }

    async fn read_body(
        &self,
        parts: &Parts,
        mut body: Incoming,
        alarm: &mut Alarm,
    ) -> Result<Bytes, GatewayError> {
        let (limit, deadline) = (self.max_body_bytes, alarm.at());
        let announced = parts.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            discard(parts, body).await;
            return Err(GatewayError::BodyTooLarge { limit });
        }
        let collecting = pin!(Limited::new(&mut body, limit).collect());
        let collected = alarm.within(deadline, collecting).await;
        match collected.ok_or(GatewayError::BodyTimeout(BODY_WITHIN))? {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                discard(parts, body).await;
                Err(GatewayError::BodyTooLarge { limit })
            }
            Err(error) => Err(GatewayError::BodyBroken(error.to_string())),
        }
    }

    /// Takes a connection and sends, again while nothing of the request has left.
    async fn send(
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
        let span = tracing::info_span!("queue", model = %model.id);
        let pool = &outgoing.route.pool;
        let lease = match want {
            Want::First => within(&span, pin!(pool.acquire(deadline))).await,
            Want::Again => within(&span, pin!(pool.acquire_again(deadline))).await,
            Want::Fresh => within(&span, pin!(pool.acquire_fresh(deadline))).await,
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
                    outgoing.first_byte = began.elapsed();
                    let seconds = outgoing.first_byte.as_secs_f64();
                    outgoing.route.metrics.first_byte(seconds);
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

/// Reads on for a while what nobody wants. Closed with bytes unread, a connection is reset, and the client
/// never sees why it was refused.
pub(super) async fn discard(parts: &Parts, body: Incoming) {
    let over_http1 = parts.version <= Version::HTTP_11;
    // One who asks first has sent nothing yet.
    if !over_http1 || parts.headers.contains_key(header::EXPECT) {
        return;
    }
    let mut body = Limited::new(body, DISCARDED_BYTES);
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // Longer than that is the client's own fault.
    drop(timeout(DISCARDED_WITHIN, all).await);
}

fn find_route<'a>(live: &'a Live, name: &str) -> Result<&'a Arc<Route>, GatewayError> {
    if live.position.is_none() {
        return Err(GatewayError::NotConfigured);
    }
    live.route(name)
        .ok_or_else(|| GatewayError::unknown_model(name))
}

/// What makes an answer one that must not be passed on.
fn broken_rule(response: &Response<Incoming>) -> Option<&'static str> {
    let headers = response.headers();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Some("a protocol switch that nobody asked for");
    }
    // Two who read it differently see two different answers (RFC 9112 §6.3).
    let two = headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH);
    two.then_some("both a content-length and a transfer-encoding")
}

fn finish_head(
    response: &mut Response<Incoming>,
    outgoing: &Outgoing<'_>,
    live: &Live,
    lease: &Lease,
) {
    // Ours, whatever the upstream speaks.
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    headers::strip_for_client(headers);
    if !outgoing.explain {
        return;
    }
    let revision = live
        .position
        .as_ref()
        .map_or(0, |position| position.revision.get());
    headers.insert("x-forebay-revision", HeaderValue::from(revision));
    if let Ok(endpoint) = HeaderValue::from_str(lease.endpoint().as_str()) {
        headers.insert("x-forebay-endpoint", endpoint);
    }
    let connection = HeaderValue::from_static(connection_word(lease.kind()));
    headers.insert("x-forebay-connection", connection);
    let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
    let timing = format!(
        "queue;dur={:.3}, first_byte;dur={:.3}",
        millis(outgoing.queued),
        millis(outgoing.first_byte)
    );
    if let Ok(timing) = HeaderValue::from_str(&timing) {
        headers.insert("server-timing", timing);
    }
}

fn stream_limits(outgoing: &Outgoing<'_>, response: &Response<Incoming>) -> StreamLimits {
    let timeouts = &outgoing.route.model.timeouts;
    let content_type = response.headers().get(header::CONTENT_TYPE);
    StreamLimits {
        idle: timeouts.idle,
        deadline: outgoing.deadline,
        total: timeouts.total,
        events: content_type.is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"))
            && !response.headers().contains_key(header::CONTENT_LENGTH),
    }
}

fn connection_word(kind: Kind) -> &'static str {
    match kind {
        Kind::New => "new",
        Kind::Reused => "reused",
    }
}
