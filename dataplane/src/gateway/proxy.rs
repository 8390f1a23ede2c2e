//! The way of one request: body, model, route, connection, upstream, answer.
//!
//! It loads what is in force once and so sees exactly one revision. Every wait has a deadline; when
//! the client goes away the future is dropped, wherever it stands, and with it the place in line or
//! the connection.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use forebay_proto::{EndpointId, ModelId};
use http::{HeaderMap, Method, Response, header, request::Parts, uri::PathAndQuery};
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{
    alarm::{Alarm, Alarms},
    attempt::Outgoing,
    body::{ResponseBody, StreamLimits, UpstreamBody},
    buffered::{Buffered, Buffers},
    caller::Caller,
    clients::ClientLimits,
    error::GatewayError,
    form_body,
    head::Hosts,
    headers, include_usage, json_body,
    keep_alive::{Comments, Late},
    media::Media,
    passing::Content,
    paths::{ModelPlace, Operation},
    reading::Reading,
    record::{RequestRecord, Sent},
    responses::{Maker, ResponseTap, Responses},
    turn::{self, Flows},
    watchdog::Watchdog,
};
use crate::{
    ending::Ending,
    keys::KeyCell,
    live::{Live, LiveCell, Route},
    metrics::Metrics,
    pool::{Ask, Lease},
};

/// What serves requests.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) live: Arc<LiveCell>,
    pub(super) keys: Arc<KeyCell>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) max_body_bytes: usize,
    pub(super) buffers: Arc<Buffers>,
    pub(super) flows: Flows,
    pub(super) ending: Arc<Ending>,
    pub(super) limits: ClientLimits,
    pub(super) hosts: Hosts,
    pub(super) watchdog: Watchdog,
    pub(super) responses: Responses,
}

/// An answer whose body is still to come, and what it takes to pass that on.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) limits: StreamLimits,
    pub(super) alarm: Alarm,
    /// Looks for the id of a response in it.
    pub(super) tap: Option<Box<ResponseTap>>,
    /// The model that gave it, if it is not the one that was asked for.
    pub(super) stands_in: Option<Arc<Route>>,
    pub(super) span: Span,
}

/// A request that was read, and where it goes.
struct Asked {
    operation: &'static Operation,
    caller: Caller,
    headers: HeaderMap,
    explain: bool,
    endpoint: Option<EndpointId>,
    reading: Reading,
    body: Bytes,
    /// What that takes of the memory for bodies.
    held: Buffered,
    /// Its place among the others in line, and that with models that may stand in.
    ask: Ask,
    asks: Vec<(ModelId, Ask)>,
    /// When its client gives up, if it said so.
    patience: Option<Instant>,
    live: Arc<Live>,
    route: Arc<Route>,
    began: Instant,
    /// Time spent reading the client's body.
    waited: Duration,
    alarm: Alarm,
    note: Option<Sent>,
}

/// What a request led to.
pub(super) enum Served {
    /// An upstream's answer.
    Answer(Box<Answer>),
    /// Nothing yet: its client is given comments.
    Late(Late),
}

impl Answer {
    /// A stream that can be given to who expects one.
    pub(super) fn is_stream(&self) -> bool {
        let events = matches!(self.limits.content, Content::Events(_));
        events && self.response.status().is_success()
    }

    /// The answer, and the connection that it comes over.
    pub(super) fn into_parts(self) -> (Response<Incoming>, Lease) {
        (self.response, self.lease)
    }
}

impl Proxy {
    /// Passes an answer on.
    pub(super) fn pass_on(
        &self,
        answer: Answer,
        mut record: RequestRecord,
        hangup: CancellationToken,
    ) -> Response<ResponseBody> {
        let limits = answer.limits;
        if let Some(route) = &answer.stands_in {
            record.route(route);
        }
        let (parts, body) = answer.response.into_parts();
        record.passing_on(parts.status.as_u16());
        let (idle, deadline) = (limits.idle, limits.deadline);
        let loan = self
            .watchdog
            .lend(body, answer.lease, idle, deadline, hangup);
        let about = (answer.span, self.ending.clone());
        let body = UpstreamBody::new(loan, record, limits, answer.alarm, answer.tap, about);
        Response::from_parts(parts, ResponseBody::Stream(Box::new(body)))
    }

    /// Serves one request for inference.
    pub(super) async fn serve(
        self: &Arc<Self>,
        operation: &'static Operation,
        parts: &Parts,
        caller: &Caller,
        body: Incoming,
        alarms: &Alarms,
        record: &mut RequestRecord,
    ) -> Result<Served, GatewayError> {
        // What nobody can be served is not read first.
        if !self.live.is_configured() {
            return Err(GatewayError::NotConfigured);
        }
        let began = record.began();
        let media = Media::of(&parts.headers, operation.model)?;
        let mut alarm = alarms.set(began + self.limits.body);
        let (body, held) = self.read_body(parts, body, &mut alarm).await?;
        let waited = began.elapsed();
        let reading = match &media {
            Media::Json => json_body::read(&body)?,
            Media::Form(boundary) => form_body::read(&body, boundary)?,
        };
        let live = self.live.load();
        let route = find_route(&live, operation, &reading, caller)?.clone();
        record.route(&route);
        let likely = reading.likely_tokens(body.len());
        record.reserve(likely, caller)?;
        Span::current().record("model", route.model.id.as_str());
        let mut headers = headers::for_upstream(&parts.headers, record.request_id_header(), caller);
        headers.insert(header::CONTENT_TYPE, media.content_type());
        let comments = comments(&route, operation, &reading, began);
        // One who is given comments by then does not give up.
        let patience = turn::patience(&parts.headers, began + waited);
        let patience =
            patience.filter(|until| comments.is_none_or(|c| *until <= Instant::now() + c.every));
        let ask = |route: &Route| {
            let turns = &route.model.pool.turns;
            self.flows.ask(turns, &parts.headers, caller, likely.all())
        };
        let stand_ins = route.model.failure.fallbacks.iter();
        let stand_ins = stand_ins.filter_map(|id| live.models.get(id));
        let asks = stand_ins.map(|route| (route.model.id.clone(), ask(route)));
        // On the heap: what waits for it would be moved with it, and it is large.
        let sending = Box::pin(self.clone().send_read(Asked {
            ask: ask(&route),
            asks: asks.collect(),
            patience,
            held,
            operation,
            caller: caller.clone(),
            explain: headers::explains(&parts.headers),
            headers,
            endpoint: self.endpoint_of_previous(&route, &reading),
            reading,
            body,
            live,
            route,
            began,
            waited,
            alarm,
            note: record.sent(),
        }));
        let answer = match comments {
            None => sending.await?,
            Some(comments) => match Late::or_in_time(sending, comments).await {
                Ok(answer) => answer?,
                Err(late) => return Ok(Served::Late(late)),
            },
        };
        Ok(Served::Answer(Box::new(answer)))
    }

