//! What is read of a JSON body, and what is not read at all.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const GOOD: &str = concat!(
    r#"{"messages": [{"role":"user","content":"a\n\u00e9\"x\\\ud83d\ude00"},[],{},[1,-0.5e+3,10E2]],"#,
    r#" "model" : "a/b", "n":0, "stream":true,"stop":null,"max_tokens":12,"x":[false , {"y":"zé"}]} "#,
);

fn name(body: &str) -> Result<String, GatewayError> {
    read(body.as_bytes()).map(|reading| reading.model.unwrap().name)
}

fn fault(body: impl AsRef<[u8]>) -> (usize, &'static str) {
    match read(body.as_ref()) {
        Err(GatewayError::NotJson { what, at }) => (at, what),
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_that_is_read_is_found_wherever_it_stands() {
    let reading = read(GOOD.as_bytes()).unwrap();
    let model = reading.model.unwrap();
    assert_eq!((model.name.as_str(), &GOOD[model.at]), ("a/b", "\"a/b\""));
    assert!(reading.stream);
    assert_eq!(reading.limits.n, Some(0));
    assert_eq!(reading.limits.max_tokens, Some(12));
    for (body, wanted) in [
        (r#"{"model":"m"}"#, "m"),
        (r#"{"x":{"model":"b"},"model":"a"}"#, "a"),
        (r#"{"x":"\"model\":\"b\"","model":"a"}"#, "a"),
        (r#"{"model":"vendor\/m"}"#, "vendor/m"),
        (r#"{"mod\u0065l":"m"}"#, "m"),
        ("\r\n\t {\"model\"\n:\t\"m\" } ", "m"),
    ] {
        assert_eq!(name(body).unwrap(), wanted, "{body}");
    }
    let options = r#"{"stream_options":{"x":{},"include_usage":true},"previous_response_id":"resp_1",
        "best_of":2,"max_completion_tokens":null,"max_output_tokens":3,"stream":null}"#;
    let reading = read(options.as_bytes()).unwrap();
    assert!(reading.include_usage && !reading.stream && reading.model.is_none());
    assert_eq!(reading.previous_response.as_deref(), Some("resp_1"));
    assert_eq!(reading.limits.max_output_tokens, Some(3));
    assert_eq!(reading.limits.max_completion_tokens, None);
    assert_eq!(
        &options[reading.stream_options.unwrap()],
        r#"{"x":{},"include_usage":true}"#
    );
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (body, at, what) in [
        (&b""[..], 0, "nothing at all"),
        (b"[1]", 0, "something other than `{`"),
        (b"{", 1, "something other than a key in quotes"),
        (b"{'a':1}", 1, "something other than a key in quotes"),
        (b"{\"a\" 1}", 5, "something other than `:`"),
        (b"{\"a\":}", 5, "something other than a value"),
        (b"{\"a\":NaN}", 5, "something other than a value"),
        (b"{\"a\":1,}", 7, "something other than a key in quotes"),
        (b"{\"a\":1} x", 8, "something after the end"),
        (b"{\"a\":1}\0", 7, "something after the end"),
        (b"{\"a\":/**/1}", 5, "something other than a value"),
        (b"{\"a\":1e400}", 5, "a number out of range"),
        (
            b"{\"a\":1.}",
            7,
            "a number without a digit where one must stand",
        ),
        (b"{\"a\":\"b", 7, "a string that does not end"),
        (b"{\"a\":\"\\ud800\"}", 6, "half of a surrogate pair"),
        (b"{\"a\":\"b\\udc00\"}", 7, "half of a surrogate pair"),
        (b"{\"a\":\"\\x\"}", 6, "an escape that JSON does not know"),
        (b"{\"a\":\"\n\"}", 6, "a control character in a string"),
        (b"{\"a\":\"bc\xff\"}", 8, "a byte that is not UTF-8"),
        (b"{\"a\xc0\xaf\":1}", 3, "a byte that is not UTF-8"),
        (b"\xef\xbb\xbf{}", 0, "a byte order mark"),
        (b"{\0}\0", 0, "UTF-16 or UTF-32; send UTF-8"),
    ] {
        assert_eq!(fault(body), (at, what), "{}", String::from_utf8_lossy(body));
    }
    let deep = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
    assert!(read(deep(63).as_bytes()).is_ok());
    assert_eq!(fault(deep(64)), (5 + 63, "nesting deeper than 64"));
    let digits = "1".repeat(400);
    assert_eq!(
        fault(format!("{{\"a\":{digits}}}")).1,
        "a number out of range"
    );
    assert!(read(format!("{{\"a\":0.{digits}}}").as_bytes()).is_ok());
}

#[test]
fn what_may_mean_two_things_is_refused() {
    for body in [
        r#"{"model":"a","model":"b"}"#,
        r#"{"model":"a","mod\u0065l":"b"}"#,
        r#"{"stream":true,"stream":true}"#,
        r#"{"max_tokens":1,"n":1,"max_tokens":1}"#,
        r#"{"stream_options":{"include_usage":true,"include_us\u0061ge":false}}"#,
    ] {
        let refused = read(body.as_bytes());
        assert!(matches!(refused, Err(GatewayError::Twice { .. })), "{body}");
    }
    for body in [
        r#"{"model":"a","Model":"b"}"#,
        r#"{"MAX_TOKENS":1}"#,
        r#"{"stream_options":{"Include_Usage":true}}"#,
    ] {
        let refused = read(body.as_bytes());
        let otherwise = matches!(refused, Err(GatewayError::OtherwiseWritten { .. }));
        assert!(otherwise, "{body}");
    }
    for body in [
        r#"{"stream":"true"}"#,
        r#"{"stream":1}"#,
        r#"{"max_tokens":-2}"#,
        r#"{"max_tokens":1.0}"#,
        r#"{"n":1e2}"#,
        r#"{"n":"1"}"#,
        r#"{"n":18446744073709551616}"#,
        r#"{"stream_options":[]}"#,
        r#"{"previous_response_id":7}"#,
    ] {
        let refused = read(body.as_bytes());
        let wrong = matches!(refused, Err(GatewayError::WrongValue { .. }));
        assert!(wrong, "{body}");
    }
    for body in [r#"{"model":7}"#, r#"{"model":null}"#, r#"{"model":["m"]}"#] {
        let refused = read(body.as_bytes());
        assert!(matches!(refused, Err(GatewayError::ModelMissing)), "{body}");
    }
}

#[test]
fn a_text_that_comes_in_pieces_is_looked_through_as_far_as_it_is_there() {
    let text =
        br#"{"a":{"id":"no"},"b":"\"id\":\"no\"","response":{"x":[1],"id":"resp_1","y":2}} "#;
    let at = text.windows(8).position(|w| w == b"\"resp_1\"").unwrap() + 8;
    for end in 0..text.len() {
        let wanted = match end < at {
            true => Found::NotYet,
            false => Found::Text("resp_1".into()),
        };
        assert_eq!(
            find_text(&text[..end], &["response", "id"]),
            wanted,
            "{end}"
        );
    }
    assert_eq!(find_text(text, &["id"]), Found::Never);
    assert_eq!(find_text(b"[1]", &["id"]), Found::Never);
    assert_eq!(find_text(br#"{"id":7}"#, &["id"]), Found::Never);
}

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
    "\\ud800",
    "\\udc00",
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
    "1e999",
    "\"Model\":\"x\"",
    ",\"stream\":true",
    ",\"n\":1",
    ",\"stream\":0",
];

/// What a full parser makes of it, the last of two keys counting.
fn agrees(text: &[u8], reading: &Reading) {
    let value: Value = serde_json::from_slice(text).unwrap();
    let model = reading.model.as_ref().map(|field| json!(field.name));
    assert_eq!(value.get("model"), model.as_ref());
    assert_eq!(
        value
            .get("stream")
            .and_then(Value::as_bool)
            .unwrap_or_default(),
        reading.stream
    );
    assert_eq!(value.get("n").and_then(Value::as_u64), reading.limits.n);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn what_is_accepted_a_full_parser_reads_alike(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..14),
    ) {
        let text = pieces.concat();
        for text in [text.clone(), format!("{{{text}}}"), format!("{{\"model\":\"m\",{text}}}")] {
            if let Ok(reading) = read(text.as_bytes()) {
                agrees(text.as_bytes(), &reading);
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
        if let Ok(reading) = read(&body) {
            agrees(&body, &reading);
        }
    }

    #[test]
    fn rewriting_changes_the_model_and_nothing_else(
        name in "\\PC{0,12}", id in "[a-z/]{1,12}", other in "\\PC{0,12}",
    ) {
        let body = Bytes::from(json!({"a": other, "model": name, "z": [other]}).to_string());
        let reading = read(&body).unwrap();
        let sent = reading.body_for(&id, &body, None).concat();
        let value: Value = serde_json::from_slice(&sent).unwrap();
        prop_assert_eq!(value, json!({"a": other, "model": id, "z": [other]}));
    }
}
