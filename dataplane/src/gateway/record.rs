//! One request's entry in metrics and logs, made exactly once, when the request is over, however it
//! ends. Prompts and completions never enter it.

use std::sync::Arc;

use forebay_proto::ModelId;
use http::HeaderValue;
use tokio::time::Instant;

use super::{
    body::StreamFailed, caller::Caller, error::GatewayError, passing::Told, reading::Likely,
};
use crate::{
    health::is_error,
    keys::{Hold, Quota},
    live::Route,
    metrics::{Metrics, Source},
};

/// The status in metrics and logs of a request whose client went away; never sent.
pub(super) const CLIENT_CLOSED: u16 = 499;
/// That of a stream that told of an error and then ended cleanly.
const ERROR_EVENT: u16 = 502;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// It said that it is over.
    Complete,
    /// Cleanly, but it did not say so.
    Unterminated,
    /// It told of an error.
    ErrorEvent,
    /// In the middle.
    Cut,
    /// Its client went away.
    ClientGone,
    /// Its client did not read it.
    NotRead,
}

impl StreamEnd {
    /// The metric's label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Unterminated => "unterminated",
            Self::ErrorEvent => "error_event",
            Self::Cut => "cut",
            Self::ClientGone => "client_gone",
            Self::NotRead => "not_read",
        }
    }
}

/// What is known of a request so far. Dropping it makes the entry.
#[derive(Debug)]
pub(super) struct RequestRecord {
    metrics: Arc<Metrics>,
    began: Instant,
    path: &'static str,
    request_id: HeaderValue,
    /// Kept to the end: a model's metrics are dropped when nobody holds its pool any more.
    route: Option<Arc<Route>>,
    /// The upstream's status, counted only once its body is complete.
    passing_on: u16,
    /// Its answer has begun.
    begun: bool,
    outcome: Option<(u16, Source)>,
    /// What its answer said of tokens: also that of one that was cut, as far as it came.
    told: Told,
    end: Option<StreamEnd>,
    /// What it takes of its caller's limits, to its end.
    hold: Option<Hold>,
    likely_prompt: u64,
    /// How a caller stands who was refused by these.
    refused: Option<Quota>,
}

impl RequestRecord {
    /// A request began. Unless an outcome is noted, its client went away.
    pub(super) fn new(metrics: Arc<Metrics>, path: &'static str, request_id: HeaderValue) -> Self {
        let began = Instant::now();
        Self {
            metrics,
            began,
            path,
            request_id,
            route: None,
            passing_on: 0,
            begun: false,
            outcome: None,
            told: Told::default(),
            end: None,
            hold: None,
            likely_prompt: 0,
            refused: None,
        }
    }

    /// When the request's head arrived.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// It counts against its caller's limits from here on.
    pub(super) fn hold(&mut self, hold: Option<Hold>) {
        self.hold = hold;
    }

    /// Takes the tokens that it is likely to use.
    pub(super) fn reserve(&mut self, likely: Likely, caller: &Caller) -> Result<(), GatewayError> {
        let Some(hold) = &mut self.hold else {
            return Ok(());
        };
        let now = Instant::now();
        self.likely_prompt = likely.prompt;
        let reserved = hold.reserve(likely.all(), now);
        reserved.map_err(|refused| GatewayError::limited(refused, caller.key(), now))
    }

    /// How its caller stands, if there is something to say of it.
    pub(super) fn quota(&self) -> Option<Quota> {
        let quota = self
            .hold
            .as_ref()
            .and_then(|hold| hold.quota(Instant::now()));
        quota.or(self.refused)
    }

    /// The same of one who was refused.
    pub(super) fn note_quota(&mut self, quota: Option<Quota>) {
        self.refused = quota;
    }

    /// Where it goes.
    pub(super) fn route(&mut self, route: &Arc<Route>) {
        self.route = Some(route.clone());
    }

    fn model(&self) -> Option<&ModelId> {
        self.route.as_ref().map(|route| &route.model.id)
    }

    /// What names it.
    pub(super) fn request_id_header(&self) -> &HeaderValue {
        &self.request_id
    }

    /// What names it in logs.
    pub(super) fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The gateway's own answer is ready.
    pub(super) fn answered(&mut self, status: u16, source: Source) {
        self.outcome = Some((status, source));
    }

    /// The upstream's head is on its way to the client.
    pub(super) fn passing_on(&mut self, status: u16) {
        self.passing_on = status;
        self.begin();
    }

    /// The answer begins, or will never.
    fn begin(&mut self) {
        if let Some(route) = &self.route
            && !std::mem::replace(&mut self.begun, true)
        {
            self.metrics.health.answered(self.began.elapsed());
            route.metrics.health.answered();
        }
    }

    /// The upstream's body was passed on to its end.
    pub(super) fn complete(&mut self) {
        self.outcome = Some((self.passing_on, Source::Upstream));
    }

    /// The upstream's body was passed on to its end, and told of an error.
    pub(super) fn told_of_error(&mut self) {
        self.outcome = Some((ERROR_EVENT, Source::Upstream));
        let model = self.model().map(ModelId::as_str);
        tracing::warn!(
            model,
            request_id = self.request_id(),
            "the upstream told of an error in its stream"
        );
    }

    /// What the answer said, and if it was a stream, how that ended.
    pub(super) fn told(&mut self, told: Told, end: Option<StreamEnd>) {
        (self.told, self.end) = (told, end);
    }

    /// The answer was cut in the middle of its body.
    pub(super) fn failed(&mut self, failed: &StreamFailed) {
        self.outcome = Some((failed.status(), failed.source()));
        let model = self.model().map(ModelId::as_str);
        tracing::warn!(model, request_id = self.request_id(), error = %failed, "answer cut short");
    }
}

impl RequestRecord {
    /// Gives back, or takes, what was reserved too much or too little.
    fn settle(&mut self) {
        let used = match (self.told.usage, self.told.events, self.passing_on) {
            (Some(usage), ..) => {
                let of = |tokens: Option<u64>| tokens.unwrap_or(0);
                Some(of(usage.prompt).saturating_add(of(usage.completion)))
            }
            // Cut before its engine said: what was seen of it.
            (None, 1.., _) => Some(self.likely_prompt.saturating_add(self.told.events)),
            // Nothing of it was answered by an upstream: it used no tokens, as far as can be known here.
            (None, 0, 0) => Some(0),
            (None, 0, _) => None,
        };
        if let Some((hold, used)) = self.hold.as_mut().zip(used) {
            hold.settle(used, Instant::now());
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let (status, source) = self.outcome.unwrap_or((CLIENT_CLOSED, Source::Client));
        let seconds = self.began.elapsed().as_secs_f64();
        self.begin();
        self.settle();
        match &self.route {
            Some(route) => {
                if is_error(status, source) {
                    self.metrics.health.failed();
                    route.metrics.health.failed();
                }
                route.metrics.request(self.path, status, source, seconds);
                route.metrics.answers.told(&self.told, self.end);
            }
            None => self.metrics.unrouted(self.path, status, source, seconds),
        }
        tracing::debug!(
            model = self.model().map(ModelId::as_str),
            path = self.path,
            status,
            source = source.label(),
            request_id = self.request_id(),
            key = self.hold.as_ref().map(|hold| display(hold.id())),
            seconds,
            prompt_tokens = self.told.usage.and_then(|usage| usage.prompt),
            completion_tokens = self.told.usage.and_then(|usage| usage.completion),
            events = self.told.events,
            stream = self.end.map(StreamEnd::label),
            "request"
        );
    }
}
