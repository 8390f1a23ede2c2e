//! Messages as documents: protobuf's canonical JSON, as grpcurl prints it, or the same as YAML.

use anyhow::{Context as _, anyhow};
use forebay_proto::wire;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;
use serde_path_to_error::{Deserializer, Path, Segment, Track};

use crate::{args::Output, commands::credentials};

/// Fields of a model that only the server says, in JSON's spelling.
const OUTPUT_ONLY: [&str; 7] = [
    "etag",
    "revision",
    "createTime",
    "updateTime",
    "resolvedPool",
    "resolvedTimeouts",
    "probeResults",
];
/// What a printed list has beside its models.
const LIST_FIELDS: [&str; 2] = ["revision", "nextPageToken"];
const OUTPUT_ONLY_POOL: [&str; 2] = ["keepalive", "coverage"];

/// The message of this name in `forebay.v1` as JSON.
pub(crate) fn to_value(name: &str, message: &impl Message) -> anyhow::Result<Value> {
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(name)?, bytes.as_slice())?;
    Ok(serde_json::to_value(dynamic)?)
}

/// The text of a value in the form that was asked for.
pub(crate) fn print(value: &Value, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Yaml => Ok(serde_saphyr::to_string(value)?.trim_end().to_owned()),
        Output::Json | Output::Table => Ok(serde_json::to_string_pretty(value)?),
    }
}

/// Reads models: one, a list, or `models:`; JSON or YAML. Unknown fields are refused by name.
pub(crate) fn read_models(text: &str) -> anyhow::Result<Vec<wire::Model>> {
    let value: Value = serde_saphyr::from_str(text).context("neither JSON nor YAML")?;
    let models = match value {
        Value::Array(models) => models,
        // Also as a list is printed, with its revision.
        Value::Object(mut fields) if fields.contains_key("models") => {
            LIST_FIELDS
                .iter()
                .for_each(|name| drop(fields.remove(*name)));
            if let Some(unknown) = fields.keys().find(|name| *name != "models") {
                return Err(anyhow!("`{unknown}` is not a field of a list of models"));
            }
            match fields.remove("models") {
                Some(Value::Array(models)) => models,
                _ => return Err(anyhow!("`models` must be a list")),
            }
        }
        model @ Value::Object(_) => vec![model],
        _ => return Err(anyhow!("expected a model, a list of models, or `models:`")),
    };
    models
        .into_iter()
        .enumerate()
        .map(|(n, model)| read_model(model).with_context(|| format!("model {}", n + 1)))
        .collect()
}

/// A model as `apply` reads it: without what only the server says.
pub(crate) fn exported(model: &wire::Model) -> anyhow::Result<Value> {
    let mut value = to_value("Model", model)?;
    if let Some(fields) = value.as_object_mut() {
        OUTPUT_ONLY
            .iter()
            .for_each(|name| drop(fields.remove(*name)));
        if let Some(pool) = fields.get_mut("pool").and_then(Value::as_object_mut) {
            OUTPUT_ONLY_POOL
                .iter()
                .for_each(|name| drop(pool.remove(*name)));
        }
        if fields
            .get("pool")
            .and_then(Value::as_object)
            .is_some_and(serde_json::Map::is_empty)
        {
            fields.remove("pool");
        }
    }
    Ok(value)
}

fn read_model(mut value: Value) -> anyhow::Result<wire::Model> {
    credentials::resolve(&mut value)?;
    let mut track = Track::new();
    let tracked = Deserializer::new(&value, &mut track);
    let dynamic = DynamicMessage::deserialize(descriptor("Model")?, tracked);
    let dynamic = dynamic.map_err(|error| {
        let path = track.path();
        match found(&value, &path) {
            Some(found) => anyhow!("{path}: {found} is not valid: {error}"),
            None => anyhow!("{path}: {error}"),
        }
    })?;
    Ok(dynamic.transcode_to()?)
}

/// The value at a path, if it is short enough to repeat.
fn found<'a>(value: &'a Value, path: &Path) -> Option<&'a Value> {
    let found = path
        .iter()
        .try_fold(value, |value, segment| match segment {
            Segment::Map { key } => value.get(key),
            Segment::Seq { index } => value.get(index),
            Segment::Enum { .. } | Segment::Unknown => None,
        })?;
    (!found.is_object() && !found.is_array()).then_some(found)
}

fn descriptor(name: &str) -> anyhow::Result<MessageDescriptor> {
    let pool = DescriptorPool::decode(wire::DESCRIPTOR_SET)?;
    let full = format!("forebay.v1.{name}");
    pool.get_message_by_name(&full)
        .ok_or_else(|| anyhow!("no message {full}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "
models:
  - id: llama
    aliases: [default]
    endpoints:
      - url: http://10.0.0.5:8000
        weight: 2
    pool: {maxConcurrent: 50, idleTimeout: 4s, queue: {maxWait: 30s}}
    probe: {mode: PROBE_MODE_ENFORCE, servedName: /models/llama}
";

    #[test]
    fn what_is_exported_can_be_applied() {
        let models = read_models(YAML).unwrap();
        let pool = models[0].pool.as_ref().unwrap();
        assert_eq!(
            (pool.max_concurrent, pool.idle_timeout.unwrap().seconds),
            (Some(50), 4)
        );
        let shown = wire::Model {
            etag: "\"x\"".into(),
            revision: 7,
            resolved_pool: models[0].pool.clone(),
            probe_results: vec![wire::ProbeResult::default()],
            ..models[0].clone()
        };
        for output in [Output::Json, Output::Yaml] {
            let text = print(&exported(&shown).unwrap(), output).unwrap();
            assert_eq!(read_models(&text).unwrap(), models, "{text}");
        }
    }

    #[test]
    fn unknown_fields_and_nonsense_are_named() {
        for (text, part) in [
            ("{id: a, poool: {}}", "poool"),
            (
                "{id: a, pool: {idleTimeout: soon}}",
                "pool.idleTimeout: \"soon\"",
            ),
            ("{id: a, endpoints: [{url: 7}]}", "endpoints[0].url: 7"),
            ("just text", "expected a model"),
            ("{models: 7}", "must be a list"),
            ("a: [", "neither"),
        ] {
            let error = format!("{:#}", read_models(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
