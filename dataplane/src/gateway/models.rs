//! `/v1/models`, answered from what is in force: ids and aliases, in OpenAI's shape.

use bytes::Bytes;
use forebay_proto::ModelId;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use super::{body::ResponseBody, caller::Caller, error::GatewayError};
use crate::live::Live;

/// The list of everything that the caller can put in `model`.
pub(super) fn list(live: &Live, caller: &Caller) -> Response<ResponseBody> {
    let routes = live.models.values();
    let names = routes.flat_map(|route| {
        let id = &route.model.id;
        let names = route.model.names();
        names.filter(move |name| caller.may_use(name.as_str(), Some(id)))
    });
    let mut names: Vec<&ModelId> = names.collect();
    names.sort();
    let data: Vec<Value> = names.into_iter().map(|name| entry(name.as_str())).collect();
    answer(&json!({ "object": "list", "data": data }))
}

/// One of them.
pub(super) fn get(
    live: &Live,
    name: &str,
    caller: &Caller,
) -> Result<Response<ResponseBody>, GatewayError> {
    let route = live.route(name);
    caller.check(name, route.map(|route| &route.model.id))?;
    match route {
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
