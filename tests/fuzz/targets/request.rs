//! Bytes of a client, as HTTP/1.1.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_dataplane::fuzzing::request(bytes));
