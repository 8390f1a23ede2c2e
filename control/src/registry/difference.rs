//! What differs between two states of a resource, field by field, in the spelling of the API. Pure.

use std::sync::LazyLock;

use forebay_proto::{
    ModelSpec,
    wire::{self, resource_change::Kind},
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Value, value::Serializer};

use crate::store::history::Edit;

/// Most fields told of one resource.
const FIELDS: usize = 100;
/// Longest value told, in characters.
const VALUE_CHARS: usize = 256;
/// Most bytes of changes in one answer.
pub(crate) const TOLD_BYTES: usize = 1 << 20;

/// The changes of edits, as far as an answer goes.
pub(crate) fn told(edits: &[Edit]) -> Vec<wire::ResourceChange> {
    let mut bytes = 0;
    let changes = edits.iter().map(of);
    changes
        .take_while(|change| {
            bytes += change.encoded_len();
            bytes <= TOLD_BYTES
        })
        .collect()
}

/// The change of one edit.
pub(crate) fn of(edit: &Edit) -> wire::ResourceChange {
    let (model, name, before, after) = match edit {
        Edit::Settings { before, after } => {
            let value = |settings| value("PoolDefaults", &wire::PoolDefaults::from(settings));
            let before = before.as_ref().map(|record| value(&record.settings));
            (String::new(), "", before, Some(value(&after.settings)))
        }
        Edit::Model { id, before, after } => {
            let value = |spec| value("Model", &told_of(spec));
            let before = before.as_ref().map(|record| value(&record.spec));
            let after = after.as_ref().map(|record| value(&record.spec));
            (id.to_string(), "id", before, after)
        }
    };
    let kind = match (&before, &after) {
        (None, _) => Kind::Created,
        (_, None) => Kind::Deleted,
        _ => Kind::Updated,
    };
    let mut fields = Vec::new();
    let none = Value::Null;
    compare(
        "",
        before.as_ref().unwrap_or(&none),
        after.as_ref().unwrap_or(&none),
        &mut fields,
    );
    fields.retain(|field| field.path != name);
    let more_fields = fields.len().saturating_sub(FIELDS);
    fields.truncate(FIELDS);
    wire::ResourceChange {
        kind: kind.into(),
        model,
        fields,
        more_fields: u32::try_from(more_fields).unwrap_or(u32::MAX),
    }
}

/// Of a credential only its fingerprint is told.
fn told_of(spec: &ModelSpec) -> wire::Model {
    let mut model = wire::Model::from(spec);
    let endpoints = model.endpoints.iter_mut();
    let credentials = endpoints.filter_map(|endpoint| endpoint.credential.as_mut());
    credentials.for_each(|credential| credential.sealed.clear());
    model
}

/// A message as JSON in the spelling of its `.proto`.
fn value(name: &str, message: &impl Message) -> Value {
    static POOL: LazyLock<Option<DescriptorPool>> =
        LazyLock::new(|| DescriptorPool::decode(wire::DESCRIPTOR_SET).ok());
    let descriptor = POOL
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(&format!("forebay.v1.{name}")));
    let dynamic = descriptor.and_then(|descriptor| {
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok()
    });
    let options = SerializeOptions::new().use_proto_field_name(true);
    let json =
        dynamic.and_then(|dynamic| dynamic.serialize_with_options(Serializer, &options).ok());
    json.unwrap_or(Value::Null)
}

/// Down to what cannot be taken apart. Members of a list that have an id are compared by it.
fn compare(path: &str, before: &Value, after: &Value, fields: &mut Vec<wire::FieldChange>) {
    if before == after {
        return;
    }
    match (named(before), named(after)) {
        (None, None) => fields.push(wire::FieldChange {
            path: path.to_owned(),
            before: text(before),
            after: text(after),
        }),
        (one, other) => {
            let (one, other) = (one.unwrap_or_default(), other.unwrap_or_default());
            let find = |parts: &[(String, Value)], name: &str| {
                let found = parts.iter().find(|(known, _)| known == name);
                found.map_or(Value::Null, |(_, value)| value.clone())
            };
            let only_after = other
                .iter()
                .filter(|(name, _)| one.iter().all(|(known, _)| known != name));
            for (name, _) in one.iter().chain(only_after) {
                let path = match (path.is_empty(), name.starts_with('[')) {
                    (true, _) => name.clone(),
                    (false, true) => format!("{path}{name}"),
                    (false, false) => format!("{path}.{name}"),
                };
                compare(&path, &find(&one, name), &find(&other, name), fields);
            }
        }
    }
}

