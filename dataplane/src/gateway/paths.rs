//! The table of what is served, and how: methods, where the model stands, how a stream ends, what errors look
//! like. What is not in it is never forwarded, so that an engine's management paths cannot be reached through
//! the gateway. Paths are compared byte by byte, never decoded, and the path that goes upstream is ours.

use http::{Method, uri::PathAndQuery};
use percent_encoding::percent_decode_str;

use super::{error::GatewayError, stream_style::StreamStyle};

/// Something that clients can ask of an upstream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// Its path, or the pattern of it: what metrics call it.
    pub(super) path: &'static str,
    pub(super) model: ModelPlace,
    pub(super) dialect: Dialect,
    /// What its streams look like, if it has any.
    pub(super) streams: Option<StreamStyle>,
    /// It leaves nothing behind that a second one would double: it may be sent again where the model's
    /// settings allow it.
    pub(super) replays: bool,
}

impl Operation {
    /// Its answers tell of responses that the upstream keeps.
    pub(super) fn makes_responses(&self) -> bool {
        self.path == MADE
    }
}

/// Where the model stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelPlace {
    /// In the JSON body.
    Json,
    /// In the JSON body, from which clients leave it out: then it is the only one there is.
    JsonOrOnly,
    /// In a field of a form, before or behind the file.
    Form,
    /// Nowhere: a response is with the endpoint that made it.
    Response,
}

/// Whose API it is: what errors look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Anthropic,
}

const CHAT: Option<StreamStyle> = Some(StreamStyle::Chat);
const AUDIO: Option<StreamStyle> = Some(StreamStyle::Audio);

const fn operation(
    path: &'static str,
    model: ModelPlace,
    streams: Option<StreamStyle>,
) -> Operation {
    Operation {
        path,
        model,
        dialect: Dialect::OpenAi,
        streams,
        replays: true,
    }
}

const fn json(path: &'static str, streams: Option<StreamStyle>) -> Operation {
    operation(path, ModelPlace::Json, streams)
}

const fn whole(path: &'static str) -> Operation {
    json(path, None)
}

const fn anthropic(operation: Operation) -> Operation {
    Operation {
        dialect: Dialect::Anthropic,
        ..operation
    }
}

/// What is asked with POST, and has a body.
static INFERENCE: [Operation; 18] = [
    json("/v1/chat/completions", CHAT),
    json("/v1/completions", CHAT),
    whole("/v1/embeddings"),
    // It makes a response that is kept: twice is not once.
    Operation {
        replays: false,
        ..json(MADE, Some(StreamStyle::Responses))
    },
    anthropic(json("/v1/messages", Some(StreamStyle::Messages))),
    anthropic(whole("/v1/messages/count_tokens")),
    whole("/v1/rerank"),
    whole("/v2/rerank"),
    whole("/rerank"),
    whole("/v1/score"),
    whole("/score"),
    whole("/classify"),
    whole("/pooling"),
    operation("/tokenize", ModelPlace::JsonOrOnly, None),
    operation("/detokenize", ModelPlace::JsonOrOnly, None),
    operation("/v1/audio/transcriptions", ModelPlace::Form, AUDIO),
    operation("/v1/audio/translations", ModelPlace::Form, AUDIO),
    json("/v1/audio/speech", AUDIO),
];
static RESPONSE: Operation = operation(
    "/v1/responses/{id}",
    ModelPlace::Response,
    Some(StreamStyle::Responses),
);
static CANCEL: Operation = operation("/v1/responses/{id}/cancel", ModelPlace::Response, None);
const MADE: &str = "/v1/responses";
const RESPONSES: &str = "/v1/responses/";
const MODELS: &str = "/v1/models";
/// Longest id of a response.
const LONGEST_ID: usize = 128;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To be served by an upstream of the model that its body names.
    Inference(&'static Operation),
    /// To be served by the endpoint that made a response.
    Response(Kept),
    /// The list of models.
    Models,
    /// One model.
    Model(String),
}

