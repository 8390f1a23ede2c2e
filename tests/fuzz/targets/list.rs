//! A list of servers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay_dataplane::fuzzing::list(bytes));
