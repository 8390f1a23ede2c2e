//! A stream of events from an upstream.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_dataplane::fuzzing::sse(bytes));
