//! The way of one request: body, model, route, connection, upstream, answer.
//!
//! It loads what is in force once and so sees exactly one revision. Every wait has a deadline; when
//! the client goes away the future is dropped, wherever it stands, and with it the place in line or
//! the connection.

use std::{sync::Arc, time::Duration};

use http::{Response, request::Parts};
use hyper::body::Incoming;
use tracing::Span;

use super::{
    alarm::{Alarm, Alarms},
    attempt::Outgoing,
    body::{ResponseBody, StreamLimits, UpstreamBody},
    buffered::Buffers,
    error::GatewayError,
    headers,
    model_field::ModelField,
    read::{self, BODY_WITHIN},
    record::RequestRecord,
    turn::{self, Flows},
    watchdog::Watchdog,
};
use crate::{
    live::{Live, LiveCell, Route},
    metrics::Metrics,
    pool::Lease,
};

/// What serves requests.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) live: Arc<LiveCell>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) max_body_bytes: usize,
    pub(super) buffers: Arc<Buffers>,
    pub(super) flows: Flows,
    pub(super) watchdog: Watchdog,
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
        // What nobody can be served is not read first.
        if !self.live.is_configured() {
            read::discard(parts, body).await;
            return Err(GatewayError::NotConfigured);
        }
        let mut alarm = alarms.set(record.began() + BODY_WITHIN);
        // Held until the head of the answer is there: then the body is with the upstream.
        let (body, _held) = self.read_body(parts, body, &mut alarm).await?;
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
            ask: self
                .flows
                .ask(&route.model.pool.turns, &parts.headers, body.len()),
            patience: turn::patience(&parts.headers, record.began() + reading),
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
}

fn find_route<'a>(live: &'a Live, name: &str) -> Result<&'a Arc<Route>, GatewayError> {
    if live.position.is_none() {
        return Err(GatewayError::NotConfigured);
    }
    live.route(name)
        .ok_or_else(|| GatewayError::unknown_model(name))
}
