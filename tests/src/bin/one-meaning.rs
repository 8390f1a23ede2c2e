//! Writes bodies and what the gateway reads of them, for others to compare with what they read:
//! `one-meaning json|form COUNT SEED`. Each as two records, a length of four bytes (big endian) before each: the
//! body, and a JSON object that says `refused`, or what was read.

#![expect(
    clippy::expect_used,
    reason = "a program for tests; scenery that cannot be set up ends it"
)]

use std::io::{BufWriter, Write as _};

use forebay_dataplane::fuzzing;
use forebay_tests::{BOUNDARY, Bodies};
use serde_json::{Map, Value, json};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().expect("json or form");
    let mut number = || arguments.next().and_then(|text| text.parse().ok());
    let count: u64 = number().expect("a count");
    let seed: u64 = number().expect("a seed");
    let mut bodies = Bodies::new(seed);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for _ in 0..count {
        let (body, verdict) = match kind.as_str() {
            "form" => {
                let body = bodies.form();
                fuzzing::multipart(&body, BOUNDARY);
                let verdict = fuzzing::form_verdict(&body, BOUNDARY);
                (body, verdict)
            }
            _ => {
                let body = bodies.json();
                fuzzing::json(&body);
                let verdict = fuzzing::json_verdict(&body);
                (body, verdict)
            }
        };
        let verdict = match verdict {
            Err(why) => json!({ "refused": why }),
            Ok(read) => {
                let limits = read.limits.iter();
                let limits: Map<String, Value> = limits
                    .map(|(name, limit)| ((*name).to_owned(), json!(limit)))
                    .collect();
                json!({"model": read.model, "stream": read.stream, "limits": limits,
                    "include_usage": read.include_usage})
            }
        };
        for record in [body, verdict.to_string().into_bytes()] {
            let length = u32::try_from(record.len()).expect("a short body");
            out.write_all(&length.to_be_bytes()).expect("a reader");
            out.write_all(&record).expect("a reader");
        }
    }
    out.flush().expect("a reader");
}