/// What is asked about a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) operation: &'static Operation,
    pub(super) method: Method,
    pub(super) id: String,
    /// What is asked of the endpoint.
    pub(super) path: PathAndQuery,
}

/// The label of requests for paths that are not on the list.
pub(super) const UNKNOWN: &str = "unknown";

/// A request's place in the table.
#[derive(Debug)]
pub(super) struct Found {
    /// The metric's label.
    pub(super) label: &'static str,
    pub(super) dialect: Dialect,
    pub(super) target: Result<Target, GatewayError>,
}

impl Found {
    fn of(operation: &'static Operation, target: Result<Target, GatewayError>) -> Self {
        Self {
            label: operation.path,
            dialect: operation.dialect,
            target,
        }
    }

    fn ours(label: &'static str, target: Result<Target, GatewayError>) -> Self {
        Self {
            label,
            dialect: Dialect::OpenAi,
            target,
        }
    }
}

/// Finds what is asked for.
pub(super) fn find(method: &Method, path: &str, query: Option<&str>) -> Found {
    if let Some(operation) = INFERENCE.iter().find(|known| known.path == path) {
        let target = match *method {
            Method::POST => Ok(Target::Inference(operation)),
            _ => not_allowed(operation.path, "POST"),
        };
        return Found::of(operation, target);
    }
    if let Some(rest) = path.strip_prefix(RESPONSES)
        && let Some(found) = find_response(method, rest, query)
    {
        return found;
    }
    let model = match path.strip_prefix(MODELS) {
        Some("") => Some(Target::Models),
        Some(rest) => rest
            .strip_prefix('/')
            .filter(|id| !id.is_empty())
            // An id may have slashes. It is looked up and goes nowhere.
            .and_then(|id| percent_decode_str(id).decode_utf8().ok())
            .map(|id| Target::Model(id.into_owned())),
        None => None,
    };
    match model {
        Some(target) if matches!(*method, Method::GET | Method::HEAD) => {
            Found::ours(MODELS, Ok(target))
        }
        Some(_) => Found::ours(MODELS, not_allowed(MODELS, "GET, HEAD")),
        None => {
            let error = GatewayError::UnknownPath {
                method: method.to_string(),
                path: path.chars().take(200).collect(),
            };
            Found::ours(UNKNOWN, Err(error))
        }
    }
}

fn not_allowed(path: &'static str, allowed: &'static str) -> Result<Target, GatewayError> {
    Err(GatewayError::MethodNotAllowed { path, allowed })
}

