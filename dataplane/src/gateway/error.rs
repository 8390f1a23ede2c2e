//! What the gateway itself answers when a request cannot be served: status, stable code, source and
//! retry advice come from the kind of error, in one place.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::body::ResponseBody;
use crate::{
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
    #[error(
        "the bodies of requests in flight take all of the {most} bytes that this worker has for them; try again, or \
         raise --max-buffered-bytes"
    )]
    Overloaded { most: usize },
    #[error("the body is not a JSON object: {0}")]
    NotJson(String),
    #[error("you must provide a `model`, a string")]
    ModelMissing,
    #[error("the model `{0}` does not exist; GET /v1/models lists those that do")]
    UnknownModel(String),
    #[error("this worker has no configuration yet; it waits for the control plane")]
    NotConfigured,
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
            E::NotConfigured => (503, "server_error", "not_configured", Gateway),
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
            Self::Acquire(
                AcquireError::QueueFull(busy)
                | AcquireError::Crowded(busy)
                | AcquireError::Timeout { busy, .. }
                | AcquireError::Impatient { busy, .. },
            ) => Some(busy.retry_after),
            Self::NotConfigured
            | Self::Overloaded { .. }
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
                | Self::NotConfigured
                | Self::Overloaded { .. }
                | Self::UpstreamReset { sent: false, .. }
        )
    }

    /// For a name that a client made up: short, and without what could forge a line of a log.
    pub(super) fn unknown_model(name: &str) -> Self {
        let plain = |c: char| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        };
        Self::UnknownModel(name.chars().take(128).map(plain).collect())
    }

    fn param(&self) -> Option<&'static str> {
        matches!(self, Self::ModelMissing | Self::UnknownModel(_)).then_some("model")
    }

    /// The answer, in OpenAI's shape.
    pub(super) fn to_response(&self) -> Response<ResponseBody> {
        let shape = self.shape();
        let error = json!({ "error": {
            "message": self.to_string(),
            "type": shape.kind,
            "param": self.param(),
            "code": shape.code,
        }});
        let mut response = Response::new(ResponseBody::full(Bytes::from(error.to_string())));
        *response.status_mut() = shape.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(after) = self.retry_after() {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            let seconds = millis.div_ceil(1_000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            // The official SDKs look at this one first; it spreads those who were refused together.
            headers.insert("retry-after-ms", HeaderValue::from(millis));
        }
        if self.is_final() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let Self::MethodNotAllowed { allowed, .. } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}
