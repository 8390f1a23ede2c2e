//! In what a body is written, as its head says. A body in an encoding that is not undone here would be read
//! otherwise by an engine that undoes it; two content types are read as either by someone. So there is one of
//! each, or none, and what goes upstream is said in our words.

use http::{HeaderMap, HeaderValue, header};

use super::{error::GatewayError, form_body, paths::ModelPlace};

const JSON: &str = "`content-type: application/json`";
const FORM: &str =
    "`content-type: multipart/form-data` with a boundary of letters, digits or `'()+_-./=?`";

/// In what a body is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    /// A form, with this between its parts.
    Form(String),
}

impl Media {
    /// What the head says, if it is what the path takes.
    pub(super) fn of(headers: &HeaderMap, place: ModelPlace) -> Result<Self, GatewayError> {
        for value in headers.get_all(header::CONTENT_ENCODING) {
            if !value.as_bytes().eq_ignore_ascii_case(b"identity") {
                let wanted = "the body as it is, without a content-encoding";
                return Err(refused("content-encoding", value, wanted));
            }
        }
        let wanted = match place {
            ModelPlace::Form => FORM,
            _ => JSON,
        };
        let Some(value) = only(headers, wanted)? else {
            // Without one it is what the path takes: a form would lack its boundary.
            return match place {
                ModelPlace::Form => Err(GatewayError::MediaType {
                    header: "content-type",
                    found: "not there".to_owned(),
                    wanted,
                }),
                _ => Ok(Self::Json),
            };
        };
        let refused = || refused("content-type", value, wanted);
        let text = value.to_str().map_err(|_| refused())?;
        let (kind, parameters) = match text.split_once(';') {
            Some((kind, parameters)) => (kind.trim_end_matches([' ', '\t']), Some(parameters)),
            None => (text, None),
        };
        match place {
            ModelPlace::Form if kind.eq_ignore_ascii_case("multipart/form-data") => parameters
                .and_then(form_body::boundary)
                .map(Self::Form)
                .ok_or_else(refused),
            ModelPlace::Form => Err(refused()),
            _ if kind.eq_ignore_ascii_case("application/json")
                && parameters.is_none_or(says_utf8) =>
            {
                Ok(Self::Json)
            }
            _ => Err(refused()),
        }
    }

    /// The same, for the upstream.
    pub(super) fn content_type(&self) -> HeaderValue {
        match self {
            Self::Json => HeaderValue::from_static("application/json"),
            Self::Form(boundary) => {
                let token = |byte: u8| byte.is_ascii_alphanumeric() || b"'+_-.".contains(&byte);
                let quote = if boundary.bytes().all(token) {
                    ""
                } else {
                    "\""
                };
                let text = format!("multipart/form-data; boundary={quote}{boundary}{quote}");
                // A boundary has none but visible characters.
                HeaderValue::try_from(text)
                    .unwrap_or(HeaderValue::from_static("multipart/form-data"))
            }
        }
    }
}

fn only<'a>(
    headers: &'a HeaderMap,
    wanted: &'static str,
) -> Result<Option<&'a HeaderValue>, GatewayError> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let value = values.next();
    match values.next() {
        None => Ok(value),
        Some(_) => Err(GatewayError::MediaType {
            header: "content-type",
            found: "there more than once".to_owned(),
            wanted,
        }),
    }
}

fn refused(header: &'static str, value: &HeaderValue, wanted: &'static str) -> GatewayError {
    let found = value.to_str().unwrap_or("not ASCII");
    GatewayError::MediaType {
        header,
        found: format!("`{}`", found.chars().take(100).collect::<String>()),
        wanted,
    }
}

/// JSON has no parameters; what says nothing new about it is let pass.
fn says_utf8(parameters: &str) -> bool {
    let parameter = parameters.trim_matches([' ', '\t']);
    let Some((name, value)) = parameter.split_once('=') else {
        return parameter.is_empty();
    };
    let quoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let value = quoted.unwrap_or(value);
    let utf8 = ["utf-8", "utf8"]
        .iter()
        .any(|name| value.eq_ignore_ascii_case(name));
    name.eq_ignore_ascii_case("charset") && utf8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(place: ModelPlace, types: &[&str]) -> Result<Media, GatewayError> {
        let mut headers = HeaderMap::new();
        for value in types {
            headers.append(header::CONTENT_TYPE, value.parse().unwrap());
        }
        Media::of(&headers, place)
    }

    #[test]
    fn json_is_called_by_one_name() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json ;",
        ] {
            assert_eq!(
                media(ModelPlace::Json, &[good]).unwrap(),
                Media::Json,
                "{good}"
            );
        }
        assert_eq!(media(ModelPlace::Json, &[]).unwrap(), Media::Json);
        for bad in [
            "application/x-www-form-urlencoded",
            "text/plain",
            "application/json; charset=utf-16",
            "application/json; charset=utf-8; charset=utf-16",
            "application/json; boundary=x",
            "application/json, text/plain",
            "application/jsonx",
            "multipart/form-data; boundary=x",
            "",
        ] {
            assert!(media(ModelPlace::Json, &[bad]).is_err(), "{bad}");
        }
        let two = ["application/json", "application/json"];
        assert!(media(ModelPlace::Json, &two).is_err());
    }

    #[test]
    fn a_form_has_one_plain_boundary() {
        for (good, boundary, upstream) in [
            ("multipart/form-data; boundary=x", "x", "boundary=x"),
            (
                "multipart/form-data;charset=utf-8;boundary=\"x-y\"",
                "x-y",
                "boundary=x-y",
            ),
            (
                "multipart/form-data; boundary=\"a/b\"",
                "a/b",
                "boundary=\"a/b\"",
            ),
        ] {
            let media = media(ModelPlace::Form, &[good]).unwrap();
            assert_eq!(media, Media::Form(boundary.to_owned()));
            let sent = media.content_type();
            assert_eq!(sent, format!("multipart/form-data; {upstream}"));
        }
        let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
        for bad in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=a; boundary=b",
            "multipart/form-data; boundary=\"a\\\"b\"",
            "multipart/form-data; boundary=\"a",
            "multipart/form-data; boundary=a b",
            "multipart/form-data; boundary=a, multipart/form-data; boundary=b",
            "multipart/form-data; boundary=a; x=y",
            "multipart/mixed; boundary=a",
            "application/json",
            long.as_str(),
        ] {
            assert!(media(ModelPlace::Form, &[bad]).is_err(), "{bad}");
        }
        assert!(media(ModelPlace::Form, &[]).is_err());
    }

    #[test]
    fn encoded_bodies_are_refused() {
        for (encoding, passes) in [
            ("identity", true),
            ("gzip", false),
            ("identity, br", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(header::CONTENT_ENCODING, encoding.parse().unwrap());
            assert_eq!(
                Media::of(&headers, ModelPlace::Json).is_ok(),
                passes,
                "{encoding}"
            );
        }
    }
}
