//! Who is let in: the key of a request, looked at before anything of its body is. One look into a map and one HMAC,
//! whether the key is known or not.
//!
//! The text of a key stays here: it is not kept, not logged, and does not go upstream.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, header};

use super::{caller::Caller, error::GatewayError};
use crate::keys::KeyCell;

/// Where Anthropic's clients put it.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// No key.
    Missing,
    /// No key, and there is none that would do.
    NoKeys,
    /// Not a key, or not one that is good.
    Unknown,
    /// Its time is over.
    Expired,
}

/// Who asks.
pub(super) fn caller(keys: &KeyCell, headers: &HeaderMap) -> Result<Caller, GatewayError> {
    match keys.is_required() {
        false => Ok(Caller::anybody()),
        true => with_key(keys, headers),
    }
}

fn with_key(keys: &KeyCell, headers: &HeaderMap) -> Result<Caller, GatewayError> {
    let ring = keys.load();
    let Some(text) = given(headers)? else {
        return Err(GatewayError::Stranger(match ring.is_empty() {
            true => Stranger::NoKeys,
            false => Stranger::Missing,
        }));
    };
    let key = ring.find(text);
    let key = key.ok_or(GatewayError::Stranger(Stranger::Unknown))?;
    match key.spec.is_over(SystemTime::now()) {
        true => Err(GatewayError::Stranger(Stranger::Expired)),
        false => Ok(Caller::with(key.clone())),
    }
}

/// The one key of a request. Two that differ are refused: who reads them differently would see two callers.
fn given(headers: &HeaderMap) -> Result<Option<&str>, GatewayError> {
    let bearer = headers.get_all(header::AUTHORIZATION).iter().map(|value| {
        let text = value.to_str().ok()?;
        let (scheme, key) = text.split_once(' ')?;
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        is_bearer.then(|| key.trim_matches(' '))
    });
    let plain = headers
        .get_all(API_KEY)
        .iter()
        .map(|value| value.to_str().ok());
    let mut all = bearer.chain(plain);
    let Some(first) = all.next() else {
        return Ok(None);
    };
    match all.all(|other| other == first) {
        // What cannot be read is a key that is not known.
        true => Ok(Some(first.unwrap_or_default())),
        false => Err(GatewayError::TwoKeys),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Option<String>, ()> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        let key = given(&headers).map_err(|_| ())?;
        Ok(key.map(str::to_owned))
    }

    #[test]
    fn a_key_stands_in_either_header() {
        let key = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("authorization", "Bearer a")]), key("a"));
        assert_eq!(read(&[("authorization", "bearer  a ")]), key("a"));
        assert_eq!(read(&[("x-api-key", "a")]), key("a"));
        let both = [("authorization", "Bearer a"), ("x-api-key", "a")];
        assert_eq!(read(&both), key("a"));
        assert_eq!(read(&[("authorization", "Basic a")]), key(""));
        assert_eq!(read(&[("authorization", "a")]), key(""));
    }

    #[test]
    fn two_that_differ_are_refused() {
        for pairs in [
            [("authorization", "Bearer a"), ("x-api-key", "b")],
            [("authorization", "Bearer a"), ("authorization", "Bearer b")],
            [("authorization", "Basic a"), ("x-api-key", "a")],
            [("x-api-key", "a"), ("x-api-key", "b")],
        ] {
            assert_eq!(read(&pairs), Err(()), "{pairs:?}");
        }
    }
}
