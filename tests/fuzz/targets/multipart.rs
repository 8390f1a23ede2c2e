//! The body of a request that is a form.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_dataplane::fuzzing::multipart(bytes, "x"));
