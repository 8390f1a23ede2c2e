//! What an answer says of the endpoint that it came from, and whether its request may go to another: broken is what
//! only a broken endpoint does, busy is what one does that has no room. By the head alone; no body is read for it.

use std::time::Duration;

use forebay_proto::RetryOn;
use http::{HeaderMap, Response, StatusCode, header};

use crate::pool::{Fault, Progress, SendError, SendFailed, Verdict};

/// The longest pause that is understood.
const PAUSE_MOST: f64 = 86_400.0;

/// What its head says. Nothing: neither good nor bad.
pub(super) fn of_answer<B>(response: &Response<B>) -> Option<Verdict> {
    let pause = retry_after(response.headers());
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS => Some(Verdict::Busy(pause)),
        // vLLM whose queue is full says so in JSON, and not when it will have room.
        StatusCode::SERVICE_UNAVAILABLE if pause.is_some() || is_json(response.headers()) => {
            Some(Verdict::Busy(pause))
        }
        StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE => Some(Verdict::Broken(Fault::Status)),
        // Somebody behind it was slow: as a long prefill is.
        StatusCode::GATEWAY_TIMEOUT => None,
        _ => Some(Verdict::Answered),
    }
}

/// What a failure to get one says.
pub(super) fn of_failure(failed: &SendFailed) -> Option<Verdict> {
    let SendError::Connection(error) = &failed.error else {
        return None;
    };
    match (failed.progress, error.is_parse()) {
        // It is the connection that failed; of that the pool takes note.
        (Progress::NothingSent, _) => None,
        (_, true) => Some(Verdict::Broken(Fault::Protocol)),
        (Progress::Sent | Progress::Answered, false) => Some(Verdict::Broken(Fault::Reset)),
    }
}

/// What it is a case of, if its request may be sent again for it.
pub(super) fn cause(status: StatusCode) -> Option<RetryOn> {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Some(RetryOn::Busy),
        StatusCode::BAD_GATEWAY => Some(RetryOn::BadGateway),
        StatusCode::INTERNAL_SERVER_ERROR => Some(RetryOn::ServerError),
        _ => None,
    }
}

/// When it may be asked again, as far as it says so in seconds or milliseconds. A date is not understood: it would
/// have to be compared with a clock that may be another.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number =
        |name: &str| -> Option<f64> { headers.get(name)?.to_str().ok()?.trim().parse().ok() };
    let millis = number("retry-after-ms").map(|millis| millis / 1_000.0);
    let seconds = millis.or_else(|| number(header::RETRY_AFTER.as_str()))?;
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(PAUSE_MOST)))
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)]) -> Response<()> {
        let mut builder = Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn busy_is_not_broken_and_what_a_client_causes_is_neither() {
        let json = ("content-type", "application/json");
        let broken = Some(Verdict::Broken(Fault::Status));
        let busy = |secs: Option<u64>| Some(Verdict::Busy(secs.map(Duration::from_secs)));
        for (status, headers, verdict) in [
            (200, &[][..], Some(Verdict::Answered)),
            (400, &[], Some(Verdict::Answered)),
            (404, &[], Some(Verdict::Answered)),
            (429, &[], busy(None)),
            (429, &[("retry-after", "7")], busy(Some(7))),
            (503, &[json], busy(None)),
            (503, &[("retry-after", "2"), json], busy(Some(2))),
            (503, &[("content-type", "text/html")], broken),
            (500, &[json], broken),
            (502, &[], broken),
            (504, &[], None),
        ] {
            assert_eq!(
                of_answer(&answer(status, headers)),
                verdict,
                "{status} {headers:?}"
            );
        }
    }

    #[test]
    fn pauses_in_numbers() {
        let pause = |name, value| retry_after(answer(429, &[(name, value)]).headers());
        assert_eq!(
            pause("retry-after", "1.5"),
            Some(Duration::from_millis(1_500))
        );
        assert_eq!(
            pause("retry-after-ms", "250"),
            Some(Duration::from_millis(250))
        );
        assert_eq!(
            pause("retry-after", "1e300"),
            Some(Duration::from_secs(86_400))
        );
        for odd in ["-1", "NaN", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", ""] {
            assert_eq!(pause("retry-after", odd), None, "{odd}");
        }
    }
}
