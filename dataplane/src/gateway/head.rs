//! The head of a client's request, judged before anything else looks at it: what an HTTP library lets pass
//! although two who read it might read it differently. Pure: it knows no connection and no configuration.
//!
//! It refuses, and corrects nothing: a request that was put right here would mean one thing to us and
//! another to whoever stands before or behind us.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts,
};

use super::headers;

/// Most headers of a request.
const MOST_HEADERS: usize = 64;
/// Most bytes of their names and values, with what separates them.
const MOST_BYTES: usize = 32 * 1024;
/// Most bytes of a request's target.
const LONGEST_TARGET: usize = 8 * 1024;
/// What our own headers begin with; clients may not say them.
const OURS: &str = "x-forebay-";
/// Methods that some path of the OpenAI API knows. Paths say which of them they take.
static METHODS: [Method; 7] = [
    Method::POST,
    Method::GET,
    Method::HEAD,
    Method::DELETE,
    Method::OPTIONS,
    Method::PATCH,
    Method::PUT,
];
/// Headers that `connection` must not name: taking one of them away changes who asks, or what.
static PROTECTED: [HeaderName; 7] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// Why a request was refused by its head alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("there are more than {MOST_HEADERS} headers; send fewer")]
    TooManyHeaders,
    #[error("the headers are longer than {MOST_BYTES} bytes; send less in them")]
    TooLong,
    #[error("the target is longer than {LONGEST_TARGET} bytes; what is long belongs into the body")]
    TargetTooLong,
    #[error("the method is not one of this gateway; POST to a path of the API, or GET /v1/models")]
    Method,
    #[error("`transfer-encoding` must be `chunked`, once and nothing else")]
    TransferEncoding,
    #[error("both a `content-length` and a `transfer-encoding`: send one of them")]
    TwoLengths,
    #[error("`host` {0}")]
    Host(&'static str),
    #[error("the target's scheme is neither `http` nor `https`")]
    Scheme,
    #[error("`connection` names `{0}`, which is not of one connection only; leave it out")]
    Connection(String),
    #[error("`expect` can only be `100-continue`")]
    Expect,
    #[error("this gateway does not serve that host; --allowed-hosts says which it does")]
    Misdirected,
}

impl HeadError {
    /// Its status and its stable code.
    pub(super) fn shape(&self) -> (u16, &'static str) {
        let (status, code) = match self {
            Self::TooManyHeaders | Self::TooLong => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
            ),
            Self::TargetTooLong => (StatusCode::URI_TOO_LONG, "uri_too_long"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Expect => (StatusCode::EXPECTATION_FAILED, "expectation_failed"),
            Self::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "misdirected"),
            Self::TransferEncoding
            | Self::TwoLengths
            | Self::Host(_)
            | Self::Scheme
            | Self::Connection(_) => (StatusCode::BAD_REQUEST, "invalid_head"),
        };
        (status.as_u16(), code)
    }
}

