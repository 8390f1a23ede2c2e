//! `/v1/models`, answered from what is in force: ids and aliases, in OpenAI's shape.

use bytes::Bytes;
use forebay_proto::ModelId;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use super::{body::ResponseBody, error::GatewayError};
use crate::live::Live;

/// The list of everything that can stand in `model`.
pub(super) fn list(live: &Live) -> Response<ResponseBody> {
    let mut names: Vec<&ModelId> = live
        .models
        .values()
        .flat_map(|route| route.model.names())
        .collect();
    names.sort();
    let data: Vec<Value> = names.into_iter().map(|name| entry(name.as_str())).collect();
    answer(&json!({ "object": "list", "data": data }))
}

/// One of them.
pub(super) fn get(live: &Live, name: &str) -> Result<Response<ResponseBody>, GatewayError> {
    match live.route(name) {
        Some(_) => Ok(answer(&entry(name))),
        None => Err(GatewayError::unknown_model(name)),
    }
}

fn entry(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "forebay" })
}

fn answer(value: &Value) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(Bytes::from(value.to_string())));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
