//! Whether a request goes to another endpoint after one did not serve it: before anything reached the client, by the
//! model's policy (`retry`), and as far as the pool gives leave. It never goes to two at once.

use std::time::Duration;

use forebay_proto::RetryOn;
use http::Response;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{attempt::Outgoing, error::GatewayError, proxy::Proxy, verdict};
use crate::pool::{CloseReason, Lease, NoRetry, Retrying, Tried};

/// The answer of one that did not serve is read this far, and for this long, so that its connection stays.
const READ_MOST: usize = 64 << 10;
const READ_WITHIN: Duration = Duration::from_millis(100);

/// How often and where a request was sent so far.
#[derive(Debug, Default)]
pub(super) struct Course {
    tried: Tried,
    /// Endpoints that it was sent to, but for those that did not get a byte of it.
    attempts: u32,
    /// Held until the answer of the one that it was sent to again.
    retrying: Option<Retrying>,
    /// What the client is told if no other takes it.
    last: Option<GatewayError>,
}

impl Course {
    /// It went to this one.
    pub(super) fn went_to(&mut self, lease: &Lease) {
        self.tried.add(lease);
        self.attempts += 1;
    }

    /// That one had nothing of it, or nothing to say to it: it may go there again.
    pub(super) fn came_back(&mut self) {
        self.attempts = self.attempts.saturating_sub(1);
        self.tried.forget_last();
    }

    /// It is still to be sent elsewhere.
    pub(super) fn elsewhere(&self) -> Option<&Tried> {
        self.retrying.as_ref().map(|_| &self.tried)
    }

    /// What the client is told where there was no connection: why it needed another, if it did.
    pub(super) fn told(&mut self, error: GatewayError) -> GatewayError {
        self.last.take().unwrap_or(error)
    }
}

impl Proxy {
    /// True if it goes to another endpoint after this, which may have begun with it if it was `taken`.
    fn goes_on(
        &self,
        outgoing: &Outgoing<'_>,
        course: &mut Course,
        cause: RetryOn,
        taken: bool,
    ) -> bool {
        let (route, retry) = (outgoing.route, &outgoing.route.model.failure.retry);
        course.retrying = None;
        // What only one endpoint has is nowhere else. What was taken may have left something behind.
        if outgoing.endpoint.is_some()
            || (taken && !outgoing.operation.replays)
            || !retry.is_on(cause)
            || course.attempts >= retry.max_attempts()
        {
            return false;
        }
        match route.pool.retry(&course.tried) {
            Ok(retrying) => {
                course.retrying = Some(retrying);
                self.metrics.failures.retry(&route.model.id, cause.word());
                true
            }
            Err(NoRetry::Budget) => {
                self.metrics
                    .failures
                    .retry_budget_exhausted(&route.model.id);
                false
            }
            Err(NoRetry::NoOther) => false,
        }
    }

    /// The answer is passed on, unless its request goes to another endpoint.
    pub(super) async fn answered(
        &self,
        outgoing: &Outgoing<'_>,
        course: &mut Course,
        response: Response<Incoming>,
        lease: Lease,
    ) -> Option<(Response<Incoming>, Lease)> {
        let cause = verdict::cause(response.status());
        let again = cause
            .is_some_and(|cause| self.goes_on(outgoing, course, cause, cause != RetryOn::Busy));
        if !again {
            course.retrying = None;
            return Some((response, lease));
        }
        course.last = Some(GatewayError::Declined {
            model: outgoing.route.model.id.to_string(),
            endpoint: lease.endpoint().to_string(),
            status: response.status(),
            after: verdict::retry_after(response.headers()),
        });
        // No slot is held while another is waited for.
        let body = Limited::new(response.into_body(), READ_MOST);
        match timeout(READ_WITHIN, body.collect()).await {
            Ok(Ok(_)) => lease.finish(),
            Ok(Err(_)) | Err(_) => lease.discard(CloseReason::Cancelled),
        }
        None
    }

    /// It ended without an answer that can be used. What the client is told, unless it goes to another endpoint.
    pub(super) fn failed(
        &self,
        outgoing: &Outgoing<'_>,
        course: &mut Course,
        error: GatewayError,
    ) -> Option<GatewayError> {
        let reset = matches!(
            error,
            GatewayError::UpstreamReset { .. } | GatewayError::UpstreamProtocol { .. }
        );
        let taken = !matches!(error, GatewayError::UpstreamReset { sent: false, .. });
        if reset && self.goes_on(outgoing, course, RetryOn::Reset, taken) {
            course.last = Some(error);
            return None;
        }
        Some(error)
    }
}