/// The hosts that are served; all if none is named.
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    /// These: names or addresses, each with a port if only that one is meant.
    pub(super) fn new(hosts: &[String]) -> Self {
        Self(hosts.iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    fn contain(&self, host: &str) -> bool {
        let same = |known: &String| {
            known.eq_ignore_ascii_case(host) || known.eq_ignore_ascii_case(without_port(host))
        };
        self.0.is_empty() || self.0.iter().any(same)
    }
}

/// Refuses what must not be served.
pub(super) fn check(parts: &Parts, hosts: &Hosts) -> Result<(), HeadError> {
    if !METHODS.contains(&parts.method) || parts.uri.path() == "*" {
        return Err(HeadError::Method);
    }
    check_sizes(parts)?;
    let host = check_fields(parts)?;
    let host = check_target(parts, host)?;
    match hosts.contain(host) {
        true => Ok(()),
        false => Err(HeadError::Misdirected),
    }
}

fn check_sizes(parts: &Parts) -> Result<(), HeadError> {
    let authority = parts.uri.authority().map_or(0, |a| a.as_str().len());
    let rest = parts.uri.path_and_query().map_or(0, |p| p.as_str().len());
    if authority + rest > LONGEST_TARGET {
        return Err(HeadError::TargetTooLong);
    }
    if parts.headers.len() > MOST_HEADERS {
        return Err(HeadError::TooManyHeaders);
    }
    let lengths = parts.headers.iter();
    let bytes: usize = lengths.map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
    match bytes > MOST_BYTES {
        true => Err(HeadError::TooLong),
        false => Ok(()),
    }
}

/// Looks at each header that has to do with framing, and gives the host.
fn check_fields(parts: &Parts) -> Result<Option<&HeaderValue>, HeadError> {
    let (mut host, mut encoded, mut length) = (None, false, false);
    for (name, value) in &parts.headers {
        if *name == header::HOST {
            if host.replace(value).is_some() {
                return Err(HeadError::Host("is there twice"));
            }
        } else if *name == header::TRANSFER_ENCODING {
            let plain = value.as_bytes().eq_ignore_ascii_case(b"chunked");
            if !plain || std::mem::replace(&mut encoded, true) {
                return Err(HeadError::TransferEncoding);
            }
        } else if *name == header::CONTENT_LENGTH {
            length = true;
        } else if *name == header::CONNECTION {
            check_connection(value)?;
        } else if *name == header::EXPECT && !value.as_bytes().eq_ignore_ascii_case(b"100-continue")
        {
            return Err(HeadError::Expect);
        }
    }
    match encoded && length {
        true => Err(HeadError::TwoLengths),
        false => Ok(host),
    }
}

fn check_connection(value: &HeaderValue) -> Result<(), HeadError> {
    let refused = |name: &[u8]| {
        let name = String::from_utf8_lossy(name.get(..64).unwrap_or(name));
        HeadError::Connection(name.chars().filter(|c| c.is_ascii_graphic()).collect())
    };
    for name in value.as_bytes().split(|byte| *byte == b',') {
        let name = name.trim_ascii();
        let usual = [&b"keep-alive"[..], b"close", b"upgrade", b"te", b""];
        if usual.iter().any(|word| name.eq_ignore_ascii_case(word)) {
            continue;
        }
        let parsed = HeaderName::from_bytes(name).map_err(|_| refused(name))?;
        let ours = parsed.as_str().starts_with(OURS);
        if ours || PROTECTED.contains(&parsed) || headers::passes_up(&parsed) {
            return Err(refused(name));
        }
    }
    Ok(())
}

/// The host that the request is for: that of its target, if it has one, which must be the header's, too.
fn check_target<'a>(
    parts: &'a Parts,
    header: Option<&'a HeaderValue>,
) -> Result<&'a str, HeadError> {
    let scheme = parts.uri.scheme_str();
    if scheme.is_some_and(|s| !s.eq_ignore_ascii_case("http") && !s.eq_ignore_ascii_case("https")) {
        return Err(HeadError::Scheme);
    }
    let header = match header {
        Some(value) if is_host(value.as_bytes()) => Some(value.to_str().unwrap_or_default()),
        Some(_) => {
            return Err(HeadError::Host(
                "is not a name or an address, with or without a port",
            ));
        }
        None => None,
    };
    let target = parts.uri.authority().map(http::uri::Authority::as_str);
    if target.is_some_and(|target| !is_host(target.as_bytes())) {
        return Err(HeadError::Host("of the target is not a name or an address"));
    }
    match (target, header) {
        (Some(target), Some(header)) if !target.eq_ignore_ascii_case(header) => {
            Err(HeadError::Host("is not the one that the target names"))
        }
        // HTTP/1.1 demands the header whatever the target says.
        (Some(target), None) if parts.version > Version::HTTP_11 => Ok(target),
        (_, Some(header)) => Ok(header),
        (_, None) if parts.version <= Version::HTTP_10 => Ok(""),
        (_, None) => Err(HeadError::Host("is missing")),
    }
}

