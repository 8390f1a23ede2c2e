//! What the gateway itself answers when a request cannot be served: status, stable code, source and
//! retry advice come from the kind of error, in one place.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use forebay_proto::{ModelId, violation::InvalidValue};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use tokio::time::Instant;

use super::{
    auth::Stranger,
    body::{ResponseBody, StreamFailed},
    head::HeadError,
    paths::Dialect,
};
use crate::{
    keys::{LiveKey, Quota, Refused},
    metrics::Source,
    pool::{AcquireError, SendError},
};

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayError {
    #[error("no such path: {method} {path}; this gateway serves the OpenAI API below /v1")]
    UnknownPath { method: String, path: String },
    #[error("{path} takes {allowed}")]
    MethodNotAllowed {
        path: &'static str,
        allowed: &'static str,
    },
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("the body cannot be read: {0}")]
    BodyBroken(String),
    #[error(
        "the body came slower than 1 KiB/s, or took longer than {0:?}; send it faster or smaller"
    )]
    BodyTimeout(Duration),
    #[error("the body is larger than {limit} bytes; shorten it or raise --max-body-bytes")]
    BodyTooLarge { limit: usize },
    #[error(
        "the bodies of requests in flight take all of the {most} bytes that this worker has for them; try again, or \
         raise --max-buffered-bytes"
    )]
    Overloaded { most: usize },
    #[error("{header} is {found}; send {wanted}")]
    MediaType {
        header: &'static str,
        found: String,
        wanted: &'static str,
    },
    #[error("the body is not a JSON object that has one meaning only: {what} at byte {at}")]
    NotJson { what: &'static str, at: usize },
    #[error("the body is not a form that has one meaning only: {what}")]
    NotAForm { what: &'static str },
    #[error("the body has `{name}` twice; which one counts depends on who reads it")]
    Twice { name: &'static str },
    #[error("write `{name}` like this; some engines ignore the case of letters and some do not")]
    OtherwiseWritten { name: &'static str },
    #[error("`{name}` is not for clients to say: where a model is served is configured")]
    NotForClients { name: &'static str },
    #[error("`{name}` must be {wanted}")]
    WrongValue {
        name: &'static str,
        wanted: &'static str,
    },
    #[error("you must provide a `model`, a string")]
    ModelMissing,
    #[error("you must provide a `model`; there are several: {0}")]
    ModelWanted(String),
    #[error("`model` is no name of a model: {0}")]
    ModelInvalid(InvalidValue),
    #[error("response `{id}` is not known: {why}")]
    UnknownResponse { id: String, why: &'static str },
    #[error("the model `{0}` does not exist; GET /v1/models lists those that do")]
    UnknownModel(String),
    #[error("this worker has no configuration yet; it waits for the control plane")]
    NotConfigured,
    #[error("this worker stops; ask again, and another one will answer")]
    Draining,
    #[error(
        "this worker is cut off from the control plane, and what it was lent of the limit of model `{model}` has run out; \
         ask again, and another one will answer"
    )]
    LeaseLost { model: String },
    #[error("{}", .0.words())]
    Stranger(Stranger),
    #[error("`authorization` and `x-api-key` have different keys; send one of them")]
    TwoKeys,
    #[error("this key may not use the model `{0}`; GET /v1/models lists those that it may")]
    ModelNotAllowed(String),
    #[error("this key has reached its limit of {refused} on this worker; try again in {} s", seconds(refused.again()))]
    Limited {
        refused: Refused,
        quota: Option<Quota>,
    },
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    #[error("endpoint `{endpoint}` of model `{model}` gave no answer that can be used: {error}")]
    UpstreamReset {
        model: String,
        endpoint: String,
        error: SendError,
        /// It may have run.
        sent: bool,
    },
    #[error(
        "endpoint `{endpoint}` of model `{model}` answered {status}, and no other took the request"
    )]
    Declined {
        model: String,
        endpoint: String,
        status: StatusCode,
        /// When it may be asked again.
        after: Option<Duration>,
    },
    #[error("endpoint `{endpoint}` of model `{model}` answered with {rule}")]
    UpstreamProtocol {
        model: String,
        endpoint: String,
        rule: &'static str,
    },
    #[error("endpoint `{endpoint}` of model `{model}` did not answer within {within:?}")]
    UpstreamTimeout {
        model: String,
        endpoint: String,
        within: Duration,
    },
}

const INVALID: &str = "invalid_request_error";

/// How an error shows itself.
struct Shape {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    source: Source,
}

impl GatewayError {
    fn shape(&self) -> Shape {
        use GatewayError as E;
        use Source::{Client, Gateway, Upstream};
        let (status, kind, code, source) = match self {
            E::UnknownPath { .. } => (404, INVALID, "not_found", Client),
            E::MethodNotAllowed { .. } => (405, INVALID, "method_not_allowed", Client),
            E::Head(error) => {
                let (status, code) = error.shape();
                (status, INVALID, code, Client)
            }
            E::BodyBroken(_) => (400, INVALID, "invalid_body", Client),
            E::BodyTimeout(_) => (408, INVALID, "request_timeout", Client),
            E::BodyTooLarge { .. } => (413, INVALID, "body_too_large", Client),
            E::MediaType { .. } => (415, INVALID, "unsupported_media_type", Client),
            E::NotJson { .. } => (400, INVALID, "invalid_json", Client),
            E::NotAForm { .. } => (400, INVALID, "invalid_form", Client),
            E::Twice { .. } | E::OtherwiseWritten { .. } => (400, INVALID, "ambiguous_key", Client),
            E::NotForClients { .. } => (400, INVALID, "forbidden_key", Client),
            E::WrongValue { .. } => (400, INVALID, "invalid_value", Client),
            E::ModelMissing | E::ModelWanted(_) => (400, INVALID, "model_missing", Client),
            E::ModelInvalid(_) => (400, INVALID, "invalid_model", Client),
            E::UnknownResponse { .. } => (404, INVALID, "response_not_found", Client),
            E::UnknownModel(_) => (404, INVALID, "model_not_found", Client),
            E::Stranger(_) => (401, INVALID, "invalid_api_key", Client),
            E::TwoKeys => (400, INVALID, "two_api_keys", Client),
            E::ModelNotAllowed(_) => (403, INVALID, "model_not_allowed", Client),
            E::Limited { .. } => (429, "rate_limit_error", "rate_limit_exceeded", Client),
            E::NotConfigured => (503, "server_error", "not_configured", Gateway),
            E::Draining | E::Acquire(AcquireError::Leaving { .. }) => {
                (503, "server_error", "draining", Gateway)
            }
            E::LeaseLost { .. } => (503, "server_error", "lease_lost", Gateway),
            E::Acquire(AcquireError::QueueFull(_)) => {
                (429, "rate_limit_error", "queue_full", Gateway)
            }
            E::Acquire(
                AcquireError::Timeout { .. }
                | AcquireError::Crowded(_)
                | AcquireError::Impatient { .. },
            ) => (503, "server_error", "saturated", Gateway),
            E::Overloaded { .. } => (503, "server_error", "overloaded", Gateway),
            E::Acquire(AcquireError::Connect { .. }) => {
                (502, "server_error", "upstream_connect", Upstream)
            }
            E::Acquire(AcquireError::NoEndpoint { .. }) => {
                (503, "server_error", "no_endpoint", Gateway)
            }
            E::Acquire(AcquireError::WrongModel { .. }) => {
                (503, "server_error", "wrong_model", Upstream)
            }
            E::UpstreamReset { .. } | E::UpstreamProtocol { .. } => {
                (502, "server_error", "upstream_reset", Upstream)
            }
            E::Declined { .. } => (503, "server_error", "upstream_busy", Upstream),
            E::UpstreamTimeout { .. } => (504, "server_error", "upstream_timeout", Upstream),
        };
        let status = match self {
            Self::Declined { status, .. } => status.as_u16(),
            _ => status,
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Shape {
            status,
            kind,
            code,
            source,
        }
    }

    /// By whom the request failed.
    pub(super) fn source(&self) -> Source {
        self.shape().source
    }

    /// Its request was not read to its end, or nobody can say where that is.
    pub(super) fn leaves_unread(&self) -> bool {
        use GatewayError as E;
        matches!(
            self,
            E::Head(_)
                | E::MediaType { .. }
                | E::Stranger(_)
                | E::TwoKeys
                | E::BodyBroken(_)
                | E::BodyTimeout(_)
                | E::BodyTooLarge { .. }
                | E::Overloaded { .. }
                | E::NotConfigured
        )
    }

    /// The methods that would have done.
    fn allowed(&self) -> Option<&'static str> {
        match self {
            Self::MethodNotAllowed { allowed, .. } => Some(allowed),
            Self::Head(HeadError::Method) => Some("GET, POST"),
            _ => None,
        }
    }

    /// As it is told in a stream that has begun.
    pub(super) fn in_stream(&self) -> StreamFailed {
        let shape = self.shape();
        StreamFailed::Refused {
            message: self.to_string(),
            code: shape.code,
            status: shape.status.as_u16(),
            by: shape.source,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Acquire(
                AcquireError::QueueFull(busy)
                | AcquireError::Crowded(busy)
                | AcquireError::Timeout { busy, .. }
                | AcquireError::Impatient { busy, .. },
            ) => Some(busy.retry_after),
            Self::Declined { after, .. } => *after,
            Self::Limited { refused, .. } => Some(refused.again()),
            Self::NotConfigured
            | Self::Draining
            | Self::LeaseLost { .. }
            | Self::Overloaded { .. }
            | Self::Acquire(
                AcquireError::Connect { .. }
                | AcquireError::NoEndpoint { .. }
                | AcquireError::Leaving { .. },
            )
            | Self::UpstreamReset { sent: false, .. } => Some(Duration::from_secs(1)),
            // As often as it is asked again, unless told otherwise.
            Self::Acquire(AcquireError::WrongModel { .. }) => Some(Duration::from_secs(30)),
            _ => None,
        }
    }

    /// A retry would end the same way, or do the work twice.
    fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Acquire(_)
                | Self::Limited { .. }
                | Self::NotConfigured
                | Self::Draining
                | Self::LeaseLost { .. }
                | Self::Overloaded { .. }
                | Self::Declined { .. }
                | Self::UpstreamReset { sent: false, .. }
        )
    }

    /// A key with a value of another kind.
    pub(super) fn wrong_value(name: &'static str, wanted: &'static str) -> Self {
        Self::WrongValue { name, wanted }
    }

    /// For a name that a client made up: short, and without what could forge a line of a log.
    pub(super) fn unknown_model(name: &str) -> Self {
        // What no model can be called is a fault of the request, not of the configuration.
        if let Err(invalid) = ModelId::new(name) {
            return match name {
                "" => Self::ModelMissing,
                _ => Self::ModelInvalid(invalid),
            };
        }
        Self::UnknownModel(name.to_owned())
    }

    /// The same for a model that the caller may not use, whether there is one or not.
    pub(super) fn model_not_allowed(name: &str) -> Self {
        Self::ModelNotAllowed(plain(name))
    }

    /// A key that came up against a limit.
    pub(super) fn limited(refused: Refused, key: Option<&Arc<LiveKey>>, now: Instant) -> Self {
        let quota = key.and_then(|key| Quota::of(key, now));
        Self::Limited { refused, quota }
    }

    /// How the caller stands who was refused by its limits.
    pub(super) fn quota(&self) -> Option<Quota> {
        match self {
            Self::Limited { quota, .. } => *quota,
            _ => None,
        }
    }

    /// The metric's label, of one who was refused for its key.
    pub(super) fn auth_reason(&self) -> Option<&'static str> {
        match self {
            Self::Stranger(stranger) => Some(stranger.label()),
            Self::TwoKeys => Some("two_keys"),
            Self::ModelNotAllowed(_) => Some("model"),
            Self::Limited { refused, .. } => Some(refused.label()),
            _ => None,
        }
    }

    fn param(&self) -> Option<&'static str> {
        match self {
            Self::ModelMissing
            | Self::ModelWanted(_)
            | Self::ModelInvalid(_)
            | Self::ModelNotAllowed(_)
            | Self::UnknownModel(_) => Some("model"),
            Self::Twice { name }
            | Self::OtherwiseWritten { name }
            | Self::NotForClients { name }
            | Self::WrongValue { name, .. } => Some(name),
            Self::UnknownResponse { .. } => Some("response_id"),
            _ => None,
        }
    }

    /// The answer, in the shape that the clients of the path know.
    pub(super) fn to_response(&self, dialect: Dialect) -> Response<ResponseBody> {
        let shape = self.shape();
        let error = match dialect {
            Dialect::OpenAi => json!({ "error": {
                "message": self.to_string(),
                "type": shape.kind,
                "param": self.param(),
                "code": shape.code,
            }}),
            Dialect::Anthropic => json!({ "type": "error", "error": {
                "type": anthropic_type(shape.status),
                "message": self.to_string(),
            }}),
        };
        let mut response = Response::new(ResponseBody::full(Bytes::from(error.to_string())));
        *response.status_mut() = shape.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(after) = self.retry_after() {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(after)));
            // The official SDKs look at this one first; it spreads those who were refused together.
            headers.insert("retry-after-ms", HeaderValue::from(millis));
        }
        if self.is_final() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if matches!(self, Self::Stranger(_)) {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        if let Some(allowed) = self.allowed() {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

/// Whole seconds, at least one: what comes again sooner comes for nothing.
fn seconds(after: Duration) -> u64 {
    after.as_secs() + u64::from(after.subsec_nanos() > 0 || after.is_zero())
}

/// Short, and without what could forge a line of a log.
fn plain(name: &str) -> String {
    let plain = |c: char| match c.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    name.chars().take(128).map(plain).collect()
}

/// What Anthropic's clients tell errors apart by.
fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

impl Stranger {
    fn words(self) -> &'static str {
        match self {
            Self::Missing => {
                "you must provide an API key, as `authorization: Bearer fbk_…` or `x-api-key`"
            }
            Self::NoKeys => {
                "this gateway asks for an API key, and there is none yet; its operator makes one with \
                 `forebay keys create`"
            }
            Self::Unknown => "the API key is not known; it may have been revoked",
            Self::Expired => "the API key has expired",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NoKeys => "no_keys",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
        }
    }
}
