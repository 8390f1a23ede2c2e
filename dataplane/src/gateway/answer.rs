//! The head of an upstream's answer: what must not be passed on, and what it looks like when it is.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, Version, header};
use hyper::body::Incoming;

use super::{attempt::Outgoing, body::StreamLimits, headers};
use crate::{
    live::Live,
    pool::{Kind, Lease},
};

/// What makes an answer one that must not be passed on.
pub(super) fn broken_rule(response: &Response<Incoming>) -> Option<&'static str> {
    let headers = response.headers();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Some("a protocol switch that nobody asked for");
    }
    // Two who read it differently see two different answers (RFC 9112 §6.3).
    let two = headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH);
    two.then_some("both a content-length and a transfer-encoding")
}

/// What the client gets to see of it.
pub(super) fn finish_head(
    response: &mut Response<Incoming>,
    outgoing: &Outgoing<'_>,
    live: &Live,
    lease: &Lease,
) {
    // Ours, whatever the upstream speaks.
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    headers::strip_for_client(headers);
    if outgoing.stands_in
        && let Ok(model) = HeaderValue::from_str(outgoing.route.model.id.as_str())
    {
        headers.insert("x-forebay-model", model);
    }
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
    headers.insert("x-forebay-attempts", HeaderValue::from(outgoing.sent));
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

/// The limits of its body.
pub(super) fn stream_limits(
    outgoing: &Outgoing<'_>,
    response: &Response<Incoming>,
) -> StreamLimits {
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

/// In logs, traces and headers.
pub(super) fn connection_word(kind: Kind) -> &'static str {
    match kind {
        Kind::New => "new",
        Kind::Reused => "reused",
    }
}
