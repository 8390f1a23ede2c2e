//! The way of one request: body, model, route, connection, upstream, answer.
//!
//! It loads what is in force once and so sees exactly one revision. Every wait has a deadline; when
//! the client goes away the future is dropped, wherever it stands, and with it the place in line or
//! the connection.

use std::{sync::Arc, time::Duration};

use forebay_proto::{EndpointId, ModelId};
use http::{Method, Response, header, request::Parts, uri::PathAndQuery};
use hyper::body::Incoming;
use tracing::Span;

use super::{
    alarm::{Alarm, Alarms},
    attempt::Outgoing,
    body::{ResponseBody, StreamLimits, UpstreamBody},
    error::GatewayError,
    form_body, headers, json_body,
    media::Media,
    paths::{ModelPlace, Operation},
    read::{self, BODY_WITHIN},
    reading::Reading,
    record::RequestRecord,
    responses::{Maker, ResponseTap, Responses},
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
    pub(super) span: Span,
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
        let body = UpstreamBody::new(loan, record, limits, answer.alarm, answer.tap, answer.span);
        Response::from_parts(parts, ResponseBody::Stream(Box::new(body)))
    }

    /// Serves one request for inference.
    pub(super) async fn serve(
        &self,
        operation: &'static Operation,
        parts: &Parts,
        body: Incoming,
        alarms: &Alarms,
        record: &mut RequestRecord,
    ) -> Result<Answer, GatewayError> {
        let media = match Media::of(&parts.headers, operation.model) {
            Ok(media) => media,
            Err(error) => {
                read::discard(parts, body).await;
                return Err(error);
            }
        };
        let mut alarm = alarms.set(record.began() + BODY_WITHIN);
        let body = self.read_body(parts, body, &mut alarm).await?;
        let waited = record.began().elapsed();
        let reading = match &media {
            Media::Json => json_body::read(&body)?,
            Media::Form(boundary) => form_body::read(&body, boundary)?,
        };
        let live = self.live.load();
        let route = find_route(&live, operation, &reading)?;
        record.route(route);
        Span::current().record("model", route.model.id.as_str());
        let mut headers = headers::for_upstream(&parts.headers, record.request_id_header());
        headers.insert(header::CONTENT_TYPE, media.content_type());
        let mut outgoing = Outgoing {
            operation,
            method: Method::POST,
            path: PathAndQuery::from_static(operation.path),
            headers,
            body: reading.body_for(route.model.id.as_str(), &body),
            endpoint: self.endpoint_of_previous(route, &reading),
            route,
            deadline: record.began() + route.model.timeouts.total,
            explain: headers::explains(&parts.headers),
            waited,
            queued: Duration::ZERO,
            first_byte: Duration::ZERO,
            alarm,
        };
        let (response, lease, limits, span) =
            self.send(&mut outgoing, &live, record.began()).await?;
        let tap = self.tap(operation, route, &response, &lease);
        let alarm = outgoing.alarm;
        Ok(Answer {
            response,
            lease,
            limits,
            alarm,
            tap,
            span,
        })
    }

    /// A response that goes on from another one can be made only where that one is kept.
    fn endpoint_of_previous(&self, route: &Route, reading: &Reading) -> Option<EndpointId> {
        let maker = self.responses.maker(reading.previous_response.as_ref()?)?;
        let mut endpoints = route.model.endpoints.iter();
        let there = endpoints.any(|endpoint| endpoint.id == maker.endpoint);
        (maker.model == route.model.id && there).then_some(maker.endpoint)
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

/// Names in a message.
const MOST_NAMED: usize = 10;

fn find_route<'a>(
    live: &'a Live,
    operation: &Operation,
    reading: &Reading,
) -> Result<&'a Arc<Route>, GatewayError> {
    if live.position.is_none() {
        return Err(GatewayError::NotConfigured);
    }
    match &reading.model {
        Some(field) => live
            .route(&field.name)
            .ok_or_else(|| GatewayError::unknown_model(&field.name)),
        None if operation.model == ModelPlace::JsonOrOnly => {
            let mut routes = live.models.values();
            match (routes.next(), routes.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => Err(GatewayError::ModelMissing),
                _ => {
                    let names = live.models.keys().take(MOST_NAMED);
                    let names: Vec<&str> = names.map(ModelId::as_str).collect();
                    Err(GatewayError::ModelWanted(names.join(", ")))
                }
            }
        }
        None => Err(GatewayError::ModelMissing),
    }
}