/// What is asked about a response; none if this is not how one is called.
fn find_response(method: &Method, rest: &str, query: Option<&str>) -> Option<Found> {
    let (operation, id, verb) = match rest.strip_suffix("/cancel") {
        Some(id) => (&CANCEL, id, Method::POST),
        None => (&RESPONSE, rest, Method::GET),
    };
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let fits = (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(known);
    fits.then_some(())?;
    let target = if *method == verb {
        let query = match verb {
            Method::GET => response_query(query.unwrap_or_default()),
            _ => Ok(String::new()),
        };
        query.and_then(|query| {
            let path = operation.path.replace("{id}", id) + &query;
            let path = PathAndQuery::try_from(path);
            let path = path.map_err(|_| GatewayError::wrong_value("response_id", "an id"))?;
            let id = id.to_owned();
            Ok(Target::Response(Kept {
                operation,
                method: verb,
                id,
                path,
            }))
        })
    } else {
        let allowed = if verb == Method::GET { "GET" } else { "POST" };
        not_allowed(operation.path, allowed)
    };
    Some(Found::of(operation, target))
}

/// What of a query goes on: whether a stream is wanted, and from where. All else means nothing here.
fn response_query(query: &str) -> Result<String, GatewayError> {
    let (mut stream, mut after) = (None, None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, place, wanted, fits) = match name {
            "stream" => (
                "stream",
                &mut stream,
                "`true` or `false`",
                matches!(value, "true" | "false"),
            ),
            "starting_after" => (
                "starting_after",
                &mut after,
                "a number",
                (1..=18).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit()),
            ),
            _ => continue,
        };
        if !fits {
            return Err(GatewayError::wrong_value(name, wanted));
        }
        if place.replace(format!("{name}={value}")).is_some() {
            return Err(GatewayError::Twice { name });
        }
    }
    let parts: Vec<String> = stream.into_iter().chain(after).collect();
    Ok(match parts.is_empty() {
        true => String::new(),
        false => format!("?{}", parts.join("&")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(method: Method, path: &str) -> Result<Target, GatewayError> {
        find(&method, path, None).target
    }

    #[test]
    fn only_the_table_is_served() {
        for operation in &INFERENCE {
            let found = target(Method::POST, operation.path).unwrap();
            assert_eq!(found, Target::Inference(operation));
            for method in [Method::GET, Method::PUT, Method::HEAD, Method::CONNECT] {
                let refused = target(method, operation.path);
                assert!(matches!(
                    refused,
                    Err(GatewayError::MethodNotAllowed { .. })
                ));
            }
        }
        let get = |path| target(Method::GET, path);
        assert_eq!(get("/v1/models").unwrap(), Target::Models);
        for path in ["/v1/models/a%2Fb", "/v1/models/a/b"] {
            assert_eq!(get(path).unwrap(), Target::Model("a/b".into()));
        }
        for path in [
            "/metrics",
            "/v1/load_lora_adapter",
            "/v1/chat/completions/",
            "/v1/chat/completions/render",
            "//v1/chat/completions",
            "/V1/chat/completions",
            "/v1%2fchat/completions",
            "/v1/./chat/completions",
            "/v1/../metrics",
            "/v1/models/",
            "/v1/models/%ff",
            "/v1/responses/",
            "/v1/responses/../metrics",
            "/v1/responses/%2e%2e",
            "/v1/responses/a/b",
            "/v1/responses/a/cancel/",
            "/v1/responses//cancel",
            "/v1/responses/a/input_items",
            "/",
            "*",
            "",
        ] {
            for method in [Method::GET, Method::POST, Method::OPTIONS] {
                let refused = target(method, path);
                assert!(
                    matches!(refused, Err(GatewayError::UnknownPath { .. })),
                    "{path}"
                );
            }
        }
        assert!(matches!(
            target(Method::POST, "/v1/models"),
            Err(GatewayError::MethodNotAllowed { .. })
        ));
        let long = format!("/v1/responses/{}", "a".repeat(LONGEST_ID + 1));
        assert!(get(&long).is_err());
    }

    #[test]
    fn of_a_query_only_what_is_known_goes_on() {
        let path = |query| match find(&Method::GET, "/v1/responses/resp_1", query).target {
            Ok(Target::Response(kept)) => Ok(kept.path.to_string()),
            other => Err(other),
        };
        assert_eq!(path(None).unwrap(), "/v1/responses/resp_1");
        let query = "include[]=x&starting_after=5&stream=true&api_key=y&a";
        assert_eq!(
            path(Some(query)).unwrap(),
            "/v1/responses/resp_1?stream=true&starting_after=5"
        );
        for bad in [
            "stream=1",
            "stream",
            "starting_after=-1",
            "stream=true&stream=false",
            "starting_after=1%26x",
        ] {
            assert!(path(Some(bad)).is_err(), "{bad}");
        }
        let cancel = find(
            &Method::POST,
            "/v1/responses/resp_1/cancel",
            Some("stream=true"),
        );
        assert_eq!(cancel.label, "/v1/responses/{id}/cancel");
        let Ok(Target::Response(kept)) = cancel.target else {
            panic!("it is served")
        };
        assert_eq!(kept.path, "/v1/responses/resp_1/cancel");
        let deleted = find(&Method::DELETE, "/v1/responses/resp_1", None);
        assert!(matches!(
            deleted.target,
            Err(GatewayError::MethodNotAllowed { allowed: "GET", .. })
        ));
    }
}
