//! The body of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_dataplane::fuzzing::json(bytes));
