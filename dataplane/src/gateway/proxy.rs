//! The way of one request: body, model, route, connection, upstream, answer.
//!
//! It loads what is in force once and so sees exactly one revision. Every wait has a deadline; when
//! the client goes away the future is dropped, wherever it stands, and with it the place in line or
//! the connection.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use forebay_proto::{StreamUsage, Streaming};
use http::{Response, request::Parts};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{
    alarm::{Alarm, Alarms},
    attempt::Outgoing,
    body::{ResponseBody, StreamLimits, UpstreamBody},
    clients::ClientLimits,
    error::GatewayError,
    head::Hosts,
    headers, include_usage,
    keep_alive::Late,
    model_field::ModelField,
    passing::Content,
    record::RequestRecord,
    stream_style::StreamStyle,
    watchdog::Watchdog,
};
use crate::{
    ending::Ending,
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
    pub(super) ending: Arc<Ending>,
    pub(super) limits: ClientLimits,
    pub(super) hosts: Hosts,
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
        let (parts, body) = answer.response.into_parts();
        record.passing_on(parts.status.as_u16());
        let (idle, deadline) = (limits.idle, limits.deadline);
        let loan = self
            .watchdog
            .lend(body, answer.lease, idle, deadline, hangup);
        let ending = self.ending.clone();
        let body = UpstreamBody::new(loan, record, limits, answer.alarm, (answer.span, ending));
        Response::from_parts(parts, ResponseBody::Stream(Box::new(body)))
    }

    /// Serves one request for inference.
    pub(super) async fn serve(
        self: &Arc<Self>,
        path: &'static str,
        parts: &Parts,
        body: Incoming,
        alarms: &Alarms,
        record: &mut RequestRecord,
    ) -> Result<Served, GatewayError> {
        let began = record.began();
        let mut alarm = alarms.set(began + self.limits.body);
        let body = self.read_body(parts, body, &mut alarm).await?;
        let reading = began.elapsed();
        let field = ModelField::find(&body)?;
        let live = self.live.load();
        let route = find_route(&live, &field.name)?.clone();
        record.route(&route);
        Span::current().record("model", route.model.id.as_str());
        let asked = Asked {
            explain: parts.headers.get(headers::EXPLAIN).is_some_and(|value| value == "1"),
            headers: headers::for_upstream(&parts.headers, record.request_id_header()),
            inject: Inject::of(&route, path),
            comments: route.model.streaming.keep_alive,
            reading,
            field,
            body,
        };
        let comments = asked.comments.filter(|_| include_usage::is_stream(&asked.body));
        let sending = self.clone().send_all(path, asked, (route, live), began, alarm);
        let answer = match comments {
            None => sending.await?,
            Some(every) => {
                let style = StreamStyle::of(path);
                match Late::or_in_time(Box::pin(sending), every, style).await {
                    Ok(answer) => answer?,
                    Err(late) => return Ok(Served::Late(late)),
                }
            }
        };
        Ok(Served::Answer(Box::new(answer)))
    }
}
    }
}

fn find_route<'a>(live: &'a Live, name: &str) -> Result<&'a Arc<Route>, GatewayError> {
    if live.position.is_none() {
        return Err(GatewayError::NotConfigured);
    }
    live.route(name)
        .ok_or_else(|| GatewayError::unknown_model(name))
}
