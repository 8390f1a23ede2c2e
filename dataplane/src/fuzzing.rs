//! The readers of bytes from outside, opened to fuzzers and to tests that compare them with others. Each entry asserts
//! what must hold of any input; nothing here is part of a worker.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "what does not hold is to end the run, here and now"
)]

use bytes::Bytes;
use forebay_proto::EndpointUrl;
use serde_json::Value;

use crate::{
    gateway::{Reading, fuzz_sse, fuzzing, read_form, read_json},
    pool::{Form, read_list},
};

/// What was read of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The model, unescaped.
    pub model: Option<String>,
    /// A stream is wanted.
    pub stream: bool,
    /// With the usage at its end.
    pub include_usage: bool,
    /// By key.
    pub limits: [(&'static str, Option<u64>); 5],
}

impl Verdict {
    fn of(reading: &Reading) -> Self {
        let limits = reading.limits;
        Self {
            model: reading.model.as_ref().map(|field| field.name.clone()),
            stream: reading.stream,
            include_usage: reading.include_usage,
            limits: [
                ("max_tokens", limits.max_tokens),
                ("max_completion_tokens", limits.max_completion_tokens),
                ("max_output_tokens", limits.max_output_tokens),
                ("n", limits.n),
                ("best_of", limits.best_of),
            ],
        }
    }
}

/// Reads a JSON body; or why not.
pub fn json_verdict(body: &[u8]) -> Result<Verdict, String> {
    let reading = read_json(body).map_err(|error| error.to_string())?;
    Ok(Verdict::of(&reading))
}

/// Reads a form; or why not.
pub fn form_verdict(body: &[u8], boundary: &str) -> Result<Verdict, String> {
    let reading = read_form(body, boundary).map_err(|error| error.to_string())?;
    Ok(Verdict::of(&reading))
}

/// A JSON body is refused, or a full parser reads it alike; and with another model in it, nothing else changes.
pub fn json(body: &[u8]) {
    let Ok(reading) = read_json(body) else {
        return;
    };
    let value: Value = serde_json::from_slice(body).expect("what is accepted is JSON");
    assert!(value.is_object());
    let verdict = Verdict::of(&reading);
    assert_eq!(
        value.get("model").and_then(Value::as_str),
        verdict.model.as_deref()
    );
    assert_eq!(
        value
            .get("stream")
            .and_then(Value::as_bool)
            .unwrap_or_default(),
        verdict.stream
    );
    for (name, limit) in verdict.limits {
        assert_eq!(value.get(name).and_then(Value::as_u64), limit, "{name}");
    }
    rewritten(body, &reading, |sent| {
        read_json(sent).map_err(|error| error.to_string())
    });
    let Some(field) = &reading.model else {
        return;
    };
    assert_eq!(
        body.get(field.at.clone()).and_then(<[u8]>::first),
        Some(&b'"')
    );
}

/// A form is refused, or reads the same with another model in it.
pub fn multipart(body: &[u8], boundary: &str) {
    if let Ok(reading) = read_form(body, boundary) {
        rewritten(body, &reading, |sent| {
            read_form(sent, boundary).map_err(|error| error.to_string())
        });
    }
}

fn rewritten(body: &[u8], reading: &Reading, read: impl Fn(&[u8]) -> Result<Reading, String>) {
    const OTHER: &str = "vendor/another-model";
    let Some(field) = &reading.model else {
        return;
    };
    assert!(field.at.start <= field.at.end && field.at.end <= body.len());
    let bytes = Bytes::copy_from_slice(body);
    assert_eq!(
        reading.body_for(&field.name, &bytes, None).concat(),
        body,
        "untouched"
    );
    let sent = reading.body_for(OTHER, &bytes, None).concat();
    assert!(sent.starts_with(body.get(..field.at.start).unwrap_or_default()));
    assert!(sent.ends_with(body.get(field.at.end..).unwrap_or_default()));
    match read(&sent) {
        Ok(again) => {
            let name = again.model.as_ref().map(|field| field.name.as_str());
            assert_eq!(name, Some(OTHER));
            let same = Reading {
                model: None,
                stream_options: None,
                ..again
            };
            let before = Reading {
                model: None,
                stream_options: None,
                ..reading.clone()
            };
            assert_eq!(same, before);
        }
        Err(error) => panic!("rewritten, it is refused: {error}"),
    }
}

/// Bytes of a client, as HTTP/1.1, are refused or decided as they look.
pub fn request(bytes: &[u8]) {
    fuzzing::request(bytes);
}

/// Bytes of an upstream, as HTTP/1.1, are refused or passed on as they are.
pub fn answer(bytes: &[u8]) {
    fuzzing::answer(bytes);
}

/// A stream of events: the first bytes say where the rest is cut. What is read of it must not depend on the cuts, and be
/// what a reading of it line by line says.
pub fn sse(data: &[u8]) {
    let Some((cuts, text)) = data.split_at_checked(8.min(data.len() / 2)) else {
        return;
    };
    let mut at = 0;
    let cuts: Vec<usize> = cuts
        .iter()
        .map(|cut| {
            at += usize::from(*cut);
            at
        })
        .collect();
    fuzz_sse(text, &cuts);
}

/// A list of servers, as JSON and as lines: it is none, or every entry is a place that can be printed and read again. What is
/// wrong with it has none of its text.
pub fn list(bytes: &[u8]) {
    let lines = [true, false].map(|whole| Form::Lines { whole });
    for form in [Form::Json].into_iter().chain(lines) {
        for tls in [false, true] {
            for entry in read_list(bytes, form, tls).into_iter().flatten() {
                assert_eq!(entry.url.is_tls(), tls);
                let printed = entry.url.to_string();
                assert_eq!(EndpointUrl::parse(&printed), Ok(entry.url));
            }
        }
    }
}
