//! What the gateway itself answers when a request cannot be served: status, stable code, source and
//! retry advice come from the kind of error, in one place.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use tokio::time::Instant;

use super::{auth::Stranger, body::ResponseBody};
use crate::{
    keys::{LiveKey, Quota, Refused},
    metrics::Source,
    pool::{AcquireError, SendError},
};

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayError {
    #[error("no such path: {method} {path}; this gateway serves the OpenAI API below /v1")]
    UnknownPath { method: String, path: String },
    #[error("{path} takes {allowed}")]
    MethodNotAllowed {
        path: &'static str,
        allowed: &'static str,
    },
    #[error("the body cannot be read: {0}")]
    BodyBroken(String),
    #[error("the body did not arrive within {0:?}; send it faster or smaller")]
    BodyTimeout(Duration),
    #[error("the body is larger than {limit} bytes; shorten it or raise --max-body-bytes")]
    BodyTooLarge { limit: usize },
    #[error("the body is not a JSON object: {0}")]
    NotJson(String),
    #[error("you must provide a `model`, a string")]
    ModelMissing,
    #[error("the model `{0}` does not exist; GET /v1/models lists those that do")]
    UnknownModel(String),
    #[error("this worker has no configuration yet; it waits for the control plane")]
    NotConfigured,
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
            E::UnknownPath { .. } => (404, "invalid_request_error", "not_found", Client),
            E::MethodNotAllowed { .. } => {
                (405, "invalid_request_error", "method_not_allowed", Client)
            }
            E::BodyBroken(_) => (400, "invalid_request_error", "invalid_body", Client),
            E::BodyTimeout(_) => (408, "invalid_request_error", "request_timeout", Client),
            E::BodyTooLarge { .. } => (413, "invalid_request_error", "body_too_large", Client),
            E::NotJson(_) => (400, "invalid_request_error", "invalid_json", Client),
            E::ModelMissing => (400, "invalid_request_error", "model_missing", Client),
            E::UnknownModel(_) => (404, "invalid_request_error", "model_not_found", Client),
            E::Stranger(_) => (401, "invalid_request_error", "invalid_api_key", Client),
            E::TwoKeys => (400, "invalid_request_error", "two_api_keys", Client),
            E::ModelNotAllowed(_) => (403, "invalid_request_error", "model_not_allowed", Client),
            E::Limited { .. } => (429, "rate_limit_error", "rate_limit_exceeded", Client),
            E::NotConfigured => (503, "server_error", "not_configured", Gateway),
            E::Acquire(AcquireError::QueueFull(_)) => {
                (429, "rate_limit_error", "queue_full", Gateway)
            }
            E::Acquire(AcquireError::Timeout { .. }) => (503, "server_error", "saturated", Gateway),
            E::Acquire(AcquireError::Connect { .. }) => {
                (502, "server_error", "upstream_connect", Upstream)
            }
            E::Acquire(AcquireError::WrongModel { .. }) => {
                (503, "server_error", "wrong_model", Upstream)
            }
            E::UpstreamReset { .. } | E::UpstreamProtocol { .. } => {
                (502, "server_error", "upstream_reset", Upstream)
            }
            E::UpstreamTimeout { .. } => (504, "server_error", "upstream_timeout", Upstream),
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

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Acquire(AcquireError::QueueFull(busy) | AcquireError::Timeout { busy, .. }) => {
                Some(busy.retry_after)
            }
            Self::Limited { refused, .. } => Some(refused.again()),
            Self::NotConfigured
            | Self::Acquire(AcquireError::Connect { .. })
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
                | Self::UpstreamReset { sent: false, .. }
        )
    }

    /// For a name that a client made up: short, and without what could forge a line of a log.
    pub(super) fn unknown_model(name: &str) -> Self {
        Self::UnknownModel(plain(name))
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
        let of_model = matches!(
            self,
            Self::ModelMissing | Self::UnknownModel(_) | Self::ModelNotAllowed(_)
        );
        of_model.then_some("model")
    }

    /// The answer, in the shape that the clients of a path know: OpenAI's, or Anthropic's.
    pub(super) fn to_response(&self, path: &str) -> Response<ResponseBody> {
        let shape = self.shape();
        let error = match path.starts_with("/v1/messages") {
            true => json!({ "type": "error", "error": {
                "type": anthropic(shape.status),
                "message": self.to_string(),
            }}),
            false => json!({ "error": {
                "message": self.to_string(),
                "type": shape.kind,
                "param": self.param(),
                "code": shape.code,
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
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(after)));
        }
        if self.is_final() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if matches!(self, Self::Stranger(_)) {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        if let Self::MethodNotAllowed { allowed, .. } = self {
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

/// Anthropic's word for a status.
fn anthropic(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "overloaded_error",
        _ => "api_error",
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
