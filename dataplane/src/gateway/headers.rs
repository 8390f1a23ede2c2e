//! Which headers pass. Upstream requests are built from an allow-list, never by copying: a client
//! must not be able to speak to the upstream's framing, its proxies or its management.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
};
use uuid::Builder;

use crate::trace_context;

/// The header that names a request in logs and answers.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header with which a client asks how its request was served.
pub(super) const EXPLAIN: HeaderName = HeaderName::from_static("x-forebay-explain");

static PASSED_UP: [HeaderName; 10] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::USER_AGENT,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("x-api-key"),
    REQUEST_ID,
];

/// Of one connection only (RFC 9110 §7.6.1), or ours to say.
static NOT_PASSED_DOWN: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    REQUEST_ID,
];

/// True if the client asks how its request was served.
pub(super) fn explains(client: &HeaderMap) -> bool {
    client.get(EXPLAIN).is_some_and(|value| value == "1")
}

/// The headers of the upstream request; `host` and framing are added by who sends it.
pub(super) fn for_upstream(client: &HeaderMap, request_id: &HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(PASSED_UP.len());
    headers.insert(REQUEST_ID, request_id.clone());
    // Most of them are not there: the client's few are gone through, not the list.
    for (name, value) in client {
        let passes = PASSED_UP.contains(name) || trace_context::HEADERS.contains(name);
        // Of several with one name the first counts.
        if passes && let Entry::Vacant(free) = headers.entry(name) {
            free.insert(value.clone());
        }
    }
    headers
}

/// Takes from an upstream's headers what is not for the client.
pub(super) fn strip_for_client(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    named.iter().for_each(|name| drop(headers.remove(name)));
    if headers.keys().any(|name| NOT_PASSED_DOWN.contains(name)) {
        for name in &NOT_PASSED_DOWN {
            headers.remove(name);
        }
    }
}

/// The client's own request id if it is one that can stand in a log, else a new one.
pub(super) fn request_id(client: &HeaderMap) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match client.get(REQUEST_ID).filter(usable) {
        Some(value) => value.clone(),
        None => new_request_id(),
    }
}

/// It names, and guards nothing: a random number that costs no system call will do.
fn new_request_id() -> HeaderValue {
    let random = fastrand::u128(..).to_ne_bytes();
    let id = Builder::from_random_bytes(random).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text))
        .unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (
                name.parse::<HeaderName>().unwrap(),
                value.parse::<HeaderValue>().unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_the_list_goes_up() {
        let client = headers(&[
            ("authorization", "Bearer x"),
            ("connection", "authorization"),
            ("transfer-encoding", "gzip, chunked"),
            ("upgrade", "h2c"),
            ("host", "a"),
            ("x-forwarded-for", "1.2.3.4"),
            ("cookie", "a=b"),
            ("x-request-id", "client's"),
        ]);
        let up = for_upstream(&client, &HeaderValue::from_static("id"));
        assert_eq!(
            up,
            headers(&[("authorization", "Bearer x"), ("x-request-id", "id")])
        );
    }

    #[test]
    fn what_belongs_to_a_connection_stays_on_it() {
        let mut down = headers(&[
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/event-stream"),
        ]);
        strip_for_client(&mut down);
        assert_eq!(down, headers(&[("content-type", "text/event-stream")]));
    }

    #[test]
    fn odd_request_ids_are_replaced() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc")])), "abc");
        let long = "a".repeat(129);
        for odd in ["a b", long.as_str()] {
            assert_ne!(request_id(&headers(&[("x-request-id", odd)])), odd);
        }
    }
}
