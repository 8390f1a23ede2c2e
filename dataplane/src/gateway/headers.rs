//! Which headers pass. Upstream requests are built from an allow-list, never by copying: a client
//! must not be able to speak to the upstream's framing, its proxies or its management. So are answers: an upstream
//! must not be able to set a cookie for our host, speak to proxies behind us, or in our name.

use forebay_proto::key;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
};
use uuid::Builder;

use super::caller::Caller;
use crate::trace_context;

/// The header that names a request in logs and answers.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header with which a client asks how its request was served.
pub(super) const EXPLAIN: HeaderName = HeaderName::from_static("x-forebay-explain");

const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
/// Asks nginx, and those that follow it, not to buffer.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

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

/// What an answer is passed on with: what says how to read it, what the official SDKs act on, and what they give to
/// their users. Who sends it, when, and over what connection is ours to say.
fn passes_down(name: &str) -> bool {
    match name {
        "content-type"
        | "content-length"
        | "content-language"
        | "content-disposition"
        | "cache-control"
        | "vary"
        | "allow"
        | "deprecation"
        | "sunset"
        | "retry-after"
        | "retry-after-ms"
        | "x-should-retry"
        | "x-accel-buffering" => true,
        _ => ["openai-", "x-ratelimit-", "anthropic-ratelimit-"]
            .iter()
            .any(|family| name.starts_with(family)),
    }
}

/// ASCII that can be seen. What else a value may consist of, some read as Latin-1 and others as UTF-8 or not at all.
fn is_plain(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .iter()
        .all(|byte| (b' '..=b'~').contains(byte))
}

/// Whether a client's header goes upstream.
pub(super) fn passes_up(name: &HeaderName) -> bool {
    PASSED_UP.contains(name) || trace_context::HEADERS.contains(name)
}

/// True if the client asks how its request was served.
pub(super) fn explains(client: &HeaderMap) -> bool {
    client.get(EXPLAIN).is_some_and(|value| value == "1")
}

/// Where clients' keys stand.
static KEYS: [HeaderName; 2] = [header::AUTHORIZATION, HeaderName::from_static("x-api-key")];

/// The endpoint's own credential takes the place of the client's.
pub(super) fn put_credential(headers: &mut HeaderMap, credential: Option<&HeaderValue>) {
    KEYS.iter().for_each(|name| drop(headers.remove(name)));
    if let Some(credential) = credential {
        headers.insert(header::AUTHORIZATION, credential.clone());
    }
}

/// Whether a value has the form of a key of ours, good or not.
fn has_key(value: &HeaderValue) -> bool {
    let mut words = value.as_bytes().split(|byte| *byte == b' ');
    words.any(|word| word.starts_with(key::PREFIX.as_bytes()))
}

/// The headers of the upstream request; `host` and framing are added by who sends it.
pub(super) fn for_upstream(
    client: &HeaderMap,
    request_id: &HeaderValue,
    caller: &Caller,
) -> HeaderMap {
    // A key of ours is nobody else's business, also where nobody asked for it; without keys it is the upstream's, as
    // without a gateway.
    let ours = caller.key().is_some();
    let mut headers = HeaderMap::with_capacity(PASSED_UP.len() + 1);
    headers.insert(REQUEST_ID, request_id.clone());
    // What we pass on we must be able to read, and the client did not ask for anything else.
    headers.insert(header::ACCEPT_ENCODING, IDENTITY);
    // Most of them are not there: the client's few are gone through, not the list.
    for (name, value) in client {
        // Of several with one name the first counts.
        if passes_up(name)
            && !(KEYS.contains(name) && (ours || has_key(value)))
            && is_plain(value)
            && let Entry::Vacant(free) = headers.entry(name)
        {
            free.insert(value.clone());
        }
    }
    headers
}

/// Takes from an upstream's headers what is not for the client.
pub(super) fn strip_for_client(headers: &mut HeaderMap) {
    // Of one connection only, says the upstream (RFC 9110 §7.6.1).
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name: &HeaderName| *name != header::CONTENT_LENGTH)
        .collect();
    named.iter().for_each(|name| drop(headers.remove(name)));
    let foreign = |(name, value): &(&HeaderName, &HeaderValue)| {
        !passes_down(name.as_str()) || !is_plain(value)
    };
    while let Some(name) = headers.iter().find(foreign).map(|(name, _)| name.clone()) {
        headers.remove(name);
    }
}

/// What keeps proxies on the way from holding a stream back, unless the upstream says otherwise.
pub(super) fn for_stream(headers: &mut HeaderMap) {
    let (cache, buffering) = (header::CACHE_CONTROL, NO_BUFFERING);
    headers
        .entry(cache)
        .or_insert(HeaderValue::from_static("no-cache"));
    headers
        .entry(buffering)
        .or_insert(HeaderValue::from_static("no"));
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
        let up = for_upstream(&client, &HeaderValue::from_static("id"), &Caller::anybody());
        assert_eq!(
            up,
            headers(&[
                ("authorization", "Bearer x"),
                ("x-request-id", "id"),
                ("accept-encoding", "identity"),
            ])
        );
    }

    #[test]
    fn a_key_of_ours_never_goes_up() {
        let id = HeaderValue::from_static("id");
        for (name, value, passes) in [
            ("authorization", "Bearer fbk_a", false),
            ("authorization", "bearer  fbk_a", false),
            ("authorization", "fbk_a", false),
            ("x-api-key", "fbk_a", false),
            ("authorization", "Bearer sk-fbk_a", true),
            ("x-api-key", "sk-ant", true),
            ("user-agent", "fbk_a", true),
        ] {
            let up = for_upstream(&headers(&[(name, value)]), &id, &Caller::anybody());
            assert_eq!(up.contains_key(name), passes, "{name}: {value}");
        }
    }

    #[test]
    fn what_is_not_on_the_list_stays_upstream() {
        let mut down = headers(&[
            ("connection", "close, openai-private, content-length"),
            ("openai-private", "1"),
            ("content-length", "7"),
            ("openai-processing-ms", "12"),
            ("x-ratelimit-remaining-requests", "3"),
            ("retry-after-ms", "100"),
            ("set-cookie", "a=b"),
            ("server", "uvicorn"),
            ("date", "now"),
            ("location", "http://169.254.169.254/"),
            ("proxy-authenticate", "Basic"),
            ("x-forebay-endpoint", "forged"),
            ("x-request-id", "forged"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/event-stream"),
        ]);
        strip_for_client(&mut down);
        let passed = headers(&[
            ("content-length", "7"),
            ("openai-processing-ms", "12"),
            ("x-ratelimit-remaining-requests", "3"),
            ("retry-after-ms", "100"),
            ("content-type", "text/event-stream"),
        ]);
        assert_eq!(down, passed);
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
