//! The head of an upstream's answer: what must not be passed on, and what it looks like when it is.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use hyper::body::Incoming;

use super::{
    attempt::Outgoing, body::StreamLimits, headers, passing::Content, stream_style::StreamStyle,
};
use crate::{
    live::Live,
    pool::{Kind, Lease},
};

/// What makes an answer one that must not be passed on.
pub(super) fn broken_rule(response: &Response<Incoming>) -> Option<&'static str> {
    rule(response.status(), response.version(), response.headers())
}

fn rule(status: StatusCode, version: Version, headers: &HeaderMap) -> Option<&'static str> {
    match status.as_u16() {
        101 => return Some("a protocol switch that nobody asked for"),
        // Followed, it would take the request and its credentials to wherever the upstream says; passed on, the
        // client would do so.
        300..=399 => {
            return Some("a redirect, which is not followed; register the address it leads to");
        }
        200..=299 | 400..=599 => {}
        _ => return Some("a status that means nothing"),
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        // Two who read it differently see two different answers (RFC 9112 §6.3).
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Some("both a content-length and a transfer-encoding");
        }
        let chunked = encoding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked");
        if !chunked || encodings.next().is_some() || version == Version::HTTP_10 {
            return Some("a transfer-encoding that is not chunked, once and nothing else");
        }
    }
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    // Nobody here could tell whether it is whole.
    (!encodings.all(plain)).then_some("a content-encoding that nobody asked for")
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
    // Among them the upstream's own words for its status.
    response.extensions_mut().clear();
    let headers = response.headers_mut();
    headers::strip_for_client(headers);
    if outgoing.stands_in
        && let Ok(model) = HeaderValue::from_str(outgoing.route.model.id.as_str())
    {
        headers.insert("x-forebay-model", model);
    }
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

/// The limits of its body, told from the head as it came.
pub(super) fn stream_limits(
    outgoing: &Outgoing<'_>,
    response: &Response<Incoming>,
) -> StreamLimits {
    let timeouts = &outgoing.route.model.timeouts;
    let headers = response.headers();
    let content = match headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        Some(kind) if is_kind(kind, b"text/event-stream") => {
            Content::Events(outgoing.operation.streams.unwrap_or(StreamStyle::Chat))
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

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn what_could_be_read_in_two_ways_or_leads_elsewhere_is_not_passed_on() {
        let judged = |status: u16, fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                let (name, value) = (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                );
                headers.append(name, value);
            }
            rule(
                StatusCode::from_u16(status).unwrap(),
                Version::HTTP_11,
                &headers,
            )
        };
        assert_eq!(judged(200, &[("content-length", "2")]), None);
        assert_eq!(judged(503, &[("transfer-encoding", "Chunked")]), None);
        assert_eq!(judged(200, &[("content-encoding", "identity")]), None);
        for status in [101, 300, 304, 307, 600, 999] {
            assert!(judged(status, &[]).is_some(), "{status}");
        }
        for fields in [
            &[("transfer-encoding", "chunked"), ("content-length", "2")][..],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
            &[
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            &[("content-encoding", "gzip")],
            &[("content-encoding", "identity"), ("content-encoding", "br")],
        ] {
            assert!(judged(200, fields).is_some(), "{fields:?}");
        }
    }
}
