//! Asks an engine for the usage of a stream whose client did not: adds `stream_options.include_usage` to the body.
//!
//! The body was read before and is one JSON object. Nothing but the option is added or changed; where it is not clear
//! that this is all that would happen, nothing is.

use std::ops::Range;

use bytes::Bytes;
use forebay_proto::{StreamUsage, Streaming};

use super::{json_string::JsonString, paths::Operation, reading::Reading};
use crate::pool::Edit;

const OPTIONS: &str = "\"stream_options\":{\"include_usage\":true}";
const VALUE: &str = "{\"include_usage\":true}";

/// What is added to a body whose usage is to be asked for; none if it asks itself, or cannot be given it.
pub(super) fn edit(
    configured: &Streaming,
    operation: &Operation,
    reading: &Reading,
    body: &[u8],
) -> Option<Edit> {
    let asks = configured.usage == StreamUsage::Inject
        && reading.stream
        && !reading.include_usage
        && matches!(operation.path, "/v1/chat/completions" | "/v1/completions");
    if !asks {
        return None;
    }
    let end = body.iter().rposition(|byte| *byte == b'}')?;
    inject(body, reading.stream_options.clone(), end)
}

/// Puts the option where it belongs: `end` is the brace that ends the object.
fn inject(body: &[u8], options: Option<Range<usize>>, end: usize) -> Option<Edit> {
    let Some(options) = options else {
        return Some(replace(end..end, &format!(",{OPTIONS}")));
    };
    let value = body.get(options.clone())?;
    if value == b"null" {
        return Some(replace(options, VALUE));
    }
    let fields = fields(value)?;
    let [named, continuous] = ["\"include_usage\"", "\"continuous_usage_stats\""]
        .map(|name| fields.iter().find(|field| field.key == name.as_bytes()));
    // With usage in every event there would be more to take out again.
    if continuous.is_some_and(|field| value.get(field.value.clone()) != Some(b"false")) {
        return None;
    }
    let at = |range: Range<usize>| options.start + range.start..options.start + range.end;
    match named {
        Some(field) => match value.get(field.value.clone())? {
            b"false" | b"null" => Some(replace(at(field.value.clone()), "true")),
            _ => None,
        },
        None => {
            let comma = if fields.is_empty() { "" } else { "," };
            let option = format!("\"include_usage\":true{comma}");
            Some(replace(at(1..1), &option))
        }
    }
}

fn replace(at: Range<usize>, text: &str) -> Edit {
    let text = Bytes::copy_from_slice(text.as_bytes());
    Edit { at, text }
}

struct Field<'a> {
    /// With its quotes.
    key: &'a [u8],
    value: Range<usize>,
}

/// The fields of an object that is known to be well-formed; none if a key is escaped, as it may then be any.
fn fields(object: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    let mut at = blank(object, 0);
    (object.get(at)? == &b'{').then_some(())?;
    at = blank(object, at + 1);
    while object.get(at)? != &b'}' {
        let key = JsonString::find(object.get(at + 1..)?)?;
        (!key.escapes).then_some(())?;
        let end = at + 1 + key.len;
        let start = blank(object, blank(object, end) + 1);
        let value = start..end_of_value(object, start)?;
        fields.push(Field {
            key: object.get(at..end)?,
            value: value.clone(),
        });
        at = blank(object, value.end);
        if object.get(at)? == &b',' {
            at = blank(object, at + 1);
        }
    }
    Some(fields)
}

fn blank(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    let blanks = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    at + rest.iter().position(blanks).unwrap_or(rest.len())
}

fn end_of_value(text: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0_usize);
    loop {
        match text.get(at)? {
            b'"' => at += 1 + JsonString::find(text.get(at + 1..)?)?.len,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' if depth == 0 => return (at > start).then_some(at),
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return Some(at),
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::gateway::{
        json_body,
        paths::{self, Target},
    };

    /// With what is read of a body as the gateway reads it.
    fn injected(body: &str) -> Option<String> {
        let reading = json_body::read(body.as_bytes()).ok()?;
        let chat = paths::find(&Method::POST, "/v1/chat/completions", None).target;
        let Ok(Target::Inference(chat)) = chat else {
            panic!("there are chats");
        };
        let configured = Streaming {
            usage: StreamUsage::Inject,
            keep_alive: None,
        };
        let edit = edit(&configured, chat, &reading, body.as_bytes())?;
        let text = std::str::from_utf8(&edit.text).unwrap();
        Some([&body[..edit.at.start], text, &body[edit.at.end..]].concat())
    }

    #[test]
    fn the_option_is_put_where_it_belongs() {
        for (body, wanted) in [
            (
                r#"{"model":"m","stream":true}"#,
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                "{ \"stream\" : true , \"stream_options\" : null } \n",
                "{ \"stream\" : true , \"stream_options\" : {\"include_usage\":true} } \n",
            ),
            (
                r#"{"stream_options":{},"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                r#"{"stream_options":{"a":[1,{"b":"}"}]},"stream":true}"#,
                r#"{"stream_options":{"include_usage":true,"a":[1,{"b":"}"}]},"stream":true}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":false},"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage": null, "continuous_usage_stats":false}}"#,
                r#"{"stream":true,"stream_options":{"include_usage": true, "continuous_usage_stats":false}}"#,
            ),
        ] {
            assert_eq!(injected(body).as_deref(), Some(wanted), "{body}");
        }
    }

    #[test]
    fn what_has_it_or_is_not_clear_is_left_alone() {
        for body in [
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#,
            r#"{"stream":true,"stream_options":"x"}"#,
            r#"{"stream":true,"stream_options":[]}"#,
            r#"{"stream":false}"#,
            r#"{"stream":"true"}"#,
            r#"{"x":{"stream":true}}"#,
            r#"{"stream":true,"stream":true}"#,
            r#"{"stream":true,"stre\u0061m":false}"#,
            r#"{}"#,
            r#"[]"#,
            "",
            "{",
        ] {
            assert_eq!(injected(body), None, "{body}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_the_option_changes(
            text in "[a-z\"\\\\{}\\[\\]:,é ]{0,20}", number in any::<i64>(), pretty in any::<bool>(),
            options in prop::sample::select(vec![
                None, Some(Value::Null), Some(json!({})), Some(json!({"x": [{}]})),
                Some(json!({"include_usage": false})),
            ]),
        ) {
            let mut value = json!({"model": "m", "messages": [{"content": text}, [number], {}], "stream": true,
                "z": text});
            if let Some(options) = options {
                value["stream_options"] = options;
            }
            let body = match pretty {
                true => serde_json::to_string_pretty(&value).unwrap(),
                false => value.to_string(),
            };
            let after: Value = serde_json::from_str(&injected(&body).unwrap()).unwrap();
            if !value["stream_options"].is_object() {
                value["stream_options"] = json!({});
            }
            value["stream_options"]["include_usage"] = json!(true);
            prop_assert_eq!(after, value);
        }

        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..100)) {
            let end = body.len();
            for options in [None, Some(0..end), Some(end / 2..end), Some(end..end + 1)] {
                let _ = inject(&body, options, end);
            }
        }
    }
}
