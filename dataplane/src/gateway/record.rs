//! One request's entry in metrics and logs, made exactly once, when the request is over, however it
//! ends. Prompts and completions never enter it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

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
    /// An upstream got it. Kept for those who hold something alone.
    sent: Option<Sent>,
    /// It is about a response that was made, and paid for, before.
    is_kept: bool,
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
            sent: None,
            is_kept: false,
            refused: None,
        }
    }

    /// When the request's head arrived.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// It counts against its caller's limits from here on.
    pub(super) fn hold(&mut self, hold: Option<Hold>) {
        self.sent = hold.as_ref().map(|_| Sent::default());
        self.hold = hold;
    }

    /// Where it is noted that an upstream got it; nothing if nobody wants to know.
    pub(super) fn sent(&self) -> Option<Sent> {
        self.sent.clone()
    }

    /// It makes nothing: the tokens that its answer tells of were those of an earlier request.
    pub(super) fn is_of_kept(&mut self) {
        self.is_kept = true;
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

/// That an upstream got a request: it may be at work, whatever becomes of the client.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent(Arc<AtomicBool>);

impl Sent {
    /// It leaves now. True if it had not before.
    pub(super) fn note(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// Nothing of it left after all.
    pub(super) fn take_back(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is known at the end of what a request used.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    told: Told,
    end: Option<StreamEnd>,
    likely_prompt: u64,
    /// An upstream's status, if its answer was passed on.
    passing_on: u16,
    /// Its status in metrics; none if its client went away first.
    status: Option<u16>,
    sent: bool,
}

impl Spent {
    /// Tokens; none if what was reserved is the best guess.
    fn tokens(&self) -> Option<u64> {
        let (told, prompt) = (self.told, self.likely_prompt);
        // What an engine says on its way is less than what it says at the end.
        let ended = matches!(self.end, None | Some(StreamEnd::Complete));
        match (told.usage, told.events, self.passing_on) {
            (Some(usage), ..) if ended => {
                let of = |tokens: Option<u64>| tokens.unwrap_or(0);
                Some(of(usage.prompt).saturating_add(of(usage.completion)))
            }
            // Cut before its engine said, or said all: what was seen of it.
            (Some(usage), events, _) => {
                let completion = usage.completion.unwrap_or(0).max(events);
                Some(usage.prompt.unwrap_or(prompt).saturating_add(completion))
            }
            (None, 1.., _) => Some(prompt.saturating_add(told.events)),
            // Nothing of it was answered. What its client left to an upstream was begun there.
            (None, 0, 0) => Some(match (self.status, self.sent) {
                (None, true) => prompt,
                // A refusal of what was read.
                (Some(400..=428 | 430..=499), true) => prompt,
                _ => 0,
            }),
            // Not taken, and taken in vain.
            (None, 0, 429 | 503) => Some(0),
            (None, 0, 400..) => Some(prompt),
            (None, 0, _) => None,
        }
    }
}

impl RequestRecord {
    /// Gives back, or takes, what was reserved too much or too little.
    fn settle(&mut self) {
        let spent = Spent {
            told: self.told,
            end: self.end,
            likely_prompt: self.likely_prompt,
            passing_on: self.passing_on,
            status: self.outcome.map(|(status, _)| status),
            sent: self.sent.as_ref().is_some_and(Sent::get),
        };
        if let Some((hold, used)) = self.hold.as_mut().zip(spent.tokens()) {
            hold.settle(used, Instant::now());
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let (status, source) = self.outcome.unwrap_or((CLIENT_CLOSED, Source::Client));
        let seconds = self.began.elapsed().as_secs_f64();
        self.begin();
        match self.is_kept {
            true => self.told = Told::default(),
            false => self.settle(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::facts::Usage;

    fn told(prompt: Option<u64>, completion: Option<u64>, events: u64) -> Told {
        let usage = Usage { prompt, completion };
        Told {
            usage: usage.is_known().then_some(usage),
            events,
            finish: None,
        }
    }

    #[test]
    fn what_was_used_is_what_was_said_or_else_what_was_seen() {
        let of = |told, end, passing_on, status, sent| {
            let spent = Spent {
                told,
                end,
                likely_prompt: 100,
                passing_on,
                status,
                sent,
            };
            spent.tokens()
        };
        let (none, ok) = (told(None, None, 0), Some(200));
        let complete = Some(StreamEnd::Complete);
        let said = told(Some(80), Some(7), 9);
        assert_eq!(of(said, complete, 200, ok, true), Some(87));
        assert_eq!(of(said, None, 200, ok, true), Some(87));
        // A message that is cut said at its start that it took one token.
        let began = told(Some(80), Some(1), 500);
        for cut in [StreamEnd::Cut, StreamEnd::ClientGone, StreamEnd::NotRead] {
            assert_eq!(of(began, Some(cut), 200, None, true), Some(580), "{cut:?}");
        }
        let events = told(None, None, 5);
        assert_eq!(of(events, complete, 200, ok, true), Some(105));
        assert_eq!(of(none, None, 200, ok, true), None, "what was reserved");
        // Nothing was answered.
        assert_eq!(of(none, None, 0, None, false), Some(0), "it was in line");
        assert_eq!(of(none, None, 0, None, true), Some(100), "it was at work");
        assert_eq!(of(none, None, 0, Some(502), true), Some(0));
        assert_eq!(of(none, None, 0, Some(429), true), Some(0));
        assert_eq!(
            of(none, Some(StreamEnd::Cut), 0, Some(400), true),
            Some(100)
        );
        // An error was.
        assert_eq!(of(none, None, 400, Some(400), true), Some(100));
        assert_eq!(of(none, None, 500, Some(500), true), Some(100));
        assert_eq!(of(none, None, 429, Some(429), true), Some(0));
        assert_eq!(of(none, None, 503, Some(503), true), Some(0));
    }
}
