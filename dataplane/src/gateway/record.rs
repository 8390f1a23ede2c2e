//! One request's entry in metrics and logs, made exactly once, when the request is over, however it
//! ends. Prompts and completions never enter it.

use std::sync::Arc;

use forebay_proto::ModelId;
use http::HeaderValue;
use tokio::time::Instant;

use super::{body::StreamFailed, caller::Caller, error::GatewayError};
use crate::{
    health::is_error,
    keys::{Hold, Quota},
    live::Route,
    metrics::{Metrics, Source},
};

/// The status in metrics and logs of a request whose client went away; never sent.
pub(super) const CLIENT_CLOSED: u16 = 499;

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
    /// What it takes of its caller's limits, to its end.
    hold: Option<Hold>,
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
            hold: None,
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
    pub(super) fn reserve(&mut self, tokens: u64, caller: &Caller) -> Result<(), GatewayError> {
        let Some(hold) = &mut self.hold else {
            return Ok(());
        };
        let now = Instant::now();
        let reserved = hold.reserve(tokens, now);
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

    /// The answer was cut in the middle of its body.
    pub(super) fn failed(&mut self, failed: &StreamFailed) {
        self.outcome = Some((failed.status(), failed.source()));
        let model = self.model().map(ModelId::as_str);
        tracing::warn!(model, request_id = self.request_id(), error = %failed, "answer cut short");
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let (status, source) = self.outcome.unwrap_or((CLIENT_CLOSED, Source::Client));
        let seconds = self.began.elapsed().as_secs_f64();
        self.begin();
        // Nothing of it was answered by an upstream: it used no tokens, as far as can be known here.
        if let Some(hold) = self.hold.as_mut().filter(|_| self.passing_on == 0) {
            hold.settle(0, Instant::now());
        }
        match &self.route {
            Some(route) => {
                if is_error(status, source) {
                    self.metrics.health.failed();
                    route.metrics.health.failed();
                }
                route.metrics.request(self.path, status, source, seconds);
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
            "request"
        );
    }
}
