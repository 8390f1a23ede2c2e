//! The allow-list of paths. What is not on it is never forwarded, so that an engine's management
//! paths cannot be reached through the gateway.

use http::Method;
use percent_encoding::percent_decode_str;

use super::error::GatewayError;

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// To be served by an upstream; the model stands in the JSON body.
    Inference(&'static str),
    /// The list of models.
    Models,
    /// One model.
    Model(String),
}

/// The label of requests for paths that are not on the list.
pub(super) const UNKNOWN: &str = "unknown";

const INFERENCE: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];
const MODELS: &str = "/v1/models";

impl Target {
    /// Finds what is asked for.
    pub(super) fn find(method: &Method, path: &str) -> Result<Self, GatewayError> {
        if let Some(known) = INFERENCE.into_iter().find(|known| *known == path) {
            return match *method {
                Method::POST => Ok(Self::Inference(known)),
                _ => Err(GatewayError::MethodNotAllowed {
                    path: known,
                    allowed: "POST",
                }),
            };
        }
        let model = match path.strip_prefix(MODELS) {
            Some("") => Some(Self::Models),
            Some(rest) => rest
                .strip_prefix('/')
                .filter(|id| !id.is_empty())
                .map(|id| Self::Model(percent_decode_str(id).decode_utf8_lossy().into_owned())),
            None => None,
        };
        match model {
            Some(target) if matches!(*method, Method::GET | Method::HEAD) => Ok(target),
            Some(_) => Err(GatewayError::MethodNotAllowed {
                path: MODELS,
                allowed: "GET",
            }),
            None => Err(GatewayError::UnknownPath {
                method: method.to_string(),
                path: path.chars().take(200).collect(),
            }),
        }
    }

    /// The metric's label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Inference(path) => path,
            Self::Models | Self::Model(_) => MODELS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_list_is_served() {
        let post = |path| Target::find(&Method::POST, path);
        let get = |path| Target::find(&Method::GET, path);
        assert_eq!(
            post("/v1/chat/completions").unwrap(),
            Target::Inference("/v1/chat/completions")
        );
        assert_eq!(get("/v1/models").unwrap(), Target::Models);
        assert_eq!(
            get("/v1/models/a%2Fb").unwrap(),
            Target::Model("a/b".into())
        );
        assert_eq!(get("/v1/models/a/b").unwrap(), Target::Model("a/b".into()));
        for path in [
            "/metrics",
            "/v1/load_lora_adapter",
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/v1/../metrics",
            "/v1/models/",
            "/",
        ] {
            assert!(
                matches!(post(path), Err(GatewayError::UnknownPath { .. })),
                "{path}"
            );
        }
        assert!(matches!(
            get("/v1/completions"),
            Err(GatewayError::MethodNotAllowed { .. })
        ));
        assert!(matches!(
            post("/v1/models"),
            Err(GatewayError::MethodNotAllowed { .. })
        ));
    }
}
