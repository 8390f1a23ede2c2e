//! Asks an engine for the usage of a stream whose client did not: adds `stream_options.include_usage` to the body.
//!
//! The body was read before and is one JSON object. Nothing but the option is added or changed; where it is not clear
//! that this is all that would happen, nothing is.

use std::ops::Range;

use bytes::Bytes;

use super::json_string::JsonString;

const OPTIONS: &str = "\"stream_options\":{\"include_usage\":true}";
const VALUE: &str = "{\"include_usage\":true}";

/// Where in a body the option is, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spans {
    /// The value of `stream_options`.
    pub(super) options: Option<Range<usize>>,
    /// The brace that ends the object.
    pub(super) end: usize,
}

/// The body of a stream with the option in it; none if it has it already, or cannot be given it.
pub(super) fn inject(body: &[u8], spans: &Spans) -> Option<Bytes> {
    let Some(options) = &spans.options else {
        return Some(splice(body, spans.end..spans.end, &format!(",{OPTIONS}")));
    };
    let value = body.get(options.clone())?;
    if value == b"null" {
        return Some(splice(body, options.clone(), VALUE));
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
            b"false" | b"null" => Some(splice(body, at(field.value.clone()), "true")),
            _ => None,
        },
        None => {
            let comma = if fields.is_empty() { "" } else { "," };
            let option = format!("\"include_usage\":true{comma}");
            Some(splice(body, at(1..1), &option))
        }
    }
}

/// Where it goes, if this body asks for a stream.
pub(super) fn find(body: &[u8]) -> Option<Spans> {
    let fields = fields(body)?;
    let value = |name: &str| {
        let mut named = fields.iter().filter(|field| field.key == name.as_bytes());
        let first = named.next();
        // Of two, engines take one or the other.
        named.next().is_none().then_some(first)
    };
    let stream = value("\"stream\"")??.value.clone();
    (body.get(stream)? == b"true").then_some(())?;
    Some(Spans {
        options: value("\"stream_options\"")?.map(|field| field.value.clone()),
        end: body.iter().rposition(|byte| *byte == b'}')?,
    })
}

fn splice(body: &[u8], at: Range<usize>, text: &str) -> Bytes {
    let (before, after) = (body.get(..at.start), body.get(at.end..));
    let parts = [
        before.unwrap_or_default(),
        text.as_bytes(),
        after.unwrap_or_default(),
    ];
    Bytes::from(parts.concat())
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
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn injected(body: &str) -> Option<String> {
        let spans = find(body.as_bytes())?;
        let body = inject(body.as_bytes(), &spans)?;
        Some(String::from_utf8(body.to_vec()).unwrap())
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
            let mut value = json!({"model": text, "messages": [{"content": text}, [number], {}], "stream": true,
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
            if let Some(spans) = find(&body) {
                let _ = inject(&body, &spans);
            }
        }
    }
}
