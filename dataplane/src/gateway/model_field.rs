//! Finds the `model` of a JSON body, in one pass, without building a tree: at a quick look, or else by a
//! parser.
//!
//! Engines take the last of two `model` keys and some parsers the first: a body that has two is
//! refused, whatever way they are escaped. The rest of the body is checked for syntax and passed on
//! byte for byte.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{error::GatewayError, json_scan};

/// The model of a request, and where its name stands in the body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ModelField {
    /// The name, unescaped.
    pub(super) name: String,
    /// The bytes of the JSON string, quotes included.
    at: Range<usize>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
}

impl ModelField {
    /// Finds it.
    pub(super) fn find(body: &[u8]) -> Result<Self, GatewayError> {
        let text = std::str::from_utf8(body)
            .map_err(|error| GatewayError::NotJson(format!("it is not UTF-8 ({error})")))?;
        match json_scan::model(text).and_then(|at| Some((text.get(at.clone())?, at))) {
            Some((quoted, at)) => Ok(Self {
                name: quoted.trim_matches('"').to_owned(),
                at,
            }),
            None => Self::parse(text),
        }
    }

    fn parse(text: &str) -> Result<Self, GatewayError> {
        // Serde would take an array for the struct.
        if !text
            .trim_start_matches([' ', '\t', '\r', '\n'])
            .starts_with('{')
        {
            return Err(GatewayError::NotJson(
                "it does not begin with `{`".to_owned(),
            ));
        }
        let fields: Fields<'_> =
            serde_json::from_str(text).map_err(|error| GatewayError::NotJson(error.to_string()))?;
        let raw = fields.model.ok_or(GatewayError::ModelMissing)?.get();
        let name = serde_json::from_str(raw).map_err(|_| GatewayError::ModelMissing)?;
        // `raw` is a part of `text`: the distance of their beginnings is its place.
        let start = (raw.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        Ok(Self {
            name,
            at: start..start + raw.len(),
        })
    }

    /// The body as the upstream must see it: with the model's own id where the client used an alias,
    /// otherwise untouched.
    pub(super) fn body_for(&self, id: &str, body: &Bytes) -> Bytes {
        let parts = (body.get(..self.at.start), body.get(self.at.end..));
        let (true, (Some(before), Some(after))) = (self.name != id, parts) else {
            return body.clone();
        };
        let id = serde_json::Value::from(id).to_string();
        Bytes::from([before, id.as_bytes(), after].concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = concat!(
        r#"{"messages": [{"role":"user","content":"a\n\u00e9\"x\\"},[],{},[1,-0.5e+3,10E2]],"#,
        r#" "model" : "a/b", "n":0, "stream":true,"stop":null,"x":[false , {"y":"z"}]} "#,
    );

    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        " ",
        "\n",
        "\"",
        "\\",
        "\"model\"",
        "\"model\":\"m\"",
        "\"a\":",
        "\"m\"",
        "0",
        "1",
        "-",
        ".",
        "e",
        "E",
        "+",
        "12",
        "true",
        "null",
        "fals",
        "\\u12",
        "\\n",
        "\u{1}",
        "\u{7f}",
        "é",
        "\"mod\\u0065l\"",
        ",\"b\":1",
        ",\"b\":[1,2]",
        ",\"b\":{}",
        "01",
        "1.",
        "1e5",
    ];

    #[test]
    fn a_usual_body_needs_no_parser() {
        assert_eq!(json_scan::model(GOOD).map(|at| &GOOD[at]), Some("\"a/b\""));
        let deep = |n| {
            format!(
                "{{\"a\":{}1{},\"model\":\"m\"}}",
                "[".repeat(n),
                "]".repeat(n)
            )
        };
        assert!(json_scan::model(&deep(64)).is_some());
        assert!(json_scan::model(&deep(65)).is_none());
        assert_eq!(name(&deep(65)).unwrap(), "m");
    }

    fn name(body: &str) -> Result<String, GatewayError> {
        ModelField::find(body.as_bytes()).map(|field| field.name)
    }

    #[test]
    fn the_name_is_found_wherever_it_stands() {
        assert_eq!(name(r#"{"model":"a"}"#).unwrap(), "a");
        assert_eq!(
            name(r#" {"x":{"model":"no"},"mod\u0065l":"a\/b","y":[1]} "#).unwrap(),
            "a/b"
        );
    }

    #[test]
    fn ambiguity_and_nonsense_are_refused() {
        for body in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","mod\u0065l":"b"}"#,
            r#"["a"]"#,
            "",
            "{",
            r#"{"model":"a"} x"#,
            "\u{feff}{}",
        ] {
            assert!(
                matches!(name(body), Err(GatewayError::NotJson(_))),
                "{body}"
            );
        }
        for body in [
            "{}",
            r#"{"model":null}"#,
            r#"{"model":7}"#,
            r#"{"Model":"a"}"#,
        ] {
            assert!(
                matches!(name(body), Err(GatewayError::ModelMissing)),
                "{body}"
            );
        }
        assert!(matches!(
            ModelField::find(b"{\"model\":\"\xff\"}"),
            Err(GatewayError::NotJson(_))
        ));
    }

    #[test]
    fn an_alias_is_rewritten_in_place_and_an_id_is_left_alone() {
        let body = Bytes::from_static(br#"{"n": 1.50, "model" : "d\u0065fault" ,"x":"model"}"#);
        let field = ModelField::find(&body).unwrap();
        let rewritten = field.body_for("a/b", &body);
        assert_eq!(
            &rewritten[..],
            br#"{"n": 1.50, "model" : "a/b" ,"x":"model"}"#
        );
        assert_eq!(field.body_for("default", &body), body);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ModelField::find(&body);
        }

        #[test]
        fn what_the_quick_look_finds_the_parser_finds(
            pieces in prop::collection::vec(prop::sample::select(PIECES), 0..14),
        ) {
            let text = pieces.concat();
            for text in [text.clone(), format!("{{{text}}}"), format!("{{\"model\":\"m\",{text}}}")] {
                if json_scan::model(&text).is_some() {
                    let found = ModelField::find(text.as_bytes()).unwrap();
                    prop_assert_eq!(found, ModelField::parse(&text).unwrap(), "{}", text);
                }
            }
        }

        #[test]
        fn no_byte_of_a_good_body_can_be_changed_unseen(
            at in 0..GOOD.len(), byte in any::<u8>(), cut in any::<bool>(),
        ) {
            let mut body = GOOD.as_bytes().to_vec();
            body[at] = byte;
            if cut {
                body.truncate(at + 1);
            }
            let Ok(text) = String::from_utf8(body) else { return Ok(()) };
            if json_scan::model(&text).is_some() {
                let found = ModelField::find(text.as_bytes()).unwrap();
                prop_assert_eq!(found, ModelField::parse(&text).unwrap(), "{}", text);
            }
        }

        #[test]
        fn rewriting_changes_the_model_and_nothing_else(
            name in "\\PC{0,12}", id in "[a-z/]{1,12}", other in "\\PC{0,12}",
        ) {
            let body = Bytes::from(serde_json::json!({"a": other, "model": name, "z": [other]}).to_string());
            let field = ModelField::find(&body).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&field.body_for(&id, &body)).unwrap();
            prop_assert_eq!(value, serde_json::json!({"a": other, "model": id, "z": [other]}));
        }
    }
}
