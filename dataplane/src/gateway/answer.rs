//! The head of an upstream's answer: what must not be passed on, and what it looks like when it is.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, Version, header};
use hyper::body::Incoming;

use super::{
    attempt::Outgoing, body::StreamLimits, headers, reading::Content, stream_style::StreamStyle,
};
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
    limits: &StreamLimits,
    outgoing: &Outgoing<'_>,
    live: &Live,
    lease: &Lease,
) {
    // Ours, whatever the upstream speaks.
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    headers::strip_for_client(headers);
    if let Content::Events(_) = limits.content {
        headers::for_stream(headers);
        if limits.strip {
            headers.remove(header::CONTENT_LENGTH);
        }
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

/// The limits of its body, told from the head as it came.
pub(super) fn stream_limits(
    outgoing: &Outgoing<'_>,
    response: &Response<Incoming>,
) -> StreamLimits {
    let timeouts = &outgoing.route.model.timeouts;
    let headers = response.headers();
    let content = match headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        Some(kind) if is_kind(kind, b"text/event-stream") => {
            Content::Events(StreamStyle::of(outgoing.path))
        }
        Some(kind) if is_kind(kind, b"application/json") && response.status().is_success() => {
            Content::Json
        }
        _ => Content::Other,
    };
    let events = matches!(content, Content::Events(_));
    let lengthed = headers.contains_key(header::CONTENT_LENGTH);
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    StreamLimits {
        idle: timeouts.idle,
        deadline: outgoing.deadline,
        total: timeouts.total,
        content,
        lengthed: lengthed && !outgoing.strip,
        framed: lengthed || chunked || response.version() == Version::HTTP_2,
        strip: events && outgoing.strip,
        keep_alive: outgoing.route.model.streaming.keep_alive,
    }
}

fn is_kind(given: &[u8], kind: &[u8]) -> bool {
    let start = given.get(..kind.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(kind))
}

/// In logs, traces and headers.
pub(super) fn connection_word(kind: Kind) -> &'static str {
    match kind {
        Kind::New => "new",
        Kind::Reused => "reused",
    }
}