/// A name or an address, with or without a port; nobody in front of it, nothing behind it.
fn is_host(bytes: &[u8]) -> bool {
    let port = |rest: &[u8]| match rest.split_first() {
        None => true,
        Some((b':', digits)) => {
            (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        Some(_) => false,
    };
    let split = |at: usize| (bytes.get(..at), bytes.get(at..));
    if bytes.first() == Some(&b'[') {
        let Some(end) = bytes.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let (Some(address), Some(rest)) = split(end + 1) else {
            return false;
        };
        let digits = |byte: &u8| byte.is_ascii_hexdigit() || b":.[]".contains(byte);
        return address.len() > 3 && address.iter().all(digits) && port(rest);
    }
    let end = bytes.iter().position(|byte| *byte == b':');
    let (Some(name), Some(rest)) = split(end.unwrap_or(bytes.len())) else {
        return false;
    };
    let letters = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    (1..=255).contains(&name.len()) && name.iter().all(letters) && port(rest)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Takes away what a client must not be able to say: headers of ours, but for what it may ask for, and names that a
/// server behind us might take for another (`_` for `-`).
pub(super) fn drop_foreign(map: &mut HeaderMap) {
    let foreign = |name: &&HeaderName| {
        let text = name.as_str();
        (text.starts_with(OURS) && **name != headers::EXPLAIN) || text.contains('_')
    };
    // Most requests have none.
    while let Some(name) = map.keys().find(foreign).cloned() {
        map.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn judged(version: Version, uri: &str, fields: &[(&str, &str)]) -> Result<(), HeadError> {
        let mut request = Request::post(uri).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0, &Hosts::default())
    }

    fn over_http1(fields: &[(&str, &str)]) -> Result<(), HeadError> {
        judged(Version::HTTP_11, "/v1/completions", fields)
    }

    #[test]
    fn one_encoding_and_that_is_chunked() {
        for good in ["chunked", "Chunked"] {
            assert_eq!(
                over_http1(&[("host", "a"), ("transfer-encoding", good)]),
                Ok(())
            );
        }
        for bad in [
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "",
            "chunked,",
        ] {
            let judged = over_http1(&[("host", "a"), ("transfer-encoding", bad)]);
            assert_eq!(judged, Err(HeadError::TransferEncoding), "{bad}");
        }
        let twice = [
            ("host", "a"),
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ];
        assert_eq!(over_http1(&twice), Err(HeadError::TransferEncoding));
        let both = [
            ("host", "a"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
        ];
        assert_eq!(over_http1(&both), Err(HeadError::TwoLengths));
    }

    #[test]
    fn one_host_that_is_one() {
        for good in [
            "a",
            "a:80",
            "gw.example.com",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:80",
            "a_b",
        ] {
            assert_eq!(over_http1(&[("host", good)]), Ok(()), "{good}");
        }
        for bad in [
            "", "a b/@c", "u@h", "a/b", "a:", "a:123456", "a:x", "[::1", "[]", "a:80:80", "ä",
        ] {
            let judged = over_http1(&[("host", bad)]);
            assert!(
                matches!(judged, Err(HeadError::Host(_))),
                "{bad}: {judged:?}"
            );
        }
        assert!(over_http1(&[]).is_err() && over_http1(&[("host", "a"), ("host", "a")]).is_err());
        assert_eq!(judged(Version::HTTP_10, "/", &[]), Ok(()));
    }

    #[test]
    fn the_target_and_the_host_are_one() {
        let of = |version, uri, host: Option<&'static str>| {
            let fields: Vec<_> = host.iter().map(|host| ("host", *host)).collect();
            judged(version, uri, &fields)
        };
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        assert_eq!(of(one, "http://gw/v1/models", Some("GW")), Ok(()));
        assert_eq!(of(two, "https://gw/v1/models", None), Ok(()));
        assert_eq!(of(two, "https://gw/v1/models", Some("gw")), Ok(()));
        assert!(of(one, "http://evil/x", Some("gw")).is_err());
        assert!(of(one, "http://gw/x", None).is_err());
        assert!(of(two, "https://evil/x", Some("gw")).is_err());
        assert!(of(one, "http://u:p@gw/x", Some("gw")).is_err());
        assert_eq!(of(two, "ftp://gw/x", None), Err(HeadError::Scheme));
    }

    #[test]
    fn connection_names_nothing_that_is_the_requests_own() {
        for good in [
            "close",
            "Keep-Alive, TE",
            "Upgrade, HTTP2-Settings",
            "x-hop",
            "x-hop,, ",
        ] {
            assert_eq!(
                over_http1(&[("host", "a"), ("connection", good)]),
                Ok(()),
                "{good}"
            );
        }
        for bad in [
            "authorization",
            "close, X-Api-Key",
            "content-length",
            "x-forebay-tenant",
            "a b",
        ] {
            let judged = over_http1(&[("host", "a"), ("connection", bad)]);
            assert!(
                matches!(judged, Err(HeadError::Connection(_))),
                "{bad}: {judged:?}"
            );
        }
    }

    #[test]
    fn there_is_a_limit_to_everything() {
        let host = ("host", "a");
        let many: Vec<_> = std::iter::once(host)
            .chain((0..63).map(|_| ("x-a", "b")))
            .collect();
        assert_eq!(over_http1(&many), Ok(()));
        let more: Vec<_> = many.iter().copied().chain([("x-a", "b")]).collect();
        assert_eq!(over_http1(&more), Err(HeadError::TooManyHeaders));
        let long = "x".repeat(MOST_BYTES);
        assert_eq!(over_http1(&[host, ("x-a", &long)]), Err(HeadError::TooLong));
        let target = format!("/{}", "x".repeat(LONGEST_TARGET));
        assert_eq!(
            judged(Version::HTTP_11, &target, &[host]),
            Err(HeadError::TargetTooLong)
        );
        assert_eq!(over_http1(&[host, ("expect", "x")]), Err(HeadError::Expect));
        assert_eq!(over_http1(&[host, ("expect", "100-Continue")]), Ok(()));
    }

    #[test]
    fn only_the_hosts_that_were_named() {
        let hosts = Hosts::new(&["API.example.com".to_owned(), "b:81".to_owned()]);
        for (host, served) in [
            ("api.example.com", true),
            ("api.example.com:443", true),
            ("b:81", true),
            ("b:82", false),
            ("evil", false),
        ] {
            let request = Request::get("/v1/models").header("host", host);
            let judged = check(&request.body(()).unwrap().into_parts().0, &hosts);
            assert_eq!(judged.is_ok(), served, "{host}");
        }
    }

    #[test]
    fn nobody_speaks_in_our_name() {
        let mut map = HeaderMap::new();
        for name in [
            "x-forebay-tenant",
            "x-forebay-explain",
            "x_forebay_explain",
            "content_length",
            "accept",
        ] {
            map.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        drop_foreign(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-forebay-explain"]);
    }
}