    /// Sends what was read. It holds all that it needs, so that it can go on behind comments.
    async fn send_read(self: Arc<Self>, asked: Asked) -> Result<Answer, GatewayError> {
        let Asked {
            operation,
            route,
            live,
            reading,
            body,
            began,
            ..
        } = asked;
        // Until the head of the answer is there: then the body is with the upstream.
        let _held = asked.held;
        let usage = include_usage::edit(&route.model.streaming, operation, &reading, &body);
        let body_for = |id: &ModelId| reading.body_for(id.as_str(), &body, usage.as_ref());
        let (ask, asks) = (asked.ask, asked.asks);
        let ask_of = |id: &ModelId| asks.iter().find(|(known, _)| known == id);
        let for_model = |id: &ModelId| (body_for(id), ask_of(id).map_or(ask, |(_, ask)| *ask));
        let mut outgoing = Outgoing {
            operation,
            method: Method::POST,
            path: PathAndQuery::from_static(operation.path),
            headers: asked.headers,
            body: body_for(&route.model.id),
            endpoint: asked.endpoint,
            route: &route,
            deadline: began + route.model.timeouts.total,
            ask,
            patience: asked.patience,
            explain: asked.explain,
            strip: usage.is_some(),
            waited: asked.waited,
            queued: Duration::ZERO,
            first_byte: Duration::ZERO,
            sent: 0,
            stands_in: false,
            note: asked.note,
            alarm: asked.alarm,
        };
        let sent = self.send_or_stand_in(&mut outgoing, &live, (began, &asked.caller), for_model);
        let (response, lease, limits, span) = sent.await?;
        let tap = self.tap(operation, outgoing.route, &response, &lease);
        let stands_in = outgoing.stands_in.then(|| outgoing.route.clone());
        Ok(Answer {
            response,
            lease,
            limits,
            alarm: outgoing.alarm,
            tap,
            stands_in,
            span,
        })
    }

    /// A response that goes on from another one can be made only where that one is kept.
    fn endpoint_of_previous(&self, route: &Route, reading: &Reading) -> Option<EndpointId> {
        let maker = self.responses.maker(reading.previous_response.as_ref()?)?;
        (maker.model == route.model.id && route.has(&maker.endpoint)).then_some(maker.endpoint)
    }

    /// Notes the response that an answer tells of, where there will be one.
    fn tap(
        &self,
        operation: &Operation,
        route: &Route,
        response: &Response<Incoming>,
        lease: &Lease,
    ) -> Option<Box<ResponseTap>> {
        if !operation.makes_responses() || !response.status().is_success() {
            return None;
        }
        let maker = Maker {
            model: route.model.id.clone(),
            endpoint: lease.endpoint().clone(),
        };
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let events = content_type.is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
        Some(self.responses.tap(maker, events))
    }
}

/// How its client is given comments, if it is.
fn comments(
    route: &Route,
    operation: &Operation,
    reading: &Reading,
    began: Instant,
) -> Option<Comments> {
    let timeouts = &route.model.timeouts;
    Some(Comments {
        every: route
            .model
            .streaming
            .keep_alive
            .filter(|_| reading.stream)?,
        style: operation.streams?,
        idle: timeouts.idle,
        deadline: began + timeouts.total,
    })
}

/// Names in a message.
const MOST_NAMED: usize = 10;

fn find_route<'a>(
    live: &'a Live,
    operation: &Operation,
    reading: &Reading,
    caller: &Caller,
) -> Result<&'a Arc<Route>, GatewayError> {
    if live.position.is_none() {
        return Err(GatewayError::NotConfigured);
    }
    match &reading.model {
        Some(field) => {
            let route = live.route(&field.name);
            caller.check(&field.name, route.map(|route| &route.model.id))?;
            route.ok_or_else(|| GatewayError::unknown_model(&field.name))
        }
        None if operation.model == ModelPlace::JsonOrOnly => {
            let allowed = |route: &&Arc<Route>| {
                let id = &route.model.id;
                caller.may_use(id.as_str(), Some(id))
            };
            let mut routes = live.models.values().filter(allowed);
            match (routes.next(), routes.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => Err(GatewayError::ModelMissing),
                _ => {
                    let names = live.models.values().filter(allowed).take(MOST_NAMED);
                    let names: Vec<&str> = names.map(|route| route.model.id.as_str()).collect();
                    Err(GatewayError::ModelWanted(names.join(", ")))
                }
            }
        }
        None => Err(GatewayError::ModelMissing),
    }
}
