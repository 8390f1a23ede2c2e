//! One request on its way to an upstream, as often as it takes: a connection, the request, the head of
//! the answer. What may be sent again is decided here, and nowhere else.

use std::{pin::pin, sync::Arc, time::Duration};

use forebay_proto::EndpointId;
use http::{HeaderMap, Method, Request, Response, uri::PathAndQuery};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::{Span, field};

use super::{
    again::Course,
    alarm::Alarm,
    answer::{broken_rule, connection_word, finish_head, stream_limits},
    body::StreamLimits,
    error::GatewayError,
    headers,
    paths::Operation,
    proxy::Proxy,
    record::Sent,
    turn, verdict,
};
use crate::{
    live::{Carries, Live, Route, withholds},
    pool::{
        AcquireError, Ask, Claim, CloseReason, Fault, Kind, Lease, Progress, RequestBody,
        SendFailed, Tried, Verdict, told,
    },
    trace_context::{self, within},
};

/// How soon after it was sent a request's connection must be closed for that to be a race with the
/// upstream's idle limit.
const AT_ONCE: Duration = Duration::from_millis(250);
/// Most times that one request is sent again because nothing of it had left.
const MOST_REPLAYS: u32 = 3;

/// A request that is ready to be sent, as often as it takes.
pub(super) struct Outgoing<'a> {
    pub(super) operation: &'static Operation,
    pub(super) method: Method,
    /// What is asked of the upstream: ours to say.
    pub(super) path: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) body: RequestBody,
    /// The only endpoint that can answer it.
    pub(super) endpoint: Option<EndpointId>,
    pub(super) route: &'a Arc<Route>,
    pub(super) deadline: Instant,
    /// Its place among the others in line.
    pub(super) ask: Ask,
    /// When its client gives up, if it said so.
    pub(super) patience: Option<Instant>,
    pub(super) explain: bool,
    /// The usage of its stream was asked for by us, and is not for the client.
    pub(super) strip: bool,
    /// Time spent reading the client's body and waiting for a connection: not overhead.
    pub(super) waited: Duration,
    /// The part of it that was spent in the line, the connect that it may have caused included.
    pub(super) queued: Duration,
    /// From the request's leaving to the head of the answer.
    pub(super) first_byte: Duration,
    /// How often it was sent, for whatever reason.
    pub(super) sent: u32,
    /// Its model is not the one that was asked for, but one that stands in.
    pub(super) stands_in: bool,
    /// Where it is noted that it left, if somebody wants to know.
    pub(super) note: Option<Sent>,
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
        let mut course = Course::default();
        loop {
            let want = match (course.elsewhere(), unanswered, replays) {
                (Some(tried), ..) => Want::Elsewhere(tried),
                (None, true, _) => Want::Fresh,
                (None, false, 0) => Want::First,
                (None, false, _) => Want::Again,
            };
            let (lease, sending) = match self.acquire(outgoing, want).await {
                Ok(acquired) => acquired,
                Err(error) => return Err(course.told(error)),
            };
            outgoing.sent += 1;
            course.went_to(&lease);
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
                Ok((response, lease)) => {
                    let answered = self.answered(outgoing, &mut course, response, lease).await;
                    let Some((mut response, lease)) = answered else {
                        outgoing.waited += sending.elapsed();
                        continue;
                    };
                    span.record("status", response.status().as_u16());
                    let limits = stream_limits(outgoing, &response);
                    finish_head(&mut response, &limits, outgoing, live, &lease);
                    return Ok((response, lease, limits, span));
                }
                Err(Failed::NothingSent(_)) if replays < MOST_REPLAYS => {
                    replays += 1;
                    course.came_back();
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
                    course.came_back();
                    outgoing.waited += sending.elapsed();
                    self.metrics.replay(&outgoing.route.model.id, "unanswered");
                }
                Err(
                    Failed::NothingSent(error) | Failed::Unanswered(error) | Failed::Told(error),
                ) => match self.failed(outgoing, &mut course, error) {
                    Some(error) => return Err(error),
                    None => outgoing.waited += sending.elapsed(),
                },
            }
        }
    }

    /// Gives a connection, and when it was given.
    async fn acquire(
        &self,
        outgoing: &mut Outgoing<'_>,
        want: Want<'_>,
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
        let lease = match (want, &outgoing.endpoint) {
            (_, Some(only)) => within(&span, pin!(pool.acquire_from(only, &claim))).await,
            (Want::First, None) => within(&span, pin!(pool.acquire(&claim))).await,
            (Want::Again, None) => within(&span, pin!(pool.acquire_again(&claim))).await,
            (Want::Fresh, None) => within(&span, pin!(pool.acquire_fresh(&claim))).await,
            (Want::Elsewhere(tried), None) => {
                within(&span, pin!(pool.acquire_elsewhere(tried, &claim))).await
            }
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

    fn request(&self, outgoing: &Outgoing<'_>, lease: &Lease, span: &Span) -> Request<RequestBody> {
        let mut request = Request::new(outgoing.body.clone());
        *request.method_mut() = outgoing.method.clone();
        let mut headers = outgoing.headers.clone();
        trace_context::inject(span, &mut headers);
        // The client's own key is for the model that it asked for.
        if outgoing.stands_in {
            headers::put_credential(&mut headers, None);
        }
        if self.live.has_credentials() {
            self.put_credential(outgoing, lease, &mut headers);
        }
        *request.headers_mut() = headers;
        lease.address(outgoing.path.clone(), &mut request);
        request
    }

    /// The credential of the very endpoint, at the very url, that the connection leads to. A connection that is newer, or
    /// older, than what the request began with is found in what is in force now.
    fn put_credential(&self, outgoing: &Outgoing<'_>, lease: &Lease, headers: &mut HeaderMap) {
        let model = &outgoing.route.model.id;
        let carries = outgoing.route.carries(lease, &self.keys).or_else(|| {
            let live = self.live.load();
            live.models
                .get(model)
                .and_then(|route| route.carries(lease, &self.keys))
        });
        // One that neither knows is on its way out: it leads to what it was made for.
        let carries = carries.unwrap_or_else(|| match lease.made_for() {
            Some(endpoint) if withholds(endpoint) => Carries::Own(None),
            Some(endpoint) if endpoint.credential.is_some() => {
                Carries::Own(self.keys.open(model, endpoint))
            }
            Some(_) => Carries::TheClients,
            None => Carries::Own(None),
        });
        if let Carries::Own(credential) = carries {
            headers::put_credential(headers, credential.as_ref());
        }
    }

    async fn send_once(
        &self,
        outgoing: &mut Outgoing<'_>,
        mut lease: Lease,
        began: Instant,
        span: &Span,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let model = &outgoing.route.model;
        let request = self.request(outgoing, &lease, span);
        let within = model.timeouts.first_byte;
        let deadline = outgoing.deadline.min(began + within);
        // Also if nobody waits for its answer any more.
        let first = outgoing.note.as_ref().filter(|sent| sent.note()).cloned();
        let revocation = lease.revocation();
        let answer = {
            let sending = pin!(lease.send(request));
            let in_time = pin!(outgoing.alarm.within(deadline, sending));
            tokio::select! {
                answer = in_time => Ok(answer),
                () = told(revocation) => Err(LeaseLost),
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(LeaseLost) => {
                let (model, _) = names(outgoing, &lease);
                lease.discard(CloseReason::Cancelled);
                return Err(Failed::Told(GatewayError::LeaseLost { model }));
            }
        };
        if let Some(Err(failed)) = &answer
            && failed.progress == Progress::NothingSent
            && let Some(sent) = first
        {
            sent.take_back();
        }
        match answer {
            Some(Ok(response)) => match broken_rule(&response) {
                Some(rule) => {
                    let (name, endpoint) = names(outgoing, &lease);
                    lease.judge(Verdict::Broken(Fault::Protocol));
                    lease.discard(CloseReason::Error);
                    Err(Failed::Told(GatewayError::UpstreamProtocol {
                        model: name,
                        endpoint,
                        rule,
                    }))
                }
                None => {
                    if let Some(verdict) = verdict::of_answer(&response) {
                        lease.judge(verdict);
                    }
                    let took = began.elapsed();
                    outgoing.first_byte = took;
                    outgoing.route.metrics.first_byte(took.as_secs_f64());
                    if turn::is_stream(&response) {
                        lease.answered_after(took);
                    }
                    turn::note_load(outgoing.route, &response, took, outgoing.body.left());
                    Ok((response, lease))
                }
            },
            Some(Err(failed)) => Err(unsent_or_lost(outgoing, lease, failed, began.elapsed())),
            None => Err(too_late(outgoing, lease, began)),
        }
    }
}

/// Nothing of an answer came in its time.
fn too_late(outgoing: &Outgoing<'_>, lease: Lease, began: Instant) -> Failed {
    let (model, endpoint) = names(outgoing, &lease);
    lease.discard(CloseReason::Error);
    let timeouts = &outgoing.route.model.timeouts;
    let within = match began.elapsed() < timeouts.first_byte {
        true => timeouts.total,
        false => timeouts.first_byte,
    };
    Failed::Told(GatewayError::UpstreamTimeout {
        model,
        endpoint,
        within,
    })
}

/// How far a request came whose connection failed, and whose fault that is.
fn unsent_or_lost(
    outgoing: &Outgoing<'_>,
    lease: Lease,
    failed: SendFailed,
    took: Duration,
) -> Failed {
    let (model, endpoint) = names(outgoing, &lease);
    let unsent = failed.progress == Progress::NothingSent;
    let closed = lease.kind() == Kind::Reused && failed.is_unanswered_close();
    if unsent && lease.kind() == Kind::Reused {
        outgoing.route.pool.count_stale_at_send();
    }
    // Closed at once on a reused connection it is a race with the idle limit.
    let race = closed && took < AT_ONCE;
    if let Some(verdict) = verdict::of_failure(&failed).filter(|_| !race) {
        lease.judge(verdict);
    }
    lease.discard(match unsent || closed {
        true => CloseReason::Upstream,
        false => CloseReason::Error,
    });
    let error = failed.error;
    let error = GatewayError::UpstreamReset {
        model,
        endpoint,
        error,
        sent: !unsent,
    };
    match (unsent, closed) {
        (true, _) => Failed::NothingSent(error),
        (false, true) => Failed::Unanswered(error),
        (false, false) => Failed::Told(error),
    }
}

/// The model and the endpoint, for messages.
fn names(outgoing: &Outgoing<'_>, lease: &Lease) -> (String, String) {
    let model = outgoing.route.model.id.to_string();
    (model, lease.endpoint().to_string())
}

/// What it used of a fleet-wide limit is not this worker's any more.
struct LeaseLost;

/// Which connection is wanted.
#[derive(Debug, Clone, Copy)]
enum Want<'a> {
    /// Any, in turn.
    First,
    /// Any, for one that had its turn.
    Again,
    /// One that carried no request yet, for one that had its turn.
    Fresh,
    /// One to an endpoint that it was not sent to yet.
    Elsewhere(&'a Tried),
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
}

/// A close that comes later than this is no race: the upstream had the request.
fn may_replay(outgoing: &Outgoing<'_>, sent: Instant) -> bool {
    let allowed = outgoing.route.model.pool.replay_unanswered && outgoing.operation.replays;
    allowed && sent.elapsed() < AT_ONCE
}