/// The parts of a value that has named ones.
fn named(value: &Value) -> Option<Vec<(String, Value)>> {
    match value {
        Value::Object(fields) => Some(
            fields
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        ),
        Value::Array(members) if !members.is_empty() => {
            let member = |member: &Value| {
                let id = member.get("id")?.as_str()?;
                let mut rest = member.clone();
                rest.as_object_mut()?.remove("id");
                Some((format!("[{id}]"), rest))
            };
            members.iter().map(member).collect()
        }
        _ => None,
    }
}

fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => return String::new(),
        value => value.to_string(),
    };
    match text.char_indices().nth(VALUE_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use forebay_proto::{ModelSpec, Revision};

    use super::*;
    use crate::store::ModelRecord;

    fn record(model: &wire::Model) -> Option<Arc<ModelRecord>> {
        Some(Arc::new(ModelRecord {
            spec: ModelSpec::try_from(model.clone()).unwrap(),
            revision: Revision::new(2),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
        }))
    }

    fn model(urls: &[&str], size: u32, aliases: &[&str]) -> wire::Model {
        let endpoint = |url: &&str| wire::Endpoint {
            url: (*url).to_owned(),
            ..wire::Endpoint::default()
        };
        wire::Model {
            id: "m".into(),
            endpoints: urls.iter().map(endpoint).collect(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            pool: Some(wire::Pool {
                max_concurrent: Some(size),
                ..wire::Pool::default()
            }),
            ..wire::Model::default()
        }
    }

    fn lines(before: Option<&wire::Model>, after: Option<&wire::Model>) -> Vec<String> {
        let id = forebay_proto::ModelId::new("m").unwrap();
        let change = of(&Edit::Model {
            id,
            before: before.and_then(record),
            after: after.and_then(record),
        });
        let line = |field: wire::FieldChange| {
            format!("{}: {} -> {}", field.path, field.before, field.after)
        };
        change.fields.into_iter().map(line).collect()
    }

    #[test]
    fn fields_are_named_as_in_the_api_and_nothing_else_is() {
        let before = model(&["http://10.0.0.5:8000"], 50, &[]);
        let after = model(
            &["http://10.0.0.6:8000", "http://10.0.0.7:8000"],
            80,
            &["x", "y"],
        );
        assert_eq!(
            lines(Some(&before), Some(&after)),
            [
                "endpoints[e1].url: \"http://10.0.0.5:8000\" -> \"http://10.0.0.6:8000\"",
                "endpoints[e2].url:  -> \"http://10.0.0.7:8000\"",
                "endpoints[e2].weight:  -> 1",
                "pool.max_concurrent: 50 -> 80",
                "aliases:  -> [\"x\",\"y\"]",
            ]
        );
        assert_eq!(lines(Some(&after), Some(&after)), Vec::<String>::new());
    }

    #[test]
    fn what_is_new_or_gone_is_told_in_full() {
        let model = model(&["http://10.0.0.5:8000"], 50, &[]);
        assert_eq!(
            lines(None, Some(&model)),
            [
                "endpoints[e1].url:  -> \"http://10.0.0.5:8000\"",
                "endpoints[e1].weight:  -> 1",
                "pool.max_concurrent:  -> 50"
            ]
        );
        assert_eq!(lines(Some(&model), None)[2], "pool.max_concurrent: 50 -> ");
    }

    #[test]
    fn a_long_value_is_cut_and_says_so() {
        let long = "\u{fc}".repeat(300);
        let cut = text(&Value::String(long));
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (257, true));
    }
}
